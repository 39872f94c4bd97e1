"""Masks in real space."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from cryofire.arrays import Volume
from cryofire.geometry.fourier import volume_from_spectrum, volume_spectrum
from cryofire.geometry.grids import radius_map, shell_map

SMOOTHING = 8
"""A particle's outline is drawn at the resolution of this part of the box."""
OUTLINE = 0.1
"""The outline lies where the root mean square density falls below this part of its maximum."""
MARGIN, SOFT_EDGE = 0.03, 0.06
"""Growth beyond the outline and width of the edge, as fractions of the box."""


def soft_sphere(box: int, radius: float, edge: float) -> Volume:
    """Spherical mask: 1 inside `radius`, cosine edge of width `edge`, both in pixels."""
    distance = radius_map(box, 3)
    return 0.5 + 0.5 * torch.cos(math.pi * ((distance - radius) / edge).clamp(0, 1))


def particle_mask(maps: Float[Tensor, "coordinate z y x"]) -> Volume:
    """Mask that follows a particle in all its conformations: 1 inside its outline and a margin, then a cosine edge.

    The density is smoothed, and the mean and the components (unit variance of the latents) are added in quadrature.
    """
    box = maps.shape[-1]
    shells = shell_map(box, 3).float()
    window = torch.exp(-0.5 * (shells * SMOOTHING / box).square())
    smooth = volume_from_spectrum(volume_spectrum(maps) * window)
    strength = smooth.square().sum(0).sqrt()
    outside = (strength < OUTLINE * strength.max()).numpy()
    distance = torch.from_numpy(distance_transform_edt(outside)).to(maps)
    return 0.5 + 0.5 * torch.cos(math.pi * ((distance - MARGIN * box) / (SOFT_EDGE * box)).clamp(0, 1))
