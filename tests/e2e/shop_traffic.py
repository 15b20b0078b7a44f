"""Ten minutes of a shop's telemetry, made through the SDK, with every number known.

Usage: shop_traffic.py OPTIONS BASE_NS LIFE. OPTIONS are the sink's options as JSON; LIFE is one of
`LIVES`: there are two workers, and the first is restarted half-way. Spans and logs have the times
of the traffic, starting at BASE_NS; metrics have the time of their collection, one for each minute.
"""

import json
import sys
from typing import NamedTuple

from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from otel_cbtop_exporter import CbtopLogRecordExporter, CbtopMetricExporter, CbtopSpanExporter

MINUTES = 10
LIVES = {"first": range(5), "second": range(MINUTES), "restarted": range(5, MINUTES)}
# Requests per minute of one worker, and the seconds that the quickest of them takes.
ROUTES = {"/": (60, 0.010), "/orders/{id}": (30, 0.080), "/report": (6, 0.200)}
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1)


class Request(NamedTuple):
    """One request: its time, route, duration and outcome."""

    at_ns: int
    minute: int
    route: str
    seconds: float
    failed: bool
    payment: str
    value: float


def requests(life, base_ns):
    """Return the requests of a worker's life."""
    made = []
    for minute in LIVES[life]:
        for place, (route, (count, quickest)) in enumerate(ROUTES.items()):
            for n in range(count):
                offset_ns = (minute * 60 + n * 60 // count) * 1_000_000_000 + place
                seconds = quickest * (1 + (n * 7 + minute) % 40 / 10)
                failed = route == "/orders/{id}" and n % 10 == 9
                payment = ("card", "cash", "points")[n % 3]
                value = 5 * 1.1 ** ((n + minute) % 45)
                made.append(
                    Request(base_ns + offset_ns, minute, route, seconds, failed, payment, value)
                )
    return made


def main(options, base_ns, life):
    common = {"sink": "influxdb", "influxdb": options}
    resource = Resource.create({"service.name": "shop", "host.name": "box"})
    exporters = [
        CbtopSpanExporter(**common),
        CbtopMetricExporter(**common),
        CbtopLogRecordExporter(**common),
    ]
    tracers = TracerProvider(resource=resource)
    tracers.add_span_processor(BatchSpanProcessor(exporters[0], max_queue_size=10_000))
    reader = PeriodicExportingMetricReader(exporters[1], export_interval_millis=3_600_000)
    exponential = View(
        instrument_name="shop.order.value", aggregation=ExponentialBucketHistogramAggregation()
    )
    meters = MeterProvider([reader], resource=resource, views=[exponential])
    loggers = LoggerProvider(resource=resource)
    loggers.add_log_record_processor(BatchLogRecordProcessor(exporters[2], max_queue_size=10_000))
    tracer, logger = tracers.get_tracer("shop"), loggers.get_logger("shop")
    meter = meters.get_meter("shop")
    duration = meter.create_histogram(
        "http.server.request.duration", unit="s", explicit_bucket_boundaries_advisory=BOUNDS
    )
    orders = meter.create_counter("shop.orders")
    value = meter.create_histogram("shop.order.value", unit="EUR")

    # A request for an unknown path has no route, and is in no result about routes.
    duration.record(0.001, {"http.request.method": "GET", "http.response.status_code": 404})
    minute = None
    for number, request in enumerate(requests(life, base_ns)):
        if request.minute != minute:
            reader.force_flush()
            minute = request.minute
        attributes = {"http.request.method": "GET", "http.route": request.route}
        attributes["http.response.status_code"] = 500 if request.failed else 200
        end_ns = request.at_ns + round(request.seconds * 1e9)
        span = tracer.start_span(
            f"GET {request.route}",
            kind=SpanKind.SERVER,
            start_time=request.at_ns,
            attributes={**attributes, "url.path": f"/{number}"},
        )
        context = trace.set_span_in_context(span)
        duration.record(request.seconds, attributes, context)
        if request.route == "/orders/{id}":
            orders.add(1, {"payment": request.payment})
            value.record(request.value)
            child = tracer.start_span(
                "SELECT orders",
                context,
                kind=SpanKind.CLIENT,
                start_time=request.at_ns + 1_000_000,
                attributes={"db.system.name": "postgresql"},
            )
            child.end(end_ns - 1_000_000)
            level = SeverityNumber.INFO
            if request.failed:
                level = SeverityNumber.FATAL if number % 2 else SeverityNumber.ERROR
            logger.emit(
                LogRecord(
                    timestamp=request.at_ns + 2_000_000,
                    context=context,
                    severity_number=level,
                    severity_text=level.name if number % 3 else None,
                    body=f"order {number} {'failed' if request.failed else 'taken'}",
                )
            )
        if request.failed:
            span.record_exception(KeyError("stock"), timestamp=request.at_ns + 2_500_000)
            span.set_status(StatusCode.ERROR)
        span.end(end_ns)
    for provider in (loggers, meters, tracers):
        provider.shutdown()
    print(json.dumps([exporter.health().events_spooled for exporter in exporters]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
