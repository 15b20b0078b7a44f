"""Write events of every kind to Kafka from four threads and four forked workers.

Usage: kafka_writers.py BOOTSTRAP TOPIC EVENTS_PER_WRITER; prints the health of each process.
"""

import os
import sys
import threading

import msgspec

from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.delivery.pipeline import Pipeline
from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.sinks.kafka import KafkaSink
from otel_cbtop_exporter.tag_set import TagSet

THREADS = ("t0", "t1", "t2", "t3")
WORKERS = ("w0", "w1", "w2", "w3")

KINDS = {
    "span": "spans",
    "span_event": "span_events",
    "span_link": "span_links",
    "log": "logs",
    "metric": "requests",
    "exemplar": "exemplars",
    None: "samples",
}


def made_events(writer, count):
    """Make a writer's events, of every kind in turn; they are the same in any process."""
    tags = [TagSet({"writer": writer, "route": f"/{route}"}) for route in range(5)]
    kinds = list(KINDS.items())
    for number in range(count):
        signal, measurement = kinds[number % len(kinds)]
        in_trace = signal in ("span", "span_event", "span_link") or number % 3 == 0
        yield Event(
            measurement=measurement,
            tags=tags[number // 7 % 5],
            fields={"number": number, "text": f"ü {number}"},
            timestamp_ns=1_700_000_000_000_000_000 + number,
            signal=signal,
            correlation_id=f"{hash_of(writer, number // 40):032x}" if in_trace else None,
            attributes={"list": [1, 2.5, True], "name": writer} if signal == "span" else None,
        )


def hash_of(writer, trace):
    return int.from_bytes(writer.encode(), "big") << 64 | trace + 1


def write(pipeline, writer, count):
    events = list(made_events(writer, count))
    for start in range(0, count, 500):
        assert pipeline.submit(events[start : start + 500], 30)


def finish(pipeline):
    assert pipeline.force_flush(60)
    health = pipeline.health()
    pipeline.release(10)
    return health


def main(bootstrap, topic, count):
    config = ExporterConfig(
        sink="kafka",
        kafka={
            "bootstrap_servers": bootstrap,
            "topic": topic,
            "config": {"statistics.interval.ms": "100"},
        },
    )
    pipeline = Pipeline(KafkaSink(config.kafka), config)
    write(pipeline, "before", 500)
    pipeline.force_flush(30)  # connects, so that the workers inherit a producer
    threads = [threading.Thread(target=write, args=(pipeline, w, count)) for w in THREADS]
    for thread in threads:
        thread.start()
    workers = []
    for writer in WORKERS:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                write(pipeline, writer, count)
                health = finish(pipeline)
                status = 0 if health.events_written == count else 2
            finally:
                os._exit(status)
        workers.append(pid)
    for thread in threads:
        thread.join()
    health = finish(pipeline)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
    sys.stdout.buffer.write(msgspec.json.encode({"health": health, "workers": statuses}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
