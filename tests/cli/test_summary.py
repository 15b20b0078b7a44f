import os

import pytest
from click.testing import CliRunner

from otel_cbtop_exporter.cli.app import app
from tests.cli import written
from tests.cli.written import exemplar, log, metric, span


@pytest.fixture
def run():
    return lambda *arguments: CliRunner().invoke(app, ["summary", *arguments])


def rows(result):
    return [" ".join(line.split()) for line in result.output.splitlines()]


def test_events_are_counted_by_signal_and_measurement_over_all_files(tmp_path, run):
    """Counts by signal and measurement cover all files together, compressed ones included."""
    plain = written.write(tmp_path / "e.jsonl", span("GET /", "a1"), log("hi"), metric("cpu"))
    packed = written.write_gzip(tmp_path / "e.jsonl.1.gz", span("GET /", "a2"), metric("cpu"))
    result = run(plain, packed)
    assert result.exit_code == 0
    assert result.output.startswith("5 events in 2 files\n2026-11-24T00:21:18.000Z to ")
    assert "span spans 2" in rows(result)
    assert "log logs 1" in rows(result)
    assert "metric cpu 2" in rows(result)
    assert "logs by severity: INFO 1" in result.output


def test_the_slowest_route_comes_first_with_its_errors_and_quantiles(tmp_path, run):
    """Routes are server spans by name, ranked by p95; every quantile is a measured value."""
    fast = [span("GET /fast", f"f{n}", took_ms=n + 1) for n in range(20)]
    slow = [span("GET /slow", f"s{n}", took_ms=100 * (n + 1), error=n == 3) for n in range(4)]
    inner = span("GET", "c1", kind="CLIENT", took_ms=90_000)
    result = run(written.write(tmp_path / "e.jsonl", *fast, *slow, inner))
    table = rows(result)
    head = table.index("slowest routes requests errors p50 p95 max")
    assert table[head + 1] == "GET /slow 4 1 200.0 ms 400.0 ms 400.0 ms"
    assert table[head + 2] == "GET /fast 20 0 10.0 ms 19.0 ms 20.0 ms"
    assert table[head + 3] == ""


def test_many_measurements_are_cut_with_a_count_unless_all_are_wanted(tmp_path, run):
    """Measurements beyond the limit are only counted, unless --all is given."""
    file = written.write(tmp_path / "e.jsonl", *(metric(f"m{n:02}") for n in range(20)))
    assert "metric 12 more measurements (--all names them) 12" in rows(run(file))
    assert "more measurements" not in run("--all", file).output
    assert "metric m19 1" in rows(run("--all", file))


def test_lines_that_are_no_events_are_counted_and_cost_nothing(tmp_path, run):
    """A torn line is counted as such, and the other events are summarized."""
    file = tmp_path / "e.jsonl"
    file.write_bytes(written.as_lines(log("hi")) + b'{"torn')
    result = run(str(file))
    assert "1 event in 1 file" in result.output
    assert "1 line is not an event; `otel-cbtop validate` says why" in result.output


def test_the_trace_that_is_seen_through_most_signals_is_followed(tmp_path, run):
    """The suggested trace is the one seen in most signals, not the one with most spans."""
    seen = [span("GET /", "a1"), log("hello", span_id="a1"), exemplar("a1")]
    long = [span("GET /", f"b{n}", trace=written.OTHER_TRACE) for n in range(9)]
    file = written.write(tmp_path / "e.jsonl", *long, *seen)
    assert f"otel-cbtop trace {written.TRACE} {file}" in run(file).output
    followed = run("--follow-trace", file).output
    assert f"trace {written.TRACE}  shop" in followed
    assert "shop: hello" in followed


def test_a_pipe_is_read_but_once(run):
    """--follow-trace reports an error for a pipe, because it needs to read its input twice."""
    reading, writing = os.pipe()
    os.write(writing, written.as_lines(span("GET /", "a1")))
    os.close(writing)
    result = run("--follow-trace", f"/dev/fd/{reading}")
    os.close(reading)
    assert "1 event in 1 file" in result.output
    assert "Error: --follow-trace reads FILES twice, which a pipe cannot be" in result.output
    assert result.exit_code == 1


def test_an_empty_file_is_no_error(tmp_path, run):
    """A file without events gives a count of zero, and is not an error."""
    (tmp_path / "e.jsonl").touch()
    result = run(str(tmp_path / "e.jsonl"))
    assert (result.exit_code, result.output) == (0, "0 events in 1 file\n")
