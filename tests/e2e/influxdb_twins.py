"""Make spans that differ only in their ids, from four threads and four forked workers.

Usage: influxdb_twins.py OPTIONS COUNT. OPTIONS are the sink's options as JSON; each thread and
each worker makes COUNT spans of one name, one start and one duration. Prints the number of events
that each process has written.
"""

import json
import os
import sys
import threading

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_cbtop_exporter import CbtopSpanExporter

START_NS = 1_700_000_000_000_000_000


def make(tracer, count):
    for _ in range(count):
        tracer.start_span("twin", start_time=START_NS).end(START_NS + 5)


def finish(provider, exporter):
    provider.force_flush(60_000)
    exporter.force_flush(60_000)
    health = exporter.health()
    provider.shutdown()
    return health.events_written


def main(options, count):
    exporter = CbtopSpanExporter(sink="influxdb", influxdb=options)
    provider = TracerProvider(resource=Resource.create({"service.name": "twins"}))
    # Room for all of them: the exporter cannot deliver what the SDK's queue drops.
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=8 * count))
    tracer = provider.get_tracer("twins")
    threads = [threading.Thread(target=make, args=(tracer, count)) for _ in range(4)]
    for thread in threads:
        thread.start()
    reading, writing = os.pipe()
    workers = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                make(tracer, count)
                os.write(writing, b"%d\n" % finish(provider, exporter))
                status = 0
            finally:
                os._exit(status)
        workers.append(pid)
    os.close(writing)
    for thread in threads:
        thread.join()
    written = [finish(provider, exporter)]
    for pid in workers:
        os.waitpid(pid, 0)
    with os.fdopen(reading) as numbers:
        written += map(int, numbers)
    print(json.dumps(written))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]))
