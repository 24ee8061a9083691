-- Which pages do visitors look at? Views of each page, and visits in which it was viewed at least once.
SELECT page_url, COUNT(*) AS page_views, COUNT(DISTINCT session_key) AS visits
FROM `clickstream_dw.pageview_events`
GROUP BY page_url
