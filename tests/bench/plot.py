"""Draw what run.py --growth measured: plot.py PICTURE, the measurements as JSON on stdin."""

import json
import math
import sys

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, NullFormatter

BLUE, ORANGE, GREEN = "#0060a8", "#d06000", "#308030"


def plain(value: float, _: int = 0) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


measured = json.load(sys.stdin)
sizes_mb, times_s, peaks_mb = zip(*measured["by_size"], strict=True)
counts, without_s, with_s, again_s = zip(*measured["by_count"], strict=True)

pyplot.rcParams.update({"font.size": 9, "axes.grid": True, "grid.color": "#dddddd"})
figure, (time, memory, number) = pyplot.subplots(1, 3, figsize=(11, 3.6), layout="constrained")

time.loglog(sizes_mb, times_s, "o-", color=BLUE)
time.set(title="One recording: time", xlabel="size of the recording, MB", ylabel="seconds")

memory.semilogx(sizes_mb, peaks_mb, "o-", color=BLUE)
memory.set(title="One recording: peak memory", xlabel="size of the recording, MB", ylabel="MB")
memory.set_ylim(0, max(70, *peaks_mb))
memory.axhline(60, color="#888888", linestyle="--", linewidth=1)
memory.text(sizes_mb[0], 61, "limit: 60 MB", color="#666666")

number.loglog(counts, without_s, "o-", color=BLUE, label="--jobs 4")
number.loglog(counts, with_s, "s-", color=ORANGE, label="--jobs 4 --ledger")
number.loglog(counts, again_s, "^-", color=GREEN, label="the same again: nothing to send")
number.set(title="Recordings of 16 kB: time", xlabel="number of recordings", ylabel="seconds")
number.legend(frameon=False, loc="upper left", fontsize=7.5)

for axes in (time, memory, number):
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
for axes, values in ((time, times_s), (number, (*again_s, *with_s))):
    axes.set_ylim(
        10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)))
    )
    axes.yaxis.set_major_formatter(FuncFormatter(plain))
    axes.yaxis.set_minor_formatter(NullFormatter())
figure.supxlabel(f"one process, loopback, TLS; {measured['machine']}", fontsize=7, color="#666666")
figure.savefig(sys.argv[1], dpi=100, metadata={"Software": None})
