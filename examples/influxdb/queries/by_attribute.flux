// Failed requests by an attribute that is no tag, here the path: the field `attributes` is JSON.
// Requests without that attribute are in a row without a name.
import "experimental/dynamic"

bucket = "telemetry"
start = -1h
path = (json) => {
    attributes = dynamic.jsonParse(data: bytes(v: json))

    return string(v: attributes["url.path"])
}

from(bucket: bucket)
    |> range(start: start)
    |> filter(fn: (r) => r._measurement == "spans" and r["otel.status_code"] == "ERROR")
    |> filter(fn: (r) => r._field == "attributes")
    |> map(fn: (r) => ({path: path(json: r._value), _value: 1}))
    |> group(columns: ["path"])
    |> count()
