"""README's blocks, run as they stand: only folders are put in place of the system's.

What would change this machine (users, packages, images) is a function of the shell instead.

A new message: a row of the table, with its code (a new way to make errors: CAUSES). A new flag: the
first cell of a row of Options. A new block: a test by block(), and the count in every_block_is_run.
"""

from __future__ import annotations

import ast
import datetime
import itertools
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import pytest
import soundfile  # type: ignore[import-untyped]
from conftest import KEY, ROOT, SAMPLE, SCRIPT, Outcome, begin_ledger, make_wav, own_clock
from encoders import FFMPEG, sound
from fault_proxy import HttpProxy
from kinds import make_kinds
from picture import make_calls
from stand_in import Fail, StandIn
from test_command import run

import upload_grpc

README = (ROOT / "README.md").read_text("utf-8")
NOT_FOLDED = re.sub(r"<details>.*?</details>", "", README, flags=re.DOTALL)
LOST = Fail(grpc.StatusCode.UNAVAILABLE, "Socket closed", store=True, ids=False)
REJECTED = Fail(grpc.StatusCode.INVALID_ARGUMENT, "not configured")
# Nobody can give a file an old ctime, so the program's clock is ahead of ours: by more than
# --min-age, and by less than a recording may wait for its JSON.
AHEAD_S = 1_800
DIALOG = re.compile(r"(\S+): Dialog ID: (\S+)\n")
# What a block does to the machine, instead of the commands of these names.
STUBS = """
make() { :; }
useradd() { :; }
runuser() { shift 3; "$@"; }
install() { command install $(echo " $*" | sed 's/ -o [a-z]*//'); }
curl() { echo "$*" >>pings; }
mountpoint() { [ -d "$2" ]; }
"""

needs_sqlite3 = pytest.mark.skipif(not shutil.which("sqlite3"), reason="no sqlite3")


def section(heading: str) -> str:
    """Return what stands under a heading, of whatever level, up to the next of its level."""
    marks, rest = next(
        (found[1], README[found.end() :])
        for found in re.finditer(r"^(##+) (.*)\n", README, re.MULTILINE)
        if found[2] == heading
    )
    return re.split(rf"^#{{2,{len(marks)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def block(language: str, heading: str, number: int = 0) -> str:
    """Return a block of code under a heading, without the indentation of a list."""
    pattern = rf"^( *)```{language}\n(.*?)^ *```$"
    found = re.findall(pattern, section(heading), re.MULTILINE | re.DOTALL)
    indent, text = found[number]
    return re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)


SET_UP = block("sh", "Cron")
FIRST_RUN = block("sh", "Cron", 1).splitlines()
CRONTAB = block("crontab", "Cron").splitlines()
CRON_VARIABLES = dict(line.split("=") for line in CRONTAB[:2])
UPLOAD, REPORT = (line.split(maxsplit=5)[5] for line in CRONTAB[2:])


class Machine:
    """A folder in place of a machine's root, from which the public service can be reached."""

    def __init__(self, root: Path, service: StandIn, proxy: HttpProxy) -> None:
        self.root = root
        self.service = service
        self.calls = root / "var/calls"
        self.ledger = root / "var/lib/speechsense/ledger.sqlite"
        self.log = self.ledger.with_name("uploaded.log")
        folders = "var/calls", "var/lib", "etc", "opt", "tmp", "usr/local/bin", "mnt/pbx"
        for folder in folders:
            (root / folder).mkdir(parents=True)
        (root / "opt/upload_grpc").symlink_to(ROOT)
        (root / "usr/local/bin/ffmpeg").symlink_to(FFMPEG)
        clock, self.ahead_s = own_clock(root / "later", AHEAD_S)
        self.environment = {
            "https_proxy": proxy.url,
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(service.ca_file),
            **clock,
            "PATH": f"{root}/usr/local/bin:{os.environ['PATH']}",
        }
        assert self.run(SET_UP, stdin=f"{KEY}\n") == Outcome(0, "", "")

    def call(self, name: str, fields: Mapping[str, object] | None = None) -> Path:
        """Make a recording, and its JSON if fields are given."""
        path = self.calls / name
        path.parent.mkdir(exist_ok=True)
        make_wav(path, 2_000)
        if fields is not None:
            path.with_suffix(".json").write_text(json.dumps(fields))
        return path

    def here(self, text: str) -> str:
        """Put this folder before every absolute path."""
        names = "opt|etc|var|mnt|tmp|usr/local/bin"
        return re.sub(rf"(?<![\w/.}}])/(?=({names})/)", f"{self.root}/", text)

    def run(self, text: str, stdin: str = "") -> Outcome:
        """Run a script with this folder as the root of every absolute path in it."""
        environment = {**os.environ, **self.environment}
        script = f"{STUBS}\n{self.here(text)}"
        return run("sh", "-c", script, input=stdin, env=environment, cwd=self.root)

    def upload(self) -> Outcome:
        """Do what cron does every five minutes."""
        return self.run(UPLOAD)

    def report(self) -> Outcome:
        """Do what cron does each morning."""
        return self.run(REPORT)

    def needs_attention(self) -> bool:
        return upload_grpc.main(["--report", "--ledger", str(self.ledger)]) != 0

    def install(self, name: str, text: str) -> None:
        """Put a script where README has it."""
        path = self.root / "usr/local/bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def uploaded(self) -> dict[str, dict[str, str]]:
        """Return the fields of the dialogs that arrived, by the name of their recordings."""
        found = dict(DIALOG.findall(self.log.read_text()))
        return {Path(path).name: dict(self.service.talks[found[path]].fields) for path in found}


