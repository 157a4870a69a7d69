"""--key-type vm: the token of the machine's own service account; and credentials that change."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from conftest import Outcome, make_wav
from stand_in import Call, Delay, Fail, StandIn

import upload_grpc

PATH = "/computeMetadata/v1/instance/service-accounts/default/token"
FIRST, SECOND, THIRD = (f"t1.9euelZq-{name}_token" for name in ("first", "second", "third"))
HOUR_S = 3600

Bare = Callable[..., Outcome]


class MetadataService(http.server.ThreadingHTTPServer):
    """A VM's metadata service: `answers` are taken one by one, the last one again and again."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[tuple[int, bytes]] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.lock = threading.Lock()

    def gives(self, token: str, lifetime_s: float = HOUR_S) -> None:
        answer = {"access_token": token, "expires_in": lifetime_s, "token_type": "Bearer"}
        self.answers.append((200, json.dumps(answer).encode()))

    def fails(self, status: int = 500) -> None:
        self.answers.append((status, b"<html>an error, says a page"))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: MetadataService

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.requests.append((self.command, self.path, dict(self.headers)))
            answers = self.server.answers
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def vm() -> Iterator[MetadataService]:
    with MetadataService() as vm:
        serving = threading.Thread(target=vm.serve_forever, args=(0.01,))
        serving.start()
        os.environ["YC_METADATA_ADDR"] = vm.address
        yield vm
        vm.shutdown()
        serving.join()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_grpc, "BACKOFF_S", 0.02)


@pytest.fixture
def call(tmp_path: Path) -> Path:
    return a_call(tmp_path, 0)


def a_call(folder: Path, number: int) -> Path:
    path = make_wav(folder / f"call{number}.wav", 600_000)
    path.with_suffix(".json").write_text("{}")
    return path


@pytest.fixture
def bare(service: StandIn, call: Path, capfd: pytest.CaptureFixture[str]) -> Bare:
    """Call main() with some words, which name a credential, and the service's address."""

    def run(*words: object, paths: list[Path] | None = None) -> Outcome:
        given = words if "--talk-id" in words else ("--audio-path", *(paths or [call]), *words)
        address = ("--endpoint", service.endpoint, "--ca-file", service.ca_file)
        argv = [str(word) for word in (*given, "--connection-id", "connection-1", *address)]
        capfd.readouterr()
        code = upload_grpc.main(argv)
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def tokens_used(service: StandIn) -> list[str]:
    """Answer the token of each call, in the order they came."""
    headers = [str(received.metadata["authorization"]) for received in service.calls]
    assert all(header.startswith("Bearer ") for header in headers)
    return [header.removeprefix("Bearer ") for header in headers]


def assert_none_to_be_had(outcome: Outcome, service: StandIn, *texts: str) -> None:
    """One line says all that; the service was not spoken to."""
    assert (outcome.code, outcome.out, service.calls) == (78, "", [])
    assert re.fullmatch(r"upload_grpc: .*\n", outcome.err)
    assert len(outcome.err) < 500
    for text in ("the VM's metadata service", "--key-type vm works on a cloud VM", *texts):
        assert text in outcome.err
    assert "t1.9euelZq" not in outcome.err


# --- On a VM ------------------------------------------------------------------------------------


def test_the_token_of_the_vm_is_the_bearers(
    bare: Bare, service: StandIn, vm: MetadataService
) -> None:
    vm.gives(FIRST)
    service.tokens = {FIRST}
    outcome = bare("--key-type", "vm")
    [talk_id] = service.talks
    assert outcome == Outcome(0, f"Dialog ID: {talk_id}\n", "")
    assert tokens_used(service) == [FIRST]
    [(method, path, headers)] = vm.requests
    assert (method, path) == ("GET", PATH)
    assert headers["Metadata-Flavor"] == "Google"
    assert headers["Host"] == vm.address


def test_a_token_need_not_begin_as_others_do(
    bare: Bare, service: StandIn, vm: MetadataService
) -> None:
    vm.gives("another-kind")
    service.tokens = {"another-kind"}
    assert bare("--key-type", "vm").code == 0
    assert tokens_used(service) == ["another-kind"]


