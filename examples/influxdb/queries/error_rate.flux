// The share of failed requests for each route, in percent, from spans.
bucket = "telemetry"
start = -1h

from(bucket: bucket)
    |> range(start: start)
    |> filter(fn: (r) => r._measurement == "spans" and r["span.kind"] == "SERVER")
    |> filter(fn: (r) => r._field == "error")
    |> group(columns: ["http.route"])
    |> mean()
    |> map(fn: (r) => ({r with _value: 100.0 * r._value}))
