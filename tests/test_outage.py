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
import math
import os
import random
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
    ended,
    interrupt,
    make_wav,
    start,
    wait_for,
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


class Day:
    """The recordings of a day, and runs over them."""

    def __init__(
        self, upload: Run, service: StandIn, folder: Path, ledger: Path, fields: Path
    ) -> None:
        self.service = service
        self.folder = folder
        self.ledger = ledger
        self.first = folder / "00.wav"
        for number in range(COUNT):
            make_wav(folder / f"{number:02}.wav", 1_600)
        self._words = ("--meta-path", fields, "--format", "json", "--jobs", JOBS, "--timeout", 10)
        self._upload = upload

    def run(self, *words: object, over: object = None, quiet: bool = True) -> Outcome:
        """Run over the folder, or a file.

        With --quiet and a ledger, what was said before and what may pass is left out.
        """
        given = (*self._words, *(("--quiet",) if quiet else ()))
        return self._upload(*given, *words, "--audio-path", over or self.folder)

    def remember(self, *words: object, **options: Any) -> Outcome:
        """Run with a ledger."""
        return self.run("--ledger", self.ledger, *words, **options)

    def start(self, *words: object, over: Path | None = None, **options: Any) -> Any:
        """Start the command itself."""
        given = (*self._words, "--quiet", *words, "--audio-path", over or self.folder)
        return start(*arguments(self.service, *given), **options)

    def states(self) -> collections.Counter[str]:
        return collections.Counter(ledgers.states(self.ledger))


@pytest.fixture
def day(upload: Run, service: StandIn, folder: Path, ledger: Path, fields: Path) -> Day:
    return Day(upload, service, folder, ledger, fields)


def outcomes(out: str, err: str = "") -> collections.Counter[str]:
    """Count what became of the recordings: one line each, and a number of those not tried."""
    results = [json.loads(line) for line in out.splitlines()]
    assert len({result["path"] for result in results}) == len(results)
    counts = collections.Counter(result["outcome"] for result in results)
    if found := re.search(r"([\d,]+) not tried", err):
        counts["not tried"] = int(found[1].replace(",", ""))
    return counts


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
def test_a_dead_connection_costs_one_recording(day: Day, dead: int) -> None:
    """It takes what it is given, and nothing comes out at the other end any more."""
    with FaultProxy(day.service.port, [Fault(freeze_to_server=12_000)] * dead) as proxy:
        outcome = day.run("--endpoint", proxy.endpoint, "--timeout", 2)
        assert [connection.struck for connection in proxy.connections].count("frozen") == dead
    counts = outcomes(outcome.out)
    assert counts["unknown"] <= dead
    assert counts["uploaded"] == COUNT - counts["unknown"]
    assert outcome.code == (UNKNOWN if counts["unknown"] else 0)
    day.service.wait_until_idle()
    made = stored_talks(day.service.store)
    assert len({talk["sha256"] for talk in made}) == len(made) >= counts["uploaded"]


# --- A service that is down, mute, or refuses everybody ------------------------------


def test_a_mute_service(day: Day) -> None:
    day.service.on_call = lambda _: MUTE
    started_s = time.monotonic()
    counts = assert_stopped(day.run("--timeout", 0.5), UNKNOWN)
    assert time.monotonic() - started_s < 15
    assert counts["unknown"] >= 5
    assert len(day.service.calls) <= UNKNOWN_LIMIT


def test_a_service_that_refuses_each_call_at_once(day: Day) -> None:
    """Its refusal of a short recording comes just after the last byte: too late, as a rule."""
    day.service.on_call = lambda _: DOWN
    outcome = day.run("--retries", 1)
    counts = assert_stopped(outcome, outcome.code)
    assert outcome.code == (UNKNOWN if counts["unknown"] else AGAIN)
    # Only the first ones were sent side by side, and without a wait for the refusal.
    assert counts["unknown"] <= JOBS


def test_five_in_a_row_end_the_run_and_an_upload_between_them_does_not(day: Day) -> None:
    one_by_one = ("--jobs", 1, "--retries", 0)
    steps = itertools.cycle([None, NO_QUOTA])
    day.service.on_call = lambda _: next(steps)
    assert outcomes(day.run(*one_by_one).out) == {"uploaded": COUNT / 2, "failed": COUNT / 2}
    day.service.calls.clear()
    day.service.on_call = lambda _: NO_QUOTA
    counts = assert_stopped(day.run(*one_by_one), AGAIN)
    assert counts["failed"] == len(day.service.calls) == 5


