"""Metadata that come late: recordings that wait for their JSON, and a JSON after the upload."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import ANY

import grpc
import ledgers
import pytest
from conftest import Outcome, Run, Waits, closed_port, make_wav, sha256, when
from stand_in import At, Call, EmptyAnswer, Fail, Freeze, StandIn, Step, Talk

import upload_grpc

pytestmark = pytest.mark.usefixtures("waits")

STATUS = grpc.StatusCode
MINUTE_S, HOUR_S, DAY_S = 60, 3_600, 86_400
OLD = {"client_id": "old"}
NEW = {"client_id": "new"}
NOTHING = Outcome(0, "", "")
HAS_CHANGED = "its metadata has changed since the upload; "


def write_json(recording: Path, fields: object, **form: Any) -> Path:
    path = recording.with_suffix(".json")
    path.write_text(json.dumps(fields, **form))
    return path


@dataclasses.dataclass
class Office:
    """A folder of recordings, a ledger, a service, and this process's clock."""

    service: StandIn
    upload: Run
    folder: Path
    ledger: Path
    patch: pytest.MonkeyPatch

    def run(self, *words: object) -> Outcome:
        return self.upload("--audio-path", self.folder, "--ledger", self.ledger, *words)

    def update(self, *words: object) -> Outcome:
        return self.run("--update-metadata", "--quiet", "--jobs", 1, *words)

    def record(self, name: str = "call.wav", fields: object = None) -> Path:
        path = make_wav(self.folder / name, 1_000)
        if fields is not None:
            write_json(path, fields)
        return path

    def uploaded(self, *words: object, fields: object = OLD) -> Path:
        """Record a call, and upload it."""
        path = self.record(fields=fields)
        assert self.run(*words).code == 0
        self.service.calls.clear()
        return path

    def common(self, **fields: object) -> tuple[object, ...]:
        """Return the words for a --meta-path of these fields."""
        path = self.ledger.with_name("common.json")
        path.write_text(json.dumps(fields))
        return ("--meta-path", path)

    def set_clock(self, ahead_s: float) -> None:
        """Set the clock so many seconds ahead of the machine's."""
        self.patch.undo()
        real = time.time
        self.patch.setattr(time, "time", lambda: real() + ahead_s)

    def stop_clock(self, at_s: float) -> None:
        self.patch.setattr(time, "time", lambda: at_s)

    @property
    def talk(self) -> Talk:
        """Return the only dialog."""
        [talk] = self.service.talks.values()
        return talk

    @property
    def fields(self) -> list[dict[str, str]]:
        return [talk.fields for talk in self.service.talks.values()]

    @property
    def updates(self) -> list[Call]:
        return [call for call in self.service.calls if call.messages[:1] == ["talk_id"]]

    @property
    def row(self) -> dict[str, Any]:
        return ledgers.row(self.ledger)


@pytest.fixture
def office(
    service: StandIn, upload: Run, folder: Path, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Office]:
    with monkeypatch.context() as patch:
        yield Office(service, upload, folder, ledger, patch)


@pytest.fixture
def changed(office: Office) -> Path:
    """Upload a recording, and change its JSON."""
    path = office.uploaded()
    write_json(path, NEW)
    return path


# --- Waiting for the JSON ----------------------------------------------------------------


def test_a_recording_without_its_json_waits_and_holds_up_no_other(office: Office) -> None:
    office.record("1.wav", OLD)
    late = office.record("2.wav")
    words = ("--require-json", "10m")
    outcome = office.run(*words)
    assert outcome.code == 0 and f"{late}" not in outcome.out + outcome.err
    assert "1 uploaded, 0 already there, 0 failed, 0 unknown, 1 waiting" in outcome.err
    assert f"{late}: left out, it has no JSON yet" in office.run(*words, "--dry-run").err
    assert office.run(*words, "--quiet") == NOTHING
    # Too long.
    office.set_clock(11 * MINUTE_S)
    office.record("3.wav", OLD)
    outcome = office.run(*words, "--quiet")
    assert (outcome.code, outcome.err.count("\n"), office.fields) == (66, 1, [OLD, OLD])
    assert f"{late}: no metadata yet: 2.json; " in outcome.err


