"""Compare this project with the official SDK: what arrives there, and the contract itself.

    run.py SDK_PYTHON

Run by `make interop`. SDK_PYTHON is the Python of an environment that holds the
yandexcloud SDK; what needs the SDK runs there, in a process of its own, since its stubs
and ours have the same names. Ends with `N passed, N failed`, and 1 if any failed.
"""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import encoders
import trustme
from google.protobuf.descriptor import Descriptor, EnumDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet, MethodDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PROTOS = ROOT / "protos"
SAMPLE = ROOT / "tests/sample.wav"
METADATA = ROOT / "metadata_example.json"
API_KEY = "interop-key"
CONNECTION_ID = "interop-connection"
TIMEOUT_S = 60
LOOKUP_KEY = "upload_sha256"
ORGANIZATION_ID, SPACE_ID = "interop-organization", "interop-space"

# Of these ours have only the fields that finding a dialog takes.
REDUCED = {
    f"yandex.cloud.speechsense.v1.{name}" for name in ("SearchTalkRequest", "Filter", "Talk")
}


class Report:
    """Prints and counts the outcome of each check."""

    def __init__(self) -> None:
        self.passed = self.failed = 0

    def check(self, what: str, ours: object, expected: object) -> None:
        """Pass if `ours` is what is `expected`."""
        if ours == expected:
            self.passed += 1
            print(f"ok    {what}")
        else:
            self.failed += 1
            if isinstance(ours, dict) and isinstance(expected, dict):
                ours, expected = without_common(ours, expected), without_common(expected, ours)
            print(f"FAIL  {what}\n      ours:     {ours!r}\n      expected: {expected!r}")


def without_common(some: dict[str, object], other: dict[str, object]) -> dict[str, object]:
    """Give the items of `some` that `other` has not, or has otherwise."""
    return {
        key: without_common(value, different)
        if isinstance(value, dict) and isinstance(different := other.get(key), dict)
        else value
        for key, value in some.items()
        if key not in other or other[key] != value
    }


# --- What arrives at the SDK's service -----------------------------------------------


def compare_uploads(sdk_python: str, report: Report) -> None:
    """Upload the sample both ways and check everything that arrived."""
    fields = json.loads(METADATA.read_text(encoding="utf-8"))
    for key, value in fields.items():
        # Other types than strings travel as their JSON text.
        fields[key] = value if isinstance(value, str) else json.dumps(value)
    expected = {
        "talk": {"connection_id": CONNECTION_ID, "fields": fields},
        "audio": {"container_audio": {"container_audio_type": "CONTAINER_AUDIO_TYPE_WAV"}},
        "sha256": hashlib.sha256(SAMPLE.read_bytes()).hexdigest(),
        "authorization": f"Api-Key {API_KEY}",
    }
    orders = {
        "UploadAsStream": ["metadata", "audio_metadata", "chunk"],
        "Upload": ["metadata", "audio"],
    }
    with tempfile.TemporaryDirectory() as name, serving(sdk_python, Path(name)) as port:
        folder = Path(name)
        for number, (rpc, order) in enumerate(orders.items(), start=1):
            options = ["--single-message"] if rpc == "Upload" else []
            done = upload(port, folder / "ca.pem", options)
            printed = (done.returncode, done.stdout)
            expected_line = f"Dialog ID: talk-{number}\n"
            report.check(f"{rpc}: exit code and stdout", printed, (0, expected_line))
            if done.returncode:
                print(done.stderr, end="")
                continue
            arrived = json.loads((folder / f"{number}.json").read_text(encoding="utf-8"))
            for what, value in {"rpc": rpc, "order": order, **expected}.items():
                report.check(f"{rpc}: {what}", arrived[what], value)
        look_up(port, folder, report)
        update(port, folder, report)


