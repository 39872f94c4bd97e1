"""Central sections against closed forms, another implementation and themselves; the adjoint; the grid."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_fourier_slice import project_3d_to_2d

from cryofire.geometry.grids import HalfPlane, half_plane
from cryofire.geometry.rotations import random_rotations, rotation_from_vector
from cryofire.physics import tensor_kernels
from cryofire.physics.projection import (
    OVERSAMPLING,
    SpectrumGrid,
    central_sections,
    central_sections_reference,
    fold_friedel,
    grid_reach,
    gridding_window,
    spectrum_grid,
    volumes_from_grid,
)

BOXES = [32, 33]


def rotations(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return random_rotations(count, torch.Generator().manual_seed(seed), dtype)


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


def correction_of(box: int) -> Tensor:
    """What trilinear interpolation multiplies a volume by."""
    window = gridding_window(box)
    return window[:, None, None] * window[:, None] * window


def double_grid(box: int, shell: int, components: int = 1) -> SpectrumGrid:
    """The grid of random volumes, in float64."""
    volumes = torch.randn(components, box, box, box, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    grid = spectrum_grid(volumes, shell)
    return SpectrumGrid(grid.values.double(), shell)


@pytest.mark.parametrize("box", BOXES)
def test_sections_are_the_spectra_of_projected_gaussians(box: int, blobs: Any) -> None:
    plane, turns = half_plane(box), rotations(8)
    sections = central_sections(spectrum_grid(blobs.volume(box)[None], plane.max_shell), turns.float(), plane)
    assert sections.shape == (8, 1, len(plane))
    assert relative_error(sections[:, 0], blobs.sections(turns, plane)) < 0.01


@pytest.mark.parametrize("box", BOXES)
def test_sections_stay_accurate_for_particles_filling_two_thirds_of_the_box(box: int, blobs: Any) -> None:
    plane, turns = half_plane(box), rotations(8)
    wide = replace(blobs, positions=blobs.positions * box / 3 / 6.0)
    sections = central_sections(spectrum_grid(wide.volume(box)[None], plane.max_shell), turns.float(), plane)
    assert relative_error(sections[:, 0], wide.sections(turns, plane)) < 0.03


def test_projections_agree_with_torch_fourier_slice(blobs: Any) -> None:
    """It interpolates in the same way, but samples twice as finely and crops."""
    plane, turns = half_plane(32), rotations(6)
    sections = central_sections(spectrum_grid(blobs.volume(32)[None], 15), turns.float(), plane)[:, 0]
    theirs = project_3d_to_2d(blobs.volume(32).float(), turns.mT.float(), pad_factor=2.0)
    assert relative_error(plane.images(sections), plane.images(plane.coefficients(theirs))) < 0.01


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("box", BOXES)
def test_the_kernel_equals_its_readable_twin(box: int, components: int) -> None:
    plane, turns = half_plane(box, 12), rotations(7, dtype=torch.float32)
    grid = double_grid(box, 12, components)
    fast = central_sections(SpectrumGrid(grid.values.float(), 12), turns, plane)
    twin = central_sections_reference(grid, turns.double(), plane)
    assert grid.components == components
    assert fast.shape == twin.shape == (7, components, len(plane))
    assert relative_error(fast, twin) < 1e-5


def test_a_lower_shell_is_a_prefix_and_a_smaller_grid(blobs: Any) -> None:
    plane, turns = half_plane(32), rotations(3, dtype=torch.float32)
    whole = central_sections(spectrum_grid(blobs.volume(32)[None], 15), turns, plane)
    lower = central_sections(spectrum_grid(blobs.volume(32)[None], 6), turns, plane.truncated(6))
    torch.testing.assert_close(lower, whole[..., : plane.count(6)])


@pytest.mark.parametrize("box", BOXES)
def test_turning_the_volume_equals_turning_the_view(box: int, blobs: Any) -> None:
    """With quarter turns, which map the grid on itself, exactly; else to the accuracy of interpolation."""
    plane, turns = half_plane(box, 12), rotations(5)
    grid = spectrum_grid(blobs.volume(box)[None], 12)
    quarter = rotation_from_vector(
        torch.tensor([[math.pi / 2, 0, 0], [0, math.pi / 2, 0], [0, 0, math.pi / 2]]).double()
    )
    for turn, tolerance in ((quarter[0] @ quarter[1], 3e-5), (quarter[2], 3e-5), (rotations(1, 9)[0], 0.015)):
        turned = replace(blobs, positions=blobs.positions @ turn.T)
        of_turned = central_sections(spectrum_grid(turned.volume(box)[None], 12), turns.float(), plane)
        assert relative_error(of_turned, central_sections(grid, (turns @ turn).float(), plane)) < tolerance


def test_half_a_turn_in_the_plane_conjugates() -> None:
    plane, turns = half_plane(20), rotations(6)
    grid = double_grid(20, 9)
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    sections = central_sections_reference(grid, turns, plane)
    torch.testing.assert_close(central_sections_reference(grid, half_turn @ turns, plane), sections.conj())


def test_a_quarter_turn_in_the_plane_turns_the_image() -> None:
    plane, turns = half_plane(21), rotations(4)
    grid = double_grid(21, 10)
    quarter = rotation_from_vector(torch.tensor([0, 0, math.pi / 2], dtype=torch.float64))
    images = plane.images(central_sections_reference(grid, turns, plane)[:, 0])
    turned = plane.images(central_sections_reference(grid, quarter @ turns, plane)[:, 0])
    torch.testing.assert_close(turned, images.transpose(-1, -2).flip(-1))  # x to y, y to -x


def test_a_view_along_z_is_the_sum_along_z(blobs: Any) -> None:
    """With the identity every point lies on the grid, so that nothing is interpolated but what the correction undoes."""
    plane, volume = half_plane(32), blobs.volume(32)
    flat = volume / correction_of(32)
    section = central_sections_reference(
        double_like(spectrum_grid(volume[None], 15)), torch.eye(3).double()[None], plane
    )
    assert relative_error(section[0, 0], plane.coefficients(flat.sum(0))) < 1e-6


def double_like(grid: SpectrumGrid) -> SpectrumGrid:
    return SpectrumGrid(grid.values.double(), grid.max_shell)


def test_the_twin_differentiates_in_rotation_and_volume() -> None:
    plane, base = half_plane(8, 2), rotations(2)
    grid = double_grid(8, 2)

    def sections(tangent: Tensor, values: Tensor) -> Tensor:
        turned = rotation_from_vector(tangent) @ base
        return torch.view_as_real(central_sections_reference(SpectrumGrid(values, 2), turned, plane))

    inputs = (torch.zeros(2, 3, dtype=torch.float64, requires_grad=True), grid.values.requires_grad_())
    assert torch.autograd.gradcheck(sections, inputs, fast_mode=True)


def inserted_slices(turns: Tensor, plane: HalfPlane, numerators: Tensor, denominators: Tensor) -> Tensor:
    """Grid (z, y, x, 3) to which slices were added."""
    reach = grid_reach(plane.max_shell)
    grids = denominators.new_zeros(1, 2 * reach + 1, 2 * reach + 1, reach + 1, 3)
    tensor_kernels.insert_slices(
        grids, turns, torch.zeros(len(turns), dtype=torch.long), plane.frequencies, numerators, denominators
    )
    return grids[0]


@pytest.mark.parametrize("box", [12, 13])
def test_insertion_is_the_exact_adjoint_of_extraction(box: int) -> None:
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩ as real-linear maps between the stored half of the grid and the coefficients."""
    plane, turns = half_plane(box), rotations(9)
    x = SpectrumGrid(torch.randn_like(double_grid(box, plane.max_shell).values), plane.max_shell)
    y = torch.randn(9, len(plane), generator=torch.Generator().manual_seed(1), dtype=torch.complex128)
    image_side = (central_sections_reference(x, turns, plane)[:, 0].conj() * y).real.sum()
    grid = inserted_slices(turns, plane, y, y.abs())
    grid_side = (x.values * grid[..., :2]).sum()
    assert abs(float(image_side - grid_side)) < 1e-10 * float(y.norm() * x.values.norm())
    assert float(grid[..., 2].sum()) == pytest.approx(float(y.abs().sum()))


