"""Answers that no real server gives on demand: each record has the right outcome."""

import gc
import gzip
import json
import subprocess
import sys
import threading
import tracemalloc
import weakref
import zlib
from email.utils import formatdate
from time import time
from urllib.parse import parse_qs, urlsplit

import pytest

from otel_cbtop_exporter.sinks import influxdb
from tests.servers.loopback import Loopback, Reply
from tests.sinks.influxdb_data import (
    dead_letters,
    delivering,
    encoded,
    influxdb_sink,
    settled,
    spans,
)

OK = Reply(204)
PAGE = b"<!DOCTYPE html><html><head><title>Sorry</title></head><body>no</body></html>"


def options(server, **more):
    return {"url": server.url, "org": "acme", "bucket": "b", "token": "t0ken", **more}


def written_once(reply, count=10, **more):
    """Write records to a server with one answer; return records, result and requests."""
    with Loopback(lambda _: reply) as server:
        sink = influxdb_sink(**options(server, **more))
        records = encoded(sink, spans(count))
        result = sink.write(records, 10)
        sink.close(1)
    return records, result, server.requests


def test_without_isal_the_standard_library_compresses():
    """Without the isal extra, the standard library compresses requests."""
    code = (
        "import sys; sys.modules['isal'] = None;"
        "from otel_cbtop_exporter.sinks import base, influxdb;"
        "batch = base.Records([base.Block('', 'log', [b'a line'] * 100, [0] * 100)]);"
        "sys.stdout.buffer.write(influxdb._gzipped(batch))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert gzip.decompress(done.stdout) == b"a line\n" * 100
    assert influxdb.zlib.__name__ == "isal.isal_zlib"


def in_turn(*replies):
    """Answer with each of the replies in turn, and then always with the last one."""
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.parametrize("packed", [True, False], ids=["gzip", "plain"])
def test_one_request_of_the_v2_api_carries_the_batch(packed):
    """A batch is one request with the path, query, token and headers of the v2 API."""
    records, result, requests = written_once(OK, gzip=packed, headers={"X-Tenant": "7"})
    assert result.delivered == records
    (request,) = requests
    url = urlsplit(request.path)
    assert url.path == "/api/v2/write"
    assert parse_qs(url.query) == {"org": ["acme"], "bucket": ["b"], "precision": ["ns"]}
    assert request.headers["Authorization"] == "Token t0ken"
    assert request.headers["X-Tenant"] == "7"
    assert request.lines == [record.body for record in records]
    assert (request.sent_bytes < len(request.body)) == packed


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [(429, "7", 7), (503, "7", 7), (503, None, None), (429, "soon", None), (503, "date", 60)],
)
def test_a_busy_server_is_given_the_time_that_it_asks_for(status, header, seconds):
    """429 and 503 keep everything, and a Retry-After in seconds or as a date is respected."""
    if header == "date":
        header = formatdate(time() + 60, usegmt=True)
    body = b'{"code":"too many requests","message":"org over its limit"}'
    reply = Reply(status, body, {} if header is None else {"Retry-After": header})
    records, result, _ = written_once(reply)
    assert result.kept == records
    asked = result.retry_after_seconds
    assert asked == seconds or (seconds == 60 and 50 < asked <= 60)
    assert result.error == f"InfluxDB answered {status}: org over its limit"
    assert result.error_type == str(status)


@pytest.mark.parametrize("spooled", [True, False], ids=["disk", "memory"])
def test_429_for_some_requests_loses_nothing(tmp_path, spooled):
    """Throttled repeatedly, all points still arrive in order, and none is counted as lost."""
    replies = in_turn(*[Reply(429, b"{}"), Reply(429, b"{}", {"Retry-After": "0"})] * 3, OK)
    with (
        Loopback(replies) as server,
        delivering(tmp_path, spooled=spooled, **options(server)) as pipeline,
    ):
        for start in range(0, 300, 100):
            assert pipeline.submit(spans(100, start=start), 10)
        health = settled(pipeline, 300)
        arrived = [line for request in server.requests[6:] for line in request.lines]
    assert (health.events_written, health.events_rejected, health.events_dropped) == (300, 0, {})
    assert health.write_errors == 6
    assert [int(line.rsplit(b" ", 1)[1]) for line in arrived] == [
        e.timestamp_ns for e in spans(300)
    ]


