#!/usr/bin/env python3
"""Upload call recordings with their metadata to Yandex SpeechSense and print the dialog IDs.

From a shell:

    python3 upload_grpc.py --audio-path call.wav --meta-path metadata_example.json \\
        --connection-id ID --key ${API_KEY}

From cron:

    0 3 * * *  /opt/upload_grpc/upload_grpc.py --quiet --audio-path /var/calls/last.wav \\
                   --connection-id ID --key-file /etc/speechsense.key

Results go to stdout, everything else to stderr; README.md explains the exit codes.

The file is read in the order a recording takes: it is checked without touching the
network, made into requests, and sent; `main`, at the end, is the table of contents.
"""

import argparse
import datetime
import io
import json
import os
import re
import shlex
import ssl
import stat
import struct
import sys
import time
import traceback
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

HERE = Path(__file__).resolve().parent

# Must stand in the environment before grpc is imported; otherwise lines about failed
# handshakes reach stderr beside our own, and cron mails them.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
sys.path.insert(0, str(HERE / "generated"))

try:
    import grpc
    from yandex.cloud.speechsense.v1 import audio_pb2, talk_service_pb2, talk_service_pb2_grpc
except Exception as error:  # Missing packages, missing stubs, or stubs of another protobuf.
    venv = HERE / ".venv"
    if __name__ != "__main__":
        raise
    if venv.joinpath("bin/python").exists() and Path(sys.prefix).resolve() != venv.resolve():
        # `python3 upload_grpc.py` after `make setup`: the packages are there, one door further.
        os.execv(venv / "bin/python", [str(venv / "bin/python"), __file__, *sys.argv[1:]])
    print(
        f"upload_grpc: cannot load grpc and the stubs in {HERE / 'generated'}: "
        f"{' '.join(str(error).split())}; run: make -C {shlex.quote(str(HERE))} setup generate",
        file=sys.stderr,
    )
    sys.exit(os.EX_CONFIG)

__version__ = "1.0.0"

ENDPOINT = "api.speechsense.yandexcloud.net:443"

# Measured on loopback TLS, 100 MB, median of 5: 16 KiB 0.38 s, 64 KiB 0.17 s, 256 KiB 0.14 s,
# 1 MiB 0.18 s. It also stays far below the 4 MiB that a gRPC server takes by default.
CHUNK_SIZE_BYTES = 256 * 1024

# Limits of the service: SpeechSense documentation, "Supported audio formats" and "Quotas".
SINGLE_MESSAGE_LIMIT_BYTES = 128 * 1024 * 1024
DURATION_LIMIT_S = 4 * 60 * 60
SAMPLE_RATES_HZ = range(8_000, 48_000 + 1)
SAMPLE_SIZE_BITS = 16
METADATA_VALUE_LIMIT_BYTES = 1024

