"""A table of kinds of file: made by real encoders, or put together by hand where none makes them.

Each with what becomes of it, without --convert and with it.
"""

from __future__ import annotations

import functools
import io
import random
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

import soundfile  # type: ignore[import-untyped]
from encoders import SPEEX_PAGE, ffmpeg, id3v2, mp3, ogg_opus, pcm, samples, sound, wav

PCM, A_LAW, MU_LAW, GSM_MS, EXTENSIBLE = 0x0001, 0x0006, 0x0007, 0x0031, 0xFFFE
UNSET = 0xFFFFFFFF
GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
AMBISONIC_TAIL = bytes.fromhex("00002107d3118644c8c1ca000000")
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


U8 = bytes(range(256)) * 63  # 2.0 s at 8,000 Hz.
TAG = id3v2(0)
TAGS = id3v2(1_000_000) + id3v2(70_000, footer=True) + TAG


# --- The table -------------------------------------------------------------------------

AS_IS, TO_CONVERT = "as it is", "needs-conversion"
MONO = "8,000 Hz, 1 channel"


class Kind(NamedTuple):
    make: Callable[[], bytes]
    file_name: str = "call.wav"
    plain: str = AS_IS  # Or the identifier of the error.
    converted: str = ""  # What the result is like, or the identifier; empty: as plain.
    says: str = ""  # A pattern for the description, or for the error's line.
    seconds: float = 1.0  # Of the result.


def takes(make: Callable[[], bytes], file_name: str = "call.wav", says: str = "") -> Kind:
    return Kind(make, file_name, says=says)


def converts(
    make: Callable[[], bytes], file_name: str, says: str, result: str = MONO, seconds: float = 1.0
) -> Kind:
    return Kind(make, file_name, TO_CONVERT, result, says, seconds)


def refuses(
    id: str, make: Callable[[], bytes], file_name: str = "call.wav", says: str = ""
) -> Kind:
    return Kind(make, file_name, id, id, says)


def fails(make: Callable[[], bytes], file_name: str, id: str = "conversion-failed") -> Kind:
    """Looks good by its header, and cannot be decoded."""
    return Kind(make, file_name, TO_CONVERT, id)


def u8(code: int, over: int = 0, tail: bytes = b"", rate_hz: int = 8_000) -> bytes:
    return riff(fmt(code, 1, rate_hz, 8), chunk(b"data", U8, len(U8) + over)) + tail


def more(announced_seconds: float, tail: bytes = b"") -> bytes:
    """Twenty seconds of audio, of which the header announces so many."""
    body = bytes(samples_bytes(20))
    length = int(announced_seconds * 16_000)
    return riff(fmt(), b"data" + struct.pack("<I", length) + body + tail)


def samples_bytes(seconds: float) -> bytes:
    return bytes(samples(seconds=seconds).astype("<i2").tobytes())


def cut(make: Callable[[], bytes], share: float) -> Callable[[], bytes]:
    return lambda: make()[: int(len(make()) * share)]


def opus_page(payload: bytes, *, granule: int = 0, serial: int = 1, number: int = 0) -> bytes:
    lacing = [255] * (len(payload) // 255) + [len(payload) % 255]
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, 0, granule, serial, number, 0, len(lacing))
    return head + bytes(lacing) + payload


def floating(encoding: str) -> bytes:
    """Samples between -1 and 1, as all write them."""
    target = io.BytesIO()
    soundfile.write(target, samples() / 32_768, 8_000, encoding, format="WAV")
    return target.getvalue()


def rf64_open() -> bytes:
    return riff(chunk(b"ds64", bytes(28)), fmt(), data(UNSET), form=b"RF64", length=UNSET)


def vorbis_headers() -> bytes:
    """The first two pages: identification, comments and codebooks."""
    audio = sound("OGG", "VORBIS")
    pages = [match.start() for match in re.finditer(b"OggS", audio)]
    return audio[: pages[2]]


def damaged(audio: bytes) -> bytes:
    """Put noise into the middle."""
    half, noise = len(audio) // 2, random.Random(3).randbytes(len(audio) // 8)
    return audio[:half] + noise + audio[half + len(noise) :]


