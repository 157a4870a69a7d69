"""Reads and changes ledgers, as their user might: the only module that knows how they are laid out.

(But for the queries that README gives, which test_readme.py takes from there.)
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import random
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import upload_grpc

TABLE = "recordings"
NOW = datetime.datetime.now(datetime.timezone.utc)
# What a ledger may consist of.
SUFFIXES = ("", "-wal", "-journal")

# There is no table yet, or no file.
Unreadable = sqlite3.OperationalError


@contextlib.contextmanager
def _opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    address = f"{path.absolute().as_uri()}?mode={mode}"
    with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
        database.row_factory = sqlite3.Row
        yield database


def _read(path: Path, sql: str) -> list[dict[str, Any]]:
    with _opened(path, "ro") as database:
        return [dict(row) for row in database.execute(sql)]


def _write(path: Path, sql: str, values: Iterable[object] = ()) -> int:
    """Change a ledger; return how many rows it was."""
    with _opened(path, "rw") as database, database:
        return database.execute(sql, tuple(values)).rowcount


# --- Reading -------------------------------------------------------------------------


def rows(path: Path) -> list[dict[str, Any]]:
    """Return every row, by path; also while a run goes on."""
    return _read(path, f"SELECT * FROM {TABLE} ORDER BY path")


def row(path: Path) -> dict[str, Any]:
    """Return the only row."""
    [only] = rows(path)
    return only


def states(path: Path) -> list[str]:
    return [each["state"] for each in rows(path)]


def rows_by_content(path: Path) -> dict[str, dict[str, Any]]:
    """Return every row of the only connection, by the SHA-256 of the recording."""
    found = rows(path)
    by_sha256: dict[str, dict[str, Any]] = {each["sha256"]: each for each in found}
    assert len(by_sha256) == len(found)
    return by_sha256


def runs(path: Path) -> list[dict[str, Any]]:
    """Return what is noted of every run, in order."""
    return _read(path, "SELECT * FROM runs ORDER BY id")


def problems(path: Path) -> list[dict[str, Any]]:
    """Return what is noted as a problem, by path and cause."""
    return _read(path, "SELECT * FROM problems ORDER BY path, exit_code, cause")


def attention(path: Path) -> list[dict[str, Any]]:
    """Return what is open, as the report has it."""
    return _read(path, "SELECT * FROM attention")


def causes(path: Path) -> list[tuple[str, str]]:
    """Return file name and cause of each problem; what only waits is none."""
    noted = [(Path(each["path"]).name, each["cause"]) for each in problems(path)]
    return [(name, cause) for name, cause in noted if cause != "waiting"]


def check(path: Path) -> None:
    """Fail unless SQLite finds the file whole; what a crash has left to be done is done."""
    with _opened(path, "rw") as database:
        assert [tuple(each) for each in database.execute("PRAGMA integrity_check")] == [("ok",)]


# --- Changing ------------------------------------------------------------------------


@contextlib.contextmanager
def changed(
    path: Path, where: Mapping[str, object] | None = None, /, **columns: object
) -> Iterator[None]:
    """Change all rows that have these values, one at least; keep the file open for a block.

    While it is open the change is in the ledger's log.
    """
    with _opened(path, "rw") as database:
        condition, values = _condition(where)
        statement = f"UPDATE {TABLE} SET {_assignments(columns)} WHERE {condition}"
        with database:
            assert database.execute(statement, (*columns.values(), *values)).rowcount > 0
        yield


def change(path: Path, where: Mapping[str, object] | None = None, /, **columns: object) -> None:
    with changed(path, where, **columns):
        pass


def delete(path: Path, /, **where: object) -> None:
    """Delete all rows that have these values, one at least."""
    condition, values = _condition(where)
    assert _write(path, f"DELETE FROM {TABLE} WHERE {condition}", values) > 0


def delete_path(path: Path, table: str, call: Path) -> None:
    """Delete the row of a file from a table."""
    assert _write(path, f"DELETE FROM {table} WHERE path = ?", [str(call)]) == 1


def change_problems(path: Path, /, **columns: object) -> None:
    """Change all problems."""
    _write(path, f"UPDATE problems SET {_assignments(columns)}", columns.values())


def fill_disk(path: Path, cause: str) -> None:
    """Let the disk be full whenever a problem of this cause is noted."""
    when = f"BEFORE INSERT ON problems WHEN NEW.cause = '{cause}'"
    fails = "SELECT RAISE(FAIL, 'database or disk is full')"
    _write(path, f"CREATE TRIGGER full {when} BEGIN {fails}; END")


def free_disk(path: Path) -> None:
    _write(path, "DROP TRIGGER full")


def _assignments(columns: Iterable[str]) -> str:
    return ", ".join(f"{name} = ?" for name in columns)


def _condition(where: Mapping[str, object] | None) -> tuple[str, tuple[object, ...]]:
    where = where or {}
    return " AND ".join(f"{name} = ?" for name in where) or "TRUE", tuple(where.values())


def add_unknown(path: Path, sha256s: Iterable[str], key: str, sent_at: str) -> None:
    """Put recordings of earlier runs into a ledger, whose dialogs can be looked up."""
    columns = {
        "connection_id": "connection-1", "stem": "/gone", "suffix": ".wav", "size_bytes": 1,
        "mtime_ns": 1, "ctime_ns": 1, "metadata_sha256": "", "recorded_at": sent_at,
        "state": "unknown", "error": "as before", "lookup_key": key, "sent_at": sent_at,
        "updated_at": sent_at,
    }  # fmt: skip
    statement = _insert(TABLE, ("sequence", "sha256", *columns))
    values = [(number, each, *columns.values()) for number, each in enumerate(sha256s, -9_999)]
    with _opened(path, "rw") as database, database:
        database.executemany(statement, values)


def _insert(table: str, names: Collection[str]) -> str:
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have whoever writes wait, as for a disk, to the end of the block."""
    with _opened(path, "rw") as database:
        database.execute("BEGIN IMMEDIATE")
        yield


