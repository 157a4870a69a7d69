#!/usr/bin/env python3
"""Upload call recordings with their metadata to Yandex SpeechSense and print the dialog IDs.

from a shell:
  export API_KEY=...
  python3 upload_grpc.py --audio-path call.wav --meta-path metadata_example.json \\
      --connection-id ID
from cron (one line):
  */5 * * * *  /opt/upload_grpc/upload_grpc.py --quiet --audio-path /var/calls --min-age 60
      --meta-path /etc/speechsense.json --connection-id ID --key-file /etc/speechsense.key
      --ledger /var/lib/speechsense/ledger.sqlite >>/var/lib/speechsense/uploaded.log

exit codes:
  0   everything is uploaded            2    bad command line
  65  a recording or its metadata was refused: fix the file
  66  a file is missing or unreadable   70   a bug: report it
  74  stdout cannot be written          75   not delivered: run again
  76  sent, but the answer was lost: look for the dialog before sending again
  77  the credential was refused        78   a wrong setting
  129, 130, 143: stopped by SIGHUP, SIGINT, SIGTERM

Results go to stdout, everything else to stderr. README.md says more.
"""

# The file is read in the order a recording takes: found, checked without touching the network,
# sent over one call, remembered in the ledger, reported. `Run` has the loop over all of them.
# Whether a call can be lost or sent twice: Transfer.finish, RULES with call_error,
# Uploader._retrying and Ledger.

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import functools
import gc
import importlib
import io
import itertools
import json
import logging
import math
import os
import re
import shlex
import signal
import socket
import stat
import struct
import sys
import threading
import time
import traceback
import types
import uuid
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, NoReturn, TextIO

try:
    import fcntl
    import termios
except ImportError:
    print("upload_grpc: this system has no fcntl; use Linux, macOS or WSL", file=sys.stderr)
    sys.exit(78)

# Importing grpc makes tens of thousands of objects and no garbage; collecting meanwhile would cost
# a twentieth of the time of a short upload.
gc.disable()
# Before grpc is imported: cron would mail its lines about failed handshakes.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(HERE, "generated"))


def import_later(name: str) -> None:
    """Import a module only when one of its attributes is used."""

    def first_use(attribute: str) -> object:
        if sys.modules.get(name) is placeholder:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    placeholder = types.ModuleType(name)
    placeholder.__getattr__ = first_use  # type: ignore[method-assign] # PEP 562
    sys.modules[name] = placeholder


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Outside the upload itself nothing needs cleaning up, so Ctrl-C may simply end the process.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # grpc and protobuf import these modules without needing them here; that is a third of the time
    # of a short upload. importlib.util.LazyLoader would import grpc to find grpc.aio.
    for unused in ("asyncio", "grpc.aio", "inspect", "google.protobuf.internal.python_message"):
        import_later(unused)

# Why grpc or the stubs could not be loaded; reported later, so that --help and --version work.
import_error: Exception | None = None
try:
    import grpc
    from google.protobuf.message import DecodeError
    from yandex.cloud.speechsense.v1 import audio_pb2, talk_service_pb2, talk_service_pb2_grpc
    from yandex.cloud.speechsense.v1.talk_service_pb2 import TalkMetadata
except Exception as failure:  # Missing packages, missing stubs, or stubs of another protobuf.
    if __name__ != "__main__":
        raise
    # `make` installs the packages in .venv: start again with its Python, but only once.
    if "UPLOAD_GRPC_VENV" not in os.environ:
        os.environ["UPLOAD_GRPC_VENV"] = python = os.path.join(HERE, ".venv/bin/python")
        with contextlib.suppress(OSError):
            os.execv(python, [python, __file__, *sys.argv[1:]])
    import_error = failure
gc.freeze()
gc.enable()

# grpc logs a traceback when reading the file fails; our own error line has the cause.
logging.getLogger("grpc._channel").setLevel(logging.CRITICAL)
# With --quiet only WARNING and above are shown; DEBUG only with --verbose.
log = logging.getLogger("upload_grpc")

__version__ = "2.0.0"

ENDPOINT = "api.speechsense.yandexcloud.net:443"

# 100 MB over TLS with a round trip of 50 ms: 16 KiB 1.52 s, 64 KiB 0.77, 256 KiB 0.72, 1 MiB 0.75
# (tests/bench/run.py --chunks). Larger chunks gain little, and progress would come in larger
# steps; a gRPC server takes 4 MiB a message by default.
CHUNK_SIZE_BYTES = 256 * 1024

# Long, because giving up after the last byte was sent leaves an unknown recording to a person.
TIMEOUT_S = 120.0
BACKOFF_S = 0.5
BACKOFF_LIMIT_S = 30.0
# Limit for the time that one recording's tries spend waiting; time in which bytes move is free.
TRIES_LIMIT_S = 120.0

# This many failures of the service or the network in a row are an outage and end the run; fewer if
# the run began in doubt, so that each cron run during an outage costs little.
FAILURES_LIMIT = 5
FAILURES_LIMIT_IN_DOUBT = 2
# How long a recording that is sent in doubt waits for a refusal before its half-close.
REFUSAL_WAIT_S = 1.0
# After a signal: how long to wait for answers that are due, and for cancelled calls to end.
ANSWER_GRACE_S = 10.0
CANCEL_GRACE_S = 1.0
# Polling interval of the main thread, and of a worker that may not begin.
TICK_S = 0.05

# Limits of the service: SpeechSense documentation, "Supported audio formats" and "Quotas".
SINGLE_MESSAGE_LIMIT_BYTES = 128 * 1024 * 1024
DURATION_LIMIT_S = 4 * 60 * 60
SAMPLE_RATES_HZ = range(8_000, 48_000 + 1)
SAMPLE_SIZE_BITS = 16
METADATA_VALUE_LIMIT_BYTES = 1024
# Our own limit, so that a file named by mistake is not read to its end.
SMALL_FILE_LIMIT_BYTES = 1024 * 1024


# --- 2. Errors, and the record of a recording ------------------------------------------------

AGAIN = "run again"
CHECK_PATH = "check the path and its permissions"
LOOK_FOR_IT = "look for it in the console"
LOOK_FIRST = f"{LOOK_FOR_IT}; if it is not there, send it again (with --ledger: --retry-unknown)"
STREAM_IT = "leave out --single-message to send it as a stream"
STOPPED = "the run was stopped"
# If recordings ended differently, the exit code is the first of these (os.EX_*) that occurred.
GRAVEST_FIRST = (77, 78, 74, 76, 65, 66, 75)


class UploadError(Exception):
    """Why a recording, or the whole run, did not go through, and what to do next.

    details: gRPC's status and text, and the IDs that the service's support asks for.
    """

    # Set by call_error:
    retry = False  # The same recording may be sent again at once.
    holds_run = False  # The others had better wait, too.
    outage = False  # The service or the network failed, not this recording.
    idle_s = 0.0  # How long nothing had moved.

    def __init__(self, exit_code: int, cause: str, advice: str, details: str = "") -> None:
        super().__init__(cause)
        self.exit_code = exit_code
        self.cause = cause
        self.advice = advice
        self.details = details
        # Every other recording of the run would meet the same error.
        self.stops_run = exit_code in (os.EX_NOPERM, os.EX_CONFIG)

    @property
    def reason(self) -> str:
        """What happened, without advice: for the ledger."""
        return f"{self.cause} ({self.details})" if self.details else self.cause

    def __str__(self) -> str:
        return f"{self.cause}; {self.advice}" + (f" ({self.details})" if self.details else "")


def refused(cause: str, advice: str) -> UploadError:
    """Return the error for a file that the service would not accept."""
    return UploadError(os.EX_DATAERR, cause, advice)


def unreadable(error: Exception) -> UploadError:
    """Return the error for a file that cannot be read."""
    return UploadError(os.EX_NOINPUT, f"cannot be read: {reason_of(error)}", CHECK_PATH)


def reason_of(error: Exception) -> str:
    """Return the text of an error, without errno and file name."""
    return getattr(error, "strerror", None) or str(error) or repr(error)


class FileState(NamedTuple):
    """Identifies a file and its version: if equal, it is still the file that was checked."""

    size_bytes: int
    mtime_ns: int
    device: int
    inode: int

    @classmethod
    def of(cls, file: str | int) -> FileState:
        """Stat a path or a descriptor; raise OSError, also if it is not a regular file."""
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        return cls(status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)


class Recording:
    """One recording, from its file's name to its result; each step adds what it finds out."""

    state = FileState(0, 0, 0, 0)
    audio: audio_pb2.AudioMetadata
    description = ""
    metadata: TalkMetadata
    has_placeholders = False
    sha256 = metadata_sha256 = ""
    started_s = seconds = 0.0
    tries = 0
    transfer: Transfer | None = None  # The latest try.
    request_id = server_ids = ""
    outcome = ""  # Empty until it is known; README has the values, for --format json.
    error: UploadError | None = None
    talk_ids: tuple[str, ...] = ()
    badge_id = operation_id = ""
    settled = False

    def __init__(self, path: str, named: bool = True) -> None:
        self.path = path
        self.named = named  # On the command line, not found in a folder.

    def fail(self, error: UploadError) -> None:
        """Record an error and the outcome that it means."""
        outcomes = {os.EX_DATAERR: "rejected", os.EX_PROTOCOL: "unknown"}
        self.outcome = outcomes.get(error.exit_code, "failed")
        self.error = error

    def as_json(self) -> str:
        """Return one line of JSON; README explains the keys."""
        values = {
            "schema_version": 1,
            "path": self.path,
            "outcome": self.outcome,
            "talk_id": self.talk_ids[0] if self.talk_ids and not self.badge_id else None,
            "badge_id": self.badge_id or None,
            "operation_id": self.operation_id or None,
            "talk_ids": self.talk_ids,
            "error": masked(str(self.error)) if self.error else None,
            "exit_code": self.error.exit_code if self.error else os.EX_OK,
            "request_id": self.request_id or None,
            "bytes": self.state.size_bytes or None,
            "seconds": round(self.seconds, 3),
            "tries": self.tries,
            "settled": self.settled,
            "description": self.description if self.outcome == "checked" else None,
        }
        return json.dumps(values)


# --- 3. Finding files -------------------------------------------------------------------------


def find_recordings(args: Namespace) -> Iterator[Recording]:
    """Yield the files named, and the audio files in the folders named, in a stable order.

    Each file comes once, whatever its names. What cannot be looked at has failed already.
    """
    # Without a ledger, only this keeps a file with two names from becoming two dialogs.
    seen: set[tuple[int, ...]] = set()
    for path, named, error in find_paths(args):
        recording = Recording(path, named)
        try:
            if error:
                raise error
            recording.state = state = FileState.of(path)
        except (OSError, ValueError) as failure:
            recording.fail(unreadable(failure))
            yield recording
            continue
        # A date far in the future is wrong rather than young; slightly ahead is clock skew.
        if args.min_age and abs(time.time() - state.mtime_ns / 1e9) < args.min_age:
            log.debug(f"{path}: younger than {args.min_age:g} s, left out")
        elif state[2:] in seen:
            log.debug(f"{path}: another name of a file that was found before, left out")
        else:
            seen.add(state[2:])
            yield recording


def find_paths(args: Namespace) -> Iterator[tuple[str, bool, OSError | None]]:
    """Yield each path, whether it was named, and the error of a folder that cannot be read."""
    unread: list[OSError] = []
    for path in args.audio_path:
        if not os.path.isdir(path):
            yield path, True, None
            continue
        visited = set()
        for folder, subfolders, files in os.walk(path, followlinks=True, onerror=unread.append):
            real = os.path.realpath(folder)
            if real in visited:  # By a link.
                subfolders.clear()
                continue
            visited.add(real)
            subfolders.sort()
            for name in sorted(files):
                if name.lower().endswith(args.suffixes):
                    yield os.path.join(folder, name), False, None
    yield from ((error.filename, False, error) for error in unread)


def find_sidecar(path: str) -> str | None:
    """Return the name of the JSON file beside a recording, if there is one."""
    stem = os.path.splitext(path)[0]
    return next(filter(os.path.lexists, (f"{stem}.json", f"{stem}.JSON")), None)


def check_recording(recording: Recording, args: Namespace, common: TalkMetadata | None) -> None:
    """Check a file's header and collect its metadata; common: that of --meta-path."""
    try:
        with open(recording.path, "rb") as file:
            recording.state = FileState.of(file.fileno())
            check_audio(recording, file, args)
    except OSError as error:
        raise unreadable(error) from error
    collect_metadata(recording, args, common)


# --- 4. Audio headers -----------------------------------------------------------------------

WAV, MP3, OGG_OPUS, PCM = "WAV", "MP3", "OggOpus", "raw PCM"
AUDIO_TYPES = {"wav": WAV, "mp3": MP3, "ogg-opus": OGG_OPUS, "pcm": PCM}
AUDIO_SUFFIXES = (".wav", ".mp3", ".ogg", ".opus")
PCM_SUFFIXES = (".pcm", ".raw")
NEEDED = "WAV with 16 bit LPCM of 8,000 to 48,000 Hz, MP3 or OggOpus is needed"
EXPORT_AGAIN = "record or export it again"


