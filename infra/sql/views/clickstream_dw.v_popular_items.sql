-- Which items are the most popular? Pieces put into carts, pieces bought, and what was paid for them, by product.
SELECT
  product_id,
  MIN(product_name) AS product_name,
  MIN(category) AS category,
  SUM(in_cart) AS put_into_cart,
  SUM(in_order) AS bought,
  SUM(in_order * price) AS sales
FROM (
  SELECT product_id, product_name, category, price, quantity AS in_cart, 0 AS in_order
  FROM `clickstream_dw.addtocart_events`
  UNION ALL
  SELECT item.product_id, item.product_name, item.category, item.price, 0 AS in_cart, item.quantity AS in_order
  FROM `clickstream_dw.purchase_events` AS purchase CROSS JOIN UNNEST(purchase.items) AS item
) AS moved
GROUP BY product_id
