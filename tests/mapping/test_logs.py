"""Mapping of log records, beyond what the golden files show."""

import logging
import warnings
from collections import UserList, deque
from dataclasses import dataclass
from datetime import date
from enum import Enum
from types import MappingProxyType
from uuid import UUID

import pytest
from opentelemetry._logs import SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

from otel_cbtop_exporter.encoding.json_values import encode_value
from tests.builders import RESOURCE, SPAN_ID, log
from tests.mappers import map_logs


def test_equal_tags_are_one_object():
    """Records with the same tags share one tag set."""
    first, second = map_logs(log(), log("other"))
    assert first.tags is second.tags


def test_redaction_reaches_attributes_and_a_structured_body():
    """A matching key is redacted in attributes and in a structured body."""
    (event,) = map_logs(log({"password": "x", "n": 1}, {"password": "y"}), redact=("pass*",))
    assert event.fields["body"] == '{"password":"[redacted]","n":1}'
    assert event.attributes == {"password": "[redacted]"}


def test_redaction_reaches_maps_in_lists():
    """A matching key inside a list is redacted, in an attribute and in the body, however deep."""
    users = [{"password": "x", "n": 1}, [({"password": "y"},)], "z"]
    (event,) = map_logs(log(users, {"users": users}), redact=("pass*",))
    redacted = '[{"password":"[redacted]","n":1},[[{"password":"[redacted]"}]],"z"]'
    assert event.fields["body"] == redacted
    assert encode_value(event.attributes["users"]).decode() == redacted


class Key(str, Enum):
    PASSWORD = "password"


@dataclass
class Login:
    user: str
    password: str


@pytest.mark.parametrize(
    ("value", "redacted"),
    [
        ({Key.PASSWORD: "x"}, '{"password":"[redacted]"}'),
        ([{Key.PASSWORD: "x"}], '[{"password":"[redacted]"}]'),
        (Login("bob", "x"), '{"user":"bob","password":"[redacted]"}'),
        ({"form": [Login("bob", "x")]}, '{"form":[{"user":"bob","password":"[redacted]"}]}'),
        (deque([{"password": "x"}]), '[{"password":"[redacted]"}]'),
        ({"a": {"password": "x"}}.values(), '[{"password":"[redacted]"}]'),
        (
            MappingProxyType({"a": UserList([{"password": "x"}])}),
            '{"a":[{"password":"[redacted]"}]}',
        ),
    ],
)
def test_redaction_reaches_every_object_of_the_json(value, redacted):
    """Redaction looks at the keys of the JSON, whatever Python objects they come from."""
    (event,) = map_logs(log(value, {"value": value, Key.PASSWORD: "x"}), redact=("pass*",))
    assert event.attributes[Key.PASSWORD] == "[redacted]"
    assert event.fields["body"] == redacted
    assert encode_value(event.attributes["value"]).decode() == redacted


def test_redaction_shows_nothing_that_it_cannot_look_into():
    """Redaction hides what is nested too deep, and an object with a part that has no JSON."""
    deep = {"password": "s3cret"}
    for _ in range(40):
        deep = {"in": deep}
    odd = Login("bob", {("no", "key"): "s3cret"})
    (event,) = map_logs(log([deep, odd], {"deep": deep, "odd": odd}), redact=("pass*",))
    assert event.fields["body"].endswith(',"<Login>"]')
    for text in (event.fields["body"], encode_value(event.attributes).decode()):
        assert "s3cret" not in text


def test_redaction_of_a_map_that_holds_itself_ends():
    """Redaction of a map that holds itself ends, and writes the same as without redaction."""
    form = {"password": "x"}
    form["self"] = [form]
    (event,) = map_logs(log(form, {"form": form}), redact=("pass*",))
    assert event.fields["body"] == '{"password":"[redacted]","self":["{...}"]}'
    assert encode_value(event.attributes["form"]).decode() == event.fields["body"]


def test_the_observed_time_stands_in_for_a_missing_one():
    """A record without a timestamp has its observed time, as OpenTelemetry recommends."""
    events = map_logs(log(timestamp=7, observed=9), log(timestamp=None, observed=9))
    assert [event.timestamp_ns for event in events] == [7, 9]


def test_an_invalid_trace_context_is_no_correlation_id():
    """A trace context of zeros gives neither a correlation id nor a span id."""
    (event,) = map_logs(log(trace_id=0, span_id=0))
    assert event.correlation_id is None
    assert "span_id" not in event.fields


