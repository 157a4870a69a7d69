"""The ledger after a power cut, which leaves of each file what was synced, and nothing else.

The kernel tells the test of every fsync of the command before it is done, and lets the test answer
it (seccomp's user notification, Linux 5.9). What the ledger's files contain then is what the disk
has from then on; what is written later is lost in a power cut until the next fsync.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import re
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import ledgers
import pytest
from conftest import Outcome, Run, arguments, make_wav, sha256, start
from stand_in import At, Call, StandIn

RECORDINGS = 24
LEDGER_FILES = tuple(f"ledger.sqlite{suffix}" for suffix in ledgers.SUFFIXES)
# Numbers of system calls (asm/unistd.h); ARM64 has no unlink.
NAMES = ("seccomp", "fsync", "fdatasync", "pwrite64", "openat", "ftruncate", "unlinkat", "unlink")
NUMBERS = {
    "x86_64": (317, 74, 75, 18, 257, 77, 263, 87),
    "aarch64": (277, 82, 83, 68, 56, 46, 35),
}
SYSTEM_CALLS = dict(zip(NAMES, NUMBERS.get(platform.machine(), ()), strict=False))
KERNEL = [int(number) for number in re.findall(r"\d+", platform.release())]
NEEDS_SECCOMP = pytest.mark.skipif(
    not SYSTEM_CALLS or KERNEL < [5, 9],
    reason="a kernel that tells of system calls: Linux 5.9, x86-64 or ARM64",
)
pytestmark = NEEDS_SECCOMP

# Asks the kernel to tell of some system calls, hands over where it does, and becomes the command:
# classic BPF compares the number of a system call with each of them, and returns
# SECCOMP_RET_USER_NOTIF for them, SECCOMP_RET_ALLOW for all others. (send_fds imports array, which
# may be a file, and nobody could tell it to go on.)
ASK = """
import array, ctypes, os, socket, struct, sys
channel, seccomp, *numbers = map(int, sys.argv[1].split(","))
jumps = b"".join(struct.pack("HBBI", 0x15, len(numbers) - i, 0, number)
                 for i, number in enumerate(numbers))
