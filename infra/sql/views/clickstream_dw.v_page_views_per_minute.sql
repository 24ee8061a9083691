-- When is the site busy? Page views by minute; a minute without any has no row.
SELECT TIMESTAMP_TRUNC(page_view.timestamp, MINUTE) AS minute, COUNT(*) AS page_views
FROM `clickstream_dw.pageview_events` AS page_view
GROUP BY minute
