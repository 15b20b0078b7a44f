-- One trace: its spans and its logs, in order of time.
SELECT time, 'span' AS kind, "span.name" AS what, duration_ns, span_id, parent_span_id
FROM spans
WHERE correlation_id = '0af7651916cd43dd8448eb211c80319c' AND time > now() - INTERVAL '1 hour'
UNION ALL
SELECT time, 'log', body, NULL, span_id, NULL
FROM logs
WHERE correlation_id = '0af7651916cd43dd8448eb211c80319c' AND time > now() - INTERVAL '1 hour'
ORDER BY time
