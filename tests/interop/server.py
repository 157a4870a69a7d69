"""TalkService as the official SDK's generated code has it: takes uploads, judges nothing.

    server.py FOLDER

Run by the Python of an environment that holds the yandexcloud SDK. FOLDER holds
server.pem (certificate chain and key in one). Prints the port; ends when stdin does, so
that it never outlives the process that started it. What came in upload number N is left in
FOLDER as N.json.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from yandex.cloud.speechsense.v1 import audio_pb2, talk_service_pb2, talk_service_pb2_grpc


class TalkService(talk_service_pb2_grpc.TalkServiceServicer):
    """Keeps each upload in `folder`; the talk ID is its number there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uploads = 0

    def Upload(
        self, request: talk_service_pb2.UploadTalkRequest, context: grpc.ServicerContext
    ) -> talk_service_pb2.UploadTalkResponse:
        """Keep a single message."""
        order = [field.name for field, _ in request.ListFields()]
        audio = request.audio
        data = audio.audio_data.data
        return self.keep("Upload", context, order, request.metadata, audio.audio_metadata, data)

    def UploadAsStream(
        self,
        request_iterator: Iterator[talk_service_pb2.StreamTalkRequest],
        context: grpc.ServicerContext,
    ) -> talk_service_pb2.UploadTalkResponse:
        """Keep a stream, and which messages it was made of, chunks in a row as one."""
        order: list[str] = []
        talk = talk_service_pb2.TalkMetadata()
        audio = audio_pb2.AudioMetadata()
        data = bytearray()
        for request in request_iterator:
            event = request.WhichOneof("Event")
            kind = request.audio.WhichOneof("AudioEvent") if event == "audio" else event
            if order[-1:] != [kind]:
                order.append(str(kind))
            if kind == "metadata":
                talk = request.metadata
            elif kind == "audio_metadata":
                audio = request.audio.audio_metadata
            elif kind == "chunk":
                data += request.audio.chunk.data
        return self.keep("UploadAsStream", context, order, talk, audio, bytes(data))

    def keep(
        self,
        rpc: str,
        context: grpc.ServicerContext,
        order: list[str],
        talk: talk_service_pb2.TalkMetadata,
        audio: audio_pb2.AudioMetadata,
        data: bytes,
    ) -> talk_service_pb2.UploadTalkResponse:
        """Write an upload to the folder and answer with its talk ID."""
        self.uploads += 1
        received: dict[str, Any] = {
            "rpc": rpc,
            "order": order,
            "talk": MessageToDict(talk, preserving_proto_field_name=True),
            "audio": MessageToDict(audio, preserving_proto_field_name=True),
            "sha256": hashlib.sha256(data).hexdigest(),
            "authorization": dict(context.invocation_metadata()).get("authorization"),
        }
        (self.folder / f"{self.uploads}.json").write_text(json.dumps(received), encoding="utf-8")
        return talk_service_pb2.UploadTalkResponse(talk_id=f"talk-{self.uploads}")


def main(folder: Path) -> None:
    """Serve on a free port of this machine until stdin ends."""
    # One call at a time, so that the numbers are in the order of the uploads. A single
    # message has the whole recording, far over grpc's usual limit of 4 MiB.
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=1),
        options=[("grpc.max_receive_message_length", 128 * 1024 * 1024)],
    )
    talk_service_pb2_grpc.add_TalkServiceServicer_to_server(TalkService(folder), server)
    pem = (folder / "server.pem").read_bytes()
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([(pem, pem)]))
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(grace=None).wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