def test_413_is_sent_in_smaller_parts_until_they_fit(tmp_path):
    """A proxy's body limit splits batches; only a line over the limit is rejected."""
    stored = []

    def reply(request):
        if len(request.body) > 3_000:
            return Reply(413, PAGE, {"Content-Type": "text/html"})
        stored.extend(request.lines)
        return OK

    with Loopback(reply) as server, delivering(tmp_path, **options(server)) as pipeline:
        pipeline.submit([*spans(500), *spans(1, start=500, padding="x" * 4_000)], 10)
        health = settled(pipeline, 501)
    assert (health.events_written, health.events_rejected) == (500, 1)
    assert len(set(stored)) == len(stored) == 500
    (letter,) = dead_letters(tmp_path)
    assert letter["reason"] == "too_large"
    assert "x" * 4_000 in letter["body"]
    assert "too large (413)" in health.last_error


def test_500_keeps_everything_with_the_servers_reason():
    """A 500 keeps everything and reports the server's reason: it is not about the data."""
    records, result, _ = written_once(Reply(500, b'{"code":"internal","message":"panic"}'))
    assert result.kept == records
    assert not result.split_reason
    assert (result.error, result.error_type) == ("InfluxDB answered 500: panic", "500")


@pytest.mark.parametrize(
    "why",
    [
        "engine: cache-max-memory-size exceeded: (20013045/20000000)",
        "write /var/lib/wal/_00001.wal: no space left on device",
        "engine is closed",
        "timeout",
    ],
)
def test_a_server_that_is_short_of_something_is_not_searched_for_bad_records(why):
    """A 500 for lack of resources does not start a search for bad records.

    Such a server takes small requests and refuses the next, so any record could be blamed.
    """
    body = json.dumps({"code": "internal error", "message": f"unexpected error: {why}"}).encode()
    records, result, _ = written_once(Reply(500, body))
    assert result.kept == records
    assert result.error_type == "unavailable"
    assert why in result.error


def test_a_quoted_line_does_not_make_a_500_one_of_the_server():
    """Words inside a quoted line do not make a 500 one of resources.

    A record may hold any words.
    """
    body = json.dumps({"message": 'panic at "no space left on device"'}).encode()
    assert written_once(Reply(500, body))[1].error_type == "500"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirection_is_told_and_not_followed(status):
    """A redirect is reported and not followed, so the token goes only to the configured address."""
    with Loopback(lambda _: OK) as other:
        location = {"Location": f"{other.url}/login?next=secret"}
        records, result, requests = written_once(Reply(status, b"", location))
    assert result.kept == records
    assert (len(requests), other.requests) == (1, [])
    assert "redirects to http://127.0.0.1; set influxdb.url" in result.error
    assert "secret" not in result.error


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_that_cannot_reach_influxdb_is_told_as_such(status):
    """In an outage behind a proxy the error does not send anybody to check the settings."""
    records, result, _ = written_once(Reply(status, PAGE, {"Content-Type": "text/html"}))
    assert result.kept == records
    assert result.error_type == str(status)
    assert "the proxy cannot reach InfluxDB" in result.error
    assert "check" not in result.error


