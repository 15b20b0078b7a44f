"""Events that try to break line protocol, and what a reader must find of each."""

import json
import re

from hypothesis import strategies as st

from otel_cbtop_exporter.encoding.json_values import encode_value
from otel_cbtop_exporter.event_table import MAX_NUMBER, MIN_NUMBER, EventTable
from otel_cbtop_exporter.events import Event, MetricInfo
from otel_cbtop_exporter.tag_set import TagColumn, TagSet

# Characters that line protocol, its parsers and their readers may trip over.
_NASTY = list(
    " ,=\"'\\#\n\r\t\x00\x01\x1f\x7f\x85\u2028\ufeff\ud800é漢😀:;{}[]()`$%&*!~^|<>/?@+-._0aZ"
)
_WORDS = [
    "time",
    "Time",
    "_name",
    "_time",
    "_field",
    "_start",
    "value",
    "count",
    "le_5",
    "a",
    "\\",
    "\\ ",
    "#",
    "",
    "_",
]
texts = st.one_of(
    st.text(st.sampled_from(_NASTY), max_size=12), st.sampled_from(_WORDS), st.text(max_size=20)
)
numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0.0, -0.0, 5e-324, 1.7976931348623157e308, 2**53 + 1, -(2**63), 2**63 - 1]),
)
values = st.one_of(numbers, st.booleans(), texts)
attribute_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts, st.binary(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=5,
)


attributes = st.one_of(st.none(), st.dictionaries(texts, attribute_values, max_size=3))

# Names that need only the escapes of line protocol.
plain_texts = st.text(
    st.one_of(
        st.sampled_from(" ,=\"'é漢😀:;aZ0"),
        st.characters(exclude_categories=["C", "Zs", "Zl", "Zp"]),
    ).filter(lambda character: character != "\\"),
    max_size=12,
)


SIGNALS = ("span", "span_event", "span_link", "log", "metric", "exemplar")
metric_infos = st.builds(
    MetricInfo,
    type=st.sampled_from(["sum", "histogram"]),
    unit=texts,
    temporality=st.sampled_from(["delta", "cumulative"]),
    monotonic=st.one_of(st.none(), st.booleans()),
    description=texts,
)


@st.composite
def events(draw, names=texts):
    """Draw an event of any kind; the caller sets its time and makes its measurement unique."""
    tags = draw(st.dictionaries(names, names, max_size=4))
    signal = draw(st.sampled_from([None, *SIGNALS]))
    if signal in ("span", "log"):
        fields = {"span_id": draw(texts), "error": draw(st.sampled_from([0, 1, True]))}
        fields["duration_ns"] = draw(st.integers(-(2**63), 2**63 - 1))
    elif signal == "metric":
        fields = {"count": draw(st.integers(0, 2**63 - 1)), "sum": draw(numbers), "le_0.5": 3}
    elif signal == "exemplar":
        fields = {"value": draw(numbers), "span_id": draw(texts)}
    elif signal == "span_event":
        fields = {"span_id": draw(texts)}
    elif signal == "span_link":
        fields = {"span_id": draw(texts), "linked_trace_id": draw(texts)}
    else:
        fields = draw(st.dictionaries(names, values, min_size=1, max_size=4))
    return Event(
        measurement=draw(names),
        tags=TagSet(tags) if draw(st.booleans()) else tags,
        fields=fields,
        timestamp_ns=0,
        correlation_id=draw(st.one_of(st.none(), texts)),
        signal=signal,
        attributes=draw(attributes),
        metric=draw(metric_infos) if signal == "metric" else None,
    )


_ids = st.sampled_from(["00f067aa0ba902b7", "b7ad6b7169203331"])
_int64s = st.one_of(st.integers(0, 3), st.integers(-(2**63), 2**63 - 1))
_MAPPED = {
    "span": {
        "duration_ns": _int64s,
        "error": st.sampled_from([0, 1]),
        "otel.dropped_events_count": st.integers(1, 5),
        "parent_span_id": st.one_of(st.just(""), _ids),
        "status_message": texts,
        "trace_state": texts,
    },
    "span_event": {"otel.dropped_attributes_count": st.integers(1, 5)},
    "span_link": {"linked_trace_id": _ids, "linked_trace_state": texts},
    "log": {"body": texts, "observed_timestamp_ns": _int64s, "severity_number": st.just(9)},
    "exemplar": {"value": st.one_of(_int64s, st.floats(allow_nan=False, allow_infinity=False))},
}
_numbers = st.one_of(
    st.integers(MIN_NUMBER, MAX_NUMBER),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-0.001, 0.001),
    st.integers(-3, 3).map(float),
)
_COLUMNS = {
    "count": _int64s,
    "le_0.5": _int64s,
    "le_1e-05": _int64s,
    "le_inf": _int64s,
    "max": _numbers,
    "min": _numbers,
    "start_time_ns": _int64s,
    "sum": _numbers,
    "value": _numbers,
}
_infos = st.builds(MetricInfo, st.just("sum"), st.one_of(st.none(), texts), st.just("delta"))
_TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@st.composite
def mapped_events(draw):
    """Draw an event as mapping makes it, other than a metric's, at one of a few times."""
    signal = draw(st.sampled_from(sorted(_MAPPED)))
    chosen = draw(st.sets(st.sampled_from(sorted(_MAPPED[signal]))))
    fields = {key: draw(_MAPPED[signal][key]) for key in sorted(chosen)}
    if not fields or draw(st.booleans()):
        fields["span_id"] = draw(_ids)
    return Event(
        draw(st.sampled_from(["spans", "logs", "a b"])),
        TagSet(draw(st.dictionaries(texts, texts, max_size=2))),
        fields,
        draw(st.integers(0, 3)),
        correlation_id=draw(st.one_of(st.none(), st.just(_TRACE_ID))),
        signal=signal,
        attributes=draw(attributes),
    )


