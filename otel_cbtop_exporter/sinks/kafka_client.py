"""One librdkafka producer: its reports, and what it says beside them.

Belongs here: everything that touches `confluent_kafka`. Not here: its properties
(`kafka_properties.py`), and what a report means for a record (`kafka.py`).
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
"""Records that are not acknowledged, by index: their errors, None where nothing was said."""

_SLICE_SECONDS = 0.1
_KEPT_FOR_PURGING_SECONDS = 0.2
_PURGE_SECONDS = 1.0
# With every broker down, whoever waits is told after so long, and tries again later. Sooner, and
# a broker that restarts would get again what it had taken and not acknowledged.
_PATIENCE_SECONDS = 2.0
_SERVE_SECONDS = 10.0
_LOG_SECONDS = 60.0
_LOG_LENGTH = 300


class KafkaClient:
    """A connected producer, and the cause of its trouble.

    One caller at a time, who holds `lock`: then every report that is still to come belongs to
    that caller's records. A daemon thread takes the lock every ten seconds where nobody holds
    it, because librdkafka hands out its logs, errors, statistics and requests for OAUTHBEARER
    tokens only when it is asked, and piles them up otherwise.

    Attributes:
        statistics: The latest of librdkafka's, by our names; empty before the first.
        cause: Name and words of what the last `send` heard beside the reports, or None.
        is_fatal: Whether this producer will never deliver again.
        is_login_refused: Whether a broker refused the login or the TLS handshake during the
            last `send`; a new producer reads passwords and certificates again.

    Args:
        options: The properties come from here, and from the file that is named here.
        lock: See above.
        log: Takes what librdkafka logs.

    Raises:
        SinkError: A file cannot be read, or librdkafka refuses a property; says which.
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
        # Of confluent-kafka itself, for a property that is no text there, such as a callback.
        except (TypeError, ValueError, AttributeError) as error:
            word = type(error).__name__
            raise SinkError(f"kafka.config holds a property that is not text ({word})") from None
        self._server = threading.Thread(target=self._serve, name="otel-cbtop-kafka", daemon=True)
        try:
            self._server.start()
        except RuntimeError:  # from Python 3.12 on, none can be started while Python ends
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

        What has no report shortly before the deadline is purged, so that librdkafka does not
        deliver later what the caller sends again.

        Args:
            topic: Of all records.
            records: In order.
            timestamps_ms: One for each record.
            prefix: Put before each value.
            deadline: On the monotonic clock.

        Returns:
            What is not acknowledged; usually nothing.
        """
        if self._has_sent:  # what was said since the last time is history
            self._serve_queue(0)
            self.cause = None
            self.is_login_refused = self._are_all_down = False
        self._has_sent = True
        now = time.monotonic()
        self._hopeless_at = now + _PATIENCE_SECONDS
        wait_until = deadline - min(_KEPT_FOR_PURGING_SECONDS, (deadline - now) / 4)
        # By value, so that one callback does for all records: one for each, which knew its index,
        # would cost a tenth more. Of equal records one is as good as the other.
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
                    break  # a topic that appears now must not have what is behind it first
        unknown_from = handed_over if self._wait(wait_until, deadline) else 0
        missing: dict[int, KafkaError | None] = dict.fromkeys(range(unknown_from, len(records)))
        if errors:
            for index, value in enumerate(values):
                if errors.get(value):
                    missing[index] = errors[value].pop(0)
        return missing

    def give_up(self) -> None:
        """End a `send` that another thread is in, within a tenth of a second."""
        self._is_giving_up = True

    def close(self, timeout_seconds: float) -> None:
        """Let go of everything, within the time."""
        deadline = time.monotonic() + timeout_seconds
        self._stop.set()
        if self._server.is_alive():
            self._server.join(max(0.0, deadline - time.monotonic()))
        # Otherwise closing waits for delivery.timeout.ms when the broker is away.
        self._purge()
        # It joins librdkafka's threads, and one of those may be waiting for a name server.
        closing = threading.Thread(target=self._destroy, daemon=True)
        try:
            closing.start()
        except RuntimeError:
            return  # the process ends, and its threads with it
        closing.join(max(0.0, deadline - time.monotonic()))

    def _destroy(self) -> None:
        # Before confluent-kafka 2.13 there is no close; the last reference is what counts.
        del self._producer

    def _is_over(self, until: float) -> bool:
        """Say whether waiting is of no more use."""
        now = time.monotonic()
        is_hopeless = self._are_all_down and (self.is_login_refused or now >= self._hopeless_at)
        return is_hopeless or self.is_fatal or self._is_giving_up or now >= until

    def _wait(self, until: float, deadline: float) -> bool:
        """Wait for reports, then purge what has none; True if every record has one now."""
        while not self._is_over(until):
            # flush sends at once what otherwise lingers for more to come.
            if not self._flush(min(_SLICE_SECONDS, max(0.0, until - time.monotonic()))):
                return True
        # Again and again, because a message that is on its way between librdkafka's queues is
        # missed; not for long, because whoever gave up waits for this.
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
        # Its `blocking` is librdkafka's opposite (in its Producer.c), so the default does
        # not block. False would wait, with Python's lock held, for threads that may be looking up
        # a name: with the name server away the whole process stood still for 10 s.
        self._producer.purge()

    def _serve_queue(self, timeout_seconds: float) -> None:
        """Hand out what librdkafka has to say, or wait for the first of it."""
        try:
            self._producer.poll(timeout_seconds)
        except KafkaException as error:
            self._on_error(error.args[0])

    def _flush(self, timeout_seconds: float) -> int:
        """Wait for reports; return how many are missing."""
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
        # In TLS 1.3 a broker refuses the client's certificate after the client's handshake.
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
    """librdkafka's log on the package's logger, each kind of line once a minute.

    A sink has one for all its clients: each of them would tell again what the one before told.
    """

    def __init__(self) -> None:
        super().__init__(_logger)
        self._next: dict[str, float] = {}

    def log(self, level: int, template: str, *arguments: Any) -> None:
        """Take one line; librdkafka calls it, while a lock is held."""
        if not _logger.isEnabledFor(level):
            return
        now = time.monotonic()
        kind = str(arguments[0]) if arguments else template
        if level > logging.DEBUG and now < self._next.get(kind, now):
            return
        self._next[kind] = now + _LOG_SECONDS
        super().log(level, "%s", cleaned(template % arguments, _LOG_LENGTH))
