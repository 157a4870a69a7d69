"""The barest gRPC client that uploads a recording: what upload_grpc.py is compared with.

    bare_client.py ENDPOINT CA_FILE AUDIO [CHUNK_SIZE_BYTES]

No checks, no options, no retries, no error messages.
"""

import os
import sys
from collections.abc import Iterator

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../generated"))

import grpc
from yandex.cloud.speechsense.v1 import audio_pb2, talk_service_pb2, talk_service_pb2_grpc


def requests(path: str, chunk_size_bytes: int) -> Iterator[talk_service_pb2.StreamTalkRequest]:
    fields = {"operator_name": "Operator", "client_name": "Client"}
    metadata = talk_service_pb2.TalkMetadata(connection_id="bench", fields=fields)
    yield talk_service_pb2.StreamTalkRequest(metadata=metadata)
    container = audio_pb2.ContainerAudio(
        container_audio_type=audio_pb2.ContainerAudio.CONTAINER_AUDIO_TYPE_WAV
    )
    audio_metadata = audio_pb2.AudioMetadata(container_audio=container)
    yield talk_service_pb2.StreamTalkRequest(
        audio=audio_pb2.AudioStreamingRequest(audio_metadata=audio_metadata)
    )
    with open(path, "rb") as file:
        while data := file.read(chunk_size_bytes):
            chunk = audio_pb2.AudioChunk(data=data)
            yield talk_service_pb2.StreamTalkRequest(
                audio=audio_pb2.AudioStreamingRequest(chunk=chunk)
            )


endpoint, ca_file, path = sys.argv[1:4]
chunk_size_bytes = int(sys.argv[4]) if len(sys.argv) > 4 else 256 * 1024
with open(ca_file, "rb") as file:
    credentials = grpc.ssl_channel_credentials(file.read())
with grpc.secure_channel(endpoint, credentials) as channel:
    stub = talk_service_pb2_grpc.TalkServiceStub(channel)
    headers = (("authorization", "Api-Key bench"),)
    response = stub.UploadAsStream(requests(path, chunk_size_bytes), metadata=headers)
print(f"Dialog ID: {response.talk_id}")
