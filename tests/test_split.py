"""--split: one recording becomes several dialogs, named by an operation that takes its time."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import ledgers
import pytest
from conftest import (
    LONG_BYTES,
    Outcome,
    Run,
    Waits,
    arguments,
    assert_refused,
    interrupt,
    make_wav,
    sparse_wav,
    start,
    wait_for,
)
from encoders import mp3, ogg_opus, wav
from stand_in import At, Call, Fail, Freeze, StandIn, Step
from yandex.cloud.operation.operation_pb2 import Operation
from yandex.cloud.speechsense.v1.talk_service_pb2 import UploadBadgeResponse

import upload_grpc

GONE = Fail(grpc.StatusCode.UNAVAILABLE, "gone for a moment")


@pytest.fixture
def call(tmp_path: Path) -> Path:
    return make_wav(tmp_path / "call.wav", LONG_BYTES)


@pytest.fixture
def calls(tmp_path: Path) -> list[Path]:
    return [make_wav(tmp_path / f"{number}.wav") for number in range(3)]


@pytest.fixture
def split(upload: Run, fields: Path, waits: Waits) -> Run:
    """Upload with --split, and ask fifty times as often as the program does."""
    waits(split_limit=20)
    return lambda *words: upload("--split", "--meta-path", fields, "--audio-path", *words)


def methods(service: StandIn) -> list[str]:
    return [received.method for received in service.calls]


def lines(service: StandIn, *, dialogs: bool = True, path: Path | None = None) -> str:
    """Return what stdout says of the only recording there is; path: with a ledger."""
    [badge] = service.badges.values()
    talk_ids = badge.response.talk_ids if dialogs else []
    said = [f"Badge ID: {badge.response.badge_id}", *(f"Dialog ID: {each}" for each in talk_ids)]
    prefix = f"{path}: " if path else ""
    return "".join(f"{prefix}{line}\n" for line in said)


# --- What can be split ----------------------------------------------------------------------


def test_wav_and_mp3_of_one_channel_become_a_badge(
    split: Run, service: StandIn, call: Path
) -> None:
    for kind, audio in {"WAV": wav(), "MP3": mp3()}.items():
        for record in (service.calls, service.badges, service.talks):
            record.clear()
        call.write_bytes(audio)
        assert split(call) == Outcome(0, lines(service, dialogs=False), "")
        assert methods(service) == ["UploadBadge"]
        for talk in service.talks.values():
            assert talk.audio and talk.audio.read_bytes() == audio
            assert kind in str(talk.audio_format)
            assert talk.fields == {"language": "ru-RU"}


def test_nothing_else_is_sent_to_be_split(split: Run, service: StandIn, call: Path) -> None:
    for audio, found in ((wav(channels=2), "2 channels"), (ogg_opus(), "OggOpus")):
        call.write_bytes(audio)
        assert_refused(split(call), service, 65, f"{call}: ", found, "--split")


def test_more_than_four_hours_are_left_to_the_service(split: Run, tmp_path: Path) -> None:
    """How long a recording may be that it splits, it does not say."""
    path = sparse_wav(tmp_path / "day.wav", 2 * 8_000 * 60 * 60 * 5)
    outcome = split(path, "--dry-run")
    assert (outcome.code, outcome.err) == (0, "")


# --- Without --wait -------------------------------------------------------------------------


def test_a_try_that_made_no_badge_is_repeated_and_a_lost_answer_is_not(
    split: Run, service: StandIn, call: Path
) -> None:
    def refuse_late(received: Call) -> Step:
        if len(service.calls) > 1:
            return service.next_step(received)
        time.sleep(0.3)  # As on a busy machine: gRPC must not have taken the whole recording.
        return Fail(grpc.StatusCode.UNAVAILABLE, "full", after_bytes=0)

    service.on_call = refuse_late
    outcome = split(call, "--format", "json")
    result = json.loads(outcome.out)
    [badge] = service.badges.values()
    assert (outcome.code, len(service.calls)) == (0, 2)
    assert (result["outcome"], result["badge_id"]) == ("uploaded", badge.response.badge_id)
    assert (result["exit_code"], result["talk_id"], result["talk_ids"]) == (0, None, [])

    service.script.append(Fail(grpc.StatusCode.UNAVAILABLE, "gone", store=True))
    outcome = split(call)
    assert (outcome.code, outcome.out, len(service.calls)) == (76, "", 3)


def change_operations(service: StandIn, change: Callable[[Operation], object]) -> None:
    """Have each operation changed before it is the answer to an upload."""

    def change_last(call: Call) -> None:
        change(list(service.badges.values())[-1].operation)

    service.on_call = lambda call: At(answer=change_last) if call.method == "UploadBadge" else None


def test_an_operation_without_a_badge_is_named_by_its_own_id(
    split: Run, service: StandIn, call: Path
) -> None:
    change_operations(service, lambda operation: operation.ClearField("metadata"))
    outcome = split(call, "--wait")
    [operation_id] = service.badges
    dialogs = "".join(f"Dialog ID: {talk_id}\n" for talk_id in service.talks)
    assert outcome == Outcome(0, f"Operation ID: {operation_id}\n{dialogs}", "")


@pytest.mark.parametrize("failed", [False, True])
def test_an_operation_that_is_done_at_once_needs_no_wait(
    split: Run, service: StandIn, call: Path, ledger: Path, failed: bool
) -> None:
    def finish(operation: Operation) -> None:
        operation.done = True
        if failed:
            operation.error.message = "nobody speaks in it"
        else:
            operation.response.Pack(UploadBadgeResponse(talk_ids=["talk-1", "talk-2"]))

    change_operations(service, finish)
    for words in ((), ("--wait",)):
        outcome = split(call, "--ledger", ledger, *words)
        assert outcome.code == (65 if failed else 0)
        assert ("nobody speaks in it" in outcome.err) == failed
        said = "".join(f"{call}: Dialog ID: talk-{number}\n" for number in (1, 2))
        assert outcome.out.endswith(said) != failed
        assert methods(service) == ["UploadBadge"]
    assert ledgers.row(ledger)["state"] == ("rejected" if failed else "uploaded")
    assert ledgers.row(ledger)["talk_id"] == (None if failed else "talk-1 talk-2")


# --- With --wait ----------------------------------------------------------------------------


@pytest.mark.parametrize(("polls", "talks"), [(0, 1), (7, 3)])
def test_wait_follows_the_operation_to_the_dialogs(
    split: Run, service: StandIn, call: Path, polls: int, talks: int
) -> None:
    service.badge_polls, service.badge_talks = polls, talks
    started_s = time.monotonic()
    assert split(call, "--wait") == Outcome(0, lines(service), "")
    assert methods(service) == ["UploadBadge", *["Get"] * (polls + 1)]
    # Ever less often: pauses of 0.02 s, and no more than that, would take 0.14 s.
    assert time.monotonic() - started_s > (0.4 if polls else 0)


def test_each_of_several_recordings_is_followed(
    split: Run, service: StandIn, calls: list[Path]
) -> None:
    outcome = split(*calls, "--wait", "--jobs", 2, "--format", "json", "--quiet")
    assert (outcome.code, outcome.err) == (0, "")
    results = [json.loads(line) for line in outcome.out.splitlines()]
    assert {result["path"] for result in results} == set(map(str, calls))
    assert all(result["talk_id"] is None for result in results), "none is the recording's"
    badges = [badge.response for badge in service.badges.values()]
    expected = {badge.badge_id: [*badge.talk_ids] for badge in badges}
    assert {result["badge_id"]: result["talk_ids"] for result in results} == expected


def test_an_operation_that_fails_is_told_with_its_reason_and_never_sent_again(
    split: Run, service: StandIn, call: Path, ledger: Path
) -> None:
    service.badge_error = (grpc.StatusCode.INTERNAL, "broken")
    for _ in range(2):
        outcome = split(call, "--wait", "--ledger", ledger)
        assert (outcome.code, outcome.out) == (65, lines(service, dialogs=False, path=call))
        assert f"{call}: " in outcome.err and "broken" in outcome.err
    assert methods(service).count("UploadBadge") == 1


def test_an_operation_that_cannot_be_parsed_is_no_bug_of_ours(
    split: Run, service: StandIn, call: Path, ledger: Path
) -> None:
    service.badge_damaged = True
    outcome = split(call, "--wait", "--ledger", ledger)
    [operation_id] = service.badges
    assert (outcome.code, outcome.out) == (65, f"{call}: Operation ID: {operation_id}\n")
    [line] = outcome.err.splitlines()
    assert operation_id in line and "no dialog" in line
    assert ledgers.row(ledger)["state"] == "uploaded"


@pytest.mark.parametrize(("remembered", "code"), [(False, 76), (True, 75)])
def test_an_operation_that_goes_on_can_be_waited_for_later_with_a_ledger(
    split: Run, service: StandIn, call: Path, ledger: Path, waits: Waits,
    remembered: bool, code: int,
) -> None:  # fmt: skip
    """Without one, running the command again would upload it twice."""
    waits(split_limit=0.2)
    words = ("--wait", *(("--ledger", ledger) if remembered else ()))
    service.badge_polls = 1_000
    outcome = split(call, *words)
    [(operation_id, badge)] = service.badges.items()
    said = lines(service, dialogs=False, path=call if remembered else None)
    assert (outcome.code, outcome.out) == (code, said)
    [line] = outcome.err.splitlines()
    assert f"{call}: " in line and operation_id in line
    if remembered:
        assert ledgers.row(ledger)["state"] == "uploaded"
        badge.polls_left = 0
        assert split(call, *words) == Outcome(0, lines(service, path=call), "")
        assert methods(service).count("UploadBadge") == 1


# --- A service that is away for a while -----------------------------------------------------


def test_a_poll_that_fails_or_has_no_answer_is_repeated(
    split: Run, service: StandIn, call: Path
) -> None:
    service.script += [None, Freeze(), GONE, None, GONE]
    outcome = split(call, "--wait", "--timeout", 3)
    assert (outcome.code, outcome.out) == (0, lines(service))
    assert methods(service).count("UploadBadge") == 1
    assert outcome.err.count("gone for a moment") == 2


def test_a_poll_that_is_refused_is_not_repeated(
    split: Run, service: StandIn, calls: list[Path]
) -> None:
    """A refused credential ends the run; an operation that nobody knows is one of several."""
    for status, code, polls in (
        (grpc.StatusCode.PERMISSION_DENIED, 77, 1),
        (grpc.StatusCode.NOT_FOUND, 65, 7),
        (grpc.StatusCode.UNIMPLEMENTED, 65, 7),
    ):
        service.calls.clear()
        service.script += [None, Fail(status, "as scripted")]
        outcome = split(*calls, "--wait", "--jobs", 1)
        assert outcome.code == code
        assert f"{calls[0]}: uploaded, but not yet split: " in outcome.err
        assert "as scripted" in outcome.err
        assert methods(service).count("Get") == polls
        assert outcome.out.count("Dialog ID: ") == polls // 3 * 2


def test_operations_may_be_at_an_endpoint_of_their_own(
    split: Run, service: StandIn, call: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of the cloud's other services are, for the public endpoint."""
    with StandIn(tmp_path / "bare", certs=service.store / "certs") as bare:
        bare.badges = service.badges
        monkeypatch.setattr(upload_grpc, "ENDPOINT", bare.endpoint)
        monkeypatch.setattr(upload_grpc, "OPERATIONS_ENDPOINT", service.endpoint)
        outcome = split(call, "--endpoint", bare.endpoint, "--wait")
    assert outcome == Outcome(0, lines(service), "")
    assert (methods(bare), set(methods(service))) == (["UploadBadge"], {"Get"})