class Lock:
    """What another program does that keeps the ledger locked; from any thread.

    Another run is kept out by a flock on the file with -lock in its name: test_safety.py has one.
    """

    def __init__(self, ledger: Path) -> None:
        self._database = sqlite3.connect(ledger, check_same_thread=False, isolation_level=None)
        self.is_held = False

    def hold(self, _: object = None) -> None:
        self.is_held = True
        self._database.execute("BEGIN IMMEDIATE")

    def release(self) -> None:
        self._database.close()


# --- Ledgers of other versions, and what is none ---------------------------------------


def make_newer(path: Path, by: int = 1) -> None:
    with _opened(path, "rw") as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        database.execute(f"PRAGMA user_version = {version + by}")


def make_older(path: Path) -> None:
    make_newer(path, by=-1)


def make_foreign(path: Path) -> None:
    """Make a database of another program, which happens to have such a table."""
    with _opened(path, "rwc") as database, database:
        database.execute(f"CREATE TABLE {TABLE} (path TEXT, state TEXT)")
        database.execute(f"INSERT INTO {TABLE} VALUES ('/calls/1.wav', 'uploaded')")


# --- Time ------------------------------------------------------------------------------

TIMES = {
    "problems": ("since", "seen_at", "said_at"),
    "runs": ("began_at", "ended_at"),
    TABLE: ("looked_up_at", "sent_at", "uploaded_at", "updated_at"),
}


def pass_time(path: Path, seconds: float) -> None:
    """Have all that a ledger knows be so much longer ago."""
    with _opened(path, "rw") as database, database:
        for table, columns in TIMES.items():
            earlier = "strftime('%Y-%m-%dT%H:%M:%fZ', {}, ?)"
            names = ", ".join(f"{name} = {earlier.format(name)}" for name in columns)
            database.execute(f"UPDATE {table} SET {names}", [f"{-seconds} seconds"] * len(columns))
    lock = path.with_name(f"{path.name}-lock")
    status = lock.stat()
    os.utime(lock, (status.st_atime, status.st_mtime - seconds))


# --- Ledgers of any content ------------------------------------------------------------


def ledger_time(when: datetime.datetime) -> str:
    """Return a time as the ledger has it."""
    utc = when.astimezone(datetime.timezone.utc)
    return utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ago(**units: float) -> str:
    """Return the ledger's time of so long ago."""
    return ledger_time(NOW - datetime.timedelta(**units))


