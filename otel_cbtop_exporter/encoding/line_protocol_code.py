"""Functions that render the rows of a table, generated from its fields as a dataclass is.

A loop over the fields of a histogram of 15 bounds takes 14 us a point, a function with the loop
written out 1; for a span 3.4 and 0.9. What these functions leave out is what tables promise:
nothing in them is of another type than its field, or cannot be carried.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import msgspec

from otel_cbtop_exporter.encoding.event_json import encode_quoted
from otel_cbtop_exporter.encoding.line_protocol_fields import (
    ADDED,
    ID,
    INTEGER,
    NUMBER,
    number_text,
    plan_fields,
)
from otel_cbtop_exporter.encoding.line_protocol_text import string_text
from otel_cbtop_exporter.event_table import Row

__all__ = ["RenderRows", "number_texts", "render_rows"]

RenderRows = Callable[
    [
        Sequence[Row],
        Iterable[str],
        Iterable[int],
        Iterable[str],
        str,
        Iterable[Sequence[str] | None],
    ],
    list[bytes],
]
"""Called with rows, and for each of them its head, its time, and the time that it was moved from as
text (or ""), with the text of the field `metric`, and for rows of numbers with each row's texts."""

_encode_json = msgspec.json.Encoder().encode

# How the fields that the encoder adds are written; a piece of code that is part of an f-string.
_ADDED_CODE = {
    "attributes": "{encode_quoted(row.attributes)}",
    "correlation_id": '"{row.correlation_id}"',
    "metric": "{metric}",
    "original_timestamp_ns": "{original}i",
}
_CONDITION = {
    "attributes": "row.attributes",
    "correlation_id": "row.correlation_id",
    "original_timestamp_ns": "original",
}


@functools.lru_cache(maxsize=1_024)
def render_rows(
    keys: tuple[str, ...], added: tuple[bool | None, ...], *, numbers: bool
) -> RenderRows:
    """Return the function that renders rows whose fields have these keys.

    Making one takes a millisecond, so every encoder of the process shares it.

    Args:
        keys: Of the fields, in the rows' order.
        added: For each field in `ADDED`, whether every row has it; None if some have.
        numbers: Whether all values are numbers, whose texts are given.
    """
    # No name of a field is part of the code, but as a literal.
    names = {key: f"v{number}" for number, key in enumerate(keys)}
    texts = f"({''.join(f'{name}, ' for name in names.values())})" if numbers else "_"
    there = dict(zip(ADDED, added, strict=True))
    template, before = "", False
    optional: list[str] = []
    for name, role, key, prefix in plan_fields(keys, hand_made=False):
        value = prefix.replace("{", "{{").replace("}", "}}")
        if key is not None:
            value += _value_code(names[key], role, numbers=numbers)
        elif there[name] is False:
            continue
        else:
            value += _ADDED_CODE[name]
            if there[name] is None:
                # It brings its comma: behind it, until there is a field before.
                piece = f",{value}" if before else f"{value},"
                optional.append(f"        {name} = f{piece!r} if {_CONDITION[name]} else ''")
                template += f"{{{name}}}"
                continue
        template += f",{value}" if before else value
        before = True
    code = [
        "def render(rows, heads, times_ns, originals, metric, all_texts):",
        "    lines = []",
        "    add = lines.append",
        f"    for row, head, time_ns, original, {texts} in zip(",
        "        rows, heads, times_ns, originals, all_texts",
        "    ):",
        "        fields = row.fields",
        *optional,
        f"        add(f{'{head} ' + template + ' {time_ns}'!r}.encode())",
        "    return lines",
    ]
    namespace: dict[str, Any] = {
        "encode_quoted": encode_quoted,
        "number_text": number_text,
        "string_text": string_text,
    }
    exec("\n".join(code), namespace)  # noqa: S102  the code above, with literals of our own making
    render: RenderRows = namespace["render"]
    return render


def _value_code(name: str, role: int, *, numbers: bool) -> str:
    value = name if numbers else f"fields.{name}"
    if role == INTEGER:
        return f"{{{value}}}i"
    if numbers:
        return f"{{{value}}}"
    if role == ID:
        return f'"{{{value}}}"'
    return f"{{number_text({value})}}" if role == NUMBER else f"{{string_text({value})}}"


def number_texts(rows: Sequence[Row]) -> list[str]:
    """Return the texts of all values of rows of numbers, one after the other.

    As `number_text` has them, at a tenth of what `repr` takes for each.
    """
    values = chain.from_iterable(map(msgspec.structs.astuple, [row.fields for row in rows]))
    encoded = _encode_json(list(values)).decode()
    texts = f"{encoded[1:-1]},".replace(".0,", ",").split(",")
    texts.pop()
    if "e" in encoded or "0.0000" in encoded:  # where the two differ in how they write it
        texts = [
            number_text(float(text)) if "e" in text or "0.0000" in text else text for text in texts
        ]
    return texts
