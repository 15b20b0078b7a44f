"""The exporters as the SDK sees them."""

import inspect
import logging
import signal
import socket
import threading
from dataclasses import replace

import pytest
from opentelemetry.sdk.metrics import (
    Counter,
    Histogram,
    MeterProvider,
    ObservableCounter,
    UpDownCounter,
)
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.metrics.view import (
    ExponentialBucketHistogramAggregation,
    LastValueAggregation,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExportResult,
)

from otel_cbtop_exporter import (
    CbtopLogRecordExporter,
    CbtopMetricExporter,
    CbtopSpanExporter,
    ConfigError,
    EventStreamer,
    WriteResult,
    decode_event,
    exit_on_sigterm,
    process_health,
)
from otel_cbtop_exporter._sdk import LogRecordExportResult
from otel_cbtop_exporter.delivery.pipeline import open_pipelines
from otel_cbtop_exporter.testing import RecordingSink
from tests.builders import (
    RESOURCE,
    SCOPE,
    context,
    gauge_metric,
    histogram_metric,
    histogram_point,
    log,
    metrics,
    number_point,
    span,
    sum_metric,
)

EXPORTERS = (CbtopSpanExporter, CbtopMetricExporter, CbtopLogRecordExporter)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def bodies(sink):
    return [decode_event(record.body) for record in sink.delivered]


@pytest.mark.parametrize("exporter_class", EXPORTERS)
def test_without_arguments_events_go_to_the_default_file(exporter_class, tmp_path):
    """Exporters work without arguments, as entry points construct them.

    Nothing is opened before the first export.
    """
    exporter = exporter_class()
    assert list(tmp_path.iterdir()) == []
    if exporter_class is CbtopMetricExporter:
        exporter.export(MetricsData(metrics(gauge_metric(number_point(1)))))
    else:
        exporter.export([span() if exporter_class is CbtopSpanExporter else log()])
    exporter.shutdown()
    (line,) = (tmp_path / "cbtop-events.jsonl").read_bytes().splitlines()
    assert decode_event(line).schema_version == 1


def test_the_three_signals_in_one_file(tmp_path):
    """Exporters with the same configuration share one pipeline and one file."""
    options = {"jsonlines": {"path": str(tmp_path / "all.jsonl")}}
    spans, points, logs = (exporter(**options) for exporter in EXPORTERS)
    assert spans._delivery._pipelines == points._delivery._pipelines == logs._delivery._pipelines
    assert spans.export([span()]) is SpanExportResult.SUCCESS
    data = MetricsData(metrics(gauge_metric(number_point(1))))
    assert points.export(data) is MetricExportResult.SUCCESS
    assert logs.export([log()]) is LogRecordExportResult.SUCCESS
    for exporter in (spans, points, logs):
        exporter.shutdown()
    lines = (tmp_path / "all.jsonl").read_bytes().splitlines()
    assert [decode_event(line).signal for line in lines] == ["span", "metric", "log"]


def test_the_environment_configures(monkeypatch, tmp_path):
    """Variables reach the sink, and arguments override them."""
    monkeypatch.setenv("OTEL_EXPORTER_CBTOP_JSONLINES_PATH", str(tmp_path / "env.jsonl"))
    by_environment = CbtopSpanExporter()
    by_argument = CbtopSpanExporter(jsonlines={"path": str(tmp_path / "arg.jsonl")})
    for exporter in (by_environment, by_argument):
        exporter.export([span()])
        exporter.shutdown()
    assert (tmp_path / "env.jsonl").exists()
    assert (tmp_path / "arg.jsonl").exists()


def test_every_sink_gets_every_event(tmp_path, capfd):
    """With `sink=jsonlines,console` both sinks get every event."""
    exporter = CbtopSpanExporter(sink="jsonlines,console")
    assert exporter.export([span(), span()]) is SpanExportResult.SUCCESS
    assert exporter.health().events_written == 4
    exporter.shutdown()
    on_disk = (tmp_path / "cbtop-events.jsonl").read_text().splitlines()
    assert capfd.readouterr().out.splitlines() == on_disk
    assert len(on_disk) == 2


