"""Functions that render a whole line of one plan, generated from it as a dataclass is.

A loop over the fields of a histogram of 15 bounds takes 14 us a point, a function with the loop
written out 4; for a span 3.4 and 0.9. Whatever is not as usual (a boolean, a number that line
protocol cannot carry) makes such a function return None, and `line_protocol_fields.py` has the
last word.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from otel_cbtop_exporter.encoding.line_protocol_fields import (
    ADDED,
    INT64_MAX,
    INT64_MIN,
    INTEGER,
    Plan,
)
from otel_cbtop_exporter.encoding.line_protocol_text import string_text

__all__ = ["RenderLine", "generate"]

RenderLine = Callable[[str, dict[str, Any], str, str, str, str, int], "str | None"]
"""Called with the head, the fields, the texts of the fields that the encoder adds (attributes,
correlation id, metric, original time) and the point's time."""

# A float holds every integer up to here, and `repr` writes it without an exponent.
_EXACT = 2**53


@functools.lru_cache(maxsize=1_024)
def generate(plan: Plan, keys: tuple[str, ...], present: tuple[bool, ...]) -> RenderLine:
    """Return the function of events whose fields have these keys.

    Making one takes a millisecond, so every encoder of the process shares it.

    Args:
        plan: Of these events.
        keys: Of their fields, in the events' order.
        present: Which of the fields that the encoder adds are there, in the order of `ADDED`.
    """
    # No name of a field is part of the code, but as a literal.
    values = {key: f"v{number}" for number, key in enumerate(keys)}
    code = [
        "def render(head, fields, attributes, correlation_id, metric, original, time_ns):",
        f"    {''.join(f'{name}, ' for name in values.values())} = fields.values()",
    ]
    template = "{head} "
    separator = ""
    there = dict(zip(ADDED, present, strict=True))
    for name, role, key, prefix in plan:
        if key is None:
            if not there[name]:
                continue
            placed = "original" if name == "original_timestamp_ns" else name
        else:
            placed = values[key]
            code += _integer_code(placed) if role == INTEGER else _number_code(placed)
        literal = prefix.replace("{", "{{").replace("}", "}}")
        suffix = "i" if key is not None and role == INTEGER else ""
        template += f"{separator}{literal}{{{placed}}}{suffix}"
        separator = ","
    code.append(f"    return f{template + ' {time_ns}'!r}")
    namespace: dict[str, Any] = {"string_text": string_text}
    exec("\n".join(code), namespace)  # noqa: S102  the code above, with literals of our own making
    render: RenderLine = namespace["render"]
    return render


def _integer_code(name: str) -> list[str]:
    return [
        f"    if type({name}) is not int or not {INT64_MIN} <= {name} <= {INT64_MAX}:",
        "        return None",
    ]


def _number_code(name: str) -> list[str]:
    # Text comes first: ids and bodies are more than half of all that is no integer.
    return [
        f"    if type({name}) is str:",
        f"        {name} = string_text({name})",
        f"    elif type({name}) is float and {name} - {name} == 0.0:",
        f"        {name} = repr({name}).removesuffix('.0')",
        f"    elif type({name}) is not int or not -{_EXACT} <= {name} <= {_EXACT}:",
        "        return None",
    ]
