"""A real Apache Kafka broker for tests: started, broken, repaired, filled and read back.

Import the fixture that a test module needs. `broker` is shared by the module, and no test breaks
or configures it; CBTOP_TEST_KAFKA=host:port replaces it with a running one. Tests that break or
configure a broker start their own with `start_broker`.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

_SCRIPT = Path(__file__).parent / "kafka" / "kafka.sh"


def _run(verb, folder, *arguments):
    done = subprocess.run(
        [_SCRIPT, verb, folder, *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 0, f"kafka.sh {verb} failed; it says above why"
    return done.stdout.strip()


class Broker:
    """One broker: where it listens, and what can be done to it."""

    def __init__(self, bootstrap, listeners=None, folder=None):
        self.bootstrap = bootstrap
        self.listeners = listeners or {"PLAINTEXT": bootstrap}
        self._folder = folder

    def kill(self):
        _run("kill", self._folder)

    def restart(self):
        _run("restart", self._folder)

    def stop(self):
        _run("stop", self._folder)

    @contextlib.contextmanager
    def hung(self):
        """Suspend the broker inside the block: it answers nothing, and keeps every connection."""
        pid = json.loads((self._folder / "broker.json").read_text())["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def new_topic(self, partitions=1, **config):
        """Make a topic with a new name; return the name."""
        name = f"t{uuid.uuid4().hex}"
        self.make_topic(name, partitions, **config)
        return name

    def make_topic(self, name, partitions=1, **config):
        config = {key.replace("_", "."): str(value) for key, value in config.items()}
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        topic = NewTopic(name, partitions, replication_factor=1, config=config)
        admin.create_topics([topic])[name].result(30)
        # A topic that was created is not visible at once.
        deadline = time.monotonic() + 30
        while name not in admin.list_topics(timeout=30).topics:
            assert time.monotonic() < deadline, f"topic {name} did not appear"

    def read(self, topic, partitions=None):
        """Return all messages of a topic, by partition, in order."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": uuid.uuid4().hex,
                "enable.auto.commit": False,
                "enable.partition.eof": False,
            }
        )
        try:
            metadata = consumer.list_topics(topic, timeout=30).topics[topic]
            if metadata.error is not None:
                raise KafkaException(metadata.error)
            ends = {
                number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=30)[1]
                for number in metadata.partitions
            }
            messages = {number: [] for number in ends}
            consumer.assign([TopicPartition(topic, number, 0) for number in ends])
            consumer_at = dict.fromkeys(ends, 0)
            deadline = time.monotonic() + 60
            # Compare positions, not counts: the offsets of a killed broker may have gaps.
            while any(consumer_at[number] < end for number, end in ends.items()):
                assert time.monotonic() < deadline, f"{topic} could not be read to its end"
                for message in consumer.consume(10_000, timeout=0.5):
                    if message.error() is not None:
                        raise KafkaException(message.error())
                    messages[message.partition()].append(message)
                    consumer_at[message.partition()] = message.offset() + 1
            return messages
        finally:
            consumer.close()

    def read_all(self, topic):
        """Return all messages of a topic, partition after partition."""
        return [message for messages in self.read(topic).values() for message in messages]


@contextlib.contextmanager
def start_broker(folder, *arguments):
    """Run a separate broker in a new folder; `arguments` are those of `kafka.sh start`."""
    bootstrap = _run("start", folder, *arguments)
    try:
        listeners = json.loads((folder / "broker.json").read_text())["listeners"]
        yield Broker(bootstrap, listeners, folder)
    finally:
        _run("stop", folder)


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    """A broker for the whole module, which no test breaks or configures."""
    if running := os.environ.get("CBTOP_TEST_KAFKA"):
        yield Broker(running)
        return
    with start_broker(tmp_path_factory.mktemp("kafka") / "broker") as started:
        yield started