def test_it_is_taken_before_any_key(bare: Bare, service: StandIn, vm: MetadataService) -> None:
    os.environ["API_KEY"] = "demo-key"
    os.environ["IAM_TOKEN"] = "t1.demo-token"
    vm.gives(FIRST)
    service.tokens = {FIRST}
    assert bare("--key-type", "vm").code == 0
    assert tokens_used(service) == [FIRST]


def test_without_key_type_vm_nobody_asks_the_vm(
    bare: Bare, service: StandIn, vm: MetadataService
) -> None:
    vm.gives(FIRST)
    assert bare().code == 78
    assert bare("--key", "demo-key").code == 0
    assert vm.requests == []


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"])
def test_it_is_never_asked_for_through_a_proxy(
    bare: Bare, service: StandIn, vm: MetadataService, name: str
) -> None:
    os.environ.update({name: "http://127.0.0.1:9", "no_proxy": "localhost"})
    vm.gives(FIRST)
    service.tokens = {FIRST}
    assert bare("--key-type", "vm").code == 0
    assert len(vm.requests) == 1


def test_a_dry_run_makes_sure_that_there_is_one(
    bare: Bare, service: StandIn, vm: MetadataService
) -> None:
    vm.gives(FIRST)
    assert bare("--key-type", "vm", "--dry-run").code == 0
    assert (len(vm.requests), service.calls) == (1, [])


def test_nobody_sees_it(bare: Bare, service: StandIn, vm: MetadataService) -> None:
    vm.gives(FIRST)
    service.tokens = None
    service.script.append(Fail(grpc.StatusCode.INVALID_ARGUMENT, f"bad token {FIRST}"))
    outcome = bare("--key-type", "vm", "--verbose", "--format", "json")
    assert outcome.code == 65
    assert "bad token ***" in outcome.err
    assert FIRST not in outcome.out + outcome.err


# --- During a long run --------------------------------------------------------------------------


def test_a_token_that_is_good_for_long_is_asked_for_once(
    bare: Bare, service: StandIn, vm: MetadataService, tmp_path: Path
) -> None:
    vm.gives(FIRST)
    service.tokens = {FIRST}
    paths = [a_call(tmp_path, number) for number in range(8)]
    assert bare("--key-type", "vm", paths=paths).code == 0
    assert tokens_used(service) == [FIRST] * 8
    assert len(vm.requests) == 1


def test_it_is_renewed_before_it_runs_out(
    bare: Bare, service: StandIn, vm: MetadataService, tmp_path: Path
) -> None:
    for token in (FIRST, SECOND, THIRD):
        vm.gives(token, 2.0)
    service.tokens = None
    service.script += [Delay(0.25)] * 5
    paths = [a_call(tmp_path, number) for number in range(5)]
    assert bare("--key-type", "vm", "--jobs", 1, paths=paths).code == 0
    used = tokens_used(service)
    assert used == sorted(used)  # first, second, third
    assert used[0] == FIRST and used[-1] == THIRD


