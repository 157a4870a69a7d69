"""Recordings made by real encoders, from the sample call; each is made once and kept as bytes."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path

SAMPLE = Path(__file__).with_name("sample.wav")
PACKAGES = {
    "ffmpeg": "ffmpeg",
    "flac": "flac",
    "lame": "lame",
    "oggenc": "vorbis-tools",
    "opusenc": "opus-tools",
    "sox": "sox",
    "speexenc": "speex",
}


def run(*words: object, given: bytes | None = None) -> bytes:
    """Run a program of PACKAGES and answer its stdout."""
    tool = str(words[0])
    try:
        done = subprocess.run([*map(str, words)], input=given, capture_output=True, check=False)
    except FileNotFoundError:
        text = f"{tool} is needed (Debian: apt-get install {PACKAGES[tool]})"
        raise RuntimeError(text) from None
    if done.returncode:
        raise RuntimeError(f"{words}: {done.stderr.decode(errors='replace')}")
    return done.stdout


@functools.cache
def wav(rate_hz: int = 8_000, channels: int = 1, seconds: float = 1.0) -> bytes:
    """Take the beginning of the sample call, again and again if it is shorter."""
    repeat = ("repeat", int(seconds // 9)) if seconds > 9 else ()
    with tempfile.TemporaryDirectory() as folder:
        # Not its stdout: a header's lengths are filled in at the end.
        target = Path(folder, "target.wav")
        options = ("-r", rate_hz, "-c", channels)
        run("sox", "-D", "-V1", SAMPLE, *options, target, *repeat, "trim", 0, seconds)
        return target.read_bytes()


@functools.cache
def made(tool: str, suffix: str, options: tuple[object, ...] = (), audio: bytes = b"") -> bytes:
    """Have a program turn WAV into a file with this suffix."""
    audio = audio or wav()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.wav"), Path(folder, f"target{suffix}")
        source.write_bytes(audio)
        lines: dict[str, tuple[object, ...]] = {
            "ffmpeg": ("-v", "error", "-i", source, *options, target),
            "flac": ("--silent", *options, "-o", target, source),
            "lame": ("--quiet", *options, source, target),
            "oggenc": ("--quiet", *options, "-o", target, source),
            "opusenc": ("--quiet", *options, source, target),
            "sox": ("-V1", source, *options, target),
            "speexenc": (*options, source, target),
        }
        run(tool, *lines[tool])
        return target.read_bytes()


def mp3(*options: object, rate_hz: int = 8_000, channels: int = 1, seconds: float = 1.0) -> bytes:
    """Encode with lame at the rate of the source; `-t`: without a first frame that counts."""
    return made("lame", ".mp3", options, wav(rate_hz, channels, seconds))


def ogg_opus(*options: object, channels: int = 1, seconds: float = 1.0) -> bytes:
    return made("opusenc", ".opus", options, wav(48_000, channels, seconds))


def pcm(channels: int = 1, rate_hz: int = 8_000) -> bytes:
    """Answer raw samples, as sox leaves them."""
    raw = ("-t", "raw", "-e", "signed-integer", "-b", 16, "-L")
    return made("sox", ".pcm", raw, wav(rate_hz, channels))


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