@pytest.fixture
def new_machine(tmp_path: Path) -> Iterator[Machine]:
    names = ("api.speechsense.yandexcloud.net",)
    with (
        StandIn(tmp_path / "store", names=names) as service,
        HttpProxy(upstream_port=service.port) as proxy,
        tempfile.TemporaryDirectory(prefix="m-") as root,  # A short path, for the report's lines.
    ):
        yield Machine(Path(root), service, proxy)


@pytest.fixture
def machine(new_machine: Machine) -> Machine:
    """Return a machine with a ledger, as after the first run by hand."""
    begin_ledger(str(new_machine.ledger))
    return new_machine


def normalized(text: str) -> list[str]:
    """Return lines without what differs in each run."""
    for pattern, word in (
        (r"Dialog ID: \w+", "Dialog ID: ..."),
        (r"\d{4}-\d\d-\d\d \w{3} ", "DAY "),
        (r"\d{4}-\d\d-\d\d", "DAY"),
        (r"\d\d:\d\d(?=[: ])", "TIME"),
        (r"\S*/(?=var/)|\S*/(?=calls\.sqlite)", "/"),
    ):
        text = re.sub(pattern, word, text)
    return text.splitlines()


# --- The first screens ------------------------------------------------------------------


GUIDE = r"""
export API_KEY=demo-key
python3 upload_grpc.py \
   --audio-path audio_file \
   --meta-path metadata_example.json \
   --connection-id f3fsomeconnection \
   --key ${API_KEY}
"""


def test_the_first_upload_and_the_guides_command(new_machine: Machine) -> None:
    machine = new_machine
    made, exported, command, *result = block("console", "The first upload").splitlines()
    assert (made, exported) == ("$ make", "$ export API_KEY=...")
    machine.run("ln -s /opt/upload_grpc/upload_grpc.py /opt/upload_grpc/*.json .")
    make_wav(machine.root / "call.wav", 2_000)
    shutil.copy(SAMPLE, machine.root / "audio_file")
    machine.environment["API_KEY"] = KEY
    # Not its path, which may begin like those that stand for the machine's.
    machine.environment["PYTHON_HERE"] = sys.executable
    command = command.removeprefix("$ ")
    for words in (command, f"{command} --key ${{API_KEY}}", GUIDE):
        outcome = machine.run(words.replace("python3", '"$PYTHON_HERE"'))
        assert (outcome.code, outcome.err) == (0, "")
        assert normalized(outcome.out) == normalized("\n".join(result))
    *_, talk = machine.service.talks.values()
    assert (talk.connection_id, talk.method) == ("f3fsomeconnection", "UploadAsStream")
    example = json.loads((ROOT / "metadata_example.json").read_text("utf-8"))
    assert talk.fields == {**example, "direction_outgoing": "true"}
    assert talk.audio and talk.audio.read_bytes() == SAMPLE.read_bytes()


def test_the_folder(new_machine: Machine) -> None:
    machine = new_machine
    command, *shown = block("console", "Folders and the ledger").splitlines()
    (machine.root / "calls").mkdir()
    for name in ("0914-anna", "0921-boris", "0930-vera"):
        make_wav(machine.root / f"calls/{name}.wav", 2_000)
    (machine.root / "calls/0947-gleb.wav").write_bytes(sound("WAV", "ALAW", seconds=12))
    (machine.root / "common.json").write_text("{}")
    machine.environment["API_KEY"] = KEY
    command = command.removeprefix("$ python3 upload_grpc.py")
    outcome = machine.run(f"/opt/upload_grpc/upload_grpc.py {command}")
    assert sorted(normalized(outcome.out + outcome.err)) == sorted(normalized("\n".join(shown)))
    again = machine.run(f"/opt/upload_grpc/upload_grpc.py {command}")
    assert "0 uploaded, 3 already there, 1 failed" in again.err


def test_the_example_of_metadata(tmp_path: Path) -> None:
    path = tmp_path / "call.json"
    path.write_text(block("json", "Metadata"))
    metadata = upload_grpc.read_metadata(str(path))
    assert not [*upload_grpc.date_warnings("call.json", metadata)] and len(metadata.users) == 1


# --- Cron -------------------------------------------------------------------------------