# Limits of our own, so that a wrong file named by mistake is not read to its end.
METADATA_FILE_LIMIT_BYTES = 1024 * 1024
KEY_FILE_LIMIT_BYTES = 64 * 1024
WAV_CHUNKS_LIMIT = 10_000

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
    status, request_id: the gRPC status and the IDs to show the service's support, if any.
    """

    def __init__(
        self,
        exit_code: int,
        cause: str,
        advice: str = "",
        *,
        status: str = "",
        request_id: str = "",
    ) -> None:
        super().__init__(cause)
        self.exit_code = exit_code
        self.cause = cause
        self.advice = advice
        self.status = status
        self.request_id = request_id

    def __str__(self) -> str:
        facts = [self.status] if self.status else []
        facts += [f"request {self.request_id}"] if self.request_id else []
        text = f"{self.cause} ({', '.join(facts)})" if facts else self.cause
        return f"{text}; {self.advice}" if self.advice else text


OUTCOMES = {os.EX_OK: "uploaded", os.EX_DATAERR: "rejected", os.EX_PROTOCOL: "unknown"}


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
        return cls(status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)


class Recording(NamedTuple):
    """A recording that passed every check, and what is sent with it."""

    path: str
    state: FileState
    audio_metadata: audio_pb2.AudioMetadata
    description: str
    fields: dict[str, str]
    warnings: tuple[str, ...]


def check_recording(path: str, common_fields: Mapping[str, str] | None) -> Recording:
    """Check a file's header and collect its metadata.

    common_fields: the fields of --meta-path; the recording's own sidecar wins over them.
    Raises UploadError: EX_NOINPUT for a file that cannot be read, EX_DATAERR for one that the
    service would not take.
    """
    with open_regular_file(path) as audio:
        state = FileState.of(os.fstat(audio.fileno()))
        description = check_wav(path, audio, state.size_bytes)
    sidecar = os.path.splitext(path)[0] + ".json"
    own_fields = read_metadata(sidecar) if os.path.lexists(sidecar) else None
    if own_fields is None and common_fields is None:
        fields, warnings = placeholder_fields(), (PLACEHOLDER_WARNING,)
    else:
        fields = {**(common_fields or {}), **(own_fields or {})}
        warnings = tuple(date_warnings(fields))
    return Recording(path, state, WAV_AUDIO, description, fields, warnings)


def open_regular_file(path: str) -> BinaryIO:
    """Open a file for reading; raise UploadError (EX_NOINPUT) for anything that is not a file."""
    try:
        # A FIFO would wait for a writer for ever, were it opened before it is looked at.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UploadError(os.EX_NOINPUT, "not a regular file", "name a recording")
        return open(path, "rb")
    except (OSError, ValueError) as error:
        raise unreadable(error) from error


def unreadable(error: Exception) -> UploadError:
    """Say that a file named on the command line cannot be read."""
    reason = getattr(error, "strerror", None) or str(error)
    return UploadError(
        os.EX_NOINPUT, f"cannot be read: {reason}", "check the path and its permissions"
    )


WAVE_FORMAT_PCM = 0x0001
WAVE_FORMAT_EXTENSIBLE = 0xFFFE
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

    def __str__(self) -> str:
        name = WAVE_FORMAT_NAMES.get(self.code, f"WAV format 0x{self.code:04x}")
        channels = f"{self.channels} channel{'s' if self.channels != 1 else ''}"
        return f"{name} {self.sample_size_bits} bit, {self.sample_rate_hz:,} Hz, {channels}"


def check_wav(path: str, audio: BinaryIO, size_bytes: int) -> str:
    """Check that a WAV file is one the service takes, from its headers alone; describe it.

    Raises UploadError (EX_DATAERR) with what was found, what is needed and how to convert it.
    """
    wav, data_start, data_bytes = read_wav_chunks(path, audio, size_bytes)
    converted = "16 bit LPCM of 8,000 to 48,000 Hz is needed: sox " + shlex.quote(path)
    target = shlex.quote(os.path.splitext(path)[0] + "-16bit.wav")
    if wav.code != WAVE_FORMAT_PCM or wav.sample_size_bits != SAMPLE_SIZE_BITS:
        raise UploadError(os.EX_DATAERR, str(wav), f"{converted} -e signed-integer -b 16 {target}")
    if wav.sample_rate_hz not in SAMPLE_RATES_HZ:
        nearest = min(max(wav.sample_rate_hz, SAMPLE_RATES_HZ[0]), SAMPLE_RATES_HZ[-1])
        raise UploadError(os.EX_DATAERR, str(wav), f"{converted} -b 16 -r {nearest} {target}")
    if not wav.channels or wav.block_align_bytes != wav.channels * SAMPLE_SIZE_BITS // 8:
        raise UploadError(
            os.EX_DATAERR,
            f"damaged WAV header: {wav.channels} channels in blocks of {wav.block_align_bytes} bytes",
            "record or export it again",
        )
    if data_bytes > size_bytes - data_start:
        raise incomplete_wav(path, data_bytes, size_bytes - data_start)
    if data_bytes < wav.block_align_bytes:
        raise UploadError(os.EX_DATAERR, "no audio in it, not one sample", "record it again")
    duration_s = data_bytes // wav.block_align_bytes / wav.sample_rate_hz
    if duration_s > DURATION_LIMIT_S:
        part = shlex.quote(os.path.splitext(path)[0] + "-part.wav")
        raise UploadError(
            os.EX_DATAERR,
            f"{duration_s / 3600:.2f} hours long, the service takes 4",
            f"cut it: sox {shlex.quote(path)} {part} trim 0 {DURATION_LIMIT_S} : newfile : restart",
        )
    return f"WAV, {wav}, {duration_s:,.1f} s"


def read_wav_chunks(path: str, audio: BinaryIO, size_bytes: int) -> tuple[WavFormat, int, int]:
    """Walk the chunks of a RIFF or RF64 file: format, where the samples begin, bytes of them."""
    riff, riff_bytes, wave = read_struct(audio, "<4sI4s", b"", 0, b"")
    if riff not in (b"RIFF", b"RF64", b"BW64") or wave != b"WAVE":
        raise UploadError(
            os.EX_DATAERR,
            "not a WAV file" if size_bytes else "an empty file",
            f"convert it: sox {shlex.quote(path)} -e signed-integer -b 16 "
            + shlex.quote(os.path.splitext(path)[0] + "-16bit.wav")
            if size_bytes
            else "record it again",
        )
    wav: WavFormat | None = None
    data: tuple[int, int] | None = None
    long_data_bytes = 0
    position = audio.tell()
    for _ in range(WAV_CHUNKS_LIMIT):
        audio.seek(position)
        name, length = read_struct(audio, "<4sI", b"", 0)
        body = position + 8
        if name == b"fmt ":
            wav = read_wav_format(audio, length)
        elif name == b"ds64":
            _, long_data_bytes = read_struct(audio, "<QQ", 0, 0)
        elif name == b"data":
            if length == 0xFFFFFFFF and long_data_bytes:
                length = long_data_bytes
            unset = length == 0 and body < size_bytes and riff_bytes + 8 < size_bytes
            data = (body, 0xFFFFFFFF if unset else length)
        position = body + length + length % 2
        if (wav and data) or position >= size_bytes:
            break
    if wav is None or data is None:
        missing = "format" if wav is None else "data"
        raise UploadError(
            os.EX_DATAERR,
            f"damaged or truncated WAV file: no {missing} chunk",
            "if it is still being recorded, upload it later; otherwise record or export it again",
        )
    return wav, *data


def read_wav_format(audio: BinaryIO, length: int) -> WavFormat:
    """Read a `fmt ` chunk; an extensible one counts as the format it extends."""
    code, channels, rate, _, align, bits = read_struct(audio, "<HHIIHH", 0, 0, 0, 0, 0, 0)
    if code == WAVE_FORMAT_EXTENSIBLE and length >= 40:
        _, _, _, subformat, tail = read_struct(audio, "<HHIH14s", 0, 0, 0, code, b"")
        code = subformat if tail == SUBFORMAT_GUID_TAIL else code
    return WavFormat(code, channels, rate, align, bits)


def read_struct(audio: BinaryIO, layout: str, *default: Any) -> tuple[Any, ...]:
    """Unpack the next bytes of a file, or answer the default where it ends before."""
    data = audio.read(struct.calcsize(layout))
    return struct.unpack(layout, data) if len(data) == struct.calcsize(layout) else default


def incomplete_wav(path: str, announced_bytes: int, present_bytes: int) -> UploadError:
    """Tell a header that a pipe left unfilled from a recording that was cut short."""
    # Writers that cannot seek back leave 0xFFFFFFFF (ffmpeg), 0 or about 0x7FFFFFFF (sox) there.
    if announced_bytes == 0xFFFFFFFF or 0x7FFF0000 <= announced_bytes <= 0x7FFFFFFF:
        target = shlex.quote(os.path.splitext(path)[0] + "-fixed.wav")
        return UploadError(
            os.EX_DATAERR,
            "its header was written to a pipe and never given the length of the audio",
            f"rewrite it: sox --ignore-length {shlex.quote(path)} {target}",
        )
    return UploadError(
        os.EX_DATAERR,
        f"truncated or still being recorded: the header announces {announced_bytes:,} bytes of "
        f"audio, {present_bytes:,} are there",
        "upload it when the recorder has closed it",
    )


class JsonObject(list[tuple[str, Any]]):
    """A JSON object as its pairs, so that repeated keys are not lost."""


def read_metadata(path: str) -> dict[str, str]:
    """Read metadata fields from a JSON object of strings, numbers and booleans.

    Raises UploadError: EX_NOINPUT for a file that cannot be read, EX_DATAERR naming file, key
    and reason for what the service would not take.
    """

    def refuse(reason: str, advice: str = "mend the file") -> NoReturn:
        raise UploadError(os.EX_DATAERR, f"metadata file {path}: {reason}", advice)

    try:
        with open_regular_file(path) as file:
            content = file.read(METADATA_FILE_LIMIT_BYTES + 1)
        if len(content) > METADATA_FILE_LIMIT_BYTES:
            refuse(f"larger than {METADATA_FILE_LIMIT_BYTES:,} bytes", "name a metadata file")
        pairs = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=JsonObject,
            # Numbers are sent as they are written: 007 is no number, but 1.50 stays 1.50.
            parse_int=str,
            parse_float=str,
            parse_constant=lambda name: refuse(f"{name} is not JSON"),
        )
    except UploadError as error:
        if error.exit_code == os.EX_NOINPUT:
            error.cause = f"metadata file {path}: {error.cause}"
        raise
    except OSError as error:
        raise unreadable(error) from error
    except UnicodeDecodeError as error:
        refuse(f"not UTF-8 (byte {error.start})", "save it as UTF-8")
    except json.JSONDecodeError as error:
        refuse(f"not JSON: {error.msg}, line {error.lineno} column {error.colno}")
    except RecursionError:
        refuse("not JSON that anybody wrote: nested too deeply")
    if not isinstance(pairs, JsonObject):
        refuse("not a JSON object", 'write {"key": "value", ...}')

    fields: dict[str, str] = {}
    for key, value in pairs:
        shown = json.dumps(key)
        if key in fields:
            refuse(f"key {shown} is there twice")
        try:
            fields[key] = metadata_value(key, value)
        except ValueError as error:
            refuse(f"key {shown}: {error}")
    return fields


def metadata_value(key: str, value: object) -> str:
    """Give a field's value as the service takes it; raise ValueError with the reason if it can't."""
    if not key:
        raise ValueError("the key is empty")
    if isinstance(value, bool):
        value = "true" if value else "false"
    if value is None:
        raise ValueError("null; leave the key out or give a value")
    if not isinstance(value, str):
        kind = "a nested object" if isinstance(value, JsonObject) else "a list"
        raise ValueError(f"{kind}; the service takes one string a key")
    for text, name in ((key, "the key"), (value, "the value")):
        try:
            length_bytes = len(text.encode())
        except UnicodeEncodeError:
            raise ValueError(f"{name} has half a surrogate pair") from None
        if length_bytes > METADATA_VALUE_LIMIT_BYTES:
            limit = f"{METADATA_VALUE_LIMIT_BYTES:,}"
            raise ValueError(f"{name} has {length_bytes:,} bytes, the service takes {limit}")
    return value


def placeholder_fields() -> dict[str, str]:
    """Answer the guide's placeholder fields, dated now, in UTC and with the offset."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {**PLACEHOLDER_FIELDS, "date": now.isoformat(timespec="milliseconds")}


