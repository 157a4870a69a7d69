"""What an operator hears: an email when a person is needed, and only then.

Each test is of a sentence of the contract. Time passes by rewriting the times in the ledger.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import ledgers
import pytest
from conftest import (
    AS_NOBODY_SPECIAL,
    Outcome,
    Run,
    Waits,
    arguments,
    before_command,
    begin_ledger,
    closed_port,
    make_wav,
    sha256,
    start,
)
from stand_in import At, Call, Fail, StandIn, Step

import upload_grpc

pytestmark = pytest.mark.usefixtures("waits")

HOUR_S = 3600
DAY_S = 24 * HOUR_S
REJECTED = Fail(grpc.StatusCode.INVALID_ARGUMENT, "not this one")
NO_QUOTA = Fail(grpc.StatusCode.RESOURCE_EXHAUSTED)
LOST_ANSWER = Fail(grpc.StatusCode.UNAVAILABLE, "gone", store=True)


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    folder = tmp_path / "calls"
    folder.mkdir()
    return folder


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    path = tmp_path / "fields.json"
    path.write_text('{"language": "ru-RU"}')
    return path


@pytest.fixture
def hand(upload: Run, ledger: Path, calls: Path, fields: Path) -> Run:
    """Run it by hand: without --quiet."""
    words = ("--ledger", ledger, "--retries", 0, "--jobs", 1, "--meta-path", fields)
    return lambda *more: upload(*words, "--audio-path", calls, *more)


@pytest.fixture
def cron(hand: Run) -> Run:
    """Run it as cron does."""
    return lambda *more: hand(*more, "--quiet")


@pytest.fixture
def zone() -> Iterator[Callable[[float], None]]:
    """Return what sets the zone so that it is so many hours after midnight."""
    before = os.environ.get("TZ")

    def set_zone(hours: float) -> None:
        now = datetime.datetime.now(datetime.timezone.utc)
        ahead_s = round(hours * HOUR_S - (now.hour * HOUR_S + now.minute * 60 + now.second))
        hour, rest = divmod(abs(ahead_s), HOUR_S)
        sign = "-" if ahead_s > 0 else "+"
        os.environ["TZ"] = f"XXX{sign}{hour:02}:{rest // 60:02}:{rest % 60:02}"
        time.tzset()

    yield set_zone
    os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)
    time.tzset()


def lines(outcome: Outcome) -> list[str]:
    """Return what was said, with file names for paths."""
    words = [line.removeprefix("upload_grpc: ") for line in outcome.err.splitlines()]
    return [re.sub(r"^/\S*/", "", line) for line in words]


def names(outcome: Outcome) -> list[str]:
    """Return the names of the files of which something was said."""
    return [line.partition(": ")[0] for line in lines(outcome)]


def broken(path: Path) -> Path:
    """Make a file that is refused before anything is sent."""
    path.write_bytes(b"RIFF")
    return path


# --- New is what has another path, exit code or cause, never another text ------------------


def test_a_problem_is_said_once_whatever_its_text(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    call = make_wav(calls / "a.wav", 2_000)
    service.on_call = lambda call: Fail(grpc.StatusCode.INVALID_ARGUMENT, f"at {time.time()}")
    first = cron()
    assert (first.code, names(first)) == (65, ["a.wav"])
    assert cron() == Outcome(65, "", "")
    os.utime(call, (1, 1))  # Sent again: another request, another text.
    assert cron() == Outcome(65, "", "")
    assert len(service.calls) == 2
    [problem] = ledgers.problems(ledger)
    assert problem["cause"] == "refused", "the first cause is kept"


def test_another_path_or_cause_is_new(cron: Run, service: StandIn, calls: Path) -> None:
    service.on_call = lambda _: REJECTED
    broken(calls / "a.wav")
    assert names(cron()) == ["a.wav"]
    broken(calls / "b.wav")
    assert names(cron()) == ["b.wav"]
    make_wav(calls / "a.wav", 2_000)
    [line] = lines(cron())
    assert line.startswith("a.wav: ") and "refused" in line
    assert cron().err == ""


def test_what_a_recording_met_before_is_over_when_it_meets_something_else(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    service.on_call = lambda _: REJECTED
    broken(calls / "a.wav")
    cron()
    make_wav(calls / "a.wav", 2_000)
    cron()
    assert ledgers.causes(ledger) == [("a.wav", "refused")]


# --- Once, and again on each day that it lasts ---------------------------------------------


def test_what_lasts_is_said_again_together_in_the_first_run_of_a_day(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    service.on_call = lambda _: REJECTED
    broken(calls / "a.wav")
    make_wav(calls / "b.wav", 2_000)
    assert names(cron()) == ["a.wav", "b.wav"]
    for _ in range(2):
        ledgers.pass_time(ledger, DAY_S)
        again = cron()
        assert (again.code, names(again)) == (65, ["a.wav", "b.wav"])
        assert "it was rejected before" in again.err and "--retry-rejected" in again.err
        assert cron() == Outcome(65, "", "")


def test_what_a_run_did_not_come_to_is_said_again_too(cron: Run, ledger: Path, calls: Path) -> None:
    """Here the first recordings end the run."""
    broken(calls / "z.wav")
    cron()
    for number in range(5):
        make_wav(calls / f"{number}.wav", 2_000)
    ledgers.pass_time(ledger, DAY_S)
    away = ("--endpoint", f"localhost:{closed_port()}")
    outcome = cron(*away)
    assert (outcome.code, names(outcome)) == (75, ["z.wav"])


def test_a_day_is_the_local_one(
    cron: Run, ledger: Path, calls: Path, zone: Callable[[float], None]
) -> None:
    broken(calls / "a.wav")
    zone(12)
    cron()
    ledgers.pass_time(ledger, HOUR_S)
    assert cron().err == ""  # 11:00 and 12:00.
    zone(0.5)
    assert names(cron()) == ["a.wav"]  # 23:30 and 00:30.
    assert cron().err == ""


def test_a_clock_that_jumped_says_it_once_more(cron: Run, ledger: Path, calls: Path) -> None:
    broken(calls / "a.wav")
    cron()
    for year in (2040, 1970):
        ledgers.change_problems(ledger, said_at=f"{year}-01-01T00:00:00.000Z")
        assert names(cron()) == ["a.wav"]
        assert cron().err == ""


def test_summer_time_makes_no_day_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The night to 2026-03-29 in Berlin has no 02:30, that to 2026-10-25 has two."""
    real = datetime.date
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    for said_at, today, is_due in (
        ("2026-03-28T22:59:00.000Z", (2026, 3, 29), True),
        ("2026-03-28T23:01:00.000Z", (2026, 3, 29), False),
        ("2026-10-24T21:59:00.000Z", (2026, 10, 25), True),
        ("2026-10-25T22:59:00.000Z", (2026, 10, 25), False),
    ):
        day = type(
            "Day", (datetime.date,), {"today": staticmethod(lambda today=today: real(*today))}
        )
        problem = upload_grpc.OpenProblem("", "", said_at, None)
        with monkeypatch.context() as patch:
            patch.setattr(datetime, "date", day)
            assert upload_grpc.is_of_earlier_day(problem) == is_due
    monkeypatch.undo()
    time.tzset()


