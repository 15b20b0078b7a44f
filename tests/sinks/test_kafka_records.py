"""Which topic, key and headers an event has; no broker is needed."""

import importlib.util
import json
import logging
import re
from pathlib import Path

import pytest
from confluent_kafka import Producer

from otel_cbtop_exporter.config import KafkaConfig
from otel_cbtop_exporter.encoding.event_json import encode_event
from otel_cbtop_exporter.env import options_from_environment
from otel_cbtop_exporter.errors import ConfigError, SinkError
from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.sinks.kafka import KafkaSink
from otel_cbtop_exporter.sinks.kafka_causes import _MEANING, explain
from otel_cbtop_exporter.sinks.kafka_client import KafkaLog
from otel_cbtop_exporter.sinks.kafka_properties import read_properties, read_registry_config
from otel_cbtop_exporter.tag_set import TagSet
from tests.builders import gauge_metric, log, metrics, number_point
from tests.mappers import map_logs, map_metrics
from tests.sinks.kafka_data import TAGS, java_partition, murmur2, span, trace_id

DOCUMENT = Path(__file__).parents[2] / "docs" / "kafka.md"


def record(event, **options):
    (made,) = KafkaSink(KafkaConfig(bootstrap_servers="b:9092", **options)).encode([event]).records
    return made


def event(signal=None, measurement="m", tags=TAGS, correlation_id=None, **fields):
    return Event(
        measurement=measurement,
        tags=tags,
        fields=fields or {"value": 1},
        timestamp_ns=5,
        correlation_id=correlation_id,
        signal=signal,
    )


@pytest.mark.parametrize(
    ("signal", "topic"),
    [
        ("span", "otel.spans"),
        ("span_event", "otel.spans"),
        ("span_link", "otel.spans"),
        ("log", "otel.logs"),
        ("metric", "otel.metrics"),
        ("exemplar", "otel.metrics"),
        (None, "otel.metrics"),
    ],
)
def test_topics_are_by_kind(signal, topic):
    """Span events and links go to the topic of spans, exemplars and hand-made events to metrics."""
    assert record(event(signal)).lane == topic


def test_the_value_is_the_event_as_json():
    """The body is the event's JSON, and the record has its exact time."""
    made = record(event("metric"))
    assert made.body == encode_event(event("metric"))
    assert made.timestamp_ns == 5


@pytest.mark.parametrize("tags", [TagSet({"a.b": "x y/ü"}), {"a.b": "x y/ü"}])
def test_tags_in_a_topic_are_made_safe(tags):
    """Characters that are not allowed in a topic become underscores."""
    assert record(event("log", tags=tags), topic="t-{a.b}.{signal}").lane == "t-x_y__.logs"


def test_a_tag_that_an_event_lacks_is_unknown():
    """A tag that an event lacks becomes `unknown` in the topic."""
    assert record(event("log"), topic="{nowhere}.{signal}").lane == "unknown.logs"


def test_events_of_one_tag_set_have_their_own_topics():
    """A topic cached for one kind of event is not used for another."""
    sink = KafkaSink(KafkaConfig(bootstrap_servers="b", topic="{service.name}.{signal}"))
    made = sink.encode([event("log"), event("span"), event("log")]).records
    assert [r.lane for r in made] == ["shop.logs", "shop.spans", "shop.logs"]


@pytest.mark.parametrize(
    ("text", "topic"), [(".", "_"), ("..", "__"), ("x" * 300, "x" * 249), ("...", "___")]
)
def test_a_topic_has_a_name_that_kafka_takes(text, topic):
    """A topic has at most 249 characters, and is not `.` or `..`."""
    assert record(event("log", tags={"t": text}), topic="{t}").lane == topic


@pytest.mark.parametrize("template", ["a b", "otel/{signal}", "otel.{signal", "{}", "ä"])
def test_a_template_that_cannot_be_a_topic_is_refused(template):
    """An invalid topic template raises an error at construction that names the option."""
    with pytest.raises(ConfigError, match=r"kafka\.topic"):
        KafkaSink(KafkaConfig(bootstrap_servers="b", topic=template))


@pytest.mark.parametrize("tags", [{}, {"tenant": ""}])
def test_a_tag_that_is_empty_in_a_topic_is_unknown(tags):
    """An empty or missing tag becomes `unknown`, so that no topic has an empty name."""
    assert record(event("log", tags=tags), topic="{tenant}").lane == "unknown"


