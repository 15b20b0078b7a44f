"""The `otel.sdk.exporter.*` metrics: what they count, their names, and their cost."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    InMemoryMetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
)

from otel_cbtop_exporter import (
    CbtopLogRecordExporter,
    CbtopMetricExporter,
    CbtopSpanExporter,
    WriteResult,
    decode_event,
)
from otel_cbtop_exporter.testing import RecordingSink
from tests.builders import gauge_metric, link, log, metrics, number_point, span, span_event
from tests.delivery.records import away, busy, named

QUICK = {"initial_delay_ms": 1, "max_delay_ms": 5}
DEADLINE = 20.0
# A span with two span events and a link: four events, of which one is a span.
RICH = span(events=[span_event(), span_event()], links=[link()])
MIB = 1024 * 1024


def large(size):
    """Make a span with one event that zstd cannot compress below `size` bytes."""
    return span(attributes={"noise": os.urandom(size).hex()}, events=[span_event()])


class Measured:
    """The metrics of the process's meter provider, as a reader collects them."""

    def __init__(self):
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def points(self, name):
        """Return the current values of a metric, by component type and error type."""
        data = self.reader.get_metrics_data()
        found = Counter()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name != f"otel.sdk.exporter.{name}":
                        continue
                    for point in metric.data.data_points:
                        key = (
                            point.attributes["otel.component.type"],
                            point.attributes.get("error.type"),
                        )
                        found[key] += point.count if "duration" in name else point.value
        return dict(found)

    def wait_for(self, name, expected):
        """Wait until the points are as expected."""
        deadline = time.monotonic() + DEADLINE
        while (points := self.points(name)) != expected:
            assert time.monotonic() < deadline, (points, expected)
            time.sleep(0.01)


@pytest.fixture
def measured(monkeypatch):
    made = Measured()
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", made.provider)
    yield made
    made.provider.shutdown()


def make(exporter_class, sink, **options):
    return exporter_class(sink=sink, internal_metrics=True, retry=QUICK, **options)


def test_nothing_is_measured_unless_it_is_asked_for(measured):
    """Nothing is measured by default, as with the SDK's own metrics about itself."""
    exporter = CbtopSpanExporter(sink=RecordingSink(local=True))
    exporter.export([RICH])
    exporter.shutdown()
    assert measured.points("span.exported") == {}
    assert measured.points("operation.duration") == {}


def test_the_sdks_own_variable_switches_them_on(measured, monkeypatch):
    """OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED switches the metrics on."""
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    exporter = CbtopSpanExporter(sink=RecordingSink(local=True))
    exporter.export([RICH])
    exporter.shutdown()
    assert measured.points("span.exported") == {("cbtop_recording_exporter", None): 1}


@pytest.mark.parametrize("local", [True, False], ids=["direct", "spooled"])
def test_delivered_items_are_counted_in_the_units_of_the_conventions(measured, local):
    """A span counts once with its events and links, as does each data point and log record."""
    sink = RecordingSink(local=local)
    points = metrics(gauge_metric(number_point(1), number_point(2, {"a": "b"})))
    exporters = [make(c, sink) for c in (CbtopSpanExporter, CbtopMetricExporter)]
    exporters.append(make(CbtopLogRecordExporter, sink))
    batches = ([RICH, RICH], MetricsData(points), [log()] * 3)
    for exporter, batch in zip(exporters, batches, strict=True):
        exporter.export(batch)
    for exporter in exporters:
        exporter.shutdown()
    component = ("cbtop_recording_exporter", None)
    assert measured.points("span.exported") == {component: 2}
    assert measured.points("metric_data_point.exported") == {component: 2}
    assert measured.points("log.exported") == {component: 3}


def test_a_component_has_a_type_and_a_numbered_name(measured):
    """A component's name is its type and a number.

    It is the same after a restart, and different for each exporter.
    """
    exporters = [make(CbtopSpanExporter, RecordingSink(local=True)) for _ in range(2)]
    for exporter in exporters:
        exporter.export([RICH])
        exporter.shutdown()
    (metric,) = (
        metric
        for resource in measured.reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "otel.sdk.exporter.span.exported"
    )
    assert metric.unit == "{span}"
    names = set()
    for point in metric.data.data_points:
        assert point.attributes["otel.component.type"] == "cbtop_recording_exporter"
        kind, _, number = point.attributes["otel.component.name"].partition("/")
        assert kind == "cbtop_recording_exporter"
        names.add(int(number))
    assert len(names) == 2


def test_what_waits_is_in_flight_until_its_fate_is_known(measured):
    """A spooled span is in flight until it is delivered, also while writes fail."""
    up = threading.Event()
    sink = RecordingSink(
        *[lambda batch: WriteResult(delivered=batch) if up.is_set() else away(batch)] * 10_000
    )
    exporter = make(CbtopSpanExporter, sink)
    component = ("cbtop_recording_exporter", None)
    exporter.export([RICH] * 5)
    assert measured.points("span.inflight") == {component: 5}
    assert measured.points("span.exported") == {}
    up.set()
    measured.wait_for("span.exported", {component: 5})
    measured.wait_for("span.inflight", {component: 0})
    exporter.shutdown()


