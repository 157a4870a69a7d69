"""Generated input by the hundred thousand, for everything that reads what others wrote.

    python tests/fuzz.py --examples 100000 --seed 7

Each target feeds main() with made-up input: recordings (what real encoders wrote, damaged),
metadata, credentials, a VM's metadata service, answers of the service, command lines. Whatever
comes in, the program has to end with an exit code that fits, in bounded time and memory, with
lines of its own on stderr, no traceback, and without showing a key. An example follows from
seed, target and number alone; the one that breaks the rules is named, and its files are kept.
The last line counts: "100,000 passed, 0 failed".
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import functools
import http.server
import io
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
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

# As the program does; must stand in the environment before anybody imports grpc.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import encoders
import grpc
from stand_in import Fail, StandIn

import upload_grpc

EXAMPLES = 100_000
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
DAMAGES = ("head", "head", "overwrite", "insert", "remove", "cut", "repeat", "splice")
CHARACTERS = "".join(map(chr, range(0x180))) + "Звонок\u2028\u202e\ufeff\uffff\U0001f4de"
# Also halves of surrogate pairs, which JSON can name.
ANY_CHARACTERS = f"{CHARACTERS}\ud800\udcff\udfff"


def damaged(random: Random, data: bytes, others: Sequence[bytes] = (b"",)) -> bytes:
    """Damage some bytes in up to four places, or nowhere."""
    for _ in range(random.choice((0, 1, 1, 2, 4))):
        kind = random.choice(DAMAGES)
        given = random.choice((random.choice(INTERESTING), random.randbytes(random.randrange(12))))
        at = random.randint(0, min(len(data), 96) if kind == "head" else len(data))
        if kind in ("head", "overwrite"):
            data = data[:at] + given + data[at + len(given) :]
        elif kind == "insert":
            data = data[:at] + given + data[at:]
        elif kind == "remove":
            data = data[:at] + data[at + len(given) :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "repeat":
            data = data[:at] + data[max(0, at - len(given)) : at] * 50 + data[at:]
        else:
            data = data[:at] + random.choice(others)[at:]
    return data


def text(random: Random, characters: str = CHARACTERS) -> str:
    return "".join(random.choices(characters, k=random.randrange(20)))


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


AUDIO_OPTIONS = (
    *((), ("--split",), ("--single-message",), ("--convert",)),
    *(("--audio-type", kind) for kind in ("wav", "mp3", "ogg-opus")),
    ("--audio-type", "pcm", "--sample-rate", "8000", "--channels", "1"),
)


def recording(random: Random) -> tuple[str, bytes, int, tuple[str, ...]]:
    """Make a suffix, a file's content, to how many bytes a hole makes it longer, and options.

    Whatever reads to the end of a file as large as a disk is found.
    """
    seeds = seed_recordings()
    suffix = random.choice((".wav", ".mp3", ".ogg", ".opus", ".gsm", ".m4a", ".raw", ""))
    hole_bytes = random.choice((2**31, 2**32 + 45, 2**40)) if random.random() < 0.1 else 0
    options = random.choice(AUDIO_OPTIONS) if random.random() < 0.5 else ()
    return suffix, damaged(random, random.choice(seeds), seeds), hole_bytes, options


def to_convert(random: Random) -> tuple[str, bytes]:
    """Make a suffix and a file's content, mostly of a kind that FFmpeg has to decode."""
    suffix, content, _, _ = recording(random)
    return suffix, content


def json_value(random: Random, depth: int = 3) -> object:
    if depth and random.random() < 0.3:
        if random.random() < 0.5:
            return json_object(random, depth - 1)
        return [json_value(random, depth - 1) for _ in range(random.randrange(4))]
    number = random.choice((0, -1, 2**64, 10**400, 0.5, 1e308, float("nan"), float("inf")))
    date = f"2026-03-{random.randrange(35):02}T10:{random.randrange(70)}:00+03:00"
    long = "x" * random.randint(1_000, 1_030)  # 1,024 bytes is the limit.
    other = text(random, ANY_CHARACTERS)
    return random.choice((number, date, long, other, random.choice((None, True, False))))


def json_object(random: Random, depth: int = 2) -> dict[str, object]:
    made: dict[str, object] = {}
    for _ in range(random.randrange(4)):
        name = random.choice(("date", "date_from", "users", "id", "role", "fields"))
        name = random.choice((name, text(random, ANY_CHARACTERS)))
        made[name] = text(random) if random.random() < 0.7 else json_value(random, depth)
    return made


def user(random: Random) -> object:
    roles = ("operator", "client", "BOT", "USER_ROLE_BOT", "USER_ROLE_UNSPECIFIED", "USER_ROLE_")
    made: dict[str, object] = {"id": text(random), "role": random.choice(roles)}
    if random.random() < 0.5:
        made["fields"] = json_object(random)
    if random.random() < 0.2:
        made |= json_object(random)
    return made if random.random() < 0.9 else json_value(random)


