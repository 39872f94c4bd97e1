"""Quasi-uniform rotations cover all of SO(3) evenly; shifts fill a disc."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cryofire.geometry.rotations import quaternion_from_rotation, random_rotations
from cryofire.geometry.so3_grid import shift_disc, super_fibonacci_rotations


def angles_between(first: Tensor, second: Tensor) -> Tensor:
    """Geodesic angles of all pairs."""
    return 2 * (quaternion_from_rotation(first) @ quaternion_from_rotation(second).T).abs().clamp_max(1).acos()


@pytest.mark.parametrize("count", [300, 1001, 3000])
def test_super_fibonacci_rotations_have_vanishing_moments(count: int) -> None:
    flat = super_fibonacci_rotations(count, torch.float64).flatten(1)
    assert flat.shape == (count, 9)
    assert flat.mean(0).abs().max() < 10 / count  # independent samples would give about 2 / √count
    assert (flat.T @ flat / count - torch.eye(9) / 3).abs().max() < 20 / count


@pytest.mark.parametrize("count", [500, 2000])
def test_super_fibonacci_rotations_cover_evenly(count: int) -> None:
    rotations = super_fibonacci_rotations(count, torch.float64)
    cell = (8 * math.pi**2 / count) ** (1 / 3)  # side of a cube of the volume that each has to itself
    nearest = (angles_between(rotations, rotations) + 10 * torch.eye(count)).min(1).values
    assert float(nearest.min()) > 0.5 * cell
    assert float(nearest.max()) < 1.25 * cell
    probes = random_rotations(2000, torch.Generator().manual_seed(0), torch.float64)
    gap = angles_between(probes, rotations).min(1).values
    assert float(gap.max()) < 1.05 * cell
    assert float(gap.mean()) < 0.6 * cell


def test_super_fibonacci_rotations_are_rotations_of_the_dtype_asked_for() -> None:
    rotations = super_fibonacci_rotations(100)
    assert rotations.dtype == torch.float32
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).expand(100, 3, 3), atol=1e-6, rtol=0)
    assert (torch.linalg.det(rotations) > 0).all()


@pytest.mark.parametrize(("radius", "spacing"), [(0.0, 1.0), (2.0, 1.0), (3.5, 1.0), (1.0, 0.3), (7.3, 2.1)])
def test_shift_disc_is_the_part_of_a_hexagonal_lattice_in_the_disc(radius: float, spacing: float) -> None:
    shifts = shift_disc(radius, spacing).double()
    length = shifts.norm(dim=-1)
    assert shifts[0].tolist() == [0.0, 0.0]
    assert (length.diff() >= -1e-6).all()
    assert float(length.max()) <= radius + 1e-5
    inside = {
        (a, b)
        for a in range(-40, 41)
        for b in range(-40, 41)
        if spacing * math.sqrt(a * a + a * b + b * b) <= radius + 1e-7
    }
    second = shifts[:, 1] / (spacing * math.sqrt(3) / 2)
    first = shifts[:, 0] / spacing - second / 2
    found = [(round(a), round(b)) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert (first - first.round()).abs().max() < 1e-5
    assert len(found) == len(set(found))
    assert set(found) == inside
    if len(shifts) > 1:
        gaps = torch.cdist(shifts, shifts) + 10 * radius * torch.eye(len(shifts))
        torch.testing.assert_close(gaps.min(1).values, torch.full((len(shifts),), spacing).double(), atol=1e-5, rtol=0)


def test_shift_disc_leaves_no_hole() -> None:
    shifts = shift_disc(3.0, 0.8).double()
    generator = torch.Generator().manual_seed(0)
    probes = 6 * torch.rand(4000, 2, generator=generator, dtype=torch.float64) - 3
    probes = probes[probes.norm(dim=-1) <= 3.0 - 0.8]
    gap = torch.cdist(probes, shifts).min(1).values
    assert float(gap.max()) <= 0.8 / math.sqrt(3) + 1e-6
