"""Helpers shared by the tests of the Kafka sink: events, delivery, and Java's hash."""

import logging
import random
import time

from otel_cbtop_exporter.config import KafkaConfig, RetryConfig
from otel_cbtop_exporter.delivery.retry import SYSTEM_CLOCK
from otel_cbtop_exporter.delivery.sender import Sender
from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.health import HealthCounters
from otel_cbtop_exporter.own_log import RateLimitedLog
from otel_cbtop_exporter.sinks.kafka import KafkaSink
from otel_cbtop_exporter.tag_set import TagSet

TAGS = TagSet({"service.name": "shop", "span.name": "GET /cart"})


def trace_id(number):
    return f"{random.Random(number).getrandbits(128) or 1:032x}"


def span(number=0, trace=None, *, size=0, timestamp_ns=None, tags=TAGS):
    return Event(
        measurement="spans",
        tags=tags,
        fields={"span_id": f"{number + 1:016x}", "duration_ns": 5, "padding": "x" * size},
        timestamp_ns=time.time_ns() if timestamp_ns is None else timestamp_ns,
        correlation_id=trace_id(number // 4) if trace is None else trace,
        signal="span",
    )


def spans(count, *, start=0):
    """Make different spans, four for each trace."""
    return [span(number) for number in range(start, start + count)]


def kafka_sink(bootstrap, topic, **options):
    return KafkaSink(KafkaConfig(bootstrap_servers=bootstrap, topic=topic, **options))


def encoded(sink, events):
    result = sink.encode(events)
    assert not result.rejected
    return result.records


def send(sink, records, seconds=30):
    """Deliver as the package does: with retries and splits, but within the time."""
    sender = Sender(
        sink,
        counters=HealthCounters(),
        log=RateLimitedLog(logging.getLogger("otel_cbtop_exporter")),
        retry=RetryConfig(max_retries=1000, initial_delay_ms=50, max_delay_ms=200),
        max_batch_events=None,
        max_batch_bytes=None,
        clock=SYSTEM_CLOCK,
        jitter=lambda: 0.5,
        wait=_sleep,
        spooled=True,
    )
    return sender.send(records, time.monotonic() + seconds)


def _sleep(seconds):
    time.sleep(seconds)
    return False


def java_partition(key, partitions):
    """Return the partition where the Java client's default partitioner puts a key."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(data):
    """Compute org.apache.kafka.common.utils.Utils.murmur2, as a signed 32-bit number."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = 0x9747B28C ^ len(data)
    whole = len(data) // 4 * 4
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    rest = data[whole:]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    h ^= h >> 15
    return h - (1 << 32) if h >> 31 else h
