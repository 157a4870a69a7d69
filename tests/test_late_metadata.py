"""Metadata that come late: recordings that wait for their JSON, and a JSON after the upload."""

from __future__ import annotations

import builtins
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import ledgers
import pytest
from conftest import (
    Outcome,
    Run,
    Waits,
    arguments,
    closed_port,
    make_wav,
    sha256,
    start,
    when,
)
from stand_in import At, Call, EmptyAnswer, Fail, Freeze, StandIn, Step, Talk

import upload_grpc

pytestmark = pytest.mark.usefixtures("waits")

DAY_S = 86_400
OLD = {"client_id": "old"}
NEW = {"client_id": "new"}
LOOKUP = ("--organization-id", "o", "--space-id", "s")


@pytest.fixture
def run(upload: Run, folder: Path, ledger: Path) -> Run:
    """Upload the folder with a ledger."""
    return lambda *words: upload("--audio-path", folder, "--ledger", ledger, *words)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what sets this process's clock so many seconds ahead of the machine's."""
    real = time.time

    def set_ahead(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + seconds)

    return set_ahead


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the suffixes of the calls' files that are opened from now on."""
    names: list[str] = []
    really_open: Any = open

    def watched_open(file: Any, *rest: Any, **options: Any) -> Any:
        if Path(str(file)).parent.name == "calls":
            names.append(Path(file).suffix)
        return really_open(file, *rest, **options)

    monkeypatch.setattr(builtins, "open", watched_open)
    return names


def write_json(recording: Path, fields: object, **form: Any) -> Path:
    path = recording.with_suffix(".json")
    path.write_text(json.dumps(fields, **form))
    return path


def make_call(folder: Path, name: str = "call.wav", fields: object = None) -> Path:
    path = make_wav(folder / name, 1_000)
    if fields is not None:
        write_json(path, fields)
    return path


def only_talk(service: StandIn) -> Talk:
    [talk] = service.talks.values()
    return talk


def updates(service: StandIn) -> list[Call]:
    return [call for call in service.calls if call.messages[:1] == ["talk_id"]]


# --- Waiting for the JSON ----------------------------------------------------------------


def test_a_recording_without_its_json_waits_and_is_counted(
    run: Run, service: StandIn, folder: Path
) -> None:
    make_call(folder, "1.wav", OLD)
    late = make_call(folder, "2.wav")
    outcome = run("--require-json")
    assert outcome.code == 0 and f"{late}" not in outcome.out + outcome.err
    assert "1 uploaded, 0 already there, 0 failed, 0 unknown, 1 waiting" in outcome.err
    assert f"{late}: left out, it has no JSON yet" in run("--require-json", "--dry-run").err
    assert run("--require-json", "--quiet") == Outcome(0, "", "")
    assert len(service.talks) == 1

    write_json(late, NEW)
    assert run("--require-json", "--quiet", "--jobs", 1).code == 0
    assert [talk.fields for talk in service.talks.values()] == [OLD, NEW]


def test_one_that_waits_too_long_is_a_problem_and_holds_up_no_other(
    run: Run, service: StandIn, folder: Path, clock: Callable[[float], None]
) -> None:
    late = make_call(folder, "1.wav")
    make_call(folder, "2.wav", OLD)
    assert run("--require-json", "10m", "--quiet").code == 0
    clock(11 * 60)
    make_call(folder, "3.wav", OLD)
    outcome = run("--require-json", "10m", "--quiet")
    assert (outcome.code, outcome.err.count("\n"), len(service.talks)) == (66, 1, 2)
    assert f"{late}: no metadata yet: 1.json; " in outcome.err
    # Said once, and on the next day again.
    assert run("--require-json", "10m", "--quiet") == Outcome(66, "", "")
    clock(DAY_S + 11 * 60)
    assert "no metadata yet: 1.json" in run("--require-json", "10m", "--quiet").err

    write_json(late, NEW)
    assert run("--require-json", "10m", "--quiet").code == 0
    assert len(service.talks) == 3


def test_a_recording_that_is_named_is_a_problem_at_once(
    upload: Run, service: StandIn, folder: Path
) -> None:
    path = make_call(folder)
    outcome = upload("--audio-path", path, "--require-json", "36h")
    assert (outcome.code, outcome.out, service.calls) == (66, "", [])
    assert "no metadata yet: call.json" in outcome.err
    write_json(path, OLD)
    assert upload("--audio-path", path, "--require-json", "36h").code == 0


AGES = [("", 3600), ("90", 90), ("90s", 90), ("5m", 300), ("36h", 36 * 3600), ("2d", 2 * DAY_S)]


@pytest.mark.parametrize(("age", "seconds"), AGES)
def test_how_long_a_recording_may_wait(
    run: Run, folder: Path, clock: Callable[[float], None], age: str, seconds: float
) -> None:
    make_call(folder)
    for ahead_s, code in ((seconds - 10, 0), (seconds + 1, 66)):
        clock(ahead_s)
        assert run("--require-json", *[age] * bool(age), "--quiet").code == code


