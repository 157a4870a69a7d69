"""A month of cron: which emails come, and that none comes twice on a day.

Each run is one of `*/5`; hours pass between those that matter by rewriting the ledger's times. The
local zone follows, so that a run at 09:00 finds itself at 09:00. To read the emails:

    SHOW_EMAILS=1 make test PYTEST_ARGS=tests/test_month.py
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Any

import grpc
import ledgers
import pytest
from conftest import Outcome, Run, zone_at
from stand_in import Fail, StandIn
from stories import LOOKUP, REJECTED, Cron

import upload_grpc

pytestmark = pytest.mark.usefixtures("waits")

LOST_ANSWER = Fail(grpc.StatusCode.UNAVAILABLE, "Socket closed")
NO_INDEX = Fail(grpc.StatusCode.UNAVAILABLE)
COUNT = 15


class Month(Cron):
    """A machine whose clock is that of the month."""

    minute = 0  # Since midnight before the first day.
    runs = 0
    recorded = 0
    is_full = False

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.emails: list[tuple[int, int, str]] = []

    def run_at(self, day: int, at: str, *words: object) -> Outcome:
        """Run once, at a time of a day (from 1 on); what is said is an email."""
        hour, minute = map(int, at.split(":"))
        now = (day - 1) * 1440 + hour * 60 + minute
        assert now >= self.minute
        self.pass_time((now - self.minute) * 60)
        self.minute = now
        os.environ["TZ"] = zone_at(hour + minute / 60)
        time.tzset()
        self.runs += 1
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        # A disk that is full: too small for a page of the ledger.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000 if self.is_full else limits[0], limits[1]))
        try:
            outcome = self.run(*LOOKUP, *words)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if outcome.err:
            said = outcome.err.replace(str(self.folder.parent), "")
            self.emails.append((day, now % 1440, said))
        return outcome

    def through(self, day: int, first: str, last: str, minutes: int, *words: object) -> None:
        """Record a call, and run, every so many minutes."""
        begin, end = (int(at[:2]) * 60 + int(at[3:]) for at in (first, last))
        for minute in range(begin, end + 1, minutes):
            self.recorded += 1
            self.call(f"{self.recorded:06}.wav", 400)
            self.run_at(day, f"{minute // 60:02}:{minute % 60:02}", *words)


@pytest.fixture
def month(
    upload: Run,
    service: StandIn,
    folder: Path,
    ledger: Path,
    fields: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Month:
    machine = Month(upload, service, folder, ledger, fields, monkeypatch)
    machine.by_hand(*LOOKUP)
    return machine


def a_file_is_refused(month: Month) -> None:
    """In each run of day 2, and the next morning; then it is corrected."""
    bad = month.call("0-refused.wav", 400)
    month.service.script.append(REJECTED)
    month.through(2, "09:00", "09:20", 5)
    month.through(3, "00:01", "00:11", 5)
    os.utime(bad, (1, 1))
    month.through(3, "10:00", "10:05", 5)


def outages(month: Month) -> None:
    """Ten minutes on day 5, three hours on day 7."""
    month.through(5, "11:00", "11:10", 5, *month.away)
    month.through(5, "11:15", "11:20", 5)
    month.through(7, "02:00", "05:00", 20, *month.away)
    month.through(7, "05:05", "05:10", 5)


def a_share_is_not_mounted(month: Month) -> None:
    """From day 9 to noon of day 10."""
    share = month.folder.rename(month.folder.with_name("share"))
    month.folder.mkdir()
    for day, at in ((9, "06:00"), (9, "06:05"), (9, "23:55"), (10, "00:01"), (10, "00:05")):
        month.run_at(day, at)
    share.rename(month.folder)
    month.through(10, "12:00", "12:05", 5)


def a_response_is_lost(month: Month) -> None:
    """The service cannot be asked either, so that a day later somebody has to look."""
    month.service.on_call = lambda call: NO_INDEX if call.method == "Search" else LOST_ANSWER
    month.call("lost-answer.wav", 400)
    for day, at in ((12, "10:00"), (12, "10:05"), (12, "23:55")):
        month.run_at(day, at)
    for at in ("10:00", "10:10", "10:15"):
        month.run_at(13, at)
    ledgers.change(month.ledger, {"state": "unknown"}, state="uploaded", talk_id="seen", error=None)
    month.service.on_call = lambda _: None
    month.run_at(13, "12:00")


def the_disk_is_full(month: Month) -> None:
    """The ledger's, for an hour."""
    month.is_full = True
    month.through(15, "03:00", "04:00", 15)
    month.is_full = False
    month.through(15, "04:05", "04:10", 5)


def a_conversion_breaks(month: Month) -> None:
    """It leaves many files without audio; on day 19 they are made anew."""
    (month.folder / "converted").mkdir()
    for number in range(COUNT):
        month.broken(f"converted/{number}.wav")
    month.through(18, "01:00", "01:10", 5)
    month.through(19, "00:01", "00:11", 5)
    for number in range(COUNT):
        month.call(f"converted/{number}.wav", 400)
    month.through(19, "09:00", "09:05", 5)


def retention_deletes_what_was_never_uploaded(month: Month) -> None:
    never = month.broken("never.wav")
    month.through(22, "09:00", "09:05", 5)
    for path in (never, *month.folder.glob("0000*.wav")):
        path.unlink()
    month.through(23, "09:00", "09:05", 5)
    month.through(24, "09:00", "09:05", 5)


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


def test_a_month_of_cron(month: Month, capfd: pytest.CaptureFixture[str]) -> None:
    a_file_is_refused(month)
    outages(month)
    a_share_is_not_mounted(month)
    a_response_is_lost(month)
    the_disk_is_full(month)
    a_conversion_breaks(month)
    retention_deletes_what_was_never_uploaded(month)
    final = month.run_at(30, "12:00")
    text = "\n".join(
        f"--- day {day}, {minute // 60:02}:{minute % 60:02}\n{said}"
        for day, minute, said in month.emails
    )
    if os.environ.get("SHOW_EMAILS"):
        with capfd.disabled():
            print(f"\n{month.runs} runs, {len(month.emails)} emails\n\n{text}")
    assert (final.code, final.err) == (0, "")
    assert [cause for _, cause in month.causes()] == ["lost"]
    # One on each of these days and no other: nothing that needs a person is silent, and nothing is
    # said twice on one day, whatever differs in the text.
    assert [day for day, _, _ in month.emails] == list(EMAILS), text
    for day, _, said in month.emails:
        assert EMAILS[day] in said
        about = [line.partition(".wav: ")[0] for line in said.splitlines()]
        assert len(set(about)) == len(about) <= upload_grpc.SAID_LIMIT + 1
