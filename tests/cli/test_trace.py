import pytest
from click.testing import CliRunner

from otel_cbtop_exporter.cli.app import app
from tests.cli import written
from tests.cli.written import OTHER_TRACE, TRACE, exemplar, log, metric, span


@pytest.fixture
def run():
    return lambda *arguments: CliRunner().invoke(app, ["trace", *arguments])


def test_everything_of_a_trace_hangs_below_its_span(tmp_path, run):
    """Spans are below their parents, logs and exemplars below their spans, in any file order."""
    file = written.write(
        tmp_path / "e.jsonl",
        exemplar("a3"),
        log("priced", span_id="a1", at_ms=15),
        span("GET /prices", "a3", parent="a2", at_ms=4),
        span("GET", "a2", parent="a1", at_ms=2, kind="CLIENT"),
        span("GET /orders", "a1", took_ms=20),
        span("GET /other", "b1", trace=OTHER_TRACE),
        metric("cpu"),
    )
    output = run(TRACE, file).output
    heading, counts, *tree = output.splitlines()
    assert heading == f"trace {TRACE}  shop  2026-11-24T00:21:18.000Z"
    assert counts == "span: 3, log: 1, exemplar: 1"
    assert tree == [
        "└── GET /orders  SERVER  20.0 ms",
        "    ├── GET  CLIENT  10.0 ms  +2.0 ms",
        "    │   └── GET /prices  SERVER  10.0 ms  +4.0 ms",
        "    │       └── exemplar of http.server.request.duration: 0.25  +20.0 ms",
        "    └── INFO  shop: priced  +15.0 ms",
    ]


def test_what_has_no_span_in_the_files_is_shown_all_the_same(tmp_path, run):
    """Events whose parent span is missing are shown at the top level.

    So are a span that is its own parent, and a log without its span.
    """
    file = written.write(
        tmp_path / "e.jsonl",
        span("remote child", "a1", parent="ffff"),
        span("odd", "a2", parent="a2", at_ms=1),
        log("alone", span_id="eeee", at_ms=2),
    )
    output = run(TRACE, file).output
    assert all(f"── {name}" in output for name in ("remote child", "odd", "INFO  shop: alone"))


def test_spans_that_are_each_others_parents_are_shown(tmp_path, run):
    """Spans that are each other's parents are shown, with their children.

    Ids made by hand may form such a cycle.
    """
    file = written.write(
        tmp_path / "e.jsonl",
        span("one", "a1", parent="a2"),
        span("two", "a2", parent="a1", at_ms=1),
        span("below", "a3", parent="a2", at_ms=2),
    )
    assert run(TRACE, file).output.splitlines()[2:] == [
        "├── one  SERVER  10.0 ms",
        "└── two  SERVER  10.0 ms  +1.0 ms",
        "    └── below  SERVER  10.0 ms  +2.0 ms",
    ]


def test_a_span_without_an_id_is_shown(tmp_path, run):
    """A span without an id is shown, and nothing is attached to it."""
    nameless = span("nameless", "")
    del nameless.fields["span_id"]
    twice = span("twice", "a1", parent="a2", at_ms=4)
    file = written.write(
        tmp_path / "e.jsonl",
        nameless,
        span("root", "a2", at_ms=1),
        log("alone", at_ms=2),
        twice,
        twice,
    )
    assert run(TRACE, file).output.splitlines()[2:] == [
        "├── nameless  SERVER  10.0 ms",
        "├── root  SERVER  10.0 ms  +1.0 ms",
        "│   ├── twice  SERVER  10.0 ms  +4.0 ms",
        "│   └── twice  SERVER  10.0 ms  +4.0 ms",
        "└── INFO  shop: alone  +2.0 ms",
    ]


def test_a_clock_behind_shows_a_negative_offset(tmp_path, run):
    """An event before the first span has a negative offset, and is not an error."""
    file = written.write(tmp_path / "e.jsonl", span("s", "a1"), log("l", span_id="a1", at_ms=-3))
    assert "shop: l  -3.0 ms" in run(TRACE, file).output


def test_the_first_digits_are_enough_where_they_fit_one_trace(tmp_path, run):
    """A prefix finds its trace; an ambiguous one lists the matches and is an error."""
    file = written.write(
        tmp_path / "e.jsonl", span("one", "a1"), span("two", "b1", trace=OTHER_TRACE)
    )
    assert "── one" in run(TRACE[:8], file).output
    both = run("0af7", file)
    assert both.exit_code == 1
    assert f"2 traces begin like that: {OTHER_TRACE}, {TRACE}" in both.output


def test_an_id_may_be_in_capitals(tmp_path, run):
    """A trace id or prefix may be in upper case, as some systems write it."""
    file = written.write(tmp_path / "e.jsonl", span("one", "a1"))
    for given in (TRACE.upper(), TRACE[:8].upper()):
        assert "── one" in run(given, file).output


def test_an_id_may_begin_as_the_sdk_prints_it(tmp_path, run):
    """A trace id may be given with 0x, as the SDK's console exporter prints it.

    An id made by hand that does begin with 0x is found as well.
    """
    file = written.write(
        tmp_path / "e.jsonl",
        span("one", "a1"),
        span("two", "a2", trace="0x7f-by-hand"),
        span("three", "a3", trace="7f-by-hand"),
    )
    for given in (f"0x{TRACE}", f"0X{TRACE.upper()}", f"0x{TRACE[:8]}"):
        assert "── one" in run(given, file).output
    assert "── two" in run("0x7f-by-hand", file).output
    assert "── three" in run("7f-by-hand", file).output
    assert "at least 4 characters" in run("0x0af", file).output


@pytest.mark.parametrize("given", ["ffff", "0af"], ids=["unknown", "too short"])
def test_an_id_that_nothing_has_is_an_error(tmp_path, run, given):
    """If no event has the id, the status is 1 and the message names the id."""
    result = run(given, written.write(tmp_path / "e.jsonl", span("one", "a1")))
    assert result.exit_code == 1
    assert f"no event has the correlation id {given}" in result.output
