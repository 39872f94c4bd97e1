"""Masks in real space."""

from __future__ import annotations

import math

import torch

from cryofire.arrays import Volume
from cryofire.geometry.grids import radius_map


def soft_sphere(box: int, radius: float, edge: float) -> Volume:
    """Spherical mask: 1 inside `radius`, cosine edge of width `edge`, both in pixels."""
    distance = radius_map(box, 3)
    return 0.5 + 0.5 * torch.cos(math.pi * ((distance - radius) / edge).clamp(0, 1))
