"""No call is lost or doubled before the wire: files, clocks, dates, limits, and the ledger's file.

Each test is of one thing that went wrong once, seen from outside.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import ledgers
import pytest
from conftest import (
    AS_NOBODY_SPECIAL,
    KEY,
    LONG_BYTES,
    WAYS,
    Outcome,
    Run,
    Waits,
    Way,
    arguments,
    before_command,
    closed_port,
    make_wav,
    sha256,
    start,
    wait_for,
    when,
)
from stand_in import At, Call, Delay, Fail, Freeze, StandIn

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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "calls"
    folder.mkdir()
    return folder


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

    def hash_file(path: str, *more: object) -> str:
        hashed.append(path)
        return really_hash(path, *more)  # type: ignore[arg-type]

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
        health = upload_grpc.Uploader._connect
        context = pytest.MonkeyPatch.context()
        with context as patch:
            patch.setattr(upload_grpc.Uploader, "_connect", lambda it: (health(it), change())[0])
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
    check = upload_grpc.check_audio

    def check_audio(recording: upload_grpc.Recording, *more: object) -> None:
        if recording.path.endswith("b.wav"):
            raise error("no such number")
        check(recording, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(upload_grpc, "check_audio", check_audio)
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
    assert (outcome.code, len(service.talks)) == (NO_INPUT, 3)
    assert "a.wav: " in outcome.err and "Traceback" not in outcome.err


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
        undo.callback(subprocess.run, ["rm", "-rf", folder], check=True)
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
    assert json.loads(outcome.out.splitlines()[-1])["path"].endswith("d/d/deep.wav")


@pytest.mark.parametrize("with_ledger", [False, True])
def test_a_working_directory_that_is_gone(
    service: StandIn, folder: Path, ledger: Path, tmp_path: Path, with_ledger: bool
) -> None:
    make_wav(folder / "a.wav", 3_000)
    ledgers_words = ("--ledger", ledger) if with_ledger else ()
    for number, (paths, code) in enumerate(
        [([folder], OK), (["calls"], NO_INPUT), ([folder, "call.wav"], NO_INPUT)]
    ):
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
    assert "neither WAV nor MP3 nor OggOpus" in outcome.err


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
