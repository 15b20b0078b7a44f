"""Events of a small shop, and helpers that write them to files for the tests of the commands."""

import gzip

from otel_cbtop_exporter.encoding.event_json import encode_event
from otel_cbtop_exporter.events import Event, MetricInfo

TRACE = "0af7651916cd43dd8448eb211c80319c"
OTHER_TRACE = "0af7000000000000000000000000000f"
START_NS = 1_795_479_678_000_000_000
SERVICE = {"service.name": "shop"}


def span(name, span_id, *, parent="", trace=TRACE, at_ms=0, took_ms=10, kind="SERVER", error=0):
    return Event(
        measurement="spans",
        tags={**SERVICE, "span.name": name, "span.kind": kind},
        fields={
            "duration_ns": took_ms * 1_000_000,
            "error": error,
            "parent_span_id": parent,
            "span_id": span_id,
        },
        timestamp_ns=START_NS + at_ms * 1_000_000,
        correlation_id=trace,
        signal="span",
    )


def log(body, *, span_id="", trace=TRACE, severity="INFO", at_ms=0):
    fields = {"body": body, "severity_number": 9}
    return Event(
        measurement="logs",
        tags={**SERVICE, "otel.scope.name": "shop", "severity_text": severity},
        fields={**fields, "span_id": span_id} if span_id else fields,
        timestamp_ns=START_NS + at_ms * 1_000_000,
        correlation_id=trace,
        signal="log",
    )


def exemplar(span_id, *, trace=TRACE):
    return Event(
        measurement="exemplars",
        tags={**SERVICE, "metric.name": "http.server.request.duration"},
        fields={"value": 0.25, "span_id": span_id},
        timestamp_ns=START_NS + 20_000_000,
        correlation_id=trace,
        signal="exemplar",
    )


def metric(name, value=1.5, **tags):
    return Event(
        measurement=name,
        tags={**SERVICE, **tags},
        fields={"value": value},
        timestamp_ns=START_NS + 30_000_000,
        signal="metric",
        metric=MetricInfo(type="gauge", unit="s"),
    )


def as_lines(*events):
    return b"".join(encode_event(event) + b"\n" for event in events)


def write(path, *events):
    path.write_bytes(as_lines(*events))
    return str(path)


def write_gzip(path, *events):
    path.write_bytes(gzip.compress(as_lines(*events)))
    return str(path)
