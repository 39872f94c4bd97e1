"""Centred transforms against sums, closed forms and each other, for even and odd boxes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cryofire.geometry.fourier import (
    half_volume_spectrum,
    image_from_spectrum,
    image_spectrum,
    resample,
    resize_centred,
    volume_from_half_spectrum,
    volume_from_spectrum,
    volume_spectrum,
)

BOXES = [8, 9]


def random_field(box: int, axes: int, seed: int = 0) -> Tensor:
    return torch.randn(*[box] * axes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def axis(box: int) -> Tensor:
    return torch.arange(box, dtype=torch.float64) - box // 2


def gaussian(box: int, sigma: float, axes: int) -> Tensor:
    line = torch.exp(-0.5 * (axis(box) / sigma) ** 2)
    field = torch.ones((), dtype=torch.float64)
    for _ in range(axes):
        field = field[..., None] * line
    return field


def band_limited(box: int, axes: int, limit: int) -> Tensor:
    """A random real field without frequencies beyond ±limit on any axis."""
    dims = tuple(range(-axes, 0))
    spectrum = torch.fft.fftn(random_field(box, axes))
    keep = (torch.fft.fftfreq(box, 1 / box, dtype=torch.float64).abs().round() <= limit).double()
    for dim in dims:
        spectrum = spectrum * keep.reshape([-1] + [1] * (-dim - 1))
    return torch.fft.ifftn(spectrum, dim=dims).real


@pytest.mark.parametrize("box", BOXES)
def test_image_spectrum_is_the_sum_about_the_centre(box: int) -> None:
    image = random_field(box, 2)
    wave = torch.exp(-2j * math.pi / box * axis(box)[:, None] * axis(box))
    torch.testing.assert_close(image_spectrum(image), wave @ image.to(wave.dtype) @ wave.T)


@pytest.mark.parametrize("box", BOXES)
def test_volume_spectrum_is_the_sum_about_the_centre(box: int) -> None:
    volume = random_field(box, 3)
    wave = torch.exp(-2j * math.pi / box * axis(box)[:, None] * axis(box))
    expected = torch.einsum("az,by,cx,zyx->abc", wave, wave, wave, volume.to(wave.dtype))
    torch.testing.assert_close(volume_spectrum(volume), expected)


@pytest.mark.parametrize("box", BOXES)
def test_a_shifted_delta_has_a_phase_ramp(box: int) -> None:
    image = torch.zeros(box, box, dtype=torch.float64)
    image[box // 2 - 1, box // 2 + 2] = 1.0
    ky, kx = torch.meshgrid(axis(box), axis(box), indexing="ij")
    angle = -2 * math.pi / box * (2 * kx - ky)
    torch.testing.assert_close(image_spectrum(image), torch.polar(torch.ones_like(angle), angle))


@pytest.mark.parametrize("box", [32, 33])
def test_a_centred_gaussian_has_the_closed_form_spectrum(box: int) -> None:
    sigma = 2.5
    k = axis(box) / box
    line = math.sqrt(2 * math.pi) * sigma * torch.exp(-2 * math.pi**2 * sigma**2 * k**2)
    spectrum = volume_spectrum(gaussian(box, sigma, 3))
    expected = line[:, None, None] * line[:, None] * line
    assert (spectrum - expected).abs().max() < 1e-7 * expected.max()
    plane = image_spectrum(gaussian(box, sigma, 2))
    assert (plane - line[:, None] * line).abs().max() < 1e-7 * line.max() ** 2


@pytest.mark.parametrize("box", BOXES)
def test_parseval(box: int) -> None:
    image, volume = random_field(box, 2), random_field(box, 3)
    torch.testing.assert_close(image_spectrum(image).abs().square().sum(), box**2 * image.square().sum())
    torch.testing.assert_close(volume_spectrum(volume).abs().square().sum(), box**3 * volume.square().sum())


@pytest.mark.parametrize("box", BOXES)
def test_transforms_come_back(box: int) -> None:
    images = torch.stack([random_field(box, 2, seed) for seed in range(3)])
    volumes = torch.stack([random_field(box, 3, seed) for seed in range(2)])
    torch.testing.assert_close(image_from_spectrum(image_spectrum(images)), images)
    torch.testing.assert_close(volume_from_spectrum(volume_spectrum(volumes)), volumes)
    torch.testing.assert_close(image_spectrum(images)[1], image_spectrum(images[1]))
    torch.testing.assert_close(volume_spectrum(volumes)[1], volume_spectrum(volumes[1]))


@pytest.mark.parametrize("box", BOXES)
def test_a_projection_along_z_is_the_central_section(box: int) -> None:
    volume = random_field(box, 3)
    torch.testing.assert_close(image_spectrum(volume.sum(0)), volume_spectrum(volume)[box // 2])


@pytest.mark.parametrize("size", [13, 14, 20, 21, 8, 7])
@pytest.mark.parametrize("box", [13, 14])
def test_resize_keeps_the_origin(box: int, size: int) -> None:
    volume = random_field(box, 3)
    resized = resize_centred(volume, size, 3)
    assert resized.shape == (size, size, size)
    for offset in ((0, 0, 0), (1, -2, 3), (-3, 2, -1)):
        old, new = (tuple(n // 2 + o for o in offset) for n in (box, size))
        assert resized[new] == volume[old]
    if size > box:
        assert resized.sum() == pytest.approx(float(volume.sum()))
        torch.testing.assert_close(resize_centred(resized, box, 3), volume)


@pytest.mark.parametrize("size", [11, 12, 24, 25])
@pytest.mark.parametrize("box", [16, 17])
def test_resample_evaluates_the_trigonometric_interpolant(box: int, size: int) -> None:
    limit = (min(box, size) - 1) // 2
    image = band_limited(box, 2, limit)
    spectrum = image_spectrum(image)
    wave = torch.exp(2j * math.pi * (axis(size) / size)[:, None] * axis(box))
    expected = (wave @ spectrum @ wave.T).real / box**2
    torch.testing.assert_close(resample(image, size, 2), expected)
    torch.testing.assert_close(resample(resample(image, size, 2), box, 2), image)


def test_resample_of_volumes_keeps_values() -> None:
    fine, coarse = resample(gaussian(32, 3.0, 3), 48, 3), gaussian(32, 3.0, 3)
    assert (fine[::3, ::3, ::3] - coarse[::2, ::2, ::2]).abs().max() < 1e-6
    constant = torch.full((9, 9, 9), 2.5, dtype=torch.float64)
    torch.testing.assert_close(resample(constant, 6, 3), torch.full((6, 6, 6), 2.5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("box", "size", "reach"), [(8, 8, 3), (9, 9, 4), (8, 16, 7), (9, 18, 8), (9, 18, 5), (8, 15, 7)]
)
def test_half_volume_spectrum_is_the_half_of_the_whole(box: int, size: int, reach: int) -> None:
    volume = torch.stack([random_field(box, 3, seed) for seed in range(2)])
    whole = volume_spectrum(resize_centred(volume, size, 3))
    near = slice(size // 2 - reach, size // 2 + reach + 1)
    expected = whole[:, near, near, size // 2 : size // 2 + reach + 1]
    torch.testing.assert_close(half_volume_spectrum(volume, size, reach), expected)


@pytest.mark.parametrize("box", [10, 11])
def test_half_spectrum_of_a_band_limited_volume_comes_back(box: int) -> None:
    limit = (box - 1) // 2 - 1
    volume = torch.stack([band_limited(box, 3, limit), -2 * band_limited(box, 3, limit)])
    half = half_volume_spectrum(volume, box, limit)
    torch.testing.assert_close(volume_from_half_spectrum(half, box, box), volume)


@pytest.mark.parametrize("box", [20, 21])
def test_half_spectrum_of_a_padded_volume_comes_back(box: int) -> None:
    offset = gaussian(box, 1.5, 3).roll((2, -1, 1), (0, 1, 2))
    half = half_volume_spectrum(offset, 2 * box, box - 1)
    assert (volume_from_half_spectrum(half, 2 * box, box) - offset).abs().max() < 1e-4


@pytest.mark.parametrize("box", [8, 9])
def test_a_window_multiplies_the_volume_along_every_axis(box: int) -> None:
    window = torch.linspace(0.5, 2.0, box, dtype=torch.float64)
    volume = torch.randn(2, box, box, box, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    windowed = volume * window[:, None, None] * window[:, None] * window
    spectrum = half_volume_spectrum(windowed, 2 * box, box - 1)
    torch.testing.assert_close(half_volume_spectrum(volume, 2 * box, box - 1, window), spectrum)
    plain = volume_from_half_spectrum(spectrum, 2 * box, box)
    expected = plain * window[:, None, None] * window[:, None] * window
    torch.testing.assert_close(volume_from_half_spectrum(spectrum, 2 * box, box, window), expected)
