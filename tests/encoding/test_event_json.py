"""The rules for values that JSON and UTF-8 cannot represent."""

import enum
import itertools
import json
import types

import pytest

from otel_cbtop_exporter import Event, EventError, MetricInfo, decode_event
from otel_cbtop_exporter.encoding.event_json import encode_event, encode_events
from otel_cbtop_exporter.encoding.json_values import encode_value


class Text(str):
    __slots__ = ()


class Number(enum.IntEnum):
    ONE = 1


class Unspeakable:
    def __str__(self):
        raise RuntimeError("no text for you")


ITSELF = []
ITSELF.append(ITSELF)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("nan"), '"NaN"'),
        (float("inf"), '"Infinity"'),
        (float("-inf"), '"-Infinity"'),
        ([1.0, float("nan")], '[1.0,"NaN"]'),
        ({"a": None, "b": float("nan")}, '{"a":null,"b":"NaN"}'),
        (None, "null"),
        ("null", '"null"'),
        ([None], "[null]"),
        (b"\x00\xff", '"AP8="'),
        (bytearray(b"a"), '"YQ=="'),
        ((1, (2,)), "[1,[2]]"),
        ("a\ud800b", '"a\ufffdb"'),
        ("\ud83d\ude00", '"\U0001f600"'),
        (Text("s"), '"s"'),
        (Number.ONE, "1"),
        (True, "true"),
        (2**70, "1180591620717411303424"),
        (types.MappingProxyType({"a": 1}), '{"a":1}'),
        ({1: "a"}, '{"1":"a"}'),
        ({"\udc00": 1}, '{"\ufffd":1}'),
        (Unspeakable(), '"<Unspeakable>"'),
        ({"k": Unspeakable()}, '{"k":"<Unspeakable>"}'),
        ('\n\r\t"\\\x00\x7f', '"\\n\\r\\t\\"\\\\\\u0000\x7f"'),
        (-0.0, "-0.0"),
        (5e-324, "5e-324"),
    ],
)
def test_values_have_one_json_each(value, text):
    """Each kind of value has the JSON that the module's docstring defines."""
    assert encode_value(value).decode() == text


def test_a_container_that_holds_itself_ends():
    """A container that holds itself is shown by its repr instead of being followed for ever."""
    assert b"[...]" in encode_value(ITSELF)


def test_what_can_be_read_once_is_not_read():
    """A generator in a log body is shown by its repr and not consumed.

    The application still needs it.
    """
    parts = (number for number in [1, 2])
    assert encode_value(parts).startswith(b'"<generator object')
    assert encode_value({"a": itertools.count()}) == b'{"a":"count(0)"}'
    assert list(parts) == [1, 2]


def test_json_is_one_line_whatever_the_texts_hold():
    """A newline in the data never ends a line of the output."""
    event = Event("m\n", {"a\n": "b\r\n"}, {"f\n": "x\n"}, 1, attributes={"k\n": "\u2028\n"})
    assert b"\n" not in encode_event(event)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_field_that_is_no_value_is_an_error_that_names_it(value):
    """A field of a hand-made event that has no valid value raises an error that names it.

    Mapping has already left such fields out.
    """
    with pytest.raises(EventError, match="field 'load' of measurement 'cpu'"):
        encode_event(Event("cpu", {}, {"ok": 1, "load": value}, 1))


@pytest.mark.parametrize("time_ns", [1.5, "1", None])
def test_a_time_that_is_no_integer_is_an_error(time_ns):
    """A time that is not an integer is an error.

    Otherwise a spool could not read back the batch that holds the event.
    """
    with pytest.raises(EventError, match="timestamp_ns .*'m' is .*, an integer was expected"):
        encode_event(Event("m", {}, {"a": 1}, time_ns))


def test_an_event_without_a_field_is_an_error():
    """An event without a field raises an error."""
    with pytest.raises(EventError, match="'cpu' has no field"):
        encode_event(Event("cpu", {}, {}, 1))


def test_surrogates_anywhere_in_an_event_are_replaced():
    """Lone surrogates are replaced in every part of an event, so that it can be encoded."""
    bad = "\ud800"
    event = Event(
        f"m{bad}",
        {f"k{bad}": f"v{bad}"},
        {f"f{bad}": f"x{bad}"},
        1,
        correlation_id=f"c{bad}",
        attributes={f"a{bad}": [f"b{bad}"]},
        metric=MetricInfo("gauge", unit=f"u{bad}", description=f"d{bad}"),
    )
    text = encode_event(event).decode()
    assert json.loads(text)["metric"] == {
        "type": "gauge",
        "unit": "u\ufffd",
        "description": "d\ufffd",
    }
    assert text.count("\ufffd") == 10


@pytest.mark.parametrize("value", [["s3cret"], {"a": "s3cret"}, None])
def test_a_field_that_is_no_value_is_refused_without_being_shown(value):
    """A field with a list or an object in it would not be an event of this schema."""
    made = encode_events([Event("m", {}, {"x": value}, 1), Event("m", {}, {"x": 1}, 1)])
    assert made.bodies[0] == b""
    assert decode_event(made.bodies[1]).fields == {"x": 1}
    (reason, detail) = made.refused[0]
    assert reason == "invalid"
    assert "field 'x' of measurement 'm' is" in detail
    assert "s3cret" not in detail
