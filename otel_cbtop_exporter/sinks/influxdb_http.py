"""Requests to InfluxDB: connections, TLS, proxies, and reading answers with care.

Belongs here: how a request reaches a server, and why it did not. Not here: what is sent
(`influxdb.py`), what an answer means (`influxdb_answers.py`).

Requests go through urllib3, without influxdb-client on top of it. That client reads answers
without a limit, trusts their encoding and retries by itself. All we could use of it was its
urllib3 pool, at a cost of 250 ms and 36 MiB in each process.
"""

from __future__ import annotations

import http.client
import logging
import re
import ssl
import threading
import time
import warnings
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from otel_cbtop_exporter.config import InfluxDBConfig
from otel_cbtop_exporter.env import proxy_for
from otel_cbtop_exporter.fork_lock import forks_wait
from otel_cbtop_exporter.masking import MASK
from otel_cbtop_exporter.sinks.base import parse_retry_after
from otel_cbtop_exporter.sinks.influxdb_answers import Answer
from otel_cbtop_exporter.sinks.influxdb_causes import no_answer_reason, system_reason

if TYPE_CHECKING:
    import urllib3

__all__ = ["InfluxDBConnections", "NoAnswer"]

_logger = logging.getLogger("otel_cbtop_exporter")

_MOST_ANSWER_BYTES = 64 * 1024
# How many stay open: with `delivery=direct` the threads of all three signals may send at once.
_MOST_CONNECTIONS = 3
# Shorter header values are not masked: one may be a tenant's number, which occurs in lines too.
_SHORTEST_SECRET = 8


class NoAnswer(Exception):  # noqa: N818 -- the name says what happened
    """The server did not answer.

    The message says why, and repeats nothing that was sent.

    Attributes:
        error_type: A short stable word.
        is_local: Whether nothing was sent because of a problem with a local file.
    """

    def __init__(self, why: str, error_type: str, *, is_local: bool = False) -> None:
        super().__init__(why)
        self.error_type = error_type
        self.is_local = is_local


