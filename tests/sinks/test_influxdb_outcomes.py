"""For any answer every record has one outcome, and no data is in the error message."""

import json
import time

import pytest
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
    """Draw a batch, and an answer made from pieces of real ones and the batch's lines."""
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
    """No answer raises or loses a record, only a success delivers, and errors are fit for a log."""
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
    """The message has only the reason; lines quoted by the server go to the dead letters."""
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
    """If an answer identifies the refused lines, no batch is split: they cost one more request."""
    mixed = [*of_one_field(1, 2), *of_one_field(3, value="1.5"), *of_one_field(4)]
    assert rejected_times(partial_write(CONFLICT.format("x"), 3), mixed) == ([1, 2, 4], "")
    all_refused = partial_write("points beyond retention policy", 2)
    assert rejected_times(all_refused, of_one_field(1, 2)) == ([1, 2], "")
    second = 1_000_000_000
    bound = "outside retention policy of duration 1h - Lower Bound at 1970-01-01T00:00:05.5Z"
    times = [4 * second, 5 * second + 499_999_999, 5 * second + 500_000_000, 6 * second]
    assert rejected_times(partial_write(bound, 2), of_one_field(*times)) == (times[:2], "")


def test_a_count_that_does_not_fit_names_nobody():
    """If the dropped count does not match, nothing is rejected and the batch is split.

    There may be another cause, or another shard with another type.
    """
    conflict = CONFLICT.format("x")
    assert rejected_times(partial_write(conflict, 1), of_one_field(1, 2, 3)) == (
        [],
        "field_type_conflict",
    )


def test_a_limit_of_the_server_is_told_in_its_words():
    """InfluxDB 1.8's limits on series and values are reported in its words, and blame no line."""
    message = "max-series-per-database limit exceeded: (1000000)"
    answer = partial_write(message, 2)
    records = of_one_field(1, 2, 3)
    result = classify(answer, records, bucket="b", org="o")
    assert "max-series-per-database limit exceeded" in result.error
    assert rejected_times(answer, records) == ([], "limit_exceeded")


def test_the_servers_count_is_the_last_one():
    """The last `dropped=` of an answer is the count: a field's name may look like one."""
    field = "a dropped=1"
    records = [
        Record(rf"m a\ dropped\=1=1i {time}".encode(), None, "b", time) for time in (1, 2)
    ] + of_one_field(3)
    assert rejected_times(partial_write(CONFLICT.format(field), 2), records) == ([1, 2], "")


@pytest.mark.parametrize("status", [200, 202, 204])
def test_any_success_delivers(status):
    """Any 2xx status delivers: InfluxDB answers 204, but a stand-in may answer another."""
    records = of_one_field(1, 2)
    assert classify(Answer(status), records, bucket="b", org="o").delivered == records


def test_a_page_is_known_by_its_beginning_too():
    """A web page is also recognized by its content, even with status 200 and no content type."""
    records = of_one_field(1, 2)
    result = classify(Answer(200, "\r\n <html>log in"), records, bucket="b", org="o")
    assert result.kept == records


@pytest.mark.parametrize("text", ["it's pr1vate", "a\npr1vate"])
def test_a_quotation_ends_at_the_last_mark(text):
    """A quotation ends at the last quotation mark, because a line may hold others."""
    message = f"panic at 'm,t=x s=\"{text}\" 1'"
    answer = Answer(500, json.dumps({"message": message}))
    result = classify(answer, of_one_field(1, 2), bucket="b", org="o")
    assert result.error == "InfluxDB answered 500: panic at ..."


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (429, "the organization is over its write limit"),
        (500, "bucket service is away"),
        (503, "inactive"),
    ],
)
def test_words_mean_a_setting_only_with_their_status(status, words):
    """Words in an answer point to a setting only with the matching status.

    Nobody should look for a bucket when the server is busy.
    """
    answer = Answer(status, json.dumps({"message": words}))
    result = classify(answer, of_one_field(1), bucket="b", org="o")
    assert result.error == f"InfluxDB answered {status}: {words}"


def test_too_large_tells_the_answer_to_the_dead_letters():
    """The text of a 413 is kept for the dead letters, because it says who has the limit."""
    result = classify(Answer(413, "limit is 1 MB"), of_one_field(1, 2), bucket="b", org="o")
    assert result.split_detail == "limit is 1 MB"


def test_an_answer_that_was_cut_in_an_escape_is_read_all_the_same():
    """An answer that is cut inside an escape is still read.

    Only the end of its reason is missing.
    """
    text = r"""{"code":"invalid","message":"unable to parse 'm x=1i 1': bad \u00"""
    assert rejected_times(Answer(400, text), of_one_field(1, 2)) == ([1], "")


def unparsed(*lines):
    """Make the answer of InfluxDB 1.8 and 2 to lines that they cannot parse."""
    message = "\n".join(f"unable to parse '{line}': bad timestamp" for line in lines)
    return Answer(400, json.dumps({"code": "invalid", "message": message}))


