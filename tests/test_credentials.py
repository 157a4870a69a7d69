"""Where the API key or IAM token comes from, what it may look like, and that nobody sees it."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch

import grpc
import pytest
from conftest import LONG_BYTES, Outcome, Waits, assert_refused, make_wav, sparse_wav
from stand_in import Call, Fail, StandIn, Step

import upload_grpc

pytestmark = pytest.mark.usefixtures("waits")

# As the service's keys look; nothing else on a command line here contains it.
SECRET = "AQVNyq6vB3fXcZ0sJt_8wLd-Gh2"
TOKEN = f"t1.9euelZ{SECRET}"
STATUS = grpc.StatusCode

Bare = Callable[..., Outcome]


@pytest.fixture
def service(service: StandIn) -> StandIn:
    """Let every key and token in."""
    service.keys = service.tokens = None
    return service


@pytest.fixture
def bare(service: StandIn, call: Path, capfd: pytest.CaptureFixture[str]) -> Bare:
    """Call main() with some words and variables, and no other credential."""

    def run(*words: object, **environment: str) -> Outcome:
        address = ("--endpoint", service.endpoint, "--ca-file", service.ca_file)
        # Before the recordings: --audio-path takes every word that follows.
        given = (*words, "--connection-id", "connection-1", *address, "--audio-path", call)
        capfd.readouterr()
        with patch.dict(os.environ, environment):
            try:
                code = upload_grpc.main([str(word) for word in given])
            except SystemExit as leaving:
                code = int(leaving.code or 0)
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def sent(service: StandIn) -> list[str]:
    """Return the authorization header of each call."""
    return [str(received.metadata["authorization"]) for received in service.calls]


# --- Where it comes from --------------------------------------------------------------


FILE = ("--key-file", "FILE")  # Which has "of-the-file".
BOTH = {"API_KEY": "of-API_KEY", "IAM_TOKEN": "of-IAM_TOKEN"}
# Words, variables, and the header that is sent.
GIVEN: list[tuple[tuple[str, ...], dict[str, str], str]] = [
    # The first of several places counts.
    (("--key", "of-the-line"), BOTH, "Api-Key of-the-line"),
    (FILE, BOTH, "Api-Key of-the-file"),
    ((), BOTH, "Api-Key of-API_KEY"),
    ((), {"IAM_TOKEN": "of-IAM_TOKEN"}, "Bearer of-IAM_TOKEN"),
    # An empty variable is none.
    ((), {"API_KEY": " ", "IAM_TOKEN": TOKEN}, f"Bearer {TOKEN}"),
    # The kind follows from the text, the variable or --key-type.
    (("--key", TOKEN), {}, f"Bearer {TOKEN}"),
    (("--key", TOKEN, "--key-type", "api-key"), {}, f"Api-Key {TOKEN}"),
    (("--key", SECRET, "--key-type", "iam-token"), {}, f"Bearer {SECRET}"),
    ((), {"API_KEY": TOKEN}, f"Bearer {TOKEN}"),
    (("--key-type", "api-key"), {"IAM_TOKEN": SECRET}, f"Bearer {SECRET}"),
]


def test_where_the_credential_comes_from_and_what_kind_it_is(
    bare: Bare, service: StandIn, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("of-the-file")
    for words, environment, header in GIVEN:
        service.calls.clear()
        given = [tmp_path / "key" if word == "FILE" else word for word in words]
        outcome = bare(*given, **environment)
        assert (outcome.code, outcome.err) == (0, "")
        assert sent(service) == [header]


@pytest.mark.parametrize("secret", [SECRET, TOKEN])
def test_a_key_in_the_place_of_its_file_is_not_repeated(
    bare: Bare, service: StandIn, tmp_path: Path, secret: str
) -> None:
    """As with `--key-file ${API_KEY}`."""
    outcome = bare("--key-file", secret, "--ledger", tmp_path / "ledger.sqlite")
    assert (outcome.code, service.calls) == (78, [])
    assert "--key-file cannot be read" in outcome.err and secret not in outcome.err
    for path in tmp_path.glob("ledger*"):
        assert secret.encode() not in path.read_bytes()


def test_an_empty_key_is_an_error(bare: Bare, service: StandIn) -> None:
    """As with `--key "${API_KEY}"`, where API_KEY was never exported."""
    assert_refused(bare(), service, 78, "--key-file", "API_KEY", "IAM_TOKEN")
    assert_refused(bare("--key", "", IAM_TOKEN=TOKEN), service, 78, "--key ")


# --- What surrounds it ----------------------------------------------------------------


def test_white_space_and_a_byte_order_mark_around_it_are_dropped(
    bare: Bare, service: StandIn, tmp_path: Path
) -> None:
    key_file = tmp_path / "key"
    for text in (f"\t {SECRET} \r\n\n", f"\ufeff{SECRET}\n", f"\u00a0\ufeff {SECRET}\u00a0"):
        key_file.write_bytes(text.encode())
        for outcome in (bare("--key", text), bare("--key-file", key_file), bare(API_KEY=text)):
            assert (outcome.code, outcome.err) == (0, "")
    assert sent(service) == [f"Api-Key {SECRET}"] * 9


FIRST, LAST = SECRET[:9], SECRET[9:]
# Pasted with what stood around it, or with something within.
NO_KEYS = (
    *(f'"{SECRET}"', f"'{SECRET}'", f"<{SECRET}>", f"{SECRET},", f"{SECRET}\n{SECRET}"),
    *(f"API_KEY={SECRET}", f"export API_KEY={SECRET}", f"Api-Key {SECRET}"),
    *(f"{FIRST}{inside}{LAST}" for inside in (" ", "\n", "\r\n", "\u200b", "\u0441", "\x00")),
)


@pytest.mark.parametrize("place", ["--key", "--key-file", "API_KEY", "IAM_TOKEN"])
def test_what_cannot_be_a_key_is_refused_and_not_shown(
    bare: Bare, service: StandIn, tmp_path: Path, place: str
) -> None:
    """Grpc would call it "Invalid metadata", and not say which."""
    for text in NO_KEYS:
        (tmp_path / "key").write_text(text, "utf-8")
        words = {"--key": ("--key", text), "--key-file": ("--key-file", tmp_path / "key")}
        # No variable can have a NUL.
        environment = {place: text.replace("\0", " ")} if place.isupper() else {}
        outcome = bare(*words.get(place, ()), **environment)
        assert_refused(outcome, service, 78, place, "copy the key again")
        assert FIRST not in outcome.err and LAST not in outcome.err


def test_a_key_file_without_a_key_is_named(bare: Bare, service: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "key"
    outcome = bare("--key-file", path, API_KEY=SECRET)
    assert_refused(outcome, service, 78, f"--key-file {path}", "No such file or directory")
    for content in (b" \r\n", b"\xef\xbb\xbf"):
        path.write_bytes(content)
        assert_refused(bare("--key-file", path, API_KEY=SECRET), service, 78, str(path), "empty")
    for content in (SECRET.encode("utf-16"), b"\x7fELF\xff\xfe", b"\0" * 1_000_000):
        path.write_bytes(content)
        assert_refused(bare("--key-file", path, API_KEY=SECRET), service, 78, f"--key-file {path}")


# --- During a run ---------------------------------------------------------------------


def test_a_pipe_can_be_the_key_file(bare: Bare, service: StandIn, call: Path) -> None:
    """As with `--key-file <(vault read ...)`: it gives its bytes only once."""
    sparse_wav(call, LONG_BYTES)
    service.script.append(Fail(STATUS.UNAVAILABLE, after_bytes=0))
    reader, writer = os.pipe()
    os.write(writer, f"{SECRET}\n".encode())
    os.close(writer)
    outcome = bare("--key-file", f"/dev/fd/{reader}")
    os.close(reader)
    assert outcome.code == 0
    assert sent(service) == [f"Api-Key {SECRET}"] * 2


# --- The token of a cloud VM ----------------------------------------------------------


class VmMetadata(ThreadingHTTPServer):
    """The metadata service that a cloud VM has, on loopback."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), VmHandler)
        self.asked: list[tuple[str, dict[str, str]]] = []  # path, headers
        self.answer = (200, json.dumps({"access_token": TOKEN, "expires_in": 43_200}).encode())

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class VmHandler(BaseHTTPRequestHandler):
    server: VmMetadata

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        status, body = self.server.answer
        body = body.replace(b"NUMBER", str(len(self.server.asked)).encode())
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep stderr for the program."""


@pytest.fixture
def vm() -> Iterator[VmMetadata]:
    with VmMetadata() as server:
        os.environ["YC_METADATA_ADDR"] = server.address
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_vm_gives_its_token(
    bare: Bare, service: StandIn, vm: VmMetadata, call: Path, tmp_path: Path
) -> None:
    """It is asked once, past any proxy, whatever other credentials there are."""
    proxies = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
    environment = dict.fromkeys(proxies, "http://127.0.0.1:9") | {"no_proxy": "localhost"}
    others = [make_wav(tmp_path / f"{number}.wav", 1_000) for number in range(3)]
    metadata = ("--meta-path", call.with_suffix(".json"))
    words = ("--key-type", "vm", "--quiet", *metadata, "--audio-path", *others)
    outcome = bare(*words, API_KEY=SECRET, IAM_TOKEN=SECRET, **environment)
    assert (outcome.code, outcome.err) == (0, "")
    assert sent(service) == [f"Bearer {TOKEN}"] * 4
    [(path, headers)] = vm.asked
    assert path == "/computeMetadata/v1/instance/service-accounts/default/token"
    assert (headers["Metadata-Flavor"], headers["Host"]) == ("Google", vm.address)


@pytest.mark.parametrize("breaks", [False, True])
def test_an_old_token_of_a_vm_is_fetched_anew_or_used_on_if_that_fails(
    bare: Bare, service: StandIn, vm: VmMetadata, call: Path, waits: Waits, breaks: bool
) -> None:
    waits(vm_token_age=-18_000.0)  # As after an upload of five hours.
    vm.answer = (200, b'{"access_token": "t1.NUMBER"}')

    def break_metadata(_: Call) -> Step:
        vm.answer = (500, b"") if breaks else vm.answer
        return None

    service.on_call = break_metadata
    words = ("--key-type", "vm", "--jobs", 1, "--audio-path")
    others = [make_wav(call.with_name(name), 1_000) for name in ("b.wav", "c.wav")]
    outcome = bare(*words, *others)
    assert outcome.code == 0
    tokens = ("t1.2", "t1.2", "t1.2") if breaks else ("t1.2", "t1.3", "t1.4")
    assert sent(service) == [f"Bearer {token}" for token in tokens]
    assert len(vm.asked) == (3 if breaks else 4)  # Not again at once.


def test_a_dry_run_needs_no_credential_and_asks_nobody(
    bare: Bare, service: StandIn, vm: VmMetadata
) -> None:
    for words in ((), ("--key-type", "vm"), ("--key-file", "missing")):
        outcome = bare("--dry-run", *words)
        assert (outcome.code, outcome.err) == (0, "") and "would be uploaded" in outcome.out
    assert (vm.asked, service.calls) == ([], [])


def test_without_key_type_vm_it_is_not_asked(bare: Bare, vm: VmMetadata) -> None:
    assert bare().code == 78
    assert bare("--key", SECRET).code == 0
    assert vm.asked == []


NO_TOKEN = [
    b"",
    b"<html>log in to the guest network</html>",
    b"null",
    b"[]",
    b"{}",
    b'{"access_token": null, "expires_in": 3600}',
    b'{"access_token": "", "expires_in": 3600}',
    b'{"access_token": "half\\nhalf", "expires_in": 3600}',
    b"[" * 60_000,
    bytes(range(256)),
]


def test_a_vm_that_gives_no_token_is_named(bare: Bare, service: StandIn, vm: VmMetadata) -> None:
    for answer in ((404, b"no service account"), *((200, body) for body in NO_TOKEN)):
        vm.answer = answer
        outcome = bare("--key-type", "vm", API_KEY=SECRET)
        assert_refused(outcome, service, 78, "metadata service")
        assert len(outcome.err) < 500 and "half" not in outcome.err
    for address in ("127.0.0.1:99999", "http://127.0.0.1", "a\nb", "я", "/"):
        outcome = bare("--key-type", "vm", YC_METADATA_ADDR=address)
        assert_refused(outcome, service, 78, "metadata service")


@pytest.mark.parametrize("listening", [False, True])
def test_a_machine_that_is_no_cloud_vm_is_told_so_in_seconds(
    bare: Bare, service: StandIn, waits: Waits, listening: bool
) -> None:
    waits(vm_answer=0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if not listening:
            server.close()
        started_s = time.monotonic()
        outcome = bare("--key-type", "vm", YC_METADATA_ADDR=address)
        assert time.monotonic() - started_s < 10
    assert_refused(outcome, service, 78, "--key-type vm", address)


# --- That nobody sees it --------------------------------------------------------------


@pytest.mark.parametrize("words", [("--key", SECRET), ("--key-type", "vm")], ids=["key", "vm"])
def test_a_service_that_repeats_it_cannot_make_us_show_it(
    bare: Bare, service: StandIn, vm: VmMetadata, call: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    secret = TOKEN if "vm" in words else SECRET
    ledger = tmp_path / "ledger"
    output = ("--retries", 1, "--format", "json", "--verbose", "--ledger", ledger)
    outcome = bare(*words, *output)
    assert outcome.code == 0 and SECRET not in outcome.out + outcome.err
    sparse_wav(call, LONG_BYTES).with_suffix(".json").write_text("{}")
    for status, code in {
        STATUS.UNAUTHENTICATED: 77,
        STATUS.INVALID_ARGUMENT: 65,
        STATUS.UNAVAILABLE: 75,
        STATUS.NOT_FOUND: 78,
    }.items():
        step = Fail(status, f"bad {secret}", after_bytes=0, trailing=(("x-request-id", secret),))
        service.script[:] = [step, step]
        outcome = bare(*words, *output, "--retry-rejected")
        assert outcome.code == code
        assert SECRET not in outcome.out + outcome.err
        assert "bad ***" in outcome.err
        assert "bad ***" in json.loads(outcome.out)["error"]
    written = [path.read_bytes() for path in tmp_path.glob("ledger*")]
    assert any(written) and SECRET.encode() not in b"".join(written)
