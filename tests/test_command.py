"""The command as people and cron run it: what it prints, how it exits, what it needs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import (
    KEY,
    LONG_BYTES,
    ROOT,
    SAMPLE,
    SCRIPT,
    Outcome,
    Run,
    arguments,
    make_wav,
    sparse_wav,
    start,
)
from fault_proxy import HttpProxy
from stand_in import SINGLE_MESSAGE_LIMIT_BYTES, Fail, StandIn

import upload_grpc

STATUS = grpc.StatusCode
README = (ROOT / "README.md").read_text("utf-8")
EXIT_CODES = {0, 2, 65, 66, 70, 74, 75, 76, 77, 78, 129, 130, 143}


@pytest.fixture
def public_service(tmp_path: Path) -> Iterator[tuple[StandIn, dict[str, str]]]:
    """Serve under the name of the real service; yield the variables that lead there too."""
    with (
        StandIn(tmp_path / "store", names=("api.speechsense.yandexcloud.net",)) as service,
        HttpProxy(upstream_port=service.port) as proxy,
    ):
        roots = str(service.ca_file)
        yield service, {"HTTPS_PROXY": proxy.url, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": roots}


def run(*words: object, **options: Any) -> Outcome:
    """Run any command; names that are not UTF-8 come back as Python writes them."""
    finished = subprocess.run(
        [os.fspath(word) if isinstance(word, Path) else str(word) for word in words],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
        timeout=30,
    )
    return Outcome(finished.returncode, finished.stdout or "", finished.stderr or "")


def read_help() -> str:
    return run(sys.executable, SCRIPT, "--help").out


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
    outcome = run("sh", "-c", python + guide, cwd=tmp_path, env={**os.environ, **environment})
    [talk] = service.talks.values()
    assert outcome == Outcome(0, f"Dialog ID: {talk.talk_id}\n", "")
    assert (talk.connection_id, talk.method) == ("f3fsomeconnection", "UploadAsStream")
    assert talk.fields["client_name"] == "Пётр Соколов"
    assert talk.audio and talk.audio.read_bytes() == SAMPLE.read_bytes()


# --- What is sent ---------------------------------------------------------------------


def test_a_single_message_brings_the_same(command: Run, service: StandIn, recording: Path) -> None:
    recording.with_suffix(".json").write_text('{"language": "ru-RU"}')
    outcome = command("--audio-path", "call.wav", "--single-message", cwd=recording.parent)
    [talk] = service.talks.values()
    assert outcome == Outcome(0, f"Dialog ID: {talk.talk_id}\n", "")
    assert (talk.method, talk.connection_id) == ("Upload", "connection-1")
    assert talk.fields == {"language": "ru-RU"}
    assert talk.audio and talk.audio.read_bytes() == recording.read_bytes()


def test_a_single_message_stays_under_128_mb(upload: Run, service: StandIn, call: Path) -> None:
    words = ("--audio-path", call, "--single-message")
    sparse_wav(call, SINGLE_MESSAGE_LIMIT_BYTES)
    outcome = upload(*words)
    assert (outcome.code, outcome.out, service.calls) == (65, "", [])
    assert f"{call}: " in outcome.err and "134,217,728" in outcome.err
    sparse_wav(call, SINGLE_MESSAGE_LIMIT_BYTES - 2)
    assert upload(*words, "--dry-run").code == 0


# --- What is printed ------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_sent(upload: Run, service: StandIn, call: Path) -> None:
    call.with_suffix(".json").write_text('{"language": "ru-RU"}')
    words = ("--audio-path", call, "--dry-run")
    in_text, in_json = upload(*words), upload(*words, "--format", "json")
    result = json.loads(in_json.out)
    assert (result["path"], result["outcome"]) == (str(call), "checked")
    for outcome, text in ((in_text, in_text.out), (in_json, result["description"])):
        assert (outcome.code, outcome.err, service.calls) == (0, "", [])
        for fact in ("WAV", f"{call.stat().st_size:,} bytes", '{"language": "ru-RU"}'):
            assert fact in text


def test_a_json_line_has_these_keys(upload: Run, service: StandIn, call: Path) -> None:
    missing = call.with_name("missing.wav")
    outcome = upload("--audio-path", call, missing, "--format", "json", "--quiet")
    assert outcome.code == 66
    results = {result["path"]: result for result in map(json.loads, outcome.out.splitlines())}
    done, failed = results[str(call)], results[str(missing)]
    assert done.keys() == failed.keys()
    assert {key for key in done if f"`{key}`" not in README} == set()
    assert done["seconds"] >= 0
    assert done == {
        **done,
        "schema_version": 1,
        "outcome": "uploaded",
        "talk_id": next(iter(service.talks)),
        "error": None,
        "exit_code": 0,
        "request_id": service.calls[0].client_request_id,
        "bytes": call.stat().st_size,
        "attempts": 1,
    }
    assert (failed["outcome"], failed["talk_id"], failed["attempts"]) == ("failed", None, 0)
    assert failed["exit_code"] == 66 and "No such file" in failed["error"]


def test_several_recordings_are_named(upload: Run, service: StandIn, call: Path) -> None:
    other = make_wav(call.with_name("other.wav"), 2_000)
    outcome = upload("--audio-path", call, other, "--meta-path", call.with_suffix(".json"))
    assert outcome.code == 0
    ids = {talk.size: talk.talk_id for talk in service.talks.values()}
    assert sorted(outcome.out.splitlines()) == [
        f"{path}: Dialog ID: {ids[path.stat().st_size]}" for path in (call, other)
    ]
    assert "2 uploaded" in outcome.err


def test_quiet_still_names_what_failed(upload: Run, service: StandIn, call: Path) -> None:
    missing = call.with_name("missing.wav")
    outcome = upload("--audio-path", call, missing, "--quiet")
    assert (outcome.code, len(service.talks)) == (66, 1)
    assert re.fullmatch(f"upload_grpc: {missing}: .*\n", outcome.err)


@pytest.mark.usefixtures("waits")
def test_verbose_shows_the_ids_of_each_call(upload: Run, service: StandIn, call: Path) -> None:
    sparse_wav(call, LONG_BYTES)
    service.script.append(Fail(STATUS.UNAVAILABLE, "\x1b[31mred\r\n", after_bytes=0))
    outcome = upload("--audio-path", call, "--verbose")
    [talk_id] = service.talks
    assert (outcome.code, outcome.out) == (0, f"Dialog ID: {talk_id}\n")
    refused, taken = service.calls
    ids = [received.client_request_id for received in (refused, taken)]
    assert ids[0] != ids[1] and {uuid.UUID(text).version for text in ids} == {4}
    for text in (str(call), *ids, taken.request_id, taken.trace_id, r"\x1b[31mred"):
        assert text in outcome.err
    assert all(line.startswith("upload_grpc: ") for line in outcome.err.splitlines())
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", outcome.err)
    agent = f"upload_grpc/{upload_grpc.__version__} grpc-python"
    assert str(taken.metadata["user-agent"]).startswith(agent)


# --- Exit codes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (STATUS.UNAUTHENTICATED, 77),
        (STATUS.PERMISSION_DENIED, 77),
        (STATUS.NOT_FOUND, 78),
        (STATUS.INVALID_ARGUMENT, 65),
        (STATUS.UNAVAILABLE, 75),
        (STATUS.RESOURCE_EXHAUSTED, 75),
    ],
)
def test_a_status_ends_in_one_line_with_everything_in_it(
    upload: Run, service: StandIn, call: Path, status: grpc.StatusCode, code: int
) -> None:
    sparse_wav(call, LONG_BYTES)
    service.script.append(Fail(status, "said the service", after_bytes=0))
    outcome = upload("--audio-path", call, "--retries", 0)
    assert (outcome.code, outcome.out, service.talks) == (code, "", {})
    # The cause, what to do next, and last what gRPC and the service's support call it.
    line = re.fullmatch(rf"upload_grpc: {call}: [^;(]+; .+ \((.*)\)\n", outcome.err)
    assert line and line[1].startswith(f"{status.name}: said the service, ")
    [received] = service.calls
    for text in (received.client_request_id, received.request_id, received.trace_id):
        assert text in line[1]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("missing.wav", "No such file or directory"),
        ("loop.wav", "Too many levels of symbolic links"),
        ("fifo.wav", "not a regular file"),
        ("call.wav/below", "Not a directory"),
        ("a\0b", "null"),
    ],
    ids=ascii,
)
def test_a_recording_that_cannot_be_read_ends_with_66(
    upload: Run, service: StandIn, call: Path, monkeypatch: Any, what: str, reason: str
) -> None:
    monkeypatch.chdir(call.parent)
    os.mkfifo("fifo.wav")
    os.symlink("loop.wav", "loop.wav")
    outcome = upload("--audio-path", what)
    assert (outcome.code, outcome.out, service.calls) == (66, "", [])
    assert re.fullmatch(f"upload_grpc: .*: .*{reason}.*\n", outcome.err)


def test_a_bug_ends_with_70_and_its_traceback(
    upload: Run, service: StandIn, call: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError(f"as a bug would, with {KEY}")

    monkeypatch.setattr(json, "loads", broken)
    outcome = upload("--audio-path", call)
    assert (outcome.code, outcome.out, service.talks) == (70, "", {})
    assert all(line.startswith("upload_grpc: ") for line in outcome.err.splitlines())
    assert "Traceback" in outcome.err and "bug" in outcome.err.splitlines()[-1]
    assert "ZeroDivisionError: as a bug would, with ***" in outcome.err
    assert KEY not in outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--audio-path a.wav", "--connection-id"),
        ("--connection-id 1", "--audio-path"),
        ("--audio-path --connection-id 1", "--audio-path"),
        ("--audio-path '' --connection-id 1", "--audio-path"),
        ("--audio-path a.wav --connection-id ''", "--connection-id"),
        ("--audio-path a.wav --connection-id \udcff", "--connection-id"),
        ("--audio-path a.wav --connection-id 1 --bogus", "--bogus"),
        ("--audio-path a.wav --connection-id 1 --retries -1", "--retries"),
        ("--audio-path a.wav --connection-id 1 --timeout nan", "--timeout"),
        ("--audio-path a.wav --connection-id 1 --min-age -5", "--min-age"),
        (
            "--audio-path a.wav --connection-id 1 --min-age x",
            "--min-age: must be a number of seconds, or like 5m, 1h, 2d",
        ),
        ("--audio-path a.wav --connection-id 1 --format xml", "--format"),
        ("--audio-path a.wav --connection-id 1 --dry", "--dry"),
        ("--audio-path a.wav --connection-id 1 --key-file ''", "--key-file"),
        ("--audio-path a.wav --connection-id 1 --ledger ''", "--ledger"),
        ("--audio-path a.wav --connection-id 1 --retry-unknown", "--ledger"),
        ("--audio-path a.wav --connection-id 1 --key-type vm --key x", "--key-type"),
        ("--audio-path a.wav --connection-id 1 --key x --key-file x", "--key and --key-file"),
        ("--audio-path a.wav --connection-id 1 --ledger x --lookup-key x", "--space-id"),
        ("--audio-path a.wav --connection-id 1 --project-id x", "--lookup-key"),
        ("--talk-id 1 --connection-id 1", "--meta-path"),
        ("--talk-id 1 --connection-id 1 --meta-path x --audio-path a.wav", "--talk-id"),
    ],
    ids=ascii,
)
def test_a_wrong_command_line_ends_with_2_and_the_reason(
    capfd: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    with pytest.raises(SystemExit) as leaving:
        upload_grpc.main(shlex.split(words))
    captured = capfd.readouterr()
    assert (leaving.value.code, captured.out) == (2, "")
    assert re.fullmatch("upload_grpc: .*; see --help\n", captured.err) and said in captured.err


def test_sigint_during_the_start_leaves_no_traceback(call: Path, tmp_path: Path) -> None:
    slow_import = "import sys, time\nprint('importing', file=sys.stderr, flush=True)\ntime.sleep(9)"
    (tmp_path / "grpc.py").write_text(slow_import)
    words = ("--audio-path", call, "--connection-id", "1", "--key", KEY)
    with start(*words, env={"PYTHONPATH": str(tmp_path)}) as process:
        assert process.stderr and process.stderr.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=5)
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert out == "" and "Traceback" not in err


# --- A stdout or stderr that cannot be written ----------------------------------------


def redirected(redirection: str, *words: object, **options: Any) -> Outcome:
    """Run the command as a shell would, with a redirection."""
    shell = ("sh", "-c", f'exec "$@" {redirection}', "sh")
    return run(*shell, sys.executable, SCRIPT, *words, **options)


@pytest.mark.parametrize("output", ["text", "json"])
@pytest.mark.parametrize("where", ["full disk", "broken pipe"])
def test_a_dialog_id_that_stdout_does_not_take_goes_to_stderr(
    service: StandIn, call: Path, where: str, output: str
) -> None:
    given = arguments(service, "--audio-path", call, "--quiet", "--format", output)
    if where == "full disk":
        outcome = redirected(">/dev/full", *given)
    else:
        reader, writer = os.pipe()
        os.close(reader)
        outcome = redirected("", *given, stdout=writer)
        os.close(writer)
    [talk_id] = service.talks
    assert (outcome.code, outcome.out) == (74, "")
    assert "stdout" in outcome.err and talk_id in outcome.err
    assert "Traceback" not in outcome.err


def test_without_a_stdout_nothing_is_sent(service: StandIn, call: Path) -> None:
    outcome = redirected(">&-", *arguments(service, "--audio-path", call))
    assert (outcome.code, outcome.out, service.calls) == (74, "", [])
    assert re.fullmatch("upload_grpc: .*stdout.*\n", outcome.err)


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_without_stderr_results_and_exit_codes_stay_the_same(
    service: StandIn, call: Path, redirection: str
) -> None:
    done = redirected(redirection, *arguments(service, "--audio-path", call, "--verbose"))
    [talk_id] = service.talks
    assert done == Outcome(0, f"Dialog ID: {talk_id}\n", "")
    missing = redirected(redirection, *arguments(service, "--audio-path", "missing.wav"))
    assert missing == Outcome(66, "", "")


# --- Packages and stubs ---------------------------------------------------------------

# -S: without the packages that are installed.
WITHOUT_PACKAGES = (sys.executable, "-S")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Copy the program and its stubs to a folder of another name."""
    tree = tmp_path / "the program's folder"
    tree.mkdir()
    shutil.copy(SCRIPT, tree)
    shutil.copy(ROOT / "Makefile", tree)
    shutil.copytree(ROOT / "generated", tree / "generated")
    return tree


