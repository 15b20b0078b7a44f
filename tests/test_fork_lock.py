"""A fork in the middle of an import, of a client library or of a spool's modules."""

import os
import signal
import subprocess
import sys

import pytest

# The module reports that its import has begun, and ends it when told to.
SLOW_CLIENT = """
import main_thread
main_thread.begun.set()
main_thread.may_end.wait()
"""

PRELUDE = """
import os, signal, sys, threading, types

main_thread = sys.modules["main_thread"] = types.ModuleType("main_thread")
main_thread.begun, main_thread.may_end = threading.Event(), threading.Event()
"""

ORDER = """
import os, threading, time
from otel_cbtop_exporter.delivery import pipeline
from otel_cbtop_exporter.delivery.spool_lock import spool_lock
from otel_cbtop_exporter.fork_lock import forks_wait

inside, stuck = threading.Event(), []

def export_during_an_import():
    with forks_wait():
        inside.set()
        end = time.monotonic() + 1
        while time.monotonic() < end:
            if spool_lock().acquire(blocking=False):
                spool_lock().release()
            else:  # the fork has it, and waits for the import
                stuck.append(not spool_lock().acquire(timeout=5))
                return

thread = threading.Thread(target=export_during_an_import)
thread.start()
inside.wait()
if os.fork() == 0:
    os._exit(0)
os.wait()
thread.join()
print(stuck)
"""


