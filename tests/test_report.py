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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import ledgers
import pytest
from conftest import SCRIPT
from ledgers import NOW, Maker, ago

import upload_grpc

COMMAND = [sys.executable, str(SCRIPT), "--report"]
HEADER = [
    "connection_id",
    "path",
    "recorded_at",
    "uploaded_at",
    "outcome",
    "dialog_id",
    "found_id",
    "error",
]


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


def run(ledger: Path, *options: str, **environment: str) -> Output:
    """Run the report; no COLUMNS and UTC unless the environment says so.

    As a process only where there is an environment: that takes ten times as long.
    """
    before = sorted(os.listdir(ledger.parent))
    output = (run_command if environment else run_here)(ledger, options, environment)
    # Without its -shm file a -wal cannot be read: SQLite makes one (open_read_only is as it was).
    made = {f"{ledger.name}-shm"} if os.path.exists(f"{ledger}-wal") else set()
    assert set(os.listdir(ledger.parent)) - made == set(before) - made
    assert "Traceback" not in output.err, output.err
    return output


def run_command(ledger: Path, options: Sequence[str], environment: Mapping[str, str]) -> Output:
    env = {"PATH": os.environ["PATH"], "TZ": "UTC", "LANG": "C.UTF-8", **environment}
    command = [*COMMAND, "--ledger", str(ledger), *options]
    result = subprocess.run(command, env=env, capture_output=True, timeout=60, check=False)
    return Output(result.returncode, result.stdout.decode(), result.stderr.decode())


def run_here(ledger: Path, options: Sequence[str], _: object) -> Output:
    written, err = io.BytesIO(), io.StringIO()
    with redirect_stdout(io.TextIOWrapper(written, "utf-8")) as out, redirect_stderr(err):
        code = upload_grpc.main(["--report", "--ledger", str(ledger), *options])
        out.flush()
    return Output(code, written.getvalue().decode(), err.getvalue())


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("COLUMNS", "")
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def maker(ledger: Path) -> Maker:
    return Maker(ledger)


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
    elif kind == "other":
        Maker(ledger, application_id=1).close()
    elif kind == "newer":
        Maker(ledger).close()
        ledgers.make_newer(ledger)
    elif kind == "older":
        Maker(ledger).close()
        ledgers.make_older(ledger)
    elif kind == "wal":
        Path(f"{ledger}-wal").write_bytes(b"x" * 4096)
    for output_format in ("text", "csv", "json"):
        output = run(ledger, "--format", output_format)
        assert (output.code, output.out) == (78, "")
        assert output.err.startswith(f"upload_grpc: ledger {ledger}: ")
        assert output.err.count("\n") == 1
        assert ("put the ledger back beside it" in output.err) == (kind == "wal")


def test_ledger_without_rows(ledger: Path, maker: Maker) -> None:
    maker.close()
    output = run(ledger)
    assert output.code == 0
    assert "No calls." in output.out
    assert "Nothing needs attention." in output.out
    assert run(ledger, "--format", "csv").out == "\ufeff" + ";".join(HEADER) + "\n"
    assert run(ledger, "--format", "json").out == ""


def test_unknown_connection_is_78_without_its_value(ledger: Path, maker: Maker) -> None:
    maker.run()
    maker.close()
    output = run(ledger, "--connection-id", "SECRET")
    assert (output.code, output.out) == (78, "")
    assert "SECRET" not in output.err
    assert "it has: conn-a" in output.err


def test_stdout_that_cannot_be_written(ledger: Path, maker: Maker) -> None:
    maker.recording("/var/calls/a.wav")
    maker.close()
    for output_format in ("text", "csv", "json"):
        with open("/dev/full", "w", encoding="utf-8") as full:
            command = [*COMMAND, "--ledger", str(ledger), "--format", output_format]
            assert subprocess.run(command, stdout=full, check=False).returncode == 74


# --- Runs ---


def test_good_day_fits_a_screen(ledger: Path, maker: Maker) -> None:
    for day in range(30):
        for number in range(40):
            path = f"/var/calls/{day}/{number}.wav"
            maker.recording(path, recorded_at=ago(days=day), updated_at=ago(days=day))
    maker.run()
    maker.close()
    output = run(ledger)
    assert output.code == 0, output
    lines = output.out.splitlines()
    assert len(lines) <= 24
    assert "conn-a: 1,200 uploaded" in lines
    assert any(
        line.startswith("Last complete run: ")
        and line.endswith(": 412 found, 3 uploaded, 409 already there")
        for line in lines
    )
    assert "Earlier days: --since DAY" in lines
    assert lines[-1] == "Nothing needs attention."


