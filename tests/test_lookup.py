"""Recordings whose answer was lost are looked up in the service, by the SHA-256 sent with them."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
import signal
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import ledgers
import pytest
from conftest import WAYS, Outcome, Run, Waits, Way, arguments, make_wav, sha256, start, wait_for
from stand_in import LOOKUPS, Call, Fail, Freeze, StandIn, Step, Talk

import upload_grpc

pytestmark = pytest.mark.usefixtures("waits")
STATUS = grpc.StatusCode
KEY = "upload_sha256"
LOOKUP = ("--lookup-key", KEY, "--organization-id", "org-1", "--space-id", "space-1")
# The service's answer is lost, after it has made the dialog or before.
MADE = Fail(STATUS.UNAVAILABLE, "as scripted", store=True)
NOT_MADE = Fail(STATUS.UNAVAILABLE, "as scripted")
MINUTE_S, HOUR_S = 60, 3_600
DAY_S = 24 * HOUR_S


def problems(outcome: Outcome, *words: str) -> list[str]:
    """Return the lines of stderr that have all these words."""
    return [line for line in outcome.err.splitlines() if all(word in line for word in words)]


def before(seconds: float) -> str:
    """Return the time so long ago, as the ledger has times."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return ledgers.ledger_time(now - datetime.timedelta(seconds=seconds))


def value(number: int) -> str:
    """Return what stands for the SHA-256 of a recording that is not there."""
    return f"{number:064x}"


@dataclasses.dataclass
class Office:
    """A folder of recordings, a ledger, and a service that loses answers."""

    service: StandIn
    upload: Run
    folder: Path
    ledger: Path

    def words(self, *more: object) -> tuple[object, ...]:
        return ("--audio-path", self.folder, "--ledger", self.ledger, *LOOKUP, *more)

    def run(self, *more: object) -> Outcome:
        return self.upload(*self.words(*more))

    def run_for(self, path: Path, *more: object) -> Outcome:
        """Run for one recording, which is named."""
        return self.upload("--audio-path", path, *self.words(*more)[2:])

    def record(self, *names: str) -> Path:
        for name in names:
            path = make_wav(self.folder / name, 1_000)
            path.with_suffix(".json").write_text("{}")
        return path

    def unknown(self, *names: str, made: bool = True, options: tuple[object, ...] = ()) -> None:
        """Record these, and have a run that loses their answers."""
        self.record(*names)
        self.service.script[:] = [MADE if made else NOT_MADE] * len(names)
        assert self.run(*options).code == 76
        self.forget_calls()

    def uploaded(self, *names: str) -> None:
        """Record these, and have them uploaded in this order, while nothing is looked up."""
        if self.ledger.exists():
            self.change(looked_up_at=before(0))
        for name in names:
            assert self.run_for(self.record(name)).code == 0
        self.forget_calls()

    def missing(self, age_s: float = DAY_S) -> None:
        """Have one unknown whose dialog was not made, and later one that was uploaded."""
        self.unknown("a.wav", made=False)
        self.uploaded("b.wav")
        self.age(age_s, state="unknown")

    def age(self, seconds: float = DAY_S, **where: object) -> None:
        """Have rows been sent so much earlier, and not looked up since."""
        self.change(where, sent_at=before(seconds), looked_up_at=None)

    def forget_lookups(self) -> None:
        self.change(looked_up_at=None)

    def change(self, where: Mapping[str, object] | None = None, /, **columns: object) -> None:
        ledgers.change(self.ledger, where, **columns)

    def script_lookups(self, *steps: Step) -> None:
        """Have the next lookups take these steps; other calls take those of the script."""
        waiting = iter(steps)

        def step_of(call: Call) -> Step:
            return next(waiting, None) if call.method in LOOKUPS else self.service.next_step(call)

        self.service.on_call = step_of

    def forget_calls(self) -> None:
        for received in (self.service.calls, self.service.searches, self.service.gets):
            received.clear()

    @property
    def methods(self) -> list[str]:
        return [call.method for call in self.service.calls]

    def values(self, number: int = 0) -> set[str]:
        """Return what a search asked for."""
        return set(self.service.searches[number].filters[0].any_match.values)

    def digest(self, name: str) -> str:
        return sha256(self.folder / name)

    def copies(self, name: str) -> list[Talk]:
        return [talk for talk in self.service.talks.values() if talk.sha256 == self.digest(name)]

    def row(self, name: str = "a.wav") -> dict[str, Any]:
        [row] = [each for each in ledgers.rows(self.ledger) if Path(each["path"]).name == name]
        return row

    def state(self, name: str = "a.wav") -> str:
        return str(self.row(name)["state"])

    def add_unknown_rows(self, count: int, sent_at: str) -> None:
        """Put recordings of earlier runs into the ledger, as unknown."""
        assert self.run().code == 0  # Begins the ledger.
        ledgers.add_unknown(self.ledger, map(value, range(count)), KEY, sent_at)
        self.forget_calls()


