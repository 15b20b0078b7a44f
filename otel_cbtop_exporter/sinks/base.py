"""What every sink is: the protocol between delivery and the outside.

A sink encodes events once and writes records. It answers for each record and never sleeps,
retries or spools: that is delivery's. A new sink is a class with these members; the suite
`tests/sinks/conformance.py` says whether it keeps the contract.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timezone
from itertools import groupby, repeat
from typing import Protocol, overload

import msgspec

from otel_cbtop_exporter.events import Event

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


# array_like: the spool stores records as MessagePack arrays; a field may only be added at
# the end, with a default, so that a spool of an earlier version stays readable.
class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An encoded event: the bytes that leave, fixed before any retry or spool.

    Attributes:
        body: One JSON object or one line of line protocol, without a newline.
        key: What the sink orders or partitions by, or None.
        lane: What the destination can refuse alone: a bucket, a topic; "" where there is one.
        timestamp_ns: The event's time.
        headers: Kafka's headers; empty elsewhere.
        signal: Of the event, so that spans, log records and data points can be counted.
    """

    body: bytes
    key: bytes | None = None
    lane: str = ""
    timestamp_ns: int = 0
    headers: tuple[tuple[str, bytes], ...] = ()
    signal: str | None = None


# array_like: as with Record, this is what the spool stores.
class Block(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Records of one lane and one signal in columns, so that none is made for each event.

    The columns are as long as `bodies`, and never changed.

    Attributes:
        lane: Of every record.
        signal: Of every record.
        bodies: As in `Record`, and so on.
        timestamps_ns: As in `Record`.
        keys: None if no record has one.
        headers: None if no record has any.
    """

    lane: str
    signal: str | None
    bodies: list[bytes]
    timestamps_ns: list[int]
    keys: list[bytes | None] | None = None
    headers: list[tuple[tuple[str, bytes], ...]] | None = None

    def __len__(self) -> int:
        return len(self.bodies)

    def __iter__(self) -> Iterator[Record]:
        return map(
            Record,
            self.bodies,
            self.keys or repeat(None),
            repeat(self.lane),
            self.timestamps_ns,
            self.headers or repeat(()),
            repeat(self.signal),
        )


class Records(Sequence[Record]):
    """A batch of records, each of which is made when somebody asks for it; never changes.

    Whoever handles a batch whole reads the columns of `blocks`.

    Args:
        blocks: In order; none is empty.
    """

    __slots__ = ("_length", "_made", "blocks")

    def __init__(self, blocks: Iterable[Block]) -> None:
        self.blocks = tuple(blocks)
        self._length = sum(len(block.bodies) for block in self.blocks)
        self._made: list[Record] | None = None

    @classmethod
    def of(cls, records: Sequence[Record]) -> Records:
        """Return records, in order, as such a batch."""
        if type(records) is cls:
            return records
        batch = cls(
            _block(lane, signal, list(group))
            for (lane, signal), group in groupby(
                records, key=lambda record: (record.lane, record.signal)
            )
        )
        batch._made = list(records)
        return batch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Record]:
        return iter(self._list())

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        return self._list()[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._list() == list(other)

    __hash__ = None  # type: ignore[assignment]  # as with a list

    def __repr__(self) -> str:
        return f"Records({self._list()!r})"

    def _list(self) -> list[Record]:
        # Kept, because who sorts records out tells equal ones apart by identity.
        if self._made is None:
            self._made = [record for block in self.blocks for record in block]
        return self._made


def _block(lane: str, signal: str | None, records: Sequence[Record]) -> Block:
    keys = [record.key for record in records]
    headers = [record.headers for record in records]
    return Block(
        lane,
        signal,
        [record.body for record in records],
        [record.timestamp_ns for record in records],
        None if keys.count(None) == len(keys) else keys,
        headers if any(headers) else None,
    )


class Rejection(msgspec.Struct, frozen=True, gc=False):
    """A record that will never be accepted, and why.

    Attributes:
        record: What was refused.
        reason: A short stable word for counters, for example `invalid`, `too_large`.
        detail: The destination's own words; may hold quoted data, so it goes to the dead
            letters and never to a log.
    """

    record: Record
    reason: str
    detail: str = ""


class Encoded(msgspec.Struct, frozen=True, gc=False):
    """What a sink made of events.

    Attributes:
        records: In the events' order; a `Records` is the quick way to say so.
        rejected: Events that it cannot carry at all.
        values_lost: How many values the records lack or have shortened, by a short stable
            reason.
    """

    records: Sequence[Record]
    rejected: Sequence[Rejection] = ()
    values_lost: Mapping[str, int] = {}

    @classmethod
    def without(
        cls,
        refused: Mapping[int, tuple[str, str]],
        records: Records,
        values_lost: Mapping[str, int] = {},
    ) -> Encoded:
        """Take out what the encoder refused.

        Args:
            refused: Reason and detail, by the position among the records.
            records: One for each event.
            values_lost: See above.
        """
        if not refused:
            return cls(records, (), values_lost)
        return cls(
            [record for position, record in enumerate(records) if position not in refused],
            [Rejection(records[position], *why) for position, why in refused.items()],
            values_lost,
        )


class WriteResult(msgspec.Struct, frozen=True, gc=False):
    """A sink's answer for a batch; the three outcomes partition the batch.

    Attributes:
        delivered: Accepted by the destination.
        rejected: Refused for good.
        kept: To be tried again.
        retry_after_seconds: The destination's own wish, or None.
        error: One readable sentence on why records were kept or rejected, without secrets
            and without data; "" if there is nothing to say.
        error_type: A short stable word or status for `error.type`, for example `429`,
            `timeout`, `ConnectionRefusedError`; "" if there was no error.
        split_reason: Set when the destination refused the batch as a whole for what some
            unnamed record of it holds (413, 400): the sender halves `kept`, and a record
            that is refused alone is rejected with this reason.
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

    Constructing one touches neither disk nor network. `encode` and `write` may be called
    from several threads at once. After a fork the child calls `after_fork_in_child` before
    anything else; nothing built before the fork is used after it.
    """

    name: str
    """`jsonlines`, `influxdb`, `kafka`, `console`: the word in configuration and counters."""

    local: bool
    """Whether a write is quick and stays on the machine, so that it needs no spool."""

    destination: str
    """What tells this destination from another of the same kind; never holds a secret."""

    max_batch_events: int
    """The most records that one write should have."""

    max_batch_bytes: int
    """The most bytes of bodies that one write should have; a single record may be larger."""

    def encode(self, events: Sequence[Event]) -> Encoded:
        """Turn events into records, in order; called once for each event."""
        ...

    def write(self, records: Sequence[Record], timeout_seconds: float) -> WriteResult:
        """Hand records of one lane to the destination; returns within the timeout, never raises."""
        ...

    def flush(self, timeout_seconds: float) -> bool:
        """Push out what was written; False if that did not end within the timeout."""
        ...

    def close(self, timeout_seconds: float) -> None:
        """Release everything within the timeout; may be called twice."""
        ...

    def after_fork_in_child(self) -> None:
        """Forget, without touching them, the connections, locks and descriptors of the parent."""
        ...


def parse_retry_after(text: str | None, now_seconds: float) -> float | None:
    """Read the HTTP header Retry-After: seconds, or a date.

    Args:
        text: The header, or None if there was none.
        now_seconds: Since the Unix epoch.

    Returns:
        Seconds from now, between 0 and an hour; None if there is no wish, or not a readable
        one.
    """
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        seconds = float(text)
    else:
        # 3 ms to import, for what hardly a server sends.
        from email.utils import parsedate_to_datetime  # noqa: PLC0415

        try:
            moment = parsedate_to_datetime(text)
            if moment.tzinfo is None:  # as in HTTP's oldest form, which is in GMT all the same
                moment = moment.replace(tzinfo=timezone.utc)
            seconds = moment.timestamp() - now_seconds
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_SECONDS)
