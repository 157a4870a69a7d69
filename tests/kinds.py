"""A table of kinds of file: made by real encoders, or put together by hand where none makes them.

Each with what becomes of it, without --convert and with it; what is refused is 65. A new format
has rows here, and its suffix in test_audio.py (a_folder_is_searched_...); fuzz.py (seed_recordings)
damages it, and demo.py has what the service takes.
"""

from __future__ import annotations

import functools
import io
import random
import re
import struct
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
    content: bytes
    suffix: str = ".wav"
    plain: str = AS_IS  # Or the identifier of the error.
    converted: str = ""  # What the result is like, or the identifier; empty: as plain.
    says: str = ""  # A pattern for the description, or for the error's line.
    seconds: float = 1.0  # Of the result.


def takes(content: bytes, says: str = "", suffix: str = ".wav") -> Kind:
    return Kind(content, suffix, says=says)


def converts(
    content: bytes, says: str, suffix: str = ".wav", result: str = MONO, seconds: float = 1.0
) -> Kind:
    return Kind(content, suffix, TO_CONVERT, result, says, seconds)


def refuses(id: str, content: bytes, says: str = "", suffix: str = ".wav") -> Kind:
    return Kind(content, suffix, id, id, says)


def fails(content: bytes, suffix: str, id: str = "conversion-failed") -> Kind:
    """Looks good by its header, and cannot be decoded."""
    return Kind(content, suffix, TO_CONVERT, id)


def u8(code: int, over: int = 0, tail: bytes = b"", rate_hz: int = 8_000) -> bytes:
    return riff(fmt(code, 1, rate_hz, 8), chunk(b"data", U8, len(U8) + over)) + tail


def more(announced_seconds: float, tail: bytes = b"") -> bytes:
    """Twenty seconds of audio, of which the header announces so many."""
    body = bytes(samples_bytes(20))
    length = int(announced_seconds * 16_000)
    return riff(fmt(), b"data" + struct.pack("<I", length) + body + tail)


def samples_bytes(seconds: float) -> bytes:
    return bytes(samples(seconds=seconds).astype("<i2").tobytes())


def cut(content: bytes, share: float) -> bytes:
    return content[: int(len(content) * share)]


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


