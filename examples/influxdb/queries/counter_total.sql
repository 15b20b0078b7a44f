-- What a counter counted for each of its attributes: the sum of its delta points, over all workers
-- and restarts.
SELECT payment, sum(value) AS total
FROM "shop.orders"
WHERE time > now() - INTERVAL '1 hour'
GROUP BY payment
ORDER BY payment
