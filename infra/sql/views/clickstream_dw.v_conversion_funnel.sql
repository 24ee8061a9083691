-- How many visits view a page, put something into the cart, and buy? A step counts the visits that took it and every
-- step before it.
WITH visits AS (
  SELECT session_key, MAX(viewed) AS viewed, MAX(carted) AS carted, MAX(bought) AS bought
  FROM (
    SELECT session_key, 1 AS viewed, 0 AS carted, 0 AS bought FROM `clickstream_dw.pageview_events`
    UNION ALL
    SELECT session_key, 0 AS viewed, 1 AS carted, 0 AS bought FROM `clickstream_dw.addtocart_events`
    UNION ALL
    SELECT session_key, 0 AS viewed, 0 AS carted, 1 AS bought FROM `clickstream_dw.purchase_events`
  ) AS events
  GROUP BY session_key
)
SELECT 1 AS position, 'view' AS step, SUM(viewed) AS visits FROM visits
UNION ALL
SELECT 2 AS position, 'cart' AS step, SUM(viewed * carted) AS visits FROM visits
UNION ALL
SELECT 3 AS position, 'purchase' AS step, SUM(viewed * carted * bought) AS visits FROM visits
