"""What the golden files do not show of metrics: the SDK's own pipeline, losses, caches."""

import math
import re
from collections import Counter as Counted
from dataclasses import replace
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from http import HTTPStatus
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import (
    Counter,
    Histogram,
    MeterProvider,
    ObservableCounter,
)
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    LastValueAggregation,
    View,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_cbtop_exporter.encoding.event_json import encode_events
from otel_cbtop_exporter.encoding.json_values import encode_value
from otel_cbtop_exporter.encoding.line_protocol import LineProtocolEncoder
from tests.builders import (
    DELTA,
    RESOURCE,
    START_NS,
    exemplar,
    exponential_metric,
    exponential_point,
    gauge_metric,
    histogram_metric,
    histogram_point,
    metrics,
    number_point,
    sum_metric,
)
from tests.mappers import map_metrics

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def sdk():
    """A meter, and what was collected from it as events."""
    made = []

    def start(views=(), temporality=None):
        reader = InMemoryMetricReader(preferred_temporality=temporality or {})
        provider = MeterProvider(
            metric_readers=[reader], resource=RESOURCE, views=views, shutdown_on_exit=False
        )
        made.append(provider)

        def collect():
            data = reader.get_metrics_data()
            return map_metrics(data.resource_metrics) if data else []

        return provider.get_meter("m"), collect

    yield start
    for provider in made:
        provider.shutdown()


def test_every_instrument_of_the_sdk_becomes_events(sdk):
    """Synchronous and observable instruments of every kind arrive with type and value."""
    meter, collect = sdk(temporality={Counter: DELTA, ObservableCounter: DELTA, Histogram: DELTA})
    meter.create_counter("counter", unit="1", description="d").add(5, {"k": "v"})
    meter.create_up_down_counter("updown").add(-2)
    meter.create_histogram("histogram").record(3.5)
    meter.create_gauge("gauge").set(1.5)
    meter.create_observable_counter("o.counter", [lambda _: [Observation(7, {"k": 1})]])
    meter.create_observable_up_down_counter("o.updown", [lambda _: [Observation(-7)]])
    meter.create_observable_gauge("o.gauge", [lambda _: [Observation(0.25)]])
    events = {event.measurement: event for event in collect()}
    told = {
        name: (
            event.metric.type,
            event.metric.temporality,
            event.metric.monotonic,
            event.fields.get("value", event.fields.get("sum")),
        )
        for name, event in events.items()
    }
    assert told == {
        "counter": ("sum", "delta", True, 5),
        "updown": ("sum", "cumulative", False, -2),
        "histogram": ("histogram", "delta", None, 3.5),
        "gauge": ("gauge", None, None, 1.5),
        "o.counter": ("sum", "delta", True, 7),
        "o.updown": ("sum", "cumulative", False, -7),
        "o.gauge": ("gauge", None, None, 0.25),
    }
    assert events["counter"].tags["k"] == "v"
    assert events["o.counter"].tags["k"] == "1"
    assert events["counter"].metric.unit == "1"
    assert events["counter"].metric.description == "d"


def test_views_rename_filter_and_change_the_aggregation(sdk):
    """Events show what the views made of the instruments."""
    meter, collect = sdk(
        views=[
            View(instrument_name="a", name="renamed", attribute_keys={"kept"}),
            View(instrument_name="b", aggregation=ExponentialBucketHistogramAggregation()),
            View(instrument_name="c", aggregation=ExplicitBucketHistogramAggregation((1, 2))),
            View(instrument_name="d", aggregation=DropAggregation()),
            View(instrument_name="e", aggregation=LastValueAggregation()),
        ]
    )
    meter.create_counter("a").add(1, {"kept": "k", "cut": "c"})
    meter.create_histogram("b").record(2)
    meter.create_histogram("c").record(1.5)
    meter.create_counter("d").add(1)
    meter.create_counter("e").add(4)
    events = {event.measurement: event for event in collect()}
    assert set(events) == {"renamed", "b", "c", "e"}
    assert events["renamed"].tags["kept"] == "k"
    assert "cut" not in events["renamed"].tags
    assert events["b"].metric.type == "exponential_histogram"
    assert events["c"].fields["le_1"] == 0
    assert events["c"].fields["le_2"] == 1
    assert events["e"].metric.type == "gauge"


