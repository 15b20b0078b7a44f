"""What a real InfluxDB refuses goes to the dead letters, and everything else arrives."""

import time

import pytest

from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.tag_set import TagSet
from tests.sinks.influxdb_data import (
    BASE_NS,
    dead_letters,
    delivering,
    settled,
    span,
    spans,
)

pytestmark = pytest.mark.influxdb


def numbers(server, bucket, measurement="spans"):
    """Return the `duration_ns` of all stored points, with repetitions."""
    return sorted(point[2]["duration_ns"] for point in server.points(bucket, measurement))


def outcome(health):
    return health.events_written, health.events_rejected, health.events_dropped


POISON = {
    3: b"duration_ns=",
    333: b'a="x\': y",duration_ns=5i,=1',
    999: b"duration_ns=99999999999999999999i",
}


@pytest.mark.parametrize("spooled", [True, False], ids=["disk", "memory"])
def test_poisoned_lines_take_no_neighbour_along(influxdb, tmp_path, spooled):
    """Three unparseable lines in a thousand are rejected alone, with the server's reasons."""
    bucket = influxdb.new_bucket()
    options = {"spooled": spooled, "poison": POISON, **influxdb.options(bucket)}
    with delivering(tmp_path, **options) as pipeline:
        pipeline.submit(spans(1_000), 10)
        health = settled(pipeline, 1_000)
    assert outcome(health) == (997, 3, {})
    assert numbers(influxdb, bucket) == [n for n in range(1_000) if n not in POISON]
    assert health.last_error == "InfluxDB cannot read some lines (400)"
    letters = dead_letters(tmp_path)
    if spooled:
        assert [letter["reason"] for letter in letters] == ["invalid"] * 3
        assert [letter["timestamp_ns"] - BASE_NS for letter in letters] == list(POISON)
        details = "\n".join(letter["detail"] for letter in letters)
        assert "missing field value" in details
        assert "missing field key" in details
        assert "value out of range" in details


def test_poison_that_fills_the_answer_is_found_all_the_same(influxdb, tmp_path):
    """Refused lines beyond the part of the answer that is read are still rejected alone."""
    bucket = influxdb.new_bucket()
    poison = dict.fromkeys(range(0, 1000, 2), b"x" * 400)
    with delivering(tmp_path, poison=poison, **influxdb.options(bucket)) as pipeline:
        pipeline.submit(spans(1_000), 10)
        health = settled(pipeline, 1_000)
    assert outcome(health) == (500, 500, {})
    assert numbers(influxdb, bucket) == list(range(1, 1_000, 2))
    assert len(dead_letters(tmp_path)) == 500


def test_a_field_of_another_type_in_the_bucket(influxdb, tmp_path, caplog):
    """Events that conflict with an older writer's float `duration_ns` are refused alone.

    The error says how to resolve it.
    """
    bucket = influxdb.new_bucket()
    assert influxdb.write(bucket, f"spans duration_ns=1.5 {BASE_NS - 1}")[0] == 204
    others = spans(50, start=100, measurement="others")
    with delivering(tmp_path, **influxdb.options(bucket)) as pipeline:
        pipeline.submit([*spans(50), *others], 10)
        health = settled(pipeline, 100)
    assert outcome(health) == (50, 50, {})
    assert numbers(influxdb, bucket, "others") == list(range(100, 150))
    assert numbers(influxdb, bucket) == [1.5]
    assert health.last_error.startswith(
        'field "duration_ns" of measurement "spans" is integer here and float in the bucket; '
        "write to another bucket, or delete that measurement's old points"
    )
    assert (
        '50 events were rejected: field_type_conflict; field "duration_ns" of measurement "spans" is '
        "integer here and float in the bucket"
    ) in caplog.text
    letters = dead_letters(tmp_path)
    assert {letter["reason"] for letter in letters} == {"field_type_conflict"}
    assert sorted(letter["timestamp_ns"] - BASE_NS for letter in letters) == list(range(50))
    assert "docs/influxdb.md says how" in letters[0]["detail"]
    assert "already exists as type float" in letters[0]["detail"]


def test_types_are_fixed_for_each_shard(influxdb, tmp_path):
    """A type conflict in one shard does not affect points of another shard."""
    bucket = influxdb.new_bucket()
    month_ns = 30 * 24 * 3600 * 10**9
    influxdb.write(bucket, f"spans duration_ns=1.5 {BASE_NS - 1}")
    later = [span(n, time_ns=BASE_NS + month_ns + n) for n in range(50, 80)]
    with delivering(tmp_path, **influxdb.options(bucket)) as pipeline:
        pipeline.submit([*spans(20), *later, *spans(30, start=20)], 10)
        health = settled(pipeline, 80)
    assert outcome(health) == (30, 50, {})
    assert numbers(influxdb, bucket) == [1.5, *range(50, 80)]
    assert len(dead_letters(tmp_path)) == 50