def test_the_tries_of_a_recording_end_in_time(day: Day, waits: Waits) -> None:
    waits(attempts_limit=0.3, backoff_limit=0.5)
    endpoint = f"localhost:{closed_port()}"
    started_s = time.monotonic()
    outcome = day.run("--endpoint", endpoint, "--retries", 100, over=day.first)
    assert time.monotonic() - started_s < 8
    assert outcome.code == AGAIN


# --- Runs one after the other, as cron starts them -----------------------------------


@pytest.mark.parametrize("step", [MUTE, DOWN], ids=["mute", "refusing"])
def test_cron_through_a_long_outage(day: Day, step: Step) -> None:
    day.service.on_call = lambda _: step
    spent = []
    for _ in range(4):
        assert day.remember("--retries", 1, "--timeout", 0.15).code in (AGAIN, UNKNOWN)
        spent.append(day.states().total())
    assert spent[0] <= UNKNOWN_LIMIT
    assert all(after - before <= 2 for before, after in itertools.pairwise(spent)), spent
    day.service.on_call = lambda _: None
    unknown = day.states()["unknown"]
    assert outcomes(day.remember("--timeout", 10).out)["uploaded"] == COUNT - unknown
    assert day.states() == +collections.Counter(uploaded=COUNT - unknown, unknown=unknown)
    sent = len(day.service.calls)
    *lines, summary = day.remember(quiet=False).err.splitlines()
    assert len(lines) == str(lines).count("--retry-unknown") == unknown
    assert f"{unknown} unknown" in summary
    assert len(day.service.calls) == sent


def test_recordings_that_always_fail_hold_up_no_other(day: Day) -> None:
    """Two failures end a run that begins in doubt: these two, the first by name, must go last."""
    always = [day.folder / "00.wav", day.folder / "01.wav"]
    for path in always:
        path.with_suffix(".json").write_text('{"language": "xx"}')
    refuse_some = At(metadata=lambda call: NO_QUOTA if call.fields["language"] == "xx" else None)
    day.service.on_call = lambda _: refuse_some
    for path in always:
        day.remember("--retries", 0, over=path)
    assert day.states() == {"failed": 2}
    day.remember("--retries", 0)
    assert day.states() == {"failed": 2, "uploaded": COUNT - 2}


@pytest.fixture
def in_doubt(day: Day) -> Day:
    """Have a run fail, so that the next one begins in doubt."""
    day.service.script.append(NO_QUOTA)
    assert day.remember("--retries", 0, over=day.first).code == AGAIN
    return day


def test_in_doubt_one_goes_first(in_doubt: Day) -> None:
    calls = in_doubt.service.calls
    under_way: list[int] = []

    def step(arrived: Call) -> Step:
        under_way.append(sum(not call.outcome for call in calls if call is not arrived))
        return Delay(0.05 if under_way[1:] else 0.3)

    in_doubt.service.on_call = step
    assert in_doubt.remember("--retries", 0).code == 0
    assert under_way[:2] == [0, 0], "the first was not alone"
    assert max(under_way) == JOBS - 1, "the others should go side by side"


def test_in_doubt_a_refusal_on_its_way_is_waited_for(in_doubt: Day, waits: Waits) -> None:
    """Without that it would come after the half-close, and make a short recording unknown."""
    waits(refusal=2)

    def step(_: Call) -> Step:
        time.sleep(0.2)
        return DOWN

    in_doubt.service.on_call = step
    outcome = in_doubt.remember("--retries", 0, "--timeout", 10, quiet=False)
    assert outcome.code == AGAIN
    assert outcomes(outcome.out, outcome.err) == {"failed": 2, "not tried": COUNT - 2}


