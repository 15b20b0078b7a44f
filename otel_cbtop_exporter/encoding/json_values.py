"""Attribute values as JSON: what JSON or UTF-8 cannot carry has a rule here, for every encoder.

- non-finite floats become the strings "NaN", "Infinity" and "-Infinity", as in protobuf's JSON;
- bytes become base64; sequences and sets become arrays; mappings become objects;
- lone surrogates become U+FFFD;
- integers keep all their digits, beyond 64 bits too; those of over 4,200 are hexadecimal texts,
  because Python does not write them in decimal;
- what msgspec knows is written as it writes it: a dataclass as an object, a time by ISO 8601, a
  member of an Enum as its value;
- any other object becomes its `str()`;
- a container inside of itself becomes `[...]` or `{...}`;
- in a value of which some part has no JSON, a container that is nested more than 32 deep becomes
  its `str()`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from otel_cbtop_exporter.encoding.portable import NOT_ENCODABLE, portable
from otel_cbtop_exporter.tag_set import TagSet

__all__ = [
    "NULL",
    "encode_quoted",
    "encode_value",
    "encoder",
    "may_hold_null",
    "null_value",
    "quoted_texts",
]

# So that their text is not of a size for which malloc asks the kernel: 0.3 us a span.
_QUOTED_AT_ONCE = 128

# What stands between texts while they are escaped together: JSON has no escape for it, and hardly
# a value holds it.
_SEPARATOR = b"\x7f"

# msgspec writes NaN, infinities and None alike as null. Most bodies hold no such word, and from
# behind, where the attributes are, is the quickest way to see that: 0.2 us a span.
NULL = b"null"
null_value = re.compile(rb"null(?<=[:\[,]null)[,\]}]").search  # what begins with a text is quick


def _encode_hook(value: Any) -> Any:
    return value.json if type(value) is TagSet else portable(value)


encoder = msgspec.json.Encoder(enc_hook=_encode_hook)
_encode = encoder.encode


def encode_value(value: Any) -> bytes:
    """Encode an attribute map, or any attribute value, by the rules of this module."""
    try:
        body = _encode(value)
        if body.rfind(NULL) < 0 or not (body == NULL or null_value(body)):
            return body
    except NOT_ENCODABLE:
        pass
    return _encode(portable(value))


def may_hold_null(text: bytes) -> bool:
    """Look for a null in objects: True also for such a word in a text."""
    # Where there is no array it comes behind a key, and what is longer is found sooner.
    return text.rfind(NULL if b"[" in text else b'":null') >= 0


def encode_quoted(value: Any) -> str:
    """Encode a value, and its JSON once more as a JSON text: a string field of line protocol.

    JSON has no control characters, so that escapes exactly what line protocol has escapes for:
    quotation marks and backslashes.
    """
    return _encode(encode_value(value).decode()).decode()


def quoted_texts(values: Sequence[Any]) -> list[str]:
    """Return for each attribute map what `encode_quoted` does, without the quotation marks."""
    texts: list[str] = []
    for start in range(0, len(values), _QUOTED_AT_ONCE):
        some = values[start : start + _QUOTED_AT_ONCE]
        try:
            text = encoder.encode_lines(some)
            is_usual = _SEPARATOR not in text and not may_hold_null(text)
        except NOT_ENCODABLE:
            is_usual = False
        if not is_usual:
            texts += [encode_quoted(value)[1:-1] for value in some]
            continue
        quoted = _encode(text.replace(b"\n", _SEPARATOR).decode())
        texts += quoted.decode()[1:].split(_SEPARATOR.decode())
        texts.pop()  # the quotation mark at the end
    return texts
