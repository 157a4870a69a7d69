"""Break uploads at random, and count from the service's own store what became of them.

    python tests/chaos.py [--short] [--seed N] [CAMPAIGN ...]


cuts: connections are cut, frozen or robbed of their answers at random byte counts; what the
program says of each recording is compared with the store.
kills: runs over a growing folder, with a ledger, are killed (SIGKILL) at random moments; after
one undisturbed run every recording must be in the store once, or be named as unknown.
pairs: two runs are started together on one ledger; one goes on, the other ends at once.
lookups: answers are lost, dialogs can be found only later and under other IDs, and clocks jump;
runs left alone find in the service what was made, and two days later --retry-unknown uploads the
rest. Without --lookup-key, to compare (not with --short), the rest stays unknown.
clock: like kills, while the clock jumps by hours either way and files are replaced by other audio
of the same name, size and mtime, in place or by renaming, between runs and during them.
first: runs are killed while they begin a ledger; what cron and a person do then must end well.
conversions: FFmpeg is killed, stuck, missing or out of space, writes half a call, or the original
changes meanwhile, and runs are ended; then every recording must be in the store once, and whole.
updates: the JSON of uploaded recordings change; what sends them to the dialogs is refused, cut and
killed, and loses answers; after one run left alone every dialog has the fields of its JSON, or the
refusal is named.

The same seed makes the same faults; what they hit depends on the machine's timing. Prints what
happened, ends with "N passed, N failed", and exits with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import upload_grpc  # Before anything imports grpc.

# isort: split

import encoders
import grpc
import ledgers
from conftest import FOREIGN_VARIABLES, SCRIPT, WAITS, arguments, make_wav, own_clock, sha256, start
from fault_proxy import Fault, FaultProxy
from stand_in import LOOKUPS, Call, Delay, Fail, Slow, StandIn, Step, stored_talks

SEED = 20260731
OK, AGAIN, UNKNOWN = 0, 75, 76


@dataclass(frozen=True)
class Size:
    """How much of each campaign, and when to stop waiting for it."""

    cuts: int
    recordings: int
    kills: int
    pairs: int
    limit_s: float


FULL = Size(cuts=500, recordings=500, kills=200, pairs=50, limit_s=240)
SHORT = Size(cuts=24, recordings=40, kills=6, pairs=1, limit_s=60)

# For a frozen connection; everything else is much faster on loopback.
TIMEOUT_S = 0.3
RETRIES = 2
BACKOFF_S = 0.01


# --- What is printed -----------------------------------------------------------------


class Results:
    """Counts what passed and what failed, and prints it."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0

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


def print_table(title: str, columns: Sequence[str], counts: Mapping[tuple[str, str], int]) -> None:
    """Print counts by row and column, with sums."""
    lines = {
        row: [counts.get((row, column), 0) for column in columns]
        for row in dict.fromkeys(row for row, _ in counts)
    }
    lines["sum"] = [sum(column) for column in zip(*lines.values(), strict=True)]
    width = max(map(len, (title, *lines)))
    print(f"\n  {title:{width}}", *(f"{name:>5}" for name in (*columns, "sum")))
    for row, cells in lines.items():
        shown = (f"{cell:>{max(len(name), 5)}}" for name, cell in zip(columns, cells, strict=True))
        print(f"  {row:{width}}", *shown, f"{sum(cells):5}")
    print(flush=True)


def states_by_content(ledger: Path) -> dict[str, tuple[str, str | None]]:
    """SHA-256 -> state and dialog ID, as the ledger has them."""
    rows = ledgers.rows_by_content(ledger).items()
    return {digest: (row["state"], row["talk_id"]) for digest, row in rows}


def talks_by_sha256(store: Path) -> collections.defaultdict[str, list[dict[str, Any]]]:
    talks: collections.defaultdict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for talk in stored_talks(store):
        talks[talk["sha256"]].append(talk)
    return talks


def run_to_end(words: Sequence[str]) -> tuple[int, str, str]:
    """Run the program as a process; return exit code, stdout and stderr."""
    with start(*words) as process:
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    return process.returncode, out, err


# --- Cuts ----------------------------------------------------------------------------

# Byte counts on loopback: the handshake and the call's headers, then the recording.
HANDSHAKE_BYTES = 2_500
OVERHEAD_BYTES = 4_500
ANSWER_BYTES = 3_200

PHASES = (
    "connecting",
    "sending the recording",
    "all sent, the last bytes under way",
    "all there, the answer under way",
    "single message: before it was there",
    "single message: after it was there",
    "no try broke",
)
CONNECTING, SENDING, LAST_BYTES, ANSWER, MESSAGE_NOT_THERE, MESSAGE_THERE, UNBROKEN = PHASES
OUTCOMES = ("uploaded", "uploaded again", "undelivered", "unknown, made", "unknown, not", "other")


@dataclass
class Sent:
    """One recording of the campaign, and what the program said of it."""

    path: Path
    sha256: str
    size_bytes: int
    result: dict[str, Any] = field(default_factory=dict)
    phase: str = ""

    @property
    def code(self) -> int:
        return int(self.result.get("exit_code", -1))


def random_fault(noise: random.Random, size_bytes: int) -> Fault:
    """Choose where a connection that carries so many bytes breaks, and how."""
    rst = noise.random() < 0.5
    total_bytes = size_bytes + OVERHEAD_BYTES
    to_server = noise.choice(
        (
            noise.randrange(HANDSHAKE_BYTES),
            noise.randrange(total_bytes),
            noise.randrange(total_bytes),
            # The last chunk, the half-close, and somewhat beyond.
            noise.randrange(size_bytes - 100_000, total_bytes + 500),
            noise.randrange(size_bytes, total_bytes + 3_000),
        )
    )
    to_client = noise.randrange(ANSWER_BYTES)
    return noise.choice(
        (
            *[Fault(cut_to_server=to_server, rst=rst)] * 10,
            *[Fault(cut_to_client=to_client, rst=rst)] * 5,
            *[Fault(cut_after_s=noise.uniform(0, 0.02), rst=rst)] * 3,
            *[Fault(freeze_to_server=to_server)] * 2,
            Fault(freeze_to_client=to_client),
            *[Fault(swallow_after=to_server)] * 2,
        )
    )


