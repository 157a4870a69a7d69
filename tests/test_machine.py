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
    Outcome,
    Run,
    arguments,
    before_command,
    make_wav,
    start,
    wait_for,
)
from stand_in import At, Call, Delay, Fail, StandIn
from test_command import tree
from test_progress import on_terminal

import upload_grpc

OK, DATA, NO_INPUT, BUG, AGAIN, CONFIG = 0, 65, 66, 70, 75, 78
__all__ = ["tree"]

REJECTED = Fail(grpc.StatusCode.INVALID_ARGUMENT, "no such key in the connection")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "calls"
    folder.mkdir()
    for number in range(12):
        make_wav(folder / f"{number:02}.wav", 3_000).with_suffix(".json").write_text("{}")
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Callable[[str], None]:
    """Have the interpreter run some code when it starts."""

    def write(code: str) -> None:
        folder = tmp_path / "site"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(code)
        os.environ["PYTHONPATH"] = str(folder)

    return write


# --- Limits --------------------------------------------------------------------------


def limited_to(soft: int, hard: int) -> list[str]:
    """Return what starts the command with such a limit on open files."""
    limits = f"resource.RLIMIT_NOFILE, ({soft}, {hard})"
    return before_command(f"import resource; resource.setrlimit({limits})")


@pytest.mark.parametrize("limit", [6, 8, 12, 16, 20, 30, 40])
def test_a_small_limit_on_open_files_is_one_line(
    service: StandIn, folder: Path, ledger: Path, limit: int
) -> None:
    """GRPC aborts, or calls good recordings unreadable, where it comes to its end meanwhile."""
    words = arguments(service, "--audio-path", folder, "--ledger", ledger, "--quiet")
    with start(*words, under=limited_to(limit, limit)) as process:
        out, err = process.communicate(timeout=60)
    if limit < 40:
        assert (process.returncode, out, service.calls) == (CONFIG, "", [])
        assert f"the limit on open files is {limit}; " in err and "ulimit -n" in err
        assert err.count("\n") == 1
    else:
        assert (process.returncode, err, len(service.talks)) == (OK, "", 12)


def test_a_small_soft_limit_on_open_files_is_raised(
    service: StandIn, folder: Path, ledger: Path
) -> None:
    words = arguments(service, "--audio-path", folder, "--ledger", ledger, "--quiet")
    with start(*words, under=limited_to(16, 1024)) as process:
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err, len(service.talks)) == (OK, "", 12)


def test_no_more_open_files_in_mid_run_is_no_recordings_fault(
    service: StandIn, folder: Path, ledger: Path, site: Callable[[str], None]
) -> None:
    site(
        "import builtins, errno, itertools, os\n"
        "opened, count = builtins.open, itertools.count()\n"
        "def limited(path, *more, **options):\n"
        "    if str(path).endswith('.wav') and next(count) > 8:\n"
        "        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))\n"
        "    return opened(path, *more, **options)\n"
        "builtins.open = limited\n"
    )
    words = arguments(service, "--audio-path", folder, "--ledger", ledger, "--quiet", "--jobs", 1)
    with start(*words) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == CONFIG
    assert "too many open files; raise the limit: ulimit -n" in err
    assert "cannot be read" not in err
    with start(*words, env={"PYTHONPATH": ""}) as process:
        process.communicate(timeout=60)
    assert (process.returncode, len(service.talks)) == (OK, 12)


@pytest.mark.parametrize("jobs", [1, 4])
def test_no_more_threads_is_one_line(
    service: StandIn, folder: Path, site: Callable[[str], None], jobs: int
) -> None:
    """`ulimit -u`: seen when the nth worker is to begin; this machine's root has no such limit."""
    site(
        "import itertools, threading\n"
        "began, count = threading.Thread.start, itertools.count()\n"
        "def limited(thread):\n"
        f"    if next(count) == {jobs - 1}:\n"
        '        raise RuntimeError("can\'t start new thread")\n'
        "    began(thread)\n"
        "threading.Thread.start = limited\n"
    )
    words = arguments(service, "--audio-path", folder, "--quiet", "--jobs", jobs)
    with start(*words) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == CONFIG
    assert "no more threads; raise the limits: ulimit -v, ulimit -u" in err
    assert "Traceback" not in err


