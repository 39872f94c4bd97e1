"""A small molecule of blobs and noisy images of it, made by formulas that share nothing with the package's interpolation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from cryofire.geometry.grids import half_plane
from cryofire.geometry.rotations import random_rotations
from cryofire.physics.ctf import ContrastTransfer
from cryofire.physics.imaging import WhitenedImages
from cryofire.physics.shift import phase_ramp

BOX = 32
SHELL = 12
WIDTH = 1.3


def blob_positions(seed: int = 0, count: int = 40) -> Tensor:
    """Asymmetric cloud of blobs well inside the box."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=generator) * torch.tensor([5.0, 3.5, 2.5])


def moved_arm(positions: Tensor) -> Tensor:
    """The same molecule with a quarter of its blobs displaced."""
    arm = positions.clone()
    arm[:10] += torch.tensor([1.5, 2.0, -2.0])
    return arm


def blob_sections(positions: Tensor, rotations: Tensor, max_shell: int = SHELL, box: int = BOX) -> Tensor:
    """Exact sections: sum over blobs of a Gaussian times a phase."""
    k = half_plane(box, max_shell).frequencies.double()
    projected = torch.einsum("rij,aj->rai", rotations.double(), positions.double())[..., :2]
    phase = -2 * math.pi / box * torch.einsum("kd,rad->rka", k, projected)
    envelope = (2 * math.pi * WIDTH**2) ** 1.5 * torch.exp(-2 * (math.pi * WIDTH / box) ** 2 * k.square().sum(1))
    return (torch.polar(torch.ones_like(phase), phase).sum(-1) * envelope).to(torch.complex64)


@dataclass(frozen=True)
class ToySet:
    """Images with their truth."""

    images: WhitenedImages
    rotations: Tensor
    shifts_px: Tensor
    labels: Tensor


def toy_set(
    count: int,
    noise: float,
    seed: int = 0,
    minority: float = 0.0,
    shift_std: float = 0.5,
    other: Tensor | None = None,
) -> ToySet:
    """Whitened images with a mild CTF; `noise` is the deviation of a coefficient.

    The minority is the same molecule with a moved arm, or the molecule `other`.
    """
    generator = torch.Generator().manual_seed(seed)
    plane = half_plane(BOX, SHELL)
    rotations = random_rotations(count, generator)
    shifts = torch.randn(count, 2, generator=generator) * shift_std
    labels = (torch.rand(count, generator=generator) < minority).long()
    positions = blob_positions()
    second = moved_arm(positions) if other is None else other
    sections = torch.where(labels[:, None] == 0, blob_sections(positions, rotations), blob_sections(second, rotations))
    defocus = 0.03 + 0.02 * torch.rand(count, generator=generator)
    ctf = ContrastTransfer(
        torch.stack([defocus, torch.zeros(count), defocus], dim=1),
        torch.zeros(count), torch.full((count,), 0.3), torch.zeros(count), torch.ones(count),
    )  # fmt: skip
    clean = ctf.evaluate(plane.frequencies) * sections * phase_ramp(shifts, plane.frequencies, BOX)
    deviation = noise / math.sqrt(2)
    data = clean + deviation * torch.complex(
        torch.randn(clean.shape, generator=generator), torch.randn(clean.shape, generator=generator)
    )
    sigma = torch.full((SHELL + 1,), noise)
    cache = torch.view_as_real(data / noise).half().numpy()
    images = WhitenedImages(cache, np.arange(len(cache)), ctf, plane, sigma, torch.ones(SHELL + 1))
    return ToySet(images, rotations, shifts, labels)


@pytest.fixture(scope="session")
def homogeneous() -> ToySet:
    return toy_set(600, noise=30.0)


@pytest.fixture(scope="session")
def two_states() -> ToySet:
    return toy_set(1200, noise=20.0, seed=3, minority=0.3)


def blob_map(positions: Tensor, box: int = BOX) -> Tensor:
    """The density whose sections `blob_sections` gives."""
    x = torch.arange(box) - box // 2
    z, y, x = torch.meshgrid(x, x, x, indexing="ij")
    points = torch.stack([x, y, z], dim=-1).reshape(-1, 3).float()
    squared = torch.cdist(points, positions).square()
    return torch.exp(-squared / (2 * WIDTH**2)).sum(1).reshape(box, box, box)
