"""The guarantees of delivery with a real application and a real broker: nothing is lost.

"Lost" means accepted by `export()` and not in the topic. Duplicates are allowed, and printed.
"""

import time
from collections import Counter

import pytest

from otel_cbtop_exporter import decode_event
from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.delivery.pipeline import Pipeline
from otel_cbtop_exporter.sinks.kafka import KafkaSink
from otel_cbtop_exporter.tag_set import TagSet
from tests.e2e.spans_run import accepted, running, wait_until_accepted
from tests.servers.kafka_broker import start_broker
from tests.sinks.kafka_data import span

pytestmark = [pytest.mark.kafka, pytest.mark.faults]


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kafka") / "broker"
    with start_broker(folder, "auto.create.topics.enable=false") as started:
        yield started


def run(broker, topic, folder, **settings):
    kafka = {"bootstrap_servers": broker.bootstrap, "topic": topic, "compression": "none"}
    return running(folder, {"sink": "kafka", "kafka": kafka}, **settings)


def arrived(broker, topic):
    events = [decode_event(message.value()) for message in broker.read_all(topic)]
    return Counter(event.attributes["number"] for event in events)


def assert_nothing_lost(broker, topic, folder, except_for=()):
    seen = arrived(broker, topic)
    print(f"twice: {sum(seen.values()) - len(seen)} of {len(seen)}")
    assert set(accepted(folder)) - set(except_for) == set(seen)


@pytest.mark.parametrize("spooled", [True, False], ids=["disk", "memory"])
def test_broker_down_in_the_middle(broker, tmp_path, spooled):
    """Scenario 1: the broker is killed and comes back; no spool loses anything."""
    topic = broker.new_topic(partitions=3)
    with run(broker, topic, tmp_path, first=0, count=5000, spooled=spooled) as app:
        wait_until_accepted(tmp_path, 1000)
        broker.kill()
        try:
            wait_until_accepted(tmp_path, 3000)
        finally:
            broker.restart()
        health = app.end()["health"]
    assert health["events_written"] == len(accepted(tmp_path)) == 5000
    assert_nothing_lost(broker, topic, tmp_path)


def test_application_killed_in_an_outage(broker, tmp_path):
    """Scenario 3: the next process delivers what a killed one left in its spool."""
    topic = broker.new_topic()
    with run(broker, topic, tmp_path, first=0, count=100_000) as app:
        wait_until_accepted(tmp_path, 500)
        broker.stop()
        try:
            wait_until_accepted(tmp_path, 1500)
            app.kill()
        finally:
            broker.restart()
    with run(broker, topic, tmp_path, first=100_000, count=500) as app:
        app.end()
    assert_nothing_lost(broker, topic, tmp_path)


def test_shutdown_with_the_broker_away(broker, tmp_path):
    """Without a broker the application ends within 3 s, and the next one delivers what it left."""
    topic = broker.new_topic()
    broker.stop()
    try:
        with run(broker, topic, tmp_path, first=0, count=500, flush_seconds=1) as app:
            wait_until_accepted(tmp_path, 500)
            told = app.end()
    finally:
        broker.restart()
    assert told["shutdown_seconds"] < 4  # 3 s, plus time for a busy machine
    assert told["health"]["events_written"] == 0
    assert "no broker answers" in told["health"]["last_error"]
    with run(broker, topic, tmp_path, first=500, count=100) as app:
        app.end()
    assert_nothing_lost(broker, topic, tmp_path)


@pytest.mark.parametrize("spooled", [True, False], ids=["disk", "memory"])
def test_poisoned_records(broker, tmp_path, spooled):
    """Scenario 6: one record in a thousand is refused by the topic; only those are rejected."""
    topic = broker.new_topic(max_message_bytes=50_000)
    options = {
        "first": 1,
        "count": 3000,
        "spooled": spooled,
        "odd_every": 1000,
        "odd_padding": 100_000,
    }
    with run(broker, topic, tmp_path, **options) as app:
        health = app.end()["health"]
    assert health["events_rejected"] == 3
    assert health["events_written"] == 2997
    assert_nothing_lost(broker, topic, tmp_path, except_for=(1000, 2000, 3000))


@pytest.mark.parametrize("spooled", [True, False], ids=["disk", "memory"])
def test_batches_too_large_for_the_topic(broker, tmp_path, spooled):
    """Scenario 7: every full produce batch is refused; after halving, all of it arrives."""
    topic = broker.new_topic(max_message_bytes=5_000)
    with run(broker, topic, tmp_path, first=0, count=1500, spooled=spooled) as app:
        health = app.end()["health"]
    assert (health["events_written"], health["events_rejected"]) == (1500, 0)
    assert_nothing_lost(broker, topic, tmp_path)


@pytest.mark.parametrize("spooled", [True, False], ids=["disk", "memory"])
def test_one_lane_refused_all_the_time(broker, tmp_path, spooled):
    """Scenario 16: events for a missing topic wait and are counted; the others arrive."""
    topic = broker.new_topic()
    config = ExporterConfig(
        sink="kafka",
        kafka={"bootstrap_servers": broker.bootstrap, "topic": "{to}"},
        spool={"path": str(tmp_path / "spool") if spooled else None},
        retry={"initial_delay_ms": 50, "max_delay_ms": 500},
    )
    good, missing = TagSet({"to": topic}), TagSet({"to": "is.not.there"})
    pipeline = Pipeline(KafkaSink(config.kafka), config)
    for number in range(0, 2000, 100):
        batch = [
            span(n, tags=tags) for n in range(number, number + 100) for tags in (good, missing)
        ]
        assert pipeline.submit(batch, 10)
    deadline = time.monotonic() + 60
    # What was written leaves the spool a moment later.
    while (health := pipeline.health()).events_spooled != 2000 or not health.last_error:
        assert time.monotonic() < deadline, health
        time.sleep(0.05)
    assert (health.events_written, health.events_dropped) == (2000, {})
    assert "is.not.there does not exist" in health.last_error
    pipeline.release(3)
    assert len(broker.read_all(topic)) == 2000
    if not spooled:
        assert sum(pipeline.health().events_dropped.values()) == 2000