# --- The ledger -----------------------------------------------------------------------------


def test_a_later_run_takes_up_the_wait_and_sends_nothing(
    split: Run, service: StandIn, call: Path, ledger: Path
) -> None:
    first = split(call, "--ledger", ledger)
    [(operation_id, badge)] = service.badges.items()
    before = ledgers.row(ledger)
    assert (before["state"], before["talk_id"]) == ("uploaded", None)
    assert before["badge_id"] == badge.response.badge_id
    assert before["operation_id"] == operation_id
    said = lines(service, dialogs=False, path=call)
    assert split(call, "--ledger", ledger) == first == Outcome(0, said, "")
    assert len(service.calls) == 1, "without --wait nothing is asked"

    # Of a folder only what is new is printed: the dialogs are, although nothing was uploaded.
    outcome = split(call.parent, "--ledger", ledger, "--wait", "--quiet")
    assert (outcome.code, outcome.err) == (0, "")
    assert all(talk_id in outcome.out for talk_id in badge.response.talk_ids)
    after = ledgers.row(ledger)
    assert after["talk_id"].split() == badge.response.talk_ids
    changed = {key for key in after if after[key] != before[key]}
    assert changed - {"updated_at"} == {"talk_id"}
    assert methods(service) == ["UploadBadge", *["Get"] * 3]

    assert split(call, "--ledger", ledger, "--wait") == Outcome(0, lines(service, path=call), "")
    assert len(service.calls) == 4, "what is known is not asked again"


