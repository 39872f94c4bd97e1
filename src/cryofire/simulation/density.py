"""Densities of molecules on grids, and their spectra at any frequency.

A `Body` is a rigid piece of matter prepared for fast evaluation of its spectrum off the grid. It has nothing of the
interpolation that reconstructs: blobs are summed in closed form, and the spectrum is interpolated by another, wider
window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex64, Float32, Float64, Int64
from scipy.fft import next_fast_len

from cryofire.errors import SettingError
from cryofire.geometry.fourier import resample, resize_centred, volume_from_spectrum, volume_spectrum
from cryofire.simulation.kernels import MARGIN, add_sections, spread_gaussians, window_transform
from cryofire.simulation.molecules import Molecule

_SAMPLING = 3.0  # grid points per period of the highest frequency
_SPREAD = 0.394 * _SAMPLING  # width in grid points of the blobs on the grid: aliasing exp(-9), amplification exp(3)
_SIGMA_PER_RESOLUTION = 1 / (math.sqrt(2) * math.pi)  # a blob falls to 1/e at k = 1 / resolution, as in ChimeraX molmap


def density(
    molecule: Molecule, box: int, pixel_size: float, resolution: float | None = None
) -> Float32[np.ndarray, "z y x"]:
    """Density of a molecule on a grid, with the origin of its coordinates at n // 2.

    Its spectrum at every frequency k of the grid is the exact one,

        V(k) = Σ_j w_j exp(-2πi k·r_j) exp(-2π² σ² k²),

    to about 1e-4: blobs are added to a grid three halves as fine and deconvolved. What leaves the box comes in at the
    other side. The sum over voxels is Σ_j w_j. Costs about 3 000 additions per atom and two transforms of (3 box / 2)³.

    Parameters
    ----------
    molecule : Molecule
        Blobs, coordinates in Å.
    box : int
        Voxels along each side.
    pixel_size : float
        Å.
    resolution : float, optional
        Å; σ² grows by (resolution / √2π)², so that the spectrum falls by 1/e at k = 1 / resolution.

    Raises
    ------
    SettingError
        Box or pixel size are not positive.
    """
    if box < 1 or not pixel_size > 0:
        raise SettingError(f"a density needs a positive box and pixel size, not {box} and {pixel_size}")
    size = _even(0.5 * _SAMPLING * box + 4)
    spacing = box * pixel_size / size
    width = _SPREAD * spacing
    fine = _blobs_on_grid(molecule, np.zeros(3), size, spacing, is_periodic=True)
    spectrum = resize_centred(volume_spectrum(torch.from_numpy(fine)), box, 3)
    sigma_squared = molecule.width**2 + ((resolution or 0.0) * _SIGMA_PER_RESOLUTION) ** 2
    frequency = (torch.arange(box, dtype=torch.float64) - box // 2) / (box * pixel_size)
    decay = torch.exp(-2 * math.pi**2 * (sigma_squared - width**2) * frequency**2)
    volume = volume_from_spectrum(spectrum * decay[:, None, None] * decay[:, None] * decay)
    return np.asarray(volume.numpy(), dtype=np.float32)


def _blobs_on_grid(
    molecule: Molecule, centre: Float64[np.ndarray, " 3"], size: int, spacing: float, is_periodic: bool
) -> Float64[np.ndarray, "z y x"]:
    """Blobs of width `_SPREAD` grid points whose samples sum to the weights."""
    grid = np.zeros((size, size, size))
    weights = molecule.weights / (math.sqrt(2 * math.pi) * _SPREAD) ** 3
    spread_gaussians((molecule.coordinates - centre) / spacing, weights, _SPREAD, is_periodic, grid)
    return grid


@dataclass(frozen=True)
class Body:
    """A rigid piece of matter whose spectrum can be had at any frequency up to a limit.

    Attributes
    ----------
    grid : array (kz, ky, kx)
        Spectrum of density / φ at multiples of 1 / extent, z and y centred, x from -`MARGIN`, where φ is the
        transform of the window.
    extent : float
        Å; twice the field that holds the matter.
    decay : float
        Å²; the spectrum is that of the grid times exp(-decay k²).
    centre : array (3,)
        Where the origin of the grid is in the frame of the molecule, Å.
    """

    grid: Complex64[np.ndarray, "kz ky kx"]
    extent: float
    decay: float
    centre: Float64[np.ndarray, " 3"]

    def add_sections(
        self,
        rotations: Float64[np.ndarray, "section 3 3"],
        offsets: Float64[np.ndarray, "section 3"],
        rows: Int64[np.ndarray, " section"],
        frequencies: Float64[np.ndarray, "coefficient 3"],
        out: Complex64[np.ndarray, "row coefficient"],
    ) -> None:
        """Add the spectrum of the body, turned by R and then moved by d, V(Rᵀ k) exp(-2πi k·d), to rows of `out`.

        Parameters
        ----------
        rotations, offsets : arrays (section, 3, 3) and (section, 3)
            R, and d in Å.
        rows : array (section,)
            Row of `out` each section is added to, all different.
        frequencies : array (coefficient, 3)
            k in 1/Å.
        out : array (row, coefficient)
            Changed in place.
        """
        square = np.square(frequencies).sum(axis=1)
        limit = ((self.grid.shape[0] - 1) // 2 - MARGIN) / self.extent
        places = np.flatnonzero(square <= limit**2)
        amplitude = np.exp(-self.decay * square[places]).astype(np.float32)
        pairs = self.grid.view(np.float32).reshape(*self.grid.shape, 2)
        add_sections(pairs, self.extent, rotations, offsets, rows, frequencies[places], places, amplitude, out)


def body_of_molecule(molecule: Molecule, max_frequency: float) -> Body:
    """Body of a molecule about its centre of mass, good to 1e-3 of its spectrum up to `max_frequency` (1/Å).

    Memory grows with (diameter · max_frequency)³: 30 MB for a subunit of the ribosome at 1 / 10 Å.
    """
    spacing = 1 / (_SAMPLING * max_frequency)
    width = _SPREAD * spacing
    centre = molecule.centre_of_mass
    radius = float(np.linalg.norm(molecule.coordinates - centre, axis=1).max()) + 6 * width
    size = _even(2 * radius / spacing)
    grid = _blobs_on_grid(molecule, centre, size, spacing, is_periodic=False)
    decay = 2 * math.pi**2 * (molecule.width**2 - width**2)
    return Body(_oversampled_spectrum(grid, spacing, max_frequency), 2 * size * spacing, decay, centre)


def body_of_map(volume: Float32[np.ndarray, "z y x"], pixel_size: float, max_frequency: float) -> Body:
    """Body of a density map up to `max_frequency` (1/Å), or to the Nyquist frequency of the map where that is lower.

    Parameters
    ----------
    volume : array (z, y, x)
        Cubic; its origin at n // 2 becomes that of the body.
    pixel_size : float
        Å.
    max_frequency : float
        1/Å.
    """
    box = volume.shape[0]
    size = min(box, _even(1.5 * 2 * max_frequency * box * pixel_size) + 2 * MARGIN)
    values = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float64))
    if size < box:
        values = resample(values, size, 3) * (box / size) ** 3
    spacing = box * pixel_size / size
    return Body(
        _oversampled_spectrum(values.numpy(), spacing, max_frequency), 2 * size * spacing, 0.0, np.zeros(3)
    )  # fmt: skip


def _even(length: float) -> int:
    """Even size of at least `length` whose transforms are fast."""
    return 2 * int(next_fast_len(math.ceil(length / 2)))


def _oversampled_spectrum(
    values: Float64[np.ndarray, "z y x"], spacing: float, max_frequency: float
) -> Complex64[np.ndarray, "kz ky kx"]:
    """Spectrum of values / φ at half the spacing that their box gives, for `Body.grid`.

    The points halfway between are the spectrum of the values times exp(-πi x / n), and so on along each axis: eight
    interleaved transforms instead of one of a grid of eight times the size.
    """
    size = values.shape[0]
    position = (np.arange(size) - size // 2) / size
    correction = 1 / window_transform(position / 2)
    corrected = torch.from_numpy(
        (values * correction[:, None, None] * correction[:, None] * correction).astype(np.float32)
    )
    reach = min(math.ceil(2 * size * spacing * max_frequency) + MARGIN + 1, size - 1)
    grid = np.zeros((2 * reach + 1, 2 * reach + 1, reach + 1 + MARGIN), dtype=np.complex64)
    half_step = torch.exp(-1j * math.pi * torch.from_numpy(position)).to(torch.complex64)
    for z, y, x in np.ndindex(2, 2, 2):
        phase = half_step[:, None, None] ** z * half_step[:, None] ** y * half_step**x
        spectrum = volume_spectrum(corrected * phase.real)
        if z or y or x:
            spectrum = spectrum + 1j * volume_spectrum(corrected * phase.imag)
        slots, sources = zip(*(_interleaved(reach, odd, size) for odd in (z, y, x)), strict=True)
        inside = slots[2] >= reach - MARGIN
        columns = (slots[0], slots[1], slots[2][inside] - (reach - MARGIN))
        grid[np.ix_(*columns)] = spectrum.numpy()[np.ix_(sources[0], sources[1], sources[2][inside])]
    return grid


def _interleaved(reach: int, odd: int, size: int) -> tuple[Int64[np.ndarray, " point"], Int64[np.ndarray, " point"]]:
    """Slots of an oversampled axis that hold its even (0) or odd (1) points, and their places in a transform."""
    slots = np.arange(2 * reach + 1)
    slots = slots[(slots - reach) % 2 == odd]
    sources = (slots - reach - odd) // 2 + size // 2
    inside = (sources >= 0) & (sources < size)
    return slots[inside], sources[inside]