def check_in(tree: Path, call: Path, python: Sequence[object] = (sys.executable,)) -> Outcome:
    """Run a copy of the program, from the root folder."""
    words = ("--audio-path", call, "--connection-id", "1", "--key", KEY, "--dry-run")
    return run(*python, tree / SCRIPT.name, *words, cwd="/")


def assert_mendable(outcome: Outcome, tree: Path) -> None:
    """One line names the command, for a shell in any folder."""
    assert (outcome.code, outcome.out) == (78, "")
    line = re.fullmatch(r"upload_grpc: .*(make -C .*)\n", outcome.err)
    assert line, outcome.err
    assert shlex.split(line[1])[2] == str(tree)


@pytest.mark.parametrize("what", ["no stubs", "one cut short", "of a newer protobuf"])
def test_stubs_that_do_not_load_end_with_78_and_a_make_line(
    tree: Path, call: Path, what: str
) -> None:
    assert check_in(tree, call).code == 0
    stubs = tree / "generated/yandex/cloud/speechsense/v1/talk_service_pb2.py"
    text = stubs.read_text("utf-8")
    if what == "no stubs":
        shutil.rmtree(tree / "generated")
    elif what == "one cut short":
        stubs.write_text(text[:2500], "utf-8")
    else:
        stubs.write_text(re.sub(r"(?<=Domain\.PUBLIC,)\s*\d+", "99", text), "utf-8")
    assert_mendable(check_in(tree, call), tree)


