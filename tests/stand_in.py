"""A small TalkService on this machine.

It checks what the documented service checks, stores what it is sent, and can be scripted to fail.

    with StandIn(tmp_path) as service:
        service.script.append(Fail(grpc.StatusCode.UNAVAILABLE))
        ...  # upload to service.endpoint, trusting service.ca_file
        assert service.talks

What becomes of a call is decided in one place, `service.on_call`: a function that each arriving
call is shown to, and that returns a step; those of `service.script` unless a test sets another:

    service.on_call = lambda call: Freeze() if call.method == "Search" else None

A talk is in the store when its `<talk_id>.json` is: that file is renamed into place last.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import grpc
import trustme
from google.protobuf import json_format
from grpc import ServicerContext

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "generated"))

from yandex.cloud.operation import operation_service_pb2_grpc
from yandex.cloud.operation.operation_pb2 import Operation
from yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from yandex.cloud.speechsense.v1 import talk_service_pb2_grpc
from yandex.cloud.speechsense.v1.audio_pb2 import AudioMetadata, ContainerAudio, RawAudio
from yandex.cloud.speechsense.v1.search_pb2 import Filter
from yandex.cloud.speechsense.v1.talk_pb2 import FIELD_TYPE_STRING
from yandex.cloud.speechsense.v1.talk_service_pb2 import (
    GetTalkRequest,
    GetTalkResponse,
    SearchTalkRequest,
    SearchTalkResponse,
    StreamTalkRequest,
    TalkMetadata,
    UploadBadgeMetadata,
    UploadBadgeResponse,
    UploadTalkRequest,
    UploadTalkResponse,
    UserRole,
)

# What the service documents.
SINGLE_MESSAGE_LIMIT_BYTES = 128 * 1024 * 1024
METADATA_VALUE_LIMIT_BYTES = 1024
SAMPLE_RATES_HZ = range(8_000, 48_001)
SEARCH_PAGE_LIMIT = 1000
GET_TALKS_LIMIT = 100

# Above the audio limit, so that a recording somewhat too large is refused with a reason.
RECEIVE_LIMIT_BYTES = SINGLE_MESSAGE_LIMIT_BYTES + 32 * 1024 * 1024
# A long recording arrives in thousands of messages; the first ones show the order.
MESSAGES_KEPT = 64
# Enough of a recording to know its container, and the channels of a plain WAV.
HEAD_BYTES = 24
# Longer than any test waits.
FREEZE_S = 60
WORKERS = 16
# The methods that look up, as they are recorded.
LOOKUPS = ("Search", "GetTalks")

Metadata = tuple[tuple[str, str | bytes], ...]
# For the record of a call, and for its client.
Answer = tuple[str, Any]


# --- What a test can script: the steps that on_call returns --------------------------


@dataclass(frozen=True)
class Fail:
    """Answer with a status, after so many bytes of audio; 0: before reading; None: after all.

    `store` makes the talk first, and only then fails. Without `ids` nothing in the answer
    tells that it is the service's own. Which statuses stop a run: test_run.py, What stops the run.
    """

    code: grpc.StatusCode
    details: str = ""
    after_bytes: int | None = None
    trailing: Metadata = ()
    store: bool = False
    ids: bool = True


@dataclass(frozen=True)
class Freeze:
    """Stop reading after so many bytes of audio (None: after all), and never answer."""

    after_bytes: int | None = None
    store: bool = False


@dataclass(frozen=True)
class AnswerEarly:
    """Answer OK with a talk ID after so many bytes of audio; no talk is made."""

    after_bytes: int


@dataclass(frozen=True)
class EmptyAnswer:
    """Read everything, then answer OK with an empty talk ID."""

    store: bool = False


@dataclass(frozen=True)
class Delay:
    """Make the talk, then wait before answering."""

    seconds: float


@dataclass(frozen=True)
class Slow:
    """Read no faster than this."""

    bytes_per_s: float


Act = Callable[["Call"], "Step"]


@dataclass(frozen=True)
class At:
    """Run functions at moments of the call; a step that one returns counts from then on.

    metadata: when the metadata has been read. audio: when the first audio has been read.
    half_close: after the last message, before the service looks whether that was the end.
    answer: when the talk has been made, before the answer. For the arrival there is on_call.
    """

    metadata: Act | None = None
    audio: Act | None = None
    half_close: Act | None = None
    answer: Act | None = None


# None: behave normally, to let a call pass between two faults.
Step = Fail | Freeze | AnswerEarly | EmptyAnswer | Delay | Slow | At | None


# --- What a test can look at ---------------------------------------------------------


@dataclass
class Call:
    """One call as it was received, whether or not it finished."""

    method: str
    metadata: dict[str, str | bytes]
    request_id: str
    trace_id: str
    fields: dict[str, str] = field(default_factory=dict)  # of the metadata, once that was read
    messages: list[str] = field(default_factory=list)  # the first ones
    bytes_received: int = 0  # of audio
    half_closed: bool = False
    outcome: str = ""  # "OK <id>", "<CODE>: <details>", "cancelled"; empty while it runs

    @property
    def client_request_id(self) -> str:
        """The ID that the client gave it, other than the two that the service gives."""
        return str(self.metadata["x-client-request-id"])


@dataclass
class Talk:
    talk_id: str
    connection_id: str
    fields: dict[str, str]
    users: list[dict[str, Any]]
    audio_format: AudioMetadata
    size: int
    sha256: str
    audio: Path | None  # None with discard
    method: str
    badge_id: str = ""
    created_s: float = field(default_factory=time.time)
    lag_s: float = 0.0  # Until Search and Get know it.
    found_id: str = ""  # By which they know it, if not by its talk_id.

    @property
    def indexed_id(self) -> str:
        return self.found_id or self.talk_id


@dataclass
class Badge:
    """A recording that is being split, and the operation that tells when it is done."""

    operation: Operation
    response: UploadBadgeResponse
    polls_left: int


def stored_talks(store: Path) -> list[dict[str, Any]]:
    """Every talk in a store, from any process, also while its service is running."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(store.glob("*.json"))]


