"""The ledger: every recording becomes one dialog, whatever happens in between."""

from __future__ import annotations

import calendar
import contextlib
import fcntl
import hashlib
import json
import os
import re
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import stand_in
from conftest import SCRIPT, Outcome, Run, arguments, make_wav, start
from stand_in import Delay, Fail, Freeze, Slow, StandIn, stored_talks

import upload_grpc

LOST = Fail(grpc.StatusCode.UNAVAILABLE, "gone", store=True)
BUSY = Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many at a time")
REJECTED = Fail(grpc.StatusCode.INVALID_ARGUMENT, "not this one")
REFUSED = Fail(grpc.StatusCode.PERMISSION_DENIED, "not you")

# More than grpc and the sockets hold between them, which is 22 MB on a busy machine.
LONG_BYTES = 40_000_000


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def remember(upload: Run, ledger: Path, tmp_path: Path) -> Run:
    """Upload with a ledger, one recording after another, without a second try."""
    fields = tmp_path / "fields.json"
    fields.write_text('{"operator_name": "Anna"}')

    def run(*words: object) -> Outcome:
        own = ("--ledger", ledger, "--meta-path", fields, "--jobs", 1, "--retries", 0)
        return upload(*own, *words)

    return run


def rows(ledger: Path) -> list[dict[str, Any]]:
    """Read the ledger as anybody else would, also while it is in use."""
    with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM recordings ORDER BY path")]


def states(ledger: Path) -> list[str]:
    return [row["state"] for row in rows(ledger)]


def change(ledger: Path, statement: str, *values: object) -> None:
    with contextlib.closing(sqlite3.connect(ledger)) as database, database:
        assert database.execute(statement, values).rowcount > 0


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wait_for(condition: Callable[[], object], timeout_s: float = 10) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


@contextlib.contextmanager
def running(service: StandIn, *words: object) -> Iterator[subprocess.Popen[str]]:
    """Start the command; kill it if it has not ended at the end of the block."""
    process = start(*arguments(service, *words))
    try:
        with process:
            yield process
            if process.poll() is None:
                process.kill()
    finally:
        process.kill()


# --- What a row says -----------------------------------------------------------------


