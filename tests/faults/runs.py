"""Scenarios: a receiver, applications in processes of their own, and the totals at the end.

*Lost* means handed to `export()`, but neither delivered nor in the dead letters with its reason.
What the SDK's own queue has dropped was never handed over, and is counted separately.
"""

import concurrent.futures
import contextlib
import json
import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.faults.receiver import ID, Receiver

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "app.py"

# For a condition that will become true; a busy machine may delay it, but not make it false.
PATIENCE_SECONDS = 120

# Short delays, because outages are short here.
QUICK = {"initial_delay_ms": 20, "max_delay_ms": 200}

# Each is a process that imports the SDK, and there may be only two cores.
_MOST_AT_ONCE = 6

REPORTS = []
"""One line for each run, printed at the end of the test session."""


class Variant(NamedTuple):
    """The sink, the place where records wait (`disk` or `memory`), and an optional special case."""

    sink: str
    place: str
    case: str = ""

    def __str__(self):
        return ", ".join(filter(None, self))


ON_DISK = (Variant("http", "disk"), Variant("influxdb", "disk"))
IN_MEMORY = (Variant("http", "memory"), Variant("influxdb", "memory"))
EVERYWHERE = (*ON_DISK, *IN_MEMORY)
ONE_OF_EACH = (Variant("http", "disk"), Variant("influxdb", "memory"))
"""For scenarios that are much like another one that runs everywhere."""


class Run:
    """One scenario in one variant, with its receiver, its folder and its applications.

    Attributes:
        receiver: The backend, which at first is up and takes everything.
        folder: A folder for this run alone.
        on_disk: Whether the spool is in a folder, which outlives the applications.
        apps: The applications, in the order in which they were started.
    """

    def __init__(self, name, variant, folder):
        self.variant = variant
        self.on_disk = variant.place == "disk"
        self.receiver = Receiver()
        self.apps = []
        self.spool = folder / "spool"
        self._name = name
        self.folder = folder

    def start(self, *, name=None, count=2_000, **settings):
        """Start an application; its `options` override those that all applications have."""
        name = name or f"app{len(self.apps)}"
        options = {**self.options, **settings.pop("options", {})}
        app = App(
            self.folder / f"{name}-{len(self.apps)}",
            name=name,
            sink=self.variant.sink,
            url=self.receiver.url,
            count=count,
            options=options,
            **settings,
        )
        self.apps.append(app)
        return app

    @property
    def options(self):
        """Return the common options: where records wait, and a maximum age that no run reaches."""
        path = str(self.spool) if self.on_disk else None
        return {"retry": QUICK, "spool": {"path": path, "max_age_ms": 3_600_000}}

    def handed(self):
        """Return the ids of everything that was handed to `export()`."""
        return {id_ for app in self.apps for id_ in app.handed()}

    def dead_letters(self):
        """Return the ids in the dead letters by reason."""
        found = {}
        for path in self.spool.glob("dead-letters.jsonl*"):
            for line in path.read_bytes().splitlines():
                reason = json.loads(line)["reason"]
                found.setdefault(reason, set()).add(ID.search(line)[1].decode())
        return found

    def lost(self):
        """Return the ids that were handed over, but are neither delivered nor dead letters."""
        dead = set().union(*self.dead_letters().values())
        return self.handed() - set(self.receiver.ids()) - dead

    def assert_nothing_lost(self, but=frozenset()):
        """Check that every id, apart from `but`, arrived or is in the dead letters."""
        lost = sorted(self.lost() - but)
        assert lost == [], f"{len(lost)} lost, {lost[0]} to {lost[-1]}"

    def assert_counters_agree(self):
        """Check that the health of normally ended applications agrees with the receiver."""
        written = sum(app.health["events_written"] for app in self.apps)
        # The last answer may be sent a moment before it is counted.
        self.receiver.wait_until(lambda: self.receiver.acknowledged >= written)
        assert written == self.receiver.acknowledged
        self.assert_outcomes_add_up()

    def assert_outcomes_add_up(self):
        """Check that the health of normally ended applications has one outcome per record."""
        assert not any(app.was_killed for app in self.apps)
        healths = [app.health for app in self.apps]
        ended = sum(h["events_written"] + h["events_rejected"] for h in healths)
        dropped = sum(sum(h["events_dropped"].values()) for h in healths)
        left = healths[-1]["events_spooled"]
        assert ended + dropped + left == len(self.handed())

    def close(self):
        for app in self.apps:
            app.kill()
        self.receiver.close()

    def report(self):
        """Return the result in one line.

        Records that were dropped and counted are included in lost.
        """
        healths = [app.told["health"] for app in self.apps if "health" in app.told]
        rejected = sum(health["events_rejected"] for health in healths)
        dropped = sum(sum(health["events_dropped"].values()) for health in healths)
        lost = len(self.lost()) - (0 if self.on_disk else rejected)  # no dead letters in memory
        made = sum(app.told.get("made", 0) for app in self.apps)
        p99 = max((app.told.get("p99_us", 0) for app in self.apps), default=0)
        shutdown = max((app.told.get("seconds", 0) for app in self.apps), default=0)
        return (
            f"{self._name:<47}{self.variant!s:<25}{made:>6} made{len(self.handed()):>6} handed"
            f"{len(self.receiver.ids()):>6} delivered{self.receiver.duplicates():>6} twice"
            f"{rejected:>5} rejected{dropped:>5} dropped{lost:>5} lost  p99 {p99:>6.0f} us"
            f"  shutdown {shutdown:.1f} s"
        )


