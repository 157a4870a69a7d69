"""--convert: what FFmpeg may do, what may happen to it, and what is remembered."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import encoders
import grpc
import ledgers
import pytest
from chaos import running_below
from conftest import (
    LONG_BYTES,
    SCRIPT,
    WAYS,
    Outcome,
    Run,
    Way,
    arguments,
    ended,
    sha256,
    start,
    wait_for,
    when,
)
from encoders import ffmpeg, mp3, ogg_opus, sound, wav
from kinds import A_LAW, TAG, chunk, fmt, riff
from stand_in import At, Fail, StandIn

import upload_grpc

pytestmark = pytest.mark.usefixtures("temp")
Convert = Callable[..., Outcome]
Script = Callable[[str], Path]


@pytest.fixture
def flac(folder: Path) -> Path:
    """Make a recording that has to be converted, with metadata of its own."""
    path = folder / "call.flac"
    path.write_bytes(sound("FLAC", seconds=5))
    path.with_suffix(".json").write_text("{}")
    return path


@pytest.fixture
def convert(upload: Run, flac: Path, ledger: Path) -> Convert:
    """Run the program, with --convert and a ledger, over the folder."""
    given = ("--audio-path", flac.parent, "--convert", "--ledger", ledger)
    return lambda *words: upload(*given, *words)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Put a program in the place of FFmpeg; $target is the file that it is to write.

    Each time it runs, a line is added to `runs`.
    """

    def write(text: str) -> Path:
        path = tmp_path / "bin" / "ffmpeg"
        path.unlink()
        lines = ("#!/bin/bash", f"echo $$ >>{tmp_path}/runs", "for target; do :; done", text)
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o755)
        return tmp_path / "runs"

    return write


DECODE = f'{shlex.quote(encoders.DECODER)} "$@"'
REAL = f"exec {DECODE}"


def runs(script: Path) -> int:
    return len(script.read_text().split()) if script.exists() else 0


# --- What FFmpeg may do -----------------------------------------------------------------

BROKEN = r"FFmpeg cannot decode the whole recording; check that it plays to its end; .*"
# A program in its place, the exit code, and a pattern for the line.
FAKES = {
    "warns": ("echo 'odd but decoded' >&2; cp GOOD $target", 65, rf"{BROKEN} \(odd but decoded\)"),
    "fails mutely": ("exit 1", 65, rf"{BROKEN} \(status 1\)"),
    "writes nothing": ("exit 0", 65, "damaged or truncated WAV file: no format chunk"),
    "writes text": ("echo hello > $target", 65, "damaged or truncated WAV file: no format chunk"),
    "writes a WAV that is cut": ("head -c 3000 GOOD > $target", 65, "truncated"),
    "writes no samples": ("head -c 44 GOOD > $target", 65, "truncated"),
    "writes half of it": ("cp HALF $target", 65, rf"{BROKEN} \(decoded to .* 2.5 s; .* 5.0 s\)"),
    "floods stderr": ("yes | head -c 9000000 >&2; exit 1", 65, rf"{BROKEN} \(y\)"),
    "floods stderr for ever": ("yes >&2", 65, rf"{BROKEN} \(y\)"),
    "writes an endless file": ("truncate -s 5G $target; sleep 100", 65, "longer than a WAV"),
    "controls the terminal": (r"printf '\033[3m\abad\n' >&2; exit 1", 65, rf"{BROKEN} \(\\x1b\[3m"),
    "sleeps": ("sleep 100", 75, "FFmpeg decoded nothing for 0.4 s and was ended; run again"),
    "closes stderr and sleeps": ("exec 2>&-; sleep 100", 75, "FFmpeg decoded nothing for 0.4 s"),
    "has a child that sleeps": (
        "exec -a $0 sleep 100 & wait",  # By a name that is seen to go on.
        75,
        "FFmpeg decoded nothing for 0.4 s",
    ),
    "has a full disk": (
        "echo 'x: No space left on device' >&2; exit 228",
        *(75, "no space left for the converted recording; free some space, or set TMPDIR"),
    ),
    "has no quota left": ("echo 'x: Disk quota exceeded' >&2; exit 1", 75, "no space left"),
    "is killed behind a shell": ("exit 137", 75, "FFmpeg was ended by a signal; run again"),
    "is killed": ("kill -KILL $$; sleep 9", 75, "FFmpeg was ended by a signal"),
    "crashes": ("kill -SEGV $$; sleep 9", 75, "FFmpeg was ended by a signal"),
    "is at a limit": (  # No more threads, as in a container.
        "echo 'Error opening decoder: Resource temporarily unavailable' >&2; exit 1",
        *(75, "FFmpeg could not go on"),
    ),
    "is a wrapper of none": ('exec /no/ffmpeg "$@"', 78, "--convert needs FFmpeg"),
}