def test_what_a_direct_send_has_in_hand_is_in_flight(measured):
    """Without a spool a span is in flight for as long as export() takes."""
    seen = []
    sink = RecordingSink(
        lambda batch: seen.append(measured.points("span.inflight")) or WriteResult(delivered=batch),
        local=True,
    )
    exporter = make(CbtopSpanExporter, sink)
    exporter.export([RICH])
    component = ("cbtop_recording_exporter", None)
    assert seen == [{component: 1}]
    assert measured.points("span.inflight") == {component: 0}
    exporter.shutdown()


def test_rejected_items_are_exported_with_their_reason(measured):
    """A rejected item is counted once, with the reason as its error type."""

    def refuse_first(batch):
        return named([record for record in batch if record.signal == "span"][:1])(batch)

    exporter = make(CbtopSpanExporter, RecordingSink(refuse_first, local=True))
    exporter.export([span("a"), span("b"), RICH])
    exporter.shutdown()
    assert measured.points("span.exported") == {
        ("cbtop_recording_exporter", None): 2,
        ("cbtop_recording_exporter", "invalid"): 1,
    }


def test_items_that_the_spool_lets_go_are_exported_with_the_reason(measured):
    """Spans dropped by overflow or shutdown are counted as errors, and do not stay in flight."""
    sink = RecordingSink(*[busy(3_600.0)] * 100)
    exporter = make(CbtopSpanExporter, sink, spool={"max_bytes": MIB})
    for _ in range(100):
        exporter.export([large(20_000)])
    component = "cbtop_recording_exporter"
    waiting = exporter.health().events_spooled // 2
    assert measured.points("span.inflight") == {(component, None): waiting}
    exporter.shutdown(1_000)
    health = exporter.health()
    assert set(health.events_dropped) == {"spool_full", "shutdown"}
    assert sum(health.events_dropped.values()) == 200
    assert measured.points("span.exported") == {
        (component, reason): events // 2 for reason, events in health.events_dropped.items()
    }
    assert measured.points("span.inflight") == {(component, None): 0}


def test_what_is_lost_before_any_sink_has_a_component_of_its_own(measured):
    """Items lost before any sink, such as unmappable ones, count under their own component."""
    exporter = make(CbtopSpanExporter, RecordingSink(local=True))
    exporter.export([span("a"), object()])
    exporter.shutdown()
    exporter.export([RICH])
    assert measured.points("span.exported") == {
        ("cbtop_recording_exporter", None): 1,
        ("cbtop_span_exporter", "AttributeError"): 1,
        ("cbtop_span_exporter", "shutdown"): 1,
    }


def test_every_write_is_one_operation(measured):
    """Every write is one duration; failed ones have an error type."""
    exporter = make(CbtopSpanExporter, RecordingSink(away, away, local=True))
    exporter.export([RICH])
    exporter.shutdown()
    component = "cbtop_recording_exporter"
    assert measured.points("operation.duration") == {
        (component, None): 1,
        (component, "ConnectionRefusedError"): 2,
    }


def test_what_was_left_on_disk_is_in_flight_nowhere(measured, tmp_path):
    """Spans left on disk at shutdown are not in flight, but the health reports them as spooled."""
    sink = RecordingSink(*[busy(3_600.0)] * 100)
    exporter = make(CbtopSpanExporter, sink, spool={"path": str(tmp_path)})
    exporter.export([span("a")])
    measured.wait_for("span.inflight", {("cbtop_recording_exporter", None): 1})
    exporter.shutdown(1_000)
    assert exporter.health().events_spooled == 1
    assert measured.points("span.inflight") == {("cbtop_recording_exporter", None): 0}


def test_what_a_dead_process_left_is_in_flight_and_counted_when_it_goes(measured, tmp_path):
    """Spans left by a dead process are in flight, and counted when they are delivered.

    The rows of a spool file hold the number of their spans, whoever wrote them.
    """
    spool = {"path": str(tmp_path)}
    first = CbtopSpanExporter(sink=RecordingSink(*[busy(3_600.0)] * 100), spool=spool)
    first.export([RICH] * 4)
    first.shutdown()
    up = threading.Event()
    sink = RecordingSink(
        *[lambda batch: WriteResult(delivered=batch) if up.is_set() else away(batch)] * 10_000
    )
    second = make(CbtopSpanExporter, sink, spool=spool)
    second.export([RICH])
    component = ("cbtop_recording_exporter", None)
    measured.wait_for("span.inflight", {component: 5})
    up.set()
    measured.wait_for("span.exported", {component: 5})
    second.shutdown()