def test_a_copy_of_what_is_being_split_is_not_waited_for_as_well(
    split: Run, service: StandIn, call: Path, ledger: Path, waits: Waits
) -> None:
    waits(split_limit=0.2)
    service.badge_polls = 1_000
    shutil.copy(call, call.with_name("copy.wav"))
    outcome = split(call, call.with_name("copy.wav"), "--ledger", ledger, "--wait")
    assert (outcome.code, len(service.badges)) == (75, 1)
    assert outcome.err.count("is not done after") == 1
    again = split(call, call.with_name("copy.wav"), "--ledger", ledger, "--wait")
    assert again.err.count("is not done after") == 1


def test_what_is_sent_again_has_no_id_of_an_earlier_badge(
    split: Run, upload: Run, service: StandIn, call: Path, ledger: Path, fields: Path
) -> None:
    def fail(operation: Operation) -> None:
        operation.done = True
        operation.error.message = "nobody speaks in it"

    change_operations(service, fail)
    assert split(call, "--ledger", ledger).code == 65
    words = ("--audio-path", call, "--meta-path", fields, "--ledger", ledger, "--quiet")
    first, second = upload(*words, "--retry-rejected"), upload(*words)
    said = f"{call}: Dialog ID: {ledgers.row(ledger)['talk_id']}\n"
    assert first == second == Outcome(0, said, "")
    assert ledgers.row(ledger)["badge_id"] is None