@pytest.mark.parametrize(
    ("trace_id", "span_id"),
    [
        ("a" * 32, 7),
        ("a" * 32, True),
        ("a" * 32, "x y\n"),
        ("0" * 32, "b" * 16),
        ("a" * 32, "0" * 16),
        ("a" * 33, "b" * 16),
        ("a" * 32, "b" * 17),
    ],
)
def test_ids_that_w3c_does_not_know_make_no_traceparent(trace_id, span_id):
    """Ids that are invalid in W3C Trace Context give no traceparent.

    Hand-made events may hold any.
    """
    hand_made = Event("m", {}, {"span_id": span_id}, 1, correlation_id=trace_id, signal="span")
    assert "traceparent" not in dict(record(hand_made, event_headers=True).headers)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("a=b\nsecurity.protocol: SASL_SSL\n", "line 2 is not name=value"),
        ("bootstrap.servers=b:1\ntransactional.id=x\n", "transactional.id"),
        ("# nothing\n\n", "kafka.bootstrap_servers is not set"),
    ],
)
def test_a_file_of_properties_that_cannot_be_meant_is_an_error(tmp_path, lines, why):
    """A properties file with mistakes is an error.

    If it were ignored, there would be no security, or a broker that does not answer.
    """
    file = tmp_path / "kafka.properties"
    file.write_text(lines)
    with pytest.raises(SinkError, match=re.escape(why)):
        read_properties(KafkaConfig(config_file=str(file)))
    file.write_text("\ufeffbootstrap.servers=b:1")
    assert read_properties(KafkaConfig(config_file=str(file)))["bootstrap.servers"] == "b:1"


def test_a_property_that_is_not_unicode_is_refused():
    """A property that is not Unicode is refused, because confluent-kafka would end the process."""
    with pytest.raises(ConfigError, match=r"kafka\.config holds text that is not Unicode"):
        KafkaSink(KafkaConfig(bootstrap_servers="b", config={"\udc80": "x"}))


@pytest.mark.parametrize("headers", [{"\udc80": "x"}, {"x": "\udc80"}])
def test_a_header_that_is_not_unicode_is_refused(headers):
    """A header that is not Unicode is refused, because confluent-kafka would end the process.

    Such text comes from an environment with undecodable bytes.
    """
    with pytest.raises(ConfigError, match=r"kafka\.headers"):
        KafkaSink(KafkaConfig(bootstrap_servers="b", headers=headers))


@pytest.mark.parametrize("signal", ["span", "span_event", "span_link", "log"])
def test_what_has_a_trace_is_keyed_by_it(signal):
    """Everything that belongs to a trace has the trace id as key."""
    assert record(event(signal, correlation_id="ab" * 16)).key == b"ab" * 16


def test_a_log_without_a_trace_has_no_key():
    """A log without a trace has no key, so that Kafka spreads such logs over the partitions."""
    assert record(event("log")).key is None


@pytest.mark.parametrize("signal", ["metric", "exemplar", None])
def test_points_are_keyed_by_their_series(signal):
    """The key of a metric is its measurement and tags, not the trace of an exemplar."""
    keyed = record(event(signal, correlation_id="ab" * 16))
    assert keyed.key == b'm{"service.name":"shop","span.name":"GET /cart"}'
    assert record(event(signal)).key == keyed.key


def test_the_series_key_is_canonical():
    """The order of tags, empty tags and the mapping type do not affect the key."""
    orders = [{"b": "2", "a": "1"}, {"a": "1", "b": "2", "c": ""}, TagSet({"b": "2", "a": "1"})]
    assert {record(event("metric", tags=tags)).key for tags in orders} == {b'm{"a":"1","b":"2"}'}


def test_two_metrics_of_one_tag_set_have_two_keys():
    """A key cached for one measurement is not used for another."""
    sink = KafkaSink(KafkaConfig(bootstrap_servers="b"))
    made = sink.encode([event("metric", m, TagSet({"a": "1"})) for m in ("x", "y", "x")]).records
    tags = TagSet({"a": "1"})
    same = sink.encode([event("metric", m, tags) for m in ("x", "y", "x")]).records
    assert (
        [r.key for r in made]
        == [r.key for r in same]
        == [b'x{"a":"1"}', b'y{"a":"1"}', b'x{"a":"1"}']
    )


def test_headers_are_the_configured_ones():
    """Without event_headers, only the configured headers are sent."""
    assert record(span(), headers={"env": "pröd"}).headers == (("env", "pröd".encode()),)
    assert record(span()).headers == ()


