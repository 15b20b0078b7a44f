"""Results as one picture: how close each result is to its target, and the curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.measure import Curve, Report, Row

_COLOURS = {"goal met": "#2a7f62", "met": "#8fbf6b", "NOT MET": "#c8553d"}


def draw(reports: Sequence[Report], path: Path) -> None:
    """Draw an SVG; equal results give equal bytes."""
    rows = [row for report in reports for row in report.rows]
    curves = [curve for report in reports for curve in report.curves]
    lines = (len(curves) + 1) // 2
    bars_height = 1 + 0.32 * len(rows)
    mpl.rcParams.update({"svg.hashsalt": "results", "svg.fonttype": "none", "font.size": 9})
    picture = Figure(figsize=(12, bars_height + 3.2 * lines), layout="constrained")
    grid = picture.add_gridspec(
        1 + lines, 2, height_ratios=[bars_height, *[3.2] * lines], hspace=0.06
    )
    _bars(picture.add_subplot(grid[0, :]), rows)
    for number, curve in enumerate(curves):
        _lines(picture.add_subplot(grid[1 + number // 2, number % 2]), curve)
    picture.savefig(path, metadata={"Date": None})


def _bars(axes: Axes, rows: Sequence[Row]) -> None:
    """Show each result as a multiple of its gate, which is met from 1 on."""
    reached = [_times_the_gate(row) for row in rows]
    goals = [row.gate / row.goal if row.at_most else row.goal / row.gate for row in rows]
    longest = 1.3 * max(goals, default=1)
    places = range(len(rows))
    shown = [min(value, longest) if value > 0 else longest for value in reached]
    axes.barh(places, shown, color=[_COLOURS[row.verdict] for row in rows], height=0.6)
    axes.scatter(goals, places, marker="|", s=120, color="black", label="goal", zorder=3)
    axes.axvline(1, color="black", linewidth=1, label="gate")
    axes.set_yticks(places, [f"{row.work}\nagainst {row.against}" for row in rows], fontsize=7)
    axes.set_xlabel("times the gate (longer is better)")
    axes.set_xlim(0, longest)
    axes.invert_yaxis()
    axes.legend(loc="lower right")


def _times_the_gate(row: Row) -> float:
    if row.at_most:
        return row.gate / row.measured if row.measured else math.inf  # memory that did not grow
    return row.measured / row.gate


def _lines(axes: Axes, curve: Curve) -> None:
    for name, points in curve.lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    if curve.log_x:
        axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_title(curve.title)
    axes.set_xlabel(curve.x_label)
    axes.set_ylabel(curve.y_label)
    axes.legend()
