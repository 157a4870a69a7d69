"""README's shell blocks, run as they stand: only folders are put in place of the system's."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from conftest import KEY, ROOT, SCRIPT, Outcome, begin_ledger, make_wav
from fault_proxy import HttpProxy
from stand_in import Fail, StandIn

README = (ROOT / "README.md").read_text("utf-8")
LOST = Fail(grpc.StatusCode.UNAVAILABLE, "Socket closed", store=True, ids=False)
# Of such a status nobody doubts that it is the service's own.
NO_QUOTA = Fail(grpc.StatusCode.RESOURCE_EXHAUSTED)
REJECTED = Fail(grpc.StatusCode.INVALID_ARGUMENT, "not configured")


def block(language: str, heading: str) -> str:
    """Return the first block of code under a heading."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.search(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert found, f"no {language} block under {heading}"
    return found[1]


class Machine:
    """A folder in place of a machine's root, from which the public service can be reached."""

    def __init__(self, root: Path, service: StandIn, proxy: HttpProxy) -> None:
        self.root = root
        self.service = service
        self.calls = root / "var/calls"
        self.ledgers = root / "var/lib/speechsense"
        self.log = self.ledgers / "uploaded.log"
        for folder in (self.calls, self.ledgers, root / "etc", root / "opt"):
            folder.mkdir(parents=True)
        (root / "opt/upload_grpc").symlink_to(ROOT)
        # What all recordings share: not the date of one.
        fields = json.loads((ROOT / "metadata_example.json").read_text("utf-8"))
        del fields["date"]
        (root / "etc/speechsense.json").write_text(json.dumps(fields))
        (root / "etc/speechsense.key").write_text(f"{KEY}\n")
        # Nobody can give a file an old ctime, so the clock is an hour ahead.
        (root / "later").mkdir()
        (root / "later/sitecustomize.py").write_text(
            "import time\nnow = time.time\ntime.time = lambda: now() + 3600\n"
        )
        self.environment = {
            "https_proxy": proxy.url,
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(service.ca_file),
            "PYTHONPATH": str(root / "later"),
        }

    def call(self, name: str, folder: str = "", age_s: float = 3600) -> Path:
        path = self.calls / folder / name
        path.parent.mkdir(exist_ok=True)
        make_wav(path, 2_000)
        os.utime(path, (time.time() - age_s,) * 2)
        return path

    def begin_ledgers(self, text: str) -> None:
        """Do what README has a person do before cron begins."""
        for name in re.findall(r"--ledger /var/lib/speechsense/([\w.]+)", text):
            if not (self.ledgers / name).exists():
                begin_ledger(str(self.ledgers / name))

    def run(self, text: str) -> Outcome:
        """Run a script with this folder as the root of every absolute path in it."""
        self.begin_ledgers(text)
        here = re.sub(r"(?<![\w/.}])/(?=(opt|etc|var)/)", f"{self.root}/", text)
        finished = subprocess.run(
            ["sh", "-c", here],
            capture_output=True,
            text=True,
            env={**os.environ, **self.environment},
            cwd=self.root,
            timeout=60,
            check=False,
        )
        return Outcome(finished.returncode, finished.stdout, finished.stderr)

    def files(self, folder: str = "") -> set[str]:
        return {path.name for path in (self.calls / folder).iterdir() if path.is_file()}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    names = ("api.speechsense.yandexcloud.net",)
    with (
        StandIn(tmp_path / "store", names=names) as service,
        HttpProxy(upstream_port=service.port) as proxy,
    ):
        yield Machine(tmp_path / "machine", service, proxy)


# --- Without a ledger -----------------------------------------------------------------

LOOP = block("sh", "Without a ledger")


def test_the_loop_sorts_recordings_by_what_became_of_them(machine: Machine) -> None:
    for name in ("a good.wav", "b rejected.wav", "c unknown.wav", "d no quota.wav"):
        machine.call(name)
    machine.call("young.wav", age_s=0)
    for name in ("a good.json", "b rejected.JSON", "c unknown.json"):
        (machine.calls / name).write_text("{}")
    machine.service.script += [None, REJECTED, LOST, NO_QUOTA]
    # So that the retries do not take seconds.
    outcome = machine.run(LOOP.replace("--quiet", "--quiet --retries 0"))
    assert outcome.code == 0 and outcome.out == ""
    assert [line.split(": ")[1] for line in outcome.err.splitlines()] == [
        "./b rejected.wav",
        "./c unknown.wav",
        "./d no quota.wav",
    ]
    assert machine.files("done") == {"a good.wav", "a good.json"}
    assert machine.files("bad") == {"b rejected.wav", "b rejected.JSON"}
    assert machine.files("unknown") == {"c unknown.wav", "c unknown.json"}
    assert machine.files() == {"d no quota.wav", "young.wav", "uploaded.log", ".lock"}
    good, _ = machine.service.talks
    assert (machine.calls / "uploaded.log").read_text() == f"./a good.wav: Dialog ID: {good}\n"


