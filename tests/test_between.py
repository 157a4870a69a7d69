"""What stands between the program and the service: proxies, web pages, silence, time.

Nothing of it may cost a call, or make a second dialog of one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

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
    ended,
    make_wav,
    sparse_wav,
    start,
    wait_for,
)
from fault_proxy import Fault, FaultProxy, HttpProxy
from stand_in import At, Call, Fail, StandIn
from test_mechanisms import LARGE_BYTES, Peer, PeerConnection, header
from test_safety import in_a_namespace, is_root

import upload_grpc

pytestmark = pytest.mark.usefixtures("waits")

OK, DATA, AGAIN, UNKNOWN, NO_PERMISSION, CONFIG = 0, 65, 75, 76, 77, 78


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
        connection.end(header(":status", status))
        with contextlib.suppress(ValueError):  # Closed meanwhile.
            while connection.take(1):
                pass

    with Peer(service.ca.issue_cert("localhost"), answer) as peer:
        outcome = upload(*given, "--endpoint", peer.endpoint)
        assert peer.connections[0].taken_bytes < LARGE_BYTES
    assert (outcome.code, outcome.out) == (code, "")
    [line] = outcome.err.splitlines()
    assert words in line and f"status: {status}" in line
    assert "--single-message" not in line
    assert ledgers.states(ledger) == ["rejected" if code == DATA else "failed"]
    if code == DATA:
        assert (upload(*given, "--retry-rejected").code, len(service.talks)) == (OK, 1)


# --- Proxies, by curl's rules ----------------------------------------------------------


@pytest.fixture
def send(upload: Run, call: Path) -> Run:
    """Upload a recording, trying once, with these words and these environment variables."""

    def run(*words: object, **environment: str) -> Outcome:
        for name in list(os.environ):
            if name.lower().endswith("_proxy"):
                del os.environ[name]
        os.environ.update(environment)
        return upload("--audio-path", call, "--retries", 0, *words)

    return run


def test_variables_that_count_and_others(send: Run, service: StandIn) -> None:
    with HttpProxy() as proxy, HttpProxy("502") as other:
        others = dict.fromkeys(("http_proxy", "HTTP_PROXY", "grpc_proxy", "GRPC_PROXY"), other.url)
        assert (send(**others).code, proxy.targets) == (OK, [])
        # The name in small letters counts, as for curl.
        assert (send(https_proxy="", HTTPS_PROXY=proxy.url).code, proxy.targets) == (OK, [])
        for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            del proxy.targets[:]
            assert send(**{name: proxy.url}, **others).code == OK
            assert proxy.targets == [service.endpoint], name
        assert other.targets == []


def test_forms_of_a_proxys_url(send: Run, service: StandIn) -> None:
    with HttpProxy() as proxy:
        host = proxy.url.removeprefix("http://")
        for url in (f"http://{host}", f"{host}/", f"http://user:word@{host}", f"user:word@{host}"):
            assert send(https_proxy=url).code == OK, url
        assert proxy.targets == [service.endpoint] * 4


# Host, what no_proxy says, and whether the call goes past the proxy.
NO_PROXY = (
    *(("localhost", value, True) for value in ("*", "localhost", "LOCALHOST", ".localhost")),
    *(("localhost", value, True) for value in ("example.com, localhost", "localhost:{port}")),
    ("localhost", "example.com localhost", True),
    *(("localhost", value, False) for value in ("localhost:1", "example.com,.internal", "")),
    # `internal` is the suffix of speech.internal, not of myinternal.
    *(("a.internal", value, True) for value in ("internal", ".internal")),
    *(("a.internal", "*.internal", False), ("myinternal", "internal", False)),
    ("localhost", "host", False),
)


def test_names_that_no_proxy_is_asked_for(send: Run, service: StandIn) -> None:
    with HttpProxy(upstream_port=service.port) as proxy:
        names = itertools.product(("https_proxy", "all_proxy"), ("no_proxy", "NO_PROXY"))
        for (proxy_name, name), (host, value, goes_past) in itertools.product(names, NO_PROXY):
            del proxy.targets[:]
            words = ("--endpoint", f"{host}:{service.port}", "--timeout", 5)
            environment = {proxy_name: proxy.url, name: value.format(port=service.port)}
            outcome = send(*words, **environment)
            assert bool(proxy.targets) != goes_past, (host, environment)
            assert (outcome.code == OK) == (host == "localhost"), outcome.err


def assert_hidden(text: str, outcome: Outcome, ledger: Path) -> None:
    """A secret is neither printed nor kept."""
    assert text not in outcome.err + outcome.out
    for path in ledger.parent.glob("ledger.sqlite*"):
        assert text.encode() not in path.read_bytes()


UNUSABLE = (
    *("socks5://{}", "socks5h://{}", "socks4a://{}", "https://{}"),
    *("https://user:pa55-word@{}", "http://user:pa55-word#tail@{}"),
    *("http://user:pa55-word?tail@{}", "http://user:pa55-word@tail@{}"),
    *("http://user:pa55-word/tail@{}", "http://user:pa55-word tail@{}"),
    *("user:pa55-word#tail@{}", "http://us#er:pa55-word@{}"),
    *("http://", "http://:3128", "http://proxy.example:port"),
)


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_proxy_that_cannot_be_used_is_refused_without_its_password(
    send: Run, service: StandIn, ledger: Path, output: str
) -> None:
    with HttpProxy() as proxy:
        for form, name in itertools.product(UNUSABLE, ("https_proxy", "all_proxy")):
            url = form.format(proxy.url.removeprefix("http://"))
            outcome = send("--format", output, "--ledger", ledger, **{name: url})
            assert (outcome.code, outcome.out) == (CONFIG, ""), form
            [line] = outcome.err.splitlines()
            assert "gRPC cannot use the proxy" in line and "http://HOST:PORT" in line
            assert "tail" not in line
            assert_hidden("pa55-word", outcome, ledger)
        assert proxy.targets == [] and service.calls == []


def test_an_escaped_password_reaches_the_proxy(send: Run) -> None:
    for word in ("plain", "a:b", "a%23b", "a%3Fb%40c%2Fd%3Ae", "a%25b", "%D0%BF"):
        with HttpProxy(credentials=f"user:{unquote(word)}") as proxy:
            url = proxy.url.replace("http://", f"http://user:{word}@")
            outcome = send(https_proxy=url)
            assert (outcome.code, outcome.err) == (OK, "")
            wrong = send(https_proxy=url.replace(word, f"{word}x"))
            assert wrong.code == CONFIG and "407" in wrong.err


REFUSED, NO_CONNECTION = "the proxy refused the connection", "no connection to the service"


@WAYS
def test_what_a_proxy_answers(send: Run, service: StandIn, ledger: Path, way: Way) -> None:
    given = (*way, "--ledger", ledger)
    for status, said in (
        *(("403", REFUSED), ("407", REFUSED)),
        *(("408", NO_CONNECTION), ("429", NO_CONNECTION), ("502", NO_CONNECTION)),
    ):
        with HttpProxy(status) as proxy:  # type: ignore[arg-type]
            url = proxy.url.replace("http://", "http://user:pa55%23word@")
            for retries in ((), ("--retries", 2)):
                outcome = send(*given, "--format", "json", *retries, https_proxy=url)
                assert outcome.code == (CONFIG if said == REFUSED else AGAIN), status
                result = json.loads(outcome.out)
                assert result["outcome"] == "failed" and said in result["error"]
                assert said in outcome.err and status in outcome.err
                assert ("check https_proxy" in outcome.err) == (said == REFUSED)
                assert "user:" not in outcome.err + outcome.out
                assert_hidden("pa55", outcome, ledger)
            assert len(proxy.targets) == (2 if said == REFUSED else 4)
        assert ledgers.states(ledger) == ["failed"]
    assert (send(*given).code, len(service.talks)) == (OK, 1)


def test_a_proxys_password_in_an_error_is_masked(send: Run, service: StandIn, ledger: Path) -> None:
    """Escaped or not, also where the service itself has seen it somewhere, or in grpc's words."""
    text = "denied for user:pa55#word, pa55%23word and pa55#word"
    service.script.append(Fail(grpc.StatusCode.INVALID_ARGUMENT, text))
    with HttpProxy() as proxy:
        url = proxy.url.replace("http://", "http://user:pa55%23word@")
        outcome = send("--ledger", ledger, "--format", "json", https_proxy=url)
    assert outcome.code == DATA and "denied for ***, *** and ***" in outcome.err
    assert_hidden("pa55", outcome, ledger)
    with HttpProxy("407") as proxy:
        outcome = send(https_proxy=proxy.url.replace("http://", "http://user:proxy@"))
    assert outcome.code == CONFIG and "HTTP *** returned response code 407" in outcome.err