class Cuts:
    """One service behind one proxy, and runs of the program in this process."""

    def __init__(self, folder: Path, noise: random.Random, service: StandIn) -> None:
        self.noise = noise
        self.service = service
        self.sent: list[Sent] = []
        self.slowest_s = 0.0
        self.struck = 0  # connections, at most one a recording
        self.bugs = 0
        self._folder = folder

    def run(self, wanted: int, limit_s: float) -> None:
        """Break the connections of so many recordings."""
        deadline_s = time.monotonic() + limit_s
        with FaultProxy(self.service.port) as proxy:
            while len(self.sent) < wanted and time.monotonic() < deadline_s:
                self._one_run(proxy)

    def _one_run(self, proxy: FaultProxy) -> None:
        """Upload one recording, or three at a time, and see what is said of them."""
        noise, count = self.noise, self.noise.choice((1, 1, 1, 3))
        batch = [self._record(len(self.sent) + number) for number in range(count)]
        single = noise.random() < 0.2
        faults = max(count, noise.choice((1, 1, 2, 3)))
        proxy.plan = [random_fault(noise, noise.choice(batch).size_bytes) for _ in range(faults)]
        del proxy.connections[:]
        # Sizes that gRPC hands to the kernel in one go are all sent before they are cut; a
        # service that takes its time lets the cut come first.
        steps = [noise.choice((None, None, Slow(40e6), Delay(0.02))) for _ in batch]
        self.service.script[:] = steps
        self.service.calls.clear()
        started_s = time.monotonic()
        results = self._upload([sent.path for sent in batch], proxy, single)
        self.slowest_s = max(self.slowest_s, time.monotonic() - started_s)
        self.struck += min(count, sum(bool(each.struck) for each in proxy.connections))
        proxy.cut_all()
        self.service.wait_until_idle()
        for sent in batch:
            sent.result = results.get(str(sent.path), {})
            sent.path.unlink()
        last_ids = [sent.result.get("request_id") for sent in batch]
        for sent in batch:
            sent.phase = self._phase(sent, last_ids, single)
        self.sent += batch

    def _record(self, number: int) -> Sent:
        size_bytes = round(300_000 * 40 ** self.noise.random())  # 300 KB to 12 MB
        path = make_wav(self._folder / f"{number}.wav", size_bytes, seed=self.noise.getrandbits(64))
        return Sent(path, sha256(path), path.stat().st_size)

    def _upload(self, paths: Sequence[Path], proxy: FaultProxy, single: bool) -> dict[str, Any]:
        """Run the program; return its JSON lines by path."""
        given = arguments(
            self.service, "--audio-path", *paths, "--endpoint", proxy.endpoint, "--format", "json",
            "--timeout", TIMEOUT_S, "--retries", RETRIES, "--quiet",
            *["--single-message"] * single,
        )  # fmt: skip
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            code = upload_grpc.main(given)
        if code > 128:
            raise SystemExit(code)  # The program took the signal that was meant for us.
        self.bugs += code == os.EX_SOFTWARE
        return {result["path"]: result for result in map(json.loads, out.getvalue().splitlines())}

    def _phase(self, sent: Sent, last_ids: Sequence[str | None], single: bool) -> str:
        """Tell how far the last try that broke had come, as the service saw it.

        The program names the last try, which broke unless it uploaded the recording. Of those
        before, the one that came furthest counts: among three recordings that may be another's.
        """
        if sent.code == OK and sent.result["attempts"] == 1:
            return UNBROKEN
        calls = {call.client_request_id: call for call in self.service.calls}
        if sent.code == OK:
            broken = [call for request_id, call in calls.items() if request_id not in last_ids]
        else:
            last_id = str(sent.result.get("request_id"))
            broken = [call for request_id, call in calls.items() if request_id == last_id]
        if single:
            return MESSAGE_THERE if broken else MESSAGE_NOT_THERE
        if any(call.half_closed for call in broken):
            return ANSWER
        if sent.code == UNKNOWN:
            return LAST_BYTES
        return SENDING if broken else CONNECTING


def outcome_of(sent: Sent, made: bool) -> str:
    if sent.code == OK:
        return "uploaded" if sent.result["attempts"] == 1 else "uploaded again"
    if sent.code == UNKNOWN:
        return "unknown, made" if made else "unknown, not"
    return "undelivered" if sent.code == AGAIN else "other"


def cut_campaign(results: Results, folder: Path, noise: random.Random, size: Size) -> None:
    print(
        f"\n== cuts: {size.cuts} recordings of 300 KB to 12 MB, each over a connection that breaks"
    )
    upload_grpc.BACKOFF_S = BACKOFF_S
    with StandIn(folder / "store", discard=True) as service:
        campaign = Cuts(folder, noise, service)
        campaign.run(size.cuts, size.limit_s)
    talks = talks_by_sha256(folder / "store")
    counts = collections.Counter(
        (sent.phase, outcome_of(sent, bool(talks.get(sent.sha256)))) for sent in campaign.sent
    )
    ordered = {key: counts[key] for phase in PHASES for key in counts if key[0] == phase}
    print_table("the last broken try was", OUTCOMES, ordered)
    lost, doubled, denied, other = [], [], [], []
    for sent in campaign.sent:
        made = talks.pop(sent.sha256, [])
        if sent.code == OK and (sent.result["talk_id"], sent.size_bytes) not in (
            (talk["talk_id"], talk["size"]) for talk in made
        ):
            lost.append(sent.result)
        if len(made) > 1:
            doubled.append(sent.result)
        if made and sent.code not in (OK, UNKNOWN):
            denied.append(sent.result)
        if sent.code not in (OK, AGAIN, UNKNOWN):
            other.append(sent.result)
    results.require("recordings sent", min(len(campaign.sent), size.cuts), size.cuts)
    results.note("connections struck, at most one a recording", campaign.struck)
    few = int(campaign.struck < len(campaign.sent) / 2)
    results.require("struck less than half", few)
    results.require("runs that a bug ended", campaign.bugs)
    results.require("lost: called uploaded, not whole in the store", lost)
    results.require("doubled: twice in the store", doubled)
    results.require("made, but called undelivered", denied)
    results.require("truncated or foreign talks in the store", list(talks))
    results.require("ended in another way than 0, 75 and 76", other)
    # Each try may be silent for TIMEOUT_S, then comes the next.
    bound_s = (RETRIES + 1) * TIMEOUT_S + 3
    results.note("seconds of the slowest run", f"{campaign.slowest_s:.1f}")
    results.require(f"longer than {bound_s:.1f}", int(campaign.slowest_s > bound_s))


# --- Kills ---------------------------------------------------------------------------

# How long after its start-up a run may go on before it is killed.
WORK_S = 0.6
# Recordings that wait in the folder when a run begins.
WAITING = 40


