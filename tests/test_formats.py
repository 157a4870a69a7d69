"""Which audio is taken, as what it is announced, and what is refused by name.

Recordings come from real encoders, and are put together by hand where no encoder makes them.
WAV has tests of its own.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shlex
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import encoders
import pytest
from conftest import Outcome, Run
from encoders import id3v2, made, mp3, ogg_opus, pcm, wav
from google.protobuf import json_format
from stand_in import StandIn

SINGLE, STREAM = "--single-message", "stream"
WAV_TYPE, OPUS_TYPE, MP3_TYPE = (
    {"container_audio": {"container_audio_type": f"CONTAINER_AUDIO_TYPE_{name}"}}
    for name in ("WAV", "OGG_OPUS", "MP3")
)
NEEDED = "WAV with 16 bit LPCM of 8,000 to 48,000 Hz, MP3 or OggOpus is needed"

Audio = Callable[[], bytes]
Check = Callable[..., Outcome]


@pytest.fixture
def check(upload: Run, tmp_path: Path) -> Check:
    """Upload a file of that name, made of these bytes, with metadata that gives no warning."""
    metadata = tmp_path / "fields.json"
    metadata.write_text('{"language": "ru-RU"}')

    def run(name: str, audio: bytes | None, *words: object) -> Outcome:
        path = tmp_path / name
        if audio is not None:
            path.write_bytes(audio)
        return upload("--audio-path", path, "--meta-path", metadata, *words)

    return run


def assert_taken(
    outcome: Outcome, service: StandIn, audio: bytes, announced: Mapping[str, object]
) -> None:
    """The recording became one talk, announced as that, byte by byte."""
    assert (outcome.code, outcome.err) == (0, "")
    [talk] = service.talks.values()
    assert outcome.out == f"Dialog ID: {talk.talk_id}\n"
    assert (talk.size, talk.sha256) == (len(audio), hashlib.sha256(audio).hexdigest())
    received = json_format.MessageToDict(talk.audio_format, preserving_proto_field_name=True)
    assert received == announced


def assert_refused(outcome: Outcome, service: StandIn, *texts: str) -> None:
    """One line names the file and says all that; the service was not spoken to."""
    assert (outcome.code, outcome.out) == (65, "")
    assert re.fullmatch(r"upload_grpc: /[^:]*: .*\n", outcome.err)
    for text in texts:
        assert text in outcome.err
    assert service.calls == []


def described(outcome: Outcome) -> str:
    """Take what a dry run says of the audio: format, rate, channels, length."""
    assert outcome.code == 0, outcome.err
    found = re.search(r": would be sent: (.*?), [0-9,]+ bytes as a stream", outcome.out)
    assert found, outcome.out
    return found[1]


def follow_advice(outcome: Outcome, tool: str, folder: Path) -> Path:
    """Run the command that was suggested, as a shell would; answer the file it made."""
    found = re.search(rf"\b{tool} .*", outcome.err)
    assert found, outcome.err
    before = set(folder.iterdir())
    encoders.run(*shlex.split(found[0]))
    [new] = set(folder.iterdir()) - before
    return new


# --- MP3, OggOpus and raw PCM are taken as they are ---------------------------------------------

STEREO = {"rate_hz": 44_100, "channels": 2}


def tagged(*sizes: int, footer: bool = False) -> Audio:
    return lambda: b"".join(id3v2(size, footer=footer) for size in sizes) + mp3("-V", 4)


MP3S = [
    # MPEG-1, MPEG-2 and MPEG-2.5 have three sample rates each.
    *(
        pytest.param(lambda hz=hz: mp3(rate_hz=hz), f"MP3, {hz:,} Hz, 1 channel", id=f"{hz} Hz")
        for hz in (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
    ),
    pytest.param(lambda: mp3("-b", 128, **STEREO), "MP3, 44,100 Hz, 2 channels, 1.0 s", id="CBR"),
    pytest.param(lambda: mp3("-V", 2, **STEREO), "MP3, 44,100 Hz, 2 channels, 1.0 s", id="VBR"),
    pytest.param(
        lambda: mp3("--abr", 96, "--resample", 44.1, **STEREO),
        "MP3, 44,100 Hz, 2 channels, 1.0 s",
        id="ABR",
    ),
    pytest.param(lambda: mp3("-m", "j", **STEREO), "MP3, 44,100 Hz, 2 channels", id="joint stereo"),
    pytest.param(lambda: mp3("-p"), "MP3, 8,000 Hz, 1 channel", id="with CRCs"),
    pytest.param(lambda: mp3("-t"), "MP3, 8,000 Hz, 1 channel", id="no counting frame"),
    pytest.param(
        lambda: mp3("--add-id3v2", "--tt", "Звонок"), "MP3, 8,000 Hz, 1 channel", id="ID3v2"
    ),
    pytest.param(
        lambda: mp3("--id3v1-only", "--tt", "Call"), "MP3, 8,000 Hz, 1 channel", id="ID3v1"
    ),
    pytest.param(tagged(1_000_000), "MP3, 8,000 Hz, 1 channel", id="ID3v2 of 1 MB"),
    pytest.param(tagged(1000, 70_000), "MP3, 8,000 Hz, 1 channel", id="two ID3v2 tags"),
    pytest.param(
        tagged(1000, 70_000, footer=True), "MP3, 8,000 Hz, 1 channel", id="ID3v2 with footers"
    ),
    pytest.param(
        lambda: id3v2(0) + bytes(3000) + mp3(), "MP3, 8,000 Hz, 1 channel", id="padding after ID3v2"
    ),
    pytest.param(
        lambda: made("ffmpeg", ".mp3"), "MP3, 8,000 Hz, 1 channel", id="written by FFmpeg"
    ),
    pytest.param(
        lambda: encoders.run("lame", "--quiet", "-", "-", given=wav()),
        "MP3, 8,000 Hz, 1 channel",
        id="out of a pipe",
    ),
    pytest.param(lambda: mp3("-b", 320, rate_hz=48_000), "MP3, 48,000 Hz", id="320 kbit/s"),
]


@pytest.mark.parametrize("way", [STREAM, SINGLE])
@pytest.mark.parametrize(("audio", "description"), MP3S)
def test_mp3_is_taken(
    check: Check, service: StandIn, audio: Audio, description: str, way: str
) -> None:
    words = () if way == STREAM else (way,)
    assert_taken(check("call.mp3", audio(), *words), service, audio(), MP3_TYPE)
    assert described(check("call.mp3", None, "--dry-run")).startswith(description)


OPUSES = [
    pytest.param(ogg_opus, "OggOpus, 48,000 Hz, 1 channel, 1.0 s", id="mono"),
    pytest.param(
        lambda: ogg_opus(channels=2), "OggOpus, 48,000 Hz, 2 channels, 1.0 s", id="stereo"
    ),
    pytest.param(
        lambda: made("opusenc", ".opus"), "OggOpus, 48,000 Hz, 1 channel, 1.0 s", id="from 8,000 Hz"
    ),
    pytest.param(
        lambda: ogg_opus("--bitrate", 200, channels=2, seconds=12),
        "OggOpus, 48,000 Hz, 2 channels, 12.0 s",
        id="many pages",
    ),
    pytest.param(
        lambda: ogg_opus("--comp", 0, "--speech", "--bitrate", 6, seconds=60),
        "OggOpus, 48,000 Hz, 1 channel, 60.0 s",
        id="a minute of speech",
    ),
    pytest.param(
        lambda: ogg_opus("--comment", f"note={'long ' * 20_000}"),
        "OggOpus, 48,000 Hz, 1 channel, 1.0 s",
        id="headers of 100 KB",
    ),
    pytest.param(
        lambda: made("ffmpeg", ".ogg", ("-c:a", "libopus"), wav(48_000)),
        "OggOpus, 48,000 Hz, 1 channel, 1.0 s",
        id="written by FFmpeg",
    ),
]


@pytest.mark.parametrize("way", [STREAM, SINGLE])
@pytest.mark.parametrize(("audio", "description"), OPUSES)
def test_ogg_opus_is_taken(
    check: Check, service: StandIn, audio: Audio, description: str, way: str
) -> None:
    words = () if way == STREAM else (way,)
    assert_taken(check("call.opus", audio(), *words), service, audio(), OPUS_TYPE)
    assert described(check("call.opus", None, "--dry-run")) == description


@pytest.mark.parametrize("way", [STREAM, SINGLE])
@pytest.mark.parametrize(("rate_hz", "channels"), [(8_000, 1), (16_000, 2), (48_000, 1)])
def test_raw_pcm_is_taken_as_the_command_line_describes_it(
    check: Check, service: StandIn, rate_hz: int, channels: int, way: str
) -> None:
    audio = pcm(channels, rate_hz)
    words = ["--audio-type", "pcm", "--sample-rate", rate_hz, "--channels", channels]
    words += [way] if way == SINGLE else []
    raw = {
        "audio_encoding": "AUDIO_ENCODING_LINEAR16_PCM",
        "sample_rate_hertz": str(rate_hz),  # 64 bits: text in JSON.
        "audio_channel_count": str(channels),
    }
    assert_taken(check("call.pcm", audio, *words), service, audio, {"raw_audio": raw})


def test_a_dry_run_describes_raw_pcm(check: Check) -> None:
    outcome = check("call.pcm", pcm(2), "--dry-run", *PCM_WORDS[:4], "--channels", 2)
    assert described(outcome) == "raw PCM, 8,000 Hz, 2 channels, 1.0 s"


PCM_WORDS = ("--audio-type", "pcm", "--sample-rate", 8_000, "--channels", 1)


# --- The content tells the format, not the name -------------------------------------------------


@pytest.mark.parametrize(
    ("name", "audio", "announced", "found"),
    [
        ("call.wav", mp3, MP3_TYPE, "named .wav, but uploaded as what it is: MP3, 8,000 Hz"),
        ("call.wav", ogg_opus, OPUS_TYPE, "named .wav, but uploaded as what it is: OggOpus"),
        ("call.mp3", wav, WAV_TYPE, "named .mp3, but uploaded as what it is: WAV"),
        ("call.MP3", wav, WAV_TYPE, "named .mp3, but uploaded as what it is: WAV"),
        ("call.ogg", mp3, MP3_TYPE, "named .ogg, but uploaded as what it is: MP3"),
        ("call.opus", wav, WAV_TYPE, "named .opus, but uploaded as what it is: WAV"),
    ],
)
def test_a_name_that_says_something_else_is_a_warning(
    check: Check, service: StandIn, name: str, audio: Audio, announced: object, found: str
) -> None:
    outcome = check(name, audio())
    [talk] = service.talks.values()
    received = json_format.MessageToDict(talk.audio_format, preserving_proto_field_name=True)
    assert received == announced
    assert (outcome.code, outcome.out) == (0, f"Dialog ID: {talk.talk_id}\n")
    assert re.fullmatch(rf"upload_grpc: /\S+/{name}: {re.escape(found)}.*\n", outcome.err)


@pytest.mark.parametrize(
    ("name", "audio"),
    [
        ("call.WAV", wav),
        ("call.Mp3", mp3),
        ("call.OPUS", ogg_opus),
        ("call.ogg", ogg_opus),
        ("call", mp3),
        ("call.2026-03-17", ogg_opus),
        ("call.bin", wav),
    ],
)
def test_a_name_that_says_nothing_else_is_none(check: Check, name: str, audio: Audio) -> None:
    outcome = check(name, audio())
    assert (outcome.code, outcome.err) == (0, "")


CONTENTS: dict[str, Audio] = {"wav": wav, "mp3": mp3, "ogg-opus": ogg_opus}
SHOWN = {"wav": "WAV", "mp3": "MP3", "ogg-opus": "OggOpus"}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("audio_type", [*CONTENTS, "auto"])
def test_an_audio_type_must_be_the_contents(
    check: Check, service: StandIn, audio_type: str, content: str
) -> None:
    outcome = check("call", CONTENTS[content](), "--audio-type", audio_type)
    if audio_type in (content, "auto"):
        assert (outcome.code, len(service.talks)) == (0, 1)
    else:
        text = f"this is {SHOWN[content]}; leave out --audio-type {audio_type}"
        assert_refused(outcome, service, text)


# --- What else there is, is refused by name, with a line that makes it fit ----------------------


@pytest.mark.parametrize(
    ("audio", "suffix", "found", "tool"),
    [
        pytest.param(lambda: made("flac", ".flac"), ".flac", "FLAC", "ffmpeg", id="FLAC"),
        pytest.param(
            lambda: made("oggenc", ".ogg"), ".ogg", "Ogg Vorbis", "ffmpeg", id="OggVorbis"
        ),
        pytest.param(lambda: made("sox", ".aiff"), ".aiff", "AIFF", "ffmpeg", id="AIFF"),
        pytest.param(lambda: made("sox", ".au"), ".au", "Sun audio", "ffmpeg", id="AU"),
        pytest.param(
            lambda: made("sox", ".wav", ("-B",)), ".wav", "big-endian WAV", "sox", id="RIFX"
        ),
        pytest.param(
            lambda: made("flac", ".oga", ("--ogg",)), ".ogg", "FLAC in Ogg", "ffmpeg", id="OggFLAC"
        ),
        pytest.param(
            lambda: made("speexenc", ".spx"), ".ogg", "Speex in Ogg", "ffmpeg", id="Speex"
        ),
        pytest.param(lambda: made("ffmpeg", ".m4a"), ".m4a", "M4A", "ffmpeg", id="AAC in M4A"),
        pytest.param(
            lambda: made("ffmpeg", ".3gp", ("-c:a", "aac")), ".3gp", "MP4", "ffmpeg", id="3GP"
        ),
        pytest.param(lambda: made("ffmpeg", ".aac"), ".aac", "AAC", "ffmpeg", id="AAC alone"),
        pytest.param(
            lambda: made("sox", ".amr", ("-t", "amr-nb")), ".amr", "AMR", "ffmpeg", id="AMR"
        ),
        pytest.param(lambda: made("ffmpeg", ".wma"), ".wma", "WMA", "ffmpeg", id="WMA"),
        pytest.param(
            lambda: made("ffmpeg", ".webm"), ".webm", "WebM or Matroska", "ffmpeg", id="WebM"
        ),
        pytest.param(
            lambda: made("ffmpeg", ".mka"), ".mka", "WebM or Matroska", "ffmpeg", id="Matroska"
        ),
        pytest.param(lambda: made("ffmpeg", ".caf"), ".caf", "Core Audio", "ffmpeg", id="CAF"),
        pytest.param(lambda: made("ffmpeg", ".w64"), ".w64", "Wave64", "ffmpeg", id="Wave64"),
        pytest.param(
            lambda: made("ffmpeg", ".mp2"), ".mp3", "MPEG audio, layer II", "ffmpeg", id="MP2"
        ),
    ],
)
def test_another_format_is_refused_by_name_and_the_line_converts_it(
    check: Check,
    service: StandIn,
    tmp_path: Path,
    audio: Audio,
    suffix: str,
    found: str,
    tool: str,
) -> None:
    folder = tmp_path / "o'clock calls"  # The line is for a shell.
    folder.mkdir()
    outcome = check(f"{folder.name}/call{suffix}", audio())
    assert_refused(outcome, service, f"call{suffix}: ", found, f"{NEEDED}: {tool} ")

    new = follow_advice(outcome, tool, folder)
    outcome = check(f"{folder.name}/{new.name}", None)
    assert_taken(outcome, service, new.read_bytes(), WAV_TYPE)


@pytest.mark.parametrize("suffix", [".m4a", ".flac"])
def test_the_line_is_good_for_a_name_with_a_time_in_it(
    upload: Run,
    service: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
) -> None:
    """FFmpeg takes what is before a colon for a protocol."""
    monkeypatch.chdir(tmp_path)
    name = f"2026-03-17T10:30 100%{suffix}"
    Path(name).write_bytes(made("ffmpeg" if suffix == ".m4a" else "flac", suffix))
    outcome = upload("--audio-path", name)
    assert (outcome.code, service.calls) == (65, [])
    new = follow_advice(outcome, "ffmpeg", tmp_path)
    assert upload("--audio-path", new.name).code == 0


def noise(size_bytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


@pytest.mark.parametrize(
    ("audio", "found"),
    [
        pytest.param(lambda: b"", "an empty file", id="empty"),
        pytest.param(lambda: noise(100_000), "no audio format that is known", id="random"),
        pytest.param(lambda: b"\xff" * 100_000, "no audio format that is known", id="all ones"),
        pytest.param(lambda: bytes(100_000), "no audio format that is known", id="all zeros"),
        pytest.param(lambda: b"\xff\xfb\x90", "no audio format", id="less than an MP3 header"),
        pytest.param(lambda: mp3("-t")[:4] + bytes(9999), "no audio format", id="one MP3 header"),
        pytest.param(lambda: id3v2(100), "no audio format", id="ID3v2 alone"),
        pytest.param(lambda: b"ID3\4\0\0\x7f\x7f\x7f\x7f", "no audio format", id="ID3v2 cut"),
        pytest.param(lambda: b"ID3\4\0\0\0\0\0\0" * 9_999, "no audio format", id="ID3v2s alone"),
        pytest.param(lambda: ogg_opus()[:30], "no audio format", id="OggOpus cut in its head"),
        pytest.param(lambda: b"OggS" + bytes(60), "no audio format", id="an Ogg page of nothing"),
        pytest.param(lambda: b"<html>404</html>" * 99, "no audio format", id="HTML"),
        pytest.param(lambda: pcm()[:1600], "no audio format that is known", id="raw PCM"),
    ],
)
def test_what_is_no_recording_is_refused(
    check: Check, service: StandIn, audio: Audio, found: str
) -> None:
    assert_refused(check("call.mp3", audio()), service, found)


@pytest.mark.parametrize("name", ["call.pcm", "call.RAW"])
def test_the_name_of_raw_pcm_tells_how_to_send_it(
    check: Check, service: StandIn, name: str
) -> None:
    assert_refused(check(name, pcm()), service, "for raw PCM: --audio-type pcm")


@pytest.mark.parametrize(
    "audio",
    [
        pytest.param(lambda: noise(70_000, 12), id="noise"),
        pytest.param(lambda: bytes(5000) + mp3("-t")[:4], id="a frame's header at the end"),
        pytest.param(lambda: bytes(100) + mp3("-t")[:4] + bytes(500), id="one frame's header"),
        pytest.param(lambda: made("flac", ".flac"), id="FLAC"),
        pytest.param(lambda: made("ffmpeg", ".aac"), id="AAC"),
    ],
)
def test_a_tag_does_not_make_something_an_mp3(check: Check, service: StandIn, audio: Audio) -> None:
    """Four bytes that could begin a frame are soon found; two frames in a row are not."""
    assert_refused(check("call.mp3", id3v2(0) + audio()), service)


def test_tags_without_end_are_not_looked_through(check: Check, service: StandIn) -> None:
    started_s = time.monotonic()
    assert_refused(check("call.mp3", b"ID3\4\0\0\0\0\0\0" * 2_000_000), service)
    assert time.monotonic() - started_s < 1


# --- Recordings that end early ------------------------------------------------------------------


def test_mp3_shorter_than_it_says_is_taken_with_a_warning(check: Check, service: StandIn) -> None:
    whole = mp3("-V", 4, seconds=5)
    outcome = check("call.mp3", whole[: len(whole) // 2])
    assert outcome.code == 0
    assert re.fullmatch(
        r"upload_grpc: /\S+/call.mp3: .*(cut|still being recorded).*\n", outcome.err
    )
    assert len(service.talks) == 1


def test_the_length_of_a_cut_mp3_is_not_that_of_the_whole(check: Check) -> None:
    whole = mp3("-V", 4, seconds=40)
    outcome = check("call.mp3", whole[: len(whole) // 4], "--dry-run")
    assert re.fullmatch(r"MP3, 8,000 Hz, 1 channel, (9\.\d|1[01]\.\d) s", described(outcome))


@pytest.mark.parametrize(
    "front",
    [
        pytest.param(lambda: bytes(3_000), id="zeros"),
        pytest.param(lambda: b"APETAGEX" + bytes(500), id="APEv2"),
        pytest.param(lambda: b"\r\n", id="a line break"),
        pytest.param(lambda: mp3("-t")[100:400], id="the middle of a frame"),
    ],
)
def test_mp3_behind_something_else_is_taken_where_mp3_is_promised(
    check: Check, service: StandIn, front: Audio
) -> None:
    audio = front() + mp3("-t")
    assert_taken(check("call.mp3", audio), service, audio, MP3_TYPE)
    assert check("call", audio, "--audio-type", "mp3").code == 0
    assert "no audio format that is known" in check("call", audio).err


@pytest.mark.parametrize("size_bytes", [4, 30, 71])
def test_less_than_a_frame_is_no_mp3(check: Check, service: StandIn, size_bytes: int) -> None:
    assert_refused(check("call.mp3", mp3("-t")[:size_bytes]), service, "no audio format")


@pytest.mark.parametrize("behind", [b"TAG" + bytes(125), bytes(1000)], ids=["ID3v1", "zeros"])
def test_mp3_with_something_behind_it_is_whole(check: Check, behind: bytes) -> None:
    assert check("call.mp3", mp3("-V", 4) + behind).err == ""


@pytest.mark.parametrize(
    "audio",
    [
        pytest.param(lambda: mp3_of(0), id="no frames"),
        pytest.param(lambda: mp3_of(400_001, flags=0), id="nothing"),
        pytest.param(lambda: mp3_of(400_001, flags=2), id="only bytes"),
    ],
)
def test_mp3_that_counts_no_frames_says_nothing_of_its_length(check: Check, audio: Audio) -> None:
    """As an encoder leaves it that cannot go back to its first frame."""
    assert described(check("call.mp3", audio(), "--dry-run")) == "MP3, 16,000 Hz, 1 channel"


def last_page(audio: bytes) -> int:
    return audio.rindex(b"OggS")


@pytest.mark.parametrize("pages", [1, 2])
def test_opus_headers_without_audio_are_refused(check: Check, service: StandIn, pages: int) -> None:
    audio = ogg_opus()
    end = 0
    for _ in range(pages):
        end = audio.index(b"OggS", end + 4)
    assert_refused(check("call.opus", audio[:end]), service, "no audio in it, only Ogg headers")


@pytest.mark.parametrize("past", [0, 4, 5, 6, 10, 13, 14, 26, 27, 28, 100])
def test_cut_opus_is_taken_with_a_warning_wherever_it_ends(
    check: Check, service: StandIn, past: int
) -> None:
    """It can be played as far as it goes; nothing says how long it was to be."""
    whole = ogg_opus(seconds=11.5)
    assert len(whole) > last_page(whole) + past
    outcome = check("call.opus", whole[: last_page(whole) + past])
    assert outcome.code == 0, outcome.err
    assert re.search("cut|truncated|still being recorded", outcome.err)
    assert len(service.talks) == 1


def test_a_page_on_which_no_packet_ends_says_nothing_of_the_length(check: Check) -> None:
    audio = bytearray(ogg_opus(seconds=11.5))
    position = last_page(bytes(audio)) + 6
    audio[position : position + 8] = b"\xff" * 8
    assert re.fullmatch(
        r"OggOpus, .*, 1[01]\.0 s", described(check("call.opus", bytes(audio), "--dry-run"))
    )


def shifted(audio: bytes, samples: int) -> bytes:
    """Have the positions of an OggOpus file's audio begin at so many samples."""
    moved = bytearray(audio)
    for match in re.finditer(b"OggS\0", audio):
        (position,) = struct.unpack_from("<q", audio, match.start() + 6)
        if position > 0:
            struct.pack_into("<q", moved, match.start() + 6, position + samples)
    return bytes(moved)


