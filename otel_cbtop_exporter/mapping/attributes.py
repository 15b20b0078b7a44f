"""Attributes and tags: the code that all three signals share.

Belongs here: which resource attributes become tags, the text of a tag, ids as hex, redaction,
and the caches that make repeated tag sets free.
"""

from __future__ import annotations

import base64
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from fnmatch import translate
from operator import index
from typing import Any, Generic, TypeVar

import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_cbtop_exporter.encoding.json_values import encode_value
from otel_cbtop_exporter.encoding.portable import integer, json_key, portable
from otel_cbtop_exporter.events import FieldValue
from otel_cbtop_exporter.tally import Tally

__all__ = [
    "MAX_CACHED_TAG_SETS",
    "REDACTED",
    "CacheBudget",
    "Loss",
    "Redaction",
    "ScopeCache",
    "TagCache",
    "finite_number",
    "hex_span_id",
    "hex_trace_id",
    "is_finite",
    "plain_time",
    "present",
    "tag_text",
]

REDACTED = "[redacted]"

# How many tag sets a mapper keeps before it drops all of them: about 50 MB at worst. No process
# with sane tags comes near it.
MAX_CACHED_TAG_SETS = 65_536
_MAX_SCOPES = 1_024

_INSTANCE_ID = "service.instance.id"

Loss = Callable[[str, str, Tally], None]
"""Called with a reason, the name of the metric, and the events lost; none if only a field is."""

_K = TypeVar("_K")
_S = TypeVar("_S")
_V = TypeVar("_V")


def hex_trace_id(trace_id: int | None) -> str | None:
    """Return 32 lower-case hex digits, as in W3C Trace Context; None for 0, which is not an id."""
    return trace_id.to_bytes(16, "big").hex() if trace_id else None


def hex_span_id(span_id: int) -> str:
    """Return 16 lower-case hex digits, as in W3C Trace Context."""
    return span_id.to_bytes(8, "big").hex()


def plain_time(time_ns: Any) -> Any:
    """Convert a time of any integer type, such as numpy's, to `int`; return others unchanged."""
    try:
        return index(time_ns)
    except TypeError:
        return time_ns


def present(fields: Mapping[str, FieldValue | None]) -> dict[str, FieldValue]:
    """Return the fields whose value is not None."""
    return {key: value for key, value in fields.items() if value is not None}


def is_finite(value: float) -> bool:
    """Say whether a number is neither NaN nor infinite; integers of any size are finite."""
    return value - value == 0


def finite_number(value: Any) -> float | None:
    """Return a value as a finite int or float, or None; foreign number types become float."""
    kind = type(value)
    if kind is float:
        return value if value - value == 0.0 else None
    if kind is not int:
        try:
            value = int(value) if isinstance(value, int) else float(value)
        except (TypeError, ValueError, OverflowError):
            return None
    return value if is_finite(value) else None


def tag_text(value: Any) -> str:
    """Return an attribute value as the text of a tag; "" if the tag is to be left out."""
    if isinstance(value, str):
        return str.__str__(value)  # not `str()`, which a subclass such as an Enum may override
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(integer(value))
    if isinstance(value, float):
        return repr(float(value) + 0.0)  # -0.0 equals 0.0, so both give the same tag
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    text = encode_value(value).decode()
    return msgspec.json.decode(text, type=str) if text.startswith('"') else text


