"""Mapping of metrics, beyond the golden files: the SDK's own pipeline, losses and caches."""

import math
import re
from collections import Counter as Counted
from dataclasses import replace
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from http import HTTPStatus
from itertools import accumulate, pairwise

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

from otel_cbtop_exporter.config import DEFAULT_RESOURCE_TAGS
from otel_cbtop_exporter.encoding.event_json import encode_events
from otel_cbtop_exporter.encoding.json_values import encode_value
from otel_cbtop_exporter.encoding.line_protocol import LineProtocolEncoder
from otel_cbtop_exporter.mapping.metrics import MetricMapper
from tests.builders import (
    CUMULATIVE,
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
    """Return a function that makes a meter and collects its metrics as events."""
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
    """Synchronous and observable instruments of every kind become events with type and value."""
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
    """Events have the names, attributes and aggregations that views define."""
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
    """A data point's correlation id is the trace of its largest exemplar."""
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
    """Exemplars of counters are mapped only with `all`, and only the newest of a point.

    They say little, and double the size of a point.
    """
    batch = metrics(
        sum_metric(number_point(3, exemplars=[exemplar(1, time_ns=5), exemplar(2, time_ns=9)]))
    )
    assert [event.signal for event in map_metrics(batch)] == ["metric"]
    point, newest = map_metrics(batch, exemplars="all")
    assert newest.fields["value"] == 2
    assert point.correlation_id == newest.correlation_id


def test_of_exemplars_of_one_time_the_first_counts():
    """Of exemplars of one time the first is chosen, so that equal data gives equal events."""
    equal = [exemplar(1, time_ns=5), exemplar(2, time_ns=5)]
    batch = metrics(sum_metric(number_point(3, exemplars=equal), number_point(4, {"a": "b"})))
    *points, found = map_metrics(batch, exemplars="all")
    assert found.fields["value"] == 1
    assert [point.correlation_id is not None for point in points] == [True, False]


def test_no_exemplars_under_none():
    """`mapping.exemplars=none` omits exemplars and the point's correlation id."""
    batch = metrics(histogram_metric(histogram_point(exemplars=[exemplar(1.0)])))
    (event,) = map_metrics(batch, exemplars="none")
    assert event.correlation_id is None


@pytest.mark.parametrize("value", [NAN, INF, -INF, Decimal("NaN"), "7x", None])
def test_a_point_without_a_finite_value_is_counted_and_spares_its_neighbours(value):
    """A point without a finite value is rejected and counted alone.

    Its event would have no field.
    """
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
    """A bool becomes an int, and other number types become floats."""
    (event,) = map_metrics(metrics(gauge_metric(number_point(value))))
    assert event.fields["value"] == told
    assert type(event.fields["value"]) in (int, float)


def test_a_histogram_whose_sum_is_not_finite_keeps_its_buckets():
    """A sum that is not finite is left out and reported, but its event is not lost."""
    losses = []
    (event,) = map_metrics(metrics(histogram_metric(histogram_point(total=NAN))), losses=losses)
    assert "sum" not in event.fields
    assert event.fields["le_inf"] == 3
    assert losses == [("non_finite", "latency", 0)]


@pytest.mark.parametrize(("least", "most"), [(None, None), (INF, -INF)])
def test_a_min_and_max_that_were_never_recorded_are_no_loss(least, most):
    """A min and max that were never recorded are left out and not reported as a loss."""
    (event,) = map_metrics(metrics(histogram_metric(histogram_point(least=least, most=most))))
    assert "min" not in event.fields
    assert "max" not in event.fields


def test_histogram_buckets_are_cumulative():
    """`le_<bound>` counts all values at or below the bound, and `le_inf` all values."""
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
    """Buckets add up, whether a table at a time (small counts) or one by one (larger ones)."""
    bounds = tuple(float(at) for at in range(1, len(rows[0])))
    points = [histogram_point(row, bounds, attributes={"at": at}) for at, row in enumerate(rows)]
    events = map_metrics(metrics(histogram_metric(*points)))
    for row, event in zip(rows, events, strict=True):
        sums = [event.fields[f"le_{at}"] for at in (*range(1, len(row)), "inf")]
        assert sums == list(accumulate(row))
        assert event.fields["count"] == sum(row)
        assert {type(number) for number in (event.fields["count"], *sums)} == {int}


def test_buckets_that_do_not_add_up_to_the_count_spoil_no_neighbour():
    """A foreign point whose count contradicts its buckets keeps both, and changes no other point.

    Here its sums would only match if they were taken in eight bits.
    """
    odd = replace(histogram_point((200, 100), (1.0,), attributes={"at": "odd"}), count=44)
    good = histogram_point((3, 4), (1.0,), attributes={"at": "good"})
    for points in ((odd, good), (good, odd)):
        events = map_metrics(metrics(histogram_metric(*points)))
        found = {e.tags["at"]: (e.fields["count"], e.fields["le_inf"]) for e in events}
        assert found == {"odd": (44, 300), "good": (7, 7)}


def test_bounds_may_change_between_points_of_one_metric():
    """Points of one metric may have different bounds, as from two views, and each keeps its own."""
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
    """Bucket fields add up to `count`, and up to each bound they count the values below it."""
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
    width = 2 ** (2 ** -min(scale, 2))
    assert buckets[0][1] == 0
    for (lower, _), (upper, count) in pairwise(buckets):
        assert count == 0 or upper / lower == pytest.approx(width)
    seen = 0
    for bound, count in buckets:
        seen += count
        assert sum(v <= bound * (1 + 1e-9) for v in values) >= seen
        assert sum(v <= bound * (1 - 1e-9) for v in values) <= seen


def test_exponential_scales_nest():
    """Points of different scales have the same fields above scale 2, so they can be added up."""
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


def test_the_outermost_buckets_of_all_floats_have_bounds():
    """The top bucket is `in_inf`, beyond the largest float; next to zero there is no `in_-0`."""
    point = exponential_point(
        scale=0, positive=(1023, (1,)), negative=(-1075, (2,)), zero_count=3, least=-5e-324
    )
    (event,) = map_metrics(metrics(exponential_metric(point)))
    buckets = {k: v for k, v in event.fields.items() if k.startswith("in_")}
    assert list(buckets.items()) == [
        ("in_-5e-324", 0),
        ("in_0", 5),
        (f"in_{2.0**1023!r}", 0),
        ("in_inf", 1),
    ]


def test_a_gap_between_two_buckets_has_two_ends():
    """A bucket's lower bound is a field, so a quantile is not interpolated over the gap below it.

    A lower bound where another bucket ends is that bucket's field, and has its count.
    """
    point = exponential_point(scale=0, positive=(0, (4, 2, 0, 0, 3)), zero_count=1)
    (event,) = map_metrics(metrics(exponential_metric(point)))
    buckets = {k: v for k, v in event.fields.items() if k.startswith("in_")}
    assert list(buckets.items()) == [
        ("in_0", 1),
        ("in_1", 0),
        ("in_2", 4),
        ("in_4", 2),
        ("in_16", 0),
        ("in_32", 3),
    ]


def test_a_series_keeps_its_tag_set_over_collections():
    """A series keeps its tag set over collections, so that its tags are encoded only once."""
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
    """Metrics named like our measurements are renamed, without merging `spans` and `spans_`."""
    names = ["spans", "spans_", "spans__", "logs", "logs_of"]
    batch = metrics(*[sum_metric(number_point(1), name=name) for name in names])
    measurements = [event.measurement for event in map_metrics(batch)]
    assert measurements == ["spans_", "spans__", "spans___", "logs_", "logs_of"]


def test_a_kind_that_a_later_sdk_invents_is_counted():
    """A metric of an unknown kind is reported by name and counted; the others arrive."""

    class Summary:
        data_points = (1, 2)

    losses = []
    batch = metrics(Metric("new", "", "", Summary()), sum_metric(number_point(1)))
    events = map_metrics(batch, losses=losses)
    assert [event.measurement for event in events] == ["requests"]
    assert losses == [("unknown_metric_type", "new", 2)]


def test_series_that_tags_cannot_tell_apart_are_added_up(sdk):
    """Series of the SDK whose tags are equal as text are added up.

    InfluxDB would keep one point and lose the others.
    """
    meter, collect = sdk(temporality={Counter: DELTA, Histogram: DELTA})
    counter, gauge = meter.create_counter("counter"), meter.create_gauge("gauge")
    histogram = meter.create_histogram("histogram", explicit_bucket_boundaries_advisory=[5, 10])
    for _ in range(2):
        for number, status in enumerate((HTTPStatus.OK, 200, "200", 404)):
            counter.add(10**number, {"status": status})
            gauge.set(number, {"status": status})
            histogram.record(4 * number, {"status": status})
        events = collect()
        # Gauges cannot be added up: all but one are refused, by name.
        assert Counted(e.measurement for e in events) == {"counter": 2, "histogram": 2, "gauge": 4}
        assert len(LineProtocolEncoder().encode(events).refused) == 2
        made = {(e.measurement, e.tags["status"]): e.fields for e in events}
        assert made["counter", "200"]["value"] == 111
        assert made["counter", "404"]["value"] == 1_000
        found = made["histogram", "200"]
        expected = {"count": 3, "le_5": 2, "le_10": 3, "le_inf": 3, "sum": 12, "min": 0, "max": 8}
        assert {key: found[key] for key in expected} == expected


def test_twins_keep_their_exemplars_and_the_earliest_start():
    """A point added up from several has the earliest start time and the exemplars of all."""
    points = [
        number_point(1, {"a": ""}, exemplars=[exemplar(1.0)]),
        replace(
            number_point(2, {}, exemplars=[exemplar(2.0, time_ns=START_NS + 600)]),
            start_time_unix_nano=7,
        ),
    ]
    point, *exemplars = map_metrics(metrics(sum_metric(*points)), exemplars="all")
    assert (point.fields["value"], point.fields["start_time_ns"]) == (3, 7)
    assert [one.fields["value"] for one in exemplars] == [2.0]  # a sum keeps only the newest
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
    """Two exponential histograms add up to one of all their values, at a coarser scale."""

    def point(values, scale):
        counts = Counted(math.ceil(math.log2(value) * 2**scale) - 1 for value in values)
        first = min(counts)
        buckets = [counts[index] for index in range(first, max(counts) + 1)]
        return exponential_point(
            scale=scale, positive=(first, buckets), zero_count=1, total=1.0, least=1, most=2
        )

    both = [point(ones, scale), point(others, other_scale)]
    (made,) = map_metrics(metrics(exponential_metric(*both)))
    coarser = made.metric.scale
    assert coarser <= min(scale, other_scale)
    values = [*ones, *others]
    counts = Counted(math.ceil(math.log2(value) * 2**coarser) - 1 for value in values)
    found = made.metric.positive
    assert counts == +Counted(dict(enumerate(found.counts, found.offset)))
    if coarser < min(scale, other_scale):  # no coarser than necessary
        most = max(160, *(len(one.positive.bucket_counts) for one in both))
        assert len(found.counts) <= most
        ends = [math.ceil(math.log2(one(values)) * 2 ** (coarser + 1)) for one in (min, max)]
        assert ends[1] - ends[0] >= most
    assert (made.fields["count"], made.fields["zero_count"]) == (len(ones) + len(others) + 2, 2)
    assert (made.fields["sum"], made.fields["min"], made.fields["max"]) == (2.0, 1, 2)


def test_a_twin_without_a_finite_value_takes_no_other_along():
    """When series are added up, a value that is not finite is left out and counted alone."""
    for values in ([NAN, 5.0], [5.0, NAN]):
        losses = []
        (made,) = map_metrics(metrics(sum_metric(*map(number_point, values))), losses=losses)
        assert (made.fields["value"], losses) == (5.0, [("non_finite", "requests", 1)])
        odd = [histogram_point(total=value, least=value, most=value) for value in values]
        losses.clear()
        made = map_metrics(metrics(histogram_metric(*odd)), losses=losses)
        assert (made[0].fields["count"], "sum" in made[0].fields) == (6, False)
        assert losses == [("non_finite", "latency", 0)]
        assert len(made) == 1
    points = [histogram_point(least=NAN), histogram_point(most=INF)]
    (made,) = map_metrics(metrics(histogram_metric(*points)))
    assert (made.fields["min"], made.fields["max"]) == (1.5, 9.0)


def test_twins_of_foreign_numbers_are_added_up():
    """Foreign number types, such as numpy's, which the SDK keeps, can be added up."""
    points = [number_point(Fraction(1, 2)), number_point(Decimal("0.25"))]
    (made,) = map_metrics(metrics(sum_metric(*points)))
    assert made.fields["value"] == 0.75


@pytest.mark.parametrize("values", [(1.5e308, 1.5e308), (10**400, 0.5)])
def test_twins_that_are_too_much_together_stay_apart(values):
    """Points whose sum would overflow stay separate: one of them is better than none."""
    made = map_metrics(metrics(sum_metric(*map(number_point, values))))
    assert [event.fields["value"] for event in made] == list(values)


def test_histograms_of_other_bounds_are_not_added_up():
    """Histograms with different bounds are not added up.

    A sink that cannot carry both refuses the second one by name.
    """
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
    """Attribute keys that are str Enum members become plain text, here and in later metrics."""

    class Key(str, Enum):
        ROUTE = "http.route"

    points = [number_point(1, {Key.ROUTE: "/a"}), number_point(2, {"http.route": "/b"})]
    events = map_metrics(metrics(sum_metric(*points), sum_metric(*points)))
    assert [event.tags["http.route"] for event in events] == ["/a", "/b"] * 2
    assert all(type(key) is str for event in events for key in event.tags)
    assert b'"http.route":"/a"' in encode_events(events).bodies[0]


def test_bounds_that_have_one_name_cost_no_other_point():
    """Bounds that are spelled alike become one field, and both sinks take the point."""
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
    """Odd types in one point do not affect others.

    A float time is refused alone, and a count of True is written as an integer.
    """
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
    """Scopes that differ in an attribute are different series, even if it is redacted.

    A value that is not a text is shown as without redaction.
    """
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
    """Redacted values keep their series apart, or InfluxDB would keep one point of all.

    Digits stand for the value without showing it.
    """
    values = [{"user.id": user, "route": "/"} for user in ("ada", "bob", "eve")]
    points = [number_point(n, attributes) for n, attributes in enumerate(values)]
    first = map_metrics(metrics(sum_metric(*points)), redact=("user.*",))
    again = map_metrics(metrics(sum_metric(*points)), redact=("user.*",))
    texts = [event.tags["user.id"] for event in first]
    assert all(re.fullmatch(r"\[redacted:[0-9a-f]{12}\]", text) for text in texts)
    assert len(set(texts)) == 3
    assert [event.tags["user.id"] for event in again] == texts
    assert LineProtocolEncoder().encode(first).refused == {}


def refuse(*loss):
    raise AssertionError(loss)


def test_a_point_that_is_left_out_moves_no_value_to_another_series():
    """Tags stay with their values when a point before them is rejected."""
    points = [number_point(v, {"n": n}) for n, v in (("a", NAN), ("b", 1), ("c", 2))]
    events = map_metrics(metrics(gauge_metric(*points)), losses=[])
    assert {event.tags["n"]: event.fields["value"] for event in events} == {"b": 1, "c": 2}


def test_redaction_reaches_exemplars():
    """Exemplars are redacted too: they hold the attributes that a view removed from a metric."""
    made = exemplar(9.0, attributes={"user.id": "ada", "cart": {"user.id": "eve"}})
    for batch in (
        metrics(histogram_metric(histogram_point(exemplars=[made]))),
        metrics(exponential_metric(exponential_point(exemplars=[made]))),
        metrics(sum_metric(number_point(1, exemplars=[made]))),
    ):
        _, event = map_metrics(batch, exemplars="all", redact=("user.*",))
        assert event.attributes == {"user.id": "[redacted]", "cart": {"user.id": "[redacted]"}}


def test_an_exemplar_without_a_finite_value_is_a_lost_event():
    """An exemplar without a finite value is counted as one lost event."""
    losses = []
    batch = metrics(histogram_metric(histogram_point(exemplars=[exemplar(NAN), exemplar(1.0)])))
    assert len(map_metrics(batch, losses=losses)) == 2
    assert losses == [("non_finite", "latency", 1)]


@pytest.mark.parametrize("kind", ["time", "start"])
def test_a_float_that_equals_the_times_of_others_changes_none_of_them(kind):
    """A float time changes no equal integer time of another point, even if it comes first.

    A float represents 2 to the 60 exactly, so the two compare equal.
    """
    time_ns = 2**60
    points = [
        replace(number_point(n, {"a": str(n)}, time_ns=time_ns), start_time_unix_nano=time_ns)
        for n in range(3)
    ]
    name = "time_unix_nano" if kind == "time" else "start_time_unix_nano"
    points[0] = replace(points[0], **{name: float(time_ns)})
    events = map_metrics(metrics(sum_metric(*points)))
    texts = [body for body in encode_events(events).bodies if body]
    assert len(texts) == (2 if kind == "time" else 3)
    assert all(b'"timestamp_ns":1152921504606846976,' in text for text in texts)
    assert sum(b'"start_time_ns":1152921504606846976,' in text for text in texts) == 2
    histogram = replace(histogram_point(attributes={"a": "x"}), time_unix_nano=time_ns)
    odd = replace(histogram, attributes={"a": "y"}, time_unix_nano=float(time_ns))
    lines = LineProtocolEncoder().encode(map_metrics(metrics(histogram_metric(odd, histogram))))
    assert [why.reason for why in lines.refused.values()] == ["invalid_time"]


def test_histogram_twins_are_added_up_whole():
    """Added-up histograms keep the exemplars of both, and the larger maximum even if it is zero.

    Histograms of three different bounds stay three points.
    """
    one = histogram_point((1,), (), total=-5.0, least=-5.0, most=-5.0, exemplars=[exemplar(-5.0)])
    other = histogram_point((1,), (), total=0.0, least=0.0, most=0.0, exemplars=[exemplar(0.0)])
    point, *exemplars = map_metrics(metrics(histogram_metric(one, other)))
    fields = {key: point.fields[key] for key in ("count", "sum", "min", "max")}
    assert fields == {"count": 2, "sum": -5.0, "min": -5.0, "max": 0.0}
    assert sorted(event.fields["value"] for event in exemplars) == [-5.0, 0.0]
    bounds = [histogram_point((1, 0), (bound,)) for bound in (1.0, 2.0, 3.0)]
    assert len(map_metrics(metrics(histogram_metric(*bounds)))) == 3


def test_negative_buckets_of_exponential_twins_are_added_up():
    """Negative buckets are added up like positive ones, and an empty side stays empty."""
    one = exponential_point(scale=1, positive=(0, ()), negative=(4, (1, 2)), zero_count=0)
    other = exponential_point(scale=0, positive=(0, ()), negative=(2, (3,)), zero_count=0)
    (made,) = map_metrics(metrics(exponential_metric(one, other)))
    found = made.metric.negative
    assert +Counted(dict(enumerate(found.counts, found.offset))) == {2: 6}
    assert made.metric.positive.counts == []


def test_an_exponential_histogram_keeps_its_unit_and_its_description():
    """An exponential histogram keeps unit and description, though each point has a new metric."""
    (made,) = map_metrics(metrics(exponential_metric(exponential_point(), description="of carts")))
    assert (made.metric.unit, made.metric.description) == ("By", "of carts")


def test_foreign_integers_keep_all_their_digits():
    """A foreign integer keeps all its digits; a float would lose the last one."""

    class Size(IntEnum):
        LARGE = 2**53 + 1

    (made,) = map_metrics(metrics(gauge_metric(number_point(Size.LARGE))))
    assert made.fields["value"] == 2**53 + 1
    assert type(made.fields["value"]) is int


def test_every_loss_of_a_batch_is_told():
    """Losses of every metric in a batch are reported, not only of the first."""
    losses = []
    batch = metrics(gauge_metric(number_point(NAN)), sum_metric(number_point(INF)))
    assert len(map_metrics(batch, losses=losses)) == 0
    assert losses == [("non_finite", "temperature", 1), ("non_finite", "requests", 1)]


@pytest.mark.parametrize("unrecorded", [None, INF])
def test_an_unrecorded_min_costs_no_other_series_its_own(unrecorded):
    """A point without min and max does not remove them from other points, wherever it comes."""
    odd = histogram_point(attributes={"a": "x"}, least=unrecorded, most=unrecorded)
    made = map_metrics(metrics(histogram_metric(odd, histogram_point(attributes={"a": "y"}))))
    assert [("min" in event.fields, "max" in event.fields) for event in made] == [
        (False, False),
        (True, True),
    ]


@pytest.mark.parametrize("value", ["", None])
def test_an_empty_attribute_is_no_tag_in_any_series_of_its_keys(value):
    """An empty attribute makes no tag, even if its keys were seen before with values.

    InfluxDB refuses a line with `a=`.
    """
    points = [number_point(n, {"a": text, "n": str(n)}) for n, text in enumerate(("x", "y", value))]
    events = map_metrics(metrics(sum_metric(*points)))
    assert [event.tags.get("a") for event in events] == ["x", "y", None]
    assert b'"a":""' not in encode_events(events).bodies[2]
    assert b",a=," not in LineProtocolEncoder().encode(events).bodies[2]


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({"unit": "s"}, {"unit": "ms"}, "unit"),
        ({"description": "one"}, {"description": "other"}, "description"),
        ({"temporality": DELTA}, {"temporality": CUMULATIVE}, "temporality"),
        ({"monotonic": True}, {"monotonic": False}, "monotonic"),
    ],
)
def test_metrics_of_one_name_keep_what_tells_them_apart(one, other, told):
    """Metrics of one name keep their own unit, description, temporality and kind.

    Two instruments or views may share a name, but not each other's cache.
    """
    points = [number_point(1, {"n": n}) for n in "ab"]
    batch = metrics(sum_metric(points[0], **one), sum_metric(points[1], **other))
    first, second = map_metrics(batch)
    assert getattr(first.metric, told) != getattr(second.metric, told)
    gauge, total = map_metrics(
        metrics(gauge_metric(points[0], name="m"), sum_metric(points[1], name="m"))
    )
    assert (gauge.metric.type, total.metric.type) == ("gauge", "sum")


