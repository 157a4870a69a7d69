"""--split: one recording becomes several dialogs, named by an operation that takes its time."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import stand_in
from conftest import Outcome, Run, arguments, make_wav, start
from encoders import mp3, ogg_opus, pcm, wav
from stand_in import Call, Fail, Freeze, StandIn
from yandex.cloud.operation import operation_pb2, operation_service_pb2_grpc
from yandex.cloud.speechsense.v1 import talk_service_pb2

import upload_grpc

GONE = Fail(grpc.StatusCode.UNAVAILABLE, "gone for a moment")

Split = Callable[..., Outcome]


@pytest.fixture
def call(tmp_path: Path) -> Path:
    """Make a recording larger than what gRPC could repeat from a buffer of its own."""
    return make_wav(tmp_path / "call.wav", 600_000)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture(autouse=True)
def _no_time_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask fifty times as often as the program does."""
    monkeypatch.setattr(upload_grpc, "POLL_S", 0.02)
    monkeypatch.setattr(upload_grpc, "POLL_LIMIT_S", 0.6)
    monkeypatch.setattr(upload_grpc, "BACKOFF_S", 0.02)


@pytest.fixture
def split(upload: Run, tmp_path: Path) -> Split:
    """Upload with --split, with metadata that gives no warning."""
    fields = tmp_path / "fields.json"
    fields.write_text('{"language": "ru-RU"}')
    return lambda *words: upload("--split", "--meta-path", fields, *words)


def methods(service: StandIn) -> list[str]:
    return [received.method for received in service.calls]


def only_badge(service: StandIn) -> tuple[str, list[str], str]:
    """Answer the badge ID, the talk IDs and the operation ID of the only recording there is."""
    [(operation_id, badge)] = service.badges.items()
    return badge.response.badge_id, list(badge.response.talk_ids), operation_id


def lines(badge_id: str, talk_ids: list[str] | None = None) -> str:
    """What stdout says of a recording."""
    return "".join(
        [f"Badge ID: {badge_id}\n", *(f"Dialog ID: {talk_id}\n" for talk_id in talk_ids or [])]
    )


def row(ledger: Path) -> dict[str, Any]:
    with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        [row] = database.execute("SELECT * FROM recordings")
        return dict(row)


# --- What can be split ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "audio", "announced"),
    [
        pytest.param("call.wav", lambda: wav(48_000, seconds=5), "WAV", id="WAV"),
        pytest.param("call.mp3", lambda: mp3("-b", 64, seconds=40), "MP3", id="MP3"),
        pytest.param("call.mp3", lambda: mp3("-t", seconds=1), "MP3", id="MP3 of unknown length"),
    ],
)
def test_wav_and_mp3_of_one_channel_become_a_badge(
    split: Split,
    service: StandIn,
    tmp_path: Path,
    name: str,
    audio: Callable[[], bytes],
    announced: str,
) -> None:
    path = tmp_path / name
    path.write_bytes(audio())
    outcome = split("--audio-path", path)
    badge_id, talk_ids, _ = only_badge(service)
    assert outcome == Outcome(0, lines(badge_id), "")
    assert methods(service) == ["UploadBadge"]
    for talk_id in talk_ids:
        talk = service.talks[talk_id]
        assert talk.audio and talk.audio.read_bytes() == audio()
        assert announced in str(talk.audio_format)
        assert talk.fields == {"language": "ru-RU"}