@pytest.mark.parametrize("status", [200, 400, 403, 404, 500])
def test_a_web_page_is_nobodys_answer(status):
    """A web page, as from a proxy, keeps the records whatever its status, and the error says so."""
    records, result, _ = written_once(Reply(status, PAGE, {"Content-Type": "text/html"}))
    assert result.kept == records
    assert not result.split_reason
    assert f"answered {status}: a web page instead of InfluxDB's answer" in result.error
    assert "check influxdb.url and the proxies" in result.error


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_token_file_is_read_again_when_the_token_is_refused(tmp_path, status):
    """A refused token is read again from its file, and the points arrive without a restart."""
    file = tmp_path / "token"
    file.write_text("old\n")
    accepted = []

    def reply(request):
        if request.headers["Authorization"] != "Token new":
            file.write_text("new\n")
            return Reply(status, b'{"message":"bucket not found"}')
        accepted.extend(request.lines)
        return OK

    with (
        Loopback(reply) as server,
        delivering(tmp_path, **options(server, token=None, token_file=str(file))) as pipeline,
    ):
        pipeline.submit(spans(10), 10)
        health = settled(pipeline, 10)
    assert (health.events_written, len(set(accepted))) == (10, 10)
    assert f"answered {status}" in health.last_error


def test_a_gateways_own_authorization_is_sent_where_there_is_no_token():
    """Without a token, `headers` can set another Authorization scheme, as a gateway's."""
    headers = {"Authorization": "Bearer gateway-key"}
    records, result, requests = written_once(OK, token=None, headers=headers)
    assert result.delivered == records
    assert requests[0].headers["Authorization"] == "Bearer gateway-key"


@pytest.mark.parametrize(
    ("token", "headers", "advice"),
    [
        ("t0ken", {}, "the token is not accepted; check influxdb.token or influxdb.token_file"),
        (None, {"X-Tenant": "7"}, "no token is set; set influxdb.token or influxdb.token_file"),
        (
            None,
            {"authorization": "Bearer key"},
            "the token is not accepted; check Authorization in influxdb.headers",
        ),
    ],
    ids=["token", "none", "header"],
)
def test_401_says_where_the_token_is_missing_or_wrong(token, headers, advice):
    """A 401 keeps the records, and its advice depends on where the token came from, if any."""
    body = b'{"code":"unauthorized","message":"unauthorized access"}'
    records, result, _ = written_once(Reply(401, body), token=token, headers=headers)
    assert result.kept == records
    assert result.error == f"InfluxDB answered 401: {advice}"


def refusal_of(record, filler=b""):
    """Make the body of a 400 of InfluxDB 2 that names one line."""
    message = f"unable to parse '{record.body.decode()}': missing fields\n" + filler.decode()
    return json.dumps({"code": "invalid", "message": message}).encode()


@pytest.mark.parametrize("coding", ["", "gzip", "deflate"])
def test_a_long_or_compressed_answer_is_read_to_its_limit_and_understood(coding):
    """Only 64 KiB of ten megabytes are read, and the line that they name is rejected alone."""
    sink = influxdb_sink(url="http://127.0.0.1:1", bucket="b")
    body = refusal_of(encoded(sink, spans(10))[4], filler=b"x" * 10_000_000)
    if coding:
        body = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
    reply = Reply(400, body, {"Content-Encoding": coding} if coding else {})
    records, result, _ = written_once(reply)
    (rejection,) = result.rejected
    assert rejection.record == records[4]
    assert rejection.reason == "invalid"
    assert rejection.detail.startswith("missing fields")
    assert result.kept == records[:4] + records[5:]
    assert result.error == "InfluxDB cannot read some lines (400)"
    assert len(rejection.detail) <= 64 * 1024


def test_a_bomb_takes_no_memory():
    """A compressed answer of 500 MB in 500 KB is cut while it is unpacked, and takes no memory."""
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join([packer.compress(bytes(1_000_000)) for _ in range(500)]) + packer.flush()
    reply = Reply(500, bomb, {"Content-Encoding": "gzip"})
    tracemalloc.start()
    try:
        records, result, _ = written_once(reply)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.kept == records
    assert peak < 50_000_000  # includes importing the client for the first time


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ("Zugriff für Müller verweigert".encode("latin-1"), "f\N{REPLACEMENT CHARACTER}r M"),
        (b"\x00\x1b[31m\nred\r\n", "\\x00\\x1b[31m red"),
        (b"", "no reason given"),
        (b"\x1f\x8b not gzip", "\N{REPLACEMENT CHARACTER} not gzip"),
    ],
)
def test_an_answer_in_any_bytes_becomes_one_readable_line(body, shown):
    """Bytes in an answer that cannot be decoded or printed are escaped, and nothing raises."""
    records, result, _ = written_once(Reply(500, body, {"Content-Type": "text/plain"}))
    assert result.kept == records
    assert shown in result.error
    assert result.error.isprintable()


