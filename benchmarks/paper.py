"""The table of the cryoFIRE paper (NeurIPS 2022): two states of the 80S ribosome, 90 / 10, noise at −10 dB, log-normal defocus.

    python benchmarks/paper.py 50k-128 [--recipe cryofire-2022] [--minutes 30] [--work FOLDER] [--rendered]

A row simulates its images and 10 000 unseen ones, reconstructs, encodes the unseen ones (the published recipe leaves no encoder for
them), and scores all by the definitions of the paper. What is there already is not made again: the same command goes on where it
stopped, also within a run. The paper has the rows 50k-128, 500k-128 and 5M-128; those at box 64 are the same molecule at half the
sampling, for machines without a GPU.

Where the images and their cache of coefficients would not fit on the disk (5M-128: 330 GB), or with ``--rendered``, the images are
made when the run reads them, once, and only the cache lies on the disk.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common import add_piece_options, call_for, costs_of, environment, machine, started, use_threads, write_rows
from cryofire.analysis.evaluate import evaluate_estimates, evaluate_run
from cryofire.api import Reconstruction
from cryofire.config import PUBLISHED, RECIPES, Settings
from cryofire.data.read import read_particles
from cryofire.physics.devices import accelerator_name
from cryofire.settings_by_name import changed
from cryofire.simulation import particles as simulation
from cryofire.simulation.images import RenderedStack, simulated_images
from cryofire.simulation.settings import SimulationSettings
from cryofire.training.pipeline import run_all
from cryofire.training.run_folder import RunFolder
from oracle import oracle_scores

FIELD_OF_VIEW = 128 * 3.77
"""Å."""
UNSEEN = 10_000
UNSEEN_SEED = 1000
POLISH = 2
KEY = ("row", "recipe", "seed", "gpu")


@dataclass(frozen=True)
class PaperRow:
    """Images of a row."""

    particles: int
    box: int

    @property
    def image_gb(self) -> float:
        """Of the images as float16, and of the cache of coefficients as well."""
        return 2e-9 * (self.particles + UNSEEN) * self.box**2

    def settings(self, seed: int) -> SimulationSettings:
        """How the set is simulated."""
        return SimulationSettings(
            particles=self.particles, seed=seed, box=self.box, pixel_size=FIELD_OF_VIEW / self.box,
            snr=0.1, snr_pixel_size=FIELD_OF_VIEW / 128,
        )  # fmt: skip


SHORT = {"2k-64": PaperRow(2_000, 64)}
"""For a quick look; not in the documentation."""
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
    use_threads(arguments.threads)
    wanted = {**SHORT, **ROWS}[arguments.row]
    folder = arguments.work / f"{arguments.row}-{arguments.seed}"
    run = folder / arguments.recipe
    if arguments.reconstruct_only:
        reconstruct_rendered(folder / "set", run, wanted.settings(arguments.seed), arguments)
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * arguments.minutes
    try:
        if not (folder / "set" / "truth.star").exists():
            free = shutil.disk_usage(folder).free / 1e9
            if free < wanted.image_gb:
                print(f"{folder} has {free:.0f} GB free; this row needs {wanted.image_gb:.0f} GB: see --work")
                return 1
            is_rendered = arguments.rendered or free < 2 * wanted.image_gb
            simulate(wanted.settings(arguments.seed), folder / "set", with_images=not is_rendered)
        if not (folder / "unseen" / "truth.star").exists():
            simulate(PaperRow(UNSEEN, wanted.box).settings(arguments.seed + UNSEEN_SEED), folder / "unseen")
        reconstruct(folder / "set", run, arguments, end - time.monotonic())
    except subprocess.TimeoutExpired:
        print("the time is used up: the same command goes on")
        return 0
    row = {
        "row": arguments.row, "recipe": arguments.recipe, "seed": arguments.seed, "settings": arguments.assignments,
        "particles": wanted.particles, "box": wanted.box, "gpu": accelerator_name() is not None, "machine_shared": arguments.shared,
        **scored(run, folder), "unseen": unseen(run, folder / "unseen") if arguments.recipe != PUBLISHED else [],
    }  # fmt: skip
    print(json.dumps(row, indent=1))
    write_rows(arguments.json, machine(arguments.threads), [row], key=KEY)
    return 0


def parser() -> argparse.ArgumentParser:
    """Command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("row", choices=[*SHORT, *ROWS], help="number of images and box")
    result.add_argument("--recipe", default=RECIPES[0], choices=RECIPES)
    result.add_argument(
        "--set-option", action="append", default=[], dest="assignments", help="change a setting of the run"
    )
    result.add_argument("--seed", type=int, default=0, help="seed of set and run")
    result.add_argument("--rendered", action="store_true", help="make the images when they are read")
    result.add_argument("--reconstruct-only", action="store_true", help=argparse.SUPPRESS)
    add_piece_options(result, "paper", "stop the run after so long; it can be continued")
    return result


def simulate(settings: SimulationSettings, folder: Path, with_images: bool = True) -> None:
    """Write a set of the paper, in place of one that was not finished."""
    simulation.simulate(settings, folder, is_overwriting=True, with_images=with_images)


def reconstruct(folder: Path, run: Path, arguments: argparse.Namespace, seconds: float) -> None:
    """Reconstruct a set in a process of its own; raises `subprocess.TimeoutExpired` when the time was not enough."""
    if has_images(folder):
        words = ["--recipe", arguments.recipe, "--seed", str(arguments.seed)]
        words += [word for one in arguments.assignments for word in ("--set", one)]
        call_for(["reconstruct", str(folder / "particles.star"), "-o", str(run), *words], seconds, arguments.threads)
    else:
        words = [sys.executable, __file__, *sys.argv[1:], "--reconstruct-only"]
        subprocess.run(words, check=True, timeout=max(seconds, 1.0), env=environment(arguments.threads))


def has_images(folder: Path) -> bool:
    """Whether the stack of a set lies on the disk, or is a file with a hole where the images would be."""
    found = (folder / "particles.mrcs").stat()
    return found.st_blocks * 512 > found.st_size // 2


def reconstruct_rendered(folder: Path, run: Path, simulated: SimulationSettings, arguments: argparse.Namespace) -> None:
    """Reconstruct a set whose images are made when they are read."""
    source = simulated_images(simulated)
    table = replace(read_particles(folder / "particles.star"), opener=lambda path: RenderedStack(path, source))
    settings = changed(Settings(), [f"recipe={arguments.recipe}", f"seed={arguments.seed}", *arguments.assignments])
    run_all(started(run, table, settings))


def scored(run: Path, folder: Path) -> dict[str, Any]:
    """Scores of the learnt images, their oracle, and the cost."""
    truth = folder / "set" / "truth.star"
    evaluation = evaluate_run(run, truth)
    costs = costs_of(run)
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
