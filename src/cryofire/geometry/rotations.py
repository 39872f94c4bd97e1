"""Rotations of space: exponential map, angles, random and averaged rotations.

A rotation R maps volume coordinates to image coordinates, r_image = R r_volume. Tangent vectors act from the left:
R(w) = exp([w]×) R, w in radians, axes x, y, z of the image.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cryofire.arrays import Rotations


def rotation_from_vector(vector: Float[Tensor, "*batch 3"]) -> Rotations:
    """Rotation matrices exp([w]×) of rotation vectors in radians (Rodrigues), exact near zero."""
    angle_squared = (vector * vector).sum(-1)[..., None, None]
    cross = cross_matrix(vector)
    small = angle_squared < 1e-8
    safe = torch.where(small, 1.0, angle_squared).sqrt()  # the root has no derivative at zero
    first = torch.where(small, 1 - angle_squared / 6, torch.sin(safe) / safe)
    second = torch.where(small, 0.5 - angle_squared / 24, (1 - torch.cos(safe)) / (safe * safe))
    identity = torch.eye(3, dtype=vector.dtype, device=vector.device)
    return identity + first * cross + second * (cross @ cross)


def vector_from_rotation(rotation: Rotations) -> Float[Tensor, "*batch 3"]:
    """Rotation vectors in radians, length in [0, π]; the inverse of `rotation_from_vector`."""
    quaternion = quaternion_from_rotation(rotation)
    real, imaginary = quaternion[..., :1], quaternion[..., 1:]
    length = imaginary.norm(dim=-1, keepdim=True)
    half_angle = torch.atan2(length, real)
    return imaginary * torch.where(
        length > 1e-12, 2 * half_angle / length.clamp_min(1e-12), torch.full_like(length, 2.0)
    )


def cross_matrix(vector: Float[Tensor, "*batch 3"]) -> Rotations:
    """Matrices [w]× with [w]× r = w × r."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))


def rotation_from_quaternion(quaternion: Float[Tensor, "*batch 4"]) -> Rotations:
    """Rotation matrices of quaternions (real part first); they are normalised here."""
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def quaternion_from_rotation(rotation: Rotations) -> Float[Tensor, "*batch 4"]:
    """Unit quaternions with non-negative real part: dominant eigenvector row of the symmetric form 4 q qᵀ."""
    m = rotation
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    rows = torch.stack(
        [
            torch.stack([1 + xx + yy + zz, wx, wy, wz], -1),
            torch.stack([wx, 1 + xx - yy - zz, xy, xz], -1),
            torch.stack([wy, xy, 1 - xx + yy - zz, yz], -1),
            torch.stack([wz, xz, yz, 1 - xx - yy + zz], -1),
        ],
        -2,
    )
    largest = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = rows.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4)).squeeze(-2)
    sign = torch.where(row[..., :1] < 0, -1.0, 1.0).to(row.dtype)
    return torch.nn.functional.normalize(row * sign, dim=-1)


def random_rotations(count: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Rotations:
    """Uniformly random rotations (Haar measure), shape (count, 3, 3)."""
    return rotation_from_quaternion(torch.randn(count, 4, generator=generator, dtype=dtype))


def geodesic_angle(
    first: Float[Tensor, "*#batch 3 3"], second: Float[Tensor, "*#batch 3 3"]
) -> Float[Tensor, "*#batch"]:
    """Angle in radians of the rotation between two rotations, accurate for small angles: |A - B| = 2√2 sin(θ/2)."""
    chord = (first - second).square().sum((-2, -1)).sqrt()
    return 2 * torch.asin((chord / (2 * math.sqrt(2.0))).clamp(max=1.0))


def viewing_angle(
    first: Float[Tensor, "*#batch 3 3"], second: Float[Tensor, "*#batch 3 3"]
) -> Float[Tensor, "*#batch"]:
    """Angle in radians between viewing directions, the third rows of R (the projection axis in the volume's frame)."""
    chord = (first[..., 2, :] - second[..., 2, :]).norm(dim=-1)
    return 2 * torch.asin((chord / 2).clamp(max=1.0))


def nearest_rotation(matrix: Float[Tensor, "*batch 3 3"]) -> Rotations:
    """Rotation nearest to a matrix in the Frobenius norm (chordal mean when the matrix is a sum of rotations)."""
    left, _, right = torch.linalg.svd(matrix)
    determinant = torch.linalg.det(left @ right)
    sign = torch.ones(*matrix.shape[:-2], 3, dtype=matrix.dtype, device=matrix.device)
    sign[..., 2] = determinant
    return (left * sign[..., None, :]) @ right
