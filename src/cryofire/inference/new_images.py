"""Images that a model has never seen, brought to the grid it was learnt on: resampled, whitened, centred.

Nothing is cached: images are read in pieces, and every piece passes through one real Fourier transform, one gather and one
product. Images of another field of view are cropped to the model's, or transformed exactly at the frequencies of its grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryofire.arrays import Coefficients, Image, Shifts
from cryofire.data.particles import ParticleTable
from cryofire.data.stack import ImageStacks
from cryofire.errors import ImageError
from cryofire.geometry.fourier import spectrum_at
from cryofire.geometry.grids import HalfPlane
from cryofire.inference.centring import CentringModel
from cryofire.inference.prepare import WorkingGrid, ring
from cryofire.physics.ctf import contrast_transfer
from cryofire.physics.imaging import ImageBatch

CHUNK = 128
"""Images handled at once: what an encoder needs of them stays in the processor's cache."""


@dataclass(frozen=True)
class Sampling:
    """How images of one box and pixel size are brought to a grid.

    Attributes
    ----------
    box : int
        Box after cropping to the field of view of the grid.
    pixel_size : float
        Å.
    grid : WorkingGrid
        Where they are brought.
    plane : HalfPlane
        Coefficients that are wanted.
    reach : int
        Largest shell of `plane` that the images hold; those beyond are set to zero.
    """

    box: int
    pixel_size: float
    grid: WorkingGrid
    plane: HalfPlane
    reach: int

    @property
    def is_aligned(self) -> bool:
        """The images span the grid's field of view, so that their own Fourier transform has the wanted frequencies."""
        return abs(self.box * self.pixel_size / self.grid.field_of_view - 1) < 1e-4

    def cropped(self, images: Image) -> Image:
        """The centre of each image, as large as the field of view of the grid."""
        start = images.shape[-1] // 2 - self.box // 2
        return images[..., start : start + self.box, start : start + self.box]

    def coefficients(self, images: Image) -> Coefficients:
        """Coefficients of cropped images, in the amplitude of the grid's own pixels."""
        held = self.plane.truncated(self.reach)
        scale = (self.pixel_size / self.grid.pixel_size) ** 2
        values = spectrum_at(images, held.frequencies) if self.is_aligned else self._transformed(images, held)
        if scale != 1:
            values = values * scale
        return torch.nn.functional.pad(values, (0, len(self.plane) - len(held)))

    def _transformed(self, images: Image, plane: HalfPlane) -> Coefficients:
        along_x, along_y = _waves(self.box, self.pixel_size / self.grid.field_of_view, self.reach)
        rows = torch.view_as_complex((images @ along_x).unflatten(-1, (-1, 2)))
        kx, ky = plane.frequencies.unbind(-1)
        return (along_y @ rows).flatten(-2).index_select(-1, (ky + self.reach) * (self.reach + 1) + kx)


