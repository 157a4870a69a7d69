"""Recordings whose answer was lost are looked up in the service, by the SHA-256 sent with them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import grpc
import ledgers
import pytest
from conftest import WAYS, Outcome, Run, Waits, Way, arguments, make_wav, sha256, start, wait_for
from stand_in import Call, Delay, Fail, FindNothing, Freeze, Slow, StandIn, Step, Talk

pytestmark = pytest.mark.usefixtures("waits")
STATUS = grpc.StatusCode
KEY = "upload_sha256"
SETTLING = ("--settle-key", KEY, "--organization-id", "org-1", "--space-id", "space-1")
# The service's answer is lost, after it has made the dialog or before.
MADE = Fail(STATUS.UNAVAILABLE, "as scripted", store=True)
NOT_MADE = Fail(STATUS.UNAVAILABLE, "as scripted")


def problems(outcome: Outcome, *words: str) -> list[str]:
    """Return the lines of stderr that have all these words."""
    return [line for line in outcome.err.splitlines() if all(word in line for word in words)]


@dataclasses.dataclass
class Office:
    """A folder of recordings, a ledger, and a service that loses answers."""

    service: StandIn
    upload: Run
    folder: Path
    ledger: Path

    def words(self, *more: object) -> tuple[object, ...]:
        return ("--audio-path", self.folder, "--ledger", self.ledger, *SETTLING, *more)

    def run(self, *more: object) -> Outcome:
        return self.upload(*self.words(*more))

    def run_blind(self, *more: object) -> Outcome:
        """Run without being allowed to look anything up."""
        self.service.viewer_role = False
        outcome = self.run(*more)
        self.service.viewer_role = True
        return outcome

    def record(self, name: str) -> Path:
        path = make_wav(self.folder / name, 1_000)
        path.with_suffix(".json").write_text("{}")
        return path

    def unknown(self, *names: str, made: bool = True, options: tuple[object, ...] = ()) -> None:
        """Record these, and have a run that loses their answers and cannot look them up."""
        for name in names:
            self.record(name)
        self.service.script[:] = [MADE if made else NOT_MADE] * len(names)
        assert self.run_blind(*options).code == 76
        self.forget_calls()

    def script_lookups(self, *, search: Iterable[Step] = (), get: Iterable[Step] = ()) -> None:
        """Have the next lookups take these steps, one each; other calls take the script's."""
        steps = {"Search": iter(search), "GetTalks": iter(get)}

        def step_of(call: Call) -> Step:
            if call.method in steps:
                return next(steps[call.method], None)
            return self.service.next_step(call)

        self.service.on_call = step_of

    def forget_calls(self) -> None:
        for received in (self.service.calls, self.service.searches, self.service.gets):
            received.clear()

    @property
    def methods(self) -> list[str]:
        return [call.method for call in self.service.calls]

    def copies(self, name: str) -> list[Talk]:
        digest = sha256(self.folder / name)
        return [talk for talk in self.service.talks.values() if talk.sha256 == digest]

    def rows(self) -> dict[str, tuple[str, str | None]]:
        """Return state and dialog ID by the file's name."""
        rows = ledgers.rows(self.ledger)
        return {Path(row["path"]).name: (row["state"], row["talk_id"]) for row in rows}

    def add_unknown_rows(self, count: int) -> None:
        """Put recordings of earlier runs into the ledger, as unknown."""
        self.run()  # Makes the ledger.
        ledgers.add_unknown(self.ledger, (f"{number:064x}" for number in range(count)), KEY)


@pytest.fixture
def office(service: StandIn, upload: Run, tmp_path: Path, ledger: Path) -> Office:
    folder = tmp_path / "calls"
    folder.mkdir()
    return Office(service, upload, folder, ledger)


