"""Options: defaults, limits, error messages, and what is never shown."""

from pathlib import Path

import pytest

from otel_cbtop_exporter import ConfigError, ExporterConfig, RetryConfig
from otel_cbtop_exporter.config import (
    DEFAULT_RESOURCE_TAGS,
    InfluxDBConfig,
    KafkaConfig,
    SpoolConfig,
)
from otel_cbtop_exporter.env import PREFIX, configuration
from otel_cbtop_exporter.options import build, merged, parse_text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sink": "carrier-pigeon"}, "sink .*expected one of jsonlines, influxdb, kafka, console"),
        ({"sink": "none,console"}, "none alone"),
        ({"sink": ["console", "console"]}, "twice"),
        ({"sink": ""}, "got nothing"),
        ({"timeout_ms": "soon"}, "timeout_ms is 'soon': expected a whole number"),
        ({"timeout_ms": 0}, "timeout_ms is 0: expected a whole number >= 1$"),
        ({"retry": {"multiplier": 0.5}}, "retry.multiplier is 0.5: expected a number >= 1.0"),
        ({"kafka": {"topic": ""}}, "kafka.topic is '': expected a text of length >= 1"),
        ({"kafka": {"headers": 5}}, "kafka.headers is 5: expected a mapping, got a whole number"),
        ({"mapping": {"redact": 5}}, "mapping.redact is 5: expected a list, got a whole number"),
        (
            {"spool": {"max_bytes": 4096}},
            "spool.max_bytes is 4096: expected a whole number >= 1048576",
        ),
        ({"kafka": {"acks": 2}}, "kafka.acks is 2: expected one of all, 1, 0"),
        ({"jsonlines": {"mode": 0o640}}, "jsonlines.mode is 416: expected a text, in quotes"),
        ({"influxdb": {"org": ["a"]}}, r"influxdb.org is \['a'\]: expected a text, in quotes"),
        (
            {"kafka": {"bootstrapservers": "a"}},
            "no option kafka.bootstrapservers; did you mean kafka.bootstrap_servers",
        ),
        (
            {"influxdb_url": "x"},
            r'no option influxdb_url; did you mean influxdb=\{"url": \.\.\.\}\?$',
        ),
        (
            {"kafka_bootstrap_servers": "a"},
            r'did you mean kafka=\{"bootstrap_servers": \.\.\.\}\?$',
        ),
        ({"kafka": "localhost"}, "kafka must be a mapping"),
        (
            {"influxdb": {"url": "localhost:8086"}},
            r"influxdb.url is 'localhost:8086': expected an address like http://",
        ),
        ({"jsonlines": {"mode": "abc"}}, "jsonlines.mode is 'abc'"),
        ({"influxdb": {"bucket": "{service.name}"}}, r"influxdb.bucket .*\{signal\} is all that"),
        ({"jsonlines": {"path": "{name}"}}, r"jsonlines.path .*\{pid\}, \{date\} and \{hour\}"),
        ({"exit_on_sigterm": "on"}, "exit_on_sigterm is 'on': expected true or false"),
        ({"mapping": {"exemplars": "some"}}, "mapping.exemplars .*histograms, all, none"),
        ({"colour": "red"}, "no option colour"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_it_and_what_is_allowed(options, words):
    """The error names the option, the value and what is allowed."""
    with pytest.raises(ConfigError, match=words):
        build(ExporterConfig, options)


def test_constructors_check_too():
    """Constructors validate too, so no invalid configuration can exist."""
    with pytest.raises(ConfigError, match="retry.max_retries is -1"):
        RetryConfig(max_retries=-1)
    with pytest.raises(ConfigError, match="spool.synchronous"):
        SpoolConfig(synchronous="sometimes")


def test_null_in_a_declarative_file_is_the_default():
    """An empty mapping or None is the default: opentelemetry-configuration passes {} for null."""
    config = build(ExporterConfig, {"sink": {}, "kafka": {}, "timeout_ms": None})
    assert config == ExporterConfig()


def test_numbers_booleans_and_lists_may_be_as_python_and_yaml_have_them():
    """Unambiguous numbers, booleans and texts are converted, as in the environment."""
    config = build(
        ExporterConfig,
        {
            "sink": "kafka, console",
            "mapping": {"redact": "user.*,password"},
            "influxdb": {"org": 123456},
            "kafka": {"acks": 1, "config": {"linger.ms": 5, "enable.idempotence": False}},
        },
    )
    assert config.sink == ("kafka", "console")
    assert config.mapping.redact == ("user.*", "password")
    assert config.influxdb.org == "123456"
    assert config.kafka.acks == "1"
    assert config.kafka.config == {"linger.ms": "5", "enable.idempotence": "false"}


def test_a_path_may_be_given_as_an_object(tmp_path):
    """Options that hold a path take `pathlib.Path` too, and so do properties of Kafka's client."""
    config = build(
        ExporterConfig,
        {
            "jsonlines": {"path": tmp_path / "{pid}.jsonl"},
            "spool": {"path": tmp_path},
            "influxdb": {"token_file": tmp_path / "token"},
            "kafka": {"config": {"ssl.ca.location": tmp_path / "ca.pem"}},
        },
    )
    assert config.jsonlines.path == f"{tmp_path}/{{pid}}.jsonl"
    assert config.spool.path == str(tmp_path)
    assert config.influxdb.token_file == f"{tmp_path}/token"
    assert config.kafka.config == {"ssl.ca.location": f"{tmp_path}/ca.pem"}


@pytest.mark.parametrize(
    "options",
    [
        {"influxdb": {"token": Path("file-with-the-token")}},  # which is token_file
        {"influxdb": {"token": 42798}},  # as YAML reads 0123456
        {"influxdb": {"org": 1.1}},  # 1.10
        {"influxdb": {"headers": {"X-Tenant": 202401}}},  # 2024_01
        {"kafka": {"config": {"sasl.password": 83}}},  # 0123
        {"kafka": {"config": {"retry.backoff.ms": 1.5}}},
    ],
)
def test_what_yaml_may_have_read_as_something_else_wants_quotes(options):
    """Texts that YAML may have read as another value must be quoted.

    A wrong secret would be refused far away, by a server that cannot say why.
    """
    with pytest.raises(ConfigError, match="expected"):
        build(ExporterConfig, options)


def test_a_resource_attribute_in_a_topic_is_a_tag():
    """Resource attributes in a Kafka topic are tags on every event.

    They are so only if Kafka is a sink, and are taken literally, not as patterns.
    """
    kafka = {"topic": "{team}.{a*}.{signal}"}
    config = ExporterConfig(sink="kafka", kafka=kafka, mapping={"resource_tags": ["host.*"]})
    assert config.all_resource_tags == ("host.*", "a[*]", "team")
    assert config.mapping.resource_tags == ("host.*",)  # unchanged, and shown unchanged
    assert ExporterConfig(kafka=kafka).all_resource_tags == DEFAULT_RESOURCE_TAGS


def test_secrets_are_masked_in_every_repr():
    """Secrets are masked in every repr, because a repr may end up in logs."""
    config = ExporterConfig(
        influxdb={"token": "s3cret", "headers": {"Authorization": "s3cret"}},
        kafka={"config": {"sasl.password": "s3cret"}, "schema_registry_config": {"a": "s3cret"}},
    )
    assert "s3cret" not in repr(config)
    assert "sasl.password" in repr(config)


def test_an_error_does_not_show_a_secret():
    """An error does not show a secret, not even an invalid one."""
    with pytest.raises(ConfigError) as caught:
        InfluxDBConfig(token=["s3cret"])
    assert "influxdb.token" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        KafkaConfig(config={"sasl.password": [12345678]})
    assert "12345678" not in str(caught.value)


def test_no_group_and_no_password_of_a_url_is_shown():
    """Errors show neither the content of a malformed group nor the password of an invalid URL."""
    with pytest.raises(ConfigError, match="influxdb must be a mapping of its options, got a list"):
        build(ExporterConfig, {"influxdb": [{"token": "s3cret"}]})
    with pytest.raises(ConfigError) as caught:
        InfluxDBConfig(url="http://admin:s3/cr?et@host")
    assert "influxdb.url is 'http://********@host'" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        KafkaConfig(schema_registry_url="http://admin:s3/cret@host")
    assert "kafka.schema_registry_url is 'http://********@host'" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        KafkaConfig(schema_registry_url="http://host/path?token=s3cret")
    assert "kafka.schema_registry_url is 'http://host/path?********'" in str(caught.value)


def test_a_spools_folder_is_absolute_from_the_beginning(tmp_path, monkeypatch):
    """The spool path is made absolute at once.

    A daemon or its child may change its folder later.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert SpoolConfig(path="spool").path == str(tmp_path / "spool")
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    beside = Path(SpoolConfig(path="link/../spool").path).resolve()
    assert beside == (tmp_path / "real" / "spool").resolve()
    assert SpoolConfig(path="~/spool").path == str(tmp_path / "home" / "spool")


@pytest.mark.parametrize(("attempt", "delay"), [(0, 100), (1, 200), (2, 400), (6, 6400)])
def test_the_delay_doubles(attempt, delay):
    """`delay_for_attempt` grows by the multiplier, from the initial delay."""
    assert RetryConfig().delay_for_attempt(attempt) == delay


@pytest.mark.parametrize("attempt", [7, 100, 1024, 10**6, 10**12])
def test_the_delay_never_passes_the_maximum(attempt):
    """The delay stays at the maximum for any attempt, also where a float would overflow."""
    assert RetryConfig().delay_for_attempt(attempt) == 10_000


def test_a_multiplier_of_one_never_grows():
    """With a multiplier of one the delay is constant."""
    assert RetryConfig(multiplier=1).delay_for_attempt(10**6) == 100


def test_arguments_are_laid_over_the_environment_group_by_group():
    """Arguments override the environment, and options that they do not name stay."""
    below = {"sink": ("kafka",), "kafka": {"topic": "a", "acks": "1"}}
    above = {"kafka": {"topic": "b"}, "sink": None, "spool": {}}
    laid = merged(below, above)
    assert laid == {"sink": ("kafka",), "kafka": {"topic": "b", "acks": "1"}, "spool": {}}


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int, "5", 5),
        (bool, "true", True),
        (bool, "0", False),
        (float | None, "1.5", 1.5),
        (tuple[str, ...], " a , b,", ("a", "b")),
        (dict[str, str], "a=b, c=d=e", {"a": "b", "c": "d=e"}),
    ],
)
def test_environment_texts_are_read_by_type(hint, text, value):
    """Lists in the environment are separated by commas, and mappings are key=value."""
    assert parse_text(hint, text) == value


def test_what_is_given_in_code_wins_over_the_environment(monkeypatch):
    """Each option given in code overrides the environment; the others come from there."""
    monkeypatch.setenv(PREFIX + "INFLUXDB_ORG", "theirs")
    monkeypatch.setenv(PREFIX + "INFLUXDB_BUCKET", "kept")
    config = configuration(None, {"influxdb": {"org": "ours"}})
    assert (config.influxdb.org, config.influxdb.bucket) == ("ours", "kept")


def test_a_login_is_not_shown_however_it_is_written():
    """A login in a malformed URL, without a scheme or with a blank, is not shown."""
    for url in ("me:s3cret@db:8086", "http://me:s3cret phrase@db", "https://me:s3@cret@db:1"):
        with pytest.raises(ConfigError, match="influxdb.url is .*@db") as told:
            build(ExporterConfig, {"influxdb": {"url": url}})
        assert "s3" not in str(told.value)
        assert "phrase" not in str(told.value)
    with pytest.raises(ConfigError) as told:
        build(ExporterConfig, {"influxdb": {"url": ["http://me:s3cret@db"]}})
    assert "s3cret" not in str(told.value)
    with pytest.raises(ConfigError, match="kafka.bootstrap_servers is .*@h2:2") as told:
        KafkaConfig(bootstrap_servers="h:1,me:s3cret word@h2:2")
    assert "s3cret" not in str(told.value)


def test_what_is_no_url_is_shown_whole():
    """A value with an `@` that is not a URL, such as a folder or an organization, is not masked."""
    config = ExporterConfig(spool={"path": "/var/app@1/spool"}, influxdb={"org": "me@example.com"})
    assert "'/var/app@1/spool'" in repr(config.spool)
    assert "'me@example.com'" in repr(config.influxdb)


@pytest.mark.parametrize("tail", ["?u=me&p=s3cret", "#s3cret", "/x?p=s3cret"])
def test_a_query_in_influxdbs_url_is_refused_and_not_shown(tail):
    """A query in InfluxDB's URL is refused and not shown.

    InfluxDB 1.x has logins there, which would be dropped silently.
    """
    with pytest.raises(ConfigError, match="without a query") as told:
        build(ExporterConfig, {"influxdb": {"url": f"http://db:8086{tail}"}})
    assert "s3cret" not in str(told.value)


def test_no_certificate_is_unchecked_unless_somebody_says_so():
    """TLS certificates are verified by default: a wrong default would be noticed too late."""
    assert ExporterConfig().influxdb.verify_tls is True
