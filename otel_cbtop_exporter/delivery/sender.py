"""The sender: the only retry loop, and the only caller of `sink.write`.

It cuts records into batches that the sink wants, halves what is refused as a whole until the
records at fault are alone, and gives up in time. It keeps nothing: what it returns as kept is
the caller's again.
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
        rejected: Refused for good.
        kept: Not delivered, oldest first.
        retry_after_seconds: The longest wish of the destination, or None.
        error: Why records were kept or rejected, the last one; "" if none was.
        error_type: Its short stable word.
    """

    delivered: Records = _NOTHING
    rejected: list[Rejection] = []
    kept: Records = _NOTHING
    retry_after_seconds: float | None = None
    error: str = ""
    error_type: str = ""

    @property
    def why_rejected(self) -> str:
        """The error, if it is known to be about what was rejected."""
        return "" if self.kept else self.error

    def add(self, other: Sent) -> None:
        """Add what came of another attempt, but for what was kept."""
        self.delivered = Records.joined([self.delivered, other.delivered])
        self.rejected += other.rejected
        self.retry_after_seconds = other.retry_after_seconds
        if other.error_type:
            self.error, self.error_type = other.error, other.error_type

    def left_of(self, records: Sequence[Record]) -> Records:
        """Return the records that were neither delivered nor rejected, in order."""
        # By value: of equal records one is as good as the other.
        gone = Counter([*self.delivered, *(rejection.record for rejection in self.rejected)])
        left: list[Record] = []
        for record in records:
            if gone[record] > 0:
                gone[record] -= 1
            else:
                left.append(record)
        return Records.of(left)


class Sender:
    """Writes records to one sink and counts what becomes of them; safe between threads.

    Args:
        sink: Where to.
        counters: Told of what was delivered and of errors; rejections and what is dropped are
            counted by the caller, who knows what becomes of them.
        log: Told why records were kept.
        retry: Bounds of the backoff between the tries of `send`.
        max_batch_events: Over the sink's own limit if set.
        max_batch_bytes: Over the sink's own limit if set.
        clock: For deadlines and for the time of the last write.
        jitter: Returns a number in [0, 1).
        wait: Waits some seconds; True if it was woken because of a shutdown.
        spooled: Whether what is kept waits in a spool.
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
        self._refused: set[str] = set()  # lanes of which something was kept when tried last
        # Held while an answer is counted. Reentrant: a signal handler may shut down meanwhile.
        self._counting = threading.RLock()
        self._abandoned = False

    def abandon(self) -> None:
        """Count no answer from now on: nobody waits any more for a write that hangs."""
        with self._counting:
            self._abandoned = True

    def send(self, records: Sequence[Record], deadline: float) -> Sent:
        """Try, wait and try again, until all is settled, retries are used up, or time is.

        Never sleeps past the deadline: it gives up before a wait that would. A lane that is
        refused does not hold up the others.

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

        After a batch of a lane is kept, the rest of that lane is not tried, so that records
        of one series stay in order.

        Args:
            records: Of one or several lanes.
            deadline: On the clock's `monotonic`; what has not begun by then is kept.
            write_seconds: The longest that one write may take. A large batch of which the server
                refuses a record takes many: when they have taken so long and something is
                settled, the rest is kept, so that other lanes have their turn.
            sent: Filled with what came of it, while it happens; a new one by default.
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
                    # What waits in memory has been counted as dropped by now; once is enough.
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
                # The rest was kept because of those alone. It is less each time, so this ends.
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
            return  # the first batch after the minute tells it
        self._refused.discard(lane)
        # As loud as what it takes back, or an outage would end for nobody to see.
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
        # A sink must not raise, but one that does must cost no record and no application.
        except Exception as error:  # noqa: BLE001
            word = type(error).__name__
            return WriteResult(kept=batch, error=f"the sink raised {word}", error_type=word)
        if answered == len(batch):
            return result
        # Nor may one that forgets a record make it disappear uncounted.
        why = f"the sink answered for {answered} of {len(batch)} records"
        return WriteResult(kept=batch, error=why, error_type="incomplete_answer")


def _longest(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)
