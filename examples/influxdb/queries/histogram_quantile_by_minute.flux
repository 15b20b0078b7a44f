// The 95th percentile for each route and minute from a histogram with explicit bounds, over all
// workers, in the metric's unit.
import "strings"

bucket = "telemetry"
start = -1h

from(bucket: bucket)
    |> range(start: start)
    |> filter(fn: (r) => r._measurement == "http.server.request.duration")
    |> filter(fn: (r) => r._field =~ /^le_/)
    |> group(columns: ["http.route", "_field"])
    |> aggregateWindow(every: 1m, fn: sum, createEmpty: false, timeSrc: "_start")
    |> map(
        fn: (r) =>
            ({r with le: float(v: strings.trimPrefix(v: r._field, prefix: "le_")),
                _value: float(v: r._value),
            }),
    )
    |> group(columns: ["http.route", "_time"])
    |> histogramQuantile(quantile: 0.95, onNonmonotonic: "drop")
