-- Events of the last 7 days by day, place and name.
SELECT CAST(event_timestamp AS DATE) AS event_date, country, city, event_name, COUNT(*) AS events
FROM `contextflow.v_clickstream_events`
WHERE event_timestamp >= CURRENT_TIMESTAMP() - INTERVAL 7 DAY
GROUP BY event_date, country, city, event_name