# --- Options, and the key on its way --------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--settle-key", KEY, "--ledger", "l"), ("--organization-id", "--space-id")),
        (SETTLING, ("--ledger",)),
        ((*SETTLING[:4], "--ledger", "l"), ("--space-id",)),
        ((*SETTLING[2:], "--ledger", "l"), ("--settle-key",)),
        (("--project-id", "p", "--ledger", "l"), ("--settle-key",)),
        (("--settle-key", "", *SETTLING[2:], "--ledger", "l"), ("--settle-key",)),
        ((*SETTLING, "--project-id", "", "--ledger", "l"), ("--project-id",)),
    ],
)
def test_the_options_go_together(
    upload: Run, service: StandIn, call: Path, words: tuple[str, ...], named: tuple[str, ...]
) -> None:
    result = upload("--audio-path", call, *words)
    assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1)
    assert all(name in result.err for name in named)
    assert not service.calls


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
    path = office.record("call.wav")
    path.with_suffix(".json").write_text(json.dumps({KEY: "mine"}))
    common = tmp_path / "common.json"
    common.write_text(json.dumps({KEY: "ours"}))
    assert office.run().code == 65
    path.with_suffix(".json").write_text("{}")
    result = office.run("--meta-path", common)
    assert result.code == 65
    assert problems(result, "call.wav", KEY)
    assert not office.service.calls


def test_a_key_that_the_connection_does_not_have_is_the_services_to_refuse(
    office: Office,
) -> None:
    office.record("call.wav")
    office.service.fields = {"language"}
    result = office.run()
    assert result.code == 65
    assert problems(result, "call.wav", KEY)


# --- Found ----------------------------------------------------------------------------


def test_what_an_earlier_run_left_is_found(office: Office) -> None:
    office.unknown("a.wav", "b.wav")
    result = office.run("--project-id", office.service.project_id)
    assert result.code == 0
    for name in ("a.wav", "b.wav"):
        [talk] = office.copies(name)
        assert f"{office.folder / name}: Dialog ID: {talk.talk_id}\n" in result.out
        assert office.rows()[name] == ("uploaded", talk.talk_id)
    assert len(result.out.splitlines()) == 2
    assert problems(result, "2 settled", "0 unknown")
    # One search for both, and one look at what it found.
    assert office.methods == ["Search", "GetTalks"]
    [search], [get] = office.service.searches, office.service.gets
    for request in (search, get):
        place = (request.organization_id, request.space_id, request.connection_id)
        assert (*place, request.project_id) == ("org-1", "space-1", "connection-1", "project-1")
    [condition] = search.filters
    assert condition.key == f"userMeta.{KEY}"
    assert set(condition.any_match.values) == {
        sha256(office.folder / name) for name in ("a.wav", "b.wav")
    }
    assert get.HasField("results_mask") and not get.results_mask.paths

    office.forget_calls()
    again = office.run()
    assert (again.code, again.out, office.methods) == (0, "", [])


@WAYS
def test_what_this_run_lost_is_found_at_its_end(office: Office, way: Way) -> None:
    for name in ("a.wav", "b.wav"):
        office.record(name)
    office.service.script[:] = [MADE]
    result = office.run("--format", "json", *way)
    assert result.code == 0
    results = [json.loads(line) for line in result.out.splitlines()]
    assert sorted(each["settled"] for each in results) == [False, True]
    for each in results:
        [talk] = office.copies(Path(each["path"]).name)
        assert (each["outcome"], each["talk_id"]) == ("uploaded", talk.talk_id)
        assert (each["exit_code"], each["error"]) == (0, None)
    assert problems(result, "1 uploaded", "1 settled", "0 unknown")


def test_another_file_s_dialog_is_not_taken_for_that_of_the_file_named(office: Office) -> None:
    office.unknown("a.wav")
    named = office.record("b.wav")
    result = office.upload("--audio-path", named, "--ledger", office.ledger, *SETTLING)
    [a], [b] = office.copies("a.wav"), office.copies("b.wav")
    assert result.code == 0
    assert f"{office.folder / 'a.wav'}: Dialog ID: {a.talk_id}\n" in result.out
    assert f"Dialog ID: {b.talk_id}" in result.out