def test_what_would_be_left_out_is_not_said_to_be_not_tried(
    day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what is older than --since, nor what was rejected or is unknown."""
    new = [make_wav(day.folder / f"{name}.wav", 1_600, seed=ord(name)) for name in "yz"]
    day.service.script += [REJECTED, Fail(grpc.StatusCode.INTERNAL, "lost")]
    assert day.remember("--jobs", 1, "--retries", 0, over=new[0]).code == 65
    assert day.remember("--jobs", 1, "--retries", 0, over=new[1]).code == UNKNOWN
    ahead_s = time.time() + 30 * 86_400  # As the ctime of all of them is of today.
    monkeypatch.setattr(time, "time", lambda: ahead_s)
    for number in range(11):
        os.utime(day.folder / f"{number:02}.wav", (ahead_s, ahead_s))
    day.service.on_call = lambda _: NO_QUOTA
    outcome = day.remember("--jobs", 1, "--retries", 0, "--since", "7d", quiet=False)
    assert outcomes(outcome.out, outcome.err)["failed"] == 2
    assert ", 9 not tried" in outcome.err


# --- A quota -------------------------------------------------------------------------


def test_a_quota_delays_and_loses_nothing(day: Day, waits: Waits) -> None:
    """25 calls, then none for a moment that the first refusal begins."""
    waits(backoff=0.1)
    left, refilled_s = 25, math.inf

    def step(_: Call) -> Step:
        nonlocal left, refilled_s
        if time.monotonic() >= refilled_s:
            left, refilled_s = 25, math.inf
        if left:
            left -= 1
            return None
        refilled_s = min(refilled_s, time.monotonic() + 0.15)
        return NO_QUOTA

    day.service.on_call = step
    outcome = day.run()
    assert (outcome.code, outcomes(outcome.out)) == (0, {"uploaded": COUNT})
    refused = sum(call.outcome.startswith("RESOURCE_EXHAUSTED") for call in day.service.calls)
    assert 0 < refused < 0.65 * COUNT


def test_a_used_up_quota_holds_the_other_workers(
    day: Day, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two workers one is refused, and pauses for 5 s; the other has an upload every 0.5 s."""
    waits(backoff=2.5)
    monkeypatch.setattr(random, "uniform", max)
    day.first.with_suffix(".json").write_text('{"language": "xx"}')
    seen: list[str] = []

    def refuse_once(call: Call) -> Step:
        language = call.fields["language"]
        seen.append(language)
        if seen.count("xx") > 1:
            return None
        return NO_QUOTA if language == "xx" else Delay(0.5)

    day.service.on_call = lambda _: At(metadata=refuse_once)
    assert day.run("--jobs", 2).code == 0
    first, again = (index for index, language in enumerate(seen) if language == "xx")
    # What was under way, and what begins just when the pause is over; else ten.
    assert again - first - 1 <= 5


# --- Signals -------------------------------------------------------------------------


def test_a_run_that_a_signal_ends_is_noted_with_its_exit_code(day: Day) -> None:
    day.service.script.append(At(answer=lambda _: os.kill(os.getpid(), signal.SIGTERM)))
    assert day.remember(over=day.first).code == 128 + signal.SIGTERM
    assert [run["exit_code"] for run in ledgers.runs(day.ledger)] == [128 + signal.SIGTERM]


def test_a_signal_ends_the_hashing_of_a_large_file(day: Day, tmp_path: Path) -> None:
    large = tmp_path / "large.mp3"
    large.write_bytes((b"\xff\xfb\x90\xc0" + bytes(413)) * 3)
    os.truncate(large, 200_000_000_000)  # A hole: reading it takes minutes.
    with day.start("--ledger", day.ledger, over=large) as process:
        wait_for(Path(f"{day.ledger}-wal").exists)
        time.sleep(0.3)
        outcome = interrupt(process, "SIGINT")
    # Not left by its workers, that is.
    assert sum(outcomes(outcome.out, outcome.err).values()) == 1 and not day.service.calls


def test_a_copy_does_not_wait_for_a_row_that_will_not_change(day: Day, waits: Waits) -> None:
    """The result of the first cannot be written, so the ledger has it as under way for ever."""
    waits(ledger_lock=0.3)
    calls = day.folder.with_name("two")
    calls.mkdir()
    for name in ("00.wav", "copy.wav"):
        (calls / name).write_bytes(day.first.read_bytes())
    begin_ledger(str(day.ledger))
    lock = ledgers.Lock(day.ledger)
    day.service.script.append(At(answer=lock.hold))
    outcome = day.remember("--timeout", 10, over=calls)
    lock.release()
    [talk_id] = day.service.talks
    assert outcome.code == CONFIG
    assert f"uploaded as {talk_id}, but the ledger could not record it" in outcome.err
    assert outcome.err.count("another program, or it is on a network file system") == 1
    assert outcomes(outcome.out, outcome.err)["unknown"] == 1


def test_what_cannot_be_counted_is_no_bug(day: Day, waits: Waits) -> None:
    """Of a link that leads nowhere the ledger, which is locked, has to be asked."""
    waits(ledger_lock=0.3)
    (day.folder / "z").mkdir()
    (day.folder / "z/link").symlink_to("nowhere")
    begin_ledger(str(day.ledger))
    lock = ledgers.Lock(day.ledger)
    day.service.on_call = lambda _: At(answer=lambda _: None if lock.is_held else lock.hold())
    outcome = day.remember("--timeout", 10, quiet=False)
    lock.release()
    assert outcome.code == CONFIG and "Traceback" not in outcome.err
    assert "the others not tried" in outcome.err.splitlines()[-1]


def test_a_hangup_that_is_ignored_stops_nothing(day: Day) -> None:
    day.service.script.append(Delay(0.3))
    with day.start(over=day.first, under=("nohup",)) as process:
        wait_for(lambda: day.service.talks)
        process.send_signal(signal.SIGHUP)
        outcome = ended(process)
    assert (outcome.code, outcomes(outcome.out)) == (0, {"uploaded": 1})


def test_a_signal_while_the_ledgers_disk_hangs(day: Day) -> None:
    """A bug that once was: the program waited for a lock that is held during a sync."""
    day.service.on_call = lambda _: Slow(4_000)
    with day.start("--ledger", day.ledger, "--timeout", 10) as process:
        wait_for(lambda: day.service.calls)
        with ledgers.locked(day.ledger):
            time.sleep(0.6)
            started_s = time.monotonic()
            outcome = interrupt(process, "SIGINT")
    assert time.monotonic() - started_s < 8
    day.service.wait_until_idle()
    results = map(json.loads, outcome.out.splitlines())
    named = {talk_id for result in results for talk_id in result["talk_ids"]}
    assert {talk["talk_id"] for talk in stored_talks(day.service.store)} == named


def test_a_signal_while_nobody_reads_stdout(day: Day) -> None:
    with day.start() as process:
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        wait_for(lambda: len(day.service.talks) > JOBS)
        arrived = -1
        while arrived < len(day.service.talks):
            arrived = len(day.service.talks)
            time.sleep(0.4)
        assert arrived < COUNT, "the pipe is not full"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=6) == 128 + signal.SIGTERM


