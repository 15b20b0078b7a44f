import json

import pytest
from click.testing import CliRunner

from otel_cbtop_exporter.cli.app import app
from otel_cbtop_exporter.env import variables
from otel_cbtop_exporter.events import event_schema


@pytest.fixture
def config():
    return lambda *arguments, **environ: CliRunner().invoke(
        app, ["config", *arguments], env={f"OTEL_EXPORTER_CBTOP_{k}": v for k, v in environ.items()}
    )


def test_every_variable_is_shown_with_its_value_and_its_default(config):
    """`config` prints one line for each option, and the default beside a value that was set."""
    result = config(SINK="console", JSONLINES_MODE="")
    lines = [line.split() for line in result.output.splitlines()]
    assert result.exit_code == 0
    assert [line[0] for line in lines] == [variable for variable, _ in variables()]
    assert lines[0][1:] == ["=", "console", "(default:", "jsonlines)"]
    assert ["OTEL_EXPORTER_CBTOP_JSONLINES_MODE", "=", "0640", "(default)"] in lines


def test_no_secret_is_shown(config):
    """Tokens and the values of secret mappings are masked.

    The names in those mappings are shown.
    """
    result = config(INFLUXDB_TOKEN="s3cret", KAFKA_CONFIG="sasl.password=s3cret")
    assert "s3cret" not in result.output
    assert "sasl.password=********" in result.output
    result = config(KAFKA_SCHEMA_REGISTRY_URL="http://user:s3cret@registry:8081")
    assert "s3cret" not in result.output
    assert "SCHEMA_REGISTRY_URL is 'http://********@registry:8081'" in result.output


def test_a_signal_has_variables_of_its_own(config):
    """With --signal, that signal's own variables take precedence."""
    values = {"KAFKA_TOPIC": "all", "LOGS_KAFKA_TOPIC": "logs-only"}
    assert "KAFKA_TOPIC                   = all" in config(**values).output.replace("=  ", "= ")
    assert "= logs-only" in config("--signal", "logs", **values).output


def test_what_is_for_one_signal_alone_is_shown_after_the_list(config):
    """Without --signal, each valid variable of a single signal is one more line, with its value.

    Secrets are masked there too, and what is invalid is only reported.
    """
    given = {
        "TRACES_SINK": "console",
        "LOGS_INFLUXDB_TOKEN": "s3cret",
    }
    result = config(**given)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[len(dict(variables())) :] == [
        f"OTEL_EXPORTER_CBTOP_{line}"
        for line in (
            "TRACES_SINK = console  (for traces alone; see --signal traces)",
            "LOGS_INFLUXDB_TOKEN = ********  (for logs alone; see --signal logs)",
        )
    ]
    assert "alone" not in config("--signal", "traces", **given).output
    result = config(METRICS_TIMEOUT_MS="soon")
    assert "alone" not in result.output
    assert result.stderr.count("'soon'") == 1


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"TIMEOUT_MS": "soon"}, "error: OTEL_EXPORTER_CBTOP_TIMEOUT_MS is 'soon'"),
        ({"SINKS": "console"}, "warning: OTEL_EXPORTER_CBTOP_SINKS is not a variable"),
        ({"SINK": "influxdb"}, "error: sink influxdb needs influxdb.url"),
    ],
    ids=["value", "name", "sink"],
)
def test_what_is_wrong_is_said_and_ends_with_status_1(config, environ, message):
    """A wrong value, an unknown variable or an incomplete sink is reported with status 1."""
    result = config(**environ)
    assert result.exit_code == 1
    assert message in result.stderr


def test_what_is_wrong_for_one_signal_is_said_without_asking_for_it(config):
    """A wrong value for one signal is reported without --signal.

    Its exporter would use the default.
    """
    result = config(TRACES_SINK="consle")
    assert result.exit_code == 1
    assert result.output.count("OTEL_EXPORTER_CBTOP_TRACES_SINK is 'consle'") == 1


def test_a_sink_of_one_signal_alone_that_lacks_something_is_told(config):
    """An incomplete sink of a single signal is reported: all of that signal would be dropped."""
    result = config(METRICS_SINK="influxdb")
    assert result.exit_code == 1
    assert "error: for metrics: sink influxdb needs influxdb.url" in result.output
    result = config(SINK="influxdb")
    assert result.output.count("sink influxdb needs") == 1
    given = {"TRACES_INFLUXDB_URL": "http://db", "TRACES_INFLUXDB_BUCKET": "b"}
    assert config("--signal", "traces", SINK="influxdb", **given).exit_code == 0
    assert config(TIMEOUT_MS="soon").output.count("'soon'") == 1


def test_a_declarative_file_is_told_to_hold_instead(config, monkeypatch):
    """If OTEL_CONFIG_FILE is set, `config` notes that the file's options take precedence.

    The environment only counts where the file says nothing, so what a sink lacks here may be in the
    file. What is wrong in the environment itself still ends with status 1.
    """
    monkeypatch.setenv("OTEL_CONFIG_FILE", "decl.yaml")
    result = config()
    assert result.exit_code == 0
    assert "note: OTEL_CONFIG_FILE is decl.yaml: what it says holds" in result.stderr
    result = config(SINK="influxdb", METRICS_SINK="kafka")
    assert result.exit_code == 0
    assert "note: sink influxdb needs influxdb.url" in result.stderr
    assert "note: for metrics: sink kafka needs kafka.bootstrap_servers" in result.stderr
    result = config(TIMEOUT_MS="soon")
    assert result.exit_code == 1
    assert "error: OTEL_EXPORTER_CBTOP_TIMEOUT_MS is 'soon'" in result.stderr


def test_the_schema_is_the_one_that_events_have():
    """`schema` prints the JSON Schema that the event type generates."""
    assert json.loads(CliRunner().invoke(app, ["schema"]).output) == event_schema()
