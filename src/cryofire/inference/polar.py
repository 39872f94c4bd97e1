"""Images on polar Fourier grids, where turning an image in its plane is a cyclic shift.

A polar image holds the filtered coefficients Y C e^{2πik·t} of a particle at radii 1 … `max_shell` and at evenly
spaced angles over the full circle. It is a fixed linear function of the half-plane coefficients: back to real space,
a soft disc that keeps the particle and drops the noise around it, and an exact transform to the polar points; all of
it is one matrix.

Real and imaginary part are stored as their sum (as in Hartley's transform). Nothing is lost: over the full circle the
real part of a real image's spectrum has even angular harmonics only and the imaginary part odd ones, so that inner
products of sums are sums of inner products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from cryofire.arrays import Coefficients, Shifts
from cryofire.geometry.grids import HalfPlane, half_plane, radius_map
from cryofire.physics.imaging import ImageBatch
from cryofire.physics.shift import phase_ramp

DISC = 0.36
"""Radius of the soft disc as a fraction of the box."""


@dataclass(frozen=True)
class PolarGrid:
    """Polar points of the Fourier plane and the way to them from the half plane.

    Attributes
    ----------
    plane : HalfPlane
        The coefficients that are transformed.
    angles : int
        Number of angles over the full circle.
    matrix : Float[Tensor, "pair point"]
        From real and imaginary parts of the half plane, interleaved, to the points (radius, angle).
    """

    plane: HalfPlane
    angles: int
    matrix: Float[Tensor, "pair point"]

    @property
    def radii(self) -> int:
        """Number of radii, 1 … `plane.max_shell`."""
        return self.plane.max_shell

    def weights(self) -> Float[Tensor, " radius"]:
        """Number of half-plane coefficients that a polar point of each radius stands for."""
        return self.plane.shell_sizes()[1:] / self.angles

    def on(self, device: torch.device) -> PolarGrid:
        """The same on a device."""
        return replace(self, matrix=self.matrix.to(device))

    def transform(self, coefficients: Coefficients) -> Float[Tensor, "particle radius angle"]:
        """Polar images of half-plane coefficients (particle, coefficient)."""
        return (torch.view_as_real(coefficients).flatten(-2) @ self.matrix).unflatten(-1, (self.radii, self.angles))


@lru_cache(maxsize=8)
def polar_grid(box: int, max_shell: int, angles: int) -> PolarGrid:
    """Polar grid of images of `box` pixels up to a shell."""
    plane = half_plane(box, max_shell)
    crop = min(box, 2 * max_shell + 8 + box % 2)
    basis = torch.view_as_complex(torch.eye(2 * len(plane)).unflatten(-1, (-1, 2)).contiguous())
    soft = torch.sigmoid((DISC * crop - radius_map(crop, 2)) / (0.02 * crop))
    theta = 2 * math.pi / angles * torch.arange(angles).double()
    radius = torch.arange(1, max_shell + 1).double()
    along_x = _waves((radius[:, None] * theta.cos()).flatten(), crop)
    along_y = _waves((radius[:, None] * theta.sin()).flatten(), crop)
    images = half_plane(crop, max_shell).images(basis) * soft
    points = torch.cat([((piece.to(along_x) @ along_x) * along_y).sum(1) for piece in images.split(128)])
    return PolarGrid(plane, angles, (points.real + points.imag).contiguous())


def _waves(frequencies: Tensor, size: int) -> Tensor:
    """e^{-2πi k x / n} at every pixel x of an axis (rows) and frequency k (columns)."""
    x = (torch.arange(size) - size // 2).double() / size
    phase = -2 * math.pi * x[:, None] * frequencies
    return torch.polar(torch.ones_like(phase), phase).to(torch.complex64)


def filtered(batch: ImageBatch, centres_px: Shifts) -> Coefficients:
    """Coefficients Y C e^{2πik·t}: the CTF applied once more, the particle moved to the centre."""
    ramp = phase_ramp(centres_px, batch.plane.frequencies, batch.plane.box).conj()
    return batch.data * batch.modulation * ramp
