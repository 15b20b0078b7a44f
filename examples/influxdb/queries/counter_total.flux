// What a counter counted for each of its attributes: the sum of its delta points, over all workers
// and restarts.
bucket = "telemetry"
start = -1h

from(bucket: bucket)
    |> range(start: start)
    |> filter(fn: (r) => r._measurement == "shop.orders" and r._field == "value")
    |> sum()
    |> group(columns: ["payment"])
    |> sum()