def compare_formats(sdk_python: str, report: Report) -> None:
    """Upload each format that the service takes, and some that are converted."""
    wav = encoders.wav()
    pcm = ["--audio-type", "pcm", "--sample-rate", "8000", "--channels", "1"]
    raw = {"audio_encoding": "AUDIO_ENCODING_LINEAR16_PCM", "sample_rate_hertz": "8000"}
    formats: dict[str, tuple[bytes, list[str], object, bytes]] = {
        # Name: content, options, what is announced, and what arrives.
        "WAV": (wav, [], container("WAV"), wav),
        "MP3": (encoders.mp3(), [], container("MP3"), encoders.mp3()),
        "OggOpus": (encoders.ogg_opus(), [], container("OGG_OPUS"), encoders.ogg_opus()),
        "raw PCM": (wav[44:], pcm, {"raw_audio": {**raw, "audio_channel_count": "1"}}, wav[44:]),
        "FLAC": (encoders.sound("FLAC"), ["--convert"], container("WAV"), wav),
        "AIFF": (encoders.sound("AIFF", "PCM_16"), ["--convert"], container("WAV"), wav),
    }
    with tempfile.TemporaryDirectory() as name, serving(sdk_python, Path(name)) as port:
        folder = Path(name)
        encoders.put_in_path(folder / "bin")
        for number, (kind, (content, options, announced, wanted)) in enumerate(formats.items(), 1):
            (folder / "call").write_bytes(content)
            done = upload(port, folder / "ca.pem", options, folder / "call")
            printed = (done.returncode, done.stdout)
            report.check(
                f"{kind}: exit code and stdout", printed, (0, f"Dialog ID: talk-{number}\n")
            )
            arrived = received(folder, str(number))
            assert isinstance(arrived, dict), done.stderr
            report.check(f"{kind}: announced", arrived["audio"], announced)
            digest = hashlib.sha256(wanted).hexdigest()
            report.check(f"{kind}: audio", arrived["sha256"], digest)


def container(kind: str) -> object:
    """The message that announces a container."""
    return {"container_audio": {"container_audio_type": f"CONTAINER_AUDIO_TYPE_{kind}"}}


def look_up(port: int, folder: Path, report: Report) -> None:
    """Upload the sample once more, lose the answer, and have the dialog found by a later run."""
    ledger = folder / "ledger.sqlite"
    options = ["--ledger", f"{ledger}", "--lookup-key", LOOKUP_KEY, "--format", "json"]
    options += ["--organization-id", ORGANIZATION_ID, "--space-id", SPACE_ID]
    place = {"organization_id": ORGANIZATION_ID, "space_id": SPACE_ID}
    place["connection_id"] = CONNECTION_ID
    values = [hashlib.sha256(SAMPLE.read_bytes()).hexdigest()]
    condition = {"key": f"userMeta.{LOOKUP_KEY}", "any_match": {"values": values}}
    # Numbers of 64 bits are strings in JSON.
    search = {**place, "filters": [condition], "page_size": "100"}
    get = {**place, "talk_ids": ["found-3"], "results_mask": ""}

    (folder / "lose").touch()
    unknown = {"outcome": "unknown", "talk_id": None, "found_id": None}
    for what in ("lost", "not found yet"):
        done = upload(port, folder / "ca.pem", options)
        report.check(f"{what}: exit code and result", said(done), (76, unknown))
        report.check(f"{what}: uploads", len(list(folder.glob("[0-9].json"))), 3)
    report.check("not found yet: Search", received(folder, "Search"), search)
    report.check("not found yet: Get", received(folder, "Get"), None)

    found = {"outcome": "uploaded", "talk_id": "found-3", "found_id": "found-3"}
    deadline_s = time.monotonic() + TIMEOUT_S
    while done.returncode and time.monotonic() < deadline_s:
        time.sleep(1)
        with closing(sqlite3.connect(ledger)) as database, database:
            # In place of waiting 15 minutes.
            database.execute("UPDATE recordings SET looked_up_at = NULL")
        done = upload(port, folder / "ca.pem", options)
    report.check("found: exit code and result", said(done), (0, found))
    report.check("found: Search", received(folder, "Search"), search)
    report.check("found: Get", received(folder, "Get"), get)
    if done.returncode:
        print(done.stderr, end="")


