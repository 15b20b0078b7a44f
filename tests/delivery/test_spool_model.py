"""Model-based tests of the spool against a list, with processes that die and are taken over."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from otel_cbtop_exporter.delivery import spool_store
from otel_cbtop_exporter.sinks.base import Record
from tests.delivery.spools import Told, make_folder, make_spool

LANES = st.sampled_from(["a", "b", "c"])


@pytest.fixture(autouse=True)
def _some_rows_are_packed(monkeypatch):
    """Lower the bound of 8 MiB, so that the model packs some rows and leaves others unpacked."""
    monkeypatch.setattr(spool_store, "_RECENT_BYTES", 400)


class Machine(RuleBasedStateMachine):
    """Rules that hold for every kind of spool.

    `model` lists the waiting records by lane, oldest first.
    """

    def __init__(self):
        super().__init__()
        self.told = Told()
        self.model = {}
        self.number = 0
        self.claims = []
        self.now_ns = 0
        self.folder = Path(tempfile.mkdtemp(prefix="spool-model-"))

    def teardown(self):
        self.place.close()
        shutil.rmtree(self.folder)

    def time_ns(self):
        return self.now_ns

    def waiting(self):
        return sum(len(lane) for lane in self.model.values())

    @rule(lanes=st.lists(LANES, min_size=1, max_size=6), clock=st.integers(0, 10))
    def append(self, lanes, clock):
        """Append records of any lanes, at any time of a clock that may go back."""
        batch = []
        for lane in lanes:
            batch.append(Record(b"%d" % self.number, lane=lane))
            self.number += 1
        self.now_ns = clock
        self.place.append(batch)
        for record in batch:
            self.model.setdefault(record.lane, []).append(record)

    def claim(self, lane, events):
        for spool in self.place.spools():
            claim = spool.claim(lane, events, 1_000_000)
            if claim is not None:
                return claim
        return None

    @rule(lane=LANES, events=st.integers(1, 8), data=st.data())
    def claim_and_settle(self, lane, events, data):
        """Check that a lane's oldest records come out in order, and kept ones stay in front."""
        claim = self.claim(lane, events)
        if claim is None:
            assert not self.model.get(lane)
            return
        waiting = self.model[lane]
        assert claim.records == waiting[: len(claim.records)]
        kept = [r for r in claim.records if data.draw(st.booleans(), label="kept")]
        claim.spool.settle(claim, kept)
        claim.spool.settle(claim)  # a second time: no effect
        self.model[lane] = kept + waiting[len(claim.records) :]

    @rule(lane=LANES)
    def claim_and_forget(self, lane):
        """Check that a claim that is never settled changes nothing."""
        self.claim(lane, 3)

    @invariant()
    def counts_agree(self):
        """Check that stats and lanes agree with the model."""
        if not hasattr(self, "place"):
            return
        assert self.place.stats().events_spooled == self.waiting()
        lanes = {lane for spool in self.place.spools() for lane in spool.lanes()}
        assert lanes == {lane for lane, records in self.model.items() if records}


class MemoryMachine(Machine):
    @initialize()
    def make(self):
        self.place = make_spool(None, self.told)


class OverflowMachine(Machine):
    """A spool with a size limit: the oldest records are dropped, and they are counted."""

    @initialize(in_file=st.booleans(), rows=st.integers(1, 6))
    def make(self, in_file, rows):
        path = self.folder / "spool.db" if in_file else None
        self.place = make_spool(path, self.told, max_bytes=rows * 150, time_ns=self.time_ns)
        self.order = []

    @rule(lanes=st.lists(LANES, min_size=1, max_size=6), clock=st.integers(0, 10))
    def append(self, lanes, clock):
        """Append records, then remove from the model what the spool reports as dropped."""
        for spool in self.place.spools():
            for lane in "abc":
                spool._store.ledger.end_claim(lane)
        dropped = self.told.dropped.get("spool_full", 0)
        before = self.number
        super().append(lanes, clock)
        # Rows of one batch go by lane, in the order in which the lanes came.
        batch_order = sorted(
            range(before, self.number), key=lambda n: lanes.index(lanes[n - before])
        )
        self.order += batch_order
        gone = self.told.dropped.get("spool_full", 0) - dropped
        live = {int(r.body) for lane in self.model.values() for r in lane}
        oldest = [n for n in self.order if n in live][:gone]
        for lane, records in self.model.items():
            self.model[lane] = [r for r in records if int(r.body) not in oldest]
        assert self.place.stats().spool_bytes <= self.place.max_bytes


