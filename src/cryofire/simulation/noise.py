"""Noise of a given radial spectrum, and how much of it makes a signal-to-noise ratio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int

from cryofire.errors import FileFormatError
from cryofire.formats.mrc import open_stack
from cryofire.geometry.fourier import image_from_spectrum, image_spectrum
from cryofire.geometry.grids import radius_map, shell_map
from cryofire.simulation.archives import read_array

_WINDOWS_AT_ONCE = 64


@dataclass(frozen=True)
class RadialSpectrum:
    """Variance of noise as a function of frequency, linear between samples and constant beyond the last.

    Attributes
    ----------
    frequency : array (sample,)
        1/Å, increasing.
    variance : array (sample,)
        In any unit.
    """

    frequency: Float64[np.ndarray, " sample"]
    variance: Float64[np.ndarray, " sample"]

    def on_grid(self, box: int, pixel_size: float) -> Float64[np.ndarray, "y x"]:
        """Variance at the frequencies of a centred image spectrum."""
        radius = radius_map(box, 2).double().numpy() / (box * pixel_size)
        return np.asarray(np.interp(radius, self.frequency, self.variance))

    def normalised(self, box: int, pixel_size: float) -> RadialSpectrum:
        """Return the spectrum scaled so that a pixel of images of this box and pixel size has the variance 1."""
        return RadialSpectrum(self.frequency, self.variance / self.on_grid(box, pixel_size).mean())


def white() -> RadialSpectrum:
    """Return the spectrum of white noise of variance 1."""
    return RadialSpectrum(np.zeros(1), np.ones(1))


def read_noise(path: Path, pixel_size: float | None, default_pixel_size: float) -> RadialSpectrum:
    """Read or measure a radial noise spectrum.

    Parameters
    ----------
    path : Path
        .npy with a variance for every shell from 0 to the one before the Nyquist frequency, or an MRC stack of
        windows of pure noise.
    pixel_size : float or None
        Å; None: what the stack says.
    default_pixel_size : float
        Å; where neither says it.

    Raises
    ------
    FileFormatError
        The file cannot be read, or a variance is negative or not finite.
    """
    if path.suffix == ".npy":
        variance = read_array(path, "array")
        if variance.ndim != 1 or len(variance) < 2 or not (np.isfinite(variance).all() and (variance > 0).all()):
            raise FileFormatError("a noise spectrum is a list of positive variances, one a shell", file=path)
        extent = 2 * (len(variance) + 1) * (pixel_size or default_pixel_size)
        return RadialSpectrum(np.arange(len(variance)) / extent, variance.astype(np.float64))
    variance, stated = measured_spectrum(path)
    extent = 2 * len(variance) * (pixel_size or stated or default_pixel_size)
    return RadialSpectrum(np.arange(len(variance)) / extent, variance)


def measured_spectrum(path: Path) -> tuple[Float64[np.ndarray, " shell"], float]:
    """Mean power per shell of the windows in a stack, and their pixel size in Å (0 where unknown).

    The mean of each window is taken off; shell 0 gets the value of shell 1. Windows are read a few at a time.

    Raises
    ------
    FileFormatError
        The windows are not square, or are constant or not finite.
    """
    stack = open_stack(path)
    _, rows, box = stack.header.shape
    if rows != box or box < 8:
        raise FileFormatError(f"noise windows must be square, not {box} × {rows}", file=path)
    shells = shell_map(box, 2).ravel().numpy()
    power = np.zeros(int(shells.max()) + 1)
    for start in range(0, len(stack), _WINDOWS_AT_ONCE):
        windows = torch.from_numpy(stack.frames(np.arange(start, min(start + _WINDOWS_AT_ONCE, len(stack)))))
        spectrum = image_spectrum(windows - windows.mean(dim=(-2, -1), keepdim=True))
        power += np.bincount(shells, spectrum.abs().square().double().sum(0).ravel().numpy())
    variance = (power / (np.bincount(shells) * len(stack) * box**2))[: box // 2]
    if not np.isfinite(variance).all() or not (variance[1:] > 0).all():
        raise FileFormatError("the noise windows are constant, or not finite", file=path)
    variance[0] = variance[1]
    return variance, stack.header.voxel_size[0]


@dataclass(frozen=True)
class NoiseSource:
    """Noise images that depend on nothing but a seed and the number of the particle.

    Attributes
    ----------
    seed : int
        Of the set.
    box : int
        px.
    amplitude : array (y, x) or None
        Square root of the variance at each centred frequency; None where it is the same at all.
    deviation : float
        Standard deviation of a pixel where `amplitude` is None.
    """

    seed: int
    box: int
    amplitude: Float64[np.ndarray, "y x"] | None
    deviation: float

    def images(self, rows: Int[np.ndarray, " image"]) -> Float32[np.ndarray, "image y x"]:
        """Noise of the particles of some numbers: that of each is the same whatever else is asked for."""
        images = np.empty((len(rows), self.box, self.box), dtype=np.float32)
        for place, row in enumerate(rows):
            generator = np.random.Generator(np.random.Philox(key=np.array([self.seed, row], dtype=np.uint64)))
            generator.standard_normal(out=images[place], dtype=np.float32)
        if self.amplitude is None:
            return images * np.float32(self.deviation)
        spectrum = image_spectrum(torch.from_numpy(images)) * torch.from_numpy(self.amplitude.astype(np.float32))
        return np.asarray(image_from_spectrum(spectrum).numpy())


def noise_source(
    spectrum: RadialSpectrum | None, variance: float, seed: int, box: int, pixel_size: float
) -> NoiseSource:
    """Source of noise with `variance` times a spectrum; without one, white noise of this variance."""
    if spectrum is None:
        return NoiseSource(seed, box, None, float(np.sqrt(variance)))
    return NoiseSource(seed, box, np.sqrt(variance * spectrum.on_grid(box, pixel_size)), 0.0)