def check_audio(recording: Recording, file: BinaryIO, args: Namespace) -> None:
    """Detect a recording's format from its headers and check it; raise UploadError if it is bad."""
    size_bytes = recording.state.size_bytes
    if not size_bytes:
        raise refused("the file is empty", "remove it or restore it from the recorder")
    head = file.read(64)
    kind = description = find_format(file.name, head, args.audio_type)
    if kind != AUDIO_TYPES.get(args.audio_type, kind):
        raise refused(f"this is {kind}", f"leave out --audio-type {args.audio_type}")
    duration_s = 0.0  # Of MP3 and OggOpus the service judges it.
    if kind == WAV:
        description, channels, duration_s = check_wav(file, size_bytes)
    elif kind == PCM:
        channels, frame_bytes = args.channels, args.channels * SAMPLE_SIZE_BITS // 8
        duration_s = size_bytes / frame_bytes / args.sample_rate
        if size_bytes % frame_bytes:
            cause = f"{size_bytes:,} bytes are no whole number of {frame_bytes}-byte frames"
            raise refused(cause, "check --channels, and that it is 16 bit PCM")
    elif kind == MP3:
        channels = count_mp3_channels(file, head)
    else:  # RFC 7845, section 5.1, in the first Ogg page.
        channels = int.from_bytes(head[37:38], "big")
    if not channels:
        raise refused(f"damaged {kind} header: no channels", EXPORT_AGAIN)
    length = f", {duration_s:,.1f} s" if duration_s else ""
    description += f", {channels} channel{'s' * (channels != 1)}{length}"
    if args.split and (kind not in (WAV, MP3) or channels != 1):
        cause = f"{description}: only WAV and MP3 of one channel can be split"
        raise refused(cause, "leave out --split")
    if duration_s > DURATION_LIMIT_S and not args.split:  # For splitting no limit is known.
        cause = f"{duration_s / 3600:.2f} hours long, the service takes 4"
        raise refused(cause, "cut it into parts of at most 4 hours")
    if args.single_message and size_bytes >= SINGLE_MESSAGE_LIMIT_BYTES:
        limit = f"{SINGLE_MESSAGE_LIMIT_BYTES:,}"
        raise refused(f"{size_bytes:,} bytes: a single message must stay under {limit}", STREAM_IT)
    recording.description = description
    recording.audio = audio_format(kind, args)


def audio_format(kind: str, args: Namespace) -> audio_pb2.AudioMetadata:
    """Build the message that announces a format."""
    if kind != PCM:
        name = f"CONTAINER_AUDIO_TYPE_{'OGG_OPUS' if kind == OGG_OPUS else kind}"
        container = audio_pb2.ContainerAudio(container_audio_type=name)
        return audio_pb2.AudioMetadata(container_audio=container)
    raw = audio_pb2.RawAudio(
        audio_encoding=audio_pb2.RawAudio.AUDIO_ENCODING_LINEAR16_PCM,
        sample_rate_hertz=args.sample_rate,
        audio_channel_count=args.channels,
    )
    return audio_pb2.AudioMetadata(raw_audio=raw)


def find_format(path: str, head: bytes, audio_type: str) -> str:
    """Detect the format from the first bytes; raise UploadError if it is not supported."""
    suffix = os.path.splitext(path)[1].lower()
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return WAV
    if head.startswith(b"OggS") and head[28:].startswith(b"OpusHead"):
        return OGG_OPUS
    if head.startswith(b"ID3"):
        return MP3
    if audio_type == "pcm":
        return PCM
    # Players skip whatever precedes the first frame; so do we if the file is said to be MP3.
    if audio_type == "mp3" or suffix == ".mp3" or MP3_FRAME.match(head):
        return MP3
    if suffix in PCM_SUFFIXES:
        raise refused("no audio header", f"{NEEDED}; for raw PCM: --audio-type pcm")
    raise refused("neither WAV nor MP3 nor OggOpus", conversion(path, NEEDED))


def conversion(path: str, when: str) -> str:
    """Return advice: when to convert the file, and the FFmpeg command that does it."""
    if re.match("-|.*:", path):  # FFmpeg would see an option, or a protocol before the colon.
        path = os.path.join(".", path)
    stem = os.path.splitext(path)[0]
    target = f"{stem}-16bit.wav"
    if os.path.lexists(target):  # The original beside it would be refused in every run.
        return f"already converted: move {os.path.basename(path)} out of the folder"
    line = f"ffmpeg -i {shlex.quote(path)} -c:a pcm_s16le {shlex.quote(target)}"
    if sidecar := find_sidecar(path):
        line += f" && cp {shlex.quote(sidecar)} {shlex.quote(f'{stem}-16bit.json')}"
    return f"{when}: {line}"


# Three frames of MPEG audio, layer III, a frame's length apart; fewer may be chance. Of each (ISO
# 11172-3, 13818-3, and MPEG-2.5): sync and version, a bit rate that exists, the channels' byte.
MP3_FRAME = re.compile(rb"(\xff[\xe2\xe3\xf2\xf3\xfa\xfb])[\x10-\xef](.)", re.DOTALL)
MP3_FRAMES = re.compile(MP3_FRAME.pattern + rb"(?:.{20,1438}?\1[\x10-\xef]){2}", re.DOTALL)
# Encoders leave some padding between tag and audio, but not more than this.
MP3_SEARCH_BYTES = 64 * 1024


def count_mp3_channels(file: BinaryIO, head: bytes) -> int:
    """Return the channels of an MP3 file's first frame, behind its ID3v2 tag if it has one."""
    file.seek(0)
    if head.startswith(b"ID3"):  # The tag's length is four times 7 bits.
        a, b, c, d = head[6:10].ljust(4, b"\0")
        file.seek(10 + (a << 21 | b << 14 | c << 7 | d))
    frame = MP3_FRAMES.search(file.read(MP3_SEARCH_BYTES))
    if not frame:
        raise refused("no MP3 audio where it should begin", EXPORT_AGAIN)
    return 1 if frame[2][0] >> 6 == 3 else 2


WAVE_FORMAT_EXTENSIBLE = 0xFFFE
UNSET_LENGTH = 0xFFFFFFFF
# The end of every KSDATAFORMAT_SUBTYPE GUID that carries a format code in its first two bytes.
SUBFORMAT_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
WAVE_FORMATS = {1: "PCM", 3: "floating point", 6: "A-law", 7: "mu-law", 0x31: "GSM 6.10"}


def check_wav(file: BinaryIO, size_bytes: int) -> tuple[str, int, float]:
    """Check a WAV file; return its description, channels and length in seconds."""
    chunk, data_bytes, there_bytes = read_wav_chunks(file, size_bytes)
    code, channels, rate_hz, bits = struct.unpack_from("<HHI6xH", chunk.ljust(16, b"\0"))
    if code == WAVE_FORMAT_EXTENSIBLE and chunk[26:40] == SUBFORMAT_GUID_TAIL:
        code = int.from_bytes(chunk[24:26], "little")
    encoding = WAVE_FORMATS.get(code, f"WAV format 0x{code:04x}")
    found = f"{encoding} {bits} bit, {rate_hz:,} Hz"
    # Writers that cannot seek back leave 0, 0xFFFFFFFF or something like 0x80000000 there.
    if data_bytes > there_bytes:
        cause = "truncated or still being recorded: the header announces "
        cause += f"{data_bytes:,} bytes of audio, {there_bytes:,} are there"
        raise refused(cause, conversion(file.name, "run again when it is closed; if it is"))
    if not channels or rate_hz not in SAMPLE_RATES_HZ:
        raise refused(f"{found}, {channels} channels: {NEEDED}", EXPORT_AGAIN)
    if (encoding, bits) != ("PCM", SAMPLE_SIZE_BITS):
        raise refused(found, conversion(file.name, NEEDED))
    frame_bytes = channels * SAMPLE_SIZE_BITS // 8
    if data_bytes < frame_bytes:
        raise refused("no audio in it, not one sample", EXPORT_AGAIN)
    return f"{WAV}, {found}", channels, data_bytes / frame_bytes / rate_hz


def read_wav_chunks(file: BinaryIO, size_bytes: int) -> tuple[bytes, int, int]:
    """Return a WAV file's fmt chunk, and its data length: as announced, and as present (bytes)."""
    wav_format, data, long_data_bytes = b"", None, 0
    position = 12
    for _ in range(10_000):
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8).ljust(8, b"\0"))
        position += 8
        if name == b"fmt ":
            wav_format = file.read(min(length, 40))
        elif name == b"ds64":  # RF64: lengths of 64 bits.
            long_data_bytes = int.from_bytes(file.read(16)[8:], "little")
        elif name == b"data":
            if length == UNSET_LENGTH and long_data_bytes:
                length = long_data_bytes
            # Length 0, but what follows is not a chunk: the length was never filled in.
            elif length == 0 and not re.fullmatch(rb"[ -~]{4}|", file.read(4)):
                length = UNSET_LENGTH
            data = length, size_bytes - position
        position += length + length % 2
        if (wav_format and data) or position >= size_bytes:
            break
    if not wav_format or not data:
        cause = f"damaged or truncated WAV file: no {'data' if wav_format else 'format'} chunk"
        raise refused(cause, f"run again when it is closed, or {EXPORT_AGAIN}")
    return wav_format, *data


# --- 5. Metadata ----------------------------------------------------------------------------

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


def collect_metadata(recording: Recording, args: Namespace, common: TalkMetadata | None) -> None:
    """Set a recording's metadata: its sidecar's over that of --meta-path, or placeholders."""
    recording.metadata = metadata = TalkMetadata()
    if common is not None:
        metadata.CopyFrom(common)
    sidecar = find_sidecar(recording.path)
    if sidecar:
        own = read_metadata(sidecar)
        if own.users:
            metadata.ClearField("users")
        metadata.MergeFrom(own)
    recording.has_placeholders = sidecar is None and common is None
    if recording.has_placeholders:
        metadata.fields.update(PLACEHOLDER_FIELDS, date=utc())
    if args.settle_key and args.settle_key in metadata.fields:
        cause = f"its metadata has the key {shown(args.settle_key)}, which --settle-key fills"
        raise refused(cause, "remove it there, or name another --settle-key")


def read_metadata(path: str) -> TalkMetadata:
    """Read a JSON object of metadata fields, and perhaps `users`; raise UploadError naming it."""
    try:
        if not path.startswith("/dev/fd/"):  # --meta-path <(jq ...)
            FileState.of(path)  # Raises OSError for a FIFO: opening it would wait for a writer.
        with open(path, "rb") as file:
            metadata = parse_metadata(file.read(SMALL_FILE_LIMIT_BYTES + 1))
    except OSError as error:
        cause = f"metadata file {path}: cannot be read: {reason_of(error)}"
        raise UploadError(os.EX_NOINPUT, cause, CHECK_PATH) from error
    except (ValueError, RecursionError) as error:
        raise refused(f"metadata file {path}: {error}", "fix the file") from error
    warn_of_dates(path, metadata)
    return metadata


def parse_metadata(content: bytes) -> TalkMetadata:
    """Parse metadata from JSON; raise ValueError with a readable reason."""
    if len(content) > SMALL_FILE_LIMIT_BYTES:
        raise ValueError(f"larger than {SMALL_FILE_LIMIT_BYTES:,} bytes")
    try:
        # Numbers are sent as written: 1.50 stays 1.50.
        text = content.decode("utf-8-sig")
        fields = json.loads(text, parse_int=str, parse_float=str, object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError('not a JSON object, {"key": "value", ...}')
    metadata = TalkMetadata()
    if isinstance(fields.get("users"), list):
        for number, user in enumerate(fields.pop("users"), 1):
            try:
                add_user(user, metadata)
            except ValueError as error:
                raise ValueError(f"user {number}: {error}") from None
    metadata.fields.update(checked_fields(fields))
    return metadata


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; raise ValueError if a key appears twice, as one would be lost."""
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"key {shown(key)}: it appears twice")
        fields[key] = value
    return fields


def add_user(user: Any, metadata: TalkMetadata) -> None:
    """Add a participant of the call; raise ValueError with the reason if it is malformed."""
    keys = user.keys() if isinstance(user, dict) else set()
    if not {"id", "role"} <= keys <= {"id", "role", "fields"}:
        raise ValueError("must be an object with id, role and perhaps fields")
    role = str(user["role"]).upper().removeprefix("USER_ROLE_")
    if role not in ("OPERATOR", "CLIENT", "BOT"):
        raise ValueError(f"role {shown(user['role'])} is not operator, client or bot")
    fields = user.get("fields", {})
    if not isinstance(fields, dict):
        raise ValueError("fields must be an object")
    user_id = checked_fields({"id": user["id"]})["id"]
    metadata.users.add(id=user_id, role=f"USER_ROLE_{role}", fields=checked_fields(fields))


def checked_fields(fields: dict[str, Any]) -> dict[str, str]:
    """Return fields as strings; raise ValueError with key and reason if one is not accepted."""
    checked = {}
    for key, value in fields.items():
        text = str(value).lower() if isinstance(value, bool) else value
        try:
            if not key:
                raise ValueError("the key is empty")
            if not isinstance(text, str):
                raise ValueError(f"{shown(value)} is not a string, number or boolean")
            # encode() raises a ValueError for half a surrogate pair, too.
            length_bytes = max(len(key.encode()), len(text.encode()))
            if length_bytes > METADATA_VALUE_LIMIT_BYTES:
                limit = f"{METADATA_VALUE_LIMIT_BYTES:,}"
                raise ValueError(f"{length_bytes:,} bytes long, the service takes {limit}")
        except ValueError as error:
            raise ValueError(f"key {shown(key)}: {error}") from None
        checked[key] = text
    return checked


def shown(value: object) -> str:
    """Return a value as JSON for a message, shortened, without escapes."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}..."


ISO_DATE = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?)([.,]\d+)?(Z|[+-]([01]\d|2[0-3])(:?[0-5]\d)?)", re.ASCII
)


