"""Attribute values as JSON, with a rule for everything that JSON or UTF-8 cannot carry.

Every encoder follows these rules:

- non-finite floats become the strings "NaN", "Infinity" and "-Infinity", as in protobuf's JSON;
- bytes become base64; sequences and sets become arrays; mappings become objects;
- lone surrogates become U+FFFD;
- integers keep all their digits, even beyond 64 bits; those of over 4,200 digits become hexadecimal
  texts, because Python does not write them in decimal;
- types that msgspec supports are written as msgspec writes them: a dataclass as an object, a time
  in ISO 8601, an Enum member as its value;
- any other object becomes its `str()`;
- a container inside itself becomes `[...]` or `{...}`;
- if some part of a value has no JSON, a container nested more than 32 deep in it becomes its
  `str()`, or `[...]` or `{...}` in a value with a container inside itself.
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

# Few enough for their text to be of a size for which malloc does not ask the kernel: that would
# cost 0.3 us a span.
_QUOTED_AT_ONCE = 128

# Separates texts while they are escaped together: JSON has no escape for this character, and hardly
# any value contains it. A row of them is found three times as fast as a single one, if searched for
# from the end: that search skips as many characters as it looks for.
_DELETE = b"\x7f"
_SEPARATOR = _DELETE * 12

# msgspec writes NaN, infinities and None all as null. Most bodies do not contain the word at all.
# The fastest way to see that is to search from the end, where the attributes are: 0.2 us a span.
NULL = b"null"

# Finds a null where JSON has a value: after `:`, `[` or `,`, and before `,`, `]` or `}`. The
# pattern starts with the plain word, and looks behind from there, because that is searched faster.
null_value = re.compile(rb"null(?<=[:\[,]null)[,\]}]").search


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
    """Say whether the JSON of objects may hold a null; the word in a text counts as well."""
    # Without an array, a null can only follow a key, and the longer pattern is found faster.
    return text.rfind(NULL if b"[" in text else b'":null') >= 0


def encode_quoted(value: Any) -> str:
    """Encode a value as JSON, then that JSON as a JSON text: a string field of line protocol.

    JSON contains no control characters, so the second step escapes exactly what line protocol
    escapes: quotation marks and backslashes.
    """
    return _encode(encode_value(value).decode()).decode()


def quoted_texts(values: Sequence[Any]) -> list[str]:
    """Encode each attribute map as `encode_quoted` does, without the quotation marks."""
    texts: list[str] = []
    for start in range(0, len(values), _QUOTED_AT_ONCE):
        some = values[start : start + _QUOTED_AT_ONCE]
        try:
            text = encoder.encode_lines(some)
            is_usual = _DELETE not in text and not may_hold_null(text)
        except NOT_ENCODABLE:
            is_usual = False
        if not is_usual:
            texts += [encode_quoted(value)[1:-1] for value in some]
            continue
        quoted = _encode(text.replace(b"\n", _SEPARATOR).decode())
        texts += quoted.decode()[1:].rsplit(_SEPARATOR.decode())
        texts.pop()  # the quotation mark at the end
    return texts
