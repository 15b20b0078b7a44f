"""Rebuilds values from types that JSON has: the slow path of `json_values.py`, with its rules.

The fast path is msgspec's encoder. Types that msgspec supports are written here as msgspec writes
them, so the JSON of a value does not depend on which other values are in its event.
"""

from __future__ import annotations

import base64
import enum
import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from otel_cbtop_exporter.events import MAX_INTEGER_BITS
from otel_cbtop_exporter.tag_set import portable_text

__all__ = ["NOT_ENCODABLE", "integer", "json_key", "portable"]

# A container nested deeper becomes its `str()`; or `[...]` or `{...}`, if it may hold secrets or
# the value has a container inside itself.
_MAX_DEPTH = 32

# The most containers written of a value in which a container is inside itself.
_MOST_CONTAINERS = 10_000

NOT_ENCODABLE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)


class _HoldsItselfError(Exception):
    """A container is inside itself."""


def portable(value: Any, *, has_secrets: bool = False) -> Any:
    """Rebuild a value from types that JSON has.

    Args:
        value: Any value.
        has_secrets: Whether a value whose keys cannot be rebuilt one by one is only named, as
            `<type>`, `[...]` or `{...}`, and not shown by its `str()`.
    """
    try:
        return _Rebuilder(has_secrets=has_secrets, most=None).rebuild(value)
    except _HoldsItselfError:
        # Written out along every path, a few maps that refer to each other would be gigabytes.
        return _Rebuilder(has_secrets=has_secrets, most=_MOST_CONTAINERS).rebuild(value)


def integer(value: int) -> int | str:
    """Return a plain integer, or hexadecimal digits if it is too long to be written in decimal."""
    return int(value) if value.bit_length() <= MAX_INTEGER_BITS else hex(value)


def json_key(key: Any) -> str:
    """Return the JSON object key for a key of a mapping."""
    if isinstance(key, str):
        return portable_text(key)
    if isinstance(key, int) and not isinstance(key, bool | enum.Enum):
        return str(integer(key))
    with suppress(*NOT_ENCODABLE):
        (key,) = msgspec.to_builtins({key: None}, str_keys=True)
    return _shown(key)


class _Rebuilder:
    """Rebuilds one value.

    Args:
        has_secrets: See `portable`.
        most: How many containers are written. Further ones become `[...]` or `{...}`, and so does
            a container inside itself. None writes all, and raises for a container inside itself.
    """

    def __init__(self, *, has_secrets: bool, most: int | None) -> None:
        self._has_secrets = has_secrets
        self._most = most
        self._written = 0
        # The ids of the containers around the value that is being rebuilt.
        self._around: set[int] = set()

    def rebuild(self, value: Any) -> Any:
        """Return a value made of types that JSON has.

        Raises:
            _HoldsItselfError: A container is inside itself, and `most` is None.
        """
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return portable_text(value)
        if isinstance(value, int):
            return integer(value)
        if isinstance(value, float):
            return _float(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return base64.b64encode(value).decode("ascii")
        if isinstance(value, enum.Enum):  # before collections, because a Flag is one too
            return self.rebuild(value.value)
        # Not every iterable: a generator would be used up, although it is the application's, and
        # one that never ends would block this thread forever.
        if isinstance(value, Collection):
            return self._container(value)
        return self._object(value)

    def _container(self, value: Collection[Any]) -> Any:
        if id(value) in self._around:
            if self._most is None:
                raise _HoldsItselfError
            return _left_out(value)
        if self._most is not None and self._written >= self._most:
            return _left_out(value)
        if len(self._around) >= _MAX_DEPTH:
            is_shown = self._most is None and not self._has_secrets
            return _shown(value) if is_shown else _left_out(value)
        self._written += 1
        self._around.add(id(value))
        try:
            if isinstance(value, Mapping):
                return {json_key(key): self.rebuild(part) for key, part in value.items()}
            return [self.rebuild(part) for part in value]
        finally:
            self._around.remove(id(value))

    def _object(self, value: Any) -> Any:
        try:
            plain = msgspec.to_builtins(value, str_keys=True, enc_hook=self._unknown)
        except RecursionError:
            return f"<{type(value).__name__}>"
        except NOT_ENCODABLE:  # because of something inside it
            return f"<{type(value).__name__}>" if self._has_secrets else _shown(value)
        return self.rebuild(plain)

    def _unknown(self, value: Any) -> Any:
        """Return what is written for an object of a type that msgspec does not support."""
        is_known = isinstance(value, str | int | float | Collection)
        return self.rebuild(value) if is_known else _shown(value)


def _left_out(value: Collection[Any]) -> str:
    return "{...}" if isinstance(value, Mapping) else "[...]"


def _float(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _shown(value: Any) -> str:
    try:
        return portable_text(str(value))
    except Exception:  # noqa: BLE001  a foreign __str__ may raise anything, and must not reach the application
        return f"<{type(value).__name__}>"
