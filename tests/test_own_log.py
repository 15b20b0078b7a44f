"""The package's own log: rare lines, no lock held, and written where somebody sees them."""

import logging
import os
import re
import subprocess
import sys
import threading
import warnings

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor

from otel_cbtop_exporter import CbtopLogRecordExporter, CbtopSpanExporter, Rejection, WriteResult
from otel_cbtop_exporter.own_log import HeldLog, RateLimitedLog
from otel_cbtop_exporter.testing import FakeClock, RecordingSink
from tests.builders import span

LOGGER = logging.getLogger("otel_cbtop_exporter")


def test_a_cause_is_logged_once_a_minute(caplog):
    """Further messages of a cause within a minute are held back, and counted in the next one."""
    clock = FakeClock()
    log = RateLimitedLog(logging.getLogger("otel_cbtop_exporter"), clock.monotonic)
    for _ in range(5):
        log.log(logging.WARNING, "away", "the sink is away")
    log.log(logging.ERROR, "full", "the disk is full")
    clock.advance(60)
    log.log(logging.WARNING, "away", "the sink is away")
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "the sink is away"),
        ("ERROR", "the disk is full"),
        ("WARNING", "the sink is away (4 more of this kind since the last message)"),
    ]


def test_messages_are_not_format_strings(caplog):
    """A message with percent signs is logged as it is."""
    log = RateLimitedLog(logging.getLogger("otel_cbtop_exporter"))
    log.log(logging.WARNING, "x", "100%s full %d")
    assert [record.getMessage() for record in caplog.records] == ["100%s full %d"]


def test_events_of_messages_that_were_not_logged_are_told_as_a_sum(caplog):
    """Losses of held-back messages are added up, and logged with the next message or at the end."""
    clock = FakeClock()
    log = RateLimitedLog(LOGGER, clock.monotonic)
    for events in (2, 20, 300):
        log.log(logging.WARNING, "full", f"{events} events were dropped", events=events)
    clock.advance(60)
    log.log(logging.WARNING, "full", "4,000 events were dropped", events=4_000)
    log.log(logging.WARNING, "full", "7 events were dropped", events=7)
    log.log(logging.WARNING, "full", "8 events were dropped", events=8)
    log.tell_held_back()
    log.tell_held_back()
    assert [record.getMessage() for record in caplog.records] == [
        "2 events were dropped",
        "4,000 events were dropped (320 more events since the last message)",
        "8 events were dropped (the last of 15 more events since the last message)",
    ]


def test_a_loss_that_stops_is_told_to_its_end_within_a_minute(caplog):
    """A loss that stops is logged in full with the next batch after a minute.

    Otherwise a reader of the log would judge it too small.
    """
    clock = FakeClock()
    log = RateLimitedLog(LOGGER, clock.monotonic)
    for events in (2, 20, 300):
        log.log(logging.WARNING, "full", f"{events} events were dropped", events=events)
    log.log(logging.WARNING, "away", "the sink is away")
    log.log(logging.WARNING, "away", "the sink is away")
    log.tell_due()
    assert len(caplog.records) == 2
    for _ in range(2):
        clock.advance(60)
        log.tell_due()
    assert [record.getMessage() for record in caplog.records] == [
        "2 events were dropped",
        "the sink is away",
        "300 events were dropped (the last of 320 more events since the last message)",
    ]


def test_an_exporter_tells_all_that_was_lost_when_it_ends(caplog):
    """Shutdown logs all that was lost, so that the log alone says how much."""

    def refuse(records):
        return WriteResult(rejected=[Rejection(record, "invalid", "why") for record in records])

    exporter = CbtopSpanExporter(sink=RecordingSink(*[refuse] * 3, local=True))
    for _ in range(3):
        exporter.export([span(), span()])
    exporter.shutdown()
    assert exporter.health().events_rejected == 6
    first, last = [record.getMessage() for record in caplog.records]
    assert "2 events were rejected" in first
    assert "the last of 4 more events" in last