def metadata_file(random: Random) -> bytes:
    """Make JSON, mostly of the right shape, sometimes with damage, or no JSON at all."""
    top = json_object(random) if random.random() < 0.8 else json_value(random)
    if isinstance(top, dict) and random.random() < 0.5:
        top["users"] = [user(random) for _ in range(random.randrange(3))]
    content = json.dumps(top, ensure_ascii=random.random() < 0.5)
    if random.random() < 0.03:
        content = content.replace(": ", f": {'[' * random.randrange(2**20)}")
    encoding = random.choice((*["utf-8"] * 5, "utf-8-sig", "utf-16", "cp1251"))
    errors = "surrogatepass" if encoding.startswith("utf") else "replace"
    data = content.encode(encoding, errors)
    return damaged(random, data) if random.random() < 0.2 else data


def key(random: Random) -> str:
    around, other = (text(random), text(random)), text(random, ANY_CHARACTERS)
    return random.choice((SECRET, f"t1.{SECRET}", SECRET.join(around), other))


def credential(random: Random) -> tuple[str, str, str, bytes]:
    """Make the place of a key, the key, its type, and the bytes before and after it in a file."""
    place = random.choice(("--key", "--key-file", "API_KEY", "IAM_TOKEN", "none"))
    key_type = random.choice(("auto", "api-key", "iam-token"))
    noise = random.choice((b"", b"\n", b"\xef\xbb\xbf", b"\xff", b"\0"))
    return place, key(random), key_type, noise


def vm_answer(random: Random) -> bytes:
    if random.random() < 0.3:
        return metadata_file(random)
    lifetime_s = random.choice((3600, 43_200.5, random.randrange(10**9), json_value(random)))
    token = random.choice((f"t1.{SECRET}", key(random), json_value(random)))
    return json.dumps({"access_token": token, "expires_in": lifetime_s}).encode()


# google.rpc.Status with a RetryInfo, which asks for 5 seconds.
RETRY_INFO = b"\x08\x08\x1a\x30\x0a\x28type.googleapis.com/google.rpc.RetryInfo\x12\4\x0a\2\x08\5"


def service_answer(random: Random) -> Fail | None:
    if random.random() < 0.2:
        return None
    code = random.choice([code for code in grpc.StatusCode if code.name != "OK"])
    details = key(random).encode(errors="replace").decode()
    trailing = (("grpc-status-details-bin", damaged(random, RETRY_INFO)),)
    return Fail(code, details, random.choice((0, None)), trailing)


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


def command_line(random: Random) -> tuple[list[str], str]:
    """Make the words of a command line, and the encoding of what it prints."""
    words = [*NEEDED] if random.random() < 0.5 else []
    for _ in range(random.randrange(6)):
        made = text(random, ANY_CHARACTERS).lstrip("/")
        word = random.choice((random.choice(WORDS), made))
        words += random.choice((random.choice(GROUPS), (random.choice(OPTIONS), word), (word,)))
    # In front: a word may be another option's value at the end.
    dry_run = ["--dry-run"] if random.random() < 0.5 else []
    return dry_run + words, random.choice(("utf-8", "utf-8", "ascii", "koi8-r"))


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
    """Change into an empty folder, fill it, and start the services."""
    here, environment = os.getcwd(), dict(os.environ)
    backoff_s, upload_grpc.BACKOFF_S = upload_grpc.BACKOFF_S, 0.001
    service = StandIn(folder / "store", keys=(SECRET,), discard=True)
    service.tokens = (f"t1.{SECRET}",)
    (folder / "calls").mkdir()
    encoders.put_in_path(folder / "bin")
    (folder / "temp").mkdir()
    os.environ["TMPDIR"] = str(folder / "temp")
    os.chdir(folder)
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
    """Write a file; a new one, because some disks are slow to write an old one over."""
    Path(name).unlink(missing_ok=True)
    Path(name).write_bytes(content)
    if hole_bytes:
        os.truncate(name, hole_bytes)
    return name


def run(
    codes: Collection[int], *words: str, encoding: str = "utf-8", **variables: str
) -> tuple[int, str]:
    """Run main() with these words and environment variables; return its exit code and stdout.

    Raises AssertionError if it ends with another code than those, or prints what it must not.
    """
    streams = [
        io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
        for errors in ("strict", "backslashreplace")
    ]
    for name in ("API_KEY", "IAM_TOKEN", "YC_METADATA_ADDR", "https_proxy"):
        os.environ.pop(name, None)
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


def check_all(names: Sequence[str], *options: str) -> int:
    """Check recordings in one run, in which each is answered once; return how many are taken."""
    words = ("--format", "json", "--audio-path", *names, *options)
    _, out = run(DATA_CODES, *DRY_RUN, *words)
    answers = [json.loads(line) for line in out.splitlines()]
    assert sorted(answer["path"] for answer in answers) == sorted(names), "not one answer each"
    assert {answer["exit_code"] for answer in answers} <= DATA_CODES
    return sum(answer["exit_code"] == 0 for answer in answers)


def try_recordings(
    place: Workplace, examples: Sequence[tuple[str, bytes, int, tuple[str, ...]]]
) -> int:
    names: dict[tuple[str, ...], list[str]] = {}
    for number, (suffix, content, hole_bytes, options) in enumerate(examples):
        name = written(f"recording{number}{suffix}", content, hole_bytes)
        names.setdefault(options, []).append(name)
    taken = 0
    for options, named in names.items():
        taken += check_all(named, "--meta-path", "fields.json", *options)
        for name in named:  # A command line that names this folder would meet it.
            os.unlink(name)
    return taken


