"""The data of a small web shop, as the SDK hands it to an exporter; each call makes new objects.

Everything random is seeded, so two runs measure the same data.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import replace

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    InMemoryMetricReader,
    ResourceMetrics,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode
from opentelemetry.util.types import AttributeValue

BATCH = 512
RESOURCE = Resource(
    {
        "service.name": "shop",
        "service.version": "1.2.3",
        "service.instance.id": "627cc493-f310-47de-96bd-71410b7dec09",
        "host.name": "box-17",
        "deployment.environment.name": "production",
        "telemetry.sdk.language": "python",
    }
)
SCOPE = InstrumentationScope("shop.web", "0.9")
ROUTES = [f"/api/v1/{thing}/{{id}}" for thing in ("cart", "order", "item", "user", "price")]
METHODS = ("GET", "POST", "PUT")
BOUNDS = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 25]

_random = random.Random(7)
_sequence = itertools.count()
_begin_ns = time.time_ns()


def spans(count: int = BATCH, attributes: int = 10) -> list[ReadableSpan]:
    """Make server and client spans, five to a trace; one in twenty failed with an exception."""
    made = []
    parent = None
    for position in range(count):
        if position % 5 == 0:
            trace_id, parent = _random.getrandbits(128) | 1, None
        context = SpanContext(
            trace_id, _random.getrandbits(64) | 1, is_remote=False, trace_flags=TraceFlags(1)
        )
        number = next(_sequence)
        failed = position % 20 == 19
        start_ns = _begin_ns + number * 100_003
        duration_ns = _random.randrange(100_000, 50_000_000)
        bag = span_attributes(number, attributes, failed=failed)
        made.append(
            ReadableSpan(
                f"{bag.get('http.request.method', 'GET')} {ROUTES[number % 5]}",
                context=context,
                parent=parent,
                resource=RESOURCE,
                attributes=BoundedAttributes(128, bag),
                events=BoundedList.from_seq(128, _exceptions(start_ns) if failed else ()),
                links=BoundedList(128),
                kind=SpanKind.SERVER if parent is None else SpanKind.CLIENT,
                status=Status(StatusCode.ERROR, "it broke") if failed else Status(),
                start_time=start_ns,
                end_time=start_ns + duration_ns,
                instrumentation_scope=SCOPE,
            )
        )
        parent = context
    return made


def span_attributes(number: int, count: int, *, failed: bool = False) -> dict[str, AttributeValue]:
    route = ROUTES[number % 5]
    bag: dict[str, AttributeValue] = {
        "http.request.method": METHODS[number % 3],
        "http.route": route,
        "http.response.status_code": 500 if failed else 200,
        "url.path": route.replace("{id}", str(number)),
        "server.address": "shop.example.com",
        "server.port": 8443,
        "client.address": f"10.0.{number % 250}.{number % 199}",
        "user_agent.original": "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101",
        "shop.user.id": f"user-{number % 100_000}",
        "shop.cart.total": number % 997 / 8,
    }
    if count <= len(bag):
        return dict(itertools.islice(bag.items(), count))
    bag.update({f"shop.extra.{i}": f"value {number + i}" for i in range(count - len(bag))})
    return bag


def _exceptions(start_ns: int) -> list[Event]:
    attributes = {
        "exception.type": "shop.errors.OutOfStock",
        "exception.message": "there is none left",
        "exception.stacktrace": 'Traceback (most recent call last):\n  File "shop.py", line 12\n'
        * 4,
        "exception.escaped": "False",
    }
    return [Event("exception", BoundedAttributes(128, attributes), start_ns + 90_000)]


def log_records(count: int = BATCH) -> list[ReadableLogRecord]:
    """Make log records with a text body, four attributes and a trace context."""
    made = []
    for _ in range(count):
        number = next(_sequence)
        warning = number % 10 == 0
        record = LogRecord(
            timestamp=_begin_ns + number * 100_003,
            observed_timestamp=_begin_ns + number * 100_003 + 900,
            severity_text="WARN" if warning else "INFO",
            severity_number=SeverityNumber.WARN if warning else SeverityNumber.INFO,
            body=f"order {number} of user-{number % 100_000} was placed",
            attributes=BoundedAttributes(
                128,
                {
                    "code.file.path": "/srv/shop/orders.py",
                    "code.function.name": "place_order",
                    "code.line.number": 128,
                    "shop.order.id": number,
                },
            ),
        )
        record.trace_id = _random.getrandbits(128) | 1
        record.span_id = _random.getrandbits(64) | 1
        made.append(ReadableLogRecord(record, RESOURCE, SCOPE))
    return made


SERIES = 1_600


def collector(series: int = SERIES) -> Callable[[], list[ResourceMetrics]]:
    """Return a function that records new values in every series and lets the SDK collect.

    The series are counters, gauges and histograms with 15 bounds in equal numbers. They have four
    attributes and delta temporality, which this exporter prefers. A metric has at most 100 series.
    """
    delta = AggregationTemporality.DELTA
    reader = InMemoryMetricReader(preferred_temporality={Counter: delta, Histogram: delta})
    provider = MeterProvider([reader], resource=RESOURCE, shutdown_on_exit=False)
    meter = provider.get_meter("shop.web", "0.9")
    record = []
    for number in range(series):
        group, position = divmod(number, 300)
        kind, place = position % 3, position // 3
        attributes = {
            "http.request.method": METHODS[place % 3],
            "http.route": ROUTES[place % 5],
            "http.response.status_code": 200 + place,
            "shop.region": f"region-{place % 7}",
        }
        record.append((group, kind, attributes))
    instruments: dict[tuple[int, int], Callable[..., None]] = {}
    for group in range(series // 300 + 1):
        instruments[group, 0] = meter.create_counter(f"shop.requests.{group}", "{request}").add
        instruments[group, 1] = meter.create_gauge(f"shop.load.{group}", "1").set
        instruments[group, 2] = meter.create_histogram(
            f"shop.duration.{group}", "s", explicit_bucket_boundaries_advisory=BOUNDS
        ).record

    def collect() -> list[ResourceMetrics]:
        for group, kind, attributes in record:
            add = instruments[group, kind]
            if kind == 2:
                for _ in range(3):
                    add(_random.expovariate(8), attributes)
            else:
                add(_random.randrange(1, 1000) if kind == 0 else _random.random(), attributes)
        data = reader.get_metrics_data()
        assert data is not None
        return list(data.resource_metrics)

    return collect


def busy(batch: list[ResourceMetrics]) -> list[ResourceMetrics]:
    """Return metrics as if histograms had a thousand times as many measurements."""
    for resource_metrics in batch:
        for scope_metrics in resource_metrics.scope_metrics:
            for metric in scope_metrics.metrics:
                if isinstance(metric.data, HistogramData):
                    metric.data.data_points[:] = map(_busier, metric.data.data_points)
    return batch


def _busier(point: HistogramDataPoint) -> HistogramDataPoint:
    counts = [1_000 * count for count in point.bucket_counts]
    return replace(point, count=1_000 * point.count, bucket_counts=counts)
