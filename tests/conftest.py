"""What every test can rely on: a clean environment, only loopback, and no threads left behind."""

import os
import signal
import socket
import threading

import pytest

# If each module imported a session fixture instead, each would start a server of its own.
pytest_plugins = ["tests.servers.influxdb"]

# A shell's background jobs ignore SIGINT, and so would every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in list(os.environ):
        ours = name.startswith(("OTEL_", "INFLUXDB_")) and name != "OTEL_CBTOP_SERVERS"
        ours = ours or name == "PYTHONUNBUFFERED"  # children of tests print as users' programs do
        if ours or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch):
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in (
            "127.0.0.1",
            "127.0.0.2",
            "::1",
            "localhost",
        ):
            raise AssertionError(f"a test reached for the network: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _no_thread_left():
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and t.is_alive()]
    for thread in left:
        thread.join(5)
    left = [t.name for t in left if t.is_alive()]
    assert not left, f"threads left behind: {left}"


@pytest.fixture
def no_threads(monkeypatch):
    """Let no thread start, as while the interpreter of Python 3.12 shuts down.

    This is patched, because nothing can be asserted in an interpreter that shuts down.
    """

    def refuse(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