def test_one_that_waits_is_hashed_once_a_day(office: Office, opened: list[str]) -> None:
    late = office.record("2.wav")
    words = ("--require-json", "0s")
    for day, times in enumerate((1, 0, 0, 1)):
        office.set_clock(DAY_S * (day > 2))
        opened.clear()
        assert office.run(*words).code == 66
        assert opened.count(str(late)) == times


def test_the_age_is_that_of_the_copy_and_one_that_is_named_has_none(office: Office) -> None:
    """As rclone and cp -p keep the mtime, recorders without a clock write any."""
    for year in (1971, 2020, 2300):
        path = office.record(f"{year}.wav")
        os.utime(path, ((year - 1970) * 365 * DAY_S,) * 2)
    outcome = office.run("--require-json", "1m")
    assert outcome.code == 0 and "3 waiting" in outcome.err
    outcome = office.upload("--audio-path", path, "--require-json", "36h")
    assert (outcome.code, outcome.out, office.service.calls) == (66, "", [])
    assert "no metadata yet: 2300.json" in outcome.err


def test_names_of_the_json_and_one_for_the_files_of_a_call(office: Office) -> None:
    path, both = office.record("1.wav"), office.record("2.wav", NEW)
    path.with_suffix(".mp3").write_bytes(b"\xff\xfb\x90\x64" + bytes(413) + b"\xff\xfb\x90\x64")
    assert ", 1 waiting" in office.run("--require-json", "--dry-run").err
    for each in (path, both):
        each.with_suffix(".JSON").write_text(json.dumps(OLD))
    assert office.run("--require-json", "--jobs", 1).code == 0
    assert office.fields == [OLD, NEW]
    path.with_suffix(".JSON").write_text(json.dumps(NEW))
    both.with_suffix(".JSON").write_text(json.dumps({"client_id": "not this one"}))
    assert office.update().code == 0
    assert office.fields == [NEW, NEW]


# --- A JSON that is being written --------------------------------------------------------


@pytest.mark.parametrize("is_renamed", [False, True], ids=["half", "renamed"])
@pytest.mark.parametrize("is_uploaded", [False, True], ids=["before", "after"])
def test_a_json_is_not_read_while_it_is_young(
    office: Office, is_uploaded: bool, is_renamed: bool
) -> None:
    path = office.uploaded() if is_uploaded else office.record()
    words = ("--update-metadata", "--min-age", 0.05)
    part, sidecar = path.with_suffix(".part"), path.with_suffix(".json")
    part.write_text('{"client_id": "ne')
    os.utime(part, (1, 1))
    time.sleep(0.1)
    if is_renamed:
        part.rename(sidecar)
    else:
        sidecar.write_text(part.read_text())
    office.stop_clock(sidecar.stat().st_ctime + 0.025)
    outcome = office.run(*words)
    assert (outcome.code, office.service.calls) == (0, [])
    assert ("1 already there, 0 failed" if is_uploaded else "1 waiting") in outcome.err
    if not is_uploaded:
        assert "its JSON is younger than 0.05 s" in office.run(*words, "--dry-run").err
    # Without it the run has no way to know better.
    assert office.run("--update-metadata", "--dry-run").code == 65
    written_s = write_json(path, NEW).stat().st_ctime
    office.stop_clock(written_s + 0.06)
    assert office.run(*words).code == 0
    assert office.talk.fields == NEW


