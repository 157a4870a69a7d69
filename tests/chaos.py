"""Break uploads at random, and count from the service's own store what became of them.

    python tests/chaos.py [--short] [--seed N] [CAMPAIGN ...]

Each campaign lets runs suffer, then leaves one alone, and compares ledger, output and store: every
recording has to be in the store once, whole, or be named as unknown.

The classes below say what each campaign does. The same seed makes the same faults; what they hit
depends on the machine's timing. Prints what happened, ends with "N passed, N failed", and exits
with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import upload_grpc  # Before anything imports grpc.

# isort: split

import encoders
import grpc
import ledgers
from conftest import FOREIGN_VARIABLES, SCRIPT, WAITS, arguments, make_wav, own_clock, sha256
from fault_proxy import Fault, FaultProxy
from stand_in import LOOKUPS, At, Call, Delay, Fail, Slow, StandIn, Step, stored_talks

SEED = 20260731
OK, REJECTED, AGAIN, UNKNOWN = 0, 65, 75, 76
# When to stop breaking runs, in a whole campaign and in a short one; and how long one may take.
LIMIT_S, SHORT_LIMIT_S, RUN_LIMIT_S = 240, 180, 120
# For a frozen connection; everything else is much faster on loopback.
TIMEOUT_S = 0.3
# How long after its start-up a run may go on before it is killed.
WORK_S = 0.6

Talks = dict[str, list[dict[str, Any]]]  # What the store has, by SHA-256.
Rows = dict[str, Mapping[str, Any]]  # What is said of each, by the SHA-256 of what is sent.
NO_ROW = {"state": "no row", "talk_id": None, "found_id": None}


class Results:
    """Counts what passed and what failed, and prints it."""

    def __init__(self) -> None:
        self.passed = self.failed = 0

    def note(self, what: str, found: object) -> None:
        """Print a number that may be any."""
        print(f"  {what + ' ':.<58} {found}", flush=True)

    def require(self, what: str, found: int | Sequence[object], wanted: int = 0) -> None:
        """Print a number, or how many there are, and whether it is the wanted one."""
        count, examples = (found, "") if isinstance(found, int) else (len(found), found[:9])
        good = count == wanted
        self.passed += good
        self.failed += not good
        self.note(what, count if good else f"{count}   FAILED, wanted {wanted}: {examples}")


class Ended(NamedTuple):
    """A run that has ended: what it said of each recording is in `said`, by path."""

    code: int
    said: dict[str, dict[str, Any]]
    err: str


class End(NamedTuple):
    """What has become of one recording: in the ledger, and in the store."""

    path: Path
    row: Mapping[str, Any]
    made: list[dict[str, Any]]

    @property
    def state(self) -> str:
        return str(self.row["state"])

    @property
    def is_right(self) -> bool:
        """Whether the ledger has the one dialog that there is, by either ID and no other."""
        talk_id, found_id = self.row["talk_id"], self.row["found_id"]
        if len(self.made) != 1 or not (talk_id or found_id):
            return False
        [talk] = self.made
        return talk_id in (None, talk["talk_id"]) and found_id in (None, talk["found_id"])


# --- The loop of all campaigns ---------------------------------------------------------


class Campaign:
    """Runs that are broken over a folder and a ledger, then one that is left alone.

    A subclass says what differs: sizes and options, what there is before a run, which faults it
    meets, when it is killed, and what else has to be true in the end.
    """

    full = short = (0, 0)  # Recordings at the beginning, and runs; without them it is left out.
    options: Sequence[object] = ()
    again: Sequence[object] = ()  # Options of the runs left alone.
    sizes = (3_000, 90_000)  # Of recordings, in bytes; most are small.
    begun = True  # The ledger, by hand, before the first run.
    start: Sequence[str] = (str(SCRIPT),)

    def __init__(self, folder: Path, seed: str, service: StandIn, size: tuple[int, int]) -> None:
        self.folder, self.service = folder, service
        self.wanted, self.runs = size
        self.seed, self.noise = seed, random.Random(seed)
        self.calls, self.ledger = folder / "calls", folder / "ledger.sqlite"
        self.calls.mkdir(parents=True)
        self.ledgers = [self.ledger]
        self.recordings: dict[str, Path] = {}  # By the SHA-256 that arrives.
        self.replaced: set[str] = set()  # SHA-256 of audio that is no more.
        self.claimed: set[str] = set()  # Dialog IDs printed, also before a kill.
        self.bugs: list[str] = []
        self.killed = 0
        self.number = 0  # Of the run.
        self.environment: dict[str, str] = {}

    def main(self, results: Results, limit_s: float) -> None:
        deadline_s = time.monotonic() + limit_s
        self.begin()
        started_s = time.monotonic()
        self.run("--dry-run")
        self.startup_s = time.monotonic() - started_s
        with FaultProxy(self.service.port) as self.proxy:
            while self.done() < self.runs and time.monotonic() < deadline_s:
                # Not one noise for all: how much of it a run takes depends on timing.
                self.noise = random.Random(f"{self.seed} {self.number}")
                self.prepare()
                self.proxy.plan = self.plan()
                del self.proxy.connections[:]
                self.service.script[:] = [self.step() for _ in range(800)]
                self.break_run()
                self.proxy.cut_all()
                self.number += 1
        self.service.script.clear()
        self.service.on_call = self.service.next_step
        self.service.wait_until_idle()
        results.note("runs, and those of them that were killed", f"{self.number}, {self.killed}")
        results.require("done in time", min(self.done(), self.runs), self.runs)
        self.conclude(results)

    # What differs

    def begin(self) -> None:
        self.record(self.wanted)

    def done(self) -> int:
        """Return how much is done of what is wanted: runs, unless a subclass says otherwise."""
        return self.number

    def prepare(self) -> None:
        """Do what comes before a run."""

    def plan(self) -> list[Fault]:
        return [self.fault() for _ in range(100)]

    def fault(self) -> Fault:
        """Return what a connection suffers."""
        return Fault()

    def step(self) -> Step:
        """Return what the service does with an upload."""
        return None

    def moment_s(self) -> float:
        """Return when to kill a run; 0: not at all."""
        return self.noise.uniform(0, self.startup_s + WORK_S)

    def break_run(self) -> None:
        self.run("--quiet", "--endpoint", self.proxy.endpoint, kill_after_s=self.moment_s())

    def conclude(self, results: Results) -> None:
        last = self.run(*self.again)
        self.judge(results, last)
        self.one_more(results, last.code, *self.again)

    def wanted_code(self, ends: Sequence[End]) -> int:
        return UNKNOWN if any(end.state == "unknown" for end in ends) else OK

    def rows(self) -> Rows:
        return {
            digest: row
            for ledger in self.ledgers
            for digest, row in ledgers.rows_by_content(ledger).items()
        }

    def size_bytes(self) -> int:
        low, high = self.sizes
        return int(low * (high / low) ** self.noise.random())

    # What all do

    def record(self, count: int) -> list[Path]:
        paths = []
        for _ in range(count):
            path = self.calls / f"{len(self.recordings):05}.wav"
            paths.append(make_wav(path, self.size_bytes(), seed=self.noise.getrandbits(64)))
            self.recordings[sha256(path)] = path
        return paths

    def run(
        self, *more: object, kill_after_s: float = 0, end: signal.Signals = signal.SIGKILL
    ) -> Ended:
        """Run the program, and end it after so long, by a signal to its group."""
        words = arguments(
            self.service, "--audio-path", self.calls, "--ledger", self.ledger, "--format", "json",
            *self.options, *more, begun=self.begun,
        )  # fmt: skip
        with subprocess.Popen(
            [sys.executable, *self.start, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | self.environment,
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=kill_after_s or RUN_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.killed += 1
                os.killpg(process.pid, end)
                out, err = process.communicate(timeout=RUN_LIMIT_S)
            finally:
                process.kill()
        return self.ended(process.returncode, out, err.decode())

    def ended(self, code: int, out: bytes, err: str) -> Ended:
        """Note what a run has printed, whole lines only."""
        found = [json.loads(line) for line in out.split(b"\n")[:-1]]
        self.claimed.update(
            each["talk_id"] or each["found_id"]
            for each in found
            if each["outcome"] in ("uploaded", "already")
        )
        # Ctrl-C may come while Python itself starts.
        has_traceback = "Traceback" in err and "KeyboardInterrupt" not in err
        if code == os.EX_SOFTWARE or has_traceback:
            self.bugs.append(err)
        return Ended(code, {each["path"]: each for each in found}, err)

    def talks(self) -> Talks:
        talks: Talks = {}
        for talk in stored_talks(self.service.store):
            talks.setdefault(talk["sha256"], []).append(talk)
        return talks

    def ends(self) -> list[End]:
        rows, talks = self.rows(), self.talks()
        return [
            End(path, rows.get(digest, NO_ROW), talks.get(digest, []))
            for digest, path in self.recordings.items()
        ]

    def judge(self, results: Results, last: Ended | None = None) -> list[End]:
        """Compare what is said with what is there; last: the run left alone, if there is one."""
        damaged = [ledger for ledger in self.ledgers if not is_whole(ledger)]
        results.require("ledgers that are damaged", damaged)
        ends, talks, rows = self.ends(), self.talks(), self.rows()
        counts = collections.Counter((end.state, len(end.made)) for end in ends)
        for (state, made), count in sorted(counts.items()):
            results.note(f"{state}, {made} times in the store", count)
        ids = {each[name] for made in talks.values() for each in made for name in IDS}
        denied = [
            digest
            for digest in talks
            if rows.get(digest, NO_ROW)["state"] not in ("uploaded", "unknown")
        ]
        wrong = [end for end in ends if end.state == "uploaded" and not end.is_right]
        foreign = sorted(set(talks) - set(self.recordings) - self.replaced)
        doubled = [made for made in talks.values() if len(made) > 1]
        results.require("doubled: twice in the store", doubled)
        results.require("uploaded, but not exactly that dialog is there", wrong)
        results.require("made, but not called so", denied)
        results.require("audio in the store that no recording had", foreign)
        results.require("dialog IDs printed, but not in the store", list(self.claimed - ids))
        results.require("runs that a bug ended", self.bugs)
        if not last:
            return ends
        missing = [end for end in ends if not end.made and end.state != "unknown"]
        pending = [end for end in ends if end.state not in ("uploaded", "unknown")]
        unnamed = [
            path
            for path in (str(end.path) for end in ends if end.state == "unknown")
            if last.said.get(path, {}).get("outcome") != "unknown" or path not in last.err
        ]
        results.require("missing: not made, nor called unknown", missing)
        results.require("neither uploaded nor unknown in the end", pending)
        results.require("unknown, but not named", unnamed)
        results.require("exit code of the run left alone", last.code, self.wanted_code(ends))
        return ends

    def one_more(self, results: Results, code: int, *more: object) -> None:
        before = len(self.service.calls)
        results.require("exit code of one more", self.run(*more).code, code)
        results.require("calls made by that one", len(self.service.calls) - before)


IDS = ("talk_id", "found_id")


def is_whole(ledger: Path) -> bool:
    try:
        ledgers.check(ledger)
    except (AssertionError, ledgers.Unreadable):
        return False
    return True


# --- Cuts ----------------------------------------------------------------------------

# Byte counts on loopback: the handshake and the call's headers, then the recording.
HANDSHAKE_BYTES, OVERHEAD_BYTES, ANSWER_BYTES = 2_500, 4_500, 3_200
RETRIES = 2


def random_fault(noise: random.Random, size_bytes: int) -> Fault:
    """Choose where a connection that carries so many bytes breaks, and how."""
    rst = noise.random() < 0.5
    total_bytes = size_bytes + OVERHEAD_BYTES
    ranges = (
        (0, HANDSHAKE_BYTES),
        *[(0, total_bytes)] * 2,
        # The last chunk, the half-close, and somewhat beyond.
        (size_bytes - 100_000, total_bytes + 500),
        (size_bytes, total_bytes + 3_000),
    )
    to_server, to_client = noise.randrange(*noise.choice(ranges)), noise.randrange(ANSWER_BYTES)
    faults = (
        *[Fault(cut_to_server=to_server, rst=rst)] * 10,
        *[Fault(cut_to_client=to_client, rst=rst)] * 5,
        *[Fault(cut_after_s=noise.uniform(0, 0.02), rst=rst)] * 3,
        *[Fault(freeze_to_server=to_server)] * 2,
        Fault(freeze_to_client=to_client),
        *[Fault(swallow_after=to_server)] * 2,
    )
    return noise.choice(faults)


class Cuts(Campaign):
    """Connections are cut, frozen or robbed of their answers at random byte counts.

    Each carries 300 KB to 12 MB, for a run without a ledger.
    """

    full, short = (0, 500), (0, 16)
    sizes = (300_000, 12_000_000)

    def begin(self) -> None:
        self.ledgers = []
        self.found: dict[str, dict[str, Any]] = {}  # The program's results, by path.
        self.slowest_s = 0.0
        self.struck = 0  # Connections, at most one a recording.

    def done(self) -> int:
        return len(self.recordings)

    def prepare(self) -> None:
        """Record one call, or three that are uploaded at a time."""
        self.batch = self.record(self.noise.choice((1, 1, 1, 3)))

    def plan(self) -> list[Fault]:
        sizes = [path.stat().st_size for path in self.batch]
        count = max(len(sizes), self.noise.choice((1, 1, 2, 3)))
        return [random_fault(self.noise, self.noise.choice(sizes)) for _ in range(count)]

    def step(self) -> Step:
        # Sizes that gRPC hands to the kernel in one go are all sent before they are cut; a
        # service that takes its time lets the cut come first.
        return self.noise.choice((None, None, Slow(40e6), Delay(0.02)))

    def break_run(self) -> None:
        """Upload in this process: a start takes longer than all the rest."""
        given = arguments(
            self.service, "--audio-path", *self.batch, "--endpoint", self.proxy.endpoint,
            "--format", "json", "--timeout", TIMEOUT_S, "--retries", RETRIES, "--quiet",
            *["--single-message"] * (self.noise.random() < 0.2),
        )  # fmt: skip
        out, err = io.StringIO(), io.StringIO()
        started_s = time.monotonic()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = upload_grpc.main(given)
        if code > 128:
            raise SystemExit(code)  # The program took the signal that was meant for us.
        self.slowest_s = max(self.slowest_s, time.monotonic() - started_s)
        struck = sum(bool(each.struck) for each in self.proxy.connections)
        self.struck += min(len(self.batch), struck)
        self.found |= self.ended(code, out.getvalue().encode(), err.getvalue()).said
        self.proxy.cut_all()
        self.service.wait_until_idle()
        for path in self.batch:
            path.unlink()

    def rows(self) -> Rows:
        return {
            digest: {**NO_ROW, **row, "state": row["outcome"]}
            for digest, path in self.recordings.items()
            if (row := self.found.get(str(path)))
        }

    def conclude(self, results: Results) -> None:
        self.judge(results)
        results.note("connections struck, at most one a recording", self.struck)
        few = int(self.struck < len(self.recordings) / 2)
        results.require("struck less than half", few)
        attempts = [each["attempts"] for each in self.found.values() if each["exit_code"] == OK]
        again = sum(number > 1 for number in attempts)
        results.note("uploaded by a second attempt or a third", again)
        codes = {path: each["exit_code"] for path, each in self.found.items()}
        known = (OK, AGAIN, UNKNOWN)
        other = [each for each in self.recordings.values() if codes.get(str(each)) not in known]
        results.require("ended in another way than 0, 75 and 76", other)
        # Each try may be silent for TIMEOUT_S, then comes the next. Unseen, it would be for ever.
        bound_s = (RETRIES + 1) * TIMEOUT_S + 20
        results.note("seconds of the slowest run", f"{self.slowest_s:.1f}")
        results.require(f"longer than {bound_s:.1f}", int(self.slowest_s > bound_s))


# --- Kills, pairs, clocks and first runs ---------------------------------------------------

# Recordings that wait in the folder when a run begins.
WAITING = 40


class Kills(Campaign):
    """Runs over a growing folder, with a ledger, are killed (SIGKILL) at random moments."""

    full, short = (500, 200), (40, 4)
    sizes = (3_000, 300_000)

    def done(self) -> int:
        return self.killed

    def size_bytes(self) -> int:
        if self.noise.random() < 0.03:
            return self.noise.randrange(1_000_000, 8_000_000)
        return super().size_bytes()

    def prepare(self) -> None:
        self.record(WAITING - (len(self.recordings) - self._settled()))

    def _settled(self) -> int:
        """Count what no run will send again, without touching the ledger as it was left."""
        copy = self.folder / "copy.sqlite"
        for suffix in ("", "-wal", "-shm"):
            # What an earlier copy has left would be taken for this one's.
            Path(f"{copy}{suffix}").unlink(missing_ok=True)
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{self.ledger}{suffix}", f"{copy}{suffix}")
        try:
            states = ledgers.states(copy)
        except ledgers.Unreadable:
            states = []  # Killed before there was a table.
        return sum(state not in ("sending", "failed") for state in states)

    def step(self) -> Step:
        """Make the service slow enough for kills to hit uploads and answers under way."""
        slow = Slow(self.noise.uniform(2e5, 2e6))
        return self.noise.choice((None, slow, Delay(self.noise.uniform(0, 0.25))))


class Clock(Kills):
    """Like kills, while the clock jumps by hours either way and files are replaced.

    By other audio of the same name, size and mtime, in place or by renaming, between and in runs.
    """

    full, short = (150, 100), (40, 4)

    def begin(self) -> None:
        super().begin()
        self.environment, self._offset = own_clock(self.folder / "site")

    def break_run(self) -> None:
        self._jump()
        self._replace(self.noise.randrange(3))
        timers = [
            threading.Timer(self.noise.uniform(0, self.startup_s + WORK_S), act, args)
            for act, args in ((self._jump, ()), (self._replace, (2,)))
        ]
        for timer in timers:
            timer.start()
        super().break_run()
        for timer in timers:
            timer.join()

    def _jump(self) -> None:
        """Set the clock up to two days wrong, sometimes years, sometimes right."""
        hours = self.noise.choice((0, 1, 5, 48, 30_000))
        new = self._offset.with_name("new-offset")
        new.write_text(str(self.noise.choice((-1, 1)) * self.noise.uniform(0, hours) * 3_600))
        new.rename(self._offset)

    def _replace(self, count: int) -> None:
        """Give some recordings other audio of the same size, and their mtime back."""
        for digest in self.noise.sample(sorted(self.recordings), count):
            path = self.recordings.pop(digest)
            self.replaced.add(digest)
            status = path.stat()
            other = path.with_name("replacement")  # No suffix: not a recording.
            make_wav(other, status.st_size - 44, seed=self.noise.getrandbits(64))
            self.recordings[sha256(other)] = path
            os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
            if self.noise.random() < 0.5:
                other.rename(path)
                continue
            with open(path, "r+b") as file:
                file.write(other.read_bytes())
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            other.unlink()

    def conclude(self, results: Results) -> None:
        results.note("replaced by others", len(self.replaced))
        super().conclude(results)


class Pairs(Campaign):
    """Two runs are started together on one ledger; one goes on, the other ends at once."""

    full, short = (0, 50), (0, 1)

    def prepare(self) -> None:
        self.record(2)

    def step(self) -> Step:
        return At(answer=lambda _: self._wait())

    def _wait(self) -> Step:
        """Keep the one under way until the other has ended."""
        assert self._one_has_ended.wait(60)
        return None

    def break_run(self) -> None:
        self._one_has_ended = threading.Event()
        with ThreadPoolExecutor(2) as pool:
            both = as_completed([pool.submit(self.run) for _ in range(2)])
            first = next(both).result()
            self._one_has_ended.set()
            second = next(both).result()
        self.endings[f"{first.code}, then {second.code}"] += 1
        self.unexplained += str(self.ledger) not in first.err

    def begin(self) -> None:
        self.endings: collections.Counter[str] = collections.Counter()
        self.unexplained = 0

    def conclude(self, results: Results) -> None:
        results.note("exit codes", dict(self.endings))
        gave_way = self.endings[f"{AGAIN}, then {OK}"]
        results.require("one ended with 75 at once, the other went on", gave_way, self.runs)
        results.require("of them without saying why", self.unexplained)
        super().conclude(results)


class First(Campaign):
    """Runs are killed while they begin a ledger; what cron and a person do then must end well."""

    full, short = (0, 120), (0, 3)
    begun = False

    def begin(self) -> None:
        self.ledgers = []
        self.blocked: list[str] = []
        self.after: collections.Counter[str] = collections.Counter()
        self.last = Ended(OK, {}, "")

    def prepare(self) -> None:
        here = self.folder / str(self.number)
        self.calls, self.ledger = here / "calls", here / "ledger.sqlite"
        self.calls.mkdir(parents=True)
        self.ledgers.append(self.ledger)
        self.record(3)

    def step(self) -> Step:
        return Delay(0.05)

    def break_run(self) -> None:
        """Kill some runs by hand; then cron's, which begins no ledger, and a person's if needed."""
        for _ in range(self.noise.choice((1, 1, 2, 4))):
            self.run(kill_after_s=self.startup_s * self.noise.uniform(0.5, 1.4))
        self.service.script.clear()
        self.service.wait_until_idle()
        has_ledger = self.ledger.exists() and self.ledger.stat().st_size
        left = "a ledger" if has_ledger else "an empty one" if self.ledger.exists() else "nothing"
        ended = self.run("--quiet")
        self.after[f"{left}, then {ended.code}"] += 1
        if ended.code == os.EX_CONFIG:
            ended = self.run()
        self.blocked += [ended.err] if ended.code not in (OK, UNKNOWN) else []
        code = max(self.last.code, ended.code)
        self.last = Ended(code, self.last.said | ended.said, self.last.err + ended.err)

    def conclude(self, results: Results) -> None:
        results.note("left behind, exit code of cron's run", dict(self.after))
        results.require("blocked: neither 0 nor 76 in the end", self.blocked)
        self.judge(results, self.last)


# --- Lookups and updates ---------------------------------------------------------------

LOOKUP_KEY = "upload_sha256"
# In place of the hour or so after which a dialog can be found.
INDEX_LAG_S = 0.5
# Runs until nothing that was made is unknown: one makes 30 calls at most.
RETRIES_LIMIT = 12
# Starts the program with pauses that are right for a service on this machine.
QUICK_WAITS = {WAITS["lookup_pause"]: 0, WAITS["refusal"]: 0.02, WAITS["backoff"]: 0.01}
QUICK_START = f"""import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import upload_grpc
for name, value_s in {QUICK_WAITS}.items():
    getattr(upload_grpc, name)  # There has to be one.
    setattr(upload_grpc, name, value_s)
