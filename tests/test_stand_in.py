"""The stand-in service and the proxies: what other tests would not notice if it were missing."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fault_proxy import Fault, FaultProxy
from stand_in import StandIn
from yandex.cloud.speechsense.v1 import talk_service_pb2_grpc
from yandex.cloud.speechsense.v1.audio_pb2 import AudioMetadata
from yandex.cloud.speechsense.v1.talk_service_pb2 import StreamTalkRequest as Request

AUDIO = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x02\0" + bytes(400_000)
CHUNK_BYTES = 64 * 1024
WAV = AudioMetadata(container_audio={"container_audio_type": 1})
PCM_4_KHZ = AudioMetadata(
    raw_audio={"audio_encoding": 1, "sample_rate_hertz": 4_000, "audio_channel_count": 1}
)
AUTHORIZATION = (("authorization", "Api-Key demo-key"),)
STATUS = grpc.StatusCode


def metadata(connection_id: str = "connection", **fields: str) -> Request:
    return Request(metadata={"connection_id": connection_id, "fields": fields})


def audio_format(form: AudioMetadata = WAV) -> Request:
    return Request(audio={"audio_metadata": form})


def chunk(data: bytes = AUDIO) -> Request:
    return Request(audio={"chunk": {"data": data}})


def whole() -> Iterator[Request]:
    chunks = (AUDIO[at : at + CHUNK_BYTES] for at in range(0, len(AUDIO), CHUNK_BYTES))
    yield from (metadata(language="ru-RU"), audio_format(), *map(chunk, chunks))


@contextlib.contextmanager
def connected(endpoint: str, ca_file: Path) -> Iterator[Any]:
    """Open a stub whose channel has a connection of its own, as if from another process."""
    trusted = grpc.ssl_channel_credentials(ca_file.read_bytes())
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
    with grpc.secure_channel(endpoint, trusted, options) as channel:
        yield talk_service_pb2_grpc.TalkServiceStub(channel)


@pytest.fixture
def stub(service: StandIn) -> Iterator[Any]:
    with connected(service.endpoint, service.ca_file) as stub:
        yield stub


def refusal(stub: Any, requests: Iterator[Request]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        stub.UploadAsStream(requests, metadata=AUTHORIZATION, timeout=20)
    return caught.value


# --- The service ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requests", "reason"),
    [
        ([metadata()], "ended before the audio format"),
        ([metadata(), audio_format()], "no audio"),
        ([audio_format(), metadata(), chunk()], "expected metadata, got format"),
        ([metadata(), chunk(), audio_format()], "expected format, got chunk"),
        ([metadata(), audio_format(), chunk(), metadata()], "expected chunk, got metadata"),
        ([metadata(""), audio_format(), chunk()], "connection_id is empty"),
        ([metadata(key="я" * 513)], "is 1026 bytes; at most 1024"),
        ([metadata(other="value")], "'other' is not configured"),
        ([metadata(), audio_format(AudioMetadata())], "no audio format"),
        ([metadata(), audio_format(PCM_4_KHZ), chunk()], "sample_rate_hertz is 4000"),
        ([metadata(), audio_format(), chunk(b"\xff\xfbmp3" * 10)], "not RIFF/WAVE"),
    ],
)
def test_what_the_service_would_refuse_is_refused(
    service: StandIn, stub: Any, requests: list[Request], reason: str
) -> None:
    service.fields = {"key"}
    error = refusal(stub, iter(requests))
    assert error.code() is STATUS.INVALID_ARGUMENT
    assert reason in (error.details() or "")
    assert not list(service.store.glob("*.*"))


@pytest.mark.parametrize("rst", [True, False])
def test_a_cut_stream_makes_no_talk(service: StandIn, rst: bool) -> None:
    """A talk too many would hide one that the program loses.

    Many cuts, since grpc takes only one in tens for the end of the messages.
    """
    for position in range(100, len(AUDIO), 8_000):
        with FaultProxy(service.port, [Fault(cut_to_server=position, rst=rst)]) as proxy:
            with connected(proxy.endpoint, service.ca_file) as stub:
                assert refusal(stub, whole()).code() is STATUS.UNAVAILABLE
            assert proxy.connections[0].to_server == position
    service.wait_until_idle()
    assert {call.outcome for call in service.calls} == {"cancelled"}
    assert not list(service.store.glob("*.*"))


# --- The proxies, byte by byte -------------------------------------------------------


@pytest.fixture
def echo() -> Iterator[int]:
    """Serve TCP connections that send back what they get; yield the port."""

    class SendBack(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while data := self.request.recv(1 << 16):
                    self.request.sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), SendBack) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield int(server.server_address[1])
        server.shutdown()


def dial(port: int, timeout_s: float = 20) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=timeout_s)


def read(connection: socket.socket) -> tuple[int, str]:
    """Read to the end; return the number of bytes, and what the end was."""
    count = 0
    try:
        while data := connection.recv(1 << 16):
            count += len(data)
    except TimeoutError:
        return count, "open"
    except ConnectionResetError:
        return count, "RST"
    return count, "FIN"


@pytest.mark.parametrize(
    ("fault", "to_server", "to_client", "end"),
    [
        (Fault(cut_to_server=12_345), 12_345, None, "RST"),
        (Fault(cut_to_server=12_345, rst=False), 12_345, None, "FIN"),
        (Fault(cut_to_client=777), None, 777, "RST"),
        (Fault(cut_to_client=777, rst=False), None, 777, "FIN"),
        (Fault(freeze_to_server=1_000), 1_000, 0, "open"),
        (Fault(swallow_after=50_000), 50_000, None, "open"),
        (Fault(silent=True), 0, 0, "open"),
    ],
)
def test_a_fault_strikes_after_exactly_so_many_bytes(
    echo: int, fault: Fault, to_server: int | None, to_client: int | None, end: str
) -> None:
    timeout_s = 1 if end == "open" else 20
    with FaultProxy(echo, [fault]) as proxy, dial(proxy.port, timeout_s) as connection:
        connection.sendall(bytes(50_000))
        count, seen = read(connection)
        assert seen == end
        assert to_server in (None, proxy.connections[0].to_server)
        assert to_client in (None, count)


def test_delay_and_rate_are_kept(echo: int) -> None:
    plan = [Fault(delay_s=0.05), Fault(bytes_per_s=400_000)]
    with FaultProxy(echo, plan) as proxy:
        for count, seconds in ((1, 0.1), (100_000, 0.2)):
            with dial(proxy.port) as connection:
                start = time.monotonic()
                connection.sendall(bytes(count))
                connection.shutdown(socket.SHUT_WR)
                assert read(connection) == (count, "FIN")
                assert seconds <= time.monotonic() - start < seconds + 8