@pytest.fixture
def office(service: StandIn, upload: Run, folder: Path, ledger: Path) -> Office:
    return Office(service, upload, folder, ledger)


# --- Options, and the key on its way --------------------------------------------------


@pytest.mark.parametrize("way", [(), ("--single-message",), ("--split",)])
def test_the_sha256_travels_and_nothing_unknown_means_no_lookup(office: Office, way: Way) -> None:
    path = office.record("call.wav")
    path.with_suffix(".json").write_text('{"language": "ru-RU"}')
    for _ in range(2):
        assert office.run(*way).code == 0
    assert office.service.talks
    for talk in office.service.talks.values():
        assert talk.fields == {"language": "ru-RU", KEY: sha256(path)}
    assert not office.service.searches and not office.service.gets


def test_metadata_that_has_the_key_is_refused(office: Office, tmp_path: Path) -> None:
    sidecar = office.record("call.wav").with_suffix(".json")
    sidecar.write_text(json.dumps({KEY: "mine"}))
    common = tmp_path / "common.json"
    common.write_text(json.dumps({KEY: "ours"}))
    assert office.run().code == 65
    sidecar.write_text("{}")
    result = office.run("--meta-path", common)
    assert result.code == 65 and problems(result, "call.wav", KEY)
    assert not office.service.calls
    # One that the connection does not have is the service's to refuse.
    office.service.fields = {"language"}
    result = office.run()
    assert result.code == 65 and problems(result, "call.wav", KEY)
    assert office.service.calls


# --- Found ----------------------------------------------------------------------------


def test_what_an_earlier_run_left_is_found(office: Office) -> None:
    office.service.gives_other_ids = True
    office.unknown("a.wav", "b.wav")
    result = office.run("--project-id", office.service.project_id)
    assert result.code == 0
    for name in ("a.wav", "b.wav"):
        [talk] = office.copies(name)
        assert f"{office.folder / name}: Dialog ID: {talk.found_id}\n" in result.out
        row = office.row(name)
        assert (row["state"], row["error"]) == ("uploaded", None)
        assert (row["talk_id"], row["found_id"]) == (None, talk.found_id)
    assert len(result.out.splitlines()) == 2
    assert problems(result, "2 found in the service", "0 unknown")
    # One search for both, and one look at what it found.
    assert office.methods == ["Search", "GetTalks"]
    [search], [get] = office.service.searches, office.service.gets
    for request in (search, get):
        place = (request.organization_id, request.space_id, request.connection_id)
        assert (*place, request.project_id) == ("org-1", "space-1", "connection-1", "project-1")
    [condition] = search.filters
    assert condition.key == f"userMeta.{KEY}"
    assert office.values() == {office.digest("a.wav"), office.digest("b.wav")}
    assert get.HasField("results_mask") and not get.results_mask.paths

    office.forget_calls()
    again = office.run()
    assert (again.code, again.out, office.methods) == (0, "", [])


