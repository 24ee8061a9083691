-- What do visitors come with? Visits by type of device.
SELECT device_type, COUNT(*) AS visits
FROM `clickstream_dw.sessions`
GROUP BY device_type
