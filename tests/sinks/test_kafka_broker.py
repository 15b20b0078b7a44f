"""The Kafka sink against a real, working broker: what arrives, and what is refused."""

import time

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from otel_cbtop_exporter import CbtopSpanExporter
from otel_cbtop_exporter.config import KafkaConfig
from otel_cbtop_exporter.encoding.event_json import encode_event
from otel_cbtop_exporter.events import Event, decode_event
from otel_cbtop_exporter.sinks import kafka
from otel_cbtop_exporter.sinks.kafka import KafkaSink
from otel_cbtop_exporter.tag_set import TagSet
from tests.servers.kafka_broker import broker  # noqa: F401  a fixture
from tests.sinks.conformance import SinkConformance
from tests.sinks.kafka_data import encoded, java_partition, kafka_sink, send, span, spans

pytestmark = pytest.mark.kafka

HOUR_NS = 3_600_000_000_000


@pytest.fixture
def sink_for(broker):  # noqa: F811  the fixture
    """Make sinks, and close them at the end of the test."""
    made = []

    def make(topic, **options):
        made.append(kafka_sink(broker.bootstrap, topic, **options))
        return made[-1]

    yield make
    for sink in made:
        sink.close(10)


class TestConformance(SinkConformance):
    """The suite that every sink passes."""

    @pytest.fixture
    def sink(self, broker):  # noqa: F811  the fixture
        self.broker = broker
        self.topic = broker.new_topic()
        sink = kafka_sink(broker.bootstrap, self.topic)
        yield sink
        sink.close(10)

    def arrived(self, sink):
        return [message.value() for message in self.broker.read_all(self.topic)]


def values(broker, topic):  # noqa: F811
    return [message.value() for message in broker.read_all(topic)]


def test_a_message_is_the_event(broker, sink_for):  # noqa: F811
    """A message's value, key, headers and time are those of its record."""
    topic = broker.new_topic()
    sink = sink_for(topic, event_headers=True, headers={"env": "test"})
    event = span(timestamp_ns=time.time_ns() - HOUR_NS)
    (record,) = encoded(sink, [event])
    assert sink.write([record], 30).delivered == [record]
    (message,) = broker.read_all(topic)
    decoded = decode_event(message.value())
    assert (decoded, dict(decoded.tags)) == (decode_event(encode_event(event)), dict(event.tags))
    assert message.key() == event.correlation_id.encode()
    assert tuple(message.headers()) == record.headers
    assert message.timestamp()[1] == event.timestamp_ns // 1_000_000


def test_keys_meet_those_of_java_clients(broker, sink_for):  # noqa: F811
    """Each key is in the partition where the Java client's partitioner puts it."""
    topic = broker.new_topic(partitions=7)
    sink = sink_for(topic)
    series = [
        Event(
            measurement=f"metric.{number}",
            tags=TagSet({"route": f"/{number}", "ü": "ö"}),
            fields={"value": number},
            timestamp_ns=1,
            signal="metric",
        )
        for number in range(200)
    ]
    sent = send(sink, encoded(sink, series + spans(800)))
    assert len(sent.delivered) == 1000
    read = broker.read(topic)
    table = [(message.key(), number) for number, messages in read.items() for message in messages]
    assert len(table) == 1000
    assert len({key for key, _ in table}) == 400
    assert all(messages for messages in read.values())
    assert table == [(key, java_partition(key, 7)) for key, _ in table]


def test_a_trace_is_in_order(broker, sink_for):  # noqa: F811
    """Records of one key keep their order over many writes."""
    topic = broker.new_topic(partitions=3)
    sink = sink_for(topic)
    records = encoded(sink, [span(n, trace=f"{n % 5:032x}") for n in range(3000)])
    for start in range(0, 3000, 100):
        assert len(sink.write(records[start : start + 100], 30).delivered) == 100
    by_key = {}
    for message in broker.read_all(topic):
        by_key.setdefault(message.key(), []).append(message.value())
    wanted = {}
    for record in records:
        wanted.setdefault(record.key, []).append(record.body)
    assert by_key == wanted


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_every_compression(broker, sink_for, compression):  # noqa: F811
    """Messages read back equal with every compression."""
    topic = broker.new_topic()
    sink = sink_for(topic, compression=compression)
    records = encoded(sink, spans(500))
    assert len(sink.write(records, 30).delivered) == 500
    assert values(broker, topic) == [record.body for record in records]