@pytest.mark.parametrize("hangs", [False, True], ids=["pause", "call that hangs"])
def test_a_wait_that_a_signal_ends_leaves_the_recording_uploaded_and_can_be_taken_up(
    split: Run, service: StandIn, call: Path, ledger: Path, hangs: bool
) -> None:
    service.badge_polls = 1_000
    service.script += [None, Freeze()] if hangs else []
    words = ("--split", "--wait", "--ledger", ledger, "--meta-path", call.with_name("fields.json"))
    with start(*arguments(service, "--audio-path", call, "--timeout", 60, *words)) as process:
        wait_for(lambda: "Get" in methods(service))
        outcome = interrupt(process, "SIGTERM")
    assert outcome.out == lines(service, dialogs=False, path=call)
    assert hangs or f"{call}: " in outcome.err
    assert "1 uploaded" in outcome.err and "0 unknown" in outcome.err
    assert "unknown:" not in outcome.err
    assert ledgers.row(ledger)["state"] == "uploaded"
    [badge] = service.badges.values()
    badge.polls_left = 0
    assert split(call, "--ledger", ledger, "--wait") == Outcome(0, lines(service, path=call), "")
    assert methods(service).count("UploadBadge") == 1


def test_where_operations_cannot_be_reached_recordings_are_uploaded_all_the_same(
    split: Run, service: StandIn, folder: Path, ledger: Path
) -> None:
    """Each worker gives up after two, whether of earlier runs or new ones."""
    words = (folder, "--ledger", ledger, "--jobs", 1, "--retries", 0)
    for number in range(8):
        make_wav(folder / f"{number}.wav", 3_000)
    assert split(*words).code == 0
    for number in range(8, 16):
        make_wav(folder / f"{number}.wav", 3_000)
    service.on_call = lambda call: GONE if call.method == "Get" else None
    outcome = split(*words, "--wait")
    assert outcome.code == 75
    assert "8 uploaded, 8 already there" in outcome.err
    assert (methods(service).count("Get"), len(service.badges)) == (2, 16)
    assert "uploaded, but not yet split: " in outcome.err and "not tried" not in outcome.err
    assert split(*words, "--quiet") == Outcome(0, "", ""), "no outage"
    service.on_call = lambda _: None
    assert split(*words, "--wait").code == 0
    assert len(service.badges) == 16


