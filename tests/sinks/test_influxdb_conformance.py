"""The conformance suite for the InfluxDB sink, against real servers."""

import pytest

from otel_cbtop_exporter.encoding.line_protocol import LineProtocolEncoder
from otel_cbtop_exporter.events import Event
from tests.sinks.conformance import SinkConformance
from tests.sinks.influxdb_data import influxdb_sink

pytestmark = pytest.mark.influxdb


class _OnServer(SinkConformance):
    @pytest.fixture
    def server(self):
        raise NotImplementedError

    @pytest.fixture
    def sink(self, server):
        self.server = server
        self.bucket = server.new_bucket()
        sink = influxdb_sink(**server.options(self.bucket))
        yield sink
        sink.close(30)

    def arrived(self, sink):
        """Return the stored points as lines ordered by time, the only order that a server keeps."""
        events = []
        for measurement, tags, fields, time_ns in self.server.points(self.bucket, "conformance"):
            ours = {key: value for key, value in tags.items() if key != "schema_version"}
            events.append(Event(measurement, ours, fields, time_ns))
        events.sort(key=lambda event: event.timestamp_ns)
        return LineProtocolEncoder().encode(events).bodies


class TestInfluxDB2(_OnServer):
    """InfluxDB 2.7."""

    @pytest.fixture
    def server(self, influxdb2):
        return influxdb2


class TestInfluxDB1(_OnServer):
    """InfluxDB 1.8, through its compatibility API."""

    @pytest.fixture
    def server(self, influxdb1):
        return influxdb1