# --- Checks of a request -------------------------------------------------------------


class _Refused(Exception):
    def __init__(self, code: grpc.StatusCode, details: str, trailing: Metadata = ()) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code, self.details, self.trailing = code, details, trailing


class _AnsweredEarly(Exception): ...


class _Cancelled(Exception): ...


def _refuse(details: str, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT) -> NoReturn:
    raise _Refused(code, details)


def _kind(request: StreamTalkRequest) -> str:
    """`metadata`, `format` or `chunk`, the documented order; `nothing` for an empty message."""
    if request.WhichOneof("Event") == "metadata":
        return "metadata"
    event = request.audio.WhichOneof("AudioEvent")
    return {"audio_metadata": "format", "chunk": "chunk"}.get(event or "", "nothing")


def _check_fields(fields: Mapping[str, str], allowed: Collection[str] | None) -> None:
    limit = METADATA_VALUE_LIMIT_BYTES
    for key, value in fields.items():
        if not key or (allowed is not None and key not in allowed):
            _refuse(f"metadata key {key!r} is not configured for the connection")
        length_bytes = len(value.encode())
        if length_bytes > limit:
            _refuse(f"metadata value of {key!r} is {length_bytes} bytes; at most {limit}")


def _check_format(audio_format: AudioMetadata, method: str) -> None:
    kind = audio_format.WhichOneof("AudioFormat")
    if kind is None:
        _refuse("audio_metadata has no audio format")
    container = audio_format.container_audio.container_audio_type
    if kind == "raw_audio":
        raw = audio_format.raw_audio
        if raw.audio_encoding != RawAudio.AUDIO_ENCODING_LINEAR16_PCM:
            _refuse("raw_audio: audio_encoding must be AUDIO_ENCODING_LINEAR16_PCM")
        if raw.sample_rate_hertz not in SAMPLE_RATES_HZ:
            _refuse(f"raw_audio: sample_rate_hertz is {raw.sample_rate_hertz}; 8000 to 48000")
        if raw.audio_channel_count < 1:
            _refuse("raw_audio: audio_channel_count must be positive")
    elif container == ContainerAudio.CONTAINER_AUDIO_TYPE_UNSPECIFIED:
        _refuse("container_audio: container_audio_type is unspecified")
    if method == "UploadBadge" and container not in (
        ContainerAudio.CONTAINER_AUDIO_TYPE_WAV,
        ContainerAudio.CONTAINER_AUDIO_TYPE_MP3,
    ):
        _refuse("only WAV and MP3 recordings can be split")