def date_warnings(fields: Mapping[str, str]) -> Iterator[str]:
    """Name the dates that the service would read as something else than what was meant."""
    for key, value in fields.items():
        if key.startswith("date") and not is_date_with_offset(value):
            yield (
                f"metadata key {json.dumps(key)}: {json.dumps(value)} is no ISO 8601 date with an "
                "offset; write 2026-01-31T09:30:00+03:00 or 2026-01-31T06:30:00Z"
            )


def is_date_with_offset(value: str) -> bool:
    """Tell whether a text is an ISO 8601 date and time with Z or an offset."""
    match = re.fullmatch(
        r"(\d{4}-\d\d-\d\dT\d\d:\d\d)(:\d\d)?([.,]\d+)?(Z|[+-]\d\d(:?\d\d)?)", value, re.ASCII
    )
    try:
        return bool(match and datetime.datetime.fromisoformat(match[1] + (match[2] or "")))
    except ValueError:
        return False


# --- Building requests ---------------------------------------------------------------------

WAV_AUDIO = audio_pb2.AudioMetadata(
    container_audio=audio_pb2.ContainerAudio(
        container_audio_type=audio_pb2.ContainerAudio.CONTAINER_AUDIO_TYPE_WAV
    )
)


class FileChanged(UploadError):
    """The file is no longer the one that was checked: nothing of it may become a dialog."""

    def __init__(self, what: str) -> None:
        super().__init__(
            os.EX_TEMPFAIL,
            f"{what} while it was being uploaded; nothing was stored",
            "run again when it is complete",
        )


