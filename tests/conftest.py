"""What the tests share: a service, recordings, and two ways to run the program.

Where a test belongs:
before the wire  test_folders (stories: what happens in a folder between runs, or during one:
                 while_it), test_one_call (files of one call), test_audio (formats, with kinds.py),
                 test_convert, test_metadata, test_late_metadata, test_safety (odd files, clocks,
                 dates, the ledger's file)
on the wire      test_delivery (breaks, answers, signals), test_between (proxies, web pages, locks),
                 test_outage, test_access_network, test_credentials, test_split, test_talk_id,
                 test_lookup
what is kept     test_ledger, test_power_cut, test_report
what is said     test_command (words and output), test_run (many recordings), test_progress,
                 test_operator (stories: what cron emails), test_month, test_simulated_day
the machine      test_machine (limits, bugs, signals, copies under way), test_mechanisms
texts and tools  test_readme, test_stand_in, test_chaos, test_fuzz

One recording, once and whole: contents(service) == [sha256(path)]; in a ledger: ledgers.states.

No test may fail because the machine is busy:
- Wait for what has to happen (wait_for, started and held calls, At), never for a time. A sleep may
  only show that something does not happen.
- A limit is many times what is needed; what shall fail without it takes many times the limit.
- The program's own waits are made shorter (waits); those of the tests are not.
- A port is bound as long as somebody is to find nobody there, and gRPC takes little ahead of what
  the service reads (NOTHING_AHEAD).
- It is noon (zone_at), so no day ends during a test; how to be on another one: stories.py, Time.
- Whether a test keeps to that show fifty runs of the suite beside another one (load 20), or of the
  test alone: while .venv/bin/python -m pytest -q "tests/x.py::test[id]"; do :; done
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# As the program does; must stand in the environment before anybody imports grpc.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
import encoders
from stand_in import StandIn

import upload_grpc

if TYPE_CHECKING:
    from stories import Cron

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "upload_grpc.py"
SAMPLE = ROOT / "tests" / "sample.wav"
KEY = "demo-key"
# gRPC measures the line, and takes as much ahead of what the service reads as it thinks the line
# can hold: 6 MB as a rule on loopback, and up to 22 MB on a busy machine. Without that it takes
# less than 600 KB: a longer recording is still under way when its call is refused at once.
NOTHING_AHEAD = ("grpc.http2.bdp_probe", 0)
# The last byte of such a recording has not been handed over while the service reads nothing.
LONG_BYTES = 4_000_000

# What a machine's own settings would change.
FOREIGN_VARIABLES = (
    "API_KEY",
    "IAM_TOKEN",
    "YC_METADATA_ADDR",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    *("grpc_proxy", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
)


def zone_at(hour: float) -> str:
    """Return a TZ in which it is so many hours after midnight."""
    now = datetime.datetime.now(datetime.timezone.utc)
    ahead_s = round(hour * 3_600) - (now.hour * 3_600 + now.minute * 60 + now.second)
    hours, rest = divmod(abs(ahead_s), 3_600)
    return f"XXX{'-' if ahead_s > 0 else '+'}{hours:02}:{rest // 60:02}:{rest % 60:02}"


# It is about noon, whenever the tests run: no day ends while one of them is under way.
os.environ["TZ"] = zone_at(12)
time.tzset()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run of the program left behind."""

    code: int
    out: str
    err: str


def assert_failed(outcome: Outcome, code: int, *facts: object) -> None:
    """No dialog was reported; one line on stderr says what is wrong, with all facts."""
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    assert re.fullmatch(r"upload_grpc: .*\n", outcome.err), outcome.err
    for fact in facts:
        assert str(fact) in outcome.err
    assert ("; if it is not there, " in outcome.err) == (code == os.EX_PROTOCOL)


def assert_refused(outcome: Outcome, service: StandIn, code: int, *facts: object) -> None:
    """One line says all that; the service was not called."""
    assert_failed(outcome, code, *facts)
    assert service.calls == []


def sha256(content: Path | bytes) -> str:
    """Return the digest of a file, or of bytes, as the service and the ledger write it."""
    if isinstance(content, Path):
        content = content.read_bytes()
    return hashlib.sha256(content).hexdigest()


def contents(service: StandIn) -> list[str]:
    """Return the digests of the audio of all dialogs."""
    return sorted(talk.sha256 for talk in service.talks.values())


