"""Line protocol: tags and fields, their types, and that no two events become one point."""

import json
import math
import os
import threading
import warnings
from enum import Enum

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from influxdb_client import Point
from line_protocol_parser import parse_line

from otel_cbtop_exporter.encoding.event_json import encode_event, encode_events
from otel_cbtop_exporter.encoding.line_protocol import LineProtocolEncoder
from otel_cbtop_exporter.encoding.line_protocol_text import string_text, string_texts
from otel_cbtop_exporter.encoding.unique_points import CollectedPoints, UniquePoints
from otel_cbtop_exporter.errors import EventError
from otel_cbtop_exporter.event_batch import EventRun, Events, Tables
from otel_cbtop_exporter.event_table import EventTable
from otel_cbtop_exporter.events import Event, MetricInfo, event_from_sample
from otel_cbtop_exporter.sinks.lines import encode_lines
from otel_cbtop_exporter.tag_set import TagColumn, TagSet
from tests.builders import exemplar, histogram_metric, histogram_point, log, metrics
from tests.encoding.line_protocol_cases import (
    events,
    expected_fields,
    expected_measurement,
    expected_tags,
    mapped_events,
    plain_texts,
    point_tables,
    same,
)
from tests.mappers import map_logs, map_metrics

T = 1_700_000_000_000_000_000
TRACE = "0af7651916cd43dd8448eb211c80319c"


def line(event, **options):
    lines = LineProtocolEncoder(**options).encode([event])
    assert not lines.refused
    return lines.bodies[0].decode()


def hand_made(fields, tags=None, measurement="m", time_ns=T):
    return Event(measurement, tags or {}, fields, time_ns)


def span(time_ns=T, tags=None, **fields):
    return Event(
        "spans",
        TagSet(tags or {"service.name": "shop"}),
        {
            "span_id": "00f067aa0ba902b7",
            "parent_span_id": "",
            "duration_ns": 5,
            "error": 0,
            **fields,
        },
        time_ns,
        correlation_id=TRACE,
        signal="span",
        attributes={"a": "x", "b": 1},
    )


def metric(name="requests", time_ns=T, value=1, **tags):
    return Event(name, TagSet(tags), {"value": value, "start_time_ns": T}, time_ns, signal="metric")


def test_a_sample_is_what_cbtop_writes_with_the_schema_tag_and_the_correlation_id():
    """A sample has cbtop's format: sorted tags, sorted fields, then the time.

    We add the schema tag and the correlation id of issue 4.
    """
    event = event_from_sample("cpu_usage", 42.5, {"host": "a", "core": "3"}, timestamp_ns=T)
    assert line(event) == f"cpu_usage,core=3,host=a,schema_version=1 value=42.5 {T}"
    event = event_from_sample("cpu", 1.0, {"host": "a"}, timestamp_ns=T, correlation_id="cbtop-1-2")
    assert line(event) == f'cpu,host=a,schema_version=1 correlation_id="cbtop-1-2",value=1 {T}'


def test_a_span_is_one_line_with_its_attributes_in_one_field():
    """Our own counts, times and flags are integers; attributes are JSON in a string field."""
    assert line(span()) == (
        r'spans,schema_version=1,service.name=shop attributes="{\"a\":\"x\",\"b\":1}",'
        f'correlation_id="{TRACE}",duration_ns=5i,error=0i,parent_span_id="",'
        f'span_id="00f067aa0ba902b7" {T}'
    )


def test_numbers_of_metrics_and_samples_are_floats_whatever_their_type():
    """Numbers of metrics and samples are floats, even integers.

    InfluxDB would refuse a second type in one field.
    """
    assert line(metric(value=5)).split(" ")[1] == f"start_time_ns={T}i,value=5"
    assert line(metric(value=5.5)).split(" ")[1] == f"start_time_ns={T}i,value=5.5"
    assert line(hand_made({"count": 3})).split(" ")[1] == "count=3"
    assert line(hand_made({"on": True, "off": False})).split(" ")[1] == "off=false,on=true"


