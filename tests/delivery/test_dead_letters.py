"""The dead-letter file keeps rejected records, and is readable, private and bounded."""

import fcntl
import json
import multiprocessing
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from otel_cbtop_exporter.delivery.dead_letters import DeadLetters
from otel_cbtop_exporter.delivery.spool_checks import make_private_file
from otel_cbtop_exporter.file_lock import lock
from otel_cbtop_exporter.sinks.base import Record, Rejection
from tests.descriptors import open_descriptors


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "dead-letters.jsonl"


def rejections(count, size=10, start=0):
    return [
        Rejection(Record(b"%d" % n + b"x" * size), "invalid", "why")
        for n in range(start, start + count)
    ]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_dead_letter_says_what_when_where_and_why(path):
    """A dead letter holds everything needed to find the fault and to resend the record by hand."""
    record = Record(b"spans x=1", b"key", "bucket", 5, (("name", b"value"),))
    DeadLetters(path).write([Rejection(record, "invalid", "the server's words")], "influxdb", 7)
    assert lines(path) == [
        {
            "time_ns": 7,
            "sink": "influxdb",
            "reason": "invalid",
            "detail": "the server's words",
            "lane": "bucket",
            "timestamp_ns": 5,
            "body": "spans x=1",
            "key": "key",
            "headers": [["name", "dmFsdWU="]],
        }
    ]


def test_what_is_not_text_is_base64(path):
    """Bytes that are not text are kept exactly, as base64.

    Text from the server that cannot be encoded does not prevent the letter from being written.
    """
    rejection = Rejection(Record(b"\xff\x00", b"\xfe"), "invalid", "bad \ud800 words")
    DeadLetters(path).write([rejection], "kafka", 7)
    (line,) = lines(path)
    assert (line["body_base64"], line["key_base64"]) == ("/wA=", "/g==")
    assert "body" not in line
    assert line["detail"] == "bad ? words"


def test_letters_are_appended(path):
    """Letters are appended, also by a later writer; an empty write creates no file."""
    DeadLetters(path).write([], "kafka", 1)
    assert not path.exists()
    DeadLetters(path).write(rejections(2), "kafka", 1)
    DeadLetters(path).write(rejections(2, start=2), "kafka", 1)
    assert [line["body"][0] for line in lines(path)] == ["0", "1", "2", "3"]


def test_the_file_is_private(path):
    """The file has mode 0600 and its folder 0700, whatever the umask.

    This matters because record bodies hold attribute values.
    """
    before = os.umask(0)
    try:
        DeadLetters(path).write(rejections(1), "kafka", 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_link_is_refused(tmp_path, path):
    """A link in place of the file is refused, so nobody can make us write to another file."""
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="link"):
        DeadLetters(path).write(rejections(1), "kafka", 1)
    assert not (tmp_path / "elsewhere").exists()


def test_the_file_is_bounded(path):
    """A full file replaces the previous one, so there are never more than two."""
    letters = DeadLetters(path, max_bytes=2_000)
    for n in range(100):
        letters.write(rejections(1, start=n), "kafka", 1)
        assert path.stat().st_size <= 2_000
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, path.name + ".1"]
    numbers = [
        int(line["body"].strip("x"))
        for p in (path.with_name(path.name + ".1"), path)
        for line in lines(p)
    ]
    assert numbers == list(range(100))[-len(numbers) :]


def _write_many(path, start):
    letters = DeadLetters(path, max_bytes=40_000)
    for n in range(start, start + 100):
        letters.write(rejections(1, size=100, start=n), "kafka", 1)


def test_processes_write_whole_lines_into_one_file(path):
    """Four processes that write and rotate at once tear no line.

    They lose nothing but the oldest file.
    """
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_many, args=(path, n * 100)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    found = lines(path) + lines(path.with_name(path.name + ".1"))
    numbers = [int(line["body"].strip("x")) for line in found]
    assert len(numbers) == len(set(numbers)) > 150


def test_a_file_that_a_neighbour_moves_is_made_anew(path, monkeypatch):
    """The file is made again if another process rotates it just after it was made."""
    letters = DeadLetters(path)
    letters.write(rejections(1), "influxdb", 7)
    real = Path.lstat

    def moved_meanwhile(self):
        if self == path and not path.with_name("moved").exists():
            path.rename(path.with_name("moved"))
        return real(self)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "lstat", moved_meanwhile)
        letters.write(rejections(1, start=1), "influxdb", 7)
    assert [letter["body"][0] for letter in lines(path)] == ["1"]
    path.unlink()
    path.parent.rename(path.parent.with_name("gone"))
    with pytest.raises(FileNotFoundError):
        make_private_file(path)


def test_a_full_disk_leaves_whole_lines(path):
    """A write that does not fit raises an error, and the file still ends with a whole line."""
    code = """
import resource, sys
from pathlib import Path
from otel_cbtop_exporter.delivery.dead_letters import DeadLetters
from tests.delivery.test_dead_letters import rejections
letters = DeadLetters(Path(sys.argv[1]))
letters.write(rejections(3), "kafka", 1)
size = Path(sys.argv[1]).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, resource.RLIM_INFINITY))
for _ in range(2):
    try:
        letters.write(rejections(3), "kafka", 1)
    except OSError:
        pass
    else:
        sys.exit("it was written")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
letters.write(rejections(2, start=3), "kafka", 1)
"""
    assert resource.RLIM_INFINITY
    subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, cwd=Path(__file__).parents[2]
    )
    assert [line["body"][0] for line in lines(path)] == ["0", "1", "2", "3", "4"]


def test_a_neighbour_that_never_lets_go_is_not_waited_for(path):
    """A process stopped while it holds the lock costs dead letters, but does not block delivery."""
    letters = DeadLetters(path)
    letters.write(rejections(1), "kafka", 0)
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="holds its lock"):
            letters.write(rejections(1), "kafka", 0)
    letters.write(rejections(1), "kafka", 0)
    assert len(lines(path)) == 2


def test_dead_letters_leave_no_descriptor_open(tmp_path):
    """No descriptor leaks when the file is rotated or when another process holds its lock."""
    letters = DeadLetters(tmp_path / "dead.jsonl", max_bytes=200)
    rejections = [Rejection(Record(b"x" * 150), "invalid")]
    before = open_descriptors()
    for _ in range(4):
        letters.write(rejections, "kafka", 1)
    assert open_descriptors() == before
    held = os.open(tmp_path / "dead.jsonl", os.O_RDWR)
    try:
        lock(held, 0.0)
        with pytest.raises(TimeoutError):
            letters.write([Rejection(Record(b""), "invalid")], "kafka", 1)
        assert open_descriptors() == before + 1
    finally:
        os.close(held)


def test_a_child_that_is_forked_meanwhile_does_not_keep_the_lock(path, monkeypatch):
    """The lock is released although a child, forked during the write, has the descriptor open."""
    letters = DeadLetters(path)
    children = []
    real = os.write
    ours, theirs = os.pipe()

    def write(descriptor, data):
        monkeypatch.undo()
        child = os.fork()
        if child == 0:
            os.close(theirs)
            os.read(ours, 1)  # until the parent has closed its end
            os._exit(0)
        children.append(child)
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    try:
        letters.write(rejections(1), "kafka", 1)
        letters.write(rejections(1, start=1), "kafka", 2)
    finally:
        os.close(theirs)
        os.close(ours)
        os.waitpid(children[0], 0)
    assert len(lines(path)) == 2
