"""Minutes and hours: outages with the default delays, a soak with kills, a spool of 1 GiB.

`make test-long` runs them; they are not part of `make test`. CBTOP_SOAK_SECONDS sets how long the
soak takes, by default an hour, and CBTOP_SOAK_SEED determines what happens in it.
"""

import os
import random
import time

import pytest

from otel_cbtop_exporter.delivery.spool_folder import SpoolFolder
from otel_cbtop_exporter.sinks.base import Record
from tests.faults import receiver as rules
from tests.faults.runs import EVERYWHERE, ON_DISK, REPORTS, together

pytestmark = [pytest.mark.faults, pytest.mark.long]

SOAK_SECONDS = float(os.environ.get("CBTOP_SOAK_SECONDS", "3600"))
DEFAULT_RETRY = {"retry": {}}


@pytest.mark.parametrize("outage_seconds", [30, 60])
def test_long_outage(tmp_path, outage_seconds):
    """With default delays and 1,000 spans a second, no spool loses anything in a long outage."""

    def long_outage(run):
        app = run.start(count=1_000 * (outage_seconds + 10), options=DEFAULT_RETRY)
        run.receiver.wait_until(lambda: run.receiver.acknowledged >= 2_000)
        run.receiver.down()
        time.sleep(outage_seconds)
        run.receiver.up()
        app.end()
        run.assert_nothing_lost()
        run.assert_counters_agree()

    together(long_outage, tmp_path, EVERYWHERE)


def test_killed_in_a_long_outage(tmp_path):
    """Half a minute of records on disk survives a kill at its end."""

    def killed_in_a_long_outage(run):
        run.receiver.down()
        app = run.start(count=1_000_000, options=DEFAULT_RETRY)
        app.wait_until_handed(30_000)
        app.kill()
        run.receiver.up()
        run.start(count=100, options=DEFAULT_RETRY).end()
        run.assert_nothing_lost()

    together(killed_in_a_long_outage, tmp_path, ON_DISK)


def soak(run, seed):
    """Kill, break and restore things at random until the time is over."""
    chance = random.Random(f"{seed} {run.variant}")
    receiver = run.receiver
    workers = [run.start(count=10_000_000, rate=200) for _ in range(3)]
    faults = [
        receiver.down,
        lambda: setattr(receiver, "rule", rules.refuse(503, "1")),
        lambda: setattr(receiver, "rule", rules.cutting(5, "unanswered")),
        lambda: setattr(receiver, "rule", rules.too_large_over(20_000)),
        lambda: setattr(receiver, "seconds", 0.5),
        lambda: setattr(receiver, "cut_requests", 3),
    ]
    end = time.monotonic() + SOAK_SECONDS
    while time.monotonic() < end:
        chance.choice(faults)()
        time.sleep(chance.uniform(0, 5))
        for number in range(len(workers)):
            if chance.random() < 0.5:
                workers[number].kill()
                workers[number] = run.start(count=10_000_000, rate=200)
        time.sleep(chance.uniform(0, 5))
        receiver.down()
        receiver.rule, receiver.seconds, receiver.cut_requests = rules.take, 0.0, 0
        receiver.up()
    for worker in workers:
        worker.kill()
    run.start(count=100).end()


def test_soak(tmp_path):
    """Nothing is lost, whatever is killed, broken and restored, in whatever order."""
    seed = os.environ.get("CBTOP_SOAK_SEED", str(time.time_ns()))
    REPORTS.append(f"soak: CBTOP_SOAK_SEED={seed} CBTOP_SOAK_SECONDS={SOAK_SECONDS:g}")

    def soak_with_kills(run):
        soak(run, seed)
        REPORTS.append(f"soak: {run.variant}: {len(run.apps)} processes")
        run.assert_nothing_lost()

    together(soak_with_kills, tmp_path, ON_DISK)


MIB = 1024 * 1024


def left_behind(path, mib):
    """Leave a spool of `mib` MiB of incompressible rows, 1 MiB each, as an ended process does."""
    folder = SpoolFolder(path, "kafka", "somewhere", max_bytes=4_096 * MIB)
    noise = random.Random(mib)
    for _ in range(mib):
        folder.append([Record(noise.randbytes(1_024), lane="lane") for _ in range(1_000)])
    folder.close()


def take_over(path, mib):
    """Take over a spool and empty `mib` rows; return seconds to the first claim, and MiB/s."""
    folder = SpoolFolder(path, "kafka", "somewhere", max_bytes=4_096 * MIB)
    began = time.perf_counter()
    assert folder.adopt() == 1
    (spool,) = folder.spools()
    claim = spool.claim("lane", 1_000, 2 * MIB)
    first_seconds = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(mib):
        spool.settle(claim)
        claim = spool.claim("lane", 1_000, 2 * MIB)
    speed = mib / (time.perf_counter() - began)
    folder.close()
    return first_seconds, speed


def test_a_spool_of_a_gibibyte(tmp_path):
    """A spool of 1 GiB opens at once, and drains about as fast as a small one."""
    left_behind(tmp_path / "small", 65)
    left_behind(tmp_path / "large", 1_024)
    small, large = (take_over(tmp_path / name, 64) for name in ("small", "large"))
    for name, (seconds, speed) in {"64 MiB": small, "1 GiB": large}.items():
        REPORTS.append(f"{name}: first claim after {1_000 * seconds:.1f} ms, {speed:.0f} MiB/s")
    assert large[0] < 5
    assert large[1] > small[1] / 4
