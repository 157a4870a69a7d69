"""The stand-in service and the proxies do what the other tests rely on."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fault_proxy import Fault, FaultProxy, HttpProxy
from stand_in import (
    METADATA_VALUE_LIMIT_BYTES,
    SINGLE_MESSAGE_LIMIT_BYTES,
    AnswerEarly,
    Delay,
    EmptyAnswer,
    Fail,
    Freeze,
    Slow,
    StandIn,
    Step,
    stored_talks,
)
from yandex.cloud.operation import operation_service_pb2, operation_service_pb2_grpc
from yandex.cloud.speechsense.v1 import audio_pb2, talk_service_pb2, talk_service_pb2_grpc

CHUNK_BYTES = 64 * 1024
WAV = audio_pb2.AudioMetadata(
    container_audio=audio_pb2.ContainerAudio(
        container_audio_type=audio_pb2.ContainerAudio.CONTAINER_AUDIO_TYPE_WAV
    )
)
AUTHORIZATION = (("authorization", "Api-Key demo-key"),)

Request = talk_service_pb2.StreamTalkRequest
Invalid = grpc.StatusCode.INVALID_ARGUMENT


def wav(channels: int = 2, samples_bytes: int = 400_000) -> bytes:
    form = channels.to_bytes(2, "little")
    return b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0" + form + bytes(samples_bytes)


AUDIO = wav()


def metadata(connection_id: str = "connection", **fields: str) -> Request:
    user = talk_service_pb2.UserMetadata(id="7", role=talk_service_pb2.USER_ROLE_CLIENT)
    return Request(
        metadata=talk_service_pb2.TalkMetadata(
            connection_id=connection_id, fields=fields or {"language": "ru-RU"}, users=[user]
        )
    )


def audio_format(form: audio_pb2.AudioMetadata = WAV) -> Request:
    return Request(audio=audio_pb2.AudioStreamingRequest(audio_metadata=form))


def raw(rate_hz: int) -> Request:
    form = audio_pb2.RawAudio(
        audio_encoding=audio_pb2.RawAudio.AUDIO_ENCODING_LINEAR16_PCM,
        sample_rate_hertz=rate_hz,
        audio_channel_count=1,
    )
    return audio_format(audio_pb2.AudioMetadata(raw_audio=form))


def chunk(data: bytes = AUDIO) -> Request:
    return Request(audio=audio_pb2.AudioStreamingRequest(chunk=audio_pb2.AudioChunk(data=data)))


def whole(audio: bytes = AUDIO) -> Iterator[Request]:
    yield metadata()
    yield audio_format()
    for start in range(0, len(audio), CHUNK_BYTES):
        yield chunk(audio[start : start + CHUNK_BYTES])


def single(audio: bytes = AUDIO, talk_id: str = "") -> talk_service_pb2.UploadTalkRequest:
    return talk_service_pb2.UploadTalkRequest(
        talk_id=talk_id,
        metadata=metadata().metadata,
        audio=audio_pb2.AudioRequest(
            audio_metadata=WAV, audio_data=audio_pb2.AudioChunk(data=audio)
        ),
    )


@pytest.fixture
def connect(service: StandIn) -> Iterator[Callable[..., grpc.Channel]]:
    channels = []

    def open_channel(endpoint: str = "") -> grpc.Channel:
        trusted = grpc.ssl_channel_credentials(service.ca_file.read_bytes())
        # Every channel its own connection, as if from another process.
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
        channel = grpc.secure_channel(endpoint or service.endpoint, trusted, options)
        channels.append(channel)
        return channel

    yield open_channel
    for channel in channels:
        channel.close()


@pytest.fixture
def stub(connect: Callable[..., grpc.Channel]) -> Any:
    return talk_service_pb2_grpc.TalkServiceStub(connect())


def ids(metadata: Any) -> dict[str, str]:
    return {key: value for key, value in metadata if key.startswith("x-")}


def refusal(call: Callable[..., Any], request: object, **options: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, **{"metadata": AUTHORIZATION, "timeout": 20, **options})
    return caught.value


# --- What it stores ------------------------------------------------------------------


def test_a_stream_is_stored_as_it_was_sent(service: StandIn, stub: Any) -> None:
    response, call = stub.UploadAsStream.with_call(whole(), metadata=AUTHORIZATION)

    talk = service.talks[response.talk_id]
    assert talk.audio == service.store / f"{response.talk_id}.audio"
    assert talk.audio.read_bytes() == AUDIO
    entry = json.loads((service.store / f"{response.talk_id}.json").read_text("utf-8"))
    assert stored_talks(service.store) == [entry]
    assert entry == {
        "talk_id": response.talk_id,
        "connection_id": "connection",
        "fields": {"language": "ru-RU"},
        "users": [{"id": "7", "role": "USER_ROLE_CLIENT", "fields": {}}],
        "format": {"container_audio": {"container_audio_type": "CONTAINER_AUDIO_TYPE_WAV"}},
        "size": len(AUDIO),
        "sha256": hashlib.sha256(AUDIO).hexdigest(),
        "audio": f"{response.talk_id}.audio",
        "method": "UploadAsStream",
        "badge_id": "",
    }
    [record] = service.calls
    assert record.messages[:3] == ["metadata", "format", f"chunk:{CHUNK_BYTES}"]
    assert record.bytes_received == len(AUDIO)
    assert record.half_closed
    assert record.outcome == f"OK {response.talk_id}"
    assert ids(call.initial_metadata()) == {
        "x-request-id": record.request_id,
        "x-server-trace-id": record.trace_id,
    }


def test_a_single_message_is_stored_as_it_was_sent(service: StandIn, stub: Any) -> None:
    response = stub.Upload(single(), metadata=AUTHORIZATION)

    talk = service.talks[response.talk_id]
    assert (talk.method, talk.size) == ("Upload", len(AUDIO))
    assert talk.audio is not None
    assert talk.audio.read_bytes() == AUDIO
    assert service.calls[0].messages == ["metadata", "format", f"audio:{len(AUDIO)}"]


def test_a_talk_can_be_updated_without_audio(service: StandIn, stub: Any) -> None:
    talk_id = stub.Upload(single(), metadata=AUTHORIZATION).talk_id
    update = talk_service_pb2.UploadTalkRequest(
        talk_id=talk_id, metadata=metadata(language="en-GB").metadata
    )
    assert stub.Upload(update, metadata=AUTHORIZATION).talk_id == talk_id
    assert [talk["fields"] for talk in stored_talks(service.store)] == [{"language": "en-GB"}]

    update.talk_id = "no-such-talk"
    assert refusal(stub.Upload, update).code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("sink", [False, True])
def test_audio_can_be_left_out_of_the_store(tmp_path: Path, sink: bool) -> None:
    with StandIn(tmp_path, discard=not sink, sink=sink) as service:
        trusted = grpc.ssl_channel_credentials(service.ca_file.read_bytes())
        with grpc.secure_channel(service.endpoint, trusted) as channel:
            upload: Any = talk_service_pb2_grpc.TalkServiceStub(channel).UploadAsStream
            upload(whole(), metadata=AUTHORIZATION)
    [talk] = stored_talks(tmp_path)
    assert talk["size"] == len(AUDIO)
    assert talk["sha256"] == ("" if sink else hashlib.sha256(AUDIO).hexdigest())
    assert talk["audio"] is None
    assert not list(tmp_path.glob("*.audio"))


def test_a_split_recording_becomes_talks_once_its_operation_is_done(
    service: StandIn, stub: Any, connect: Callable[..., grpc.Channel]
) -> None:
    operation = stub.UploadBadge(whole(wav(channels=1)), metadata=AUTHORIZATION)
    badge = talk_service_pb2.UploadBadgeMetadata()
    assert operation.metadata.Unpack(badge)
    assert not operation.done

    operations: Any = operation_service_pb2_grpc.OperationServiceStub(connect())
    request = operation_service_pb2.GetOperationRequest(operation_id=operation.id)
    polled = [operations.Get(request, metadata=AUTHORIZATION) for _ in range(3)]

    assert [operation.done for operation in polled] == [False, False, True]
    response = talk_service_pb2.UploadBadgeResponse()
    assert polled[-1].response.Unpack(response)
    assert response.badge_id == badge.badge_id
    assert set(response.talk_ids) == {talk["talk_id"] for talk in stored_talks(service.store)}


def test_splitting_can_fail(
    service: StandIn, stub: Any, connect: Callable[..., grpc.Channel]
) -> None:
    service.badge_error = (grpc.StatusCode.INTERNAL, "could not split")
    service.badge_polls = 0
    operation = stub.UploadBadge(whole(wav(channels=1)), metadata=AUTHORIZATION)
    operations: Any = operation_service_pb2_grpc.OperationServiceStub(connect())
    request = operation_service_pb2.GetOperationRequest(operation_id=operation.id)
    polled = operations.Get(request, metadata=AUTHORIZATION)
    assert (polled.done, polled.error.code, polled.error.message) == (True, 13, "could not split")
    assert not service.talks


# --- What it refuses -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("authorization", "accepted"),
    [
        ("Api-Key demo-key", True),
        ("Bearer t1.demo-token", True),
        ("Api-Key other", False),
        ("Bearer demo-key", False),
        ("demo-key", False),
        ("", False),
    ],
)
def test_authorization(stub: Any, authorization: str, accepted: bool) -> None:
    sent = (("authorization", authorization),) if authorization else ()
    if accepted:
        assert stub.UploadAsStream(whole(), metadata=sent).talk_id
    else:
        error = refusal(stub.UploadAsStream, whole(), metadata=sent)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert set(ids(error.trailing_metadata())) == {"x-request-id", "x-server-trace-id"}


@pytest.mark.parametrize(
    ("requests", "reason"),
    [
        ([], "ended before the audio format"),
        ([metadata()], "ended before the audio format"),
        ([metadata(), audio_format()], "no audio"),
        ([audio_format(), metadata(), chunk()], "expected metadata, got format"),
        ([metadata(), chunk(), audio_format()], "expected format, got chunk"),
        ([metadata(), metadata(), audio_format(), chunk()], "expected format, got metadata"),
        ([metadata(), audio_format(), audio_format()], "expected chunk, got format"),
        ([metadata(), audio_format(), chunk(), metadata()], "expected chunk, got metadata"),
        ([metadata(), Request()], "expected format, got nothing"),
        ([metadata(""), audio_format(), chunk()], "connection_id is empty"),
        ([metadata(), audio_format(audio_pb2.AudioMetadata())], "no audio format"),
        ([metadata(), audio_format(), chunk(b"\xff\xfbmp3" * 10)], "not RIFF/WAVE"),
        ([metadata(), raw(4_000), chunk()], "sample_rate_hertz is 4000"),
        ([metadata(key="x" * (METADATA_VALUE_LIMIT_BYTES + 1))], "is 1025 bytes; at most 1024"),
        ([metadata(key="я" * 513)], "is 1026 bytes; at most 1024"),
    ],
)
def test_a_stream_out_of_order_or_limits_is_refused(
    service: StandIn, stub: Any, requests: list[Request], reason: str
) -> None:
    error = refusal(stub.UploadAsStream, iter(requests))
    assert error.code() is Invalid
    assert reason in (error.details() or "")
    assert not stored_talks(service.store)
    assert not list(service.store.glob("*.audio")) + list(service.store.glob(".*.part"))


def test_a_value_at_the_limit_and_raw_audio_pass(stub: Any) -> None:
    requests = [metadata(key="x" * METADATA_VALUE_LIMIT_BYTES), raw(8_000), chunk()]
    assert stub.UploadAsStream(iter(requests), metadata=AUTHORIZATION).talk_id


def test_an_unknown_connection_is_not_found(service: StandIn, stub: Any) -> None:
    service.connections = {"other"}
    error = refusal(stub.UploadAsStream, whole())
    assert error.code() is grpc.StatusCode.NOT_FOUND


def test_a_metadata_key_that_is_not_configured_is_refused(service: StandIn, stub: Any) -> None:
    service.fields = {"operator_name"}
    assert "'language' is not configured" in (refusal(stub.UploadAsStream, whole()).details() or "")


def test_a_single_message_must_stay_under_the_limit(service: StandIn, stub: Any) -> None:
    error = refusal(stub.Upload, single(AUDIO + bytes(SINGLE_MESSAGE_LIMIT_BYTES - len(AUDIO))))
    assert error.code() is Invalid
    assert "under 128 MB" in (error.details() or "")
    assert not service.talks


def test_only_single_channel_recordings_are_split(stub: Any) -> None:
    assert "single-channel" in (refusal(stub.UploadBadge, whole()).details() or "")


# --- What it can be scripted to do ---------------------------------------------------


@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
)
@pytest.mark.parametrize("after_bytes", [0, 200_000, None])
def test_a_status_comes_when_scripted_and_once(
    service: StandIn, stub: Any, code: grpc.StatusCode, after_bytes: int | None
) -> None:
    service.script.append(Fail(code, "as scripted", after_bytes, trailing=(("why", "test"),)))
    error = refusal(stub.UploadAsStream, whole())
    assert (error.code(), error.details()) == (code, "as scripted")
    trailing: Any = error.trailing_metadata()
    assert ("why", "test") in trailing
    received = service.calls[0].bytes_received
    assert received == len(AUDIO) if after_bytes is None else 0 <= received - after_bytes < 1 << 16
    assert not service.talks
    assert stub.UploadAsStream(whole(), metadata=AUTHORIZATION).talk_id in service.talks


@pytest.mark.parametrize("step", [Fail(grpc.StatusCode.INTERNAL, store=True), Freeze(store=True)])
def test_a_talk_can_be_made_and_not_confirmed(service: StandIn, stub: Any, step: Step) -> None:
    service.script.append(step)
    refusal(stub.UploadAsStream, whole(), timeout=1)
    assert [talk["size"] for talk in stored_talks(service.store)] == [len(AUDIO)]


@pytest.mark.parametrize("after_bytes", [0, 200_000, None])
def test_a_frozen_call_ends_with_its_client_and_makes_no_talk(
    service: StandIn, stub: Any, after_bytes: int | None
) -> None:
    service.script.append(Freeze(after_bytes))
    error = refusal(stub.UploadAsStream, whole(), timeout=0.5)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    service.wait_until_idle()
    assert service.calls[0].outcome == "cancelled"
    assert not service.talks


def test_answers_can_be_early_empty_late_or_slow(service: StandIn, stub: Any) -> None:
    service.script += [AnswerEarly(100_000), EmptyAnswer(), Delay(0.3), None, Slow(1_000_000)]
    upload = stub.UploadAsStream
    early = upload(whole(), metadata=AUTHORIZATION)
    assert early.talk_id
    assert service.calls[0].bytes_received < len(AUDIO)
    assert upload(whole(), metadata=AUTHORIZATION).talk_id == ""
    assert not service.talks

    durations = []
    for _ in range(3):
        start = time.monotonic()
        assert upload(whole(), metadata=AUTHORIZATION).talk_id in service.talks
        durations.append(time.monotonic() - start)
    late, normal, slow = durations
    assert late >= 0.3
    assert slow >= len(AUDIO) / 1_000_000
    assert normal < min(late, slow)


def test_a_restart_ends_calls_and_keeps_port_and_certificates(service: StandIn, stub: Any) -> None:
    port = service.port
    service.script.append(Freeze())
    call = stub.UploadAsStream.future(whole(), metadata=AUTHORIZATION)
    while not (service.calls and service.calls[0].half_closed):
        time.sleep(0.01)
    service.restart()
    assert call.code() is grpc.StatusCode.UNAVAILABLE
    assert service.calls[0].outcome == "cancelled"
    assert service.port == port
    assert stub.UploadAsStream(whole(), metadata=AUTHORIZATION, wait_for_ready=True, timeout=20)


def test_by_hand(tmp_path: Path, connect: Callable[..., grpc.Channel]) -> None:
    command = [sys.executable, str(Path(__file__).parent / "stand_in.py")]
    command += ["--store", str(tmp_path / "hand"), "--key", "k", "--connections", "a,connection"]
    command += ["--fail", "UNAVAILABLE*2", "INTERNAL@1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            trusted = grpc.ssl_channel_credentials(Path(ready["ca_file"]).read_bytes())
            with grpc.secure_channel(f"localhost:{ready['port']}", trusted) as channel:
                upload: Any = talk_service_pb2_grpc.TalkServiceStub(channel).UploadAsStream
                authorization = (("authorization", "Api-Key k"),)
                codes = [refusal(upload, whole(), metadata=authorization).code() for _ in range(3)]
                assert [code.name for code in codes] == ["UNAVAILABLE", "UNAVAILABLE", "INTERNAL"]
                talk_id = upload(whole(), metadata=authorization).talk_id
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert [talk["talk_id"] for talk in stored_talks(tmp_path / "hand")] == [talk_id]


# --- Calls that do not end well ------------------------------------------------------


def test_a_cancelled_stream_makes_no_talk(service: StandIn, stub: Any) -> None:
    for _ in range(20):
        sent = threading.Event()

        def unfinished(sent: threading.Event = sent) -> Iterator[Request]:
            yield from whole()
            sent.set()
            # The half-close would follow.
            time.sleep(0.2)

        call = stub.UploadAsStream.future(unfinished(), metadata=AUTHORIZATION)
        assert sent.wait(5)
        call.cancel()
    service.wait_until_idle()
    assert {call.outcome for call in service.calls} <= {"cancelled"}
    assert not list(service.store.glob("*.*"))


@pytest.mark.parametrize("rst", [True, False])
def test_a_cut_stream_makes_no_talk(
    service: StandIn, connect: Callable[..., grpc.Channel], rst: bool
) -> None:
    cuts = [Fault(cut_to_server=at, rst=rst) for at in range(5_000, len(AUDIO), 20_000)]
    for fault in cuts:
        with FaultProxy(service.port, [fault]) as proxy:
            stub: Any = talk_service_pb2_grpc.TalkServiceStub(connect(proxy.endpoint))
            error = refusal(stub.UploadAsStream, whole())
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert proxy.to_server == fault.cut_to_server
    service.wait_until_idle()
    assert {call.outcome for call in service.calls} == {"cancelled"}
    assert not list(service.store.glob("*.*"))


def test_a_handshake_can_be_cut(service: StandIn, connect: Callable[..., grpc.Channel]) -> None:
    with FaultProxy(service.port, lambda _: Fault(cut_to_server=100)) as proxy:
        stub: Any = talk_service_pb2_grpc.TalkServiceStub(connect(proxy.endpoint))
        assert refusal(stub.UploadAsStream, whole()).code() is grpc.StatusCode.UNAVAILABLE
    assert not service.calls


def test_a_swallowed_answer_leaves_a_talk(
    service: StandIn, connect: Callable[..., grpc.Channel]
) -> None:
    """The client waits in vain, although the service has made the talk."""
    with FaultProxy(service.port, [Fault(swallow_after=len(AUDIO))]) as proxy:
        stub: Any = talk_service_pb2_grpc.TalkServiceStub(connect(proxy.endpoint))
        error = refusal(stub.UploadAsStream, whole(), timeout=1)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert proxy.connections[0].struck == "swallowing"
    assert len(stored_talks(service.store)) == 1


# --- The proxies, byte by byte -------------------------------------------------------


class Echo:
    """A TCP server that sends back what it gets, and says how each connection ended."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.received = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    self.received += len(data)
                    connection.sendall(data)
                self.ends.append("FIN")
            except ConnectionResetError:
                self.ends.append("RST")

    def ended(self) -> str:
        deadline = time.monotonic() + 5
        while not self.ends and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.ends[-1] if self.ends else "open"

    def close(self) -> None:
        if self._listener.fileno() >= 0:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


