"""Break uploads at random, and count from the service's own store what became of them.

    python tests/chaos.py [--short] [--seed N] [cuts] [kills] [pairs]

cuts: connections are cut, frozen or robbed of their answers at random byte counts; what the
program says of each recording is held against the store.
kills: runs over a growing folder, with a ledger, are killed (SIGKILL) at random moments; after
one undisturbed run every recording must be in the store once, or be named as unknown.
pairs: two runs are started together on one ledger; one goes on, the other ends at once.

The same seed makes the same faults; what they hit depends on the machine's timing. Prints what
happened, ends with "N passed, N failed", and exits with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import upload_grpc  # Before anything imports grpc.

# isort: split

from conftest import FOREIGN_VARIABLES, arguments, make_wav, start
from fault_proxy import Fault, FaultProxy
from stand_in import Call, Delay, Slow, StandIn, Step, stored_talks

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


FULL = Size(cuts=450, recordings=500, kills=200, pairs=50, limit_s=240)
SHORT = Size(cuts=45, recordings=60, kills=10, pairs=3, limit_s=60)

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

    def require(self, what: str, found: int, wanted: int = 0, detail: object = "") -> None:
        """Print a number, and whether it is the wanted one."""
        good = found == wanted
        self.passed += good
        self.failed += not good
        wrong = "" if good else f"   FAILED, wanted {wanted}: {detail}"
        print(f"  {what + ' ':.<58} {found}{wrong}", flush=True)


def print_table(title: str, columns: Sequence[str], counts: Mapping[tuple[str, str], int]) -> None:
    """Print counts by row and column, with sums."""
    lines = {
        row: [counts.get((row, column), 0) for column in columns]
        for row in dict.fromkeys(row for row, _ in counts)
    }
    lines["sum"] = [sum(column) for column in zip(*lines.values(), strict=True)]
    names = [*columns, "sum"]
    width = max(map(len, (title, *lines)))

    def print_line(first: str, cells: Sequence[object]) -> None:
        shown = (f"{cell:>{max(len(name), 5)}}" for name, cell in zip(names, cells, strict=True))
        print(f"  {first:{width}} {' '.join(shown)}")

    print()
    print_line(title, names)
    for row, cells in lines.items():
        print_line(row, [*cells, sum(cells)])
    print(flush=True)


def heading(text: str) -> None:
    print(f"\n== {text}", flush=True)


def talks_by_sha256(store: Path) -> dict[str, list[dict[str, Any]]]:
    talks = collections.defaultdict(list)
    for talk in stored_talks(store):
        talks[talk["sha256"]].append(talk)
    return talks


def run_to_end(words: Sequence[str]) -> tuple[int, str, str]:
    """Run the program as a process; answer exit code, stdout and stderr."""
    with start(*words) as process:
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    return process.returncode, out, err


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
    "never struck",
)
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


@contextlib.contextmanager
def watched_transfers() -> Iterator[dict[str, list[upload_grpc.Transfer]]]:
    """Keep each try's Transfer, by path: it knows whether the commit point was passed."""
    transfers: dict[str, list[upload_grpc.Transfer]] = collections.defaultdict(list)
    original, pause_s = upload_grpc.Transfer, upload_grpc.BACKOFF_S

    class Watched(original):  # type: ignore[valid-type, misc]
        def __init__(self, path: str, *rest: Any, **named: Any) -> None:
            super().__init__(path, *rest, **named)
            transfers[path].append(self)

    upload_grpc.Transfer = Watched  # type: ignore[misc]
    upload_grpc.BACKOFF_S = BACKOFF_S
    try:
        yield transfers
    finally:
        upload_grpc.Transfer, upload_grpc.BACKOFF_S = original, pause_s  # type: ignore[misc]


