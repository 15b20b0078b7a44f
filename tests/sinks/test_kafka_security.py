"""Logins, TLS and permissions, against a real broker that requires them."""

import json
import logging
import re
import threading
import time
from base64 import urlsafe_b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.delivery.pipeline import Pipeline
from otel_cbtop_exporter.sinks.kafka import KafkaSink
from tests.servers.certificates import make_authority, make_certificate
from tests.servers.kafka_broker import start_broker
from tests.sinks.kafka_data import encoded, kafka_sink, send, spans

pytestmark = pytest.mark.kafka

DOCUMENT = Path(__file__).parents[2] / "docs" / "kafka.md"
PASSWORD = "right-secret"
OAUTH = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required "


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    make_authority(folder)
    make_authority(folder, "other")
    make_certificate(folder, "server")
    make_certificate(folder, "client")
    return folder


@pytest.fixture(scope="module")
def broker(tmp_path_factory, certificates):
    """Provide a broker with users and permissions, whose SSL listener wants a client certificate.

    Alice may write anywhere, bob and dora nowhere.
    """
    with start_broker(
        tmp_path_factory.mktemp("kafka") / "broker",
        f"user=alice:{PASSWORD}",
        f"user=bob:{PASSWORD}",
        f"user=dora:{PASSWORD}",
        f"tls={certificates}",
        "auto.create.topics.enable=false",
        "listener.name.ssl.ssl.client.auth=required",
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users=User:ANONYMOUS;User:alice;User:CN=client;User:carol",
        "listener.name.sasl_plaintext.sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512,PLAIN,OAUTHBEARER",
        f'listener.name.sasl_plaintext.oauthbearer.sasl.jaas.config={OAUTH}unsecuredLoginStringClaim_sub="x";',
    ) as started:
        yield started


@pytest.fixture
def sink_for(broker):
    made = []

    def make(listener, topic, config, **options):
        config = {"security.protocol": listener.lower(), **config}
        made.append(kafka_sink(broker.listeners[listener], topic, config=config, **options))
        return made[-1]

    yield make
    for sink in made:
        sink.close(10)


def login(user="alice", password=PASSWORD, mechanism="SCRAM-SHA-256"):
    return {"sasl.mechanism": mechanism, "sasl.username": user, "sasl.password": password}


def allow(broker, user, topic, operation=AclOperation.WRITE):
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    binding = AclBinding(
        ResourceType.TOPIC,
        topic,
        ResourcePatternType.LITERAL,
        f"User:{user}",
        "*",
        operation,
        AclPermissionType.ALLOW,
    )
    for done in admin.create_acls([binding]).values():
        done.result(30)


def assert_arrives(broker, sink, topic):
    records = encoded(sink, spans(20))
    result = sink.write(records, 30)
    assert result.delivered == records, result.error
    assert [m.value() for m in broker.read_all(topic)] == [record.body for record in records]


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_login_with_a_password(broker, sink_for, mechanism):
    """SASL with a password works over a plaintext connection."""
    topic = broker.new_topic()
    assert_arrives(broker, sink_for("SASL_PLAINTEXT", topic, login(mechanism=mechanism)), topic)


def test_login_with_a_token(broker, sink_for):
    """OAUTHBEARER gets its token, here an unsecured one, through the sink."""
    topic = broker.new_topic()
    config = {
        "sasl.mechanism": "OAUTHBEARER",
        "enable.sasl.oauthbearer.unsecure.jwt": "true",
        "sasl.oauthbearer.config": "principal=carol",
    }
    assert_arrives(broker, sink_for("SASL_PLAINTEXT", topic, config), topic)


class TokenEndpoint(BaseHTTPRequestHandler):
    """Gives carol a token, unsecured as the broker under test accepts it."""

    def do_POST(self):
        now = int(time.time())
        claims = {"sub": "carol", "iat": now, "exp": now + 3600}
        parts = [urlsafe_b64encode(json.dumps(p).encode()) for p in ({"alg": "none"}, claims)]
        token = b".".join(part.rstrip(b"=") for part in parts).decode() + "."
        body = json.dumps({"access_token": token, "token_type": "Bearer", "expires_in": 3600})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