@pytest.mark.parametrize(
    ("audio", "words", "found"),
    [
        pytest.param(lambda: wav(channels=2), (), "WAV, PCM 16 bit, 8,000 Hz, 2 ch", id="stereo"),
        pytest.param(lambda: mp3(channels=2), (), "MP3, 8,000 Hz, 2 channels", id="stereo MP3"),
        pytest.param(ogg_opus, (), "OggOpus, 48,000 Hz, 1 channel", id="OggOpus"),
        pytest.param(
            pcm,
            ("--audio-type", "pcm", "--sample-rate", 8_000, "--channels", 1),
            "raw PCM, 8,000 Hz, 1 channel",
            id="raw PCM",
        ),
    ],
)
def test_nothing_else_is_sent_to_be_split(
    split: Split,
    service: StandIn,
    tmp_path: Path,
    audio: Callable[[], bytes],
    words: tuple[object, ...],
    found: str,
) -> None:
    path = tmp_path / "call"
    path.write_bytes(audio())
    outcome = split("--audio-path", path, *words)
    assert (outcome.code, outcome.out, service.calls) == (65, "", [])
    assert outcome.err.startswith(f"upload_grpc: {path}: {found}")
    assert "only WAV and MP3 of one channel can be split; leave out --split" in outcome.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--split", "--single-message"), "--split is sent as a stream"),
        (("--wait",), "--wait goes with --split"),
    ],
)
def test_what_cannot_go_together_is_a_bad_command_line(
    upload: Run, service: StandIn, call: Path, words: tuple[str, ...], message: str
) -> None:
    outcome = upload("--audio-path", call, *words)
    assert (outcome.code, outcome.out, service.calls) == (2, "", [])
    assert message in outcome.err


def test_more_than_four_hours_are_left_to_the_service(split: Split, tmp_path: Path) -> None:
    """How long a recording may be that it splits, it does not say."""
    path = make_wav(tmp_path / "day.wav", 0)
    size_bytes = 2 * 8_000 * 60 * 60 * 5
    with open(path, "r+b") as file:
        for position, length in ((4, size_bytes + 36), (40, size_bytes)):
            file.seek(position)
            file.write(length.to_bytes(4, "little"))
        file.truncate(44 + size_bytes)
    outcome = split("--audio-path", path, "--dry-run")
    assert (outcome.code, outcome.err) == (0, "")
    assert "18,000.0 s" in outcome.out and "as a stream to be split" in outcome.out


# --- Without --wait -------------------------------------------------------------------------


def test_json_has_the_badge_id(split: Split, service: StandIn, call: Path) -> None:
    outcome = split("--audio-path", call, "--format", "json")
    badge_id, _, _ = only_badge(service)
    result = json.loads(outcome.out)
    assert (outcome.code, outcome.err) == (0, "")
    assert (result["outcome"], result["badge_id"], result["exit_code"]) == ("uploaded", badge_id, 0)
    assert (result["talk_id"], result["talk_ids"]) == (None, [])


def test_several_recordings_have_a_badge_each(
    split: Split, service: StandIn, tmp_path: Path
) -> None:
    paths = [make_wav(tmp_path / f"{number}.wav") for number in range(3)]
    outcome = split("--audio-path", *paths, "--quiet")
    assert outcome.code == 0
    badges = {badge.response.badge_id for badge in service.badges.values()}
    printed = dict(line.split(": Badge ID: ") for line in outcome.out.splitlines())
    assert set(printed) == set(map(str, paths))
    assert set(printed.values()) == badges


def test_a_try_that_made_no_badge_is_repeated(split: Split, service: StandIn, call: Path) -> None:
    make_wav(call, 3_000_000)  # More than may be under way before the service has read any of it.
    service.script.append(Fail(grpc.StatusCode.UNAVAILABLE, "full", after_bytes=0))
    assert split("--audio-path", call).code == 0
    assert methods(service) == ["UploadBadge"] * 2
    assert len(service.badges) == 1


def test_an_answer_that_was_lost_leaves_it_unknown(
    split: Split, service: StandIn, call: Path
) -> None:
    service.script.append(Fail(grpc.StatusCode.UNAVAILABLE, "gone", store=True))
    outcome = split("--audio-path", call)
    assert (outcome.code, outcome.out) == (76, "")
    assert methods(service) == ["UploadBadge"]


# --- Other answers to an upload -------------------------------------------------------------


