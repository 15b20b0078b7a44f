"""Helpers shared by the tests of the InfluxDB sink: events, and delivery as the package does it."""

import contextlib
import json
import time

import msgspec

from otel_cbtop_exporter.config import ExporterConfig, InfluxDBConfig
from otel_cbtop_exporter.delivery.pipeline import Pipeline
from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.sinks.influxdb import InfluxDBSink
from otel_cbtop_exporter.tag_set import TagSet

TAGS = TagSet({"service.name": "shop", "span.name": "GET /cart"})
BASE_NS = 1_700_000_000_000_000_000


def span(number=0, *, measurement="spans", time_ns=None, tags=TAGS, **fields):
    return Event(
        measurement=measurement,
        tags=tags,
        fields={"span_id": f"{number + 1:016x}", "duration_ns": number, **fields},
        timestamp_ns=BASE_NS + number if time_ns is None else time_ns,
        correlation_id=f"{number // 4 + 1:032x}",
        signal="span",
    )


def spans(count, *, start=0, **more):
    """Make spans that differ in `duration_ns` and time."""
    return [span(number, **more) for number in range(start, start + count)]


def influxdb_sink(**options):
    return InfluxDBSink(InfluxDBConfig(**options))


def encoded(sink, events):
    result = sink.encode(events)
    assert not result.rejected
    return result.records


class PoisoningSink(InfluxDBSink):
    """Breaks the lines of some spans, as an encoder with a bug would.

    Args:
        poison: Maps a span's number to the bytes that replace its fields.
    """

    def __init__(self, options, poison):
        super().__init__(options)
        self._poison = poison

    def encode(self, events):
        result = super().encode(events)
        records = [
            self._broken(record, self._poison.get(event.fields["duration_ns"]))
            for event, record in zip(events, result.records, strict=True)
        ]
        return msgspec.structs.replace(result, records=records)

    def _broken(self, record, fields):
        if fields is None:
            return record
        head = record.body.partition(b" correlation_id=")[0]
        body = b"%s %s %d" % (head, fields, record.timestamp_ns)
        return msgspec.structs.replace(record, body=body)


@contextlib.contextmanager
def delivering(folder, *, spooled=True, poison=None, patience_seconds=10, **options):
    """Provide a pipeline to InfluxDB with short delays, and a spool in a folder or in memory."""
    config = ExporterConfig(
        sink="influxdb",
        influxdb=options,
        spool={"path": str(folder / "spool") if spooled else None},
        retry={"initial_delay_ms": 20, "max_delay_ms": 200},
    )
    sink = PoisoningSink(config.influxdb, poison) if poison else InfluxDBSink(config.influxdb)
    pipeline = Pipeline(sink, config)
    try:
        yield pipeline
    finally:
        pipeline.release(patience_seconds)


def wait_until(condition, seconds=60, about=lambda: ""):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, about()
        time.sleep(0.01)


def settled(pipeline, count):
    """Wait until `count` events are written, rejected or dropped; return the health."""

    def is_settled():
        health = pipeline.health()
        gone = health.events_written + health.events_rejected + sum(health.events_dropped.values())
        return gone >= count and not health.events_spooled

    wait_until(is_settled, about=pipeline.health)
    return pipeline.health()


def dead_letters(folder):
    path = folder / "spool" / "dead-letters.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
