"""The command as people and cron run it: what it prints, what it answers, what it needs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tracemalloc
import uuid
import venv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import KEY, ROOT, SAMPLE, SCRIPT, Outcome, Run, arguments, make_wav, start
from fault_proxy import HttpProxy
from stand_in import SINGLE_MESSAGE_LIMIT_BYTES, AnswerEarly, EmptyAnswer, Fail, StandIn

import upload_grpc

STATUS = grpc.StatusCode
ENDPOINT_HOST = "api.speechsense.yandexcloud.net"
UUID = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


@pytest.fixture
def call(tmp_path: Path) -> Path:
    """Make a recording with metadata of its own."""
    path = make_wav(tmp_path / "call.wav", 600_000)
    path.with_suffix(".json").write_text('{"language": "ru-RU"}')
    return path


@pytest.fixture
def large_call(call: Path) -> Path:
    """Make it so large that it is still under way when a call is refused."""
    return sparse_wav(call, 60_000_000)


def sparse_wav(path: Path, size_bytes: int) -> Path:
    """Write a recording of a size that takes no room on the disk."""
    make_wav(path, 4)
    head = bytearray(path.read_bytes()[:44])
    head[4:8] = (size_bytes - 8).to_bytes(4, "little")
    head[40:44] = (size_bytes - 44).to_bytes(4, "little")
    path.write_bytes(head)
    os.truncate(path, size_bytes)
    return path


@pytest.fixture
def public_service(tmp_path: Path) -> Iterator[tuple[StandIn, dict[str, str]]]:
    """Serve under the name of the real service; answer the variables that lead there."""
    service = StandIn(tmp_path / "store")
    certificate = service.ca.issue_cert(ENDPOINT_HOST)
    chain = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
    service._credentials = grpc.ssl_server_credentials(
        [(certificate.private_key_pem.bytes(), chain)]
    )
    with service, HttpProxy(upstream_port=service.port) as proxy:
        yield (
            service,
            {
                "HTTPS_PROXY": proxy.url,
                "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(service.ca_file),
            },
        )


def read_help() -> str:
    with start("--help") as process:
        return process.communicate(timeout=30)[0]


# --- The guide ------------------------------------------------------------------------


def test_the_guides_command_works_as_it_stands(
    public_service: tuple[StandIn, dict[str, str]], tmp_path: Path
) -> None:
    """Typed into a shell, with API_KEY exported, in a folder that is not the program's."""
    service, environment = public_service
    shutil.copy(SCRIPT, tmp_path)
    (tmp_path / "generated").symlink_to(ROOT / "generated")
    shutil.copy(SAMPLE, tmp_path / "audio_file")
    shutil.copy(ROOT / "metadata_example.json", tmp_path)
    guide = r"""
        export API_KEY=demo-key
        python3 upload_grpc.py \
           --audio-path audio_file \
           --meta-path metadata_example.json \
           --connection-id f3fsomeconnection \
           --key ${API_KEY}
    """
    # A link to a Python of a virtual environment does not know of its packages.
    python = f'python3() {{ "{sys.executable}" "$@"; }}\n'
    finished = subprocess.run(
        ["sh", "-c", python + guide],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    [talk] = service.talks.values()
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout == f"Dialog ID: {talk.talk_id}\n"
    assert (talk.connection_id, talk.method) == ("f3fsomeconnection", "UploadAsStream")
    assert talk.fields["client_name"] == "Пётр Соколов"
    assert talk.audio is not None
    assert talk.audio.read_bytes() == SAMPLE.read_bytes()


def test_the_guides_functions_can_be_called(
    public_service: tuple[StandIn, dict[str, str]], call: Path
) -> None:
    service, environment = public_service
    os.environ.update(environment)
    talk_id = upload_grpc.upload_talk(
        connection_id="connection-1", metadata={"a": "b"}, api_key=KEY, audio_path=str(call)
    )
    talk = service.talks[talk_id]
    assert talk.connection_id == "connection-1"
    assert talk.fields["a"] == "b"
    assert talk.size == call.stat().st_size


def test_the_guides_functions_raise_what_went_wrong(
    public_service: tuple[StandIn, dict[str, str]], call: Path
) -> None:
    service, environment = public_service
    os.environ.update(environment)
    with pytest.raises(upload_grpc.UploadError, match="unknown API key") as raised:
        upload_grpc.upload_talk("connection-1", {}, "another-key", str(call))
    assert raised.value.exit_code == 77
    assert service.talks == {}


@pytest.mark.parametrize("connection_id", [42, "connection-1"])
def test_the_guides_iterator_yields_metadata_format_and_chunks(
    call: Path, connection_id: Any
) -> None:
    requests = list(
        upload_grpc.upload_audio_requests_iterator(connection_id, {"a": "b"}, str(call))
    )
    assert requests[0].metadata.connection_id == str(connection_id)
    assert requests[0].metadata.fields == {"a": "b"}
    assert requests[1].audio.audio_metadata.container_audio.container_audio_type == 1
    chunks = [request.audio.chunk.data for request in requests[2:]]
    assert b"".join(chunks) == call.read_bytes()
    assert max(map(len, chunks)) <= 1024 * 1024


# --- What the service receives --------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "method"), [((), "UploadAsStream"), (("--single-message",), "Upload")]
)
def test_both_ways_bring_the_same(
    command: Run, service: StandIn, tmp_path: Path, words: tuple[str, ...], method: str
) -> None:
    make_wav(tmp_path / "call.wav", 600_000)
    (tmp_path / "call.json").write_text('{"language": "ru-RU"}')
    outcome = command("--audio-path", "call.wav", *words, cwd=tmp_path)
    [talk] = service.talks.values()
    assert outcome == Outcome(0, f"Dialog ID: {talk.talk_id}\n", "")
    assert (talk.method, talk.connection_id) == (method, "connection-1")
    assert talk.fields == {"language": "ru-RU"}
    assert talk.audio_format.container_audio.container_audio_type == 1
    assert talk.audio is not None
    assert talk.audio.read_bytes() == (tmp_path / "call.wav").read_bytes()


