"""Half maps: their correlation, the filter made of it, and what is joined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cryofire.geometry.fourier import volume_spectrum
from cryofire.geometry.grids import fourier_shell_correlation, shell_map
from cryofire.volumes.accumulator import GridSums, add_images, empty_sums, mean_density, solve_maps
from cryofire.volumes.halves import (
    agreed_precision,
    component_fsc,
    join_low_shells,
    resolved_shell,
    smoothed,
    solve_each_half,
    solve_halves,
    unfiltered_halves,
    wiener_precision,
)
from cryofire.volumes.masks import soft_sphere


def random_volume(box: int, seed: int) -> Tensor:
    return torch.randn(box, box, box, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sums_of(images: Any) -> GridSums:
    sums = empty_sums(images.plane.max_shell)
    add_images(sums, images.batch, images.rotations, images.shifts, images.half)
    return sums


@pytest.mark.parametrize("value", [0.05, 0.5, 0.9])
def test_wiener_precision_is_density_over_the_signal_to_noise_ratio_of_both_halves(value: float) -> None:
    """With FSC = s / (s + n) per half, the joint map has the ratio 2 s / n."""
    density = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) + 0.5
    precision = wiener_precision(density, torch.full((2, 9), value))
    signal, noise = value, 1 - value
    torch.testing.assert_close(precision, density * noise / (2 * signal))


def test_wiener_precision_stays_finite_and_positive() -> None:
    fsc = torch.tensor([[1.0, 1.0, 1.0, -0.4, 0.0, 0.0, 0.0]])
    precision = wiener_precision(torch.ones(1, 7), fsc)
    assert (precision > 0).all()
    assert float(precision[0, 0]) == pytest.approx(0.5e-4, rel=0.01)
    assert float(precision[0, -1]) == pytest.approx(499.5, rel=0.01)


def test_smoothing_averages_neighbours() -> None:
    line = torch.stack([torch.arange(8.0), torch.ones(8)])
    torch.testing.assert_close(smoothed(line)[:, 1:-1], line[:, 1:-1])
    torch.testing.assert_close(smoothed(line)[1], torch.ones(8))
    impulse = torch.zeros(1, 7)
    impulse[0, 3] = 3.0
    torch.testing.assert_close(smoothed(impulse), torch.tensor([[0.0, 0, 1, 1, 1, 0, 0]]))


@pytest.mark.parametrize("box", [16, 17])
def test_joining_replaces_low_shells_and_keeps_the_rest(box: int) -> None:
    half, joint = random_volume(box, 1), random_volume(box, 2)
    joined = volume_spectrum(join_low_shells(half, joint, 4))
    shells = shell_map(box, 3)
    torch.testing.assert_close(joined[shells <= 4], volume_spectrum(joint)[shells <= 4])
    torch.testing.assert_close(joined[shells > 4], volume_spectrum(half)[shells > 4])
    pair = torch.stack([half, joint])
    torch.testing.assert_close(join_low_shells(pair, pair.flip(0), 4)[0], join_low_shells(half, joint, 4))


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([1.0, 0.9, 0.8, 0.1, 0.5], 2),
        ([1.0, 0.9, 0.2, 0.2, 0.2], 4),
        ([1.0, 0.1, 0.9, 0.9, 0.9], 0),
        ([0.0, 0.9, 0.9, 0.9, 0.142], 3),
    ],
)
def test_resolution_ends_where_the_correlation_first_falls(curve: list[float], expected: int) -> None:
    assert resolved_shell(torch.tensor(curve)) == expected


def test_resolved_shell_takes_a_threshold() -> None:
    assert resolved_shell(torch.tensor([1.0, 0.9, 0.6, 0.4, 0.2]), 0.5) == 2


def test_component_fsc_compares_component_by_component() -> None:
    first = torch.stack([random_volume(16, 1), random_volume(16, 2)])
    second = torch.stack([random_volume(16, 1), random_volume(16, 3)])
    fsc = component_fsc(first, second)
    torch.testing.assert_close(fsc[0], torch.ones(8))
    torch.testing.assert_close(fsc[1], fourier_shell_correlation(first[1], second[1]))


def test_each_half_is_solved_under_the_given_prior(images: Any) -> None:
    sums, mask = sums_of(images), soft_sphere(images.plane.box, 12.0, 3.0)
    precision = 0.3 * mean_density(sums)
    for half, volumes in enumerate(solve_each_half(sums, mask, precision)):
        torch.testing.assert_close(volumes, solve_maps(sums, images.plane.box, precision, half) * mask)


def test_unfiltered_halves_are_close_to_the_truth(images: Any) -> None:
    sums, mask = sums_of(images), soft_sphere(images.plane.box, 12.0, 3.0)
    truth = images.mean.volume(images.plane.box)
    for half in unfiltered_halves(sums, mask, mean_density(sums)):
        assert float(fourier_shell_correlation(half[0].double(), truth)[1:12].min()) > 0.97


def test_halves_share_their_low_shells_and_nothing_beyond(images: Any) -> None:
    noisy = images.noisy(8.0)
    sums, mask = sums_of(noisy), soft_sphere(images.plane.box, 13.0, 3.0)
    shared = solve_halves(sums, mask, shared_shell=5)
    apart = solve_halves(sums, mask, shared_shell=0)
    correlation = fourier_shell_correlation(shared.halves[0, 0], shared.halves[1, 0])
    torch.testing.assert_close(correlation[:6], torch.ones(6))
    expected = fourier_shell_correlation(apart.halves[0, 0], apart.halves[1, 0])
    torch.testing.assert_close(correlation[6:], expected[6:], atol=1e-4, rtol=0)
    torch.testing.assert_close(shared.joint, apart.joint)
    torch.testing.assert_close(shared.fsc, apart.fsc)  # of the unfiltered halves, before anything is shared


def test_the_wiener_filter_comes_closer_to_the_truth_than_no_filter(images: Any) -> None:
    """And no single rescaling of the joint map would do so."""
    noisy = images.noisy(8.0)
    box = images.plane.box
    truth, mask = images.mean.volume(box).float(), soft_sphere(box, 13.0, 3.0)
    truth = truth - truth.mean()
    sums = sums_of(noisy)
    filtered = solve_halves(sums, mask, shared_shell=0).joint[0]
    plain = (solve_maps(sums, box, 1e-3 * mean_density(sums)) * mask)[0]

    def error(volume: Tensor) -> float:
        return float((volume - volume.mean() - truth).norm() / truth.norm())

    assert error(filtered) < 0.8 * error(plain)
    assert error(filtered) < 0.7
    best = float((filtered * truth).sum() / filtered.square().sum())
    assert best == pytest.approx(1.0, abs=0.15)


def test_maps_of_all_images_have_the_precision_that_the_halves_agree_on(moving_images: Any) -> None:
    images = moving_images
    coordinates = torch.cat([torch.ones_like(images.latents), images.latents], dim=1)
    second = torch.stack([coordinates[:, 0] ** 2, coordinates[:, 0] * coordinates[:, 1], coordinates[:, 1] ** 2], dim=1)
    sums = empty_sums(10, components=2)
    add_images(sums, images.batch.truncated(10), images.rotations, images.shifts, images.half, (coordinates, second))
    mask = soft_sphere(32, 13.0, 3.0)
    precision, fsc = agreed_precision(sums, mask)
    torch.testing.assert_close(precision, wiener_precision(mean_density(sums), fsc))
    unfiltered = unfiltered_halves(sums, mask, mean_density(sums))
    torch.testing.assert_close(fsc, component_fsc(unfiltered[0], unfiltered[1])[:, :11], atol=1e-5, rtol=0)
    maps = solve_halves(sums, mask, 0)
    torch.testing.assert_close(maps.joint, solve_maps(sums, 32, precision) * mask)
    torch.testing.assert_close(maps.fsc, fsc)
