"""What stands between the program and the service: proxies, web pages, silence, time.

Nothing of it may cost a call, or make a second dialog of one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

import grpc
import ledgers
import pytest
from conftest import (
    LONG_BYTES,
    WAYS,
    Outcome,
    Run,
    Waits,
    Way,
    arguments,
    begin_ledger,
    make_wav,
    own_clock,
    sparse_wav,
    start,
    wait_for,
)
from fault_proxy import Fault, FaultProxy, HttpProxy
from stand_in import At, Call, Fail, StandIn
from test_mechanisms import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    LARGE_BYTES,
    Peer,
    PeerConnection,
    header,
)
from test_safety import in_a_namespace, is_root

import upload_grpc

pytestmark = pytest.mark.usefixtures("waits")

OK, DATA, AGAIN, UNKNOWN, NO_PERMISSION, CONFIG = 0, 65, 75, 76, 77, 78
PROXY_VARIABLES = (
    *("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "http_proxy"),
    *("HTTP_PROXY", "grpc_proxy", "GRPC_PROXY", "no_proxy", "NO_PROXY"),
)


def outcome_of(process: subprocess.Popen[str]) -> Outcome:
    out, err = process.communicate(timeout=60)
    return Outcome(process.returncode, out, err)


# --- Web pages in place of the service -----------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        ("401", NO_PERMISSION, "credential"),
        ("403", NO_PERMISSION, "credential"),
        ("404", CONFIG, "--endpoint"),
        ("413", DATA, "too large for something between here and the service"),
        ("502", AGAIN, "failed before it was complete"),
    ],
)
def test_a_page_before_the_last_byte(
    upload: Run, service: StandIn, ledger: Path, tmp_path: Path, status: str, code: int, words: str
) -> None:
    """Nothing can have been made; after the last byte see test_an_end_that_is_no_answer."""
    path = sparse_wav(tmp_path / "call.wav", LARGE_BYTES)
    path.with_suffix(".json").write_text("{}")
    given = ("--audio-path", path, "--ledger", ledger, "--retries", 0)

    def answer(connection: PeerConnection) -> None:
        connection.take(100_000)
        connection._send(1, HEADERS, END_HEADERS | END_STREAM, header(":status", status))
        with contextlib.suppress(ValueError):  # Closed meanwhile.
            while connection.take(1):
                pass

    with Peer(service.ca.issue_cert("localhost"), answer) as peer:
        outcome = upload(*given, "--endpoint", f"localhost:{peer.port}")
        assert peer.connections[0].taken_bytes < LARGE_BYTES
    assert (outcome.code, outcome.out) == (code, "")
    [line] = outcome.err.splitlines()
    assert words in line and f"status: {status}" in line
    assert "--single-message" not in line
    assert ledgers.states(ledger) == ["rejected" if code == DATA else "failed"]
    again = upload(*given, *["--retry-rejected"] * (code == DATA))
    assert (again.code, len(service.talks)) == (OK, 1)


# --- Proxies, by curl's rules ----------------------------------------------------------


@pytest.fixture
def send(upload: Run, call: Path, ledger: Path) -> Run:
    """Upload a recording, trying once, with these words and these environment variables."""

    def run(*words: object, **environment: str) -> Outcome:
        for name in PROXY_VARIABLES:  # The program may have set them before.
            os.environ.pop(name, None)
        os.environ.update(environment)
        return upload("--audio-path", call, "--retries", 0, *words)

    return run


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
def test_variables_that_count(send: Run, service: StandIn, name: str) -> None:
    with HttpProxy() as proxy, HttpProxy("502") as other:
        others = {"http_proxy": other.url, "grpc_proxy": other.url}
        assert send(**{name: proxy.url}, **others).code == OK
        assert (proxy.targets, other.targets) == ([service.endpoint], [])


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "grpc_proxy", "GRPC_PROXY"])
def test_variables_that_do_not_count(send: Run, service: StandIn, name: str) -> None:
    with HttpProxy("502") as proxy:
        assert (send(**{name: proxy.url}).code, len(service.talks)) == (OK, 1)
        assert proxy.targets == []


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize(
    ("value", "goes_past"),
    [
        ("*", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("example.com, localhost", True),
        ("localhost:{port}", True),
        ("localhost:1", False),
        ("example.com,.internal", False),
        ("host", False),
        (".localhost", True),
        ("", False),
    ],
)
def test_names_that_no_proxy_is_asked_for(
    send: Run, service: StandIn, name: str, value: str, goes_past: bool
) -> None:
    with HttpProxy() as proxy:
        value = value.format(port=service.port)
        for proxy_name in ("https_proxy", "all_proxy"):
            assert send(**{proxy_name: proxy.url, name: value}).code == OK
        assert len(proxy.targets) == (0 if goes_past else 2)


def test_a_suffix_is_that_of_a_whole_name(send: Run, service: StandIn, tmp_path: Path) -> None:
    """`internal` is that of speech.internal, not of myinternal."""
    with (
        StandIn(tmp_path / "other", names=["a.internal", "myinternal", "internal"]) as other,
        HttpProxy(upstream_port=other.port) as proxy,
    ):
        words = ("--ca-file", other.ca_file, "--timeout", 5)
        for host, value, goes_past in (
            ("a.internal", "internal", True),
            ("a.internal", ".internal", True),
            ("a.internal", "*.internal", False),
            ("myinternal", "internal", False),
        ):
            del proxy.targets[:]
            outcome = send(*words, "--endpoint", host, https_proxy=proxy.url, no_proxy=value)
            assert bool(proxy.targets) != goes_past, (host, value)
            assert (outcome.code == OK) != goes_past, outcome.err


@pytest.mark.parametrize(
    "form",
    [
        "socks5://{host}",
        "socks5h://{host}",
        "socks4a://{host}",
        "https://{host}",
        "https://user:pa55-word@{host}",
        "http://user:pa55-word#tail@{host}",
        "http://user:pa55-word?tail@{host}",
        "http://user:pa55-word@tail@{host}",
        "http://user:pa55-word/tail@{host}",
        "http://user:pa55-word tail@{host}",
        "user:pa55-word#tail@{host}",
        "http://us#er:pa55-word@{host}",
    ],
)
@pytest.mark.parametrize("output", ["text", "json"])
def test_a_proxy_that_cannot_be_used_is_refused_without_its_password(
    send: Run, service: StandIn, ledger: Path, form: str, output: str
) -> None:
    with HttpProxy() as proxy:
        url = form.format(host=proxy.url.removeprefix("http://"))
        for name in ("https_proxy", "all_proxy"):
            outcome = send("--format", output, "--ledger", ledger, **{name: url})
            assert (outcome.code, outcome.out) == (CONFIG, "")
            [line] = outcome.err.splitlines()
            assert "gRPC cannot use the proxy" in line and "http://HOST:PORT" in line
            assert "pa55-word" not in line and "tail" not in line
        assert proxy.targets == [] and service.calls == []
    for path in ledger.parent.glob("ledger.sqlite*"):
        assert b"pa55-word" not in path.read_bytes()


@pytest.mark.parametrize("word", ["plain", "a:b", "a%23b", "a%3Fb%40c%2Fd%3Ae", "a%25b", "%D0%BF"])
def test_an_escaped_password_reaches_the_proxy(send: Run, service: StandIn, word: str) -> None:
    from urllib.parse import unquote

    with HttpProxy(credentials=f"user:{unquote(word)}") as proxy:
        url = proxy.url.replace("http://", f"http://user:{word}@")
        outcome = send(https_proxy=url)
        assert (outcome.code, outcome.err) == (OK, "")
        wrong = send(https_proxy=url.replace(word, f"{word}x"))
        assert wrong.code == CONFIG and "407" in wrong.err


@WAYS
@pytest.mark.parametrize(
    ("mode", "code", "words"),
    [
        ("403", CONFIG, "the proxy refused the connection"),
        ("407", CONFIG, "the proxy refused the connection"),
        ("408", AGAIN, "no connection to the service"),
        ("429", AGAIN, "no connection to the service"),
        ("502", AGAIN, "no connection to the service"),
    ],
)
def test_what_a_proxy_answers(
    send: Run, service: StandIn, ledger: Path, mode: str, code: int, words: str, way: Way
) -> None:
    with HttpProxy(mode) as proxy:  # type: ignore[arg-type]
        url = proxy.url.replace("http://", "http://user:pa55%23word@")
        for number in range(2):
            retries = () if number else ("--retries", 2)
            outcome = send(*way, "--ledger", ledger, "--format", "json", *retries, https_proxy=url)
            assert outcome.code == code
            result = json.loads(outcome.out)
            assert result["outcome"] == "failed" and words in result["error"]
            assert words in outcome.err and mode in outcome.err
            for text in ("pa55", "user:"):
                assert text not in outcome.err + outcome.out
        assert len(proxy.targets) == (4 if code == AGAIN else 2)
    assert ledgers.states(ledger) == ["failed"]
    for path in ledger.parent.glob("ledger.sqlite*"):
        assert b"pa55" not in path.read_bytes()
    assert send(*way, "--ledger", ledger).code == OK
    assert len(service.talks) == 1


def test_a_proxys_password_in_an_error_is_masked(send: Run, service: StandIn, ledger: Path) -> None:
    """Escaped or not, also where the service itself has seen it somewhere."""
    text = "denied for user:pa55#word, pa55%23word and pa55#word"
    service.script.append(Fail(grpc.StatusCode.INVALID_ARGUMENT, text))
    with HttpProxy() as proxy:
        url = proxy.url.replace("http://", "http://user:pa55%23word@")
        outcome = send("--ledger", ledger, "--format", "json", https_proxy=url)
    assert outcome.code == DATA and "denied for ***, *** and ***" in outcome.err
    assert "pa55" not in outcome.err + outcome.out
    for path in ledger.parent.glob("ledger.sqlite*"):
        assert b"pa55" not in path.read_bytes()


# --- Silence before there is a connection --------------------------------------------


def assert_no_connection(outcome: Outcome, ledger: Path) -> None:
    assert (outcome.code, outcome.out) == (AGAIN, "")
    assert "no connection to the service; run again" in outcome.err
    assert "before it was complete" not in outcome.err
    assert ledgers.states(ledger) == ["failed"]


@WAYS
def test_a_silent_proxy_is_no_connection(send: Run, ledger: Path, way: Way) -> None:
    with HttpProxy("silent") as proxy:
        outcome = send(*way, "--timeout", 0.5, "--ledger", ledger, https_proxy=proxy.url)
        assert proxy.targets
    assert_no_connection(outcome, ledger)


@WAYS
def test_a_silent_tls_peer_is_no_connection(
    send: Run, service: StandIn, ledger: Path, way: Way
) -> None:
    with FaultProxy(service.port, lambda _: Fault(silent=True)) as proxy:
        words = ("--endpoint", proxy.endpoint, "--timeout", 0.5, "--ledger", ledger)
        outcome = send(*way, *words)
        assert proxy.connections
    assert_no_connection(outcome, ledger)


@WAYS
def test_a_silent_name_server_is_no_connection(
    service: StandIn, call: Path, ledger: Path, tmp_path: Path, way: Way
) -> None:
    if not is_root():
        pytest.skip("only root may be a name server")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        address = f"127.77.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
        silent.bind((address, 53))
        (tmp_path / "resolv.conf").write_text(f"nameserver {address}\noptions timeout:30\n")
        words = arguments(
            service, "--audio-path", call, *way, "--endpoint", "speech.example.com:443",
            "--timeout", 1, "--retries", 0, "--ledger", ledger,
        )  # fmt: skip
        target = os.path.realpath("/etc/resolv.conf")
        outcome = in_a_namespace(f"mount --bind {tmp_path}/resolv.conf {target}", *words)
        silent.setblocking(False)
        assert b"speech" in silent.recv(1000)
    assert_no_connection(outcome, ledger)


# --- Time in which we do not run, and clocks that are wrong ---------------------------


@pytest.mark.parametrize("moment", ["the answers are due", "half is sent"])
def test_a_process_that_is_stopped_makes_nothing_unknown(
    service: StandIn, tmp_path: Path, ledger: Path, moment: str
) -> None:
    """SIGSTOP, a suspended machine: for longer than --timeout, while answers are due."""
    folder = tmp_path / "calls"
    folder.mkdir()
    for name in "ab":
        make_wav(folder / f"{name}.wav", LONG_BYTES if "half" in moment else 3_000)
    go_on = threading.Event()

    def wait(_: Call) -> None:
        assert go_on.wait(30)

    service.on_call = lambda _: At(audio=wait) if "half" in moment else At(answer=wait)
    words = arguments(service, "--audio-path", folder, "--ledger", ledger, "--timeout", 2)
    with start(*words, "--retries", "0", "--quiet") as process:
        try:
            wait_for(lambda: sum(call.bytes_received > 0 for call in service.calls) == 2)
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(4)
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.3)
        finally:
            go_on.set()
            os.kill(process.pid, signal.SIGCONT)
        outcome = outcome_of(process)
    assert (outcome.code, len(service.talks)) == (OK, 2), outcome.err
    assert ledgers.states(ledger) == ["uploaded"] * 2


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """Give the commands of a test a clock that goes wrong by the seconds in this file."""
    environment, offset = own_clock(tmp_path / "site")
    os.environ.update(environment)
    return offset


@pytest.mark.parametrize("offset_s", [-(10**8), 10**8], ids=["behind", "ahead"])
def test_a_clock_that_was_wrong_once_leaves_no_doubt(
    service: StandIn, tmp_path: Path, ledger: Path, clock: Path, offset_s: int
) -> None:
    """What is later is asked of the ledger's own count, and doubt of its last run."""
    folder = tmp_path / "calls"
    folder.mkdir()
    make_wav(folder / "0.wav", 3_000)
    words = arguments(
        service, "--audio-path", folder, "--ledger", ledger, "--retries", 0, "--timeout", 20
    )
    clock.write_text(str(offset_s))
    service.script.append(Fail(grpc.StatusCode.UNAVAILABLE, "gone", store=True))
    with start(*words) as process:
        assert outcome_of(process).code == UNKNOWN
    assert abs(upload_grpc.seconds_of(ledgers.row(ledger)["sent_at"]) - time.time()) > 10**7
    clock.write_text("0")
    with start(*words, "--retry-unknown") as process:
        assert outcome_of(process).code == OK
    for number in range(1, 5):
        make_wav(folder / f"{number}.wav", 3_000)
    # All at once: a run in doubt would send the first one alone.
    together = threading.Barrier(4)

    def wait(_: Call) -> None:
        together.wait(15)

    service.on_call = lambda _: At(answer=wait)
    with start(*words, "--quiet") as process:
        outcome = outcome_of(process)
    assert (outcome.code, len(service.talks)) == (OK, 6), outcome.err
    assert not together.broken
    sequence = [row["sequence"] for row in ledgers.rows(ledger)]
    assert sorted(sequence) == sorted(set(sequence)), "each commit point has a number of its own"