class Cuts:
    """One service behind one proxy, and runs of the program in this process."""

    def __init__(self, folder: Path, noise: random.Random, service: StandIn) -> None:
        self.noise = noise
        self.service = service
        self.sent: list[Sent] = []
        self.slowest_s = 0.0
        self.bugs = 0
        self._folder = folder
        self._transfers: dict[str, list[upload_grpc.Transfer]] = {}

    def run(self, wanted: int, limit_s: float) -> None:
        """Break the connections of so many recordings."""
        deadline_s = time.monotonic() + limit_s
        with watched_transfers() as self._transfers, FaultProxy(self.service.port) as proxy:
            while len(self.sent) < wanted and time.monotonic() < deadline_s:
                self._one_run(proxy)

    def _one_run(self, proxy: FaultProxy) -> None:
        """Upload one recording, or three over one connection, and see what is said of them."""
        noise, count = self.noise, self.noise.choice((1, 1, 1, 3))
        batch = [self._record() for _ in range(count)]
        words = noise.choice(((), (), (), (), ("--single-message",)))
        size_bytes = sum(sent.size_bytes for sent in batch)
        faults = [random_fault(noise, size_bytes) for _ in range(noise.choice((1, 1, 2, 3)))]
        # Sizes that gRPC hands to the kernel in one go are all sent before they are cut; a
        # service that takes its time lets the cut come first.
        steps: list[Step] = [noise.choice((None, None, Slow(40e6), Delay(0.02))) for _ in batch]
        del proxy.connections[:]
        proxy.plan = faults
        self.service.calls.clear()
        self.service.script[:] = steps
        started_s = time.monotonic()
        results = self._upload([sent.path for sent in batch], proxy, *words)
        self.slowest_s = max(self.slowest_s, time.monotonic() - started_s)
        struck = bool(proxy.connections and proxy.connections[0].struck)
        proxy.cut_all()
        self.service.wait_until_idle()
        for sent in batch:
            sent.result = results.get(str(sent.path), {})
            sent.phase = self._phase(sent, struck)
            sent.path.unlink()
        self._transfers.clear()
        self.sent += batch

    def _record(self) -> Sent:
        number = len(list(self._folder.glob("*.wav"))) + len(self.sent)
        size_bytes = round(300_000 * 40 ** self.noise.random())  # 300 KB to 12 MB
        path = make_wav(self._folder / f"{number}.wav", size_bytes, seed=self.noise.getrandbits(64))
        return Sent(path, sha256(path), path.stat().st_size)

    def _upload(self, paths: Sequence[Path], proxy: FaultProxy, *words: object) -> dict[str, Any]:
        """Run the program; answer its JSON lines by path."""
        given = arguments(
            self.service, "--audio-path", *paths, "--endpoint", proxy.endpoint, "--format", "json",
            "--timeout", TIMEOUT_S, "--retries", RETRIES, "--quiet", *words,
        )  # fmt: skip
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            code = upload_grpc.main(given)
        if code > 128:
            raise SystemExit(code)  # The program took the signal that was meant for us.
        self.bugs += code == os.EX_SOFTWARE
        return {result["path"]: result for result in map(json.loads, out.getvalue().splitlines())}

    def _phase(self, sent: Sent, struck: bool) -> str:
        """Tell how far the first try had come when its connection broke."""
        tries = [each for each in self._transfers[str(sent.path)] if each.call is not None]
        first = tries[0] if tries else None
        calls = {call.metadata.get("x-client-request-id"): call for call in self.service.calls}
        call: Call | None = calls.get(first.request_id) if first else None
        there = call is not None and call.bytes_received == sent.size_bytes
        if not struck:
            return "never struck"
        if first and not first.streamed:
            return f"single message: {'after' if there else 'before'} it was there"
        if first and first.finished:
            return PHASES[3] if there else PHASES[2]
        return "sending the recording" if call else "connecting"


def outcome_of(sent: Sent, made: bool) -> str:
    if sent.code == OK:
        return "uploaded" if sent.result["tries"] == 1 else "uploaded again"
    if sent.code == UNKNOWN:
        return "unknown, made" if made else "unknown, not"
    return "undelivered" if sent.code == AGAIN else "other"


