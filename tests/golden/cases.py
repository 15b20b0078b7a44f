"""The golden cases of schema version 1: SDK data in, events out.

`python -m tests.golden.cases NAME ...` writes the files of new cases. Files of a released version
are never rewritten.
"""

import sys
from pathlib import Path

from opentelemetry._logs import SeverityNumber
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind
from opentelemetry.trace.status import Status, StatusCode

from otel_cbtop_exporter import event_from_sample
from otel_cbtop_exporter.encoding.event_json import encode_events
from otel_cbtop_exporter.encoding.line_protocol import LineProtocolEncoder
from tests.builders import (
    CUMULATIVE,
    START_NS,
    context,
    exemplar,
    exponential_metric,
    exponential_point,
    gauge_metric,
    histogram_metric,
    histogram_point,
    link,
    log,
    metrics,
    number_point,
    span,
    span_event,
    sum_metric,
)
from tests.mappers import map_logs, map_metrics, map_spans

FOLDER = Path(__file__).parent / "v1"

EVERY_TYPE = {
    "bool": True,
    "int": 7,
    "float": 1.5,
    "str": "text",
    "bytes": b"\x00\xff",
    "strs": ("a", "b"),
    "ints": (1, 2),
    "mixed": (1, "a", None, 2.5, False),
    "map": {"inner": {"deep": (1,)}, "none": None},
    "none": None,
    "empty": "",
}

HARD_TEXTS = {
    "unicode": "Grüße, 世界 👋",
    "lone surrogate": "a\ud800b",
    "newline": "one\ntwo\r\nthree",
    "quotes": "\"double\" 'single'",
    "backslash": "C:\\dir\\",
    "control": "\x00\x01\x1f\x7f\x85\u2028",
    "comma,equals=space ": "a,b=c d",
    "null": "null",
}

HARD_NUMBERS = {
    "int64.max": 2**63 - 1,
    "int64.min": -(2**63),
    "beyond": 2**70,
    "nan": float("nan"),
    "inf": float("inf"),
    "ninf": float("-inf"),
    "tiny": 5e-324,
    "huge": 1.7976931348623157e308,
    "negative zero": -0.0,
    "nested": (float("nan"), {"x": float("inf")}),
}

# The attributes of a request, as the semantic conventions name them.
REQUEST = {
    "http.request.method": "GET",
    "url.path": "/cart/7",
    "http.route": "/cart/<id>",
    "http.response.status_code": 200,
    "client.address": "127.0.0.1",
}


def _exception_event():
    return span_event(
        "exception",
        {
            "exception.type": "ValueError",
            "exception.message": "no stock",
            "exception.stacktrace": 'Traceback:\n  File "app.py"\nValueError: no stock\n',
        },
    )


def _spans():
    return {
        "span": map_spans(span(attributes=REQUEST)),
        "span_child": map_spans(
            span("SELECT", parent=context(span_id=1), kind=SpanKind.CLIENT, duration=0)
        ),
        "span_kinds": map_spans(*(span(kind.name, kind=kind) for kind in SpanKind)),
        "span_error": map_spans(
            span(
                attributes={**REQUEST, "error.type": "ValueError"},
                events=[_exception_event()],
                status=Status(StatusCode.ERROR, "no stock"),
            )
        ),
        "span_ok": map_spans(span(status=Status(StatusCode.OK))),
        "span_events": map_spans(
            span(events=[span_event(), span_event("retry", EVERY_TYPE, dropped=2)])
        ),
        "span_links": map_spans(
            span(links=[link(), link({"why": "batch"}, state=[("v", "1")], dropped=1)])
        ),
        "span_dropped_counts": map_spans(span(dropped=(1, 2, 3))),
        "span_trace_state": map_spans(span(ctx=context(state=[("vendor", "1"), ("b", "2")]))),
        "span_never_ended": map_spans(span(duration=None)),
        "span_attribute_types": map_spans(span(attributes=EVERY_TYPE)),
        "span_hard_texts": map_spans(span("hard\n\ud800name", attributes=HARD_TEXTS)),
        "span_hard_numbers": map_spans(span(attributes=HARD_NUMBERS)),
        "span_tag_types": map_spans(
            span(
                attributes={
                    "http.method": True,
                    "http.status_code": 200.0,
                    "rpc.system": ("a", "b"),
                    "db.system": "",
                }
            )
        ),
        "span_long_text": map_spans(span(attributes={"db.query.text": "x" * 2000})),
        "span_colliding_keys": map_spans(
            span(
                attributes={
                    "duration_ns": "mine",
                    "span.name": "mine",
                    "time": 1,
                    "_time": 2,
                    "error": "mine",
                    "value": 3,
                }
            )
        ),
        "span_no_scope": map_spans(span(scope=None)),
        "span_scope_attributes": map_spans(
            span(scope=InstrumentationScope("s", "", attributes={"library": "x", "debug": True}))
        ),
        "span_resource_tags": map_spans(
            span(
                resource=Resource(
                    {
                        "service.name": "shop",
                        "service.namespace": "web",
                        "service.instance.id": "i-1",
                        "deployment.environment.name": "prod",
                        "k8s.pod.name": "shop-1",
                        "cloud.region": "eu",
                        "process.command_args": ("a", "b"),
                    }
                )
            )
        ),
    }


