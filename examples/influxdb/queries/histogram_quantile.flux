// The 95th percentile for each route from a histogram with explicit bounds, over all workers and
// restarts, in the metric's unit. Sums for each series first: later steps are then cheap. Routes
// whose bounds have changed are left out, because one of them would make the whole query fail.
import "strings"

bucket = "telemetry"
start = -1h

from(bucket: bucket)
    |> range(start: start)
    |> filter(fn: (r) => r._measurement == "http.server.request.duration")
    |> filter(fn: (r) => r._field =~ /^le_/)
    |> sum()
    |> group(columns: ["http.route", "_field"])
    |> sum()
    |> map(
        fn: (r) =>
            ({r with le: float(v: strings.trimPrefix(v: r._field, prefix: "le_")),
                _value: float(v: r._value),
            }),
    )
    |> group(columns: ["http.route"])
    |> histogramQuantile(quantile: 0.95, onNonmonotonic: "drop")
