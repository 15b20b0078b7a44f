"""What a user of influxdb-client would write to keep spans and metrics: `Point` by `Point`.

Plain code that uses the SDK's public properties and makes the same content as our lines. It
ignores most of what ours takes care of: reserved names, redaction, points that overwrite each
other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from influxdb_client import Point
from opentelemetry.sdk.metrics.export import Histogram, Metric, ResourceMetrics, Sum
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from otel_cbtop_exporter.config import DEFAULT_SPAN_TAGS

_RESOURCE_TAGS = (
    "service.name",
    "service.version",
    "service.instance.id",
    "host.name",
    "deployment.environment.name",
)


def span_points(spans: Sequence[ReadableSpan]) -> Iterator[Point]:
    for span in spans:
        context = span.get_span_context()
        trace_id = f"{context.trace_id:032x}"
        span_id = f"{context.span_id:016x}"
        point = _point("spans", span).tag("span.name", span.name).tag("span.kind", span.kind.name)
        attributes = span.attributes or {}
        for key in DEFAULT_SPAN_TAGS:
            if key in attributes:
                point.tag(key, str(attributes[key]))
        if span.status.status_code is not StatusCode.UNSET:
            point.tag("otel.status_code", span.status.status_code.name)
        if span.status.description:
            point.field("status_message", span.status.description)
        point.field("attributes", _json(attributes))
        point.field("correlation_id", trace_id)
        point.field("duration_ns", (span.end_time or 0) - (span.start_time or 0))
        point.field("error", int(span.status.status_code is StatusCode.ERROR))
        point.field("parent_span_id", f"{span.parent.span_id:016x}" if span.parent else "")
        point.field("span_id", span_id)
        yield point.time(span.start_time)
        for event in span.events:
            point = _point("span_events", span).tag("span.name", span.name)
            point.tag("event.name", event.name)
            kept = event.attributes or {}
            if "exception.type" in kept:
                point.tag("exception.type", str(kept["exception.type"]))
            point.field("attributes", _json(kept)).field("correlation_id", trace_id)
            yield point.field("span_id", span_id).time(event.timestamp)


def metric_points(batch: Sequence[ResourceMetrics]) -> Iterator[Point]:
    for resource_metrics in batch:
        for scope_metrics in resource_metrics.scope_metrics:
            for metric in scope_metrics.metrics:
                about = _about(metric)
                for data in metric.data.data_points:
                    point = _point(metric.name, _Owner(resource_metrics, scope_metrics))
                    for key, value in data.attributes.items():
                        point.tag(key, str(value))
                    point.field("metric", about)
                    if isinstance(metric.data, Histogram):
                        for bound, count in zip(
                            (*data.explicit_bounds, "inf"),
                            accumulate(data.bucket_counts),
                            strict=True,
                        ):
                            text = bound if bound == "inf" else repr(bound).removesuffix(".0")
                            point.field(f"le_{text}", count)
                        point.field("count", data.count).field("sum", float(data.sum))
                        point.field("min", float(data.min)).field("max", float(data.max))
                    else:
                        point.field("value", float(data.value))
                    if type(metric.data).__name__ != "Gauge":
                        point.field("start_time_ns", data.start_time_unix_nano)
                    yield point.time(data.time_unix_nano)


def lines(points: Iterator[Point]) -> list[str]:
    return [point.to_line_protocol() for point in points]


class _Owner:
    def __init__(self, resource_metrics: Any, scope_metrics: Any) -> None:
        self.resource = resource_metrics.resource
        self.instrumentation_scope = scope_metrics.scope


def _point(measurement: str, owner: Any) -> Point:
    point = Point(measurement).tag("schema_version", "1")
    resource = owner.resource.attributes
    for key in _RESOURCE_TAGS:
        point.tag(key, resource[key])
    scope = owner.instrumentation_scope
    return point.tag("otel.scope.name", scope.name).tag("otel.scope.version", scope.version)


def _json(attributes: Any) -> str:
    return json.dumps(dict(attributes), separators=(",", ":"))


def _about(metric: Metric) -> str:
    data: Any = metric.data
    about: dict[str, Any] = {"type": type(data).__name__.lower(), "unit": metric.unit}
    if about["type"] != "gauge":
        about["temporality"] = data.aggregation_temporality.name.lower()
    if isinstance(data, Sum):
        about["monotonic"] = data.is_monotonic
    return _json(about)
