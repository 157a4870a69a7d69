"""The report: exit code, stdout and stderr of the command, for ledgers of any content."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import ledgers
import pytest
from conftest import SCRIPT, Outcome, Run, arguments, begin_ledger, ended, start
from ledgers import NOW, Maker, ago
from stand_in import StandIn

import upload_grpc

COMMAND = [sys.executable, str(SCRIPT), "--report", "--ledger"]
HEADER = ["connection_id", "path", "recorded_at", "uploaded_at", "outcome"]
HEADER += ["dialog_id", "found_id", "error"]
FORMATS = ("text", "csv", "json")
TODAY = NOW.astimezone().date()


class Output(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.out.removeprefix("\ufeff")), delimiter=";"))

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def run(ledger: Path, *options: str) -> Output:
    """Run the report in this process; with files beside the ledger left as they are."""
    before = set(os.listdir(ledger.parent))
    written, err = io.BytesIO(), io.StringIO()
    with redirect_stdout(io.TextIOWrapper(written, "utf-8")) as out, redirect_stderr(err):
        code = upload_grpc.main(["--report", "--ledger", str(ledger), *options])
        out.flush()
    # Without its -shm file a -wal cannot be read: SQLite makes one (open_read_only is as it was).
    made = {f"{ledger.name}-shm"} if os.path.exists(f"{ledger}-wal") else set()
    assert set(os.listdir(ledger.parent)) - made == before - made
    return Output(code, written.getvalue().decode(), err.getvalue())


class Made(Maker):
    """A ledger that is written row by row, and what the report says of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def report(self, *options: str) -> Output:
        return run(self.path, *options)

    def rows(self, *options: str) -> list[dict[str, str]]:
        """Return the rows of the report as CSV."""
        return self.report("--format", "csv", *options).rows


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("COLUMNS", "")
    monkeypatch.delenv("COLUMNS")
    return monkeypatch


@pytest.fixture
def made(ledger: Path) -> Iterator[Made]:
    made = Made(ledger)
    yield made
    made.close()


# --- A ledger that cannot be read ---


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "folder", "text", "other", "newer", "older", "wal"]
)
def test_no_ledger_is_78_and_makes_no_file(ledger: Path, kind: str) -> None:
    if kind == "empty":
        ledger.touch()
    elif kind == "folder":
        ledger.mkdir()
    elif kind == "text":
        ledger.write_text("connection;path\n" * 1000)
    elif kind == "wal":
        Path(f"{ledger}-wal").write_bytes(b"x" * 4096)
    elif kind != "missing":
        Maker(ledger, **({"application_id": 1} if kind == "other" else {})).close()
        ledgers.make_newer(ledger, by={"newer": 1, "older": -1, "other": 0}[kind])
    for output_format in FORMATS:
        output = run(ledger, "--format", output_format)
        assert (output.code, output.out) == (78, "")
        assert output.err.startswith(f"upload_grpc: ledger {ledger}: ")
        assert output.err.count("\n") == 1
        assert ("put that very ledger back beside it" in output.err) == (kind == "wal")


def test_ledger_without_rows(made: Made) -> None:
    output = made.report()
    assert output.code == 0
    assert "No calls." in output.out and "Nothing needs attention." in output.out
    assert made.report("--format", "csv").out == "\ufeff" + ";".join(HEADER) + "\n"
    assert made.report("--format", "json").out == ""


def test_unknown_connection_is_78_without_its_value(made: Made) -> None:
    made.run()
    output = made.report("--connection-id", "SECRET")
    assert (output.code, output.out) == (78, "")
    assert "SECRET" not in output.err and "it has: conn-a" in output.err


def test_a_path_that_is_neither_known_nor_there_is_78(made: Made, tmp_path: Path) -> None:
    made.run(folders='["/var/other"]')
    made.recording("/var/calls/2026/a.wav")
    made.problem("/var/bad/b.wav", 65, "refused", "refused; correct it")
    known = (
        *("/var/calls", "/var/calls/2026/", "/var/calls/2026/a.wav", "/var/bad"),
        *("/var/other", "/var/other/a day without calls", str(tmp_path)),
    )
    for path in known:
        assert made.report("--audio-path", path).code == (65 if path == "/var/bad" else 0), path
    for path in ("/var/cals", "/var/call", "/var/calls/2026/a", "/var/othe"):
        output = made.report("--audio-path", "/var/calls", path)
        assert (output.code, output.out) == (78, "")
        assert f"it knows nothing of {path}, which is not there either" in output.err


