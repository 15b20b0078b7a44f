"""The disk is full, refuses writes, was damaged, or holds a spool of an older version."""

import contextlib
import random
import shutil
import sqlite3
import subprocess
import time

import pytest

from otel_cbtop_exporter.delivery.spool_folder import destination_folder
from otel_cbtop_exporter.delivery.spool_rows import MIGRATIONS, migrate, pack, unpack
from tests.delivery.spools import insert_as_it_was
from tests.faults.http_sink import HttpSink
from tests.faults.receiver import ID
from tests.faults.runs import ON_DISK, Variant, together, wait_until
from tests.sinks.conformance import numbered_events, records_of

pytestmark = pytest.mark.faults

SAID_FULL = "cannot be used, events wait in memory"
SAID_SPACE = "is in use again"


def kill_and_deliver(run, app):
    """Kill an application once its records are on disk again; the next process delivers them."""
    wait_until(lambda: SAID_SPACE in app.log)
    app.kill()
    run.receiver.up()
    run.start(count=100).end()
    assert "dropped" not in app.log
    run.assert_nothing_lost()


def test_a_quota_then_space_again(tmp_path):
    """Beyond a file size limit records wait in memory, and later go back to the disk."""

    def a_quota_then_space_again(run):
        run.receiver.down()
        app = run.start(count=100_000, squeeze_at=1_000, relax_at=2_500)
        wait_until(lambda: SAID_FULL in app.log)
        kill_and_deliver(run, app)

    together(a_quota_then_space_again, tmp_path, ON_DISK)


@contextlib.contextmanager
def small_disk(folder):
    """Mount a file system of 4 MB; yield None if that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder]
    if not shutil.which("mount") or subprocess.run(command, check=False, stderr=-3).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(path):
    """Write until the file system is full."""
    with path.open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while ballast.write(bytes(4_096)):
            pass


def test_a_full_disk_then_space_again(tmp_path):
    """On a full disk records wait in memory, and later go back.

    A small file system is used where one can be mounted, and a quota otherwise.
    """

    def a_full_disk_then_space_again(run):
        run.receiver.down()
        with small_disk(run.spool) as disk:
            app = run.start(
                count=100_000, **({} if disk else {"squeeze_at": 1_000, "relax_at": 2_500})
            )
            app.wait_until_handed(1_000)
            if disk:
                fill(disk / "ballast")
            wait_until(lambda: SAID_FULL in app.log)
            app.wait_until_handed(2_500)
            if disk:
                (disk / "ballast").unlink()
            kill_and_deliver(run, app)

    together(a_full_disk_then_space_again, tmp_path, ON_DISK)


def test_a_full_disk_while_the_backend_takes_everything(tmp_path):
    """A disk that stays full loses nothing if the backend takes the records in memory."""

    def a_full_disk_while_the_backend_takes_everything(run):
        run.receiver.down()
        app = run.start(count=2_500, squeeze_at=600)
        wait_until(lambda: SAID_FULL in app.log)
        run.receiver.up()
        app.end()
        run.assert_nothing_lost()
        run.assert_counters_agree()

    together(a_full_disk_while_the_backend_takes_everything, tmp_path, ON_DISK)


PAGE = 4_096
ROWS = 5
SPANS_IN_A_ROW = 4


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """Return what a real process left on disk: one small spool file, and the ids handed over."""
    kept = []

    def left_by_a_process(run):
        run.receiver.down()
        count = ROWS * SPANS_IN_A_ROW
        # Each row spans several pages.
        app = run.start(name="a", count=count, rate=0, padding=5_000, flush_every=SPANS_IN_A_ROW)
        app.end(flush_seconds=0)
        kept.extend([*run.spool.glob("*/*.db"), app.handed()])

    together(left_by_a_process, tmp_path_factory.mktemp("left"), ON_DISK[:1])
    return kept


def read(file):
    """Return the ids and the stored bytes of every row."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        bodies = [body for (body,) in connection.execute("SELECT body FROM batches ORDER BY id")]
    return [({ID.search(r.body)[1].decode() for r in unpack(body)}, body) for body in bodies]


def is_on(page, body):
    """Return whether a page holds the beginning of a body, or an overflow part of it."""
    return body[:32] in page or page[4:36] in body


def bring(run, file):
    """Copy a spool file to where this run's applications find it."""
    folder = destination_folder(run.spool, "http", run.receiver.url)
    folder.mkdir(parents=True, mode=0o700)
    return shutil.copy(file, folder / file.name)


def test_damage_at_every_page(tmp_path, left):
    """A damaged page costs only the rows on it; the damage is reported or the file is kept."""
    file, handed = left
    rows = read(file)
    assert sorted(set().union(*(ids for ids, _ in rows))) == sorted(handed)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'batches'"
        ((root,),) = connection.execute(query)
    data = file.read_bytes()
    pages = [data[at : at + PAGE] for at in range(0, len(data), PAGE)]
    assert 2 * ROWS < len(pages) < 30

    def damage_at_every_page(run):
        page = int(run.variant.case.split()[1])
        with bring(run, file).open("r+b") as damaged:
            damaged.seek(page * PAGE)
            damaged.write(random.Random(page).randbytes(PAGE))
        app = run.start(name="b", count=100)
        app.end()
        run.assert_nothing_lost()  # of the application's own records
        gone = set(handed) - set(run.receiver.ids())
        if page not in (0, root - 1):  # the header and the table's root lead to everything
            on_page = [ids for ids, body in rows if is_on(pages[page], body)]
            assert gone <= set().union(*on_page)
        if gone:
            counted = app.health["events_dropped"].get("damaged", 0)
            kept = list(run.spool.glob("*/*.damaged-*"))
            assert counted == len(gone) or (kept and f"is kept as {kept[0]}" in app.log)

    variants = [Variant("http", "disk", f"page {page}") for page in range(len(pages))]
    together(damage_at_every_page, tmp_path, variants)


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS) + 1))
def test_a_spool_of_an_earlier_version(tmp_path, version):
    """A spool file of an earlier schema is delivered by the current package, in order."""

    def a_spool_of_an_earlier_version(run):
        sink = HttpSink(run.receiver.url)
        events = numbered_events(300)
        for number, event in enumerate(events):
            event.fields["padding"] = f"#old:{number}#"
        folder = destination_folder(run.spool, "http", run.receiver.url)
        folder.mkdir(parents=True, mode=0o700)
        file = folder / "1-1-00000000.db"
        file.touch(mode=0o600)
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
            migrate(connection, MIGRATIONS[:version])
            for start in range(0, 300, 100):
                records = records_of(sink, events[start : start + 100])
                insert_as_it_was(connection, pack(records, time.time_ns()))
        app = run.start(count=100)
        app.end()
        assert run.receiver.ids("others") == [f"old:{number}" for number in range(300)]
        assert not file.exists()
        run.assert_nothing_lost()

    together(a_spool_of_an_earlier_version, tmp_path, ON_DISK[:1])