def test_the_sequence_counts_commit_points_whatever_the_clock(
    service: StandIn, tmp_path: Path, ledger: Path, clock: Path
) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    names = ["c.wav", "a.wav", "d.wav", "b.wav"]
    for name, offset_s in zip(names, (10**7, -(10**7), 10**8, 0), strict=True):
        make_wav(folder / name, 3_000)
        clock.write_text(str(offset_s))
        words = arguments(service, "--audio-path", folder, "--ledger", ledger)
        with start(*words) as process:
            assert outcome_of(process).code == OK
    rows = sorted(ledgers.rows(ledger), key=lambda row: int(row["sequence"]))
    assert [os.path.basename(row["path"]) for row in rows] == names
    assert [row["sequence"] for row in rows] == [1, 2, 3, 4]


# --- A ledger that cannot be written when it matters ------------------------------------


class Lock:
    """What another program does that keeps the ledger locked; from any thread."""

    def __init__(self, ledger: Path) -> None:
        self._database = sqlite3.connect(ledger, check_same_thread=False, isolation_level=None)
        self.is_held = False

    def hold(self, _: object = None) -> None:
        self.is_held = True
        self._database.execute("BEGIN IMMEDIATE")

    def release(self) -> None:
        self._database.close()


def test_a_ledger_that_is_locked_when_a_result_is_to_be_written(
    upload: Run, service: StandIn, tmp_path: Path, ledger: Path, waits: Waits
) -> None:
    waits(ledger_lock=0.4)
    paths = [make_wav(tmp_path / f"{name}.wav", 3_000) for name in "ab"]
    words = ("--audio-path", *paths, "--jobs", 1, "--ledger", ledger, "--format", "json")
    upload(*words, "--dry-run")
    lock = Lock(ledger)
    service.on_call = lambda _: At(answer=lock.hold)
    outcome = upload(*words)
    lock.release()
    [talk_id] = service.talks
    [first, *others] = map(json.loads, outcome.out.splitlines())
    said = f"uploaded as {talk_id}, but the ledger could not record it"
    assert first["exit_code"] == UNKNOWN and first["outcome"] == "unknown"
    assert said in first["error"] and first["talk_id"] == talk_id
    assert said in outcome.err and "another program" in outcome.err
    assert outcome.code == CONFIG, "of the run: 78"
    assert not others and "1 not tried" in outcome.err
    assert ledgers.states(ledger) == ["finishing"]
    service.on_call = lambda _: None
    again = upload(*words)
    assert again.code == UNKNOWN and len(service.talks) == 2
    assert "the run ended before its result was recorded" in again.err
    assert "killed" not in again.err