def test_sink_none_takes_everything_and_writes_nothing(tmp_path):
    """`sink=none` accepts everything and writes nothing: it is the way to switch off."""
    exporter = CbtopSpanExporter(sink="none")
    assert exporter.export([span()]) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"sink": "pigeon"},
        {"sink": ["influxdb"]},
        {"sink": "kafka", "kafka": {}},
        {"timeout_ms": 0},
        {"jsonline": {}},
        {"influxdb": {"url": 7}},
        {"sink": "influxdb", "influxdb": {"url": "http://[::1:8086", "bucket": "b"}},
        {"sink": "kafka", "kafka": {"bootstrap_servers": "x:1", "topic": "otel/{signal}"}},
        {"sink": 5},
        {"sink": True},
        {"spool": {"path": "a\0b"}},
        {"spool": {"path": "~nobody-of-that-name/x"}},
        {"spool": {"max_bytes": 2**64}},
        {"jsonlines": {"path": "donn\udce9es.jsonl"}},
    ],
)
def test_a_wrong_argument_is_a_config_error(options):
    """A wrong argument, in code or in a declarative file, raises ConfigError."""
    with pytest.raises(ConfigError):
        CbtopSpanExporter(**options)


class Halfway:
    """A sink that somebody has begun to write."""

    name = destination = "halfway"
    local = True

    def encode(self, events): ...

    def write(self, records, timeout_seconds): ...


@pytest.mark.parametrize(
    ("sink", "words"),
    [
        (
            Halfway(),
            "Halfway, which lacks max_batch_events, .*, flush, close, after_fork_in_child:",
        ),
        (object(), "which lacks name, .*encode, write, flush, .*: expected a sink's name, or an"),
    ],
    ids=["incomplete", "no sink"],
)
@pytest.mark.parametrize(
    "make", [lambda sink: CbtopSpanExporter(sink=sink), EventStreamer], ids=["exporter", "streamer"]
)
def test_what_an_own_sink_lacks_is_named_all_at_once(make, sink, words):
    """An object that lacks members of `Sink` is refused, with all their names, before it is used."""
    with pytest.raises(ConfigError, match=words):
        make(sink)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"SINK": "kafka", "KAFKA_BOOTSTRAP_SERVERS": "x:1", "KAFKA_TOPIC": "otel/x"},
            "kafka.topic",
        ),
        (
            {"SINK": "influxdb", "INFLUXDB_BUCKET": "b", "INFLUXDB_URL": "http://[::1:8086"},
            "influxdb.url",
        ),
        (
            {"SINK": "influxdb", "INFLUXDB_BUCKET": "b", "INFLUXDB_URL": "http://ex\u2100mple"},
            "influxdb.url",
        ),
        ({"SPOOL_PATH": "~nobody-of-that-name/x"}, "there is no such home folder"),
        ({"SPOOL_MAX_BYTES": "99999999999999999999"}, "SPOOL_MAX_BYTES"),
        ({"JSONLINES_PATH": "donn\udce9es.jsonl"}, "expected text in UTF-8"),
        ({"TIMEOUT_MS": "99999999999999"}, "TIMEOUT_MS"),
    ],
)
def test_no_variable_makes_a_constructor_raise(monkeypatch, caplog, variables, words):
    """A wrong variable never makes a constructor raise.

    An exception would switch off other exporters and all instrumentation.
    """
    for name, text in variables.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_CBTOP_{name}", text)
    CbtopSpanExporter().shutdown()
    assert words in caplog.text


