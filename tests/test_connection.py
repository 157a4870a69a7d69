"""Settings that keep the program from the service: named at once (78), or tried again (75)."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import trustme
from conftest import KEY, Outcome, Run, make_wav, start
from fault_proxy import HttpProxy
from stand_in import StandIn

CONFIG, TEMPORARY = 78, 75
# A name that c-ares does not ask the network for (RFC 7686): it is unknown everywhere.
UNKNOWN_HOST = "no-such-host.onion"
HTTP_ANSWER = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

Send = Callable[..., Outcome]


@pytest.fixture
def send(upload: Run, call: Path) -> Send:
    """Upload a recording, trying once, with these words and these environment variables."""

    def run(*words: object, **environment: str) -> Outcome:
        os.environ.update(environment)
        return upload("--audio-path", call, "--retries", 0, *words)

    return run


def assert_uploaded(outcome: Outcome, service: StandIn) -> None:
    [talk_id] = service.talks
    assert outcome == Outcome(0, f"Dialog ID: {talk_id}\n", "")


def assert_failed(outcome: Outcome, service: StandIn, code: int, *texts: str) -> None:
    """One line says all that; the service has received nothing."""
    assert (outcome.code, outcome.out) == (code, "")
    assert re.fullmatch(r"upload_grpc: .*\n", outcome.err)
    for text in texts:
        assert text in outcome.err
    assert service.calls == []


# --- Whose certificates are trusted ---------------------------------------------------


def write_certificate_file(path: Path, kind: str, good: bytes) -> Path:
    """Write something that --ca-file may be mistaken to name, or nothing."""
    contents = {
        "empty": b"",
        "text": b"-----BEGIN NOTHING-----\n",
        "key only": trustme.CA().private_key_pem.bytes(),
        "DER": ssl.PEM_cert_to_DER_cert(good.decode()),
        "cut": good[: len(good) // 2],
    }
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "key only", "DER", "cut"])
def test_a_ca_file_that_holds_no_certificate_is_refused(
    send: Send, service: StandIn, tmp_path: Path, kind: str
) -> None:
    path = write_certificate_file(tmp_path / "bad.pem", kind, service.ca_file.read_bytes())
    outcome = send("--ca-file", path)
    assert_failed(outcome, service, CONFIG, f"--ca-file {path}: ", "PEM certificates")


@pytest.mark.parametrize("kind", ["missing", "text"])
def test_a_roots_variable_that_names_no_certificate_is_refused(
    service: StandIn, call: Path, tmp_path: Path, kind: str
) -> None:
    """Of itself gRPC would take its own roots, and say nothing."""
    path = write_certificate_file(tmp_path / "bad.pem", kind, service.ca_file.read_bytes())
    name = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
    outcome = run_with_default_roots(service, call, {name: str(path)})
    assert_failed(outcome, service, CONFIG, f"{name} {path}: ")


def test_the_roots_variable_counts_where_there_is_no_ca_file(service: StandIn, call: Path) -> None:
    environment = {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(service.ca_file)}
    assert_uploaded(run_with_default_roots(service, call, environment), service)


def test_a_service_with_a_certificate_of_nobody_known_is_not_trusted(
    service: StandIn, call: Path
) -> None:
    outcome = run_with_default_roots(service, call, {})
    assert_failed(outcome, service, CONFIG, "its certificate is not trusted", "--ca-file")


def run_with_default_roots(service: StandIn, call: Path, environment: dict[str, str]) -> Outcome:
    words = ("--audio-path", call, "--connection-id", "1", "--retries", 0, "--key", KEY)
    with start(*words, "--endpoint", service.endpoint, env=environment) as process:
        out, err = process.communicate(timeout=30)
    return Outcome(process.returncode, out, err)


def test_a_ca_file_may_hold_comments_and_several_certificates(
    send: Send, service: StandIn, tmp_path: Path
) -> None:
    """As the bundles that people download do."""
    path = tmp_path / "bundle.pem"
    other = trustme.CA().cert_pem.bytes()
    path.write_bytes("# Főtanúsítvány\n".encode() + other + service.ca_file.read_bytes())
    assert_uploaded(send("--ca-file", path), service)


def test_a_pipe_can_be_the_ca_file(service: StandIn, call: Path) -> None:
    service.script.append(None)
    reader, writer = os.pipe()
    os.write(writer, service.ca_file.read_bytes())
    os.close(writer)
    words = ("--audio-path", call, "--connection-id", "1", "--key", KEY)
    path = f"/dev/fd/{reader}"
    with start(
        *words, "--endpoint", service.endpoint, "--ca-file", path, pass_fds=(reader,)
    ) as process:
        os.close(reader)
        out, err = process.communicate(timeout=30)
    assert_uploaded(Outcome(process.returncode, out, err), service)


def test_a_certificate_of_another_authority_is_not_trusted(
    send: Send, service: StandIn, tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    outcome = send("--ca-file", tmp_path / "other.pem")
    assert_failed(outcome, service, CONFIG, "UNAVAILABLE", "its certificate is not trusted")


# --- What may answer at an endpoint ---------------------------------------------------


@contextlib.contextmanager
def listener(
    certificate: trustme.LeafCert | None = None,
    protocols: Sequence[str] = ("h2",),
    answer: bytes = HTTP_ANSWER,
) -> Iterator[str]:
    """Listen on loopback, with TLS if there is a certificate, and answer the same to anything."""
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        if protocols:
            context.set_alpn_protocols(list(protocols))

    def serve(listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:  # Shut down.
                return
            connection.settimeout(5)
            with connection, contextlib.suppress(OSError):
                secure = context.wrap_socket(connection, server_side=True) if context else None
                with secure or connection as stream:
                    stream.recv(1000)
                    stream.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        yield f"localhost:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_certificate_for_another_host_is_not_trusted(send: Send, service: StandIn) -> None:
    with listener(service.ca.issue_cert("other.example")) as endpoint:
        outcome = send("--endpoint", endpoint)
    assert_failed(outcome, service, CONFIG, "its certificate is not trusted", "--endpoint")


def test_a_certificate_that_has_expired_is_not_trusted(send: Send, service: StandIn) -> None:
    yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    with listener(service.ca.issue_cert("localhost", not_after=yesterday)) as endpoint:
        outcome = send("--endpoint", endpoint)
    assert_failed(outcome, service, CONFIG, "its certificate is not trusted", "clock")


@pytest.mark.parametrize("protocols", [(), ("http/1.1",)], ids=["no ALPN", "HTTP/1.1"])
def test_a_web_server_is_no_grpc_service(
    send: Send, service: StandIn, protocols: tuple[str, ...]
) -> None:
    with listener(service.ca.issue_cert("localhost"), protocols) as endpoint:
        outcome = send("--endpoint", endpoint)
    assert_failed(outcome, service, CONFIG, "no gRPC service with TLS answers there")


@pytest.mark.parametrize("answer", [HTTP_ANSWER, b"SSH-2.0-OpenSSH_9.2\r\n"], ids=["HTTP", "SSH"])
def test_a_port_without_tls_is_no_service(send: Send, service: StandIn, answer: bytes) -> None:
    with listener(answer=answer) as endpoint:
        outcome = send("--endpoint", endpoint)
    assert_failed(outcome, service, CONFIG, "no gRPC service with TLS answers there")


def test_grpc_without_tls_is_no_service(send: Send, service: StandIn) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        outcome = send("--endpoint", f"localhost:{port}")
    finally:
        server.stop(None).wait()
    assert_failed(outcome, service, CONFIG, "no gRPC service with TLS answers there")


def test_grpc_without_this_service_is_named(send: Send, service: StandIn, tmp_path: Path) -> None:
    certificate = service.ca.issue_cert("localhost")
    chain = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
    credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        outcome = send("--endpoint", f"localhost:{port}")
    finally:
        server.stop(None).wait()
    assert_failed(outcome, service, CONFIG, "UNIMPLEMENTED", "check --endpoint")


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def test_a_port_that_refuses_may_be_open_later(send: Send, service: StandIn) -> None:
    outcome = send("--endpoint", f"localhost:{closed_port()}")
    assert_failed(outcome, service, TEMPORARY, "Connection refused", "UNAVAILABLE", "run again")


def test_a_port_that_closes_at_once_may_be_better_later(send: Send, service: StandIn) -> None:
    with listener(answer=b"") as endpoint:
        outcome = send("--endpoint", endpoint)
    assert_failed(outcome, service, TEMPORARY, "run again")


# --- The endpoint itself --------------------------------------------------------------


@pytest.mark.parametrize(
    ("resolver", "host"),
    [("ares", UNKNOWN_HOST), ("ares", "no..such.host"), ("native", "no..such.host")],
)
def test_an_unknown_host_is_named_as_such(
    command: Run, service: StandIn, call: Path, resolver: str, host: str
) -> None:
    outcome = command(
        *("--audio-path", call, "--endpoint", f"{host}:443", "--retries", 0),
        env={"GRPC_DNS_RESOLVER": resolver},
    )
    assert_failed(outcome, service, CONFIG, host, "no such host", "--endpoint")


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        " ",
        ":443",
        "localhost:",
        "localhost:0",
        "localhost:65536",
        "localhost:https",
        "localhost:443:443",
        "localhost:443/",
        "https://localhost",
        "https://localhost:443",
        "dns:///localhost:443",
        "unix:/tmp/socket",
        "local host:443",
        "localhost:443\n",
        "::1",
        "[::1",
        "[localhost]:443",
        "хост:443",
    ],
    ids=ascii,
)
def test_an_endpoint_that_is_none_is_refused(send: Send, service: StandIn, endpoint: str) -> None:
    outcome = send("--endpoint", endpoint)
    assert_failed(outcome, service, CONFIG, "bad endpoint", "HOST:PORT")


def test_the_port_of_an_endpoint_is_443_by_default(send: Send, service: StandIn) -> None:
    with HttpProxy(upstream_port=service.port) as proxy:
        outcome = send("--endpoint", "localhost", https_proxy=proxy.url)
        assert proxy.targets == ["localhost:443"]
    assert_uploaded(outcome, service)


def test_an_ip_address_is_an_endpoint(send: Send, service: StandIn) -> None:
    assert_uploaded(send("--endpoint", f"127.0.0.1:{service.port}"), service)


# --- Proxies --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY"])
@pytest.mark.parametrize("form", ["{0}", "{0}/", "{1}", "http://user:word@{1}", "user:word@{1}"])
def test_an_upload_goes_through_the_proxy(
    send: Send, service: StandIn, name: str, form: str
) -> None:
    with HttpProxy() as proxy:
        url = form.format(proxy.url, proxy.url.removeprefix("http://"))
        outcome = send(**{name: url})
        assert proxy.targets == [service.endpoint]
    assert_uploaded(outcome, service)


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize(
    "value", ["*", "localhost", "example.com,localhost", "example.com, localhost"]
)
def test_an_upload_goes_past_the_proxy_where_no_proxy_says_so(
    send: Send, service: StandIn, name: str, value: str
) -> None:
    with HttpProxy("502") as proxy:
        outcome = send(HTTPS_PROXY=proxy.url, **{name: value})
        assert proxy.targets == []
    assert_uploaded(outcome, service)


def test_no_proxy_for_other_hosts_changes_nothing(send: Send, service: StandIn) -> None:
    with HttpProxy() as proxy:
        outcome = send(HTTPS_PROXY=proxy.url, NO_PROXY="example.com,.internal")
        assert proxy.targets == [service.endpoint]
    assert_uploaded(outcome, service)


@pytest.mark.parametrize(
    "environment",
    [
        {"https_proxy": "", "HTTPS_PROXY": "{}"},  # The small letters count, as for curl.
        {"HTTP_PROXY": "{}"},  # A CGI header; curl does not take it either.
        {"ALL_PROXY": "{}"},
    ],
    ids=" ".join,
)
def test_what_is_no_proxy_setting_is_not_taken_for_one(
    send: Send, service: StandIn, environment: dict[str, str]
) -> None:
    with HttpProxy("502") as proxy:
        outcome = send(**{name: text.format(proxy.url) for name, text in environment.items()})
        assert proxy.targets == []
    assert_uploaded(outcome, service)


@pytest.mark.parametrize(
    "url",
    [
        "https://proxy.example:3128",
        "socks5://proxy.example:1080",
        "http://",
        "http://:3128",
        "http://proxy.example:port",
        "http://proxy.example:99999",
        "http://[::1",
    ],
)
def test_a_proxy_that_grpc_cannot_use_is_refused(send: Send, service: StandIn, url: str) -> None:
    """Of itself gRPC would go past it, and say nothing."""
    outcome = send(HTTPS_PROXY=url)
    assert_failed(outcome, service, CONFIG, "proxy", "write http://HOST:PORT")


def test_a_proxy_that_wants_a_password_is_named(send: Send, service: StandIn) -> None:
    with HttpProxy("407") as proxy:
        url = proxy.url.replace("http://", "http://user:pass-word@")
        outcome = send(https_proxy=url)
        assert proxy.targets
    assert_failed(outcome, service, CONFIG, "407", "the proxy refuses: check https_proxy")
    assert "pass-word" not in outcome.err


def test_a_proxy_that_cannot_reach_the_service_may_do_so_later(
    send: Send, service: StandIn
) -> None:
    with HttpProxy("502") as proxy:
        outcome = send(https_proxy=proxy.url)
    assert_failed(outcome, service, TEMPORARY, "502", "run again")


def test_a_proxy_that_is_not_there_may_be_later(send: Send, service: StandIn) -> None:
    outcome = send(https_proxy=f"http://127.0.0.1:{closed_port()}")
    assert_failed(outcome, service, TEMPORARY, "Connection refused", "run again")


def test_a_proxy_of_an_unknown_name_is_named(send: Send, service: StandIn) -> None:
    outcome = send(https_proxy=f"http://{UNKNOWN_HOST}:3128")
    assert_failed(outcome, service, CONFIG, UNKNOWN_HOST, "https_proxy")


def test_a_silent_proxy_is_given_up(send: Send, service: StandIn) -> None:
    with HttpProxy("silent") as proxy:
        outcome = send("--timeout", 0.5, https_proxy=proxy.url)
    assert_failed(outcome, service, TEMPORARY, "no progress", "run again")


# --- Before all that ------------------------------------------------------------------


def test_a_dry_run_finds_wrong_settings_too(send: Send, service: StandIn, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    assert_failed(send("--dry-run", "--ca-file", missing), service, CONFIG, "--ca-file")
    assert_failed(send("--dry-run", "--endpoint", "::1"), service, CONFIG, "bad endpoint")


def test_a_wrong_setting_ends_the_run_at_the_first_recording(
    send: Send, service: StandIn, tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    calls = [make_wav(tmp_path / f"{number}.wav", 1_000) for number in range(20)]
    words = ("--audio-path", *calls, "--ca-file", tmp_path / "other.pem", "--jobs", 1, "--quiet")
    outcome = send(*words)
    assert (outcome.code, outcome.out) == (CONFIG, "")
    assert outcome.err.count("its certificate is not trusted") == 1
    assert service.calls == []
