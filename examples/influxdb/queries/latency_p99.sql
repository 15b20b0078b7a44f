-- The 99th percentile of the duration for each route, in milliseconds, exactly, from spans.
SELECT "http.route", min(duration_ns) / 1e6 AS p99_ms
FROM (
    SELECT "http.route", duration_ns,
           cume_dist() OVER (PARTITION BY "http.route" ORDER BY duration_ns) AS share
    FROM spans
    WHERE "span.kind" = 'SERVER' AND time > now() - INTERVAL '1 hour'
)
WHERE share >= 0.99
GROUP BY "http.route"
ORDER BY "http.route"
