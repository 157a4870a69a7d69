"""What the benchmark uploads to, each in a process of its own.

    serve.py sink FOLDER          a TalkService that counts bytes and keeps none of them
    serve.py delay PORT SECONDS   a proxy to that port, so many seconds away in each direction

Prints one JSON line once it listens, and ends when its standard input does: so it outlives
nobody who started it.
"""

import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Must stand in the environment before grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent / "generated")]

SERVICE = "yandex.cloud.speechsense.v1.TalkService"
WORKERS = 16


def ready(**facts: object) -> None:
    """Say where we listen, then wait for the end of standard input."""
    print(json.dumps(facts), flush=True)
    sys.stdin.read()


def sink(folder: Path) -> None:
    """Answer each upload with an ID that ends in the number of bytes received.

    The messages are not even parsed, so that as little as possible of a measurement is ours.
    """
    import grpc
    import trustme
    from yandex.cloud.speechsense.v1 import talk_service_pb2

    numbers = itertools.count(1)

    def answer(received_bytes: int) -> bytes:
        talk_id = f"talk-{next(numbers)}-{received_bytes}"
        return talk_service_pb2.UploadTalkResponse(talk_id=talk_id).SerializeToString()

    def stream(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        return answer(sum(map(len, messages)))

    def single(message: bytes, context: grpc.ServicerContext) -> bytes:
        return answer(len(message))

    ca = trustme.CA()
    ca_file, chain_file, key_file = (folder / name for name in ("ca.pem", "chain.pem", "key.pem"))
    ca.cert_pem.write_to_path(str(ca_file))
    certificate = ca.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(str(key_file))
    chain_file.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))

    # No deserializer: the handlers get the bytes.
    handlers: dict[str, Any] = {
        "UploadAsStream": grpc.stream_unary_rpc_method_handler(stream),
        "Upload": grpc.unary_unary_rpc_method_handler(single),
    }
    server = grpc.server(
        ThreadPoolExecutor(WORKERS), options=[("grpc.max_receive_message_length", -1)]
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    credentials = grpc.ssl_server_credentials([(key_file.read_bytes(), chain_file.read_bytes())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    ready(port=port, ca_file=str(ca_file), chain_file=str(chain_file), key_file=str(key_file))
    server.stop(None).wait()


def delay(port: int, seconds: float) -> None:
    """Stand as far from a port as a service is that answers after twice so many seconds."""
    from fault_proxy import Fault, FaultProxy

    with FaultProxy(port, lambda _: Fault(delay_s=seconds)) as proxy:
        ready(port=proxy.port)


if __name__ == "__main__":
    # Ctrl-C reaches us, too, but who started us may still be measuring.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    match sys.argv[1:]:
        case ["sink", folder]:
            sink(Path(folder))
        case ["delay", port, seconds]:
            delay(int(port), float(seconds))
        case _:
            sys.exit(__doc__)