def test_a_stream_keeps_the_documented_order(upload: Run, service: StandIn, call: Path) -> None:
    assert upload("--audio-path", call).code == 0
    [received] = service.calls
    assert received.messages[:2] == ["metadata", "format"]
    sizes = [int(message.removeprefix("chunk:")) for message in received.messages[2:]]
    assert sum(sizes) == call.stat().st_size
    assert max(sizes) < 4 * 1024 * 1024  # What a gRPC server takes by default.
    assert received.half_closed


def test_a_call_carries_an_id_of_its_own_and_the_programs_name(
    upload: Run, service: StandIn, large_call: Path
) -> None:
    service.script.append(Fail(STATUS.UNAVAILABLE, after_bytes=0))
    other = make_wav(large_call.with_name("other.wav"), 1_000)
    words = ("--jobs", 1, "--retries", 1, "--format", "json")
    outcome = upload("--audio-path", large_call, other, *words)
    assert outcome.code == 0
    ids = [str(received.metadata["x-client-request-id"]) for received in service.calls]
    assert len(set(ids)) == len(ids) == 3
    for text in ids:
        assert uuid.UUID(text).version == 4
    assert {json.loads(line)["request_id"] for line in outcome.out.splitlines()} <= set(ids)
    for received in service.calls:
        agent = f"upload_grpc/{upload_grpc.__version__} grpc-python"
        assert str(received.metadata["user-agent"]).startswith(agent)


def test_a_single_message_over_128_mb_is_refused_before_it_is_read(
    upload: Run, service: StandIn, tmp_path: Path
) -> None:
    path = sparse_wav(tmp_path / "call.wav", SINGLE_MESSAGE_LIMIT_BYTES)
    tracemalloc.start()
    try:
        outcome = upload("--audio-path", path, "--single-message", "--quiet")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (outcome.code, outcome.out) == (65, "")
    assert re.fullmatch(
        f"upload_grpc: {path}: .*134,217,728.*leave out --single-message.*\n", outcome.err
    )
    assert service.calls == []
    assert peak_bytes < SINGLE_MESSAGE_LIMIT_BYTES / 4


def test_a_single_message_just_under_128_mb_is_not(upload: Run, tmp_path: Path) -> None:
    path = sparse_wav(tmp_path / "call.wav", SINGLE_MESSAGE_LIMIT_BYTES - 2)
    outcome = upload("--audio-path", path, "--single-message", "--quiet", "--dry-run")
    assert (outcome.code, outcome.err) == (0, "")
    assert "as a single message" in outcome.out


