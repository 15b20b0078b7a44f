"""Many real processes on one JSON Lines destination: no line is torn, mixed, lost or repeated."""

import collections
import contextlib
import gzip
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest

# argv: writer, events, size of an event's padding, options of the sink as JSON. Reports its start
# on standard error, and exits with 3 if anything was not delivered.
WRITER = textwrap.dedent(
    """
    import json, os, sys
    from otel_cbtop_exporter.config import JsonLinesConfig
    from otel_cbtop_exporter.events import Event
    from otel_cbtop_exporter.tag_set import TagSet
    from otel_cbtop_exporter.sinks.jsonlines import JsonLinesSink

    writer, count, size, options = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    sink = JsonLinesSink(JsonLinesConfig(**json.loads(options)))
    tags = TagSet({"writer": writer})
    os.write(2, b"ready")
    for start in range(0, count, 100):
        events = [
            Event("m", tags, {"value": n, "padding": writer * size}, 1_700_000_000_000_000_000 + n)
            for n in range(start, min(start + 100, count))
        ]
        records = sink.encode(events).records
        result = sink.write(records, 60)
        if result.kept or len(result.delivered) != len(records):
            os.write(2, result.error.encode())
            sys.exit(3)
    sink.close(60)
    """
)


@contextlib.contextmanager
def writers(number, count, size, stdout=None, **options):
    """Start writers named 0, 1, ...; they are killed when the block ends."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(n), str(count), str(size), json.dumps(options)],
            stdout=stdout,
            stderr=subprocess.PIPE,
        )
        for n in range(number)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def finish(processes):
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def lines_of(folder):
    """Yield every line of the current and the rotated files, oldest file first."""
    current = folder / "a.jsonl"
    rotated = sorted(p for p in folder.iterdir() if p != current)
    for path in [*rotated, current] if current.exists() else rotated:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        assert data.endswith(b"\n"), path
        yield from data.splitlines()


def numbers_by_writer(lines):
    """Check that every line is whole, and list each writer's numbers in file order."""
    found = collections.defaultdict(list)
    for line in lines:
        event = json.loads(line)
        writer = event["tags"]["writer"]
        assert set(event["fields"]["padding"]) <= {writer}
        found[writer].append(event["fields"]["value"])
    return found


def test_eight_processes_share_one_rotating_file(tmp_path):
    """Eight writers of 10,000 events each write every line once, in their own order."""
    with writers(
        8, 10_000, 100, path=str(tmp_path / "a.jsonl"), max_bytes=1_000_000, max_files=1_000
    ) as processes:
        finish(processes)
    assert len(list(tmp_path.iterdir())) > 15
    assert not list(tmp_path.glob("*.tmp"))
    found = numbers_by_writer(lines_of(tmp_path))
    assert found == {str(n): list(range(10_000)) for n in range(8)}


def test_one_pipe_of_several_processes(tmp_path):
    """Lines of 10 KB from four processes that share one standard output do not mix."""
    reader, pipe = os.pipe()
    with writers(4, 500, 10_000, stdout=pipe, path="-") as processes:
        os.close(pipe)
        with os.fdopen(reader, "rb") as stream:
            lines = stream.read().splitlines()
        finish(processes)
    assert numbers_by_writer(lines) == {str(n): list(range(500)) for n in range(4)}


def test_a_killed_writer_tears_no_line_but_its_own(tmp_path):
    """After kill -9 at any moment every whole line can be read, and other writers go on."""
    path = tmp_path / "a.jsonl"
    options = {"path": str(path), "max_bytes": 0}
    for kill in range(5):
        with writers(2, 10_000_000, 3_000, **options) as processes:
            grow(path, 2_000_000 + kill, processes)
            processes[0].send_signal(signal.SIGKILL)
            processes[0].wait(30)
            grow(path, 1_000_000, processes)
    with path.open("ab") as file:
        file.write(b'{"torn')  # makes sure that there is a torn line, whatever the kills did
    with writers(1, 200, 10, **options) as processes:
        finish(processes)
    lines = path.read_bytes().splitlines()
    whole = [line for line in lines if is_json(line)]
    # One for each kill, two in each round, and our own.
    assert 1 <= len(lines) - len(whole) <= 11
    values = numbers_by_writer(whole)
    assert values["0"][-200:] == list(range(200))
    for numbers in values.values():  # each process of a writer counts up from 0 without a gap
        for before, after in itertools.pairwise(numbers):
            assert after in (before + 1, 0)


@pytest.mark.parametrize("how", ["move", "copy and truncate"])
def test_logrotate_beside_many_writers(tmp_path, how):
    """No line is lost when a file is moved under load, and none is torn after copy and truncate."""
    path = tmp_path / "a.jsonl"
    with writers(4, 5_000, 200, path=str(path), max_bytes=0) as processes:
        for number in itertools.count():
            wait_until(lambda: has(path, 100_000) or ended(processes))
            if ended(processes):
                break
            if how == "move":
                path.rename(tmp_path / f"a.jsonl.{number}")
            else:
                shutil.copy(path, tmp_path / f"copy.{number}")
                os.truncate(path, 0)
        finish(processes)
    if how == "move":
        # A batch that was being written when the file moved is in the moved file: nothing is lost.
        found = {writer: sorted(v) for writer, v in numbers_by_writer(lines_of(tmp_path)).items()}
        assert found == {str(n): list(range(5_000)) for n in range(4)}
    else:
        # logrotate itself loses what is written between the copy and the truncation.
        data = path.read_bytes()
        assert b"\0" not in data
        numbers_by_writer(data.splitlines())


def is_json(line):
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def grow(path, size, processes):
    """Wait until a file has grown by `size` bytes."""
    now = path.stat().st_size if path.exists() else 0
    wait_until(lambda: has(path, now + size) or ended(processes))
    assert not ended(processes), processes[-1].stderr.read()


def ended(processes):
    return all(process.poll() is not None for process in processes)


def has(path, size):
    return path.exists() and path.stat().st_size > size


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
