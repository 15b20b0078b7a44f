"""The sender: the only retry loop, and the only caller of `sink.write`.

It cuts records into batches of the size that the sink wants, halves a batch that is refused as a
whole until the records at fault are alone, and gives up in time. It keeps nothing: records that it
returns as kept belong to the caller again.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from otel_cbtop_exporter.config import RetryConfig
from otel_cbtop_exporter.delivery.retry import Clock, next_delay_seconds
from otel_cbtop_exporter.health import HealthCounters
from otel_cbtop_exporter.own_log import RateLimitedLog, were
from otel_cbtop_exporter.sinks.base import Record, Records, Rejection, Sink, WriteResult

__all__ = ["Sender", "Sent"]

_NOTHING = Records(())


class Sent(msgspec.Struct):
    """What became of records; the three outcomes add up to what was sent.

    Attributes:
        delivered: Records that the destination acknowledged.
        rejected: Records that were refused for good.
        kept: Records that were not delivered and may be tried again, oldest first.
        retry_after_seconds: The longest time that the destination asked for, or None.
        error: Why records were kept or rejected, the last reason; "" if there was none.
        error_type: A short stable word for `error`.
    """

    delivered: Records = _NOTHING
    rejected: list[Rejection] = []
    kept: Records = _NOTHING
    retry_after_seconds: float | None = None
    error: str = ""
    error_type: str = ""

    @property
    def why_rejected(self) -> str:
        """The error, if it is known to be about the rejected records."""
        return "" if self.kept else self.error

    def add(self, other: Sent) -> None:
        """Add the result of another attempt, except for the records it kept."""
        self.delivered = Records.joined([self.delivered, other.delivered])
        self.rejected += other.rejected
        self.retry_after_seconds = other.retry_after_seconds
        if other.error_type:
            self.error, self.error_type = other.error, other.error_type

    def left_of(self, records: Sequence[Record]) -> Records:
        """Return the records that were neither delivered nor rejected, in order."""
        # Compared by value: equal records are interchangeable.
        gone = Counter([*self.delivered, *(rejection.record for rejection in self.rejected)])
        left: list[Record] = []
        for record in records:
            if gone[record] > 0:
                gone[record] -= 1
            else:
                left.append(record)
        return Records.of(left)


class Sender:
    """Writes records to one sink and counts what becomes of them; thread-safe.

    Args:
        sink: Where to write.
        counters: Counts deliveries and errors; rejections and drops are counted by the caller, who
            knows what becomes of the records.
        log: Where to say why records were kept.
        retry: Bounds of the backoff between the tries of `send`.
        max_batch_events: Overrides the sink's own limit if set.
        max_batch_bytes: Overrides the sink's own limit if set.
        clock: For deadlines and for the time of the last write.
        jitter: Returns a number in [0, 1).
        wait: Waits so many seconds; returns True if a shutdown woke it.
        spooled: Whether kept records wait in a spool.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        counters: HealthCounters,
        log: RateLimitedLog,
        retry: RetryConfig,
        max_batch_events: int | None,
        max_batch_bytes: int | None,
        clock: Clock,
        jitter: Callable[[], float],
        wait: Callable[[float], bool],
        spooled: bool,
    ) -> None:
        self._sink = sink
        self._counters = counters
        self._log = log
        self._retry = retry
        self.max_batch_events = max_batch_events or sink.max_batch_events
        self.max_batch_bytes = max_batch_bytes or sink.max_batch_bytes
        self._clock = clock
        self._jitter = jitter
        self._wait = wait
        self._prospect = " (kept, to be tried again)" if spooled else ""
        self._refused: set[str] = set()  # lanes that were refused and whose recovery is not logged
        # Held while an answer is counted. Reentrant: a signal handler may shut down meanwhile.
        self._counting = threading.RLock()
        self._abandoned = False

    def abandon(self) -> None:
        """Stop counting answers: nobody waits any longer for a write that hangs."""
        with self._counting:
            self._abandoned = True

    def send(self, records: Sequence[Record], deadline: float) -> Sent:
        """Try, wait and try again until all is settled, or retries or time are used up.

        Never sleeps past the deadline: it gives up before a wait that would. A refused lane does
        not delay the others.

        Args:
            records: Of one or several lanes.
            deadline: On the clock's `monotonic`.
        """
        sent = self.attempt(records, deadline)
        for attempt in range(self._retry.max_retries):
            if not sent.kept:
                break
            delay = next_delay_seconds(
                attempt,
                self._retry,
                asked_seconds=sent.retry_after_seconds,
                jitter=self._jitter(),
            )
            if self._clock.monotonic() + delay >= deadline or self._wait(delay):
                break
            again = self.attempt(sent.kept, deadline)
            again.delivered = Records.joined([sent.delivered, again.delivered])
            again.rejected = sent.rejected + again.rejected
            sent = again
        return sent

    def attempt(
        self,
        records: Sequence[Record],
        deadline: float,
        *,
        write_seconds: float = math.inf,
        sent: Sent | None = None,
    ) -> Sent:
        """Try every record once, without waiting.

        Once a batch of a lane is kept, the rest of that lane is not tried, so that records of one
        series stay in order.

        Args:
            records: Of one or several lanes.
            deadline: On the clock's `monotonic`; a write that has not begun by then is not made,
                and its records are kept.
            write_seconds: The longest that one write may take. A large batch with a record that the
                server refuses takes several writes: once they have taken so long together and
                something is settled, the rest is kept, so that other lanes get their turn.
            sent: Updated with the result as it comes in; a new one by default.
        """
        sent = Sent() if sent is None else sent
        turn_ends = self._clock.monotonic() + write_seconds
        for lane in Records.of(records).by_lane():
            self._attempt_lane(lane, deadline, write_seconds, turn_ends, sent)
        return sent

    def _attempt_lane(
        self,
        records: Records,
        deadline: float,
        write_seconds: float,
        turn_ends: float,
        sent: Sent,
    ) -> None:
        # A stack, oldest on top: halves of a refused batch come before the batches behind it.
        waiting = records.cut(self.max_batch_events, self.max_batch_bytes)[::-1]
        while waiting:
            batch = waiting.pop()
            is_settled = bool(sent.delivered or sent.rejected)
            if is_settled and self._clock.monotonic() >= turn_ends:
                sent.kept = Records.joined([sent.kept, batch, *reversed(waiting)])
                return
            result = self._write(batch, deadline, write_seconds)
            with self._counting:
                if self._abandoned:
                    # By now these may have been counted as dropped: do not count them twice.
                    sent.kept = Records.joined([sent.kept, batch, *reversed(waiting)])
                    return
                if result.delivered:
                    self._counters.written(result.delivered, self._clock.time_ns())
                    sent.delivered = Records.joined([sent.delivered, result.delivered])
                sent.rejected += result.rejected
            if result.error or result.error_type:
                sent.error = result.error or result.error_type
                sent.error_type = result.error_type
                refused = bool(result.split_reason or result.delivered or result.rejected)
                self._counters.write_failed(sent.error, connected=refused)
            if records.lane in self._refused and result.delivered and not result.kept:
                self._tell_of_recovery(records.lane)
            if not result.kept:
                continue
            if result.split_reason:
                kept = list(result.kept)
                if len(kept) > 1:
                    middle = len(kept) // 2
                    waiting += [Records.of(kept[middle:]), Records.of(kept[:middle])]
                else:
                    detail = result.split_detail
                    with self._counting:
                        sent.rejected.append(Rejection(kept[0], result.split_reason, detail))
                continue
            if result.rejected and result.retry_after_seconds is None:
                # The rest was kept only because of the rejected records. It shrinks each time, so
                # this ends.
                waiting.append(Records.of(result.kept))
                continue
            self._refused.add(records.lane)
            what = f"{were(len(result.kept))} not taken{self._prospect}: {result.error}"
            self._log.log(
                logging.WARNING, f"kept {result.error_type}", f"sink {self._sink.name}: {what}"
            )
            sent.retry_after_seconds = _longest(
                sent.retry_after_seconds, result.retry_after_seconds
            )
            sent.kept = Records.joined([sent.kept, result.kept, *reversed(waiting)])
            return

    def _tell_of_recovery(self, lane: str) -> None:
        cause, what = f"taken again {lane}", f" for {lane!r}" if lane else ""
        if not self._log.is_due(cause):
            return  # the first batch after that minute will log it
        self._refused.discard(lane)
        # At the level of the message that it revokes, or nobody would see the outage end.
        message = f"{self._sink.destination} takes events{what} again"
        self._log.log(logging.WARNING, cause, f"sink {self._sink.name}: {message}")

    def _write(self, batch: Records, deadline: float, write_seconds: float) -> WriteResult:
        timeout_seconds = min(write_seconds, deadline - self._clock.monotonic())
        if timeout_seconds <= 0:
            return WriteResult(
                kept=batch, error="the time for this export was over", error_type="timeout"
            )
        began = self._clock.monotonic()
        result = self._write_within(batch, timeout_seconds)
        self._counters.write_took(self._clock.monotonic() - began, result.error_type)
        return result

    def _write_within(self, batch: Records, timeout_seconds: float) -> WriteResult:
        try:
            result = self._sink.write(batch, timeout_seconds)
            answered = len(result.delivered) + len(result.rejected) + len(result.kept)
        # A sink must not raise, but one that does must cost neither records nor the application.
        except Exception as error:  # noqa: BLE001
            word = type(error).__name__
            return WriteResult(kept=batch, error=f"the sink raised {word}", error_type=word)
        if answered == len(batch):
            return result
        # Nor may a sink that forgets a record make it disappear uncounted.
        why = f"the sink answered for {answered} of {len(batch)} records"
        return WriteResult(kept=batch, error=why, error_type="incomplete_answer")


def _longest(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)
