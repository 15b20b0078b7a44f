"""Values framed for a Confluent Schema Registry, against a real registry and a real broker."""

import contextlib
import json
import logging
import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.json_schema import JSONDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.delivery.pipeline import Pipeline
from otel_cbtop_exporter.sinks import kafka_registry
from otel_cbtop_exporter.sinks.kafka import KafkaSink
from tests.delivery.spools import make_folder
from tests.servers.kafka_broker import broker  # noqa: F401  a fixture
from tests.sinks.kafka_data import encoded, kafka_sink, spans

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "servers" / "registry.sh"
SCHEMA = (ROOT / "otel_cbtop_exporter" / "schemas" / "event_v1.json").read_text("utf-8")


@pytest.fixture(scope="module")
def registry_url(tmp_path_factory):
    """Provide a schema registry, or the running one that CBTOP_TEST_SCHEMA_REGISTRY=URL names."""
    if running := os.environ.get("CBTOP_TEST_SCHEMA_REGISTRY"):
        yield running
        return
    folder = tmp_path_factory.mktemp("registry") / "registry"
    started = subprocess.run(
        [SCRIPT, "start", folder], stdout=subprocess.PIPE, text=True, check=True
    )
    try:
        yield started.stdout.strip()
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True)


@pytest.fixture
def new_topic(broker):  # noqa: F811  the fixture that is imported above
    return broker.new_topic


@pytest.fixture
def sink_for(broker, registry_url):  # noqa: F811  the fixture
    made = []

    def make(topic, url=registry_url, **options):
        made.append(kafka_sink(broker.bootstrap, topic, schema_registry_url=url, **options))
        return made[-1]

    yield make
    for sink in made:
        sink.close(10)