def cut_campaign(results: Results, folder: Path, noise: random.Random, size: Size) -> None:
    heading(f"cuts: {size.cuts} recordings of 300 KB to 12 MB, each over a connection that breaks")
    started_s = time.monotonic()
    with StandIn(folder / "store", discard=True) as service:
        campaign = Cuts(folder, noise, service)
        campaign.run(size.cuts, size.limit_s)
    talks = talks_by_sha256(folder / "store")
    counts = collections.Counter(
        (sent.phase, outcome_of(sent, bool(talks.get(sent.sha256)))) for sent in campaign.sent
    )
    ordered = {key: counts[key] for phase in PHASES for key in counts if key[0] == phase}
    print_table("the first try broke", OUTCOMES, ordered)
    lost = [
        sent.result
        for sent in campaign.sent
        if sent.code == OK
        and (sent.result["talk_id"], sent.size_bytes)
        not in [(talk["talk_id"], talk["size"]) for talk in talks.get(sent.sha256, ())]
    ]
    doubled = [sent.result for sent in campaign.sent if len(talks.get(sent.sha256, ())) > 1]
    denied = [
        sent.result
        for sent in campaign.sent
        if sent.code not in (OK, UNKNOWN) and sent.sha256 in talks
    ]
    other = [sent.result for sent in campaign.sent if sent.code not in (OK, AGAIN, UNKNOWN)]
    foreign = set(talks) - {sent.sha256 for sent in campaign.sent}
    struck = sum(sent.phase != "never struck" for sent in campaign.sent)
    results.require("recordings sent", min(len(campaign.sent), size.cuts), size.cuts)
    print(f"  {'of them on a connection that was struck ':.<58} {struck}")
    results.require("less than half of them struck", int(struck < len(campaign.sent) / 2))
    results.require("runs that a bug ended", campaign.bugs)
    results.require("lost: called uploaded, not whole in the store", len(lost), 0, lost[:3])
    results.require("doubled: twice in the store", len(doubled), 0, doubled[:3])
    results.require("made, but called undelivered", len(denied), 0, denied[:3])
    results.require("truncated or foreign talks in the store", len(foreign))
    results.require("ended in another way than 0, 75 and 76", len(other), 0, other[:3])
    # Each try may be silent for TIMEOUT_S, then comes the next.
    bound_s = (RETRIES + 1) * TIMEOUT_S + 3
    results.require(f"runs longer than {bound_s:.1f} s", int(campaign.slowest_s > bound_s))
    print(f"  {time.monotonic() - started_s:.0f} s, the slowest run {campaign.slowest_s:.1f} s")


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
            "--format", "json", "--quiet",
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
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{self.ledger}{suffix}", f"{copy}{suffix}")
        with contextlib.closing(sqlite3.connect(copy)) as ledger:
            try:
                states = ledger.execute("SELECT state FROM recordings").fetchall()
            except sqlite3.OperationalError:
                states = []  # Killed before there was a table.
        return sum(state not in ("sending", "failed") for (state,) in states)

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
                [sys.executable, upload_grpc.__file__, *self.words()],
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
        """Run once to the end; answer exit code, results by path, and stderr."""
        self._service.script.clear()
        self._service.wait_until_idle()
        code, out, err = run_to_end(self.words())
        return code, {each["path"]: each for each in map(json.loads, out.splitlines())}, err

    def rows(self) -> dict[str, tuple[str, str | None]]:
        """SHA-256 -> state and dialog ID, as the ledger has them."""
        with contextlib.closing(sqlite3.connect(self.ledger)) as ledger:
            query = "SELECT sha256, state, talk_id FROM recordings"
            return {row[0]: (row[1], row[2]) for row in ledger.execute(query)}