DEAD: list[tuple[str, list[dict[str, Any]], int, str]] = [
    ("cron", [{"ended_at": ago(hours=25)}], 75, "none for 24 h looked at everything; check"),
    ("just in time", [{"ended_at": ago(hours=23)}], 0, "412 found"),
    ("never whole", [{"looked_at_all": 0}], 75, "none for 24 h looked at everything"),
    ("by hand", [{"quiet": 0, "ended_at": ago(days=9)}], 0, "no run with --quiet so far"),
    ("hand after", [{"ended_at": ago(hours=25)}, {"quiet": 0}], 75, "none for 24 h"),
    ("not tried", [{"not_tried": 1995}], 75, "1,995 not tried"),
    ("later", [{}, {"looked_at_all": 0, "not_tried": 9}], 75, "9 not tried"),
    ("under way", [{}, {"looked_at_all": 0, "ended_at": None}], 0, "412 found"),
    ("clock of 2040", [{"ended_at": "2040-01-01T00:00:00.000Z"}], 75, "none for 24 h"),
]


@pytest.mark.parametrize(
    ("runs", "code", "text"), [row[1:] for row in DEAD], ids=[r[0] for r in DEAD]
)
def test_runs(ledger: Path, maker: Maker, runs: list[dict[str, Any]], code: int, text: str) -> None:
    for columns in runs:
        maker.run(**columns)
    maker.recording("/var/calls/a.wav")
    maker.close()
    output = run(ledger)
    assert output.code == code
    assert text in " ".join(output.out.split())
    for output_format in ("csv", "json"):
        output = run(ledger, "--format", output_format)
        assert output.code == code
        assert bool(output.err) == bool(code)


def test_overdue_is_less_grave_than_a_problem(ledger: Path, maker: Maker) -> None:
    maker.run(ended_at=ago(hours=25))
    maker.problem("/var/calls/a.wav", 66, "unreadable", "cannot be read; check its permissions")
    maker.close()
    assert run(ledger).code == 66


def test_beside_a_run(ledger: Path, maker: Maker) -> None:
    maker.run(looked_at_all=1)
    maker.run(looked_at_all=0, ended_at=None, began_at=ago(minutes=2))
    maker.recording("/var/calls/a.wav")
    maker.recording("/var/calls/b.wav", "sending", updated_at=ago(minutes=1))
    maker.recording("/var/calls/c.wav", "finishing", updated_at=ago(minutes=1))
    assert os.path.getsize(f"{ledger}-wal")
    maker.db.execute("BEGIN IMMEDIATE")
    maker.recording("/var/calls/not-committed.wav", "unknown")
    output = run(ledger)
    assert output.code == 0
    assert "conn-a: 1 uploaded, 2 being uploaded" in output.out
    assert "Nothing needs attention." in output.out
    assert [row["outcome"] for row in run(ledger, "--format", "csv").rows].count("sending") == 2
    maker.db.execute("COMMIT")
    assert run(ledger).code == 76
    maker.close()


def test_what_a_run_left_behind(ledger: Path, maker: Maker) -> None:
    maker.recording("/var/calls/b.wav", "sending")
    maker.recording("/var/calls/c.wav", "finishing", lookup_key="upload_sha256")
    maker.run()
    maker.close()
    output = run(ledger)
    assert output.code == 76
    assert "conn-a: 0 uploaded, 1 failed, 1 unknown" in output.out
    text = " ".join(output.out.split())
    assert "the run ended before its result was recorded; look for it in the console" in text
    assert "by upload_sha256 = " in text


@pytest.mark.parametrize("kept", [("-wal", "-shm"), ("-wal",)])
def test_after_a_power_cut(ledger: Path, maker: Maker, kept: tuple[str, ...]) -> None:
    maker.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    maker.recording("/var/calls/a.wav", "finishing")
    folder = ledger.parent / "after"
    folder.mkdir()
    for name in ("", *kept):
        shutil.copy(f"{ledger}{name}", folder)
    output = run(folder / ledger.name)
    assert output.code == 76
    assert "0 uploaded, 1 unknown" in output.out
    maker.close()


