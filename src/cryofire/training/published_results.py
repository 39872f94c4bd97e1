"""What the published recipe leaves: the same files as the default, at the poses and conformations its encoder predicts.

The published method states no uncertainties and makes no half maps. So that its results can be read and scored as any other's, maps
and their halves are back-projected at its poses, and uncertainties are those of the likelihood there; decoded maps come from its
decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryofire.arrays import Volume
from cryofire.formats.mrc import write_map
from cryofire.inference.consensus import NOISE_SAMPLE, Refinement, refinement_mask
from cryofire.inference.linear_model import LinearModel, PassPlan, back_project, residual_variance, run_pass
from cryofire.inference.polish import ImageStates, Priors
from cryofire.inference.symmetrised_loss import symmetrised_fit
from cryofire.physics.imaging import WhitenedImages, batches
from cryofire.training.checkpoint import load_checkpoint, refinement_checkpoint, refinement_from, save_checkpoint
from cryofire.training.progress import measured_stage
from cryofire.training.published import Position, PublishedModel, learn_published
from cryofire.training.results import write_results
from cryofire.training.stages import Prepared, Run
from cryofire.volumes.halves import solve_halves

ENCODED = 256
"""Images encoded at once."""
WIDEST = math.pi / math.sqrt(3)
"""A tangent coordinate of a rotation of which nothing is known has about this deviation; the Laplace estimate may exceed it."""


def run_published(run: Run, prepared: Prepared) -> None:
    """Learn by the published recipe, encode every image, write the results."""
    model, position = learn_published(run, prepared)
    path = run.folder.checkpoint("polish")
    if not path.exists():
        with measured_stage(run.folder, "encode"):
            run.progress.start("encode", 2 * len(prepared.images))
            shell = max(position.shell, 1)
            states = encode_all(prepared.images, model, shell, run.progress.advance)
            save_checkpoint(path, refinement_checkpoint(refinement_at(run, prepared, states, shell)))
            run.progress.finish()
    final = refinement_from(load_checkpoint(path), prepared.images)
    write_results(run, prepared, final, final)
    write_decoded(run, model, position, prepared.grid.pixel_size)


def encode_all(
    images: WhitenedImages, model: PublishedModel, shell: int, advance: Callable[[int], None]
) -> ImageStates:
    """Pose and conformation of every image: of the one of its two copies that the decoder explains better up to a shell."""
    states = ImageStates(
        torch.empty(len(images), 3, 3),
        torch.empty(len(images), 2),
        torch.ones(len(images)),
        torch.empty(len(images), model.field.shape.components),
    )
    for rows in batches(torch.arange(len(images)), ENCODED):
        batch = images.batch(rows, images.plane.max_shell, model.device)
        with torch.no_grad():
            found = symmetrised_fit(model.encoder, model.field, batch, shell).estimate
        here = ImageStates(found.rotations.cpu(), found.shifts_px.cpu(), torch.ones(len(rows)), found.latents.cpu())
        states.put(rows, here)
        advance(len(rows))
    return states


def refinement_at(run: Run, prepared: Prepared, states: ImageStates, shell: int) -> Refinement:
    """Linear model back-projected at given poses and conformations, and the likelihood's width about them; nothing moves."""
    images, half = prepared.images, prepared.half
    mask = refinement_mask(prepared.grid.box, run.settings.refine)
    maps = solve_halves(back_project(images, half, states, images.plane.max_shell), mask, 0)
    spread = float(states.shifts_px.square().mean().sqrt()) + 0.1
    priors = Priors(spread, 0.1, states.latents.var(0).clamp_min(1e-6))
    model = LinearModel(maps, priors)
    sample = torch.arange(0, len(images), max(len(images) // NOISE_SAMPLE, 1))
    images = images.with_noise(residual_variance(images, states, model, sample))
    plan = PassPlan(shell, shell, steps=0, joint=True)
    result = run_pass(images, half, states, model, plan, run.progress.advance)
    deviations = result.deviations.clone()
    deviations[:, :3].clamp_(max=WIDEST)
    return Refinement(images, states, model, shell, deviations, result.misfit, 0.0, 0.0, passes=1, settled=True)


def write_decoded(run: Run, model: PublishedModel, position: Position, pixel_size: float) -> None:
    """Write the decoded maps of all states and path frames from the decoder itself; say in results.json what made them."""
    results = run.folder.read_json("results.json")

    def decoded(latent: list[float]) -> np.ndarray:
        return _decoded(model, torch.tensor(latent))

    states = results["states"]
    for state in states:
        write_map(run.folder.path / state["decoded"], decoded(state["latent_center"]), pixel_size)
    middle = torch.from_numpy(_latents(run)).mean(0).tolist()
    write_map(run.folder.path / results["consensus"]["decoded"], decoded(middle), pixel_size)
    for frame in (results.get("path") or {}).get("frames", []):
        write_map(run.folder.path / frame["map"], decoded(frame["latent"]), pixel_size)
    everything: list[dict[str, Any]] = [results["consensus"], *states]
    for record in everything:
        record["shared_shell"] = results["max_shell"]  # one model gave the poses of both halves
    loss = position.loss if math.isfinite(position.loss) else None
    learnt = {"epochs": position.epoch, "images": position.seen, "misfit": loss, "shell": position.shell}
    run.folder.write_json("results.json", {**results, "recipe": run.settings.recipe, "published": learnt})


def _latents(run: Run) -> Float[np.ndarray, "particle component"]:
    with np.load(run.folder.path / "latents.npz") as archive:
        latents: np.ndarray = archive["latents"]
    return latents[np.isfinite(latents).all(1)]


def _decoded(model: PublishedModel, latent: Tensor) -> np.ndarray:
    volume: Volume = model.field.volume(latent.to(model.field.positions))
    return np.asarray(volume.cpu().numpy())