# --- What is printed ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "way"), [((), "as a stream"), (("--single-message",), "as a single message")]
)
def test_a_dry_run_sends_nothing(
    upload: Run, service: StandIn, call: Path, words: tuple[str, ...], way: str
) -> None:
    outcome = upload("--audio-path", call, "--dry-run", *words)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"{call}: would be sent: WAV, ")
    assert f"{call.stat().st_size:,} bytes {way}" in outcome.out
    assert '{"language": "ru-RU"}' in outcome.out
    assert service.calls == []


def test_a_json_line_has_these_keys(upload: Run, service: StandIn, call: Path) -> None:
    missing = call.with_name("missing.wav")
    outcome = upload("--audio-path", call, missing, "--format", "json", "--quiet")
    assert outcome.code == 66
    by_path = {answer["path"]: answer for answer in map(json.loads, outcome.out.splitlines())}
    done, failed = by_path[str(call)], by_path[str(missing)]
    [talk_id] = service.talks
    [received] = service.calls

    assert done.pop("seconds") >= 0
    assert {
        "schema_version": 1,
        "path": str(call),
        "outcome": "uploaded",
        "talk_id": talk_id,
        "error": None,
        "exit_code": 0,
        "request_id": received.metadata["x-client-request-id"],
        "bytes": call.stat().st_size,
        "tries": 1,
    }.items() <= done.items()
    assert {
        "outcome": "failed",
        "talk_id": None,
        "exit_code": 66,
        "request_id": None,
        "tries": 0,
    }.items() <= failed.items()
    assert "cannot be read: No such file or directory" in failed["error"]
    assert done["description"] is None
    assert set(failed) == {*done, "seconds"}


def test_a_json_dry_run_says_what_was_checked(upload: Run, call: Path) -> None:
    outcome = upload("--audio-path", call, "--format", "json", "--dry-run")
    assert (outcome.code, outcome.err) == (0, "")
    answer = json.loads(outcome.out)
    assert (answer["outcome"], answer["talk_id"]) == ("checked", None)
    assert answer["description"].startswith("WAV, ")
    assert answer["description"].endswith('as a stream, metadata {"language": "ru-RU"}')


def test_several_recordings_are_named_on_stdout(upload: Run, service: StandIn, call: Path) -> None:
    other = make_wav(call.with_name("other.wav"), 1_000)
    outcome = upload("--audio-path", call, other, "--meta-path", call.with_suffix(".json"))
    assert outcome.code == 0
    names = {talk.size: talk.talk_id for talk in service.talks.values()}
    assert sorted(outcome.out.splitlines()) == [
        f"{path}: Dialog ID: {names[path.stat().st_size]}" for path in (call, other)
    ]
    assert "2 uploaded" in outcome.err


def test_quiet_still_names_what_failed(upload: Run, service: StandIn, call: Path) -> None:
    bare = make_wav(call.with_name("without metadata.wav"), 1_000)
    missing = call.with_name("missing.wav")
    outcome = upload("--audio-path", bare, missing, "--quiet")
    assert outcome.code == 66
    assert re.fullmatch(f"upload_grpc: {missing}: cannot be read.*\n", outcome.err)
    assert len(service.talks) == 1


def test_verbose_shows_the_ids_of_each_call(upload: Run, service: StandIn, call: Path) -> None:
    outcome = upload("--audio-path", call, "--verbose")
    [received] = service.calls
    [talk_id] = service.talks
    assert (outcome.code, outcome.out) == (0, f"Dialog ID: {talk_id}\n")
    for text in (
        str(call),
        received.metadata["x-client-request-id"],
        received.request_id,
        received.trace_id,
    ):
        assert str(text) in outcome.err
    assert all(line.startswith("upload_grpc: ") for line in outcome.err.splitlines())


def test_no_control_characters_where_there_is_no_terminal(
    command: Run, service: StandIn, large_call: Path
) -> None:
    service.script.append(Fail(STATUS.UNAVAILABLE, "\x1b[31mred\r\n", after_bytes=0))
    outcome = command("--audio-path", large_call, "--verbose", "--retries", 1)
    assert outcome.code == 0
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", outcome.out + outcome.err)