def warn_of_dates(path: str, metadata: TalkMetadata) -> None:
    """Warn of dates that the service would misread."""
    for fields in (metadata.fields, *(user.fields for user in metadata.users)):
        for key in filter(lambda key: key.startswith("date"), fields):
            match = ISO_DATE.fullmatch(fields[key])
            with contextlib.suppress(ValueError):  # The 30th of February.
                if match and datetime.datetime.fromisoformat(match[1]).year:
                    continue
            what = f"{shown(fields[key])} is not an ISO 8601 date with an offset"
            example = "2026-01-31T09:30:00+03:00"
            log.warning(f"{path}: metadata key {shown(key)}: {what}, such as {example}")


# --- 6. Access: credential, certificates, proxy, channel -------------------------------------

NO_CREDENTIAL_ADVICE = "use --key-file FILE, or export API_KEY or IAM_TOKEN"
# Yandex Cloud documentation, "Getting an IAM token in a VM".
VM_METADATA_ADDRESS = "169.254.169.254"
VM_TOKEN_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"
VM_METADATA_TIMEOUT_S = 3.0
# The documentation asks for a new token at least once an hour; it lives up to 12 hours.
VM_TOKEN_AGE_LIMIT_S = 60 * 60.0
# Every credential used in this run; none is ever printed or stored.
SECRETS: list[str] = []


def masked(text: str) -> str:
    """Replace the secrets in a text."""
    for secret in SECRETS:
        text = text.replace(secret, "***")
    return text


def read_option_file(option: str, path: str) -> bytes:
    """Read the file that an option names; raise UploadError (EX_CONFIG) if that fails."""
    try:
        with open(path, "rb") as file:
            return file.read(16 * SMALL_FILE_LIMIT_BYTES)
    except (OSError, ValueError) as error:
        cause = f"{option} {path} cannot be read: {reason_of(error)}"
        raise UploadError(os.EX_CONFIG, cause, CHECK_PATH) from error


def fetch_vm_token() -> str:
    """Fetch the IAM token of a cloud VM's service account from the VM's metadata service."""
    from http.client import HTTPException
    from urllib.request import ProxyHandler, Request, build_opener

    address = os.environ.get("YC_METADATA_ADDR") or VM_METADATA_ADDRESS
    # The service is on this machine: a proxy could only leak the token.
    opener = build_opener(ProxyHandler({}))
    try:
        request = Request(f"http://{address}{VM_TOKEN_PATH}", headers={"Metadata-Flavor": "Google"})
        with opener.open(request, timeout=VM_METADATA_TIMEOUT_S) as response:
            return "".join(json.loads(response.read(SMALL_FILE_LIMIT_BYTES))["access_token"])
    except (OSError, HTTPException, ValueError, LookupError, TypeError, RecursionError) as error:
        cause = f"no token from the VM's metadata service at {address}: {reason_of(error)}"
        advice = "--key-type vm is for a cloud VM with a service account"
        raise UploadError(os.EX_CONFIG, cause, advice) from error


def authorization(args: Namespace) -> str:
    """Return the authorization header for the first credential given; raise UploadError."""
    key_type = args.key_type
    if key_type == "vm":
        source, text = "the VM's metadata service", fetch_vm_token()
    elif args.key is not None:
        source, text = "--key", args.key
    elif args.key_file is not None:
        source = f"--key-file {args.key_file}"
        text = read_option_file("--key-file", args.key_file).decode(errors="replace")
    elif text := os.environ.get("API_KEY", "").strip():
        source = "API_KEY"
    else:
        source, text, key_type = "IAM_TOKEN", os.environ.get("IAM_TOKEN", ""), "iam-token"
    key = text.strip().lstrip("\ufeff").strip()
    if not key:
        cause = "no API key and no IAM token" if source == "IAM_TOKEN" else f"{source} is empty"
        raise UploadError(os.EX_CONFIG, cause, NO_CREDENTIAL_ADVICE)
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        # grpc would only say "Invalid metadata".
        cause = f"the credential in {source} has a space, or a character that no key has"
        raise UploadError(os.EX_CONFIG, cause, "copy the key again; it is one line")
    SECRETS.append(key)
    is_token = key.startswith("t1.") if key_type == "auto" else key_type != "api-key"
    return f"{'Bearer' if is_token else 'Api-Key'} {key}"


def adopt_proxy_settings() -> None:
    """Make grpc, which reads only the lower-case names, see HTTPS_PROXY and NO_PROXY."""
    for name in ("https_proxy", "no_proxy"):
        if name.upper() in os.environ:
            os.environ.setdefault(name, os.environ[name.upper()])
    url = os.environ.get("https_proxy")
    if url and "://" not in url:
        os.environ["https_proxy"] = url = f"http://{url}"
    if url and not re.fullmatch(r"http://([^/@]*@)?[^/@]+:\d+/?", url):
        # grpc would silently bypass it. The URL is not shown, as it may contain a password.
        cause = "gRPC cannot use the proxy in https_proxy"
        raise UploadError(os.EX_CONFIG, cause, "write http://HOST:PORT, not https://")


class Access:
    """Settings that every connection needs; raises UploadError (EX_CONFIG) for bad ones."""

    def __init__(self, args: Namespace) -> None:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?", args.endpoint)
        if not match or not 0 < int(match[2] or 443) < 65_536:
            cause = f"bad endpoint {args.endpoint!r}"
            raise UploadError(os.EX_CONFIG, cause, f"write HOST:PORT, such as {ENDPOINT}")
        self.endpoint = f"{match[1]}:{match[2] or 443}"
        # None: the certificates bundled with grpc.
        self._roots = read_option_file("--ca-file", args.ca_file) if args.ca_file else None
        adopt_proxy_settings()
        self._args = args
        self._authorization = authorization(args)
        self._fetched_s = time.monotonic()
        self._numbers = itertools.count(round(args.timeout * 1000))

    def header(self) -> tuple[str, str]:
        """Return the authorization header, with a VM's token fetched anew each hour."""
        age_s = time.monotonic() - self._fetched_s
        if self._args.key_type == "vm" and age_s > VM_TOKEN_AGE_LIMIT_S:
            self._authorization = authorization(self._args)
            self._fetched_s = time.monotonic()
        return "authorization", self._authorization

    def open_channel(self, endpoint: str) -> tuple[grpc.Channel, int]:
        """Create a TLS channel, which connects at its first call; return it and its user timeout.

        The timeouts differ by a millisecond, which identifies each channel's socket; see
        unacknowledged_bytes.
        """
        user_timeout_ms = next(self._numbers)
        options = (
            ("grpc.primary_user_agent", f"upload_grpc/{__version__}"),
            # grpc's own retries could send a recording twice without our knowledge.
            ("grpc.enable_retries", 0),
            # Otherwise a new channel would share, and so reuse, the connection of an old one.
            ("grpc.use_local_subchannel_pool", 1),
            # TCP_USER_TIMEOUT: the kernel ends a connection whose peer stops acknowledging. grpc
            # sets it only with keepalive (gRFC A18); servers may take its pings for abuse, so the
            # first one is due in 24 days.
            ("grpc.keepalive_time_ms", 2**31 - 2),
            ("grpc.keepalive_timeout_ms", user_timeout_ms),
            # An answer of Get holds all analyses of up to 100 dialogs.
            ("grpc.max_receive_message_length", 64 * 1024 * 1024),
        )
        credentials = grpc.ssl_channel_credentials(root_certificates=self._roots)
        return grpc.secure_channel(endpoint, credentials, options), user_timeout_ms


def unacknowledged_bytes(user_timeout_ms: int) -> int:
    """Return how many bytes the kernel has not yet delivered on one channel's connection.

    grpc counts a chunk as sent once the kernel has it, and the kernel buffers several MB: only this
    tells a slow line from a silent service. Linux only (TIOCOUTQ, tcp(7)); 0 elsewhere.
    """
    held_bytes = 0
    with contextlib.suppress(OSError):  # No /proc.
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # No socket, or closed meanwhile.
                connection = socket.socket(fileno=int(name))
                try:
                    option = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                    if option == user_timeout_ms:
                        held = fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))
                        held_bytes += struct.unpack("=i", held)[0]
                finally:
                    connection.detach()  # It is grpc's, and stays open.
    return held_bytes


# --- 7. One call: the requests, and the commit point ----------------------------------------


def file_changed(what: str) -> UploadError:
    """Return the error for a file that changed after it was checked, so it must not be sent."""
    cause = f"{what}, so nothing was uploaded"
    return UploadError(os.EX_TEMPFAIL, cause, "run again when it is complete")


def read_chunks(path: str, size_bytes: int) -> Iterator[bytes]:
    """Yield a file in chunks; raise UploadError if it can no longer be read."""
    try:
        with open(path, "rb") as audio:
            while data := audio.read(size_bytes):
                yield data
    except OSError as error:
        raise file_changed(f"became unreadable ({reason_of(error)})") from error


class Transfer:
    """The state of one call, shared by the thread that reads the file and the one that waits."""

    call: Any = None
    error: Exception | None = None  # Why the requests ended before the commit point.
    handed_over_bytes = 0  # Audio that grpc has taken.
    # Whether the commit point is passed. Before it the service cannot have the whole recording,
    # because the half-close that ends a stream is sent only after the last request.
    finished = False
    ended = False  # The commit point can no longer be passed.

    def __init__(
        self, recording: Recording, ledger: Ledger | None = None, refusal_wait_s: float = 0.0
    ) -> None:
        self.recording = recording
        self.request_id = str(uuid.uuid4())
        self.progress_s = time.monotonic()
        self._ledger = ledger
        self._refusal_wait_s = refusal_wait_s
        self._lock = threading.Lock()

    def requests(self) -> Iterator[talk_service_pb2.StreamTalkRequest]:
        """Yield the requests of one stream: metadata, audio format, audio chunks.

        If the file changed meanwhile this must raise UploadError, so that grpc cancels the call: a
        normal end would make a truncated dialog.
        """
        try:
            yield talk_service_pb2.StreamTalkRequest(metadata=self.recording.metadata)
            audio = audio_pb2.AudioStreamingRequest(audio_metadata=self.recording.audio)
            yield talk_service_pb2.StreamTalkRequest(audio=audio)
            for data in self._chunks(CHUNK_SIZE_BYTES):
                audio = audio_pb2.AudioStreamingRequest(chunk=audio_pb2.AudioChunk(data=data))
                yield talk_service_pb2.StreamTalkRequest(audio=audio)
        except grpc.FutureCancelledError:
            raise
        except Exception as error:
            self.error = error  # grpc only says "Exception iterating requests!".
            raise

    def message(self) -> talk_service_pb2.UploadTalkRequest:
        """Build the single message, and pass the commit point before it is sent.

        Once its call has begun, nobody can tell how much of it has arrived.
        """
        data = b"".join(self._chunks(SINGLE_MESSAGE_LIMIT_BYTES))
        chunk = audio_pb2.AudioChunk(data=data)
        audio = audio_pb2.AudioRequest(audio_metadata=self.recording.audio, audio_data=chunk)
        return talk_service_pb2.UploadTalkRequest(metadata=self.recording.metadata, audio=audio)

    def _chunks(self, size_bytes: int) -> Iterator[bytes]:
        for data in read_chunks(self.recording.path, size_bytes):
            yield data
            # grpc asks for the next chunk when it has sent this one.
            self.handed_over_bytes += len(data)
            self.progress_s = time.monotonic()
        self.finish()

    def finish(self) -> None:
        """Pass the commit point; raise UploadError unless every byte of an unchanged file was sent.

        Without this check, a file that shrank would become a truncated, and successful, dialog.
        """
        try:
            # Of the path: a file that replaced ours while we had it open has another inode.
            state = FileState.of(self.recording.path)
        except OSError as error:
            raise file_changed(f"became unreadable ({reason_of(error)})") from error
        if state != self.recording.state or self.handed_over_bytes != state.size_bytes:
            raise file_changed("changed or was replaced while it was being uploaded")
        # A service that refuses every call does so just after the last byte of a short recording.
        until_s = time.monotonic() + self._refusal_wait_s
        self._check_call()
        while time.monotonic() < until_s:
            time.sleep(0.005)
            self._check_call()
        # On disk first: a crash between the two leaves "finishing" for a recording that was not
        # sent, which a person can resolve. In the other order it would leave "sending" for one that
        # was, and the next run would make a second dialog.
        if self._ledger:
            self._ledger.finishing(self.recording, self.request_id)
        with self._lock:
            # The call may have been cancelled while the disk was writing.
            self._check_call()
            self.progress_s = time.monotonic()
            self.finished = True

    def _check_call(self) -> None:
        if self.ended or (self.call and self.call.done()):
            raise grpc.FutureCancelledError

    def end(self, unless_finished: bool = False) -> None:
        """Cancel the call and bar the commit point; unless_finished: not if it was passed."""
        with self._lock:
            if unless_finished and self.finished:
                return
            self.ended = True
        if self.call:
            self.call.cancel()


def upload_audio_requests_iterator(
    connection_id: int | str, metadata: Mapping[str, str], audio_path: str
) -> Iterator[talk_service_pb2.StreamTalkRequest]:
    """Yield the requests that send a WAV file, as the guide's function of this name does."""
    recording = Recording(audio_path)
    recording.metadata = TalkMetadata(connection_id=str(connection_id), fields=metadata)
    recording.audio = audio_format(WAV, Namespace())
    recording.state = FileState.of(audio_path)
    yield from Transfer(recording).requests()