def test_histogram_fields_are_integers_but_for_the_values():
    """Counts and buckets are integers; sum, min and max are floats."""
    fields = {"count": 3, "sum": 6, "min": 1.0, "max": 3, "le_0.5": 1, "le_inf": 3, "in_2": 1}
    event = Event("latency", TagSet({}), fields, T, signal="metric")
    assert line(event).split(" ")[1] == "count=3i,in_2=1i,le_0.5=1i,le_inf=3i,max=3,min=1,sum=6"


def test_what_a_metric_is_goes_into_one_field():
    """A metric's type, unit and temporality are JSON in the field `metric`."""
    info = MetricInfo(type="sum", unit="1", temporality="delta", monotonic=True)
    event = Event("r", TagSet({}), {"value": 1}, T, signal="metric", metric=info)
    fields = parse_line(line(event))["fields"]
    assert json.loads(fields["metric"]) == {
        "type": "sum",
        "unit": "1",
        "temporality": "delta",
        "monotonic": True,
    }


@pytest.mark.parametrize(
    "key",
    [
        *("time", "Time", "TIME", "_time", "_start", "_stop", "_value", "_field", "_measurement"),
        *("_fieldKey", "_name", "_seriesKey", "_tagKey", "_tagValue", "value"),
    ],
)
def test_reserved_tag_keys_get_an_underscore_and_stay_apart(key):
    """A tag key that InfluxDB cannot query is renamed, without merging it with another key."""
    tags = parse_line(line(hand_made({"x": 1}, {key: "a", f"{key}_": "b"})))["tags"]
    assert tags == {"schema_version": "1", f"{key}_": "a", f"{key}__": "b"}


@pytest.mark.parametrize(
    "key",
    ["le_5", "in_0", "span_id", "error", "metric", "otel.dropped_links_count", "trace_id_prefix"],
)
def test_tag_keys_that_are_fields_of_ours_get_an_underscore(key):
    """A tag key that equals one of our fields is renamed.

    InfluxDB cannot query a tag and a field of one name, even if they are in different points.
    """
    assert f",{key}_=a" in line(hand_made({"x": 1}, {key: "a"}))


def test_an_event_that_cannot_be_rendered_costs_its_neighbours_nothing():
    """An event that cannot be rendered changes neither times nor metric points of others."""
    odd = Event("m", {}, {"x": 1}, T, correlation_id=7)
    point = Event("load", {}, {"value": 1}, T, signal="metric")
    lines = LineProtocolEncoder().encode([hand_made({"x": 1}), odd, point])
    assert [(at, refusal.reason) for at, refusal in lines.refused.items()] == [(1, "invalid")]
    assert lines.times_ns[0] == T
    assert lines.bodies[2].startswith(b"load")


def test_a_hand_made_field_never_has_the_name_of_a_tag_or_of_what_we_add():
    """A hand-made field with the name of a tag, or of a field we add, gets an underscore.

    Both can then be queried.
    """
    fields = {"cpu": 1, "time": 2, "metric": 3, "attributes": 4, "_time": 5}
    assert line(hand_made(fields, {"cpu": "0"})).split(" ")[1] == (
        "_time_=5,attributes_=4,cpu_=1,metric_=3,time_=2"
    )


def test_empty_tag_values_are_left_out():
    """Empty tag values are left out, because InfluxDB refuses a line with one."""
    assert line(hand_made({"x": 1}, {"a": "", "b": "c"})).startswith("m,b=c,schema_version=1 ")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a b", "a\\ b"),
        ("a,b=c", "a\\,b\\=c"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("nul\x00", "nul\\x00"),
        ("C:\\", "C:/"),
        ('a\\ b\\="c', 'a/\\ b/\\="c'),
        ("C:\\Windows", "C:\\Windows"),
        ("\ud83d", "\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
    ],
)
def test_a_tag_value_cannot_end_its_line(text, written):
    """Any tag value stays one readable value on one line."""
    assert line(hand_made({"x": 1}, {"t": text})) == f"m,schema_version=1,t={written} x=1 {T}"