def test_version() -> None:
    with start("--version") as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert re.fullmatch(r"upload_grpc \d+\.\d+\.\d+\n", out)


def test_help_shows_an_example_for_the_shell_and_one_for_cron() -> None:
    text = read_help()
    for option in ("--audio-path call.wav", "--connection-id ID", "--key ${API_KEY}"):
        assert option in text.partition("from a shell:")[2].partition("from cron:")[0]
    assert re.search(r"\n +[\d*/]+( [\d*/]+){4} +\S*upload_grpc.py .*(\n .*)*--key-file", text)


# --- Exit codes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (STATUS.UNAUTHENTICATED, 77, "check the key"),
        (STATUS.PERMISSION_DENIED, 77, "speech-sense.data.editor"),
        (STATUS.NOT_FOUND, 78, "check --connection-id"),
        (STATUS.UNIMPLEMENTED, 78, "check --endpoint"),
        (STATUS.INVALID_ARGUMENT, 65, "mend the recording or its metadata"),
        (STATUS.FAILED_PRECONDITION, 65, "mend"),
        (STATUS.OUT_OF_RANGE, 65, "mend"),
        (STATUS.ALREADY_EXISTS, 65, "console"),
        (STATUS.RESOURCE_EXHAUSTED, 75, "run again later"),
        (STATUS.UNAVAILABLE, 75, "run again"),
        (STATUS.ABORTED, 75, "run again"),
        (STATUS.CANCELLED, 75, "run again"),
        (STATUS.DEADLINE_EXCEEDED, 75, "run again"),
        (STATUS.INTERNAL, 75, "run again"),
        (STATUS.DATA_LOSS, 75, "run again"),
        (STATUS.UNKNOWN, 75, "run again"),
    ],
    ids=lambda value: value.name if isinstance(value, STATUS) else "",
)
def test_a_status_ends_in_one_line_with_everything_in_it(
    upload: Run, service: StandIn, large_call: Path, status: grpc.StatusCode, code: int, advice: str
) -> None:
    service.script.append(Fail(status, "said the service", after_bytes=0))
    outcome = upload("--audio-path", large_call, "--retries", 0)
    assert (outcome.code, outcome.out) == (code, "")
    [received] = service.calls
    line = re.fullmatch(
        f"upload_grpc: {large_call}: said the service "
        rf"\({status.name}, request (?P<client>{UUID}), (?P<server>[^)]*)\); (?P<advice>.*)\n",
        outcome.err,
    )
    assert line, outcome.err
    assert line["client"] == received.metadata["x-client-request-id"]
    assert f"x-request-id {received.request_id}" in line["server"]
    assert f"x-server-trace-id {received.trace_id}" in line["server"]
    assert advice in line["advice"]
    assert service.talks == {}


@pytest.mark.parametrize(
    ("step", "cause"),
    [
        (Fail(STATUS.INTERNAL, "broke", store=True), "sent, but not confirmed: broke"),
        (Fail(STATUS.DEADLINE_EXCEEDED, "late"), "sent, but not confirmed: late"),
        (EmptyAnswer(store=True), "answered without"),
        (AnswerEarly(after_bytes=1), "before it had the whole file"),
    ],
    ids=["stored, then failed", "failed", "no dialog ID", "answered early"],
)
def test_an_answer_that_is_lost_ends_with_76(
    upload: Run, service: StandIn, tmp_path: Path, step: Fail | EmptyAnswer, cause: str
) -> None:
    call = make_wav(tmp_path / "call.wav", 20_000_000)
    service.script.append(step)
    outcome = upload("--audio-path", call, "--quiet")
    assert (outcome.code, outcome.out) == (76, "")
    assert re.fullmatch(
        f"upload_grpc: {call}: .*{cause}.*look for it in the console.*\n", outcome.err
    )
    assert len(service.calls) == 1


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("missing.wav", "No such file or directory"),
        ("loop.wav", "Too many levels of symbolic links"),
        ("fifo.wav", "not a regular file"),
        ("call.wav/below", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("a\0b", "null (byte|character).*"),
    ],
    ids=ascii,
)
def test_a_recording_that_cannot_be_read_ends_with_66(
    upload: Run,
    service: StandIn,
    call: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    reason: str,
) -> None:
    monkeypatch.chdir(call.parent)
    os.mkfifo("fifo.wav")
    os.symlink("loop.wav", "loop.wav")
    outcome = upload("--audio-path", what, "--quiet")
    assert (outcome.code, outcome.out) == (66, "")
    assert re.fullmatch(f"upload_grpc: .*: .*{reason}; .*\n", outcome.err)
    assert service.calls == []


