#!/usr/bin/env python3
"""Upload call recordings with their metadata to Yandex SpeechSense and print the dialog IDs.

from a shell:
  python3 upload_grpc.py --audio-path call.wav --meta-path metadata_example.json \\
      --connection-id ID --key ${API_KEY}
from cron:
  */5 * * * *  /opt/upload_grpc/upload_grpc.py --quiet --audio-path /var/calls --min-age 60
      --meta-path /etc/speechsense.json --connection-id ID --key-file /etc/speechsense.key
      --ledger /var/lib/calls.sqlite >>/var/log/calls.log   (all in one line)

exit codes:
  0   everything is uploaded            2    bad command line
  65  a recording or its metadata is refused: mend it
  66  a file is missing or unreadable   70   a bug: report it
  74  stdout cannot be written          75   not delivered: run again
  76  sent, but not confirmed: look for it before it is sent again
  77  the credential is refused         78   a wrong setting
  130 and 143: stopped by SIGINT or SIGTERM

Results go to stdout, everything else to stderr. README.md says more.
"""

# The file is read in the order a recording takes: it is checked without touching the network,
# made into requests, sent, and remembered; `run` and `main`, at the end, are the table of contents.
# In a hurry, read how a run goes (run_all, upload_one), when a recording counts as sent
# (upload_audio_requests_iterator, Transfer.finish), what is sent again (RULES, call_error,
# Uploader._retrying) and what is not (Ledger.claim). The audio formats can be taken on trust.

import argparse
import collections
import contextlib
import datetime
import enum
import fcntl
import functools
import gc
import importlib
import io
import json
import logging
import math
import os
import queue
import re
import shlex
import signal
import socket
import stat
import struct
import sys
import termios
import threading
import time
import traceback
import types
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, NoReturn, TextIO, TypeVar

HERE = os.path.dirname(os.path.realpath(__file__))

# Importing grpc makes tens of thousands of objects and no garbage; letting the collector look
# through them would take a twentieth of the time of a short upload.
gc.disable()

# Must stand in the environment before grpc is imported; otherwise lines about failed
# handshakes reach stderr beside our own, and cron mails them.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
sys.path.insert(0, os.path.join(HERE, "generated"))


def import_later(name: str) -> None:
    """Have a module imported only when something of it is used."""

    def first_use(attribute: str) -> object:
        if sys.modules.get(name) is placeholder:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    placeholder = types.ModuleType(name)
    placeholder.__getattr__ = first_use  # type: ignore[method-assign] # PEP 562
    sys.modules[name] = placeholder


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Up to main() nothing has begun, and Ctrl-C need not show where it stopped us.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # grpc and protobuf import these, and nothing here makes them use them: a third of the time
    # that a short upload takes. importlib.util.LazyLoader would import grpc to find grpc.aio.
    for unused in ("asyncio", "grpc.aio", "inspect", "google.protobuf.internal.python_message"):
        import_later(unused)

try:
    import grpc
    from google.protobuf.message import DecodeError
    from yandex.cloud.speechsense.v1 import audio_pb2, talk_service_pb2, talk_service_pb2_grpc
except Exception as error:  # Missing packages, missing stubs, or stubs of another protobuf.
    if __name__ != "__main__":
        raise
    if "UPLOAD_GRPC_VENV" not in os.environ:  # Once: the environment may lack the packages, too.
        # `python3 upload_grpc.py` after `make setup`: the packages are in .venv, so start again
        # with its Python.
        os.environ["UPLOAD_GRPC_VENV"] = python = os.path.join(HERE, ".venv/bin/python")
        with contextlib.suppress(OSError):
            os.execv(python, [python, __file__, *sys.argv[1:]])
    print(
        f"upload_grpc: cannot load grpc and the stubs in {HERE}/generated: "
        f"{' '.join(str(error).split())}; run: make -C {shlex.quote(HERE)} setup generate",
        file=sys.stderr,
    )
    sys.exit(os.EX_CONFIG)

gc.freeze()
gc.enable()

# grpc logs a traceback where reading the file fails; the cause is in a line of our own.
logging.getLogger("grpc._channel").setLevel(logging.CRITICAL)

__version__ = "1.0.0"

T = TypeVar("T")

ENDPOINT = "api.speechsense.yandexcloud.net:443"
# Where the official SDK asks for the operations of every service.
OPERATIONS = "operation.api.cloud.yandex.net:443"

# Measured with the barest client, whole processes, 100 MB over TLS on loopback, and with a round
# trip of 50 ms: 16 KiB 1.31 s and 1.52 s, 64 KiB 0.49 and 0.77, 256 KiB 0.37 and 0.72, 512 KiB 0.34
# and 0.73, 1 MiB 0.32 and 0.75 (tests/bench/run.py --chunks). More than 256 KiB gains little, and
# the progress would come in larger steps. A gRPC server takes 4 MiB a message by default.
CHUNK_SIZE_BYTES = 256 * 1024

JOBS = 4
HASH_CHUNK_SIZE_BYTES = 1024 * 1024
# After a signal: how long an answer that is due may still come, then how long cancelling may take.
ANSWER_GRACE_S = 0.5
CANCEL_GRACE_S = 0.3
# How long a refusal may take to end a call whose bytes nobody takes any more.
REFUSAL_GRACE_S = 0.1
CONNECTIVITY_GRACE_S = 0.5
# grpc's thread that watches a channel looks five times a second whether it still has to; it dies
# with a traceback if the channel is closed before it has looked.
WATCH_END_S = 1.0
# A progress bar is worth showing where something takes longer than this.
BAR_DELAY_S = 0.5
BAR_INTERVAL_S = 0.1

# A try that is given up after its last byte has left makes work for a person, so rather late.
TIMEOUT_S = 120.0
# How often to ask whether a recording has been split: ever less often.
POLL_S = 1.0
POLL_LIMIT_S = 30.0
# An upload that moves has at least this much acknowledged between two looks (a quarter of
# --timeout); an idle connection, with the pings of the service's front end, has less.
MOVING_BYTES = 1024
RETRIES = 5
BACKOFF_S = 0.5
BACKOFF_LIMIT_S = 30.0
# A service that asks for more is left to the next run.
ASKED_DELAY_LIMIT_S = 300.0

VM_METADATA_ADDRESS = "169.254.169.254"
VM_TOKEN_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"
VM_METADATA_TIMEOUT_S = 3.0
# The part of its lifetime (up to 12 hours) after which a token is renewed: the documentation asks
# for at least hourly renewal.
VM_TOKEN_RENEWED_AT = 0.1
VM_TOKEN_RETRIED_AFTER_S = 60.0

# Limits of the service: SpeechSense documentation, "Supported audio formats" and "Quotas".
SINGLE_MESSAGE_LIMIT_BYTES = 128 * 1024 * 1024
DURATION_LIMIT_S = 4 * 60 * 60
SAMPLE_RATES_HZ = range(8_000, 48_000 + 1)
SAMPLE_SIZE_BITS = 16
METADATA_VALUE_LIMIT_BYTES = 1024

# Limits of our own, so that a wrong file named by mistake is not read to its end.
METADATA_FILE_LIMIT_BYTES = 1024 * 1024
KEY_FILE_LIMIT_BYTES = 64 * 1024
CA_FILE_LIMIT_BYTES = 16 * 1024 * 1024
WAV_CHUNKS_LIMIT = 10_000
# What SQLite's integers hold: the year 2262.
MTIME_LIMIT_NS = 2**63 - 1
# Files dated further ahead than clocks differ are not young, but wrongly dated.
CLOCK_SKEW_S = 24 * 60 * 60
# As much of a value as a line of ours shows.
SHOWN_CHARACTERS = 200

# The placeholder fields of the service's guide, sent where no metadata was given.
PLACEHOLDER_FIELDS = {
    "operator_name": "Operator",
    "operator_id": "1111",
    "client_name": "Client",
    "client_id": "2222",
    "date_from": "2023-09-13T17:30:00.000Z",
    "date_to": "2023-09-13T17:31:00.000Z",
    "direction_outgoing": "true",
}
PLACEHOLDER_WARNING = (
    "no metadata given, placeholder fields are sent (operator_name Operator and so on): "
    "use --meta-path, or a .json file beside the recording"
)


# --- What can go wrong ---------------------------------------------------------------------


class UploadError(Exception):
    """Why a recording, or the whole run, did not go through.

    exit_code: what it means for a script, one of os.EX_*.
    cause, advice: what happened and what to do next, each part of one line.
    status: the gRPC status, if there was a call; ids: that call's.
    retry: whether the same recording may be sent again at once; not_before_s: seconds to wait
    before that, where the service asked for it.
    """

    def __init__(
        self,
        exit_code: int,
        cause: str,
        advice: str = "",
        *,
        status: str = "",
        ids: "CallIds | None" = None,
        retry: bool = False,
        not_before_s: float = 0.0,
    ) -> None:
        super().__init__(cause)
        self.exit_code = exit_code
        self.cause = cause
        self.advice = advice
        self.status = status
        self.ids = ids
        self.retry = retry
        self.not_before_s = not_before_s
        self.tries = 0
        # The authorization that was refused, where one was; never shown.
        self.header: tuple[str, str] | None = None
        # Every other recording of the run would meet the same.
        self.stops_run = exit_code in (os.EX_NOPERM, os.EX_CONFIG)

    def __str__(self) -> str:
        facts = ", ".join(str(fact) for fact in (self.status, self.ids) if fact)
        text = f"{self.cause} ({facts})" if facts else self.cause
        return f"{text}; {self.advice}" if self.advice else text


class CallIds(NamedTuple):
    """What the service's support asks for to find one call."""

    request_id: str
    server_ids: str = ""

    def __str__(self) -> str:
        return f"request {self.request_id}{self.server_ids}"


# What the exit code is where recordings ended differently.
GRAVEST_FIRST = (
    os.EX_NOPERM,
    os.EX_CONFIG,
    os.EX_IOERR,
    os.EX_PROTOCOL,
    os.EX_DATAERR,
    os.EX_NOINPUT,
    os.EX_TEMPFAIL,
)


# --- Checking a recording: no network from here to "Building requests" ---------------------


class FileState(NamedTuple):
    """What tells whether a file is still the one that was checked."""

    size_bytes: int
    mtime_ns: int
    device: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileState":
        """Take the state from what os.stat or os.fstat answered."""
        mtime_ns = max(-MTIME_LIMIT_NS, min(status.st_mtime_ns, MTIME_LIMIT_NS))
        return cls(status.st_size, mtime_ns, status.st_dev, status.st_ino)


class User(NamedTuple):
    """A participant of the call, as the API's UserMetadata."""

    id: str
    role: int
    fields: dict[str, str]


class Metadata(NamedTuple):
    """What is sent beside the audio."""

    fields: dict[str, str]
    users: tuple[User, ...] | None = None


class Audio(NamedTuple):
    """What a file's header says: how to announce it, and how to show it to people.

    duration_s is None where the header does not tell.
    """

    announced: audio_pb2.AudioMetadata
    description: str
    channels: int
    duration_s: float | None
    warning: str = ""


class AudioOptions(NamedTuple):
    """What the command line says of all recordings; the sample format is for raw PCM."""

    audio_type: str = "auto"
    sample_rate_hz: int = 0
    channels: int = 0
    split: bool = False
    single_message: bool = False


NO_OPTIONS = AudioOptions()


class Recording(NamedTuple):
    """A recording that passed every check, what is sent with it, and how."""

    path: str
    state: FileState
    audio: Audio
    metadata: Metadata
    options: AudioOptions
    warnings: list[str]


def check_recording(
    path: str, common: Metadata | None, options: AudioOptions = NO_OPTIONS
) -> Recording:
    """Check a file's header and collect its metadata.

    common: the metadata of --meta-path; the recording's own sidecar wins over it.
    Raises UploadError: EX_NOINPUT for a file that cannot be read, EX_DATAERR for one that the
    service would not take.
    """
    try:
        with open_regular_file(path, "name a recording") as file:
            state = FileState.of(os.fstat(file.fileno()))
            audio = check_audio(file, state.size_bytes, options)
    except OSError as error:
        raise unreadable(error) from error
    warnings = [warning for warning in (suffix_warning(path, audio), audio.warning) if warning]
    sidecar = find_sidecar(path)
    own = read_metadata(sidecar, sidecar=True) if sidecar else None
    if own is None and common is None:
        metadata = Metadata(placeholder_fields())
        warnings.append(PLACEHOLDER_WARNING)
    else:
        metadata = merge(common, own)
        warnings.extend(date_warnings(own) if own else ())
    return Recording(path, state, audio, metadata, options, warnings)


def find_sidecar(path: str) -> str | None:
    """Answer the name of the JSON file beside a recording, if there is one."""
    names = (os.path.splitext(path)[0] + suffix for suffix in (".json", ".JSON"))
    return next(filter(os.path.lexists, names), None)


def merge(common: Metadata | None, own: Metadata | None) -> Metadata:
    """Let a recording's own metadata win, field by field, over that of all.

    Without its own it gets the very same object as the others: there may be thousands.
    """
    if common is None or own is None:
        return common or own or Metadata({})
    return Metadata(
        {**common.fields, **own.fields}, common.users if own.users is None else own.users
    )


def open_regular_file(path: str, advice: str) -> BinaryIO:
    """Open a file for reading; raise UploadError (EX_NOINPUT) for anything that is not a file."""
    try:
        # A FIFO would wait for a writer for ever, were it opened before it is looked at.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UploadError(os.EX_NOINPUT, "not a regular file", advice)
        return open(path, "rb")
    except (OSError, ValueError) as error:
        raise unreadable(error) from error


def unreadable(error: Exception) -> UploadError:
    """Say that a file named on the command line cannot be read."""
    cause = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return UploadError(os.EX_NOINPUT, cause, "check the path and its permissions")


def refused(cause: str, advice: str) -> UploadError:
    """Say that the service would not take a file."""
    return UploadError(os.EX_DATAERR, cause, advice)


# --- Audio formats -------------------------------------------------------------------------

WAV, MP3, OGG_OPUS, PCM = "WAV", "MP3", "OggOpus", "raw PCM"
AUDIO_TYPES = {"wav": WAV, "mp3": MP3, "ogg-opus": OGG_OPUS, "pcm": PCM}
AUDIO_SUFFIXES = {".wav": WAV, ".mp3": MP3, ".ogg": OGG_OPUS, ".opus": OGG_OPUS}
PCM_SUFFIXES = (".pcm", ".raw")