# --- A recording and a call in progress ----------------------------------------------


class _Recording:
    """What one call brings: metadata, format and audio, which is removed again unless kept."""

    def __init__(self, path: Path | None) -> None:
        self.metadata = TalkMetadata()
        self.audio_format = AudioMetadata()
        self.sha256 = hashlib.sha256()
        self.head = b""
        self.size = 0
        self._path = path
        self._file = open(path, "xb") if path else None

    def write(self, data: bytes) -> None:
        if len(self.head) < HEAD_BYTES:
            self.head += data[: HEAD_BYTES - len(self.head)]
        self.size += len(data)
        self.sha256.update(data)
        if self._file:
            self._file.write(data)

    def keep(self, path: Path) -> Path | None:
        if not self._file or not self._path:
            return None
        self._file.close()
        self._path.rename(path)
        return path

    def talk(self, talk_id: str, audio: Path | None, method: str, badge_id: str = "") -> Talk:
        return Talk(
            talk_id,
            self.metadata.connection_id,
            dict(self.metadata.fields),
            _users(self.metadata),
            self.audio_format,
            self.size,
            self.sha256.hexdigest(),
            audio,
            method,
            badge_id,
        )

    def __enter__(self) -> _Recording:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file and self._path:
            self._file.close()
            self._path.unlink(missing_ok=True)


def _check_audio(recording: _Recording, method: str) -> None:
    """Check a complete recording: its format, and that its first bytes look like it."""
    _check_format(recording.audio_format, method)
    if not recording.size:
        _refuse("no audio")
    head = recording.head
    container = recording.audio_format.container_audio.container_audio_type
    if container == ContainerAudio.CONTAINER_AUDIO_TYPE_WAV:
        if head[:4] not in (b"RIFF", b"RF64") or head[8:12] != b"WAVE":
            _refuse("audio announced as WAV is not RIFF/WAVE")
        channels = int.from_bytes(head[22:24], "little") if head[12:16] == b"fmt " else 1
        if method == "UploadBadge" and channels != 1:
            _refuse(f"only single-channel recordings can be split; this one has {channels}")
    if container == ContainerAudio.CONTAINER_AUDIO_TYPE_OGG_OPUS and head[:4] != b"OggS":
        _refuse("audio announced as OggOpus is not Ogg")