class Transfer:
    """One try at sending one file, as the thread that reads it and the one that waits see it.

    handed_over_bytes: audio that grpc has taken.
    finished: the commit point. Until it is True the service cannot have the whole recording,
    because the half-close that ends a stream is sent only after the requests have ended.
    error: why the requests ended before that, if they did.
    """

    def __init__(self, path: str, state: FileState | None = None) -> None:
        self.path = path
        self.state = state
        self.handed_over_bytes = 0
        self.finished = False
        self.error: Exception | None = None
        self._audio: BinaryIO | None = None

    def open(self) -> BinaryIO:
        """Open the file; raise FileChanged if it is not the one that was checked."""
        try:
            self._audio = open(self.path, "rb")
        except OSError as error:
            raise FileChanged(f"became unreadable ({error.strerror})") from error
        opened = FileState.of(os.fstat(self._audio.fileno()))
        if self.state is None:
            self.state = opened
        elif opened != self.state:
            raise FileChanged("changed after it was checked, or")
        return self._audio

    def finish(self) -> None:
        """Pass the commit point, having made sure that every byte of an unchanged file went.

        Raises FileChanged otherwise: a stream that ended here would be a truncated dialog, and a
        successful one.
        """
        assert self._audio is not None and self.state is not None
        if self.handed_over_bytes != self.state.size_bytes:
            raise FileChanged("grew or shrank")
        if FileState.of(os.fstat(self._audio.fileno())) != self.state:
            raise FileChanged("changed")
        try:
            if FileState.of(os.stat(self.path)) != self.state:
                raise FileChanged("was replaced")
        except OSError as error:
            raise FileChanged(f"was moved or removed ({error.strerror})") from error
        self.finished = True

    def close(self) -> None:
        """Close the file; grpc lets go of an aborted stream's requests only when it likes."""
        if self._audio is not None:
            self._audio.close()