def test_event_headers():
    """With event_headers a span's record has schema version, content type and W3C trace context."""
    assert record(span(6), event_headers=True, headers={"a": "b"}).headers == (
        ("a", b"b"),
        ("schema_version", b"1"),
        ("content-type", b"application/json"),
        ("traceparent", f"00-{trace_id(1)}-{7:016x}-01".encode()),
    )


@pytest.mark.parametrize("signal", ["log", "exemplar"])
def test_only_what_was_sampled_has_a_traceparent(signal):
    """A log of a trace that was not sampled would make its consumer record one."""
    made = record(
        event(signal, correlation_id=trace_id(1), span_id=f"{7:016x}"), event_headers=True
    )
    assert [name for name, _ in made.headers] == ["schema_version", "content-type"]


def test_what_a_registry_frames_is_no_json():
    """With a schema registry there is no JSON content type, because five bytes precede the JSON."""
    made = record(span(), event_headers=True, schema_registry_url="http://registry:8081")
    assert [name for name, _ in made.headers] == ["schema_version", "traceparent"]


@pytest.mark.parametrize("correlation_id", [None, "cbtop-1-1", "AB" * 16])
def test_no_traceparent_without_a_trace(correlation_id):
    """A correlation id that is not a trace id gives no traceparent."""
    made = record(event("span", correlation_id=correlation_id, span_id="1"), event_headers=True)
    assert [name for name, _ in made.headers] == ["schema_version", "content-type"]


def test_a_bad_event_does_not_take_its_neighbours():
    """An event that JSON cannot represent is rejected alone."""
    good, bad = event("metric"), event("metric", value=float("nan"))
    encoded = KafkaSink(KafkaConfig(bootstrap_servers="b")).encode([good, bad, good])
    assert [r.body for r in encoded.records] == [encode_event(good)] * 2
    assert [(r.reason, r.record.lane) for r in encoded.rejected] == [("invalid", "otel.metrics")]


def test_the_destination_tells_clusters_apart_without_a_secret():
    """The destination is the servers in any order, or the file that names them, without secrets."""

    def destination(**options):
        return KafkaSink(KafkaConfig(**options)).destination

    password = {"sasl.password": "hidden"}
    assert destination(bootstrap_servers="b:1, a:2", config=password) == "a:2,b:1"
    assert destination(config={"bootstrap.servers": "c:3"} | password) == "c:3"
    assert destination(bootstrap_servers="b:1", config={"bootstrap.servers": "c:3"}) == "c:3"
    assert destination(bootstrap_servers="b:1", config={"metadata.broker.list": "d:4"}) == "d:4"
    both = destination(bootstrap_servers="b:1", config_file="/etc/kafka.properties")
    assert both == "b:1 /etc/kafka.properties"
    assert destination(config_file="/etc/kafka.properties") == "/etc/kafka.properties"
    login = {"basic.auth.user.info": "user:hidden"}
    for url in ("http://r:8081", "http://r:8081/"):
        framed = destination(
            bootstrap_servers="b:1", schema_registry_url=url, schema_registry_config=login
        )
        assert framed == "b:1 registry=http://r:8081"


@pytest.mark.parametrize(
    ("option", "text", "where"),
    [
        ("bootstrap_servers", "u:hush@b:1", "sasl.username of kafka.config"),
        ("schema_registry_url", "http://u:hush@r:8081", "basic.auth.user.info of kafka.schema_reg"),
        ("schema_registry_url", "http://a:1,http://u:hu/sh@r", "basic.auth.user.info of kafka.sc"),
    ],
)
def test_a_login_in_an_address_is_refused_and_not_shown(option, text, where):
    """An address with a login, which clients would log, is refused; the error says where it goes.

    The login is not in the error.
    """
    with pytest.raises(ConfigError, match=rf"kafka\.{option} .*without a .*login") as caught:
        KafkaConfig(**{option: text})
    assert where in str(caught.value)
    assert not re.search("hush|hu/sh", str(caught.value))