def test_a_part_of_a_long_opus_recording_is_as_long_as_it_is(check: Check) -> None:
    """A recorder that begins a new file each hour may go on counting."""
    audio = shifted(ogg_opus(seconds=11.5), 5 * 3600 * 48_000)
    outcome = check("call.opus", audio, "--dry-run")
    assert re.fullmatch(r"OggOpus, .*, 1[01]\.\d s", described(outcome))


def test_opus_that_ends_before_it_begins_tells_no_length(check: Check) -> None:
    audio = bytearray(ogg_opus(seconds=11.5))
    first = [match.start() for match in re.finditer(b"OggS\0", audio)][2]  # After the headers.
    struct.pack_into("<q", audio, first + 6, 2**50)
    assert described(check("call.opus", bytes(audio), "--dry-run")) == (
        "OggOpus, 48,000 Hz, 1 channel"
    )


def test_of_opus_streams_in_a_row_no_length_is_told(check: Check) -> None:
    audio = ogg_opus(seconds=2) + ogg_opus("--serial", 7)
    assert described(check("call.opus", audio, "--dry-run")) == "OggOpus, 48,000 Hz, 1 channel"


def test_opus_without_a_channel_is_damaged(check: Check, service: StandIn) -> None:
    audio = ogg_opus()
    assert_refused(
        check("call.opus", audio[:37] + b"\0" + audio[38:]), service, "damaged", "channels"
    )


