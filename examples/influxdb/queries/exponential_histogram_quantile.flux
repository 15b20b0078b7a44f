// The 95th percentile from an exponential histogram, over all workers and restarts. Its fields
// in_<upper bound> are not cumulative, so they are added up in order of their bounds.
import "strings"

bucket = "telemetry"
start = -1h

from(bucket: bucket)
    |> range(start: start)
    |> filter(fn: (r) => r._measurement == "shop.order.value")
    |> filter(fn: (r) => r._field =~ /^in_/)
    |> sum()
    |> group(columns: ["_field"])
    |> sum()
    |> map(
        fn: (r) =>
            ({r with le: float(v: strings.trimPrefix(v: r._field, prefix: "in_")),
                _value: float(v: r._value),
            }),
    )
    |> group()
    |> sort(columns: ["le"])
    |> cumulativeSum()
    |> histogramQuantile(quantile: 0.95)