@pytest.mark.parametrize("name", ["bootstrap.servers", "metadata.broker.list"])
def test_a_login_in_a_property_with_brokers_is_refused_and_not_shown(tmp_path, name):
    """A login in brokers that a property names is in neither the destination nor the error."""
    with pytest.raises(SinkError, match=r"sasl\.username and sasl\.password$"):
        KafkaSink(KafkaConfig(config={name: "SASL_SSL://u:hush@b:1"}))
    file = tmp_path / "kafka.properties"
    file.write_text(f"{name}=u:hush@b:1\n")
    with pytest.raises(SinkError, match=r"sasl\.username and sasl\.password$"):
        read_properties(KafkaConfig(config_file=str(file)))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_the_tests_own_murmur2_is_java_s(text, number):
    """The tests' murmur2 gives the values of Apache Kafka's UtilsTest."""
    assert murmur2(text.encode()) == number
    assert 0 <= java_partition(text.encode(), 6) < 6


def test_the_documented_remedy_for_order_is_taken_in_code_and_in_the_environment():
    """The number of retries that docs/kafka.md names is a property of ours and of librdkafka."""
    text = DOCUMENT.read_text()
    in_code = json.loads(re.search(r'`kafka.config=(\{"retries".*?\})`', text)[1])
    name, value = re.search(r'`(OTEL_\w+)="(retries=\d+)"`', text).groups()
    options = options_from_environment("traces", {name: value})
    assert options["kafka"]["config"] == in_code
    properties = read_properties(KafkaConfig(bootstrap_servers="127.0.0.1:1", config=in_code))
    assert properties["retries"] == in_code["retries"]
    Producer(properties, logger=logging.getLogger("librdkafka"))  # raises if it is refused


def test_documented_errors_are_those_of_the_sink():
    """Every error in the table of docs/kafka.md is the beginning of a real one."""
    text = DOCUMENT.read_text().partition("| `last_error` begins with")[2].partition("\n\n")[0]
    beginnings = re.findall(r"^\| (\w[^|]*) \|", text, re.MULTILINE)
    assert len(beginnings) == 11
    for beginning in beginnings:
        assert any(m.format(topic="...").startswith(beginning) for m in _MEANING.values()), (
            beginning
        )


@pytest.mark.parametrize("trace_id", [0xAB, 0])
def test_what_was_mapped_is_keyed_like_hand_made_events(trace_id):
    """Mapped events have the keys of hand-made ones, in columns or not.

    Logs are keyed by their trace if they have one, and metrics by their series.
    """
    sink = KafkaSink(KafkaConfig(bootstrap_servers="b"))
    logs = map_logs(log(trace_id=trace_id), log(trace_id=0))
    points = map_metrics(metrics(gauge_metric(number_point(1, {"route": "/"}))))
    keys = [record.key for record in sink.encode(logs).records]
    assert keys == [f"{trace_id:032x}".encode() if trace_id else None, None]
    for batch in (logs, points):
        one_by_one = sink.encode(list(batch)).records
        assert [r.key for r in sink.encode(batch).records] == [r.key for r in one_by_one]


def test_a_topic_of_tags_has_the_configured_headers_alone():
    """With tags in the topic, too, only configured headers are sent without event_headers."""
    assert record(span(), topic="{service.name}", headers={"a": "b"}).headers == (("a", b"b"),)


@pytest.mark.parametrize(
    "bad", [event("log", correlation_id="\udc80"), event("metric", measurement="\udc80")]
)
def test_a_key_that_is_no_unicode_costs_no_record(bad):
    """A key that is not Unicode loses neither its record nor others."""
    assert (
        len(KafkaSink(KafkaConfig(bootstrap_servers="b")).encode([event("log"), bad]).records) == 2
    )


def test_options_are_properties_and_the_users_own_are_over_them(tmp_path):
    """`kafka.config` overrides the options, and its file overrides both."""
    file = tmp_path / "kafka.properties"
    file.write_text("#linger.ms=1\n  # 2\n  linger.ms =  8 \n  \n")
    given = KafkaConfig(bootstrap_servers="b:1", compression="gzip", linger_ms=7, acks="1")
    properties = read_properties(given)
    assert properties["compression.type"] == "gzip"
    assert properties["linger.ms"] == "7"
    assert (properties["acks"], properties["enable.idempotence"]) == ("1", "false")
    over = {"linger.ms": "9", "client.id": "mine"}
    properties = read_properties(KafkaConfig(bootstrap_servers="b:1", config=over))
    assert (properties["linger.ms"], properties["client.id"]) == ("9", "mine")
    assert (properties["acks"], properties["enable.idempotence"]) == ("all", "true")
    both = KafkaConfig(bootstrap_servers="b:1", config=over, config_file=str(file))
    assert read_properties(both)["linger.ms"] == "8"


