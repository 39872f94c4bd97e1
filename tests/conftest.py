"""Fixtures shared by the whole suite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings
from torch import Tensor

if TYPE_CHECKING:
    from cryofire.geometry.grids import HalfPlane

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

settings.register_profile("suite", deadline=None)  # how fast a machine is says nothing about the code
settings.load_profile("suite")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the external test material; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"external test material not found at {SHARED_DATA}")
    return SHARED_DATA


@dataclass(frozen=True)
class Blobs:
    """Gaussians of one width, with given weights at positions (blob, 3) in pixels: a density with a spectrum in closed form."""

    positions: Tensor
    weights: Tensor
    width: float

    def spectrum(self, k: Tensor) -> Tensor:
        """Σ_b w_b exp(-2πi k·r_b - 2π² σ² k²) at frequencies (..., 3) in cycles per pixel."""
        waves = torch.exp(-2j * math.pi * (k @ self.positions.T))
        return (waves @ self.weights.to(waves.dtype)) * torch.exp(-2 * math.pi**2 * self.width**2 * k.square().sum(-1))

    def volume(self, box: int) -> Tensor:
        """The density band-limited to the box, shape (z, y, x), float64: its spectrum on the grid is exact."""
        k = (torch.arange(box, dtype=torch.float64) - box // 2) / box
        z, y, x = torch.meshgrid(k, k, k, indexing="ij")
        spectrum = torch.fft.ifftshift(self.spectrum(torch.stack([x, y, z], dim=-1)))
        return torch.fft.fftshift(torch.fft.ifftn(spectrum).real)

    def sections(self, rotations: Tensor, plane: HalfPlane) -> Tensor:
        """Spectra of the projections, shape (rotation, coefficient), complex128."""
        return self.spectrum(plane.frequencies.double() @ rotations.double()[:, :2] / plane.box)


@pytest.fixture(scope="session")
def blobs() -> Blobs:
    """A compact, irregular particle for a box of 32 pixels, all of it within 6 pixels and a blob's width of the origin."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    distance = 6 * torch.rand(12, 1, generator=generator, dtype=torch.float64) ** (1 / 3)
    positions = distance * direction / direction.norm(dim=1, keepdim=True)
    return Blobs(positions, 0.5 + torch.rand(12, generator=generator, dtype=torch.float64), 1.2)