def test_a_line_that_an_answer_quotes_is_never_in_the_message():
    """A line quoted by the server is not in the error: attribute values only go to dead letters."""
    body = b"""{"message":"bad 'spans,route=/private x=1' and \\"private\\" <private>"}"""
    for status in (400, 403, 422, 500):
        _, result, _ = written_once(Reply(status, body))
        assert result.error
        assert "private" not in result.error
        assert len(result.error) <= 300


@pytest.mark.parametrize("cut", ["before", "middle"])
def test_a_connection_that_is_cut_keeps_everything(tmp_path, cut):
    """A request cut after it was read is sent again with the same points, and counted once."""
    replies = in_turn(Reply(500, b"x" * 1_000, cut=cut), OK)
    with Loopback(replies) as server, delivering(tmp_path, **options(server)) as pipeline:
        pipeline.submit(spans(10), 10)
        health = settled(pipeline, 10)
    assert (health.events_written, health.write_errors) == (10, 1)
    first, second = server.requests
    assert first.body == second.body
    assert "cannot be reached" in health.last_error


def test_a_server_that_hangs_is_given_up_in_time():
    """A write to a hanging server ends with its timeout, keeps the records and reports the time."""
    release = threading.Event()

    def reply(_):
        release.wait(30)
        return OK

    with Loopback(reply) as server:
        sink = influxdb_sink(**options(server, timeout_ms=200))
        records = encoded(sink, spans(10))
        result = sink.write(records, 10)
        release.set()
        sink.close(1)
    assert result.kept == records
    assert result.error_type == "timeout"
    assert result.error.endswith("cannot be reached: no answer within 0.2 s")


def test_nobody_listens():
    """A refused connection keeps the records and reports the system's error text."""
    sink = influxdb_sink(url="http://127.0.0.1:1", org="acme", bucket="b")
    records = encoded(sink, spans(3))
    result = sink.write(records, 10)
    sink.close(1)
    assert result.kept == records
    assert result.error == (
        "InfluxDB at http://127.0.0.1:1 org=acme cannot be reached: Connection refused"
    )
    assert result.error_type == "ConnectionRefusedError"


def partial_write_of_3(*lines):
    """Make the answer that InfluxDB 3 Core gives according to its documentation."""
    data = [
        {"original_line": "cut", "line_number": number, "error_message": reason}
        for number, reason in lines
    ]
    body = {"error": "partial write of line protocol occurred", "data": data}
    return Reply(400, json.dumps(body).encode(), {"Content-Type": "application/json"})


CONFLICT_OF_3 = (
    "invalid column type for column 'duration_ns', expected iox::column_type::field::float, "
    "got iox::column_type::field::integer"
)


def test_influxdb_3_names_refused_lines_by_number():
    """Lines that InfluxDB 3 refuses by number are rejected; the others are sent again."""
    reply = partial_write_of_3((2, "No fields were provided"), (5, "bad timestamp"))
    records, result, _ = written_once(reply)
    found = {rejection.record: rejection.detail for rejection in result.rejected}
    assert found == {records[1]: "No fields were provided", records[4]: "bad timestamp"}
    assert {rejection.reason for rejection in result.rejected} == {"invalid"}
    assert result.kept == [record for record in records if record not in found]
    assert result.error == "InfluxDB cannot read some lines (400)"