@WAYS
def test_nothing_is_looked_up_at_the_end_of_a_run(office: Office, way: Way) -> None:
    office.record("a.wav")
    office.service.script[:] = [MADE]
    assert office.run(*way).code == 76
    assert not office.service.searches
    found = json.loads(office.run("--format", "json", *way).out)
    [talk] = office.copies("a.wav")
    assert (found["outcome"], found["talk_id"]) == ("uploaded", talk.talk_id)
    assert (found["exit_code"], found["error"], found["found_id"]) == (0, None, talk.talk_id)


def test_two_ids_and_which_is_which(office: Office) -> None:
    office.service.gives_other_ids = True
    office.unknown("a.wav")
    office.change(talk_id="returned")
    path, [talk] = office.folder / "a.wav", office.copies("a.wav")
    line = f"{path}: Dialog ID: returned (in the service: {talk.found_id})\n"
    counts = "0 uploaded, 0 already there, 1 found in the service, 0 failed, 0 unknown"
    assert office.run() == Outcome(0, line, f"upload_grpc: {counts}\n")
    assert (office.row()["talk_id"], office.row()["found_id"]) == ("returned", talk.found_id)
    # Known from then on.
    assert office.run_for(path).out == line
    result = json.loads(office.run_for(path, "--format", "json").out)
    ids = (result["talk_id"], result["talk_ids"], result["found_id"])
    assert (result["outcome"], *ids) == ("already", "returned", ["returned"], talk.found_id)


def test_what_is_found_is_no_other_file_s_and_a_second_name_is_there_already(
    office: Office,
) -> None:
    office.unknown("a.wav")
    result = office.run_for(office.record("b.wav"))
    [a], [b] = office.copies("a.wav"), office.copies("b.wav")
    assert result.code == 0
    assert f"{office.folder / 'a.wav'}: Dialog ID: {a.talk_id}\n" in result.out
    assert f"Dialog ID: {b.talk_id}" in result.out

    office.unknown("c.wav")
    (office.folder / "d.wav").write_bytes((office.folder / "c.wav").read_bytes())
    assert office.run().code == 0
    assert len(office.copies("c.wav")) == 1 and office.methods == ["Search", "GetTalks"]


def test_of_several_dialogs_the_earliest_counts(office: Office) -> None:
    office.unknown("a.wav")
    [talk] = office.copies("a.wav")
    for talk_id, earlier_s in (("between", 5), ("earliest", 10)):
        copy = dataclasses.replace(talk, talk_id=talk_id, created_s=talk.created_s - earlier_s)
        office.service.save(copy)
    office.service.times_listed = 2  # Which makes them no more.
    result = office.run("--quiet")
    assert len(office.service.gets[0].talk_ids) == 3
    assert (result.code, result.out) == (0, f"{office.folder / 'a.wav'}: Dialog ID: earliest\n")
    [line] = result.err.splitlines()
    assert f"earliest has duplicates: between, {talk.talk_id};" in line and "a.wav" in line
    assert (office.state(), office.row()["found_id"]) == ("uploaded", "earliest")


TOO_LARGE = Fail(STATUS.RESOURCE_EXHAUSTED, "Sent message larger than max (8 vs. 4)")


@pytest.mark.parametrize(
    ("padding_bytes", "steps", "asked"),
    [
        (2 * 1024 * 1024, (), [3]),  # 6 MB, where grpc takes 4.
        (0, (None, TOO_LARGE, None, TOO_LARGE), [3, 1, 2, 1, 1]),
    ],
)
def test_a_large_answer_is_taken_or_asked_for_in_halves(
    office: Office, padding_bytes: int, steps: tuple[Step, ...], asked: list[int]
) -> None:
    office.unknown("a.wav", "b.wav", "c.wav")
    office.service.get_padding_bytes = padding_bytes
    office.script_lookups(*steps)
    result = office.run("--quiet")
    assert (result.code, len(result.out.splitlines()), result.err) == (0, 3, "")
    assert [len(get.talk_ids) for get in office.service.gets] == asked


