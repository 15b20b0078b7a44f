"""Unchanged Flask applications under opentelemetry-instrument, alone and under gunicorn."""

import shutil
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.e2e.processes import INSTRUMENTED, events_in, free_port, running, server_spans

HERE = Path(__file__).parent
REQUESTS = [f"/orders/{number}" for number in range(60)]


@pytest.fixture
def folder(tmp_path):
    for name in ("shop.py", "shop_asgi.py"):
        shutil.copy(HERE / name, tmp_path)
    return tmp_path


def drive(url, paths):
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda path: requests.get(url + path, timeout=30), paths))


def test_an_unchanged_flask_application_leaves_all_three_signals(folder):
    """Spans, logs and metrics of real requests reach the default file, joined by trace."""
    port = free_port()
    command = ["flask", "--app", "shop", "run", "--port", str(port)]
    with running(command, folder, port=port, **INSTRUMENTED) as application:
        drive(application.url, REQUESTS)
        assert requests.get(application.url + "/fail", timeout=30).status_code == 500
        application.end(signal.SIGINT)
    events = events_in(folder)
    assert server_spans(events) == sorted([*REQUESTS, "/fail"])
    spans = {e.correlation_id: e for e in events if e.signal == "span"}
    orders = [e for e in events if e.signal == "log" and e.fields["body"].startswith("order ")]
    assert len(orders) == len(REQUESTS)
    for line in orders:
        number = line.fields["body"].removeprefix("order ")
        assert spans[line.correlation_id].attributes["url.path"] == f"/orders/{number}"
    (failure,) = [e for e in events if e.measurement == "span_events"]
    assert failure.tags["exception.type"] == "ValueError"
    durations = [e for e in events if e.measurement == "http.server.request.duration"]
    counted = Counter()
    for point in durations:
        counted[point.tags["http.route"]] += point.fields["count"]
    assert counted["/orders/<int:number>"] == len(REQUESTS)
    assert counted["/fail"] == 1
    assert any(e.signal == "exemplar" and e.correlation_id in spans for e in events)


@pytest.mark.parametrize("preload", [False, True], ids=["no-preload", "preload"])
def test_under_gunicorn_every_span_is_there_once_and_workers_share_no_series(folder, preload):
    """Four forked workers write each span once to one file, each with its own instance id."""
    port = free_port()
    command = ["gunicorn", "--workers", "4", "--bind", f"127.0.0.1:{port}", "shop:app"]
    if preload:
        command.insert(1, "--preload")
    # The master's reader collects under a lock of the SDK. A fork at that moment would give the
    # worker a locked lock, and it would never collect. So the master does not collect here.
    environment = {**INSTRUMENTED, "OTEL_METRIC_EXPORT_INTERVAL": "60000"}
    with running(command, folder, port=port, **environment) as application:
        paths = [f"/orders/{number}" for number in range(400)]
        drive(application.url, paths)
        assert application.end() == 0, application.log
    events = events_in(folder)
    assert server_spans(events) == sorted(paths)
    series = Counter()
    for event in events:
        if event.signal == "metric":
            key = (event.measurement, tuple(event.tags.items()), event.timestamp_ns)
            series[key] += 1
    assert series
    assert max(series.values()) == 1
    workers = {e.tags["service.instance.id"] for e in events if e.signal == "span"}
    assert 2 <= len(workers) <= 4
    counted = sum(
        e.fields["count"]
        for e in events
        if e.measurement == "http.server.request.duration"
        and e.tags.get("http.route") == "/orders/<int:number>"
    )
    assert counted == len(paths)


def test_a_wrong_variable_stops_neither_the_application_nor_its_instrumentation(folder):
    """A wrong variable is logged as an error, its default applies, and spans arrive."""
    port = free_port()
    command = ["flask", "--app", "shop", "run", "--port", str(port)]
    wrong = {
        "OTEL_EXPORTER_CBTOP_TIMEOUT_MS": "soon",
        "OTEL_EXPORTER_CBTOP_METRICS_SINK": "influxdb",
    }
    with running(command, folder, port=port, **INSTRUMENTED, **wrong) as application:
        drive(application.url, REQUESTS[:3])
        application.end(signal.SIGINT)
        log = application.log
    assert "OTEL_EXPORTER_CBTOP_TIMEOUT_MS is 'soon'" in log
    assert "OTEL_EXPORTER_CBTOP_INFLUXDB_URL" in log
    assert server_spans(events_in(folder)) == REQUESTS[:3]


def test_a_declarative_file_configures_all_three_signals(folder):
    """OTEL_CONFIG_FILE reaches the exporters as plain nested values; null means the default."""
    port = free_port()
    (folder / "otel.yaml").write_text(
        """
file_format: "1.0"
resource:
  attributes:
    - name: service.name
      value: shop
propagator:
  composite_list: tracecontext,baggage
tracer_provider:
  processors:
    - batch:
        schedule_delay: 200
        exporter:
          cbtop:
            jsonlines: {path: spans.jsonl}
            mapping: {redact: ["user_agent.*"]}
meter_provider:
  readers:
    - periodic:
        interval: 500
        exporter:
          cbtop:
            jsonlines: {path: metrics.jsonl, compression: null}
logger_provider:
  processors:
    - batch:
        schedule_delay: 200
        exporter:
          cbtop:
"""
    )
    command = ["flask", "--app", "shop", "run", "--port", str(port)]
    environment = {
        "OTEL_CONFIG_FILE": str(folder / "otel.yaml"),
        "OTEL_SEMCONV_STABILITY_OPT_IN": "http",
    }
    with running(command, folder, port=port, **environment) as application:
        drive(application.url, REQUESTS[:5])
        application.end(signal.SIGINT)
        log = application.log
    spans = events_in(folder, "spans.jsonl")
    assert server_spans(spans) == REQUESTS[:5], log
    assert {e.attributes["user_agent.original"] for e in spans} == {"[redacted]"}
    assert {len(e.tags["service.instance.id"]) for e in spans} == {36}
    metrics = events_in(folder, "metrics.jsonl")
    assert "http.server.request.duration" in {e.measurement for e in metrics}
    logs = events_in(folder, "cbtop-events.jsonl")
    assert sum(e.fields["body"].startswith("order ") for e in logs) == 5


def test_a_third_party_application_is_recorded_whole(tmp_path):
    """A third-party application, httpbin under gunicorn, gives a server span for each request."""
    port = free_port()
    command = ["gunicorn", "--workers", "2", "--bind", f"127.0.0.1:{port}", "httpbin:app"]
    paths = [f"/anything/{number}" for number in range(80)] + ["/status/418", "/uuid", "/gzip"]
    environment = {**INSTRUMENTED, "OTEL_METRIC_EXPORT_INTERVAL": "60000"}
    with running(command, tmp_path, port=port, ready="/ready", **environment) as application:
        drive(application.url, paths)
        assert application.end() == 0, application.log
    assert server_spans(events_in(tmp_path)) == sorted(paths)