@pytest.mark.parametrize("name", FAKES)
def test_whatever_ffmpeg_does_nothing_is_sent(
    convert: Convert, script: Script, flac: Path, tmp_path: Path, service: StandIn, ledger: Path,
    name: str,
) -> None:  # fmt: skip
    text, code, pattern = FAKES[name]
    for which, seconds in {"GOOD": 5.0, "HALF": 2.5}.items():
        (tmp_path / which).write_bytes(wav(seconds=seconds))
        text = text.replace(which, str(tmp_path / which))
    started = script(text)
    before = upload_grpc.FileState.of(str(flac)), flac.read_bytes()
    outcome = convert("--timeout", 0.4 if "0.4 s" in pattern else 20, "--retries", 0)
    assert (outcome.code, outcome.out, service.calls) == (code, "", [])
    line = outcome.err.splitlines()[0]
    assert re.match(f"upload_grpc: {flac}: {pattern}", line)
    assert line.isascii() and "\x1b" not in line and len(line) < 500
    [row] = ledgers.rows(ledger)
    assert row["state"] == ("rejected" if code == 65 else "failed")
    assert row["sha256"] == sha256(flac)
    wait_for(lambda: not running_below(tmp_path / "bin"))
    assert before == (upload_grpc.FileState.of(str(flac)), flac.read_bytes())
    # What was refused is not decoded again, until the file changes, or by --retry-rejected.
    script(REAL)
    assert convert("--quiet").code == (65 if code == 65 else 0)
    assert runs(started) == (1 if code == 65 else 2)
    assert convert("--quiet", "--retry-rejected").code == 0
    assert runs(started) == 2
    [talk] = service.talks.values()
    assert talk.sha256 == sha256(wav(seconds=5))


def test_ffmpeg_may_read_this_file_alone_and_as_what_was_seen(
    convert: Convert, script: Script, flac: Path
) -> None:
    """What is refused before, such as a playlist by the name of call.flac, is refused twice."""
    script(f'echo "$*" >{flac}.words; {REAL}')
    assert convert().code == 0
    words = Path(f"{flac}.words").read_text()
    limits = "-nostdin .*-protocol_whitelist file -format_whitelist flac -f flac .*-i file:"
    assert re.match(limits + re.escape(str(flac)), words), words


def test_a_recording_that_changed_is_decoded_again(
    convert: Convert, script: Script, flac: Path, service: StandIn
) -> None:
    whole = flac.read_bytes()
    flac.write_bytes(whole[:-2_000])
    started = script(REAL)
    for _ in range(2):
        assert (convert().code, runs(started)) == (65, 1)
    flac.write_bytes(whole)
    assert (convert().code, runs(started), len(service.talks)) == (0, 2, 1)
    assert (convert().code, runs(started), len(service.talks)) == (0, 2, 1)


@pytest.mark.parametrize(
    "program", [None, b"\x7fELF nonsense", b"#!/no/such/interpreter\n"], ids=repr
)
def test_without_ffmpeg_nothing_is_sent(
    convert: Convert, flac: Path, service: StandIn, tmp_path: Path, program: bytes | None
) -> None:
    """Not even what needs no conversion, as cron would say so each time."""
    flac.with_name("zz.wav").write_bytes(wav())
    if program:
        path = tmp_path / "bin" / "ffmpeg"
        path.unlink()
        path.write_bytes(program)
        path.chmod(0o755)
    else:
        os.environ["PATH"] = str(tmp_path)
    outcome = convert("--quiet", "--jobs", 1)
    assert (outcome.code, service.talks) == (78, {})
    assert "--convert needs FFmpeg, which is not installed or cannot be run;" in outcome.err
    # A dry run looks whether there is one, and runs none.
    assert convert("--dry-run").code == (0 if program else 78)


