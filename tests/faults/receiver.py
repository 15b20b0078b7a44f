"""A backend on loopback that can be down, slow, busy or faulty, and counts what it received.

It accepts the posts of `http_sink.py` (`/write/<lane>`, one record per line) and those of the
InfluxDB sink (`/api/v2/write?bucket=<lane>`), which it answers in InfluxDB 2's own words.
Records are identified by an id somewhere in them: `#<name>:<number>#`.
"""

import collections
import contextlib
import gzip
import itertools
import json
import re
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

ID = re.compile(rb"#([\w.-]+:\d+)#")


class Request(NamedTuple):
    """A request received.

    `ids` holds the id of each line in `lines`, or "" for a line without one.
    """

    lane: str
    lines: list
    ids: list
    size: int
    is_influxdb: bool


class Reply(NamedTuple):
    """What to answer; records are stored if the status is a success.

    `cut` is "", or says how the connection ends: `unanswered` ends it instead of an answer, `half`
    in the middle of one. The records are stored in these cases, too.
    """

    status: int = 204
    text: str = ""
    retry_after: str | None = None
    cut: str = ""


def take(request):
    """Store everything."""
    return Reply()


def refuse(status, retry_after=None):
    """Answer with a status that is not about the data."""
    return lambda request: Reply(status, _message("unavailable", "not now"), retry_after)


def poisoned_by(is_bad):
    """Answer 400 to a request that holds a bad record; InfluxDB's answer names the lines."""

    def rule(request):
        bad = [line for line, id_ in zip(request.lines, request.ids, strict=True) if is_bad(id_)]
        if not bad:
            return Reply()
        if not request.is_influxdb:
            return Reply(400, "some record of it is bad")
        quoted = "\n".join(f"unable to parse '{line.decode()}': missing fields" for line in bad)
        return Reply(400, _message("invalid", quoted))

    return rule


def too_large_over(size):
    """Answer 413 to a request of more than `size` bytes."""
    text = _message("request too large", "cannot read data: points batch is too large")
    return lambda request: Reply(413, text) if request.size > size else Reply()


def broken_by(is_bad):
    """Answer 500 to a request that holds a bad record."""
    text = _message("internal error", "unexpected error writing points to database")
    return lambda request: Reply(500, text) if any(map(is_bad, request.ids)) else Reply()


def without_lane(lane):
    """Answer 404 for one lane, as for a missing bucket, and take everything else."""
    text = _message("not found", f'bucket "{lane}" not found')
    return lambda request: Reply(404, text) if request.lane == lane else Reply()


def cutting(first, how):
    """Store the first requests, but cut their connections instead of answering."""
    numbers = itertools.count()
    return lambda request: Reply(cut=how) if next(numbers) < first else Reply()


def _message(code, text):
    return json.dumps({"code": code, "message": text})


