"""Hand-made events in batches, without OpenTelemetry."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_cbtop_exporter import CbtopSpanExporter, force_flush, process_health
from otel_cbtop_exporter.config import RetryConfig
from otel_cbtop_exporter.errors import ConfigError, EventError, SinkError
from otel_cbtop_exporter.events import Event, decode_event, event_from_sample
from otel_cbtop_exporter.sinks.base import WriteResult
from otel_cbtop_exporter.streamer import EventBatch, EventStreamer
from otel_cbtop_exporter.testing import RecordingSink
from tests.builders import span
from tests.delivery.records import away, busy


def sample(value):
    return event_from_sample("gpu.load", value, {"host": "a"}, timestamp_ns=1_000 + value)


def values(sink):
    return [event["fields"]["value"] for event in sink.events]


def test_a_complete_batch_is_handed_over():
    """The event that completes a batch delivers it; later ones wait."""
    sink = RecordingSink(local=True)
    streamer = EventStreamer(sink, batch_size=3)
    assert all(streamer.send(sample(n)) for n in range(5))
    assert values(sink) == [0, 1, 2]
    assert (streamer.pending_count, streamer.events_written) == (2, 3)
    streamer.shutdown()


def test_flush_hands_over_what_waits():
    """`flush` delivers an incomplete batch and returns whether everything arrived."""
    sink = RecordingSink()
    streamer = EventStreamer(sink)
    streamer.send(sample(1))
    assert streamer.flush()
    assert values(sink) == [1]
    assert streamer.pending_count == 0
    streamer.shutdown()


def test_what_is_no_event_costs_itself_alone(caplog):
    """An object that is not an event is counted and named alone; its neighbours are delivered."""
    sink = RecordingSink(local=True)
    streamer = EventStreamer(sink, batch_size=3)
    assert streamer.send(sample(1))
    assert streamer.send({"measurement": "b"})
    assert not streamer.send(sample(2))
    streamer.send(None)
    streamer.shutdown()
    assert values(sink) == [1, 2]
    assert sum(streamer.health().events_dropped.values()) == 2
    assert "a dict is not an Event" in caplog.text
    assert sink.closes == 1


def test_a_path_may_be_an_object(tmp_path):
    """The file may be given as a `pathlib.Path`."""
    file = tmp_path / "samples.jsonl"
    with EventStreamer("jsonlines", jsonlines={"path": file}) as streamer:
        streamer.send(sample(1))
    assert decode_event(file.read_bytes()).fields == {"value": 1}


@pytest.mark.parametrize("seconds", [math.inf, 1e10])
def test_any_time_can_be_given(seconds):
    """Any timeout is accepted, even infinity, although no system clock takes such a number."""
    streamer = EventStreamer(RecordingSink())
    streamer.send(sample(1))
    assert streamer.flush(seconds)
    exporter = CbtopSpanExporter(sink=RecordingSink())
    exporter.export([span()])
    assert exporter.force_flush(seconds * 1_000)
    exporter.shutdown(seconds * 1_000)
    streamer.shutdown(seconds)


def test_everything_of_the_process_can_be_flushed_by_whoever_has_no_exporter():
    """`force_flush` of the package flushes everything in the process.

    A provider's `force_flush` only reaches the exporters.
    """
    sinks = [RecordingSink(destination="here"), RecordingSink(*[busy(60.0)] * 100)]
    exporters = [CbtopSpanExporter(sink=sink) for sink in sinks]
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporters[0]))
    provider.get_tracer("t").start_span("one").end()
    assert provider.force_flush()
    assert force_flush(10)
    assert len(sinks[0].delivered) == 1
    exporters[1].export([span()])
    assert not force_flush(0.1)
    assert process_health()["recording here"].events_written == 1
    assert process_health()["recording memory"].events_spooled == 1
    provider.shutdown()
    exporters[1].shutdown(0)


def test_flush_tells_when_something_waits():
    """While the sink is away `flush` returns False, and `pending_count` is what waits."""
    streamer = EventStreamer(RecordingSink(*[busy(60.0)] * 100))
    streamer.send(sample(1))
    assert not streamer.flush(0.1)
    assert streamer.pending_count == 1
    assert not streamer.is_healthy()
    streamer.shutdown()


def test_a_context_manager_shuts_down():
    """Leaving the block delivers everything and closes the sink once."""
    sink = RecordingSink(away)
    with EventStreamer(sink, retry=RetryConfig(initial_delay_ms=1)) as streamer:
        streamer.send(sample(1))
        assert streamer.is_healthy()
    streamer.shutdown()
    assert (values(sink), sink.closes) == ([1], 1)
    assert not streamer.is_healthy()


def test_after_shutdown_events_are_refused_and_counted():
    """After shutdown `send` returns False and counts the event."""
    streamer = EventStreamer(RecordingSink(local=True))
    streamer.shutdown()
    assert not streamer.send(sample(1))
    assert streamer.health().events_dropped == {"shutdown": 1}


def test_many_threads_lose_nothing():
    """Events from eight threads all arrive once, each thread's in order."""
    sink = RecordingSink()
    streamer = EventStreamer(sink, batch_size=7)

    def work(thread):
        for n in range(500):
            streamer.send(event_from_sample("m", n, {"thread": str(thread)}))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    streamer.shutdown(30.0)
    assert streamer.events_written == 4_000
    for thread in range(8):
        arrived = [e["fields"]["value"] for e in sink.events if e["tags"]["thread"] == str(thread)]
        assert arrived == list(range(500))


