"""The progress bar: on a terminal, and nowhere else."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from conftest import LONG_BYTES, SCRIPT, Run, arguments, make_wav, sparse_wav
from encoders import sound
from stand_in import Delay, Freeze, StandIn

# Longer than the bar waits before it appears.
LONG = Delay(1.2)
# By this clock a run is a short one on a busy machine, too.
SLOW_CLOCK = "import time; clock = time.monotonic; time.monotonic = lambda: clock() / 100"


def on_terminal(
    *words: str, stdout: int | None = None, path: str = "", interrupt_at: bytes = b"\0"
) -> tuple[int, str]:
    """Run the command with a terminal as stderr; return exit code and what the terminal got.

    stdout: where that goes, by default to the terminal. path: a folder to import from first.
    interrupt_at: what to see on the terminal before sending SIGINT.
    """
    terminal, other_end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 90, 0, 0))
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *words],
        stdin=subprocess.DEVNULL,
        stdout=other_end if stdout is None else stdout,
        stderr=other_end,
        env={**os.environ, "PYTHONPATH": path, "TERM": "xterm"},
    )
    os.close(other_end)
    received = b""
    with process, contextlib.suppress(OSError):  # Linux ends a terminal's output with EIO.
        deadline = time.monotonic() + 30
        while select.select([terminal], [], [], deadline - time.monotonic())[0]:
            received += os.read(terminal, 65536)
            if interrupt_at in received:
                process.send_signal(signal.SIGINT)
                interrupt_at = b"\0"
        process.kill()
    os.close(terminal)
    return process.returncode, received.decode()


def screen(received: str) -> list[str]:
    """Draw what a terminal would show in the end, wide lines left unbroken."""
    lines = [""]
    row = column = 0
    for part in re.findall(r"\x1b\[\d*[A-Za-z]|.", received, re.DOTALL):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[A":
            row -= 1
        elif part == "\x1b[K":
            lines[row] = lines[row][:column]
        else:
            assert part.isprintable(), f"no terminal of ours knows {part!r}"
            lines[row] = f"{lines[row][:column]:{column}}{part}{lines[row][column + 1 :]}"
            column += 1
    return [line.rstrip() for line in lines]


def percentages(received: str) -> list[int]:
    """Read the states that the bar went through."""
    return [int(number) for number in re.findall(r"(\d+)%\|", received)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make two recordings, and a file that is none."""
    folder = tmp_path / "calls"
    folder.mkdir()
    for number in range(2):
        make_wav(folder / f"{number}.wav", 300_000)
    (folder / "bad.wav").write_text("no recording")
    (folder / "fields.json").write_text("{}")
    return folder


def words_for(service: StandIn, folder: Path) -> list[str]:
    fields = folder / "fields.json"
    return arguments(service, "--meta-path", fields, "--jobs", 1, "--audio-path", folder)


@pytest.mark.usefixtures("temp")
def test_a_bar_counts_the_bytes_of_the_files_not_those_they_are_converted_to(
    service: StandIn, folder: Path
) -> None:
    for path in folder.glob("*.wav"):
        path.unlink()
    (folder / "call.wav").write_bytes(sound("WAV", "ALAW", seconds=LONG_BYTES / 8_000))
    service.script.append(Freeze(after_bytes=LONG_BYTES))  # Half of what it is converted to.
    words = ("--convert", "--timeout", "3", "--retries", "0")
    code, received = on_terminal(*words_for(service, folder), *words)
    assert (code, service.talks) == (os.EX_TEMPFAIL, {})
    # It may be drawn once more when all is done.
    assert 45 < max(each for each in percentages(received) if each < 100) < 65


def test_a_bar_moves_below_the_lines_and_goes_away(service: StandIn, folder: Path) -> None:
    service.script += [LONG] * 2
    code, received = on_terminal(*words_for(service, folder))
    assert code == os.EX_DATAERR
    seen = percentages(received)
    assert seen and seen == sorted(seen) and 0 < seen[-1] <= 100
    *lines, summary, end = screen(received)
    assert [line for line in lines if "Dialog ID" in line] == [
        f"{folder / f'{number}.wav'}: Dialog ID: {talk_id}"
        for number, talk_id in enumerate(service.talks)
    ]
    assert [line for line in lines if f"{folder / 'bad.wav'}: " in line]
    assert len(lines) == 3
    assert "2 uploaded" in summary and end == ""


def test_a_bar_needs_no_other_process(service: StandIn, folder: Path, tmp_path: Path) -> None:
    """Nor a lock between processes, of which Python 3.14 would complain after the last line."""
    mark = tmp_path / "mark"
    (tmp_path / "multiprocessing.py").write_text(f"open({str(mark)!r}, 'w').close()")
    service.script += [LONG]
    _, received = on_terminal(*words_for(service, folder), path=str(tmp_path))
    assert percentages(received) and not mark.exists()


def test_results_may_go_elsewhere(service: StandIn, folder: Path, tmp_path: Path) -> None:
    service.script += [LONG]
    with open(tmp_path / "results", "w+") as results:
        _, received = on_terminal(*words_for(service, folder), stdout=results.fileno())
    assert percentages(received)
    printed = (tmp_path / "results").read_text()
    assert re.findall("Dialog ID: (.*)\n", printed) == [*service.talks]
    assert len(screen(received)) == 3  # bad.wav, the summary, and below them nothing


@pytest.mark.parametrize("why", ["a short run", "--quiet", "no tqdm"])
def test_there_is_no_bar(service: StandIn, folder: Path, tmp_path: Path, why: str) -> None:
    (tmp_path / "tqdm.py").write_text("raise ImportError('as if it were not installed')\n")
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(SLOW_CLOCK)
    if why != "a short run":
        service.script += [LONG]
    quiet = ["--quiet"] if why == "--quiet" else []
    path = {"no tqdm": str(tmp_path), "a short run": str(slow)}.get(why, "")
    code, received = on_terminal(*quiet, *words_for(service, folder), path=path)
    assert code == os.EX_DATAERR
    assert not percentages(received) and "\x1b" not in received
    assert len(screen(received)) == (4 if quiet else 5)


def test_off_a_terminal_there_is_nothing(command: Run, service: StandIn, folder: Path) -> None:
    service.script += [LONG]
    outcome = command(*words_for(service, folder))
    assert outcome.code == os.EX_DATAERR
    assert len(outcome.err.splitlines()) == 2
    assert not percentages(outcome.err) and "\r" not in outcome.out + outcome.err


def test_a_signal_takes_the_bar_away(service: StandIn, folder: Path) -> None:
    sparse_wav(folder / "0.wav", LONG_BYTES)
    service.script += [Freeze(after_bytes=0)]
    code, received = on_terminal(*words_for(service, folder), interrupt_at=b"%|")
    assert code == 128 + signal.SIGINT
    shown = screen(received)
    assert "SIGINT" in received and shown[-1] == ""
    assert not any("%|" in line for line in shown)


@pytest.mark.parametrize("setting", ["TQDM_DISABLE=1", "TQDM_NCOLS=wide"])
def test_a_setting_of_the_bar_ends_no_run(
    service: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv(*setting.split("="))
    service.script += [LONG] * 2
    code, received = on_terminal(*words_for(service, folder))
    assert code == 65 and "bug" not in received and len(service.talks) == 2