def upload_audio_requests_iterator(
    connection_id: str,
    metadata: Mapping[str, str],
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
        while data := read_audio(audio, CHUNK_SIZE_BYTES):
            yield talk_service_pb2.StreamTalkRequest(
                audio=audio_pb2.AudioStreamingRequest(chunk=audio_pb2.AudioChunk(data=data))
            )
            transfer.handed_over_bytes += len(data)
        transfer.finish()
    except Exception as error:
        # To whoever waits for the answer grpc would only say "Exception iterating requests!".
        transfer.error = error
        raise
    finally:
        transfer.close()


def single_message_request(
    connection_id: str, recording: Recording, transfer: Transfer
) -> talk_service_pb2.UploadTalkRequest:
    """Build the one request of a unary upload, with the whole file in memory."""
    try:
        data = read_audio(transfer.open(), recording.state.size_bytes + 1)
        transfer.handed_over_bytes = len(data)
        transfer.finish()
    finally:
        transfer.close()
    return talk_service_pb2.UploadTalkRequest(
        metadata=talk_metadata(connection_id, recording.fields),
        audio=audio_pb2.AudioRequest(
            audio_metadata=recording.audio_metadata, audio_data=audio_pb2.AudioChunk(data=data)
        ),
    )


def talk_metadata(connection_id: str, fields: Mapping[str, str]) -> talk_service_pb2.TalkMetadata:
    """Build the message that says whose dialog this is."""
    return talk_service_pb2.TalkMetadata(connection_id=str(connection_id), fields=fields)


def read_audio(audio: BinaryIO, size_bytes: int) -> bytes:
    """Read up to so many bytes; raise FileChanged if the file cannot be read any more."""
    try:
        return audio.read(size_bytes)
    except OSError as error:
        raise FileChanged(f"became unreadable ({error.strerror})") from error


# --- Talking to the service ----------------------------------------------------------------


class Credential:
    """Where the API key or IAM token comes from, and the header made of it.

    Never shown: whatever has been a header once is masked in every line printed.
    """

    def __init__(self, source: str, read: Callable[[], str], key_type: str = "auto") -> None:
        self.source = source
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
        is_token = (
            key.startswith("t1.") if self.key_type == "auto" else self.key_type == "iam-token"
        )
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

    Raises UploadError (EX_CONFIG) if there is none, or a file that cannot be read.
    """
    if key is not None:
        return Credential("--key", lambda: key, key_type)
    if key_file is not None:
        return Credential(f"--key-file {key_file}", lambda: read_key_file(key_file), key_type)
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
        raise UploadError(
            os.EX_CONFIG, f"--key-file {path} cannot be read: {reason}", "check the path"
        ) from error


def open_channel(endpoint: str, ca_file: str | None) -> grpc.Channel:
    """Make a TLS channel; nothing is sent before the first call.

    Raises UploadError (EX_CONFIG) for an endpoint, certificate file or proxy that cannot work.
    """
    match = re.fullmatch(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?", endpoint)
    if not match or not 0 < int(match[2] or 443) < 65_536:
        raise UploadError(
            os.EX_CONFIG, f"bad endpoint {endpoint!r}", f"write HOST:PORT, such as {ENDPOINT}"
        )
    proxy_allowed = adopt_proxy_settings()
    return grpc.secure_channel(
        f"{match[1]}:{match[2] or 443}",
        grpc.ssl_channel_credentials(root_certificates=read_root_certificates(ca_file)),
        options=(
            ("grpc.primary_user_agent", f"upload_grpc/{__version__}"),
            # grpc's own retries would send a recording a second time behind our back.
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", int(proxy_allowed)),
        ),
    )


def read_root_certificates(ca_file: str | None) -> bytes | None:
    """Read the certificates to trust: None stands for those that grpc brings.

    grpc passes over a file that is missing or no certificate, and trusts its own set instead.
    Raises UploadError (EX_CONFIG) so that this cannot happen unseen.
    """
    source = "--ca-file"
    if ca_file is None:
        source = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
        ca_file = os.environ.get(source)
        if not ca_file:
            return None
    try:
        with open(ca_file, "rb") as file:
            pem = file.read()
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("latin-1"))
    except (OSError, ValueError) as error:
        reason = "no PEM certificate in it" if isinstance(error, ssl.SSLError) else error
        reason = getattr(reason, "strerror", None) or reason
        raise UploadError(
            os.EX_CONFIG, f"{source} {ca_file}: {reason}", "name a file of PEM certificates"
        ) from error
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
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        if not (proxy := os.environ.get(name, "")):
            continue
        if "://" not in proxy:
            proxy = os.environ[name] = f"http://{proxy}"
        if urllib.parse.urlsplit(proxy).scheme != "http":
            shown = urllib.parse.urlsplit(proxy).scheme
            raise UploadError(
                os.EX_CONFIG,
                f"the proxy in {name} begins with {shown}://, and gRPC can only use http://",
                "write http://HOST:PORT",
            )
        break
    return True


class Rule(NamedTuple):
    """What a gRPC status means: the exit code, and what to do next."""

    status: str
    details: str
    exit_code: int
    advice: str
    # True where the status itself says that no dialog was made, however much had been sent.
    definite: bool = True


AGAIN = "run again"
MEND = "mend the recording or its metadata"
KEY_ADVICE = (
    "check the key and that its service account has the role speech-sense.data.editor in the space"
)

# The first rule whose status, and words in the details, fit. The texts are grpc's own and tests
# hold each of them against the grpc that is installed.
RULES = (
    Rule(
        "UNAVAILABLE",
        r"CERTIFICATE_VERIFY_FAILED|Hostname Verification|security handshaker",
        os.EX_CONFIG,
        "the service's certificate is not trusted here: check --endpoint, --ca-file and the clock",
    ),
    Rule(
        "UNAVAILABLE",
        r"WRONG_VERSION_NUMBER|missing selected ALPN",
        os.EX_CONFIG,
        "this is no gRPC service with TLS: check --endpoint and https_proxy",
    ),
    Rule(
        "UNAVAILABLE",
        r"Domain name not found|DNS server returned answer with no data",
        os.EX_CONFIG,
        "no such host: check --endpoint and https_proxy",
    ),
    Rule(
        "UNAVAILABLE",
        r"HTTP proxy returned response code 4",
        os.EX_CONFIG,
        "the proxy in https_proxy refuses: write http://USER:PASSWORD@HOST:PORT, or set no_proxy",
    ),
    Rule(
        "UNAVAILABLE", r"failed to connect to all addresses|errors resolving", os.EX_TEMPFAIL, AGAIN
    ),
    Rule("UNAUTHENTICATED", "", os.EX_NOPERM, KEY_ADVICE),
    Rule("PERMISSION_DENIED", "", os.EX_NOPERM, KEY_ADVICE),
    Rule("NOT_FOUND", "", os.EX_CONFIG, "check --connection-id"),
    Rule("UNIMPLEMENTED", "", os.EX_CONFIG, "this is not SpeechSense: check --endpoint"),
    Rule("INTERNAL", "Invalid metadata", os.EX_CONFIG, "copy the key again"),
    Rule("INVALID_ARGUMENT", "", os.EX_DATAERR, MEND),
    Rule("FAILED_PRECONDITION", "", os.EX_DATAERR, MEND),
    Rule("OUT_OF_RANGE", "", os.EX_DATAERR, MEND),
    Rule("ALREADY_EXISTS", "", os.EX_DATAERR, "it is there already: look in the console"),
    Rule("RESOURCE_EXHAUSTED", "larger than max", os.EX_DATAERR, "leave out --single-message"),
    Rule("RESOURCE_EXHAUSTED", "", os.EX_TEMPFAIL, "a quota is used up: run again later"),
    # Said by whoever stands between as often as by the service: no word on what was stored.
    Rule("", "", os.EX_TEMPFAIL, AGAIN, definite=False),
)


def classify(status: str, details: str) -> Rule:
    """Find the rule for a status."""
    return next(
        rule
        for rule in RULES
        if rule.status in ("", status) and re.search(rule.details, details, re.IGNORECASE)
    )


UNKNOWN_ADVICE = "look for it in the console before you upload it again"


def call_error(error: grpc.RpcError, transfer: Transfer, request_id: str) -> UploadError:
    """Say what a failed call means for the recording it was to upload."""
    status, details = error.code().name, " ".join((error.details() or "").split())
    rule = classify(status, details)
    if transfer.finished and not rule.definite:
        return UploadError(
            os.EX_PROTOCOL,
            f"sent, but the answer was lost: {details or status}; the dialog may or may not exist",
            UNKNOWN_ADVICE,
            status=status,
            request_id=request_id,
        )
    return UploadError(
        rule.exit_code, details or "no details", rule.advice, status=status, request_id=request_id
    )


def service_ids(call: grpc.Call) -> str:
    """Collect the IDs that the service gave to a call that has ended."""
    pairs = (*(call.initial_metadata() or ()), *(call.trailing_metadata() or ()))
    return "".join(
        f", {key} {value}" for key, value in pairs if key in ("x-request-id", "x-server-trace-id")
    )


class Answer(NamedTuple):
    """What the service answered to an upload."""

    talk_id: str
    request_id: str


def send_recording(
    stub: talk_service_pb2_grpc.TalkServiceStub,
    connection_id: str,
    recording: Recording,
    credential: Credential,
    single_message: bool = False,
) -> Answer:
    """Send one recording once; raise UploadError if it may not have arrived."""
    transfer = Transfer(recording.path, recording.state)
    request_id = str(uuid.uuid4())
    headers = (credential.header(), ("x-client-request-id", request_id))
    try:
        if single_message:
            request = single_message_request(connection_id, recording, transfer)
            call = stub.Upload.future(request, metadata=headers)
        else:
            requests = upload_audio_requests_iterator(
                connection_id, recording.fields, recording.path, recording.audio_metadata, transfer
            )
            call = stub.UploadAsStream.future(requests, metadata=headers)
        try:
            response = call.result()
        except grpc.RpcError as error:
            if transfer.error is not None:
                raise transfer.error from None
            raise call_error(error, transfer, request_id + service_ids(call)) from error
        except BaseException:
            call.cancel()
            raise
    finally:
        transfer.close()
    request_id += service_ids(call)
    if not transfer.finished or not response.talk_id:
        early = "before it had the whole recording" if response.talk_id else "without a dialog ID"
        raise UploadError(
            os.EX_PROTOCOL,
            f"the service answered {early} (dialog ID: {response.talk_id or 'none'})",
            UNKNOWN_ADVICE,
            status="OK",
            request_id=request_id,
        )
    return Answer(response.talk_id, request_id)


def upload_talk(
    connection_id: str, metadata: Mapping[str, str], api_key: str, audio_path: str
) -> str:
    """Upload one recording, as the guide's function of this name does; answer its dialog ID.

    api_key: an API key or an IAM token. Raises UploadError.
    """
    recording = check_recording(audio_path, metadata)
    with open_channel(ENDPOINT, None) as channel:
        stub = talk_service_pb2_grpc.TalkServiceStub(channel)
        credential = Credential("api_key", lambda: api_key)
        return send_recording(stub, str(connection_id), recording, credential).talk_id


# --- The command line ----------------------------------------------------------------------


class Report(NamedTuple):
    """What became of one recording."""

    path: str
    size_bytes: int | None = None
    seconds: float = 0.0
    tries: int = 0
    talk_id: str | None = None
    request_id: str | None = None
    error: UploadError | None = None
    dry_run: str | None = None

    @property
    def exit_code(self) -> int:
        """The exit code this recording asks for."""
        return self.error.exit_code if self.error else os.EX_OK

    def as_json(self) -> str:
        """Answer one line of JSON; README names the keys."""
        outcome = "checked" if self.dry_run else OUTCOMES.get(self.exit_code, "failed")
        return json.dumps(
            {
                "schema_version": 1,
                "path": self.path,
                "outcome": outcome,
                "talk_id": self.talk_id,
                "error": str(self.error) if self.error else None,
                "exit_code": self.exit_code,
                "request_id": self.error.request_id if self.error else self.request_id,
                "bytes": self.size_bytes,
                "seconds": round(self.seconds, 3),
                "tries": self.tries,
            }
        )


class Console:
    """The only place that prints: results on stdout, one line a problem on stderr."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.json = args.format == "json"
        self.quiet = args.quiet
        self.verbose = args.verbose
        self.show_path = False
        self.mask: Callable[[str], str] = str
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A name that is not UTF-8 leaves as the bytes it came as; each line leaves at once.
            sys.stdout.reconfigure(errors="surrogateescape", line_buffering=True)

    def result(self, report: Report) -> None:
        """Print what became of a recording."""
        if report.error:
            self.problem(f"{report.path}: {report.error}")
        if self.json:
            print(self.mask(report.as_json()))
        elif not report.error:
            prefix = f"{report.path}: " if self.show_path else ""
            print(one_line(f"{prefix}{report.dry_run or f'Dialog ID: {report.talk_id}'}"))

    def problem(self, text: str) -> None:
        """Print a line that even --quiet does not silence."""
        print(one_line(self.mask(f"upload_grpc: {text}")), file=sys.stderr)

    def note(self, text: str) -> None:
        """Print a line that --quiet silences."""
        if not self.quiet:
            self.problem(text)

    def detail(self, text: str) -> None:
        """Print a line for --verbose."""
        if self.verbose:
            self.problem(text)


def one_line(text: str) -> str:
    """Show control characters as escapes: a file's name, or the service, may hold any."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


EXAMPLES = """\
from a shell:
  upload_grpc.py --audio-path call.wav --meta-path metadata_example.json \\
      --connection-id ID --key ${API_KEY}
from cron:
  0 3 * * *  /opt/upload_grpc/upload_grpc.py --quiet --audio-path /var/calls/last.wav \\
                 --connection-id ID --key-file /etc/speechsense.key

exit codes: 0 uploaded, 2 bad command line, 65 the recording or its metadata is refused,
66 a file is missing or unreadable, 70 a bug, 75 not delivered: run again, 76 sent but not
confirmed: look first, 77 the credential is refused, 78 wrong setting, 130 and 143 stopped
"""


class Parser(argparse.ArgumentParser):
    """argparse that never repeats a value in an error: it may be a key in the wrong place."""

    def parse_args(self, *args: Any, **kwargs: Any) -> argparse.Namespace:
        """Parse; exit with 2, naming the options that are unknown and nothing else."""
        namespace, rest = self.parse_known_args(*args, **kwargs)
        if rest:
            options = [word.split("=")[0] for word in rest if word.startswith("--")]
            self.error(f"not understood: {' '.join(options) or 'a word that is no option'}")
        return namespace


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; argparse exits with 2 where it is wrong."""
    parser = Parser(
        prog="upload_grpc.py",
        description="Upload call recordings with their metadata to Yandex SpeechSense.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to upload")
    what.add_argument(
        "--audio-path", required=True, metavar="PATH", help="recording: WAV, 16 bit LPCM"
    )
    what.add_argument(
        "--connection-id", required=True, metavar="ID", help="the connection to upload to"
    )
    what.add_argument(
        "--meta-path",
        metavar="FILE",
        help="JSON object of metadata fields; call.json beside call.wav wins over it, field by field",
    )
    access = parser.add_argument_group("access")
    access.add_argument(
        "--key",
        metavar="KEY",
        help="API key or IAM token; every user of the machine sees it in the process list",
    )
    access.add_argument("--key-file", metavar="FILE", help="file that holds the key or token")
    access.add_argument(
        "--key-type",
        choices=("auto", "api-key", "iam-token"),
        default="auto",
        help="auto (default): t1. begins an IAM token. Without --key and --key-file the "
        "environment's API_KEY, then its IAM_TOKEN, is taken",
    )
    access.add_argument(
        "--endpoint", metavar="HOST:PORT", default=ENDPOINT, help="default: %(default)s"
    )
    access.add_argument(
        "--ca-file", metavar="FILE", help="PEM certificates to trust instead of the public ones"
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--single-message",
        action="store_true",
        help="send one message instead of a stream: audio under 128 MB, all of it in memory",
    )
    how.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, say what would be sent, send nothing",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--format", choices=("text", "json"), default="text", help="of stdout")
    output.add_argument("--quiet", action="store_true", help="on stderr: failures only")
    output.add_argument("--verbose", action="store_true", help="on stderr: every step, with IDs")
    output.add_argument("--version", action="version", version=f"upload_grpc {__version__}")
    args = parser.parse_args(argv)
    if not args.connection_id.strip():
        parser.error("--connection-id is empty")
    return args


