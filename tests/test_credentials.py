"""Where the API key or IAM token comes from, what it may look like, and that nobody sees it."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, SupportsIndex

import grpc
import pytest
from conftest import Outcome, start
from fault_proxy import HttpProxy
from stand_in import Fail, StandIn

import upload_grpc

# As the service's keys look; nothing else on a command line here contains it.
SECRET = "AQVNyq6vB3fXcZ0sJt_8wLd-Gh2"
TOKEN = f"t1.9euelZ{SECRET}"

Bare = Callable[..., Outcome]


@pytest.fixture
def everyone(service: StandIn) -> StandIn:
    """Let every key and token in."""
    service.keys = service.tokens = None
    return service


def enlarge(call: Path) -> None:
    """Make a recording so large, of silence, that it is still under way when a call fails."""
    size_bytes = 60_000_000
    head = bytearray(call.read_bytes()[:44])
    head[4:8] = (size_bytes - 8).to_bytes(4, "little")
    head[40:44] = (size_bytes - 44).to_bytes(4, "little")
    call.write_bytes(head)
    os.truncate(call, size_bytes)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(random, "uniform", lambda lowest, highest: 0.0)


def addressed(service: StandIn, call: Path) -> tuple[object, ...]:
    """Answer a command line that lacks nothing but a credential."""
    return (
        *("--audio-path", call, "--connection-id", "connection-1"),
        *("--endpoint", service.endpoint, "--ca-file", service.ca_file),
    )


@pytest.fixture
def bare(service: StandIn, call: Path, capfd: pytest.CaptureFixture[str]) -> Bare:
    """Call main() with some words and no credential but theirs, and these variables."""

    def run(*words: object, **environment: str) -> Outcome:
        os.environ.update(environment)
        code = upload_grpc.main([str(word) for word in (*addressed(service, call), *words)])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def authorization(service: StandIn) -> str | bytes:
    """Answer the header of the only call there was."""
    [received] = service.calls
    return received.metadata["authorization"]


def assert_refused(outcome: Outcome, service: StandIn, *texts: str) -> None:
    """One line says all that, without the secret; the service was not spoken to."""
    assert (outcome.code, outcome.out) == (78, "")
    assert re.fullmatch(r"upload_grpc: .*\n", outcome.err)
    for text in texts:
        assert text in outcome.err
    assert service.calls == []


# --- Where it comes from --------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (("--key", "--key-file", "API_KEY", "IAM_TOKEN"), "Api-Key of-key"),
        (("--key-file", "API_KEY", "IAM_TOKEN"), "Api-Key of-key-file"),
        (("API_KEY", "IAM_TOKEN"), "Api-Key of-API_KEY"),
        (("IAM_TOKEN",), "Bearer of-IAM_TOKEN"),
    ],
    ids=["--key", "--key-file", "API_KEY", "IAM_TOKEN"],
)
def test_the_first_of_four_places_counts(
    bare: Bare, everyone: StandIn, tmp_path: Path, given: tuple[str, ...], taken: str
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("of-key-file")
    words = {"--key": ("--key", "of-key"), "--key-file": ("--key-file", key_file)}
    environment = {name: f"of-{name}" for name in given if name not in words}
    outcome = bare(*(word for name in given for word in words.get(name, ())), **environment)
    assert (outcome.code, outcome.err) == (0, "")
    assert authorization(everyone) == taken


def test_an_empty_variable_is_none(bare: Bare, everyone: StandIn) -> None:
    assert bare(API_KEY=" ", IAM_TOKEN=TOKEN).code == 0
    assert authorization(everyone) == f"Bearer {TOKEN}"


def test_without_any_the_line_says_how_to_give_one(bare: Bare, service: StandIn) -> None:
    assert_refused(bare(), service, "--key-file", "API_KEY", "IAM_TOKEN", "--key ")


def test_an_empty_key_is_an_error_even_where_another_is_there(bare: Bare, service: StandIn) -> None:
    """As with `--key "${API_KEY}"`, where API_KEY was never exported."""
    outcome = bare("--key", "", IAM_TOKEN=TOKEN)
    assert_refused(outcome, service, "--key is empty", "--key-file")


# --- Its kind -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "environment", "header"),
    [
        (("--key", SECRET), {}, f"Api-Key {SECRET}"),
        (("--key", TOKEN), {}, f"Bearer {TOKEN}"),
        (("--key", TOKEN, "--key-type", "api-key"), {}, f"Api-Key {TOKEN}"),
        (("--key", SECRET, "--key-type", "iam-token"), {}, f"Bearer {SECRET}"),
        ((), {"API_KEY": TOKEN}, f"Bearer {TOKEN}"),
        (("--key-type", "api-key"), {"API_KEY": TOKEN}, f"Api-Key {TOKEN}"),
        ((), {"IAM_TOKEN": SECRET}, f"Bearer {SECRET}"),
        (("--key-type", "api-key"), {"IAM_TOKEN": SECRET}, f"Api-Key {SECRET}"),
    ],
)
def test_the_kind_follows_from_the_text_the_variable_or_key_type(
    bare: Bare,
    everyone: StandIn,
    words: tuple[str, ...],
    environment: dict[str, str],
    header: str,
) -> None:
    outcome = bare(*words, **environment)
    assert (outcome.code, outcome.err) == (0, "")
    assert authorization(everyone) == header


# --- What surrounds it ----------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"{SECRET}\n",
        f"{SECRET}\r\n",
        f"\t {SECRET} \n\n",
        f"\ufeff{SECRET}",
        f"\ufeff {SECRET}\r\n",
        f" \ufeff{SECRET}",
        f"\u00a0{SECRET}\u00a0",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("place", ["--key", "--key-file", "API_KEY"])
def test_white_space_and_a_byte_order_mark_around_it_are_dropped(
    bare: Bare, everyone: StandIn, tmp_path: Path, place: str, text: str
) -> None:
    if place == "--key-file":
        (tmp_path / "key").write_bytes(text.encode())
        outcome = bare("--key-file", tmp_path / "key")
    elif place == "--key":
        outcome = bare("--key", text)
    else:
        outcome = bare(API_KEY=text)
    assert (outcome.code, outcome.err) == (0, "")
    assert authorization(everyone) == f"Api-Key {SECRET}"


@pytest.mark.parametrize(
    "inside",
    [" ", "\n", "\r\n", "\t", "\u00a0", "\u200b", "\ufeff", "\u0441", "\x00", "\x1b", "\x7f"],
    ids=ascii,
)
def test_what_cannot_be_a_key_is_refused_and_not_shown(
    bare: Bare, service: StandIn, tmp_path: Path, inside: str
) -> None:
    half = len(SECRET) // 2
    text = SECRET[:half] + inside + SECRET[half:]
    (tmp_path / "key").write_bytes(text.encode())
    for words, source in (
        (("--key", text), "--key "),
        (("--key-file", tmp_path / "key"), "--key-file"),
    ):
        outcome = bare(*words)
        assert_refused(outcome, service, source, "copy the key again")
        assert SECRET[:half] not in outcome.err
        assert SECRET[half:] not in outcome.err


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \r\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (SECRET.encode("utf-16"), "not a text file"),
        (b"\x7fELF\xff\xfe", "not a text file"),
        ((SECRET + "\n" + SECRET + "\n").encode(), "a line break"),
        (b"\0" * 1_000_000, "another character"),
    ],
    ids=["empty", "white space", "BOM", "UTF-16", "binary", "two keys", "zeros"],
)
def test_a_key_file_without_a_key_is_refused(
    bare: Bare, service: StandIn, tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    assert_refused(bare("--key-file", path), service, f"--key-file {path}", reason)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("missing", "No such file or directory"),
        ("folder", "Is a directory"),
        ("loop", "Too many levels of symbolic links"),
    ],
)
def test_a_key_file_that_cannot_be_read_is_named(
    bare: Bare, service: StandIn, tmp_path: Path, what: str, reason: str
) -> None:
    path = tmp_path / what
    if what == "folder":
        path.mkdir()
    elif what == "loop":
        path.symlink_to(path)
    outcome = bare("--key-file", path, API_KEY=SECRET)
    assert_refused(outcome, service, f"--key-file {path} cannot be read: {reason}")


def test_a_pipe_can_be_the_key_file(everyone: StandIn, call: Path) -> None:
    """As with `--key-file <(vault read ...)`: it gives its bytes only once."""
    enlarge(call)
    everyone.script.append(Fail(grpc.StatusCode.UNAVAILABLE, after_bytes=0))
    reader, writer = os.pipe()
    os.write(writer, f"{SECRET}\n".encode())
    os.close(writer)
    words = ("--key-file", f"/dev/fd/{reader}", "--quiet", "--retries", 1)
    with start(*addressed(everyone, call), *words, pass_fds=(reader,)) as process:
        os.close(reader)
        out, err = process.communicate(timeout=30)
    [talk_id] = everyone.talks
    assert (process.returncode, out) == (0, f"Dialog ID: {talk_id}\n")
    assert {received.metadata["authorization"] for received in everyone.calls} == {
        f"Api-Key {SECRET}"
    }
    assert SECRET not in err


@pytest.mark.usefixtures("no_pause")
def test_a_key_file_is_read_again_for_the_next_try(
    bare: Bare, service: StandIn, call: Path, tmp_path: Path
) -> None:
    """A token that is renewed while the program runs serves the rest of the run."""
    enlarge(call)
    path = tmp_path / "key"
    path.write_text("old-key")
    service.keys = {"old-key", "new-key"}
    steps = [Fail(grpc.StatusCode.UNAVAILABLE, after_bytes=0), None]
    service.script = Renewing(steps, lambda: path.write_text("new-key"))
    assert bare("--key-file", path, "--quiet").code == 0
    assert [received.metadata["authorization"] for received in service.calls] == [
        "Api-Key old-key",
        "Api-Key new-key",
    ]


def test_a_key_that_was_renewed_is_used_at_once(
    bare: Bare, service: StandIn, tmp_path: Path
) -> None:
    """The service refuses the old one while the file has the new one already."""
    path = tmp_path / "key"
    path.write_text("old-key")
    service.keys = {"new-key"}
    service.script = Renewing([None, None], lambda: path.write_text("new-key"))
    outcome = bare("--key-file", path, "--retries", 0, "--quiet")
    [talk_id] = service.talks
    assert (outcome.code, outcome.out) == (0, f"Dialog ID: {talk_id}\n")
    assert [received.metadata["authorization"] for received in service.calls] == [
        "Api-Key old-key",
        "Api-Key new-key",
    ]


class Renewing(list[Any]):
    """A script for the service that does something as each call arrives."""

    def __init__(self, steps: list[Any], work: Callable[[], object]) -> None:
        super().__init__(steps)
        self._work = work

    def pop(self, index: SupportsIndex = -1, /) -> Any:
        self._work()
        return super().pop(index)


# --- The token of a cloud VM ----------------------------------------------------------


class VmMetadata(ThreadingHTTPServer):
    """The metadata service that a cloud VM has, on loopback; the last answer is repeated."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), VmHandler)
        self.asked: list[tuple[str, str | None]] = []  # path, Metadata-Flavor
        self.answers: list[tuple[int, bytes]] = [vm_answer(TOKEN)]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class VmHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, VmMetadata)
        server.asked.append((self.path, self.headers["Metadata-Flavor"]))
        status, body = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep stderr for the program."""


def vm_answer(token: str, expires_in: object = 43_200) -> tuple[int, bytes]:
    answer = {"access_token": token, "expires_in": expires_in, "token_type": "Bearer"}
    return 200, json.dumps(answer).encode()


@pytest.fixture
def vm() -> Iterator[VmMetadata]:
    with VmMetadata() as server:
        os.environ["YC_METADATA_ADDR"] = server.address
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_vm_gives_its_token(bare: Bare, everyone: StandIn, vm: VmMetadata) -> None:
    """Asked once, past any proxy, whatever other credentials there are."""
    with HttpProxy("502") as proxy:
        environment = {"HTTP_PROXY": proxy.url, "API_KEY": SECRET}
        outcome = bare("--key-type", "vm", **environment)
        assert proxy.targets == []
    assert (outcome.code, outcome.err) == (0, "")
    assert authorization(everyone) == f"Bearer {TOKEN}"
    path = "/computeMetadata/v1/instance/service-accounts/default/token"
    assert vm.asked == [(path, "Google")]


def test_a_vms_token_is_asked_for_again_when_the_service_refuses_it(
    bare: Bare, service: StandIn, vm: VmMetadata
) -> None:
    service.tokens = {"t1.new"}
    vm.answers = [vm_answer("t1.old"), vm_answer("t1.new")]
    outcome = bare("--key-type", "vm", "--quiet")
    assert (outcome.code, len(service.talks)) == (0, 1)
    assert [received.metadata["authorization"] for received in service.calls] == [
        "Bearer t1.old",
        "Bearer t1.new",
    ]


def test_a_vms_token_that_has_run_out_is_renewed(
    bare: Bare, everyone: StandIn, vm: VmMetadata
) -> None:
    vm.answers = [vm_answer("t1.old", 0), vm_answer("t1.new")]
    outcome = bare("--key-type", "vm")
    assert (outcome.code, outcome.err) == (0, "")
    assert authorization(everyone) == "Bearer t1.new"


@pytest.mark.parametrize(
    "answer",
    [
        (404, b"no service account"),
        (500, b""),
        (200, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"null"),
        (200, b"{}"),
        (200, b'{"access_token": null}'),
        vm_answer(TOKEN, "soon"),
        vm_answer("half\nhalf"),
        vm_answer(""),
    ],
    ids=lambda answer: f"{answer[0]} {answer[1][:30].decode()}",
)
def test_a_vm_that_gives_no_token_is_named(
    bare: Bare, service: StandIn, vm: VmMetadata, answer: tuple[int, bytes]
) -> None:
    vm.answers = [answer]
    outcome = bare("--key-type", "vm", API_KEY=SECRET)
    assert_refused(outcome, service, "metadata service")
    assert TOKEN not in outcome.err


def test_a_machine_that_is_no_cloud_vm_is_named(bare: Bare, service: StandIn) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    outcome = bare("--key-type", "vm", YC_METADATA_ADDR=address)
    assert_refused(outcome, service, f"metadata service at {address}", "--key-type vm")


# --- That nobody sees it --------------------------------------------------------------


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("words", [(), ("--verbose",), ("--format", "json", "--verbose")])
@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (None, 0),
        (grpc.StatusCode.UNAUTHENTICATED, 77),
        (grpc.StatusCode.INVALID_ARGUMENT, 65),
        (grpc.StatusCode.UNAVAILABLE, 75),
        (grpc.StatusCode.NOT_FOUND, 78),
    ],
    ids=lambda value: value.name if isinstance(value, grpc.StatusCode) else "",
)
def test_a_service_that_repeats_the_key_cannot_make_us_show_it(
    bare: Bare,
    everyone: StandIn,
    call: Path,
    words: tuple[str, ...],
    code: grpc.StatusCode | None,
    exit_code: int,
) -> None:
    echo = f"authorization 'Api-Key {SECRET}' at {SECRET}"
    if code:
        enlarge(call)
        step = Fail(code, echo, after_bytes=0, trailing=(("x-request-id", SECRET),))
        everyone.script += [step, step]
    outcome = bare("--key", SECRET, "--retries", 1, *words)
    assert outcome.code == exit_code
    assert everyone.calls
    assert SECRET not in outcome.out + outcome.err
    if code:
        assert "authorization 'Api-Key ***' at ***" in outcome.err


def test_a_key_with_a_quotation_mark_is_masked_in_json_too(bare: Bare, everyone: StandIn) -> None:
    secret = 'half-"one\\half-two'
    everyone.script.append(Fail(grpc.StatusCode.NOT_FOUND, f"key {secret} is bad"))
    outcome = bare("--key", secret, "--format", "json")
    assert outcome.code == 78
    assert json.loads(outcome.out)["error"].startswith("key *** is bad")
    assert "half-" not in outcome.out + outcome.err


def test_the_ledger_does_not_keep_it(bare: Bare, everyone: StandIn, tmp_path: Path) -> None:
    everyone.script.append(Fail(grpc.StatusCode.NOT_FOUND, f"key {SECRET} is bad"))
    outcome = bare("--key", SECRET, "--ledger", tmp_path / "calls.sqlite")
    assert outcome.code == 78
    assert (tmp_path / "calls.sqlite").stat().st_size
    for path in tmp_path.glob("calls.sqlite*"):
        assert SECRET.encode() not in path.read_bytes()


def test_the_traceback_of_a_bug_does_not_show_it(
    bare: Bare, service: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(f"as if something had held {SECRET}")

    monkeypatch.setattr(upload_grpc, "check_recording", broken)
    outcome = bare("--key", SECRET)
    assert (outcome.code, outcome.out) == (70, "")
    assert "Traceback" in outcome.err
    assert "RuntimeError: as if something had held ***" in outcome.err
    assert "this is a bug" in outcome.err
    assert SECRET not in outcome.err
    assert service.calls == []


@pytest.mark.parametrize(
    "words",
    [
        (SECRET,),
        ("-k", SECRET),
        (f"-k{SECRET}",),
        ("--token", SECRET),
        (f"--token={SECRET}",),
        ("--ke", SECRET),
        (f"--ke={SECRET}",),
        (f"--key{SECRET}",),
        (f"--api-key:{SECRET}",),
        ("--key-type", SECRET),
        ("--key-type", f"it's ({SECRET})"),
        (f"--key-type={SECRET} (choose from",),
        ("--jobs", SECRET),
        (f"--jobs=1 ({SECRET}",),
        ("--retries", f"'{SECRET}'"),
        ("--timeout", SECRET),
        ("--format", SECRET),
        (f"--quiet={SECRET}",),
        (f"--single-message={SECRET}",),
        (f"--help={SECRET}",),
    ],
    ids=lambda words: " ".join(words).replace(SECRET, "KEY"),
)
def test_a_key_in_the_wrong_place_is_not_repeated(
    service: StandIn,
    call: Path,
    capfd: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:
    # Before the recordings: --audio-path takes every word that follows.
    given = [*words, *map(str, addressed(service, call))]
    with pytest.raises(SystemExit) as leaving:
        upload_grpc.main(given)
    captured = capfd.readouterr()
    assert (leaving.value.code, captured.out) == (2, "")
    assert "error: " in captured.err
    assert SECRET not in captured.err
    assert service.calls == []


def test_nothing_that_grpc_logs_shows_it(everyone: StandIn, call: Path) -> None:
    """A key that grpc itself would refuse never reaches it; any other it does not log."""
    environment = {"GRPC_VERBOSITY": "ERROR", "API_KEY": SECRET}
    with start(*addressed(everyone, call), "--verbose", env=environment) as process:
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert SECRET not in out + err
