"""Many recordings in one command: which are taken, in what order, and what is said of each."""

from __future__ import annotations

import collections
import contextlib
import errno
import gc
import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from conftest import SCRIPT, Outcome, Run, arguments, make_wav, start
from encoders import ogg_opus
from stand_in import Delay, Fail, Freeze, StandIn, Step, stored_talks

import upload_grpc

LOST = Fail(grpc.StatusCode.UNAVAILABLE, "gone", store=True)
BUSY = Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many at a time")
REJECTED = Fail(grpc.StatusCode.INVALID_ARGUMENT, "not this one")
REFUSED = Fail(grpc.StatusCode.PERMISSION_DENIED, "not you")
NO_CONNECTION = Fail(grpc.StatusCode.NOT_FOUND, "no such connection")

JSON_KEYS = {
    "schema_version",
    "path",
    "outcome",
    "talk_id",
    "talk_ids",
    "badge_id",
    "error",
    "exit_code",
    "request_id",
    "bytes",
    "seconds",
    "tries",
    "description",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make an empty folder for recordings."""
    path = tmp_path / "calls"
    path.mkdir()
    return path


def make_wavs(folder: Path, *names: str, size_bytes: int = 2_000) -> list[Path]:
    """Write a recording of each name, with the folders it needs."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    return [make_wav(folder / name, size_bytes) for name in names]


def dialog_ids(out: str) -> dict[str, str]:
    """Read `<path>: Dialog ID: <talk_id>` lines, and nothing else."""
    ids = {}
    for line in out.splitlines():
        path, talk_id = line.split(": Dialog ID: ")
        assert path not in ids
        ids[path] = talk_id
    return ids


def wait_for(condition: Callable[[], object], timeout_s: float = 20) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def last_line(err: str) -> str:
    return err.splitlines()[-1].removeprefix("upload_grpc: ")


# --- Which recordings ----------------------------------------------------------------


def test_files_and_folders_are_taken_in_the_order_named_and_folders_by_name(
    upload: Run, service: StandIn, folder: Path
) -> None:
    names = ["b/2.wav", "b/1.wav", "z.wav", "b/c/deep/9.WAV", "b/a/3.wav", "a.wav"]
    make_wavs(folder, *names)
    (folder / "b" / "notes.txt").write_text("no recording")
    (folder / "b" / "1.json").write_text("{}")
    single = make_wav(folder.parent / "single.wav", 2_000)
    expected = [
        str(path)
        for path in (
            single,
            *(folder / name for name in ("a.wav", "z.wav", "b/1.wav", "b/2.wav", "b/a/3.wav")),
            folder / "b/c/deep/9.WAV",
        )
    ]
    for _ in range(2):
        outcome = upload("--jobs", 1, "--audio-path", single, folder)
        assert outcome.code == os.EX_OK
        assert list(dialog_ids(outcome.out)) == expected
    assert len(service.talks) == 2 * len(expected)


NOTHING = "0 uploaded, 0 already there, 0 failed, 0 unknown"


def test_an_empty_folder_is_no_error_and_says_what_is_searched_for(
    upload: Run, service: StandIn, folder: Path
) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.txt").write_text("no recording")
    outcome = upload("--audio-path", folder)
    assert (outcome.code, outcome.out) == (os.EX_OK, "")
    assert outcome.err.splitlines() == [
        "upload_grpc: nothing to upload: folders are searched for .wav, .mp3, .ogg, .opus",
        f"upload_grpc: {NOTHING}",
    ]
    assert upload("--audio-path", folder, "--quiet") == Outcome(os.EX_OK, "", "")
    assert not service.calls


def test_links_are_followed_but_not_round_in_circles(upload: Run, folder: Path) -> None:
    make_wavs(folder, "1.wav", "sub/2.wav", "../elsewhere/3.wav")
    (folder / "sub" / "up").symlink_to("..")
    (folder / "sub" / "here").symlink_to(".")
    (folder / "top").symlink_to(folder)
    (folder / "other").symlink_to("../elsewhere")
    (folder / "other too").symlink_to("../elsewhere")
    (folder / "round").symlink_to("round")
    outcome = upload("--audio-path", folder)
    assert outcome.code == os.EX_OK
    found = [str(folder / name) for name in ("1.wav", "other/3.wav", "sub/2.wav")]
    assert sorted(dialog_ids(outcome.out)) == found


def test_a_link_to_nowhere_is_reported_and_the_others_go(
    upload: Run, service: StandIn, folder: Path
) -> None:
    make_wavs(folder, "1.wav", "2.wav")
    (folder / "gone.wav").symlink_to("nowhere.wav")
    (folder / "round.wav").symlink_to("round.wav")
    outcome = upload("--audio-path", folder)
    assert outcome.code == os.EX_NOINPUT
    assert "gone.wav: cannot be read" in outcome.err and "round.wav: cannot be" in outcome.err
    assert len(service.talks) == 2


def test_what_is_no_file_is_reported_and_not_waited_for(
    upload: Run, service: StandIn, folder: Path
) -> None:
    make_wavs(folder, "1.wav")
    os.mkfifo(folder / "fifo.wav")
    outcome = upload("--audio-path", folder)
    assert outcome.code == os.EX_NOINPUT
    assert "fifo.wav: not a regular file" in outcome.err
    assert len(service.talks) == 1


def without_rights() -> list[str]:
    """Answer what to put before a command so that permissions count, also for root."""
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root reads everything, and there is no setpriv (util-linux) to change that")
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


def test_a_folder_or_file_that_may_not_be_read_is_reported_and_the_others_go(
    service: StandIn, folder: Path
) -> None:
    make_wavs(folder, "1.wav", "a/2.wav", "closed/3.wav", "listed/4.wav", "5.wav")
    closed = (folder / "closed", 0o000), (folder / "listed", 0o400), (folder / "5.wav", 0o000)
    for path, mode in closed:
        path.chmod(mode)
    try:
        command = [*without_rights(), sys.executable, str(SCRIPT)]
        words = arguments(service, "--audio-path", folder, folder / "closed")
        done = subprocess.run(
            [*command, *words], capture_output=True, text=True, timeout=30, check=False
        )
    finally:
        for path, _ in closed:
            path.chmod(0o700)
    assert done.returncode == os.EX_NOINPUT
    for path in (folder / "closed", folder / "listed" / "4.wav", folder / "5.wav"):
        assert f"{path}: cannot be read: Permission denied" in done.stderr
    assert sorted(dialog_ids(done.stdout)) == [str(folder / "1.wav"), str(folder / "a/2.wav")]


def test_one_file_named_several_times_is_one_dialog(
    upload: Run, service: StandIn, folder: Path
) -> None:
    (wav,) = make_wavs(folder, "1.wav")
    (folder / "hard.wav").hardlink_to(wav)
    (folder / "soft.wav").symlink_to(wav)
    roundabout = f"{folder}/../{folder.name}/1.wav"
    outcome = upload("--verbose", "--audio-path", wav, wav, folder, roundabout, folder)
    assert outcome.code == os.EX_OK
    assert list(dialog_ids(outcome.out)) == [str(wav)]
    assert len(service.talks) == 1
    assert "hard.wav: another name of a file that is already there" in outcome.err


def test_a_folder_named_again_later_is_searched_too(
    upload: Run, service: StandIn, folder: Path
) -> None:
    paths = make_wavs(folder, "1.wav", "2.wav", "3.wav")
    words = ("--audio-path", paths[0], "--jobs", 1, "--audio-path", *paths[1:])
    assert list(dialog_ids(upload(*words).out)) == list(map(str, paths))


@pytest.mark.parametrize(("ahead_s", "sent"), [(365 * 86_400, 1), (10, 0)])
def test_a_file_dated_ahead_of_the_clock_is_not_young_for_ever(
    upload: Run, service: StandIn, folder: Path, ahead_s: float, sent: int
) -> None:
    """Dated by a wrong clock it is as old as any; a little ahead it may be new all the same."""
    (path,) = make_wavs(folder, "1.wav")
    os.utime(path, (time.time() + ahead_s,) * 2)
    assert upload("--audio-path", folder, "--min-age", 60, "--quiet").code == os.EX_OK
    assert len(service.talks) == sent


def test_young_files_are_left_out_unnamed(upload: Run, service: StandIn, folder: Path) -> None:
    old, young = make_wavs(folder, "old.wav", "young.wav")
    an_hour_ago = time.time() - 3600
    os.utime(old, (an_hour_ago, an_hour_ago))
    young.write_bytes(b"RIFF, and the recorder is not done yet")

    outcome = upload("--min-age", 600, "--meta-path", write_fields(folder), "--audio-path", folder)
    assert outcome.code == os.EX_OK
    assert list(dialog_ids(outcome.out)) == [str(old)]
    assert "young" not in outcome.err

    for words in (
        ("--min-age", 7200, "--audio-path", folder),
        ("--min-age", 600, "--audio-path", young),
    ):
        assert upload("--quiet", *words) == Outcome(os.EX_OK, "", "")
    told = upload("--min-age", 600, "--verbose", "--audio-path", young)
    assert f"{young}: younger than 600 s, left out" in told.err
    assert len(service.talks) == 1


def write_fields(folder: Path) -> Path:
    """Write metadata beside a folder, so that nothing is said about placeholders."""
    path = folder.parent / "fields.json"
    path.write_text('{"operator_name": "Anna"}')
    return path


NAMES = {
    b"not utf-8 \xff\xfe.wav": b"not utf-8 \xff\xfe.wav",
    "Звонок №1.wav".encode(): "Звонок №1.wav".encode(),
    b"two  spaces .wav": b"two  spaces .wav",
    b"new\nline.wav": b"new\\x0aline.wav",
    b"\x1b[31mred\r.wav": b"\\x1b[31mred\\x0d.wav",
    b"-dash.wav": b"-dash.wav",
    b"--key=x.wav": b"--key=x.wav",
    b"'$(id)' `id` \\.wav": b"'$(id)' `id` \\.wav",
    b"x" * 251 + b".wav": b"x" * 251 + b".wav",
    b".hidden.wav": b".hidden.wav",
}


@pytest.mark.parametrize("named", [False, True], ids=["found", "named"])
def test_any_name_will_do(service: StandIn, tmp_path: Path, named: bool) -> None:
    folder = os.fsencode(tmp_path / "calls")
    os.mkdir(folder)
    for number, name in enumerate(NAMES):
        make_wav(tmp_path / "one.wav", 2_000, seed=number).rename(
            os.fsdecode(os.path.join(folder, name))
        )
    paths = [b"./" + name if name.startswith(b"-") else name for name in NAMES]
    words = arguments(service, "--ledger", tmp_path / "ledger")
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *words, "--audio-path", *(paths if named else [b"."])],
            cwd=folder,
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == os.EX_OK, done.stderr
    # Known ones are repeated where they were named, and pass in silence where they were found.
    shown = {re.sub(rb"^\./", b"", line) for line in done.stdout.splitlines()}
    talks = stored_talks(service.store)
    assert len(talks) == len(NAMES)
    ids = {talk["sha256"]: talk["talk_id"].encode() for talk in talks}
    expected = set()
    for name, visible in NAMES.items():
        with open(os.path.join(folder, name), "rb") as file:
            expected.add(visible + b": Dialog ID: " + ids[hashlib.sha256(file.read()).hexdigest()])
    assert shown == (expected if named else set())


