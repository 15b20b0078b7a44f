"""A real InfluxDB returns what was written, whatever names and texts contain."""

import functools

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from otel_cbtop_exporter.config import InfluxDBConfig
from otel_cbtop_exporter.sinks.influxdb import InfluxDBSink
from tests.encoding.line_protocol_cases import (
    SIGNALS,
    events,
    expected_fields,
    expected_measurement,
    expected_tags,
    same,
)

pytestmark = pytest.mark.influxdb

CASES = 10_000
BATCH = 500
GROUP = 10  # events per example: takes a third less time than one by one
BASE_NS = 1_700_000_000_000_000_000


@functools.cache  # for both servers
def _many_events(count):
    """Let hypothesis make events, each with its own time and measurement."""
    made = []

    @settings(
        max_examples=count // GROUP,
        phases=[Phase.generate],
        database=None,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(events(), min_size=GROUP, max_size=GROUP))
    def make(group):
        for event in group:
            position = len(made)
            # The first point fixes a field's type, so no two events share a measurement.
            name = f"{event.measurement[:-1]}{position}{event.measurement[-1:]}"
            made.append(
                msgspec.structs.replace(event, measurement=name, timestamp_ns=BASE_NS + position)
            )

    while len(made) < count:
        make()
    assert {event.signal for event in made} == {None, *SIGNALS}
    return made[:count]


@pytest.mark.timeout(600)
def test_ten_thousand_events_read_back_equal(influxdb):
    """Every event reads back with its measurement, tags, fields, types and time, bit-exact."""
    made = _many_events(CASES)
    for start in range(0, CASES, BATCH):
        batch = made[start : start + BATCH]
        bucket = influxdb.new_bucket()
        sink = InfluxDBSink(InfluxDBConfig(**influxdb.options(bucket)))
        encoded = sink.encode(batch)
        refused = {rejection.record.timestamp_ns for rejection in encoded.rejected}
        assert {r.reason for r in encoded.rejected} <= {"no_field"}
        written = [event for event in batch if event.timestamp_ns not in refused]
        result = sink.write(encoded.records, 30)
        sink.close(1)
        assert result.delivered == encoded.records, result
        names = [expected_measurement(event.measurement) for event in written]
        found = {time: rest for *rest, time in influxdb.points(bucket, *names)}
        assert len(found) == len(written)
        for event in written:
            name, tags, fields = found[event.timestamp_ns]
            assert name == expected_measurement(event.measurement), event
            assert tags == expected_tags(event), event
            expected = expected_fields(event)
            assert fields.keys() == expected.keys(), event
            for key, value in expected.items():
                assert same(fields[key], value), (key, value, fields[key], event)
