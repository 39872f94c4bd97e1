"""Images of a known map, with poses that are known too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cryofire.geometry.grids import HalfPlane, half_plane
from cryofire.geometry.rotations import random_rotations
from cryofire.physics.imaging import ImageBatch
from cryofire.physics.shift import phase_ramp


@dataclass(frozen=True)
class KnownImages:
    """Images a C e^{-2πik·t/n} (S_0 + z S_1) + ε of two blob densities, with everything that made them."""

    mean: Any
    mode: Any
    batch: ImageBatch
    rotations: Tensor
    shifts: Tensor
    half: Tensor
    latents: Tensor

    @property
    def plane(self) -> HalfPlane:
        return self.batch.plane

    def noisy(self, deviation: float) -> KnownImages:
        """The same with white noise of that deviation in every coefficient."""
        generator = torch.Generator().manual_seed(7)
        noise = torch.randn(self.batch.data.shape, generator=generator, dtype=self.batch.data.dtype)
        return replace(self, batch=replace(self.batch, data=self.batch.data + deviation * noise))


def known_images(blobs: Any, box: int, count: int, with_mode: bool) -> KnownImages:
    """Images with modulations that change sign, shifts of a few pixels, halves at random."""
    generator = torch.Generator().manual_seed(box)
    plane = half_plane(box)
    rotations = random_rotations(count, generator, torch.float64)
    shifts = 2 * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    phase = 6 * torch.rand(count, 1, generator=generator, dtype=torch.float64) + 0.2 * plane.shells
    modulation = -phase.sin()
    mode = replace(blobs, positions=blobs.positions[:6] + 1.0, weights=blobs.weights[:6] * (-1.0) ** torch.arange(6))
    latents = torch.randn(count, 1, generator=generator, dtype=torch.float64) * with_mode
    sections = blobs.sections(rotations, plane) + latents * mode.sections(rotations, plane)
    data = modulation * phase_ramp(shifts, plane.frequencies, box) * sections
    batch = ImageBatch(data.to(torch.complex64), modulation.float(), plane)
    half = torch.randint(0, 2, (count,), generator=generator)
    return KnownImages(blobs, mode, batch, rotations, shifts, half, latents)


@pytest.fixture(scope="session", params=[32, 33])
def images(request: pytest.FixtureRequest, blobs: Any) -> KnownImages:
    """Images of one map, for an even and an odd box."""
    return known_images(blobs, request.param, 800, with_mode=False)


@pytest.fixture(scope="session")
def moving_images(blobs: Any) -> KnownImages:
    """Images of a map with one linear mode of motion."""
    return known_images(blobs, 32, 1600, with_mode=True)