def test_an_exemplar_carries_the_trace_of_the_largest_measurement(sdk):
    """The data point's correlation id is the trace of its largest exemplar."""
    meter, collect = sdk()
    tracer = TracerProvider(resource=RESOURCE, shutdown_on_exit=False).get_tracer("t")
    histogram = meter.create_histogram("h")
    traces = {}
    for value in (3, 900, 40):
        with tracer.start_as_current_span("s") as current:
            histogram.record(value)
            traces[value] = format(current.get_span_context().trace_id, "032x")
    point, *exemplars = collect()
    assert point.correlation_id == traces[900]
    assert {e.fields["value"]: e.correlation_id for e in exemplars} == traces
    assert {e.tags["metric.name"] for e in exemplars} == {"h"}


def test_exemplars_of_counters_come_only_under_all_and_only_the_newest():
    """They say little and double the size of a point."""
    batch = metrics(
        sum_metric(number_point(3, exemplars=[exemplar(1, time_ns=5), exemplar(2, time_ns=9)]))
    )
    assert [event.signal for event in map_metrics(batch)] == ["metric"]
    point, newest = map_metrics(batch, exemplars="all")
    assert newest.fields["value"] == 2
    assert point.correlation_id == newest.correlation_id


def test_of_exemplars_of_one_time_the_first_counts():
    """So that the same data says the same again."""
    equal = [exemplar(1, time_ns=5), exemplar(2, time_ns=5)]
    batch = metrics(sum_metric(number_point(3, exemplars=equal), number_point(4, {"a": "b"})))
    *points, found = map_metrics(batch, exemplars="all")
    assert found.fields["value"] == 1
    assert [point.correlation_id is not None for point in points] == [True, False]


def test_no_exemplars_under_none():
    """`mapping.exemplars=none` leaves them out, and the point's correlation id with them."""
    batch = metrics(histogram_metric(histogram_point(exemplars=[exemplar(1.0)])))
    (event,) = map_metrics(batch, exemplars="none")
    assert event.correlation_id is None


@pytest.mark.parametrize("value", [NAN, INF, -INF, Decimal("NaN"), "7x", None])
def test_a_point_without_a_finite_value_is_counted_and_spares_its_neighbours(value):
    """A field cannot carry it, an event needs one: the point is rejected, its neighbours are not."""
    losses = []
    batch = metrics(
        gauge_metric(number_point(1), number_point(value, {"a": "b"}), number_point(2, {"c": "d"}))
    )
    events = map_metrics(batch, losses=losses)
    assert [event.fields["value"] for event in events] == [1, 2]
    assert losses == [("non_finite", "temperature", 1)]


@pytest.mark.parametrize(
    ("value", "told"),
    [(True, 1), (Decimal("1.5"), 1.5), (Fraction(1, 4), 0.25), (2**70, 2**70)],
)
def test_foreign_numbers_become_plain_ones(value, told):
    """A bool is an int, and other number types are floats."""
    (event,) = map_metrics(metrics(gauge_metric(number_point(value))))
    assert event.fields["value"] == told
    assert type(event.fields["value"]) in (int, float)


def test_a_histogram_whose_sum_is_not_finite_keeps_its_buckets():
    """Only the field is left out, and that is told; it is no lost event."""
    losses = []
    (event,) = map_metrics(metrics(histogram_metric(histogram_point(total=NAN))), losses=losses)
    assert "sum" not in event.fields
    assert event.fields["le_inf"] == 3
    assert losses == [("non_finite", "latency", 0)]


@pytest.mark.parametrize(("least", "most"), [(None, None), (INF, -INF)])
def test_a_min_and_max_that_were_never_recorded_are_no_loss(least, most):
    """They are left out without a word."""
    (event,) = map_metrics(metrics(histogram_metric(histogram_point(least=least, most=most))))
    assert "min" not in event.fields
    assert "max" not in event.fields


def test_histogram_buckets_are_cumulative():
    """`le_<bound>` counts what is at or below the bound, `le_inf` all."""
    (event,) = map_metrics(
        metrics(histogram_metric(histogram_point(counts=(1, 2, 4), bounds=(0.25, 10.0))))
    )
    buckets = {k: v for k, v in event.fields.items() if k.startswith("le_")}
    assert buckets == {"le_0.25": 1, "le_10": 3, "le_inf": 7}


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda buckets: st.lists(
            st.tuples(*[st.sampled_from((0, 1, 2, 127, 128, 254, 255, 256, 70_000))] * buckets),
            min_size=1,
            max_size=6,
        )
    )
)
def test_buckets_of_any_size_add_up(rows):
    """Small counts are added up a table at a time, others one by one; nobody can tell."""
    bounds = tuple(float(at) for at in range(1, len(rows[0])))
    points = [histogram_point(row, bounds, attributes={"at": at}) for at, row in enumerate(rows)]
    events = map_metrics(metrics(histogram_metric(*points)))
    for row, event in zip(rows, events, strict=True):
        sums = [event.fields[f"le_{at}"] for at in (*range(1, len(row)), "inf")]
        assert sums == list(accumulate(row))
        assert event.fields["count"] == sum(row)
        assert {type(number) for number in (event.fields["count"], *sums)} == {int}


