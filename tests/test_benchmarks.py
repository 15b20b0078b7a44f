"""The benchmarks run and report everything that they measure; speed itself is not tested."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import chart
from benchmarks.__main__ import NAMES
from benchmarks.measure import Report, Row

ROOT = Path(__file__).parents[1]

# How many targets each benchmark reports on.
WITHOUT_SERVERS = {
    "spans": 3,
    "metrics": 4,
    "logs": 2,
    "spool": 2,
    "export": 1,
    "start": 1,
    "memory": 6,
    "growth": 0,
}
WITH_SERVERS = {"kafka": 1, "influxdb": 1, "whole_way": 1, "latency": 0}


def run(names, folder):
    """Run benchmarks with tiny workloads; return the tables of the page, and the picture."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--output", folder, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    page = (folder / "results.md").read_text()
    blocks = [block for block in page.split("\n\n") if block.startswith("|")]
    tables = [[line.strip("| ").split(" | ") for line in block.splitlines()] for block in blocks]
    for table in tables:
        assert all(len(cells) == len(table[0]) and all(cells) for cells in table[2:]), table
    return tables, (folder / "results.svg").read_text()


def test_every_benchmark_is_run_by_one_of_the_tests_below():
    """Every benchmark is run by a test below, so that a new one is tested too."""
    assert {*WITHOUT_SERVERS, *WITH_SERVERS} == set(NAMES)


def test_a_target_that_was_measured_as_nothing_is_drawn(tmp_path):
    """A measured value of zero is drawn.

    Memory that does not grow by a single page is no mistake.
    """
    row = Row("growth", "a peer", "0 MiB", "1 MiB", 0.0, gate=2, goal=1, at_most=True)
    chart.draw([Report("Memory", rows=[row])], tmp_path / "results.svg")
    assert row.verdict == "goal met"
    assert "growth" in (tmp_path / "results.svg").read_text()


def test_benchmarks_without_servers(tmp_path):
    """Each target has a row and a verdict, and each curve has a point wherever it was measured."""
    (targets, *curves), picture = run(WITHOUT_SERVERS, tmp_path)
    assert len(targets[2:]) == sum(WITHOUT_SERVERS.values())
    assert {cells[-1] for cells in targets[2:]} <= {"goal met", "met", "NOT MET"}
    names = ["Attributes of a span", "Series of metrics", "Spans of a batch", "Spool on disk"]
    assert [table[0][0].partition(":")[0].partition(",")[0] for table in curves] == names
    assert "<svg" in picture
    assert all(name in picture for name in names)


@pytest.mark.influxdb
@pytest.mark.kafka
def test_benchmarks_with_servers(tmp_path):
    """Benchmarks that need a real InfluxDB and Kafka report their targets and latencies."""
    (targets, latencies), _ = run(WITH_SERVERS, tmp_path)
    assert len(targets[2:]) == sum(WITH_SERVERS.values())
    assert len(latencies[2:]) == 5
