"""No call is lost or doubled before the wire: files, clocks, dates, limits, and the ledger's file.

Each test is of one thing that went wrong once, seen from outside.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import sqlite3
import subprocess
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import ledgers
import pytest
from conftest import (
    LONG_BYTES,
    SINGLE,
    STREAM,
    WAYS,
    Outcome,
    Run,
    Way,
    arguments,
    assert_refused,
    before_command,
    contents,
    ended,
    make_wav,
    sha256,
    start,
)
from stand_in import At, Call, Fail, StandIn
from test_power_cut import NEEDS_SECCOMP, run_watched

import upload_grpc

pytestmark = pytest.mark.usefixtures("waits")

OK, DATA, NO_INPUT, AGAIN, UNKNOWN, CONFIG = 0, 65, 66, 75, 76, 78


@pytest.fixture
def remember(upload: Run, ledger: Path, tmp_path: Path) -> Run:
    """Upload with a ledger and without a second try."""
    (tmp_path / "fields.json").write_text("{}")
    words = ("--ledger", ledger, "--meta-path", tmp_path / "fields.json", "--retries", 0)
    return lambda *more: upload(*words, "--audio-path", *more)


def make_calls(folder: Path, *names: str) -> list[Path]:
    return [make_wav(folder / f"{name}.wav", 3_000) for name in names]


def put_mtime_back(path: Path, mtime_ns: int) -> None:
    os.utime(path, ns=(mtime_ns, mtime_ns))


def is_root() -> bool:
    return os.geteuid() == 0


# --- Files that change, and keep their time ------------------------------------------


def test_a_file_replaced_after_it_was_hashed_is_not_taken_for_that_audio(
    remember: Run, service: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved without its JSON after its upload, a call is known by its audio."""
    call = make_wav(folder / "a.wav", 3_000)
    call.with_suffix(".json").write_text("{}")
    words = (folder, "--require-json", "0")
    assert remember(*words).code == OK
    call.with_suffix(".json").unlink()
    call = call.rename(folder / "b.wav")
    read_header = upload_grpc.read_header

    def replace(path: str, args: Namespace) -> Any:
        make_wav(folder / "new", 3_000, seed=2).replace(path)
        return read_header(path, args)

    with monkeypatch.context() as patch:
        patch.setattr(upload_grpc, "read_header", replace)
        outcome = remember(*words)
    assert outcome.code == AGAIN and "replaced after it was hashed" in outcome.err
    call.with_suffix(".json").write_text("{}")
    assert remember(*words).code == OK
    assert len(set(contents(service))) == len(service.talks) == 2


def test_other_audio_of_the_same_name_size_and_mtime_is_another_call(
    remember: Run, service: StandIn, recording: Path
) -> None:
    """Recorders without a clock that reuse names; `touch -r`, `cp -p`."""
    mtime_ns = recording.stat().st_mtime_ns
    assert remember(recording).code == OK
    for number, name in enumerate((recording.name, "other"), 2):
        other = make_wav(recording.with_name(name), 600_000, seed=number)
        put_mtime_back(other, mtime_ns)
        other.rename(recording)
        outcome = remember(recording, "--quiet")
        assert outcome == Outcome(OK, f"{recording}: Dialog ID: {[*service.talks][-1]}\n", "")
        assert len(set(contents(service))) == len(service.calls) == number