def test_a_sink_that_lacks_a_setting_in_the_environment_stops_nobody(monkeypatch, caplog):
    """An incomplete sink logs what to set, counts everything as dropped, and raises nothing."""
    monkeypatch.setenv("OTEL_EXPORTER_CBTOP_SINK", "influxdb")
    exporter = CbtopSpanExporter()
    assert "OTEL_EXPORTER_CBTOP_INFLUXDB_URL" in caplog.text
    assert exporter.export([span(), span()]) is SpanExportResult.FAILURE
    assert exporter.health().events_dropped == {"no_sink": 2}
    assert "OTEL_EXPORTER_CBTOP_INFLUXDB_URL" in process_health()["influxdb"].last_error
    assert process_health()["cbtop_span_exporter"].events_dropped == {"no_sink": 2}
    exporter.shutdown()
    assert process_health()["cbtop_span_exporter"].events_dropped == {"no_sink": 2}
    del exporter
    assert not {"influxdb", "cbtop_span_exporter"} & process_health().keys()


def test_the_health_of_the_process_outlives_shutdown():
    """What closed exporters counted stays, and is added to what open ones count."""

    def of_process():
        return process_health()["recording for long"]

    def away(records):
        return WriteResult(kept=records, error="away", error_type="away")

    first = CbtopSpanExporter(sink=RecordingSink(away, destination="for long"))
    first.export([span(), span()])
    first.shutdown()
    assert (of_process().events_written, of_process().last_error) == (2, "away")
    second = CbtopSpanExporter(sink=RecordingSink(destination="for long"))
    assert of_process().last_error == ""
    second.export([span()])
    second.force_flush()
    assert (of_process().connected, of_process().events_written) == (True, 3)
    assert of_process().last_write_ns == second.health().last_write_ns
    second.shutdown()


def test_what_a_closed_exporter_left_is_counted_once(tmp_path):
    """What waits on disk is not the health of those that left it, but of the one that has it."""
    options = {
        "influxdb": {"url": "http://127.0.0.1:1", "bucket": "b"},
        "spool": {"path": str(tmp_path)},
    }
    exporters = []
    for _ in range(3):
        exporters.append(CbtopSpanExporter(sink="influxdb", **options))
        exporters[-1].export([span(), span()])
        exporters[-1].force_flush(1000)
        found = process_health()["influxdb http://127.0.0.1:1"]
        assert found.events_spooled == 2 * len(exporters)
        exporters[-1].shutdown()


def test_what_no_sink_got_is_told_for_the_process():
    """Losses of all exporters of a kind are added up, and are no sign of a sink that is away."""
    exporters = [CbtopSpanExporter(sink=RecordingSink(local=True)) for _ in range(2)]
    for exporter in exporters:
        exporter.export([object()])
    lost = process_health()["cbtop_span_exporter"]
    assert (lost.connected, lost.events_rejected) == (True, 2)
    for exporter in exporters:
        exporter.shutdown()


@pytest.mark.parametrize(
    ("package", "extra"), [("confluent_kafka", "kafka"), ("authlib", "schema-registry")]
)
def test_an_extra_that_is_not_installed_is_named(monkeypatch, caplog, package, extra):
    """A missing extra is one logged error that says what to install, and raises nothing."""
    import importlib.util

    # All extras are installed here, so a missing one is simulated.
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == package else find(n, *a)
    )
    monkeypatch.setenv("OTEL_EXPORTER_CBTOP_SINK", "kafka")
    monkeypatch.setenv("OTEL_EXPORTER_CBTOP_KAFKA_BOOTSTRAP_SERVERS", "localhost:1")
    monkeypatch.setenv("OTEL_EXPORTER_CBTOP_KAFKA_SCHEMA_REGISTRY_URL", "http://localhost:1")
    CbtopSpanExporter().shutdown()
    assert f"pip install 'otel-cbtop-exporter[{extra}]'" in caplog.text


