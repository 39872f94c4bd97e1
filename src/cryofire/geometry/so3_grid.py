"""Quasi-uniform sets of rotations and of shifts.

Rotations follow the super-Fibonacci spirals of Alexa (CVPR 2022): a deterministic low-discrepancy set of any size.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cryofire.arrays import Rotations, Shifts
from cryofire.geometry.rotations import rotation_from_quaternion

_PHI = math.sqrt(2.0)
_PSI = 1.533751168755204288118041  # real root of ψ⁴ = ψ + 4


def super_fibonacci_rotations(count: int, dtype: torch.dtype = torch.float32) -> Rotations:
    """`count` quasi-uniform rotations, shape (count, 3, 3)."""
    index = torch.arange(count, dtype=torch.float64) + 0.5
    t = index / count
    d = 2 * math.pi * index
    r, big_r = t.sqrt(), (1 - t).sqrt()
    alpha, beta = d / _PHI, d / _PSI
    quaternion = torch.stack([r * alpha.sin(), r * alpha.cos(), big_r * beta.sin(), big_r * beta.cos()], dim=-1)
    return rotation_from_quaternion(quaternion).to(dtype)


def rotation_spacing(count: int) -> float:
    """Typical spacing in radians of `count` uniform rotations: the side of a cube of volume π² · 8 / count."""
    return (8 * math.pi**2 / count) ** (1 / 3)


def shift_disc(radius: float, spacing: float) -> Shifts:
    """Shifts (x, y) on a hexagonal lattice of `spacing` inside a disc of `radius` (same unit), the origin first."""
    steps = math.ceil(radius / spacing) + 1
    i = torch.arange(-2 * steps, 2 * steps + 1, dtype=torch.float32)
    column, row = torch.meshgrid(i, i, indexing="xy")
    points = torch.stack([column + row / 2, row * math.sqrt(3.0) / 2], dim=-1).reshape(-1, 2) * spacing
    length = points.norm(dim=-1)
    keep = length <= radius + 1e-6
    return points[keep][length[keep].argsort(stable=True)]


def tangent_ball(radius: float, spacing: float) -> Float[Tensor, "point 3"]:
    """Tangent vectors (radians) on a body-centred cubic lattice inside a ball, the origin first."""
    steps = math.ceil(radius / spacing) + 1
    i = torch.arange(-steps, steps + 1, dtype=torch.float32)
    corner = torch.stack(torch.meshgrid(i, i, i, indexing="ij"), dim=-1).reshape(-1, 3)
    points = torch.cat([corner, corner + 0.5]) * spacing * 2 ** (1 / 3)
    length = points.norm(dim=-1)
    keep = length <= radius + 1e-6
    return points[keep][length[keep].argsort(stable=True)]