def test_one_dialog_that_is_too_large_leaves_the_others_their_turn(office: Office) -> None:
    office.unknown("a.wav", "b.wav")
    office.script_lookups(None, TOO_LARGE, TOO_LARGE)
    result = office.run()
    states = sorted(office.state(name) for name in ("a.wav", "b.wav"))
    assert (result.code, states) == (76, ["unknown", "uploaded"])
    [line] = problems(result, "larger than max")
    assert "could not be looked up" in line and "--single-message" not in line


def test_an_index_that_lags_and_gives_other_ids(office: Office) -> None:
    office.service.index_lag_s = lambda: HOUR_S
    office.service.gives_other_ids = True
    office.unknown("a.wav", "b.wav")
    for talk, code in zip(office.service.talks.values(), (76, 0), strict=True):
        talk.lag_s = 0
        office.forget_lookups()
        result = office.run()
        assert (result.code, result.out.count("Dialog ID: ")) == (code, 1)
        assert talk.found_id in result.out
    assert len(office.service.talks) == 2


def test_a_long_recording_that_arrived_is_uploaded(office: Office) -> None:
    office.unknown("a.wav", options=("--split",))
    made = sorted(talk.talk_id for talk in office.copies("a.wav"))
    assert len(made) == 2
    result = office.run("--split", "--retry-unknown")
    assert (result.code, office.state()) == (0, "uploaded")
    assert sorted(re.findall(r"Dialog ID: (\S+)\n", result.out)) == made
    assert "duplicate" not in result.err
    assert problems(result, "a.wav", "split", "more")
    assert office.methods == ["Search", "GetTalks"]
    again = office.run("--split", "--retry-unknown")
    assert (again.code, len(office.methods)) == (0, 2)


# --- Not found, and no proof ------------------------------------------------------------


# How the service differs, the connection of the dialog, and its fields ({}: the SHA-256).
NOT_OURS: dict[str, tuple[dict[str, object], str, dict[str, str]]] = {
    "another connection": ({"search_everywhere": True}, "connection-2", {KEY: "{}"}),
    "part of a value": ({"search_contains": True}, "connection-1", {KEY: "{}0"}),
    "another key": ({"search_contains": True}, "connection-1", {"other": "{}", KEY: "{:.8}"}),
    "another project": ({"project_id": "project-2"}, "connection-1", {KEY: "{}"}),
}


@pytest.mark.parametrize("why", NOT_OURS)
def test_only_a_dialog_of_this_connection_with_this_value_counts(office: Office, why: str) -> None:
    office.unknown("a.wav")
    settings, connection_id, fields = NOT_OURS[why]
    for name, setting in settings.items():
        setattr(office.service, name, setting)
    [talk] = office.copies("a.wav")
    talk.connection_id = connection_id
    talk.fields = {key: text.format(talk.sha256) for key, text in fields.items()}
    result = office.run("--project-id", "project-1", "--retry-unknown")
    assert (result.code, result.out, len(problems(result, "a.wav"))) == (76, "", 1)
    row = office.row()
    assert (row["state"], row["talk_id"], row["found_id"]) == ("unknown", None, None)
    assert "UploadAsStream" not in office.methods


def test_what_was_sent_without_the_key_is_not_looked_for(office: Office) -> None:
    office.record("a.wav")
    office.service.script[:] = [MADE]
    assert office.upload(*office.words()[:4]).code == 76
    office.age()
    assert office.run().code == 76
    assert office.run("--lookup-key", "other_key").code == 76
    assert office.methods == ["UploadAsStream"]


def test_each_recording_is_looked_up_at_most_every_15_minutes(office: Office) -> None:
    office.unknown("a.wav", made=False)
    for minutes_ago, searches in (
        (None, 1),
        (14, 0),
        (15.02, 1),
        (-14, 0),
        (-180, 1),  # The clock was ahead then.
    ):
        office.forget_calls()
        looked_up_at = None if minutes_ago is None else before(minutes_ago * MINUTE_S)
        office.change(looked_up_at=looked_up_at)
        assert office.run().code == 76
        assert len(office.service.searches) == searches, minutes_ago
        if searches:
            assert office.row()["looked_up_at"][:16] in (before(0)[:16], before(MINUTE_S)[:16])


