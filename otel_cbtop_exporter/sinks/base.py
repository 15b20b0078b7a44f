"""What every sink is: the protocol between delivery and the outside.

A sink encodes events once and writes records. It reports an outcome for each record and never
sleeps, retries or spools: that is delivery's task. A new sink is a class with the members of
`Sink`; the suite `tests/sinks/conformance.py` checks whether it keeps the contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timezone
from typing import Protocol

import msgspec

from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.sinks.records import Block, Record, Records

__all__ = [
    "Block",
    "Encoded",
    "Record",
    "Records",
    "Rejection",
    "Sink",
    "WriteResult",
    "parse_retry_after",
]

# A wrong date in an answer must not stop delivery for a day.
_LONGEST_RETRY_AFTER_SECONDS = 3_600.0


class Rejection(msgspec.Struct, frozen=True, gc=False):
    """A record that will never be accepted, and why.

    Attributes:
        record: What was refused.
        reason: A short stable word for counters, for example `invalid`, `too_large`.
        detail: The destination's own words. They may quote data, so they go to the dead letters
            and never to a log.
    """

    record: Record
    reason: str
    detail: str = ""


class Encoded(msgspec.Struct, frozen=True, gc=False):
    """What a sink made of events.

    Attributes:
        records: In the events' order; most efficiently a `Records`.
        rejected: Events that the sink cannot carry at all.
        values_lost: How many values were dropped from the records or shortened, by a short
            stable reason.
        why_rejected: One readable sentence on the first rejected event, without secrets or data.
    """

    records: Sequence[Record]
    rejected: Sequence[Rejection] = ()
    values_lost: Mapping[str, int] = {}
    why_rejected: str = ""

    @classmethod
    def from_records(
        cls,
        refused: Mapping[int, tuple[str, str]],
        records: Records,
        values_lost: Mapping[str, int] = {},
    ) -> Encoded:
        """Build the result, with the records that the encoder refused as rejections.

        Args:
            refused: Reason and a sentence without data, by position among the records.
            records: One for each event.
            values_lost: As in the class.
        """
        if not refused:
            return cls(records, (), values_lost)
        return cls(
            [record for position, record in enumerate(records) if position not in refused],
            [Rejection(records[position], *why) for position, why in refused.items()],
            values_lost,
            next(iter(refused.values()))[1],
        )


class WriteResult(msgspec.Struct, frozen=True, gc=False):
    """A sink's answer for a batch: each record is delivered, rejected or kept.

    Attributes:
        delivered: Accepted by the destination.
        rejected: Refused for good.
        kept: To be tried again.
        retry_after_seconds: How long the destination asks to wait, or None.
        error: One readable sentence on why records were kept or rejected, without secrets
            or data; "" if there is nothing to say.
        error_type: A short stable word or status for `error.type`, for example `429`,
            `timeout`, `ConnectionRefusedError`; "" if there was no error.
        split_reason: Set when the destination refused the whole batch because of a record that
            it did not name (413, 400). The sender then halves `kept`, and rejects a record that
            is refused on its own with this reason.
        split_detail: The destination's words for that rejection.
    """

    delivered: Sequence[Record] = ()
    rejected: Sequence[Rejection] = ()
    kept: Sequence[Record] = ()
    retry_after_seconds: float | None = None
    error: str = ""
    error_type: str = ""
    split_reason: str = ""
    split_detail: str = ""


class Sink(Protocol):
    """Where records go.

    Constructing a sink touches neither disk nor network. `encode` and `write` may be called
    from several threads at once. After a fork the child calls `after_fork_in_child` before
    anything else, and uses nothing that was built before the fork.

    Two more members are optional: `request_seconds` (float), the longest that the sink lets one
    request take, and `statistics()`, the counters of its client library by name.
    """

    name: str
    """`jsonlines`, `influxdb`, `kafka`, `console`: the name in configuration and counters."""

    local: bool
    """Whether a write is quick and stays on the machine, so that it needs no spool."""

    destination: str
    """Distinguishes this destination from others of the same kind; never holds a secret."""

    max_batch_events: int
    """The most records that one write should have."""

    max_batch_bytes: int
    """The most bytes of bodies that one write should have; a single record may be larger."""

    def encode(self, events: Sequence[Event]) -> Encoded:
        """Turn events into records, in order; called once for each event.

        Mapping passes an `Events`, which makes each `Event` on demand and lets the encoders of
        this package read whole tables.
        """
        ...

    def write(self, records: Sequence[Record], timeout_seconds: float) -> WriteResult:
        """Hand records of one lane to the destination; returns within the timeout, never raises.

        Delivery passes a `Records`; reading its columns avoids making each `Record`.
        """
        ...

    def flush(self, timeout_seconds: float) -> bool:
        """Push out what was written; return False if that took longer than the timeout."""
        ...

    def close(self, timeout_seconds: float) -> None:
        """Release everything within the timeout; may be called twice."""
        ...

    def after_fork_in_child(self) -> None:
        """Let go of the parent's connections, locks and descriptors without affecting the parent.

        Must not raise.
        """
        ...


def parse_retry_after(text: str | None, now_seconds: float) -> float | None:
    """Read the HTTP header Retry-After: seconds, or a date.

    Args:
        text: The header, or None if there was none.
        now_seconds: Since the Unix epoch.

    Returns:
        Seconds from now, between 0 and an hour; None if there is no header, or it cannot be
        read.
    """
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        seconds = float(text)
    else:
        # Takes 3 ms to import, for a form that hardly any server sends.
        from email.utils import parsedate_to_datetime  # noqa: PLC0415

        try:
            moment = parsedate_to_datetime(text)
            if moment.tzinfo is None:  # HTTP's oldest form names no time zone, and means GMT
                moment = moment.replace(tzinfo=timezone.utc)
            seconds = moment.timestamp() - now_seconds
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_SECONDS)