def test_of_several_dialogs_the_earliest_counts(office: Office) -> None:
    office.unknown("a.wav")
    [talk] = office.copies("a.wav")
    for talk_id, earlier_s in (("between", 5), ("earliest", 10)):
        copy = dataclasses.replace(talk, talk_id=talk_id, created_s=talk.created_s - earlier_s)
        office.service.save(copy)
    result = office.run()
    assert result.code == 0
    assert result.out == f"{office.folder / 'a.wav'}: Dialog ID: earliest\n"
    [line] = problems(result, "a.wav", "between")
    assert talk.talk_id in line
    assert office.rows()["a.wav"] == ("uploaded", "earliest")


def test_what_a_page_leaves_out_is_not_missing(office: Office) -> None:
    office.unknown("a.wav", "b.wav")
    office.record("later.wav")
    office.run_blind()
    office.forget_calls()
    [later] = office.copies("later.wav")
    later.created_s = 0.0  # So that it comes first.
    office.service.search_page = 1
    assert office.run("--retry-unknown").code == 76
    assert office.methods == ["Search", "GetTalks"]


def test_a_second_name_of_what_is_settled_in_the_end_is_there_already(office: Office) -> None:
    path = office.record("a.wav")
    (office.folder / "b.wav").write_bytes(path.read_bytes())
    office.service.script[:] = [MADE]
    result = office.run()
    assert (result.code, len(office.copies("a.wav"))) == (0, 1)
    assert "1 already there, 1 settled" in result.err


def test_a_name_that_version_1_stored_as_bytes(office: Office) -> None:
    office.unknown("a.wav")
    ledgers.change(office.ledger, path=b"/calls/\xff.wav")
    result = office.run("--format", "json")
    assert (result.code, json.loads(result.out)["path"]) == (0, "/calls/\udcff.wav")


def test_an_answer_of_more_than_4_mb_is_taken(office: Office) -> None:
    office.unknown("a.wav", "b.wav")
    office.service.get_padding_bytes = 3 * 1024 * 1024
    result = office.run()
    assert (result.code, len(result.out.splitlines())) == (0, 2), result.err


def test_an_index_that_lags(office: Office) -> None:
    office.record("a.wav")
    office.service.script[:] = [MADE]
    office.script_lookups(search=[FindNothing()] * 2)
    for _ in range(2):
        result = office.run()
        assert (result.code, result.out) == (76, "")
        [line] = problems(result, "a.wav", "not found")
        assert " s after it was sent" in line
    assert office.run().code == 0
    assert len(office.copies("a.wav")) == 1


def test_a_long_recording_that_arrived_is_not_sent_again(office: Office) -> None:
    office.unknown("a.wav", options=("--split",))
    made = {talk.talk_id for talk in office.copies("a.wav")}
    assert len(made) == 2
    for options in ((), ("--retry-unknown",), ("--format", "json", "--retry-unknown")):
        result = office.run("--split", *options)
        assert result.code == 76
        assert all(talk_id in result.out for talk_id in made)
        [line] = problems(result, "a.wav", "split")
        assert "complete" in line
    assert json.loads(result.out)["outcome"] == "unknown"
    # Not shown any more: what was found once is known.
    office.service.talks.clear()
    assert office.run("--split", "--retry-unknown").code == 76
    assert not [method for method in office.methods if method.startswith("Upload")]


# --- Not found, and no proof ------------------------------------------------------------


def foreign_connection(office: Office) -> None:
    office.service.search_everywhere = True
    office.copies("a.wav")[0].connection_id = "connection-2"


def part_of_a_value(office: Office) -> None:
    office.service.search_contains = True
    office.copies("a.wav")[0].fields[KEY] += "0"


def other_letters(office: Office) -> None:
    office.service.search_contains = True
    talk = office.copies("a.wav")[0]
    talk.fields["other"], talk.fields[KEY] = talk.fields[KEY], talk.fields[KEY][:8]