# --- Proof ------------------------------------------------------------------------------


def test_only_what_is_proved_missing_is_sent_again(office: Office) -> None:
    office.unknown("a.wav")
    office.unknown("b.wav", made=False)
    assert office.state() == "uploaded"  # Found by the second of these runs.
    office.unknown("c.wav")
    office.uploaded("d.wav")
    office.age()
    result = office.run("--retry-unknown")
    assert result.code == 0
    assert sorted(office.methods) == ["GetTalks", "Search", "UploadAsStream"]
    assert problems(result, "b.wav", "sent again", "missing")
    for name in ("a.wav", "b.wav", "c.wav", "d.wav"):
        assert (office.state(name), len(office.copies(name))) == ("uploaded", 1)
    assert office.digest("d.wav") in office.values()
    office.forget_calls()
    assert office.run("--retry-unknown").code == 0
    assert office.methods == []


def test_within_a_day_nothing_is_proved_and_what_is_has_to_be_told(office: Office) -> None:
    office.missing(DAY_S - MINUTE_S)
    result = office.run("--retry-unknown")
    assert (result.code, office.row()["is_missing"]) == (76, 0)
    assert office.values() == {office.digest("a.wav")}  # What proves nothing is not asked for.
    office.age(DAY_S + 1, state="unknown")
    assert office.run().code == 76
    assert (office.state(), office.row()["is_missing"]) == ("unknown", 1)
    office.forget_calls()
    assert office.run("--retry-unknown").code == 0  # No other lookup is due.
    assert office.methods == ["UploadAsStream"]
    assert (office.state(), office.row()["is_missing"]) == ("uploaded", 0)


def test_what_is_proved_missing_stays_so_until_it_is_found(office: Office) -> None:
    office.unknown("a.wav")
    office.uploaded("b.wav")
    office.age()
    [talk], [control] = office.copies("a.wav"), office.copies("b.wav")
    talk.lag_s = DAY_S
    for lag_s in (0, DAY_S):  # Then there is no control any more.
        control.lag_s = lag_s
        office.forget_lookups()
        assert office.run().code == 76
        assert office.row()["is_missing"] == 1
    talk.lag_s = 0
    office.forget_lookups()
    assert office.run("--retry-unknown").code == 0
    assert (office.state(), office.row()["is_missing"]) == ("uploaded", 0)
    assert len(office.copies("a.wav")) == 1


def test_any_of_the_next_three_is_a_control(office: Office) -> None:
    """The latest upload is not: the index may be an hour behind, with a run every five minutes."""
    office.uploaded("before.wav")
    office.unknown("a.wav", made=False)
    office.uploaded("1.wav", "2.wav", "3.wav", "4.wav")
    # By their clocks nothing came later.
    office.change(sent_at=before(9 * DAY_S), uploaded_at=before(9 * DAY_S))
    office.age(state="unknown")
    for indexed, is_missing in (("1", 1), ("2", 1), ("3", 1), ("4", 0), ("", 0)):
        for name in "1234":
            office.copies(f"{name}.wav")[0].lag_s = 0 if name == indexed else DAY_S
        office.change({"state": "unknown"}, is_missing=0, looked_up_at=None)
        office.forget_calls()
        assert office.run().code == 76
        assert office.row()["is_missing"] == is_missing, indexed
        controls = {office.digest(f"{name}.wav") for name in "123"}
        assert office.values() == {office.digest("a.wav"), *controls}


# How the row of the control is changed, and how the service.
NO_CONTROL: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "another key": ({"lookup_key": "other"}, {}),
    "split itself": ({"split": 1}, {}),
    "still unknown": ({"state": "unknown", "looked_up_at": before(-HOUR_S)}, {}),
    "not in the index": ({"sha256": value(0)}, {}),
    "in another project": ({}, {"project_id": "project-2"}),
    "a failing search": (
        {},
        {"on_call": lambda call: NOT_MADE if call.method == "Search" else None},
    ),
    "a failing Get": (
        {},
        {"on_call": lambda call: NOT_MADE if call.method == "GetTalks" else None},
    ),
}