def test_data_that_is_called_like_a_setting_is_no_setting():
    """Data named like a setting is not taken for one: it would be sent again for ever."""
    line = "m,bucket=b,org=x x= 1"
    bad = Record(line.encode(), None, "b", 1)
    assert rejected_times(unparsed(line), [bad, *of_one_field(2)]) == ([1], "")
    limit = 'max-values-per-tag limit exceeded (9/9): measurement="m" tag="bucket" value="x"'
    assert rejected_times(partial_write(limit, 1), of_one_field(1, 2)) == ([], "limit_exceeded")


def test_a_number_in_a_quoted_line_is_not_the_servers_count():
    """A field named `dropped` in a quoted line is not the server's count."""
    bad = Record(b"m dropped=2 2", None, "b", 2)
    assert rejected_times(unparsed("m dropped=2 2"), [*of_one_field(1), bad]) == ([2], "")


def test_a_quoted_line_may_hold_what_ends_a_quotation():
    """A reason begins after the last end of a quotation, because the line may hold others."""
    line = "m s=\"a': ': b': c\" 2"
    records = [*of_one_field(1), Record(line.encode(), None, "b", 2)]
    result = classify(unparsed(line), records, bucket="b", org="o")
    assert [(r.record, r.detail) for r in result.rejected] == [(records[1], "bad timestamp")]


def test_a_field_is_found_in_lines_of_any_names():
    """A refused field is found in lines with escaped names and quoted texts."""
    line = r'm\ n\,o,t=a\ b s="x=1i \" x=2i, y\\",x\ \=\,y={},b=false {}'
    values = ["1i", "1.5", "true", "false", '"1"', "1i"]
    records = [
        Record(line.format(value, time).encode(), None, "b", time)
        for time, value in enumerate(values)
    ]
    conflict = 'input field "x =,y" on measurement "m n,o" is type {}, already exists as type z'
    of_kind = {"integer": [0, 5], "float": [1], "boolean": [2, 3], "string": [4]}
    for kind, times in of_kind.items():
        answer = partial_write(conflict.format(kind), len(times))
        assert rejected_times(answer, records) == (times, "")


def test_a_field_of_another_measurement_is_not_the_refused_one():
    """A field of the same name in another measurement is not refused."""
    records = [*of_one_field(1), Record(b"n x=1i 2", None, "b", 2)]
    assert rejected_times(partial_write(CONFLICT.format("x"), 1), records) == ([1], "")


def test_fewer_lines_with_the_field_than_were_dropped_names_nobody():
    """If more lines were dropped than have the field, nobody is blamed.

    The others have another cause, which may also apply to these.
    """
    records = [*of_one_field(1), *of_one_field(2, 3, value="1.5")]
    conflict = partial_write(CONFLICT.format("x"), 2)
    assert rejected_times(conflict, records) == ([], "field_type_conflict")


def test_names_that_json_cannot_read_are_searched_for_by_halves():
    r"""A field name that JSON cannot read, such as Go's `\\x1b`, leads to a split."""
    answer = partial_write(CONFLICT.format(r"\x1b"), 1)
    assert rejected_times(answer, of_one_field(1, 2)) == ([], "field_type_conflict")


def test_the_bound_of_retention_is_in_utc(monkeypatch):
    """The retention bound is read as UTC in any time zone; it may have no fraction."""
    monkeypatch.setenv("TZ", "JST-9")
    time.tzset()
    try:
        bound = "outside retention policy of duration 1h - Lower Bound at 1970-01-02T00:00:05Z"
        times = 24 * 3600 * 10**9 + 4_999_999_999, 24 * 3600 * 10**9 + 5_000_000_000
        answer = partial_write(bound, 1)
        assert rejected_times(answer, of_one_field(*times)) == ([times[0]], "")
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "data",
    [
        None,
        {"line_number": 2, "error_message": "x"},
        [None],
        [["line_number"]],
        [{"line_number": "2", "error_message": "x"}],
        [{"line_number": True, "error_message": "x"}],
        [{"line_number": None}],
    ],
)
def test_line_numbers_in_another_form_name_nobody(data):
    """Line numbers of an unexpected form are ignored, and the batch is split."""
    answer = Answer(400, json.dumps({"error": "partial write of line protocol", "data": data}))
    assert rejected_times(answer, of_one_field(1, 2, 3)) == ([], "invalid")


def test_the_last_line_has_a_number_and_a_reason_may_be_missing():
    """Lines are numbered from 1 to the last, and a reason may be missing."""
    data = [{"line_number": 1, "error_message": None}, {"line_number": 3, "error_message": "x"}]
    answer = Answer(400, json.dumps({"error": "partial write of line protocol", "data": data}))
    assert rejected_times(answer, of_one_field(1, 2, 3)) == ([1, 3], "")