class FolderMachine(Machine):
    """Spools on disk: processes end or are killed, and are taken over, also while others live."""

    @initialize()
    def make(self):
        # The file of each record, numbered in the order of creation.
        self.files = {}
        self.newest_file = 0
        self.start(self.folder / "live")

    def start(self, path):
        self.live = path
        self.place = make_folder(path, self.told, time_ns=self.time_ns)
        self.own_file = None

    def make_file(self):
        self.newest_file += 1
        return self.newest_file

    @rule(lanes=st.lists(LANES, min_size=1, max_size=6), clock=st.integers(0, 10))
    def append(self, lanes, clock):
        """Append records, into a file that the first of them creates."""
        self.own_file = self.own_file or self.make_file()
        first = self.number
        super().append(lanes, clock)
        self.files.update(dict.fromkeys(range(first, self.number), self.own_file))

    def take_over_from_dead_self(self, path):
        self.start(path)
        while self.place.adopt():
            pass
        # The oldest file first, whoever has held it.
        for records in self.model.values():
            records.sort(key=lambda record: (self.files[int(record.body)], int(record.body)))

    # Never hold more files than one take-over adopts, counting one that is still to come.
    @precondition(lambda self: self.newest_file < 8)
    @rule()
    def end_and_take_over(self):
        """End a process with records on disk, and let the next one deliver them in order."""
        self.place.close()
        self.take_over_from_dead_self(self.live)

    @precondition(lambda self: self.newest_file < 8)
    @rule()
    def crash_and_take_over(self):
        """Check that what a killed process has on disk, WAL included, is complete."""
        copy = self.folder / f"copy-{self.number}-{len(list(self.folder.iterdir()))}"
        if self.live.exists():
            shutil.copytree(self.live, copy)
        self.place.close()
        self.take_over_from_dead_self(copy)

    @precondition(lambda self: self.newest_file < 7)
    @rule(lanes=st.lists(LANES, min_size=1, max_size=6))
    def a_neighbour_dies_and_is_taken_over(self, lanes):
        """Check that a dead neighbour's records come before our own, after earlier ones."""
        neighbour = make_folder(self.live, self.told)
        file = self.make_file()
        left = []
        for lane in lanes:
            left.append(Record(b"%d" % self.number, lane=lane))
            self.files[self.number] = file
            self.number += 1
        neighbour.append(left)
        neighbour.close()
        assert self.place.adopt() == 1
        for record in left:
            records = self.model.setdefault(record.lane, [])
            own = sum(self.files[int(r.body)] == self.own_file for r in records)
            records.insert(len(records) - own, record)
        for lane in lanes:
            claim = self.claim(lane, 3)
            assert claim.records == self.model[lane][: len(claim.records)]

    @precondition(lambda self: self.waiting() > 0)
    @rule()
    def fork_closes_and_reopens(self):
        """Check that a fork changes nothing for the parent."""
        for spool in self.place.spools():
            spool._store.database.before_fork()

    @rule()
    def adopt(self):
        """Check that looking for dead processes changes nothing when there are none."""
        assert self.place.adopt() == 0

    def teardown(self):
        super().teardown()
        assert self.told.dropped == {}


_settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestMemory = MemoryMachine.TestCase
TestMemory.__doc__ = "A spool in memory does what a list does."
TestMemory.settings = _settings
TestOverflow = OverflowMachine.TestCase
TestOverflow.__doc__ = "A full spool loses its oldest rows, and counts them."
TestOverflow.settings = _settings
TestFolder = FolderMachine.TestCase
TestFolder.__doc__ = "Spools in a folder, over crashes and take-overs, do what a list does."
TestFolder.settings = _settings
