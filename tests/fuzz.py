"""Generated input by the hundred thousand, for everything that reads what others wrote.

    python tests/fuzz.py --examples 100000 --seed 7

Hypothesis makes up recordings (what real encoders wrote, damaged), metadata, credentials, a VM's
metadata service, answers of the service, and command lines; main() is fed with them. Whatever
comes in, the program has to end with an exit code that fits, in bounded time and memory, with
lines of its own on stderr, no traceback, and without showing a key. Of what breaks the rules the
smallest input is printed, as Python that test_fuzz.py can repeat, and its files are kept; the
same seed, with as many examples, finds it again. The last line counts: "100,000 passed, 0 failed".
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import functools
import http.server
import io
import itertools
import json
import os
import resource
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# As the program does; must stand in the environment before anybody imports grpc.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import encoders
import grpc
import histories
import hypothesis
from hypothesis import strategies as st
from stand_in import Fail, StandIn

import upload_grpc

EXAMPLES = 100_000
# So many are made at once: Hypothesis takes as long to begin a case as to make some of them.
CASE = 25
RUN_LIMIT_S = 5.0
RUN_LIMIT_BYTES = 64 * 1024 * 1024
LINE_LIMIT_CHARACTERS = 5_000
# Nothing else in a line of the program contains it.
SECRET = "AQVN-fuzz-Zq7sJt_8wLd"

USAGE = 2
DATA_CODES = {0, os.EX_DATAERR}
CONVERSION_CODES = {*DATA_CODES, os.EX_TEMPFAIL}  # FFmpeg may crash.
KEY_CODES = {0, os.EX_CONFIG, os.EX_NOPERM}
SERVICE_CODES = {0, 65, 75, 76, 77, 78}
COMMAND_CODES = {0, USAGE, 65, 66, 74, 75, 76, 77, 78}  # All, but for a bug and signals.


class Hang(Exception):
    """A run took too long."""


# --- What is generated -------------------------------------------------------------------------

INTERESTING = (
    *(b"\0" * 4, b"\xff" * 4, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\0\0\0\x80"),
    *(b"OggS", b"ID3", b"\xff\xfb", b"data", b"\0\0"),
)
choice = st.sampled_from
CHARACTERS = "".join(map(chr, range(0x180))) + "Звонок\u2028\u202e\ufeff\uffff\U0001f4de"
plain_text = st.text(CHARACTERS, max_size=20)
# Also halves of surrogate pairs, which JSON can name.
text = st.text(f"{CHARACTERS}\ud800\udcff\udfff", max_size=20)


def sometimes(share: int, other: Any, usual: Any) -> Any:
    """Take the other strategy once in so many times."""
    return st.integers(1, share).flatmap(lambda number: other if number == share else usual)


class Damage(NamedTuple):
    kind: str
    place: int  # Below 96 a byte of the head, then 96 places from the beginning to the end.
    given: bytes

    def done_to(self, data: bytes) -> bytes:
        place = self.place - 96
        at = min(len(data), self.place) if place < 0 else len(data) * place // 95
        before, behind, length = data[:at], data[at:], len(self.given)
        return {
            "overwrite": before + self.given + behind[length:],
            "insert": before + self.given + behind,
            "remove": before + behind[length:],
            "cut": before,
            "repeat": before + before[max(0, at - length) :] * 50 + behind,
            "splice": before + seed_recordings()[length][at:],
        }[self.kind]


damage = st.builds(
    Damage,
    choice(("overwrite", "insert", "remove", "cut", "repeat", "splice")),
    st.integers(0, 191),
    choice(INTERESTING) | st.binary(max_size=12),
)
damages = st.lists(damage, max_size=3)


def damaged(data: bytes, damages: Sequence[Damage]) -> bytes:
    return functools.reduce(lambda data, each: each.done_to(data), damages, data)


@functools.cache
def seed_recordings() -> tuple[bytes, ...]:
    """Have real encoders write a fifth of a second in every format that is told by its name."""
    sound = functools.partial(encoders.sound, seconds=0.2)
    short = encoders.wav(seconds=0.2)
    ffmpeg = functools.partial(encoders.ffmpeg, audio=short)
    return (
        short,
        encoders.wav(16_000, 2, 0.2),
        *(sound("WAV", "FLOAT"), sound("WAVEX", "PCM_24", channels=6), sound("RF64", "PCM_16")),
        *(sound("MP3"), sound("MP3", rate_hz=44_100, channels=2), ffmpeg(".mp3")),
        encoders.id3v2(2000) + sound("MP3"),
        *(sound("OGG", "OPUS"), sound("OGG", "OPUS", rate_hz=48_000, channels=2)),
        *(sound("OGG", "VORBIS"), sound("FLAC"), sound("AIFF"), sound("AU")),
        *(ffmpeg(".m4a"), ffmpeg(".wma"), ffmpeg(".webm"), ffmpeg(".aac"), ffmpeg(".amr")),
        *(sound("WAV", "ALAW"), sound("WAV", "GSM610"), sound("RAW", "GSM610")),
        *(sound("W64", "PCM_16"), sound("CAF", "PCM_16"), encoders.id3v2(0) + sound("FLAC")),
        short[44:],
        b"",
    )


class Recording(NamedTuple):
    seed: int
    damages: Sequence[Damage]
    suffix: str
    hole_bytes: int  # A hole makes the file so long: who reads all of it is found.
    options: tuple[str, ...]

    def write(self, name: str) -> str:
        content = damaged(seed_recordings()[self.seed], self.damages)
        return written(f"examples/{name}{self.suffix}", content, self.hole_bytes)


SUFFIXES = (".wav", ".mp3", ".ogg", ".opus", ".gsm", ".m4a", ".raw", "")
HOLES_BYTES = (*[0] * 27, 2**31, 2**32 + 45, 2**40)
AUDIO_OPTIONS = (
    *(*[()] * 8, ("--split",), ("--single-message",), ("--convert",)),
    *(("--audio-type", kind) for kind in ("wav", "mp3", "ogg-opus")),
    ("--audio-type", "pcm", "--sample-rate", "8000", "--channels", "1"),
)
# Drawn at once, because each choice takes its time.
rest = choice([*itertools.product(SUFFIXES, HOLES_BYTES, AUDIO_OPTIONS)])
seed = st.integers(0, 27)
recording = st.builds(lambda *made: Recording(*made[:2], *made[2]), seed, damages, rest)
to_convert = st.builds(
    Recording, seed, damages, choice(SUFFIXES), hole_bytes=st.just(0), options=st.just(())
)

NAMES = ("date", "date_from", "users", "id", "role", "fields")
ROLES = ("operator", "client", "BOT", "USER_ROLE_BOT", "USER_ROLE_UNSPECIFIED", "USER_ROLE_")
name = choice(NAMES) | text
scalar = st.one_of(
    choice((0, -1, 2**64, 10**400, 0.5, 1e308, float("nan"), float("inf"), None, True, False)),
    st.builds("2026-03-{:02}T10:{:02}:00+03:00".format, st.integers(0, 34), st.integers(0, 69)),
    st.integers(1_000, 1_030).map("x".__mul__),  # 1,024 bytes is the limit.
    text,
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists, objects = st.lists(inner, max_size=3), st.dictionaries(name, inner, max_size=3)
    return st.one_of(scalar, lists, objects)


json_value = nested(nested(scalar))
json_object = st.dictionaries(name, plain_text | json_value, max_size=3)
user = st.fixed_dictionaries(
    {"id": plain_text, "role": choice(ROLES)}, optional={"fields": json_object}
)
users = st.lists(sometimes(8, json_value, user), max_size=2)
ENCODINGS = (*["utf-8"] * 5, "utf-8-sig", "utf-16", "cp1251")
ONCE_IN_30, ONCE_IN_5, HALF = (*[False] * 29, True), (*[False] * 4, True), (False, True)
shape = choice([*itertools.product(HALF, HALF, ONCE_IN_30, ENCODINGS, ONCE_IN_5)])


@st.composite
def metadata_files(draw: st.DrawFn) -> bytes:
    """Make JSON, mostly of the right shape, sometimes with damage, or no JSON at all."""
    has_users, is_ascii, has_brackets, encoding, is_damaged = draw(shape)
    top = draw(sometimes(5, json_value, json_object))
    if isinstance(top, dict) and has_users:
        top = {**top, "users": draw(users)}
    content = json.dumps(top, ensure_ascii=is_ascii)
    if has_brackets:
        content = content.replace(": ", f": {'[' * draw(st.integers(0, 2**20))}")
    errors = "surrogatepass" if encoding.startswith("utf") else "replace"
    return damaged(content.encode(encoding, errors), draw(damages) if is_damaged else ())


key = st.one_of(
    choice((SECRET, f"t1.{SECRET}")), st.tuples(plain_text, plain_text).map(SECRET.join), text
)
# The place of a key, the key, its type, and the bytes before and after it in a file.
credential = st.tuples(
    choice(("--key", "--key-file", "API_KEY", "IAM_TOKEN", "none")),
    key,
    choice(("auto", "api-key", "iam-token")),
    choice((b"", b"\n", b"\xef\xbb\xbf", b"\xff", b"\0")),
)
vm_token = st.fixed_dictionaries(
    {
        "access_token": st.just(f"t1.{SECRET}") | key | json_value,
        "expires_in": choice((3600, 43_200.5)) | st.integers(0, 10**9) | json_value,
    }
)
vm_answer = sometimes(3, metadata_files(), vm_token.map(json.dumps).map(str.encode))

# google.rpc.Status with a RetryInfo, which asks for 5 seconds.
RETRY_INFO = b"\x08\x08\x1a\x30\x0a\x28type.googleapis.com/google.rpc.RetryInfo\x12\4\x0a\2\x08\5"
failure = st.builds(
    lambda code, details, after_bytes, damages: Fail(
        *(code, details.encode(errors="replace").decode(), after_bytes),
        (("grpc-status-details-bin", damaged(RETRY_INFO, damages)),),
    ),
    choice([code for code in grpc.StatusCode if code.name != "OK"]),
    key,
    choice((0, None)),
    damages,
)

NEEDED = ("--audio-path", "call.wav", "--connection-id", "c", "--key", SECRET)
GROUPS = (
    *(NEEDED, ("--",), ("--format", "json"), ("--split",), ("--split", "--wait")),
    ("--audio-path", "calls", "--connection-id", "c", "--key-file", "key"),
    ("--talk-id", "t", "--connection-id", "c", "--meta-path", "fields.json"),
    ("--audio-type", "pcm", "--sample-rate", "8000", "--channels", "1"),
    *(("--key", SECRET), (f"--key={SECRET}",), (f"--key{SECRET}",), ("--ky", SECRET)),
    *(("--key", SECRET, SECRET), ("--key-type", SECRET), (f"--quiet={SECRET}",)),
    *(("--jobs", SECRET), ("--key-file", "two-keys"), ("--key-type", "vm")),
    *(("--ledger", "ledger.sqlite"), ("--ledger", "binary"), ("--ca-file", "huge")),
)
OPTIONS = (
    *("--audio-path", "--connection-id", "--meta-path", "--talk-id", "--min-age"),
    *("--audio-type", "--sample-rate", "--channels", "--jobs", "--retries", "--timeout"),
    *("--key-file", "--key-type", "--endpoint", "--ca-file", "--format"),
)
WORDS = (
    *("--quiet", "--verbose", "--retry-unknown", "--wait", "--dry-run", "--single-message"),
    *("--help", "-h", "--version", "--format=json", "--no-such"),
    *("call.wav", "calls", "calls/1.mp3", "huge", "/dev/null", ".", "", "-", "missing"),
    *("fields.json", "broken.json", "key", "two-keys", "binary"),
    *("x" * 300, "a\0b", "\udcff", "привет.wav", "auto", "pcm", "json", "vm"),
    *("0", "1", "8000", "1e9", "nan", "-1", "localhost", "[::1]:443", "a:99999", "..:1", ":"),
)
word = choice(WORDS) | text.map(lambda word: word.lstrip("/"))
# The words of a command line, and the encoding of what it prints.
command_line = st.tuples(
    st.tuples(
        # In front: a word may be another option's value at the end.
        st.just(()) | st.just(("--dry-run",)),
        st.just(()) | st.just(NEEDED),
        st.lists(choice(GROUPS) | st.tuples(choice(OPTIONS), word) | st.tuples(word), max_size=5)
        .map(itertools.chain.from_iterable)
        .map(tuple),
    ).map(lambda parts: [*parts[0], *parts[1], *parts[2]]),
    choice(("utf-8", "utf-8", "ascii", "koi8-r")),
)


# --- Where it is fed in ------------------------------------------------------------------------


class VmAnswer(http.server.BaseHTTPRequestHandler):
    """Answers every question to the VM's metadata service with the same bytes."""

    body = b""

    def do_GET(self) -> None:
        with contextlib.suppress(ConnectionError):  # No more is read than a token is long.
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + self.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class Workplace:
    """What the program talks to, in a folder with files that command lines can name."""

    service: StandIn
    vm_address: str


