"""InfluxDB: lines of line protocol, posted to `/api/v2/write`.

That address is answered by InfluxDB 2 and 3, by 1.8 (its compatibility API), and by others.
What an answer means is in `influxdb_answers.py`. The client library is imported when the first
batch is written; its connections are used directly, because its write call reads answers
without a limit and retries by itself.
"""

from __future__ import annotations

import gzip
import http.client
import logging
import threading
import time
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from otel_cbtop_exporter.config import InfluxDBConfig
from otel_cbtop_exporter.encoding.line_protocol import LineProtocolEncoder
from otel_cbtop_exporter.errors import SinkError
from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.sinks.base import (
    Encoded,
    Record,
    Rejection,
    WriteResult,
    forks_wait,
    parse_retry_after,
)
from otel_cbtop_exporter.sinks.influxdb_answers import Answer, classify, readable

if TYPE_CHECKING:
    import urllib3

__all__ = ["InfluxDBSink"]

_logger = logging.getLogger("otel_cbtop_exporter")

_MOST_ANSWER_BYTES = 64 * 1024
_MASK = "********"

_LANES = {
    "span": "spans",
    "span_event": "spans",
    "span_link": "spans",
    "log": "logs",
    "metric": "metrics",
    "exemplar": "metrics",
    None: "metrics",
}