def test_a_type_conflict_of_influxdb_3_names_the_field_and_both_types():
    """A type conflict names the field and both types.

    Lines refused for another reason are sent again, and get their own reason then.
    """
    reply = partial_write_of_3((3, CONFLICT_OF_3), (4, "bad timestamp"), (7, CONFLICT_OF_3))
    records, result, _ = written_once(reply)
    assert [rejection.record for rejection in result.rejected] == [records[2], records[6]]
    assert {rejection.reason for rejection in result.rejected} == {"field_type_conflict"}
    assert result.error == (
        'field "duration_ns" is integer here and float in the bucket; '
        "write to another bucket, or delete that measurement's old points (400)"
    )


def test_line_numbers_are_not_trusted_where_lines_can_be_counted_otherwise():
    """A batch is split despite line numbers if a text has a line break or a number is too high."""
    with Loopback(lambda _: partial_write_of_3((2, "x"))) as server:
        sink = influxdb_sink(**options(server))
        records = encoded(sink, [*spans(3), *spans(1, start=3, status_message="a\nb")])
        result = sink.write(records, 10)
        sink.close(1)
    assert (result.kept, result.split_reason) == (records, "invalid")
    records, result, _ = written_once(partial_write_of_3((11, "x"), (0, "x")))
    assert (result.kept, result.split_reason) == (records, "invalid")


def test_what_a_server_with_tls_says_to_plain_http_rejects_nothing():
    """A TLS server's 400 to plain HTTP rejects nothing: the URL is wrong, and not a line."""
    body = b"Client sent an HTTP request to an HTTPS server.\n"
    records, result, _ = written_once(Reply(400, body))
    assert (result.kept, result.split_reason) == (records, "")
    assert "HTTP request to an HTTPS server" in result.error


@pytest.mark.parametrize(("path", "asked"), [("", ""), ("/", ""), ("/influx/", "/influx")])
def test_the_urls_path_comes_before_the_apis(path, asked):
    """The URL's path, with or without a final slash, precedes the path of the API."""
    with Loopback(lambda _: OK) as server:
        sink = influxdb_sink(url=f"{server.url}{path}", bucket="b")
        sink.write(encoded(sink, spans(1)), 10)
        sink.close(1)
    assert urlsplit(server.requests[0].path).path == f"{asked}/api/v2/write"
    assert sink.destination == f"{server.url}{asked}"


def test_names_of_buckets_and_organizations_may_be_any_text():
    """Special characters in bucket and organization names are escaped in the query."""
    names = {"org": "Käse & Söhne", "bucket": "a=b/c #1+2&precision=s"}
    _, _, requests = written_once(OK, **names)
    asked = parse_qs(urlsplit(requests[0].path).query)
    assert asked == {"org": [names["org"]], "bucket": [names["bucket"]], "precision": ["ns"]}


def test_a_child_begins_anew_whatever_another_thread_was_doing():
    """A child does not use the parent's connections.

    A lock held at the fork is held there for ever.
    """
    with Loopback(lambda _: OK) as server:
        sink = influxdb_sink(url=server.url, bucket="b")
        records = encoded(sink, spans(3))
        parents = weakref.ref(sink._connections)
        with sink._connections._lock:
            sink.after_fork_in_child()
            gc.collect()
            assert parents() is not None  # closing the pool could take that lock
            assert encoded(sink, spans(3)) == records  # the parent's points are not the child's
            assert sink.write(records, 10).delivered == records
        sink.close(1)


def test_an_answer_that_is_not_what_its_encoding_says_keeps_everything():
    """An answer whose encoding header is wrong keeps everything and raises nothing."""
    records, result, _ = written_once(Reply(500, b"no gzip", {"Content-Encoding": "gzip"}))
    assert result.kept == records
    assert result.error == "InfluxDB answered 500: no reason given"


@pytest.mark.parametrize("location", ["/login", "http://[::1/x", "//[bad"])
def test_a_redirection_that_names_no_server_is_one_all_the_same(location):
    """A redirect with a relative or invalid location is still reported as a redirect."""
    _, result, _ = written_once(Reply(302, b"", {"Location": location}))
    assert "it redirects to another address; set influxdb.url" in result.error
