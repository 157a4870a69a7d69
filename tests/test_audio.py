"""Which recordings are taken, as what they are announced, and what is said of the others.

kinds.py has the table. Conversion in trouble is in test_convert.py.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import encoders
import kinds
import numpy
import pytest
import soundfile  # type: ignore[import-untyped]
from conftest import WAYS, Outcome, Run, Way, assert_refused, sha256
from encoders import mp3, ogg_opus, pcm, sound, wav
from google.protobuf import json_format
from kinds import AS_IS, GOOD, LINES, PCM, TO_CONVERT, Kind, chunk, fmt, make_kinds, riff
from stand_in import StandIn, Talk

Check = Callable[..., Outcome]
pytestmark = pytest.mark.usefixtures("temp")


@pytest.fixture
def send(upload: Run, tmp_path: Path, fields: Path) -> Check:
    """Upload a file of that name, made of these bytes unless it is there."""

    def run(name: str, audio: bytes | None, *words: object) -> Outcome:
        if audio is not None:
            (tmp_path / name).write_bytes(audio)
        return upload("--audio-path", tmp_path / name, "--meta-path", fields, *words)

    return run


@pytest.fixture
def check(send: Check) -> Check:
    return lambda name, audio, *words: send(name, audio, "--dry-run", *words)


# --- The table of kinds ----------------------------------------------------------------

# Where FFmpeg versions decode to another length: padding of AAC at the end, and of WMA.
LENGTH_VARIES_S = 0.16


@pytest.fixture
def files(folder: Path) -> dict[str, Path]:
    """Write a file of each kind; what they are called tells nothing but the suffix."""
    (folder / "neighbour.wav").write_bytes(wav(seconds=3))
    paths = {}
    for number, (name, kind) in enumerate(make_kinds().items()):
        paths[name] = folder / f"{number}{kind.suffix}"
        paths[name].write_bytes(kind.content)
    return paths


def states(files: dict[str, Path]) -> dict[str, object]:
    """Return what must not change: what is there, each file's content, times and inode."""
    folder = next(iter(files.values())).parent
    states = ((path, path.stat(), sha256(path)) for path in folder.iterdir())
    return {
        path.name: (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, digest)
        for path, status, digest in states
    }


def likeness(content: bytes) -> float:
    """Compare with the sample call, however it was shifted: 1 is equal, 0 is noise."""
    audio, rate_hz = soundfile.read(io.BytesIO(content), dtype="int16", always_2d=True)
    places = numpy.arange(int(len(audio) * 8_000 / rate_hz)) * rate_hz / 8_000
    result = audio[places.astype(int), 0].astype(float)
    call = encoders.samples()[:, 0].astype(float)
    size = 1 << 15
    product = numpy.fft.rfft(result, size) * numpy.conj(numpy.fft.rfft(call, size))
    highest = numpy.abs(numpy.fft.irfft(product, size)).max()
    return float(highest / (numpy.linalg.norm(result) * numpy.linalg.norm(call) + 1))


def converted_well(name: str, talk: Talk) -> bool:
    """Return whether what the service received is the recording, as 16 bit WAV."""
    kind = make_kinds()[name]
    assert talk.audio
    content = talk.audio.read_bytes()
    info = soundfile.info(io.BytesIO(content))
    sound_is = f"{info.samplerate:,} Hz, {info.channels} channel{'s' * (info.channels != 1)}"
    seconds = info.frames / info.samplerate
    return (
        (info.format[:3], info.subtype) == ("WAV", "PCM_16")
        and kind.converted in sound_is
        and kind.seconds - 0.06 < seconds < kind.seconds + LENGTH_VARIES_S
        and (name in kinds.NO_CALL or likeness(content) > 0.8)
    )


def wrong_line(kind: Kind, expected: str, result: dict[str, Any], err: str) -> bool:
    """Return whether anything but the line for this identifier was said, on stderr too."""
    error = str(result["error"])
    said = re.match(LINES[expected], error) and re.search(kind.says, error)
    return not said or f"upload_grpc: {result['path']}: {error}\n" not in err


@pytest.mark.parametrize("option", [(), ("--convert",)], ids=["plain", "convert"])
def test_what_becomes_of_each_kind(
    upload: Run,
    service: StandIn,
    files: dict[str, Path],
    fields: Path,
    option: tuple[str, ...],
) -> None:
    """Uploaded as it is, converted, or refused with the line that says why; none is touched."""
    before = states(files)
    words = ("--audio-path", *files.values(), "--meta-path", fields, "--format", "json", *option)
    dry_run = upload(*words, "--dry-run")
    assert service.calls == []
    planned = {line["path"]: line for line in map(json.loads, dry_run.out.splitlines())}
    outcome = upload(*words)
    assert outcome.code == 65
    results = {line["path"]: line for line in map(json.loads, outcome.out.splitlines())}
    assert len(results) == len(planned) == len(make_kinds()) > 160
    wrong = []
    for name, kind in make_kinds().items():
        result, plan = results[str(files[name])], planned[str(files[name])]
        talk = service.talks.get(result["talk_id"])
        expected = kind.converted or kind.plain if option else kind.plain
        good: object
        if kind.plain == AS_IS:
            good = talk and talk.sha256 == sha256(files[name])
            good = good and re.match(f".*{kind.says}", plan["description"])
        elif expected in LINES:
            good = not talk and not wrong_line(kind, expected, result, outcome.err)
        else:
            good = talk and converted_well(name, talk)
        if option and kind.plain == TO_CONVERT:
            good = good and re.match(f"to be converted: .*{kind.says}", plan["description"])
        if not good:
            wrong.append((name, result, plan["description"]))
    assert not wrong
    assert states(files) == before