def test_a_row_says_everything_about_an_upload(
    remember: Run, service: StandIn, recording: Path, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.script.append(BUSY)
    monkeypatch.setattr(upload_grpc, "BACKOFF_S", 0.01)
    monkeypatch.chdir(recording.parent)
    before = int(time.time())
    outcome = remember("--retries", 1, "--audio-path", recording.name)
    assert outcome.code == os.EX_OK
    (row,) = rows(ledger)
    (talk,) = service.talks.values()
    updated = time.strptime(row.pop("updated_at"), "%Y-%m-%dT%H:%M:%SZ")
    assert before <= calendar.timegm(updated) <= time.time()
    assert len(row.pop("metadata_sha256")) == 64
    assert row == {
        "connection_id": "connection-1",
        "sha256": talk.sha256,
        "path": str(recording),
        "size_bytes": talk.size,
        "mtime_ns": recording.stat().st_mtime_ns,
        "state": "uploaded",
        "talk_id": talk.talk_id,
        "badge_id": None,
        "operation_id": None,
        "request_id": service.calls[-1].metadata["x-client-request-id"],
        "attempts": 2,
        "error": None,
    }


@pytest.mark.parametrize(
    ("step", "code", "state", "again"),
    [
        (LOST, os.EX_PROTOCOL, "unknown", False),
        (BUSY, os.EX_TEMPFAIL, "failed", True),
        (REJECTED, os.EX_DATAERR, "rejected", False),
        (REFUSED, os.EX_NOPERM, "failed", True),
    ],
)
def test_how_it_ended_decides_about_the_next_run(
    remember: Run,
    service: StandIn,
    recording: Path,
    ledger: Path,
    step: Fail,
    code: int,
    state: str,
    again: bool,
) -> None:
    service.script.append(step)
    assert remember("--audio-path", recording).code == code
    (row,) = rows(ledger)
    assert (row["state"], row["talk_id"], row["attempts"]) == (state, None, 1)
    assert row["request_id"] == service.calls[0].metadata["x-client-request-id"]
    assert step.details in row["error"]

    outcome = remember("--audio-path", recording)
    assert len(service.calls) == (2 if again else 1)
    assert outcome.code == (os.EX_OK if again else code)
    assert states(ledger) == ["uploaded" if again else state]
    if not again:
        assert f"{recording}: " in outcome.err and step.details in outcome.err


# --- What counts as the same recording -----------------------------------------------


def test_the_second_run_sends_nothing(
    remember: Run, service: StandIn, recording: Path, ledger: Path
) -> None:
    first = remember("--audio-path", recording)
    assert first.code == os.EX_OK
    assert remember("--audio-path", recording) == first
    assert len(service.calls) == 1


def test_renamed_moved_or_touched_it_is_not_sent_again(
    remember: Run, service: StandIn, recording: Path, tmp_path: Path, ledger: Path
) -> None:
    remember("--audio-path", recording)
    (talk_id,) = service.talks
    renamed = recording.rename(tmp_path / "renamed.wav")
    assert remember("--audio-path", renamed).out == f"Dialog ID: {talk_id}\n"
    (tmp_path / "elsewhere").mkdir()
    moved = renamed.rename(tmp_path / "elsewhere" / "moved.wav")
    assert remember("--audio-path", moved).out == f"Dialog ID: {talk_id}\n"
    os.utime(moved)
    assert remember("--audio-path", moved).out == f"Dialog ID: {talk_id}\n"
    (row,) = rows(ledger)
    assert (row["path"], row["mtime_ns"]) == (str(moved), moved.stat().st_mtime_ns)
    assert len(service.calls) == 1


def test_a_known_name_size_and_time_spare_reading_the_file(
    remember: Run, service: StandIn, recording: Path
) -> None:
    remember("--audio-path", recording)
    status = recording.stat()
    with open(recording, "r+b") as file:
        file.seek(1_000)
        file.write(b"other audio, which nobody will look at")
    os.utime(recording, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert remember("--audio-path", recording).code == os.EX_OK
    assert len(service.calls) == 1


def test_changed_content_is_another_dialog(
    remember: Run, service: StandIn, recording: Path, ledger: Path
) -> None:
    remember("--audio-path", recording)
    make_wav(recording, 600_000, seed=1)
    outcome = remember("--audio-path", recording)
    assert outcome.code == os.EX_OK
    assert outcome.out == f"Dialog ID: {list(service.talks)[1]}\n"
    assert [row["path"] for row in rows(ledger)] == [str(recording)] * 2


@pytest.mark.parametrize("jobs", [1, 4])
def test_two_names_for_one_content_are_one_dialog(
    remember: Run, service: StandIn, tmp_path: Path, ledger: Path, jobs: int
) -> None:
    paths = [tmp_path / name for name in ("a.wav", "b.wav", "c.wav")]
    for path in paths:
        make_wav(path, 300_000, seed=1)
    for _ in range(2):
        outcome = remember("--jobs", jobs, "--audio-path", *paths)
        (talk_id,) = service.talks
        assert outcome.code == os.EX_OK
        assert sorted(outcome.out.splitlines()) == [
            f"{path}: Dialog ID: {talk_id}" for path in paths
        ]
    assert states(ledger) == ["uploaded"]


@pytest.mark.parametrize(("step", "code"), [(REJECTED, 65), (LOST, 76), (BUSY, 75)])
def test_two_names_for_one_content_share_its_failure(
    remember: Run, service: StandIn, tmp_path: Path, step: Fail, code: int
) -> None:
    paths = [os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/a\xff.wav", b"/b.wav")]
    for path in paths:
        make_wav(tmp_path / "x.wav", 3_000, seed=1).rename(path)
    service.script.append(step)
    outcome = remember("--quiet", "--audio-path", *paths)
    assert outcome.code == code
    assert outcome.out == ""
    assert len(service.calls) == 1
    first, second = outcome.err.splitlines()
    # How a name that is not UTF-8 is shown is left to the terminal's encoding.
    assert re.match(f"upload_grpc: {tmp_path}/a.*.wav: {step.details}|.*: sent, but not", first)
    assert re.match(f"upload_grpc: {paths[1]}: same audio as {tmp_path}/a.*.wav, which", second)
    assert "b'" not in second


def test_a_file_dated_later_than_sqlite_can_count_is_remembered_like_others(
    remember: Run, service: StandIn, tmp_path: Path
) -> None:
    paths = [make_wav(tmp_path / f"{number}.wav", 3_000) for number in range(3)]
    os.utime(paths[1], (10**10, 10**10))  # 2286; nanoseconds in 63 bits end in 2262.
    first = remember("--quiet", "--audio-path", *paths)
    assert (first.code, len(service.talks)) == (os.EX_OK, 3)
    assert remember("--quiet", "--audio-path", *paths) == first
    assert len(service.calls) == 3


def test_connections_are_kept_apart(
    remember: Run, service: StandIn, recording: Path, ledger: Path
) -> None:
    for connection in ("one", "two", "one", "two"):
        assert remember("--connection-id", connection, "--audio-path", recording).code == 0
    assert [talk.connection_id for talk in service.talks.values()] == ["one", "two"]
    assert {row["connection_id"]: row["talk_id"] for row in rows(ledger)} == {
        talk.connection_id: talk.talk_id for talk in service.talks.values()
    }


# --- Rejected and unknown ones -------------------------------------------------------


def test_a_rejected_one_is_sent_again_once_file_or_metadata_changes(
    remember: Run, service: StandIn, recording: Path, ledger: Path
) -> None:
    service.script += [REJECTED] * 3
    assert remember("--audio-path", recording).code == os.EX_DATAERR
    assert "sent again once" in remember("--audio-path", recording).err
    assert len(service.calls) == 1
    # The way to have it tried again after the connection was mended, not the file.
    os.utime(recording)
    assert remember("--audio-path", recording).code == os.EX_DATAERR
    assert remember("--audio-path", recording).code == os.EX_DATAERR
    assert len(service.calls) == 2
    recording.with_suffix(".json").write_text('{"client_name": "Boris"}')
    assert remember("--audio-path", recording).code == os.EX_DATAERR
    assert remember("--audio-path", recording).code == os.EX_DATAERR
    assert len(service.calls) == 3
    recording.with_suffix(".json").write_text('{"client_name": "Vera"}')
    assert remember("--audio-path", recording).code == os.EX_OK
    assert len(service.calls) == 4
    (row,) = rows(ledger)
    assert (row["state"], row["error"], row["attempts"]) == ("uploaded", None, 4)


def test_a_rejected_one_without_metadata_is_not_sent_again(
    upload: Run, service: StandIn, recording: Path, ledger: Path
) -> None:
    service.script += [REJECTED]
    for _ in range(2):
        assert upload("--ledger", ledger, "--audio-path", recording).code == os.EX_DATAERR
    assert len(service.calls) == 1


def test_an_unknown_one_is_named_until_somebody_decides(
    remember: Run, service: StandIn, recording: Path, ledger: Path
) -> None:
    service.script += [LOST]
    remember("--audio-path", recording)
    for _ in range(2):
        outcome = remember("--quiet", "--audio-path", recording)
        assert outcome.code == os.EX_PROTOCOL
        assert outcome.out == ""
        (line,) = outcome.err.splitlines()
        assert line.startswith(f"upload_grpc: {recording}: not sent") and "gone" in line
        assert "--retry-unknown" in line
    assert len(service.calls) == 1

    outcome = remember("--retry-unknown", "--audio-path", recording)
    assert outcome.code == os.EX_OK
    assert outcome.out == f"Dialog ID: {list(service.talks)[1]}\n"
    assert "--retry-unknown" in outcome.err, "it does not say that this may be the second one"
    assert remember("--retry-unknown", "--audio-path", recording).out == outcome.out
    assert len(service.calls) == 2
    assert states(ledger) == ["uploaded"]


def test_an_unknown_one_can_be_marked_by_hand(
    remember: Run, service: StandIn, recording: Path, ledger: Path
) -> None:
    service.script += [LOST]
    remember("--audio-path", recording)
    change(ledger, "UPDATE recordings SET state = 'uploaded', talk_id = 'seen' WHERE path = ?",
           str(recording))  # fmt: skip
    outcome = remember("--audio-path", recording)
    assert (outcome.code, outcome.out) == (os.EX_OK, "Dialog ID: seen\n")
    assert len(service.calls) == 1


def test_a_dry_run_says_what_the_ledger_knows(
    remember: Run, service: StandIn, tmp_path: Path, ledger: Path
) -> None:
    done, lost, rejected, failed, new = (
        make_wav(tmp_path / f"{name}.wav", 300_000)
        for name in ("done", "lost", "rejected", "failed", "new")
    )
    service.script += [None, LOST, REJECTED, BUSY]
    remember("--audio-path", done, lost, rejected, failed)
    before = rows(ledger)
    (talk_id,) = (row["talk_id"] for row in before if row["state"] == "uploaded")
    other = shutil.copy(done, tmp_path / "other.wav")
    words = ("--dry-run", "--format", "json", "--audio-path", other, lost, rejected, failed, new)
    for retry, code, of_lost in (
        ((), os.EX_PROTOCOL, ("unknown", os.EX_PROTOCOL)),
        (("--retry-unknown",), os.EX_DATAERR, ("checked", 0)),
    ):
        outcome = remember(*words, *retry)
        results = {}
        for line in outcome.out.splitlines():
            result = json.loads(line)
            results[Path(result["path"]).stem] = (result["outcome"], result["exit_code"])
            assert (result["talk_id"] == talk_id) == (result["outcome"] == "already")
            assert bool(result["description"]) == (result["outcome"] == "checked")
        assert outcome.code == code
        assert results == {
            "other": ("already", 0),
            "lost": of_lost,
            "rejected": ("rejected", os.EX_DATAERR),
            "failed": ("checked", 0),
            "new": ("checked", 0),
        }
    assert rows(ledger) == before
    assert len(service.calls) == 4


# --- The commit point ----------------------------------------------------------------


def test_finishing_is_written_before_the_half_close_can_arrive(
    remember: Run,
    service: StandIn,
    tmp_path: Path,
    ledger: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[dict[str, str]] = []
    confirm = stand_in._LiveCall.confirm_half_close

    def look_first(call: Any) -> None:
        request_id = call.record.metadata["x-client-request-id"]
        seen.append({row["state"]: row["request_id"] for row in rows(ledger)})
        assert request_id
        confirm(call)

    monkeypatch.setattr(stand_in._LiveCall, "confirm_half_close", look_first)
    paths = [make_wav(tmp_path / f"{number}.wav", 100_000) for number in range(20)]
    assert remember("--audio-path", *paths).code == os.EX_OK
    requests = [call.metadata["x-client-request-id"] for call in service.calls]
    assert [found.get("finishing") for found in seen] == requests


def test_until_the_last_byte_it_is_only_sending(
    service: StandIn, tmp_path: Path, ledger: Path
) -> None:
    wav = make_wav(tmp_path / "call.wav", LONG_BYTES)
    service.script.append(Freeze(after_bytes=1_000_000))
    with running(service, "--ledger", ledger, "--audio-path", wav):
        wait_for(lambda: service.calls and service.calls[0].bytes_received >= 1_000_000)
        assert states(ledger) == ["sending"]


def test_a_run_killed_while_sending_leaves_nothing_to_clean_up(
    remember: Run, service: StandIn, tmp_path: Path, ledger: Path
) -> None:
    wav = make_wav(tmp_path / "call.wav", LONG_BYTES)
    service.script.append(Freeze(after_bytes=1_000_000))
    with running(service, "--ledger", ledger, "--audio-path", wav):
        wait_for(lambda: service.calls and service.calls[0].bytes_received >= 1_000_000)
    assert states(ledger) == ["sending"]
    service.wait_until_idle()
    outcome = remember("--audio-path", wav)
    assert outcome.code == os.EX_OK
    assert len(service.talks) == 1
    assert states(ledger) == ["uploaded"]


def test_a_run_killed_before_the_answer_leaves_an_unknown_one(
    remember: Run, service: StandIn, recording: Path, ledger: Path
) -> None:
    service.script.append(Delay(30))
    with running(service, "--ledger", ledger, "--audio-path", recording):
        wait_for(lambda: service.talks)
    assert states(ledger) == ["finishing"]
    service.wait_until_idle()
    outcome = remember("--audio-path", recording)
    assert outcome.code == os.EX_PROTOCOL
    assert f"{recording}: not sent" in outcome.err and "killed" in outcome.err
    assert states(ledger) == ["unknown"]
    assert len(service.calls) == 1


def test_rows_that_a_dead_run_left_are_put_right_for_all_recordings(
    remember: Run, service: StandIn, tmp_path: Path, ledger: Path
) -> None:
    paths = [make_wav(tmp_path / f"{number}.wav", 3_000) for number in range(4)]
    remember("--audio-path", *paths)
    change(ledger, "UPDATE recordings SET talk_id = NULL, state = 'sending' WHERE path = ?",
           str(paths[0]))  # fmt: skip
    change(ledger, "UPDATE recordings SET talk_id = NULL, state = 'finishing' WHERE path = ?",
           str(paths[1]))  # fmt: skip
    assert remember("--audio-path", paths[3]).code == os.EX_OK
    assert states(ledger) == ["failed", "unknown", "uploaded", "uploaded"]
    outcome = remember("--audio-path", *paths)
    assert outcome.code == os.EX_PROTOCOL
    assert len(service.calls) == 5
    assert states(ledger) == ["uploaded", "unknown", "uploaded", "uploaded"]


def test_a_recording_whose_row_was_deleted_is_not_uploaded(
    remember: Run, service: StandIn, tmp_path: Path, ledger: Path
) -> None:
    wav = make_wav(tmp_path / "call.wav", LONG_BYTES)
    service.script.append(Slow(40_000_000))
    with running(service, "--ledger", ledger, "--audio-path", wav) as process:
        wait_for(lambda: service.calls and service.calls[0].bytes_received)
        change(ledger, "DELETE FROM recordings WHERE state = 'sending'")
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (os.EX_CONFIG, "")
    assert f"{wav}: ledger {ledger}: row " in err and "has been deleted" in err
    service.wait_until_idle()
    assert not stored_talks(service.store)
    assert remember("--audio-path", wav).code == os.EX_OK
    assert len(service.talks) == 1


# --- Others who use it at the same time ----------------------------------------------


@pytest.mark.parametrize("bad_first", [True, False])
def test_a_write_that_fails_confirms_none_of_those_it_shares_a_transaction_with(
    recording: Path, ledger: Path, bad_first: bool
) -> None:
    checked = upload_grpc.check_recording(str(recording), None)
    errors: list[Exception] = []
    with contextlib.closing(upload_grpc.Ledger(str(ledger), "connection-1")) as kept:
        kept.claim(checked, "aa", False)

        def write(act: Callable[..., object], *values: object) -> None:
            try:
                act(*values)
            except Exception as error:  # noqa: BLE001
                errors.append(error)

        finishing = (kept.reach, "aa", "finishing", "request-1")
        # More than SQLite's integers hold, which its module tells with an error of Python's.
        bad = (kept._do, "UPDATE recordings SET size_bytes = ?", (2**63,))
        threads: list[threading.Thread] = []
        with kept._write_lock:
            for arguments in (bad, finishing) if bad_first else (finishing, bad):
                threads.append(threading.Thread(target=write, args=arguments))
                threads[-1].start()
                wait_for(lambda: len(kept._waiting) == len(threads))
        for thread in threads:
            thread.join()
        assert [type(error) for error in errors] == [upload_grpc.LedgerError] * 2
        assert states(ledger) == ["sending"]
        kept.reach("aa", "finishing", "request-1")
        assert states(ledger) == ["finishing"]


@pytest.mark.parametrize("name", ["ledger.sqlite", "link.sqlite"])
def test_a_second_run_leaves_at_once_and_the_first_goes_on(
    upload: Run, service: StandIn, recording: Path, ledger: Path, name: str
) -> None:
    """By whatever name: two runs on one ledger would upload everything twice."""
    ledger.with_name("link.sqlite").symlink_to(ledger)
    service.script.append(Delay(0.5))
    with running(service, "--ledger", ledger, "--audio-path", recording) as first:
        wait_for(lambda: service.talks)
        began = time.monotonic()
        second = upload("--ledger", ledger.parent / name, "--audio-path", recording)
        assert time.monotonic() - began < 0.4
        out, _ = first.communicate(timeout=10)
    assert second.code == os.EX_TEMPFAIL
    assert second.out == ""
    assert "another run is using it" in second.err and str(ledger) in second.err
    assert (first.returncode, out) == (os.EX_OK, f"Dialog ID: {next(iter(service.talks))}\n")
    assert len(service.calls) == 1
    again = upload("--ledger", ledger.parent / name, "--audio-path", recording)
    assert (again.code, again.out) == (os.EX_OK, out)
    assert len(service.calls) == 1


def test_a_run_that_is_stuck_is_told_of_even_by_quiet_ones(
    upload: Run, recording: Path, ledger: Path
) -> None:
    """No mail means that all is well; nothing is uploaded any more here."""
    words = ("--ledger", ledger, "--audio-path", recording, "--quiet")
    lock = ledger.with_name(f"{ledger.name}-lock")
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert upload(*words) == Outcome(os.EX_TEMPFAIL, "", "")
        seven_hours_ago = time.time() - 7 * 60 * 60
        os.utime(lock, (seven_hours_ago, seven_hours_ago))
        outcome = upload(*words)
    assert (outcome.code, outcome.out) == (os.EX_TEMPFAIL, "")
    assert f"{ledger}: another run is using it, since 20" in outcome.err
    assert upload(*words).code == os.EX_OK
    assert time.time() - lock.stat().st_mtime < 60


def test_it_can_be_read_and_changed_while_a_run_goes_on(
    service: StandIn, tmp_path: Path, ledger: Path
) -> None:
    paths = [make_wav(tmp_path / f"{number}.wav", 3_000) for number in range(3)]
    service.script += [None, Delay(0.4)]
    words = ("--ledger", ledger, "--jobs", 1, "--audio-path", *paths)
    query = "SELECT state, count(*) FROM recordings GROUP BY state ORDER BY state"
    with running(service, *words) as process, contextlib.ExitStack() as stack:
        wait_for(lambda: len(service.talks) == 2)
        reader = stack.enter_context(contextlib.closing(sqlite3.connect(ledger)))
        reader.execute("BEGIN")
        assert reader.execute(query).fetchall() == [("finishing", 1), ("uploaded", 1)]
        if shutil.which("sqlite3"):
            said = subprocess.run(
                ["sqlite3", "-readonly", ledger, query], capture_output=True, check=True
            )
            assert said.stdout == b"finishing|1\nuploaded|1\n"
        change(ledger, "UPDATE recordings SET error = 'seen' WHERE path = ?", str(paths[0]))
        process.communicate(timeout=10)
        # A transaction that reads sees what it saw, and is in nobody's way.
        assert reader.execute(query).fetchall() == [("finishing", 1), ("uploaded", 1)]
    assert process.returncode == os.EX_OK
    assert [(row["state"], row["error"]) for row in rows(ledger)] == [
        ("uploaded", "seen"),
        ("uploaded", None),
        ("uploaded", None),
    ]


def test_nobody_else_may_read_it(service: StandIn, recording: Path, ledger: Path) -> None:
    service.script.append(Delay(30))
    words = ("--ledger", ledger, "--audio-path", recording)
    before = os.umask(0)
    try:
        with running(service, *words):
            wait_for(lambda: service.talks)
            files = {path.name: path for path in ledger.parent.glob("ledger.sqlite*")}
            modes = {name: stat.S_IMODE(path.stat().st_mode) for name, path in files.items()}
    finally:
        os.umask(before)
    assert {"ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"} <= set(modes)
    assert set(modes.values()) == {0o600}


# --- Where it cannot be used ---------------------------------------------------------


def a_text(path: Path) -> None:
    path.write_text("not a database\n")


def a_foreign_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE recordings (path TEXT, state TEXT)")
        database.execute("INSERT INTO recordings VALUES ('/calls/1.wav', 'uploaded')")


def a_foreign_database_with_a_log(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
    a_foreign_database(path)


def a_newer_one(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        database.execute(f"PRAGMA user_version = {version + 1}")


def a_damaged_one(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    path.write_bytes(content)


def a_short_one(path: Path) -> None:
    os.truncate(path, 5_000)


def a_folder(path: Path) -> None:
    path.mkdir()


USED_BEFORE = (a_newer_one, a_damaged_one, a_short_one)


@pytest.mark.parametrize(
    "make",
    [a_text, a_foreign_database, a_foreign_database_with_a_log, *USED_BEFORE, a_folder],
)
def test_what_is_no_ledger_is_left_as_it_is_and_nothing_is_sent(
    command: Run,
    remember: Run,
    service: StandIn,
    recording: Path,
    ledger: Path,
    make: Callable[[Path], None],
) -> None:
    if make in USED_BEFORE:
        remember("--audio-path", recording)
        service.calls.clear()
    make(ledger)
    before = None if ledger.is_dir() else ledger.read_bytes()
    make_wav(recording, seed=2)
    outcome = command("--ledger", ledger, "--audio-path", recording)
    assert outcome.code == os.EX_CONFIG
    assert outcome.out == ""
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"upload_grpc: ledger {ledger}: ")
    assert not service.calls
    assert before == (None if ledger.is_dir() else ledger.read_bytes())


def test_a_missing_folder_is_named_and_nothing_is_sent(
    command: Run, service: StandIn, recording: Path, tmp_path: Path
) -> None:
    ledger = tmp_path / "missing" / "ledger.sqlite"
    outcome = command("--ledger", ledger, "--audio-path", recording)
    assert outcome.code == os.EX_CONFIG
    assert outcome.err.startswith(f"upload_grpc: ledger {ledger}: No such file or directory")
    assert not service.calls


@pytest.mark.parametrize("option", ["--ledger", "--meta-path", "--ca-file"])
def test_an_empty_name_is_not_the_same_as_none(
    upload: Run, service: StandIn, recording: Path, option: str
) -> None:
    outcome = upload("--audio-path", recording, option, "")
    assert outcome.code != os.EX_OK, f"an unset variable after {option} goes unseen"
    assert not service.calls


@pytest.mark.parametrize("name", ["ledger", ":memory:", "file:x?mode=memory", "two words\n.db"])
def test_a_relative_name_is_a_file_here(
    upload: Run,
    service: StandIn,
    recording: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.chdir(recording.parent)
    for _ in range(2):
        assert upload("--ledger", name, "--audio-path", recording).code == os.EX_OK
    assert Path(name).stat().st_size > 0
    assert len(service.calls) == 1


@pytest.mark.parametrize("closed", ["file", "folder"])
def test_what_may_not_be_written_is_named_and_nothing_is_sent(
    remember: Run, service: StandIn, recording: Path, tmp_path: Path, closed: str
) -> None:
    ledger = tmp_path / "kept" / "ledger.sqlite"
    ledger.parent.mkdir()
    words = arguments(service, "--ledger", ledger, "--audio-path", recording)
    command = [*without_rights(), sys.executable, str(SCRIPT), *words]
    remember("--ledger", ledger, "--audio-path", recording)
    service.calls.clear()
    for leftover in ledger.parent.glob("ledger.sqlite-*"):
        leftover.unlink()
    before = ledger.read_bytes()
    make_wav(recording, seed=2)
    path, mode = (ledger, 0o400) if closed == "file" else (ledger.parent, 0o500)
    path.chmod(mode)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    finally:
        path.chmod(0o700)
    assert done.returncode == os.EX_CONFIG
    assert done.stderr.startswith(f"upload_grpc: ledger {ledger}: Permission denied")
    assert ledger.read_bytes() == before
    assert not service.calls


def without_rights() -> list[str]:
    """Answer what to put before a command so that permissions count, also for root."""
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root writes everything, and there is no setpriv (util-linux) to change that")
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


# --- A full disk ---------------------------------------------------------------------


def limit_files(size_bytes: int) -> list[str]:
    """Answer what lets a command write no file beyond a size: to SQLite a disk that fails."""
    return ["prlimit", f"--fsize={size_bytes}:{size_bytes}"]


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("size_bytes", [0, 5_000])
def test_a_disk_that_is_full_from_the_start(
    remember: Run,
    service: StandIn,
    recording: Path,
    ledger: Path,
    used_before: bool,
    size_bytes: int,
) -> None:
    if used_before:
        remember("--audio-path", recording)
        make_wav(recording, 600_000, seed=2)
    before = rows(ledger) if used_before else []
    words = arguments(service, "--ledger", ledger, "--audio-path", recording)
    with start(*words, under=limit_files(size_bytes)) as process:
        out, err = process.communicate(timeout=20)
    assert process.returncode == os.EX_TEMPFAIL, err
    assert out == ""
    assert f"ledger {ledger}: " in err
    assert len(service.calls) == len(before)
    # The next run, with room, goes on as if nothing had been.
    if used_before:
        assert rows(ledger) == before
    assert remember("--audio-path", recording).code == os.EX_OK
    assert len(service.calls) == len(before) + 1


def full_from_now_on(process: subprocess.Popen[str], ledger: Path) -> None:
    """Let a run write nothing more to its ledger."""
    size_bytes = ledger.with_name(ledger.name + "-wal").stat().st_size
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size_bytes, size_bytes))


def test_a_disk_that_fills_up_before_the_last_byte_makes_no_dialog(
    remember: Run, service: StandIn, tmp_path: Path, ledger: Path
) -> None:
    paths = [make_wav(tmp_path / f"{number}.wav", 16_000_000) for number in range(2)]
    service.script.append(Slow(32_000_000))
    words = ("--ledger", ledger, "--jobs", 1, "--audio-path", *paths)
    with running(service, *words) as process:
        wait_for(lambda: service.calls and service.calls[0].bytes_received > 300_000)
        full_from_now_on(process, ledger)
        out, err = process.communicate(timeout=20)
    assert process.returncode == os.EX_TEMPFAIL
    assert out == ""
    assert f"{paths[0]}: ledger {ledger}: " in err
    assert "not tried" in err and "Traceback" not in err
    service.wait_until_idle()
    assert not stored_talks(service.store)
    assert states(ledger) == ["sending"]
    assert remember("--audio-path", *paths).code == os.EX_OK
    assert len(service.talks) == 2


def test_a_disk_that_fills_up_before_the_answer_leaves_no_dialog_without_its_row(
    remember: Run, service: StandIn, tmp_path: Path, ledger: Path
) -> None:
    paths = [make_wav(tmp_path / f"{number}.wav", 300_000) for number in range(3)]
    service.script.append(Delay(0.3))
    words = ("--ledger", ledger, "--jobs", 1, "--audio-path", *paths)
    with running(service, *words) as process:
        wait_for(lambda: service.talks)
        full_from_now_on(process, ledger)
        out, err = process.communicate(timeout=20)
    (talk_id,) = service.talks
    assert process.returncode == os.EX_TEMPFAIL
    assert talk_id in out, "a dialog ID that came is a result, whatever became of the ledger"
    assert f"{paths[0]}: ledger {ledger}: " in err
    assert "not tried" in err and "Traceback" not in err
    assert states(ledger) == ["finishing"]

    outcome = remember("--audio-path", *paths)
    assert outcome.code == os.EX_PROTOCOL
    assert f"{paths[0]}: not sent" in outcome.err
    assert states(ledger) == ["unknown", "uploaded", "uploaded"]
    assert len(service.talks) == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 128 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k,mode=700", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk; test_a_disk_that_* do it with a limit")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_disk_without_room(
    command: Run, service: StandIn, tmp_path: Path, small_disk: Path
) -> None:
    ledger = small_disk / "ledger.sqlite"
    paths = [make_wav(tmp_path / f"{number}.wav", 3_000) for number in range(3)]
    command("--ledger", ledger, "--audio-path", paths[0])
    with contextlib.suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    outcome = command("--ledger", ledger, "--audio-path", *paths)
    assert outcome.code == os.EX_TEMPFAIL
    assert re.search(r"ledger .*(full|I/O)", outcome.err)
    assert len(service.calls) == 1
    (small_disk / "filler").unlink()
    assert states(ledger) == ["uploaded"]
    assert command("--ledger", ledger, "--audio-path", *paths).code == os.EX_OK
    assert len(service.calls) == 3


# --- On the disk ---------------------------------------------------------------------


def test_finishing_is_synced_and_the_rest_need_not_be(
    service: StandIn, tmp_path: Path, ledger: Path
) -> None:
    if not shutil.which("strace"):
        pytest.skip("no strace to count what is brought to disk")
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-y", "-qq", "-e", "trace=fdatasync,fsync", "-o", str(trace)]
    syncs: list[int] = []
    for count in (1, 1, 4):
        folder = tmp_path / str(len(syncs))
        folder.mkdir()
        for number in range(count):
            make_wav(folder / f"{number}.wav", 3_000, seed=10 * len(syncs) + number)
        words = arguments(service, "--ledger", ledger, "--jobs", 1, "--audio-path", folder)
        command = [*strace, sys.executable, str(SCRIPT), *words]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        if b"PTRACE" in done.stderr:
            pytest.skip("nobody may be traced here")
        assert done.returncode == os.EX_OK
        syncs.append(trace.read_text().count("ledger.sqlite-wal"))
    # Three recordings more, three syncs more: claiming and settling wait for no disk.
    assert syncs[2] - syncs[1] == 3, syncs