def test_the_other_sinks_work_where_one_cannot(monkeypatch, tmp_path, caplog):
    """One incomplete sink does not affect the others; its events are counted as dropped."""
    monkeypatch.setenv("OTEL_EXPORTER_CBTOP_SINK", "jsonlines,influxdb")
    exporter = CbtopSpanExporter()
    assert exporter.export([span()]) is SpanExportResult.FAILURE
    health = exporter.health()
    exporter.shutdown()
    assert len((tmp_path / "cbtop-events.jsonl").read_text().splitlines()) == 1
    assert "until then sink influxdb gets nothing" in caplog.text
    assert (health.events_written, health.events_dropped) == (1, {"no_sink": 1})
    assert not health.connected
    assert "OTEL_EXPORTER_CBTOP_INFLUXDB_URL" in health.last_error


def test_each_sink_that_cannot_be_used_is_named_in_the_log(monkeypatch, caplog):
    """With two incomplete sinks, the log says at once of both that their events are dropped."""
    monkeypatch.setenv("OTEL_EXPORTER_CBTOP_SINK", "influxdb,kafka")
    exporter = CbtopSpanExporter()
    exporter.export([span()])
    for name in ("influxdb", "kafka"):
        assert f"1 event was dropped: sink {name} cannot be used" in caplog.text
    assert exporter.health().events_dropped == {"no_sink": 2}
    exporter.shutdown()


def test_export_after_shutdown_fails_cleanly_and_shutdown_twice_is_quiet(caplog):
    """An export after shutdown is counted and writes nothing; a second shutdown logs nothing."""
    sink = RecordingSink(local=True)
    exporter = CbtopSpanExporter(sink=sink)
    exporter.shutdown()
    exporter.shutdown()
    assert not caplog.records
    assert exporter.export([span()]) is SpanExportResult.FAILURE
    assert exporter.health().events_dropped == {"shutdown": 1}
    assert sink.delivered == []


@pytest.mark.parametrize("spelling", [{}, {"timeout_millis": 50}, {"timeout": 50}])
@pytest.mark.parametrize("exporter_class", EXPORTERS)
def test_shutdown_takes_every_spelling_of_the_timeout(exporter_class, spelling):
    """`shutdown` accepts `timeout` (from PeriodicExportingMetricReader) and `timeout_millis`."""
    sink = RecordingSink(local=True)
    exporter_class(sink=sink).shutdown(**spelling)
    assert sink.closes == 1


def test_batch_processors_find_the_name_of_the_timeout():
    """`timeout_millis` is a positional parameter, or BatchProcessor would not pass its timeout."""
    for exporter_class in EXPORTERS:
        exporter = exporter_class(sink=RecordingSink(local=True))
        assert "timeout_millis" in inspect.getfullargspec(exporter.shutdown).args
        exporter.shutdown()


def test_a_ready_sink_has_one_delivery(monkeypatch, caplog):
    """Exporters may share a sink object, but one with other delivery options raises an error.

    If the options come from the environment, they are only logged.
    """
    sink = RecordingSink(local=True)
    spans = CbtopSpanExporter(sink=sink, max_batch_events=3)
    logs = CbtopLogRecordExporter(sink=sink, max_batch_events=3)
    with pytest.raises(ConfigError, match=r"other options: delivery, max_batch_events;"):
        CbtopMetricExporter(sink=sink, delivery="direct")
    monkeypatch.setenv("OTEL_EXPORTER_CBTOP_METRICS_DELIVERY", "direct")
    other = CbtopMetricExporter(sink=sink, max_batch_events=3)  # from the environment: only logged
    assert "other options: delivery; those of the first one hold" in caplog.text
    for exporter in (spans, logs):
        exporter.shutdown()
    assert sink.closes == 0
    other.shutdown()
    assert sink.closes == 1


def test_a_failing_sink_is_a_failure_and_never_an_exception():
    """A failing sink makes `export` return FAILURE and never raises."""
    sink = RecordingSink(*[_kept] * 10, local=True)
    exporter = CbtopSpanExporter(sink=sink, retry={"max_retries": 0})
    assert exporter.export([span()]) is SpanExportResult.FAILURE
    assert sum(exporter.health().events_dropped.values()) == 1
    exporter.shutdown()