# --- 8. What the end of a call means ---------------------------------------------------------

HAS_ROLE = "the service account needs the role speech-sense.data.editor in the space"
CHECK_KEY = f"check the key or token; {HAS_ROLE}, and its API key the scope yc.speech-sense.use"
CHECK_HOST = "check --endpoint and https_proxy"
CHECK_PROXY = "check https_proxy (http://USER:PASSWORD@HOST:PORT) and no_proxy"
CHECK_TLS = "check --endpoint, --ca-file and the clock"
UNTRUSTED = (os.EX_CONFIG, "the server's certificate is not trusted", CHECK_TLS)
NO_GRPC = (os.EX_CONFIG, "no gRPC service with TLS at this endpoint", CHECK_HOST)
NO_HOST = (os.EX_CONFIG, "there is no such host", CHECK_HOST)
NO_PROXY = (os.EX_CONFIG, "the proxy refused the connection", CHECK_PROXY)
NO_CONNECTION = (os.EX_TEMPFAIL, "no connection to the service", AGAIN)
BAD_KEY = (os.EX_NOPERM, "the service refused the credential", CHECK_KEY)
FIX_IT = "fix the recording or its metadata"
BAD_FILE = (os.EX_DATAERR, "the service refused the recording", FIX_IT)
TOO_LARGE = (os.EX_DATAERR, "the message is too large for the service", STREAM_IT)

# The retry policy: a pattern for "STATUS: details", and what it means; the first match counts. None
# of these calls made a dialog; those with EX_TEMPFAIL are retried.
RULES = (
    ("UNAUTHENTICATED|PERMISSION_DENIED", *BAD_KEY),
    ("NOT_FOUND", os.EX_CONFIG, "not known to the service", "check --connection-id, --talk-id"),
    ("UNIMPLEMENTED", os.EX_CONFIG, "this server does not offer this method", "check --endpoint"),
    ("INVALID_ARGUMENT|FAILED_PRECONDITION|OUT_OF_RANGE", *BAD_FILE),
    ("ALREADY_EXISTS", os.EX_DATAERR, "the service has this dialog already", LOOK_FOR_IT),
    ("RESOURCE_EXHAUSTED: .*larger than max", *TOO_LARGE),
    ("RESOURCE_EXHAUSTED", os.EX_TEMPFAIL, "the quota is used up", "run again later"),
)
# For calls that never got a connection, so that nothing was sent. These are grpc's own words; tests
# check them against the installed grpc.
NO_CONNECTION_RULES = (
    ("UNAVAILABLE: .*(CERTIFICATE_VERIFY_FAILED|in peer certificate)", *UNTRUSTED),
    ("UNAVAILABLE: .*(Hostname Verification|security handshaker)", *UNTRUSTED),
    ("UNAVAILABLE: empty address list", *UNTRUSTED),
    ("UNAVAILABLE: .*(WRONG_VERSION_NUMBER|missing selected ALPN)", *NO_GRPC),
    ("UNAVAILABLE: .*(Domain name not found|Misformatted domain name)", *NO_HOST),
    ("UNAVAILABLE: .*Name or service not known", *NO_HOST),
    ("UNAVAILABLE: .*proxy returned response code 4", *NO_PROXY),
    ("UNAVAILABLE: (failed to connect to all addresses|errors resolving)", *NO_CONNECTION),
    ("UNAVAILABLE: DNS resolution failed", *NO_CONNECTION),
)
# Everything else, including calls that we gave up: the status may be the service's or gRPC's own.
# Before the commit point no dialog exists; after it one may, so the outcome is unknown.
FAILED = ("", os.EX_TEMPFAIL, "the upload failed before it was complete", AGAIN)
BROKE = "the connection broke, or the service failed, after the whole recording was sent"
UNKNOWN = ("", os.EX_PROTOCOL, f"{BROKE}; the dialog may or may not exist", LOOK_FIRST)
# After the commit point these are not refusals either: grpc turns a broken stream, or too large an
# answer, into any status (grpc/doc/PROTOCOL-HTTP2.md, "Errors").
LOST_ANSWER = "Stream removed|CLIENT:|.*RST_STREAM|.*metadata size exceeds"


def call_error(error: Exception, transfer: Transfer) -> UploadError:
    """Say what a call that brought no answer means for the recording it was to upload.

    error: grpc.RpcError, or grpc's exception for a call that we cancelled.
    """
    details = str(error) or STOPPED
    rules: tuple[tuple[str, int, str, str], ...] = ()
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        text = masked(" ".join((error.details() or "no details").split()))
        details = f"{error.code().name}: {text}"
        # A service may forward such words from calls of its own, after it has stored the recording.
        # They describe our connection only if nothing was sent or received on it.
        used = transfer.handed_over_bytes or error.initial_metadata() or error.trailing_metadata()
        if not (transfer.finished and re.match(LOST_ANSWER, text)):
            rules = RULES if used else NO_CONNECTION_RULES + RULES
    # After the commit point only the service's own refusal proves that no dialog was made. Anything
    # else may be a lost answer: sending again without being asked could make a second dialog.
    fitting = (rule for rule in rules if re.match(rule[0], details, re.IGNORECASE))
    rule = next(fitting, UNKNOWN if transfer.finished else FAILED)
    ids = f"request {transfer.request_id}{server_ids(transfer.call)}"
    failure = UploadError(*rule[1:], f"{details}, {ids}")
    failure.retry = failure.exit_code == os.EX_TEMPFAIL
    failure.outage = failure.retry or failure.exit_code == os.EX_PROTOCOL
    failure.holds_run = failure.retry and rule is not FAILED
    failure.idle_s = time.monotonic() - transfer.progress_s
    return failure


def server_ids(call: Any) -> str:
    """Return the IDs that the service gave to a call that has ended, if any, for messages."""
    if call is None:
        return ""
    pairs = (*(call.initial_metadata() or ()), *(call.trailing_metadata() or ()))
    names = ("x-request-id", "x-server-trace-id")
    return masked("".join(f", {key} {value!s}" for key, value in pairs if key in names))


def take_answer(recording: Recording, response: Any, transfer: Transfer) -> None:
    """Accept an answer only if it has an ID and came after the last byte.

    response: UploadTalkResponse, or the Operation of a recording to be split.
    Raises UploadError (EX_PROTOCOL) otherwise.
    """
    # OK without a message: neither attribute.
    talk_id, operation_id = getattr(response, "talk_id", ""), getattr(response, "id", "")
    badge = talk_service_pb2.UploadBadgeMetadata()
    if operation_id:
        with contextlib.suppress(DecodeError):
            response.metadata.Unpack(badge)
    made = talk_id or operation_id
    if not (transfer.finished and made):
        early = f"before it had the whole file (ID: {made})" if made else "without an ID"
        cause = f"the service answered {early}; the dialog may be missing or incomplete"
        ids = f"request {transfer.request_id}{recording.server_ids}"
        failure = UploadError(os.EX_PROTOCOL, cause, LOOK_FIRST, f"OK, {ids}")
        failure.outage = True
        raise failure
    recording.outcome = "uploaded"
    recording.badge_id, recording.operation_id = badge.badge_id, operation_id
    if talk_id:
        recording.talk_ids = (talk_id,)
    elif response.done:
        recording.talk_ids = split_result(response)


def split_result(operation: Any) -> tuple[str, ...]:
    """Return the IDs of the dialogs that a recording was split into.

    Raises UploadError (EX_DATAERR) if the operation failed, or has no dialog.
    """
    badge = talk_service_pb2.UploadBadgeResponse()
    with contextlib.suppress(DecodeError):
        operation.response.Unpack(badge)  # Empty where there is an error instead.
    if not badge.talk_ids:
        reason = masked(operation.error.message) or "its result has no dialog"
        raise refused(f"uploaded, but not split: {reason}, operation {operation.id}", LOOK_FOR_IT)
    return tuple(badge.talk_ids)


# --- 9. The uploader --------------------------------------------------------------------------

# Where the official SDK looks up the operations of every service.
OPERATIONS_ENDPOINT = "operation.api.cloud.yandex.net:443"
# How often to ask whether a recording has been split, and for how long; the service names no limit.
POLL_S = 1.0
POLL_LIMIT_S = 30.0
WAIT_LIMIT_S = 2 * 60 * 60.0

SAME_FOR_ALL = "stopped, because every other recording would meet the same error"


class Throttle:
    """Decides whether workers may begin another recording; one for the whole run.

    in_doubt: the latest recording failed because of the service or the network, so recordings are
    sent one at a time until one is uploaded.
    """

    cause = ""  # Why it was stopped.
    _failures = 0
    _resume_s = 0.0

    def __init__(self, in_doubt: bool = False) -> None:
        self.stopping = threading.Event()
        self.in_doubt = self._began_in_doubt = in_doubt

    def stop(self, cause: str) -> None:
        """Begin nothing more; calls under way may end, but are not retried."""
        self.cause = self.cause or cause
        self.stopping.set()

    def hold(self, delay_s: float) -> None:
        """Begin no recording for a while: nothing connects, or the quota is used up."""
        self._resume_s = max(self._resume_s, time.monotonic() + delay_s)

    def may_begin(self, is_first: bool) -> bool:
        """Return whether a recording may begin now; is_first: no other is under way."""
        return (is_first or not self.in_doubt) and time.monotonic() >= self._resume_s

    def judge(self, recording: Recording) -> None:
        """Stop the run if a recording's result shows an outage, or an error that all would meet."""
        error = recording.error
        if recording.outcome == "uploaded" and not recording.settled:
            self._failures = 0
            self.in_doubt = self._began_in_doubt = False
        elif error and error.outage:
            self._failures += 1
            self.in_doubt = True
            limit = FAILURES_LIMIT_IN_DOUBT if self._began_in_doubt else FAILURES_LIMIT
            if self._failures >= limit:
                self.stop(f"{self._failures} recordings in a row were not delivered; {AGAIN} later")
        if error and error.stops_run:
            self.stop(SAME_FOR_ALL)