@pytest.mark.parametrize(
    ("measurement", "written"),
    [("#a", "_#a"), ("_#a", "__#a"), ("", "_"), ("_", "__"), ("a=b c,d", "a=b\\ c\\,d")],
)
def test_a_measurement_is_never_a_comment_and_never_empty(measurement, written):
    """A measurement never starts a comment: InfluxDB answers 204 to that and stores nothing."""
    assert line(hand_made({"x": 1}, measurement=measurement)).startswith(f"{written},schema")


@pytest.mark.parametrize("value", [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1e16, 1e-7, 3.0])
def test_floats_read_back_bit_exact(value):
    """A float is written as the shortest text that reads back exactly, without a trailing .0."""
    text = line(hand_made({"x": value})).split(" ")[1].removeprefix("x=")
    assert float(text).hex() == value.hex()
    assert not text.endswith(".0")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, None, b"x"])
def test_a_field_that_cannot_be_carried_takes_nothing_along(value):
    """A field that cannot be written is left out and counted; the rest of the event is written."""
    encoder = LineProtocolEncoder()
    lines = encoder.encode([hand_made({"bad": value, "good": 1})])
    assert lines.bodies == [f"m,schema_version=1 good=1 {T}".encode()]
    assert (lines.refused, lines.values_lost) == ({}, {"field_left_out": 1})
    lines = encoder.encode([hand_made({"bad": value})])
    assert lines.refused[0].reason == "no_field"


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 1.5])
def test_an_integer_field_of_ours_is_an_integer_or_left_out(value):
    """An integer field beyond 64 bits is left out.

    InfluxDB has no such integer, and another type would be a conflict.
    """
    encoder = LineProtocolEncoder()
    lines = encoder.encode([span(duration_ns=value)])
    assert b"duration_ns" not in lines.bodies[0]
    assert lines.values_lost == {"field_left_out": 1}
    assert (
        b"duration_ns=9223372036854775807i"
        in encoder.encode([span(duration_ns=2**63 - 1)]).bodies[0]
    )


def test_a_tag_value_of_70_kb_is_cut_at_a_character_and_counted():
    """A tag value that makes the series key exceed 65,535 bytes is cut at a character and counted.

    InfluxDB would refuse the event otherwise.
    """
    encoder = LineProtocolEncoder()
    event = hand_made({"x": 1}, TagSet({"long": "é" * 35_000, "short": "s"}))
    lines = encoder.encode([event, event])
    tags = parse_line(lines.bodies[0].decode())["tags"]
    assert tags["short"] == "s"
    assert set(tags["long"]) == {"é"}
    assert 10_000 < len(lines.bodies[0]) < 65_535
    assert lines.values_lost == {"tag_cut": 2}


def test_a_text_is_cut_as_long_as_it_is_written():
    """A text is cut by the size it is written with.

    NUL, which no reader of InfluxDB accepts, is written as a character of three bytes.
    """
    lines = LineProtocolEncoder().encode([hand_made({"x": "\x00" * 400_000})])
    (text,) = parse_line(lines.bodies[0].decode())["fields"].values()
    assert set(text) == {"\ufffd"}
    assert len(text.encode()) in range(1024 * 1024 - 3, 1024 * 1024 + 1)
    assert lines.values_lost == {"field_cut": 1}


def test_keys_that_alone_are_too_long_are_refused():
    """An event whose keys alone are too long is refused: a cut key would be a different one."""
    lines = LineProtocolEncoder().encode([hand_made({"x": 1}, {"k" * 70_000: "v"})])
    assert lines.refused[0].reason == "too_large"


@pytest.mark.parametrize("time_ns", [2**63, -(2**63), 2**63 - 1, 1.5, None])
def test_a_time_that_influxdb_cannot_hold_is_refused(time_ns):
    """A time that InfluxDB cannot hold is refused and not silently changed."""
    lines = LineProtocolEncoder().encode([hand_made({"x": 1}, time_ns=time_ns)])
    assert lines.refused[0].reason == "invalid_time"


