"""Many recordings in one command: which are taken, in what order, and what is said of each."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
import trustme
from conftest import SCRIPT, Outcome, Run, arguments, ended, make_wav, sha256, start, wait_for
from stand_in import At, Call, Delay, Fail, Freeze, StandIn, Step, stored_talks
from test_command import run

import upload_grpc

LOST = Fail(grpc.StatusCode.UNAVAILABLE, "gone", store=True)
BUSY = Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many at a time")
REJECTED = Fail(grpc.StatusCode.INVALID_ARGUMENT, "not this one")
REFUSED = Fail(grpc.StatusCode.PERMISSION_DENIED, "not you")
NO_CONNECTION = Fail(grpc.StatusCode.NOT_FOUND, "no such connection")

pytestmark = pytest.mark.usefixtures("waits")


def make_wavs(folder: Path, *names: str, size_bytes: int = 2_000) -> list[Path]:
    """Write a recording of each name, with its metadata and the folders it needs."""
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        make_wav(path, size_bytes).with_suffix(".json").write_text("{}")
    return paths


def dialog_ids(out: str) -> dict[str, str]:
    """Read `<path>: Dialog ID: <talk_id>` lines, and nothing else."""
    lines = out.splitlines()
    ids = dict(line.split(": Dialog ID: ") for line in lines)
    assert len(ids) == len(lines)
    return ids


def summary(err: str) -> dict[str, int]:
    """Read the counts of the last line; those of 0 are left out."""
    line = err.splitlines()[-1]
    found = re.findall(
        r"(\d+) (uploaded|already there|found in the service|failed|unknown|not tried)", line
    )
    return {words: int(count) for count, words in found if count != "0"}


# --- Which recordings ----------------------------------------------------------------


def test_the_order_is_that_of_the_names(upload: Run, service: StandIn, folder: Path) -> None:
    single, *found = make_wavs(
        folder,
        *("../single.wav", "a.wav", "z.wav", "b/1.wav", "b/2.wav", "b/a/3.wav"),
        "b/c/deep/9.WAV",
    )
    (folder / "b" / "notes.txt").write_text("no recording")
    outcome = upload("--jobs", 1, "--audio-path", single, folder, "--audio-path", single)
    assert outcome.code == os.EX_OK
    assert list(dialog_ids(outcome.out)) == [str(single), *map(str, found)]
    assert len(service.talks) == len(found) + 1


def test_an_empty_folder_is_no_error(upload: Run, service: StandIn, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "notes.txt").write_text("no recording")
    outcome = upload("--audio-path", folder)
    assert (outcome.code, outcome.out) == (os.EX_OK, "")
    assert ".wav" in outcome.err and ".opus" in outcome.err
    assert upload("--audio-path", folder, "--quiet") == Outcome(os.EX_OK, "", "")
    assert service.calls == []


def test_a_link_that_is_named_has_the_json_beside_what_it_leads_to(
    upload: Run, service: StandIn, folder: Path
) -> None:
    [path] = make_wavs(folder, "raw/1.wav")
    path.with_suffix(".json").write_text('{"client_name": "Anna"}')
    link = folder / "now.wav"
    link.symlink_to(path)
    assert upload("--audio-path", link).code == os.EX_OK
    [talk] = service.talks.values()
    assert talk.fields == {"client_name": "Anna"}


def test_links_are_followed_but_not_round_in_circles(upload: Run, folder: Path) -> None:
    make_wavs(folder, "1.wav", "sub/2.wav", "../elsewhere/3.wav")
    for link, target in (
        *(("sub/up", ".."), ("sub/here", "."), ("top", folder), ("round", "round")),
        *(("other", "../elsewhere"), ("other too", "../elsewhere")),
    ):
        (folder / link).symlink_to(target)
    outcome = upload("--audio-path", folder)
    assert outcome.code == os.EX_OK
    assert sorted(dialog_ids(outcome.out)) == [
        str(folder / name) for name in ("1.wav", "other/3.wav", "sub/2.wav")
    ]


def test_bad_ones_are_reported_and_the_others_go(upload: Run, folder: Path) -> None:
    good = make_wavs(folder, *(f"good{number}.wav" for number in range(4)))
    (folder / "no audio.wav").write_text("no recording")
    (folder / "short.wav").write_bytes(good[0].read_bytes()[:1_000])
    make_wav(folder / "no json.wav").with_suffix(".json").write_text("{")
    (folder / "gone.wav").symlink_to("nowhere.wav")
    (folder / "round.wav").symlink_to("round.wav")
    os.mkfifo(folder / "fifo.wav")  # Nobody ever writes to it.
    # Deeper than a path may be long: such a folder cannot be listed, not even by root.
    deep = os.open(folder, os.O_RDONLY)
    for _ in range(17):
        os.mkdir("d" * 255, dir_fd=deep)
        above, deep = deep, os.open("d" * 255, os.O_RDONLY, dir_fd=deep)
        os.close(above)
    os.close(deep)
    named = {
        "missing.wav": "No such file or directory",
        "good0.wav/below": "Not a directory",
        "a\0b": "null",
        # A regular file that can be opened, and of which no byte can be read.
        "/sys/class/net/lo/speed": "cannot be read",
    }
    bad = named | {
        "no audio.wav": "not a recording in a known format",
        "short.wav": "truncated or still being recorded",
        "no json.wav": "not JSON",
        "gone.wav": "No such file or directory",
        "round.wav": "Too many levels of symbolic links",
        "fifo.wav": "not a regular file",
        "d" * 255: "File name too long",
    }
    outcome = upload("--audio-path", *(folder / name for name in named), folder)
    assert outcome.code == os.EX_DATAERR
    *lines, _ = outcome.err.splitlines()
    for name, reason in bad.items():
        [line] = [line for line in lines if name.replace("\0", r"\x00") in line]
        assert reason in line
    assert sorted(dialog_ids(outcome.out)) == list(map(str, good))
    assert summary(outcome.err) == {"uploaded": len(good), "failed": len(bad)}


def test_young_files_are_left_out(
    upload: Run, service: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Young by the later of mtime and ctime: a copy has its original's mtime.

    One dated far ahead by a wrong clock is as old as any; a little ahead it may be new.
    """
    now_s = time.time()
    # Without a JSON of their own, which would be young as well.
    names = ("ahead.wav", "new.wav", "old.wav", "year_ahead.wav")
    paths = [make_wav(folder / name, 2_000) for name in names]
    (folder / "fields.json").write_text("{}")
    for path, age_s in zip(paths, (-1000, -970, 3600, -365 * 86_400), strict=True):
        os.utime(path, (now_s - age_s,) * 2)
    paths[1].write_bytes(b"RIFF, and the recorder is not done yet")
    common = ("--meta-path", folder / "fields.json", "--audio-path")
    words = ("--min-age", "10m", *common, folder)
    assert upload(*words, "--quiet") == Outcome(os.EX_OK, "", "")
    assert "0 uploaded" in upload(*words).err and "4 waiting" in upload(*words).err
    os.utime(paths[1], (now_s + 970,) * 2)
    monkeypatch.setattr(time, "time", lambda: now_s + 1000)
    outcome = upload(*words, "--quiet")
    assert (outcome.code, outcome.err) == (os.EX_OK, "")
    assert sorted(dialog_ids(outcome.out)) == [str(paths[2]), str(paths[3])]
    words = ("--min-age", "600", *common, paths[1])
    assert upload(*words, "--quiet") == Outcome(os.EX_OK, "", "")
    assert "new.wav" in upload(*words, "--verbose").err