def test_no_more_memory_for_a_single_message_is_one_line(
    service: StandIn, folder: Path, ledger: Path, site: Callable[[str], None]
) -> None:
    site(
        "import builtins\n"
        "def read(self, *size):\n"
        "    raise MemoryError\n"
        "opened = builtins.open\n"
        "class Full:\n"
        "    def __init__(self, file): self._file = file\n"
        "    def __enter__(self): return self\n"
        "    def __exit__(self, *_): self._file.close()\n"
        "    def read(self, size): raise MemoryError\n"
        "    def __getattr__(self, name): return getattr(self._file, name)\n"
        "def limited(path, *more, **options):\n"
        "    file = opened(path, *more, **options)\n"
        "    import sys\n"
        "    is_message = sys._getframe(1).f_code.co_name == 'read_chunks'\n"
        "    return Full(file) if is_message and str(path).endswith('03.wav') else file\n"
        "builtins.open = limited\n"
    )
    words = arguments(service, "--audio-path", folder, "--quiet", "--single-message", "--jobs", 1)
    with start(*words) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == CONFIG
    assert "no more memory; raise the limits" in err and "Traceback" not in err
    assert "stopped by a limit of this process" in err


# --- What this user may not read -------------------------------------------------------

WITHOUT_PACKAGES = (sys.executable, "-S")