@pytest.fixture
def answer_with(service: StandIn, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have something done to each operation before it is the answer to an upload."""

    def use(change: Callable[[operation_pb2.Operation], object]) -> None:
        make = stand_in._TalkService._make_badge

        def make_other(*arguments: Any) -> tuple[str, operation_pb2.Operation]:
            operation_id, operation = make(*arguments)
            change(operation)
            return operation_id, operation

        monkeypatch.setattr(stand_in._TalkService, "_make_badge", make_other)

    return use


@pytest.mark.parametrize(
    "change",
    [
        lambda operation: operation.ClearField("metadata"),
        lambda operation: setattr(operation.metadata, "value", b"\xff\xff"),
        lambda operation: setattr(operation.metadata, "type_url", "other"),
    ],
    ids=["none", "malformed", "of another type"],
)
@pytest.mark.parametrize("wait", [False, True])
def test_an_operation_without_a_badge_is_told_by_its_own_id(
    split: Split,
    service: StandIn,
    call: Path,
    answer_with: Callable[..., None],
    change: Callable[[operation_pb2.Operation], object],
    wait: bool,
) -> None:
    answer_with(change)
    outcome = split("--audio-path", call, *(["--wait"] if wait else []))
    _, talk_ids, operation_id = only_badge(service)
    dialogs = "".join(f"Dialog ID: {talk_id}\n" for talk_id in talk_ids if wait)
    assert outcome == Outcome(0, f"Operation ID: {operation_id}\n{dialogs}", "")


def test_an_operation_that_is_done_at_once_needs_no_wait(
    split: Split, service: StandIn, call: Path, ledger: Path, answer_with: Callable[..., None]
) -> None:
    response = talk_service_pb2.UploadBadgeResponse(talk_ids=["talk-1", "talk-2"])

    def finish(operation: operation_pb2.Operation) -> None:
        operation.done = True
        operation.response.Pack(response)

    answer_with(finish)
    words = ("--audio-path", call, "--ledger", ledger)
    first = split(*words)
    assert first == Outcome(0, lines(only_badge(service)[0], list(response.talk_ids)), "")
    assert row(ledger)["talk_id"] == "talk-1 talk-2"
    assert split(*words, "--wait") == first
    assert methods(service) == ["UploadBadge"]


@pytest.mark.parametrize("words", [(), ("--wait",)], ids=["", "wait"])
def test_an_operation_that_failed_at_once_is_a_rejection(
    split: Split,
    service: StandIn,
    call: Path,
    ledger: Path,
    answer_with: Callable[..., None],
    words: tuple[str, ...],
) -> None:
    def finish(operation: operation_pb2.Operation) -> None:
        operation.done = True
        operation.error.message = "nobody speaks in it"

    answer_with(finish)
    service.badge_error = (grpc.StatusCode.INVALID_ARGUMENT, "nobody speaks in it")
    outcome = split("--audio-path", call, "--ledger", ledger, *words)
    assert outcome.code == 65
    assert f"{call}: uploaded, but not split: nobody speaks in it" in outcome.err
    assert (row(ledger)["state"], row(ledger)["talk_id"]) == ("rejected", None)
    again = split("--audio-path", call, "--ledger", ledger, *words)
    assert again.code == 65
    assert "rejected before" in again.err and "nobody speaks in it" in again.err
    assert methods(service) == ["UploadBadge"]


# --- With --wait ----------------------------------------------------------------------------


@pytest.mark.parametrize(("polls", "talks"), [(0, 1), (0, 3), (4, 2)])
def test_wait_follows_the_operation_to_the_dialogs(
    split: Split, service: StandIn, call: Path, polls: int, talks: int
) -> None:
    service.badge_polls, service.badge_talks = polls, talks
    outcome = split("--audio-path", call, "--wait")
    badge_id, talk_ids, _ = only_badge(service)
    assert outcome == Outcome(0, lines(badge_id, talk_ids), "")
    assert len(talk_ids) == talks
    assert methods(service) == ["UploadBadge", *["Get"] * (polls + 1)]
    assert all(received.messages == ["operation_id"] for received in service.calls[1:])


def test_json_has_the_dialog_ids(split: Split, service: StandIn, call: Path) -> None:
    outcome = split("--audio-path", call, "--wait", "--format", "json")
    badge_id, talk_ids, _ = only_badge(service)
    result = json.loads(outcome.out)
    assert (outcome.code, outcome.err, result["exit_code"]) == (0, "", 0)
    assert (result["badge_id"], result["talk_ids"]) == (badge_id, talk_ids)
    assert result["talk_id"] is None


def test_each_of_several_recordings_is_followed(
    split: Split, service: StandIn, tmp_path: Path
) -> None:
    paths = [make_wav(tmp_path / f"{number}.wav") for number in range(5)]
    outcome = split("--audio-path", *paths, "--wait", "--quiet", "--jobs", 2)
    assert outcome.code == 0
    printed = [line.split(": ") for line in outcome.out.splitlines()]
    for path in paths:
        ids = [words[2] for words in printed if words[0] == str(path)]
        [badge] = [b for b in service.badges.values() if b.response.badge_id == ids[0]]
        assert ids[1:] == list(badge.response.talk_ids)


class Timed(list[Call]):
    """A list of calls that notes when each comes, and may do something then."""

    def __init__(self, then: Callable[[Call], None] = lambda call: None) -> None:
        super().__init__()
        self.polls_s: list[float] = []
        self._then = then

    def append(self, received: Call) -> None:
        super().append(received)
        if received.method == "Get":
            self.polls_s.append(time.monotonic())
            self._then(received)


def test_it_asks_ever_less_often(split: Split, service: StandIn, call: Path) -> None:
    service.calls = timed = Timed()
    service.badge_polls = 7
    assert split("--audio-path", call, "--wait").code == 0
    pauses_s = [
        after - before for before, after in zip(timed.polls_s, timed.polls_s[1:], strict=False)
    ]
    expected_s = [min(0.02 * 1.5**number, 0.6) for number in range(7)]
    for pause_s, at_least_s in zip(pauses_s, expected_s, strict=True):
        assert at_least_s <= pause_s < at_least_s + 0.3


def test_the_intervals_have_a_limit(
    split: Split, service: StandIn, call: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_grpc, "POLL_LIMIT_S", 0.03)
    service.calls = timed = Timed()
    service.badge_polls = 15
    assert split("--audio-path", call, "--wait").code == 0
    assert timed.polls_s[-1] - timed.polls_s[0] < 15 * 0.03 + 0.5


@pytest.mark.parametrize(
    ("remembered", "code", "advice"),
    [(False, 76, "look for it in the console"), (True, 75, "run again")],
    ids=["without a ledger", "with a ledger"],
)
def test_an_operation_that_does_not_change_is_left_after_the_timeout(
    split: Split,
    service: StandIn,
    call: Path,
    ledger: Path,
    remembered: bool,
    code: int,
    advice: str,
) -> None:
    # Without a ledger, who runs that again uploads it again.
    words = ("--ledger", ledger) if remembered else ()
    service.badge_polls = 1_000
    started_s = time.monotonic()
    outcome = split("--audio-path", call, "--wait", "--timeout", 0.5, *words)
    badge_id, _, operation_id = only_badge(service)
    assert 0.2 < time.monotonic() - started_s < 2
    assert (outcome.code, outcome.out) == (code, lines(badge_id))
    assert outcome.err == (
        f"upload_grpc: {call}: uploaded, but not yet split: operation {operation_id} goes on; "
        f"{advice}\n"
    )
    assert methods(service).count("UploadBadge") == 1


def test_one_that_changes_is_waited_for(split: Split, service: StandIn, call: Path) -> None:
    def move(received: Call) -> None:
        [badge] = service.badges.values()
        badge.operation.description = f"{len(service.calls)} parts so far"

    service.calls = timed = Timed(move)
    service.badge_polls = 8
    outcome = split("--audio-path", call, "--wait", "--timeout", 0.5)
    assert outcome.code == 0
    assert timed.polls_s[-1] - timed.polls_s[0] > 0.9


def test_json_says_that_it_was_uploaded_and_not_yet_split(
    split: Split, service: StandIn, call: Path
) -> None:
    service.badge_polls = 1_000
    outcome = split("--audio-path", call, "--wait", "--timeout", 0.2, "--format", "json")
    result = json.loads(outcome.out)
    badge_id, _, _ = only_badge(service)
    assert (result["outcome"], result["badge_id"]) == ("uploaded", badge_id)
    assert (result["exit_code"], result["talk_ids"]) == (76, [])
    assert "not yet split" in result["error"]


@pytest.mark.parametrize("words", [(), ("--format", "json")], ids=["text", "json"])
def test_an_operation_that_fails_is_told_with_its_reason(
    split: Split, service: StandIn, call: Path, words: tuple[str, ...]
) -> None:
    service.badge_error = (grpc.StatusCode.INVALID_ARGUMENT, "nobody speaks in it")
    outcome = split("--audio-path", call, "--wait", *words)
    badge_id, _, _ = only_badge(service)
    assert outcome.code == 65
    assert badge_id in outcome.out
    assert f"{call}: uploaded, but not split: nobody speaks in it" in outcome.err
    assert methods(service).count("UploadBadge") == 1


def test_an_operation_without_a_reason_is_told_too(
    split: Split, service: StandIn, call: Path
) -> None:
    service.badge_error = (grpc.StatusCode.INTERNAL, "")
    assert "no reason given" in split("--audio-path", call, "--wait").err


def test_one_that_fails_leaves_the_others_alone(
    split: Split, service: StandIn, tmp_path: Path
) -> None:
    paths = [make_wav(tmp_path / f"{number}.wav") for number in range(3)]

    def fail_once(received: Call) -> None:
        first = len(timed.polls_s) == 1
        service.badge_error = (grpc.StatusCode.INTERNAL, "broken") if first else None

    service.badge_polls = 0
    service.calls = timed = Timed(fail_once)
    outcome = split("--audio-path", *paths, "--wait", "--jobs", 1)
    assert outcome.code == 65
    assert outcome.out.count("Badge ID") == 3
    assert outcome.out.count("Dialog ID") == 4


# --- A service that is away for a while -----------------------------------------------------


def test_a_poll_that_fails_is_repeated(split: Split, service: StandIn, call: Path) -> None:
    service.script += [None, GONE, None, GONE, GONE]
    outcome = split("--audio-path", call, "--wait")
    badge_id, talk_ids, _ = only_badge(service)
    assert (outcome.code, outcome.out) == (0, lines(badge_id, talk_ids))
    assert methods(service).count("UploadBadge") == 1
    assert outcome.err.count("gone for a moment (UNAVAILABLE); next try in") == 3


def test_a_poll_without_an_answer_is_repeated(split: Split, service: StandIn, call: Path) -> None:
    service.script += [None, Freeze()]
    outcome = split("--audio-path", call, "--wait", "--timeout", 1)
    badge_id, talk_ids, _ = only_badge(service)
    assert (outcome.code, outcome.out) == (0, lines(badge_id, talk_ids))
    assert "no progress for 1 s" in outcome.err


def test_polls_that_keep_failing_end_the_wait_and_nothing_else(
    split: Split, service: StandIn, call: Path, ledger: Path
) -> None:
    service.script += [None, *[GONE] * 3]
    outcome = split("--audio-path", call, "--wait", "--retries", 2, "--ledger", ledger)
    badge_id, talk_ids, _ = only_badge(service)
    assert (outcome.code, outcome.out) == (75, lines(badge_id))
    assert row(ledger)["state"] == "uploaded"

    outcome = split("--audio-path", call, "--wait", "--ledger", ledger)
    assert outcome == Outcome(0, lines(badge_id, talk_ids), "")
    assert methods(service).count("UploadBadge") == 1


def test_a_service_that_restarts_is_asked_again(split: Split, service: StandIn, call: Path) -> None:
    service.badge_polls = 6

    def restart() -> None:
        while "Get" not in methods(service):
            time.sleep(0.002)
        service.restart(down_s=0.1)

    restarting = threading.Thread(target=restart)
    restarting.start()
    outcome = split("--audio-path", call, "--wait")
    restarting.join()
    badge_id, talk_ids, _ = only_badge(service)
    assert (outcome.code, outcome.out) == (0, lines(badge_id, talk_ids))
    assert methods(service).count("UploadBadge") == 1


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [(grpc.StatusCode.PERMISSION_DENIED, 77), (grpc.StatusCode.UNAUTHENTICATED, 77)],
)
def test_a_poll_that_is_refused_is_not_repeated(
    split: Split, service: StandIn, call: Path, code: grpc.StatusCode, exit_code: int
) -> None:
    service.script += [None, Fail(code, "not you"), Fail(code, "not you")]
    outcome = split("--audio-path", call, "--wait")
    badge_id, _, _ = only_badge(service)
    assert (outcome.code, outcome.out) == (exit_code, lines(badge_id))
    assert "not you" in outcome.err
    assert methods(service) == ["UploadBadge", "Get"]


def test_a_service_without_operations_does_not_stop_the_run(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = "add_OperationServiceServicer_to_server"
    monkeypatch.setattr(operation_service_pb2_grpc, without, lambda *_: None)
    paths = [make_wav(tmp_path / f"{number}.wav") for number in range(3)]
    with StandIn(tmp_path / "bare") as service:
        words = ("--endpoint", service.endpoint, "--ca-file", service.ca_file, "--wait")
        outcome = split("--audio-path", *paths, "--jobs", 1, *words)
    assert outcome.code == 65
    assert outcome.out.count("Badge ID") == len(service.badges) == 3
    for path in paths:
        assert f"upload_grpc: {path}: uploaded, but not yet split: " in outcome.err


def test_operations_may_be_at_an_endpoint_of_their_own(
    split: Split,
    service: StandIn,
    call: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As those of the cloud's other services are; asked where the public endpoint has none."""
    bare = StandIn(tmp_path / "bare")
    with monkeypatch.context() as patch:
        without = "add_OperationServiceServicer_to_server"
        patch.setattr(operation_service_pb2_grpc, without, lambda *_: None)
        bare.start()
    bare.badges = service.badges
    both = tmp_path / "both.pem"
    both.write_bytes(bare.ca_file.read_bytes() + service.ca_file.read_bytes())
    monkeypatch.setattr(upload_grpc, "ENDPOINT", bare.endpoint)
    monkeypatch.setattr(upload_grpc, "OPERATIONS", service.endpoint)
    try:
        words = ("--audio-path", call, "--endpoint", bare.endpoint, "--ca-file", both, "--wait")
        outcome = split(*words)
        badge_id, talk_ids, _ = only_badge(service)
        assert outcome == Outcome(0, lines(badge_id, talk_ids), "")
        assert methods(bare) == ["UploadBadge"]
        assert set(methods(service)) == {"Get"}

        # Many share one connection.
        others = [make_wav(tmp_path / f"{number}.wav") for number in range(5)]
        service.calls.clear()
        outcome = split("--audio-path", *others, *words[2:])
        assert outcome.out.count("Dialog ID: ") == 10
        assert len({call.peer for call in service.calls}) == 1
    finally:
        bare.stop()


def test_an_operation_nobody_knows_any_more_does_not_stop_the_run(
    split: Split, service: StandIn, tmp_path: Path
) -> None:
    paths = [make_wav(tmp_path / f"{number}.wav") for number in range(3)]
    service.script += [None, Fail(grpc.StatusCode.NOT_FOUND, "operation not found")]
    outcome = split("--audio-path", *paths, "--wait", "--jobs", 1)
    assert outcome.code == 65
    assert f"{paths[0]}: uploaded, but " in outcome.err
    assert "operation not found" in outcome.err
    assert outcome.out.count("Badge ID") == 3
    assert outcome.out.count("Dialog ID") == 4


# --- The ledger -----------------------------------------------------------------------------


def test_the_ledger_keeps_operation_and_badge(
    split: Split, service: StandIn, call: Path, ledger: Path
) -> None:
    outcome = split("--audio-path", call, "--ledger", ledger)
    badge_id, _, operation_id = only_badge(service)
    assert outcome == Outcome(0, lines(badge_id), "")
    kept = row(ledger)
    assert (kept["state"], kept["badge_id"]) == ("uploaded", badge_id)
    assert (kept["operation_id"], kept["talk_id"]) == (operation_id, None)


def test_a_later_run_takes_up_the_wait_and_sends_nothing(
    split: Split, service: StandIn, call: Path, ledger: Path
) -> None:
    split("--audio-path", call, "--ledger", ledger)
    before = row(ledger)
    badge_id, talk_ids, _ = only_badge(service)

    outcome = split("--audio-path", call, "--ledger", ledger, "--wait")
    assert outcome == Outcome(0, lines(badge_id, talk_ids), "")
    assert methods(service) == ["UploadBadge", *["Get"] * 3]
    after = row(ledger)
    assert after["talk_id"].split() == talk_ids
    changed = {key for key in after if after[key] != before[key]} - {"updated_at"}
    assert changed == {"talk_id"}

    # Known now: nobody is asked any more.
    outcome = split("--audio-path", call, "--ledger", ledger, "--wait")
    assert outcome == Outcome(0, lines(badge_id, talk_ids), "")
    assert len(service.calls) == 4


def test_a_run_without_wait_asks_nothing(
    split: Split, service: StandIn, call: Path, ledger: Path
) -> None:
    split("--audio-path", call, "--ledger", ledger)
    badge_id, _, _ = only_badge(service)
    outcome = split("--audio-path", call, "--ledger", ledger)
    assert outcome == Outcome(0, lines(badge_id), "")
    assert methods(service) == ["UploadBadge"]


def test_a_moved_recording_is_waited_for_too(
    split: Split, service: StandIn, call: Path, ledger: Path
) -> None:
    split("--audio-path", call, "--ledger", ledger)
    moved = call.rename(call.with_name("other.wav"))
    outcome = split("--audio-path", moved, "--ledger", ledger, "--wait")
    assert outcome == Outcome(0, lines(*only_badge(service)[:2]), "")
    assert methods(service).count("UploadBadge") == 1


@pytest.mark.parametrize("words", [(), ("--format", "json")], ids=["text", "json"])
def test_the_dialogs_of_a_folder_are_printed_when_they_are_known(
    split: Split, service: StandIn, tmp_path: Path, ledger: Path, words: tuple[str, ...]
) -> None:
    """They are that run's news, although it uploaded nothing."""
    folder = tmp_path / "calls"
    folder.mkdir()
    for number in range(2):
        make_wav(folder / f"{number}.wav")
    split("--audio-path", folder, "--ledger", ledger, "--quiet")
    outcome = split("--audio-path", folder, "--ledger", ledger, "--wait", "--quiet", *words)
    assert (outcome.code, outcome.err) == (0, "")
    for badge in service.badges.values():
        for talk_id in badge.response.talk_ids:
            assert talk_id in outcome.out
    assert methods(service).count("UploadBadge") == 2


def test_one_that_timed_out_can_be_waited_for_later(
    split: Split, service: StandIn, call: Path, ledger: Path
) -> None:
    service.badge_polls = 1_000
    words = ("--audio-path", call, "--ledger", ledger, "--wait")
    for _ in range(2):
        outcome = split(*words, "--timeout", 0.2)
        assert (outcome.code, outcome.out) == (75, lines(only_badge(service)[0]))
        assert row(ledger)["state"] == "uploaded"
    [badge] = service.badges.values()
    badge.polls_left = 0
    assert split(*words) == Outcome(0, lines(*only_badge(service)[:2]), "")
    assert methods(service).count("UploadBadge") == 1


def test_one_that_failed_is_not_sent_again(
    split: Split, service: StandIn, call: Path, ledger: Path
) -> None:
    service.badge_error = (grpc.StatusCode.INTERNAL, "broken")
    words = ("--audio-path", call, "--ledger", ledger, "--wait")
    for _ in range(2):
        outcome = split(*words)
        assert (outcome.code, outcome.out) == (65, lines(only_badge(service)[0]))
        assert "uploaded, but not split: broken" in outcome.err
    assert methods(service).count("UploadBadge") == 1
    assert row(ledger)["state"] == "uploaded"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_wait_that_a_signal_ends_can_be_taken_up(
    split: Split, service: StandIn, call: Path, ledger: Path, number: signal.Signals
) -> None:
    service.badge_polls = 1_000
    words = ("--audio-path", call, "--ledger", ledger, "--split", "--wait", "--quiet")
    with start(*arguments(service, *words)) as process:
        deadline = time.monotonic() + 20
        while "Get" not in methods(service):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        sent_s = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert time.monotonic() - sent_s < 2
    badge_id, talk_ids, _ = only_badge(service)
    assert (process.returncode, out) == (128 + number, lines(badge_id))
    assert err.startswith(f"upload_grpc: {call}: ")
    [badge] = service.badges.values()
    badge.polls_left = 0
    outcome = split("--audio-path", call, "--ledger", ledger, "--wait")
    assert outcome == Outcome(0, lines(badge_id, talk_ids), "")
    assert methods(service).count("UploadBadge") == 1