def test_opus_with_something_behind_it_is_taken(check: Check, service: StandIn) -> None:
    audio = ogg_opus() + bytes(200_000)
    outcome = check("call.opus", audio)
    assert outcome.code == 0
    assert len(service.talks) == 1


# --- Raw PCM ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("--audio-type", "pcm"),
        ("--audio-type", "pcm", "--sample-rate", 8_000),
        ("--audio-type", "pcm", "--channels", 1),
        ("--audio-type", "pcm", "--sample-rate", 0, "--channels", 1),
        ("--audio-type", "pcm", "--sample-rate", 7_999, "--channels", 1),
        ("--audio-type", "pcm", "--sample-rate", 48_001, "--channels", 1),
        ("--audio-type", "pcm", "--sample-rate", 8_000, "--channels", 0),
        ("--audio-type", "pcm", "--sample-rate", "8k", "--channels", 1),
        ("--sample-rate", 8_000, "--channels", 1),
        ("--sample-rate", 8_000),
        ("--channels", 1),
        ("--audio-type", "wav", "--sample-rate", 8_000),
        ("--audio-type", "flac"),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_raw_pcm_and_nothing_else_needs_rate_and_channels(
    check: Check, service: StandIn, words: tuple[object, ...]
) -> None:
    outcome = check("call.pcm", pcm(), *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert re.search("--sample-rate|--channels|--audio-type", outcome.err.splitlines()[-1])
    assert service.calls == []


@pytest.mark.parametrize(
    ("size_bytes", "channels", "found"),
    [
        (1, 1, "1 bytes are no whole number of frames of 2 bytes"),
        (15_999, 1, "15,999 bytes are no whole number of frames of 2 bytes"),
        (16_002, 2, "16,002 bytes are no whole number of frames of 4 bytes"),
        (16_000, 3, "16,000 bytes are no whole number of frames of 6 bytes"),
        (0, 1, "empty"),
    ],
)
def test_raw_pcm_is_a_whole_number_of_frames(
    check: Check, service: StandIn, size_bytes: int, channels: int, found: str
) -> None:
    audio = bytes(size_bytes)
    outcome = check("call.pcm", audio, *PCM_WORDS[:4], "--channels", channels)
    assert_refused(outcome, service, found)


@pytest.mark.parametrize(
    "audio",
    [
        pytest.param(wav, id="WAV"),
        pytest.param(ogg_opus, id="OggOpus"),
        pytest.param(lambda: made("flac", ".flac"), id="FLAC"),
        pytest.param(lambda: made("oggenc", ".ogg"), id="OggVorbis"),
        pytest.param(lambda: made("ffmpeg", ".m4a"), id="M4A"),
    ],
)
def test_a_container_is_not_taken_for_samples(check: Check, service: StandIn, audio: Audio) -> None:
    even = audio() + bytes(len(audio()) % 2)
    assert_refused(check("call.pcm", even, *PCM_WORDS), service, "--audio-type pcm")


# --- Four hours -----------------------------------------------------------------------------------

LIMIT_S = 4 * 60 * 60


def mp3_of(frames: int, flags: int = 0x0F) -> bytes:
    """Let the first frame of an MP3 file announce so many frames of 576 samples at 16 kHz."""
    audio = mp3("-V", 4, rate_hz=16_000)
    at = audio.index(b"Xing") + 4
    assert audio[at + 3] == 0x0F  # It counts frames and bytes.
    return audio[:at] + struct.pack(">II", flags, frames) + audio[at + 8 :]


def opus_of(samples: int) -> bytes:
    """Let the last page of an OggOpus file end at so many samples of 48 kHz, heard or skipped."""
    audio = ogg_opus(seconds=3)
    position = last_page(audio) + 6
    return audio[:position] + struct.pack("<q", samples) + audio[position + 8 :]


OPUS_LIMIT = LIMIT_S * 48_000 + 312  # As many as opusenc has a player skip.


@pytest.mark.parametrize(
    ("name", "audio"),
    [
        pytest.param("call.mp3", lambda: mp3_of(400_000), id="MP3"),
        pytest.param("call.opus", lambda: opus_of(OPUS_LIMIT), id="OggOpus"),
    ],
)
def test_four_hours_are_taken(check: Check, name: str, audio: Audio) -> None:
    assert described(check(name, audio(), "--dry-run")).endswith(", 14,400.0 s")


@pytest.mark.parametrize(
    ("name", "audio", "real", "hours"),
    [
        pytest.param("call.mp3", lambda: mp3_of(400_001), mp3, "4.00", id="MP3"),
        pytest.param("call 100%.mp3", lambda: mp3_of(400_001), mp3, "4.00", id="a percent sign"),
        pytest.param("call.mp3", lambda: mp3_of(2_000_000), mp3, "20.00", id="MP3 of 20 hours"),
        pytest.param("call.opus", lambda: opus_of(OPUS_LIMIT + 1), ogg_opus, "4.00", id="OggOpus"),
        pytest.param("call.opus", lambda: opus_of(2**62), ogg_opus, "2668", id="OggOpus of ages"),
    ],
)
def test_more_is_refused_and_the_line_cuts_it(
    check: Check,
    service: StandIn,
    tmp_path: Path,
    name: str,
    audio: Audio,
    real: Audio,
    hours: str,
) -> None:
    outcome = check(name, audio())
    assert_refused(outcome, service, f": {hours}", " hours long, the service takes 4", "cut it: ")
    (tmp_path / name).write_bytes(real())
    follow_cut(check, outcome, tmp_path)


def test_more_raw_pcm_is_refused_and_the_line_cuts_it(
    check: Check, service: StandIn, tmp_path: Path
) -> None:
    path = tmp_path / "call.pcm"
    path.touch()
    os.truncate(path, LIMIT_S * 8_000 * 2)
    assert described(check(path.name, None, *PCM_WORDS, "--dry-run")).endswith(", 14,400.0 s")
    os.truncate(path, LIMIT_S * 8_000 * 2 + 2)
    outcome = check(path.name, None, *PCM_WORDS)
    assert_refused(outcome, service, "4.00 hours long", "cut it: ffmpeg")
    path.write_bytes(pcm())
    follow_cut(check, outcome, tmp_path)


def follow_cut(check: Check, outcome: Outcome, folder: Path) -> None:
    """Cut a second into three parts, as cutting hours takes long."""
    found = re.search(r"cut it: (.*)", outcome.err)
    assert found
    [length_s] = re.findall(r" (14[34]\d\d) ", found[1])  # A part ends where a packet does.
    assert LIMIT_S - 60 <= int(length_s) <= LIMIT_S
    encoders.run(*shlex.split(found[1].replace(f" {length_s} ", " 0.4 ")))
    parts = sorted(folder.glob("call*-part*.wav"))
    assert len(parts) == 3
    for part in parts:
        assert re.search(r", 0\.[1-4] s$", described(check(part.name, None, "--dry-run")))


# --- Folders --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "calls"
    folder.mkdir()
    contents: dict[str, Audio] = {
        ".wav": wav,
        ".mp3": mp3,
        ".ogg": ogg_opus,
        ".opus": lambda: ogg_opus(channels=2),
    }
    for number, (suffix, content) in enumerate(contents.items()):
        (folder / f"{number}{suffix}").write_bytes(content())
    (folder / "4.MP3").write_bytes(mp3("-b", 64))
    (folder / "5.pcm").write_bytes(pcm())
    (folder / "6.RAW").write_bytes(pcm(2))
    (folder / "7.flac").write_bytes(made("flac", ".flac"))
    (folder / "8.mp3.part").write_bytes(mp3())
    (folder / "9").write_bytes(mp3())
    (folder / "10.json").write_text("{}")
    return folder


def test_a_folder_is_searched_for_wav_mp3_ogg_and_opus(
    upload: Run, service: StandIn, folder: Path
) -> None:
    outcome = upload("--audio-path", folder, "--quiet")
    assert (outcome.code, outcome.err) == (0, "")
    names = [line.partition(": Dialog ID: ")[0] for line in outcome.out.splitlines()]
    found = ["0.wav", "1.mp3", "2.ogg", "3.opus", "4.MP3"]
    assert sorted(names) == [str(folder / name) for name in found]
    assert len(service.talks) == len(found)


def test_for_pcm_and_raw_only_when_asked_to(upload: Run, service: StandIn, folder: Path) -> None:
    outcome = upload("--audio-path", folder, "--quiet", *PCM_WORDS)
    assert (outcome.code, outcome.err) == (0, "")
    names = [line.partition(": Dialog ID: ")[0] for line in outcome.out.splitlines()]
    assert sorted(names) == [str(folder / name) for name in ("5.pcm", "6.RAW")]
    assert len(service.talks) == 2


def test_a_file_that_is_named_is_taken_whatever_its_suffix(
    upload: Run, service: StandIn, folder: Path
) -> None:
    assert upload("--audio-path", folder / "8.mp3.part", folder / "9", "--quiet").code == 0
    assert len(service.talks) == 2


def test_one_that_is_refused_leaves_the_others_alone(
    upload: Run, service: StandIn, folder: Path
) -> None:
    (folder / "2.ogg").write_bytes(made("oggenc", ".ogg"))
    outcome = upload("--audio-path", folder, "--quiet")
    assert outcome.code == 65
    assert len(service.talks) == 4
    assert re.fullmatch(r"upload_grpc: /\S+/2\.ogg: Ogg Vorbis; .*\n", outcome.err)