def test_the_crontab() -> None:
    assert [*CRON_VARIABLES] == ["MAILTO", "CRON_TZ"]
    assert f"\nexport TZ={CRON_VARIABLES['CRON_TZ']} #" in SET_UP
    for line in CRONTAB[2:]:
        # "%" is a line break to cron.
        assert re.match(r"([\d*/]+ ){5}", line) and "%" not in line


def test_what_is_made_once_and_the_first_email_that_proves_that_cron_can_send_one(
    new_machine: Machine,
) -> None:
    etc = new_machine.root / "etc"
    assert (etc / "speechsense.key").read_text() == f"{KEY}\n"
    assert (etc / "speechsense.key").stat().st_mode & 0o777 == 0o600
    assert json.loads((etc / "speechsense.json").read_text()) == {"language": "ru-RU"}
    new_machine.call("a.wav", {})
    outcome = new_machine.upload()
    assert outcome.code == os.EX_CONFIG and "missing, and --quiet begins none" in outcome.err
    assert not new_machine.service.calls and not new_machine.ledger.exists()


def test_the_first_run_by_hand_and_those_of_cron(new_machine: Machine) -> None:
    machine = new_machine
    for name in ("0914-anna.wav", "0921-boris.wav"):
        machine.call(name, {"operator_name": name})
    planned = machine.run(FIRST_RUN[0])
    assert planned.out.count("would be uploaded") == 2 and not machine.service.calls
    assert "2 uploaded" in machine.run(FIRST_RUN[1]).err
    assert machine.uploaded().keys() == {"0914-anna.wav", "0921-boris.wav"}

    machine.call("0930-vera.wav", {"operator_name": "Vera"})
    machine.call("0947-gleb.wav")  # Waits for its JSON.
    alaw = machine.call("0950-zoya.wav", {})
    alaw.write_bytes(sound("WAV", "ALAW"))
    young = machine.call("1005-dina.wav", {})
    os.utime(young, (time.time() + AHEAD_S,) * 2)
    assert machine.upload() == Outcome(0, "", "")
    assert sorted([*machine.uploaded()][2:]) == ["0930-vera.wav", "0950-zoya.wav"]
    fields = {"language": "ru-RU", "operator_name": "Vera"}
    assert machine.uploaded()["0930-vera.wav"] == fields
    assert machine.upload() == Outcome(0, "", "") and len(machine.service.calls) == 4
    good_day = machine.report()
    assert (good_day.code, good_day.err) == (0, "") and "Nothing needs attention." in good_day.out


def test_the_ping_has_the_exit_code_of_the_report(machine: Machine) -> None:
    [ping] = re.findall(r"`(; curl [^`]*)`", section("Cron"))
    assert "%" not in ping
    machine.upload()
    machine.run(REPORT + ping)
    machine.call("a.wav", {})
    machine.service.script += [REJECTED]
    assert machine.upload().code == os.EX_DATAERR
    machine.run(REPORT + ping)
    pings = (machine.root / "pings").read_text().splitlines()
    assert [ping.rpartition("/")[2] for ping in pings] == ["0", "65"]


