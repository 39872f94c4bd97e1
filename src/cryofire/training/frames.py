"""The frames stage: every conformation in the frame of the largest, and for a motion the components that its path needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import make_interp_spline
from torch import Tensor

from cryofire.analysis.latent_space import LatentDescription, LatentPath, describe_latent_space
from cryofire.arrays import Volume
from cryofire.geometry.rotations import rotation_from_vector, vector_from_rotation
from cryofire.inference.consensus import Refinement, refinement_mask
from cryofire.inference.frames import core_fits, group_maps, turned
from cryofire.inference.linear_model import back_project
from cryofire.inference.polish import LATENT
from cryofire.inference.subspace import PosedImages, SubspaceStep, open_along_path
from cryofire.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    refinement_beside,
    refinement_within,
    save_checkpoint,
)
from cryofire.training.progress import measured_stage
from cryofire.training.stages import Prepared, Run, held, refined_in_passes
from cryofire.volumes.halves import solve_halves
from cryofire.volumes.rigid_core import CoreFit

FRAMES = "frames"
"""Name of the stage's checkpoint, and in it of what it says of the frames."""


def in_one_frame(run: Run, prepared: Prepared, latents: Refinement) -> Refinement:
    """The refinement with as little matter moving as possible; poses and components of a continuous motion refined again."""
    if latents.states.latents.shape[1] == 0:
        return latents
    path = run.folder.checkpoint(FRAMES)
    if not path.exists():
        with measured_stage(run.folder, FRAMES):
            save_checkpoint(path, _turned(run, prepared, latents))
    found = refinement_within(load_checkpoint(path), prepared.images)
    if found.settled:
        return found
    settings = replace(run.settings.refine, passes=run.settings.subspace.path_refine_passes, shells_per_pass=6)
    return refined_in_passes(run, prepared, "motion", lambda: found, settings, joint=False)


def latent_description(run: Run, refinement: Refinement) -> LatentDescription:
    """What the latent space of a refinement holds."""
    latents = refinement.states.latents.numpy().astype(np.float64)
    deviations = refinement.deviations[:, LATENT:].numpy().astype(np.float64)
    return describe_latent_space(latents, deviations, path_points=run.settings.states.path_points)


def _turned(run: Run, prepared: Prepared, latents: Refinement) -> Checkpoint:
    """Checkpoint of the refinement in one frame, settled where nothing but the frame changed, and how far that was."""
    found = latent_description(run, latents)
    is_held = held(run.settings) is not None
    if len(found.centers) < 2 or (is_held and found.path is None):
        return _checkpoint(replace(latents, settled=True), ())
    mask = refinement_mask(prepared.grid.box, run.settings.refine)
    fits: Sequence[CoreFit] = [] if is_held else _core_fits(run, prepared, latents, found, mask)
    states = latents.states if is_held else turned(latents.states, *interpolated_transforms(found, fits))
    if found.path is not None:
        return _checkpoint(_along_path(run, prepared, replace(latents, states=states), found.path, mask), fits)
    limit = min(run.settings.refine.seen(latents.shell), latents.images.plane.max_shell)
    sums = back_project(latents.images, prepared.half, states, limit, spread=latents.deviations[:, LATENT:])
    model = replace(latents.model, maps=solve_halves(sums, mask, 0))
    return _checkpoint(replace(latents, states=states, model=model, settled=True), fits)


def _core_fits(
    run: Run, prepared: Prepared, latents: Refinement, found: LatentDescription, mask: Volume
) -> Sequence[CoreFit]:
    """How each state is laid on the largest one."""
    groups = [torch.from_numpy(np.flatnonzero(found.labels == label)) for label in range(len(found.centers))]
    run.progress.start("frames", len(prepared.images))
    maps = group_maps(latents, prepared.half, groups, mask)
    run.progress.advance(len(prepared.images))
    fits = core_fits(maps, int(np.argmax(found.weights)), mask)
    run.progress.finish()
    _report(run, prepared, fits)
    return fits


def _checkpoint(refinement: Refinement, fits: Sequence[CoreFit]) -> Checkpoint:
    turn = max((math.degrees(fit.angle) for fit in fits), default=0.0)
    core = min((fit.share for fit in fits), default=1.0)
    return refinement_beside(refinement, {FRAMES: {"turn_deg": turn, "core": core}})


def _report(run: Run, prepared: Prepared, fits: Sequence[CoreFit]) -> None:
    for number, fit in enumerate(fits, start=1):
        values = {
            "state": number, "turn_deg": math.degrees(fit.angle),
            "move_A": float(fit.offset_px.norm()) * prepared.grid.pixel_size, "core": fit.share,
        }  # fmt: skip
        run.folder.append_metrics({"stage": "frames", **values})
    most = max(math.degrees(fit.angle) for fit in fits)
    run.say(f"frames: conformations turned by up to {most:.1f}° to lie on the largest one by what does not move")


def interpolated_transforms(
    found: LatentDescription, fits: Sequence[CoreFit]
) -> tuple[Float[Tensor, "particle 3 3"], Float[Tensor, "particle 3"]]:
    """Change of frame for each particle: that of its state, or interpolated along a path between the middles of the stations."""
    turns = torch.cat([vector_from_rotation(fit.rotation[None]) for fit in fits]).numpy()
    moves = torch.stack([fit.offset_px for fit in fits]).numpy()
    values = np.concatenate([turns, moves], axis=1)
    each = values[found.labels] if found.path is None else _along(found, found.path, values)
    changes = torch.from_numpy(each).float()
    return rotation_from_vector(changes[:, :3]), changes[:, 3:]


def _along(
    found: LatentDescription, path: LatentPath, values: Float[np.ndarray, "station value"]
) -> Float[np.ndarray, "particle value"]:
    """Values of the stations between their middles, and on in the same direction beyond the first and the last."""
    positions = path.placed()
    middle = np.array([positions[found.labels == label].mean() for label in range(len(values))])
    if path.is_closed:
        return np.stack([np.interp(positions, middle, column, period=1.0) for column in values.T], axis=1)
    return np.asarray(make_interp_spline(middle, values, k=1)(positions))


def _along_path(run: Run, prepared: Prepared, turned_back: Refinement, path: LatentPath, mask: Volume) -> Refinement:
    """The refinement with components started along the path of a motion."""
    settings = run.settings.subspace
    run.progress.start("motion", settings.path_passes)

    def report(step: SubspaceStep) -> None:
        run.folder.append_metrics({"stage": "frames", **asdict(step)})
        run.progress.advance(1)

    position = torch.from_numpy(path.placed())
    posed = PosedImages(turned_back.images, prepared.half, turned_back.states, turned_back.model, mask, settings)
    opened, states = open_along_path(posed, position, path.is_closed, report)
    run.progress.finish()
    evidence = ", ".join(f"{value:.2f}" for value in opened.evidence.tolist())
    run.say(f"motion: {states.latents.shape[1]} components along the path; held-out evidence with 0, 1, …: {evidence}")
    shell = min(turned_back.shell, round(settings.shell_fraction * turned_back.images.plane.max_shell))
    return replace(turned_back, states=states, model=opened.model, shell=shell, passes=0, settled=False)
