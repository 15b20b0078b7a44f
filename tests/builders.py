"""Functions that build SDK data in one line, with fixed times and ids."""

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics._internal.point import Buckets
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

START_NS = 1_700_000_000_123_456_789
TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
SPAN_ID = 0xB7AD6B7169203331
RESOURCE = Resource(
    {
        "service.name": "shop",
        "service.version": "1.2.3",
        "service.instance.id": "i-1",
        "host.name": "box",
        "process.pid": 12,
    }
)
SCOPE = InstrumentationScope("shop.checkout", "0.9")

DELTA = AggregationTemporality.DELTA
CUMULATIVE = AggregationTemporality.CUMULATIVE


def context(trace_id=TRACE_ID, span_id=SPAN_ID, state=None):
    return SpanContext(
        trace_id,
        span_id,
        is_remote=False,
        trace_flags=TraceFlags(1),
        trace_state=TraceState(state or []),
    )


def bounded(attributes, dropped=0):
    made = BoundedAttributes()
    made._dict = dict(attributes or {})  # older SDKs would drop maps and mixed lists
    made.dropped = dropped
    return made


def bounded_list(items, dropped=0):
    made = BoundedList.from_seq(None, items)
    made.dropped = dropped
    return made


def span(
    name="GET /cart",
    attributes=None,
    *,
    events=(),
    links=(),
    parent=None,
    kind=SpanKind.SERVER,
    status=None,
    start=START_NS,
    duration=1_500_000,
    dropped=(0, 0, 0),
    resource=RESOURCE,
    scope=SCOPE,
    ctx=None,
):
    return ReadableSpan(
        name,
        context=ctx or context(),
        parent=parent,
        resource=resource,
        attributes=bounded(attributes, dropped[0]),
        events=bounded_list(events, dropped[1]),
        links=bounded_list(links, dropped[2]),
        kind=kind,
        status=status or Status(StatusCode.UNSET),
        start_time=start,
        end_time=None if duration is None else start + duration,
        instrumentation_scope=scope,
    )


def span_event(name="cache.miss", attributes=None, *, time_ns=START_NS + 10, dropped=0):
    return Event(name, bounded(attributes, dropped), time_ns)


def link(attributes=None, *, state=None, dropped=0):
    return Link(context(1, 2, state), bounded(attributes, dropped))


def log(
    body="hello",
    attributes=None,
    *,
    severity=SeverityNumber.INFO,
    severity_text="INFO",
    event_name=None,
    timestamp=START_NS,
    observed=START_NS + 5,
    trace_id=TRACE_ID,
    span_id=SPAN_ID,
    dropped=0,
    resource=RESOURCE,
    scope=SCOPE,
):
    record = LogRecord(
        timestamp=timestamp,
        observed_timestamp=observed,
        severity_text=severity_text,
        severity_number=severity,
        body=body,
        attributes=bounded(attributes, dropped),
        event_name=event_name,
    )
    record.observed_timestamp = observed  # the constructor replaces None with the current time
    record.trace_id = trace_id
    record.span_id = span_id
    return ReadableLogRecord(record, resource, scope)


def metrics(*made, resource=RESOURCE, scope=SCOPE):
    """Return metrics in the form of `MetricsData.resource_metrics`."""
    return [ResourceMetrics(resource, [ScopeMetrics(scope, list(made), "")], "")]


def number_point(value, attributes=None, *, exemplars=(), time_ns=START_NS + 1000):
    return NumberDataPoint(attributes or {}, START_NS, time_ns, value, list(exemplars))


def sum_metric(
    *points, name="requests", unit="1", description="", temporality=DELTA, monotonic=True
):
    return Metric(name, description, unit, Sum(list(points), temporality, monotonic))


def gauge_metric(*points, name="temperature", unit="Cel", description=""):
    return Metric(name, description, unit, Gauge(list(points)))


def histogram_point(
    counts=(1, 2, 0),
    bounds=(5.0, 10.5),
    *,
    total=21.5,
    least=1.5,
    most=9.0,
    attributes=None,
    exemplars=(),
):
    return HistogramDataPoint(
        attributes or {},
        START_NS,
        START_NS + 1000,
        sum(counts),
        total,
        counts,
        bounds,
        least,
        most,
        list(exemplars),
    )


def histogram_metric(*points, name="latency", unit="s", description="", temporality=DELTA):
    return Metric(name, description, unit, Histogram(list(points), temporality))


def exponential_point(
    *,
    scale=4,
    positive=(0, (1, 0, 2)),
    negative=(0, ()),
    zero_count=1,
    total=7.5,
    least=0.0,
    most=1.2,
    attributes=None,
    exemplars=(),
):
    count = sum(positive[1]) + sum(negative[1]) + zero_count
    return ExponentialHistogramDataPoint(
        attributes or {},
        START_NS,
        START_NS + 1000,
        count,
        total,
        scale,
        zero_count,
        Buckets(*positive),
        Buckets(*negative),
        0,
        least,
        most,
        list(exemplars),
    )


def exponential_metric(*points, name="sizes", unit="By", description="", temporality=DELTA):
    return Metric(name, description, unit, ExponentialHistogram(list(points), temporality))


def exemplar(value, *, trace_id=TRACE_ID, span_id=SPAN_ID, attributes=None, time_ns=START_NS + 500):
    return Exemplar(attributes or {}, value, time_ns, span_id, trace_id)