def brute_force_insertion(points: Tensor, values: Tensor, reach: int) -> Tensor:
    """Both mates of every coefficient spread over the whole grid, one by one; complex (z, y, x)."""
    whole = torch.zeros(*[2 * reach + 2] * 3, dtype=torch.complex128)
    for point, value in zip(points.tolist(), values.tolist(), strict=True):
        for sign in (1, -1):
            mate = [sign * c for c in point]
            base = [math.floor(c) for c in mate]
            for corner in product((0, 1), repeat=3):
                weight = math.prod(1 - abs(m - b - d) for m, b, d in zip(mate, base, corner, strict=True))
                x, y, z = (b + d + reach for b, d in zip(base, corner, strict=True))
                whole[z, y, x] += weight * (value if sign > 0 else value.conjugate())
    return whole[:-1, :-1, :-1]


def test_folding_completes_the_plane_that_mates_share() -> None:
    plane, turns = half_plane(8), rotations(4)
    y = torch.randn(4, len(plane), generator=torch.Generator().manual_seed(1), dtype=torch.complex128)
    density = torch.rand(4, len(plane), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    folded = fold_friedel(inserted_slices(turns, plane, y, density), 1)
    reach = grid_reach(plane.max_shell)
    points = (OVERSAMPLING * plane.frequencies.double() @ turns[:, :2]).reshape(-1, 3)
    whole = brute_force_insertion(points, y.flatten(), reach)[..., reach:]
    torch.testing.assert_close(torch.view_as_complex(folded[..., :2].contiguous()), whole)
    torch.testing.assert_close(
        folded[..., 2], brute_force_insertion(points, density.flatten(), reach)[..., reach:].real
    )


@pytest.mark.parametrize("shell", [1, 2, 7, 15, 31])
def test_no_section_reaches_beyond_the_grid(shell: int) -> None:
    farthest = half_plane(64, shell).frequencies.double().norm(dim=-1).max()
    assert float(OVERSAMPLING * farthest) < grid_reach(shell)
    assert spectrum_grid(torch.zeros(1, 64, 64, 64), shell).values.shape == (
        2 * grid_reach(shell) + 1, 2 * grid_reach(shell) + 1, grid_reach(shell) + 1, 2,
    )  # fmt: skip


@pytest.mark.parametrize("box", BOXES)
def test_a_grid_of_local_averages_gives_back_the_volume(box: int, blobs: Any) -> None:
    """Averaging a spectrum over the interpolation kernel multiplies the volume by the correction, which is undone."""
    volumes = torch.stack([blobs.volume(box), -blobs.volume(box).flip(0)])
    correction = correction_of(box)
    # The grid is that of volume / correction; a second factor of the correction makes it that of volume · correction.
    values = spectrum_grid(volumes * correction**2, (box - 1) // 2).values
    spectrum = torch.view_as_complex(values.unflatten(-1, (-1, 2)).contiguous()).movedim(-1, 0)
    assert (volumes_from_grid(spectrum, box) - volumes).abs().max() < 1e-4 * volumes.abs().max()


@pytest.mark.parametrize("box", BOXES)
def test_the_gridding_correction_is_the_transform_of_trilinear_interpolation(box: int) -> None:
    """Σ over the triangle of half width 1 / 2n, integrated against a plane wave to r."""
    correction = correction_of(box)
    offset = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    for r in ((0, 0, 0), (3, 0, -5), (-7, 8, 2)):
        index = tuple(box // 2 + c for c in r)
        lines = [torch.trapezoid((1 - offset.abs()) * torch.cos(math.pi * offset * c / box), offset) for c in r]
        assert float(correction[index]) == pytest.approx(float(lines[0] * lines[1] * lines[2]), rel=1e-5)
