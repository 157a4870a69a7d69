"""What an operator hears: an email when a person is needed, and only then.

Each test is of a sentence of the contract. Time passes by rewriting the times in the ledger.
"""

from __future__ import annotations

import datetime
import errno
import json
import os
import re
import time
from pathlib import Path
from typing import Any

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
    ended,
    make_wav,
    sha256,
    start,
    zone_at,
)
from stand_in import At, Fail, StandIn
from stories import (
    DAY_S,
    HOUR_S,
    LOOKUP,
    LOST_ANSWER,
    NO_QUOTA,
    REJECTED,
    Cron,
    lines,
    names,
)

import upload_grpc

pytestmark = pytest.mark.usefixtures("waits")


def set_zone(zone: str) -> None:
    os.environ["TZ"] = zone
    time.tzset()


# --- Stories ----------------------------------------------------------------------------------


# For Cron.tell().
STORIES = {
    "a problem is said once, whatever its text, and the first cause is kept": """
        refuse, call a.wav                                  : 65 a.wav
                                                            : 65
        touch a.wav                                         : 65
        in the end                                          : a.wav refused
    """,
    "another path or cause is new, and what was met before is over": """
        refuse, broken a.wav                                : 65 a.wav
        broken b.wav                                        : 65 b.wav
        call a.wav                                          : 65 a.wav
                                                            : 65
        in the end                                          : a.wav refused b.wav unknown-format
    """,
    "what lasts is said again, together, in the first run of a day": """
        refuse, broken a.wav, call b.wav                    : 65 a.wav b.wav
        day                                                 : 65 a.wav b.wav
                                                            : 65
        day                                                 : 65 a.wav b.wav
                                                            : 65
    """,
    "so is what a run did not come to, which the first recordings end": """
        broken z.wav                                        : 65 z.wav
        call 1.wav, call 2.wav, call 3.wav, call 4.wav, call 5.wav, day, away : 75 z.wav
    """,
    "a clock that jumped says it once more": """
        broken a.wav                                        : 65 a.wav
        said_in 2040                                        : 65 a.wav
                                                            : 65
        said_in 1970                                        : 65 a.wav
                                                            : 65
    """,
    "what changed under way is said once that has lasted an hour": """
        call a.wav 600000, while_it changes a.wav           : 75
        hours 1                                             : 75 a.wav
    """,
    "an unknown one is said at once": """
        call a.wav, lose                                    : 76 a.wav
                                                            : 76
    """,
    "changed metadata are said again while they last": """
        call a.wav                                          : 0
        json a.wav Anna                                     : 0 a.wav
                                                            : 0
        day                                                 : 0 a.wav
        --update-metadata                                   : 0
        in the end                                          :
    """,
    "a problem is over when the recording is uploaded or left out": """
        broken a.wav                                        : 65 a.wav
        call a.wav                                          : 0
        broken a.wav                                        : 65 a.wav
        --min-age=1h                                        : 0
                                                            : 65
        call a.wav, --min-duration=1                        : 0
        in the end                                          :
    """,
    "nothing is lost with a share that is not mounted": """
        call a.wav                                          : 0
        refuse, call b.wav, broken c.wav                    : 65 b.wav c.wav
        unmount empty                                       : 66 calls
                                                            : 66
        mount                                               : 65
        unmount gone                                        : 66 calls
                                                            : 66
        mount                                               : 65
        in the end                                          : b.wav refused c.wav unknown-format
    """,
    "a share behind a link that leads nowhere is named, and nothing on it is lost": """
        link nowhere ../nowhere, call a.wav, call ../share/b.wav, link pbx ../share : 0
        broken ../share/c.wav                               : 65 c.wav
        rename ../share ../away                             : 66 pbx
        report                                              : 65 | No such file or directory
        day                                                 : 66 pbx c.wav
        rename ../away ../share, call ../share/d.wav        : 65
        in the end                                          : c.wav unknown-format
        in the store                                        : - - -
    """,
    "calls on a share that is away are no calls of the day that they were recorded on": """
        call ../share/a.wav, touch ../share/a.wav, link a.wav ../share/a.wav : 0
        report --since yesterday                            : 0 | 0 uploaded
        rename ../share ../away                             : 66 a.wav
        report --since yesterday                            : 66 | cannot be read
        rename ../away ../share                             : 0
        in the end                                          :
    """,
    "a folder that never held any is no problem, nor one that holds another": """
                                                            : 0
        call below/a.wav                                    : 0
        remove below/a.wav                                  : 0
        in the end                                          :
    """,
    "lost is said by a run with --quiet, though another run found it": """
        call stays.wav, broken a.wav                        : 65 a.wav
        remove a.wav, by_hand                               : 0 a.wav
                                                            : 0
        in the end                                          : a.wav lost
    """,
    "the folder of what is lost may be gone too; an empty one is as of a share": """
        call stays.wav, broken 17/a.wav                     : 65 a.wav
        remove 17/a.wav                                     : 0
        remove 17                                           : 66 a.wav
    """,
    "what was moved is not lost, and has its problem under its new name": """
        call stays.wav                                      : 0
        refuse, broken a.wav, call b.wav                    : 65 a.wav b.wav
        rename a.wav c.wav, rename b.wav d.wav              : 65 c.wav d.wav
                                                            : 65
        in the end                                          : c.wav unknown-format d.wav rejected
    """,
    "what is uploaded under another name is not lost": """
        call stays.wav, json stays.wav x, call a.wav, --require-json=0s : 66 a.wav
        rename a.wav b.wav, json b.wav x, --require-json=0s : 0
        in the end                                          :
    """,
    "what was uploaded is never lost: a copy, or one whose JSON changed": """
        call a.wav, copy a.wav z.wav, json a.wav one, json z.wav two, call stays.wav : 65 z.wav
        json a.wav three                                    : 65 a.wav
        remove z.wav                                        : 0
        in the end                                          : a.wav metadata-changed
        remove a.wav                                        : 0
        in the end                                          :
    """,
    "nor is an unknown one that is gone, but somebody still has to look": """
        call a.wav, call stays.wav, lose                    : 76 a.wav
        remove a.wav                                        : 0
        day                                                 : 0 a.wav
        find                                                : 0
        in the end                                          :
    """,
    "nor is one that was refused, and replaced by another format that waits": """
        refuse, call A.WAV, call stays.wav                  : 65 A.WAV stays.wav
        remove A.WAV, broken A.MP3                          : 65 A.MP3
        in the end                                          : A.MP3 no-mp3-audio stays.wav refused
    """,
    "what is open of one stays so while it waits for its JSON": """
        call a.wav, json a.wav x, lose                      : 76 a.wav
        remove a.json, --require-json=2d                    : 0
        in the end                                          : a.wav unknown
    """,
    "what only the credential keeps is no longer what it was": """
        call a.wav, --require-json=0s                       : 66 a.wav
        json a.wav x, --require-json=0s, --key=expired      : 77 *
        in the end                                          :  credential
    """,
    "runs over other folders leave it": """
        broken a.wav                                        : 65 a.wav
        elsewhere                                           : 65
    """,
}


