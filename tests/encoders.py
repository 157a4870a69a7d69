"""Recordings made by real encoders, from the sample call; each is made once and kept as bytes.

The encoders come with Python packages: libsndfile with soundfile, FFmpeg with imageio-ffmpeg.

sample.wav is a short call in Russian, the operator on the left and the client on the right. It
was made with eSpeak NG (voices ru+Annie and ru+Andy, 205 and 195 words a minute) and SoX: each
turn of the dialog at 8,000 Hz, 16 bit and -4 dB, silence at its ends removed, then one channel
muted and the turns joined.
"""

from __future__ import annotations

import functools
import io
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy
import soundfile  # type: ignore[import-untyped]

SAMPLE = Path(__file__).with_name("sample.wav")
FFMPEG = str(imageio_ffmpeg.get_ffmpeg_exe())
# What converts; another version may be tried.
DECODER = os.environ.get("TEST_FFMPEG", FFMPEG)

# The first page of a Speex file, which no package writes: an Ogg page header with its checksum,
# and the 80 bytes of header in the Speex manual for 8,000 Hz, one channel, 20 ms a frame.
SPEEX_PAGE = bytes.fromhex(
    "4f676753000200000000000000000100000000000000edfe030c01505370656578202020312e322e"
    "300000000000000000000000000000000100000050000000401f0000000000000400000001000000"
    "ffffffffa00000000000000001000000000000000000000000000000"
)


@functools.cache
def samples(rate_hz: int = 8_000, channels: int = 1, seconds: float = 1.0) -> Any:
    """Take the beginning of the sample call, again and again if it is shorter.

    Returns an array of 16 bit samples, one column a channel.
    """
    call, call_rate_hz = soundfile.read(SAMPLE, dtype="int16", always_2d=True)
    rows = numpy.arange(int(seconds * rate_hz)) * call_rate_hz // rate_hz % len(call)
    columns = numpy.arange(channels) % call.shape[1]
    return call[rows][:, columns]


@functools.cache
def sound(
    container: str,
    encoding: str | None = None,
    *,
    rate_hz: int = 8_000,
    channels: int = 1,
    seconds: float = 1.0,
    endian: str | None = None,
) -> bytes:
    """Encode with libsndfile; the names of containers and encodings are soundfile's."""
    target = io.BytesIO()
    audio = samples(rate_hz, channels, seconds)
    soundfile.write(target, audio, rate_hz, encoding, endian, container)
    return target.getvalue()


def wav(rate_hz: int = 8_000, channels: int = 1, seconds: float = 1.0) -> bytes:
    return sound("WAV", "PCM_16", rate_hz=rate_hz, channels=channels, seconds=seconds)


def mp3(rate_hz: int = 8_000, channels: int = 1, seconds: float = 1.0) -> bytes:
    return sound("MP3", rate_hz=rate_hz, channels=channels, seconds=seconds)


def ogg_opus(channels: int = 1, seconds: float = 1.0) -> bytes:
    return sound("OGG", "OPUS", rate_hz=48_000, channels=channels, seconds=seconds)


def pcm(channels: int = 1, rate_hz: int = 8_000) -> bytes:
    """Return a second of raw samples: signed, 16 bit, little-endian."""
    return bytes(samples(rate_hz, channels).astype("<i2").tobytes())


@functools.cache
def ffmpeg(suffix: str, *options: object, audio: bytes = b"") -> bytes:
    """Have FFmpeg turn WAV, by default a second of the call, into a file with this suffix."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.wav"), Path(folder, f"target{suffix}")
        source.write_bytes(audio or wav())
        line = [FFMPEG, "-v", "error", "-i", source, *options, target]
        subprocess.run([*map(str, line)], stdin=subprocess.DEVNULL, check=True)
        return target.read_bytes()


def id3v2(size_bytes: int, *, footer: bool = False) -> bytes:
    """Put an ID3v2.4 tag together: one picture of about so many bytes, and its padding."""
    picture = b"\0image/png\0\3\0" + bytes(range(256)) * (size_bytes // 256)
    frame = b"APIC" + _syncsafe(len(picture)) + bytes(2) + picture
    body = frame + bytes(100)
    head = b"\4\0" + (b"\x10" if footer else b"\0") + _syncsafe(len(body))
    return b"ID3" + head + body + (b"3DI" + head if footer else b"")


def _syncsafe(number: int) -> bytes:
    """Write seven bits a byte, so that no tag looks like audio."""
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))


def put_in_path(folder: Path) -> None:
    """Have programs find FFmpeg as `ffmpeg`, by a link in a new folder."""
    folder.mkdir()
    (folder / "ffmpeg").symlink_to(DECODER)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