def update(port: int, folder: Path, report: Report) -> None:
    """Upload a copy with a JSON of its own, change that, lose the answer and send it again."""
    copy = folder / "call.wav"
    copy.write_bytes(SAMPLE.read_bytes())
    copy.with_suffix(".json").write_text('{"client_id": "1", "note": "first"}', encoding="utf-8")
    options = ["--ledger", f"{folder / 'updates.sqlite'}", "--update-metadata", "--format", "json"]
    (folder / "lose").unlink()
    done = upload(port, folder / "ca.pem", options, copy)
    uploaded = {"outcome": "uploaded", "talk_id": "talk-4", "found_id": None}
    report.check("to be updated: exit code and result", said(done), (0, uploaded))

    copy.with_suffix(".json").write_text('{"client_id": "2"}', encoding="utf-8")
    fields = {**json.loads(METADATA.read_text(encoding="utf-8")), "client_id": "2"}
    fields = {k: v if isinstance(v, str) else json.dumps(v) for k, v in fields.items()}
    request = {"talk_id": "talk-4", "metadata": {"connection_id": CONNECTION_ID, "fields": fields}}
    (folder / "lose").touch()
    done = upload(port, folder / "ca.pem", [*options, "--retries", "0"], copy)
    lost = {"outcome": "failed", "talk_id": None, "found_id": None}
    report.check("update lost: exit code and result", said(done), (75, lost))
    (folder / "lose").unlink()
    done = upload(port, folder / "ca.pem", options, copy)
    updated = {"outcome": "updated", "talk_id": "talk-4", "found_id": None}
    report.check("updated: exit code and result", said(done), (0, updated))
    report.check("updated: request", received(folder, "Update"), request)
    if done.returncode:
        print(done.stderr, end="")


def said(done: subprocess.CompletedProcess[str]) -> tuple[int, dict[str, object]]:
    """The exit code of a run, and what it said of its only recording."""
    result = json.loads(done.stdout or "{}")
    return done.returncode, {name: result.get(name) for name in ("outcome", "talk_id", "found_id")}


def received(folder: Path, rpc: str) -> object:
    """The latest request of an rpc that the SDK's service had; None if it had none."""
    path = folder / f"{rpc}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


@contextmanager
def serving(sdk_python: str, folder: Path) -> Iterator[int]:
    """The SDK's service, on the port yielded; its CA is left in folder/ca.pem."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    server_pem = ca.issue_cert("localhost").private_key_and_cert_chain_pem
    server_pem.write_to_path(str(folder / "server.pem"))
    with subprocess.Popen(
        [sdk_python, HERE / "server.py", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as server:
        assert server.stdin and server.stdout
        try:
            yield int(server.stdout.readline())
        finally:
            server.stdin.close()
            server.wait(TIMEOUT_S)


def upload(
    port: int, ca_file: Path, options: list[str], recording: Path = SAMPLE
) -> subprocess.CompletedProcess[str]:
    """Run upload_grpc.py as a user does."""
    command = [sys.executable, f"{ROOT / 'upload_grpc.py'}", "--audio-path", f"{recording}"]
    command += ["--meta-path", f"{METADATA}", "--connection-id", CONNECTION_ID]
    command += ["--endpoint", f"localhost:{port}", "--ca-file", f"{ca_file}", *options]
    # Nothing else of the environment: a proxy or a token there would change the upload.
    env = {"API_KEY": API_KEY, "PATH": os.environ["PATH"]}
    return subprocess.run(
        command, env=env, capture_output=True, encoding="utf-8", timeout=TIMEOUT_S, check=False
    )


# --- The contract --------------------------------------------------------------------


def compare_contracts(sdk_python: str, report: Report) -> None:
    """Check each message, enum and rpc of protos/ against the SDK's of the same name."""
    ours, theirs = our_contract(), sdk_contract(sdk_python)
    our_pool, their_pool = pool_of(ours), pool_of(theirs)
    for file in ours.file:
        if file.name.startswith("google/protobuf/"):
            continue  # Not ours: it comes with grpcio-tools.
        mine = our_pool.FindFileByName(file.name)
        try:
            other = their_pool.FindFileByName(file.name)
        except KeyError:
            report.check(file.name, "present", "no such file")
            continue
        report.check(f"{file.name}: package", mine.package, other.package)
        for name, message in mine.message_types_by_name.items():
            compare_messages(message, other.message_types_by_name.get(name), report)
        for name, enum in mine.enum_types_by_name.items():
            compare_enums(enum, other.enum_types_by_name.get(name), report)
        for name, service in mine.services_by_name.items():
            compare_services(service, other.services_by_name.get(name), report)


