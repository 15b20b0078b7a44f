"""The Kafka sink: what a delivery report means for a record.

A record is delivered when its report says so, rejected when the broker will never take it, and
kept in every other case, including when its report did not come in time.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from otel_cbtop_exporter.config import KafkaConfig
from otel_cbtop_exporter.errors import ConfigError, SinkError
from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.fork_lock import forks_wait
from otel_cbtop_exporter.sinks.base import Encoded, Record, Records, WriteResult
from otel_cbtop_exporter.sinks.kafka_causes import TIMEOUT, explain
from otel_cbtop_exporter.sinks.kafka_properties import named_brokers
from otel_cbtop_exporter.sinks.kafka_records import RecordMaker

if TYPE_CHECKING:
    from confluent_kafka import KafkaError

    from otel_cbtop_exporter.sinks.kafka_client import KafkaClient, KafkaLog, Missing
    from otel_cbtop_exporter.sinks.kafka_registry import SchemaRegistry

__all__ = ["KafkaSink"]

# With these errors the broker refuses a whole produce batch because of one of its records.
_REFUSALS = {
    "MSG_SIZE_TOO_LARGE": "too_large",
    "RECORD_LIST_TOO_LARGE": "too_large",
    "INVALID_TIMESTAMP": "invalid",
    "INVALID_RECORD": "invalid",
}
_NO_ANSWER = {"_MSG_TIMED_OUT", "_PURGE_QUEUE", "_PURGE_INFLIGHT", "_TIMED_OUT", "_FATAL"}

# After this many writes in a row without any answer, the producer is replaced.
_SILENT_WRITES = 3

# Producers of a parent process, kept so that they are never destroyed: librdkafka does not work
# in a forked child, and destroying a producer there waits for threads that do not exist.
_inherited: list[KafkaClient] = []


class KafkaSink:
    """Produces events to Kafka; connects at the first write.

    Thread-safe. Only one write is under way at a time, so a purge at its deadline, or a refused
    produce batch, never affects the records of another write.

    Args:
        options: The options of the group `kafka`.

    Raises:
        ConfigError: A header or a property is not Unicode.
        SinkError: A schema registry is asked for, and its client is not installed, or the
            properties name a broker with a login.
    """

    name = "kafka"
    local = False
    max_batch_events = 5_000
    max_batch_bytes = 4_194_304

    def __init__(self, options: KafkaConfig) -> None:
        self._options = options
        # A property overrides our own option, here as in the client. So does one in the file, but
        # the file may not exist yet, so its path stands for its content.
        servers = named_brokers(options.config) or options.bootstrap_servers or ""
        # The registry's prefix, which holds an id of that registry, is put on when a record is
        # written: a sink without a registry, or with another, must not adopt the records.
        registry = _sorted(options.schema_registry_url or "")
        parts = [_sorted(servers), options.config_file, registry and f"registry={registry}"]
        self.destination = " ".join(filter(None, parts))
        _check_unicode("headers", options.headers)
        _check_unicode("config", options.config)
        self._maker = RecordMaker(options)
        if options.schema_registry_url and importlib.util.find_spec("authlib") is None:
            raise SinkError(
                "kafka.schema_registry_url needs the client of the schema registry: "
                "pip install 'otel-cbtop-exporter[schema-registry]'"
            )
        self._registry: SchemaRegistry | None = None
        self._client: KafkaClient | None = None
        self._log: KafkaLog | None = None
        self._is_closed = False
        self._silent_writes = 0  # in a row
        self._lock = threading.Lock()

    def encode(self, events: Sequence[Event]) -> Encoded:
        """Make one record of each event; its topic is its lane."""
        return self._maker.encode(events)

    def write(self, records: Sequence[Record], timeout_seconds: float) -> WriteResult:
        """Produce records of one topic and wait for their reports; never raises."""
        deadline = time.monotonic() + timeout_seconds
        if not records:
            return WriteResult()
        if not self._lock.acquire(timeout=max(0.0, timeout_seconds)):
            return _kept(records, "another write to Kafka took all the time", TIMEOUT)
        try:
            return self._write(Records.of(records), deadline)
        finally:
            self._lock.release()
            self._tell()

    def flush(self, timeout_seconds: float) -> bool:
        """Wait for the current write, if any; between writes nothing is pending."""
        if not self._lock.acquire(timeout=max(0.0, timeout_seconds)):
            return False
        self._lock.release()
        return True

    def close(self, timeout_seconds: float) -> None:
        """End the current write, keeping its undelivered records, and close the producer."""
        deadline = time.monotonic() + timeout_seconds
        self._is_closed = True
        if (client := self._client) is not None:
            client.give_up()
        if not self._lock.acquire(timeout=max(0.0, timeout_seconds)):
            return
        try:
            self._let_go(deadline)
        finally:
            self._lock.release()
            self._tell()

    def after_fork_in_child(self) -> None:
        """Forget the parent's producer without touching it."""
        if self._client is not None:
            _inherited.append(self._client)
        self._client = None
        self._lock = threading.Lock()

    def statistics(self) -> Mapping[str, int]:
        """Return the essential librdkafka statistics, at most 40 s old; may be empty."""
        client = self._client
        return {} if client is None else client.statistics

    def _write(self, records: Records, deadline: float) -> WriteResult:
        if self._is_closed:
            return _kept(records, "the sink is closed", "closed")
        topic = records.lane
        try:
            client = self._connected()
        except SinkError as error:
            return _kept(records, str(error), "config")
        try:
            prefix = self._prefix(topic, deadline)
        except SinkError as error:
            return _kept(records, str(error), "schema_registry")
        now_ms = time.time_ns() // 1_000_000
        # The broker refuses a time too far ahead, together with the rest of its produce batch, and
        # 0 would mean now. The exact time is in the value.
        timestamps_ms = [
            time_ms
            if 0 < (time_ms := time_ns // 1_000_000) <= now_ms
            else max(1, min(time_ms, now_ms))
            for time_ns in records.timestamps_ns
        ]
        missing = client.send(topic, records, timestamps_ms, prefix, deadline)
        # A time that the topic refuses is replaced by the current one. In each round there are more
        # records that have it, so it ends.
        while late := [i for i in _refused_for_time(missing) if timestamps_ms[i] < now_ms]:
            for i in late:
                timestamps_ms[i] = now_ms
            # With all that is missing, or others of their key would arrive before them.
            again = sorted(missing)
            batch = Records.of([records[i] for i in again])
            times_ms = [timestamps_ms[i] for i in again]
            left = client.send(topic, batch, times_ms, prefix, deadline)
            missing = {again[i]: error for i, error in left.items()}
        if not missing:
            self._silent_writes = 0
            return WriteResult(delivered=records)
        result = _answer(client, topic, records, missing)
        is_silent = result.error_type == TIMEOUT and not result.delivered
        self._silent_writes = self._silent_writes + 1 if is_silent else 0
        # A new producer makes new connections. librdkafka does not give up a connection that takes
        # requests and answers none if they wait for less than its `socket.timeout.ms`.
        is_deaf = self._silent_writes >= _SILENT_WRITES
        if client.is_fatal or client.is_login_refused or is_deaf:
            self._silent_writes = 0
            self._let_go(deadline)
        return result

    def _connected(self) -> KafkaClient:
        if self._client is None:
            # confluent_kafka takes 70 ms to import, which the writing thread can spare.
            with forks_wait():
                from otel_cbtop_exporter.sinks.kafka_client import (  # noqa: PLC0415
                    KafkaClient,
                    KafkaLog,
                )

            self._log = self._log or KafkaLog()
            self._client = KafkaClient(self._options, self._lock, self._log)
        return self._client

    def _prefix(self, topic: str, deadline: float) -> bytes:
        """Return the bytes that a schema registry requires before each value."""
        if not self._options.schema_registry_url:
            return b""
        if self._registry is None:
            # It needs an extra of its own, and its HTTP client takes longer to import than Kafka's.
            with forks_wait():
                from otel_cbtop_exporter.sinks.kafka_registry import (  # noqa: PLC0415
                    SchemaRegistry,
                )

            self._registry = SchemaRegistry(self._options)
        return self._registry.prefix(topic, deadline - time.monotonic())

    def _tell(self) -> None:
        # Only without the lock: a handler may export librdkafka's log lines through this sink.
        if self._log is not None:
            self._log.tell()

    def _let_go(self, deadline: float) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close(max(0.0, deadline - time.monotonic()))


def _sorted(addresses: str) -> str:
    return ",".join(sorted(part.strip().rstrip("/") for part in addresses.split(",")))


def _check_unicode(option: str, texts: Mapping[str, str]) -> None:
    try:
        "".join([*texts, *texts.values()]).encode()
    except UnicodeEncodeError:  # such a name crashes the process inside confluent-kafka
        raise ConfigError(f"kafka.{option} holds text that is not Unicode") from None


def _kept(records: Sequence[Record], error: str, error_type: str) -> WriteResult:
    return WriteResult(kept=records, error=error, error_type=error_type)


def _answer(
    client: KafkaClient,
    topic: str,
    records: Sequence[Record],
    missing: Missing,
) -> WriteResult:
    """Sort records by their reports; refused ones are kept, for the sender to halve."""
    delivered: list[Record] = []
    kept: list[Record] = []
    split_reason = split_detail = error = error_type = ""
    for index, record in enumerate(records):
        if index not in missing:
            delivered.append(record)
            continue
        kept.append(record)
        name, words = _cause(client, missing[index])
        # Alone, it was refused with the current time as well.
        is_late = name == "INVALID_TIMESTAMP" and len(missing) == 1
        if name in _REFUSALS and not is_late:
            split_reason, split_detail = _REFUSALS[name], f"{name}: {words}"
        if not error or error_type == TIMEOUT:
            error, error_type = explain(name, words, topic), name
    return WriteResult(
        delivered=delivered,
        kept=kept,
        error=error,
        error_type=error_type,
        split_reason=split_reason,
        split_detail=split_detail,
    )


def _refused_for_time(missing: Missing) -> list[int]:
    """Return the records that may have been refused for their time, by position.

    librdkafka names two or more records at fault INVALID_RECORD, and so tells them from the others
    of their produce batch. If only one is, all have the same name until it is alone.
    """
    name = "INVALID_TIMESTAMP" if len(missing) == 1 else "INVALID_RECORD"
    return [position for position, error in missing.items() if _name(error) == name]


def _name(error: KafkaError | None) -> str:
    return "" if error is None else error.name()


def _cause(client: KafkaClient, error: KafkaError | None) -> tuple[str, str]:
    """Return an error's name and words; a missing report has none, so the client is asked."""
    if error is None or error.name() in _NO_ANSWER:
        return client.cause or (TIMEOUT, "")
    return error.name(), error.str()