def test_the_packages_of_make_are_found_from_any_python(tree: Path, call: Path) -> None:
    venv.create(tree / ".venv", symlinks=True)
    [packages] = (tree / ".venv").glob("lib/python3*/site-packages")
    (packages / "packages.pth").write_text(f"{Path(grpc.__file__).parent.parent}\n")
    outcome = check_in(tree, call, WITHOUT_PACKAGES)
    assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.parametrize("what", ["no environment", "no packages in it", "broken link"])
def test_without_packages_it_ends_with_78_and_a_make_line(
    tree: Path, call: Path, what: str
) -> None:
    """And does not start itself again for ever."""
    python = tree / ".venv" / "bin" / "python"
    if what == "no packages in it":
        venv.create(tree / ".venv", symlinks=True)
        assert_mendable(check_in(tree, call, (python,)), tree)
    elif what == "broken link":
        python.parent.mkdir(parents=True)
        python.symlink_to("nowhere")
    assert_mendable(check_in(tree, call, WITHOUT_PACKAGES), tree)


def test_help_and_version_need_neither_packages_nor_stubs(tree: Path) -> None:
    shutil.rmtree(tree / "generated")
    for word, begin in (("--help", "usage: "), ("--version", "upload_grpc ")):
        outcome = run(*WITHOUT_PACKAGES, tree / SCRIPT.name, word)
        assert (outcome.code, outcome.err) == (0, "") and outcome.out.startswith(begin)


