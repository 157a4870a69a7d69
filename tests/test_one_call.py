"""Files that differ only in suffix are one call; what is left out is counted, with its reason."""

from __future__ import annotations

import datetime
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import grpc
import ledgers
import pytest
from conftest import Outcome, Run, make_wav
from encoders import mp3, ogg_opus, sound, wav
from stand_in import EmptyAnswer, Fail, StandIn, Step

pytestmark = pytest.mark.usefixtures("temp", "waits")

# What a scene's files contain.
CONTENT: dict[str, Callable[[], bytes]] = {
    "wav": wav,
    "other wav": lambda: wav(seconds=2),
    "third wav": lambda: wav(seconds=3),
    "mp3": mp3,
    "other mp3": lambda: mp3(seconds=2),
    "opus": ogg_opus,
    "a-law": lambda: sound("WAV", "ALAW"),
    "wav49": lambda: sound("WAV", "GSM610"),
    "gsm": lambda: sound("RAW", "GSM610"),
    "flac": lambda: sound("FLAC"),
    "cut wav": lambda: wav()[:3_000],
    "cut flac": lambda: sound("FLAC", seconds=5)[:-3_000],
    "noise": lambda: bytes(range(1, 200)) * 99,
}
LOST = EmptyAnswer(store=True)
REFUSED = Fail(grpc.StatusCode.RESOURCE_EXHAUSTED)  # The quota: 75.


class Do(NamedTuple):
    """What happens in the folder, and what a run over it does then."""

    files: Mapping[str, str] = {}  # Name: content; "": removed.
    sent: str = ""  # The names of what is uploaded, as the output has them.
    says: Sequence[str] = ()  # Parts of stderr.
    words: Sequence[str] = ()  # More of the command line.
    code: int = 0
    steps: Sequence[Step] = ()  # Of the service.
    touch: str = ""  # A file whose ctime only becomes new.


