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
    """JSON Lines into a file."""

    @pytest.fixture
    def sink(self, tmp_path):
        sink = JsonLinesSink(JsonLinesConfig(path=str(tmp_path / "events.jsonl")))
        yield sink
        sink.close(30)

    def arrived(self, sink):
        return Path(sink.destination).read_bytes().splitlines()


class TestJsonLinesFifo(SinkConformance):
    """JSON Lines into a FIFO that somebody reads."""

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
            return  # what a forked child read would be lost for the parent
        with self.reading:  # what one thread has read comes before what the next one reads
            try:
                while part := os.read(self.reader, 1 << 20):
                    self.data += part
            except BlockingIOError:
                pass

    def arrived(self, sink):
        self.drain()
        return self.data.splitlines()


class TestConsoleDescriptor(SinkConformance):
    """The console, where standard output is the operating system's."""

    @pytest.fixture
    def sink(self, capfd):
        self.capfd = capfd
        sink = ConsoleSink(ConsoleConfig())
        yield sink
        sink.close(30)

    def arrived(self, sink):
        return self.capfd.readouterr().out.encode().splitlines()


class TestConsoleCapture(SinkConformance):
    """The console, where standard error is a notebook's or a test's."""

    @pytest.fixture
    def sink(self, capsys):
        self.capsys = capsys
        sink = ConsoleSink(ConsoleConfig(stream="stderr"))
        yield sink
        sink.close(30)

    def arrived(self, sink):
        return self.capsys.readouterr().err.encode().splitlines()


class TestRecordingSink(SinkConformance):
    """The public double keeps the contract that it stands in for."""

    @pytest.fixture
    def sink(self):
        return RecordingSink()

    def arrived(self, sink):
        return [record.body for record in sink.delivered]
