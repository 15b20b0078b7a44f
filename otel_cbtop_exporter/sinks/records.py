"""Encoded events: one for itself, and a batch of them in columns.

Belongs here: what is between encoding and a sink's write. Not here: what a sink answers
(`base.py`), and how the spool stores it (`delivery/spool_rows.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, repeat

import msgspec

from otel_cbtop_exporter.on_demand import Lines, OnDemand

__all__ = ["Block", "Record", "Records"]

# As a rule 64 KiB or less, for which malloc need not ask the kernel.
_PIECE_RECORDS = 64

Headers = tuple[tuple[str, bytes], ...]


# array_like: spools of earlier versions store records as MessagePack arrays; a field may only
# be added at the end, with a default, so that they stay readable.
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
    headers: Headers = ()
    signal: str | None = None


# array_like: as with Record, this is what the spool stores.
class Block(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Records of one lane and one signal in columns, so that none is made for each event.

    The columns are as long as `bodies`, and never changed.

    Attributes:
        lane: Of every record.
        signal: Of every record.
        bodies: As in `Record`, and so on; a list, or `Lines`.
        timestamps_ns: As in `Record`.
        keys: None if no record has one.
        headers: None if no record has any.
    """

    lane: str
    signal: str | None
    bodies: Sequence[bytes]
    timestamps_ns: list[int]
    keys: list[bytes | None] | None = None
    headers: list[Headers] | None = None

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

    @property
    def body_bytes(self) -> int:
        """Of all bodies together."""
        if isinstance(self.bodies, Lines):
            return self.bodies.body_bytes
        return sum(map(len, self.bodies))

    @property
    def text(self) -> bytes:
        """The bodies as lines, each of which ends in a newline."""
        if isinstance(self.bodies, Lines):
            return self.bodies.text
        return b"\n".join([*self.bodies, b""])

    def pieces(self) -> Iterator[Block]:
        """Yield the records in blocks whose bodies can be put into one text one after the other.

        A text of all of them would take as much memory once more. `Lines` are one already.
        """
        if isinstance(self.bodies, Lines):
            yield self
            return
        for start in range(0, len(self.bodies), _PIECE_RECORDS):
            yield self.part(start, start + _PIECE_RECORDS)

    def part(self, start: int, end: int) -> Block:
        """Return the records from one position up to another."""
        if start == 0 and end >= len(self.bodies):
            return self
        return Block(
            self.lane,
            self.signal,
            self.bodies[start:end],
            self.timestamps_ns[start:end],
            self.keys and self.keys[start:end],
            self.headers and self.headers[start:end],
        )


class Records(OnDemand[Record]):
    """A batch of records, each of which is made when somebody asks for it; never changes.

    Whoever handles a batch whole reads the columns of `blocks`.

    Args:
        blocks: In order; none is empty.
    """

    __slots__ = ("_body_bytes", "_length", "blocks")

    def __init__(self, blocks: Iterable[Block]) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        self._length = sum([len(block.bodies) for block in self.blocks])
        self._body_bytes: int | None = None

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

    @classmethod
    def joined(cls, batches: Iterable[Sequence[Record]]) -> Records:
        """Return several batches as one, in order."""
        parts = [cls.of(batch) for batch in batches if batch]
        if len(parts) == 1:
            return parts[0]
        return cls(block for part in parts for block in part.blocks)

    def __len__(self) -> int:
        return self._length

    @property
    def body_bytes(self) -> int:
        """Of all bodies together."""
        if self._body_bytes is None:
            self._body_bytes = sum([block.body_bytes for block in self.blocks])
        return self._body_bytes

    @property
    def lane(self) -> str:
        """Of the first record, and so of a batch of one lane."""
        return self.blocks[0].lane

    @property
    def bodies(self) -> list[bytes]:
        """Of all records, in a new list."""
        return list(chain.from_iterable([block.bodies for block in self.blocks]))

    @property
    def text(self) -> bytes:
        """The bodies as lines, each of which ends in a newline."""
        return b"".join([block.text for block in self.blocks])

    def pieces(self) -> Iterator[Block]:
        """Yield the records in blocks that are small enough to be handled as one text each."""
        return chain.from_iterable(block.pieces() for block in self.blocks)

    @property
    def timestamps_ns(self) -> Iterator[int]:
        """Of all records."""
        return chain.from_iterable(block.timestamps_ns for block in self.blocks)

    @property
    def keys(self) -> Iterator[bytes | None]:
        """Of all records."""
        return chain.from_iterable(
            block.keys or repeat(None, len(block.bodies)) for block in self.blocks
        )

    @property
    def headers(self) -> Iterator[Headers]:
        """Of all records."""
        return chain.from_iterable(
            block.headers or repeat((), len(block.bodies)) for block in self.blocks
        )

    def by_lane(self) -> list[Records]:
        """Return a batch for each lane, the lane that comes first as the first."""
        if len({block.lane for block in self.blocks}) == 1:
            return [self]
        lanes: dict[str, list[Block]] = {}
        for block in self.blocks:
            lanes.setdefault(block.lane, []).append(block)
        return [Records(blocks) for blocks in lanes.values()]

    def cut(self, max_events: int, max_bytes: int) -> list[Records]:
        """Cut into batches, in order, of at most so many records and bytes of bodies.

        A record larger than `max_bytes` is a batch of its own.
        """
        if 0 < self._length <= max_events and self.body_bytes <= max_bytes:
            return [self]
        cut: list[Records] = []
        batch: list[Block] = []
        events = size = 0
        for block in self.blocks:
            start = 0
            for position, body in enumerate(block.bodies):
                if events and (events == max_events or size + len(body) > max_bytes):
                    if start < position:
                        batch.append(block.part(start, position))
                    cut.append(Records(batch))
                    batch, events, size, start = [], 0, 0, position
                events += 1
                size += len(body)
            batch.append(block.part(start, len(block.bodies)))
        if batch:
            cut.append(Records(batch))
        return cut

    def _make(self) -> list[Record]:
        return [record for block in self.blocks for record in block]


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