def test_a_recording_without_permission_ends_with_66(
    upload: Run, service: StandIn, call: Path
) -> None:
    call.chmod(0)
    ours = os.geteuid()
    with contextlib.ExitStack() as undo:
        if ours == 0:  # Who may read everything: be somebody else for a moment.
            for folder in call.parents[:3]:
                undo.callback(folder.chmod, folder.stat().st_mode)
                folder.chmod(0o755)
            undo.callback(os.seteuid, 0)
            os.seteuid(65534)
        outcome = upload("--audio-path", call, "--quiet")
    assert (outcome.code, outcome.out) == (66, "")
    assert re.fullmatch(f"upload_grpc: {call}: .*Permission denied; .*\n", outcome.err)
    assert service.calls == []


def test_a_bug_ends_with_70_and_its_traceback(
    upload: Run, service: StandIn, call: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("as a bug would")

    monkeypatch.setattr(upload_grpc, "talk_metadata", broken)
    outcome = upload("--audio-path", call)
    assert (outcome.code, outcome.out) == (70, "")
    lines = outcome.err.splitlines()
    assert all(line.startswith("upload_grpc: ") for line in lines)
    assert lines[0].startswith(f"upload_grpc: {call}: the run ended while it was under way; ")
    assert "Traceback" in lines[1]
    assert "ZeroDivisionError: as a bug would" in outcome.err
    assert "this is a bug" in lines[-1]
    assert service.talks == {}


VM = ("--key-type", "vm")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "are required: "),
        (("--audio-path", "--connection-id", "1"), "--audio-path: expected at least one"),
        (("--audio-path", "a.wav"), "--connection-id"),
        (("--audio-path", "a.wav", "--connection-id", " "), "--connection-id is empty"),
        (("--audio-path", "a.wav", "--connection-id", "\udcff"), "--connection-id"),
        (("--audio-path", "a.wav", "--connection-id", "1", "--key"), "--key: expected one"),
        (("--audio-path", "a.wav", "--connection-id", "1", "--bogus"), "--bogus"),
        (("--audio-path", "a.wav", "--connection-id", "1", "--retries", "-1"), "--retries"),
        (("--audio-path", "a.wav", "--connection-id", "1", "--retries", "1.5"), "--retries"),
        (("--audio-path", "a.wav", "--connection-id", "1", "--jobs", "0"), "--jobs"),
        (("--audio-path", "a.wav", "--connection-id", "1", "--timeout", "0"), "--timeout"),
        (("--audio-path", "a.wav", "--connection-id", "1", "--timeout", "nan"), "--timeout"),
        (("--audio-path", "a.wav", "--connection-id", "1", "--min-age", "-5"), "--min-age"),
        (("--audio-path", "a.wav", "--connection-id", "1", "--format", "xml"), "--format"),
        (("--audio-path", "a.wav", "--connection-id", "1", "--dry"), "--dry"),
        (("--audio-path", "", "--connection-id", "1"), "--audio-path is empty"),
        (("--audio-path", "a.wav", "", "--connection-id", "1"), "--audio-path is empty"),
        (("--audio-path", "a.wav", "--connection-id", "1", "--key-file", ""), "--key-file"),
        (("--audio-path", "a.wav", "--connection-id", "1", "--ledger", ""), "--ledger"),
        (("--audio-path", "a.wav", "--connection-id", "1", "--ca-file", ""), "--ca-file"),
        (("--audio-path", "a.wav", "--connection-id", "1", "--meta-path", ""), "--meta-path"),
        (("--audio-path", "a.wav", "--connection-id", "1", "--retry-unknown"), "--ledger"),
        (("--audio-path", "a.wav", "--connection-id", "1", *VM, "--key", "x"), "--key-type vm"),
        (
            ("--audio-path", "a.wav", "--connection-id", "1", *VM, "--key-file", "x"),
            "--key-type vm",
        ),
    ],
    ids=lambda words: ascii(" ".join(words[4:] or words)) if isinstance(words, tuple) else "",
)
def test_a_wrong_command_line_ends_with_2(
    capfd: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit) as leaving:
        upload_grpc.main(words)
    captured = capfd.readouterr()
    assert (leaving.value.code, captured.out) == (2, "")
    assert captured.err.startswith("usage: upload_grpc.py ")
    last = captured.err.splitlines()[-1]
    assert last.startswith("upload_grpc.py: error: ")
    assert said in last