@pytest.mark.parametrize("why", NO_CONTROL)
def test_without_a_control_nothing_is_sent_again(office: Office, why: str) -> None:
    columns, settings = NO_CONTROL[why]
    office.missing()
    if columns:
        office.change({"state": "uploaded"}, **columns)
    for name, setting in settings.items():
        setattr(office.service, name, setting)
    result = office.run("--retry-unknown", "--project-id", "project-1")
    assert (result.code, office.row()["is_missing"]) == (76, 0)
    assert "UploadAsStream" not in office.methods


@pytest.mark.parametrize("limit", ["search_page", "get_talks"])
def test_what_a_page_or_get_leaves_out_is_not_missing(office: Office, limit: str) -> None:
    names = ("a.wav", "b.wav")
    office.unknown(*names)
    office.uploaded("later.wav")
    office.age(state="unknown")
    office.copies("later.wav")[0].created_s = 0.0  # So that the control comes first.
    for number, code in ((1, 76), (100, 0)):
        setattr(office.service, limit, number)
        office.forget_lookups()
        office.forget_calls()
        assert office.run("--retry-unknown").code == code
        assert office.methods == ["Search", "GetTalks"]
        assert all(len(office.copies(name)) == 1 for name in names)


@pytest.mark.parametrize("hours", [(3, 0), (-3, 0), (0, 3), (-11, 11), (11, -11)])
def test_clocks_that_jump_by_hours_prove_nothing(
    office: Office, hours: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One duplicate came of an upload from the future, which every later one seemed to precede."""

    def run_at(hour: int, *more: object) -> int:
        # Not the service's clock.
        shifted = {**vars(time), "time": lambda: time.time() + hour * HOUR_S}
        monkeypatch.setattr(upload_grpc, "time", types.SimpleNamespace(**shifted))
        return office.run(*more).code

    lost_hour, control_hour = hours
    office.service.index_lag_s = lambda: HOUR_S
    office.record("a.wav")
    office.service.script[:] = [MADE]
    assert run_at(lost_hour) == 76
    office.service.index_lag_s = lambda: 0
    office.record("b.wav")
    assert run_at(control_hour) == 76
    for hour in (0, control_hour, lost_hour):
        office.forget_lookups()
        assert run_at(hour, "--retry-unknown") == 76
    assert (len(office.copies("a.wav")), office.state()) == (1, "unknown")


# --- What is not sent again: why, and what would help -------------------------------------


SEND_ANYWAY = "--retry-unknown without --lookup-key sends it, and may create a duplicate"
WHY_NOT: dict[str, tuple[dict[str, object], str]] = {
    "young": ({}, "within a day of sending no lookup can prove it missing; run again after "),
    "no control": (
        {"sent_at": before(2 * DAY_S)},
        "no lookup has found one of the 3 recordings uploaded next after it, but not it; "
        f'if there are any, check that the connection has the key "{KEY}"',
    ),
    "no key": (
        {"lookup_key": None},
        f'it was sent without "{KEY}", so it is not looked up; {SEND_ANYWAY}',
    ),
    "split": (
        {"sent_at": before(2 * DAY_S), "split": 1},
        f"no lookup can prove a split recording missing; {SEND_ANYWAY}",
    ),
}


@pytest.mark.parametrize("why", WHY_NOT)
def test_what_is_not_sent_again_says_why_not_and_what_would_help(office: Office, why: str) -> None:
    columns, reason = WHY_NOT[why]
    office.missing(HOUR_S)
    office.copies("b.wav")[0].lag_s = DAY_S
    if columns:
        office.change({"state": "unknown"}, **columns)
    if why == "young":
        sent_at = datetime.datetime.fromisoformat(office.row()["sent_at"][:16])
        reason += f"{sent_at + datetime.timedelta(days=1):%Y-%m-%d %H:%M} UTC"
    result = office.run("--retry-unknown")
    assert (result.code, result.out) == (76, "")
    [line] = problems(result, "a.wav")
    assert f"{office.folder / 'a.wav'}: not sent, as it may have been uploaded: " in line
    assert f"; {reason}" in line
    assert "(with --ledger: --retry-unknown)" not in line
    assert not office.copies("a.wav")
    # It is as the line says.
    assert office.upload(*office.words()[:4], "--retry-unknown").code == 0
    assert len(office.copies("a.wav")) == 1


# --- What goes wrong with looking up ------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1], ids=["Search", "Get"])
def test_a_lookup_that_fails_is_one_line_and_stops_nothing(office: Office, steps: int) -> None:
    office.unknown("a.wav")
    failing = set(STATUS) - {STATUS.OK, STATUS.UNAUTHENTICATED}
    for status in sorted(failing, key=lambda status: status.name):
        # What is unknown need not be named, and then its exit code is not this run's.
        path = office.record(f"{status.name}.wav")
        office.forget_lookups()
        office.script_lookups(*[None] * steps, Fail(status, "as scripted"))
        result = office.run_for(path)
        assert (result.code, len(result.out.splitlines())) == (0, 1), (status, result)
        [line] = result.err.splitlines()
        assert "could not be looked up" in line
        assert status.name in line and "as scripted" in line
        assert "role" in line or status is not STATUS.PERMISSION_DENIED
        assert "upload failed" not in line and "fix the recording" not in line
        assert len(office.copies(path.name)) == 1
    # A failure costs calls, too.
    office.forget_calls()
    assert office.run_for(path).code == 0
    assert office.methods == []
    assert office.state() == "unknown"
    office.forget_lookups()
    assert office.run().code == 0


@pytest.mark.parametrize(
    ("step", "searches"),
    [
        (Fail(STATUS.INTERNAL, "as scripted"), 3),
        (Fail(STATUS.NOT_FOUND, "as scripted"), 3),
        (Fail(STATUS.INVALID_ARGUMENT, "as scripted"), 3),
        # Where the others would meet the same: of the last one there is nothing that tells of the
        # service, as if the connection had been cut.
        (Fail(STATUS.PERMISSION_DENIED, "as scripted"), 1),
        (Fail(STATUS.UNIMPLEMENTED, "as scripted"), 1),
        (Fail(STATUS.RESOURCE_EXHAUSTED, "as scripted"), 1),  # The quota.
        (Freeze(), 1),
        (Fail(STATUS.UNAVAILABLE, "as scripted", ids=False), 1),
    ],
)
def test_an_error_of_one_batch_leaves_the_others_their_turn(
    office: Office, waits: Waits, step: Step, searches: int
) -> None:
    # On a busy machine a handshake alone may take half a second.
    waits(lookup_answer=3 if isinstance(step, Freeze) else 20)
    office.add_unknown_rows(60, before(HOUR_S))
    office.record("b.wav")
    office.script_lookups(*[step] * 3)
    result = office.run()
    said = "as scripted" if isinstance(step, Fail) else "no progress for 3 s"
    assert (result.code, len(problems(result, "looked up", said))) == (0, 1)
    assert len(office.service.searches) == searches
    assert len(office.copies("b.wav")) == 1


def test_a_credential_that_is_refused_stops_the_run(office: Office) -> None:
    office.unknown("a.wav")
    office.record("b.wav")
    office.service.keys = ()
    result = office.run()
    assert (result.code, result.out, office.methods) == (77, "", ["Search"])
    first, last = result.err.splitlines()
    assert "UNAUTHENTICATED" in first and "not tried" in last
    assert ledgers.runs(office.ledger)[-1]["exit_code"] == 77


# --- How many calls -----------------------------------------------------------------------


def test_469_unknown_take_50_calls_and_two_runs(office: Office) -> None:
    office.uploaded("talk.wav")
    [talk] = office.copies("talk.wav")
    office.add_unknown_rows(469, before(DAY_S + 1))
    for number in range(469):
        copy = dataclasses.replace(talk, talk_id=f"talk-{number}", fields={KEY: value(number)})
        office.service.talks[copy.talk_id] = copy
    first, second = office.run(), office.run()
    assert (first.code, second.code) == (0, 0)  # What is unknown was not named.
    assert (len(office.service.searches), len(office.service.gets)) == (25, 25)
    assert max(len(office.values(number)) for number in range(25)) == 20
    assert len(problems(first, "limit of 30 lookups per run reached", "next run")) == 1
    assert [len(run.out.splitlines()) for run in (first, second)] == [15 * 19, 469 - 15 * 19]
    assert problems(second, "184 found in the service")
    assert office.run().out == ""
    assert len(office.service.searches) == 25


def test_what_a_run_did_not_get_to_comes_first_in_the_next(office: Office) -> None:
    office.add_unknown_rows(700, before(HOUR_S))
    for _ in range(2):
        assert office.run().code == 0
        ledgers.pass_time(office.ledger, HOUR_S)
    asked = [office.values(number) for number in range(60)]
    assert len(set().union(*asked)) == 700


def test_a_pause_between_calls(office: Office, waits: Waits) -> None:
    waits(lookup_pause=0.2)
    office.unknown("a.wav", "b.wav")
    started_s = time.monotonic()
    assert office.run().code == 0
    assert office.methods == ["Search", "GetTalks"]
    assert time.monotonic() - started_s >= 0.2


def test_what_is_found_does_not_end_the_doubt(office: Office) -> None:
    """A service that makes dialogs and never answers costs two recordings a run, not all."""
    office.record(*(f"{number}.wav" for number in range(8)))
    office.service.script[:] = [MADE] * 100
    office.run("--jobs", 1)
    assert [office.state(f"{number}.wav") for number in range(5)] == ["unknown"] * 5
    result = office.run("--jobs", 1, "--format", "json")
    assert result.code == 76
    outcomes = [json.loads(line)["outcome"] for line in result.out.splitlines()]
    assert (outcomes.count("uploaded"), outcomes.count("unknown")) == (5, 2)


# --- Killed and stopped -----------------------------------------------------------------


def test_killed_between_get_and_the_ledger(office: Office) -> None:
    office.unknown("a.wav", "b.wav")
    office.record("c.wav")
    office.script_lookups(None, Freeze())
    with start(*arguments(office.service, *office.words("--retry-unknown"))) as process:
        wait_for(lambda: office.service.gets)
        process.kill()
    assert office.state() == "unknown"
    result = office.run()
    assert (result.code, len(result.out.splitlines())) == (0, 3)
    for name in ("a.wav", "b.wav", "c.wav"):
        assert (office.state(name), len(office.copies(name))) == ("uploaded", 1)


@pytest.mark.parametrize("step", [None, Freeze()], ids=["answers", "mute"])
def test_stopped_while_it_looks_up(office: Office, waits: Waits, step: Step) -> None:
    waits(lookup_answer=3)
    office.add_unknown_rows(60, before(HOUR_S))
    office.record("a.wav")

    def stop(call: Call) -> Step:
        os.kill(os.getpid(), signal.SIGTERM)
        return step

    office.service.on_call = stop
    started_s = time.monotonic()
    result = office.run()
    assert (result.code, office.methods) == (143, ["Search"])
    assert time.monotonic() - started_s < 20
    last = result.err.splitlines()[-1]
    assert "SIGTERM" in last and "1 not tried" in last


def test_bytes_that_the_kernel_holds_are_no_progress_of_a_lookup(
    office: Office, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a connection that froze would hold the run up for --timeout, and a signal with it."""
    waits(lookup_answer=0.4)
    office.unknown("a.wav")
    held = iter([1] * 20)
    monkeypatch.setattr(
        upload_grpc, "unacknowledged_bytes", lambda timeout_ms: timeout_ms > 0 and next(held, 0)
    )
    office.script_lookups(Freeze())
    assert problems(office.run(), "could not be looked up")
    assert len(list(held)) == 20
