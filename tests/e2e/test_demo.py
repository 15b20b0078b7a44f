"""`make demo` without a server: what it says of a sink that gets nothing."""

import os
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "run.py"


def test_the_demo_does_not_say_that_events_went_where_none_went(tmp_path):
    """With a sink that lacks its settings, the demo shows the complaint and claims no delivery."""
    done = subprocess.run(
        [sys.executable, DEMO, "--seconds", "1"],
        cwd=tmp_path,
        env={**os.environ, "OTEL_EXPORTER_CBTOP_SINK": "influxdb"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rest = done.stdout.partition("sink influxdb needs influxdb.url")[2]
    assert "the same events were meant for influxdb" in rest
    assert "went to" not in done.stdout