def _kept(records):
    return WriteResult(kept=records, error="away", error_type="away")


class Poison:
    """An object whose attributes all raise."""

    def __getattr__(self, name):
        raise RuntimeError(name)


@pytest.mark.parametrize(
    "bad", [Poison(), span(ctx=context(span_id=2**64))], ids=["unreadable", "id beyond 64 bits"]
)
def test_an_item_that_cannot_be_mapped_spares_its_neighbours(caplog, bad):
    """An item that cannot be mapped is counted and logged; the others arrive."""
    sink = RecordingSink(local=True)
    exporter = CbtopSpanExporter(sink=sink)
    assert exporter.export([span("a"), bad, span("b")]) is SpanExportResult.FAILURE
    assert [event.tags["span.name"] for event in bodies(sink)] == ["a", "b"]
    assert exporter.health().events_rejected == 1
    assert "could not be mapped" in caplog.text
    exporter.shutdown()


def test_a_point_that_is_not_finite_is_counted_in_health(caplog):
    """A point that is not finite is counted in the health."""
    sink = RecordingSink(local=True)
    exporter = CbtopMetricExporter(sink=sink)
    data = MetricsData(
        metrics(gauge_metric(number_point(float("nan")), number_point(1, {"a": "b"})))
    )
    exporter.export(data)
    assert exporter.health().events_rejected == 1
    assert len(sink.delivered) == 1
    assert "temperature" in caplog.text
    exporter.shutdown()


def test_a_point_that_cannot_be_mapped_costs_no_other(caplog):
    """A point that cannot be mapped is reported by its metric's name.

    All other points arrive, whatever their metric or resource.
    """
    bad = replace(number_point(1), attributes=object())
    no_buckets = histogram_point((), (5.0,))
    sink = RecordingSink(local=True)
    exporter = CbtopMetricExporter(sink=sink)
    batch = [
        *metrics(
            sum_metric(number_point(1), bad, number_point(3)),
            histogram_metric(no_buckets, histogram_point()),
            gauge_metric(number_point(4)),
        ),
        *metrics(sum_metric(bad, name="alone")),
        *metrics(sum_metric(number_point(5))),
    ]
    assert exporter.export(MetricsData(batch)) is MetricExportResult.FAILURE
    assert [(event["measurement"], event["fields"].get("value")) for event in sink.events] == [
        ("requests", 1),
        ("requests", 3),
        ("latency", None),
        ("temperature", 4),
        ("requests", 5),
    ]
    assert exporter.health().events_rejected == 3
    assert "a data point of 'requests' could not be mapped: TypeError" in caplog.text
    assert "a data point of 'latency' could not be mapped: ValueError" in caplog.text
    exporter.shutdown()


@pytest.mark.parametrize(
    "odd",
    [
        object(),
        ResourceMetrics(RESOURCE, None, ""),
        ResourceMetrics(RESOURCE, [object()], ""),
        ResourceMetrics(RESOURCE, [ScopeMetrics(SCOPE, [object()], "")], ""),
    ],
)
def test_metrics_that_cannot_even_be_taken_apart_are_counted(odd, caplog):
    """Metrics of an unexpected structure are counted, and the others arrive."""
    sink = RecordingSink(local=True)
    exporter = CbtopMetricExporter(sink=sink)
    data = MetricsData([odd, *metrics(gauge_metric(number_point(1)))])
    assert exporter.export(data) is MetricExportResult.FAILURE
    assert len(sink.delivered) == 1
    assert exporter.health().events_rejected == 1
    assert "could not be mapped: AttributeError" in caplog.text or "TypeError" in caplog.text
    exporter.shutdown()


