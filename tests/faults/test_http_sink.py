"""The suite's own sink and receiver keep their contracts, so that its scenarios can be trusted."""

import pytest

from otel_cbtop_exporter.config import InfluxDBConfig
from otel_cbtop_exporter.sinks.influxdb import InfluxDBSink
from tests.faults import receiver as rules
from tests.faults.http_sink import HttpSink
from tests.faults.receiver import Receiver
from tests.sinks.conformance import SinkConformance, numbered_events, records_of

pytestmark = pytest.mark.faults


@pytest.fixture
def receiver():
    with Receiver() as started:
        yield started


@pytest.fixture(params=["http", "influxdb"])
def sink(request, receiver):
    if request.param == "http":
        made = HttpSink(receiver.url)
    else:
        made = InfluxDBSink(
            InfluxDBConfig(url=receiver.url, org="o", bucket="{signal}", token="a-token")
        )
    yield made
    made.close(1)


def identified(sink, count, first=0):
    """Make records with the ids r:first, r:first+1, ..."""
    events = numbered_events(count)
    for number, event in enumerate(events):
        event.fields["padding"] = f"#r:{first + number}#"
    return records_of(sink, events)


def write(sink, records, seconds=10):
    return sink.write(records, seconds)


class TestHttpSink(SinkConformance):
    """Conformance of the sink, with a receiver that keeps the bodies."""

    @pytest.fixture
    def sink(self, receiver):
        self.bodies = []

        def keep(request):
            self.bodies += request.lines
            return rules.take(request)

        receiver.rule = keep
        sink = HttpSink(receiver.url)
        yield sink
        sink.close(1)

    def arrived(self, sink):
        return self.bodies


def test_what_arrives_is_counted_once_and_in_order(receiver, sink):
    """The receiver lists ids by lane in order of arrival, and counts duplicates."""
    records = identified(sink, 10)
    write(sink, records[5:])
    write(sink, records)
    lane = records[0].lane
    assert receiver.ids(lane) == [f"r:{n}" for n in [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]]
    assert receiver.duplicates() == 5
    receiver.wait_until(lambda: receiver.acknowledged == 15)
    assert receiver.statuses() == [204, 204]


def test_down_is_refused_and_up_is_the_same_port(receiver, sink):
    """While the receiver is down nobody can connect; when it is up again it has the same port."""
    records = identified(sink, 3)
    assert len(write(sink, records).delivered) == 3
    receiver.down()
    result = write(sink, records)
    assert list(result.kept) == records
    assert result.error_type == "ConnectionRefusedError"
    receiver.up()
    assert len(write(sink, records).delivered) == 3


@pytest.mark.parametrize(
    ("rule", "error_type", "split"),
    [
        (lambda: rules.refuse(503, "7"), "503", ""),
        (lambda: rules.refuse(429, "7"), "429", ""),
        (lambda: rules.too_large_over(10), "413", "too_large"),
        (lambda: rules.broken_by(lambda id_: id_ == "r:1"), "500", ""),
        (lambda: rules.cutting(1, "unanswered"), None, ""),
        (lambda: rules.cutting(1, "half"), None, ""),
    ],
    ids=["503", "429", "413", "500", "unanswered", "half an answer"],
)
def test_refusals_keep_every_record(receiver, sink, rule, error_type, split):
    """Both sinks keep the records of a refused request, and classify the refusal correctly."""
    receiver.rule = rule()
    records = identified(sink, 3)
    result = write(sink, records)
    assert list(result.kept) == records
    assert result.split_reason == split
    assert result.retry_after_seconds == (7 if error_type in {"503", "429"} else None)
    assert result.error_type == error_type or error_type is None
    assert result.error_type
    # What is cut instead of answered has been stored.
    assert len(receiver.ids()) == (0 if error_type else 3)
    assert receiver.acknowledged == 0


def test_a_poisoned_request_is_refused_and_nothing_of_it_stored(receiver, sink):
    """A request with a bad record is refused whole.

    InfluxDB names the bad line; the other protocol asks for a split.
    """
    receiver.rule = rules.poisoned_by(lambda id_: id_ == "r:1")
    records = identified(sink, 3)
    result = write(sink, records)
    if sink.name == "influxdb":
        assert [r.record for r in result.rejected] == [records[1]]
        assert result.rejected[0].detail == "missing fields"
    else:
        assert result.split_reason == "invalid"
    assert receiver.ids() == []


def test_a_missing_lane_is_missing_alone(receiver, sink):
    """A missing lane is answered with 404, and other lanes are accepted."""
    records = identified(sink, 3)
    receiver.rule = rules.without_lane(records[0].lane)
    assert write(sink, records).error_type == "404"
    receiver.rule = rules.without_lane("other")
    assert len(write(sink, records).delivered) == 3


def test_a_request_can_be_cut_in_its_middle(receiver, sink):
    """A request that is cut while it is read is not stored."""
    receiver.cut_requests = 1
    records = identified(sink, 5_000)
    assert list(write(sink, records).kept) == records
    assert receiver.ids() == []
    assert len(write(sink, records).delivered) == 5_000


def test_a_hanging_receiver_answers_nothing(receiver, sink):
    """The sink gives up on a hanging receiver in time; nothing is stored, and it can be closed."""
    receiver.hangs = True
    records = identified(sink, 3)
    result = write(sink, records, 0.2)
    assert list(result.kept) == records
    assert result.error_type == "timeout"
    assert receiver.ids() == []