def test_a_fork_takes_the_lock_of_imports_before_that_of_spools():
    """A fork takes the lock of imports before that of spools.

    A library may log during its import, and the line may be exported, into a spool.
    """
    command = [sys.executable, "-W", "ignore", "-c", ORDER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


INTERRUPTED = """
import os, signal, threading
from otel_cbtop_exporter.delivery.spool_lock import spool_lock
from otel_cbtop_exporter.fork_lock import IMPORTS, PIPELINES, SPOOLS, forks_wait

begun = []
first, middle, last = PIPELINES, IMPORTS, SPOOLS
last.in_child = lambda: begun.append("last") or 1 / 0
middle.in_child = lambda: begun.append("middle")

def interrupt(*_):
    may_go.set()
    raise KeyboardInterrupt

def hold():
    with last.lock:
        held.set()
        may_go.wait()

signal.signal(signal.SIGALRM, interrupt)
held, may_go = threading.Event(), threading.Event()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
signal.setitimer(signal.ITIMER_REAL, 0.2)
pid = os.fork()
if pid == 0:
    os._exit(0 if begun == ["last", "middle"] and first.lock.acquire(blocking=False) else 1)
thread.join()
free = []
other = threading.Thread(
    target=lambda: free.extend(one.acquire(timeout=5) for one in (
        first.lock, forks_wait(), spool_lock(), middle.lock, last.lock)))
other.start()
other.join()
print(free, os.waitpid(pid, 0)[1])
"""


def test_what_is_raised_during_a_fork_leaves_no_lock_held():
    """An exception of a signal handler or hook during a fork leaves no lock held.

    All other hooks still run.
    """
    command = [sys.executable, "-W", "ignore", "-c", INTERRUPTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[True, True, True, True, True] 0\n"


FIRST_IMPORT = """
import importlib.abc, sys, threading
from otel_cbtop_exporter.config import InfluxDBConfig, KafkaConfig
from otel_cbtop_exporter.fork_lock import forks_wait
from otel_cbtop_exporter.sinks.base import Record
from otel_cbtop_exporter.sinks.influxdb import InfluxDBSink
from otel_cbtop_exporter.sinks.kafka import KafkaSink

begun, may_end = threading.Event(), threading.Event()

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "{client}":
            begun.set()
            may_end.wait()

sys.meta_path.insert(0, Slow())
sink = {sink}
thread = threading.Thread(target=sink.write, args=([Record(b"m v=1 1", lane="b")], 1.0))
thread.start()
begun.wait()
print(forks_wait().acquire(blocking=False))
may_end.set()
thread.join()
sink.close(1.0)
"""


@pytest.mark.parametrize(
    ("client", "sink"),
    [
        ("urllib3", "InfluxDBSink(InfluxDBConfig(url='http://127.0.0.1:1', bucket='b'))"),
        ("confluent_kafka", "KafkaSink(KafkaConfig(bootstrap_servers='127.0.0.1:1'))"),
    ],
)
def test_the_first_import_of_a_client_is_one_that_forks_wait_for(client, sink):
    """A fork waits for the first import of a client: a child forked during it could never write."""
    program = FIRST_IMPORT.replace("{client}", client).replace("{sink}", sink)
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


FIRST_WRITE = """
from otel_cbtop_exporter.fork_lock import forks_wait

def begin():
    with forks_wait():
        import slow_client
"""

# Slows a module's execution, not its search: during a search a fork waits for Python's own lock.
SLOW_MODULE = """
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

class Slow(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "{module}":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        execute = spec.loader.exec_module

        def slowly(module):
            import slow_client
            execute(module)

        spec.loader.exec_module = slowly
        return spec

sys.meta_path.insert(0, Slow())
"""

FIRST_SPOOL = """
from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.delivery.pipeline import Pipeline
from otel_cbtop_exporter.testing import RecordingSink

def begin():
    Pipeline(RecordingSink(), ExporterConfig()).release(5)
"""

FIRST_EXPORTER = """
import otel_cbtop_exporter

def begin():
    otel_cbtop_exporter.{exporter}(sink="{sink}").shutdown()
"""

FIRST_STREAMER = """
import otel_cbtop_exporter

def begin():
    otel_cbtop_exporter.EventStreamer("{sink}", {sink}={options}).shutdown()
"""

FIRST_ZSTD = """
from otel_cbtop_exporter.sinks.rotation import _compressor

def begin():
    _compressor("zstd").compress(b"")
"""

FIRST_MISTAKE = """
import otel_cbtop_exporter

def begin():
    try:
        otel_cbtop_exporter.CbtopSpanExporter(sinck="console")
    except otel_cbtop_exporter.ConfigError as error:
        assert "did you mean sink?" in str(error)
"""

# The import runs in a thread, and the fork happens during it.
SCRIPT = """
thread = threading.Thread(target=begin)
thread.start()
main_thread.begun.wait()
threading.Timer(0.1, main_thread.may_end.set).start()
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    main_thread.may_end.set()
    begin()
    os._exit(0)
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def slowly(module, begin):
    return SLOW_MODULE.replace("{module}", module) + begin


def first_exporter(kind, sink, module):
    begin = FIRST_EXPORTER.replace("{exporter}", f"Cbtop{kind}Exporter").replace("{sink}", sink)
    return slowly(f"otel_cbtop_exporter.{module}", begin)


def first_streamer(sink, module, options):
    begin = FIRST_STREAMER.replace("{sink}", sink).replace("{options}", repr(options))
    return slowly(f"otel_cbtop_exporter.sinks.{module}", begin)


@pytest.mark.parametrize(
    "begin",
    [
        FIRST_WRITE,
        slowly("otel_cbtop_exporter.delivery.backlog", FIRST_SPOOL),
        first_exporter("Span", "none", "mapping.spans"),
        first_exporter("LogRecord", "none", "mapping.logs"),
        first_exporter("Metric", "none", "mapping.metrics"),
        first_exporter("Span", "jsonlines", "sinks.jsonlines"),
        first_exporter("Span", "console", "sinks.console"),
        first_streamer("influxdb", "influxdb", {"url": "http://127.0.0.1:1", "bucket": "b"}),
        first_streamer("kafka", "kafka", {"bootstrap_servers": "127.0.0.1:1"}),
        first_streamer("kafka", "kafka_properties", {"bootstrap_servers": "127.0.0.1:1"}),
        slowly("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd", FIRST_ZSTD),
        slowly("difflib", FIRST_MISTAKE),
    ],
    ids=[
        "write",
        "spool",
        "spans",
        "logs",
        "metrics",
        "jsonlines",
        "console",
        "influxdb",
        "kafka",
        "brokers",
        "zstd",
        "mistake",
    ],
)
def test_a_fork_waits_for_an_import(tmp_path, begin):
    """A fork waits for an import, so that the child can import the same module without hanging."""
    (tmp_path / "slow_client.py").write_text(SLOW_CLIENT)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PRELUDE + begin + SCRIPT],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 256 - signal.SIGALRM, "the child hangs"
    assert done.returncode == 0, done.stderr
