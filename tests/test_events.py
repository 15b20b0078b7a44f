"""Events: what decodes, what is refused with which message, and the published schema."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_cbtop_exporter import SCHEMA_VERSION, Event, EventError, decode_event, event_from_sample
from otel_cbtop_exporter.encoding.event_json import encode_event
from otel_cbtop_exporter.encoding.line_protocol import LineProtocolEncoder
from otel_cbtop_exporter.events import event_schema
from otel_cbtop_exporter.tag_set import TagSet

ROOT = Path(__file__).parents[1]
GOOD = {
    "measurement": "cpu",
    "tags": {"core": "0"},
    "fields": {"value": 0.5},
    "timestamp_ns": 1_700_000_000_000_000_000,
    "schema_version": 1,
}


def line(**changes):
    event = {**GOOD, **changes}
    return json.dumps({key: value for key, value in event.items() if value is not ...}).encode()


def test_the_published_schema_is_the_types():
    """schemas/event_v1.json is what Event generates; changing only one of them fails."""
    path = ROOT / "otel_cbtop_exporter/schemas/event_v1.json"
    assert json.loads(path.read_text()) == event_schema()


def test_an_event_of_cbtops_own_stream_decodes_unchanged():
    """cbtop's keys have our names and meanings, with and without a correlation id."""
    plain = decode_event(line())
    assert (plain.measurement, plain.tags, plain.fields) == ("cpu", {"core": "0"}, {"value": 0.5})
    assert (plain.timestamp_ns, plain.schema_version) == (GOOD["timestamp_ns"], 1)
    assert plain.correlation_id is None
    assert decode_event(line(correlation_id="cbtop-1-1")).correlation_id == "cbtop-1-1"
    assert json.loads(encode_event(plain)) == GOOD


def test_line_protocol_is_cbtops_but_for_version_and_correlation_id():
    """Line protocol is cbtop's, apart from the schema version and the correlation id that we add.

    Tags and fields are sorted, and the time comes last.
    """
    event = decode_event(
        line(tags={"b": "2", "a": "1"}, fields={"z": 1.5, "load": 2.5}, correlation_id="cbtop-1-1")
    )
    (body,) = LineProtocolEncoder().encode([event]).bodies
    cbtops = b"cpu,a=1,b=2 load=2.5,z=1.5 1700000000000000000"
    ours = body.replace(b",schema_version=1", b"").replace(b'correlation_id="cbtop-1-1",', b"")
    assert ours == cbtops


def test_unknown_keys_are_ignored():
    """Unknown keys are ignored, because a later writer may add some."""
    assert decode_event(line(new_key={"a": [1]})).measurement == "cpu"


@pytest.mark.parametrize("version", [2, 0, 99])
def test_another_schema_version_is_refused_by_its_number(version):
    """An unknown schema version is refused and named."""
    with pytest.raises(EventError, match=rf"schema_version is {version}.*1 to {SCHEMA_VERSION}"):
        decode_event(line(schema_version=version))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"measurement": ...}, "missing required field `measurement`"),
        ({"timestamp_ns": ...}, "missing required field `timestamp_ns`"),
        ({"schema_version": ...}, "missing required field `schema_version`"),
        ({"timestamp_ns": "x"}, r"Expected `int`, got `str` - at `\$.timestamp_ns`"),
        ({"tags": {"a": "x", "b": 1}}, r"Expected `str`, got `int` - at `\$.tags.*, key 'b'"),
        ({"fields": {"a": 1, "b": None}}, r"got `null` - at `\$.fields.*, key 'b'"),
        ({"fields": {"a": [1], "b": None}}, r"got `array` - at `\$.fields.*, key 'a'"),
        ({"fields": {}}, "`fields` is empty"),
        ({"signal": "smell"}, r"at `\$.signal`"),
        ({"schema_version": "1"}, "at `\\$.schema_version`"),
    ],
)
def test_a_wrong_line_is_refused_by_key_and_expectation(changes, words):
    """The error names the key and what was expected."""
    with pytest.raises(EventError, match=words):
        decode_event(line(**changes))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"7", b"\xff\xfe", b'{"a":"\xff"}', b"null"])
def test_what_is_no_json_object_is_refused(text):
    """Torn and foreign lines raise an EventError and nothing else."""
    with pytest.raises(EventError):
        decode_event(text)


def test_an_event_is_frozen():
    """An event cannot be changed."""
    with pytest.raises(AttributeError):
        decode_event(line()).measurement = "other"


