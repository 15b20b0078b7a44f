"""Kafka, end to end on a real broker, against producing bytes that are encoded already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from confluent_kafka import Producer
from opentelemetry.sdk.trace import ReadableSpan

from benchmarks import data, peers
from benchmarks.measure import Report, Row, Scale, interleaved
from benchmarks.processes import folder
from otel_cbtop_exporter import CbtopSpanExporter, Record
from tests.servers.kafka_broker import Broker, start_broker

_Batches = Sequence[tuple[list[ReadableSpan], list[Record]]]


class _Peer:
    """What a user who has the bytes would write: produce, poll, flush, count the reports."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self.delivered = 0
        self._topic = topic
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "acks": "all",
                "compression.type": "zstd",
                "linger.ms": 50,
                "log_level": 0,
            }
        )

    def send(self, batches: _Batches) -> None:
        for _, records in batches:
            for record in records:
                self._producer.produce(
                    self._topic, record.body, record.key, on_delivery=self._on_delivery
                )
            self._producer.poll(0)
        self._producer.flush()

    def _on_delivery(self, error: Any, _: Any) -> None:
        assert error is None
        self.delivered += 1


def run(scale: Scale) -> Report:
    batches = scale.of(20, 1)
    mapper, encode = peers.span_mapper(), peers.kafka_records()

    def made() -> _Batches:
        all_spans = [data.spans() for _ in range(batches)]
        return [(spans, encode(mapper.map(spans))) for spans in all_spans]

    with folder() as path, start_broker(path / "broker") as broker:
        topic, peers_topic = broker.new_topic(), broker.new_topic()
        ours = CbtopSpanExporter(
            sink="kafka", kafka={"bootstrap_servers": broker.bootstrap, "topic": topic}
        )
        peer = _Peer(broker.bootstrap, peers_topic)

        def send(batches: _Batches) -> None:
            for spans, _ in batches:
                ours.export(spans)
            assert ours.force_flush()

        _check_same_messages(broker, made(), (send, topic), (peer.send, peers_topic))
        timings = interleaved(
            {"ours": send, "peer": peer.send},
            made,
            items=batches * data.BATCH,
            scale=scale.of_rounds(12),
        )
        assert ours.health().events_written == peer.delivered
        ours.shutdown()
    mine, theirs = timings["ours"], timings["peer"]
    return Report(
        "Kafka, end to end on a real broker",
        rows=[
            Row(
                "spans to Kafka: map, encode, spool in memory, produce, reports",
                "Producer.produce of ready bytes, same properties",
                f"{mine.rate} spans a CPU second",
                f"{theirs.rate}",
                theirs.best_us / mine.best_us,
                gate=1 / 3,
                goal=1 / 2,
                unit=" of it",
            )
        ],
        notes=[f"CPU of the whole process, librdkafka's threads included: {mine} a span."],
    )


def _check_same_messages(broker: Broker, batches: _Batches, *ways: tuple[Any, str]) -> None:
    """Check that all ways deliver the same keys and values."""
    found = []
    for send, topic in ways:
        send(batches)
        messages = broker.read_all(topic)
        found.append(sorted((message.key(), message.value()) for message in messages))
    assert found[0] == found[1]
    assert len(found[0]) == sum(len(records) for _, records in batches)
