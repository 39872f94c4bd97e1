"""Laws of polar images."""

from __future__ import annotations

import math

import pytest
import torch
from tests.inference.conftest import blob_positions, blob_sections
from torch import Tensor

from cryofire.geometry.grids import half_plane
from cryofire.geometry.rotations import random_rotations
from cryofire.inference.polar import filtered, polar_grid
from cryofire.inference.section_bank import in_plane_rotations
from cryofire.physics.imaging import ImageBatch
from cryofire.physics.shift import phase_ramp

ANGLES = 48


def sections(count: int, box: int, turn: float = 0.0) -> Tensor:
    rotations = random_rotations(count, torch.Generator().manual_seed(1))
    turned = in_plane_rotations(torch.full((count,), turn)) @ rotations
    return blob_sections(0.6 * blob_positions(), turned, 10, box)


@pytest.mark.parametrize("box", [32, 33])
def test_turning_an_image_shifts_its_polar_image(box: int) -> None:
    grid = polar_grid(box, 10, ANGLES)
    still, turned = (grid.transform(sections(5, box, turn)) for turn in (0.0, 5 * 2 * math.pi / ANGLES))
    assert (turned - still.roll(5, -1)).norm() < 0.02 * still.norm()


@pytest.mark.parametrize("box", [32, 33])
def test_inner_products_are_those_of_the_half_plane(box: int) -> None:
    grid = polar_grid(box, 10, ANGLES)
    a, b = sections(6, box)[:3], sections(6, box)[3:]
    exact = (a.conj() * b).real.sum(1)
    found = (grid.weights()[:, None] * grid.transform(a) * grid.transform(b)).sum((1, 2))
    assert torch.allclose(found, exact, atol=0.05 * float(exact.abs().max()))


def test_noise_around_the_particle_is_dropped() -> None:
    grid, plane = polar_grid(32, 10, ANGLES), half_plane(32, 10)
    image = torch.zeros(1, 32, 32)
    image[:, 2, 3] = 1.0  # a pixel in the corner
    centre = torch.zeros(1, 32, 32)
    centre[:, 18, 14] = 1.0
    outside, inside = (grid.transform(plane.coefficients(one)).norm() for one in (image, centre))
    assert outside < 0.1 * inside


def test_filtering_centres_the_particle_and_applies_the_ctf_again() -> None:
    plane = half_plane(32, 10)
    clean, shifts = sections(4, 32), torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    modulation = torch.rand(4, len(plane), generator=torch.Generator().manual_seed(1))
    batch = ImageBatch(modulation * phase_ramp(shifts, plane.frequencies, 32) * clean, modulation, plane)
    assert torch.allclose(filtered(batch, shifts), modulation.square() * clean, rtol=1e-4, atol=1e-2)