class InfluxDBSink:
    """Writes points to one InfluxDB; safe to share between threads.

    Args:
        options: Address, bucket, token, TLS and the rest.

    Raises:
        SinkError: `url` or `bucket` is not set.
    """

    name = "influxdb"
    local = False
    # InfluxDB's own advice is 5,000 lines; InfluxDB 3 Core takes 10 MiB by default.
    max_batch_events = 5_000
    max_batch_bytes = 4 * 1024 * 1024

    def __init__(self, options: InfluxDBConfig) -> None:
        if not options.url or not options.bucket:
            missing = "bucket" if options.url else "url"
            raise SinkError(f"sink influxdb needs influxdb.{missing}")
        self._options = options
        parts = urlsplit(options.url)
        self._host = parts.hostname or ""
        address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self.destination = f"{address} org={options.org}" if options.org else address
        self._write_url = f"{address}/api/v2/write"
        self._lanes = {
            signal: options.bucket.replace("{signal}", lane) for signal, lane in _LANES.items()
        }
        self._encoder = LineProtocolEncoder(trace_id_tag_digits=options.trace_id_tag_digits)
        self._inherited: list[Any] = []
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._pool: urllib3.PoolManager | None = None
        self._token: str | None = None
        self._closed = False

    def encode(self, events: Sequence[Event]) -> Encoded:
        """Make one line of each event; the second point of a metric at one time is refused."""
        lines = self._encoder.encode(events)
        lanes = self._lanes
        records = [
            Record(body, None, lanes[event.signal], time_ns)
            for event, body, time_ns in zip(events, lines.bodies, lines.times_ns, strict=True)
        ]
        if not lines.refused:
            return Encoded(records)
        refused = lines.refused
        return Encoded(
            [record for position, record in enumerate(records) if position not in refused],
            [Rejection(records[position], *refusal) for position, refusal in refused.items()],
        )

    def write(self, records: Sequence[Record], timeout_seconds: float) -> WriteResult:
        """Post the records in one request; what is refused is told from what may be sent again."""
        if not records:
            return WriteResult()
        bucket = records[0].lane
        seconds = min(timeout_seconds, self._options.timeout_ms / 1_000)
        try:
            answer = self._post(records, bucket, seconds)
        except (OSError, ValueError, http.client.HTTPException, ImportError) as error:
            return self._unreachable(records, error)
        # urllib3's own errors derive from Exception alone, and it is not imported before.
        except Exception as error:
            if not type(error).__module__.startswith("urllib3."):
                raise
            return self._unreachable(records, error)
        if answer.status == 401:
            self._token = None  # token_file is read again for the next request
        return classify(answer, records, bucket=bucket, org=self._options.org or "")

    def flush(self, timeout_seconds: float) -> bool:  # noqa: ARG002 -- there is nothing to wait for
        """Nothing waits here: `write` returns when the server has answered."""
        return True

    def close(self, timeout_seconds: float) -> None:  # noqa: ARG002 -- closing sockets is instant
        """Close the connections; a later write is kept."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            # `clear` alone forgets them, and sockets stay open until the garbage collector has
            # come to the cycles of the errors that were raised on them.
            for key in list(pool.pools.keys()):
                pool.pools[key].close()
            pool.clear()

    def after_fork_in_child(self) -> None:
        """Begin without connections, and with no memory of the parent's points."""
        # Never touched again, and never collected either: closing what is the parent's would
        # take locks that nobody can release any more.
        self._inherited.append(self._pool)
        self._begin()
        self._encoder.after_fork_in_child()

    def _post(self, records: Sequence[Record], bucket: str, seconds: float) -> Answer:
        pool = self._connected()
        deadline = time.monotonic() + seconds
        body = b"\n".join([record.body for record in records])
        query = {"org": self._options.org} if self._options.org else {}
        headers = {
            "Content-Type": "text/plain; charset=utf-8",
            "Accept-Encoding": "identity",
            "User-Agent": "otel-cbtop-exporter",
            **self._options.headers,
        }
        token = self._current_token()
        if token:
            headers["Authorization"] = f"Token {token}"
        if self._options.gzip:
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, compresslevel=1, mtime=0)
        import urllib3  # noqa: PLC0415 -- comes with the client

        response = pool.request(
            "POST",
            f"{self._write_url}?{urlencode({**query, 'bucket': bucket, 'precision': 'ns'})}",
            body=body,
            headers=headers,
            timeout=urllib3.Timeout(total=max(0.001, deadline - time.monotonic())),
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        return self._read(response, [token, *self._options.headers.values()])

    def _read(self, response: urllib3.BaseHTTPResponse, secrets: Sequence[str]) -> Answer:
        """Read an answer with care: a limit, no trust in its encoding, no secret it may echo."""
        data = response.read(_MOST_ANSWER_BYTES, decode_content=False)
        if response.read(1, decode_content=False):
            response.close()  # too long to be read to its end, so the connection is of no use
        else:
            response.release_conn()
        headers: Mapping[str, str] = response.headers
        text = _unpacked(data, headers.get("Content-Encoding", "")).decode("utf-8", "replace")
        for secret in secrets:
            text = text.replace(secret, _MASK) if secret else text
        location = urlsplit(headers.get("Location", ""))
        return Answer(
            status=response.status,
            text=text,
            content_type=headers.get("Content-Type", ""),
            retry_after_seconds=parse_retry_after(headers.get("Retry-After"), time.time()),
            location=f"{location.scheme}://{location.hostname}" if location.hostname else "",
        )

    def _connected(self) -> urllib3.PoolManager:
        with self._lock:
            if self._closed:
                raise ConnectionError("the sink is closed")
            if self._pool is None:
                with forks_wait():
                    self._pool = self._make_pool()
                if not self._options.verify_tls:
                    _logger.warning(
                        "sink influxdb: influxdb.verify_tls is off, so anybody on the way can read "
                        "the token; name the server's authority in influxdb.ca_file instead"
                    )
            return self._pool

    def _make_pool(self) -> urllib3.PoolManager:
        # Else the first look-up of a host's name imports it, outside of what forks wait for.
        import encodings.idna  # noqa: F401, PLC0415

        # 250 ms and 25 MB, which only a process pays that writes to InfluxDB.
        from influxdb_client.client.influxdb_client import InfluxDBClient  # noqa: PLC0415

        options = self._options
        proxy, proxy_headers = self._proxy()
        # Its constructor sets urllib3's logger to WARNING, which is the application's to decide.
        logger = logging.getLogger("urllib3")
        level = logger.level
        client = InfluxDBClient(
            url=self.destination.partition(" ")[0],
            token="",
            org=options.org or "",
            retries=False,
            verify_ssl=options.verify_tls,
            ssl_ca_cert=options.ca_file,
            cert_file=options.cert_file,
            cert_key_file=options.key_file,
            proxy=proxy,
            proxy_headers=proxy_headers,
        )
        logger.setLevel(level)
        pool: urllib3.PoolManager = client.api_client.rest_client.pool_manager
        # Only the pool is kept, which opens again by itself: at the end of the interpreter, or
        # in a forked child, the client's own destructor would do harm.
        client.close()  # type: ignore[no-untyped-call]  # the client is half typed
        return pool

    def _proxy(self) -> tuple[str | None, dict[str, str] | None]:
        """Return the proxy that the environment names for this host, and its login."""
        scheme = self._write_url.partition(":")[0]
        proxy = urllib.request.getproxies().get(scheme)
        if not proxy or urllib.request.proxy_bypass(self._host):
            return None, None
        import urllib3  # noqa: PLC0415 -- comes with the client

        if "://" not in proxy:
            proxy = f"http://{proxy}"
        login = urllib3.util.parse_url(proxy).auth
        return proxy, urllib3.make_headers(proxy_basic_auth=login) if login else None

    def _current_token(self) -> str:
        if self._token is None:
            path = self._options.token_file
            self._token = Path(path).read_text().strip() if path else (self._options.token or "")
        return self._token

    def _unreachable(self, records: Sequence[Record], error: Exception) -> WriteResult:
        """Keep the records, and say why without repeating anything that was sent."""
        cause = _innermost(error)
        word = "timeout" if "Timeout" in type(error).__name__ else type(cause).__name__
        why = type(cause).__name__
        if isinstance(cause, OSError):
            why = cause.strerror or (str(cause) if type(cause) is ConnectionError else why)
            if cause.filename:
                why = f"{why}: {cause.filename}"
        elif isinstance(cause, ValueError):
            why = "the token, a header or the url holds characters that HTTP cannot carry"
        elif word == "timeout":
            why = f"no answer within {self._options.timeout_ms} ms"
        return WriteResult(
            kept=records,
            error=readable(f"InfluxDB at {self.destination} cannot be reached: {why}"),
            error_type=word,
        )


def _innermost(error: BaseException) -> BaseException:
    """Return what an error was raised for; urllib3 puts several around one of the system's."""
    for _ in range(10):
        reason = getattr(error, "reason", None)
        inner = reason if isinstance(reason, BaseException) else error.__cause__
        inner = inner or error.__context__
        if inner is None:
            break
        error = inner
    return error


def _unpacked(data: bytes, encoding: str) -> bytes:
    """Undo a compression that was not asked for, up to the same limit."""
    if encoding not in ("gzip", "deflate"):
        return data
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data, _MOST_ANSWER_BYTES)
    except zlib.error:
        return b""