def foreign_project(office: Office) -> None:
    office.service.project_id = "project-2"


@pytest.mark.parametrize(
    "why", [foreign_connection, part_of_a_value, other_letters, foreign_project]
)
def test_only_a_dialog_of_this_connection_with_this_value_is_proof(
    office: Office, why: Callable[[Office], None]
) -> None:
    office.unknown("a.wav")
    why(office)
    result = office.run("--project-id", "project-1")
    assert (result.code, result.out) == (76, "")
    assert len(problems(result, "a.wav", "not found")) == 1
    assert office.rows()["a.wav"] == ("unknown", None)
    assert "UploadAsStream" not in office.methods


def test_without_the_key_nothing_is_searched_for(office: Office) -> None:
    office.record("a.wav")
    office.service.script[:] = [MADE]
    plain = ("--audio-path", office.folder, "--ledger", office.ledger)
    assert office.upload(*plain).code == 76
    result = office.run()
    assert result.code == 76
    assert not problems(result, "not found in the service")
    assert office.methods == ["UploadAsStream"]


# --- --retry-unknown --------------------------------------------------------------------


def test_only_what_is_missing_is_sent_again(office: Office) -> None:
    office.unknown("a.wav")
    office.unknown("b.wav", made=False)
    office.record("c.wav")
    office.script_lookups(search=[FindNothing()] * 100)
    assert office.run().code == 76  # c.wav is uploaded, later than the others were sent.
    office.script_lookups()
    office.forget_calls()
    result = office.run("--retry-unknown")
    assert result.code == 0
    assert sorted(office.methods) == ["GetTalks", "Search", "UploadAsStream"]
    for name in ("a.wav", "b.wav", "c.wav"):
        [talk] = office.copies(name)
        assert office.rows()[name] == ("uploaded", talk.talk_id)
    [search] = office.service.searches
    assert sha256(office.folder / "c.wav") in search.filters[0].any_match.values


def no_control(office: Office) -> None:
    """Nothing has been uploaded since."""


def key_dropped(office: Office) -> None:
    office.service.dropped_fields = (KEY,)
    later_upload(office)


def not_in_the_project(office: Office) -> None:
    later_upload(office)
    office.service.project_id = "project-2"


def later_upload(office: Office) -> None:
    office.record("b.wav")
    assert office.run().code == 76
    office.forget_calls()


@pytest.mark.parametrize("why", [no_control, key_dropped, not_in_the_project])
def test_without_a_control_nothing_is_sent_again(
    office: Office, why: Callable[[Office], None]
) -> None:
    office.unknown("a.wav", made=False)
    why(office)
    result = office.run("--retry-unknown", "--project-id", "project-1")
    assert result.code == 76
    [line] = problems(result, "a.wav", "cannot see", KEY)
    assert "role" in line and "project" in line
    assert "UploadAsStream" not in office.methods


def test_a_control_is_uploaded_later(office: Office) -> None:
    office.record("b.wav")
    assert office.run().code == 0
    office.unknown("a.wav", made=False)
    result = office.run("--retry-unknown")
    assert result.code == 76
    [line] = problems(result, "a.wav", "not found")
    assert "cannot see" not in line  # b.wav is seen, but had been uploaded before.
    office.record("c.wav")
    assert office.run().code == 76
    assert not office.copies("a.wav")
    assert office.run("--retry-unknown").code == 0
    assert len(office.copies("a.wav")) == 1


def test_a_hit_that_get_does_not_return_is_not_sent_again(office: Office) -> None:
    office.unknown("a.wav", "b.wav")
    office.record("c.wav")
    office.run_blind()
    office.service.get_talks = 1
    # The control is what Get shows.
    [control] = office.copies("c.wav")
    control.created_s = 0
    result = office.run("--retry-unknown")
    assert result.code == 76
    assert all(len(office.copies(name)) == 1 for name in ("a.wav", "b.wav"))
    office.service.get_talks = 100
    assert office.run("--retry-unknown").code == 0
    assert all(len(office.copies(name)) == 1 for name in ("a.wav", "b.wav", "c.wav"))


