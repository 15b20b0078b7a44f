"""A router between client and server, which can forget connections as NAT does."""

import contextlib
import socket
import threading


class ForgetfulRouter:
    """Forwards connections to a server.

    Args:
        target: `host:port` of the server.
        port: The router's own port; a free one by default.
    """

    def __init__(self, target, port=0):
        host, _, target_port = target.rpartition(":")
        self._target = (host, int(target_port))
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._known = set()
        self._sockets = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()

    def forget(self):
        """Make all present connections swallow what is sent from now on, and answer nothing."""
        self._known.clear()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            connection = object()
            self._known.add(connection)
            self._sockets += [client, server]
            for pair in ((client, server), (server, client)):
                self._threads.append(threading.Thread(target=self._pass, args=(connection, *pair)))
                self._threads[-1].start()

    def _pass(self, connection, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if connection in self._known:
                    sink.sendall(data)
            if connection in self._known:
                sink.shutdown(socket.SHUT_WR)
