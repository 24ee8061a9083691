-- What does Google Cloud cost a day? From the export of Cloud Billing ("standard usage cost"), which is switched on once in
-- the console (Billing, Billing export) for a dataset named `billing` in this project.
--
-- day         as billed, in Pacific time: the day of the kill-switch too
-- project     project id; NULL: what belongs to none, such as support
-- service     as Google names it
-- cost        before credits, in `currency`
-- credits     free tier, discounts: 0 or negative
-- net_cost    what is to be paid
-- currency
--
-- Rows come hours to days late, the newest day is never whole. AWS is not in it.
--
-- Reads five columns of the whole export, which has a few hundred rows a day: megabytes a year.
DECLARE today DATE DEFAULT CURRENT_DATE('America/Los_Angeles');
DECLARE days INT64 DEFAULT 31;

WITH used AS (
  SELECT
    DATE(usage_start_time, 'America/Los_Angeles') AS day,
    project.id AS project,
    service.description AS service,
    cost,
    COALESCE((SELECT SUM(credit.amount) FROM UNNEST(credits) AS credit), 0) AS credits,
    currency
  FROM `billing.gcp_billing_export_v1_*`
)
SELECT
  day,
  project,
  service,
  ROUND(SUM(cost), 2) AS cost,
  ROUND(SUM(credits), 2) AS credits,
  ROUND(SUM(cost) + SUM(credits), 2) AS net_cost,
  currency
FROM used
WHERE day > DATE_SUB(today, INTERVAL days DAY)
GROUP BY day, project, service, currency
ORDER BY day, project, service, currency
