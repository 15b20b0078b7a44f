"""`otel-cbtop summary`: the contents of files in numbers."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import click
from rich.console import Console

from otel_cbtop_exporter.cli.event_files import read_events, whole_files
from otel_cbtop_exporter.cli.rendering import (
    duration_text,
    make_console,
    make_table,
    printable,
    time_text,
)
from otel_cbtop_exporter.cli.trace import print_trace
from otel_cbtop_exporter.events import Event

__all__ = ["Summary", "summary"]

_MOST_MEASUREMENTS = 8
_MOST_ROUTES = 10
_WORTH_SEEING = ("span", "log", "exemplar", "metric", "event")


class Summary:
    """Counts events as they are read; keeps only numbers for each route and each trace."""

    def __init__(self) -> None:
        self.events = 0
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        self.measurements: Counter[tuple[str, str]] = Counter()
        """Events by signal and measurement."""
        self.severities: Counter[str] = Counter()
        self.durations: defaultdict[str, list[float]] = defaultdict(list)
        """Durations of server spans in nanoseconds, by span name, which is the route."""
        self.errors: Counter[str] = Counter()
        """Errors of the same spans, by span name."""
        self._signals: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, event: Event) -> None:
        """Count one event."""
        signal = event.signal or "event"
        self.events += 1
        self.measurements[signal, event.measurement] += 1
        now = event.timestamp_ns
        self.first_ns = now if self.first_ns is None else min(self.first_ns, now)
        self.last_ns = now if self.last_ns is None else max(self.last_ns, now)
        if event.correlation_id:
            self._signals[event.correlation_id][signal] += 1
        if signal == "log":
            self.severities[event.tags.get("severity_text", "no severity")] += 1
        elif signal == "span" and event.tags.get("span.kind") == "SERVER":
            route = event.tags.get("span.name", "")
            duration = event.fields.get("duration_ns")
            if isinstance(duration, int | float):
                self.durations[route].append(duration)
                self.errors[route] += bool(event.fields.get("error"))

    def trace_to_follow(self) -> str | None:
        """Return the correlation id with events of most signals; among equals, with most spans."""

        def worth(trace: str) -> tuple[int, int]:
            seen = self._signals[trace]
            return sum(signal in seen for signal in _WORTH_SEEING), seen["span"]

        return max(self._signals, key=worth, default=None)


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
@click.option("--all", "show_all", is_flag=True, help="Every measurement, not only the busiest.")
@click.option("--follow-trace", is_flag=True, help="And one trace, seen through most signals.")
def summary(files: tuple[str, ...], *, show_all: bool, follow_trace: bool) -> None:
    """Count the events of FILES by signal and measurement, and name the slowest routes.

    FILES are JSON Lines, also rotated and compressed ones: `events.jsonl*` is what you want. `-` is
    standard input.
    """
    paths = whole_files(files)
    counted = Summary()
    wrong = 0
    for line in read_events(paths):
        if line.event is None:
            wrong += 1
        else:
            counted.add(line.event)
    console = make_console()
    _print_head(console, counted, files=len(paths), wrong=wrong)
    if counted.events:
        _print_measurements(console, counted, show_all=show_all)
    if counted.durations:
        _print_routes(console, counted)
    trace = counted.trace_to_follow()
    if trace and follow_trace:
        console.print()
        events = [event for event in _events(paths) if event.correlation_id == trace]
        if not events:
            raise click.ClickException("--follow-trace reads FILES twice, which a pipe cannot be")
        print_trace(console, trace, events)
    elif trace:
        shown = " ".join(map(click.format_filename, files[:3])) + (" ..." if files[3:] else "")
        console.print(
            f"\nFollow a trace:  otel-cbtop trace {printable(trace)} {shown}", soft_wrap=True
        )


def _events(paths: Sequence[str]) -> list[Event]:
    return [line.event for line in read_events(paths) if line.event]


def _print_head(console: Console, counted: Summary, *, files: int, wrong: int) -> None:
    console.print(f"{counted.events:,} event{_s(counted.events)} in {files} file{_s(files)}")
    if counted.first_ns is not None and counted.last_ns is not None:
        console.print(f"{time_text(counted.first_ns)} to {time_text(counted.last_ns)}")
    if wrong:
        are = "line is not an event" if wrong == 1 else "lines are not events"
        console.print(f"{wrong} {are}; `otel-cbtop validate` says why", style="yellow")


def _print_measurements(console: Console, counted: Summary, *, show_all: bool) -> None:
    table = make_table("signal", "measurement", right=("events",))
    by_signal: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    for (signal, measurement), events in counted.measurements.most_common():
        by_signal[signal].append((measurement, events))
    for signal, rows in sorted(by_signal.items(), key=lambda item: (len(item[1]), item[0])):
        shown = rows if show_all else rows[:_MOST_MEASUREMENTS]
        for measurement, events in shown:
            table.add_row(signal, printable(measurement), f"{events:,}")
        if rest := rows[len(shown) :]:
            more = f"{len(rest)} more measurements (--all names them)"
            table.add_row(signal, more, f"{sum(events for _, events in rest):,}", style="dim")
    console.print()
    console.print(table)
    if counted.severities:
        parts = (f"{printable(name)} {n:,}" for name, n in counted.severities.most_common())
        console.print(f"logs by severity: {', '.join(parts)}")


def _print_routes(console: Console, counted: Summary) -> None:
    table = make_table("slowest routes", right=("requests", "errors", "p50", "p95", "max"))
    slowest = sorted(counted.durations.items(), key=lambda item: -_quantile(item[1], 0.95))
    for route, durations in slowest[:_MOST_ROUTES]:
        quantiles = (_quantile(durations, q) for q in (0.5, 0.95, 1.0))
        table.add_row(
            printable(route),
            f"{len(durations):,}",
            f"{counted.errors[route]:,}",
            *map(duration_text, quantiles),
        )
    console.print()
    console.print(table)


def _s(number: int) -> str:
    return "" if number == 1 else "s"


def _quantile(values: list[float], q: float) -> float:
    """Return the nearest-rank quantile, which is always one of the values."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(q * len(ranked)) - 1)]
