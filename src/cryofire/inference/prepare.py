"""Preparation: from image stacks to whitened half-plane coefficients on one common grid.

All images, whatever their box and pixel size, are brought to coefficients of one field of view, so that later stages know a single
integer frequency grid. Where the field of view differs, the coefficients come from an exact discrete Fourier transform at the
frequencies wanted (two small matrix products), not from interpolated pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryofire.arrays import Coefficients, Image
from cryofire.config import PrepareSettings
from cryofire.data.cache import LARGEST, cache_writer, open_cache
from cryofire.data.measure import are_usable
from cryofire.data.particles import ParticleTable
from cryofire.data.stack import ImageStacks
from cryofire.errors import ImageError
from cryofire.geometry.fourier import spectrum_at
from cryofire.geometry.grids import half_plane, radius_map
from cryofire.physics.ctf import contrast_transfer
from cryofire.physics.imaging import WhitenedImages

CHUNK = 256
NOISE_SAMPLE = 2048
RING = 0.42
"""The background is measured beyond this radius, as a fraction of the box."""


@dataclass(frozen=True)
class WorkingGrid:
    """The common grid of a run: box in pixels, pixel size in Å."""

    box: int
    pixel_size: float

    @property
    def field_of_view(self) -> float:
        """Side of the box in Å."""
        return self.box * self.pixel_size


def working_grid(table: ParticleTable, settings: PrepareSettings) -> WorkingGrid:
    """Grid on which all particles are compared: the field of view that most of them have."""
    fields, counts = np.unique(np.round(table.box * table.pixel_size, 3), return_counts=True)
    field = float(fields[counts.argmax()])
    box = settings.box if settings.box is not None else min(int(np.median(table.box)), settings.largest_box)
    return WorkingGrid(box, field / box)


def image_chunks(table: ParticleTable, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images in pieces of one box and pixel size each, in the given order of rows; unusable ones are among them."""
    stacks = ImageStacks(table)
    kind = table.box[rows] * 1e6 + table.pixel_size[rows]
    cuts = np.flatnonzero(np.diff(kind)) + 1
    for run in np.split(rows, cuts):
        for start in range(0, len(run), CHUNK):
            piece = run[start : start + CHUNK]
            yield piece, stacks.images(piece)


def resampled_coefficients(images: Image, pixel_size: float, grid: WorkingGrid) -> Coefficients:
    """Half-plane coefficients of images on the working grid, whatever their own box and pixel size."""
    plane = half_plane(grid.box)
    box = images.shape[-1]
    scale = (pixel_size / grid.pixel_size) ** 2
    if abs(box * pixel_size / grid.field_of_view - 1) < 1e-4 and box >= grid.box:
        return spectrum_at(images, plane.frequencies) * scale
    return plane.gather(_transformed(images, pixel_size / grid.field_of_view, grid.box)) * scale


def _transformed(images: Image, step: float, box: int) -> Complex[Tensor, "*batch y x"]:
    """Spectrum at integer frequencies of another field of view; `step` is the pixel size over that field of view."""
    k = (torch.arange(box) - box // 2).double()
    x = (torch.arange(images.shape[-1]) - images.shape[-1] // 2).double()
    kernel = torch.polar(torch.ones(1, 1, dtype=torch.float64), -2 * math.pi * step * k[:, None] * x).to(
        torch.complex64
    )
    return kernel @ images.to(torch.complex64) @ kernel.T


@dataclass(frozen=True)
class Background:
    """Ring around the particle: what is noise in an image."""

    window: Float[Tensor, "y x"]

    def mean_and_deviation(self, images: Image) -> tuple[Tensor, Tensor]:
        """Weighted mean and standard deviation of each image in the ring."""
        total = self.window.sum()
        mean = (images * self.window).sum((-2, -1)) / total
        variance = ((images - mean[:, None, None]).square() * self.window).sum((-2, -1)) / total
        return mean, variance.sqrt()


def ring(box: int) -> Background:
    """Ring beyond `RING` of the box with a soft inner edge."""
    return Background(((radius_map(box, 2) / box - RING) / 0.06).clamp(0, 1))


def ring_spectrum(images: Image, pixel_size: float, grid: WorkingGrid) -> Float[Tensor, " shell"]:
    """Mean noise power of coefficients in every shell, from the ring of each image (Welch's estimate with that window)."""
    background = ring(images.shape[-1])
    mean, _ = background.mean_and_deviation(images)
    windowed = (images - mean[:, None, None]) * background.window
    power = resampled_coefficients(windowed, pixel_size, grid).abs().square().mean(0)
    spectrum = half_plane(grid.box).shell_mean(power) / background.window.square().mean()
    spectrum[0] = spectrum[1]
    return spectrum


def estimate_noise(table: ParticleTable, grid: WorkingGrid) -> Float[Tensor, " shell"]:
    """Standard deviation of the noise of coefficients in every shell, from a sample of the usable images.

    Raises
    ------
    ImageError
        There are no usable images.
    """
    everyone = np.arange(len(table))
    for rows in (evenly_chosen(everyone, NOISE_SAMPLE), everyone):
        total, count = torch.zeros(half_plane(grid.box).max_shell + 1), 0
        for piece, images in image_chunks(table, rows):
            good = images[are_usable(images)]
            if len(good):
                total += ring_spectrum(torch.from_numpy(good), float(table.pixel_size[piece[0]]), grid) * len(good)
                count += len(good)
        if count:
            return (total / count).clamp_min(1e-30).sqrt()
    raise ImageError("every image is constant or not finite", file=table.path, hint="check how the stack was written")


def evenly_chosen(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of some rows, evenly spaced."""
    return np.asarray(rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)])


def write_coefficients(
    table: ParticleTable,
    grid: WorkingGrid,
    noise: Float[Tensor, " shell"],
    path: Path,
    advance: Callable[[int], None],
) -> Int[np.ndarray, " usable"]:
    """Write the whitened coefficients of all usable images, streaming; their rows in the table."""
    plane = half_plane(grid.box)
    inverse = 1 / noise[plane.shells][:, None]
    rows = []
    with cache_writer(path, len(table), len(plane)) as writer:
        for piece, images in image_chunks(table, np.arange(len(table))):
            usable = are_usable(images)
            rows.append(piece[usable])
            advance(len(piece))
            if not usable.any():
                continue
            tensor = torch.from_numpy(images if usable.all() else images[usable])
            mean, _ = ring(tensor.shape[-1]).mean_and_deviation(tensor)
            centred = tensor - mean[:, None, None]
            coefficients = resampled_coefficients(centred, float(table.pixel_size[piece[0]]), grid)
            writer.append(torch.view_as_real(coefficients).mul_(inverse).clamp_(-LARGEST, LARGEST).half().numpy())
    return np.concatenate(rows)


def open_images(
    table: ParticleTable,
    rows: np.ndarray,
    grid: WorkingGrid,
    noise: Float[Tensor, " shell"],
    path: Path,
    is_white: bool,
) -> WhitenedImages:
    """The prepared images; white particles get a CTF of opposite sign, so that matter is positive in every map."""
    optics = table.optics.take(rows)
    ctf = contrast_transfer(optics, np.full(len(rows), grid.field_of_view))
    if is_white:
        ctf = ctf.inverted()
    plane = half_plane(grid.box)
    return WhitenedImages(open_cache(path), np.arange(len(rows)), ctf, plane, noise, torch.ones(plane.max_shell + 1))


def chosen_subset(count: int, size: int, seed: int) -> Int[Tensor, " row"]:
    """A random subset of the images, in ascending order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:size].sort().values