class Uploader:
    """One worker's connection to the service: its own channel, replaced after a failed call."""

    def __init__(self, args: Namespace, access: Access, throttle: Throttle | None = None) -> None:
        self._args = args
        self._access = access
        self._throttle = throttle or Throttle()
        self.stopping = self._throttle.stopping
        self.timeout_s = args.timeout
        self._endpoint = access.endpoint
        self._channel: grpc.Channel | None = None
        self._user_timeout_ms = 0

    def upload(self, recording: Recording, ledger: Ledger | None = None) -> None:
        """Send a recording; retry only if that cannot make a second dialog; raise UploadError."""
        single, split = self._args.single_message, self._args.split
        method = "Upload" if single else "UploadBadge" if split else "UploadAsStream"
        recording.metadata.connection_id = self._args.connection_id
        wait_s = min(REFUSAL_WAIT_S, self.timeout_s / 2)

        def one_try() -> None:
            transfer = Transfer(recording, ledger, wait_s if self._throttle.in_doubt else 0.0)
            if single:
                self._connect(recording.path)
            if ledger:
                ledger.note(recording, state="sending", request_id=transfer.request_id)
            recording.transfer = transfer
            build = transfer.message if single else transfer.requests
            take_answer(recording, self._call(transfer, method, build), transfer)

        self._retrying(recording, one_try)

    def ask(self, recording: Recording, method: str, request: Any) -> Any:
        """Make one call that sends no audio; return its answer, or raise UploadError."""
        return self._call(Transfer(recording), method, lambda: request)

    def ask_again(self, recording: Recording, method: str, request: Any) -> Any:
        """Make such a call, with retries; return its answer, or raise UploadError."""
        return self._retrying(recording, lambda: self.ask(recording, method, request))

    def follow(self, recording: Recording) -> None:
        """Wait, up to WAIT_LIMIT_S, until a recording has been split, and set its talk IDs."""
        from yandex.cloud.operation import operation_service_pb2

        operation_id = recording.operation_id
        request = operation_service_pb2.GetOperationRequest(operation_id=operation_id)
        until_s, pause_s = time.monotonic() + WAIT_LIMIT_S, POLL_S
        try:
            while True:
                # On another Recording: this one keeps its upload's request ID and tries.
                operation = self.ask_again(Recording(recording.path), "GetOperation", request)
                if operation.done:
                    break
                if time.monotonic() + pause_s > until_s:
                    hours = f"{WAIT_LIMIT_S / 3600:g}"
                    cause = f"operation {operation_id} is still going after {hours} hours"
                    raise UploadError(os.EX_TEMPFAIL, cause, AGAIN)
                if self.stopping.wait(pause_s):
                    raise UploadError(os.EX_TEMPFAIL, STOPPED, AGAIN)
                pause_s = min(pause_s * 1.5, POLL_LIMIT_S)
        except UploadError as error:
            if error.details.startswith(("UNIMPLEMENTED", "NOT_FOUND")):
                if self._endpoint == ENDPOINT:
                    # Perhaps the operation is where the SDK looks for those of all services.
                    other = Uploader(self._args, self._access, self._throttle)
                    other._endpoint = OPERATIONS_ENDPOINT
                    with contextlib.closing(other):
                        other.follow(recording)
                    return
                # This concerns one recording, not the run.
                error.exit_code, error.advice, error.stops_run = os.EX_DATAERR, LOOK_FOR_IT, False
            error.cause = f"uploaded, but not yet split: {error.cause}"
            raise
        recording.talk_ids = split_result(operation)

    def close(self) -> None:
        """Close the channel."""
        if self._channel:
            # In a thread: if the connection froze, close() may wait forever for a pending write.
            # Left to the garbage collector, hundreds of connections could stay open.
            threading.Thread(target=self._channel.close, daemon=True).start()
            self._channel = None

    def _retrying(self, recording: Recording, one_try: Callable[[], Any]) -> Any:
        """Call one_try until it succeeds, or fails for good; return its answer.

        Only this sends anything a second time, and only if the error has `retry`, which call_error
        sets only where no dialog can have been made.
        """
        idle_s = 0.0
        while True:
            recording.tries += 1
            try:
                return one_try()
            except UploadError as error:
                # Full jitter, so that clients that failed together do not retry together.
                import random

                limit_s = min(BACKOFF_LIMIT_S, BACKOFF_S * 2.0**recording.tries)
                delay_s = random.uniform(0, limit_s)
                idle_s += error.idle_s + delay_s
                again = recording.tries <= self._args.retries and idle_s <= TRIES_LIMIT_S
                if not (error.retry and again) or self.stopping.is_set():
                    raise
                if error.holds_run:
                    self._throttle.hold(delay_s)
                log.info(f"{recording.path}: {error.reason}; next try in {delay_s:.1f} s")
                if self.stopping.wait(delay_s):
                    raise

    def _connect(self, name: str) -> None:
        """Make sure that there is a connection before a single message is sent.

        Otherwise a message that was never sent would count as unknown. Any answer to a health check
        (grpc.health.v1), even UNIMPLEMENTED, shows a connection.
        """
        try:
            self.ask(Recording(name), "Check", b"")
        except UploadError as error:
            if error.retry or error.details.startswith("UNAVAILABLE"):
                raise

    def _call(self, transfer: Transfer, method: str, requests: Callable[[], Any]) -> Any:
        """Make one call; return its response, or raise the UploadError that its end means."""
        if self.stopping.is_set():
            raise UploadError(os.EX_TEMPFAIL, STOPPED, AGAIN)
        recording = transfer.recording
        recording.request_id = transfer.request_id
        headers = (self._access.header(), ("x-client-request-id", transfer.request_id))
        log.debug(f"{recording.path}: calling {method} (request {transfer.request_id})")
        try:
            transfer.call = self._method(method).future(requests(), metadata=headers)
            # A signal may have come when there was no call to cancel yet.
            if self.stopping.is_set():
                transfer.end(unless_finished=True)
            response = self._wait(transfer)
            recording.server_ids = server_ids(transfer.call)
            return response
        except (grpc.RpcError, grpc.FutureCancelledError, grpc.FutureTimeoutError) as error:
            # First: now the reading thread can no longer pass the commit point, so that `finished`,
            # by which call_error tells unsent from unknown, is final.
            transfer.end()
            if transfer.error is not None:
                raise transfer.error from None
            failure = call_error(error, transfer)
            if failure.outage:
                self.close()
            raise failure from error
        finally:
            transfer.end()

    def _method(self, name: str) -> Any:
        """Return the callable for a method, on the present channel or a new one."""
        if self._channel is None:
            self._channel, self._user_timeout_ms = self._access.open_channel(self._endpoint)
        if name == "Check":
            return self._channel.unary_unary("/grpc.health.v1.Health/Check")
        if name == "GetOperation":
            from yandex.cloud.operation import operation_service_pb2_grpc

            return operation_service_pb2_grpc.OperationServiceStub(self._channel).Get
        return getattr(talk_service_pb2_grpc.TalkServiceStub(self._channel), name)

    def _wait(self, transfer: Transfer) -> Any:
        """Wait for the answer; cancel the call and raise FutureTimeoutError if nothing moves.

        gRPC's deadline covers a whole call, and would cut off a slow but steady upload; servers may
        take keepalive pings for abuse. Progress means that grpc takes a chunk. While the kernel
        still has bytes to deliver, TCP_USER_TIMEOUT watches the connection instead.
        """
        timeout_s = self.timeout_s
        while True:
            left_s = transfer.progress_s + timeout_s - time.monotonic()
            if left_s <= 0 and transfer.call.cancel():
                raise grpc.FutureTimeoutError(f"no progress for {timeout_s:g} s")
            try:
                return transfer.call.result(timeout=min(max(left_s, 0), timeout_s / 4))
            except grpc.FutureTimeoutError:
                if unacknowledged_bytes(self._user_timeout_ms):
                    transfer.progress_s = time.monotonic()


# --- 10. The ledger --------------------------------------------------------------------------

LEDGER_APPLICATION_ID = 0x53534C47
LEDGER_VERSION = 2
LEDGER_TABLE = """
CREATE TABLE IF NOT EXISTS recordings (
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
    settle_key      TEXT,  -- The metadata key under which the service has the SHA-256.
    split           INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (connection_id, sha256)
) WITHOUT ROWID
"""
LEDGER_FROM_VERSION_1 = (
    "DROP INDEX IF EXISTS recordings_under_way",
    # Version 1 hashed metadata in another way, so its digests cannot be compared.
    "UPDATE recordings SET metadata_sha256 = ''",
    "ALTER TABLE recordings ADD COLUMN settle_key TEXT",
    "ALTER TABLE recordings ADD COLUMN split INTEGER NOT NULL DEFAULT 0",
)
LEDGER_INDEXES = (
    "CREATE INDEX IF NOT EXISTS recordings_by_path ON recordings (connection_id, path)",
    "CREATE INDEX IF NOT EXISTS recordings_by_time ON recordings (updated_at)",
    "CREATE INDEX IF NOT EXISTS recordings_not_uploaded ON recordings (state) "
    "WHERE state <> 'uploaded'",
)


class LedgerError(UploadError):
    """The ledger cannot be used, so nothing is sent; in_use: another run has it."""

    def __init__(self, path: str, cause: str, in_use: bool = False) -> None:
        super().__init__(os.EX_CONFIG, f"ledger {path}: {cause}", "check --ledger")
        self.in_use = in_use
        self.stops_run = True
        # A full or busy disk may recover; a wrong or damaged file will not.
        if in_use or re.search("full|locked|I/O|space|quota|too large", cause):
            self.exit_code, self.advice = os.EX_TEMPFAIL, "wait for that to end, then run again"
        elif "moved" in cause:
            self.advice = "put it back, with its -wal file (a new ledger sends everything again)"
        elif re.search("malformed|not a database|not a ledger", cause):
            self.advice += ", or restore it from a backup (a new ledger sends everything again)"


class Ledger:
    """One SQLite file that remembers what became of each recording of one connection.

    A recording is its content: connection and SHA-256. Rows go sending -> finishing -> uploaded;
    a finishing row is on disk before the half-close can leave, so a run that dies leaves either
    no dialog (a sending row, or none) or a row that says there may be one.
    Every method raises LedgerError. A dry run has a copy in memory, and takes no lock.
    """

    _was_moved = False

    def __init__(self, args: Namespace) -> None:
        import sqlite3

        self._sqlite_error = sqlite3.Error
        self._args = args
        # By whatever name, one file has one lock.
        self.path = path = os.path.realpath(args.ledger)
        self._lock = threading.Lock()
        self._identity: tuple[int, ...] | None = None
        with contextlib.ExitStack() as undo:
            try:
                if os.path.exists(path) and not os.path.isfile(path):
                    raise LedgerError(path, "not a regular file")
                if not args.dry_run:
                    undo.callback(os.close, self._lock_file())
                    self._identity = FileState.of(path)[2:]
                self._db = sqlite3.connect(
                    ":memory:" if args.dry_run else path,
                    isolation_level=None,
                    check_same_thread=False,
                )
                undo.callback(self._db.close)
                self._db.row_factory = sqlite3.Row
                if args.dry_run and os.path.exists(path):
                    with contextlib.closing(open_read_only(path)) as source:
                        source.backup(self._db)
                self._prepare()
            except (OSError, sqlite3.Error) as error:
                raise LedgerError(path, reason_of(error)) from error
            self._undo = undo.pop_all()

    def _lock_file(self) -> int:
        """Keep other runs out until this process ends, however it ends."""
        # A file of its own: SQLite's locks on the ledger itself are lost when any descriptor of
        # the ledger is closed (sqlite.org/howtocorrupt.html, 2.2).
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        lock_file = os.open(f"{self.path}-lock", flags, 0o600)
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock_file)
            raise LedgerError(self.path, "another run is using it", in_use=True) from None
        # SQLite gives its -wal and -shm files the permissions of this one.
        os.close(os.open(self.path, flags, 0o600))
        return lock_file

    def _prepare(self) -> None:
        """Create the table, or check and upgrade it; take over what a killed run left."""
        execute = self._db.execute
        (application_id,) = execute("PRAGMA application_id").fetchone()
        (version,) = execute("PRAGMA user_version").fetchone()
        (tables,) = execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application_id != LEDGER_APPLICATION_ID:
            raise LedgerError(self.path, "not a ledger, but a database of another program")
        if version > LEDGER_VERSION:
            raise LedgerError(self.path, "written by a newer upload_grpc")
        from_version_1 = LEDGER_FROM_VERSION_1 if version == 1 else ()
        # Write-ahead log: others can read while we write, and a commit is one write and one sync.
        execute("PRAGMA journal_mode = WAL")
        execute("BEGIN IMMEDIATE")
        for step in (LEDGER_TABLE, *from_version_1, *LEDGER_INDEXES):
            execute(step)
        execute(f"PRAGMA application_id = {LEDGER_APPLICATION_ID}")
        # Written even if it changes nothing, so that a full disk is noticed before we send.
        execute(f"PRAGMA user_version = {LEDGER_VERSION}")
        for state, after in (("sending", "failed"), ("finishing", "unknown")):
            execute(
                f"UPDATE recordings SET state = '{after}', error = 'the run was killed' "
                # The second condition is for the index, as in unknown_with_key.
                f"WHERE state = '{state}' AND state <> 'uploaded'"
            )
        execute("COMMIT")
        execute("PRAGMA synchronous = NORMAL")

    def close(self) -> None:
        """Close the file and release the lock; raise LedgerError if the file was moved."""
        with self._lock:
            self._undo.close()
        if not self._was_moved:
            self._check_identity()

    def _check_identity(self) -> None:
        """Raise LedgerError if the path no longer leads to the file that was opened."""
        present = None
        with contextlib.suppress(OSError):
            present = FileState.of(self.path)[2:]
        if self._identity and present != self._identity:
            self._was_moved = True
            raise LedgerError(self.path, "it was moved or removed during the run")

    def find_uploaded(self, recording: Recording) -> Any:
        """Look up an uploaded recording by path, size and mtime, which spares the hash."""
        where = "path = ? AND size_bytes = ? AND mtime_ns = ? AND state = 'uploaded'"
        key = (ledger_key(recording.path), *recording.state[:2])
        return self._first("recordings_by_path", where, *key)

    def find_audio(self, sha256: str) -> Any:
        """Look up a recording by its audio."""
        return self._first("", "sha256 = ?", sha256)

    def has_failed(self, path: str) -> bool:
        """Return whether the recording at this path failed before."""
        where = "path = ? AND state = 'failed'"
        return bool(self._first("recordings_by_path", where, ledger_key(path)))

    def begins_in_doubt(self) -> bool:
        """Return whether the latest recording failed or is unknown."""
        latest = self._do("SELECT state FROM recordings ORDER BY updated_at DESC LIMIT 1")
        return bool(latest) and latest[0]["state"] in ("failed", "unknown")

    def unknown_with_key(self) -> list[Any]:
        """Return the unknown recordings that were sent with their SHA-256 under --settle-key."""
        # The second condition lets SQLite use the index that leaves out what is uploaded.
        where = "state = 'unknown' AND state <> 'uploaded' AND settle_key = ?"
        where += " ORDER BY updated_at DESC"
        return self._rows("recordings_not_uploaded", where, self._args.settle_key)

    def latest_with_key(self) -> Any:
        """Return the latest recording uploaded with --settle-key, or None."""
        where = "state = 'uploaded' AND settle_key = ? ORDER BY updated_at DESC LIMIT 1"
        return self._first("recordings_by_time", where, self._args.settle_key)

    def _first(self, index: str, where: str, *values: object) -> Any:
        return next(iter(self._rows(index, where, *values)), None)

    def _rows(self, index: str, where: str, *values: object) -> list[Any]:
        # Left to choose, SQLite would scan all rows of the connection.
        table = f"recordings INDEXED BY {index}" if index else "recordings"
        sql = f"SELECT * FROM {table} WHERE connection_id = ? AND {where}"
        return self._do(sql, (self._args.connection_id, *values))

    def claim(self, recording: Recording) -> None:
        """Record that a recording is about to be sent."""
        # Not synced: whether a crash keeps or loses this row, nothing was sent, and the next run
        # sends the recording.
        self._do(
            "INSERT INTO recordings (connection_id, sha256, path, size_bytes, mtime_ns, "
            "metadata_sha256, state, updated_at) VALUES (?, ?, ?, ?, ?, ?, 'sending', ?) "
            "ON CONFLICT DO UPDATE SET path = excluded.path, mtime_ns = excluded.mtime_ns, "
            "metadata_sha256 = excluded.metadata_sha256, state = 'sending', error = NULL, "
            "request_id = NULL, updated_at = excluded.updated_at",
            (
                self._args.connection_id,
                recording.sha256,
                ledger_key(recording.path),
                *recording.state[:2],
                recording.metadata_sha256,
                utc(),
            ),
        )

    def finishing(self, recording: Recording, request_id: str) -> None:
        """Record, on disk, that a dialog may exist from now on."""
        args = self._args
        self._do(
            "UPDATE recordings SET state = 'finishing', settle_key = ?, split = ?, updated_at = ? "
            # Not for a try that was given up meanwhile.
            "WHERE connection_id = ? AND sha256 = ? AND state = 'sending' AND request_id = ?",
            (args.settle_key, args.split, utc(), args.connection_id, recording.sha256, request_id),
            synced=True,
        )

    def end(self, recording: Recording) -> None:
        """Record how sending a recording ended."""
        # Not synced: after a power failure the row still says finishing, and the next run calls the
        # recording unknown. The next sync, or close(), writes it to disk.
        self.note_dialogs(
            recording,
            updated_at=utc(),
            badge_id=recording.badge_id or None,
            operation_id=recording.operation_id or None,
            attempts=recording.tries,
        )

    def note_dialogs(self, recording: Recording, **columns: object) -> None:
        """Record a recording's outcome, dialogs and error, and other columns if given."""
        columns["talk_id"] = " ".join(recording.talk_ids) or None
        columns["error"] = recording.error.reason if recording.error else None
        self.note(recording, state=recording.outcome, **columns)

    def note(self, recording: Recording, **columns: object) -> None:
        """Update columns of a recording's row; attempts are added to those of earlier runs."""
        names = ", ".join(f"{name} = ?" for name in columns)
        names = names.replace("attempts = ?", "attempts = attempts + ?")
        self._do(
            f"UPDATE recordings SET {names} WHERE connection_id = ? AND sha256 = ?",
            (*columns.values(), self._args.connection_id, recording.sha256),
        )

    def _do(self, sql: str, values: tuple[object, ...] = (), synced: bool = False) -> list[Any]:
        """Execute a statement and return its rows; synced: wait until it is on disk.

        Raises LedgerError, also if an UPDATE finds no row, because somebody deleted it.
        """
        with self._lock:
            try:
                if synced:
                    self._db.execute("PRAGMA synchronous = FULL")
                cursor = self._db.execute(sql, values)
                rows = cursor.fetchall()
                if synced:
                    self._db.execute("PRAGMA synchronous = NORMAL")
            except (self._sqlite_error, ValueError, OverflowError) as error:  # A file of 2263.
                raise LedgerError(self.path, str(error)) from error
            if synced:
                self._check_identity()
        if sql.startswith("UPDATE") and not cursor.rowcount:
            raise LedgerError(self.path, "a row was deleted or changed during the run")
        return rows


