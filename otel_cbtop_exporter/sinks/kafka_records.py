"""Events as Kafka records: which topic, which key, which headers.

Not here: how records reach a broker (`kafka.py`), and the prefix for a schema registry, which
is put before the value at write time, because encoding contacts no server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from otel_cbtop_exporter.config import KafkaConfig
from otel_cbtop_exporter.encoding.event_json import encode_events
from otel_cbtop_exporter.event_batch import EventRun, Events, Part, tags_of
from otel_cbtop_exporter.events import OF_A_TRACE, SIGNAL_NAMES, Event
from otel_cbtop_exporter.sink_options import NOT_IN_TOPIC, TOPIC_TAG
from otel_cbtop_exporter.sinks.base import Block, Encoded, Record, Records
from otel_cbtop_exporter.tag_set import TagSet

__all__ = ["RecordMaker"]

_LONGEST_TOPIC = 249
_MISSING = "unknown"

# An id of zeros means that there is none.
_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")
_SPAN_ID = re.compile(r"(?!0{16})[0-9a-f]{16}")
_SAMPLED = frozenset({"span", "span_event", "span_link"})


class RecordMaker:
    """Makes one record of each event; thread-safe.

    Args:
        options: `topic`, `headers` and `event_headers` are read.
    """

    def __init__(self, options: KafkaConfig) -> None:
        self._topic = _topics(options.topic)
        self._headers = tuple((key, text.encode()) for key, text in options.headers.items())
        self._has_event_headers = options.event_headers
        # With a registry's prefix before it, the value is not JSON.
        is_json = options.schema_registry_url is None
        self._content_type = (("content-type", b"application/json"),) if is_json else ()

    def encode(self, events: Sequence[Event]) -> Encoded:
        """Make the records of events, in order; an event that JSON cannot carry is rejected."""
        batch = Events.of(events)
        bodies, refused = encode_events(batch)
        if isinstance(self._topic, dict) and not self._has_event_headers:
            records = Records(
                Block(
                    self._topic[part.signal],
                    part.signal,
                    bodies[place],
                    part.times_ns,
                    _keys(part),
                    [self._headers] * len(part) if self._headers else None,
                )
                for part, place in batch.placed_parts()
            )
        else:
            records = Records.of(
                [self._record(event, body) for event, body in zip(batch, bodies, strict=True)]
            )
        return Encoded.from_records(refused, records)

    def _record(self, event: Event, body: bytes) -> Record:
        topic = self._topic[event.signal] if isinstance(self._topic, dict) else self._topic(event)
        headers = self._headers_of(event) if self._has_event_headers else self._headers
        return Record(body, _key(event), topic, event.timestamp_ns, headers, event.signal)

    def _headers_of(self, event: Event) -> tuple[tuple[str, bytes], ...]:
        headers = (
            *self._headers,
            ("schema_version", b"%d" % event.schema_version),
            *self._content_type,
        )
        # Logs and exemplars may be of a trace that was not sampled; spans would not be exported.
        if event.signal not in _SAMPLED:
            return headers
        span_id = str(event.fields.get("span_id", ""))
        trace_id = event.correlation_id or ""
        if not (_TRACE_ID.fullmatch(trace_id) and _SPAN_ID.fullmatch(span_id)):
            return headers
        # https://www.w3.org/TR/trace-context/#traceparent-header
        return (*headers, ("traceparent", f"00-{trace_id}-{span_id}-01".encode()))


def _keys(part: Part) -> list[bytes | None]:
    if isinstance(part, EventRun):
        return [_key(event) for event in part]
    if part.signal in OF_A_TRACE:
        # A table's trace ids are always hex digits.
        trace_ids = part.trace_ids or [None] * len(part)
        return [trace_id.encode() if trace_id else None for trace_id in trace_ids]
    return [_series(part.measurement, tags) for tags in part.tag_sets]


def _key(event: Event) -> bytes | None:
    """Return the key that keeps a trace, or a series, in order within one partition."""
    if event.signal in OF_A_TRACE:
        return event.correlation_id.encode("utf-8", "replace") if event.correlation_id else None
    return _series(event.measurement, tags_of(event))


def _series(measurement: str, tags: TagSet) -> bytes:
    """Return the key of a series: the measurement, then its sorted tags as JSON."""
    slot = ("kafka.key", measurement)
    key: bytes | None = tags.rendered.get(slot)
    if key is None:
        key = tags.rendered[slot] = measurement.encode("utf-8", "replace") + bytes(tags.json)
    return key


def _topics(template: str) -> dict[str | None, str] | Callable[[Event], str]:
    """Return the topic of each signal, or a function that makes an event's topic of its tags."""
    if set(TOPIC_TAG.findall(template)) <= {"signal"}:
        return {signal: _filled(template, kind, {}) for signal, kind in SIGNAL_NAMES.items()}

    def topic_of(event: Event) -> str:
        kind = SIGNAL_NAMES[event.signal]
        tags = tags_of(event)
        slot = ("kafka.topic", template, kind)
        topic: str | None = tags.rendered.get(slot)
        if topic is None:
            topic = tags.rendered[slot] = _filled(template, kind, tags)
        return topic

    return topic_of


def _filled(template: str, kind: str, tags: Mapping[str, str]) -> str:
    def part(match: re.Match[str]) -> str:
        name = match.group(1)
        text = kind if name == "signal" else tags.get(name) or _MISSING
        return NOT_IN_TOPIC.sub("_", text)

    topic = TOPIC_TAG.sub(part, template)[:_LONGEST_TOPIC]
    return topic if topic.strip(".") else topic.replace(".", "_")  # "." and ".." are not allowed