class Receiver:
    """The backend; `rule` may be changed at any time. Close it to end its threads.

    Attributes:
        rule: Returns the reply to a request.
        seconds: How long each answer takes.
        hangs: While set, requests are read, but neither stored nor ever answered.
        cut_requests: How many of the next requests are cut while they are being read.
        seen: The monotonic time, lane, status and record count of every answered request.
        stored: The ids of each lane in order of arrival, with duplicates.
        acknowledged: How many records were in requests that were answered with success.
        errors: Errors of the receiver itself.
    """

    def __init__(self, rule=take):
        self.rule = rule
        self.seconds = 0.0
        self.hangs = False
        self.cut_requests = 0
        self.seen = []
        self.stored = collections.defaultdict(list)
        self.acknowledged = 0
        self.errors = []
        self._changed = threading.Condition()
        self._ending = threading.Event()
        self._server = None
        # It never listens. While only this socket has the port, connections are refused, and nobody
        # else can be given the port.
        self._reserved = _bound(0)
        self.port = self._reserved.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.up()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def up(self):
        """Open the port."""
        self._ending.clear()
        self._server = _Server(self, _bound(self.port))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def down(self):
        """Close the port and every connection."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.shutdown()
        self._thread.join()
        self._ending.set()
        server.cut_all()
        server.server_close()  # joins the threads of the connections

    def close(self):
        """Go down for good."""
        self.down()
        self._reserved.close()
        assert self.errors == []

    def ids(self, lane=None):
        """Return every id that arrived, once, in the order of its first arrival."""
        with self._changed:
            lanes = self.stored.values() if lane is None else [self.stored[lane]]
            return list(dict.fromkeys(id_ for ids in lanes for id_ in ids))

    def duplicates(self):
        """Return how many records arrived again."""
        with self._changed:
            return sum(len(ids) - len(set(ids)) for ids in self.stored.values())

    def statuses(self, lane=None):
        """Return the statuses that were answered, in order, optionally for one lane."""
        with self._changed:
            return [status for _, at, status, _ in self.seen if lane in (None, at)]

    def wait_until(self, condition, seconds=120):
        """Wait until a condition is true; it is checked whenever a request is answered."""
        with self._changed:
            assert self._changed.wait_for(condition, seconds), f"not within {seconds} s"

    def answer(self, request):
        """Decide about a request; what is to be stored is stored before the answer is sent."""
        if self.hangs:
            self._ending.wait()
            return Reply(cut="unanswered")
        if self.seconds:
            self._ending.wait(self.seconds)
        reply = self.rule(request)
        if reply.status < 300:
            with self._changed:
                self.stored[request.lane] += filter(None, request.ids)
        return reply

    def note(self, request, reply):
        """Record what is about to be answered."""
        with self._changed:
            self.seen.append((time.monotonic(), request.lane, reply.status, len(request.lines)))
            self._changed.notify_all()

    def acknowledge(self, records):
        """Count records once their success has been answered."""
        with self._changed:
            self.acknowledged += records
            self._changed.notify_all()

    def cuts_this_one(self):
        """Return whether to cut the current request, and count it if so."""
        with self._changed:
            cut = self.cut_requests > 0
            self.cut_requests -= cut
            return cut


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, receiver, bound):
        super().__init__(bound.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = bound
        self.server_activate()
        self.receiver = receiver
        self._connections = set()

    def process_request(self, request, client_address):
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self._connections.discard(request)
        super().shutdown_request(request)

    def cut_all(self):
        for connection in list(self._connections):
            cut(connection)

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # the other side has closed, or we cut the connection
            self.receiver.errors.append(repr(error))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        receiver = self.server.receiver
        length = int(self.headers["Content-Length"])
        if receiver.cuts_this_one():
            self.rfile.read(length // 2)
            self._cut()
            return
        request = _parsed(self.path, self.headers, self.rfile.read(length))
        reply = receiver.answer(request)
        if reply.cut == "unanswered":
            receiver.note(request, reply)
            self._cut()
        elif reply.cut == "half":
            receiver.note(request, reply)
            self.wfile.write(b"HTTP/1.1 2")
            self._cut()
        else:
            text = reply.text.encode()
            self.send_response(reply.status)
            if reply.retry_after is not None:
                self.send_header("Retry-After", reply.retry_after)
            if reply.status != 204:
                self.send_header("Content-Type", "application/json; charset=utf-8")
                self.send_header("Content-Length", str(len(text)))
            receiver.note(request, reply)
            self.end_headers()
            self.wfile.write(text)
            self.wfile.flush()  # raises if the connection was cut before
            if reply.status < 300:
                receiver.acknowledge(len(request.lines))

    def _cut(self):
        self.wfile.flush()
        cut(self.connection)
        self.close_connection = True

    def log_message(self, *_):
        """Say nothing."""


def cut(connection):
    """End a connection in both directions, which wakes whoever reads from it."""
    with contextlib.suppress(OSError):  # the other side was faster
        connection.shutdown(socket.SHUT_RDWR)


def _parsed(path, headers, body):
    if headers["Content-Encoding"] == "gzip":
        body = gzip.decompress(body)
    lines = body.removesuffix(b"\n").split(b"\n")
    found = [ID.search(line) for line in lines]
    ids = [match[1].decode() if match else "" for match in found]
    parts = urlsplit(path)
    is_influxdb = parts.path == "/api/v2/write"
    lane = parse_qs(parts.query)["bucket"][0] if is_influxdb else parts.path.rpartition("/")[2]
    return Request(lane, lines, ids, len(body), is_influxdb)


def _bound(port):
    """Return a socket on a port that our other sockets may share."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound
