"""The images' likelihood as a quadratic of the maps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from cryofire.volumes.accumulator import GridSums, add_images, empty_sums, mean_density, solve_maps
from cryofire.volumes.quadratic import MapQuadratic, map_quadratic, minimised


def sums_of(images: Any) -> GridSums:
    """Sums of images with one mode, taken as known."""
    shell = images.plane.max_shell
    sums = empty_sums(shell, 2)
    coordinates = torch.cat([torch.ones(len(images.latents), 1), images.latents.float()], dim=1)
    pairs = torch.stack([coordinates[:, 0] ** 2, coordinates.prod(1), coordinates[:, 1] ** 2], dim=1)
    add_images(sums, images.batch, images.rotations, images.shifts, images.half, (coordinates, pairs))
    return sums


@pytest.fixture(scope="module")
def moving_sums(moving_images: Any) -> GridSums:
    return sums_of(moving_images)


def small_quadratic(box: int) -> MapQuadratic:
    """Random sums on the grid of a small box, densities positive definite."""
    generator = torch.Generator().manual_seed(box)
    sums = empty_sums((box - 1) // 2, 2)
    values = torch.rand(sums.values.shape, generator=generator, dtype=torch.float64)
    values[..., :4] -= 0.5
    values[..., 5] *= 0.5
    values[..., [4, 6]] += 0.5
    return map_quadratic(GridSums(values, 2), torch.ones(2, sums.max_shell + 1), box)


@pytest.mark.parametrize("box", [8, 9])
def test_gradient_and_hessian_are_those_of_the_value(box: int) -> None:
    quadratic = small_quadratic(box)
    generator = torch.Generator().manual_seed(1)
    maps, direction = torch.randn(2, 2, box, box, box, generator=generator, dtype=torch.float64)
    at = maps.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(quadratic.value(at), at)
    torch.testing.assert_close(quadratic.gradient(maps), expected)
    change = quadratic.gradient(maps + direction) - quadratic.gradient(maps)
    torch.testing.assert_close(quadratic.bent(direction), change)


@pytest.mark.parametrize("box", [8, 9])
def test_value_is_quadratic(box: int) -> None:
    quadratic = small_quadratic(box)
    generator = torch.Generator().manual_seed(2)
    maps, step = torch.randn(2, 2, box, box, box, generator=generator, dtype=torch.float64)
    back, here, ahead, far = (quadratic.value(maps + t * step) for t in (-1.0, 0.0, 1.0, 2.0))
    assert torch.isclose(ahead - 2 * here + back, far - 2 * ahead + here, rtol=1e-9)
    assert ahead - 2 * here + back > 0
    assert float(quadratic.value(torch.zeros_like(maps))) == 0


def test_shell_densities_are_means_of_the_curvature() -> None:
    """A density of one coordinate and one shell bends L by the mean density of that shell, on average over random ones."""
    quadratic = small_quadratic(9)
    densities = quadratic.shell_densities()
    assert densities.shape == (2, 5)
    inside = (quadratic.shells == 3) & (quadratic.weights > 0)
    weights = quadratic.weights[inside]
    for coordinate, pair in ((0, 0), (1, 2)):
        expected = (quadratic.densities[pair][inside] * weights).sum() / weights.sum()
        assert torch.isclose(densities[coordinate, 3], expected)


@pytest.mark.parametrize("box", [8, 9])
def test_conjugate_gradients_reach_the_minimum(box: int) -> None:
    """Where the gradient inside the support all but vanishes; L falls at every step to what is reported."""
    quadratic = small_quadratic(box)
    support = torch.zeros(box, box, box, dtype=torch.float64)
    support[2:-2, 2:-2, 2:-2] = 1
    start = torch.randn(2, box, box, box, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    levels = [float(quadratic.value(support * start))]
    found = minimised(quadratic, support, start, 60, levels.append)
    assert all(after <= before + 1e-9 * abs(before) for before, after in pairwise(levels))
    assert levels[-1] == pytest.approx(float(quadratic.value(support * found)), rel=1e-6)
    inside = (support * found).requires_grad_(True)
    gradient = torch.autograd.grad(quadratic.value(inside), inside)[0] * support
    first = (support * start).requires_grad_(True)
    before = torch.autograd.grad(quadratic.value(first), first)[0] * support
    assert float(gradient.norm()) < 1e-2 * float(before.norm())


def test_closed_form_maps_are_near_the_minimum(moving_sums: GridSums) -> None:
    precision = 1e-3 * mean_density(moving_sums)
    quadratic = map_quadratic(moving_sums, precision, 32)
    maps = solve_maps(moving_sums, 32, precision)
    best = float(quadratic.value(maps))
    assert best < 0
    assert best < float(quadratic.value(0.9 * maps))
    assert best < float(quadratic.value(1.1 * maps))
    assert best < float(quadratic.value(maps.roll(1, -1)))
    assert best < float(quadratic.value(maps * torch.tensor([1.0, -1.0])[:, None, None, None]))


def test_likelihood_of_images_up_to_interpolation(moving_sums: GridSums, moving_images: Any) -> None:
    """Images without noise: at the truth their residual vanishes, so that L without a prior is minus their power."""
    quadratic = map_quadratic(moving_sums, torch.zeros(2, moving_sums.max_shell + 1), 32)
    truth = torch.stack([moving_images.mean.volume(32), moving_images.mode.volume(32)]).float()
    power = float(moving_images.batch.data.abs().square().sum())
    assert float(quadratic.value(truth)) == pytest.approx(-power, rel=0.05)
