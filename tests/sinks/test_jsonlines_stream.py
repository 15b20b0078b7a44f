"""JSON Lines to something other than a file: standard output, pipes, FIFOs, devices, sockets."""

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from otel_cbtop_exporter.config import JsonLinesConfig
from otel_cbtop_exporter.sinks import shared_stream
from otel_cbtop_exporter.sinks.jsonlines import JsonLinesSink
from tests.descriptors import open_descriptors
from tests.sinks.conformance import assert_partition, numbered_events, records_of

PROGRAM = textwrap.dedent(
    """
    import sys
    from otel_cbtop_exporter.config import JsonLinesConfig
    from otel_cbtop_exporter.sinks.jsonlines import JsonLinesSink
    from tests.sinks.conformance import numbered_events, records_of

    sink = JsonLinesSink(JsonLinesConfig(path=sys.argv[1], max_bytes=10))
    for batch in range(3):
        print("printed", batch)
        records = records_of(sink, numbered_events(2, writer=str(batch)))
        result = sink.write(records, 10)
        assert len(result.delivered) == 2, result.error
    sink.close(10)
    """
)
EXPECTED = [b"printed", b'{"measur', b'{"measur'] * 3


@pytest.mark.parametrize("path", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_as_a_pipe(path):
    """All names of standard output work, and events keep their order with the program's prints."""
    command = [sys.executable, "-c", PROGRAM, path]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    assert [
        line[: len(e)] for line, e in zip(output.splitlines(), EXPECTED, strict=True)
    ] == EXPECTED


@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_standard_output_as_a_file(tmp_path, mode):
    """Redirected to a file, with > or >>, no print overwrites an event and nothing is rotated."""
    (tmp_path / "out").write_bytes(b"before\n")
    with (tmp_path / "out").open(mode) as out:
        subprocess.run([sys.executable, "-c", PROGRAM, "-"], stdout=out, check=True)
    expected = EXPECTED if mode == "wb" else [b"before", *EXPECTED]
    lines = (tmp_path / "out").read_bytes().splitlines()
    assert [line[: len(e)] for line, e in zip(lines, expected, strict=True)] == expected
    assert len(list(tmp_path.iterdir())) == 1


def test_standard_output_as_a_socket():
    """A socket, as systemd gives to a service, works although it cannot be reopened."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        subprocess.run([sys.executable, "-c", PROGRAM, "-"], stdout=theirs, check=True)
        theirs.shutdown(socket.SHUT_WR)
        output = b"".join(iter(lambda: ours.recv(65_536), b""))
    assert [
        line[: len(e)] for line, e in zip(output.splitlines(), EXPECTED, strict=True)
    ] == EXPECTED


def test_a_device_that_is_full_keeps_the_records():
    """A full device, here /dev/full, keeps the records as a full disk does."""
    sink = JsonLinesSink(JsonLinesConfig(path="/dev/full"))
    records = records_of(sink, numbered_events(3))
    result = sink.write(records, 10)
    sink.close(1)
    assert list(result.kept) == records
    assert result.error_type == "ENOSPC"


@pytest.fixture
def fifo(tmp_path):
    """Make a FIFO of one page, a sink that writes to it, and a way to open readers."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    readers = []

    class Fifo:
        sink = JsonLinesSink(JsonLinesConfig(path=str(path)))

        def open(self):
            readers.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            fcntl.fcntl(readers[-1], fcntl.F_SETPIPE_SZ, 4096)
            return readers[-1]

        def close(self, reader):
            readers.remove(reader)
            os.close(reader)

    fifo = Fifo()
    yield fifo
    fifo.sink.close(0)
    for reader in readers:
        os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)


def read_all(reader):
    data = b""
    try:
        while part := os.read(reader, 65_536):
            data += part
    except BlockingIOError:
        pass
    return data


def test_a_fifo_without_a_reader_keeps_the_records(fifo):
    """A write to a FIFO without a reader neither waits nor loses records."""
    records = records_of(fifo.sink, numbered_events(3))
    result = fifo.sink.write(records, 10)
    assert list(result.kept) == records
    assert result.error.endswith("no process reads it")
    reader = fifo.open()
    assert len(fifo.sink.write(records, 10).delivered) == 3
    assert len(read_all(reader).splitlines()) == 3


def test_a_fifo_whose_reader_went_away_keeps_the_records(fifo):
    """A broken pipe keeps the records, and the next reader begins with a whole line."""
    reader = fifo.open()
    records = records_of(fifo.sink, numbered_events(1, size=6_000))
    assert list(fifo.sink.write(records, 0.01).kept) == records  # partly written
    fifo.close(reader)
    result = fifo.sink.write(records, 0.01)
    assert list(result.kept) == records
    assert result.error_type == "BrokenPipeError"
    reader = fifo.open()
    fifo.sink.write(records, 0.01)
    assert read_all(reader) == records[0].body[:4096]