def test_a_system_without_fcntl_is_told_so(call: Path) -> None:
    """Windows."""
    program = """if True:
        import runpy, sys
        sys.modules["fcntl"] = None  # Cannot be imported; in some Pythons it is built in.
        del sys.argv[0]
        runpy.run_path(sys.argv[0], run_name="__main__")
    """
    outcome = run(sys.executable, "-c", program, SCRIPT, "--audio-path", call)
    assert (outcome.code, outcome.out) == (78, "")
    assert re.fullmatch("upload_grpc: .*fcntl.*WSL.*\n", outcome.err)


# --- Names of files, and cron's environment -------------------------------------------

# As the file is called, and as it is shown.
NAMES = {
    "two words.wav": "two words.wav",
    "разговор.wav": "разговор.wav",
    "new\nline.wav": r"new\x0aline.wav",
    "esc\x1b[2Jape.wav": r"esc\x1b[2Jape.wav",
    "not UTF-8 \udcff\udcfe.wav": "not UTF-8 \udcff\udcfe.wav",
    "-rf 100% {}.wav": "-rf 100% {}.wav",
}


@pytest.mark.parametrize("environment", [{}, {"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8"}], ids=str)
def test_files_may_have_any_name_also_under_cron(
    service: StandIn, tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        make_wav(folder / name, 1_000, seed=number)
    given = arguments(service, "--audio-path", folder, "--verbose")
    outcome = run(sys.executable, SCRIPT, *given, env=environment, cwd="/")
    assert outcome.code == 0
    shown = dict(line.split(": Dialog ID: ") for line in outcome.out.splitlines())
    assert shown.keys() == {f"{folder}/{name}" for name in NAMES.values()}
    assert set(shown.values()) == service.talks.keys()

    outcome = run(sys.executable, SCRIPT, *given, "--format", "json", env=environment, cwd="/")
    paths = {json.loads(line)["path"] for line in outcome.out.splitlines()}
    assert paths == {f"{folder}/{name}" for name in NAMES}


# --- The documentation ----------------------------------------------------------------


def test_help_and_readme_name_every_option_and_exit_code() -> None:
    text = read_help()
    options = set(re.findall(r"--[a-z][a-z-]+", text))
    first_cells = "".join(re.findall(r"^\| (`--.*?) (?<!\\)\|", README, re.MULTILINE))
    assert set(re.findall(r"--[a-z][a-z-]+", first_cells)) == options
    assert len(options) > 20

    explained = text.partition("exit codes:")[2]
    assert {int(code) for code in re.findall(r"\b\d+\b", explained)} >= EXIT_CODES
    first_cells = "".join(re.findall(r"^\| `?(\d.*?\|)", README, re.MULTILINE))
    assert {int(code) for code in re.findall(r"\d+", first_cells)} >= EXIT_CODES


def test_help_shows_a_command_and_a_cron_line() -> None:
    text = read_help()
    for option in ("export API_KEY=", "--audio-path call.wav", "--connection-id ID"):
        assert option in text
    assert re.search(r"\n +[\d*/]+( [\d*/]+){4} +\S*upload_grpc.py .*(\n .*)*--key-file", text)


def test_version() -> None:
    outcome = run(sys.executable, SCRIPT, "--version")
    assert outcome == Outcome(0, f"upload_grpc {upload_grpc.__version__}\n", "")