@contextlib.contextmanager
def workplace(folder: Path) -> Iterator[Workplace]:
    """Change into a new folder, fill it, and start the services."""
    here, environment = os.getcwd(), dict(os.environ)
    backoff_s, upload_grpc.BACKOFF_S = upload_grpc.BACKOFF_S, 0.001
    hypothesis.configuration.set_hypothesis_home_dir(folder / "hypothesis")
    service = StandIn(folder / "store", keys=(SECRET,), discard=True)
    service.tokens = (f"t1.{SECRET}",)
    encoders.put_in_path(folder / "bin")
    (folder / "temp").mkdir()
    os.environ["TMPDIR"] = str(folder / "temp")
    # In a folder of its own, where `..` has no more than this.
    (folder / "work" / "calls").mkdir(parents=True)
    os.chdir(folder / "work")
    for number, audio in enumerate(seed_recordings()):
        written(f"calls/{number}{('.wav', '.mp3', '.ogg', '.pcm')[number % 4]}", audio)
    written("call.wav", encoders.wav(seconds=0.1))
    written("fields.json", b'{"language": "ru", "users": [{"id": 1, "role": "bot"}]}')
    written("broken.json", b'{"language": ')
    written("key", SECRET.encode())
    written("two-keys", f"{SECRET}\n{SECRET}".encode())
    written("binary", bytes(range(256)))
    written("huge", b"", 2**36)
    vm = http.server.ThreadingHTTPServer(("127.0.0.1", 0), VmAnswer)
    threading.Thread(target=vm.serve_forever, args=(0.01,), daemon=True).start()
    try:
        with service:
            yield Workplace(service, f"127.0.0.1:{vm.server_port}")
    finally:
        vm.shutdown()
        vm.server_close()
        os.chdir(here)
        upload_grpc.BACKOFF_S = backoff_s
        os.environ.clear()
        os.environ.update(environment)