def test_stdout_that_cannot_be_written(made: Made) -> None:
    made.recording("/var/calls/a.wav")
    command = [*COMMAND, str(made.path), "--format"]
    with open("/dev/full", "w", encoding="utf-8") as full:
        processes = [subprocess.Popen([*command, name], stdout=full) for name in FORMATS]
        assert [process.wait(60) for process in processes] == [74] * len(FORMATS)


# --- Runs ---


def test_good_day_fits_a_screen(made: Made) -> None:
    made.db.execute("BEGIN")
    for day in range(30):
        for number in range(40):
            at = ago(days=day)
            made.recording(f"/var/calls/{day}/{number}.wav", recorded_at=at, updated_at=at)
    made.run()
    made.db.execute("COMMIT")
    output = made.report()
    assert output.code == 0, output
    assert output.out.count("\n") <= 24
    assert "\nconn-a: 1,200 uploaded\n" in output.out
    counts = "412 found, 3 uploaded, 409 already there"
    assert re.search(rf"\nLast complete run: .*: {counts}\n", output.out)
    assert "\nEarlier days: --since DAY\n" in output.out
    assert output.out.endswith("\nNothing needs attention.\n")


LONG_AGO = {"ended_at": ago(hours=25)}
DEAD: dict[str, tuple[list[dict[str, Any]], int, str]] = {
    "cron": ([LONG_AGO], 75, "none for 24 h looked at everything; check"),
    "just in time": ([{"ended_at": ago(hours=23)}], 0, "412 found"),
    "never whole": ([{"looked_at_all": 0}], 75, "none for 24 h looked at everything"),
    "by hand": ([{"quiet": 0, "ended_at": ago(days=9)}], 0, "no run with --quiet so far"),
    "hand after": ([LONG_AGO, {"quiet": 0}], 75, "none for 24 h"),
    "not tried": ([{"not_tried": 1995}], 75, "1,995 not tried"),
    "later": ([{}, {"looked_at_all": 0, "not_tried": 9}], 75, "9 not tried"),
    "ended while it counted": ([{}, {"looked_at_all": 0, "exit_code": 143}], 75, "exit code 143"),
    "a bug": ([{}, {"looked_at_all": 0, "exit_code": 70}], 75, "exit code 70"),
    "under way": ([{}, {"looked_at_all": 0, "ended_at": None}], 0, "412 found"),
    "clock of 2040": ([{"ended_at": "2040-01-01T00:00:00.000Z"}], 75, "none for 24 h"),
}


@pytest.mark.parametrize("name", DEAD)
def test_runs(made: Made, name: str) -> None:
    runs, code, text = DEAD[name]
    for columns in runs:
        made.run(**columns)
    made.recording("/var/calls/a.wav")
    for output_format in FORMATS:
        output = made.report("--format", output_format)
        assert output.code == code
        if output_format == "text":
            assert text in " ".join(output.out.split())
        else:
            assert bool(output.err) == bool(code)


def test_overdue_is_less_grave_than_a_problem(made: Made) -> None:
    made.run(**LONG_AGO)
    made.problem("/var/calls/a.wav", 66, "unreadable", "cannot be read; check its permissions")
    assert made.report().code == 66


def test_beside_a_run(made: Made) -> None:
    made.run(looked_at_all=1)
    made.run(looked_at_all=0, ended_at=None, began_at=ago(minutes=2))
    made.recording("/var/calls/a.wav")
    made.recording("/var/calls/b.wav", "sending", updated_at=ago(minutes=1))
    made.recording("/var/calls/c.wav", "finishing", updated_at=ago(minutes=1))
    assert os.path.getsize(f"{made.path}-wal")
    made.db.execute("BEGIN IMMEDIATE")
    made.recording("/var/calls/not-committed.wav", "unknown")
    output = made.report()
    assert output.code == 0
    assert "conn-a: 1 uploaded, 2 being uploaded" in output.out
    assert "Nothing needs attention." in output.out
    assert [row["outcome"] for row in made.rows()].count("sending") == 2
    made.db.execute("COMMIT")
    assert made.report().code == 76


