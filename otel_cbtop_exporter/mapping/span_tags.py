"""The tags of spans, span events and links: made once for each set of values.

Belongs here: which attributes of a span become tags, and how a span's tag set is found again.
Not here: which resource attributes become tags, and the text of a tag (`attributes.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from opentelemetry.trace import SpanKind
from opentelemetry.trace.status import StatusCode

from otel_cbtop_exporter.mapping.attributes import (
    MAX_CACHED_TAG_SETS,
    CacheBudget,
    TagCache,
    tag_text,
)
from otel_cbtop_exporter.tag_set import TagSet

__all__ = ["Shape", "SpanScope", "without_path"]


class SpanScope:
    """The tag sets for one resource and scope."""

    def __init__(
        self,
        tag_keys: frozenset[str],
        resource_tags: Mapping[str, str],
        scope_tags: Mapping[str, str],
        budget: CacheBudget,
    ) -> None:
        self._tag_keys = tag_keys
        self._resource_tags = resource_tags
        self._scope_tags = scope_tags
        self._budget = budget
        self._shapes: dict[tuple[str, ...], Shape] = {}
        self._others: TagCache[tuple[tuple[str, str], ...], TagSet] = TagCache(budget)

    def shape(self, keys: tuple[str, ...], numbers: frozenset[int] = frozenset()) -> Shape:
        """Return the shape of attributes with these keys; make it on first use.

        Args:
            keys: The keys of the attributes.
            numbers: Positions that `Shape.numbers` must include; if it lacks one, the shape is
                replaced.
        """
        shape = self._shapes.get(keys)
        if shape is None or not shape.numbers >= numbers:
            if len(self._shapes) >= MAX_CACHED_TAG_SETS // 64:
                self._shapes.clear()
            tag_keys = tuple(key for key in keys if key in self._tag_keys)
            shape = self._shapes[keys] = Shape(
                keys,
                tag_keys,
                numbers,
                pick=itemgetter(*tag_keys) if tag_keys else _nothing,
                # Usually the status code is the only number, and a call would take twice the time.
                number_at=min(numbers) if len(numbers) == 1 < len(tag_keys) else None,
                types_of=_type_picker(sorted(numbers), len(tag_keys)),
                has_path="http.route" not in keys and not _PATHS.isdisjoint(keys),
                tags=TagCache(self._budget),
            )
        return shape

    def span_tags(
        self,
        shape: Shape,
        key: tuple[Any, ...],
        kind: SpanKind,
        status: StatusCode,
        attributes: Mapping[str, Any],
    ) -> TagSet:
        """Return the tags of a span and cache them in its shape.

        Picked values that hold a number where the shape knows of none replace the shape instead.
        """
        tags = self._span_tag_set(key[0], kind, status, attributes)
        picked = [attributes[key] for key in shape.tag_keys]
        if all(isinstance(value, (str, int, float)) for value in picked):
            numbers = {i for i, value in enumerate(picked) if not isinstance(value, str)}
            if shape.numbers >= numbers:
                shape.tags.keep(key, tags)
            else:
                self.shape(shape.keys, shape.numbers | numbers)
        return tags

    def _span_tag_set(
        self, name: str, kind: SpanKind, status: StatusCode, attributes: Mapping[str, Any]
    ) -> TagSet:
        tags = dict(self._resource_tags)
        for key in self._tag_keys & attributes.keys():
            tags[key] = tag_text(attributes[key])
        tags.update(self._scope_tags)
        tags["span.name"] = name
        tags["span.kind"] = kind.name
        if status is not StatusCode.UNSET:
            tags["otel.status_code"] = status.name
        return TagSet(tags)

    def other_tags(self, own: tuple[tuple[str, str], ...]) -> TagSet:
        """Return the tags of a span event or link."""
        tags = self._others.get(own)
        if tags is None:
            tags = self._others.keep(
                own, TagSet({**self._resource_tags, **self._scope_tags, **dict(own)})
            )
        return tags


_PATHS = frozenset({"url.path", "http.target"})


def without_path(name: str, attributes: Mapping[str, Any]) -> str:
    """Return a span's name without its path, if the path is not a route.

    https://opentelemetry.io/docs/specs/semconv/http/http-spans/#name forbids names with such paths,
    but some instrumentations give them to requests for pages that do not exist: a scan for
    vulnerabilities would create a series for each path. The path is still in an attribute.
    """
    target = attributes.get("url.path") or attributes.get("http.target")
    if not target or "http.route" in attributes:
        return name
    path = str(target).partition("?")[0]
    return name.removesuffix(f" {path}") or name


class Shape(NamedTuple):
    """How to pick the values that become tags from attributes that have the same keys.

    Equal numbers of different types (1, 1.0, True) have different texts, so the key of a cached
    tag set includes the types of its numbers.

    Attributes:
        keys: The keys of the attributes.
        tag_keys: Those of the keys that become tags.
        numbers: Positions in `tag_keys` that have ever held a number.
        pick: Returns the values that become tags.
        number_at: The position of the number, if it is the only one among several values; or None.
        types_of: Returns the types of the numbers among the values; used if `number_at` is None.
        has_path: Whether the name of a server span may contain a path; see `without_path`.
        tags: Tag sets by name, kind, status, picked values, and the types of the numbers.
    """

    keys: tuple[str, ...]
    tag_keys: tuple[str, ...]
    numbers: frozenset[int]
    pick: Callable[[Mapping[str, Any]], Any]
    number_at: int | None
    types_of: Callable[[Any], Any]
    has_path: bool
    tags: TagCache[Any, TagSet]


def _nothing(_: Any) -> None:
    return None


def _type_picker(positions: Sequence[int], count: int) -> Callable[[Any], Any]:
    if not positions:
        return _nothing
    if count == 1:  # itemgetter gives a bare value for one key and a tuple for several
        return type
    return lambda values: tuple([type(values[at]) for at in positions])