def ask(url, path, body=None, method=None):
    request = urllib.request.Request(
        url + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/vnd.schemaregistry.v1+json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def test_values_decode_with_the_clients_own_deserializer(broker, registry_url, sink_for):  # noqa: F811
    """The registry client's own deserializer reads and validates what the sink wrote."""
    topic = broker.new_topic()
    sink = sink_for(topic)
    records = encoded(sink, spans(20))
    result = sink.write(records, 30)
    assert result.delivered == records, result.error
    with SchemaRegistryClient({"url": registry_url}) as client:
        deserialize = JSONDeserializer(None, schema_registry_client=client)
        context = SerializationContext(topic, MessageField.VALUE)
        read = [deserialize(message.value(), context) for message in broker.read_all(topic)]
    assert read == [json.loads(record.body) for record in records]


def test_a_schema_is_registered_once_under_the_topics_subject(broker, registry_url, sink_for):  # noqa: F811
    """Many writes, and a second process of the same version, register one version of the schema."""
    topic = broker.new_topic()
    for _ in range(2):
        sink = sink_for(topic)
        for _ in range(3):
            assert len(sink.write(encoded(sink, spans(5)), 30).delivered) == 5
    assert ask(registry_url, f"/subjects/{topic}-value/versions") == [1]
    version = ask(registry_url, f"/subjects/{topic}-value/versions/1")
    assert version["schemaType"] == "JSON"
    dialect = {"$schema": "http://json-schema.org/draft-07/schema#"}
    assert json.loads(version["schema"]) == json.loads(SCHEMA) | dialect
    prefixes = {message.value()[:5] for message in broker.read_all(topic)}
    assert prefixes == {b"\0" + version["id"].to_bytes(4, "big")}


def test_a_schema_that_is_not_compatible_is_refused(broker, registry_url, sink_for):  # noqa: F811
    """Records with an incompatible schema are kept, and delivered once that is resolved.

    The error says what to do.
    """
    topic = broker.new_topic()
    other = json.loads(SCHEMA) | {"$schema": "http://json-schema.org/draft-07/schema#"}
    other["$defs"]["Event"]["properties"]["measurement"] = {"type": "integer"}
    subject = f"/subjects/{topic}-value"
    ask(registry_url, f"{subject}/versions", {"schemaType": "JSON", "schema": json.dumps(other)})
    ask(registry_url, f"/config/{topic}-value", {"compatibility": "FULL"}, "PUT")
    sink = sink_for(topic)
    records = encoded(sink, spans(5))
    refused = sink.write(records, 10)
    assert refused.kept == records
    assert refused.error_type == "schema_registry"
    assert f"another schema for {topic}-value" in refused.error
    assert broker.read_all(topic) == []
    with contextlib.suppress(urllib.error.HTTPError):
        ask(registry_url, f"/config/{topic}-value", {"compatibility": "NONE"}, "PUT")
    assert sink.write(records, 30).delivered == records


def test_a_registry_that_is_away(new_topic, sink_for, caplog):
    """With the registry away, records are kept in time, and no log line shows the password."""
    caplog.set_level(logging.DEBUG)
    login = {"basic.auth.user.info": "user:hush-hush"}
    sink = sink_for(new_topic(), "http://127.0.0.1:1", schema_registry_config=login)
    records = encoded(sink, spans(5))
    result = sink.write(records, 3)
    assert result.kept == records
    assert "kafka.schema_registry_url" in result.error
    assert "hush-hush" not in result.error + caplog.text


def test_options_of_the_client_are_texts_but_for_its_numbers(new_topic, sink_for):
    """Client options stay text, such as a token of digits, except for numbers such as a timeout."""
    token = {
        "bearer.auth.credentials.source": "STATIC_TOKEN",
        "bearer.auth.token": "12345",
        "bearer.auth.logical.cluster": "67",
        "bearer.auth.identity.pool.id": "8",
    }
    sink = sink_for(
        new_topic(), schema_registry_config={**token, "timeout": "2.5", "max.retries": "1"}
    )
    records = encoded(sink, spans(5))
    assert sink.write(records, 30).delivered == records


def test_where_applications_may_not_register_the_schema_is_looked_up(new_topic, sink_for, tmp_path):
    """Without auto-registration the schema is looked up.

    A missing schema is reported, and found once it is there; properties may be in the file.
    """
    topic = new_topic()
    file = tmp_path / "kafka.properties"
    file.write_text("schema.registry.auto.register.schemas=false\n")
    sink = sink_for(topic, config_file=str(file))
    records = encoded(sink, spans(5))
    missing = sink.write(records, 10)
    assert missing.kept == records
    assert f"does not hold the event's schema for {topic}-value" in missing.error
    register = sink_for(topic)
    assert register.write(encoded(register, spans(1)), 30).delivered
    assert sink.write(records, 30).delivered == records


def test_a_property_that_the_registrys_client_does_not_know_is_named(new_topic, sink_for):
    """An unknown registry property is named, and no value of another one is shown."""
    config = {"use.latest.version": "true", "basic.auth.user.info": "user:hush-hush"}
    sink = sink_for(new_topic(), schema_registry_config=config)
    result = sink.write(encoded(sink, spans(5)), 10)
    assert "it knows no use.latest.version" in result.error
    assert "hush-hush" not in result.error


def test_a_registry_that_goes_away_holds_up_no_topic_that_it_knows(new_topic, sink_for):
    """Known schema ids are kept, so a registry that goes away only blocks new topics."""
    sink = sink_for(new_topic())
    records = encoded(sink, spans(5))
    assert sink.write(records, 30).delivered == records
    msgspec.structs.force_setattr(sink._options, "schema_registry_url", "http://127.0.0.1:1")
    other = encoded(sink_for(new_topic()), spans(5))
    assert sink.write(other, 3).kept == other
    assert sink.write(records, 30).delivered == records


@pytest.mark.parametrize("is_framed", [False, True])
def test_what_waits_for_another_registry_or_none_is_left_to_it(
    broker,  # noqa: F811  the fixture
    registry_url,
    tmp_path,
    is_framed,
):
    """A dead process's records are adopted only by a sink that puts the same prefix on.

    Sinks with and without a registry may share brokers and a spool's folder.
    """
    topic = broker.new_topic()
    registry = {"schema_registry_url": registry_url}
    own, other = (registry, {}) if is_framed else ({}, registry)
    sink = kafka_sink(broker.bootstrap, topic, **own)
    left = encoded(sink, spans(5))
    spool = make_folder(tmp_path, destination=sink.destination)
    spool.append(left)
    spool.close()
    for start, options in ((5, other), (6, own)):
        kafka = {"bootstrap_servers": broker.bootstrap, "topic": topic, **options}
        config = ExporterConfig(sink="kafka", kafka=kafka, spool={"path": str(tmp_path)})
        pipeline = Pipeline(KafkaSink(config.kafka), config)
        assert pipeline.submit(spans(1, start=start), 10)
        assert pipeline.force_flush(30)
        pipeline.release(3)
    arrived = [message.value() for message in broker.read_all(topic)]
    assert len(arrived) == 7
    without = [value for value in arrived if not value.startswith(b"\0")]
    ours = [value[5:] for value in arrived if value not in without] if is_framed else without
    assert ours[:-1] == [record.body for record in left]


@pytest.mark.parametrize("text", ["many", "nan", "inf", "²"])
def test_a_number_of_the_client_that_is_none(sink_for, text):
    """An option that should be a number keeps the records; the error names it without its value."""
    sink = sink_for("any", schema_registry_config={"max.retries": text})
    records = encoded(sink, spans(5))
    result = sink.write(records, 10)
    assert result.kept == records
    assert "max.retries is not a number" in result.error
    assert text not in result.error


@pytest.mark.parametrize(("timeout_seconds", "longest"), [(0.4, 5.0), (20.0, 0.2)])
def test_a_registry_that_does_not_answer_costs_the_timeout(monkeypatch, timeout_seconds, longest):
    """A silent registry costs the timeout, or a request's maximum: other topics wait meanwhile."""
    monkeypatch.setattr(kafka_registry, "_LONGEST_REQUEST_SECONDS", longest)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        sink = kafka_sink("127.0.0.1:1", "t", schema_registry_url=url)
        records = encoded(sink, spans(5))
        began = time.monotonic()
        assert sink.write(records, timeout_seconds).kept == records
        assert time.monotonic() - began < 3
        sink.close(5)


def test_a_registry_that_fails_is_asked_once_a_write():
    """A failing registry is asked once per write, since delivery does the retries.

    Its message becomes one line.
    """

    class Broken(BaseHTTPRequestHandler):
        def do_POST(self):
            paths.append(self.path)
            body = json.dumps({"error_code": 50001, "message": "a\nb" + "c" * 999}).encode()
            self.send_response(500)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    paths = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        sink = kafka_sink("127.0.0.1:1", "t", schema_registry_url=url)
        result = sink.write(encoded(sink, spans(5)), 20)
        sink.close(5)
        server.shutdown()
        thread.join()
    assert len(paths) == 1
    assert f"for t-value (500: a b{'c' * 117})" in result.error
