"""A month of cron: which emails come, and that none comes twice on a day.

Each run is one of `*/5`; hours pass between those that matter by rewriting the ledger's times. The
local zone follows, so that a run at 09:00 finds itself at 09:00. To read the emails:

    SHOW_EMAILS=1 make test PYTEST_ARGS=tests/test_month.py
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import ledgers
import pytest
from conftest import Outcome, Run, closed_port, make_wav
from stand_in import Fail, StandIn

import upload_grpc

pytestmark = pytest.mark.usefixtures("waits")

REJECTED = Fail(grpc.StatusCode.INVALID_ARGUMENT, "key client_mood is not configured")
LOST_ANSWER = Fail(grpc.StatusCode.UNAVAILABLE, "Socket closed")
NO_INDEX = Fail(grpc.StatusCode.UNAVAILABLE)
COUNT = 60
LOOKUP = ("--lookup-key", "upload_sha256", "--organization-id", "o", "--space-id", "s")


@dataclasses.dataclass
class Cron:
    """A machine whose clock is that of the month."""

    upload: Callable[..., Outcome]
    service: StandIn
    folder: Path
    ledger: Path
    minute: int = 0  # Since midnight before the first day.
    runs: int = 0
    is_full: bool = False
    emails: list[tuple[int, int, str]] = dataclasses.field(default_factory=list)
    numbers: Iterator[int] = dataclasses.field(default_factory=lambda: iter(range(10**6)))

    def run(self, day: int, at: str, *words: object) -> Outcome:
        """Run once, at a time of a day (from 1 on); what is said is an email."""
        hour, minute = map(int, at.split(":"))
        now = (day - 1) * 1440 + hour * 60 + minute
        assert now >= self.minute
        ledgers.pass_time(self.ledger, (now - self.minute) * 60)
        self.minute = now
        utc = datetime.datetime.now(datetime.timezone.utc)
        ahead_s = now % 1440 * 60 - (utc.hour * 3600 + utc.minute * 60 + utc.second)
        hours, rest = divmod(abs(ahead_s), 3600)
        os.environ["TZ"] = (
            f"XXX{'-' if ahead_s > 0 else '+'}{hours:02}:{rest // 60:02}:{rest % 60:02}"
        )
        time.tzset()
        self.runs += 1
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        # A disk that is full: too small for a page of the ledger.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000 if self.is_full else limits[0], limits[1]))
        try:
            outcome = self.upload(*words)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if outcome.err:
            self.emails.append((day, now % 1440, outcome.err.replace(str(self.folder.parent), "")))
        return outcome

    def through(self, day: int, first: str, last: str, minutes: int, *words: object) -> None:
        """Run every so many minutes."""
        begin, end = (int(at[:2]) * 60 + int(at[3:]) for at in (first, last))
        for minute in range(begin, end + 1, minutes):
            self.call()
            self.run(day, f"{minute // 60:02}:{minute % 60:02}", *words)

    def call(self, name: str = "", content: bytes | None = None) -> Path:
        """Record a call."""
        number = next(self.numbers)
        path = self.folder / (name or f"{number:06}.wav")
        if content is None:
            make_wav(path, 400, seed=number)
        else:
            path.write_bytes(content)
        return path


@pytest.fixture
def cron(upload: Run, service: StandIn, ledger: Path, tmp_path: Path) -> Iterator[Cron]:
    folder = tmp_path / "calls"
    folder.mkdir()
    (tmp_path / "fields.json").write_text('{"language": "ru-RU"}')
    words: tuple[object, ...] = (
        "--quiet",
        "--ledger",
        ledger,
        "--retries",
        0,
        "--jobs",
        1,
        *LOOKUP,
    )
    words += ("--meta-path", tmp_path / "fields.json", "--audio-path", folder)
    machine = Cron(lambda *more: upload(*words, *more), service, folder, ledger)
    upload(*(word for word in words if word != "--quiet"))
    yield machine
    os.environ.pop("TZ", None)
    time.tzset()


def a_file_is_refused(cron: Cron) -> None:
    """In each run of day 2, and the next morning; then it is corrected."""
    bad = cron.call("0-refused.wav")
    cron.service.script.append(REJECTED)
    cron.through(2, "09:00", "09:20", 5)
    cron.through(3, "00:01", "00:11", 5)
    os.utime(bad, (1, 1))
    cron.through(3, "10:00", "10:05", 5)


def outages(cron: Cron) -> None:
    """Ten minutes on day 5, three hours on day 7."""
    away = ("--endpoint", f"localhost:{closed_port()}")
    cron.through(5, "11:00", "11:10", 5, *away)
    cron.through(5, "11:15", "11:20", 5)
    cron.through(7, "02:00", "05:00", 10, *away)
    cron.through(7, "05:05", "05:10", 5)


def a_share_is_not_mounted(cron: Cron) -> None:
    """From day 9 to noon of day 10."""
    share = cron.folder.rename(cron.folder.with_name("share"))
    cron.folder.mkdir()
    for day, at in ((9, "06:00"), (9, "06:05"), (9, "23:55"), (10, "00:01"), (10, "00:05")):
        cron.run(day, at)
    cron.folder.rmdir()
    share.rename(cron.folder)
    cron.through(10, "12:00", "12:05", 5)


def a_response_is_lost(cron: Cron) -> None:
    """The service cannot be asked either, so that a day later somebody has to look."""
    cron.service.on_call = lambda call: NO_INDEX if call.method == "Search" else LOST_ANSWER
    cron.call("lost-answer.wav")
    cron.run(12, "10:00")
    for day, at in ((12, "10:05"), (12, "23:55"), (13, "10:00"), (13, "10:10"), (13, "10:15")):
        cron.run(day, at)
    ledgers.change(cron.ledger, {"state": "unknown"}, state="uploaded", talk_id="seen", error=None)
    cron.service.on_call = lambda _: None
    cron.run(13, "12:00")


def the_disk_is_full(cron: Cron) -> None:
    """The ledger's, for an hour."""
    cron.is_full = True
    cron.through(15, "03:00", "04:00", 15)
    cron.is_full = False
    cron.through(15, "04:05", "04:10", 5)