@lru_cache(maxsize=8)
def _waves(box: int, step: float, reach: int) -> tuple[Tensor, Tensor]:
    """exp(-2πi k x · step) along x for k = 0 … reach (real pairs), and along y for k = -reach … reach."""
    x = (torch.arange(box) - box // 2).double() * step
    kx, ky = torch.arange(reach + 1).double(), torch.arange(-reach, reach + 1).double()
    one = torch.ones(1, 1, dtype=torch.float64)
    along_x = torch.polar(one, -2 * math.pi * x[:, None] * kx)
    along_y = torch.polar(one, -2 * math.pi * ky[:, None] * x)
    return torch.view_as_real(along_x).flatten(1).float(), along_y.to(torch.complex64)


def sampling_of(box: int, pixel_size: float, grid: WorkingGrid, plane: HalfPlane, radius: float) -> Sampling:
    """How to bring images of this box and pixel size to a grid.

    Parameters
    ----------
    box : int
        Of the images, px.
    pixel_size : float
        Of the images, Å.
    grid : WorkingGrid
        Grid of the model.
    plane : HalfPlane
        Coefficients that the model looks at.
    radius : float
        Of the particle, Å.

    Raises
    ------
    ImageError
        The field of view is too small for the particle, or the pixels are too large for the detail that the model needs.
    """
    if box * pixel_size < 2 * radius and box * pixel_size < 0.999 * grid.field_of_view:
        raise ImageError(
            f"the images show {box * pixel_size:.0f} Å ({box} px of {pixel_size:.2f} Å), the particle of the model is "
            f"{2 * radius:.0f} Å wide",
            hint=f"extract the particles again in a box of at least {math.ceil(2 * radius / pixel_size)} px",
        )
    excess = box * pixel_size / grid.field_of_view > 1 + 1e-4
    crop = min(box, math.ceil(grid.field_of_view / pixel_size - 1e-6)) if excess else box
    shell = math.ceil(min(grid.field_of_view / (2 * pixel_size), (grid.box + 1) / 2) - 1e-6) - 1
    return Sampling(crop, pixel_size, grid, plane, min(shell, plane.max_shell))


def demand_detail(sampling: Sampling, shell: int) -> None:
    """Check that images hold the detail that a model needs.

    Raises
    ------
    ImageError
        They end below that shell.
    """
    if sampling.reach < min(shell, sampling.plane.max_shell):
        needed = sampling.grid.field_of_view / shell
        raise ImageError(
            f"pixels of {sampling.pixel_size:.2f} Å hold detail down to {2 * sampling.pixel_size:.1f} Å, the model needs "
            f"{needed:.1f} Å",
            hint=f"extract the particles again with pixels of at most {needed / 2:.2f} Å",
        )


@dataclass(frozen=True)
class Amplitude:
    """Scale and noise of a set of images.

    Attributes
    ----------
    noise : Float[Tensor, "shell"]
        Standard deviation of the noise of coefficients on the model's grid.
    sign : float
        -1 where the contrast of the stack is inverted (white particles), else 1.
    gain : float
        Amplitude of the images relative to those the model was learnt from.
    """

    noise: Float[Tensor, " shell"]
    sign: float
    gain: float


@dataclass(frozen=True)
class Whitening:
    """What is known of a set of images as a whole.

    Attributes
    ----------
    amplitude : Amplitude
    centring : CentringModel
        How particles look on average and how far off centre they are.
    """

    amplitude: Amplitude
    centring: CentringModel


@dataclass(frozen=True)
class Piece:
    """Some images of a table, ready for an encoder.

    Attributes
    ----------
    rows : Int[np.ndarray, "particle"]
        Rows of the table, in ascending order; unusable images are left out.
    batch : ImageBatch
    centres_px : Float[Tensor, "particle 2"]
        Where each particle is expected, px of the model's grid.
    reach : int
        Largest shell that the images hold.
    """

    rows: np.ndarray
    batch: ImageBatch
    centres_px: Shifts
    reach: int


@dataclass(frozen=True)
class NewImages:
    """Images of a table on their way to a model's grid.

    Attributes
    ----------
    table : ParticleTable
    grid : WorkingGrid
    plane : HalfPlane
        Coefficients that the model looks at.
    radius : float
        Of the particle, Å.
    least_shell : int
        Shell that the images must hold.
    """

    table: ParticleTable
    grid: WorkingGrid
    plane: HalfPlane
    radius: float
    least_shell: int

    def samplings(self) -> dict[tuple[int, float], Sampling]:
        """One for each box and pixel size of the table.

        Raises
        ------
        ImageError
            Some images cannot be brought to the grid; names the first row.
        """
        kinds = np.stack([self.table.box, self.table.pixel_size], axis=1)
        found, first = np.unique(kinds, axis=0, return_index=True)
        result = {}
        for kind, row in zip(found, first, strict=True):
            box, pixel_size = int(kind[0]), float(kind[1])
            try:
                sampling = sampling_of(box, pixel_size, self.grid, self.plane, self.radius)
                demand_detail(sampling, self.least_shell)
            except ImageError as error:
                raise ImageError(error.problem, file=self.table.path, row=int(row) + 1, hint=error.hint) from error
            result[box, pixel_size] = sampling
        return result

    def raw(self, rows: np.ndarray, size: int = CHUNK) -> Iterator[tuple[np.ndarray, Tensor, Sampling]]:
        """Usable images in pieces of one kind each, cropped, with their rows and sampling."""
        samplings, stacks = self.samplings(), ImageStacks(self.table)
        kind = np.stack([self.table.box[rows], self.table.pixel_size[rows]])
        cuts = np.flatnonzero(np.any(np.diff(kind, axis=1) != 0, axis=0)) + 1
        for run in np.split(rows, cuts):
            for start in range(0, len(run), size):
                piece = run[start : start + size]
                sampling = samplings[int(self.table.box[piece[0]]), float(self.table.pixel_size[piece[0]])]
                images = torch.from_numpy(stacks.images(piece))
                usable = _is_usable(images)
                if not bool(usable.all()):
                    piece, images = piece[usable.numpy()], images[usable]
                if len(piece):
                    yield piece, sampling.cropped(images), sampling

    def whitened(self, rows: np.ndarray, amplitude: Amplitude) -> Iterator[tuple[np.ndarray, ImageBatch, int]]:
        """Whitened images in pieces, with their rows and the largest shell that they hold."""
        inverse = 1 / amplitude.noise[self.plane.shells]
        transferred = inverse * (amplitude.sign * amplitude.gain)
        ctf = contrast_transfer(self.table.optics, np.full(len(self.table), self.grid.field_of_view))
        for piece, images, sampling in self.raw(rows):
            data = sampling.coefficients(without_background(images)) * inverse
            modulation = ctf.take(torch.from_numpy(piece)).evaluate(self.plane.frequencies) * transferred
            modulation[:, self.plane.count(sampling.reach) :] = 0
            yield piece, ImageBatch(data, modulation, self.plane), sampling.reach

    def pieces(self, rows: np.ndarray, whitening: Whitening, advance: Callable[[int], None]) -> Iterator[Piece]:
        """Whitened and centred images, in pieces; `advance` hears of every image that is done."""
        for piece, batch, reach in self.whitened(rows, whitening.amplitude):
            yield Piece(piece, batch, whitening.centring.centres(batch)[0], reach)
            advance(len(piece))


def _is_usable(images: Image) -> Tensor:
    """Images that are finite and not constant."""
    flat = images.flatten(1)
    low, high = torch.aminmax(flat, dim=1)
    return torch.isfinite(low) & torch.isfinite(high) & (high > low)


@lru_cache(maxsize=8)
def _background(box: int) -> Tensor:
    window = ring(box).window
    return (window / window.sum()).flatten()


def without_background(images: Image) -> Image:
    """Images less their mean in the ring around the particle."""
    return images - (images.flatten(1) @ _background(images.shape[-1]))[:, None, None]
