"""Mapping of spans, beyond the golden files: caches, precedence, redaction and hard input."""

import json
import math
import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanKind
from opentelemetry.trace.status import Status, StatusCode

from otel_cbtop_exporter import decode_event
from otel_cbtop_exporter.config import DEFAULT_RESOURCE_TAGS, DEFAULT_SPAN_TAGS
from otel_cbtop_exporter.encoding.event_json import encode_event, encode_events
from otel_cbtop_exporter.encoding.line_protocol import LineProtocolEncoder
from otel_cbtop_exporter.mapping.spans import SpanMapper
from otel_cbtop_exporter.sinks.lines import encode_lines
from otel_cbtop_exporter.tag_set import TagSet
from tests.builders import RESOURCE, SPAN_ID, START_NS, TRACE_ID, context, link, span, span_event
from tests.mappers import map_spans


def mapper(**options):
    options = {
        "resource_tags": DEFAULT_RESOURCE_TAGS,
        "span_tags": DEFAULT_SPAN_TAGS,
        "redact": (),
        **options,
    }
    return SpanMapper(**options)


def test_equal_tags_are_one_object():
    """Spans with the same tags share one tag set, so that it is encoded once."""
    first, second = map_spans(
        span(attributes={"http.route": "/a"}), span(attributes={"http.route": "/a"})
    )
    assert first.tags is second.tags


@pytest.mark.parametrize(
    ("one", "other", "texts"),
    [
        (1, True, ("1", "true")),
        (1, 1.0, ("1", "1.0")),
        (0, False, ("0", "false")),
        ("1", 1, ("1", "1")),
        (-0.0, 0.0, ("0.0", "0.0")),
    ],
)
def test_equal_values_of_different_types_keep_their_texts(one, other, texts):
    """1, 1.0 and True, equal in Python, are different tags; both zeros are the same tag."""
    events = map_spans(
        span(attributes={"http.status_code": one}), span(attributes={"http.status_code": other})
    )
    assert tuple(event.tags["http.status_code"] for event in events) == texts
    events = map_spans(
        span(attributes={"http.status_code": one, "http.route": "/"}),
        span(attributes={"http.status_code": other, "http.route": "/"}),
    )
    assert tuple(event.tags["http.status_code"] for event in events) == texts


def test_attributes_in_another_order_give_the_same_tags():
    """The order in which attributes were set does not affect the tags."""
    one, other = map_spans(
        span(attributes={"http.route": "/a", "http.method": "GET"}),
        span(attributes={"http.method": "GET", "http.route": "/a"}),
    )
    assert one.tags == other.tags


def test_a_span_attribute_wins_over_the_resource_and_ours_over_both():
    """For one key, our own tag overrides the span's attribute, which overrides the resource's."""
    resource = Resource({"service.name": "resource", "service.instance.id": "i"})
    (event,) = map_spans(
        span(
            attributes={"service.name": "attribute", "span.kind": "mine"},
            resource=resource,
        ),
        span_tags=("service.name", "span.kind"),
    )
    assert event.tags["service.name"] == "attribute"
    assert event.tags["span.kind"] == "SERVER"


def test_a_nested_map_as_a_tag_is_its_json():
    """An attribute that cannot be hashed becomes a tag with its JSON."""
    (event,) = map_spans(span(attributes={"http.route": {"a": [1]}}))
    assert event.tags["http.route"] == '{"a":[1]}'


def test_a_resource_without_an_instance_id_gets_one_for_the_process():
    """Without service.instance.id, the process gets one of its own, which it keeps.

    Two processes thus never share a series.
    """
    plain = Resource({"service.name": "shop"})
    one, other = (mapper().map([span(resource=plain)])[0] for _ in range(2))
    assert len(one.tags["service.instance.id"]) == 36
    assert one.tags["service.instance.id"] == other.tags["service.instance.id"]


def test_the_resource_s_own_instance_id_is_a_tag_whatever_the_globs_say():
    """The resource's own instance id is a tag even if no glob selects it.

    A random one would make new series at each start.
    """
    resource = Resource({"service.name": "shop", "service.instance.id": "i-7"})
    (event,) = map_spans(span(resource=resource), resource_tags=("service.name",))
    assert event.tags["service.instance.id"] == "i-7"


