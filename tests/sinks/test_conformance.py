"""The conformance suite for the sinks that need no server."""

import os
import threading
from pathlib import Path

import pytest

from otel_cbtop_exporter.config import ConsoleConfig, JsonLinesConfig
from otel_cbtop_exporter.sinks.console import ConsoleSink
from otel_cbtop_exporter.sinks.jsonlines import JsonLinesSink
from otel_cbtop_exporter.testing import RecordingSink
from tests.sinks.conformance import SinkConformance


class TestJsonLinesFile(SinkConformance):
    """JSON Lines to a file."""

    @pytest.fixture
    def sink(self, tmp_path):
        sink = JsonLinesSink(JsonLinesConfig(path=str(tmp_path / "events.jsonl")))
        yield sink
        sink.close(30)

    def arrived(self, sink):
        return Path(sink.destination).read_bytes().splitlines()


class TestJsonLinesFifo(SinkConformance):
    """JSON Lines to a FIFO that is being read."""

    @pytest.fixture
    def sink(self, tmp_path):
        path = tmp_path / "fifo"
        os.mkfifo(path)
        self.reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.data = b""
        self.pid = os.getpid()
        self.reading = threading.Lock()
        sink = JsonLinesSink(JsonLinesConfig(path=str(path)))
        write = sink.write

        def write_and_drain(records, timeout_seconds):  # a pipe holds 64 KiB
            result = write(records, timeout_seconds)
            self.drain()
            return result

        sink.write = write_and_drain
        yield sink
        sink.close(30)
        os.close(self.reader)

    def drain(self):
        if os.getpid() != self.pid:
            return  # what a forked child reads would be lost to the parent
        with self.reading:  # keeps the data of different readers in order
            try:
                while part := os.read(self.reader, 1 << 20):
                    self.data += part
            except BlockingIOError:
                pass

    def arrived(self, sink):
        self.drain()
        return self.data.splitlines()


class TestConsoleDescriptor(SinkConformance):
    """The console, with standard output as the operating system's descriptor."""

    @pytest.fixture
    def sink(self, capfd):
        self.capfd = capfd
        sink = ConsoleSink(ConsoleConfig())
        yield sink
        sink.close(30)

    def arrived(self, sink):
        return self.capfd.readouterr().out.encode().splitlines()


class TestConsoleCapture(SinkConformance):
    """The console, with standard error replaced by a stream, as in a notebook or a test."""

    @pytest.fixture
    def sink(self, capsys):
        self.capsys = capsys
        sink = ConsoleSink(ConsoleConfig(stream="stderr"))
        yield sink
        sink.close(30)

    def arrived(self, sink):
        return self.capsys.readouterr().err.encode().splitlines()


class TestRecordingSink(SinkConformance):
    """The public test double keeps the contract of the sinks that it stands for."""

    @pytest.fixture
    def sink(self):
        return RecordingSink()

    def arrived(self, sink):
        return [record.body for record in sink.delivered]
