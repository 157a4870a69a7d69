"""What becomes of a recording when something breaks on its way.

Each promise about delivery is tried with a real fault: a connection that is cut, frozen or
slow, a service that fails, freezes or goes away, a file that changes, a signal. Whatever the
program then says is held against what the service has in its store.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import re
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import stand_in
import trustme
from conftest import KEY, ROOT, Outcome, Run, arguments, make_wav, start
from fault_proxy import Fault, FaultProxy, HttpProxy
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from stand_in import (
    AnswerEarly,
    Delay,
    EmptyAnswer,
    Fail,
    Freeze,
    Metadata,
    Slow,
    StandIn,
    Talk,
    stored_talks,
)
from yandex.cloud.speechsense.v1 import talk_service_pb2, talk_service_pb2_grpc

import upload_grpc

OK, REJECTED, AGAIN, UNKNOWN, REFUSED, CONFIG = 0, 65, 75, 76, 77, 78

# More than gRPC would repeat from a buffer of its own (256 KiB).
SHORT_BYTES = 600_000
# More than gRPC takes in one go from the program, with the option below: of such a recording
# the last byte has not been handed over while the service has only the first ones.
LONG_BYTES = 4_000_000
# Otherwise gRPC measures the line, and takes as much ahead as it thinks the line can hold: 6 MB
# as a rule on loopback, and up to 22 MB on a busy machine.
NOTHING_AHEAD = ("grpc.http2.bdp_probe", 0)

SINGLE = "--single-message"
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


# --- What the tests share ------------------------------------------------------------


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_grpc, "BACKOFF_S", 0.02)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[StandIn]:
    with StandIn(tmp_path / "store", options=(NOTHING_AHEAD,)) as stand_in:
        yield stand_in


@pytest.fixture(scope="session")
def long_audio(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_wav(tmp_path_factory.mktemp("long") / "long.wav", LONG_BYTES).read_bytes()


@pytest.fixture
def short(tmp_path: Path) -> Path:
    path = make_wav(tmp_path / "short.wav", SHORT_BYTES)
    path.with_suffix(".json").write_text("{}")
    return path


@pytest.fixture
def long(tmp_path: Path, long_audio: bytes) -> Path:
    path = tmp_path / "long.wav"
    path.write_bytes(long_audio)
    path.with_suffix(".json").write_text("{}")
    return path


@pytest.fixture
def proxy(service: StandIn) -> Iterator[FaultProxy]:
    with FaultProxy(service.port) as fault_proxy:
        yield fault_proxy


Through = Callable[..., Outcome]


@pytest.fixture
def upload_through(upload: Run, proxy: FaultProxy, service: StandIn) -> Through:
    """Upload through the proxy: its connections, in turn, suffer these faults."""

    def run(recording: Path, *words: object, faults: tuple[Fault, ...] = ()) -> Outcome:
        del proxy.connections[:]
        proxy.plan = faults
        outcome = upload("--audio-path", recording, "--endpoint", proxy.endpoint, *words)
        proxy.cut_all()  # What is frozen would keep the service waiting.
        service.wait_until_idle()
        return outcome

    return run


@contextlib.contextmanager
def when(condition: Callable[[], Any], act: Callable[[], Any]) -> Iterator[None]:
    """Do something, on a thread, as soon as the condition holds; it must come to that."""
    acted = threading.Event()
    leaving = threading.Event()

    def wait() -> None:
        while not condition():
            if leaving.wait(0.001):
                return
        act()
        acted.set()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        leaving.set()
        thread.join()
    assert acted.is_set(), "the moment for it never came"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_uploaded(outcome: Outcome, service: StandIn, recording: Path) -> Talk:
    """Success was reported, and the service has the whole recording once."""
    service.wait_until_idle()
    [talk] = service.talks.values()
    assert talk.sha256 == sha256(recording)
    assert (outcome.code, outcome.out) == (OK, f"Dialog ID: {talk.talk_id}\n")
    return talk


def assert_no_talk(service: StandIn) -> None:
    service.wait_until_idle()
    assert stored_talks(service.store) == []


def assert_failed(outcome: Outcome, code: int, recording: Path, *texts: str) -> str:
    """No dialog was reported; one line names the recording, with each text; answer it."""
    assert (outcome.code, outcome.out) == (code, "")
    lines = [line for line in outcome.err.splitlines() if "; next try in" not in line]
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith(f"upload_grpc: {recording}: ")
    for text in texts:
        assert text in lines[0]
    return lines[0]


def assert_unknown(outcome: Outcome, recording: Path, *texts: str) -> None:
    """The line tells what to look for, with what to find it, and what may be done."""
    line = assert_failed(outcome, UNKNOWN, recording, "the dialog may exist or not", *texts)
    assert re.search(rf"request {UUID}", line)
    assert "look for it in the console" in line
    assert "next try in" not in outcome.err


def retry_lines(outcome: Outcome) -> list[str]:
    return [line for line in outcome.err.splitlines() if "; next try in" in line]


def ledger_rows(path: Path) -> list[tuple[str, str | None]]:
    """State and dialog ID of each recording."""
    with contextlib.closing(sqlite3.connect(path)) as ledger:
        return ledger.execute("SELECT state, talk_id FROM recordings").fetchall()


# --- A connection that is cut --------------------------------------------------------

# Byte counts of the TLS handshake, of the call's headers, and of the recording.
EARLY_CUTS = {
    "in the handshake": {"cut_to_server": 100},
    "at the service's certificate": {"cut_to_client": 700},
    "after the handshake": {"cut_to_server": 2_000},
    "in the recording": {"cut_to_server": 300_000},
    "far in the recording": {"cut_to_server": 2_000_000},
}


@pytest.mark.parametrize("rst", [True, False], ids=["RST", "FIN"])
@pytest.mark.parametrize("place", EARLY_CUTS)
def test_a_cut_before_the_commit_point_is_mended_by_the_next_try(
    upload_through: Through, service: StandIn, long: Path, place: str, rst: bool
) -> None:
    cut = Fault(rst=rst, **EARLY_CUTS[place])  # type: ignore[arg-type]
    outcome = upload_through(long, faults=(cut, cut))
    assert_uploaded(outcome, service, long)
    assert len(retry_lines(outcome)) == len(outcome.err.splitlines()) == 2


@pytest.mark.parametrize("rst", [True, False], ids=["RST", "FIN"])
def test_a_cut_before_the_commit_point_leaves_no_dialog(
    upload_through: Through, service: StandIn, long: Path, tmp_path: Path, rst: bool
) -> None:
    ledger = tmp_path / "ledger.sqlite"
    cut = Fault(cut_to_server=2_000_000, rst=rst)
    words = ("--retries", 0, "--ledger", ledger)
    assert_failed(upload_through(long, *words, faults=(cut,)), AGAIN, long, "(UNAVAILABLE, ")
    assert_no_talk(service)
    assert ledger_rows(ledger) == [("failed", None)]

    talk = assert_uploaded(upload_through(long, *words), service, long)
    assert ledger_rows(ledger) == [("uploaded", talk.talk_id)]


@pytest.mark.parametrize("rst", [True, False], ids=["RST", "FIN"])
@pytest.mark.parametrize("made", [True, False], ids=["made", "not made"])
@pytest.mark.parametrize("way", [(), (SINGLE,)], ids=["stream", "single"])
def test_a_cut_after_the_commit_point_is_named_and_not_repeated(
    upload_through: Through,
    service: StandIn,
    proxy: FaultProxy,
    short: Path,
    made: bool,
    rst: bool,
    way: tuple[str, ...],
) -> None:
    service.script.append(Freeze(store=made))

    def has_all() -> bool:
        return bool(service.calls and service.calls[0].bytes_received == short.stat().st_size)

    def cut() -> None:
        time.sleep(0.05)  # For the half-close.
        proxy.cut_all(rst=rst)

    with when(has_all, cut):
        outcome = upload_through(short, *way)
    assert_unknown(outcome, short, "UNAVAILABLE")
    assert len(service.calls) == 1
    assert len(stored_talks(service.store)) == made


@pytest.mark.parametrize("made", [True, False], ids=["made", "not made"])
def test_the_ledger_keeps_the_unknown_until_somebody_decides(
    upload: Run, service: StandIn, short: Path, tmp_path: Path, made: bool
) -> None:
    ledger = tmp_path / "ledger.sqlite"
    words = ("--audio-path", short, "--ledger", ledger)
    service.script.append(Fail(grpc.StatusCode.UNAVAILABLE, "gone", store=made))
    assert_unknown(upload(*words), short, "gone")
    assert ledger_rows(ledger) == [("unknown", None)]

    again = upload(*words)
    assert_failed(again, UNKNOWN, short, "gone", "--retry-unknown")
    assert len(service.calls) == 1

    assert upload(*words, "--retry-unknown").code == OK
    assert len(service.calls) == 2
    assert len(stored_talks(service.store)) == 1 + made
    [(state, talk_id)] = ledger_rows(ledger)
    assert state == "uploaded"
    assert talk_id in service.talks


def test_a_single_message_is_sent_again_only_where_nothing_was_sent(
    upload_through: Through, service: StandIn, short: Path
) -> None:
    outcome = upload_through(short, SINGLE, faults=(Fault(cut_to_server=100),))
    assert len(retry_lines(outcome)) == 1
    assert_uploaded(outcome, service, short)


def test_a_single_message_that_was_cut_is_unknown(
    upload_through: Through, service: StandIn, short: Path
) -> None:
    outcome = upload_through(short, SINGLE, faults=(Fault(cut_to_server=300_000),))
    assert_unknown(outcome, short, "UNAVAILABLE")
    assert_no_talk(service)


@pytest.mark.parametrize("way", [(), (SINGLE,)], ids=["stream", "single"])
def test_words_about_another_connection_are_not_taken_for_ours(
    upload: Run, service: StandIn, short: Path, way: tuple[str, ...]
) -> None:
    # A service that has stored the recording, and then cannot reach another one.
    words = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:10.0.0.1:443"
    service.script.append(Fail(grpc.StatusCode.UNAVAILABLE, words, store=True, ids=False))
    assert_unknown(upload("--audio-path", short, *way), short, words)
    assert len(stored_talks(service.store)) == 1


def test_uploads_that_share_a_cut_connection_are_all_delivered_once(
    upload: Run, service: StandIn, proxy: FaultProxy, tmp_path: Path
) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    # More than grpc and the kernel take on the way, so that none has passed its commit point.
    recordings = [make_wav(folder / f"{number}.wav", 12_000_000) for number in range(5)]
    proxy.plan = [Fault(cut_to_server=1_000_000), Fault(cut_to_server=3_000_000, rst=False)]
    outcome = upload("--audio-path", folder, "--jobs", 4, "--endpoint", proxy.endpoint, "--quiet")
    assert (outcome.code, outcome.err) == (OK, "")
    assert len(outcome.out.splitlines()) == 5
    made = sorted(talk["sha256"] for talk in stored_talks(service.store))
    assert made == sorted(map(sha256, recordings))


# --- A connection that is slow, frozen or silent -------------------------------------


def test_a_long_line_only_delays(upload_through: Through, service: StandIn, short: Path) -> None:
    outcome = upload_through(short, "--timeout", 2, faults=(Fault(delay_s=0.1),))
    assert_uploaded(outcome, service, short)
    assert outcome.err == ""


SILENCES = {
    "silent from the start": Fault(silent=True),
    "frozen in the handshake": Fault(freeze_to_server=100),
    "frozen in the recording": Fault(freeze_to_server=300_000),
    "frozen for the answers": Fault(freeze_to_client=2_500),
}


@pytest.mark.parametrize("place", SILENCES)
def test_silence_before_the_commit_point_ends_in_time(
    upload_through: Through, service: StandIn, long: Path, place: str
) -> None:
    started_s = time.monotonic()
    outcome = upload_through(long, "--timeout", 0.4, "--retries", 0, faults=(SILENCES[place],))
    assert 0.4 < time.monotonic() - started_s < 1.5
    line = assert_failed(outcome, AGAIN, long, "no progress for 0.4 s", "run again")
    assert re.search(rf"request {UUID}", line)
    assert_no_talk(service)


@pytest.mark.parametrize("place", SILENCES)
def test_silence_before_the_commit_point_is_mended_by_the_next_try(
    upload_through: Through, service: StandIn, long: Path, place: str
) -> None:
    outcome = upload_through(long, "--timeout", 0.4, "--retries", 1, faults=(SILENCES[place],))
    assert len(retry_lines(outcome)) == 1
    assert_uploaded(outcome, service, long)


def test_a_service_that_stops_reading_is_given_up(
    upload: Run, service: StandIn, long: Path
) -> None:
    service.script.append(Freeze(300_000))
    outcome = upload("--audio-path", long, "--timeout", 0.4, "--retries", 0)
    assert_failed(outcome, AGAIN, long, "no progress")
    assert_no_talk(service)


def test_a_frozen_stream_among_moving_ones_is_given_up(
    service: StandIn, tmp_path: Path, long_audio: bytes
) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.wav").write_bytes(long_audio)
    service.script += [Freeze(300_000), *[Slow(5_000_000)] * 5]
    words = ("--jobs", 2, "--timeout", 0.8, "--retries", 0, "--format", "json")
    with start(*arguments(service, "--audio-path", folder, *words)) as process:
        out, _ = process.communicate(timeout=30)
    results = [json.loads(line) for line in out.splitlines()]
    assert [result["exit_code"] for result in results].count(OK) == 5
    [frozen] = [result for result in results if result["exit_code"] == AGAIN]
    assert "no progress for 0.8 s" in frozen["error"]
    assert frozen["seconds"] < 2.5
    # While the others were still under way.
    assert results.index(frozen) < len(results) - 1


def test_uploads_that_share_a_frozen_connection_are_all_delivered(
    upload: Run, service: StandIn, proxy: FaultProxy, tmp_path: Path
) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    recordings = [make_wav(folder / f"{number}.wav", LONG_BYTES) for number in range(4)]
    proxy.plan = [Fault(freeze_to_server=1_000_000)]
    words = ("--endpoint", proxy.endpoint, "--jobs", 4, "--timeout", 0.5, "--quiet")
    outcome = upload("--audio-path", folder, *words)
    assert (outcome.code, outcome.err) == (OK, "")
    made = sorted(talk["sha256"] for talk in stored_talks(service.store))
    assert made == sorted(map(sha256, recordings))


@pytest.mark.parametrize("made", [True, False], ids=["made", "not made"])
@pytest.mark.parametrize("way", [(), (SINGLE,)], ids=["stream", "single"])
def test_a_service_that_never_answers_leaves_the_dialog_unknown(
    upload: Run, service: StandIn, short: Path, made: bool, way: tuple[str, ...]
) -> None:
    service.script.append(Freeze(store=made))
    started_s = time.monotonic()
    outcome = upload("--audio-path", short, "--timeout", 0.4, *way)
    assert 0.4 < time.monotonic() - started_s < 1.5
    assert_unknown(outcome, short, "no progress for 0.4 s")
    service.wait_until_idle()
    assert len(stored_talks(service.store)) == made


@pytest.mark.parametrize("way", [(), (SINGLE,)], ids=["stream", "single"])
def test_a_swallowed_answer_leaves_the_dialog_unknown(
    upload_through: Through,
    service: StandIn,
    proxy: FaultProxy,
    short: Path,
    way: tuple[str, ...],
) -> None:
    service.script.append(Delay(0.2))
    with when(lambda: service.talks, proxy.swallow_all):
        outcome = upload_through(short, "--timeout", 0.4, *way)
    assert_unknown(outcome, short, "no progress for 0.4 s")
    assert len(stored_talks(service.store)) == 1


@pytest.mark.parametrize("size_bytes", [SHORT_BYTES, 10_000_000])
@pytest.mark.parametrize("way", [(), (SINGLE,)], ids=["stream", "single"])
def test_a_slow_line_is_given_the_time_it_needs(
    command: Run, tmp_path: Path, way: tuple[str, ...], size_bytes: int
) -> None:
    # The kernel takes all of the first size at once, and not of the second.
    recording = make_wav(tmp_path / "call.wav", size_bytes)
    recording.with_suffix(".json").write_text("{}")
    timeout_s = 1.0
    slow = Fault(bytes_per_s=size_bytes / (2 * timeout_s))
    with StandIn(tmp_path / "store") as service, FaultProxy(service.port, [slow]) as proxy:
        words = ("--endpoint", proxy.endpoint, "--ca-file", service.ca_file)
        started_s = time.monotonic()
        outcome = command(
            "--audio-path", recording, "--timeout", timeout_s, "--retries", 0, *words, *way
        )
        assert time.monotonic() - started_s > 1.5 * timeout_s
        assert_uploaded(outcome, service, recording)
    assert outcome.err == ""


def test_a_slow_service_is_given_the_time_it_needs(
    command: Run, service: StandIn, long: Path
) -> None:
    service.script.append(Slow(1_300_000))
    words = ("--timeout", 1.5, "--retries", 0)
    assert_uploaded(command("--audio-path", long, *words), service, long)
    assert len(service.calls) == 1


def test_time_in_which_the_program_stood_still_is_no_silence(service: StandIn, short: Path) -> None:
    service.script.append(Delay(0.3))
    with start(*arguments(service, "--audio-path", short, "--timeout", 1)) as process:
        while not service.talks and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=20)
    assert_uploaded(Outcome(process.returncode, out, err), service, short)


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A service in a process of its own, which can be put to sleep; its store is `sleeper`."""
    command = [sys.executable, str(ROOT / "tests" / "stand_in.py"), "--store"]
    with subprocess.Popen(
        [*command, str(tmp_path / "sleeper")], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def test_a_service_that_wakes_up_makes_no_dialog_of_what_was_given_up(
    sleeper: tuple[subprocess.Popen[str], dict[str, Any]], tmp_path: Path
) -> None:
    service, ready = sleeper
    recording = make_wav(tmp_path / "call.wav", 12_000_000)
    recording.with_suffix(".json").write_text("{}")
    with FaultProxy(ready["port"], [Fault(bytes_per_s=6_000_000)]) as proxy:
        words = [
            *("--audio-path", recording, "--connection-id", "c", "--key", KEY),
            *("--endpoint", proxy.endpoint, "--ca-file", ready["ca_file"]),
            *("--timeout", "0.5", "--retries", "0"),
        ]
        sleep = functools.partial(service.send_signal, signal.SIGSTOP)
        with when(lambda: proxy.to_server > 1_000_000, sleep), start(*words) as process:
            out, err = process.communicate(timeout=20)
        given_up = Outcome(process.returncode, out, err)
        assert_failed(given_up, AGAIN, recording, "no progress for 0.5 s")
        service.send_signal(signal.SIGCONT)
        with start(*words) as process:
            out, _ = process.communicate(timeout=20)
    [talk] = stored_talks(tmp_path / "sleeper")
    assert out == f"Dialog ID: {talk['talk_id']}\n"
    assert talk["sha256"] == sha256(recording)


# --- What the service answers --------------------------------------------------------

# For each status: what becomes of a recording that was refused before it was all sent, and
# what of one that was all sent.
STATUSES: dict[str, tuple[int | str, int | str]] = {
    "CANCELLED": ("again", "unknown"),
    "UNKNOWN": ("again", "unknown"),
    "INVALID_ARGUMENT": (65, 65),
    "DEADLINE_EXCEEDED": ("again", "unknown"),
    "NOT_FOUND": (78, 78),
    "ALREADY_EXISTS": (65, 65),
    "PERMISSION_DENIED": (77, 77),
    "RESOURCE_EXHAUSTED": ("again", "again"),
    "FAILED_PRECONDITION": (65, 65),
    "ABORTED": ("again", "unknown"),
    "OUT_OF_RANGE": (65, 65),
    "UNIMPLEMENTED": (78, 78),
    "INTERNAL": ("again", "unknown"),
    "UNAVAILABLE": ("again", "unknown"),
    "DATA_LOSS": ("again", "unknown"),
    "UNAUTHENTICATED": (77, 77),
}


def assert_treated(
    outcome: Outcome, service: StandIn, recording: Path, status: str, expected: int | str
) -> None:
    """After one failure: sent again, or given up with an exit code, or unknown."""
    service.wait_until_idle()
    if expected == "again":
        [line] = outcome.err.splitlines()
        assert re.fullmatch(
            rf"upload_grpc: {recording}: as scripted \({status}\); next try in \d\.\d s", line
        )
        assert len(service.calls) == 2
        assert_uploaded(outcome, service, recording)
        return
    [call] = service.calls
    code = UNKNOWN if expected == "unknown" else int(expected)
    sent = f"request {call.metadata['x-client-request-id']!s}"
    received = f"x-request-id {call.request_id}, x-server-trace-id {call.trace_id}"
    line = assert_failed(outcome, code, recording, "as scripted", status, sent, received)
    assert line.rpartition("; ")[2]  # What to do next.
    if expected == "unknown":
        assert_unknown(outcome, recording)
    assert_no_talk(service)


def test_every_status_has_its_place_in_these_tests() -> None:
    assert set(STATUSES) == {code.name for code in grpc.StatusCode} - {"OK"}


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_before_the_commit_point(
    upload: Run, service: StandIn, long: Path, status: str
) -> None:
    service.script.append(Fail(grpc.StatusCode[status], "as scripted", after_bytes=0))
    outcome = upload("--audio-path", long)
    assert_treated(outcome, service, long, status, STATUSES[status][0])


@pytest.mark.parametrize("way", [(), (SINGLE,)], ids=["stream", "single"])
@pytest.mark.parametrize("status", STATUSES)
def test_a_status_after_the_commit_point(
    upload: Run, service: StandIn, short: Path, status: str, way: tuple[str, ...]
) -> None:
    service.script.append(Fail(grpc.StatusCode[status], "as scripted"))
    outcome = upload("--audio-path", short, *way)
    assert_treated(outcome, service, short, status, STATUSES[status][1])


def test_a_message_larger_than_the_service_takes_is_not_sent_again_that_way(
    upload: Run, short: Path, tmp_path: Path
) -> None:
    limit = (("grpc.max_receive_message_length", 300_000),)
    ledger = tmp_path / "ledger.sqlite"
    with StandIn(tmp_path / "small", options=limit) as service:
        words = ("--ledger", ledger, "--endpoint", service.endpoint, "--ca-file", service.ca_file)
        singles = [upload("--audio-path", short, SINGLE, *words) for _ in range(2)]
        assert service.calls == []
        assert ledger_rows(ledger) == [("rejected", None)]
        stream = upload("--audio-path", short, *words)
    assert_failed(singles[0], REJECTED, short, "RESOURCE_EXHAUSTED", "leave out --single-message")
    assert retry_lines(singles[0]) == []
    assert_failed(singles[1], REJECTED, short, "not sent, it was rejected before")
    # It goes another way now: that it was rejected on the first says nothing.
    assert_uploaded(stream, service, short)


def asked_to_wait(seconds: float) -> Metadata:
    """What a service sends along that asks for a pause."""
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(int(seconds * 1e9))
    packed = any_pb2.Any()
    packed.Pack(info)
    status = status_pb2.Status(code=8, message="busy", details=[any_pb2.Any(), packed])
    return (("grpc-status-details-bin", status.SerializeToString()),)


def busy(seconds: float, after_bytes: int | None = None) -> Fail:
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    return Fail(code, "busy", after_bytes, trailing=asked_to_wait(seconds))


def test_a_pause_that_the_service_asks_for_is_made(
    upload: Run, service: StandIn, short: Path
) -> None:
    service.script.append(busy(0.7))
    started_s = time.monotonic()
    outcome = upload("--audio-path", short)
    assert time.monotonic() - started_s > 0.7
    assert_uploaded(outcome, service, short)
    assert [line.rpartition("; ")[2] for line in retry_lines(outcome)] == ["next try in 0.7 s"]


def test_a_pause_too_long_is_left_to_the_next_run(
    upload: Run, service: StandIn, short: Path
) -> None:
    service.script.append(busy(301))
    assert_failed(upload("--audio-path", short), AGAIN, short, "busy", "run again")
    assert len(service.calls) == 1


def test_a_pause_that_cannot_be_read_is_none(upload: Run, service: StandIn, short: Path) -> None:
    trailing = (("grpc-status-details-bin", b"\xff\xff\xff"),)
    service.script.append(Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", trailing=trailing))
    assert_uploaded(upload("--audio-path", short), service, short)


def test_an_answer_before_the_end_is_no_success(upload: Run, service: StandIn, long: Path) -> None:
    service.script.append(AnswerEarly(300_000))
    outcome = upload("--audio-path", long)
    assert_failed(outcome, UNKNOWN, long, "before it had the whole file (ID: ", "(OK, ")
    assert len(service.calls) == 1


@pytest.mark.parametrize("way", [(), (SINGLE,)], ids=["stream", "single"])
@pytest.mark.parametrize("made", [True, False], ids=["made", "not made"])
def test_an_answer_without_a_dialog_id_is_no_success(
    upload: Run, service: StandIn, short: Path, made: bool, way: tuple[str, ...]
) -> None:
    service.script.append(EmptyAnswer(store=made))
    outcome = upload("--audio-path", short, *way)
    assert_failed(outcome, UNKNOWN, short, "without an ID", "(OK, ", "look for it in the console")
    assert len(service.calls) == 1


# --- Answers that grpc cannot take ---------------------------------------------------

# Beyond what a client takes by default: 16 KiB of headers or trailers, 4 MiB of a message.
TOO_LARGE = {"headers": 40_000, "trailers": 40_000, "message": 5_000_000}


@pytest.mark.parametrize(
    ("what", "way"),
    [
        ("headers", (SINGLE,)),  # A stream's come before its dialog, and may well prevent it.
        ("trailers", ()),
        ("trailers", (SINGLE,)),
        ("message", ()),
        ("message", (SINGLE,)),
    ],
    ids=lambda value: value if isinstance(value, str) else "".join(value) or "stream",
)
def test_an_answer_too_large_is_not_taken_for_a_refusal(
    upload: Run,
    service: StandIn,
    short: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    way: tuple[str, ...],
) -> None:
    """Of an answer that it cannot take grpc itself makes a RESOURCE_EXHAUSTED."""
    text = "y" * TOO_LARGE[what]
    answer = service.answer

    def too_large(method: str, context: grpc.ServicerContext, work: Any) -> Any:
        if what == "trailers":
            context.set_trailing_metadata((("x-debug", text),))
        response = answer(method, context, work)
        return type(response)(talk_id=text) if what == "message" else response

    monkeypatch.setattr(service, "answer", too_large)
    headers = ((("x-debug", text),), ()) if what == "headers" else ((), ())
    sent = iter(headers)
    monkeypatch.setattr(stand_in._LiveCall, "ids", lambda _: next(sent))

    ledger = tmp_path / "ledger.sqlite"
    outcome = upload("--audio-path", short, "--ledger", ledger, *way)
    assert_unknown(outcome, short, "RESOURCE_EXHAUSTED")
    assert len(stored_talks(service.store)) == len(service.calls) == 1
    assert ledger_rows(ledger) == [("unknown", None)]


# Frames of HTTP/2 (RFC 9113, 6).
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1


class BarePeer:
    """The barest HTTP/2 service: takes each recording whole, and ends its stream then.

    frames: what it ends it with, each a kind, flags and content.
    """

    def __init__(self, certificate: trustme.LeafCert, *frames: tuple[int, int, bytes]) -> None:
        self.taken = 0
        self._frames = frames
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.set_alpn_protocols(["h2"])
        certificate.configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"localhost:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                with self._context.wrap_socket(plain, server_side=True) as connection:
                    self._answer(connection)

    def _answer(self, connection: ssl.SSLSocket) -> None:
        def send(kind: int, flags: int, stream: int, content: bytes = b"") -> None:
            head = len(content).to_bytes(3, "big") + bytes([kind, flags])
            connection.sendall(head + stream.to_bytes(4, "big") + content)

        with connection.makefile("rb") as file:
            file.read(len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
            send(SETTINGS, 0, 0)
            while len(head := file.read(9)) == 9:
                content = file.read(int.from_bytes(head[:3], "big"))
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
                if kind in (SETTINGS, PING) and not flags & ACK:
                    send(kind, ACK, 0, content if kind == PING else b"")
                elif kind == DATA and content:
                    for number in (0, stream):
                        send(WINDOW_UPDATE, 0, number, len(content).to_bytes(4, "big"))
                if kind in (DATA, HEADERS) and flags & END_STREAM:
                    self.taken += 1
                    for kind, flags, content in self._frames:
                        send(kind, flags, 0 if kind == GOAWAY else stream, content)
                        if kind == GOAWAY:
                            return

    def __enter__(self) -> BarePeer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.mark.parametrize("way", [(), (SINGLE,)], ids=["stream", "single"])
@pytest.mark.parametrize(
    ("code", "status"),
    [(2, "INTERNAL"), (8, "CANCELLED"), (11, "RESOURCE_EXHAUSTED"), (12, "PERMISSION_DENIED")],
)
def test_a_stream_that_was_reset_is_not_taken_for_a_refusal(
    command: Run, service: StandIn, short: Path, code: int, status: str, way: tuple[str, ...]
) -> None:
    """The statuses are grpc's translation of HTTP/2 errors; no service has said them."""
    frame = (RST_STREAM, 0, code.to_bytes(4, "big"))
    with BarePeer(service.ca.issue_cert("localhost"), frame) as peer:
        outcome = command("--audio-path", short, "--endpoint", peer.endpoint, *way)
    assert_unknown(outcome, short, f"({status}, ")
    assert peer.taken == 1


def header(name: str, value: str) -> bytes:
    """Write a header as HPACK does without any compression (RFC 7541, 6.2.2)."""
    texts = (text.encode() for text in (name, value))
    return b"\0" + b"".join(bytes([len(text)]) + text for text in texts)


def goaway(last_stream: int, code: int) -> tuple[int, int, bytes]:
    return (GOAWAY, 0, last_stream.to_bytes(4, "big") + code.to_bytes(4, "big") + b"enough")


GRPC_HEADERS = header(":status", "200") + header("content-type", "application/grpc")


@pytest.mark.parametrize("way", [(), (SINGLE,)], ids=["stream", "single"])
@pytest.mark.parametrize(
    ("frames", "words"),
    [
        # What grpc itself sends to who pings too often; its own status for that is another.
        ([goaway(1, 11)], "GOAWAY"),
        ([goaway(0, 11)], "GOAWAY"),
        ([goaway(2**31 - 1, 0)], "GOAWAY"),
        # Of a proxy, whose service has the recording perhaps.
        ([(HEADERS, END_HEADERS | END_STREAM, header(":status", "429"))], "status: 429"),
        ([(HEADERS, END_HEADERS | END_STREAM, header(":status", "503"))], "status: 503"),
        ([(HEADERS, END_HEADERS, GRPC_HEADERS), (DATA, END_STREAM, b"")], "END_STREAM"),
        (
            [(HEADERS, END_HEADERS | END_STREAM, GRPC_HEADERS + header("grpc-status", "no"))],
            "grpc-status",
        ),
    ],
    ids=["goaway", "goaway 0", "goaway max", "429", "503", "no trailers", "no status"],
)
def test_a_connection_that_ends_is_not_taken_for_a_refusal(
    command: Run,
    service: StandIn,
    short: Path,
    frames: list[tuple[int, int, bytes]],
    words: str,
    way: tuple[str, ...],
) -> None:
    """Whatever grpc makes of an end that is no answer: the recording had arrived."""
    with BarePeer(service.ca.issue_cert("localhost"), *frames) as peer:
        outcome = command("--audio-path", short, "--endpoint", peer.endpoint, *way)
    assert_unknown(outcome, short, words)
    assert peer.taken == 1


class WithoutMessage(grpc.GenericRpcHandler):
    """Ends every call with OK and no message, which no generated service can."""

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        def end(requests: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
            return iter([b"" for _ in requests][:0])

        return grpc.stream_stream_rpc_method_handler(end)


@pytest.mark.parametrize("way", [(), (SINGLE,), ("--split",)], ids=["stream", "single", "split"])
def test_ok_without_any_message_is_no_success(
    upload: Run, tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch, way: tuple[str, ...]
) -> None:
    monkeypatch.setattr(
        talk_service_pb2_grpc,
        "add_TalkServiceServicer_to_server",
        lambda _, server: server.add_generic_rpc_handlers((WithoutMessage(),)),
    )
    with StandIn(tmp_path / "speechless") as service:
        words = ("--endpoint", service.endpoint, "--ca-file", service.ca_file)
        outcome = upload("--audio-path", short, *words, *way)
    assert_failed(outcome, UNKNOWN, short, "look for it in the console")


def test_a_stored_message_is_not_sent_again_when_its_connection_is_gone(
    upload: Run, service: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that stops in good order answers what it has; a new call finds nobody by then."""
    folder = tmp_path / "calls"
    folder.mkdir()
    for number in range(3):
        make_wav(folder / f"{number}.wav", SHORT_BYTES)
    # Of another connection, and without IDs: only that ours was there tells that these are not
    # words about ours.
    words = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:10.0.0.1:443"
    service.script.append(Fail(grpc.StatusCode.UNAVAILABLE, words, store=True, ids=False))
    stopping, nobody_there = threading.Event(), threading.Event()
    finish = stand_in._TalkService._finish

    def finish_late(talks: Any, call: Any, talk_id: str) -> Any:
        (nobody_there if call.step else stopping).wait(10)
        return finish(talks, call, talk_id)

    def stop() -> None:
        assert service._server
        service._server.stop(20)
        time.sleep(0.1)
        stopping.set()
        time.sleep(0.5)  # For the third recording to be refused a connection.
        nobody_there.set()

    monkeypatch.setattr(stand_in._TalkService, "_finish", finish_late)
    with when(lambda: len(service.talks) == 2, stop):
        outcome = upload(
            *("--audio-path", folder, "--jobs", 2, SINGLE, "--retries", 0, "--format", "json")
        )
    codes = {}
    for line in outcome.out.splitlines():
        result = json.loads(line)
        codes[result["request_id"]] = result["exit_code"]
    assert len(codes) == 3
    stored = [codes[str(call.metadata["x-client-request-id"])] for call in service.calls]
    assert sorted(stored) == [OK, UNKNOWN]


def test_a_stored_message_is_not_sent_again_where_states_come_late(
    upload: Run, service: StandIn, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of grpc's tells them, and a busy machine may let it wait."""
    words = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:10.0.0.1:443"
    service.script.append(Fail(grpc.StatusCode.UNAVAILABLE, words, store=True, ids=False))
    note = upload_grpc.Connectivity._note

    def note_late(*arguments: Any) -> None:
        time.sleep(0.2)
        note(*arguments)

    monkeypatch.setattr(upload_grpc.Connectivity, "_note", note_late)
    outcome = upload("--audio-path", short, SINGLE)
    assert_failed(outcome, UNKNOWN, short, words)
    assert len(service.calls) == 1


@pytest.mark.parametrize("way", [(), (SINGLE,)], ids=["stream", "single"])
def test_recordings_that_meet_no_service_for_a_while_are_only_late(
    upload: Run, service: StandIn, tmp_path: Path, way: tuple[str, ...]
) -> None:
    """Those before them went over the same channel; of these nothing was sent."""
    folder = tmp_path / "calls"
    folder.mkdir()
    for number in range(12):
        make_wav(folder / f"{number:02}.wav", 300_000)

    def go_away() -> None:
        service.stop(10)
        time.sleep(0.2)
        service.start()

    words = ("--jobs", 1, "--retries", 50, "--quiet", *way)
    with when(lambda: len(service.talks) >= 3, go_away):
        outcome = upload("--audio-path", folder, *words)
    # A few calls may begin before anybody knows that the connection is gone.
    assert len(service.talks) >= 6
    assert outcome.code in (OK, UNKNOWN)
    assert len(outcome.out.splitlines()) == len(service.talks)


# --- Tries ---------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_tries_come_to_an_end(upload: Run, service: StandIn, short: Path, retries: int) -> None:
    service.script += [Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")] * 9
    outcome = upload("--audio-path", short, "--retries", retries)
    assert_failed(outcome, AGAIN, short, "busy", "RESOURCE_EXHAUSTED", "run again")
    assert len(retry_lines(outcome)) == retries
    assert len(service.calls) == retries + 1
    assert_no_talk(service)


def test_each_try_has_an_id_of_its_own_and_the_last_is_named(
    upload: Run, service: StandIn, short: Path
) -> None:
    service.script += [Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")] * 3
    outcome = upload("--audio-path", short, "--retries", 2)
    ids = [str(call.metadata["x-client-request-id"]) for call in service.calls]
    assert len(set(ids)) == 3
    assert all(re.fullmatch(UUID, request_id) for request_id in ids)
    assert_failed(outcome, AGAIN, short, f"request {ids[-1]}")


@pytest.mark.parametrize(
    "way", [(), (SINGLE,), ("--split", "--wait")], ids=["stream", "single", "split"]
)
def test_tries_that_failed_keep_no_connection(
    service: StandIn, tmp_path: Path, way: tuple[str, ...]
) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    for number in range(100):
        make_wav(folder / f"{number}.wav", 3_000)
    service.script += [Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy"), None] * 100
    service.badge_polls = 0
    # Pauses of 0.1 s, and nobody who collects what hangs together in circles.
    (tmp_path / "sitecustomize.py").write_text(
        "import gc, random\n\ngc.enable = int\nrandom.uniform = lambda low, high: 0.1\n"
    )
    words = ("--jobs", 4, "--retries", 100, "--quiet", "--audio-path", folder, *way)
    open_files = []
    with start(*arguments(service, *words), env={"PYTHONPATH": str(tmp_path)}) as process:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                open_files.append(len(os.listdir(f"/proc/{process.pid}/fd")))
            time.sleep(0.01)
    assert process.returncode == OK
    assert max(open_files) < 80


def test_quiet_silences_the_tries_but_not_the_failure(
    upload: Run, service: StandIn, short: Path
) -> None:
    service.script += [Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")] * 3
    words = ("--audio-path", short, "--retries", 1, "--quiet")
    failed, uploaded = upload(*words), upload(*words)
    assert_failed(failed, AGAIN, short, "busy")
    assert retry_lines(failed) == []
    assert (uploaded.code, uploaded.err) == (OK, "")


def test_pauses_grow_to_a_limit_with_full_jitter(
    upload: Run, service: StandIn, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_grpc, "BACKOFF_S", 0.5)
    monkeypatch.setattr(upload_grpc, "BACKOFF_LIMIT_S", 3.0)
    ranges: list[tuple[float, float]] = []

    def uniform(lowest: float, highest: float) -> float:
        ranges.append((lowest, highest))
        return 0.01

    monkeypatch.setattr(random, "uniform", uniform)
    service.script += [Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")] * 5
    assert upload("--audio-path", short, "--retries", 5, "--quiet").code == OK
    assert ranges == [(0, 1.0), (0, 2.0), (0, 3.0), (0, 3.0), (0, 3.0)]


def test_the_key_file_is_read_again_for_each_try(
    upload: Run, service: StandIn, short: Path, tmp_path: Path
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("old-key")
    renewed = tmp_path / "renewed"
    renewed.write_text(KEY)
    service.script.append(busy(0.3, after_bytes=0))
    with when(lambda: service.calls, lambda: renewed.replace(key_file)):
        outcome = upload("--audio-path", short, "--key-file", key_file)
    assert_uploaded(outcome, service, short)
    sent = [call.metadata["authorization"] for call in service.calls]
    assert sent == ["Api-Key old-key", f"Api-Key {KEY}"]


# --- A service, or a proxy, that goes away and comes back ----------------------------


def test_a_service_that_restarts_gets_the_recording_from_the_next_try(
    upload: Run, service: StandIn, long: Path
) -> None:
    service.script.append(Freeze(300_000))

    def arriving() -> bool:
        return bool(service.calls and service.calls[0].bytes_received)

    with when(arriving, lambda: service.restart(down_s=0.3)):
        outcome = upload("--audio-path", long, "--retries", 20)
    assert_uploaded(outcome, service, long)
    assert retry_lines(outcome)


def test_a_service_that_stops_in_good_order_gets_the_whole_recording(
    upload: Run, service: StandIn, long: Path
) -> None:
    service.script.append(Slow(6_000_000))

    def arriving() -> bool:
        return bool(service.calls and service.calls[0].bytes_received)

    with when(arriving, lambda: service.stop(grace_s=10)):
        outcome = upload("--audio-path", long, "--retries", 0)
    assert_uploaded(outcome, service, long)
    assert outcome.err == ""


AGED = ("grpc.max_connection_age_ms", 200)


def test_a_connection_that_the_service_retires_is_replaced(
    upload: Run, tmp_path: Path, long: Path
) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    recordings = [make_wav(folder / f"{number}.wav", 2_000_000) for number in range(6)]
    with StandIn(tmp_path / "aging", options=(AGED, NOTHING_AHEAD)) as service:
        service.script += [Slow(10_000_000)] * 6
        words = ("--endpoint", service.endpoint, "--ca-file", service.ca_file, "--jobs", 2)
        outcome = upload("--audio-path", folder, "--quiet", *words)
    assert (outcome.code, outcome.err) == (OK, "")
    assert {talk.sha256 for talk in service.talks.values()} == set(map(sha256, recordings))
    assert len(service.calls) == 6
    assert len({call.peer for call in service.calls}) > 1


def test_an_upload_longer_than_its_connection_may_live_is_not_lost(
    upload: Run, tmp_path: Path, long: Path
) -> None:
    grace = ("grpc.max_connection_age_grace_ms", 100)
    with StandIn(tmp_path / "aging", options=(AGED, grace, NOTHING_AHEAD)) as service:
        service.script.append(Slow(4_000_000))
        words = ("--endpoint", service.endpoint, "--ca-file", service.ca_file)
        outcome = upload("--audio-path", long, *words)
        assert len(retry_lines(outcome)) == 1
        assert_uploaded(outcome, service, long)
        assert len(service.calls) == 2


@pytest.mark.parametrize("way", [(), (SINGLE,)], ids=["stream", "single"])
@pytest.mark.parametrize(
    ("mode", "tries", "code"), [("works", 1, OK), ("407", 1, CONFIG), ("502", 3, AGAIN)]
)
def test_a_proxy_that_refuses_for_good_is_not_asked_again(
    upload: Run,
    service: StandIn,
    short: Path,
    mode: Any,
    tries: int,
    code: int,
    way: tuple[str, ...],
) -> None:
    with HttpProxy(mode) as proxy:
        os.environ["https_proxy"] = proxy.url
        outcome = upload("--audio-path", short, "--retries", 2, *way)
        assert len(proxy.targets) == tries
    assert outcome.code == code
    assert len(stored_talks(service.store)) == (code == OK)


def test_a_proxy_that_stays_silent_is_given_up(upload: Run, service: StandIn, short: Path) -> None:
    started_s = time.monotonic()
    with HttpProxy("silent") as proxy:
        os.environ["https_proxy"] = proxy.url
        outcome = upload("--audio-path", short, "--retries", 1, "--timeout", 0.4)
    assert time.monotonic() - started_s < 2
    assert_failed(outcome, AGAIN, short, "no progress for 0.4 s")
    assert len(retry_lines(outcome)) == 1


@pytest.mark.parametrize("way", [(), (SINGLE,)], ids=["stream", "single"])
def test_a_port_that_nobody_listens_on_is_tried_again(
    upload: Run, service: StandIn, short: Path, way: tuple[str, ...]
) -> None:
    service.stop()
    outcome = upload("--audio-path", short, "--retries", 2, *way)
    assert_failed(outcome, AGAIN, short, "failed to connect to all addresses", "run again")
    assert len(retry_lines(outcome)) == 2


def test_grpc_calls_a_header_it_cannot_send_what_the_rules_expect(service: StandIn) -> None:
    # The program never sends one; the rule is for what it may overlook.
    with grpc.insecure_channel(service.endpoint) as channel:
        stub = talk_service_pb2_grpc.TalkServiceStub(channel)
        with pytest.raises(grpc.RpcError) as failure:
            stub.Upload(
                talk_service_pb2.UploadTalkRequest(), metadata=(("authorization", "Api-Key \n"),)
            )
    assert isinstance(failure.value, grpc.Call)
    assert failure.value.code() is grpc.StatusCode.INTERNAL
    assert "Invalid metadata" in str(failure.value.details())


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


def overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"\1" * 1000)


def break_reading(path: Path) -> None:
    """Make reading fail for who has the file open, as on a disk that fails."""
    folder = os.open(path.parent, os.O_RDONLY)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == str(path):
                os.dup2(folder, int(name))
    os.close(folder)


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "grew": (append, "grew or shrank while it was being uploaded"),
    "shrank": (lambda path: os.truncate(path, 3_000_000), "grew or shrank while"),
    "emptied": (lambda path: os.truncate(path, 0), "grew or shrank while"),
    "overwritten": (overwrite, "changed while it was being uploaded"),
    "touched": (os.utime, "changed while it was being uploaded"),
    "replaced": (replace, "was replaced while it was being uploaded"),
    "renamed": (lambda path: path.rename(path.with_name("old")), "went away while"),
    "removed": (os.unlink, "went away while it was being uploaded (No such file"),
    "unreadable": (break_reading, "became unreadable (Is a directory)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_under_way_makes_no_dialog(
    upload: Run, service: StandIn, long: Path, change: str, tmp_path: Path
) -> None:
    act, text = CHANGES[change]
    service.script.append(Slow(10_000_000))
    ledger = tmp_path / "ledger.sqlite"

    def arriving() -> bool:
        return bool(service.calls and service.calls[0].bytes_received)

    with when(arriving, lambda: act(long)):
        outcome = upload("--audio-path", long, "--ledger", ledger)
    assert_failed(outcome, AGAIN, long, text, "nothing was uploaded", "run again")
    assert retry_lines(outcome) == []
    assert len(service.calls) == 1
    assert_no_talk(service)
    assert ledger_rows(ledger) == [("failed", None)]


@pytest.mark.parametrize("way", [(), (SINGLE,)], ids=["stream", "single"])
def test_a_file_that_changes_before_its_turn_makes_no_dialog(
    upload: Run, service: StandIn, short: Path, tmp_path: Path, way: tuple[str, ...]
) -> None:
    first = make_wav(tmp_path / "first.wav", 1_000)
    first.with_suffix(".json").write_text("{}")
    service.script.append(Delay(0.2))
    with when(lambda: service.calls, lambda: append(short)):
        outcome = upload("--audio-path", first, short, "--jobs", 1, "--quiet", *way)
    [talk_id] = service.talks
    assert outcome.out == f"{first}: Dialog ID: {talk_id}\n"
    assert outcome.code == AGAIN
    assert f"{short}: changed after it was checked, nothing was uploaded" in outcome.err
    assert not any(call.bytes_received for call in service.calls[1:])
    assert len(stored_talks(service.store)) == 1


def test_the_next_run_takes_the_file_as_it_is_then(
    upload: Run, service: StandIn, long: Path, tmp_path: Path
) -> None:
    service.script.append(Slow(10_000_000))
    words = ("--audio-path", long, "--ledger", tmp_path / "ledger.sqlite")
    with when(lambda: service.calls and service.calls[0].bytes_received, lambda: append(long)):
        assert upload(*words).code == AGAIN
    assert_uploaded(upload(*words), service, long)


# --- Signals -------------------------------------------------------------------------

SIGNALS = {"SIGINT": 130, "SIGTERM": 143}


def interrupt(
    process: subprocess.Popen[str], ready: Callable[[], Any], name: str
) -> tuple[Outcome, float]:
    """Send a signal when it is time; answer what was left behind, and seconds it took."""
    deadline_s = time.monotonic() + 20
    with process:
        try:
            while not ready():
                assert process.poll() is None and time.monotonic() < deadline_s
                time.sleep(0.005)
            time.sleep(0.05)
            sent_s = time.monotonic()
            process.send_signal(signal.Signals[name])
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    return Outcome(process.returncode, out, err), time.monotonic() - sent_s


def assert_within_a_second(seconds: float) -> None:
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    assert seconds < (3 if busy else 1)


def about(outcome: Outcome, recording: Path) -> list[str]:
    return [line for line in outcome.err.splitlines() if str(recording) in line]


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_before_the_commit_point_leaves_no_dialog(
    service: StandIn, long: Path, tmp_path: Path, upload: Run, name: str
) -> None:
    service.script.append(Freeze(300_000))
    words = ("--audio-path", long, "--ledger", tmp_path / "ledger.sqlite")
    process = start(*arguments(service, *words))
    outcome, seconds = interrupt(
        process, lambda: service.calls and service.calls[0].bytes_received >= 300_000, name
    )
    assert (outcome.code, outcome.out) == (SIGNALS[name], "")
    assert_within_a_second(seconds)
    assert outcome.err.count("run again") == 1
    assert name in outcome.err
    assert "Traceback" not in outcome.err
    assert_no_talk(service)
    assert_uploaded(upload(*words), service, long)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_after_the_commit_point_waits_for_an_answer_that_is_due(
    service: StandIn, short: Path, name: str
) -> None:
    service.script.append(Delay(0.3))
    process = start(*arguments(service, "--audio-path", short))
    outcome, seconds = interrupt(process, lambda: service.talks, name)
    [talk_id] = service.talks
    assert (outcome.code, outcome.out) == (SIGNALS[name], f"Dialog ID: {talk_id}\n")
    assert_within_a_second(seconds)
    assert len(outcome.err.splitlines()) == 1
    assert name in outcome.err


@pytest.mark.parametrize("way", [(), (SINGLE,)], ids=["stream", "single"])
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_after_the_commit_point_names_what_is_unknown(
    service: StandIn, short: Path, tmp_path: Path, upload: Run, name: str, way: tuple[str, ...]
) -> None:
    service.script.append(Freeze(store=True))
    words = ("--audio-path", short, "--ledger", tmp_path / "ledger.sqlite", *way)
    process = start(*arguments(service, *words))
    outcome, seconds = interrupt(process, lambda: service.talks, name)
    assert (outcome.code, outcome.out) == (SIGNALS[name], "")
    assert_within_a_second(seconds)
    [line] = about(outcome, short)
    assert "the dialog may exist or not" in line
    assert re.search(rf"request {UUID}", line)
    assert "look for it in the console" in line
    service.wait_until_idle()
    assert_failed(upload(*words), UNKNOWN, short, "--retry-unknown")
    assert len(service.calls) == 1


def test_a_signal_ends_a_pause_between_tries(service: StandIn, short: Path) -> None:
    service.script.append(busy(60))
    process = start(*arguments(service, "--audio-path", short))
    outcome, seconds = interrupt(
        process, lambda: service.calls and service.calls[0].outcome, "SIGTERM"
    )
    assert outcome.code == 143
    assert_within_a_second(seconds)
    assert_no_talk(service)


def test_a_signal_while_connecting_ends_the_program(service: StandIn, short: Path) -> None:
    with FaultProxy(service.port, lambda _: Fault(silent=True)) as proxy:
        process = start(*arguments(service, "--audio-path", short, "--endpoint", proxy.endpoint))
        outcome, seconds = interrupt(process, lambda: proxy.connections, "SIGINT")
    assert outcome.code == 130
    assert_within_a_second(seconds)
    assert "the dialog may exist" not in outcome.err
