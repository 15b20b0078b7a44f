"""Many writers send 100,000 events of every kind through pipeline and sink to a real broker."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from otel_cbtop_exporter.encoding.event_json import encode_event
from tests.e2e.kafka_writers import THREADS, WORKERS, made_events
from tests.servers.kafka_broker import broker  # noqa: F401  a fixture
from tests.sinks.kafka_data import java_partition

pytestmark = pytest.mark.kafka

SCRIPT = Path(__file__).parent / "kafka_writers.py"
PARTITIONS = 6
EACH = 12_500
TOPIC_OF = {"span": "spans", "span_event": "spans", "span_link": "spans", "log": "logs"}


def test_many_writers(broker):  # noqa: F811  the fixture
    """Every event is read back unchanged and once.

    Each trace and series is in one partition, in order.
    """
    name = broker.new_topic()
    topics = {kind: f"{name}.{kind}" for kind in ("metrics", "spans", "logs")}
    for topic in topics.values():
        broker.make_topic(topic, PARTITIONS)
    done = subprocess.run(
        [sys.executable, SCRIPT, broker.bootstrap, f"{name}.{{signal}}", str(EACH)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=SCRIPT.parents[2],
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["workers"] == [0, 0, 0, 0]
    assert told["health"]["events_written"] == 4 * EACH + 500
    assert told["health"]["events_dropped"] == {}
    assert told["health"]["client_statistics"]["brokers_up"] == 1

    wanted = {topic: [] for topic in topics.values()}
    for writer in (*THREADS, *WORKERS):
        for event in made_events(writer, EACH):
            kind = TOPIC_OF.get(event.signal, "metrics")
            wanted[topics[kind]].append(encode_event(event))
    for event in made_events("before", 500):
        wanted[topics[TOPIC_OF.get(event.signal, "metrics")]].append(encode_event(event))
    assert sum(map(len, wanted.values())) == 100_500
    for topic, bodies in wanted.items():
        read = broker.read(topic)
        arrived = [message.value() for messages in read.values() for message in messages]
        assert Counter(arrived) == Counter(bodies)
        order = {body: at for at, body in enumerate(bodies)}
        last_of_key = {}
        for partition, messages in read.items():
            for message in messages:
                if message.key() is None:
                    continue
                assert java_partition(message.key(), PARTITIONS) == partition
                at = order[message.value()]
                assert last_of_key.get(message.key(), -1) < at
                last_of_key[message.key()] = at
