import contextlib
import gzip
import os
import queue
import signal
import subprocess
import sys
import threading

import pytest
from click.testing import CliRunner

from otel_cbtop_exporter.cli.app import app
from tests.cli import written
from tests.cli.written import log

DEADLINE_SECONDS = 20

# When the tests run in the background they ignore SIGINT, and child processes inherit that.
INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from otel_cbtop_exporter.cli import main
main()
"""


def run(*arguments, given=None):
    return CliRunner().invoke(app, arguments, input=given)


def test_validate_names_what_is_wrong_with_which_line(tmp_path):
    """Each wrong line is reported with file, number, key and expected type, and the status is 1."""
    file = tmp_path / "e.jsonl"
    good = written.as_lines(log("hi"))
    wrong_type = good.replace(b'"timestamp_ns":1', b'"timestamp_ns":"x",":":1')
    later = good.replace(b'"schema_version":1', b'"schema_version":2')
    file.write_bytes(good + wrong_type + later + good)
    result = run("validate", str(file))
    assert result.exit_code == 1
    second, third, count = result.output.splitlines()
    assert second.startswith(f"{file}:2: ")
    assert "`$.timestamp_ns`" in second
    assert third.startswith(f"{file}:3: schema_version is 2")
    assert count == "2 events, 2 lines that are not"


def test_validate_reads_standard_input():
    """`-` means standard input, and valid events end with status 0."""
    result = run("validate", "-", given=written.as_lines(log("hi"), log("ho")))
    assert (result.exit_code, result.output) == (0, "2 events, 0 lines that are not\n")


def test_tail_shows_the_last_events(tmp_path):
    """The last lines are shown in order; a line that is not an event is marked as such, once."""
    file = tmp_path / "e.jsonl"
    file.write_bytes(written.as_lines(*(log(f"n{n}") for n in range(5))) + b"torn")
    first, second = run("tail", "-n", "2", str(file)).output.splitlines()
    assert "shop: n4" in first
    assert second.startswith("not an event of schema version 1: ")
    assert run("tail", "-n", "0", str(file)).output == ""


def test_tail_shows_what_a_damaged_file_still_holds(tmp_path):
    """`tail` shows what it can read of a damaged file, and then that the file is damaged."""
    file = tmp_path / "e.jsonl.gz"
    packed = gzip.compress(written.as_lines(*(log(f"n{n}") for n in range(3))))
    file.write_bytes(packed[:-4])
    result = run("tail", "-n", "2", str(file))
    assert result.exit_code == 0
    *lines, last = result.output.splitlines()
    assert ["n1" in lines[0], "n2" in lines[1]] == [True, True]
    assert last.startswith("the compressed file is damaged here: ")
    file.write_bytes(packed[:-8] + bytes(8))  # another checksum
    assert "damaged here: CRC check failed" in run("tail", str(file)).output


def test_tail_reads_standard_input():
    """`-` means standard input, as in `validate`; blank lines do not count."""
    result = run("tail", "-n", "1", "-", given=written.as_lines(log("a"), log("b")) + b"\n")
    assert "shop: b" in result.output
    assert len(result.output.splitlines()) == 1
    assert run("tail", "-f", "-").exit_code == 2


def test_tail_does_not_follow_a_compressed_file(tmp_path):
    """`tail -f` refuses a compressed file, because nothing is ever appended to one."""
    file = written.write_gzip(tmp_path / "e.jsonl.gz", log("hi"))
    result = run("tail", "-f", file)
    assert result.exit_code == 2
    assert f"{file} is compressed, so nothing will be appended to it" in result.output


@pytest.fixture
def follow():
    with contextlib.ExitStack() as cleanup:

        def start(*arguments):
            process = subprocess.Popen(
                [sys.executable, "-c", INTERRUPTIBLE, "tail", "-f", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
            cleanup.enter_context(process)
            cleanup.callback(process.kill)
            lines = queue.Queue()
            reader = threading.Thread(
                target=lambda: [lines.put(line) for line in process.stdout], daemon=True
            )
            reader.start()
            cleanup.callback(reader.join, DEADLINE_SECONDS)
            cleanup.callback(process.kill)
            return process, lambda: lines.get(timeout=DEADLINE_SECONDS)

        yield start


def test_tail_follows_a_file_that_is_emptied(tmp_path, follow):
    """`tail -f` goes on after a file is truncated in place, as logrotate's copytruncate does."""
    file = tmp_path / "e.jsonl"
    written.write(file, log("before"), log("before, too"))
    _, next_line = follow(str(file))
    assert "shop: before" in next_line()
    assert "shop: before, too" in next_line()
    written.write(file, log("after"))
    assert "shop: after" in next_line()


def test_tail_follows_a_file_over_its_rotation(tmp_path, follow):
    """`tail -f` shows the last lines of a renamed file, and then those of the new one.

    A line that is appended in two parts is shown whole.
    """
    file = tmp_path / "e.jsonl"
    written.write(file, log("before"))
    process, next_line = follow(str(file))
    assert "shop: before" in next_line()
    whole = written.as_lines(log("in two parts"))
    with file.open("ab", buffering=0) as old:
        old.write(whole[:40])
        old.write(whole[40:])
        assert "shop: in two parts" in next_line()
        old.write(written.as_lines(log("last of the old")) + b'{"torn')
        file.rename(tmp_path / "e.jsonl.1")
    written.write(file, log("first of the new"))
    assert "shop: last of the old" in next_line()
    assert "not an event of " in next_line()
    assert "shop: first of the new" in next_line()
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_SECONDS) == 0
    assert process.stderr.read() == ""