def test_a_forked_child_has_an_instance_id_of_its_own():
    """A forked child gets its own instance id, even from a mapper that the parent has used."""
    shared, plain = mapper(), span(resource=Resource({"service.name": "shop"}))
    (before,) = shared.map([plain])
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        (event,) = shared.map([plain])
        os.write(writing, event.tags["service.instance.id"].encode())
        os._exit(0)
    os.close(writing)
    child = os.read(reading, 100).decode()
    os.close(reading)
    os.waitpid(pid, 0)
    assert len(child) == 36
    assert child != before.tags["service.instance.id"]
    (after,) = shared.map([plain])
    assert after.tags["service.instance.id"] == before.tags["service.instance.id"]


def test_a_new_resource_is_noticed():
    """A changed resource takes effect at once: the SDK replaces the resource after a fork."""
    shared = mapper()
    first = shared.map([span()])[0]
    second = shared.map(
        [span(resource=Resource({"service.name": "new", "service.instance.id": "j"}))]
    )[0]
    assert (first.tags["service.name"], second.tags["service.name"]) == ("shop", "new")


def test_redaction_reaches_attributes_tags_events_links_and_nested_maps():
    """A matching key is redacted in attributes, tags, events, links and nested maps."""
    secret = {"user.email": "a@b", "kept": 1, "map": {"user.id": 7}, "http.route": "/me"}
    events = map_spans(
        span(
            attributes=secret,
            events=[span_event(attributes=secret)],
            links=[link(attributes=secret)],
        ),
        redact=("user.*", "http.route"),
    )
    for event in events:
        assert event.attributes == {
            "user.email": "[redacted]",
            "kept": 1,
            "map": {"user.id": "[redacted]"},
            "http.route": "[redacted]",
        }
    assert events[0].tags["http.route"] == "[redacted]"


def test_redaction_reaches_the_status_message():
    """The status message can be redacted: the SDK copies an exception's message into it."""
    failed = Status(StatusCode.ERROR, "ValueError: card 4111")
    events = map_spans(span(status=failed), span(), redact=("status_*",))
    texts = {event.fields["error"]: event.fields.get("status_message") for event in events}
    assert texts == {0: None, 1: "[redacted]"}


@pytest.mark.parametrize(
    ("name", "attributes", "kind", "tag"),
    [
        ("GET /wp-login.php", {"url.path": "/wp-login.php"}, SpanKind.SERVER, "GET"),
        ("GET /a", {"http.target": "/a?b=/c"}, SpanKind.SERVER, "GET"),
        ("GET /cart/<id>", {"http.route": "/cart/<id>"}, SpanKind.SERVER, "GET /cart/<id>"),
        ("GET /x", {"http.route": "/x", "url.path": "/x"}, SpanKind.SERVER, "GET /x"),
        ("GET /a", {"url.path": "/b"}, SpanKind.SERVER, "GET /a"),
        ("/a", {"url.path": "/a"}, SpanKind.SERVER, "/a"),
        ("GET /a", {"url.path": "/a"}, SpanKind.CLIENT, "GET /a"),
    ],
)
def test_a_path_that_is_no_route_is_not_in_the_name(name, attributes, kind, tag):
    """A server span's name, as a tag, leaves out a path that is not a route.

    This also applies to the tags of its events and links. Otherwise a vulnerability scan would make
    a series for each path.
    """
    events = map_spans(
        span(name, attributes, kind=kind, events=[span_event()], links=[link()]),
        span(name, attributes, kind=kind),
    )
    assert [event.tags["span.name"] for event in events] == [tag] * 4
    assert events[0].attributes == attributes


@pytest.mark.parametrize("backwards", [False, True])
def test_the_name_does_not_depend_on_which_span_came_first(backwards):
    """Two paths may share a span name; the mapped name does not depend on their order."""
    spans = [
        span("GET /users", {"url.path": path}, kind=SpanKind.SERVER)
        for path in ("/users", "/users/")
    ]
    made = map_spans(*(reversed(spans) if backwards else spans))
    names = {event.attributes["url.path"]: event.tags["span.name"] for event in made}
    assert names == {"/users": "GET", "/users/": "GET /users"}


class ForeignInteger:
    """An integer like numpy's: not an int, but with `__index__`."""

    def __init__(self, number):
        self.number = number

    def __index__(self):
        return self.number

    def __add__(self, other):
        return ForeignInteger(self.number + other)

    def __sub__(self, other):
        return ForeignInteger(self.number - other.number)


def test_times_of_foreign_integers_are_times():
    """Foreign integers are valid times.

    Replayed times may come from an array, and OTLP takes them.
    """
    at = ForeignInteger(START_NS)
    (made, event) = map_spans(span(start=at, events=[span_event(time_ns=at)], duration=5))
    assert (made.timestamp_ns, made.fields["duration_ns"]) == (START_NS, 5)
    assert event.timestamp_ns == START_NS
    assert type(made.timestamp_ns) is type(event.timestamp_ns) is int
    assert not encode_events([made, event]).refused