def kill_campaign(results: Results, folder: Path, noise: random.Random, size: Size) -> None:
    heading(f"kills: {size.kills} runs killed over a folder of at least {size.recordings}")
    started_s = time.monotonic()
    with StandIn(folder / "store", discard=True) as service:
        campaign = Kills(folder, noise, service)
        campaign.record(size.recordings)
        campaign.run(size.kills, size.limit_s)
        code, said, err = campaign.undisturbed()
        code_after, said_after, _ = campaign.undisturbed()
    talks = talks_by_sha256(folder / "store")
    rows = campaign.rows()
    none = ("no row", None)
    counts = collections.Counter(
        (rows.get(digest, none)[0], str(min(len(talks.get(digest, ())), 2)))
        for digest in campaign.recordings
    )
    print_table("in the ledger; in the store:", ("0", "1", "2"), counts)

    def having(wrong: Callable[[str, list[str]], bool]) -> list[str]:
        """The recordings of which something is wrong: (ledger's state, dialog IDs) -> bool."""
        return [
            path.name
            for digest, path in campaign.recordings.items()
            if wrong(rows.get(digest, none)[0], [talk["talk_id"] for talk in talks.get(digest, ())])
        ]

    missing = having(lambda state, ids: not ids and state != "unknown")
    doubled = having(lambda state, ids: len(ids) > 1)
    pending = having(lambda state, ids: state not in ("uploaded", "unknown"))
    wrong_ids = [
        digest
        for digest, (state, talk_id) in rows.items()
        if state == "uploaded" and [talk["talk_id"] for talk in talks.get(digest, ())] != [talk_id]
    ]
    unnamed = [
        path.name
        for digest, path in campaign.recordings.items()
        if rows.get(digest, none)[0] == "unknown"
        and (said.get(str(path), {}).get("outcome") != "unknown" or f"{path}: " not in err)
    ]
    ids = {talk["talk_id"] for several in talks.values() for talk in several}
    unknown = sum(state == "unknown" for state, _ in rows.values())
    wanted_code = UNKNOWN if unknown else OK
    print(f"  {'recordings ':.<58} {len(campaign.recordings)}")
    print(f"  {'runs that ended before they were killed ':.<58} {campaign.runs - campaign.kills}")
    results.require("killed runs", campaign.kills, size.kills)
    results.require("missing: not in the store, nor called unknown", len(missing), 0, missing[:9])
    results.require("doubled: twice in the store", len(doubled), 0, doubled[:9])
    results.require("uploaded, but not exactly that dialog in the store", len(wrong_ids))
    results.require("dialog IDs printed, but not in the store", len(campaign.claimed - ids))
    results.require("neither uploaded nor unknown in the end", len(pending), 0, pending[:9])
    results.require("unknown, but not named by the last run", len(unnamed), 0, unnamed[:9])
    results.require("exit code of the undisturbed run", code, wanted_code)
    results.require("exit code of one more", code_after, wanted_code)
    again = [path for path, each in said_after.items() if each["outcome"] == "uploaded"]
    results.require("sent by that one", len(again), 0, again[:9])
    print(f"  {time.monotonic() - started_s:.0f} s")


# --- Pairs ---------------------------------------------------------------------------

# Long enough for the second run to come while the first is under way.
ANSWER_S = 0.4


def pair_campaign(results: Results, folder: Path, noise: random.Random, size: Size) -> None:
    heading(f"pairs: {size.pairs} times two runs started together on one ledger")
    started_s = time.monotonic()
    deadline_s = started_s + size.limit_s
    calls = folder / "calls"
    calls.mkdir()
    endings: collections.Counter[tuple[str, str]] = collections.Counter()
    unexplained = 0
    with StandIn(folder / "store", discard=True) as service:
        for number in range(size.pairs):
            if time.monotonic() > deadline_s:
                break
            for name in ("a", "b"):
                make_wav(calls / f"{number:02}{name}.wav", 30_000, seed=noise.getrandbits(64))
            service.script[:] = [Delay(ANSWER_S)] * 4
            words = arguments(service, "--audio-path", calls, "--ledger", folder / "ledger.sqlite")
            (code, said), (other_code, _) = run_pair(words)
            endings["pairs", f"{code}, then {other_code}"] += 1
            unexplained += "another run is using it" not in said
    talks = talks_by_sha256(folder / "store")
    recordings = list(calls.glob("*.wav"))
    print_table("exit codes", sorted({codes for _, codes in endings}), endings)
    gave_way = endings["pairs", "75, then 0"]
    results.require("one ended with 75 at once, the other went on", gave_way, size.pairs)
    results.require("of them without saying why", unexplained)
    results.require("recordings in the store", len(talks), len(recordings))
    results.require("doubled", sum(len(several) > 1 for several in talks.values()))
    print(f"  {time.monotonic() - started_s:.0f} s")


def run_pair(words: Sequence[str]) -> list[tuple[int, str]]:
    """Start two runs; answer exit code and stderr of each, the first to end first."""
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


# --- The command line ----------------------------------------------------------------

CAMPAIGNS = {"cuts": cut_campaign, "kills": kill_campaign, "pairs": pair_campaign}


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
            CAMPAIGNS[name](results, here, noise, SHORT if args.short else FULL)
    print(f"\n{results.passed} passed, {results.failed} failed (seed {args.seed})")
    return 1 if results.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