@st.composite
def point_tables(draw):
    """Draw data points as mapping makes them, often all at one time, some in the same series."""
    size = draw(st.integers(1, 4))

    def column(of):
        return draw(st.lists(of, min_size=size, max_size=size))

    keys = draw(st.sets(st.sampled_from(sorted(_COLUMNS)), min_size=1))
    columns = {key: column(_COLUMNS[key]) for key in sorted(keys)}
    tags = st.builds(TagSet, st.dictionaries(texts, texts, max_size=2))
    trace_ids = column(st.sampled_from([None, _TRACE_ID]))
    return EventTable(
        draw(st.sampled_from(["requests", "a b"])),
        "metric",
        tuple(columns),
        tuple(columns.values()),
        TagColumn(column(tags)),
        [1_700_000_000_000_000_000] * size if draw(st.booleans()) else column(st.integers(0, 3)),
        trace_ids if any(trace_ids) else None,
        metric=draw(_infos),
    )


def expected_name(text):
    """Return what a reader finds for a measurement, a key or a tag value."""
    text = _without_surrogates(text)
    text = text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    text = re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\x{ord(m.group()):02x}", text)
    return re.sub(r"\\([ ,=\"])", r"/\1", re.sub(r"\\$", "/", text))


def expected_measurement(text):
    return expected_name(f"_{text}" if re.match(r"_*(#|\Z)", text) else text)


_RESERVED = {"", "time", "_time", "_start", "_stop", "_value", "_field", "_measurement"}
_RESERVED |= {"Time", "TIME", "_fieldKey", "_name", "_seriesKey", "_tagKey", "_tagValue"}
_TAGS = {
    "attributes",
    "body",
    "correlation_id",
    "count",
    "duration_ns",
    "error",
    "linked_span_id",
    "linked_trace_id",
    "linked_trace_state",
    "max",
    "metric",
    "min",
    "observed_timestamp_ns",
    "original_timestamp_ns",
    "otel.dropped_attributes_count",
    "otel.dropped_events_count",
    "otel.dropped_links_count",
    "parent_span_id",
    "scale",
    "schema_version",
    "severity_number",
    "span_id",
    "start_time_ns",
    "status_message",
    "sum",
    "trace_id_prefix",
    "trace_state",
    "value",
    "zero_count",
}
_ADDED = {"attributes", "correlation_id", "metric", "original_timestamp_ns"}
_FIELDS = _ADDED | {"schema_version"}


def expected_tags(event):
    found = {"schema_version": "1"}
    for key, value in sorted(event.tags.items()):
        if key and value:
            name = expected_tag_name(key)
            while name in found:
                name += "_"
            found[name] = expected_name(value)
    return found


def expected_tag_name(key):
    is_reserved = key.rstrip("_") in _RESERVED | _TAGS or key.startswith(("le_", "in_"))
    return expected_name(key + "_" * is_reserved)


def expected_fields(event):
    """Return the fields that a reader finds: numbers are floats, except for our own integers."""
    found = {}
    integers = {"count", "duration_ns", "error", "le_0.5"} if event.signal else set()
    tags = {} if event.signal else event.tags
    tag_names = {expected_tag_name(key) for key, value in tags.items() if key and value}
    for key, value in event.fields.items():
        name = expected_name(key + "_" * (key.rstrip("_") in _RESERVED | _FIELDS))
        while name in found or name in _ADDED or name in tag_names:
            name += "_"
        if isinstance(value, str):
            found[name] = _without_surrogates(value).replace("\x00", "\ufffd")
        elif name in integers:
            found[name] = int(value)
        else:
            found[name] = value if isinstance(value, bool) else float(value)
    if event.correlation_id:
        found["correlation_id"] = _without_surrogates(event.correlation_id).replace(
            "\x00", "\ufffd"
        )
    if event.attributes:
        found["attributes"] = encode_value(event.attributes).decode()
    if event.metric:
        found["metric"] = encode_value(event.metric).decode()
    return found


def same(found, expected):
    """Compare bit-exactly, and tell apart the types that JSON tells apart."""
    if isinstance(expected, bool) or isinstance(found, bool):
        return found is expected
    if isinstance(expected, float) and not isinstance(found, str):
        return float(found).hex() == expected.hex()
    return type(found) is type(expected) and found == expected


def read_json(data):
    """Read InfluxDB's JSON without losing the sign of -0."""
    return json.loads(data, parse_int=lambda text: -0.0 if text == "-0" else int(text))


def _without_surrogates(text):
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
