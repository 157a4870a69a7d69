"""The ledger after a power cut: what was not synced is lost, torn, or there, as the disk likes."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import FOREIGN_VARIABLES, SCRIPT, arguments, make_wav, start
from stand_in import StandIn, Talk

FOLDER = "ledger"
RECORDINGS = 150
CUTS = 100
RERUNS = 5

# When each dialog was made, in seconds since the epoch, and of which content (SHA-256).
Sent = list[tuple[float, str]]


class Event(NamedTuple):
    """A system call that changes or syncs a file; times in seconds since the epoch."""

    begin_s: float
    end_s: float
    file: str
    call: str
    data: bytes
    offset: int


def read_trace(folder: Path) -> list[Event]:
    """Read what strace wrote of each thread, in the order of time."""
    line = re.compile(
        r"(?P<begin>\d+\.\d+) (?P<call>\w+)\((?:\d+<)?\"?(?P<file>[^>\"]+)[>\"]"
        r"(?:, \"(?P<data>[^\"]*)\")?(?P<numbers>[\d, ]*)\) = \d+ <(?P<took>[\d.]+)>"
    )
    events = []
    for path in folder.iterdir():
        for text in path.read_text().splitlines():
            match = line.fullmatch(text)
            assert match or " = -1 " in text or text.endswith("+++"), text[:200]
            if match:
                numbers = [int(number) for number in re.findall(r"\d+", match["numbers"])]
                events.append(
                    Event(
                        float(match["begin"]),
                        float(match["begin"]) + float(match["took"]),
                        os.path.basename(unescaped(match["file"]).decode()),
                        match["call"],
                        unescaped(match["data"] or ""),
                        numbers[-1] if numbers else 0,
                    )
                )
    return sorted(events)


def unescaped(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def after_cut(events: list[Event], cut_s: float, chance: random.Random | None) -> dict[str, bytes]:
    """Answer the files as a disk may have them when the power fails at some time.

    chance: what decides of each change that was not synced; without it all of them are lost.
    """
    files: dict[str, bytearray] = collections.defaultdict(bytearray)
    unsynced: dict[str, list[Event]] = collections.defaultdict(list)
    for event in events:
        if event.begin_s >= cut_s:
            break
        # A file's removal is a change of its folder, on disk when that has been synced.
        waiting = unsynced[FOLDER if event.call == "unlink" else event.file]
        if event.call not in ("fsync", "fdatasync"):
            waiting.append(event)
        elif event.end_s < cut_s:
            for change in waiting:
                apply(files, change, len(change.data))
            waiting.clear()
    for change in (change for waiting in unsynced.values() for change in waiting):
        length = len(change.data)
        kept = chance.choice((0, length, chance.randint(0, length))) if chance else 0
        if kept or (chance and not length and chance.random() < 0.5):
            apply(files, change, kept)
    return {name: bytes(content) for name, content in files.items()}


def apply(files: dict[str, bytearray], change: Event, length: int) -> None:
    """Make a change, as far as it came."""
    content = files[change.file]
    if change.call == "unlink":
        content.clear()
        return
    end = change.offset + (length if change.call == "pwrite64" else 0)
    content.extend(bytes(max(0, end - len(content))))
    if change.call == "pwrite64":
        content[change.offset : end] = change.data[:length]
    else:
        del content[end:]


def restore(files: dict[str, bytes], folder: Path) -> Path:
    """Write a ledger as a power cut has left it."""
    folder.mkdir()
    for name, content in files.items():
        if content:
            (folder / name).write_bytes(content)
    return folder / "ledger.sqlite"


def read_states(ledger: Path) -> dict[str, str]:
    """Read states by content, having let SQLite mend what it can."""
    with contextlib.closing(sqlite3.connect(ledger)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if not database.execute("SELECT 1 FROM sqlite_master").fetchall():
            return {}
        return dict(database.execute("SELECT sha256, state FROM recordings"))


class NotingTimes(StandIn):
    """A service that notes each dialog before it makes it."""

    def __init__(self, store: Path) -> None:
        super().__init__(store)
        self.sent: Sent = []

    def save(self, talk: Talk) -> None:
        self.sent.append((time.time(), talk.sha256))
        super().save(talk)


class Traced(NamedTuple):
    """A run over recordings: the dialogs it made, and each change of the ledger's files."""

    service: NotingTimes
    calls: Path
    sent: Sent
    events: list[Event]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    if not shutil.which("strace"):
        pytest.skip("no strace to see what is brought to disk")
    calls, traces = tmp_path_factory.mktemp("calls"), tmp_path_factory.mktemp("traces")
    for number in range(RECORDINGS):
        make_wav(calls / f"{number}.wav", 1_000)
    folder = tmp_path_factory.mktemp(FOLDER, numbered=False)
    ledger = folder / "ledger.sqlite"
    command: list[Any] = ["strace", "-ff", "--seccomp-bpf", "-qq", "-ttt", "-T", "-y", "-xx"]
    command += ["-s", 10**6, "-o", traces / "t", "-P", folder]
    command += ["-e", "signal=none", "-e", "trace=pwrite64,write,ftruncate,unlink,fsync,fdatasync"]
    for suffix in ("", "-wal", "-journal"):
        command += ["-P", f"{ledger}{suffix}"]
    command += [sys.executable, SCRIPT, "--ledger", ledger, "--audio-path", calls, "--quiet"]
    # What clears the environment does it for each test, and later than this.
    own = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
    service = NotingTimes(tmp_path_factory.mktemp("store"))
    with service:
        words = [*map(str, command), *arguments(service)]
        done = subprocess.run(words, env=own, capture_output=True, timeout=60, check=False)
        if b"PTRACE" in done.stderr:
            pytest.skip("nobody may be traced here")
        assert done.returncode == os.EX_OK, done.stderr
        assert len(service.sent) == RECORDINGS
        events = read_trace(traces)
        assert all(event.call != "write" for event in events)
        # The trace holds all there is to know: replayed to its end it gives the file as it is.
        assert after_cut(events, time.time(), None)["ledger.sqlite"] == ledger.read_bytes()
        yield Traced(service, calls, list(service.sent), events)