@pytest.mark.parametrize("there", ["done/call.wav", "bad/call.JSON", "unknown/call.json"])
def test_the_loop_overwrites_nothing(machine: Machine, there: str) -> None:
    earlier = machine.calls / there
    earlier.parent.mkdir()
    earlier.write_text("an earlier one")
    call = machine.call("call.wav")
    machine.call("d.wav")
    (machine.calls / "call.json").write_text("{}")
    outcome = machine.run(LOOP)
    assert outcome.code == 0 and "./call.wav: not sent" in outcome.err
    assert earlier.read_text() == "an earlier one"
    assert call.exists() and machine.files() >= {"call.wav", "call.json"}
    assert len(machine.service.calls) == 1  # d.wav


def test_the_loop_ends_where_there_is_nothing_to_do(machine: Machine) -> None:
    assert machine.run(LOOP) == Outcome(0, "", "")
    machine.call("a.wav")
    machine.call("b.wav")
    (machine.root / "etc/speechsense.key").write_text("another-key\n")
    outcome = machine.run(LOOP)
    assert outcome.code == 77 and len(machine.service.calls) == 1
    assert machine.files() >= {"a.wav", "b.wav"}


# --- Cron and GNU parallel ------------------------------------------------------------


def test_the_cron_line(machine: Machine) -> None:
    mail_to, line = block("crontab", "Cron").splitlines()
    schedule, command = line.split("  ", 1)
    assert mail_to.startswith("MAILTO=") and len(schedule.split()) == 5
    # "%" is a line break to cron.
    assert "%" not in command
    for name in ("0914-anna.wav", "0921-boris.wav"):
        machine.call(name, "2026-03-17")
    machine.call("young.wav", age_s=-3600)  # By the clock of its runs.
    assert machine.run(command) == Outcome(0, "", "")
    printed = machine.log.read_text()
    found = dict(re.findall(r"(\S+\.wav): Dialog ID: (\S+)\n", printed))
    assert set(found.values()) == machine.service.talks.keys() and len(found) == 2
    assert all(talk.fields["upload_sha256"] for talk in machine.service.talks.values())

    assert machine.run(command) == Outcome(0, "", "")
    assert machine.log.read_text() == printed
    assert len(machine.service.calls) == 2


def test_the_cron_line_looks_up_what_is_unknown(machine: Machine) -> None:
    command = block("crontab", "Cron").splitlines()[1].split("  ", 1)[1]
    machine.call("0930-anna.wav")
    machine.service.script += [LOST]
    assert machine.run(command).code == os.EX_PROTOCOL
    [talk_id] = machine.service.talks
    assert machine.run(command) == Outcome(0, "", "")
    assert machine.log.read_text().endswith(f"0930-anna.wav: Dialog ID: {talk_id}\n")


def test_a_dry_run_tells_whether_a_day_is_complete(machine: Machine) -> None:
    """The cron line as README changes it for that."""
    command = block("crontab", "Cron").splitlines()[1].split("  ", 1)[1]
    machine.call("a.wav")
    machine.run(command)
    check = command.partition(" >>")[0].replace(" --min-age 60", "") + " --dry-run"
    assert machine.run(check) == Outcome(0, "", "")
    machine.call("b.wav", age_s=0)
    assert re.fullmatch(r"\S+b\.wav: would be uploaded: .*\n", machine.run(check).out)