def test_one_that_is_good_serves_on_while_there_is_no_other(
    bare: Bare,
    service: StandIn,
    vm: MetadataService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And nobody is asked again before every recording."""
    monkeypatch.setattr(upload_grpc, "VM_TOKEN_RENEWED_AT", 0.01)
    vm.gives(FIRST, 20)
    vm.fails()
    service.tokens = {FIRST}
    service.script += [Delay(0.25)] * 4
    paths = [a_call(tmp_path, number) for number in range(4)]
    outcome = bare("--key-type", "vm", "--jobs", 1, "--quiet", paths=paths)
    assert (outcome.code, outcome.err) == (0, "")
    assert tokens_used(service) == [FIRST] * 4
    assert len(vm.requests) == 2


def test_once_it_has_run_out_the_run_ends(
    bare: Bare, service: StandIn, vm: MetadataService, tmp_path: Path
) -> None:
    vm.gives(FIRST, 0.8)
    vm.fails()
    service.tokens = {FIRST}
    service.script += [Delay(0.9)]
    paths = [a_call(tmp_path, number) for number in range(4)]
    outcome = bare("--key-type", "vm", "--jobs", 1, paths=paths)
    assert outcome.code == 78
    assert len(service.talks) == 1
    assert "1 uploaded, 0 already there, 1 failed, 0 unknown, 2 not tried" in outcome.err


WAYS = {
    "stream": (),
    "single message": ("--single-message",),
    "split": ("--split",),
    "no further tries": ("--retries", 0),
}


@pytest.mark.parametrize("way", WAYS)
def test_one_that_is_refused_is_asked_for_again(
    bare: Bare, service: StandIn, vm: MetadataService, way: str
) -> None:
    vm.gives(FIRST)
    vm.gives(SECOND)
    service.tokens = {SECOND}
    outcome = bare("--key-type", "vm", *WAYS[way])
    assert outcome.code == 0
    assert tokens_used(service) == [FIRST, SECOND]
    assert len(vm.requests) == 2
    assert "(UNAUTHENTICATED); next try in 0.0 s" in outcome.err


def test_for_other_metadata_of_a_dialog_too(
    bare: Bare, service: StandIn, vm: MetadataService, call: Path
) -> None:
    vm.gives(FIRST)
    service.tokens = {FIRST}
    assert bare("--key-type", "vm").code == 0
    [talk_id] = service.talks
    service.tokens = {THIRD}
    vm.answers.clear()
    vm.gives(SECOND)
    vm.gives(THIRD)
    fields = call.with_suffix(".json")
    assert bare("--key-type", "vm", "--talk-id", talk_id, "--meta-path", fields).code == 0
    assert tokens_used(service)[1:] == [SECOND, THIRD]


def test_for_polls_too(bare: Bare, service: StandIn, vm: MetadataService) -> None:
    class Calls(list[Call]):
        def append(self, received: Call) -> None:
            super().append(received)
            service.tokens = {SECOND} if received.method == "Get" else {FIRST}

    service.calls = Calls()
    vm.gives(FIRST)
    vm.gives(SECOND)
    service.badge_polls = 0
    outcome = bare("--key-type", "vm", "--split", "--wait")
    assert (outcome.code, outcome.out.count("Dialog ID")) == (0, 2)
    assert tokens_used(service) == [FIRST, FIRST, SECOND]


def test_all_uploads_at_a_time_get_the_new_one(
    bare: Bare, service: StandIn, vm: MetadataService, tmp_path: Path
) -> None:
    vm.gives(FIRST)
    vm.gives(SECOND)
    service.tokens = {SECOND}
    paths = [a_call(tmp_path, number) for number in range(8)]
    assert bare("--key-type", "vm", "--jobs", 8, "--quiet", paths=paths).code == 0
    assert len(service.talks) == 8


def test_the_next_recordings_use_it_from_the_start(
    bare: Bare, service: StandIn, vm: MetadataService, tmp_path: Path
) -> None:
    vm.gives(FIRST)
    vm.gives(SECOND)
    service.tokens = {SECOND}
    paths = [a_call(tmp_path, number) for number in range(3)]
    assert bare("--key-type", "vm", "--jobs", 1, paths=paths).code == 0
    assert tokens_used(service) == [FIRST, *[SECOND] * 3]


def test_a_new_one_that_is_refused_as_well_ends_the_run(
    bare: Bare, service: StandIn, vm: MetadataService, tmp_path: Path
) -> None:
    for token in (FIRST, SECOND, THIRD):
        vm.gives(token)
    service.tokens = {THIRD}
    paths = [a_call(tmp_path, number) for number in range(3)]
    outcome = bare("--key-type", "vm", "--jobs", 1, paths=paths)
    assert (outcome.code, outcome.out) == (77, "")
    assert tokens_used(service) == [FIRST, SECOND]


def test_the_same_one_again_is_not_tried_twice(
    bare: Bare, service: StandIn, vm: MetadataService
) -> None:
    vm.gives(FIRST)
    service.tokens = ()
    assert bare("--key-type", "vm").code == 77
    assert (len(service.calls), len(vm.requests)) == (1, 2)


def test_what_may_not_be_done_is_not_tried_again(
    bare: Bare, service: StandIn, vm: MetadataService
) -> None:
    """PERMISSION_DENIED says that the token is good, and its owner may not."""
    vm.gives(FIRST)
    vm.gives(SECOND)
    service.tokens = None
    service.script.append(Fail(grpc.StatusCode.PERMISSION_DENIED, "no"))
    assert bare("--key-type", "vm").code == 77
    assert (len(service.calls), len(vm.requests)) == (1, 1)


# --- Not on a VM, or on one without a service account -------------------------------------------


def test_where_nothing_listens_the_line_says_so_at_once(bare: Bare, service: StandIn) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    os.environ["YC_METADATA_ADDR"] = address
    started_s = time.monotonic()
    outcome = bare("--key-type", "vm")
    assert time.monotonic() - started_s < 1
    assert_none_to_be_had(outcome, service, address, "Connection refused")


def test_where_nobody_answers_the_line_says_so_in_seconds(
    bare: Bare, service: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upload_grpc.VM_METADATA_TIMEOUT_S <= 5
    monkeypatch.setattr(upload_grpc, "VM_METADATA_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        os.environ["YC_METADATA_ADDR"] = f"127.0.0.1:{silent.getsockname()[1]}"
        started_s = time.monotonic()
        outcome = bare("--key-type", "vm")
    assert 0.3 <= time.monotonic() - started_s < 1.5
    assert_none_to_be_had(outcome, service, "timed out")


def test_one_that_hangs_up_is_none(bare: Bare, service: StandIn) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        os.environ["YC_METADATA_ADDR"] = f"127.0.0.1:{server.getsockname()[1]}"

        def hang_up() -> None:
            connection, _ = server.accept()
            connection.recv(65_536)
            connection.close()

        hanging_up = threading.Thread(target=hang_up)
        hanging_up.start()
        outcome = bare("--key-type", "vm")
        hanging_up.join()
    assert_none_to_be_had(outcome, service)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:99999", "http://127.0.0.1", "[::1", "a b", "a\nb", "я", "user@127.0.0.1:9", "/"],
    ids=ascii,
)
def test_an_address_that_is_none_is_shown(bare: Bare, service: StandIn, address: str) -> None:
    os.environ["YC_METADATA_ADDR"] = address
    assert_none_to_be_had(bare("--key-type", "vm"), service)


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "Not Found"), (403, "Forbidden"), (500, "Internal Server Error")]
)
def test_a_vm_without_a_service_account_says_so(
    bare: Bare, service: StandIn, vm: MetadataService, status: int, reason: str
) -> None:
    vm.fails(status)
    assert_none_to_be_had(bare("--key-type", "vm"), service, vm.address, reason)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'"t1.9euelZq-first_token"',
        b'["t1.9euelZq-first_token"]',
        b'{"access_token": "t1.9euelZq-first_token"}',
        b'{"expires_in": 3600}',
        b'{"access_token": null, "expires_in": 3600}',
        b'{"access_token": 7, "expires_in": 3600}',
        b'{"access_token": ["t1.9euelZq-first_token"], "expires_in": 3600}',
        b'{"access_token": "t1.9euelZq-first_token", "expires_in": null}',
        b'{"access_token": "t1.9euelZq-first_token", "expires_in": "soon"}',
        b'{"access_token": "t1.9euelZq-first_token", "expires_in": {}}',
        b'{"access_token": "t1.9euelZq-first_token", "expires_in": 1%s}' % (b"0" * 400),
        b'{"access_token": "t1.9euelZq-first_token", "expires_in": 1%s}' % (b"0" * 5000),
        b'{"access_token": "t1.9euelZq-first_token", "expires_in": 3600, "x": "\xff"}',
        b'{"access_token": "%s"}' % (b"t1.9euelZq" * 20_000),
        b"[" * 60_000,
        bytes(range(256)) * 100,
        b"<html>log in to the guest network</html>",
    ],
    ids=lambda body: ascii(body[:60]),
)
def test_an_answer_that_is_no_token_is_refused(
    bare: Bare, service: StandIn, vm: MetadataService, body: bytes
) -> None:
    vm.answers.append((200, body))
    assert_none_to_be_had(bare("--key-type", "vm"), service, vm.address)


@pytest.mark.parametrize("token", ["", " ", "a b", "t1.9euelZq\n", "я", "t1.9euelZq\r\nX: y"])
def test_a_token_that_is_no_headers_value_is_refused(
    bare: Bare, service: StandIn, vm: MetadataService, token: str
) -> None:
    vm.gives(token)
    service.tokens = ()
    outcome = bare("--key-type", "vm")
    if token.strip() == "t1.9euelZq":  # What surrounds a key is dropped, wherever it comes from.
        assert outcome.code == 77
        return
    assert (outcome.code, outcome.out, service.calls) == (78, "", [])
    assert re.fullmatch(r"upload_grpc: .*VM's metadata service.*\n", outcome.err)
    assert "t1.9euelZq" not in outcome.err


# --- Keys and tokens in a file that changes during a run ----------------------------------------


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("old-key\n")
    return path


@contextlib.contextmanager
def rewritten(service: StandIn, path: Path, *contents: str | None) -> Iterator[None]:
    """Write the next content to a file whenever the service is called; None: remove it."""
    left = list(contents)

    class Calls(list[Call]):
        def append(self, received: Call) -> None:
            super().append(received)
            if left:
                content = left.pop(0)
                path.unlink() if content is None else path.write_text(content)

    service.calls = Calls()
    yield


def headers(service: StandIn) -> list[str]:
    return [str(received.metadata["authorization"]) for received in service.calls]


@pytest.mark.parametrize("way", WAYS)
def test_a_key_that_was_rewritten_is_read_again(
    bare: Bare, service: StandIn, key_file: Path, way: str
) -> None:
    service.keys = {"new-key"}
    with rewritten(service, key_file, "new-key\n"):
        assert bare("--key-file", key_file, *WAYS[way]).code == 0
    assert headers(service) == ["Api-Key old-key", "Api-Key new-key"]


def test_a_token_may_take_a_keys_place(bare: Bare, service: StandIn, key_file: Path) -> None:
    service.tokens = {FIRST}
    with rewritten(service, key_file, FIRST):
        assert bare("--key-file", key_file).code == 0
    assert headers(service) == ["Api-Key old-key", f"Bearer {FIRST}"]


def test_after_two_that_are_refused_the_run_ends(
    bare: Bare, service: StandIn, key_file: Path, tmp_path: Path
) -> None:
    service.keys = {"third-key"}
    paths = [a_call(tmp_path, number) for number in range(3)]
    with rewritten(service, key_file, "new-key", "third-key"):
        outcome = bare("--key-file", key_file, "--jobs", 1, paths=paths)
    assert (outcome.code, outcome.out) == (77, "")
    assert headers(service) == ["Api-Key old-key", "Api-Key new-key"]
    assert "old-key" not in outcome.err and "new-key" not in outcome.err


@pytest.mark.parametrize("place", ["--key", "--key-file", "API_KEY"])
def test_one_that_did_not_change_is_not_tried_twice(
    bare: Bare, service: StandIn, key_file: Path, place: str
) -> None:
    if place == "API_KEY":
        os.environ[place] = "old-key"
        outcome = bare()
    else:
        outcome = bare(place, key_file if place == "--key-file" else "old-key")
    assert (outcome.code, outcome.out) == (77, "")
    assert headers(service) == ["Api-Key old-key"]
    assert "check the key" in outcome.err


def test_a_file_that_went_away_is_named(bare: Bare, service: StandIn, key_file: Path) -> None:
    with rewritten(service, key_file, None):
        outcome = bare("--key-file", key_file)
    assert outcome.code == 78
    assert f"--key-file {key_file} cannot be read: No such file" in outcome.err
    assert len(service.calls) == 1