# What files begin with: offset, bytes, name.
OTHER_MAGICS = (
    (0, b"RIFX", "big-endian WAV"),
    (0, b"fLaC", "FLAC"),
    (0, b"FORM", "AIFF"),
    (0, b".snd", "Sun audio"),
    (28, b"\x01vorbis", "Ogg Vorbis"),
    (28, b"\x7fFLAC", "FLAC in Ogg"),
    (28, b"Speex", "Speex in Ogg"),
    (4, b"ftyp", "M4A or another MP4"),
    (0, b"#!AMR", "AMR"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA"),
    (0, b"\x1a\x45\xdf\xa3", "WebM or Matroska"),
    (0, b"caff", "Core Audio"),
    (0, b"riff", "Wave64"),
    *((0, bytes([0xFF, second]), "AAC") for second in (0xF0, 0xF1, 0xF8, 0xF9)),
    *((0, bytes([0xFF, second]), "MPEG audio, layer II") for second in (0xF4, 0xF5, 0xFC, 0xFD)),
)
HEAD_BYTES = 64
CUT_WARNING = "its end is missing: is it cut off, or still being recorded?"
NEEDED = "WAV with 16 bit LPCM of 8,000 to 48,000 Hz, MP3 or OggOpus is needed"


def check_audio(file: BinaryIO, size_bytes: int, options: AudioOptions) -> Audio:
    """Tell a recording's format from its content and check it, from its headers alone.

    Raises UploadError (EX_DATAERR) with what was found, what is needed and how to convert it.
    """
    if not size_bytes:
        raise refused("an empty file", "record it again")
    head = file.read(HEAD_BYTES)
    kind = known_magic(head)
    if kind is None and options.audio_type == "pcm":
        # Samples may begin with anything, but hardly with four bytes or more of a magic.
        kind = next((name for magic, name in other_magics(head) if len(magic) >= 4), PCM)
    if kind is None:
        kind = find_other_format(file, head, options.audio_type)
    if kind != AUDIO_TYPES.get(options.audio_type, kind):
        raise refused(f"this is {kind}", f"leave out --audio-type {options.audio_type}")
    check = {WAV: check_wav, MP3: check_mp3, OGG_OPUS: check_ogg_opus}.get(kind)
    audio = check(file, size_bytes) if check else check_pcm(size_bytes, options)
    if options.split and (kind not in (WAV, MP3) or audio.channels != 1):
        found = f"{audio.description}: only WAV and MP3 of one channel can be split"
        raise refused(found, "leave out --split")
    # How long a recording may be that the service splits, it does not say.
    duration_s = audio.duration_s or 0
    if duration_s > DURATION_LIMIT_S and not options.split:
        found = f"{duration_s / 3600:.2f} hours long, the service takes 4"
        raise refused(found, "cut it into parts of at most 4 hours")
    if options.single_message and size_bytes >= SINGLE_MESSAGE_LIMIT_BYTES:
        limit = f"{SINGLE_MESSAGE_LIMIT_BYTES:,}"
        raise refused(f"{size_bytes:,} bytes: a single message must stay under {limit}", STREAM_IT)
    return audio


def known_magic(head: bytes) -> str | None:
    """Tell a format by bytes that hardly begin anything else, least of all raw samples."""
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return WAV
    if head.startswith(b"OggS") and head[28:].startswith(b"OpusHead"):
        return OGG_OPUS
    return MP3 if head.startswith(b"ID3") else None


def other_magics(head: bytes) -> Iterator[tuple[bytes, str]]:
    """Yield the formats that a file may be in and the service does not take: magic, name."""
    for offset, magic, name in OTHER_MAGICS:
        if head[offset:].startswith(magic):
            yield magic, name


def find_other_format(file: BinaryIO, head: bytes, audio_type: str) -> str:
    """Tell MP3 by its frames; raise UploadError for a format that the service does not take."""
    if find_mp3_frame(file):
        return MP3
    path = file.name
    for _, name in other_magics(head):
        raise refused(name, conversion(path, NEEDED))
    # Players find the frames behind whatever is in front of them; we do where MP3 is promised.
    if (audio_type == "mp3" or path.lower().endswith(".mp3")) and find_mp3_frame(file, True):
        return MP3
    raw = "; for raw PCM: --audio-type pcm" if path.lower().endswith(PCM_SUFFIXES) else ""
    raise refused("no audio format that is known here", f"{NEEDED}{raw}")


def conversion(path: str, when: str, sample_rate_hz: int = SAMPLE_RATES_HZ[0]) -> str:
    """Give the FFmpeg command that makes a WAV file which the service takes, and when to run it.

    If there is such a file already, the original beside it would be refused in every run.
    """
    stem = os.path.splitext(path)[0]
    target = f"{stem}-16bit.wav"
    if os.path.lexists(target):
        return f"already converted: move {os.path.basename(path)} out of the folder"
    rate_hz = min(max(sample_rate_hz, SAMPLE_RATES_HZ[0]), SAMPLE_RATES_HZ[-1])
    resample = f"-ar {rate_hz} " if rate_hz != sample_rate_hz else ""
    line = f"ffmpeg -i {quoted(path)} {resample}-c:a pcm_s16le {quoted(target)}"
    if sidecar := find_sidecar(path):
        line += f" && cp {quoted(sidecar)} {quoted(f'{stem}-16bit.json')}"
    return f"{when}: {line}"


def quoted(path: str) -> str:
    """Quote a path for a shell, so that it is no option, and what is before a colon no protocol."""
    return shlex.quote(os.path.join(".", path) if re.match("-|.*:", path) else path)


def suffix_warning(path: str, audio: Audio) -> str:
    """Name a suffix that says something else than the content; "" if it does not."""
    suffix = os.path.splitext(path)[1].lower()
    kind = AUDIO_SUFFIXES.get(suffix, "")
    if audio.description.startswith((kind, PCM)):
        return ""
    return f"named {suffix}, but uploaded as what it is: {audio.description}"


def container(kind: audio_pb2.ContainerAudio.ContainerAudioType) -> audio_pb2.AudioMetadata:
    """Announce audio in a container."""
    return audio_pb2.AudioMetadata(
        container_audio=audio_pb2.ContainerAudio(container_audio_type=kind)
    )


WAV_AUDIO = container(audio_pb2.ContainerAudio.CONTAINER_AUDIO_TYPE_WAV)
MP3_AUDIO = container(audio_pb2.ContainerAudio.CONTAINER_AUDIO_TYPE_MP3)
OGG_OPUS_AUDIO = container(audio_pb2.ContainerAudio.CONTAINER_AUDIO_TYPE_OGG_OPUS)


def describe(kind: str, rate_hz: int, channels: int, duration_s: float | None) -> str:
    """Show what was found."""
    text = f"{kind}, {rate_hz:,} Hz, {channels} channel{'s' * (channels != 1)}"
    return text if duration_s is None else f"{text}, {duration_s:,.1f} s"


def check_pcm(size_bytes: int, options: AudioOptions) -> Audio:
    """Check raw samples, of which only the length can be checked."""
    rate_hz, channels = options.sample_rate_hz, options.channels
    frame_bytes = channels * SAMPLE_SIZE_BITS // 8
    if size_bytes % frame_bytes:
        raise refused(f"{size_bytes:,} bytes are no whole number of frames of {frame_bytes} bytes",
                      "check --channels, and that it is 16 bit PCM")  # fmt: skip
    raw = audio_pb2.RawAudio(
        audio_encoding=audio_pb2.RawAudio.AUDIO_ENCODING_LINEAR16_PCM,
        sample_rate_hertz=rate_hz,
        audio_channel_count=channels,
    )
    duration_s = size_bytes / frame_bytes / rate_hz
    description = describe(PCM, rate_hz, channels, duration_s)
    return Audio(audio_pb2.AudioMetadata(raw_audio=raw), description, channels, duration_s)


WAVE_FORMAT_PCM = 0x0001
WAVE_FORMAT_EXTENSIBLE = 0xFFFE
UNSET_LENGTH = 0xFFFFFFFF
# The end of every KSDATAFORMAT_SUBTYPE GUID that carries a format code in its first two bytes.
SUBFORMAT_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
WAVE_FORMAT_NAMES = {
    0x0001: "PCM",
    0x0002: "Microsoft ADPCM",
    0x0003: "floating point",
    0x0006: "A-law",
    0x0007: "mu-law",
    0x0011: "IMA ADPCM",
    0x0031: "GSM 6.10",
    0x0055: "MP3 in a WAV file",
}


class WavFormat(NamedTuple):
    """The fields of a WAV file's `fmt ` chunk that decide whether the service takes it."""

    code: int
    channels: int
    sample_rate_hz: int
    block_align_bytes: int
    sample_size_bits: int

    @property
    def name(self) -> str:
        """What people call this encoding."""
        name = WAVE_FORMAT_NAMES.get(self.code, f"WAV format 0x{self.code:04x}")
        return f"{name} {self.sample_size_bits} bit" if self.sample_size_bits else name


def check_wav(file: BinaryIO, size_bytes: int) -> Audio:
    """Check a WAV file."""
    wav, data_start, data_bytes = read_wav_chunks(file, size_bytes)
    if not wav.channels or not wav.sample_rate_hz or not wav.block_align_bytes:
        raise refused("damaged WAV header: no channels, sample rate or block size",
                      "record or export it again")  # fmt: skip
    if data_bytes > size_bytes - data_start:
        raise incomplete_wav(file.name, wav, data_bytes, size_bytes - data_start)
    pcm = wav.code == WAVE_FORMAT_PCM and wav.sample_size_bits == SAMPLE_SIZE_BITS
    if not pcm or wav.sample_rate_hz not in SAMPLE_RATES_HZ:
        found = describe(wav.name, wav.sample_rate_hz, wav.channels, None)
        raise refused(found, conversion(file.name, NEEDED, wav.sample_rate_hz))
    if wav.block_align_bytes != wav.channels * SAMPLE_SIZE_BITS // 8:
        block = f"{wav.channels} channels in blocks of {wav.block_align_bytes} bytes"
        raise refused(f"damaged WAV header: {block}", "record or export it again")
    if data_bytes < wav.block_align_bytes:
        raise refused("no audio in it, not one sample", "record it again")
    duration_s = data_bytes // wav.block_align_bytes / wav.sample_rate_hz
    description = describe(f"{WAV}, {wav.name}", wav.sample_rate_hz, wav.channels, duration_s)
    warning = ""
    if not chunk_follows(file, data_start + data_bytes + data_bytes % 2, size_bytes):
        warning = "there is more in the file than its header says: is it still being recorded?"
    return Audio(WAV_AUDIO, description, wav.channels, duration_s, warning)


def read_wav_chunks(file: BinaryIO, size_bytes: int) -> tuple[WavFormat, int, int]:
    """Walk the chunks of a RIFF or RF64 file: format, where the samples begin, bytes of them."""
    wav: WavFormat | None = None
    data: tuple[int, int] | None = None
    long_data_bytes = 0
    position = 12
    for _ in range(WAV_CHUNKS_LIMIT):
        file.seek(position)
        name, length = read_struct(file, "<4sI", b"", 0)
        body = position + 8
        if name == b"fmt ":
            wav = read_wav_format(file.read(min(length, 40)))
        elif name == b"ds64":
            _, long_data_bytes = read_struct(file, "<QQ", 0, 0)
        elif name == b"data":
            if length == UNSET_LENGTH and long_data_bytes:
                length = long_data_bytes
            unset = length == 0 and not chunk_follows(file, body, size_bytes)
            data = (body, UNSET_LENGTH if unset else length)
        position = body + length + length % 2
        if (wav and data) or position >= size_bytes:
            break
    if wav is None or data is None:
        missing = "format" if wav is None else "data"
        raise refused(f"damaged or truncated WAV file: no {missing} chunk",
                      "upload it when the recorder has closed it, or export it again")  # fmt: skip
    return wav, *data


def chunk_follows(file: BinaryIO, position: int, size_bytes: int) -> bool:
    """Whether a file goes on with a whole chunk, or ends here or nearly so."""
    file.seek(position)
    name, length = read_struct(file, "<4sI", b"LIST", 0)
    return bool(re.fullmatch(b"[ -~]{4}", name)) and file.tell() + length <= size_bytes


def read_wav_format(body: bytes) -> WavFormat:
    """Read a `fmt ` chunk; an extensible one counts as the format it extends."""
    code, channels, rate, align, bits = struct.unpack_from("<HHI4xHH", body.ljust(16, b"\0"))
    if code == WAVE_FORMAT_EXTENSIBLE and len(body) == 40:
        subformat, tail = struct.unpack_from("<H14s", body, 24)
        code = subformat if tail == SUBFORMAT_GUID_TAIL else code
    return WavFormat(code, channels, rate, align, bits if len(body) >= 16 else 0)


def read_struct(file: BinaryIO, layout: str, *default: Any) -> tuple[Any, ...]:
    """Unpack the next bytes of a file, or answer the default where it ends before."""
    data = file.read(struct.calcsize(layout))
    return struct.unpack(layout, data) if len(data) == struct.calcsize(layout) else default


def incomplete_wav(
    path: str, wav: WavFormat, announced_bytes: int, present_bytes: int
) -> UploadError:
    """Tell a header that was never filled in from a recording that was cut short."""
    # Writers that cannot seek back leave 0xFFFFFFFF or a little less (FFmpeg), 0 or about
    # 0x80000000 (SoX, arecord) there.
    if 0x7FFF0000 <= announced_bytes <= 0x80000000 or announced_bytes >> 16 == 0xFFFF:
        cause = ("its header was never given the length of the audio, as a pipe leaves it, "
                 "or a recorder that has not closed the file")  # fmt: skip
    else:
        cause = (f"truncated or still being recorded: the header announces {announced_bytes:,} "
                 f"bytes of audio, {present_bytes:,} are there")  # fmt: skip
    closed = "upload it when the recorder has closed it; if it has"
    return refused(cause, conversion(path, closed, wav.sample_rate_hz))


# MPEG audio, layer III (ISO 11172-3, 13818-3, and the unofficial MPEG-2.5), by version bits.
MP3_SAMPLE_RATES_HZ = {
    3: (44_100, 48_000, 32_000),
    2: (22_050, 24_000, 16_000),
    0: (11_025, 12_000, 8_000),
}
MP3_BITRATES_KBPS = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
# Encoders leave some padding between tag and audio; further in there is none to be found.
MP3_SEARCH_BYTES = 64 * 1024
ID3_TAGS_LIMIT = 16


class Mp3Frame(NamedTuple):
    """The header of a frame of MPEG audio, layer III, and the bytes that follow it."""

    version: int
    sample_rate_hz: int
    channels: int
    length_bytes: int
    body: bytes

    @classmethod
    def parse(cls, data: bytes, start: int) -> "Mp3Frame | None":
        """Read a frame that starts somewhere in some bytes; None if there is none."""
        head = data[start : start + 4]
        if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
            return None
        version, bitrate, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
        if version == 1 or bitrate in (0, 15) or rate == 3:
            return None
        rate_hz = MP3_SAMPLE_RATES_HZ[version][rate]
        bits_per_s = MP3_BITRATES_KBPS[3 if version == 3 else 2][bitrate] * 1000
        length_bytes = (144 if version == 3 else 72) * bits_per_s // rate_hz + (head[2] >> 1 & 1)
        channels = 1 if head[3] >> 6 == 3 else 2
        return cls(version, rate_hz, channels, length_bytes, data[start + 4 : start + length_bytes])

    def goes_on(self, data: bytes, start: int) -> bool:
        """Whether two frames of the same kind follow, or the end: not by chance, like one alone."""
        position, frame = start, self
        for _ in range(2):
            position += frame.length_bytes
            if position >= len(data):
                return position == len(data)
            following = Mp3Frame.parse(data, position)
            if following is None or following[:2] != self[:2]:
                return False
            frame = following
        return True


def find_mp3_frame(file: BinaryIO, anywhere: bool = False) -> Mp3Frame | None:
    """Find the first frame of an MP3 file: at its beginning, or after its ID3v2 tags.

    anywhere: or in the first 64 KiB.
    """
    position = file.seek(0)
    for _ in range(ID3_TAGS_LIMIT):
        tag = file.read(10)
        if len(tag) < 10 or not tag.startswith(b"ID3"):
            break
        anywhere = True
        size = functools.reduce(lambda size, byte: size << 7 | byte & 0x7F, tag[6:], 0)
        position = file.seek(position + 10 + size + (10 if tag[5] & 0x10 else 0))
    file.seek(position)
    data = file.read(MP3_SEARCH_BYTES)
    for match in re.finditer(b"\xff[\xe0-\xff]", data):
        if match.start() and not anywhere:
            return None
        frame = Mp3Frame.parse(data, match.start())
        if frame and frame.goes_on(data, match.start()):
            return frame
    return None


def check_mp3(file: BinaryIO, size_bytes: int) -> Audio:
    """Read an MP3 file's first frame; the service sets no limits of quality."""
    frame = find_mp3_frame(file, anywhere=True)
    if frame is None:
        raise refused("an ID3 tag, and no audio format behind it that is known here", NEEDED)
    duration_s = None
    warning = ""
    # Most encoders count frames and bytes in the first frame, which holds no audio then.
    match = re.search(rb"(?:Xing|Info)\0\0\0(.)(.{4})(.{4})", frame.body, re.DOTALL)
    if match and match[1][0] & 3 == 3:
        frames, stream_bytes = struct.unpack(">II", match[2] + match[3])
        samples = frames * (1152 if frame.version == 3 else 576)
        there = min(1, size_bytes / max(stream_bytes, 1))
        duration_s = samples / frame.sample_rate_hz * there or None
        warning = CUT_WARNING if there < 1 else ""
    description = describe(MP3, frame.sample_rate_hz, frame.channels, duration_s)
    return Audio(MP3_AUDIO, description, frame.channels, duration_s, warning)


OPUS_RATE_HZ = 48_000
OGG_PAGE_LIMIT_BYTES = 65_307
# At most 255 packets of 120 ms.
OPUS_PAGE_LIMIT_SAMPLES = 255 * 120 * OPUS_RATE_HZ // 1000


class OggPage(NamedTuple):
    """The header of an Ogg page; position: samples that have ended, -1 if no packet ends on it."""

    flags: int
    position: int
    serial: int


def ogg_pages(data: bytes) -> Iterator[OggPage]:
    """Find the whole pages in some bytes."""
    for match in re.finditer(b"OggS\0", data):
        start = match.start()
        if start + 27 <= len(data):
            lengths = data[start + 27 : start + 27 + data[start + 26]]
            if start + 27 + data[start + 26] + sum(lengths) <= len(data):
                yield OggPage(*struct.unpack_from("<BqI", data, start + 5))


def check_ogg_opus(file: BinaryIO, size_bytes: int) -> Audio:
    """Read an OggOpus file's first and last pages (RFC 7845); no limits of quality here either."""
    file.seek(0)
    head = file.read(2 * OGG_PAGE_LIMIT_BYTES)
    serial, channels, pre_skip = struct.unpack_from("<14xI19xBH", head.ljust(HEAD_BYTES, b"\0"))
    if not channels:
        raise refused("damaged OggOpus header: no channels", "record or export it again")
    file.seek(max(0, size_bytes - 2 * OGG_PAGE_LIMIT_BYTES))
    pages = list(ogg_pages(file.read(2 * OGG_PAGE_LIMIT_BYTES)))
    ends = [page.position for page in pages if page.position >= 0]
    duration_s = None
    if ends and pages[-1].serial == serial:  # Of several streams in a row, the length is not told.
        if ends[-1] <= pre_skip:
            raise refused("no audio in it, only Ogg headers", "record it again")
        first = next((page.position for page in ogg_pages(head) if page.position > 0), 0)
        # A part of a longer stream may go on counting where the one before it ended.
        begin = first if first > OPUS_PAGE_LIMIT_SAMPLES else pre_skip
        duration_s = max(0, ends[-1] - begin) / OPUS_RATE_HZ or None
    warning = "" if pages and pages[-1].flags & 4 else CUT_WARNING
    description = describe(OGG_OPUS, OPUS_RATE_HZ, channels, duration_s)
    return Audio(OGG_OPUS_AUDIO, description, channels, duration_s, warning)


# --- Metadata ------------------------------------------------------------------------------

# A JSON object as its pairs, so that repeated keys are not lost. An array stays a list.
JsonObject = tuple[tuple[str, Any], ...]


def read_metadata(path: str, sidecar: bool = False) -> Metadata:
    """Read metadata from a JSON object of strings, numbers and booleans, and perhaps `users`.

    Raises UploadError: EX_NOINPUT for a file that cannot be read, EX_DATAERR naming file, key
    and reason for what the service would not take.
    """
    try:
        # --meta-path may be a pipe, <(...); a sidecar that is one would block the run for ever.
        with open_regular_file(path, "name a JSON file") if sidecar else open(path, "rb") as file:
            content = file.read(METADATA_FILE_LIMIT_BYTES + 1)
        if len(content) > METADATA_FILE_LIMIT_BYTES:
            raise ValueError(f"larger than {METADATA_FILE_LIMIT_BYTES:,} bytes")
        return parse_metadata(content)
    except UploadError as error:
        failure = error
    except OSError as error:
        failure = unreadable(error)
    except ValueError as error:
        failure = refused(str(error), "mend it")
    failure.cause = f"metadata file {path}: {failure.cause}"
    raise failure


def parse_metadata(content: bytes) -> Metadata:
    """Read metadata from JSON; raise ValueError with the reason, in words, if that fails."""
    try:
        top = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=tuple,
            # Numbers are sent as they are written: 1.50 stays 1.50. Only NaN and Infinity, which
            # Python's json reads although JSON has none, become floats.
            parse_int=str,
            parse_float=str,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise ValueError(f"not JSON: {error.msg}, {where}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(top, tuple):
        raise ValueError('not a JSON object, {"key": "value", ...}')
    given = dict(top).get("users")
    if isinstance(given, tuple):
        raise ValueError('key "users" must be a list, [{"id": ..., "role": ...}]')
    if not isinstance(given, list):  # None there, or a field of that name.
        return Metadata(parse_fields(top))
    pairs = tuple(pair for pair in top if pair[0] != "users")
    if len(pairs) != len(top) - 1:
        raise ValueError('key "users" is there twice')
    users = tuple(parse_user(number, user) for number, user in enumerate(given, 1))
    return Metadata(parse_fields(pairs), users)


def parse_fields(pairs: JsonObject) -> dict[str, str]:
    """Make the fields of a JSON object; raise ValueError naming the key and the reason."""
    fields: dict[str, str] = {}
    for key, value in pairs:
        try:
            if key in fields:
                raise ValueError("it is there twice")
            if not key:
                raise ValueError("it is empty")
            check_text(key)
            fields[key] = metadata_value(value)
        except ValueError as error:
            raise ValueError(f"key {shown(key)}: {error}") from None
    return fields


def parse_user(number: int, value: object) -> User:
    """Make a participant of the call; raise ValueError naming which, and the reason."""
    try:
        if not isinstance(value, tuple):
            raise ValueError('not an object, {"id": ..., "role": ..., "fields": {...}}')
        given = dict(value)
        if len(given) != len(value) or not {"id", "role"} <= set(given) <= {"id", "role", "fields"}:
            raise ValueError("must have id and role, may have fields, and nothing else")
        role = given["role"] if isinstance(given["role"], str) else ""
        name = role if role.startswith("USER_ROLE_") else f"USER_ROLE_{role.upper()}"
        if name not in set(talk_service_pb2.UserRole.keys()) or name == "USER_ROLE_UNSPECIFIED":
            named = f"role {shown(role)}" if isinstance(given["role"], str) else "role"
            raise ValueError(f"{named} is not operator, client or bot")
        fields = given.get("fields", ())
        if not isinstance(fields, tuple):
            raise ValueError("fields must be an object")
        user_id = parse_fields((("id", given["id"]),))["id"]
        return User(user_id, talk_service_pb2.UserRole.Value(name), parse_fields(fields))
    except ValueError as error:
        raise ValueError(f"user {number}: {error}") from None


def metadata_value(value: object) -> str:
    """Give a value as the service takes it; raise ValueError with the reason if it cannot be."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        raise ValueError("null; give a value, or leave the key out")
    if isinstance(value, float):
        raise ValueError("NaN and Infinity are not JSON")
    if not isinstance(value, str):
        kind = "a nested object" if isinstance(value, tuple) else "a list"
        raise ValueError(f"{kind}; the service takes one string a key")
    check_text(value)
    return value


def check_text(text: str) -> None:
    """Raise ValueError for a text that the API cannot carry."""
    try:
        length_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair is no character") from None
    if length_bytes > METADATA_VALUE_LIMIT_BYTES:
        limit = f"{METADATA_VALUE_LIMIT_BYTES:,}"
        raise ValueError(f"{length_bytes:,} bytes long, the service takes {limit}")


def shown(value: object) -> str:
    """Show a value as JSON, in the characters it has, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def placeholder_fields() -> dict[str, str]:
    """Answer the guide's placeholder fields, dated now, in UTC and with the offset."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {**PLACEHOLDER_FIELDS, "date": now.isoformat(timespec="milliseconds")}


def date_warnings(metadata: Metadata) -> Iterator[str]:
    """Name the dates that the service would read as something else than what was meant."""
    pairs = [*metadata.fields.items()]
    for user in metadata.users or ():
        pairs += user.fields.items()
    for key, value in pairs:
        if key.startswith("date") and not is_date_with_offset(value):
            yield (
                f"metadata key {shown(key)}: {shown(value)} is no ISO 8601 date with an offset; "
                "write 2026-01-31T09:30:00+03:00 or 2026-01-31T06:30:00Z"
            )


def is_date_with_offset(value: str) -> bool:
    """Tell whether a text is an ISO 8601 date and time with Z or an offset."""
    match = re.fullmatch(
        r"(\d{4}-\d\d-\d\dT\d\d:\d\d)(:\d\d)?([.,]\d+)?(Z|[+-]([01]\d|2[0-3])(:?[0-5]\d)?)",
        value,
        re.ASCII,
    )
    try:
        return bool(match and datetime.datetime.fromisoformat(match[1] + (match[2] or "")))
    except ValueError:
        return False


# --- Building requests ---------------------------------------------------------------------


class FileChanged(UploadError):
    """The file is no longer the one that was checked: nothing of it may become a dialog."""

    def __init__(self, what: str) -> None:
        super().__init__(
            os.EX_TEMPFAIL, f"{what}, nothing was uploaded", "run again when it is complete"
        )


def open_unchanged(path: str, state: FileState | None) -> io.FileIO:
    """Open a recording; raise FileChanged if it is not the one that was checked, or unreadable."""
    with contextlib.ExitStack() as undo:
        try:
            # Unbuffered, because closing a buffered file waits for a read that hangs.
            audio = undo.enter_context(io.FileIO(path))
            opened = FileState.of(os.fstat(audio.fileno()))
        except OSError as error:
            raise FileChanged(f"became unreadable ({error.strerror})") from error
        if state and opened != state:
            raise FileChanged("changed after it was checked")
        undo.pop_all()
    return audio


def read_chunks(audio: io.FileIO, size_bytes: int) -> Iterator[bytes]:
    """Yield what is left of a file; raise FileChanged if it cannot be read any more."""
    try:
        while data := audio.read(size_bytes):
            yield data
    except OSError as error:
        raise FileChanged(f"became unreadable ({error.strerror})") from error


class GivenUp(Exception):
    """A call has ended, or we have cancelled it: str() says why; see call_error."""


class Transfer:
    """One try at sending one file, as the thread that reads it and the one that waits see it.

    handed_over_bytes: audio that grpc has taken.
    finished: the commit point. Until it is True the service cannot have the whole recording,
    because the half-close that ends a stream is sent only after the requests have ended.
    error: why the requests ended before that, if they did.
    void: it failed, and made no dialog.
    had_connection: for what is not streamed, whether there was one to send it over.
    on_state: called with "finishing" and the request ID right before the commit point; if it
    raises, the point is not passed.
    """

    def __init__(
        self,
        path: str,
        state: FileState | None = None,
        on_state: Callable[[str, str], None] | None = None,
        *,
        streamed: bool = True,
    ) -> None:
        self.path = path
        self.state = state
        self.request_id = str(uuid.uuid4())
        self.streamed = streamed
        self.handed_over_bytes = 0
        self.progress_s = time.monotonic()
        self.finished = False
        self.error: Exception | None = None
        self.void = False
        self.call: Any = None
        self.had_connection: Callable[[], bool] = lambda: True
        self._on_state = on_state
        self._passed_before_bytes = 0
        self._abandoned = False
        self._commit_lock = threading.Lock()
        self._audio: io.FileIO | None = None

    def open(self) -> io.FileIO:
        """Open the file; raise FileChanged if it is not the one that was checked."""
        self._audio = open_unchanged(self.path, self.state)
        with self._commit_lock:
            if self._abandoned:  # The call failed before grpc came to read.
                self._audio.close()
                raise GivenUp("the call has ended")
        self.state = self.state or FileState.of(os.fstat(self._audio.fileno()))
        self._passed_before_bytes = sum(connection_bytes())
        return self._audio

    def chunk_taken(self, size_bytes: int) -> None:
        """Note that grpc has taken a chunk."""
        self.handed_over_bytes += size_bytes
        self.progress_s = time.monotonic()

    def finish(self) -> None:
        """Pass the commit point, having made sure that every byte of an unchanged file went.

        Raises FileChanged otherwise: a stream that ended here would be a truncated dialog, and a
        successful one.
        """
        assert self._audio is not None and self.state is not None
        if self.handed_over_bytes != self.state.size_bytes:
            raise FileChanged("grew or shrank while it was being uploaded")
        try:
            if FileState.of(os.fstat(self._audio.fileno())) != self.state:
                raise FileChanged("changed while it was being uploaded")
            if FileState.of(os.stat(self.path)) != self.state:
                raise FileChanged("was replaced while it was being uploaded")
        except OSError as error:
            raise FileChanged(
                f"went away while it was being uploaded ({error.strerror})"
            ) from error
        self._wait_until_passed_on()
        with self._commit_lock:
            if self._abandoned or (self.call and self.call.done()):
                raise GivenUp("the call has ended")
            # On disk first: dying here leaves "unknown" for what was not sent, the other way round
            # would leave "sending", and a second dialog, for what was.
            if self._on_state:
                self._on_state("finishing", self.request_id)
            self.progress_s = time.monotonic()
            self.finished = True

    def _wait_until_passed_on(self) -> None:
        """Give a refusal that is coming in the time to end the call before the commit point.

        When the service refuses a call, grpc takes what is left of a recording at once and throws
        it away; that was no upload, and must not look like one whose answer is missing. As a
        rule the kernel has all bytes already, and there is nothing to wait for.
        """
        until_s = time.monotonic() + REFUSAL_GRACE_S
        while self.streamed and time.monotonic() < until_s and not (self.call and self.call.done()):
            passed_bytes = sum(connection_bytes())
            if (
                not passed_bytes
                or passed_bytes - self._passed_before_bytes >= self.handed_over_bytes
            ):
                break
            time.sleep(0.001)

    def fail(self, error: Exception) -> None:
        """Keep why the requests ended: grpc only says "Exception iterating requests!"."""
        with self._commit_lock:
            if not self._abandoned:
                self.error = error

    def abandon(self) -> bool:
        """Make sure that the commit point is not passed from now on, and close the file.

        Answers whether it was passed: from here on `finished` and `error` stay what they are.
        """
        with self._commit_lock:
            self._abandoned = True
            # grpc lets go of an aborted stream's requests only when it likes.
            if self._audio is not None:
                self._audio.close()
            return self.finished


def connection_bytes() -> tuple[int, int]:
    """Answer how many bytes this process's TCP peers have acknowledged, and how many are held.

    grpc lets go of a chunk once the kernel has it, and the kernel may hold several MB for a slow
    line: only these counts tell a line that is slow from one that is dead. (0, 0) where the
    system does not tell (Linux does since 4.1: struct tcp_info, tcpi_bytes_acked).
    """
    acknowledged_bytes = held_bytes = 0
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir("/proc/self/fd") if sys.platform == "linux" else []
    for name in names:
        with contextlib.suppress(OSError, struct.error):
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            connection = socket.socket(fileno=int(name))
            try:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                acknowledged_bytes += struct.unpack_from("=Q", info, 120)[0]
                held = fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))
                held_bytes += struct.unpack("=i", held)[0]
            finally:
                connection.detach()  # It is grpc's, and stays open.
    return acknowledged_bytes, held_bytes


def upload_audio_requests_iterator(
    connection_id: int | str,
    metadata: Mapping[str, str] | Metadata,
    audio_path: str,
    audio_metadata: audio_pb2.AudioMetadata = WAV_AUDIO,
    transfer: Transfer | None = None,
) -> Iterator[talk_service_pb2.StreamTalkRequest]:
    """Yield the requests of one stream: the metadata, the audio format, the audio in chunks.

    Raises FileChanged, and never just ends, if the file is not the same from end to end:
    an exception makes grpc cancel the call, an end makes it a dialog.
    """
    transfer = transfer or Transfer(audio_path)
    try:
        audio = transfer.open()
        yield talk_service_pb2.StreamTalkRequest(metadata=talk_metadata(connection_id, metadata))
        yield talk_service_pb2.StreamTalkRequest(
            audio=audio_pb2.AudioStreamingRequest(audio_metadata=audio_metadata)
        )
        for data in read_chunks(audio, CHUNK_SIZE_BYTES):
            yield talk_service_pb2.StreamTalkRequest(
                audio=audio_pb2.AudioStreamingRequest(chunk=audio_pb2.AudioChunk(data=data))
            )
            transfer.chunk_taken(len(data))
        transfer.finish()
    except GivenUp:
        raise
    except Exception as error:
        transfer.fail(error)
        raise
    finally:
        transfer.abandon()


def single_message_request(
    connection_id: str, recording: Recording, transfer: Transfer
) -> talk_service_pb2.UploadTalkRequest:
    """Build the one request of a unary upload, with the whole file in memory.

    Passes the commit point: once the call has begun, nobody can tell how far it came.
    """
    data = b"".join(read_chunks(transfer.open(), SINGLE_MESSAGE_LIMIT_BYTES))
    transfer.chunk_taken(len(data))
    transfer.finish()
    return talk_service_pb2.UploadTalkRequest(
        metadata=talk_metadata(connection_id, recording.metadata),
        audio=audio_pb2.AudioRequest(
            audio_metadata=recording.audio.announced, audio_data=audio_pb2.AudioChunk(data=data)
        ),
    )


def talk_metadata(
    connection_id: int | str, metadata: Mapping[str, str] | Metadata
) -> talk_service_pb2.TalkMetadata:
    """Build the message that says whose dialog this is."""
    if not isinstance(metadata, Metadata):
        metadata = Metadata(dict(metadata))
    users = [
        talk_service_pb2.UserMetadata(id=user.id, role=user.role, fields=user.fields)  # type: ignore[arg-type]
        for user in metadata.users or ()
    ]
    return talk_service_pb2.TalkMetadata(
        connection_id=str(connection_id), fields=metadata.fields, users=users
    )


# --- Credential and channel ----------------------------------------------------------------


class Credential:
    """Where the API key or IAM token comes from, and the header made of it.

    Never shown: whatever has been a header once is masked in every line printed.
    """

    def __init__(
        self,
        source: str,
        read: Callable[[], str],
        key_type: str = "auto",
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self.source = source
        self.forget = forget
        self.key_type = key_type
        self.secrets: set[str] = set()
        self._read = read

    def header(self) -> tuple[str, str]:
        """Answer the authorization header, from a credential read anew.

        Raises UploadError (EX_CONFIG) for one that is empty or cannot be a header's value.
        """
        key = self._read().strip().lstrip("\ufeff").strip()
        if not key:
            raise UploadError(os.EX_CONFIG, f"{self.source} is empty", NO_CREDENTIAL_ADVICE)
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            # Said by us because grpc's "Invalid metadata" would not say which.
            raise UploadError(
                os.EX_CONFIG,
                f"the credential in {self.source} has a space, a line break or another character "
                "that no key has",
                "copy the key again, it is one line of letters, digits, - and _",
            )
        self.secrets.add(key)
        is_token = key.startswith("t1.") if self.key_type == "auto" else self.key_type != "api-key"
        return ("authorization", f"{'Bearer' if is_token else 'Api-Key'} {key}")

    def mask(self, text: str) -> str:
        """Take the secrets out of a text."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


NO_CREDENTIAL_ADVICE = (
    "give one: --key-file FILE, or export API_KEY or IAM_TOKEN, or --key KEY (seen by every user "
    "of this machine)"
)


def find_credential(key: str | None, key_file: str | None, key_type: str) -> Credential:
    """Take the credential from --key, --key-file, API_KEY or IAM_TOKEN, the first there is.

    With the type vm it comes from the machine's metadata service instead. Raises UploadError
    (EX_CONFIG) if there is none, or a file that cannot be read.
    """
    if key_type == "vm":
        token = VmToken()
        return Credential("the VM's metadata service", token.read, key_type, token.forget)
    if key is not None:
        return Credential("--key", lambda: key, key_type)
    if key_file is not None:
        read: Callable[[], str] = functools.partial(read_key_file, key_file)
        if not os.path.isfile(key_file):
            # A file may be written anew during a run; a pipe has its bytes only once.
            read = functools.cache(read)
        return Credential(f"--key-file {key_file}", read, key_type)
    for variable in ("API_KEY", "IAM_TOKEN"):
        if value := os.environ.get(variable, "").strip():
            if key_type == "auto" and variable == "IAM_TOKEN":
                key_type = "iam-token"
            return Credential(variable, lambda: value, key_type)
    raise UploadError(os.EX_CONFIG, "no API key and no IAM token", NO_CREDENTIAL_ADVICE)


def read_key_file(path: str) -> str:
    """Read a credential from a file; raise UploadError (EX_CONFIG) if that fails."""
    try:
        with open(path, "rb") as file:
            return file.read(KEY_FILE_LIMIT_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        cause = f"--key-file {path} cannot be read: {reason}"
        raise UploadError(os.EX_CONFIG, cause, "check the path") from error


# What reading an answer of another form may raise.
BAD_JSON = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError)


class VmToken:
    """The IAM token of a cloud VM's service account, from the VM's metadata service.

    Source: Yandex Cloud documentation, "Getting an IAM token in a VM".
    """

    def __init__(self) -> None:
        self._token = ""
        self._expires_s = self._renew_s = 0.0
        self._lock = threading.Lock()

    def read(self) -> str:
        """Answer a token that is good for a while, asking for a new one where the last is not.

        Raises UploadError (EX_CONFIG) where there is none to be had.
        """
        with self._lock:
            if time.monotonic() >= self._renew_s:
                try:
                    self._fetch()
                except UploadError:
                    if time.monotonic() >= self._expires_s:
                        raise
                    self._renew_s = time.monotonic() + VM_TOKEN_RETRIED_AFTER_S
            return self._token

    def forget(self) -> None:
        """Ask for a new token next time: the service does not take this one."""
        self._renew_s = 0.0

    def _fetch(self) -> None:
        import http.client

        address = os.environ.get("YC_METADATA_ADDR") or VM_METADATA_ADDRESS
        connection: Any = None
        try:
            # The service is the machine's own: a proxy could only give away the token.
            connection = http.client.HTTPConnection(address, timeout=VM_METADATA_TIMEOUT_S)
            connection.request("GET", VM_TOKEN_PATH, headers={"Metadata-Flavor": "Google"})
            with connection.getresponse() as response:
                if response.status != 200:
                    raise ValueError(f"{response.status} {response.reason}")
                answer = json.loads(response.read(KEY_FILE_LIMIT_BYTES))
            token, lifetime_s = answer["access_token"], float(answer["expires_in"])
            if not isinstance(token, str) or not token:
                raise ValueError("no access_token in its answer")
        except (OSError, http.client.HTTPException, *BAD_JSON) as error:
            reason = getattr(error, "strerror", None) or str(error) or repr(error)
            raise UploadError(
                os.EX_CONFIG,
                f"no token from the VM's metadata service at {address}: {reason}",
                "--key-type vm works on a cloud VM that has a service account",
            ) from error
        finally:
            if connection:
                connection.close()
        now_s = time.monotonic()
        self._token, self._expires_s = token, now_s + lifetime_s
        self._renew_s = now_s + lifetime_s * VM_TOKEN_RENEWED_AT


def open_channel(endpoint: str, root_certificates: bytes | None) -> grpc.Channel:
    """Make a TLS channel; nothing is sent before the first call.

    Raises UploadError (EX_CONFIG) for an endpoint or proxy that cannot work.
    """
    match = re.fullmatch(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?", endpoint)
    if not match or not 0 < int(match[2] or 443) < 65_536:
        raise UploadError(
            os.EX_CONFIG, f"bad endpoint {endpoint!r}", f"write HOST:PORT, such as {ENDPOINT}"
        )
    proxy_allowed = adopt_proxy_settings()
    return grpc.secure_channel(
        f"{match[1]}:{match[2] or 443}",
        grpc.ssl_channel_credentials(root_certificates=root_certificates),
        options=(
            ("grpc.primary_user_agent", f"upload_grpc/{__version__}"),
            # grpc's own retries would send a recording a second time behind our back.
            ("grpc.enable_retries", 0),
            # Channels of one process share connections otherwise, and a new one helps nothing.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", int(proxy_allowed)),
        ),
    )


def read_root_certificates(ca_file: str | None) -> bytes | None:
    """Read the certificates to trust: None stands for those that grpc brings.

    grpc passes over a file that is missing, and trusts its own set instead.
    Raises UploadError (EX_CONFIG) so that this cannot happen unseen.
    """
    source = "--ca-file" if ca_file else "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
    path = ca_file or os.environ.get(source)
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            pem = file.read(CA_FILE_LIMIT_BYTES)
        if not re.search(rb"-----BEGIN CERTIFICATE-----[\w+/=\s]+-----END CERTIFICATE-----", pem):
            raise ValueError("no PEM certificate in it")
    except (OSError, ValueError) as error:
        cause = f"{source} {path}: {getattr(error, 'strerror', None) or error}"
        raise UploadError(os.EX_CONFIG, cause, "name a file of PEM certificates") from error
    return pem


def adopt_proxy_settings() -> bool:
    """Make grpc see the proxy settings that curl and pip see; answer whether to use a proxy.

    grpc reads only lower-case names, and goes to the service directly, without a word, where it
    cannot use the proxy's URL. Raises UploadError (EX_CONFIG) for such a URL.
    """
    for name in ("https_proxy", "no_proxy"):
        if name not in os.environ and name.upper() in os.environ:
            os.environ[name] = os.environ[name.upper()]
    if "*" in os.environ.get("no_proxy", "").replace(",", " ").split():
        return False
    in_use = [name for name in ("grpc_proxy", "https_proxy", "http_proxy") if os.environ.get(name)]
    if not in_use:
        return False
    name = in_use[0]
    from urllib.parse import urlsplit

    if "://" not in os.environ[name]:
        os.environ[name] = f"http://{os.environ[name]}"
    try:
        url = urlsplit(os.environ[name])
        usable = url.scheme == "http" and url.hostname and url.port
    except ValueError:
        usable = False
    if not usable:
        # The URL is not shown: it may hold a password.
        cause = f"gRPC cannot use the proxy in {name}"
        raise UploadError(os.EX_CONFIG, cause, "write http://HOST:PORT, https:// will not do")
    return True


# --- What a failed call means: the retry policy --------------------------------------------


class Verdict(enum.Enum):
    """What a failed call says about the recording it carried."""

    REFUSED = "no dialog was made, and another try would end the same way"
    POSTPONED = "no dialog was made, and another try may do better"
    LOST = "nobody said: no dialog before the commit point, perhaps one after it"


class Rule(NamedTuple):
    """What a gRPC status means where the beginning of its details matches a pattern."""

    status: str
    details: str
    verdict: Verdict
    exit_code: int
    advice: str


REFUSED, POSTPONED, LOST = Verdict
AGAIN = "run again"
MEND = "mend the recording or its metadata"
CHECK_KEY = "check the key, and that its service account may upload (speech-sense.data.editor)"
CHECK_CERTIFICATE = "its certificate is not trusted: check --endpoint, --ca-file and the clock"
CHECK_ENDPOINT = "no gRPC service with TLS answers there: check --endpoint and https_proxy"
CHECK_METHOD = "what answers there does not take recordings this way: check --endpoint"
CHECK_HOST = "no such host: check --endpoint and https_proxy"
CHECK_PROXY = "the proxy refuses: check https_proxy (http://USER:PASSWORD@HOST:PORT) and no_proxy"
LOOK_FOR_IT = "look for it in the console"
LEFT_UNDER_WAY = "the run ended while it was under way; the dialog may exist or not"
LOOK_FIRST = f"{LOOK_FOR_IT}; if it is not there, send it again (with --ledger: --retry-unknown)"
STREAM_IT = "leave out --single-message to send it as a stream"

# The retry policy. The first line that fits counts. These are for a call that never got a
# connection, so that nothing was sent; the words are grpc's own, and tests hold each of them
# against the grpc that is installed.
NO_CONNECTION = "failed to connect to all addresses|errors resolving|DNS resolution failed"
NO_CONNECTION_RULES = (
    Rule("UNAVAILABLE", ".*CERTIFICATE_VERIFY_FAILED", REFUSED, os.EX_CONFIG, CHECK_CERTIFICATE),
    Rule("UNAVAILABLE", ".*Hostname Verification", REFUSED, os.EX_CONFIG, CHECK_CERTIFICATE),
    Rule("UNAVAILABLE", ".*in peer certificate", REFUSED, os.EX_CONFIG, CHECK_CERTIFICATE),
    Rule("UNAVAILABLE", ".*security handshaker", REFUSED, os.EX_CONFIG, CHECK_CERTIFICATE),
    Rule("UNAVAILABLE", "empty address list", REFUSED, os.EX_CONFIG, CHECK_CERTIFICATE),
    Rule("UNAVAILABLE", ".*WRONG_VERSION_NUMBER", REFUSED, os.EX_CONFIG, CHECK_ENDPOINT),
    Rule("UNAVAILABLE", ".*missing selected ALPN", REFUSED, os.EX_CONFIG, CHECK_ENDPOINT),
    Rule("UNAVAILABLE", ".*Domain name not found", REFUSED, os.EX_CONFIG, CHECK_HOST),
    Rule("UNAVAILABLE", ".*Misformatted domain name", REFUSED, os.EX_CONFIG, CHECK_HOST),
    Rule("UNAVAILABLE", ".*Name or service not known", REFUSED, os.EX_CONFIG, CHECK_HOST),
    Rule("UNAVAILABLE", ".*proxy returned response code 4", REFUSED, os.EX_CONFIG, CHECK_PROXY),
    Rule("UNAVAILABLE", NO_CONNECTION, POSTPONED, os.EX_TEMPFAIL, AGAIN),
    Rule("INTERNAL", "Invalid metadata", REFUSED, os.EX_CONFIG, CHECK_KEY),
)
# These are for all others, one line at least for each of gRPC's statuses.
RULES = (
    Rule("UNAUTHENTICATED", "", REFUSED, os.EX_NOPERM, CHECK_KEY),
    Rule("PERMISSION_DENIED", "", REFUSED, os.EX_NOPERM, CHECK_KEY),
    Rule("NOT_FOUND", "", REFUSED, os.EX_CONFIG, "check --connection-id, or --talk-id"),
    Rule("UNIMPLEMENTED", "", REFUSED, os.EX_CONFIG, CHECK_METHOD),
    Rule("INVALID_ARGUMENT", "", REFUSED, os.EX_DATAERR, MEND),
    Rule("FAILED_PRECONDITION", "", REFUSED, os.EX_DATAERR, MEND),
    Rule("OUT_OF_RANGE", "", REFUSED, os.EX_DATAERR, MEND),
    Rule("ALREADY_EXISTS", "", REFUSED, os.EX_DATAERR, LOOK_FOR_IT),
    Rule("RESOURCE_EXHAUSTED", ".*larger than max", REFUSED, os.EX_DATAERR, STREAM_IT),
    Rule("RESOURCE_EXHAUSTED", "", POSTPONED, os.EX_TEMPFAIL, "run again later"),
    Rule("UNAVAILABLE", "", LOST, os.EX_TEMPFAIL, AGAIN),
    Rule("ABORTED", "", LOST, os.EX_TEMPFAIL, AGAIN),
    Rule("CANCELLED", "", LOST, os.EX_TEMPFAIL, AGAIN),
    Rule("DEADLINE_EXCEEDED", "", LOST, os.EX_TEMPFAIL, AGAIN),
    Rule("INTERNAL", "", LOST, os.EX_TEMPFAIL, AGAIN),
    Rule("DATA_LOSS", "", LOST, os.EX_TEMPFAIL, AGAIN),
    Rule("UNKNOWN", "", LOST, os.EX_TEMPFAIL, AGAIN),
)
# And this is for a call that we gave up ourselves, or whose answer grpc could not take: it turns
# a broken stream, or an answer too large, into any status (grpc/doc/PROTOCOL-HTTP2.md, "Errors").
LOST_RULE = Rule("", "", LOST, os.EX_TEMPFAIL, AGAIN)
LOST_ANSWER = "Stream removed|CLIENT:|.*RST_STREAM|.*metadata size exceeds"


def find_rule(error: Any, status: str, details: str, transfer: Transfer) -> Rule:
    """Find what the failure of a call means."""
    if transfer.finished and re.match(LOST_ANSWER, details):
        return LOST_RULE
    # A service may pass on such words of its own calls, after it has stored what we sent: they
    # say something of our connection only where nothing has gone or come over it.
    heard = error.initial_metadata() or error.trailing_metadata()
    sent = heard or (transfer.handed_over_bytes if transfer.streamed else transfer.had_connection())
    rules = RULES if sent else NO_CONNECTION_RULES + RULES
    return next(
        rule
        for rule in rules
        if rule.status == status and re.match(rule.details, details, re.IGNORECASE)
    )


class Connectivity:
    """The states of a channel, from before its first call.

    What it is in when a call has failed says too little: the call may have gone over a connection
    that has ended since.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._states: list[grpc.ChannelConnectivity] = []
        self._news = threading.Condition()
        self._ended = False
        channel.subscribe(self._note)

    def _note(self, state: grpc.ChannelConnectivity) -> None:
        with self._news:
            self._states.append(state)
            self._news.notify_all()

    def begin_call(self) -> Callable[[], bool]:
        """Answer how to ask, when a call has ended, whether it may have had a connection."""
        return functools.partial(self._connected_since, max(len(self._states) - 1, 0))

    def _connected_since(self, mark: int) -> bool:
        failed = grpc.ChannelConnectivity.TRANSIENT_FAILURE
        with self._news:
            # States come late, from a thread of their own: only a failure that has come is proof.
            self._news.wait_for(lambda: failed in self._states[mark + 1 :], CONNECTIVITY_GRACE_S)
            began, later = self._states[mark : mark + 1], self._states[mark + 1 :]
        if self._ended or failed not in (*began, *later):
            return True
        # A channel is idle at first, and later only after a connection.
        had = not {failed, grpc.ChannelConnectivity.CONNECTING}.issuperset(later)
        return had or began == [grpc.ChannelConnectivity.READY]

    def end(self) -> None:
        """Watch no longer; from now on any call may have had a connection."""
        self._ended = True
        self._channel.unsubscribe(self._note)
        close_channel(self._channel, WATCH_END_S)


def close_channel(channel: grpc.Channel, delay_s: float = 0.0) -> None:
    """Close a channel that no call uses any more, in a thread of its own.

    After a connection froze grpc may wait for ever there, for a write that was under way.
    """
    closing = threading.Timer(delay_s, channel.close)
    closing.daemon = True
    closing.start()


def call_error(
    error: Exception, transfer: Transfer, ids: CallIds, mask: Callable[[str], str]
) -> UploadError:
    """Say what a call that brought no answer means for the recording it was to upload.

    error: grpc.RpcError, or GivenUp with the reason why we cancelled the call.
    """
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        status = error.code().name
        cause = mask(" ".join((error.details() or "no details").split()))
        rule, delay_s = find_rule(error, status, cause, transfer), asked_delay_s(error)
    else:
        status, cause, rule, delay_s = "", str(error), LOST_RULE, 0.0
    # Past the commit point only the service's own refusal is proof that no dialog was made; all
    # else may be an answer that got lost, and must not be sent again without being asked.
    if rule.verdict is LOST and transfer.finished:
        cause = f"sent, but not confirmed: {cause}; the dialog may exist or not"
        return UploadError(os.EX_PROTOCOL, cause, LOOK_FIRST, status=status, ids=ids)
    return UploadError(
        rule.exit_code,
        cause,
        rule.advice,
        status=status,
        ids=ids,
        retry=rule.verdict is not REFUSED,
        not_before_s=delay_s,
    )


def asked_delay_s(call: Any) -> float:
    """Answer how long the service asked to wait (google.rpc.RetryInfo), 0 if it did not."""
    packed = dict(call.trailing_metadata() or ()).get("grpc-status-details-bin")
    if packed is None:
        return 0.0
    from google.rpc import error_details_pb2, status_pb2

    info = error_details_pb2.RetryInfo()
    try:
        for detail in status_pb2.Status.FromString(packed).details:
            if detail.Unpack(info):
                return float(info.retry_delay.ToTimedelta().total_seconds())
    except (DecodeError, ValueError, OverflowError):
        pass  # A hint that cannot be read is none.
    return 0.0


def call_ids(request_id: str, call: Any) -> CallIds:
    """Collect the IDs of a call that has ended."""
    pairs = (*(call.initial_metadata() or ()), *(call.trailing_metadata() or ()))
    names = ("x-request-id", "x-server-trace-id")
    return CallIds(request_id, "".join(f", {key} {id!s}" for key, id in pairs if key in names))


# --- Talking to the service ----------------------------------------------------------------


class Answer(NamedTuple):
    """What the service answered to an upload: a dialog, or a badge that becomes several.

    The fields are those of a Report.
    """

    ids: CallIds
    talk_ids: tuple[str, ...] = ()
    badge_id: str = ""
    operation_id: str = ""
    tries: int = 1


class Uploader:
    """Sends recordings to one connection, from any number of threads over one channel.

    begun: by path, the last try of each recording of which anything may have been sent, until that
    has been reported.
    operations: opens a channel to where operations are, if the service itself has none.
    timeout_s: seconds without progress after which a try is given up.
    retries: further tries after one that made no dialog.
    note, detail: called with a line about each failed try, and about each try.
    """

    def __init__(
        self,
        open_channel: Callable[[], grpc.Channel],
        connection_id: str,
        credential: Credential,
        *,
        operations: Callable[[], grpc.Channel] | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        note: Callable[[str], None] = lambda text: None,
        detail: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.stopping = threading.Event()
        self.begun: dict[str, Transfer] = {}
        self._stop_cause = ""
        self._open_channel = open_channel
        self._channel = open_channel()
        self._connection_id = connection_id
        self._credential = credential
        self._operations = operations
        self._operations_channel: grpc.Channel | None = None
        self._timeout_s = timeout_s
        self._retries = retries
        self._note = note
        self._detail = detail
        self._live: set[Transfer] = set()
        self._calls: collections.Counter[grpc.Channel] = collections.Counter()
        self._watched: dict[grpc.Channel, Connectivity] = {}
        self._lock = threading.Lock()

    def upload(
        self, recording: Recording, on_state: Callable[[str, str], None] | None = None
    ) -> Answer:
        """Send a recording, again where that cannot make a second dialog.

        on_state: called with the state ("sending", "finishing") that a try reaches and its request
        ID; what it raises ends the try before the state is reached.
        Raises UploadError, with the number of tries.
        """
        streamed = not recording.options.single_message
        method = "UploadBadge" if recording.options.split else "UploadAsStream"

        def requests(transfer: Transfer) -> Any:
            if not streamed:
                return single_message_request(self._connection_id, recording, transfer)
            return upload_audio_requests_iterator(
                self._connection_id,
                recording.metadata,
                recording.path,
                recording.audio.announced,
                transfer,
            )

        def one_try(tries: int) -> Answer:
            transfer = Transfer(recording.path, recording.state, on_state, streamed=streamed)
            with self._lock:
                self.begun[recording.path] = transfer
            if on_state and tries > 1:  # Before the first, whoever calls us has noted it.
                on_state("sending", transfer.request_id)
            response, ids = self._call(transfer, method if streamed else "Upload", requests)
            return check_answer(response, transfer, ids)._replace(tries=tries)

        return self._retrying(recording.path, one_try)

    def update(self, talk_id: str, metadata: Metadata) -> Answer:
        """Give a dialog that exists other metadata; raise UploadError if that fails."""
        request = talk_service_pb2.UploadTalkRequest(
            talk_id=talk_id, metadata=talk_metadata(self._connection_id, metadata)
        )

        def one_try(tries: int) -> Answer:
            # Its commit point is never passed: to say the same twice makes no second dialog.
            transfer = Transfer(talk_id, streamed=False)
            _, ids = self._call(transfer, "Upload", lambda _: request)
            return Answer(ids, (talk_id,), tries=tries)

        return self._retrying(talk_id, one_try)

    def follow(self, name: str, operation_id: str) -> tuple[str, ...]:
        """Wait until a recording has been split; answer the IDs of its dialogs.

        Gives up, with UploadError, when the operation has not changed for timeout_s.
        """
        from yandex.cloud.operation import operation_service_pb2, operation_service_pb2_grpc

        request = operation_service_pb2.GetOperationRequest(operation_id=operation_id)
        service = operation_service_pb2_grpc.OperationServiceStub
        elsewhere = False

        def one_try(tries: int) -> tuple[Any, CallIds]:
            transfer = Transfer(name, streamed=False)
            return self._call(transfer, "Get", lambda _: request, service, elsewhere)

        before, changed_s, pause_s = None, time.monotonic(), POLL_S
        try:
            while True:
                try:
                    operation, ids = self._retrying(name, one_try)
                except UploadError as error:
                    if error.status not in ("UNIMPLEMENTED", "NOT_FOUND"):
                        raise
                    if elsewhere or self._operations is None:
                        error.exit_code, error.advice = os.EX_DATAERR, LOOK_FOR_IT
                        raise
                    elsewhere = True
                    continue
                if operation.done:
                    break
                if operation != before:
                    before, changed_s = operation, time.monotonic()
                if time.monotonic() + pause_s - changed_s > self._timeout_s:
                    raise UploadError(os.EX_TEMPFAIL, f"operation {operation_id} goes on", AGAIN)
                if self.stopping.wait(pause_s):
                    raise UploadError(os.EX_TEMPFAIL, self._stop_cause, AGAIN)
                pause_s = min(pause_s * 1.5, POLL_LIMIT_S)
        except UploadError as error:
            error.cause = f"uploaded, but not yet split: {error.cause}"
            error.stops_run = error.exit_code == os.EX_NOPERM
            raise
        return split_result(operation, ids)

    def _retrying(self, name: str, one_try: Callable[[int], T]) -> T:
        """Do something until it succeeds, or fails for good; its errors tell which.

        The only place that sends anything a second time, and never without `retry`: call_error
        sets that only where no dialog can have been made.
        """
        tries, header = 0, None
        while True:
            tries += 1
            try:
                return one_try(tries)
            except UploadError as error:
                error.tries = tries
                # Full jitter: clients that failed together do not come back together.
                import random

                delay_s = random.uniform(0, min(BACKOFF_LIMIT_S, BACKOFF_S * 2.0**tries))
                delay_s = max(delay_s, error.not_before_s)
                again = error.retry and tries <= self._retries and delay_s <= ASKED_DELAY_LIMIT_S
                if error.status == "UNAUTHENTICATED" and header is None:
                    # The token may have been renewed since it was read; if so, once more.
                    self._credential.forget()
                    header, delay_s = self._credential.header(), 0.0
                    again = header != error.header
                if not again or self.stopping.is_set():
                    raise
                status = f" ({error.status})" if error.status else ""
                self._note(f"{name}: {error.cause}{status}; next try in {delay_s:.1f} s")
                if self.stopping.wait(delay_s):
                    raise

    def stop(self, cause: str, wait_for_answers: bool) -> None:
        """Cancel what is under way, and begin nothing more.

        wait_for_answers: leave alone what has passed its commit point, to hear how it ended.
        """
        self._stop_cause = cause
        self.stopping.set()
        with self._lock:
            for transfer in self._live:
                finished = transfer.abandon()
                if not (wait_for_answers and finished):
                    transfer.call.cancel()

    def close(self) -> None:
        """Let go of the channels."""
        with self._lock:
            while self._watched:
                self._watched.popitem()[1].end()

    def reported(self, path: str) -> None:
        """Forget a recording of which has been said what became of it."""
        with self._lock:
            self.begun.pop(path, None)

    def bytes_under_way(self) -> int:
        """Answer how many bytes the recordings begun have handed over, without failed tries."""
        with self._lock:
            tries = self.begun.values()
            return sum(transfer.handed_over_bytes for transfer in tries if not transfer.void)

    def _call(
        self,
        transfer: Transfer,
        method: str,
        requests: Callable[[Transfer], Any],
        service: Callable[[grpc.Channel], Any] = talk_service_pb2_grpc.TalkServiceStub,
        elsewhere: bool = False,
    ) -> tuple[Any, CallIds]:
        """Make one call; answer its response, or raise UploadError with what its end means."""
        if self.stopping.is_set():
            raise UploadError(os.EX_TEMPFAIL, self._stop_cause, AGAIN)
        header = self._credential.header()
        self._detail(f"{transfer.path}: calling the service (request {transfer.request_id})")
        with self._lock:
            channel = self._channel
            if elsewhere and self._operations:
                channel = self._operations_channel = self._operations_channel or self._operations()
            if not transfer.streamed:
                if channel not in self._watched:
                    self._watched[channel] = Connectivity(channel)
                transfer.had_connection = self._watched[channel].begin_call()
            self._calls[channel] += 1
        try:
            headers = (header, ("x-client-request-id", transfer.request_id))
            call = getattr(service(channel), method).future(requests(transfer), metadata=headers)
            with self._lock:
                transfer.call = call
                self._live.add(transfer)
            # stop() may have looked before this call was among _live.
            if self.stopping.is_set() and not transfer.finished:
                call.cancel()
            response = self._wait(call, transfer)
            return response, call_ids(transfer.request_id, call)
        except (grpc.RpcError, grpc.FutureCancelledError, GivenUp) as error:
            # First of all: from here on the reading thread cannot pass the commit point any more,
            # so `finished`, by which call_error tells unsent from unknown, is final.
            transfer.abandon()
            if transfer.error is not None:
                raise transfer.error from None
            # What had passed the commit point was not cancelled by stop(): if it failed by itself
            # meanwhile, its own status says more than that we are stopping.
            stopped = isinstance(error, grpc.FutureCancelledError) or not transfer.finished
            failure = call_error(
                GivenUp(self._stop_cause) if self.stopping.is_set() and stopped else error,
                transfer,
                call_ids(transfer.request_id, call),
                self._credential.mask,
            )
            failure.header = header
            if failure.retry:
                transfer.void = True
                self._reconnect(channel)
            raise failure from error
        finally:
            transfer.abandon()
            self._let_go(channel, transfer)

    def _wait(self, call: Any, transfer: Transfer) -> Any:
        """Wait for the answer; cancel the call and raise GivenUp if nothing moves.

        gRPC's deadline is for a whole call, and would cut a slow but steady upload; its keepalive
        would be taken for abuse by a server that frowns on pings.
        """
        # Two signs of progress: grpc takes a chunk (chunk_taken notes it), or the peer acknowledges
        # bytes that were taken before and waited in the kernel, up to mark_bytes.
        taken_bytes = acknowledged_bytes = mark_bytes = -1
        while True:
            left_s = transfer.progress_s + self._timeout_s - time.monotonic()
            if left_s <= 0 and call.cancel():
                raise GivenUp(f"no progress for {self._timeout_s:g} s")
            look_s = time.monotonic() + min(max(left_s, 0), self._timeout_s / 4)
            with contextlib.suppress(grpc.FutureTimeoutError):
                return call.result(timeout=max(look_s - time.monotonic(), 0))
            overslept_s = time.monotonic() - look_s
            if overslept_s > self._timeout_s / 4:  # The machine stood still: that is no silence.
                transfer.progress_s += overslept_s
            before_bytes = acknowledged_bytes
            acknowledged_bytes, held_bytes = connection_bytes()
            if taken_bytes != transfer.handed_over_bytes:
                # Where the peers have acknowledged all that grpc has taken up to now; what they
                # acknowledge beyond is other recordings', and no progress of this one.
                taken_bytes = transfer.handed_over_bytes
                mark_bytes = acknowledged_bytes + held_bytes + CHUNK_SIZE_BYTES
                mark_bytes += 0 if transfer.streamed else taken_bytes
            elif before_bytes + MOVING_BYTES <= acknowledged_bytes and before_bytes < mark_bytes:
                transfer.progress_s = time.monotonic()

    def _reconnect(self, channel: grpc.Channel) -> None:
        """Give the next try a connection of its own, unless somebody else already did.

        The old one may be a route that swallows everything, or wait out a pause of its own
        before it connects again. Uploads still under way on it go on.
        """
        with self._lock:
            if self._channel is channel:
                self._channel = self._open_channel()
            elif self._operations_channel is channel:
                self._operations_channel = None

    def _let_go(self, channel: grpc.Channel, transfer: Transfer) -> None:
        """Forget a call that has ended, and close its channel if that was the last on an old one.

        Were this left to the garbage collector, a bad day would keep hundreds of connections open.
        """
        with self._lock:
            self._live.discard(transfer)
            self._calls[channel] -= 1
            if self._calls[channel] or channel in (self._channel, self._operations_channel):
                return
            del self._calls[channel]
            if channel in self._watched:
                self._watched.pop(channel).end()
            else:
                close_channel(channel)


def check_answer(response: Any, transfer: Transfer, ids: CallIds) -> Answer:
    """Take an answer as success only if it names a dialog that can have all of the file.

    response: UploadTalkResponse, or the Operation of a recording to be split.
    """
    made, answer = "", Answer(ids)
    if isinstance(response, talk_service_pb2.UploadTalkResponse):
        made = response.talk_id
        answer = Answer(ids, (made,))
    elif response is not None:  # OK without any message is no answer.
        badge = talk_service_pb2.UploadBadgeMetadata()
        with contextlib.suppress(DecodeError):
            response.metadata.Unpack(badge)
        made = badge.badge_id or response.id
        talk_ids = split_result(response, ids) if response.WhichOneof("result") else ()
        answer = Answer(ids, talk_ids, badge.badge_id, response.id)
    if transfer.finished and made:
        return answer
    early = f"before it had the whole file (ID: {made})" if made else "without an ID"
    cause = f"the service answered {early}; the dialog may be incomplete"
    raise UploadError(os.EX_PROTOCOL, cause, LOOK_FIRST, status="OK", ids=ids)


def split_result(operation: Any, ids: CallIds) -> tuple[str, ...]:
    """Answer the dialogs that a recording was split into; raise UploadError if it failed."""
    badge = talk_service_pb2.UploadBadgeResponse()
    with contextlib.suppress(DecodeError):
        if operation.WhichOneof("result") == "response" and operation.response.Unpack(badge):
            return tuple(badge.talk_ids)
    reason = operation.error.message or "no reason given"
    cause = f"uploaded, but not split: {reason}, operation {operation.id}"
    raise UploadError(os.EX_DATAERR, cause, LOOK_FOR_IT, ids=ids)


def upload_talk(
    connection_id: int | str, metadata: Mapping[str, str], api_key: str, audio_path: str
) -> str:
    """Upload one recording, as the guide's function of this name does; answer its dialog ID.

    api_key: an API key or an IAM token. Raises UploadError.
    """
    recording = check_recording(audio_path, Metadata(dict(metadata)))
    credential = Credential("api_key", lambda: api_key)
    roots = read_root_certificates(None)
    uploader = Uploader(lambda: open_channel(ENDPOINT, roots), str(connection_id), credential)
    return uploader.upload(recording).talk_ids[0]


# --- The ledger ----------------------------------------------------------------------------

LEDGER_APPLICATION_ID = 0x53534C47
LEDGER_VERSION = 1
LEDGER_SCHEMA = """
CREATE TABLE recordings (
    connection_id   TEXT    NOT NULL,
    sha256          TEXT    NOT NULL,
    path            TEXT    NOT NULL,
    size_bytes      INTEGER NOT NULL,
    mtime_ns        INTEGER NOT NULL,
    metadata_sha256 TEXT    NOT NULL,
    state           TEXT    NOT NULL CHECK (state IN
        ('sending', 'finishing', 'uploaded', 'unknown', 'failed', 'rejected')),
    talk_id         TEXT,
    badge_id        TEXT,
    operation_id    TEXT,
    request_id      TEXT,
    attempts        INTEGER NOT NULL DEFAULT 0,
    error           TEXT,
    updated_at      TEXT    NOT NULL,
    PRIMARY KEY (connection_id, sha256)
) WITHOUT ROWID;
CREATE INDEX recordings_by_path ON recordings (connection_id, path);
CREATE INDEX recordings_under_way ON recordings (state) WHERE state IN ('sending', 'finishing');
"""
PATHS_A_QUERY = 500
LEDGER_HELD_LIMIT_S = 6 * 60 * 60


class LedgerError(UploadError):
    """The ledger cannot be used, and nothing is sent without it."""

    def __init__(self, path: str, cause: str) -> None:
        exit_code, advice = os.EX_CONFIG, "name another file, or put it right"
        # A full or busy disk may be mended by time; a file of another kind will stay what it is.
        if re.search("full|locked|I/O|space|quota|too large|another run", cause):
            exit_code, advice = os.EX_TEMPFAIL, "run again when that has passed"
        elif re.search("malformed|not a database", cause):
            advice = "put a copy in its place: with a new ledger everything is sent again"
        super().__init__(exit_code, f"ledger {path}: {cause}", advice)
        self.stops_run = True


class LedgerInUse(LedgerError):
    """Another run goes on: nothing has failed, and cron need not mail it every few minutes.

    Unless it has gone on for so long that it must be stuck, and nothing is uploaded any more.
    """


class Row(NamedTuple):
    """What the ledger knows of a recording."""

    state: str
    path: str
    mtime_ns: int
    metadata_sha256: str
    talk_id: str | None = None
    badge_id: str | None = None
    operation_id: str | None = None
    error: str | None = None
    # Whether claim() has taken it for sending nevertheless.
    claimed: bool = False

    def settled(self, recording: Recording, retry_unknown: bool) -> bool:
        """Whether the recording is not to be sent: nothing has changed for one once rejected."""
        if self.state == "rejected":
            now = (recording.state.mtime_ns, hash_metadata(recording))
            return now == (self.mtime_ns, self.metadata_sha256)
        return self.state == "uploaded" or (self.state == "unknown" and not retry_unknown)

    @property
    def to_follow(self) -> bool:
        """Whether this recording is being split, into dialogs not yet known."""
        return bool(self.operation_id and not self.talk_id)

    @property
    def results(self) -> dict[str, Any]:
        """The IDs, as a report has them."""
        return {
            "talk_ids": tuple((self.talk_id or "").split()),
            "badge_id": self.badge_id or "",
            "operation_id": self.operation_id or "",
        }


ROW_COLUMNS = "state, path, mtime_ns, metadata_sha256, talk_id, badge_id, operation_id, error"


class Ledger:
    """One SQLite file that remembers what became of each recording of one connection.

    A recording is its content: connection and SHA-256. Rows go sending -> finishing -> uploaded;
    a finishing row is on disk before the half-close can leave, so a run that dies leaves either
    no dialog (a sending row, or none) or a row that says there may be one.
    Every method raises LedgerError.
    """

    def __init__(self, path: str, connection_id: str) -> None:
        import sqlite3

        self._sqlite_error = sqlite3.Error
        # One file, one lock, by whatever name.
        self._path = path = os.path.realpath(path)
        self._connection_id = connection_id
        self._claimed: dict[str, str] = {}
        self._waiting: list[_Write] = []
        self._waiting_lock = threading.Lock()
        self._write_lock = threading.Lock()
        with contextlib.ExitStack() as undo:
            try:
                self._lock_file = self._lock()
                undo.callback(os.close, self._lock_file)
                self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
                undo.callback(self._db.close)
                self._prepare()
            except OSError as error:
                raise LedgerError(path, error.strerror or str(error)) from error
            except sqlite3.Error as error:
                raise LedgerError(path, str(error)) from error
            undo.pop_all()

    def _lock(self) -> int:
        """Keep other runs out until this process ends, however it ends."""
        # A file of its own: SQLite's locks on the ledger itself are lost when any descriptor of
        # the ledger is closed (sqlite.org/howtocorrupt.html, 2.2).
        lock_file = os.open(f"{self._path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.utime(lock_file)
        except BlockingIOError:
            since_s = os.fstat(lock_file).st_mtime
            os.close(lock_file)
            stuck = time.time() - since_s > LEDGER_HELD_LIMIT_S
            cause = f"another run is using it, since {utc(since_s)}"
            raise (LedgerError if stuck else LedgerInUse)(self._path, cause) from None
        # SQLite gives its other files the permissions that this one has.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        return lock_file

    def _prepare(self) -> None:
        """Make the table in an empty file, or make sure that it is ours, and tidy up."""
        (application_id,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application_id != LEDGER_APPLICATION_ID:
            raise LedgerError(self._path, "a database of another program")
        if version > LEDGER_VERSION:
            raise LedgerError(self._path, "written by a newer upload_grpc")
        if self._db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise LedgerError(self._path, "database disk image is malformed")
        # Write-ahead log: people can read while we write, and a commit is one write, one sync.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("BEGIN IMMEDIATE")
        if not tables:
            for statement in LEDGER_SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {LEDGER_APPLICATION_ID}")
        # Written even where it changes nothing: a disk that is full says so before we send.
        self._db.execute(f"PRAGMA user_version = {LEDGER_VERSION}")
        for state, after in (("sending", "failed"), ("finishing", "unknown")):
            self._db.execute(
                f"UPDATE recordings SET state = '{after}', error = 'the run was killed' "
                f"WHERE state = '{state}'"
            )
        self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the file; the lock goes with the process."""
        with self._write_lock:
            with contextlib.suppress(self._sqlite_error):  # All that matters is written.
                self._db.close()
            os.close(self._lock_file)

    def uploaded(self, paths: Sequence[str]) -> dict[tuple[str, int | None, int], Row]:
        """Look up files: (path, size in bytes, mtime in ns) -> row, of those uploaded."""
        found: dict[tuple[str, int | None, int], Row] = {}
        keys = {ledger_key(path): path for path in paths}
        names = list(keys)
        for start in range(0, len(names), PATHS_A_QUERY):
            some = names[start : start + PATHS_A_QUERY]
            rows = self._do(
                # Unless told, SQLite reads through all rows of the connection for so many paths.
                f"SELECT size_bytes, {ROW_COLUMNS} FROM recordings INDEXED BY recordings_by_path "
                f"WHERE connection_id = ? AND path IN ({', '.join('?' * len(some))}) "
                "AND state = 'uploaded'",
                (self._connection_id, *some),
            ).rows
            for size_bytes, *columns in rows:
                row = Row(*columns)
                found[keys[row.path], size_bytes, row.mtime_ns] = row
        return found

    def claim(self, recording: Recording, sha256: str, retry_unknown: bool) -> Row | None:
        """Take a recording for sending, and answer what was known of it.

        A row that is not `claimed` says why it is not to be sent: it was uploaded, rejected, is
        unknown, or this run is sending the same content under another name.
        """
        key = ledger_key(recording.path)
        size_bytes, mtime_ns = recording.state.size_bytes, recording.state.mtime_ns
        metadata_sha256 = hash_metadata(recording)
        # Atomic, and runs exclude each other: of two threads with the same content one goes on.
        taken_as = self._claimed.setdefault(sha256, recording.path)
        if taken_as != recording.path:
            return Row("sending", taken_as, 0, "")
        row = self.row(sha256)
        if row and row.settled(recording, retry_unknown):
            if row.state == "uploaded" and (
                row.path == os.fsdecode(key) or not os.path.exists(row.path)
            ):
                # So that its present name spares the next run the hash.
                self._set(sha256, "uploaded", {"path": key, "mtime_ns": mtime_ns})
            return row
        # Need not be on disk yet: whether a crash keeps this row or loses it, nothing was sent,
        # and the next run sends the recording.
        self._do(
            "INSERT INTO recordings (connection_id, sha256, path, size_bytes, mtime_ns, "
            "metadata_sha256, state, updated_at) VALUES (?, ?, ?, ?, ?, ?, 'sending', ?) "
            "ON CONFLICT DO UPDATE SET path = excluded.path, mtime_ns = excluded.mtime_ns, "
            "metadata_sha256 = excluded.metadata_sha256, state = 'sending', error = NULL, "
            "request_id = NULL, updated_at = excluded.updated_at",
            (self._connection_id, sha256, key, size_bytes, mtime_ns, metadata_sha256, utc()),
        )
        return row and row._replace(claimed=True)

    def reach(self, sha256: str, state: str, request_id: str) -> None:
        """Note the state of a try; `finishing`: put on disk that there may be a dialog now."""
        self._set(sha256, state, {"request_id": request_id}, durable=state == "finishing")

    def settle(self, sha256: str, report: "Report") -> None:
        """Note how sending a recording ended."""
        # Not durable: if the power fails now, the row still says finishing, and a run that finds
        # that names the recording as unknown. The next sync, or close(), brings it to disk.
        columns: dict[str, object] = {
            "talk_id": " ".join(report.talk_ids) or None,
            "badge_id": report.badge_id or None,
            "operation_id": report.operation_id or None,
            "error": report.error.cause if report.error else None,
            "attempts": report.tries,
        }
        if report.ids:
            columns["request_id"] = report.ids.request_id
        self._set(sha256, report.outcome, columns)

    def row(self, sha256: str) -> Row | None:
        """Look a recording up by its content."""
        found = self._do(
            f"SELECT {ROW_COLUMNS} FROM recordings WHERE connection_id = ? AND sha256 = ?",
            (self._connection_id, sha256),
        ).rows
        return Row(*found[0])._replace(path=os.fsdecode(found[0][1])) if found else None

    def _set(
        self, sha256: str, state: str, columns: Mapping[str, object], durable: bool = False
    ) -> None:
        """Change a row; attempts are added to those it has."""
        names = "".join(
            f", {name} = {'attempts +' if name == 'attempts' else ''} ?" for name in columns
        )
        changed = self._do(
            f"UPDATE recordings SET state = ?, updated_at = ?{names} "
            "WHERE connection_id = ? AND sha256 = ?",
            (state, utc(), *columns.values(), self._connection_id, sha256),
            durable,
        ).changed_rows
        if not changed:
            raise LedgerError(self._path, f"row {sha256} has been deleted")

    def _do(self, sql: str, values: tuple[object, ...], durable: bool = False) -> "_Write":
        """Execute a statement in a transaction shared by all threads that wait for one.

        While one thread waits for the disk the others queue up here, and the next to come takes
        all their statements into its own commit. Nobody is let go before the commit that holds
        its statement, so sharing one weakens nothing.
        """
        write = _Write(sql, values, durable)
        with self._waiting_lock:
            self._waiting.append(write)
        with self._write_lock:
            if not write.done:
                with self._waiting_lock:
                    batch, self._waiting = self._waiting, []
                self._commit(batch)
        if write.error:
            raise LedgerError(self._path, write.error)
        return write

    def _commit(self, batch: "list[_Write]") -> None:
        """Execute statements in one transaction, on disk if one of them has to be."""
        error_text = ""
        durable = any(write.durable for write in batch)
        try:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            for write in batch:
                cursor = self._db.execute(write.sql, write.values)
                write.rows, write.changed_rows = cursor.fetchall(), cursor.rowcount
            self._db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - of one thread's values, say: none is committed.
            error_text = str(error) or repr(error)
            # SQLite may have rolled back by itself, and a full disk may keep us from doing it.
            with contextlib.suppress(self._sqlite_error):
                self._db.execute("ROLLBACK")
        for write in batch:
            write.error = error_text
            write.done = True


class _Write:
    """One thread's statement in a shared transaction."""

    def __init__(self, sql: str, values: tuple[object, ...], durable: bool) -> None:
        self.sql = sql
        self.values = values
        self.durable = durable
        self.done = False
        self.rows: list[Any] = []
        self.changed_rows = 0
        self.error = ""


def ledger_key(path: str) -> Any:
    """Answer a path as it stands in the ledger: absolute, as bytes where it is not UTF-8."""
    folder, name = os.path.split(path)
    path = os.path.join(absolute(folder), name)
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


# Of thousands of files most share their folder with others.
absolute = functools.lru_cache(maxsize=1024)(os.path.abspath)


def hash_audio(recording: Recording, stopping: threading.Event) -> str:
    """Answer the SHA-256 of a recording, in hexadecimal; raise FileChanged if it cannot be read."""
    import hashlib

    digest = hashlib.sha256()
    with open_unchanged(recording.path, recording.state) as audio:
        for data in read_chunks(audio, HASH_CHUNK_SIZE_BYTES):
            if stopping.is_set():
                raise UploadError(os.EX_TEMPFAIL, "the run ended before it was sent", AGAIN)
            digest.update(data)
    return digest.hexdigest()


def hash_metadata(recording: Recording) -> str:
    """Answer a digest of what is sent beside the audio, and of how it is sent, in hexadecimal.

    Placeholder fields count without their date, which is another each time.
    """
    import hashlib

    metadata = recording.metadata
    if PLACEHOLDER_WARNING in recording.warnings:
        metadata = Metadata(PLACEHOLDER_FIELDS)
    sent = json.dumps((metadata, recording.options), sort_keys=True)
    return hashlib.sha256(sent.encode()).hexdigest()


def utc(seconds: float | None = None) -> str:
    """Answer a time, or the present one, as ISO 8601 in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


# --- One run over all recordings -----------------------------------------------------------


class Report(NamedTuple):
    """What became of one recording."""

    path: str
    outcome: str = "failed"
    size_bytes: int | None = None
    mtime_ns: int = 0
    seconds: float = 0.0
    tries: int = 0
    talk_ids: tuple[str, ...] = ()
    badge_id: str = ""
    operation_id: str = ""
    ids: CallIds | None = None
    error: UploadError | None = None
    description: str = ""
    # Another recording of this run with the same audio, which was the one to be sent.
    same_as: str = ""
    # Named on the command line, not found in a folder.
    named: bool = True

    @property
    def exit_code(self) -> int:
        """The exit code this recording asks for."""
        return self.error.exit_code if self.error else os.EX_OK

    @property
    def lines(self) -> list[str]:
        """What stdout says of it."""
        badge = [f"Badge ID: {self.badge_id}"] if self.badge_id else []
        if self.operation_id and not self.badge_id:
            badge = [f"Operation ID: {self.operation_id}"]
        return badge + [f"Dialog ID: {talk_id}" for talk_id in self.talk_ids]

    def failed(self, error: UploadError) -> "Report":
        """Answer this report with what went wrong."""
        outcome = {os.EX_DATAERR: "rejected", os.EX_PROTOCOL: "unknown"}.get(error.exit_code)
        return self._replace(
            error=error, outcome=outcome or "failed", tries=error.tries, ids=error.ids
        )

    def as_json(self, mask: Callable[[str], str]) -> str:
        """Answer one line of JSON; README explains the keys."""
        return json.dumps(
            {
                "schema_version": 1,
                "path": self.path,
                "outcome": self.outcome,
                "talk_id": self.talk_ids[0] if self.talk_ids and not self.badge_id else None,
                "badge_id": self.badge_id or None,
                "talk_ids": self.talk_ids,
                "error": mask(str(self.error)) if self.error else None,
                "exit_code": self.exit_code,
                "request_id": self.ids.request_id if self.ids else None,
                "bytes": self.size_bytes,
                "seconds": round(self.seconds, 3),
                "tries": self.tries,
                "description": self.description or None,
            }
        )


def find_recordings(args: argparse.Namespace, console: "Console") -> Iterator[Report]:
    """Yield the files named and those in the folders named, each file once, in a stable order.

    What cannot be read has an error. Files younger than --min-age are left out.
    """
    # Without a ledger this alone keeps a file with two names from becoming two dialogs.
    seen: set[tuple[int, int]] = set()
    closed: list[OSError] = []
    for path, named in walk(args.audio_path, suffixes(args), closed.append):
        try:
            status = os.stat(path)
        except (OSError, ValueError) as error:
            yield Report(path, named=named).failed(unreadable(error))
            continue
        if (status.st_dev, status.st_ino) in seen:
            console.detail(f"{path}: another name of a file that is already there, left out")
        elif args.min_age and -CLOCK_SKEW_S < time.time() - status.st_mtime < args.min_age:
            console.detail(f"{path}: younger than {args.min_age:g} s, left out")
        else:
            seen.add((status.st_dev, status.st_ino))
            state = FileState.of(status)
            yield Report(path, size_bytes=state.size_bytes, mtime_ns=state.mtime_ns, named=named)
    for failure in closed:
        yield Report(failure.filename, named=False).failed(unreadable(failure))


def suffixes(args: argparse.Namespace) -> tuple[str, ...]:
    """Answer what folders are searched for."""
    return PCM_SUFFIXES if args.audio_type == "pcm" else tuple(AUDIO_SUFFIXES)


def walk(
    paths: Sequence[str], suffixes: tuple[str, ...], on_error: Callable[[OSError], None]
) -> Iterator[tuple[str, bool]]:
    """Yield each path that is no folder, and the audio files of each that is, sorted by name.

    The second value says whether the path was named. on_error: told of folders not readable.
    """
    visited: set[tuple[int, int]] = set()
    for path in paths:
        if not os.path.isdir(path):
            yield path, True
            continue
        for folder, subfolders, files in os.walk(path, followlinks=True, onerror=on_error):
            try:
                status = os.stat(folder)
            except OSError as error:
                on_error(error)
                continue
            if (status.st_dev, status.st_ino) in visited:  # By a link, or named twice.
                subfolders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            subfolders.sort()
            for name in sorted(files):
                if name.lower().endswith(suffixes):
                    yield os.path.join(folder, name), False


def check_all(
    args: argparse.Namespace, options: AudioOptions, ledger: Ledger | None, console: "Console"
) -> tuple[list[tuple[Recording, Report]], list[Report]]:
    """Look at everything named; answer what is to be sent, and what is settled already."""
    common = read_metadata(args.meta_path) if args.meta_path else None
    to_send: list[tuple[Recording, Report]] = []
    settled: list[Report] = []
    found = list(find_recordings(args, console))
    uploaded = ledger.uploaded([report.path for report in found]) if ledger else {}
    for warning in date_warnings(common) if common else ():
        console.note(f"{args.meta_path}: {warning}")
    without: list[str] = []
    for report in found:
        row = uploaded.get((report.path, report.size_bytes, report.mtime_ns))
        if report.error:
            settled.append(report)
            continue
        if row and not (args.wait and row.to_follow):
            settled.append(report._replace(outcome="already", **row.results))
            continue
        try:
            recording = check_recording(report.path, common, options)
        except UploadError as error:
            settled.append(report.failed(error))
            continue
        for warning in recording.warnings:
            if warning == PLACEHOLDER_WARNING:
                without.append(report.path)
            else:
                console.note(f"{report.path}: {warning}")
        to_send.append((recording, report))
    if without:  # One line for thousands.
        more = f" and {len(without) - 1:,} more" if len(without) > 1 else ""
        console.note(f"{without[0]}{more}: {PLACEHOLDER_WARNING}")
    if not found:
        console.note(f"nothing to upload: folders are searched for {', '.join(suffixes(args))}")
    return to_send, settled


def planned(recording: Recording) -> str:
    """Say what would be sent, and how."""
    way = "as a single message" if recording.options.single_message else "as a stream"
    way += " to be split" if recording.options.split else ""
    size = f"{recording.state.size_bytes:,} bytes"
    return f"{recording.audio.description}, {size} {way}, {planned_metadata(recording.metadata)}"


def planned_metadata(metadata: Metadata) -> str:
    """Say what metadata would be sent."""
    count = len(metadata.users or ())
    users = f", {count} user{'s' * (count != 1)}" if count else ""
    return f"metadata {json.dumps(metadata.fields, ensure_ascii=False)}{users}"


def upload_one(
    recording: Recording,
    report: Report,
    args: argparse.Namespace,
    uploader: Uploader,
    ledger: Ledger | None,
    console: "Console",
) -> Report:
    """Upload a recording, with the ledger's knowledge if there is one; answer what became of it."""
    started_s = time.monotonic()
    sha256 = ""
    try:
        row: Row | None = None
        if ledger:
            sha256 = hash_audio(recording, uploader.stopping)
            row = ledger.claim(recording, sha256, args.retry_unknown)
            if row and row.claimed and row.state == "unknown":
                console.note(f"{report.path}: may be there already, --retry-unknown sends it again")
        if row and not row.claimed:
            report = settle_from_row(report, row)
        else:
            on_state = functools.partial(ledger.reach, sha256) if ledger else None
            answer = uploader.upload(recording, on_state)
            report = report._replace(outcome="uploaded", **answer._asdict())
            if ledger:
                ledger.settle(sha256, report)
        if args.wait and report.operation_id and not report.talk_ids:
            talk_ids = uploader.follow(report.path, report.operation_id)
            report = report._replace(talk_ids=talk_ids, outcome="uploaded")
            if ledger:
                ledger.settle(sha256, report._replace(tries=0))
    except UploadError as error:
        if report.outcome == "failed":
            report = report.failed(error)
            # Where the ledger itself failed, its row may say uploaded or unknown: that must not
            # become failed, which the next run would send again. Where it fails only now, the row
            # goes on saying sending or finishing, less than it could and never more.
            if ledger and sha256 and not isinstance(error, LedgerError):
                with contextlib.suppress(LedgerError):
                    ledger.settle(sha256, report)
        else:  # Uploaded; only what was to come after that failed.
            if not ledger and error.exit_code == os.EX_TEMPFAIL:
                # Who runs that again sends it again.
                error.exit_code, error.advice = os.EX_PROTOCOL, LOOK_FOR_IT
            report = report._replace(error=error)
    return report._replace(seconds=time.monotonic() - started_s)


def plan_one(
    recording: Recording,
    report: Report,
    args: argparse.Namespace,
    uploader: Uploader,
    ledger: Ledger | None,
) -> Report:
    """Say what would become of a recording."""
    try:
        if ledger:
            sha256 = hash_audio(recording, uploader.stopping)
            row = ledger.row(sha256)
            if row and row.settled(recording, args.retry_unknown):
                return settle_from_row(report, row)
    except UploadError as error:
        return report.failed(error)
    return report._replace(outcome="checked", description=planned(recording))


def settle_from_row(report: Report, row: Row) -> Report:
    """Say what the ledger knows of a recording that is not to be sent."""
    if row.state == "uploaded":
        return report._replace(outcome="already", **row.results)
    if row.state == "sending":
        # Under another name, in this run: known when that one has ended.
        return report._replace(same_as=row.path)
    if row.state == "unknown":
        cause = f"not sent, an earlier run may have uploaded it: {row.error}"
        error = UploadError(os.EX_PROTOCOL, cause, LOOK_FIRST)
    else:
        cause = f"not sent, it was rejected before: {row.error}"
        error = refused(cause, "it is sent again once the file or its metadata changes")
    return report._replace(error=error, outcome=row.state)


def settle_same(report: Report, sent: Report) -> Report:
    """Say what became of a recording whose content went under another name."""
    if sent.outcome in ("uploaded", "already"):
        return report._replace(
            outcome="already",
            talk_ids=sent.talk_ids,
            badge_id=sent.badge_id,
            operation_id=sent.operation_id,
        )
    cause = f"same audio as {sent.path}, which was not uploaded"
    return report.failed(UploadError(sent.exit_code, cause, "see there"))


class Interrupted(BaseException):
    """A signal asks the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.told = False

    @property
    def exit_code(self) -> int:
        """The exit code that shells use for a program that a signal ended."""
        return 128 + self.number


@contextlib.contextmanager
def signals_to(handle: Callable[[int], None]) -> Iterator[None]:
    """Have SIGINT and SIGTERM handled, except where whoever started us chose to ignore them."""
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread()
        and signal.getsignal(number) is not signal.SIG_IGN
    ]
    before = [signal.signal(number, lambda number, frame: handle(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def raise_interrupted(number: int) -> NoReturn:
    """Leave whatever is going on, where that loses nothing."""
    raise Interrupted(number)


Upload = Callable[[Recording, Report], Report]
Events = queue.SimpleQueue[Report | BaseException | None]


def work_off(
    waiting: collections.deque[tuple[Recording, Report]],
    upload: Upload,
    uploader: Uploader,
    events: Events,
) -> None:
    """Upload one recording after the other; put each report into events, and None at the end."""
    try:
        while not uploader.stopping.is_set():
            try:
                item = waiting.popleft()  # Atomic: no two threads take the same recording.
            except IndexError:
                break
            report = upload(*item)
            if report.error and report.error.stops_run:
                # Before anybody takes another recording, to send it in vain.
                uploader.stop(f"the run ended: {report.error.cause}", wait_for_answers=True)
            events.put(report)
    except BaseException as bug:  # noqa: BLE001 - raised again by the thread that reports.
        events.put(bug)
    finally:
        events.put(None)


def upload_all(
    to_send: Sequence[tuple[Recording, Report]],
    upload: Upload,
    uploader: Uploader,
    jobs: int,
    console: "Console",
) -> Iterator[Report]:
    """Upload recordings, so many at a time; yield a report as each of them ends.

    Stops early where every other recording would meet the same error. Raises Interrupted after a
    signal, and what a bug raised, when what was under way has been reported.
    """
    events: Events = queue.SimpleQueue()
    waiting = collections.deque(to_send)
    working = min(jobs, len(to_send))
    ended_by: BaseException | None = None
    # After that: when to give up waiting for answers, then for calls to be cancelled.
    deadlines_s = [math.inf]
    # A signal is one more event: were it raised here, a report could be lost half-way.
    with signals_to(lambda number: events.put(Interrupted(number))):
        arguments = (waiting, upload, uploader, events)
        for _ in range(working):
            # Daemons: one that reads from a dead disk must not keep the program from ending.
            threading.Thread(target=work_off, args=arguments, daemon=True).start()
        while working and deadlines_s:
            console.show_progress(uploader.bytes_under_way)
            left_s = max(deadlines_s[0] - time.monotonic(), 0)
            try:
                event = events.get(timeout=min(left_s, BAR_INTERVAL_S))
            except queue.Empty:
                if time.monotonic() >= deadlines_s[0]:
                    uploader.stop(f"{ended_by}", wait_for_answers=False)
                    del deadlines_s[0]
                continue
            if event is None:
                working -= 1
            elif isinstance(event, Report):
                if isinstance(ended_by, Interrupted) and event.error:  # Its line says what it was.
                    ended_by.told = len(to_send) == 1
                yield event
                uploader.reported(event.path)
            else:
                uploader.stop(f"{event}", wait_for_answers=True)
                if ended_by is None:
                    ended_by, now_s = event, time.monotonic()
                    deadlines_s = [now_s + ANSWER_GRACE_S, now_s + ANSWER_GRACE_S + CANCEL_GRACE_S]
    if ended_by:
        raise ended_by


# --- The command line ----------------------------------------------------------------------


class Console:
    """The only place that prints: results on stdout, one line a problem on stderr."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.mask: Callable[[str], str] = str
        self.output_lost = False
        self._json = args.format == "json"
        self._quiet = args.quiet
        self._verbose = args.verbose
        self.several = len(args.audio_path) > 1 or any(map(os.path.isdir, args.audio_path))
        self._bar: Any = None
        self._draw_bar_at_s = math.inf
        self._done_bytes = self._all_bytes = self._done = self._all = 0
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A name that is not UTF-8 leaves as the bytes it came as.
            utf8 = sys.stdout.encoding.lower().startswith("utf")
            sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")

    def result(self, report: Report) -> None:
        """Print what became of a recording."""
        self._done += 1
        self._done_bytes += report.size_bytes or 0
        news = report.outcome == "uploaded"
        if report.error and report.outcome != "not tried":
            self.problem(f"{report.path}: {report.error}")
        if report.ids and not report.error:
            self.detail(f"{report.path}: {report.outcome} in {report.seconds:.2f} s ({report.ids})")
        if self._json:
            self._print_result(report.as_json(self.mask), news)
        elif report.outcome == "checked":
            self._print_result(f"{report.path}: would be sent: {report.description}", news)
        elif news or report.named or self._verbose:
            for line in report.lines:
                self._print_result(f"{report.path}: {line}" if self.several else line, news)

    def _print_result(self, line: str, news: bool) -> None:
        line = one_line(line)
        if not self.output_lost:
            try:
                with self._above_bar(sys.stdout):
                    print(line, flush=True)
                return
            except OSError as error:
                self.output_lost = True
                self.problem(f"stdout cannot be written: {error.strerror}; dialog IDs follow here")
        if news:
            self.problem(line)

    def problem(self, text: str) -> None:
        """Print a line that even --quiet does not silence."""
        with self._above_bar(sys.stderr), contextlib.suppress(OSError):
            # In one piece: other threads print, too.
            sys.stderr.write(one_line(self.mask(f"upload_grpc: {text}")) + "\n")

    def note(self, text: str) -> None:
        """Print a line that --quiet silences."""
        if not self._quiet:
            self.problem(text)

    def detail(self, text: str) -> None:
        """Print a line for --verbose."""
        if self._verbose:
            self.problem(text)

    # A progress bar, for a person who watches.

    def expect(self, reports: Sequence[Report]) -> None:
        """Prepare for a bar over these recordings, shown if they take longer than a moment."""
        self._done = self._done_bytes = 0
        self._all = len(reports)
        self._all_bytes = sum(report.size_bytes or 0 for report in reports)
        if sys.stderr.isatty() and not self._quiet:
            self._draw_bar_at_s = time.monotonic() + BAR_DELAY_S

    def show_progress(self, bytes_under_way: Callable[[], int]) -> None:
        """Draw the bar; what a failed try had sent is no longer in bytes_under_way."""
        if time.monotonic() < self._draw_bar_at_s:
            return
        self._draw_bar_at_s = time.monotonic() + BAR_INTERVAL_S
        if self._bar is None:
            try:
                from tqdm import tqdm
            except ImportError:
                self._draw_bar_at_s = math.inf
                return
            # One average rate: that of a moment says little where several share a line.
            self._bar = tqdm(
                total=self._all_bytes,
                unit="B",
                unit_scale=True,
                dynamic_ncols=True,
                smoothing=0,
                file=sys.stderr,
            )
            self._bar.start_t -= BAR_DELAY_S
        self._bar.set_description(f"{self._done} of {self._all} recordings", refresh=False)
        self._bar.n = self._done_bytes + bytes_under_way()
        self._bar.refresh()

    def end_progress(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.leave = False
            self._bar.close()
        self._bar, self._draw_bar_at_s = None, math.inf

    def _above_bar(self, stream: TextIO) -> contextlib.AbstractContextManager[Any]:
        """Make way for a line, unless it goes where no bar is."""
        above = self._bar is not None and stream.isatty()
        return self._bar.external_write_mode() if above else contextlib.nullcontext()


def one_line(text: str) -> str:
    """Show control characters as escapes: a file's name, or the service, may hold any."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


class Parser(argparse.ArgumentParser):
    """argparse that never repeats a value in an error: it may be a key in the wrong place."""

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse; exit with 2, naming the options that are unknown and nothing else."""
        namespace, rest = self.parse_known_args(argv)
        if rest:
            words = [match[0] for word in rest if (match := re.match("--[a-z-]+", word))]
            # A key may be glued to its option.
            known = [option for option in self._option_string_actions if option.startswith("--")]
            options = [
                next((f"{o}..." for o in known if word.startswith(o)), word) for word in words
            ]
            self.error(f"not understood: {' '.join(options) or 'a word that is no option'}")
        return namespace

    def error(self, message: str) -> NoReturn:
        """Exit with 2 and a message without the values that argparse puts into it."""
        match = re.match(r"(argument [^:]+): (?:invalid|ignored)", message, re.DOTALL)
        choices = re.search(r" \(choose from [^()]*\)$", message)
        if match:
            message = f"{match[1]}: invalid value{choices[0] if choices else ''}"
        super().error(message)


def number(
    kind: type[int] | type[float], lowest: float, highest: float
) -> Callable[[str], int | float]:
    """Make an argparse type: a number between two bounds."""

    def parse(text: str) -> int | float:
        value = kind(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"must be from {lowest:g} to {highest:g}")
        return value

    return parse


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; argparse exits with 2 where it is wrong."""
    parser = Parser(
        prog="upload_grpc.py",
        description=(__doc__ or "").partition("\n\n")[0],
        epilog=(__doc__ or "").partition("\n\n")[2],
        # To ask a terminal for its width would import shutil, and that all sorts, at each start.
        formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, width=100),
        allow_abbrev=False,
    )
    # fmt: off
    option = parser.add_argument_group("what to upload").add_argument
    option("--audio-path", action="extend", nargs="+", default=[], metavar="PATH",
           help="recordings (WAV with 16 bit LPCM, MP3, OggOpus), or folders searched for them")
    option("--connection-id", required=True, metavar="ID", help="the connection to upload to")
    option("--meta-path", metavar="FILE",
           help="JSON object of metadata fields; call.json beside call.wav wins, field by field")
    option("--talk-id", metavar="ID", help="send --meta-path alone: new metadata for this dialog")
    option("--audio-type", choices=("auto", *AUDIO_TYPES), default="auto",
           help="auto (default): from the content; pcm: raw samples, 16 bit, signed, "
                "little-endian, with --sample-rate and --channels")
    option("--sample-rate", type=number(int, SAMPLE_RATES_HZ[0], SAMPLE_RATES_HZ[-1]), default=0,
           metavar="HZ", help="of raw samples")
    option("--channels", type=number(int, 1, 64), default=0, metavar="N", help="of raw samples")
    option("--min-age", type=number(float, 0, 1e9), default=0, metavar="S",
           help="leave out files changed less than S seconds ago: they may still be written to")

    option = parser.add_argument_group("access").add_argument
    option("--key", metavar="KEY",
           help="API key or IAM token; every user of the machine sees it in the process list")
    option("--key-file", metavar="FILE", help="file that holds the key or token")
    option("--key-type", choices=("auto", "api-key", "iam-token", "vm"), default="auto",
           help="auto (default): t1. begins an IAM token. Without --key and --key-file the "
                "environment's API_KEY, then its IAM_TOKEN, is taken. vm: the token of this cloud "
                "VM's service account (YC_METADATA_ADDR: another address of the metadata service)")
    option("--endpoint", metavar="HOST:PORT", default=ENDPOINT, help="default: %(default)s")
    option("--ca-file", metavar="FILE", help="PEM certificates to trust instead of the public ones")

    option = parser.add_argument_group("how").add_argument
    option("--single-message", action="store_true",
           help="send one message instead of a stream: audio under 128 MB, all of it in memory, "
                "and no way to tell how far a call came that breaks off")
    option("--split", action="store_true",
           help="have the service split a long recording of one channel, WAV or MP3, into dialogs")
    option("--wait", action="store_true",
           help="with --split: wait for the dialog IDs, as long as something changes within "
                "--timeout")
    option("--jobs", type=number(int, 1, 64), default=JOBS, metavar="N",
           help="uploads at a time, over one connection (default: %(default)s)")
    option("--retries", type=number(int, 0, 100), default=RETRIES, metavar="N",
           help="further tries after one that made no dialog (default: %(default)s)")
    option("--timeout", type=number(float, 0.1, 86_400), default=TIMEOUT_S, metavar="S",
           help="give up a try after S seconds without progress (default: %(default)g)")
    option("--ledger", metavar="FILE",
           help="remember here what was uploaded, and send nothing twice")
    option("--retry-unknown", action="store_true",
           help="send again what the ledger has as unknown: it may be there a second time then")
    option("--dry-run", action="store_true",
           help="check everything, say what would be sent, send nothing")

    option = parser.add_argument_group("output").add_argument
    option("--format", choices=("text", "json"), default="text", help="of stdout")
    option("--quiet", action="store_true", help="on stderr: failures only")
    option("--verbose", action="store_true", help="on stderr: every step, with IDs")
    option("--version", action="version", version=f"upload_grpc {__version__}")
    # fmt: on
    args = parser.parse(argv)
    check_arguments(args, parser)
    return args


def check_arguments(args: argparse.Namespace, parser: Parser) -> None:
    """Exit with 2 where options are missing or contradict each other."""
    args.connection_id = args.connection_id.strip()
    args.talk_id = args.talk_id and args.talk_id.strip()
    for name in ("connection_id", "meta_path", "key_file", "ca_file", "ledger", "talk_id"):
        # What a variable that is not set leaves of "$LEDGER" must not pass for no ledger.
        if getattr(args, name) == "":
            parser.error(f"--{name.replace('_', '-')} is empty")
    pcm = args.audio_type == "pcm"
    about_audio = (
        *(args.audio_path, args.audio_type != "auto", args.min_age),
        *(args.split, args.single_message),
    )
    wrong = {
        "--audio-path is missing": not args.audio_path and not args.talk_id,
        "--audio-path is empty": "" in args.audio_path,
        "--talk-id goes with --meta-path, and with nothing about audio": args.talk_id
        and (any(about_audio) or not args.meta_path),
        "--talk-id goes without --ledger: to say it twice does no harm": args.talk_id
        and args.ledger,
        "--audio-type pcm needs --sample-rate and --channels": pcm
        and not (args.sample_rate and args.channels),
        "--sample-rate and --channels are for --audio-type pcm": not pcm
        and (args.sample_rate or args.channels),
        "--split is sent as a stream, not with --single-message": args.split
        and args.single_message,
        "--wait goes with --split": args.wait and not args.split,
        "--key-type vm goes without --key and --key-file": args.key_type == "vm"
        and (args.key is not None or args.key_file is not None),
        "--retry-unknown needs the --ledger that knows them": args.retry_unknown
        and not args.ledger,
        "--connection-id has characters that no ID has": not args.connection_id.isprintable(),
        "--talk-id has characters that no ID has": not (args.talk_id or "-").isprintable(),
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            parser.error(message)


def run(args: argparse.Namespace, console: Console) -> int:
    """Make sure that all settings are good, then do what is asked; answer the exit code."""
    if sys.stdout is None:
        raise UploadError(os.EX_IOERR, "stdout is closed", "dialog IDs go there: redirect it")
    credential = find_credential(args.key, args.key_file, args.key_type)
    console.mask = credential.mask
    credential.header()
    roots = read_root_certificates(args.ca_file)
    options = AudioOptions(
        args.audio_type, args.sample_rate, args.channels, args.split, args.single_message
    )
    uploader = Uploader(
        lambda: open_channel(args.endpoint, roots),
        args.connection_id,
        credential,
        operations=(lambda: open_channel(OPERATIONS, roots)) if args.endpoint == ENDPOINT else None,
        timeout_s=args.timeout,
        retries=args.retries,
        note=console.note,
        detail=console.detail,
    )
    with contextlib.closing(uploader):
        if args.talk_id:
            return update_talk(args, uploader, console)
        ledger = Ledger(args.ledger, args.connection_id) if args.ledger else None
        with contextlib.closing(ledger) if ledger else contextlib.nullcontext():
            return run_all(args, options, uploader, ledger, console)


def run_all(
    args: argparse.Namespace,
    options: AudioOptions,
    uploader: Uploader,
    ledger: Ledger | None,
    console: Console,
) -> int:
    """Check all recordings, send those that need it, and answer the exit code."""
    reports: list[Report] = []

    def report(result: Report) -> None:
        reports.append(result)
        console.result(result)
        if console.output_lost:
            uploader.stop("stdout cannot be written", wait_for_answers=True)

    to_send, settled = check_all(args, options, ledger, console)
    for item in settled:
        report(item)
    if args.dry_run:
        for recording, item in to_send:
            report(plan_one(recording, item, args, uploader, ledger))
        return exit_code(reports, console)

    console.expect([item for _, item in to_send])
    upload = functools.partial(
        upload_one, args=args, uploader=uploader, ledger=ledger, console=console
    )
    same: list[Report] = []
    try:
        for item in upload_all(to_send, upload, uploader, args.jobs, console):
            same.append(item) if item.same_as else report(item)
        sent = {item.path: item for item in reports}
        for item in same:
            report(settle_same(item, sent[item.same_as]))
    finally:
        console.end_progress()
        reported = {item.path for item in reports}
        for _, item in to_send:
            if item.path in reported:
                continue
            if item.path in uploader.begun:  # Who had it is stuck, or met a bug.
                report(item.failed(UploadError(os.EX_PROTOCOL, LEFT_UNDER_WAY, LOOK_FIRST)))
            else:
                error = UploadError(os.EX_TEMPFAIL, "not tried, the run ended before", AGAIN)
                report(item.failed(error)._replace(outcome="not tried"))
        summarize(reports, console)
    return exit_code(reports, console)


def update_talk(args: argparse.Namespace, uploader: Uploader, console: Console) -> int:
    """Send new metadata for a dialog that exists."""
    metadata = read_metadata(args.meta_path)
    for warning in date_warnings(metadata):
        console.note(warning)
    report = Report(args.talk_id)
    if args.dry_run:
        report = report._replace(outcome="checked", description=planned_metadata(metadata))
    else:
        try:
            answer = uploader.update(args.talk_id, metadata)
            report = report._replace(outcome="updated", **answer._asdict())
        except UploadError as error:
            report = report.failed(error)
    console.result(report)
    return exit_code([report], console)


def exit_code(reports: Sequence[Report], console: Console) -> int:
    """Answer the gravest exit code among the reports'."""
    codes = {report.exit_code for report in reports}
    if console.output_lost:
        codes.add(os.EX_IOERR)
    return next((code for code in GRAVEST_FIRST if code in codes), os.EX_OK)


def summarize(reports: Sequence[Report], console: Console) -> None:
    """Count the outcomes on stderr, where there was more than one recording."""
    if len(reports) <= 1 and not console.several:
        return
    counts = collections.Counter(report.outcome for report in reports)
    console.note(
        f"{counts['uploaded']} uploaded, {counts['already']} already there, "
        f"{counts['failed'] + counts['rejected']} failed, {counts['unknown']} unknown"
        + (f", {counts['not tried']} not tried" if counts["not tried"] else "")
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and answer its exit code."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    args = parse_arguments(argv)
    console = Console(args)
    try:
        with signals_to(raise_interrupted):
            return run(args, console)
    except LedgerInUse as error:
        console.note(str(error))
        return error.exit_code
    except UploadError as error:
        console.problem(str(error))
        return error.exit_code
    except Interrupted as interrupted:
        if not interrupted.told:
            console.problem(str(interrupted))
        return interrupted.exit_code
    except Exception:  # noqa: BLE001 - a bug, whatever it is, is told and has its exit code.
        for line in traceback.format_exc().splitlines():
            console.problem(line)
        console.problem("this is a bug: report it with the lines above")
        return os.EX_SOFTWARE


if __name__ == "__main__":
    # If stdin, stdout or stderr is closed, the next file opened would get its number, and the
    # ledger be printed into: fill the gaps.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    code = main()
    with contextlib.suppress(OSError, AttributeError):  # Full, or closed from the beginning.
        sys.stdout.flush()
    # Past the interpreter's tidying up: it takes longer than sending a short recording, and would
    # wait for a thread that reads from a dead disk.
    os._exit(code)