def test_a_span_that_began_at_zero_began_then():
    """A start time of 0, as from a simulated clock, is a time and not a missing one."""
    (made,) = map_spans(span(start=0, duration=5))
    assert (made.timestamp_ns, made.fields["duration_ns"]) == (0, 5)


def test_a_path_that_is_redacted_is_not_in_the_name():
    """A redacted path is still removed from the name, because the name is made first."""
    hidden = span("GET /u/1", {"url.path": "/u/1"}, kind=SpanKind.SERVER)
    (event,) = map_spans(hidden, redact=("url.*",))
    assert event.tags["span.name"] == "GET"


def test_a_redacted_instance_id_does_not_merge_processes():
    """A redacted instance id is replaced by a random one of the process.

    Otherwise two processes would become one series.
    """
    (event,) = map_spans(span(), redact=("service.*",))
    assert re.fullmatch(r"[0-9a-f-]{36}", event.tags["service.instance.id"])


def test_redaction_reaches_resource_tags():
    """A resource attribute is redacted like any other."""
    (event,) = map_spans(span(), redact=("host.*",))
    assert event.tags["host.name"] == "[redacted]"


def test_without_patterns_the_sdks_own_attributes_are_used():
    """Without patterns the SDK's own attributes are used without a copy."""
    made = span(attributes={"a": 1})
    (event,) = map_spans(made)
    assert event.attributes is made._attributes._dict