@pytest.mark.parametrize("content", ["", '{"a": "', '{"a": "c"}'], ids=["empty", "half", "other"])
def test_a_json_that_is_written_while_it_is_read_is_no_mistake(
    office: Office, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    sidecar = office.record(fields=OLD).with_suffix(".json")
    read = upload_grpc.read_metadata

    def write_and_read(path: str) -> Any:
        sidecar.write_text(content)
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(upload_grpc, "read_metadata", write_and_read)
        outcome = office.upload("--audio-path", office.folder)
    assert (outcome.code, office.service.calls) == (75, [])
    assert "call.wav: its JSON was changed while it was read; run again" in outcome.err
    sidecar.write_text(json.dumps(NEW))
    assert office.upload("--audio-path", office.folder).code == 0
    assert office.talk.fields == NEW


@pytest.mark.parametrize(("seed", "counted"), [(1, "1 already there"), (2, "1 waiting")])
def test_an_uploaded_recording_needs_its_json_no_more_and_another_of_its_name_does(
    office: Office, seed: int, counted: str
) -> None:
    """The JSON was archived after the upload; then the file gets a new ctime."""
    call = make_wav(office.folder / "call.wav", 3_000, seed=1)
    sidecar = write_json(call, OLD)
    assert office.run("--require-json").code == 0
    sidecar.unlink()
    status = call.stat()
    make_wav(call, 3_000, seed=seed)
    os.utime(call, ns=(status.st_atime_ns, status.st_mtime_ns))
    outcome = office.run("--require-json")
    assert (outcome.code, office.fields) == (0, [OLD])
    assert counted in outcome.err


# --- One call and its JSON, run after run --------------------------------------------------

UPDATE = "--update-metadata"
KEY = "--organization-id o --space-id s --lookup-key"
RU = "--meta-path ru.json"  # {"language": "ru-RU"}
KK = "--meta-path kk.json"
IN_RU = {"language": "ru-RU"}
REFUSED = Fail(STATUS.INVALID_ARGUMENT, "no such field")
NOT_FOUND = Fail(STATUS.NOT_FOUND, "no such talk")
WAITS = "no metadata yet: call.json; "
EMPTY = "its JSON is empty, or is just being written; run again"
CSV = "--require-json 36h --min-age 1m"


class Do(NamedTuple):
    """What becomes of the JSON, and what a run with --quiet does then."""

    json: object = None  # Its fields, its text, or what is in its place; None: left as it is.
    sent: object = None  # The fields that the dialog is sent; None: nothing is sent.
    words: str = UPDATE  # More of the command line.
    code: int = 0
    says: str = ""  # Part of the only line of stderr; empty: there is none.
    steps: Sequence[Step] = ()  # Of the service.
    hours: float = 0  # That the clock is ahead.


UPLOADED = Do(OLD, OLD)
LOST = Fail(STATUS.UNAVAILABLE, "gone", store=True)
SCENES: dict[str, list[Do]] = {
    "a value that came and went": [
        UPLOADED, Do(NEW, words="", says=HAS_CHANGED), Do(OLD), Do(words=""),
    ],
    "removed after the upload": [
        UPLOADED, Do("gone", words=""), Do(words="--require-json 0"), Do(), Do("link"),
        Do("folder"),
    ],
    "broken after the upload": [
        UPLOADED, Do("{", code=65, says="call.json: "), Do(code=65), Do(OLD),
        Do('{"a": null}', code=65, says="call.json: "), Do(code=65), Do(OLD),
        Do("fifo", code=66, says="call.json: "), Do(code=66), Do(OLD),
    ],
    "a --meta-path that changes alone": [
        Do(OLD, OLD | IN_RU, RU), Do(words=f"{UPDATE} {KK}"), Do(),
    ],
    "without the --meta-path of the upload, whose keys would be erased": [
        Do(OLD, OLD | IN_RU, RU), Do(NEW, code=65, says="add --meta-path"), Do(code=65),
        Do(None, NEW | IN_RU, f"{UPDATE} {RU}"),
    ],
    "a --meta-path that comes with the update, and belongs to it then": [
        Do(None, ANY, says="placeholder"), Do(NEW, NEW | IN_RU, f"{UPDATE} {RU}"),
        Do(OLD, code=65, says="add --meta-path"),
    ],
    "the --lookup-key is kept, and can be given another name": [
        Do(OLD, OLD | {"a": "SHA-256"}, f"{KEY} a"), Do(NEW, NEW | {"a": "SHA-256"}),
        Do(OLD, OLD | {"b": "SHA-256"}, f"{UPDATE} {KEY} b"), Do(NEW, NEW | {"b": "SHA-256"}),
        Do({"b": "mine"}, None, f"{UPDATE} {KEY} b", 65, 'the key "b"'),
    ],
    "an ID that was found and not returned": [
        Do(OLD, OLD | {"a": "SHA-256"}, f"{KEY} a --retries 0", 76, steps=[LOST]),
        Do(words=f"{KEY} a"), Do(NEW, NEW | {"a": "SHA-256"}),
    ],
    "a malformed date": [
        UPLOADED, Do({"date": "17.3.2026"}, {"date": "17.3.2026"}, says='"17.3.2026" is not'),
    ],
    "a refused update is over when the JSON is as before": [
        UPLOADED, Do(NEW, code=65, says="refused", steps=[REFUSED]), Do(OLD), Do(NEW, NEW),
    ],
    "a refused update is over after a fix in the console": [
        UPLOADED, Do(NEW, code=65, says="refused", steps=[REFUSED]), Do(code=65),
        Do(None, NEW, f"{UPDATE} --retry-rejected"), Do(words=f"{UPDATE} --retry-rejected"),
    ],
    "a dialog that is not found yet, which is said after a day": [
        UPLOADED, *(Do(NEW, code=75, steps=[NOT_FOUND], hours=hours) for hours in (0, 2, 23)),
        Do(None, code=65, says="NOT_FOUND: no such talk", steps=[NOT_FOUND], hours=25),
        Do(code=65, hours=25),
    ],
    "found after all": [UPLOADED, Do(NEW, code=75, steps=[NOT_FOUND]), Do(None, NEW)],
    "an empty answer to an update": [UPLOADED, Do(NEW, NEW, steps=[EmptyAnswer(store=True)])],
    "repeated within a run": [UPLOADED, Do(NEW, NEW, steps=[LOST])],
    "the CSV that comes a day later": [
        *(Do(words=CSV, hours=hours) for hours in (0, 0.1, 1, 8, 24, 35.9)),
        Do(OLD, OLD, CSV, hours=35.95),
    ],
    "the CSV that has no line for it": [
        Do(words=CSV, hours=35.95), Do(words=CSV, code=66, says=WAITS, hours=36.1),
        Do(words=CSV, code=66, hours=36.2),
    ],
    "an empty JSON, which may be one that is being written": [
        Do("empty", code=75), Do(code=75, hours=0.9), Do(code=75, says=EMPTY, hours=1.1),
        Do(OLD, OLD),
    ],
    "how long one may wait": [
        Do(words="--require-json", hours=0.99), Do(words="--require-json 2d", hours=47),
        Do(words="--require-json", code=66, says=WAITS, hours=1.01), Do(OLD, OLD),
    ],
}  # fmt: skip


def put(path: Path, content: object) -> None:
    """Put something in the place of a JSON."""
    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    if content == "fifo":
        os.mkfifo(path)
    elif content == "folder":
        path.mkdir()
    elif content == "empty":  # File systems show a truncation's size before its times.
        path.touch()
        os.utime(path, (1, 1))
    elif content == "link":
        path.symlink_to("nowhere")
    elif content != "gone":
        path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize("name", SCENES)
def test_run_after_run(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for language in ("ru-RU", "kk-KZ"):
        Path(f"{language[:2]}.json").write_text(json.dumps({"language": language}))
    path, fields = office.record(), None
    for do in SCENES[name]:
        if do.json is not None:
            put(path.with_suffix(".json"), do.json)
        office.set_clock(do.hours * HOUR_S)
        office.service.script, office.service.calls[:] = [*do.steps], []
        known = bool(office.service.talks)
        outcome = office.run("--quiet", "--jobs", 1, *do.words.split())
        assert (outcome.code, outcome.err.count("\n")) == (do.code, bool(do.says)), (do, outcome)
        assert do.says in outcome.err
        sent = [call for call in office.service.calls if call.method.startswith("Upload")]
        assert bool(sent) == bool(do.sent or do.steps), do
        if known:
            assert len(sent) == len(office.updates)
        if known and do.sent:
            line = f"{path}: Dialog ID: {office.talk.talk_id} (metadata updated)\n"
            assert outcome.out == line
        fields = do.sent or fields
        marked = [
            {key: "SHA-256" if value == sha256(path) else value for key, value in each.items()}
            for each in office.fields
        ]
        assert marked == ([fields] if fields else []), do


# --- After the upload: what is said ------------------------------------------------------


# What becomes of a JSON after the upload: whether there was one, which mtime it has then (0: the
# one that it had, as its size is), and whether it was renamed into place.
LATE = {
    "appears.wav": (False, None, False),
    "changes.wav": (True, None, False),
    "changes, with an older mtime.wav": (True, 10**18, False),
    "changes, with the same mtime.wav": (True, 0, False),
    "is renamed into place.wav": (True, 10**18, True),
}


def test_metadata_that_come_after_the_upload_are_said_though_all_is_uploaded(
    office: Office, opened: list[str]
) -> None:
    calls = [office.record(name, OLD if had_one else None) for name, (had_one, *_) in LATE.items()]
    assert office.run().code == 0
    office.service.calls.clear()
    for path, (had_one, new_mtime_ns, is_renamed) in zip(calls, LATE.values(), strict=True):
        sidecar = path.with_suffix(".json")
        before = sidecar.stat() if had_one else None
        written = write_json(path.with_suffix(".part.wav") if is_renamed else path, NEW)
        if before and new_mtime_ns is not None:
            mtime_ns = new_mtime_ns or before.st_mtime_ns
            os.utime(written, ns=(mtime_ns, mtime_ns))
            assert written.stat().st_size == before.st_size
        written.rename(sidecar)
    opened.clear()

    def says_all(*words: str) -> bool:
        outcome = office.run(*words)
        assert (outcome.code, outcome.out, office.service.calls) == (0, "", [])
        assert outcome.err.count(HAS_CHANGED) == len(calls)
        advice = "run the same command with --update-metadata"
        return all(f"{path}: {HAS_CHANGED}{advice}" in outcome.err for path in calls)

    assert says_all("--quiet")
    # Once a day, without --quiet each time.
    assert office.run("--quiet") == NOTHING
    assert says_all()
    office.set_clock(DAY_S)
    assert says_all("--quiet")
    assert not [path for path in opened if path.endswith(".wav")]

    outcome = office.update()
    by_content = {talk.sha256: talk.talk_id for talk in office.service.talks.values()}
    ids = [by_content[sha256(path)] for path in calls]
    lines = zip(calls, ids, strict=True)
    said = [f"{path}: Dialog ID: {talk_id} (metadata updated)\n" for path, talk_id in lines]
    assert outcome == Outcome(0, "".join(said), "")
    assert office.fields == [NEW] * len(LATE)
    assert office.run("--quiet") == NOTHING


def test_a_json_rewritten_unchanged_is_read_once_and_its_audio_never(
    office: Office, opened: list[str]
) -> None:
    """As a nightly export does with all of them."""
    fields = {"client_id": "1", "rating": 5, "users": [{"id": "1", "role": "bot"}]}
    path = office.uploaded(fields=fields)
    before = office.row
    # Content is what counts: neither the order of its keys nor white space.
    sidecar = write_json(path, dict(reversed(fields.items())), indent=4)
    opened.clear()
    for _ in range(2):
        assert office.update() == NOTHING
    assert [name for name in opened if "/calls/" in name] == [str(sidecar)]
    after, columns = office.row, ("json_size_bytes", "json_mtime_ns", "json_ctime_ns")
    assert after["json_size_bytes"] == sidecar.stat().st_size
    assert after == {**before, **{name: after[name] for name in columns}}
    assert office.updates == []


# --- Updates: what is sent ---------------------------------------------------------------


def test_an_update_is_the_same_merge_as_at_an_upload(office: Office) -> None:
    peter = {"id": "2", "role": "client"}
    common = office.common(client_id="common", language="ru-RU", users=[peter])
    path = office.uploaded(*common, fields={"client_id": "own", "note": "erased"})
    write_json(path, {"client_id": "late", "users": [{"id": "1", "role": "operator"}]})
    outcome = office.update(*common, "--format", "json")
    talk = office.talk
    assert talk.fields == {"client_id": "late", "language": "ru-RU"}
    assert [user["id"] for user in talk.users] == ["1"]
    [call] = office.service.calls
    assert (call.method, call.messages) == ("Upload", ["talk_id", "metadata"])
    result = json.loads(outcome.out)
    assert (outcome.code, outcome.err, result["outcome"]) == (0, "", "updated")
    assert (result["talk_id"], result["path"]) == (talk.talk_id, str(path))
    assert result["request_id"] == call.client_request_id

    # Users alone; and those of --meta-path come back.
    write_json(path, {"client_id": "late"})
    assert office.update(*common).code == 0
    assert [user["id"] for user in talk.users] == ["2"]


def test_the_row_stays_uploaded_and_takes_the_new_hashes_only_after_the_answer(
    office: Office, changed: Path
) -> None:
    before = office.row
    write_json(changed, {**NEW, "date": "2026-03-17T14:05:30+03:00"})
    seen: list[dict[str, Any]] = []
    look = At(metadata=lambda _: seen.append(office.row), answer=lambda _: seen.append(office.row))
    office.service.script = [look]
    assert office.update().code == 0
    assert seen == [before, before]
    after = office.row
    assert after["state"] == "uploaded" and after["uploaded_at"] == before["uploaded_at"]
    for column in ("json_sha256", "json_size_bytes", "metadata_sha256"):
        assert after[column] not in (before[column], "")
    assert after["recorded_at"] == "2026-03-17T11:05:30.000Z"
    assert office.update() == NOTHING
    assert len(office.updates) == 1


def test_a_dry_run_says_what_would_be_updated_and_touches_nothing(office: Office) -> None:
    path, same = office.record("1.wav", OLD), office.record("2.wav", OLD)
    assert office.run().code == 0
    write_json(path, NEW)
    write_json(same, OLD)
    later = office.record("3.wav", NEW)
    before = ledgers.rows(office.ledger)
    outcome = office.run("--update-metadata", "--dry-run")
    assert outcome.code == 0
    assert f'{path}: would be updated: metadata {{"client_id": "new"}}' in outcome.out
    assert f"{later}: would be uploaded: WAV" in outcome.out and f"{same}" not in outcome.out
    assert "1 would be uploaded, 1 already there, 1 with metadata to be updated" in outcome.err
    assert HAS_CHANGED in office.run("--dry-run", "--quiet").err
    assert ledgers.rows(office.ledger) == before and office.updates == []


# --- Updates: what goes wrong ------------------------------------------------------------


LOST_ANSWERS: list[Step] = [
    LOST,
    Fail(STATUS.UNAVAILABLE, "gone"),
    Fail(STATUS.INTERNAL, "broken", store=True),
    Fail(STATUS.RESOURCE_EXHAUSTED, "too many"),
    Fail(STATUS.PERMISSION_DENIED, "Received http2 header with status: 403", ids=False),
    Freeze(store=True),
]


def test_a_failed_or_lost_answer_is_75_and_the_update_is_sent_again(
    office: Office, changed: Path
) -> None:
    words = ("--update-metadata", "--format", "json")
    for step in LOST_ANSWERS:
        write_json(changed, {"step": str(step)})
        before, sent = office.row, len(office.updates)
        office.service.script = [step]
        timeout_s = 0.3 if isinstance(step, Freeze) else 30
        outcome = office.run(*words, "--retries", 0, "--timeout", timeout_s)
        assert (outcome.code, json.loads(outcome.out)["outcome"]) == (75, "failed"), step
        assert f"{changed}: its metadata could not be updated: " in outcome.err
        assert office.row == before
        outcome = office.run(*words)
        assert (outcome.code, json.loads(outcome.out)["outcome"]) == (0, "updated"), step
        assert (office.talk.fields, len(office.updates)) == ({"step": str(step)}, sent + 2)


REFUSALS = ["ALREADY_EXISTS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND"]
REFUSALS += ["OUT_OF_RANGE", "PERMISSION_DENIED", "UNIMPLEMENTED"]


def test_a_refused_update_is_this_recordings_alone_and_not_repeated_until_its_json_changes(
    office: Office,
) -> None:
    calls = {status: office.record(f"{status}.wav", OLD) for status in REFUSALS}
    assert office.run().code == 0
    ledgers.change(office.ledger, uploaded_at="2026-01-01T00:00:00.000Z")
    for path in calls.values():
        write_json(path, NEW)
    office.record("later.wav", OLD)
    office.service.script = [Fail(getattr(STATUS, status), "no such field") for status in REFUSALS]

    def refused(text: str) -> int:
        outcome = office.update()
        assert outcome.code == 65
        for status, path in calls.items():
            [line] = [each for each in outcome.err.splitlines() if f"{path}: " in each]
            assert text in line and f"{status}: no such field" in line
            assert "--retry-rejected" in line
        return outcome.err.count("\n")

    assert refused("its metadata could not be updated: ") == len(REFUSALS)
    assert ledgers.states(office.ledger) == ["uploaded"] * len(office.fields)
    assert len(office.fields) == len(REFUSALS) + 1
    # They remain, are said again the next day, and not sent: not if rewritten, either.
    assert office.update() == Outcome(65, "", "")
    for path in calls.values():
        write_json(path, NEW, indent=4)
    assert office.update() == Outcome(65, "", "")
    assert office.run("--quiet") == Outcome(65, "", "")
    office.set_clock(DAY_S)
    assert refused("its metadata was not updated")
    assert len(office.updates) == len(REFUSALS)

    for path in calls.values():
        write_json(path, {"client_id": "newer"})
    assert office.update().code == 0
    assert len(office.updates) == 2 * len(REFUSALS)
    assert office.fields.count({"client_id": "newer"}) == len(REFUSALS)
    assert office.update() == NOTHING


def test_what_every_upload_would_meet_is_no_refusal(
    office: Office, changed: Path, tmp_path: Path
) -> None:
    before = office.row
    office.record("later.wav", OLD)
    other_ca = StandIn(tmp_path / "other").ca_file
    closed = f"localhost:{closed_port()}"
    for words, code in (
        (("--ca-file", other_ca), 78),
        (("--key", "wrong"), 77),
        (("--endpoint", closed), 75),
    ):
        assert office.update("--retries", 0, *words).code == code
    assert office.talk.talk_id == before["talk_id"]
    assert ledgers.rows(office.ledger)[0] == before
    assert office.update().code == 0
    assert len(office.fields) == 2


def test_an_update_of_what_somebody_wrote_into_the_ledger(office: Office, changed: Path) -> None:
    """Uploaded, says a person; with a wrong ID, or with none."""
    columns = {"talk_id": None, "uploaded_at": None}
    ledgers.change(office.ledger, found_id="mistyped", **columns)
    office.service.script = [NOT_FOUND]
    assert office.update("--retries", 0).code == 75
    ledgers.change(office.ledger, found_id=None)
    office.service.calls.clear()
    outcome = office.update()
    assert outcome.code == 65 and "the ledger has no dialog ID" in outcome.err
    assert office.service.calls == []


def failing(uploads: bool, status: grpc.StatusCode = STATUS.UNAVAILABLE) -> Callable[[Call], Step]:
    """Return what has uploads fail, or updates alone: they are the calls of Upload here."""
    return lambda call: Fail(status, "down") if (call.method != "Upload") == uploads else None


def test_updates_do_not_feed_the_circuit_breaker_and_in_an_outage_not_all_are_tried(
    office: Office,
) -> None:
    calls = [office.record(f"{number}.wav", OLD) for number in range(9)]
    assert office.run().code == 0
    office.service.on_call = failing(uploads=False)
    words = ("--update-metadata", "--jobs", 1, "--retries", 0)
    write_json(calls[8], NEW)
    assert office.run(*words).code == 75
    for path in calls[:8]:
        write_json(path, NEW)
    office.record("later.wav", OLD)
    office.service.calls.clear()
    outcome = office.run(*words)
    assert (outcome.code, len(office.fields), len(office.updates)) == (75, 10, 5)
    assert "1 uploaded, 0 already there, 5 failed, 0 unknown, 4 not updated" in outcome.err
    assert ("8.wav", "update-failed") in ledgers.causes(office.ledger), "it was not tried again"
    # As other outages: said once it has lasted an hour.
    assert office.run(*words, "--quiet") == Outcome(75, "", "")
    office.service.on_call = office.service.next_step
    outcome = office.run(*words, "--quiet")
    assert outcome.code == 0 and outcome.out.count("(metadata updated)") == 9


def test_an_update_that_fails_for_an_hour_is_said_though_uploads_work(
    office: Office, changed: Path
) -> None:
    office.service.on_call = failing(uploads=False, status=STATUS.INTERNAL)
    for minutes in (0, 30):
        office.set_clock(minutes * MINUTE_S)
        office.record(f"later {minutes}.wav", OLD)
        assert office.update("--retries", 0).err == ""
    office.set_clock(HOUR_S + MINUTE_S)
    outcome = office.update("--retries", 0)
    assert outcome.code == 75 and f"{changed}: its metadata could not be updated" in outcome.err
    assert len(office.fields) == 3


def test_an_update_closes_no_breaker_and_ends_no_outage(office: Office, changed: Path) -> None:
    for number in range(9):
        office.record(f"later {number}.wav", OLD)
    office.service.on_call = failing(uploads=True, status=STATUS.RESOURCE_EXHAUSTED)
    outcome = office.run("--update-metadata", "--jobs", 1, "--retries", 0)
    assert "4 not tried" in outcome.err and "1 with metadata updated" in outcome.err
    assert len(office.service.calls) == 6
    assert ("", "outage") in ledgers.causes(office.ledger)


def test_a_split_recording_is_said_once(office: Office) -> None:
    path = office.uploaded("--split")
    write_json(path, NEW)
    # Waiting for its dialogs goes on.
    outcome = office.update("--split", "--wait")
    assert outcome.code == 0 and office.row["talk_id"]
    assert outcome.err.count("\n") == 1 and "it was split; " in outcome.err
    assert "--talk-id" in outcome.err
    assert office.update() == NOTHING
    write_json(path, NEW, indent=4)
    assert office.update() == NOTHING
    write_json(path, OLD)
    assert "it was split; " in office.update().err
    assert office.updates == []


def test_a_copy_with_other_metadata_is_a_problem_and_never_sent(office: Office) -> None:
    path = office.uploaded()
    copy = office.folder / "copy.wav"
    shutil.copy(path, copy)
    assert office.run("--update-metadata").code == 0  # It has none.
    before = office.row
    write_json(copy, OLD, indent=4)
    assert office.update() == NOTHING
    assert office.row == before
    write_json(copy, NEW)
    outcome = office.update()
    assert (outcome.code, outcome.out, office.updates) == (65, "", [])
    assert f"{copy}: not sent: same audio as {path}, other metadata; " in outcome.err
    assert office.update() == Outcome(65, "", "")
    # That of the row's own path is sent all the same.
    write_json(path, NEW)
    assert office.update().out.count("(metadata updated)") == 1
    assert office.update() == NOTHING
    assert office.talk.fields == NEW


def test_a_recording_that_was_moved_takes_its_json_with_it(office: Office, tmp_path: Path) -> None:
    path = office.uploaded()
    path.with_suffix(".json").rename(office.folder / "moved.json")
    moved = path.rename(office.folder / "moved.wav")
    assert office.update() == NOTHING
    write_json(moved, NEW)
    # A folder with two names is no copy.
    (tmp_path / "link").symlink_to(office.folder)
    words = ("--audio-path", tmp_path / "link", "--ledger", office.ledger, "--update-metadata")
    assert office.upload(*words).code == 0
    assert office.talk.fields == NEW
    assert office.update() == NOTHING


# --- Updates: a run that ends in between -------------------------------------------------


def test_stopped_or_not_recorded_the_row_stays_as_it_was(
    office: Office, waits: Waits, changed: Path
) -> None:
    waits(ledger_lock=0.2)
    before = office.row
    office.service.script = [Freeze()]
    with when(lambda: office.service.calls, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert office.update().code == 143
    assert office.row == before

    lock = ledgers.Lock(office.ledger)
    office.service.script = [At(answer=lock.hold)]
    outcome = office.update()
    lock.release()
    assert outcome.code in (76, 78) and "bug" not in outcome.err
    assert str(office.ledger) in outcome.err
    assert office.row == before
    assert office.update().code == 0
    assert len(office.updates) == 3


# --- One date for several calls ----------------------------------------------------------


def test_one_date_for_several_recordings_is_doubtful(office: Office) -> None:
    words = (*office.common(date="2026-03-17T14:05:30+03:00"), "--quiet")
    doubt = "the date in --meta-path is sent with several recordings"

    def doubts(*paths: Path) -> int:
        return office.upload("--audio-path", *paths, *words).err.count(doubt)

    own = office.record("1.wav", {"date": "2026-03-18T14:05:30+03:00"})
    assert doubts(office.folder) == 0
    # Of a folder each run may find one more.
    one = office.record("2.wav", OLD)
    assert doubts(office.folder) == 1
    assert doubts(one) == doubts(one, own) == 0
    assert doubts(one, office.record("3.wav")) == 1
    # A touched recording is hashed, and a copy is, but neither is sent, nor warned of.
    assert office.run(*words).err.count(doubt) == 1
    sent = len(office.service.calls)
    one.chmod(0o600)
    shutil.copy(own, office.folder / "4.wav")
    assert office.run(*words).err.count(doubt) == 0
    assert len(office.service.calls) == sent == 11
