// The 99th percentile of the duration for each route, in milliseconds, exactly, from spans.
bucket = "telemetry"
start = -1h

from(bucket: bucket)
    |> range(start: start)
    |> filter(fn: (r) => r._measurement == "spans" and r["span.kind"] == "SERVER")
    |> filter(fn: (r) => r._field == "duration_ns")
    |> group(columns: ["http.route"])
    |> quantile(q: 0.99, method: "exact_selector")
    |> map(fn: (r) => ({r with _value: float(v: r._value) / 1000000.0}))