def written(name: str, content: bytes, hole_bytes: int = 0) -> str:
    Path(name).write_bytes(content)
    if hole_bytes:
        os.truncate(name, hole_bytes)
    return name


def run(codes: set[int], *words: str, encoding: str = "utf-8", **variables: str) -> tuple[int, str]:
    """Run main() with these words and environment variables; return its exit code and stdout.

    Raises AssertionError if it ends with another code than those, or prints what it must not.
    """
    streams = [
        io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
        for errors in ("strict", "backslashreplace")
    ]
    for each in ("API_KEY", "IAM_TOKEN", "YC_METADATA_ADDR", "https_proxy"):
        os.environ.pop(each, None)
    os.environ.update(variables)
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            code = upload_grpc.main([*words])
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        for stream in streams:
            stream.flush()
    out, err = (stream.buffer.getvalue().decode(encoding, "replace") for stream in streams)
    assert code in codes, f"exit code {code}: {err}"
    assert "Traceback" not in out + err, f"a traceback: {err}"
    assert SECRET not in out + err, f"the key is shown: {out}{err}"
    assert err or code == 0, f"not a word about exit code {code}"
    for line in err.split("\n")[:-1]:
        # A key of one letter is masked wherever that letter is.
        own = code == USAGE or line.startswith("upload_grpc: ") or "***" in line
        assert own, f"a line like {line[:300]!r}"
        assert len(line) < LINE_LIMIT_CHARACTERS, f"a line of {len(line)} characters"
    return code, out


