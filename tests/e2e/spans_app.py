"""An application that makes 1,000 spans a second through the SDK's own BatchSpanProcessor.

Usage: spans_app.py OPTIONS HANDED FIRST COUNT OLD; OPTIONS are the exporter's as JSON. Spans
are numbered from FIRST. What `export` accepted is appended to the file HANDED, a JSON list of
numbers for each batch. Every span whose number is divisible by OLD, unless that is 0, began in
2001. Prints the health at the end, and how long the shutdown took.
"""

import json
import os
import sys
import time

import msgspec
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

from otel_cbtop_exporter import CbtopSpanExporter

LONG_AGO_NS = 1_000_000_000_000_000_000


class Watched(CbtopSpanExporter):
    """Notes what it accepted, before the SDK hears of it."""

    def __init__(self, path, **options):
        super().__init__(**options)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def export(self, spans):
        result = super().export(spans)
        if result is SpanExportResult.SUCCESS:
            numbers = [span.attributes["number"] for span in spans]
            os.write(self._file, json.dumps(numbers).encode() + b"\n")
        return result


def main(options, handed, first, count, old):
    exporter = Watched(handed, **options)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("app")
    start = time.monotonic()
    for number in range(first, first + count):
        began_ns = LONG_AGO_NS + number if old and number % old == 0 else None
        tracer.start_span("work", attributes={"number": number}, start_time=began_ns).end()
        ahead = start + (number - first + 1) / 1000 - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
    provider.force_flush()
    exporter.force_flush(20_000)
    began = time.monotonic()
    provider.shutdown()
    told = {"health": exporter.health(), "shutdown_seconds": time.monotonic() - began}
    sys.stdout.buffer.write(msgspec.json.encode(told))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
