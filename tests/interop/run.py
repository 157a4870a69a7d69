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
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import encoders
import trustme
from google.protobuf.descriptor import Descriptor
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
    f"message yandex.cloud.speechsense.v1.{name}"
    for name in ("SearchTalkRequest", "Filter", "Talk")
}

Done = subprocess.CompletedProcess[str]


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


class Service:
    """The SDK's service in a process of its own, and uploads to it."""

    def __init__(self, sdk_python: str, folder: Path, report: Report) -> None:
        self.folder, self.report = folder, report
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(folder / "ca.pem"))
        server_pem = ca.issue_cert("localhost").private_key_and_cert_chain_pem
        server_pem.write_to_path(str(folder / "server.pem"))
        command = [sdk_python, f"{HERE / 'server.py'}", f"{folder}"]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )
        assert self._server.stdout
        self._port = int(self._server.stdout.readline())

    def close(self) -> None:
        self._server.communicate(timeout=TIMEOUT_S)  # It ends when its stdin does.

    def upload(self, *options: str, recording: Path = SAMPLE) -> Done:
        """Run upload_grpc.py as a user does."""
        command = [sys.executable, f"{ROOT / 'upload_grpc.py'}", "--audio-path", f"{recording}"]
        command += ["--meta-path", f"{METADATA}", "--connection-id", CONNECTION_ID]
        command += ["--endpoint", f"localhost:{self._port}", "--ca-file", f"{self.folder}/ca.pem"]
        # Nothing else of the environment: a proxy or a token there would change the upload.
        env = {"API_KEY": API_KEY, "PATH": os.environ["PATH"]}
        done = subprocess.run(
            [*command, *options], env=env, capture_output=True, encoding="utf-8",
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        print(done.stderr if done.returncode not in (0, 75, 76) else "", end="")
        return done

    def received(self, rpc: str) -> Any:
        """The latest request of an rpc that the service had; None if it had none."""
        path = self.folder / f"{rpc}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def check(
        self, what: str, number: int, *options: str, recording: Path = SAMPLE, **expected: Any
    ) -> None:
        """Upload, as number so-and-so, and compare what arrived."""
        done = self.upload(*options, recording=recording)
        printed = (done.returncode, done.stdout)
        self.report.check(
            f"{what}: exit code and stdout", printed, (0, f"Dialog ID: talk-{number}\n")
        )
        arrived = self.received(f"{number}") or {}
        for name, value in expected.items():
            self.report.check(f"{what}: {name}", arrived.get(name), value)

    def check_result(self, what: str, done: Done, *expected: object) -> None:
        """Compare exit code, outcome, talk ID and found ID of a run with --format json."""
        result = json.loads(done.stdout or "{}")
        found = [result.get(name) for name in ("outcome", "talk_id", "found_id")]
        self.report.check(f"{what}: exit code and result", (done.returncode, *found), expected)


@contextmanager
def serving(sdk_python: str, report: Report) -> Iterator[Service]:
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Service(sdk_python, Path(folder), report)) as service,
    ):
        yield service


def digest(audio: bytes) -> str:
    return hashlib.sha256(audio).hexdigest()


def container(kind: str) -> object:
    """The message that announces a container."""
    return {"container_audio": {"container_audio_type": f"CONTAINER_AUDIO_TYPE_{kind}"}}


def fields_sent(**changed: str) -> dict[str, str]:
    """The sample's metadata; other types than strings travel as their JSON text."""
    fields = {**json.loads(METADATA.read_text(encoding="utf-8")), **changed}
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in fields.items()}


def compare_uploads(service: Service) -> None:
    """Upload the sample both ways and check everything that arrived."""
    expected: dict[str, Any] = {
        "talk": {"connection_id": CONNECTION_ID, "fields": fields_sent()},
        "audio": container("WAV"),
        "sha256": digest(SAMPLE.read_bytes()),
        "authorization": f"Api-Key {API_KEY}",
    }
    order = ["metadata", "audio_metadata", "chunk"]
    service.check("UploadAsStream", 1, rpc="UploadAsStream", order=order, **expected)
    order = ["metadata", "audio"]
    service.check("Upload", 2, "--single-message", rpc="Upload", order=order, **expected)


def compare_formats(service: Service) -> None:
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
    encoders.put_in_path(service.folder / "bin")
    call = service.folder / "call"
    for number, (kind, (content, options, audio, wanted)) in enumerate(formats.items(), 1):
        call.write_bytes(content)
        sha256 = digest(wanted)
        service.check(kind, number, *options, recording=call, audio=audio, sha256=sha256)


