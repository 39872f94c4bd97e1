"""Where particles sit before any alignment: centres of a radial mean and a radial variance.

Phase-flipped, low-passed and in units of its noise, the image y of a particle at t is taken to be normal,

    y(x) ~ N(m(|x - t|), 1 + v(|x - t|)),    t ~ N(offset, spread²),

with what all views share in m and what sets them apart in v. The log-likelihood of a centre is then two correlations,

    log p(y | t) = Σ_x [y m / (1 + v) + y² v / (2 + 2v)](x - t) + constant,

and expectation–maximisation over a sample of images learns m, v, offset and spread from nothing. A mean alone would settle on one
lobe of a molecule that has several, a variance alone wastes what noisy images say: their mean is linear in the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryofire.arrays import Shifts
from cryofire.geometry.fourier import image_of
from cryofire.geometry.grids import half_plane, radius_map
from cryofire.inference.outlying import outlying
from cryofire.inference.prepare import evenly_chosen
from cryofire.inference.shift_grid import DEVIATIONS
from cryofire.physics.imaging import ImageBatch, WhitenedImages, batches

SHELL, PIXELS = 5, 32
"""Last shell that is looked at, in cycles per field of view, and pixels of the small images: the grid of centres. With finer detail
the mean settles on a part of the molecule."""
FARTHEST = 0.35
"""Centres are looked for this far from the middle, as a fraction of the box."""
SAMPLE, PASSES, CHUNK = 4096, 12, 256
"""Images from which the model is learnt, passes over them, and images held at once."""
BRIGHT = 8.0
"""Standard deviations of the power of images by which one is extreme."""
FIRST_SPREAD, LEAST_SPREAD = 0.05, 0.0125
"""Spread of the shifts to begin with, and the least, below which a grid of centres says no more. Fractions of the box."""
LEAST_RADIUS = 0.02
"""Of the disc of shifts worth searching, as a fraction of the box."""


@dataclass(frozen=True)
class CentringModel:
    """How particles look on average, whatever their orientation, and how far off centre they are.

    Attributes
    ----------
    mean, variance : Float[Tensor, "radius"]
        Radial mean and variance of phase-flipped images, in units of the deviation and variance of their noise. One value a pixel
        of the small images, from the centre of the particle out to half the box.
    offset : Float[Tensor, "2"]
        Mean shift (x, y), as a fraction of the box.
    spread : float
        Standard deviation of the shifts, per coordinate, as a fraction of the box.
    """

    mean: Float[Tensor, " radius"]
    variance: Float[Tensor, " radius"]
    offset: Float[Tensor, " 2"]
    spread: float

    @property
    def is_centred(self) -> bool:
        """The spread is the least that can be told."""
        return self.spread <= LEAST_SPREAD

    def scaled(self, amplitude: float) -> CentringModel:
        """The model of images whose signal is so many times as strong, in units of their noise."""
        return CentringModel(amplitude * self.mean, amplitude**2 * self.variance, self.offset, self.spread)

    def centres(self, batch: ImageBatch) -> tuple[Shifts, Float[Tensor, " particle"]]:
        """Expected shift of each particle, px of the batch's box, and its variance per coordinate, px²."""
        box = batch.plane.box
        expected, square, _ = self._moments(*_spectra(batch))
        return box * expected, box**2 / 2 * (square - expected.square().sum(1)).clamp_min(0)

    def updated(self, images: _Spectrum, squares: _Spectrum) -> CentringModel:
        """The model after one step of expectation–maximisation over images and squared images, given by their spectra."""
        lattice, count = _lattice(), len(images)
        sums = torch.zeros(2, *images.shape[1:], dtype=images.dtype)
        total, square = torch.zeros(2), 0.0
        for rows in batches(torch.arange(count), CHUNK):
            expected, squared, posterior = self._moments(images[rows], squares[rows])
            turned = torch.fft.rfft2(posterior).conj()
            sums += torch.stack([(images[rows] * turned).sum(0), (squares[rows] * turned).sum(0)])
            total += expected.sum(0)
            square += float(squared.sum())
        mean, second = lattice.radial(torch.fft.irfft2(sums / count))
        offset = total / count
        variance = (square / count - float(offset.square().sum())) / 2
        return CentringModel(
            mean, (second - mean.square()).clamp_min(0), offset, math.sqrt(max(variance, LEAST_SPREAD**2))
        )

    def _moments(self, images: _Spectrum, squares: _Spectrum) -> tuple[Shifts, Tensor, Float[Tensor, "image y x"]]:
        """Mean (x, y) and mean square of the shift of each image, fractions of the box, and its posterior on the lattice."""
        lattice = _lattice()
        mean, variance = lattice.spread_out(self.mean), lattice.spread_out(self.variance)
        linear, quadratic = (
            torch.fft.rfft2(one / (1 + variance)).conj() * lattice.independent for one in (mean, variance / 2)
        )
        fit = torch.fft.irfft2(images * linear + squares * quadratic).flatten(1)
        far = (lattice.shifts - self.offset).square().sum(1)
        fit = (fit - far / (2 * self.spread**2)).masked_fill(lattice.excluded, -math.inf)
        posterior = fit.softmax(1)
        square = posterior @ lattice.shifts.square().sum(1)
        return posterior @ lattice.shifts, square, posterior.unflatten(1, (PIXELS, PIXELS))


