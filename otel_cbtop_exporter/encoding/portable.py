"""Values rebuilt from what JSON has: the careful way of `json_values.py`, whose rules it keeps.

The quick way is msgspec's encoder, so what that knows is written as it writes it, and a value does
not depend on what else is in its event.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import msgspec

__all__ = ["NOT_ENCODABLE", "integer", "key_text", "portable", "portable_text"]

# About 4,200 digits. Python refuses to write more than 4,300 in decimal.
_MAX_INTEGER_BITS = 14_000

# Nested deeper, a value is shown by its repr.
_MAX_DEPTH = 32

NOT_ENCODABLE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)


class _HoldsItselfError(Exception):
    """A container is inside of itself."""


def portable(value: Any) -> Any:
    """Rebuild a value from what JSON has."""
    try:
        return _Rebuilder(once=False).rebuild(value)
    except _HoldsItselfError:
        # Followed along every path, a few maps that know each other are gigabytes.
        return _Rebuilder(once=True).rebuild(value)


def portable_text(value: str) -> str:
    """Return a text without lone surrogates, as a plain `str`, which a subclass need not be."""
    return str.__str__(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def integer(value: int) -> int | str:
    """Return a plain integer; hexadecimal digits if Python does not write it in decimal."""
    return int(value) if value.bit_length() <= _MAX_INTEGER_BITS else hex(value)


def key_text(key: Any) -> str:
    """Return the key of an object that a key of a mapping becomes."""
    if isinstance(key, str):
        return portable_text(key)
    with suppress(*NOT_ENCODABLE):
        (key,) = msgspec.to_builtins({key: None}, str_keys=True)
    return _shown(key)


class _Rebuilder:
    """Rebuilds one value.

    Args:
        once: Write each container where it comes first, and `[...]` or `{...}` wherever it comes
            again; otherwise only one that is inside of itself is an error.
    """

    def __init__(self, *, once: bool) -> None:
        self._once = once
        self._depth = 0
        # They are held, so that an id cannot come to mean another one.
        self._met: dict[int, Any] = {}

    def rebuild(self, value: Any) -> Any:
        """Return a value of what JSON has.

        Raises:
            _HoldsItselfError: A container is inside of itself; not with `once`.
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
        # Not every iterable: a generator would be used up, which is the application's to do, and
        # one that never ends would never let go of this thread.
        if isinstance(value, Collection):
            return self._container(value)
        return self._object(value)

    def _container(self, value: Collection[Any]) -> Any:
        if id(value) in self._met:
            if not self._once:
                raise _HoldsItselfError
            return _again(value)
        if self._depth >= _MAX_DEPTH:
            return _again(value) if self._once else _shown(value)
        self._met[id(value)] = value
        self._depth += 1
        try:
            if isinstance(value, Mapping):
                return {key_text(key): self.rebuild(part) for key, part in value.items()}
            return [self.rebuild(part) for part in value]
        finally:
            self._depth -= 1
            if not self._once:
                del self._met[id(value)]

    def _object(self, value: Any) -> Any:
        try:
            plain = msgspec.to_builtins(value, str_keys=True, enc_hook=self._unknown)
        except RecursionError:
            return f"<{type(value).__name__}>"
        except NOT_ENCODABLE:
            return _shown(value)
        return self.rebuild(plain)

    def _unknown(self, value: Any) -> Any:
        """Return what is written for an object of which msgspec knows nothing."""
        is_known = isinstance(value, str | int | float | Collection)
        return self.rebuild(value) if is_known else _shown(value)


def _again(value: Collection[Any]) -> str:
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
