-- Requests a second for each route, by minute, from spans.
SELECT date_bin(INTERVAL '1 minute', time) AS minute, "http.route", count(*) / 60.0 AS per_second
FROM spans
WHERE "span.kind" = 'SERVER' AND time > now() - INTERVAL '1 hour'
GROUP BY 1, 2
ORDER BY 1, 2
