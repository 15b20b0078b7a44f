"""Where our lines differ from those of the InfluxDB client, and what the server does with both.

The table lists events for which influxdb-client's `Point` writes a different line. Both lines are
sent to a real server, each followed by a good line; the table says what becomes of `Point`'s.
"""

import re
import warnings

import pytest
from influxdb_client import Point
from influxdb_client.rest import ApiException
from line_protocol_parser import LineFormatError, parse_line

from otel_cbtop_exporter.encoding.line_protocol import LineProtocolEncoder
from otel_cbtop_exporter.events import Event
from tests.encoding.line_protocol_cases import (
    expected_fields,
    expected_tags,
    same,
)
from tests.sinks.influxdb_data import BASE_NS

pytestmark = pytest.mark.influxdb

REFUSED = "refused"  # on InfluxDB 2 with its whole request
DROPPED = "answered 204, and not stored"
SWALLOWED = "read as one line with the next one, and refused"
CHANGED = "stored as something else"
UNREADABLE = "stored, and then Flux's pivot of the measurement fails"
RAW = "stored with a control character in a name or text"
TYPED = "stored as an integer, so that the next float is refused"

# Measurement, tags and fields; what becomes of Point's line on 2.7, and on 1.8 if that differs.
TABLE = {
    "comment": ("#m", {"t": "v"}, {"x": 1.5}, DROPPED),
    "empty measurement": ("", {"t": "v"}, {"x": 1.5}, REFUSED),
    "backslash at a measurement's end": ("m\\", {"t": "v"}, {"x": 1.5}, CHANGED),
    "backslash at a tag's end": ("m", {"t": "C:\\"}, {"x": 1.5}, CHANGED),
    "backslash at a tag key's end": ("m", {"t\\": "v"}, {"x": 1.5}, REFUSED),
    "backslash at a field key's end": ("m", {"t": "v"}, {"x\\": 1.5}, REFUSED),
    "backslashes before what is escaped": ("m", {"t": 'a\\ b\\="c'}, {"x": 1.5}, SWALLOWED),
    "control character in a tag": ("m", {"t": "a\x00b"}, {"x": 1.5}, RAW),
    "NUL in a string": ("m", {"t": "v"}, {"x": "a\x00b"}, RAW),
    "integer": ("m", {"t": "v"}, {"x": 5}, TYPED),
    "integer beyond 64 bits": ("m", {"t": "v"}, {"x": 2**63, "y": 1.5}, REFUSED),
    "tag key time": ("m", {"time": "v"}, {"x": 1.5}, REFUSED),
    "tag key _field": ("m", {"_field": "v"}, {"x": 1.5}, REFUSED, "stored"),
    "tag key _value": ("m", {"_value": "v"}, {"x": 1.5}, UNREADABLE, "stored"),
    "field key time": ("m", {"t": "v"}, {"time": 1.5, "y": 1.5}, CHANGED),
    "field key _time": ("m", {"t": "v"}, {"_time": 1.5}, UNREADABLE, "stored"),
    "a tag and a field of one name": ("m", {"x": "v"}, {"x": 1.5}, UNREADABLE, "stored"),
    "70 kB of tag": ("m", {"t": "é" * 35_000}, {"x": 1.5}, REFUSED),
}


def fate(server, line, tags, fields):
    """Write a line, followed by a good one, to a new bucket, and return what became of it."""
    bucket = server.new_bucket()
    status, answer = server.write(bucket, line.encode() + b"\nnext z=1 %d" % BASE_NS)
    if status >= 400:
        return SWALLOWED if "next z=1" in answer else REFUSED
    names = [row[0] for row in server.influxql("SHOW MEASUREMENTS", bucket)[0]["values"]]
    assert "next" in names
    found = [point for point in server.points(bucket, *names) if point[0] != "next"]
    if not found:
        return DROPPED
    _, found_tags, found_fields, _ = found[0]
    if found_tags != tags or found_fields.keys() != fields.keys():
        return CHANGED
    if not all(same(found_fields[key], value) for key, value in fields.items()):
        return CHANGED
    if re.search(r"[\x00-\x1f]", "".join(map(str, [*found_tags.values(), *found_fields.values()]))):
        return RAW
    number = next(iter(found_fields))
    if type(fields[number]) is int:
        float_line = f"{found[0][0]} {number}=0.5 {BASE_NS + 1}"
        return TYPED if server.write(bucket, float_line)[0] >= 400 else "stored"
    return "stored" if server.major == 1 or pivots(server, bucket) else UNREADABLE


def pivots(server, bucket):
    try:
        server.flux(
            f'from(bucket: "{bucket}") |> range(start: 0) |> filter(fn: (r) => r._measurement != "next")'
            '|> pivot(rowKey: ["_time"], columnKey: ["_field"], valueColumn: "_value")'
        )
    except ApiException as error:
        if b"panic" in error.body or b"already exists" in error.body:
            return False
        raise
    return True


@pytest.mark.parametrize("case", TABLE)
def test_where_the_clients_point_differs_the_server_says_why(influxdb, case):
    """Our line is stored correctly, and the client's has the fate that the table says."""
    measurement, tags, fields, *fates = TABLE[case]
    event = Event(measurement, tags, fields, BASE_NS)
    ours = LineProtocolEncoder().encode([event]).bodies[0].decode()
    point = Point(measurement).time(BASE_NS)
    for key, value in tags.items():
        point.tag(key, value)
    for key, value in fields.items():
        point.field(key, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # it warns about comments, and writes them
        theirs = point.to_line_protocol()
    assert theirs != ours.replace(",schema_version=1", "")
    assert fate(influxdb, theirs, tags, fields) == fates[0 if influxdb.major == 2 else -1]
    if case != "70 kB of tag":  # it is cut; see test_line_protocol.py
        assert fate(influxdb, ours, expected_tags(event), expected_fields(event)) == "stored"
    else:
        assert influxdb.write(influxdb.new_bucket(), ours)[0] == 204


def test_a_lone_surrogate_stops_the_clients_point(influxdb):
    """A lone surrogate makes the text of a `Point` impossible to encode; we write U+FFFD."""
    event = Event("m", {"t": "\ud83d"}, {"x": 1.5}, BASE_NS)
    with pytest.raises(UnicodeEncodeError):
        Point("m").tag("t", "\ud83d").field("x", 1.5).to_line_protocol().encode()
    ours = LineProtocolEncoder().encode([event]).bodies[0].decode()
    assert fate(influxdb, ours, expected_tags(event), expected_fields(event)) == "stored"


def test_a_subnormal_float_is_the_parsers_limit(influxdb):
    """The independent parser refuses a subnormal float, but the server stores it bit-exactly."""
    event = Event("m", {"t": "v"}, {"x": 5e-324}, BASE_NS)
    ours = LineProtocolEncoder().encode([event]).bodies[0].decode()
    with pytest.raises(LineFormatError):
        parse_line(ours)
    assert fate(influxdb, ours, expected_tags(event), {"x": 5e-324}) == "stored"
