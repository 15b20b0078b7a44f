"""Environment variables: derived names, precedence, and errors that raise nothing."""

import logging
import os
import subprocess
import sys

import pytest

from otel_cbtop_exporter import env
from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.env import PREFIX, options_from_environment, variables
from otel_cbtop_exporter.options import build, merged


@pytest.fixture(autouse=True)
def _forget_warnings():
    env._warned.clear()


def read(signal="traces", **environ):
    return options_from_environment(signal, {PREFIX + k: v for k, v in environ.items()})


def test_names_are_derived_from_the_tree():
    """Each option has one variable, whose name is the option's path."""
    names = dict(variables())
    assert names["OTEL_EXPORTER_CBTOP_KAFKA_BOOTSTRAP_SERVERS"] == ("kafka", "bootstrap_servers")
    assert names["OTEL_EXPORTER_CBTOP_SPOOL_PATH"] == ("spool", "path")
    assert names["OTEL_EXPORTER_CBTOP_SINK"] == ("sink",)
    assert len(set(names)) == len(names) > 40


def test_every_variable_is_read():
    """Every option can be set by its variable."""
    texts = {
        "influxdb.url": "http://x",
        "kafka.schema_registry_url": "http://x",
        "spool.max_bytes": "2000000",
        "jsonlines.mode": "0600",
    }
    for variable, path in variables():
        hint = _default(path)
        text = texts.get(".".join(path)) or _as_text(hint)
        options = options_from_environment(None, {variable: text})
        for name in path:
            options = options[name]
        assert options is not None


def _default(path):
    value = ExporterConfig()
    for name in path:
        value = getattr(value, name)
    return value


def _as_text(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value) or "a"
    if isinstance(value, dict):
        return "a=b"
    return "7" if value is None else str(value)


def test_a_signals_variable_wins_over_the_general_one():
    """A signal's variable overrides the general one, for that signal only."""
    environ = {"SINK": "console", "TRACES_SINK": "kafka", "METRICS_SINK": "influxdb"}
    assert read("traces", **environ)["sink"] == ("kafka",)
    assert read("metrics", **environ)["sink"] == ("influxdb",)
    assert read("logs", **environ)["sink"] == ("console",)


def test_influxdbs_own_variables_are_fallbacks():
    """INFLUXDB_V2_* variables are fallbacks, which our own override."""
    environ = {"INFLUXDB_V2_URL": "http://theirs", "INFLUXDB_V2_TOKEN": "t", "INFLUXDB_V2_ORG": "o"}
    assert options_from_environment(None, environ)["influxdb"] == {
        "url": "http://theirs",
        "token": "t",
        "org": "o",
    }
    environ[PREFIX + "INFLUXDB_URL"] = "http://ours"
    assert options_from_environment(None, environ)["influxdb"]["url"] == "http://ours"


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("SINK", "pigeon", ("SINK", "pigeon", "jsonlines")),
        ("SINK", "none,console", ("SINK", "none alone")),
        ("TIMEOUT_MS", "soon", ("TIMEOUT_MS", "soon", "a whole number")),
        ("SPOOL_MAX_BYTES", "4096", ("SPOOL_MAX_BYTES", "4096", "1048576")),
        ("KAFKA_CONFIG", "no-equals", ("KAFKA_CONFIG", "key=value")),
        ("TRACES_KAFKA_ACKS", "2", ("TRACES_KAFKA_ACKS", "2", "all, 1, 0, -1")),
        ("KAFKA_TOPIC", "a/b", ("kafka.topic", "a/b", "'/' cannot be in a topic's name")),
        ("INFLUXDB_URL", "http://[::1", ("influxdb.url", "http://[::1", "http://localhost:8086")),
        ("INFLUXDB_URL", "http://:8086", ("influxdb.url", "http://:8086")),
        ("SPOOL_PATH", "\udce9", ("SPOOL_PATH", "expected text in UTF-8")),
    ],
)
def test_a_wrong_value_is_one_error_in_the_log_and_the_default_stands(
    caplog, variable, text, words
):
    """A wrong value is logged as one error, and the default applies.

    An exception would switch off other exporters and all instrumentation.
    """
    options = read(**{variable: text, "JSONLINES_PATH": "kept"})
    assert options == {"jsonlines": {"path": "kept"}}
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    for word in words:
        assert word in record.getMessage()


def test_a_wrong_secret_is_not_logged(caplog):
    """A wrong secret's variable is logged, but not its text."""
    read(KAFKA_CONFIG="sasl.password:s3cret")
    assert "KAFKA_CONFIG" in caplog.text
    assert "s3cret" not in caplog.text


def test_an_unknown_variable_is_warned_about_once_with_the_nearest_name(caplog):
    """An unknown variable is warned about once, whichever exporter reads it first."""
    for signal in ("traces", "metrics", "logs"):
        read(signal, KAFKA_BOOTSTRAP_SERVER="x", METRICS_TIMEOUT="5")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert any("did you mean OTEL_EXPORTER_CBTOP_KAFKA_BOOTSTRAP_SERVERS" in m for m in messages)
    assert any("did you mean OTEL_EXPORTER_CBTOP_METRICS_TIMEOUT_MS" in m for m in messages)


def test_a_misspelt_signal_is_recognized(caplog):
    """A variable whose signal is misspelt gets the right name, for that signal, as a suggestion."""
    read(None, TRACE_SINK="x", LOG_KAFKA_TOPIC="x", METRIC_TIMEOUT_MS="5")
    for name in ("TRACES_SINK", "LOGS_KAFKA_TOPIC", "METRICS_TIMEOUT_MS"):
        assert f"did you mean {PREFIX}{name}?" in caplog.text