def test_equal_times_of_a_series_move_to_the_next_free_nanosecond():
    """Events of equal series and time become separate points; the exact time stays in a field."""
    lines = LineProtocolEncoder().encode([span(), span(T + 1), span(), span(tags={"a": "b"})])
    assert lines.times_ns == [T, T + 1, T + 2, T]
    assert [b"original_timestamp_ns" in body for body in lines.bodies] == [
        False,
        False,
        True,
        False,
    ]
    assert f"original_timestamp_ns={T}i" in lines.bodies[2].decode()


def test_a_second_metric_point_of_one_series_and_time_is_refused_by_name():
    """A metric point of a series and time already used is refused by name.

    If it were moved, two streams would interleave into nonsense.
    """
    encoder = LineProtocolEncoder()
    lines = encoder.encode([metric(route="/"), metric(route="/a"), metric(route="/", value=7)])
    assert set(lines.refused) == {2}
    assert lines.refused[2].reason == "duplicate_point"
    assert "'requests'" in lines.refused[2].detail
    assert not encoder.encode([metric(route="/", time_ns=T + 1)]).refused


def test_a_hundred_thousand_equal_times_are_a_hundred_thousand_points():
    """Equal times stay apart, and fast, even if there are more than the table remembers."""
    points = UniquePoints()
    assert [points.take_next("s", T) for _ in range(100_000)] == list(range(T, T + 100_000))


def test_times_that_run_into_moved_ones_find_their_way():
    """Every event gets its own nanosecond, in whatever order the times come."""
    points = UniquePoints()
    taken = [points.take_next("s", T + offset // 3) for offset in range(3_000)]
    taken += [points.take_next("s", T + offset) for offset in range(3_000)]
    assert len(set(taken)) == 6_000


def test_only_the_last_pairs_are_remembered():
    """The table is bounded, and always remembers at least two thirds of its size."""
    points = UniquePoints(max_pairs=6)
    for time_ns in range(1, 8):  # the seventh makes room
        assert points.take_all(["s"], [time_ns])
    for time_ns in range(3, 8):
        assert not points.take_all(["s", "s"], [100, time_ns])
    assert points.take_all(["s", "s"], [1, 2])


def test_a_batch_with_one_pair_twice_is_not_taken():
    """Nothing of a batch with a repeated pair is taken.

    What came first can then be told from what came second.
    """
    points = UniquePoints()
    assert not points.take_all(["s", "s"], [7, 7])
    assert points.take_all(["s"], [7])
    collected = CollectedPoints()
    assert not collected.take_all([b"a", b"b", b"a"], 7)
    assert collected.take_all([b"a", b"b"], 7)


def test_the_latest_time_of_a_batch_need_not_be_its_last():
    """The latest time of a batch is remembered even if it is not the last.

    Later times are not looked up.
    """
    points = UniquePoints()
    assert points.take_all(["s", "s"], [5, 3])
    assert not points.take_all(["s"], [5])


def test_series_that_never_came_are_free():
    """No new series is mistaken for a known one: the hash is enough to tell pairs apart."""
    points = UniquePoints()
    assert all(points.take_all([f"s{number}"], [T]) for number in range(20_000))


def test_points_of_one_time_may_come_in_parts():
    """A second part of a collection is remembered like the first."""
    points = CollectedPoints()
    assert points.take_all([b"a"], 1)
    assert points.take_all([b"b"], 1)
    assert not points.take_all([b"b"], 1)


def test_collected_points_are_bounded_and_half_of_them_remembered_at_least():
    """The table keeps the current half and the one before it, and nothing older."""
    points = CollectedPoints(max_pairs=8)
    for time_ns in range(1, 8):
        assert points.take_all([b"a", b"b"], time_ns)
    for time_ns in range(5, 8):
        assert not points.take_all([b"a"], time_ns)
    assert points.take_all([b"a"], 4)


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 20)), min_size=1, max_size=4),
        max_size=40,
    )
)
def test_pairs_are_found_whatever_the_order_of_the_times(batches):
    """Recent pairs are never taken twice, and new pairs are always free."""
    points = UniquePoints(max_pairs=30)
    taken = []
    for batch in batches:
        if points.take_all(*zip(*batch, strict=True)):
            assert not {*batch} & {*taken[-16:]}  # two generations of ten, minus a batch
            taken += batch
        else:
            assert len({*batch}) < len(batch) or {*batch} & {*taken}