class _LiveCall:
    """One call being served: its record, its scripted step, and whether it has ended."""

    step: Step = None

    def __init__(self, method: str, context: ServicerContext) -> None:
        self.context = context
        self.record = Call(
            method,
            {str(key): value for key, value in context.invocation_metadata()},
            request_id=str(uuid.uuid4()),
            trace_id=uuid.uuid4().hex,
        )
        self._ids_sent = False
        self._ended = threading.Event()
        if not context.add_callback(self._ended.set):
            self._ended.set()

    def take(self, step: Step) -> None:
        """Follow a step from now on."""
        self.step = step
        self.reading()

    def reached(self, act: Act | None) -> None:
        """Run what a test wants at this moment."""
        if act and (step := act(self.record)):
            self.take(step)

    def read_metadata(self, metadata: TalkMetadata) -> None:
        self.record.fields = dict(metadata.fields)
        if isinstance(self.step, At):
            self.reached(self.step.metadata)

    def received(self, message: str, size: int = 0) -> None:
        """Record a message, then do what the script wants at this point of the reading."""
        if len(self.record.messages) < MESSAGES_KEPT:
            self.record.messages.append(message)
        self.record.bytes_received += size
        if isinstance(self.step, At) and 0 < size == self.record.bytes_received:
            self.reached(self.step.audio)
        if isinstance(self.step, Slow):
            self.pause(size / self.step.bytes_per_s)
        self.reading()

    def reading(self) -> None:
        read_bytes = self.record.bytes_received
        match self.step:
            case Fail(after_bytes=int(limit)) | Freeze(after_bytes=int(limit)) if (
                read_bytes >= limit
            ):
                self.fail()
            case AnswerEarly(after_bytes=limit) if read_bytes >= limit:
                raise _AnsweredEarly

    def finish(self) -> None:
        """Do what the script wants between the work and the answer."""
        if isinstance(self.step, At):
            self.reached(self.step.answer)
        self.fail()
        if isinstance(self.step, Delay):
            self.pause(self.step.seconds)

    def fail(self) -> None:
        """Fail or freeze now, if the step is one that does."""
        match self.step:
            case Fail(code, details, trailing=trailing):
                raise _Refused(code, details, trailing)
            case Freeze():
                self.pause(FREEZE_S)
                raise _Refused(grpc.StatusCode.UNAVAILABLE, "frozen long enough")

    @property
    def makes_talk(self) -> bool:
        return self.step is None or getattr(self.step, "store", True)

    def pause(self, seconds: float) -> None:
        if self._ended.wait(seconds):
            raise _Cancelled

    def ids(self) -> Metadata:
        """The IDs an answer carries, unless they were sent before or are not wanted."""
        if self._ids_sent or not getattr(self.step, "ids", True):
            return ()
        self._ids_sent = True
        return (
            ("x-request-id", self.record.request_id),
            ("x-server-trace-id", self.record.trace_id),
        )

    def confirm_half_close(self) -> None:
        """Tell a half-close from a broken connection, which ends the requests alike.

        grpc's request iterator can end normally when the call was cut: the end of the
        messages and the cancellation are two events, and it looks between them (seen in 1 of
        10 cuts). The events of a call come in order, so once an operation begun after the end
        of the messages is done, the cancellation has been seen too, if there was one. Waiting
        a fixed time instead was too short on a busy machine and too long on an idle one.
        """
        if isinstance(self.step, At):
            self.reached(self.step.half_close)
        self.context.send_initial_metadata(self.ids())
        state = cast(Any, self.context)._state
        while "send_initial_metadata" in state.due:
            time.sleep(0.0001)
        if not self.context.is_active():
            raise _Cancelled
        self.record.half_closed = True


# --- The service ---------------------------------------------------------------------