@pytest.mark.parametrize("age", ["1w", "soon", "1h30", "nan"])
def test_an_age_that_is_none(run: Run, folder: Path, age: str) -> None:
    make_call(folder)
    outcome = run("--require-json", age)
    assert outcome.code == 2 and "--require-json" in outcome.err and age not in outcome.err


def test_the_age_is_that_of_the_copy_not_of_the_audio(run: Run, folder: Path) -> None:
    """As rclone and cp -p keep the mtime, recorders without a clock write any."""
    for number, year in enumerate((1971, 2020, 2300)):
        path = make_call(folder, f"{number}.wav")
        seconds = (year - 1970) * 365 * DAY_S
        os.utime(path, (seconds, seconds))
    outcome = run("--require-json", "1m")
    assert outcome.code == 0 and "3 waiting" in outcome.err


def test_files_of_one_call_wait_for_one_json(run: Run, service: StandIn, folder: Path) -> None:
    path = make_call(folder, "call.wav")
    (folder / "call.mp3").write_bytes(b"\xff\xfb\x90\x64" + bytes(413) + b"\xff\xfb\x90\x64")
    outcome = run("--require-json")
    assert outcome.code == 0 and "1 waiting" in outcome.err
    write_json(path, NEW)
    assert run("--require-json").code == 0
    assert only_talk(service).fields == NEW
    # And one JSON counts for what is uploaded of them.
    write_json(path, OLD)
    assert run("--update-metadata").code == 0
    assert only_talk(service).fields == OLD


def test_names_of_the_json(run: Run, service: StandIn, folder: Path) -> None:
    path = make_call(folder, "1.wav")
    path.with_suffix(".JSON").write_text(json.dumps(OLD))
    both = make_call(folder, "2.wav", NEW)
    both.with_suffix(".JSON").write_text(json.dumps(OLD))
    assert run("--require-json", "--jobs", 1).code == 0
    assert [talk.fields for talk in service.talks.values()] == [OLD, NEW]
    path.with_suffix(".JSON").write_text(json.dumps(NEW))
    both.with_suffix(".JSON").write_text(json.dumps({"client_id": "not this one"}))
    assert run("--update-metadata").code == 0
    assert [talk.fields for talk in service.talks.values()] == [NEW, NEW]


# --- A JSON that is being written --------------------------------------------------------


def test_a_json_that_is_half_written_is_not_read(
    run: Run, service: StandIn, folder: Path, clock: Callable[[float], None]
) -> None:
    path = make_call(folder)
    age_s = 1.0
    time.sleep(age_s)
    path.with_suffix(".json").write_text('{"client_id": "ne')
    outcome = run("--min-age", age_s)
    assert (outcome.code, service.calls) == (0, []) and "1 waiting" in outcome.err
    assert "its JSON is younger than 1 s" in run("--min-age", age_s, "--dry-run").err
    # Without it the run has no way to know better.
    assert run("--dry-run").code == 65
    write_json(path, NEW)
    clock(age_s)
    assert run("--min-age", age_s).code == 0
    assert only_talk(service).fields == NEW


def test_nor_one_that_is_renamed_into_place_too_early(
    run: Run, service: StandIn, folder: Path
) -> None:
    path = make_call(folder)
    (folder / "call.json.part").write_text(json.dumps(NEW))
    age_s = 0.5
    time.sleep(age_s)
    (folder / "call.json.part").rename(path.with_suffix(".json"))
    assert "1 waiting" in run("--min-age", age_s).err
    time.sleep(age_s)
    assert run("--min-age", age_s).code == 0
    assert only_talk(service).fields == NEW


def test_nor_one_that_is_written_again_after_the_upload(
    run: Run, service: StandIn, folder: Path, clock: Callable[[float], None]
) -> None:
    path = make_call(folder, fields=OLD)
    assert run().code == 0
    age_s = 1.0
    time.sleep(age_s)
    path.with_suffix(".json").write_text('{"client_id": "ne')
    outcome = run("--min-age", age_s, "--update-metadata")
    assert outcome.code == 0 and "1 already there, 0 failed" in outcome.err
    write_json(path, NEW)
    clock(age_s)
    assert run("--min-age", age_s, "--quiet", "--update-metadata").code == 0
    assert only_talk(service).fields == NEW


# --- After the upload: what is said ------------------------------------------------------


def appears(path: Path) -> None:
    write_json(path, NEW)


def changes(path: Path) -> None:
    write_json(path, NEW)


def changes_with_an_older_mtime(path: Path) -> None:
    json_path = write_json(path, NEW)
    os.utime(json_path, (1e9, 1e9))


