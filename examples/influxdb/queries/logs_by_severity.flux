// How many log records of each severity there were, by minute.
bucket = "telemetry"
start = -1h

from(bucket: bucket)
    |> range(start: start)
    |> filter(fn: (r) => r._measurement == "logs" and r._field == "severity_number")
    |> group(columns: ["service.name", "severity_text"])
    |> aggregateWindow(every: 1m, fn: count, createEmpty: false, timeSrc: "_start")