# The names of files, and how they are shown: bytes as they are, control characters not.
NAMES = {
    name: name
    for name in (
        *("not utf-8 \udcff\udcfe.wav", "Звонок №1.wav", "two  spaces .wav", "--key=x.wav"),
        *("'$(id)' `id` \\.wav", "x" * 251 + ".wav", ".hidden.wav", "-rf 100% {}.wav"),
    )
}
NAMES |= {"new\nline.wav": r"new\x0aline.wav", "\x1b[31mred\r.wav": r"\x1b[31mred\x0d.wav"}


@pytest.mark.parametrize("environment", [{}, {"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8"}], ids=str)
@pytest.mark.parametrize("named", [False, True], ids=["found", "named"])
def test_any_name_will_do_also_under_cron(
    service: StandIn, folder: Path, ledger: Path, named: bool, environment: dict[str, str]
) -> None:
    for number, name in enumerate(NAMES):
        make_wav(folder / "new.wav", 2_000, seed=number).rename(folder / name)
    paths = [f"./{name}" for name in NAMES] if named else ["."]
    words = arguments(service, "--ledger", ledger, "--verbose", "--audio-path", *paths)
    given = {"cwd": folder, "env": {**os.environ, **environment}}
    outcome = run(sys.executable, SCRIPT, *words, **given)
    ids = {talk.sha256: talk.talk_id for talk in service.talks.values()}
    assert dialog_ids(outcome.out) == {
        f"./{shown}": ids[sha256(folder / name)] for name, shown in NAMES.items()
    }
    again = run(sys.executable, SCRIPT, *words, "--format", "json", **given)
    assert (outcome.code, again.code) == (os.EX_OK, os.EX_OK)
    in_json = {json.loads(line)["path"] for line in again.out.splitlines()}
    assert in_json == {f"./{name}" for name in NAMES}


