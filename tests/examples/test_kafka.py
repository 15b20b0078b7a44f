"""The files of examples/kafka fit together, and Telegraf's points are those of our sink."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from line_protocol_parser import parse_line

from otel_cbtop_exporter.config import KafkaConfig
from tests.golden.cases import FOLDER as GOLDEN

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[2] / "examples" / "kafka"
SERVICES = yaml.safe_load((FOLDER / "docker-compose.yml").read_text())["services"]
TELEGRAF = tomllib.loads((FOLDER / "telegraf.conf").read_text())

# Texts that Telegraf and our sink escape differently.
HARD_TEXTS = {"log_hard_texts", "metric_hard_tags", "span_hard_texts"}


def test_compose_names_files_that_exist():
    """Every mounted file exists, and is mounted where the container looks for it."""
    telegraf = SERVICES["telegraf"]
    mounted = dict(volume.split(":")[:2] for volume in telegraf["volumes"])
    assert all((FOLDER / file).is_file() for file in mounted)
    assert telegraf["environment"]["EVENT_SCRIPT"] in mounted.values()
    assert set(telegraf["depends_on"]) <= set(SERVICES)


def test_compose_gives_telegraf_what_it_asks_for():
    """Every variable of telegraf.conf is set, to the values that InfluxDB is set up with."""
    given = SERVICES["telegraf"]["environment"]
    asked = re.findall(r"\$\{(\w+)\}", (FOLDER / "telegraf.conf").read_text())
    assert set(asked) == set(given)
    influxdb = SERVICES["influxdb"]["environment"]
    for ours, theirs in (("TOKEN", "ADMIN_TOKEN"), ("ORG", "ORG"), ("BUCKET", "BUCKET")):
        assert given[f"INFLUX_{ours}"] == influxdb[f"DOCKER_INFLUXDB_INIT_{theirs}"]


def test_compose_listens_where_its_clients_look():
    """Kafka advertises one listener for programs on the host and one for other containers."""
    kafka = SERVICES["kafka"]["environment"]
    advertised = dict(
        listener.split("://") for listener in kafka["KAFKA_ADVERTISED_LISTENERS"].split(",")
    )
    assert advertised["CONTAINERS"] == SERVICES["telegraf"]["environment"]["KAFKA_BROKERS"]
    assert advertised["HOST"] in (FOLDER / "trace.py").read_text()
    assert advertised["HOST"].endswith(SERVICES["kafka"]["ports"][0].rpartition(":")[2])
    listeners = [part.partition("://")[0] for part in kafka["KAFKA_LISTENERS"].split(",")]
    protocols = kafka["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")
    assert sorted(part.partition(":")[0] for part in protocols) == sorted(listeners)


def test_telegraf_reads_the_topics_of_the_sink():
    """Telegraf reads the topics that the exporter writes to by default."""
    (consumer,) = TELEGRAF["inputs"]["kafka_consumer"]
    topic = KafkaConfig().topic
    assert consumer["topics"] == [
        topic.replace("{signal}", kind) for kind in ("metrics", "spans", "logs")
    ]


def run_script(message):
    """Run event.star on a message; Starlark is Python with a few different names."""
    names = {"str": "string"}
    scope = {
        "load": lambda *_: None,
        "json": SimpleNamespace(decode=json.loads, encode=json.dumps),
        "type": lambda value: names.get(type(value).__name__, type(value).__name__),
    }
    exec((FOLDER / "event.star").read_text(), scope)
    metric = SimpleNamespace(
        name="kafka_consumer", time=0, tags={"host": "telegraf"}, fields={"value": message}
    )
    assert scope["apply"](metric) is metric
    return metric.name, metric.tags, _with_json(metric.fields), metric.time


def _with_json(fields):
    """Parse JSON fields, and tell apart integers and floats."""
    return {
        key: json.loads(value) if key in ("attributes", "metric") else (value, type(value))
        for key, value in fields.items()
    }


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(GOLDEN.glob("*.jsonl")) if p.stem not in HARD_TEXTS],
    ids=lambda p: p.stem,
)
def test_telegraf_makes_the_points_of_the_influxdb_sink(path):
    """For each golden event, Telegraf's point equals our sink's, with its types and time."""
    messages = path.read_bytes().splitlines()
    lines = path.with_suffix(".lp").read_bytes().splitlines()
    compared = 0
    for message, line in zip(messages, lines, strict=True):
        point = parse_line(line.decode())
        if "original_timestamp_ns" in point["fields"]:  # the sink moved its time
            continue
        fields = _with_json(point["fields"])
        assert run_script(message) == (point["measurement"], point["tags"], fields, point["time"])
        compared += 1
    assert compared
