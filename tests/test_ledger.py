"""The ledger: every recording becomes one dialog, whatever happens in between."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import ledgers
import pytest
from conftest import (
    AS_NOBODY_SPECIAL,
    LONG_BYTES,
    SAMPLE,
    Outcome,
    Run,
    arguments,
    before_command,
    contents,
    ended,
    make_wav,
    sha256,
    start,
)
from ledgers import rows, states
from stand_in import At, Call, Fail, StandIn, Step

import upload_grpc

pytestmark = pytest.mark.usefixtures("waits")

LOST = Fail(grpc.StatusCode.UNAVAILABLE, "gone", store=True)
BUSY = Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many at a time")
REJECTED = Fail(grpc.StatusCode.INVALID_ARGUMENT, "not this one")
REFUSED = Fail(grpc.StatusCode.PERMISSION_DENIED, "not you")

LEDGER = Path("ledger.sqlite")
CALL = Path("call.wav")


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_wav(CALL, 600_000)
    Path("fields.json").write_text('{"operator_name": "Anna"}')


@pytest.fixture
def remember(upload: Run) -> Run:
    """Upload with a ledger, one recording after another, without a second try."""
    return lambda *words: upload("--meta-path", "fields.json", "--retries", 0, *words_for(*words))


def words_for(*paths_and_options: object) -> list[object]:
    """Return a command line with the ledger; paths are absolute, as the folder changes."""
    words = ["--ledger", LEDGER, "--jobs", 1, "--audio-path", *paths_and_options]
    return [word.absolute() if isinstance(word, Path) else word for word in words]


def make_calls(*names: str, size_bytes: int = 300_000, seed: int | None = None) -> list[Path]:
    return [make_wav(Path(f"{name}.wav"), size_bytes, seed=seed) for name in names]


class Held:
    """The command, while the service holds one of its calls, and what it left behind."""

    outcome: Outcome

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def held(service: StandIn, moment: str, *words: object, after: int = 0) -> Iterator[Held]:
    """Start the command with the ledger; hold a call at a moment of At for the block's length.

    after: so many calls pass before.
    """
    reached, go_on = threading.Event(), threading.Event()

    def wait(_: Call) -> None:
        reached.set()
        assert go_on.wait(20)

    service.script += [*[None] * after, At(**{moment: wait})]
    with start(*arguments(service, *words_for(*words))) as process:
        run = Held(process)
        try:
            assert reached.wait(20)
            yield run
        finally:
            go_on.set()
        run.outcome = ended(process)
    service.wait_until_idle()


# --- What a row says -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "code", "state", "again"),
    [
        (None, os.EX_OK, "uploaded", False),
        (LOST, os.EX_PROTOCOL, "unknown", False),
        (BUSY, os.EX_TEMPFAIL, "failed", True),
        (REJECTED, os.EX_DATAERR, "rejected", False),
        (REFUSED, os.EX_NOPERM, "failed", True),
    ],
)
def test_how_it_ended_decides_about_the_next_run(
    remember: Run, service: StandIn, step: Fail | None, code: int, state: str, again: bool
) -> None:
    service.script += [BUSY, step]
    assert remember(CALL, "--retries", 1).code == code
    row = ledgers.row(LEDGER)
    assert (row["state"], row["attempts"]) == (state, 2)
    assert row["request_id"] == service.calls[1].client_request_id
    assert not step or (row["talk_id"] is None and step.details in row["error"])

    dry = remember(CALL, "--dry-run", "--format", "json")
    found = json.loads(dry.out)["outcome"]
    assert found == ("checked" if again else "already" if state == "uploaded" else state)
    assert (rows(LEDGER), len(service.calls)) == ([row], 2)

    outcome = remember(CALL)
    assert outcome.code == dry.code == (os.EX_OK if again else code)
    assert len(service.calls) == (3 if again else 2)
    assert states(LEDGER) == ["uploaded" if again else state]
    if step and not again:
        assert "call.wav: " in outcome.err and step.details in outcome.err


# --- What counts as the same recording -----------------------------------------------


def test_renamed_moved_touched_or_copied_it_is_not_sent_again(
    remember: Run, service: StandIn
) -> None:
    def check(path: Path) -> None:
        said = f"{path.absolute()}: Dialog ID: {next(iter(service.talks))}\n"
        outcome = remember(path)
        assert (outcome.code, outcome.out) == (os.EX_OK, said)

    remember(CALL)
    check(CALL)
    Path("folder").mkdir()
    path = CALL
    for name in ("renamed.wav", "folder/moved.wav"):
        path = path.rename(name)
        check(path)
    os.utime(path, (1, 1))
    check(path)
    check(Path(shutil.copy(path, "copy.wav")))
    assert len(service.calls) == 1


# More of copies: test_machine.py, Nobody holds up the others.
@pytest.mark.parametrize("jobs", [1, 4])
def test_of_names_for_one_content_one_is_sent_a_run_until_there_is_a_dialog(
    remember: Run, service: StandIn, jobs: int
) -> None:
    paths = make_calls("a", "b", "c", seed=1)
    service.script += [LOST, LOST]
    for number in (1, 2):
        assert remember(*paths, "--jobs", jobs, "--retry-unknown").code == os.EX_PROTOCOL
        assert len(service.talks) == number
    for words in (("--retry-unknown",), ()):
        outcome = remember(*paths, "--jobs", jobs, *words)
        talk_id = list(service.talks)[2]
        lines = [f"{path.absolute()}: Dialog ID: {talk_id}" for path in paths]
        assert (outcome.code, sorted(outcome.out.splitlines())) == (os.EX_OK, lines)
    assert (len(service.talks), states(LEDGER)) == (3, ["uploaded"])


@pytest.mark.parametrize(("step", "code"), [(REJECTED, 65), (LOST, 76), (BUSY, 75)])
def test_of_two_names_for_one_content_the_second_shares_its_failure_or_is_sent(
    remember: Run, service: StandIn, step: Fail, code: int
) -> None:
    # Not UTF-8; how it is shown is left to the terminal's encoding.
    paths = make_calls(os.fsdecode(b"a\xff"), "b", seed=1)
    for path in paths:
        os.utime(path, (1, 1))  # What was rejected is sent again once its time changes.
    service.script.append(step)
    outcome = remember(*paths)
    again = step is BUSY
    assert (outcome.code, len(service.calls)) == (code, 2 if again else 1)
    assert ("b.wav: Dialog ID: " in outcome.out) == again
    of_first, of_second, summary = outcome.err.splitlines()
    assert "/a" in of_first and "b'" not in of_first and step.details in of_first
    assert "b.wav: " in of_second and ("sent again" if again else step.details) in of_second
    assert f"{1 if again else 0} uploaded" in summary
    if step is REJECTED:
        service.script += [REJECTED] * 2
        for words in (("--retry-rejected",), ()):
            assert (remember(*paths, *words).code, len(service.calls)) == (code, 2)


def test_a_file_that_is_replaced_by_a_device_fails_alone(remember: Run, service: StandIn) -> None:
    paths = make_calls("0", "1")

    def replace(_: Call) -> Step:
        paths[0].unlink()
        paths[0].symlink_to("/dev/null")
        return BUSY

    service.script.append(At(half_close=replace))
    outcome = remember(*paths, "--retries", 1)
    assert (outcome.code, len(service.talks)) == (os.EX_TEMPFAIL, 1)
    assert "0.wav: became unreadable (not a regular file)" in outcome.err


def test_of_two_names_with_other_metadata_the_first_by_path_counts(
    remember: Run, service: StandIn
) -> None:
    """Which of them was dropped was chance once, and nobody was told."""
    Path("calls").mkdir()
    for path in make_calls("calls/b", "calls/a", seed=1):
        path.with_suffix(".json").write_text(f'{{"client_name": "{path.stem}"}}')
    said = r"upload_grpc: \S+/b\.wav: not sent: same audio as \S+/a\.wav, .*--talk-id.*\n"
    dry = remember(Path("calls"), "--dry-run", "--quiet")
    assert (dry.code, bool(re.fullmatch(said, dry.err))) == (os.EX_DATAERR, True), dry.err
    for number in range(5):
        service.talks.clear()
        words = ("--jobs", 4, "--quiet", "--ledger", f"{number}.sqlite")
        outcome = remember(Path("calls"), *words)
        [talk] = service.talks.values()
        assert (outcome.code, talk.fields["client_name"]) == (os.EX_DATAERR, "a")
        assert re.fullmatch(r"\S+/calls/a.wav: Dialog ID: \w+\n", outcome.out)
        assert re.fullmatch(said, outcome.err)


def test_connections_are_kept_apart(remember: Run, service: StandIn) -> None:
    for connection in ("one", "two", "one", "two"):
        assert remember(CALL, "--connection-id", connection).code == os.EX_OK
    made = {talk.connection_id: talk.talk_id for talk in service.talks.values()}
    assert {row["connection_id"]: row["talk_id"] for row in rows(LEDGER)} == made
    assert list(made) == ["one", "two"] and len(service.calls) == 2


# --- Rejected and unknown ones -------------------------------------------------------


def test_a_rejected_one_is_sent_again_once_file_or_metadata_changes(
    remember: Run, service: StandIn
) -> None:
    sidecar = CALL.with_suffix(".json")
    user = '{"users": [{"id": "1", "role": "client"}]}'
    changes: list[Callable[[], object]] = [
        lambda: None,
        # The way to have it tried again once the connection has been fixed.
        lambda: os.utime(CALL, (1, 1)),
        lambda: sidecar.write_text('{"client_name": "Boris"}'),
        lambda: sidecar.write_text(user),
        lambda: sidecar.write_text(user.replace("client", "bot")),
    ]
    for number, make_change in enumerate(changes, 1):
        make_change()
        service.script = [REJECTED]
        for _ in range(2):
            outcome = remember(CALL)
            assert (outcome.code, len(service.calls)) == (os.EX_DATAERR, number)
            assert "call.wav: " in outcome.err and REJECTED.details in outcome.err
    sidecar.unlink()
    service.script = []
    assert remember(CALL).code == os.EX_OK
    row = ledgers.row(LEDGER)
    assert (row["state"], row["error"], row["attempts"]) == ("uploaded", None, 6)


def test_a_rejected_one_without_metadata_is_not_sent_again(upload: Run, service: StandIn) -> None:
    """The date among the placeholder fields is another each time."""
    service.script += [REJECTED]
    for _ in range(2):
        assert upload("--ledger", LEDGER, "--audio-path", CALL).code == os.EX_DATAERR
    assert len(service.calls) == 1


def test_an_unknown_one_is_named_until_somebody_decides(remember: Run, service: StandIn) -> None:
    service.script += [LOST]
    remember(CALL)
    for _ in range(2):
        outcome = remember(CALL)
        assert (outcome.code, outcome.out) == (os.EX_PROTOCOL, "")
        (line,) = outcome.err.splitlines()
        assert "call.wav: " in line and "gone" in line and "--retry-unknown" in line
    # Seen in the service, and marked as README says.
    unknown = {"path": str(CALL.resolve()), "state": "unknown"}
    ledgers.change(LEDGER, unknown, state="uploaded", talk_id="seen", error=None)
    assert remember(CALL, "--retry-unknown").out == f"{CALL.absolute()}: Dialog ID: seen\n"
    assert len(service.calls) == 1

    ledgers.change(LEDGER, state="unknown", talk_id=None)
    outcome = remember(CALL, "--retry-unknown")
    assert (outcome.code, outcome.out) == (
        0,
        f"{CALL.absolute()}: Dialog ID: {list(service.talks)[1]}\n",
    )
    assert "duplicate" in outcome.err
    assert remember(CALL, "--retry-unknown").out == outcome.out
    assert (states(LEDGER), len(service.calls)) == (["uploaded"], 2)


# --- A dry run -----------------------------------------------------------------------


def ledger_files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path().glob("ledger.sqlite*")}


def test_a_dry_run_reads_a_copy_of_a_ledger_with_its_log(remember: Run) -> None:
    assert remember(CALL).code == os.EX_OK
    Path("copy").mkdir()
    with ledgers.changed(LEDGER, attempts=2):
        for name in (LEDGER, Path(f"{LEDGER}-wal")):
            shutil.copy(name, "copy")
    outcome = remember(CALL, "--dry-run", "--ledger", Path("copy") / LEDGER)
    assert (outcome.code, "would be uploaded" in outcome.out) == (os.EX_OK, False), outcome.err


def test_a_dry_run_neither_makes_nor_changes_a_ledger(
    remember: Run, upload: Run, service: StandIn
) -> None:
    assert upload(*words_for(CALL), "--dry-run", begun=False).code == os.EX_OK
    assert ledger_files() == {}
    with held(service, "answer", CALL) as run:
        run.kill()
    copies = make_calls("a", "b", seed=1)
    for after in ("kill -9", "a run, a day ago, that said so"):
        before = ledger_files()
        assert ("ledger.sqlite-wal" in before) == (after == "kill -9")
        for words in ((), ("--quiet",)):
            outcome = remember(CALL, *copies, "--dry-run", *words)
            assert outcome.code == os.EX_PROTOCOL and "--retry-unknown" in outcome.err
            assert re.findall(r"(\w+)\.wav: would be uploaded", outcome.out) == ["a"], "said once"
            counts = "1 would be uploaded, 1 already there, 0 failed, 1 unknown"
            assert (counts in outcome.err) == (not words)
            assert ledger_files() == before
        remember(CALL, "--quiet")
        ledgers.pass_time(LEDGER, 86_400)
    assert len(service.calls) == 1


# --- Killed, at each state -----------------------------------------------------------

# At any moment: test_chaos.py (kills); at each step of a first run: test_safety.py; when the power
# fails: test_power_cut.py.


# What the row of the first of two recordings says, where the command is killed, and after how
# many calls.
KILLED = [("sending", "metadata", 0), ("finishing", "answer", 0), ("uploaded", "metadata", 1)]


@pytest.mark.parametrize(("state", "moment", "after"), [("nothing", "", 0), *KILLED])
def test_after_kill_9_one_run_has_every_recording_once_or_names_it(
    remember: Run, service: StandIn, state: str, moment: str, after: int
) -> None:
    paths = make_calls("0", "1", size_bytes=LONG_BYTES)
    if moment:
        with held(service, moment, *paths, after=after) as run:
            assert states(LEDGER)[0] == state
            run.kill()
    else:
        with socket.create_server(("localhost", 0)) as mute:
            mute.settimeout(20)
            endpoint = f"localhost:{mute.getsockname()[1]}"
            words = words_for(*paths, "--endpoint", endpoint)
            with start(*arguments(service, *words)) as process:
                mute.accept()[0].close()
                process.kill()
    outcome = remember(*paths, "--quiet")
    assert contents(service) == sorted(map(sha256, paths))
    if state == "finishing":
        assert (outcome.code, states(LEDGER)) == (os.EX_PROTOCOL, ["unknown", "uploaded"])
        (line,) = outcome.err.splitlines()
        assert "0.wav: " in line and "--retry-unknown" in line
    else:
        assert (outcome.code, states(LEDGER), outcome.err) == (os.EX_OK, ["uploaded"] * 2, "")


# --- Others who use it at the same time ----------------------------------------------


def test_a_recording_whose_row_was_deleted_is_not_uploaded(remember: Run, service: StandIn) -> None:
    make_wav(CALL, LONG_BYTES)
    service.script.append(At(metadata=lambda _: ledgers.delete(LEDGER, state="sending")))
    outcome = remember(CALL)
    assert (outcome.code, outcome.out) == (os.EX_CONFIG, "")
    assert "call.wav: " in outcome.err and "ledger.sqlite: " in outcome.err
    service.wait_until_idle()
    assert not service.talks
    assert remember(CALL).code == os.EX_OK
    assert len(service.talks) == 1


def test_a_second_run_leaves_at_once_and_the_first_goes_on(remember: Run, service: StandIn) -> None:
    """By whatever name: two runs on one ledger would upload everything twice."""
    Path("link.sqlite").symlink_to(LEDGER)
    with held(service, "answer", CALL) as first:
        for name in (LEDGER, "link.sqlite"):
            outcome = remember(CALL, "--ledger", name)
            assert (outcome.code, outcome.out) == (os.EX_TEMPFAIL, "")
            assert "another run" in outcome.err and "ledger.sqlite" in outcome.err
            # Silent, so that cron does not mail this every few minutes.
            quiet = remember(CALL, "--ledger", name, "--quiet")
            assert quiet == Outcome(os.EX_TEMPFAIL, "", "")
    said = f"{CALL.absolute()}: Dialog ID: {next(iter(service.talks))}\n"
    assert (first.outcome.code, first.outcome.out) == (os.EX_OK, said)
    again = remember(CALL, "--ledger", "link.sqlite")
    assert (again.code, again.out, len(service.calls)) == (os.EX_OK, said, 1)


def test_its_user_can_read_and_change_it_while_a_run_goes_on(service: StandIn) -> None:
    paths = make_calls("0", "1")
    with contextlib.ExitStack() as stack:
        stack.callback(os.umask, os.umask(0))
        run = stack.enter_context(held(service, "answer", *paths, after=1))
        files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in Path().glob("led*")}
        assert states(LEDGER) == ["uploaded", "finishing"]
        ledgers.change(LEDGER, {"path": str(paths[0].absolute())}, error="seen")
    assert run.outcome.code == os.EX_OK
    found = [(row["state"], row["error"]) for row in rows(LEDGER)]
    assert found == [("uploaded", "seen"), ("uploaded", None)]
    assert "ledger.sqlite-wal" in files and set(files.values()) == {0o600}


# --- Where it cannot be used ---------------------------------------------------------


def damage(path: Path) -> None:
    """Overwrite all but the first page, which says what kind of file it is."""
    path.write_bytes(path.read_bytes()[:4096].ljust(path.stat().st_size, b"\xff"))


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("a text", lambda path: path.write_text("not a database\n")),
        ("another program's database", ledgers.make_foreign),
        ("a folder", Path.mkdir),
        ("a ledger of a newer version", ledgers.make_newer),
        ("a ledger of an older version", ledgers.make_older),
        ("a damaged ledger", damage),
        ("the beginning of a ledger", lambda path: os.truncate(path, 5_000)),
    ],
)
def test_what_is_no_ledger_is_left_as_it_is_and_nothing_is_sent(
    remember: Run, service: StandIn, what: str, make: Callable[[Path], object]
) -> None:
    if "ledger" in what:
        remember(CALL)
        service.calls.clear()
    make(LEDGER)
    before = None if LEDGER.is_dir() else LEDGER.read_bytes()
    make_wav(CALL, seed=2)
    outcome = remember(CALL)
    assert (outcome.code, outcome.out, service.calls) == (os.EX_CONFIG, "", [])
    assert outcome.err.count("\n") == 1 and f"{LEDGER.resolve()}: " in outcome.err
    assert ("backup" in outcome.err) == ("version" not in what and what != "a folder")
    assert before == (None if LEDGER.is_dir() else LEDGER.read_bytes())


@pytest.mark.parametrize("closed", ["file", "folder", "missing folder"])
def test_where_it_cannot_be_written_it_is_named_and_nothing_is_sent(
    remember: Run, command: Run, service: StandIn, closed: str
) -> None:
    ledger = Path("kept/ledger.sqlite")
    if closed != "missing folder":
        ledger.parent.mkdir()
        remember(CALL, "--ledger", ledger)
        for leftover in ledger.parent.glob("ledger.sqlite-*"):
            leftover.unlink()
        (ledger if closed == "file" else ledger.parent).chmod(0o500)
        make_wav(CALL, seed=2)
        service.calls.clear()
    under = before_command(AS_NOBODY_SPECIAL)
    outcome = command("--ledger", ledger, "--audio-path", CALL, under=under)
    assert (outcome.code, outcome.out, service.calls) == (os.EX_CONFIG, "", [])
    assert outcome.err.count("\n") == 1 and f"{ledger.resolve()}: " in outcome.err


@pytest.mark.parametrize("words", [(), ("--quiet",), ("--report",)])
def test_by_a_name_in_a_folder_that_is_gone_it_is_named(
    upload: Run, service: StandIn, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    here = Path("gone")
    here.mkdir()
    monkeypatch.chdir(here)
    Path("../gone").rmdir()
    outcome = upload("--ledger", LEDGER, "--audio-path", SAMPLE, *words, begun=False)
    assert (outcome.code, outcome.out, service.calls) == (os.EX_CONFIG, "", [])
    assert (
        outcome.err == f"upload_grpc: ledger {LEDGER}: No such file or directory; check --ledger\n"
    )


# --- A full disk: to SQLite that is what a limit to the size of files looks like -----------


@pytest.mark.parametrize("used_before", [False, True])
def test_a_disk_that_is_full_from_the_start(
    remember: Run, command: Run, service: StandIn, used_before: bool
) -> None:
    if used_before:
        remember(CALL)
        make_wav(CALL, 600_000, seed=2)
    before = rows(LEDGER) if used_before else []
    under = before_command("import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (0, 0))")
    outcome = command("--ledger", LEDGER, "--audio-path", CALL, under=under)
    assert (outcome.code, outcome.out) == (os.EX_TEMPFAIL, "")
    assert "ledger.sqlite: " in outcome.err and len(service.calls) == len(before)
    # The next run, with room, goes on as if nothing had been.
    assert not used_before or rows(LEDGER) == before
    assert remember(CALL).code == os.EX_OK
    assert len(service.calls) == len(before) + 1


@pytest.mark.parametrize("moment", ["metadata", "answer"])
def test_a_disk_that_fills_up(remember: Run, service: StandIn, moment: str) -> None:
    paths = make_calls("0", "1", size_bytes=LONG_BYTES)
    with held(service, moment, *paths) as run:
        size_bytes = Path("ledger.sqlite-wal").stat().st_size
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (size_bytes, size_bytes))
    out, err = run.outcome.out, run.outcome.err
    assert "0.wav: " in err and err.count("wait for that to end") == 1 and "Traceback" not in err
    made = list(service.talks)
    if moment == "answer":
        assert run.outcome.code == os.EX_PROTOCOL
        assert made[0] in out, "a dialog ID that came is a result, whatever became of the ledger"
        assert re.search(f"0.wav: uploaded as {made[0]}, but the ledger could not record it: ", err)
        assert states(LEDGER) == ["finishing"]
    else:
        assert run.outcome.code == os.EX_TEMPFAIL
        assert (made, out, states(LEDGER)) == ([], "", ["sending"])
    outcome = remember(*paths, "--quiet")
    assert outcome.code == (os.EX_PROTOCOL if made else os.EX_OK)
    assert ("0.wav: " in outcome.err) == bool(made)
    assert contents(service) == sorted(map(sha256, paths))


def test_a_ledger_that_fails_while_recordings_are_looked_for_is_no_bug(
    remember: Run, service: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(ledger: upload_grpc.Ledger, folder: str) -> bool:
        raise upload_grpc.LedgerError(ledger.path, "disk", "disk I/O error", "wait", os.EX_TEMPFAIL)

    monkeypatch.setattr(upload_grpc.Ledger, "knows_below", fail)
    Path("empty").mkdir()
    outcome = remember(Path("empty"), CALL)
    assert (outcome.code, service.calls) == (os.EX_TEMPFAIL, [])
    assert "disk I/O error; wait" in outcome.err and "bug" not in outcome.err