def test_lines_wait_until_no_lock_is_held(caplog):
    """Held lines are logged in order, each once, when no lock is held."""
    log = HeldLog(LOGGER)
    log.log(logging.WARNING, "%s is %d", "a", 1)
    log.log(logging.ERROR, "second")
    assert not caplog.records
    log.tell()
    log.tell()
    assert [record.getMessage() for record in caplog.records] == ["a is 1", "second"]


@pytest.fixture
def exported_logger():
    """Return a function that makes a logger whose lines are exported before the call returns."""
    providers = []

    def start(**options):
        provider = LoggerProvider(shutdown_on_exit=False)
        exporter = CbtopLogRecordExporter(timeout_ms=2_000, **options)
        provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # raised by the SDK's own handler
            from opentelemetry.sdk._logs import LoggingHandler

            handler = LoggingHandler(logger_provider=provider)
        logger = logging.getLogger("tests.own_log")
        for one in (logger, LOGGER):
            one.addHandler(handler)
        providers.append((provider, handler))
        return logger

    yield start
    for provider, handler in providers:
        logging.getLogger("tests.own_log").removeHandler(handler)
        LOGGER.removeHandler(handler)
        provider.shutdown()


def test_a_warning_of_the_sink_does_not_wait_for_the_sink(exported_logger, tmp_path):
    """A sink's own warning can be exported through that sink without a deadlock.

    The file's name is too long to be rotated, which is logged and exported.
    """
    path = tmp_path / ("x" * 235)
    logger = exported_logger(sink="jsonlines", jsonlines={"path": str(path), "max_bytes": 10})
    for number in range(3):
        logger.warning("line %d", number)
    lines = path.read_text().splitlines()
    assert [line.count('"body":"line') for line in lines] == [1, 1, 0, 1]
    assert "no rotation" in lines[2]


def test_a_warning_about_tls_does_not_wait_for_the_connections(exported_logger):
    """A TLS warning at the first write can be exported by the thread that makes the connections."""
    logger = exported_logger(
        sink="influxdb",
        delivery="direct",
        retry={"max_retries": 0},
        influxdb={"url": "https://127.0.0.1:1", "bucket": "b", "verify_tls": False},
    )
    thread = threading.Thread(target=logger.warning, args=("hello",), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


APP = """
import logging, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from otel_cbtop_exporter import CbtopSpanExporter
mine = logging.getLogger()
for name in sys.argv[1:]:
    if name == "telemetry":
        mine.addHandler(LoggingHandler(logger_provider=LoggerProvider()))
    elif name == "null":
        mine.addHandler(logging.NullHandler())
    elif name == "own":
        mine.addHandler(logging.StreamHandler())
        mine.handlers[-1].setFormatter(logging.Formatter("own: %(message)s"))
CbtopSpanExporter()
mine.handlers.clear()  # at the end the SDK's starts a thread, which Python 3.12 refuses
"""


# Its lines have what tells them apart from those of other processes.
STANDARD_ERROR = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ERROR \[\d+\] otel_cbtop_exporter: "


@pytest.mark.parametrize(
    ("handlers", "begins"),
    [
        ((), STANDARD_ERROR),
        (("telemetry",), STANDARD_ERROR),
        (("telemetry", "own"), "own: "),
        (("telemetry", "null"), None),
    ],
)
def test_a_warning_is_seen_where_telemetry_is_the_only_handler(handlers, begins):
    """If telemetry is the only handler, a warning is printed once to standard error.

    Auto-instrumentation has switched off Python's own last resort. A NullHandler is the way to
    switch the line off on purpose.
    """
    done = subprocess.run(
        [sys.executable, "-c", APP, *handlers],
        env={**os.environ, "OTEL_EXPORTER_CBTOP_SINK": "influxdb"},
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    if begins is None:
        assert done.stderr == ""
        return
    (line,) = done.stderr.splitlines()
    assert re.match(f"{begins}sink influxdb needs influxdb.url", line)


def test_what_was_not_logged_is_told_at_the_shutdown(caplog):
    """Losses whose log lines were held back are logged at the shutdown."""
    exporter = CbtopSpanExporter(sink=RecordingSink(local=True))
    for _ in range(3):
        exporter.export([object()])
    exporter.shutdown()
    assert "2 more events" in caplog.text