# --- Without --quiet, or without a ledger --------------------------------------------------


def test_without_quiet_all_is_said_each_time_and_nothing_is_marked(
    hand: Run, cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    for number in range(12):
        broken(calls / f"{number:02}.wav")
    for _ in range(2):
        *said, summary = lines(hand())
        assert len(said) == 12 and "12 failed" in summary
    assert {each["said_at"] for each in ledgers.problems(ledger)} == {None}
    assert len(lines(cron())) == 11
    # Nothing of what other runs have found.
    ledgers.pass_time(ledger, DAY_S)
    other = make_wav(calls.parent / "other.wav", 2_000)
    words = ("--ledger", ledger, "--meta-path", calls.parent / "fields.json", "--audio-path", other)
    with start(*arguments(service, *words)) as process:
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")


def test_without_a_ledger_all_is_said_each_time(upload: Run, calls: Path, fields: Path) -> None:
    for number in range(12):
        broken(calls / f"{number:02}.wav")
    make_wav(calls / "z.wav", 2_000)
    away = ("--endpoint", f"localhost:{closed_port()}", "--retries", 0, "--meta-path", fields)
    for _ in range(2):
        said = lines(upload("--quiet", "--audio-path", calls, *away))
        assert len(said) == 12
        assert "no connection" in said[10]
        assert (
            said[11].endswith("and 2 more (truncated): leave out --quiet") or "2 more" in said[11]
        )
        assert "leave out --quiet" in said[11]


@pytest.mark.parametrize("number", [10, 11])
def test_one_cause_is_at_most_ten_lines(
    cron: Run, service: StandIn, ledger: Path, calls: Path, number: int
) -> None:
    for each in range(number):
        broken(calls / f"{each:02}.wav")
        make_wav(calls / f"x{each:02}.wav", 2_000, seed=each)
    service.on_call = lambda _: REJECTED
    for _ in range(2):
        said = lines(cron())
        more = [line for line in said if "more (" in line]
        assert len(said) - len(more) == 20
        assert len(more) == (0 if number == 10 else 2)
        assert all(line.startswith("and 1 more (") for line in more)
        assert all(line.endswith("): --report") for line in more)
        assert cron().err == ""
        ledgers.pass_time(ledger, DAY_S)


# --- An outage is a problem of the run ------------------------------------------------------


@pytest.mark.parametrize("count", [1, 8], ids=["short run", "the breaker stops it"])
def test_an_outage_is_said_once_it_has_lasted_an_hour(
    cron: Run, hand: Run, service: StandIn, ledger: Path, calls: Path, count: int
) -> None:
    for number in range(count):
        make_wav(calls / f"{number}.wav", 2_000)
    away = ("--endpoint", f"localhost:{closed_port()}")
    for _ in range(3):
        assert cron(*away) == Outcome(75, "", "")
    assert "no connection to the service" in hand(*away).err
    [outage] = ledgers.problems(ledger)
    assert (outage["path"], outage["cause"]) == ("", "outage")
    assert outage["mtime_ns"] is None, "--report --since goes by when it was seen"
    ledgers.pass_time(ledger, HOUR_S - 60)
    assert cron(*away) == Outcome(75, "", "")
    ledgers.pass_time(ledger, 60)
    outcome = cron(*away)
    [line] = lines(outcome)
    assert line.startswith("no upload has worked since 2") and "no connection" in line
    assert cron(*away) == Outcome(75, "", "")
    ledgers.pass_time(ledger, DAY_S)
    assert len(lines(cron(*away))) == 1
    assert cron(*away) == Outcome(75, "", "")
    # Gone with the next upload that works; the next outage is another.
    assert cron().code == 0
    assert ledgers.problems(ledger) == []
    make_wav(calls / "new.wav", 2_000)
    assert cron(*away) == Outcome(75, "", "")


def test_a_clock_that_jumped_does_not_hide_an_outage(cron: Run, ledger: Path, calls: Path) -> None:
    make_wav(calls / "a.wav", 2_000)
    away = ("--endpoint", f"localhost:{closed_port()}")
    cron(*away)
    ledgers.change_problems(ledger, since="2040-01-01T00:00:00.000Z")
    assert len(lines(cron(*away))) == 1


def test_one_that_fails_while_others_are_uploaded_is_said_after_a_day(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """It is no outage, though each failure looks like one."""
    bad = make_wav(calls / "bad.wav", 2_000)
    bad.with_suffix(".json").write_text('{"client_name": "bad"}')

    def step(_: Call) -> Step:
        return At(metadata=lambda call: NO_QUOTA if "client_name" in call.fields else None)

    service.on_call = step
    for number in range(3):
        make_wav(calls / f"{number}.wav", 2_000)
        assert (cron().code, ledgers.causes(ledger)) == (75, [("bad.wav", "undelivered")])
        ledgers.pass_time(ledger, 7 * HOUR_S)
    ledgers.pass_time(ledger, 4 * HOUR_S)
    make_wav(calls / "3.wav", 2_000)
    outcome = cron()
    assert names(outcome) == ["bad.wav"] and "quota" in outcome.err
    service.on_call = lambda _: None
    assert cron().code == 0
    assert ledgers.problems(ledger) == []


def test_one_that_fails_is_still_the_same_problem_after_an_outage(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    bad = make_wav(calls / "bad.wav", 2_000)
    bad.with_suffix(".json").write_text('{"client_name": "bad"}')
    make_wav(calls / "good.wav", 4_000)
    service.on_call = lambda _: At(
        metadata=lambda call: NO_QUOTA if "client_name" in call.fields else None
    )
    cron()
    [before] = ledgers.problems(ledger)
    assert cron().code == 75
    undelivered = {problem["cause"]: problem for problem in ledgers.problems(ledger)}
    assert undelivered["undelivered"]["since"] == before["since"]


def test_what_changed_under_way_is_said_once_it_has_lasted_an_hour(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    call = make_wav(calls / "a.wav", 600_000)

    def grow(_: Call) -> Step | None:
        with call.open("ab") as file:
            file.write(b"xx")
        return None

    service.on_call = lambda _: At(metadata=grow)
    assert cron() == Outcome(75, "", "")
    make_wav(call, 600_000)
    ledgers.pass_time(ledger, HOUR_S)
    assert names(cron()) == ["a.wav"]


# --- What is unknown --------------------------------------------------------------------------

LOOKUP = ("--lookup-key", "upload_sha256", "--organization-id", "o", "--space-id", "s")


def test_an_unknown_one_is_said_at_once(cron: Run, service: StandIn, calls: Path) -> None:
    make_wav(calls / "a.wav", 2_000)
    service.script.append(LOST_ANSWER)
    outcome = cron()
    assert (outcome.code, names(outcome)) == (76, ["a.wav"])
    assert cron() == Outcome(76, "", "")


def test_with_a_lookup_key_it_is_said_after_a_day(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    make_wav(calls / "a.wav", 2_000)
    service.on_call = lambda call: LOST_ANSWER if call.method == "UploadAsStream" else NO_QUOTA
    assert cron(*LOOKUP) == Outcome(76, "", "")
    ledgers.pass_time(ledger, DAY_S - 600)
    said = cron(*LOOKUP)
    assert said.code == 76 and "a.wav" not in said.err
    ledgers.pass_time(ledger, 600)
    assert "a.wav" in names(cron(*LOOKUP))


def test_with_a_lookup_key_it_is_said_when_it_is_proved_missing(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    make_wav(calls / "a.wav", 2_000)
    service.script.append(Fail(grpc.StatusCode.UNAVAILABLE, "gone"))
    assert cron(*LOOKUP) == Outcome(76, "", "")
    ledgers.change(ledger, is_missing=1, looked_up_at=upload_grpc.utc())
    [line] = lines(cron(*LOOKUP))
    assert "not in the service" in line and "--retry-unknown" in line
    assert cron(*LOOKUP) == Outcome(76, "", "")


# --- Folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["empty", "gone"])
def test_a_share_that_is_not_mounted(
    cron: Run, service: StandIn, ledger: Path, calls: Path, way: str
) -> None:
    """Nothing that was in it is lost."""
    make_wav(calls / "a.wav", 2_000)
    make_wav(calls / "b.wav", 2_000, seed=1)
    broken(calls / "c.wav")
    service.script += [None, REJECTED]
    cron()
    away = calls.rename(calls.with_name("away"))
    if way == "empty":
        calls.mkdir()
    first = cron()
    [line] = lines(first)
    assert first.code == 66 and line.startswith("calls: ")
    assert ("is it mounted?" if way == "empty" else "No such file") in line
    assert cron() == Outcome(66, "", "")
    if way == "empty":
        calls.rmdir()
    away.rename(calls)
    assert cron() == Outcome(65, "", "")
    assert [name for name, _ in ledgers.causes(ledger)] == ["b.wav", "c.wav"]


def test_a_folder_that_never_held_any_is_no_problem(cron: Run, ledger: Path, calls: Path) -> None:
    assert cron() == Outcome(0, "", "")
    (calls / "below").mkdir()
    call = make_wav(calls / "below/a.wav", 2_000)
    assert cron().code == 0
    call.unlink()
    assert cron() == Outcome(0, "", "")  # Not empty: another folder is in it.
    assert ledgers.problems(ledger) == []


def test_a_folder_that_cannot_be_read_is_over_once_it_can(
    service: StandIn, ledger: Path, calls: Path, fields: Path
) -> None:
    make_wav(calls / "a.wav", 2_000)
    (calls / "below").mkdir()
    begin_ledger(str(ledger))
    words = arguments(
        service, "--quiet", "--ledger", ledger, "--meta-path", fields, "--audio-path", calls
    )

    def run() -> Outcome:
        with start(*words, under=before_command(AS_NOBODY_SPECIAL)) as process:
            out, err = process.communicate(timeout=30)
        return Outcome(process.returncode, out, err)

    for folder in (calls / "below", calls):
        folder.chmod(0)
        try:
            outcome = run()
            assert (outcome.code, names(outcome)) == (66, [folder.name])
            assert run() == Outcome(66, "", "")
        finally:
            folder.chmod(0o755)
        assert (run().code, ledgers.problems(ledger)) == (0, [])


# --- What is over, and what is lost -------------------------------------------------------------


def test_a_row_goes_when_the_recording_is_uploaded_or_left_out(
    cron: Run, ledger: Path, calls: Path
) -> None:
    call = broken(calls / "a.wav")
    cron()
    make_wav(call, 2_000)
    assert cron().code == 0
    assert ledgers.problems(ledger) == []
    other = calls / "b.wav"
    other.write_bytes(b"")
    assert names(cron()) == ["b.wav"]
    for option in (("--min-duration", 1), ("--min-age", "1h")):
        assert cron(*option).code == 0
        assert ledgers.problems(ledger) == []
        assert names(cron()) == ["b.wav"], "a new one"


@pytest.mark.parametrize("kind", ["broken", "rejected", "failed"])
def test_what_vanished_before_it_was_uploaded_is_said_once_more_as_lost(
    cron: Run, service: StandIn, ledger: Path, calls: Path, kind: str
) -> None:
    make_wav(calls / "stays.wav", 2_000)
    cron()
    call = broken(calls / "a.wav") if kind == "broken" else make_wav(calls / "a.wav", 4_000)
    service.script.append(NO_QUOTA if kind == "failed" else REJECTED)
    cron()
    call.unlink()
    outcome = cron()
    [line] = lines(outcome)
    assert outcome.code == 66
    assert line.startswith("a.wav: gone before it was uploaded; ") and "earlier: " in line
    assert cron() == Outcome(0, "", ""), "66 in the run that finds it"
    ledgers.pass_time(ledger, DAY_S)
    assert cron() == Outcome(0, "", ""), "once"
    assert ("a.wav", "lost") in ledgers.causes(ledger), "it stays in the report"
    # Restored, and uploaded.
    make_wav(call, 4_000)
    service.script.clear()
    assert cron("--retry-rejected").code == 0
    assert ("a.wav", "lost") not in ledgers.causes(ledger)


@pytest.mark.parametrize("kind", ["broken", "rejected", "failed"])
def test_what_is_lost_is_over_with_the_rows_that_its_line_names(
    cron: Run, service: StandIn, ledger: Path, calls: Path, kind: str
) -> None:
    make_wav(calls / "stays.wav", 2_000)
    cron()
    call = broken(calls / "a.wav") if kind == "broken" else make_wav(calls / "a.wav", 4_000)
    service.script.append(NO_QUOTA if kind == "failed" else REJECTED)
    cron()
    call.unlink()
    [line] = lines(cron())
    tables = "problems" if kind == "broken" else "problems and recordings"
    assert f"restore it, or delete its row from the ledger's {tables} (" in line
    for table in tables.split(" and "):
        ledgers.delete_path(ledger, table, call)
    assert cron() == Outcome(0, "", "")
    assert "a.wav" not in [name for name, _ in ledgers.causes(ledger)]


def test_lost_is_said_by_a_quiet_run_though_another_run_found_it(
    cron: Run, hand: Run, ledger: Path, calls: Path
) -> None:
    make_wav(calls / "stays.wav", 2_000)
    call = broken(calls / "a.wav")
    cron()
    call.unlink()
    assert "gone before" in hand().err
    assert names(cron()) == ["a.wav"]
    assert cron().err == ""


def test_the_folder_of_what_is_lost_may_be_gone_too(cron: Run, ledger: Path, calls: Path) -> None:
    make_wav(calls / "stays.wav", 2_000)
    (calls / "2026-03-17").mkdir()
    call = broken(calls / "2026-03-17/a.wav")
    cron()
    call.unlink()
    assert cron() == Outcome(0, "", ""), "its folder is empty, as of a share"
    call.parent.rmdir()
    assert names(cron()) == ["a.wav"]


def test_what_was_moved_or_never_there_is_not_lost(
    cron: Run, hand: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    make_wav(calls / "stays.wav", 2_000)
    cron()
    service.on_call = lambda _: REJECTED
    moved = [broken(calls / "a.wav"), make_wav(calls / "b.wav", 4_000)]
    assert hand(calls / "typing-error.wav").code == 65
    cron()
    for path in moved:
        path.rename(calls / f"moved-{path.name}")
    outcome = cron()
    assert (outcome.code, names(outcome)) == (65, ["moved-a.wav", "moved-b.wav"])
    assert [name for name, _ in ledgers.causes(ledger)] == ["moved-a.wav", "moved-b.wav"]
    assert cron() == Outcome(65, "", "")


def test_what_was_uploaded_is_never_lost(
    cron: Run, service: StandIn, ledger: Path, calls: Path
) -> None:
    """A copy that was moved away, a JSON that changed, an unknown one: then the file goes."""
    make_wav(calls / "stays.wav", 2_000)
    for name, client in (("a", "one"), ("copy", "two")):
        make_wav(calls / f"{name}.wav", 4_000, seed=1)
        (calls / f"{name}.json").write_text(f'{{"client_name": "{client}"}}')
    assert names(cron()) == ["copy.wav"]
    (calls / "a.json").write_text('{"client_name": "three"}')
    assert names(cron()) == ["a.wav"]
    (calls / "copy.wav").unlink()
    assert cron() == Outcome(0, "", "")
    assert ledgers.causes(ledger) == [("a.wav", "metadata-changed")]
    (calls / "a.wav").unlink()
    assert cron() == Outcome(0, "", "")
    assert ledgers.problems(ledger) == []
    unknown = make_wav(calls / "unknown.wav", 2_000)
    service.script.append(LOST_ANSWER)
    assert names(cron()) == ["unknown.wav"]
    unknown.unlink()
    assert cron() == Outcome(0, "", "")
    ledgers.pass_time(ledger, DAY_S)
    assert names(cron()) == ["unknown.wav"], "somebody still has to look"
    ledgers.change(ledger, {"state": "unknown"}, state="uploaded", talk_id="seen")
    assert cron() == Outcome(0, "", "")
    assert ledgers.problems(ledger) == []


def test_runs_over_other_folders_leave_it(
    cron: Run, upload: Run, ledger: Path, calls: Path, fields: Path, tmp_path: Path
) -> None:
    broken(calls / "a.wav")
    cron()
    other = tmp_path / "other"
    other.mkdir()
    make_wav(other / "b.wav", 2_000)
    words = ("--quiet", "--ledger", ledger, "--meta-path", fields, "--audio-path", other)
    assert upload(*words).code == 0
    assert [name for name, _ in ledgers.causes(ledger)] == ["a.wav"]
    assert cron() == Outcome(65, "", "")


# --- Warnings -----------------------------------------------------------------------------------


def test_warnings_go_the_same_way(upload: Run, ledger: Path, calls: Path, service: StandIn) -> None:
    """Of placeholders: each run uploads other recordings, but it is one problem."""
    words = ("--quiet", "--ledger", ledger, "--audio-path", calls)
    for number in range(3):
        make_wav(calls / f"{number}.wav", 2_000)
        outcome = upload(*words)
        assert outcome.code == 0
        assert [("placeholder" in line) for line in lines(outcome)] == ([] if number else [True])
    ledgers.pass_time(ledger, DAY_S)
    assert len(lines(upload(*words))) == 1
    make_wav(calls / "own.wav", 2_000)
    (calls / "own.json").write_text("{}")
    assert upload(*words).err == ""
    assert ledgers.problems(ledger) == []


def test_changed_metadata_are_said_again_while_they_last(
    cron: Run, ledger: Path, calls: Path
) -> None:
    make_wav(calls / "a.wav", 2_000)
    cron()
    (calls / "a.json").write_text('{"client_name": "Anna"}')
    assert (cron().code, cron().err) == (0, "")
    ledgers.pass_time(ledger, DAY_S)
    assert names(cron()) == ["a.wav"]
    assert cron("--update-metadata").code == 0
    assert ledgers.problems(ledger) == []


# --- Settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["no key file", "refused key", "no JSON"])
def test_wrong_settings_are_said_once_and_again_daily(
    cron: Run, ledger: Path, calls: Path, fields: Path, tmp_path: Path, wrong: str
) -> None:
    make_wav(calls / "a.wav", 2_000)
    words: tuple[object, ...] = ("--key", "another")
    code = 77
    if wrong == "no key file":
        words, code = ("--key-file", tmp_path / "key"), 78
    elif wrong == "no JSON":
        fields.write_text("{")
        words, code = (), 65
    first = cron(*words)
    assert (first.code, len(lines(first))) == (code, 1)
    assert cron(*words) == Outcome(code, "", "")
    ledgers.pass_time(ledger, DAY_S)
    assert cron(*words).err.count("\n") == 1
    assert cron(*words) == Outcome(code, "", "")
    fields.write_text("{}")
    assert cron().code == 0
    assert ledgers.problems(ledger) == []


# --- The ledger itself ----------------------------------------------------------------------------


def test_a_ledger_in_use_is_no_news(cron: Run, ledger: Path, calls: Path) -> None:
    begin_ledger(str(ledger))
    with open(f"{ledger}-lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cron() == Outcome(75, "", "")


def test_a_ledger_that_cannot_be_written_is_said_once_a_day(
    cron: Run, hand: Run, ledger: Path, calls: Path, waits: Waits
) -> None:
    """It cannot note that itself."""
    waits(ledger_lock=0.05)
    begin_ledger(str(ledger))
    for _ in range(2):
        with ledgers.locked(ledger):
            first = cron()
            assert first.code == 78 and "locked" in first.err
            assert cron() == Outcome(78, "", "")
            assert "locked" in hand().err
            assert cron() == Outcome(78, "", "")
        ledgers.pass_time(ledger, DAY_S)
    with ledgers.locked(ledger):
        assert len(lines(cron())) == 1
    shutil.copy(ledger, ledger.with_name("kept"))
    ledger.write_bytes(b"no database" * 500)
    another = cron()
    assert another.code == 78 and "not a database" in another.err
    assert cron() == Outcome(78, "", "")


# --- Dry runs, summaries, exit codes --------------------------------------------------------------


def test_a_dry_run_touches_nothing(cron: Run, hand: Run, ledger: Path, calls: Path) -> None:
    broken(calls / "a.wav")
    lost = broken(calls / "lost.wav")
    cron()
    lost.unlink()
    make_wav(calls / "b.wav", 2_000)
    ledgers.pass_time(ledger, DAY_S)
    before = (sha256(ledger), ledgers.problems(ledger), ledgers.runs(ledger))
    for run in (cron, hand):
        outcome = run("--dry-run")
        assert outcome.code == 65 and "a.wav: " in outcome.err
    assert "1 would be uploaded, 0 already there, 1 failed, 0 unknown" in outcome.err
    assert (sha256(ledger), ledgers.problems(ledger), ledgers.runs(ledger)) == before


def test_the_summary_counts_what_was_left_out(hand: Run, calls: Path) -> None:
    make_wav(calls / "a.wav", 2_000)
    assert "1 uploaded, 0 already there" in hand().err
    make_wav(calls / "short.wav", 200)
    make_wav(calls / "b.wav", 4_000)
    outcome = hand("--min-duration", 0.1)
    assert lines(outcome)[-1].endswith(
        "1 uploaded, 1 already there, 0 failed, 0 unknown, 1 too short"
    )
    outcome = hand("--min-age", "1h", "--verbose")
    assert "a.wav: left out, younger than" in outcome.err
    assert "3 waiting" in outcome.err


# --- What is wrong with a command line, and --help --------------------------------------------


def wrong(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    """Return what is said of a command line that is wrong."""
    given = ("--audio-path", "a.wav", "--connection-id", "1", *words)
    with pytest.raises(SystemExit) as leaving:
        upload_grpc.main([str(word) for word in given])
    captured = capfd.readouterr()
    assert (leaving.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
    return captured.err.removeprefix("upload_grpc: ").removesuffix("; see --help\n")


SECRET = "AQVNsecretSECRET"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-v",), "unknown option -v"),
        (("--audio_path", "x"), "unknown option --audio_path"),
        (("--keys=AQVNsecretSECRET",), "unknown option --keys"),
        (("-kAQVNsecretSECRET",), "unexpected argument"),
        (("--quiet", "AQVNsecretSECRET"), "unexpected argument"),
        (("--quiet=AQVNsecretSECRET",), "--quiet takes no value"),
        (("--key-file",), "--key-file needs a value"),
        (("--audio-path",), "--audio-path needs a value"),
        (("--format", SECRET), "--format: must be text, json or csv"),
        (("--key-type", SECRET), "--key-type: must be auto, api-key, iam-token or vm"),
        (("--jobs", SECRET), "--jobs: must be a whole number from 1 to 64"),
        (("--jobs", "65"), "--jobs: must be a whole number from 1 to 64"),
        (("--retries", "-1"), "--retries: must be a whole number from 0 to 100"),
        (("--timeout", "nan"), "--timeout: must be a number from 0.1 to 86,400"),
        (("--since", SECRET), "--since: must be YYYY-MM-DD, today, yesterday, or like 7d"),
    ],
)
def test_a_wrong_option_is_named_and_a_value_never(
    capfd: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert wrong(capfd, *words) == said


def test_an_unexpected_argument_is_named_if_it_is_a_path(
    capfd: pytest.CaptureFixture[str], call: Path
) -> None:
    assert wrong(capfd, "--quiet", call) == f"unexpected argument {call}: paths follow --audio-path"


@pytest.mark.parametrize("columns", [40, 60, 80, 100])
def test_help_fits_the_terminal(columns: int) -> None:
    with start("--help", env={"COLUMNS": str(columns)}) as process:
        out, _ = process.communicate(timeout=30)
    too_long = [line for line in out.splitlines() if len(line) > columns and " " in line.strip()]
    assert too_long == []
    assert max(map(len, out.splitlines())) > columns - 10


def test_a_json_line_has_the_time(hand: Run, calls: Path) -> None:
    make_wav(calls / "a.wav", 2_000)
    broken(calls / "b.wav")
    results = [json.loads(line) for line in hand("--format", "json").out.splitlines()]
    assert len(results) == 2
    for result in results:
        at = datetime.datetime.fromisoformat(result["time"].replace("Z", "+00:00"))
        assert abs(time.time() - at.timestamp()) < 60


# --- Advice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [True, False], ids=["with a key", "without"])
def test_look_for_it_says_by_what(
    hand: Run, service: StandIn, calls: Path, ledger: Path, key: bool
) -> None:
    call = make_wav(calls / "a.wav", 2_000)
    fields = {"date": "2026-03-17T09:30:00Z", "operator_name": "Anna"}
    call.with_suffix(".json").write_text(json.dumps(fields))
    service.on_call = lambda call: NO_QUOTA if call.method == "Search" else LOST_ANSWER
    by = f"upload_sha256 = {sha256(call)}" if key else r"its time.*: \S+ \d\d:\d\d"
    again = "--retry-unknown without --lookup-key" if key else "--retry-unknown"
    first = hand(*(LOOKUP if key else ()))
    assert key or "by its time and operator, Anna: 2026-03-17 " in first.err
    for outcome in (first, hand(*(LOOKUP if key else ()))):
        said = rf"{LOOK} by {by}; if it is not there, {again} uploads it again"
        assert re.search(said, outcome.err)


LOOK = "look for it in the console"


def test_advice_names_only_what_helps_here(
    upload: Run, service: StandIn, calls: Path, fields: Path
) -> None:
    call = make_wav(calls / "a.wav", 2_000)
    words = ("--audio-path", call, "--meta-path", fields, "--retries", 0)
    service.script += [
        LOST_ANSWER,
        Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (1 vs. 0)"),
        Fail(grpc.StatusCode.NOT_FOUND, "no such connection"),
    ]
    unknown, large, no_such = (upload(*words).err for _ in range(3))
    assert LOOK in unknown and "upload it again" in unknown and "--retry-unknown" not in unknown
    assert "proxy or gateway" in large and "--single-message" not in large
    assert "check --connection-id (" in no_such and "--talk-id" not in no_such


def test_what_is_uploaded_under_another_name_is_not_lost(
    cron: Run, ledger: Path, calls: Path
) -> None:
    make_wav(calls / "stays.wav", 2_000)
    (calls / "stays.json").write_text("{}")
    call = make_wav(calls / "a.wav", 4_000)
    waiting = ("--require-json", "0s")
    assert names(cron(*waiting)) == ["a.wav"]
    call.rename(calls / "b.wav")
    (calls / "b.json").write_text("{}")
    outcome = cron(*waiting)
    assert (outcome.code, outcome.err, ledgers.problems(ledger)) == (0, "", [])


def test_each_wrong_date_of_a_json_is_said(cron: Run, calls: Path) -> None:
    call = make_wav(calls / "a.wav", 2_000)
    call.with_suffix(".json").write_text('{"date": "today", "date_to": "tomorrow"}')
    said = sorted(lines(cron()))
    assert len(said) == 2 and '"today"' in said[0] and '"tomorrow"' in said[1]
    assert cron() == Outcome(0, "", "")
