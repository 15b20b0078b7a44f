-- The share of requests within 250 ms for each route, in percent, from a histogram with that bound.
SELECT "http.route", 100.0 * sum("le_0.25") / sum("count") AS percent
FROM "http.server.request.duration"
WHERE time > now() - INTERVAL '1 hour'
GROUP BY "http.route"
ORDER BY "http.route"