def test_login_with_a_token_of_a_provider(broker, sink_for):
    """OAUTHBEARER with OpenID Connect fetches its token over HTTP."""
    topic = broker.new_topic()
    with ThreadingHTTPServer(("127.0.0.1", 0), TokenEndpoint) as endpoint:
        server = threading.Thread(target=endpoint.serve_forever)
        server.start()
        config = {
            "sasl.mechanism": "OAUTHBEARER",
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.token.endpoint.url": f"http://127.0.0.1:{endpoint.server_port}/",
            "sasl.oauthbearer.client.id": "telemetry",
            "sasl.oauthbearer.client.secret": PASSWORD,
            "sasl.oauthbearer.scope": "kafka",
        }
        try:
            assert_arrives(broker, sink_for("SASL_PLAINTEXT", topic, config), topic)
        finally:
            endpoint.shutdown()
            server.join()


def test_tls_with_an_authority_of_one_s_own(broker, sink_for, certificates):
    """A broker whose certificate is signed by the authority of ssl.ca.location is trusted."""
    topic = broker.new_topic()
    config = {"ssl.ca.location": str(certificates / "ca.pem"), **login()}
    assert_arrives(broker, sink_for("SASL_SSL", topic, config), topic)


def test_mutual_tls(broker, sink_for, certificates):
    """The client is identified by its certificate."""
    topic = broker.new_topic()
    config = {
        "ssl.ca.location": str(certificates / "ca.pem"),
        "ssl.certificate.location": str(certificates / "client.crt"),
        "ssl.key.location": str(certificates / "client.key"),
    }
    assert_arrives(broker, sink_for("SSL", topic, config), topic)


def test_mutual_tls_without_a_certificate(broker, sink_for, certificates):
    """Without the client certificate that a broker wants, records are kept."""
    sink = sink_for("SSL", broker.new_topic(), {"ssl.ca.location": str(certificates / "ca.pem")})
    records = encoded(sink, spans(5))
    result = sink.write(records, 3)
    assert result.kept == records
    assert "ssl.certificate.location" in result.error


def test_an_unknown_authority_then_mended_in_the_file(broker, sink_for, certificates, tmp_path):
    """An untrusted authority is soon reported, though no delivery report names it.

    Corrected in the file, it needs no restart.
    """
    path = tmp_path / "kafka.properties"
    path.write_text(f"ssl.ca.location={certificates / 'other.pem'}\n")
    sink = sink_for("SASL_SSL", broker.new_topic(), login(), config_file=str(path))
    records = encoded(sink, spans(5))
    started = time.monotonic()
    result = sink.write(records, 20)
    assert time.monotonic() - started < 10
    assert result.kept == records
    assert result.error_type == "_SSL"
    assert "check ssl.ca.location" in result.error
    path.write_text(f"ssl.ca.location={certificates / 'ca.pem'}\n")
    assert sink.write(records, 30).delivered == records


def test_plaintext_against_tls(broker):
    """A wrong security.protocol is named among the possible causes."""
    sink = kafka_sink(broker.listeners["SSL"], "t")
    records = encoded(sink, spans(5))
    result = sink.write(records, 30)
    sink.close(5)
    assert result.kept == records
    assert "security.protocol" in result.error


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_wrong_password_then_mended_in_the_file(
    broker, sink_for, certificates, tmp_path, mechanism, caplog
):
    """With a wrong password records are kept and one clear error is reported.

    A new password in the file takes effect without a restart.
    """
    caplog.set_level(logging.DEBUG)
    topic = broker.new_topic()
    path = tmp_path / "kafka.properties"
    path.write_text("sasl.password=wrong-secret\n")
    config = {"ssl.ca.location": str(certificates / "ca.pem"), **login(mechanism=mechanism)}
    sink = sink_for("SASL_SSL", topic, config, config_file=str(path))
    records = encoded(sink, spans(20))
    started = time.monotonic()
    wrong = sink.write(records, 20)
    assert time.monotonic() - started < 10
    assert wrong.kept == records
    assert wrong.error_type == "_AUTHENTICATION"
    assert "check sasl.mechanism, sasl.username, sasl.password" in wrong.error
    path.write_text(f"sasl.password={PASSWORD}\n")
    assert sink.write(records, 30).delivered == records
    assert len(broker.read_all(topic)) == 20
    said = caplog.text + wrong.error + repr(sink._options)
    assert "wrong-secret" not in said
    assert PASSWORD not in said