DRY_RUN = ("--dry-run", "--quiet", "--connection-id", "c", "--key", SECRET)


def run_all(codes: set[int], names: Sequence[str], *words: str) -> int:
    """Run with recordings, each of which is answered once; return how many are taken."""
    _, out = run(codes, *words, "--format", "json", "--audio-path", *names)
    answers = [json.loads(line) for line in out.splitlines()]
    assert sorted(answer["path"] for answer in answers) == sorted(names), "not one answer each"
    assert {answer["exit_code"] for answer in answers} <= codes
    return sum(answer["exit_code"] == 0 for answer in answers)


def address(place: Workplace) -> tuple[str, ...]:
    place.service.talks.clear()
    place.service.calls.clear()
    return "--endpoint", place.service.endpoint, "--ca-file", str(place.service.ca_file)


def try_recordings(place: Workplace, examples: Sequence[Recording]) -> int:
    names: dict[tuple[str, ...], list[str]] = {}
    for number, example in enumerate(examples):
        names.setdefault(example.options, []).append(example.write(str(number)))
    words = (*DRY_RUN, "--meta-path", "fields.json")
    return sum(run_all(DATA_CODES, named, *words, *more) for more, named in names.items())


def try_conversions(place: Workplace, examples: Sequence[Recording]) -> int:
    """What is uploaded is WAV by its header, which the service looks at; nothing is left behind."""
    names = [example.write(str(number)) for number, example in enumerate(examples)]
    rest = ("--meta-path", "fields.json", "--connection-id", "c", "--key", SECRET)
    words = ("--convert", "--timeout", "2", "--quiet", *rest, *address(place))
    taken = run_all(CONVERSION_CODES, names, *words)
    assert taken == len(place.service.talks) == len(place.service.calls), "one was refused"
    assert not os.listdir(os.environ["TMPDIR"]), "a temporary file is left"
    return taken