class Kills:
    """A folder, a ledger, and runs that are killed."""

    def __init__(self, folder: Path, noise: random.Random, service: StandIn) -> None:
        self.calls = folder / "calls"
        self.ledger = folder / "ledger.sqlite"
        self.recordings: dict[str, Path] = {}  # by SHA-256
        self.kills = self.runs = 0
        self.claimed: set[str] = set()  # dialog IDs printed before the kill
        self._noise = noise
        self._service = service
        self._printed = folder / "printed"
        self.calls.mkdir()

    def record(self, count: int) -> None:
        """Add recordings to the folder, most of them small."""
        for _ in range(count):
            size_bytes = round(3_000 * 100 ** self._noise.random())
            if self._noise.random() < 0.03:
                size_bytes = self._noise.randrange(1_000_000, 8_000_000)
            path = self.calls / f"{len(self.recordings):05}.wav"
            make_wav(path, size_bytes, seed=self._noise.getrandbits(64))
            self.recordings[sha256(path)] = path

    def words(self) -> list[str]:
        return arguments(
            self._service, "--audio-path", self.calls, "--ledger", self.ledger,
            "--format", "json",
        )  # fmt: skip

    def run(self, wanted: int, limit_s: float) -> None:
        """Kill so many runs."""
        deadline_s = time.monotonic() + limit_s
        startup_s = self._startup_s()
        while self.kills < wanted and time.monotonic() < deadline_s:
            self.record(WAITING - (len(self.recordings) - self._settled()))
            self._service.script[:] = [self._step() for _ in range(WAITING * 20)]
            self._one_run(self._noise.uniform(0, startup_s + WORK_S))

    def _settled(self) -> int:
        """Count what no run will send again, without touching the ledger as it was left."""
        copy = self._printed.with_name("copy.sqlite")
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

    def _step(self) -> Step:
        """Make the service slow enough for kills to hit uploads and answers under way."""
        return self._noise.choice(
            (None, Slow(self._noise.uniform(2e5, 2e6)), Delay(self._noise.uniform(0, 0.25)))
        )

    def _startup_s(self) -> float:
        started_s = time.monotonic()
        run_to_end([*self.words(), "--dry-run"])
        return time.monotonic() - started_s

    def _one_run(self, moment_s: float) -> None:
        """Let the program run for so long, and kill it."""
        self.runs += 1
        with (
            open(self._printed, "wb") as printed,
            subprocess.Popen(
                [sys.executable, str(SCRIPT), "--quiet", *self.words()],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.DEVNULL,
            ) as process,
        ):
            try:
                process.wait(moment_s)
            except subprocess.TimeoutExpired:
                self.kills += 1
            finally:
                process.kill()
        whole_lines = self._printed.read_bytes().split(b"\n")[:-1]
        self.claimed.update(
            result["talk_id"]
            for result in map(json.loads, whole_lines)
            if result["outcome"] in ("uploaded", "already")
        )

    def undisturbed(self) -> tuple[int, dict[str, dict[str, Any]], str]:
        """Run once to the end; return exit code, results by path, and stderr."""
        self._service.script.clear()
        self._service.wait_until_idle()
        code, out, err = run_to_end(self.words())
        return code, {each["path"]: each for each in map(json.loads, out.splitlines())}, err


class End(NamedTuple):
    """What has become of one recording: in the ledger, and in the store."""

    path: Path
    state: str
    talk_id: str | None
    made: list[str]

    @property
    def is_right(self) -> bool:
        """Whether the ledger has the one dialog that there is."""
        return self.made == [self.talk_id]


def kill_campaign(results: Results, folder: Path, noise: random.Random, size: Size) -> None:
    print(f"\n== kills: {size.kills} runs killed over a folder of at least {size.recordings}")
    with StandIn(folder / "store", discard=True) as service:
        campaign = Kills(folder, noise, service)
        campaign.record(size.recordings)
        campaign.run(size.kills, size.limit_s)
        code, said, err = campaign.undisturbed()
        code_after, said_after, _ = campaign.undisturbed()
    talks = talks_by_sha256(folder / "store")
    rows = states_by_content(campaign.ledger)
    ends = [
        End(path, *rows.get(digest, ("no row", None)), [talk["talk_id"] for talk in talks[digest]])
        for digest, path in campaign.recordings.items()
    ]
    counts = collections.Counter((end.state, str(min(len(end.made), 2))) for end in ends)
    print_table("in the ledger; in the store:", ("0", "1", "2"), counts)
    unknown = [end for end in ends if end.state == "unknown"]
    unnamed = [
        end
        for end in unknown
        if said.get(str(end.path), {}).get("outcome") != "unknown" or str(end.path) not in err
    ]
    untrue = campaign.claimed - {talk_id for end in ends for talk_id in end.made}
    again = [path for path, result in said_after.items() if result["outcome"] == "uploaded"]
    wanted_code = UNKNOWN if unknown else OK
    results.note("recordings", len(ends))
    results.note("runs that ended before they were killed", campaign.runs - campaign.kills)
    results.require("killed runs", campaign.kills, size.kills)
    results.require("missing: not in the store, nor called unknown", lost_ends(ends))
    results.require("doubled: twice in the store", [end for end in ends if len(end.made) > 1])
    results.require("uploaded, but not exactly that dialog in the store", wrong_ends(ends))
    results.require("dialog IDs printed, but not in the store", list(untrue))
    results.require("neither uploaded nor unknown in the end", pending_ends(ends))
    results.require("unknown, but not named by the last run", unnamed)
    results.require("exit code of the undisturbed run", code, wanted_code)
    results.require("exit code of one more", code_after, wanted_code)
    results.require("sent by that one", again)


# --- Pairs ---------------------------------------------------------------------------

# Long enough for the second run to come while the first is under way.
ANSWER_S = 0.4


def pair_campaign(results: Results, folder: Path, noise: random.Random, size: Size) -> None:
    print(f"\n== pairs: {size.pairs} times two runs started together on one ledger")
    calls, ledger = folder / "calls", folder / "ledger.sqlite"
    calls.mkdir()
    endings: collections.Counter[tuple[str, str]] = collections.Counter()
    unexplained = 0
    with StandIn(folder / "store", discard=True) as service:
        for number in range(size.pairs):
            for name in ("a", "b"):
                make_wav(calls / f"{number:02}{name}.wav", 30_000, seed=noise.getrandbits(64))
            service.script[:] = [Delay(ANSWER_S)] * 4
            words = arguments(service, "--audio-path", calls, "--ledger", ledger)
            (code, said), (other_code, _) = run_pair(words)
            endings["pairs", f"{code}, then {other_code}"] += 1
            unexplained += str(ledger) not in said
    talks = talks_by_sha256(folder / "store")
    print_table("exit codes", sorted({codes for _, codes in endings}), endings)
    gave_way = endings["pairs", "75, then 0"]
    results.require("one ended with 75 at once, the other went on", gave_way, size.pairs)
    results.require("of them without saying why", unexplained)
    results.require("recordings in the store", len(talks), len(list(calls.glob("*.wav"))))
    results.require("doubled", sum(len(several) > 1 for several in talks.values()))