def test_what_is_left_out_of_a_batch_that_is_mapped_again_is_counted_once():
    """A loss is counted once, though a point that cannot be mapped makes others be mapped again."""
    sink = RecordingSink(local=True)
    exporter = CbtopMetricExporter(sink=sink)
    odd = metrics(gauge_metric(number_point(float("nan")), number_point(1, {"a": "b"})))
    data = MetricsData([*odd, *metrics(gauge_metric(Poison()))])
    assert exporter.export(data) is MetricExportResult.FAILURE
    assert exporter.health().events_rejected == 2  # the point, and what cannot be mapped
    assert len(sink.delivered) == 1
    exporter.shutdown()


def test_a_field_that_is_not_finite_is_a_lost_value_and_no_lost_event(caplog):
    """A histogram arrives without a sum that is not finite.

    The lost value is counted, and logged once.
    """
    sink = RecordingSink(local=True)
    exporter = CbtopMetricExporter(sink=sink)
    data = MetricsData(metrics(histogram_metric(histogram_point(total=float("inf")))))
    exporter.export(data)
    exporter.export(data)
    health = exporter.health()
    assert (health.events_written, health.events_rejected) == (2, 0)
    assert health.values_lost == {"non_finite": 2}
    assert caplog.text.count("a field of 'latency' left out") == 1
    exporter.shutdown()


@pytest.mark.parametrize(
    ("preference", "delta"),
    [
        ("delta", {Counter, ObservableCounter, Histogram}),
        ("lowmemory", {Counter, Histogram}),
        ("cumulative", set()),
    ],
)
def test_the_temporality_preference_by_argument_and_environment(monkeypatch, preference, delta):
    """The temporality preference follows OpenTelemetry's table; up-down counters are cumulative."""
    by_argument = CbtopMetricExporter(sink="none", temporality_preference=preference)
    monkeypatch.setenv("OTEL_EXPORTER_CBTOP_METRICS_TEMPORALITY_PREFERENCE", preference)
    by_environment = CbtopMetricExporter(sink="none")
    for exporter in (by_argument, by_environment):
        chosen = exporter._preferred_temporality
        assert {k for k, v in chosen.items() if v is AggregationTemporality.DELTA} == delta
        assert UpDownCounter not in chosen
        exporter.shutdown()


def test_preferences_by_class_of_instrument_win():
    """Preferences by instrument class, as in the SDK's and OTLP's exporters, take precedence."""
    last = LastValueAggregation()
    exporter = CbtopMetricExporter(
        sink="none",
        preferred_temporality={Counter: AggregationTemporality.CUMULATIVE},
        preferred_aggregation={Histogram: last},
        default_histogram_aggregation="base2_exponential_bucket_histogram",
    )
    assert exporter._preferred_temporality[Counter] is AggregationTemporality.CUMULATIVE
    assert exporter._preferred_temporality[Histogram] is AggregationTemporality.DELTA
    assert exporter._preferred_aggregation == {Histogram: last}
    exporter.shutdown()


def test_preferences_that_are_no_mapping_leave_nothing_open():
    """An exporter that cannot be made for its preferences leaves no pipeline behind."""
    before = len(open_pipelines())
    for name in ("preferred_temporality", "preferred_aggregation"):
        with pytest.raises(ConfigError, match=f"{name} is a str, allowed is a mapping"):
            CbtopMetricExporter(sink=RecordingSink(), **{name: "delta"})
        with pytest.raises(ConfigError, match=f"{name} has the key 'Counter', allowed are"):
            CbtopMetricExporter(sink=RecordingSink(), **{name: {"Counter": 1}})
    assert len(open_pipelines()) == before


def test_delta_is_the_default_and_reaches_the_sdk():
    """By default the collections of a counter are deltas, which do not grow."""
    sink = RecordingSink(local=True)
    reader = PeriodicExportingMetricReader(CbtopMetricExporter(sink=sink), 1e9)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    counter = provider.get_meter("m").create_counter("c")
    for amount in (5, 3):
        counter.add(amount)
        provider.force_flush()
    provider.shutdown()
    points = [event for event in bodies(sink) if event.measurement == "c"]
    assert [point.fields["value"] for point in points] == [5, 3]
    assert {point.metric.temporality for point in points} == {"delta"}