def test_what_loses_nothing_is_the_same_file_whatever_the_ffmpeg(
    upload: Run, service: StandIn, folder: Path, fields: Path
) -> None:
    for suffix in ("AIFF", "RF64", "W64"):
        (folder / f"{suffix}.aiff").write_bytes(sound(suffix, "PCM_16", seconds=5))
    (folder / "1.flac").write_bytes(sound("FLAC", seconds=5))
    alac = encoders.ffmpeg(".m4a", "-c:a", "alac", audio=wav(seconds=5))
    (folder / "1.m4a").write_bytes(alac)
    assert upload("--audio-path", *folder.iterdir(), "--meta-path", fields, "--convert").code == 0
    assert {talk.sha256 for talk in service.talks.values()} == {sha256(wav(seconds=5))}


# --- What is announced -----------------------------------------------------------------

CONTAINERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "wav": (wav, "WAV"),
    "mp3": (mp3, "MP3"),
    "ogg-opus": (ogg_opus, "OggOpus"),
}
PCM_WORDS = ("--audio-type", "pcm", "--sample-rate", 16_000, "--channels", 2)
# What is uploaded, the words, and what arrives if not that.
ANNOUNCED: dict[str, tuple[Callable[[], bytes], tuple[object, ...], Callable[[], bytes]]] = {
    "WAV": (wav, (), wav),
    "MP3": (mp3, (), mp3),
    "OGG_OPUS": (ogg_opus, (), ogg_opus),
    "converted": (partial(sound, "FLAC"), ("--convert",), wav),
    "raw PCM": (partial(pcm, 2, 16_000), PCM_WORDS, partial(pcm, 2, 16_000)),
}


@WAYS
@pytest.mark.parametrize("kind", ANNOUNCED)
def test_a_recording_is_announced_as_what_it_is(
    send: Check, service: StandIn, kind: str, way: Way
) -> None:
    make, words, arriving = ANNOUNCED[kind]
    outcome = send("call.mp3", make(), *words, *way)
    [(talk_id, talk)] = service.talks.items()
    assert outcome == Outcome(0, f"Dialog ID: {talk_id}\n", "")
    method = "Upload" if way else "UploadAsStream"
    assert (talk.method, talk.connection_id) == (method, "connection-1")
    assert (talk.size, talk.sha256) == (len(arriving()), sha256(arriving()))
    sent = json_format.MessageToDict(talk.audio_format, preserving_proto_field_name=True)
    if kind == "raw PCM":
        raw = {"sample_rate_hertz": "16000", "audio_channel_count": "2"}  # 64 bits: text in JSON.
        assert sent == {"raw_audio": {"audio_encoding": "AUDIO_ENCODING_LINEAR16_PCM"} | raw}
        assert "2 channels, 1.0 s" in send("call.mp3", None, *words, "--dry-run").out
    else:
        name = f"CONTAINER_AUDIO_TYPE_{'WAV' if kind == 'converted' else kind}"
        assert sent == {"container_audio": {"container_audio_type": name}}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_an_audio_type_must_be_the_contents(check: Check, service: StandIn, kind: str) -> None:
    make, shown = CONTAINERS[kind]
    for given in (*CONTAINERS, "auto"):
        outcome = check("call", make(), "--audio-type", given)
        if given in (kind, "auto"):
            assert outcome.code == 0
        else:
            assert_refused(outcome, service, 65, shown, f"leave out --audio-type {given}")


def test_mp3_behind_something_else_is_taken_where_mp3_is_promised(check: Check) -> None:
    frames = encoders.ffmpeg(".mp3", "-id3v2_version", 0)
    for front in (bytes(3_000), b"APETAGEX" + bytes(500), b"\r\n", frames[100:400]):
        assert check("call.mp3", front + frames).code == 0
        assert check("call", front + frames, "--audio-type", "mp3").code == 0
        assert check("call", front + frames).code == 65


# --- Raw PCM ---------------------------------------------------------------------------


