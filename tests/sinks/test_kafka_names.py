"""A name server that does not answer, for which librdkafka's threads wait."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.kafka

# The lookup of the name blocks until somebody opens the pipe for writing.
RESOLVER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int (*lookup)(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    if (node && strcmp(node, "hangs.invalid") == 0) {
        close(open(getenv("MAY_END"), O_RDONLY));
        return EAI_AGAIN;
    }
    return ((lookup)dlsym(RTLD_NEXT, "getaddrinfo"))(node, service, hints, found);
}
"""

WRITE_AND_CLOSE = """
import os
from otel_cbtop_exporter.config import KafkaConfig
from otel_cbtop_exporter.sinks.base import Record
from otel_cbtop_exporter.sinks.kafka import KafkaSink

sink = KafkaSink(KafkaConfig(bootstrap_servers="hangs.invalid:9092"))
result = sink.write([Record(b"{}", lane="topic")], 2.0)
sink.close(0.5)
print(len(result.kept), flush=True)
os._exit(0)  # the thread that looks up the name would be waited for
"""


def test_a_name_server_that_hangs_stops_no_thread_of_python(tmp_path):
    """A write and a close end in time while librdkafka waits for a name.

    Nothing ends that wait, so whoever waited for librdkafka's threads would wait for ever.
    """
    source, library, may_end = (tmp_path / name for name in ("slow.c", "slow.so", "may_end"))
    source.write_text(RESOLVER)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    os.mkfifo(may_end)
    done = subprocess.run(
        [sys.executable, "-c", WRITE_AND_CLOSE],
        env={**os.environ, "LD_PRELOAD": str(library), "MAY_END": str(may_end)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "1\n"
