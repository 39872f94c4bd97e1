"""Score the published recipe (``--recipe cryofire-2022``) in a given time, with controls that tell a slow method from a wrong one.

The recipe learns encoder and decoder together from random weights. The controls learn one of them with the other one known: the
decoder from true poses, and the encoder from a true density.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import call, machine, started, truth_of, use_threads, write_rows
from cryofire.arrays import Coefficients, Latents, Rotations
from cryofire.config import RefineSettings, Settings
from cryofire.data.read import read_particles
from cryofire.geometry.grids import HalfPlane, fourier_shell_correlation
from cryofire.geometry.rotations import geodesic_angle, viewing_angle
from cryofire.inference.consensus import refinement_mask
from cryofire.inference.linear_model import back_project
from cryofire.inference.polish import ImageStates
from cryofire.inference.published_encoder import PointEstimate
from cryofire.inference.symmetrised_loss import misfit, symmetrised_fit
from cryofire.physics.projection import central_sections_reference, spectrum_grid
from cryofire.settings_by_name import changed
from cryofire.training.published import PublishedModel, shell_at, start_model
from cryofire.training.run_folder import RunFolder
from cryofire.training.stages import Prepared, Run, prepare
from cryofire.volumes.halves import solve_halves

HERE = Path(__file__).resolve().parent
SMALL = ["published.channels=16", "published.hidden=128"]
"""A net that fits a processor."""
CONTROL_RATE = 1e-3
"""Learning rate of the controls: they ask whether a half can learn, not how fast the recipe is."""


def main() -> int:
    """Run the recipe and its controls; print and write what they reached."""
    arguments = parser().parse_args()
    use_threads(1)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="cryofire-published-"))
    try:
        particles = arguments.set
        if particles is None:
            particles = folder / "set"
            size = ["--particles", str(arguments.particles), "--seed", str(arguments.seed)]
            call(["simulate", *size, "-o", str(particles)])
        names = [f"seed={arguments.seed}", f"prepare.box={arguments.box}", *SMALL, *arguments.assignments]
        row: dict[str, Any] = {"set": particles.name, "seed": arguments.seed, "box": arguments.box, "settings": names}
        if arguments.seconds:
            row["recipe"] = recipe(particles, folder / "run", [*names, f"published.seconds={arguments.seconds}"])
        if arguments.control_seconds:
            rate = f"published.learning_rate={CONTROL_RATE}"
            row |= controls(particles, folder / "control", [*names, rate], arguments.control_seconds)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(row, indent=1))
    if arguments.json is not None:
        write_rows(arguments.json, machine(1), [row], key=("set", "seed", "box"))
    return 0


def parser() -> argparse.ArgumentParser:
    """Arguments of the script."""
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument("--set", type=Path, help="folder of a simulated set (default: simulate one)")
    result.add_argument("--particles", type=int, default=10_000, help="particles of a new set")
    result.add_argument("--box", type=int, default=32, help="working box")
    result.add_argument("--seed", type=int, default=0, help="seed of set and run")
    result.add_argument("--seconds", type=float, default=1200.0, help="time to learn; 0 leaves the recipe out")
    result.add_argument("--control-seconds", type=float, default=300.0, help="processor time of each control; 0: none")
    result.add_argument("--set-option", action="append", default=[], dest="assignments", help="change a setting")
    result.add_argument("--folder", type=Path, help="keep everything there; a run that it holds is continued")
    result.add_argument("--json", type=Path, help="write the results there")
    return result


def recipe(particles: Path, run: Path, assignments: list[str]) -> dict[str, Any]:
    """Scores and cost of the recipe from the command line."""
    options = [word for one in assignments for word in ("--set", one)]
    call(["reconstruct", str(particles / "particles.star"), "-o", str(run), "--recipe", "cryofire-2022", *options])
    call(["evaluate", str(run), "--truth", str(particles / "truth.star")])
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    stages = RunFolder(run).read_json("stages.json")["stages"]
    learning = next(stage for stage in stages if stage["name"] == "published")
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seen = RunFolder(run).read_json("results.json")["published"]["images"]
    return {
        "wall_s": sum(stage["wall_s"] for stage in stages),
        "cpu_s": sum(stage["cpu_s"] for stage in stages),
        "images": seen,
        "images_per_cpu_s": seen / learning["cpu_s"],
        "misfit": [round(epoch["misfit"], 4) for epoch in epochs],
        "shells": [epoch["shell"] for epoch in epochs],
        "scores": {name: evaluation[name] for name in ("poses", "states", "maps")},
    }


def controls(particles: Path, folder: Path, assignments: list[str], seconds: float) -> dict[str, Any]:
    """Learning one half of the model with the other half known."""
    settings = changed(Settings(), assignments)
    table = read_particles(particles / "particles.star")
    run = started(folder, table, settings)
    prepared = prepare(run)
    truth = truth_of(particles / "truth.star", prepared).poses
    volume = true_density(prepared, truth)
    return {
        "decoder_with_true_poses": learnt_decoder(run, prepared, truth, volume, seconds),
        "encoder_with_true_density": learnt_encoder(run, prepared, truth, volume, seconds),
    }


def true_density(prepared: Prepared, truth: ImageStates) -> Tensor:
    """Density back-projected from all images at their true poses."""
    half, images = torch.arange(len(truth)) % 2, prepared.images
    sums = back_project(images, half, truth, images.plane.max_shell)
    return solve_halves(sums, refinement_mask(prepared.grid.box, RefineSettings()), 0).joint


def learnt_decoder(run: Run, prepared: Prepared, truth: ImageStates, volume: Tensor, seconds: float) -> dict[str, Any]:
    """How well the decoder's density agrees with back-projection after learning from true poses with random conformations."""
    images, settings = prepared.images, run.settings.published
    model = start_model(images, settings, run.settings.seed)
    generator = torch.Generator().manual_seed(run.settings.seed)

    def loss(rows: Tensor, seen: int) -> Tensor:
        latents = torch.randn(len(rows), settings.components, generator=generator)
        estimate = PointEstimate(truth.rotations[rows], truth.shifts_px[rows], latents)
        return misfit(model.field, images.batch(rows, shell), estimate)

    shell = shell_at(sys.maxsize, settings, images.plane.max_shell)
    seen, last = learn(run, model, len(images), loss, seconds)
    fsc = fourier_shell_correlation(model.field.volume(torch.zeros(settings.components)), volume[0])
    return {"images": seen, "cpu_s": seconds, "misfit": last, "fsc": [round(float(one), 3) for one in fsc[: shell + 1]]}


