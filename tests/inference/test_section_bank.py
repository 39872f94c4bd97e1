"""Laws of the banks of sections: cells, correlations, and the linear image model around a cell."""

from __future__ import annotations

import math

import pytest
import torch
from tests.inference.conftest import BOX, blob_map, blob_positions, moved_arm
from torch import Tensor

from cryofire.geometry.rotations import geodesic_angle, random_rotations, rotation_from_vector, vector_from_rotation
from cryofire.inference.polar import PolarGrid, polar_grid
from cryofire.inference.polish import CONTRAST
from cryofire.inference.section_bank import (
    bank_grid,
    coarse_bank,
    fine_bank,
    in_plane_rotations,
    residual_descent,
    turned_shifts,
    view_grid,
)
from cryofire.physics.projection import SpectrumGrid, central_sections
from cryofire.physics.shift import phase_ramp

SHELL, ANGLES, TURNS = 10, 48, 24


@pytest.fixture(scope="module")
def polar() -> PolarGrid:
    return polar_grid(BOX, SHELL, ANGLES)


@pytest.fixture(scope="module")
def grid(polar: PolarGrid) -> SpectrumGrid:
    first, second = blob_map(0.7 * blob_positions()), blob_map(0.7 * moved_arm(blob_positions()))
    return bank_grid(torch.stack([first, second - first]), polar)


def test_viewing_directions_are_evenly_spread() -> None:
    views = view_grid(200)
    distance = (views.directions @ views.directions.T - 2 * torch.eye(200)).max(1).values.acos()
    assert views.directions.mean(0).norm() < 0.01
    assert distance.min() > 0.6 * distance.max()
    assert torch.allclose(views.frames[:, 2], views.directions)
    assert torch.allclose(views.frames @ views.frames.transpose(1, 2), torch.eye(3).expand(200, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(views.frames), torch.ones(200))


def test_cells_are_found_again_and_no_rotation_is_far_from_its_cell() -> None:
    views = view_grid(100)
    direction, turn = torch.arange(100), torch.arange(100) % TURNS
    found = views.nearest(views.rotations(direction, turn, TURNS), TURNS)
    assert torch.equal(found[0], direction) and torch.equal(found[1], turn)
    rotations = random_rotations(500, torch.Generator().manual_seed(0))
    cells = views.rotations(*views.nearest(rotations, TURNS), TURNS)
    assert geodesic_angle(cells, rotations).max() < math.radians(22)


def test_coarse_log_likelihoods_are_those_of_each_section(polar: PolarGrid, grid: SpectrumGrid) -> None:
    bands = (4, SHELL)
    bank = coarse_bank(grid, polar, 30, TURNS, bands)
    generator = torch.Generator().manual_seed(2)
    images = polar.transform(central_sections(grid, random_rotations(3, generator), polar.plane)[:, 0])
    power = torch.rand(3, SHELL, generator=generator)
    table = bank.log_likelihoods(images, power).unflatten(2, (2, 30))
    direction, turn = torch.tensor([7]), torch.tensor([5])
    section = polar.transform(central_sections(grid, bank.views.rotations(direction, turn, TURNS), polar.plane)[:, 0])
    products = (2 * images * section - power[..., None] * section.square()).sum(-1) * polar.weights()
    expected = torch.stack([products[:, :4].sum(1), products[:, 4:].sum(1)], dim=1)
    assert torch.allclose(table[5, :, :, 7], expected, atol=0.03 * float(expected.abs().max()))


def test_the_true_cell_is_the_likeliest(polar: PolarGrid, grid: SpectrumGrid) -> None:
    bank = coarse_bank(grid, polar, 60, TURNS, (SHELL,))
    direction, turn = torch.tensor([3, 40, 59]), torch.tensor([0, 11, 23])
    rotations = bank.views.rotations(direction, turn, TURNS)
    images = polar.transform(central_sections(grid, rotations, polar.plane)[:, 0])
    table = bank.log_likelihoods(images, torch.ones(3, SHELL))
    best = table.transpose(0, 1).flatten(1).argmax(1)
    assert torch.equal(best, turn * 60 + direction)


def small_step(polar: PolarGrid, grid: SpectrumGrid, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss–Newton step, in the frame of the cell, for one noise-free image that is `truth` away from its cell."""
    bank = fine_bank(grid, polar, 100)
    direction, turn = torch.tensor([33]), torch.tensor([13])
    cell = bank.views.rotations(direction, turn, ANGLES)
    angle = turn * (2 * math.pi / ANGLES)
    tangent = (in_plane_rotations(angle) @ truth[None, :3, None])[..., 0]
    sections = central_sections(grid, rotation_from_vector(tangent) @ cell, polar.plane)
    section = (1 + truth[5]) * (sections[:, 0] + truth[6] * sections[:, 1])
    moved = section * phase_ramp(turned_shifts(truth[None, 3:5], angle), polar.plane.frequencies, BOX)
    system, products = bank.normal_equations(
        polar.transform(moved), torch.ones(1, SHELL), *bank.views.nearest(cell, ANGLES), (5, SHELL)
    )
    descent = residual_descent(system, products)
    return torch.linalg.solve(system, descent)[0], descent[0]


def test_a_small_offset_from_a_cell_is_read_off_in_one_step(polar: PolarGrid, grid: SpectrumGrid) -> None:
    truth = torch.tensor([0.01, -0.02, 0.015, 0.1, -0.05, 0.02, 0.1])
    step, _ = small_step(polar, grid, truth)
    tolerance = torch.tensor([4e-3, 4e-3, 4e-3, 0.03, 0.03, 0.01, 0.03])
    assert ((step[-1] - truth).abs() < tolerance).all()


def test_a_cell_explains_its_own_section(polar: PolarGrid, grid: SpectrumGrid) -> None:
    step, descent = small_step(polar, grid, torch.zeros(7))
    moved, _ = small_step(polar, grid, torch.tensor([0.05, 0, 0, 0, 0, 0, 0.0]))
    assert step[-1, :3].norm() < 0.05 * moved[-1, :3].norm()
    assert abs(step[-1, CONTRAST]) < 0.01 and torch.isfinite(descent).all()


def test_shifts_turn_with_the_image() -> None:
    quarter = torch.tensor([math.pi / 2])
    assert torch.allclose(turned_shifts(torch.tensor([[1.0, 0.0]]), quarter), torch.tensor([[0.0, 1.0]]), atol=1e-6)
    rotation = in_plane_rotations(quarter)
    assert torch.allclose(vector_from_rotation(rotation), torch.tensor([[0, 0, math.pi / 2]]), atol=1e-5)
