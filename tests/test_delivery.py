"""What becomes of a recording when something breaks on its way.

Each promise about delivery is tried with a real fault: a connection that is cut or frozen, a
service that fails or restarts, a file that changes, a signal. What the program reports is
compared with what the service has in its store.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import re
import signal
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import ledgers
import pytest
import trustme
from conftest import (
    KEY,
    LONG_BYTES,
    SINGLE,
    STREAM,
    WAYS,
    Outcome,
    Run,
    Waits,
    Way,
    arguments,
    make_wav,
    sha256,
    start,
    wait_for,
    when,
)
from fault_proxy import Fault, FaultProxy
from stand_in import AnswerEarly, At, Delay, EmptyAnswer, Fail, Freeze, Slow, StandIn, stored_talks

import upload_grpc

REJECTED, AGAIN, UNKNOWN = 65, 75, 76

# More than gRPC would repeat from a buffer of its own (256 KiB).
SHORT_BYTES = 600_000


# --- What the tests share ------------------------------------------------------------


@pytest.fixture
def proxy(service: StandIn) -> Iterator[FaultProxy]:
    with FaultProxy(service.port) as fault_proxy:
        yield fault_proxy


@pytest.fixture
def short(tmp_path: Path) -> Path:
    return make_recording(tmp_path / "short.wav", SHORT_BYTES)


@pytest.fixture
def long(tmp_path: Path) -> Path:
    return make_recording(tmp_path / "long.wav", LONG_BYTES)


def make_recording(path: Path, size_bytes: int) -> Path:
    path.with_suffix(".json").write_text("{}")
    return make_wav(path, size_bytes)


Send = Callable[..., Outcome]


@pytest.fixture
def send(upload: Run, proxy: FaultProxy, service: StandIn, waits: Waits) -> Send:
    """Upload; where there are faults, over connections that suffer them in turn.

    Without a ledger quietly; with one, what only tells of other attempts is left out.
    """
    waits(backoff_limit=0.02)

    def run(*words: object, faults: tuple[Fault, ...] = ()) -> Outcome:
        if faults:
            del proxy.connections[:]
            proxy.plan = faults
            words = (*words, "--endpoint", proxy.endpoint)
        quiet = () if "--ledger" in words else ("--quiet",)
        outcome = upload(*quiet, "--audio-path", *words)
        lines = outcome.err.splitlines(keepends=True)
        said = "".join(each for each in lines if not re.search(": sent again; |; next at", each))
        outcome = Outcome(outcome.code, outcome.out, said)
        proxy.cut_all()  # What is frozen would keep the service waiting.
        service.wait_until_idle()
        return outcome

    return run


def arriving(service: StandIn) -> bool:
    return bool(service.calls and service.calls[0].bytes_received)


def sent_ids(service: StandIn) -> list[str]:
    return [call.client_request_id for call in service.calls]


def assert_uploaded(outcome: Outcome, service: StandIn, recording: Path) -> None:
    """Success was reported, and the service has the whole recording once."""
    [talk] = service.talks.values()
    assert talk.sha256 == sha256(recording)
    assert outcome == Outcome(0, f"Dialog ID: {talk.talk_id}\n", "")


def assert_failed(outcome: Outcome, code: int, recording: Path, *facts: str) -> None:
    """No dialog was reported; one line on stderr names the recording and all facts."""
    assert (outcome.code, outcome.out) == (code, "")
    assert len(outcome.err.splitlines()) == 1, outcome.err
    for fact in (str(recording), *facts):
        assert fact in outcome.err
    assert ("; if it is not there, " in outcome.err) == (code == UNKNOWN)


# --- A connection that breaks --------------------------------------------------------

# Byte counts of the TLS handshake, of the call's headers, and of the recording.
EARLY = {
    "cut in the handshake": Fault(cut_to_server=100),
    "cut at the service's certificate": Fault(cut_to_client=700, rst=False),
    "cut after the handshake": Fault(cut_to_server=2_000, rst=False),
    "cut in the recording": Fault(cut_to_server=300_000),
    "cut far in the recording": Fault(cut_to_server=2_000_000, rst=False),
    "silent from the start": Fault(silent=True),
    "frozen in the handshake": Fault(freeze_to_server=100),
    "frozen in the recording": Fault(freeze_to_server=300_000),
    "frozen for the answers": Fault(freeze_to_client=2_500),
}


@pytest.mark.parametrize("place", EARLY)
def test_a_break_before_the_commit_point(
    send: Send, service: StandIn, proxy: FaultProxy, long: Path, ledger: Path, place: str
) -> None:
    words = (long, "--timeout", 0.4, "--ledger", ledger)
    outcome = send(*words, "--retries", 0, faults=(EARLY[place],))
    assert_failed(outcome, AGAIN, long, *sent_ids(service))
    assert stored_talks(service.store) == []
    assert ledgers.states(ledger) == ["failed"]
    assert_uploaded(send(*words, faults=(EARLY[place],)), service, long)
    assert len(proxy.connections) == 2


@pytest.mark.parametrize("made", [True, False], ids=["made, RST", "not made, FIN"])
@WAYS
def test_a_cut_after_the_commit_point(
    send: Send, service: StandIn, proxy: FaultProxy, short: Path, ledger: Path, made: bool,
    way: Way,
) -> None:  # fmt: skip
    service.script.append(Freeze(store=made))
    words = (short, "--ledger", ledger, *way)

    def has_all() -> bool:
        if way == SINGLE or made:  # A single message is not looked at before it is complete.
            return bool(service.talks if made else service.calls)
        return bool(service.calls and service.calls[0].half_closed)

    with when(has_all, lambda: proxy.cut_all(rst=made)):
        outcome = send(*words, faults=(Fault(),))
    assert_failed(outcome, UNKNOWN, short, "UNAVAILABLE", *sent_ids(service))
    assert_failed(send(*words), UNKNOWN, short)
    assert len(service.calls) == 1
    assert len(stored_talks(service.store)) == made


def test_a_single_message_that_is_cut(send: Send, service: StandIn, short: Path) -> None:
    outcome = send(short, *SINGLE, faults=(Fault(cut_to_server=300_000),))
    assert_failed(outcome, UNKNOWN, short, "UNAVAILABLE")
    assert stored_talks(service.store) == []
    outcome = send(short, *SINGLE, faults=(EARLY["cut in the handshake"],))
    assert_uploaded(outcome, service, short)


@WAYS
def test_a_service_that_never_answers(send: Send, service: StandIn, short: Path, way: Way) -> None:
    service.script.append(Freeze(store=True))
    started_s = time.monotonic()
    outcome = send(short, "--timeout", 0.4, *way)
    assert 0.4 < time.monotonic() - started_s < 2
    assert_failed(outcome, UNKNOWN, short, "0.4 s", *sent_ids(service))
    assert len(service.calls) == len(stored_talks(service.store)) == 1


def test_one_freezes_while_others_move(upload: Run, service: StandIn, tmp_path: Path) -> None:
    paths = [make_wav(tmp_path / f"{number}.wav", LONG_BYTES) for number in range(3)]
    service.script += [Freeze(300_000), Slow(8_000_000), Slow(8_000_000)]
    words = ("--jobs", 2, "--timeout", 0.4, "--retries", 0, "--format", "json")
    outcome = upload("--audio-path", *paths, *words)
    codes = [json.loads(line)["exit_code"] for line in outcome.out.splitlines()]
    assert sorted(codes) == [0, 0, AGAIN]
    assert codes[-1] == 0, "it was given up last"


@WAYS
def test_a_slow_line_is_not_cut(send: Send, service: StandIn, short: Path, way: Way) -> None:
    started_s = time.monotonic()
    line = Fault(bytes_per_s=SHORT_BYTES / 4)
    # Much longer than a thread may have to wait for a busy core, and much less than it takes.
    outcome = send(short, "--timeout", 1.5, "--retries", 0, *way, faults=(line,))
    assert time.monotonic() - started_s > 3
    assert_uploaded(outcome, service, short)


# --- What the service answers --------------------------------------------------------

# The service itself refused the recording: no dialog, and no other try, whenever that was.
FINAL = {
    **dict.fromkeys(("INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE"), 65),
    **dict.fromkeys(("UNAUTHENTICATED", "PERMISSION_DENIED"), 77),
    **dict.fromkeys(("NOT_FOUND", "UNIMPLEMENTED"), 78),
    "ALREADY_EXISTS": 65,
}
# Anything between us and the service may have made these, too: no dialog before the commit
# point, perhaps one after it.
UNCLEAR = (
    *("CANCELLED", "UNKNOWN", "DEADLINE_EXCEEDED", "ABORTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
)


def test_every_status_has_its_place_in_these_tests() -> None:
    known = {*FINAL, *UNCLEAR, "RESOURCE_EXHAUSTED", "OK"}
    assert known == {code.name for code in grpc.StatusCode}


@pytest.mark.parametrize("status", FINAL)
def test_a_refusal_by_the_service_is_final(
    send: Send, service: StandIn, short: Path, long: Path, status: str
) -> None:
    details = f"refused the key {KEY} today"
    for recording, way, after_bytes in ((long, (), 0), (short, (), None), (short, SINGLE, None)):
        service.script.append(Fail(grpc.StatusCode[status], details, after_bytes))
        outcome = send(recording, *way)
        assert_failed(outcome, FINAL[status], recording, status, "refused", *sent_ids(service))
        call = service.calls.pop()
        assert call.request_id in outcome.err and call.trace_id in outcome.err
        assert service.calls == []
        assert KEY not in outcome.err
    assert stored_talks(service.store) == []


@pytest.mark.parametrize("status", UNCLEAR)
def test_an_unclear_status_before_and_after_the_commit_point(
    send: Send, service: StandIn, short: Path, long: Path, status: str
) -> None:
    for way in (STREAM, SINGLE):
        service.script.append(Fail(grpc.StatusCode[status], "as scripted"))
        outcome = send(short, *way)
        assert_failed(outcome, UNKNOWN, short, status, "as scripted", *sent_ids(service))
        service.calls.pop()
        assert service.calls == []
    service.script.append(Fail(grpc.StatusCode[status], after_bytes=0))
    assert_uploaded(send(long), service, long)
    assert len(service.calls) == 2


def busy(after_bytes: int | None = None) -> Fail:
    return Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", after_bytes)


@WAYS
def test_a_used_up_quota_is_no_dialog_wherever_it_comes(
    send: Send, service: StandIn, short: Path, way: Way
) -> None:
    service.script += [busy(), busy(0)]
    assert_uploaded(send(short, *way), service, short)
    assert len(service.calls) == 3


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("retries", [0, 2])
def test_tries_come_to_an_end_and_each_has_its_own_id(
    upload: Run, service: StandIn, short: Path, retries: int
) -> None:
    service.script += [busy()] * 9
    outcome = upload("--audio-path", short, "--retries", retries)
    *pauses, last = outcome.err.splitlines()
    assert (outcome.code, outcome.out, len(pauses)) == (AGAIN, "", retries)
    for line in (*pauses, last):
        assert str(short) in line and "busy" in line and "RESOURCE_EXHAUSTED" in line
    assert len(set(sent_ids(service))) == len(service.calls) == retries + 1
    assert sent_ids(service)[-1] in last


def test_between_tries_there_is_a_pause(
    upload: Run, service: StandIn, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []

    def longest(low: float, high: float) -> float:
        limits.append((low, high))
        return min(high, 0.3)

    monkeypatch.setattr(random, "uniform", longest)
    service.script += [busy()] * 2
    begun_s = time.monotonic()
    assert_uploaded(upload("--quiet", "--audio-path", short), service, short)
    assert time.monotonic() - begun_s >= 0.6
    assert limits == [(0, 1), (0, 2)], "each pause may be twice as long as the one before"


def test_tries_that_failed_keep_no_connection(send: Send, service: StandIn, short: Path) -> None:
    """A bug that once was: hundreds of connections stayed open on a bad day."""

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    service.script += [busy(0)] * 30
    counts = [open_files()]
    gc.disable()  # The collector must not be needed to close them.
    try:
        with when(lambda: len(service.calls) > 30, lambda: counts.append(open_files())):
            assert_uploaded(send(short, "--retries", 30), service, short)
    finally:
        gc.enable()
    assert counts[1] - counts[0] < 20


def test_a_message_too_large_is_refused(
    send: Send, short: Path, ledger: Path, tmp_path: Path
) -> None:
    limit = (("grpc.max_receive_message_length", 300_000),)
    with StandIn(tmp_path / "small", options=limit) as small:
        to = ("--ledger", ledger, "--endpoint", small.endpoint, "--ca-file", small.ca_file)
        outcome = send(short, *to, *SINGLE)
        assert_failed(outcome, REJECTED, short, "RESOURCE_EXHAUSTED", *SINGLE)
        assert ledgers.states(ledger) == ["rejected"]
        # It goes another way now: that it was rejected on the first says nothing.
        assert_uploaded(send(short, *to), small, short)


# --- Answers that are none -----------------------------------------------------------


ANOTHER = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:10.0.0.1:443"
NO_ANSWERS: dict[str, tuple[Fail | EmptyAnswer, str]] = {
    "no dialog ID": (EmptyAnswer(store=True), "dialog"),
    # A bug that once was: a service has stored the recording, and cannot reach another one.
    "words about another connection": (
        Fail(grpc.StatusCode.UNAVAILABLE, ANOTHER, store=True, ids=False),
        ANOTHER,
    ),
    # A client takes 16 KiB, and makes a RESOURCE_EXHAUSTED of its own of more.
    "trailers too large": (
        Fail(grpc.StatusCode.ABORTED, trailing=(("x-debug", "y" * 40_000),), store=True),
        "RESOURCE_EXHAUSTED",
    ),
}


@pytest.mark.parametrize("answer", NO_ANSWERS)
@WAYS
def test_an_answer_that_is_none_is_neither_success_nor_refusal(
    send: Send, service: StandIn, short: Path, way: Way, answer: str
) -> None:
    step, fact = NO_ANSWERS[answer]
    service.script.append(step)
    assert_failed(send(short, *way), UNKNOWN, short, fact, *sent_ids(service))
    assert len(service.calls) == len(stored_talks(service.store)) == 1


def test_an_answer_before_the_end_is_no_success(send: Send, service: StandIn, long: Path) -> None:
    service.script.append(AnswerEarly(300_000))
    assert_failed(send(long), UNKNOWN, long, *sent_ids(service))
    assert len(service.calls) == 1


# Frames of HTTP/2: kind, flags, content (RFC 9113, 6).
Frame = tuple[int, int, bytes]
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4
EMPTY_MESSAGE_BYTES = 5


class BarePeer:
    """The barest HTTP/2 service: takes a short recording whole, then sends the frames given.

    A health check comes before a single message; that is answered with UNIMPLEMENTED.
    """

    def __init__(self, certificate: trustme.LeafCert, *frames: Frame) -> None:
        self.taken = 0
        self._frames = frames
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.set_alpn_protocols(["h2"])
        certificate.configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"localhost:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # Shut down.
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as open_files:
            connection = self._context.wrap_socket(plain, server_side=True)
            open_files.enter_context(connection)
            file = open_files.enter_context(connection.makefile("rwb", buffering=0))
            file.read(len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))

            def send(stream: int, kind: int, flags: int, content: bytes) -> None:
                head = len(content).to_bytes(3, "big") + bytes([kind, flags])
                connection.sendall(head + stream.to_bytes(4, "big") + content)

            send(0, SETTINGS, 0, b"")
            taken_bytes: Counter[int] = Counter()  # by stream
            while len(head := file.read(9)) == 9:
                content = file.read(int.from_bytes(head[:3], "big"))
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
                taken_bytes[stream] += len(content) if kind == DATA else 0
                if kind in (DATA, HEADERS) and flags & END_STREAM:
                    if taken_bytes[stream] <= EMPTY_MESSAGE_BYTES:
                        send(stream, *UNIMPLEMENTED)
                        continue
                    self.taken += 1
                    for frame in self._frames:
                        send(0 if frame[0] == GOAWAY else stream, *frame)
                    if self._frames[-1][0] == GOAWAY:
                        return

    def __enter__(self) -> BarePeer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def header(name: str, value: str) -> bytes:
    """Write a header as HPACK does without any compression (RFC 7541, 6.2.2)."""
    texts = (text.encode() for text in (name, value))
    return b"\0" + b"".join(bytes([len(text)]) + text for text in texts)


def trailers(content: bytes) -> Frame:
    return (HEADERS, END_HEADERS | END_STREAM, content)


def goaway(last_stream: int, code: int) -> Frame:
    return (GOAWAY, 0, last_stream.to_bytes(4, "big") + code.to_bytes(4, "big") + b"enough")


GRPC = header(":status", "200") + header("content-type", "application/grpc")
BEGIN: Frame = (HEADERS, END_HEADERS, GRPC)
UNIMPLEMENTED = trailers(GRPC + header("grpc-status", "12"))
# gRPC makes a status of its own of each, such as PERMISSION_DENIED, which no service has said.
ENDINGS: dict[str, list[Frame]] = {
    # 7 says that it was not looked at: gRPC itself would send it again, were that not off.
    **{
        f"RST_STREAM {code}": [(RST_STREAM, 0, bytes([0, 0, 0, code]))]
        for code in (2, 7, 8, 11, 12)
    },
    "GOAWAY, too many pings": [goaway(5, 11)],
    "GOAWAY, not looked at": [goaway(0, 11)],
    # From a proxy, gateway or firewall, whose service perhaps has the recording.
    **{
        status: [trailers(header(":status", status))]
        for status in ("401", "403", "404", "413", "429", "502", "503")
    },
    "no trailers": [BEGIN, (DATA, END_STREAM, b"")],
    "no status": [trailers(GRPC + header("grpc-status", "no"))],
    "OK without a message": [BEGIN, trailers(header("grpc-status", "0"))],
    # A client takes 4 MiB.
    "a message too large": [BEGIN, (DATA, 0, b"\0" + (100_000_000).to_bytes(4, "big"))],
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_end_that_is_no_answer(send: Send, service: StandIn, call: Path, ending: str) -> None:
    """The recording had arrived; small enough for gRPC to repeat it from a buffer of its own."""
    for way in (STREAM, SINGLE):
        with BarePeer(service.ca.issue_cert("localhost"), *ENDINGS[ending]) as peer:
            outcome = send(call, "--endpoint", peer.endpoint, "--timeout", 10, *way)
        assert_failed(outcome, UNKNOWN, call)
        assert "10 s" not in outcome.err, "it was taken for no end at all"
        assert peer.taken == 1


# --- A service that goes away between recordings -------------------------------------


@WAYS
def test_a_restart_between_recordings(
    send: Send, service: StandIn, short: Path, long: Path, way: Way
) -> None:
    """A service that stops in good order answers what it has; the next call finds nobody."""
    service.script.append(Delay(0.2))

    def restart() -> None:
        service.stop(10)
        time.sleep(0.1)
        service.start()

    with when(lambda: service.talks, restart):
        outcome = send(long, short, "--jobs", 1, "--retries", 50, *way)
    assert (outcome.code, outcome.err) == (0, "")
    assert len(outcome.out.splitlines()) == len(service.talks) == len(service.calls) == 2


# --- A file that changes while it is sent --------------------------------------------


def append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(bytes(1000))


def overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"\1" * 1000)


def replace(path: Path) -> None:
    """Put another file in its place, as like as can be."""
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    status = path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


def break_reading(path: Path, other: str) -> None:
    """Give whoever has the file open something else to read, as a broken disk does."""
    descriptor = os.open(other, os.O_RDONLY)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == str(path):
                os.dup2(descriptor, int(name))
    os.close(descriptor)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "grew": append,
    "shrank": lambda path: os.truncate(path, LONG_BYTES // 2),
    "overwritten": overwrite,
    "replaced": replace,
    "removed": os.unlink,
    "unreadable": lambda path: break_reading(path, "/"),  # A folder: EISDIR.
    "ends early": lambda path: break_reading(path, os.devnull),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_under_way(
    send: Send, service: StandIn, long: Path, ledger: Path, change: str
) -> None:
    service.script.append(At(audio=lambda _: CHANGES[change](long)))
    outcome = send(long, "--ledger", ledger)
    assert_failed(outcome, AGAIN, long)
    assert len(service.calls) == 1
    assert stored_talks(service.store) == []
    assert ledgers.states(ledger) == ["failed"]


def test_grpc_prints_no_traceback_of_the_generator(
    command: Run, service: StandIn, long: Path
) -> None:
    """In a process of its own: pytest takes what gRPC logs in this one."""
    service.script.append(At(audio=lambda _: append(long)))
    assert_failed(command("--quiet", "--audio-path", long), AGAIN, long)


# --- Signals during a call -----------------------------------------------------------

SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


def interrupt(words: list[str], ready: Callable[[], Any], *names: str) -> Outcome:
    """Run the command, and send it signals, one after the other, when it is time."""
    with start(*words) as process:
        try:
            wait_for(ready)
            for name in names:
                time.sleep(0.05)
                process.send_signal(signal.Signals[name])
            out, err = process.communicate(timeout=3)
        finally:
            process.kill()
    assert process.returncode == SIGNALS[names[0]]
    assert "Traceback" not in err
    return Outcome(process.returncode, out, err)


@pytest.mark.parametrize(
    ("moment", "name"),
    [("connecting", "SIGINT"), ("sending", "SIGINT"), ("sending", "SIGTERM"), ("pause", "SIGTERM")],
)
def test_a_signal_before_the_commit_point(
    send: Send, service: StandIn, proxy: FaultProxy, long: Path, moment: str, name: str
) -> None:
    service.script += [Freeze(300_000)] if moment == "sending" else [busy(0)] * 20
    proxy.plan = [Fault(silent=moment == "connecting")]
    ready: dict[str, Callable[[], Any]] = {
        "connecting": lambda: proxy.connections,
        "sending": lambda: arriving(service),
        "pause": lambda: service.calls and service.calls[0].outcome,
    }
    words = (long, "--ledger", long.with_name("ledger.sqlite"))
    given = arguments(service, "--audio-path", *words, "--endpoint", proxy.endpoint)
    outcome = interrupt(given, ready[moment], name)
    assert outcome.out == "" and "--retry-unknown" not in outcome.err
    service.wait_until_idle()
    assert stored_talks(service.store) == []
    service.script.clear()
    assert_uploaded(send(*words), service, long)


def test_a_signal_before_a_single_message_is_begun(
    service: StandIn, proxy: FaultProxy, short: Path
) -> None:
    """While the connection is looked at."""
    proxy.plan = [Fault(delay_s=0.1)]
    words = arguments(service, "--audio-path", short, *SINGLE, "--endpoint", proxy.endpoint)
    outcome = interrupt(words, lambda: proxy.connections, "SIGTERM")
    assert "the run was stopped" in outcome.err
    service.wait_until_idle()
    assert [call.method for call in service.calls if call.method != "Check"] == []


@WAYS
def test_a_signal_while_the_last_bytes_are_read_sends_nothing(
    send: Send, service: StandIn, short: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_slowly(path: str, *more: Any) -> Iterator[bytes]:
        yield from read_chunks(path, *more)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)

    read_chunks = upload_grpc.read_chunks
    monkeypatch.setattr(upload_grpc, "read_chunks", read_slowly)
    assert send(short, *way).code == SIGNALS["SIGTERM"]
    assert not service.talks


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_waits_for_an_answer_that_is_due(service: StandIn, short: Path, name: str) -> None:
    service.script.append(Delay(0.3))
    words = arguments(service, "--audio-path", short)
    outcome = interrupt(words, lambda: service.talks, name)
    assert outcome.out == f"Dialog ID: {next(iter(service.talks))}\n"


@WAYS
def test_a_second_signal_does_not_wait(send: Send, service: StandIn, short: Path, way: Way) -> None:
    service.script.append(Freeze(store=True))
    words = (short, "--ledger", short.with_name("ledger.sqlite"), *way)
    given = arguments(service, "--audio-path", *words)
    outcome = interrupt(given, lambda: service.talks, "SIGTERM", "SIGTERM")
    [line] = [line for line in outcome.err.splitlines() if str(short) in line]
    assert sent_ids(service)[0] in line and "--retry-unknown" in line
    assert_failed(send(*words), UNKNOWN, short)
    assert len(service.calls) == 1
