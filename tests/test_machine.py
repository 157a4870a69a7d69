"""The machine: limits, permissions, signals, and bugs, seen from outside."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable
from pathlib import Path

import grpc
import ledgers
import pytest
from conftest import (
    AS_NOBODY_SPECIAL,
    KEY,
    SCRIPT,
    Run,
    arguments,
    before_command,
    ended,
    interrupt,
    make_wav,
    start,
    wait_for,
)
from stand_in import At, Call, Delay, Fail, StandIn
from test_command import tree
from test_progress import on_terminal

OK, DATA, BUG, CONFIG = 0, 65, 70, 78
__all__ = ["tree"]

REJECTED = Fail(grpc.StatusCode.INVALID_ARGUMENT, "no such key in the connection")


@pytest.fixture
def folder(folder: Path) -> Path:
    for number in range(12):
        make_wav(folder / f"{number:02}.wav", 3_000).with_suffix(".json").write_text("{}")
    return folder


Site = Callable[[str], None]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Have the interpreter run some code when it starts."""

    def write(code: str) -> None:
        folder = tmp_path / "site"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(code)
        os.environ["PYTHONPATH"] = str(folder)

    return write


# --- Limits --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("soft", "hard"), [*((limit, limit) for limit in (6, 8, 12, 16, 20, 30, 40)), (16, 1024)]
)
def test_a_small_limit_on_open_files_is_one_line_or_raised(
    command: Run, service: StandIn, folder: Path, ledger: Path, soft: int, hard: int
) -> None:
    """GRPC aborts, or calls good recordings unreadable, where it comes to its end meanwhile."""
    limits = f"resource.RLIMIT_NOFILE, ({soft}, {hard})"
    under = before_command(f"import resource; resource.setrlimit({limits})")
    outcome = command("--audio-path", folder, "--ledger", ledger, "--quiet", under=under)
    if hard < 40:
        assert (outcome.code, outcome.out, service.calls) == (CONFIG, "", [])
        assert (
            f"the limit on open files is {hard}, and " in outcome.err and "ulimit -n" in outcome.err
        )
        assert outcome.err.count("\n") == 1
    else:
        assert (outcome.code, outcome.err, len(service.talks)) == (OK, "", 12)


# Each meets its limit where only a large machine would: when a file is opened or read, or a
# worker begins.
NO_MORE_FILES = """
import builtins, errno, itertools, os
opened, count = builtins.open, itertools.count()
def limited(path, *more, **options):
    if str(path).endswith('.wav') and next(count) > 8:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return opened(path, *more, **options)
builtins.open = limited
"""
NO_MORE_THREADS = """
import itertools, threading
began, count = threading.Thread.start, itertools.count()
def limited(thread):
    if next(count) == NUMBER:
        raise RuntimeError("can't start new thread")
    began(thread)
threading.Thread.start = limited
"""
NO_MORE_MEMORY = """
import builtins, sys
opened = builtins.open
class Full:
    def __init__(self, file): self._file = file
    def __enter__(self): return self
    def __exit__(self, *_): self._file.close()
    def read(self, size): raise MemoryError
def limited(path, *more, **options):
    file = opened(path, *more, **options)
    is_message = sys._getframe(1).f_code.co_name == 'read_chunks'
    return Full(file) if is_message and str(path).endswith('03.wav') else file
builtins.open = limited
"""
NO_THREADS_SAID = "no more threads; raise the limits: ulimit -v, ulimit -u"
MEMORY_SAID = "no more memory; raise the limits"


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (NO_MORE_FILES, ("--jobs", 1), "too many open files; raise the limit: ulimit -n"),
        (NO_MORE_THREADS.replace("NUMBER", "0"), ("--jobs", 1), NO_THREADS_SAID),
        (NO_MORE_THREADS.replace("NUMBER", "3"), ("--jobs", 4), NO_THREADS_SAID),
        (NO_MORE_MEMORY, ("--jobs", 1, "--single-message"), MEMORY_SAID),
    ],
    ids=["files", "first thread", "fourth thread", "memory"],
)
def test_a_limit_that_is_met_in_mid_run_is_no_recordings_fault(
    command: Run, service: StandIn, folder: Path, ledger: Path, site: Site, code: str,
    words: tuple[object, ...], said: str,
) -> None:  # fmt: skip
    site(code)
    given = ("--audio-path", folder, "--ledger", ledger, "--quiet", *words)
    outcome = command(*given)
    assert outcome.code == CONFIG and said in outcome.err
    assert "cannot be read" not in outcome.err and "Traceback" not in outcome.err
    if code == NO_MORE_MEMORY:
        assert "stopped by a limit of this process" in outcome.err
    elif code == NO_MORE_FILES:
        assert command(*given, env={"PYTHONPATH": ""}).code == OK
        assert len(service.talks) == 12


