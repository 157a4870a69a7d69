"""A short run of what `make fuzz` does at length, and proof that it finds what it looks for."""

from __future__ import annotations

import dataclasses
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fuzz
import pytest
from fuzz import SECRET, TARGETS, Target, Workplace

import upload_grpc


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    with fuzz.workplace(tmp_path_factory.mktemp("fuzz")) as place:
        yield place


def target(name: str) -> Target:
    [found] = [target for target in TARGETS if target.name == name]
    return found


@pytest.mark.parametrize("name", [target.name for target in TARGETS])
def test_generated_input_meets_no_bug(place: Workplace, name: str) -> None:
    examples = 150 if target(name).batch > 1 else 40
    count = fuzz.drive(place, target(name), examples, seed=1)
    assert (count.failure, count.passed) == ("", examples)
    assert 0 < count.taken < examples


FOUND: dict[str, tuple[str, Any]] = {
    "certificates of 64 GB": ("command lines", ([*fuzz.NEEDED, "--ca-file", "huge"], "utf-8")),
    "no UTF-8": ("command lines", ([*fuzz.NEEDED, "--connection-id", "\udcff"], "utf-8")),
    "more seconds than a float can be": (
        "VM answers",
        b'{"access_token": "t1.x", "expires_in": 1%s}' % (b"0" * 310),
    ),
    "brackets": ("VM answers", b"[" * 60_000),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_it_has_found_stays_fixed(place: Workplace, name: str) -> None:
    found_in, example = FOUND[name]
    assert fuzz.attempt(place, target(found_in), [example]) == ("", 0)


def breaking(bug: Callable[[], object]) -> Callable[[list[str]], int]:
    """Make a main() that has a bug where a recording is FLAC."""

    def main(words: list[str]) -> int:
        names = [word for word in words if word.startswith("recording")]
        for name in names:
            print(f'{{"path": "{name}", "exit_code": 0}}')
            with open(name, "rb") as file:
                if file.read(4) == b"fLaC":
                    bug()
        return 0

    return main


def fail() -> None:
    raise KeyError("a bug")


BUGS: dict[str, Callable[[], object]] = {
    "KeyError: 'a bug' (test_fuzz.py:": fail,
    "AssertionError: exit code 77": lambda: sys.exit(77),
    "AssertionError: not a word": lambda: sys.exit(65),
    "AssertionError: a traceback": lambda: print("upload_grpc: Traceback", file=sys.stderr),
    "AssertionError: a line like 'E0000": lambda: print("E0000 grpc", file=sys.stderr),
    "AssertionError: the key is shown": lambda: print(SECRET),
    "AssertionError: not one answer": lambda: print('{"path": "x", "exit_code": 0}'),
    "AssertionError: took ": lambda: bytes(bytearray(b"x") * 80_000_000),
    "Hang: took more than 0.2 s": lambda: time.sleep(2),
}


@pytest.mark.parametrize("found", BUGS)
def test_it_finds_a_bug_and_names_the_input(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    monkeypatch.setattr(upload_grpc, "main", breaking(BUGS[found]))
    monkeypatch.setattr(fuzz, "RUN_LIMIT_S", 0.2 if found.startswith("Hang") else 5)
    recordings = dataclasses.replace(target("recordings"), batch=50)
    count = fuzz.drive(place, recordings, 200, seed=1)
    assert count.failure.startswith(found)
    assert re.search(r"\n    in example \d+: \('\.?\w*', b'fLaC", count.failure)


def test_the_last_line_counts_and_only_the_files_of_a_failure_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert fuzz.main(["--examples", "60", "--seed", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("seed 5, files in ")
    assert lines[-1] == "60 passed, 0 failed"
    assert [line.partition(":")[0] for line in lines[1:-1]] == [each.name for each in TARGETS]
    assert [*tmp_path.iterdir()] == []

    monkeypatch.setattr(upload_grpc, "main", lambda words: 70)
    assert fuzz.main(["--examples", "60"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "recordings: FAILED: AssertionError: exit code 70: " in "\n".join(lines)
    assert lines[-1] == f"0 passed, {len(TARGETS)} failed"
    assert len([*tmp_path.iterdir()]) == 1