def test_records_of_the_sdks_own_logger_are_mapped():
    """A record made by the SDK's own handler keeps its body, severity and attributes."""
    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # raised by the SDK's own handler
        from opentelemetry.sdk._logs import LoggingHandler

        handler = LoggingHandler(logger_provider=provider)
    logger = logging.getLogger("tests.mapping.logs")
    logger.addHandler(handler)
    try:
        logger.warning("low stock: %s", "apples", extra={"order": 7})
    finally:
        logger.removeHandler(handler)
        provider.shutdown()
    (event,) = map_logs(*exporter.get_finished_logs())
    assert event.fields["body"] == "low stock: apples"
    assert event.fields["severity_number"] == 13
    assert event.tags["severity_text"] == "WARN"
    assert event.attributes["order"] == 7


def test_a_severity_without_a_text_has_the_data_models_name():
    """A record without a severity text gets the data model's name, for queries by the tag.

    A text from the source comes first.
    """
    named, bare, unspecified = log("a"), log("b"), log("c")
    named.log_record.severity_text, named.log_record.severity_number = "error", SeverityNumber.FATAL
    bare.log_record.severity_text, bare.log_record.severity_number = None, SeverityNumber.ERROR2
    unspecified.log_record.severity_text = None
    unspecified.log_record.severity_number = SeverityNumber.UNSPECIFIED
    events = map_logs(named, bare, unspecified)
    assert [event.tags.get("severity_text") for event in events] == ["error", "ERROR2", None]


def test_a_text_body_is_redacted_by_its_name():
    """A pattern that matches `body` redacts a text body; a record without a body stays without."""
    events = map_logs(log("card 4111"), log({"a": 1}), log(None), redact=("bod*",))
    assert [event.fields.get("body") for event in events] == ["[redacted]", "[redacted]", None]


def test_a_severity_that_is_a_bare_number():
    """A severity may be a plain number, because a bridge need not know the SDK's Enum."""
    bare, odd = log("a"), log("b")
    bare.log_record.severity_number, odd.log_record.severity_number = 9, "INFO"
    first, second = map_logs(bare, odd)
    assert first.fields["severity_number"] == 9
    assert "severity_number" not in second.fields


def test_records_of_kinds_that_take_turns_stay_in_order_and_in_few_parts():
    """Records of alternating kinds stay in order, and do not make one part each.

    So many parts would cost more than having no tables.
    """
    taking_turns = [log(f"turn {n}", span_id=SPAN_ID if n % 2 else 0) for n in range(40)]
    in_a_row = [log(f"row {n}") for n in range(40)]
    events = map_logs(*taking_turns, *in_a_row)
    bodies = [record.log_record.body for record in (*taking_turns, *in_a_row)]
    assert [event.fields["body"] for event in events] == bodies
    assert [len(part) for part in events.parts] == [39, 41]


@pytest.mark.parametrize("body", [b"\xff\x00", UUID(int=1), date(2024, 1, 2), 7, "text", None])
def test_a_pattern_that_matches_nothing_changes_no_body(body):
    """A pattern that does not match changes no body, whatever its type.

    A text body is bare and everything else is JSON, so the form tells the type.
    """
    (plain,), (redacted,) = map_logs(log(body)), map_logs(log(body), redact=("password",))
    assert redacted.fields == plain.fields
    (hidden,) = map_logs(log(body), redact=("body",))
    assert hidden.fields.get("body") == (None if body is None else "[redacted]")


def test_an_exception_type_that_says_nothing_is_no_tag():
    """An empty or false exception type makes no tag, or it would be a series of its own."""
    for empty in ("", 0, False, None):
        (event,) = map_logs(log(attributes={"exception.type": empty}))
        assert "exception.type" not in event.tags


def test_redaction_looks_at_the_key_that_the_json_has():
    """For an Enum member as a key of a body, redaction looks at its value, as in the JSON."""
    from enum import Enum

    class Key(Enum):
        ID = "user.id"

    (event,) = map_logs(log({Key.ID: "ada"}), redact=("user.*",))
    assert event.fields["body"] == '{"user.id":"[redacted]"}'


def test_redaction_looks_into_tuples():
    """Redaction looks into tuples, which become arrays."""
    (event,) = map_logs(log(({"password": "s3cret"}, 1)), redact=("password",))
    assert event.fields["body"] == '[{"password":"[redacted]"},1]'
