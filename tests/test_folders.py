"""What happens in a folder between two runs: files are renamed, replaced, removed, linked."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import encoders
import grpc
import ledgers
import pytest
from conftest import Outcome, Run, make_wav
from stand_in import At, Call, Fail, StandIn, Step
from test_operator import DAY_S, HOUR_S, NO_QUOTA, REJECTED, lines, names

import upload_grpc

pytestmark = pytest.mark.usefixtures("waits")


@pytest.fixture
def calls(folder: Path) -> Path:
    return folder


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    path = tmp_path / "fields.json"
    path.write_text('{"language": "ru-RU"}')
    return path


@pytest.fixture
def hand(upload: Run, ledger: Path, calls: Path, fields: Path) -> Run:
    given = ("--ledger", ledger, "--retries", 0, "--jobs", 1, "--meta-path", fields)
    return lambda *more: upload(*given, "--audio-path", calls, *more)


@pytest.fixture
def cron(hand: Run) -> Run:
    return lambda *more: hand("--quiet", *more)


@pytest.fixture
def report(upload: Run, ledger: Path) -> Run:
    return lambda *more: upload("--report", "--ledger", ledger, *more)


def broken(path: Path) -> Path:
    path.write_bytes(b"RIFF")
    return path


# --- Rows of content that is no more -------------------------------------------------------


def test_a_recording_that_was_being_written_leaves_no_failure(
    cron: Run, report: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """Changed under way, uploaded whole by the next run: the report has one call, uploaded."""
    call = make_wav(calls / "a.wav", 600_000)

    def grow(_: object) -> None:
        make_wav(call, 700_000)

    service.on_call = lambda _: At(metadata=grow)
    assert cron().code == 75
    service.on_call = lambda _: None
    assert cron().code == 0
    assert len(service.talks) == 1
    out = report()
    assert (out.code, "Nothing needs attention" in out.out) == (0, True), out.out


def test_a_rejected_file_that_was_replaced_is_no_failure_any_more(
    cron: Run, report: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """Refused, repaired as advised, uploaded: the report has one call, uploaded."""
    make_wav(calls / "a.wav", 2_000)
    service.on_call = lambda _: REJECTED
    assert cron().code == 65
    service.on_call = lambda _: None
    make_wav(calls / "a.wav", 4_000)
    assert cron().code == 0
    out = report()
    assert (out.code, "Nothing needs attention" in out.out) == (0, True), out.out


def test_a_failed_call_whose_name_was_used_again_is_lost(
    cron: Run, report: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """Overwritten by another call before it was uploaded: named, once; no run can upload it."""
    make_wav(calls / "a.wav", 2_000, seed=1)
    service.on_call = lambda _: NO_QUOTA
    assert cron().code == 75
    service.on_call = lambda _: None
    make_wav(calls / "a.wav", 2_000, seed=2)
    later = cron()
    assert names(later) == ["a.wav"], (later, report().out)
    assert "the next run uploads it" not in report().out


# --- Renamed or moved --------------------------------------------------------------------------


def test_what_was_renamed_and_waits_is_not_lost(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """A broken one is renamed: with --min-age it is young, and not lost."""
    call = broken(calls / "a.wav")
    assert cron().code == 65
    call.rename(calls / "b.wav")
    assert cron("--min-age", 300) == Outcome(0, "", "")


def test_what_failed_in_an_outage_and_was_moved_is_not_lost(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """Moved into a day's folder after an outage: with --min-age it is young, and not lost."""
    call = make_wav(calls / "a.wav", 2_000)
    make_wav(calls / "keep.wav", 2_000)
    service.on_call = lambda _: NO_QUOTA
    assert cron().code == 75
    service.on_call = lambda _: None
    (calls / "day").mkdir()
    call.rename(calls / "day" / "a.wav")
    assert cron("--min-age", 300) == Outcome(0, "", "")


