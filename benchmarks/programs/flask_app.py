"""A small Flask application with OpenTelemetry, for gunicorn: `flask_app:make_app(NAME, ...)`."""

from __future__ import annotations

import json

from flask import Flask
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

from benchmarks import data
from benchmarks.programs.exporters import make_exporter

_ORDER = [{"item": number, "price": number / 8, "name": f"thing {number}"} for number in range(200)]


def make_app(name: str, url: str, folder: str) -> Flask:
    """Make the application; `none` for spans that nobody exports."""
    provider = TracerProvider(resource=data.RESOURCE)
    if name != "none":
        provider.add_span_processor(BatchSpanProcessor(make_exporter(name, url, folder)))
    tracer = provider.get_tracer("shop.web", "0.9")
    app = Flask("shop")

    @app.get("/cart/<int:number>")
    def cart(number: int) -> str:
        for part in range(4):
            with tracer.start_as_current_span(
                "SELECT cart", kind=SpanKind.CLIENT, attributes=data.span_attributes(part, 10)
            ):
                text = json.dumps(_ORDER)
        return text[:number]

    FlaskInstrumentor().instrument_app(app, tracer_provider=provider)
    return app