# --- Silence before there is a connection --------------------------------------------


def assert_no_connection(outcome: Outcome, ledger: Path) -> None:
    assert (outcome.code, outcome.out) == (AGAIN, "")
    assert "no connection to the service; run again" in outcome.err and "0.5 s" in outcome.err
    assert "before it was complete" not in outcome.err
    assert ledgers.states(ledger) == ["failed"]


@WAYS
def test_a_silent_proxy_or_peer_is_no_connection(
    send: Run, service: StandIn, ledger: Path, way: Way
) -> None:
    words = (*way, "--timeout", 0.5, "--ledger", ledger)
    with HttpProxy("silent") as proxy:
        assert_no_connection(send(*words, https_proxy=proxy.url), ledger)
        assert proxy.targets
    with FaultProxy(service.port, lambda _: Fault(silent=True)) as peer:
        assert_no_connection(send(*words, "--endpoint", peer.endpoint), ledger)
        assert peer.connections


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
            "--timeout", 0.5, "--retries", 0, "--ledger", ledger,
        )  # fmt: skip
        target = os.path.realpath("/etc/resolv.conf")
        outcome = in_a_namespace(f"mount --bind {tmp_path}/resolv.conf {target}", *words)
        silent.setblocking(False)
        assert b"speech" in silent.recv(1000)
    assert_no_connection(outcome, ledger)