def test_an_exception_of_a_signal_handler_costs_no_event():
    """Ctrl-C between taking a batch and handing it over loses no event: shutdown delivers it."""
    sink = RecordingSink(local=True)
    encode, calls = sink.encode, itertools.count()

    def interrupted(events):
        if next(calls) == 0:
            raise KeyboardInterrupt
        return encode(events)

    sink.encode = interrupted
    streamer = EventStreamer(sink, batch_size=3)
    assert streamer.send(event_from_sample("m", 0))
    assert streamer.send(event_from_sample("m", 1))
    with pytest.raises(KeyboardInterrupt):
        streamer.send(event_from_sample("m", 2))
    streamer.shutdown()
    assert [event["fields"]["value"] for event in sink.events] == [0, 1, 2]


def test_a_signal_handler_may_send_and_shut_down():
    """A signal handler may send and shut down during a write of its thread, and loses nothing."""

    def interrupted(batch):
        signal.raise_signal(signal.SIGUSR1)
        return WriteResult(delivered=batch)

    def handle(*_):
        streamer.send(sample(2))
        streamer.shutdown()

    sink = RecordingSink(interrupted, local=True)
    streamer = EventStreamer(sink, batch_size=1)
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        assert streamer.send(sample(1))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sorted(values(sink)) == [1, 2]
    assert streamer.events_written == 2
    assert streamer.health().events_dropped == {}


def test_what_waits_behind_a_sink_that_hangs_is_counted():
    """`shutdown` ends in time while a write hangs, and every event is counted."""
    entered, release = threading.Event(), threading.Event()

    def hang(batch):
        entered.set()
        release.wait(20)
        return away(batch)

    streamer = EventStreamer(
        RecordingSink(hang, local=True), batch_size=2, retry={"max_retries": 0}
    )
    streamer.send(sample(0))
    thread = threading.Thread(target=streamer.send, args=(sample(1),))
    thread.start()
    entered.wait(20)
    streamer.send(sample(2))
    began = time.monotonic()
    streamer.shutdown(0.1)
    assert time.monotonic() - began < 10
    release.set()
    thread.join(20)
    assert sum(streamer.health().events_dropped.values()) == 3


def test_a_sink_by_name(tmp_path):
    """A sink can be given by its name and options."""
    path = tmp_path / "events.jsonl"
    with EventStreamer("jsonlines", jsonlines={"path": str(path)}) as streamer:
        streamer.send(sample(1))
    assert decode_event(path.read_text()).fields == {"value": 1}


def test_the_environment_is_below_the_arguments(tmp_path, monkeypatch):
    """Options that are not given as arguments are read from the environment."""
    monkeypatch.setenv("OTEL_EXPORTER_CBTOP_JSONLINES_PATH", str(tmp_path / "from-env.jsonl"))
    with EventStreamer("jsonlines") as streamer:
        streamer.send(sample(1))
    assert (tmp_path / "from-env.jsonl").exists()


def test_wrong_arguments_are_named():
    """A wrong argument raises an error at construction that names it."""
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        EventStreamer(RecordingSink(), batch_size=0)
    with pytest.raises(ConfigError, match="retry.max_retries"):
        EventStreamer(RecordingSink(), retry={"max_retries": -1})
    with pytest.raises(ConfigError, match="sink"):
        EventStreamer("influx")
    with pytest.raises(SinkError, match="influxdb.url"):
        EventStreamer("influxdb")


def test_a_spool_path_keeps_events_for_the_next_process(tmp_path):
    """With a spool path, events survive a shutdown with the sink away."""
    spool = {"path": str(tmp_path)}
    with EventStreamer(RecordingSink(*[busy(60.0)] * 100), spool=spool) as streamer:
        streamer.send(sample(1))
    sink = RecordingSink()
    with EventStreamer(sink, spool=spool) as streamer:
        streamer.send(sample(2))
    assert values(sink) == [1, 2]