def _logs():
    return {
        "log": map_logs(log()),
        "log_no_trace": map_logs(log(trace_id=None, span_id=None)),
        "log_observed_time_only": map_logs(log(timestamp=None)),
        "log_structured_body": map_logs(log({"order": 7, "items": [1, 2.5, None, b"\x01"]})),
        "log_body_types": map_logs(
            *(log(body) for body in (True, 7, 1.5, b"\xff", ["a"], None, ""))
        ),
        "log_event_name": map_logs(log(None, event_name="order.placed", attributes={"order": 7})),
        "log_exception": map_logs(
            log(
                "failed",
                {"exception.type": "KeyError", "exception.message": "'x'"},
                severity=SeverityNumber.ERROR,
                severity_text="ERROR",
            )
        ),
        "log_attribute_types": map_logs(log(attributes=EVERY_TYPE, dropped=3)),
        "log_hard_texts": map_logs(*(log(text, HARD_TEXTS) for text in HARD_TEXTS.values())),
        "log_hard_numbers": map_logs(log(attributes=HARD_NUMBERS)),
        "log_nothing": map_logs(
            log(
                None,
                severity=None,
                severity_text=None,
                observed=None,
                trace_id=None,
                span_id=None,
            )
        ),
    }


def _metrics():
    series = {"http.route": "/cart", "cached": True, "shard": 7, "weight": 0.5}
    traced = exemplar(9.0, attributes={"user": "u1"})
    return {
        "metric_counter": map_metrics(metrics(sum_metric(number_point(5, series)))),
        "metric_counter_float": map_metrics(metrics(sum_metric(number_point(2.5)))),
        "metric_counter_cumulative": map_metrics(
            metrics(sum_metric(number_point(5), temporality=CUMULATIVE, description="All of them"))
        ),
        "metric_up_down_counter": map_metrics(
            metrics(sum_metric(number_point(-3), monotonic=False, temporality=CUMULATIVE))
        ),
        "metric_gauge": map_metrics(
            metrics(gauge_metric(number_point(-1.5), number_point(3, series)))
        ),
        "metric_histogram": map_metrics(metrics(histogram_metric(histogram_point()))),
        "metric_histogram_no_min_max": map_metrics(
            metrics(histogram_metric(histogram_point(least=None, most=None)))
        ),
        "metric_histogram_no_bounds": map_metrics(
            metrics(histogram_metric(histogram_point(counts=(3,), bounds=())))
        ),
        "metric_histogram_bounds": map_metrics(
            metrics(
                histogram_metric(
                    histogram_point(counts=(1,) * 6, bounds=(-1.0, 0, 0.005, 2.5, 1e16))
                )
            )
        ),
        "metric_histogram_exemplars": map_metrics(
            metrics(
                histogram_metric(
                    histogram_point(
                        exemplars=[
                            exemplar(2.0, span_id=1),
                            traced,
                            exemplar(50.0, trace_id=None, span_id=None),
                        ]
                    )
                )
            )
        ),
        "metric_exponential_histogram": map_metrics(
            metrics(exponential_metric(exponential_point()))
        ),
        "metric_exponential_histogram_wide": map_metrics(
            metrics(
                exponential_metric(
                    exponential_point(
                        scale=0, positive=(-3, (1, 2, 3, 4)), negative=(1, (5, 0, 6)), least=-8.0
                    )
                )
            )
        ),
        "metric_exponential_histogram_fine": map_metrics(
            metrics(
                exponential_metric(
                    exponential_point(scale=20, positive=(1 << 19, (7, 8)), exemplars=[traced])
                )
            )
        ),
        "metric_number_exemplars": map_metrics(
            metrics(
                sum_metric(
                    number_point(5, exemplars=[exemplar(1), exemplar(2, time_ns=START_NS + 900)])
                )
            ),
            exemplars="all",
        ),
        "metric_named_like_ours": map_metrics(
            metrics(
                gauge_metric(number_point(1), name="spans"),
                gauge_metric(number_point(1), name="logs"),
            )
        ),
        "metric_hard_tags": map_metrics(metrics(sum_metric(number_point(1, HARD_TEXTS)))),
        "metric_tag_collisions": map_metrics(
            metrics(
                sum_metric(
                    number_point(
                        1,
                        {
                            "value": "a",
                            "time": "b",
                            "_field": "c",
                            "le_5": "d",
                            "host.name": "point wins",
                            "otel.scope.name": "ours wins",
                        },
                    )
                )
            )
        ),
        "metric_beyond_int64": map_metrics(
            metrics(sum_metric(number_point(2**70), number_point(-(2**63), {"a": "b"})))
        ),
    }


def cases():
    """Return the events of every case, by name."""
    sample = event_from_sample(
        "cpu.load",
        0.5,
        {"core": "0", "empty": ""},
        timestamp_ns=START_NS,
        correlation_id="cbtop-1-1",
    )
    return {**_spans(), **_logs(), **_metrics(), "sample": [sample]}


def as_json(events):
    return b"".join(body + b"\n" for body in encode_events(events).bodies)


def as_lines(events):
    encoded = LineProtocolEncoder().encode(events)
    return b"".join(line + b"\n" for line in encoded.bodies)


if __name__ == "__main__":
    made = cases()
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or made:
        (FOLDER / f"{name}.jsonl").write_bytes(as_json(made[name]))
        (FOLDER / f"{name}.lp").write_bytes(as_lines(made[name]))
