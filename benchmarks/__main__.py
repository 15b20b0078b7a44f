"""`python -m benchmarks [--quick] [NAME...]`: measure, and print a table for each benchmark."""

from __future__ import annotations

import argparse
import importlib

from benchmarks.measure import FULL, QUICK, Report, figure

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
)


def show(report: Report) -> None:
    print(f"\n{report.title}: minimum (median)")
    for row in report.rows:
        targets = f"gate {figure(row.gate)}, goal {figure(row.goal)}: {row.verdict}"
        print(f"  {row.work}: {row.ours}")
        print(f"    against {row.against}: {row.theirs}")
        print(f"    {figure(row.measured)}{row.unit}, {targets}")
    for note in report.notes:
        print(f"  {note}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures say nothing")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    for name in options.names or NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        show(module.run(QUICK if options.quick else FULL))


if __name__ == "__main__":
    main()
