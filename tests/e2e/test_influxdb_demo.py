"""`make demo` with InfluxDB: the server has every event that the demo's file has."""

import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.e2e.processes import events_in
from tests.encoding.line_protocol_cases import expected_tags

pytestmark = pytest.mark.influxdb

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "run.py"
PREFIX = "OTEL_EXPORTER_CBTOP_"


def test_the_demo_fills_a_real_influxdb(influxdb2, tmp_path):
    """With five variables set, as a user would set them, each event of the file is one point."""
    bucket = influxdb2.new_bucket()
    token = tmp_path / "token"
    token.write_text(influxdb2.new_token(bucket, "write")["token"])
    done = subprocess.run(
        [sys.executable, DEMO, "--seconds", "2"],
        cwd=tmp_path,
        env={
            **os.environ,
            f"{PREFIX}SINK": "influxdb",
            f"{PREFIX}INFLUXDB_URL": influxdb2.url,
            f"{PREFIX}INFLUXDB_ORG": influxdb2.org,
            f"{PREFIX}INFLUXDB_BUCKET": bucket,
            f"{PREFIX}INFLUXDB_TOKEN_FILE": str(token),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same events went to influxdb" in done.stdout
    assert "otel_cbtop_exporter" not in done.stdout  # no warning from the package
    events = defaultdict(list)
    signals = Counter()
    for event in events_in(tmp_path / ".demo"):
        signals[event.signal] += 1
        tags = frozenset(expected_tags(event).items())
        events[event.measurement, tags, event.timestamp_ns].append(event)
    assert signals.keys() >= {"span", "log", "metric", "exemplar", "span_event"}
    names = {measurement for measurement, _, _ in events}
    assert {"spans", "logs", "http.server.request.duration"} <= names

    points = influxdb2.points(bucket, *sorted(names))
    assert len(points) == signals.total()
    for measurement, tags, fields, time_ns in points:
        given = frozenset((key, value) for key, value in tags.items() if value)
        at_ns = fields.get("original_timestamp_ns", time_ns)
        candidates = events[measurement, given, at_ns]
        assert any(holds(fields, event) for event in candidates), (measurement, fields)


def holds(fields, event):
    wanted = {**event.fields}
    if event.correlation_id:
        wanted["correlation_id"] = event.correlation_id
    return all(fields.get(key) == value for key, value in wanted.items())