# --- What this user may not read -------------------------------------------------------


def check_as_nobody(tree: Path, call: Path) -> tuple[int, str]:
    """Run a copy of the program for a user to whom permissions matter, on a bare Python."""
    words = ("--audio-path", call, "--connection-id", "1", "--key", KEY, "--dry-run")
    python = [*before_command(AS_NOBODY_SPECIAL), sys.executable, "-S"]
    command = [*python, str(tree / SCRIPT.name), *map(str, words)]
    process = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    return process.returncode, process.stderr


@pytest.fixture
def installed(tree: Path) -> Path:
    """Give the copy of the program an environment with packages of its own."""
    venv.create(tree / ".venv", symlinks=True)
    [packages] = (tree / ".venv").glob("lib/python3*/site-packages")
    for name in ("grpc", "google", "typing_extensions.py"):
        source = Path(grpc.__file__).parent.parent / name
        if source.is_dir():
            (packages / name).mkdir()
            for each in source.iterdir():
                (packages / name / each.name).symlink_to(each)
        elif source.exists():
            (packages / name).symlink_to(source)
    return tree


def test_what_this_user_may_not_read_is_named(installed: Path, call: Path) -> None:
    """Umask 077: `make`, which was the advice, would not help."""
    assert check_as_nobody(installed, call)[0] == OK
    packages = f".venv/lib/python3.{sys.version_info[1]}/site-packages"
    stub = "generated/yandex/cloud/speechsense/v1/talk_service_pb2.py"
    places = (".venv", ".venv/bin", packages, f"{packages}/grpc")
    for what in (*places, "generated", "generated/yandex", stub):
        for cache in installed.glob("generated/**/__pycache__"):
            shutil.rmtree(cache)
        place = installed / what
        mode = place.stat().st_mode
        place.chmod(0)
        try:
            code, err = check_as_nobody(installed, call)
        finally:
            place.chmod(mode)
        assert code == CONFIG, what
        [line] = err.splitlines()
        assert f"{place}" in line and "cannot be read" in line and "Permission denied" in line
        assert "make" not in line.replace("it was made", "")


def test_a_python_below_a_folder_that_this_user_may_not_enter_is_named(
    installed: Path, call: Path, tmp_path: Path
) -> None:
    """An environment that root made with a Python under /root."""
    private = tmp_path / "private"
    private.mkdir()
    python = installed / ".venv/bin/python"
    (private / "python3").symlink_to(sys.executable)
    python.unlink()
    python.symlink_to(private / "python3")
    assert check_as_nobody(installed, call)[0] == OK
    private.chmod(0)
    try:
        code, err = check_as_nobody(installed, call)
    finally:
        private.chmod(0o755)
    assert (code, err.count("\n")) == (CONFIG, 1)
    assert f"{python} cannot be read at {private}: Permission denied" in err


def test_away_from_its_clone_only_a_link_to_the_script_works(
    installed: Path, call: Path, folder: Path
) -> None:
    copy = Path(shutil.copy(SCRIPT, folder))
    code, err = check_as_nobody(folder, call)
    assert (code, err.count("\n")) == (CONFIG, 1)
    assert f"{folder} has no packages: upload_grpc.py is away from its clone" in err
    assert "link" in err and "make -C" not in err
    copy.unlink()
    copy.symlink_to(installed / SCRIPT.name)
    assert check_as_nobody(folder, call)[0] == OK


# --- What was refused, after a fix in the console ---------------------------------------


