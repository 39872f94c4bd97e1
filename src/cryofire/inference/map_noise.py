"""What the noise of the maps adds to the uncertainty of poses and latents.

A Laplace posterior takes the maps as exact. They are not: maps from half of the images move every pose. With poses
polished against either half's maps, the differences have the variance of two half maps' noise, four times that of the
maps of all images. It grows with the latent, since components are noisier than the mean, and is taken to be v(z) =
v_0 + v_1 |z|² for every parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryofire.arrays import Latents
from cryofire.geometry.rotations import vector_from_rotation
from cryofire.inference.consensus import Refinement
from cryofire.inference.polish import POSE, ImageStates, polish
from cryofire.physics.imaging import batches
from cryofire.physics.projection import spectrum_grid
from cryofire.volumes.accumulator import HALVES

STEPS = 3
OUTLIER = 3.0
"""Images whose poses differ by more, in median differences, are in different modes and say nothing of the noise."""


@dataclass(frozen=True)
class MapNoise:
    """Variance that the noise of the maps adds to each parameter.

    Attributes
    ----------
    constant, quadratic : Float[Tensor, "parameter"]
        v_0 and v_1 of (rotation tangent, shift, contrast, latent); radians and pixels, squared.
    """

    constant: Float[Tensor, " parameter"]
    quadratic: Float[Tensor, " parameter"]

    def variance(self, latents: Latents) -> Float[Tensor, "*particle parameter"]:
        """v(z) of every parameter."""
        return self.constant + self.quadratic * latents.square().sum(-1, keepdim=True)

    def widened(
        self, deviations: Float[Tensor, "particle parameter"], latents: Latents
    ) -> Float[Tensor, "particle parameter"]:
        """Deviations with the noise of the maps added in quadrature."""
        return (deviations.square() + self.variance(latents)).sqrt()


def measure_map_noise(halves: Refinement, rows: Int[Tensor, " row"], fixed: slice | None = None) -> MapNoise:
    """Noise of the maps of all images, from some images polished against the independent maps of either half.

    Parameters that are `fixed` do not move, and get none.
    """
    found: list[list[ImageStates]] = []
    for half in halves.model.maps.halves:
        grid = spectrum_grid(half, halves.shell)
        found.append(
            [
                polish(
                    halves.images.batch(piece, halves.shell),
                    grid,
                    halves.states.take(piece),
                    halves.model.priors,
                    STEPS,
                    fixed,
                ).states
                for piece in batches(rows)
            ]
        )
    moved = torch.cat([differences(one, other) for one, other in zip(*found, strict=True)])
    turn = moved[:, :3].norm(dim=1)
    same = turn <= OUTLIER * turn.median()
    variance = moved[same].square() / HALVES**2
    return fitted_noise(variance, halves.states.latents[rows][same])


def differences(one: ImageStates, other: ImageStates) -> Float[Tensor, "particle parameter"]:
    """Rotation tangent, shift, contrast and latent that lead from some states to others."""
    turn = vector_from_rotation(other.rotations @ one.rotations.transpose(1, 2))
    contrast = (other.contrast - one.contrast)[:, None]
    return torch.cat([turn, other.shifts_px - one.shifts_px, contrast, other.latents - one.latents], dim=1)


def fitted_noise(variance: Float[Tensor, "particle parameter"], latents: Latents) -> MapNoise:
    """Least-squares fit of v_0 + v_1 |z|², neither negative; shared by the axes of the rotation, and by those of the shift."""
    square = latents.square().sum(1)
    shared = variance.clone()
    shared[:, :3] = variance[:, :3].mean(1, keepdim=True)
    shared[:, 3:POSE] = variance[:, 3:POSE].mean(1, keepdim=True)
    centred = square - square.mean()
    slope = (centred[:, None] * shared).sum(0) / centred.square().sum().clamp_min(1e-12)
    slope = slope.clamp_min(0)
    constant = shared.mean(0) - slope * square.mean()
    negative = constant < 0
    slope = torch.where(negative, shared.mean(0) / square.mean().clamp_min(1e-12), slope)
    return MapNoise(constant.clamp_min(0), slope)
