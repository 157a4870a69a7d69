"""Make picture.svg, README's picture: what a terminal shows of a run over a slow line.

The command is run as it is shown, in a pseudo-terminal, and the picture is what it printed when
60 % of the audio had been sent. The service runs in this process; a proxy leads to it what is
meant for the real one.
"""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

# Must stand in the environment before grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import ROOT, make_wav
from encoders import sound
from fault_proxy import HttpProxy
from stand_in import Slow, StandIn
from test_progress import on_terminal, screen

COMMAND = "--audio-path calls --meta-path metadata.json --connection-id ID"
# In MB: more than what sockets and gRPC hold on the way, of which no progress can be seen. The
# first ones keep all workers busy, so that the first line is a dialog's ID.
CALLS = {"0914-anna": 2, "0921-boris": 4, "0926-vera": 24, "0930-gleb": 32, "1005-egor": 1}
# A problem, so that one can be seen, too: a format that the service does not take.
ALAW_CALL = "0947-dina"
LINE_BYTES_PER_S = 6e6
COLUMNS = 90
LINE_HEIGHT = 20
STYLE = "font-family='DejaVu Sans Mono, Menlo, Consolas, monospace' font-size='14'"


def make_calls(folder: Path, bytes_per_mb: int = 1_000_000) -> None:
    """Make what the command names."""
    (folder / "calls").mkdir()
    for name, size in CALLS.items():
        make_wav(folder / "calls" / f"{name}.wav", size * bytes_per_mb)
    (folder / "calls" / f"{ALAW_CALL}.wav").write_bytes(sound("WAV", "ALAW", seconds=12))
    metadata = json.loads((ROOT / "metadata_example.json").read_text("utf-8"))
    del metadata["date"]  # Not the same for all.
    (folder / "metadata.json").write_text(json.dumps(metadata), "utf-8")


def record(folder: Path) -> list[str]:
    """Upload some recordings, and return the lines on the terminal when 60 % was sent."""
    make_calls(folder)
    host = "api.speechsense.yandexcloud.net"
    with (
        StandIn(folder / "store", names=(host,)) as service,
        HttpProxy(upstream_port=service.port) as proxy,
    ):
        service.script += [Slow(LINE_BYTES_PER_S) for _ in CALLS]
        os.environ |= {"API_KEY": "demo-key", "https_proxy": proxy.url, "no_proxy": ""}
        os.environ["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"] = str(service.ca_file)
        os.chdir(folder)
        _, received = on_terminal(*shlex.split(COMMAND))
    for bar in re.finditer(r"(\d+) of \d+ recordings: +(\d+)%\|[^\r\n]*", received):
        lines = screen(received[: bar.end()])
        # The bar is drawn from time to time: not one that has not counted the last line yet.
        if int(bar[2]) >= 60 and len(lines) - 1 == int(bar[1]):
            return [f"$ ./upload_grpc.py {COMMAND}", *lines]
    raise SystemExit("no such moment was seen: run it again")


def draw(lines: list[str]) -> str:
    """Draw a terminal; what is wider than it goes on in the next line, as there."""
    rows = [
        line[start : start + COLUMNS]
        for line in lines
        for start in range(0, max(len(line), 1), COLUMNS)
    ]
    width, height = COLUMNS * 8.5 + 30, len(rows) * LINE_HEIGHT + 30
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {height}' {STYLE}>",
        "<rect width='100%' height='100%' rx='8' fill='#1e1e2e'/>",
    ]
    for number, row in enumerate(rows, 1):
        place = f"x='15' y='{number * LINE_HEIGHT + 10}'"
        text = html.escape(row, quote=False)
        parts.append(f"<text {place} fill='#cdd6f4' xml:space='preserve'>{text}</text>")
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = record(Path(folder))
    (ROOT / "tests" / "picture.svg").write_text(draw(lines), "utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
