"""An application that makes spans at a steady rate; prints the CPU time it took.

    python -m benchmarks.programs.shop EXPORTER URL FOLDER SPANS SPANS_A_SECOND

EXPORTER is `none` for spans that nobody exports. InfluxDB's token and organization are in the
environment. One warm-up second (connections, imports of clients) is not counted. The garbage
collector's share of the time is printed too.
"""

from __future__ import annotations

import gc
import json
import random
import resource
import sys
import time

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Tracer

from benchmarks import data
from benchmarks.programs.exporters import make_exporter

_SPANS_A_REQUEST = 5


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Collections:
    """The CPU time of garbage collections, on whichever thread they run."""

    def __init__(self) -> None:
        self.seconds = 0.0
        gc.callbacks.append(self)

    def __call__(self, phase: str, _info: object) -> None:
        # No other thread can run between the two calls of a collection.
        now = time.thread_time()
        self.seconds += -now if phase == "start" else now


def serve(tracer: Tracer, spans: int, spans_a_second: int) -> None:
    """Make requests at a steady rate, each a server span with four client spans in it."""
    begin = time.monotonic()
    for request in range(spans // _SPANS_A_REQUEST):
        due = begin + request * _SPANS_A_REQUEST / spans_a_second
        if (early := due - time.monotonic()) > 0:
            time.sleep(early)
        failed = request % 20 == 19
        with tracer.start_as_current_span(
            "GET /cart", kind=SpanKind.SERVER, attributes=data.span_attributes(request, 10)
        ) as span:
            for number in range(_SPANS_A_REQUEST - 1):
                with tracer.start_as_current_span(
                    "SELECT cart",
                    kind=SpanKind.CLIENT,
                    attributes=data.span_attributes(request + number, 10),
                ):
                    pass
            if failed:
                span.record_exception(ValueError("there is none left"))


def main() -> None:
    name, url, folder, spans, spans_a_second = sys.argv[1:]
    random.seed(7)
    provider = TracerProvider(resource=data.RESOURCE)
    exporter = None if name == "none" else make_exporter(name, url, folder)
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("shop.web", "0.9")
    serve(tracer, int(spans_a_second), int(spans_a_second))
    provider.force_flush()
    if exporter is not None:
        exporter.force_flush()  # the processor's `force_flush` does not call the exporter's
    collections = Collections()
    before = cpu_seconds()
    serve(tracer, int(spans), int(spans_a_second))
    provider.shutdown()
    taken = cpu_seconds() - before
    print(json.dumps({"cpu_seconds": taken, "gc_seconds": collections.seconds}))


if __name__ == "__main__":
    main()
