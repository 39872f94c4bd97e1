"""Exhaustive pose assignment of every image against one map, followed by a local polish of the best modes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryofire.arrays import Rotations, Shifts, Volume
from cryofire.geometry.rotations import geodesic_angle
from cryofire.geometry.so3_grid import super_fibonacci_rotations
from cryofire.inference.polish import ImageStates, Polished, Priors, polish
from cryofire.inference.search import CHUNK, pose_likelihoods
from cryofire.physics.imaging import ImageBatch, WhitenedImages, batches
from cryofire.physics.projection import SpectrumGrid, central_sections, spectrum_grid

SEPARATION = math.radians(30.0)
"""Two modes count as different when their rotations differ by more than this: twice the grid spacing."""


@dataclass(frozen=True)
class Assignment:
    """States of all images, and by how much the best mode beats the next in log-posterior."""

    states: ImageStates
    margin: Float[Tensor, " particle"]


def assign_poses(
    images: WhitenedImages,
    volume: Volume,
    max_shell: int,
    centres_px: Shifts,
    shifts_px: Shifts,
    rotations: int,
    advance: Callable[[int], None],
) -> Assignment:
    """Best pose of every image by exhaustive search at `max_shell`, two modes polished by three Gauss–Newton steps each.

    Cost: particles × shifts × rotations × 4 coefficients floating-point operations, as one matrix product.
    """
    grid = spectrum_grid(volume[None], max_shell)
    candidates = super_fibonacci_rotations(rotations)
    sections = central_sections(grid, candidates, images.plane.truncated(max_shell))[:, 0]
    states, margin = empty_states(len(images)), torch.zeros(len(images))
    for rows in batches(torch.arange(len(images)), CHUNK):
        batch = images.batch(rows, max_shell)
        modes = best_modes(batch, centres_px[rows], shifts_px, sections, candidates)
        first, second = (polish_centred(batch, grid, mode, centres_px[rows]) for mode in modes)
        lead = second.expansion.value - first.expansion.value
        states.put(rows, first.states.where(lead >= 0, second.states))
        margin[rows] = lead.abs()
        advance(len(rows))
    return Assignment(states, margin)


def best_modes(
    batch: ImageBatch, centres_px: Shifts, shifts_px: Shifts, sections: Tensor, candidates: Rotations
) -> tuple[ImageStates, ImageStates]:
    """The best pose of each image on the grid, and the best one whose rotation is far from it."""
    table, power, _ = pose_likelihoods(batch, centres_px, shifts_px, sections)
    value, shift = table.max(1)
    ranked = (value - power).topk(24).indices
    distance = geodesic_angle(candidates[ranked], candidates[ranked[:, :1]])
    other = ranked.gather(1, (distance > SEPARATION).int().argmax(1, keepdim=True))
    first, second = (_states_at(pick, shift, centres_px, shifts_px, candidates) for pick in (ranked[:, :1], other))
    return first, second


def polish_centred(batch: ImageBatch, grid: SpectrumGrid, states: ImageStates, centres_px: Shifts) -> Polished:
    """Three steps from a grid pose, with a broad prior on the shift about the image's own centre."""
    priors = Priors(shift_std_px=0.05 * batch.plane.box, contrast_std=0.1, latent_variance=torch.zeros(0))
    return polish(batch, grid, states, priors.about(centres_px), steps=3)


def empty_states(count: int, components: int = 0) -> ImageStates:
    """Identity poses, unit contrast, zero latents."""
    return ImageStates(
        torch.eye(3).repeat(count, 1, 1), torch.zeros(count, 2), torch.ones(count), torch.zeros(count, components)
    )


def _states_at(
    pick: Tensor, shift: Tensor, centres_px: Shifts, shifts_px: Shifts, candidates: Rotations
) -> ImageStates:
    count = pick.shape[0]
    moved = centres_px + shifts_px[shift.gather(1, pick)[:, 0]]
    return ImageStates(candidates[pick[:, 0]], moved, torch.ones(count), torch.zeros(count, 0))