def test_a_signal_ends_a_run_whose_ledger_stays_locked(
    upload: Run, service: StandIn, tmp_path: Path, ledger: Path, waits: Waits
) -> None:
    waits(ledger_lock=0.4)
    paths = [make_wav(tmp_path / f"{name}.wav", 3_000) for name in "ab"]
    words = ("--audio-path", *paths, "--jobs", 2, "--ledger", ledger, "--quiet")
    begin_ledger(str(ledger))
    lock = Lock(ledger)

    def hold_and_stop(_: object) -> None:
        lock.hold()
        time.sleep(0.8)
        os.kill(os.getpid(), signal.SIGTERM)

    service.on_call = lambda _: At(answer=hold_and_stop)
    outcome = upload(*words)
    lock.release()
    assert outcome.code == 128 + signal.SIGTERM
    assert outcome.err.count("database is locked; find what holds it") == 1
    assert "0 uploaded, 0 already there, 0 failed" in outcome.err.splitlines()[-1]


@pytest.mark.parametrize("moment", ["commit points", "answers"])
def test_a_lock_is_waited_for_and_that_is_no_silence_of_the_service(
    upload: Run, service: StandIn, tmp_path: Path, ledger: Path, moment: str
) -> None:
    """For longer than --timeout: at a commit point, and beside calls whose answers are due."""
    size_bytes = LONG_BYTES if moment == "commit points" else 3_000
    paths = [make_wav(tmp_path / f"{name}.wav", size_bytes) for name in "ab"]
    upload("--audio-path", *paths, "--dry-run", "--ledger", ledger)
    lock = Lock(ledger)
    held = threading.Lock()

    def hold(_: Call) -> None:
        with held:
            if not lock.is_held:
                lock.hold()
                threading.Timer(3, lock.release).start()

    at = At(audio=hold) if moment == "commit points" else At(answer=hold)
    service.on_call = lambda _: at
    words = ("--audio-path", *paths, "--ledger", ledger, "--timeout", 1, "--retries", 0)
    outcome = upload(*words)
    assert lock.is_held
    assert (outcome.code, len(service.talks)) == (OK, 2), outcome.err
    assert ledgers.states(ledger) == ["uploaded"] * 2


def test_after_a_signal_a_lock_is_not_waited_for(
    service: StandIn, call: Path, ledger: Path
) -> None:
    """A minute is what a result is worth; not what ends a run."""
    words = arguments(service, "--audio-path", call, "--ledger", ledger)
    lock = Lock(ledger)
    service.on_call = lambda _: At(answer=lock.hold)
    with start(*words) as process:
        wait_for(lambda: service.calls and all(each.outcome for each in service.calls))
        time.sleep(0.5)  # Until the answer has come.
        process.terminate()
        try:
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    lock.release()
    [talk_id] = service.talks
    assert process.returncode == 128 + signal.SIGTERM
    assert f"Dialog ID: {talk_id}" in out
    assert f"uploaded as {talk_id}, but the ledger could not record it" in err
    assert ledgers.states(ledger) == ["finishing"]