class StandIn:
    """A TalkService and an OperationService on a loopback port, over TLS.

    `keys` and `tokens` are the API keys and IAM tokens let in, `connections` the known
    connection IDs, `fields` the metadata keys configured for them; None lets any non-empty one
    pass. The certificate is for `names`; its CA is kept in `certs` (by default `certs` in the
    store), and used again if it is there already. `discard` stores no audio.
    """

    def __init__(
        self,
        store: Path,
        *,
        keys: Collection[str] | None = ("demo-key",),
        names: Sequence[str] = ("localhost", "127.0.0.1"),
        options: Sequence[tuple[str, Any]] = (),
        certs: Path | None = None,
        discard: bool = False,
    ) -> None:
        self.store = store
        self.port = 0  # Any; kept from the first start on.
        self.keys = keys
        self.tokens: Collection[str] | None = ("t1.demo-token",)
        self.connections: Collection[str] | None = None
        self.fields: Collection[str] | None = None
        self.calls: list[Call] = []
        self.talks: dict[str, Talk] = {}
        self.badges: dict[str, Badge] = {}  # by operation ID
        self.on_call: Act = self.next_step
        self.script: list[Step] = []
        # What was looked up, as it came.
        self.searches: list[SearchTalkRequest] = []
        self.gets: list[GetTalkRequest] = []
        # How talks are found: so long after they were made, where a value is part of theirs, in
        # other connections too, in this project.
        self.index_lag_s: Callable[[], float] = lambda: 0.0  # Asked once for each talk.
        self.search_contains = False
        self.search_everywhere = False
        self.project_id = "project-1"
        # Whether under another ID than Upload returns; how often an answer has each.
        self.gives_other_ids = False
        self.times_listed = 1
        self.search_page = SEARCH_PAGE_LIMIT
        self.viewer_role = True
        # At most so many talks in an answer of Get, each with so many bytes more.
        self.get_talks = GET_TALKS_LIMIT
        self.get_padding_bytes = 0
        # What UploadBadge makes of one recording: so many talks, known after so many polls,
        # or an error.
        self.badge_talks = 2
        self.badge_polls = 2
        self.badge_error: tuple[grpc.StatusCode, str] | None = None
        self.badge_damaged = False  # Its metadata and its result cannot be parsed.
        self._discard = discard
        self._options = tuple(options)
        self._server: grpc.Server | None = None
        self._executor: ThreadPoolExecutor | None = None
        store.mkdir(parents=True, exist_ok=True)
        self._make_certificates(certs or store / "certs", names)

    @property
    def endpoint(self) -> str:
        return f"localhost:{self.port}"

    # Starting and stopping

    def _make_certificates(self, certs: Path, names: Sequence[str]) -> None:
        certs.mkdir(parents=True, exist_ok=True)
        self.ca_file = certs / "ca.pem"
        ca_key_file = certs / "ca-key.pem"
        if ca_key_file.exists():
            self.ca = trustme.CA.from_pem(self.ca_file.read_bytes(), ca_key_file.read_bytes())
        else:
            self.ca = trustme.CA()
            self.ca.cert_pem.write_to_path(str(self.ca_file))
            self.ca.private_key_pem.write_to_path(str(ca_key_file))
        certificate = self.ca.issue_cert(*names).private_key_and_cert_chain_pem.bytes()
        self._credentials = grpc.ssl_server_credentials([(certificate, certificate)])

    def start(self) -> None:
        self._executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="stand-in")
        options = {
            "grpc.max_receive_message_length": RECEIVE_LIMIT_BYTES,
            # Two servers on one port would share its connections.
            "grpc.so_reuseport": 0,
            **dict(self._options),
        }
        self._server = grpc.server(self._executor, options=tuple(options.items()))
        # Generated without types.
        add_talks: Any = talk_service_pb2_grpc.add_TalkServiceServicer_to_server
        add_operations: Any = operation_service_pb2_grpc.add_OperationServiceServicer_to_server
        add_talks(_TalkService(self), self._server)
        add_operations(_OperationService(self), self._server)
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", self._credentials)
        self._server.start()

    def stop(self, grace_s: float | None = None) -> None:
        """Stop serving; calls under way are cancelled, after `grace_s` if that is given."""
        if self._server and self._executor:
            self._server.stop(grace_s).wait()
            self._executor.shutdown()
        self._server = self._executor = None

    def __enter__(self) -> StandIn:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def wait_until_idle(self) -> None:
        """Wait until every call received has ended; a cancelled one ends after its client."""
        deadline_s = time.monotonic() + 10
        while any(not call.outcome for call in self.calls):
            if time.monotonic() > deadline_s:
                raise TimeoutError("a call has not ended")
            time.sleep(0.005)

    # Answering one call

    def next_step(self, call: Call) -> Step:
        """Take the next step of the script, in which those who look up have no part."""
        with contextlib.suppress(IndexError):
            return None if call.method in LOOKUPS else self.script.pop(0)
        return None

    def answer(
        self,
        method: str,
        context: ServicerContext,
        work: Callable[[_LiveCall], Answer],
    ) -> Any:
        """Serve one call; `work` returns the ID for the record and the response."""
        call = _LiveCall(method, context)
        self.calls.append(call.record)
        outcome = "crashed"
        try:
            call.take(self.on_call(call.record))
            self._check_authorization(call.record.metadata)
            made_id, response = work(call)
            outcome = f"OK {made_id}"
            if ids := call.ids():
                context.send_initial_metadata(ids)
            return response
        except _Refused as refused:
            outcome = str(refused)
            context.set_trailing_metadata((*call.ids(), *refused.trailing))
            context.abort(refused.code, refused.details)
        except (_Cancelled, grpc.RpcError):
            outcome = "cancelled"
            context.abort(grpc.StatusCode.CANCELLED, "the call was cancelled")
        finally:
            call.record.outcome = outcome

    def _check_authorization(self, metadata: dict[str, str | bytes]) -> None:
        scheme, _, credential = str(metadata.get("authorization", "")).partition(" ")
        accepted = {"Api-Key": self.keys, "Bearer": self.tokens}.get(scheme, ())
        if not credential or (accepted is not None and credential not in accepted):
            what = {"Api-Key": "unknown API key", "Bearer": "IAM token is invalid or has expired"}
            details = what.get(scheme, "authorization is missing or of an unknown scheme")
            _refuse(details, grpc.StatusCode.UNAUTHENTICATED)

    def check_metadata(self, metadata: TalkMetadata) -> None:
        connection_id = metadata.connection_id
        if not connection_id:
            _refuse("connection_id is empty")
        if self.connections is not None and connection_id not in self.connections:
            _refuse(f"connection {connection_id!r} not found", grpc.StatusCode.NOT_FOUND)
        _check_fields(metadata.fields, self.fields)
        for user in metadata.users:
            _check_fields(user.fields, None)

    def check_lookup(self, request: SearchTalkRequest | GetTalkRequest) -> None:
        if not self.viewer_role:
            details = "the role speech-sense.data.viewer is missing"
            _refuse(details, grpc.StatusCode.PERMISSION_DENIED)
        for name in ("organization_id", "space_id", "connection_id"):
            if not getattr(request, name):
                _refuse(f"{name} is empty")

    def talks_by_time(self) -> list[Talk]:
        return sorted(self.talks.values(), key=lambda talk: talk.created_s)

    def indexed(self, request: SearchTalkRequest | GetTalkRequest) -> list[Talk]:
        """Return the talks that a lookup can find by now, the oldest first."""
        return [
            talk
            for talk in self.talks_by_time()
            if talk.created_s + talk.lag_s <= time.time()
            and (self.search_everywhere or talk.connection_id == request.connection_id)
            and request.project_id in ("", self.project_id)
        ]

    def matches(self, talk: Talk, condition: Filter) -> bool:
        """Whether a talk has one of the values of a filter."""
        has = talk.fields.get(condition.key.removeprefix("userMeta."))
        values = condition.any_match.values
        if has is None or has in values:
            return has is not None
        return self.search_contains and any(value in has or has in value for value in values)

    # The store

    def recording(self) -> _Recording:
        return _Recording(None if self._discard else self.store / f".{uuid.uuid4().hex}.part")

    def save(self, talk: Talk) -> None:
        if talk.talk_id not in self.talks:
            talk.lag_s = self.index_lag_s()
            talk.found_id = f"found-{talk.talk_id}" if self.gives_other_ids else ""
        form = json_format.MessageToDict(talk.audio_format, preserving_proto_field_name=True)
        audio = talk.audio.name if talk.audio else None
        entry = {**vars(talk), "audio_format": form, "audio": audio}
        part = self.store / f".{uuid.uuid4().hex}.part"
        part.write_text(json.dumps(entry, ensure_ascii=False, indent=1) + "\n", "utf-8")
        part.rename(self.store / f"{talk.talk_id}.json")
        self.talks[talk.talk_id] = talk


