"""Batches of records: columns for whoever handles them whole, record objects for everybody else."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_cbtop_exporter.delivery.spool_rows import pack, row_of, unpack
from otel_cbtop_exporter.on_demand import Lines
from otel_cbtop_exporter.sinks.base import Block, Record, Records
from otel_cbtop_exporter.tally import Tally

RECORDS = [
    Record(b"a", b"key", "spans", 1, (("h", b"1"),), "span"),
    Record(b"b", None, "spans", 2, (), "span"),
    Record(b"c", None, "spans", 3, (), "span_event"),
    Record(b"d", b"k", "logs", 4, (), "log"),
    Record(b"e", None, "spans", 5, (), "span"),
]


def test_a_batch_is_the_sequence_of_its_records():
    """A batch made from records is a sequence of the same records in the same order."""
    batch = Records.of(RECORDS)
    assert len(batch) == 5
    assert list(batch) == RECORDS
    assert batch == RECORDS
    assert batch[1:3] == RECORDS[1:3]
    assert batch[-1] is batch[4]
    assert Records.of(batch) is batch
    assert batch != RECORDS[:-1]


def test_records_with_one_lane_and_signal_are_one_block():
    """A block begins where the lane or the signal changes; an empty column is None."""
    blocks = Records.of(RECORDS).blocks
    assert [(block.lane, block.signal, len(block)) for block in blocks] == [
        ("spans", "span", 2),
        ("spans", "span_event", 1),
        ("logs", "log", 1),
        ("spans", "span", 1),
    ]
    assert blocks[0].keys == [b"key", None]
    assert (blocks[1].keys, blocks[1].headers) == (None, None)


def test_a_batch_of_blocks_makes_its_records_once():
    """Iterating twice gives the same objects, whose identity distinguishes equal records."""
    block = Block("lane", "log", [b"same", b"same"], [1, 1])
    batch = Records([block, block])
    assert list(batch) == [Record(b"same", None, "lane", 1, (), "log")] * 4
    assert [id(record) for record in batch] == [id(record) for record in batch]


def test_lines_are_bodies_and_one_text():
    """`Lines` is one text for writing it whole, and a sequence of bodies for everything else."""
    lines = Lines(b"one\ntwo\nthree\n", 3)
    assert (len(lines), lines[1], lines[1:], list(lines)) == (
        3,
        b"two",
        [b"two", b"three"],
        [b"one", b"two", b"three"],
    )
    assert lines == [b"one", b"two", b"three"]
    block, listed = Block("", "log", lines, [1, 2, 3]), Block("", "log", list(lines), [1, 2, 3])
    assert block.text == listed.text == b"one\ntwo\nthree\n"
    assert block.body_bytes == listed.body_bytes == 11
    assert block.part(1, 3).bodies == [b"two", b"three"]
    assert unpack(pack(Records([block]), 0)[0].body) == Records([listed])


def test_a_block_survives_packing():
    """A block that is packed and unpacked, as in the spool, is equal."""
    blocks = list(Records.of(RECORDS).blocks)
    packed = msgspec.msgpack.encode(blocks)
    assert Records(msgspec.msgpack.decode(packed, type=list[Block])) == RECORDS


@pytest.mark.parametrize("count", [1, 64, 65, 200, 2_000])
def test_a_batch_of_any_size_in_pieces_is_the_batch(count):
    """The pieces of a batch together are its records in order, and packing is reversible."""
    numbers = range(count)
    columns = Block(
        "l", "log", [b"%d" % n for n in numbers], list(numbers), [b"%d" % n for n in numbers]
    )
    text = Lines(b"".join(b"%d\n" % n for n in numbers), count)
    batch = Records([columns, Block("l", "metric", text, list(numbers))])
    pieces = list(batch.pieces())
    assert Records(pieces) == batch
    assert b"".join(piece.text for piece in pieces) == batch.text
    assert max(len(piece) for piece in pieces[:-1]) <= 64
    assert pieces[-1].bodies is text  # one text, whatever its size
    assert unpack(row_of(batch, 0).packed().body) == batch


def test_a_time_beyond_64_bits_can_be_packed():
    """A time beyond 64 bits can be packed.

    It is limited to 64 bits, but whole in the body's JSON.
    """
    records = Records([Block("", "log", [b"a", b"b"], [2**70, 5])])
    (row,) = pack(records, 0)
    assert unpack(row.body) == Records([Block("", "log", [b"a", b"b"], [2**63 - 1, 5])])


bodies = st.builds(
    Record,
    st.binary(max_size=20),
    st.none() | st.just(b"key"),
    st.sampled_from(["spans", "logs"]),
    st.integers(0, 9),
    st.just(()) | st.just((("name", b"value"),)),
    st.sampled_from(["span", "log", None]),
)


@given(
    records=st.lists(bodies, max_size=50),
    max_events=st.integers(1, 10),
    max_bytes=st.integers(1, 40),
)
def test_cutting_loses_and_reorders_nothing(records, max_events, max_bytes):
    """Cut batches together are the records, each within the limits or a single record."""
    cut = Records.of(records).cut(max_events, max_bytes)
    assert Records.joined(cut) == records
    for part in cut:
        assert 1 <= len(part) <= max_events
        assert len(part) == 1 or part.body_bytes <= max_bytes


@given(records=st.lists(bodies, max_size=20))
def test_each_lane_is_a_batch_of_its_own(records):
    """Lanes come in order of appearance, and records keep their order within each."""
    lanes = Records.of(records).by_lane()
    assert [batch.lane for batch in lanes] == list(dict.fromkeys(r.lane for r in records))
    for batch in lanes:
        assert batch == [record for record in records if record.lane == batch.lane]


@given(records=st.lists(bodies, max_size=20))
def test_columns_are_those_of_the_records(records):
    """Columns hold what the records hold, and counts agree."""
    batch = Records(Records.of(records).blocks)
    assert batch == records
    assert batch.bodies == [record.body for record in records]
    assert batch.body_bytes == sum(len(record.body) for record in records)
    assert list(batch.timestamps_ns) == [record.timestamp_ns for record in records]
    assert list(batch.keys) == [record.key for record in records]
    assert list(batch.headers) == [record.headers for record in records]
    assert Tally.of(batch) == Tally.of(records)
