"""A short run of what `make fuzz` does at length, and proof that it finds what it looks for."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import fuzz
import pytest
from fuzz import TARGETS, Target, Workplace

import upload_grpc

EXAMPLES = 60


@pytest.fixture(scope="module")
def place() -> Iterator[Workplace]:
    with Workplace.open() as place:
        yield place


def target(name: str) -> Target:
    [found] = [target for target in TARGETS if target.name == name]
    return found


@pytest.mark.parametrize("name", [target.name for target in TARGETS])
def test_generated_input_meets_no_bug(place: Workplace, name: str) -> None:
    count = fuzz.drive(place, target(name), EXAMPLES, seed=1)
    assert count.failure == ""
    assert count.passed == EXAMPLES
    assert 0 < count.taken < EXAMPLES


ONLY = ("--audio-path", "call.wav", "--connection-id", "c", "--key", fuzz.SECRET)


@pytest.mark.parametrize(
    ("name", "example"),
    [
        ("command lines", ([ONLY, ("--ca-file", "huge")], "utf-8")),
        ("command lines", ([ONLY, ("--connection-id", "\udcff")], "utf-8")),
        ("VM answers", b'{"access_token": "t1.x", "expires_in": 1%s}' % (b"0" * 310)),
        ("VM answers", b"[" * 60_000),
    ],
    ids=["certificates of 64 GB", "no UTF-8", "more seconds than a float can be", "brackets"],
)
def test_what_it_has_found_stays_mended(place: Workplace, name: str, example: Any) -> None:
    with fuzz.bounded():
        try:
            assert target(name).check(place, example) is False
        except upload_grpc.UploadError as error:
            fuzz.check_refusal(error, target(name).exit_code)


def raise_key_error(*arguments: Any) -> NoReturn:
    raise KeyError("a bug")


def sleep(*arguments: Any) -> None:
    time.sleep(1)


def eat(*arguments: Any) -> NoReturn:
    bytes(bytearray(b"x") * 80_000_000)
    raise ValueError("eaten")


def refuse_with_70(*arguments: Any) -> NoReturn:
    raise upload_grpc.UploadError(70, "a bug")


def show_the_key(*arguments: Any) -> NoReturn:
    raise upload_grpc.UploadError(78, f"bad key {fuzz.SECRET}")


@pytest.mark.parametrize(
    ("name", "function", "bug", "found"),
    [
        ("recordings", "check_wav", raise_key_error, "KeyError: 'a bug' (test_fuzz.py:"),
        ("recordings", "check_mp3", refuse_with_70, "AssertionError: exit code 70: a bug"),
        ("recordings", "check_ogg_opus", sleep, "Hang: took more than "),
        ("metadata", "parse_metadata", raise_key_error, "KeyError: 'a bug'"),
        ("metadata", "parse_metadata", eat, "AssertionError: took "),
        ("credentials", "read_key_file", show_the_key, "AssertionError: the key is shown"),
        ("VM answers", "Credential", raise_key_error, "KeyError: 'a bug'"),
        ("proxies and endpoints", "adopt_proxy_settings", refuse_with_70, "exit code 70"),
        ("command lines", "read_root_certificates", raise_key_error, "exit code 70: upload_grpc: "),
        ("command lines", "find_credential", show_the_key, "AssertionError: the key is shown"),
    ],
)
def test_it_finds_a_bug(
    place: Workplace,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    function: str,
    bug: Callable[..., Any],
    found: str,
) -> None:
    monkeypatch.setattr(upload_grpc, function, bug)
    if bug is sleep:
        monkeypatch.setattr(fuzz, "EXAMPLE_LIMIT_S", 0.4)
    count = fuzz.drive(place, target(name), 500, seed=1)
    assert found in count.failure
    assert "\n    with (" in count.failure or "\n    with b" in count.failure


def test_the_last_line_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--examples", "60", "--seed", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "seed 5"
    assert lines[-1] == "60 passed, 0 failed"
    named = [line.partition(":")[0] for line in lines[1:-1]]
    assert named == [target.name for target in TARGETS]
    assert all(
        re.search(r": [\d,]+ taken, [\d,]+ refused, in \d+ s$", line) for line in lines[1:-1]
    )


def test_a_failure_is_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(upload_grpc, "parse_metadata", raise_key_error)
    assert fuzz.main(["--examples", "60", "--seed", "5"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^metadata: FAILED: KeyError: 'a bug'", out, re.MULTILINE)
    assert re.search(r"^\d+ passed, 1 failed$", out, re.MULTILINE)
