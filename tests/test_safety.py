"""No call is lost or doubled before the wire: files, clocks, dates, limits, and the ledger's file.

Each test is of one thing that went wrong once, seen from outside.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import select
import shutil
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import ledgers
import pytest
from conftest import (
    LONG_BYTES,
    WAYS,
    Outcome,
    Run,
    Waits,
    Way,
    arguments,
    before_command,
    make_wav,
    sha256,
    start,
)
from stand_in import At, Call, Fail, StandIn
from test_power_cut import ANSWER, KERNEL, NOTIFICATION, RECEIVE

import upload_grpc

pytestmark = pytest.mark.usefixtures("waits")

OK, DATA, NO_INPUT, BUG, AGAIN, UNKNOWN, CONFIG = 0, 65, 66, 70, 75, 76, 78
LOST = Fail(grpc.StatusCode.UNAVAILABLE, "gone", store=True)
REJECTED = Fail(grpc.StatusCode.INVALID_ARGUMENT, "not this one")


@pytest.fixture
def remember(upload: Run, ledger: Path, tmp_path: Path) -> Run:
    """Upload with a ledger and without a second try."""
    (tmp_path / "fields.json").write_text("{}")
    words = ("--ledger", ledger, "--meta-path", tmp_path / "fields.json", "--retries", 0)
    return lambda *more: upload(*words, "--audio-path", *more)


def contents(service: StandIn) -> list[str]:
    """Return the digests of the audio of all dialogs."""
    return sorted(talk.sha256 for talk in service.talks.values())


def put_mtime_back(path: Path, mtime_ns: int) -> None:
    os.utime(path, ns=(mtime_ns, mtime_ns))


def is_root() -> bool:
    return os.geteuid() == 0


# --- Files that change, and keep their time ------------------------------------------


def test_other_audio_of_the_same_name_size_and_mtime_is_another_call(
    remember: Run, service: StandIn, recording: Path
) -> None:
    """Recorders without a clock that reuse names; `touch -r`, `cp -p`."""
    mtime_ns = recording.stat().st_mtime_ns
    assert remember(recording).code == OK
    make_wav(recording, 600_000, seed=1)
    put_mtime_back(recording, mtime_ns)
    outcome = remember(recording, "--quiet")
    assert (outcome.code, outcome.err) == (OK, "")
    assert len(set(contents(service))) == len(service.calls) == 2
    replacement = make_wav(recording.with_name("other"), 600_000, seed=2)
    put_mtime_back(replacement, mtime_ns)
    replacement.rename(recording)
    assert remember(recording, "--quiet").code == OK
    assert len(set(contents(service))) == len(service.calls) == 3


def test_a_new_ctime_alone_costs_one_hash_after_what_is_new(
    remember: Run, service: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [make_wav(folder / f"{name}.wav", 3_000) for name in "ab"]
    remember(folder)
    for path in known:
        path.chmod(0o600)
    new = make_wav(folder / "z.wav", 3_000)
    hashed: list[str] = []
    really_hash = upload_grpc.hash_file

    def hash_file(path: str, *more: Any) -> str:
        hashed.append(path)
        return really_hash(path, *more)

    monkeypatch.setattr(upload_grpc, "hash_file", hash_file)
    for expected in ([new, *known], []):
        assert remember(folder, "--jobs", 1).code == OK
        assert hashed == [str(path) for path in expected]
        hashed.clear()
    assert len(service.calls) == 3


@WAYS
@pytest.mark.parametrize("what", ["changed", "only touched"])
def test_a_recording_changed_in_place_while_it_is_sent(
    remember: Run, service: StandIn, tmp_path: Path, ledger: Path, way: Way, what: str
) -> None:
    """A stream is changed while its audio arrives, a message while its call is prepared."""
    path = make_wav(tmp_path / "call.wav", LONG_BYTES)
    before = path.stat()

    def change(_: object = None) -> None:
        if what == "changed":
            with open(path, "r+b") as file:
                file.seek(-1000, os.SEEK_END)
                file.write(b"\1" * 1000)
        path.chmod(0o600)
        put_mtime_back(path, before.st_mtime_ns)

    if way:
        check = upload_grpc.check_unchanged

        def change_first(*more: Any) -> None:
            change()
            check(*more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(upload_grpc, "check_unchanged", change_first)
            outcome = remember(path, *way)
    else:
        service.script.append(At(audio=change))
        outcome = remember(path, *way)
    assert path.stat().st_ctime_ns != before.st_ctime_ns
    if what == "changed":
        assert (outcome.code, outcome.out) == (AGAIN, "")
        assert "changed or was replaced while it was being uploaded" in outcome.err
        service.wait_until_idle()
        assert (contents(service), ledgers.states(ledger)) == ([], ["failed"])
    else:
        assert outcome.code == OK
        assert contents(service) == [sha256(path)]
        row = ledgers.row(ledger)
        assert (row["state"], row["ctime_ns"]) == ("uploaded", path.stat().st_ctime_ns)
        assert remember(path, "--quiet", "--jobs", 1).code == OK
    assert len(service.calls) <= 1


# --- Dates and names from hell -------------------------------------------------------


def test_a_file_of_any_date_holds_up_no_other(
    remember: Run, service: StandIn, folder: Path, ledger: Path
) -> None:
    """2300 does not fit 64 bits of nanoseconds; what is a file's date is the disk's affair."""
    dates_s = (10_413_792_000, 2**33, -(2**31), -1, 0)
    for number, date_s in enumerate(dates_s):
        path = make_wav(folder / f"{number}.wav", 3_000)
        os.utime(path, (date_s, date_s))
    for name in "ab":
        make_wav(folder / f"{name}.wav", 3_000)
    for number in range(2):
        outcome = remember(folder, "--quiet" if number else "--verbose")
        assert (outcome.code, len(service.calls)) == (OK, 7), outcome.err
    assert set(ledgers.states(ledger)) == {"uploaded"}


@pytest.mark.parametrize("error", [ValueError, OverflowError, RecursionError, OSError])
def test_an_error_of_one_recording_holds_up_no_other(
    remember: Run,
    service: StandIn,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    """Whatever it is that cannot be converted, this time."""
    for name in "abc":
        make_wav(folder / f"{name}.wav", 3_000)
    read = upload_grpc.read_header

    def read_header(path: str, *more: Any) -> Any:
        if path.endswith("b.wav"):
            raise error("no such number")
        return read(path, *more)

    monkeypatch.setattr(upload_grpc, "read_header", read_header)
    outcome = remember(folder)
    assert (outcome.code, len(service.talks)) == (NO_INPUT, 2)
    assert re.search(r"/b\.wav: cannot be read: no such number", outcome.err)


def test_a_ledger_with_a_time_that_is_none_holds_up_no_other(
    remember: Run, service: StandIn, folder: Path, ledger: Path
) -> None:
    for name in "ab":
        make_wav(folder / f"{name}.wav", 3_000).with_suffix(".json").write_text("{}")
    remember(folder)
    ledgers.change(ledger, {"path": str(folder / "a.wav")}, updated_at="yesterday")
    make_wav(folder / "c.wav", 3_000)
    outcome = remember(folder)
    assert (outcome.code, len(service.talks)) == (OK, 3)


def test_names_that_are_not_utf_8_hold_up_no_other(
    remember: Run, service: StandIn, folder: Path, ledger: Path
) -> None:
    """Neither in the path nor within the text of a problem."""
    for seed, name in enumerate((b"a\xff", b"b\xff", b"c")):
        path = make_wav(folder / os.fsdecode(name + b".wav"), 3_000, seed=seed)
        if name == b"b\xff":
            path.with_suffix(".json").write_text("{")
    outcome = remember(folder)
    assert (outcome.code, len(service.talks)) == (DATA, 2), outcome.err
    assert ledgers.states(ledger) == ["uploaded"] * 2


@pytest.fixture
def nested(folder: Path) -> Iterator[Path]:
    """Make a folder with a recording in it, and another one 1,200 folders deeper."""
    make_wav(folder / "z.wav", 3_000)
    source = make_wav(folder.parent / "deep.wav", 3_000)
    with contextlib.ExitStack() as undo:
        # Removed from within: the interpreter that recurses has its limits, too.
        undo.callback(lambda: subprocess.run(["rm", "-rf", folder], check=True))
        for _ in range(1_200):
            os.mkdir(folder / "new")
            if (folder / "d").exists():
                (folder / "d").rename(folder / "new/d")
            else:
                shutil.copy(source, folder / "new")
            (folder / "new").rename(folder / "d")
        yield folder


@pytest.mark.parametrize("with_ledger", [False, True])
def test_1200_nested_folders(
    upload: Run, service: StandIn, nested: Path, ledger: Path, with_ledger: bool
) -> None:
    words = ("--ledger", ledger) if with_ledger else ()
    outcome = upload("--audio-path", nested, "--format", "json", *words)
    assert (outcome.code, len(service.talks)) == (OK, 2)
    paths = sorted(json.loads(line)["path"] for line in outcome.out.splitlines())
    assert paths == [f"{nested}{'/d' * 1_200}/deep.wav", f"{nested}/z.wav"]


@pytest.mark.parametrize("with_ledger", [False, True])
def test_a_working_directory_that_is_gone(
    service: StandIn, folder: Path, ledger: Path, tmp_path: Path, with_ledger: bool
) -> None:
    make_wav(folder / "a.wav", 3_000)
    ledgers_words = ("--ledger", ledger) if with_ledger else ()
    tries: list[tuple[list[object], int]] = [
        ([folder], OK),
        (["calls"], NO_INPUT),
        ([folder, "call.wav"], NO_INPUT),
    ]
    for number, (paths, code) in enumerate(tries):
        gone = tmp_path / f"gone{number}"
        gone.mkdir()
        under = before_command(f"os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})")
        words = arguments(service, "--audio-path", *paths, *ledgers_words)
        with start(*words, under=under) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert "Traceback" not in err and "bug" not in err
        assert ("Dialog ID" in out) == (number == 0 or (number == 2 and not with_ledger))
    words = arguments(service, "--audio-path", folder, "--ledger", "here.sqlite", begun=False)
    gone.mkdir()
    with start(*words, under=under) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == CONFIG and "ledger here.sqlite: No such file" in err


# --- A service's words, and IDs that are none ----------------------------------------

HOSTILE = "evil\u202etxt.\u2028next\x1b[2J\x07\x7f\u2066end"


def test_a_services_words_are_cut_and_escaped(
    remember: Run, service: StandIn, call: Path, ledger: Path
) -> None:
    service.script.append(Fail(grpc.StatusCode.INVALID_ARGUMENT, HOSTILE + "x" * 7_000))
    outcome = remember(call, "--format", "json")
    assert outcome.code == DATA
    [line] = outcome.err.splitlines()
    assert "evil\\u202etxt. next\\x1b[2J\\x07\\x7f\\u2066end" in line
    assert line.isprintable() and 500 < len(line) < 1_100
    # The IDs that the service's support asks for come after its words.
    assert f"request {service.calls[0].client_request_id}, x-request-id" in line
    assert outcome.out.isascii() and outcome.out.count("\n") == 1
    result = json.loads(outcome.out)
    assert result["error"].isprintable() and len(result["error"]) < 1_100
    error = ledgers.row(ledger)["error"]
    assert error.isprintable() and len(error) <= 1_010
    with contextlib.closing(sqlite3.connect(ledger)) as database:
        texts = [text for (text,) in database.execute("SELECT text FROM problems")]
    assert len(texts) == 1 and texts[0].isprintable() and len(texts[0]) <= 1_010
    again = remember(call)
    assert again.code == DATA and again.err.count("\n") == 1 and len(again.err) < 1_100


def test_a_long_path_does_not_hide_the_reason(upload: Run, folder: Path) -> None:
    long = folder
    for _ in range(12):
        long /= "long" * 50
    long.mkdir(parents=True)
    (long / "call.wav").write_text("no audio")
    outcome = upload("--audio-path", long / "call.wav")
    assert outcome.code == DATA and len(outcome.err) < 1_100
    assert "not a recording in a known format" in outcome.err


def test_ids_are_printed_and_kept_clean(
    remember: Run, service: StandIn, call: Path, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stand_in._new_id", lambda: "an\x1b[2Jid\u202e")
    monkeypatch.setattr(StandIn, "save", lambda *_: None)
    outcome = remember(call)
    assert (outcome.code, outcome.out) == (OK, "Dialog ID: an\\x1b[2Jid\\u202e\n")
    assert ledgers.row(ledger)["talk_id"].isprintable()


@WAYS
def test_a_blank_id_is_none(
    remember: Run,
    service: StandIn,
    call: Path,
    ledger: Path,
    way: Way,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stand_in._new_id", lambda: " ")
    outcome = remember(call, *way)
    assert (outcome.code, outcome.out) == (UNKNOWN, "")
    assert "without an ID" in outcome.err
    assert ledgers.states(ledger) == ["unknown"]


def test_a_blank_id_among_those_of_a_split_recording_is_none(
    upload: Run, service: StandIn, call: Path, monkeypatch: pytest.MonkeyPatch, waits: Waits
) -> None:
    ids = iter(["badge", "operation", " ", "\t"])
    monkeypatch.setattr("stand_in._new_id", lambda: next(ids))
    monkeypatch.setattr(StandIn, "save", lambda *_: None)
    outcome = upload("--audio-path", call, "--split", "--wait")
    assert outcome.code == DATA and "its result has no dialog" in outcome.err
    assert "Dialog ID" not in outcome.out


# --- One ledger, one file, begun by hand ----------------------------------------------


def assert_refused(outcome: Outcome, service: StandIn, *facts: str) -> None:
    """One line, 78, and nothing was sent."""
    assert (outcome.code, outcome.out, service.calls) == (CONFIG, "", [])
    assert outcome.err.count("\n") == 1, outcome.err
    for fact in facts:
        assert fact in outcome.err


def test_a_ledger_with_a_second_name_is_refused(
    remember: Run, service: StandIn, call: Path, ledger: Path
) -> None:
    """SQLite finds what a run has committed by the ledger's name."""
    other = ledger.with_name("other.sqlite")
    remember("--dry-run", call)
    os.link(ledger, other)
    for path in (ledger, other):
        for words in ((), ("--quiet",), ("--dry-run",)):
            outcome = remember(call, "--ledger", path, *words)
            assert_refused(outcome, service, f"ledger {path}: it has more than one name")
    other.unlink()
    assert remember(call).code == OK