CONVERT = ("--convert",)
ONE = "1 in another format"
# Each is one folder and one ledger.
SCENES: dict[str, Sequence[Do]] = {
    "WAV before MP3 before Ogg": [
        Do({"x.wav": "wav", "x.mp3": "mp3", "x.ogg": "opus", "y.mp3": "other mp3", "y.flac": "flac",
            "y.oga": "opus"}, "x.wav y.mp3", ["x.mp3: left out, the same call as", "4 in another"]),
        Do({}, "", ["2 already there", "4 in another format"]),
    ],
    "as it is before what is converted": [
        Do({"x.wav": "a-law", "x.mp3": "mp3"}, "x.mp3", ["x.wav: left out", ONE], CONVERT),
    ],
    "as it is before what is not converted": [
        Do({"x.wav": "a-law", "x.mp3": "mp3"}, "x.mp3", ["x.wav: left out", ONE]),
    ],
    "voicemail in three formats": [
        Do({"msg0000.wav": "wav", "msg0000.WAV": "wav49", "msg0000.gsm": "gsm"}, "msg0000.wav",
           ["2 in another format"]),
        Do({}, "", ["1 already there", "2 in another format"]),
        Do({"msg0000.wav": "", "msg0000.WAV": ""}, "", ["msg0000.gsm: left out", ONE], CONVERT),
    ],
    "voicemail, all to be converted": [
        Do({"msg0000.WAV": "wav49", "msg0000.gsm": "gsm"}, "msg0000.WAV", [ONE], CONVERT),
        Do({"msg0000.WAV": ""}, "", [ONE], CONVERT),
    ],
    "all to be converted, without --convert": [
        Do({"x.wav": "a-law", "x.gsm": "gsm"}, "", ["x.wav: the service does not take WAV, A-law",
            "1 failed", ONE], code=65),
    ],
    "the preferred one is broken": [
        Do({"x.wav": "cut wav", "x.mp3": "mp3"}, "x.mp3", ["x.wav: left out", ONE]),
        Do({}, "", ["1 already there", ONE]),
    ],
    "all are broken": [
        Do({"x.wav": "cut wav", "x.mp3": "noise", "x.gsm": "noise"}, "",
           ["x.wav: truncated", "1 failed", "2 in another"], code=65),
    ],
    "a night job, and the name is used again": [
        Do({"x.wav": "wav"}, "x.wav"),
        Do({"x.wav": "", "x.mp3": "mp3"}, "",
           ["x.mp3: left out, the same call as", "/x.wav, which is uploaded", ONE]),
        Do({"x.wav": "other wav", "x.mp3": ""}, "x.wav", ["other audio of this name was"]),
        Do({"x.wav": "", "x.mp3": "other mp3"}, "", [ONE]),
    ],
    "a night job that leaves both": [
        Do({"x.wav": "wav"}, "x.wav"),
        Do({"x.mp3": "mp3"}, "", ["1 already there", ONE]),
        Do({"x.wav": ""}, "", [ONE]),
    ],
    "a night job in two formats": [
        Do({"x.wav": "wav"}, "x.wav"),
        Do({"x.wav": "", "x.mp3": "mp3", "x.flac": "flac"}, "", ["2 in another format"]),
    ],
    "a night job after a failed upload": [
        Do({"x.wav": "wav"}, "", code=75, steps=[REFUSED]),
        Do({"x.wav": "", "x.mp3": "mp3"}, "x.mp3"),
        Do({"x.wav": "wav"}, "", ["1 already there", ONE]),
        Do({"x.mp3": ""}, "", [ONE]),
    ],
    "a failed upload of the one, and then the other": [
        Do({"x.mp3": "mp3"}, "", code=75, steps=[REFUSED]),
        Do({"x.wav": "wav"}, "x.wav", [ONE]),
        Do({"x.wav": ""}, "", [ONE]),
    ],
    "the preferred one comes later": [
        Do({"x.mp3": "mp3"}, "x.mp3"),
        Do({"x.wav": "wav"}, "", ["1 already there", ONE]),
        Do({}, "", ["1 already there", ONE], touch="x.mp3"),
        Do({"x.mp3": ""}, "", [ONE]),
    ],
    "the preferred one comes after a lost answer": [
        Do({"x.mp3": "mp3"}, "", code=76, steps=[LOST]),
        Do({"x.wav": "wav"}, "", ["x.mp3: not sent, as it may have been uploaded", ONE], code=76),
    ],
    "the preferred one comes after a refusal": [
        Do({"x.flac": "cut flac"}, "", words=CONVERT, code=65),
        Do({"x.wav": "wav"}, "x.wav", [ONE], CONVERT),
    ],
    "a name that is used again": [
        Do({"x.wav": "wav"}, "x.wav"),
        Do({"x.wav": "other wav"}, "x.wav", ["x.wav: uploaded as ID2; other audio of this name was"
            " ID1"]),
        Do({"x.wav": "third wav"}, "x.wav", ["uploaded as ID3; other audio of this name was ID2"]),
        Do({}, "", ["1 already there"], touch="x.wav"),
        Do({"x.wav": "wav"}, "", ["1 already there"]),
    ],
    "both names are used again": [
        Do({"x.wav": "wav", "x.mp3": "mp3"}, "x.wav", [ONE]),
        Do({"x.wav": "other wav", "x.mp3": "other mp3"}, "x.wav", [ONE]),
    ],
    "the name is used again, with the preferred one": [
        Do({"x.mp3": "mp3"}, "x.mp3"),
        Do({"x.wav": "other wav", "x.mp3": "other mp3"}, "x.wav", [ONE]),
    ],
    "no files of one call": [
        Do({"x.wav": "wav", "x.1.mp3": "mp3", "X.mp3": "other mp3", "x": "other wav"},
           "X.mp3 x.1.mp3 x.wav"),
    ],
    "hidden files": [Do({".wav": "wav", ".mp3": "mp3"}, ".mp3 .wav")],
    "one whose whole name is a suffix": [Do({".wav": "wav", ".wav.mp3": "noise"}, ".wav", [ONE])],
    "a link that leads nowhere": [
        Do({"x.wav": "-> gone", "x.mp3": "mp3"}, "x.mp3", []),
        Do({"x.wav": "", "x.mp3": "-> gone"}, "", ["x.mp3: cannot be read"], code=66),
    ],
    "hard links": [
        Do({"x.wav": "wav", "x.wave": "= x.wav", "y.wav": "= x.wav", "z.mp3": "= x.wav"}, "x.wav",
           [ONE, "2 under another name"]),
        Do({}, "", ["1 already there", ONE, "2 under another name"]),
    ],
    "too short": [
        Do({"x.wav": "wav", "x.mp3": "mp3"}, "", ["x.wav: left out, 1.0 s", "1 too short", ONE],
           ("--min-duration", "1.5")),
        Do({}, "x.wav", [ONE]),
    ],
}  # fmt: skip