def test_threads_never_make_the_same_point():
    """Four threads that encode equal events with one encoder make as many points as events."""
    encoder = LineProtocolEncoder()
    bodies = []

    def work():
        for _ in range(50):
            bodies.extend(encoder.encode([span()] * 20).times_ns)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(bodies)) == 4_000


def test_a_forked_child_begins_with_an_empty_table():
    """A forked child starts with an empty table, even if the parent's lock is held.

    Its series differ by service.instance.id.
    """
    encoder = LineProtocolEncoder()
    encoder.encode([span()])
    reading, writing = os.pipe()
    with encoder._lock:  # as another thread might during the fork
        pid = os.fork()
        if pid == 0:
            encoder.after_fork_in_child()
            os.write(writing, str(encoder.encode([span()]).times_ns[0]).encode())
            os._exit(0)
    os.close(writing)
    assert os.read(reading, 100) == str(T).encode()
    os.close(reading)
    os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("digits", "tag"), [(0, ""), (1, ",trace_id_prefix=0"), (2, ",trace_id_prefix=0a")]
)
def test_the_first_digits_of_the_trace_id_can_be_a_tag(digits, tag):
    """Spans and logs can have a trace id prefix as a tag; metrics never do.

    A metric's series must not depend on an exemplar.
    """
    assert line(span(), trace_id_tag_digits=digits).startswith(
        f"spans,schema_version=1,service.name=shop{tag} "
    )
    sample = Event("m", TagSet({}), {"value": 1}, T, correlation_id=TRACE, signal="metric")
    assert "trace_id_prefix" not in line(sample, trace_id_tag_digits=digits)


def test_one_tag_set_serves_encoders_with_different_options():
    """What one encoder caches in a tag set is never used by another with different options."""
    event = span()
    assert "trace_id_prefix" in line(event, trace_id_tag_digits=1)
    assert "trace_id_prefix" not in line(event)
    assert line(event).startswith("spans,")
    assert line(Event("logs", event.tags, {"body": "x"}, T, signal="log")).startswith("logs,")


@settings(max_examples=1_000, deadline=None)
@given(st.lists(mapped_events(), min_size=1, max_size=6))
def test_a_table_is_rendered_as_its_events_are(made):
    """The fast path for tables writes what the careful path does for each event.

    This holds in both encodings.
    """
    tables = Tables()
    for event in made:
        tables.add(event)
    batch = tables.events()
    assume(all(type(part) is EventTable for part in batch.parts))
    assert LineProtocolEncoder().encode(batch) == LineProtocolEncoder().encode(list(batch))
    bodies = [encode_event(event) for event in batch]
    assert encode_events(batch).bodies == bodies
    assert encode_lines(batch).records.bodies == bodies


@settings(max_examples=1_000, deadline=None)
@given(st.lists(point_tables(), min_size=1, max_size=3))
def test_points_in_columns_are_rendered_as_their_events_are(tables):
    """The fast path for columns writes what the careful path does for each event.

    This holds in both encodings.
    """
    batch = Events(tables)
    assert LineProtocolEncoder().encode(batch) == LineProtocolEncoder().encode(list(batch))
    bodies = [encode_event(event) for event in batch]
    assert encode_events(batch).bodies == bodies
    assert encode_lines(batch).records.bodies == bodies


_quoted = st.text(st.sampled_from('",\\a\né\x00\ud800'), max_size=6)


@settings(max_examples=1_000, deadline=None)
@given(st.lists(_quoted, min_size=1, max_size=4))
@example(['"a": "b",', "next"])
def test_texts_are_escaped_together_as_each_is_alone(values):
    """Texts that are escaped together do not affect their neighbours."""
    assert [f'"{text}"' for text in string_texts(values)] == list(map(string_text, values))


