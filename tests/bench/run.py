"""Measure upload_grpc.py on this machine, and print one table for README.

    run.py [--write README.md]      the table
    run.py --growth PYTHON          how cost grows, drawn by a Python that has matplotlib
    run.py --chunks                 chunk sizes, for the constant in upload_grpc.py

Whole processes are measured as people start them, from the start of the process to its end,
against services in other processes on this machine, over TLS on loopback. What is compared is
run in turn (A B A B ...) in the same minutes; a row shows medians, and the ratio of each pair.
No figure here fails anything: it is for people to look at.

Only the standard library is imported here: a child's peak memory counts that of its parent at
the moment it was started, so this process has to stay small.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SCRIPT = ROOT / "upload_grpc.py"
BARE_CLIENT = HERE / "bare_client.py"
GROWTH_PNG = HERE / "growth.png"
BAREST = "the barest gRPC client"
MARKERS = ("<!-- bench -->", "<!-- /bench -->")

MB = 1_000_000
# A process that takes longer has hung.
PROCESS_LIMIT_S = 300.0
# What a machine's own settings would change.
FOREIGN_VARIABLES = re.compile(r"(?i)(grpc|https?|no|all)_proxy|GRPC_.*|PYTHON.*|API_KEY|IAM_TOKEN")
# Each way, so that a round trip takes twice as long.
DELAY_S = 0.025
ROUND_TRIP = f"round trip {DELAY_S * 2000:.0f} ms"


class Size(NamedTuple):
    """How much is measured."""

    pairs: int
    slow_pairs: int
    short_pairs: int
    large_mb: int
    longest_mb: int
    many: int
    ledger: int
    distant: int
    converted: int
    growth_mb: Sequence[int]
    growth_counts: Sequence[int]


FULL = Size(15, 5, 41, 100, 2000, 500, 20_000, 50, 100,
            (1, 3, 10, 30, 100, 300, 1000, 2000),
            (10, 30, 100, 300, 1000, 3000, 10_000, 20_000))  # fmt: skip
# For trying the benchmark itself.
QUICK = Size(3, 2, 5, 10, 100, 20, 500, 10, 10, (1, 10, 100), (10, 100, 500))


# --- Measuring processes -------------------------------------------------------------------


class Cost(NamedTuple):
    """What one process, or several one after the other, took."""

    wall_s: float
    cpu_s: float
    peak_mb: float

    def times(self, factor: float) -> Cost:
        return Cost(self.wall_s * factor, self.cpu_s * factor, self.peak_mb)


# One side of a comparison, called with the number of the pair.
Side = Callable[[int], Cost]


class Failed(Exception):
    """A process did not do what it was to be measured at."""


def measure(command: Sequence[str | Path], out: Path, sent_bytes: int = 0) -> Cost:
    """Run a command; raise Failed unless it ended with 0 and the service got all bytes."""
    with open(out, "w+b") as output:
        started_s = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        hung = threading.Timer(PROCESS_LIMIT_S, process.kill)
        hung.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            wall_s = time.perf_counter() - started_s
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            hung.cancel()
            if process.returncode is None:
                process.kill()
                process.wait()
        output.seek(0)
        text = output.read().decode(errors="replace")
    # The sink ends its IDs with the number of bytes it received, a little more than the audio.
    received_bytes = sum(int(number) for number in re.findall(r"Dialog ID: talk-\d+-(\d+)", text))
    if process.returncode or not sent_bytes <= received_bytes <= sent_bytes * 1.1:
        line = " ".join(map(str, command))
        raise Failed(f"{line}\nexit code {process.returncode}, {text[-2000:]}")
    # Linux gives KiB, macOS bytes.
    peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Cost(wall_s, usage.ru_utime + usage.ru_stime, peak_bytes / MB)


def in_turn(pairs: int, *sides: Side) -> list[list[Cost]]:
    """Measure each side once, then again: A B A B ...; answer the costs of each."""
    costs: list[list[Cost]] = [[] for _ in sides]
    for pair in range(pairs):
        for side, measured in zip(sides, costs, strict=True):
            measured.append(side(pair))
    return costs


def add(costs: Sequence[Cost]) -> Cost:
    return Cost(
        sum(cost.wall_s for cost in costs),
        sum(cost.cpu_s for cost in costs),
        max(cost.peak_mb for cost in costs),
    )


def wall_s(costs: Sequence[Cost]) -> list[float]:
    return [cost.wall_s for cost in costs]


def cpu_s(costs: Sequence[Cost]) -> list[float]:
    return [cost.cpu_s for cost in costs]


# --- What is measured, and against what ----------------------------------------------------


class Bench:
    """A folder of recordings, the services they are sent to, and the commands that send them."""

    def __init__(self, folder: Path, size: Size, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.size = size
        self.stack = stack
        self._out = folder / "out"
        self.started_s = time.monotonic()
        self.sink = self.serve("sink", folder)
        self.endpoint = f"localhost:{self.sink['port']}"

    def serve(self, *words: object) -> dict[str, Any]:
        """Start a service; it ends when this process does, however it does."""
        process = subprocess.Popen(
            [sys.executable, HERE / "serve.py", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None and process.stdout is not None
        self.stack.callback(stop, process)
        ready = process.stdout.readline()
        if not ready:
            raise Failed(f"no service: serve.py {' '.join(map(str, words))}")
        return dict(json.loads(ready))

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.started_s:4.0f} s  {text}", file=sys.stderr, flush=True)

    def recording(self, size_bytes: int) -> Path:
        path = self.folder / f"{size_bytes}.wav"
        if not path.exists():
            write_wav(path, size_bytes)
        return path

    def recordings(self, count: int, size_bytes: int) -> Path:
        """Make a folder of recordings, no two alike."""
        folder = self.folder / f"{count}-of-{size_bytes}"
        folder.mkdir()
        for number in range(count):
            write_wav(folder / f"call-{number:05}.wav", size_bytes)
        return folder

    def ours(self, *paths: Path, options: Sequence[object] = (), endpoint: str = "") -> list[str]:
        return [
            *(sys.executable, str(SCRIPT), "--audio-path", *map(str, paths)),
            *("--meta-path", str(ROOT / "metadata_example.json"), "--connection-id", "bench"),
            *("--key", "bench-key", "--ca-file", self.sink["ca_file"]),
            *("--endpoint", endpoint or self.endpoint, *map(str, options)),
        ]

    def bare(self, path: Path, *words: object, endpoint: str = "") -> list[str]:
        return [
            *(sys.executable, str(BARE_CLIENT), endpoint or self.endpoint),
            *(self.sink["ca_file"], str(path), *map(str, words)),
        ]

    def run(self, command: Sequence[str | Path], *paths: Path) -> Cost:
        """Run a command that uploads these recordings, or the recordings in these folders."""
        files = [file for path in paths for file in (path.iterdir() if path.is_dir() else [path])]
        return measure(command, self._out, sum(file.stat().st_size for file in files))

    def side(self, command: Sequence[str | Path], *paths: Path) -> Side:
        return lambda _: self.run(command, *paths)

    def one_process_each(self, folder: Path, pair: int, pairs: int, endpoint: str = "") -> Cost:
        """Upload a part of a folder's recordings, another part in each pair, one by one.

        Answers what the whole folder would take.
        """
        files = sorted(folder.iterdir())
        part = files[pair::pairs]
        costs = [self.run(self.ours(file, endpoint=endpoint), file) for file in part]
        return add(costs).times(len(files) / len(part))


def write_wav(path: Path, size_bytes: int) -> None:
    """Write a recording that differs from all others, and read it: caches are warm from here.

    Most of it is a hole in the file, which reads like silence.
    """
    data_bytes = size_bytes - 44
    rate_hz, frame_bytes = 48_000, 4
    head = (b"RIFF", size_bytes - 8, b"WAVE", b"fmt ", 16, 1, 2, rate_hz, rate_hz * frame_bytes)
    with open(path, "w+b") as file:
        file.write(struct.pack("<4sI4s4sIHHII", *head))
        file.write(struct.pack("<HH4sI", frame_bytes, 16, b"data", data_bytes) + os.urandom(16))
        file.truncate(size_bytes)
        file.seek(0)
        while file.read(MB):
            pass


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a service: by the end of its input, or by force."""
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