@pytest.mark.parametrize("method", ["search", "get"])
def test_where_looking_up_fails_nothing_is_sent_again(office: Office, method: str) -> None:
    office.unknown("a.wav")
    office.record("b.wav")
    office.run_blind()
    failure = Fail(STATUS.UNAVAILABLE, "as scripted")
    office.script_lookups(**{method: [failure]})
    assert office.run("--retry-unknown").code == 76
    assert len(office.copies("a.wav")) == 1


# --- What goes wrong with looking up ------------------------------------------------------


@pytest.mark.parametrize("method", ["search", "get"])
def test_a_lookup_that_fails_is_one_line_and_stops_nothing(office: Office, method: str) -> None:
    office.unknown("a.wav")
    failing = set(STATUS) - {STATUS.OK, STATUS.UNAUTHENTICATED}
    for status in sorted(failing, key=lambda status: status.name):
        # What is unknown need not be named, and then its exit code is not this run's.
        path = office.record(f"{status.name}.wav")
        failure = Fail(status, "as scripted")
        office.script_lookups(**{method: [failure]})
        result = office.upload("--audio-path", path, "--ledger", office.ledger, *SETTLING)
        assert (result.code, len(result.out.splitlines())) == (0, 1), (status, result)
        [line] = result.err.splitlines()
        assert status.name in line and "as scripted" in line
        assert "role" in line or status is not STATUS.PERMISSION_DENIED
        assert len(office.copies(path.name)) == 1
    assert office.rows()["a.wav"] == ("unknown", None)
    assert office.run().code == 0


def test_a_credential_that_is_refused_stops_the_run(office: Office) -> None:
    office.unknown("a.wav")
    office.record("b.wav")
    office.service.keys = ()
    result = office.run()
    assert (result.code, result.out) == (77, "")
    assert office.methods == ["Search"]
    [line] = result.err.splitlines()
    assert "UNAUTHENTICATED" in line


def test_a_credential_that_is_refused_at_the_end(office: Office) -> None:
    office.record("a.wav")
    office.service.script[:] = [MADE]
    office.script_lookups(search=[Fail(STATUS.UNAUTHENTICATED, "as scripted")])
    result = office.run()
    assert result.code == 77
    assert len(problems(result, "a.wav")) == len(problems(result, "UNAUTHENTICATED")) == 1


def test_a_mute_search_ends_with_the_timeout(office: Office) -> None:
    office.unknown("a.wav")
    office.record("b.wav")
    office.script_lookups(search=[Freeze()])
    result = office.run("--timeout", "0.3")
    assert result.code == 76
    assert len(problems(result, "0.3 s")) == 1
    assert len(office.copies("b.wav")) == 1


def test_469_unknown_take_50_calls_and_two_runs(office: Office) -> None:
    make_wav(office.folder / "talk.wav", 1_000)
    office.run()
    office.add_unknown_rows(469)
    office.forget_calls()
    [talk] = office.copies("talk.wav")
    for number in range(469):
        copy = dataclasses.replace(talk, talk_id=f"talk-{number}", fields={KEY: f"{number:064x}"})
        office.service.talks[copy.talk_id] = copy
    first, second = office.run(), office.run()
    assert (first.code, second.code) == (0, 0)  # What is unknown was not named.
    assert (len(office.service.searches), len(office.service.gets)) == (25, 25)
    values = [len(search.filters[0].any_match.values) for search in office.service.searches]
    assert max(values) <= 20
    assert len(problems(first, "30 calls", "next run")) == 1
    settled = (len(first.out.splitlines()), len(second.out.splitlines()))
    assert sum(settled) == 469 and settled[0] == 15 * 19
    assert problems(second, "184 settled")
    assert office.run().out == ""
    assert len(office.service.searches) == 25


