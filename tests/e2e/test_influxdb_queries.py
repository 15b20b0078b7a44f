"""Every query of examples/influxdb and of its dashboard gives the numbers that were driven."""

import json
import math
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.e2e.shop_traffic import BOUNDS, LIVES, MINUTES, requests

pytestmark = pytest.mark.influxdb

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "influxdb"
QUERIES = EXAMPLE / "queries"
MINUTE_NS = 60_000_000_000
TRACE = re.compile(r"0af7651916cd43dd8448eb211c80319c")


class Driven:
    """A bucket that was filled with known traffic, and the traffic itself."""

    def __init__(self, server):
        self.server = server
        self.bucket = server.new_bucket()
        self.base_ns = (time.time_ns() // MINUTE_NS - MINUTES - 5) * MINUTE_NS
        for lives in (("first", "second"), ("restarted",)):
            running = [self._start(life) for life in lives]
            for process in running:
                out, err = process.communicate(timeout=120)
                assert process.returncode == 0, err.decode()
                assert json.loads(out) == [0, 0, 0], err.decode()
        self.requests = [r for life in LIVES for r in requests(life, self.base_ns)]
        self.orders = [r for r in self.requests if r.route == "/orders/{id}"]

    def _start(self, life):
        script = Path(__file__).with_name("shop_traffic.py")
        options = json.dumps(self.server.options(self.bucket))
        return subprocess.Popen(
            [sys.executable, script, options, str(self.base_ns), life],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )

    def by_route(self):
        found = defaultdict(list)
        for request in self.requests:
            found[request.route].append(request)
        return found

    def per_second(self):
        counted = Counter((r.route, r.minute) for r in self.requests)
        return {key: count / 60 for key, count in counted.items()}

    def minute(self, time_ns):
        return (time_ns - self.base_ns) // MINUTE_NS

    def failed_trace(self):
        """Return the trace of one failed request."""
        points = self.server.points(self.bucket, "span_events")
        return points[0][2]["correlation_id"]

    def flux(self, query):
        query = query.replace('bucket = "telemetry"', f'bucket = "{self.bucket}"')
        return self.server.flux(query)

    def flux_by_route(self, query):
        return {row.get("http.route"): row["_value"] for row in self.flux(query)}

    def influxql(self, query):
        return self.server.influxql(query, self.bucket)

    def influxql_by(self, tag, query):
        """Return the single value of each series, keyed by a tag."""
        return {series["tags"][tag]: series["values"][0][1] for series in self.influxql(query)}


@pytest.fixture(scope="module")
def flux_driven(influxdb2):
    return Driven(influxdb2)


@pytest.fixture(scope="module")
def old_driven(influxdb1):
    return Driven(influxdb1)


@pytest.fixture(params=["2", "1"], ids=["influxdb2", "influxdb1"])
def driven(request):
    """Provide both servers: InfluxQL runs on each."""
    return request.getfixturevalue("flux_driven" if request.param == "2" else "old_driven")


def text(name):
    return (QUERIES / name).read_text()


def nearest_rank(values, percent):
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def interpolated(q, cumulative):
    """Return a quantile as histogramQuantile does, from pairs (upper bound, cumulative count)."""
    wanted, lower, below = q * cumulative[-1][1], 0.0, 0
    for upper, within in cumulative:
        if within >= wanted:
            return lower + (upper - lower) * (wanted - below) / (within - below)
        lower, below = upper, within
    raise AssertionError(cumulative)


def explicit_p95(made):
    cumulative = [(bound, sum(r.seconds <= bound for r in made)) for bound in BOUNDS]
    return interpolated(0.95, cumulative)


def exponential_p95(orders):
    """Interpolate in buckets whose bounds are powers of the fourth root of 2."""
    ends = Counter(math.ceil(math.log2(r.value) * 4 - 1e-9) for r in orders)
    total, cumulative = 0, []
    for end in sorted({*ends, *(end - 1 for end in ends)}):
        total += ends[end]
        cumulative.append((2 ** (end / 4), total))
    return interpolated(0.95, cumulative)


def test_every_query_is_tried():
    """Each query file has a comment that says what it answers, and a test here that names it."""
    source = Path(__file__).read_text()
    for path in QUERIES.iterdir():
        assert path.read_text().startswith(("// ", "-- ")), path.name
        assert f'"{path.name}"' in source or path.suffix == ".sql", path.name


def test_requests_per_second(flux_driven, driven):
    """The query gives requests per second by route and minute."""
    rows = flux_driven.flux(text("requests_per_second.flux"))
    found = {
        (row["http.route"], flux_driven.minute(int(row["_time"].timestamp()) * 10**9)): row[
            "_value"
        ]
        for row in rows
    }
    assert found == pytest.approx(flux_driven.per_second())
    found = {
        (series["tags"]["http.route"], driven.minute(time_ns)): value
        for series in driven.influxql(text("requests_per_second.influxql"))
        for time_ns, value in series["values"]
    }
    assert found == pytest.approx(driven.per_second())


def test_counter_total(flux_driven, driven):
    """Delta points of two workers and a restart add up to the counted total."""
    expected = Counter(r.payment for r in driven.orders)
    rows = flux_driven.flux(text("counter_total.flux"))
    assert {row["payment"]: row["_value"] for row in rows} == expected
    assert driven.influxql_by("payment", text("counter_total.influxql")) == expected


def test_latency_p99(flux_driven, driven):
    """The query gives the nearest-rank 99th percentile in milliseconds."""

    def expected(driven):
        return {
            route: nearest_rank([round(r.seconds * 1e9) for r in made], 99) / 1e6
            for route, made in driven.by_route().items()
        }

    assert flux_driven.flux_by_route(text("latency_p99.flux")) == pytest.approx(
        expected(flux_driven)
    )
    assert driven.influxql_by("http.route", text("latency_p99.influxql")) == pytest.approx(
        expected(driven)
    )


def test_error_rate(flux_driven, driven):
    """The query gives the share of failed requests in percent."""
    expected = {
        route: 100 * sum(r.failed for r in made) / len(made)
        for route, made in driven.by_route().items()
    }
    assert flux_driven.flux_by_route(text("error_rate.flux")) == pytest.approx(expected)
    assert driven.influxql_by("http.route", text("error_rate.influxql")) == pytest.approx(expected)


def of_routes(found):
    """Drop the result for requests without a route, if the query has one."""
    return {route: value for route, value in found.items() if route}


def test_slo_share(flux_driven, driven):
    """The query gives the exact share of requests within a bound, from the histogram."""
    expected = {
        route: 100 * sum(r.seconds <= 0.25 for r in made) / len(made)
        for route, made in driven.by_route().items()
    }
    assert flux_driven.flux_by_route(text("slo_share.flux")) == pytest.approx(expected)
    found = driven.influxql_by("http.route", text("slo_share.influxql"))
    assert of_routes(found) == pytest.approx(expected)


def test_slowest(flux_driven, driven):
    """The query gives the ten slowest requests, each with its trace."""

    def expected(driven):
        return sorted(round(r.seconds * 1e9) for r in driven.requests)[-10:]

    rows = flux_driven.flux(text("slowest.flux"))
    assert sorted(row["duration_ns"] for row in rows) == expected(flux_driven)
    assert len({row["correlation_id"] for row in rows}) == 10
    (series,) = driven.influxql(text("slowest.influxql"))
    assert series["columns"] == ["time", "duration_ns", "correlation_id", "http.route"]
    assert sorted(row[1] for row in series["values"]) == expected(driven)
    assert len({row[2] for row in series["values"]}) == 10


def test_histogram_quantile(flux_driven, driven):
    """The quantile over two workers and a restart equals the one interpolated from the traffic."""
    expected = {route: explicit_p95(made) for route, made in flux_driven.by_route().items()}
    found = flux_driven.flux_by_route(text("histogram_quantile.flux"))
    assert of_routes(found) == pytest.approx(expected)
    for series in driven.influxql(text("histogram_buckets.influxql")):
        if not series["tags"]["http.route"]:
            continue
        sums = dict(zip(series["columns"], series["values"][0], strict=True))
        made = driven.by_route()[series["tags"]["http.route"]]
        for bound in BOUNDS:
            assert sums[f"sum_le_{bound}"] == sum(r.seconds <= bound for r in made)


def test_histogram_quantile_by_minute(flux_driven):
    """The quantile of a window is that of the traffic in it; here one window holds all of it."""
    query = text("histogram_quantile_by_minute.flux").replace("every: 1m", "every: 3650d")
    expected = {route: explicit_p95(made) for route, made in flux_driven.by_route().items()}
    assert of_routes(flux_driven.flux_by_route(query)) == pytest.approx(expected)


def test_counter_per_second(flux_driven):
    """The rates of all minutes together are what the counter counted."""
    counted = Counter()
    for row in flux_driven.flux(text("counter_per_second.flux")):
        counted[row["payment"]] += round(row["_value"] * 60)
    assert counted == Counter(r.payment for r in flux_driven.orders)


def test_exemplars(flux_driven):
    """Each exemplar over 250 ms is a request of that duration, with its trace; slowest first."""
    rows = flux_driven.flux(text("exemplars.flux"))
    values = [row["value"] for row in rows]
    assert values == sorted(values, reverse=True)
    assert min(values) > 0.25
    for row in rows[:3]:
        query = TRACE.sub(row["correlation_id"], text("one_trace.flux"))
        assert flux_driven.flux(query)[0]["duration_ns"] == round(row["value"] * 1e9)


def test_exceptions(flux_driven):
    """The query gives how often each type of exception was recorded."""
    (row,) = flux_driven.flux(text("exceptions.flux"))
    failed = sum(r.failed for r in flux_driven.requests)
    assert (row["service.name"], row["exception.type"], row["_value"]) == (
        "shop",
        "KeyError",
        failed,
    )


def test_by_attribute(flux_driven):
    """The query counts failed requests by an attribute that is only in the JSON."""
    found = {row["path"]: row["_value"] for row in flux_driven.flux(text("by_attribute.flux"))}
    numbered = [enumerate(requests(life, flux_driven.base_ns)) for life in LIVES]
    assert found == Counter(f"/{number}" for one in numbered for number, r in one if r.failed)


def test_logs_by_severity(flux_driven):
    """The query gives the number of log records by severity and minute."""
    found = {}
    for row in flux_driven.flux(text("logs_by_severity.flux")):
        minute = flux_driven.minute(int(row["_time"].timestamp()) * 10**9)
        found[row["severity_text"], minute] = row["_value"]
    counted = Counter()
    for life in LIVES:
        for number, r in enumerate(requests(life, flux_driven.base_ns)):
            if r.route == "/orders/{id}":
                level = ("FATAL" if number % 2 else "ERROR") if r.failed else "INFO"
                counted[level, r.minute] += 1
    assert found == counted


def test_exponential_histogram_quantile(flux_driven):
    """The quantile over two workers and a restart is near the true one: buckets are narrow."""
    (row,) = flux_driven.flux(text("exponential_histogram_quantile.flux"))
    assert row["_value"] == pytest.approx(exponential_p95(flux_driven.orders))
    true = nearest_rank([r.value for r in flux_driven.orders], 95)
    assert row["_value"] == pytest.approx(true, rel=2**0.25 - 1)


def test_errors_in_logs(flux_driven, driven):
    """The query gives all failed orders, newest first, with their traces."""
    failed = sum(r.failed for r in driven.requests)
    rows = flux_driven.flux(text("errors_in_logs.flux"))
    assert len(rows) == failed == 60
    assert all(row["body"].endswith("failed") and len(row["correlation_id"]) == 32 for row in rows)
    assert [row["_time"] for row in rows] == sorted((r["_time"] for r in rows), reverse=True)
    (series,) = driven.influxql(text("errors_in_logs.influxql"))
    assert len(series["values"]) == failed
    assert series["values"] == sorted(series["values"], reverse=True)


def test_one_trace(flux_driven, driven):
    """The query gives both spans of a failed order, its exception and its log, in order."""
    rows = flux_driven.flux(TRACE.sub(flux_driven.failed_trace(), text("one_trace.flux")))
    assert [row["_measurement"] for row in rows] == ["spans", "spans", "logs", "span_events"]
    assert rows[0]["span_id"] == rows[1]["parent_span_id"] == rows[2]["span_id"]
    found = driven.influxql(TRACE.sub(driven.failed_trace(), text("one_trace.influxql")))
    assert {series["name"]: len(series["values"]) for series in found} == {
        "spans": 2,
        "span_events": 1,
        "logs": 1,
    }


def test_sql_names_what_is_there(flux_driven):
    """The SQL queries name only tables and columns that exist.

    They need InfluxDB 3, which is not run here.
    """
    fields = flux_driven.influxql("SHOW FIELD KEYS; SHOW TAG KEYS")
    known = {series["name"] for series in fields} | {"time"}
    known |= {row[0] for series in fields for row in series["values"]}
    for path in QUERIES.glob("*.sql"):
        named = set(re.findall(r'"([^"]+)"', path.read_text()))
        named |= set(re.findall(r"FROM ([a-z_]+)\n", path.read_text())) - {"total", "bucket"}
        assert named <= known, path.name


DASHBOARD = json.loads((EXAMPLE / "grafana" / "dashboard.json").read_text())


def panel(driven, title, trace=""):
    """Run the query of a panel, with its variables replaced as Grafana does."""
    (found,) = [one for one in DASHBOARD["panels"] if one["title"].startswith(title)]
    (target,) = found["targets"]
    return driven.server.flux(filled(driven, target["query"], trace))


def filled(driven, query, trace=""):
    for name, value in {
        "v.timeRangeStart": "-1h",
        "v.timeRangeStop": "now()",
        "v.windowPeriod": "1m",
        "v.defaultBucket": f'"{driven.bucket}"',
        "${service}": "shop",
        "${exponential_histogram}": "shop.order.value",
        "${trace}": trace,
    }.items():
        query = query.replace(name, value)
    assert "v." not in query
    assert "${" not in query
    return query


def by_route_and_minute(driven, rows):
    """Read the rows of windows, whose time is their end."""
    return {
        (row["http.route"], driven.minute(int(row["_time"].timestamp()) * 10**9 - 1)): row["_value"]
        for row in rows
    }


def test_every_panel_is_tried():
    """Each panel of the dashboard has a test here."""
    source = Path(__file__).read_text()
    titles = [one["title"] for one in DASHBOARD["panels"]]
    assert len(set(titles)) == len(titles) == 9
    for title in titles:
        assert f'"{title.partition(":")[0]}"' in source, title


def test_panels_over_time(flux_driven):
    """Requests, errors and latencies by route and minute match the traffic."""
    made = defaultdict(list)
    for request in flux_driven.requests:
        made[request.route, request.minute].append(request)
    rate = by_route_and_minute(flux_driven, panel(flux_driven, "Requests a second"))
    assert 0.0 in rate.values()  # a minute without requests is shown as zero
    assert {at: value for at, value in rate.items() if value} == pytest.approx(
        flux_driven.per_second()
    )
    failed = by_route_and_minute(flux_driven, panel(flux_driven, "Failed requests"))
    assert failed == pytest.approx(
        {key: 100 * sum(r.failed for r in some) / len(some) for key, some in made.items()}
    )
    title = "95th percentile of the duration, from spans"
    latency = by_route_and_minute(flux_driven, panel(flux_driven, title))
    assert latency == pytest.approx(
        {
            key: nearest_rank([round(r.seconds * 1e9) for r in some], 95) / 1e6
            for key, some in made.items()
        }
    )


def test_panels_of_histograms(flux_driven):
    """Shares and quantiles by route match the traffic."""
    rows = panel(flux_driven, "Requests within 250 ms")
    assert {row["http.route"]: row["_value"] for row in rows} == pytest.approx(
        {
            route: 100 * sum(r.seconds <= 0.25 for r in made) / len(made)
            for route, made in flux_driven.by_route().items()
        }
    )
    rows = panel(flux_driven, "95th percentile of the duration, from the histogram")
    assert of_routes({row["http.route"]: row["_value"] for row in rows}) == pytest.approx(
        {route: explicit_p95(made) for route, made in flux_driven.by_route().items()}
    )
    (row,) = panel(flux_driven, "95th percentile of an exponential histogram")
    assert row["_value"] == pytest.approx(exponential_p95(flux_driven.orders))


def test_panels_of_single_events(flux_driven):
    """The panels show the slowest requests, the errors in the logs, and one trace."""
    rows = panel(flux_driven, "Slowest requests")
    expected = sorted(round(r.seconds * 1e9) for r in flux_driven.requests)[-10:]
    assert sorted(row["duration_ns"] for row in rows) == expected
    rows = panel(flux_driven, "Errors in the logs")
    assert len(rows) == 60
    assert all(row["body"].endswith("failed") for row in rows)
    rows = panel(flux_driven, "One trace", trace=flux_driven.failed_trace())
    assert [row["_measurement"] for row in rows] == ["spans", "spans", "logs", "span_events"]
    assert panel(flux_driven, "One trace", trace="") == []


def test_the_dashboards_variables(flux_driven):
    """The variables offer the services and exponential histograms that exist."""
    queries = {
        one["name"]: one["query"]["query"]
        for one in DASHBOARD["templating"]["list"]
        if one["type"] == "query"
    }
    offered = {
        name: [row["_value"] for row in flux_driven.server.flux(filled(flux_driven, query))]
        for name, query in queries.items()
    }
    assert offered == {"service": ["shop"], "exponential_histogram": ["shop.order.value"]}
