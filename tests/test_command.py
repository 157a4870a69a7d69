"""The command as people and cron run it: what it prints, how it exits, what it needs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import uuid
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import (
    KEY,
    LONG_BYTES,
    ROOT,
    SCRIPT,
    Outcome,
    Run,
    arguments,
    sparse_wav,
)
from stand_in import SINGLE_MESSAGE_LIMIT_BYTES, Fail, StandIn

import upload_grpc

STATUS = grpc.StatusCode


def run(*words: object, **options: Any) -> Outcome:
    """Run any command; names that are not UTF-8 come back as Python writes them."""
    finished = subprocess.run(
        [os.fspath(word) if isinstance(word, Path) else str(word) for word in words],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
        timeout=60,
    )
    return Outcome(finished.returncode, finished.stdout or "", finished.stderr or "")


def test_a_single_message_stays_under_128_mb(upload: Run, service: StandIn, call: Path) -> None:
    words = ("--audio-path", call, "--single-message")
    sparse_wav(call, SINGLE_MESSAGE_LIMIT_BYTES)
    outcome = upload(*words)
    assert (outcome.code, outcome.out, service.calls) == (65, "", [])
    assert f"{call}: " in outcome.err and "134,217,728" in outcome.err
    sparse_wav(call, SINGLE_MESSAGE_LIMIT_BYTES - 2)
    assert upload(*words, "--dry-run").code == 0


# --- What is printed ------------------------------------------------------------------


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


BASE = "--audio-path a.wav --connection-id 1"
TALK = "--talk-id 1 --meta-path m --connection-id 1"
PCM = f"{BASE} --audio-type pcm"
LOOKUP = "--lookup-key k --organization-id o --space-id s"
SECRET = "AQVNsecret"
AGE = "must be a number of seconds, or like 5m, 1h, 2d"
WRONG = {
    "--audio-path a.wav": "--connection-id is missing",
    "--connection-id 1": "--audio-path is missing",
    "--audio-path --connection-id 1": "--audio-path needs a value",
    "--audio-path '' --connection-id 1": "--audio-path is empty",
    "--audio-path a.wav --connection-id ''": "--connection-id is empty",
    "--audio-path a.wav --connection-id \udcff": "--connection-id has characters that no ID has",
    "--talk-id 1 --connection-id 1": "--talk-id needs --meta-path",
    "--talk-id '' --meta-path m --connection-id 1": "--talk-id is empty",
    "--talk-id 'a\nb' --meta-path m --connection-id 1": "--talk-id has characters that no ID has",
    **{
        f"{TALK} {words}": "--talk-id sends metadata only, and no audio"
        for words in (
            *("--audio-path a.wav", "--split", "--single-message", "--ledger x"),
            *("--audio-type mp3", "--require-json"),
        )
    },
    f"{BASE} --audio-path": "--audio-path needs a value",
    f"{BASE} --audio_path x": "unknown option --audio_path",
    f"{BASE} --dry": "unknown option --dry",
    f"{BASE} --key-file": "--key-file needs a value",
    # An unset variable expands to ''.
    **{
        f"{BASE} {name} ''": f"{name} is empty"
        for name in ("--key-file", "--ledger", "--meta-path", "--ca-file")
    },
    f"{BASE} --retry-unknown": "--retry-unknown needs --ledger",
    f"{BASE} --update-metadata": "--update-metadata needs --ledger",
    f"{BASE} --key-type vm --key x": "--key-type vm takes no key",
    f"{BASE} --key x --key-file x": "--key and --key-file exclude each other",
    f"{BASE} --ledger x --lookup-key k": "--lookup-key needs --organization-id, --space-id",
    f"{BASE} --ledger x --lookup-key k --organization-id o": "--lookup-key needs --space-id",
    f"{BASE} {LOOKUP}": "--lookup-key needs --ledger",
    f"{BASE} --ledger x --lookup-key '' --organization-id o --space-id s": "--lookup-key is empty",
    f"{BASE} --ledger x --organization-id o --space-id s": "--lookup-key is missing",
    f"{BASE} --ledger x --project-id p": "--lookup-key is missing",
    f"{BASE} --ledger x {LOOKUP} --project-id ''": "--project-id is empty",
    f"{BASE} --ledger x {LOOKUP} --project-id \udcff": "--project-id has characters that no ID has",
    f"{BASE} --split --single-message": "--split is a stream: leave out --single-message",
    f"{BASE} --wait": "--wait is for --split",
    f"{PCM} --sample-rate 8000": "--audio-type pcm needs --sample-rate and --channels",
    f"{PCM} --channels 1": "--audio-type pcm needs --sample-rate and --channels",
    **{
        f"{PCM} --channels 1 --sample-rate {rate}": "--sample-rate: must be a whole number from "
        "8,000 to 48,000"
        for rate in ("7999", "48001", "8k")
    },
    f"{PCM} --channels 0 --sample-rate 8000": "--channels: must be a whole number from 1 to 64",
    f"{BASE} --audio-type wav --sample-rate 8000": "--sample-rate and --channels are for "
    "--audio-type pcm",
    f"{BASE} --channels 1": "--sample-rate and --channels are for --audio-type pcm",
    f"{BASE} --audio-type flac": "--audio-type: must be auto, wav, mp3, ogg-opus or pcm",
    f"{BASE} -v": "unknown option -v",
    f"{BASE} --min-age -5": f"--min-age: {AGE}",
    f"{BASE} --min-age x": f"--min-age: {AGE}",
    f"{BASE} --jobs 65": "--jobs: must be a whole number from 1 to 64",
    f"{BASE} --retries -1": "--retries: must be a whole number from 0 to 100",
    f"{BASE} --timeout nan": "--timeout: must be a number from 0.1 to 86,400",
    # An option is named, and a value never: it may be a misplaced key.
    f"{SECRET} {BASE}": "unexpected argument",
    f"{BASE} --token {SECRET}": "unknown option --token",
    f"{BASE} --keys={SECRET}": "unknown option --keys",
    f"{BASE} --ke={SECRET}": "unknown option --ke",
    f"{BASE} --key{SECRET}": "unexpected argument",
    f"{BASE} --api-key:{SECRET}": "unexpected argument",
    f"{BASE} -k {SECRET}": "unknown option -k",
    f"{BASE} -k{SECRET}": "unexpected argument",
    f"{BASE} --quiet {SECRET}": "unexpected argument",
    f"{BASE} --quiet={SECRET}": "--quiet takes no value",
    f"{BASE} --help={SECRET}": "-h/--help takes no value",
    f"{BASE} --format {SECRET}": "--format: must be text, json or csv",
    **{
        f"{BASE} --key-type {word}": "--key-type: must be auto, api-key, iam-token or vm"
        for word in (SECRET, f'"it\'s ({SECRET})"', f"'{SECRET} (choose from'")
    },
    f"{BASE} --jobs {SECRET}": "--jobs: must be a whole number from 1 to 64",
    f"{BASE} --jobs '1 ({SECRET}'": "--jobs: must be a whole number from 1 to 64",
    f"{BASE} --timeout \"'{SECRET}'\"": "--timeout: must be a number from 0.1 to 86,400",
    f"{BASE} --since {SECRET}": "--since: must be YYYY-MM-DD, today, yesterday, or like 7d",
    f"{BASE} --quiet /": "unexpected argument /: paths follow --audio-path",
}


@pytest.mark.parametrize("words", WRONG, ids=ascii)
def test_a_wrong_command_line_ends_with_2_and_the_reason(
    capfd: pytest.CaptureFixture[str], words: str
) -> None:
    with pytest.raises(SystemExit) as leaving:
        upload_grpc.main(shlex.split(words))
    assert leaving.value.code == 2
    assert capfd.readouterr() == ("", f"upload_grpc: {WRONG[words]}; see --help\n")


# --- A stdout or stderr that cannot be written ----------------------------------------

# Full, or its reader gone, during uploads: test_run.py; nobody reads: test_outage.py; --talk-id and
# --report: test_talk_id.py, test_report.py.


def redirected(redirection: str, *words: object, **options: Any) -> Outcome:
    """Run the command as a shell would, with a redirection."""
    shell = ("sh", "-c", f'exec "$@" {redirection}', "sh")
    return run(*shell, sys.executable, SCRIPT, *words, **options)


def test_without_a_stdout_nothing_is_sent(service: StandIn, call: Path) -> None:
    outcome = redirected(">&-", *arguments(service, "--audio-path", call))
    assert (outcome.code, outcome.out, service.calls) == (74, "", [])
    assert re.fullmatch("upload_grpc: .*stdout.*\n", outcome.err)


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_without_stderr_results_and_exit_codes_stay_the_same(
    service: StandIn, call: Path, redirection: str
) -> None:
    words = arguments(service, "--audio-path", call, "missing.wav", "--verbose")
    done = redirected(redirection, *words)
    [talk_id] = service.talks
    assert done == Outcome(66, f"{call}: Dialog ID: {talk_id}\n", "")


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


def test_stubs_that_do_not_load_end_with_78_and_a_make_line(tree: Path, call: Path) -> None:
    assert check_in(tree, call).code == 0
    stubs = tree / "generated/yandex/cloud/speechsense/v1/talk_service_pb2.py"
    text = stubs.read_text("utf-8")
    newer = re.sub(r"(?<=Domain\.PUBLIC,)\s*\d+", "99", text)  # Of a newer protobuf.
    assert newer != text
    for broken in (newer, text[:2500]):
        stubs.write_text(broken, "utf-8")
        assert_mendable(check_in(tree, call), tree)
    shutil.rmtree(tree / "generated")
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
    outcome = run(*WITHOUT_PACKAGES, tree / SCRIPT.name, "--help")
    assert (outcome.code, outcome.err) == (0, "") and outcome.out.startswith("usage: ")
    outcome = run(*WITHOUT_PACKAGES, tree / SCRIPT.name, "--version")
    assert outcome == Outcome(0, f"upload_grpc {upload_grpc.__version__}\n", "")


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


# --- The help ---------------------------------------------------------------------------


def read_help(capfd: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match=r"^0$"):
        upload_grpc.main(["--help"])
    return capfd.readouterr().out


@pytest.mark.parametrize("columns", [40, 60, 80, 100])
def test_help_fits_the_terminal(capfd: pytest.CaptureFixture[str], columns: int) -> None:
    os.environ["COLUMNS"] = str(columns)
    lines = read_help(capfd).splitlines()
    assert [line for line in lines if len(line) > columns and " " in line.strip()] == []
    assert max(map(len, lines)) > columns - 10


def test_help_shows_a_command_and_a_cron_line(capfd: pytest.CaptureFixture[str]) -> None:
    text = read_help(capfd)
    for option in ("export API_KEY=", "--audio-path call.wav", "--connection-id ID"):
        assert option in text
    cron_line = r"\n +[\d*/]+( [\d*/]+){4} +timeout \w+ \S*upload_grpc.py .*(\n .*)*--key-file"
    assert re.search(cron_line, text)


def test_the_command_in_the_help_can_be_pasted(capfd: pytest.CaptureFixture[str]) -> None:
    os.environ["COLUMNS"] = "80"
    _, _, text = read_help(capfd).partition("from a shell:\n")
    command, _, _ = text.partition("from cron")
    outcome = run("sh", "-c", 'python3() { echo "$API_KEY $*"; }\n' + command)
    words = "--audio-path call.wav --meta-path metadata_example.json --connection-id ID"
    assert outcome == Outcome(0, f"... upload_grpc.py {words}\n", "")
