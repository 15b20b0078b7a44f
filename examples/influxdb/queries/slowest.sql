-- The ten slowest requests, with the trace of each.
SELECT duration_ns, correlation_id, "http.route"
FROM spans
WHERE "span.kind" = 'SERVER' AND time > now() - INTERVAL '1 hour'
ORDER BY duration_ns DESC
LIMIT 10
