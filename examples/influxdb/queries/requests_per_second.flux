// Requests a second for each route, by minute, from spans.
bucket = "telemetry"
start = -1h

from(bucket: bucket)
    |> range(start: start)
    |> filter(fn: (r) => r._measurement == "spans" and r["span.kind"] == "SERVER")
    |> filter(fn: (r) => r._field == "duration_ns")
    |> aggregateWindow(every: 1m, fn: count, createEmpty: false, timeSrc: "_start")
    |> group(columns: ["http.route", "_time"])
    |> sum()
    |> map(fn: (r) => ({r with _value: float(v: r._value) / 60.0}))