def run_pair(words: Sequence[str]) -> list[tuple[int, str]]:
    """Start two runs; return exit code and stderr of each, the first to end first."""
    processes = [start(*words), start(*words)]
    try:
        while all(process.poll() is None for process in processes):
            time.sleep(0.002)
        processes.sort(key=lambda process: process.poll() is None)
        said = [process.communicate(timeout=60)[1] for process in processes]
        return [(process.returncode, err) for process, err in zip(processes, said, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.wait()


# --- Lookups -------------------------------------------------------------------------

LOOKUP_KEY = "upload_sha256"
LOOKUP_OPTIONS = ("--lookup-key", LOOKUP_KEY, "--organization-id", "o", "--space-id", "s")
# Recordings, and runs through the faults, half of which are killed.
LOST_ANSWERS, LOST_ANSWERS_SHORT = (500, 60), (30, 6)
# In place of the hour or so after which a dialog can be found.
INDEX_LAG_S = 1.0
# What the clock of a run is ahead by: half of them are right.
CLOCKS_H = (0, 0, 0, -11, -3, 3, 11)
# Runs with --retry-unknown until nothing is unknown: one makes 30 calls at most.
RETRIES_LIMIT = 12
# Starts the program with pauses that are right for a service on this machine.
QUICK_WAITS = {WAITS["lookup_pause"]: 0, WAITS["refusal"]: 0.02, WAITS["backoff"]: 0.01}
QUICK_START = f"""import os, sys, time
right, ahead_s = time.time, 3600 * float(os.environ["CLOCK_AHEAD_H"])
time.time = lambda: right() + ahead_s
sys.path.insert(0, {str(SCRIPT.parent)!r})
import upload_grpc
for name, value_s in {QUICK_WAITS}.items():
    getattr(upload_grpc, name)  # There has to be one.
    setattr(upload_grpc, name, value_s)
if os.environ["QUICK_PROOF"]:
    # A day is as much longer than the hour after which a dialog can be found.
    assert upload_grpc.PROOF_AGE_S / upload_grpc.LOOKUP_INTERVAL_S == 96
    upload_grpc.LOOKUP_INTERVAL_S, upload_grpc.PROOF_AGE_S = 1, {INDEX_LAG_S * 2 + 1}
sys.exit(upload_grpc.main())
"""


class Scenario(NamedTuple):
    """How the runs of a campaign differ from those of the others."""

    title: str
    options: Sequence[str] = LOOKUP_OPTIONS
    clocks_h: Sequence[int] = (0,)
    # Proof after seconds, so that runs under faults send again, too.
    quick_proof: bool = False


SCENARIOS = (
    Scenario("without lookups", ()),
    Scenario("with lookups", quick_proof=True),
    Scenario("with clocks that jump", clocks_h=CLOCKS_H),
)


class LostAnswers:
    """A folder, a ledger, and runs that lose answers, with lookups or without."""

    def __init__(self, folder: Path, seed: int, service: StandIn, scenario: Scenario) -> None:
        self.calls = folder / "calls"
        self.ledger = folder / "ledger.sqlite"
        self.recordings: dict[str, Path] = {}  # by SHA-256
        self.kills = self.found = 0
        self.bugs: list[str] = []
        self._folder = folder
        self._seed = seed
        self._noise = random.Random(seed)
        self._service = service
        self._scenario = scenario
        folder.mkdir()
        self.calls.mkdir()
        self.clock_h = 0  # Of the next run.
        lags = random.Random(seed)  # Asked by the service's threads.
        service.gives_other_ids = True
        service.index_lag_s = lambda: lags.uniform(0, INDEX_LAG_S)

    def record(self, count: int) -> None:
        for _ in range(count):
            path = self.calls / f"{len(self.recordings):05}.wav"
            size_bytes = round(3_000 * 30 ** self._noise.random())
            make_wav(path, size_bytes, seed=self._noise.getrandbits(64))
            self.recordings[sha256(path)] = path

    def break_runs(self, recordings: int, runs: int, limit_s: float) -> None:
        """Upload so many recordings in so many runs, over connections that lose answers."""
        deadline_s = time.monotonic() + limit_s
        startup_s = self._startup_s()
        with FaultProxy(self._service.port) as proxy:
            for number in range(1, runs + 1):
                # Not one noise for all: how many connections there are is another each time.
                self._noise = random.Random(f"{self._seed} {number}")
                proxy.plan = [self._fault() for _ in range(100)]
                del proxy.connections[:]
                self.record(recordings * number // runs - len(self.recordings))
                self._service.script[:] = [self._step() for _ in range(500)]
                # In the end nothing can be looked up, so that the run left alone finds something.
                self._service.viewer_role = number <= runs * 2 // 3
                # Slow enough for kills to come between an answer and the ledger.
                pauses = [Delay(self._noise.uniform(0, 0.1)) for _ in range(100)]
                self._service.on_call = functools.partial(self._step_of, pauses)
                moment_s = self._noise.uniform(0, startup_s + WORK_S)
                self.clock_h = self._noise.choice(self._scenario.clocks_h)
                # Without lookups that would be to ask for duplicates.
                more = ["--retry-unknown"] * bool(self._scenario.options and number % 4 < 2)
                more += ["--quiet", "--endpoint", proxy.endpoint]
                if time.monotonic() < deadline_s:
                    self.run(*more, kill_after_s=moment_s * (number % 2))
                proxy.cut_all()
        self.clock_h = 0
        self._service.script.clear()
        self._service.on_call = self._service.next_step
        self._service.viewer_role = True
        self._service.wait_until_idle()

    def _step_of(self, pauses: list[Delay], call: Call) -> Step:
        if call.method in LOOKUPS:
            return pauses.pop() if pauses else None
        return self._service.next_step(call)

    def _startup_s(self) -> float:
        started_s = time.monotonic()
        self.run("--dry-run")
        return time.monotonic() - started_s

    def _fault(self) -> Fault:
        """Lose what comes after the last byte of some recording, on half of the connections."""
        noise = self._noise
        return noise.choice(
            (
                *[Fault()] * 4,
                Fault(cut_to_client=noise.randrange(1_500, 6_000)),
                Fault(freeze_to_client=noise.randrange(1_500, 6_000)),
                *[Fault(swallow_after=noise.randrange(3_000, 200_000))] * 2,
            )
        )

    def _step(self) -> Step:
        """Fail after the dialog has been made, or before, or answer late."""
        lost = grpc.StatusCode.UNAVAILABLE
        return self._noise.choice(
            (
                *[None] * 5,
                *[Delay(self._noise.uniform(0, 0.3))] * 5,
                Fail(lost, store=True),
                Fail(lost),
            )
        )

    def wait_for_index(self) -> None:
        """Wait until all that was made can be found, and let it be looked up by the next run."""
        time.sleep(INDEX_LAG_S)
        self._change(looked_up_at=None)

    def age(self) -> None:
        """Let two days go by."""
        two_days_ago = upload_grpc.utc(time.time() - 2 * 24 * 3600)
        self._change(sent_at=two_days_ago, looked_up_at=None)

    def _change(self, **columns: object) -> None:
        if "unknown" in ledgers.states(self.ledger):
            ledgers.change(self.ledger, {"state": "unknown"}, **columns)

    def run(
        self, *more: str, kill_after_s: float = 0
    ) -> tuple[int, dict[str, dict[str, Any]], str]:
        """Run the program, and kill it after so long; return exit code, results and stderr."""
        words = arguments(
            self._service, "--audio-path", self.calls, "--ledger", self.ledger,
            "--format", "json", "--timeout", TIMEOUT_S, *self._scenario.options, *more,
        )  # fmt: skip
        proof = "1" * self._scenario.quick_proof
        printed, said = self._folder / "printed", self._folder / "said"
        with (
            open(printed, "wb") as out,
            open(said, "wb") as err,
            subprocess.Popen(
                [sys.executable, "-c", QUICK_START, *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "CLOCK_AHEAD_H": str(self.clock_h), "QUICK_PROOF": proof},
            ) as process,
        ):
            try:
                process.wait(kill_after_s or 120)
            except subprocess.TimeoutExpired:
                self.kills += 1
            finally:
                process.kill()
        results = [json.loads(line) for line in printed.read_bytes().split(b"\n")[:-1]]
        self.found += sum(
            result["outcome"] == "uploaded" and result["found_id"] is not None for result in results
        )
        text = said.read_text(encoding="utf-8")
        if process.returncode == os.EX_SOFTWARE or "Traceback" in text:
            self.bugs.append(text)
        return process.returncode, {result["path"]: result for result in results}, text

    def ends(self) -> list[LookupEnd]:
        """Return what has become of each recording."""
        talks = talks_by_sha256(self._service.store)
        rows = ledgers.rows_by_content(self.ledger).items()
        ids = {digest: (row["state"], row["talk_id"], row["found_id"]) for digest, row in rows}
        return [
            LookupEnd(
                path,
                *ids.get(digest, ("no row", None, None)),
                [(talk["talk_id"], talk["found_id"]) for talk in talks[digest]],
            )
            for digest, path in self.recordings.items()
        ]


class LookupEnd(NamedTuple):
    """What has become of one recording: in the ledger, and in the store."""

    path: Path
    state: str
    talk_id: str | None
    found_id: str | None
    made: list[tuple[str, str]]  # As Upload returned it, and as it is found.

    @property
    def is_right(self) -> bool:
        """Whether the ledger has the one dialog that there is, by either ID and no other."""
        if len(self.made) != 1 or not (self.talk_id or self.found_id):
            return False
        [(talk_id, found_id)] = self.made
        return self.talk_id in (None, talk_id) and self.found_id in (None, found_id)


def lookup_campaign(results: Results, folder: Path, noise: random.Random, size: Size) -> None:
    recordings, runs = LOST_ANSWERS_SHORT if size is SHORT else LOST_ANSWERS
    print(f"\n== lookups: {recordings} recordings in {runs} runs, half of them killed")
    columns = ("uploaded", "found", "unknown, made", "unknown, not", "doubled", "Search", "Get")
    lines: list[tuple[str, Sequence[int]]] = []
    seed = noise.getrandbits(64)
    for number, scenario in enumerate(SCENARIOS[size is SHORT :]):
        here = folder / str(number)
        with StandIn(here.with_suffix(".store"), discard=True) as service:
            # The same recordings, faults and moments each time.
            campaign = LostAnswers(here, seed, service, scenario)
            campaign.break_runs(recordings, runs, size.limit_s / 2)
            campaign.record(1)  # Uploaded after all that is unknown: the control.
            run_ends(campaign, scenario, lines, service, results, recordings)
            if scenario.options:
                retry_ends(campaign, lines, service, results)
    print("\n  " + " " * 26, *(f"{name:>13}" for name in columns))
    for title, numbers in lines:
        print(f"  {title:26}", *(f"{number:>13,}" for number in numbers))
    print(flush=True)


def count_lookups(service: StandIn) -> list[int]:
    counts = [len(service.searches), len(service.gets)]
    service.searches.clear()
    service.gets.clear()
    return counts


def line_of(campaign: LostAnswers, ends: Sequence[LookupEnd], lookups: Sequence[int]) -> list[int]:
    unknown = [end for end in ends if end.state == "unknown"]
    made = sum(bool(end.made) for end in unknown)
    uploaded = sum(end.state == "uploaded" for end in ends)
    doubled = sum(len(end.made) > 1 for end in ends)
    return [uploaded, campaign.found, made, len(unknown) - made, doubled, *lookups]


def run_ends(
    campaign: LostAnswers,
    scenario: Scenario,
    lines: list[tuple[str, Sequence[int]]],
    service: StandIn,
    results: Results,
    recordings: int,
) -> None:
    """Leave some runs alone, until all that was made is found, and check what the last one says."""
    before = count_lookups(service)
    if before != [0, 0]:
        lines.append(("  during the faults", line_of(campaign, campaign.ends(), before)))
    found = campaign.found
    for _ in range(RETRIES_LIMIT):
        campaign.wait_for_index()
        code, said, err = campaign.run()
        ends = campaign.ends()
        unknown = [end for end in ends if end.state == "unknown"]
        if not scenario.options or not any(end.made for end in unknown):
            break
    lines.append((scenario.title, line_of(campaign, ends, count_lookups(service))))
    unnamed = [
        end
        for end in unknown
        if said.get(str(end.path), {}).get("outcome") != "unknown" or str(end.path) not in err
    ]
    print(f"  {scenario.title}")
    results.require("recordings", len(ends), recordings + 1)
    results.note("runs killed", campaign.kills)
    results.require("missing: not made, nor called unknown", lost_ends(ends))
    results.require("doubled", [end for end in ends if len(end.made) > 1])
    results.require("uploaded, but not exactly that dialog is there", wrong_ends(ends))
    results.require("neither uploaded nor unknown", pending_ends(ends))
    results.require("unknown, but not named", unnamed)
    results.require("exit code of the run left alone", code, UNKNOWN if unknown else OK)
    results.require("runs that a bug ended", campaign.bugs)
    if scenario.options:
        results.require("unknown and made", [end for end in unknown if end.made])
        results.note("found by the runs left alone", campaign.found - found)
        results.require("nothing found at all", int(not campaign.found))


def retry_ends(
    campaign: LostAnswers,
    lines: list[tuple[str, Sequence[int]]],
    service: StandIn,
    results: Results,
) -> None:
    """Let two days go by, have the rest sent again, and check that nothing else is."""
    missing = sum(end.state == "unknown" for end in campaign.ends())
    uploads = len(service.talks)
    for _ in range(RETRIES_LIMIT):
        campaign.wait_for_index()
        campaign.age()
        code, _, _ = campaign.run("--retry-unknown")
        if code == OK:
            break
    ends = campaign.ends()
    lines.append(("  and --retry-unknown", line_of(campaign, ends, count_lookups(service))))
    results.require("exit code with --retry-unknown", code)
    results.require("sent by that", len(service.talks) - uploads, missing)
    results.require("doubled", [end for end in ends if len(end.made) > 1])
    results.require("not uploaded", [end for end in ends if end.state != "uploaded"])
    results.require("uploaded, but not exactly that dialog is there", wrong_ends(ends))
    campaign.run("--retry-unknown")
    results.require("sent by one more", len(service.talks) - uploads - missing)
    results.require("lookups by one more, with nothing unknown", sum(count_lookups(service)))


# Of either kind of campaign.
AnyEnd = TypeVar("AnyEnd", End, LookupEnd)


def lost_ends(ends: Sequence[AnyEnd]) -> list[AnyEnd]:
    return [end for end in ends if not end.made and end.state != "unknown"]


def wrong_ends(ends: Sequence[AnyEnd]) -> list[AnyEnd]:
    return [end for end in ends if end.state == "uploaded" and not end.is_right]


def pending_ends(ends: Sequence[AnyEnd]) -> list[AnyEnd]:
    return [end for end in ends if end.state not in ("uploaded", "unknown")]


# --- Clocks that jump, and files that are replaced -------------------------------------

# Runs that are killed, and recordings at the beginning.
JUMPS, JUMPS_SHORT = (100, 150), (6, 40)


class Jumps(Kills):
    """Runs that are killed, under a clock that jumps, over files that are replaced."""

    def __init__(self, folder: Path, noise: random.Random, service: StandIn) -> None:
        super().__init__(folder, noise, service)
        self.replaced: set[str] = set()  # SHA-256 of audio that is no more
        self.jumps = 0
        self.environment, self._offset = own_clock(folder / "site")

    def _one_run(self, moment_s: float) -> None:
        self._jump()
        self._replace(self._noise.randrange(3))
        # In mid-run, from another thread: what is chosen is chosen before.
        timers = [
            threading.Timer(self._noise.uniform(0, moment_s), act)
            for act in (self._jump, lambda: self._replace(2))
        ]
        for timer in timers:
            timer.start()
        super()._one_run(moment_s)
        for timer in timers:
            timer.join()

    def _jump(self) -> None:
        """Set the clock up to two days wrong, sometimes years, sometimes right."""
        hours = self._noise.choice((0, 1, 5, 48, 30_000))
        new = self._offset.with_name("new-offset")
        new.write_text(str(self._noise.choice((-1, 1)) * self._noise.uniform(0, hours) * 3_600))
        new.rename(self._offset)
        self.jumps += 1

    def _replace(self, count: int) -> None:
        """Give some recordings other audio of the same size, and their mtime back."""
        for digest in self._noise.sample(sorted(self.recordings), count):
            path = self.recordings.pop(digest)
            self.replaced.add(digest)
            status = path.stat()
            other = path.with_name("replacement")  # No suffix: not a recording.
            make_wav(other, status.st_size - 44, seed=self._noise.getrandbits(64))
            self.recordings[sha256(other)] = path
            os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
            if self._noise.random() < 0.5:
                other.rename(path)
                continue
            with open(path, "r+b") as file:
                file.write(other.read_bytes())
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            other.unlink()


def clock_campaign(results: Results, folder: Path, noise: random.Random, size: Size) -> None:
    kills, recordings = JUMPS_SHORT if size is SHORT else JUMPS
    print(f"\n== clock: {kills} runs killed under a clock that jumps, over files that change")
    with StandIn(folder / "store", discard=True) as service, contextlib.ExitStack() as undo:
        campaign = Jumps(folder, noise, service)
        os.environ.update(campaign.environment)
        for name in campaign.environment:
            undo.callback(os.environ.pop, name)
        campaign.record(recordings)
        campaign.run(kills, size.limit_s)
        _, said, _ = campaign.undisturbed()
        _, said_after, _ = campaign.undisturbed()
    talks = talks_by_sha256(folder / "store")
    rows = states_by_content(campaign.ledger)
    ends = [
        End(path, *rows.get(digest, ("no row", None)), [talk["talk_id"] for talk in talks[digest]])
        for digest, path in campaign.recordings.items()
    ]
    counts = collections.Counter((end.state, str(min(len(end.made), 2))) for end in ends)
    print_table("in the ledger; in the store:", ("0", "1", "2"), counts)
    known = campaign.replaced | set(campaign.recordings)
    denied = [
        digest
        for digest, made in talks.items()
        if made and rows.get(digest, ("no row", None))[0] not in ("uploaded", "unknown")
    ]
    unknown = [end for end in ends if end.state == "unknown"]
    unnamed = [end for end in unknown if said[str(end.path)]["outcome"] != "unknown"]
    again = [path for path, result in said_after.items() if result["outcome"] == "uploaded"]
    results.note("recordings", len(ends))
    results.note("replaced by others", len(campaign.replaced))
    results.note("of them uploaded before that", sum(bool(talks[d]) for d in campaign.replaced))
    results.note("times the clock jumped", campaign.jumps)
    results.require("killed runs", campaign.kills, kills)
    results.require("lost: not in the store, nor called unknown", lost_ends(ends))
    results.require(
        "doubled: twice in the store", [d for d, made in talks.items() if len(made) > 1]
    )
    results.require("made, but called undelivered", denied)
    results.require("uploaded, but not exactly that dialog in the store", wrong_ends(ends))
    results.require("neither uploaded nor unknown in the end", pending_ends(ends))
    results.require("audio in the store that no file ever had", sorted(set(talks) - known))
    results.require("unknown, but not named by the last run", unnamed)
    results.require("sent by one more run", again)


# --- First runs ----------------------------------------------------------------------

# Ledgers that are begun, and the moments at which that is disturbed, in parts of a start.
FIRST_RUNS, FIRST_RUNS_SHORT = 120, 5


def first_campaign(results: Results, folder: Path, noise: random.Random, size: Size) -> None:
    tries = FIRST_RUNS_SHORT if size is SHORT else FIRST_RUNS
    print(f"\n== first: {tries} ledgers, whose first runs are killed")
    after: collections.Counter[tuple[str, str]] = collections.Counter()
    ends: list[End] = []
    blocked, bugs, damaged = [], [], []
    startup_s = 0.0
    for number in range(tries):
        here = folder / str(number)
        calls, ledger = here / "calls", here / "ledger.sqlite"
        calls.mkdir(parents=True)
        paths = [
            make_wav(calls / f"{name}.wav", 3_000, seed=noise.getrandbits(64)) for name in "abc"
        ]
        with StandIn(here / "store", discard=True, certs=folder / "certs") as service:
            words = arguments(
                service, "--audio-path", calls, "--ledger", ledger, "--format", "json", begun=False
            )
            if not startup_s:
                started_s = time.monotonic()
                run_to_end([*words, "--dry-run"])
                startup_s = time.monotonic() - started_s
            service.script[:] = [Delay(0.05)] * 9
            for _ in range(noise.choice((1, 1, 2, 4))):
                kill_after(words, startup_s * noise.uniform(0.5, 1.4))
            service.script.clear()
            service.wait_until_idle()
            left = "nothing" if not ledger.exists() else f"{min(ledger.stat().st_size, 1)} bytes"
            code, _, err = run_to_end([*words, "--quiet"])
            bugs += [err] if code == os.EX_SOFTWARE else []
            after[left.replace("1 bytes", "a ledger"), str(code)] += 1
            if code == os.EX_CONFIG:  # Cron begins none: a person does.
                code, _, err = run_to_end(words)
            blocked += [err] if code not in (OK, UNKNOWN) else []
        try:
            ledgers.check(ledger)
        except (AssertionError, ledgers.Unreadable):
            damaged.append(ledger)
            continue
        rows, talks = states_by_content(ledger), talks_by_sha256(here / "store")
        for path in paths:
            made = [talk["talk_id"] for talk in talks[sha256(path)]]
            ends.append(End(path, *rows.get(sha256(path), ("no row", None)), made))
    print_table("left behind; exit code of cron", sorted({code for _, code in after}), after)
    results.require("ledgers that are damaged", damaged)
    results.require("runs that a bug ended", bugs)
    results.require("blocked: neither 0 nor 76 in the end", blocked)
    results.require("lost: not in the store, nor called unknown", lost_ends(ends))
    results.require("doubled: twice in the store", [end for end in ends if len(end.made) > 1])
    results.require("uploaded, but not exactly that dialog in the store", wrong_ends(ends))
    results.require("neither uploaded nor unknown in the end", pending_ends(ends))


def kill_after(words: Sequence[str], moment_s: float) -> None:
    """Start a run, and kill it."""
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment_s)
        process.kill()


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


class Conversions:
    """A folder of FLAC, an FFmpeg in trouble, and runs that are ended."""

    def __init__(self, folder: Path, noise: random.Random, service: StandIn, count: int) -> None:
        self.ledger = folder / "ledger.sqlite"
        self.wanted: dict[str, Path] = {}  # The digest of the recording as WAV.
        self.left: list[object] = []  # Temporary files and processes, after a run.
        self.codes: collections.Counter[str] = collections.Counter()
        self.bugs = 0
        self._calls, self._temp, self._bin = folder / "calls", folder / "temp", folder / "bin"
        self._noise, self._service = noise, service
        for each in (self._calls, self._temp, self._bin):
            each.mkdir()
        for number in range(count):
            wav = make_wav(folder / "call.wav", noise.randrange(20_000, 200_000), seed=number)
            path = self._calls / f"{number}.flac"
            path.write_bytes(encoders.ffmpeg(".flac", audio=wav.read_bytes()))
            self.wanted[sha256(wav)] = path

    def put_ffmpeg(self, text: str) -> None:
        program = self._bin / "ffmpeg"
        program.unlink(missing_ok=True)
        program.write_text(text.replace("REAL", encoders.DECODER))
        program.chmod(0o755)

    def run(self, end: object, *more: str) -> int:
        """Run the program, and end it so; return its exit code."""
        words = ("--audio-path", self._calls, "--ledger", self.ledger, "--convert", "--quiet")
        given = arguments(self._service, *words, "--jobs", 8, "--timeout", 1, *more)
        path = "/nowhere" if end == "missing" else f"{self._bin}:{os.defpath}"
        env = {"TMPDIR": str(self._temp), "PATH": path}
        with start(*given, env=env, start_new_session=True) as process:
            try:
                if isinstance(end, signal.Signals):
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(self._noise.uniform(0.1, 1.5))
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, end)
                _, err = process.communicate(timeout=120)
            finally:
                process.kill()
        self.bugs += "Traceback" in err
        self.codes[str(process.returncode)] += 1
        self.left += self._temp.iterdir()
        running = running_below(self._bin)
        if end != signal.SIGKILL:
            self.left += running
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        return process.returncode


def conversion_campaign(results: Results, folder: Path, noise: random.Random, size: Size) -> None:
    count, runs = size.recordings // 3, max(size.kills // 4, 6)
    print(f"\n== conversions: {count} recordings, {runs} runs with an FFmpeg in trouble")
    with StandIn(folder / "store", discard=True) as service:
        campaign = Conversions(folder, noise, service, count)
        campaign.put_ffmpeg(TROUBLED_FFMPEG)
        deadline_s = time.monotonic() + size.limit_s
        for _ in range(runs):
            if time.monotonic() < deadline_s:
                campaign.run(noise.choice(RUN_ENDS), *noise.choice([(), ("--retry-rejected",)]))
        before = len(service.talks)
        results.require("exit code without FFmpeg", campaign.run("missing"), os.EX_CONFIG)
        results.require("sent without FFmpeg", len(service.talks) - before)
        campaign.put_ffmpeg('#!/bin/sh\nexec "REAL" "$@"\n')
        code = campaign.run("end", "--retry-rejected")
        uploads = len(service.talks)
        campaign.run("end", "--retry-rejected")
        again = len(service.talks) - uploads
    talks = talks_by_sha256(folder / "store")
    states = states_by_content(campaign.ledger)
    doubled, missing, unknown = [], [], []
    for digest, path in campaign.wanted.items():
        made, (state, _) = len(talks.pop(digest, [])), states.get(sha256(path), ("", None))
        unknown += [path] * (state == "unknown")
        doubled += [path] * (made > 1)
        missing += [path] * (not made and state != "unknown")
    results.note("exit codes", dict(campaign.codes))
    results.note("uploaded while FFmpeg was in trouble", before)
    results.note("unknown", len(unknown))
    results.require("none uploaded in trouble", int(not before))
    results.require("missing: not made, nor called unknown", missing)
    results.require("doubled", doubled)
    results.require("half decoded or foreign talks in the store", list(talks))
    results.require("exit code of the run left alone", code, UNKNOWN if unknown else OK)
    results.require("sent by one more", again)
    results.require("temporary files or processes left", campaign.left)


# --- Updates -------------------------------------------------------------------------

# Recordings, and runs over JSON that change, half of which are killed.
UPDATES, UPDATES_SHORT = (150, 60), (25, 6)
REFUSED = grpc.StatusCode.INVALID_ARGUMENT


class Updates:
    """Uploaded recordings whose JSON change, and runs that send them to their dialogs."""

    def __init__(self, folder: Path, noise: random.Random, service: StandIn) -> None:
        self.calls = folder / "calls"
        self.ledger = folder / "ledger.sqlite"
        self.kills = 0
        self.bugs: list[str] = []
        self.fields: dict[str, dict[str, str]] = {}  # Of each recording's JSON, by its stem.
        self._noise = noise
        self._service = service
        self._revision = 0
        self.calls.mkdir()

    def record(self, count: int) -> None:
        """Upload so many recordings with their metadata."""
        for number in range(count):
            make_wav(self.calls / f"{number:03}.wav", 2_000, seed=self._noise.getrandbits(64))
            self.change(f"{number:03}")
        self.run(self._service.endpoint)

    def change(self, stem: str) -> None:
        self._revision += 1
        self.fields[stem] = {"call": stem, "revision": str(self._revision)}
        self._write(stem)

    def _write(self, stem: str) -> None:
        indent = self._noise.choice((None, 1, 2, 4))
        text = json.dumps(self.fields[stem], indent=indent)
        (self.calls / f"{stem}.json").write_text(text)

    def break_runs(self, runs: int, limit_s: float) -> None:
        """Change JSON, write others anew, and let a run meet whatever may happen to updates."""
        deadline_s = time.monotonic() + limit_s
        started_s = time.monotonic()
        self.run(self._service.endpoint)
        startup_s = time.monotonic() - started_s
        self._service.on_call = self._step
        with FaultProxy(self._service.port) as proxy:
            for number in range(runs):
                for stem in self.fields:
                    act = self._noise.choice((self.change, self._write, *[None] * 4))
                    if act:
                        act(stem)
                proxy.plan = [self._fault() for _ in range(50)]
                del proxy.connections[:]
                moment_s = startup_s * self._noise.uniform(0.7, 1.4)
                if time.monotonic() < deadline_s:
                    self.run(proxy.endpoint, moment_s * (number % 2))
                proxy.cut_all()
        self._service.on_call = self._service.next_step
        self._service.wait_until_idle()

    def _fault(self) -> Fault:
        noise = self._noise
        return noise.choice(
            (
                *[Fault()] * 3,
                Fault(cut_to_server=noise.randrange(2_000, 9_000)),
                Fault(cut_to_client=noise.randrange(1_500, 6_000)),
            )
        )

    def _step(self, call: Call) -> Step:
        lost = grpc.StatusCode.UNAVAILABLE
        return self._noise.choice(
            (
                *[None] * 3,
                *[Delay(self._noise.uniform(0, 0.3))] * 3,
                Fail(lost, store=True),
                Fail(lost),
                Fail(grpc.StatusCode.NOT_FOUND, "no such talk yet"),
                Fail(REFUSED, "no such field"),
            )
        )

    def run(self, endpoint: str, kill_after_s: float = 0) -> tuple[int, dict[str, str]]:
        """Run the program; return its exit code, and the outcome of each recording by its stem."""
        words = arguments(
            self._service, "--audio-path", self.calls, "--ledger", self.ledger, "--format", "json",
            "--update-metadata", "--timeout", TIMEOUT_S, "--retries", 1, "--endpoint", endpoint,
        )  # fmt: skip
        with subprocess.Popen(
            [sys.executable, "-c", QUICK_START, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "CLOCK_AHEAD_H": "0", "QUICK_PROOF": ""},
        ) as process:
            try:
                out, err = process.communicate(timeout=kill_after_s or 120)
            except subprocess.TimeoutExpired:
                self.kills += 1
                process.kill()
                out, err = process.communicate()
        if process.returncode == os.EX_SOFTWARE or "Traceback" in err:
            self.bugs.append(err)
        results = map(json.loads, out.splitlines()) if not kill_after_s else ()
        return process.returncode, {Path(each["path"]).stem: each["outcome"] for each in results}

    def differ(self) -> set[str]:
        """Return the recordings whose dialog has other fields than their JSON."""
        sent = {talk.fields["call"]: talk.fields for talk in self._service.talks.values()}
        return {stem for stem, fields in self.fields.items() if sent[stem] != fields}

    def refused(self) -> set[str]:
        """Return the recordings of which the service has refused what their JSON has."""
        calls = [call for call in self._service.calls if call.outcome.startswith(REFUSED.name)]
        return {
            stem
            for stem, fields in self.fields.items()
            if any(call.fields == fields for call in calls)
        }


def update_campaign(results: Results, folder: Path, noise: random.Random, size: Size) -> None:
    recordings, runs = UPDATES_SHORT if size is SHORT else UPDATES
    print(f"\n== updates: the JSON of {recordings} recordings change for {runs} runs")
    with StandIn(folder / "store", discard=True) as service:
        campaign = Updates(folder, noise, service)
        campaign.record(recordings)
        campaign.break_runs(runs, size.limit_s)
        code, said = campaign.run(service.endpoint)
        differ, refused = campaign.differ(), campaign.refused()
        named = {stem for stem, outcome in said.items() if outcome == "rejected"}
        before = len(service.calls)
        code_after, _ = campaign.run(service.endpoint)
        repeated = len(service.calls) - before
        for stem in campaign.fields:
            campaign.change(stem)
        code_changed, _ = campaign.run(service.endpoint)
        differ_changed = campaign.differ()
        outcomes = collections.Counter(call.outcome.split()[0] for call in service.calls)
        talks = len(service.talks)
    results.note("calls by their end", dict(outcomes))
    results.note("runs killed", campaign.kills)
    results.note("refused in the end", len(named))
    results.require("dialogs", talks, recordings)
    results.require("rows that are not uploaded", [
        row for row in ledgers.rows(campaign.ledger) if row["state"] != "uploaded"
    ])  # fmt: skip
    results.require("other metadata than the JSON, and not named", sorted(differ - named))
    results.require("named, but never refused", sorted(named - refused))
    results.require("exit code of the run left alone", code, os.EX_DATAERR if named else OK)
    results.require("exit code of one more", code_after, code)
    results.require("calls made by that one", repeated)
    results.require("exit code once all JSON have changed", code_changed)
    results.require("other metadata after that", sorted(differ_changed))
    results.require("runs that a bug ended", campaign.bugs)


# --- The command line ----------------------------------------------------------------

CAMPAIGNS = {
    "cuts": cut_campaign,
    "kills": kill_campaign,
    "pairs": pair_campaign,
    "lookups": lookup_campaign,
    "clock": clock_campaign,
    "first": first_campaign,
    "conversions": conversion_campaign,
    "updates": update_campaign,
}


def leave(number: int, frame: object) -> NoReturn:
    """Let every `with` and `finally` tidy up."""
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Break uploads, and count what became of them.")
    parser.add_argument("--short", action="store_true", help="about 20 s in place of minutes")
    parser.add_argument("--seed", type=int, default=SEED, help="of the faults (%(default)s)")
    parser.add_argument("campaign", nargs="*", choices=[*CAMPAIGNS, []], help="all by default")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, leave)
    for name in FOREIGN_VARIABLES:
        os.environ.pop(name, None)
    results = Results()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        for name in args.campaign or CAMPAIGNS:
            here = Path(folder, name)
            here.mkdir()
            noise = random.Random(f"{args.seed} {name}")
            started_s = time.monotonic()
            CAMPAIGNS[name](results, here, noise, SHORT if args.short else FULL)
            print(f"  {time.monotonic() - started_s:.0f} s")
    print(f"\n{results.passed} passed, {results.failed} failed (seed {args.seed})")
    return 1 if results.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
