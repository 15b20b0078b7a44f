"""The guarantees of delivery with a real application and a real InfluxDB: nothing is lost.

"Lost" means accepted by `export()` and not in the bucket.
"""

import json

import msgspec
import pytest

from otel_cbtop_exporter.tag_set import TagSet
from tests.e2e.spans_run import accepted, running, wait_until_accepted
from tests.servers.influxdb import InfluxDB
from tests.sinks.influxdb_data import dead_letters, delivering, span, spans, wait_until

pytestmark = [pytest.mark.influxdb, pytest.mark.faults]

LONG_AGO_NS = 1_000_000_000_000_000_000
SPOOLS = pytest.mark.parametrize("spooled", [True, False], ids=["disk", "memory"])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that is killed and restarted."""
    started = InfluxDB.start(tmp_path_factory.mktemp("influxdb") / "server", 2)
    try:
        yield started
    finally:
        started.close()


def run(server, bucket, folder, **settings):
    options = {"sink": "influxdb", "influxdb": server.options(bucket)}
    return running(folder, options, **settings)


def arrived(server, bucket):
    points = server.points(bucket, "spans")
    return sorted(json.loads(fields["attributes"])["number"] for _, _, fields, _ in points)


@SPOOLS
def test_server_down_in_the_middle(server, tmp_path, spooled):
    """Scenario 1: the server is killed and comes back; no spool loses anything."""
    bucket = server.new_bucket()
    with run(server, bucket, tmp_path, count=4_000, spooled=spooled) as app:
        wait_until_accepted(tmp_path, 500)
        server.kill()
        try:
            wait_until_accepted(tmp_path, 2_500)
        finally:
            server.restart()
        health = app.end()["health"]
    assert health["events_written"] == 4_000
    assert "cannot be reached" in health["last_error"]
    assert sorted(accepted(tmp_path)) == arrived(server, bucket) == list(range(4_000))


def test_application_killed_in_an_outage(server, tmp_path):
    """Scenario 3: the next process delivers what a killed one left in its spool."""
    bucket = server.new_bucket()
    with run(server, bucket, tmp_path, count=100_000) as app:
        wait_until(lambda: server.count(bucket, "spans", "span_id") > 0)
        server.kill()
        try:
            wait_until_accepted(tmp_path, len(accepted(tmp_path)) + 1_000)
            app.kill()
        finally:
            server.restart()
    left = set(accepted(tmp_path)) - set(arrived(server, bucket))
    assert len(left) >= 1_000
    with run(server, bucket, tmp_path, first=100_000, count=200) as app:
        app.end()
    assert set(accepted(tmp_path)) == set(arrived(server, bucket))


@SPOOLS
def test_one_span_in_a_hundred_is_refused(server, tmp_path, spooled):
    """Scenario 6: spans outside the retention period are rejected alone, and counted exactly."""
    bucket = server.new_bucket(retention_seconds=24 * 3600)
    with run(
        server,
        bucket,
        tmp_path,
        first=1,
        count=2_000,
        spooled=spooled,
        odd_every=100,
        odd_start_ns=LONG_AGO_NS,
    ) as app:
        health = app.end()["health"]
    assert (health["events_written"], health["events_rejected"]) == (1_980, 20)
    assert arrived(server, bucket) == [n for n in range(1, 2_001) if n % 100]
    if spooled:
        letters = dead_letters(tmp_path)
        assert {letter["reason"] for letter in letters} == {"outside_retention"}
        assert len(letters) == 20


@SPOOLS
def test_requests_that_are_too_large(monkeypatch, tmp_path, spooled):
    """Scenario 7: requests are made smaller until they fit, and all spans arrive.

    The server is InfluxDB 1.8 with a small `max-body-size`.
    """
    monkeypatch.setenv("INFLUXDB_HTTP_MAX_BODY_SIZE", "4000")
    server = InfluxDB.start(tmp_path / "server", 1)
    try:
        bucket = server.new_bucket()
        with run(server, bucket, tmp_path, count=1_500, spooled=spooled) as app:
            health = app.end()["health"]
        assert (health["events_written"], health["events_rejected"]) == (1_500, 0)
        assert "too large (413)" in health["last_error"]
        assert arrived(server, bucket) == list(range(1_500))
    finally:
        server.close()


@SPOOLS
def test_one_bucket_refused_all_the_time(server, tmp_path, spooled):
    """Scenario 16: events for a missing bucket wait and are counted; the others arrive."""
    bucket = server.new_bucket("lanes-spans").replace("spans", "{signal}")
    options = {"spooled": spooled, "patience_seconds": 0, **server.options(bucket)}
    tags = TagSet({"service.name": "shop"})
    with delivering(tmp_path, **options) as pipeline:
        for start in range(0, 2_000, 100):
            logs = [span(n, tags=tags) for n in range(start, start + 100)]
            logs = [msgspec.structs.replace(one, signal="log", measurement="logs") for one in logs]
            assert pipeline.submit([*logs, *spans(100, start=start)], 10)
        wait_until(lambda: pipeline.health().events_written == 2_000, about=pipeline.health)
        health = pipeline.health()
        assert (health.events_spooled, health.events_dropped) == (2_000, {})
        assert "there is no bucket 'lanes-logs'" in health.last_error
    assert server.count("lanes-spans", "spans", "span_id") == 2_000
    if not spooled:
        assert sum(pipeline.health().events_dropped.values()) == 2_000
    server.drop_buckets()
