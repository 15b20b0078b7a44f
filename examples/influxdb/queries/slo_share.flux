// The share of requests within 250 ms for each route, in percent, from a histogram with that bound.
bucket = "telemetry"
start = -1h

from(bucket: bucket)
    |> range(start: start)
    |> filter(fn: (r) => r._measurement == "http.server.request.duration")
    |> filter(fn: (r) => r._field == "le_0.25" or r._field == "count")
    |> filter(fn: (r) => exists r["http.route"]) // a 404 has none
    |> sum()
    |> group(columns: ["http.route", "_field"])
    |> sum()
    |> group(columns: ["http.route"])
    |> pivot(rowKey: ["http.route"], columnKey: ["_field"], valueColumn: "_value")
    |> map(fn: (r) => ({r with _value: 100.0 * float(v: r["le_0.25"]) / float(v: r.count)}))
