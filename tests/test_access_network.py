"""What keeps the program from the service: a wrong setting (78), or something to try again (75)."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import trustme
from conftest import KEY, Outcome, Run, assert_failed, closed_port, ended, start
from fault_proxy import HttpProxy
from stand_in import StandIn

pytestmark = pytest.mark.usefixtures("waits")

CONFIG, TEMPORARY = 78, 75
# A name that no resolver asks the network for (RFC 7686): it is unknown everywhere.
UNKNOWN_HOST = "no-such-host.onion"

Send = Callable[..., Outcome]


@pytest.fixture
def send(upload: Run, call: Path) -> Send:
    """Upload a recording, trying once, with these words and these environment variables."""

    def run(*words: object, retries: int = 0, **environment: str) -> Outcome:
        for name in ("https_proxy", "no_proxy"):  # The program may have set them before.
            os.environ.pop(name, None)
        os.environ.update(environment)
        return upload("--audio-path", call, "--retries", retries, "--quiet", *words)

    return run


def assert_uploaded(outcome: Outcome, service: StandIn) -> None:
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"Dialog ID: {list(service.talks)[-1]}\n"


# --- Whose certificates are trusted --------------------------------------------------


def test_a_ca_file_without_certificates_is_refused(
    send: Send, service: StandIn, tmp_path: Path
) -> None:
    good = service.ca_file.read_text()
    path = tmp_path / "bad.pem"
    for content in (
        *(b"", trustme.CA().private_key_pem.bytes(), ssl.PEM_cert_to_DER_cert(good)),
        *(f"\ufeff{good}".encode(), f"{good}\ufeff{good}".encode(), good.encode("utf-16")),
    ):
        path.write_bytes(content)
        assert_failed(send("--ca-file", path), CONFIG, f"--ca-file {path} is not PEM")
    path.write_text(good[: len(good) // 2])
    assert_failed(send("--ca-file", path), CONFIG, "--ca-file")
    for path in (tmp_path / "missing.pem", tmp_path):
        assert_failed(send("--ca-file", path), CONFIG, "--ca-file", str(path))
    assert service.calls == []


def test_a_ca_file_may_hold_comments_and_several_certificates(
    send: Send, service: StandIn, tmp_path: Path
) -> None:
    path = tmp_path / "bundle.pem"
    other = trustme.CA().cert_pem.bytes()
    path.write_bytes("# Főtanúsítvány\n".encode() + other + service.ca_file.read_bytes())
    assert_uploaded(send("--ca-file", path), service)


def test_without_a_ca_file_only_the_public_certificates_are_trusted(
    service: StandIn, call: Path
) -> None:
    words = ("--audio-path", call, "--connection-id", "1", "--retries", 0, "--key", KEY)
    with start(*words, "--endpoint", service.endpoint) as process:
        outcome = ended(process)
    assert_failed(outcome, CONFIG, "certificate", "--ca-file")
    assert service.calls == []


# --- What may answer at an endpoint --------------------------------------------------


@contextlib.contextmanager
def listener(
    certificate: trustme.LeafCert | None = None,
    protocols: Sequence[str] = ("h2",),
    answer: bytes = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
) -> Iterator[str]:
    """Listen on loopback, with TLS if there is a certificate, and answer the same to anything."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if certificate:
        certificate.configure_cert(context)
        context.set_alpn_protocols(list(protocols))

    def serve() -> None:
        while True:
            try:
                plain, _ = listening.accept()
            except OSError:  # Shut down.
                return
            plain.settimeout(5)
            with plain, contextlib.suppress(OSError):
                secure = context.wrap_socket(plain, server_side=True) if certificate else plain
                with secure as connection:
                    connection.recv(1000)
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"localhost:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_certificates_that_are_not_trusted(send: Send, service: StandIn, tmp_path: Path) -> None:
    yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    old = service.ca.issue_cert("localhost", not_after=yesterday)
    foreign = trustme.CA().issue_cert("localhost")
    for certificate in (service.ca.issue_cert("other.example"), old, foreign):
        with listener(certificate) as endpoint:
            outcome = send("--endpoint", endpoint, retries=2)
        assert_failed(outcome, CONFIG, "UNAVAILABLE", "certificate", "--endpoint", "--ca-file")


def test_what_is_no_grpc_service_with_tls(send: Send, service: StandIn) -> None:
    web = listener(service.ca.issue_cert("localhost"), ("http/1.1",))
    for listening in (web, listener(), listener(answer=b"SSH-2.0-OpenSSH_9.2\r\n")):
        with listening as endpoint:
            assert_failed(send("--endpoint", endpoint), CONFIG, "UNAVAILABLE", "--endpoint")


def test_what_may_be_better_later(send: Send) -> None:
    for way in ((), ("--single-message",)):
        outcome = send("--endpoint", f"localhost:{closed_port()}", *way, retries=2)
        assert_failed(outcome, TEMPORARY, "UNAVAILABLE", "refused")
    with listener(answer=b"") as endpoint:  # Closes each connection at once.
        assert_failed(send("--endpoint", endpoint), TEMPORARY, "UNAVAILABLE")


# --- The endpoint itself -------------------------------------------------------------


def test_an_unknown_host(command: Run, call: Path) -> None:
    for resolver, host in (("ares", UNKNOWN_HOST), ("ares", "no..such.host"), ("native", "a..b")):
        words = ("--audio-path", call, "--endpoint", f"{host}:443")
        outcome = command(*words, env={"GRPC_DNS_RESOLVER": resolver})
        assert_failed(outcome, CONFIG, host, "--endpoint")


def test_an_endpoint_that_is_none_is_refused(send: Send) -> None:
    for endpoint in (
        *(" ", ":443", "localhost:", "localhost:0", "localhost:65536", "localhost:https"),
        *("https://localhost", "dns:///localhost:443", "unix:/tmp/socket", "localhost:443/"),
        *("local host:443", "localhost:443\n", "::1", "[::1", "[localhost]:443", "хост:443"),
    ):
        assert_failed(send("--endpoint", endpoint), CONFIG, "endpoint", "HOST:PORT")


def test_the_port_is_443_by_default_and_the_host_may_be_an_address(
    send: Send, service: StandIn
) -> None:
    with HttpProxy(upstream_port=service.port) as proxy:
        assert_uploaded(send("--endpoint", "localhost", https_proxy=proxy.url), service)
        assert proxy.targets == ["localhost:443"]
    assert_uploaded(send("--endpoint", f"127.0.0.1:{service.port}"), service)


# --- Proxies; all else about them is in test_between.py ------------------------------


def test_a_password_that_is_a_word_hides_no_path(send: Send, call: Path) -> None:
    call.write_bytes(b"RIFF")
    outcome = send(https_proxy=f"http://user:{call.parent.name}@127.0.0.1:1")
    assert str(call) in outcome.err


def test_a_proxy_that_is_not_there(send: Send, service: StandIn) -> None:
    assert_failed(send(https_proxy=f"http://127.0.0.1:{closed_port()}"), TEMPORARY, "refused")
    assert_failed(send(https_proxy=f"http://{UNKNOWN_HOST}:3128"), CONFIG, UNKNOWN_HOST)
    assert service.calls == []