def test_correlation_ids_are_unique_over_threads_and_forks():
    """Correlation ids are `cbtop-<pid>-<n>`, and unique across threads and forks."""
    script = """
import os, threading
from otel_cbtop_exporter.streamer import EventStreamer
ids = []
def work():
    ids.extend(EventStreamer.generate_correlation_id() for _ in range(1000))
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
read, write = os.pipe()
pid = os.fork()
work()
if pid == 0:
    os.write(write, "\\n".join(ids[-1000:]).encode())
    os._exit(0)
os.close(write)
child = b""
while part := os.read(read, 65536):
    child += part
os.waitpid(pid, 0)
print("\\n".join(ids + child.decode().split()))
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    ids = done.stdout.split()
    assert len(ids) == len(set(ids)) == 6_000
    prefix, pid, number = ids[0].split("-")
    assert prefix == "cbtop"
    assert pid.isdigit()
    assert number.isdigit()
    assert EventStreamer.generate_correlation_id().split("-")[1] == str(os.getpid())


def test_a_child_does_not_send_the_parents_batch():
    """A forked child starts with an empty batch; an incomplete one stays with the parent."""
    script = """
import os
from otel_cbtop_exporter.events import event_from_sample
from otel_cbtop_exporter.streamer import EventStreamer
from otel_cbtop_exporter.testing import RecordingSink
sink = RecordingSink(local=True)
streamer = EventStreamer(sink)
streamer.send(event_from_sample("m", 1))
pid = os.fork()
streamer.send(event_from_sample("m", 2))
streamer.shutdown()
found = [event["fields"]["value"] for event in sink.events]
if pid == 0:
    os._exit(0 if found == [2] else 1)
assert os.waitpid(pid, 0)[1] == 0
assert found == [1, 2], found
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_batch_knows_when_and_which_it_is():
    """A batch has its own id, its time of creation, and a length."""
    one, two = EventBatch(), EventBatch([sample(1)])
    one.add(sample(1))
    one.add(sample(2))
    assert one.batch_id != two.batch_id
    assert one.created_ns <= two.created_ns <= time.time_ns()
    assert (len(one), len(two)) == (2, 1)


def test_a_batch_as_json_lines():
    """A batch as JSON Lines has one event per line."""
    batch = EventBatch([sample(1), sample(2)])
    lines = batch.to_json_lines().split("\n")
    assert [json.loads(line)["fields"]["value"] for line in lines] == [1, 2]
    odd = EventBatch([Event("m", {"b": 2, "a": "", "c": None}, {"x": 1}, 1)])
    assert json.loads(odd.to_json_lines())["tags"] == {"b": "2"}


def test_a_batch_as_line_protocol():
    """A batch as line protocol has one point per line, in order."""
    lines = EventBatch([sample(1), sample(2)]).to_influx_batch().split("\n")
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["1001", "1002"]
    assert all(line.startswith("gpu.load,") for line in lines)


def test_a_batch_names_what_has_no_line():
    """An event that a format cannot represent raises an error, and is not silently lost."""
    batch = EventBatch([Event("m", {}, {"value": float("nan")}, 1)])
    with pytest.raises(EventError):
        batch.to_influx_batch()
    with pytest.raises(EventError):
        batch.to_json_lines()


@pytest.mark.parametrize("end", ["flush", "shutdown"])
def test_what_one_thread_flushes_another_one_goes_on_with(end):
    """A flush or shutdown by one thread does not keep others from handing over batches."""
    sink = RecordingSink(local=True)
    streamer = EventStreamer(sink, batch_size=1)
    getattr(streamer, end)()
    answers = []

    def other():
        streamer._shut_down = threading.Lock()  # in the state when the send began
        answers.append(streamer.send(sample(1)))

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    thread.join(20)
    assert answers == [end == "flush"]
    streamer._shut_down.acquire(blocking=False)
    streamer.shutdown()
    if end == "flush":
        streamer._shut_down = threading.Lock()
        streamer.shutdown()


def test_flush_says_that_a_batch_was_not_taken():
    """`flush` returns False if an earlier batch was dropped, though nothing waits any more."""
    streamer = EventStreamer(RecordingSink(*[away] * 9, local=True), retry={"max_retries": 0})
    assert streamer.send(sample(1))
    assert not streamer.flush()
    assert streamer.health().events_dropped == {"ConnectionRefusedError": 1}
    streamer.shutdown()


