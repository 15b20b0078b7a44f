"""An application under test that makes spans through the SDK's own BatchSpanProcessor.

Usage: app.py SETTINGS, a JSON object with the fields of `Settings`. It makes its spans, reports it,
and then follows commands on standard input, one word and one number per line: `look 0`,
`flush SECONDS`, `close SECONDS` (only the exporter), `shutdown 0` (the SDK, as at exit),
`join SECONDS` (threads that were told to end), `reap 0` (forked children). Every answer is one JSON
object on standard output.

Every batch that was handed to `export()` is noted in a file, after `export()` has returned and
before the SDK gets the result, as ranges of numbers: `<name> <first>-<last>`.
"""

import contextlib
import itertools
import os
import resource
import sys
import threading
import time
from pathlib import Path

import msgspec


class Settings(msgspec.Struct):
    """What to do; `sink` is `http`, `influxdb` or `none`, and `options` are the exporter's.

    `rate` is spans per second, 0 for no pause. Each span has `padding` bytes. The SDK's queue is
    flushed after every `flush_every` spans; 0 leaves that to the SDK. At the span with the given
    number, file sizes are limited to about the largest spool file (`squeeze_at`), the limit is
    removed (`relax_at`), or the clock is set back by an hour (`set_back_at`).

    With `crowded` a second thread makes spans, too, and flushes them a few at a time. At each span
    number in `fork_at` a child is forked, which makes `child_count` spans of its own and exits as
    an application does.
    """

    name: str
    sink: str
    url: str
    noted: str
    count: int
    rate: float = 1_000
    padding: int = 0
    flush_every: int = 0
    logs: bool = False
    metrics: bool = False
    options: dict = {}
    squeeze_at: int = -1
    relax_at: int = -1
    set_back_at: int = -1
    crowded: bool = False
    fork_at: list[int] = []
    child_count: int = 0


# Replaced before anything imports it by name, so that everything uses this clock.
_clock = {"back_ns": 0, "real": time.time_ns}
time.time_ns = lambda: _clock["real"]() - _clock["back_ns"]

from opentelemetry._logs import LogRecord  # noqa: E402
from opentelemetry.sdk._logs import LoggerProvider  # noqa: E402
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor  # noqa: E402
from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: E402

from otel_cbtop_exporter import (  # noqa: E402
    CbtopLogRecordExporter,
    CbtopMetricExporter,
    CbtopSpanExporter,
)
from tests.faults.http_sink import HttpSink  # noqa: E402


class Notes:
    """The file that lists what was handed to `export()`; several processes may write it."""

    def __init__(self, path):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, ids):
        """Note ids of the form `#<name>:<number>#`."""
        ranges = []
        for id_ in ids:
            name, _, number = id_.strip("#").partition(":")
            number = int(number)
            if ranges and ranges[-1][0] == name and ranges[-1][2] == number - 1:
                ranges[-1][2] = number
            else:
                ranges.append([name, number, number])
        text = "".join(f"{name} {first}-{last}\n" for name, first, last in ranges)
        os.write(self._file, text.encode())


class NotedSpanExporter(CbtopSpanExporter):
    def __init__(self, notes, **options):
        super().__init__(**options)
        self._notes = notes

    def export(self, spans):
        result = super().export(spans)
        self._notes.add(span.attributes["id"] for span in spans)
        return result


class NotedLogRecordExporter(CbtopLogRecordExporter):
    def __init__(self, notes, **options):
        super().__init__(**options)
        self._notes = notes

    def export(self, batch):
        result = super().export(batch)
        self._notes.add(item.log_record.body for item in batch)
        return result


def sink_options(sink, url):
    """Return the exporter options that select its sink."""
    if sink == "http":
        return {"sink": HttpSink(url)}
    influxdb = {"url": url, "org": "o", "bucket": "{signal}", "token": "a-token"}
    return {"sink": "influxdb", "influxdb": influxdb}