# --- Time in which we do not run, and clocks that are wrong ---------------------------


def test_a_process_that_is_stopped_makes_nothing_unknown(
    service: StandIn, folder: Path, ledger: Path
) -> None:
    """SIGSTOP, a suspended machine: for longer than --timeout.

    Of one recording the answer is due, of the other a part is sent.
    """
    make_wav(folder / "due.wav", 3_000)
    make_wav(folder / "half.wav", LONG_BYTES)
    go_on = threading.Event()

    def wait(_: Call) -> None:
        assert go_on.wait(30)

    def wait_if_long(call: Call) -> None:
        if call.bytes_received > 100_000:
            wait(call)

    service.on_call = lambda _: At(audio=wait_if_long, answer=wait)
    words = arguments(service, "--audio-path", folder, "--ledger", ledger, "--timeout", 6)
    with start(*words, "--retries", "0", "--quiet") as process:
        try:
            wait_for(lambda: sum(call.bytes_received > 0 for call in service.calls) == 2)
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(7)
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.3)
        finally:
            go_on.set()
            os.kill(process.pid, signal.SIGCONT)
        outcome = ended(process)
    assert (outcome.code, len(service.talks)) == (OK, 2), outcome.err
    assert ledgers.states(ledger) == ["uploaded"] * 2


SetClock = Callable[[float], None]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """Have the clock go wrong by so many seconds."""
    really = time.time
    return lambda offset_s: monkeypatch.setattr(time, "time", lambda: really() + offset_s)


