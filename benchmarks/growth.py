"""How the cost of every stage grows with the number of images, from finished default runs on sets that differ in nothing else.

    python benchmarks/growth.py RUN RUN RUN … [--json benchmarks/results/growth.json]

For each stage: processor seconds of every run and the exponent a of seconds ~ images^a between the two largest.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch

from common import machine, write_rows
from cryofire.training.progress import stage_costs
from cryofire.training.run_folder import RunFolder


def main() -> int:
    """Collect, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--shared", action="store_true", help="other work shared the machine: times are upper bounds")
    parser.add_argument("--json", type=Path, help="write the results there")
    arguments = parser.parse_args()
    rows = sorted((costs_of(run, arguments.shared) for run in arguments.runs), key=lambda row: int(row["particles"]))
    for name, exponent in exponents(rows).items():
        seconds = "".join(f"{row['cpu_s'].get(name, math.nan):9.1f}" for row in rows)
        print(f"{name:12s}{seconds}   exponent {exponent:5.2f}")
    if arguments.json is not None:
        write_rows(arguments.json, machine(torch.get_num_threads()), rows, key=("particles", "box"))
    return 0


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


def exponents(rows: list[dict[str, Any]]) -> dict[str, float]:
    """A of seconds ~ images^a between the two largest runs, for every stage that both have."""
    if len(rows) < 2:
        return {}
    small, large = rows[-2:]
    ratio = math.log(large["particles"] / small["particles"])
    return {
        name: math.log(seconds / small["cpu_s"][name]) / ratio
        for name, seconds in large["cpu_s"].items()
        if name in small["cpu_s"]
    }


if __name__ == "__main__":
    sys.exit(main())