@pytest.mark.parametrize("acks", ["1", "0"])
def test_fewer_acknowledgements(broker, sink_for, acks):  # noqa: F811
    """With fewer acknowledgements records arrive, because idempotence, which needs all, is off."""
    topic = broker.new_topic()
    sink = sink_for(topic, acks=acks)
    assert len(sink.write(encoded(sink, spans(5)), 30).delivered) == 5
    deadline = time.monotonic() + 30  # with 0 the broker may still be writing them
    while len(values(broker, topic)) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("limit", [20_000, 100_000])
def test_one_message_over_the_limit_is_rejected_alone(broker, sink_for, limit):  # noqa: F811
    """Exactly the message over the limit is rejected.

    Its neighbours in the produce batch arrive.
    """
    topic = broker.new_topic(max_message_bytes=limit)
    sink = sink_for(topic, compression="none")
    events = spans(300)
    events[150] = span(150, size=2 * limit)
    records = encoded(sink, events)
    sent = send(sink, records)
    assert [(r.record, r.reason) for r in sent.rejected] == [(records[150], "too_large")]
    assert "MSG_SIZE_TOO_LARGE" in sent.rejected[0].detail
    assert sent.kept == []
    good = [record.body for record in records if record is not records[150]]
    assert sorted(values(broker, topic)) == sorted(good)