def test_what_waits_for_json_and_was_renamed_is_not_lost(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """Renamed so that it fits its JSON's name: it waits, or is uploaded, and is not lost."""
    call = make_wav(calls / "a.wav", 2_000)
    time.sleep(0.05)
    assert names(cron("--require-json", "0.01")) == ["a.wav"]
    call.rename(calls / "b.wav")
    assert cron("--require-json", "1h") == Outcome(0, "", "")


def test_an_uploaded_one_that_was_moved_is_not_lost(
    cron: Run, report: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """Uploaded, its JSON changed, then archived below the same folder: it is not lost."""
    call = make_wav(calls / "a.wav", 2_000)
    call.with_suffix(".json").write_text('{"a": "1"}')
    make_wav(calls / "keep.wav", 2_000)
    assert cron().code == 0
    call.with_suffix(".json").write_text('{"a": "2"}')
    assert cron().code == 0
    (calls / "archive").mkdir()
    call.rename(calls / "archive" / "a.wav")
    call.with_suffix(".json").unlink()
    later = cron()
    assert later == Outcome(0, "", ""), (later, report().out)


def test_an_uploaded_one_that_was_moved_without_its_json_needs_none(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """With --require-json: uploaded, then archived below the same folder without its JSON."""
    call = make_wav(calls / "a.wav", 2_000)
    call.with_suffix(".json").write_text('{"a": "1"}')
    assert cron("--require-json").code == 0
    (calls / "archive").mkdir()
    call.rename(calls / "archive" / "a.wav")
    call.with_suffix(".json").unlink()
    time.sleep(0.05)
    assert cron("--require-json", "0.01") == Outcome(0, "", "")


# --- A name that was used again ---------------------------------------------------------------


def test_a_moved_one_is_its_own_though_its_name_was_used_again(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """rec.wav is moved with its JSON, another rec.wav comes: the first one's JSON still counts."""
    call = make_wav(calls / "rec.wav", 2_000, seed=1)
    call.with_suffix(".json").write_text('{"a": "1"}')
    assert cron("--update-metadata").code == 0
    (calls / "archive").mkdir()
    call.rename(calls / "archive" / "rec1.wav")
    call.with_suffix(".json").rename(calls / "archive" / "rec1.json")
    make_wav(calls / "rec.wav", 2_000, seed=2)
    call.with_suffix(".json").write_text('{"a": "b"}')
    assert cron("--update-metadata").code == 0
    (calls / "archive" / "rec1.json").write_text('{"a": "changed"}')
    outcome = cron("--update-metadata")
    assert (outcome.code, outcome.err, "metadata updated" in outcome.out) == (0, "", True), outcome


def test_a_rejected_one_that_was_moved_is_sent_again_once_its_json_changes(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """Refused, moved with its JSON, its name used again: it is sent once its JSON is corrected."""
    call = make_wav(calls / "rec.wav", 2_000, seed=1)
    call.with_suffix(".json").write_text('{"a": "1"}')
    service.on_call = lambda _: REJECTED
    assert cron().code == 65
    service.on_call = lambda _: None
    (calls / "archive").mkdir()
    call.rename(calls / "archive" / "rec1.wav")
    call.with_suffix(".json").unlink()
    (calls / "archive" / "rec1.json").write_text('{"a": "corrected"}')
    make_wav(calls / "rec.wav", 2_000, seed=2)
    outcome = cron()
    assert (outcome.code, len(service.talks)) == (0, 2), outcome


# --- Said twice, or never ---------------------------------------------------------------------


def test_changed_metadata_are_said_once_a_day_though_the_json_is_rewritten(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """An export rewrites all JSON each hour: a change is not said each hour."""
    call = make_wav(calls / "a.wav", 2_000)
    side = call.with_suffix(".json")
    side.write_text('{"a": "1"}')
    assert cron().code == 0
    side.write_text('{"a": "2"}')
    time.sleep(1)
    assert names(cron("--min-age", "0.8")) == ["a.wav"]
    said = []
    for _ in range(2):
        side.write_text('{"a": "2"}')
        said += names(cron("--min-age", "0.8"))  # Now it is young, but its recording is not.
        time.sleep(1)
        said += names(cron("--min-age", "0.8"))
    assert said == []


def test_a_broken_json_of_an_uploaded_one_is_said_once_a_day_though_it_is_rewritten(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """An export rewrites a JSON that is none each hour: that is not said each hour."""
    call = make_wav(calls / "a.wav", 2_000)
    side = call.with_suffix(".json")
    side.write_text('{"a": "1"}')
    assert cron().code == 0
    said = []
    for _ in range(3):
        side.write_text("no JSON")
        said += names(cron("--min-age", "0.8"))  # The first times, the recording is young as well.
        time.sleep(1)
        said += names(cron("--min-age", "0.8"))
    assert said == ["a.wav"]


def test_nested_folders_do_not_hide_what_lasts(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """With a folder and one in it: what fails for more than an hour is said."""
    sub = calls / "sub"
    sub.mkdir()
    call = make_wav(sub / "a.wav", 600_000)
    number = iter(range(100))

    def grow(_: object) -> None:
        make_wav(call, 600_000, seed=next(number))

    service.on_call = lambda _: At(metadata=grow)
    assert cron("--audio-path", calls, sub, "--jobs", 2) == Outcome(75, "", "")
    ledgers.pass_time(ledger, 2 * HOUR_S)
    assert names(cron("--audio-path", calls, sub, "--jobs", 2)) == ["a.wav"]


# --- A dry run says what the real one does -----------------------------------------------------


def test_a_dry_run_names_a_copy_with_other_metadata(
    hand: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """Two copies with different JSON: the dry run says what the real run says."""
    for name in "ab":
        call = make_wav(calls / f"{name}.wav", 2_000, seed=1)
        call.with_suffix(".json").write_text(json.dumps({"a": name}))
    dry = hand("--dry-run")
    real = hand()
    assert (dry.code, lines(dry)[:1]) == (real.code, lines(real)[:1])


# --- Gone during the run -----------------------------------------------------------------------


def test_an_uploaded_one_that_is_removed_during_a_run_is_no_problem(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """A retention job removes what is uploaded while a run is at work: nobody hears of it."""
    later = make_wav(calls / "b.wav", 2_000)
    assert cron().code == 0
    make_wav(calls / "a.wav", 2_000)
    service.on_call = lambda _: At(metadata=lambda _: later.unlink(missing_ok=True))
    outcome = cron()
    assert (outcome.code, outcome.err) == (0, "")


# --- Two options, links, odd names ---------------------------------------------------------------


@pytest.mark.parametrize("what", ["short", "empty"])
def test_what_is_too_short_needs_no_json(
    cron: Run, service: StandIn, calls: Path, what: str
) -> None:
    """With --require-json and --min-duration: a call that nobody took has no JSON, ever."""
    make_wav(calls / "a.wav", 2_000 if what == "short" else 0)
    time.sleep(0.05)
    assert cron("--require-json", "0.01", "--min-duration", 5) == Outcome(0, "", "")


@pytest.mark.parametrize("way", ["symlink", "folder of links"])
def test_a_recording_with_a_link_before_it_has_its_own_metadata(
    cron: Run, service: StandIn, calls: Path, way: str
) -> None:
    """A recorder keeps a link `current.wav` to its latest recording: its own JSON counts."""
    call = make_wav(calls / "rec.wav", 2_000)
    call.with_suffix(".json").write_text('{"client_name": "own"}')
    if way == "symlink":
        (calls / "current.wav").symlink_to(call)
    else:
        folder = calls / "sorted" / "by-day"
        folder.mkdir(parents=True)
        (calls / "tree").mkdir()
        for path in (call, call.with_suffix(".json")):
            path.rename(calls / "tree" / path.name)
        (folder / "x.wav").symlink_to(calls / "tree" / "rec.wav")
    assert cron().code == 0
    [talk] = service.talks.values()
    assert talk.fields.get("client_name") == "own", talk.fields


def test_a_link_to_a_recording_does_not_keep_it_from_being_uploaded(
    cron: Run, service: StandIn, calls: Path
) -> None:
    """With --require-json: `current.wav` has no JSON, the recording that it leads to has one."""
    call = make_wav(calls / "rec.wav", 2_000)
    call.with_suffix(".json").write_text('{"client_name": "own"}')
    (calls / "current.wav").symlink_to(call)
    cron("--require-json")
    assert len(service.talks) == 1


def test_metadata_that_come_after_the_recording_was_converted_are_said_once(
    cron: Run, service: StandIn, calls: Path
) -> None:
    """A night job turns X.wav into X.mp3, then X.json changes: most likely of the same call."""
    call = make_wav(calls / "a.wav", 2_000)
    call.with_suffix(".json").write_text('{"a": "1"}')
    assert cron("--update-metadata").code == 0
    call.rename(calls / "a.mp3")
    call.with_suffix(".json").write_text('{"a": "2"}')
    outcome = cron("--update-metadata")
    [talk] = service.talks.values()
    assert (outcome.code, names(outcome), talk.fields["a"]) == (0, ["a.mp3"], "1")
    assert "another format now; update its dialogs with --talk-id" in outcome.err
    assert cron("--update-metadata") == Outcome(0, "", "")


@pytest.mark.parametrize("name", [b"caf\xe9.wav", b"a\nb.wav"])
def test_a_problem_of_an_odd_name_is_over_when_its_file_is_gone(
    cron: Run, ledger: Path, calls: Path, name: bytes
) -> None:
    """Said, removed as advised: it is not said each day for ever."""
    make_wav(calls / "keep.wav", 2_000)
    path = os.path.join(os.fsencode(calls), name)
    with open(path, "wb") as file:
        file.write(b"RIFF")
    assert cron().code == 65
    os.unlink(path)
    cron()
    said = []
    for _ in range(3):
        ledgers.pass_time(ledger, DAY_S)
        said += lines(cron())
    assert said == []


def test_a_folder_that_was_renamed_takes_its_problems_with_it(
    upload: Run, ledger: Path, calls: Path, fields: Path
) -> None:
    """The folder and cron's line are renamed: the old path is not said each day for ever."""
    words = ("--ledger", ledger, "--meta-path", fields, "--quiet", "--audio-path")
    make_wav(calls / "keep.wav", 2_000)
    broken(calls / "a.wav")
    assert len(lines(upload(*words, calls))) == 1
    other = calls.parent / "other" / "calls"
    other.parent.mkdir()
    calls.rename(other)
    upload(*words, other)
    ledgers.pass_time(ledger, DAY_S)
    assert len(lines(upload(*words, other))) == 1


def test_a_dry_run_says_that_there_is_no_ffmpeg(
    hand: Run, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --convert: the dry run says what the real run says."""
    (calls / "a.amr").write_bytes(b"#!AMR\n" + bytes(1000))
    monkeypatch.setenv("PATH", "/nowhere")
    assert hand("--convert").code == 78
    assert hand("--convert", "--dry-run").code == 78


def test_a_date_that_no_calendar_has_counts_as_none(cron: Run, ledger: Path, calls: Path) -> None:
    """The 30th of February: the report has the call on the day of its file, not of its upload."""
    call = make_wav(calls / "a.wav", 2_000)
    call.with_suffix(".json").write_text('{"date": "2026-02-30T10:00:00Z"}')
    os.utime(call, (86_400 * 365 * 50,) * 2)
    cron()
    assert ledgers.row(ledger)["recorded_at"].startswith("2019")


# --- Days ------------------------------------------------------------------------------------


def test_what_came_after_the_last_complete_run_is_not_before_since(
    cron: Run, service: StandIn, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key expires for longer than --since: what could not be sent then is sent."""
    make_wav(calls / "before.wav", 2_000)
    assert cron("--since", "7d").code == 0
    for number in range(3):
        make_wav(calls / f"{number}.wav", 2_000, seed=number)
    assert cron("--since", "7d", "--key", "expired").code == 77
    now_s = time.time() + 8 * DAY_S
    monkeypatch.setattr(time, "time", lambda: now_s)
    assert (cron("--since", "7d").code, len(service.talks)) == (0, 4)
    make_wav(calls / "older than that run.wav", 2_000, seed=9)
    assert (cron("--since", "7d").code, len(service.talks)) == (0, 4)


def test_what_waits_is_found(cron: Run, report: Run, calls: Path) -> None:
    """The report's line of the last run: what waits for --min-age was found, too."""
    make_wav(calls / "a.wav")
    cron("--min-age", "1h")
    assert "1 found, 0 uploaded, 1 waiting" in report().out, report().out


def test_an_unknown_one_sent_again_in_another_format_is_not_unknown_any_more(
    cron: Run, report: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """Unknown, converted at night, then --retry-unknown: the report has one call, uploaded."""
    call = make_wav(calls / "a.wav", 2_000)
    service.script.append(Fail(grpc.StatusCode.UNAVAILABLE, "gone"))
    assert cron().code == 76
    make_wav(calls / "a.ogg", 4_000)
    (calls / "a.ogg").rename(calls / "a.mp3")
    call.unlink()
    assert cron().code == 76
    assert cron("--retry-unknown").code == 0
    assert cron().code == 0
    assert report().code == 0, report().out


def test_a_failed_one_that_was_converted_and_uploaded_is_no_failure_any_more(
    cron: Run, report: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """Failed in an outage, a night job turns X.wav into X.mp3, that is uploaded: one call."""
    call = make_wav(calls / "a.wav", 2_000)
    service.on_call = lambda _: NO_QUOTA
    assert cron().code == 75
    service.on_call = lambda _: None
    make_wav(calls / "b.wav", 4_000).rename(calls / "a.mp3")
    call.unlink()
    assert cron().code == 0
    assert len(service.talks) == 1
    assert report().code == 0, report().out


def test_one_that_is_removed_during_a_run_before_it_was_looked_at_is_lost(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """Failed before, then removed while a run uploads another: it is named as lost."""
    later = make_wav(calls / "b.wav", 2_000)
    service.on_call = lambda _: NO_QUOTA
    assert cron().code == 75
    make_wav(calls / "a.wav", 2_000)
    service.on_call = lambda _: At(metadata=lambda _: later.unlink(missing_ok=True))
    outcome = cron()
    assert "gone before it was uploaded" in outcome.err, outcome


def test_a_json_that_is_replaced_during_a_run_is_nothing_to_email(
    cron: Run, service: StandIn, calls: Path
) -> None:
    """An exporter removes and writes a JSON anew: the next run takes it, nobody hears of it."""
    make_wav(calls / "a.wav", 2_000)
    side = make_wav(calls / "b.wav", 2_000).with_suffix(".json")
    side.write_text('{"a": "1"}')
    service.on_call = lambda _: At(metadata=lambda _: side.unlink(missing_ok=True))
    outcome = cron()
    assert (outcome.code, outcome.err) == (75, "")


def test_what_came_while_the_share_was_away_is_not_before_since(
    cron: Run, report: Run, service: StandIn, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is away for longer than --since: a run that finds it empty, or not at all, is no look."""
    make_wav(calls / "before.wav", 2_000)
    assert cron("--since", "7d").code == 0
    share = calls.with_name("away")
    calls.rename(share)
    make_wav(share / "meanwhile.wav", 2_000, seed=1)
    now_s = time.time() + 8 * DAY_S
    monkeypatch.setattr(time, "time", lambda: now_s)
    assert cron("--since", "7d").code == 66
    calls.mkdir()
    assert cron("--since", "7d").code == 66
    assert "none for 24 h looked at everything" in report().out
    calls.rmdir()
    share.rename(calls)
    assert (cron("--since", "7d").code, len(service.talks)) == (0, 2)


@pytest.mark.parametrize("state", ["failed", "rejected"])
def test_what_is_not_uploaded_still_needs_its_json(
    cron: Run, service: StandIn, calls: Path, state: str
) -> None:
    """It was tried with its JSON, which has been removed since, or has not been moved with it."""
    call = make_wav(calls / "a.wav", 2_000)
    call.with_suffix(".json").write_text('{"a": "1"}')
    service.on_call = lambda _: NO_QUOTA if state == "failed" else REJECTED
    assert cron("--require-json").code == (75 if state == "failed" else 65)
    service.on_call = lambda _: None
    call.with_suffix(".json").unlink()
    call.rename(calls / "b.wav")
    time.sleep(0.05)
    outcome = cron("--require-json", "0.01")
    assert (outcome.code, names(outcome), len(service.talks)) == (66, ["b.wav"], 0)


def test_an_update_of_what_somebody_wrote_into_the_ledger(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """Uploaded, says a person; with a wrong ID, or with none."""
    call = make_wav(calls / "a.wav", 2_000)
    call.with_suffix(".json").write_text('{"a": "1"}')
    service.script.append(Fail(grpc.StatusCode.UNAVAILABLE, "gone"))
    assert cron().code == 76
    call.with_suffix(".json").write_text('{"a": "2"}')
    ledgers.change(ledger, state="uploaded", found_id="mistyped", error=None)
    service.script.append(Fail(grpc.StatusCode.NOT_FOUND, "no such talk"))
    assert cron("--update-metadata").code == 75
    ledgers.change(ledger, found_id=None)
    sent = len(service.calls)
    outcome = cron("--update-metadata")
    assert outcome.code == 65 and "the ledger has no dialog ID" in outcome.err
    assert len(service.calls) == sent


def test_of_those_that_failed_the_ones_tried_least_go_first(
    cron: Run, service: StandIn, calls: Path
) -> None:
    """Five that can never be uploaded do not keep out one that failed once in an outage."""
    cut = Fail(grpc.StatusCode.UNAVAILABLE, "cut", after_bytes=1_000)
    works: set[str] = set()

    def step(call: Call) -> Step:
        return None if call.fields["call"] in works else cut

    service.on_call = lambda _: At(metadata=step)
    for name in ("0", "1", "2", "3", "4", "innocent"):
        call = make_wav(calls / f"{name}.wav", 600_000, seed=len(works) + ord(name[0]))
        call.with_suffix(".json").write_text(json.dumps({"call": name}))
        for _ in range(4 if name == "4" else 1):
            assert cron().code == 75
    works.add("innocent")
    assert cron().code == 75
    assert [talk.fields["call"] for talk in service.talks.values()] == ["innocent"]


def test_a_folder_that_is_removed_during_a_search_is_no_problem(calls: Path) -> None:
    """A retention job; a long run searches while it uploads."""
    (calls / "z").mkdir()
    make_wav(calls / "a.wav", 2_000)
    search = upload_grpc.find_in_folder(str(calls), (".wav",))
    assert next(search).paths == [str(calls / "a.wav")]
    (calls / "z").rmdir()
    assert list(search) == []


def test_what_has_new_ctimes_is_not_said_to_be_not_tried(
    hand: Run, service: StandIn, calls: Path
) -> None:
    """A backup by hard links, and an outage."""
    paths = [make_wav(calls / f"x{number}.wav", 2_000, seed=number) for number in range(9)]
    assert hand().code == 0
    for path in paths:
        path.chmod(0o600)
    for number in range(5):
        make_wav(calls / f"a{number}.wav", 2_000, seed=100 + number)
    service.on_call = lambda _: NO_QUOTA
    assert "not tried" not in hand("--jobs", 1).err.replace(", 0 not tried", "")


# --- What must not follow from the above --------------------------------------------------------


@pytest.mark.parametrize("seeds", [(1, 2), (2, 1)])
def test_a_reused_name_that_is_converted_updates_no_dialog_of_the_first(
    cron: Run, service: StandIn, calls: Path, seeds: tuple[int, int]
) -> None:
    call = calls / "rec.wav"
    for seed, client in zip(seeds, ("first", "second"), strict=True):
        make_wav(call, 2_000 + 4 * seed, seed=seed)
        call.with_suffix(".json").write_text(json.dumps({"client_name": client}))
        assert cron("--update-metadata").code == 0
    call.rename(calls / "rec.mp3")
    assert cron("--update-metadata") == Outcome(0, "", "")
    assert {talk.fields["client_name"] for talk in service.talks.values()} == {"first", "second"}


def test_a_conversion_that_stays_where_the_original_was_is_no_new_call(
    cron: Run, service: StandIn, calls: Path
) -> None:
    call = make_wav(calls / "a.wav", 2_000)
    assert cron().code == 0
    (calls / "archive").mkdir()
    call.rename(calls / "archive" / "a.wav")
    make_wav(calls / "z.wav", 3_000).rename(calls / "a.mp3")
    for _ in range(3):
        assert cron().code == 0
    assert len(service.talks) == 1


def test_what_the_first_run_left_out_stays_out(
    cron: Run, service: StandIn, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wav(calls / "old.wav", 2_000).with_suffix(".json").write_text("{}")
    now_s = time.time() + DAY_S
    monkeypatch.setattr(time, "time", lambda: now_s)
    for _ in range(2):
        assert cron("--since", "today", "--require-json", "2d") == Outcome(0, "", "")
    assert service.calls == []


def test_a_share_that_dies_during_a_run_is_said(
    cron: Run, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As sshfs does: its files are neither there nor gone."""
    for name in "abc":
        make_wav(calls / f"{name}.wav", 2_000)

    def dying(stat: Any) -> Any:
        def look(path: Any, *more: Any, **options: Any) -> Any:
            if str(path).endswith(("b.wav", "c.wav")):
                raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
            return stat(path, *more, **options)

        return look

    monkeypatch.setattr(os, "stat", dying(os.stat))
    monkeypatch.setattr(os, "lstat", dying(os.lstat))
    outcome = cron()
    assert (outcome.code, names(outcome)) == (66, ["b.wav", "c.wav"])


@pytest.mark.parametrize("code", [65, 76])
def test_the_report_has_calls_that_only_their_endings_tell_apart(
    upload: Run, report: Run, service: StandIn, ledger: Path, calls: Path, code: int
) -> None:
    paths = [calls / "rec.103000", calls / "rec.104500"]
    for number, path in enumerate(paths):
        make_wav(path, 2_000, seed=number)
    lost = Fail(grpc.StatusCode.UNAVAILABLE, "gone")
    service.script.append(REJECTED if code == 65 else lost)
    words = ("--ledger", ledger, "--retries", 0, "--jobs", 1, "--audio-path", *paths)
    assert upload(*words).code == code
    outcome = report("--format", "csv")
    assert outcome.code == code and all(path.name in outcome.out for path in paths)


def test_another_file_of_the_same_size_and_time_is_no_other_name_of_a_lost_one(
    cron: Run, service: StandIn, calls: Path
) -> None:
    """Two legs of a call, with times in whole seconds, as FTP and FAT have them."""
    paths = [make_wav(calls / f"1-{leg}.wav", 2_000, seed=ord(leg[0])) for leg in ("in", "out")]
    for path in paths:
        os.utime(path, (1_000, 1_000))
    service.script.append(NO_QUOTA)
    assert cron().code == 75
    paths[0].unlink()
    outcome = cron()
    assert (outcome.code, names(outcome)) == (66, ["1-in.wav"])


@pytest.mark.parametrize("how", ["rotated", "a link to the latest"])
def test_what_failed_and_is_uploaded_by_another_name_is_not_said_to_be_replaced(
    cron: Run, service: StandIn, calls: Path, how: str
) -> None:
    latest, kept = calls / "current.wav", calls / "rec.1.wav"
    if how == "rotated":
        make_wav(latest, 2_000, seed=1)
    else:
        latest.symlink_to(make_wav(kept, 2_000, seed=1))
    service.on_call = lambda _: NO_QUOTA
    assert cron().code == 75
    service.on_call = lambda _: None
    if how == "rotated":
        latest.rename(kept)
        make_wav(latest, 4_000, seed=2)
    else:
        latest.unlink()
        latest.symlink_to(make_wav(calls / "rec.2.wav", 4_000, seed=2))
    outcome = cron()
    assert (outcome.code, outcome.err, len(service.talks)) == (0, "", 2)


def test_a_recording_that_changed_and_is_young_then_is_not_said_to_be_replaced(
    cron: Run, service: StandIn, calls: Path
) -> None:
    call = make_wav(calls / "a.wav", 600_000)
    service.on_call = lambda _: At(metadata=lambda _: grow(call))
    assert cron().code == 75
    assert cron("--min-age", "1h") == Outcome(0, "", "")
    service.on_call = lambda _: None
    outcome = cron()
    assert (outcome.code, outcome.err, len(service.talks)) == (0, "", 1)


def grow(path: Path) -> None:
    make_wav(path, 700_000)


def test_a_recording_that_only_grew_is_not_said_to_be_replaced(
    cron: Run, service: StandIn, calls: Path
) -> None:
    call = calls / "a.mp3"
    call.write_bytes(encoders.mp3())
    service.on_call = lambda _: NO_QUOTA
    assert cron().code == 75
    call.write_bytes(encoders.mp3() * 2)
    service.on_call = lambda _: None
    outcome = cron()
    assert (outcome.code, outcome.err, len(service.talks)) == (0, "", 1)


def test_what_waits_under_an_odd_name_is_not_lost(cron: Run, service: StandIn, calls: Path) -> None:
    """Refused, and repaired in place: with --min-age it is young."""
    path = Path(os.fsdecode(os.fsencode(calls) + b"/caf\xe9.wav"))
    make_wav(path, 2_000, seed=1)
    service.script.append(REJECTED)
    assert cron().code == 65
    make_wav(path, 3_000, seed=1)
    assert cron("--min-age", 300) == Outcome(0, "", "")


def test_what_is_named_already_is_no_old_file_that_nobody_knows(
    cron: Run, report: Run, service: StandIn, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its JSON comes after --since: it stays in the report, and is uploaded then."""
    call = make_wav(calls / "a.wav", 2_000)
    words = ("--since", "7d", "--require-json", "1h")
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s)
    for days in (0, 1, 8):
        now_s += days * DAY_S
        assert cron(*words).code == (66 if days else 0)
    assert report().code == 66
    call.with_suffix(".json").write_text('{"client_name": "own"}')
    assert (cron(*words).code, len(service.talks)) == (0, 1)


def test_what_is_removed_as_advised_is_not_lost(cron: Run, calls: Path) -> None:
    make_wav(calls / "b.wav", 2_000)
    (calls / "a.wav").touch()
    outcome = cron()
    assert (outcome.code, names(outcome)) == (65, ["a.wav"]) and "or remove it" in outcome.err
    (calls / "a.wav").unlink()
    assert cron() == Outcome(0, "", "")


def test_an_error_that_was_met_before_an_outage_is_over(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """It is not said on the next day, as what is wrong has been repaired."""
    call = make_wav(calls / "a.wav", 2_000)
    call.with_suffix(".json").write_text("no JSON")
    assert names(cron()) == ["a.wav"]
    call.with_suffix(".json").write_text("{}")
    service.on_call = lambda _: NO_QUOTA
    assert cron() == Outcome(75, "", "")
    ledgers.pass_time(ledger, DAY_S)
    assert "not JSON" not in cron().err


def test_a_touched_file_that_was_sent_goes_before_another_format_of_it(
    cron: Run, service: StandIn, calls: Path
) -> None:
    """Or the call would be there twice."""
    call = make_wav(calls / "a.wav", 2_000)
    call.rename(calls / "a.mp3")
    (calls / "a.mp3").write_bytes(encoders.mp3())
    assert cron().code == 0
    make_wav(calls / "a.wav", 3_000)
    os.utime(calls / "a.mp3", (1_000, 1_000))
    for _ in range(2):
        assert cron() == Outcome(0, "", "")
    assert len(service.talks) == 1


# --- Links, copies and formats of what is unknown ------------------------------------------------


def test_a_recording_is_known_by_its_own_name_though_a_link_comes_first(
    cron: Run, service: StandIn, calls: Path
) -> None:
    """`current.wav` leads to the latest recording, which a night job turns into an MP3."""
    (calls / "day").mkdir()
    call = make_wav(calls / "day" / "rec.wav", 2_000)
    (calls / "current.wav").symlink_to(call)
    assert cron().out == f"{call}: Dialog ID: {next(iter(service.talks))}\n"
    make_wav(calls / "keep.wav", 4_000).rename(call.with_suffix(".mp3"))
    call.unlink()
    (calls / "current.wav").unlink()
    assert cron() == Outcome(0, "", "")
    assert len(service.talks) == 1


@pytest.mark.parametrize("step", [NO_QUOTA, REJECTED], ids=["failed", "rejected"])
def test_a_call_that_is_unknown_in_another_format_is_one_call(
    cron: Run, report: Run, service: StandIn, calls: Path, step: Step
) -> None:
    """Not uploaded as WAV, then converted, and unknown as MP3: no run sends the WAV again."""
    call = make_wav(calls / "a.wav", 2_000)
    service.script.append(step)
    assert cron().code in (75, 65)
    make_wav(calls / "keep.wav", 4_000).rename(calls / "a.mp3")
    call.unlink()
    service.script.append(Fail(grpc.StatusCode.UNAVAILABLE, "gone"))
    assert cron().code == 76
    out = report("--format", "json").out
    assert [json.loads(line)["outcome"] for line in out.splitlines()] == ["unknown"]
    assert (report().code, report().out.count("a.wav")) == (76, 0)


def test_a_copy_of_an_unknown_one_is_unknown_and_not_lost_when_both_are_gone(
    cron: Run, report: Run, service: StandIn, calls: Path
) -> None:
    make_wav(calls / "keep.wav", 2_000)
    assert cron().code == 0
    paths = [make_wav(calls / f"{name}.wav", 2_000, seed=1) for name in "ab"]
    service.script.append(Fail(grpc.StatusCode.UNAVAILABLE, "gone"))
    assert (cron().code, cron().code) == (76, 76)
    out = report("--format", "json").out
    outcomes = sorted(json.loads(line)["outcome"] for line in out.splitlines())
    assert outcomes == ["unknown", "unknown", "uploaded"]
    for path in paths:
        path.unlink()
    assert cron() == Outcome(0, "", "")
    assert (report().code, report().out.count("b.wav")) == (76, 0)


def test_a_hard_link_without_json_does_not_keep_its_recording_from_being_uploaded(
    cron: Run, service: StandIn, calls: Path
) -> None:
    """By day and by agent, as hard links: one of the names has the JSON."""
    call = make_wav(calls / "b.wav", 2_000)
    os.link(call, calls / "a.wav")
    call.with_suffix(".json").write_text('{"a": "1"}')
    assert cron("--require-json").code == 0
    assert [talk.fields.get("a") for talk in service.talks.values()] == ["1"]
    time.sleep(0.05)
    assert cron("--require-json", "0.01") == Outcome(0, "", "")


def test_a_refused_one_that_is_sent_by_another_name_and_with_another_time_is_not_lost(
    cron: Run, service: StandIn, calls: Path
) -> None:
    """Refused, then copied to its right name by a tool that keeps no times."""
    call = make_wav(calls / "a.wav", 2_000)
    service.script.append(REJECTED)
    assert cron().code == 65
    (calls / "b.wav").write_bytes(call.read_bytes())
    call.unlink()
    outcome = cron()
    assert (outcome.code, outcome.err, len(service.talks)) == (0, "", 1)