_Spectrum = Complex[Tensor, "image ky kx"]


@dataclass(frozen=True)
class _Lattice:
    """Pixels of the small images, as shifts and as radii.

    Attributes
    ----------
    shifts : Float[Tensor, "pixel 2"]
        (x, y) as fractions of the box, the origin first, as a correlation by Fourier transforms has them.
    excluded : Bool[Tensor, "pixel"]
        Shifts that are too far out.
    ring : Int[Tensor, "y x"]
        Radius of every pixel about the middle, rounded.
    independent : float
        Independent noise values per pixel.
    """

    shifts: Float[Tensor, "pixel 2"]
    excluded: Tensor
    ring: Int[Tensor, "y x"]
    independent: float

    def spread_out(self, profile: Float[Tensor, " radius"]) -> Float[Tensor, "y x"]:
        """Image of a radial profile, zero in the corners beyond it."""
        return torch.nn.functional.pad(profile, (0, int(self.ring.max()) + 1 - len(profile)))[self.ring]

    def radial(self, images: Float[Tensor, "image y x"]) -> Float[Tensor, "image radius"]:
        """Means over rings, out to half the box."""
        rings, kept = self.ring.flatten(), self.ring.shape[0] // 2 + 1
        sums = torch.zeros(len(images), int(rings.max()) + 1).index_add_(1, rings, images.flatten(1))
        return (sums / rings.bincount())[:, :kept]


@lru_cache(maxsize=1)
def _lattice() -> _Lattice:
    steps = torch.fft.fftfreq(PIXELS)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    shifts = torch.stack([x, y], dim=-1).flatten(0, 1)
    excluded = shifts.square().sum(1) > FARTHEST**2
    independent = 2 * len(half_plane(PIXELS, SHELL)) / PIXELS**2
    return _Lattice(shifts, excluded, radius_map(PIXELS, 2).round().long(), independent)


def _spectra(batch: ImageBatch) -> tuple[_Spectrum, _Spectrum]:
    """Spectra of small phase-flipped images of unit noise, and of their squares less one."""
    plane = half_plane(PIXELS, min(SHELL, batch.plane.max_shell))
    count = len(plane)
    flipped = batch.data[:, :count] * batch.modulation[:, :count].sign()
    images = image_of(flipped, plane.frequencies, PIXELS) * (PIXELS**2 / math.sqrt(2 * count))
    return torch.fft.rfft2(images), torch.fft.rfft2(images.square() - 1)


def learn_centring(pieces: Iterable[ImageBatch]) -> CentringModel:
    """The model of a sample of images, all on one plane; those of extreme power, which show more than a particle, have no say."""
    found = [_spectra(batch) for batch in pieces]
    images, squares = (torch.cat(one) for one in zip(*found, strict=True))
    usual = ~outlying(squares[:, 0, 0].real, BRIGHT)
    images, squares = images[usual], squares[usual]
    nothing = torch.zeros(PIXELS // 2 + 1)
    model = CentringModel(nothing, nothing, torch.zeros(2), FIRST_SPREAD)
    for _ in range(PASSES):
        model = model.updated(images, squares)
    return model


@dataclass(frozen=True)
class Centres:
    """Where the particles of a run sit before any alignment.

    Attributes
    ----------
    shifts_px : Float[Tensor, "particle 2"]
        Expected shift of each particle, px of the working box.
    residual_px : float
        Standard deviation, per coordinate, of the true shifts about these.
    model : CentringModel
        What they were found with.
    """

    shifts_px: Shifts
    residual_px: float
    model: CentringModel


def find_centres(images: WhitenedImages, advance: Callable[[int], None]) -> Centres:
    """Learn the centring model of a set of images, and find the centre of each; `advance` hears of every image that is done."""
    sample = torch.from_numpy(evenly_chosen(np.arange(len(images)), SAMPLE))
    model = learn_centring(images.batch(rows, SHELL) for rows in batches(sample, CHUNK))
    shifts, variance = torch.zeros(len(images), 2), torch.zeros(len(images))
    for rows in batches(torch.arange(len(images)), CHUNK):
        shifts[rows], variance[rows] = model.centres(images.batch(rows, SHELL))
        advance(len(rows))
    return Centres(shifts, math.sqrt(float(variance.mean())), model)


def search_radius(centres: Centres, box: int) -> float:
    """Radius, as a fraction of the box, of the disc of shifts worth searching about the centres."""
    return max(DEVIATIONS * centres.residual_px / box, LEAST_RADIUS)