def test_resource_attributes_name_the_topic(broker):  # noqa: F811
    """Any resource attribute can be in the topic template, with its value made safe for a name."""
    part = broker.new_topic()
    broker.make_topic(f"{part}.the_shop.team_7.spans")
    exporter = CbtopSpanExporter(
        sink="kafka",
        kafka={
            "bootstrap_servers": broker.bootstrap,
            "topic": f"{part}.{{service.name}}.{{team}}.{{signal}}",
        },
    )
    resource = Resource({"service.name": "the shop", "team": "team/7"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("t").start_span("work").end()
    assert exporter.force_flush(30_000)
    provider.shutdown()
    (message,) = broker.read_all(f"{part}.the_shop.team_7.spans")
    assert decode_event(message.value()).tags["team"] == "team/7"


def test_equal_records_are_each_answered_for(broker, sink_for):  # noqa: F811
    """Equal records each have their own outcome, whether they are refused or arrive."""
    topic = broker.new_topic(max_message_bytes=20_000)
    sink = sink_for(topic, compression="none")
    records = encoded(sink, spans(10))
    (large,) = encoded(sink, [span(size=40_000)])
    sent = send(sink, [large, *records, records[3], large])
    assert [rejection.record for rejection in sent.rejected] == [large, large]
    assert sorted(values(broker, topic)) == sorted(r.body for r in [*records, records[3]])


def test_a_message_over_the_clients_limit_is_rejected_alone(broker, sink_for):  # noqa: F811
    """A message that librdkafka itself refuses is rejected like one that the broker refuses."""
    topic = broker.new_topic()
    sink = sink_for(topic, config={"message.max.bytes": "10000"})
    events = spans(30)
    events[10] = span(10, size=20_000)
    records = encoded(sink, events)
    sent = send(sink, records)
    assert [(r.record, r.reason) for r in sent.rejected] == [(records[10], "too_large")]
    assert len(values(broker, topic)) == 29


def test_a_batch_of_large_good_messages_arrives(broker, sink_for):  # noqa: F811
    """If a topic's limit is below librdkafka's batch size, all records arrive after retries."""
    topic = broker.new_topic(max_message_bytes=5_000)
    sink = sink_for(topic, compression="none")
    records = encoded(sink, [span(n, size=3_000) for n in range(60)])
    sent = send(sink, records)
    assert (len(sent.delivered), sent.rejected, sent.kept) == (60, [], [])
    assert sorted(values(broker, topic)) == sorted(record.body for record in records)


def test_a_time_a_day_ahead(broker, sink_for):  # noqa: F811
    """An event a day ahead arrives with its neighbours; its exact time is in the value."""
    topic = broker.new_topic()
    sink = sink_for(topic)
    events = spans(20)
    events[7] = span(7, timestamp_ns=time.time_ns() + 24 * HOUR_NS)
    before_ms = time.time_ns() // 1_000_000
    assert len(sink.write(encoded(sink, events), 30).delivered) == 20
    after_ms = time.time_ns() // 1_000_000
    ahead = broker.read_all(topic)[7]
    assert before_ms <= ahead.timestamp()[1] <= after_ms
    assert decode_event(ahead.value()).timestamp_ns == events[7].timestamp_ns


@pytest.mark.parametrize("timestamp_ns", [0, -5 * HOUR_NS, 1])
def test_a_time_at_or_before_the_epoch(broker, sink_for, timestamp_ns):  # noqa: F811
    """A time at or before the epoch is sent as the first millisecond; the value is exact."""
    topic = broker.new_topic()
    sink = sink_for(topic)
    assert len(sink.write(encoded(sink, [span(timestamp_ns=timestamp_ns)]), 30).delivered) == 1
    (message,) = broker.read_all(topic)
    assert message.timestamp()[1] == 1
    assert decode_event(message.value()).timestamp_ns == timestamp_ns


@pytest.mark.parametrize("limit_ms", [5_000, HOUR_NS // 1_000_000])
@pytest.mark.parametrize("late", [{7}, {0, 7, 8}, set(range(20))])
def test_a_late_record_is_sent_with_the_current_time(broker, sink_for, limit_ms, late):  # noqa: F811
    """A record that is too late for its topic arrives in order with the current time.

    Its neighbours keep their times, and it holds up nothing, however short the topic's limit is.
    """
    topic = broker.new_topic(message_timestamp_before_max_ms=limit_ms)
    sink = sink_for(topic)
    sent_ms = time.time_ns() // 1_000_000
    ages_ns = [2 * limit_ms * 1_000_000 if n in late else 0 for n in range(20)]
    events = [span(n, timestamp_ns=time.time_ns() - age_ns) for n, age_ns in enumerate(ages_ns)]
    records = encoded(sink, events)
    assert send(sink, records).delivered == records
    arrived = broker.read_all(topic)
    assert [message.value() for message in arrived] == [record.body for record in records]
    for number, message in enumerate(arrived):
        if number in late:
            assert message.timestamp()[1] >= sent_ms
        else:
            assert message.timestamp()[1] == events[number].timestamp_ns // 1_000_000


@pytest.mark.parametrize(("ones", "zeros"), [(1, 2), (3, 1), (2, 3)])
def test_late_records_of_two_partitions_arrive_in_one_write(broker, sink_for, ones, zeros):  # noqa: F811
    """Late records of several produce batches arrive in one write, however many each has."""
    topic = broker.new_topic(2, message_timestamp_before_max_ms=HOUR_NS // 1_000_000)
    sink = sink_for(topic)
    late_ns = time.time_ns() - 2 * HOUR_NS
    records = encoded(sink, [span(n, timestamp_ns=late_ns + n) for n in range(50)])
    by_partition = [[r for r in records if java_partition(r.key, 2) == n] for n in range(2)]
    mixed = by_partition[1][:ones] + by_partition[0][:zeros]
    assert sink.write(mixed, 30).delivered == mixed
    assert len(broker.read_all(topic)) == ones + zeros


def test_a_wrong_clock_costs_no_record(broker, sink_for, monkeypatch):  # noqa: F811
    """If this machine's clock is hours ahead, records are kept until it is corrected.

    They are, whatever their age by that clock, and by a process that has just started.
    """
    topic = broker.new_topic()
    sink = sink_for(topic)
    now_ns = time.time_ns
    monkeypatch.setattr(kafka.time, "time_ns", lambda: now_ns() + 5 * HOUR_NS)
    records = encoded(sink, spans(10))
    wrong = send(sink, records, seconds=2)
    assert (wrong.kept, wrong.rejected) == (records, [])
    # Not the same sink: its next write may still be purged along with the one that was cut off.
    alone = sink_for(topic).write(records[:1], 30)
    assert (alone.kept, alone.error_type) == (records[:1], "INVALID_TIMESTAMP")
    assert "clock" in alone.error
    monkeypatch.setattr(kafka.time, "time_ns", lambda: now_ns() + 6 * HOUR_NS)
    for one in (sink, sink_for(topic)):
        later = send(one, records, seconds=2)
        assert (later.kept, later.rejected) == (records, [])
    monkeypatch.undo()
    assert send(sink, records[:5]).delivered == records[:5]
    assert send(sink, records[5:]).delivered == records[5:]


def test_a_compacted_topic_takes_what_has_a_key(broker, sink_for):  # noqa: F811
    """A compacted topic refuses a log without a trace, which has no key; its neighbours arrive."""
    topic = broker.new_topic(cleanup_policy="compact")
    sink = sink_for(topic)
    log = Event(
        measurement="logs", tags={}, fields={"body": "x"}, timestamp_ns=time.time_ns(), signal="log"
    )
    records = encoded(sink, [*spans(10), log, *spans(10, start=10)])
    sent = send(sink, records)
    assert [(r.record, r.reason) for r in sent.rejected] == [(records[10], "invalid")]
    assert len(sent.delivered) == 20


def test_a_full_queue_is_served(broker, sink_for):  # noqa: F811
    """One write can deliver more records than librdkafka's queue holds."""
    topic = broker.new_topic()
    sink = sink_for(topic, config={"queue.buffering.max.messages": "100"})
    records = encoded(sink, spans(1500))
    assert len(sink.write(records, 30).delivered) == 1500
    assert values(broker, topic) == [record.body for record in records]


def test_statistics_say_how_the_connection_is(broker, sink_for):  # noqa: F811
    """The essentials of librdkafka's statistics can be read while writing."""
    topic = broker.new_topic()
    sink = sink_for(topic, config={"statistics.interval.ms": "50"})
    assert sink.statistics() == {}
    deadline = time.monotonic() + 20
    statistics = {"messages_sent": 0}
    # Round trips are those of the last interval, which may have had none.
    while statistics["messages_sent"] < 20 or not statistics["round_trip_p99_us"]:
        assert time.monotonic() < deadline, statistics
        sink.write(encoded(sink, spans(10)), 30)
        time.sleep(0.05)
        statistics = sink.statistics() or statistics
    assert statistics["brokers_up"] == statistics["brokers_known"] == 1
    assert statistics["bytes_sent"] > statistics["messages_sent"]


def test_idle_statistics_are_served(broker, sink_for, monkeypatch):  # noqa: F811
    """librdkafka's statistics are also read while nobody writes, and do not pile up."""
    from otel_cbtop_exporter.sinks import kafka_client

    monkeypatch.setattr(kafka_client, "_SERVE_SECONDS", 0.05)
    sink = sink_for(broker.new_topic(), config={"statistics.interval.ms": "50"})
    sink.write(encoded(sink, spans(1)), 30)
    deadline = time.monotonic() + 20
    while not sink.statistics():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_properties_of_the_file_win(broker, tmp_path):  # noqa: F811
    """Properties of the file override kafka.config; comments and blank lines are ignored."""
    topic = broker.new_topic()
    path = tmp_path / "kafka.properties"
    path.write_text(f"# a comment=1\n\n bootstrap.servers = {broker.bootstrap} \nacks=1\n")
    options = KafkaConfig(
        config_file=str(path), topic=topic, config={"bootstrap.servers": "127.0.0.1:1"}
    )
    sink = KafkaSink(options)
    assert len(sink.write(encoded(sink, spans(3)), 30).delivered) == 3
    sink.close(10)


def test_one_message_over_a_segment_is_rejected_alone(broker, sink_for):  # noqa: F811
    """A message larger than a log segment is rejected alone.

    The broker has a different error for it.
    """
    topic = broker.new_topic(segment_bytes=1_048_576, max_message_bytes=5_000_000)
    sink = sink_for(topic, compression="none")
    records = encoded(sink, [span(0), span(1, size=2_000_000), span(2)])
    sent = send(sink, records)
    assert [(r.record, r.reason) for r in sent.rejected] == [(records[1], "too_large")]
    assert "RECORD_LIST_TOO_LARGE" in sent.rejected[0].detail
    assert sent.delivered == [records[0], records[2]]