# --- All checked first, and a bad one stops nothing ----------------------------------


def test_bad_ones_never_stop_the_good_ones(upload: Run, service: StandIn, folder: Path) -> None:
    good = make_wavs(folder, *(f"good{number}.wav" for number in range(5)))
    (folder / "a bad.wav").write_text("no recording")
    (folder / "good5.wav").write_bytes(good[0].read_bytes()[:1_000])
    make_wav(folder / "good6.wav").with_suffix(".json").write_text("{")
    outcome = upload("--audio-path", folder, folder / "missing.wav")
    assert outcome.code == os.EX_DATAERR
    assert sorted(dialog_ids(outcome.out)) == list(map(str, good))
    assert len(service.talks) == len(good)
    for name in ("a bad.wav", "good5.wav", "good6.wav", "missing.wav"):
        assert f"upload_grpc: {folder / name}: " in outcome.err
    assert last_line(outcome.err) == "5 uploaded, 0 already there, 4 failed, 0 unknown"


def test_a_disk_that_fails_under_a_header_stops_nothing_else(
    upload: Run, service: StandIn, folder: Path
) -> None:
    (good,) = make_wavs(folder, "1.wav")
    # A regular file that can be opened, and of which no byte can be read.
    broken = "/sys/class/net/lo/speed"
    outcome = upload("--audio-path", broken, good, "--quiet")
    assert outcome.code == os.EX_NOINPUT
    assert outcome.err.startswith(f"upload_grpc: {broken}: cannot be read: Invalid argument; ")
    assert outcome.err.count("\n") == 1
    assert list(dialog_ids(outcome.out)) == [str(good)]


