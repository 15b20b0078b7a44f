"""What the InfluxDB sink reports about values that a point cannot hold."""

import json
import math
import threading

from line_protocol_parser import parse_line

from otel_cbtop_exporter.config import InfluxDBConfig
from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.sinks.influxdb import InfluxDBSink
from otel_cbtop_exporter.streamer import EventStreamer
from tests.builders import log
from tests.mappers import map_logs

OPTIONS = {"url": "http://127.0.0.1:9", "bucket": "b"}


def hand_made(fields, tags=None):
    return Event("m", tags or {}, fields, 1)


def test_values_left_out_and_cut_are_told_with_the_batch_that_lost_them():
    """Each batch reports its own lost values by reason, and none of earlier batches."""
    sink = InfluxDBSink(InfluxDBConfig(**OPTIONS))
    poor = hand_made({"x": 1, "y": math.nan}, {"long": "é" * 35_000})
    assert sink.encode([poor, poor]).values_lost == {"field_left_out": 2, "tag_cut": 2}
    assert sink.encode([hand_made({"x": 1})]).values_lost == {}
    assert sink.encode([hand_made({"x": 1, "y": math.inf})]).values_lost == {"field_left_out": 1}


def test_values_lost_are_told_along_with_refused_events():
    """A refused event does not hide the values that its neighbours lost."""
    sink = InfluxDBSink(InfluxDBConfig(**OPTIONS))
    encoded = sink.encode([hand_made({"x": math.nan}), hand_made({"x": 1, "y": math.nan})])
    assert [rejection.reason for rejection in encoded.rejected] == ["no_field"]
    assert encoded.values_lost == {"field_left_out": 2}


def test_every_loss_is_told_once_from_any_thread():
    """Losses reported to eight threads that encode at once add up."""
    sink = InfluxDBSink(InfluxDBConfig(**OPTIONS))
    told = []

    def work():
        poor = hand_made({"x": 1, "y": math.nan})
        told.extend(sink.encode([poor]).values_lost for _ in range(500))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(lost.get("field_left_out", 0) for lost in told) == 4_000


def test_texts_that_are_too_long_for_influxdb_cost_no_point():
    """A text of over 1 MiB is cut: 2.x would refuse the whole point.

    Other texts are unchanged.
    """
    mib = 1024 * 1024
    sink = InfluxDBSink(InfluxDBConfig(url="http://localhost:8086", bucket="b"))
    attributes = {"prompt": 'ä"' * mib, "list": ["x" * 100] * 20_000, "small": 1}
    long = [
        log("b" * (mib + 1)),
        log("€" * mib),
        log("hello", attributes),
        log("usual", {"a": "b"}),
    ]
    encoded = sink.encode(map_logs(*long))
    assert encoded.values_lost == {"field_cut": 4}
    points = [parse_line(record.body.decode()) for record in encoded.records]
    bodies = [point["fields"]["body"] for point in points]
    assert bodies == ["b" * mib, "€" * (mib // 3), "hello", "usual"]
    left = json.loads(points[2]["fields"]["attributes"])
    assert left == {"prompt": ('ä"' * mib).encode()[:65_536].decode("utf-8", "ignore"), "small": 1}
    assert json.loads(points[3]["fields"]["attributes"]) == {"a": "b"}
    assert max(len(text.encode()) for p in points for text in map(str, p["fields"].values())) <= mib


def test_lost_values_are_in_the_health_and_logged_once(caplog):
    """Lost values are counted in the health and logged once, while their events are kept."""
    streamer = EventStreamer(
        "influxdb", influxdb=OPTIONS, delivery="direct", retry={"max_retries": 0}
    )
    for _ in range(3):
        streamer.send(hand_made({"x": 1, "y": math.nan}))
        streamer.flush()
    streamer.shutdown()
    health = streamer.health()
    assert health.values_lost == {"field_left_out": 3}
    assert health.events_rejected == 0
    logged = [r.getMessage() for r in caplog.records if "field_left_out" in r.getMessage()]
    assert logged == ["sink influxdb: 1 value could not be written whole: field_left_out"]


def test_every_kind_of_event_in_a_batch_is_refused_and_counted_in_its_place():
    """Refusals and losses of different kinds of events are counted in the right place.

    Each kind of event is rendered separately.
    """
    sink = InfluxDBSink(InfluxDBConfig(**OPTIONS))
    poor = hand_made({"x": 1, "y": math.nan})
    empty = hand_made({"x": math.nan}, {"which": "empty"})
    made = sink.encode([poor, *map_logs(log("x")), poor, empty])
    assert [rejection.record.body for rejection in made.rejected] == [
        b"m,schema_version=1,which=empty  1"
    ]
    assert made.values_lost == {"field_left_out": 3}
