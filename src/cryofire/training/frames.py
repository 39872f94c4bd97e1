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
from cryofire.inference.consensus import Refinement, outline_mask, seen_shell
from cryofire.inference.frames import core_fits, group_maps, turned
from cryofire.inference.linear_model import back_project
from cryofire.inference.polish import LATENT, ImageStates
from cryofire.inference.prepare import evenly_chosen
from cryofire.inference.subspace import PosedImages, SubspaceStep, open_along_path
from cryofire.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    refinement_beside,
    refinement_checkpoint,
    refinement_from,
    refinement_within,
    save_checkpoint,
)
from cryofire.training.progress import measured_stage
from cryofire.training.stages import Prepared, Run, held, refined_in_passes
from cryofire.volumes.halves import solve_halves
from cryofire.volumes.rigid_core import CoreFit

FRAMES, FRAMES_OF_ALL = "frames", "frames_all"
"""Names of the stage for the images that the latent space was found from, and for all; the first in its checkpoint, too, of what it
says of the frames."""
ALIKE_PX = 0.05
"""Frames are the same where no voxel of the particle moves further than this: maps made again would not differ."""


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


def all_in_one_frame(run: Run, prepared: Prepared, halves: Refinement) -> Refinement:
    """The refinement of all images, most of which got their poses from the encoder, with as little matter moving as possible.

    An encoder that is not sure of a conformation leans towards the mean of all, in its pose as well as in its latent: frames that
    were laid on each other come apart, and passes against maps of such poses keep a part of that.
    """
    if halves.states.latents.shape[1] == 0 or held(run.settings) is not None:
        return halves
    path = run.folder.checkpoint(FRAMES_OF_ALL)
    if not path.exists():
        with measured_stage(run.folder, FRAMES_OF_ALL):
            save_checkpoint(path, refinement_checkpoint(_laid_again(run, prepared, halves)))
    return refinement_from(load_checkpoint(path), prepared.images)


def _laid_again(run: Run, prepared: Prepared, halves: Refinement) -> Refinement:
    found = latent_description(run, halves)
    if len(found.centers) < 2:
        return halves
    mask = outline_mask(halves.model, run.settings.refine)
    fits = _core_fits(run, prepared, halves, found, mask)
    radius = run.settings.refine.mask_radius * prepared.grid.box
    if max(fit.most_px(radius) for fit in fits) < ALIKE_PX:
        return halves
    return _with_maps_at(run, prepared, halves, turned(halves.states, *interpolated_transforms(found, fits)), mask)


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
    mask = outline_mask(latents.model, run.settings.refine)
    fits: Sequence[CoreFit] = [] if is_held else _core_fits(run, prepared, latents, found, mask)
    states = latents.states if is_held else turned(latents.states, *interpolated_transforms(found, fits))
    if found.path is not None:
        return _checkpoint(_along_path(run, prepared, replace(latents, states=states), found.path, mask), fits)
    return _checkpoint(replace(_with_maps_at(run, prepared, latents, states, mask), settled=True), fits)


def _with_maps_at(
    run: Run, prepared: Prepared, refinement: Refinement, states: ImageStates, mask: Volume
) -> Refinement:
    """The refinement at other poses, its maps made from them."""
    limit = seen_shell(refinement.images, refinement.shell, run.settings.refine)
    spread = refinement.deviations[:, LATENT:]
    sums = back_project(refinement.images, prepared.half, states, limit, spread=spread)
    return replace(refinement, states=states, model=replace(refinement.model, maps=solve_halves(sums, mask, 0)))


def _core_fits(
    run: Run, prepared: Prepared, latents: Refinement, found: LatentDescription, mask: Volume
) -> Sequence[CoreFit]:
    """How each state is laid on the largest one: by maps of as many images as the latent space is found from."""
    members = [np.flatnonzero(found.labels == label) for label in range(len(found.centers))]
    groups = [torch.from_numpy(evenly_chosen(rows, run.settings.refine.images)) for rows in members]
    run.progress.start("frames", len(prepared.images))
    limit = seen_shell(latents.images, latents.shell, run.settings.refine)
    maps = group_maps(latents, prepared.half, groups, mask, limit)
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
            "state": number, "images": len(prepared.rows), "turn_deg": math.degrees(fit.angle),
            "move_A": float(fit.offset_px.norm()) * prepared.grid.pixel_size, "core": fit.share,
        }  # fmt: skip
        run.folder.append_metrics({"stage": "frames", **values})
    most = max(math.degrees(fit.angle) for fit in fits)
    run.say(
        f"frames: conformations of {len(prepared.rows)} images turned by up to {most:.1f}° to lie on the largest one by what "
        "does not move"
    )


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
    shell = settings.limit(turned_back.shell, turned_back.images.plane.max_shell)
    posed = PosedImages(turned_back.images, prepared.half, turned_back.states, turned_back.model, mask, shell, settings)
    opened, states = open_along_path(posed, position, path.is_closed, report)
    run.progress.finish()
    evidence = ", ".join(f"{value:.2f}" for value in opened.evidence.tolist())
    run.say(f"motion: {states.latents.shape[1]} components along the path; held-out evidence with 0, 1, …: {evidence}")
    return replace(turned_back, states=states, model=opened.model, shell=shell, passes=0, settled=False)