def test_retry_rejected(upload: Run, service: StandIn, folder: Path, ledger: Path) -> None:
    service.script += [REJECTED] * 12
    words = ("--audio-path", folder, "--ledger", ledger, "--format", "json", "--jobs", 1)
    assert upload(*words).code == DATA
    for _ in range(2):
        outcome = upload(*words)
        assert (outcome.code, len(service.calls)) == (DATA, 12)
        assert "--retry-rejected" in outcome.err
    service.script += [None, REJECTED]
    outcome = upload(*words, "--retry-rejected")
    assert (outcome.code, len(service.calls), len(service.talks)) == (DATA, 24, 11)
    assert sorted(ledgers.states(ledger)) == ["rejected"] + ["uploaded"] * 11
    for _ in range(2):
        outcome = upload(*words, "--retry-rejected", "--retry-unknown")
        assert (outcome.code, len(service.calls), len(service.talks)) == (OK, 25, 12)
    shutil.copy(folder / "00.wav", folder / "copy.wav")
    assert upload(*words, "--retry-rejected").code == OK
    assert len(service.calls) == 25


# --- Nobody holds up the others ---------------------------------------------------------

# That a copy of what is under way is not sent: here; in test_ledger.py of_names_for_one_content; in
# test_split.py a_copy_of_what_is_being_split_...


def test_a_copy_of_what_is_under_way_holds_up_no_other(
    command: Run, service: StandIn, folder: Path, ledger: Path
) -> None:
    make_wav(folder / "00-slow.wav", 6_000)
    shutil.copy(folder / "00-slow.wav", folder / "01-copy.wav")
    size_bytes = (folder / "00-slow.wav").stat().st_size
    others_are_done = threading.Event()

    def wait(call: Call) -> None:
        if len(service.talks) == 13:
            others_are_done.set()
        if call.bytes_received == size_bytes:
            assert others_are_done.wait(30)

    service.on_call = lambda _: At(answer=wait)
    outcome = command("--audio-path", folder, "--ledger", ledger, "--format", "json")
    assert outcome.code == OK
    lines = map(json.loads, outcome.out.splitlines())
    results = {os.path.basename(each["path"]): each for each in lines}
    assert len(results) == 14 and len(service.talks) == 13
    assert results["01-copy.wav"]["outcome"] == "already"
    assert results["01-copy.wav"]["talk_id"] == results["00-slow.wav"]["talk_id"]


def test_the_bar_walks_no_folder_while_results_wait(
    service: StandIn, folder: Path, site: Site, tmp_path: Path
) -> None:
    """A share that hangs when it is walked a second time."""
    site(
        "import os, time\n"
        "scan, seen = os.scandir, []\n"
        "def scandir(path='.'):\n"
        f"    if str(path) == {str(folder)!r}:\n"
        "        seen.append(path)\n"
        "        if len(seen) > 1:\n"
        f"            open({str(tmp_path / 'walked')!r}, 'w').close()\n"
        "            time.sleep(1000)\n"
        "    return scan(path)\n"
        "os.scandir = scandir\n"
    )
    service.on_call = lambda _: Delay(0.4)
    words = arguments(service, "--audio-path", folder, "--jobs", 4)
    code, received = on_terminal(*words, path=os.environ["PYTHONPATH"])
    assert code == OK and received.count("Dialog ID: ") == 12
    assert (tmp_path / "walked").exists(), "there was no bar"


def test_what_is_left_out_is_said_once_beside_a_bar(
    service: StandIn, folder: Path, site: Site
) -> None:
    site("import time\nreally = time.time\ntime.time = lambda: really() + 7_200\n")
    young = make_wav(folder / "young.wav", 3_000)
    os.utime(young, (time.time() + 7_200,) * 2)
    service.on_call = lambda _: Delay(0.4)
    words = ("--audio-path", folder, "--verbose", "--min-age", "1h", "--jobs", 4)
    code, received = on_terminal(*arguments(service, *words), path=os.environ["PYTHONPATH"])
    assert (code, len(service.talks)) == (OK, 12)
    assert " recordings" in received, "there was no bar"
    assert received.count(f"{young}: left out, younger than") == 1


# --- Bugs and signals ------------------------------------------------------------------

A_BUG = """
import builtins, os, sys, time
opened = builtins.open
def broken(path, *more, **options):
    if sys._getframe(1).f_code.co_name == 'read_chunks':
        if str(path).endswith('00.wav'):
            FIRST
        if str(path).endswith('01.wav'):
            while not os.path.exists(MARK):
                time.sleep(0.01)
            raise ZeroDivisionError('a bug')
    return opened(path, *more, **options)
builtins.open = broken
"""