@pytest.mark.parametrize("title", STORIES)
def test_story(cron: Cron, title: str) -> None:
    cron.tell(STORIES[title])


# --- Days, and clocks -------------------------------------------------------------------------


def test_a_day_is_the_local_one(cron: Cron) -> None:
    cron.broken("a.wav")
    set_zone(zone_at(12))
    cron.run()
    cron.pass_time(HOUR_S)
    assert cron.said() == (65, [])  # 11:00 and 12:00.
    set_zone(zone_at(0.5))
    assert cron.said() == (65, ["a.wav"])  # 23:30 and 00:30.
    assert cron.said() == (65, [])


def test_summer_time_makes_no_day_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no 02:30 on the one day in Berlin, and there are two on the other."""
    set_zone("Europe/Berlin")
    march, october = datetime.date(2026, 3, 29), datetime.date(2026, 10, 25)
    for said_at, today, is_due in (
        ("2026-03-28T22:59:00.000Z", march, True),
        ("2026-03-28T23:01:00.000Z", march, False),
        ("2026-10-24T21:59:00.000Z", october, True),
        ("2026-10-25T22:59:00.000Z", october, False),
    ):
        problem = upload_grpc.OpenProblem("", "", said_at, None)
        with monkeypatch.context() as patch:
            patch.setattr(upload_grpc, "today", lambda today=today: today)
            assert upload_grpc.is_of_earlier_day(problem) == is_due


# --- Without --quiet, or without a ledger --------------------------------------------------


def test_without_quiet_all_is_said_each_time_and_nothing_is_marked(cron: Cron) -> None:
    for number in range(12):
        cron.broken(f"{number:02}.wav")
    for _ in range(2):
        *said, summary = lines(cron.by_hand())
        assert len(said) == 12 and "12 failed" in summary
    assert {each["said_at"] for each in cron.problems()} == {None}
    assert len(lines(cron.run())) == 11
    # Nothing of what other runs have found.
    cron.pass_time(DAY_S)
    other = cron.over(make_wav(cron.folder.with_name("other.wav"), 2_000))
    assert (other.code, other.err) == (0, "")


def test_without_a_ledger_all_is_said_each_time(cron: Cron, upload: Run) -> None:
    for number in range(12):
        cron.broken(f"{number:02}.wav")
    cron.call("z.wav")
    words = ("--quiet", "--retries", 0, "--meta-path", cron.fields, "--audio-path", cron.folder)
    for _ in range(2):
        *said, last, more = lines(upload(*words, *cron.away))
        assert len(said) == 10 and "no connection" in last
        assert more.startswith("and 2 more (") and more.endswith("): leave out --quiet")


@pytest.mark.parametrize("number", [10, 11])
def test_one_cause_is_at_most_ten_lines(cron: Cron, number: int) -> None:
    for each in range(number):
        cron.broken(f"{each:02}.wav")
        cron.call(f"x{each:02}.wav")
    cron.service.on_call = lambda _: REJECTED
    for _ in range(2):
        said = lines(cron.run())
        more = [line for line in said if line.startswith("and 1 more (")]
        assert (len(said) - len(more), len(more)) == (20, 0 if number == 10 else 2)
        assert all(line.endswith("): --report") for line in more)
        assert cron.said() == (65, [])
        cron.pass_time(DAY_S)


def test_a_dead_exporter_is_no_email_in_each_run(cron: Cron) -> None:
    words = ("--require-json", "0s")
    counts = []
    for number in range(14):
        cron.call(f"{number:02}.wav")
        said = lines(cron.run(*words))
        counts.append(len(said))
        assert any(line.startswith("and 1 more (no-metadata)") for line in said) == (number == 10)
    assert counts == [1] * 11 + [0] * 3
    cron.day()
    assert len(lines(cron.run(*words))) == 11
    assert cron.said(*words) == (66, [])


def test_what_is_lost_is_said_though_ten_were_on_that_day(cron: Cron) -> None:
    """It is said only once."""
    cron.call("keep.wav")
    cron.json("keep.wav", "x")
    for number in range(12):
        cron.call(f"{number:02}.wav")
    cron.days_ahead(1)
    words = ("--require-json", "9d")
    assert cron.run(*words).code == 0
    for number in range(10):
        cron.remove(f"{number:02}.wav")
    assert len(lines(cron.run(*words))) == 10
    for name in ("10.wav", "11.wav"):
        cron.remove(name)
        assert cron.said(*words) == (66, [name])
    assert cron.said(*words) == (0, [])


# What a run cannot note, the words for it, its exit code, and how many are not tried.
UNNOTED = {
    "waiting for its JSON": (("--require-json", "9d"), 75, 3),
    "not tried": (("--key", "expired"), 77, 3),
}


@pytest.mark.parametrize("kind", UNNOTED)
def test_a_full_disk_when_what_waits_is_noted_ends_the_run(cron: Cron, kind: str) -> None:
    words, code, not_tried = UNNOTED[kind]
    for name in ("keep.wav", "a.wav", "b.wav", "c.wav", "d.wav"):
        cron.call(name)
        if name == "keep.wav":
            cron.json(name, "x")
            assert cron.run().code == 0
    cron.days_ahead(1)
    ledgers.fill_disk(cron.ledger, "waiting")
    outcome = cron.by_hand(*words)
    assert outcome.code == code and outcome.err.count("disk is full; wait for that to end") == 1
    assert "Traceback" not in outcome.err
    assert ledgers.runs(cron.ledger)[-1]["not_tried"] == not_tried
    ledgers.free_disk(cron.ledger)
    assert cron.run().code == 0
    assert len(cron.service.talks) == 5


@pytest.mark.parametrize("number", [errno.EBUSY, errno.ESTALE])
def test_what_another_program_has_locked_is_said_if_it_lasts(
    cron: Cron, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As on a Windows share, while its recorder has a recording open."""
    path = cron.call("a.wav")
    really_open: Any = open

    def refuse(file: Any, *rest: Any, **options: Any) -> Any:
        if str(file) == str(path):
            raise OSError(number, os.strerror(number))
        return really_open(file, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        assert cron.run() == Outcome(75, "", "")
        cron.hours(1)
        [line] = lines(cron.run())
        assert line.startswith(f"a.wav: cannot be read now: {os.strerror(number)}; run again")
    assert cron.said() == (0, []) and cron.problems() == []


def test_what_is_below_a_folder_that_cannot_be_read_is_not_over(
    cron: Cron, monkeypatch: pytest.MonkeyPatch
) -> None:
    cron.call("keep.wav")
    cron.broken("sub/a.wav")
    assert cron.said() == (65, ["a.wav"])
    really_scan: Any = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("sub"):
            raise PermissionError(errno.EACCES, "no")
        return really_scan(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        assert cron.said() == (66, ["sub"])
    assert cron.said() == (65, [])


# --- An outage is a problem of the run ------------------------------------------------------


@pytest.mark.parametrize("count", [1, 8], ids=["short run", "the breaker stops it"])
def test_an_outage_is_said_once_it_has_lasted_an_hour(cron: Cron, count: int) -> None:
    for number in range(count):
        cron.call(f"{number}.wav")
    for _ in range(2):
        assert cron.run(*cron.away) == Outcome(75, "", "")
    assert "no connection to the service" in cron.by_hand(*cron.away).err
    [outage] = cron.problems()
    assert (outage["path"], outage["cause"]) == ("", "outage")
    assert outage["mtime_ns"] is None, "--report --since goes by when it was seen"
    cron.pass_time(HOUR_S - 60)
    assert cron.run(*cron.away) == Outcome(75, "", "")
    cron.pass_time(60)
    [line] = lines(cron.run(*cron.away))
    assert line.startswith("no upload has worked since 2") and "no connection" in line
    assert cron.run(*cron.away) == Outcome(75, "", "")
    cron.pass_time(DAY_S)
    assert len(lines(cron.run(*cron.away))) == 1
    assert cron.run(*cron.away) == Outcome(75, "", "")
    # Gone with the next upload that works; the next outage is another.
    assert (cron.run().code, cron.problems()) == (0, [])
    cron.call("new.wav")
    assert cron.run(*cron.away) == Outcome(75, "", "")


def test_a_clock_that_jumped_does_not_hide_an_outage(cron: Cron) -> None:
    cron.call("a.wav")
    cron.run(*cron.away)
    ledgers.change_problems(cron.ledger, since="2040-01-01T00:00:00.000Z")
    assert len(lines(cron.run(*cron.away))) == 1


@pytest.fixture
def one_fails(cron: Cron) -> Cron:
    """Have one recording fail, in a way that looks like an outage, while others are uploaded."""
    cron.call("bad.wav")
    cron.json("bad.wav", "bad")
    cron.service.on_call = lambda _: At(
        metadata=lambda call: NO_QUOTA if "client_name" in call.fields else None
    )
    return cron


def test_one_that_fails_while_others_are_uploaded_is_said_after_a_day(one_fails: Cron) -> None:
    cron = one_fails
    for number in range(3):
        cron.call(f"{number}.wav")
        assert (cron.run().code, cron.causes()) == (75, [("bad.wav", "undelivered")])
        cron.pass_time(7 * HOUR_S)
    cron.pass_time(4 * HOUR_S)
    cron.call("3.wav")
    outcome = cron.run()
    assert names(outcome) == ["bad.wav"] and "quota" in outcome.err
    # Nor is it an outage while there is nothing else to upload.
    for _ in range(2):
        cron.pass_time(2 * HOUR_S)
        assert (cron.said(), cron.causes()) == ((75, []), [("bad.wav", "undelivered")])
    cron.service.on_call = lambda _: None
    assert (cron.run().code, cron.problems()) == (0, [])


def test_an_outage_after_one_has_failed_alone_is_one(one_fails: Cron) -> None:
    one_fails.call("good.wav")
    assert one_fails.run().code == 75
    one_fails.run(*one_fails.away)
    one_fails.hours(2)
    [line] = lines(one_fails.run(*one_fails.away))
    assert line.startswith("no upload has worked since 2")


def test_one_that_fails_is_still_the_same_problem_after_an_outage(one_fails: Cron) -> None:
    one_fails.call("good.wav", 4_000)
    one_fails.run()
    [before] = one_fails.problems()
    assert one_fails.run().code == 75
    after = {problem["cause"]: problem["since"] for problem in one_fails.problems()}
    assert after["undelivered"] == before["since"]


# --- What is unknown --------------------------------------------------------------------------


def test_with_a_lookup_key_it_is_said_after_a_day(cron: Cron) -> None:
    cron.call("a.wav")
    cron.service.on_call = lambda call: LOST_ANSWER if call.method != "Search" else NO_QUOTA
    assert cron.run(*LOOKUP) == Outcome(76, "", "")
    cron.pass_time(DAY_S - 600)
    code, said = cron.said(*LOOKUP)
    assert code == 76 and "a.wav" not in said
    cron.pass_time(600)
    assert "a.wav" in cron.said(*LOOKUP)[1]


def test_a_json_that_has_come_is_not_called_missing(cron: Cron) -> None:
    """It is still young in the first run of a day."""
    words = ("--require-json=0s", "--min-age=5m")
    cron.call("a.wav")
    assert cron.said(*words) == (0, [])
    cron.days_ahead(1)
    assert cron.said(*words) == (66, ["a.wav"])
    cron.days_ahead(2)
    cron.json("a.wav", "x")
    os.utime(cron.folder / "a.json", (time.time(),) * 2)
    assert cron.said(*words) == (0, [])


def test_so_it_is_if_its_file_is_gone(cron: Cron) -> None:
    cron.service.script += [Fail(grpc.StatusCode.UNAVAILABLE, "gone")]
    cron.call("a.wav")
    assert cron.run(*LOOKUP) == Outcome(76, "", "")
    cron.remove("a.wav")
    cron.day()
    cron.call("b.wav")
    assert cron.said(*LOOKUP) == (0, ["a.wav"])


def test_with_a_lookup_key_it_is_said_when_it_is_proved_missing(cron: Cron) -> None:
    cron.call("a.wav")
    cron.service.script.append(Fail(grpc.StatusCode.UNAVAILABLE, "gone"))
    assert cron.run(*LOOKUP) == Outcome(76, "", "")
    ledgers.change(cron.ledger, is_missing=1, looked_up_at=upload_grpc.utc())
    [line] = lines(cron.run(*LOOKUP))
    assert "not in the service" in line and "--retry-unknown" in line
    assert cron.run(*LOOKUP) == Outcome(76, "", "")


# --- Folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["calls", "below"])
def test_a_folder_that_cannot_be_read_is_over_once_it_can(cron: Cron, name: str) -> None:
    call = cron.call("a.wav")
    (cron.folder / "below").mkdir()
    begin_ledger(str(cron.ledger))
    closed = cron.folder / "below" if name == "below" else cron.folder
    given = ("--quiet", "--ledger", cron.ledger, "--meta-path", cron.fields)
    words = arguments(cron.service, *given, "--audio-path", cron.folder)
    closed.chmod(0)
    with start(*words, under=before_command(AS_NOBODY_SPECIAL)) as process:
        outcome = ended(process)
    closed.chmod(0o755)
    assert outcome.code == 66
    assert (f"{call}: Dialog ID: " in outcome.out) == (name == "below")
    [line] = lines(outcome)
    assert line.startswith(f"{name}: cannot be read: Permission denied; ")
    assert (cron.run().code, cron.problems()) == (0, [])


# --- What is over, and what is lost -------------------------------------------------------------


KINDS = pytest.mark.parametrize("kind", ["broken", "rejected", "failed"])


def vanished(cron: Cron, kind: str) -> tuple[Path, Outcome]:
    """Return a recording that vanished before it was uploaded, and the run that noticed."""
    cron.call("stays.wav")
    cron.run()
    call = cron.broken("a.wav") if kind == "broken" else cron.call("a.wav", 4_000)
    cron.service.script.append(NO_QUOTA if kind == "failed" else REJECTED)
    cron.run()
    call.unlink()
    return call, cron.run()


@KINDS
def test_what_vanished_before_it_was_uploaded_is_said_once_more_as_lost(
    cron: Cron, kind: str
) -> None:
    _, outcome = vanished(cron, kind)
    [line] = lines(outcome)
    assert outcome.code == 66
    assert line.startswith("a.wav: gone before it was uploaded; ") and "earlier: " in line
    assert cron.run() == Outcome(0, "", ""), "66 in the run that finds it"
    cron.pass_time(DAY_S)
    assert cron.run() == Outcome(0, "", ""), "once"
    assert ("a.wav", "lost") in cron.causes(), "it stays in the report"
    # Restored, and uploaded.
    cron.call("a.wav", 4_000)
    cron.service.script.clear()
    assert cron.run("--retry-rejected").code == 0
    assert ("a.wav", "lost") not in cron.causes()


@KINDS
def test_what_is_lost_is_over_with_the_rows_that_its_line_names(cron: Cron, kind: str) -> None:
    call, outcome = vanished(cron, kind)
    tables = "problems" if kind == "broken" else "problems and recordings"
    assert f"restore it, or delete its row from the ledger's {tables} (" in outcome.err
    for table in tables.split(" and "):
        ledgers.delete_path(cron.ledger, table, call)
    assert cron.run() == Outcome(0, "", "")
    assert "a.wav" not in [name for name, _ in cron.causes()]


def test_what_was_never_there_is_not_lost(cron: Cron) -> None:
    cron.call("stays.wav")
    assert cron.by_hand(cron.folder / "typing-error.wav").code == 66
    assert cron.run() == Outcome(0, "", "")
    assert cron.problems() == []


# --- Warnings -----------------------------------------------------------------------------------


def test_warnings_go_the_same_way(cron: Cron, upload: Run) -> None:
    """Of placeholders: each run uploads other recordings, but it is one problem."""
    words = ("--quiet", "--ledger", cron.ledger, "--audio-path", cron.folder)
    for number in range(3):
        cron.call(f"{number}.wav")
        outcome = upload(*words)
        assert outcome.code == 0
        assert ["placeholder" in line for line in lines(outcome)] == ([] if number else [True])
    cron.pass_time(DAY_S)
    assert len(lines(upload(*words))) == 1
    cron.call("own.wav")
    cron.json("own.wav", "Anna")
    assert upload(*words).err == ""
    assert cron.problems() == []


def test_each_wrong_date_of_a_json_is_said(cron: Cron) -> None:
    call = cron.call("a.wav")
    call.with_suffix(".json").write_text('{"date": "today", "date_to": "tomorrow"}')
    said = sorted(lines(cron.run()))
    assert len(said) == 2 and '"today"' in said[0] and '"tomorrow"' in said[1]
    assert cron.run() == Outcome(0, "", "")


# --- Settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words"),
    [(78, ("--key-file", "/missing")), (77, ("--key", "another")), (65, ())],
    ids=["no key file", "refused key", "no JSON"],
)
def test_wrong_settings_are_said_once_and_again_daily(
    cron: Cron, code: int, words: tuple[str, ...]
) -> None:
    cron.call("a.wav")
    if not words:
        cron.fields.write_text("{")
    for _ in range(2):
        first = cron.run(*words)
        assert (first.code, len(lines(first))) == (code, 1)
        assert cron.run(*words) == Outcome(code, "", "")
        cron.pass_time(DAY_S)
    cron.fields.write_text("{}")
    assert (cron.run().code, cron.problems()) == (0, [])


# --- The ledger itself ----------------------------------------------------------------------------


def test_a_ledger_that_cannot_be_written_is_said_once_a_day(cron: Cron, waits: Waits) -> None:
    """It cannot note that itself."""
    waits(ledger_lock=0.05)
    begin_ledger(str(cron.ledger))
    for _ in range(2):
        with ledgers.locked(cron.ledger):
            first = cron.run()
            assert first.code == 78 and first.err.count("\n") == 1 and "locked" in first.err
            assert cron.run() == Outcome(78, "", "")
            assert "locked" in cron.by_hand().err
            assert cron.run() == Outcome(78, "", "")
        cron.pass_time(DAY_S)
    with ledgers.locked(cron.ledger):
        assert len(lines(cron.run())) == 1
    cron.ledger.write_bytes(b"no database" * 500)
    another = cron.run()
    assert another.code == 78 and "not a database" in another.err
    assert cron.run() == Outcome(78, "", "")


# --- Advice ---------------------------------------------------------------------------------------

LOOK = "look for it in the console"


@pytest.mark.parametrize("key", [True, False], ids=["with a key", "without"])
def test_look_for_it_says_by_what(cron: Cron, key: bool) -> None:
    fields = {"date": "2026-03-17T09:30:00Z", "operator_name": "Anna"}
    call = cron.call("a.wav")
    call.with_suffix(".json").write_text(json.dumps(fields))
    cron.service.on_call = lambda call: NO_QUOTA if call.method == "Search" else LOST_ANSWER
    by = f"upload_sha256 = {sha256(call)}" if key else r"its time.*: \S+ \d\d:\d\d"
    again = "--retry-unknown without --lookup-key" if key else "--retry-unknown"
    first, second = (cron.by_hand(*(LOOKUP if key else ())) for _ in range(2))
    assert key or "by its time and operator, Anna: 2026-03-17 " in first.err
    for outcome in (first, second):
        said = rf"{LOOK} by {by}; if it is not there, {again} uploads it again"
        assert re.search(said, outcome.err)


def test_advice_names_only_what_helps_here(upload: Run, service: StandIn, call: Path) -> None:
    service.script += [
        LOST_ANSWER,
        Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (1 vs. 0)"),
        Fail(grpc.StatusCode.NOT_FOUND, "no such connection"),
    ]
    words = ("--audio-path", call, "--retries", 0)
    unknown, large, no_such = (upload(*words).err for _ in range(3))
    assert LOOK in unknown and "upload it again" in unknown and "--retry-unknown" not in unknown
    assert "proxy or gateway" in large and "--single-message" not in large
    assert "check --connection-id (" in no_such and "--talk-id" not in no_such