@pytest.mark.parametrize("words", [(), ("--ledger", "ledger"), ("--single-message",)])
def test_a_file_lost_by_its_server_after_it_was_checked_stops_nothing_else(
    upload: Run,
    service: StandIn,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    """On a network disk a file may open, and only then prove stale."""
    stale, good = make_wavs(folder, "1.wav", "2.wav")
    looks = 0

    def fstat(descriptor: int) -> os.stat_result:
        nonlocal looks
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(stale):
            looks += 1
            if looks > 1:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return os.fstat(descriptor)

    monkeypatch.setattr(upload_grpc, "os", SimpleNamespace(**{**vars(os), "fstat": fstat}))
    monkeypatch.chdir(folder)
    outcome = upload("--audio-path", folder, "--quiet", "--jobs", 1, *words)
    assert outcome.code == os.EX_TEMPFAIL
    assert outcome.err.startswith(f"upload_grpc: {stale}: became unreadable (Stale file handle)")
    assert outcome.err.count("\n") == 1
    assert list(dialog_ids(outcome.out)) == [str(good)]
    gc.collect()  # Complains of a file that was left open.


def test_the_last_one_is_checked_before_the_first_one_is_sent(
    service: StandIn, folder: Path, tmp_path: Path
) -> None:
    make_wavs(folder, "1.wav")
    (folder / "z.wav").write_text("no recording")
    service.script.append(Freeze(after_bytes=0))
    words = arguments(service, "--audio-path", folder)
    with (
        open(tmp_path / "stderr", "w") as stderr,
        subprocess.Popen([sys.executable, str(SCRIPT), *words], stderr=stderr) as process,
    ):
        wait_for(lambda: service.calls)
        said = (tmp_path / "stderr").read_text()
        process.terminate()
    assert "z.wav: " in said
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("words", "connections", "code"),
    [
        (["--key", "wrong-key"], None, os.EX_NOPERM),
        (["--connection-id", "wrong"], ["connection-1"], os.EX_CONFIG),
    ],
    ids=["key", "connection"],
)
def test_what_every_recording_would_meet_stops_the_run(
    upload: Run,
    service: StandIn,
    folder: Path,
    words: list[str],
    connections: list[str] | None,
    code: int,
) -> None:
    make_wavs(folder, *(f"{number:02}.wav" for number in range(20)), size_bytes=300_000)
    (folder / "bad.wav").write_text("no recording")
    service.connections = connections
    outcome = upload("--jobs", 2, *words, "--audio-path", folder)
    assert outcome.code == code
    assert outcome.out == ""
    tried = len(service.calls)
    assert 1 <= tried <= 4
    failed = re.fullmatch(
        r"0 uploaded, 0 already there, (\d+) failed, 0 unknown, (\d+) not tried",
        last_line(outcome.err),
    )
    assert failed and int(failed[1]) >= tried + 1 and int(failed[1]) + int(failed[2]) == 21


