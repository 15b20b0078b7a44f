"""InfluxDB: lines of line protocol, posted to `/api/v2/write`.

InfluxDB 2 and 3 have that endpoint, 1.8 has it as its compatibility API, and other servers
have it too. `influxdb_http.py` sends requests, `influxdb_answers.py` says what an answer means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from otel_cbtop_exporter.config import InfluxDBConfig
from otel_cbtop_exporter.encoding.line_protocol import LineProtocolEncoder, Refusal
from otel_cbtop_exporter.errors import SinkError
from otel_cbtop_exporter.event_batch import Events
from otel_cbtop_exporter.events import SIGNAL_NAMES, Event
from otel_cbtop_exporter.sinks.base import (
    Block,
    Encoded,
    Record,
    Records,
    WriteResult,
)
from otel_cbtop_exporter.sinks.influxdb_answers import Answer, classify, readable
from otel_cbtop_exporter.sinks.influxdb_causes import system_reason
from otel_cbtop_exporter.sinks.influxdb_http import InfluxDBConnections, NoAnswer

# Compression is most of what a write costs; at the lowest level isal takes a fifth of zlib's time.
try:
    from isal import isal_zlib as zlib
except ImportError:  # isal is an extra
    # Everything used here has the same name in both, but mypy allows only one module for a name.
    import zlib  # type: ignore[no-redef]

__all__ = ["InfluxDBSink"]

# The token is not accepted, may not write, or cannot see the bucket.
_ABOUT_TOKENS = (401, 403, 404)


class InfluxDBSink:
    """Writes points to one InfluxDB; thread-safe.

    Args:
        options: Address, bucket, token, TLS and the rest.

    Raises:
        SinkError: `url` or `bucket` is not set.
    """

    name = "influxdb"
    local = False
    # InfluxDB recommends 5,000 lines; InfluxDB 3 Core accepts 10 MiB by default.
    max_batch_events = 5_000
    max_batch_bytes = 4 * 1024 * 1024

    def __init__(self, options: InfluxDBConfig) -> None:
        if not options.url or not options.bucket:
            missing = "bucket" if options.url else "url"
            raise SinkError(f"sink influxdb needs influxdb.{missing}")
        self._options = options
        self.request_seconds = options.timeout_ms / 1_000
        parts = urlsplit(options.url)
        self._address = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        org = f" org={options.org}" if options.org else ""
        self.destination = f"{self._address}{org}"
        self._lanes = {
            signal: options.bucket.replace("{signal}", name)
            for signal, name in SIGNAL_NAMES.items()
        }
        self._encoder = LineProtocolEncoder(trace_id_tag_digits=options.trace_id_tag_digits)
        self._token: str | None = None
        self._inherited: list[InfluxDBConnections] = []
        self._connections = InfluxDBConnections(options, self._address)

    def encode(self, events: Sequence[Event]) -> Encoded:
        """Make one line of each event; refuse a second metric point of one series and time."""
        blocks: list[Block] = []
        refused: dict[int, Refusal] = {}
        values_lost = Counter[str]()
        for part, place in Events.of(events).placed_parts():
            bodies, times_ns, why, lost = self._encoder.encode_part(part)
            refused.update((place.start + position, reason) for position, reason in why.items())
            values_lost.update(lost)
            blocks.append(Block(self._lanes[part.signal], part.signal, bodies, times_ns))
        return Encoded.from_records(refused, Records(blocks), values_lost)

    def write(self, records: Sequence[Record], timeout_seconds: float) -> WriteResult:
        """Post the records in one request; tell refused records from those to send again."""
        if not records:
            return WriteResult()
        batch = Records.of(records)
        bucket = batch.lane
        seconds = min(timeout_seconds, self.request_seconds)
        try:
            answer = self._post(batch, bucket, seconds)
        except NoAnswer as error:
            where = "" if error.is_local else f"InfluxDB at {self.destination} cannot be reached: "
            return WriteResult(
                kept=records, error=readable(f"{where}{error}"), error_type=error.error_type
            )
        if answer.status in _ABOUT_TOKENS:
            self._token = None  # the next request reads token_file again
        return classify(
            answer,
            records,
            bucket=bucket,
            org=self._options.org or "",
            login_from=_token_source(self._options),
        )

    def flush(self, timeout_seconds: float) -> bool:  # noqa: ARG002 -- there is nothing to wait for
        """Nothing waits here: `write` returns when the server has answered."""
        return True

    def close(self, timeout_seconds: float) -> None:  # noqa: ARG002 -- closing sockets is instant
        """Close the connections; records of a later write are kept."""
        self._connections.close()

    def after_fork_in_child(self) -> None:
        """Begin without connections, and with no memory of the parent's points."""
        # Keep the parent's connections, so that they are never collected: closing them would
        # take locks that nobody can release any more.
        self._inherited.append(self._connections)
        self._connections = InfluxDBConnections(self._options, self._address)
        self._encoder.after_fork_in_child()

    def _post(self, batch: Records, bucket: str, seconds: float) -> Answer:
        headers = {
            "Content-Type": "text/plain; charset=utf-8",
            "User-Agent": "otel-cbtop-exporter",
            **self._options.headers,
        }
        token = self._current_token()
        if token:
            headers["Authorization"] = f"Token {token}"
        if self._options.gzip:
            headers["Content-Encoding"] = "gzip"
        body = _gzipped(batch) if self._options.gzip else batch.text
        query = {"org": self._options.org} if self._options.org else {}
        path = f"/api/v2/write?{urlencode({**query, 'bucket': bucket, 'precision': 'ns'})}"
        return self._connections.post(path, body, headers, seconds)

    def _current_token(self) -> str:
        path = self._options.token_file
        if path is None:
            return self._options.token or ""
        token = self._token  # another thread may reset it meanwhile
        if token is None:
            try:
                token = self._token = Path(path).read_text("utf-8-sig").strip()
            except (OSError, ValueError) as error:
                why = f"influxdb.token_file {path!r}: {system_reason(error)}"
                raise NoAnswer(why, type(error).__name__, is_local=True) from None
        return token


def _token_source(options: InfluxDBConfig) -> str:
    """Return the options that the token comes from, for messages, or "" if there is no token."""
    if options.token or options.token_file:
        return "influxdb.token or influxdb.token_file"
    own = any(name.lower() == "authorization" for name in options.headers)
    return "Authorization in influxdb.headers" if own else ""


def _gzipped(batch: Records) -> bytes:
    compressor = zlib.compressobj(1, wbits=zlib.MAX_WBITS | 16)  # 16: in gzip's format
    packed = [compressor.compress(piece.text) for piece in batch.pieces()]
    return b"".join([*packed, compressor.flush()])
