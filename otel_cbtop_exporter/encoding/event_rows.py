"""The rows of a table as msgspec encodes them, each an event in JSON."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any

import msgspec

from otel_cbtop_exporter.encoding.json_values import encode_value
from otel_cbtop_exporter.event_table import EventTable
from otel_cbtop_exporter.events import SCHEMA_VERSION, MetricInfo
from otel_cbtop_exporter.tag_set import object_type

__all__ = ["json_rows"]


class _Row(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An event of a table as it is encoded.

    Attributes:
        tags: The JSON of its tag set.
        fields: The values, as an object that takes half of what a dict does.
    """

    measurement: str
    tags: msgspec.Raw
    fields: Any
    timestamp_ns: int
    schema_version: int
    correlation_id: str | None = None
    signal: str | None = None
    attributes: Mapping[str, Any] | None = None


class _Point(msgspec.Struct, frozen=True, gc=False, rename={"rest": "timestamp_ns"}):
    """A data point as it is encoded, which takes half of what it takes as a `_Row`.

    Attributes:
        tags: The JSON of its tag set.
        fields: As in `_Row`.
        rest: The time, and all that is behind it in the object.
    """

    measurement: str
    tags: msgspec.Raw
    fields: Any
    rest: msgspec.Raw


def json_rows(table: EventTable) -> list[_Row] | list[_Point]:
    """Return the objects to encode, one for each event."""
    if table.metric is not None:
        return _points(table, table.metric)
    return list(
        map(
            _Row,
            repeat(table.measurement),
            [tags.json for tags in table.tag_sets],
            map(object_type(table.keys), *table.columns),
            table.times_ns,
            repeat(SCHEMA_VERSION),
            table.trace_ids or repeat(None),
            repeat(table.signal),
            table.attributes or repeat(None),
        )
    )


def _points(table: EventTable, metric: MetricInfo) -> list[_Point]:
    cache = table.tag_sets.rendered
    tags_json = cache.get("json")
    if tags_json is None:
        tags_json = cache["json"] = [tags.json for tags in table.tag_sets]
    times_ns = table.times_ns
    end = f'"signal":"{table.signal}","metric":{_metric_json(metric)}'
    rests: Iterable[msgspec.Raw]
    if table.trace_ids is None and times_ns.count(times_ns[0]) == len(times_ns):
        # A collection has one time.
        rest = f'{times_ns[0]},"schema_version":{SCHEMA_VERSION},{end}'
        rests = repeat(msgspec.Raw(rest.encode()))
    else:
        traces: Iterable[str] = repeat("")
        if table.trace_ids:
            traces = [f'"correlation_id":"{one}",' if one else "" for one in table.trace_ids]
        rests = [
            msgspec.Raw(f'{time_ns},"schema_version":{SCHEMA_VERSION},{trace}{end}'.encode())
            for time_ns, trace in zip(times_ns, traces, strict=False)
        ]
    fields = map(object_type(table.keys), *table.columns)
    return list(map(_Point, repeat(table.measurement), tags_json, fields, rests))


@functools.lru_cache(maxsize=4_096)
def _metric_json(metric: MetricInfo) -> str:
    return encode_value(metric).decode()
