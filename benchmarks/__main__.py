"""`python -m benchmarks [--quick] [--output FOLDER] [NAME...]`: measure, print, write, draw.

Prints the results of each benchmark. A full run of all of them, or any run with `--output`,
also writes `results.md` and `results.svg`.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from benchmarks import chart, results
from benchmarks.measure import FULL, QUICK, Report, figure
from benchmarks.processes import apart

NAMES = (
    "spans",
    "metrics",
    "logs",
    "spool",
    "export",
    "start",
    "memory",
    "kafka",
    "influxdb",
    "whole_way",
    "growth",
    "latency",
)


def show(report: Report) -> None:
    print(f"\n{report.title}: minimum (median)")
    for row in report.rows:
        targets = f"gate {row.gate:.3g}, goal {row.goal:.3g}: {row.verdict}"
        print(f"  {row.work}: {row.ours}")
        print(f"    against {row.against}: {row.theirs}")
        print(f"    {figure(row.measured)}{row.unit}, {targets}")
    for cells in report.table:
        print(f"  {cells[0]:48}", *(f"{cell:>10}" for cell in cells[1:]))
    for curve in report.curves:
        print(f"  {curve.title}: {curve.y_label}")
        for name, points in curve.lines.items():
            print(f"    {name:18}", *(f"{figure(y)} at {x:g}" for x, y in points), sep="  ")
    for note in report.notes:
        print(f"  {note}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures say nothing")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where to write, also the results of some"
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    output = options.output
    if output is None and not options.names and not options.quick:
        output = Path(__file__).parent
    reports = []
    for name in options.names or NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        reports.append(apart(module.run, QUICK if options.quick else FULL))
        show(reports[-1])
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "results.md").write_text(results.markdown(reports), encoding="utf-8")
        chart.draw(reports, output / "results.svg")


if __name__ == "__main__":
    main()
