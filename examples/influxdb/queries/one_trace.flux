// One trace: its spans, their events and links, and its logs, in order of time.
// Its times are looked for first, because only its own range is cheap to pivot.
import "experimental"

bucket = "telemetry"
start = -1h
trace = "0af7651916cd43dd8448eb211c80319c"

parts = (r) => r._measurement =~ /^(spans|span_events|span_links|logs)$/
times =
    from(bucket: bucket)
        |> range(start: start)
        |> filter(fn: parts)
        |> filter(fn: (r) => r._field == "correlation_id" and r._value == trace)
        |> keep(columns: ["_time"])
        |> sort(columns: ["_time"])
found = times |> findColumn(fn: (key) => true, column: "_time")
first = if length(arr: found) > 0 then found[0] else now()
last = if length(arr: found) > 0 then found[length(arr: found) - 1] else now()

from(bucket: bucket)
    |> range(start: first, stop: experimental.addDuration(d: 1ns, to: last))
    |> filter(fn: parts)
    |> pivot(rowKey: ["_time"], columnKey: ["_field"], valueColumn: "_value")
    |> filter(fn: (r) => r.correlation_id == trace)
    |> group()
    |> sort(columns: ["_time"])
