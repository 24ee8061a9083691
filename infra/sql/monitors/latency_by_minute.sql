-- How long from the receipt of an event to its row, by minute? The streaming tables, the last hours.
--
-- table_name
-- minute                   when the rows were loaded, UTC
-- loaded_rows              rows; a copy counts as well
-- p50_ms, p99_ms, max_ms   from received_at (clock of the publisher) to loaded_at (clock of the batcher), milliseconds; of
--                          many rows p50 and p99 are approximate to a percent of the rows
--
-- Reads three columns (24 bytes a row) of the partitions from a day before those hours on: an event that is older than that
-- when it comes is not in the answer.
--
-- bqemulator takes an offset on APPROX_QUANTILES(...) itself for the one after it, so it stands in the outer query.
DECLARE now TIMESTAMP DEFAULT CURRENT_TIMESTAMP();
DECLARE hours INT64 DEFAULT 24;

WITH loaded AS (
  SELECT 'contextflow.clickstream_events' AS table_name, received_at, loaded_at
  FROM `contextflow.clickstream_events`
  WHERE event_timestamp >= TIMESTAMP_SUB(now, INTERVAL (hours + 24) HOUR)
  UNION ALL
  SELECT 'backend_events.orders', received_at, loaded_at
  FROM `backend_events.orders`
  WHERE order_date >= TIMESTAMP_SUB(now, INTERVAL (hours + 24) HOUR)
  UNION ALL
  SELECT 'backend_events.inventory', received_at, loaded_at
  FROM `backend_events.inventory` AS moved
  WHERE moved.timestamp >= TIMESTAMP_SUB(now, INTERVAL (hours + 24) HOUR)
  UNION ALL
  SELECT 'backend_events.user_activity', received_at, loaded_at
  FROM `backend_events.user_activity` AS activity
  WHERE activity.timestamp >= TIMESTAMP_SUB(now, INTERVAL (hours + 24) HOUR)
), minutes AS (
  SELECT
    table_name,
    TIMESTAMP_TRUNC(loaded_at, MINUTE) AS minute,
    COUNT(*) AS loaded_rows,
    APPROX_QUANTILES(TIMESTAMP_DIFF(loaded_at, received_at, MILLISECOND), 100) AS percentiles,
    MAX(TIMESTAMP_DIFF(loaded_at, received_at, MILLISECOND)) AS max_ms
  FROM loaded
  WHERE loaded_at >= TIMESTAMP_SUB(now, INTERVAL hours HOUR)
  GROUP BY table_name, minute
)
SELECT
  table_name,
  minute,
  loaded_rows,
  percentiles[OFFSET(50)] AS p50_ms,
  percentiles[OFFSET(99)] AS p99_ms,
  max_ms
FROM minutes
ORDER BY table_name, minute