def test_the_histogram_aggregation_by_environment(monkeypatch):
    """The variable for the histogram aggregation takes the values of OTLP's."""
    monkeypatch.setenv(
        "OTEL_EXPORTER_CBTOP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
        "base2_exponential_bucket_histogram",
    )
    exporter = CbtopMetricExporter(sink="none")
    aggregation = exporter._preferred_aggregation[Histogram]
    assert isinstance(aggregation, ExponentialBucketHistogramAggregation)
    exporter.shutdown()


def test_eight_threads_through_a_simple_processor():
    """Concurrent exports lose nothing: SimpleSpanProcessor takes no lock."""
    sink = RecordingSink(local=True)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(CbtopSpanExporter(sink=sink)))
    tracer = provider.get_tracer("t")

    def work(number):
        for _ in range(100):
            with tracer.start_as_current_span(f"thread {number}"):
                pass

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    provider.shutdown()
    ids = {event.fields["span_id"] for event in bodies(sink)}
    assert len(ids) == len(sink.delivered) == 800


def test_a_batch_processor_delivers_its_last_batch_at_shutdown():
    """Spans that ended before the shutdown are delivered."""
    sink = RecordingSink(local=True)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(CbtopSpanExporter(sink=sink)))
    for _ in range(1000):
        provider.get_tracer("t").start_span("s").end()
    provider.shutdown()
    assert len(sink.delivered) == 1000
    assert sink.closes == 1


def test_a_process_that_has_swallowed_its_exit_can_be_ended_later():
    """Another SIGTERM after the quiet time exits again, in case the first exit was swallowed."""
    handler = exit_on_sigterm._Exit(quiet_seconds=0.0)
    for _ in range(2):
        with pytest.raises(SystemExit):
            handler(signal.SIGTERM, None)


