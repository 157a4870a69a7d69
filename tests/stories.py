"""A folder of calls, runs of cron's over it, and stories of both.

Cron's longer days: test_month.py (which emails come), test_simulated_day.py (a day in seconds); its
line as README has it: test_readme.py.
"""

from __future__ import annotations

import fnmatch
import itertools
import json
import os
import re
import shutil
import time
from pathlib import Path

import encoders
import grpc
import ledgers
import pytest
from conftest import Outcome, Run, closed_port, make_wav
from stand_in import At, Call, Fail, StandIn, Talk

HOUR_S = 3600
DAY_S = 24 * HOUR_S
REJECTED = Fail(grpc.StatusCode.INVALID_ARGUMENT, "not this one")
NO_QUOTA = Fail(grpc.StatusCode.RESOURCE_EXHAUSTED)
LOST_ANSWER = Fail(grpc.StatusCode.UNAVAILABLE, "gone", store=True)
LOOKUP = ("--lookup-key", "upload_sha256", "--organization-id", "o", "--space-id", "s")

real_time_s = time.time
Number = int | str  # As a story has it.


def lines(outcome: Outcome) -> list[str]:
    """Return what was said, with file names for paths."""
    words = [line.removeprefix("upload_grpc: ") for line in outcome.err.splitlines()]
    return [re.sub(r"^/\S*/", "", line) for line in words]


def names(outcome: Outcome) -> list[str]:
    """Return the names of the files of which something was said."""
    return [line.partition(": ")[0] for line in lines(outcome)]