@pytest.mark.parametrize("closed", ["<&-", "<&- 2>&-"])
def test_without_a_stdin_it_is_our_file_that_ffmpeg_writes(
    service: StandIn, flac: Path, closed: str
) -> None:
    """Not /dev/null, which FFmpeg gets in the place of descriptor 0."""
    words = arguments(service, "--convert", "--audio-path", flac)
    line = ("sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, str(SCRIPT), *words)
    assert subprocess.run(line, capture_output=True, check=False).returncode == 0
    assert len(service.talks) == 1


def test_ffmpeg_gets_no_secret(convert: Convert, script: Script, tmp_path: Path) -> None:
    for name in ("API_KEY", "IAM_TOKEN", "FFREPORT"):
        os.environ[name] = "t1.hush"
    script(f"env > {tmp_path}/seen; ls -l /dev/fd/ >> {tmp_path}/seen; exit 1")
    assert convert().code == 65
    seen = (tmp_path / "seen").read_text()
    assert "PATH=" in seen and "hush" not in seen
    assert "ledger" not in seen and "socket" not in seen


# --- What it reads is hostile ------------------------------------------------------------

PLAYLISTS = (
    b"ffconcat version 1.0\nfile 'neighbour.wav'\n",
    b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nneighbour.wav\n#EXT-X-ENDLIST\n",
    b"v=0\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
    b'<?xml version="1.0"?><MPD><Period><AdaptationSet/></Period></MPD>',
)
# What we take for a recording although a playlist follows: the demuxer must not.
FRONTS = (b"", TAG, b"\0\0\0\x08free", b"#!AMR\n", b"RIFF\xff\xff\0\0WAVE", b"OggS", b"fLaC")


def test_a_playlist_does_not_bring_the_neighbours_call(
    convert: Convert, flac: Path, service: StandIn
) -> None:
    flac.unlink()
    every = itertools.product(FRONTS, PLAYLISTS, (b".m4a", b".mp3", b".wma"))
    for number, (front, playlist, suffix) in enumerate(every):
        flac.with_name(f"{number}{suffix.decode()}").write_bytes(front + playlist + suffix)
    audio = sound("WAV", "ALAW", seconds=3)
    (flac.parent / "neighbour.wav").write_bytes(audio)
    assert convert("--quiet", "--min-duration", 0.1).code == 65
    [talk] = service.talks.values()
    assert talk.size > 40_000


NAMES = [
    "-i.flac", "-y", "call:1.flac", "http:%2f%2fexample.flac", "concat:a|b.flac", "%d.flac",
    "call%03d.flac", "a 'b' \"c\" $HOME `id`.flac", "[0:a].flac", "звонок.flac", "line\nbreak.flac",
    "pipe:0", "fd:", "subfile,,start,0,end,9,,:x.flac", "data:audio,x", os.fsdecode(b"\xff.flac"),
]  # fmt: skip


def test_any_name_will_do(
    upload: Run, service: StandIn, flac: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg takes what is before a colon for a protocol, and a dash for an option."""
    monkeypatch.chdir(flac.parent)
    for number, name in enumerate(NAMES):
        Path(name).write_bytes(sound("FLAC", seconds=1 + number / 8))
        Path(f"cut {name}").write_bytes(sound("FLAC", seconds=5)[:-3_000])
    paths = [f"--audio-path={front}{name}" for name in NAMES for front in ("", "cut ")]
    outcome = upload(*paths, "--convert", "--meta-path", "call.json", "--format=json", "--quiet")
    results = {line["path"]: line for line in map(json.loads, outcome.out.splitlines())}
    assert (outcome.code, len(results)) == (65, 2 * len(NAMES))
    for number, name in enumerate(NAMES):
        talk = service.talks[results[name]["talk_id"]]
        assert talk.sha256 == sha256(wav(seconds=1 + number / 8)), name
        assert "cannot decode" in results[f"cut {name}"]["error"]


# --- The original is what counts ----------------------------------------------------------

CHANGES = {
    "replaced before": "cp OTHER NEW; mv NEW CALL; REAL",
    "replaced after": "DECODE; s=$?; cp OTHER NEW; mv NEW CALL; exit $s",
    "replaced, and cannot be decoded": "cp OTHER NEW; mv NEW CALL; exit 1",
    "grows": "printf x >>CALL; REAL",
    "removed": "rm CALL; REAL",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_recording_that_changes_meanwhile_is_not_sent(
    convert: Convert, script: Script, flac: Path, tmp_path: Path, service: StandIn, ledger: Path,
    name: str,
) -> None:  # fmt: skip
    other = tmp_path / "other"
    other.write_bytes(sound("FLAC", seconds=3))
    text = CHANGES[name].replace("DECODE", DECODE).replace("REAL", REAL)
    for word, path in {"OTHER": other, "NEW": tmp_path / "new", "CALL": flac}.items():
        text = text.replace(word, shlex.quote(str(path)))
    script(text)
    outcome = convert()
    assert (outcome.code, service.talks) == (75, {})
    what = "became unreadable" if name == "removed" else "changed or was replaced"
    assert re.match(f"upload_grpc: {flac}: {what}", outcome.err)
    assert ledgers.states(ledger) == ["failed"]
    script(REAL)
    flac.write_bytes(other.read_bytes())
    assert convert("--quiet").code == 0
    [talk] = service.talks.values()
    assert talk.sha256 == sha256(wav(seconds=3))


@WAYS
def test_the_original_is_looked_at_again_at_the_commit_point(
    convert: Convert, script: Script, flac: Path, service: StandIn, ledger: Path, way: Way
) -> None:
    flac.write_bytes(riff(fmt(A_LAW, 1, 8_000, 8), chunk(b"data", bytes(LONG_BYTES))))
    service.script.append(At(audio=lambda call: os.utime(flac, (1, 1))))
    if way:  # A single message has passed its commit point when it arrives.
        script(f"{DECODE}; touch -d yesterday {shlex.quote(str(flac))}")
    outcome = convert("--quiet", "--retries", 0, *way)
    assert (outcome.code, service.talks, ledgers.states(ledger)) == (75, {}, ["failed"])


def test_chmod_meanwhile_changes_nothing(
    convert: Convert, script: Script, flac: Path, service: StandIn, ledger: Path
) -> None:
    script(f"chmod 600 {shlex.quote(str(flac))}; {REAL}")
    assert convert("--quiet").code == 0
    row = ledgers.row(ledger)
    assert (row["state"], row["ctime_ns"]) == ("uploaded", flac.stat().st_ctime_ns)


def test_the_ledger_and_the_lookup_key_hold_the_originals_digest(
    convert: Convert, flac: Path, service: StandIn, ledger: Path
) -> None:
    place = ("--organization-id", "o", "--space-id", "s")
    assert convert("--lookup-key", "upload_sha256", *place).code == 0
    row = ledgers.row(ledger)
    assert row["sha256"] == sha256(flac) and row["size_bytes"] == flac.stat().st_size
    [talk] = service.talks.values()
    assert talk.fields == {"upload_sha256": sha256(flac)}
    assert talk.sha256 == sha256(wav(seconds=5))
    moved = flac.rename(flac.with_name("moved.flac"))
    flac.with_suffix(".json").rename(moved.with_suffix(".json"))
    assert (convert().code, len(service.talks)) == (0, 1)


def test_what_is_known_needs_no_option_that_it_was_sent_with(
    convert: Convert, upload: Run, flac: Path, ledger: Path
) -> None:
    """After a chmod it is hashed, and known."""
    assert convert("--quiet").code == 0
    for words in ((), ("--split",)):
        flac.chmod(0o600 if words else 0o640)
        outcome = upload("--audio-path", flac.parent, "--ledger", ledger, "--quiet", *words)
        assert outcome == Outcome(0, "", "")


def test_one_that_was_moved_and_converted_needs_no_json_to_be_known(
    convert: Convert, flac: Path, service: StandIn, ledger: Path
) -> None:
    """What is hashed to know it is what is reported, not the file that would be sent."""
    words = ("--require-json", "0s", "--quiet")
    call, moved = flac.with_suffix(".wav"), flac.with_name("archive") / "call.wav"
    flac.unlink()
    call.write_bytes(sound("WAV", "ALAW"))
    assert convert(*words).code == 0
    flac.with_suffix(".json").unlink()
    moved.parent.mkdir()
    call.rename(moved)
    moved.with_suffix(".mp3").write_bytes(mp3())
    for _ in range(2):
        assert convert(*words) == Outcome(0, "", "")
    moved.with_suffix(".json").write_text("{}")
    assert convert(*words).code == 0 and len(service.talks) == 1


def test_attempts_send_the_same_once_converted(
    convert: Convert, script: Script, service: StandIn, waits: Callable[..., None]
) -> None:
    started = script(REAL)
    service.script += [Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, after_bytes=n) for n in (0, None)]
    assert convert("--quiet").code == 0
    [talk] = service.talks.values()
    assert (talk.sha256, runs(started)) == (sha256(wav(seconds=5)), 1)


def test_split_looks_at_what_is_sent(convert: Convert, service: StandIn, folder: Path) -> None:
    for name, channels in {"mono.wav": 1, "stereo.wav": 2}.items():
        (folder / name).write_bytes(sound("WAV", "ALAW", channels=channels))
    outcome = convert("--split", "--quiet")
    assert (outcome.code, len(service.badges)) == (65, 2)
    assert re.search(
        r"stereo.wav: WAV, PCM 16 bit, .* can be split; leave out --split", outcome.err
    )


@pytest.mark.parametrize(
    ("data_bytes", "words", "line"),
    [
        (14_400 * 16_000 + 2, (), "4.00 hours long; the limit is 4"),
        (128 << 20, ("--single-message",), "bytes; a single message must be under"),
    ],
)
def test_limits_look_at_what_is_sent(
    convert: Convert, script: Script, service: StandIn, tmp_path: Path,
    data_bytes: int, words: tuple[str, ...], line: str,
) -> None:  # fmt: skip
    head = tmp_path / "head"
    head.write_bytes(riff(fmt(), chunk(b"data", length=data_bytes)))
    script(f"cp {head} $target; truncate -s {44 + data_bytes} $target")
    outcome = convert("--quiet", *words)
    assert (outcome.code, service.calls) == (65, [])
    assert line in outcome.err


# --- Too short ---------------------------------------------------------------------------


def test_what_is_too_short_is_left_out_and_decoded_once(
    upload: Run, script: Script, service: StandIn, folder: Path, ledger: Path, call: Path
) -> None:
    """By the header where it has the length, else by what it is converted to."""
    left_out = {
        "wav": (wav(), "1.0 s, shorter than 2 s"),
        "a-law": (sound("WAV", "ALAW"), "1.0 s, shorter than 2 s"),
        "flac": (sound("FLAC"), "1.0 s, shorter than 2 s"),
        "m4a": (ffmpeg(".m4a"), "1.. s, shorter than 2 s"),
        "empty": (b"", "without audio so far"),
        "header": (riff(fmt(), chunk(b"data")), "without audio so far"),
    }
    # MP3 and OggOpus are not measured.
    taken = {"mp3": mp3(), "opus": ogg_opus(), "long": wav(seconds=2),
             "long m4a": ffmpeg(".m4a", audio=wav(seconds=3))}  # fmt: skip
    for name, audio in (taken | {name: audio for name, (audio, _) in left_out.items()}).items():
        (folder / f"{name}.mp3").write_bytes(audio)
    started = script(REAL)
    place = ("--audio-path", folder, "--ledger", ledger)
    words = (*place, "--convert", "--verbose", "--meta-path", call.with_suffix(".json"))
    for more, already in (((), 0), ((), 4), (("--dry-run",), 4)):
        outcome = upload(*words, "--min-duration", 2, *more)
        assert (outcome.code, len(service.talks), runs(started)) == (0, 4, 2)
        assert f"{already} already there, 0 failed, 0 unknown, 6 too short\n" in outcome.err
        for name, (_, what) in left_out.items():
            assert already or re.search(rf"/{name}.mp3: left out, {what}\n", outcome.err)
    assert "m4a" not in upload(*place, "--report").out
    # Short enough now.
    outcome = upload(*words, "--min-duration", 0.5)
    assert (outcome.code, len(service.talks), runs(started)) == (0, 8, 5)


# --- Signals, and space --------------------------------------------------------------------


@pytest.fixture
def long_call(flac: Path) -> Path:
    """Make an hour of A-law, nothing of which is on the disk: FFmpeg takes a while."""
    path = flac.with_name("long.wav")
    path.write_bytes(riff(fmt(A_LAW, 1, 8_000, 8), chunk(b"data", length=30_000_000)))
    os.truncate(path, 44 + 30_000_000)
    flac.unlink()
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_to_all_of_us_is_no_fault_of_the_recording(
    service: StandIn, long_call: Path, ledger: Path, temp: Path, tmp_path: Path, number: int
) -> None:
    """Ctrl-C and timeout(1) signal the group: FFmpeg would end, and the recording be 65."""
    words = arguments(service, "--audio-path", long_call, "--convert", "--ledger", ledger)
    with start(*words, start_new_session=True) as run:
        wait_for(lambda: running_below(tmp_path / "bin"))
        time.sleep(0.05)
        os.killpg(run.pid, number)
        assert list(temp.iterdir()) == []
        run.communicate(timeout=30)
    assert run.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert not running_below(tmp_path / "bin")
        assert ledgers.states(ledger) == ["failed"]
    assert service.calls == []
    wait_for(lambda: not running_below(tmp_path / "bin"))
    assert list(temp.iterdir()) == []
    # The next run has it as if nothing had happened.
    long_call.write_bytes(sound("WAV", "ALAW"))
    with start(*words) as run:
        assert ended(run).code == 0
    assert len(service.talks) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> object:
    disk = tmp_path / "disk"
    disk.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if (
        os.geteuid()
        or not shutil.which("mount")
        or subprocess.run(line, capture_output=True, check=False).returncode
    ):
        pytest.skip("may not mount a small file system")
    os.environ["TMPDIR"] = str(disk)
    yield
    left = list(disk.iterdir())
    subprocess.run(["umount", disk], check=True)
    assert not left


@pytest.mark.parametrize("size_bytes", [32_747, 32_768, 36_000, 2_000_000])
def test_no_space_left(
    convert: Convert, flac: Path, service: StandIn, small_disk: object, tmp_path: Path,
    size_bytes: int,
) -> None:  # fmt: skip
    """Of the first three only closing the file fails."""
    flac.with_suffix(".wav").write_bytes(
        riff(fmt(A_LAW, 1, 8_000, 8), chunk(b"data", bytes(size_bytes)))
    )
    flac.unlink()
    outcome = convert()
    assert (outcome.code, service.calls) == (75, [])
    assert "call.wav: no space left for the converted recording" in outcome.err
    os.environ["TMPDIR"] = str(tmp_path / "temp")
    assert (convert("--quiet").code, len(service.talks)) == (0, 1)


def test_a_temporary_folder_that_is_missing_stops_the_run(
    convert: Convert, flac: Path, service: StandIn, tmp_path: Path
) -> None:
    flac.with_name("second.flac").write_bytes(sound("FLAC"))
    os.environ["TMPDIR"] = str(tmp_path / "gone")
    outcome = convert("--jobs", 1)
    assert (outcome.code, service.calls) == (78, [])
    assert "no temporary file can be created for --convert; set TMPDIR" in outcome.err
    assert "1 not tried" in outcome.err


@pytest.fixture
def many(folder: Path, ledger: Path) -> tuple[object, ...]:
    """Make 64 recordings, each of its own length; return the words to upload all at a time."""
    for number in range(64):
        audio = sound("FLAC", seconds=1 + number / 64)
        (folder / f"{number}.flac").write_bytes(audio)
        (folder / f"{number}.json").write_text(f'{{"number": "{number}"}}')
    return ("--audio-path", folder, "--convert", "--ledger", ledger, "--jobs", 64)


def test_64_at_a_time_each_get_their_own_call(
    upload: Run, service: StandIn, many: tuple[object, ...]
) -> None:
    assert (upload(*many).code, len(service.talks)) == (0, 64)
    for talk in service.talks.values():
        assert talk.sha256 == sha256(wav(seconds=1 + int(talk.fields["number"]) / 64))


def test_a_stopped_run_ends_one_whose_worker_hangs(
    service: StandIn, script: Script, many: tuple[object, ...], tmp_path: Path
) -> None:
    """Or has not had its turn, as the machine is busy."""
    started = script("sleep 100")
    hangs = (
        "import subprocess, time\nsubprocess.Popen.communicate = lambda *_, **__: time.sleep(99)"
    )
    (tmp_path / "sitecustomize.py").write_text(hangs)
    words = arguments(service, *many[:-1], 2)
    with (
        start(*words, env={"PYTHONPATH": str(tmp_path)}) as run,
        when(lambda: runs(started) == 2, lambda: run.send_signal(signal.SIGTERM)),
    ):
        outcome = ended(run)
    assert outcome.code == 143 and "2 failed" in outcome.err
    wait_for(lambda: not running_below(tmp_path / "bin"), 30)


def test_a_stopped_run_ends_64_of_them(
    service: StandIn, script: Script, many: tuple[object, ...], ledger: Path, tmp_path: Path
) -> None:
    started = script("sleep 100")
    with (
        start(*arguments(service, *many)) as run,
        when(lambda: runs(started) == 64, lambda: run.send_signal(signal.SIGTERM)),
    ):
        outcome = ended(run)
    assert outcome.code == 143 and "stopped by SIGTERM; 0 uploaded" in outcome.err
    wait_for(lambda: not running_below(tmp_path / "bin"))
    assert set(ledgers.states(ledger)) == {"failed"}