def our_contract() -> FileDescriptorSet:
    """The descriptors of protos/, by protoc."""
    files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "ours.pb")
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", "--include_imports"]
        subprocess.run([*command, f"--descriptor_set_out={out}", *files], check=True)
        return FileDescriptorSet.FromString(out.read_bytes())


def sdk_contract(sdk_python: str) -> FileDescriptorSet:
    """The descriptors in the SDK's generated code."""
    command = [sdk_python, f"{HERE / 'descriptors.py'}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return FileDescriptorSet.FromString(done.stdout)


def pool_of(contract: FileDescriptorSet) -> DescriptorPool:
    """The files of `contract` in a pool of their own: both sides have the same names."""
    pool = DescriptorPool()
    for file in contract.file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


def compare_messages(ours: Descriptor, theirs: Descriptor | None, report: Report) -> None:
    """Check one message, and those declared inside it."""
    if not theirs:
        report.check(f"message {ours.full_name}", "present", "no such message")
        return
    mine, other = described(ours), described(theirs)
    if ours.full_name in REDUCED:
        other = {name: field for name, field in other.items() if name in mine}
    report.check(f"message {ours.full_name}", mine, other)
    for nested in ours.nested_types:
        compare_messages(nested, theirs.nested_types_by_name.get(nested.name), report)
    for enum in ours.enum_types:
        compare_enums(enum, theirs.enum_types_by_name.get(enum.name), report)


def described(message: Descriptor) -> dict[str, dict[str, object]]:
    """All that decides how each field of a message looks on the wire and in JSON."""
    proto = DescriptorProto()
    message.CopyToProto(proto)
    return {
        field.name: {
            "number": field.number,
            "type": field.Type.Name(field.type),
            "type_name": field.type_name,
            "label": field.Label.Name(field.label),
            "json_name": message.fields_by_name[field.name].json_name,
            "oneof": proto.oneof_decl[field.oneof_index].name
            if field.HasField("oneof_index")
            else None,
            "optional": field.proto3_optional,
            "map_entry": proto.options.map_entry,
        }
        for field in proto.field
    }


def compare_enums(ours: EnumDescriptor, theirs: EnumDescriptor | None, report: Report) -> None:
    """Check the names and numbers of an enum's values."""
    values = {value.name: value.number for value in ours.values}
    expected: object = "no such enum"
    if theirs:
        expected = {value.name: value.number for value in theirs.values}
    report.check(f"enum {ours.full_name}", values, expected)


def compare_services(
    ours: ServiceDescriptor, theirs: ServiceDescriptor | None, report: Report
) -> None:
    """Check our rpcs; the SDK's service may have more, which an upload has no use for."""
    for method in ours.methods:
        name = f"rpc {ours.full_name}.{method.name}"
        mine, other = MethodDescriptorProto(), MethodDescriptorProto()
        method.CopyToProto(mine)
        if not theirs or method.name not in theirs.methods_by_name:
            report.check(name, "present", "no such rpc")
            continue
        theirs.methods_by_name[method.name].CopyToProto(other)
        # Options are for the REST gateway and for documentation.
        mine.ClearField("options")
        other.ClearField("options")
        report.check(name, str(mine), str(other))


def main(argv: list[str]) -> int:
    """Make both comparisons with the SDK of the Python `argv[0]`."""
    (sdk_python,) = argv
    report = Report()
    compare_contracts(sdk_python, report)
    compare_uploads(sdk_python, report)
    compare_formats(sdk_python, report)
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
