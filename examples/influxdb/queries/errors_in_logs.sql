-- The newest errors in the logs, with their traces, by the names that most libraries give to their
-- levels. Where they have others, the field severity_number is 17 or more.
SELECT time, body, correlation_id
FROM logs
WHERE severity_text ~* '^(error|critical|fatal)' AND time > now() - INTERVAL '1 hour'
ORDER BY time DESC
LIMIT 100