def in_a_namespace(script: str, *words: object) -> Outcome:
    """Run the command where a shell script has mounted something, which nobody else sees."""
    shell = ("unshare", "--mount", "--propagation", "private", "sh", "-ec", f'{script}\nexec "$@"')
    if not is_root() or not shutil.which("unshare") or not shutil.which("mount"):
        pytest.skip("only root may mount, with unshare and mount")
    if subprocess.run([*shell, "sh", "true"], capture_output=True, check=False).returncode:
        pytest.skip("may not mount here")
    with start(*words, under=(*shell, "sh")) as process:
        out, err = process.communicate(timeout=60)
    return Outcome(process.returncode, out, err)


@pytest.mark.parametrize("name", ["ledger.sqlite", "a ledger\t\\of ünits.sqlite", "link.sqlite"])
def test_a_ledger_that_is_a_mount_of_its_own_is_refused(
    service: StandIn, call: Path, tmp_path: Path, name: str
) -> None:
    """A single file that is mounted into a container."""
    real, volume = tmp_path / "real", tmp_path / "volume"
    real.mkdir()
    volume.mkdir()
    mounted = volume / name
    if name == "link.sqlite":
        mounted = volume / "leads-to.sqlite"
        (volume / name).symlink_to(mounted)
    mounted.touch()
    words = arguments(service, "--audio-path", call, "--ledger", real / "ledger.sqlite")
    mount = f"mount --bind '{real}/ledger.sqlite' '{mounted}'"
    given = [str(volume / name) if word.endswith("real/ledger.sqlite") else word for word in words]
    assert_refused(in_a_namespace(mount, *given), service, "mount point", "mount the folder")
    assert sorted(path.name for path in volume.iterdir()) == sorted({name, mounted.name})
    # Its folder may be mounted.
    given = [
        str(volume / "ledger.sqlite") if word == str(volume / name) else word for word in given
    ]
    outcome = in_a_namespace(f"mount --bind '{real}' '{volume}'", *given)
    assert (outcome.code, len(service.talks)) == (OK, 1), outcome.err


