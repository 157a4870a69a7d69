"""Which audio is taken, as what it is announced, and what is refused before any network use.

Recordings come from real encoders, and are put together by hand where no encoder makes them.
"""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import encoders
import pytest
from conftest import WAYS, Outcome, Run, Way, sha256
from encoders import ffmpeg, id3v2, mp3, ogg_opus, pcm, sound, wav
from google.protobuf import json_format
from stand_in import StandIn

Audio = Callable[[], bytes]
Check = Callable[..., Outcome]

PCM, A_LAW, EXTENSIBLE = 0x0001, 0x0006, 0xFFFE
UNSET = 0xFFFFFFFF
GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
SAMPLES = bytes(range(256)) * 20


# --- WAV files put together by hand ----------------------------------------------------


def chunk(name: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """Put a RIFF chunk together, padded to an even length; `length` is what its header says."""
    stated = len(body) if length is None else length
    return name + struct.pack("<I", stated) + body + bytes(len(body) % 2)


def fmt(
    code: int = PCM,
    channels: int = 1,
    rate_hz: int = 8_000,
    bits: int = 16,
    *,
    align: int | None = None,
    extra: bytes = b"",
) -> bytes:
    align = channels * bits // 8 if align is None else align
    fixed = struct.pack("<HHIIHH", code, channels, rate_hz, rate_hz * align, align, bits)
    return chunk(b"fmt ", fixed + extra)


def extensible(subformat: int, bits: int = 16, *, tail: bytes = GUID_TAIL) -> bytes:
    extra = struct.pack("<HHIH", 22, bits, 4, subformat) + tail
    return fmt(EXTENSIBLE, bits=bits, extra=extra)


def riff(*chunks: bytes, form: bytes = b"RIFF", length: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return form + struct.pack("<I", len(body) if length is None else length) + body


def rf64(*chunks: bytes, data_bytes: int, form: bytes = b"RF64") -> bytes:
    """Put an RF64 file together: its lengths are 64 bit, and stand in `ds64`."""
    riff_bytes = 36 + sum(map(len, chunks))
    ds64 = chunk(b"ds64", struct.pack("<QQQI", riff_bytes, data_bytes, data_bytes // 2, 0))
    return riff(ds64, *chunks, form=form, length=UNSET)


def data(length: int) -> bytes:
    """Put a data chunk together that says something else than how long it is."""
    return chunk(b"data", SAMPLES, length)


DATA = chunk(b"data", SAMPLES)
GOOD = riff(fmt(), DATA)
LIST = chunk(b"LIST", bytes(9))


# --- The program and what it says ------------------------------------------------------


@pytest.fixture
def send(upload: Run, tmp_path: Path) -> Check:
    """Upload a file of that name, made of these bytes, with metadata that gives no warning."""
    metadata = tmp_path / "fields.json"
    metadata.write_text('{"language": "ru-RU"}')

    def run(name: str, audio: bytes | None, *words: object) -> Outcome:
        path = tmp_path / name
        if audio is not None:
            path.write_bytes(audio)
        return upload("--audio-path", path, "--meta-path", metadata, *words)

    return run


@pytest.fixture
def check(send: Check) -> Check:
    return lambda name, audio, *words: send(name, audio, "--dry-run", *words)


@pytest.fixture
def refuse(upload: Run, service: StandIn, tmp_path: Path) -> Callable[..., None]:
    """Upload many files in one run; a line each has to name the file and to match a pattern."""

    def run(suffix: str, expected: Mapping[str, tuple[bytes, str]]) -> None:
        folder = tmp_path / "refused"
        folder.mkdir()
        (tmp_path / "fields.json").write_text("{}")
        for name, (audio, _) in expected.items():
            (folder / f"{name}{suffix}").write_bytes(audio)
        outcome = upload(
            "--audio-path", *folder.iterdir(), "--meta-path", tmp_path / "fields.json", "--quiet"
        )
        assert (outcome.code, outcome.out, service.calls) == (65, "", [])
        assert len(outcome.err.splitlines()) == len(expected)
        for name, (_, pattern) in expected.items():
            assert re.search(f"/{name}{suffix}: .*{pattern}", outcome.err), name

    return run


def assert_refused(outcome: Outcome, service: StandIn, *facts: str) -> None:
    """One line says all that; the service was not spoken to."""
    assert (outcome.code, outcome.out, service.calls) == (65, "", [])
    assert re.fullmatch(r"upload_grpc: .*\n", outcome.err)
    for fact in facts:
        assert fact in outcome.err


def convert(outcome: Outcome, folder: Path, tools: Path) -> None:
    """Run the command that was printed, as somebody does who pastes it into a shell."""
    (tools / "ffmpeg").symlink_to(encoders.FFMPEG)
    [line] = re.findall(r"ffmpeg -i .*", outcome.err)
    environment = {"PATH": f"{tools}:{os.defpath}"}
    shell = ["sh", "-c", line]
    subprocess.run(shell, cwd=folder, env=environment, stdin=subprocess.DEVNULL, check=True)


# --- What is taken ---------------------------------------------------------------------

CONTAINERS: dict[str, tuple[Audio, str, str]] = {
    "wav": (wav, "WAV", "CONTAINER_AUDIO_TYPE_WAV"),
    "mp3": (mp3, "MP3", "CONTAINER_AUDIO_TYPE_MP3"),
    "ogg-opus": (ogg_opus, "OggOpus", "CONTAINER_AUDIO_TYPE_OGG_OPUS"),
}
PCM_WORDS = ("--audio-type", "pcm", "--sample-rate", 16_000, "--channels", 2)


def assert_sent(service: StandIn, audio: bytes, audio_format: object) -> None:
    """The recording became one talk, announced as that, byte by byte."""
    [talk] = service.talks.values()
    assert (talk.size, talk.sha256) == (len(audio), sha256(audio))
    sent = json_format.MessageToDict(talk.audio_format, preserving_proto_field_name=True)
    assert sent == audio_format


@WAYS
@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_recording_is_announced_as_what_it_is(
    send: Check, service: StandIn, kind: str, way: Way
) -> None:
    make, _, container = CONTAINERS[kind]
    outcome = send("call", make(), *way)
    assert (outcome.code, outcome.err) == (0, "")
    assert_sent(service, make(), {"container_audio": {"container_audio_type": container}})
    assert outcome.out == f"Dialog ID: {next(iter(service.talks))}\n"


@WAYS
def test_raw_pcm_is_announced_as_the_command_line_describes_it(
    send: Check, service: StandIn, way: Way
) -> None:
    audio = pcm(channels=2, rate_hz=16_000)
    outcome = send("call.pcm", audio, *PCM_WORDS, *way)
    assert (outcome.code, outcome.err) == (0, "")
    raw = {"sample_rate_hertz": "16000", "audio_channel_count": "2"}  # 64 bits: text in JSON.
    encoding = {"audio_encoding": "AUDIO_ENCODING_LINEAR16_PCM"}
    assert_sent(service, audio, {"raw_audio": encoding | raw})
    described = send("call.pcm", audio, *PCM_WORDS, "--dry-run").out
    assert all(fact in described for fact in ("2 channels", "1.0 s"))


# MPEG-1, MPEG-2 and MPEG-2.5 have three sample rates each.
MP3_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
TAKEN: dict[str, tuple[Audio, str]] = {
    "plain": (lambda: GOOD, "WAV.* 8,000 Hz, 1 channel, 0.3 s.* 5,164 bytes"),
    "stereo": (lambda: wav(48_000, 2), "WAV.* 48,000 Hz, 2 channels, 1.0 s"),
    "six channels, extensible": (lambda: sound("WAVEX", "PCM_16", channels=6), "6 channels, 1.0 s"),
    "by FFmpeg": (lambda: ffmpeg(".wav"), "8,000 Hz, 1 channel, 1.0 s"),
    "RF64": (lambda: sound("RF64", "PCM_16"), "8,000 Hz, 1 channel, 1.0 s"),
    "RF64 by FFmpeg": (lambda: ffmpeg(".wav", "-rf64", "always"), "1 channel, 1.0 s"),
    "RF64, 32 bit length": (lambda: rf64(fmt(), DATA, data_bytes=5120), "1 channel, 0.3 s"),
    "WAVEFORMATEX": (lambda: riff(fmt(extra=bytes(2)), DATA), "1 channel, 0.3 s"),
    "one sample": (lambda: riff(fmt(), chunk(b"data", b"\1\2")), "WAV"),
    "chunks everywhere": (lambda: riff(LIST, fmt(), LIST, DATA, LIST), "1 channel, 0.3 s"),
    "data before fmt": (lambda: riff(DATA, fmt(), length=0), "1 channel, 0.3 s"),
    **{f"MP3 of {rate_hz} Hz": (partial(mp3, rate_hz), "MP3.* 1 channel") for rate_hz in MP3_HZ},
    "stereo MP3": (lambda: mp3(44_100, 2), "MP3.* 2 channels"),
    "MP3 by FFmpeg": (lambda: ffmpeg(".mp3", audio=wav(44_100, 2)), "MP3.* 2 channels"),
    "VBR": (lambda: ffmpeg(".mp3", "-q:a", 2), "MP3.* 1 channel"),
    "320 kbit/s": (lambda: ffmpeg(".mp3", "-b:a", "320k", "-ar", 48_000), "MP3.* 1 channel"),
    "no first frame that counts": (lambda: ffmpeg(".mp3", "-write_xing", 0), "MP3"),
    "ID3v1": (lambda: ffmpeg(".mp3", "-id3v2_version", 0, "-write_id3v1", 1), "MP3"),
    "ID3v2 of 1 MB": (lambda: id3v2(1_000_000) + mp3(), "MP3"),
    "ID3v2 with a footer": (lambda: id3v2(70_000, footer=True) + mp3(), "MP3"),
    "padding after ID3v2": (lambda: id3v2(0) + bytes(3000) + mp3(), "MP3"),
    "zeros after MP3": (lambda: mp3() + bytes(1000), "MP3"),
    "OggOpus": (ogg_opus, "OggOpus.* 1 channel"),
    "stereo OggOpus": (lambda: ogg_opus(channels=2), "OggOpus.* 2 channels"),
    "OggOpus by FFmpeg": (lambda: ffmpeg(".ogg", "-c:a", "libopus"), "OggOpus.* 1 channel"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_is_described(check: Check, service: StandIn, name: str) -> None:
    make, pattern = TAKEN[name]
    outcome = check("call", make())
    assert (outcome.code, outcome.err, service.calls) == (0, "", [])
    assert re.fullmatch(rf"\S+/call: .*{pattern}.*\n", outcome.out)


def test_an_end_that_is_missing_or_too_much_keeps_nothing_back(
    send: Check, service: StandIn
) -> None:
    """Compressed audio can be played as far as it goes; a recorder may add bytes of its own."""
    for name, audio in (("call.mp3", mp3(seconds=3)), ("call.opus", ogg_opus(seconds=3))):
        assert send(name, audio[:-100]).code == 0
    assert send("call.wav", GOOD + bytes(100)).code == 0
    assert len(service.talks) == 3


def test_mp3_behind_something_else_is_taken_where_mp3_is_promised(check: Check) -> None:
    frames = ffmpeg(".mp3", "-id3v2_version", 0)
    for front in (bytes(3_000), b"APETAGEX" + bytes(500), b"\r\n", frames[100:400]):
        assert check("call.mp3", front + frames).code == 0
        assert check("call", front + frames, "--audio-type", "mp3").code == 0
        assert check("call", front + frames).code == 65


# --- The content tells the format, not the name ----------------------------------------


def test_the_content_counts_where_the_name_says_something_else(
    send: Check, service: StandIn
) -> None:
    named = {"a.wav": "mp3", "b.wav": "ogg-opus", "c.MP3": "wav", "d.ogg": "mp3", "e.opus": "wav"}
    for name, kind in named.items():
        make, _, container = CONTAINERS[kind]
        service.talks.clear()
        outcome = send(name, make())
        assert (outcome.code, outcome.err) == (0, "")
        assert_sent(service, make(), {"container_audio": {"container_audio_type": container}})


@pytest.mark.parametrize("kind", CONTAINERS)
def test_an_audio_type_must_be_the_contents(check: Check, service: StandIn, kind: str) -> None:
    make, shown, _ = CONTAINERS[kind]
    for given in (*CONTAINERS, "auto"):
        outcome = check("call", make(), "--audio-type", given)
        if given in (kind, "auto"):
            assert outcome.code == 0
        else:
            assert_refused(outcome, service, shown, f"--audio-type {given}")


# --- What else there is, is refused with a line that converts it ------------------------

# By what it is called: suffix, and how to make it. What is no WAV is not told apart.
REFUSED: dict[str, tuple[str, Audio]] = {
    "PCM 8 bit": (".wav", lambda: sound("WAV", "PCM_U8")),
    "PCM 24 bit, 8,000 Hz": (".wav", lambda: sound("WAV", "PCM_24", channels=6)),
    "PCM 32 bit": (".wav", lambda: sound("WAV", "PCM_32")),
    "floating point 32 bit": (".wav", lambda: sound("WAV", "FLOAT")),
    "A-law": (".wav", lambda: sound("WAV", "ALAW")),
    "mu-law": (".wav", lambda: sound("WAV", "ULAW")),
    "WAV format 0x0002": (".wav", lambda: sound("WAV", "MS_ADPCM")),
    "WAV format 0x0011": (".wav", lambda: sound("WAV", "IMA_ADPCM")),
    "GSM 6.10": (".wav", lambda: sound("WAV", "GSM610")),
    "WAV format 0x0055": (".wav", lambda: ffmpeg(".wav", "-c:a", "libmp3lame")),
    "big-endian WAV": (".wav", lambda: sound("WAV", "PCM_16", endian="BIG")),
    "FLAC": (".flac", lambda: sound("FLAC")),
    "Ogg Vorbis": (".ogg", lambda: sound("OGG", "VORBIS")),
    "M4A": (".m4a", lambda: ffmpeg(".m4a")),
    "AAC": (".aac", lambda: ffmpeg(".aac")),
    "AMR": (".amr", lambda: ffmpeg(".amr")),
    "WMA": (".wma", lambda: ffmpeg(".wma")),
    "layer II": (".mp2", lambda: ffmpeg(".mp2")),
}


@pytest.mark.parametrize("called", REFUSED)
def test_another_format_is_refused_and_the_line_converts_it(
    send: Check, service: StandIn, tmp_path: Path, called: str
) -> None:
    folder = tmp_path / "o'clock: calls"
    folder.mkdir()
    suffix, make = REFUSED[called]
    outcome = send(f"{folder.name}/call{suffix}", make())
    fact = called if suffix == ".wav" and "big" not in called else "neither WAV nor"
    assert_refused(outcome, service, f"call{suffix}: ", fact, "16 bit")

    convert(outcome, folder, tmp_path)
    outcome = send(f"{folder.name}/call-16bit.wav", None)
    assert (outcome.code, outcome.err) == (0, "")
    [talk] = service.talks.values()
    assert 0.9 < encoders.duration_s(folder / "call-16bit.wav") < 1.2
    assert talk.size == (folder / "call-16bit.wav").stat().st_size


NAMES = ["-100%d $HOME `id`.flac", "2026-03-17T10:30.flac", "-a:[b]*.flac", 'a "звонок".flac']


@pytest.mark.parametrize("name", NAMES)
def test_the_line_is_good_for_any_name_and_takes_the_sidecar_along(
    upload: Run, service: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """FFmpeg takes what is before a colon for a protocol, and a dash for an option."""
    folder = tmp_path / "calls"
    folder.mkdir()
    monkeypatch.chdir(folder)
    path = Path(name)
    path.write_bytes(sound("FLAC"))
    path.with_suffix(".json").write_text('{"client_id": "77"}')
    outcome = upload(f"--audio-path={name}")
    assert_refused(outcome, service, ".flac: ")
    convert(outcome, folder, tmp_path)
    assert upload(f"--audio-path={path.stem}-16bit.wav").code == 0
    [talk] = service.talks.values()
    assert talk.fields == {"client_id": "77"}


def test_what_is_converted_already_is_not_converted_again(
    send: Check, service: StandIn, tmp_path: Path
) -> None:
    """Otherwise it is refused in every run, with a line that makes yet another copy."""
    (tmp_path / "call-16bit.wav").write_bytes(wav())
    for audio in (sound("WAV", "ALAW"), sound("FLAC"), GOOD[:-2]):
        outcome = send("call.wav", audio)
        assert_refused(outcome, service, "already converted", "move call.wav")
        assert "ffmpeg" not in outcome.err


def test_the_format_is_read_from_the_headers(refuse: Callable[..., None]) -> None:
    heads = {
        "12": (fmt(bits=12, align=2), "PCM 12 bit"),
        "20": (fmt(bits=20, align=3), "PCM 20 bit"),
        "24 in 32": (fmt(bits=24, align=4), "PCM 24 bit"),
        "other": (fmt(0x1234), "0x1234"),
        "extensible A-law": (extensible(A_LAW, 8), "A-law 8 bit"),
        "another GUID": (extensible(PCM, tail=bytes(14)), "0xfffe"),
        "cut GUID": (fmt(EXTENSIBLE, extra=bytes(2)), "0xfffe"),
        # PCM 24932 bit, the beginning of "data", was once said of it.
        "no sample size": (chunk(b"fmt ", fmt()[8:22]), "PCM 0 bit, 8,000 Hz"),
        "low rate": (fmt(rate_hz=7_999), "PCM 16 bit, 7,999 Hz"),
        "high rate": (fmt(rate_hz=48_001), "PCM 16 bit, 48,001 Hz"),
    }
    audio = {name: (riff(head, DATA), fact) for name, (head, fact) in heads.items()}
    refuse(".wav", audio)


# --- WAV headers that announce what is not there ----------------------------------------

UNFINISHED = {
    "0": riff(fmt(), data(0)),
    "0, RIFF 0": riff(fmt(), data(0), length=0),
    "0, silence first": riff(fmt(), chunk(b"data", bytes(400) + SAMPLES, 0)),
    "0xFFFFFFFF": riff(fmt(), data(UNSET), length=UNSET),
    "FFmpeg": riff(fmt(), data(0xFFFF_FFDB)),
    "SoX": riff(fmt(), data(0x7FFF_F000)),
    "arecord": riff(fmt(), data(0x8000_0000)),
    "after LIST": riff(fmt(), LIST, data(UNSET)),
}


@pytest.mark.parametrize("written_by", UNFINISHED)
def test_a_header_without_the_length_is_explained_and_the_line_loses_nothing(
    send: Check, service: StandIn, tmp_path: Path, written_by: str
) -> None:
    outcome = send("call.wav", UNFINISHED[written_by])
    there = "5,520" if "silence" in written_by else "5,120"
    assert_refused(outcome, service, "call.wav: truncated or still being recorded", there)
    convert(outcome, tmp_path, tmp_path)
    assert (tmp_path / "call-16bit.wav").read_bytes().endswith(SAMPLES)
    assert send("call-16bit.wav", None).code == 0


def test_a_recording_shorter_than_its_header_says_is_refused(refuse: Callable[..., None]) -> None:
    sizes = (1, 3, 4, 11, 12, 16, 19, 20, 30, 35, 36, 39, 40, 43)
    refuse(
        ".wav",
        {
            "one byte short": (GOOD[:-1], " 5,120 .* 5,119 .*ffmpeg -i "),
            "cut": (GOOD[:3000], " 5,120 .* 2,956 "),
            "no samples": (GOOD[:44], " 5,120 .* 0 "),
            "RF64": (rf64(fmt(), data(UNSET), data_bytes=9 * 10**9), " 9,000,000,000 .* 5,120 "),
            "ds64 of 0": (rf64(fmt(), data(UNSET), data_bytes=0), "header"),
            "no ds64": (riff(fmt(), data(UNSET), form=b"RF64"), "header"),
            **{f"header cut at {size}": (GOOD[:size], "") for size in sizes},
        },
    )


# --- What is no recording ---------------------------------------------------------------


def test_what_is_no_recording_is_refused(refuse: Callable[..., None]) -> None:
    opus = ogg_opus()
    unknown = "neither WAV nor MP3 nor OggOpus"
    refuse(
        ".wav",
        {
            "nothing": (b"", "empty"),
            "text": (b"not audio at all\n" * 99, unknown),
            "zeros": (bytes(100_000), unknown),
            "samples": (pcm()[:1600], unknown),
            "AVI": (b"RIFF\x10\0\0\0AVI LIST" + bytes(99), unknown),
            "no samples": (riff(fmt(), chunk(b"data")), "no audio"),
            "no samples but a chunk": (riff(fmt(), chunk(b"data"), LIST), "no audio"),
            "half a sample": (riff(fmt(channels=2), chunk(b"data", bytes(2))), "no audio"),
            "no data chunk": (riff(fmt()), "data"),
            "no fmt chunk": (riff(DATA), "format"),
            "no channels": (riff(fmt(channels=0, align=2), DATA), "WAV"),
            "0 Hz": (riff(fmt(rate_hz=0), DATA), "WAV"),
            "zeros in WAV": (b"RIFF\0\0\0\0WAVE" + bytes(9999), "WAV"),
            "ones in WAV": (b"RIFF\0\0\0\0WAVE" + b"\xff" * 9999, "WAV"),
            "OggOpus, cut": (opus[:30], unknown),
            "OggOpus without channels": (opus[:37] + b"\0" + opus[38:], "OggOpus"),
            "Speex": (encoders.SPEEX_PAGE, unknown),
        },
    )


def test_what_is_no_mp3_is_refused(refuse: Callable[..., None]) -> None:
    """Three bytes that could be a frame's header are soon found, in anything."""
    noise = random.Random(12).randbytes(70_000)
    files = {
        "noise": noise,
        "ones": b"\xff" * 100_000,
        "layer II": ffmpeg(".mp2"),
        "FLAC": sound("FLAC", seconds=5),
        "M4A": ffmpeg(".m4a"),
        "ID3v2": id3v2(100),
        "ID3v2, cut": b"ID3\4\0\0\x7f\x7f\x7f\x7f",
        "ID3v2, noise": id3v2(0) + noise,
        "ID3v2, FLAC": id3v2(0) + sound("FLAC"),
    }
    refuse(".mp3", {name: (audio, "MP3") for name, audio in files.items()})


# --- Large files, and four hours --------------------------------------------------------

LIMIT_BYTES = 4 * 60 * 60 * 16_000 * 2 * 2  # As PCM_WORDS.
HUGE_BYTES = 5_000_000_000


def sparse(path: Path, head: bytes, data_bytes: int) -> int:
    """Write a file whose samples take no room on the disk; return its size."""
    path.write_bytes(head)
    os.truncate(path, len(head) + data_bytes)
    return path.stat().st_size


def head_of(data_bytes: int) -> bytes:
    return riff(fmt(PCM, 2, 16_000), chunk(b"data", length=data_bytes))


def test_only_the_header_of_a_large_file_is_read(check: Check, tmp_path: Path) -> None:
    started_s = time.monotonic()
    size = sparse(tmp_path / "call.wav", head_of(LIMIT_BYTES), LIMIT_BYTES)
    assert f"14,400.0 s, {size:,} bytes" in check("call.wav", None).out
    for form in (b"RF64", b"BW64"):
        head = rf64(fmt(PCM, 8, 48_000), data(UNSET)[:8], data_bytes=HUGE_BYTES, form=form)
        size = sparse(tmp_path / "call.wav", head, HUGE_BYTES)
        assert f"6,510.4 s, {size:,} bytes" in check("call.wav", None).out
    assert time.monotonic() - started_s < 1


def test_over_four_hours_is_refused(check: Check, service: StandIn, tmp_path: Path) -> None:
    sparse(tmp_path / "call.wav", head_of(LIMIT_BYTES + 4), LIMIT_BYTES + 4)
    sparse(tmp_path / "call.pcm", b"", LIMIT_BYTES + 4)
    for name, words in {"call.wav": (), "call.pcm": PCM_WORDS}.items():
        outcome = check(name, None, *words)
        assert_refused(outcome, service, name, "4.00 hours", "at most 4 hours")
        assert "ffmpeg" not in outcome.err


def test_large_nonsense_is_refused_at_once(check: Check, service: StandIn, tmp_path: Path) -> None:
    sparse(tmp_path / "zeros.wav", b"RIFF\0\0\0\0WAVE", 2_200_000_000)
    (tmp_path / "tags.mp3").write_bytes(b"ID3\4\0\0\0\0\0\0" * 2_000_000)
    started_s = time.monotonic()
    for name in ("zeros.wav", "tags.mp3"):
        assert_refused(check(name, None), service, name)
    assert time.monotonic() - started_s < 1


# --- Raw PCM ----------------------------------------------------------------------------


WRONG_WORDS = (
    "--audio-type pcm --sample-rate 8000",
    "--audio-type pcm --channels 1",
    "--audio-type pcm --sample-rate 7999 --channels 1",
    "--audio-type pcm --sample-rate 48001 --channels 1",
    "--audio-type pcm --sample-rate 8k --channels 1",
    "--audio-type pcm --sample-rate 8000 --channels 0",
    "--audio-type wav --sample-rate 8000",
    "--channels 1",
    "--audio-type flac",
)


@pytest.mark.parametrize("words", WRONG_WORDS)
def test_raw_pcm_and_nothing_else_needs_rate_and_channels(
    check: Check, service: StandIn, words: str
) -> None:
    outcome = check("call.pcm", pcm(), *words.split())
    assert (outcome.code, outcome.out, service.calls) == (2, "", [])
    assert re.search("--sample-rate|--channels|--audio-type", outcome.err.splitlines()[-1])


def test_raw_pcm_is_whole_frames_and_no_container(check: Check, service: StandIn) -> None:
    outcome = check("call.pcm", bytes(16_002), *PCM_WORDS)
    assert_refused(outcome, service, "call.pcm", "16,002 bytes", "4-byte")
    assert_refused(check("call.pcm", b"", *PCM_WORDS), service, "call.pcm", "empty")
    for audio in (wav(), ogg_opus()):
        outcome = check("call.pcm", audio + bytes(-len(audio) % 4), *PCM_WORDS)
        assert_refused(outcome, service, "call.pcm", "--audio-type pcm")


def test_the_name_of_raw_pcm_tells_how_to_send_it(check: Check, service: StandIn) -> None:
    for name in ("call.pcm", "call.RAW"):
        assert_refused(check(name, pcm()), service, name, "--audio-type pcm")


# --- Folders ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "calls"
    folder.mkdir()
    taken = {"0.wav": wav(), "1.MP3": mp3(), "2.ogg": ogg_opus(), "3.opus": ogg_opus(channels=2)}
    others = {"4.pcm": pcm(), "5.RAW": pcm(2), "6.flac": sound("FLAC"), "7.mp3.part": mp3(16_000)}
    for name, content in {**taken, **others, "8": mp3(48_000), "9.json": b"{}"}.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("words", [(), PCM_WORDS], ids=["auto", "pcm"])
def test_a_folder_is_searched_for_what_can_be_uploaded(
    upload: Run, service: StandIn, folder: Path, words: tuple[object, ...]
) -> None:
    outcome = upload("--audio-path", folder, "--quiet", *words)
    assert outcome.code == 0
    names = [line.partition(": Dialog ID: ")[0] for line in outcome.out.splitlines()]
    found = ["4.pcm", "5.RAW"] if words else ["0.wav", "1.MP3", "2.ogg", "3.opus"]
    assert sorted(names) == [str(folder / name) for name in found]
    assert len(service.talks) == len(found)


def test_a_file_that_is_named_is_taken_whatever_its_suffix(
    upload: Run, service: StandIn, folder: Path
) -> None:
    """And one that is refused leaves the others alone."""
    names = ("7.mp3.part", "6.flac", "8")
    outcome = upload("--audio-path", *(folder / name for name in names), "--quiet")
    assert (outcome.code, len(service.talks)) == (65, 2)
    assert re.search(r"6\.flac: ", outcome.err)
