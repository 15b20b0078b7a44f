// What a counter counted a second for each of its attributes, by minute, over all workers.
bucket = "telemetry"
start = -1h

from(bucket: bucket)
    |> range(start: start)
    |> filter(fn: (r) => r._measurement == "shop.orders" and r._field == "value")
    |> group(columns: ["payment"])
    |> aggregateWindow(every: 1m, fn: sum, createEmpty: false, timeSrc: "_start")
    |> map(fn: (r) => ({r with _value: r._value / 60.0}))
