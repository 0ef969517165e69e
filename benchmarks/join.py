#!/usr/bin/env python3
"""One table and one plot of the rows that the benchmarks left in a folder.

    python benchmarks/join.py benchmarks/out --parts masks data

Writes table.md and plot.png beside them.
"""

import argparse
import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import List

import matplotlib
import torch
from measure import Row, markdown, read_rows

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

PACKAGES = ("torch", "espnet", "transformers", "torchaudio", "speechbrain", "fairseq2")
PACKAGES += ("numpy",)
COLOURS = {"yes": "tab:green", "no": "tab:red", "": "tab:gray"}


def machine(device: str) -> str:
    """What the figures were measured on."""
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    cores = len(os.sched_getaffinity(0))
    told = f"{found[1] if found else platform.machine()}, {cores} cores, {memory:.0f} GiB"
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}; {told}"
    return f"{told}; one thread"


def versions() -> str:
    """Of Python and the packages; of this one, the commit."""
    told = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            told.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            told.append(f"{name} not installed")
    done = subprocess.run(
        ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
    )
    commit = done.stdout.strip() if done.returncode == 0 else "of no commit"
    return ", ".join([*told, f"espnet_atm {commit}"])


def plot(rows: List[Row], file: Path) -> None:
    """Ratios with their goals, a panel for each part."""
    parts = list(dict.fromkeys(row.part for row in rows if row.ratio is not None))
    panels = [[x for x in rows if x.part == part and x.ratio] for part in parts]
    heights = [1.2 + len(panel) for panel in panels] or [1]
    figure, axes = plt.subplots(
        max(1, len(parts)),
        figsize=(11, 0.18 * sum(heights) + 0.6 * len(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for part, panel, axis in zip(parts, panels, axes[:, 0]):
        for y, row in enumerate(panel):
            axis.plot(row.ratio, y, "o", color=COLOURS[row.met], markersize=4)
            if row.goal:
                axis.plot(float(row.goal.split()[1]), y, "|", color="black")
        axis.set_yticks(
            range(len(panel)),
            [f"{x.case}, {x.name} ({x.of})" for x in panel],
            fontsize=6,
        )
        found = [row.ratio for row in panel]
        if max(found) > 5 * min(found):
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter("")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.tick_params(axis="x", labelsize=7)
        axis.axvline(1, color="lightgray", zorder=0)
        axis.invert_yaxis()
        axis.set_title(f"{part}: ratio (bar: its goal)", fontsize=8)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Read, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parts", nargs="+", required=True, help="in their order")
    parser.add_argument("--failed", nargs="*", default=[], help="parts that did")
    args = parser.parse_args()
    rows = []
    for part in args.parts:
        file = args.folder / f"{part}.jsonl"
        if file.exists():
            rows += read_rows(file)
        if part in args.failed:
            rows.append(Row(part, "", "all of it", note="failed; see its log"))
    date = datetime.date.today().isoformat()
    text = f"{date}, {machine(args.device)}\n\n{versions()}\n\n{markdown(rows)}\n"
    (args.folder / "table.md").write_text(text)
    plot(rows, args.folder / "plot.png")


if __name__ == "__main__":
    main()
