"""Mechanisms that nobody would miss until a day when much goes wrong at once.

Each of these tests fails if what it is about is taken out of the program.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from conftest import Run, arguments, ended, interrupt, sparse_wav, start, wait_for
from fault_proxy import FaultProxy
from stand_in import At, Call, Freeze, StandIn, Step

AGAIN = 75
# More than all buffers between the program and a peer that does not read.
LARGE_BYTES = 60_000_000
# In which a run comes to its end here many times over, even on a busy machine.
SOON_S = 20
# What a run would wait for that does not go on without a dead connection.
LONG_S = 100


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = sparse_wav(tmp_path / "a-large.wav", LARGE_BYTES)
    path.with_suffix(".json").write_text("{}")
    return path


# --- The beginning and the end of the process ----------------------------------------


def test_modules_that_grpc_does_not_need_are_not_loaded(command: Run, call: Path) -> None:
    outcome = command("--audio-path", call, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert outcome.code == 0
    loaded = [line.rpartition("|")[2].strip() for line in outcome.err.splitlines()]
    # What stands before "site" was loaded by the interpreter, or by what is installed there.
    ours = set(loaded[loaded.index("site") + 1 :])
    assert {"grpc", "grpc._channel", "google.protobuf.message"} <= ours
    unused = {"asyncio", "calendar", "grpc.aio", "inspect", "locale"}
    unused |= {"google.protobuf.internal.python_message"}
    # What Python 3.14's own traceback needs is loaded with it.
    code = "import traceback, sys; print(*sys.modules)"
    needed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not unused & ours - {*needed.stdout.split()}


def test_nothing_comes_after_the_last_line(
    command: Run, service: StandIn, large: Path, tmp_path: Path
) -> None:
    """Neither does the interpreter clean up, nor is a thread waited for that hangs in a read.

    The second try reads from a FIFO into which nobody writes.
    """
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def replace(_: Call) -> Step:
        fifo.rename(large)
        return Freeze(after_bytes=1)

    service.script.append(At(audio=replace))
    with open(fifo, "r+b", buffering=0):
        # The interpreter names what it does, also in its cleanup.
        words = ("--audio-path", large, "--timeout", 1, "--retries", 1, "--quiet")
        outcome = command(*words, env={"PYTHONVERBOSE": "1"})
    assert outcome.code == AGAIN
    assert "import 'argparse'" in outcome.err
    last = outcome.err.splitlines()[-1]
    assert last.startswith(f"upload_grpc: {large}: ") and "no progress for 1 s" in last


# --- A service of bare HTTP/2 ----------------------------------------------------------

# RFC 9113, 6: kinds of frames, flags, and the largest window.
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 7, 8
END_STREAM, END_HEADERS = 1, 4
INITIAL_WINDOW_SIZE = 4
WINDOW_BYTES = 2**31 - 1
PREFACE_BYTES = 24


def header(name: str, value: str) -> bytes:
    """Write a header as HPACK does without any compression (RFC 7541, 6.2.2)."""
    texts = (text.encode() for text in (name, value))
    return b"\0" + b"".join(bytes([len(text)]) + text for text in texts)


GRPC = header(":status", "200") + header("content-type", "application/grpc")


class Peer:
    """A service that does with a call what gRPC's own server never would.

    It lets calls send far more than it reads. serve: what it does with a connection once a call
    has begun on it.
    """

    def __init__(
        self, certificate: trustme.LeafCert, serve: Callable[[PeerConnection], object]
    ) -> None:
        self._serve = serve
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.set_alpn_protocols(["h2"])
        certificate.configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.endpoint = f"localhost:{self.port}"
        self._threads = [threading.Thread(target=self._accept)]
        self.connections: list[PeerConnection] = []

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # Shut down.
            while True:
                plain, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._begin, args=(plain,)))
                self._threads[-1].start()

    def _begin(self, plain: socket.socket) -> None:
        wrap = self._context.wrap_socket
        with contextlib.suppress(OSError), plain, wrap(plain, server_side=True) as secure:
            connection = PeerConnection(secure)
            self.connections.append(connection)
            connection.wait_for_call()
            self._serve(connection)

    def __enter__(self) -> Peer:
        self._threads[0].start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            connection.shut_down()
        for thread in self._threads:
            thread.join()


class PeerConnection:
    """One connection to a Peer; taken_bytes: of audio and all that is around it."""

    def __init__(self, secure: ssl.SSLSocket) -> None:
        self.taken_bytes = 0
        self.called = threading.Event()
        self._secure = secure
        self._stream = 0

    def wait_for_call(self) -> None:
        """Open the windows wide, and read up to the headers of a call."""
        setting = INITIAL_WINDOW_SIZE.to_bytes(2, "big") + WINDOW_BYTES.to_bytes(4, "big")
        self.send(0, SETTINGS, 0, setting)
        self.send(0, WINDOW_UPDATE, 0, (WINDOW_BYTES - 65_535).to_bytes(4, "big"))
        self._read(PREFACE_BYTES)
        kind = None
        while kind != HEADERS:
            kind, _, self._stream, _ = self.read_frame()
        self.called.set()

    def end(self, trailers: bytes) -> None:
        """End the call with no more than these."""
        self.send(self._stream, HEADERS, END_HEADERS | END_STREAM, trailers)

    def take(self, size_bytes: int) -> bool:
        """Read so much, waiting for it; return whether more may come."""
        until_bytes = self.taken_bytes + size_bytes
        while self.taken_bytes < until_bytes:
            if not (data := self._secure.recv(size_bytes)):
                return False
            self.taken_bytes += len(data)
        return True

    def shut_down(self) -> None:
        with contextlib.suppress(OSError):
            self._secure.shutdown(socket.SHUT_RDWR)

    def read_frame(self) -> tuple[int, int, int, int]:
        """Read a frame; return its kind, flags and stream, and the size of its content."""
        head = self._read(9)
        size_bytes = int.from_bytes(head[:3], "big")
        self._read(size_bytes)
        return head[3], head[4], int.from_bytes(head[5:], "big"), size_bytes

    def _read(self, size_bytes: int) -> bytes:
        content = b""
        while len(content) < size_bytes:
            if not (data := self._secure.recv(size_bytes - len(content))):
                raise OSError("closed by the program")
            content += data
        return content

    def send(self, stream: int, kind: int, flags: int, content: bytes) -> None:
        head = len(content).to_bytes(3, "big") + bytes([kind, flags])
        self._secure.sendall(head + stream.to_bytes(4, "big") + content)


# --- Connections that stand still ----------------------------------------------------


@contextlib.contextmanager
def stuck(
    service: StandIn, *words: object
) -> Iterator[tuple[subprocess.Popen[str], FaultProxy, PeerConnection]]:
    """Start the command, and wait until it can write no more to the only connection there is.

    Connections made from then on lead to the service.
    """
    with contextlib.ExitStack() as undo:
        over = threading.Event()

        def read_nothing(connection: PeerConnection) -> None:
            over.wait()

        peer = undo.enter_context(Peer(service.ca.issue_cert("localhost"), read_nothing))
        undo.callback(over.set)
        proxy = undo.enter_context(FaultProxy(peer.port))
        given = arguments(service, *words, "--endpoint", proxy.endpoint, "--timeout", LONG_S)
        process = undo.enter_context(start(*given))
        wait_for(lambda: peer.connections and peer.connections[0].called.is_set())
        before, forwarded = -1, 0
        while before < forwarded:
            time.sleep(0.3)
            before, forwarded = forwarded, proxy.to_server
        assert 0 < forwarded < LARGE_BYTES
        proxy.upstream_port = service.port
        yield process, proxy, peer.connections[0]


def test_a_connection_that_stands_still_is_left_behind(
    service: StandIn, large: Path, call: Path
) -> None:
    """The service refused a call, and reads no more: gRPC's close() would wait for the write."""
    words = ("--audio-path", large, call, "--jobs", 1, "--retries", 1, "--quiet")
    with stuck(service, *words) as (process, proxy, connection):
        connection.end(GRPC + header("grpc-status", "14"))  # UNAVAILABLE.
        outcome = ended(process, SOON_S)
        assert len(proxy.connections) == 2
    assert (outcome.code, outcome.err) == (0, "")
    assert [line.rpartition(" ")[2] for line in outcome.out.splitlines()] == list(service.talks)
    sizes = [path.stat().st_size for path in (large, call)]
    assert [talk.size for talk in service.talks.values()] == sizes


def test_a_connection_that_stands_still_does_not_hold_up_the_end(
    service: StandIn, large: Path, call: Path
) -> None:
    """The worker ends by itself, that is, so that the recordings not tried are counted."""
    words = ("--audio-path", large, call, "--jobs", 1, "--quiet")
    with stuck(service, *words) as (process, _, _):
        outcome = interrupt(process, "SIGTERM", limit_s=SOON_S)
    assert outcome.out == ""
    failed, last = outcome.err.splitlines()
    assert f"{large}: the upload failed before it was complete" in failed
    assert "1 failed, 0 unknown, 1 not tried" in last
