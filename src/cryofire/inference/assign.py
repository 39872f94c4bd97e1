"""Exhaustive pose assignment of every image against one map, followed by a local polish of the best modes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryofire.arrays import Rotations, Shifts, Volume
from cryofire.geometry.grids import HalfPlane
from cryofire.geometry.so3_grid import super_fibonacci_rotations
from cryofire.inference.polish import ImageStates, Polished, Priors, best_contrast, polish
from cryofire.inference.search import CHUNK, pose_likelihoods
from cryofire.inference.shift_grid import ShiftGrid
from cryofire.physics.imaging import ImageBatch, WhitenedImages, batches
from cryofire.physics.projection import SpectrumGrid, central_sections, spectrum_grid
from cryofire.physics.shift import shifted

SEPARATION = math.radians(30.0)
"""The two modes of an assignment differ in rotation by more than this: twice the grid spacing."""
CONTRAST_STD = 0.2
"""Of an image whose contrast nothing is known of yet, about 1: an image of little contrast would look like the weakest section."""


@dataclass(frozen=True)
class Assignment:
    """States of all images, and by how much the best mode beats the next in log-posterior."""

    states: ImageStates
    margin: Float[Tensor, " particle"]

    @classmethod
    def certain(cls, states: ImageStates) -> Assignment:
        """States that have no rivals."""
        return cls(states, torch.full((len(states),), math.inf))

    def take(self, rows: Int[Tensor, " row"]) -> Assignment:
        """The same for some of the images."""
        return Assignment(self.states.take(rows), self.margin[rows])


@dataclass(frozen=True)
class PoseGrid:
    """A map seen from every rotation of a grid, for comparison with images.

    Attributes
    ----------
    candidates : Float[Tensor, "rotation 3 3"]
    sections : Complex[Tensor, "rotation coefficient"]
        Moved such that the aim of the map lies on the image centre.
    aim_px : Float[Tensor, "3"]
        Point of the map on which the images are centred, in pixels from its middle.
    """

    candidates: Rotations
    sections: Complex[Tensor, "rotation coefficient"]
    aim_px: Float[Tensor, 3]

    @classmethod
    def of(
        cls, grid: SpectrumGrid, plane: HalfPlane, rotations: int, aim_px: Float[Tensor, 3] | None = None
    ) -> PoseGrid:
        """The sections of the first map of a spectrum grid at `rotations` quasi-uniform rotations."""
        candidates = super_fibonacci_rotations(rotations)
        sections = central_sections(grid, candidates, plane)[:, 0]
        if aim_px is None:
            return cls(candidates, sections, torch.zeros(3))
        moved = shifted(sections, -(candidates[:, :2] @ aim_px), plane.frequencies, plane.box)
        return cls(candidates, moved, aim_px)

    def modes(
        self, batch: ImageBatch, centres_px: Shifts, shifts: ShiftGrid, count: int, separation: float
    ) -> list[ImageStates]:
        """The likeliest poses of each image whose rotations differ by more than `separation` radians, best first.

        Each has the contrast that suits the image best. With x = Re⟨Y, S⟩, D = Σ C²|S|² and the prior precision 2p, the
        log-posterior 2 a x - a² D - p (a - 1)² is largest at a = (x + p) / (D + p), where it is (x + p)² / (D + p) - p.

        Cost: particles × shifts × rotations × 4 coefficients floating-point operations, as one matrix product.
        """
        table, power, _ = pose_likelihoods(batch, centres_px, shifts, self.sections)
        doubled, shift = table.max(1)
        overlap, prior = 0.5 * doubled, 0.5 * CONTRAST_STD**-2
        score = (overlap + prior).clamp_min_(0).square() / (power + prior)
        flat, found = self.candidates.flatten(1), []
        for _ in range(count):
            best = score.argmax(1, keepdim=True)
            contrast = best_contrast(overlap.gather(1, best), power.gather(1, best), CONTRAST_STD)[:, 0]
            aims = centres_px + shifts.shifts_px[shift.gather(1, best)[:, 0]]
            found.append(self._states(best[:, 0], aims, contrast))
            near = flat[best[:, 0]] @ flat.T > 1 + 2 * math.cos(separation)
            score.masked_fill_(near, -math.inf)
        return found

    def _states(
        self, chosen: Int[Tensor, " particle"], aims_px: Shifts, contrast: Float[Tensor, " particle"]
    ) -> ImageStates:
        rotations = self.candidates[chosen]
        return ImageStates(rotations, aims_px - rotations[:, :2] @ self.aim_px, contrast, torch.zeros(len(chosen), 0))


def assign_poses(
    images: WhitenedImages,
    volume: Volume,
    max_shell: int,
    centres_px: Shifts,
    shifts: ShiftGrid,
    rotations: int,
    advance: Callable[[int], None],
) -> Assignment:
    """Best pose of every image by exhaustive search at `max_shell`, two modes polished by three Gauss–Newton steps each."""
    grid = spectrum_grid(volume[None], max_shell)
    poses = PoseGrid.of(grid, images.plane.truncated(max_shell), rotations)
    states, margin = empty_states(len(images)), torch.zeros(len(images))
    for rows in batches(torch.arange(len(images)), CHUNK):
        batch = images.batch(rows, max_shell)
        modes = poses.modes(batch, centres_px[rows], shifts, 2, SEPARATION)
        first, second = (polish_centred(batch, grid, mode, centres_px[rows]) for mode in modes)
        lead = second.expansion.value - first.expansion.value
        states.put(rows, first.states.where(lead >= 0, second.states))
        margin[rows] = lead.abs()
        advance(len(rows))
    return Assignment(states, margin)


def polish_centred(batch: ImageBatch, grid: SpectrumGrid, states: ImageStates, centres_px: Shifts) -> Polished:
    """Three steps from a grid pose, with a broad prior on the shift about the image's own centre."""
    priors = Priors(shift_std_px=0.05 * batch.plane.box, contrast_std=CONTRAST_STD, latent_variance=torch.zeros(0))
    return polish(batch, grid, states, priors.about(centres_px), steps=3)


def empty_states(count: int, components: int = 0) -> ImageStates:
    """Identity poses, unit contrast, zero latents."""
    return ImageStates(
        torch.eye(3).repeat(count, 1, 1), torch.zeros(count, 2), torch.ones(count), torch.zeros(count, components)
    )