def try_sidecars(place: Workplace, examples: Sequence[bytes]) -> int:
    names = []
    for number, content in enumerate(examples):
        written(f"examples/{number}.json", content)
        names.append(written(f"examples/{number}.wav", encoders.wav()))
    # An empty one may be one that is being written.
    return run_all(DATA_CODES | {os.EX_TEMPFAIL}, names, *DRY_RUN)


def try_meta_path(place: Workplace, examples: Sequence[bytes]) -> int:
    words = ("--audio-path", "call.wav", "--meta-path", written("examples/json", examples[0]))
    return run(DATA_CODES, *DRY_RUN, *words)[0] == 0


def upload(place: Workplace, codes: set[int], *words: str, **variables: str) -> int:
    """Upload a recording to the service, with one try; return how many were taken."""
    call = ("--audio-path", "call.wav", "--meta-path", "fields.json", "--connection-id", "c")
    given = (*call, *address(place), "--quiet", "--retries", "0", *words)
    code, _ = run(codes, *given, **variables)
    assert len(place.service.talks) == (code == 0)
    return code == 0


def try_credential(place: Workplace, examples: Sequence[tuple[str, str, str, bytes]]) -> int:
    [(source, value, key_type, noise)] = examples
    file = written("examples/key", noise + value.encode("utf-8", "surrogatepass") + noise)
    words = {"--key": (f"--key={value}",), "--key-file": ("--key-file", file)}
    content = os.fsdecode(value.replace("\0", "").encode("utf-8", "replace"))
    variables = {source: content} if source.isupper() else {}
    options = (*words.get(source, ()), "--key-type", key_type)
    return upload(place, KEY_CODES, *options, **variables)


def try_vm_answer(place: Workplace, examples: Sequence[bytes]) -> int:
    VmAnswer.body = examples[0]
    return upload(place, KEY_CODES, "--key-type", "vm", YC_METADATA_ADDR=place.vm_address)


def try_service_answer(place: Workplace, examples: Sequence[Fail | None]) -> int:
    place.service.script[:] = examples
    return upload(place, SERVICE_CODES, "--key", SECRET)