# --- Outcomes ---

UNKNOWN = {"state": "unknown", "error": "the response was lost"}
OUTCOMES: list[tuple[str, dict[str, Any] | None, tuple[int, str] | None, int, str, int]] = [
    # What it is, its row, its problem, the exit code, its outcome, and what needs attention.
    ("uploaded", {}, None, 0, "uploaded", 0),
    ("failed", {"state": "failed", "error": "no route"}, None, 75, "failed", 1),
    ("unknown", UNKNOWN, None, 76, "unknown", 1),
    ("unknown, said", UNKNOWN, (76, "unknown"), 76, "unknown", 1),
    ("unknown, gone", UNKNOWN, (66, "lost"), 76, "unknown", 2),
    ("rejected", {"state": "rejected", "error": "no such field"}, None, 65, "rejected", 1),
    ("rejected, said", {"state": "rejected"}, (65, "rejected"), 65, "rejected", 1),
    ("rejected, gone", {"state": "rejected"}, (66, "lost"), 66, "lost", 1),
    ("failed, gone", {"state": "failed"}, (66, "lost"), 66, "lost", 1),
    ("failed, now broken", {"state": "failed"}, (65, "empty"), 65, "failed", 1),
    ("lost", None, (66, "lost"), 66, "lost", 1),
    ("no JSON", None, (66, "no-metadata"), 66, "no-metadata", 1),
    ("refused", None, (65, "empty"), 65, "failed", 1),
    ("warning", {}, (0, "changed-metadata"), 0, "uploaded", 1),
    ("update refused", {}, (65, "update-refused"), 65, "uploaded", 1),
]


@pytest.mark.parametrize("case", OUTCOMES, ids=[case[0] for case in OUTCOMES])
def test_outcomes(ledger: Path, maker: Maker, case: Any) -> None:
    _, row, problem, code, outcome, open_count = case
    path = "/var/calls.d/in.2026/+7495.000.wav"
    if row is not None:
        maker.recording(path, **row)
    if problem:
        # Of the audio's file; a lost one keeps what was known of it.
        code_, cause = problem
        maker.problem(path, code_, cause, "what it is; what to do", size_bytes=320_044)
    maker.run()
    maker.close()
    output = run(ledger)
    assert output.code == code
    if open_count:
        assert f"Needs attention: {open_count}" in output.out
        assert path in output.out
    else:
        assert "Nothing needs attention." in output.out
    words = upload_grpc.OUTCOMES[outcome]
    assert f"1 {words}" in output.out
    for output_format in ("csv", "json"):
        output = run(ledger, "--format", output_format)
        assert output.code == code
        rows = output.rows if output_format == "csv" else output.objects
        assert [(row["path"], row["outcome"]) for row in rows] == [(path, outcome)]
        assert list(rows[0]) == HEADER


def test_two_lost_ids_and_other_content_under_one_path(ledger: Path, maker: Maker) -> None:
    maker.recording("/a/1.wav", talk_id="t1 t2", found_id="f1")
    maker.problem("/a/1.wav", 65, "truncated", "truncated; wait", size_bytes=77)
    maker.close()
    rows = run(ledger, "--format", "csv").rows
    assert [(row["outcome"], row["dialog_id"], row["found_id"]) for row in rows] == [
        ("uploaded", "t1 t2", "f1"),
        ("failed", "", ""),
    ]


def test_problems_of_runs_and_folders_are_no_calls(ledger: Path, maker: Maker) -> None:
    maker.problem("", 75, "outage", "no answer; the next run goes on", since=ago(hours=3))
    text = "empty, although the ledger has recordings below it; is it mounted?"
    maker.problem("/mnt/calls", 66, "empty-folder", text, size_bytes=None, mtime_ns=None)
    maker.close()
    output = run(ledger)
    assert output.code == 66
    assert "(the run)" in output.out
    assert "is it mounted?" in output.out
    assert run(ledger, "--format", "csv").rows == []
    # With a path: the run's, but not another folder's.
    output = run(ledger, "--audio-path", "/var/calls")
    assert "(the run)" in output.out
    assert "is it mounted?" not in output.out


