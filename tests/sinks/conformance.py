"""The contract of every sink: one suite, run against each of them.

A sink's test file subclasses `SinkConformance` and defines the two members at its top. The
destination must be working; the sink's own file tests what happens when it is not.
"""

import os
import threading
import warnings

import pytest

from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.sinks.base import Records, Sink
from otel_cbtop_exporter.tag_set import TagSet

TIMEOUT_SECONDS = 30


def numbered_events(count, writer="w", size=0):
    """Make events that differ in their number and time."""
    tags = TagSet({"writer": writer})
    return [
        Event(
            measurement="conformance",
            tags=tags,
            fields={"value": number, "padding": "x" * size},
            timestamp_ns=1_700_000_000_000_000_000 + number,
        )
        for number in range(count)
    ]


def records_of(sink, events):
    encoded = sink.encode(events)
    assert not encoded.rejected
    assert len(encoded.records) == len(events)
    return encoded.records


def assert_partition(result, records):
    """Check that each record of a batch has exactly one outcome, and that there are no others."""
    answered = [*result.delivered, *(r.record for r in result.rejected), *result.kept]
    assert sorted(map(id, answered)) == sorted(map(id, records))


class SinkConformance:
    """The suite; it has no `Test` prefix, so that only its subclasses run."""

    @pytest.fixture
    def sink(self):
        """Provide a sink whose destination works; both the test and the fixture may close it."""
        raise NotImplementedError

    def arrived(self, sink) -> list[bytes]:
        """Return the bodies that the destination has received, in its order."""
        raise NotImplementedError

    def test_it_says_what_it_is(self, sink: Sink):
        """A sink has the members that delivery needs."""
        assert sink.name
        assert isinstance(sink.local, bool)
        assert sink.destination
        assert sink.max_batch_events >= 1
        assert sink.max_batch_bytes >= 1

    def test_encode_makes_one_record_of_each_event_in_order(self, sink):
        """Records have the events' order and times, and their bodies contain no newline."""
        events = numbered_events(50)
        records = records_of(sink, events)
        assert [r.timestamp_ns for r in records] == [e.timestamp_ns for e in events]
        assert all(r.body and b"\n" not in r.body for r in records)

    def test_encode_of_nothing_is_nothing(self, sink):
        """No events give no records and no rejections."""
        encoded = sink.encode([])
        assert list(encoded.records) == []
        assert list(encoded.rejected) == []

    def test_outcomes_partition_the_batch(self, sink):
        """A working destination takes all records, and each record has one outcome."""
        records = records_of(sink, numbered_events(100))
        result = sink.write(records, TIMEOUT_SECONDS)
        assert_partition(result, records)
        assert len(result.delivered) == 100, result.error
        assert sink.flush(TIMEOUT_SECONDS)
        assert sorted(self.arrived(sink)) == sorted(r.body for r in records)

    def test_a_batch_in_columns_is_written_like_any_other(self, sink):
        """A `Records` batch can be written before its record objects exist, as in delivery."""
        records = Records(Records.of(records_of(sink, numbered_events(20))).blocks)
        result = sink.write(records, TIMEOUT_SECONDS)
        assert len(result.delivered) == 20, result.error
        assert sink.flush(TIMEOUT_SECONDS)
        assert self.arrived(sink) == records.bodies
        assert_partition(result, records)

    def test_order_is_kept(self, sink):
        """Batches arrive in the order of the writes, and records in the order of their batch."""
        records = records_of(sink, numbered_events(90))
        for start in range(0, 90, 30):
            sink.write(records[start : start + 30], TIMEOUT_SECONDS)
        sink.flush(TIMEOUT_SECONDS)
        assert self.arrived(sink) == [r.body for r in records]

    def test_an_empty_batch_has_no_outcomes(self, sink):
        """Writing an empty batch gives no outcomes and no error."""
        result = sink.write([], TIMEOUT_SECONDS)
        assert_partition(result, [])
        assert result.error == ""

    def test_a_timeout_of_nothing_is_answered(self, sink):
        """With no time left, a write still answers for each record and does not raise."""
        records = records_of(sink, numbered_events(3))
        assert_partition(sink.write(records, 0), records)

    def test_close_may_be_called_twice(self, sink):
        """A second close does not raise, also after writes and flushes."""
        records = records_of(sink, numbered_events(3))
        sink.write(records, TIMEOUT_SECONDS)
        sink.close(TIMEOUT_SECONDS)
        sink.close(TIMEOUT_SECONDS)
        sink.flush(TIMEOUT_SECONDS)

    def test_close_of_an_unused_sink_is_quiet(self, sink):
        """A sink that never wrote can be closed."""
        sink.close(TIMEOUT_SECONDS)

    def test_write_after_close_delivers_nothing(self, sink):
        """A closed sink keeps or rejects what it is given, and never raises."""
        records = records_of(sink, numbered_events(3))
        sink.close(TIMEOUT_SECONDS)
        result = sink.write(records, TIMEOUT_SECONDS)
        assert_partition(result, records)
        assert list(result.delivered) == []

    def test_threads_may_write_at_once(self, sink):
        """Eight threads writing at once lose and repeat nothing, and each keeps its own order."""
        batches = {}
        results = []
        barrier = threading.Barrier(8)

        def write(name):
            records = records_of(sink, numbered_events(100, writer=name))
            batches[name] = records
            barrier.wait(TIMEOUT_SECONDS)
            for start in range(0, 100, 10):
                part = records[start : start + 10]
                results.append((part, sink.write(part, TIMEOUT_SECONDS)))

        threads = [threading.Thread(target=write, args=(f"w{n}",)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for part, result in results:
            assert_partition(result, part)
            assert len(result.delivered) == len(part), result.error
        sink.flush(TIMEOUT_SECONDS)
        arrived = self.arrived(sink)
        assert len(arrived) == 800
        for records in batches.values():
            bodies = [r.body for r in records]
            wanted = set(bodies)
            assert [body for body in arrived if body in wanted] == bodies

    def test_a_forked_child_and_its_parent_both_go_on(self, sink):
        """After a fork both the child and the parent can write, and neither hangs."""
        first, second = (records_of(sink, numbered_events(5, writer=w)) for w in "ab")
        assert len(sink.write(first, TIMEOUT_SECONDS).delivered) == 5
        with warnings.catch_warnings():
            # Python warns about threads of a client library, but the fork hook takes care of them.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            status = 2
            try:
                sink.after_fork_in_child()
                records = records_of(sink, numbered_events(5, writer="child"))
                status = 0 if len(sink.write(records, TIMEOUT_SECONDS).delivered) == 5 else 1
                sink.close(TIMEOUT_SECONDS)
            finally:
                os._exit(status)
        assert len(sink.write(second, TIMEOUT_SECONDS).delivered) == 5
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        sink.flush(TIMEOUT_SECONDS)
        assert {r.body for r in [*first, *second]} <= set(self.arrived(sink))