@pytest.mark.parametrize("what", ["missing", "empty", "a missing folder", "an empty database"])
def test_cron_begins_no_ledger(
    upload: Run, service: StandIn, call: Path, tmp_path: Path, what: str
) -> None:
    """Mistyped, a container without its volume, or moved: everything was sent again."""
    ledger = tmp_path / ("no/ledger.sqlite" if "folder" in what else "ledger.sqlite")
    if what == "empty":
        ledger.touch()
    elif "database" in what:  # Not a byte is there, but SQLite's header.
        with contextlib.closing(sqlite3.connect(ledger)) as database:
            database.execute("CREATE TABLE new (column)")
            database.execute("DROP TABLE new")
    before = {path.name: path.stat().st_size for path in tmp_path.glob("led*")}

    def run(*more: str) -> Outcome:
        return upload("--audio-path", call, "--ledger", ledger, *more, begun=False)

    said = "empty" if what in ("empty", "an empty database") else "missing"
    assert_refused(run("--quiet"), service, f"{ledger}: {said}, and --quiet begins none", "by hand")
    if "database" not in what:  # Of that one the lock has to be taken first.
        assert {path.name: path.stat().st_size for path in tmp_path.glob("led*")} == before
    for words in ((), ("--quiet",)):
        dry = run("--dry-run", *words)
        assert dry.code == OK and "would be uploaded" in dry.out
        assert ("none there" in dry.err) == (not words)
    if "database" not in what:
        assert {path.name: path.stat().st_size for path in tmp_path.glob("led*")} == before
    if "folder" in what:
        assert_refused(run(), service, "No such file or directory")
        return
    by_hand = run()
    assert by_hand.code == OK and "begins a new ledger" in by_hand.err
    assert run("--quiet").code == OK and len(service.calls) == 1


