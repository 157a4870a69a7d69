"""What people and programs do in a folder between runs, made up by the thousand, beside a model.

Whatever they do, a call becomes one dialog at most, with metadata of its own. In the end, when the
service works again, each is uploaded or named; and a run that finds nothing new says and sends
nothing. What no program could see is not made up: of one recording, a run in between tells its new
name from a new format, and nothing tells a copy of its other format from another call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import random
import re
import shutil
import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import ledgers
from conftest import make_wav, sha256
from hypothesis import strategies as st
from stand_in import Fail, StandIn, Step

import upload_grpc

HOUR_S, DAY_S = 3_600, 86_400
QUOTA = Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota")
REFUSED = Fail(grpc.StatusCode.INVALID_ARGUMENT, "no such field")
LOST = Fail(grpc.StatusCode.UNAVAILABLE, "lost", store=True)
BROKEN = Fail(grpc.StatusCode.UNAVAILABLE, "lost")
# How the service is during a run: one of these for each recording.
SERVICES: dict[str, Sequence[Step]] = {
    "works": (None,),
    "quota": (QUOTA,),
    "refuses": (REFUSED,),
    "loses": (LOST,),
    "dice": (None, None, REFUSED, QUOTA, LOST, BROKEN),
}
OPTIONS = (
    "",
    "--update-metadata",
    "--require-json 2h",
    "--require-json 2h --update-metadata",
    "--since 7d",
)


@dataclasses.dataclass(eq=False)
class Call:
    """One call: its file or files, and what becomes of them."""

    number: int
    path: Path  # Its only file, or the one that others may be copies or formats of.
    others: list[Path] = dataclasses.field(default_factory=list)
    names: set[Path] = dataclasses.field(default_factory=set)  # All that it has had.
    digests: set[str] = dataclasses.field(default_factory=set)
    fields: dict[str, str] | None = None  # Those of its JSON, if it has one that is.
    whole: bytes = b""  # While only half of it is there.
    is_new: bool = True  # No run has seen its name.
    is_plain: bool = True  # Neither converted nor copied.

    @property
    def json(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def there(self) -> list[Path]:
        return [path for path in (self.path, *self.others) if path.exists()]


class World:
    """A folder that many hands change, and the runs of cron over it."""

    def __init__(self, base: Path, service: StandIn, key: str, options: str) -> None:
        self.folders = (base / "calls", base / "calls" / "day")
        self.ledger = base / "ledger.sqlite"
        self.service = service
        self.options = options
        self.calls: list[Call] = []
        self.count = 0
        self.said = ""
        self.dice = random.Random(1)
        service.on_call = lambda _: self.dice.choice(self.steps)
        common = base / "common.json"
        self.words = ["--audio-path", str(self.folders[0]), "--ledger", str(self.ledger)]
        self.words += ["--endpoint", service.endpoint, "--ca-file", str(service.ca_file)]
        self.words += ["--key", key, "--connection-id", "c", "--meta-path", str(common)]
        self.words += ["--retries", "0", "--jobs", "1", *options.split()]
        for folder in self.folders:  # What is empty looks like a share that is gone.
            folder.mkdir(parents=True)
            make_wav(folder / f"keep-{folder.name}.wav", 500)
        common.write_text('{"language": "ru-RU"}')
        self.run("works")

    def run(self, how: str, *more: str) -> tuple[int, str, int]:
        """Return exit code, stderr, and how many requests the service has got."""
        self.steps, before, err = SERVICES[how], len(self.service.calls), io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            more = more or ("--quiet",) * self.ledger.exists()
            code = upload_grpc.main([*self.words, *more])
        assert code in (0, 65, 66, 75, 76), f"exit code {code}: {err.getvalue()}"
        self.said += err.getvalue()
        for call in self.calls:
            call.is_new = False
            talks = [each for each in self.service.talks.values() if each.sha256 in call.digests]
            assert len(talks) <= 1, f"{len(talks)} dialogs of call {call.number}"
            for talk in talks:
                number = talk.fields.get("call", str(call.number))
                assert number == str(call.number), f"call {call.number} has metadata of {number}"
        return code, err.getvalue(), len(self.service.calls) - before

    def name(self, kind: str) -> Path:
        self.count += 1
        return self.folders[self.count % 2] / f"{kind}{self.count}.wav"

    def pick(self, number: int, fits: Callable[[Call], object]) -> Iterator[Call]:
        """Yield one of the calls that are there and fit, if there is one."""
        fitting = [call for call in self.calls if call.path.exists() and fits(call)]
        yield from fitting[number % len(fitting) :][:1] if fitting else ()

    def record(self, path: Path, has_json: object) -> Call:
        self.count += 1
        make_wav(path, 2_000 + 2 * self.count, seed=self.count)
        call = Call(self.count, path, names={path}, digests={sha256(path)})
        self.calls.append(call)
        if has_json:
            self.describe(call)
        return call

    def describe(self, call: Call) -> None:
        self.count += 1
        call.fields = {"call": str(call.number), "version": str(self.count)}
        call.json.write_text(json.dumps(call.fields))

    def move(self, call: Call, path: Path) -> None:
        call.path.rename(path)
        if call.json.exists():
            call.json.rename(path.with_suffix(".json"))
        call.path = path
        call.names.add(path)
        call.is_new = True


# --- What may happen: to which call, and how, by two numbers ------------------------------------


def is_plain(call: Call) -> bool:
    return call.is_plain and not call.whole


def record(world: World, which: int, how: int) -> None:
    world.record(world.name("call"), how % 3)


def halve(call: Call) -> None:
    call.whole = call.path.read_bytes()
    call.path.write_bytes(call.whole[: len(call.whole) // 2])
    call.digests.add(sha256(call.path))


def begin(world: World, which: int, how: int) -> None:
    halve(world.record(world.name("call"), how % 3))


def complete(world: World, which: int, how: int) -> None:
    for call in world.pick(which, lambda call: call.whole):
        call.path.write_bytes(call.whole)
        call.whole = b""


def describe(world: World, which: int, how: int) -> None:
    for call in world.pick(which, lambda call: True):
        world.describe(call)
        if how % 6 == 0:
            call.json.write_text('{"call": ["')
            call.fields = None


def export_again(world: World, which: int, how: int) -> None:
    for call in world.pick(which, lambda call: call.fields):
        call.json.write_text(json.dumps(call.fields, indent=how % 3 or None))


def lose_json(world: World, which: int, how: int) -> None:
    for call in world.pick(which, lambda call: call.json.exists()):
        call.json.unlink()
        call.fields = None


def rename(world: World, which: int, how: int) -> None:
    for call in world.pick(which, is_plain):
        world.move(call, world.name("renamed"))


def touch(world: World, which: int, how: int) -> None:
    for call in world.pick(which, lambda call: True):
        if how % 3 == 0:
            call.path.chmod(0o600 + how % 2 * 0o44)
        elif how % 3 == 1:
            os.utime(call.path)
        else:
            call.path.write_bytes(call.path.read_bytes())


def remove(world: World, which: int, how: int) -> None:
    for call in world.pick(which, lambda call: True):
        for path in (*call.there, call.json):
            path.unlink(missing_ok=path == call.json)


def convert(world: World, which: int, how: int) -> None:
    """A night job does it, or somebody repairs what was refused."""
    for call in world.pick(which, lambda call: call.is_plain and not call.is_new):
        call.whole = b""
        path = call.path.with_suffix(".mp3")
        noise = random.Random(call.number)
        path.write_bytes(b"".join(b"\xff\xfb\x90\x64" + noise.randbytes(413) for _ in range(6)))
        call.digests.add(sha256(path))
        call.names.add(path)
        call.is_plain = False
        if how % 2:
            call.path.unlink()
            call.path = path
        else:
            call.others.append(path)


def use_name_again(world: World, which: int, how: int) -> None:
    """The first one was moved away, or is overwritten."""
    for call in world.pick(which, is_plain):
        path = call.path
        if how % 2:
            world.move(call, world.name("moved"))
        else:
            call.json.unlink(missing_ok=True)
            call.path = path.with_name("overwritten")
        call.names.discard(path)
        new = world.record(path, how % 3)
        if how % 4 > 1:
            halve(new)


def copy(world: World, which: int, how: int) -> None:
    for call in world.pick(which, is_plain):
        path = world.name("copy")
        (os.link, os.symlink, shutil.copy, shutil.copy2)[how % 4](call.path, path)
        call.others.append(path)
        call.names.add(path)
        call.is_plain = False


def pass_time(world: World, which: int, how: int) -> None:
    ledgers.pass_time(world.ledger, (HOUR_S + 1, DAY_S + 1, 3 * DAY_S)[how % 3])


EVENTS = {
    event.__name__: event
    for event in (record, begin, complete, describe, export_again, lose_json, rename, touch, remove,
                  convert, use_name_again, copy, pass_time)
}  # fmt: skip
numbers = (st.integers(0, 20), st.integers(0, 11))
new = st.tuples(st.just("record"), *numbers)
event = st.tuples(st.sampled_from([*EVENTS]), *numbers)
run = st.tuples(st.sampled_from(["works", *SERVICES]))
steps = st.lists(st.one_of(new, event, event, event, run), min_size=5, max_size=40)
history = st.tuples(st.sampled_from(OPTIONS), steps)


# --- Playing it ---------------------------------------------------------------------------------


Steps = Sequence[tuple[Any, ...]]


def play(base: Path, service: StandIn, key: str, options: str, steps: Steps) -> int:
    """Play a history in a new folder; return how many calls were uploaded."""
    with unittest.mock.patch.multiple(upload_grpc, REFUSAL_WAIT_S=0.001, TICK_S=0.002):
        return _play(World(base, service, key, options), steps)


def _play(world: World, steps: Steps) -> int:
    for name, *numbers in steps:
        if name in EVENTS:
            EVENTS[name](world, *numbers)
        elif name == "works" and "--update-metadata" not in world.options:
            [would] = re.findall(r"(\d+) would be uploaded", world.run(name, "--dry-run")[1])
            assert int(would) == world.run(name)[2], f"a dry run would upload {would}"
        else:
            world.run(name)
    for _ in range(2):
        world.run("works")
    code, err, sent = world.run("works")
    assert (err, sent) == ("", 0), f"said again: {err}, {sent} sent"
    check(world, code)
    return len(world.service.talks) - len(world.folders)


def check(world: World, code: int) -> None:
    """Compare what is in the folder, in the service and in the report."""
    attention = ledgers.attention(world.ledger)
    named = {each["path"] for each in attention}
    known = {row["sha256"] for row in ledgers.rows(world.ledger)}
    for call in world.calls:
        is_named = any(str(name) in named or str(name) in world.said for name in call.names)
        talks = [each for each in world.service.talks.values() if each.sha256 in call.digests]
        waits = "--require-json" in world.options and call.fields is None
        what = f"call {call.number}, {sorted(map(str, call.names))}"
        if call.there and not call.whole and not waits:
            assert talks or is_named, f"{what} is neither uploaded nor named"
            if talks and call.is_plain and call.fields:
                is_sent = talks[0].fields.get("version") == call.fields["version"]
                assert is_sent or is_named, f"{what} has old metadata"
        if call.names and not call.there and known & call.digests:
            assert talks or is_named, f"{what} is gone, and nothing was said of it"
        for each in attention if talks and call.is_plain and call.fields else ():
            is_error = each["path"] in map(str, call.names) and each["exit_code"]
            may_be = each["cause"] in ("unknown", "update-refused")
            assert may_be or not is_error, f"{what} is uploaded: {each['error']}"
    is_bad = any(each["exit_code"] and os.path.lexists(each["path"]) for each in attention)
    assert is_bad or code == 0, f"exit code {code}, and nothing needs attention"