def _new_id() -> str:
    return uuid.uuid4().hex[:20]


def _users(metadata: TalkMetadata) -> list[dict[str, Any]]:
    return [
        {"id": user.id, "role": UserRole.Name(user.role), "fields": dict(user.fields)}
        for user in metadata.users
    ]


def _served(work: Callable[[Any, Any, _LiveCall], Answer]) -> Callable[[Any, Any, Any], Any]:
    """Make a method of the API of what serves a call and returns its answer."""

    @functools.wraps(work)
    def method(self: Any, request: Any, context: ServicerContext) -> Any:
        name = {"Get": self.get_is}.get(work.__name__, work.__name__)
        return self.service.answer(name, context, lambda call: work(self, request, call))

    return method


class _TalkService(talk_service_pb2_grpc.TalkServiceServicer):
    """The three ways to upload, and the two to look up; method names are the API's."""

    get_is = "GetTalks"

    def __init__(self, service: StandIn) -> None:
        self.service = service

    @_served
    def Upload(self, request: UploadTalkRequest, call: _LiveCall) -> Answer:
        data = request.audio.audio_data.data
        if request.talk_id:
            call.received("talk_id")
        if request.HasField("metadata"):
            call.received("metadata")
        if request.audio.HasField("audio_metadata"):
            call.received("format")
        if request.audio.HasField("audio_data"):
            call.received(f"audio:{len(data)}", len(data))
        call.read_metadata(request.metadata)
        self.service.check_metadata(request.metadata)
        if request.talk_id:
            return self._update(call, request)
        with self.service.recording() as recording:
            if len(data) >= SINGLE_MESSAGE_LIMIT_BYTES:
                _refuse("audio of a single message must be under 128 MB; use a stream")
            recording.metadata = request.metadata
            recording.audio_format = request.audio.audio_metadata
            recording.write(data)
            return self._make_talk(call, recording)

    @_served
    def UploadAsStream(self, requests: Iterator[StreamTalkRequest], call: _LiveCall) -> Answer:
        with self.service.recording() as recording:
            try:
                self._read(call, requests, recording)
            except _AnsweredEarly:
                talk_id = _new_id()
                return talk_id, UploadTalkResponse(talk_id=talk_id)
            return self._make_talk(call, recording)

    @_served
    def UploadBadge(self, requests: Iterator[StreamTalkRequest], call: _LiveCall) -> Answer:
        with self.service.recording() as recording:
            self._read(call, requests, recording)
            return self._make_badge(call, recording)

    def _read(
        self, call: _LiveCall, requests: Iterator[StreamTalkRequest], recording: _Recording
    ) -> None:
        """Read a stream to its half-close, in the documented order."""
        expected = "metadata"
        for request in requests:
            kind = _kind(request)
            size = len(request.audio.chunk.data)
            call.received(f"chunk:{size}" if kind == "chunk" else kind, size)
            if kind != expected:
                _refuse(f"stream order: expected {expected}, got {kind}")
            if kind == "metadata":
                recording.metadata = request.metadata
                call.read_metadata(recording.metadata)
                self.service.check_metadata(recording.metadata)
                expected = "format"
            elif kind == "format":
                recording.audio_format = request.audio.audio_metadata
                _check_format(recording.audio_format, call.record.method)
                expected = "chunk"
            else:
                recording.write(request.audio.chunk.data)
        call.confirm_half_close()
        if expected != "chunk":
            _refuse("stream order: ended before the audio format")

    def _make_talk(self, call: _LiveCall, recording: _Recording) -> Answer:
        """Turn a complete recording into a talk, as far as the script lets it."""
        _check_audio(recording, call.record.method)
        talk_id = _new_id()
        if call.makes_talk:
            audio = recording.keep(self.service.store / f"{talk_id}.audio")
            self.service.save(recording.talk(talk_id, audio, call.record.method))
        return self._finish(call, talk_id)

    def _make_badge(self, call: _LiveCall, recording: _Recording) -> Answer:
        """Turn a complete recording into several talks that an operation will name."""
        _check_audio(recording, call.record.method)
        badge_id, operation_id = _new_id(), _new_id()
        talk_ids = [_new_id() for _ in range(self.service.badge_talks)]
        operation = Operation(id=operation_id, description="Upload badge")
        operation.created_at.GetCurrentTime()
        operation.modified_at.GetCurrentTime()
        operation.metadata.Pack(UploadBadgeMetadata(badge_id=badge_id))
        if self.service.badge_damaged:
            operation.metadata.value = b"\xff"
        if call.makes_talk:
            audio = recording.keep(self.service.store / f"{badge_id}.audio")
            if self.service.badge_error is None:
                for talk_id in talk_ids:
                    talk = recording.talk(talk_id, audio, call.record.method, badge_id)
                    self.service.save(talk)
            response = UploadBadgeResponse(badge_id=badge_id, talk_ids=talk_ids)
            polls = self.service.badge_polls
            self.service.badges[operation_id] = Badge(operation, response, polls)
        self._finish(call, badge_id)
        return operation_id, operation

    @_served
    def Search(self, request: SearchTalkRequest, call: _LiveCall) -> Answer:
        service = self.service
        service.searches.append(request)
        service.check_lookup(request)
        if not 0 <= request.page_size <= SEARCH_PAGE_LIMIT:
            _refuse(f"page_size is {request.page_size}; 1 to {SEARCH_PAGE_LIMIT}")
        if any(not each.key.startswith("userMeta.") for each in request.filters):
            _refuse("only metadata can be searched here: userMeta.KEY")
        found = [
            talk.indexed_id
            for talk in service.indexed(request)
            if all(service.matches(talk, each) for each in request.filters)
        ] * service.times_listed
        start = int(request.page_token or 0)
        end = start + min(request.page_size or 100, service.search_page)
        response = SearchTalkResponse(talk_ids=found[start:end], talks_count=len(found))
        if end < len(found):
            response.next_page_token = str(end)
        call.finish()
        return f"{len(response.talk_ids)} talks", response

    @_served
    def Get(self, request: GetTalkRequest, call: _LiveCall) -> Answer:
        service = self.service
        service.gets.append(request)
        service.check_lookup(request)
        if len(request.talk_ids) > GET_TALKS_LIMIT:
            _refuse(f"{len(request.talk_ids)} talk_ids; at most {GET_TALKS_LIMIT}")
        response = GetTalkResponse()
        talks = {talk.indexed_id: talk for talk in service.indexed(request)}
        for talk_id in request.talk_ids[: service.get_talks]:
            if talk_id in talks:
                for _ in range(service.times_listed):
                    self._describe(talks[talk_id], request, response)
        call.finish()
        return f"{len(response.talk)} talks", response

    def _describe(self, talk: Talk, request: GetTalkRequest, response: GetTalkResponse) -> None:
        described = response.talk.add(
            id=talk.indexed_id,
            organization_id=request.organization_id,
            space_id=request.space_id,
            connection_id=talk.connection_id,
            project_ids=[self.service.project_id],
        )
        described.created_at.FromNanoseconds(int(talk.created_s * 1e9))
        padding = "x" * self.service.get_padding_bytes
        for name, value in {**talk.fields, **({"padding": padding} if padding else {})}.items():
            described.talk_fields.add(name=name, value=value, type=FIELD_TYPE_STRING)

    def _update(self, call: _LiveCall, request: UploadTalkRequest) -> Answer:
        """Replace the fields and users of a talk that exists."""
        if request.HasField("audio"):
            _refuse("talk_id: the audio of a talk cannot be replaced")
        talk = self.service.talks.get(request.talk_id)
        if talk is None or talk.connection_id != request.metadata.connection_id:
            _refuse(f"talk {request.talk_id!r} not found", grpc.StatusCode.NOT_FOUND)
        if call.makes_talk:
            talk.fields = dict(request.metadata.fields)
            talk.users = _users(request.metadata)
            self.service.save(talk)
        return self._finish(call, talk.talk_id)

    def _finish(self, call: _LiveCall, talk_id: str) -> Answer:
        call.finish()
        if isinstance(call.step, EmptyAnswer):
            talk_id = ""
        return talk_id, UploadTalkResponse(talk_id=talk_id)


class _OperationService(operation_service_pb2_grpc.OperationServiceServicer):
    get_is = "Get"

    def __init__(self, service: StandIn) -> None:
        self.service = service

    @_served
    def Get(self, request: GetOperationRequest, call: _LiveCall) -> Answer:
        call.received("operation_id")
        badge = self.service.badges.get(request.operation_id)
        if badge is None:
            details = f"operation {request.operation_id!r} not found"
            _refuse(details, grpc.StatusCode.NOT_FOUND)
        call.finish()
        badge.polls_left -= 1
        if badge.polls_left < 0 and not badge.operation.done:
            self._complete(badge.operation, badge.response)
        return request.operation_id, badge.operation

    def _complete(self, operation: Operation, response: UploadBadgeResponse) -> None:
        operation.done = True
        operation.modified_at.GetCurrentTime()
        if self.service.badge_error is None:
            operation.response.Pack(response)
            if self.service.badge_damaged:
                operation.response.value = b"\xff"
        else:
            code, operation.error.message = self.service.badge_error
            operation.error.code = code.value[0]
