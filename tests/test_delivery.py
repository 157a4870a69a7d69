"""What becomes of a recording when something breaks on its way.

Each promise about delivery is tried with a real fault: a connection that is cut or frozen, a
service that fails or restarts, a file that changes, a signal. What the program reports is
compared with what the service has in its store.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import ledgers
import pytest
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
    assert_failed,
    ended,
    interrupt,
    make_wav,
    sha256,
    start,
    wait_for,
    when,
)
from fault_proxy import Fault, FaultProxy
from stand_in import (
    AnswerEarly,
    At,
    Call,
    Delay,
    EmptyAnswer,
    Fail,
    Freeze,
    Slow,
    StandIn,
    Step,
    stored_talks,
)
from test_mechanisms import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    GRPC,
    HEADERS,
    RST_STREAM,
    Peer,
    PeerConnection,
    header,
)

import upload_grpc

REJECTED, AGAIN, UNKNOWN = 65, 75, 76

# More than gRPC would repeat from a buffer of its own (256 KiB).
SHORT_BYTES = 600_000


# --- What the tests share ------------------------------------------------------------


class Line:
    """Two recordings, and the way to the service, on which connections suffer faults."""

    def __init__(self, service: StandIn, proxy: FaultProxy, upload: Run, folder: Path) -> None:
        self.proxy = proxy
        self.short = make_wav(folder / "short.wav", SHORT_BYTES)
        self.long = make_wav(folder / "long.wav", LONG_BYTES)
        for path in (self.short, self.long):
            path.with_suffix(".json").write_text("{}")
        self.with_ledger = ("--ledger", folder / "ledger.sqlite")
        self._service = service
        self._upload = upload

    def send(self, *words: object, faults: Sequence[Fault] = ()) -> Outcome:
        """Upload; where there are faults, over connections that suffer them in turn.

        Without a ledger quietly; with one, what only tells of other attempts is left out.
        """
        if faults:
            del self.proxy.connections[:]
            self.proxy.plan = faults
            words = (*words, "--endpoint", self.proxy.endpoint)
        quiet = () if "--ledger" in words else ("--quiet",)
        outcome = self._upload(*quiet, "--audio-path", *words)
        lines = outcome.err.splitlines(keepends=True)
        said = "".join(each for each in lines if not re.search(": sent again; |; next at", each))
        self.proxy.cut_all()  # What is frozen would keep the service waiting.
        self._service.wait_until_idle()
        return Outcome(outcome.code, outcome.out, said)

    @property
    def ids(self) -> list[str]:
        """Return the request IDs of all calls."""
        return [call.client_request_id for call in self._service.calls]

    @property
    def states(self) -> list[str]:
        return ledgers.states(Path(self.with_ledger[1]))

    @property
    def stored(self) -> int:
        return len(stored_talks(self._service.store))

    def assert_uploaded(self, outcome: Outcome, recording: Path) -> None:
        """Success was reported, and the service has the whole recording once."""
        [talk] = self._service.talks.values()
        assert talk.sha256 == sha256(recording)
        prefix = f"{recording}: " if Path(self.with_ledger[1]).exists() else ""
        assert outcome == Outcome(0, f"{prefix}Dialog ID: {talk.talk_id}\n", "")


@pytest.fixture
def line(service: StandIn, upload: Run, waits: Waits, tmp_path: Path) -> Iterator[Line]:
    waits(backoff_limit=0.02)
    with FaultProxy(service.port) as proxy:
        yield Line(service, proxy, upload, tmp_path)


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
def test_a_break_before_the_commit_point(line: Line, place: str) -> None:
    words = (line.long, "--timeout", 0.4, *line.with_ledger)
    outcome = line.send(*words, "--retries", 0, faults=[EARLY[place]])
    assert_failed(outcome, AGAIN, line.long, *line.ids)
    assert (line.stored, line.states) == (0, ["failed"])
    # Each step of what goes well has that time, too, on a busy machine.
    words = (line.long, "--timeout", 2, *line.with_ledger)
    line.assert_uploaded(line.send(*words, faults=[EARLY[place]]), line.long)
    assert len(line.proxy.connections) >= 2


@pytest.mark.parametrize("made", [True, False], ids=["made, RST", "not made, FIN"])
@WAYS
def test_a_cut_after_the_commit_point(line: Line, service: StandIn, made: bool, way: Way) -> None:
    service.script.append(Freeze(store=made))
    words = (line.short, *line.with_ledger, *way)

    def has_all() -> bool:
        if way == SINGLE or made:  # A single message is not looked at before it is complete.
            return bool(service.talks if made else service.calls)
        return bool(service.calls and service.calls[0].half_closed)

    with when(has_all, lambda: line.proxy.cut_all(rst=made)):
        outcome = line.send(*words, faults=[Fault()])
    assert_failed(outcome, UNKNOWN, line.short, "UNAVAILABLE", *line.ids)
    assert_failed(line.send(*words), UNKNOWN, line.short)
    assert (len(service.calls), line.stored) == (1, made)


def test_a_single_message_that_is_cut(line: Line) -> None:
    outcome = line.send(line.short, *SINGLE, faults=[Fault(cut_to_server=300_000)])
    assert_failed(outcome, UNKNOWN, line.short, "UNAVAILABLE")
    assert line.stored == 0
    outcome = line.send(line.short, *SINGLE, faults=[EARLY["cut in the handshake"]])
    line.assert_uploaded(outcome, line.short)


@WAYS
def test_a_service_that_never_answers(line: Line, service: StandIn, way: Way) -> None:
    service.script.append(Freeze(store=True))
    started_s = time.monotonic()
    outcome = line.send(line.short, "--timeout", 2, *way)
    assert 2 < time.monotonic() - started_s < 30
    assert_failed(outcome, UNKNOWN, line.short, "for 2 s", *line.ids)
    assert len(service.calls) == line.stored == 1


def test_one_freezes_while_others_move(upload: Run, service: StandIn, tmp_path: Path) -> None:
    """What the kernel holds of one connection is no sign of life on another."""
    paths = [make_wav(tmp_path / f"{number}.wav", LONG_BYTES) for number in range(3)]
    service.script += [Freeze(300_000), Slow(1_200_000), Slow(1_200_000)]
    words = ("--jobs", 2, "--timeout", 2, "--retries", 0, "--format", "json")
    outcome = upload("--audio-path", *paths, *words)
    codes = [json.loads(line)["exit_code"] for line in outcome.out.splitlines()]
    assert sorted(codes) == [0, 0, AGAIN]
    assert codes[-1] == 0, "it was given up last"


def test_a_slow_line_is_not_cut(line: Line, service: StandIn) -> None:
    """Both ways, over a line each."""
    line.proxy.plan = [Fault(bytes_per_s=SHORT_BYTES / 12)] * 2
    # Much longer than a thread may have to wait for a busy core, and much less than it takes.
    given = ("--audio-path", line.short, "--quiet", "--timeout", 5, "--retries", 0)
    words = arguments(service, *given, "--endpoint", line.proxy.endpoint)
    started_s = time.monotonic()
    with start(*words) as stream, start(*words, *SINGLE) as single:
        ends = {ended(each) for each in (stream, single)}
    assert time.monotonic() - started_s > 10
    assert ends == {Outcome(0, f"Dialog ID: {each}\n", "") for each in service.talks}
    assert [talk.sha256 for talk in service.talks.values()] == [sha256(line.short)] * 2


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


def busy(after_bytes: int | None = None) -> Fail:
    return Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", after_bytes)


def test_a_refusal_by_the_service_is_final(line: Line, service: StandIn) -> None:
    details = f"refused the key {KEY} today"
    ways = ((line.long, STREAM, 0), (line.short, STREAM, None), (line.short, SINGLE, None))
    for (status, code), (path, way, after_bytes) in itertools.product(FINAL.items(), ways):
        service.script.append(Fail(grpc.StatusCode[status], details, after_bytes))
        outcome = line.send(path, *way)
        [call] = service.calls
        assert_failed(outcome, code, path)
        # The cause, what to do next, and last what gRPC and the service's support call it.
        said = re.fullmatch(rf"upload_grpc: {path}: [^;(]+; .+ \((.*)\)\n", outcome.err)
        assert said and said[1].startswith(f"{status}: refused the key *** today, ")
        for text in (call.client_request_id, call.request_id, call.trace_id):
            assert text in said[1]
        assert KEY not in outcome.err
        service.calls.clear()
    assert line.stored == 0


def test_an_unclear_status_before_and_after_the_commit_point(line: Line, service: StandIn) -> None:
    for status in UNCLEAR:
        for number, way in enumerate((STREAM, SINGLE), 1):
            service.script.append(Fail(grpc.StatusCode[status], "as scripted"))
            outcome = line.send(line.short, *way)
            assert_failed(outcome, UNKNOWN, line.short, status, "as scripted", line.ids[-1])
            assert len(service.calls) == number
        service.script.append(Fail(grpc.StatusCode[status], after_bytes=0))
        line.assert_uploaded(line.send(line.long), line.long)
        assert len(service.calls) == 4, status
        service.calls.clear()
        service.talks.clear()


@WAYS
def test_a_used_up_quota_is_no_dialog_wherever_it_comes(
    line: Line, service: StandIn, way: Way
) -> None:
    service.script += [busy(), busy(0)]
    line.assert_uploaded(line.send(line.short, *way), line.short)
    assert len(service.calls) == 3


def test_tries_come_to_an_end_each_with_its_own_id_after_a_pause(
    line: Line, upload: Run, service: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []

    def longest(low: float, high: float) -> float:
        limits.append((low, high))
        return min(high, 0.1)

    monkeypatch.setattr(random, "uniform", longest)
    monkeypatch.setattr(upload_grpc, "BACKOFF_S", 0.5)
    monkeypatch.setattr(upload_grpc, "BACKOFF_LIMIT_S", 3)
    service.script += [busy()] * 9
    begun_s = time.monotonic()
    outcome = upload("--audio-path", line.short, "--retries", 3)
    assert time.monotonic() - begun_s >= 0.3
    # Each pause may be twice as long as the one before, up to a limit.
    assert limits == [(0, 1), (0, 2), (0, 3), (0, 3)]
    *pauses, last = outcome.err.splitlines()
    assert (outcome.code, outcome.out, len(pauses)) == (AGAIN, "", 3)
    for said in (*pauses, last):
        assert str(line.short) in said and "busy" in said and "RESOURCE_EXHAUSTED" in said
    assert len(set(line.ids)) == len(service.calls) == 4
    assert line.ids[-1] in last
    only = upload("--audio-path", line.short, "--retries", 0)
    assert (only.code, only.err.count("\n"), len(service.calls)) == (AGAIN, 1, 5)


def test_tries_that_failed_keep_no_connection(line: Line, service: StandIn) -> None:
    """A bug that once was: hundreds of connections stayed open on a bad day."""

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    service.script += [busy(0)] * 30
    counts = [open_files()]
    gc.disable()  # The collector must not be needed to close them.
    try:
        with when(lambda: len(service.calls) > 30, lambda: counts.append(open_files())):
            line.assert_uploaded(line.send(line.short, "--retries", 30), line.short)
    finally:
        gc.enable()
    assert counts[1] - counts[0] < 20


def test_a_message_too_large_is_refused(upload: Run, line: Line, tmp_path: Path) -> None:
    limit = (("grpc.max_receive_message_length", 300_000),)
    with StandIn(tmp_path / "small", options=limit) as small:
        to = ("--endpoint", small.endpoint, "--ca-file", small.ca_file)
        words = ("--audio-path", line.short, *line.with_ledger, *to)
        assert_failed(upload(*words, *SINGLE), REJECTED, line.short, "RESOURCE_EXHAUSTED", *SINGLE)
        assert line.states == ["rejected"]
        # It goes another way now: that it was rejected on the first says nothing.
        assert (upload(*words).code, len(small.talks)) == (0, 1)


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
    line: Line, service: StandIn, way: Way, answer: str
) -> None:
    step, fact = NO_ANSWERS[answer]
    service.script.append(step)
    assert_failed(line.send(line.short, *way), UNKNOWN, line.short, fact, *line.ids)
    assert len(service.calls) == line.stored == 1


def test_an_answer_before_the_end_is_no_success(line: Line, service: StandIn) -> None:
    service.script.append(AnswerEarly(300_000))
    assert_failed(line.send(line.long), UNKNOWN, line.long, *line.ids)
    assert len(service.calls) == 1


# Of HTTP/2: kind, flags, content (RFC 9113, 6).
Frame = tuple[int, int, bytes]
EMPTY_MESSAGE_BYTES = 5


def trailers(content: bytes) -> Frame:
    return (HEADERS, END_HEADERS | END_STREAM, content)


def goaway(last_stream: int, code: int) -> Frame:
    return (GOAWAY, 0, last_stream.to_bytes(4, "big") + code.to_bytes(4, "big") + b"enough")


BEGIN: Frame = (HEADERS, END_HEADERS, GRPC)
UNIMPLEMENTED = trailers(GRPC + header("grpc-status", "12"))
# gRPC makes a status of its own of each, such as PERMISSION_DENIED, which no service has said.
ENDINGS: dict[str, list[Frame]] = {
    # 7 says that it was not looked at: gRPC itself would send it again, were that not off.
    **{f"RST_STREAM {n}": [(RST_STREAM, 0, bytes([0, 0, 0, n]))] for n in (2, 7, 8, 11, 12)},
    "GOAWAY, too many pings": [goaway(5, 11)],
    "GOAWAY, not looked at": [goaway(0, 11)],
    # From a proxy, gateway or firewall, whose service perhaps has the recording.
    **{
        n: [trailers(header(":status", n))]
        for n in ("401", "403", "404", "413", "429", "502", "503")
    },
    "no trailers": [BEGIN, (DATA, END_STREAM, b"")],
    "no status": [trailers(GRPC + header("grpc-status", "no"))],
    "OK without a message": [BEGIN, trailers(header("grpc-status", "0"))],
    # A client takes 4 MiB.
    "a message too large": [BEGIN, (DATA, 0, b"\0" + (100_000_000).to_bytes(4, "big"))],
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_end_that_is_no_answer(line: Line, service: StandIn, call: Path, ending: str) -> None:
    """The recording had arrived; small enough for gRPC to repeat it from a buffer of its own."""
    taken: list[int] = []

    def take_and_end(connection: PeerConnection) -> None:
        """Take each message whole, then send the frames; a health check comes before a single."""
        taken_bytes: Counter[int] = Counter()  # By stream.
        while True:
            kind, flags, stream, size_bytes = connection.read_frame()
            taken_bytes[stream] += size_bytes if kind == DATA else 0
            if kind not in (DATA, HEADERS) or not flags & END_STREAM:
                continue
            if taken_bytes[stream] <= EMPTY_MESSAGE_BYTES:
                connection.send(stream, *UNIMPLEMENTED)
                continue
            taken.append(stream)
            for frame in ENDINGS[ending]:
                connection.send(0 if frame[0] == GOAWAY else stream, *frame)
            if ENDINGS[ending][-1][0] == GOAWAY:
                return

    for number, way in enumerate((STREAM, SINGLE), 1):
        with Peer(service.ca.issue_cert("localhost"), take_and_end) as peer:
            outcome = line.send(call, "--endpoint", peer.endpoint, "--timeout", 10, *way)
        assert_failed(outcome, UNKNOWN, call)
        assert "10 s" not in outcome.err, "it was taken for no end at all"
        assert len(taken) == number


# --- A service that goes away between recordings -------------------------------------


@WAYS
def test_a_restart_between_recordings(line: Line, service: StandIn, way: Way) -> None:
    """A service that stops in good order answers what it has; the next call finds nobody."""
    service.script.append(Delay(0.2))

    def restart() -> None:
        service.stop(10)
        time.sleep(0.1)
        service.start()

    with when(lambda: service.talks, restart):
        outcome = line.send(line.long, line.short, "--jobs", 1, "--retries", 50, *way)
    assert (outcome.code, outcome.err) == (0, "")
    assert len(outcome.out.splitlines()) == len(service.talks) == len(service.calls) == 2


# --- A file that changes while it is sent --------------------------------------------


def append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(bytes(1000))


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
    "replaced": replace,
    "removed": os.unlink,
    "unreadable": lambda path: break_reading(path, "/"),  # A folder: EISDIR.
    "ends early": lambda path: break_reading(path, os.devnull),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_under_way(line: Line, service: StandIn, change: str) -> None:
    service.script.append(At(audio=lambda _: CHANGES[change](line.long)))
    assert_failed(line.send(line.long, *line.with_ledger), AGAIN, line.long)
    assert (len(service.calls), line.stored, line.states) == (1, 0, ["failed"])


def test_grpc_prints_no_traceback_of_the_generator(
    command: Run, service: StandIn, line: Line
) -> None:
    """In a process of its own: pytest takes what gRPC logs in this one."""
    service.script.append(At(audio=lambda _: append(line.long)))
    assert_failed(command("--quiet", "--audio-path", line.long), AGAIN, line.long)


# --- Signals during a call -----------------------------------------------------------


def interrupted(words: list[str], ready: Callable[[], Any], *names: str) -> Outcome:
    """Run the command, and send it signals when it is time."""
    with start(*words) as process:
        wait_for(ready)
        return interrupt(process, *names, limit_s=8)  # Less than the ten that a response has.


@pytest.mark.parametrize(
    ("moment", "name", "way"),
    [
        ("connecting", "SIGINT", STREAM),
        ("connecting", "SIGTERM", SINGLE),  # While the connection is looked at.
        ("sending", "SIGINT", STREAM),
        ("sending", "SIGTERM", STREAM),
        ("pause", "SIGTERM", STREAM),
    ],
)
def test_a_signal_before_the_commit_point(
    line: Line, service: StandIn, moment: str, name: str, way: Way
) -> None:
    service.script += [Freeze(300_000)] if moment == "sending" else [busy(0)] * 20
    line.proxy.plan = [Fault(silent=moment == "connecting")]
    ready: dict[str, Callable[[], Any]] = {
        "connecting": lambda: line.proxy.connections,
        "sending": lambda: service.calls and service.calls[0].bytes_received,
        "pause": lambda: service.calls and service.calls[0].outcome,
    }
    words = (line.long, *way, *line.with_ledger)
    given = arguments(service, "--audio-path", *words, "--endpoint", line.proxy.endpoint)
    outcome = interrupted(given, ready[moment], name)
    assert outcome.out == "" and "--retry-unknown" not in outcome.err
    assert "the run was stopped" in outcome.err or moment == "pause"
    service.wait_until_idle()
    assert line.stored == 0
    service.script.clear()
    line.assert_uploaded(line.send(*words), line.long)


@WAYS
def test_a_signal_while_the_last_bytes_are_read_sends_nothing(
    line: Line, service: StandIn, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_slowly(path: str, *more: Any) -> Iterator[bytes]:
        yield from read_chunks(path, *more)
        is_cancelled.clear()  # The health check has ended so.
        os.kill(os.getpid(), signal.SIGTERM)
        assert is_cancelled.wait(20)

    def cancel_and_tell(call: upload_grpc.Call, **options: bool) -> None:
        cancel(call, **options)
        is_cancelled.set()

    is_cancelled = threading.Event()
    read_chunks, cancel = upload_grpc.read_chunks, upload_grpc.Call.cancel
    monkeypatch.setattr(upload_grpc, "read_chunks", read_slowly)
    monkeypatch.setattr(upload_grpc.Call, "cancel", cancel_and_tell)
    assert line.send(line.short, *way).code == 128 + signal.SIGTERM
    assert not service.talks


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_waits_for_an_answer_that_is_due(service: StandIn, call: Path, name: str) -> None:
    is_sent = threading.Event()

    def answer_late(_: Call) -> Step:
        assert is_sent.wait(60)
        return Delay(0.3)

    service.script.append(At(answer=answer_late))
    with start(*arguments(service, "--audio-path", call)) as process:
        wait_for(lambda: service.talks)
        process.send_signal(signal.Signals[name])
        is_sent.set()
        outcome = ended(process)
    assert outcome.code == 128 + signal.Signals[name]
    assert outcome.out == f"Dialog ID: {next(iter(service.talks))}\n"


@WAYS
def test_a_second_signal_does_not_wait(line: Line, service: StandIn, way: Way) -> None:
    service.script.append(Freeze(store=True))
    words = (line.short, *line.with_ledger, *way)
    given = arguments(service, "--audio-path", *words)
    # Not the same one twice: what is still pending would take it in.
    outcome = interrupted(given, lambda: service.talks, "SIGINT", "SIGTERM")
    [said] = [each for each in outcome.err.splitlines() if str(line.short) in each]
    assert line.ids[0] in said and "--retry-unknown" in said
    assert_failed(line.send(*words), UNKNOWN, line.short)
    assert len(service.calls) == 1