def test_buckets_that_do_not_add_up_to_the_count_spoil_no_neighbour():
    """A foreign point keeps what it says, however its sums would look in eight bits."""
    odd = replace(histogram_point((200, 100), (1.0,), attributes={"at": "odd"}), count=44)
    good = histogram_point((3, 4), (1.0,), attributes={"at": "good"})
    for points in ((odd, good), (good, odd)):
        events = map_metrics(metrics(histogram_metric(*points)))
        found = {e.tags["at"]: (e.fields["count"], e.fields["le_inf"]) for e in events}
        assert found == {"odd": (44, 300), "good": (7, 7)}


def test_bounds_may_change_between_points_of_one_metric():
    """Two views can give one name two sets of bounds; no point gets the other's names."""
    events = map_metrics(
        metrics(
            histogram_metric(
                histogram_point(counts=(1, 0), bounds=(1.0,), attributes={"n": 1}),
                histogram_point(counts=(0, 1), bounds=(2.0,), attributes={"n": 2}),
                histogram_point(counts=(1, 1), bounds=(1.0,), attributes={"n": 3}),
            )
        )
    )
    bounds = sorted((e.fields["le_inf"], "le_1" in e.fields, "le_2" in e.fields) for e in events)
    assert bounds == [(1, False, True), (1, True, False), (2, True, False)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=50), st.integers(-2, 8))
def test_exponential_fields_add_up_and_bound_every_value(values, scale):
    """Counts add up to `count`, and the cumulative count at a bound is that of the values."""
    base = 2 ** (2**-scale)
    counts = {}
    for value in values:
        index = math.ceil(math.log(value, base)) - 1
        counts[index] = counts.get(index, 0) + 1
    low, high = min(counts), max(counts)
    if high - low > 5000:
        return
    (event,) = map_metrics(
        metrics(
            exponential_metric(
                exponential_point(
                    scale=scale,
                    positive=(low, tuple(counts.get(i, 0) for i in range(low, high + 1))),
                    zero_count=0,
                )
            )
        )
    )
    buckets = sorted((float(k[3:]), v) for k, v in event.fields.items() if k.startswith("in_"))
    assert sum(count for _, count in buckets) == len(values) == event.fields["count"]
    seen = 0
    for bound, count in buckets:
        seen += count
        assert sum(v <= bound * (1 + 1e-9) for v in values) >= seen
        assert sum(v <= bound * (1 - 1e-9) for v in values) <= seen


def test_exponential_scales_nest():
    """Points of different scales have the same fields above scale 2, so they add up."""
    fine = map_metrics(
        metrics(exponential_metric(exponential_point(scale=6, positive=(0, (1,) * 64))))
    )[0]
    coarse = map_metrics(
        metrics(exponential_metric(exponential_point(scale=2, positive=(0, (16,) * 4))))
    )[0]
    picked = [
        {k: v for k, v in event.fields.items() if k.startswith("in_")} for event in (fine, coarse)
    ]
    assert picked[0] == picked[1]


def test_the_top_bucket_of_all_floats_has_a_bound():
    """Its upper bound is beyond the largest float."""
    (event,) = map_metrics(
        metrics(exponential_metric(exponential_point(scale=0, positive=(1023, (1,)), zero_count=0)))
    )
    assert event.fields["in_inf"] == 1


def test_a_series_keeps_its_tag_set_over_collections():
    """Tags are encoded once for a series, not once for a collection."""
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    counter = provider.get_meter("m").create_counter("c")
    from otel_cbtop_exporter.mapping.metrics import MetricMapper

    mapper = MetricMapper((), "histograms", (), lambda *_: None)
    seen = []
    for _ in range(3):
        counter.add(1, {"k": "v"})
        seen += mapper.map(reader.get_metrics_data().resource_metrics)
    assert len({id(event.tags) for event in seen}) == 1
    provider.shutdown()


