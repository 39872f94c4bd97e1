"""Half planes, shells and shell correlations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cryofire.geometry.fourier import image_spectrum, volume_from_spectrum, volume_spectrum
from cryofire.geometry.grids import (
    fourier_shell_correlation,
    half_plane,
    interpolated,
    interpolation_matrix,
    radius_map,
    shell_map,
)

BOXES = [16, 17, 32]


def random_images(box: int, count: int = 3) -> Tensor:
    return torch.randn(count, box, box, generator=torch.Generator().manual_seed(box), dtype=torch.float64)


def random_volume(box: int, seed: int) -> Tensor:
    return torch.randn(box, box, box, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("box", BOXES)
def test_every_pair_of_mates_appears_exactly_once(box: int) -> None:
    plane = half_plane(box)
    listed = [tuple(pair) for pair in plane.frequencies.tolist()]
    both = listed + [(-x, -y) for x, y in listed]
    limit = (box - 1) // 2
    span = range(-limit, limit + 1)
    expected = {(x, y) for x in span for y in span if (x, y) != (0, 0) and round((x * x + y * y) ** 0.5) <= limit}
    assert len(both) == len(set(both))
    assert set(both) == expected
    assert len(plane) == len(listed)


@pytest.mark.parametrize("box", BOXES)
def test_coefficients_are_sorted_by_radius(box: int) -> None:
    plane = half_plane(box)
    radius = plane.frequencies.double().norm(dim=-1)
    assert (radius.diff() >= 0).all()
    assert torch.equal(plane.shells, radius.round().long())
    assert (int(plane.shells.min()), int(plane.shells.max())) == (1, (box - 1) // 2)


@pytest.mark.parametrize("box", BOXES)
def test_a_resolution_limit_is_a_prefix(box: int) -> None:
    plane = half_plane(box)
    for shell in range(1, plane.max_shell + 1):
        count = plane.count(shell)
        lower = plane.truncated(shell)
        assert len(lower) == count == int((plane.shells <= shell).sum())
        assert torch.equal(lower.frequencies, plane.frequencies[:count])
        assert torch.equal(lower.shells, plane.shells[:count])
    assert torch.equal(plane.truncated(1000).frequencies, plane.frequencies)


@pytest.mark.parametrize("box", [30, 31, 36, 64])
def test_the_order_of_frequencies_does_not_depend_on_the_box(box: int) -> None:
    reference = half_plane(128, 14)
    assert torch.equal(half_plane(box, 14).frequencies, reference.frequencies)
    assert torch.equal(half_plane(box, 14).shells, reference.shells)


@pytest.mark.parametrize(("box", "shell"), [(16, 8), (17, 9), (16, 0), (16, -1), (2, None)])
def test_shells_that_the_box_does_not_hold_are_refused(box: int, shell: int | None) -> None:
    with pytest.raises(ValueError, match="holds shells"):
        half_plane(box, shell)


@pytest.mark.parametrize("box", BOXES)
def test_coefficients_are_those_of_the_spectrum(box: int) -> None:
    plane, images = half_plane(box), random_images(box)
    spectrum, coefficients = image_spectrum(images), plane.coefficients(images)
    for index in (0, 5, len(plane) - 1):
        kx, ky = plane.frequencies[index].tolist()
        torch.testing.assert_close(coefficients[:, index], spectrum[:, ky + box // 2, kx + box // 2])


@pytest.mark.parametrize("shell", [None, 5])
@pytest.mark.parametrize("box", BOXES)
def test_coefficients_and_images_are_one_to_one(box: int, shell: int | None) -> None:
    plane = half_plane(box, shell)
    generator = torch.Generator().manual_seed(1)
    coefficients = torch.randn(2, len(plane), generator=generator, dtype=torch.complex128)
    images = plane.images(coefficients)
    torch.testing.assert_close(plane.coefficients(images), coefficients)
    torch.testing.assert_close(plane.images(plane.coefficients(images)), images)
    assert images.mean((-2, -1)).abs().max() < 1e-12
    torch.testing.assert_close(
        images.square().sum((-2, -1)) * box**2, 2 * coefficients.abs().square().sum(-1)
    )  # fmt: skip


@pytest.mark.parametrize("box", BOXES)
def test_scattered_spectra_are_hermitian(box: int) -> None:
    plane = half_plane(box)
    coefficients = torch.randn(len(plane), generator=torch.Generator().manual_seed(2), dtype=torch.complex128)
    spectrum = plane.scatter(coefficients)
    assert torch.fft.ifftn(torch.fft.ifftshift(spectrum)).imag.abs().max() < 1e-12
    torch.testing.assert_close(plane.gather(spectrum), coefficients)
    assert int((spectrum != 0).sum()) == 2 * len(plane)


@pytest.mark.parametrize("box", BOXES)
def test_shell_mean_averages_each_shell(box: int) -> None:
    plane = half_plane(box)
    values = torch.rand(2, len(plane), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    means = plane.shell_mean(values)
    assert means.shape == (2, plane.max_shell + 1)
    assert (means[:, 0] == 0).all()
    for shell in range(1, plane.max_shell + 1):
        torch.testing.assert_close(means[:, shell], values[:, plane.shells == shell].mean(-1))
    torch.testing.assert_close(
        plane.shell_mean(plane.shells.double())[1:], torch.arange(1, plane.max_shell + 1).double()
    )
    assert plane.shell_sizes().tolist() == [int((plane.shells == s).sum()) for s in range(plane.max_shell + 1)]


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("box", [8, 9])
def test_maps_of_radius_and_shell_count_from_the_origin(box: int, axes: int) -> None:
    radius, shells = radius_map(box, axes), shell_map(box, axes)
    origin = (box // 2,) * axes
    assert radius.shape == shells.shape == (box,) * axes
    assert float(radius[origin]) == 0 == int(shells[origin])
    corner = (0,) * axes
    assert float(radius[corner]) == pytest.approx((axes * (box // 2) ** 2) ** 0.5)
    assert int(shells[corner]) == round((axes * (box // 2) ** 2) ** 0.5)
    assert torch.equal(radius, radius.transpose(-1, 0))
    assert float(radius[(*origin[:-1], box // 2 - 3)]) == 3


@pytest.mark.parametrize("box", [16, 17])
def test_correlation_with_itself_is_one_and_follows_the_sign(box: int) -> None:
    volume = random_volume(box, 0)
    correlation = fourier_shell_correlation(volume, volume)
    assert correlation.shape == ((box - 1) // 2 + 1,)
    torch.testing.assert_close(correlation, torch.ones_like(correlation))
    torch.testing.assert_close(fourier_shell_correlation(volume, -volume)[1:], -torch.ones(len(correlation) - 1))
    torch.testing.assert_close(fourier_shell_correlation(volume, 1e-3 * volume + 7.0), correlation)


@pytest.mark.parametrize("box", [16, 17])
def test_correlation_is_symmetric_and_blind_to_shell_weights(box: int) -> None:
    first, second = random_volume(box, 1), random_volume(box, 2)
    weights = torch.rand(box, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.5
    radial = weights[shell_map(box, 3).clamp_max(box - 1)]
    weighted = volume_from_spectrum(volume_spectrum(second) * radial)
    expected = fourier_shell_correlation(first, second)
    torch.testing.assert_close(fourier_shell_correlation(second, first), expected)
    # On the Nyquist plane of an even box mates are not both stored; the shells compared stay below it.
    torch.testing.assert_close(fourier_shell_correlation(first, weighted), expected, atol=1e-6, rtol=1e-5)


def test_correlation_of_noise_vanishes_and_of_half_signal_is_one_half() -> None:
    signal, first, second = (random_volume(32, seed) for seed in (1, 2, 3))
    counts = torch.bincount(shell_map(32, 3).flatten())[1:16]
    noise = fourier_shell_correlation(first, second)[1:]
    assert (noise.abs() < 5 * (2 / counts).sqrt()).all()
    mixed = fourier_shell_correlation(signal + first, signal + second)
    assert float(mixed[6:].mean()) == pytest.approx(0.5, abs=0.03)


def test_the_shell_correlation_of_few_shells_is_the_beginning_of_that_of_all() -> None:
    first, second = (torch.randn(17, 17, 17, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    torch.testing.assert_close(
        fourier_shell_correlation(first, second, 5), fourier_shell_correlation(first, second)[:6]
    )


def test_correlation_tells_the_shells_apart() -> None:
    volume, other = random_volume(24, 5), random_volume(24, 6)
    low = shell_map(24, 3) <= 5
    joined = volume_from_spectrum(torch.where(low, volume_spectrum(volume), volume_spectrum(other)))
    correlation = fourier_shell_correlation(volume, joined)
    torch.testing.assert_close(correlation[:6], torch.ones(6))
    assert (correlation[7:].abs() < 0.3).all()


@pytest.mark.parametrize(("box", "size"), [(16, 4), (17, 8), (12, 5), (9, 9)])
def test_interpolation_is_exact_for_linear_functions(box: int, size: int) -> None:
    inside = slice(box // 2 - box // 4, box // 2 + box // 4)
    points = (torch.arange(size) - size // 2) / size
    voxels = (torch.arange(box) - box // 2) / box
    assert torch.allclose((interpolation_matrix(box, size) @ points)[inside], voxels[inside], atol=1e-6)
    z, y, x = points[:, None, None], points[:, None], points
    values = interpolated((1 + 2 * z - y + 3 * x)[None], box)[0]
    expected = 1 + 2 * voxels[:, None, None] - voxels[:, None] + 3 * voxels
    assert torch.allclose(values[inside, inside, inside], expected[inside, inside, inside], atol=1e-5)