"""
# A day is as much longer than the hour after which a dialog can be found.
QUICK_PROOF = f"""assert upload_grpc.PROOF_AGE_S / upload_grpc.LOOKUP_INTERVAL_S == 96
upload_grpc.LOOKUP_INTERVAL_S, upload_grpc.PROOF_AGE_S = 1, {INDEX_LAG_S + 2}
"""
GO = "sys.exit(upload_grpc.main())\n"
LOST = grpc.StatusCode.UNAVAILABLE
REFUSED = grpc.StatusCode.INVALID_ARGUMENT


class Lookups(Campaign):
    """Answers are lost, dialogs are found only later and under other IDs, half of the runs killed.

    Runs left alone find in the service what was made; two days later --retry-unknown uploads the
    rest.
    """

    full, short = (500, 60), (30, 4)
    options: Sequence[object] = (
        "--timeout", TIMEOUT_S, "--lookup-key", LOOKUP_KEY, "--organization-id", "o",
        "--space-id", "s",
    )  # fmt: skip
    looks_up = True
    # What the clock of a broken run is ahead by.
    clocks_h: Sequence[int] = (0,)
    # Proof after seconds, so that runs under faults send again, too.
    start = ("-c", QUICK_START + QUICK_PROOF + GO)

    def begin(self) -> None:
        self.environment, self._offset = own_clock(self.folder / "site")
        lags = random.Random(self.seed)  # Asked by the service's threads.
        self.service.gives_other_ids = True
        self.service.index_lag_s = lambda: lags.uniform(0, INDEX_LAG_S)
        self.found = 0

    def prepare(self) -> None:
        number = self.number + 1
        self.record(self.wanted * number // self.runs - len(self.recordings))
        # In the end nothing can be looked up, so that the run left alone finds something.
        self.service.viewer_role = number <= self.runs * 2 // 3
        # Slow enough for kills to come between an answer and the ledger.
        self._pauses = [Delay(self.noise.uniform(0, 0.1)) for _ in range(100)]
        self.service.on_call = self._step_of
        self._offset.write_text(str(self.noise.choice(self.clocks_h) * 3_600))

    def _step_of(self, call: Call) -> Step:
        if call.method in LOOKUPS:
            return self._pauses.pop() if self._pauses else None
        return self.service.next_step(call)

    def fault(self) -> Fault:
        """Lose what comes after the last byte of some recording, on half of the connections."""
        cut, freeze = self.noise.randrange(1_500, 6_000), self.noise.randrange(1_500, 6_000)
        faults = (
            *[Fault()] * 4,
            Fault(cut_to_client=cut),
            Fault(freeze_to_client=freeze),
            *[Fault(swallow_after=self.noise.randrange(3_000, 200_000))] * 2,
        )
        return self.noise.choice(faults)

    def step(self) -> Step:
        """Fail after the dialog has been made, or before, or answer late."""
        late = Delay(self.noise.uniform(0, 0.3))
        return self.noise.choice((*[None] * 5, *[late] * 5, Fail(LOST, store=True), Fail(LOST)))

    def moment_s(self) -> float:
        return super().moment_s() * (self.number % 2)

    def break_run(self) -> None:
        # Without lookups that would be to ask for duplicates.
        more = ["--retry-unknown"] * (self.looks_up and self.number % 4 < 2)
        more += ["--quiet", "--endpoint", self.proxy.endpoint]
        self.run(*more, kill_after_s=self.moment_s())

    def ended(self, code: int, out: bytes, err: str) -> Ended:
        ended = super().ended(code, out, err)
        self.found += sum(
            each["outcome"] == "uploaded" and each["found_id"] is not None
            for each in ended.said.values()
        )
        return ended

    def conclude(self, results: Results) -> None:
        """Leave runs alone until all that was made is found; then have the rest sent again."""
        self._offset.write_text("0")
        self.service.viewer_role = True
        self.record(1)  # Uploaded after all that is unknown: the control.
        during = self.found
        for _ in range(RETRIES_LIMIT):
            self._change_unknown(looked_up_at=None)
            last = self.run()
            if not self._unknown_and_made():
                break
        ends = self.judge(results, last)
        if not self.looks_up:
            self.one_more(results, last.code)
            return
        results.require("unknown and made", self._unknown_and_made())
        results.note("found by the runs left alone", self.found - during)
        results.require("nothing found at all", int(not self.found))
        missing = sum(end.state == "unknown" for end in ends)
        uploads = len(self.service.talks)
        for _ in range(RETRIES_LIMIT):
            two_days_ago = upload_grpc.utc(time.time() - 2 * 24 * 3600)
            self._change_unknown(sent_at=two_days_ago, looked_up_at=None)
            last = self.run("--retry-unknown")
            if last.code == OK:
                break
        print("  with --retry-unknown")
        results.require("sent by that", len(self.service.talks) - uploads, missing)
        ends = self.judge(results, last)
        results.require("not uploaded", [end for end in ends if end.state != "uploaded"])
        self.one_more(results, OK, "--retry-unknown")

    def _change_unknown(self, **columns: object) -> None:
        """Change what is known of the unknown, once all that was made can be found."""
        time.sleep(INDEX_LAG_S)
        if "unknown" in ledgers.states(self.ledger):
            ledgers.change(self.ledger, {"state": "unknown"}, **columns)

    def _unknown_and_made(self) -> list[End]:
        return [end for end in self.ends() if end.state == "unknown" and end.made]


class LookupsUnderJumpingClocks(Lookups):
    """The same recordings and faults, while half of the clocks are wrong by hours."""

    clocks_h = (0, 0, 0, -11, -3, 3, 11)
    start = ("-c", QUICK_START + GO)


class WithoutLookups(Lookups):
    """To compare: the same recordings and faults without --lookup-key; what is unknown stays so."""

    short = (0, 0)
    options = ("--timeout", TIMEOUT_S)
    looks_up = False
    start = ("-c", QUICK_START + GO)


class Updates(Campaign):
    """The JSON of uploaded recordings change, and their updates are refused, lost, cut and killed.

    After one run left alone every dialog has the fields of its JSON, or the refusal is named.
    """

    full, short = (150, 60), (25, 4)
    sizes = (2_000, 2_000)
    options = ("--update-metadata", "--retries", 1)
    start = ("-c", QUICK_START + GO)

    def begin(self) -> None:
        self._revision = 0
        self.fields: dict[str, dict[str, str]] = {}  # Of each recording's JSON, by its path.
        for path in self.record(self.wanted):
            self.change(str(path))
        self.named: set[str] = set()
        self.run()

    def change(self, path: str) -> None:
        self._revision += 1
        self.fields[path] = {"call": path, "revision": str(self._revision)}
        self._write(path)

    def _write(self, path: str) -> None:
        text = json.dumps(self.fields[path], indent=self.noise.choice((None, 1, 2, 4)))
        Path(path).with_suffix(".json").write_text(text)

    def prepare(self) -> None:
        """Change some JSON, and write others anew."""
        for path in self.fields:
            act = self.noise.choice((self.change, self._write, *[None] * 4))
            if act:
                act(path)

    def fault(self) -> Fault:
        to_server = Fault(cut_to_server=self.noise.randrange(2_000, 9_000))
        to_client = Fault(cut_to_client=self.noise.randrange(1_500, 6_000))
        return self.noise.choice((*[Fault()] * 3, to_server, to_client))

    def step(self) -> Step:
        late = Delay(self.noise.uniform(0, 0.3))
        early = Fail(grpc.StatusCode.NOT_FOUND, "no such talk yet")
        fails = (Fail(LOST, store=True), Fail(LOST), early, Fail(REFUSED, "no such field"))
        return self.noise.choice((*[None] * 3, *[late] * 3, *fails))

    def break_run(self) -> None:
        kill_after_s = self.startup_s * self.noise.uniform(0.7, 1.4) * (self.number % 2)
        words = ("--quiet", "--endpoint", self.proxy.endpoint, "--timeout", TIMEOUT_S)
        self.run(*words, kill_after_s=kill_after_s)

    def wanted_code(self, ends: Sequence[End]) -> int:
        return REJECTED if self.named else OK

    def _differ(self) -> set[str]:
        """Return the recordings whose dialog has other fields than their JSON."""
        sent = {talk.fields["call"]: talk.fields for talk in self.service.talks.values()}
        return {path for path, fields in self.fields.items() if sent[path] != fields}

    def conclude(self, results: Results) -> None:
        last = self.run()
        self.named = {path for path, each in last.said.items() if each["outcome"] == "rejected"}
        refused = [
            call.fields for call in self.service.calls if call.outcome.startswith(REFUSED.name)
        ]
        never = [path for path in self.named if self.fields[path] not in refused]
        outcomes = collections.Counter(call.outcome.split()[0] for call in self.service.calls)
        results.note("calls by their end", dict(outcomes))
        ends = self.judge(results, last)
        results.require("not uploaded", [end for end in ends if end.state != "uploaded"])
        results.note("refused in the end", len(self.named))
        results.require("other metadata, and not named", sorted(self._differ() - self.named))
        results.require("named, but never refused", never)
        self.one_more(results, last.code)
        for path in self.fields:
            self.change(path)
        results.require("exit code once all JSON have changed", self.run().code)
        results.require("other metadata after that", sorted(self._differ()))


# --- Conversions ---------------------------------------------------------------------

# A program in the place of FFmpeg. It does what FFmpeg does, or something else, at random.
TROUBLED_FFMPEG = """#!/bin/bash
for target; do :; done
while [ "$1" != -i ]; do options+=("$1"); shift; done
path=${2#file:}
case $((RANDOM % 12)) in
    0) kill -KILL $$ ;;
    1) "REAL" "${options[@]}" "$@"; kill -TERM $$ ;;
    2) "REAL" "${options[@]}" "$@"; truncate -s -1000 "$target"; exit 0 ;;
    3) sleep 60 ;;
    4) echo "x: No space left on device" >&2; exit 228 ;;
    5) "REAL" "${options[@]}" "$@"; touch "$path"; exit 0 ;;
    6) echo "odd, but decoded" >&2; sleep 0.3 ;;