def test_an_unknown_options_value_is_not_repeated(command: Run, service: StandIn) -> None:
    outcome = command("--pass-word=hunter2", "hunter3", "--audio-path", "a.wav")
    assert (outcome.code, outcome.out) == (2, "")
    assert "--pass-word" in outcome.err
    assert "hunter" not in outcome.err
    assert service.calls == []


# --- A stdout or stderr that cannot be written ----------------------------------------


def run_under(redirection: str, *words: object, **options: Any) -> Outcome:
    """Run the command as a shell would, with a redirection."""
    finished = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, SCRIPT, *map(str, words)],
        **{"stdout": subprocess.PIPE, **options},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=30,
    )
    return Outcome(finished.returncode, finished.stdout or "", finished.stderr)


def assert_id_on_stderr(outcome: Outcome, service: StandIn) -> None:
    [talk_id] = service.talks
    assert (outcome.code, outcome.out) == (74, "")
    assert "stdout cannot be written" in outcome.err
    assert talk_id in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("words", [(), ("--format", "json")], ids=["text", "json"])
def test_a_dialog_id_that_stdout_does_not_take_goes_to_stderr(
    service: StandIn, call: Path, words: tuple[str, ...]
) -> None:
    given = arguments(service, "--audio-path", call, "--quiet", *words)
    assert_id_on_stderr(run_under(">/dev/full", *given), service)


@pytest.mark.parametrize("redirection", [">&-", "<&- >&-"])
def test_without_a_stdout_nothing_is_sent(service: StandIn, call: Path, redirection: str) -> None:
    outcome = run_under(redirection, *arguments(service, "--audio-path", call))
    assert (outcome.code, outcome.out) == (74, "")
    assert re.fullmatch("upload_grpc: stdout is closed.*\n", outcome.err)
    assert service.calls == []