@functools.cache
def make_kinds() -> dict[str, Kind]:
    """Make a file of each kind; the names tell what is wrong with it."""
    table = {
        # What the service takes.
        "WAV": takes(wav(), f"WAV, PCM 16 bit, {MONO}, 1.0 s"),
        "WAV stereo 48 kHz": takes(wav(48_000, 2), "48,000 Hz, 2 channels, 1.0 s"),
        "WAV extensible, GUID of ambisonics": takes(
            riff(extensible(PCM, tail=AMBISONIC_TAIL), DATA), "WAV, PCM 16 bit"
        ),
        "WAV extensible, six channels": takes(sound("WAVEX", "PCM_16", channels=6), "6 ch"),
        "WAV by FFmpeg": takes(ffmpeg(".wav"), "WAV"),
        "WAV named .mp3": takes(wav(), "WAV", ".mp3"),
        "WAV named .wave": takes(wav(), "WAV", ".WAVE"),
        "WAV, data before fmt": takes(riff(DATA, fmt()), "WAV"),
        "WAV, chunks around": takes(riff(LIST, fmt(), LIST, DATA, LIST), "0.3 s"),
        "WAV, one sample": takes(riff(fmt(), chunk(b"data", b"\1\2")), "WAV"),
        "WAV, nonsense in block size": takes(riff(fmt(align=0), DATA), "0.3 s"),
        "WAV, byte rate of nonsense": refuses(
            "header-too-short", more(1)[:28] + b"\xff\xff\xff\x7f" + more(1)[32:]
        ),
        "WAV A-law, block size of nonsense": converts(
            riff(fmt(A_LAW, 2, 8_000, 8, align=1), chunk(b"data", U8)),
            "A-law",
            ".wav",
            "2 channels",
            1.008,
        ),
        "WAV, header counted (44)": takes(riff(fmt(), data(5120 + 44)), "0.3 s"),
        "WAV, header counted (16)": takes(riff(fmt(), data(5120 + 16)), "0.3 s"),
        "WAV, one byte short": takes(GOOD[:-1], "0.3 s"),
        "WAV, a little more behind": takes(GOOD + bytes(8_000), "0.3 s"),
        "WAV, large chunk behind": takes(GOOD + chunk(b"bext", bytes(99_999)), "0.3 s"),
        "MP3": takes(mp3(), f"MP3, {MONO}", ".mp3"),
        "MP3 stereo": takes(mp3(44_100, 2), "MP3, 44,100 Hz, 2 channels", ".mp3"),
        "MP3 MPEG-2": takes(mp3(22_050), "MP3, 22,050 Hz, 1 channel", ".mp3"),
        "MP3 VBR": takes(ffmpeg(".mp3", "-q:a", 2), "MP3", ".mp3"),
        "MP3 named .wav": takes(mp3(), "MP3"),
        "MP3, no suffix": takes(ffmpeg(".mp3", "-id3v2_version", 0), "MP3", ""),
        "MP3, three ID3 tags, large": takes(TAGS + mp3(), "MP3", ".mp3"),
        "MP3, zeros in front": takes(bytes(300_001) + mp3(), "MP3", ".mp3"),
        "MP3, zeros behind the tag": takes(TAG + bytes(99_999) + mp3(), "MP3", ""),
        "MP3, APE tag in front": takes(b"APETAGEX" + bytes(500) + mp3(), "MP3", ".mp3"),
        "MP3, cut": takes(cut(mp3(seconds=3), 0.6), "MP3", ".mp3"),
        "MP3, ID3v1": takes(ffmpeg(".mp3", "-write_id3v1", 1), "MP3", ".mp3"),
        "OggOpus": takes(ogg_opus(), "OggOpus, 1 channel", ".ogg"),
        "OggOpus stereo": takes(ogg_opus(2), "OggOpus, 2 channels", ".opus"),
        "OggOpus by FFmpeg, .oga": takes(ffmpeg(".ogg", "-c:a", "libopus"), "Ogg", ".oga"),
        "OggOpus, large cover": takes(
            opus_page(OPUS_HEAD) + opus_page(BIG_TAGS * 60) + opus_page(b"audio", granule=960),
            "OggOpus",
            ".opus",
        ),
        "OggOpus, cut": takes(cut(ogg_opus(seconds=9), 0.8), "OggOpus", ".opus"),
        # WAV that is converted.
        "WAV 8 bit": converts(sound("WAV", "PCM_U8"), "PCM 8 bit"),
        "WAV 24 bit": converts(sound("WAV", "PCM_24"), "PCM 24 bit"),
        "WAV 32 bit": converts(sound("WAV", "PCM_32"), "PCM 32 bit"),
        "WAV float": converts(floating("FLOAT"), "floating point 32 bit"),
        "WAV double": converts(floating("DOUBLE"), "floating point 64 bit"),
        "WAV A-law": converts(sound("WAV", "ALAW"), "A-law 8 bit"),
        "WAV mu-law": converts(sound("WAV", "ULAW"), "mu-law 8 bit"),
        "WAV A-law, extensible": converts(
            riff(extensible(A_LAW, 8), chunk(b"data", U8)), "A-law", seconds=2.016
        ),
        "WAV A-law stereo": converts(
            sound("WAV", "ALAW", channels=2), "2 channels", ".wav", "2 channels"
        ),
        "WAV A-law, header counted (44)": converts(u8(A_LAW, 44), "A-law", seconds=2.016),
        "WAV A-law, header counted (16)": converts(u8(A_LAW, 16), "A-law", seconds=2.016),
        "WAV mu-law, chunk behind": converts(u8(MU_LAW, 0, LIST * 900), "mu-law", seconds=2.016),
        "WAV GSM (WAV49)": converts(sound("WAV", "GSM610"), "GSM 6.10", ".WAV", seconds=1.04),
        "WAV MS ADPCM": converts(sound("WAV", "MS_ADPCM"), "format 0x0002"),
        "WAV IMA ADPCM": converts(sound("WAV", "IMA_ADPCM"), "format 0x0011"),
        "WAV G.726": converts(ffmpeg(".wav", "-c:a", "g726"), "format 0x0045"),
        "WAV with MP3": converts(
            ffmpeg(".wav", "-c:a", "libmp3lame"), "format 0x0055", seconds=1.15
        ),
        "WAV 6 kHz": converts(
            riff(fmt(rate_hz=6_000), DATA), "6,000 Hz", ".wav", MONO, 5120 / 12_000
        ),
        "WAV 96 kHz": converts(wav(96_000), "96,000 Hz", ".wav", "48,000 Hz, 1 channel"),
        "WAV 11,025 Hz A-law": converts(
            u8(A_LAW, rate_hz=11_025), "11,025", ".wav", "11,025 Hz", len(U8) / 11_025
        ),
        "WAV 9,600 Hz A-law": converts(
            u8(A_LAW, rate_hz=9_600), "9,600", ".wav", "9,600 Hz", len(U8) / 9_600
        ),
        "AU 9,600 Hz": converts(
            sound("AU", "ULAW", rate_hz=9_600), "AU", ".au", "11,025 Hz, 1 channel"
        ),
        "WAV 24 in 32": converts(
            riff(fmt(bits=24, align=4), DATA), "PCM 24 bit", ".wav", MONO, 0.16
        ),
        "RF64": converts(sound("RF64", "PCM_16"), "RF64"),
        "RF64 by FFmpeg": converts(ffmpeg(".wav", "-rf64", "always"), "RF64"),
        # FFmpeg 4.2 does not know it.
        "BW64": converts(
            rf64(fmt(), DATA, data_bytes=5120, form=b"BW64"), "RF64", ".wav", MONO, 0.32
        ),
        "Wave64": converts(sound("W64", "PCM_16"), "Wave64", ".w64"),
        # Others that are converted.
        "FLAC": converts(sound("FLAC"), f"FLAC, {MONO}, 1.0 s", ".flac"),
        "FLAC 24 bit 96 kHz": converts(
            sound("FLAC", "PCM_24", rate_hz=96_000), "96,000", ".flac", "48,000 Hz, 1 ch"
        ),
        "FLAC six channels": converts(
            sound("FLAC", channels=6), "6 channels", ".flac", "6 channels"
        ),
        "Ogg Vorbis": converts(sound("OGG", "VORBIS"), "Ogg with Vorbis", ".ogg"),
        "Ogg FLAC": converts(ffmpeg(".oga", "-c:a", "flac"), "Ogg with FLAC", ".oga"),
        "M4A": converts(ffmpeg(".m4a"), "M4A or MP4", ".m4a"),
        "M4A named .mp3": converts(ffmpeg(".m4a"), "M4A or MP4", ".mp3"),
        "M4A ALAC": converts(ffmpeg(".m4a", "-c:a", "alac"), "M4A", ".m4a"),
        "M4A 96 kHz": converts(ffmpeg(".m4a", "-ar", 96_000), "M4A", ".m4a", "48,000 Hz"),
        "M4A 7,350 Hz": converts(ffmpeg(".m4a", "-ar", 7_350), "M4A", ".m4a", MONO),
        "MP4 with picture": converts(
            ffmpeg(".mp4", *LAVFI, "-map", "0:a", "-map", "1:v"), "M4A or MP4", ".mp4"
        ),
        "MP4 fragmented": converts(
            ffmpeg(".mp4", "-movflags", "frag_keyframe+empty_moov"), "M4A", ".mp4", seconds=1.15
        ),
        "QuickTime": converts(ffmpeg(".mov", "-c:a", "pcm_alaw"), "M4A or MP4", ".mp4"),
        "3GP with AMR": converts(ffmpeg(".3gp", "-c:a", "libopencore_amrnb"), "M4A or MP4", ".3gp"),
        "AAC": converts(ffmpeg(".aac"), "AAC", ".aac", seconds=AAC_S),
        "AAC named .mp3": converts(ffmpeg(".aac"), "AAC", ".mp3", seconds=AAC_S),
        "AMR": converts(ffmpeg(".amr"), "AMR", ".amr"),
        "AMR-WB, silence": converts(
            b"#!AMR-WB\n" + (b"\x04" + bytes(17)) * 50, "AMR", ".amr", "16,000 Hz, 1 channel"
        ),
        "GSM": converts(sound("RAW", "GSM610"), "GSM", ".gsm"),
        "WMA": converts(ffmpeg(".wma"), "WMA", ".wma"),
        "WebM": converts(ffmpeg(".webm"), "WebM", ".webm", "48,000 Hz, 1 channel"),
        "AIFF": converts(sound("AIFF", "PCM_16"), "AIFF", ".aif"),
        "AIFF-C A-law": converts(sound("AIFF", "ALAW"), "AIFF", ".aiff"),
        "AU mu-law": converts(sound("AU", "ULAW"), "AU", ".au"),
        "AU, length left open": converts(
            b".snd" + struct.pack(">5I", 24, UNSET, 1, 8_000, 1) + U8, "AU", ".au", seconds=2.016
        ),
        "CAF": converts(sound("CAF", "PCM_16"), "CAF", ".caf"),
        "MPEG layer II": converts(
            ffmpeg(".mp2", "-ar", 16_000), "MPEG layer II", ".mp3", "16,000 Hz"
        ),
        # FFmpeg 4.2 to 9.0 would make noise of it, exit 0.
        "WAV big-endian": refuses("unknown-format", sound("WAV", "PCM_16", endian="BIG")),
        # Unfinished.
        "empty": refuses("empty", b"", "empty, or still being recorded"),
        "WAV of 44 bytes": refuses("no-samples", riff(fmt(), chunk(b"data")), "no audio"),
        "WAV, no samples but a chunk": refuses("no-samples", riff(fmt(), chunk(b"data"), LIST)),
        "WAV, half a frame": refuses("no-samples", riff(fmt(channels=2), chunk(b"data", b"ab"))),
        "WAV, 45 bytes short": refuses("truncated", riff(fmt(), data(5120 + 45)), "5,165"),
        "WAV, length 0": refuses("header-too-short", more(0)),
        "WAV, length 0, less than a second": refuses("no-samples", riff(fmt(), data(0))),
        "WAV, a second of chunks behind, unpadded": refuses(
            "header-too-short",
            riff(fmt(), b"data\x0b\0\0\0" + bytes(11) + chunk(b"iXML", bytes(40_000))),
        ),
        "WAV, 0xFFFFFFFF": refuses("truncated", riff(fmt(), data(UNSET), length=UNSET)),
        "WAV, SoX to a pipe": refuses("truncated", riff(fmt(), data(0x7FFF_F000))),
        "WAV A-law, 0xFFFFFFFF": refuses("truncated", u8(A_LAW, UNSET - len(U8))),
        "WAV A-law, cut at a packet": refuses("truncated", u8(A_LAW)[: 44 + 8192]),
        "WAV, 1 s of 20 announced": refuses("header-too-short", more(1), "16,000 .* 320,000"),
        "WAV, 1 s of 20, chunk behind": refuses("header-too-short", more(1, LIST)),
        "WAV, two joined": refuses("header-too-short", more(20) + more(20)),
        "WAV, two data chunks": refuses("header-too-short", riff(fmt(), DATA, DATA * 9)),
        "WAV, header only": refuses("damaged-header", GOOD[:36], "no data chunk"),
        "WAV, header cut": refuses("damaged-header", GOOD[:20]),
        "WAV, no format": refuses("damaged-header", riff(DATA), "no format chunk"),
        "WAV, no channels": refuses("damaged-header", riff(fmt(channels=0), DATA)),
        "WAV, 0 Hz": refuses("damaged-header", riff(fmt(rate_hz=0), DATA)),
        "WAV of zeros": refuses("damaged-header", b"RIFF\0\0\0\0WAVE" + bytes(9999)),
        "RF64, cut": refuses("truncated", cut(sound("RF64", "PCM_16"), 0.5)),
        "RF64, never closed": fails(rf64_open(), ".wav", "no-samples"),
        "Wave64, cut": refuses("truncated", cut(sound("W64", "PCM_16"), 0.5), suffix=".w64"),
        "AIFF, cut": refuses("truncated", cut(sound("AIFF", "PCM_16"), 0.5), suffix=".aiff"),
        "AU, cut": refuses("truncated", cut(sound("AU", "ULAW"), 0.5), suffix=".au"),
        "WMA, cut": refuses("truncated", cut(ffmpeg(".wma"), 0.9), suffix=".wma"),
        "OggOpus, headers only": refuses(
            "no-samples", opus_page(OPUS_HEAD) + opus_page(b"OpusTags" + bytes(8)), suffix=".opus"
        ),
        "OggOpus, large cover only": refuses(
            "no-samples", opus_page(OPUS_HEAD) + opus_page(BIG_TAGS * 60), suffix=".opus"
        ),
        "OggOpus, page of audio cut": refuses(
            "no-samples", ogg_opus()[: ogg_opus().index(b"OpusTags") + 900], suffix=".opus"
        ),
        "OggOpus, no channels": refuses(
            "damaged-header", ogg_opus()[:37] + b"\0" + ogg_opus()[38:], suffix=".ogg"
        ),
        # What FFmpeg finds broken.
        "FLAC, cut": fails(cut(sound("FLAC", seconds=20), 0.5), ".flac"),
        "FLAC, frames lost": fails(flac_of(sound("FLAC", seconds=20), 16), ".flac"),
        "Ogg Vorbis, headers only": fails(vorbis_headers(), ".ogg"),
        "Ogg Speex, first page only": fails(SPEEX_PAGE, ".ogg"),
        "M4A, cut": fails(cut(ffmpeg(".m4a"), 0.5), ".m4a"),
        "M4A for streaming, cut": fails(cut(ffmpeg(".m4a", "-movflags", "faststart"), 0.7), ".m4a"),
        "M4A without audio": fails(ffmpeg(".mp4", *LAVFI, "-map", "1:v"), ".mp4"),
        "M4A, two audio streams": fails(ffmpeg(".mp4", *TWICE), ".m4a"),
        "WebM, two audio streams": fails(ffmpeg(".webm", *TWICE), ".webm"),
        "WebM, cut": fails(cut(ffmpeg(".webm"), 0.6), ".webm"),
        "AAC, cut": fails(cut(ffmpeg(".aac"), 0.613), ".aac"),
        "AMR, cut in a frame": fails(ffmpeg(".amr")[:-7], ".amr"),
        "AMR, header only": fails(b"#!AMR\n", ".amr", "no-samples"),
        "GSM, cut in a frame": fails(sound("RAW", "GSM610")[:-7], ".gsm"),
        "CAF, cut": fails(sound("CAF", "PCM_16")[:9_000], ".caf"),  # Only by -xerror.
        "WAV of an unknown codec": fails(riff(fmt(0x1234), DATA), ".wav"),
        "WAV with MP3, damaged": fails(damaged(ffmpeg(".wav", "-c:a", "libmp3lame")), ".wav"),
        "WAV GSM, damaged header": fails(
            riff(fmt(GSM_MS, align=64, bits=0), chunk(b"data", U8)), ".wav"
        ),
        "FLAC, damaged": fails(damaged(sound("FLAC")), ".flac"),
        "M4A of noise": fails(M4A_HEAD + random.Random(1).randbytes(9999), ".m4a"),
        # What is no recording.
        "HTML": refuses("web-page", b"\r\n<!DOCTYPE html><html>login</html>", "web page"),
        "HTML named .mp3": refuses("web-page", b"<html>login</html>" * 99, suffix=".mp3"),
        "text": refuses("text", b"not audio at all\n" * 99, "text"),
        "JSON": refuses("text", b'{"error": "no such call"}', "text"),
        "zeros": refuses("zeros", bytes(100_000), "zeros"),
        "noise": refuses("unknown-format", random.Random(1).randbytes(70_000)),
        "noise named .mp3": refuses(
            "no-mp3-audio", random.Random(1).randbytes(70_000), suffix=".mp3"
        ),
        "ones named .mp3": refuses("no-mp3-audio", b"\xff" * 100_000, suffix=".mp3"),
        "tag only": refuses("no-mp3-audio", TAG, suffix=".mp3"),
        "tag, cut": refuses("no-mp3-audio", b"ID3\4\0\0\x7f\x7f\x7f\x7f", suffix=".mp3"),
        # Only MP3 has tags in front.
        "WAV behind an ID3 tag": refuses("tagged", TAG + wav()),
        "WAV named .mp3 behind tags": refuses("tagged", TAGS + wav(), suffix=".mp3"),
        "FLAC behind two tags": refuses("tagged", TAG * 2 + sound("FLAC"), suffix=".flac"),
        "OggOpus behind a tag": refuses("tagged", TAG + ogg_opus(), suffix=".opus"),
        "M4A behind a tag, .mp3": refuses("tagged", TAG + ffmpeg(".m4a"), suffix=".mp3"),
        "AAC behind a tag": refuses("tagged", TAG + ffmpeg(".aac"), suffix=".aac"),
        "tag and noise": refuses("no-mp3-audio", TAG + random.Random(2).randbytes(70_000)),
        "samples": refuses("unknown-format", b"\x01\x00\x05\x00" + pcm()[:1600]),
        "samples named .pcm": refuses("no-header", pcm(), "no audio header", ".pcm"),
        "GSM of another kind": refuses("unknown-format", bytes(range(1, 34)) * 99, suffix=".gsm"),
        "AVI": refuses("unknown-format", b"RIFF\x10\0\0\0AVI LIST" + bytes(99)),
        "ffconcat": refuses("text", b"ffconcat version 1.0\nfile 'neighbour.wav'\n", suffix=".m4a"),
        "HLS": refuses(
            "text", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nneighbour.wav\n", suffix=".m4a"
        ),
    }
    # MPEG-1, MPEG-2 and MPEG-2.5 have three sample rates each.
    for rate_hz in (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000):
        says = f"MP3, {rate_hz:,} Hz, 1 channel"
        table[f"MP3 of {rate_hz} Hz"] = takes(mp3(rate_hz), says, ".mp3")
    return table


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
    "tagged": "[A-Z]\\w+( or MP4)? behind an ID3 tag, which only MP3 may have; remove the tag, or",
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
