// How often each exception was recorded in a span, by type.
bucket = "telemetry"
start = -1h

from(bucket: bucket)
    |> range(start: start)
    |> filter(fn: (r) => r._measurement == "span_events" and r["event.name"] == "exception")
    |> filter(fn: (r) => r._field == "span_id")
    |> group(columns: ["service.name", "exception.type"])
    |> count()
