"""The ledger after a power cut, which leaves of each file what was synced, and nothing else.

The kernel tells the test of every fsync of the command before it is done, and lets the test answer
it (seccomp's user notification, Linux 5.9). What the ledger's files contain then is what the disk
has from then on; what is written later is lost in a power cut until the next fsync.
"""

from __future__ import annotations

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
from pathlib import Path

import ledgers
import pytest
from conftest import Run, arguments, make_wav, sha256, start
from stand_in import At, Call, StandIn

RECORDINGS = 24
LEDGER_FILES = tuple(f"ledger.sqlite{suffix}" for suffix in ledgers.SUFFIXES)
# Numbers of the system calls seccomp, fsync and fdatasync (asm/unistd.h).
CALLS = {"x86_64": (317, 74, 75), "aarch64": (277, 82, 83)}.get(platform.machine(), ())
KERNEL = [int(number) for number in re.findall(r"\d+", platform.release())]

pytestmark = pytest.mark.skipif(
    not CALLS or KERNEL < [5, 9], reason="a kernel that tells of fsync: Linux 5.9, x86-64 or ARM64"
)

# Asks the kernel to tell of fsync, hands over where it does, and becomes the command: five
# instructions of classic BPF compare the number of a system call with two, and return
# SECCOMP_RET_USER_NOTIF for them, SECCOMP_RET_ALLOW for all others.
ASK = """
import ctypes, os, socket, struct, sys
seccomp, fsync, fdatasync = map(int, sys.argv[2:5])
rules = ctypes.create_string_buffer(struct.pack("HBBI" * 5, 0x20, 0, 0, 0, 0x15, 1, 0, fsync,
    0x15, 0, 1, fdatasync, 6, 0, 0, 0x7FC00000, 6, 0, 0, 0x7FFF0000))
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)
listener = libc.syscall(seccomp, 1, 8, struct.pack("HP", 5, ctypes.addressof(rules)))
if listener < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"x"], [listener])
os.execv(sys.argv[5], sys.argv[5:])
"""
NOTIFICATION = struct.Struct("=QIIiIQ6Q")
RECEIVE, ANSWER = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOCTL_NOTIF_SEND


class Disk:
    """What the disk has of a ledger while a command runs, and whether it takes more."""

    def __init__(self) -> None:
        self.synced: dict[str, bytes] = {}
        self.failing = False

    def run(self, *words: str) -> tuple[int, str, str]:
        """Run the command; return its exit code, stdout and stderr."""
        ours, theirs = socket.socketpair()
        ask = [sys.executable, "-c", ASK, str(theirs.fileno()), *map(str, CALLS)]
        with ours, start(*words, under=ask, pass_fds=[theirs.fileno()]) as process:
            theirs.close()
            _, listeners, _, _ = socket.recv_fds(ours, 1, 1)
            if not listeners:
                pytest.skip(f"this kernel does not tell of fsync: {process.communicate()[1]}")
            watching = threading.Thread(target=self._watch, args=listeners)
            watching.start()
            try:
                out, err = process.communicate(timeout=60)
            finally:
                process.kill()
                watching.join()
        return process.returncode, out, err

    def _watch(self, listener: int) -> None:
        """Answer each fsync until the command has ended."""
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        try:
            while not poll.poll()[0][1] & select.POLLHUP:
                notification = bytearray(NOTIFICATION.size)
                fcntl.ioctl(listener, RECEIVE, notification)
                number, thread, *_, descriptor, _, _, _, _, _ = NOTIFICATION.unpack(notification)
                if not self.failing:
                    self._sync(Path(os.readlink(f"/proc/{thread}/fd/{descriptor}")))
                # An error, or SECCOMP_USER_NOTIF_FLAG_CONTINUE.
                answer = (-errno.EIO, 0) if self.failing else (0, 1)
                fcntl.ioctl(listener, ANSWER, struct.pack("=QqiI", number, 0, *answer))
        finally:
            os.close(listener)

    def _sync(self, path: Path) -> None:
        if path.name in LEDGER_FILES:
            self.synced[path.name] = path.read_bytes()
        elif path.is_dir():  # Files removed before stay removed.
            self.synced = {n: data for n, data in self.synced.items() if (path / n).exists()}


class Cuts:
    """Notes, as each dialog is made, which there are, and what the disk has at that moment."""

    def __init__(self, service: StandIn, fails_after: int = RECORDINGS + 1) -> None:
        self.disk = Disk()
        self.seen: list[tuple[set[str], dict[str, bytes]]] = []
        self._service = service
        self._fails_after = fails_after
        self._one_at_a_time = threading.Lock()
        service.on_call = lambda call: At(answer=self._note)

    def _note(self, _: Call) -> None:
        with self._one_at_a_time:
            made = {each.sha256 for each in list(self._service.talks.values())}
            self.seen.append((made, dict(self.disk.synced)))
            self.disk.failing = len(self._service.talks) >= self._fails_after


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    folder = tmp_path / "calls"
    folder.mkdir()
    for number in range(RECORDINGS):
        make_wav(folder / f"{number}.wav", 1_000)
    return folder


def restore(synced: dict[str, bytes], folder: Path) -> tuple[Path, dict[str, str]]:
    """Write a ledger as a power cut has left it; return its path and the states by content."""
    folder.mkdir()
    for name, content in synced.items():
        (folder / name).write_bytes(content)
    ledger = folder / "ledger.sqlite"
    ledgers.check(ledger)
    found = ledgers.rows_by_content(ledger).items()
    return ledger, {digest: row["state"] for digest, row in found}


def test_after_a_power_cut_each_dialog_has_its_row_and_the_next_run_doubles_none(
    service: StandIn, calls: Path, tmp_path: Path, upload: Run
) -> None:
    metadata = tmp_path / "fields.json"
    metadata.write_text("{}")
    words = ("--audio-path", calls, "--meta-path", metadata, "--ledger")
    cuts = Cuts(service)
    ledger = tmp_path / "ledger.sqlite"
    code, _, err = cuts.disk.run(*arguments(service, *words, ledger, begun=False))
    assert "begins a new ledger" in err.splitlines()[0]
    assert (code, err.count("\n"), len(cuts.seen)) == (os.EX_OK, 2, RECORDINGS)
    contents = set(map(sha256, calls.iterdir()))
    for number, (made, synced) in enumerate(list(cuts.seen)):
        ledger, states = restore(synced, tmp_path / str(number))
        assert {states.get(digest) for digest in made} <= {"finishing", "uploaded"}
        assert {digest for digest, state in states.items() if state == "uploaded"} <= made
        if number % 10 == 7:
            service.talks.clear()
            unknown = {digest for digest, state in states.items() if state == "finishing"}
            outcome = upload("--quiet", *words, ledger)
            again = [talk.sha256 for talk in service.talks.values()]
            assert made.isdisjoint(again) and len(again) == len(set(again))
            assert made | set(again) | unknown == contents
            assert outcome.code == (os.EX_PROTOCOL if unknown else os.EX_OK)
            assert outcome.err.count("--retry-unknown") == len(unknown)


def test_on_a_disk_that_does_not_sync_nothing_is_sent_to_its_end(
    service: StandIn, calls: Path, tmp_path: Path
) -> None:
    cuts = Cuts(service, fails_after=1)
    words = ("--audio-path", calls, "--jobs", 1, "--ledger", tmp_path / "ledger.sqlite")
    code, out, err = cuts.disk.run(*arguments(service, *words, begun=False))
    assert code == os.EX_TEMPFAIL
    assert len(service.talks) == 1 and next(iter(service.talks)) in out
    assert "ledger.sqlite: " in err
