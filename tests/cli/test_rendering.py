import pytest

from otel_cbtop_exporter.cli.rendering import (
    duration_text,
    event_line,
    make_console,
    printable,
    time_text,
)
from otel_cbtop_exporter.events import Event, MetricInfo, event_from_sample
from tests.cli.written import TRACE, log, metric, span

EVENTS_OF_TAGS = [
    lambda text: span(text, text, kind=text, trace=text),
    lambda text: log(text, severity=text, trace=text),
]


def test_control_characters_are_shown_and_never_obeyed(capsys):
    """Neither a terminal escape nor console markup in a log body reaches the terminal."""
    make_console().print(event_line(log("\x1b[2J\x9b0m\r\n[bold]:smile:[/nothing]")))
    assert "\\x1b[2J\\x9b0m\\r\\n[bold]:smile:[/nothing]" in capsys.readouterr().out


def test_a_long_text_is_cut():
    """Long texts are cut, so that an event stays one line."""
    assert printable("x" * 300) == "x" * 199 + "…"


@pytest.mark.parametrize("make", EVENTS_OF_TAGS, ids=lambda make: make("").signal)
def test_no_tag_of_a_span_or_log_is_obeyed(make):
    """An escape sequence in any tag of a span or log is shown as text."""
    assert "\x1b" not in event_line(make("\x1b[31m")).plain


@pytest.mark.parametrize(
    ("timestamp_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (1_795_479_678_123_456_789, "2026-11-24T00:21:18.123Z"),
        (10**30, "1" + "0" * 30),
    ],
)
def test_any_time_has_a_text(timestamp_ns, text):
    """Times are shown in UTC; a number beyond the calendar is shown as it is."""
    assert time_text(timestamp_ns) == text


def test_a_duration_has_the_unit_that_suits_it():
    """A duration is shown in microseconds, milliseconds or seconds, depending on its size."""
    shown = [duration_text(ns) for ns in (900, 850_000, 12_340_000, 1_500_000_000)]
    assert shown == ["1 us", "850 us", "12.3 ms", "1.50 s"]
    assert duration_text(10**400) == "1" + 198 * "0" + "…"
    assert duration_text(-(10**400)) == "-1" + 197 * "0" + "…"


EVERY_SIGNAL = {
    "span": (span("GET /", "a1", error=1), "span        shop  GET /  SERVER  10.0 ms  ERROR"),
    "unended": (
        Event("spans", {"span.name": "s"}, {"error": 0}, 0, signal="span"),
        "span        s    never ended",
    ),
    "span_event": (
        Event(
            "span_events",
            {"event.name": "exception", "exception.type": "KeyError"},
            {"span_id": "a1"},
            0,
            signal="span_event",
            attributes={"exception.message": "tea"},
        ),
        "span_event  exception  KeyError: tea",
    ),
    "span_link": (
        Event("span_links", {}, {"linked_trace_id": TRACE}, 0, signal="span_link"),
        f"span_link   link to trace {TRACE}",
    ),
    "log": (log("hi", severity="WARN"), f"log         shop  WARN  shop: hi  {TRACE}"),
    "metric": (
        metric("cpu.time", 0.123456789, cpu="1"),
        "metric      shop  cpu.time  value=0.123457  s  {cpu=1}",
    ),
    "hand-made": (event_from_sample("qps", 5, {"host": "a"}), "event       qps  value=5  {host=a}"),
}


@pytest.mark.parametrize(("event", "text"), EVERY_SIGNAL.values(), ids=EVERY_SIGNAL)
def test_every_kind_of_event_is_one_line(event, text):
    """A line shows an event's time, kind, service, content and trace."""
    assert event_line(event).plain.partition("Z  ")[2].startswith(text)


_TAGS = ("service.name", "span.name", "span.kind", "severity_text", "otel.scope.name")
_TAGS += ("event.name", "exception.type", "metric.name", "own")
_SIGNALS = ("span", "span_event", "span_link", "log", "exemplar", "metric", None)


@pytest.mark.parametrize("escape", ["\x1b[2J", "\x7f", "\x9b0m"])
@pytest.mark.parametrize("signal", _SIGNALS)
def test_nothing_of_any_event_is_obeyed(signal, escape):
    """No escape sequence reaches the terminal, whichever part of an event holds it."""
    fields = dict.fromkeys(("status_message", "body", "linked_trace_id", "value", escape), escape)
    metric = MetricInfo("gauge", unit=escape) if signal == "metric" else None
    attributes = {"exception.message": escape}
    tags = {**dict.fromkeys(_TAGS, escape), escape: escape}
    event = Event(
        escape,
        tags,
        {"error": 1, **fields},
        0,
        correlation_id=escape,
        signal=signal,
        attributes=attributes,
        metric=metric,
    )
    assert event_line(event).plain.isprintable()