esac
exec "REAL" "${options[@]}" "$@"
"""
# How a run ends: by itself, without FFmpeg, or by a signal to its group.
RUN_ENDS = ("end", "end", "missing", signal.SIGTERM, signal.SIGINT, signal.SIGKILL)


def running_below(folder: Path) -> list[int]:
    """Return the processes of programs in a folder."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in each.read_bytes():
                found.append(int(each.parent.name))
    return found


class Conversions(Campaign):
    """FFmpeg is killed, stuck, missing, out of space or cuts a call, and runs are ended."""

    full, short = (166, 50), (13, 5)
    options = ("--convert", "--jobs", 8, "--timeout", 1)
    again = ("--retry-rejected",)

    def begin(self) -> None:
        self.left: list[object] = []  # Temporary files and processes, after a run.
        self.codes: collections.Counter[int] = collections.Counter()
        self._temp, self._bin = self.folder / "temp", self.folder / "bin"
        self._temp.mkdir()
        self._bin.mkdir()
        for number in range(self.wanted):
            size_bytes = self.noise.randrange(20_000, 200_000)
            wav = make_wav(self.folder / "call.wav", size_bytes, seed=number)
            path = self.calls / f"{number}.flac"
            path.write_bytes(encoders.ffmpeg(".flac", audio=wav.read_bytes()))
            self.recordings[sha256(wav)] = path
        self._put_ffmpeg(TROUBLED_FFMPEG)

    def done(self) -> int:
        """Return the number of runs; not all are done before one has uploaded something."""
        return self.number if self.service.talks else min(self.number, self.runs - 1)

    def _put_ffmpeg(self, text: str) -> None:
        program = self._bin / "ffmpeg"
        program.unlink(missing_ok=True)
        program.write_text(text.replace("REAL", encoders.DECODER))
        program.chmod(0o755)

    def rows(self) -> Rows:
        rows = super().rows()
        return {digest: rows.get(sha256(path), NO_ROW) for digest, path in self.recordings.items()}

    def break_run(self) -> None:
        end, more = self.noise.choice(RUN_ENDS), ["--quiet", *self.noise.choice([(), self.again])]
        if isinstance(end, signal.Signals):
            self.run(*more, kill_after_s=self.noise.uniform(0.1, 1.5), end=end)
        else:
            self.run(*more, path="/nowhere" if end == "missing" else "")

    def run(self, *more: object, path: str = "", **ending: Any) -> Ended:
        path = path or f"{self._bin}:{os.defpath}"
        self.environment = {"TMPDIR": str(self._temp), "PATH": path}
        ended = super().run(*more, **ending)
        self.codes[ended.code] += 1
        self.left += self._temp.iterdir()
        running = running_below(self._bin)
        if ended.code != -signal.SIGKILL:
            self.left += running
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        return ended

    def conclude(self, results: Results) -> None:
        results.note("exit codes", dict(self.codes))
        before = len(self.service.talks)
        results.require("none uploaded in trouble", int(not before))
        results.require("exit code without FFmpeg", self.run(path="/nowhere").code, os.EX_CONFIG)
        results.require("sent without FFmpeg", len(self.service.talks) - before)
        self._put_ffmpeg('#!/bin/sh\nexec "REAL" "$@"\n')
        super().conclude(results)
        results.require("temporary files or processes left", self.left)