def test_a_new_ctime_alone_costs_one_hash_after_what_is_new(
    remember: Run, service: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = make_calls(folder, "a", "b")
    remember(folder)
    for path in known:
        path.chmod(0o600)
    hashed: list[str] = []
    really_hash = upload_grpc.hash_file

    def hash_file(path: str, *more: Any) -> str:
        hashed.append(path)
        return really_hash(path, *more)

    monkeypatch.setattr(upload_grpc, "hash_file", hash_file)
    for expected in ([*make_calls(folder, "z"), *known], []):
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
    check = upload_grpc.check_unchanged

    def change(*_: object) -> None:
        if what == "changed":
            with open(path, "r+b") as file:
                file.seek(-1000, os.SEEK_END)
                file.write(b"\1" * 1000)
        path.chmod(0o600)
        put_mtime_back(path, before.st_mtime_ns)

    def change_first(*more: Any) -> None:
        change()
        check(*more)

    with pytest.MonkeyPatch.context() as patch:
        if way:
            patch.setattr(upload_grpc, "check_unchanged", change_first)
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
        assert (outcome.code, contents(service)) == (OK, [sha256(path)])
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
    for date_s, path in zip(dates_s, make_calls(folder, *"01234ab"), strict=False):
        os.utime(path, (date_s, date_s))
    for word in ("--verbose", "--quiet"):
        outcome = remember(folder, word)
        assert (outcome.code, len(service.calls)) == (OK, 7), outcome.err
    assert set(ledgers.states(ledger)) == {"uploaded"}


@pytest.mark.parametrize("error", [ValueError, OverflowError, RecursionError, OSError])
def test_an_error_of_one_recording_holds_up_no_other(
    remember: Run, service: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:  # fmt: skip
    """Whatever it is that cannot be converted, this time."""
    make_calls(folder, *"abc")
    read = upload_grpc.read_header

    def read_header(path: str, *more: Any) -> Any:
        if path.endswith("b.wav"):
            raise error("no such number")
        return read(path, *more)

    monkeypatch.setattr(upload_grpc, "read_header", read_header)
    outcome = remember(folder)
    assert (outcome.code, len(service.talks)) == (NO_INPUT, 2)
    assert re.search(r"/b\.wav: cannot be read: no such number", outcome.err)


def test_names_that_are_not_utf_8_hold_up_no_other(
    remember: Run, service: StandIn, folder: Path, ledger: Path
) -> None:
    """Neither in the path nor within the text of a problem."""
    for path in make_calls(folder, *"abc")[:2]:
        path.rename(folder / os.fsdecode(path.stem.encode() + b"\xff.wav"))
    (folder / os.fsdecode(b"b\xff.json")).write_text("{")
    outcome = remember(folder)
    assert (outcome.code, len(service.talks)) == (DATA, 2), outcome.err
    assert ledgers.states(ledger) == ["uploaded"] * 2


@pytest.fixture
def nested(folder: Path) -> Iterator[Path]:
    """Make a folder with a recording in it, and another one 1,200 folders deeper."""
    make_calls(folder, "z")
    deep, new = folder / "d", folder / "new"
    with contextlib.ExitStack() as undo:
        # Removed from within: the interpreter that recurses has its limits, too.
        undo.callback(lambda: subprocess.run(["rm", "-rf", folder], check=True))
        deep.mkdir()
        make_calls(deep, "deep")
        for _ in range(1_199):
            new.mkdir()
            deep.rename(new / "d")
            new.rename(deep)
        yield folder


def test_1200_nested_folders(upload: Run, service: StandIn, nested: Path, ledger: Path) -> None:
    for number, words in enumerate(((), ("--ledger", ledger)), 1):
        outcome = upload("--audio-path", nested, "--format", "json", *words)
        assert (outcome.code, len(service.talks)) == (OK, 2 * number)
        paths = sorted(json.loads(line)["path"] for line in outcome.out.splitlines())
        assert paths == [f"{nested}{'/d' * 1_200}/deep.wav", f"{nested}/z.wav"]


@pytest.mark.parametrize("with_ledger", [False, True])
def test_a_working_directory_that_is_gone(
    upload: Run, command: Run, folder: Path, ledger: Path, tmp_path: Path, with_ledger: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    make_calls(folder, "a")
    words = ("--ledger", ledger) if with_ledger else ()
    gone = tmp_path / "gone"
    gone.mkdir()
    under = before_command(f"os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})")
    outcomes = [command("--audio-path", folder, *words, under=under)]
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    outcomes += [upload("--audio-path", *paths, *words) for paths in (["calls"], [folder, "b.wav"])]
    assert [outcome.code for outcome in outcomes] == [OK, NO_INPUT, NO_INPUT]
    assert ["Dialog ID" in each.out for each in outcomes] == [True, False, not with_ledger]
    outcomes += [upload("--audio-path", folder, "--ledger", "here.sqlite", begun=False)]
    assert outcomes[-1].code == CONFIG
    assert "ledger here.sqlite: No such file" in outcomes[-1].err
    assert not any("Traceback" in each.err or "bug" in each.err for each in outcomes)


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
    [problem] = ledgers.problems(ledger)
    kept = json.loads(outcome.out)["error"], ledgers.row(ledger)["error"], problem["text"]
    assert all(text.isprintable() and len(text) < 1_100 for text in kept)
    assert max(map(len, kept[1:])) <= 1_010
    again = remember(call)
    assert again.code == DATA and again.err.count("\n") == 1 and len(again.err) < 1_100


def test_a_long_path_does_not_hide_the_reason(upload: Run, folder: Path) -> None:
    long = folder.joinpath(*["long" * 50] * 12)
    long.mkdir(parents=True)
    (long / "call.wav").write_text("no audio")
    outcome = upload("--audio-path", long / "call.wav")
    assert outcome.code == DATA and len(outcome.err) < 1_100
    assert "not a recording in a known format" in outcome.err


@pytest.mark.parametrize(
    ("words", "ids", "code", "said"),
    [
        (STREAM, ["an\x1b[2Jid\u202e"], OK, "Dialog ID: an\\x1b[2Jid\\u202e\n"),
        (STREAM, [" "], UNKNOWN, "without an ID"),
        (SINGLE, [" "], UNKNOWN, "without an ID"),
        (("--split", "--wait"), ["badge", "operation", " ", "\t"], DATA, "result has no dialog"),
    ],
    ids=str,
)
def test_ids_are_printed_and_kept_clean_and_a_blank_one_is_none(
    remember: Run, call: Path, ledger: Path, monkeypatch: pytest.MonkeyPatch, words: Way,
    ids: list[str], code: int, said: str,
) -> None:  # fmt: skip
    new_ids = iter(ids)
    monkeypatch.setattr("stand_in._new_id", lambda: next(new_ids))
    monkeypatch.setattr(StandIn, "save", lambda *_: None)
    outcome = remember(call, *words)
    assert outcome.code == code and said in outcome.out + outcome.err
    assert ("Dialog ID" in outcome.out) == (code == OK)
    row = ledgers.row(ledger)
    assert (row["talk_id"] or "").isprintable()
    assert (row["state"] == "unknown") == (code == UNKNOWN)


# --- One ledger, one file, begun by hand ----------------------------------------------


# By hand, from cron, and to see what would be done.
MANNERS: list[Way] = [(), ("--quiet",), ("--dry-run",)]


def test_a_ledger_with_a_second_name_is_refused(
    remember: Run, service: StandIn, call: Path, ledger: Path
) -> None:
    """SQLite finds what a run has committed by the ledger's name."""
    other = ledger.with_name("other.sqlite")
    remember("--dry-run", call)
    os.link(ledger, other)
    for path, words in itertools.product((ledger, other), MANNERS):
        outcome = remember(call, "--ledger", path, *words)
        assert_refused(outcome, service, CONFIG, f"ledger {path}: it has more than one name")
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
        return ended(process)


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
    arguments(service, "--ledger", real / "ledger.sqlite")  # Begins it.

    def run(mount: str, ledger: Path) -> Outcome:
        words = arguments(service, "--audio-path", call, "--ledger", ledger, begun=False)
        return in_a_namespace(f"mount --bind {mount}", *words)

    outcome = run(f"'{real}/ledger.sqlite' '{mounted}'", volume / name)
    assert_refused(outcome, service, CONFIG, "mount point", "mount the folder")
    assert {path.name for path in volume.iterdir()} == {name, mounted.name}
    # Its folder may be mounted.
    outcome = run(f"'{real}' '{volume}'", volume / "ledger.sqlite")
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

    def sizes() -> dict[str, int]:
        return {path.name: path.stat().st_size for path in tmp_path.glob("led*")}

    def run(*more: str) -> Outcome:
        return upload("--audio-path", call, "--ledger", ledger, *more, begun=False)

    before = sizes()
    said = "empty" if what in ("empty", "an empty database") else "missing"
    assert_refused(
        run("--quiet"), service, CONFIG, f"{ledger}: {said}, and --quiet begins none", "by hand"
    )
    # Of an empty database the lock has to be taken first.
    assert sizes() == before or "database" in what
    for words in ((), ("--quiet",)):
        dry = run("--dry-run", *words)
        assert dry.code == OK and "would be uploaded" in dry.out
        assert ("none there" in dry.err) == (not words)
    assert sizes() == before or "database" in what
    if "folder" in what:
        assert_refused(run(), service, CONFIG, "No such file or directory")
        return
    by_hand = run()
    assert by_hand.code == OK and "begins a new ledger" in by_hand.err
    assert run("--quiet").code == OK and len(service.calls) == 1


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_a_log_without_its_ledger_is_kept(
    remember: Run, upload: Run, service: StandIn, call: Path, ledger: Path, what: str
) -> None:
    """The results in it were destroyed when a new ledger was begun beside it."""
    remember(call)
    service.calls.clear()
    moved, log = ledger.with_name("moved.sqlite"), Path(f"{ledger}-wal")
    with ledgers.changed(ledger, error="in the log"):
        content = log.read_bytes()
        ledger.rename(moved)
        if what == "empty":
            ledger.touch()
    log.write_bytes(content)
    for words in MANNERS:
        outcome = upload("--audio-path", call, "--ledger", ledger, *words, begun=False)
        assert_refused(outcome, service, CONFIG, "-wal file is there", "put that very ledger back")
        assert log.read_bytes() == content
    ledger.unlink(missing_ok=True)
    moved.rename(ledger)
    assert remember(call, "--quiet").code == OK
    assert (service.calls, ledgers.row(ledger)["error"]) == ([], "in the log")


@pytest.mark.parametrize("suffix", ["-lock", "-wal", "-shm", "-journal"])
def test_no_file_beside_the_ledger_is_opened_through_a_link(
    remember: Run, service: StandIn, call: Path, ledger: Path, suffix: str
) -> None:
    target, link = ledger.with_name("elsewhere"), Path(f"{ledger}{suffix}")
    remember("--dry-run", call)
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    said = f"its {suffix} file is a symbolic link"
    for words in MANNERS:
        assert_refused(remember(call, *words), service, CONFIG, said)
        assert not target.exists()
        target.write_text("somebody else's")
        again = remember(call, *words)
        if words == ("--quiet",):  # Said once a day.
            assert again == Outcome(CONFIG, "", "")
        else:
            assert_refused(again, service, CONFIG, said)
        assert target.read_text() == "somebody else's"
        target.unlink()


def test_a_lock_that_becomes_a_link_meanwhile_is_not_followed(
    remember: Run, service: StandIn, call: Path, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember("--dry-run", call)
    lock, target = Path(f"{ledger}-lock"), ledger.with_name("elsewhere")
    lock.unlink()
    take = upload_grpc.LedgerFile._take_lock

    def link_first(file: upload_grpc.LedgerFile) -> int:
        lock.symlink_to(target)
        return take(file)

    monkeypatch.setattr(upload_grpc.LedgerFile, "_take_lock", link_first)
    assert_refused(remember(call), service, CONFIG, str(ledger))
    assert not target.exists()


def test_a_ledger_behind_links_that_go_round_in_circles(
    upload: Run, service: StandIn, call: Path, tmp_path: Path
) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    outcome = upload("--audio-path", call, "--ledger", tmp_path / "a")
    assert_refused(outcome, service, CONFIG, "symbolic links")
    assert "-lock" not in outcome.err


# --- First runs ----------------------------------------------------------------------

BY_DESCRIPTOR = ("pwrite64", "fsync", "fdatasync", "ftruncate")
BY_PATH = ("unlink", "unlinkat", "openat")


@NEEDS_SECCOMP
def test_first_runs_killed_at_any_step_block_nothing(
    service: StandIn, call: Path, folder: Path, upload: Run
) -> None:
    """Up to the first byte that is sent: what comes after is what test_power_cut.py is about.

    What there is of the ledger before each step of the command with its files is what a kill there
    would leave.
    """
    left: list[tuple[dict[str, bytes], bool]] = []  # Files, and whether a call had begun.

    def copy_before(name: str, thread: int, given: list[int]) -> bool:
        target = b""
        with contextlib.suppress(OSError), open(f"/proc/{thread}/mem", "rb") as memory:
            if name in BY_DESCRIPTOR:
                target = os.fsencode(os.readlink(f"/proc/{thread}/fd/{given[0]}"))
            else:
                memory.seek(given[0 if name == "unlink" else 1])
                target = memory.read(500)
        if target.startswith(os.fsencode(f"{folder}/")):
            files = {path.name: path.read_bytes() for path in folder.iterdir()}
            if (files, bool(service.calls)) not in left:
                left.append((files, bool(service.calls)))
        return True

    words = ("--audio-path", call, "--ledger")
    given = arguments(service, *words, folder / "ledger.sqlite", begun=False)
    assert run_watched(given, (*BY_DESCRIPTOR, *BY_PATH), copy_before).code == OK
    assert [was_sent for _, was_sent in left].count(False) > 10, "steps were not noticed"
    assert len(service.talks) == 1
    sent = 0
    for number, (files, has_arrived) in enumerate(left):
        service.talks.clear()
        copy = folder.with_name(f"step-{number}")
        copy.mkdir()
        for name, content in files.items():
            (copy / name).write_bytes(content)
        ledger = copy / "ledger.sqlite"
        # The call may not have arrived when its commit point was written.
        shutil.copytree(copy, folder.with_name(f"look-{number}"))
        was_sent = has_arrived
        with contextlib.suppress(sqlite3.Error):
            was_sent |= "finishing" in ledgers.states(
                folder.with_name(f"look-{number}") / "ledger.sqlite"
            )
        quiet = upload(*words, ledger, "--quiet", begun=False).code
        assert quiet in ((OK, UNKNOWN) if was_sent else (OK, CONFIG))
        if quiet == CONFIG:  # As if there were none, and begun by hand as well.
            assert not service.talks
            quiet = upload(*words, ledger, begun=False).code
        assert quiet == OK or was_sent
        ledgers.check(ledger)
        assert len(service.talks) == (quiet == OK) or was_sent
        sent += was_sent
        if sent > 3:
            break


@pytest.mark.parametrize("quiet", [(), ("--quiet",)], ids=str)
def test_two_first_runs_at_once(service: StandIn, folder: Path, tmp_path: Path, quiet: Way) -> None:
    make_calls(folder, *"0123")
    one_has_ended = threading.Event()

    def wait(_: Call) -> None:
        assert one_has_ended.wait(60)

    service.on_call = lambda _: At(answer=wait)
    for number in range(2):
        here = tmp_path / f"{number}.sqlite"
        words = arguments(service, "--audio-path", folder, "--ledger", here, begun=False)
        service.talks.clear()
        one_has_ended.clear()
        with start(*words) as first, start(*words, *quiet) as second:
            while first.poll() is None and second.poll() is None:
                time.sleep(0.01)
            one_has_ended.set()
            outcomes = ended(first), ended(second)
        codes = sorted(outcome.code for outcome in outcomes)
        # With --quiet it may have come before there was anything, which it does not begin.
        assert codes == [OK, AGAIN] or (quiet and codes == [OK, CONFIG]), outcomes
        assert len(set(contents(service))) == len(service.talks) == 4


@pytest.mark.parametrize("quiet", [(), ("--quiet",)], ids=str)
def test_a_first_run_that_begins_while_another_looks_for_the_ledger(
    upload: Run, service: StandIn, call: Path, ledger: Path, monkeypatch: pytest.MonkeyPatch,
    quiet: Way,
) -> None:  # fmt: skip
    """The ledger and its -wal file come between two looks, and none is missing."""
    words = ("--audio-path", call, "--ledger", ledger)
    has_begun, may_end = threading.Event(), threading.Event()

    def wait(_: Call) -> None:
        has_begun.set()
        assert may_end.wait(60)

    service.on_call = lambda _: At(answer=wait)
    look = os.stat
    with start(*arguments(service, *words, begun=False), *("--retries", "0")) as first:
        assert has_begun.wait(60)
        files = [path for path in ledger.parent.glob(f"{ledger.name}*") if path != ledger]
        assert len([path for path in files if path.name.endswith("-wal")]) == 1
        seen: list[object] = []

        def look_too_early(path: Any, *more: Any, **options: Any) -> os.stat_result:
            if path == os.path.realpath(ledger) and not seen:
                seen.append(path)
                raise FileNotFoundError(path)
            return look(path, *more, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", look_too_early)
            outcome = upload(*words, *quiet, begun=False)
        may_end.set()
        assert ended(first).code == OK
    assert seen and outcome.code == AGAIN, outcome.err
    assert len(service.talks) == 1


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
