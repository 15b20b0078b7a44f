"""Run spans_app.py, end or kill it, and read what it handed over."""

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
    """The running application; its folder, with the spool in it, outlives it."""

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
        """Wait until it ends; return what it printed."""
        out, err = self.process.communicate(timeout=90)
        assert self.process.returncode == 0, err.decode()
        return json.loads(out)

    def kill(self):
        self.process.kill()
        self.process.communicate(timeout=30)


@contextlib.contextmanager
def running(folder, options, *, spooled=True, **settings):
    """Run the application with a sink's options; it is killed if it still runs after the block."""
    app = App(folder, options, spooled=spooled, **settings)
    try:
        yield app
    finally:
        if app.process.poll() is None:
            app.kill()


def accepted(folder):
    """Return the numbers of all spans that `export` accepted in any process of this folder."""
    path = folder / "handed"
    # Ignore a line that is still being written.
    lines = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    return [number for line in lines for number in json.loads(line)]


def wait_until_accepted(folder, count):
    deadline = time.monotonic() + 60
    while len(accepted(folder)) < count:
        assert time.monotonic() < deadline, f"{count} spans were not accepted"
        time.sleep(0.02)
