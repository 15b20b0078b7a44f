"""The suite's own remote sink, which posts one JSON event per line with the standard library.

It is as small as a remote sink can be, so that scenarios test delivery and not the sink.
"""

import http.client
import time
from urllib.parse import quote, urlsplit

from otel_cbtop_exporter.encoding.event_json import encode_event
from otel_cbtop_exporter.sinks.base import Encoded, Record, WriteResult, parse_retry_after

LANES = {"span": "spans", "log": "logs", "metric": "metrics"}


class HttpSink:
    """Posts to `<url>/write/<lane>`, with a new connection for each write."""

    name = "http"
    local = False
    max_batch_events = 5_000
    max_batch_bytes = 4 * 1024 * 1024

    def __init__(self, url):
        self.destination = url
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self._closed = False

    def encode(self, events):
        return Encoded(
            [
                Record(
                    body=encode_event(event),
                    lane=LANES.get(event.signal, "others"),
                    timestamp_ns=event.timestamp_ns,
                )
                for event in events
            ]
        )

    def write(self, records, timeout_seconds):
        if not records:
            return WriteResult()
        if self._closed or timeout_seconds <= 0:
            word = "closed" if self._closed else "timeout"
            return WriteResult(kept=records, error=f"not sent: {word}", error_type=word)
        connection = http.client.HTTPConnection(*self._address, timeout=timeout_seconds)
        try:
            body = b"\n".join(record.body for record in records)
            connection.request("POST", f"/write/{quote(records[0].lane)}", body)
            response = connection.getresponse()
            text = response.read(65_536).decode(errors="replace")
        except TimeoutError:
            return WriteResult(kept=records, error="no answer in time", error_type="timeout")
        except (OSError, http.client.HTTPException) as error:
            word = type(error).__name__
            return WriteResult(kept=records, error=f"no answer: {word}", error_type=word)
        finally:
            connection.close()
        return self._classified(response, text, records)

    def flush(self, timeout_seconds):
        return True

    def close(self, timeout_seconds):
        self._closed = True

    def after_fork_in_child(self):
        self._closed = False

    def _classified(self, response, text, records):
        status = response.status
        if status < 300:
            return WriteResult(delivered=records)
        refusals = {400: "invalid", 413: "too_large"}
        return WriteResult(
            kept=records,
            error=f"the receiver answered {status}",
            error_type=str(status),
            retry_after_seconds=parse_retry_after(response.headers["Retry-After"], time.time()),
            split_reason=refusals.get(status, ""),
            split_detail=text,
        )