def open_read_only(path: str) -> Any:
    """Open a ledger so that SQLite neither creates nor changes a file."""
    import sqlite3
    from urllib.parse import quote

    # Without a -wal file nobody is writing, and `immutable` keeps SQLite from creating one.
    options = "" if os.path.exists(f"{path}-wal") else "&immutable=1"
    if os.path.exists(f"{path}-shm"):
        options += "&readonly_shm=1"
    return sqlite3.connect(f"file:{quote(os.fsencode(path))}?mode=ro{options}", uri=True)


def ledger_key(path: str) -> str:
    """Return a path as the ledger stores it: absolute, bytes that are not UTF-8 escaped."""
    return os.fsencode(os.path.abspath(path)).decode(errors="backslashreplace")


def apply_row(recording: Recording, row: Any) -> None:
    """Set a recording's result from its row in the ledger."""
    recording.sha256 = row["sha256"]
    recording.talk_ids = tuple((row["talk_id"] or "").split())
    recording.badge_id = row["badge_id"] or ""
    recording.operation_id = row["operation_id"] or ""
    if row["state"] == "unknown":
        cause = f"not sent; it may have been uploaded before: {row['error']}"
        recording.fail(UploadError(os.EX_PROTOCOL, cause, LOOK_FIRST))
    elif row["state"] == "rejected":
        cause = f"not sent; it was rejected before: {row['error']}"
        recording.fail(refused(cause, "it is sent again once the file or its metadata changes"))
    else:  # Uploaded, or in a dry run to be sent under another name.
        recording.outcome = "already"


def hash_recording(recording: Recording, args: Namespace, stopping: threading.Event) -> None:
    """Set the SHA-256 of the audio and of the metadata, in hexadecimal; raise UploadError."""
    import hashlib

    digest = hashlib.sha256()
    for data in read_chunks(recording.path, SMALL_FILE_LIMIT_BYTES):
        if stopping.is_set():
            raise UploadError(os.EX_TEMPFAIL, STOPPED, AGAIN)
        digest.update(data)
    recording.sha256 = digest.hexdigest()
    sent = TalkMetadata()
    sent.CopyFrom(recording.metadata)
    if recording.has_placeholders:  # Their date changes each time.
        del sent.fields["date"]
    metadata = hashlib.sha256(sent.SerializeToString(deterministic=True)).hexdigest()
    way = f"{args.audio_type}{' split' * args.split}{' single' * args.single_message}"
    recording.metadata_sha256 = f"{metadata} {way}"


def seconds_of(time_text: str) -> float:
    """Convert a time in the ledger to seconds since 1970."""
    return datetime.datetime.fromisoformat(f"{time_text[:19]}+00:00").timestamp()


