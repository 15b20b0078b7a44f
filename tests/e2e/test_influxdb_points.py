"""How many points and series arrive: one point for each span, and few series."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from otel_cbtop_exporter import CbtopSpanExporter

pytestmark = pytest.mark.influxdb

SCRIPT = Path(__file__).parent / "influxdb_twins.py"
EACH = 12_500


def test_a_hundred_thousand_twins_are_a_hundred_thousand_points(influxdb2):
    """Spans with equal tags and times, from threads and forks, do not overwrite each other."""
    bucket = influxdb2.new_bucket()
    done = subprocess.run(
        [sys.executable, SCRIPT, json.dumps(influxdb2.options(bucket)), str(EACH)],
        cwd=SCRIPT.parents[2],
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    written = json.loads(done.stdout)
    assert sum(written) == 8 * EACH, done.stderr.decode()
    assert len(written) == 5
    assert influxdb2.count(bucket, "spans", "span_id") == 8 * EACH
    distinct = influxdb2.influxql(
        "SELECT count(distinct(span_id)) FROM (SELECT span_id FROM spans)", bucket
    )
    assert distinct[0]["values"][0][1] == 8 * EACH
    # One series for each process, because service.instance.id is a tag.
    assert len(influxdb2.influxql("SHOW SERIES FROM spans", bucket)[0]["values"]) == 5


def test_the_first_digit_of_the_trace_id_as_a_tag(influxdb2):
    """The optional trace id tag makes 16 times the series, and matches each point's trace."""
    bucket = influxdb2.new_bucket()
    options = influxdb2.options(bucket, trace_id_tag_digits=1)
    exporter = CbtopSpanExporter(sink="influxdb", influxdb=options)
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    for _ in range(1_000):
        provider.get_tracer("shop").start_span("work").end()
    assert provider.force_flush(60_000)
    assert exporter.force_flush(60_000)
    provider.shutdown()
    points = influxdb2.points(bucket, "spans")
    assert len(points) == 1_000
    for _, tags, fields, _ in points:
        assert tags["trace_id_prefix"] == fields["correlation_id"][0]
    assert influxdb2.cardinality(bucket) == 16


def test_ten_thousand_spans_of_a_service_are_few_series(influxdb):
    """Ids, URLs and addresses are not tags: the server has under 100 series."""
    bucket = influxdb.new_bucket()
    exporter = CbtopSpanExporter(sink="influxdb", influxdb=influxdb.options(bucket))
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=10_000))
    tracer = provider.get_tracer("shop")
    for number in range(10_000):
        route, status = f"/route/{number % 10}", 500 if number % 97 == 0 else 200
        with tracer.start_as_current_span(
            f"GET {route}",
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": "GET",
                "http.route": route,
                "http.response.status_code": status,
                "url.full": f"http://shop/route/{number}?user={number}",
                "client.address": f"10.0.{number % 256}.1",
                "enduser.id": str(number),
            },
        ) as span:
            if status == 500:
                span.set_status(StatusCode.ERROR, f"order {number} is gone")
    assert provider.force_flush(60_000)
    assert exporter.force_flush(60_000)
    provider.shutdown()
    assert influxdb.count(bucket, "spans", "span_id") == 10_000
    assert 20 <= influxdb.cardinality(bucket) < 100