def test_raw_pcm_is_whole_frames_and_no_container(check: Check, service: StandIn) -> None:
    outcome = check("call.pcm", bytes(16_002), *PCM_WORDS)
    assert_refused(outcome, service, 65, "call.pcm", "16,002 bytes", "4-byte")
    assert_refused(check("call.pcm", b"", *PCM_WORDS), service, 65, "call.pcm", "empty")
    for audio in (wav(), ogg_opus()):
        outcome = check("call.pcm", audio + bytes(-len(audio) % 4), *PCM_WORDS)
        assert_refused(outcome, service, 65, "call.pcm", "--audio-type pcm")
    # Samples that look like MP3.
    assert check("call.pcm", b"\xff\xfb\x90\0" + bytes(400), *PCM_WORDS).code == 0


# --- Large files, and four hours -------------------------------------------------------

LIMIT_BYTES = 4 * 60 * 60 * 16_000 * 2 * 2  # As PCM_WORDS.


def sparse(path: Path, head: bytes, data_bytes: int) -> int:
    """Write a file whose samples take no room on the disk; return its size."""
    path.write_bytes(head)
    os.truncate(path, len(head) + data_bytes)
    return path.stat().st_size


def head_of(data_bytes: int) -> bytes:
    return riff(fmt(PCM, 2, 16_000), chunk(b"data", length=data_bytes))


def test_over_four_hours_is_refused(check: Check, service: StandIn, tmp_path: Path) -> None:
    size = sparse(tmp_path / "call.wav", head_of(LIMIT_BYTES), LIMIT_BYTES)
    assert f"14,400.0 s, {size:,} bytes" in check("call.wav", None).out
    sparse(tmp_path / "call.wav", head_of(LIMIT_BYTES + 4), LIMIT_BYTES + 4)
    sparse(tmp_path / "call.pcm", b"", LIMIT_BYTES + 4)
    for name, words in {"call.wav": (), "call.pcm": PCM_WORDS}.items():
        outcome = check(name, None, *words)
        assert_refused(outcome, service, 65, name, "4.00 hours", "at most 4 hours")


def test_large_nonsense_is_refused_at_once(upload: Run, service: StandIn, tmp_path: Path) -> None:
    sync = b"\xff\xfb\x90\0"
    nonsense = {
        "zeros.wav": b"RIFF\0\0\0\0WAVE",
        "tags.mp3": b"ID3\4\0\0\0\0\0\0" * 2_000_000,
        "none.mp3": b"",
        "sync.mp3": b"\1" + sync * 500_000,
        "chain.wav": GOOD + chunk(b"LIST") * 2_000_000,
        "pages.ogg": kinds.opus_page(kinds.OPUS_HEAD) + kinds.opus_page(b"") * 500_000,
        "noise": random.Random(5).randbytes(4_000_000),
    }
    for name, head in nonsense.items():
        sparse(tmp_path / name, head, 2_200_000_000)
    started_s = time.process_time()
    outcome = upload("--audio-path", *(tmp_path / name for name in nonsense), "--quiet")
    assert time.process_time() - started_s < 10
    assert (outcome.code, service.calls) == (65, [])
    assert len(outcome.err.splitlines()) == len(nonsense)


# --- Folders ---------------------------------------------------------------------------


def test_a_folder_is_searched_for_all_that_looks_like_a_recording(
    upload: Run, service: StandIn, folder: Path, fields: Path
) -> None:
    """What is found is uploaded or named; what the service takes is not held up by the rest."""
    taken = {"wav": wav(), "WAVE": wav(16_000), "MP3": mp3(), "ogg": ogg_opus()}
    taken |= {"oga": ogg_opus(2), "opus": ogg_opus(seconds=2)}
    others = ("flac", "m4a", "mp4", "aac", "amr", "gsm", "wma", "webm", "3gp", "aif", "aiff", "au")
    for suffix, content in taken.items():
        (folder / f"{suffix}.{suffix}").write_bytes(content)
    for suffix in (*others, *(suffix.upper() for suffix in others)):
        (folder / f"a {suffix}.{suffix}").write_bytes(sound("FLAC"))
    for name in ("call.json", "call.txt", "call.wav.part", "raw.pcm", "wav"):
        (folder / name).write_bytes(mp3())
    words = ("--audio-path", folder, "--meta-path", fields)
    outcome = upload(*words)
    assert (outcome.code, len(service.talks)) == (65, len(taken))
    line = r".*/a (\w+)\.\1: the service does not take FLAC, .*; use --convert.*\n"
    assert re.fullmatch(f"({line.replace('1', '2')}){{24}}.*\n", outcome.err)
    service.talks.clear()
    outcome = upload(*words, "--convert", "--quiet")
    assert (outcome.code, outcome.err) == (0, "")
    assert len(service.talks) == len(taken) + len(others) * 2


@pytest.mark.parametrize("words", [(), PCM_WORDS], ids=["auto", "pcm"])
def test_raw_pcm_is_searched_for_where_it_is_promised(
    upload: Run, service: StandIn, folder: Path, words: tuple[object, ...]
) -> None:
    for name, content in {"1.wav": wav(), "2.pcm": pcm(), "3.RAW": pcm(2)}.items():
        (folder / name).write_bytes(content)
    outcome = upload("--audio-path", folder, "--quiet", *words)
    assert (outcome.code, len(service.talks)) == (0, 2 if words else 1)
