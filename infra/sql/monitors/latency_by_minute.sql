-- How long from the receipt of an event to its row, by minute? The streaming tables, the last hours.
--
-- table_name
-- minute                   when the rows were loaded, UTC
-- loaded_rows              rows; a copy counts as well
-- p50_ms, p99_ms, max_ms   from received_at (clock of the publisher) to loaded_at (clock of the batcher), milliseconds
--
-- Reads three columns (24 bytes a row) of the partitions from a day before those hours on: an event that is older than that
-- when it comes is not in the answer.
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
), latencies AS (
  SELECT
    table_name,
    TIMESTAMP_TRUNC(loaded_at, MINUTE) AS minute,
    TIMESTAMP_DIFF(loaded_at, received_at, MILLISECOND) AS latency_ms
  FROM loaded
  WHERE loaded_at >= TIMESTAMP_SUB(now, INTERVAL hours HOUR)
), ranked AS (
  SELECT
    *,
    PERCENTILE_DISC(latency_ms, 0.5) OVER (PARTITION BY table_name, minute) AS p50_ms,
    PERCENTILE_DISC(latency_ms, 0.99) OVER (PARTITION BY table_name, minute) AS p99_ms
  FROM latencies
)
SELECT
  table_name,
  minute,
  COUNT(*) AS loaded_rows,
  MAX(p50_ms) AS p50_ms,
  MAX(p99_ms) AS p99_ms,
  MAX(latency_ms) AS max_ms
FROM ranked
GROUP BY table_name, minute
ORDER BY table_name, minute
