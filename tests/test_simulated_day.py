"""Days of a call centre in seconds: recorder, CRM and cron, each at its own pace."""

from __future__ import annotations

import collections
import json
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import encoders
import pytest
from conftest import NOTHING_AHEAD, Outcome, arguments, ended, make_wav, sha256, start, wait_for
from stand_in import StandIn

# How a day is scaled: a minute is 1 s, so that --min-age 2 stands for two minutes.
CALLS = 60
CALL_EVERY_S = 0.04
JSON_LATE_S = 1.0
CRON_EVERY_S = 0.75
DOWN_FROM_S, DOWN_UNTIL_S = 2.0, 3.5
CHANGED_AT_S, REWRITTEN_AT_S = 4.5, 5.0  # When all has been written that is not changed.
MIN_AGE_S = 2.0
# On a busy machine a thread may stand still for seconds, with a JSON half written: a day in which
# that happened is no test of --min-age. Nor is one of an outage that no run met.
LATE_LIMIT_S = 1.0


class Day:
    """What recorder and CRM write, by the time since the day began."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.final: dict[str, dict[str, str]] = {}
        self.audio: dict[str, str] = {}  # SHA-256, of what is uploaded as it is.
        self.was_down = False  # Whether the service was, and is no more.
        self.late_s = 0.0  # How long what was to be written was late, at most.
        self._noise = random.Random(1)
        self._events: list[tuple[float, Callable[[], object]]] = []
        for number in range(CALLS):
            self._add_call(number)
        changed = self._noise.sample(sorted(self.final), 10)
        for name in changed:
            self.final[name] = {"call": name, "operator_name": "Анна", "changed": "yes"}
            self._at(CHANGED_AT_S, self._write_json, name, self.final[name], 0)
        self.changed = set(changed)
        for name, fields in self.final.items():
            self._at(REWRITTEN_AT_S, self._write_json, name, fields, 4)

    def live(self, service: StandIn) -> None:
        """Write everything at its time; what changes, after most of it has been uploaded."""
        began_s = time.monotonic()
        for at_s, act in sorted(self._events, key=lambda event: event[0]):
            time.sleep(max(0.0, began_s + at_s - time.monotonic()))
            if at_s == CHANGED_AT_S:
                wait_for(lambda: self.was_down and len(self.changed & uploaded(service)) > 5, 60)
                began_s = max(began_s, time.monotonic() - at_s)
            act()
            self.late_s = max(self.late_s, time.monotonic() - began_s - at_s)

    def _at(self, at_s: float, act: Callable[..., object], *values: Any) -> None:
        self._events.append((at_s, lambda: act(*values)))

    def _add_call(self, number: int) -> None:
        name, began_s = f"{number:03}", number * CALL_EVERY_S
        ended_s = began_s
        if number % 10 == 3:  # A-law, unlike any other.
            alaw = bytearray(encoders.sound("WAV", "ALAW"))
            alaw[-8:-4] = number.to_bytes(4, "little")
            self._at(began_s, (self.folder / f"{name}.wav").write_bytes, bytes(alaw))
        elif number % 10 == 7:  # MP3 that grows.
            mp3 = encoders.mp3() + b"TAG" + name.encode().ljust(125, b"\0")
            for part in range(3):
                piece = mp3[part * len(mp3) // 3 : (part + 1) * len(mp3) // 3]
                ended_s = began_s + part * 0.4
                self._at(ended_s, append, self.folder / f"{name}.mp3", piece)
            self.audio[name] = sha256(mp3)
        else:
            path = make_wav(self.folder / f"{name}.part", 4_000, seed=number)
            self.audio[name] = sha256(path)
            self._at(began_s, path.rename, path.with_suffix(".wav"))
        self.final[name] = {"call": name, "operator_name": "Анна"}
        late_s = ended_s + self._noise.uniform(0, JSON_LATE_S)
        self._at(late_s, self._write_json, name, {"call": "not yet"}, 0, 9)
        self._at(late_s + 0.3, self._write_json, name, self.final[name], 0)

    def _write_json(
        self, name: str, fields: dict[str, str], indent: int, length: int | None = None
    ) -> None:
        """Write a JSON in place, as programs do that know no better; or only so much of it."""
        text = json.dumps(fields, ensure_ascii=False, indent=indent or None)[:length]
        (self.folder / f"{name}.json").write_text(text, encoding="utf-8")


def uploaded(service: StandIn) -> set[str]:
    return {talk.fields["call"] for talk in list(service.talks.values())}


def append(path: Path, piece: bytes) -> None:
    with path.open("ab") as file:
        file.write(piece)


def test_each_call_of_a_day_has_its_own_final_metadata(tmp_path: Path) -> None:
    encoders.put_in_path(tmp_path / "bin")
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        if live_a_day(tmp_path / str(number)):
            return
    pytest.fail("this machine is too busy for the recorder and the CRM")


def live_a_day(tmp_path: Path) -> bool:
    """Return False if the day was none; else all is checked."""
    folder, ledger = tmp_path / "calls", tmp_path / "ledger.sqlite"
    folder.mkdir()
    day = Day(folder)
    with StandIn(tmp_path / "store", options=(NOTHING_AHEAD,)) as service:
        words = arguments(
            service, "--audio-path", folder, "--ledger", ledger, "--require-json", "1h",
            "--min-age", MIN_AGE_S, "--update-metadata", "--convert", "--quiet", "--retries", 1,
        )  # fmt: skip
        runs: list[Outcome] = []
        living = threading.Thread(target=day.live, args=(service,))
        living.start()
        began_s, is_down = time.monotonic(), False
        while living.is_alive():
            passed_s = time.monotonic() - began_s
            if not (is_down or day.was_down) and passed_s > DOWN_FROM_S:
                service.stop(grace_s=5)
                is_down = True
            elif (
                is_down
                and passed_s > DOWN_UNTIL_S
                and (
                    # A run has met the outage, or none will.
                    runs[-1].code == 75 or len(uploaded(service)) == CALLS
                )
            ):
                service.start()
                is_down, day.was_down = False, True
            runs.append(run(words))
            time.sleep(CRON_EVERY_S)
        time.sleep(MIN_AGE_S)
        for _ in range(3):
            runs.append(run(words))
            if runs[-1] == Outcome(0, "", ""):
                break
    if day.late_s > LATE_LIMIT_S or {each.code for each in runs} == {0}:
        return False
    assert runs[-1] == Outcome(0, "", "")
    assert {each.err for each in runs} == {""}
    assert {each.code for each in runs} == {0, 75}
    check_talks(service, day)
    return True


def run(words: list[str]) -> Outcome:
    with start(*words) as process:
        return ended(process, 120)


def check_talks(service: StandIn, day: Day) -> None:
    by_call = collections.Counter(talk.fields["call"] for talk in service.talks.values())
    assert by_call == dict.fromkeys(day.final, 1)
    for talk in service.talks.values():
        assert talk.fields == day.final[talk.fields["call"]]
        assert talk.sha256 == day.audio.get(talk.fields["call"], talk.sha256)
    sent = [call for call in service.calls if call.messages[:1] == ["talk_id"]]
    updated = collections.Counter(call.fields["call"] for call in sent if "OK" in call.outcome)
    assert set(updated) <= day.changed and set(updated.values()) <= {1}
    assert len(sent) == updated.total()
    assert updated.total() > 5, "too few were uploaded before they changed"
