"""Caches of mapping and encoding are bounded: telemetry that is always new costs no more memory.

Every case produces one kind of thing that never repeats. Each lap produces more of them than any
cache may hold; the largest bounds are lowered for that. The tests count memory blocks and not
bytes: that is exact, and independent of what the rest of the process does with its heap.
"""

import gc
import sys

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_cbtop_exporter.config import DEFAULT_SPAN_TAGS, KafkaConfig
from otel_cbtop_exporter.encoding import line_protocol_fields, unique_points
from otel_cbtop_exporter.encoding.line_protocol import LineProtocolEncoder
from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.mapping import attributes, metric_series, span_tags
from otel_cbtop_exporter.mapping.logs import LogMapper
from otel_cbtop_exporter.mapping.metrics import MetricMapper
from otel_cbtop_exporter.mapping.spans import SpanMapper
from otel_cbtop_exporter.sinks.kafka_records import RecordMaker
from otel_cbtop_exporter.sinks.lines import encode_lines
from tests.builders import (
    context,
    exemplar,
    exponential_metric,
    exponential_point,
    gauge_metric,
    histogram_metric,
    histogram_point,
    log,
    metrics,
    number_point,
    span,
    span_event,
    sum_metric,
)

# Events in a lap: more than the largest remaining bound, which is 4,096 texts.
LAP = 5_000
LAPS = 3
BATCH = 500

SCOPES = [InstrumentationScope(f"scope {number}") for number in range(20)]
REDACT = ("*password*",)


def _points(numbers):
    return [number_point(1.5, {"user.id": str(number)}) for number in numbers]


# By name: the signal, and how to make its data from the numbers of a batch.
CASES = {
    "values of a span's tags": (
        "spans",
        lambda numbers: [span(attributes={"http.route": f"/{n}"}) for n in numbers],
    ),
    "names of spans and of their events": (
        "spans",
        lambda numbers: [span(f"job {n}", events=[span_event(f"step {n}")]) for n in numbers],
    ),
    "sets of attribute names": (
        "spans",
        lambda numbers: [span(attributes={f"key.{n}": n}) for n in numbers],
    ),
    "resources and scopes": (
        "spans",
        lambda numbers: [
            span(resource=Resource({"service.name": f"s{n}"}), scope=InstrumentationScope(f"{n}"))
            for n in numbers
        ],
    ),
    "trace ids": ("spans", lambda numbers: [span(ctx=context(n + 1)) for n in numbers]),
    "names of log events": (
        "logs",
        lambda numbers: [log(event_name=f"event {n}") for n in numbers],
    ),
    "names of attributes that may have to be redacted": (
        "logs",
        lambda numbers: [log(attributes={f"key.{n}": n}) for n in numbers],
    ),
    "series of a metric": (
        "metrics",
        lambda numbers: metrics(sum_metric(*_points(numbers))),
    ),
    "series of many metrics": (
        "metrics",
        lambda numbers: metrics(
            *(
                sum_metric(*_points(numbers[at : at + 5]), name=f"m{at}")
                for at in range(0, BATCH, 5)
            )
        ),
    ),
    "series in many scopes": (
        "metrics",
        lambda numbers: [
            *metrics(sum_metric(*_points(numbers[:250])), scope=SCOPES[numbers[0] // BATCH % 20]),
            *metrics(sum_metric(*_points(numbers[250:])), scope=SCOPES[numbers[0] // BATCH % 19]),
        ],
    ),
    "metrics": (
        "metrics",
        lambda numbers: metrics(*(gauge_metric(*_points([n]), name=f"m{n}") for n in numbers)),
    ),
    "bounds of histograms, with exemplars": (
        "metrics",
        lambda numbers: metrics(
            *(
                histogram_metric(histogram_point(bounds=(n, n + 0.5), exemplars=[exemplar(n)]))
                for n in numbers
            )
        ),
    ),
    "buckets of exponential histograms": (
        "metrics",
        lambda numbers: metrics(
            *(exponential_metric(exponential_point(positive=(n, (1, 2)))) for n in numbers)
        ),
    ),
    "names in hand-made events": (
        "hand-made",
        lambda numbers: [
            Event(f"m{n}", {f"tag {n}": f"value {n}"}, {f"field {n}": 1.5}, n) for n in numbers
        ],
    ),
}


@pytest.fixture
def small_bounds(monkeypatch):
    """Lower the largest bounds."""
    for module in (attributes, span_tags, metric_series):
        assert module.MAX_CACHED_TAG_SETS <= 65_536  # a cache of a million would be too large
        monkeypatch.setattr(module, "MAX_CACHED_TAG_SETS", 4_096)
    line_protocol_fields.plan_fields.cache_clear()  # this cache is shared by the process
    for points in (unique_points.UniquePoints, unique_points.CollectedPoints):
        assert points.__init__.__defaults__ <= (65_536,)
        monkeypatch.setattr(points.__init__, "__defaults__", (4_096,))


@pytest.mark.parametrize("case", CASES)
def test_what_is_always_new_does_not_grow_memory(small_bounds, case):
    """Memory does not grow with things that never repeat.

    A third lap takes about as much memory as the first.
    """
    kind, make = CASES[case]
    resource_tags = ("service.*",)
    mappers = {
        "spans": SpanMapper(resource_tags, DEFAULT_SPAN_TAGS, REDACT).map,
        "logs": LogMapper(resource_tags, REDACT).map,
        "metrics": MetricMapper(resource_tags, "all", REDACT, lambda *_: None).map,
        "hand-made": list,
    }
    encode_points = LineProtocolEncoder(trace_id_tag_digits=1).encode
    encode_messages = RecordMaker(KafkaConfig(topic="{service.name}")).encode

    def peak(lap):
        """Return the most memory blocks that were in use during a lap."""
        most = 0
        for start in range(lap * LAP, (lap + 1) * LAP, BATCH):
            events = mappers[kind](make(range(start, start + BATCH)))
            encode_points(events)
            encode_lines(events)
            encode_messages(events)
            del events
            gc.collect()  # unused types are cyclic garbage
            most = max(most, sys.getallocatedblocks())
        return most

    gc.collect()
    before = sys.getallocatedblocks()
    first, _, third = (peak(lap) - before for lap in range(LAPS))
    assert LAP // 10 < third < 1.2 * first


def test_series_that_come_with_every_collection_are_kept_however_many(small_bounds):
    """Series that repeat in every collection keep their tag sets, even if they exceed the bound."""
    batch = metrics(
        *(sum_metric(*_points(range(at, at + 100)), name=f"m{at}") for at in range(0, LAP, 100))
    )
    mapper = MetricMapper(("service.*",), "none", (), lambda *_: None)
    first, second = mapper.map(batch), mapper.map(batch)
    assert len(first) == LAP > attributes.MAX_CACHED_TAG_SETS
    assert all(one.tags is other.tags for one, other in zip(first, second, strict=True))
