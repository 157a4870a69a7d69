"""Upload the sample recording to a service on this machine, and show where it went.

The service runs in this process, so nothing outlives it. What the service stored is kept in a
temporary folder, to be looked at; everything else is removed again.
"""

from __future__ import annotations

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

from stand_in import StandIn, Talk

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = "tests/sample.wav"
STOP_TIMEOUT_S = 5


def command(service: StandIn) -> str:
    """The guide's command line, and where to find this service."""
    python = Path(sys.executable)
    if python.is_relative_to(ROOT):
        python = python.relative_to(ROOT)
    return (
        f"{shlex.quote(str(python))} upload_grpc.py --audio-path {SAMPLE} "
        "--meta-path metadata_example.json --connection-id demo-connection --key ${API_KEY} "
        f"--endpoint {service.endpoint} --ca-file {shlex.quote(str(service.ca_file))}"
    )


def upload(service: StandIn, key: str) -> int:
    line = command(service)
    print(f"$ {line}", flush=True)
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


def show(talk: Talk) -> bool:
    """Say where the service put a talk; false where its audio is not the sample's."""
    same = talk.audio is not None and talk.audio.read_bytes() == (ROOT / SAMPLE).read_bytes()
    entry = f"{talk.talk_id}.json"
    print(f"\nThe service stored it in {talk.audio.parent if talk.audio else '-'}:")
    print(
        f"  {talk.talk_id}.audio  {talk.size:,} bytes, "
        f"{'the same as' if same else 'NOT the same as'} {SAMPLE}"
    )
    print(f"  {entry}   connection {talk.connection_id}, {len(talk.fields)} fields:")
    for key, value in sorted(talk.fields.items()):
        print(f"    {key}: {value}")
    return same


def demo(store: Path, certs: Path) -> int:
    key = secrets.token_hex(20)
    with StandIn(store, keys=(key,), certs=certs) as service:
        code = upload(service, key)
        talks = list(service.talks.values())
    if code:
        print(f"\nThe upload failed with exit code {code}.", file=sys.stderr)
        return code
    if len(talks) != 1 or not show(talks[0]):
        print(f"\nThe service has {len(talks)} talks, or other audio.", file=sys.stderr)
        return 1
    print(f"\nThe service is stopped. To remove what it stored: rm -r {shlex.quote(str(store))}")
    return 0


def terminated(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def main() -> int:
    signal.signal(signal.SIGTERM, terminated)
    store = Path(tempfile.mkdtemp(prefix="speechsense-demo-"))
    code = 1
    try:
        with tempfile.TemporaryDirectory(prefix="speechsense-demo-certs-") as certs:
            code = demo(store, Path(certs))
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    finally:
        if code:
            shutil.rmtree(store)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
