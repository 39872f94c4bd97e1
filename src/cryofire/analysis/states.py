"""Maps of conformational states: from the images themselves, in two independent halves, and decoded from the latent space."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryofire.analysis.masks import automatic_mask
from cryofire.analysis.metrics import masked_correlation, resolution_at
from cryofire.arrays import Volume
from cryofire.inference.consensus import Refinement
from cryofire.inference.linear_model import LinearModel, back_project, predicted
from cryofire.inference.polish import ImageStates
from cryofire.physics.projection import spectrum_grid
from cryofire.volumes.accumulator import GridSums, mean_density, solve_maps
from cryofire.volumes.halves import component_fsc, unfiltered_halves, wiener_precision


@dataclass(frozen=True)
class StateMaps:
    """Maps of one state (or of the consensus).

    Attributes
    ----------
    map : Float[Tensor, "z y x"]
        From all its images at their final poses, filtered by what the halves agree on (Wiener).
    half_maps : tuple of two Float[Tensor, "z y x"]
        From each half, at poses that were refined against that half alone beyond the shared shell; not filtered.
    decoded : Float[Tensor, "z y x"]
        The latent model at the state's centre.
    fsc, fsc_masked : Float[np.ndarray, "shell"]
        Between the half maps inside the sphere, and inside the automatic mask corrected by phase randomisation.
    resolution : float
        Å at which `fsc_masked` falls below 0.143.
    """

    map: Volume
    half_maps: tuple[Volume, Volume]
    decoded: Volume
    fsc: Float[np.ndarray, " shell"]
    fsc_masked: Float[np.ndarray, " shell"]
    resolution: float


@dataclass(frozen=True)
class StateSource:
    """What state maps are made from.

    Attributes
    ----------
    joint, halves : Refinement
        The final refinement, and the one in independent halves that went before it.
    half : Int[Tensor, "particle"]
        Half of every image.
    mask : Float[Tensor, "z y x"]
        Sphere of the refinement.
    pixel_size : float
        Å.
    """

    joint: Refinement
    halves: Refinement
    half: Int[Tensor, " particle"]
    mask: Volume
    pixel_size: float


@dataclass(frozen=True)
class StateSums:
    """Back-projection of the images of a state, or of several.

    Attributes
    ----------
    split, joint : GridSums
        At the poses that were refined in independent halves, and at the final ones.
    images : int
        How many these are.
    """

    split: GridSums
    joint: GridSums
    images: int

    def with_those_of(self, other: StateSums) -> StateSums:
        """The sums of both."""
        both = zip((self.split, self.joint), (other.split, other.joint), strict=True)
        split, joint = (replace(one, values=one.values + more.values) for one, more in both)
        return StateSums(split, joint, self.images + other.images)


def state_sums(source: StateSource, members: Int[Tensor, " member"]) -> StateSums:
    """Back-projection of the state whose images are `members`."""
    images, limit = source.joint.images, source.joint.images.plane.max_shell
    split, joint = (
        back_project(images, source.half, without_latents(one.states), limit, members)
        for one in (source.halves, source.joint)
    )
    return StateSums(split, joint, len(members))


def make_state_maps(source: StateSource, sums: StateSums, centre: Float[Tensor, " component"]) -> StateMaps:
    """Maps of the state of which `sums` are the images and `centre` is the latent centre."""
    limit = source.joint.images.plane.max_shell
    halves = unfiltered_halves(sums.split, source.mask, mean_density(sums.split))
    fsc = component_fsc(*halves)
    first, second = halves[:, 0]
    precision = wiener_precision(mean_density(sums.joint), fsc)
    volume = solve_maps(sums.joint, source.mask.shape[-1], precision)[0] * source.mask
    generator = np.random.default_rng(0)
    mask = automatic_mask(volume.numpy(), source.pixel_size)
    masked = masked_correlation(first.numpy(), second.numpy(), mask, generator)
    length = source.joint.images.plane.box * source.pixel_size
    resolution = resolution_at(masked.corrected[: limit + 1], 0.143, length)
    decoded = decode(source.joint.model, centre)
    return StateMaps(volume, (first, second), decoded, fsc[0].numpy(), masked.corrected[: limit + 1], resolution)


def without_latents(states: ImageStates) -> ImageStates:
    """The same poses and contrast for a model without components."""
    return ImageStates(states.rotations, states.shifts_px, states.contrast, states.latents[:, :0])


def decode(model: LinearModel, latent: Float[Tensor, " component"]) -> Volume:
    """Density V_0 + Σ z_j V_j of the joint model at one point of the latent space."""
    maps = model.maps.joint
    return maps[0] + torch.einsum("j,jzyx->zyx", latent.to(maps), maps[1:])


def members_of(labels: np.ndarray, state: int) -> Int[Tensor, " member"]:
    """Rows of the images of one state."""
    return torch.from_numpy(np.flatnonzero(labels == state))


def observed_and_predicted(refinement: Refinement, rows: Int[Tensor, " row"], max_shell: int) -> tuple[Tensor, Tensor]:
    """Low-passed whitened images and what the model expects of them, real space, (row, y, x)."""
    batch = refinement.images.batch(rows, max_shell)
    grid = spectrum_grid(refinement.model.maps.joint, max_shell)
    expected = predicted(batch, grid, refinement.states.take(rows))
    return batch.plane.images(batch.data), batch.plane.images(expected)