rules = ctypes.create_string_buffer(struct.pack("HBBI", 0x20, 0, 0, 0) + jumps
    + struct.pack("HBBI" * 2, 6, 0, 0, 0x7FFF0000, 6, 0, 0, 0x7FC00000))
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)
listener = libc.syscall(seccomp, 1, 8, struct.pack("HP", len(numbers) + 3, ctypes.addressof(rules)))
if listener < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
socket.send_fds(socket.socket(fileno=channel), [b"x"], [listener])
os.execv(sys.argv[2], sys.argv[2:])
"""
NOTIFICATION = struct.Struct("=QIIiIQ6Q")
RECEIVE, ANSWER = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOCTL_NOTIF_SEND

# Takes the name of a system call, its thread and its arguments; returns whether it may be done.
Judge = Callable[[str, int, list[int]], bool]


def run_watched(words: Sequence[str], names: Sequence[str], judge: Judge) -> Outcome:
    """Run the command; ask the judge before each of these system calls is done, or fails: EIO."""
    names = [name for name in names if name in SYSTEM_CALLS]
    ours, theirs = socket.socketpair()
    numbers = (theirs.fileno(), *(SYSTEM_CALLS[name] for name in ("seccomp", *names)))
    ask = [sys.executable, "-c", ASK, ",".join(map(str, numbers))]
    with ours, start(*words, under=ask, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        _, listeners, _, _ = socket.recv_fds(ours, 1, 1)
        if not listeners:
            pytest.skip(f"this kernel does not tell of system calls: {process.communicate()[1]}")
        watching = threading.Thread(target=_watch, args=(listeners[0], judge))
        watching.start()
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
            watching.join()
    return Outcome(process.returncode, out, err)


def _watch(listener: int, judge: Judge) -> None:
    """Answer until the command has ended."""
    names = {number: name for name, number in SYSTEM_CALLS.items()}
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    try:
        while not poll.poll()[0][1] & select.POLLHUP:
            notification = bytearray(NOTIFICATION.size)
            with contextlib.suppress(FileNotFoundError):  # Its thread has ended meanwhile.
                fcntl.ioctl(listener, RECEIVE, notification)
                number, thread, _, call, _, _, *given = NOTIFICATION.unpack(notification)
                may_go_on = judge(names[call], thread, given)
                # SECCOMP_USER_NOTIF_FLAG_CONTINUE, or an error.
                answer = (0, 1) if may_go_on else (-errno.EIO, 0)
                fcntl.ioctl(listener, ANSWER, struct.pack("=QqiI", number, 0, *answer))
    finally:
        os.close(listener)


class Disk:
    """What the disk has of a ledger while a command runs, and what it had as each dialog was made.

    fails_after: it takes no more once there are so many dialogs.
    """

    def __init__(self, service: StandIn, fails_after: int = RECORDINGS + 1) -> None:
        self.seen: list[tuple[set[str], dict[str, bytes]]] = []  # Dialogs, and the disk.
        self._synced: dict[str, bytes] = {}
        self._service = service
        self._fails_after = fails_after
        self._failing = False
        self._one_at_a_time = threading.Lock()
        service.on_call = lambda call: At(answer=self._note)

    def run(self, *words: str) -> Outcome:
        return run_watched(words, ("fsync", "fdatasync"), self._sync)

    def _note(self, _: Call) -> None:
        with self._one_at_a_time:
            made = {each.sha256 for each in list(self._service.talks.values())}
            self.seen.append((made, dict(self._synced)))
            self._failing = len(self._service.talks) >= self._fails_after

    def _sync(self, _: str, thread: int, given: list[int]) -> bool:
        path = Path(os.readlink(f"/proc/{thread}/fd/{given[0]}"))
        if not self._failing and path.name in LEDGER_FILES:
            self._synced[path.name] = path.read_bytes()
        elif not self._failing and path.is_dir():  # Files removed before stay removed.
            self._synced = {n: data for n, data in self._synced.items() if (path / n).exists()}
        return not self._failing


@pytest.fixture
def calls(folder: Path) -> Path:
    for number in range(RECORDINGS):
        make_wav(folder / f"{number}.wav", 1_000)
    return folder


def test_after_a_power_cut_each_dialog_has_its_row_and_the_next_run_doubles_none(
    service: StandIn, calls: Path, tmp_path: Path, ledger: Path, upload: Run
) -> None:
    (tmp_path / "fields.json").write_text("{}")
    words = ("--audio-path", calls, "--meta-path", tmp_path / "fields.json", "--ledger")
    disk = Disk(service)
    outcome = disk.run(*arguments(service, *words, ledger, begun=False))
    assert "begins a new ledger" in outcome.err.splitlines()[0]
    assert (outcome.code, outcome.err.count("\n"), len(disk.seen)) == (os.EX_OK, 2, RECORDINGS)
    contents = set(map(sha256, calls.iterdir()))
    for number, (made, synced) in enumerate(list(disk.seen)):
        left = tmp_path / str(number)
        left.mkdir()
        for name, content in synced.items():
            (left / name).write_bytes(content)
        ledgers.check(left / ledger.name)
        found = ledgers.rows_by_content(left / ledger.name).items()
        states = {digest: row["state"] for digest, row in found}
        assert {states.get(digest) for digest in made} <= {"finishing", "uploaded"}
        assert {digest for digest, state in states.items() if state == "uploaded"} <= made
        if number % 10 == 7:
            service.talks.clear()
            unknown = {digest for digest, state in states.items() if state == "finishing"}
            outcome = upload("--quiet", *words, left / ledger.name)
            again = [talk.sha256 for talk in service.talks.values()]
            assert made.isdisjoint(again) and len(again) == len(set(again))
            assert made | set(again) | unknown == contents
            assert outcome.code == (os.EX_PROTOCOL if unknown else os.EX_OK)
            assert outcome.err.count("--retry-unknown") == len(unknown)


def test_on_a_disk_that_does_not_sync_nothing_is_sent_to_its_end(
    service: StandIn, calls: Path, ledger: Path
) -> None:
    words = ("--audio-path", calls, "--jobs", 1, "--ledger", ledger)
    outcome = Disk(service, fails_after=1).run(*arguments(service, *words, begun=False))
    assert outcome.code == os.EX_TEMPFAIL
    assert len(service.talks) == 1 and next(iter(service.talks)) in outcome.out
    assert "ledger.sqlite: " in outcome.err
