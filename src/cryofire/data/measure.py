"""Measuring images before anything is known of the particle: are they usable, dark or white, how noisy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from jaxtyping import Bool, Float, Float32, Float64

from cryofire.data.findings import Contrast
from cryofire.data.particles import Optics

# Fractions of the box: particles fill about half of it, and RELION normalises outside a circle of a similar radius.
_CENTRE_RADIUS = 0.25
_RING = (0.38, 0.5)
_PARTICLE_RADIUS = 0.45
_LOW_PASS = 30.0  # Å


@dataclass(frozen=True)
class ImageMeasurements:
    """One entry per image.

    Attributes
    ----------
    is_finite, is_constant : array (row,)
        Whether every pixel is a finite number; whether all are equal.
    deviation : array (row,)
        Standard deviation of the pixels.
    contrast : array (row,)
        Mean of the phase-flipped, low-passed image at its centre minus that of a ring around it, per `deviation`.
    noise_power, power : array (row,)
        Mean square of the pixels outside and inside the circle that holds the particle, relative to the mean outside.
    """

    is_finite: Bool[np.ndarray, " row"]
    is_constant: Bool[np.ndarray, " row"]
    deviation: Float64[np.ndarray, " row"]
    contrast: Float64[np.ndarray, " row"]
    noise_power: Float64[np.ndarray, " row"]
    power: Float64[np.ndarray, " row"]

    @property
    def is_usable(self) -> Bool[np.ndarray, " row"]:
        """Images that are finite and not constant."""
        return np.asarray(self.is_finite & ~self.is_constant)

    @staticmethod
    def joined(parts: list[ImageMeasurements]) -> ImageMeasurements:
        """Return the measurements of several groups of images as one."""
        names = ImageMeasurements.__dataclass_fields__
        return ImageMeasurements(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def measure_images(
    images: Float32[np.ndarray, "row y x"], optics: Optics, pixel_size: Float64[np.ndarray, " row"]
) -> ImageMeasurements:
    """Measure images of one box; unusable images get NaN where a number makes no sense.

    Parameters
    ----------
    images : array (row, y, x)
        As they lie in their stack.
    optics : Optics
        Their contrast transfer parameters.
    pixel_size : array (row,)
        Å.
    """
    is_finite = are_finite(images)
    is_constant = is_finite & are_flat(images)
    usable = is_finite & ~is_constant
    values = np.full((4, len(images)), np.nan)
    if np.any(usable):
        good = images[usable].astype(np.float32)
        deviation = good.std(axis=(1, 2), dtype=np.float64)
        centre_minus_ring = _centre_minus_ring(good, optics.take(usable), pixel_size[usable])
        values[:, usable] = deviation, centre_minus_ring / deviation, *_powers(good)
    return ImageMeasurements(is_finite, is_constant, *values)


def are_finite(images: Float[np.ndarray, "row y x"]) -> Bool[np.ndarray, " row"]:
    """Which images hold finite numbers only."""
    return np.asarray(np.isfinite(images).all(axis=(1, 2)))


def are_flat(images: Float[np.ndarray, "row y x"]) -> Bool[np.ndarray, " row"]:
    """Which images hold the same number in every pixel."""
    return np.asarray(images.max(axis=(1, 2), initial=-np.inf) == images.min(axis=(1, 2), initial=np.inf))


def are_usable(images: Float[np.ndarray, "row y x"]) -> Bool[np.ndarray, " row"]:
    """Which images are finite and not constant."""
    return are_finite(images) & ~are_flat(images)


def contrast_of(values: Float64[np.ndarray, " row"]) -> Contrast:
    """Return the contrast that measurements of several images agree on: their mean over its standard error."""
    values = values[np.isfinite(values)]
    if len(values) < 2 or values.std() == 0:
        return Contrast(score=float("nan"), images=len(values))
    return Contrast(score=float(values.mean() / (values.std(ddof=1) / np.sqrt(len(values)))), images=len(values))


def signal_to_noise(measurements: ImageMeasurements) -> float:
    """Return signal power over noise power, averaged over whole images, from pixels inside and outside the particle.

    ``snr = π r² (power - noise_power) / noise_power``, r the radius of the circle that holds the particle, in boxes.
    NaN without usable images, never below 0. Noise is taken to be alike everywhere in an image.
    """
    noise, power = np.nansum(measurements.noise_power), np.nansum(measurements.power)
    if not noise > 0:
        return float("nan")
    return float(max(0.0, np.pi * _PARTICLE_RADIUS**2 * (power - noise) / noise))


def _powers(images: Float32[np.ndarray, "row y x"]) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, " row"]]:
    inside = _radius(images.shape[-1]) < _PARTICLE_RADIUS
    corners, centre = images[:, ~inside].astype(np.float64), images[:, inside].astype(np.float64)
    level = corners.mean(axis=1, keepdims=True)
    return corners.var(axis=1, ddof=1), np.square(centre - level).mean(axis=1)


def _centre_minus_ring(
    images: Float32[np.ndarray, "row y x"], optics: Optics, pixel_size: Float64[np.ndarray, " row"]
) -> Float64[np.ndarray, " row"]:
    radius = _radius(images.shape[-1])
    centre, ring = radius < _CENTRE_RADIUS, (radius > _RING[0]) & (radius < _RING[1])
    flipped = _phase_flipped(images, optics, pixel_size)
    difference = flipped[:, centre].mean(axis=1, dtype=np.float64) - flipped[:, ring].mean(axis=1, dtype=np.float64)
    return np.asarray(difference)


def _phase_flipped(
    images: Float32[np.ndarray, "row y x"], optics: Optics, pixel_size: Float64[np.ndarray, " row"]
) -> Float32[np.ndarray, "row y x"]:
    """Images times the sign of their transfer function and a Gaussian low-pass: dark particles become white."""
    box = images.shape[-1]
    x = np.fft.rfftfreq(box)[None, None, :] / pixel_size[:, None, None]
    y = np.fft.fftfreq(box)[None, :, None] / pixel_size[:, None, None]
    weight = (_transfer_sign(optics, x, y) * np.exp(-0.5 * (x**2 + y**2) * _LOW_PASS**2)).astype(np.float32)
    return np.asarray(scipy.fft.irfft2(scipy.fft.rfft2(images) * weight, s=(box, box)))


def _transfer_sign(
    optics: Optics, x: Float64[np.ndarray, "row 1 x"], y: Float64[np.ndarray, "row y 1"]
) -> Float64[np.ndarray, "row y x"]:
    """Sign of the contrast transfer function, ``-sign(sin(γ + asin w))`` with γ as in `cryofire.physics`.

    Astigmatism enters as ``cos 2(θ - a) = ((x² - y²) cos 2a + 2 x y sin 2a) / k²``, so γ is a polynomial in x and y.
    """
    voltage = optics.voltage_kv * 1e3
    wavelength = 12.2639 / np.sqrt(voltage + 0.97845e-6 * voltage**2)
    mean, half = (optics.defocus_u + optics.defocus_v) / 2, (optics.defocus_u - optics.defocus_v) / 2
    cosine, sine = half * np.cos(2 * optics.defocus_angle), half * np.sin(2 * optics.defocus_angle)
    of_square, of_difference, of_product = (
        (np.pi * wavelength * value)[:, None, None] for value in (mean, cosine, 2 * sine)
    )
    of_fourth = (np.pi / 2 * optics.cs_mm * 1e7 * wavelength**3)[:, None, None]
    offset = (optics.phase_shift + np.arcsin(optics.amplitude_contrast))[:, None, None]
    square = x**2 + y**2
    gamma = of_square * square + of_difference * (x**2 - y**2) + of_product * (x * y) - of_fourth * square**2 + offset
    return np.asarray(-np.sign(np.sin(gamma)))


def _radius(box: int) -> Float64[np.ndarray, "y x"]:
    """Distance of each pixel from the centre, in boxes."""
    axis = (np.arange(box) - box // 2) / box
    return np.asarray(np.hypot(axis[:, None], axis[None, :]))