def test_after_a_power_cut_each_dialog_has_its_row(traced: Traced, tmp_path: Path) -> None:
    _, _, sent, events = traced
    chance = random.Random(20261122)
    cuts_s = chance.sample([at_s for at_s, _ in sent], CUTS // 2)
    # From the ledger's first byte to its last.
    first_s, last_s = events[0].begin_s, events[-1].end_s + 0.001
    cuts_s += [chance.uniform(first_s, last_s) for _ in range(CUTS // 2)]
    for number, cut_s in enumerate(cuts_s):
        files = after_cut(events, cut_s, chance if number % 3 else None)
        states = read_states(restore(files, tmp_path / str(number)))
        made = {sha256 for at_s, sha256 in sent if at_s <= cut_s}
        assert {states.get(sha256) for sha256 in made} <= {"finishing", "uploaded"}
        assert {sha256 for sha256, state in states.items() if state == "uploaded"} <= made


def test_the_run_after_a_power_cut_doubles_and_loses_nothing(
    traced: Traced, tmp_path: Path
) -> None:
    service, calls, sent, events = traced
    chance = random.Random(20261123)
    contents = {hashlib.sha256(path.read_bytes()).hexdigest() for path in calls.iterdir()}
    for number in range(RERUNS):
        cut_s = chance.uniform(sent[0][0], sent[-1][0])
        ledger = restore(after_cut(events, cut_s, chance), tmp_path / str(number))
        service.sent.clear()
        words = arguments(service, "--ledger", ledger, "--audio-path", calls, "--quiet")
        with start(*words) as process:
            _, err = process.communicate(timeout=60)
        made = [sha256 for at_s, sha256 in sent if at_s <= cut_s]
        made += [sha256 for _, sha256 in service.sent]
        assert len(made) == len(set(made))
        states = read_states(ledger)
        unknown = {sha256 for sha256, state in states.items() if state == "unknown"}
        assert contents - set(made) <= unknown
        assert process.returncode == (os.EX_PROTOCOL if unknown else os.EX_OK)
        assert err.count("not sent, an earlier run may have uploaded it") == len(unknown)