def learnt_encoder(run: Run, prepared: Prepared, truth: ImageStates, volume: Tensor, seconds: float) -> dict[str, Any]:
    """Median pose errors of the encoder after learning by the symmetrised loss with a true density as decoder."""
    images, settings = prepared.images, run.settings.published
    model = start_model(images, settings, run.settings.seed)
    grid = spectrum_grid(volume, images.plane.max_shell)
    largest = images.plane.max_shell

    def density(rotations: Rotations, latents: Latents, plane: HalfPlane) -> Coefficients:
        return central_sections_reference(grid, rotations, plane)[:, 0]

    def loss(rows: Tensor, seen: int) -> Tensor:
        shell = shell_at(seen, settings, largest)
        return symmetrised_fit(model.encoder, density, images.batch(rows, largest), shell).loss

    seen, last = learn(run, model, len(images), loss, seconds)
    with torch.no_grad():
        rows = torch.arange(min(2000, len(images)))
        shell = shell_at(seen, settings, largest)
        found = symmetrised_fit(model.encoder, density, images.batch(rows, largest), shell).estimate
    return {
        "images": seen,
        "cpu_s": seconds,
        "misfit": last,
        "viewing_median_deg": math.degrees(float(viewing_angle(found.rotations, truth.rotations[rows]).median())),
        "rotation_median_deg": math.degrees(float(geodesic_angle(found.rotations, truth.rotations[rows]).median())),
        "shift_squared_median_px": float((found.shifts_px - truth.shifts_px[rows]).square().sum(1).median()),
    }


def learn(
    run: Run, model: PublishedModel, count: int, loss: Callable[[Tensor, int], Tensor], seconds: float
) -> tuple[int, float]:
    """Minimise a loss for some processor time; images presented and the mean loss over the last hundred steps."""
    optimiser = torch.optim.Adam(model.parameters(), run.settings.published.learning_rate)
    generator = torch.Generator().manual_seed(run.settings.seed)
    start, seen, losses = time.process_time(), 0, []
    while True:
        for rows in torch.randperm(count, generator=generator).split(run.settings.published.batch):
            value = loss(rows, seen).mean()
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            losses.append(float(value.detach()))
            seen += len(rows)
            if time.process_time() - start > seconds:
                return seen, float(np.mean(losses[-100:]))


if __name__ == "__main__":
    sys.exit(main())