def try_conversions(place: Workplace, examples: Sequence[tuple[str, bytes]]) -> int:
    """What is uploaded is WAV by its header, which the service looks at; nothing is left behind."""
    names = [
        written(f"recording{number}{suffix}", content)
        for number, (suffix, content) in enumerate(examples)
    ]
    place.service.talks.clear()
    place.service.calls.clear()
    address = ("--endpoint", place.service.endpoint, "--ca-file", str(place.service.ca_file))
    words = ("--audio-path", *names, "--convert", "--timeout", "2", "--format", "json", "--quiet")
    rest = ("--meta-path", "fields.json", "--connection-id", "c", "--key", SECRET)
    _, out = run(CONVERSION_CODES, *words, *address, *rest)
    answers = [json.loads(line) for line in out.splitlines()]
    assert sorted(answer["path"] for answer in answers) == sorted(names), "not one answer each"
    taken: int = sum(answer["exit_code"] == 0 for answer in answers)
    assert taken == len(place.service.talks) == len(place.service.calls), "one was refused"
    assert not os.listdir(os.environ["TMPDIR"]), "a temporary file is left"
    for name in names:
        os.unlink(name)
    return taken


def try_sidecars(place: Workplace, examples: Sequence[bytes]) -> int:
    recordings = [written(f"own{number}.wav", encoders.wav()) for number in range(len(examples))]
    for number, content in enumerate(examples):
        written(f"own{number}.json", content)
    return check_all(recordings)


def try_meta_path(place: Workplace, examples: Sequence[bytes]) -> int:
    written("example.json", examples[0])
    words = ("--audio-path", "call.wav", "--meta-path", "example.json")
    return run(DATA_CODES, *DRY_RUN, *words)[0] == 0


def upload(place: Workplace, codes: Collection[int], *words: str, **variables: str) -> int:
    """Upload a recording to the service, with one try; return how many were taken."""
    place.service.talks.clear()
    place.service.calls.clear()
    address = ("--endpoint", place.service.endpoint, "--ca-file", str(place.service.ca_file))
    call = ("--audio-path", "call.wav", "--meta-path", "fields.json", "--connection-id", "c")
    code, _ = run(codes, *call, *address, "--quiet", "--retries", "0", *words, **variables)
    assert len(place.service.talks) == (code == 0)
    return code == 0


def try_credential(place: Workplace, examples: Sequence[tuple[str, str, str, bytes]]) -> int:
    [(source, value, key_type, noise)] = examples
    written("example.key", noise + value.encode("utf-8", "surrogatepass") + noise)
    words = {"--key": (f"--key={value}",), "--key-file": ("--key-file", "example.key")}
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


@dataclasses.dataclass(frozen=True)
class Target:
    """A part of the program, its share of all examples, and how many go into one run."""

    name: str
    share: float
    make: Callable[[Random], Any]
    attempt: Callable[[Workplace, Sequence[Any]], int]  # returns how many were taken
    batch: int = 1


TARGETS = (
    Target("recordings", 0.49, recording, try_recordings, batch=100),
    Target("conversions", 0.01, to_convert, try_conversions, batch=10),
    Target("sidecars", 0.2, metadata_file, try_sidecars, batch=50),
    Target("--meta-path", 0.05, metadata_file, try_meta_path),
    Target("credentials", 0.05, credential, try_credential),
    Target("VM answers", 0.02, vm_answer, try_vm_answer),
    Target("service answers", 0.03, service_answer, try_service_answer),
    Target("command lines", 0.15, command_line, try_command_line),
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


@dataclasses.dataclass
class Count:
    """How many examples of a target passed, and what was wrong with the one that did not."""

    passed: int = 0
    taken: int = 0
    failure: str = ""


def drive(place: Workplace, target: Target, examples: int, seed: int) -> Count:
    """Feed a target with so many examples, or until one fails."""
    count = Count()
    while count.passed < examples:
        numbers = range(count.passed, min(count.passed + target.batch, examples))
        batch = [target.make(Random(f"{seed} {target.name} {number}")) for number in numbers]
        failure, taken = attempt(place, target, batch)
        if failure:
            count.failure = f"{failure}\n    in examples {numbers[0]} to {numbers[-1]}"
            for number, example in zip(numbers, batch, strict=True):
                if failure := attempt(place, target, [example])[0]:
                    count.failure = f"{failure}\n    in example {number}: {example!r:.500}"
                    break
            break
        count.passed += len(batch)
        count.taken += taken
    return count


def attempt(place: Workplace, target: Target, examples: Sequence[Any]) -> tuple[str, int]:
    """Return what is wrong, if anything is, and how many examples were taken."""
    try:
        with bounded():
            return "", target.attempt(place, examples)
    except Exception as error:  # noqa: BLE001 - that there is none is what is tried.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        return f"{type(error).__name__}: {error!s:.2000} ({where})", 0


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
