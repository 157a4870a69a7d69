"""To be moved."""

from __future__ import annotations

import json
import time
from pathlib import Path

import grpc
import ledgers
import pytest
from conftest import Run, Waits, make_wav
from stand_in import Fail, StandIn

NO_QUOTA = Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota")


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
