"""The generated parts of the documentation; `python -m tests.docs_tables` writes them.

A generated part is between `<!-- NAME -->` and `<!-- /NAME -->`; test_docs.py checks that it is
current.
"""

import inspect
import json
import re
import typing
from pathlib import Path

from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.env import PREFIX
from otel_cbtop_exporter.options import is_group, option_types
from tests.golden.cases import FOLDER

ROOT = Path(__file__).parents[1]

GROUPS = {
    "": "General",
    "mapping": "Mapping",
    "retry": "Retry",
    "spool": "Spool",
    "jsonlines": "JSON Lines",
    "console": "Console",
    "influxdb": "InfluxDB",
    "kafka": "Kafka",
}


def meanings(cls):
    """Read the Attributes section of a group's docstring."""
    section = inspect.getdoc(cls).partition("Attributes:\n")[2]
    found = {}
    name = None
    for line in section.splitlines():
        if match := re.match(r"    (\w+): (.*)", line):
            name = match[1]
            found[name] = match[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def shown(value):
    if value is None or value in ((), {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{','.join(value)}`" if len(value) < 3 else "see below"
    return f"`{value}`"


def choices(hint):
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return [choice for part in typing.get_args(hint) for choice in choices(part)]


def meaning(told, hint):
    named = [f"`{choice}`" for choice in choices(hint)]
    if all(choice in told for choice in named):
        return told
    number = "One or more" if typing.get_origin(hint) is tuple else "One"
    return f"{told} {number} of {', '.join(named)}."


def variable_rows():
    for name, group in [("", ExporterConfig), *option_types(ExporterConfig).items()]:
        if not is_group(group):
            continue
        told = meanings(group)
        defaults = group()
        yield f"| **{GROUPS[name]}** | | |"
        for option, hint in option_types(group).items():
            if is_group(hint):
                continue
            variable = PREFIX + "_".join(filter(None, (name, option))).upper()
            default = shown(getattr(defaults, option))
            yield f"| `{variable}` | {default} | {meaning(told[option], hint)} |"


def variables():
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *variable_rows()])


def long_defaults():
    mapping = ExporterConfig().mapping
    return "\n".join(
        f"- `mapping.{name}`: " + ", ".join(f"`{key}`" for key in getattr(mapping, name))
        for name in ("resource_tags", "span_tags")
    )


EXAMPLES = {
    "Metric (sum)": ("metric_counter", 0),
    "Metric (histogram)": ("metric_histogram", 0),
    "Exemplar": ("metric_histogram_exemplars", 2),
    "Span": ("span", 0),
    "Span event": ("span_error", 1),
    "Span link": ("span_links", 2),
    "Log record": ("log_exception", 0),
    "Hand-made sample": ("sample", 0),
}


def examples():
    parts = []
    for title, (case, line) in EXAMPLES.items():
        event = json.loads((FOLDER / f"{case}.jsonl").read_text().splitlines()[line])
        text = json.dumps(event, ensure_ascii=False)
        parts.append(f"**{title}**\n\n```json\n{text}\n```\n")
    return "\n".join(parts).strip()


def points():
    cases = ("metric_counter", "metric_histogram", "span", "log_exception", "sample")
    lines = [(FOLDER / f"{case}.lp").read_text().splitlines()[0] for case in cases]
    return "\n".join(["```text", *lines, "```"])


GENERATED = {
    "README.md": {"variables": variables, "long defaults": long_defaults, "examples": examples},
    "docs/influxdb.md": {"points": points},
}


def filled(text, parts):
    for name, make in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        assert pattern.search(text), f"no part {name}"
        text = pattern.sub(lambda match, make=make: f"{match[1]}{make()}\n{match[2]}", text)
    return text


if __name__ == "__main__":
    for file, parts in GENERATED.items():
        path = ROOT / file
        path.write_text(filled(path.read_text(), parts))
