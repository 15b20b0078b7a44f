-- The newest errors in the logs, with their traces.
SELECT time, body, correlation_id
FROM logs
WHERE severity_text ~* '^(error|critical|fatal)' AND time > now() - INTERVAL '1 hour'
ORDER BY time DESC
LIMIT 100
