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
from collections.abc import Callable
from pathlib import Path

import encoders
import pytest
from conftest import Outcome, Run, make_wav
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
    outcome: Outcome, service: StandIn, audio: bytes, announced: dict[str, object]
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
        lambda: mp3("--abr", 96, **STEREO), "MP3, 44,100 Hz, 2 channels, 1.0 s", id="ABR"
    ),
    pytest.param(
        lambda: mp3("-m", "j", **STEREO), "MP3, 44,100 Hz, 2 channels", id="joint stereo"
    ),
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
    pytest.param(tagged(1000, footer=True), "MP3, 8,000 Hz, 1 channel", id="ID3v2 with a footer"),
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
    pytest.param(lambda: ogg_opus(), "OggOpus, 48,000 Hz, 1 channel, 1.0 s", id="mono"),
    pytest.param(lambda: ogg_opus(channels=2), "OggOpus, 48,000 Hz, 2 channels, 1.0 s", id="2"),
    pytest.param(
        lambda: made("opusenc", ".opus", (), wav(8_000)), "OggOpus, 48,000 Hz, 1 channel", id="8k"
    ),
    pytest.param(
        lambda: ogg_opus("--bitrate", 200, channels=2, seconds=12),
        "OggOpus, 48,000 Hz, 2 channels, 12.0 s",
        id="more than its last page",
    ),
    pytest.param(
        lambda: ogg_opus("--comp", 0, "--speech", "--bitrate", 6, seconds=60),
        "OggOpus, 48,000 Hz, 1 channel, 60.0 s",
        id="a minute of speech",
    ),
    pytest.param(
        lambda: ogg_opus("--picture", f"3||||{encoders.picture()}"),
        "OggOpus, 48,000 Hz, 1 channel, 1.0 s",
        id="a picture among its tags",
    ),
    pytest.param(
        lambda: made("ffmpeg", ".ogg", ("-c:a", "libopus"), wav(48_000)),
        "OggOpus, 48,000 Hz, 1 channel, 1.0 s",
        id="written by FFmpeg",
    ),
]