def test_digits_of_redacted_values_cannot_be_tried_out():
    """The digits of a redacted value are not Python's plain hash of it.

    Otherwise anybody could look the value up.
    """
    (event,) = map_metrics(
        metrics(sum_metric(number_point(1, {"user.id": "ada"}))), redact=("user.*",)
    )
    assert f"{hash('ada') & 0xFFFF_FFFF:08x}" not in event.tags["user.id"]


def test_a_collection_of_other_series_has_their_tags():
    """A collection of as many but different series gets its own tags, not cached ones."""
    mapper = MetricMapper(DEFAULT_RESOURCE_TAGS, "none", (), refuse)
    attributes = [{"n": n} for n in "abc"]
    for some in (attributes[:2], attributes[1:], attributes[:2]):
        batch = metrics(sum_metric(*[number_point(1, one) for one in some]))
        assert [event.tags["n"] for event in mapper.map(batch)] == [one["n"] for one in some]


def test_twins_are_added_up_in_every_collection():
    """Equal series are added up in every collection.

    Cumulative metrics repeat the attributes of the collection before.
    """
    mapper = MetricMapper(DEFAULT_RESOURCE_TAGS, "none", (), refuse)
    attributes = [{"n": 200}, {"n": "200"}]
    for _ in range(3):
        batch = metrics(sum_metric(*[number_point(1, one) for one in attributes]))
        assert [event.fields["value"] for event in mapper.map(batch)] == [2]