@pytest.mark.parametrize("way", ["text", "csv", "dry run"])
def test_a_run_that_begins_meanwhile(
    upload: Run,
    command: Run,
    service: StandIn,
    folder: Path,
    ledger: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """Cron starts both at 08:00. SQLite must not take the ledger for a file that nobody writes."""
    begin_ledger(str(ledger))
    words = ("--ledger", ledger, "--audio-path", folder, "--quiet")
    assert command(*words).code == 0
    runs: list[subprocess.Popen[str]] = []

    def run_first(look: Callable[..., Any]) -> Callable[..., Any]:
        def looks(*given: Any) -> Any:
            runs.append(start(*arguments(service, *words)))
            time.sleep(1)
            return look(*given)

        return looks

    name = "find_files" if way == "dry run" else "find_last_runs"
    monkeypatch.setattr(upload_grpc, name, run_first(getattr(upload_grpc, name)))
    if way == "dry run":
        outcome = upload(*words, "--dry-run")
    else:
        outcome = upload("--report", "--ledger", ledger, "--format", way)
    assert (outcome.code, outcome.err) == (0, "")
    assert runs
    # It waits until then.
    for run in runs:
        assert ended(run) == Outcome(0, "", "")


def test_a_run_that_ends_as_the_ledger_is_opened(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_ledger(str(ledger))
    words = ("--audio-path=.", "--connection-id=connection-1", f"--ledger={ledger}")
    run = upload_grpc.Ledger(upload_grpc.parse_arguments(words))
    run.begin_run("localhost")
    connect = sqlite3.connect

    def end_first(*given: Any, **options: Any) -> Any:
        run.close()
        return connect(*given, **options)

    monkeypatch.setattr(sqlite3, "connect", end_first)
    assert upload_grpc.main(["--report", "--ledger", str(ledger)]) == 0


def test_a_link_that_leads_nowhere_is_a_call(made: Made) -> None:
    made.problem("/a/link.wav", 66, "unreadable", "cannot be read; check", mtime_ns=None)
    made.problem("/a/folder", 66, "unreadable", "cannot be read; check", mtime_ns=None)
    assert [(row["path"], row["outcome"]) for row in made.rows()] == [("/a/link.wav", "failed")]


def test_what_a_run_left_behind(made: Made) -> None:
    made.recording("/var/calls/b.wav", "sending")
    made.recording("/var/calls/c.wav", "finishing", lookup_key="upload_sha256")
    made.run()
    output = made.report()
    assert output.code == 76
    assert "conn-a: 0 uploaded, 1 failed, 1 unknown" in output.out
    text = " ".join(output.out.split())
    assert "the run ended before its result was recorded; look for it in the console" in text
    assert "by upload_sha256 = " in text


@pytest.mark.parametrize("kept", [("", "-wal", "-shm"), ("", "-wal")])
def test_after_a_power_cut(made: Made, kept: tuple[str, ...]) -> None:
    made.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    made.recording("/var/calls/a.wav", "finishing")
    folder = made.path.parent / "after"
    folder.mkdir()
    for name in kept:
        shutil.copy(f"{made.path}{name}", folder)
    output = run(folder / made.path.name)
    assert output.code == 76 and "0 uploaded, 1 unknown" in output.out


# --- Outcomes ---

UNKNOWN = {"state": "unknown", "error": "the response was lost"}
REJECTED, FAILED = {"state": "rejected", "error": "no such field"}, {"state": "failed"}
# Its row, its problem, the exit code, its outcome, and how many need attention.
OUTCOMES: dict[str, tuple[dict[str, Any] | None, tuple[int, str] | None, int, str, int]] = {
    "uploaded": ({}, None, 0, "uploaded", 0),
    "failed": ({"state": "failed", "error": "no route"}, None, 75, "failed", 1),
    "unknown": (UNKNOWN, None, 76, "unknown", 1),
    "unknown, said": (UNKNOWN, (76, "unknown"), 76, "unknown", 1),
    "unknown, gone": (UNKNOWN, (66, "lost"), 76, "unknown", 2),
    "rejected": (REJECTED, None, 65, "rejected", 1),
    "rejected, said": (REJECTED, (65, "rejected"), 65, "rejected", 1),
    "rejected, gone": (REJECTED, (66, "lost"), 66, "lost", 1),
    "failed, gone": (FAILED, (66, "lost"), 66, "lost", 1),
    "failed, now broken": (FAILED, (65, "empty"), 65, "failed", 1),
    "lost": (None, (66, "lost"), 66, "lost", 1),
    "no JSON": (None, (66, "no-metadata"), 66, "no-metadata", 1),
    "refused": (None, (65, "empty"), 65, "failed", 1),
    "warning": ({}, (0, "changed-metadata"), 0, "uploaded", 1),
    "update refused": ({}, (65, "update-refused"), 65, "uploaded", 1),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_outcomes(made: Made, name: str) -> None:
    row, problem, code, outcome, open_count = OUTCOMES[name]
    path = "/var/calls.d/in.2026/+7495.000.wav"
    if row is not None:
        made.recording(path, **row)
    if problem:
        # Of the audio's file; a lost one keeps what was known of it.
        made.problem(path, *problem, "what it is; what to do", size_bytes=320_044)
    made.run()
    output = made.report()
    assert output.code == code
    attention = f"Needs attention: {open_count}" if open_count else "Nothing needs attention."
    assert attention in output.out and (path in output.out) == bool(open_count)
    assert f"1 {upload_grpc.OUTCOMES[outcome]}" in output.out
    for output_format in ("csv", "json"):
        output = made.report("--format", output_format)
        rows = output.rows if output_format == "csv" else output.objects
        assert (output.code, len(rows), list(rows[0])) == (code, 1, HEADER)
        assert (rows[0]["path"], rows[0]["outcome"]) == (path, outcome)


def test_two_lost_ids_and_other_content_under_one_path(made: Made) -> None:
    made.recording("/a/1.wav", talk_id="t1 t2", found_id="f1")
    made.problem("/a/1.wav", 65, "truncated", "truncated; wait", size_bytes=77)
    found = [(row["outcome"], row["dialog_id"], row["found_id"]) for row in made.rows()]
    assert found == [("uploaded", "t1 t2", "f1"), ("failed", "", "")]


def test_problems_of_runs_and_folders_are_no_calls(made: Made) -> None:
    made.run(folders='["/var/calls"]')
    made.problem("", 75, "outage", "no answer; the next run goes on", since=ago(hours=3))
    text = "empty, although the ledger has recordings below it; is it mounted?"
    made.problem("/mnt/calls", 66, "empty-folder", text, size_bytes=None, mtime_ns=None)
    output = made.report()
    assert output.code == 66
    assert "(the run)" in output.out and "is it mounted?" in output.out
    assert made.rows() == []
    # With a path: the run's, but not another folder's.
    output = made.report("--audio-path", "/var/calls")
    assert "(the run)" in output.out and "is it mounted?" not in output.out


def test_ten_of_each_cause(made: Made) -> None:
    made.db.execute("BEGIN")
    for number in range(2990):
        made.problem(f"/a/{number:04}.wav", 65, "empty", "empty; remove it")
    made.problem("/a/new.wav", 65, "empty", "empty; remove it", since=ago(minutes=1))
    made.db.execute("COMMIT")
    out = made.report().out
    assert (out.count("/a/"), out.count("empty; remove it")) == (10, 1)
    assert "/a/new.wav" in out and "and 2,981 more, since " in out
    assert len(made.rows()) == 2991


# --- What was asked for ---


def test_since_is_by_the_time_recorded(made: Made) -> None:
    made.recording("/a/old.wav", "unknown", recorded_at=ago(days=9), updated_at=ago(days=9))
    made.recording("/a/new.wav", "rejected", recorded_at=ago(hours=1))
    assert made.report().code == 76
    output = made.report("--since", str(TODAY))
    assert output.code == 65
    assert "/a/old.wav" in output.out  # Attention has all that is open.
    assert "conn-a: 0 uploaded, 1 rejected\n" in output.out
    assert [row["path"] for row in made.rows("--since", str(TODAY))] == ["/a/new.wav"]
    assert made.report("--since", "0002-01-01").code == 76


@pytest.mark.parametrize("days", [0, 3])
def test_since_has_what_has_begun_since_then_though_its_call_is_older(
    made: Made, days: int
) -> None:
    """A monitor would never hear of a JSON that has not come in two days, or after an outage."""
    began = {"since": ago(days=days, hours=1)}
    file_ns = int((NOW.timestamp() - 9 * 86_400) * 1e9)
    made.problem("/a/old.wav", 66, "no-metadata", "no metadata yet", mtime_ns=file_ns, **began)
    made.recording("/b/old.wav", "rejected", recorded_at=ago(days=9), updated_at=began["since"])
    yesterday = TODAY - datetime.timedelta(days=1)
    assert made.report("--since", str(yesterday)).code == (0 if days else 65)
    paths = ("--since", str(yesterday), "--audio-path", "/a")
    assert made.report(*paths).code == (0 if days else 66)


def test_a_problem_is_no_older_than_its_file_whoever_had_its_name_before(made: Made) -> None:
    made.recording("/a/1.wav", recorded_at=ago(days=99))
    made.problem("/a/1.wav", 65, "empty", "empty; remove it")
    assert made.report("--since", str(TODAY)).code == 65


def test_days_without_calls_show_0(made: Made) -> None:
    made.recording("/a/1.wav", recorded_at=ago(days=5))
    made.recording("/a/0.wav", recorded_at="1970-01-01T00:00:00.000Z")
    since = TODAY - datetime.timedelta(days=7)
    days = [line.split() for line in made.report("--since", str(since)).out.splitlines()]
    counts = [line[2:] for line in days if len(line) == 8 and line[0].startswith("20")]
    assert counts == [["1" if ago == 5 else "0", *"00000"] for ago in range(8)]
    assert "Earlier" in made.report().out
    rows = made.db.execute("SELECT day, uploaded FROM days ORDER BY day DESC").fetchall()
    assert len(rows) == 367
    assert rows[5] == (str(TODAY - datetime.timedelta(days=5)), 1)
    assert sum(count for _, count in rows) == 2
    assert rows[-1][0] == str(datetime.date.fromtimestamp(0))


def test_days_are_those_of_the_local_zone(made: Made, zone: pytest.MonkeyPatch) -> None:
    recorded_at = {
        "2026-03-28T22:59:00.000Z": "2026-03-28 23:59:00",  # That night 02:00 becomes 03:00.
        "2026-03-28T23:01:00.000Z": "2026-03-29 00:01:00",
        "2026-03-29T21:59:00.000Z": "2026-03-29 23:59:00",  # Summer.
        "2026-10-25T00:30:00.000Z": "2026-10-25 02:30:00",
        "2026-10-25T01:30:00.000Z": "2026-10-25 02:30:00",  # Again, in winter.
        "2026-10-25T23:01:00.000Z": "2026-10-26 00:01:00",
    }
    for at in recorded_at:
        made.recording(f"/a/{at}.wav", recorded_at=at)
    zone.setenv("TZ", "Europe/Berlin")
    time.tzset()
    assert [row["recorded_at"] for row in made.rows()] == [*recorded_at.values()]
    out = made.report("--since", "2026-03-29").out
    assert re.search(r"Days and times: CES?T, now UTC\+0[12]:00\n", out)
    assert "conn-a: 5 uploaded" in out
    days = made.db.execute("SELECT day, uploaded FROM days WHERE uploaded").fetchall()
    counts = {"2026-03-28": 1, "2026-03-29": 2, "2026-10-25": 2, "2026-10-26": 1}
    assert days == [*counts.items()]
    zone.setenv("TZ", "America/New_York")
    time.tzset()
    assert len(made.report("--format", "json").objects) == 6


def test_two_connections(made: Made) -> None:
    made.recording("/a/1.wav")
    made.recording("/b/1.wav", "unknown", connection_id="conn-b")
    made.run()
    made.run(connection_id="conn-b", ended_at=ago(hours=30))
    output = made.report()
    assert output.code == 76
    for text in (
        "conn-a: 1 uploaded\nconn-b: 0 uploaded, 1 unknown\n",
        "Last complete run of conn-a: ",
        "Last complete run of conn-b: none for 24 h",
        "  conn-b  /b/1.wav",
    ):
        assert text in output.out
    output = made.report("--connection-id", "conn-a")
    assert output.code == 0 and "conn-b" not in output.out


def test_audio_path_is_equal_or_below(made: Made) -> None:
    for path in ("/a/x.wav", "/a/x/1.wav", "/a/x-1.wav", "/a/x0.wav", "/b/1.wav"):
        made.recording(path)

    def paths(*paths: str) -> list[str]:
        return sorted(row["path"] for row in made.rows("--audio-path", *paths))

    assert paths("/a/x") == ["/a/x/1.wav"]
    assert paths("/a/x.wav", "/b/") == ["/a/x.wav", "/b/1.wav"]
    assert len(paths("/")) == 5
    assert "0 uploaded" not in made.report("--audio-path", "/b").out


# --- Formats ---


def test_csv_for_spreadsheets(made: Made) -> None:
    path = '/звонки/Иванов; "Ж", №1.wav'
    error = '=HYPERLINK("http://x")'
    columns = {"error": error, "talk_id": "=1+1", "recorded_at": "2026-11-20T09:30:00.123Z"}
    made.recording(path, "rejected", **columns)
    made.recording("/a/\u202egpj.wav", "rejected", error="two\nlines")
    # Whatever the locale is.
    env = {"PATH": os.environ["PATH"], "TZ": "Europe/Moscow", "LC_ALL": "C"}
    command = [*COMMAND, str(made.path), "--format", "csv"]
    out = subprocess.run(command, env=env, capture_output=True, check=False).stdout.decode()
    assert out.startswith("\ufeffconnection_id;path;")
    first, second = Output(0, out, "").rows
    assert first["path"] == path
    assert first["recorded_at"] == "2026-11-20 12:30:00"
    assert (first["error"], first["dialog_id"]) == (f"'{error}", "'=1+1")
    assert "\u202e" not in second["path"]
    assert second["error"] == r"two\x0alines"
    as_json = made.report("--format", "json").objects[0]
    assert as_json["recorded_at"] == "2026-11-20T09:30:00.123Z"


def test_text_has_the_gravest_first_and_each_path_whole(made: Made) -> None:
    path = f"/var/calls/{'a-recording-of-the-branch/' * 9}{'x' * 150}.wav"
    made.recording(path, "unknown", error="lost " * 40)
    made.recording("/звонки/\x1b[31m\u202e.wav", "rejected", error="\x1b[2J")
    made.problem("", 77, "credential", "refused; make a new key (status UNAUTHENTICATED)")
    made.problem("/a/1.wav", 0, "changed-metadata", "its JSON has changed; --update-metadata")
    made.run(ended_at=ago(hours=40))
    output = made.report()
    assert output.code == 77
    assert f"  {path}\n" in output.out
    assert not set("\x1b\u202e") & set(output.out)
    order = [output.out.index(text) for text in ("77)", "76)", "65)", "(a warning)")]
    assert order == sorted(order)


def test_the_views_by_themselves(made: Made) -> None:
    made.recording("/a/1.wav", "rejected")
    made.problem("/a/2.wav", 65, "empty", "empty; remove it (0 bytes)")
    query = "SELECT path, cause, exit_code, error, what_to_do FROM attention ORDER BY path"
    first, second = made.db.execute(query)
    assert first[:4] == ("/a/1.wav", "rejected", 65, "rejected")
    assert second == ("/a/2.wav", "empty", 65, "empty", "remove it (0 bytes)")
    assert made.db.execute("SELECT sum(failed), sum(rejected) FROM days").fetchone() == (1, 1)
    # Those of another version in the file do not matter.
    with closing(sqlite3.connect(made.path)) as db:
        db.execute("DROP VIEW calls")
        db.execute("CREATE VIEW calls AS SELECT 1")
    assert len(made.rows()) == 2


def test_the_index_is_used(made: Made) -> None:
    for view in upload_grpc.LEDGER_VIEWS:
        plan = [row[3] for row in made.db.execute(f"EXPLAIN QUERY PLAN SELECT * FROM {view}")]
        assert not [step for step in plan if "r USING PRIMARY KEY (connection_id=?)" in step], plan
