"""Print the SDK's own description of the contract, a serialized FileDescriptorSet.

Run by the Python of an environment that holds the yandexcloud SDK.
"""

import sys

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from yandex.cloud.operation import operation_service_pb2
from yandex.cloud.speechsense.v1 import talk_service_pb2


def add(file: FileDescriptor, files: FileDescriptorSet) -> None:
    """Add `file` after all that it imports, each once."""
    if file.name in {known.name for known in files.file}:
        return
    for imported in file.dependencies:
        add(imported, files)
    file.CopyToProto(files.file.add())


if __name__ == "__main__":
    contract = FileDescriptorSet()
    for module in (talk_service_pb2, operation_service_pb2):
        add(module.DESCRIPTOR, contract)
    sys.stdout.buffer.write(contract.SerializeToString())
