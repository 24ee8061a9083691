-- Does each streaming table have its rows of each day? From the tables themselves, so that it is true at once.
-- A table without a row in the last `days` days is not in the answer, nor is a day before its first row in them.
--
-- table_name
-- day          of the event, UTC; NULL: rows without a time, which lie in the partition __NULL__
-- day_rows     rows
-- last_write   newest loaded_at of the day
-- state        ok
--              missing   a day up to today without a row
--              future    a day after today: the clock of a client is wrong
--              small     before today, and fewer rows than a tenth of the mean of the 7 days before (those in the answer)
--              no day    rows without a time
--
-- Reads two columns (16 bytes a row) of the partitions of the last `days` days, of those in the future and of __NULL__.
DECLARE today DATE DEFAULT CURRENT_DATE('UTC');
DECLARE days INT64 DEFAULT 14;

WITH loaded AS (
  SELECT 'contextflow.clickstream_events' AS table_name, event_timestamp AS event_time, loaded_at
  FROM `contextflow.clickstream_events`
  WHERE event_timestamp >= TIMESTAMP(DATE_SUB(today, INTERVAL days DAY))
  UNION ALL
  SELECT 'backend_events.orders', order_date, loaded_at
  FROM `backend_events.orders`
  WHERE order_date >= TIMESTAMP(DATE_SUB(today, INTERVAL days DAY)) OR order_date IS NULL
  UNION ALL
  SELECT 'backend_events.inventory', moved.timestamp, loaded_at
  FROM `backend_events.inventory` AS moved
  WHERE moved.timestamp >= TIMESTAMP(DATE_SUB(today, INTERVAL days DAY)) OR moved.timestamp IS NULL
  UNION ALL
  SELECT 'backend_events.user_activity', activity.timestamp, loaded_at
  FROM `backend_events.user_activity` AS activity
  WHERE activity.timestamp >= TIMESTAMP(DATE_SUB(today, INTERVAL days DAY)) OR activity.timestamp IS NULL
), found AS (
  SELECT table_name, DATE(event_time) AS day, COUNT(*) AS day_rows, MAX(loaded_at) AS last_write
  FROM loaded
  GROUP BY table_name, day
), calendar AS (
  SELECT table_name, day
  FROM (SELECT table_name, MIN(day) AS first_day FROM found GROUP BY table_name) AS seen
  CROSS JOIN UNNEST(GENERATE_DATE_ARRAY(seen.first_day, today)) AS day
), expected AS (
  SELECT calendar.table_name, calendar.day, COALESCE(found.day_rows, 0) AS day_rows, found.last_write
  FROM calendar
  LEFT JOIN found ON found.table_name = calendar.table_name AND found.day = calendar.day
), judged AS (
  SELECT
    *,
    AVG(day_rows) OVER (PARTITION BY table_name ORDER BY day ROWS BETWEEN 7 PRECEDING AND 1 PRECEDING) AS rows_before
  FROM expected
)
SELECT
  table_name,
  day,
  day_rows,
  last_write,
  CASE
    WHEN day_rows = 0 THEN 'missing'
    WHEN day < today AND day_rows < 0.1 * rows_before THEN 'small'
    ELSE 'ok'
  END AS state
FROM judged
UNION ALL
SELECT table_name, day, day_rows, last_write, IF(day IS NULL, 'no day', 'future') AS state
FROM found
WHERE day IS NULL OR day > today
ORDER BY table_name, day
