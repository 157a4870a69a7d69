"""What an outage costs: a bounded number of unknown recordings, a few lines, and little time.

The recordings are short, as a day's thousands are, and the waits are scaled down. What is said of
each recording is read from the lines of JSON, and compared with what the service has.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import glob
import itertools
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
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
    begin_ledger,
    closed_port,
    make_wav,
    start,
    wait_for,
    when,
)
from fault_proxy import Fault, FaultProxy
from stand_in import At, Call, Delay, Fail, Freeze, Slow, StandIn, Step, stored_talks

import upload_grpc

pytestmark = pytest.mark.usefixtures("waits")

AGAIN, UNKNOWN, CONFIG = 75, 76, 78
COUNT = 60
JOBS = 4
# Wanted for a service that is mute, or refuses everybody: five in a row end the run, while
# others are under way.
UNKNOWN_LIMIT = 12
LINES_LIMIT = 20

DOWN = Fail(grpc.StatusCode.UNAVAILABLE, "upstream down", after_bytes=0)
NO_QUOTA = Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota", after_bytes=0)
REJECTED = Fail(grpc.StatusCode.INVALID_ARGUMENT, "not this one")
MUTE = Freeze()


Words = tuple[object, ...]


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    folder = tmp_path / "calls"
    folder.mkdir()
    for number in range(COUNT):
        make_wav(folder / f"{number:02}.wav", 1_600)
    return folder


@pytest.fixture
def words(tmp_path: Path) -> Words:
    """Return what every run of these tests has on its command line."""
    (tmp_path / "fields.json").write_text('{"language": "ru-RU"}')
    return (
        *("--meta-path", tmp_path / "fields.json", "--quiet"),
        *("--format", "json", "--jobs", JOBS, "--timeout", 0.5),
    )


def not_quiet(words: Words) -> Words:
    """Leave out --quiet: with a ledger it leaves out what was said before, and what may pass."""
    return tuple(word for word in words if word != "--quiet")


def outcomes(out: str, err: str = "") -> collections.Counter[str]:
    """Count what became of the recordings: one line each, and a number of those not tried."""
    results = [json.loads(line) for line in out.splitlines()]
    assert len({result["path"] for result in results}) == len(results)
    counts = collections.Counter(result["outcome"] for result in results)
    if found := re.search(r"([\d,]+) not tried", err):
        counts["not tried"] = int(found[1].replace(",", ""))
    return counts


def states(ledger: Path) -> collections.Counter[str]:
    return collections.Counter(ledgers.states(ledger))


def assert_stopped(outcome: Outcome, code: int) -> collections.Counter[str]:
    """The run was stopped: a line each for what was tried, and one that says why, and the rest."""
    counts = outcomes(outcome.out, outcome.err)
    assert outcome.code == code
    *failures, last = outcome.err.splitlines()
    assert len(failures) == COUNT - counts["not tried"] - counts["uploaded"]
    assert all(".wav: " in line for line in failures)
    assert len(failures) < LINES_LIMIT
    assert "in a row" in last and f"{counts['not tried']} not tried" in last
    assert f"{counts['unknown']} unknown" in last
    assert counts["unknown"] <= UNKNOWN_LIMIT
    assert sum(counts.values()) == COUNT
    return counts


# --- Connections that die, while new ones work ---------------------------------------


@pytest.mark.parametrize("dead", [1, JOBS])
def test_a_dead_connection_costs_one_recording(
    upload: Run, service: StandIn, words: Words, calls: Path, dead: int
) -> None:
    """It takes what it is given, and nothing comes out at the other end any more."""
    with FaultProxy(service.port, [Fault(freeze_to_server=12_000)] * dead) as proxy:
        outcome = upload(*words, "--endpoint", proxy.endpoint, "--audio-path", calls)
        frozen = [connection for connection in proxy.connections if connection.struck == "frozen"]
        assert len(frozen) == dead
    counts = outcomes(outcome.out)
    assert counts["unknown"] <= dead
    assert counts["uploaded"] == COUNT - counts["unknown"]
    assert outcome.code == (UNKNOWN if counts["unknown"] else 0)
    service.wait_until_idle()
    made = stored_talks(service.store)
    assert len({talk["sha256"] for talk in made}) == len(made) >= counts["uploaded"]


# --- A service that is down, mute, or refuses everybody ------------------------------


def test_nobody_listens(upload: Run, words: Words, calls: Path) -> None:
    endpoint = f"localhost:{closed_port()}"
    outcome = upload(*words, "--endpoint", endpoint, "--audio-path", calls)
    counts = assert_stopped(outcome, AGAIN)
    assert counts["unknown"] == 0 and counts["failed"] <= 5 + JOBS


def test_a_mute_service(upload: Run, service: StandIn, words: Words, calls: Path) -> None:
    service.on_call = lambda _: MUTE
    started_s = time.monotonic()
    counts = assert_stopped(upload(*words, "--audio-path", calls), UNKNOWN)
    assert time.monotonic() - started_s < 5
    assert counts["unknown"] >= 5
    assert len(service.calls) <= UNKNOWN_LIMIT


def test_a_service_that_refuses_each_call_at_once(
    upload: Run, service: StandIn, words: Words, calls: Path
) -> None:
    """Its refusal of a short recording comes just after the last byte: too late, as a rule."""
    service.on_call = lambda _: DOWN
    outcome = upload(*words, "--retries", 1, "--audio-path", calls)
    counts = assert_stopped(outcome, outcome.code)
    assert outcome.code == (UNKNOWN if counts["unknown"] else AGAIN)
    # Only the first ones were sent side by side, and without a wait for the refusal.
    assert counts["unknown"] <= JOBS


def test_five_in_a_row_end_the_run_and_an_upload_between_them_does_not(
    upload: Run, service: StandIn, words: Words, calls: Path
) -> None:
    one_by_one = (*words, "--jobs", 1, "--retries", 0, "--audio-path", calls)
    steps: Iterator[Step] = iter([None, NO_QUOTA] * COUNT)
    service.on_call = lambda _: next(steps)
    outcome = upload(*one_by_one)
    assert outcomes(outcome.out) == {"uploaded": COUNT / 2, "failed": COUNT / 2}
    service.calls.clear()
    service.on_call = lambda _: NO_QUOTA
    counts = assert_stopped(upload(*one_by_one), AGAIN)
    assert counts["failed"] == len(service.calls) == 5


def test_rejections_are_no_outage(upload: Run, service: StandIn, words: Words, calls: Path) -> None:
    service.on_call = lambda _: REJECTED
    outcome = upload(*words, "--audio-path", calls)
    assert (outcome.code, outcomes(outcome.out)) == (65, {"rejected": COUNT})


def test_the_tries_of_a_recording_end_in_time(
    upload: Run, words: Words, calls: Path, waits: Waits
) -> None:
    waits(attempts_limit=0.5)
    endpoint = ("--endpoint", f"localhost:{closed_port()}")
    started_s = time.monotonic()
    outcome = upload(*words, *endpoint, "--retries", 100, "--audio-path", calls / "00.wav")
    assert time.monotonic() - started_s < 8
    assert outcome.code == AGAIN


# --- Runs one after the other, as cron starts them -----------------------------------


@pytest.mark.parametrize("step", [MUTE, DOWN], ids=["mute", "refusing"])
def test_cron_through_a_long_outage(
    upload: Run, service: StandIn, words: Words, ledger: Path, calls: Path, step: Step
) -> None:
    service.on_call = lambda _: step
    words = (*words, "--ledger", ledger, "--retries", 1, "--audio-path", calls)
    spent = []
    for _ in range(7):
        outcome = upload(*words, "--timeout", 0.15)
        assert outcome.code in (AGAIN, UNKNOWN)
        spent.append(states(ledger).total())
    assert spent[0] <= UNKNOWN_LIMIT
    assert all(after - before <= 2 for before, after in itertools.pairwise(spent)), spent
    service.on_call = lambda _: None
    unknown = states(ledger)["unknown"]
    assert outcomes(upload(*words, "--timeout", 10).out)["uploaded"] == COUNT - unknown
    assert states(ledger) == {
        "uploaded": COUNT - unknown,
        **({"unknown": unknown} if unknown else {}),
    }
    sent = len(service.calls)
    outcome = upload(*not_quiet(words))
    *lines, summary = outcome.err.splitlines()
    assert len(lines) == outcome.err.count("--retry-unknown") == unknown
    assert f"{unknown} unknown" in summary
    assert len(service.calls) == sent


def test_recordings_that_always_fail_hold_up_no_other(
    upload: Run, service: StandIn, words: Words, ledger: Path, calls: Path
) -> None:
    """Two failures end a run that begins in doubt: these two, the first by name, must go last."""
    always = [calls / "00.wav", calls / "01.wav"]
    for path in always:
        path.with_suffix(".json").write_text('{"language": "xx"}')
    refuse_some = At(metadata=lambda call: NO_QUOTA if call.fields["language"] == "xx" else None)
    service.on_call = lambda _: refuse_some
    words = (*words, "--ledger", ledger, "--retries", 0)
    upload(*words, "--audio-path", *always)
    assert states(ledger) == {"failed": 2}
    upload(*words, "--audio-path", calls)
    assert states(ledger) == {"failed": 2, "uploaded": COUNT - 2}


def test_in_doubt_one_goes_first(
    upload: Run, service: StandIn, words: Words, ledger: Path, calls: Path
) -> None:
    words = (*words, "--ledger", ledger, "--retries", 0, "--audio-path")
    service.script.append(NO_QUOTA)
    assert upload(*words, calls / "00.wav").code == AGAIN
    under_way: list[int] = []

    def step(arrived: Call) -> Step:
        under_way.append(sum(not call.outcome for call in service.calls if call is not arrived))
        return Delay(0.05 if under_way[1:] else 0.3)

    service.on_call = step
    assert upload(*words, calls).code == 0
    assert under_way[:2] == [0, 0], "the first was not alone"
    assert max(under_way) == JOBS - 1, "the others should go side by side"


def test_in_doubt_a_refusal_on_its_way_is_waited_for(
    upload: Run, service: StandIn, words: Words, ledger: Path, calls: Path,
    waits: Waits,
) -> None:  # fmt: skip
    """Without that it would come after the half-close, and make a short recording unknown."""
    waits(refusal=2)

    def step(_: Call) -> Step:
        time.sleep(0.2)
        return DOWN

    words = (*words, "--timeout", 10, "--ledger", ledger, "--retries", 0, "--audio-path")
    service.script.append(NO_QUOTA)
    assert upload(*words, calls / "00.wav").code == AGAIN
    service.on_call = step
    outcome = upload(*not_quiet(words), calls)
    assert outcome.code == AGAIN
    assert outcomes(outcome.out, outcome.err) == {"failed": 2, "not tried": COUNT - 2}


# --- A quota -------------------------------------------------------------------------


def test_a_quota_delays_and_loses_nothing(
    upload: Run, service: StandIn, words: Words, calls: Path, waits: Waits
) -> None:
    """A token bucket: ten calls at once, then 60 a second."""
    waits(backoff=0.1)
    tokens, filled_s = 10.0, time.monotonic()

    def step(_: Call) -> Step:
        nonlocal tokens, filled_s
        now_s = time.monotonic()
        tokens, filled_s = min(10, tokens + (now_s - filled_s) * 60), now_s
        if tokens < 1:
            return NO_QUOTA
        tokens -= 1
        return None

    service.on_call = step
    outcome = upload(*words, "--audio-path", calls)
    assert (outcome.code, outcomes(outcome.out)) == (0, {"uploaded": COUNT})
    refused = sum(call.outcome.startswith("RESOURCE_EXHAUSTED") for call in service.calls)
    assert 0 < refused < 0.65 * COUNT


def test_a_used_up_quota_holds_the_other_workers(
    upload: Run, service: StandIn, words: Words, calls: Path, waits: Waits
) -> None:
    waits(backoff=0.5)
    (calls / "00.json").write_text('{"language": "xx"}')
    seen: list[str] = []

    def refuse_once(call: Call) -> Step:
        language = call.fields["language"]
        seen.append(language)
        return NO_QUOTA if language == "xx" and seen.count("xx") == 1 else None

    service.on_call = lambda _: At(metadata=refuse_once)
    assert upload(*words, "--audio-path", calls).code == 0
    first, again = (index for index, language in enumerate(seen) if language == "xx")
    # What was under way, and what begins just when the pause is over.
    assert again - first <= 3 * JOBS


# --- Signals -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_leaves_nothing_unknown(
    service: StandIn, words: Words, calls: Path, name: str
) -> None:
    service.on_call = lambda _: Delay(2)
    with start(*arguments(service, *words, "--timeout", 10, "--audio-path", calls)) as process:
        wait_for(lambda: len(service.talks) >= JOBS)
        process.send_signal(signal.Signals[name])
        out, err = process.communicate(timeout=10)
    assert process.returncode == 128 + signal.Signals[name]
    counts = outcomes(out, err)
    assert counts["uploaded"] == len(service.talks) >= JOBS
    assert sum(counts.values()) == COUNT
    assert counts["unknown"] == 0 and counts["not tried"] >= COUNT - 2 * JOBS
    last = err.splitlines()[-1]
    assert name in last and "0 unknown" in last and f"{counts['not tried']} not tried" in last


def test_a_signal_ends_the_hashing_of_a_large_file(
    service: StandIn, words: Words, ledger: Path, tmp_path: Path
) -> None:
    large = tmp_path / "large.mp3"
    large.write_bytes((b"\xff\xfb\x90\xc0" + bytes(413)) * 3)
    os.truncate(large, 200_000_000_000)  # A hole: reading it takes minutes.
    with start(*arguments(service, *words, "--ledger", ledger, "--audio-path", large)) as process:
        wait_for(Path(f"{ledger}-wal").exists)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGINT
    # Not left by its workers, that is.
    assert sum(outcomes(out, err).values()) == 1 and not service.calls


def test_a_copy_does_not_wait_for_a_row_that_will_not_change(
    service: StandIn, upload: Run, words: Words, ledger: Path, calls: Path, waits: Waits
) -> None:
    """The result of the first cannot be written, so the ledger has it as under way for ever."""
    waits(ledger_lock=0.5)
    first, copy = calls / "00.wav", calls / "copy.wav"
    copy.write_bytes(first.read_bytes())
    service.script.append(Delay(1))
    begin_ledger(str(ledger))
    is_over = threading.Event()

    def hold() -> None:
        with ledgers.locked(ledger):
            is_over.wait(20)

    also = ("--timeout", 10, "--ledger", ledger)
    with when(lambda: service.talks, hold):
        outcome = upload(*words, *also, "--audio-path", first, copy)
        is_over.set()
    [talk_id] = service.talks
    assert outcome.code == CONFIG
    assert f"uploaded as {talk_id}, but the ledger could not record it" in outcome.err
    assert outcome.err.count("another program, or it is on a network file system") == 1
    assert outcomes(outcome.out, outcome.err)["unknown"] == 1


def test_a_hangup_that_is_ignored_stops_nothing(
    service: StandIn, words: Words, calls: Path
) -> None:
    service.script.append(Delay(0.3))
    given = arguments(service, *words, "--audio-path", calls / "00.wav")
    with start(*given, under=("nohup",)) as process:
        wait_for(lambda: service.talks)
        process.send_signal(signal.SIGHUP)
        out, _ = process.communicate(timeout=10)
    assert (process.returncode, outcomes(out)) == (0, {"uploaded": 1})


@pytest.mark.parametrize("names", [("SIGINT",), ("SIGTERM", "SIGTERM")], ids=" ".join)
def test_a_signal_while_the_ledgers_disk_hangs(
    service: StandIn, words: Words, ledger: Path, calls: Path, names: tuple[str, ...]
) -> None:
    """A bug that once was: the program waited for a lock that is held during a sync."""
    service.on_call = lambda _: Slow(4_000)
    given = arguments(service, *words, "--ledger", ledger, "--audio-path", calls, "--timeout", 10)
    with start(*given) as process, contextlib.ExitStack() as undo:
        undo.callback(process.kill)
        wait_for(lambda: service.calls)
        undo.enter_context(ledgers.locked(ledger))
        time.sleep(0.6)
        started_s = time.monotonic()
        for name in names:
            process.send_signal(signal.Signals[name])
            time.sleep(0.05)
        out, err = process.communicate(timeout=10)
    assert time.monotonic() - started_s < 4
    assert process.returncode == 128 + signal.Signals[names[0]]
    assert "Traceback" not in err
    service.wait_until_idle()
    named = {talk_id for line in out.splitlines() for talk_id in json.loads(line)["talk_ids"]}
    assert {talk["talk_id"] for talk in stored_talks(service.store)} == named


def test_a_signal_while_nobody_reads_stdout(service: StandIn, words: Words, calls: Path) -> None:
    with start(*arguments(service, *words, "--audio-path", calls)) as process:
        assert process.stdout
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        wait_for(lambda: len(service.talks) > JOBS)
        time.sleep(1)
        assert len(service.talks) < COUNT, "the pipe is not full"
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(timeout=6) == 128 + signal.SIGTERM
        finally:
            process.kill()


def test_a_disk_that_hangs_at_open_ends_with_the_timeout(
    upload: Run, words: Words, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = upload_grpc.read_chunks

    def hang(path: str, *more: Any) -> Iterator[bytes]:
        if path.endswith("00.wav"):
            time.sleep(30)
        return read(path, *more)

    monkeypatch.setattr(upload_grpc, "read_chunks", hang)
    started_s = time.monotonic()
    outcome = upload(*words, "--audio-path", calls, "--retries", 1)
    assert time.monotonic() - started_s < 10
    assert (outcome.code, outcomes(outcome.out)) == (75, {"failed": 1, "uploaded": COUNT - 1})


# --- A ledger that goes away ---------------------------------------------------------


def test_a_ledger_that_is_moved_stops_the_run(
    upload: Run, service: StandIn, words: Words, ledger: Path, calls: Path
) -> None:
    """As logrotate does. What is past its commit point then is uploaded, and nothing else."""
    moved = ledger.with_name("ledger.1")

    def move(_: Call) -> Step:
        with contextlib.suppress(FileNotFoundError):  # Another call was faster.
            ledger.rename(moved)
        return Delay(0.4)

    service.on_call = lambda _: At(answer=move)
    outcome = upload(*not_quiet(words), "--ledger", ledger, "--audio-path", calls)
    assert outcome.code == CONFIG
    counts = outcomes(outcome.out, outcome.err)
    assert 1 <= counts["uploaded"] == len(service.talks) <= JOBS
    assert counts["not tried"] >= COUNT - 2 * JOBS
    assert str(ledger) in outcome.err and f"{counts['not tried']} not tried" in outcome.err
    assert "put it back" in outcome.err
    moved.rename(ledger)  # Back to where its log still is.
    assert states(ledger)["uploaded"] == len(service.talks)


def test_a_ledger_that_is_moved_in_the_end_is_noticed(
    upload: Run, service: StandIn, words: Words, ledger: Path, calls: Path
) -> None:
    service.script.append(At(answer=lambda _: ledger.unlink()))
    outcome = upload(*words, "--ledger", ledger, "--audio-path", calls / "00.wav")
    assert (outcome.code, outcomes(outcome.out)) == (CONFIG, {"uploaded": 1})
    [line] = outcome.err.splitlines()
    assert str(ledger) in line


def test_a_device_is_no_ledger(upload: Run, service: StandIn, words: Words, calls: Path) -> None:
    outcome = upload(*words, "--ledger", "/dev/null", "--audio-path", calls)
    assert (outcome.code, outcome.out, service.calls) == (CONFIG, "", [])
    [line] = outcome.err.splitlines()
    assert "/dev/null" in line and "regular file" in line
    assert glob.glob("/dev/null*") == ["/dev/null"]
