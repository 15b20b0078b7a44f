"""The console sink: events appear where the program prints."""

import contextlib
import io
import subprocess
import sys

import pytest

from otel_cbtop_exporter.config import ConsoleConfig
from otel_cbtop_exporter.events import decode_event
from otel_cbtop_exporter.sinks.console import ConsoleSink
from tests.sinks.conformance import assert_partition, numbered_events, records_of


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_events_go_to_the_stream_that_was_chosen(capfd, stream):
    """Each event is one line on the chosen stream, and the other stream is empty."""
    sink = ConsoleSink(ConsoleConfig(stream=stream))
    sink.write(records_of(sink, numbered_events(2)), 10)
    sink.close(1)
    captured = capfd.readouterr()._asdict()
    other = {"stdout": "err", "stderr": "out"}[stream]
    assert captured.pop(other) == ""
    (text,) = captured.values()
    assert [decode_event(line).fields["value"] for line in text.splitlines()] == [0, 1]


def test_prints_and_events_stand_in_their_order():
    """In a pipe, where prints are buffered, events and prints keep their order and do not mix."""
    program = (
        "from otel_cbtop_exporter.config import ConsoleConfig\n"
        "from otel_cbtop_exporter.sinks.console import ConsoleSink\n"
        "from otel_cbtop_exporter.events import event_from_sample\n"
        "sink = ConsoleSink(ConsoleConfig())\n"
        "for n in range(3):\n"
        "    print('printed')\n"
        "    sink.write(sink.encode([event_from_sample('m', n)]).records, 10)\n"
    )
    command = [sys.executable, "-c", program]
    lines = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()
    assert [line[:8] for line in lines] == [b"printed", b'{"measur'] * 3


def test_a_stream_that_was_replaced_later_is_used():
    """A stream replaced later, by redirect_stdout, a notebook or a test, gets the events."""
    sink = ConsoleSink(ConsoleConfig())
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        sink.write(records_of(sink, numbered_events(2)), 10)
    sink.close(1)
    assert len(text.getvalue().splitlines()) == 2


def broken():
    class Broken(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

    return Broken()


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


def ascii_only():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    stream.fileno = closed().fileno
    return stream


@pytest.mark.parametrize("make_stream", [broken, closed, ascii_only, lambda: None])
def test_a_stream_that_cannot_be_printed_to_keeps_the_records(monkeypatch, make_stream):
    """A broken, closed, missing or too narrow stream keeps the records and raises nothing."""
    sink = ConsoleSink(ConsoleConfig())
    records = records_of(sink, numbered_events(2, writer="é"))
    monkeypatch.setattr("sys.stdout", make_stream())
    result = sink.write(records, 10)
    monkeypatch.undo()
    assert_partition(result, records)
    assert list(result.kept) == records
    assert result.error.startswith("console.stream stdout cannot be written: ")
    sink.close(1)


def test_closing_leaves_the_stream_open(capfd):
    """The program goes on printing after the sink is closed."""
    sink = ConsoleSink(ConsoleConfig())
    sink.write(records_of(sink, numbered_events(1)), 10)
    sink.close(1)
    print("still here")
    assert capfd.readouterr().out.endswith("still here\n")


@pytest.mark.parametrize(
    "make_sink", ["ConsoleSink(ConsoleConfig())", "JsonLinesSink(JsonLinesConfig(path='-'))"]
)
def test_a_child_that_is_forked_during_a_write_writes(make_sink):
    """A child forked during a write can write.

    Its first thread has the same id as the thread that writes in the parent, with glibc before
    2.42, as in Debian 12.
    """
    program = f"""
import os, threading
from otel_cbtop_exporter import event_from_sample
from otel_cbtop_exporter.config import ConsoleConfig, JsonLinesConfig
from otel_cbtop_exporter.sinks.console import ConsoleSink
from otel_cbtop_exporter.sinks.jsonlines import JsonLinesSink

sink = {make_sink}
out, nobody_reads = os.dup(1), os.pipe()
os.dup2(nobody_reads[1], 1)
events = [event_from_sample("m", n) for n in range(5_000)]
stuck = threading.Thread(target=sink.write, args=(sink.encode(events).records, 2.0))
stuck.start()
while not sink._turn._thread:
    pass
pid = os.fork()
if pid == 0:
    os.dup2(out, 1)
    sink.after_fork_in_child()
    records = sink.encode(events[:1]).records
    one = threading.Thread(target=sink.write, args=(records, 5.0))
    one.start()
    one.join()
    os._exit(0)
os.waitpid(pid, 0)
stuck.join()
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    lines = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    assert [line[:12] for line in lines.splitlines()] == ['{"measuremen']
