"""A WSGI application for gunicorn, which answers with the id of the span that it made.

The environment variable FAULTS_WEB holds the sink, the receiver's URL, the notes file and the
exporter's options as JSON. Everything is created on import: before the fork with --preload, and
otherwise in each worker.
"""

import itertools
import json
import os

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from tests.faults.app import NotedSpanExporter, Notes, sink_options

_settings = json.loads(os.environ["FAULTS_WEB"])
_exporter = NotedSpanExporter(
    Notes(_settings["noted"]),
    **_settings["options"],
    **sink_options(_settings["sink"], _settings["url"]),
)
_provider = TracerProvider()  # shut down by the SDK when the process exits
_provider.add_span_processor(BatchSpanProcessor(_exporter))
_tracer = _provider.get_tracer("web")
_numbers = itertools.count()


def app(environ, start_response):
    id_ = f"worker-{os.getpid()}:{next(_numbers)}"
    with _tracer.start_as_current_span("request") as span:
        span.set_attribute("id", f"#{id_}#")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [id_.encode()]