class App:
    """The application with its providers; without a sink it has no exporter."""

    def __init__(self, settings):
        self._settings = settings
        self._traces = TracerProvider(shutdown_on_exit=False)
        self._providers = [self._traces]
        self._exporter = None
        self._logger = self._counter = None
        self._took_ns = []
        self._children = []
        self._early_peak_bytes = 0
        self._descriptors = descriptors()
        if settings.sink != "none":
            self._export()

    def _export(self):
        settings = self._settings
        notes = Notes(settings.noted)
        options = {**settings.options, **sink_options(settings.sink, settings.url)}
        self._exporter = NotedSpanExporter(notes, **options)
        self._traces.add_span_processor(BatchSpanProcessor(self._exporter))
        if settings.logs:
            logs = LoggerProvider(shutdown_on_exit=False)
            exporter = NotedLogRecordExporter(notes, **options)
            logs.add_log_record_processor(BatchLogRecordProcessor(exporter))
            self._logger = logs.get_logger("app")
            self._providers.append(logs)
        if settings.metrics:
            reader = PeriodicExportingMetricReader(CbtopMetricExporter(**options), 500)
            metrics = MeterProvider([reader], shutdown_on_exit=False)
            self._counter = metrics.get_meter("app").create_counter("spans.made")
            self._providers.append(metrics)

    def make_all(self):
        """Make every span, flush the SDK's queue, and return the facts to report."""
        settings = self._settings
        crowd, crowd_ends = None, threading.Event()
        if settings.crowded:
            crowd = threading.Thread(target=self._crowd, args=(crowd_ends,))
            crowd.start()
        self._make(settings.name, settings.count, settings.fork_at)
        if crowd is not None:
            crowd_ends.set()
            crowd.join()
        for provider in self._providers:
            if not isinstance(provider, MeterProvider):  # its reader would also flush the exporter
                provider.force_flush()
        took = sorted(self._took_ns)
        return {"made": settings.count, "p99_us": took[len(took) * 99 // 100] / 1_000}

    def _crowd(self, ends):
        tracer = self._traces.get_tracer("crowd")
        for number in itertools.count():
            with tracer.start_as_current_span("beside") as span:
                span.set_attribute("id", f"#{self._settings.name}-beside:{number}#")
            if number % 20 == 0:
                self._traces.force_flush()
                if ends.wait(0.002):
                    return

    def _fork(self):
        name = f"{self._settings.name}-child{len(self._children)}"
        pid = os.fork()
        if pid:
            self._children.append(pid)
            return
        code = 1
        try:
            self._make(name, self._settings.child_count, ())
            self._traces.force_flush()
            if self._exporter.force_flush(120_000):
                self.shutdown(0)
                code = 0
        finally:
            os._exit(code)

    def _make(self, name, count, fork_at):
        settings = self._settings
        tracer = self._traces.get_tracer("app")
        begin = time.monotonic()
        for number in range(count):
            self._disturb(number)
            if number in fork_at:
                self._fork()
            id_ = f"#{name}:{number}#"
            before = time.perf_counter_ns()
            with tracer.start_as_current_span("work") as span:
                span.set_attribute("id", id_)
                if settings.padding:
                    span.set_attribute("padding", os.urandom(settings.padding // 2).hex())
            self._took_ns.append(time.perf_counter_ns() - before)
            if self._logger is not None:
                self._logger.emit(LogRecord(body=f"#{name}-log:{number}#"))
            if self._counter is not None:
                self._counter.add(1)
            if settings.flush_every and number % settings.flush_every == 0:
                self._traces.force_flush()
            if number == settings.count // 4:
                self._early_peak_bytes = peak_bytes()
            if settings.rate:
                ahead = begin + (number + 1) / settings.rate - time.monotonic()
                if ahead > 0.002:
                    time.sleep(ahead)

    def _disturb(self, number):
        settings = self._settings
        if number == settings.squeeze_at:
            files = Path(settings.options["spool"]["path"]).rglob("*.db*")
            largest = max(path.stat().st_size for path in files)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 10_000, resource.RLIM_INFINITY))
        if number == settings.relax_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        if number == settings.set_back_at:
            _clock["back_ns"] = 3_600_000_000_000

    def look(self, _):
        return {}

    def flush(self, seconds):
        return {"flushed": self._exporter.force_flush(seconds * 1_000)}

    def close(self, seconds):
        began = time.monotonic()
        self._exporter.shutdown(seconds * 1_000)
        return {"seconds": time.monotonic() - began}

    def shutdown(self, _):
        began = time.monotonic()
        for provider in reversed(self._providers):  # newest first, as at exit
            provider.shutdown()
        return {"seconds": time.monotonic() - began}

    def reap(self, _):
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self._children]
        return {"children": statuses}

    def join(self, seconds):
        deadline = time.monotonic() + seconds
        for thread in threading.enumerate():
            if thread is not threading.current_thread():
                thread.join(max(0, deadline - time.monotonic()))
        return {}

    def state(self):
        """Return the facts that can be reported at any time."""
        if self._exporter is None:
            return {}
        return {
            "health": self._exporter.health(),
            "threads": [thread.name for thread in threading.enumerate()],
            "new_descriptors": sorted(descriptors() - self._descriptors),
            "grown_bytes": peak_bytes() - self._early_peak_bytes,
        }


def descriptors():
    """Return the open descriptors, except that of the notes file."""
    opened = set()
    for path in Path("/dev/fd").iterdir():
        with contextlib.suppress(OSError):  # the descriptor of the listing is closed by now
            target = path.readlink()
            if target.name != "noted":
                opened.add(f"{path.name}: {target}")
    return opened


def peak_bytes():
    unit = 1 if sys.platform == "darwin" else 1_024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def tell(**facts):
    sys.stdout.buffer.write(msgspec.json.encode(facts) + b"\n")
    sys.stdout.buffer.flush()


def main(settings):
    app = App(msgspec.json.decode(settings, type=Settings))
    tell(**app.make_all(), **app.state())
    for line in sys.stdin:
        word, _, number = line.partition(" ")
        tell(**getattr(app, word)(float(number)), **app.state())


if __name__ == "__main__":
    main(sys.argv[1])