@pytest.mark.parametrize("words", [(), ("--quiet",), ("--dry-run",)], ids=str)
@pytest.mark.parametrize("what", ["missing", "empty"])
def test_a_log_without_its_ledger_is_kept(
    remember: Run,
    upload: Run,
    service: StandIn,
    call: Path,
    ledger: Path,
    tmp_path: Path,
    what: str,
    words: tuple[str, ...],
) -> None:
    """The results in it were destroyed when a new ledger was begun beside it."""
    remember(call)
    service.calls.clear()
    moved = tmp_path / "moved.sqlite"
    with ledgers.changed(ledger, error="in the log"):
        log = Path(f"{ledger}-wal").read_bytes()
        ledger.rename(moved)
        if what == "empty":
            ledger.touch()
    Path(f"{ledger}-wal").write_bytes(log)
    outcome = upload("--audio-path", call, "--ledger", ledger, *words, begun=False)
    assert_refused(outcome, service, "-wal file is there", "put the ledger back")
    assert Path(f"{ledger}-wal").read_bytes() == log
    ledger.unlink(missing_ok=True)
    moved.rename(ledger)
    assert remember(call, "--quiet").code == OK
    assert (service.calls, ledgers.row(ledger)["error"]) == ([], "in the log")


@pytest.mark.parametrize("suffix", ["-lock", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize("words", [(), ("--quiet",), ("--dry-run",)], ids=str)
def test_no_file_beside_the_ledger_is_opened_through_a_link(
    remember: Run,
    service: StandIn,
    call: Path,
    ledger: Path,
    tmp_path: Path,
    suffix: str,
    words: tuple[str, ...],
) -> None:
    remember("--dry-run", call)
    target = tmp_path / "elsewhere"
    link = Path(f"{ledger}{suffix}")
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    assert_refused(remember(call, *words), service, f"its {suffix} file is a symbolic link")
    assert not target.exists()
    target.write_text("somebody else's")
    again = remember(call, *words)
    if words == ("--quiet",):  # Said once a day.
        assert again == Outcome(CONFIG, "", "")
    else:
        assert_refused(again, service, f"its {suffix} file is a symbolic link")
    assert target.read_text() == "somebody else's"


def test_a_lock_that_becomes_a_link_meanwhile_is_not_followed(
    remember: Run,
    service: StandIn,
    call: Path,
    ledger: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remember("--dry-run", call)
    lock, target = Path(f"{ledger}-lock"), tmp_path / "elsewhere"
    lock.unlink()
    take = upload_grpc.LedgerFile._take_lock

    def link_first(file: upload_grpc.LedgerFile) -> int:
        lock.symlink_to(target)
        return take(file)

    monkeypatch.setattr(upload_grpc.LedgerFile, "_take_lock", link_first)
    assert_refused(remember(call), service, str(ledger))
    assert not target.exists()


def test_a_ledger_behind_links_that_go_round_in_circles(
    upload: Run, service: StandIn, call: Path, tmp_path: Path
) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    outcome = upload("--audio-path", call, "--ledger", tmp_path / "a")
    assert_refused(outcome, service, "symbolic links")
    assert "-lock" not in outcome.err


# --- First runs ----------------------------------------------------------------------

# x86-64 and ARM64 (asm/unistd.h): seccomp, then what a first run does to its ledger's files.
STEPS: tuple[int, ...] = {
    "x86_64": (317, 18, 74, 75, 76, 77, 87, 263, 257),
    "aarch64": (277, 68, 82, 83, 45, 46, 35, 35, 56),
}.get(platform.machine(), ())
# Like test_power_cut.ASK, for any number of system calls.
ASK = """
import ctypes, os, socket, struct, sys
channel, seccomp, *numbers = map(int, sys.argv[1].split(","))
jumps = b"".join(struct.pack("HBBI", 0x15, len(numbers) - i, 0, number)
                 for i, number in enumerate(numbers))
rules = ctypes.create_string_buffer(struct.pack("HBBI", 0x20, 0, 0, 0) + jumps
    + struct.pack("HBBI" * 2, 6, 0, 0, 0x7FFF0000, 6, 0, 0, 0x7FC00000))
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)
listener = libc.syscall(seccomp, 1, 8, struct.pack("HP", len(numbers) + 3, ctypes.addressof(rules)))
if listener < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
socket.send_fds(socket.socket(fileno=channel), [b"x"], [listener])
os.execv(sys.argv[2], sys.argv[2:])
"""


class Steps:
    """Keeps what there is of a ledger before each step that the command takes with its files.

    The kernel asks before each write, sync, truncation, removal and opening (seccomp's user
    notification, see test_power_cut.py). What is there then is what a kill would leave.
    """

    def __init__(self, folder: Path, service: StandIn) -> None:
        self.left: list[tuple[Path, bool]] = []  # A copy, and whether a call had begun.
        self._folder = folder
        self._service = service

    def run(self, *words: str) -> int:
        """Run the command; return its exit code."""
        ours, theirs = socket.socketpair()
        numbers = ",".join(map(str, (theirs.fileno(), *STEPS)))
        ask = [sys.executable, "-c", ASK, numbers]
        with ours, start(*words, under=ask, pass_fds=[theirs.fileno()]) as process:
            theirs.close()
            _, listeners, _, _ = socket.recv_fds(ours, 1, 1)
            if not listeners:
                pytest.skip(f"this kernel does not tell of writes: {process.communicate()[1]}")
            watching = threading.Thread(target=self._watch, args=listeners)
            watching.start()
            try:
                process.communicate(timeout=60)
            finally:
                process.kill()
                watching.join()
        return process.returncode

    def _watch(self, listener: int) -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        with contextlib.suppress(OSError), contextlib.ExitStack() as undo:
            undo.callback(os.close, listener)
            while not poll.poll()[0][1] & select.POLLHUP:
                notification = bytearray(NOTIFICATION.size)
                fcntl.ioctl(listener, RECEIVE, notification)
                number, thread, _, call, _, _, *rest = NOTIFICATION.unpack(notification)
                if self._is_of_ledger(thread, call, rest):
                    copy = self._folder.with_name(f"step-{len(self.left)}")
                    self.left.append((copy, bool(self._service.calls)))
                    shutil.copytree(self._folder, copy)
                fcntl.ioctl(listener, ANSWER, struct.pack("=QqiI", number, 0, 0, 1))

    def _is_of_ledger(self, thread: int, call: int, rest: list[int]) -> bool:
        """Return whether a system call is about a file in the ledger's folder."""
        by_descriptor = call in STEPS[1:4] or call == STEPS[5]
        if by_descriptor:
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{thread}/fd/{rest[0]}")
                return target.startswith(f"{self._folder}/")
            return False
        path_at = rest[0] if call in (76, 87, 45) and platform.machine() == "x86_64" else rest[1]
        with contextlib.suppress(OSError), open(f"/proc/{thread}/mem", "rb") as memory:
            memory.seek(path_at)
            return memory.read(500).startswith(f"{self._folder}/".encode())
        return False


@pytest.mark.skipif(
    not STEPS or KERNEL < [5, 9], reason="a kernel that tells of writes: Linux 5.9, x86-64 or ARM64"
)
def test_first_runs_killed_at_any_step_block_nothing(
    service: StandIn, call: Path, folder: Path, upload: Run
) -> None:
    """Up to the first byte that is sent: what comes after is what test_power_cut.py is about."""
    words = ("--audio-path", call, "--ledger")
    steps = Steps(folder, service)
    given = arguments(service, *words, folder / "ledger.sqlite", begun=False)
    assert steps.run(*given) == OK
    assert [was_sent for _, was_sent in steps.left].count(False) > 15, "steps were not noticed"
    assert len(service.talks) == 1
    sent = 0
    for copy, was_sent in steps.left:
        service.talks.clear()
        ledger = copy / "ledger.sqlite"
        given = arguments(service, *words, ledger, begun=False)
        quiet = upload_grpc.main([*given, "--quiet"])
        assert quiet in ((OK, UNKNOWN) if was_sent else (OK, CONFIG))
        if quiet == CONFIG:  # As if there were none, and begun by hand as well.
            assert not service.talks
            quiet = upload_grpc.main(given)
        assert quiet == OK or was_sent
        ledgers.check(ledger)
        assert len(service.talks) == (quiet == OK) or was_sent
        sent += was_sent
        if sent > 3:
            break


def test_two_first_runs_at_once(
    service: StandIn, folder: Path, tmp_path: Path, ledger: Path
) -> None:
    for number in range(4):
        make_wav(folder / f"{number}.wav", 3_000)
    one_has_ended = threading.Event()

    def wait(_: Call) -> None:
        assert one_has_ended.wait(60)

    service.on_call = lambda _: At(answer=wait)
    for number in range(6):
        here = tmp_path / f"{number}.sqlite"
        words = arguments(service, "--audio-path", folder, "--ledger", here, begun=False)
        service.talks.clear()
        one_has_ended.clear()
        quiet = ("--quiet",) if number % 2 else ()
        with start(*words) as first, start(*words, *quiet) as second:
            while first.poll() is None and second.poll() is None:
                time.sleep(0.01)
            one_has_ended.set()
            first.communicate(timeout=60)
            _, err = second.communicate(timeout=60)
        codes = sorted((first.returncode, second.returncode))
        # With --quiet it may have come before there was anything, which it does not begin.
        allowed = [[OK, AGAIN], [OK, CONFIG]] if quiet else [[OK, AGAIN]]
        assert codes in allowed, err
        assert len(set(contents(service))) == len(service.talks) == 4


def test_a_quiet_run_beside_a_first_run_is_told_of_it(
    remember: Run, service: StandIn, call: Path, ledger: Path
) -> None:
    """The first run has the lock, and the ledger is still empty."""
    ledger.touch()
    with open(f"{ledger}-lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert remember(call, "--quiet") == Outcome(AGAIN, "", "")
        assert "another run is using it" in remember(call).err
        assert remember(call, "--quiet", "--dry-run").code == OK
    assert remember(call, "--quiet").code == CONFIG
    assert service.calls == []
