"""The rigid fit of one map to another by the part of them that did not change shape.

Least squares between two conformations averages over everything that moved. Here a voxel counts by how well the maps agree around
it, w = (1 + ε / σ²)⁻² with ε the local mean of the squared difference and σ falling step by step to a few times the noise
(graduated non-convexity; Black & Rangarajan 1996, with the function of Geman & McClure). What can be laid on top of each other
takes all the weight, and the largest such part, the core, decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from cryofire.arrays import Volume
from cryofire.geometry.fourier import resample, volume_from_spectrum, volume_spectrum
from cryofire.geometry.grids import shell_map
from cryofire.geometry.rotations import geodesic_angle, rotation_from_vector

FIRST_TOLERANCE, LAST_TOLERANCE = 8.0, 3.0
"""σ over the noise, at the least in the beginning, and in the end."""
STEPS = 15
"""Most Gauss–Newton steps at each σ."""
SAMPLES = 4
"""Points along an axis for every shell below the low-pass, of which a sixteenth is left at their highest frequency."""
FINER = 2
"""Sampling of the moving map over that of the reference."""
LEAST_NOISE = 0.03
"""Noise at the least, as a fraction of the map's deviation: interpolation is not exact."""


@dataclass(frozen=True)
class CoreFit:
    """How one map lies on another: moving(rotation · x + offset) = reference(x) in the core.

    Attributes
    ----------
    rotation : Float[Tensor, "3 3"]
    offset_px : Float[Tensor, "3"]
        Voxels (x, y, z).
    share : float
        Weight of the core: fraction of the reference's squared density that the maps agree on.
    """

    rotation: Float[Tensor, "3 3"]
    offset_px: Float[Tensor, " 3"]
    share: float

    @property
    def angle(self) -> float:
        """Angle of the rotation, radians."""
        return float(geodesic_angle(self.rotation, torch.eye(3)))

    def most_px(self, radius: float) -> float:
        """How far a voxel moves at the most, of those within `radius` voxels of the middle."""
        return self.angle * radius + float(self.offset_px.norm())


def fit_core(reference: Volume, moving: Volume, noise: float, mask: Volume, shell: int) -> CoreFit:
    """Rotation and offset that lay the core of `moving` on that of `reference`.

    Parameters
    ----------
    reference, moving : Volume
        Maps of one box, on the same scale.
    noise : float
        Standard deviation of the noise of their difference, after a low-pass to `shell`.
    mask : Volume
        Where they are compared.
    shell : int
        Where the low-pass falls to one half.
    """
    box = len(reference)
    size = min(box, SAMPLES * shell)
    first, second = (low_passed(_sampled(volume, size), shell) for volume in (reference, moving))
    finer = resample(second, FINER * size, 3)
    pair = _Pair(first, torch.stack([finer, *_gradient(finer)]), _sampled(mask, size) > 0.5, 0.5 * size / shell)
    noise = max(noise, LEAST_NOISE * float(first[pair.inside].std()))
    found = CoreFit(torch.eye(3), torch.zeros(3), 0.0)
    before = pair.compared(found, LAST_TOLERANCE * noise)
    tolerance = max(FIRST_TOLERANCE, float(pair.residual(found).square().mean().sqrt()) / noise)
    while True:
        found = _settled(pair, found, tolerance * noise)
        if tolerance <= LAST_TOLERANCE:
            break
        tolerance = max(0.5 * tolerance, LAST_TOLERANCE)
    best = found if found.share > before.share else before
    return replace(best, offset_px=best.offset_px * (box / size))


def _sampled(volume: Volume, size: int) -> Volume:
    return volume if size == len(volume) else resample(volume, size, 3)


def low_passed(volume: Float[Tensor, "z y x"], shell: int) -> Float[Tensor, "z y x"]:
    """Gaussian low-pass that falls to one half at a shell."""
    radius = shell_map(volume.shape[-1], 3) / shell
    return volume_from_spectrum(volume_spectrum(volume) * torch.exp2(-radius.square()))


def _gradient(volume: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes (x, y, z) of a finer grid, per voxel of the reference."""
    z, y, x = torch.gradient(volume, spacing=1 / FINER)
    return x, y, z


@dataclass(frozen=True)
class _Pair:
    """Reference and finer moving map (with its gradient, x y z), where to compare, and how far a voxel's surroundings reach."""

    reference: Float[Tensor, "z y x"]
    moving: Float[Tensor, "4 fine fine fine"]
    inside: Tensor
    reach_px: float

    @cached_property
    def points(self) -> Float[Tensor, "voxel 3"]:
        """Places inside the mask, (x, y, z) from the origin."""
        return (self.inside.nonzero() - len(self.reference) // 2).flip(1).float()

    def sampled(self, fit: CoreFit) -> Float[Tensor, "4 voxel"]:
        """The moving map and its gradient where the reference's voxels come to lie (trilinear on the finer grid)."""
        fine = self.moving.shape[-1]
        places = (FINER * (self.points @ fit.rotation.T + fit.offset_px) + fine // 2 + 0.5) * (2 / fine) - 1
        read = torch.nn.functional.grid_sample(self.moving[None], places[None, :, None, None], align_corners=False)
        return read[0, :, :, 0, 0]

    def residual(self, fit: CoreFit) -> Float[Tensor, " voxel"]:
        """Difference of the maps."""
        return self.reference[self.inside] - self.sampled(fit)[0]

    def weights(self, residual: Float[Tensor, " voxel"], tolerance: float) -> Float[Tensor, " voxel"]:
        """How much each voxel counts."""
        squares = torch.zeros_like(self.reference)
        squares[self.inside] = residual.square()
        return (1 + self._around(squares)[self.inside] / tolerance**2) ** -2

    def _around(self, volume: Float[Tensor, "z y x"]) -> Float[Tensor, "z y x"]:
        width = int(3 * self.reach_px) + 1
        kernel = torch.exp(-0.5 * (torch.arange(-width, width + 1) / self.reach_px) ** 2)
        kernel, smooth = kernel / kernel.sum(), volume[None, None]
        for axis in range(3):
            shape, padding = [1] * 5, [0] * 3
            shape[2 + axis], padding[axis] = len(kernel), width
            smooth = torch.nn.functional.conv3d(smooth, kernel.view(shape), padding=padding)
        return smooth[0, 0]

    def compared(self, fit: CoreFit, tolerance: float) -> CoreFit:
        """The fit with the share of its core."""
        weights, energy = self.weights(self.residual(fit), tolerance), self.reference[self.inside].square()
        return CoreFit(fit.rotation, fit.offset_px, float((weights * energy).sum() / energy.sum().clamp_min(1e-30)))


def _settled(pair: _Pair, fit: CoreFit, tolerance: float) -> CoreFit:
    """Reweighted Gauss–Newton steps until the fit stands still."""
    for _ in range(STEPS):
        moving = pair.sampled(fit)
        residual = pair.reference[pair.inside] - moving[0]
        slope = moving[1:].T @ fit.rotation
        columns = torch.cat([torch.linalg.cross(pair.points, slope), slope], dim=1)
        weighted = columns * pair.weights(residual, tolerance)[:, None]
        system = columns.T @ weighted
        ridge = 1e-6 * system.diagonal().mean() * torch.eye(6)
        step = torch.linalg.solve(system + ridge, weighted.T @ residual)
        turn = rotation_from_vector(step[None, :3])[0]
        fit = CoreFit(fit.rotation @ turn, fit.offset_px + fit.rotation @ step[3:], 0.0)
        if float(step[:3].norm()) < 1e-5:
            break
    return pair.compared(fit, tolerance)