class Maker:
    """A ledger, open in WAL mode; each method writes one row."""

    def __init__(self, path: Path, application_id: int = upload_grpc.LEDGER_APPLICATION_ID) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("PRAGMA journal_mode = WAL")
        for statement in upload_grpc.LEDGER_TABLES:
            self.db.execute(statement)
        for name, select in upload_grpc.LEDGER_VIEWS.items():
            self.db.execute(f"CREATE VIEW {name} AS {select}")
        self.db.execute(f"PRAGMA application_id = {application_id}")
        self.db.execute(f"PRAGMA user_version = {upload_grpc.LEDGER_VERSION}")

    def insert(self, table: str, **columns: Any) -> None:
        """Write one row."""
        self.db.execute(_insert(table, columns), tuple(columns.values()))

    def recording(self, path: str, state: str = "uploaded", **columns: Any) -> None:
        """Write a recording, uploaded an hour ago unless told otherwise."""
        stem, dot, suffix = path.rpartition(".")
        digest = hashlib.sha256(path.encode() + str(columns).encode()).hexdigest()
        file_ns = int((NOW.timestamp() - 7_200) * 1e9)
        row: dict[str, Any] = {
            "connection_id": "conn-a", "sha256": digest, "stem": stem if dot else path,
            "suffix": dot + suffix if dot else "", "size_bytes": 320_044, "mtime_ns": file_ns,
            "ctime_ns": file_ns, "metadata_sha256": digest, "recorded_at": ago(hours=2),
            "state": state, "updated_at": ago(hours=1),
        }  # fmt: skip
        if state == "uploaded":
            row |= {"talk_id": f"talk{digest[:12]}", "uploaded_at": ago(hours=1)}
        self.insert(TABLE, **(row | columns))

    def problem(self, path: str, exit_code: int, cause: str, text: str, **columns: Any) -> None:
        """Write a problem, an hour old; of a file unless mtime_ns=None."""
        row: dict[str, Any] = {
            "connection_id": "conn-a", "path": path, "exit_code": exit_code, "cause": cause,
            "text": text, "since": ago(hours=1), "seen_at": ago(minutes=5),
        }  # fmt: skip
        if path:
            row |= {"size_bytes": 0, "mtime_ns": int((NOW.timestamp() - 7_200) * 1e9)}
        self.insert("problems", **(row | columns))

    def run(self, **columns: Any) -> None:
        """Write a --quiet run that looked at everything and ended five minutes ago."""
        row: dict[str, Any] = {
            "connection_id": "conn-a", "endpoint": "api.speechsense.yandexcloud.net:443",
            "quiet": 1, "began_at": ago(minutes=6), "ended_at": ago(minutes=5),
            "folders": '["/var/calls"]', "looked_at_all": 1, "found": 412, "uploaded": 3,
            "left_out": '{"already there": 409}', "exit_code": 0,
        }  # fmt: skip
        self.insert("runs", **(row | columns))

    def close(self) -> None:
        """Close the file, which writes the -wal file back and removes it."""
        self.db.close()


def _calls(rows: int) -> Iterator[dict[str, Any]]:
    """Yield the calls of 180 days, one in 500 of them not uploaded."""
    for number in range(rows):
        age = 180 * 86_400 * (rows - number) / rows
        when = NOW - datetime.timedelta(seconds=age)
        path = f"/var/calls/{when:%Y/%m/%d}/in-+7495{number:07}-{when:%H%M%S}.wav"
        state = random.choice(("unknown", "rejected", "failed")) if not number % 500 else "uploaded"
        error = None if state == "uploaded" else f"the service said so (request ID {number:032x})"
        times = {"recorded_at": ledger_time(when), "updated_at": ledger_time(when)}
        yield {"path": path, "state": state, "error": error, **times}


def make_large(path: Path, rows: int, problems: int = 3_000) -> None:
    """Make the ledger of half a year at a run every five minutes."""
    random.seed(0)
    maker = Maker(path)
    maker.db.execute("BEGIN")
    for row in _calls(rows):
        maker.recording(**row)
    for number in range(problems):
        text = "empty, or still being recorded; record it again, or remove it"
        maker.problem(f"/var/calls/broken/{number:06}.wav", 65, "empty", text)
    for minutes in range(250_000, 0, -5):  # Half a year at */5.
        maker.run(began_at=ago(minutes=minutes + 1), ended_at=ago(minutes=minutes))
    maker.db.execute("COMMIT")
    maker.close()
