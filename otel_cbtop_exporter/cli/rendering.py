"""How events look on a terminal. Text from events is shown, never interpreted."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase

from rich.console import Console
from rich.table import Table
from rich.text import Text

from otel_cbtop_exporter.config import DEFAULT_RESOURCE_TAGS
from otel_cbtop_exporter.events import Event

__all__ = [
    "described",
    "duration_text",
    "event_line",
    "make_console",
    "make_table",
    "printable",
    "time_text",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_WIDTH_WITHOUT_TERMINAL = 120
_LONGEST_TEXT = 200
_SEVERITY_STYLES = {"WARN": "yellow", "ERROR": "red", "FATAL": "bold red"}

# Escape sequences in a log line could rewrite what the terminal shows, and rich does not remove
# them.
_CONTROL = {code: repr(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0))}


def make_console() -> Console:
    """Return a command's console; without a terminal it is wide enough for `grep`."""
    width = None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    return Console(width=width, highlight=False, markup=False, emoji=False)


def make_table(*left: str, right: Sequence[str]) -> Table:
    """Return a table without rules: columns of text, then right-aligned columns of numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def printable(value: object) -> str:
    """Return a text with control characters escaped, cut to 200 characters before that."""
    text = str(value)
    cut = text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
    return cut.translate(_CONTROL)


def time_text(timestamp_ns: int) -> str:
    """Return UTC with milliseconds, or the bare number if it is beyond the calendar."""
    try:
        moment = _EPOCH + timedelta(microseconds=timestamp_ns // 1_000)
    except OverflowError:
        return str(timestamp_ns)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1_000:03d}Z"


def duration_text(duration_ns: float) -> str:
    """Return a duration in a suitable unit, or in ns if it is too large for a float."""
    try:
        if duration_ns < 1e6:
            return f"{duration_ns / 1e3:.0f} us"
        if duration_ns < 1e9:
            return f"{duration_ns / 1e6:.1f} ms"
        return f"{duration_ns / 1e9:.2f} s"
    except OverflowError:
        return printable(f"{duration_ns} ns")


def event_line(event: Event) -> Text:
    """Return an event as one line: time, signal, service, content, trace."""
    line = Text(f"{time_text(event.timestamp_ns)}  {event.signal or 'event':<10}  ")
    if service := event.tags.get("service.name"):
        line.append(printable(service) + "  ", "cyan")
    line.append(described(event))
    if event.correlation_id:
        line.append("  " + printable(event.correlation_id), "dim")
    return line


def described(event: Event) -> Text:
    """Return an event's content, without its time and its trace."""
    tags, fields = event.tags, event.fields
    if event.signal == "span":
        text = Text(
            f"{printable(tags.get('span.name', ''))}  {printable(tags.get('span.kind', ''))}"
        )
        duration = fields.get("duration_ns")
        if isinstance(duration, int | float):
            text.append(f"  {duration_text(duration)}")
        else:
            text.append("  never ended")
        if fields.get("error"):
            text.append(f"  ERROR {printable(fields.get('status_message', ''))}".rstrip(), "red")
        return text
    if event.signal == "span_event":
        return _described_span_event(event)
    if event.signal == "span_link":
        return Text(f"link to trace {printable(fields.get('linked_trace_id', '?'))}")
    if event.signal == "log":
        severity = tags.get("severity_text", "")
        text = Text(printable(severity), _SEVERITY_STYLES.get(severity, ""))
        scope = printable(tags.get("otel.scope.name", ""))
        text.append(f"  {scope}: {printable(fields.get('body', ''))}", "default")
        return text
    if event.signal == "exemplar":
        metric = printable(tags.get("metric.name", "?"))
        return Text(f"exemplar of {metric}: {_number_text(fields.get('value'))}", "magenta")
    return _described_numbers(event)


def _described_span_event(event: Event) -> Text:
    text = Text(printable(event.tags.get("event.name", "")))
    if kind := event.tags.get("exception.type"):
        message = (event.attributes or {}).get("exception.message", "")
        text.append(f"  {printable(kind)}: {printable(message)}", "red")
    return text


def _described_numbers(event: Event) -> Text:
    text = Text(printable(event.measurement), "green")
    unit = event.metric.unit if event.metric and event.metric.unit else ""
    for name in ("value", "count", "sum", "min", "max") if event.metric else event.fields:
        if name in event.fields:
            shown = _number_text(event.fields[name])
            text.append(f"  {printable(name)}={shown}", "default")
    text.append(f"  {printable(unit)}" if unit else "", "default")
    if own := _own_tags(event.tags):
        text.append(f"  {{{own}}}", "dim")
    return text


def _own_tags(tags: Mapping[str, str]) -> str:
    """Return the tags that distinguish the series of a metric, without those of the resource."""
    hidden = (*DEFAULT_RESOURCE_TAGS, "otel.*")
    return ", ".join(
        f"{printable(key)}={printable(text)}"
        for key, text in tags.items()
        if not any(fnmatchcase(key, pattern) for pattern in hidden)
    )


def _number_text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else printable(value)