def changes_with_the_same_size_and_mtime(path: Path) -> None:
    before = path.with_suffix(".json").stat()
    json_path = write_json(path, NEW)
    os.utime(json_path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert json_path.stat().st_size == before.st_size


def is_renamed_into_place(path: Path) -> None:
    other = path.with_suffix(".part")
    other.write_text(json.dumps(NEW))
    os.utime(other, (1e9, 1e9))
    other.rename(path.with_suffix(".json"))


@pytest.mark.parametrize(
    "late",
    [
        appears,
        changes,
        changes_with_an_older_mtime,
        changes_with_the_same_size_and_mtime,
        is_renamed_into_place,
    ],
)
def test_metadata_that_come_after_the_upload_are_said_though_all_is_uploaded(
    run: Run,
    service: StandIn,
    folder: Path,
    clock: Callable[[float], None],
    opened: list[str],
    late: Callable[[Path], None],
) -> None:
    path = make_call(folder, fields=None if late is appears else OLD)
    assert run().code == 0
    service.calls.clear()
    late(path)
    opened.clear()
    outcome = run("--quiet")
    assert (outcome.code, outcome.out, service.calls) == (0, "", [])
    assert outcome.err.count("\n") == 1
    assert f"{path}: its metadata has changed since the upload; " in outcome.err
    assert "run the same command with --update-metadata" in outcome.err
    # Once a day, without --quiet each time.
    assert run("--quiet") == Outcome(0, "", "")
    assert "its metadata has changed" in run().err
    clock(DAY_S)
    assert "its metadata has changed" in run("--quiet").err
    assert ".wav" not in opened

    outcome = run("--quiet", "--update-metadata")
    assert outcome == Outcome(
        0, f"{path}: Dialog ID: {only_talk(service).talk_id} (metadata updated)\n", ""
    )
    assert only_talk(service).fields == NEW
    assert run("--quiet") == Outcome(0, "", "")


def test_a_json_rewritten_unchanged_is_read_once_and_its_audio_never(
    run: Run, service: StandIn, folder: Path, ledger: Path, opened: list[str]
) -> None:
    """As a nightly export does with all of them."""
    fields = {"client_id": "1", "rating": 5, "users": [{"id": "1", "role": "bot"}]}
    path = make_call(folder, fields=fields)
    assert run().code == 0
    before = ledgers.row(ledger)
    opened.clear()
    # Content is what counts: neither the order of its keys nor white space.
    write_json(path, dict(reversed(fields.items())), indent=4)
    assert run("--quiet", "--update-metadata") == Outcome(0, "", "")
    assert opened == [".json"]
    after = ledgers.row(ledger)
    assert after["json_size_bytes"] == path.with_suffix(".json").stat().st_size
    same = set(before) - {"json_size_bytes", "json_mtime_ns", "json_ctime_ns"}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert run("--quiet", "--update-metadata") == Outcome(0, "", "")
    assert opened == [".json"] and updates(service) == []


def test_a_value_that_came_and_went_is_nothing_to_send(
    run: Run, service: StandIn, folder: Path
) -> None:
    path = make_call(folder, fields=OLD)
    assert run().code == 0
    write_json(path, NEW)
    assert "its metadata has changed" in run("--quiet").err
    write_json(path, OLD)
    assert run("--quiet", "--update-metadata") == Outcome(0, "", "")
    assert run("--quiet") == Outcome(0, "", "")
    assert updates(service) == []


def test_a_json_that_is_removed_after_the_upload_changes_nothing(
    run: Run, service: StandIn, folder: Path
) -> None:
    path = make_call(folder, fields=OLD)
    assert run().code == 0
    path.with_suffix(".json").unlink()
    for words in ((), ("--require-json", "0"), ("--update-metadata",)):
        assert run("--quiet", *words) == Outcome(0, "", "")
    path.with_suffix(".json").symlink_to("nowhere")
    assert run("--quiet", "--update-metadata") == Outcome(0, "", "")
    path.with_suffix(".json").unlink()
    path.with_suffix(".json").mkdir()
    assert run("--quiet", "--update-metadata") == Outcome(0, "", "")
    assert only_talk(service).fields == OLD


@pytest.mark.parametrize(("broken", "code"), [("{", 65), ('{"a": null}', 65), ("fifo", 66)])
def test_a_json_that_is_broken_after_the_upload_is_a_problem(
    run: Run, service: StandIn, folder: Path, ledger: Path, broken: str, code: int
) -> None:
    path = make_call(folder, fields=OLD)
    assert run().code == 0
    make_call(folder, "other.wav", OLD)
    json_path = path.with_suffix(".json")
    json_path.unlink()
    if broken == "fifo":
        os.mkfifo(json_path)
    else:
        json_path.write_text(broken)
    outcome = run("--quiet", "--update-metadata")
    assert outcome.code == code and outcome.err.count("\n") == 1 and f"{json_path}: " in outcome.err
    assert run("--quiet", "--update-metadata") == Outcome(code, "", "")
    assert ledgers.states(ledger) == ["uploaded", "uploaded"] and len(service.talks) == 2
    json_path.unlink()
    write_json(path, OLD)
    assert run("--quiet", "--update-metadata") == Outcome(0, "", "")


# --- Updates: what is sent ---------------------------------------------------------------


def test_an_update_is_the_same_merge_as_at_an_upload(
    run: Run, service: StandIn, folder: Path, tmp_path: Path
) -> None:
    common = tmp_path / "common.json"
    peter = {"id": "2", "role": "client"}
    common.write_text(json.dumps({"client_id": "common", "language": "ru-RU", "users": [peter]}))
    path = make_call(folder, fields={"client_id": "own", "note": "erased"})
    assert run("--meta-path", common).code == 0
    service.calls.clear()

    write_json(path, {"client_id": "late", "users": [{"id": "1", "role": "operator"}]})
    outcome = run("--meta-path", common, "--update-metadata", "--format", "json", "--quiet")
    talk = only_talk(service)
    assert talk.fields == {"client_id": "late", "language": "ru-RU"}
    assert [user["id"] for user in talk.users] == ["1"]
    [call] = service.calls
    assert (call.method, call.messages) == ("Upload", ["talk_id", "metadata"])
    result = json.loads(outcome.out)
    assert (outcome.code, outcome.err, result["outcome"]) == (0, "", "updated")
    assert (result["talk_id"], result["path"]) == (talk.talk_id, str(path))
    assert result["request_id"] == call.client_request_id

    # Users alone; and those of --meta-path come back.
    write_json(path, {"client_id": "late"})
    assert run("--meta-path", common, "--update-metadata").code == 0
    assert [user["id"] for user in talk.users] == ["2"]


def test_the_row_stays_uploaded_and_takes_the_new_hashes_only_after_the_answer(
    run: Run, service: StandIn, folder: Path, ledger: Path
) -> None:
    path = make_call(folder, fields=OLD)
    assert run().code == 0
    before = ledgers.row(ledger)
    write_json(path, {**NEW, "date": "2026-03-17T14:05:30+03:00"})
    seen: list[dict[str, Any]] = []

    def look(call: Call) -> Step:
        seen.append(ledgers.row(ledger))
        return None

    service.script = [At(metadata=look, answer=look)]
    assert run("--update-metadata", "--quiet").code == 0
    assert seen == [before, before]
    after = ledgers.row(ledger)
    assert after["state"] == "uploaded" and after["uploaded_at"] == before["uploaded_at"]
    for column in ("json_sha256", "json_size_bytes", "metadata_sha256"):
        assert after[column] not in (before[column], "")
    assert after["recorded_at"] == "2026-03-17T11:05:30.000Z"
    assert run("--update-metadata", "--quiet") == Outcome(0, "", "")
    assert len(updates(service)) == 1


def test_a_meta_path_that_changes_alone_sends_nothing(
    run: Run, service: StandIn, folder: Path, tmp_path: Path
) -> None:
    common = tmp_path / "common.json"
    common.write_text('{"language": "ru-RU"}')
    make_call(folder, fields=OLD)
    assert run("--meta-path", common).code == 0
    common.write_text('{"language": "kk-KZ"}')
    assert run("--meta-path", common, "--update-metadata", "--quiet") == Outcome(0, "", "")
    assert run("--update-metadata", "--quiet") == Outcome(0, "", "")
    assert updates(service) == []


def test_without_the_meta_path_of_the_upload_nothing_is_sent(
    run: Run, service: StandIn, folder: Path, tmp_path: Path
) -> None:
    """Keys left out would be erased."""
    common = tmp_path / "common.json"
    common.write_text('{"language": "ru-RU"}')
    path = make_call(folder, fields=OLD)
    assert run("--meta-path", common).code == 0
    write_json(path, NEW)
    outcome = run("--update-metadata", "--quiet")
    assert (outcome.code, outcome.out, updates(service)) == (65, "", [])
    assert f"{path}: " in outcome.err and "add --meta-path" in outcome.err
    assert run("--update-metadata", "--quiet") == Outcome(65, "", "")
    assert run("--update-metadata", "--meta-path", common).code == 0
    assert only_talk(service).fields == {**NEW, "language": "ru-RU"}


def test_a_meta_path_that_comes_with_the_update_is_sent(
    run: Run, service: StandIn, folder: Path, tmp_path: Path
) -> None:
    common = tmp_path / "common.json"
    common.write_text('{"language": "ru-RU"}')
    path = make_call(folder)  # Placeholders.
    assert run().code == 0
    write_json(path, NEW)
    assert run("--update-metadata", "--meta-path", common).code == 0
    assert only_talk(service).fields == {**NEW, "language": "ru-RU"}
    write_json(path, OLD)
    assert run("--update-metadata").code == 65  # From now on it belongs to it.


def test_the_lookup_key_is_kept_and_can_be_given_another_name(
    run: Run, service: StandIn, folder: Path, ledger: Path
) -> None:
    path = make_call(folder, fields=OLD)
    assert run("--lookup-key", "digest", *LOOKUP).code == 0
    write_json(path, NEW)
    assert run("--update-metadata").code == 0
    assert only_talk(service).fields == {**NEW, "digest": sha256(path)}
    assert ledgers.row(ledger)["lookup_key"] == "digest"
    write_json(path, OLD)
    assert run("--update-metadata", "--lookup-key", "other", *LOOKUP).code == 0
    assert only_talk(service).fields == {**OLD, "other": sha256(path)}
    assert ledgers.row(ledger)["lookup_key"] == "other"
    # As at an upload.
    write_json(path, {"other": "mine"})
    outcome = run("--update-metadata", "--lookup-key", "other", *LOOKUP)
    assert outcome.code == 65 and '"other"' in outcome.err
    assert only_talk(service).fields == {**OLD, "other": sha256(path)}


def test_where_upload_returned_no_id_the_one_found_is_used(
    run: Run, service: StandIn, folder: Path, ledger: Path
) -> None:
    path = make_call(folder, fields=OLD)
    key = ("--lookup-key", "digest", *LOOKUP)
    service.script = [Fail(grpc.StatusCode.UNAVAILABLE, "lost", store=True)]
    assert run(*key, "--retries", 0).code == 76
    assert run(*key).code == 0
    row = ledgers.row(ledger)
    assert (row["talk_id"], row["found_id"]) == (None, only_talk(service).talk_id)
    write_json(path, NEW)
    outcome = run(*key, "--update-metadata", "--quiet")
    assert outcome.code == 0
    assert outcome.out == f"{path}: Dialog ID: {row['found_id']} (metadata updated)\n"
    assert only_talk(service).fields == {**NEW, "digest": sha256(path)}


def test_dates_that_are_malformed_are_named_with_an_update_too(
    run: Run, service: StandIn, folder: Path
) -> None:
    path = make_call(folder, fields=OLD)
    assert run().code == 0
    write_json(path, {"date": "17.03.2026"})
    outcome = run("--update-metadata", "--quiet")
    assert outcome.code == 0 and '"date": "17.03.2026" is not' in outcome.err
    assert only_talk(service).fields == {"date": "17.03.2026"}


def test_a_dry_run_says_what_would_be_updated_and_touches_nothing(
    run: Run, service: StandIn, folder: Path, ledger: Path
) -> None:
    path = make_call(folder, "1.wav", OLD)
    same = make_call(folder, "2.wav", OLD)
    assert run().code == 0
    write_json(path, NEW)
    write_json(same, OLD)
    make_call(folder, "3.wav", NEW)
    before = ledgers.rows(ledger)
    outcome = run("--update-metadata", "--dry-run")
    assert outcome.code == 0
    assert f'{path}: would be updated: metadata {{"client_id": "new"}}' in outcome.out
    assert f"{folder / '3.wav'}: would be uploaded: WAV" in outcome.out
    assert f"{same}" not in outcome.out
    assert "1 would be uploaded, 1 already there, 1 with metadata to be updated" in outcome.err
    assert "its metadata has changed" in run("--dry-run", "--quiet").err
    assert ledgers.rows(ledger) == before and updates(service) == []


def test_updates_need_a_ledger(upload: Run, folder: Path) -> None:
    assert upload("--audio-path", folder, "--update-metadata").code == 2


# --- Updates: what goes wrong ------------------------------------------------------------


@pytest.fixture
def changed(run: Run, service: StandIn, folder: Path) -> Path:
    """Upload a recording, and change its JSON."""
    path = make_call(folder, "changed.wav", OLD)
    assert run().code == 0
    write_json(path, NEW)
    service.calls.clear()
    return path


LOST_ANSWERS: list[Step] = [
    Fail(grpc.StatusCode.UNAVAILABLE, "gone", store=True),
    Fail(grpc.StatusCode.UNAVAILABLE, "gone"),
    Fail(grpc.StatusCode.INTERNAL, "broken", store=True),
    Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many"),
    Fail(grpc.StatusCode.PERMISSION_DENIED, "Received http2 header with status: 403", ids=False),
    Freeze(store=True),
]


@pytest.mark.parametrize("step", LOST_ANSWERS)
def test_a_failed_or_lost_answer_is_75_and_the_update_is_sent_again(
    run: Run, service: StandIn, changed: Path, ledger: Path, step: Step
) -> None:
    before = ledgers.row(ledger)
    service.script = [step]
    words = ("--update-metadata", "--timeout", 0.3, "--format", "json")
    outcome = run(*words, "--retries", 0)
    assert (outcome.code, json.loads(outcome.out)["outcome"]) == (75, "failed")
    assert f"{changed}: its metadata could not be updated: " in outcome.err
    assert ledgers.row(ledger) == before
    outcome = run(*words)
    assert (outcome.code, json.loads(outcome.out)["outcome"]) == (0, "updated")
    assert only_talk(service).fields == NEW and len(updates(service)) == 2


def test_it_is_repeated_within_a_run_too(run: Run, service: StandIn, changed: Path) -> None:
    service.script = [Fail(grpc.StatusCode.UNAVAILABLE, "gone", store=True)]
    assert run("--update-metadata", "--quiet").code == 0
    assert len(updates(service)) == 2 and only_talk(service).fields == NEW


REFUSALS = ["INVALID_ARGUMENT", "PERMISSION_DENIED", "FAILED_PRECONDITION", "OUT_OF_RANGE"]
REFUSALS += ["UNIMPLEMENTED", "ALREADY_EXISTS", "NOT_FOUND"]


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refused_update_is_this_recordings_alone_and_not_repeated_until_its_json_changes(
    run: Run,
    service: StandIn,
    folder: Path,
    changed: Path,
    ledger: Path,
    clock: Callable[[float], None],
    status: str,
) -> None:
    if status == "NOT_FOUND":
        ledgers.change(ledger, uploaded_at="2026-01-01T00:00:00.000Z")
    make_call(folder, "later.wav", OLD)
    service.script = [Fail(grpc.StatusCode[status], "no such field")]
    words = ("--update-metadata", "--quiet", "--jobs", 1)
    outcome = run(*words)
    assert (outcome.code, outcome.err.count("\n"), len(service.talks)) == (65, 1, 2)
    assert f"{changed}: its metadata could not be updated: " in outcome.err
    assert f"{status}: no such field" in outcome.err and "--retry-rejected" in outcome.err
    assert ledgers.states(ledger) == ["uploaded"] * 2

    # It remains one, is said again the next day, and not sent: not if it is rewritten, either.
    assert run(*words) == Outcome(65, "", "")
    write_json(changed, NEW, indent=4)
    assert run(*words) == Outcome(65, "", "")
    assert run("--quiet") == Outcome(65, "", "")
    clock(DAY_S)
    outcome = run(*words)
    assert outcome.code == 65 and f"{status}: no such field" in outcome.err
    assert len(updates(service)) == 1

    write_json(changed, {"client_id": "newer"})
    assert run(*words).code == 0
    assert len(updates(service)) == 2
    assert {"client_id": "newer"} in [talk.fields for talk in service.talks.values()]
    assert run(*words) == Outcome(0, "", "")


def test_a_refused_update_is_over_when_the_json_is_as_before_or_after_a_fix_in_the_console(
    run: Run, service: StandIn, changed: Path
) -> None:
    words = ("--update-metadata", "--quiet")
    service.script = [Fail(grpc.StatusCode.INVALID_ARGUMENT, "no such field")] * 2
    assert run(*words).code == 65
    write_json(changed, OLD)
    assert run(*words) == Outcome(0, "", "")
    write_json(changed, NEW)  # Changed again.
    assert run(*words).code == 65
    assert run(*words, "--retry-rejected").code == 0
    assert len(updates(service)) == 3 and only_talk(service).fields == NEW
    assert run(*words, "--retry-rejected") == Outcome(0, "", "")


def test_a_dialog_that_is_not_found_yet_is_said_only_after_a_day(
    run: Run, service: StandIn, changed: Path, ledger: Path, clock: Callable[[float], None]
) -> None:
    words = ("--update-metadata", "--quiet")
    missing = Fail(grpc.StatusCode.NOT_FOUND, "no such talk")
    service.script = [missing] * 4
    for hours in (0, 2, 23):
        clock(hours * 3600)
        assert run(*words) == Outcome(75, "", "")
    clock(25 * 3600)
    outcome = run(*words)
    assert outcome.code == 65 and "NOT_FOUND: no such talk" in outcome.err
    assert run(*words) == Outcome(65, "", "")
    assert len(updates(service)) == 4


def test_one_that_is_found_after_all(run: Run, service: StandIn, changed: Path) -> None:
    service.script = [Fail(grpc.StatusCode.NOT_FOUND, "no such talk")]
    outcome = run("--update-metadata")
    assert outcome.code == 75 and "NOT_FOUND: no such talk" in outcome.err
    assert run("--update-metadata", "--quiet").code == 0
    assert only_talk(service).fields == NEW


def test_what_every_upload_would_meet_is_no_refusal(
    run: Run, service: StandIn, changed: Path, ledger: Path, folder: Path, tmp_path: Path
) -> None:
    before = ledgers.row(ledger)
    make_call(folder, "later.wav", OLD)
    other_ca = StandIn(tmp_path / "other").ca_file
    words = ("--update-metadata", "--quiet", "--jobs", 1, "--retries", 0)
    assert run(*words, "--ca-file", other_ca).code == 78
    assert run(*words, "--key", "wrong").code == 77
    closed = run(*words, "--endpoint", f"localhost:{closed_port()}")
    assert (closed.code, [*service.talks]) == (75, [before["talk_id"]])
    assert ledgers.rows(ledger)[0] == before
    assert run(*words).code == 0
    assert len(service.talks) == 2


def test_updates_do_not_feed_the_circuit_breaker_and_in_an_outage_not_all_are_tried(
    run: Run, service: StandIn, folder: Path, ledger: Path
) -> None:
    calls = [make_call(folder, f"{number}.wav", OLD) for number in range(9)]
    assert run().code == 0
    for path in calls:
        write_json(path, NEW)
    make_call(folder, "later.wav", OLD)
    service.calls.clear()

    def fail_updates(call: Call) -> Step:
        return Fail(grpc.StatusCode.UNAVAILABLE, "down") if call.method == "Upload" else None

    service.on_call = fail_updates
    words = ("--update-metadata", "--jobs", 1, "--retries", 0)
    outcome = run(*words)
    assert (outcome.code, len(service.talks), len(updates(service))) == (75, 10, 5)
    assert "1 uploaded, 0 already there, 5 failed, 0 unknown, 4 not updated" in outcome.err
    # As other outages: said once it has lasted an hour.
    assert run(*words, "--quiet") == Outcome(75, "", "")
    service.on_call = service.next_step
    outcome = run(*words, "--quiet")
    assert outcome.code == 0 and outcome.out.count("(metadata updated)") == 9


def test_an_update_that_fails_for_an_hour_is_said_though_uploads_work(
    run: Run,
    service: StandIn,
    folder: Path,
    changed: Path,
    clock: Callable[[float], None],
) -> None:
    service.on_call = lambda call: (
        Fail(grpc.StatusCode.INTERNAL, "broken") if call.method == "Upload" else None
    )
    words = ("--update-metadata", "--quiet", "--retries", 0, "--jobs", 1)
    for minutes in (0, 30):
        clock(minutes * 60)
        make_call(folder, f"later {minutes}.wav", OLD)
        assert run(*words).err == ""
    clock(3_660)
    outcome = run(*words)
    assert outcome.code == 75 and f"{changed}: its metadata could not be updated" in outcome.err
    assert len(service.talks) == 3


def test_an_update_closes_no_circuit_breaker(
    run: Run, service: StandIn, folder: Path, changed: Path
) -> None:
    for number in range(9):
        make_call(folder, f"later {number}.wav", OLD)

    def fail_uploads(call: Call) -> Step:
        return Fail(grpc.StatusCode.UNAVAILABLE, "down") if call.method != "Upload" else None

    service.on_call = fail_uploads
    outcome = run("--update-metadata", "--jobs", 1, "--retries", 0)
    assert "4 not tried" in outcome.err and "1 with metadata updated" in outcome.err
    assert len(service.calls) == 6


def test_a_split_recording_is_said_once(
    run: Run, service: StandIn, folder: Path, ledger: Path
) -> None:
    path = make_call(folder, fields=OLD)
    assert run("--split").code == 0
    write_json(path, NEW)
    # Waiting for its dialogs goes on.
    outcome = run("--quiet", "--split", "--wait", "--update-metadata")
    assert outcome.code == 0 and ledgers.row(ledger)["talk_id"]
    assert outcome.err.count("\n") == 1 and "it was split; " in outcome.err
    assert "--talk-id" in outcome.err
    assert run("--update-metadata", "--quiet") == Outcome(0, "", "")
    write_json(path, NEW, indent=4)
    assert run("--update-metadata", "--quiet") == Outcome(0, "", "")
    assert updates(service) == []
    write_json(path, OLD)
    assert "it was split; " in run("--quiet", "--update-metadata").err
    assert updates(service) == []


def test_a_copy_with_other_metadata_is_a_problem_and_never_sent(
    run: Run, service: StandIn, folder: Path, ledger: Path
) -> None:
    path = make_call(folder, "1.wav", OLD)
    assert run().code == 0
    copy = folder / "2.wav"
    copy.write_bytes(path.read_bytes())
    assert run("--update-metadata").code == 0  # It has none.
    before = ledgers.row(ledger)
    write_json(copy, OLD, indent=4)
    assert run("--update-metadata", "--quiet") == Outcome(0, "", "")
    assert ledgers.row(ledger) == before
    write_json(copy, NEW)
    outcome = run("--update-metadata", "--quiet")
    assert (outcome.code, outcome.out, updates(service)) == (65, "", [])
    assert f"{copy}: not sent: same audio as {path}, other metadata; " in outcome.err
    assert run("--update-metadata", "--quiet") == Outcome(65, "", "")
    # That of the row's own path is sent all the same.
    write_json(path, NEW)
    assert run("--update-metadata", "--quiet", "--jobs", 1).out.count("(metadata updated)") == 1
    assert run("--update-metadata", "--quiet") == Outcome(0, "", "")
    assert only_talk(service).fields == NEW


def test_a_copy_in_the_same_run(run: Run, service: StandIn, folder: Path) -> None:
    path = make_call(folder, "1.wav", OLD)
    copy = folder / "2.wav"
    copy.write_bytes(path.read_bytes())
    write_json(copy, NEW)
    outcome = run()
    assert outcome.code == 65 and f"same audio as {path}, other metadata" in outcome.err
    assert only_talk(service).fields == OLD


def test_a_recording_that_was_moved_takes_its_json_with_it(
    upload: Run, run: Run, service: StandIn, folder: Path, tmp_path: Path, ledger: Path
) -> None:
    path = make_call(folder, fields=OLD)
    assert run().code == 0
    path.with_suffix(".json").rename(folder / "moved.json")
    moved = path.rename(folder / "moved.wav")
    assert run("--update-metadata", "--quiet") == Outcome(0, "", "")
    write_json(moved, NEW)
    # A folder with two names is no copy.
    (tmp_path / "link").symlink_to(folder)
    words = ("--ledger", ledger, "--update-metadata", "--quiet")
    assert upload("--audio-path", tmp_path / "link", *words).code == 0
    assert only_talk(service).fields == NEW
    assert run("--update-metadata", "--quiet") == Outcome(0, "", "")


# --- Updates: a run that ends in between -------------------------------------------------


def test_killed_between_the_answer_and_the_row(
    run: Run, service: StandIn, folder: Path, changed: Path, ledger: Path
) -> None:
    before = ledgers.row(ledger)
    words = arguments(service, "--audio-path", folder, "--ledger", ledger, "--update-metadata")
    with start(*words) as process:
        service.script = [At(answer=lambda call: process.kill())]
        process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert only_talk(service).fields == NEW and ledgers.row(ledger) == before
    outcome = run("--update-metadata", "--quiet")
    assert outcome.code == 0 and "(metadata updated)" in outcome.out
    assert run("--update-metadata", "--quiet") == Outcome(0, "", "")
    assert len(updates(service)) == 2


def test_stopped_while_it_is_under_way(
    service: StandIn, folder: Path, changed: Path, ledger: Path
) -> None:
    before = ledgers.row(ledger)
    words = arguments(service, "--audio-path", folder, "--ledger", ledger, "--update-metadata")
    service.script = [Freeze()]
    with start(*words) as process, when(lambda: service.calls, process.terminate):
        process.communicate(timeout=30)
    assert process.returncode == 143
    assert ledgers.row(ledger) == before


def test_an_update_that_cannot_be_recorded_is_sent_again(
    run: Run, waits: Waits, service: StandIn, changed: Path, ledger: Path
) -> None:
    waits(ledger_lock=0.2)
    before = ledgers.row(ledger)
    answered, ended = threading.Event(), threading.Event()

    def lock() -> None:
        with ledgers.locked(ledger):
            answered.set()
            ended.wait(15)

    def answer(call: Call) -> Step:
        threading.Thread(target=lock).start()
        answered.wait(15)
        return None

    service.script = [At(answer=answer)]
    outcome = run("--update-metadata")
    ended.set()
    assert outcome.code in (76, 78) and str(ledger) in outcome.err and "bug" not in outcome.err
    assert ledgers.row(ledger) == before
    assert run("--update-metadata").code == 0
    assert len(updates(service)) == 2


def test_an_empty_answer_to_an_update_is_one(run: Run, service: StandIn, changed: Path) -> None:
    service.script = [EmptyAnswer(store=True)]
    outcome = run("--update-metadata")
    assert outcome.code == 0 and only_talk(service).talk_id in outcome.out
    assert only_talk(service).fields == NEW


# --- One date for several calls ----------------------------------------------------------


def test_one_date_for_several_recordings_is_doubtful(
    run: Run, upload: Run, service: StandIn, folder: Path, tmp_path: Path
) -> None:
    common = tmp_path / "common.json"
    common.write_text('{"date": "2026-03-17T14:05:30+03:00"}')
    words = ("--meta-path", common, "--quiet")
    own = make_call(folder, "1.wav", {"date": "2026-03-18T14:05:30+03:00"})
    assert run(*words).err == ""
    # Of a folder each run may find one more.
    one = make_call(folder, "2.wav", OLD)
    assert run(*words).err.count("the date in --meta-path is sent with several recordings") == 1
    assert upload("--audio-path", one, *words).err == ""
    assert upload("--audio-path", one, own, *words).err == ""
    other = make_call(folder, "3.wav")
    assert upload("--audio-path", one, other, *words).err.count("several recordings") == 1
    assert len(service.talks) == 7


def test_what_is_not_sent_is_not_warned_of(
    upload: Run, service: StandIn, folder: Path, ledger: Path, tmp_path: Path
) -> None:
    """A touched recording is hashed, and a copy is, but neither is sent."""
    common = tmp_path / "common.json"
    common.write_text('{"date": "2026-03-17T14:05:30+03:00"}')
    words = ("--meta-path", common, "--ledger", ledger, "--audio-path", folder)
    call = make_wav(folder / "touched.wav", 3_000)
    assert "several recordings" in upload(*words).err
    sent = len(service.calls)
    call.chmod(0o600)
    shutil.copy(call, folder / "copy.wav")
    outcome = upload(*words)
    assert (outcome.code, len(service.calls)) == (0, sent)
    assert "several recordings" not in outcome.err


@pytest.mark.parametrize("content", ["", '{"a": "', '{"a": "c"}'], ids=["empty", "half", "other"])
def test_a_json_that_is_written_while_it_is_read_is_no_mistake(
    upload: Run, service: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    call = make_wav(folder / "call.wav", 3_000)
    sidecar = call.with_suffix(".json")
    sidecar.write_text('{"a": "b"}')
    read = upload_grpc.read_metadata

    def write_and_read(path: str) -> Any:
        sidecar.write_text(content)
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(upload_grpc, "read_metadata", write_and_read)
        outcome = upload("--audio-path", folder)
    assert (outcome.code, service.calls) == (75, [])
    assert "call.wav: its JSON was changed while it was read; run again" in outcome.err
    sidecar.write_text('{"a": "d"}')
    assert upload("--audio-path", folder).code == 0
    assert only_talk(service).fields == {"a": "d"}


@pytest.mark.parametrize("what", ["touched", "replaced"])
def test_an_uploaded_recording_needs_its_json_no_more_and_another_of_its_name_does(
    upload: Run, service: StandIn, folder: Path, ledger: Path, what: str
) -> None:
    """The JSON was archived after the upload; then the file gets a new ctime."""
    call = make_wav(folder / "call.wav", 3_000, seed=1)
    sidecar = call.with_suffix(".json")
    sidecar.write_text('{"a": "b"}')
    words = ("--require-json", "--ledger", ledger, "--audio-path", folder)
    assert upload(*words).code == 0
    sidecar.unlink()
    status = call.stat()
    make_wav(call, 3_000, seed=1 if what == "touched" else 2)
    os.utime(call, ns=(status.st_atime_ns, status.st_mtime_ns))
    outcome = upload(*words)
    assert (outcome.code, len(service.talks)) == (0, 1)
    assert ("1 already there" if what == "touched" else "1 waiting") in outcome.err
