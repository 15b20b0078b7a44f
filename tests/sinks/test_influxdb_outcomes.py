"""Whatever a server answers, every record has one outcome, and no data is in the message."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from otel_cbtop_exporter.sinks.base import Record
from otel_cbtop_exporter.sinks.influxdb_answers import Answer, classify
from tests.sinks.conformance import assert_partition

VALUE = "pr1vate"
lines = st.builds(
    lambda number, text: f'm,t=a\\ {VALUE} f={number}i,s="{text} {VALUE}" {number}',
    st.integers(1, 10**9),
    st.text(st.characters(blacklist_characters='"\\', blacklist_categories=["Cs"]), max_size=5),
)
PIECES = [
    "unable to parse '",
    "': bad timestamp",
    "\n",
    "partial write: ",
    'field type conflict: input field "s" on measurement "m" is type string, already exists as type float',
    " dropped=2",
    " dropped=1 for database: x",
    "points beyond retention policy",
    "outside retention policy of duration 1h0m0s - Lower Bound at 2026-11-23T07:12:37.476454994Z",
    "bucket not found",
    "Please provide either orgID or org",
    "{",
    '"',
    "\\",
    "<html>",
    "\x00\x1b[31m",
]


@st.composite
def answered(draw):
    """Make a batch, and an answer made of pieces of real ones and of the batch's lines."""
    batch = draw(st.lists(lines, min_size=1, max_size=6))
    pieces = st.one_of(st.sampled_from(PIECES), st.sampled_from(batch), st.text(max_size=5))
    message = "".join(draw(st.lists(pieces, max_size=8)))
    numbered = st.fixed_dictionaries(
        {"line_number": st.integers(-1, 8), "error_message": st.just(message)}
    )
    text = draw(
        st.sampled_from(
            [
                message,
                json.dumps({"code": "invalid", "message": message}),
                json.dumps({"error": message}),
                json.dumps({"error": message, "data": draw(st.lists(numbered, max_size=3))}),
            ]
        )
    )
    status = draw(st.sampled_from([200, 204, 301, 400, 401, 403, 404, 413, 422, 429, 500, 503]))
    cut = draw(st.integers(0, len(text)))
    return [Record(line.encode(), None, "b", 0) for line in batch], Answer(status, text[:cut])


@settings(max_examples=600, deadline=None)
@given(answered())
def test_every_answer_gives_every_record_one_outcome(made):
    """Nothing raises, nothing is lost, only a success delivers, and messages are fit for a log."""
    records, answer = made
    result = classify(answer, records, bucket="b", org="o")
    assert_partition(result, records)
    assert not result.delivered or answer.status < 300
    if answer.status not in (400, 422):
        assert not result.rejected
    assert len(result.error) <= 300
    assert result.error.isprintable()
    assert bool(result.error) == (len(result.delivered) < len(records))


@settings(max_examples=200, deadline=None)
@given(st.lists(lines, min_size=1, max_size=5, unique=True), st.sampled_from([400, 422, 500]))
def test_quoted_lines_are_not_repeated_in_the_message(batch, status):
    """What a server quotes goes to the dead letters; the message has the reason alone."""
    records = [Record(line.encode(), None, "b", 0) for line in batch]
    message = "\n".join(f"unable to parse '{line}': bad timestamp" for line in batch)
    text = json.dumps({"code": "invalid", "message": message}, ensure_ascii=False)
    result = classify(Answer(status, text), records, bucket="b", org="o")
    assert_partition(result, records)
    assert result.error
    assert VALUE not in result.error
    if status != 500:
        assert [rejection.record for rejection in result.rejected] == records
        assert {rejection.detail for rejection in result.rejected} == {"bad timestamp"}


def of_one_field(*times, value="1i"):
    """Make records of one measurement with a field `x`."""
    return [Record(f"m x={value} {time}".encode(), None, "b", time) for time in times]


def partial_write(cause, dropped):
    message = f"failure writing points to database: partial write: {cause} dropped={dropped}"
    return Answer(422, json.dumps({"code": "unprocessable entity", "message": message}))


def rejected_times(answer, records):
    result = classify(answer, records, bucket="b", org="o")
    assert_partition(result, records)
    return [rejection.record.timestamp_ns for rejection in result.rejected], result.split_reason


CONFLICT = (
    'field type conflict: input field "{}" on measurement "m" is type integer, '
    "already exists as type float"
)


def test_one_answer_is_enough_where_it_tells_which_lines():
    """Nothing is halved, so a batch with refused lines costs one request more."""
    mixed = [*of_one_field(1, 2), *of_one_field(3, value="1.5"), *of_one_field(4)]
    assert rejected_times(partial_write(CONFLICT.format("x"), 3), mixed) == ([1, 2, 4], "")
    all_refused = partial_write("points beyond retention policy", 2)
    assert rejected_times(all_refused, of_one_field(1, 2)) == ([1, 2], "")
    second = 1_000_000_000
    bound = "outside retention policy of duration 1h - Lower Bound at 1970-01-01T00:00:05.5Z"
    times = [4 * second, 5 * second + 499_999_999, 5 * second + 500_000_000, 6 * second]
    assert rejected_times(partial_write(bound, 2), of_one_field(*times)) == (times[:2], "")


def test_a_count_that_does_not_fit_names_nobody():
    """Another cause, or another shard with another type: the batch is halved instead."""
    conflict = CONFLICT.format("x")
    assert rejected_times(partial_write(conflict, 1), of_one_field(1, 2, 3)) == (
        [],
        "field_type_conflict",
    )


def test_a_limit_of_the_server_is_told_in_its_words():
    """InfluxDB 1.8 has one of series and one of values, which no line is at fault for alone."""
    message = "max-series-per-database limit exceeded: (1000000)"
    answer = partial_write(message, 2)
    records = of_one_field(1, 2, 3)
    result = classify(answer, records, bucket="b", org="o")
    assert "max-series-per-database limit exceeded" in result.error
    assert rejected_times(answer, records) == ([], "limit_exceeded")


def test_the_servers_count_is_the_last_one():
    """A field may be called like one."""
    field = "a dropped=1"
    records = [
        Record(rf"m a\ dropped\=1=1i {time}".encode(), None, "b", time) for time in (1, 2)
    ] + of_one_field(3)
    assert rejected_times(partial_write(CONFLICT.format(field), 2), records) == ([1, 2], "")