# --- What stops the run, and what does not -------------------------------------------

# 77 and 78 stop it at the first; 75 and 76 at five in a row (test_outage.py); 65 never does. Which
# status is which: FINAL in test_delivery.py.


@pytest.mark.parametrize(
    ("words", "code", "status"),
    [
        (("--key", "wrong-key"), os.EX_NOPERM, "UNAUTHENTICATED"),
        (("--connection-id", "wrong"), os.EX_CONFIG, "NOT_FOUND"),
        (("--ca-file", "other.pem"), os.EX_CONFIG, "UNAVAILABLE"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_every_recording_would_meet_stops_the_run(
    upload: Run, service: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, str], code: int, status: str,
) -> None:  # fmt: skip
    make_wavs(folder, *(f"{number:02}.wav" for number in range(20)), size_bytes=300_000)
    monkeypatch.chdir(folder)
    trustme.CA().cert_pem.write_to_path("other.pem")
    service.connections = ["connection-1"]
    outcome = upload("--jobs", 2, "--audio-path", folder, *words)
    assert (outcome.code, outcome.out) == (code, "")
    assert 1 <= outcome.err.count(status) <= 4
    assert len(service.calls) <= 4
    failed = outcome.err.count(".wav: ")
    assert summary(outcome.err) == {"failed": failed, "not tried": 20 - failed}


def test_good_recordings_before_the_key_is_refused_are_reported(
    upload: Run, service: StandIn, folder: Path
) -> None:
    make_wavs(folder, *(f"{number}.wav" for number in range(6)))
    service.script += [None, None, REFUSED]
    outcome = upload("--jobs", 1, "--audio-path", folder)
    assert outcome.code == os.EX_NOPERM
    assert list(dialog_ids(outcome.out).values()) == list(service.talks)
    assert summary(outcome.err) == {"uploaded": 2, "failed": 1, "not tried": 3}


# --- What is said --------------------------------------------------------------------


def test_results_appear_as_they_come(service: StandIn, folder: Path) -> None:
    make_wavs(folder, "1.wav", "2.wav", "3.wav")
    service.script += [None, None, Freeze()]
    words = arguments(service, "--jobs", 1, "--timeout", 20, "--retries", 0, "--audio-path", folder)
    with start(*words, env={"PYTHONUNBUFFERED": ""}) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        wait_for(lambda: len(service.calls) == 3)
        assert not service.calls[2].outcome, "they came at the end"
        process.kill()
    assert list(dialog_ids("".join(lines)).values()) == list(service.talks)[:2]


def test_json_is_one_object_a_recording_whatever_became_of_it(
    upload: Run, service: StandIn, folder: Path, tmp_path: Path
) -> None:
    words = ("--format", "json", "--jobs", 1, "--ledger", tmp_path / "ledger", "--retries", 1)
    make_wavs(folder, "1.wav")
    upload(*words, "--audio-path", folder)
    make_wavs(folder, "2.wav", "3.wav", "4.wav", "5.wav", size_bytes=300_000)
    (folder / "6.wav").write_text("no recording")
    service.script += [BUSY, None, LOST, BUSY, BUSY, REJECTED]
    outcome = upload(*words, "--audio-path", folder, folder / "7.wav")
    assert outcome.code == os.EX_PROTOCOL
    counts = {"uploaded": 1, "already there": 1, "failed": 4, "unknown": 1}
    assert summary(outcome.err) == counts
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    results = {Path(result["path"]).name: result for result in lines}
    assert len(results) == len(lines)
    assert {
        name: (result["outcome"], result["exit_code"], result["attempts"])
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
    request_ids = {call.client_request_id for call in service.calls}
    for name, result in results.items():
        assert result.keys() == lines[0].keys()  # README has them: see test_readme.py.
        assert result["schema_version"] == 1
        assert abs(time.time() - upload_grpc.seconds_of(result["time"])) < 60
        assert bool(result["error"]) == (result["exit_code"] != 0), name
        assert (result["talk_id"] in service.talks) == (result["exit_code"] == 0), name
        if name in ("2.wav", "3.wav", "4.wav", "5.wav"):
            assert result["request_id"] in request_ids
            assert result["bytes"] == (folder / name).stat().st_size
            assert result["seconds"] > 0
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
        paths.append(folder / f"{number}.wav")
        if step == "bad":
            paths[-1].write_text("no recording")
        elif not isinstance(step, str):
            make_wav(paths[-1], 300_000)
            service.script.append(step)
    assert upload("--jobs", 1, "--retries", 0, "--audio-path", *paths).code == code
    assert service.script == []


# --- Stopped, and nobody to read the results -----------------------------------------


def test_a_signal_leaves_no_dialog_without_a_line(service: StandIn, folder: Path) -> None:
    make_wavs(folder, *(f"{number}.wav" for number in range(9)))
    delays_s = iter((1, 1.5))
    is_sent = threading.Event()

    def answer_late(_: Call) -> Step:
        assert is_sent.wait(60)
        return Delay(next(delays_s))

    # Three are stored at once, two answers are on their way, and one never comes.
    service.script += [None, None, None, *[At(answer=answer_late)] * 2, Freeze(store=True)]
    with start(*arguments(service, "--jobs", 3, "--audio-path", folder)) as process:
        wait_for(lambda: len(service.talks) == 6)
        process.send_signal(signal.SIGTERM)
        is_sent.set()
        assert process.stdout
        said = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGINT)  # Ends the waiting for the one that never comes.
        outcome = ended(process, limit_s=8)  # Less than the ten that a response has.
    assert outcome.code == 128 + signal.SIGTERM
    assert "SIGTERM" in outcome.err and "Traceback" not in outcome.err
    ids = dialog_ids("".join(said) + outcome.out)
    made = {talk.talk_id: talk.sha256 for talk in service.talks.values()}
    [unnamed] = set(made) - set(ids.values())
    [doubtful] = [each for each in outcome.err.splitlines() if "in the console by" in each]
    [path] = [path for path in folder.glob("*.wav") if f"{path}: " in doubtful]
    assert sha256(path) == made[unnamed]
    assert summary(outcome.err) == {"uploaded": 5, "unknown": 1, "not tried": 3}


@pytest.mark.parametrize(
    ("line", "output"),
    [('"$@" >/dev/full', "text"), ('"$@" | true; exit ${PIPESTATUS[0]}', "json")],
    ids=["full disk", "broken pipe"],
)
def test_dialog_ids_that_cannot_be_printed_are_on_stderr(
    service: StandIn, folder: Path, line: str, output: str
) -> None:
    make_wavs(folder, *(f"{number:02}.wav" for number in range(30)))
    service.script += [Delay(0.2)]  # Time for `true` to end.
    words = arguments(service, "--jobs", "1", "--quiet", "--format", output, "--audio-path", folder)
    done = run("bash", "-c", line, "bash", sys.executable, SCRIPT, *words)
    assert (done.code, done.out) == (os.EX_IOERR, "")
    assert "stdout cannot be written" in done.err and "Traceback" not in done.err
    for talk in stored_talks(service.store):
        assert talk["talk_id"] in done.err
    assert len(service.talks) < 30, "it goes on sending though nobody hears of it"
