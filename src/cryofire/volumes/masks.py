"""Masks in real space."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from cryofire.arrays import Volume
from cryofire.geometry.fourier import half_grid_shells, half_volume_spectrum, volume_from_half_spectrum
from cryofire.geometry.grids import interpolated, radius_map

SMOOTHING = 8
"""A particle's outline is that of its density below about this shell: at the resolution of an eighth of the box."""
OUTLINE = 0.1
"""The outline lies where the root mean square density falls below this part of its maximum."""
DRAWN_ON = 64
"""Most voxels along an axis of the grid that it is drawn on; there is nothing finer in it."""
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
    coarse = min(box, DRAWN_ON)
    reach = (coarse - 1) // 2
    window = torch.exp(-0.5 * (half_grid_shells(reach) / SMOOTHING).square()).to(maps.device)
    smooth = volume_from_half_spectrum(half_volume_spectrum(maps, box, reach) * window, coarse, coarse)
    strength = smooth.square().sum(0).sqrt()
    outside = (strength < OUTLINE * strength.max()).numpy()
    distance = torch.from_numpy(distance_transform_edt(outside)).to(maps)
    mask = 0.5 + 0.5 * torch.cos(math.pi * ((distance - MARGIN * coarse) / (SOFT_EDGE * coarse)).clamp(0, 1))
    return interpolated(mask, box)
