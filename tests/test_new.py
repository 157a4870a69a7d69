"""To be moved."""

from __future__ import annotations

import datetime
import json
import os
import signal
import time
from pathlib import Path

import grpc
import ledgers
import pytest
from conftest import Run, Waits, make_wav
from stand_in import At, Fail, StandIn

NO_QUOTA = Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota")


def test_an_update_that_works_is_no_sign_that_uploads_do(
    upload: Run, service: StandIn, tmp_path: Path, ledger: Path
) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    first = make_wav(folder / "0.wav", 3_000)
    first.with_suffix(".json").write_text('{"a": "b"}')
    words = ("--audio-path", folder, "--ledger", ledger, "--retries", 0, "--quiet")
    assert upload(*words).code == 0
    make_wav(folder / "1.wav", 3_000)
    first.with_suffix(".json").write_text('{"a": "changed"}')
    service.on_call = lambda call: None if call.method == "Upload" else NO_QUOTA
    assert upload(*words, "--update-metadata").code == 75
    assert [talk.fields["a"] for talk in service.talks.values()] == ["changed"]
    assert "outage" in [problem["cause"] for problem in ledgers.problems(ledger)]


@pytest.mark.parametrize(
    "date",
    [
        "0001-01-01T00:00:00Z",  # .NET's and Go's zero time.
        "0001-01-01T00:00:00+03:00",
        "9999-12-31T23:59:59Z",
        "9999-12-31T23:59:59-03:00",
        "1900-01-01T00:00:00+02:30",
    ],
)
def test_a_date_of_nowhere_is_uploaded_as_it_is(
    upload: Run, service: StandIn, tmp_path: Path, ledger: Path, date: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TZ", "Asia/Vladivostok")
    time.tzset()
    call = make_wav(tmp_path / "call.wav", 3_000)
    call.with_suffix(".json").write_text(json.dumps({"date": date}))
    service.script.append(Fail(grpc.StatusCode.UNAVAILABLE, "lost", after_bytes=None))
    words = ("--audio-path", call, "--ledger", ledger)
    outcome = upload(*words)
    assert outcome.code == 76 and "look for it in the console by its time: " in outcome.err
    assert upload(*words).code == 76
    assert upload(*words, "--retry-unknown").code == 0
    assert [talk.fields["date"] for talk in service.talks.values()] == [date]
    for form in ("text", "json", "csv"):
        outcome = upload("--report", "--ledger", ledger, "--format", form)
        assert outcome.code == 0 and "Traceback" not in outcome.err


def test_what_would_be_left_out_is_not_said_to_be_not_tried(
    upload: Run, service: StandIn, tmp_path: Path, ledger: Path
) -> None:
    """In an outage: neither what is old, nor what was rejected or is unknown."""
    folder = tmp_path / "calls"
    folder.mkdir()
    words = ("--audio-path", folder, "--ledger", ledger, "--retries", 0, "--jobs", 1)
    make_wav(folder / "y.wav", 3_000, seed=99)
    make_wav(folder / "z.wav", 3_000, seed=98)
    service.script += [
        Fail(grpc.StatusCode.INVALID_ARGUMENT, "refused"),
        Fail(grpc.StatusCode.INTERNAL, "lost", after_bytes=None),
    ]
    assert upload(*words).code == 76
    for number in range(40):
        call = make_wav(folder / f"{number:02}.wav", 3_000, seed=number)
        if number > 10:
            os.utime(call, (1, 1))
    ahead_s = time.time() + 30 * 86_400  # As the ctime of those is of now.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: ahead_s)
        for number in range(11):
            os.utime(folder / f"{number:02}.wav", (ahead_s, ahead_s))
        service.on_call = lambda _: NO_QUOTA
        day = datetime.date.fromtimestamp(ahead_s - 7 * 86_400)
        outcome = upload(*words, "--since", day)
    assert "2 failed" in outcome.err and ", 9 not tried" in outcome.err


def test_a_run_that_a_signal_ends_is_noted_with_its_exit_code(
    upload: Run, service: StandIn, tmp_path: Path, ledger: Path
) -> None:
    call = make_wav(tmp_path / "call.wav", 3_000)
    service.script.append(At(answer=lambda _: os.kill(os.getpid(), signal.SIGTERM)))
    assert upload("--audio-path", call, "--ledger", ledger).code == 143
    assert [run["exit_code"] for run in ledgers.runs(ledger)] == [143]


def test_a_wait_for_a_split_holds_up_nothing_in_a_run_that_begins_half_open(
    upload: Run, service: StandIn, tmp_path: Path, ledger: Path, waits: Waits
) -> None:
    """And an outage is over once something is uploaded, though it is not yet split."""
    folder = tmp_path / "calls"
    folder.mkdir()
    for number in range(3):
        make_wav(folder / f"{number}.wav", 3_000)
    words = ("--audio-path", folder, "--ledger", ledger, "--retries", 0, "--split", "--quiet")
    service.on_call = lambda _: NO_QUOTA
    assert upload(*words).code == 75
    assert "outage" in {problem["cause"] for problem in ledgers.problems(ledger)}
    waits(split_limit=1)
    service.on_call = lambda _: None
    service.badge_polls = 1_000
    times: list[float] = []
    service.on_call = lambda call: times.append(time.monotonic()) if call.method != "Get" else None
    assert upload(*words, "--wait", "--jobs", 3).code == 75
    assert len(times) == 3 and times[2] - times[0] < 0.9
    assert "outage" not in {problem["cause"] for problem in ledgers.problems(ledger)}
