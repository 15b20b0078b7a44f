"""The demo with a real Kafka broker as its sink, and the consumer of examples/kafka."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from otel_cbtop_exporter import decode_event
from tests.servers.kafka_broker import broker  # noqa: F401  a fixture

pytestmark = pytest.mark.kafka

EXAMPLES = Path(__file__).parents[2] / "examples"
TOPICS = {kind: f"demo.{kind}" for kind in ("spans", "logs", "metrics")}
KIND = {"span": "spans", "span_event": "spans", "log": "logs"}


def run(script, *arguments, cwd, **environment):
    done = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def demo(broker, tmp_path_factory):  # noqa: F811  the fixture
    """Return what the demo printed, and the lines of the file that it writes as well."""
    folder = tmp_path_factory.mktemp("demo")
    for topic in TOPICS.values():
        broker.make_topic(topic, 3)
    printed = run(
        EXAMPLES / "demo" / "run.py",
        "--seconds=3",
        cwd=folder,
        OTEL_EXPORTER_CBTOP_SINK="kafka",
        OTEL_EXPORTER_CBTOP_KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap,
        OTEL_EXPORTER_CBTOP_KAFKA_TOPIC="demo.{signal}",
    )
    return printed, (folder / ".demo" / "events.jsonl").read_bytes().splitlines()


def test_the_demo_reaches_kafka(broker, demo):  # noqa: F811  the fixture
    """The topics hold the bytes of the file, each event once and in the right topic."""
    printed, lines = demo
    assert "the same events went to kafka" in printed
    wanted = {topic: Counter() for topic in TOPICS.values()}
    for line in lines:
        wanted[TOPICS[KIND.get(decode_event(line).signal, "metrics")]][line] += 1
    arrived = {
        topic: Counter(message.value() for message in broker.read_all(topic)) for topic in wanted
    }
    assert arrived == wanted
    assert all(len(events) > 5 for events in wanted.values())


def test_the_consumer_prints_one_trace(broker, demo, tmp_path):  # noqa: F811  the fixture
    """The consumer prints every event of a trace, from all three topics, below its span."""
    _, lines = demo
    events = [decode_event(line) for line in lines]
    trace_id = next(
        event.correlation_id
        for event in events
        if event.signal == "log" and event.fields["body"].startswith("order ")
    )
    printed = run(
        EXAMPLES / "kafka" / "trace.py",
        trace_id,
        f"--bootstrap-servers={broker.bootstrap}",
        f"--topics={','.join(TOPICS.values())}",
        cwd=tmp_path,
    ).splitlines()
    assert len(printed) == sum(event.correlation_id == trace_id for event in events)
    tree = [re.sub(r"^\S+  |(?:  | costs |: )[0-9].*", "", line) for line in printed]
    assert [line for line in tree if "span  " in line] == [
        "span  shop: GET /orders/<int:number>",
        "  span  shop: GET",
        "    span  shop: GET /prices/<item>",
    ]
    assert any(re.fullmatch(r"  log  INFO: order \d", line) for line in tree)
