"""The kernels of `cryofire.physics.kernels` in tensor operations: for graphics processors, and as their readable twins.

Grids have the same layout. Where many images add to one grid on a graphics processor, they do it in any order: sums there differ in
their last digits from run to run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryofire.arrays import Coefficients, Latents, Modulation, Rotations, Shifts
from cryofire.physics.imaging import ImageBatch
from cryofire.physics.kernels import OVERSAMPLING
from cryofire.physics.shift import phase_ramp

POINTS, USUAL_CHANNELS = 1 << 21, 10
"""Points of slices that are worked on at once, and the channels of a grid beyond which they are fewer: they take 2 GB at most."""


@dataclass(frozen=True)
class Cells:
    """Where points of slices lie in a half grid.

    Attributes
    ----------
    corner : Int[Tensor, "rotation coefficient"]
        Flat index of the grid point below.
    fraction : Float[Tensor, "rotation coefficient 3"]
        Of the way to the next one along x, y, z.
    sign : Float[Tensor, "rotation coefficient"]
        -1 where the point is read at its Friedel mate.
    strides : tuple of int
        From one grid point to the next along x, y, z.
    """

    corner: Int[Tensor, "rotation coefficient"]
    fraction: Float[Tensor, "rotation coefficient 3"]
    sign: Float[Tensor, "rotation coefficient"]
    strides: tuple[int, int, int]

    def corners(self) -> Iterator[tuple[Int[Tensor, "rotation coefficient"], Float[Tensor, "rotation coefficient"]]]:
        """Flat index and weight of each of the eight grid points about every point."""
        for number in range(8):
            offsets = (number & 1, number >> 1 & 1, number >> 2)
            step = sum(offset * stride for offset, stride in zip(offsets, self.strides, strict=True))
            parts = [self.fraction[..., a] if offset else 1 - self.fraction[..., a] for a, offset in enumerate(offsets)]
            yield self.corner + step, parts[0] * parts[1] * parts[2]


def locate(rotations: Rotations, frequencies: Tensor, reach: int) -> Cells:
    """Cells of the points OVERSAMPLING · Rᵀ (kx, ky, 0)."""
    points = OVERSAMPLING * (frequencies.to(rotations) @ rotations[..., :2, :])
    sign = torch.where(points[..., 0] < 0, -1.0, 1.0).to(points)
    points = points * sign[..., None]
    base = points.detach().floor()
    strides = (1, reach + 1, (2 * reach + 1) * (reach + 1))
    x, y, z = base.long().unbind(-1)
    return Cells((z + reach) * strides[2] + (y + reach) * strides[1] + x, points - base, sign, strides)


def extract_slices(
    grid: Float[Tensor, "z y x channel"], rotations: Rotations, frequencies: Tensor
) -> Complex[Tensor, "rotation coefficient component"]:
    """Trilinear central sections, differentiable, in any precision."""
    cells, values = locate(rotations, frequencies, grid.shape[2] - 1), grid.flatten(0, 2)
    result = grid.new_zeros(*cells.corner.shape, grid.shape[3])
    for corner, weight in cells.corners():
        result = result + weight[..., None] * values[corner]
    sections = torch.view_as_complex(result.unflatten(-1, (-1, 2)).contiguous())
    return torch.where((cells.sign < 0)[..., None], sections.conj(), sections)


def insert_slices(
    grids: Float[Tensor, "slot z y x 3"],
    rotations: Rotations,
    slots: Int[Tensor, " rotation"],
    frequencies: Tensor,
    numerators: Coefficients,
    denominators: Modulation,
) -> None:
    """Add slices to the grids by the exact adjoint of trilinear interpolation, in place."""
    for rows in _pieces(len(rotations), len(frequencies), grids.shape[-1]):
        cells = locate(rotations[rows], frequencies, grids.shape[3] - 1)
        values = numerators[rows]
        points = torch.stack([values.real, cells.sign * values.imag, denominators[rows]], dim=-1)
        _add_points(grids, cells, slots[rows], points)


def insert_images(
    grids: Float[Tensor, "slot z y x channel"],
    batch: ImageBatch,
    rotations: Rotations,
    shifts: Shifts,
    slots: Int[Tensor, " particle"],
    first: Float[Tensor, "particle component"],
    second: Float[Tensor, "particle pair"],
) -> None:
    """Back-project images with the moments of their coordinates, in place; channels and units as for the compiled kernel."""
    frequencies = batch.plane.frequencies.to(rotations)
    for rows in _pieces(len(rotations), len(batch.plane), grids.shape[-1]):
        cells, modulation = locate(rotations[rows], frequencies, grids.shape[3] - 1), batch.modulation[rows]
        image = modulation * batch.data[rows] * phase_ramp(shifts[rows], frequencies, batch.plane.box).conj()
        numerator = torch.stack([image.real, cells.sign * image.imag], dim=-1)
        spread = first[rows][:, None, :, None] * numerator[:, :, None]
        density = second[rows][:, None] * modulation.square()[..., None]
        _add_points(grids, cells, slots[rows], torch.cat([spread.flatten(2), density], dim=-1))


def _add_points(
    grids: Tensor, cells: Cells, slots: Tensor, points: Float[Tensor, "rotation coefficient channel"]
) -> None:
    flat, size = grids.view(-1, grids.shape[-1]), math.prod(grids.shape[1:4])
    start = (size * slots)[:, None]
    for corner, weight in cells.corners():
        flat.index_add_(0, (start + corner).flatten(), (weight[..., None] * points).flatten(0, 1))


def normal_equations(
    grid: Float[Tensor, "z y x channel"],
    batch: ImageBatch,
    rotations: Rotations,
    shifts: Shifts,
    contrast: Float[Tensor, " particle"],
    latents: Latents,
) -> tuple[
    Float[Tensor, "particle parameter parameter"], Float[Tensor, "particle parameter"], Float[Tensor, " particle"]
]:
    """Hessian, gradient and loss of every image: the Gauss–Newton normal equations that the compiled kernel describes."""
    plane = batch.plane
    frequencies, products = plane.frequencies.to(rotations), []
    for rows in _pieces(len(rotations), len(plane), grid.shape[-1]):
        cells = locate(rotations[rows], frequencies, grid.shape[2] - 1)
        coordinates = torch.cat([torch.ones_like(contrast[rows, None]), latents[rows]], dim=1)
        sections, slopes = _differentiated(grid, cells, coordinates)
        ramp = contrast[rows, None] * batch.modulation[rows] * phase_ramp(shifts[rows], frequencies, plane.box)
        model = ramp * (sections * coordinates[:, None]).sum(-1)
        jacobian = [
            *_by_pose(rotations[rows], frequencies, plane.box, ramp, model, slopes), model / contrast[rows, None],
            *(ramp[..., None] * sections[..., 1:]).unbind(-1),
        ]  # fmt: skip
        columns = torch.view_as_real(torch.stack([*jacobian, batch.data[rows] - model], dim=1)).flatten(2)
        products.append(columns @ columns.mT)
    whole = torch.cat(products)
    return 2 * whole[:, :-1, :-1], 2 * whole[:, -1, :-1], whole[:, -1, -1]


def _differentiated(
    grid: Tensor, cells: Cells, coordinates: Float[Tensor, "particle component"]
) -> tuple[Complex[Tensor, "particle coefficient component"], Complex[Tensor, "particle coefficient 3"]]:
    """Sections of every component, and the gradient of their combination along x, y, z of the grid."""
    channels = grid.shape[3]
    # Rows of a point and its next one in x. They are read number by number: what torch has for whole rows is made for long ones,
    # and took longer than all the rest with two components, whose rows it accepts.
    both = grid.flatten().as_strided((math.prod(grid.shape[:3]) - 1, 2 * channels), (channels, 1))
    numbers = torch.arange(2 * channels, device=grid.device)
    x, y, z = cells.fraction[..., None, :].unbind(-1)
    weights = coordinates[:, None, :, None]

    def combined(values: Tensor) -> Tensor:
        return (values.unflatten(-1, (-1, 2)) * weights).sum(-2)

    planes = []
    for above in (0, cells.strides[2]):
        rows = []
        for beside in (0, cells.strides[1]):
            row = cells.corner + (above + beside)
            near, far = both[row[..., None], numbers].split(channels, dim=-1)
            step = far - near
            rows.append((near + x * step, combined(step)))
        (value, along_x), (next_value, next_along_x) = rows
        step = next_value - value
        planes.append((value + y * step, along_x + y * (next_along_x - along_x), combined(step)))
    (value, along_x, along_y), (next_value, next_along_x, next_along_y) = planes
    step = next_value - value
    sections = (value + z * step).unflatten(-1, (-1, 2))
    slopes = torch.stack(
        [along_x + z * (next_along_x - along_x), along_y + z * (next_along_y - along_y), combined(step)], -2
    )
    # The mirrored point has the conjugate value; its gradient is conjugated and changes sign.
    sign, one = cells.sign[..., None], torch.ones_like(cells.sign)[..., None]
    flip = torch.stack([one, sign], dim=-1)
    return torch.view_as_complex(sections * flip), torch.view_as_complex(slopes * flip.flip(-1))


def _by_pose(
    rotations: Rotations,
    frequencies: Float[Tensor, "coefficient 2"],
    box: int,
    ramp: Complex[Tensor, "particle coefficient"],
    model: Complex[Tensor, "particle coefficient"],
    slopes: Complex[Tensor, "particle coefficient 3"],
) -> tuple[Complex[Tensor, "particle coefficient"], ...]:
    """Derivatives of the model by rotation and shift."""
    x, y, z = (slopes @ (OVERSAMPLING * rotations.mT).to(slopes.dtype)).unbind(-1)  # along the axes of the image
    kx, ky = frequencies.unbind(-1)
    turn = -2j * math.pi / box
    return -ky * ramp * z, kx * ramp * z, ramp * (ky * x - kx * y), turn * kx * model, turn * ky * model


def _pieces(count: int, coefficients: int, channels: int) -> list[slice]:
    """Images a few at a time."""
    size = max(POINTS * USUAL_CHANNELS // (coefficients * max(channels, USUAL_CHANNELS)), 1)
    return [slice(start, start + size) for start in range(0, count, size)]