NGINX = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/nginx-1;
    proxy_temp_path {folder}/nginx-2;
    fastcgi_temp_path {folder}/nginx-3;
    uwsgi_temp_path {folder}/nginx-4;
    scgi_temp_path {folder}/nginx-5;
    client_max_body_size 0;
    # Into memory and away with it: no disk in the figure.
    client_body_buffer_size {buffer};
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {chain_file};
        ssl_certificate_key {key_file};
        location / {{
            proxy_pass http://unix:{folder}/nginx.sock:/;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
        }}
    }}
    server {{
        listen unix:{folder}/nginx.sock;
        location / {{ return 204; }}
    }}
}}
"""


def start_nginx(bench: Bench, buffer_bytes: int) -> int:
    """Start an nginx that takes uploads and forgets them; answer its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = bench.folder / "nginx.conf"
    config.write_text(
        NGINX.format(folder=bench.folder, port=port, buffer=buffer_bytes, **{
            name: bench.sink[name] for name in ("chain_file", "key_file")
        })
    )  # fmt: skip
    log = bench.folder / "nginx.log"
    with open(log, "wb") as errors:
        process = subprocess.Popen(["nginx", "-p", bench.folder, "-c", config], stderr=errors)
    bench.stack.callback(stop, process)
    bench.stack.callback(process.terminate)
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return int(port)
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise Failed(f"nginx does not listen: {log.read_text()}")