@pytest.mark.parametrize("again", ["same", "other"])
def test_a_line_that_is_out_in_part_is_ended_first(fifo, again):
    """A line that was partly written at a timeout is completed first, and is there once."""
    reader = fifo.open()
    records = records_of(fifo.sink, numbered_events(6, size=2_000))
    others = records_of(fifo.sink, numbered_events(1, writer="other"))
    result = fifo.sink.write(records, 0.01)
    assert_partition(result, records)
    assert result.error_type == "timeout"
    assert 0 < len(result.delivered) < 6
    data = b""
    todo = list(result.kept) if again == "same" else others
    while todo:
        data += read_all(reader)
        result = fifo.sink.write(todo, 0.01)
        assert_partition(result, todo)
        todo = list(result.kept)
    data += read_all(reader)
    lines = data.splitlines()
    if again == "same":
        assert lines == [r.body for r in records]
    else:
        torn = len(lines) - 1
        assert lines == [r.body for r in [*records[:torn], *others]]


def test_nobody_gets_into_a_line_that_is_out_in_part(fifo):
    """While a line is partly written its writer holds the lock, and others keep their records."""
    reader = fifo.open()
    records = records_of(fifo.sink, numbered_events(1, size=6_000))
    fifo.sink.write(records, 0.01)
    other = JsonLinesSink(JsonLinesConfig(path=fifo.sink.destination))
    data = read_all(reader)  # makes room in the pipe, so that only the lock is in the way
    assert other.write(records, 0.01).error.endswith("another process holds its lock")
    assert len(fifo.sink.write(records, 10).delivered) == 1
    data += read_all(reader)
    assert data == records[0].body + b"\n"
    assert other.write(records, 0.01).error_type == "timeout"  # now because of the pipe
    other.close(0)


def test_a_descriptor_that_cannot_be_reopened_never_blocks(monkeypatch, tmp_path):
    """Without /proc, a write to a blocking pipe that nobody reads still ends with its timeout."""
    monkeypatch.setattr(shared_stream, "_OWN_DESCRIPTORS", str(tmp_path / "no-proc"))
    reader, writer = os.pipe()
    stream = shared_stream.SharedStream(writer)
    line = b"x" * 100_000 + b"\n"
    appended = stream.append(line, 1, time.monotonic() + 0.01)
    assert appended.lines == 0
    assert isinstance(appended.error, TimeoutError)
    data = os.read(reader, 65_536)
    appended = stream.append(line, 1, time.monotonic() + 10)
    assert appended.lines == 1
    assert data + os.read(reader, 100_000) == line
    stream.close(0)
    os.close(reader)
    os.close(writer)


def test_a_redirected_descriptor_is_noticed(tmp_path):
    """After a dup2 over the descriptor, lines go to the new target."""
    reader, writer = os.pipe()
    stream = shared_stream.SharedStream(writer)
    stream.append(b"first\n", 1, time.monotonic() + 10)
    with (tmp_path / "new").open("wb") as new:
        os.dup2(new.fileno(), writer)
    stream.append(b"second\n", 1, time.monotonic() + 10)
    stream.close(0)
    os.close(writer)
    assert os.read(reader, 100) == b"first\n"
    assert (tmp_path / "new").read_bytes() == b"second\n"
    os.close(reader)


def test_a_line_that_a_pipe_takes_at_once_is_never_out_in_part(fifo):
    """A line that fits into the pipe is never partly written.

    So a writer that is killed, or idle after a timeout, neither tears a line nor keeps a lock.
    """
    reader = fifo.open()
    records = records_of(fifo.sink, numbered_events(3, size=1_500))
    assert len(fifo.sink.write(records, 0.01).delivered) == 2  # a page
    other = JsonLinesSink(JsonLinesConfig(path=fifo.sink.destination))
    fifo.sink.after_fork_in_child()  # it writes nothing any more, as if it were killed
    assert read_all(reader) == b"".join(record.body + b"\n" for record in records[:2])
    assert len(other.write(records, 0.5).delivered) == 2
    other.close(0)


def test_a_reader_that_stalled_is_not_waited_for_again_and_again(fifo):
    """A stalled reader costs one export its timeout, but not later ones or the shutdown."""
    fifo.open()
    long = records_of(fifo.sink, numbered_events(1, size=6_000))
    began = time.monotonic()
    assert fifo.sink.write(long, 1.0).error_type == "timeout"
    for _ in range(5):
        assert fifo.sink.write(long, 10.0).error_type == "timeout"
    fifo.sink.close(30.0)
    assert time.monotonic() - began < 5.0


def test_a_file_behind_standard_output_that_ends_in_half_a_line(tmp_path):
    """A torn line that a killed process left in the file is ended before the first event."""
    (tmp_path / "out").write_bytes(b"before\ntorn")
    quiet = PROGRAM.replace('print("printed", batch)', "pass")
    with (tmp_path / "out").open("ab") as out:
        subprocess.run([sys.executable, "-c", quiet, "-"], stdout=out, check=True)
    before, torn, *lines = (tmp_path / "out").read_bytes().splitlines()
    assert (before, torn) == (b"before", b"torn")
    assert [line[:8] for line in lines] == [b'{"measur'] * 6


