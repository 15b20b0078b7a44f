"""The Kafka sink while its broker is away, hung or killed, or has no topic: nothing is lost."""

import re
import threading
import time
from collections import Counter

import pytest

from otel_cbtop_exporter.config import KafkaConfig
from otel_cbtop_exporter.errors import ConfigError
from tests.servers.kafka_broker import start_broker
from tests.servers.router import ForgetfulRouter
from tests.sinks.kafka_data import encoded, kafka_sink, send, spans

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    """Provide a broker that tests stop, kill and restart, and that creates no topics by itself."""
    folder = tmp_path_factory.mktemp("kafka") / "broker"
    with start_broker(folder, "auto.create.topics.enable=false") as started:
        yield started


@pytest.fixture(scope="module")
def behind_router(tmp_path_factory):
    """Provide a broker that advertises a router's address, and the router's port."""
    folder = tmp_path_factory.mktemp("kafka") / "routed"
    with start_broker(folder) as started:
        with ForgetfulRouter(started.bootstrap) as router:
            started.kill()
            file = folder / "server.properties"
            advertised = f"advertised.listeners=PLAINTEXT://{router.address}"
            text = re.sub(r"(?m)^advertised\.listeners=.*$", advertised, file.read_text())
            file.write_text(text)
            started.restart()
        yield started, router.port


@pytest.fixture
def routed(behind_router):
    """Provide that broker and its router."""
    broker, port = behind_router
    with ForgetfulRouter(broker.bootstrap, port) as router:
        yield broker, router


@pytest.fixture
def sink_for(broker):
    made = []

    def make(topic, **options):
        made.append(kafka_sink(broker.bootstrap, topic, **options))
        return made[-1]

    yield make
    for sink in made:
        sink.close(10)


def values(broker, topic):
    return [message.value() for message in broker.read_all(topic)]


def test_a_missing_topic_is_kept_until_somebody_makes_it(broker, sink_for):
    """Without auto-creation, records for a missing topic are kept until it is created.

    The error comes soon and says what to do.
    """
    sink = sink_for("made.later")
    records = encoded(sink, spans(50))
    missing = sink.write(records, 20)
    assert missing.kept == records
    assert missing.error_type in ("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC")
    assert "made.later does not exist: create it" in missing.error
    broker.make_topic("made.later")
    assert send(sink, missing.kept).delivered == records
    assert values(broker, "made.later") == [record.body for record in records]


@pytest.mark.parametrize("seconds", [2.0, 10.0])
def test_connections_that_a_router_has_forgotten_are_made_anew(routed, seconds):
    """Connections that a router has forgotten are replaced, even if writes are short.

    They accept requests but answer none, while new connections work.
    """
    broker, router = routed
    topic = broker.new_topic()
    sink = kafka_sink(router.address, topic)
    first = encoded(sink, spans(5))
    assert send(sink, first).delivered == first
    router.forget()
    records = encoded(sink, spans(50, start=5))
    began = time.monotonic()
    while not (result := sink.write(records, seconds)).delivered:
        assert time.monotonic() - began < 40, result.error
    sink.close(5)
    assert set(values(broker, topic)) == {record.body for record in [*first, *records]}


def test_a_missing_topic_holds_up_no_other(broker, sink_for):
    """A missing topic does not block another one, because each topic is a lane."""
    good = broker.new_topic()
    sink = sink_for(good)
    missing_records = encoded(sink_for("not.there"), spans(5))
    good_records = encoded(sink_for(good), spans(5))
    sent = send(sink, [*missing_records, *good_records], seconds=4)
    assert (sent.delivered, sent.kept) == (good_records, missing_records)


def test_a_broker_that_is_away_at_the_start(broker, sink_for):
    """With the broker away, records are kept with an error that says what to check.

    They are delivered when it is back.
    """
    topic = broker.new_topic()
    broker.stop()
    try:
        sink = sink_for(topic)
        records = encoded(sink, spans(50))
        away = sink.write(records, 1)
        assert away.kept == records
        assert "no broker answers" in away.error
        assert "kafka.bootstrap_servers" in away.error
    finally:
        broker.restart()
    assert send(sink, away.kept).delivered == records
    assert values(broker, topic) == [record.body for record in records]


def test_a_hung_broker_is_answered_for_in_time(broker, sink_for):
    """A write to a hung broker ends within its timeout.

    Unconfirmed records are kept, and all arrive later.
    """
    topic = broker.new_topic()
    sink = sink_for(topic)
    records = encoded(sink, spans(300))
    assert len(sink.write(records[:100], 30).delivered) == 100
    with broker.hung():
        started = time.monotonic()
        hung = sink.write(records[100:], 1.5)
        assert time.monotonic() - started < 15  # far below message.timeout.ms
        assert hung.kept == records[100:]
        assert "did not answer in time" in hung.error
    sent = send(sink, hung.kept)
    assert sent.delivered == records[100:]
    # What the broker read before it hung may arrive twice: delivery is at least once.
    assert set(values(broker, topic)) == {record.body for record in records}