def run(args: argparse.Namespace, console: Console) -> int:
    """Check the recording, then send it; answer the exit code."""
    credential = find_credential(args.key, args.key_file, args.key_type)
    console.mask = credential.mask
    credential.header()
    channel = open_channel(args.endpoint, args.ca_file)
    common_fields = read_metadata(args.meta_path) if args.meta_path else None

    report = Report(args.audio_path)
    started_s = time.monotonic()
    try:
        recording = check_recording(args.audio_path, common_fields)
        report = report._replace(size_bytes=recording.state.size_bytes)
        for warning in recording.warnings:
            console.note(f"{recording.path}: {warning}")
        if args.single_message:
            check_single_message(recording)
        console.detail(f"{recording.path}: {recording.description}")
        if args.dry_run:
            report = report._replace(dry_run=describe(recording, args.single_message))
        else:
            stub = talk_service_pb2_grpc.TalkServiceStub(channel)
            report = report._replace(tries=1)
            answer = send_recording(
                stub, args.connection_id.strip(), recording, credential, args.single_message
            )
            console.detail(f"{recording.path}: uploaded, request {answer.request_id}")
            report = report._replace(talk_id=answer.talk_id, request_id=answer.request_id)
    except UploadError as error:
        report = report._replace(error=error)
    console.result(report._replace(seconds=time.monotonic() - started_s))
    return report.exit_code


