"""The table of the cryoFIRE paper (NeurIPS 2022): two states of the 80S ribosome, 90 / 10, noise at −10 dB, log-normal defocus.

    python benchmarks/paper.py 50k-128 [--recipe cryofire-2022] [--minutes 30] [--work FOLDER]

A row simulates its images and 10 000 unseen ones, reconstructs, encodes the unseen ones (the published recipe leaves no encoder for
them), and scores all by the definitions of the paper. What is there already is not made again: the same command goes on where it
stopped, also within a run. The paper has the rows 50k-128, 500k-128 and 5M-128; those at box 64 are the same molecule at half the
sampling, for machines without a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import add_piece_options, call, call_for, machine, write_rows
from cryofire.analysis.evaluate import evaluate_estimates, evaluate_run
from cryofire.api import Reconstruction
from cryofire.config import PUBLISHED
from cryofire.training.progress import stage_costs
from cryofire.training.run_folder import RunFolder
from oracle import oracle_scores

FIELD_OF_VIEW = 128 * 3.77
"""Å."""
UNSEEN = 10_000
UNSEEN_SEED = 1000
POLISH = 2
DEFAULT = "default"
KEY = ("row", "recipe", "seed")


@dataclass(frozen=True)
class PaperRow:
    """Images of a row."""

    particles: int
    box: int

    @property
    def gigabytes(self) -> float:
        """Of its images on disk as float16, and as much again for the cache of coefficients."""
        return 2 * 2e-9 * (self.particles + UNSEEN) * self.box**2


ROWS = {
    "10k-64": PaperRow(10_000, 64),
    "50k-64": PaperRow(50_000, 64),
    "50k-128": PaperRow(50_000, 128),
    "500k-128": PaperRow(500_000, 128),
    "5M-128": PaperRow(5_000_000, 128),
}


def main() -> int:
    """Make one row."""
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)
    wanted = ROWS[arguments.row]
    folder = arguments.work / f"{arguments.row}-{arguments.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free / 1e9
    if not (folder / "set" / "truth.star").exists() and free < wanted.gigabytes:
        print(
            f"{folder} has {free:.0f} GB free; this row needs {wanted.gigabytes:.0f} GB: name another folder with --work"
        )
        return 1
    end = time.monotonic() + 60 * arguments.minutes
    run = folder / arguments.recipe
    try:
        simulate(folder / "set", wanted.particles, wanted.box, arguments.seed)
        simulate(folder / "unseen", UNSEEN, wanted.box, arguments.seed + UNSEEN_SEED)
        words = ["--recipe", arguments.recipe, "--seed", str(arguments.seed)]
        words += [word for one in arguments.assignments for word in ("--set", one)]
        call_for(
            ["reconstruct", str(folder / "set" / "particles.star"), "-o", str(run), *words], end - time.monotonic()
        )
    except subprocess.TimeoutExpired:
        print("the time is used up: the same command goes on")
        return 0
    row = {
        "row": arguments.row, "recipe": arguments.recipe, "seed": arguments.seed, "settings": arguments.assignments,
        "particles": wanted.particles, "box": wanted.box, "machine_shared": arguments.shared,
        **scored(run, folder), "unseen": unseen(run, folder / "unseen") if arguments.recipe == DEFAULT else [],
    }  # fmt: skip
    print(json.dumps(row, indent=1))
    write_rows(arguments.json, machine(arguments.threads, gpu=arguments.recipe == PUBLISHED), [row], key=KEY)
    return 0


def parser() -> argparse.ArgumentParser:
    """Command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("row", choices=list(ROWS), help="number of images and box")
    result.add_argument("--recipe", default=DEFAULT, choices=[DEFAULT, PUBLISHED])
    result.add_argument(
        "--set-option", action="append", default=[], dest="assignments", help="change a setting of the run"
    )
    result.add_argument("--seed", type=int, default=0, help="seed of set and run")
    add_piece_options(result, "paper", "stop the run after so long; it can be continued")
    return result


def simulate(folder: Path, particles: int, box: int, seed: int) -> None:
    """Write a set of the paper unless it is there."""
    if (folder / "truth.star").exists():
        return
    call([
        "simulate", "--particles", str(particles), "--box", str(box), "--pixel-size", f"{FIELD_OF_VIEW / box:.6g}",
        "--snr", "0.1", "--snr-pixel-size", f"{FIELD_OF_VIEW / 128:.6g}", "--seed", str(seed), "-o", str(folder), "--overwrite",
    ])  # fmt: skip


def scored(run: Path, folder: Path) -> dict[str, Any]:
    """Scores of the learnt images, their oracle, and the cost."""
    truth = folder / "set" / "truth.star"
    evaluation = evaluate_run(run, truth)
    costs = stage_costs(RunFolder(run))
    pixel = Reconstruction.load(run).model.grid.pixel_size
    resolution = {}
    for name in ("state0.mrc", "state1.mrc"):
        found = [one.resolution_half for one in evaluation.maps if one.truth == name and one.kind == "map"]
        resolution[name] = min(found) / pixel if found and math.isfinite(min(found)) else None
    oracle = oracle_scores(run, truth)
    reached = {name: value / pixel for name, value in oracle.pop("oracle_resolution_at_half").items()}
    return {
        "rotation": [evaluation.poses.direction_median_deg, evaluation.poses.direction_mean_deg],
        "translation": [evaluation.poses.shift_median_px2, evaluation.poses.shift_mean_px2],
        "confusion": evaluation.states.confusion_threshold,
        "confusion_unsupervised": evaluation.states.confusion_mixture,
        "resolution_px": resolution, "oracle_resolution_px": reached, **oracle,
        "published": RunFolder(run).read_json("results.json").get("published"),
        "wall_s": sum(cost.wall_s for cost in costs), "cpu_s": sum(cost.cpu_s for cost in costs),
        "peak_memory_gb": max(cost.peak_memory_bytes for cost in costs) / 1e9,
    }  # fmt: skip


def unseen(run: Path, folder: Path) -> list[dict[str, Any]]:
    """Scores of images the run has not seen, from the encoder alone and after a short polish."""
    made = Reconstruction.load(run)
    rows = []
    for polish in (0, POLISH):
        start = time.perf_counter()
        estimates = made.encode(folder / "particles.star", polish)
        wall = time.perf_counter() - start
        evaluation = evaluate_estimates(estimates, folder / "truth.star", run.name)
        rows.append({
            "polish": polish, "wall_s": wall, "particles": int(np.sum(estimates.used)),
            "rotation": [evaluation.poses.direction_median_deg, evaluation.poses.direction_mean_deg],
            "translation": [evaluation.poses.shift_median_px2, evaluation.poses.shift_mean_px2],
            "confusion": evaluation.states.confusion_threshold,
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    sys.exit(main())