def test_metrics_named_like_ours_stay_apart():
    """`spans` and `spans_` are two metrics, and neither is the measurement of spans."""
    names = ["spans", "spans_", "spans__", "logs", "logs_of"]
    batch = metrics(*[sum_metric(number_point(1), name=name) for name in names])
    measurements = [event.measurement for event in map_metrics(batch)]
    assert measurements == ["spans_", "spans__", "spans___", "logs_", "logs_of"]


def test_a_kind_that_a_later_sdk_invents_is_counted():
    """It is told by name, and the other metrics arrive."""

    class Summary:
        data_points = (1, 2)

    losses = []
    batch = metrics(Metric("new", "", "", Summary()), sum_metric(number_point(1)))
    events = map_metrics(batch, losses=losses)
    assert [event.measurement for event in events] == ["requests"]
    assert losses == [("unknown_metric_type", "new", 2)]


def test_series_that_tags_cannot_tell_apart_are_added_up(sdk):
    """To the SDK these are several series; InfluxDB would keep one point and lose the others."""
    meter, collect = sdk(temporality={Counter: DELTA, Histogram: DELTA})
    counter, gauge = meter.create_counter("counter"), meter.create_gauge("gauge")
    histogram = meter.create_histogram("histogram", explicit_bucket_boundaries_advisory=[5, 10])
    for _ in range(2):  # cold and warm
        for number, status in enumerate((HTTPStatus.OK, 200, "200", 404)):
            counter.add(10**number, {"status": status})
            gauge.set(number, {"status": status})
            histogram.record(4 * number, {"status": status})
        made = {(e.measurement, e.tags["status"]): e.fields for e in collect()}
        assert len(made) == 6
        assert made["counter", "200"]["value"] == 111
        assert made["counter", "404"]["value"] == 1_000
        assert made["gauge", "200"]["value"] == 2
        found = made["histogram", "200"]
        expected = {"count": 3, "le_5": 2, "le_10": 3, "le_inf": 3, "sum": 12, "min": 0, "max": 8}
        assert {key: found[key] for key in expected} == expected


def test_twins_keep_their_exemplars_and_the_earliest_start():
    """What is added up stands for all of them."""
    points = [
        number_point(1, {"a": ""}, exemplars=[exemplar(1.0)]),
        replace(
            number_point(2, {}, exemplars=[exemplar(2.0, time_ns=START_NS + 600)]),
            start_time_unix_nano=7,
        ),
    ]
    point, *exemplars = map_metrics(metrics(sum_metric(*points)), exemplars="all")
    assert (point.fields["value"], point.fields["start_time_ns"]) == (3, 7)
    assert [one.fields["value"] for one in exemplars] == [2.0]  # of a sum the newest one
    other_times = [number_point(1), number_point(2, time_ns=9)]
    assert len(map_metrics(metrics(sum_metric(*other_times)))) == 2


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0.001, 1e6), min_size=1, max_size=30),
    st.lists(st.floats(0.001, 1e6), min_size=1, max_size=30),
    st.integers(-2, 6),
    st.integers(-2, 6),
)
def test_exponential_twins_are_what_one_histogram_of_both_is(ones, others, scale, other_scale):
    """At the coarser scale the buckets hold the values of both."""

    def point(values, scale):
        counts = Counted(math.ceil(math.log2(value) * 2**scale) - 1 for value in values)
        first = min(counts)
        buckets = [counts[index] for index in range(first, max(counts) + 1)]
        return exponential_point(
            scale=scale, positive=(first, buckets), zero_count=1, total=1.0, least=1, most=2
        )

    both = [point(ones, scale), point(others, other_scale)]
    (made,) = map_metrics(metrics(exponential_metric(*both)))
    coarser = min(scale, other_scale)
    values = [*ones, *others]
    counts = Counted(math.ceil(math.log2(value) * 2**coarser) - 1 for value in values)
    found = made.metric.positive
    assert made.metric.scale == coarser
    assert counts == +Counted(dict(enumerate(found.counts, found.offset)))
    assert (made.fields["count"], made.fields["zero_count"]) == (len(ones) + len(others) + 2, 2)
    assert (made.fields["sum"], made.fields["min"], made.fields["max"]) == (2.0, 1, 2)


