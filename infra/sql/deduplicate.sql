-- Removes exact copies of events from closed partitions, each night: rows of a streaming table with the same event time,
-- event_id and fingerprint. The first received stays, as in v_<table>. Conflicts (one event_id,
-- different content) stay, and so do rows without a time or without a fingerprint.
--
-- A day is closed when it ended over a day ago and nothing of it was loaded in the last hour: BigQuery changes no row that was
-- streamed in the last 30 minutes. Looked at are the tables of these datasets that have the pipeline's columns and are
-- partitioned by time. A day is changed by one statement, so the next run continues one that was cut off, and a second run
-- changes nothing. contextflow.deduplications has a row for each table and day that was changed.
--
-- Reads four columns (some 60 bytes a row) of the last `days` days, and all columns of the days that it changes.
DECLARE today DATE DEFAULT CURRENT_DATE('UTC');
DECLARE days INT64 DEFAULT 35;
DECLARE finders STRING;

CREATE TABLE IF NOT EXISTS `contextflow.deduplications` (
  table_name STRING OPTIONS (description="Table, with its dataset"),
  day DATE OPTIONS (description="Day of the events, UTC"),
  removed INT64 OPTIONS (description="Copies that were removed"),
  deduplicated_at TIMESTAMP OPTIONS (description="When they were removed")
);

CREATE OR REPLACE TEMP TABLE streams AS
WITH columns AS (
  SELECT table_schema, table_name, column_name, data_type, ordinal_position, is_partitioning_column
  FROM `contextflow.INFORMATION_SCHEMA.COLUMNS`
  UNION ALL
  SELECT table_schema, table_name, column_name, data_type, ordinal_position, is_partitioning_column
  FROM `backend_events.INFORMATION_SCHEMA.COLUMNS`
)
SELECT CONCAT(table_schema, '.', table_name) AS name,
  MAX(IF(is_partitioning_column = 'YES', column_name, NULL)) AS time_column,
  MAX(IF(is_partitioning_column = 'YES', data_type, NULL)) AS time_type,
  -- As the table has them: a column that the schema has no more keeps its values.
  STRING_AGG(CONCAT('`', column_name, '`'), ', ' ORDER BY ordinal_position) AS columns
FROM columns
-- TABLE__RUN is what a backfill stages.
WHERE STRPOS(table_name, '__') = 0
GROUP BY table_schema, table_name
HAVING COUNTIF(column_name IN ('event_id', 'received_at', 'loaded_at', 'fingerprint')) = 4
  AND COUNTIF(is_partitioning_column = 'YES') = 1;

SET finders = (
  SELECT STRING_AGG(REPLACE(REPLACE(REPLACE(REPLACE(REPLACE("""
    SELECT '<name>' AS name, day, SUM(copies) - COUNT(*) AS removed
    FROM (
      SELECT CAST(`<time>` AS DATE) AS day, COUNT(*) AS copies, MAX(loaded_at) AS loaded_at
      FROM `<name>`
      WHERE `<time>` >= CAST(DATE '<first>' AS <type>) AND `<time>` < CAST(DATE '<end>' AS <type>)
        AND event_id IS NOT NULL AND fingerprint IS NOT NULL
      GROUP BY `<time>`, event_id, fingerprint
    )
    GROUP BY day
    HAVING SUM(copies) > COUNT(*) AND MAX(loaded_at) < TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 60 MINUTE)""",
    '<name>', name), '<time>', time_column), '<type>', time_type),
    '<first>', CAST(DATE_SUB(today, INTERVAL days DAY) AS STRING)),
    '<end>', CAST(DATE_SUB(today, INTERVAL 1 DAY) AS STRING)), '\n    UNION ALL')
  FROM streams
);
EXECUTE IMMEDIATE CONCAT('CREATE OR REPLACE TEMP TABLE closed AS', finders);

FOR one IN (SELECT name, day, removed, time_column, time_type, columns FROM closed JOIN streams USING (name) ORDER BY name, day) DO
  -- Of each row that is there several times, one source row deletes all, and one adds the first again.
  EXECUTE IMMEDIATE REPLACE(REPLACE(REPLACE(REPLACE(REPLACE(REPLACE("""
    MERGE `<name>` AS target
    USING (
      SELECT first.*, is_kept_
      FROM (
        SELECT * FROM `<name>`
        WHERE `<time>` >= CAST(DATE '<day>' AS <type>) AND `<time>` < CAST(DATE '<next>' AS <type>)
          AND event_id IS NOT NULL AND fingerprint IS NOT NULL
        QUALIFY COUNT(*) OVER (PARTITION BY `<time>`, event_id, fingerprint) > 1
          AND ROW_NUMBER() OVER (PARTITION BY `<time>`, event_id, fingerprint ORDER BY received_at, loaded_at) = 1
      ) AS first
      CROSS JOIN UNNEST([FALSE, TRUE]) AS is_kept_
    ) AS source
    ON NOT source.is_kept_
      AND target.`<time>` >= CAST(DATE '<day>' AS <type>) AND target.`<time>` < CAST(DATE '<next>' AS <type>)
      AND target.`<time>` = source.`<time>` AND target.event_id = source.event_id AND target.fingerprint = source.fingerprint
    WHEN MATCHED THEN DELETE
    WHEN NOT MATCHED BY TARGET AND is_kept_ THEN INSERT (<columns>) VALUES (<columns>)""",
    '<name>', one.name), '<time>', one.time_column), '<type>', one.time_type), '<columns>', one.columns),
    '<day>', CAST(one.day AS STRING)), '<next>', CAST(DATE_ADD(one.day, INTERVAL 1 DAY) AS STRING));
  INSERT INTO `contextflow.deduplications` (table_name, day, removed, deduplicated_at)
  VALUES (one.name, one.day, one.removed, CURRENT_TIMESTAMP());
END FOR;
