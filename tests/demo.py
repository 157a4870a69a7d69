"""Upload a recording to a service on this machine, and show what arrived there.

The service runs in this process, so nothing outlives it, and what it stored is removed, too,
unless DEMO_KEEP=1 asks to keep it.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

# Must stand in the environment before grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import encoders
from stand_in import StandIn, Talk

ROOT = Path(__file__).resolve().parent.parent
STOP_TIMEOUT_S = 5


def from_root(path: Path) -> str:
    """Name a path for a shell in ROOT; links stay links, as a Python in .venv is one."""
    path = Path(os.path.abspath(path))
    return shlex.quote(str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path))


def is_taken(recording: Path) -> bool:
    """Return whether the service takes a recording as it is, going by its suffix."""
    return recording.suffix.lower() in (".wav", ".mp3", ".ogg", ".opus")


def upload(service: StandIn, key: str, recording: Path) -> int:
    line = (
        f"{from_root(Path(sys.executable))} upload_grpc.py --audio-path {from_root(recording)} "
        "--meta-path metadata_example.json --connection-id demo-connection "
        f"--endpoint {service.endpoint} --ca-file {shlex.quote(str(service.ca_file))}"
        f"{'' if is_taken(recording) else ' --convert'}"
    )
    print(f"$ export API_KEY=...\n$ {line}", flush=True)
    direct = ",".join(filter(None, (os.environ.get("no_proxy"), "localhost")))
    environment = os.environ | {"API_KEY": key, "no_proxy": direct}
    # exec: a signal must reach the upload, not a shell in front of it.
    with subprocess.Popen(f"exec {line}", shell=True, cwd=ROOT, env=environment) as process:
        try:
            return process.wait()
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop an upload that is still under way, and let it say so."""
    try:
        if process.poll() is None:
            process.terminate()
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()


def show(talk: Talk, recording: Path) -> bool:
    """Say what the service has of a talk; false where its audio is not the recording's."""
    same = talk.audio is not None and talk.audio.read_bytes() == recording.read_bytes()
    print(f"\nThe service has the dialog {talk.talk_id} of connection {talk.connection_id}:")
    is_converted = not is_taken(recording)
    difference = "the same as" if same else "WAV from" if is_converted else "NOT the same as"
    print(f"  {talk.size:,} bytes of audio, {difference} {from_root(recording)}")
    print(f"  {len(talk.fields)} metadata fields:")
    for key, value in sorted(talk.fields.items()):
        print(f"    {key}: {value}")
    return same or is_converted


def demo(store: Path, certs: Path, recording: Path) -> int:
    key = secrets.token_hex(20)
    if not is_taken(recording):
        encoders.put_in_path(certs / "bin")
    with StandIn(store, keys=(key,), certs=certs) as service:
        code = upload(service, key, recording)
        talks = list(service.talks.values())
    if code:
        print(f"\nThe upload failed with exit code {code}.", file=sys.stderr)
        return code
    if len(talks) != 1 or not show(talks[0], recording):
        print(f"\nThe service has {len(talks)} talks, or other audio.", file=sys.stderr)
        return 1
    return 0


def terminated(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def main() -> int:
    parser = argparse.ArgumentParser(description="Upload to a service on this machine.")
    sample = ROOT / "tests" / "sample.wav"
    parser.add_argument("recording", type=Path, nargs="?", default=sample, help="one of your own")
    recording = parser.parse_args().recording
    signal.signal(signal.SIGTERM, terminated)
    keep = False
    store = Path(tempfile.mkdtemp(prefix="speechsense-demo-"))
    try:
        with tempfile.TemporaryDirectory(prefix="speechsense-demo-certs-") as certs:
            code = demo(store, Path(certs), recording)
        keep = code == 0 and os.environ.get("DEMO_KEEP") == "1"
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    finally:
        if not keep:
            shutil.rmtree(store)
    kept = f"What it stored is in {store}" if keep else "What it stored is removed (DEMO_KEEP=1"
    print(f"\nThe service is stopped. {kept}{'.' if keep else ' keeps it).'}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