def test_events_made_by_hand_and_points_of_metrics_see_each_other():
    """A hand-made event and a metric point of one series and time do not overwrite each other.

    The second event is moved, and the second metric point refused.
    """
    by_hand = Event("m", TagSet({"a": "b"}), {"value": 2.0}, T)
    table = EventTable(
        "m",
        "metric",
        ("value",),
        [[1.0]],
        TagColumn([TagSet({"a": "b"})]),
        [T],
        metric=MetricInfo("gauge"),
    )
    for points in (Events([table]), list(table)):
        encoder = LineProtocolEncoder()
        encoder.encode(points)
        assert encoder.encode([by_hand]).times_ns == [T + 1]
        encoder = LineProtocolEncoder()
        encoder.encode([by_hand])
        assert [why.reason for why in encoder.encode(points).refused.values()] == [
            "duplicate_point"
        ]


def test_an_event_without_a_field_is_refused_and_spares_its_neighbours():
    """An event without a field is refused alone: no server would take its line."""
    lines = LineProtocolEncoder().encode([hand_made({}), hand_made({"a": 1})])
    assert [refusal.reason for refusal in lines.refused.values()] == ["no_field"]
    assert list(lines.refused) == [0]


@settings(max_examples=1_000, deadline=None)
@given(events())
def test_an_independent_parser_reads_what_was_written(event):
    """An independent parser reads back every name, value and type."""
    lines = LineProtocolEncoder().encode([event])
    if lines.refused:
        assert lines.refused[0].reason == "no_field"
        return
    tags, fields = expected_tags(event), expected_fields(event)
    # The parser rejects subnormal floats; the server reads them (test_influxdb_differences.py).
    assume(not any(isinstance(v, float) and 0 < abs(v) < 1e-300 for v in fields.values()))
    parsed = parse_line(lines.bodies[0].decode())
    assert parsed["measurement"] == expected_measurement(event.measurement)
    assert parsed["tags"] == tags
    assert parsed["time"] == 0
    assert parsed["fields"].keys() == fields.keys()
    for key, value in fields.items():
        assert same(parsed["fields"][key], value), key