def test_an_unknown_variable_that_is_like_none_gets_no_advice(caplog):
    """An unknown variable that resembles no other gets no suggestion: a wrong one would mislead."""
    read(None, KAFKA_BROKERS="x")
    assert "KAFKA_BROKERS is not a variable" in caplog.text
    assert "did you mean" not in caplog.text


def test_words_of_a_choice_may_be_in_capitals():
    """Choices are case-insensitive, as OpenTelemetry asks for enum values."""
    options = read(
        SINK="Console,JSONLINES", TEMPORALITY_PREFERENCE="Cumulative", KAFKA_COMPRESSION="ZSTD"
    )
    config = build(ExporterConfig, options)
    assert config.sink == ("console", "jsonlines")
    assert config.temporality_preference == "cumulative"
    assert config.kafka.compression == "zstd"


@pytest.mark.parametrize(("general", "own"), [("TOKEN", "TOKEN_FILE"), ("TOKEN_FILE", "TOKEN")])
def test_a_signals_token_wins_over_the_general_one_however_each_is_given(general, own):
    """A signal's token or token file overrides the general one, whichever form each has.

    Otherwise a general file would be read instead of the signal's token.
    """
    options = read("traces", **{f"INFLUXDB_{general}": "a", f"TRACES_INFLUXDB_{own}": "b"})
    assert options == {"influxdb": {own.lower(): "b"}}
    headers = {"influxdb": {"headers": {general.lower(): "a"}}}
    kept = merged(headers, {"influxdb": {"headers": {own.lower(): "b"}}})["influxdb"]["headers"]
    assert kept == {general.lower(): "a", own.lower(): "b"}
    laid = merged(options, {"influxdb": {general.lower(): "c"}})
    assert laid == {"influxdb": {general.lower(): "c"}}


def test_an_empty_variable_is_unset():
    """An empty variable counts as unset, as OpenTelemetry specifies."""
    assert read(SINK="", TIMEOUT_MS="  ") == {}


def test_what_was_read_builds():
    """The options that were read build a configuration."""
    options = read(
        SINK="kafka,jsonlines", KAFKA_BOOTSTRAP_SERVERS="a:1,b:2", EXIT_ON_SIGTERM="true"
    )
    config = build(ExporterConfig, options)
    assert config.sink == ("kafka", "jsonlines")
    assert config.kafka.bootstrap_servers == "a:1,b:2"
    assert config.exit_on_sigterm is True


@pytest.mark.parametrize(
    ("variable", "text", "option", "value"),
    [
        ("INFLUXDB_V2_TIMEOUT", "2500", "timeout_ms", 2_500),
        ("INFLUXDB_V2_VERIFY_SSL", "False", "verify_tls", False),
        ("INFLUXDB_V2_SSL_CA_CERT", "/ca.pem", "ca_file", "/ca.pem"),
        ("INFLUXDB_V2_CERT_FILE", "/cert.pem", "cert_file", "/cert.pem"),
        ("INFLUXDB_V2_CERT_KEY_FILE", "/key.pem", "key_file", "/key.pem"),
    ],
)
def test_each_of_influxdbs_variables_is_the_option_that_it_means(variable, text, option, value):
    """Each INFLUXDB_V2_* variable sets the matching option."""
    assert options_from_environment(None, {variable: text}) == {"influxdb": {option: value}}


def test_a_signals_variable_is_no_unknown_one(caplog):
    """A variable of another signal is not reported as unknown."""
    read("traces", TRACES_SINK="none", METRICS_SINK="none", LOGS_KAFKA_ACKS="1")
    assert not caplog.records


def test_blanks_around_a_text_are_not_part_of_it():
    """Blanks around a text, as in files of variables, are removed.

    A token would be sent with them.
    """
    options = read(INFLUXDB_TOKEN=" t ", INFLUXDB_HEADERS="a = b , c=d")
    assert options == {"influxdb": {"token": "t", "headers": {"a": "b", "c": "d"}}}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"HTTP_PROXY": "http://p:1"}, "http://p:1"),
        ({"http_proxy": "p:1"}, "http://p:1"),
        ({"Http_Proxy": "p:1"}, "http://p:1"),
        ({"HTTP_PROXY": ""}, None),
        ({"HTTP_PROXY": "p:1", "http_proxy": ""}, None),
        ({"HTTPS_PROXY": "p:1", "ALL_PROXY": "p:1"}, None),
        ({"HTTP_PROXY": "p:1", "NO_PROXY": "*"}, None),
        ({"HTTP_PROXY": "p:1", "NO_PROXY": "other"}, "http://p:1"),
        ({"HTTP_PROXY": "p:1", "REQUEST_METHOD": "GET"}, None),
        ({"http_proxy": "p:1", "REQUEST_METHOD": "GET"}, "http://p:1"),
    ],
)
def test_the_proxy_is_the_one_that_urllib_would_take(monkeypatch, variables, expected):
    """Proxy variables count in any case; HTTP_PROXY of a CGI script is a request's header."""
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    assert env.proxy_for("http://host:8086/path") == expected


def test_without_a_proxy_variable_urllib_request_is_not_imported():
    """It takes 0.3 MiB; NO_PROXY alone, or a proxy for another scheme, does not need it."""
    program = """
import sys
from otel_cbtop_exporter.env import proxy_for
assert proxy_for("http://host") is None
print("urllib.request" in sys.modules)
"""
    environ = {name: text for name, text in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environ, "NO_PROXY": "host", "https_proxy": "p:1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