def dial(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def read(connection: socket.socket, timeout_s: float = 5) -> tuple[int, str]:
    """Read to the end; the count, and whether it was FIN, RST or silence."""
    connection.settimeout(timeout_s)
    count = 0
    try:
        while data := connection.recv(1 << 16):
            count += len(data)
    except TimeoutError:
        return count, "open"
    except ConnectionResetError:
        return count, "RST"
    return count, "FIN"


@pytest.mark.parametrize(("rst", "end"), [(True, "RST"), (False, "FIN")])
def test_cuts_end_both_sides_after_exactly_so_many_bytes(echo: Echo, rst: bool, end: str) -> None:
    with FaultProxy(echo.port, [Fault(cut_to_server=12_345, rst=rst)]) as proxy:
        with dial(proxy.port) as connection:
            connection.sendall(bytes(50_000))
            assert read(connection)[1] == end
            assert (echo.ended(), echo.received) == (end, 12_345)
        assert proxy.to_server == 12_345


@pytest.mark.parametrize(("rst", "end"), [(True, "RST"), (False, "FIN")])
def test_answers_are_cut_after_exactly_so_many_bytes(echo: Echo, rst: bool, end: str) -> None:
    with FaultProxy(echo.port, [Fault(cut_to_client=777, rst=rst)]) as proxy:
        with dial(proxy.port) as connection:
            connection.sendall(bytes(50_000))
            assert read(connection) == (777, end)
        assert proxy.to_client == 777


@pytest.mark.parametrize(("rst", "end"), [(True, "RST"), (False, "FIN")])
def test_live_connections_are_cut_on_demand(echo: Echo, rst: bool, end: str) -> None:
    with FaultProxy(echo.port) as proxy, dial(proxy.port) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        proxy.cut_all(rst=rst)
        assert read(connection) == (0, end)
        assert echo.ended() == end
        with dial(proxy.port) as later:
            later.sendall(b"y")
            assert later.recv(1) == b"y"


def test_a_freeze_keeps_the_sockets_open_and_forwards_nothing(echo: Echo) -> None:
    with (
        FaultProxy(echo.port, [Fault(freeze_to_server=1_000)]) as proxy,
        dial(proxy.port) as connection,
    ):
        connection.sendall(bytes(50_000))
        assert read(connection, 0.3) == (0, "open")
        assert (echo.received, echo.ends) == (1_000, [])
        proxy.cut_all()
        assert read(connection) == (0, "RST")


def test_swallowing_drops_answers_only(echo: Echo) -> None:
    with FaultProxy(echo.port, [Fault(swallow_after=50_000)]) as proxy:
        with dial(proxy.port) as connection:
            connection.sendall(bytes(10_000))
            assert read(connection, 0.2) == (10_000, "open")
            connection.sendall(bytes(40_000))
            assert read(connection, 0.2) == (0, "open")
        assert echo.ended() == "FIN"
        assert echo.received == 50_000


def test_a_silent_proxy_never_reaches_the_service(echo: Echo) -> None:
    with FaultProxy(echo.port, [Fault(silent=True)]) as proxy, dial(proxy.port) as connection:
        connection.sendall(b"hello")
        assert read(connection, 0.2) == (0, "open")
        assert echo.received == 0


def test_the_delay_is_a_long_line_not_a_narrow_one(echo: Echo) -> None:
    total = 20_000_000
    with FaultProxy(echo.port, [Fault(delay_s=0.05)]) as proxy, dial(proxy.port) as connection:
        start = time.monotonic()
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        assert 0.1 <= time.monotonic() - start < 0.5

        start = time.monotonic()
        threading.Thread(target=connection.sendall, args=(bytes(total),), daemon=True).start()
        count = 0
        while count < total:
            count += len(connection.recv(1 << 20))
        # One round trip for each 64 KiB would be 30 seconds.
        assert time.monotonic() - start < 5


def test_the_rate_is_limited(echo: Echo) -> None:
    with (
        FaultProxy(echo.port, [Fault(bytes_per_s=200_000)]) as proxy,
        dial(proxy.port) as connection,
    ):
        start = time.monotonic()
        connection.sendall(bytes(100_000))
        connection.shutdown(socket.SHUT_WR)
        assert read(connection) == (100_000, "FIN")
        assert 0.4 <= time.monotonic() - start < 3


def test_an_unreachable_service_resets_the_client(echo: Echo) -> None:
    echo.close()
    with FaultProxy(echo.port) as proxy:
        try:
            connection = dial(proxy.port)
        except ConnectionResetError:  # So soon that connect() has not yet returned.
            return
        with connection:
            assert read(connection) == (0, "RST")


@pytest.mark.parametrize(
    ("mode", "first_line"),
    [
        ("works", "HTTP/1.1 200 Connection established"),
        ("407", "HTTP/1.1 407 Proxy Authentication Required"),
        ("502", "HTTP/1.1 502 Bad Gateway"),
        ("silent", ""),
    ],
)
def test_the_http_proxy(echo: Echo, mode: Any, first_line: str) -> None:
    with HttpProxy(mode, upstream_port=echo.port) as proxy:
        with dial(proxy.port) as connection:
            connection.settimeout(0.3)
            connection.sendall(b"CONNECT api.example:443 HTTP/1.1\r\nHost: api.example\r\n\r\n")
            try:
                answer = connection.recv(1_000).decode()
            except TimeoutError:
                answer = ""
            assert answer.partition("\r\n")[0] == first_line
            if mode == "works":
                connection.sendall(b"through")
                assert connection.recv(100) == b"through"
        assert proxy.targets == ["api.example:443"]