def test_what_the_sdk_makes_equals_what_its_properties_say():
    """Spans made by the SDK itself are mapped completely by the fast path."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=RESOURCE)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("t", "1")
    with tracer.start_as_current_span("outer", kind=SpanKind.CLIENT) as outer:
        outer.set_attribute("key", (1, 2))
        with pytest.raises(ValueError), tracer.start_as_current_span("inner"):
            raise ValueError("no")
    inner_span, outer_span = exporter.get_finished_spans()
    events = map_spans(inner_span, outer_span)
    outer_event, inner, failure = events
    assert inner.fields["parent_span_id"] == outer_event.fields["span_id"]
    assert inner.fields["error"] == 1
    assert inner.fields["status_message"] == "ValueError: no"
    assert failure.tags["exception.type"] == "ValueError"
    assert outer_event.attributes == {"key": (1, 2)}
    assert outer_event.fields["duration_ns"] == outer_span.end_time - outer_span.start_time
    provider.shutdown()


def test_ids_keep_their_zeros_and_an_id_of_zeros_is_none():
    """Ids keep their leading zeros.

    An id of zeros is invalid in W3C Trace Context, and treated as none.
    """
    small, none = context(span_id=0x1F), context(span_id=0)
    parts = {"events": [span_event()], "links": [Link(none)]}
    events = map_spans(
        span("first", ctx=small, parent=none, **parts),
        span("last", ctx=context(span_id=2**64 - 1), parent=small),
        span("nameless", ctx=none, **parts),
    )
    ids = {
        (event.measurement, event.tags["span.name"]): (
            event.fields.get("span_id"),
            event.fields.get("parent_span_id"),
        )
        for event in events
    }
    links = [event for event in events if event.measurement == "span_links"]
    assert [event.fields.get("linked_span_id") for event in links] == [None, None]
    assert ids == {
        ("spans", "first"): ("000000000000001f", ""),
        ("span_events", "first"): ("000000000000001f", None),
        ("span_links", "first"): ("000000000000001f", None),
        ("spans", "last"): ("ffffffffffffffff", "000000000000001f"),
        ("spans", "nameless"): (None, ""),
        ("span_events", "nameless"): ("", None),
        ("span_links", "nameless"): ("", None),
    }


def test_a_trace_of_zeros_is_none():
    """A trace id of zeros gives no correlation id and no linked ids."""
    invalid = context(trace_id=0, span_id=0)
    parts = {"events": [span_event()], "links": [Link(invalid)]}
    events = map_spans(span(ctx=invalid, **parts), span(ctx=context()))
    ids = {event.fields.get("span_id"): event.correlation_id for event in events}
    assert ids == {None: None, "": None, f"{SPAN_ID:016x}": f"{TRACE_ID:032x}"}
    (link,) = (event for event in events if event.signal == "span_link")
    assert (link.correlation_id, link.fields) == (None, {"span_id": ""})


class SafeText(str):
    """A subclass of str, as template engines have."""

    __slots__ = ()


@pytest.mark.parametrize(("name", "text"), [(SafeText("GET /a"), "GET /a"), (7, "7")])
def test_a_name_that_is_no_plain_text_costs_nothing(name, text):
    """A name that is not a plain str becomes text in every tag."""
    scope = InstrumentationScope(name, name)
    spans = [span(name, events=[span_event(name)], scope=scope), span("after")]
    events = map_spans(*spans)
    assert len(events) == 3
    named = [event.tags for event in events if event.tags["span.name"] == text]
    assert [(tags["otel.scope.name"], tags.get("event.name")) for tags in named] == [
        (text, None),
        (text, text),
    ]
    for body in encode_events(events).bodies:
        assert {type(tag) for tag in json.loads(body)["tags"].values()} == {str}
    assert not LineProtocolEncoder().encode(events).refused


ANY_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.text(st.characters(categories=["Cs", "Cc"]))
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1) | st.sampled_from(DEFAULT_SPAN_TAGS), ANY_VALUE, max_size=6
    ),
    st.text(),
)
def test_any_attributes_survive_mapping_and_encoding(attributes, name):
    """Whatever attributes hold, mapping and encoding give an event that can be decoded."""
    made = span(name, events=[span_event(name)])
    object.__setattr__(made._attributes, "_dict", attributes)  # bypasses the SDK's own cleaning
    for event in map_spans(made):
        decoded = decode_event(encode_event(event))
        assert decoded.timestamp_ns == event.timestamp_ns
        assert isinstance(event.tags, TagSet)
        for key, value in attributes.items():
            if event.signal == "span" and isinstance(value, int) and is_text(key):
                assert decoded.attributes[key] == value


def is_text(key):
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize("value", [object(), {1, 2}, math, lambda: None, type("T", (), {})()])
def test_values_that_the_sdk_would_refuse_become_text(value):
    """A value that the SDK would refuse becomes text and raises nothing."""
    made = span()
    made._attributes._dict["odd"] = value
    (event,) = map_spans(made)
    assert decode_event(encode_event(event)).attributes["odd"]


def test_spans_of_one_shape_keep_their_own_scope_and_resource_in_one_batch():
    """Spans that differ only in scope or resource keep their own tags in one batch."""
    other = Resource({**RESOURCE.attributes, "service.name": "stock"})
    scopes = [InstrumentationScope("a"), InstrumentationScope("b")]
    batch = [
        span(attributes={"http.route": "/"}, scope=scope, resource=resource)
        for _ in range(2)  # with cold and warm caches
        for scope in scopes
        for resource in (RESOURCE, other)
    ]
    found = [(e.tags["otel.scope.name"], e.tags["service.name"]) for e in map_spans(*batch)]
    assert found == [("a", "shop"), ("a", "stock"), ("b", "shop"), ("b", "stock")] * 2


def test_no_pattern_of_resource_tags_means_no_resource_tag():
    """Without resource tag patterns, only the tag that keeps processes apart remains."""
    (event,) = map_spans(span(scope=None), resource_tags=())
    assert set(event.tags) == {"service.instance.id", "span.kind", "span.name"}


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, {"deep": math.nan}, [math.nan], ("x", -math.inf)]
)
def test_a_line_of_a_table_has_the_names_of_numbers_that_json_lacks(value):
    """NaN and infinities in a table are written as texts, where msgspec alone would write null."""
    batch = map_spans(*[span(attributes={"n": one}) for one in (1.5, value, 2.5)])
    bodies = list(encode_lines(batch).records.bodies)
    assert bodies == list(encode_events(list(batch)).bodies)
    assert b"null" not in b"".join(bodies)
    assert b'"NaN"' in bodies[1] or b'Infinity"' in bodies[1]


@pytest.mark.parametrize(
    ("one", "other", "text"), [(1, True, "true"), (1, 1.0, "1.0"), ((1,), (True,), "[true]")]
)
def test_equal_values_of_the_second_tag_keep_their_texts(one, other, text):
    """Equal values of different types keep their texts in any tag, also inside arrays."""
    spans = [
        span(attributes={"http.response.status_code": 200, "error.type": value})
        for value in (one, other, one, other)
    ]
    found = [event.tags["error.type"] for event in map_spans(*spans)]
    assert found[1] == found[3] == text
    assert found[0] == found[2] != text


def test_maps_as_tags_are_their_json_however_often():
    """Maps as tag values become JSON each time they occur; they cannot be cached."""
    spans = [span(attributes={"http.route": {"n": n}}) for n in (1, 2, 1, 2)]
    assert [event.tags["http.route"] for event in map_spans(*spans)] == ['{"n":1}', '{"n":2}'] * 2
