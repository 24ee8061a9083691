-- Which categories sell? Orders, pieces and money by category of what was bought.
SELECT
  item.category AS category,
  COUNT(DISTINCT purchase.order_id) AS orders,
  SUM(item.quantity) AS bought,
  SUM(item.quantity * item.price) AS sales
FROM `clickstream_dw.purchase_events` AS purchase CROSS JOIN UNNEST(purchase.items) AS item
GROUP BY category
