"""TLS, client certificates, proxies and tokens of requests to InfluxDB; no secret is leaked."""

import gc
import logging
import os
import socket
import ssl
import threading
import traceback
import warnings
from base64 import b64encode
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme
import urllib3
from cryptography.hazmat.primitives import serialization

from otel_cbtop_exporter import CbtopSpanExporter, ConfigError, EventStreamer
from otel_cbtop_exporter.config import InfluxDBConfig
from otel_cbtop_exporter.env import options_from_environment
from otel_cbtop_exporter.fork_lock import forks_wait
from tests.servers.loopback import Loopback, Reply
from tests.servers.proxy import Proxy
from tests.sinks.influxdb_data import encoded, influxdb_sink, spans, wait_until

TOKEN = "s3cret-t0ken"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def pem(tmp_path):
    """Write certificates to files."""

    def write(name, *blobs):
        path = tmp_path / name
        path.write_bytes(b"".join(blob.bytes() for blob in blobs))
        return str(path)

    return write


def server_tls(authority, client_authority=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    if client_authority is not None:
        client_authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def written(url, *, seconds=10, **options):
    """Write three spans; return the result."""
    sink = influxdb_sink(**{"url": url, "bucket": "b", "token": TOKEN, **options})
    records = encoded(sink, spans(3))
    result = sink.write(records, seconds)
    sink.close(1)
    assert [*result.delivered, *result.kept] == records
    assert TOKEN not in result.error
    return result


def test_a_server_of_an_authority_that_was_named(authority, pem):
    """`ca_file` makes a server of a private authority trusted."""
    with Loopback(lambda _: Reply(), server_tls(authority)) as server:
        result = written(server.url, ca_file=pem("ca.pem", authority.cert_pem))
    assert len(result.delivered) == 3
    assert len(server.requests) == 1


@pytest.mark.parametrize("named", [True, False], ids=["another authority", "the system's"])
def test_a_server_of_an_unknown_authority_gets_nothing(authority, pem, named):
    """A server whose certificate cannot be verified never sees the token; the records are kept."""
    options = {"ca_file": pem("other.pem", trustme.CA().cert_pem)} if named else {}
    with Loopback(lambda _: Reply(), server_tls(authority)) as server:
        result = written(server.url, **options)
    assert len(result.kept) == 3
    assert server.requests == []
    assert "certificate verify failed" in result.error
    assert "influxdb.ca_file" in result.error
    assert result.error_type == "SSLCertVerificationError"


def test_a_certificate_of_another_host_gets_nothing(authority, pem):
    """A certificate for another host name is refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("influxdb.example").configure_cert(context)
    with Loopback(lambda _: Reply(), context) as server:
        result = written(server.url, ca_file=pem("ca.pem", authority.cert_pem))
    assert len(result.kept) == 3
    assert server.requests == []
    assert "certificate verify failed" in result.error
    assert "check influxdb.url" in result.error


def test_without_verification_it_writes_and_warns(authority, caplog):
    """`verify_tls=False` works, and logs one warning."""
    with Loopback(lambda _: Reply(), server_tls(authority)) as server:
        sink = influxdb_sink(url=server.url, bucket="b", token=TOKEN, verify_tls=False)
        caplog.set_level(logging.WARNING)
        for _ in range(2):
            result = sink.write(
                encoded(sink, spans(3)), 10
            )  # urllib3's own warning is an error here
            assert len(result.delivered) == 3
        sink.close(1)
    (warning,) = [r for r in caplog.records if r.name == "otel_cbtop_exporter"]
    assert "influxdb.verify_tls is off" in warning.message
    assert "influxdb.ca_file" in warning.message


@pytest.mark.parametrize("apart", [True, False], ids=["key apart", "one file"])
def test_a_client_certificate_opens_a_server_that_asks_for_one(authority, pem, apart):
    """Mutual TLS works with the key in its own file or in the certificate's."""
    clients = trustme.CA()
    client = clients.issue_cert("client@shop")
    chain = client.cert_chain_pems
    if apart:
        options = {
            "cert_file": pem("client.pem", *chain),
            "key_file": pem("client.key", client.private_key_pem),
        }
    else:
        options = {"cert_file": pem("client.pem", client.private_key_pem, *chain)}
    ca_file = pem("ca.pem", authority.cert_pem)
    with Loopback(lambda _: Reply(), server_tls(authority, clients)) as server:
        assert len(written(server.url, ca_file=ca_file, **options).delivered) == 3
        refused = written(server.url, ca_file=ca_file)
    assert len(server.requests) == 1
    assert len(refused.kept) == 3
    assert "certificate" in refused.error
    assert "influxdb.cert_file" in refused.error


@pytest.mark.parametrize("option", ["ca_file", "cert_file"])
def test_a_file_that_is_missing_or_no_certificate_is_named(option, tmp_path):
    """A missing or invalid certificate file keeps the records, and the error names its option."""
    path = tmp_path / "file.pem"
    missing = written("https://127.0.0.1:1", **{option: str(path)})
    assert f"influxdb.{option}" in missing.error
    assert "No such file" in missing.error
    path.write_text("no certificate")
    broken = written("https://127.0.0.1:1", **{option: str(path)})
    assert f"influxdb.{option}" in broken.error
    assert str(path) in broken.error


def _may_fork():
    may = forks_wait().acquire(timeout=0)
    if may:
        forks_wait().release()
    return may


def test_forks_wait_for_the_check_of_a_file_but_not_for_its_share(tmp_path):
    """A fork need not wait for a share that hangs, but waits while OpenSSL reads the file.

    A child that was forked during that could inherit a locked lock of OpenSSL's.
    """
    path = tmp_path / "ca.pem"
    os.mkfifo(path)
    results = []
    writer = threading.Thread(
        target=lambda: results.append(written("https://127.0.0.1:1", ca_file=str(path))),
        daemon=True,
    )
    writer.start()
    with path.open("w"):  # opens once the thread has begun to read
        may_fork = _may_fork()
    wait_until(lambda: not _may_fork())  # it is being checked
    path.open("w").close()
    writer.join()
    assert may_fork
    assert "influxdb.ca_file" in results[0].error


def test_a_key_with_a_password_fails_instead_of_asking(authority, pem):
    """A key with a password fails and names the file: a service has no terminal to ask on."""
    client = authority.issue_cert("client@shop")
    key = serialization.load_pem_private_key(client.private_key_pem.bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"pass-w0rd"),
    )
    path = pem("client.pem", *client.cert_chain_pems, trustme.Blob(locked))
    result = written("https://127.0.0.1:1", cert_file=path)
    assert len(result.kept) == 3
    assert f"influxdb.cert_file '{path}'" in result.error


