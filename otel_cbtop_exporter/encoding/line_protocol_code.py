"""Functions that render the rows of a table, generated from its fields as a dataclass is.

A loop over the fields of a histogram of 15 bounds takes 14 us a point, a function with the loop
written out 1; for a span 3.4 and 0.9. What these functions leave out is what tables promise:
nothing in them is of another type than its field, or cannot be carried.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from otel_cbtop_exporter.encoding.line_protocol_fields import (
    ADDED,
    ID,
    INTEGER,
    NUMBER,
    number_text,
    plan_fields,
    quoted_json,
)
from otel_cbtop_exporter.encoding.line_protocol_text import string_text
from otel_cbtop_exporter.event_table import Row

__all__ = ["RenderRows", "number_texts", "render_rows"]

RenderRows = Callable[[Sequence[Row], Iterable[Any]], list[bytes]]

_encode_json = msgspec.json.Encoder().encode


@functools.lru_cache(maxsize=1_024)
def render_rows(keys: tuple[str, ...], *, is_metric: bool, has_info: bool) -> Callable[..., Any]:
    """Return the function that renders rows whose fields have these keys.

    It is called with the rows, and for each of them its head, its time, and a fourth: for metrics
    the texts of its values, for others the time that it was moved from as text, or ""; then with
    the text of the field `metric`. It returns the lines.

    Making one takes a millisecond, so every encoder of the process shares it.

    Args:
        keys: Of the fields, in the rows' order.
        is_metric: Whether all values are numbers, whose texts are given.
        has_info: Whether there is a field `metric`.
    """
    # No name of a field is part of the code, but as a literal.
    names = {key: f"v{number}" for number, key in enumerate(keys)}
    values = f"({''.join(f'{name}, ' for name in names.values())})"
    if not is_metric:
        names = {key: f"fields.{name}" for key, name in names.items()}
    template, before = "", False
    optional: dict[str, str] = {}
    for name, role, key, prefix in plan_fields(keys, hand_made=False):
        literal = prefix.replace("{", "{{").replace("}", "}}")
        if key is not None:
            value = _value_code(names[key], role, is_text=is_metric)
        elif name == "metric":
            if not has_info:
                continue
            value = "{metric}"
        elif is_metric and name != "correlation_id":
            continue  # it has no attributes, and is never moved
        else:
            # May be absent: it brings its comma, behind it until there is a field before.
            piece = f",{literal}{_ADDED_CODE[name]}" if before else f"{literal}{_ADDED_CODE[name]},"
            optional[name] = f"        {name} = f{piece!r} if {name} else ''"
            template += f"{{{name}}}"
            continue
        template += f",{literal}{value}" if before else f"{literal}{value}"
        before = True
    line = f"f{'{head} ' + template + ' {time_ns}'!r}.encode()"
    if is_metric:
        code = [
            "def render(rows, heads, times_ns, texts, metric):",
            "    lines = []",
            "    add = lines.append",
            f"    for row, head, time_ns, {values} in zip(rows, heads, times_ns, texts):",
            "        correlation_id = row.correlation_id",
            optional["correlation_id"],
            f"        add({line})",
            "    return lines",
        ]
    else:
        code = [
            "def render(rows, heads, times_ns, originals, metric):",
            "    lines = []",
            "    add = lines.append",
            "    for row, head, time_ns, original_timestamp_ns in zip(",
            "        rows, heads, times_ns, originals",
            "    ):",
            "        fields, attributes = row.fields, row.attributes",
            "        correlation_id = row.correlation_id",
            *optional.values(),
            f"        add({line})",
            "    return lines",
        ]
    namespace: dict[str, Any] = {
        "number_text": number_text,
        "quoted_json": quoted_json,
        "string_text": string_text,
    }
    exec("\n".join(code), namespace)  # noqa: S102  the code above, with literals of our own making
    function: Callable[..., Any] = namespace["render"]
    return function


_ADDED_CODE = {
    "attributes": "{quoted_json(attributes)}",
    "correlation_id": '"{correlation_id}"',
    "original_timestamp_ns": "{original_timestamp_ns}i",
}
assert {*_ADDED_CODE, "metric"} == {*ADDED}


def _value_code(name: str, role: int, *, is_text: bool) -> str:
    if role == INTEGER:
        return f"{{{name}}}i"
    if is_text:
        return f"{{{name}}}"
    if role == ID:
        return f'"{{{name}}}"'
    return f"{{number_text({name})}}" if role == NUMBER else f"{{string_text({name})}}"


def number_texts(rows: Sequence[Row]) -> list[str]:
    """Return the texts of all values of rows of numbers, one after the other.

    As `number_text` has them, at a tenth of what `repr` takes for each.
    """
    numbers: list[float] = []
    for row in rows:
        numbers += msgspec.structs.astuple(row.fields)
    encoded = _encode_json(numbers).decode()
    texts = f"{encoded[1:-1]},".replace(".0,", ",").split(",")
    texts.pop()
    if "e" in encoded or "0.0000" in encoded:  # where the two differ in how they write it
        texts = [
            number_text(float(text)) if "e" in text or "0.0000" in text else text for text in texts
        ]
    return texts
