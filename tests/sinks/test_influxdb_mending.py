"""Problems that somebody can fix lose nothing: tokens, buckets, organizations, dead servers."""

import threading
import uuid

import pytest

from otel_cbtop_exporter.events import Event
from tests.servers.influxdb import InfluxDB
from tests.sinks.influxdb_data import (
    BASE_NS,
    TAGS,
    dead_letters,
    delivering,
    settled,
    spans,
    wait_until,
)

pytestmark = pytest.mark.influxdb


def refused(pipeline, words):
    """Wait until the last error holds some words; return the health of that moment."""
    wait_until(lambda: words in pipeline.health().last_error, about=pipeline.health)
    return pipeline.health()


def wait_until_written(pipeline, count):
    wait_until(lambda: pipeline.health().events_written >= count, about=pipeline.health)


def outcome(health):
    return health.events_written, health.events_rejected, health.events_dropped


def test_a_revoked_token_that_is_mended_in_its_file(influxdb2, tmp_path):
    """Points written after a token was revoked arrive once the file has a new one."""
    bucket = influxdb2.new_bucket()
    first = influxdb2.new_token(bucket, "write")
    file = tmp_path / "token"
    file.write_text(first["token"])
    options = influxdb2.options(bucket, token=None, token_file=str(file))
    with delivering(tmp_path, **options) as pipeline:
        pipeline.submit(spans(100), 10)
        settled(pipeline, 100)
        influxdb2.api("DELETE", f"/api/v2/authorizations/{first['id']}")
        pipeline.submit(spans(100, start=100), 10)
        health = refused(pipeline, "answered 401")
        assert health.last_error == (
            "InfluxDB answered 401: the token is not accepted; "
            "check influxdb.token or influxdb.token_file"
        )
        assert (health.events_spooled, health.connected) == (100, False)
        file.write_text(influxdb2.new_token(bucket, "write")["token"] + "\n")
        assert outcome(settled(pipeline, 200)) == (200, 0, {})
        assert pipeline.health().connected
    assert influxdb2.count(bucket, "spans", "duration_ns") == 200
    assert dead_letters(tmp_path) == []


@pytest.mark.parametrize("where", ["this bucket", "another bucket"])
def test_a_token_that_may_not_write(influxdb2, tmp_path, where):
    """A 403 names the bucket; the points wait for a token that may write, without a restart."""
    bucket = influxdb2.new_bucket()
    file = tmp_path / "token"
    if where == "this bucket":
        weak = influxdb2.new_token(bucket, "read")
    else:
        weak = influxdb2.new_token(influxdb2.new_bucket(), "read", "write")
    file.write_text(weak["token"])
    options = influxdb2.options(bucket, token=None, token_file=str(file))
    with delivering(tmp_path, **options) as pipeline:
        pipeline.submit(spans(100), 10)
        health = refused(pipeline, "answered 403")
        assert health.last_error == (
            f"InfluxDB answered 403: the token may not write to bucket '{bucket}'; "
            "give it that permission"
        )
        file.write_text(influxdb2.new_token(bucket, "write")["token"])
        assert outcome(settled(pipeline, 100)) == (100, 0, {})


def test_a_token_that_was_deactivated(influxdb2, tmp_path):
    """A deactivated token is reported as such, although InfluxDB answers 403 as for permissions."""
    bucket = influxdb2.new_bucket()
    token = influxdb2.new_token(bucket, "write")
    path = f"/api/v2/authorizations/{token['id']}"
    influxdb2.api("PATCH", path, {"status": "inactive"})
    options = influxdb2.options(bucket, token=token["token"])
    with delivering(tmp_path, **options) as pipeline:
        pipeline.submit(spans(100), 10)
        health = refused(pipeline, "answered 403")
        assert "the token is deactivated" in health.last_error
        influxdb2.api("PATCH", path, {"status": "active"})
        assert outcome(settled(pipeline, 100)) == (100, 0, {})


def test_a_missing_bucket_that_is_created(influxdb, tmp_path):
    """A 404 names the missing bucket, and nothing is lost until it is created."""
    name = f"later-{uuid.uuid4().hex}"
    with delivering(tmp_path, **influxdb.options(name)) as pipeline:
        pipeline.submit(spans(100), 10)
        health = refused(pipeline, "answered 404")
        assert health.last_error == (
            f"InfluxDB answered 404: there is no bucket '{name}' that the token can see; "
            "create it or check its name"
        )
        influxdb.new_bucket(name)
        assert outcome(settled(pipeline, 100)) == (100, 0, {})
    assert influxdb.count(name, "spans", "duration_ns") == 100


@pytest.mark.parametrize(
    ("org", "words"),
    [
        ("nobody", "answered 404: there is no organization 'nobody'; check influxdb.org"),
        (None, "answered 400: this server wants an organization; set influxdb.org"),
    ],
)
def test_a_wrong_organization_is_told_and_rejects_nothing(influxdb2, tmp_path, org, words):
    """A wrong organization is reported and rejects nothing, whatever the status."""
    options = {**influxdb2.options("b"), "org": org, "patience_seconds": 0}
    with delivering(tmp_path, **options) as pipeline:
        pipeline.submit(spans(10), 10)
        health = refused(pipeline, words)
        assert (health.events_spooled, health.events_rejected) == (10, 0)