@pytest.mark.parametrize(
    ("config", "idempotent"),
    [
        ({"acks": "-1"}, "true"),
        ({"acks": "1"}, "false"),
        ({"request.required.acks": "1"}, "false"),
        ({"enable.idempotence": "false"}, "false"),
    ],
)
def test_idempotence_goes_with_acknowledgements_of_all(config, idempotent):
    """Idempotence is on only with all acknowledgements, or librdkafka would not start.

    A user may switch it off.
    """
    properties = read_properties(KafkaConfig(bootstrap_servers="b:1", config=config))
    assert properties["enable.idempotence"] == idempotent


def test_a_file_of_other_bytes_is_an_error_that_shows_none(tmp_path):
    """A file that cannot be decoded is an error that shows none of its bytes.

    They may be a password.
    """
    file = tmp_path / "kafka.properties"
    file.write_bytes(b"sasl.password=hush\xff\n")
    with pytest.raises(SinkError, match="cannot be read: UnicodeDecodeError$"):
        read_properties(KafkaConfig(bootstrap_servers="b:1", config_file=str(file)))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("schema.registry.url=http://r", "as kafka.schema_registry_url"),
        ("schema.registry.timeout=1", "schema.registry.timeout needs kafka.schema_registry_url"),
    ],
)
def test_the_registrys_lines_of_a_file_need_the_option(tmp_path, line, why):
    """Registry properties in a file without the option are an error and not silently ignored.

    Somebody may believe that the registry is in use.
    """
    file = tmp_path / "kafka.properties"
    file.write_text(f"{line}\n")
    with pytest.raises(SinkError, match=re.escape(why)):
        read_properties(KafkaConfig(bootstrap_servers="b:1", config_file=str(file)))


@pytest.mark.parametrize(
    ("name", "words", "sentence"),
    [
        ("timeout", "", "the broker did not answer in time"),
        ("X", "a\nb\x9bc", "the broker did not take the records (X: a b c)"),
        ("X", "w" * 999, f"the broker did not take the records (X: {'w' * 140})"),
        ("X", "w" * 139 + " y", f"the broker did not take the records (X: {'w' * 139})"),
    ],
)
def test_an_error_is_one_sentence(name, words, sentence):
    """A broker's error becomes one line of limited length."""
    assert explain(name, words, "t") == sentence


@pytest.mark.parametrize(
    ("words", "beginning"),
    [
        ("Failed to acquire SASL OAUTHBEARER token: HTTP 503", "there is no token for the login"),
        ("SASL OAUTHBEARER mechanism handshake failed", "the broker refused the login"),
    ],
)
def test_a_token_that_was_not_had_is_no_refused_login(words, beginning):
    """A token that could not be fetched is not reported as a refused login.

    The endpoint must be fixed, and not the password.
    """
    assert explain("_AUTHENTICATION", words, "t").startswith(beginning)


def test_a_forked_child_does_not_wait_for_a_write_of_its_parent():
    """A forked child does not wait for a parent's write, whose thread it does not have."""
    sink = KafkaSink(KafkaConfig(bootstrap_servers="b"))
    sink._lock.acquire()
    sink.after_fork_in_child()
    assert sink.flush(0)


def test_the_registrys_client_is_needed_by_a_registry_alone(monkeypatch):
    """The registry's client, an extra of its own, is needed only with a registry."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert KafkaSink(KafkaConfig(bootstrap_servers="b")).destination == "b"


def test_each_kind_of_line_of_librdkafka_is_told(caplog):
    """Each kind of librdkafka log line is logged.

    The kind is its facility, as all share one template.
    """
    log = KafkaLog()
    for facility in ("FAIL", "FATAL", "FAIL"):
        log.log(logging.ERROR, "%s [%s] %s", facility, "x#producer-1", "a\nb" + "c" * 999)
    log.tell()
    first, second = [record.getMessage() for record in caplog.records]
    assert (first[:28], second[:29]) == (
        "FAIL [x#producer-1] a bccccc",
        "FATAL [x#producer-1] a bccccc",
    )
    assert len(first) == len(second) == 300


def test_the_registrys_lines_of_a_file_are_over_the_option(tmp_path):
    """Registry properties in the file override the option, however they are indented."""
    file = tmp_path / "kafka.properties"
    file.write_text("linger.ms=8\n  schema.registry.timeout = 3 \n")
    config = {"timeout": "2", "max.retries": "1"}
    options = KafkaConfig(config_file=str(file), schema_registry_config=config)
    assert read_registry_config(options) == {"timeout": "3", "max.retries": "1"}