def test_the_log_says_once_what_to_mend(broker, tmp_path, caplog):
    """A wrong password is logged once, however often it is tried; once corrected, all arrives."""
    topic = broker.new_topic()
    path = tmp_path / "kafka.properties"
    path.write_text("sasl.password=wrong-secret\n")
    config = ExporterConfig(
        sink="kafka",
        kafka={
            "bootstrap_servers": broker.listeners["SASL_PLAINTEXT"],
            "topic": topic,
            "config": {"security.protocol": "sasl_plaintext", **login()},
            "config_file": str(path),
        },
        retry={"initial_delay_ms": 50, "max_delay_ms": 100},
    )
    pipeline = Pipeline(KafkaSink(config.kafka), config)
    assert pipeline.submit(spans(20), 10)
    deadline = time.monotonic() + 60
    while pipeline.health().write_errors < 3:
        assert time.monotonic() < deadline, pipeline.health()
        time.sleep(0.02)
    lines = [r.getMessage() for r in caplog.records if r.name == "otel_cbtop_exporter"]
    (line,) = [line for line in lines if "were not taken" in line]
    assert line.startswith(
        "sink kafka: 20 events were not taken (kept, to be tried again): "
        "the broker refused the login: check"
    )
    assert line.endswith(pipeline.health().last_error)
    path.write_text(f"sasl.password={PASSWORD}\n")
    assert pipeline.force_flush(60)
    pipeline.release(10)
    assert len(broker.read_all(topic)) == 20
    assert PASSWORD not in caplog.text
    assert "wrong-secret" not in caplog.text


def test_no_permission_on_the_topic(broker, sink_for):
    """Without permission records are kept and the error names the topic.

    They arrive once allowed.
    """
    allowed, topic = broker.new_topic(), broker.new_topic()
    allow(broker, "bob", allowed)
    sink = sink_for("SASL_PLAINTEXT", topic, login("bob"))
    records = encoded(sink, spans(20))
    refused = sink.write(records, 20)
    assert refused.kept == records
    assert refused.error_type == "TOPIC_AUTHORIZATION_FAILED"
    assert f"may not write to topic {topic}" in refused.error
    allow(broker, "bob", topic)
    assert send(sink, records).delivered == records
    assert len(broker.read_all(topic)) == 20


def test_no_permission_at_all(broker, sink_for):
    """An error that is fatal to librdkafka's producer keeps the records for a new producer."""
    topic = broker.new_topic()
    allow(broker, "dora", topic, AclOperation.DESCRIBE)  # an invisible topic is not fatal
    sink = sink_for("SASL_PLAINTEXT", topic, login("dora"))
    records = encoded(sink, spans(20))
    refused = sink.write(records, 20)
    assert refused.kept == records
    assert refused.error_type == "CLUSTER_AUTHORIZATION_FAILED"
    assert "may not write" in refused.error
    allow(broker, "dora", topic)
    assert sink.write(records, 30).delivered == records


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"sasl.pasword": "hush-hush"}, "sasl.pasword"),
        ({"ssl.ca.location": "/nowhere/ca.pem", "security.protocol": "ssl"}, "ssl.ca.location"),
        ({"acks": "hush-hush"}, "acks"),
    ],
)
def test_a_wrong_property_is_named_without_its_value(config, words):
    """A wrong property is named without its value, and the records are kept."""
    sink = kafka_sink("127.0.0.1:1", "t", config=config)
    records = encoded(sink, spans(2))
    result = sink.write(records, 1)
    sink.close(1)
    assert result.kept == records
    assert words in result.error
    assert "hush-hush" not in result.error


@pytest.mark.parametrize(
    "block", re.findall(r"```properties\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
)
def test_documented_properties_are_librdkafkas(block, certificates, tmp_path):
    """librdkafka accepts the documented config_file examples, apart from paths and hosts."""
    path = tmp_path / "kafka.properties"
    for documented, made in (("ca.pem", "ca.pem"), ("client.pem", "client.crt")):
        block = block.replace(f"/etc/kafka/{documented}", str(certificates / made))
    block = block.replace("/etc/kafka", str(certificates))
    path.write_text(block.replace("https://login.example.com", "http://127.0.0.1:1"))
    sink = kafka_sink("127.0.0.1:1", "t", config_file=str(path))
    result = sink.write(encoded(sink, spans(1)), 1)
    sink.close(5)
    assert result.error
    assert "librdkafka refuses" not in result.error


def test_a_missing_file_is_named(tmp_path):
    """An unreadable config_file keeps the records, and the error says why."""
    sink = kafka_sink("127.0.0.1:1", "t", config_file=str(tmp_path / "nothing"))
    records = encoded(sink, spans(2))
    result = sink.write(records, 1)
    assert result.kept == records
    assert "nothing cannot be read: No such file" in result.error