FIELDS = st.dictionaries(
    st.text(min_size=1),
    st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.booleans(),
    min_size=1,
    max_size=5,
)


@settings(max_examples=300, deadline=None)
@given(
    measurement=st.text(),
    tags=st.dictionaries(st.text(min_size=1), st.text(min_size=1), max_size=5),
    fields=FIELDS,
    timestamp_ns=st.integers(-(2**63), 2**63 - 1),
    correlation_id=st.none() | st.text(),
)
def test_an_event_survives_json(measurement, tags, fields, timestamp_ns, correlation_id):
    """An event survives JSON unchanged: integers stay integers, and floats are bit-exact."""
    event = Event(measurement, TagSet(tags), fields, timestamp_ns, correlation_id=correlation_id)
    again = decode_event(encode_event(event))
    assert again == event
    for key, value in fields.items():
        assert type(again.fields[key]) is type(value)
        if isinstance(value, float):
            assert math.copysign(1, again.fields[key]) == math.copysign(1, value)


def test_a_line_that_is_nested_too_deep_is_an_error_like_others():
    """A line nested too deep raises an EventError, so that the lines around it can be read."""
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    line = b'{"schema_version":1,"measurement":"m","attributes":' + deep + b"}"
    with pytest.raises(EventError, match="nested too deep"):
        decode_event(line)


def test_a_sample_becomes_an_event():
    """A sample becomes an event of its metric, with the field `value` and the current time."""
    event = event_from_sample("cpu.load", 0.5, {"core": "0", "empty": ""}, correlation_id="c")
    assert (event.measurement, dict(event.tags), event.fields) == (
        "cpu.load",
        {"core": "0"},
        {"value": 0.5},
    )
    assert event.timestamp_ns > 1_700_000_000_000_000_000
    assert event.signal is None


@pytest.mark.parametrize("timestamp_ns", [1.7e18, "1700000000000000000", True])
def test_a_sample_whose_time_is_no_integer_is_refused(timestamp_ns):
    """A sample whose time is not an integer is refused.

    Otherwise it would be refused later with its neighbours, on delivery or when the spool is read.
    """
    with pytest.raises(EventError, match=r"timestamp_ns of 'cpu' must be an integer, got"):
        event_from_sample("cpu", 1, timestamp_ns=timestamp_ns)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1", None])
def test_a_sample_without_a_finite_number_is_refused(value):
    """A value that is not a finite number is refused; the error names the metric."""
    with pytest.raises(EventError, match=r"value of 'cpu' must be a finite number"):
        event_from_sample("cpu", value)


@pytest.mark.parametrize("tags", [{"a": 1}, {1: "a"}, {"a": None}])
def test_a_sample_with_tags_that_are_no_texts_is_refused(tags):
    """Tags that are not texts are refused; the error mentions the tag."""
    with pytest.raises(EventError, match="tag"):
        event_from_sample("cpu", 1, tags)


@pytest.mark.parametrize("name", ["", 5, None])
def test_a_sample_without_a_name_is_refused(name):
    """A sample without a metric name is refused."""
    with pytest.raises(EventError, match=f"metric must be a name, got {name!r}"):
        event_from_sample(name, 1)


def test_a_sample_whose_correlation_id_is_no_text_is_refused():
    """A correlation id that is not a text is refused, because no sink accepts it."""
    with pytest.raises(EventError, match="correlation_id of 'cpu' must be a text, got 5"):
        event_from_sample("cpu", 1, correlation_id=5)


def test_a_sample_of_a_huge_integer_is_an_event():
    """A huge integer is a finite value and keeps all its digits, up to a limit."""
    event = event_from_sample("cpu", 10**400)
    assert json.loads(encode_event(event))["fields"] == {"value": 10**400}
    with pytest.raises(EventError, match="value of 'cpu' has over 4,200 digits"):
        event_from_sample("cpu", 2**20_000)


def test_a_tag_set_is_a_sorted_immutable_mapping_without_empty_texts():
    """A TagSet is sorted, has no empty texts, equals a dict of its tags, and cannot be changed."""
    tags = TagSet({"b": "2", "a": "1", "c": "", "": "x"})
    assert list(tags.items()) == [("a", "1"), ("b", "2")]
    assert tags == {"a": "1", "b": "2"}
    assert {"a": "1", "b": "2"} == tags
    with pytest.raises(TypeError):
        tags["d"] = "4"


def test_zero_is_a_time():
    """A time of 0 is used, and not replaced by the current time."""
    assert event_from_sample("m", 1.0, timestamp_ns=0).timestamp_ns == 0
