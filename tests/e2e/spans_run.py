"""Runs of spans_app.py: its life and death, and what it handed over."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from tests.e2e.spans_app import Settings

SCRIPT = Path(__file__).with_name("spans_app.py")


class App:
    """The application, running; its folder outlives it, as its spool does."""

    def __init__(self, folder, options, *, spooled, **settings):
        common = {
            "spool": {"path": str(folder / "spool") if spooled else None},
            "retry": {"initial_delay_ms": 50, "max_delay_ms": 500},
        }
        told = Settings(options={**common, **options}, handed=str(folder / "handed"), **settings)
        self.process = subprocess.Popen(
            [sys.executable, SCRIPT, msgspec.json.encode(told)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=SCRIPT.parents[2],
        )

    def end(self):
        """Wait for its end; returns what it prints."""
        out, err = self.process.communicate(timeout=90)
        assert self.process.returncode == 0, err.decode()
        return json.loads(out)

    def kill(self):
        self.process.kill()
        self.process.communicate(timeout=30)


@contextlib.contextmanager
def running(folder, options, *, spooled=True, **settings):
    """Run the application with a sink's options; it does not outlive the block."""
    app = App(folder, options, spooled=spooled, **settings)
    try:
        yield app
    finally:
        if app.process.poll() is None:
            app.kill()


def accepted(folder):
    """Return the numbers of the spans that `export` accepted, whoever ran in the folder."""
    path = folder / "handed"
    # Without a line that is being written.
    lines = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    return [number for line in lines for number in json.loads(line)]


def wait_until_accepted(folder, count):
    deadline = time.monotonic() + 60
    while len(accepted(folder)) < count:
        assert time.monotonic() < deadline, f"{count} spans were not accepted"
        time.sleep(0.02)
