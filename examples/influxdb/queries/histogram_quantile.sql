-- The 95th percentile for each route from a histogram with explicit bounds, over all workers and
-- restarts, in the metric's unit. SQL knows no columns by pattern, so the bounds are listed.
WITH total AS (
    SELECT "http.route", sum("count") AS n,
           sum("le_0.005") AS b1, sum("le_0.01") AS b2, sum("le_0.025") AS b3,
           sum("le_0.05") AS b4, sum("le_0.075") AS b5, sum("le_0.1") AS b6,
           sum("le_0.25") AS b7, sum("le_0.5") AS b8, sum("le_0.75") AS b9, sum("le_1") AS b10
    FROM "http.server.request.duration"
    WHERE time > now() - INTERVAL '1 hour'
    GROUP BY "http.route"
),
bucket AS (
    SELECT "http.route", n, 0.0 AS lower, 0.005 AS upper, 0 AS below, b1 AS within FROM total
    UNION ALL SELECT "http.route", n, 0.005, 0.01, b1, b2 FROM total
    UNION ALL SELECT "http.route", n, 0.01, 0.025, b2, b3 FROM total
    UNION ALL SELECT "http.route", n, 0.025, 0.05, b3, b4 FROM total
    UNION ALL SELECT "http.route", n, 0.05, 0.075, b4, b5 FROM total
    UNION ALL SELECT "http.route", n, 0.075, 0.1, b5, b6 FROM total
    UNION ALL SELECT "http.route", n, 0.1, 0.25, b6, b7 FROM total
    UNION ALL SELECT "http.route", n, 0.25, 0.5, b7, b8 FROM total
    UNION ALL SELECT "http.route", n, 0.5, 0.75, b8, b9 FROM total
    UNION ALL SELECT "http.route", n, 0.75, 1.0, b9, b10 FROM total
)
SELECT "http.route", lower + (upper - lower) * (0.95 * n - below) / (within - below) AS p95
FROM bucket
WHERE below < 0.95 * n AND within >= 0.95 * n
ORDER BY "http.route"
