"""A loopback HTTP server that gives the answers that no real server gives on demand."""

import contextlib
import gzip
import http.server
import socket
import threading
from collections.abc import Mapping
from typing import NamedTuple


class Request(NamedTuple):
    """A request that arrived; `body` is decompressed, `sent_bytes` is its size as sent."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    sent_bytes: int

    @property
    def lines(self):
        return self.body.splitlines()


class Reply(NamedTuple):
    """An answer; `cut` ends the connection "before" the answer or in the "middle" of it."""

    status: int = 204
    body: bytes = b""
    headers: Mapping[str, str] = {}
    cut: str = ""


class Loopback:
    """A server on a free port of 127.0.0.1.

    Args:
        reply: Called with each request; returns a `Reply`.
        tls: An `ssl.SSLContext` for https.
    """

    def __init__(self, reply, tls=None):
        self.requests = []
        self.ended_connections = 0
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, reply))
        self._server.daemon_threads = False  # so that server_close joins them
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_address[1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(loopback, reply):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10  # after which an unused connection ends

        def do_POST(self):
            data = self.rfile.read(int(self.headers["Content-Length"]))
            packed = self.headers.get("Content-Encoding") == "gzip"
            body = gzip.decompress(data) if packed else data
            request = Request(self.path, dict(self.headers), body, len(data))
            loopback.requests.append(request)
            answer = reply(request)
            if answer.cut == "before":
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.status != 204:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            body = answer.body
            if answer.cut == "middle":
                self.close_connection = True
                body = body[: len(body) // 2]
            with contextlib.suppress(ConnectionError):  # the client stopped reading
                self.wfile.write(body)

        def finish(self):
            super().finish()
            loopback.ended_connections += 1

        def handle(self):
            if not hasattr(self.connection, "do_handshake"):
                super().handle()
                return
            try:
                self.connection.do_handshake()
            except OSError:  # one side refused the other's certificate
                # Read what is still coming, or closing would cut off the alert that says why.
                plain = socket.socket(fileno=self.connection.detach())
                with plain, contextlib.suppress(OSError):
                    plain.shutdown(socket.SHUT_WR)
                    while plain.recv(65_536):
                        pass
            else:
                super().handle()

        def log_message(self, *_):
            pass

    return Handler
