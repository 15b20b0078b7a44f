"""A tiny HTTP proxy on loopback, which forwards plain requests and tunnels CONNECT requests."""

import base64
import contextlib
import http.client
import http.server
import select
import socket
import threading
from urllib.parse import urlsplit


class Proxy:
    """A proxy; `seen` lists the requests that it received.

    Args:
        login: `user:password` that clients must give, or "" for anybody.
    """

    def __init__(self, login=""):
        self.seen = []
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, login))
        self._server.daemon_threads = False  # so that server_close joins them
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(proxy, login):
    wanted = f"Basic {base64.b64encode(login.encode()).decode()}" if login else None

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10

        def allowed(self):
            if wanted is None or self.headers["Proxy-Authorization"] == wanted:
                return True
            self.send_error(407)
            return False

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not self.allowed():
                return
            proxy.seen.append(f"POST {self.path}")
            to = urlsplit(self.path)
            connection = http.client.HTTPConnection(to.hostname, to.port, timeout=10)
            connection.request("POST", f"{to.path}?{to.query}", body, dict(self.headers))
            answer = connection.getresponse()
            self.send_response(answer.status)
            self.end_headers()
            self.wfile.write(answer.read())
            connection.close()

        def do_CONNECT(self):
            if not self.allowed():
                return
            proxy.seen.append(f"CONNECT {self.path}")
            host, _, port = self.path.partition(":")
            with socket.create_connection((host, int(port)), timeout=10) as server:
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self._tunnel(server)

        def _tunnel(self, server):
            ends = {self.connection: server, server: self.connection}
            while True:
                for end in select.select(list(ends), [], [], 10)[0]:
                    data = end.recv(65_536)
                    if not data:
                        return
                    ends[end].sendall(data)

        def log_message(self, *_):
            pass

    return Handler