def look_up(service: Service) -> None:
    """Upload the sample once more, lose the answer, and have the dialog found by a later run."""
    ledger = service.folder / "ledger.sqlite"
    options = ["--ledger", f"{ledger}", "--lookup-key", LOOKUP_KEY]
    options += ["--organization-id", ORGANIZATION_ID, "--space-id", SPACE_ID, "--format", "json"]
    place = {"organization_id": ORGANIZATION_ID, "space_id": SPACE_ID}
    place["connection_id"] = CONNECTION_ID
    values = [digest(SAMPLE.read_bytes())]
    condition = {"key": f"userMeta.{LOOKUP_KEY}", "any_match": {"values": values}}
    # Numbers of 64 bits are strings in JSON.
    search = {**place, "filters": [condition], "page_size": "100"}
    get = {**place, "talk_ids": ["found-3"], "results_mask": ""}
    (service.folder / "lose").touch()
    for what in ("lost", "not found yet"):
        done = service.upload(*options)
        service.check_result(what, done, 76, "unknown", None, None)
        uploads = len(list(service.folder.glob("[0-9].json")))
        service.report.check(f"{what}: uploads", uploads, 3)
    service.report.check("not found yet: Search", service.received("Search"), search)
    service.report.check("not found yet: Get", service.received("Get"), None)

    deadline_s = time.monotonic() + TIMEOUT_S
    while done.returncode and time.monotonic() < deadline_s:
        time.sleep(1)
        with closing(sqlite3.connect(ledger)) as database, database:
            # In place of waiting 15 minutes.
            database.execute("UPDATE recordings SET looked_up_at = NULL")
        done = service.upload(*options)
    service.check_result("found", done, 0, "uploaded", "found-3", "found-3")
    service.report.check("found: Search", service.received("Search"), search)
    service.report.check("found: Get", service.received("Get"), get)
    (service.folder / "lose").unlink()


def update(service: Service) -> None:
    """Upload a copy with a JSON of its own, change that, lose the answer and send it again."""
    copy, lose = service.folder / "call.wav", service.folder / "lose"
    copy.write_bytes(SAMPLE.read_bytes())
    options = ["--ledger", f"{service.folder / 'updates.sqlite'}", "--update-metadata"]
    options += ["--format", "json", "--retries", "0"]

    def send(client_id: str) -> Done:
        copy.with_suffix(".json").write_text(json.dumps({"client_id": client_id}))
        return service.upload(*options, recording=copy)

    service.check_result("to be updated", send("1"), 0, "uploaded", "talk-4", None)
    lose.touch()
    service.check_result("update lost", send("2"), 75, "failed", None, None)
    lose.unlink()
    service.check_result("updated", send("2"), 0, "updated", "talk-4", None)
    metadata = {"connection_id": CONNECTION_ID, "fields": fields_sent(client_id="2")}
    request = {"talk_id": "talk-4", "metadata": metadata}
    service.report.check("updated: request", service.received("Update"), request)


# --- The contract --------------------------------------------------------------------


def compare_contracts(sdk_python: str, report: Report) -> None:
    """Check each message, enum and rpc of protos/ against the SDK's of the same name."""
    ours, theirs = our_contract(), sdk_contract(sdk_python)
    our_pool, their_pool = pool_of(ours), pool_of(theirs)
    names = {file.name for file in theirs.file}
    for name in (file.name for file in ours.file):
        if name.startswith("google/protobuf/"):
            continue  # Not ours: it comes with grpcio-tools.
        others = described(their_pool, name) if name in names else {}
        # The SDK's may have more, which an upload has no use for.
        for what, mine in described(our_pool, name).items():
            other = others.get(what, "nothing of that name")
            if what in REDUCED and isinstance(mine, dict) and isinstance(other, dict):
                other = {field: other[field] for field in other if field in mine}
            report.check(what, mine, other)


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


def described(pool: DescriptorPool, name: str) -> dict[str, object]:
    """A file's package, messages and enums, also those inside others, and rpcs, by their names."""
    file = pool.FindFileByName(name)
    found: dict[str, object] = {f"{name}: package": file.package}
    enums = list(file.enum_types_by_name.values())
    messages = list(file.message_types_by_name.values())
    while messages:
        message = messages.pop()
        messages += message.nested_types
        enums += message.enum_types
        found[f"message {message.full_name}"] = fields_of(message)
    for enum in enums:
        values = {value.name: value.number for value in enum.values}
        found[f"enum {enum.full_name}"] = values
    for service in file.services_by_name.values():
        for method in service.methods:
            proto = MethodDescriptorProto()
            method.CopyToProto(proto)
            proto.ClearField("options")  # For the REST gateway and for documentation.
            found[f"rpc {service.full_name}.{method.name}"] = str(proto)
    return found


def fields_of(message: Descriptor) -> dict[str, dict[str, object]]:
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


def main(argv: list[str]) -> int:
    """Make both comparisons with the SDK of the Python `argv[0]`."""
    (sdk_python,) = argv
    report = Report()
    compare_contracts(sdk_python, report)
    with serving(sdk_python, report) as service:
        compare_uploads(service)
        look_up(service)
        update(service)
    with serving(sdk_python, report) as service:
        compare_formats(service)
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
