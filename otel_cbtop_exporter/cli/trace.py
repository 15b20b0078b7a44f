"""`otel-cbtop trace`: everything that carries one correlation id, as a tree of spans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import click
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from otel_cbtop_exporter.cli.event_files import read_events, whole_files
from otel_cbtop_exporter.cli.rendering import (
    described,
    duration_text,
    make_console,
    printable,
    time_text,
)
from otel_cbtop_exporter.events import Event

__all__ = ["print_trace", "trace"]

_SHORTEST_PREFIX = 4
_MOST_NAMED = 5


@click.command()
@click.argument("correlation_id")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
def trace(correlation_id: str, files: tuple[str, ...]) -> None:
    """Show the spans, logs, exemplars and metric points of CORRELATION_ID in FILES (`-`: input).

    The first digits of the id are enough if they fit only one trace.
    """
    found: dict[str, list[Event]] = {}
    given = correlation_id.lower()  # some systems write ids in upper case
    digits = given.removeprefix("0x")  # and the SDK's console exporter like this
    is_prefix = len(digits) >= _SHORTEST_PREFIX
    for line in read_events(whole_files(files)):
        own = line.event.correlation_id if line.event else None
        if line.event and own and (_begins(own, given) or _begins(own, digits)):
            found.setdefault(own, []).append(line.event)
    for whole in (given, digits):
        if exact := [own for own in found if own.lower() == whole]:
            found = {own: found[own] for own in exact}
            break
    if not found:
        hint = "" if is_prefix else f"; a prefix needs at least {_SHORTEST_PREFIX} characters"
        raise click.ClickException(f"no event has the correlation id {correlation_id}{hint}")
    if len(found) > 1:
        some = ", ".join(map(printable, sorted(found)[:_MOST_NAMED]))
        more = ", ..." if len(found) > _MOST_NAMED else ""
        raise click.ClickException(f"{len(found)} traces begin like that: {some}{more}")
    ((whole_id, events),) = found.items()
    print_trace(make_console(), whole_id, events)


def _begins(own: str, given: str) -> bool:
    own = own.lower()
    return own == given or (len(given) >= _SHORTEST_PREFIX and own.startswith(given))


def print_trace(console: Console, correlation_id: str, events: Sequence[Event]) -> None:
    """Print one trace: spans below their parents, everything else below its span.

    Args:
        console: The console to print to.
        correlation_id: The id that all the events carry.
        events: At least one, in any order.
    """
    ordered = sorted(events, key=lambda event: (event.timestamp_ns, event.signal != "span"))
    spans = {_id(e): e for e in ordered if e.signal == "span" and _id(e)}
    parents = {span_id: _id(span, "parent_span_id") for span_id, span in spans.items()}
    start_ns = next((e for e in ordered if e.signal == "span"), ordered[0]).timestamp_ns
    root = Tree(_heading(correlation_id, ordered, start_ns), guide_style="dim")
    # Every span gets its node before anything is attached to it: clocks of two hosts differ, so
    # a child may begin before its parent.
    nodes = {span_id: Tree(_label(span, start_ns)) for span_id, span in spans.items()}
    for event in ordered:
        span_id = _id(event)
        if event.signal == "span" and event is spans.get(span_id):
            parent_id = "" if _is_above_itself(span_id, parents) else parents[span_id]
            nodes.get(parent_id, root).children.append(nodes[span_id])
        elif event.signal == "span":  # one without an id, or a duplicate
            nodes.get(_id(event, "parent_span_id"), root).add(_label(event, start_ns))
        else:
            nodes.get(span_id, root).add(_label(event, start_ns))
    console.print(root)


def _id(event: Event, field: str = "span_id") -> str:
    return str(event.fields.get(field, ""))


def _is_above_itself(span_id: str, parents: Mapping[str, str]) -> bool:
    above, passed = parents[span_id], {""}
    while above not in passed and above != span_id:
        passed.add(above)
        above = parents.get(above, "")
    return above == span_id


def _heading(correlation_id: str, ordered: Sequence[Event], start_ns: int) -> Text:
    services = sorted({e.tags["service.name"] for e in ordered if "service.name" in e.tags})
    heading = Text("trace ", "bold").append(printable(correlation_id), "bold")
    if services:
        heading.append("  " + ", ".join(map(printable, services)), "cyan")
    heading.append(f"  {time_text(start_ns)}\n", "dim")
    counts = Counter(event.signal or "event" for event in ordered)
    heading.append(", ".join(f"{signal}: {n}" for signal, n in counts.items()), "dim")
    return heading


def _label(event: Event, start_ns: int) -> Text:
    label = described(event)
    if later_ns := event.timestamp_ns - start_ns:
        sign = "+" if later_ns > 0 else "-"
        label.append(f"  {sign}{duration_text(abs(later_ns))}", "dim")
    return label