@pytest.mark.skipif(
    not shutil.which("parallel"), reason="no GNU parallel: apt-get install parallel"
)
def test_the_lines_for_gnu_parallel(machine: Machine) -> None:
    machines, folders = block("sh", "Several machines").splitlines()
    machine.call("a.wav", "north")
    machine.call("b.wav", "south")
    # ":" is this machine, without ssh.
    outcome = machine.run(machines.replace("alpha,beta", ":"))
    assert outcome.code == 0 and len(machine.service.talks) == 2
    assert len(re.findall(r"^\S*\t\S+\.wav: Dialog ID: ", outcome.out, re.MULTILINE)) == 2
    header, job = (machine.root / "day.log").read_text().splitlines()
    assert job.split("\t")[header.split("\t").index("Exitval")] == "0"

    assert machine.run(folders).code == 0
    names = {path.name for path in machine.ledgers.glob("*.sqlite")}
    assert names == {"ledger.sqlite", "north.sqlite", "south.sqlite"}
    assert len(machine.service.talks) == 4  # Ledgers of their own.


# --- The ledger -----------------------------------------------------------------------


def test_the_queries(machine: Machine) -> None:
    for name in ("0921-boris.wav", "0930-anna.wav", "0947-vera.wav"):
        machine.call(name)
    machine.service.script += [None, LOST, REJECTED]
    command = block("crontab", "Cron").splitlines()[1].split("  ", 1)[1]
    without_lookups = re.sub(" --lookup-key.*?(?= >>)", " --jobs 1", command)
    assert machine.run(without_lookups).code == os.EX_PROTOCOL
    text = (block("console", "The ledger") + block("console", "Unknown recordings")).replace(
        "/var/calls", str(machine.calls)
    )
    queries = re.findall(r'^\$ sqlite3 ledger\.sqlite "(.*)"$', text, re.MULTILINE)
    by_state, attention, dialog, note = queries
    boris, anna = machine.service.talks
    database = sqlite3.connect(machine.ledgers / "ledger.sqlite", isolation_level=None)
    try:
        counts = [(state, count) for _, state, count in database.execute(by_state)]
        assert counts == [("rejected", 1), ("unknown", 1), ("uploaded", 1)]
        assert {state for _, state, _ in database.execute(attention)} == {"rejected", "unknown"}
        assert database.execute(dialog).fetchall() == [(boris,)]
        update, changes = note.split("; ")
        database.execute(update.replace("6cb2ae1de4a547feb1ff", anna))
        assert database.execute(changes).fetchall() == [(1,)]
    finally:
        database.close()
    assert "0930-anna" not in machine.run(without_lookups).err


# --- The demo -------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["", "1"])
def test_the_demo_takes_a_recording_and_tidies_up(tmp_path: Path, keep: str) -> None:
    call = make_wav(tmp_path / "two words.wav", 2_000)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    finished = subprocess.run(
        [sys.executable, ROOT / "tests/demo.py", call],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary), "DEMO_KEEP": keep},
        timeout=60,
        check=True,
    )
    assert f"{call.stat().st_size:,} bytes of audio, the same as '{call}'" in finished.stdout
    assert [path.read_bytes() == call.read_bytes() for path in temporary.glob("*/*.audio")] == (
        [True] if keep else []
    )
    assert len([*temporary.iterdir()]) == len(keep)


# --- What README says of the program ---------------------------------------------------


def test_the_program_has_the_messages_of_the_tables() -> None:
    """What stands in the first column, as the script would say it; ... stands for a value."""
    source = re.sub(r'"\s+f?"', "", SCRIPT.read_text("utf-8"))
    tables = README.partition("\n## A mail came\n")[2].partition("\n## ")[0]
    tables += README.partition("\n## Troubleshooting\n")[2].partition("\n## ")[0]
    first_cells = re.findall(r"^\| ([^|]*`[^|]*) \|", tables, re.MULTILINE)
    messages = [text for cell in first_cells for text in re.findall("`(.*?)`", cell)]
    assert len(messages) > 15
    for message in messages:
        for part in re.split(r"\.\.\.|SIGTERM", message):
            assert part.strip() in source, message


def test_the_links_of_the_table_of_contents_lead_somewhere() -> None:
    headings = re.findall(r"^## (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#(.*?)\)", README)) <= anchors
    for path in re.findall(r"\]\(([^#)]+)\)", README):
        assert (ROOT / path).is_file(), path


def test_the_picture_shows_results_and_the_bar() -> None:
    picture = (ROOT / "tests/picture.svg").read_text("utf-8")
    assert re.search(r"calls/\S+\.wav: Dialog ID: ", picture) and re.search(r"\d+%\|", picture)
