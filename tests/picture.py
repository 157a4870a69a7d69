"""Make picture.svg, README's picture: what a terminal shows of a run over a slow line.

The command is run as it is shown, in a pseudo-terminal, and the picture is what it printed when
60 % of the audio had been sent. The service runs in this process; a proxy leads to it what is
meant for the real one.
"""

from __future__ import annotations

import html
import os
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

# Must stand in the environment before grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import ROOT, make_wav
from fault_proxy import HttpProxy
from stand_in import Slow, StandIn
from test_progress import on_terminal, screen

COMMAND = "--audio-path calls --meta-path metadata.json --connection-id ID"
# In MB: more than what sockets and gRPC hold on the way, of which no progress can be seen.
CALLS = {"0914-anna": 2, "0921-boris": 3, "0930-vera": 1, "0947-gleb": 24, "1005-dina": 32}
LINE_BYTES_PER_S = 6e6
COLUMNS = 90
LINE_HEIGHT = 20
STYLE = "font-family='DejaVu Sans Mono, Menlo, Consolas, monospace' font-size='14'"


def record(folder: Path) -> list[str]:
    """Upload some recordings, and return the lines on the terminal when 60 % was sent."""
    (folder / "calls").mkdir()
    for name, size in CALLS.items():
        make_wav(folder / "calls" / f"{name}.wav", size * 1_000_000)
    # Its sidecar is wrong, so that a problem can be seen, too.
    (folder / "calls" / "0930-vera.json").write_text('{"team": {"name": "north"}}')
    shutil.copy(ROOT / "metadata_example.json", folder / "metadata.json")
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
    bars = list(re.finditer(r"(\d+)%\|[^\r\n]*", received))
    shown = next(bar for bar in bars if int(bar[1]) >= 60)
    return [f"$ ./upload_grpc.py {COMMAND}", *screen(received[: shown.end()])]


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