def test_exit_on_sigterm_replaces_the_default_action_only():
    """exit_on_sigterm does not replace an application's own handler."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        CbtopSpanExporter(sink="none", exit_on_sigterm=True).shutdown()
        with pytest.raises(SystemExit) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.code == 143
        signal.raise_signal(signal.SIGTERM)  # ignored: it would abort the exit in progress

        def own(*_):
            pass

        signal.signal(signal.SIGTERM, own)
        CbtopSpanExporter(sink="none", exit_on_sigterm=True).shutdown()
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_declarative_files_values_are_arguments():
    """Values of a declarative file are plain nested arguments, with {} for null."""
    values = {
        "sink": "jsonlines",
        "jsonlines": {"path": "declared.jsonl", "compression": {}},
        "kafka": {},
    }
    exporter = CbtopSpanExporter(**values)
    assert exporter._delivery.config.jsonlines.path == "declared.jsonl"
    exporter.shutdown()


def test_no_log_line_of_ours_holds_an_attribute_value(caplog):
    """No log line of ours contains an attribute value, which may be a secret of a user."""
    caplog.set_level(logging.DEBUG, "otel_cbtop_exporter")
    sink = RecordingSink(*[_kept] * 10, local=True)
    exporter = CbtopSpanExporter(sink=sink, retry={"max_retries": 0})
    exporter.export([span(attributes={"card": "4111-1111"})])
    exporter.shutdown()
    assert caplog.records
    assert "4111" not in caplog.text


def test_every_exporter_redacts():
    """A secret in an attribute is redacted in every signal."""
    from opentelemetry._logs import SeverityNumber
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    sink = RecordingSink(local=True)
    options = {"sink": sink, "mapping": {"redact": ["user.*"]}}
    secret = {"user.token": "s3cret"}
    traces = TracerProvider()
    traces.add_span_processor(SimpleSpanProcessor(CbtopSpanExporter(**options)))
    traces.get_tracer("t").start_span("s", attributes=secret).end()
    logs = LoggerProvider()
    logs.add_log_record_processor(SimpleLogRecordProcessor(CbtopLogRecordExporter(**options)))
    logs.get_logger("l").emit(
        body="b", severity_number=SeverityNumber.INFO, attributes=secret, timestamp=1
    )
    metrics = MeterProvider([PeriodicExportingMetricReader(CbtopMetricExporter(**options))])
    metrics.get_meter("m").create_counter("c").add(1, secret)
    for provider in (traces, logs, metrics):
        provider.shutdown()
    assert {event["signal"] for event in sink.events} == {"span", "log", "metric"}
    for record in sink.delivered:
        assert b"s3cret" not in record.body
        assert b"[redacted" in record.body


def test_exporters_with_other_spools_share_nothing(tmp_path):
    """Exporters with different options share no pipeline.

    One that asks for a spool on disk must not share another's in memory.
    """
    options = {"sink": "kafka", "kafka": {"bootstrap_servers": "127.0.0.1:1"}}
    before = len(open_pipelines())
    exporters = [
        CbtopSpanExporter(**options, **more)
        for more in (
            {},
            {"spool": {"path": str(tmp_path)}},
            {"retry": {"max_retries": 9}},
            {"delivery": "direct"},
            {"max_batch_events": 7},
            {"max_batch_bytes": 7_000},
            {"internal_metrics": True},
        )
    ]
    assert len(open_pipelines()) - before == len(exporters)
    for exporter in exporters:
        exporter.shutdown(1_000)


def test_an_exporter_that_cannot_be_made_holds_nothing(tmp_path):
    """If one sink cannot be made, those made before are released, or they would never be closed."""
    before = len(open_pipelines())
    with pytest.raises(ConfigError):
        CbtopSpanExporter(
            sink=["jsonlines", "influxdb"], jsonlines={"path": str(tmp_path / "a.jsonl")}
        )
    assert len(open_pipelines()) == before


def test_off_the_main_thread_no_handler_is_installed():
    """Off the main thread an exporter is made without a signal handler.

    Python allows none there.
    """
    made = []
    handler = signal.getsignal(signal.SIGTERM)

    def build():
        made.append(CbtopSpanExporter(sink=RecordingSink(local=True), exit_on_sigterm=True))

    thread = threading.Thread(target=build)
    thread.start()
    thread.join(20)
    assert len(made) == 1
    assert signal.getsignal(signal.SIGTERM) is handler
    made[0].shutdown()


def test_sinks_that_need_no_time_come_first(tmp_path):
    """The others have what they leave of their shares of an export's time."""
    exporter = CbtopSpanExporter(
        sink=["influxdb", "jsonlines"],
        delivery="direct",
        influxdb={"url": "http://127.0.0.1:1", "bucket": "b"},
        jsonlines={"path": str(tmp_path / "a.jsonl")},
    )
    names = [pipeline._sink.name for pipeline in exporter._delivery._pipelines]
    assert names == ["jsonlines", "influxdb"]
    exporter.shutdown(1_000)


def test_a_backend_that_hangs_leaves_the_others_their_share_of_the_time(tmp_path):
    """Without a spool, a hanging backend uses its share of an export's time and no more."""
    path = tmp_path / "a.jsonl"
    with socket.create_server(("127.0.0.1", 0)) as server:
        exporter = CbtopSpanExporter(
            sink=["influxdb", "jsonlines"],
            delivery="direct",
            timeout_ms=200,
            influxdb={"url": f"http://127.0.0.1:{server.getsockname()[1]}", "bucket": "b"},
            jsonlines={"path": str(path)},
        )
        assert exporter.export([span()]) is SpanExportResult.FAILURE
        exporter.shutdown(1_000)
    assert exporter.health().events_dropped == {"timeout": 1}
    assert len(path.read_bytes().splitlines()) == 1