class App:
    """The application `app.py` in its process; `told` holds what it has reported so far."""

    def __init__(self, folder, **settings):
        folder.mkdir(parents=True)
        self._noted = folder / "noted"
        self._log = folder / "log"
        self._data = b""
        self.name = settings["name"]
        self.told = {}
        self.was_killed = False
        settings["noted"] = str(self._noted)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, SCRIPT, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env={**_environment(), "PYTHONPATH": str(ROOT)},
            )

    @property
    def health(self):
        """Return the health that it reported last."""
        return self.told["health"]

    @property
    def log(self):
        return self._log.read_text()

    def handed(self):
        """Return the ids that it has noted so far, in order."""
        return noted_in(self._noted)

    def wait_until_handed(self, count):
        """Wait until at least `count` records were handed to `export()`."""
        wait_until(lambda: len(self.handed()) >= count or self.process.poll() is not None)
        assert len(self.handed()) >= count, self.log

    def wait_until_made(self):
        """Wait until every span was made and handed over."""
        if "made" not in self.told:
            self._hear()

    def ask(self, command):
        """Send a command, and wait until it is done."""
        self.wait_until_made()
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()
        self._hear()
        return self.told

    def end(self, flush_seconds=PATIENCE_SECONDS):
        """Let it deliver, shut down and exit; return what it reported."""
        if flush_seconds:
            self.ask(f"flush {flush_seconds}")
        self.ask("shutdown 0")
        self.process.stdin.close()
        assert self.process.wait(PATIENCE_SECONDS) == 0, self.log
        assert "Traceback" not in self.log, self.log
        self.process.stdout.close()
        return self.told

    def kill(self):
        """Kill it if it still runs, as a system that is short of memory would."""
        if self.process.poll() is None:
            self.was_killed = True
            self.process.kill()
            self.process.wait(PATIENCE_SECONDS)
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def _hear(self):
        deadline = time.monotonic() + 2 * PATIENCE_SECONDS
        while b"\n" not in self._data:
            left = deadline - time.monotonic()
            assert left > 0, f"it says nothing: {self.log}"
            if select.select([self.process.stdout], [], [], left)[0]:
                part = self.process.stdout.read1(65_536)
                assert part, f"it ended: {self.log}"
                self._data += part
        line, _, self._data = self._data.partition(b"\n")
        self.told.update(json.loads(line))


def together(scenario, folder, variants=EVERYWHERE):
    """Run a scenario in several variants at once, because each spends most of its time waiting."""
    with concurrent.futures.ThreadPoolExecutor(_MOST_AT_ONCE) as pool:
        futures = {v: pool.submit(_run, scenario, v, folder / "-".join(v)) for v in variants}
    for variant, future in futures.items():
        error = future.exception()
        if error is not None:
            raise AssertionError(f"{variant}: {error}") from error


def _run(scenario, variant, folder):
    folder.mkdir()
    name = scenario.__name__.replace("_", " ")
    with contextlib.closing(Run(name, variant, folder)) as run:
        try:
            scenario(run)
        finally:
            REPORTS.append(run.report())


def noted_in(path):
    """Return the ids in a file of notes, in order."""
    if not path.exists():
        return []
    # An incomplete line belongs to a batch whose result the SDK has not received.
    lines = re.findall(r"([\w.-]+) (\d+)-(\d+)\n", path.read_text())
    return [f"{name}:{n}" for name, first, last in lines for n in range(int(first), int(last) + 1)]


def wait_until(condition):
    """Wait for a condition that will become true."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def _environment():
    return {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "INFLUXDB_"))}
