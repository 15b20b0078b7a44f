// The ten slowest requests, with the trace of each.
bucket = "telemetry"
start = -1h

from(bucket: bucket)
    |> range(start: start)
    |> filter(fn: (r) => r._measurement == "spans" and r["span.kind"] == "SERVER")
    |> filter(fn: (r) => r._field == "duration_ns" or r._field == "correlation_id")
    |> pivot(rowKey: ["_time"], columnKey: ["_field"], valueColumn: "_value")
    |> group()
    |> top(n: 10, columns: ["duration_ns"])
