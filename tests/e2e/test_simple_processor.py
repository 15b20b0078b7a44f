"""A process with a SimpleSpanProcessor, which calls export() from every thread at once."""

import subprocess
import sys

from tests.e2e.processes import events_in

APPLICATION = """
import threading
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from otel_cbtop_exporter import CbtopSpanExporter

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(CbtopSpanExporter()))
tracer = provider.get_tracer("t")

def work(number):
    for _ in range(500):
        with tracer.start_as_current_span(f"thread {number}"):
            pass

threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_eight_threads_write_every_span_once(tmp_path):
    """No line is torn, lost or repeated, and the process can end without a call to us."""
    subprocess.run([sys.executable, "-c", APPLICATION], cwd=tmp_path, check=True, timeout=60)
    events = events_in(tmp_path)
    assert len({event.fields["span_id"] for event in events}) == len(events) == 4000
