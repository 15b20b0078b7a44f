"""What to send next: each lane backs off on its own, and batches that break a server are searched.

It only decides and sends: it starts no thread and never waits. `drain.py` calls `step` again and
again and waits in between.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import msgspec

from otel_cbtop_exporter.config import RetryConfig
from otel_cbtop_exporter.delivery.retry import Clock, next_delay_seconds
from otel_cbtop_exporter.delivery.search import broke_server, search
from otel_cbtop_exporter.delivery.sender import Sender, Sent
from otel_cbtop_exporter.delivery.spool import Claim, Spool, SpoolError
from otel_cbtop_exporter.delivery.waiting import Waiting
from otel_cbtop_exporter.sinks.base import Record, Rejection

__all__ = ["Lanes", "Step"]

# After so many server errors in a row a batch is searched for the records that cause them.
_SUSPICIOUS_TRIES = 3
# A search claims more than the spool's largest row holds, so at least two rows if there are two:
# a record is blamed only if other records of the claim pass.
_SEARCH_EVENTS = 4_000
_SEARCH_BYTES = 2 * 1024 * 1024
# How often to look for spools of dead processes while there is work.
_ADOPT_SECONDS = 2.0
# How long one use of the spools takes at most, as a rule.
_SPOOL_USE_SECONDS = 0.1
# When to look again if something waits that could not be claimed just now.
_LOOK_AGAIN_SECONDS = 0.1


_T = TypeVar("_T")


class Step(msgspec.Struct, frozen=True):
    """What one step did.

    Attributes:
        settled: Whether records left the spool.
        wait_seconds: Time until the next lane may be tried, 0.0 for at once; None if nothing waits.
    """

    settled: bool
    wait_seconds: float | None


class _Lane(msgspec.Struct):
    """The retry state of a lane.

    Attributes:
        failures: Refused tries in a row; one that settled something restarts the count.
        server_errors: How many of the latest in a row look as if a record broke the server.
        not_before: When it may be tried again, on the monotonic clock.
        suspects: See `search`.
    """

    failures: int = 0
    server_errors: int = 0
    not_before: float = 0.0
    suspects: Counter[Record] = msgspec.field(default_factory=Counter)


class Lanes:
    """Sends what waits in spools, oldest first within a lane; one thread at a time may use it.

    Args:
        spools: Returns where records wait, in the order to empty them.
        adopt: Takes over what dead processes left, a few at a time; returns how many spools.
        sender: Writes them.
        retry: Bounds of the backoff; the number of tries is unlimited.
        clock: Time.
        jitter: Returns a number in [0, 1).
        write_timeout_seconds: The longest that one write may take. Once something is settled, a
            step also begins no further write after this time.
        reject: Called with what is refused for good, and why, before it leaves the spool.

    Attributes:
        waiting: What is in the spools.
    """

    def __init__(
        self,
        *,
        spools: Callable[[], Sequence[Spool]],
        adopt: Callable[[], int],
        sender: Sender,
        retry: RetryConfig,
        clock: Clock,
        jitter: Callable[[], float],
        write_timeout_seconds: float,
        reject: Callable[[Sequence[Rejection], str], None],
    ) -> None:
        self._spools = spools
        self.waiting = Waiting(spools)
        self._adopt = adopt
        self._sender = sender
        self._retry = retry
        self._clock = clock
        self._jitter = jitter
        self._write_timeout_seconds = write_timeout_seconds
        self._reject = reject
        self._lanes: dict[str, _Lane] = {}
        # Seconds of sending that refused lanes have used beyond healthy ones. While it is above 0,
        # healthy lanes go first.
        self._refused_seconds = 0.0
        self._is_hurried = False  # whether `hurry` was called since a refused lane was last tried
        self._adopt_at = clock.monotonic()
        # Held during every use of the spools and never during a write. Reentrant: a signal handler
        # may shut everything down on the thread that holds it.
        self._using_spools = threading.RLock()
        self._abandoned = False
        # The claim that a step is sending, and what has come of it so far.
        self._under_way: tuple[Claim, list[Sent]] | None = None
        self._more_to_adopt = False
        self._unreadable: SpoolError | None = None  # why a spool could not be read in this step

    def abandon(self, deadline: float) -> None:
        """Leave the spools alone from now on, whatever a hanging write may still answer.

        Call this before closing the spools. It waits for a use of them to end, but not for a write;
        no other write follows that one. What the destination has answered for so far is settled.

        Args:
            deadline: On the clock's `monotonic`; a use that lasts longer is not waited for.

        Raises:
            SpoolError: It cannot be settled.
        """
        self._sender.abandon()
        seconds = max(_SPOOL_USE_SECONDS, deadline - self._clock.monotonic())
        has_ended = self._using_spools.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))
        self._abandoned = True
        if has_ended:
            try:
                if self._under_way is not None:
                    self._settle_what_is_known(*self._under_way)
            finally:
                self._using_spools.release()

    def hurry(self) -> None:
        """Let every lane be tried at once, and restart its backoff."""
        # Iterate over a copy: while the interpreter ends, another thread may add a lane in a step.
        for lane in list(self._lanes.values()):
            lane.not_before = 0.0
            lane.failures = min(lane.failures, 1)  # keep one: a refused lane begins with a probe
        # A flush may have little time, so healthy lanes go first. Do this only once per try of a
        # refused lane: otherwise constant flushing would starve refused lanes.
        if not self._is_hurried:
            self._is_hurried = True
            self._refused_seconds = max(self._refused_seconds, self._write_timeout_seconds)

    def has_refused(self) -> bool:
        """Whether a lane with waiting records was refused at its last try."""
        return any(lane.failures for lane in list(self._lanes.values()))

    def step(self, deadline: float = math.inf) -> Step:
        """Try one batch of the first lane that may be tried.

        Args:
            deadline: On the clock's `monotonic`, for all writes of the step together.

        Raises:
            SpoolError: A spool cannot be read now and no other one has records that may be sent,
                or records cannot be settled.
        """
        now = self._clock.monotonic()
        with self._using_spools:
            claim, soonest = (None, None) if self._abandoned else self._next_claim(now)
        if claim is not None:
            return Step(self._send(claim, deadline), 0.0)
        if soonest is None and self._more_to_adopt and not self._abandoned:
            self._adopt_at = now
            return Step(settled=False, wait_seconds=0.0)
        if soonest is None and not self._abandoned and not self.waiting.is_empty():
            # Records have moved back to disk meanwhile.
            return Step(settled=False, wait_seconds=_LOOK_AGAIN_SECONDS)
        return Step(settled=False, wait_seconds=None if soonest is None else soonest - now)

    def _next_claim(self, now: float) -> tuple[Claim | None, float | None]:
        """Return what to send now, or when the next lane may be tried."""
        if now >= self._adopt_at:
            self._adopt_at = now + _ADOPT_SECONDS
            self._more_to_adopt = self._adopt() > 0
        self._unreadable = None
        places = self._places()
        soonest: float | None = None
        for name in sorted(places, key=self._turn):
            lane = self._lanes[name]
            if lane.not_before > now:
                soonest = min(lane.not_before, soonest or lane.not_before)
                continue
            for spool in places[name]:
                claim = self._asked(partial(self._claim, spool, name, lane))
                if claim is not None:
                    return claim, None
        if self._unreadable is not None:
            raise self._unreadable
        return None, soonest

    def _asked(self, question: Callable[[], _T]) -> _T | None:
        """Ask a spool; None if it cannot be read, as a file on a bad disk must not delay others."""
        try:
            return question()
        except SpoolError as error:
            self._unreadable = error
            return None

    def _places(self) -> dict[str, list[Spool]]:
        """Return for each lane the spools that hold records of it, in order."""
        places: dict[str, list[Spool]] = {}
        for spool in self._spools():
            for name in self._asked(spool.lanes) or ():
                places.setdefault(name, []).append(spool)
        # Forget lanes without waiting records: there may be a lane for each value of a tag. If a
        # spool is unreadable, keep all: it may hold records of any.
        others = self._lanes if self._unreadable else {}
        known = {name: self._lanes.get(name) or _Lane() for name in places}
        self._lanes = {**others, **known}
        return places

    def _turn(self, name: str) -> tuple[bool, float]:
        # Refused lanes get half of the time, however long a try takes, and no more while other
        # lanes have records. Among refused lanes the one that has been due longest goes first;
        # among the others the one with the oldest records, because the sort is stable.
        lane = self._lanes[name]
        is_refused = lane.failures > 0
        is_behind = is_refused == (self._refused_seconds > 0)
        return is_behind, lane.not_before if is_refused else 0.0

    def _claim(self, spool: Spool, name: str, lane: _Lane) -> Claim | None:
        events, size = self._sender.max_batch_events, self._sender.max_batch_bytes
        if _is_suspicious(lane):
            events, size = max(events, _SEARCH_EVENTS), max(size, _SEARCH_BYTES)
        elif lane.failures > 0:
            # After a refusal, probe with a small batch first: the oldest row alone.
            events = 1
        return spool.claim(name, events, size)

    def _send(self, claim: Claim, deadline: float) -> bool:
        lane = self._lanes[claim.lane]
        was_refused, began = lane.failures > 0, self._clock.monotonic()
        so_far: list[Sent] = []
        self._under_way = claim, so_far

        def attempt(records: Sequence[Record]) -> Sent:
            so_far.append(Sent())
            # Each attempt gets the full time, or a search would never get through on a slow server.
            return self._sender.attempt(
                records,
                deadline,
                write_seconds=self._write_timeout_seconds,
                sent=so_far[-1],
            )

        if _is_suspicious(lane):
            turn_ends = began + self._write_timeout_seconds

            def is_over() -> bool:
                return self._clock.monotonic() >= turn_ends

            sent = search(claim.records, attempt, is_over, lane.suspects)
        else:
            sent = attempt(claim.records)
        taken_seconds = self._clock.monotonic() - began
        if was_refused:
            self._is_hurried = False
        else:
            taken_seconds = -taken_seconds
        self._refused_seconds = max(0.0, self._refused_seconds + taken_seconds)
        with self._using_spools:
            if self._abandoned:
                return False
            self._under_way = None
            if sent.rejected:
                self._reject(sent.rejected, sent.why_rejected)
            claim.spool.settle(claim, sent.kept)
        settled = bool(sent.delivered or sent.rejected)
        if settled:
            lane.failures = lane.server_errors = 0
        if sent.kept:
            self._back_off(lane, sent)
        else:
            self._lanes.pop(claim.lane, None)
        return settled

    def _settle_what_is_known(self, claim: Claim, so_far: Sequence[Sent]) -> None:
        total = Sent()
        for sent in so_far:
            total.add(sent)
        total.kept = total.left_of(claim.records)
        if len(total.kept) < len(claim.records):
            if total.rejected:
                self._reject(total.rejected, total.why_rejected)
            claim.spool.settle(claim, total.kept)

    def _back_off(self, lane: _Lane, sent: Sent) -> None:
        delay = next_delay_seconds(
            lane.failures,
            self._retry,
            asked_seconds=sent.retry_after_seconds,
            jitter=self._jitter(),
        )
        lane.not_before = self._clock.monotonic() + delay
        lane.failures += 1
        lane.server_errors = lane.server_errors + 1 if broke_server(sent) else 0


def _is_suspicious(lane: _Lane) -> bool:
    return lane.server_errors > 0 and lane.server_errors % _SUSPICIOUS_TRIES == 0