@pytest.fixture
def play(upload: Run, service: StandIn, folder: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """Play scenes: change the folder, run, and compare."""
    (tmp_path / "fields.json").write_text("{}")

    def put(name: str, content: str) -> None:
        path = folder / name
        path.unlink(missing_ok=True)
        if content.startswith("-> "):
            path.symlink_to(content[3:])
        elif content.startswith("= "):
            path.hardlink_to(folder / content[2:])
        elif content:
            path.write_bytes(CONTENT[content]())

    def run(scene: Do, paths: Sequence[Path], *words: object) -> Outcome:
        for name, content in scene.files.items():
            put(name, content)
        if scene.touch:
            time.sleep(0.01)
            os.chmod(folder / scene.touch, 0o600)
        ids = [talk.talk_id for talk in service.talks_by_time()]
        service.script[:] = scene.steps
        fields = ("--meta-path", tmp_path / "fields.json", "--retries", 0, "--jobs", 1)
        given = ("--audio-path", *(paths or [folder]), *fields, *words, *scene.words)
        before = len(service.calls)
        planned = upload(*given, "--dry-run")
        assert len(service.calls) == before
        outcome = upload(*given, "--verbose")
        assert outcome.code == scene.code, outcome.err
        has_path = len(paths) != 1 or given[1] == folder or "--ledger" in given
        only = "" if has_path else f"{given[1]}: "
        sent = {(only + line).partition(": Dialog ID: ")[0] for line in outcome.out.splitlines()
                if line.rpartition(" ")[2] not in ids}  # fmt: skip
        assert " ".join(sorted(os.path.basename(path) for path in sent)) == scene.sent, outcome.err
        if not scene.steps and scene.code == 0:
            would = [line.partition(": would")[0] for line in planned.out.splitlines()
                     if ": would be uploaded" in line]  # fmt: skip
            assert sorted(would) == sorted(sent)
        ids = [talk.talk_id for talk in service.talks_by_time()]
        said = outcome.err
        for number, talk_id in enumerate(ids, 1):
            said = said.replace(talk_id, f"ID{number}")
        for part in scene.says:
            assert part in said
        return outcome

    return run


@pytest.mark.parametrize("name", SCENES)
def test_one_call_is_one_dialog(
    play: Callable[..., Outcome], service: StandIn, ledger: Path, name: str
) -> None:
    for scene in SCENES[name]:
        play(scene, [], "--ledger", ledger)
    hashes = [talk.sha256 for talk in service.talks.values()]
    assert len(set(hashes)) == len(hashes)


def test_without_a_ledger_too_while_both_are_there(
    play: Callable[..., Outcome], folder: Path
) -> None:
    for first, *_ in SCENES.values():
        for path in [*folder.iterdir()]:
            path.unlink()
        play(first, [])


NAMED = {
    "both": (["x.mp3", "x.wav"], "x.wav", [ONE]),
    "the other one": (["x.mp3"], "x.mp3", []),
    "with the folder": (["x.mp3", ""], "x.mp3", ["1 under another name"]),
    "twice": (["x.wav", "x.wav", "../calls/x.wav"], "x.wav", []),
    "other endings": (["rec.103000", "rec.104500"], "rec.103000 rec.104500", []),
    "an ending and none": (["rec.wav", "rec"], "rec rec.wav", []),
}


@pytest.mark.parametrize("name", NAMED)
def test_files_that_are_named(
    play: Callable[..., Outcome], folder: Path, ledger: Path, name: str
) -> None:
    names, sent, says = NAMED[name]
    content = {"x.wav": "wav", "x.mp3": "mp3", "rec.103000": "other wav", "rec.104500": "third wav",
               "rec.wav": "opus", "rec": "other mp3", "../calls/x.wav": "wav"}  # fmt: skip
    files = {name: content[name] for name in (names if "" not in names else ["x.wav", "x.mp3"])}
    paths = [folder / name if name else folder for name in names]
    play(Do(files, sent, says), paths)
    words = ("--ledger", ledger)
    play(Do({}, sent, says), paths, *words)
    play(Do({}, "", []), paths, *words)
    gone = {name: "" for name in files if name.startswith("rec")}
    play(Do(gone, "", [], code=66 if gone else 0), paths, *words)


def test_other_endings_are_never_taken_for_another_format(
    play: Callable[..., Outcome], folder: Path, ledger: Path
) -> None:
    """A call that is uploaded and gone, and the next one, named by the time."""
    for name, content in {"rec.103000": "wav", "rec.104500": "other wav", "rec": "mp3"}.items():
        scene = Do({"rec.103000": "", "rec.104500": "", name: content}, name)
        play(scene, [folder / name], "--ledger", ledger)


# --- Ages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("young", "old"), [("x.wav", "x.mp3"), ("x.mp3", "x.wav")])
def test_a_call_waits_while_one_of_its_files_is_young(
    play: Callable[..., Outcome],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    young: str,
    old: str,
) -> None:
    """Another program may be writing it, and it may be the one to send."""
    now_s = time.time() + 7_200
    monkeypatch.setattr(time, "time", lambda: now_s)
    content = {"x.wav": CONTENT["a-law"](), "x.mp3": mp3()}
    (folder / old).write_bytes(content[old])
    for there in (b"RIFF", content[young]):
        (folder / young).write_bytes(there)
        os.utime(folder / young, (now_s - 60, now_s - 60))
        says = ["x.wav: left out, younger than 3600 s", "1 waiting"]
        play(Do({}, "", says, ("--min-age", "1h")), [])
    now_s += 3_600
    play(Do({}, "x.mp3", [ONE], ("--min-age", "1h")), [])


LEFT_OUT = {
    **{f"--min-age={age}": f"younger than {seconds} s" for age, seconds in {
        "90": 90, "90s": 90, "5m": 300, "1h": 3_600, "2d": 172_800, "0.5h": 1_800}.items()},
    "--min-duration=60": "1.0 s, shorter than 60 s",
}  # fmt: skip


def test_one_that_is_named_and_left_out_is_said(upload: Run, tmp_path: Path) -> None:
    """Ages count from the later of mtime and ctime: a copy with its old mtime is young."""
    path = make_wav(tmp_path / "call.wav")
    os.utime(path, (1, 1))
    for option, reason in LEFT_OUT.items():
        said = f"upload_grpc: {path}: left out, {reason}\n"
        assert upload("--audio-path", path, option) == Outcome(0, "", said)


def test_ages_that_are_none(upload: Run, tmp_path: Path) -> None:
    for age in ("-1", "5 minutes", "1w", "1h30", "1e3", "m", "", "nan", "99999999"):
        for option in ("--min-age", "--require-json"):
            outcome = upload("--audio-path", tmp_path, f"{option}={age}")
            assert outcome.code == 2 and f"{option}: must be" in outcome.err, age


def test_since_leaves_out_what_is_older_unless_the_ledger_knows_it(
    upload: Run, service: StandIn, folder: Path, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("failed", "known", "new"):
        make_wav(folder / f"{name}.wav").with_suffix(".json").write_text("{}")
    (folder / "new.mp3").write_bytes(mp3())
    os.utime(folder / "known.wav", (1, 1))  # Copied today, with its old mtime.
    words = ("--ledger", ledger, "--audio-path")
    service.script.append(REFUSED)
    assert upload(*words, folder / "failed.wav", "--retries", 0).code == 75
    assert upload(*words, folder / "known.wav", "--since", "today").code == 0
    assert len(service.talks) == 1
    tomorrow_s = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: tomorrow_s)
    outcome = upload(*words, folder, "--since", "today", "--verbose")
    assert (outcome.code, len(service.talks)) == (0, 2)
    assert f"new.wav: left out, older than {datetime.date.fromtimestamp(tomorrow_s)}" in outcome.err
    counts = "1 uploaded, 1 already there, 0 failed, 0 unknown, 1 in another format"
    assert f"{counts}, 1 before --since" in outcome.err
    os.utime(folder / "new.wav", (tomorrow_s + 3 * 86_400,) * 2)
    assert upload(*words, folder, "--since", "today").code == 0
    assert len(service.talks) == 3


def test_days(upload: Run, tmp_path: Path) -> None:
    path = make_wav(tmp_path / "call.wav")
    days = ("today", "yesterday", "0d", "7d", "20000d", "2026-01-31", "1970-01-01")
    for word in days:
        outcome = upload("--audio-path", path, "--dry-run", "--since", word)
        assert outcome.code == 0, word
        assert "would be uploaded" in outcome.out, word
    for word in ("31.01.2026", "2026-02-30", "7", "-1d", "tomorrow", "9999999d", "0001-01-01", ""):
        outcome = upload("--audio-path", path, "--dry-run", f"--since={word}")
        assert outcome.code == 2 and "--since" in outcome.err, word


# --- Reasons ------------------------------------------------------------------------------------


def test_what_is_left_out_is_counted_and_named_where_asked(
    upload: Run, folder: Path, tmp_path: Path
) -> None:
    for name, content in {"a.wav": wav(), "b.wav": wav(seconds=2), "b.mp3": mp3(), "c.wav": b"",
                          "d.flac": sound("FLAC")}.items():  # fmt: skip
        (folder / name).write_bytes(content)
    (folder / "e.wav").hardlink_to(folder / "b.wav")
    fields = tmp_path / "fields.json"
    fields.write_text("{}")
    words = ("--audio-path", folder, "--meta-path", fields, "--convert", "--min-duration", 1.5)
    for option, named in ("--jobs=1", 0), ("--verbose", 5), ("--dry-run", 5):
        outcome = upload(*words, option)
        assert (outcome.code, outcome.err.count("left out, ")) == (0, named)
        counts = {"3 too short", "1 in another format", "1 under another name"}
        assert counts <= set(outcome.err.splitlines()[-1].split(", "))
    outcome = upload(*words, "--quiet")
    assert (outcome.code, outcome.err) == (0, "")


# --- Cost ----------------------------------------------------------------------------------------


def test_a_rerun_opens_no_recording(
    upload: Run, service: StandIn, folder: Path, ledger: Path, opened: list[str]
) -> None:
    for number in range(20):
        (folder / f"{number}.wav").write_bytes(sound("WAV", "ALAW", seconds=1 + number / 100))
        (folder / f"{number}.mp3").write_bytes(b"")
    words = ("--audio-path", folder, "--ledger", ledger, "--convert", "--quiet")
    assert (upload(*words).code, len(service.talks)) == (0, 20)
    for path in folder.glob("*.wav"):
        path.chmod(0o600)
    assert upload(*words).code == 0  # They are hashed, once.
    opened.clear()
    assert upload(*words).code == 0
    assert not [path for path in opened if re.search(r"\.(wav|mp3)$", path)]
    assert len(service.talks) == 20
    assert ledgers.states(ledger) == ["uploaded"] * 20