def test_histograms_of_other_bounds_are_not_added_up():
    """There is no sum of them; who cannot carry both refuses the second one by name."""
    batch = metrics(
        histogram_metric(
            histogram_point((1, 0), (1.0,)),
            histogram_point((0, 1), (2.0,)),
            histogram_point((1, 1), (1.0,), least=None, most=None),
        )
    )
    made = sorted((e.fields["count"], e.fields["min"]) for e in map_metrics(batch))
    assert made == [(1, 1.5), (3, 1.5)]


def test_keys_of_attributes_may_be_members_of_an_enum():
    """They are the texts that they equal, in the metric that has them and in all others."""

    class Key(str, Enum):
        ROUTE = "http.route"

    points = [number_point(1, {Key.ROUTE: "/a"}), number_point(2, {"http.route": "/b"})]
    events = map_metrics(metrics(sum_metric(*points), sum_metric(*points)))
    assert [event.tags["http.route"] for event in events] == ["/a", "/b"] * 2
    assert all(type(key) is str for event in events for key in event.tags)
    assert b'"http.route":"/a"' in encode_events(events).bodies[0]


def test_bounds_that_have_one_name_cost_no_other_point():
    """Two bounds may be spelled alike; their buckets are one field then, and both sinks take it."""
    bounds = (1.0, 2.0**53, 2.0**53 + 1, INF)
    batch = metrics(
        histogram_metric(histogram_point((1, 1, 1, 1, 1), bounds)), sum_metric(number_point(3))
    )
    events = map_metrics(batch)
    assert len(events) == 2
    assert len(encode_events(events).bodies) == 2
    lines = LineProtocolEncoder().encode(events)
    assert not lines.refused
    assert sum(body.count(b"le_inf=5i") for body in lines.bodies) == 1


def test_times_and_counts_of_foreign_types_spoil_no_neighbour():
    """A float that equals the others' time is refused alone, and a true count is no text."""
    one, other = number_point(1, {"a": "x"}), number_point(2, {"a": "y"})
    odd = number_point(3, {"a": "z"}, time_ns=float(one.time_unix_nano))
    lines = LineProtocolEncoder().encode(map_metrics(metrics(gauge_metric(one, odd, other))))
    assert [refusal.reason for refusal in lines.refused.values()] == ["invalid_time"]
    for odd, there in (
        ({"count": True}, b"count=1i"),
        ({"bucket_counts": (True, 2, 0)}, b"le_5=1i"),
        ({"min": Decimal("sNaN")}, b"max=9,"),
    ):
        histogram = replace(histogram_point(attributes={"a": "x"}), **odd)
        batch = metrics(histogram_metric(histogram, histogram_point(attributes={"a": "y"})))
        lines = LineProtocolEncoder().encode(map_metrics(batch))
        assert not lines.refused
        assert there in lines.bodies[0]


@pytest.mark.parametrize("redact", [(), ("tenant",)])
def test_scopes_that_differ_in_an_attribute_are_different_series(redact):
    """Whether it is shown or not; what is no text is as it would be without redaction."""
    batch = [
        one
        for tenant in ("a", "b")
        for one in metrics(
            sum_metric(number_point(1)),
            scope=InstrumentationScope("m", attributes={"tenant": tenant, "odd": (object, 1)}),
        )
    ]
    events = map_metrics(batch, redact=redact)
    tenants = {event.tags["otel.scope.tenant"] for event in events}
    assert len(tenants) == 2
    assert (tenants == {"a", "b"}) is (not redact)
    assert LineProtocolEncoder().encode(events).refused == {}
    odd = {event.tags["otel.scope.odd"] for event in map_metrics(batch)}
    assert odd == {encode_value((object, 1)).decode()}


def test_redaction_keeps_series_apart():
    """Or InfluxDB would keep one point of all: digits stand for the value, and do not show it."""
    values = [{"user.id": user, "route": "/"} for user in ("ada", "bob", "eve")]
    points = [number_point(n, attributes) for n, attributes in enumerate(values)]
    first = map_metrics(metrics(sum_metric(*points)), redact=("user.*",))
    again = map_metrics(metrics(sum_metric(*points)), redact=("user.*",))
    texts = [event.tags["user.id"] for event in first]
    assert all(re.fullmatch(r"\[redacted:[0-9a-f]{12}\]", text) for text in texts)
    assert len(set(texts)) == 3
    assert [event.tags["user.id"] for event in again] == texts
    assert LineProtocolEncoder().encode(first).refused == {}