def test_a_fifo_that_became_a_file_is_written_like_one(tmp_path):
    """If a FIFO is replaced by a file, lines are appended and existing ones stay."""
    path = tmp_path / "a"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink = JsonLinesSink(JsonLinesConfig(path=str(path)))
    records = records_of(sink, numbered_events(3))
    assert len(sink.write(records, 1).delivered) == 3
    os.close(reader)
    path.unlink()
    path.write_bytes(b"mine\n")
    assert len(sink.write(records, 1).delivered) == 3
    assert [line[:4] for line in path.read_bytes().splitlines()] == [b"mine"] + [b'{"me'] * 3
    path.unlink()
    assert len(sink.write(records, 1).delivered) == 3
    assert len(path.read_bytes().splitlines()) == 3
    sink.close(1)


def test_a_closed_standard_output_is_not_another_file(tmp_path):
    """If standard output is closed nothing is written to descriptor 1.

    It may belong to a file that the application has opened.
    """
    code = f"""
import sys
own = open({str(tmp_path / "own")!r}, "w")
assert own.fileno() == 1, own.fileno()
from otel_cbtop_exporter.config import JsonLinesConfig
from otel_cbtop_exporter.sinks.jsonlines import JsonLinesSink
from tests.sinks.conformance import numbered_events, records_of
sink = JsonLinesSink(JsonLinesConfig(path="-"))
result = sink.write(records_of(sink, numbered_events(2)), 1)
assert len(result.kept) == 2, result
assert "it is closed" in result.error, result.error
"""
    subprocess.run(
        ["sh", "-c", '"$0" -c "$1" >&-', sys.executable, code],
        check=True,
    )
    assert (tmp_path / "own").read_bytes() == b""


def test_a_signal_handler_in_the_middle_of_a_write_does_not_wait_for_it(fifo):
    """A signal handler's write during a write keeps its records, and does not wait for itself."""
    reader = fifo.open()
    records = records_of(fifo.sink, numbered_events(4, size=1_500))
    inner = []

    def interrupt(_number, _frame):
        began = time.monotonic()
        inner.append((fifo.sink.write(records[:1], 10.0), time.monotonic() - began))
        assert read_all(reader)  # so that the interrupted write can go on

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        assert len(fifo.sink.write(records, 10.0).delivered) == 4  # two of them once there is room
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    ((result, seconds),) = inner
    assert list(result.kept) == records[:1]
    assert seconds < 5.0


def test_a_line_of_another_batch_is_no_delivery_of_this_one(fifo):
    """The rest of an earlier batch's line is written first, but does not count for this batch."""
    reader = fifo.open()
    long = records_of(fifo.sink, numbered_events(1, size=6_000))
    others = records_of(fifo.sink, numbered_events(5, size=1_200, writer="other"))
    assert fifo.sink.write(long, 0.01).kept
    assert fifo.sink.write(others, 0.01).delivered == []
    data = read_all(reader)
    result = fifo.sink.write(others, 0.01)
    assert_partition(result, others)
    data += read_all(reader)
    assert data.splitlines() == [record.body for record in [*long, *result.delivered]]
    assert 0 < len(result.delivered) < 5
    for record in (others[3], others[4], others[4]):
        assert len(fifo.sink.write([record], 10).delivered) == 1
        assert read_all(reader).splitlines()[-1] == record.body


def test_the_end_of_a_line_is_written_at_the_end(fifo):
    """Closing writes the rest of a partly written line if the reader has caught up."""
    reader = fifo.open()
    records = records_of(fifo.sink, numbered_events(1, size=6_000))
    fifo.sink.write(records, 0.01)
    data = read_all(reader)
    fifo.sink.close(5)
    assert data + read_all(reader) == records[0].body + b"\n"


@pytest.mark.parametrize("how", ["close", "after_fork_in_child"])
@pytest.mark.parametrize("kind", ["pipe", "fifo"])
def test_no_descriptor_of_a_stream_is_left_behind(tmp_path, kind, how):
    """A stream leaves no descriptor open, neither when closed nor in a forked child."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDWR)
    before = open_descriptors()
    stream = shared_stream.SharedStream(reader if kind == "pipe" else str(path))
    assert stream.append(b"line\n", 1, time.monotonic() + 10).error is None
    stream.close(0) if how == "close" else stream.after_fork_in_child()
    assert open_descriptors() == before
    os.close(reader)


def test_a_handler_that_raises_in_the_middle_of_a_line_leaves_it_to_be_ended(fifo):
    """The half line that an exception of a signal handler left is ended before the next line."""
    reader = fifo.open()
    long, other = (records_of(fifo.sink, numbered_events(1, size=n)) for n in (100_000, 10))

    class StoppedError(Exception):
        pass

    def stop(*_):
        raise StoppedError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(StoppedError):
            fifo.sink.write(long, 20)
    finally:
        signal.signal(signal.SIGALRM, before)
    got = [read_all(reader)]
    reading = threading.Event()

    def read():
        while not reading.wait(0.01):
            got.append(read_all(reader))

    thread = threading.Thread(target=read)
    thread.start()
    result = fifo.sink.write(other, 20)
    reading.set()
    thread.join()
    got.append(read_all(reader))
    assert len(result.delivered) == 1
    assert b"".join(got).splitlines() == [long[0].body, other[0].body]
