"""A short run of what `make fuzz` does at length, and proof that it finds what it looks for."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import encoders
import fuzz
import pytest
from fuzz import NEEDED, SECRET, TARGETS, Recording, Target, Workplace

import upload_grpc


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    with fuzz.workplace(tmp_path_factory.mktemp("fuzz")) as place:
        yield place


def target(name: str) -> Target:
    [found] = [target for target in TARGETS if target.name == name]
    return found


@pytest.fixture(autouse=True)
def _on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "RUN_LIMIT_S", 60)


@pytest.mark.parametrize("name", [target.name for target in TARGETS])
def test_generated_input_meets_no_bug(place: Workplace, name: str) -> None:
    examples = 20 if target(name).is_long else 150 if target(name).batch > 1 else 50
    count = fuzz.drive(place, target(name), examples, seed=1)
    assert (count.failure, count.passed) == ("", examples)
    assert 0 < count.taken < examples


FOUND: dict[str, tuple[str, Any]] = {
    "certificates of 64 GB": ("command lines", ([*NEEDED, "--ca-file", "huge"], "utf-8")),
    "no UTF-8": ("command lines", ([*NEEDED, "--connection-id", "\udcff"], "utf-8")),
    "more seconds than a float can be": (
        "VM answers",
        b'{"access_token": "t1.x", "expires_in": 1%s}' % (b"0" * 310),
    ),
    "brackets": ("VM answers", b"[" * 60_000),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_it_has_found_stays_fixed(place: Workplace, name: str) -> None:
    found_in, example = FOUND[name]
    assert fuzz.attempt(place, target(found_in), [example]) == 0


def breaking(bug: Callable[[], object]) -> Callable[[list[str]], int]:
    """Make a main() that has a bug where a recording is FLAC."""

    def main(words: list[str]) -> int:
        for name in (word for word in words if word.startswith("examples/")):
            print(f'{{"path": "{name}", "exit_code": 0}}')
            with open(name, "rb") as file:  # It may seem to have a terabyte.
                if file.read(4) == b"fLaC":
                    bug()
        return 0

    return main


def fail() -> None:
    raise KeyError("a bug")


BUGS: dict[str, Callable[[], object]] = {
    "'a bug'": fail,
    "exit code 77": lambda: sys.exit(77),
    "not a word": lambda: sys.exit(65),
    "a traceback": lambda: print("upload_grpc: Traceback", file=sys.stderr),
    "a line like 'E0000": lambda: print("E0000 grpc", file=sys.stderr),
    "the key is shown": lambda: print(SECRET),
    "not one answer": lambda: print('{"path": "x", "exit_code": 0}'),
    "took .* bytes": lambda: bytes(bytearray(b"x") * 80_000_000),
    "took more than 0.2 s": lambda: time.sleep(2),
}


@pytest.mark.parametrize("found", BUGS)
def test_it_notices_a_bug(place: Workplace, monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    flac = fuzz.seed_recordings().index(encoders.sound("FLAC", seconds=0.2))
    monkeypatch.setattr(upload_grpc, "main", breaking(BUGS[found]))
    if found.endswith("0.2 s"):
        monkeypatch.setattr(fuzz, "RUN_LIMIT_S", 0.2)
    with pytest.raises((AssertionError, KeyError, fuzz.Hang), match=found):
        fuzz.attempt(place, target("recordings"), [Recording(flac, (), ".x", 0, ())])


def test_the_smallest_input_is_printed_and_only_the_files_of_a_failure_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert fuzz.main(["--examples", "100", "--seed", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("seed 5, files in ")
    assert lines[-1] == "100 passed, 0 failed"
    assert [line.partition(":")[0] for line in lines[1:-1]] == [each.name for each in TARGETS]
    assert [*tmp_path.iterdir()] == []

    monkeypatch.setattr(fuzz, "CASE", 2)  # The smallest of these is found soon.
    small = dataclasses.replace(target("recordings"), batch=2)
    monkeypatch.setattr(fuzz, "TARGETS", (small,))
    monkeypatch.setattr(upload_grpc, "main", breaking(fail))
    said = []
    for _ in range(2):
        assert fuzz.main(["--examples", "1000", "--seed", "5"]) == 1
        said.append(capsys.readouterr().out.splitlines()[2:])
    assert said[0] == said[1], "the seed does not repeat it"
    failed, example, last = said[0]
    assert failed.startswith("recordings: FAILED: KeyError: 'a bug' (test_fuzz.py:")
    assert last.endswith(" passed, 1 failed")
    repeated = eval(example.removeprefix("    by "), vars(fuzz))
    assert fuzz.damaged(fuzz.seed_recordings()[repeated.seed], repeated.damages)[:4] == b"fLaC"
    for folder in tmp_path.iterdir():
        [kept] = (folder / "work" / "examples").iterdir()
        assert kept.read_bytes().startswith(b"fLaC")