def until_uploads(service: StandIn, number: int) -> Callable[[Call], None]:
    """Have all splits end with an upload, of which number there are by then."""
    uploads: list[Call] = []

    def count(call: Call) -> None:
        uploads.extend([call] if call.method != "Get" else [])
        if len(uploads) >= number:
            service.badge_polls = 0
            for badge in list(service.badges.values()):
                badge.polls_left = 0

    return count


@pytest.mark.parametrize("earlier", [0, 1])
def test_a_wait_for_a_split_holds_up_nothing_in_a_run_that_begins_half_open(
    split: Run, service: StandIn, folder: Path, ledger: Path, waits: Waits, earlier: int
) -> None:
    """Also one for a recording of an earlier run.

    And an outage is over once something is uploaded, though it is not yet split.
    """
    words = (folder, "--ledger", ledger, "--retries", 0, "--quiet")
    service.badge_polls = 1_000
    for number in range(earlier):
        make_wav(folder / f"{number}.wav", 3_000)
    assert split(*words).code == 0
    for number in range(earlier, earlier + 3):
        make_wav(folder / f"{number}.wav", 3_000)
    service.on_call = lambda _: Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota")
    assert split(*words).code == 75
    assert "outage" in {problem["cause"] for problem in ledgers.problems(ledger)}
    waits(split_limit=10)
    service.on_call = until_uploads(service, 3)
    assert split(*words, "--wait", "--jobs", earlier + 3).code == 0
    assert "outage" not in {problem["cause"] for problem in ledgers.problems(ledger)}


@pytest.mark.parametrize("code", [65, 75])
def test_the_end_of_a_wait_is_no_sign_that_uploads_work(
    split: Run, service: StandIn, folder: Path, code: int
) -> None:
    """The upload was one, before; the failures after it count."""
    for number in range(12):
        make_wav(folder / f"{number:02}.wav", 3_000)
    uploads: list[Call] = []
    have_failed = threading.Event()
    service.badge_polls = 0

    def fail_but_the_first(call: Call) -> Step:
        if call.method == "Get":
            have_failed.wait(30)
            return Fail(grpc.StatusCode.NOT_FOUND) if code == 65 else None
        uploads.append(call)
        if len(uploads) == 4:
            have_failed.set()
        return Fail(grpc.StatusCode.RESOURCE_EXHAUSTED) if uploads[1:] else None

    service.on_call = fail_but_the_first
    assert split(folder, "--wait", "--jobs", 2, "--retries", 0).code == code
    # One more may have begun.
    assert len(uploads) - 1 - upload_grpc.FAILURES_LIMIT in (0, 1)


def test_operations_that_cannot_be_asked_for_stop_no_upload(
    split: Run, service: StandIn, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are at an address of their own, which a proxy or firewall may not let through."""
    for number in range(2):
        make_wav(folder / f"{number}.wav", 3_000)
    service.badge_polls = 1_000
    monkeypatch.setattr(upload_grpc, "ENDPOINT", service.endpoint)
    with StandIn(tmp_path / "untrusted") as other:
        monkeypatch.setattr(upload_grpc, "OPERATIONS_ENDPOINT", other.endpoint)
        outcome = split(folder, "--wait", "--jobs", 1)
    assert (outcome.code, len(service.badges)) == (78, 2)
    assert outcome.err.count("not yet split: the server's certificate is not trusted") == 2
