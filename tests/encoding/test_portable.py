"""A value is encoded the same, whatever other values are beside it."""

import collections
import datetime as dt
import decimal
import enum
import json
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from otel_cbtop_exporter.encoding.json_values import encode_value
from otel_cbtop_exporter.mapping.attributes import tag_text


class Color(str, enum.Enum):
    RED = "red"


class Letter(enum.Enum):
    A = "x"


class Flags(enum.Flag):
    A = 1
    B = 2


class Three(int):
    def __str__(self):
        return "three"


class Loud(str):
    __slots__ = ()

    def __str__(self):
        return "LOUD"


@dataclass
class Login:
    user: str
    parts: Any = None


class Order(msgspec.Struct):
    number: int


class Foreign:
    def __str__(self):
        return "foreign"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Color.RED, '"red"'),
        (Letter.A, '"x"'),
        (Flags.A | Flags.B, "3"),
        ({Three(3): 1}, '{"3":1}'),
        (Loud("quiet"), '"quiet"'),
        ({Color.RED: 1, Loud("quiet"): 2}, '{"red":1,"quiet":2}'),
        ({Letter.A: 1}, '{"x":1}'),
        ({b"a": 1}, '{"YQ==":1}'),
        ({dt.date(2020, 1, 2): 1}, '{"2020-01-02":1}'),
        (dt.datetime(2020, 1, 2, 3, tzinfo=dt.timezone.utc), '"2020-01-02T03:00:00Z"'),
        (dt.timedelta(1, 5), '"P1DT5S"'),
        (decimal.Decimal("1.50"), '"1.50"'),
        (uuid.UUID(int=5), '"00000000-0000-0000-0000-000000000005"'),
        (Login("bob", [1, (2,)]), '{"user":"bob","parts":[1,[2]]}'),
        (Login("bob", Foreign()), '{"user":"bob","parts":"foreign"}'),
        (Login("bob", collections.deque([Loud("quiet")])), '{"user":"bob","parts":["quiet"]}'),
        (Order(7), '{"number":7}'),
        (collections.deque([1]), "[1]"),
        (Foreign(), '"foreign"'),
        ([Foreign], f'["{Foreign}"]'),
    ],
)
def test_what_is_beside_a_value_does_not_change_it(value, text):
    """NaN or a lone surrogate beside a value selects the careful path, which writes the same."""
    assert encode_value({"v": value}).decode() == f'{{"v":{text}}}'
    careful = encode_value({"v": value, "n": float("nan"), "s": "\ud800"}).decode()
    assert careful == f'{{"v":{text},"n":"NaN","s":"\ufffd"}}'


def test_an_integer_that_python_does_not_write_in_decimal():
    """An integer too large for Python's decimal conversion is written in hex.

    Its neighbours are unchanged.
    """
    digits = "1" + 5_000 * "0"
    value = [2**20_000, -(2**20_000), 2**70]
    assert encode_value(value).decode() == f'["0x{digits}","-0x{digits}",{2**70}]'
    assert tag_text(2**20_000) == f"0x{digits}"


def test_what_an_object_holds_is_written_by_the_rules():
    """NaN, bytes and lone surrogates inside a dataclass follow the same rules."""
    login = Login("bo\ud800b", [float("nan"), b"\x00", {"k": float("inf")}])
    expected = '{"user":"bo\ufffdb","parts":["NaN","AA==",{"k":"Infinity"}]}'
    assert encode_value(login).decode() == expected


def test_a_container_that_holds_itself_costs_no_other_value():
    """Beside a container that holds itself, a repeated value is written each time.

    Empty containers stay empty.
    """
    row = {"sku": "A1"}
    order = {"ordered": [row, row], "tags": [(), ()], "labels": ()}
    order["self"] = order
    assert json.loads(encode_value(order)) == {
        "ordered": [row, row],
        "tags": [[], []],
        "labels": [],
        "self": "{...}",
    }


def test_what_everybody_knows_ends():
    """Fifteen maps that refer to each other through separate lists end.

    There are too many paths to follow.
    """
    people = [{"name": number} for number in range(15)]
    for one in people:
        one["knows"] = [other for other in people if other is not one]
    text = encode_value(people)
    assert json.loads(text)[0]["name"] == 0
    assert len(text) < 1_000_000


def test_a_container_that_is_there_twice_is_written_twice():
    """A container that occurs twice is written twice, because it is not inside itself."""
    twice = {"n": float("nan")}
    assert json.loads(encode_value([twice, twice, {"in": twice}])) == [
        {"n": "NaN"},
        {"n": "NaN"},
        {"in": {"n": "NaN"}},
    ]


def test_maps_that_know_each_other_are_written_once():
    """Maps that refer to each other are written once.

    Along every path, twenty of them would need more memory than there is.
    """
    friends = [{"name": number} for number in range(20)]
    for one in friends:
        one["friends"] = friends
    written = json.loads(encode_value(friends))
    assert [one["name"] for one in written] == list(range(20))
    assert written[0]["friends"] == "[...]"


def test_children_that_know_their_parent():
    """A tree whose nodes refer to their parent, as many libraries build it, can be written."""
    root = {"name": "root", "children": []}
    root["children"] = [{"name": number, "parent": root} for number in range(100)]
    assert json.loads(encode_value(root)) == {
        "name": "root",
        "children": [{"name": number, "parent": "{...}"} for number in range(100)],
    }


def test_an_object_that_holds_itself():
    """An object that holds itself is written as its class name."""
    login = Login("bob")
    login.parts = [login]
    assert encode_value({"login": login}) == b'{"login":"<Login>"}'


def test_a_long_chain_that_is_closed_ends():
    """A closed, doubly linked list is followed only to the maximum depth of a value."""
    nodes = [{"number": number} for number in range(1_000)]
    for before, after in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
        before["next"], after["previous"] = after, before
    text = encode_value(nodes[0])
    assert 32 <= text.count(b'"number"') < 100