def try_command_line(place: Workplace, examples: Sequence[tuple[list[str], str]]) -> int:
    """Through a proxy that nobody has started: the service's address may be anything, too."""
    [(words, encoding)] = examples
    variables = {"YC_METADATA_ADDR": "127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    # grpc would look for the certificates of its own once, for whatever runs in this process.
    trusted = ("--ca-file", str(place.service.ca_file))
    return run(COMMAND_CODES, *trusted, *words, encoding=encoding, **variables)[0] == 0


def try_history(place: Workplace, examples: Sequence[tuple[str, histories.Steps]]) -> int:
    [(options, steps)] = examples
    address(place)
    try:
        uploaded = histories.play(Path("examples").resolve(), place.service, SECRET, options, steps)
    finally:
        place.service.on_call = place.service.next_step
    return uploaded > 0


@dataclasses.dataclass(frozen=True)
class Target:
    """A part of the program, its share of all examples, and how many go into one run.

    is_long: an example takes longer than to begin a case.
    """

    name: str
    share: float
    examples: st.SearchStrategy[Any]
    attempt: Callable[[Workplace, Sequence[Any]], int]  # returns how many were taken
    batch: int = 1
    is_long: bool = False


TARGETS = (
    Target("recordings", 0.48, recording, try_recordings, batch=75),
    Target("conversions", 0.01, to_convert, try_conversions, batch=10),
    Target("sidecars", 0.2, metadata_files(), try_sidecars, batch=CASE),
    Target("--meta-path", 0.05, metadata_files(), try_meta_path),
    Target("credentials", 0.05, credential, try_credential),
    Target("VM answers", 0.02, vm_answer, try_vm_answer),
    Target("service answers", 0.03, sometimes(5, st.none(), failure), try_service_answer),
    Target("command lines", 0.15, command_line, try_command_line),
    Target("histories", 0.01, histories.history, try_history, is_long=True),
)


# --- Running it --------------------------------------------------------------------------------


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Raise Hang, or AssertionError, for a block that takes more time or memory than it should."""

    def expire(number: int, frame: object) -> None:
        expired.append(number)
        raise Hang

    expired: list[int] = []
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")  # Linux forgets the peak so far; elsewhere only a new one is noticed.
    before_bytes = peak_bytes()
    handler = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, RUN_LIMIT_S)
    # Where even that does not end it: show where it is, leave its files, and stop.
    faulthandler.dump_traceback_later(20 * RUN_LIMIT_S, exit=True, file=2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        faulthandler.cancel_dump_traceback_later()
        if expired:  # The program may have taken it for an error of its own.
            raise Hang(f"took more than {RUN_LIMIT_S:g} s") from None
    grown_bytes = peak_bytes() - before_bytes
    assert grown_bytes < RUN_LIMIT_BYTES, f"took {grown_bytes:,} bytes of memory"


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def attempt(place: Workplace, target: Target, examples: Sequence[Any]) -> int:
    """Return how many examples were taken; raise if anything is wrong, and keep their files."""
    shutil.rmtree("examples", ignore_errors=True)
    os.mkdir("examples")
    with bounded():
        taken = target.attempt(place, examples)
    shutil.rmtree("examples")  # A command line that names this folder would meet them.
    return taken


@dataclasses.dataclass
class Count:
    """How many examples of a target passed, and what was wrong with one that did not."""

    passed: int = 0
    taken: int = 0
    failure: str = ""


def drive(place: Workplace, target: Target, examples: int, seed: int) -> Count:
    """Feed a target with so many examples, or until one fails, and then find the smallest."""
    count, failing = Count(), list[object]()
    cases = -(-examples // (1 if target.is_long else max(CASE, target.batch)))
    size = -(-examples // cases)

    @hypothesis.seed(f"{seed} {target.name}")
    @hypothesis.settings(
        max_examples=cases,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.lists(target.examples, min_size=size, max_size=size))
    def feed(case: list[Any]) -> None:
        case = case if failing else case[: examples - count.passed]
        for start in range(0, len(case), target.batch):
            batch = case[start : start + target.batch]
            try:
                taken = attempt(place, target, batch)
            except Exception:
                for each in batch:
                    failing[:] = [each]
                    attempt(place, target, failing)
                failing[:] = batch
                raise
            if not failing:
                count.passed += len(batch)
                count.taken += taken

    try:
        feed()
    except Exception as error:  # noqa: BLE001 - that there is none is what is tried.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        said = f"{type(error).__name__}: {error!s:.2000} ({where})"
        count.failure = f"{said}\n    by {', '.join(map(repr, failing)):.5000}"
    return count


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Feed the program with generated input.")
    parser.add_argument(
        "--examples", type=int, default=EXAMPLES, metavar="N", help="in all (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(10**6), metavar="S", help="repeats a run"
    )
    arguments = parser.parse_args(argv)
    passed = failed = 0
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    print(f"seed {arguments.seed}, files in {folder}", flush=True)
    with workplace(folder) as place:
        for target in TARGETS:
            started_s = time.monotonic()
            examples = max(1, round(arguments.examples * target.share))
            count = drive(place, target, examples, arguments.seed)
            refused, seconds = count.passed - count.taken, time.monotonic() - started_s
            print(f"{target.name}: {count.taken:,} taken, {refused:,} refused, in {seconds:.0f} s")
            if count.failure:
                print(f"{target.name}: FAILED: {count.failure}")
            sys.stdout.flush()
            passed += count.passed
            failed += bool(count.failure)
    if not failed:
        shutil.rmtree(folder)
    print(f"{passed:,} passed, {failed:,} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