def utc() -> str:
    """Return the present time as ISO 8601 in UTC, to the millisecond."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- 11. Settling what is unknown -------------------------------------------------------------

# Values per search, and calls per run. The service's quota per project, used by the
# console, too, is 20/s, 200/min and 2,000/h.
SETTLE_BATCH = 20
SETTLE_CALLS_LIMIT = 30
SETTLE_PAUSE_S = 1.0
LOOKUP_TIMEOUT_S = 10.0
# The service's limit. A value should have one dialog, so a batch stays far below it.
GET_LIMIT_TALKS = 100


class Settling:
    """Looks up recordings whose answer was lost, by the SHA-256 in their metadata."""

    def __init__(
        self, args: Namespace, uploader: Uploader, ledger: Ledger, signals: Sequence[int]
    ) -> None:
        # By SHA-256: what was found, and how to say that something was not.
        self.settled: dict[str, Recording] = {}
        self.not_found: dict[str, str] = {}
        # Not found, although something uploaded later was: these may be sent again.
        self.missing: set[str] = set()
        self._args = args
        self._uploader = uploader
        # A lookup that gets no answer must not hold up the uploads for long.
        uploader.timeout_s = min(args.timeout, LOOKUP_TIMEOUT_S)
        self._ledger = ledger
        self._signals = signals
        self._calls = 0
        self._next_call_s = 0.0

    def look_for(self, unknown: Sequence[Any]) -> None:
        """Look up unknown recordings (rows of the ledger); what is found becomes `uploaded`.

        Raises UploadError for a refused credential; any other failure is only a warning.
        """
        control = self._ledger.latest_with_key()
        for start in range(0, len(unknown), SETTLE_BATCH - 1):
            batch = unknown[start : start + SETTLE_BATCH - 1]
            values = [row["sha256"] for row in batch]
            if control and self._args.retry_unknown:
                values.append(control["sha256"])
            try:
                found, whole = self._find(values)
            except UploadError as error:
                if error.details.startswith("UNAUTHENTICATED"):
                    raise
                log.warning(f"unknown recordings could not be looked up: {error}")
                return
            # What was sent before this time should be found by now.
            seen_until = control["updated_at"] if control and control["sha256"] in found else ""
            for row in batch:
                if row["sha256"] in found:
                    self._settle(row, found[row["sha256"]])
                else:
                    self._note_missing(row, seen_until, whole)

    def apply_to(self, recording: Recording) -> None:
        """Set what was found of an unknown recording, or say that it was not found."""
        found = self.settled.get(recording.sha256)
        if found:
            recording.error, recording.talk_ids = found.error, found.talk_ids
            recording.settled = recording.tries > 0  # Not for a copy under another name.
            recording.outcome = found.outcome if recording.settled or found.error else "already"
        elif recording.error and recording.sha256 in self.not_found:
            recording.error.cause += f"; {self.not_found[recording.sha256]}"

    def _settle(self, row: Any, talks: list[tuple[float, str]]) -> None:
        """Record what was found of one recording; talks: creation times with talk IDs."""
        recording = Recording(os.fsdecode(row["path"]))  # Earlier versions have stored bytes, too.
        recording.sha256, recording.settled = row["sha256"], True
        talk_ids = tuple(talk_id for _, talk_id in sorted(talks))
        if row["split"]:
            recording.talk_ids = talk_ids
            cause = "it arrived and was split; the list of its dialogs may not be complete"
            recording.fail(UploadError(os.EX_PROTOCOL, cause, LOOK_FOR_IT))
        else:
            recording.talk_ids, recording.outcome = talk_ids[:1], "uploaded"
            if talk_ids[1:]:
                log.warning(f"{recording.path}: uploaded more than once: {', '.join(talk_ids)}")
        self._ledger.note_dialogs(recording)
        self.settled[recording.sha256] = recording

    def _note_missing(self, row: Any, seen_until: str, whole: bool) -> None:
        """Record that one recording was not found, which alone does not prove it missing."""
        age_s = max(time.time() - seconds_of(row["updated_at"]), 0)
        words = f"not found in the service {age_s:,.0f} s after it was sent"
        # A recording that is being split has no dialogs yet.
        if whole and not row["split"] and row["updated_at"] < seen_until:
            self.missing.add(row["sha256"])
        elif self._args.retry_unknown and not seen_until:
            key = shown(self._args.settle_key)
            words += f"; cannot see {key}: check it, the project and the role"
        self.not_found[row["sha256"]] = words

    def _find(self, values: Sequence[str]) -> tuple[dict[str, list[tuple[float, str]]], bool]:
        """Return the talks that have these values under the key, and whether that is all of them.

        A search may match more than it was asked for, so only what Get returns is proof.
        """
        request = talk_service_pb2.SearchTalkRequest(page_size=GET_LIMIT_TALKS)
        key = f"userMeta.{self._args.settle_key}"
        request.filters.add(key=key).any_match.values.extend(values)
        page = self._ask("Search", request)
        found: dict[str, list[tuple[float, str]]] = collections.defaultdict(list)
        talks = []
        if page.talk_ids:
            get = talk_service_pb2.GetTalkRequest(talk_ids=page.talk_ids)
            get.results_mask.SetInParent()
            talks = self._ask("Get", get).talk
        for talk in talks:
            created_s = talk.created_at.seconds + talk.created_at.nanos / 1e9
            for field in talk.talk_fields:
                is_ours = talk.connection_id == self._args.connection_id
                if is_ours and field.name == self._args.settle_key and field.value in values:
                    found[field.value].append((created_s, talk.id))
        seen_all = {talk.id for talk in talks} >= set(page.talk_ids)
        return found, seen_all and not page.next_page_token

    def _ask(self, method: str, request: Any) -> Any:
        """Make one call: at most one a second, and SETTLE_CALLS_LIMIT a run."""
        if self._calls == SETTLE_CALLS_LIMIT:
            cause = f"{SETTLE_CALLS_LIMIT} calls a run are made"
            raise UploadError(os.EX_TEMPFAIL, cause, "the next run goes on")
        self._calls += 1
        self._uploader.stopping.wait(self._next_call_s - time.monotonic())
        if self._signals:
            raise UploadError(os.EX_TEMPFAIL, STOPPED, AGAIN)
        self._next_call_s = time.monotonic() + SETTLE_PAUSE_S
        for name in ("organization_id", "space_id", "connection_id", "project_id"):
            setattr(request, name, getattr(self._args, name) or "")
        return self._uploader.ask(Recording("looking up unknown recordings"), method, request)


# --- 12. The run ------------------------------------------------------------------------------


class Run:
    """One run of the program, from the paths named to the exit code.

    The workers share one iterator of recordings; each repeats `_take`, `_send` and `_report`.
    """

    _settling: Settling | None = None
    _placeholders_reported = False
    _bug: BaseException | None = None

    def __init__(
        self, args: Namespace, access: Access | None, console: Console, ledger: Any
    ) -> None:
        self._args = args
        self._access = access
        self._console = console
        self._ledger: Ledger | None = ledger
        self._throttle = Throttle(in_doubt=bool(ledger and ledger.begins_in_doubt()))
        self._stopping = self._throttle.stopping
        self._common = read_metadata(args.meta_path) if args.meta_path else None
        self._recordings = self._in_order()
        self._to_send = self._prepared()
        self._under_way: set[Recording] = set()
        self._unknown: list[Recording] = []
        self._claimed: set[str] = set()  # SHA-256 of what this run sends.
        self._counts: collections.Counter[str] = collections.Counter()
        self._exit_codes: set[int] = set()
        self._signals: list[int] = []
        self._taking = threading.Lock()
        self._reporting = threading.RLock()

    def main(self) -> int:
        """Upload everything; return the exit code."""
        # Daemons, as a worker that hangs in a read must not keep the program from ending.
        jobs = self._args.jobs if self._console.several else 1
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(jobs)]
        self._collect_signals()
        self._settle_earlier()
        for worker in workers:
            worker.start()
        self._wait_for(workers)
        if self._stopping.is_set() or self._signals:
            self._count_not_tried()
        self._settle_fresh()
        if self._bug:
            raise self._bug
        return self._end()

    def _collect_signals(self) -> None:
        """Note SIGINT, SIGTERM and SIGHUP, unless they were ignored when we started."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda number, frame: self._signals.append(number))

    def plan(self) -> int:
        """Report what main() would do; return the exit code."""
        for recording in self._to_send:
            if not recording.outcome:
                recording.outcome = "checked"
                size = f"{recording.state.size_bytes:,} bytes"
                recording.description += f", {size}, {described(recording.metadata)}"
            self._report(recording)
        return self._end()

    def _in_order(self) -> Iterator[Recording]:
        """Yield the recordings; in doubt, those that failed before come last."""
        failed_before: list[Recording] = []
        ledger = self._ledger
        for recording in find_recordings(self._args):
            # Otherwise one that always fails could hold up the others.
            if self._throttle.in_doubt and ledger and ledger.has_failed(recording.path):
                failed_before.append(recording)
            else:
                yield recording
        yield from failed_before

    def _work(self) -> None:
        """Send one recording after the other over this worker's own channel."""
        assert self._access is not None
        try:
            uploader = Uploader(self._args, self._access, self._throttle)
            with contextlib.closing(uploader):
                while recording := self._take():
                    self._send(recording, uploader)
                    self._report(recording)
        except BaseException as bug:  # noqa: BLE001 - raised again by the main thread.
            self._bug = self._bug or bug
            self._throttle.stop("a bug")

    def _take(self) -> Recording | None:
        """Return the next recording to send, once the run may begin one; None at the end."""
        # One worker at a time, so that of two recordings with the same audio the first is sent.
        with self._taking:
            while not (self._stopping.is_set() or self._signals):
                if self._throttle.may_begin(is_first=not self._under_way):
                    recording = next(self._to_send, None)
                    if recording:
                        self._under_way.add(recording)
                    return recording
                self._stopping.wait(TICK_S)
        return None

    def _prepared(self) -> Iterator[Recording]:
        """Look up and check the recordings; yield those to send, and report the others."""
        while not self._stopping.is_set() and (recording := next(self._recordings, None)):
            recording.started_s = time.monotonic()
            try:
                row = self._find_row(recording)
            except UploadError as error:
                recording.fail(error)
                self._report(recording)
                continue
            if row is None:
                if recording.has_placeholders and not self._placeholders_reported:
                    self._placeholders_reported = True
                    what = "no metadata given, so placeholder fields are sent (said once a run)"
                    log.warning(f"{recording.path}: {what}; use --meta-path or call.json")
                yield recording
                continue
            self._warn_of_difference(recording, row)
            if self._settling and row["sha256"] in self._settling.settled:
                continue  # Reported already.
            apply_row(recording, row)
            if self._settling:
                self._settling.apply_to(recording)
            if self._is_to_follow(recording):
                yield recording
            else:
                self._report(recording)

    def _find_row(self, recording: Recording) -> Any:
        """Return the row of a recording that is not to be sent; check and claim any other."""
        if recording.error:
            raise recording.error
        ledger = self._ledger
        row = ledger.find_uploaded(recording) if ledger else None
        if row:
            # That it has changed is only reported, and not with --quiet.
            sidecar = None if self._args.quiet else find_sidecar(recording.path)
            with contextlib.suppress(OSError):  # The sidecar may be removed meanwhile.
                # Plus 1 s, as times of version 1 have no milliseconds.
                if not sidecar or os.lstat(sidecar).st_mtime < seconds_of(row["updated_at"]) + 1:
                    return row
        check_recording(recording, self._args, self._common)
        if not ledger:
            return None
        hash_recording(recording, self._args, self._stopping)
        row = ledger.find_audio(recording.sha256)
        # Another worker is sending the same audio under another name: wait for its result.
        while row and row["state"] in ("sending", "finishing") and self._access:
            if self._stopping.wait(TICK_S):  # Its row may never change again.
                raise UploadError(os.EX_TEMPFAIL, STOPPED, AGAIN)
            row = ledger.find_audio(recording.sha256)
        if row and not self._may_resend(recording, row):
            key, there = ledger_key(recording.path), os.path.exists(row["path"])
            if row["state"] == "uploaded" and (row["path"] == key or not there):
                # Spares the next run the hash.
                ledger.note(recording, path=key, mtime_ns=recording.state.mtime_ns)
            return row
        ledger.claim(recording)
        self._claimed.add(recording.sha256)
        return None

    def _may_resend(self, recording: Recording, row: Any) -> bool:
        """Return whether a recording that the ledger knows may be sent."""
        if row["state"] == "rejected":
            present = (recording.state.mtime_ns, recording.metadata_sha256)
            return present != (row["mtime_ns"], row["metadata_sha256"])
        if row["state"] == "unknown":
            may: bool = self._args.retry_unknown and not row["talk_id"]
            # Not if it became unknown in this run: nobody can have looked for it yet.
            may = may and row["sha256"] not in self._claimed
            if may and self._settling and row["settle_key"] == self._args.settle_key:
                may = row["sha256"] in self._settling.missing
            if may:
                log.info(f"{recording.path}: sent again; this may create a duplicate")
            return may
        return bool(row["state"] == "failed")

    def _warn_of_difference(self, recording: Recording, row: Any) -> None:
        """Warn that a recording is not sent although its metadata is not what was sent."""
        present, sent = recording.metadata_sha256[:64], row["metadata_sha256"][:64]
        if present == sent or not present or not sent:
            return
        path, other = recording.path, row["path"]
        advice = f"to change it: --talk-id {row['talk_id'] or 'ID'} --meta-path FILE"
        if other != ledger_key(path):
            what = f"not sent, as {other} has the same audio; their metadata differs"
            log.warning(f"{path}: {what}; {advice}")
        elif row["state"] == "uploaded":
            log.info(f"{path}: its metadata has changed since the upload; {advice}")

    def _is_to_follow(self, recording: Recording) -> bool:
        """Return whether to wait for the dialogs that a recording is being split into."""
        split = self._args.wait and recording.operation_id
        return bool(split and not recording.talk_ids and not recording.error)

    def _send(self, recording: Recording, uploader: Uploader) -> None:
        """Upload a recording, or only wait for its dialogs, and record the result."""
        if not recording.outcome:
            if self._args.settle_key:
                recording.metadata.fields[self._args.settle_key] = recording.sha256
            try:
                uploader.upload(recording, self._ledger)
            except UploadError as error:
                recording.fail(error)
            self._note_end(recording)
        if self._is_to_follow(recording):
            try:
                uploader.follow(recording)
                recording.outcome = "uploaded"
                if self._ledger:
                    self._ledger.note_dialogs(recording)
            except UploadError as error:
                if not self._ledger and error.exit_code == os.EX_TEMPFAIL:
                    # Running this again would upload it twice.
                    error.exit_code, error.advice = os.EX_PROTOCOL, LOOK_FOR_IT
                recording.error = error
        recording.seconds = time.monotonic() - recording.started_s

    def _note_end(self, recording: Recording) -> None:
        """Record in the ledger how sending ended; if that fails, say so and stop the run."""
        # If the ledger itself failed, its row says at most `finishing`: less than what happened,
        # never more.
        if not self._ledger or isinstance(recording.error, LedgerError):
            return
        try:
            self._ledger.end(recording)
        except LedgerError as error:
            if recording.outcome == "uploaded":
                made = " ".join(recording.talk_ids) or recording.operation_id
                what = f"already uploaded as {made}, but that could not be noted"
                error.cause = f"{what}: {error.cause}"
                recording.error = error
            else:
                log.warning(f"{recording.path}: {error}")
                self._exit_codes.add(error.exit_code)
                self._throttle.stop(SAME_FOR_ALL)

    def _report(self, recording: Recording) -> None:
        """Print a recording's result, and judge what it means for the run."""
        with self._reporting:
            self._throttle.judge(recording)
            self._under_way.discard(recording)
            fresh = recording.outcome == "unknown" and recording.sha256 in self._claimed
            if fresh and self._settling:
                self._unknown.append(recording)  # Printed once it has been looked up.
            else:
                self._print(recording)

    def _print(self, recording: Recording) -> None:
        self._counts["settled" if recording.settled else recording.outcome] += 1
        if recording.error:
            self._exit_codes.add(recording.error.exit_code)
        self._console.result(recording)
        if self._console.output_lost:
            self._exit_codes.add(os.EX_IOERR)
            self._throttle.stop("stdout cannot be written")

    def _wait_for(self, workers: Sequence[threading.Thread]) -> None:
        """Wait until the workers have ended, or until the grace period after a signal is over."""
        signalled_s, answers_due_s = math.inf, time.monotonic()
        while any(worker.is_alive() for worker in workers):
            next(filter(threading.Thread.is_alive, workers), workers[0]).join(TICK_S)
            # Of a copy, as workers change the set meanwhile.
            transfers = [each.transfer for each in list(self._under_way) if each.transfer]
            # Not while a worker is reporting, or the bar would step back.
            if self._reporting.acquire(blocking=False):
                self._console.show_progress(sum(each.handed_over_bytes for each in transfers))
                self._reporting.release()
            now_s = time.monotonic()
            if not self._signals or any(each.finished and not each.ended for each in transfers):
                answers_due_s = now_s
            if self._signals:
                signalled_s = min(signalled_s, now_s)
                self._throttle.stop(f"stopped by {signal.Signals(self._signals[0]).name}")
                impatient = len(self._signals) > 1 or now_s > signalled_s + ANSWER_GRACE_S
                for transfer in transfers:
                    transfer.end(unless_finished=not impatient)
                if now_s > answers_due_s + CANCEL_GRACE_S:
                    self._abandon()
        self._console.end_progress()

    def _abandon(self) -> NoReturn:
        """End although workers are stuck, say in a disk that hangs; for the ledger, a kill -9."""
        if not self._reporting.acquire(timeout=CANCEL_GRACE_S):
            os._exit(128 + self._signals[0])  # A worker hangs in printing.
        self._console.end_progress()
        for recording in list(self._under_way):
            if not recording.outcome:
                cause = f"{self._throttle.cause} while it was under way"
                error = UploadError(os.EX_TEMPFAIL, cause, AGAIN)
                if recording.transfer and recording.transfer.finished:
                    cause += "; the dialog may or may not exist"
                    error = UploadError(os.EX_PROTOCOL, cause, LOOK_FIRST)
                recording.fail(error)
            self._report(recording)
        for recording in self._unknown:
            self._print(recording)
        os._exit(self._end("the others not tried"))

    def _count_not_tried(self) -> None:
        """Count what a stopped run did not get to."""
        for recording in self._recordings:
            row = None
            with contextlib.suppress(LedgerError):
                row = self._ledger.find_uploaded(recording) if self._ledger else None
            if not row:
                self._counts["not tried"] += 1
                self._exit_codes.add(os.EX_TEMPFAIL)

    def _settle_earlier(self) -> None:
        """Look up what earlier runs left unknown; a refused credential ends the run."""
        if self._args.settle_key and self._ledger and self._access:
            uploader = Uploader(self._args, self._access, self._throttle)
            self._settling = Settling(self._args, uploader, self._ledger, self._signals)
            self._settling.look_for(self._ledger.unknown_with_key())
            for recording in self._settling.settled.values():
                self._report(recording)

    def _settle_fresh(self) -> None:
        """Look up what this run left unknown, and report it."""
        if not self._settling or not self._ledger:
            return
        try:
            if not self._stopping.is_set():
                fresh = {recording.sha256 for recording in self._unknown}
                rows = self._ledger.unknown_with_key()
                self._settling.look_for([row for row in rows if row["sha256"] in fresh])
        except UploadError as error:
            log.warning(f"unknown recordings could not be looked up: {error}")
            self._exit_codes.add(error.exit_code)
        for recording in self._unknown:
            self._settling.apply_to(recording)
            self._print(recording)

    def _end(self, not_tried: str = "") -> int:
        """Print the summary; return the exit code."""
        counts = self._counts
        if self._signals:  # Perhaps after the workers had ended.
            self._throttle.stop(f"stopped by {signal.Signals(self._signals[0]).name}")
        settled = f", {counts['settled']} settled" if counts["settled"] else ""
        summary = f"{counts['uploaded']} uploaded, {counts['already']} already there{settled}, "
        summary += f"{counts['failed'] + counts['rejected']} failed, {counts['unknown']} unknown"
        if self._signals or counts["not tried"]:
            not_tried = not_tried or f"{counts['not tried']:,} not tried"
            log.warning(f"{self._throttle.cause}; {summary}, {not_tried}")
        elif not counts:
            looked_for = ", ".join(self._args.suffixes)
            folders = ", ".join(self._args.audio_path)
            log.info(f"{folders}: no recordings found (looked for {looked_for})")
        elif counts.total() > 1 or self._console.several:
            log.info(summary)
        if self._signals:
            return 128 + self._signals[0]
        return next((code for code in GRAVEST_FIRST if code in self._exit_codes), os.EX_OK)


def described(metadata: TalkMetadata) -> str:
    """Describe the metadata that would be sent."""
    fields = json.dumps(dict(sorted(metadata.fields.items())), ensure_ascii=False)
    return f"metadata {fields}, {len(metadata.users)} users"


def update_talk(args: Namespace, access: Access | None, console: Console) -> int:
    """Send new metadata for a dialog that exists; return the exit code."""
    recording = Recording(args.talk_id)
    recording.metadata = metadata = read_metadata(args.meta_path)
    metadata.connection_id = args.connection_id
    request = talk_service_pb2.UploadTalkRequest(talk_id=args.talk_id, metadata=metadata)
    if access is None:
        recording.outcome, recording.description = "checked", described(metadata)
    else:
        try:
            # Retrying is safe: the same update twice makes no second dialog.
            Uploader(args, access).ask_again(recording, "Upload", request)
            recording.outcome, recording.talk_ids = "updated", (args.talk_id,)
        except UploadError as error:
            recording.fail(error)
    console.result(recording)
    if console.output_lost:
        return os.EX_IOERR
    return recording.error.exit_code if recording.error else os.EX_OK