def make_wav(path: Path, size_bytes: int = 16_000, *, seed: int | None = None) -> Path:
    """Write a 16 bit LPCM recording of about so many bytes; another seed is other audio.

    Without a seed the audio follows from the file's name.
    """
    noise = random.Random(path.name if seed is None else seed)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes(noise.randbytes(size_bytes // 2 * 2))
    return path


def sparse_wav(path: Path, size_bytes: int) -> Path:
    """Write a recording of silence, of a size that takes no room on the disk."""
    make_wav(path, 4)
    head = bytearray(path.read_bytes()[:44])
    head[4:8] = (size_bytes - 8).to_bytes(4, "little")
    head[40:44] = (size_bytes - 44).to_bytes(4, "little")
    path.write_bytes(head)
    os.truncate(path, size_bytes)
    return path


def wait_for(condition: Callable[[], object], limit_s: float = 60) -> None:
    """Wait until the condition holds; fail after limit_s seconds."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, "the moment for it never came"
        time.sleep(0.002)


@contextlib.contextmanager
def when(condition: Callable[[], object], act: Callable[[], object]) -> Iterator[None]:
    """Do something, on a thread, as soon as the condition holds; it has to become true."""

    def wait_and_act() -> None:
        wait_for(condition)
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    yield
    thread.join()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail if a test was skipped")


# These begin first, so that no core is without work while the last of them ends.
LONG_ONES = ("test_chaos.py", "test_simulated_day.py", "test_month.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG_ONES)


def in_the_root() -> set[str]:
    """Return what is in the repository's root, but for caches."""
    return {name for name in os.listdir(ROOT) if name[0] != "." and name != "__pycache__"}


FOUND_IN_THE_ROOT = in_the_root()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == 0 and in_the_root() - FOUND_IN_THE_ROOT:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if exitstatus == 0 and session.config.getoption("--no-skips"):
        session.exitstatus = int(bool(reporter and reporter.stats.get("skipped")))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in the end, not only in passing, what was left behind, or not tested on this machine."""
    if left := in_the_root() - FOUND_IN_THE_ROOT:
        terminalreporter.line(f"FAILED: left in {ROOT}: {', '.join(sorted(left))}", red=True)
    if skipped := terminalreporter.stats.get("skipped"):
        terminalreporter.section("NOT TESTED ON THIS MACHINE", sep="!", red=True, bold=True)
        for report in skipped:
            terminalreporter.line(f"{report.nodeid}: {report.longrepr[2]}", red=True)


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Take the machine's settings away, and undo whatever the program sets."""
    before = dict(os.environ)
    handlers = {signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
    # In the background SIGINT is ignored, under nohup SIGHUP, and programs inherit that.
    handlers[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    handlers[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for name in FOREIGN_VARIABLES:
        os.environ.pop(name, None)
    yield
    for each, handler in handlers.items():
        signal.signal(each, handler)
    os.environ.clear()
    os.environ.update(before)
    time.tzset()


Waits = Callable[..., None]

# The tests' names for the waits of the program, in seconds. What is renamed there is renamed here.
WAITS = {
    "backoff": "BACKOFF_S",
    "backoff_limit": "BACKOFF_LIMIT_S",
    "lookup_pause": "LOOKUP_PAUSE_S",
    "lookup_answer": "LOOKUP_TIMEOUT_S",
    "ledger_lock": "LEDGER_LOCK_LIMIT_S",
    "poll": "POLL_S",
    "refusal": "REFUSAL_WAIT_S",
    "split_limit": "WAIT_LIMIT_S",
    "attempts_limit": "ATTEMPTS_LIMIT_S",
    "vm_answer": "VM_METADATA_TIMEOUT_S",
    "vm_token_age": "VM_TOKEN_AGE_LIMIT_S",
}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Shorten the waits of a run in this process; return what sets some of them, by name."""

    def set_waits(**seconds: float) -> None:
        for name, value_s in seconds.items():
            monkeypatch.setattr(upload_grpc, WAITS[name], value_s)

    set_waits(backoff=0.02, lookup_pause=0, poll=0.02, refusal=0.05)
    return set_waits


@pytest.fixture
def service(tmp_path: Path) -> Iterator[StandIn]:
    with StandIn(tmp_path / "store", options=(NOTHING_AHEAD,)) as stand_in:
        yield stand_in


@pytest.fixture
def temp(tmp_path: Path) -> Iterator[Path]:
    """Put FFmpeg in PATH, and see that nothing is left in the temporary folder, nor open there."""
    temp = tmp_path / "temp"
    temp.mkdir()
    encoders.put_in_path(tmp_path / "bin")
    os.environ["TMPDIR"] = str(temp)
    yield temp
    assert not list(temp.iterdir())
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            assert not os.readlink(each).startswith(str(temp))


@pytest.fixture
def call(tmp_path: Path) -> Path:
    """Make a short recording with metadata of its own, so that nothing is warned of."""
    path = make_wav(tmp_path / "call.wav", 1_000)
    path.with_suffix(".json").write_text("{}")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "calls"
    folder.mkdir()
    return folder


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    """Make metadata for --meta-path, which give no warning."""
    path = tmp_path / "fields.json"
    path.write_text('{"language": "ru-RU"}')
    return path


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Make a recording larger than what gRPC could send again from a buffer of its own."""
    return make_wav(tmp_path / "call.wav", 600_000)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the files that are opened from now on."""
    names: list[str] = []
    really_open: Any = open

    def watched_open(file: Any, *rest: Any, **options: Any) -> Any:
        names.append(str(file))
        return really_open(file, *rest, **options)

    monkeypatch.setattr("builtins.open", watched_open)
    return names


@pytest.fixture
def cron(
    upload: Run,
    service: StandIn,
    folder: Path,
    ledger: Path,
    fields: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Cron:
    from stories import Cron

    return Cron(upload, service, folder, ledger, fields, monkeypatch)


# The two ways to send a recording.
Way = tuple[str, ...]
STREAM: Way = ()
SINGLE: Way = ("--single-message",)
WAYS = pytest.mark.parametrize("way", [STREAM, SINGLE], ids=["stream", "single"])


CLOSED = socket.socket()
CLOSED.bind(("127.0.0.1", 0))


def closed_port() -> int:
    """Return a port at which nobody listens, nor will: while it is bound no other test gets it."""
    return int(CLOSED.getsockname()[1])


def begin_ledger(path: str) -> None:
    """Begin a ledger, as a first run by hand does: with --quiet none is begun."""
    words = ("--audio-path=.", "--connection-id=connection-1", f"--ledger={path}")
    logging.disable()
    upload_grpc.Ledger(upload_grpc.parse_arguments(words)).close()
    logging.disable(logging.NOTSET)


def arguments(service: StandIn, *words: object, begun: bool = True) -> list[str]:
    """Complete a command line with the service's address and an accepted key.

    begun: whether a ledger was begun by hand before.
    """
    given = [os.fspath(word) if isinstance(word, Path) else str(word) for word in words]
    if begun and "--ledger" in given:
        ledger = given[len(given) - given[::-1].index("--ledger")]
        if ledger and not os.path.lexists(ledger) and os.path.isdir(os.path.dirname(ledger) or "."):
            begin_ledger(ledger)
    defaults = {
        "--endpoint": service.endpoint,
        "--ca-file": str(service.ca_file),
        "--connection-id": "connection-1",
        "--key": KEY,
    }
    if "--key-file" in given:
        del defaults["--key"]
    for option, value in defaults.items():
        if option not in given:
            given += [option, value]
    return given


Run = Callable[..., Outcome]


@pytest.fixture
def upload(service: StandIn, capfd: pytest.CaptureFixture[str]) -> Run:
    """Call main() with some words and the service's; return code, stdout and stderr."""

    def run(*words: object, begun: bool = True) -> Outcome:
        capfd.readouterr()
        try:
            code = upload_grpc.main(arguments(service, *words, begun=begun))
        except SystemExit as leaving:  # argparse
            code = int(leaving.code or 0)
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def before_command(code: str) -> list[str]:
    """Return what has a process do something before it becomes the command, for start()."""
    return [sys.executable, "-c", f"import os, sys\n{code}\nos.execv(sys.argv[1], sys.argv[1:])"]


# Goes before the program's own modules, and adds the seconds in a file to what the clock says.
CLOCK = """import os, time
_time, _offset = time.time, os.environ["CLOCK_OFFSET_FILE"]
def shifted():
    try:
        with open(_offset) as file:
            return _time() + float(file.read() or 0)
    except (OSError, ValueError):
        return _time()
time.time = shifted
"""


def own_clock(folder: Path, ahead_s: float = 0) -> tuple[dict[str, str], Path]:
    """Make a clock for commands; return their environment, and the file that it looks into."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(CLOCK)
    offset = folder / "offset"
    offset.write_text(str(ahead_s))
    return {"PYTHONPATH": str(folder), "CLOCK_OFFSET_FILE": str(offset)}, offset


# SECBIT_NOROOT: permissions count for root as well. Others need not and may not ask for it.
AS_NOBODY_SPECIAL = "import ctypes; ctypes.CDLL(None).prctl(28, 1, 0, 0, 0)"


class Started(subprocess.Popen[str]):
    """The command as a process; a test that fails meanwhile kills it, as it may never end."""

    def __exit__(self, *failure: Any) -> None:
        if any(failure):
            self.kill()
        super().__exit__(*failure)


def start(
    *words: object,
    env: Mapping[str, str] | None = None,
    under: Sequence[str] = (),
    **options: Any,
) -> Started:
    """Start the command itself, for a with block; its environment is this process's and `env`.

    under: a command that starts it, such as `nohup`. What preexec_fn does instead may hang or
    abort where a service runs in this process.
    """
    return Started(
        [*under, sys.executable, str(SCRIPT), *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        **options,
    )


def ended(process: subprocess.Popen[str], limit_s: float = 60) -> Outcome:
    """Wait for the end of a command that was started."""
    out, err = process.communicate(timeout=limit_s)
    return Outcome(process.returncode, out, err)


def interrupt(process: subprocess.Popen[str], *names: str, limit_s: float = 30) -> Outcome:
    """Send signals, one after the other, and wait for the end that the first of them makes."""
    for name in names:
        time.sleep(0.05)
        process.send_signal(signal.Signals[name])
    outcome = ended(process, limit_s)
    assert outcome.code == 128 + signal.Signals[names[0]]
    assert "Traceback" not in outcome.err
    return outcome


@pytest.fixture
def command(service: StandIn) -> Run:
    """Run the command itself, as a process, like `upload`."""

    def run(*words: object, **options: Any) -> Outcome:
        with start(*arguments(service, *words), **options) as process:
            return ended(process)

    return run
