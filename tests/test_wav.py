"""What of a WAV file is taken and what is refused, before any network use.

Recordings come from sox where it can make them, and are put together by hand where it cannot.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SCRIPT, Outcome, Run, arguments
from stand_in import StandIn

NEEDED = "16 bit LPCM of 8,000 to 48,000 Hz"
NO_FORMAT = "no audio format that is known"
PCM, FLOAT, A_LAW, EXTENSIBLE = 0x0001, 0x0003, 0x0006, 0xFFFE
UNSET = 0xFFFFFFFF
GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
SAMPLES = bytes(range(256)) * 20

Check = Callable[..., Outcome]


# --- Recordings ----------------------------------------------------------------------


def sox(*words: object, given: bytes | None = None) -> bytes:
    """Run sox and answer its stdout."""
    if not shutil.which("sox"):
        pytest.fail("these tests need sox (Debian: apt-get install sox)")
    command = ["sox", "-V1", *map(str, words)]
    return subprocess.run(command, input=given, stdout=subprocess.PIPE, check=True).stdout


def synthesize(path: Path, *options: object) -> Path:
    """Have sox write a tenth of a second of sound in a format."""
    sox("-n", "-r", 8000, "-c", 1, *options, path, "synth", 0.1, "sine", 300, "gain", -6)
    return path


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
    """Put a `fmt ` chunk together."""
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


DATA = chunk(b"data", SAMPLES)
GOOD = riff(fmt(), DATA)


# --- The program ---------------------------------------------------------------------


@pytest.fixture
def check(upload: Run, service: StandIn, tmp_path: Path) -> Check:
    """Upload bytes, or a file, with metadata that gives no warning."""
    metadata = tmp_path / "fields.json"
    metadata.write_text('{"language": "ru-RU"}')

    def run(audio: bytes | Path, *words: object) -> Outcome:
        path = audio
        if isinstance(path, bytes):
            path = tmp_path / "call.wav"
            path.write_bytes(audio)  # type: ignore[arg-type]
        return upload("--audio-path", path, "--meta-path", metadata, *words)

    return run


def assert_taken(outcome: Outcome, service: StandIn, audio: bytes) -> None:
    """The recording became one talk, byte by byte."""
    assert (outcome.code, outcome.err) == (0, "")
    [talk] = service.talks.values()
    assert outcome.out == f"Dialog ID: {talk.talk_id}\n"
    assert talk.sha256 == hashlib.sha256(audio).hexdigest()


def assert_refused(outcome: Outcome, service: StandIn, *texts: str) -> None:
    """One line names the file and says all that; the service was not spoken to."""
    assert (outcome.code, outcome.out) == (65, "")
    assert re.fullmatch(r"upload_grpc: [^:]*\.\w+: .*\n", outcome.err)
    for text in texts:
        assert text in outcome.err
    assert service.calls == []


def suggested(outcome: Outcome) -> list[str]:
    """Take the sox command out of a line of advice."""
    found = re.search(r"\bsox .*", outcome.err)
    assert found, outcome.err
    return shlex.split(found[0])


def follow_advice(outcome: Outcome, folder: Path) -> Path:
    """Run the sox command that was suggested, and answer the file it made."""
    before = set(folder.iterdir())
    sox(*suggested(outcome)[1:])
    [made] = set(folder.iterdir()) - before
    return made


# --- What is taken -------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ("-b", 16),
        ("-b", 16, "-c", 2),
        ("-b", 16, "-c", 6),  # sox writes WAVE_FORMAT_EXTENSIBLE
        ("-b", 16, "-r", 48_000),
        ("-b", 16, "-t", "wavpcm"),
        ("-b", 16, "--comment", "a LIST chunk"),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_what_sox_writes_is_taken(
    check: Check, service: StandIn, tmp_path: Path, options: tuple[object, ...]
) -> None:
    path = synthesize(tmp_path / "call.wav", *options)
    assert_taken(check(path), service, path.read_bytes())


@pytest.mark.parametrize(
    "audio",
    [
        pytest.param(GOOD, id="the plainest"),
        pytest.param(riff(fmt(extra=bytes(2)), DATA), id="WAVEFORMATEX"),
        pytest.param(riff(extensible(PCM), DATA), id="extensible"),
        pytest.param(riff(fmt(rate_hz=8_000), DATA), id="8,000 Hz"),
        pytest.param(riff(fmt(rate_hz=11_025), DATA), id="11,025 Hz"),
        pytest.param(riff(fmt(rate_hz=48_000), DATA), id="48,000 Hz"),
        pytest.param(riff(fmt(channels=2), DATA), id="two channels"),
        pytest.param(riff(fmt(), chunk(b"data", b"\1\2")), id="one sample"),
        pytest.param(riff(chunk(b"LIST", bytes(9)), fmt(), DATA), id="odd chunk before fmt"),
        pytest.param(riff(fmt(), chunk(b"LIST", bytes(9)), DATA), id="odd chunk before data"),
        pytest.param(riff(chunk(b"bext", bytes(602)), fmt(), DATA), id="bext"),
        pytest.param(riff(fmt(), chunk(b"fact", bytes(4)), DATA), id="fact"),
        pytest.param(riff(chunk(b"JUNK", bytes(28)), fmt(), DATA), id="JUNK"),
        pytest.param(riff(fmt(), DATA, chunk(b"LIST", bytes(9))), id="chunk after data"),
        pytest.param(riff(DATA, fmt()), id="data before fmt"),
        pytest.param(riff(chunk(b"LIST"), fmt(), DATA), id="empty chunk"),
        pytest.param(riff(fmt(), DATA, length=0), id="only the RIFF length unset"),
        pytest.param(GOOD + bytes(4), id="a few bytes after the end"),
        pytest.param(rf64(fmt(), chunk(b"data", SAMPLES, UNSET), data_bytes=5120), id="RF64"),
        pytest.param(rf64(fmt(), DATA, data_bytes=5120), id="RF64 with a 32 bit length"),
    ],
)
def test_lpcm_in_any_order_of_chunks_is_taken(check: Check, service: StandIn, audio: bytes) -> None:
    assert_taken(check(audio), service, audio)


def test_dry_run_describes_a_recording(check: Check, service: StandIn, tmp_path: Path) -> None:
    outcome = check(GOOD, "--dry-run")
    assert (outcome.code, outcome.err) == (0, "")
    described = "WAV, PCM 16 bit, 8,000 Hz, 1 channel, 0.3 s, 5,164 bytes"
    assert outcome.out.startswith(f"{tmp_path / 'call.wav'}: would be sent: {described}")
    assert service.calls == []


@pytest.mark.parametrize("after", [SAMPLES, bytes(100)], ids=["sound", "zeros"])
def test_what_follows_the_end_is_worth_a_warning(
    check: Check, service: StandIn, after: bytes
) -> None:
    """A recorder that is not done yet may have stated what it had at first."""
    outcome = check(GOOD + after)
    [talk] = service.talks.values()
    assert (outcome.code, outcome.out) == (0, f"Dialog ID: {talk.talk_id}\n")
    assert re.fullmatch("upload_grpc: .*call.wav: .*still being recorded.*\n", outcome.err)
    assert talk.size == len(GOOD + after)


def sparse(path: Path, head: bytes, data_bytes: int) -> Path:
    """Write a file whose samples take no room on the disk."""
    path.write_bytes(head)
    os.truncate(path, len(head) + data_bytes)
    return path


HUGE_BYTES = 5_000_000_000


@pytest.mark.parametrize(
    ("head", "data_bytes", "hours"),
    [
        (riff(fmt(), chunk(b"data", length=230_400_000)), 230_400_000, "14,400.0 s"),
        (riff(fmt(PCM, 2, 48_000), chunk(b"data", length=2_200_000_000)), 2_200_000_000, "11,458"),
        (
            rf64(fmt(PCM, 8, 48_000), chunk(b"data", length=UNSET), data_bytes=HUGE_BYTES),
            HUGE_BYTES,
            "6,510",
        ),
        (
            rf64(
                fmt(PCM, 8, 48_000),
                chunk(b"data", length=UNSET),
                data_bytes=HUGE_BYTES,
                form=b"BW64",
            ),
            HUGE_BYTES,
            "6,510",
        ),
    ],
    ids=["exactly 4 hours", "2.2 GB", "RF64 of 5 GB", "BW64 of 5 GB"],
)
def test_only_the_header_of_a_large_file_is_read(
    check: Check, tmp_path: Path, head: bytes, data_bytes: int, hours: str
) -> None:
    path = sparse(tmp_path / "call.wav", head, data_bytes)
    started_s = time.monotonic()
    outcome = check(path, "--dry-run")
    assert time.monotonic() - started_s < 1
    assert (outcome.code, outcome.err) == (0, "")
    assert hours in outcome.out
    assert f"{len(head) + data_bytes:,} bytes" in outcome.out


# --- What is refused, with a line that mends it ---------------------------------------


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("-b", 24), "PCM 24 bit, 8,000 Hz, 1 channel"),
        (("-b", 8), "PCM 8 bit, 8,000 Hz, 1 channel"),
        (("-b", 32), "PCM 32 bit"),
        (("-e", "floating-point", "-b", 32), "floating point 32 bit"),
        (("-e", "a-law"), "A-law 8 bit, 8,000 Hz"),
        (("-e", "u-law", "-c", 2), "mu-law 8 bit, 8,000 Hz, 2 channels"),
        (("-e", "ms-adpcm"), "Microsoft ADPCM"),
        (("-e", "ima-adpcm"), "IMA ADPCM"),
        (("-e", "gsm-full-rate"), "GSM 6.10"),
        (("-b", 16, "-r", 7_999), "PCM 16 bit, 7,999 Hz"),
        (("-b", 16, "-r", 48_001), "PCM 16 bit, 48,001 Hz"),
        (("-b", 24, "-c", 6), "PCM 24 bit"),  # extensible
        (("-b", 8, "-r", 4_000), "PCM 8 bit, 4,000 Hz"),
        (("-e", "floating-point", "-b", 32, "-r", 96_000), "floating point 32 bit, 96,000 Hz"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_another_encoding_or_rate_is_refused_and_the_sox_line_mends_it(
    check: Check, service: StandIn, tmp_path: Path, options: tuple[object, ...], found: str
) -> None:
    folder = tmp_path / "o'clock calls"  # The line is for a shell.
    folder.mkdir()
    outcome = check(synthesize(folder / "call.wav", *options))
    assert_refused(outcome, service, f"call.wav: {found}", NEEDED)

    made = follow_advice(outcome, folder)
    assert_taken(check(made), service, made.read_bytes())


def test_big_endian_wav_is_refused_and_the_sox_line_mends_it(
    check: Check, service: StandIn, tmp_path: Path
) -> None:
    plain = synthesize(tmp_path / "plain.wav", "-b", 16)
    path = tmp_path / "call.wav"
    sox(plain, "-B", path)
    assert path.read_bytes()[:4] == b"RIFX"
    outcome = check(path)
    assert_refused(outcome, service, "big-endian WAV", NEEDED)
    made = follow_advice(outcome, tmp_path)
    assert made.read_bytes()[-1600:] == plain.read_bytes()[-1600:]
    assert_taken(check(made), service, made.read_bytes())


def test_the_line_is_about_this_recording_and_no_other(
    check: Check, service: StandIn, tmp_path: Path
) -> None:
    """For sox such a name stands for all that match; what is there is not to be overwritten."""
    synthesize(tmp_path / "call1.wav", "-e", "a-law", "-r", 8_000)
    taken = synthesize(tmp_path / "call[1]-16bit.wav", "-b", 16)
    before = taken.read_bytes()
    path = tmp_path / "call[1].wav"
    sox("-n", "-r", 8000, "-c", 1, "-e", "a-law", tmp_path / "0.wav", "synth", 0.5, "sine", 300)
    (tmp_path / "0.wav").rename(path)
    made = follow_advice(check(path), tmp_path)
    assert made.stat().st_size == 44 + 8_000
    assert taken.read_bytes() == before


def test_the_line_takes_the_sidecar_along(upload: Run, service: StandIn, tmp_path: Path) -> None:
    path = synthesize(tmp_path / "-call.wav", "-e", "a-law")
    (tmp_path / "-call.json").write_text('{"client_id": "77"}')
    outcome = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments(service, f"--audio-path={path.name}")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert outcome.returncode == 65
    line = outcome.stderr.strip()[outcome.stderr.index("sox ") :]
    subprocess.run(line, shell=True, check=True, cwd=tmp_path)
    assert upload("--audio-path", tmp_path / "-call-16bit.wav").code == 0
    [talk] = service.talks.values()
    assert talk.fields == {"client_id": "77"}


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(fmt(0x0055, bits=0, align=1), id="MP3"),
        pytest.param(fmt(bits=12, align=2), id="12 bit"),
        pytest.param(fmt(bits=20, align=3), id="20 bit"),
        pytest.param(fmt(bits=24, align=4), id="24 bit in 32"),
        pytest.param(
            fmt(EXTENSIBLE, bits=32, extra=struct.pack("<HHIH", 22, 24, 4, PCM) + GUID_TAIL),
            id="24 valid bits of 32",
        ),
    ],
)
def test_what_sox_cannot_read_is_for_ffmpeg(check: Check, service: StandIn, head: bytes) -> None:
    assert_refused(check(riff(head, DATA)), service, f"{NEEDED}, MP3 or OggOpus is needed: ffmpeg ")


def test_what_follows_a_short_format_chunk_is_no_part_of_it(check: Check, service: StandIn) -> None:
    """It has no sample size; PCM 24932 bit, the beginning of "data", was once said of it."""
    short = chunk(b"fmt ", fmt()[8:22])
    assert_refused(check(riff(short, DATA)), service, "call.wav: PCM, 8,000 Hz, 1 channel; ")


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (fmt(A_LAW, bits=8), "A-law 8 bit"),
        (fmt(PCM, bits=24), "PCM 24 bit"),
        (fmt(FLOAT, bits=32), "floating point 32 bit"),
        (fmt(0x0055, bits=0, align=1), "MP3 in a WAV file"),
        (fmt(0x1234), "WAV format 0x1234"),
        (extensible(FLOAT, 32), "floating point 32 bit"),
        (extensible(PCM, 24), "PCM 24 bit"),
        (extensible(PCM, tail=bytes(14)), "WAV format 0xfffe"),
        (fmt(EXTENSIBLE, extra=bytes(2)), "WAV format 0xfffe"),
        (fmt(rate_hz=7_999), "PCM 16 bit, 7,999 Hz"),
        (fmt(rate_hz=48_001), "PCM 16 bit, 48,001 Hz"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_format_is_read_from_the_fmt_chunk(
    check: Check, service: StandIn, head: bytes, found: str
) -> None:
    assert_refused(check(riff(head, DATA)), service, f"call.wav: {found}", NEEDED)


# --- Headers that announce what is not there ------------------------------------------


@pytest.mark.parametrize(
    ("code", "length"),
    [
        pytest.param(A_LAW, 0, id="A-law, 0"),
        pytest.param(A_LAW, 9_999, id="A-law, truncated"),
        pytest.param(PCM, 9_999, id="PCM, estimated before it was written"),
    ],
)
def test_the_sox_line_loses_nothing_of_what_the_header_does_not_count(
    check: Check, service: StandIn, tmp_path: Path, code: int, length: int
) -> None:
    bits = 8 if code == A_LAW else 16
    audio = riff(fmt(code, bits=bits), chunk(b"data", SAMPLES, length))
    outcome = check(audio)
    assert_refused(outcome, service, "if it has: sox -R --ignore-length")
    made = follow_advice(outcome, tmp_path)
    assert made.stat().st_size == 44 + len(SAMPLES) * 16 // bits
    assert check(made, "--dry-run").code == 0


@pytest.mark.parametrize(
    "audio",
    [
        pytest.param(lambda: riff(fmt(), chunk(b"data", SAMPLES, 0)), id="0, RIFF right"),
        pytest.param(lambda: riff(fmt(), chunk(b"data", SAMPLES, 0x8000_0000)), id="arecord"),
        pytest.param(lambda: riff(fmt(), chunk(b"data", SAMPLES, 0xFFFF_FFDB)), id="0xFFFFFFDB"),
        pytest.param(lambda: riff(fmt(), chunk(b"data", SAMPLES, 0), length=36), id="0"),
        pytest.param(lambda: riff(fmt(), chunk(b"data", SAMPLES, 0), length=0), id="0, RIFF 0"),
        pytest.param(
            lambda: riff(fmt(), chunk(b"data", SAMPLES, UNSET), length=UNSET), id="0xFFFFFFFF"
        ),
        pytest.param(
            lambda: riff(fmt(), chunk(b"LIST", bytes(9)), chunk(b"data", SAMPLES, UNSET)),
            id="0xFFFFFFFF after LIST",
        ),
        pytest.param(
            lambda: sox(
                *("-t", "raw", "-r", 8000, "-e", "signed-integer", "-b", 16, "-c", 1, "-"),
                *("-t", "wav", "-"),
                given=SAMPLES,
            ),
            id="sox",
        ),
    ],
)
def test_a_header_without_the_length_is_explained_and_the_sox_line_mends_it(
    check: Check, service: StandIn, tmp_path: Path, audio: Callable[[], bytes]
) -> None:
    outcome = check(audio())
    assert_refused(outcome, service, "header", "pipe", "sox -R --ignore-length")
    made = follow_advice(outcome, tmp_path)
    assert made.read_bytes().endswith(SAMPLES)
    assert_taken(check(made), service, made.read_bytes())


@pytest.mark.parametrize(
    "audio",
    [
        pytest.param(rf64(fmt(), chunk(b"data", SAMPLES, UNSET), data_bytes=0), id="ds64 of 0"),
        pytest.param(
            riff(fmt(), chunk(b"data", SAMPLES, UNSET), form=b"RF64"), id="RF64 without ds64"
        ),
    ],
)
def test_an_rf64_header_without_the_length_is_explained(
    check: Check, service: StandIn, audio: bytes
) -> None:
    assert_refused(check(audio), service, "pipe")


@pytest.mark.parametrize(
    ("audio", "announced", "there"),
    [
        (GOOD[:-1], "5,120", "5,119"),
        (GOOD[:3000], "5,120", "2,956"),
        (GOOD[:44], "5,120", "0"),
        (rf64(fmt(), chunk(b"data", SAMPLES, UNSET), data_bytes=9_000_000_000), "9,000", "5,120"),
    ],
    ids=["one byte short", "cut", "nothing after the header", "RF64"],
)
def test_a_recording_shorter_than_its_header_says_is_truncated_or_still_open(
    check: Check, service: StandIn, audio: bytes, announced: str, there: str
) -> None:
    outcome = check(audio)
    assert_refused(outcome, service, "truncated or still being recorded", announced, f" {there} ")
    assert "when the recorder has closed it; if it has: sox -R --ignore-length" in outcome.err


@pytest.mark.parametrize("size", [1, 3, 4, 11, 12, 16, 19, 20, 30, 35, 36, 39, 40, 43])
def test_a_file_cut_inside_its_header_is_damaged(check: Check, service: StandIn, size: int) -> None:
    outcome = check(GOOD[:size])
    assert_refused(outcome, service)
    assert re.search(f"{NO_FORMAT}|damaged|truncated", outcome.err)


@pytest.mark.parametrize(
    ("audio", "found"),
    [
        pytest.param(b"", "empty file", id="an empty file"),
        pytest.param(riff(fmt(), chunk(b"data")), "not one sample", id="no samples"),
        pytest.param(
            riff(fmt(), chunk(b"data"), chunk(b"LIST", bytes(100))),
            "not one sample",
            id="no samples, a chunk after them",
        ),
        pytest.param(
            riff(fmt(channels=2), chunk(b"data", bytes(2))), "not one sample", id="half a sample"
        ),
        pytest.param(riff(fmt()), "no data chunk", id="no data chunk"),
        pytest.param(riff(DATA), "no format chunk", id="no fmt chunk"),
        pytest.param(riff(), "no format chunk", id="no chunk"),
        pytest.param(riff(fmt(channels=0, align=2), DATA), "damaged", id="no channels"),
        pytest.param(riff(fmt(align=3), DATA), "damaged", id="3 bytes for 16 bits"),
        pytest.param(riff(fmt(align=0), DATA), "damaged", id="0 bytes for 16 bits"),
        pytest.param(riff(fmt(rate_hz=0), DATA), "damaged", id="0 Hz"),
        pytest.param(b"RIFF\x10\0\0\0AVI LIST" + bytes(99), NO_FORMAT, id="AVI"),
        pytest.param(b"not audio at all\n" * 99, NO_FORMAT, id="text"),
        pytest.param(bytes(range(255, -1, -1)) * 99, NO_FORMAT, id="noise"),
        pytest.param(b"RIFF\0\0\0\0WAVE" + bytes(9999), "damaged", id="nothing but zeros"),
        pytest.param(b"RIFF\0\0\0\0WAVE" + b"\xff" * 9999, "damaged", id="nothing but ones"),
    ],
)
def test_what_is_no_recording_is_refused(
    check: Check, service: StandIn, audio: bytes, found: str
) -> None:
    assert_refused(check(audio), service, found)


def test_a_large_file_of_zeros_is_refused_at_once(
    check: Check, service: StandIn, tmp_path: Path
) -> None:
    started_s = time.monotonic()
    outcome = check(sparse(tmp_path / "call.wav", b"RIFF\0\0\0\0WAVE", 2_200_000_000))
    assert time.monotonic() - started_s < 1
    assert_refused(outcome, service, "damaged")


def test_over_four_hours_is_refused_and_the_sox_line_cuts_it(
    check: Check, service: StandIn, tmp_path: Path
) -> None:
    data_bytes = 2 * 8_000 * 14_400 + 2
    head = riff(fmt(), chunk(b"data", length=data_bytes))
    path = sparse(tmp_path / "call.wav", head, data_bytes)
    outcome = check(path)
    assert_refused(outcome, service, "4.00 hours", "cut it: sox")

    # Cutting 230 MB takes long; the same line does the same to minutes.
    words = [word.replace("14400", "0.1") for word in suggested(outcome)]
    assert words != suggested(outcome)
    synthesize(path, "-b", 16)
    sox(path, tmp_path / "long.wav", "repeat", 1)
    os.replace(tmp_path / "long.wav", path)
    sox(*words[1:])
    parts = sorted(tmp_path.glob("call-part*.wav"))
    assert b"".join(part.read_bytes()[44:] for part in parts) == path.read_bytes()[44:]
    for part in parts:
        assert check(part, "--dry-run").code == 0
