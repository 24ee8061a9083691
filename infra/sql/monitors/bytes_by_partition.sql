-- How many bytes has each partition? What BigQuery itself keeps of all tables of the streaming datasets.
--
-- table_name
-- partition_id         YYYYMMDD; __NULL__: rows without a time; __UNPARTITIONED__: rows still in the write buffer;
--                      NULL: the table has no partitions
-- total_rows           rows
-- logical_bytes        bytes before compression: what is stored, and what a query of every column reads
-- last_modified_time   last write
--
-- Reads no table; BigQuery bills a query of INFORMATION_SCHEMA as at least 10 MB.
--
-- bqemulator gets two columns wrong: logical_bytes is 0, partition_id of a table without partitions is __NULL__.
SELECT CONCAT(table_schema, '.', table_name) AS table_name, partition_id, total_rows,
  total_logical_bytes AS logical_bytes, last_modified_time
FROM `contextflow.INFORMATION_SCHEMA.PARTITIONS`
UNION ALL
SELECT CONCAT(table_schema, '.', table_name), partition_id, total_rows, total_logical_bytes, last_modified_time
FROM `backend_events.INFORMATION_SCHEMA.PARTITIONS`
ORDER BY table_name, partition_id