def test_a_bug_in_one_worker_ends_the_run_though_another_hangs(
    command: Run, service: StandIn, folder: Path, site: Site, tmp_path: Path
) -> None:
    """With the deadlines of a signal: the ledger is not held for hours."""
    mark = repr(str(tmp_path / "mark"))
    hang = f"opened({mark}, 'w').close(); time.sleep(1000)"
    site(A_BUG.replace("MARK", mark).replace("FIRST", hang))
    outcome = command("--audio-path", folder, "--single-message", "--jobs", 2)
    assert outcome.code == BUG
    assert "ZeroDivisionError: a bug" in outcome.err
    assert "this is a bug: report it" in outcome.err
    assert "stopped by a bug" in outcome.err and "00.wav" in outcome.err
    assert service.talks == {}


def test_a_bug_leaves_the_others_their_answers(
    command: Run, service: StandIn, folder: Path, site: Site, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    site(A_BUG.replace("MARK", repr(str(mark))).replace("FIRST", "pass"))

    def wait(_: Call) -> None:
        mark.touch()
        time.sleep(0.7)

    service.on_call = lambda _: At(answer=wait)
    paths = (folder / "00.wav", folder / "01.wav")
    outcome = command("--audio-path", *paths, "--jobs", 2, "--single-message")
    assert outcome.code == BUG, outcome.err
    assert f"00.wav: Dialog ID: {next(iter(service.talks))}" in outcome.out


A_DISK_THAT_HANGS = """
import sqlite3, sys, time
connect = sqlite3.connect
class Connection(sqlite3.Connection):
    def execute(self, *words):
        frame = sys._getframe(1)
        while frame:
            if frame.f_code.co_name == 'record_result':
                open(MARK, 'w').close()
                time.sleep(1000)
            frame = frame.f_back
        return super().execute(*words)
sqlite3.connect = lambda *words, **options: connect(*words, factory=Connection, **options)
"""


@pytest.mark.parametrize("is_refused", [False, True])
def test_after_a_signal_a_disk_that_hangs_makes_no_doubt_of_an_answer(
    service: StandIn, call: Path, ledger: Path, site: Site, tmp_path: Path, is_refused: bool
) -> None:
    mark = tmp_path / "mark"
    site(A_DISK_THAT_HANGS.replace("MARK", repr(str(mark))))
    service.script += [REJECTED] if is_refused else []
    with start(*arguments(service, "--audio-path", call, "--ledger", ledger)) as process:
        wait_for(mark.exists)
        outcome = interrupt(process, "SIGTERM")
    assert "may or may not exist" not in outcome.err
    if is_refused:
        assert not outcome.out and REJECTED.details in outcome.err and "1 failed" in outcome.err
    else:
        [talk_id] = service.talks
        assert outcome.out == f"{call}: Dialog ID: {talk_id}\n"
        said = f"uploaded as {talk_id}, but the ledger could not record it: stopped by SIGTERM"
        assert said in outcome.err
    assert ledgers.states(ledger) == ["finishing"]


def test_sigint_at_any_moment_of_the_start_leaves_no_traceback(call: Path, tmp_path: Path) -> None:
    """But for the interpreter's own start, and the few statements that have to stand first."""
    (tmp_path / "grpc.py").write_text(
        "import sys, time\nprint('importing', file=sys.stderr, flush=True)\ntime.sleep(9)"
    )
    lines = SCRIPT.read_text("utf-8").splitlines()
    first = next(n for n, line in enumerate(lines, 1) if line.startswith("import argparse"))
    words = ("--audio-path", call, "--connection-id", "1", "--key", KEY, "--dry-run")
    while_importing = {"PYTHONPATH": str(tmp_path)}
    for number, env in enumerate((*[while_importing] * 2, *[{}] * 10)):
        with start(*words, env=env) as process:
            if env:
                assert process.stderr and process.stderr.readline() == "importing\n"
            else:
                time.sleep(number * 0.015)
            process.send_signal(signal.SIGINT)
            outcome = ended(process)
        if env:
            assert outcome.code in (-signal.SIGINT, 128 + signal.SIGINT)
            assert outcome.out == "" and "Traceback" not in outcome.err
        numbers = [int(found) for found in re.findall(rf'"{SCRIPT}", line (\d+)', outcome.err)]
        assert not numbers or max(numbers) < first, outcome.err
