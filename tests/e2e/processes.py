"""Real applications in real processes, instrumented from outside, and the events they leave."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import requests

from otel_cbtop_exporter import decode_event

BIN = Path(sys.executable).parent

# Short delays, because the tests wait for real processes.
INSTRUMENTED = {
    "OTEL_SERVICE_NAME": "shop",
    "OTEL_TRACES_EXPORTER": "cbtop",
    "OTEL_METRICS_EXPORTER": "cbtop",
    "OTEL_LOGS_EXPORTER": "cbtop",
    "OTEL_BSP_SCHEDULE_DELAY": "200",
    "OTEL_BLRP_SCHEDULE_DELAY": "200",
    "OTEL_METRIC_EXPORT_INTERVAL": "500",
    "OTEL_SEMCONV_STABILITY_OPT_IN": "http",
}


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def executable(name):
    path = BIN / name
    assert path.exists(), f"{path} is not installed; run make setup"
    return str(path)


class Application:
    """A running command that serves HTTP at `url`."""

    def __init__(self, process, port, log):
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self._log = log

    @property
    def log(self):
        return self._log.read_text()

    def wait_until_it_answers(self, path):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log
            with contextlib.suppress(requests.ConnectionError):
                requests.get(self.url + path, timeout=10)
                return
            time.sleep(0.05)
        raise AssertionError(f"no answer: {self.log}")

    def end(self, by=signal.SIGTERM):
        """Send a signal and return the exit status."""
        self.process.send_signal(by)
        return self.process.wait(60)


@contextlib.contextmanager
def running(command, folder, *, port, ready="/ready", **environment):
    """Run a command in a folder, wait until it answers, and kill it when the block ends."""
    log = folder / "application.log"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [executable("opentelemetry-instrument"), *command],
            cwd=folder,
            env={**inherited, "PATH": f"{BIN}:{os.environ['PATH']}", **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    application = Application(process, port, log)
    try:
        application.wait_until_it_answers(ready)
        yield application
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def events_in(folder, pattern="*.jsonl"):
    """Decode every line that was written."""
    return [
        decode_event(line)
        for path in sorted(folder.glob(pattern))
        for line in path.read_bytes().splitlines()
    ]


def server_spans(events, path_key="url.path"):
    """Return the paths of all server spans except those of the readiness check."""
    found = [
        event.attributes[path_key]
        for event in events
        if event.signal == "span" and event.tags["span.kind"] == "SERVER"
    ]
    return sorted(path for path in found if path != "/ready")