def test_a_url_that_is_not_influxdb(influxdb, tmp_path):
    """A wrong path in the URL is reported as such, and keeps everything."""
    options = {**influxdb.options("b"), "url": f"{influxdb.url}/nothing", "patience_seconds": 0}
    with delivering(tmp_path, **options) as pipeline:
        pipeline.submit(spans(10), 10)
        health = refused(pipeline, "answered 404: there is no /api/v2/write at this influxdb.url")
        assert (health.events_spooled, health.events_rejected) == (10, 0)


def test_a_retention_policy_of_1_8_is_named_with_the_database(influxdb1, tmp_path):
    """`database/policy` writes to that policy; if it is missing, the points are kept."""
    database = influxdb1.new_bucket()
    with delivering(tmp_path, **influxdb1.options(f"{database}/long")) as pipeline:
        pipeline.submit(spans(10), 10)
        refused(pipeline, "answered 500: retention policy not found: long")
        influxdb1.influxql(
            f'CREATE RETENTION POLICY "long" ON "{database}" DURATION INF REPLICATION 1', database
        )
        assert outcome(settled(pipeline, 10)) == (10, 0, {})
    series = influxdb1.influxql(f'SELECT count(duration_ns) FROM "{database}"."long".spans', "")
    assert series[0]["values"][0][1] == 10


@pytest.mark.faults
def test_a_login_of_1_8_is_its_token(monkeypatch, tmp_path):
    """`username:password` is a token of 1.8; a wrong password is reported and can be fixed."""
    server = InfluxDB.start(tmp_path / "server", 1)
    try:
        server.influxql("CREATE USER shop WITH PASSWORD 'pass-w0rd' WITH ALL PRIVILEGES", db="")
        monkeypatch.setenv("INFLUXDB_HTTP_AUTH_ENABLED", "true")
        server.restart()
        server.token = "shop:pass-w0rd"
        file = tmp_path / "token"
        file.write_text("shop:wrong")
        options = server.options("telemetry", token=None, token_file=str(file))
        with delivering(tmp_path, **options) as pipeline:
            pipeline.submit(spans(10), 10)
            refused(pipeline, "answered 401: the token is not accepted")
            file.write_text(server.token)
            assert outcome(settled(pipeline, 10)) == (10, 0, {})
        assert server.count("telemetry", "spans", "span_id") == 10
    finally:
        server.close()


def test_a_bucket_for_each_signal_waits_for_itself(influxdb2, tmp_path):
    """`{signal}` makes three lanes, and a missing bucket does not block the others."""
    name = influxdb2.new_bucket("shop-spans").removesuffix("spans")
    influxdb2.new_bucket(f"{name}metrics")
    logs = [Event("logs", TAGS, {"body": "x"}, BASE_NS + n, signal="log") for n in range(50)]
    sums = [Event("hits", TAGS, {"value": n}, BASE_NS + n, signal="metric") for n in range(50)]
    with delivering(tmp_path, **influxdb2.options(f"{name}{{signal}}")) as pipeline:
        pipeline.submit([*logs, *spans(50), *sums], 10)
        wait_until_written(pipeline, 100)
        refused(pipeline, f"there is no bucket '{name}logs'")
        influxdb2.new_bucket(f"{name}logs")
        assert outcome(settled(pipeline, 150)) == (150, 0, {})
    assert influxdb2.count(f"{name}logs", "logs", "body") == 50
    assert influxdb2.count(f"{name}spans", "spans", "duration_ns") == 50
    assert influxdb2.count(f"{name}metrics", "hits", "value") == 50


@pytest.mark.faults
def test_a_server_that_is_killed_while_it_is_written_to(own_influxdb, tmp_path):
    """A server killed and restarted three times under load has every accepted point once."""
    bucket = own_influxdb.new_bucket()
    load_count, batch = 60_000, 200
    count = load_count
    with delivering(tmp_path, **own_influxdb.options(bucket)) as pipeline:

        def load():
            for start in range(0, load_count, batch):
                assert pipeline.submit(spans(batch, start=start), 10)

        thread = threading.Thread(target=load)
        thread.start()
        for fewest in (2_000, 15_000, 30_000):
            wait_until_written(pipeline, fewest)
            own_influxdb.kill()
            # On a busy machine everything may have been written by now.
            assert pipeline.submit(spans(batch, start=count), 10)
            count += batch
            wait_until(lambda: not pipeline.health().connected, about=pipeline.health)
            own_influxdb.restart()
        thread.join(60)
        health = settled(pipeline, count)
    assert outcome(health) == (count, 0, {})
    assert "cannot be reached" in health.last_error
    assert own_influxdb.count(bucket, "spans", "duration_ns") == count