def test_the_way_out_of_a_type_conflict_works(influxdb, tmp_path):
    """Once the old points are deleted, refused lines are accepted, even from dead letters."""
    bucket = influxdb.new_bucket()
    influxdb.write(bucket, f"spans duration_ns=1.5 {BASE_NS - 1}")
    with delivering(tmp_path, **influxdb.options(bucket)) as pipeline:
        pipeline.submit(spans(10), 10)
        settled(pipeline, 10)
        influxdb.delete_measurement(bucket, "spans")
        pipeline.submit(spans(10, start=10), 10)
        assert outcome(settled(pipeline, 20)) == (10, 10, {})
    for letter in dead_letters(tmp_path):
        assert influxdb.write(bucket, letter["body"])[0] == 204
    assert numbers(influxdb, bucket) == list(range(20))


def test_two_types_of_one_new_field_in_one_batch(influxdb, tmp_path):
    """For a new field the first type wins.

    Its points arrive, and those of the other are refused.
    """
    bucket = influxdb.new_bucket()
    made = [
        Event("mixed", TagSet({}), {"value": n if n % 5 else "five"}, BASE_NS + n)
        for n in range(1, 101)
    ]
    with delivering(tmp_path, **influxdb.options(bucket)) as pipeline:
        pipeline.submit(made, 10)
        health = settled(pipeline, 100)
    assert outcome(health) == (80, 20, {})
    found = sorted(point[2]["value"] for point in influxdb.points(bucket, "mixed"))
    assert found == [n for n in range(1, 101) if n % 5]
    assert 'field "value" of measurement "mixed" is string here and float' in health.last_error


def test_points_older_than_the_bucket_keeps(influxdb, tmp_path):
    """Points outside the retention period are refused for that reason; the others arrive."""
    bucket = influxdb.new_bucket(retention_seconds=24 * 3600)
    now_ns = time.time_ns()
    fresh = [span(n, time_ns=now_ns + n) for n in range(50)]
    old = [span(n, time_ns=BASE_NS + n) for n in range(50, 80)]
    with delivering(tmp_path, **influxdb.options(bucket)) as pipeline:
        pipeline.submit([*old[:10], *fresh, *old[10:]], 10)
        health = settled(pipeline, 80)
    assert outcome(health) == (50, 30, {})
    assert numbers(influxdb, bucket) == list(range(50))
    assert health.last_error.startswith("points are older than the bucket keeps them")
    letters = dead_letters(tmp_path)
    assert {letter["reason"] for letter in letters} == {"outside_retention"}
    assert sorted(letter["timestamp_ns"] - BASE_NS for letter in letters) == list(range(50, 80))


def test_every_kind_of_poison_in_one_batch(influxdb, tmp_path):
    """Unparseable lines, conflicts in two fields and old points each get their own reason."""
    bucket = influxdb.new_bucket(retention_seconds=24 * 3600)
    now_ns = time.time_ns()
    influxdb.write(bucket, f'spans error=1.5,note="x" {now_ns - 1}')
    made = [span(n, time_ns=now_ns + n) for n in range(100)]
    made[7] = span(7, time_ns=now_ns + 7, error=1)
    made[8] = span(8, time_ns=now_ns + 8, note=2.5)
    made[9] = span(9, time_ns=BASE_NS)
    with delivering(tmp_path, poison={50: b"?"}, **influxdb.options(bucket)) as pipeline:
        pipeline.submit(made, 10)
        health = settled(pipeline, 100)
    assert outcome(health) == (96, 4, {})
    reasons = {letter["timestamp_ns"]: letter["reason"] for letter in dead_letters(tmp_path)}
    assert reasons == {
        now_ns + 7: "field_type_conflict",
        now_ns + 8: "field_type_conflict",
        BASE_NS: "outside_retention",
        now_ns + 50: "invalid",
    }
    stored = {p[2]["duration_ns"] for p in influxdb.points(bucket, "spans") if "span_id" in p[2]}
    assert stored == set(range(100)) - {7, 8, 9, 50}


def test_sent_twice_is_stored_once(influxdb, tmp_path):
    """A batch that is sent again overwrites itself, and adds no points."""
    bucket = influxdb.new_bucket()
    with delivering(tmp_path, **influxdb.options(bucket)) as pipeline:
        sink = pipeline._sink
        # Equal times are moved once, when they are encoded.
        records = sink.encode([*spans(500), *spans(500)]).records
        for _ in range(3):
            assert len(sink.write(records, 30).delivered) == 1_000
        assert sink.write(records[300:700], 30).delivered == records[300:700]
    points = influxdb.points(bucket, "spans")
    assert len(points) == 1_000
    assert len({point[3] for point in points}) == 1_000