def test_a_pause_between_calls(office: Office, waits: Waits) -> None:
    waits(lookup_pause=0.2)
    office.unknown("a.wav", "b.wav")
    started_s = time.monotonic()
    assert office.run().code == 0
    assert office.methods == ["Search", "GetTalks"]
    assert time.monotonic() - started_s >= 0.2


def test_what_is_settled_does_not_end_the_doubt(office: Office) -> None:
    """A service that makes dialogs and never answers costs two recordings a run, not all."""
    for number in range(8):
        office.record(f"{number}.wav")
    office.service.script[:] = [MADE] * 100
    office.script_lookups(search=itertools.repeat(FindNothing()))
    office.run("--jobs", 1)
    before = list(office.rows().values()).count(("unknown", None))
    office.script_lookups()
    result = office.run("--jobs", 1, "--format", "json")
    assert result.code == 76
    outcomes = [json.loads(line)["outcome"] for line in result.out.splitlines()]
    assert (before, outcomes.count("uploaded"), outcomes.count("unknown")) == (5, 5, 2)


# --- Killed and stopped -----------------------------------------------------------------


def test_killed_between_get_and_the_ledger(office: Office) -> None:
    office.unknown("a.wav", "b.wav")
    office.record("c.wav")
    office.script_lookups(get=[Delay(5)])
    with start(*arguments(office.service, *office.words("--retry-unknown"))) as process:
        wait_for(lambda: office.service.gets)
        process.kill()
    assert office.rows()["a.wav"] == ("unknown", None)
    result = office.run()
    assert result.code == 0
    assert len(result.out.splitlines()) == 3
    for name in ("a.wav", "b.wav", "c.wav"):
        [talk] = office.copies(name)
        assert office.rows()[name] == ("uploaded", talk.talk_id)


def test_stopped_while_looking_up_at_the_start(office: Office) -> None:
    office.add_unknown_rows(60)
    office.forget_calls()
    office.record("a.wav")
    office.script_lookups(search=[Delay(0.2)])
    with start(*arguments(office.service, *office.words())) as process:
        wait_for(lambda: office.service.searches)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, office.methods) == (143, ["Search"])
    assert "SIGTERM" in err.splitlines()[-1] and "1 not tried" in err.splitlines()[-1]


def test_stopped_while_looking_up_at_the_end(office: Office) -> None:
    office.record("a.wav")
    office.service.script[:] = [MADE]
    office.script_lookups(search=[Freeze()])
    with start(*arguments(office.service, *office.words("--timeout", 1))) as process:
        wait_for(lambda: office.service.searches)
        signalled_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
    assert process.returncode == 143
    assert time.monotonic() - signalled_s < 5
    assert office.rows()["a.wav"] == ("unknown", None)
    result = office.run()
    assert (result.code, len(result.out.splitlines())) == (0, 1)
    assert len(office.copies("a.wav")) == 1


def test_what_waits_to_be_looked_up_is_named_if_the_run_is_left(office: Office) -> None:
    """After a signal, workers that hang in the disk are left; nothing is printed twice."""
    office.record("a.wav")
    office.record("b.wav")
    office.service.script[:] = [MADE, Slow(4_000)]
    given = arguments(office.service, *office.words("--jobs", 1, "--format", "json", "--quiet"))
    with start(*given) as process, contextlib.ExitStack() as undo:
        undo.callback(process.kill)
        wait_for(lambda: len(office.service.calls) == 2)
        undo.enter_context(ledgers.locked(office.ledger))
        time.sleep(1.8)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=10)
    results = [json.loads(line) for line in out.splitlines()]
    named = [(Path(result["path"]).name, result["outcome"]) for result in results]
    assert (process.returncode, sorted(named)) == (143, [("a.wav", "unknown"), ("b.wav", "failed")])
    assert [err.count(f"{name}.wav: ") for name in "ab"] == [1, 1]
    assert "1 unknown" in err.splitlines()[-1]