def flac_of(audio: bytes, frames: int) -> bytes:
    """Cut a FLAC file exactly between two frames: no decoder misses anything."""
    places = [match.start() for match in re.finditer(rb"\xff\xf8[\x00-\xff]{2}", audio)]
    return audio[: places[frames]]


OPUS_HEAD = b"OpusHead\1\1" + bytes(9)
BIG_TAGS = b"OpusTags" + bytes(700) + b"x"
LAVFI = ("-f", "lavfi", "-i", "color=s=16x16:d=1")
TWICE = ("-map", "0:a", "-map", "0:a")
AAC_S, M4A_HEAD = 1.15, b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom\0\0\0\0"

KINDS: dict[str, Kind] = {
    # What the service takes.
    "WAV": takes(wav, says=f"WAV, PCM 16 bit, {MONO}, 1.0 s"),
    "WAV stereo 48 kHz": takes(
        functools.partial(wav, 48_000, 2), says="48,000 Hz, 2 channels, 1.0 s"
    ),
    "WAV extensible, GUID of ambisonics": takes(
        lambda: riff(extensible(PCM, tail=AMBISONIC_TAIL), DATA), says="WAV, PCM 16 bit"
    ),
    "WAV extensible, six channels": takes(
        lambda: sound("WAVEX", "PCM_16", channels=6), says="6 ch"
    ),
    "WAV by FFmpeg": takes(lambda: ffmpeg(".wav"), says="WAV"),
    "WAV named .mp3": takes(wav, "call.mp3", "WAV"),
    "WAV named .wave": takes(wav, "call.WAVE", "WAV"),
    "WAV, data before fmt": takes(lambda: riff(DATA, fmt()), says="WAV"),
    "WAV, chunks around": takes(lambda: riff(LIST, fmt(), LIST, DATA, LIST), says="0.3 s"),
    "WAV, one sample": takes(lambda: riff(fmt(), chunk(b"data", b"\1\2")), says="WAV"),
    "WAV, nonsense in block size": takes(lambda: riff(fmt(align=0), DATA), says="0.3 s"),
    "WAV, byte rate of nonsense": refuses(
        "header-too-short",
        lambda: more(1)[:28] + b"\xff\xff\xff\x7f" + more(1)[32:],
    ),
    "WAV A-law, block size of nonsense": converts(
        lambda: riff(fmt(A_LAW, 2, 8_000, 8, align=1), chunk(b"data", U8)),
        "call.wav",
        "A-law",
        "2 channels",
        1.008,
    ),
    "WAV, header counted (44)": takes(lambda: riff(fmt(), data(5120 + 44)), says="0.3 s"),
    "WAV, header counted (16)": takes(lambda: riff(fmt(), data(5120 + 16)), says="0.3 s"),
    "WAV, one byte short": takes(lambda: GOOD[:-1], says="0.3 s"),
    "WAV, a little more behind": takes(lambda: GOOD + bytes(8_000), says="0.3 s"),
    "WAV, large chunk behind": takes(lambda: GOOD + chunk(b"bext", bytes(99_999)), says="0.3 s"),
    "MP3": takes(mp3, "call.mp3", f"MP3, {MONO}"),
    "MP3 stereo": takes(
        functools.partial(mp3, 44_100, 2), "call.mp3", "MP3, 44,100 Hz, 2 channels"
    ),
    "MP3 MPEG-2": takes(functools.partial(mp3, 22_050), "call.mp3", "MP3, 22,050 Hz, 1 channel"),
    "MP3 VBR": takes(lambda: ffmpeg(".mp3", "-q:a", 2), "call.mp3", "MP3"),
    "MP3 named .wav": takes(mp3, "call.wav", "MP3"),
    "MP3, no suffix": takes(functools.partial(ffmpeg, ".mp3", "-id3v2_version", 0), "call", "MP3"),
    "MP3, three ID3 tags, large": takes(lambda: TAGS + mp3(), "call.mp3", "MP3"),
    "MP3, zeros in front": takes(lambda: bytes(300_001) + mp3(), "call.mp3", "MP3"),
    "MP3, zeros behind the tag": takes(lambda: TAG + bytes(99_999) + mp3(), "call", "MP3"),
    "MP3, APE tag in front": takes(lambda: b"APETAGEX" + bytes(500) + mp3(), "call.mp3", "MP3"),
    "MP3, cut": takes(cut(functools.partial(mp3, seconds=3), 0.6), "call.mp3", "MP3"),
    "MP3, ID3v1": takes(lambda: ffmpeg(".mp3", "-write_id3v1", 1), "call.mp3", "MP3"),
    "OggOpus": takes(ogg_opus, "call.ogg", "OggOpus, 1 channel"),
    "OggOpus stereo": takes(functools.partial(ogg_opus, 2), "call.opus", "OggOpus, 2 channels"),
    "OggOpus by FFmpeg, .oga": takes(
        functools.partial(ffmpeg, ".ogg", "-c:a", "libopus"), "call.oga", "Ogg"
    ),
    "OggOpus, large cover": takes(
        lambda: opus_page(OPUS_HEAD) + opus_page(BIG_TAGS * 60) + opus_page(b"audio", granule=960),
        "call.opus",
        "OggOpus",
    ),
    "OggOpus, cut": takes(cut(functools.partial(ogg_opus, seconds=9), 0.8), "call.opus", "OggOpus"),
    # WAV that is converted.
    "WAV 8 bit": converts(lambda: sound("WAV", "PCM_U8"), "call.wav", "PCM 8 bit"),
    "WAV 24 bit": converts(lambda: sound("WAV", "PCM_24"), "call.wav", "PCM 24 bit"),
    "WAV 32 bit": converts(lambda: sound("WAV", "PCM_32"), "call.wav", "PCM 32 bit"),
    "WAV float": converts(
        functools.partial(floating, "FLOAT"), "call.wav", "floating point 32 bit"
    ),
    "WAV double": converts(
        functools.partial(floating, "DOUBLE"), "call.wav", "floating point 64 bit"
    ),
    "WAV A-law": converts(lambda: sound("WAV", "ALAW"), "call.wav", "A-law 8 bit"),
    "WAV mu-law": converts(lambda: sound("WAV", "ULAW"), "call.wav", "mu-law 8 bit"),
    "WAV A-law, extensible": converts(
        lambda: riff(extensible(A_LAW, 8), chunk(b"data", U8)), "call.wav", "A-law", seconds=2.016
    ),
    "WAV A-law stereo": converts(
        lambda: sound("WAV", "ALAW", channels=2), "call.wav", "2 channels", "2 channels"
    ),
    "WAV A-law, header counted (44)": converts(
        lambda: u8(A_LAW, 44), "call.wav", "A-law", seconds=2.016
    ),
    "WAV A-law, header counted (16)": converts(
        lambda: u8(A_LAW, 16), "call.wav", "A-law", seconds=2.016
    ),
    "WAV mu-law, chunk behind": converts(
        lambda: u8(MU_LAW, 0, LIST * 900), "call.wav", "mu-law", seconds=2.016
    ),
    "WAV GSM (WAV49)": converts(
        lambda: sound("WAV", "GSM610"), "msg.WAV", "GSM 6.10", seconds=1.04
    ),
    "WAV MS ADPCM": converts(lambda: sound("WAV", "MS_ADPCM"), "call.wav", "format 0x0002"),
    "WAV IMA ADPCM": converts(lambda: sound("WAV", "IMA_ADPCM"), "call.wav", "format 0x0011"),
    "WAV G.726": converts(lambda: ffmpeg(".wav", "-c:a", "g726"), "call.wav", "format 0x0045"),
    "WAV with MP3": converts(
        lambda: ffmpeg(".wav", "-c:a", "libmp3lame"), "call.wav", "format 0x0055", seconds=1.15
    ),
    "WAV 6 kHz": converts(
        lambda: riff(fmt(rate_hz=6_000), DATA), "call.wav", "6,000 Hz", MONO, 5120 / 12_000
    ),
    "WAV 96 kHz": converts(
        functools.partial(wav, 96_000), "call.wav", "96,000 Hz", "48,000 Hz, 1 channel"
    ),
    "WAV 11,025 Hz A-law": converts(
        lambda: u8(A_LAW, rate_hz=11_025), "call.wav", "11,025", "11,025 Hz", len(U8) / 11_025
    ),
    "WAV 9,600 Hz A-law": converts(
        lambda: u8(A_LAW, rate_hz=9_600), "call.wav", "9,600", "9,600 Hz", len(U8) / 9_600
    ),
    "AU 9,600 Hz": converts(
        lambda: sound("AU", "ULAW", rate_hz=9_600), "call.au", "AU", "11,025 Hz, 1 channel"
    ),
    "WAV 24 in 32": converts(
        lambda: riff(fmt(bits=24, align=4), DATA), "call.wav", "PCM 24 bit", MONO, 0.16
    ),
    "RF64": converts(lambda: sound("RF64", "PCM_16"), "call.wav", "RF64"),
    "RF64 by FFmpeg": converts(lambda: ffmpeg(".wav", "-rf64", "always"), "call.wav", "RF64"),
    # FFmpeg 4.2 does not know it.
    "BW64": converts(
        lambda: rf64(fmt(), DATA, data_bytes=5120, form=b"BW64"), "call.wav", "RF64", MONO, 0.32
    ),
    "Wave64": converts(lambda: sound("W64", "PCM_16"), "call.w64", "Wave64"),
    # Others that are converted.
    "FLAC": converts(lambda: sound("FLAC"), "call.flac", f"FLAC, {MONO}, 1.0 s"),
    "FLAC 24 bit 96 kHz": converts(
        lambda: sound("FLAC", "PCM_24", rate_hz=96_000), "call.flac", "96,000", "48,000 Hz, 1 ch"
    ),
    "FLAC six channels": converts(
        lambda: sound("FLAC", channels=6), "call.flac", "6 channels", "6 channels"
    ),
    "Ogg Vorbis": converts(lambda: sound("OGG", "VORBIS"), "call.ogg", "Ogg with Vorbis"),
    "Ogg FLAC": converts(lambda: ffmpeg(".oga", "-c:a", "flac"), "call.oga", "Ogg with FLAC"),
    "M4A": converts(lambda: ffmpeg(".m4a"), "call.m4a", "M4A or MP4"),
    "M4A named .mp3": converts(lambda: ffmpeg(".m4a"), "call.mp3", "M4A or MP4"),
    "M4A ALAC": converts(lambda: ffmpeg(".m4a", "-c:a", "alac"), "call.m4a", "M4A"),
    "M4A 96 kHz": converts(lambda: ffmpeg(".m4a", "-ar", 96_000), "call.m4a", "M4A", "48,000 Hz"),
    "M4A 7,350 Hz": converts(lambda: ffmpeg(".m4a", "-ar", 7_350), "call.m4a", "M4A", MONO),
    "MP4 with picture": converts(
        lambda: ffmpeg(".mp4", *LAVFI, "-map", "0:a", "-map", "1:v"), "call.mp4", "M4A or MP4"
    ),
    "MP4 fragmented": converts(
        lambda: ffmpeg(".mp4", "-movflags", "frag_keyframe+empty_moov"),
        "call.mp4",
        "M4A",
        seconds=1.15,
    ),
    "QuickTime": converts(lambda: ffmpeg(".mov", "-c:a", "pcm_alaw"), "call.mp4", "M4A or MP4"),
    "3GP with AMR": converts(
        lambda: ffmpeg(".3gp", "-c:a", "libopencore_amrnb"), "call.3gp", "M4A or MP4"
    ),
    "AAC": converts(lambda: ffmpeg(".aac"), "call.aac", "AAC", seconds=AAC_S),
    "AAC named .mp3": converts(lambda: ffmpeg(".aac"), "call.mp3", "AAC", seconds=AAC_S),
    "AMR": converts(lambda: ffmpeg(".amr"), "call.amr", "AMR"),
    "AMR-WB, silence": converts(
        lambda: b"#!AMR-WB\n" + (b"\x04" + bytes(17)) * 50,
        "call.amr",
        "AMR",
        "16,000 Hz, 1 channel",
    ),
    "GSM": converts(lambda: sound("RAW", "GSM610"), "call.gsm", "GSM"),
    "WMA": converts(lambda: ffmpeg(".wma"), "call.wma", "WMA"),
    "WebM": converts(lambda: ffmpeg(".webm"), "call.webm", "WebM", "48,000 Hz, 1 channel"),
    "AIFF": converts(lambda: sound("AIFF", "PCM_16"), "call.aif", "AIFF"),
    "AIFF-C A-law": converts(lambda: sound("AIFF", "ALAW"), "call.aiff", "AIFF"),
    "AU mu-law": converts(lambda: sound("AU", "ULAW"), "call.au", "AU"),
    "AU, length left open": converts(
        lambda: b".snd" + struct.pack(">5I", 24, UNSET, 1, 8_000, 1) + U8,
        "call.au",
        "AU",
        seconds=2.016,
    ),
    "CAF": converts(lambda: sound("CAF", "PCM_16"), "call.caf", "CAF"),
    "MPEG layer II": converts(
        lambda: ffmpeg(".mp2", "-ar", 16_000), "call.mp3", "MPEG layer II", "16,000 Hz"
    ),
    # FFmpeg 4.2 to 9.0 would make noise of it, exit 0.
    "WAV big-endian": refuses("unknown-format", lambda: sound("WAV", "PCM_16", endian="BIG")),
    # Unfinished.
    "empty": refuses("empty", bytes, says="empty, or still being recorded"),
    "WAV of 44 bytes": refuses("no-samples", lambda: riff(fmt(), chunk(b"data")), says="no audio"),
    "WAV, no samples but a chunk": refuses("no-samples", lambda: riff(fmt(), chunk(b"data"), LIST)),
    "WAV, half a frame": refuses(
        "no-samples", lambda: riff(fmt(channels=2), chunk(b"data", b"ab"))
    ),
    "WAV, 45 bytes short": refuses("truncated", lambda: riff(fmt(), data(5120 + 45)), says="5,165"),
    "WAV, length 0": refuses("header-too-short", lambda: more(0)),
    "WAV, length 0, less than a second": refuses("no-samples", lambda: riff(fmt(), data(0))),
    "WAV, a second of chunks behind, unpadded": refuses(
        "header-too-short",
        lambda: riff(fmt(), b"data\x0b\0\0\0" + bytes(11) + chunk(b"iXML", bytes(40_000))),
    ),
    "WAV, 0xFFFFFFFF": refuses("truncated", lambda: riff(fmt(), data(UNSET), length=UNSET)),
    "WAV, SoX to a pipe": refuses("truncated", lambda: riff(fmt(), data(0x7FFF_F000))),
    "WAV A-law, 0xFFFFFFFF": refuses("truncated", lambda: u8(A_LAW, UNSET - len(U8))),
    "WAV A-law, cut at a packet": refuses("truncated", lambda: u8(A_LAW)[: 44 + 8192]),
    "WAV, 1 s of 20 announced": refuses(
        "header-too-short", lambda: more(1), says="16,000 .* 320,000"
    ),
    "WAV, 1 s of 20, chunk behind": refuses("header-too-short", lambda: more(1, LIST)),
    "WAV, two joined": refuses("header-too-short", lambda: more(20) + more(20)),
    "WAV, two data chunks": refuses("header-too-short", lambda: riff(fmt(), DATA, DATA * 9)),
    "WAV, header only": refuses("damaged-header", lambda: GOOD[:36], says="no data chunk"),
    "WAV, header cut": refuses("damaged-header", lambda: GOOD[:20]),
    "WAV, no format": refuses("damaged-header", lambda: riff(DATA), says="no format chunk"),
    "WAV, no channels": refuses("damaged-header", lambda: riff(fmt(channels=0), DATA)),
    "WAV, 0 Hz": refuses("damaged-header", lambda: riff(fmt(rate_hz=0), DATA)),
    "WAV of zeros": refuses("damaged-header", lambda: b"RIFF\0\0\0\0WAVE" + bytes(9999)),
    "RF64, cut": refuses("truncated", cut(lambda: sound("RF64", "PCM_16"), 0.5)),
    "RF64, never closed": fails(rf64_open, "call.wav", "no-samples"),
    "Wave64, cut": refuses("truncated", cut(lambda: sound("W64", "PCM_16"), 0.5), "call.w64"),
    "AIFF, cut": refuses("truncated", cut(lambda: sound("AIFF", "PCM_16"), 0.5), "call.aiff"),
    "AU, cut": refuses("truncated", cut(lambda: sound("AU", "ULAW"), 0.5), "call.au"),
    "WMA, cut": refuses("truncated", cut(lambda: ffmpeg(".wma"), 0.9), "call.wma"),
    "OggOpus, headers only": refuses(
        "no-samples", lambda: opus_page(OPUS_HEAD) + opus_page(b"OpusTags" + bytes(8)), "call.opus"
    ),
    "OggOpus, large cover only": refuses(
        "no-samples", lambda: opus_page(OPUS_HEAD) + opus_page(BIG_TAGS * 60), "call.opus"
    ),
    "OggOpus, page of audio cut": refuses(
        "no-samples", lambda: ogg_opus()[: ogg_opus().index(b"OpusTags") + 900], "call.opus"
    ),
    "OggOpus, no channels": refuses(
        "damaged-header", lambda: ogg_opus()[:37] + b"\0" + ogg_opus()[38:], "call.ogg"
    ),
    # What FFmpeg finds broken.
    "FLAC, cut": fails(cut(lambda: sound("FLAC", seconds=20), 0.5), "call.flac"),
    "FLAC, frames lost": fails(lambda: flac_of(sound("FLAC", seconds=20), 16), "call.flac"),
    "Ogg Vorbis, headers only": fails(vorbis_headers, "call.ogg"),
    "Ogg Speex, first page only": fails(lambda: SPEEX_PAGE, "call.ogg"),
    "M4A, cut": fails(cut(lambda: ffmpeg(".m4a"), 0.5), "call.m4a"),
    "M4A for streaming, cut": fails(
        cut(functools.partial(ffmpeg, ".m4a", "-movflags", "faststart"), 0.7), "call.m4a"
    ),
    "M4A without audio": fails(lambda: ffmpeg(".mp4", *LAVFI, "-map", "1:v"), "call.mp4"),
    "M4A, two audio streams": fails(lambda: ffmpeg(".mp4", *TWICE), "call.m4a"),
    "WebM, two audio streams": fails(lambda: ffmpeg(".webm", *TWICE), "call.webm"),
    "WebM, cut": fails(cut(lambda: ffmpeg(".webm"), 0.6), "call.webm"),
    "AAC, cut": fails(cut(lambda: ffmpeg(".aac"), 0.613), "call.aac"),
    "AMR, cut in a frame": fails(lambda: ffmpeg(".amr")[:-7], "call.amr"),
    "AMR, header only": fails(lambda: b"#!AMR\n", "call.amr", "no-samples"),
    "GSM, cut in a frame": fails(lambda: sound("RAW", "GSM610")[:-7], "call.gsm"),
    "CAF, cut": fails(lambda: sound("CAF", "PCM_16")[:9_000], "call.caf"),  # Only by -xerror.
    "WAV of an unknown codec": fails(lambda: riff(fmt(0x1234), DATA), "call.wav"),
    "WAV with MP3, damaged": fails(
        lambda: damaged(ffmpeg(".wav", "-c:a", "libmp3lame")), "call.wav"
    ),
    "WAV GSM, damaged header": fails(
        lambda: riff(fmt(GSM_MS, align=64, bits=0), chunk(b"data", U8)), "call.wav"
    ),
    "FLAC, damaged": fails(lambda: damaged(sound("FLAC")), "call.flac"),
    "M4A of noise": fails(lambda: M4A_HEAD + random.Random(1).randbytes(9999), "call.m4a"),
    # What is no recording.
    "HTML": refuses("web-page", lambda: b"\r\n<!DOCTYPE html><html>login</html>", says="web page"),
    "HTML named .mp3": refuses("web-page", lambda: b"<html>login</html>" * 99, "call.mp3"),
    "text": refuses("text", lambda: b"not audio at all\n" * 99, says="text"),
    "JSON": refuses("text", lambda: b'{"error": "no such call"}', says="text"),
    "zeros": refuses("zeros", lambda: bytes(100_000), says="zeros"),
    "noise": refuses("unknown-format", lambda: random.Random(1).randbytes(70_000)),
    "noise named .mp3": refuses(
        "no-mp3-audio", lambda: random.Random(1).randbytes(70_000), "c.mp3"
    ),
    "ones named .mp3": refuses("no-mp3-audio", lambda: b"\xff" * 100_000, "call.mp3"),
    "tag only": refuses("no-mp3-audio", lambda: TAG, "call.mp3"),
    "tag, cut": refuses("no-mp3-audio", lambda: b"ID3\4\0\0\x7f\x7f\x7f\x7f", "call.mp3"),
    # Only MP3 has tags in front.
    "WAV behind an ID3 tag": refuses("no-mp3-audio", lambda: TAG + wav()),
    "WAV named .mp3 behind tags": refuses("no-mp3-audio", lambda: TAGS + wav(), "call.mp3"),
    "FLAC behind two tags": refuses("no-mp3-audio", lambda: TAG * 2 + sound("FLAC"), "call.flac"),
    "OggOpus behind a tag": refuses("no-mp3-audio", lambda: TAG + ogg_opus(), "call.opus"),
    "M4A behind a tag, .mp3": refuses("no-mp3-audio", lambda: TAG + ffmpeg(".m4a"), "call.mp3"),
    "AAC behind a tag": refuses("no-mp3-audio", lambda: TAG + ffmpeg(".aac"), "call.aac"),
    "tag and noise": refuses("no-mp3-audio", lambda: TAG + random.Random(2).randbytes(70_000)),
    "samples": refuses("unknown-format", lambda: b"\x01\x00\x05\x00" + pcm()[:1600]),
    "samples named .pcm": refuses("no-header", pcm, "call.pcm", "no audio header"),
    "GSM of another kind": refuses("unknown-format", lambda: bytes(range(1, 34)) * 99, "call.gsm"),
    "AVI": refuses("unknown-format", lambda: b"RIFF\x10\0\0\0AVI LIST" + bytes(99)),
    "ffconcat": refuses(
        "text", lambda: b"ffconcat version 1.0\nfile 'neighbour.wav'\n", "call.m4a"
    ),
    "HLS": refuses(
        "text", lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nneighbour.wav\n", "call.m4a"
    ),
}

