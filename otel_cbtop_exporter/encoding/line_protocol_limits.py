"""How long a text may be: InfluxDB 2.x refuses a whole point for a string of over 1 MiB.

1.8 accepts longer ones, but a point must not depend on the server it is sent to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from otel_cbtop_exporter.encoding.json_values import encode_value
from otel_cbtop_exporter.encoding.line_protocol_text import cut_text

__all__ = ["MAX_STRING_BYTES", "may_be_too_long", "shortened"]

MAX_STRING_BYTES = 1024 * 1024
"""InfluxDB's `MaxFieldValueLength`."""

# What is kept of a text if the attributes together are too long.
_KEPT_BYTES = 64 * 1024


def may_be_too_long(texts: Sequence[str]) -> bool:
    """Say whether one of the texts may be too long, with four bytes per character at most."""
    return max(map(len, texts)) > MAX_STRING_BYTES // 4


def shortened(attributes: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
    """Shorten attributes until their JSON is no longer than a string may be.

    The largest values go first: a text is cut at 64 KiB, anything else is left out. If that is not
    enough, texts are left out too.

    Returns:
        The attributes, and how many values were cut or left out.
    """
    left = dict(attributes)
    sizes = {key: len(encode_value({key: value})) for key, value in left.items()}
    total = sum(sizes.values())
    changed: set[str] = set()
    for is_cut in (True, False):
        for key in sorted(left, key=sizes.__getitem__, reverse=True):
            if total <= MAX_STRING_BYTES:
                return left, len(changed)
            value = left.pop(key)
            total -= sizes[key]
            if is_cut and isinstance(value, str):
                left[key] = cut_text(str.__str__(value), _KEPT_BYTES)
                sizes[key] = len(encode_value({key: left[key]}))
                total += sizes[key]
                if left[key] == value:
                    continue
            changed.add(key)
    return left, len(changed)