def test_ten_of_each_cause(ledger: Path, maker: Maker) -> None:
    for number in range(2990):
        maker.db.execute("BEGIN") if not number else None
        maker.problem(f"/a/{number:04}.wav", 65, "empty", "empty; remove it")
    maker.problem("/a/new.wav", 65, "empty", "empty; remove it", since=ago(minutes=1))
    maker.db.execute("COMMIT")
    maker.close()
    output = run(ledger)
    assert output.out.count("/a/") == 10
    assert output.out.count("empty; remove it") == 1
    assert "/a/new.wav" in output.out
    assert "and 2,981 more, since " in output.out
    assert len(run(ledger, "--format", "csv").rows) == 2991


# --- What was asked for ---


def test_since_is_by_the_time_recorded(ledger: Path, maker: Maker) -> None:
    today = str(NOW.date())
    maker.recording("/a/old.wav", "unknown", recorded_at=ago(days=9))
    maker.recording("/a/new.wav", "rejected", recorded_at=f"{today}T00:00:00.000Z")
    maker.close()
    assert run(ledger).code == 76
    output = run(ledger, "--since", today)
    assert output.code == 65
    assert "/a/old.wav" in output.out  # Attention has all that is open.
    assert "conn-a: 0 uploaded, 1 rejected\n" in output.out
    rows = run(ledger, "--since", today, "--format", "csv").rows
    assert [row["path"] for row in rows] == ["/a/new.wav"]
    assert run(ledger, "--since", "0002-01-01").code == 76


def test_days_without_calls_show_0(ledger: Path, maker: Maker) -> None:
    maker.recording("/a/1.wav", recorded_at=ago(days=5))
    maker.recording("/a/0.wav", recorded_at="1970-01-01T00:00:00.000Z")
    maker.close()
    since = NOW.date() - datetime.timedelta(days=7)
    days = [line.split() for line in run(ledger, "--since", str(since)).out.splitlines()]
    counts = [line[2:] for line in days if len(line) == 8 and line[0].startswith("20")]
    assert counts == [["1" if ago == 5 else "0", *"00000"] for ago in range(8)]
    assert "Earlier" in run(ledger).out
    with sqlite3.connect(ledger) as db:
        rows = db.execute("SELECT day, uploaded FROM days ORDER BY day DESC").fetchall()
    assert len(rows) == 367
    assert rows[5] == (str(NOW.date() - datetime.timedelta(days=5)), 1)
    assert sum(count for _, count in rows) == 2
    assert rows[-1][0] == "1970-01-01"