# --- The command line ----------------------------------------------------------------

CAMPAIGNS: dict[str, tuple[type[Campaign], ...]] = {
    "cuts": (Cuts,),
    "kills": (Kills,),
    "pairs": (Pairs,),
    "lookups": (WithoutLookups, Lookups, LookupsUnderJumpingClocks),
    "clock": (Clock,),
    "first": (First,),
    "conversions": (Conversions,),
    "updates": (Updates,),
}


def leave(number: int, frame: object) -> NoReturn:
    """Let every `with` and `finally` tidy up."""
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Break uploads, and count what became of them.")
    parser.add_argument("--short", action="store_true", help="seconds in place of minutes")
    parser.add_argument("--seed", type=int, default=SEED, help="of the faults (%(default)s)")
    parser.add_argument("campaign", nargs="*", choices=[*CAMPAIGNS, []], help="all by default")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, leave)
    for name in FOREIGN_VARIABLES:
        os.environ.pop(name, None)
    setattr(upload_grpc, WAITS["backoff"], 0.01)
    results = Results()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        for name in args.campaign or CAMPAIGNS:
            for kind in CAMPAIGNS[name]:
                size = kind.short if args.short else kind.full
                if not size[1]:
                    continue
                print(f"\n== {name}: {str(kind.__doc__).splitlines()[0]}")
                started_s = time.monotonic()
                here = Path(folder, kind.__name__)
                with StandIn(here / "store", discard=True, certs=Path(folder, "certs")) as service:
                    campaign = kind(here, f"{args.seed} {name}", service, size)
                    campaign.main(results, SHORT_LIMIT_S if args.short else LIMIT_S)
                print(f"  {time.monotonic() - started_s:.0f} s")
    print(f"\n{results.passed} passed, {results.failed} failed (seed {args.seed})")
    return 1 if results.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
