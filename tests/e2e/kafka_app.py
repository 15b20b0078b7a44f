"""An application that makes spans through the SDK's own BatchSpanProcessor, sent to Kafka.

Usage: kafka_app.py BOOTSTRAP TOPIC SPOOL HANDED FIRST COUNT BIG FLUSH

COUNT spans, 1,000 a second, numbered from FIRST, then FLUSH seconds at most for a flush. SPOOL
is a folder, or "" for memory. Every batch that `export` accepted is appended to the file
HANDED. Every span whose number is divisible by BIG is over 100 kB; 0 makes none.
"""

import json
import os
import sys
import time

import msgspec
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

from otel_cbtop_exporter import CbtopSpanExporter


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


def main(bootstrap, topic, spool, handed, first, count, big, flush_seconds):
    exporter = Watched(
        handed,
        sink="kafka",
        kafka={"bootstrap_servers": bootstrap, "topic": topic, "compression": "none"},
        spool={"path": spool or None},
        retry={"initial_delay_ms": 50, "max_delay_ms": 500},
    )
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("app")
    start = time.monotonic()
    for number in range(first, first + count):
        with tracer.start_as_current_span("work") as span:
            span.set_attribute("number", number)
            if big and number % big == 0:
                span.set_attribute("padding", "x" * 100_000)
        ahead = start + (number - first + 1) / 1000 - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
    provider.force_flush()
    exporter.force_flush(1000 * flush_seconds)
    began = time.monotonic()
    provider.shutdown()
    told = {"health": exporter.health(), "shutdown_seconds": time.monotonic() - began}
    sys.stdout.buffer.write(msgspec.json.encode(told))


if __name__ == "__main__":
    main(*sys.argv[1:5], *map(int, sys.argv[5:]))