def test_a_disk_that_hangs_at_open_ends_with_the_timeout(
    day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = upload_grpc.read_chunks

    is_over = threading.Event()

    def hang(path: str, *more: Any) -> Iterator[bytes]:
        if path.endswith("00.wav"):
            is_over.wait(60)
        return read(path, *more)

    monkeypatch.setattr(upload_grpc, "read_chunks", hang)
    outcome = day.run("--retries", 1, "--timeout", 3)
    is_over.set()
    assert (outcome.code, outcomes(outcome.out)) == (75, {"failed": 1, "uploaded": COUNT - 1})


# --- A ledger that goes away ---------------------------------------------------------


def test_a_ledger_that_is_moved_stops_the_run(day: Day) -> None:
    """As logrotate does. What is past its commit point then is uploaded, and nothing else."""
    moved = day.ledger.with_name("ledger.1")

    def move(_: Call) -> Step:
        with contextlib.suppress(FileNotFoundError):  # Another call was faster.
            day.ledger.rename(moved)
        return Delay(0.4)

    day.service.on_call = lambda _: At(answer=move)
    outcome = day.remember("--timeout", 10, quiet=False)
    assert outcome.code == CONFIG
    counts = outcomes(outcome.out, outcome.err)
    assert 1 <= counts["uploaded"] == len(day.service.talks) <= JOBS
    assert counts["not tried"] >= COUNT - 2 * JOBS
    assert str(day.ledger) in outcome.err and f"{counts['not tried']} not tried" in outcome.err
    assert "put it back" in outcome.err
    moved.rename(day.ledger)  # Back to where its log still is.
    assert day.states()["uploaded"] == len(day.service.talks)


def test_a_ledger_that_is_moved_in_the_end_is_noticed(day: Day) -> None:
    day.service.script.append(At(answer=lambda _: day.ledger.unlink()))
    outcome = day.remember(over=day.first)
    assert (outcome.code, outcomes(outcome.out)) == (CONFIG, {"uploaded": 1})
    [line] = outcome.err.splitlines()
    assert str(day.ledger) in line


def test_a_device_is_no_ledger(day: Day) -> None:
    outcome = day.run("--ledger", "/dev/null")
    assert (outcome.code, outcome.out, day.service.calls) == (CONFIG, "", [])
    [line] = outcome.err.splitlines()
    assert "/dev/null" in line and "regular file" in line
    assert glob.glob("/dev/null*") == ["/dev/null"]