def check_as_nobody(tree: Path, call: Path, python: tuple[object, ...]) -> Outcome:
    """Run a copy of the program for a user to whom permissions matter."""
    words = ("--audio-path", call, "--connection-id", "1", "--key", KEY, "--dry-run")
    command = [*before_command(AS_NOBODY_SPECIAL), *map(str, python), str(tree / SCRIPT.name)]
    with subprocess.Popen(
        [*command, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    ) as process:
        out, err = process.communicate(timeout=60)
    return Outcome(process.returncode, out, err)


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


@pytest.mark.parametrize(
    "what",
    [
        ".venv",
        ".venv/bin",
        ".venv/lib/python3.{minor}/site-packages",
        ".venv/lib/python3.{minor}/site-packages/grpc",
        "generated",
        "generated/yandex",
        "generated/yandex/cloud/speechsense/v1/talk_service_pb2.py",
    ],
)
def test_what_this_user_may_not_read_is_named(installed: Path, call: Path, what: str) -> None:
    """Umask 077: `make`, which was the advice, would not help."""
    python = WITHOUT_PACKAGES
    assert check_as_nobody(installed, call, python).code == OK
    place = installed / what.format(minor=sys.version_info[1])
    for cache in installed.glob("generated/**/__pycache__"):
        shutil.rmtree(cache)
    mode = place.stat().st_mode
    place.chmod(0)
    try:
        outcome = check_as_nobody(installed, call, python)
    finally:
        place.chmod(mode)
    assert (outcome.code, outcome.out) == (CONFIG, "")
    [line] = outcome.err.splitlines()
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
    assert check_as_nobody(installed, call, WITHOUT_PACKAGES).code == OK
    private.chmod(0)
    try:
        outcome = check_as_nobody(installed, call, WITHOUT_PACKAGES)
    finally:
        private.chmod(0o755)
    [line] = outcome.err.splitlines()
    assert outcome.code == CONFIG
    assert f"{python} cannot be read at {private}: Permission denied" in line


def test_a_copy_without_its_clone_says_where_it_belongs(tmp_path: Path, call: Path) -> None:
    alone = tmp_path / "bin"
    alone.mkdir()
    shutil.copy(SCRIPT, alone)
    outcome = check_as_nobody(alone, call, WITHOUT_PACKAGES)
    [line] = outcome.err.splitlines()
    assert outcome.code == CONFIG
    assert f"{alone} has no packages: upload_grpc.py is away from its clone" in line
    assert "link" in line and "make -C" not in line


def test_a_link_to_the_script_works(installed: Path, call: Path, tmp_path: Path) -> None:
    link = tmp_path / "bin" / SCRIPT.name
    link.parent.mkdir()
    link.symlink_to(installed / SCRIPT.name)
    assert check_as_nobody(link.parent, call, WITHOUT_PACKAGES).code == OK


# --- Certificates and keys as people paste them -----------------------------------------


@pytest.mark.parametrize("what", ["DER", "BOM", "BOM within", "UTF-16"])
def test_a_ca_file_that_is_no_pem(
    upload: Run, service: StandIn, call: Path, tmp_path: Path, what: str
) -> None:
    import ssl

    good = service.ca_file.read_text()
    bundle = f"{good}\ufeff{good}"
    content = {
        "DER": ssl.PEM_cert_to_DER_cert(good),
        "BOM": f"\ufeff{good}".encode(),
        "BOM within": bundle.encode(),
        "UTF-16": good.encode("utf-16"),
    }[what]
    path = tmp_path / "ca.crt"
    path.write_bytes(content)
    outcome = upload("--audio-path", call, "--ca-file", path)
    assert (outcome.code, outcome.out, service.calls) == (CONFIG, "", [])
    [line] = outcome.err.splitlines()
    assert f"--ca-file {path} is not PEM" in line and "trusted" not in line


PASTED = (
    *('"{}"', "'{}'", "API_KEY={}", "export API_KEY={}"),
    *("<{}>", "{0}\n{0}", "Api-Key {}", "{},"),
)


@pytest.mark.parametrize("pasted", PASTED)
@pytest.mark.parametrize("place", ["--key", "--key-file", "API_KEY", "IAM_TOKEN"])
def test_a_key_pasted_with_what_stood_around_it(
    service: StandIn,
    call: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    pasted: str,
    place: str,
) -> None:
    secret = "AQVNsecretsecretsecret"
    text = pasted.format(secret)
    (tmp_path / "key").write_text(text)
    words = arguments(service, "--audio-path", call)
    at = words.index("--key")
    del words[at : at + 2]
    options = {"--key": ["--key", text], "--key-file": ["--key-file", str(tmp_path / "key")]}
    if place.isupper():
        os.environ[place] = text
    code = upload_grpc.main([*words, *options.get(place, [])])
    out, err = capfd.readouterr()
    assert (code, out, service.calls) == (CONFIG, "", [])
    [line] = err.splitlines()
    assert place in line and "copy the key again" in line and "secret" not in line


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


def test_a_copy_of_what_is_rejected_again_is_not_sent_in_the_same_run(
    upload: Run, service: StandIn, tmp_path: Path, ledger: Path
) -> None:
    paths = [make_wav(tmp_path / f"{name}.wav", 3_000, seed=1) for name in "abc"]
    service.script += [REJECTED] * 9
    words = ("--audio-path", *paths, "--ledger", ledger)
    for number, more in ((1, []), (1, []), (2, ["--retry-rejected"]), (2, [])):
        outcome = upload(*words, *more)
        assert (outcome.code, len(service.calls)) == (DATA, number)


# --- Nobody holds up the others ---------------------------------------------------------


def test_a_copy_of_what_is_under_way_holds_up_no_other(
    service: StandIn, folder: Path, ledger: Path
) -> None:
    make_wav(folder / "00-slow.wav", 6_000)
    shutil.copy(folder / "00-slow.wav", folder / "01-copy.wav")
    size_bytes = (folder / "00-slow.wav").stat().st_size
    go_on = threading.Event()

    def wait(call: Call) -> None:
        if call.bytes_received == size_bytes:
            assert go_on.wait(60)

    service.on_call = lambda _: At(answer=wait)
    words = arguments(service, "--audio-path", folder, "--ledger", ledger, "--format", "json")
    with start(*words) as process:
        try:
            wait_for(lambda: sum(call.outcome[:2] == "OK" for call in service.calls) == 12)
        finally:
            go_on.set()
        out, _ = process.communicate(timeout=60)
    assert process.returncode == OK
    results = {os.path.basename(each["path"]): each for each in map(json.loads, out.splitlines())}
    assert len(results) == 14 and len(service.talks) == 13
    assert results["01-copy.wav"]["outcome"] == "already"
    assert results["01-copy.wav"]["talk_id"] == results["00-slow.wav"]["talk_id"]


def test_the_bar_walks_no_folder_while_results_wait(
    service: StandIn, folder: Path, site: Callable[[str], None], tmp_path: Path
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
    words = arguments(service, "--audio-path", folder, "--jobs", 2)
    code, received = on_terminal(*words, path=os.environ["PYTHONPATH"])
    assert code == OK and received.count("Dialog ID: ") == 12
    assert (tmp_path / "walked").exists(), "there was no bar"


def test_what_is_left_out_is_said_once_beside_a_bar(
    service: StandIn, folder: Path, site: Callable[[str], None]
) -> None:
    site("import time\nreally = time.time\ntime.time = lambda: really() + 7_200\n")
    young = make_wav(folder / "young.wav", 3_000)
    os.utime(young, (time.time() + 7_200,) * 2)
    service.on_call = lambda _: Delay(0.4)
    words = ("--audio-path", folder, "--verbose", "--min-age", "1h", "--jobs", 2)
    code, received = on_terminal(*arguments(service, *words), path=os.environ["PYTHONPATH"])
    assert (code, len(service.talks)) == (OK, 12)
    assert " recordings" in received, "there was no bar"
    assert received.count(f"{young}: left out, younger than") == 1


# --- Bugs and signals ------------------------------------------------------------------

HANGING_AND_BROKEN = """
import builtins, sys, time
opened = builtins.open
def broken(path, *more, **options):
    if sys._getframe(1).f_code.co_name == 'read_chunks':
        if str(path).endswith('00.wav'):
            time.sleep(1000)
        if str(path).endswith('01.wav'):
            time.sleep(1)
            raise ZeroDivisionError('a bug')
    return opened(path, *more, **options)
builtins.open = broken
"""


def test_a_bug_in_one_worker_ends_the_run_though_another_hangs(
    service: StandIn, folder: Path, site: Callable[[str], None]
) -> None:
    """With the deadlines of a signal: the ledger is not held for hours."""
    site(HANGING_AND_BROKEN)
    words = arguments(service, "--audio-path", folder, "--single-message", "--jobs", 2)
    with start(*words) as process:
        try:
            _, err = process.communicate(timeout=50)
        finally:
            process.kill()
    assert process.returncode == BUG
    assert "ZeroDivisionError: a bug" in err and "this is a bug: report it" in err
    assert "stopped by a bug" in err and "00.wav" in err
    assert service.talks == {}


def test_a_bug_leaves_the_others_their_answers(
    service: StandIn, folder: Path, ledger: Path, site: Callable[[str], None]
) -> None:
    site(HANGING_AND_BROKEN.replace("time.sleep(1000)", "pass").replace("sleep(1)", "sleep(0)"))
    service.on_call = lambda _: Delay(1.5)
    words = arguments(service, "--audio-path", folder / "00.wav", folder / "01.wav", "--jobs", 2)
    with start(*words, "--single-message") as process:
        out, err = process.communicate(timeout=50)
    assert process.returncode == BUG, err
    assert f"00.wav: Dialog ID: {next(iter(service.talks))}" in out


def test_sigint_at_any_moment_of_the_start_leaves_no_traceback(call: Path) -> None:
    """But for the interpreter's own start, and the few statements that have to stand first."""
    lines = SCRIPT.read_text("utf-8").splitlines()
    first = next(n for n, line in enumerate(lines, 1) if line.startswith("import argparse"))
    words = ("--audio-path", call, "--connection-id", "1", "--key", KEY, "--dry-run")
    interrupted, late = 0, []
    for number in range(30):
        with start(*words) as process:
            time.sleep(number * 0.005)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        interrupted += process.returncode != OK
        numbers = [int(found) for found in re.findall(rf'"{SCRIPT}", line (\d+)', err)]
        late += [err for n in numbers if n >= first]
    assert interrupted and late == []
