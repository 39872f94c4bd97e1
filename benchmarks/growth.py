"""How the cost of every stage grows with the number of images and with the box, from finished default runs.

    python benchmarks/growth.py RUN RUN RUN … [--json benchmarks/results/growth.json]
    python benchmarks/growth.py --make 1000x64 100000x64 10000x128 [--minutes 30] [--work FOLDER]

Sets differ in nothing else: the default molecule in the same field of view, the same noise per area. For each stage: processor
seconds of every run and the exponent a of seconds ~ size^a between the two largest runs that differ in images, or in box, alone.
`docs/growth.svg` is drawn from the JSON by write_docs.py.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common import call, call_for, machine, write_rows
from cryofire.config import PrepareSettings
from cryofire.training.progress import stage_costs
from cryofire.training.run_folder import RunFolder

FIELD_OF_VIEW = 64 * 7.54
"""Å."""


def main() -> int:
    """Collect, print, write."""
    arguments = parser().parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    try:
        made = [make(size, arguments.work, end) for size in arguments.make]
    except subprocess.TimeoutExpired:
        print("the time is used up: the same command goes on")
        return 0
    rows = [costs_of(run, arguments.shared) for run in (*arguments.runs, *made)]
    for row in rows:
        print(json.dumps(row))
    if arguments.json is not None:
        write_rows(arguments.json, machine(torch.get_num_threads()), rows, key=("particles", "box"))
    return 0


def parser() -> argparse.ArgumentParser:
    """Command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="finished runs")
    result.add_argument("--make", nargs="+", default=[], metavar="IMAGESxBOX", help="sets to simulate and reconstruct")
    result.add_argument("--minutes", type=float, default=30.0, help="stop after so long; the same command goes on")
    result.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "cryofire-growth", help="sets and runs stay there"
    )
    result.add_argument("--shared", action="store_true", help="other work shared the machine: times are upper bounds")
    result.add_argument("--json", type=Path, help="write the results there")
    return result


def make(size: str, work: Path, end: float) -> Path:
    """A finished run of some images at some box, made as far as it is not there."""
    particles, box = (int(one) for one in size.split("x"))
    folder = work / size
    if not (folder / "set" / "truth.star").exists():
        pixel = FIELD_OF_VIEW / box
        call([
            "simulate", "--particles", str(particles), "--box", str(box), "--pixel-size", f"{pixel:.6g}", "-o", str(folder / "set"),
            "--overwrite",
        ])  # fmt: skip
    words = ["reconstruct", str(folder / "set" / "particles.star"), "-o", str(folder / "run")]
    if box > PrepareSettings().largest_box:
        words += ["--set", f"prepare.largest_box={box}"]
    call_for(words, end - time.monotonic())
    return folder / "run"


def costs_of(run: Path, shared: bool) -> dict[str, Any]:
    """Processor seconds of every stage of a run, and its memory."""
    folder = RunFolder(run)
    results, costs = folder.read_json("results.json"), stage_costs(folder)
    return {
        "particles": results["particles"], "box": results["box"], "machine_shared": shared,
        "cpu_s": {cost.name: cost.cpu_s for cost in costs},
        "wall_s": sum(cost.wall_s for cost in costs),
        "peak_memory_gb": max(cost.peak_memory_bytes for cost in costs) / 1e9,
        "bytes_read": sum(cost.bytes_read for cost in costs),
    }  # fmt: skip


def series(rows: Sequence[dict[str, Any]], size: str, fixed: str, value: int) -> list[dict[str, Any]]:
    """Rows that differ in their size ("particles" or "box") alone, smallest first."""
    return sorted((row for row in rows if row[fixed] == value), key=lambda row: int(row[size]))


def exponents(rows: Sequence[dict[str, Any]], size: str) -> dict[str, float]:
    """A of seconds ~ size^a between the two largest runs of a series, for every stage that both have."""
    if len(rows) < 2:
        return {}
    small, large = rows[-2:]
    ratio = math.log(large[size] / small[size])
    return {
        name: math.log(seconds / small["cpu_s"][name]) / ratio
        for name, seconds in large["cpu_s"].items()
        if name in small["cpu_s"]
    }


if __name__ == "__main__":
    sys.exit(main())