def test_an_event_that_comes_between_two_looks_of_a_shutdown_is_not_left_behind():
    """An event appended just after a shutdown is counted as dropped, and not left waiting."""

    class Late:
        """The deque of waiting events, with a shutdown just before an append takes effect."""

        def __init__(self, deque):
            self._deque = deque

        def append(self, event):
            streamer._waiting = self._deque
            streamer.shutdown()
            self._deque.append(event)

        def __len__(self):
            return len(self._deque)

    sink = RecordingSink(local=True)
    streamer = EventStreamer(sink)
    streamer._waiting = Late(streamer._waiting)
    assert not streamer.send(sample(1))
    health = streamer.health()
    assert health.events_dropped == {"shutdown": 1}
    assert streamer.pending_count == 0


def test_what_a_handler_interrupts_is_sent_later():
    """If a signal handler raises while a batch is assembled, its events are sent later."""

    class Interrupted(deque):
        def popleft(self):
            if len(self) == 2 and not interrupts:
                interrupts.append(1)
                raise KeyboardInterrupt
            return super().popleft()

    interrupts = []
    sink = RecordingSink(local=True)
    streamer = EventStreamer(sink)
    streamer._waiting = Interrupted()
    for n in range(5):
        streamer.send(sample(n))
    with pytest.raises(KeyboardInterrupt):
        streamer.flush()
    assert streamer.flush()
    assert values(sink) == [0, 1, 2, 3, 4]
    streamer.shutdown()


def test_a_flush_without_time_loses_nothing():
    """With no time left and no spool, events stay for the next flush."""
    sink = RecordingSink(local=True)
    streamer = EventStreamer(sink)
    streamer.send(sample(1))
    assert not streamer.flush(0)
    assert (streamer.pending_count, streamer.health().events_dropped) == (1, {})
    assert streamer.flush()
    assert streamer.flush(0)
    assert values(sink) == [1]
    streamer.shutdown()


@pytest.mark.parametrize("scope", ["module", "function"])
def test_a_streamer_that_was_not_shut_down_is_at_exit(tmp_path, scope):
    """Events that wait when the interpreter exits are delivered, also of a forgotten streamer."""
    program = f"""
import sys
from otel_cbtop_exporter import EventStreamer, event_from_sample

def work():
    streamer = EventStreamer("jsonlines", jsonlines={{"path": sys.argv[1]}})
    for n in range(250):
        streamer.send(event_from_sample("m", float(n)))
    return streamer

kept = work() if {scope == "module"} else work() and None
"""
    path = tmp_path / "a.jsonl"
    subprocess.run([sys.executable, "-c", program, path], check=True)
    assert len(path.read_bytes().splitlines()) == 250


def test_at_exit_a_streamer_that_hangs_leaves_the_others_their_time(tmp_path):
    """Each gets a share of the time, whatever backend another one waits for."""
    program = """
import socket, sys
from otel_cbtop_exporter import EventStreamer, event_from_sample, streamer

streamer._EXIT_SECONDS = 2.0
server = socket.create_server(("127.0.0.1", 0))
url = f"http://127.0.0.1:{server.getsockname()[1]}"
hanging = [
    EventStreamer("influxdb", delivery="direct", influxdb={"url": url, "bucket": str(n)})
    for n in range(3)
]
files = [EventStreamer("jsonlines", jsonlines={"path": f"{sys.argv[1]}/{n}"}) for n in range(6)]
for one in (*hanging, *files):
    one.send(event_from_sample("m", 1.0))
"""
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True, stderr=subprocess.PIPE)
    assert [len(path.read_bytes().splitlines()) for path in tmp_path.iterdir()] == [1] * 6


def test_at_exit_a_streamer_with_much_to_send_comes_last():
    """It has the time that the others leave."""
    program = """
import atexit
closed = []
atexit.register(lambda: print(*closed))
from otel_cbtop_exporter import EventStreamer, event_from_sample
from otel_cbtop_exporter.testing import RecordingSink

class Sink(RecordingSink):
    def close(self, timeout_seconds):
        closed.append(self.name)

for count in (30, 0, 50, 10, 40, 20):
    streamer = EventStreamer(Sink(name=f"{count}", local=True))
    for n in range(count):
        streamer.send(event_from_sample("m", float(n)))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE)
    assert done.stdout.split() == [b"0", b"10", b"20", b"30", b"40", b"50"]


def test_at_exit_a_sink_whose_statistics_raise_costs_the_others_nothing():
    """However `statistics` raises, every other streamer is still shut down at exit."""
    program = """
from otel_cbtop_exporter import EventStreamer, event_from_sample
from otel_cbtop_exporter.testing import RecordingSink

class Broken(RecordingSink):
    @property
    def statistics(self):
        raise RuntimeError

class Sink(RecordingSink):
    def close(self, timeout_seconds):
        print("closed")

broken = EventStreamer(Broken())
EventStreamer(Sink()).send(event_from_sample("m", 1.0))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert done.stdout == b"closed\n"
    assert b"Traceback" not in done.stderr
