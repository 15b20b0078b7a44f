"""Processes that are killed: acknowledged records are all there, once, and in order."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.delivery.spools import bodies, empty, make_folder, numbered

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 60

# Appends batches of three for ever, and acknowledges each. The arguments are the folder and the
# lane, so that every record is identified by lane and number.
APPENDS = """
import os, sys
from pathlib import Path
from tests.delivery.spools import *
folder = make_folder(Path(sys.argv[1]))
n = 0
while True:
    folder.append(numbered(n, 3, sys.argv[2]))
    n += 3
    os.write(1, b"%d\\n" % n)
    if n % 30 == 0:
        folder.adopt()
        for spool in folder.spools():
            for lane in spool.lanes():
                claim = spool.claim(lane, 3, MANY)
                spool.settle(claim, claim.records)  # kept: an outage
"""


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, cwd=ROOT
    )


def acknowledged(process, at_least):
    """Kill a process after `at_least` acknowledgements; return the last number it acknowledged."""
    data = b""
    try:
        while data.count(b"\n") < at_least:
            ready, _, _ = select.select([process.stdout], [], [], DEADLINE_SECONDS)
            assert ready, "the process says nothing"
            part = os.read(process.stdout.fileno(), 65_536)
            assert part, "the process ended by itself"
            data += part
    finally:
        process.send_signal(signal.SIGKILL)
    data += process.stdout.read()
    process.stdout.close()
    process.wait(DEADLINE_SECONDS)
    return int(data.split(b"\n")[-2])


def assert_whole(records, lane, count):
    """Check that all acknowledged records, and at most one batch more, are there in order."""
    numbers = [int(record.body) for record in records if record.lane == lane]
    assert numbers == list(range(len(numbers)))
    assert count <= len(numbers) <= count + 3


@pytest.mark.faults
def test_an_appended_record_survives_a_killed_process(tmp_path):
    """A process is killed at ten different moments.

    The next one delivers all that was acknowledged.
    """
    for n in range(10):
        count = acknowledged(start(APPENDS, tmp_path, "lane"), 5 + 13 * n)
        folder = make_folder(tmp_path)
        assert folder.adopt() == 1
        assert_whole(empty(folder), "lane", count)
        folder.close()
        assert list(folder.folder.iterdir()) == []


@pytest.mark.faults
def test_what_one_of_four_killed_processes_left_is_claimed_by_a_live_one(tmp_path):
    """A live process takes over what four killed ones left; no acknowledged record is missing."""
    processes = [start(APPENDS, tmp_path, f"lane{n}") for n in range(4)]
    counts = {}
    try:
        counts["lane0"] = acknowledged(processes[0], 20)
        survivor = make_folder(tmp_path)
        got = []
        for n in (1, 2, 3):
            counts[f"lane{n}"] = acknowledged(processes[n], 40)
        while survivor.adopt():
            got += empty(survivor)
        for lane, count in counts.items():
            assert_whole(got, lane, count)
        survivor.close()
        assert list(survivor.folder.iterdir()) == []
    finally:
        for process in processes:
            process.kill()
            process.wait(DEADLINE_SECONDS)
            process.stdout.close()


# Takes over, and claims and settles until nothing is left, printing what it claims. If it is killed
# meanwhile, the next process may see records again, but none may be missing.
DRAINS = """
import os, sys, time
from pathlib import Path
from tests.delivery.spools import *
folder = make_folder(Path(sys.argv[1]))
folder.adopt()
for spool in folder.spools():
    while claim := spool.claim("lane", 10, MANY):
        os.write(1, b"".join(b"%s\\n" % body for body in bodies(claim.records)))
        spool.settle(claim, claim.records[5:])
"""


@pytest.mark.faults
def test_a_killed_drain_sends_twice_at_worst(tmp_path):
    """A process killed between claim and settle leaves the records in place: none is lost."""
    folder = make_folder(tmp_path)
    for n in range(0, 3_000, 10):
        folder.append(numbered(n, 10))
    folder.close()
    seen = set()
    for _ in range(6):
        process = start(DRAINS, tmp_path)
        data = os.read(process.stdout.fileno(), 1_000)
        process.kill()
        data += process.stdout.read()
        process.stdout.close()
        process.wait(DEADLINE_SECONDS)
        seen.update(data.split())
    last = make_folder(tmp_path)
    last.adopt()
    left = bodies(empty(last))
    last.close()
    assert left == sorted(left, key=int)
    assert seen | set(left) == {b"%d" % n for n in range(3_000)}