@pytest.mark.parametrize("local", [True, False], ids=["direct", "spooled"])
def test_metrics_about_exporting_metrics_do_not_feed_themselves(monkeypatch, local):
    """Collected through our own exporter, the metrics do not feed themselves.

    Every collection has the same series and is one export.
    """
    # A unique name: other tests' exporters may live until the garbage collector runs.
    sink = RecordingSink(name="own", local=local)
    exporter = make(CbtopMetricExporter, sink)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
    provider = MeterProvider([reader])
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", provider)
    provider.get_meter("app").create_counter("orders").add(1)
    series = []
    for n in range(6):
        sink.delivered.clear()
        provider.force_flush()
        assert reader._exporter.force_flush()  # the provider's does not reach an exporter
        series.append(
            {
                (event.measurement, event.tags.get("error.type"))
                for event in map(decode_event, (record.body for record in sink.delivered))
                if event.tags.get("otel.component.type") == "cbtop_own_exporter"
                or event.measurement == "orders"
            }
        )
        assert len(sink.writes) == n + 1
    assert series[0] == {("orders", None)}
    assert {name for name, _ in series[2]} >= {
        "otel.sdk.exporter.metric_data_point.exported",
        "otel.sdk.exporter.operation.duration",
    }
    assert series[2] == series[3] == series[4] == series[5]
    provider.shutdown()


def test_collecting_while_everything_records_never_hangs(measured):
    """Exports, the drain thread, overflow and collections at once do not deadlock."""
    sink = RecordingSink(*[away, busy(0.001)] * 5_000)
    exporter = make(CbtopSpanExporter, sink, spool={"max_bytes": MIB})
    end = threading.Event()

    def collect():
        while not end.is_set():
            measured.points("span.inflight")

    threads = [threading.Thread(target=collect) for _ in range(2)]
    threads += [
        threading.Thread(target=lambda: [exporter.export([large(5_000)]) for _ in range(200)])
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads[2:]:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    end.set()
    for thread in threads[:2]:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    sink.answers.clear()
    exporter.shutdown()
    assert sum(measured.points("span.exported").values()) == 400


def test_threads_that_come_at_once_lose_no_measurement(measured):
    """Threads that make the first measurement at once lose none."""
    for _ in range(20):
        sink = RecordingSink(local=True)
        exporters = [make(CbtopSpanExporter, sink) for _ in range(4)]
        barrier = threading.Barrier(4)

        def export(exporter, barrier=barrier):
            barrier.wait(DEADLINE)
            exporter.export([RICH])

        threads = [threading.Thread(target=export, args=(one,)) for one in exporters]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for exporter in exporters:
            exporter.shutdown()
    assert measured.points("span.exported") == {("cbtop_recording_exporter", None): 80}


def run(script):
    # Servers fork processes that have threads, and Python warns about it.
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


PRELUDE = """
import os
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from otel_cbtop_exporter import CbtopSpanExporter
from otel_cbtop_exporter.testing import RecordingSink
from tests.builders import span
from tests.delivery.records import busy

reader = InMemoryMetricReader()

def points(name):
    data = reader.get_metrics_data()
    return [
        point.value
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "otel.sdk.exporter." + name
        for point in metric.data.data_points
    ]
"""


def test_a_meter_provider_that_is_set_later_is_used():
    """Instruments made before the application sets its meter provider report to it."""
    run(
        PRELUDE
        + """
exporter = CbtopSpanExporter(sink=RecordingSink(*[busy(60.0)] * 9), internal_metrics=True)
exporter.export([span()] * 3)
metrics.set_meter_provider(MeterProvider([reader]))
assert points("span.inflight") == [3], points("span.inflight")
exporter.shutdown()
assert points("span.exported") == [3], points("span.exported")
"""
    )


def test_a_forked_child_has_nothing_of_the_parents_in_flight():
    """A forked child does not count the parent's spooled spans as in flight, only its own."""
    run(
        PRELUDE
        + """
metrics.set_meter_provider(MeterProvider([reader]))
exporter = CbtopSpanExporter(sink=RecordingSink(*[busy(60.0)] * 9), internal_metrics=True)
exporter.export([span()] * 3)
assert points("span.inflight") == [3]
pid = os.fork()
if pid == 0:
    try:
        assert points("span.inflight") == [0], points("span.inflight")
        exporter.export([span()] * 2)
        assert points("span.inflight") == [2], points("span.inflight")
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert points("span.inflight") == [3]
exporter.shutdown()
"""
    )


def test_a_meter_provider_that_cannot_be_loaded_costs_the_metrics_alone():
    """If the meter provider cannot be loaded, batches are delivered and one line is logged."""
    log = run(
        """
        import os
        os.environ["OTEL_PYTHON_METER_PROVIDER"] = "no_such_provider"
        from otel_cbtop_exporter import CbtopSpanExporter
        from otel_cbtop_exporter.testing import RecordingSink
        from tests.builders import span
        sink = RecordingSink(local=True)
        exporter = CbtopSpanExporter(sink=sink, internal_metrics=True)
        exporter.export([span()])
        exporter.export([span()])
        exporter.shutdown()
        assert len(sink.delivered) == 2
        """
    )
    assert log.count("no metrics about exporters") == 1