def test_two_good_recordings_before_the_key_expires_are_reported(
    upload: Run, service: StandIn, folder: Path
) -> None:
    make_wavs(folder, *(f"{number}.wav" for number in range(6)))
    service.script += [None, None, REFUSED]
    outcome = upload("--jobs", 1, "--audio-path", folder)
    assert outcome.code == os.EX_NOPERM
    assert list(dialog_ids(outcome.out).values()) == list(service.talks)
    assert last_line(outcome.err) == (
        "2 uploaded, 0 already there, 1 failed, 0 unknown, 3 not tried"
    )


def test_when_the_run_is_stopped_no_single_message_is_left_without_its_answer(
    upload: Run, service: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built before the refusal came, it would be cancelled unsent, and be looked for in vain."""
    paths = make_wavs(folder, *(f"{number:02}.wav" for number in range(11)), size_bytes=300_000)
    stopped = threading.Event()
    build, stop = upload_grpc.single_message_request, upload_grpc.Uploader.stop

    def build_late(connection_id: str, recording: Any, transfer: Any) -> Any:
        if recording.path != str(paths[0]):
            assert stopped.wait(10)
        return build(connection_id, recording, transfer)

    def stop_and_tell(*arguments: Any, **options: Any) -> None:
        stop(*arguments, **options)
        stopped.set()

    monkeypatch.setattr(upload_grpc, "single_message_request", build_late)
    monkeypatch.setattr(upload_grpc.Uploader, "stop", stop_and_tell)
    service.script.append(REFUSED)
    words = ("--single-message", "--jobs", 4, "--format", "json", "--quiet")
    outcome = upload("--audio-path", folder, *words)
    assert outcome.code == os.EX_NOPERM
    results = [json.loads(line) for line in outcome.out.splitlines()]
    counts = collections.Counter(result["outcome"] for result in results)
    assert counts["unknown"] == 0
    assert counts["uploaded"] == len(service.talks)
    assert counts["not tried"] == len(paths) - 4
    assert sum(counts.values()) == len(paths)


@pytest.mark.parametrize(
    ("place", "became"),
    [
        pytest.param("hash_audio", ("not tried", os.EX_TEMPFAIL), id="before it was sent"),
        pytest.param("check_answer", ("unknown", os.EX_PROTOCOL), id="after it was sent"),
    ],
)
def test_a_bug_with_one_recording_leaves_none_without_a_line(
    upload: Run,
    service: StandIn,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    became: tuple[str, int],
) -> None:
    """Whoever reads the IDs must not miss those of the others, nor take the one for not sent."""
    paths = make_wavs(folder, *(f"{number}.wav" for number in range(9)), size_bytes=300_000)
    struck, right = paths[1], getattr(upload_grpc, place)
    sent = 3 if place == "check_answer" else 2

    def broken(*arguments: Any) -> object:
        if str(struck) in (getattr(argument, "path", "") for argument in arguments):
            # The others have all been sent, and are not answered yet.
            wait_for(lambda: sum(call.half_closed for call in service.calls) >= sent)
            raise ZeroDivisionError("as a bug would")
        return right(*arguments)

    monkeypatch.setattr(upload_grpc, place, broken)
    service.script += [Delay(0.2)] * len(paths)
    words = ("--jobs", 3, "--format", "json", "--ledger", tmp_path / "ledger")
    outcome = upload("--audio-path", folder, *words)
    service.wait_until_idle()
    assert outcome.code == os.EX_SOFTWARE
    assert "ZeroDivisionError: as a bug would" in outcome.err and "Traceback" in outcome.err
    results = [json.loads(line) for line in outcome.out.splitlines()]
    by_path = {result["path"]: result for result in results}
    assert len(by_path) == len(results) == len(paths)
    last, first = by_path.pop(str(paths[-1])), by_path.pop(str(struck))
    assert (first["outcome"], first["exit_code"]) == became
    assert (last["outcome"], last["exit_code"]) == ("not tried", os.EX_TEMPFAIL)
    uploaded = {result["talk_id"] for result in by_path.values()} - {None}
    own = hashlib.sha256(struck.read_bytes()).hexdigest()
    others = {talk.talk_id for talk in service.talks.values() if talk.sha256 != own}
    unknown = sum(result["outcome"] == "unknown" for result in by_path.values())
    assert uploaded <= others and len(others) >= 2
    assert len(others) - len(uploaded) <= unknown


# --- Several at a time ---------------------------------------------------------------


def test_jobs_go_side_by_side_over_one_connection(service: StandIn, folder: Path) -> None:
    make_wavs(folder, *(f"{number}.wav" for number in range(9)), size_bytes=300_000)
    service.script += [Delay(0.3)] * 3
    peaks = set()
    with start(*arguments(service, "--jobs", 3, "--audio-path", folder)) as process:
        while process.poll() is None:
            peaks.add(sum(not call.outcome for call in service.calls))
            time.sleep(0.002)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == os.EX_OK
    assert max(peaks) == 3
    assert len(dialog_ids(out)) == len(service.talks) == 9
    assert len({call.peer for call in service.calls}) == 1


def test_results_appear_as_they_come(service: StandIn, folder: Path) -> None:
    make_wavs(folder, "1.wav", "2.wav", "3.wav")
    service.script += [None, None, Freeze()]
    with start(*arguments(service, "--jobs", 1, "--audio-path", folder)) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        process.kill()
    assert list(dialog_ids("".join(lines)).values()) == list(service.talks)[:2]


# --- What is said --------------------------------------------------------------------


def test_the_last_line_counts(upload: Run, service: StandIn, folder: Path, tmp_path: Path) -> None:
    words = ("--jobs", 1, "--retries", 0, "--ledger", tmp_path / "l", "--audio-path", folder)
    make_wavs(folder, "1.wav")
    upload(*words)
    make_wavs(folder, "2.wav", "3.wav", "4.wav", "5.wav", "6.wav")
    service.script += [None, LOST, BUSY, REJECTED]
    outcome = upload(*words)
    assert last_line(outcome.err) == "2 uploaded, 1 already there, 2 failed, 1 unknown"
    assert len(dialog_ids(outcome.out)) == 2
    assert outcome.code == os.EX_PROTOCOL


def test_quiet_leaves_the_failures(upload: Run, service: StandIn, folder: Path) -> None:
    make_wavs(folder, "1.wav", "2.wav")
    outcome = upload("--quiet", "--audio-path", folder)
    assert outcome.code == os.EX_OK
    assert outcome.err == ""
    assert len(dialog_ids(outcome.out)) == 2
    service.script += [None, REJECTED]
    outcome = upload("--quiet", "--jobs", 1, "--audio-path", folder)
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"upload_grpc: {folder / '2.wav'}: not this one (INVALID_ARGUMENT")


def test_a_warning_names_each_recording_and_placeholders_are_told_of_once(
    upload: Run, service: StandIn, folder: Path
) -> None:
    whole = ogg_opus()
    for number in range(3):
        (folder / f"{number}.opus").write_bytes(whole[: whole.rindex(b"OggS")])
    make_wavs(folder, "3.wav")
    outcome = upload("--audio-path", folder)
    assert outcome.code == os.EX_OK
    *cut, placeholders, _ = outcome.err.splitlines()
    assert [line.partition(": its end is missing")[0] for line in cut] == [
        f"upload_grpc: {folder / name}" for name in ("0.opus", "1.opus", "2.opus")
    ]
    assert placeholders.startswith(
        f"upload_grpc: {folder / '0.opus'} and 3 more: no metadata given, placeholder fields "
    )


def test_json_is_one_object_a_recording_whatever_became_of_it(
    upload: Run,
    service: StandIn,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upload_grpc, "BACKOFF_S", 0.01)
    words = ("--format", "json", "--jobs", 1, "--ledger", tmp_path / "l", "--retries", 1)
    make_wavs(folder, "1.wav")
    upload(*words, "--audio-path", folder)
    make_wavs(folder, "2.wav", "3.wav", "4.wav", "5.wav", size_bytes=300_000)
    (folder / "6.wav").write_text("no recording")
    service.script += [BUSY, None, LOST, BUSY, BUSY, REJECTED]
    outcome = upload(*words, "--audio-path", folder, folder / "7.wav")
    results = {}
    for line in outcome.out.splitlines():
        result = json.loads(line)
        assert set(result) == JSON_KEYS
        assert result["schema_version"] == 1
        results[Path(result.pop("path")).name] = result
    assert outcome.code == os.EX_PROTOCOL
    assert {
        name: (result["outcome"], result["exit_code"], result["tries"])
        for name, result in results.items()
    } == {
        "1.wav": ("already", 0, 0),
        "2.wav": ("uploaded", 0, 2),
        "3.wav": ("unknown", os.EX_PROTOCOL, 1),
        "4.wav": ("failed", os.EX_TEMPFAIL, 2),
        "5.wav": ("rejected", os.EX_DATAERR, 1),
        "6.wav": ("rejected", os.EX_DATAERR, 0),
        "7.wav": ("failed", os.EX_NOINPUT, 0),
    }
    by_request = {call.metadata["x-client-request-id"]: call for call in service.calls}
    for name in ("2.wav", "3.wav", "4.wav", "5.wav"):
        assert results[name]["request_id"] in by_request
        assert results[name]["bytes"] == (folder / name).stat().st_size
        assert results[name]["seconds"] > 0
    assert results["2.wav"]["talk_id"] in service.talks
    assert results["1.wav"]["talk_id"] in service.talks
    for name, result in results.items():
        assert bool(result["error"]) == (result["exit_code"] != 0), name
        assert bool(result["talk_id"]) == (result["exit_code"] == 0), name
    assert "not this one" in results["5.wav"]["error"]
    assert results["7.wav"]["bytes"] is None


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ([BUSY, None, None], os.EX_TEMPFAIL),
        (["missing", BUSY], os.EX_NOINPUT),
        (["missing", BUSY, REJECTED], os.EX_DATAERR),
        (["missing", "bad"], os.EX_DATAERR),
        (["bad", LOST, BUSY], os.EX_PROTOCOL),
        ([LOST, "missing", NO_CONNECTION], os.EX_CONFIG),
        ([LOST, "bad", REFUSED], os.EX_NOPERM),
    ],
)
def test_the_gravest_exit_code_wins(
    upload: Run, service: StandIn, folder: Path, steps: list[Step | str], code: int
) -> None:
    paths = []
    for number, step in enumerate(steps):
        path = folder / f"{number}.wav"
        if step == "bad":
            path.write_text("no recording")
        elif step != "missing":
            assert not isinstance(step, str)
            make_wav(path, 300_000)
            service.script.append(step)
        paths.append(path)
    assert upload("--jobs", 1, "--retries", 0, "--audio-path", *paths).code == code
    assert not service.script


# --- Stopped, and nobody to read the results -----------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_no_dialog_without_a_line(
    service: StandIn, folder: Path, number: signal.Signals
) -> None:
    make_wavs(folder, *(f"{number}.wav" for number in range(12)), size_bytes=2_000_000)
    # Three are stored at once, one answer is on its way, one never comes, one is cut off.
    service.script += [None, None, None, Delay(0.3), Freeze(store=True), Freeze(after_bytes=1000)]
    with start(*arguments(service, "--jobs", 3, "--audio-path", folder)) as process:
        wait_for(lambda: sum(not call.outcome for call in service.calls) == 3)
        wait_for(lambda: sum(call.half_closed for call in service.calls) == 5)
        began = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert time.monotonic() - began < 3
    assert process.returncode == 128 + number
    ids = dialog_ids(out)
    assert len(ids) >= 4
    unnamed = {talk["sha256"] for talk in stored_talks(service.store)} - {
        hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in ids
    }
    # The frozen one made a talk and never said so: that it may be there is said in its line.
    doubtful = re.findall(r"upload_grpc: (.*): sent, but not confirmed", err)
    assert len(unnamed) == 1
    assert unnamed <= {hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in doubtful}
    assert len(doubtful) <= 2
    assert set(ids.values()) <= set(service.talks)
    assert "Traceback" not in err
    counted = re.search(
        r"(\d+) uploaded, 0 already there, (\d+) failed, (\d+) unknown, (\d+) not tried", err
    )
    assert counted and sum(map(int, counted.groups())) == 12
    assert f"stopped by {number.name}" in err


def shell(line: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a shell that does something to its stdout."""
    return subprocess.run(
        ["bash", "-c", line, "bash", sys.executable, str(SCRIPT), *words],
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    "line",
    ['"$@" >/dev/full', '"$@" | true; exit ${PIPESTATUS[0]}', 'exec "$@" >&-'],
    ids=["full", "closed pipe", "closed"],
)
def test_dialog_ids_that_cannot_be_printed_are_on_stderr(
    service: StandIn, folder: Path, line: str
) -> None:
    make_wavs(folder, *(f"{number:02}.wav" for number in range(30)))
    service.script += [Delay(0.2)]  # Time for `true` to end.
    done = shell(line, *arguments(service, "--jobs", "1", "--audio-path", folder))
    assert done.returncode == os.EX_IOERR
    assert "stdout" in done.stderr and "Traceback" not in done.stderr
    for talk in stored_talks(service.store):
        assert f"Dialog ID: {talk['talk_id']}" in done.stderr
    assert len(service.talks) < 30, "it goes on sending though nobody hears of it"


# --- A folder of 20,000 --------------------------------------------------------------

MANY = 20_000


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a folder of very many very short recordings."""
    root = tmp_path_factory.mktemp("large")
    folder = root / "calls"
    content = make_wav(root / "one.wav", 32).read_bytes()
    for number in range(MANY):
        if number % 1000 == 0:
            subfolder = folder / f"{number // 1000:02}"
            subfolder.mkdir(parents=True)
        (subfolder / f"{number:05}.wav").write_bytes(content[:-4] + number.to_bytes(4, "little"))
    yield folder
    shutil.rmtree(root)


def measure(results: Path, *words: str) -> tuple[int, float, float, str]:
    """Run the command; answer exit code, seconds, MB of memory at most, and stderr.

    results: a file for stdout, as 20,000 lines fit no pipe.
    """
    began = time.monotonic()
    memory_kb = 0
    with (
        open(results, "w") as stdout,
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *words], stdout=stdout, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        # Not getrusage: its maximum counts what the process was before exec, which is us.
        while process.poll() is None:
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                memory_kb = max(memory_kb, *map(int, re.findall(r"VmHWM:\s+(\d+)", status)), 0)
            time.sleep(0.01)
        assert process.stderr is not None
        err = process.stderr.read()
    return process.returncode, time.monotonic() - began, memory_kb / 1024, err


def test_a_folder_of_very_many_is_checked_in_bounded_time_and_memory(
    service: StandIn, large_folder: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    words = arguments(service, "--dry-run", "--audio-path", large_folder)
    code, took_s, memory_mb, _ = measure(results, *words)
    assert code == os.EX_OK
    assert results.read_text().count("\n") == MANY
    assert took_s < 30
    assert 0 < memory_mb < 200


def test_very_many_that_the_ledger_knows_cost_next_to_nothing(
    service: StandIn, large_folder: Path, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.sqlite"
    first = large_folder / "00" / "00000.wav"
    fields = write_fields(large_folder)
    words = arguments(service, "--meta-path", fields, "--quiet", "--ledger", ledger)
    results = tmp_path / "results"
    assert measure(results, *words, "--audio-path", str(first))[0] == os.EX_OK
    paths = sorted(large_folder.glob("*/*.wav"))
    with contextlib.closing(sqlite3.connect(ledger)) as database, database:
        database.row_factory = sqlite3.Row
        row = dict(database.execute("SELECT * FROM recordings").fetchone())
        values = ", ".join(f":{name}" for name in row)
        database.executemany(
            f"INSERT INTO recordings ({', '.join(row)}) VALUES ({values})",
            (
                {
                    **row,
                    "sha256": f"{number:064}",
                    "path": str(path),
                    "mtime_ns": path.stat().st_mtime_ns,
                }
                for number, path in enumerate(paths[1:-5])
            ),
        )
    code, took_s, memory_mb, err = measure(results, *words, "--audio-path", str(large_folder))
    assert (code, err) == (os.EX_OK, "")
    assert sorted(dialog_ids(results.read_text())) == list(map(str, paths[-5:]))
    assert len(service.calls) == 6
    assert took_s < 15
    assert 0 < memory_mb < 200