class Redaction:
    """Replaces the values of attributes whose keys match a glob pattern.

    Args:
        patterns: Case-sensitive globs; with none of them, no attribute is looked at.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._match = _any_of(patterns)
        self._verdicts: dict[str, bool] = {}
        self.active = bool(patterns)

    def apply(self, attributes: Mapping[str, Any], *, apart: bool = False) -> Mapping[str, Any]:
        """Return the attributes with matching values replaced, also inside nested values.

        Args:
            attributes: Any attributes.
            apart: Keep series distinct whose redacted values differ. The replacement then
                contains digits that are the same for equal values, and mean nothing outside
                this process.
        """
        if not self.active:
            return attributes
        return {
            key: (_stand_in(value) if apart else REDACTED)
            if self._matches(key)
            else self.inside(value)
            for key, value in attributes.items()
        }

    def value(self, key: str, value: Any) -> Any:
        """Return the value of a single key as `apply` would; None stays None."""
        return REDACTED if value is not None and self._matches(key) else self.inside(value)

    def inside(self, value: Any) -> Any:
        """Return a value with the values of matching keys replaced in every object of its JSON."""
        if value is None or isinstance(value, str | int | float):
            return value
        # A value without keys in Python may have some in JSON: a dataclass does.
        return self._replaced(portable(value, has_secrets=True))

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: REDACTED if self._matches(key) else self._replaced(part)
                for key, part in value.items()
            }
        return list(map(self._replaced, value)) if isinstance(value, list) else value

    def _matches(self, key: Any) -> bool:
        verdict = self._verdicts.get(key)
        if verdict is None:
            if len(self._verdicts) >= MAX_CACHED_TAG_SETS:
                self._verdicts.clear()
            verdict = self._verdicts[key] = self._match(json_key(key)) is not None
        return verdict


# Salts the hash that stands for a redacted value, so that nobody can find the value by trying.
_SALT = os.urandom(16).hex()


def _stand_in(value: Any) -> str:
    return f"[redacted:{hash(_SALT + tag_text(value)) & 0xFFFF_FFFF_FFFF:012x}]"


class CacheBudget:
    """How many tag sets a mapper may keep in all of its caches together.

    Args:
        limit: The number it may keep.

    Attributes:
        used: The number it keeps.
    """

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class TagCache(dict[_K, _V]):
    """Tag sets by what they were made from; `ScopeCache` drops all of them when it is full.

    Args:
        budget: The mapper's budget, in which they are counted.
    """

    def __init__(self, budget: CacheBudget) -> None:
        super().__init__()
        self._budget = budget

    def keep(self, key: _K, value: _V) -> _V:
        """Store and return a tag set, or a value that contains one."""
        if self._budget.used < self._budget.limit:  # within a batch; the next one begins anew
            self[key] = value
            self._budget.used += 1
        return value


class ScopeCache(Generic[_S]):
    """Caches what a mapper keeps for each resource and scope.

    Args:
        resource_tags: Globs of the resource attributes that become tags.
        redaction: Applied to resource and scope attributes before they become tags.
        make: Makes the cached object for one resource and scope. Called with the resource's
            tags, which attributes of the data override, with the scope's tags, which override
            those attributes, and with the budget that the object's caches count in.
    """

    def __init__(
        self,
        resource_tags: Sequence[str],
        redaction: Redaction,
        make: Callable[[Mapping[str, str], Mapping[str, str], CacheBudget], _S],
    ) -> None:
        self._match = _any_of(resource_tags)
        self._redaction = redaction
        self._make = make
        self._budget = CacheBudget(MAX_CACHED_TAG_SETS)
        self._known: dict[
            tuple[int, int, int], tuple[Resource, InstrumentationScope | None, _S]
        ] = {}

    def of(self, resource: Resource, scope: InstrumentationScope | None) -> _S:
        """Return the object of a resource and scope; make it on first use."""
        # With the process id, because a forked child has its own instance id.
        key = (id(resource), id(scope), os.getpid())
        known = self._known.get(key)
        # The entry references both objects, so that their ids cannot be reused by others.
        if self._budget.used >= self._budget.limit or len(self._known) >= _MAX_SCOPES:
            self._known.clear()
            self._budget = CacheBudget(self._budget.limit)
        elif known is not None and known[0] is resource and known[1] is scope:
            return known[2]
        made = self._make(self._resource_tags(resource), self._scope_tags(scope), self._budget)
        self._known[key] = (resource, scope, made)
        return made

    def make_room(self, items: int) -> None:
        """Let the caches hold twice as many tag sets as a batch has items.

        Every metric series comes again in the next collection. A cache too small for all of them
        would have dropped each one by then.
        """
        self._budget.limit = max(MAX_CACHED_TAG_SETS, 2 * items)

    def _resource_tags(self, resource: Resource) -> dict[str, str]:
        """Return the resource's tags.

        They always include `service.instance.id`, whatever the globs say. If the resource has none,
        or it is redacted, it is a random one for this process, so that two processes never share
        a series.
        """
        attributes = self._redaction.apply(resource.attributes)
        tags = {key: tag_text(value) for key, value in attributes.items() if self._match(key)}
        own_id = tag_text(attributes.get(_INSTANCE_ID))
        is_told = own_id and own_id != REDACTED
        tags[_INSTANCE_ID] = own_id if is_told else _process_instance_id()
        return tags

    def _scope_tags(self, scope: InstrumentationScope | None) -> dict[str, str]:
        if scope is None:
            return {}
        # As in OpenTelemetry's Prometheus mapping: scopes that differ in an attribute are
        # different streams, and must not share series.
        attributes = self._redaction.apply(scope.attributes or {}, apart=True)
        tags = {f"otel.scope.{key}": tag_text(value) for key, value in attributes.items()}
        tags["otel.scope.name"] = tag_text(scope.name)
        tags["otel.scope.version"] = tag_text(scope.version)
        return {key: text for key, text in tags.items() if text}


_instance: tuple[int, str] = (0, "")


def _process_instance_id() -> str:
    global _instance  # noqa: PLW0603  one for the process, made anew after a fork
    pid = os.getpid()
    if _instance[0] != pid:
        _instance = (pid, str(uuid.uuid4()))
    return _instance[1]


def _any_of(patterns: Sequence[str]) -> Callable[[str], Any]:
    return re.compile("|".join(map(translate, patterns)) or r"(?!)").match