def test_a_broker_killed_twice_under_load_loses_nothing(broker, sink_for):
    """Every record is delivered, in the order of its key, although the broker is killed twice."""
    topic = broker.new_topic(partitions=3)
    sink = sink_for(topic)
    batches = [encoded(sink, spans(500, start=500 * n)) for n in range(120)]
    outcomes = Counter()
    progress = threading.Semaphore(0)

    def load():
        for batch in batches:
            sent = send(sink, batch, seconds=60)
            outcomes.update(delivered=len(sent.delivered), other=len(batch) - len(sent.delivered))
            progress.release()

    thread = threading.Thread(target=load)
    thread.start()
    for _ in range(2):
        for _ in range(20):
            assert progress.acquire(timeout=60)
        broker.kill()
        broker.restart()
    thread.join(120)
    assert outcomes == {"delivered": 60_000, "other": 0}
    wanted = [record for batch in batches for record in batch]
    messages = broker.read_all(topic)
    seen = Counter(message.value() for message in messages)
    assert set(seen) == {record.body for record in wanted}
    print(f"twice: {sum(seen.values()) - len(seen)} of {len(seen)}")
    first_seen = {}
    for message in messages:
        bodies = first_seen.setdefault(message.key(), [])
        if message.value() not in bodies:
            bodies.append(message.value())
    by_key = {}
    for record in wanted:
        by_key.setdefault(record.key, []).append(record.body)
    assert first_seen == by_key


@pytest.mark.parametrize("state", ["stopped", "hung", "never there"])
def test_close_ends_within_its_time(broker, sink_for, state):
    """With the broker away, close returns in time, and a write in progress keeps its records."""
    sink = sink_for(broker.new_topic())
    if state == "never there":
        sink = kafka_sink("127.0.0.1:1", "t")
    records = encoded(sink, spans(1000))
    if state != "never there":
        assert sink.write(records, 30).delivered == records
    results = []

    def write():
        results.append(sink.write(records, 60))

    writer = threading.Thread(target=write)

    def close_while_writing():
        writer.start()
        time.sleep(0.3)
        started = time.monotonic()
        sink.close(2)
        closed = time.monotonic() - started
        writer.join(5)
        assert closed < 15  # far below message.timeout.ms
        assert results[0].kept == records

    if state == "hung":
        with broker.hung():
            close_while_writing()
    elif state == "stopped":
        broker.stop()
        try:
            close_while_writing()
        finally:
            broker.restart()
    else:
        close_while_writing()
    assert sink.write(records, 1).kept == records


def test_it_is_soon_known_that_no_broker_answers():
    """If every broker is down, a write ends with that cause long before its timeout."""
    sink = kafka_sink("127.0.0.1:1", "t")
    records = encoded(sink, spans(10))
    started = time.monotonic()
    away = sink.write(records, 120)
    assert time.monotonic() - started < 60
    sink.close(5)
    assert away.kept == records
    assert "no broker answers" in away.error


def test_librdkafka_takes_the_longest_linger_and_no_longer_one_is_allowed():
    """The longest `linger_ms` is one with which librdkafka starts; a longer one is refused."""
    with pytest.raises(ConfigError, match=r"kafka\.linger_ms") as refused:
        KafkaConfig(linger_ms=10**9)
    longest = int(re.search(r"<= ?(\d+)", str(refused.value))[1])
    sink = kafka_sink("127.0.0.1:1", "t", linger_ms=longest)
    result = sink.write(encoded(sink, spans(1)), 1)
    sink.close(5)
    assert result.error_type == "_ALL_BROKERS_DOWN"
    assert "linger.ms" not in result.error


def test_a_full_queue_with_the_broker_away():
    """Records that do not fit into the queue are also kept, within the time."""
    sink = kafka_sink("127.0.0.1:1", "t", config={"queue.buffering.max.messages": "100"})
    records = encoded(sink, spans(1000))
    started = time.monotonic()
    away = sink.write(records, 1)
    assert time.monotonic() - started < 30  # a tenth of a second for each would be 90
    sink.close(5)
    assert away.kept == records


def test_librdkafkas_log_is_on_a_logger_of_ours(caplog):
    """librdkafka's log lines go to our logger, once for each kind, and not to standard error."""
    sink = kafka_sink("127.0.0.1:1", "t")
    sink.write(encoded(sink, spans(1)), 1)
    sink.close(5)
    (line,) = [r for r in caplog.records if r.name == "otel_cbtop_exporter.kafka"]
    assert line.levelname == "ERROR"
    assert "Connection refused" in line.getMessage()
