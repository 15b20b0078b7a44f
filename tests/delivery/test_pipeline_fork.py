"""Forks: the child begins anew, the parent goes on, and neither hangs."""

import subprocess
import sys
import textwrap

# Servers fork processes that have threads, and Python warns about it.
PYTHON = [sys.executable, "-W", "ignore::DeprecationWarning", "-c"]

PRELUDE = """
import os, threading, time
from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.delivery.pipeline import Pipeline, acquire
from otel_cbtop_exporter.events import event_from_sample
from otel_cbtop_exporter.sinks.base import WriteResult
from otel_cbtop_exporter.testing import RecordingSink

def events(n):
    return [event_from_sample("m", 1)] * n

def away(batch):
    return WriteResult(kept=batch, error="away", error_type="away")

def in_child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    return pid

def wait_for(*pids):
    for pid in pids:
        deadline = time.monotonic() + 30
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                assert status == 0, status
                break
            assert time.monotonic() < deadline, "a child hangs"
            time.sleep(0.005)
"""


def run(script):
    done = subprocess.run(
        [*PYTHON, PRELUDE + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_child_begins_with_nothing_of_the_parents():
    """A child has an empty spool, zero counters and its own thread; its sink is told."""
    run(
        """
        sink = RecordingSink(*[away] * 100_000)
        pipeline = Pipeline(sink, ExporterConfig(retry={"max_delay_ms": 10}))
        pipeline.submit(events(5), 5)

        def child():
            assert sink.forks == 1
            health = pipeline.health()
            assert (health.events_spooled, health.write_errors) == (0, 0), health
            sink.answers.clear()
            pipeline.submit(events(2), 5)
            assert pipeline.force_flush(20)
            assert pipeline.health().events_written == 2
            pipeline.release(20)

        wait_for(in_child(child))
        assert pipeline.health().events_spooled == 5
        sink.answers.clear()
        pipeline.release(20)
        assert pipeline.health().events_written == 5, pipeline.health()
        """
    )


def test_a_fork_in_the_middle_of_a_direct_write():
    """If a sink forks during a write, parent and child both return its answer from `submit`."""
    run(
        """
        pids = []

        def fork_and_take(batch):
            pids.append(os.fork())
            return WriteResult(delivered=batch)

        pipeline = Pipeline(RecordingSink(fork_and_take, local=True), ExporterConfig())
        taken = False
        try:
            taken = pipeline.submit(events(1), 5)
        finally:
            if pids == [0]:
                os._exit(0 if taken else 1)
        assert taken
        wait_for(*pids)
        """
    )


def test_forks_while_threads_submit_do_not_hang():
    """Children forked while other threads submit deliver their own events and end."""
    run(
        """
        pipeline = Pipeline(RecordingSink(), ExporterConfig())
        stop = threading.Event()

        def work():
            while not stop.is_set():
                pipeline.submit(events(3), 5)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()

        def child():
            pipeline.submit(events(4), 5)
            assert pipeline.force_flush(20)
            assert pipeline.health().events_written == 4, pipeline.health()
            pipeline.release(20)

        for _ in range(10):
            wait_for(in_child(child), in_child(child))
        stop.set()
        for thread in threads:
            thread.join()
        pipeline.release(20)
        """
    )


def test_holders_are_counted_on_both_sides():
    """A shared pipeline is closed by the second of two releases, in the child as in the parent."""
    run(
        """
        sink = RecordingSink(local=True)
        one = acquire("k", lambda: sink, ExporterConfig())
        two = acquire("k", lambda: sink, ExporterConfig())

        def child():
            one.release(1)
            assert not two.closed
            two.release(1)
            assert two.closed and sink.closes == 1

        wait_for(in_child(child))
        assert one.submit(events(1), 5)
        one.release(1)
        two.release(1)
        assert one.closed
        """
    )


def test_a_sink_that_raises_after_a_fork_leaves_the_others_alone():
    """A sink whose fork hook raises does not keep other pipelines from being reset.

    Python reports the exception.
    """
    run(
        """
        class Broken(RecordingSink):
            def after_fork_in_child(self):
                raise RuntimeError("broken")

        sinks = [RecordingSink(), Broken(), RecordingSink(), Broken(), RecordingSink()]
        pipelines = [Pipeline(sink, ExporterConfig()) for sink in sinks]
        for pipeline in pipelines:
            pipeline.submit(events(1), 5)
            assert pipeline.force_flush(20)

        def child():
            written = [pipeline.health().events_written for pipeline in pipelines]
            assert written == [0] * 5, written

        wait_for(in_child(child))
        """
    )


def test_on_disk_each_process_delivers_its_own(tmp_path):
    """With a spool on disk, forked children neither resend nor lose events of the parent."""
    run(
        f"""
        out = os.open({str(tmp_path / "out")!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        gate = {str(tmp_path / "gate")!r}

        class Sink(RecordingSink):
            def write(self, batch, timeout_seconds):
                if not os.path.exists(gate):
                    return away(batch)
                os.write(out, b"".join(record.body + b"\\n" for record in batch))
                return WriteResult(delivered=batch)

        config = ExporterConfig(
            spool={{"path": {str(tmp_path / "spool")!r}}}, retry={{"max_delay_ms": 20}}
        )
        pipeline = Pipeline(Sink(), config)

        def submit(name, n):
            for i in range(n):
                assert pipeline.submit([event_from_sample("m", 1, {{"id": f"{{name}}-{{i}}"}})], 5)

        submit("parent-before", 50)

        def child(name):
            submit(name, 50)
            assert pipeline.force_flush(30)
            pipeline.release(30)

        pids = [in_child(lambda n=n: child(f"child{{n}}")) for n in range(3)]
        submit("parent-after", 50)
        os.close(os.open(gate, os.O_CREAT))
        wait_for(*pids)
        assert pipeline.force_flush(30)
        pipeline.release(30)
        """
    )
    lines = (tmp_path / "out").read_text().splitlines()
    assert len(lines) == 250
    assert len({line.split('"id":"')[1].split('"')[0] for line in lines}) == 250


def test_a_child_counts_its_own_losses():
    """A child does not inherit loss counters, even if their lock is held during the fork."""
    run(
        """
        from otel_cbtop_exporter import CbtopSpanExporter
        exporter = CbtopSpanExporter(sink=RecordingSink(local=True))
        exporter.export([object()])
        assert exporter.health().events_rejected == 1

        def child():
            assert exporter.health().events_rejected == 0
            exporter.export([object()])
            assert exporter.health().events_rejected == 1

        with exporter._delivery._losses.counters._lock:
            pid = in_child(child)
        wait_for(pid)
        assert exporter.health().events_rejected == 1
        exporter.shutdown()
        """
    )
