// The newest errors in the logs, with their traces, by the names that most libraries give to their
// levels. Where they have others, the field severity_number is 17 or more.
bucket = "telemetry"
start = -1h

from(bucket: bucket)
    |> range(start: start)
    |> filter(fn: (r) => r._measurement == "logs" and r.severity_text =~ /^(?i)(error|critical|fatal)/)
    |> filter(fn: (r) => r._field == "body" or r._field == "correlation_id")
    |> pivot(rowKey: ["_time"], columnKey: ["_field"], valueColumn: "_value")
    |> group()
    |> sort(columns: ["_time"], desc: true)
    |> limit(n: 100)
