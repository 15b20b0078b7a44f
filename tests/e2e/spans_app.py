"""An application that makes 1,000 spans a second through the SDK's own BatchSpanProcessor.

Usage: spans_app.py SETTINGS, a JSON object with the fields of `Settings`. For each batch that
`export` accepted, a JSON list of span numbers is appended to a file. At the end it prints the
health and how long the shutdown took.
"""

import json
import os
import sys
import time

import msgspec
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

from otel_cbtop_exporter import CbtopSpanExporter


class Settings(msgspec.Struct, kw_only=True):
    """What to do; `options` are the exporter's, and `handed` is the file of accepted spans.

    `count` spans are numbered from `first`. Unless `odd_every` is 0, every span whose number it
    divides begins at `odd_start_ns` and has an attribute of `odd_padding` characters. The flush at
    the end has `flush_seconds`.
    """

    options: dict
    handed: str
    count: int
    first: int = 0
    odd_every: int = 0
    odd_start_ns: int | None = None
    odd_padding: int = 0
    flush_seconds: int = 20


class Watched(CbtopSpanExporter):
    """Records what it accepted, before the SDK learns of it."""

    def __init__(self, path, **options):
        super().__init__(**options)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def export(self, spans):
        result = super().export(spans)
        if result is SpanExportResult.SUCCESS:
            numbers = [span.attributes["number"] for span in spans]
            os.write(self._file, json.dumps(numbers).encode() + b"\n")
        return result


def main(settings):
    exporter = Watched(settings.handed, **settings.options)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("app")
    begin = time.monotonic()
    for made in range(settings.count):
        number = settings.first + made
        attributes, start_ns = {"number": number}, None
        if settings.odd_every and number % settings.odd_every == 0:
            attributes["padding"] = "x" * settings.odd_padding
            start_ns = settings.odd_start_ns
        tracer.start_span("work", attributes=attributes, start_time=start_ns).end()
        ahead = begin + (made + 1) / 1000 - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
    provider.force_flush()
    exporter.force_flush(1000 * settings.flush_seconds)
    began = time.monotonic()
    provider.shutdown()
    told = {"health": exporter.health(), "shutdown_seconds": time.monotonic() - began}
    sys.stdout.buffer.write(msgspec.json.encode(told))


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=Settings))