def test_days_are_those_of_the_local_zone(
    ledger: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in (
        "2026-03-28T22:59:00.000Z",  # 23:59, winter; that night 02:00 becomes 03:00.
        "2026-03-28T23:01:00.000Z",  # 00:01
        "2026-03-29T21:59:00.000Z",  # 23:59, summer.
        "2026-10-25T00:30:00.000Z",  # 02:30, summer.
        "2026-10-25T01:30:00.000Z",  # 02:30 again, winter.
        "2026-10-25T23:01:00.000Z",  # 00:01
    ):
        maker.recording(f"/a/{at}.wav", recorded_at=at)
    output = run(ledger, "--format", "csv", TZ="Europe/Berlin")
    assert [row["recorded_at"] for row in output.rows] == [
        "2026-03-28 23:59:00",
        "2026-03-29 00:01:00",
        "2026-03-29 23:59:00",
        "2026-10-25 02:30:00",
        "2026-10-25 02:30:00",
        "2026-10-26 00:01:00",
    ]
    output = run(ledger, "--since", "2026-03-29", TZ="Europe/Berlin")
    assert re.search(r"Days and times: CES?T, now UTC\+0[12]:00\n", output.out)
    assert "conn-a: 5 uploaded" in output.out
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        days = maker.db.execute("SELECT day, uploaded FROM days WHERE uploaded").fetchall()
    finally:
        monkeypatch.undo()
        time.tzset()
    assert days == [
        ("2026-03-28", 1),
        ("2026-03-29", 2),
        ("2026-10-25", 2),
        ("2026-10-26", 1),
    ]
    maker.close()
    assert len(run(ledger, "--format", "json", TZ="America/New_York").objects) == 6


def test_two_connections(ledger: Path, maker: Maker) -> None:
    maker.recording("/a/1.wav")
    maker.recording("/b/1.wav", "unknown", connection_id="conn-b")
    maker.run()
    maker.run(connection_id="conn-b", ended_at=ago(hours=30))
    maker.close()
    output = run(ledger)
    assert output.code == 76
    assert "conn-a: 1 uploaded\nconn-b: 0 uploaded, 1 unknown\n" in output.out
    assert "Last complete run of conn-a: " in output.out
    assert "Last complete run of conn-b: none for 24 h" in output.out
    assert "  conn-b  /b/1.wav" in output.out
    assert run(ledger, "--connection-id", "conn-a").code == 0
    assert "conn-b" not in run(ledger, "--connection-id", "conn-a").out


def test_audio_path_is_equal_or_below(ledger: Path, maker: Maker) -> None:
    for path in ("/a/x.wav", "/a/x/1.wav", "/a/x-1.wav", "/a/x0.wav", "/b/1.wav"):
        maker.recording(path)
    maker.close()

    def paths(*options: str) -> list[str]:
        rows = run(ledger, "--format", "csv", "--audio-path", *options).rows
        return sorted(row["path"] for row in rows)

    assert paths("/a/x") == ["/a/x/1.wav"]
    assert paths("/a/x.wav", "/b/") == ["/a/x.wav", "/b/1.wav"]
    assert len(paths("/")) == 5
    assert "0 uploaded" not in run(ledger, "--audio-path", "/b").out


# --- Formats ---


def test_csv_for_spreadsheets(ledger: Path, maker: Maker) -> None:
    path = '/звонки/Иванов; "Ж", №1.wav'
    error = '=HYPERLINK("http://x")'
    maker.recording(path, "rejected", error=error, recorded_at="2026-11-20T09:30:00.123Z")
    maker.recording("/a/\u202egpj.wav", "rejected", error="two\nlines")
    maker.close()
    output = run(ledger, "--format", "csv", TZ="Europe/Moscow", LC_ALL="C")
    assert output.out.startswith("\ufeffconnection_id;path;")
    first, second = output.rows
    assert first["path"] == path
    assert first["recorded_at"] == "2026-11-20 12:30:00"
    assert first["error"] == f"'{error}"
    assert "\u202e" not in second["path"]
    assert second["error"] == r"two\x0alines"
    assert run(ledger, "--format", "json").objects[0]["recorded_at"] == "2026-11-20T09:30:00.123Z"


def test_text_has_the_gravest_first_and_each_path_whole(ledger: Path, maker: Maker) -> None:
    path = f"/var/calls/{'a-recording-of-the-branch/' * 9}{'x' * 150}.wav"
    maker.recording(path, "unknown", error="lost " * 40)
    maker.recording("/звонки/\x1b[31m\u202e.wav", "rejected", error="\x1b[2J")
    maker.problem("", 77, "credential", "refused; make a new key (status UNAUTHENTICATED)")
    maker.problem("/a/1.wav", 0, "changed-metadata", "its JSON has changed; --update-metadata")
    maker.run(ended_at=ago(hours=40))
    maker.close()
    output = run(ledger)
    assert output.code == 77
    assert f"  {path}\n" in output.out
    assert not set("\x1b\u202e") & set(output.out)
    order = [output.out.index(text) for text in ("77)", "76)", "65)", "(a warning)")]
    assert order == sorted(order)


def test_the_views_by_themselves(ledger: Path, maker: Maker) -> None:
    maker.recording("/a/1.wav", "rejected")
    maker.problem("/a/2.wav", 65, "empty", "empty; remove it (0 bytes)")
    query = "SELECT path, cause, exit_code, error, what_to_do FROM attention ORDER BY path"
    rows = maker.db.execute(query).fetchall()
    assert rows[1] == ("/a/2.wav", "empty", 65, "empty", "remove it (0 bytes)")
    assert rows[0][:4] == ("/a/1.wav", "rejected", 65, "rejected")
    assert maker.db.execute("SELECT sum(failed), sum(rejected) FROM days").fetchone() == (1, 1)
    maker.close()
    # Those of another version in the file do not matter.
    with sqlite3.connect(ledger) as db:
        db.execute("DROP VIEW calls")
        db.execute("CREATE VIEW calls AS SELECT 1")
    db.close()
    assert len(run(ledger, "--format", "csv").rows) == 2


def test_the_index_is_used(maker: Maker) -> None:
    for view in upload_grpc.LEDGER_VIEWS:
        plan = [row[3] for row in maker.db.execute(f"EXPLAIN QUERY PLAN SELECT * FROM {view}")]
        assert not [step for step in plan if "r USING PRIMARY KEY (connection_id=?)" in step], plan