def upload_talk(
    connection_id: int | str, metadata: Mapping[str, str], api_key: str, audio_path: str
) -> str:
    """Upload one recording, as the guide's function of this name does; return its dialog ID.

    api_key: an API key or an IAM token. Raises UploadError.
    """
    given = (f"--connection-id={connection_id}", f"--key={api_key}", f"--audio-path={audio_path}")
    args = parse_arguments(given)
    recording = Recording(audio_path)
    check_recording(recording, args, TalkMetadata(fields=metadata))
    with contextlib.closing(Uploader(args, Access(args))) as uploader:
        uploader.upload(recording)
    return recording.talk_ids[0]


# --- 13. Output, options, main ----------------------------------------------------------------


class Console(logging.Handler):
    """The only place that prints: results to stdout, one line per problem to stderr."""

    def __init__(self, args: Namespace) -> None:
        super().__init__()
        self.output_lost = False
        self.several = len(args.audio_path) > 1 or any(map(os.path.isdir, args.audio_path))
        self._args = args
        self._bar: Any = None
        watched = sys.stderr.isatty() and not args.quiet
        self._draw_bar_at_s = time.monotonic() + 0.5 if watched else math.inf
        self._done = self._done_bytes = self._all = 0
        if isinstance(sys.stdout, io.TextIOWrapper):
            # File names that are not UTF-8 are printed as their bytes.
            utf8 = sys.stdout.encoding.lower().startswith("utf")
            sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
        log.setLevel("DEBUG" if args.verbose else "WARNING" if args.quiet else "INFO")
        log.handlers[:] = [self]
        log.propagate = False

    def result(self, recording: Recording) -> None:
        """Print the result of a recording."""
        self._done += 1
        self._done_bytes += recording.state.size_bytes
        path, outcome = recording.path, recording.outcome
        is_new = outcome in ("uploaded", "updated")
        lines = [f"Dialog ID: {talk_id}" for talk_id in recording.talk_ids]
        if recording.badge_id:
            lines.insert(0, f"Badge ID: {recording.badge_id}")
        elif recording.operation_id:
            lines.insert(0, f"Operation ID: {recording.operation_id}")
        if recording.error:
            log.error(f"{path}: {recording.error}")
        elif recording.tries:
            ids = f"request {recording.request_id}{recording.server_ids}"
            log.debug(f"{path}: {outcome} in {recording.seconds:.2f} s ({ids})")
        if self._args.format == "json":
            self._print(recording.as_json(), is_new)
        elif outcome == "checked":
            self._print(f"{path}: would be sent: {recording.description}", is_new)
        elif is_new or recording.named or self._args.verbose:
            # What an earlier run left unknown may not be the recording that was named.
            is_earlier = recording.settled and not recording.tries
            prefix = f"{path}: " if self.several or is_earlier else ""
            for line in lines:
                self._print(prefix + line, is_new)

    def _print(self, line: str, is_new: bool) -> None:
        """Print a line to stdout, or, if that fails, a new dialog's ID to stderr."""
        line = one_line(line)
        if not self.output_lost:
            try:
                with self._above_bar(sys.stdout):
                    print(line, flush=True)
                return
            except OSError as error:
                self.output_lost = True
                log.error(f"stdout cannot be written: {error.strerror}; dialog IDs follow here")
        if is_new:
            log.error(line)

    def show_progress(self, sent_bytes: int) -> None:
        """Draw the bar on a terminal; sent_bytes: of the recordings under way."""
        if time.monotonic() < self._draw_bar_at_s:
            return
        if self._bar is None:
            try:
                from tqdm import tqdm
            except ImportError:
                self._draw_bar_at_s = math.inf
                return
            sizes = [each.state.size_bytes for each in find_recordings(self._args)]
            self._all, total_bytes = len(sizes), sum(sizes)
            # smoothing=0: the average rate, as several uploads share the line.
            options: dict[str, Any] = {"unit": "B", "unit_scale": True, "dynamic_ncols": True}
            self._bar = tqdm(total=total_bytes, smoothing=0, leave=False, **options)
            self._bar.start_t -= 0.5
        self._bar.set_description(f"{self._done} of {self._all} recordings", refresh=False)
        self._bar.update(self._done_bytes + sent_bytes - self._bar.n)

    def end_progress(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _above_bar(self, stream: TextIO) -> contextlib.AbstractContextManager[Any]:
        bar = self._bar if stream.isatty() else None
        return contextlib.nullcontext() if bar is None else bar.external_write_mode()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a log message to stderr, without secrets."""
        line = one_line(masked(f"upload_grpc: {record.getMessage()}"))
        # If stderr is closed or full there is nowhere to report it.
        with contextlib.suppress(OSError, ValueError), self._above_bar(sys.stderr):
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


def one_line(text: str) -> str:
    """Escape control characters, which file names and the service's texts may contain."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


class Parser(argparse.ArgumentParser):
    """argparse whose errors never show a value, as it may be a misplaced key."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2; "--x: invalid choice: 'KEY' (choose from ...)" is shown without the KEY."""
        message = message.removeprefix("argument ")
        pattern = r"(\S+): (?:invalid|ignored)( float| int)?.*?( \(choose from [^()]*\))?"
        if match := re.fullmatch(pattern, message, re.DOTALL):
            reasons = {" float": "not a number of seconds", " int": "not a whole number"}
            message = f"{match[1]}: {reasons.get(match[2], 'invalid value')}{match[3] or ''}"
        self.exit(2, f"upload_grpc: {message}; see --help\n")


def make_parser() -> Parser:
    """Define the options, as README's table has them."""
    parser = Parser(
        prog="upload_grpc.py",
        description=(__doc__ or "").partition("\n\n")[0],
        epilog=(__doc__ or "").partition("\n\n")[2],
        # A fixed width, as asking the terminal for its width imports shutil at each start.
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
    option("--talk-id", metavar="ID",
           help="send --meta-path alone: new metadata for this dialog; keys left out are erased")
    option("--audio-type", choices=("auto", *AUDIO_TYPES), default="auto",
           help="auto (default): from the content; pcm: raw signed 16 bit little-endian samples")
    option("--sample-rate", type=int, default=0, metavar="HZ", help="of raw samples")
    option("--channels", type=int, default=0, metavar="N", help="of raw samples")
    option("--min-age", type=float, default=0, metavar="S",
           help="leave out files changed less than S seconds ago: they may still be written to")
    option = parser.add_argument_group("access").add_argument
    option("--key", metavar="KEY", help="API key or IAM token; every user sees it in process lists")
    option("--key-file", metavar="FILE", help="file that holds the key or token")
    option("--key-type", choices=("auto", "api-key", "iam-token", "vm"), default="auto",
           help="auto (default): t1. begins an IAM token; without --key and --key-file API_KEY is "
                "taken from the environment, then IAM_TOKEN. vm: the token of this cloud VM's "
                "service account, from its metadata service (YC_METADATA_ADDR: another address)")
    option("--endpoint", metavar="HOST:PORT", default=ENDPOINT, help="default: %(default)s")
    option("--ca-file", metavar="FILE", help="PEM certificates to trust instead of the public ones")
    option = parser.add_argument_group("how").add_argument
    option("--single-message", action="store_true",
           help="one message instead of a stream: under 128 MB, all of it in memory")
    option("--split", action="store_true",
           help="have the service split a long recording of one channel, WAV or MP3, into dialogs")
    option("--wait", action="store_true",
           help=f"with --split: wait for its dialog IDs, up to {WAIT_LIMIT_S / 3600:g} hours")
    option("--jobs", type=int, default=4, metavar="N", help="uploads at a time (default: 4)")
    option("--retries", type=int, default=5, metavar="N",
           help="further tries after one that made no dialog (default: 5)")
    option("--timeout", type=float, default=TIMEOUT_S, metavar="S",
           help="give up a try after S seconds without progress (default: %(default)g)")
    option("--ledger", metavar="FILE", help="remember what was uploaded, and send nothing twice")
    option("--retry-unknown", action="store_true",
           help="send again what the ledger has as unknown: this may create duplicates")
    option("--dry-run", action="store_true",
           help="check everything, say what would be sent, send nothing")
    option = parser.add_argument_group("settling unknown recordings (with --ledger)").add_argument
    option("--settle-key", metavar="KEY",
           help="a string key of the connection's metadata: send each recording's SHA-256 under "
                "it, and find unknown ones by it; needs the next two options")
    option("--organization-id", metavar="ID", help="where the connection is")
    option("--space-id", metavar="ID", help="where the connection is")
    option("--project-id", metavar="ID", help="look only in this project")
    option = parser.add_argument_group("output").add_argument
    option("--format", choices=("text", "json"), default="text", help="of stdout")
    option("--quiet", action="store_true", help="on stderr: only failures and doubtful metadata")
    option("--verbose", action="store_true", help="on stderr: every step, with IDs")
    option("--version", action="version", version=f"upload_grpc {__version__}")
    # fmt: on
    return parser


def parse_arguments(argv: Sequence[str] | None) -> Namespace:
    """Parse the command line; exit with 2 if options are missing or contradictory."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if rest:
        # Not --key=SECRET or the like.
        options = [word for word in rest if re.fullmatch("--[a-z-]{1,20}", word)]
        parser.error(f"unknown option: {' '.join(options)}" if options else "unexpected argument")
    args.connection_id = args.connection_id.strip()
    for name, value in vars(args).items():
        # An unset $LEDGER expands to ''; reject it. (authorization() reports an empty --key.)
        if value == "" and name != "key":
            parser.error(f"--{name.replace('_', '-')} is empty")
    given = {name for name, value in vars(args).items() if value not in (None, 0, [], "auto")}
    with_audio = {"audio_path", "audio_type", "min_age", "split", "single_message", "ledger"}
    pcm_format = {"sample_rate", "channels"} & given
    settling = ("organization_id", "space_id", "ledger")
    missing = ", ".join(f"--{each.replace('_', '-')}" for each in settling if each not in given)
    about_settling = {"organization_id", "space_id", "project_id"} & given
    pcm = args.audio_type == "pcm"
    good_rate = args.sample_rate in SAMPLE_RATES_HZ
    wrong = (
        (not args.talk_id and not args.audio_path, "--audio-path is missing"),
        ("" in args.audio_path, "--audio-path is empty"),
        (args.talk_id and not args.meta_path, "--talk-id needs --meta-path"),
        (args.talk_id and with_audio & given, "--talk-id sends metadata only, and no audio"),
        (pcm and len(pcm_format) < 2, "--audio-type pcm needs --sample-rate and --channels"),
        (pcm_format and not pcm, "--sample-rate and --channels are for --audio-type pcm"),
        (pcm and not good_rate, "--sample-rate: must be from 8000 to 48000"),
        (pcm and not 1 <= args.channels <= 64, "--channels: must be from 1 to 64"),
        (not 1 <= args.jobs <= 64, "--jobs: must be from 1 to 64"),
        (not 0 <= args.retries <= 100, "--retries: must be from 0 to 100"),
        (not 0.1 <= args.timeout <= 86_400, "--timeout: must be from 0.1 to 86400"),
        (not 0 <= args.min_age <= 1e9, "--min-age: must be from 0 to 1e+09"),
        (args.split and args.single_message, "--split is a stream: leave out --single-message"),
        (args.wait and not args.split, "--wait is for --split"),
        ({"key", "key_file"} <= given, "--key and --key-file exclude each other"),
        (args.key_type == "vm" and {"key", "key_file"} & given, "--key-type vm takes no key"),
        (args.retry_unknown and not args.ledger, "--retry-unknown needs --ledger"),
        (args.settle_key and missing, f"--settle-key needs {missing}"),
        (about_settling and not args.settle_key, "--settle-key is missing"),
        (not args.connection_id.isprintable(), "--connection-id has characters that no ID has"),
        (not (args.talk_id or "-").isprintable(), "--talk-id has characters that no ID has"),
    )
    for is_wrong, reason in wrong:
        if is_wrong:
            parser.error(reason)
    args.suffixes = PCM_SUFFIXES if pcm else AUDIO_SUFFIXES
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    SECRETS.clear()
    args = parse_arguments(argv)
    console = Console(args)
    try:
        if import_error:
            cause = f"cannot load grpc and the stubs in {HERE}/generated: {import_error}"
            raise UploadError(os.EX_CONFIG, cause, f"run: make -C {shlex.quote(HERE)}")
        if sys.stdout is None:
            raise UploadError(os.EX_IOERR, "stdout is closed", "dialog IDs go there: redirect it")
        access = None if args.dry_run else Access(args)
        if args.talk_id:
            return update_talk(args, access, console)
        ledger = Ledger(args) if args.ledger else None
        with contextlib.closing(ledger) if ledger else contextlib.nullcontext():
            run = Run(args, access, console, ledger)
            return run.plan() if args.dry_run else run.main()
    except UploadError as error:
        # Another run holds the ledger: no failure that cron should mail every few minutes.
        log.log(logging.INFO if getattr(error, "in_use", False) else logging.ERROR, str(error))
        return error.exit_code
    except Exception:  # noqa: BLE001 - a bug, whatever it is, is reported with its exit code.
        for line in traceback.format_exc().splitlines():
            log.error(line)
        log.error("this is a bug: report it with the lines above")
        return os.EX_SOFTWARE


if __name__ == "__main__":
    code = main()
    with contextlib.suppress(OSError, AttributeError):  # Full, or closed from the beginning.
        sys.stdout.flush()
    # Skip the interpreter's cleanup: it takes longer than sending a short recording, and would wait
    # for a thread that hangs in a read.
    os._exit(code)
