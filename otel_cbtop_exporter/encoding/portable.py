"""Values rebuilt from what JSON has: the careful way of `json_values.py`, whose rules it keeps.

The quick way is msgspec's encoder, so what that knows is written as it writes it, and a value does
not depend on what else is in its event.
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

# Nested deeper, a value is shown by its `str()`, or as `[...]` where secrets may be in it.
_MAX_DEPTH = 32

# Of a value with a container that is inside of itself.
_MOST_CONTAINERS = 10_000

NOT_ENCODABLE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)


class _HoldsItselfError(Exception):
    """A container is inside of itself."""


def portable(value: Any, *, has_secrets: bool = False) -> Any:
    """Rebuild a value from what JSON has.

    Args:
        value: Any.
        has_secrets: Whether what cannot be rebuilt key by key is named and not shown.
    """
    try:
        return _Rebuilder(has_secrets=has_secrets, most=None).rebuild(value)
    except _HoldsItselfError:
        # Followed along every path, a few maps that know each other are gigabytes.
        return _Rebuilder(has_secrets=has_secrets, most=_MOST_CONTAINERS).rebuild(value)


def integer(value: int) -> int | str:
    """Return a plain integer; hexadecimal digits if Python does not write it in decimal."""
    return int(value) if value.bit_length() <= MAX_INTEGER_BITS else hex(value)


def json_key(key: Any) -> str:
    """Return the key of an object that a key of a mapping becomes."""
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
        most: How many containers are written, after which `[...]` and `{...}` stand for them, as
            for one that is inside of itself; None for all, and for an error where one is.
    """

    def __init__(self, *, has_secrets: bool, most: int | None) -> None:
        self._has_secrets = has_secrets
        self._most = most
        self._written = 0
        # Those around the value that is being rebuilt, by their ids.
        self._around: set[int] = set()

    def rebuild(self, value: Any) -> Any:
        """Return a value of what JSON has.

        Raises:
            _HoldsItselfError: A container is inside of itself; not with `most`.
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
        if isinstance(value, enum.Enum):  # a Flag is a collection, too
            return self.rebuild(value.value)
        # Not every iterable: a generator would be used up, which is the application's to do, and
        # one that never ends would never let go of this thread.
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
        except NOT_ENCODABLE:  # for what is in it
            return f"<{type(value).__name__}>" if self._has_secrets else _shown(value)
        return self.rebuild(plain)

    def _unknown(self, value: Any) -> Any:
        """Return what is written for an object of which msgspec knows nothing."""
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
