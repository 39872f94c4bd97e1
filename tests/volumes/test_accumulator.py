"""Back-projection of images of known maps returns the maps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cryofire.geometry.fourier import volume_spectrum
from cryofire.geometry.grids import fourier_shell_correlation, shell_map
from cryofire.physics.imaging import ImageBatch
from cryofire.physics.projection import OVERSAMPLING, fold_friedel, grid_reach
from cryofire.physics.shift import phase_ramp
from cryofire.volumes.accumulator import (
    GridSums,
    add_images,
    add_sections,
    empty_sums,
    grid_shells,
    mean_density,
    solve_maps,
)

RIDGE = 1e-4


def back_projection(images: Any, max_shell: int | None = None) -> GridSums:
    shell = images.plane.max_shell if max_shell is None else max_shell
    sums = empty_sums(shell)
    add_images(sums, images.batch.truncated(shell), images.rotations, images.shifts, images.half)
    return sums


def amplitude(volume: Tensor, truth: Tensor, shell: int) -> Tensor:
    """Factor by which the truth must be multiplied to fit the volume best, per shell 1 … `shell`."""
    shells = shell_map(truth.shape[-1], 3).flatten()
    a, b = volume_spectrum(volume.double()).flatten(), volume_spectrum(truth).flatten()
    product = torch.zeros(int(shells.max()) + 1, dtype=torch.float64).index_add_(0, shells, (a * b.conj()).real)
    power = torch.zeros_like(product).index_add_(0, shells, b.abs().square())
    return (product / power)[1 : shell + 1]


@pytest.mark.parametrize("shell", [None, 8])
def test_noise_free_images_return_their_map(images: Any, shell: int | None) -> None:
    sums = back_projection(images, shell)
    box, truth = images.plane.box, images.mean.volume(images.plane.box)
    volume = solve_maps(sums, box, RIDGE * mean_density(sums))[0]
    last = sums.max_shell
    correlation = fourier_shell_correlation(volume.double(), truth)[1 : last + 1]
    assert float(correlation[:-1].min()) > 0.99
    assert float(correlation[-1]) > 0.96
    assert (amplitude(volume, truth, last - 1) - 1).abs().max() < 0.04  # trilinear gridding: 3 % in shell 3


def test_each_half_knows_only_its_own_images(images: Any) -> None:
    """And the two together are the map of all."""
    box, truth = images.plane.box, images.mean.volume(images.plane.box)
    sums = back_projection(images)
    precision = RIDGE * mean_density(sums)
    for side in range(2):
        mine = images.half == side
        alone = empty_sums(images.plane.max_shell)
        add_images(alone, images.batch.take(mine), images.rotations[mine], images.shifts[mine], images.half[mine])
        assert (alone.values[1 - side] == 0).all()
        torch.testing.assert_close(alone.values[side], sums.values[side], rtol=1e-4, atol=1e-3)
        half_map = solve_maps(sums, box, precision, side)
        torch.testing.assert_close(half_map, solve_maps(alone, box, precision), rtol=1e-3, atol=1e-4)
        assert float(fourier_shell_correlation(half_map[0].double(), truth)[1:12].min()) > 0.98


def test_contrast_enters_through_the_moments(images: Any) -> None:
    """Images of twice the contrast, said so, give the same map; unsaid, one of twice the amplitude."""
    box = images.plane.box
    doubled = ImageBatch(2 * images.batch.data, images.batch.modulation, images.plane)
    ones = torch.ones(len(images.half), 1)
    told, untold = empty_sums(images.plane.max_shell), empty_sums(images.plane.max_shell)
    add_images(told, doubled, images.rotations, images.shifts, images.half, (2 * ones, 4 * ones))
    add_images(untold, doubled, images.rotations, images.shifts, images.half)
    plain = back_projection(images)
    expected = solve_maps(plain, box, RIDGE * mean_density(plain))
    torch.testing.assert_close(solve_maps(told, box, RIDGE * mean_density(told)), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        solve_maps(untold, box, RIDGE * mean_density(untold)), 2 * expected, rtol=1e-3, atol=1e-4
    )


def test_adding_images_is_adding_their_sections(images: Any) -> None:
    """With the phase ramp undone and the contrast transfer applied, and in two calls as in one."""
    plane, batch = images.plane, images.batch
    back = (batch.modulation * batch.data * phase_ramp(images.shifts, plane.frequencies, plane.box).conj()).to(
        torch.complex64
    )
    sections = empty_sums(plane.max_shell)
    for rows in (slice(0, 300), slice(300, None)):
        square = batch.modulation[rows].square()
        add_sections(sections, plane, images.rotations[rows], back[rows], square, images.half[rows])
    difference = sections.values - back_projection(images).values
    assert float(difference.norm() / sections.values.norm()) < 1e-5


def test_the_grid_holds_all_the_density(images: Any) -> None:
    """Counting the plane x = 0 once and the rest with its mates: 2 Σ C²."""
    folded = fold_friedel(back_projection(images).values.sum(0), 1)[..., 2].double()
    total = folded[..., 0].sum() + 2 * folded[..., 1:].sum()
    expected = 2 * images.batch.modulation.double().square().sum()
    assert float(total) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("shell", "components"), [(1, 1), (7, 2), (15, 4)])
def test_empty_sums_have_room_for_shell_and_components(shell: int, components: int) -> None:
    sums = empty_sums(shell, components)
    assert (sums.max_shell, sums.reach, sums.components) == (shell, grid_reach(shell), components)
    assert sums.values.shape[-1] == 2 * components + components * (components + 1) // 2
    assert (sums.values == 0).all()
    maps = solve_maps(sums, 32, torch.ones(components, shell + 1))
    assert torch.equal(maps, torch.zeros(components, 32, 32, 32))


def test_grid_shells_are_rounded_radii() -> None:
    reach = 9
    shells = grid_shells(reach)
    assert shells.shape == (2 * reach + 1, 2 * reach + 1, reach + 1)
    for z, y, x in ((0, 0, 0), (3, -4, 0), (-9, 2, 9), (0, 7, 1)):
        radius = math.sqrt(z * z + y * y + x * x) / OVERSAMPLING
        assert int(shells[z + reach, y + reach, x]) == round(radius)
