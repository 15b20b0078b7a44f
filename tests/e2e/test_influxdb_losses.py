"""Data that makes other exporters lose its neighbours: on real servers, nothing is lost."""

import pytest
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_cbtop_exporter import CbtopMetricExporter, CbtopSpanExporter
from tests.builders import (
    exponential_metric,
    exponential_point,
    gauge_metric,
    histogram_metric,
    histogram_point,
    metrics,
    number_point,
    sum_metric,
)

pytestmark = pytest.mark.influxdb


def deliver_spans(options, names_and_routes):
    """Make a span for each name and route through the SDK; return the health at the end."""
    exporter = CbtopSpanExporter(sink="influxdb", influxdb=options)
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("shop")
    for name, route in names_and_routes:
        with tracer.start_as_current_span(name, attributes={"http.route": route}):
            pass
    assert provider.force_flush(30_000)
    assert exporter.force_flush(30_000)
    health = exporter.health()
    provider.shutdown()
    return health


def test_nan_and_exponential_histograms_among_good_metrics(influxdb, caplog):
    """A value that cannot be written is left out and counted alone; all other metrics arrive."""
    bucket = influxdb.new_bucket()
    exporter = CbtopMetricExporter(sink="influxdb", influxdb=influxdb.options(bucket))
    nan = float("nan")
    bad, good = {"cell": "bad"}, {"cell": "good"}
    made = metrics(
        sum_metric(*(number_point(n, {"route": f"/{n}"}) for n in range(50)), name="hits"),
        gauge_metric(number_point(nan, bad), number_point(20.5, good), name="heat"),
        exponential_metric(exponential_point(), exponential_point(total=nan, attributes=bad)),
        histogram_metric(histogram_point(total=nan, most=float("inf"))),
        sum_metric(*(number_point(n + 0.5, {"route": f"/{n}"}) for n in range(50)), name="more"),
    )
    assert exporter.export(MetricsData(made)) is MetricExportResult.SUCCESS
    assert exporter.force_flush(30_000)
    health = exporter.health()
    exporter.shutdown()
    assert (health.events_written, health.events_rejected, health.events_dropped) == (104, 1, {})
    assert "'heat'" in caplog.text

    def values(measurement, key):
        return {
            tags.get(key) or "none": fields
            for _, tags, fields, _ in influxdb.points(bucket, measurement)
        }

    assert {k: f["value"] for k, f in values("hits", "route").items()} == {
        f"/{n}": n for n in range(50)
    }
    assert {k: f["value"] for k, f in values("more", "route").items()} == {
        f"/{n}": n + 0.5 for n in range(50)
    }
    assert {k: f["value"] for k, f in values("heat", "cell").items()} == {"good": 20.5}
    sizes = values("sizes", "cell")
    assert (sizes["none"]["sum"], "sum" in sizes["bad"]) == (7.5, False)
    for fields in sizes.values():
        assert sum(v for k, v in fields.items() if k.startswith("in_")) == fields["count"] == 4
    latency = values("latency", "cell")["none"]
    assert latency.keys() & {"sum", "max", "min", "count"} == {"min", "count"}
    assert (latency["le_5"], latency["le_10.5"], latency["le_inf"]) == (1, 3, 3)


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("a\nspans x=1 1", "a\\nspans x=1 1"),
        ("C:\\temp\\", "C:\\temp/"),
        ("tab\tand\rreturn", "tab\\tand\\rreturn"),
        ('quote" and \\" too', 'quote" and /" too'),
        ("#no comment", "#no comment"),
    ],
)
def test_a_name_that_would_break_a_line(influxdb, text, stored):
    """A newline or a trailing backslash in a tag neither loses a point nor injects one."""
    bucket = influxdb.new_bucket()
    made = [(text if n == 50 else "fine", text if n == 60 else f"/{n}") for n in range(100)]
    health = deliver_spans(influxdb.options(bucket), made)
    assert (health.events_written, health.events_rejected) == (100, 0)
    found = [tags for _, tags, _, _ in influxdb.points(bucket, "spans")]
    expected = [(stored if n == 50 else "fine", stored if n == 60 else f"/{n}") for n in range(100)]
    assert sorted((t["span.name"], t["http.route"]) for t in found) == sorted(expected)
    names = [row[0] for row in influxdb.influxql("SHOW MEASUREMENTS", bucket)[0]["values"]]
    assert names == ["spans"]


def test_a_tag_value_of_70_kb(influxdb):
    """A tag value over the server's limit is cut; its span and the neighbours are kept."""
    bucket = influxdb.new_bucket()
    long = "é" * 35_000
    made = [("work", long if n == 50 else f"/{n}") for n in range(100)]
    health = deliver_spans(influxdb.options(bucket), made)
    assert (health.events_written, health.events_rejected) == (100, 0)
    routes = {tags["http.route"] for _, tags, _, _ in influxdb.points(bucket, "spans")}
    (cut,) = routes - {f"/{n}" for n in range(100)}
    assert len(routes) == 100
    assert set(cut) == {"é"}
    assert len(cut) > 5_000
    whole = influxdb.influxql("SELECT attributes FROM spans WHERE attributes =~ /é{1000}/", bucket)
    assert whole[0]["values"][0][1] == f'{{"http.route":"{long}"}}'
