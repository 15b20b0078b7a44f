"""Forks by an application and by gunicorn: parent and children neither lose records nor hang."""

import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess

import pytest
import requests

from tests.e2e.processes import executable, free_port
from tests.faults.runs import (
    ON_DISK,
    PATIENCE_SECONDS,
    ROOT,
    Variant,
    noted_in,
    together,
    wait_until,
)

pytestmark = pytest.mark.faults


def test_forks_while_another_thread_appends(tmp_path):
    """Ten children, forked at arbitrary moments of other threads, deliver all their records."""

    def forks_while_another_thread_appends(run):
        forks = list(range(100, 1_100, 100))
        app = run.start(count=1_200, crowded=True, fork_at=forks, child_count=100)
        app.ask("reap 0")
        assert app.told["children"] == [0] * 10
        app.end()
        ids = set(run.receiver.ids())
        made = {f"{app.name}-child{child}:{n}" for child in range(10) for n in range(100)}
        assert made <= ids
        run.assert_nothing_lost()

    together(forks_while_another_thread_appends, tmp_path)


def test_the_parent_is_shut_down_while_the_child_appends(tmp_path):
    """Parent and child have separate spools, and neither closes the other's, even in an outage."""

    def the_parent_is_shut_down_while_the_child_appends(run):
        run.receiver.down()
        app = run.start(count=600, fork_at=[500], child_count=3_000)
        app.wait_until_made()
        # Otherwise its first write, which imports the client, may be abandoned and still arrive.
        wait_until(lambda: app.ask("look 0")["health"]["write_errors"])
        app.ask("close 1")
        # More records from the child, unless it has already made all of them.
        app.wait_until_handed(min(len(app.handed()) + 1_024, 3_600))
        run.receiver.up()
        app.ask("reap 0")
        assert app.told["children"] == [0]
        app.end(flush_seconds=0)
        parents = {id_ for id_ in app.handed() if "child" not in id_}
        assert len(app.handed()) - len(parents) == 3_000
        if run.on_disk:
            run.start(count=100).end()
        # With memory only, the parent could not deliver its records before it ended.
        assert run.lost() == (set() if run.on_disk else parents)

    together(the_parent_is_shut_down_while_the_child_appends, tmp_path)


class Gunicorn:
    """A gunicorn server with its workers; its spool outlives it."""

    def __init__(self, run, *arguments):
        self._noted = run.folder / "noted"
        self._log = run.folder / "log"
        port = free_port()
        self._url = f"http://127.0.0.1:{port}/"
        settings = {
            "sink": run.variant.sink,
            "url": run.receiver.url,
            "noted": str(self._noted),
            "options": run.options,
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(executable("gunicorn"), "tests.faults.web:app", "--no-control-socket"),
                    *("--bind", f"127.0.0.1:{port}", *arguments),
                ],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "FAULTS_WEB": json.dumps(settings),
                    "OTEL_BSP_SCHEDULE_DELAY": "100",
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        run.apps.append(self)
        self.was_killed = False
        self.told = {}
        self.answered = []

    @property
    def log(self):
        return self._log.read_text()

    def handed(self):
        return noted_in(self._noted)

    def ask(self, requests_):
        """Send requests, several at a time."""
        wait_until(self._answers)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            self.answered += pool.map(lambda _: self._request(), range(requests_))

    def _answers(self):
        assert self.process.poll() is None, self.log
        with contextlib.suppress(requests.ConnectionError):
            self.answered.append(self._request())
            return True
        return False

    def _request(self):
        return requests.get(self._url, timeout=PATIENCE_SECONDS).text

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE_SECONDS) == 0, self.log

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)


RECYCLED = ("--workers", "2", "--max-requests", "20")


def test_gunicorn_with_recycled_workers(tmp_path):
    """Every answered request is delivered, through an outage and with recycled workers."""

    def gunicorn_with_recycled_workers(run):
        preload = ["--preload"] if run.variant.case else []
        server = Gunicorn(run, *RECYCLED, *preload)
        server.ask(100)
        run.receiver.down()
        server.ask(60)  # during the outage a worker takes 2.5 s to end
        run.receiver.up()
        server.ask(100)
        server.end()
        # Deliver what the last workers left, if the backend was away when they ended.
        run.start(count=100).end()
        assert len({id_.partition(":")[0] for id_ in server.answered}) > 8
        assert set(server.answered) <= set(server.handed())
        run.assert_nothing_lost()

    variants = [
        Variant("http", "disk"),
        Variant("http", "disk", "preload"),
        Variant("influxdb", "disk", "preload"),
    ]
    together(gunicorn_with_recycled_workers, tmp_path, variants)


def test_gunicorn_in_memory(tmp_path):
    """Without a spool path, too, recycled workers deliver their records before they end."""

    def gunicorn_in_memory(run):
        preload = ["--preload"] if run.variant.case else []
        server = Gunicorn(run, *RECYCLED, *preload)
        server.ask(200)
        server.end()
        assert set(server.answered) <= set(server.handed())
        run.assert_nothing_lost()

    variants = [Variant("http", "memory"), Variant("http", "memory", "preload")]
    together(gunicorn_in_memory, tmp_path, variants)


def test_gunicorn_with_a_killed_worker(tmp_path):
    """Records of one killed worker of four are delivered by the others while they serve."""

    def gunicorn_with_a_killed_worker(run):
        server = Gunicorn(run, "--workers", "4", "--preload")
        run.receiver.down()
        server.ask(200)
        wait_until(lambda: len(server.handed()) >= 100)
        name = server.handed()[0].partition(":")[0]
        os.kill(int(name.removeprefix("worker-")), signal.SIGKILL)
        left = {id_ for id_ in server.handed() if id_.startswith(f"{name}:")}
        run.receiver.up()

        def took_over():
            server.ask(4)
            return left <= set(run.receiver.ids())

        wait_until(took_over)
        server.end()
        run.start(count=100).end()
        run.assert_nothing_lost()

    together(gunicorn_with_a_killed_worker, tmp_path, ON_DISK)