def a_conversion_breaks(cron: Cron) -> None:
    """It leaves many files without audio; on day 19 they are made anew."""
    (cron.folder / "converted").mkdir()
    broken = [cron.call(f"converted/{number}.wav", b"RIFF") for number in range(COUNT)]
    cron.through(18, "01:00", "01:10", 5)
    cron.through(19, "00:01", "00:11", 5)
    for number, path in enumerate(broken):
        make_wav(path, 400, seed=10_000 + number)
    cron.through(19, "09:00", "09:05", 5)


def retention_deletes_what_was_never_uploaded(cron: Cron) -> None:
    never = cron.call("never.wav", b"RIFF")
    cron.through(22, "09:00", "09:05", 5)
    never.unlink()
    for path in cron.folder.glob("0000*.wav"):
        path.unlink()
    cron.through(23, "09:00", "09:05", 5)
    cron.through(24, "09:00", "09:05", 5)


# What the email of a day says, among other things.
EMAILS = {
    2: "refused.wav: the service refused the recording; fix",
    3: "refused.wav: not sent, as it was rejected before",
    7: "no upload has worked since ",
    9: "is it mounted?",
    10: "is it mounted?",
    12: "unknown recordings could not be looked up; ",
    13: "lost-answer.wav: not sent, as it may have been uploaded: ",
    15: "wait for that to end, then run again",
    18: f"and {COUNT - upload_grpc.SAID_LIMIT:,} more (",
    19: f"and {COUNT - upload_grpc.SAID_LIMIT:,} more (",
    22: "never.wav: ",
    23: "never.wav: gone before it was uploaded; restore it",
}


def test_a_month_of_cron(cron: Cron, capfd: pytest.CaptureFixture[str]) -> None:
    a_file_is_refused(cron)
    outages(cron)
    a_share_is_not_mounted(cron)
    a_response_is_lost(cron)
    the_disk_is_full(cron)
    a_conversion_breaks(cron)
    retention_deletes_what_was_never_uploaded(cron)
    final = cron.run(30, "12:00")
    text = "\n".join(
        f"--- day {day}, {minute // 60:02}:{minute % 60:02}\n{said}"
        for day, minute, said in cron.emails
    )
    if os.environ.get("SHOW_EMAILS"):
        with capfd.disabled():
            print(f"\n{cron.runs} runs, {len(cron.emails)} emails\n\n{text}")
    assert (final.code, final.err) == (0, "")
    assert [cause for _, cause in ledgers.causes(cron.ledger)] == ["lost"]
    # One on each of these days and no other: nothing that needs a person is silent, and nothing is
    # said twice on one day, whatever differs in the text.
    assert [day for day, _, _ in cron.emails] == list(EMAILS), text
    for day, _, said in cron.emails:
        assert EMAILS[day] in said
        about = [line.partition(".wav: ")[0] for line in said.splitlines()]
        assert len(set(about)) == len(about) <= upload_grpc.SAID_LIMIT + 1
