"""Sinks send bytes to the outside, one module for each. Made by name, and imported only then."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.errors import ConfigError, SinkError
from otel_cbtop_exporter.fork_lock import forks_wait
from otel_cbtop_exporter.sinks.base import Sink

__all__ = ["check_sink", "sink_factory"]


def sink_factory(name: str, config: ExporterConfig) -> Callable[[], Sink]:
    """Return a function that makes a sink, after checking that it can be made at all.

    Touches neither disk nor network, and imports no client library.

    Args:
        name: `jsonlines`, `influxdb`, `kafka` or `console`.
        config: Only the sink's own group is read.

    Raises:
        SinkError: A required setting is missing, or the sink's extra is not installed; the
            message says which variable to set or what to install.
    """
    return _FACTORIES[name](config)


def check_sink(sink: object) -> None:
    """Check that an object that was given as a sink is one, before anything is sent to it.

    Raises:
        ConfigError: It lacks members of `Sink`; the message names all of them.
    """
    members = [*Sink.__annotations__, *(name for name in vars(Sink) if not name.startswith("_"))]
    if lacking := [name for name in members if not hasattr(sink, name)]:
        raise ConfigError(
            f"sink is of type {type(sink).__name__}, which lacks {', '.join(lacking)}: "
            "expected a sink's name, or an object with all members of otel_cbtop_exporter.Sink"
        )


def _jsonlines(config: ExporterConfig) -> Callable[[], Sink]:
    with forks_wait():
        from otel_cbtop_exporter.sinks.jsonlines import JsonLinesSink

    return lambda: JsonLinesSink(config.jsonlines)


def _console(config: ExporterConfig) -> Callable[[], Sink]:
    with forks_wait():
        from otel_cbtop_exporter.sinks.console import ConsoleSink

    return lambda: ConsoleSink(config.console)


def _influxdb(config: ExporterConfig) -> Callable[[], Sink]:
    _require_extra("influxdb", "urllib3")
    for option in ("url", "bucket"):
        if not getattr(config.influxdb, option):
            raise _missing("influxdb", option)

    def make() -> Sink:
        with forks_wait():
            from otel_cbtop_exporter.sinks.influxdb import InfluxDBSink

        return InfluxDBSink(config.influxdb)

    return make


def _kafka(config: ExporterConfig) -> Callable[[], Sink]:
    _require_extra("kafka", "confluent_kafka")
    # Small, and imports no client library. Imported here, because other sinks do not need it.
    with forks_wait():
        from otel_cbtop_exporter.sinks.kafka_properties import named_brokers

    options = config.kafka
    if not (options.bootstrap_servers or named_brokers(options.config) or options.config_file):
        raise _missing("kafka", "bootstrap_servers")

    def make() -> Sink:
        with forks_wait():
            from otel_cbtop_exporter.sinks.kafka import KafkaSink

        return KafkaSink(config.kafka)

    return make


_FACTORIES: dict[str, Callable[[ExporterConfig], Callable[[], Sink]]] = {
    "jsonlines": _jsonlines,
    "console": _console,
    "influxdb": _influxdb,
    "kafka": _kafka,
}


def _require_extra(extra: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise SinkError(
            f"sink {extra} needs the package {package}: pip install 'otel-cbtop-exporter[{extra}]'"
        )


def _missing(group: str, option: str) -> SinkError:
    variable = f"OTEL_EXPORTER_CBTOP_{group}_{option}".upper()
    return SinkError(f"sink {group} needs {group}.{option}; set it or {variable}")
