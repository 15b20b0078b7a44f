"""librdkafka's properties: our defaults, overridden by options, overridden by a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from otel_cbtop_exporter.config import KafkaConfig
from otel_cbtop_exporter.errors import SinkError

__all__ = ["named_brokers", "read_properties", "read_registry_config"]

_OURS = {
    "client.id": "otel-cbtop-exporter",
    # librdkafka's default partitioner agrees with the Java clients' on only one key in twelve.
    "partitioner": "murmur2_random",
    # The broker refuses a whole produce batch over the topic's max.message.bytes, and by default
    # librdkafka's batches grow to 1 MB.
    "batch.size": "262144",
    # The broker decides how large a record may be. But for a request over its
    # socket.request.max.bytes (100 MiB) it would drop the connection instead of reporting.
    "message.max.bytes": "16777216",
    # Report a topic that does not exist after a quarter of a second instead of 30 seconds: other
    # topics, and the end of the process, wait meanwhile.
    "topic.metadata.propagation.max.ms": "250",
    "reconnect.backoff.max.ms": "2000",
    # A connection that a router has forgotten takes requests and answers none. librdkafka's
    # default is a minute, and our records are purged and sent again before that.
    "socket.timeout.ms": "5000",
    # Report within seconds what cannot be taken, for example by a partition with too few replicas.
    # Retrying without end is the spool's task.
    "retries": "5",
    "statistics.interval.ms": "30000",
}

_OF_REGISTRY = "schema.registry."

# Compresses spans as well as librdkafka's default, 3, and takes 0.7 us of CPU less for each.
_ZSTD_LEVEL = "1"


def named_brokers(properties: Mapping[str, str]) -> str:
    """Return the brokers that properties name, by either of librdkafka's names for them.

    Raises:
        SinkError: They hold a login, which librdkafka would not use, but log.
    """
    brokers = properties.get("metadata.broker.list") or properties.get("bootstrap.servers") or ""
    if "@" in brokers:
        raise SinkError(
            "kafka: the brokers hold an '@': a login goes into sasl.username and sasl.password"
        )
    return brokers


def read_properties(options: KafkaConfig) -> dict[str, str]:
    """Return librdkafka's properties: our defaults, options, `config`, `config_file`; last wins.

    Raises:
        SinkError: `config_file` cannot be read or holds a line that is not a property, a property
            is one that this sink does not support, no broker is named, or one with a login.
    """
    given = dict(options.config)
    for number, line in enumerate(_lines(options.config_file), 1):
        name, separator, text = line.strip().partition("=")
        if not name or name.startswith("#"):
            continue
        if not separator:  # ignoring `security.protocol: SASL_SSL` would mean no security
            raise SinkError(f"kafka.config_file: line {number} is not name=value")
        if name.startswith(_OF_REGISTRY):
            if name.strip() == f"{_OF_REGISTRY}url":
                raise SinkError(
                    "kafka.config_file: give the registry's address as kafka.schema_registry_url"
                )
            if not options.schema_registry_url:
                raise SinkError(
                    f"kafka.config_file: {name.strip()} needs kafka.schema_registry_url, "
                    "which is not set"
                )
            continue
        given[name.strip()] = text.strip()
    if "transactional.id" in given:
        raise SinkError("kafka: transactional.id is not supported, records are sent one by one")
    properties: dict[str, str] = {
        **_OURS,
        "acks": options.acks,
        "compression.type": options.compression,
        "linger.ms": str(options.linger_ms),
    }
    if options.compression == "zstd":
        properties["compression.level"] = _ZSTD_LEVEL
    if options.bootstrap_servers:
        properties["bootstrap.servers"] = options.bootstrap_servers
    properties.update(given)
    if not named_brokers(properties):
        raise SinkError("kafka.bootstrap_servers is not set, and no property names a broker")
    acks = given.get("request.required.acks", properties["acks"])
    # librdkafka refuses to start with idempotence and any `acks` but `all`.
    return {"enable.idempotence": str(acks in ("all", "-1")).lower(), **properties}


def read_registry_config(options: KafkaConfig) -> dict[str, str]:
    """Return the schema registry client's properties: the option's, overridden by the file's.

    In `config_file` they are the lines that begin with `schema.registry.`.

    Raises:
        SinkError: `config_file` cannot be read.
    """
    lines = [line.strip().partition("=") for line in _lines(options.config_file)]
    given = {
        name.strip().removeprefix(_OF_REGISTRY): text.strip()
        for name, _, text in lines
        if name.startswith(_OF_REGISTRY)
    }
    return {**options.schema_registry_config, **given}


def _lines(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        return Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise SinkError(f"kafka.config_file {path} cannot be read: {why}") from None
