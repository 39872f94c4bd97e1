"""Whitened images: what every stage of inference sees of the data.

The image model on half-plane coefficients, divided by the standard deviation σ of the noise in each shell, is

    Y_i(k) = a_i · C_i(k) / σ(|k|) · exp(-2πi k·t_i / n) · S_i(k) + ε,    E|ε|² = 1,

so that log p(Y | everything else) = -Σ|residual|² up to a constant, the sum running over the half plane.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor

from cryofire.arrays import Coefficients, Modulation
from cryofire.geometry.grids import HalfPlane
from cryofire.physics.ctf import ContrastTransfer
from cryofire.physics.devices import CPU

BATCH = 512
"""Images handled at once."""
POINTS, POINTS_ELSEWHERE = 1 << 20, 1 << 24
"""Coefficients handled at once: on the CPU 8 MB, which stay near the processor; elsewhere more, as every step has its price."""


@dataclass(frozen=True)
class ImageBatch:
    """Whitened coefficients of some images and what multiplies the section of each.

    Attributes
    ----------
    data : Complex[Tensor, "particle coefficient"]
        Whitened coefficients Y / σ.
    modulation : Float[Tensor, "particle coefficient"]
        Whitened contrast transfer C / σ.
    plane : HalfPlane
        Which coefficients these are.
    """

    data: Coefficients
    modulation: Modulation
    plane: HalfPlane

    def take(self, rows: Tensor) -> ImageBatch:
        """Some images of the batch (indices or a mask)."""
        return ImageBatch(self.data[rows], self.modulation[rows], self.plane)

    def on(self, device: torch.device) -> ImageBatch:
        """The same images on a device."""
        return ImageBatch(self.data.to(device), self.modulation.to(device), self.plane)

    def truncated(self, max_shell: int) -> ImageBatch:
        """The same images up to a lower shell."""
        plane = self.plane.truncated(max_shell)
        return ImageBatch(self.data[:, : len(plane)].contiguous(), self.modulation[:, : len(plane)].contiguous(), plane)


@dataclass(frozen=True)
class WhitenedImages:
    """All images of a run, on disk or in memory, with their CTFs and the noise spectrum.

    Attributes
    ----------
    cache : Float16[np.ndarray, "row coefficient 2"]
        Whitened coefficients sorted by radius (a memory map, or an array).
    rows : Int[np.ndarray, "particle"]
        Row of the cache that each image has.
    ctf : ContrastTransfer
        One entry per particle.
    plane : HalfPlane
        The coefficients of a row.
    noise : Float[Tensor, "shell"]
        Standard deviation of the noise by which the cache was divided.
    correction : Float[Tensor, "shell"]
        Standard deviation of the noise left in the cache, re-estimated from residuals; 1 when the first estimate was right.
    """

    cache: Float16[np.ndarray, "row coefficient 2"]
    rows: Int[np.ndarray, " particle"]
    ctf: ContrastTransfer
    plane: HalfPlane
    noise: Float[Tensor, " shell"]
    correction: Float[Tensor, " shell"]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Int[Tensor, " row"], max_shell: int, device: torch.device = CPU) -> ImageBatch:
        """Coefficients of the given images up to a shell, on a device; reads only those bytes."""
        plane = self.plane.truncated(max_shell)
        held = self._coefficients()[:, : len(plane)].index_select(0, torch.from_numpy(self.rows[rows.numpy()]))
        inverse = 1 / self.correction[plane.shells].to(device)
        data = torch.view_as_complex(held.to(device).float().mul_(inverse[:, None]))
        transfer = self.ctf.take(rows).on(device).evaluate(plane.frequencies)
        return ImageBatch(data, transfer.mul_(inverse / self.noise[plane.shells].to(device)), plane)

    def _coefficients(self) -> Float16[Tensor, "row coefficient 2"]:
        """The cache as a tensor; it is only read, whether or not it could be written."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            return torch.from_numpy(self.cache)

    def with_noise(self, variance: Float[Tensor, " shell"]) -> WhitenedImages:
        """The same images with the variance of the whitened noise re-estimated: `variance` is what the residuals showed."""
        return replace(self, correction=self.correction * variance.sqrt())

    def take(self, rows: Int[Tensor, " row"]) -> WhitenedImages:
        """A subset of the images, held in memory."""
        return replace(
            self.among(rows), cache=np.asarray(self.cache[self.rows[rows.numpy()]]), rows=np.arange(len(rows))
        )

    def among(self, rows: Int[Tensor, " row"]) -> WhitenedImages:
        """A subset of the images, their coefficients staying where they are."""
        return replace(self, rows=self.rows[rows.numpy()], ctf=self.ctf.take(rows))


def batches(rows: Int[Tensor, " row"], size: int = BATCH) -> tuple[Int[Tensor, " _"], ...]:
    """Rows in consecutive pieces of at most `size`; none where there are no rows."""
    return tuple(rows.split(size)) if len(rows) else ()


def batches_on(device: torch.device, rows: Int[Tensor, " row"], plane: HalfPlane) -> tuple[Int[Tensor, " _"], ...]:
    """Rows in consecutive pieces whose coefficients a device handles well at once."""
    points = POINTS if device == CPU else POINTS_ELSEWHERE
    return batches(rows, max(points // len(plane), 1))
