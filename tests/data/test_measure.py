"""Measuring images: contrast and noise of simulated particles are found as they were made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryofire.data.findings import Contrast
from cryofire.data.measure import ImageMeasurements, are_usable, contrast_of, measure_images, signal_to_noise
from cryofire.data.particles import Optics
from cryofire.formats.mrc import open_stack

PIXEL_SIZE = 6.0


def some_optics(rng: np.random.Generator, images: int, amplitude_contrast: float = 0.1) -> Optics:
    defocus = rng.uniform(8e3, 3e4, size=images)
    ones = np.ones(images)
    return Optics(
        voltage_kv=300 * ones,
        cs_mm=2.7 * ones,
        amplitude_contrast=amplitude_contrast * ones,
        defocus_u=defocus + 300,
        defocus_v=defocus - 300,
        defocus_angle=rng.uniform(-4, 4, size=images),
        phase_shift=0 * ones,
        b_factor=0 * ones,
        scale=ones,
    )


def transfer(optics: Optics, box: int) -> np.ndarray:
    """The contrast transfer function as the conventions write it down."""
    x, y = np.fft.fftfreq(box, PIXEL_SIZE)[None, None, :], np.fft.fftfreq(box, PIXEL_SIZE)[None, :, None]
    u, v, angle, w = (
        value[:, None, None]
        for value in (optics.defocus_u, optics.defocus_v, optics.defocus_angle, optics.amplitude_contrast)
    )
    wavelength, square = 0.019687, x**2 + y**2  # Å at 300 kV
    defocus = (u + v) / 2 + (u - v) / 2 * np.cos(2 * (np.arctan2(y, x) - angle))
    gamma = np.pi * wavelength * defocus * square - np.pi / 2 * 2.7e7 * wavelength**3 * square**2
    return np.asarray(-(np.sqrt(1 - w**2) * np.sin(gamma) + w * np.cos(gamma)))


def simulated(
    images: int, box: int, snr: float, seed: int = 0, amplitude_contrast: float = 0.1
) -> tuple[np.ndarray, Optics]:
    """Balls of matter at random places near the centre, dark as in unprocessed images, in white noise."""
    rng = np.random.default_rng(0)
    optics = some_optics(rng, images, amplitude_contrast)
    axis = np.arange(box) - box // 2
    centre = rng.normal(scale=0.03 * box, size=(2, images, 1, 1))
    square = (axis[None, :, None] - centre[0]) ** 2 + (axis[None, None, :] - centre[1]) ** 2
    density = np.sqrt(np.maximum((0.25 * box) ** 2 - square, 0)) * rng.uniform(0.5, 1.5, size=(images, box, box))
    signal = np.fft.ifft2(np.fft.fft2(density) * transfer(optics, box)).real
    signal /= signal.std() * np.sqrt(1 / snr)
    return (signal + rng.normal(size=signal.shape)).astype(np.float32), optics


def measured(images: np.ndarray, optics: Optics) -> ImageMeasurements:
    return measure_images(images, optics, np.full(len(images), PIXEL_SIZE))


@pytest.mark.parametrize("box", [48, 49])
@pytest.mark.parametrize("amplitude_contrast", [0.0, 0.1])
def test_dark_and_white_particles_are_told_apart(box: int, amplitude_contrast: float) -> None:
    images, optics = simulated(200, box, 0.1, amplitude_contrast=amplitude_contrast)
    assert contrast_of(measured(images, optics).contrast).verdict == "dark"
    assert contrast_of(measured(-images, optics).contrast).verdict == "white"


def test_inverted_images_have_the_opposite_score() -> None:
    images, optics = simulated(50, 32, 0.1)
    one, other = (contrast_of(measured(sign * images, optics).contrast).score for sign in (1, -1))
    assert one == pytest.approx(-other, rel=1e-4)


def test_scale_and_level_of_images_do_not_matter() -> None:
    images, optics = simulated(40, 32, 0.1)
    factor = np.random.default_rng(1).uniform(0.1, 10, size=(40, 1, 1)).astype(np.float32)
    one, other = measured(images, optics), measured(factor * images + 5, optics)
    np.testing.assert_allclose(one.contrast, other.contrast, atol=2e-3)
    assert signal_to_noise(measured(3 * images + 7, optics)) == pytest.approx(signal_to_noise(one), rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_is_unclear(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = np.cumsum(rng.normal(size=(300, 32, 32)), axis=1).astype(np.float32)
    assert contrast_of(measured(noise, some_optics(rng, 300)).contrast).verdict == "unclear"


def test_real_ice_is_unclear_and_real_particles_are_dark(shared_data: Path) -> None:
    for name, verdict in (("fei_lowsignal_bin3_96.mrcs", "unclear"), ("fei_picks_bin3_96.mrcs", "dark")):
        stack = open_stack(shared_data / "micrographs" / name)
        optics = some_optics(np.random.default_rng(0), len(stack), 0.07)
        optics.defocus_u[:] = optics.defocus_v[:] = 10550
        found = measure_images(stack.frames(np.arange(len(stack))), optics, np.full(len(stack), 2.56))
        assert contrast_of(found.contrast).verdict == verdict


def test_few_images_are_unclear() -> None:
    assert contrast_of(np.array([1.0, 1.001, 1.002])).verdict == "unclear"
    assert contrast_of(np.array([1.0, 1.01, 0.99, 1.0])).verdict == "dark"
    assert contrast_of(np.array([])).verdict == "unclear" and contrast_of(np.array([1.0])).images == 1
    assert Contrast(score=float("nan"), images=100).verdict == "unclear"


@pytest.mark.parametrize("box", [48, 49])
@pytest.mark.parametrize("snr", [0.05, 0.3, 1.0])
def test_signal_to_noise_is_that_of_the_simulation(box: int, snr: float) -> None:
    """Within a fifth: the transfer function spreads a little of the signal into the corners."""
    images, optics = simulated(400, box, snr)
    assert signal_to_noise(measured(images, optics)) == pytest.approx(snr, rel=0.2)


def test_noise_alone_has_no_signal() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(300, 32, 32)).astype(np.float32)
    assert signal_to_noise(measured(noise, some_optics(rng, 300))) < 0.02


def test_unusable_images_are_marked_and_do_not_disturb_the_others() -> None:
    images, optics = simulated(10, 16, 0.1)
    expected = measured(images, optics)
    images[2, 3, 3], images[5, 0, 0], images[7] = np.nan, np.inf, 3.0
    found = measured(images, optics)
    np.testing.assert_array_equal(np.flatnonzero(~found.is_finite), [2, 5])
    np.testing.assert_array_equal(np.flatnonzero(found.is_constant), [7])
    np.testing.assert_array_equal(np.flatnonzero(~found.is_usable), [2, 5, 7])
    np.testing.assert_array_equal(are_usable(images), found.is_usable)
    good = found.is_usable
    np.testing.assert_allclose(found.contrast[good], expected.contrast[good], rtol=1e-5)
    assert np.all(np.isnan(found.contrast[~good])) and np.isfinite(signal_to_noise(found))
    nothing = measured(np.full((2, 8, 8), np.nan, dtype=np.float32), optics.take(np.arange(2)))
    assert np.isnan(signal_to_noise(nothing)) and contrast_of(nothing.contrast).images == 0


def test_joined_measurements_equal_those_made_at_once() -> None:
    images, optics = simulated(9, 16, 0.1)
    parts = [measured(images[part], optics.take(part)) for part in np.split(np.arange(9), [2, 5])]
    np.testing.assert_allclose(ImageMeasurements.joined(parts).contrast, measured(images, optics).contrast, rtol=1e-5)