def test_https_to_a_server_without_tls():
    """An https URL of a server without TLS is reported as such."""
    with Loopback(lambda _: Reply()) as server:
        result = written(server.url.replace("http", "https"))
    assert len(result.kept) == 3
    assert "does not speak TLS" in result.error


@pytest.mark.parametrize("login", ["", "user:pass-w0rd", "DOMAIN\\user:p@ss/w:rd"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_proxy_of_the_environment_is_used(monkeypatch, authority, pem, scheme, login):
    """HTTP_PROXY and HTTPS_PROXY are used with their login; TLS passes through the proxy unread."""
    tls = server_tls(authority) if scheme == "https" else None
    with Proxy(login) as proxy, Loopback(lambda _: Reply(), tls) as server:
        shown = quote(login, safe=":").replace(":", "%3A").replace("%3A", ":", 1)
        monkeypatch.setenv(f"{scheme}_proxy", f"http://{shown}{'@' * bool(login)}{proxy.address}")
        result = written(server.url, ca_file=pem("ca.pem", authority.cert_pem))
    assert len(result.delivered) == 3, result.error
    assert len(server.requests) == 1
    (seen,) = proxy.seen
    if scheme == "https":
        assert seen == f"CONNECT 127.0.0.1:{server.port}"
    else:
        assert seen.startswith(f"POST {server.url}/api/v2/write?")
    assert "Proxy-Authorization" not in server.requests[0].headers


def test_a_host_without_proxy_is_reached_directly(monkeypatch):
    """NO_PROXY is respected, with hosts or with a host and its port."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with Loopback(lambda _: Reply()) as server:
        for hosts in ("127.0.0.1,localhost", f"localhost,127.0.0.1:{server.port}"):
            monkeypatch.setenv("no_proxy", hosts)
            assert len(written(server.url).delivered) == 3
        monkeypatch.setenv("no_proxy", "127.0.0.1:1")
        assert len(written(server.url).kept) == 3


def test_a_proxy_of_another_kind_is_told(monkeypatch):
    """A proxy of another scheme is reported: urllib3 supports only HTTP proxies."""
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    assert "the proxy in the environment must begin with" in written("http://127.0.0.1:2").error


def test_another_address_of_a_host_is_tried_in_time(monkeypatch):
    """A host's next address is tried in time if the first never answers.

    An IPv6 black hole behaves like that.
    """
    with Loopback(lambda _: Reply()) as server, socket.socket() as hole:
        hole.bind(("127.0.0.2", server.port))
        hole.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:  # connections beyond its queue are not answered
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.2", server.port))
        two = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, server.port))
            for host in ("127.0.0.2", "127.0.0.1")
        ]
        # The test machine need not have a name with two addresses.
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: two)
        sink = influxdb_sink(url=f"http://two.example:{server.port}", bucket="b", token=TOKEN)
        records = encoded(sink, spans(3))
        first = sink.write(records, 2)
        result = sink.write(records, 3)
        sink.close(1)
        for filler in fillers:
            filler.close()
    assert first.error_type == "timeout"
    assert len(result.delivered) == 3, result.error


def test_what_is_no_latin_text_is_sent_as_utf_8():
    """A token outside Latin-1 is sent as UTF-8: InfluxDB 1.8's passwords may be any text."""
    with Loopback(lambda _: Reply()) as server:
        assert len(written(server.url, token="käthe:пароль").delivered) == 3
    sent = server.requests[0].headers["Authorization"]
    assert sent.encode("latin-1").decode() == "Token käthe:пароль"


@pytest.mark.parametrize("left", ["half of a file", None])
def test_a_file_that_goes_bad_after_the_first_connection_is_named(authority, pem, left):
    """A certificate file that breaks or disappears later is reported as at the start."""
    certificate = pem("client.pem", authority.issue_cert("client").private_key_and_cert_chain_pem)
    with Loopback(lambda _: Reply(), server_tls(authority)) as server:
        sink = influxdb_sink(
            url=server.url,
            bucket="b",
            token=TOKEN,
            ca_file=pem("ca.pem", authority.cert_pem),
            cert_file=certificate,
        )
        assert len(sink.write(encoded(sink, spans(3)), 10).delivered) == 3
        Path(certificate).write_text(left) if left else Path(certificate).unlink()
        for pool in sink._connections._pool.pools._container.values():
            pool.close()
        sink._connections._pool.clear()
        result = sink.write(encoded(sink, spans(3)), 10)
        sink.close(1)
    assert len(result.kept) == 3
    assert f"influxdb.cert_file {certificate!r}" in result.error


def test_a_query_in_the_url_is_refused():
    """A query in the URL is refused without being shown.

    Users of 1.x may have their login there.
    """
    for url in ("http://127.0.0.1:1?u=a&p=hush-hush", "http://127.0.0.1:1/?p=hush-hush#x"):
        with pytest.raises(ConfigError, match="without a query") as caught:
            influxdb_sink(url=url, bucket="b")
        assert "hush-hush" not in str(caught.value)


def test_a_proxy_that_echoes_its_login_does_not_get_it_into_the_log(monkeypatch):
    """An answer that repeats the request's headers is shown without the proxy's login."""
    with Loopback(
        lambda request: Reply(
            400, f"I got {' '.join(request.headers.values())} of p@ss w0rd".encode()
        )
    ) as proxy:
        address = proxy.url.removeprefix("http://")
        monkeypatch.setenv("http_proxy", f"http://user:p%40ss%20w0rd@{address}")
        error = written("http://127.0.0.1:2").error
    assert "I got" in error
    assert "w0rd" not in error
    assert b64encode(b"user:p@ss w0rd").decode() not in error


@pytest.mark.parametrize(
    "header", ["ApiKey 5e3cre7-key", "AccessKey id\t5e3cre7-key", "5e3cre7-key"]
)
def test_a_gateway_that_echoes_a_header_does_not_get_it_into_the_log(header):
    """Whatever word is before the secret in a header, an answer with the secret alone is masked."""
    with Loopback(lambda _: Reply(400, b"5e3cre7-key is not valid")) as server:
        error = written(server.url, headers={"X-Key": header}).error
    assert "is not valid" in error
    assert "5e3cre7" not in error


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses_is_told_apart_from_the_server(monkeypatch, scheme):
    """A proxy that is away or wants a login is named as the proxy, without its password."""
    monkeypatch.setenv(f"{scheme}_proxy", "http://user:pass-w0rd@127.0.0.1:1")
    away = written(f"{scheme}://127.0.0.1:2")
    assert "the proxy" in away.error
    with Proxy("user:right") as proxy:
        monkeypatch.setenv(f"{scheme}_proxy", f"http://user:pass-w0rd@{proxy.address}")
        refused = written(f"{scheme}://127.0.0.1:2")
    assert "407" in refused.error
    assert "proxy" in refused.error
    assert "pass-w0rd" not in away.error + refused.error


def test_an_unreadable_token_file_is_named_and_read_when_it_is_there(tmp_path):
    """A missing token file is reported, and read once it is there, as for a secret mounted late."""
    path = tmp_path / "token"
    with Loopback(lambda _: Reply()) as server:
        sink = influxdb_sink(url=server.url, bucket="b", token_file=str(path))
        records = encoded(sink, spans(3))
        early = sink.write(records, 10)
        assert early.kept == records
        assert "influxdb.token_file" in early.error
        assert "No such file" in early.error
        path.write_text(f"{TOKEN}\n")
        assert sink.write(records, 10).delivered == records
        sink.close(1)
    assert server.requests[0].headers["Authorization"] == f"Token {TOKEN}"


def test_a_token_that_http_cannot_carry_is_not_repeated():
    """A line break in a token is reported without showing the token."""
    sink = influxdb_sink(url="http://127.0.0.1:1", bucket="b", token=f"{TOKEN}\nX: y")
    result = sink.write(encoded(sink, spans(3)), 10)
    sink.close(1)
    assert len(result.kept) == 3
    assert "characters that HTTP cannot carry" in result.error
    assert TOKEN not in result.error


def test_an_echoed_secret_is_masked_everywhere():
    """A token or header that a server echoes is masked in errors and dead letters."""
    body = f"refused {TOKEN} with header key-0123456789".encode()
    with Loopback(lambda _: Reply(400, body)) as server:
        sink = influxdb_sink(
            url=server.url, bucket="b", token=TOKEN, headers={"X-Key": "key-0123456789"}
        )
        result = sink.write(encoded(sink, spans(1)), 10)
        sink.close(1)
    (rejection,) = result.rejected
    assert rejection.detail == "refused ******** with header ********"
    assert result.error == "InfluxDB refused lines: refused ******** with header ******** (400)"


def test_a_short_header_is_no_secret_and_hides_no_line():
    """A short header value, such as a tenant number, is not masked.

    It may also be in lines, which must be found in what the server quotes.
    """

    def reply(request):
        line = request.lines[1].decode()
        return Reply(400, f"unable to parse '{line}': bad".encode())

    with Loopback(reply) as server:
        sink = influxdb_sink(url=server.url, bucket="b", headers={"X-Tenant": "1"})
        records = encoded(sink, spans(3))
        result = sink.write(records, 10)
        sink.close(1)
    assert [rejection.record for rejection in result.rejected] == [records[1]]


def test_close_closes_every_connection_at_once():
    """`close` closes every connection and leaves none to the garbage collector."""
    replies = [Reply(cut="before"), Reply()]
    gc.disable()
    try:
        with Loopback(lambda _: replies.pop(0)) as server:
            sink = influxdb_sink(url=server.url, bucket="b")
            records = encoded(sink, spans(3))
            assert sink.write(records, 10).kept == records
            assert sink.write(records, 10).delivered == records
            wait_until(lambda: server.ended_connections == 1)
            sink.close(1)
            wait_until(lambda: server.ended_connections == 2, seconds=5)
    finally:
        gc.enable()


def test_a_login_in_the_url_is_refused_without_being_shown(monkeypatch, caplog):
    """A login in the URL is an error, in code and in the environment, and no message shows it."""
    url = "http://u:pass-w0rd@h:8086"
    with pytest.raises(ConfigError, match=r"influxdb\.url is 'http://\*+@h:8086'") as refused:
        CbtopSpanExporter(sink="influxdb", influxdb={"url": url, "bucket": "b"})
    shown = traceback.format_exception(refused.type, refused.value, None)
    assert "pass-w0rd" not in "".join(shown)
    monkeypatch.setenv("INFLUXDB_V2_URL", url)
    assert options_from_environment(None) == {}
    assert "INFLUXDB_V2_URL" in caplog.text
    assert "pass-w0rd" not in caplog.text


def test_secrets_are_in_no_repr():
    """The token and the headers are masked wherever a configuration is shown."""
    options = {"url": "http://h", "bucket": "b", "token": TOKEN, "headers": {"X-Key": TOKEN}}
    assert TOKEN not in repr(InfluxDBConfig(**options))
    streamer = EventStreamer("influxdb", influxdb=options)
    sink = streamer._pipeline._sink
    assert TOKEN not in f"{sink!r} {sink.destination} {streamer.health()!r}"
    streamer.shutdown(0)


def test_a_token_file_that_is_no_text_keeps_the_records(tmp_path):
    """A token file that is not text keeps the records and is reported as the file's fault."""
    path = tmp_path / "token"
    path.write_bytes(b"\xff\xfe\x00")
    result = written("http://127.0.0.1:1", token_file=str(path))
    assert len(result.kept) == 3
    assert result.error == f"influxdb.token_file '{path}': UnicodeDecodeError"


def test_a_token_file_counts_more_than_a_token(tmp_path):
    """A token file overrides a token, as docs/influxdb.md says; a byte order mark is ignored."""
    path = tmp_path / "token"
    path.write_text("of-the-file\n", "utf-8-sig")
    with Loopback(lambda _: Reply()) as server:
        assert len(written(server.url, token_file=str(path)).delivered) == 3
    assert server.requests[0].headers["Authorization"] == "Token of-the-file"


def test_a_write_after_close_says_so():
    """A write after close reports that the sink is closed."""
    sink = influxdb_sink(url="http://127.0.0.1:1", bucket="b")
    records = encoded(sink, spans(3))
    sink.close(1)
    assert sink.write(records, 10).error.endswith("cannot be reached: the sink is closed")


@pytest.mark.parametrize(("begin", "login"), [("", ""), ("http://", "käthe:пароль")])
def test_a_proxy_may_have_no_scheme_and_its_login_be_any_text(monkeypatch, begin, login):
    """A proxy may be `host:port`, as in many environments, and its login any text."""
    with Proxy(login) as proxy, Loopback(lambda _: Reply()) as server:
        shown = quote(login, safe=":") + "@" * bool(login)
        monkeypatch.setenv("http_proxy", f"{begin}{shown}{proxy.address}")
        result = written(server.url)
    assert len(result.delivered) == 3, result.error
    assert len(proxy.seen) == 1


def test_a_host_without_proxy_may_be_an_address_of_ipv6(monkeypatch):
    """NO_PROXY may hold an IPv6 address, which has brackets only in the URL."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "::1")
    assert "proxy" not in written("http://[::1]:1").error


def test_a_proxy_that_wants_a_login_is_told(monkeypatch):
    """A proxy that wants a login is reported: for http its answer replaces InfluxDB's."""
    with Proxy("user:right") as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        assert "407: the proxy wants a login" in written("http://127.0.0.1:2").error


def test_warnings_of_other_hosts_are_not_silenced(authority):
    """`verify_tls=False` does not silence TLS warnings about the application's own requests."""
    with Loopback(lambda _: Reply(), server_tls(authority)) as server:
        assert len(written(server.url, verify_tls=False).delivered) == 3
    unverified = urllib3.exceptions.InsecureRequestWarning
    with pytest.raises(unverified):
        warnings.warn("Unverified HTTPS request is being made to host 'b'", unverified, 2)
