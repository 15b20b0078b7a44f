"""Encoded events: single records, and batches of them in columns.

Belongs here: what passes from encoding to a sink's write. Not here: what a sink answers
(`base.py`), and how the spool stores records (`delivery/spool_rows.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, repeat

import msgspec

from otel_cbtop_exporter.on_demand import Lines, OnDemand

__all__ = ["Block", "Record", "Records"]

# The text of so many is usually 64 KiB or less, which malloc serves without asking the kernel.
_PIECE_RECORDS = 64

Headers = tuple[tuple[str, bytes], ...]


# array_like: spools of earlier versions store records as MessagePack arrays. To keep those
# readable, new fields go at the end and have a default.
class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An encoded event: the bytes to send, fixed before any retry or spooling.

    Attributes:
        body: One JSON object or one line of line protocol, without a newline.
        key: What the sink orders or partitions by, or None.
        lane: A part of the destination that can refuse records on its own: a bucket, a topic;
            "" if there is only one.
        timestamp_ns: The event's time.
        headers: Kafka's headers; empty elsewhere.
        signal: The event's signal, so that spans, log records and data points can be counted.
    """

    body: bytes
    key: bytes | None = None
    lane: str = ""
    timestamp_ns: int = 0
    headers: Headers = ()
    signal: str | None = None


# array_like: the spool stores this, too, so fields change as in Record.
class Block(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Records of one lane and one signal in columns, so that no `Record` is made for each event.

    All columns are as long as `bodies`, and never change.

    Attributes:
        lane: The lane of every record.
        signal: The signal of every record.
        bodies: The records' bodies; a list, or `Lines`.
        timestamps_ns: The records' times.
        keys: The records' keys; None if no record has one.
        headers: The records' headers; None if no record has any.
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
        """The size of all bodies together."""
        if isinstance(self.bodies, Lines):
            return self.bodies.body_bytes
        return sum(map(len, self.bodies))

    @property
    def text(self) -> bytes:
        """The bodies as lines, each ended by a newline."""
        if isinstance(self.bodies, Lines):
            return self.bodies.text
        return b"\n".join([*self.bodies, b""])

    def pieces(self) -> Iterator[Block]:
        """Yield the records in small blocks, to make the text of one block after the other.

        One text of all bodies would take as much memory again as the bodies. `Lines` are not cut:
        they are one text already.
        """
        if isinstance(self.bodies, Lines):
            yield self
            return
        for start in range(0, len(self.bodies), _PIECE_RECORDS):
            yield self.part(start, start + _PIECE_RECORDS)

    def part(self, start: int, end: int) -> Block:
        """Return the records from `start` up to `end`."""
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
    """An immutable batch of records, which are made on demand.

    Code that handles whole batches reads the columns of `blocks` instead.

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
        """Return records as a `Records`, in order."""
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
        """The size of all bodies together."""
        if self._body_bytes is None:
            self._body_bytes = sum([block.body_bytes for block in self.blocks])
        return self._body_bytes

    @property
    def lane(self) -> str:
        """The first record's lane, which is the batch's if all records have the same."""
        return self.blocks[0].lane

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of all records, in a new list."""
        return list(chain.from_iterable([block.bodies for block in self.blocks]))

    @property
    def text(self) -> bytes:
        """The bodies as lines, each ended by a newline."""
        return b"".join([block.text for block in self.blocks])

    def pieces(self) -> Iterator[Block]:
        """Yield the records in blocks, to make the text of one block after the other."""
        return chain.from_iterable(block.pieces() for block in self.blocks)

    @property
    def timestamps_ns(self) -> Iterator[int]:
        """The times of all records."""
        return chain.from_iterable(block.timestamps_ns for block in self.blocks)

    @property
    def keys(self) -> Iterator[bytes | None]:
        """The keys of all records."""
        return chain.from_iterable(
            block.keys or repeat(None, len(block.bodies)) for block in self.blocks
        )

    @property
    def headers(self) -> Iterator[Headers]:
        """The headers of all records."""
        return chain.from_iterable(
            block.headers or repeat((), len(block.bodies)) for block in self.blocks
        )

    def by_lane(self) -> list[Records]:
        """Return a batch for each lane, in the order of each lane's first record."""
        if len({block.lane for block in self.blocks}) == 1:
            return [self]
        lanes: dict[str, list[Block]] = {}
        for block in self.blocks:
            lanes.setdefault(block.lane, []).append(block)
        return [Records(blocks) for blocks in lanes.values()]

    def cut(self, max_events: int, max_bytes: int) -> list[Records]:
        """Cut into batches, in order, of at most `max_events` records and `max_bytes` of bodies.

        A record larger than `max_bytes` becomes a batch of its own.
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
