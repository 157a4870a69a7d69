"""TalkService as the official SDK's generated code has it: takes uploads, judges nothing.

    server.py FOLDER

Run by the Python of an environment that holds the yandexcloud SDK. FOLDER holds
server.pem (certificate chain and key in one). Prints the port; ends when stdin does, so
that it never outlives the process that started it. What came in upload number N is left in
FOLDER as N.json, the latest requests of Search and Get as Search.json and Get.json, the latest new
metadata of a talk as Update.json. While there is
a file FOLDER/lose, uploads are kept and their answers are lost. Upload N, answered with talk-N, is
found as found-N, and only after some seconds: other ones for each N, see lag_s().
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from yandex.cloud.speechsense.v1 import (
    audio_pb2,
    talk_pb2,
    talk_service_pb2,
    talk_service_pb2_grpc,
)


def lag_s(number: int) -> float:
    """Return after how long upload `number` is found, in place of an hour or so."""
    return 2.0 + number % 3


class TalkService(talk_service_pb2_grpc.TalkServiceServicer):
    """Keeps each upload in `folder`; the talk ID ends with its number there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.talks: list[tuple[float, talk_service_pb2.TalkMetadata]] = []

    def Upload(
        self, request: talk_service_pb2.UploadTalkRequest, context: grpc.ServicerContext
    ) -> talk_service_pb2.UploadTalkResponse:
        """Keep a single message, or take new metadata of a talk."""
        if request.talk_id:
            self.leave("Update", MessageToDict(request, preserving_proto_field_name=True))
            if (self.folder / "lose").exists():
                context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
            return talk_service_pb2.UploadTalkResponse(talk_id=request.talk_id)
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
        self.talks.append((time.time(), talk))
        received: dict[str, Any] = {
            "rpc": rpc,
            "order": order,
            "talk": MessageToDict(talk, preserving_proto_field_name=True),
            "audio": MessageToDict(audio, preserving_proto_field_name=True),
            "sha256": hashlib.sha256(data).hexdigest(),
            "authorization": dict(context.invocation_metadata()).get("authorization"),
        }
        self.leave(f"{len(self.talks)}", received)
        if (self.folder / "lose").exists():
            context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
        return talk_service_pb2.UploadTalkResponse(talk_id=f"talk-{len(self.talks)}")

    def index(self) -> dict[str, tuple[float, talk_service_pb2.TalkMetadata]]:
        """Return what can be found by now: when it was made and its metadata, by ID."""
        return {
            f"found-{number}": (made_s, talk)
            for number, (made_s, talk) in enumerate(self.talks, start=1)
            if made_s + lag_s(number) <= time.time()
        }

    def leave(self, name: str, received: dict[str, Any]) -> None:
        """Write what was received to the folder."""
        (self.folder / f"{name}.json").write_text(json.dumps(received), encoding="utf-8")

    def Search(
        self, request: talk_service_pb2.SearchTalkRequest, context: grpc.ServicerContext
    ) -> talk_service_pb2.SearchTalkResponse:
        """Find uploads by the values of one field."""
        self.leave("Search", MessageToDict(request, preserving_proto_field_name=True))
        (condition,) = request.filters
        key = condition.key.removeprefix("userMeta.")
        found = [
            talk_id
            for talk_id, (_, talk) in self.index().items()
            if talk.fields.get(key) in condition.any_match.values
        ]
        return talk_service_pb2.SearchTalkResponse(talk_ids=found, talks_count=len(found))

    def Get(
        self, request: talk_service_pb2.GetTalkRequest, context: grpc.ServicerContext
    ) -> talk_service_pb2.GetTalkResponse:
        """Describe uploads."""
        self.leave("Get", MessageToDict(request, preserving_proto_field_name=True))
        response = talk_service_pb2.GetTalkResponse()
        index = self.index()
        for talk_id in request.talk_ids:
            made_s, talk = index[talk_id]
            described = response.talk.add(id=talk_id, connection_id=talk.connection_id)
            described.created_at.FromNanoseconds(int(made_s * 1e9))
            for name, value in talk.fields.items():
                described.talk_fields.add(
                    name=name, value=value, type=talk_pb2.FieldType.FIELD_TYPE_STRING
                )
        return response


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