def test_the_report_that_is_shown(machine: Machine) -> None:
    command, *shown = block("console", "Is everything uploaded?").splitlines()
    assert command == f"# {REPORT}"
    # At noon of the next day, whatever the time is now: the day before is another one.
    now_s, day_s = time.time(), 24 * 3_600
    noon_s = (now_s // day_s + 1) * day_s + 9 * 3_600  # 12:00 in Moscow.
    machine.ahead_s.write_text(str(noon_s - now_s))
    for number in range(5):
        date = datetime.datetime.fromtimestamp(noon_s, datetime.timezone.utc)
        date -= datetime.timedelta(days=1 - number // 3)
        machine.call(f"{number}.wav", {"date": date.isoformat()})
    lost = machine.call("0930-vera.wav")
    os.utime(lost, (noon_s - 2 * 3_600,) * 2)  # It has waited too long for its JSON.
    machine.upload()
    lost.unlink()
    assert machine.upload().code == os.EX_NOINPUT
    machine.environment["COLUMNS"] = "100"  # As paths are longer here.
    outcome = machine.report()
    assert outcome.code == os.EX_NOINPUT
    lines = " ".join(normalized(outcome.out)).split()
    assert lines == " ".join(normalized("\n".join(shown))).split()


# --- Unknown recordings -----------------------------------------------------------------


@needs_sqlite3
def test_an_unknown_recording_is_in_the_console_or_it_is_not(machine: Machine) -> None:
    it_is_there, it_is_not = block("sh", "Unknown recordings").splitlines()
    for command, said in (
        (it_is_there, r"1\n\S+0930-vera.wav: Dialog ID: DIALOG\n"),
        (it_is_not, r"\S+0930-vera.wav: Dialog ID: \w+\n"),
    ):
        call = machine.call("0930-vera.wav", {})
        make_wav(call, 2_000, seed=len(command))
        machine.service.script += [LOST]
        outcome = machine.upload()
        assert outcome.code == os.EX_PROTOCOL and "may or may not exist" in outcome.err
        outcome = machine.run(command)
        assert outcome.code == 0 and re.fullmatch(said, outcome.out)
        assert machine.log.read_text().endswith(outcome.out.removeprefix("1\n"))
        assert machine.upload() == Outcome(0, "", "")
    assert not machine.needs_attention()


def test_the_script_looks_for_unknown_recordings(machine: Machine) -> None:
    [options] = re.findall(r"`(--lookup-key [^`]*)`", section("Unknown recordings"))
    script = machine.root / "usr/local/bin/upload-calls"
    script.write_text(script.read_text().replace("--audio-path", f"{options} --audio-path"))
    machine.call("0930-vera.wav", {})
    machine.service.script += [LOST]
    assert machine.upload() == Outcome(os.EX_PROTOCOL, "", "")
    [talk_id] = machine.service.talks
    assert machine.upload() == Outcome(0, "", "")
    assert machine.log.read_text().endswith(f"0930-vera.wav: Dialog ID: {talk_id}\n")
    assert machine.service.talks[talk_id].fields["upload_sha256"]


# --- Recipes ----------------------------------------------------------------------------

CDR = """uniqueid,src,dst,disposition,recordingfile
1773745530.42,101,79161234567,ANSWERED,out-79161234567-101-20260317-140530-1773745530.42.wav
pbx1-1773745590.7,79167654321,102,ANSWERED,/old/in-102-79167654321-20260317-140630-1773745590.7.wav
1773745600.9,79167654321,102,NO ANSWER,
1773745610.11,79167654321,102,ANSWERED,in-gone.wav
1773745540.43,79161234567,103,ANSWERED,out-79161234567-101-20260317-140530-1773745530.42.wav
1773745620.12,79167654321,102
"""  # The last row is still being written.
OUTGOING = {
    "date": "2026-03-17T14:05:30+03:00",
    "operator_id": "101",
    "client_id": "79161234567",
    "direction_outgoing": "true",
    "language": "ru-RU",
}
INCOMING = OUTGOING | {
    "date": "2026-03-17T14:06:30+03:00",
    "operator_id": "102",
    "client_id": "79167654321",
    "direction_outgoing": "false",
}
NAMES = (
    "out-79161234567-101-20260317-140530-1773745530.42.wav",
    "in-102-79167654321-20260317-140630-1773745590.7.wav",
)


def test_json_files_from_a_cdr_table(machine: Machine) -> None:
    heading = "JSON files from a CDR table"
    machine.install("cdr-to-json", block("python", heading))
    [command] = re.findall(r"^`(/[^`]*cdr-to-json [^`]*;)`", section(heading), re.MULTILINE)
    [show] = re.findall(r"`(cat [^`]*;)`", section(heading))
    for name in NAMES:
        machine.call(name)
    (machine.calls / "cdr.csv").write_text(CDR)
    assert machine.run(command) == Outcome(0, "", "")
    written = {path: path.stat().st_ctime_ns for path in machine.calls.glob("*.json*")}
    assert len(written) == 2
    assert machine.upload() == Outcome(0, "", "")
    assert machine.uploaded() == dict(zip(NAMES, (OUTGOING, INCOMING), strict=True))
    report = machine.run(f"{show} {REPORT}").out
    assert report.startswith("1773745610.11: no recording in-gone.wav\nCalls recorded since")
    # What is always written anew is always too young; what was converted has a recording, too.
    (machine.calls / NAMES[0]).rename((machine.calls / NAMES[0]).with_suffix(".mp3"))
    machine.run(command)
    assert machine.run(show).out == "1773745610.11: no recording in-gone.wav\n"
    assert written == {path: path.stat().st_ctime_ns for path in machine.calls.glob("*.json*")}


def test_fields_from_file_names(machine: Machine) -> None:
    heading = "Fields from file names"
    machine.install("names-to-json", block("python", heading))
    [command] = re.findall(r"`(/[^`]*names-to-json [^`]*;)`", section(heading))
    abroad = "out-+4930123456-101-20260317-140530-1773745530.43.WAV"
    names = (*NAMES, abroad)
    for seed, name in enumerate((*names, "greeting.wav")):
        make_wav(machine.call(name), 2_000, seed=seed)
    for _ in range(2):
        assert machine.run(command) == Outcome(0, "", "")
    machine.upload()
    fields = (OUTGOING, INCOMING, OUTGOING | {"client_id": "+4930123456"})
    assert machine.uploaded() == dict(zip(names, fields, strict=True))


REPAIRED = (
    *("WAV, length 0", "WAV, 0xFFFFFFFF", "WAV, SoX to a pipe", "WAV, 1 s of 20 announced"),
    *("WAV A-law, 0xFFFFFFFF", "WAV A-law, cut at a packet", "WAV, 45 bytes short"),
)


def test_a_broken_wav(machine: Machine) -> None:
    call = machine.call("call.wav", {})
    for number, name in enumerate(REPAIRED):
        content = make_kinds()[name].content
        call.write_bytes(content)
        if not number:  # What becomes of each: test_audio.py.
            assert machine.upload().code == os.EX_DATAERR
        assert machine.run(block("sh", "A broken WAV")) == Outcome(0, "", "")
        if "A-law" in name:
            assert soundfile.info(call).frames == len(content[44:])
        else:
            assert call.read_bytes().endswith(content[44:])
        shutil.copy(call, machine.call(f"{number}.wav", {}))
    assert machine.upload() == Outcome(0, "", "")
    assert len(machine.service.talks) == 4, "some of them are the same audio"


@pytest.mark.skipif(not shutil.which("rclone"), reason="no rclone: apt-get install rclone")
def test_recordings_in_object_storage(machine: Machine) -> None:
    bucket = machine.root / "bucket/calls"
    bucket.mkdir(parents=True)
    machine.environment |= {
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_CONFIG_BUCKET_TYPE": "alias",
        "RCLONE_CONFIG_BUCKET_REMOTE": str(bucket.parent),
    }
    for name, age_s in (("new.wav", 3_600), ("old.wav", 3 * 86_400)):
        call = make_wav(bucket / name, 2_000)
        call.with_suffix(".json").write_text("{}")
        os.utime(call, (time.time() - age_s,) * 2)
    line = block("sh", "Recordings in Object Storage")
    for _ in range(2):
        assert machine.run(line) == Outcome(0, "", "")
        assert machine.uploaded().keys() == {"new.wav"}
    assert len(machine.service.calls) == 1 and not (machine.calls / "old.wav").exists()


def test_a_read_only_share(machine: Machine) -> None:
    refresh = block("sh", "A read-only share")
    share = machine.root / "mnt/pbx/2026-03-17"
    share.mkdir()
    make_wav(share / "call.wav", 2_000)
    for _ in range(2):
        assert machine.run(refresh).code in (0, 1)
    link = machine.calls / "2026-03-17/call.wav"
    assert link.is_symlink()
    link.with_suffix(".json").write_text("{}")
    assert machine.upload() == Outcome(0, "", "") and len(machine.service.talks) == 1
    assert [path.name for path in share.iterdir()] == ["call.wav"]
    (share / "call.wav").unlink()
    make_wav(share / "another.wav", 2_000)
    machine.run(refresh)
    assert not link.is_symlink()
    share.parent.rename(share.parent.with_name("gone"))
    machine.run(refresh)
    outcome = machine.upload()
    [line] = outcome.err.splitlines()
    assert outcome.code == os.EX_NOINPUT and "another.wav: cannot be read" in line


@needs_sqlite3
def test_a_problem_nobody_wants_to_see(machine: Machine) -> None:
    machine.call("other.wav", {})
    for kind in ("no audio", "rejected"):
        call = machine.call("0947-gleb.wav", {})
        if kind == "no audio":
            call.write_bytes(b"")
        else:
            machine.service.script += [REJECTED]
        assert machine.upload().code == os.EX_DATAERR
        assert machine.run(block("sh", "A problem nobody wants to see")) == Outcome(0, "", "")
        assert machine.upload() == Outcome(0, "", "")
        assert not machine.needs_attention()


@needs_sqlite3
def test_moving_what_is_uploaded(machine: Machine) -> None:
    machine.call("a b.wav", {})
    machine.upload()
    machine.call("rejected.wav", {})
    machine.service.script += [REJECTED]
    machine.upload()
    assert machine.run(block("sh", "Moving what is uploaded")) == Outcome(0, "", "")
    moved = {path.name for path in (machine.root / "var/uploaded").iterdir()}
    assert moved == {"a b.wav", "a b.json"}
    (machine.calls / "rejected.wav").unlink()
    machine.call("c.wav", {})
    machine.upload()
    machine.run(block("sh", "Moving what is uploaded"))
    # The folder is empty but for .keep and JSON files: that is no share that is not mounted.
    assert machine.upload() == Outcome(os.EX_OK, "", "")


@needs_sqlite3
def test_a_ledger_from_a_backup(machine: Machine) -> None:
    [backup] = re.findall(
        r"`(sqlite3 -readonly ledger\.sqlite [^`]*)`", section("Folders and the ledger")
    )
    machine.call("before.wav", {})
    machine.upload()
    assert machine.run(f"cd /var/lib/speechsense && {backup}") == Outcome(0, "", "")
    after = machine.call("after.wav", {})
    machine.upload()
    machine.run(
        "cd /var/lib/speechsense && mv copy.sqlite ledger.sqlite && rm -f ledger.sqlite-[ws]*"
    )
    listed = machine.run(block("sh", "The ledger is gone, or a backup was restored"))
    assert listed == Outcome(0, f"{after}\n", "")
    after.rename(machine.root / "after.wav")
    assert machine.upload() == Outcome(0, "", "") and len(machine.service.calls) == 2


# --- systemd, containers, several machines ----------------------------------------------


def units() -> dict[str, str]:
    names_and_texts = re.split(r"^# (\S+)\n", block("ini", "systemd"), flags=re.MULTILINE)[1:]
    return dict(zip(names_and_texts[::2], names_and_texts[1::2], strict=True))


def test_the_units_do_what_the_crontab_does(machine: Machine) -> None:
    settings = {
        name: dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
        for name, text in units().items()
    }
    upload, report = settings["upload-calls.service"], settings["report-calls.service"]
    assert f"timeout 6h {upload['ExecStart']}" in UPLOAD and upload["TimeoutStartSec"] == "6h"
    assert upload["StandardOutput"] == f"append:{UPLOAD.rpartition('>>')[2]}"
    assert report["ExecStart"] == REPORT and report["OnFailure"] in settings
    passing = (os.EX_DATAERR, os.EX_NOINPUT, os.EX_TEMPFAIL, os.EX_PROTOCOL)
    assert upload["SuccessExitStatus"].split() == [str(code) for code in passing]
    machine.call("a.wav", {})
    assert machine.run(upload["ExecStart"]).code == 0 and len(machine.service.talks) == 1


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
def test_systemd_understands_the_units(machine: Machine) -> None:
    folder = machine.root / "units"
    folder.mkdir()
    for name, text in units().items():
        (folder / name).write_text(re.sub("User=.*\n", "", machine.here(text)))
    outcome = run("systemd-analyze", "verify", "--man=no", *folder.iterdir())
    assert outcome.code == 0
    assert not [line for line in outcome.err.splitlines() if "-calls" in line]


def test_the_container(new_machine: Machine) -> None:
    """The image is not built; its script is run as `docker run` would, with what it mounts."""
    machine = new_machine
    machine.install(
        "docker",
        '#!/bin/sh\nif [ "$1" = build ]; then cat >Dockerfile; exit; fi\n'
        'shift; echo "$*" >run\nwhile [ "$1" != upload-calls ]; do shift; done; exec "$@"\n',
    )
    machine.call("a.wav", {})
    assert machine.run(block("sh", "Containers")) == Outcome(0, "", "")

    def inside(command: str) -> str:
        return command.replace("upload-calls", "upload-calls-container")

    outcome = machine.run(inside(FIRST_RUN[1]))
    assert outcome.code == 0 and "begins a new ledger" in outcome.err
    machine.call("b.wav", {})
    assert machine.run(inside(UPLOAD)) == Outcome(0, "", "")
    assert len(machine.service.talks) == 2 and machine.uploaded().keys() == {"a.wav", "b.wav"}
    assert "Nothing needs attention." in machine.run(inside(REPORT)).out
    words = shlex.split((machine.root / "run").read_text())
    mounted = {word.split(":")[0] for before, word in itertools.pairwise(words) if before == "-v"}
    script = (machine.root / "usr/local/bin/upload-calls").read_text()
    needed = set(re.findall(rf"{re.escape(str(machine.root))}/(?:etc|var)/[^\s\"]*", script))
    assert needed == (mounted | {str(machine.ledger)}) - {
        str(machine.calls),
        str(machine.ledger.parent),
        str(machine.root / "usr/local/bin/upload-calls"),
    }
    assert str(machine.ledger.parent) in mounted and str(machine.ledger) not in mounted
    dockerfile = (machine.root / "Dockerfile").read_text()
    assert {line.split()[0] for line in dockerfile.splitlines()} <= {
        *("FROM", "RUN", "COPY", "ENTRYPOINT"),
    }
    assert json.loads(dockerfile.partition("ENTRYPOINT ")[2])


@pytest.mark.skipif(
    not shutil.which("parallel"), reason="no GNU parallel: apt-get install parallel"
)
def test_the_line_for_gnu_parallel(machine: Machine) -> None:
    machine.call("a.wav", {})
    # ":" is this machine, without ssh.
    outcome = machine.run(block("sh", "Several machines").replace("alpha,beta", ":"))
    assert outcome.code == 0 and len(machine.service.talks) == 1
    assert re.search(r"^\S*\t\S+\.wav: Dialog ID: ", outcome.out, re.MULTILINE)
    header, job = (machine.root / "day.log").read_text().splitlines()
    assert job.split("\t")[header.split("\t").index("Exitval")] == "0"


def test_every_block_is_run() -> None:
    """A block that is added needs a test; this is how many there are of each language."""
    languages = re.findall(r"^ *```(\w+)$", README, re.MULTILINE)
    assert {each: languages.count(each) for each in languages} == {
        "console": 3,
        "crontab": 1,
        "ini": 1,
        "json": 1,
        "python": 2,
        "sh": 11,
    }


# --- The demo ---------------------------------------------------------------------------


def test_the_demo_takes_a_recording_or_a_folder_and_keeps_what_arrived_only_if_asked(
    tmp_path: Path,
) -> None:
    calls, temporary = tmp_path / "two words", tmp_path / "tmp"
    for folder in (calls / "below", temporary):
        folder.mkdir(parents=True)
    call = make_wav(calls / "below/a.wav", 2_000)
    (calls / "broken.wav").write_bytes(b"RIFF")
    for path, keep, code in ((call, "", 0), (calls, "1", 65)):
        environment = {**os.environ, "TMPDIR": str(temporary), "DEMO_KEEP": keep}
        outcome = run(sys.executable, ROOT / "tests/demo.py", path, env=environment)
        assert outcome.code == code
        said = f"{call.stat().st_size:,} bytes of audio, the same as '{call}'"
        assert outcome.out.count(said) == 1
        left = [*temporary.iterdir()]
        assert len(left) == bool(keep)
    [kept] = left
    assert f"What it stored is in {kept}" in outcome.out
    assert [path.read_bytes() for path in kept.glob("*.audio")] == [call.read_bytes()]


# --- What README says of the program ----------------------------------------------------

# Words of SQLite, which LedgerError.of knows, and of argparse.
NOT_OURS = {"not a database", "is locked", "disk is full", "nothing"}
# The form of all errors of the ledger; and what is no line of an email.
NEVER_SAID = {"ledger ...: ...", "limit of 30 lookups per run reached"}
TREE = ast.parse(SCRIPT.read_text("utf-8"))
CONSTANTS = {
    node.targets[0].id: node.value
    for node in TREE.body
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
}


def text_of(node: ast.expr, names: Mapping[str, list[ast.expr]]) -> str:
    """Return a string as README would have it: ... stands for a value."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr | ast.FormattedValue | ast.BinOp):
        return "".join(
            text_of(each, names)
            for each in ast.iter_child_nodes(node)
            if isinstance(each, ast.expr) and each is not getattr(node, "format_spec", None)
        )
    if isinstance(node, ast.Name) and node.id in names:
        return " ".join(text_of(each, {}) for each in names[node.id])
    if isinstance(node, ast.Name) and isinstance(CONSTANTS.get(node.id), ast.Constant):
        return text_of(CONSTANTS[node.id], {})
    return "..."


def code_of(node: ast.expr) -> int | None:
    if isinstance(node, ast.Constant):
        return int(node.value) if isinstance(node.value, int) else None
    return getattr(os, node.attr, None) if isinstance(node, ast.Attribute) else None


# Which argument of a call is the cause of an error, and its exit code if the call has none.
CAUSES: dict[str, tuple[int, int | None]] = {
    "Meaning": (2, None),
    "data_error": (1, 65),
    "config_error": (1, 78),
    "LedgerError": (2, 78),
    "cls": (2, 78),
    "warn": (2, 0),
}


def error_of(call: ast.Call) -> tuple[int | None, ast.expr] | None:
    """Return the exit code and the cause of what a call says is wrong."""
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    if name == "_replace":
        causes = [each.value for each in call.keywords if each.arg == "cause"]
        return (None, causes[0]) if causes else None
    words: list[ast.expr] = []
    for each in call.args:
        inner = each.value if isinstance(each, ast.Starred) else each
        words += inner.elts if isinstance(inner, ast.Tuple) else [each]
    place, code = CAUSES.get(name, (0, None))
    if not 0 < place < len(words):
        return None
    if name == "Meaning":
        code = code_of(words[0])
    elif code == 78 and len(words) > 4:
        code = code_of(words[4])
    return code, words[place]


def test_the_program_makes_its_errors_with_these() -> None:
    """Else the errors of one that has another name now would need no row."""
    calls = [node.func for node in ast.walk(TREE) if isinstance(node, ast.Call)]
    assert {*CAUSES} <= {ast.unparse(each).rpartition(".")[2] for each in calls}


def errors_of_the_program() -> list[tuple[int | None, str]]:
    """Return the exit code and the text of every cause in the source.

    Those are in calls of what CAUSES names, and in `_replace(cause=...)`.
    """
    found = []
    functions = [node for node in ast.walk(TREE) if isinstance(node, ast.FunctionDef)]
    for scope in [*functions, TREE]:
        names: dict[str, list[ast.expr]] = {}
        for node in ast.walk(scope) if scope is not TREE else ():
            if isinstance(node, ast.AugAssign | ast.Assign):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = [*zip(target.elts, node.value.elts, strict=True)]
                for one, value in pairs:
                    if isinstance(one, ast.Name):
                        names.setdefault(one.id, []).append(value)
        roots = [scope] if scope is not TREE else CONSTANTS.values()
        for node in (each for root in roots for each in ast.walk(root)):
            if isinstance(node, ast.Call) and (error := error_of(node)):
                found.append((error[0], text_of(error[1], names)))
    return [(code, text) for code, text in found if text.strip(". ") and text not in NEVER_SAID]


def table(heading: str) -> list[list[str]]:
    """Return the cells of a section's table."""
    lines = re.findall(r"^\| (.*) \|$", section(heading), re.MULTILINE)
    return [re.split(r" \| ", line) for line in lines][1:]


MESSAGES = [
    (row[0].split(", "), message)
    for row in table("Emails, exit codes, troubleshooting")
    for message in re.findall("`(.*?)`", row[1]) or [row[1]]
]


def stands_in(message: str, text: str) -> bool:
    return all(part.strip() in text for part in message.split("..."))


@pytest.mark.parametrize(("code", "cause"), sorted({*errors_of_the_program()}, key=str))
def test_the_table_has_every_error_of_the_program(code: int | None, cause: str) -> None:
    codes = {"2", "65", "75"} if code is None else {str(code)}
    rows = [codes_ for codes_, message in MESSAGES if stands_in(message, cause)]
    assert rows, "not in README's table"
    if code is not None:
        assert any(codes & {*each} for each in rows), rows


def test_the_program_has_every_message_of_the_table() -> None:
    source = re.sub(r'"\s+f?"', "", SCRIPT.read_text("utf-8"))
    texts = [source, *(text for _, text in errors_of_the_program())]
    messages = {message for _, message in MESSAGES} - NOT_OURS - {"stopped by SIGTERM"}
    assert [each for each in messages if not any(stands_in(each, text) for text in texts)] == []


def test_the_table_has_every_exit_code() -> None:
    codes = {code for codes, _ in MESSAGES for code in codes}
    in_help = re.findall(
        r"(?<!\w)(\d{1,3})(?=[ ,:])", (upload_grpc.__doc__ or "").split("codes:")[1]
    )
    assert codes == set(in_help)
    assert ", ".join(map(str, upload_grpc.GRAVEST_FIRST)) in README


def test_the_options_have_every_flag_and_no_other() -> None:
    flags = {
        flag
        for action in upload_grpc.make_parser()._actions
        for flag in action.option_strings
        if flag.startswith("--")
    }
    first_cells = " ".join(row[0] for row in table("Options"))
    assert re.findall(r"--[a-z-]+", first_cells).__len__() == len(flags)
    assert set(re.findall(r"--[a-z-]+", first_cells)) == flags
    others = {"--system", "--nonall", "--tag", "--joblog", "--sshlogin", "--now", "--rm"}
    others |= {"--max-age", "--retry", "--no-install-recommends", "--home-dir"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)) <= flags | others


def test_what_folders_are_searched_for() -> None:
    [cell] = [row[1] for row in table("Options") if "`--audio-path" in row[0]]
    assert sorted(re.findall(r"`(\.\w+)`", cell)) == sorted(upload_grpc.SUFFIXES)


def test_the_keys_of_json_lines(machine: Machine) -> None:
    keys = section("Keys of JSON lines").replace("\n", " ")
    upload, _, report = keys.partition("With `--report`:")
    machine.call("a.wav", {})
    command = "/usr/local/bin/upload-calls /var/calls --format json"
    lines = [machine.run(f"{command} {words}").out for words in ("", "--report")]
    outcomes = {each.value for each in upload_grpc.Outcome} - {"left out"}
    assert set(re.findall(r"`([a-z_]+)`", upload)) == json.loads(lines[0]).keys() | outcomes
    assert re.findall(r"`([a-z_]+)`", report) == [*json.loads(lines[1])]


def test_the_length_and_the_words() -> None:
    assert len(NOT_FOLDED.splitlines()) <= 260
    for word in ("settl", "mail came", "voicemail", "try again", "talks"):
        assert word not in README.lower(), word


def test_the_links_lead_somewhere() -> None:
    headings = re.findall(r"^##+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)\s]+)\)", README)
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif link.startswith("https:"):
            assert re.fullmatch(r"https://[a-z0-9.-]+(/[\w.-]+)+/?", link), link
        else:
            assert (ROOT / link).is_file(), link
    assert sum("yandex.cloud/en/docs" in link for link in links) >= 5


# --- The picture ------------------------------------------------------------------------


def test_the_picture_shows_what_the_program_prints(tmp_path: Path) -> None:
    picture = (ROOT / "tests/picture.svg").read_text("utf-8")
    command, *rows, bar = re.findall("<text [^>]*>(.*?)</text>", picture)
    others = [row for row in rows if not re.fullmatch(r"calls/\S+\.wav: Dialog ID: \w+", row)]
    assert rows[0] not in others and re.search(r"\d+%\|", bar)
    make_calls(tmp_path, bytes_per_mb=1_000)
    words = shlex.split(command.removeprefix("$ ./upload_grpc.py "))
    outcome = run(sys.executable, SCRIPT, *words, "--dry-run", cwd=tmp_path)
    problem, _summary = outcome.err.splitlines()
    assert "".join(others) == problem
