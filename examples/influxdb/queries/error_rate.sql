-- The share of failed requests for each route, in percent, from spans.
SELECT "http.route", 100 * avg(error) AS percent
FROM spans
WHERE "span.kind" = 'SERVER' AND time > now() - INTERVAL '1 hour'
GROUP BY "http.route"
ORDER BY "http.route"