def test_an_attribute_of_a_metric_wins_over_the_resource_and_ours_over_both():
    """A metric's attribute overrides the resource's, and our own tags override both."""
    own = {"service.name": "own", "otel.scope.name": "own", "metric.name": "own"}
    point = histogram_point(attributes=own, exemplars=[exemplar(1.0)])
    made, its_exemplar = map_metrics(metrics(histogram_metric(point)))
    assert made.tags["service.name"] == "own"
    assert made.tags["otel.scope.name"] == "shop.checkout"
    assert its_exemplar.tags["metric.name"] == "latency"


def test_a_text_of_a_type_of_its_own_is_one_text():
    """A str Enum member as a tag value is its text, so that equal texts are one series."""
    from enum import Enum

    class Route(str, Enum):
        CART = "/cart"

    points = [number_point(1, {"r": "/x"}), number_point(2, {"r": Route.CART})]
    events = map_metrics(metrics(sum_metric(*points)))
    assert [(e.tags["r"], type(e.tags["r"])) for e in events] == [("/x", str), ("/cart", str)]


@pytest.mark.parametrize(("one", "other"), [(0.9, 1.4), (0.001, 10.0), (1e-200, 1e200)])
def test_exponential_twins_of_one_value_each_are_few_buckets(one, other):
    """Exponential histograms of one value each add up to few buckets.

    The SDK keeps a single value at scale 20, where a second and a millisecond are far apart.
    """
    reader = InMemoryMetricReader(
        preferred_temporality={Histogram: DELTA},
        preferred_aggregation={Histogram: ExponentialBucketHistogramAggregation()},
    )
    provider = MeterProvider([reader])
    histogram = provider.get_meter("m").create_histogram("latency")
    histogram.record(one, {"status": 200})
    histogram.record(other, {"status": "200"})
    (event,) = map_metrics(reader.get_metrics_data().resource_metrics)
    provider.shutdown()
    assert (
        event.fields["count"]
        == sum(event.metric.positive.counts + event.metric.negative.counts)
        + event.fields["zero_count"]
        == 2
    )
    assert len(event.metric.positive.counts) + len(event.metric.negative.counts) <= 160
    assert len(encode_events([event]).bodies[0]) < 2_000
