"""Central sections of volumes, and their adjoint, by trilinear interpolation in a twofold oversampled spectrum.

The volume is divided by the interpolation kernel's transform, Π sinc²(r_i / 2n), before it is transformed, so that the
interpolated section equals the transform of the projection up to aliasing: about 1 % of the amplitude for particles within a
fifth of the box from its centre, 2 % for particles filling two thirds of the box. CPU tensors go through
`cryofire.physics.kernels`, those of other devices through `cryofire.physics.tensor_kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryofire.arrays import Rotations
from cryofire.geometry.fourier import Window, half_volume_spectrum, volume_from_half_spectrum
from cryofire.geometry.grids import HalfPlane
from cryofire.physics import kernels, tensor_kernels
from cryofire.physics.devices import CPU

OVERSAMPLING = kernels.OVERSAMPLING


@dataclass(frozen=True)
class SpectrumGrid:
    """Oversampled half spectrum of one or several volumes, ready for sections up to `max_shell`.

    Attributes
    ----------
    values : Float[Tensor, "z y x channel"]
        Real and imaginary parts of each component, interleaved; x ≥ 0.
    max_shell : int
        Largest shell that a section may have.
    """

    values: Float[Tensor, "z y x channel"]
    max_shell: int

    @property
    def components(self) -> int:
        """Number of volumes held."""
        return self.values.shape[-1] // 2

    def on(self, device: torch.device) -> SpectrumGrid:
        """The same on a device."""
        return SpectrumGrid(self.values.to(device), self.max_shell)


def grid_reach(max_shell: int) -> int:
    """Largest grid index that a section up to `max_shell` touches."""
    return OVERSAMPLING * max_shell + 1


def spectrum_grid(volumes: Float[Tensor, "component z y x"], max_shell: int) -> SpectrumGrid:
    """Oversampled half spectrum of volumes whose box holds `max_shell`."""
    box = volumes.shape[-1]
    spectrum = half_volume_spectrum(volumes, OVERSAMPLING * box, grid_reach(max_shell), 1 / gridding_window(box))
    values = torch.view_as_real(spectrum).movedim(0, -2).flatten(-2).contiguous().float()
    return SpectrumGrid(values, max_shell)


def gridding_window(box: int) -> Window:
    """sinc²(x / (2 n)): what trilinear interpolation in the oversampled spectrum multiplies real space by, along each axis."""
    return torch.sinc((torch.arange(box) - box // 2).double() / (OVERSAMPLING * box)) ** 2


def central_sections(
    grid: SpectrumGrid, rotations: Rotations, plane: HalfPlane
) -> Complex[Tensor, "rotation component coefficient"]:
    """Sections S(k) = V(Rᵀ (k_x, k_y, 0)) of every component for every rotation."""
    if grid.values.device != CPU:
        return central_sections_reference(grid, rotations.to(grid.values), plane)
    out = torch.empty(rotations.shape[0], len(plane), grid.values.shape[-1])
    kernels.extract_slices(
        grid.values.numpy(), rotations.float().contiguous().numpy(), plane.frequencies.float().numpy(), out.numpy()
    )
    return torch.view_as_complex(out.unflatten(-1, (-1, 2))).movedim(-1, -2)


def central_sections_reference(
    grid: SpectrumGrid, rotations: Rotations, plane: HalfPlane
) -> Complex[Tensor, "rotation component coefficient"]:
    """`central_sections` in plain differentiable tensor code, on any device and in any precision."""
    return tensor_kernels.extract_slices(grid.values, rotations, plane.frequencies).movedim(-1, -2)


def fold_friedel(grid: Float[Tensor, "z y x channel"], complex_channels: int) -> Float[Tensor, "z y x channel"]:
    """Grid whose x = 0 plane has received its Friedel mates: the first 2 · complex_channels entries are conjugated.

    Points with x between 0 and 1 have mates with x between -1 and 0 whose share of the plane x = 0 was not stored.
    """
    mate = grid[:, :, 0].flip(0, 1).clone()
    mate[..., 1 : 2 * complex_channels : 2] *= -1
    folded = grid.clone()
    folded[:, :, 0] += mate
    return folded


def volumes_from_grid(spectrum: Complex[Tensor, "component kz ky kx"], box: int) -> Float[Tensor, "component z y x"]:
    """Volumes whose interpolated oversampled spectrum is `spectrum`: transform, crop, undo the interpolation kernel."""
    return volume_from_half_spectrum(spectrum, OVERSAMPLING * box, box, 1 / gridding_window(box))
