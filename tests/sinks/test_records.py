"""Batches of records: columns for who handles them whole, records for everybody else."""

import msgspec

from otel_cbtop_exporter.sinks.base import Block, Record, Records

RECORDS = [
    Record(b"a", b"key", "spans", 1, (("h", b"1"),), "span"),
    Record(b"b", None, "spans", 2, (), "span"),
    Record(b"c", None, "spans", 3, (), "span_event"),
    Record(b"d", b"k", "logs", 4, (), "log"),
    Record(b"e", None, "spans", 5, (), "span"),
]


def test_a_batch_is_the_sequence_of_its_records():
    """Making a batch of records and asking for them gives the same, in the same order."""
    batch = Records.of(RECORDS)
    assert len(batch) == 5
    assert list(batch) == RECORDS
    assert batch == RECORDS
    assert batch[1:3] == RECORDS[1:3]
    assert batch[-1] is batch[4]
    assert Records.of(batch) is batch
    assert batch != RECORDS[:-1]


def test_records_with_one_lane_and_signal_are_one_block():
    """A block begins where the lane or the signal changes; a column that is empty is None."""
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
    """Whoever asks twice gets the same objects, which is how equal records are told apart."""
    block = Block("lane", "log", [b"same", b"same"], [1, 1])
    batch = Records([block, block])
    assert list(batch) == [Record(b"same", None, "lane", 1, (), "log")] * 4
    assert [id(record) for record in batch] == [id(record) for record in batch]


def test_a_block_survives_packing():
    """What the spool stores comes back equal."""
    blocks = list(Records.of(RECORDS).blocks)
    packed = msgspec.msgpack.encode(blocks)
    assert Records(msgspec.msgpack.decode(packed, type=list[Block])) == RECORDS
