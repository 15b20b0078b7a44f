import gzip
import subprocess
import sys

import pytest

from otel_cbtop_exporter.cli.event_files import read_events, whole_files
from tests.cli import written

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress], ids=["plain", "gz", "zst"])
def test_a_file_is_read_by_what_its_bytes_are(tmp_path, pack):
    """Plain, gzip and zstd files are recognized by their content, whatever their names."""
    file = tmp_path / "events"
    file.write_bytes(pack(written.as_lines(written.log("one"), written.log("two"))))
    lines = list(read_events([str(file)]))
    assert [(line.number, line.event.fields["body"]) for line in lines] == [(1, "one"), (2, "two")]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress], ids=["plain", "gz", "zst"])
def test_standard_input_is_read_by_what_its_bytes_are(pack):
    """Compressed standard input is recognized by its content, as a file is.

    For example: `cat events.jsonl.1.gz | otel-cbtop summary -`.
    """
    given = pack(written.as_lines(written.log("one"), written.log("two")))
    program = "from otel_cbtop_exporter.cli import main; main()"
    command = [sys.executable, "-c", program, "validate", "-"]
    done = subprocess.run(command, input=given, capture_output=True, check=True)
    assert b"2 events" in done.stdout


def test_a_wrong_line_costs_its_neighbours_nothing(tmp_path):
    """A torn line is reported with its number and error, and the lines around it are read."""
    file = tmp_path / "events.jsonl"
    good = written.as_lines(written.log("good"))
    file.write_bytes(good + b'{"measurement":"lo\n\n' + good.rstrip(b"\n"))
    lines = list(read_events([str(file)]))
    assert [(line.number, line.event is None) for line in lines] == [(1, 0), (2, 1), (4, 0)]
    assert "not an event" in lines[1].error


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress], ids=["gz", "zst"])
def test_a_cut_off_compressed_file_ends_with_an_error(tmp_path, pack):
    """A truncated compressed file is read as far as possible, and then reported as damaged."""
    file = tmp_path / "events.jsonl.gz"
    packed = pack(written.as_lines(*(written.log(f"{n} {hash(n * 7919)}") for n in range(20_000))))
    file.write_bytes(packed[: len(packed) // 2])
    *_, last = read_events([str(file)])
    assert last.event is None
    assert "damaged" in last.error


def test_a_file_that_is_being_compressed_counts_once():
    """Of a plain file and its finished or unfinished compressed copy, only one is read."""
    given = ["e.jsonl", "e.jsonl.1", "e.jsonl.1.gz", "e.jsonl.2", "e.jsonl.2.zst.tmp", "e.jsonl"]
    assert whole_files(given) == ["e.jsonl", "e.jsonl.1.gz", "e.jsonl.2"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_plain_file_beside_its_compressed_one_counts_once(suffix):
    """A plain file beside its compressed copy is not read, or its events would count twice."""
    assert whole_files(["e.1", f"e.1{suffix}", f"e.2{suffix}.tmp"]) == [f"e.1{suffix}"]
