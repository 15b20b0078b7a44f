// Exemplars of a histogram over 250 ms: single measurements, each with its trace.
bucket = "telemetry"
start = -1h

from(bucket: bucket)
    |> range(start: start)
    |> filter(fn: (r) => r._measurement == "exemplars")
    |> filter(fn: (r) => r["metric.name"] == "http.server.request.duration")
    |> filter(fn: (r) => r._field == "value" or r._field == "correlation_id")
    |> pivot(rowKey: ["_time"], columnKey: ["_field"], valueColumn: "_value")
    |> filter(fn: (r) => r.value > 0.25)
    |> group()
    |> sort(columns: ["value"], desc: true)