@settings(max_examples=1_000, deadline=None)
@given(events(names=plain_texts))
def test_the_clients_point_writes_the_same_where_it_is_right(event):
    """For names that need only escapes, the InfluxDB client's encoder writes the same bytes.

    What the server makes of other names is in tests/sinks/test_influxdb_differences.py.
    """
    lines = LineProtocolEncoder().encode([event])
    assume(not lines.refused)
    point = Point(expected_measurement(event.measurement)).time(event.timestamp_ns)
    for key, value in expected_tags(event).items():
        point.tag(key, value)
    for key, value in expected_fields(event).items():
        point.field(key, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        assert lines.bodies[0].decode() == point.to_line_protocol()


def test_a_member_of_an_enum_never_stands_for_the_text_that_it_equals():
    """A str Enum member is written as its text, and so is an equal plain text after it."""

    class Name(str, Enum):
        CHECKOUT = "check out"

    for text in (Name.CHECKOUT, "check out"):
        assert line(hand_made({"x": 1}, {"name": text})).startswith(r"m,name=check\ out,schema")


def test_what_a_table_cannot_promise_stays_an_event_of_its_own():
    """A value of an unexpected type keeps its event out of a table, and spoils no other point."""
    good = {"error": 1, "span_id": "00f067aa0ba902b7", "value": 2.5}
    tables = Tables()
    for fields in (
        good,
        {**good, "error": "a,b"},
        {**good, "value": 2**60},
        {**good, "error": 1.0},
    ):
        tables.add(Event("m", TagSet({}), fields, T, signal="span"))
    tables.add(Event("logs", TagSet({}), {"body": 5}, T, signal="log"))
    kinds = [(type(part), len(part)) for part in tables.events().parts]
    assert kinds == [(EventTable, 1), (EventRun, 3), (EventRun, 1)]


def test_exemplars_have_no_tag_of_their_trace():
    """Exemplars get no trace id tag, because it would split their series into sixteen."""
    points = [histogram_point(exemplars=[exemplar(9.0)])]
    bodies = (
        LineProtocolEncoder(trace_id_tag_digits=1)
        .encode(map_metrics(metrics(histogram_metric(*points))))
        .bodies
    )
    assert len(bodies) == 2
    assert not any(b"trace_id_prefix" in body for body in bodies)


def test_a_body_of_a_table_that_is_too_long_is_cut_and_counted():
    """An oversized body in a table is cut and counted: InfluxDB refuses a text of over 1 MiB."""
    made = LineProtocolEncoder().encode(map_logs(log("é" * 600_000), log("short")))
    assert dict(made.values_lost) == {"field_cut": 1}
    assert len(made.bodies[0]) < 1_100_000


def test_points_of_the_generation_before_are_remembered():
    """A point is still remembered after the newer half of the table has become full."""
    points = CollectedPoints(max_pairs=4)
    assert points.take_all([b"a", b"b"], 1)  # full: this half becomes the older one
    assert not points.take_all([b"a"], 1)
    assert points.take_all([b"a"], 2)


@pytest.mark.parametrize("key", ["value", "time", "count", "attributes", "le_1", "schema_version"])
def test_a_tag_and_a_field_of_one_reserved_name_stay_apart(key):
    """A tag and a field of one reserved name get different names: `pivot` fails on equal ones."""
    event = Event("m", {key: "x"}, {key: 0.5}, T)
    line = parse_line(LineProtocolEncoder().encode([event]).bodies[0].decode())
    assert line["tags"].keys().isdisjoint(line["fields"])
    assert "x" in line["tags"].values()
    assert 0.5 in line["fields"].values()


def test_an_event_with_a_tag_that_is_no_text_costs_its_neighbours_nothing():
    """A tag value that is not a text becomes one.

    An object that is not an event raises an error, and takes no time from the others.
    """
    encoder = LineProtocolEncoder()
    good = Event("m", {"a": "b"}, {"x": 1}, T, signal="metric", metric=MetricInfo("gauge"))
    odd = Event("m", {"core": 0, "none": None, "on": True}, {"x": 1}, T)
    with pytest.raises(EventError, match="a dict is not an Event"):
        encoder.encode([good, {}])
    for signal in ("foo", ["log"]):
        with pytest.raises(EventError, match="signal of an event of 'm' is .*, allowed are None,"):
            encoder.encode([good, Event("m", {}, {"x": 1}, T, signal=signal)])
    with pytest.raises(EventError, match="measurement of an event is a NoneType, not a text"):
        encoder.encode([good, Event(None, {}, {"x": 1}, T)])
    with pytest.raises(EventError, match="tags of an event of 'm' are a list, not a mapping"):
        encoder.encode([good, Event("m", [("a", "b")], {"x": 1}, T)])
    made = encoder.encode([good, odd])
    assert not made.refused
    assert made.bodies[1] == b"m,core=0,on=True,schema_version=1 x=1 1700000000000000000"
    (tags,) = [json.loads(body)["tags"] for body in encode_events([odd]).bodies]
    assert tags == {"core": "0", "on": "True"}


class Unreadable(dict):
    """Fields that raise when they are read."""

    def __getitem__(self, key):
        raise RuntimeError(key)


def test_an_event_that_raises_is_refused_alone():
    """An event that raises is refused alone, and named by its measurement and the error."""
    good = Event("m", {"a": "b"}, {"x": 1}, T, signal="metric", metric=MetricInfo("gauge"))
    odd = [
        Event("m", {}, {"x": 1}, T, correlation_id=5, signal="span"),
        Event("m", {}, Unreadable(x=1), T),
    ]
    made = LineProtocolEncoder().encode([*odd, good])
    assert [(position, why.detail) for position, why in made.refused.items()] == [
        (0, "an event of 'm' is refused: AttributeError"),
        (1, "an event of 'm' is refused: RuntimeError"),
    ]
    assert made.bodies[2].endswith(b" 1700000000000000000")


def test_equal_tags_of_hand_made_events_are_one_tag_set():
    """What is made of tags is made once, and numbers that are equal are different texts."""
    values = ["a", "a", 1, True, 1.0, ["b"], "1"]
    batch = Events.of([Event("m", {"k": value}, {"x": 1}, T) for value in values])
    tags = [event.tags for event in batch]
    assert [one["k"] for one in tags] == ["a", "a", "1", "True", "1.0", "['b']", "1"]
    assert tags[0] is tags[1]