@pytest.mark.parametrize("offset_s", [-(10**8), 10**8], ids=["behind", "ahead"])
def test_a_clock_that_was_wrong_once_leaves_no_doubt(
    upload: Run, service: StandIn, folder: Path, ledger: Path, set_clock: SetClock, offset_s: int
) -> None:
    """What is later is asked of the ledger's own count, and doubt of its last run."""
    make_wav(folder / "0.wav", 3_000)
    words = ("--audio-path", folder, "--ledger", ledger, "--retries", 0, "--timeout", 20)
    set_clock(offset_s)
    service.script.append(Fail(grpc.StatusCode.UNAVAILABLE, "gone", store=True))
    assert upload(*words).code == UNKNOWN
    set_clock(0)
    assert abs(upload_grpc.seconds_of(ledgers.row(ledger)["sent_at"]) - time.time()) > 10**7
    assert upload(*words, "--retry-unknown").code == OK
    for number in range(1, 5):
        make_wav(folder / f"{number}.wav", 3_000)
    # All at once: a run in doubt would send the first one alone.
    together = threading.Barrier(4)

    def wait(_: Call) -> None:
        together.wait(15)

    service.on_call = lambda _: At(answer=wait)
    outcome = upload(*words, "--quiet")
    assert (outcome.code, len(service.talks)) == (OK, 6), outcome.err
    assert not together.broken
    sequence = [row["sequence"] for row in ledgers.rows(ledger)]
    assert sorted(sequence) == sorted(set(sequence)), "each commit point has a number of its own"


def test_the_sequence_counts_commit_points_whatever_the_clock(
    upload: Run, folder: Path, ledger: Path, set_clock: SetClock
) -> None:
    names = ["c.wav", "a.wav", "d.wav", "b.wav"]
    for name, offset_s in zip(names, (10**7, -(10**7), 10**8, 0), strict=True):
        make_wav(folder / name, 3_000)
        set_clock(offset_s)
        assert upload("--audio-path", folder, "--ledger", ledger).code == OK
    rows = sorted(ledgers.rows(ledger), key=lambda row: int(row["sequence"]))
    assert [os.path.basename(row["path"]) for row in rows] == names
    assert [row["sequence"] for row in rows] == [1, 2, 3, 4]


# --- A ledger that cannot be written when it matters ------------------------------------


def test_a_ledger_that_is_locked_when_a_result_is_to_be_written(
    upload: Run, service: StandIn, tmp_path: Path, ledger: Path, waits: Waits
) -> None:
    waits(ledger_lock=0.4)
    paths = [make_wav(tmp_path / f"{name}.wav", 3_000) for name in "ab"]
    words = ("--audio-path", *paths, "--jobs", 1, "--ledger", ledger, "--format", "json")
    upload(*words, "--dry-run")
    lock = ledgers.Lock(ledger)
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
    lock = ledgers.Lock(ledger)

    def hold_and_stop(_: object) -> None:
        lock.hold()
        time.sleep(0.8)
        os.kill(os.getpid(), signal.SIGTERM)

    service.on_call = lambda _: At(answer=hold_and_stop)
    outcome = upload(*words)
    lock.release()
    assert outcome.code == 128 + signal.SIGTERM
    assert outcome.err.count("database is locked; find what holds it") == 1
    assert re.search(
        r"0 uploaded, 0 already there, \d failed, \d unk", outcome.err.splitlines()[-1]
    )


@pytest.mark.parametrize("moment", ["commit points", "answers"])
def test_a_lock_is_waited_for_and_that_is_no_silence_of_the_service(
    upload: Run, service: StandIn, tmp_path: Path, ledger: Path, moment: str
) -> None:
    """For longer than --timeout: at a commit point, and beside calls whose answers are due."""
    size_bytes = LONG_BYTES if moment == "commit points" else 3_000
    paths = [make_wav(tmp_path / f"{name}.wav", size_bytes) for name in "ab"]
    words = ("--audio-path", *paths, "--ledger", ledger, "--timeout", 2, "--retries", 0)
    upload(*words, "--dry-run")
    lock = ledgers.Lock(ledger)
    held = threading.Lock()

    def hold(_: Call) -> None:
        with held:
            if not lock.is_held:
                lock.hold()
                threading.Timer(3, lock.release).start()

    at = At(audio=hold) if moment == "commit points" else At(answer=hold)
    service.on_call = lambda _: at
    outcome = upload(*words)
    assert lock.is_held
    assert (outcome.code, len(service.talks)) == (OK, 2), outcome.err
    assert ledgers.states(ledger) == ["uploaded"] * 2
