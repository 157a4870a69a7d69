"""The progress bar: for who watches a terminal, and for nobody else."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from conftest import SCRIPT, arguments, make_wav
from stand_in import Delay, Freeze, StandIn

COLUMNS = 90


def on_terminal(
    words: Sequence[str],
    *,
    stdout: int | None = None,
    path: Path | None = None,
    interrupt_at: bytes | None = None,
) -> tuple[int, str]:
    """Run the command with a terminal as stderr; answer exit code and what the terminal got.

    stdout: where that goes, by default to the terminal. path: a folder to import from first.
    interrupt_at: what to see on the terminal before sending SIGINT.
    """
    terminal, other_end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(path or ""), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *words],
        stdin=subprocess.DEVNULL,
        stdout=other_end if stdout is None else stdout,
        stderr=other_end,
        env=environment,
    )
    os.close(other_end)
    received = b""
    with process, contextlib.suppress(OSError):  # Linux ends a terminal's output with EIO.
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                if not (data := os.read(terminal, 65536)):
                    break
                received += data
            if interrupt_at and interrupt_at in received:
                process.send_signal(signal.SIGINT)
                interrupt_at = None
        else:
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
    return [int(number) for number in re.findall(r" recordings: +(\d+)%\|", received)]


def make_calls(folder: Path, count: int, size_bytes: int) -> Path:
    """Write recordings, and the metadata that spares a word about placeholders."""
    folder.mkdir()
    for number in range(count):
        make_wav(folder / f"{number}.wav", size_bytes)
    (folder / "fields.json").write_text('{"operator_name": "Anna"}')
    return folder


def words_for(service: StandIn, folder: Path, *words: object) -> list[str]:
    fields = folder / "fields.json"
    return arguments(service, "--meta-path", fields, "--jobs", 1, *words, "--audio-path", folder)


def test_a_bar_moves_below_the_lines_and_goes_away(service: StandIn, tmp_path: Path) -> None:
    folder = make_calls(tmp_path / "calls", 4, 300_000)
    (folder / "bad.wav").write_text("no recording")
    service.script += [Delay(0.3)] * 4
    code, received = on_terminal(words_for(service, folder))
    assert code == os.EX_DATAERR
    seen = percentages(received)
    assert seen and seen == sorted(seen) and seen[-1] <= 100
    assert re.search(r"[1-3] of 4 recordings: .*\d+[kM]?B?/1\.20M \[00:0\d<.*B/s\]", received)
    lines = screen(received)
    assert lines[0].startswith(f"upload_grpc: {folder / 'bad.wav'}: ")
    assert lines[1:] == [
        *(
            f"{folder / f'{number}.wav'}: Dialog ID: {talk_id}"
            for number, talk_id in enumerate(service.talks)
        ),
        "upload_grpc: 4 uploaded, 0 already there, 1 failed, 0 unknown",
        "",
    ]


def test_time_goes_on_while_the_answer_is_awaited(service: StandIn, tmp_path: Path) -> None:
    folder = make_calls(tmp_path / "calls", 1, 300_000)
    service.script.append(Delay(1.3))
    _, received = on_terminal(words_for(service, folder))
    assert re.search(r"100%\|.*\[00:01<00:00", received)


def test_a_short_run_shows_no_bar(service: StandIn, tmp_path: Path) -> None:
    folder = make_calls(tmp_path / "calls", 3, 3_000)
    code, received = on_terminal(words_for(service, folder))
    assert code == os.EX_OK
    assert not percentages(received)
    assert "\x1b" not in received


def test_results_may_go_elsewhere(service: StandIn, tmp_path: Path) -> None:
    folder = make_calls(tmp_path / "calls", 2, 300_000)
    service.script += [Delay(0.7)]
    with open(tmp_path / "results", "w+") as results:
        code, received = on_terminal(words_for(service, folder), stdout=results.fileno())
    assert code == os.EX_OK
    assert percentages(received)
    assert [line.split(": ")[-1] for line in (tmp_path / "results").read_text().splitlines()] == [
        *service.talks
    ]
    assert screen(received) == ["upload_grpc: 2 uploaded, 0 already there, 0 failed, 0 unknown", ""]


def test_a_bar_does_not_flicker(service: StandIn, tmp_path: Path) -> None:
    folder = make_calls(tmp_path / "calls", 60, 3_000)
    service.script += [Delay(0.7)]
    with open(tmp_path / "results", "w") as results:
        started_s = time.monotonic()
        _, received = on_terminal(words_for(service, folder), stdout=results.fileno())
        seconds = time.monotonic() - started_s
    # Drawn ten times a second and taken away at the end, however many recordings there are.
    assert 1 <= len(percentages(received)) <= 10 * seconds + 2
    assert received.count("\r ") <= 3


def test_a_failed_try_gives_its_bytes_back(service: StandIn, tmp_path: Path) -> None:
    # Larger than what the buffers on the way take, so that the frozen try is a failed one.
    folder = make_calls(tmp_path / "calls", 1, 64_000_000)
    service.script.append(Freeze(after_bytes=0))
    # The longest pause there can be before the second try, for the bar to be seen.
    longest = "import random\n\nrandom.uniform = lambda low, high: high\n"
    (tmp_path / "sitecustomize.py").write_text(longest)
    code, received = on_terminal(words_for(service, folder, "--timeout", 1), path=tmp_path)
    assert code == os.EX_OK
    before, after = (percentages(part) for part in received.split("next try in"))
    assert 5 < max(before) < 100
    assert min(after) == 0
    assert max(after) <= 100
    lines = screen(received)
    assert re.search(r"0\.wav: no progress .*; next try in 1\.0 s$", lines[0])
    assert len(lines) == 4


def test_quiet_is_without_a_bar(service: StandIn, tmp_path: Path) -> None:
    folder = make_calls(tmp_path / "calls", 1, 3_000)
    service.script += [Delay(0.7)]
    code, received = on_terminal(words_for(service, folder, "--quiet"))
    assert code == os.EX_OK
    assert not percentages(received)
    assert len(screen(received)) == 2


def test_off_a_terminal_there_is_nothing(service: StandIn, tmp_path: Path) -> None:
    folder = make_calls(tmp_path / "calls", 2, 3_000)
    service.script += [Delay(0.7)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words_for(service, folder)],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == os.EX_OK
    assert done.stderr == b"upload_grpc: 2 uploaded, 0 already there, 0 failed, 0 unknown\n"
    assert b"\r" not in done.stdout


def test_without_tqdm_there_is_no_bar_and_no_error(service: StandIn, tmp_path: Path) -> None:
    folder = make_calls(tmp_path / "calls", 2, 3_000)
    (tmp_path / "tqdm.py").write_text("raise ImportError('as if it were not installed')\n")
    service.script += [Delay(0.7)]
    code, received = on_terminal(words_for(service, folder), path=tmp_path)
    assert code == os.EX_OK
    assert screen(received)[2:] == [
        "upload_grpc: 2 uploaded, 0 already there, 0 failed, 0 unknown",
        "",
    ]
    assert not percentages(received)


def test_a_bar_does_not_go_back_before_the_result_is_there(
    service: StandIn, tmp_path: Path
) -> None:
    folder = make_calls(tmp_path / "calls", 2, 300_000)
    file = tmp_path / "ledger"
    service.script += [Delay(0.7), Delay(0.7)]

    def hold_up() -> None:
        """Keep the last result from being written down, and so from being shown, for a while."""
        deadline_s = time.monotonic() + 20
        while len(service.talks) < 2 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            time.sleep(1.5)

    holding = threading.Thread(target=hold_up)
    holding.start()
    code, received = on_terminal(words_for(service, folder, "--ledger", file))
    holding.join()
    assert code == os.EX_OK
    seen = percentages(received)
    assert seen == sorted(seen)
    assert seen[-1] == 100


def test_a_signal_takes_the_bar_away(service: StandIn, tmp_path: Path) -> None:
    folder = make_calls(tmp_path / "calls", 2, 300_000)
    service.script += [None, Freeze(after_bytes=0)]
    code, received = on_terminal(words_for(service, folder), interrupt_at=b"1 of 2 recordings")
    assert code == 128 + signal.SIGINT
    assert screen(received)[-2:] == ["upload_grpc: stopped by SIGINT", ""]
    assert not any("recordings:" in line for line in screen(received))