def start_distance(bench: Bench) -> str:
    """Start a proxy that makes the sink distant; answer its endpoint."""
    return f"localhost:{bench.serve('delay', bench.sink['port'], DELAY_S)['port']}"


# --- Rows ----------------------------------------------------------------------------------


class Row(NamedTuple):
    what: str
    ours: str
    against: str
    ratio: str
    bound: str = "shown"
    holds: bool | None = None

    def __str__(self) -> str:
        verdict = {None: "", True: "yes", False: "**no**"}[self.holds]
        return "| " + " | ".join((*self[:5], verdict)) + " |"


HEADER = """\
| | `upload_grpc.py` | compared with | median (lowest to highest of N pairs) | wanted | holds |
|---|---|---|---|---|---|"""


def seconds(values: Sequence[float]) -> str:
    value = statistics.median(values)
    return f"{value * 1000:.0f} ms" if value < 0.995 else f"{value:.3g} s"


def spread(values: Sequence[float], what: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    digits = 2 if middle < 10 else 1
    return (
        f"{middle:.{digits}f} times {what} ({low:.{digits}f} to {high:.{digits}f} of {len(values)})"
    )


def at_most(
    limit: float | None, what: str, ours: Sequence[float], name: str, theirs: Sequence[float]
) -> Row:
    """A row that says how many times the time of something else we take."""
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    row = Row(what, seconds(ours), f"{name}: {seconds(theirs)}", spread(ratios, "the time"))
    if limit is None:
        return row
    return row._replace(bound=f"at most {limit:g}", holds=statistics.median(ratios) <= limit)


def at_least(
    limit: float | None, what: str, ours: Sequence[float], name: str, theirs: Sequence[float]
) -> Row:
    """A row that says how many times as fast as something else we are."""
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    row = Row(what, seconds(ours), f"{name}: {seconds(theirs)}", spread(ratios, "as fast"))
    if limit is None:
        return row
    return row._replace(bound=f"at least {limit:g}", holds=statistics.median(ratios) >= limit)


def short_recording(bench: Bench) -> Iterator[Row]:
    path = bench.recording(1_900_000)
    sides = (
        bench.side(bench.ours(path), path),
        bench.side(bench.bare(path), path),
        bench.side([sys.executable, "-c", "import grpc"]),
    )
    in_turn(1, *sides)  # From here on, everything that they load is in memory.
    script, bare, nothing = map(wall_s, in_turn(bench.size.short_pairs, *sides))
    what = "one recording of 1.9 MB"
    yield at_most(1.7, what, script, "`python -c 'import grpc'`", nothing)
    yield at_most(None, what, script, BAREST, bare)


def large_recording(bench: Bench) -> Iterator[Row]:
    path = bench.recording(bench.size.large_mb * MB)
    script, bare = in_turn(
        bench.size.pairs,
        bench.side(bench.ours(path), path),
        bench.side(bench.bare(path), path),
    )
    what = f"stream of {bench.size.large_mb} MB"
    yield at_most(1.15, what, wall_s(script), BAREST, wall_s(bare))
    yield at_most(1.2, f"{what}: CPU time", cpu_s(script), BAREST, cpu_s(bare))


def curl(bench: Bench) -> Iterator[Row]:
    what = f"stream of {bench.size.large_mb} MB"
    missing = [name for name in ("nginx", "curl") if not shutil.which(name)]
    if missing:
        yield Row(
            what, "", f"`curl -T` to nginx: no {' and no '.join(missing)} here", "not measured"
        )
        return
    path = bench.recording(bench.size.large_mb * MB)
    try:
        port = start_nginx(bench, path.stat().st_size + MB)
    except Failed as failure:
        bench.say(str(failure))
        yield Row(what, "", "`curl -T` to nginx: nginx does not start", "not measured")
        return
    command = ["curl", "-sSf", "--cacert", bench.sink["ca_file"], "-T", path]
    script, other = in_turn(
        bench.size.pairs,
        bench.side(bench.ours(path), path),
        bench.side([*command, f"https://localhost:{port}/"]),
    )
    yield at_most(None, what, wall_s(script), "`curl -T` over TLS to nginx", wall_s(other))


def other_ways(bench: Bench) -> Iterator[Row]:
    path = bench.recording(bench.size.large_mb * MB)
    script, small, single = in_turn(
        bench.size.slow_pairs,
        bench.side(bench.ours(path), path),
        bench.side(bench.bare(path, 1024), path),
        bench.side(bench.ours(path, options=["--single-message"]), path),
    )
    what = f"stream of {bench.size.large_mb} MB"
    guide = f"{BAREST}, chunks of 1 KiB as in the guide"
    yield at_least(20, what, wall_s(script), guide, wall_s(small))
    peak_mb = statistics.median(cost.peak_mb for cost in single)
    message = f"`--single-message`, {peak_mb:.0f} MB of memory"
    yield at_least(None, what, wall_s(script), message, wall_s(single))


def memory(bench: Bench) -> Iterator[Row]:
    sizes_mb = (10, bench.size.large_mb, bench.size.longest_mb)
    paths = [bench.recording(size_mb * MB) for size_mb in sizes_mb]
    costs = in_turn(3, *(bench.side(bench.ours(path), path) for path in paths))
    peaks_mb = [[cost.peak_mb for cost in some] for some in costs]
    ratios = [large / small for small, *_, large in zip(*peaks_mb, strict=True)]
    yield Row(
        f"peak memory: streams of {sizes_mb[0]} MB, {sizes_mb[1]} MB, {sizes_mb[2] / 1000:g} GB",
        ", ".join(f"{statistics.median(some):.0f} MB" for some in peaks_mb),
        "the last with the first",
        spread(ratios, "the memory"),
        "flat (at most 1.1), at most 60 MB",
        statistics.median(ratios) <= 1.1 and max(map(max, peaks_mb)) <= 60,
    )


def in_parts(count: int, pairs: int) -> str:
    return f"one process each (each pair: another {count // pairs} of them, times {pairs})"


def many_recordings(bench: Bench) -> Iterator[Row]:
    count, pairs = bench.size.many, bench.size.slow_pairs
    folder = bench.recordings(count, MB)

    def with_ledger(pair: int) -> Cost:
        options = ["--jobs", 4, "--ledger", bench.folder / f"many-{pair}.sqlite"]
        return bench.run(bench.ours(folder, options=options), folder)

    costs = in_turn(
        pairs,
        bench.side(bench.ours(folder, options=["--jobs", 4]), folder),
        with_ledger,
        lambda pair: bench.one_process_each(folder, pair, pairs),
    )
    shutil.rmtree(folder)
    together, ledger, apart = map(wall_s, costs)
    what = f"{count} recordings of 1 MB, one run with `--jobs 4`"
    yield at_least(12, what, together, in_parts(count, pairs), apart)
    yield at_least(0.75, f"{what} `--ledger`", ledger, "without `--ledger`", together)


STAT_ALL = "import os, sys; f = sys.argv[1]; [os.stat(f'{f}/{name}') for name in os.listdir(f)]"


def rerun(bench: Bench) -> Iterator[Row]:
    folder = bench.recordings(bench.size.ledger, 16_000)
    options = ["--jobs", 4, "--quiet", "--ledger", bench.folder / "all.sqlite"]
    command = bench.ours(folder, options=options)
    bench.run(command, folder)
    script, stats = in_turn(
        bench.size.slow_pairs,
        bench.side(command),
        bench.side([sys.executable, "-c", STAT_ALL, folder]),
    )
    shutil.rmtree(folder)
    what = f"rerun with `--quiet` over {bench.size.ledger:,} recordings that the ledger has"
    yield at_most(10, what, wall_s(script), "Python, `os.stat` of each", wall_s(stats))


def far_away(bench: Bench) -> Iterator[Row]:
    count, pairs = bench.size.distant, bench.size.slow_pairs
    endpoint = start_distance(bench)
    folder = bench.recordings(count, MB)
    costs = in_turn(
        pairs,
        bench.side(bench.ours(folder, endpoint=endpoint), folder),
        lambda pair: bench.one_process_each(folder, pair, pairs, endpoint),
    )
    shutil.rmtree(folder)
    together, apart = map(wall_s, costs)
    what = f"{count} recordings of 1 MB, {ROUND_TRIP}, one run"
    yield at_least(3, what, together, in_parts(count, pairs), apart)


FFMPEG = "import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())"
ALAW_S = 60


def conversion(bench: Bench) -> Iterator[Row]:
    """Recordings of a minute in A-law, and the same in WAV."""
    count = bench.size.converted
    program = subprocess.check_output([sys.executable, "-c", FFMPEG], text=True).strip()
    programs, alaw, wav = (bench.folder / name for name in ("bin", "alaw", "wav"))
    for folder in (programs, alaw, wav):
        folder.mkdir()
    (programs / "ffmpeg").symlink_to(program)
    os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
    for number in range(count):
        data = os.urandom(4_000) * (2 * ALAW_S)
        head = struct.pack("<4sI8sIHHIIHH", b"RIFF", 36 + len(data), b"WAVEfmt ", 16,
                           6, 1, 8_000, 8_000, 1, 8)  # fmt: skip
        path = alaw / f"call-{number:05}.wav"
        path.write_bytes(head + struct.pack("<4sI", b"data", len(data)) + data)

    def ffmpeg(pair: int) -> Cost:
        costs = []
        for path in sorted(alaw.iterdir()):
            words = ("ffmpeg", "-nostdin", "-v", "error", "-i", path, "-c:a", "pcm_s16le", "-y")
            costs.append(bench.run([*words, wav / path.name]))
        return add(costs)

    ffmpeg(0)
    converting = bench.ours(alaw, options=["--jobs", 4, "--convert"])
    converted, alone, plain = in_turn(
        bench.size.slow_pairs,
        lambda pair: bench.run(converting, wav),  # So many bytes have to arrive.
        ffmpeg,
        bench.side(bench.ours(wav, options=["--jobs", 4]), wav),
    )
    what = f"{count} recordings of {ALAW_S} s in A-law, one run with `--convert --jobs 4`"
    name = "FFmpeg alone, one after the other, without uploading"
    yield at_least(1.2, what, wall_s(converted), name, wall_s(alone))
    yield at_most(None, what, wall_s(converted), "the same recordings in WAV", wall_s(plain))


ROWS = (short_recording, large_recording, curl, other_ways, memory, many_recordings, rerun,
        far_away, conversion)  # fmt: skip


def machine() -> str:
    """Name what was measured on."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
        cpu = names[0] if names else cpu
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {metadata.version(name)}" for name in ("grpcio", "protobuf")]
    for command in (["nginx", "-v"], ["curl", "--version"]):
        with contextlib.suppress(OSError):
            said = subprocess.run(command, capture_output=True, text=True, check=False)
            if match := re.search(r"(nginx|curl)[/ ]([\d.]+)", said.stderr + said.stdout):
                versions.append(f"{match[1]} {match[2]}")
    cores = os.cpu_count() or 1
    return (
        f"{' '.join(cpu.split())}, {cores} core{'s' * (cores != 1)}, {platform.system()} "
        f"{platform.release()}, {', '.join(versions)}"
    )


def table(bench: Bench) -> str:
    """Measure all rows; answer them as one markdown table."""
    lines = [HEADER]
    for measure_rows in ROWS:
        bench.say(measure_rows.__name__.replace("_", " "))
        for row in measure_rows(bench):
            lines.append(str(row))
            bench.say(f"    {row.what}: {row.ratio}")
    took_s = time.monotonic() - bench.started_s
    lines += ["", f"{time.strftime('%Y-%m-%d')}, {machine()}; {took_s:.0f} s."]
    return "\n".join(lines)


# --- Growth, and chunk sizes ---------------------------------------------------------------


def growth(bench: Bench) -> dict[str, Any]:
    """Measure how time and memory grow with file size and with the number of recordings."""
    by_size, by_count = [], []
    for size_mb in bench.size.growth_mb:
        path = bench.recording(size_mb * MB)
        side = bench.side(bench.ours(path), path)
        (costs,) = in_turn(5 if size_mb <= 100 else 3, side)
        path.unlink()
        peak_mb = statistics.median(cost.peak_mb for cost in costs)
        by_size.append((size_mb, statistics.median(wall_s(costs)), peak_mb))
        bench.say(f"{size_mb} MB: {seconds(wall_s(costs))}, {peak_mb:.0f} MB of memory")
    for count in bench.size.growth_counts:
        folder = bench.recordings(count, 16_000)
        runs = []
        for number in range(3 if count <= 1000 else 1):
            ledger = bench.folder / f"{count}-{number}.sqlite"
            without = bench.ours(folder, options=["--jobs", 4])
            remembered = [*without, "--ledger", str(ledger)]
            costs = [bench.run(without, folder), bench.run(remembered, folder)]
            runs.append(wall_s([*costs, bench.run(remembered)]))
        shutil.rmtree(folder)
        by_count.append((count, *map(statistics.median, zip(*runs, strict=True))))
        bench.say(f"{count} recordings: " + ", ".join(f"{s:.3g} s" for s in by_count[-1][1:]))
    return {"by_size": by_size, "by_count": by_count, "machine": machine()}


def draw(python: str, measured: dict[str, Any], picture: Path) -> None:
    subprocess.run(
        [python, HERE / "plot.py", picture], input=json.dumps(measured), text=True, check=True
    )


def chunks(bench: Bench) -> str:
    """Measure chunk sizes, next door and far away; answer a table."""
    path = bench.recording(bench.size.large_mb * MB)
    distant = start_distance(bench)
    sizes_kib = (16, 32, 64, 128, 256, 512, 1024)
    measured = []
    for name, endpoint in (("loopback", ""), (ROUND_TRIP, distant)):
        bench.say(name)
        measured.append(
            in_turn(
                bench.size.slow_pairs,
                *(
                    bench.side(bench.bare(path, kib * 1024, endpoint=endpoint), path)
                    for kib in sizes_kib
                ),
            )
        )
    lines = [
        f"{BAREST}, {bench.size.large_mb} MB, whole process, "
        f"medians of {bench.size.slow_pairs}; {machine()}",
        "",
        f"| chunk | loopback | CPU | {ROUND_TRIP} |",
        "|---|---|---|---|",
    ]
    for kib, near, far in zip(sizes_kib, *measured, strict=True):
        cells = seconds(wall_s(near)), seconds(cpu_s(near)), seconds(wall_s(far))
        lines.append(f"| {kib} KiB | {' | '.join(cells)} |")
    return "\n".join(lines)


# --- The command line ----------------------------------------------------------------------


def replace_table(readme: Path, text: str) -> None:
    """Put text between the markers."""
    start, end = MARKERS
    content = readme.read_text("utf-8")
    before, _, rest = content.partition(start)
    _, _, after = rest.partition(end)
    readme.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}", "utf-8")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure upload_grpc.py on this machine.")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help=f"put the table between {' and '.join(MARKERS)}"
    )
    parser.add_argument(
        "--growth", metavar="PYTHON", help=f"draw {GROWTH_PNG.name}, by a Python with matplotlib"
    )
    parser.add_argument("--chunks", action="store_true", help="measure chunk sizes")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the benchmark")
    args = parser.parse_args(argv)
    if args.write and not all(marker in args.write.read_text("utf-8") for marker in MARKERS):
        parser.error(f"{args.write} has no {' and '.join(MARKERS)}")
    return args


def terminated(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    signal.signal(signal.SIGTERM, terminated)
    for name in filter(FOREIGN_VARIABLES.fullmatch, list(os.environ)):
        del os.environ[name]
    size = QUICK if args.quick else FULL
    # Not /tmp, which may be memory: a ledger is on a disk.
    parent = os.environ.get("TMPDIR", "/var/tmp")
    with (
        tempfile.TemporaryDirectory(prefix="upload_grpc-bench-", dir=parent) as folder,
        contextlib.ExitStack() as stack,
    ):
        try:
            bench = Bench(Path(folder), size, stack)
            if args.growth:
                if subprocess.run([args.growth, "-c", "import matplotlib"], check=False).returncode:
                    raise Failed(f"{args.growth} has no matplotlib")
                draw(args.growth, growth(bench), GROWTH_PNG)
                return 0
            text = chunks(bench) if args.chunks else table(bench)
        except Failed as failure:
            print(f"error: {failure}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    print(text)
    if args.write:
        replace_table(args.write, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
