"""Maps in closed form: weighted back-projection of images onto a grid, and its Wiener solution.

For the linear model V(k, z) = Σ_j u_j V_j(k), u = (1, z), every grid point gathers numerators N_j = Σ E[u_j] C* Y and densities
D_jl = Σ E[u_j u_l] C², and the maps solve (D + P) V = N with the prior precision P. Images fall into two halves by `half`, so
that the Fourier shell correlation between halves tells the signal-to-noise ratio of each shell, and from it the prior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryofire.arrays import Rotations, Shifts
from cryofire.geometry.grids import HalfPlane
from cryofire.physics import kernels, tensor_kernels
from cryofire.physics.devices import CPU, device_with
from cryofire.physics.imaging import ImageBatch
from cryofire.physics.projection import OVERSAMPLING, grid_reach, volumes_from_grid
from cryofire.volumes.grid_points import add_densities, solve_points

HALVES = 2


@dataclass(frozen=True)
class GridSums:
    """Numerators and densities on the oversampled grid, one set for each half of the images.

    Attributes
    ----------
    values : Float[Tensor, "half z y x channel"]
        2c numerator channels (real, imaginary), then c (c + 1) / 2 densities, rows of the upper triangle.
    components : int
        Number c of components.
    """

    values: Float[Tensor, "half z y x channel"]
    components: int

    @property
    def reach(self) -> int:
        """Largest grid index."""
        return int(self.values.shape[-2]) - 1

    @property
    def max_shell(self) -> int:
        """Largest shell that the grid holds."""
        return (self.reach - 1) // OVERSAMPLING

    def on(self, device: torch.device) -> GridSums:
        """The same on a device."""
        return GridSums(self.values.to(device), self.components)


def empty_sums(max_shell: int, components: int = 1, device: torch.device = CPU) -> GridSums:
    """Sums of no images."""
    return GridSums(torch.zeros(*_shape(max_shell, components), device=device), components)


def device_for(max_shell: int, components: int) -> torch.device:
    """A device with room for sums, and for maps of as many components that images are compared with."""
    numbers = math.prod(_shape(max_shell, components)) + math.prod(_shape(max_shell, 1)[1:4]) * HALVES * 2 * components
    return device_with(4 * numbers)


def _shape(max_shell: int, components: int) -> tuple[int, int, int, int, int]:
    reach = grid_reach(max_shell)
    channels = 2 * components + components * (components + 1) // 2
    return HALVES, 2 * reach + 1, 2 * reach + 1, reach + 1, channels


def add_images(
    sums: GridSums,
    batch: ImageBatch,
    rotations: Rotations,
    shifts_px: Shifts,
    half: Int[Tensor, " particle"],
    moments: tuple[Float[Tensor, "particle component"], Float[Tensor, "particle pair"]] | None = None,
) -> None:
    """Back-project images into `sums`, in place.

    `moments` are E[u] and E[u uᵀ] (upper triangle) of each image's coordinates times its contrast (squared); None means u = 1.
    """
    count = rotations.shape[0]
    first, second = moments if moments is not None else (torch.ones(count, 1), torch.ones(count, 1))
    if sums.values.device != CPU:
        turns, moves, *known = (one.to(sums.values) for one in (rotations, shifts_px, first, second))
        tensor_kernels.insert_images(sums.values, batch, turns, moves, half.to(sums.values.device), *known)
        return
    kernels.insert_images(
        sums.values.numpy(),
        kernels.lanes_for(HALVES),
        rotations.float().contiguous().numpy(),
        shifts_px.float().contiguous().numpy(),
        half.int().numpy(),
        batch.plane.frequencies.float().numpy(),
        batch.plane.box,
        batch.data.resolve_conj().contiguous().numpy(),
        batch.modulation.contiguous().numpy(),
        first.float().contiguous().numpy(),
        second.float().contiguous().numpy(),
    )


def add_sections(
    sums: GridSums, plane: HalfPlane, rotations: Rotations, numerators: Tensor, denominators: Tensor, half: Tensor
) -> None:
    """Add numerator and denominator sections (rotation, coefficient) into single-component `sums`, in place."""
    if sums.values.device != CPU:
        turns, slots = rotations.to(sums.values), half.to(sums.values.device)
        tensor_kernels.insert_slices(sums.values, turns, slots, plane.frequencies, numerators, denominators)
        return
    kernels.insert_slices(
        sums.values.numpy(),
        kernels.lanes_for(HALVES),
        rotations.float().contiguous().numpy(),
        half.int().numpy(),
        plane.frequencies.float().numpy(),
        numerators.contiguous().numpy(),
        denominators.contiguous().numpy(),
    )


def grid_shells(reach: int) -> Int[Tensor, "z y x"]:
    """Shell of every point of the oversampled half grid."""
    k = torch.arange(-reach, reach + 1).double() / OVERSAMPLING
    square = k[:, None, None] ** 2 + k[:, None] ** 2 + k[reach:] ** 2
    return square.sqrt().round().long()


def solve_maps(
    sums: GridSums, box: int, precision: Float[Tensor, "component shell"], half: int | None = None
) -> Float[Tensor, "component z y x"]:
    """Maps that solve the regularised normal equations, as volumes of `box` voxels.

    Parameters
    ----------
    precision : Float[Tensor, "component shell"]
        Prior precision of every component in every shell, in units of the densities.
    half : int, optional
        0 or 1 for the map of one half; both together by default.
    """
    values = sums.values if half is None else sums.values[half : half + 1]
    solution = torch.zeros(sums.components, *values.shape[1:4], 2)
    solve_points(values.numpy(), precision.float().contiguous().numpy(), sums.max_shell, solution.numpy())
    return volumes_from_grid(torch.view_as_complex(solution), box)


def mean_density(sums: GridSums) -> Float[Tensor, "component shell"]:
    """Shell means of the diagonal densities D_jj of all images."""
    totals = torch.zeros(sums.values.shape[1], sums.components + 1, sums.max_shell + 1, dtype=torch.float64)
    add_densities(sums.values.numpy(), totals.numpy())
    densities, points = totals.sum(0).split([sums.components, 1])
    return (densities / points).float()