class InfluxDBConnections:
    """Connections to one server, made when they are needed; thread-safe.

    Args:
        options: TLS settings, and the headers whose values are secrets.
        address: Scheme, host and path of the server.
    """

    def __init__(self, options: InfluxDBConfig, address: str) -> None:
        self._options = options
        self._address = address
        self._is_tls = address.startswith("https")
        # Reentrant: a signal handler may export on the thread that holds it.
        self._lock = threading.RLock()
        self._pool: urllib3.PoolManager | None = None
        self._closed = False
        self._is_hasty = False
        self._proxy_secrets: list[str] = []

    def post(self, path: str, body: bytes, headers: Mapping[str, str], seconds: float) -> Answer:
        """Post a body; a redirection is an answer like any other.

        Args:
            path: Path and query, appended to the address.
            body: The bytes to send, after any compression.
            headers: All headers of the request.
            seconds: The time limit until an answer begins, and then for each part of it.

        Raises:
            NoAnswer: There was no answer, or no whole one.
        """
        began = time.monotonic()
        secrets = [headers.get("Authorization", ""), *self._options.headers.values()]
        try:
            response = self._request(path, body, headers, seconds)
            return _read(response, [*secrets, *self._proxy_secrets])
        except (OSError, ValueError, http.client.HTTPException, ImportError) as error:
            raise self._no_answer(error, time.monotonic() - began) from None
        # urllib3's own errors derive from Exception alone, and naming their base class would need
        # an import of urllib3 up front.
        except Exception as error:
            if not type(error).__module__.startswith("urllib3."):
                raise
            raise self._no_answer(error, time.monotonic() - began) from None

    def close(self) -> None:
        """Close the connections, for good."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            # Dropping the pool would leave the sockets to the garbage collector.
            for key in pool.pools.keys():  # noqa: SIM118 -- not a dict, and not iterable
                pool.pools[key].close()

    def _no_answer(self, error: Exception, seconds: float) -> NoAnswer:
        why, word, cause = no_answer_reason(error, round(seconds, 1))
        if word == "timeout":
            self._is_hasty = not self._is_hasty
        if self._is_tls and isinstance(cause, ssl.SSLError | FileNotFoundError | PermissionError):
            try:
                _check_files(self._options)  # a file may have been replaced since the last check
            except NoAnswer as named:
                return named
        return NoAnswer(why, word)

    def _request(
        self, path: str, body: bytes, headers: Mapping[str, str], seconds: float
    ) -> urllib3.BaseHTTPResponse:
        deadline = time.monotonic() + seconds
        headers = {name: _in_utf_8(text) for name, text in headers.items()}
        pool = self._connected()
        # Not at the top: importing takes 25 ms of start-up. Not before `_connected`, which makes
        # forks wait for the first import.
        import urllib3  # noqa: PLC0415

        # Each timeout toggles `_is_hasty`. A hasty request spends at most a third of its time on
        # connecting to one address, so that time is left for the host's other addresses. The
        # first is not hasty: a TLS handshake with a slow server may take all of the time.
        total = max(0.001, deadline - time.monotonic())
        connect = total / 3 if self._is_hasty else total
        return pool.request(
            "POST",
            self._address + path,
            body=body,
            headers=headers,
            timeout=urllib3.Timeout(connect=connect, total=total),
            retries=urllib3.Retry(total=False),  # urllib3 converts a bare False to this and logs it
            redirect=False,
            preload_content=False,
            enforce_content_length=True,  # the default in urllib3 2, but not in urllib3 1
        )

    def _connected(self) -> urllib3.PoolManager:
        pool, is_new = self._pool, False
        if pool is None:
            if self._is_tls:
                _wait_for_files(self._options)
            # In this order, because a line that an import logs may be exported through here.
            with forks_wait(), self._lock:
                is_new = self._pool is None and not self._closed
                if is_new:
                    self._pool = self._make_pool()
                pool = self._pool
        if pool is None:
            raise ConnectionError("the sink is closed")
        # After releasing the lock: a log handler may export this line at once, through this sink.
        if is_new and self._is_tls and not self._options.verify_tls:
            _logger.warning(
                "sink influxdb: influxdb.verify_tls is off, so anybody on the way can read "
                "the token; name the server's authority in influxdb.ca_file instead"
            )
        return pool

    def _make_pool(self) -> urllib3.PoolManager:
        # Otherwise the first look-up of a host name imports this, while forks do not wait.
        import encodings.idna  # noqa: F401, PLC0415

        # Takes 25 ms, at the first write instead of at start-up; forks have to wait for it.
        import urllib3  # noqa: PLC0415

        options = self._options
        if self._is_tls:
            # While forks wait, too: a child forked meanwhile may inherit one of OpenSSL's locks.
            _check_files(options)
        if self._is_tls and not options.verify_tls:
            # We warn once ourselves, and say what to do. Where warnings are errors, urllib3's own
            # would make every write fail.
            host = re.escape(f"host '{urlsplit(self._address).hostname}'")
            unverified = urllib3.exceptions.InsecureRequestWarning
            warnings.filterwarnings("ignore", f".*{host}", unverified)
        settings: dict[str, Any] = {
            "maxsize": _MOST_CONNECTIONS,
            "cert_reqs": ssl.CERT_REQUIRED if options.verify_tls else ssl.CERT_NONE,
            "ca_certs": options.ca_file,
            "cert_file": options.cert_file,
            "key_file": options.key_file,
        }
        proxy = proxy_for(self._address)
        if proxy is None:
            return urllib3.PoolManager(**settings)
        # The login is percent-encoded, because it may hold characters that a URL may not.
        login = unquote(urllib3.util.parse_url(proxy).auth or "")
        proxy_headers = urllib3.make_headers(proxy_basic_auth=_in_utf_8(login)) if login else {}
        user, _, password = login.partition(":")
        self._proxy_secrets = [*proxy_headers.values(), password or user]
        return urllib3.ProxyManager(proxy, proxy_headers=proxy_headers, **settings)


def _in_utf_8(text: str) -> str:
    """Return the text that http.client, which encodes as Latin-1, sends as the UTF-8 of `text`."""
    return text.encode().decode("latin-1")


def _wait_for_files(options: InfluxDBConfig) -> None:
    """Begin to read the TLS files, which may be on a share that does not answer.

    Without any lock: forks, `close` and signal handlers that export must not wait for a share.
    """
    for path in filter(None, (options.ca_file, options.cert_file, options.key_file)):
        # `_check_files` tells of errors.
        with suppress(OSError, ValueError), Path(path).open("rb") as file:
            file.read(1)


def _check_files(options: InfluxDBConfig) -> None:
    """Load the TLS files up front, because a later failure would not name the option.

    Raises:
        NoAnswer: A file is missing, or is not what its option needs.
    """
    option, path = "ca_file", options.ca_file
    try:
        context = ssl.create_default_context(cafile=path)
        if options.cert_file:
            option, path = "cert_file", options.cert_file
            # Without `password` an encrypted key would make OpenSSL ask for one on the terminal.
            context.load_cert_chain(options.cert_file, options.key_file, password="")
    except (OSError, ValueError) as error:
        why = f"influxdb.{option} {path!r}: {system_reason(error)}"
        raise NoAnswer(why, type(error).__name__, is_local=True) from None


def _read(response: urllib3.BaseHTTPResponse, secrets: Sequence[str]) -> Answer:
    """Read an answer up to a limit, without trusting its encoding, and mask echoed secrets."""
    data = response.read(_MOST_ANSWER_BYTES, decode_content=False)
    if response.read(1, decode_content=False):
        response.close()  # too long to read to its end, so the connection cannot be reused
    else:
        response.release_conn()
    headers: Mapping[str, str] = response.headers
    text = _unpacked(data, headers.get("Content-Encoding", "")).decode("utf-8", "replace")
    for secret in secrets:
        # Also without a leading `Token`, or another word, which a server that echoes it would leave
        # out. The longest form first.
        for form in (secret, *secret.split(None, 1)[1:], *secret.split()[-1:]):
            text = text.replace(form, MASK) if len(form) >= _SHORTEST_SECRET else text
    return Answer(
        status=response.status,
        text=text,
        content_type=headers.get("Content-Type", ""),
        retry_after_seconds=parse_retry_after(headers.get("Retry-After"), time.time()),
        location=_server_of(headers.get("Location", "")),
    )


def _server_of(location: str) -> str:
    """Return scheme and host of a URL, without parts that may be secret; "" if it has no host."""
    try:
        parts = urlsplit(location)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.hostname}" if parts.hostname else ""


def _unpacked(data: bytes, encoding: str) -> bytes:
    """Decompress a body that came compressed unasked, up to the same limit."""
    if encoding not in ("gzip", "deflate"):
        return data
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data, _MOST_ANSWER_BYTES)
    except zlib.error:
        return b""