# MPEG-1, MPEG-2 and MPEG-2.5 have three sample rates each.
for rate_hz in (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000):
    makes = functools.partial(mp3, rate_hz)
    KINDS[f"MP3 of {rate_hz} Hz"] = takes(makes, "call.mp3", f"MP3, {rate_hz:,} Hz, 1 channel")

# Of each identifier the line that is said.
LINES = {
    "needs-conversion": "the service does not take .*; use --convert, or record it as 16 bit LPCM",
    "conversion-failed": r"FFmpeg cannot decode the whole recording; check that it plays .* \(.+\)",
    "empty": "the file is empty, or still being recorded; run again when it is closed, or remove",
    "no-samples": "contains no audio samples, or is still being recorded; run again when",
    "truncated": "truncated or still being recorded: the header announces .* are there; .*README",
    "header-too-short": "the header announces .* are there: the rest would be lost; .*README",
    "damaged-header": "damaged .*; .*record or export it again",
    "web-page": "this is a web page or XML, not audio; download the recording again",
    "text": "this is text, not audio; record or export it again",
    "zeros": "zeros where the audio header should be; restore the file",
    "unknown-format": "not a recording in a known format; record or export it again",
    "no-mp3-audio": "no MP3 audio where it should begin; record or export it again",
    "no-header": "no audio header; for raw PCM use --audio-type pcm with --sample-rate",
}

# Made of other samples than the sample call's.
NO_CALL = {
    "WAV A-law, block size of nonsense",
    "AMR-WB, silence",
    "AU, length left open",
    "BW64",
    "WAV 11,025 Hz A-law",
    "WAV 9,600 Hz A-law",
    "WAV 24 in 32",
    "WAV 6 kHz",
    "WAV A-law, extensible",
    "WAV A-law, header counted (16)",
    "WAV A-law, header counted (44)",
    "WAV mu-law, chunk behind",
}