def test_a_pipe_that_nobody_reads_is_a_stdout_that_cannot_be_written(
    service: StandIn, call: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        outcome = run_under("", *arguments(service, "--audio-path", call), stdout=writer)
    finally:
        os.close(writer)
    assert_id_on_stderr(outcome, service)


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_without_stderr_results_and_exit_codes_stay_the_same(
    service: StandIn, call: Path, redirection: str
) -> None:
    done = run_under(redirection, *arguments(service, "--audio-path", call, "--verbose"))
    [talk_id] = service.talks
    assert done == Outcome(0, f"Dialog ID: {talk_id}\n", "")
    missing = run_under(redirection, *arguments(service, "--audio-path", "missing.wav"))
    assert missing == Outcome(66, "", "")


def test_a_ledger_that_takes_the_place_of_stderr_stays_whole(
    service: StandIn, call: Path, tmp_path: Path
) -> None:
    given = arguments(service, "--audio-path", call, "--ledger", tmp_path / "calls.sqlite")
    first = run_under("<&- 2>&-", *given, "--verbose")
    again = run_under("", *given)
    assert (first.code, again.code, again.err) == (0, 0, "")
    assert first.out == again.out
    assert len(service.calls) == 1


# --- Packages and stubs ---------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Copy the program and its stubs to a folder of another name."""
    tree = tmp_path / "the program's folder"
    tree.mkdir()
    shutil.copy(SCRIPT, tree)
    shutil.copytree(ROOT / "generated", tree / "generated")
    return tree


def run_in(tree: Path, *words: object, python: Sequence[object] = (sys.executable,)) -> Outcome:
    """Run a copy of the program, from the root folder."""
    finished = subprocess.run(
        [*map(str, python), str(tree / SCRIPT.name), *map(str, words)],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    return Outcome(finished.returncode, finished.stdout, finished.stderr)


def no_folder(generated: Path) -> None:
    shutil.rmtree(generated)


def only_what_is_in_the_repository(generated: Path) -> None:
    shutil.rmtree(generated / "yandex")


def one_missing(generated: Path) -> None:
    (generated / "yandex/cloud/speechsense/v1/audio_pb2.py").unlink()


def cut_short(generated: Path) -> None:
    path = generated / "yandex/cloud/speechsense/v1/talk_service_pb2.py"
    path.write_bytes(path.read_bytes()[:2500])


def of_a_newer_protobuf(generated: Path) -> None:
    for path in generated.rglob("*_pb2.py"):
        newer = re.sub(r"(?<=Domain\.PUBLIC,)\s*\d+", "99", path.read_text("utf-8"))
        path.write_text(newer, "utf-8")


def of_a_newer_grpc(generated: Path) -> None:
    path = generated / "yandex/cloud/speechsense/v1/talk_service_pb2_grpc.py"
    newer = re.sub(
        "GRPC_GENERATED_VERSION = .*", "GRPC_GENERATED_VERSION = '99.0.0'", path.read_text()
    )
    path.write_text(newer)


@pytest.mark.parametrize(
    "spoil",
    [
        no_folder,
        only_what_is_in_the_repository,
        one_missing,
        cut_short,
        of_a_newer_protobuf,
        of_a_newer_grpc,
    ],
)
def test_stubs_that_do_not_load_end_with_78_and_the_command_that_mends_it(
    tree: Path, spoil: Callable[[Path], None]
) -> None:
    assert run_in(tree, "--version").code == 0
    spoil(tree / "generated")
    assert_mendable(run_in(tree, "--version"), tree)


def assert_mendable(outcome: Outcome, tree: Path) -> None:
    """One line names the command, for a shell in any folder."""
    assert (outcome.code, outcome.out) == (78, "")
    line = re.fullmatch(r"upload_grpc: .*; run: (make .*)\n", outcome.err)
    assert line, outcome.err
    words = shlex.split(line[1])
    assert words[:3] == ["make", "-C", str(tree)]
    help_text = (ROOT / "Makefile").read_text()
    for target in words[3:]:
        assert re.search(f"^{target}:", help_text, re.MULTILINE)


# -S: without the packages that are installed.
WITHOUT_PACKAGES = (sys.executable, "-S")


def test_without_packages_it_ends_with_78_and_the_command_that_mends_it(tree: Path) -> None:
    assert_mendable(run_in(tree, "--version", python=WITHOUT_PACKAGES), tree)


def make_environment(tree: Path, packages: str | None) -> Path:
    """Make what `make setup` makes, with the packages found there, or none."""
    environment = tree / ".venv"
    venv.create(environment, symlinks=True)
    if packages:
        [site] = environment.glob("lib/python3*/site-packages")
        (site / "packages.pth").write_text(f"{packages}\n")
    return environment / "bin" / "python"


def test_the_packages_of_make_setup_are_found_from_any_python(
    service: StandIn, tree: Path, call: Path
) -> None:
    make_environment(tree, str(Path(grpc.__file__).parent.parent))
    given = arguments(service, "--audio-path", call)
    outcome = run_in(tree, *given, python=WITHOUT_PACKAGES)
    [talk_id] = service.talks
    assert outcome == Outcome(0, f"Dialog ID: {talk_id}\n", "")


def test_an_environment_without_packages_is_no_endless_search(tree: Path) -> None:
    python = make_environment(tree, None)
    assert_mendable(run_in(tree, "--version", python=WITHOUT_PACKAGES), tree)
    assert_mendable(run_in(tree, "--version", python=(python,)), tree)


@pytest.mark.parametrize("what", ["a link to this Python", "a broken link", "no program"])
def test_a_broken_environment_is_no_endless_search(tree: Path, what: str) -> None:
    python = tree / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    if what == "no program":
        python.write_bytes(b"\x7fELF")
        python.chmod(0o755)
    elif what == "a broken link":
        python.symlink_to("nowhere")
    else:
        # Isolated: this Python, but as bare as one of the system's.
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
        python.chmod(0o755)
    assert_mendable(run_in(tree, "--version", python=WITHOUT_PACKAGES), tree)


@pytest.mark.parametrize("words", [(), ("--single-message",)], ids=["stream", "single"])
def test_a_system_without_proc_will_do(
    service: StandIn, call: Path, words: tuple[str, ...]
) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root (unshare -m) can take /proc away from one process")
    without_proc = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    given = arguments(service, "--audio-path", call, *words)
    with start(*given, under=without_proc) as process:
        out, err = process.communicate(timeout=30)
    [talk_id] = service.talks
    assert (process.returncode, out, err) == (0, f"Dialog ID: {talk_id}\n", "")


# --- Names ----------------------------------------------------------------------------


# As the file is called, and as it is shown.
NAMES = {
    b"two words.wav": b"two words.wav",
    "разговор.wav".encode(): "разговор.wav".encode(),
    b"new\nline.wav": rb"new\x0aline.wav",
    b"esc\x1b[2Jape.wav": rb"esc\x1b[2Jape.wav",
    b"\xff\xfe.wav": b"\xff\xfe.wav",
    b"-rf.wav": b"-rf.wav",
    b"100%.wav": b"100%.wav",
    b"{braces}.wav": b"{braces}.wav",
}


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_files_may_have_any_name(service: StandIn, tmp_path: Path, locale: str) -> None:
    calls = os.fsencode(tmp_path / "calls")
    os.mkdir(calls)
    audio = make_wav(tmp_path / "any.wav", 1_000).read_bytes()
    for name in NAMES:
        Path(os.fsdecode(calls + b"/" + name)).write_bytes(audio)
    given = arguments(service, "--audio-path", os.fsdecode(calls), "--verbose")
    outcome = run_bytes(*given, locale=locale)
    assert outcome.returncode == 0
    lines = [line.rpartition(b": Dialog ID: ") for line in outcome.stdout.splitlines()]
    assert {name for name, _, _ in lines} == {calls + b"/" + shown for shown in NAMES.values()}
    assert {talk_id.decode() for _, _, talk_id in lines} == set(service.talks)
    assert len(service.talks) == len(NAMES)


def test_a_name_that_is_no_text_stands_in_json_as_python_writes_it(
    service: StandIn, tmp_path: Path
) -> None:
    path = make_wav(tmp_path / os.fsdecode(b"\xff.wav"), 1_000, seed=0)
    given = arguments(service, "--audio-path", path, "--format", "json", "--quiet")
    outcome = run_bytes(*given, locale="C.UTF-8")
    assert (outcome.returncode, outcome.stderr) == (0, b"")
    assert json.loads(outcome.stdout)["path"] == str(path)


def run_bytes(*words: str, locale: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, SCRIPT, *words],
        env={**os.environ, "LC_ALL": locale},
        capture_output=True,
        check=False,
        timeout=30,
    )


# --- The documentation ----------------------------------------------------------------


def exit_codes() -> set[int]:
    """Answer every exit code that the program's text names, and those that have no name."""
    named = set(re.findall(r"os\.(EX_[A-Z]+)", SCRIPT.read_text("utf-8")))
    signals = {128 + signal.SIGINT, 128 + signal.SIGTERM}
    return {int(getattr(os, name)) for name in named} | {0, 2} | signals


def test_help_names_every_exit_code() -> None:
    codes = read_help().partition("exit codes:")[2]
    assert {code for code in exit_codes() if not re.search(rf"\b{code}\b", codes)} == set()


def test_the_readmes_table_of_options_is_complete() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    first_cells = "".join(re.findall(r"^\| (`--.*?) (?<!\\)\|", readme, re.MULTILINE))
    described = set(re.findall(r"--[a-z][a-z-]+", first_cells))
    assert described == set(re.findall(r"--[a-z][a-z-]+", read_help()))
    assert len(described) > 20


def test_the_readme_has_a_row_for_every_exit_code() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    rows = set(map(int, re.findall(r"^\| *`?(\d+)\b", readme, re.MULTILINE)))
    rows |= set(map(int, re.findall(r"^\| *`?\d+`?, `?(\d+)", readme, re.MULTILINE)))
    assert exit_codes() <= rows


def test_the_readme_names_every_key_of_a_json_line(upload: Run, call: Path) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    answer = json.loads(upload("--audio-path", call, "--format", "json").out)
    assert {key for key in answer if f"`{key}`" not in readme} == set()