def check_single_message(recording: Recording) -> None:
    """Raise UploadError (EX_DATAERR) for a recording too large for one message."""
    if recording.state.size_bytes >= SINGLE_MESSAGE_LIMIT_BYTES:
        raise UploadError(
            os.EX_DATAERR,
            f"{recording.state.size_bytes:,} bytes: a single message must stay under "
            f"{SINGLE_MESSAGE_LIMIT_BYTES:,}",
            "leave out --single-message to send it as a stream",
        )


def describe(recording: Recording, single_message: bool) -> str:
    """Say what would be sent."""
    chunks = -(-recording.state.size_bytes // CHUNK_SIZE_BYTES)
    way = "a single message" if single_message else f"a stream of {chunks:,} chunks"
    fields = json.dumps(recording.fields, ensure_ascii=False)
    size = f"{recording.state.size_bytes:,} bytes"
    return f"would be sent: {recording.description}, {size} as {way}, metadata {fields}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and answer its exit code."""
    args = parse_arguments(argv)
    console = Console(args)
    try:
        return run(args, console)
    except UploadError as error:
        console.problem(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        console.problem("interrupted")
        return 130
    except Exception:
        for line in traceback.format_exc().splitlines():
            console.problem(line)
        console.problem("this is a bug: report it with the lines above")
        return os.EX_SOFTWARE


if __name__ == "__main__":
    raise SystemExit(main())