class Cron:
    """A folder of calls, a service, and runs over the one to the other with a ledger."""

    def __init__(
        self,
        upload: Run,
        service: StandIn,
        folder: Path,
        ledger: Path,
        fields: Path,
        patch: pytest.MonkeyPatch,
    ) -> None:
        self.service = service
        self.folder = folder
        self.ledger = ledger
        self.fields = fields
        self.away = ("--endpoint", f"localhost:{closed_port()}")
        self._upload = upload
        self._patch = patch
        self._seeds = itertools.count()

    # Runs

    def over(self, path: Path, *words: object) -> Outcome:
        """Run over another folder, or a file."""
        given = ("--ledger", self.ledger, "--retries", 0, "--jobs", 1, "--meta-path", self.fields)
        return self._upload(*given, "--audio-path", path, *words)

    def by_hand(self, *words: object) -> Outcome:
        """Run without --quiet."""
        return self.over(self.folder, *words)

    def run(self, *words: object) -> Outcome:
        """Run as cron does."""
        return self.by_hand(*words, "--quiet")

    def said(self, *words: object) -> tuple[int, list[str]]:
        """Run as cron does; return the exit code, and the names of files that were spoken of."""
        outcome = self.run(*words)
        return outcome.code, names(outcome)

    def report(self, *words: object) -> Outcome:
        return self._upload("--report", "--ledger", self.ledger, *words)

    def elsewhere(self) -> None:
        """Run over another folder."""
        other = self.folder.with_name("other")
        other.mkdir()
        make_wav(other / "b.wav", 2_000)
        assert self.over(other, "--quiet").code == 0

    # What the service does with uploads from now on

    def works(self) -> None:
        self.service.script.clear()
        self.service.on_call = self.service.next_step

    def refuse(self) -> None:
        """Have it refuse everything, with another text each time."""
        refusal = grpc.StatusCode.INVALID_ARGUMENT
        self.service.on_call = lambda _: Fail(refusal, f"at {time.time()}")

    def fail(self) -> None:
        self.service.on_call = lambda _: NO_QUOTA

    def fail_one(self) -> None:
        self.service.script.append(NO_QUOTA)

    def lose(self) -> None:
        """Have it lose one answer."""
        self.service.script.append(LOST_ANSWER)

    def while_it(self, deed: str, name: str) -> None:
        """Have something happen to a file while any upload is under way."""
        path = self.folder / name

        def act(_: Call) -> None:
            if deed == "removes":
                path.unlink(missing_ok=True)
            elif deed == "writes":
                self.json(name, "boris")
            else:
                make_wav(path, path.stat().st_size, seed=next(self._seeds))

        self.service.on_call = lambda _: At(metadata=act)

    # What happens in the folder

    def call(self, name: str, size_bytes: Number = 2_000, seed: Number | None = None) -> Path:
        """Record a call; without a seed its audio follows from its name."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return make_wav(path, int(size_bytes), seed=seed if seed is None else int(seed))

    def mp3(self, name: str, times: Number = 1) -> None:
        (self.folder / name).write_bytes(encoders.mp3() * int(times))

    def broken(self, name: str) -> Path:
        """Make a file that is refused before anything is sent."""
        path = self.call(name)
        path.write_bytes(b"RIFF")
        return path

    def empty(self, name: str) -> None:
        (self.folder / name).write_bytes(b"")

    def json(self, name: str, client: str) -> None:
        """Write a recording's JSON."""
        fields = {"client_name": client}
        (self.folder / name).with_suffix(".json").write_text(json.dumps(fields))

    def no_json(self, name: str) -> None:
        (self.folder / name).with_suffix(".json").write_text("no JSON")

    def copy(self, name: str, target: str) -> None:
        shutil.copy(self.folder / name, self.folder / target)

    def touch(self, name: str) -> None:
        os.utime(self.folder / name, (1, 1))

    def link(self, name: str, target: str) -> None:
        """Make a link of that name to another file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(self.folder / target)

    def hard_link(self, name: str, target: str) -> None:
        os.link(self.folder / target, self.folder / name)

    def rename(self, name: str, target: str) -> None:
        path = self.folder / target
        path.parent.mkdir(exist_ok=True)
        (self.folder / name).rename(path)

    def remove(self, name: str) -> None:
        path = self.folder / name
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()

    def unmount(self, way: str) -> None:
        self.folder.rename(self.folder.with_name("share"))
        if way == "empty":
            self.folder.mkdir()

    def mount(self) -> None:
        self.folder.with_name("share").rename(self.folder)

    # Time, and the ledger
    # What was said a day ago: pass_time, day, hours; the ledger's times go back, and files stay as
    # they are. What is old by its file: days_ahead, the program's clock, by which all is older.
    # For a process of its own: conftest.own_clock. Silence: Freeze, or Fault, and --timeout.

    def pass_time(self, seconds: float) -> None:
        ledgers.pass_time(self.ledger, seconds)

    def hours(self, hours: Number) -> None:
        """Let hours pass for the ledger."""
        self.pass_time(int(hours) * HOUR_S)

    def day(self) -> None:
        self.pass_time(DAY_S)

    def days_ahead(self, days: Number) -> None:
        """Let days pass for the files, too: the clock goes wrong."""
        ahead_s = int(days) * DAY_S
        self._patch.setattr(time, "time", lambda: real_time_s() + ahead_s)

    def sleep(self, seconds: Number) -> None:
        """Let time pass in earnest: for a file that is older than a run."""
        time.sleep(int(seconds))

    def stop_clock(self, at_s: float) -> None:
        self._patch.setattr(time, "time", lambda: at_s)

    def said_in(self, year: Number) -> None:
        ledgers.change_problems(self.ledger, said_at=f"{year}-01-01T00:00:00.000Z")

    def find(self) -> None:
        """Note in the ledger what was unknown, as README says."""
        ledgers.change(self.ledger, {"state": "unknown"}, state="uploaded", talk_id="seen")

    def problems(self) -> list[dict[str, object]]:
        return ledgers.problems(self.ledger)

    def causes(self) -> list[tuple[str, str]]:
        return ledgers.causes(self.ledger)

    # Stories

    def tell(self, story: str) -> None:
        """Do what a story says, line by line, and compare.

        What happens, or an option, with commas between, then what a run of cron's does: its exit
        code, and the files that it speaks of (an asterisk: whatever it says); after a bar, part of
        what it says. `report` (and options) has its exit code, and part of it; `its calls` each
        with its outcome; `in the store` the client of each dialog (a dash: none), in order; `in the
        end` what the ledger has as problems.
        """
        for line in filter(str.strip, story.replace(",\n", ",").splitlines()):
            deeds, _, expected = line.partition(" :")
            expected, _, text = (part.strip() for part in expected.partition("|"))
            if deeds.strip() == "in the end":
                found = " ".join(" ".join(pair) for pair in self.causes())
            elif deeds.strip() == "in the store":
                clients = [talk.fields.get("client_name", "-") for talk in self._talks()]
                found = " ".join(clients)
            elif deeds.strip() == "its calls":
                rows = map(json.loads, self.report("--format", "json").out.splitlines())
                calls = sorted((os.path.basename(row["path"]), row["outcome"]) for row in rows)
                found = " ".join(map(" ".join, calls))
            elif deeds.split()[:1] == ["report"]:
                outcome = self.report(*deeds.split()[1:])
                found = str(outcome.code)
                assert text in outcome.out, (line, outcome)
            else:
                outcome = self.run(*self._do(deeds))
                found = " ".join([str(outcome.code), *names(outcome)])
                assert text in outcome.err, (line, outcome)
            assert fnmatch.fnmatchcase(found.strip(), expected), (line, found)

    def _talks(self) -> list[Talk]:
        return list(self.service.talks.values())

    def _do(self, deeds: str) -> list[object]:
        """Have that happen; return the words for the run."""
        words: list[object] = []
        for deed in filter(None, map(str.strip, deeds.split(","))):
            name, *more = deed.split()
            if deed.startswith("--"):
                words += deed.split("=")
            elif deed == "away":
                words += self.away
            else:
                getattr(self, name)(*more)
        return words
