"""Test material of this folder: sums of Gaussians, with exact values in any frame and on any grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import ndimage


@dataclass(frozen=True)
class Blobs:
    """Gaussians exp(−|r − c|² / 2σ²) at centres (x, y, z); lengths in Å."""

    centres: np.ndarray
    weights: np.ndarray
    width: float

    def volume(self, box: int, pixel_size: float) -> np.ndarray:
        axis = (np.arange(box) - box // 2) * pixel_size
        z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
        return sum(
            weight
            * np.exp(-((x - c[0]) ** 2 + (y - c[1]) ** 2 + (z - c[2]) ** 2) / (2 * self.width**2))
            for c, weight in zip(self.centres, self.weights, strict=True)
        )  # fmt: skip

    def moved(self, matrix: np.ndarray, offset: np.ndarray) -> Blobs:
        """The blobs of V_new(r) = V(M (r + o)): centres M⁻¹ c − o."""
        return Blobs(self.centres @ np.linalg.inv(matrix).T - offset, self.weights, self.width)


def asymmetric_blobs(width: float, extent: float = 8.0, count: int = 9, seed: int = 0) -> Blobs:
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((count, 3))
    centres = extent * directions / np.linalg.norm(directions, axis=1, keepdims=True) * rng.uniform(0.2, 1, (count, 1))
    return Blobs(centres, rng.uniform(0.5, 1.5, count), width)


def project(volume: np.ndarray, rotation: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Numerical projection: image(r) = Σ_z V(Rᵀ (x − t_x, y − t_y, z)), lengths in voxels."""
    box = len(volume)
    axis = np.arange(box) - box // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    points = np.stack([x - shift[0], y - shift[1], z], axis=-1) @ rotation  # Rᵀ applied to each point
    return ndimage.map_coordinates(volume, np.moveaxis(points[..., ::-1] + box // 2, -1, 0), order=3).sum(axis=0)


@pytest.fixture
def make_blobs() -> Callable[..., Blobs]:
    """`make_blobs(width, extent, count, seed)`: a molecule without symmetry."""
    return asymmetric_blobs


@pytest.fixture
def project_volume() -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """`project_volume(volume, rotation, shift)`: a plain numerical projection."""
    return project
