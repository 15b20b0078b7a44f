"""Events as InfluxDB's line protocol: one point a line, tags and fields sorted by key.

    spans,schema_version=1,service.name=shop,span.name=GET correlation_id="0af7",error=0i 1700000000

Belongs here: what of an event becomes a tag or a field, its type, and that no two events are
one point. Not here: what a name or a text may hold (`line_protocol_text.py`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from otel_cbtop_exporter.encoding.event_json import encode_value
from otel_cbtop_exporter.encoding.line_protocol_head import MAX_HEAD_BYTES, Head, render_head
from otel_cbtop_exporter.encoding.line_protocol_text import (
    INTEGER_FIELDS,
    field_name,
    key_text,
    string_text,
)
from otel_cbtop_exporter.encoding.unique_points import UniquePoints
from otel_cbtop_exporter.events import Event, MetricInfo, TagSet

__all__ = ["LineProtocolEncoder", "Lines", "Refusal"]

_BY_TRACE = frozenset({"span", "span_event", "span_link", "log"})

_MAX_TIME_NS = 9_223_372_036_854_775_806
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1

# The plan of a line: for each field its role, its key in the event, and `name=`. A role from 0
# up is a position in what the encoder adds.
_FLOAT, _INTEGER = -2, -1
_ADDED = ("attributes", "correlation_id", "metric", "original_timestamp_ns")
_Plan = tuple[tuple[int, str, str], ...]

_encode_json = msgspec.json.Encoder().encode

# Bounds of the caches: sets of field names, and metrics' descriptions.
_MAX_PLANS = 4_096
_MAX_METRICS = 4_096


class Refusal(NamedTuple):
    """Why an event cannot be a point.

    Attributes:
        reason: A short stable word for counters.
        detail: A sentence that names the metric or the key; holds no values.
    """

    reason: str
    detail: str


class Lines(NamedTuple):
    """What became of a sequence of events.

    Attributes:
        bodies: One line an event, in order, without a newline; of a refused event what could
            be rendered.
        times_ns: The points' times, in the same order.
        refused: By position.
    """

    bodies: list[bytes]
    times_ns: list[int]
    refused: dict[int, Refusal]


class LineProtocolEncoder:
    """Turns events into lines, and remembers which points it made.

    Safe to share between threads. Spans, their events and links, logs, exemplars and
    hand-made events that would share measurement, tags and time with an earlier one are moved
    to the next free nanosecond, with the exact time in `original_timestamp_ns`; a second
    metric point is refused. The bytes are the point from then on: whoever sends them again
    sends the same point.

    Args:
        trace_id_tag_digits: First hex digits of the trace id of spans and logs that become
            the tag `trace_id_prefix`; 0 for none.
    """

    def __init__(self, *, trace_id_tag_digits: int = 0) -> None:
        self.fields_left_out = 0
        """Fields that line protocol cannot carry (NaN, integers beyond 64 bits), so far."""
        self.tag_values_cut = 0
        """Tag values that were cut because the point's key was too long, so far."""
        self._trace_digits = trace_id_tag_digits
        self._plans: dict[tuple[Any, ...], _Plan] = {}
        self._metrics: dict[int, tuple[MetricInfo, str]] = {}
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """Begin with an empty table: the child's series differ by `service.instance.id`."""
        self._lock = threading.Lock()
        self._points = UniquePoints()

    def encode(self, events: Sequence[Event]) -> Lines:
        """Render events; never raises for what they hold."""
        heads = [self._head(event) for event in events]
        refused: dict[int, Refusal] = {}
        times_ns = self._take_times(events, heads, refused)
        bodies: list[bytes] = []
        for position, (event, head, time_ns) in enumerate(
            zip(events, heads, times_ns, strict=True)
        ):
            fields = self._fields(event, moved=time_ns != event.timestamp_ns)
            if head.values_cut is not None or not fields:
                self._look_again(position, event, head, fields, refused)
            bodies.append(f"{head.text} {fields} {time_ns}".encode())
        return Lines(bodies, times_ns, refused)

    def _look_again(
        self, position: int, event: Event, head: Head, fields: str, refused: dict[int, Refusal]
    ) -> None:
        with self._lock:
            self.tag_values_cut += head.values_cut or 0
        if not fields:
            reason = f"{event.measurement!r} has no field that InfluxDB can carry"
            refused.setdefault(position, Refusal("no_field", reason))
        elif len(head.text.encode()) > MAX_HEAD_BYTES:
            reason = f"the tag keys of {event.measurement[:100]!r} are over {MAX_HEAD_BYTES} bytes"
            refused.setdefault(position, Refusal("too_large", reason))

    def _take_times(
        self, events: Sequence[Event], heads: list[Head], refused: dict[int, Refusal]
    ) -> list[int]:
        times_ns: list[int] = []
        with self._lock:
            points = self._points
            for position, event in enumerate(events):
                time_ns = event.timestamp_ns
                if type(time_ns) is not int or not -_MAX_TIME_NS <= time_ns < _MAX_TIME_NS:
                    refused[position] = Refusal(
                        "invalid_time",
                        f"the time of {event.measurement!r} is outside of what InfluxDB keeps",
                    )
                elif event.signal != "metric":
                    time_ns = points.take_next(heads[position].text, time_ns)
                elif not points.take(heads[position].text, time_ns):
                    refused[position] = Refusal(
                        "duplicate_point",
                        f"metric {event.measurement!r} has a second point of the same attributes "
                        "and time: two instruments or views write under this name; rename one, "
                        "or tell them apart by an attribute",
                    )
                times_ns.append(time_ns)
        return times_ns

    def _head(self, event: Event) -> Head:
        """Return measurement and tags, from the tag set's own cache where it has one."""
        tags = event.tags
        key: Any = event.measurement
        trace_id = None
        if self._trace_digits and event.signal in _BY_TRACE and event.correlation_id:
            trace_id = event.correlation_id[: self._trace_digits]
            key = (key, trace_id)
        if type(tags) is not TagSet:
            return render_head(event.measurement, tags, trace_id)
        heads: dict[Any, Head] | None = tags.rendered.get(LineProtocolEncoder)
        if heads is None:
            heads = tags.rendered.setdefault(LineProtocolEncoder, {})
        head = heads.get(key)
        if head is None:
            head = heads[key] = render_head(event.measurement, tags, trace_id)
        return head

    def _fields(self, event: Event, *, moved: bool) -> str:
        """Render the fields; "" if none of the event's own can be carried."""
        fields = event.fields
        hand_made = event.signal is None
        plan = self._plans.get((hand_made, *fields))
        if plan is None or (hand_made and not fields.keys().isdisjoint(event.tags)):
            plan = self._plan(event)
        added = self._added(event, moved=moved)
        parts: list[str] = []
        left_out = 0
        for role, key, prefix in plan:
            if role < 0:
                value: Any = fields[key]
                kind = type(value)
                if kind is str:
                    text = string_text(value)
                elif kind is float and role == _FLOAT and value - value == 0.0:
                    # repr reads back bit-exact; InfluxDB needs no `.0`, and cbtop writes none.
                    text = repr(value).removesuffix(".0")
                elif kind is int and role == _INTEGER and _INT64_MIN <= value <= _INT64_MAX:
                    text = f"{value}i"
                else:
                    text = _unusual_text(value, role)
                    left_out += not text
            else:
                text = added[role]
            if text:
                parts.append(prefix + text)
        if left_out:
            with self._lock:
                self.fields_left_out += left_out
        return ",".join(parts) if left_out < len(fields) else ""

    def _added(self, event: Event, *, moved: bool) -> tuple[str, str, str, str]:
        """Render what is not among an event's fields, in the order of `_ADDED`."""
        metric = event.metric
        known = self._metrics.get(id(metric))
        if metric is None:
            metric_text = ""
        elif known is not None and known[0] is metric:
            metric_text = known[1]
        else:
            metric_text = self._metric_text(metric)
        return (
            _quoted_json(event.attributes) if event.attributes else "",
            string_text(event.correlation_id) if event.correlation_id else "",
            metric_text,
            f"{event.timestamp_ns}i" if moved else "",
        )

    def _plan(self, event: Event) -> _Plan:
        """Order the fields of events that have these names, with those that we add."""
        hand_made = event.signal is None
        entries = [(name, role, "") for role, name in enumerate(_ADDED)]
        names = set(_ADDED)
        # A tag and a field of one name cannot be queried; of ours, `line_protocol_text` keeps
        # them apart.
        clashing = hand_made and not event.fields.keys().isdisjoint(event.tags)
        for key in event.fields:
            name = field_name(str(key))
            while name in names or (clashing and name in event.tags):
                name += "_"
            names.add(name)
            integer = _is_integer(name) and not hand_made
            entries.append((name, _INTEGER if integer else _FLOAT, key))
        plan = tuple((role, key, f"{key_text(name)}=") for name, role, key in sorted(entries))
        if not clashing:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[(hand_made, *event.fields)] = plan
        return plan

    def _metric_text(self, metric: MetricInfo) -> str:
        text = _quoted_json(metric)
        # The points of a stream share one object; an exponential histogram's are all new.
        if metric.scale is None:
            if len(self._metrics) >= _MAX_METRICS:
                self._metrics.clear()
            self._metrics[id(metric)] = (metric, text)
        return text


def _is_integer(name: str) -> bool:
    return name in INTEGER_FIELDS or name.startswith(("le_", "in_"))


def _unusual_text(value: Any, role: int) -> str:
    """Render a value that is not of its field's usual type; "" if it cannot be carried."""
    if isinstance(value, str):
        return string_text(str(value))
    if not isinstance(value, int | float):
        return ""
    if role == _INTEGER:
        whole = math.isfinite(value) and int(value) == value
        return f"{int(value)}i" if whole and _INT64_MIN <= value <= _INT64_MAX else ""
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        number = float(value)
    except OverflowError:
        return ""
    return repr(number).removesuffix(".0") if math.isfinite(number) else ""


def _quoted_json(value: Any) -> str:
    # JSON text has no control characters, so quoting it as JSON once more escapes exactly what
    # line protocol has escapes for: quotation marks and backslashes.
    return _encode_json(encode_value(value).decode()).decode()
