-- Are the rows as they should be? By streaming table and day of the event.
--
-- table_name
-- day                  of the event, UTC; NULL: rows without a time
-- day_rows             rows; a copy counts as well
-- null_values          NULLs in columns that every row has: the event's time and four that the pipeline adds
-- null_columns         those columns, with commas between them; NULL: none
-- unknown_geo_share    rows without a country or with 'Unknown', 0 to 1; NULL where the table has no country
-- duplicates           copies that the view v_<table> hides: the same time, event_id and content as another row
-- conflicts            rows that it hides although their content differs; v_<table>_conflicts shows them with their like
-- late_rows            received over 10 minutes after they happened (the archive has them under late/)
-- schema_versions      those seen, with commas between them
--
-- Reads five to seven columns (some 100 bytes a row) of the partitions of the last `days` days, of those in the future and of
-- __NULL__.
DECLARE today DATE DEFAULT CURRENT_DATE('UTC');
DECLARE days INT64 DEFAULT 7;

WITH rows_of_days AS (
  SELECT 'contextflow.clickstream_events' AS table_name, 'event_timestamp' AS time_column, event_timestamp AS event_time,
    COALESCE(country, 'Unknown') AS country, event_id, received_at, loaded_at, schema_version,
    fingerprint
  FROM `contextflow.clickstream_events`
  WHERE event_timestamp >= TIMESTAMP(DATE_SUB(today, INTERVAL days DAY))
  UNION ALL
  SELECT 'backend_events.orders', 'order_date', order_date, CAST(NULL AS STRING), event_id, received_at, loaded_at,
    schema_version, fingerprint
  FROM `backend_events.orders`
  WHERE order_date >= TIMESTAMP(DATE_SUB(today, INTERVAL days DAY)) OR order_date IS NULL
  UNION ALL
  SELECT 'backend_events.inventory', 'timestamp', moved.timestamp, CAST(NULL AS STRING), event_id, received_at, loaded_at,
    schema_version, fingerprint
  FROM `backend_events.inventory` AS moved
  WHERE moved.timestamp >= TIMESTAMP(DATE_SUB(today, INTERVAL days DAY)) OR moved.timestamp IS NULL
  UNION ALL
  SELECT 'backend_events.user_activity', 'timestamp', activity.timestamp, COALESCE(country, 'Unknown'), event_id,
    received_at, loaded_at, schema_version, fingerprint
  FROM `backend_events.user_activity` AS activity
  WHERE activity.timestamp >= TIMESTAMP(DATE_SUB(today, INTERVAL days DAY)) OR activity.timestamp IS NULL
), events AS (
  SELECT *, CONCAT(event_id, ' ', COALESCE(CAST(UNIX_MICROS(event_time) AS STRING), '')) AS event
  FROM rows_of_days
)
SELECT
  table_name,
  DATE(event_time) AS day,
  COUNT(*) AS day_rows,
  COUNTIF(event_time IS NULL) + COUNTIF(event_id IS NULL) + COUNTIF(received_at IS NULL) + COUNTIF(loaded_at IS NULL)
    + COUNTIF(schema_version IS NULL) AS null_values,
  NULLIF(ARRAY_TO_STRING([
    IF(COUNTIF(event_time IS NULL) > 0, MIN(time_column), NULL),
    IF(COUNTIF(event_id IS NULL) > 0, 'event_id', NULL),
    IF(COUNTIF(received_at IS NULL) > 0, 'received_at', NULL),
    IF(COUNTIF(loaded_at IS NULL) > 0, 'loaded_at', NULL),
    IF(COUNTIF(schema_version IS NULL) > 0, 'schema_version', NULL)
  ], ', '), '') AS null_columns,
  COUNTIF(country = 'Unknown') / NULLIF(COUNT(country), 0) AS unknown_geo_share,
  COUNT(event) - COUNT(DISTINCT event)
    - COUNT(DISTINCT CONCAT(event, ' ', CAST(fingerprint AS STRING))) + COUNT(DISTINCT IF(fingerprint IS NULL, NULL, event))
    AS duplicates,
  -- A row that is older than fingerprints is no conflict.
  COUNT(DISTINCT CONCAT(event, ' ', CAST(fingerprint AS STRING))) - COUNT(DISTINCT IF(fingerprint IS NULL, NULL, event))
    AS conflicts,
  COUNTIF(received_at > TIMESTAMP_ADD(event_time, INTERVAL 10 MINUTE)) AS late_rows,
  STRING_AGG(DISTINCT schema_version, ', ' ORDER BY schema_version) AS schema_versions
FROM events
GROUP BY table_name, day
ORDER BY table_name, day
