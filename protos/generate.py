"""Generate the Python stubs from a tree of .proto files: this folder, or a cloudapi clone.

    python protos/generate.py SOURCE OUT

Run by `make generate`. Files directly under OUT other than the stubs are left alone.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

# What upload_grpc.py imports; protoc finds what these import in turn.
ROOTS = [
    "yandex/cloud/speechsense/v1/talk_service.proto",
    "yandex/cloud/operation/operation_service.proto",
]
# Names the tree the stubs came from; it is written last, so its time is theirs.
STAMP = "SOURCE"


def main(argv: list[str]) -> int:
    """Generate from the tree `argv[0]` into the folder `argv[1]`; return the exit code."""
    source, out = Path(argv[0]).resolve(), Path(argv[1]).resolve()
    if not (source / ROOTS[0]).is_file():
        print(f"error: {source} holds no {ROOTS[0]}; no stubs generated", file=sys.stderr)
        return 1
    new = out / ".new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        generate(source, new)
        swap_in(new, out)
    except subprocess.CalledProcessError as error:
        print(error.stderr, end="", file=sys.stderr)
        print(f"error: no stubs generated from {source}; see above", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(new, ignore_errors=True)
    (out / STAMP).write_text(f"{source}\n", encoding="utf-8")
    print(f"Stubs made from {source}")
    return 0


def generate(source: Path, new: Path) -> None:
    """Write the stubs of ROOTS and of all they import to `new`, and see that they load."""
    include = [f"-I{source}", f"-I{source / 'third_party/googleapis'}"]
    if not (source / "third_party/googleapis").is_dir():
        include.pop()

    closure = new / "closure.pb"
    protoc(*include, "--include_imports", f"--descriptor_set_out={closure}", *ROOTS)
    files = [f.name for f in FileDescriptorSet.FromString(closure.read_bytes()).file]
    closure.unlink()
    # These come with the protobuf package.
    files = [name for name in files if not name.startswith("google/protobuf/")]

    protoc(*include, *(f"--{kind}_out={new}" for kind in ("python", "grpc_python", "pyi")), *files)

    # The yandexcloud SDK has packages of the same name. Ours come first in sys.path, but
    # a folder without __init__.py would still give way to the SDK's. `google` must stay
    # without: it is shared with protobuf's.
    for folder in [new / "yandex", *(p for p in (new / "yandex").rglob("*") if p.is_dir())]:
        (folder / "__init__.py").touch()

    modules = [root.removesuffix(".proto").replace("/", ".") + "_pb2_grpc" for root in ROOTS]
    run("-c", f"import sys; sys.path.insert(0, {str(new)!r}); import {', '.join(modules)}")


def protoc(*arguments: str) -> None:
    """Run protoc; its warnings are shown only if it fails."""
    run("-m", "grpc_tools.protoc", *arguments)


def run(*arguments: str) -> None:
    """Run this Python; raise CalledProcessError, with stderr, if it fails."""
    command = [sys.executable, *arguments]
    subprocess.run(command, check=True, stderr=subprocess.PIPE, encoding="utf-8")


def swap_in(new: Path, out: Path) -> None:
    """Put each folder of `new` in the place of the one in `out`."""
    # Interrupted half-way, the stubs are a mixture: without the stamp they are made again.
    (out / STAMP).unlink(missing_ok=True)
    for folder in list(new.iterdir()):
        old = new / f"{folder.name}.old"
        if (out / folder.name).exists():
            (out / folder.name).rename(old)
        folder.rename(out / folder.name)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
