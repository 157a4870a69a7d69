"""Generated input by the hundred thousand, for everything that reads what others wrote.

    python tests/fuzz.py --examples 100000 --seed 7

Each target feeds one part of the program with made-up input: recordings (what real encoders
wrote, damaged), metadata, credentials, a VM's metadata service, proxies and endpoints, command
lines. Whatever comes in, the program has to answer with a result or an error of its own, with
an exit code of its table, in bounded time and memory, and without showing a key. What breaks
that is shown, made as small as possible. The last line counts: "100,000 passed, 0 failed".
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import http.server
import io
import itertools
import json
import os
import re
import resource
import secrets
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# As the program does; must stand in the environment before anybody imports grpc.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import encoders
import hypothesis
from hypothesis import Phase, strategies
from hypothesis.configuration import set_hypothesis_home_dir

import upload_grpc
from upload_grpc import AudioOptions, Metadata, UploadError

EXAMPLES = 100_000
EXAMPLE_LIMIT_S = 2.0
EXAMPLE_LIMIT_BYTES = 64 * 1024 * 1024
# hypothesis remembers what it has tried until it is done; so it is done now and then.
BATCH = 5_000
EXIT_CODES = {0, 2, 65, 66, 74, 75, 76, 77, 78}  # README's table, but for a bug and signals.
# Nothing else in a line of the program contains it.
SECRET = "AQVN-fuzz-Zq7sJt_8wLd"

Mutation = tuple[str, int, bytes]


class Hang(Exception):
    """An example took too long."""


# --- What is generated -------------------------------------------------------------------------


def mutate(data: bytes, mutations: Sequence[Mutation], others: Sequence[bytes] = ()) -> bytes:
    """Damage some bytes; positions are taken modulo what there is."""
    for kind, number, given in mutations:
        at = number % (len(data) + 1 if kind != "head" else min(len(data) + 1, 96))
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
        elif kind == "splice" and others:
            data = data[:at] + others[number % len(others)][at:]
    return data


NUMBERS = strategies.integers(0, 2**20)
INTERESTING = strategies.sampled_from(
    [
        b"\0" * 4,
        b"\xff" * 4,
        b"\xff" * 8,
        b"\xff\xff\xff\x7f",
        b"\0\0\0\x80",
        b"OggS",
        b"ID3",
        b"\xff\xfb",
    ]
)
MUTATIONS = strategies.lists(
    strategies.tuples(
        strategies.sampled_from(
            ["head", "head", "overwrite", "insert", "remove", "cut", "repeat", "splice"]
        ),
        NUMBERS,
        strategies.one_of(INTERESTING, strategies.binary(max_size=12)),
    ),
    max_size=4,
)
# Also halves of surrogate pairs, which JSON can name.
ANY_TEXT = strategies.text(strategies.characters(), max_size=20)
TEXT = strategies.text(max_size=20)


@functools.cache
def seed_recordings() -> tuple[bytes, ...]:
    """Have real encoders write a fifth of a second in every format that is told by its name."""
    short, stereo = encoders.wav(seconds=0.2), encoders.wav(16_000, 2, 0.2)
    made = functools.partial(encoders.made, audio=short)
    return (
        short,
        stereo,
        made("sox", ".wav", ("-e", "floating-point", "-b", 32)),
        made("sox", ".wav", ("-b", 24, "-c", 6)),
        made("ffmpeg", ".wav", ("-rf64", "always")),
        made("lame", ".mp3"),
        made("lame", ".mp3", ("-V", 4, "--tt", "call", "--add-id3v2")),
        encoders.id3v2(2000) + encoders.mp3("-t", seconds=0.2),
        encoders.made("lame", ".mp3", ("-b", 128), stereo),
        made("opusenc", ".opus"),
        encoders.made("opusenc", ".opus", (), stereo),
        made("oggenc", ".ogg"),
        made("flac", ".flac"),
        made("flac", ".oga", ("--ogg",)),
        made("sox", ".aiff"),
        made("sox", ".au"),
        made("sox", ".amr", ("-t", "amr-nb")),
        made("ffmpeg", ".m4a"),
        made("ffmpeg", ".wma"),
        made("ffmpeg", ".webm"),
        short[44:],
        b"",
    )


AUDIO_OPTIONS = strategies.one_of(
    strategies.just(AudioOptions()),
    strategies.builds(
        AudioOptions,
        audio_type=strategies.sampled_from(["auto", "wav", "mp3", "ogg-opus"]),
        split=strategies.booleans(),
        single_message=strategies.booleans(),
    ),
    strategies.builds(
        AudioOptions,
        audio_type=strategies.just("pcm"),
        sample_rate_hz=strategies.integers(8_000, 48_000),
        channels=strategies.integers(1, 64),
    ),
)
NAMES = strategies.sampled_from(["a.wav", "a.mp3", "a.ogg", "a.opus", "a.raw", "a"])
# Files that end in a hole as large as disks are: whatever reads to the end of one is found.
LENGTHS_BYTES = strategies.sampled_from([0] * 16 + [2**31, 2**32 + 45, 2**40])


def nested(inner: strategies.SearchStrategy[Any]) -> strategies.SearchStrategy[Any]:
    return strategies.one_of(
        strategies.lists(inner, max_size=3), strategies.dictionaries(ANY_TEXT, inner, max_size=3)
    )


JSON = strategies.recursive(
    strategies.one_of(
        strategies.none(),
        strategies.booleans(),
        strategies.integers(),
        strategies.floats(),
        ANY_TEXT,
        strategies.integers(1_000, 1_030).map(lambda length: "x" * length),
    ),
    nested,
    max_leaves=6,
)
ROLES = ["operator", "client", "bot", "USER_ROLE_BOT", "USER_ROLE_UNSPECIFIED", "USER_ROLE_", "Bot"]
USERS = strategies.lists(
    strategies.one_of(
        strategies.fixed_dictionaries(
            {
                "id": strategies.one_of(TEXT, TEXT, JSON),
                "role": strategies.one_of(strategies.sampled_from(ROLES), JSON),
            },
            optional={"fields": strategies.dictionaries(TEXT, TEXT, max_size=2) | JSON},
        ),
        strategies.dictionaries(strategies.sampled_from(["id", "role", "fields", "x"]), JSON),
    ),
    max_size=2,
)
FIELDS = strategies.dictionaries(
    strategies.one_of(strategies.sampled_from(["date", "date_from", "users"]), TEXT),
    strategies.one_of(TEXT, TEXT, TEXT, strategies.datetimes().map(str), JSON),
    max_size=4,
)


@strategies.composite
def metadata_files(draw: Any) -> bytes:
    """Make JSON, mostly of the right shape, sometimes with damage, or no JSON at all."""
    top = draw(strategies.one_of(FIELDS, FIELDS, JSON))
    if isinstance(top, dict) and draw(strategies.booleans()):
        top["users"] = draw(USERS)
    text = json.dumps(top, ensure_ascii=draw(strategies.booleans()))
    if draw(strategies.integers(0, 9)) == 0:
        text = text.replace(": ", f": {'[' * draw(NUMBERS)}")
    encoding = draw(strategies.sampled_from(["utf-8"] * 5 + ["utf-8-sig", "utf-16", "cp1251"]))
    data = text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")
    return mutate(data, draw(MUTATIONS)) if draw(strategies.integers(0, 3)) == 0 else data


KEYS = strategies.one_of(
    strategies.just(SECRET),
    strategies.just(f"t1.{SECRET}"),
    strategies.builds("{}{}{}".format, TEXT, strategies.just(SECRET), TEXT),
    ANY_TEXT,
)
KEY_TYPES = strategies.sampled_from(["auto", "api-key", "iam-token"])
PROXY_NAMES = ("grpc_proxy", "https_proxy", "http_proxy", "no_proxy")
ENVIRONMENTS = strategies.dictionaries(
    strategies.sampled_from([*PROXY_NAMES, *map(str.upper, PROXY_NAMES)]),
    strategies.one_of(
        strategies.sampled_from(["http://proxy.example:3128", "", "*", "localhost"]),
        strategies.sampled_from(["http://[::1", "http://h:99999", "://", "http://[::1]:1"]),
        strategies.builds(
            "{}{}:{}".format,
            strategies.sampled_from(["", "http://", "https://", "socks5://", "http://u:p@"]),
            TEXT,
            strategies.one_of(TEXT, strategies.integers(-1, 70_000)),
        ),
        TEXT,
    ).filter(lambda value: "\0" not in value),
    max_size=3,
)
ENDPOINTS = strategies.one_of(
    strategies.sampled_from([upload_grpc.ENDPOINT, "localhost", "[::1]:443", "1.2.3.4:65535"]),
    ANY_TEXT,
    strategies.builds(
        "{}:{}".format,
        strategies.one_of(
            strategies.sampled_from(["localhost", "[::1]", "api.example", "-", "..", "1.2.3"]),
            TEXT,
        ),
        strategies.one_of(strategies.integers(-1, 70_000), TEXT),
    ),
)


# --- Where it is fed in ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Workplace:
    """A folder with files that command lines can name, and a VM's metadata service."""

    folder: Path
    vm: VmService

    def written(self, name: str, content: bytes) -> Path:
        """Write a file; a new one, because some disks are slow to write an old one over."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        return path

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> Iterator[Workplace]:
        here, environment = os.getcwd(), dict(os.environ)
        with tempfile.TemporaryDirectory() as name, VmService() as vm:
            folder = Path(name)
            set_hypothesis_home_dir(folder / "hypothesis")
            (folder / "calls").mkdir()
            for number, audio in enumerate(seed_recordings()):
                suffix = (".wav", ".mp3", ".ogg", ".pcm")[number % 4]
                (folder / "calls" / f"{number}{suffix}").write_bytes(audio)
            files = {
                "call.wav": encoders.wav(),
                "stereo.mp3": encoders.mp3(channels=2, seconds=0.2),
                "fields.json": b'{"language": "ru-RU", "users": [{"id": 1, "role": "bot"}]}',
                "broken.json": b'{"language": ',
                "key": SECRET.encode(),
                "two-keys": f"{SECRET}\n{SECRET}".encode(),
                "binary": bytes(range(256)),
            }
            for file_name, content in files.items():
                (folder / file_name).write_bytes(content)
            with open(folder / "huge", "wb") as huge:
                huge.truncate(2**36)
            os.chdir(folder)
            try:
                yield cls(folder, vm)
            finally:
                os.chdir(here)
                os.environ.clear()
                os.environ.update(environment)


class VmService(http.server.ThreadingHTTPServer):
    """Answers every question with the same bytes."""

    daemon_threads = True
    body = b""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)

    def __enter__(self) -> VmService:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()


class _Answer(http.server.BaseHTTPRequestHandler):
    server: VmService

    def do_GET(self) -> None:
        with contextlib.suppress(ConnectionError):  # No more is read than a token is long.
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + self.server.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Let these variables, and no others that the program reads, be set for a while."""
    before = dict(os.environ)
    names = ("API_KEY", "IAM_TOKEN", "YC_METADATA_ADDR", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
    for name in (*names, *PROXY_NAMES, *map(str.upper, PROXY_NAMES)):
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def check_refusal(error: UploadError, exit_code: int) -> None:
    """Take an error for an answer if it can be told in one line and has its code."""
    assert error.exit_code == exit_code, f"exit code {error.exit_code}: {error}"
    line = upload_grpc.one_line(str(error))
    assert error.cause and "\n" not in line and len(line) < 5_000, f"a line like {line[:300]!r}"
    assert SECRET not in line, "the key is shown"


def check_recording(
    place: Workplace, example: tuple[int, list[Mutation], str, AudioOptions, int]
) -> bool:
    number, mutations, name, options, hole_bytes = example
    seeds = seed_recordings()
    path = place.written(name, mutate(seeds[number % len(seeds)], mutations, seeds))
    if hole_bytes:
        os.truncate(path, hole_bytes)
    found = upload_grpc.check_recording(str(path), Metadata({}), options)
    assert found.audio.channels > 0
    assert found.audio.duration_s is None or found.audio.duration_s > 0
    assert found.audio.description.isprintable()
    assert found.audio.announced.WhichOneof("AudioFormat")
    assert all(isinstance(warning, str) for warning in found.warnings)
    return True


def check_metadata(place: Workplace, example: bytes) -> bool:
    path = place.written("example.json", example)
    metadata = upload_grpc.read_metadata(str(path))
    message = upload_grpc.talk_metadata("connection", metadata)
    for fields in (message.fields, *(user.fields for user in message.users)):
        assert all(key and len(value.encode()) <= 1024 for key, value in fields.items())
    assert message.SerializeToString()
    assert all(isinstance(warning, str) for warning in upload_grpc.date_warnings(metadata))
    return True


def check_credential(place: Workplace, example: tuple[str, str, str, str, bytes]) -> bool:
    source, key, key_type, other, noise = example
    path = place.written("example.key", noise + key.encode("utf-8", "surrogatepass") + noise)
    value = os.fsdecode(key.replace("\0", "").encode("utf-8", "replace"))
    with environment(**({source: value} if source in ("API_KEY", "IAM_TOKEN") else {})):
        credential = upload_grpc.find_credential(
            key if source == "--key" else None,
            str(path) if source == "--key-file" else None,
            key_type,
        )
        name, value = credential.header()
    assert name == "authorization"
    assert re.fullmatch(r"(Api-Key|Bearer) [!-~]+", value)
    secret = value.split()[1]
    assert secret not in credential.mask(f"{other} {value} {other}") or secret in "***"
    return True


def check_vm_answer(place: Workplace, example: bytes) -> bool:
    place.vm.body = example
    with environment(YC_METADATA_ADDR=f"127.0.0.1:{place.vm.server_port}"):
        header = upload_grpc.find_credential(None, None, "vm").header()
    assert re.fullmatch("Bearer [!-~]+", header[1])
    return True


def check_connection(place: Workplace, example: tuple[dict[str, str], str]) -> bool:
    values, endpoint = example
    with environment(**values):
        upload_grpc.open_channel(endpoint, None).close()
    return True


def check_command_line(place: Workplace, example: tuple[list[tuple[str, ...]], str]) -> bool:
    """Only a dry run: the service's address may be anything, too."""
    groups, encoding = example
    argv = ["--dry-run", *(word for group in groups for word in group)]
    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
        for errors in ("strict", "backslashreplace")
    )
    with (
        environment(YC_METADATA_ADDR="127.0.0.1:9"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        ran = True
        try:
            code = upload_grpc.main(argv)
        except SystemExit as leaving:
            ran, code = False, int(leaving.code or 0)
    said = []
    for stream in (out, err):
        stream.flush()
        said.append(stream.buffer.getvalue().decode(encoding, "replace"))
    assert code in EXIT_CODES, f"exit code {code}: {said[1]}"
    assert SECRET not in "".join(said), f"the key is shown: {said}"
    assert code == 0 or said[1].startswith(("upload_grpc: ", "usage: ")), said[1]
    if ran and ("--format=json" in argv or ("--format", "json") in itertools.pairwise(argv)):
        for line in said[0].splitlines():
            assert json.loads(line)["schema_version"] == 1
    return code == 0


PATHS = strategies.sampled_from(
    [
        *("call.wav", "stereo.mp3", "calls", "calls/1.mp3", "huge", "/dev/null", ".", "", "-"),
        *("fields.json", "broken.json", "key", "two-keys", "binary"),
        *("missing", "x" * 300, "a\0b", "\udcff", "привет.wav"),
    ]
)
WORDS = strategies.one_of(
    PATHS,
    strategies.sampled_from(["0", "1", "8000", "1e9", "nan", "-1", "auto", "pcm", "json", "vm"]),
    ANY_TEXT.filter(lambda word: not word.startswith("/")),
)
OPTIONS = (
    *("--audio-path", "--connection-id", "--meta-path", "--talk-id", "--min-age"),
    *("--audio-type", "--sample-rate", "--channels"),
    *("--key-file", "--key-type", "--endpoint", "--ca-file"),
    *("--jobs", "--retries", "--timeout", "--format"),
)
FLAGS = (
    *("--quiet", "--verbose", "--retry-unknown", "--wait", "--dry-run", "--single-message"),
    *("--help", "-h", "--version", "--format=json", "--no-such"),
)
NEEDED = ("--audio-path", "call.wav", "--connection-id", "c", "--key", SECRET)
GROUPS = strategies.one_of(
    strategies.sampled_from(
        [
            NEEDED,
            ("--audio-path", "calls", "--connection-id", "c", "--key-file", "key"),
            ("--talk-id", "t", "--connection-id", "c", "--meta-path", "fields.json"),
            ("--audio-type", "pcm", "--sample-rate", "8000", "--channels", "1"),
            ("--format", "json"),
            ("--split",),
            ("--split", "--wait"),
            ("--single-message",),
            ("--key", SECRET),
            (f"--key={SECRET}",),
            (f"--key{SECRET}",),
            ("--ky", SECRET),
            ("--key", SECRET, SECRET),
            ("--key-type", SECRET),
            (f"--quiet={SECRET}",),
            ("--jobs", SECRET),
            ("--key-file", "two-keys"),
            ("--key-type", "vm"),
            ("--ledger", "ledger.sqlite"),
            ("--ledger", "binary"),
            ("--ca-file", "huge"),
            ("--",),
        ]
    ),
    strategies.tuples(
        strategies.sampled_from(OPTIONS),
        WORDS,
    ),
    strategies.tuples(strategies.sampled_from(FLAGS)),
    strategies.tuples(WORDS),
)


@dataclasses.dataclass(frozen=True)
class Target:
    """A part of the program, its share of all examples, and the exit code of its refusals.

    check: answers whether an example was taken; raises UploadError for one that was refused.
    """

    name: str
    share: float
    exit_code: int
    check: Callable[[Workplace, Any], bool]
    strategy: strategies.SearchStrategy[Any]


VM_ANSWERS = strategies.builds(
    lambda token, lifetime_s: json.dumps(
        {"access_token": token, "expires_in": lifetime_s}
    ).encode(),
    strategies.one_of(KEYS, JSON),
    strategies.one_of(strategies.floats(), strategies.integers(0, 10**400), JSON),
)
TARGETS = (
    Target(
        *("recordings", 0.4, os.EX_DATAERR, check_recording),
        strategies.tuples(NUMBERS, MUTATIONS, NAMES, AUDIO_OPTIONS, LENGTHS_BYTES),
    ),
    Target("metadata", 0.2, os.EX_DATAERR, check_metadata, metadata_files()),
    Target(
        *("credentials", 0.1, os.EX_CONFIG, check_credential),
        strategies.tuples(
            strategies.sampled_from(["--key", "--key-file", "API_KEY", "IAM_TOKEN", "none"]),
            KEYS,
            KEY_TYPES,
            ANY_TEXT,
            strategies.sampled_from([b"", b"\n", b"\xef\xbb\xbf", b"\xff", b"\0"]),
        ),
    ),
    Target(
        *("VM answers", 0.05, os.EX_CONFIG, check_vm_answer),
        strategies.one_of(VM_ANSWERS, metadata_files()),
    ),
    Target(
        *("proxies and endpoints", 0.1, os.EX_CONFIG, check_connection),
        strategies.tuples(ENVIRONMENTS, ENDPOINTS),
    ),
    Target(
        *("command lines", 0.15, os.EX_USAGE, check_command_line),
        strategies.tuples(
            strategies.one_of(
                strategies.lists(GROUPS, max_size=5).map(lambda groups: [NEEDED, *groups]),
                strategies.lists(GROUPS, max_size=6),
            ),
            strategies.sampled_from(["utf-8", "utf-8", "ascii", "koi8-r"]),
        ),
    ),
)


# --- Running it --------------------------------------------------------------------------------


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Raise Hang, or AssertionError, for a block that takes more time or memory than it should."""

    def expire(number: int, frame: object) -> None:
        expired.append(number)
        raise Hang(f"took more than {EXAMPLE_LIMIT_S:g} s")

    expired: list[int] = []
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")  # Linux forgets the peak so far; elsewhere only a new one is noticed.
    before_bytes = peak_bytes()
    handler = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, EXAMPLE_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    if expired:  # Somebody took it for an error of his own.
        raise Hang(f"took more than {EXAMPLE_LIMIT_S:g} s")
    grown_bytes = peak_bytes() - before_bytes
    assert grown_bytes < EXAMPLE_LIMIT_BYTES, f"took {grown_bytes:,} bytes of memory"


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
    while count.passed < examples and not count.failure:
        batch = min(BATCH, examples - count.passed)
        before = count.passed
        try_batch(place, target, batch, seed + count.passed, count)
        if count.passed == before and not count.failure:
            count.failure = "hypothesis has no examples for it"
    return count


def try_batch(place: Workplace, target: Target, examples: int, seed: int, count: Count) -> None:
    last: list[object] = []

    def run(example: object) -> None:
        last[:] = [example]
        taken = False
        with bounded():
            try:
                taken = target.check(place, example)
            except UploadError as error:
                check_refusal(error, target.exit_code)
        count.passed += 1
        count.taken += taken

    def search(*phases: Phase) -> str:
        """Answer what is wrong with the last example tried; nothing if nothing is."""
        settings = hypothesis.settings(
            max_examples=examples,
            phases=phases,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(hypothesis.HealthCheck),
            verbosity=hypothesis.Verbosity.quiet,
        )
        try:
            hypothesis.seed(seed)(settings(hypothesis.given(target.strategy)(run)))()
        except Exception as error:  # noqa: BLE001 - that there is none is what is tried.
            place_of_it = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place_of_it.filename).name}:{place_of_it.lineno}"
            return f"{type(error).__name__}: {error!s:.2000} ({where})\n    with {last[0]!r:.2000}"
        return ""

    count.failure = search(Phase.generate)
    if count.failure and not count.failure.startswith("Hang"):
        # Made smaller; not where each try takes long.
        passed, taken = count.passed, count.taken
        count.failure = search(Phase.generate, Phase.shrink) or count.failure
        count.passed, count.taken = passed, taken


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Feed the program with generated input.")
    parser.add_argument(
        "--examples", type=int, default=EXAMPLES, metavar="N", help="in all (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(10**6), metavar="S", help="repeats a run"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    print(f"seed {arguments.seed}", flush=True)
    passed = failed = 0
    with Workplace.open() as place:
        for target in TARGETS:
            started_s = time.monotonic()
            examples = max(1, round(arguments.examples * target.share))
            count = drive(place, target, examples, arguments.seed)
            seconds = time.monotonic() - started_s
            print(
                f"{target.name}: {count.taken:,} taken, {count.passed - count.taken:,} refused, "
                f"in {seconds:.0f} s",
                flush=True,
            )
            if count.failure:
                print(f"{target.name}: FAILED: {count.failure}", flush=True)
            passed += count.passed
            failed += bool(count.failure)
    print(f"{passed:,} passed, {failed:,} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
