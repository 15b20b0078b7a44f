"""`python -m benchmarks [--quick] [NAME...]`: measure, and print a table for each benchmark."""

from __future__ import annotations

import argparse
import importlib

from benchmarks.measure import FULL, QUICK, Report

NAMES = ("spans", "metrics", "logs", "spool", "export", "start", "memory")


def show(report: Report) -> None:
    print(f"\n{report.title}: minimum (median)")
    for row in report.rows:
        print(
            f"  {row.work} against {row.against}: {row.ours} against {row.theirs}, "
            f"{row.measured:.1f}{row.unit}, gate {row.gate:g}, goal {row.goal:g}: {row.verdict}"
        )
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
