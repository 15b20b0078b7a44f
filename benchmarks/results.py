"""Results as `results.md`, with the machine and the versions that they depend on."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.measure import Report, Row, figure

_PACKAGES = (
    "opentelemetry-sdk",
    "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry-exporter-otlp-json-file",
    "msgspec",
    "influxdb-client",
    "confluent-kafka",
    "protobuf",
)


def markdown(reports: Sequence[Report]) -> str:
    """Return all reports as one page."""
    rows = [row for report in reports for row in report.rows]
    parts = [
        "# What the exporter costs",
        (f"Made by `make bench` on {dt.datetime.now(dt.timezone.utc):%d %B %Y}: {machine()}."),
        (
            "Each benchmark in a process of its own, the same data in the same run, interleaved; "
            "figures are minima, with medians in "
            "brackets, and ratios are of minima, because they repeat on a machine that does "
            "other things as well. Mapping and encoding is called three times in a row on the "
            "same data, so its minimum is of warm caches, and its median tells of the others. The "
            "gate is what has to be reached, the goal what was aimed for. ![Chart](results.svg)"
        ),
        "## Targets",
        _table(
            ["work", "ours", "against", "theirs", "measured", "gate", "goal", "verdict"],
            [_cells(row) for row in rows],
        ),
    ]
    for report in reports:
        parts += [f"## {report.title}", *report.notes]
        if report.table:
            parts.append(_table(report.table[0], report.table[1:]))
        for curve in report.curves:
            xs = sorted({x for points in curve.lines.values() for x, _ in points})
            parts.append(
                _table(
                    [f"{curve.title}: {curve.y_label}", *(f"{x:g} {curve.x_label}" for x in xs)],
                    [
                        [name, *(figure(dict(points)[x]) for x in xs)]
                        for name, points in curve.lines.items()
                    ],
                )
            )
    return "\n\n".join(parts) + "\n"


def machine() -> str:
    """Describe the machine and the versions that the figures depend on."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    return ", ".join(
        [
            f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
            f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}",
            *versions,
        ]
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _cells(row: Row) -> list[str]:
    return [
        row.work,
        row.ours,
        row.against,
        row.theirs,
        f"{figure(row.measured)}{row.unit}",
        f"{row.gate:.3g}",
        f"{row.goal:.3g}",
        row.verdict,
    ]


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
