"""One librdkafka producer: its delivery reports, and its errors, statistics and log.

Belongs here: everything that touches the producer of `confluent_kafka`. Not here: its
properties (`kafka_properties.py`), and what a report means for a record (`kafka.py`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from otel_cbtop_exporter.config import KafkaConfig
from otel_cbtop_exporter.errors import SinkError
from otel_cbtop_exporter.own_log import HeldLog
from otel_cbtop_exporter.sinks.base import Records
from otel_cbtop_exporter.sinks.kafka_causes import cleaned, explain
from otel_cbtop_exporter.sinks.kafka_properties import read_properties
from otel_cbtop_exporter.sinks.kafka_statistics import essentials

__all__ = ["KafkaClient", "KafkaLog", "Missing"]

_logger = logging.getLogger("otel_cbtop_exporter.kafka")

Missing = Mapping[int, KafkaError | None]
"""Records that are not acknowledged, by index: their errors, or None if there was no report."""

_SLICE_SECONDS = 0.1
_KEPT_FOR_PURGING_SECONDS = 0.2
_PURGE_SECONDS = 1.0
# With every broker down, a `send` gives up after this time, and its caller tries again later. If it
# gave up sooner, a restarting broker would get records again that it took but did not acknowledge.
_PATIENCE_SECONDS = 2.0
_SERVE_SECONDS = 10.0
_LOG_SECONDS = 60.0
_LOG_LENGTH = 300


class KafkaClient:
    """A connected producer, and the cause of its problems.

    Used by one caller at a time, who holds `lock`, so that every outstanding report belongs to
    that caller's records. Every ten seconds a daemon thread takes the lock if it is free and
    polls, because librdkafka hands out its logs, errors, statistics and requests for OAUTHBEARER
    tokens only when it is polled, and accumulates them otherwise.

    Attributes:
        statistics: The latest from librdkafka, by our names; empty before the first.
        cause: Name and words of the error that came during the last `send` outside of the
            reports, or None.
        is_fatal: Whether this producer will never deliver again.
        is_login_refused: Whether a broker refused the login or the TLS handshake during the
            last `send`; a new producer reads passwords and certificates again.

    Args:
        options: The source of the properties, together with the file that it names.
        lock: See above.
        log: Takes what librdkafka logs.

    Raises:
        SinkError: A file cannot be read, or librdkafka refuses a property; the message says
            which.
    """

    def __init__(self, options: KafkaConfig, lock: threading.Lock, log: KafkaLog) -> None:
        self.statistics: dict[str, int] = {}
        self.cause: tuple[str, str] | None = None
        self.is_fatal = False
        self.is_login_refused = False
        self._has_sent = False
        self._are_all_down = False
        self._hopeless_at = 0.0
        self._is_giving_up = False
        self._lock = lock
        self._log = log
        self._stop = threading.Event()
        properties = read_properties(options)
        try:
            self._producer = Producer(
                {
                    **properties,
                    "delivery.report.only.error": True,
                    "error_cb": self._on_error,
                    "stats_cb": self._on_statistics,
                },
                logger=log,
            )
        except KafkaException as error:
            raise SinkError(explain(error.args[0].name(), error.args[0].str(), "")) from None
        # From confluent-kafka itself, if it does not take a property as text, such as a callback.
        except (TypeError, ValueError, AttributeError) as error:
            word = type(error).__name__
            raise SinkError(f"kafka.config holds a property that is not text ({word})") from None
        self._server = threading.Thread(target=self._serve, name="otel-cbtop-kafka", daemon=True)
        try:
            self._server.start()
        except RuntimeError:  # from Python 3.12 on, no thread can start while Python shuts down
            self._stop.set()

    def send(
        self,
        topic: str,
        records: Records,
        timestamps_ms: Sequence[int],
        prefix: bytes,
        deadline: float,
    ) -> Missing:
        """Produce records and wait for their reports.

        Records without a report shortly before the deadline are purged, so that librdkafka does
        not deliver them later, after the caller has sent them again.

        Args:
            topic: The topic of all records.
            records: In order.
            timestamps_ms: One for each record.
            prefix: Put before each value.
            deadline: On the monotonic clock.

        Returns:
            The records that are not acknowledged; usually none.
        """
        if self._has_sent:  # discard what came since the last `send`
            self._serve_queue(0)
            self.cause = None
            self.is_login_refused = self._are_all_down = False
        self._has_sent = True
        now = time.monotonic()
        self._hopeless_at = now + _PATIENCE_SECONDS
        wait_until = deadline - min(_KEPT_FOR_PURGING_SECONDS, (deadline - now) / 4)
        # Keyed by value, so that all records share one callback: a callback for each record, which
        # knows its index, costs a tenth more. Records with equal values are interchangeable.
        errors: dict[bytes, list[KafkaError]] = {}

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                errors.setdefault(message.value() or b"", []).append(error)

        produce = self._producer.produce
        values = [prefix + body for body in records.bodies] if prefix else records.bodies
        handed_over = 0
        while handed_over < len(records):
            messages = zip(values, records.keys, timestamps_ms, records.headers, strict=True)
            try:
                for value, key, timestamp_ms, pairs in islice(messages, handed_over, None):
                    headers: Any = list(pairs) if pairs else None
                    produce(topic, value, key, -1, on_delivery, None, timestamp_ms, headers)
                    handed_over += 1
            except BufferError:  # the queue is full: make room, without lingering, and go on
                self._flush(_SLICE_SECONDS)
                if self._is_over(wait_until):
                    break
            except KafkaException as error:
                errors.setdefault(value, []).append(error.args[0])
                self.is_fatal = self.is_fatal or error.args[0].name() == "_FATAL"
                handed_over += 1
                if error.args[0].name() != "MSG_SIZE_TOO_LARGE":
                    break  # if the topic appears now, later records must not overtake this one
        unknown_from = handed_over if self._wait(wait_until, deadline) else 0
        missing: dict[int, KafkaError | None] = dict.fromkeys(range(unknown_from, len(records)))
        if errors:
            for index, value in enumerate(values):
                if errors.get(value):
                    missing[index] = errors[value].pop(0)
        return missing

    def give_up(self) -> None:
        """Make a `send` in another thread stop waiting, within a tenth of a second."""
        self._is_giving_up = True

    def close(self, timeout_seconds: float) -> None:
        """Release everything within the timeout."""
        deadline = time.monotonic() + timeout_seconds
        self._stop.set()
        if self._server.is_alive():
            self._server.join(max(0.0, deadline - time.monotonic()))
        # Otherwise closing waits for delivery.timeout.ms when the broker is away.
        self._purge()
        # Destroying the producer joins librdkafka's threads, and one may be waiting for DNS.
        closing = threading.Thread(target=self._destroy, daemon=True)
        try:
            closing.start()
        except RuntimeError:
            return  # Python is shutting down, and the threads end with the process
        closing.join(max(0.0, deadline - time.monotonic()))

    def _destroy(self) -> None:
        # Before confluent-kafka 2.13 there is no close(); dropping the last reference destroys it.
        del self._producer

    def _is_over(self, until: float) -> bool:
        """Whether there is no point in waiting any longer."""
        now = time.monotonic()
        is_hopeless = self._are_all_down and (self.is_login_refused or now >= self._hopeless_at)
        return is_hopeless or self.is_fatal or self._is_giving_up or now >= until

    def _wait(self, until: float, deadline: float) -> bool:
        """Wait for reports, then purge records that have none; return True if none is missing."""
        while not self._is_over(until):
            # `flush` sends messages at once that would otherwise linger for more to come.
            if not self._flush(min(_SLICE_SECONDS, max(0.0, until - time.monotonic()))):
                return True
        # Purge repeatedly, because a purge misses messages that are moving between librdkafka's
        # queues; but not for long, because whoever gave up is waiting for this.
        end = min(deadline, time.monotonic() + _PURGE_SECONDS)
        while True:
            self._purge()
            left_seconds = max(0.0, end - time.monotonic())
            if not self._flush(min(_SLICE_SECONDS, left_seconds)):
                return True
            if not left_seconds:
                return False

    def _purge(self) -> None:
        """Give up all messages; their reports come soon after."""
        # confluent-kafka passes `blocking` on inverted (see its Producer.c), so the default does
        # not block. False would wait, with the GIL held, for threads that may be resolving a host
        # name: with the name server down, the whole process stood still for 10 s.
        self._producer.purge()

    def _serve_queue(self, timeout_seconds: float) -> None:
        """Run the callbacks of whatever librdkafka has queued, or wait for the first."""
        try:
            self._producer.poll(timeout_seconds)
        except KafkaException as error:
            self._on_error(error.args[0])

    def _flush(self, timeout_seconds: float) -> int:
        """Wait for reports; return how many are still missing."""
        try:
            return self._producer.flush(timeout_seconds)
        except KafkaException as error:
            self._on_error(error.args[0])
            return len(self._producer)

    def _serve(self) -> None:
        while not self._stop.wait(_SERVE_SECONDS):
            if self._lock.acquire(blocking=False):
                try:
                    if not self._stop.is_set():
                        self._serve_queue(0)
                finally:
                    self._lock.release()
                self._log.tell()

    def _on_error(self, error: KafkaError) -> None:
        name, words = error.name(), error.str()
        # In TLS 1.3 a broker refuses a client certificate only after the client has completed its
        # handshake.
        if name == "_TRANSPORT" and "SSL routines" in words:
            name = "_SSL"
        if error.fatal() or name == "_FATAL":
            self.is_fatal = True
            self.cause = name, words
        elif name in ("_AUTHENTICATION", "_SSL"):
            self.is_login_refused = True
            self.cause = name, words
        elif name == "_ALL_BROKERS_DOWN":
            self._are_all_down = True
            known, why = self.cause or ("_TRANSPORT", words)
            self.cause = (name if known == "_TRANSPORT" else known), why
        elif not self.is_login_refused:
            is_one_of_all = name == "_TRANSPORT" and self._are_all_down
            self.cause = ("_ALL_BROKERS_DOWN" if is_one_of_all else name), words

    def _on_statistics(self, text: str) -> None:
        self.statistics = essentials(text)


class KafkaLog(HeldLog):
    """librdkafka's log on the package's logger, each kind of line at most once a minute.

    A sink shares one among all its clients; otherwise each client would repeat the last one's
    lines.
    """

    def __init__(self) -> None:
        super().__init__(_logger)
        self._next: dict[str, float] = {}

    def log(self, level: int, template: str, *arguments: Any) -> None:
        """Take one line; called by librdkafka while a lock is held."""
        if not _logger.isEnabledFor(level):
            return
        now = time.monotonic()
        kind = str(arguments[0]) if arguments else template
        if level > logging.DEBUG and now < self._next.get(kind, now):
            return
        self._next[kind] = now + _LOG_SECONDS
        super().log(level, "%s", cleaned(template % arguments, _LOG_LENGTH))
