"""Half-plane Fourier coefficients sorted by radius, and shells.

Images are real, so half of their spectrum says everything. `HalfPlane` fixes which half (k_x > 0, or k_x = 0 and k_y > 0), leaves
out the mean, and sorts by radius: a resolution limit is then a prefix of each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryofire.arrays import Coefficients, Image, ImageSpectrum, Volume
from cryofire.geometry.fourier import half_grid_shells, half_volume_spectrum, image_from_spectrum, image_spectrum


@dataclass(frozen=True)
class HalfPlane:
    """The coefficients kept of an n × n image, up to `max_shell`.

    Attributes
    ----------
    box : int
        Image size n in pixels.
    max_shell : int
        Largest shell kept; a coefficient belongs to shell round(|k|).
    frequencies : Int[Tensor, "coefficient 2"]
        Integer (k_x, k_y) in cycles per box, sorted by radius.
    shells : Int[Tensor, "coefficient"]
        Shell of each coefficient, from 1 to `max_shell`, never decreasing.
    """

    box: int
    max_shell: int
    frequencies: Int[Tensor, "coefficient 2"]
    shells: Int[Tensor, " coefficient"]

    def __len__(self) -> int:
        return self.frequencies.shape[0]

    def count(self, shell: int) -> int:
        """Number of leading coefficients that make up the shells 1 … `shell`."""
        return int(torch.searchsorted(self.shells, shell, right=True))

    def truncated(self, shell: int) -> HalfPlane:
        """The same half plane up to a lower shell (a prefix of every row)."""
        return half_plane(self.box, min(shell, self.max_shell))

    def shell_mean(self, values: Float[Tensor, "*batch coefficient"]) -> Float[Tensor, "*batch shell"]:
        """Mean over each shell 0 … `max_shell`; shell 0, which holds nothing, gets 0."""
        total = values.new_zeros(*values.shape[:-1], self.max_shell + 1)
        total.index_add_(-1, self.shells.to(values.device), values)
        return total / self.shell_sizes().clamp_min(1).to(values)

    def shell_sizes(self) -> Int[Tensor, " shell"]:
        """Number of coefficients in each shell 0 … `max_shell`."""
        return torch.bincount(self.shells, minlength=self.max_shell + 1)

    def gather(self, spectrum: ImageSpectrum) -> Coefficients:
        """Half-plane coefficients of centred spectra (..., y, x)."""
        kx, ky = self.frequencies.unbind(-1)
        return spectrum[..., ky + self.box // 2, kx + self.box // 2]

    def scatter(self, coefficients: Coefficients) -> ImageSpectrum:
        """Centred Hermitian spectra of half-plane coefficients, zero where nothing was kept."""
        kx, ky = self.frequencies.unbind(-1)
        spectrum = coefficients.new_zeros(*coefficients.shape[:-1], self.box, self.box)
        spectrum[..., self.box // 2 - ky, self.box // 2 - kx] = coefficients.conj()
        spectrum[..., self.box // 2 + ky, self.box // 2 + kx] = coefficients
        return spectrum

    def coefficients(self, image: Image) -> Coefficients:
        """Half-plane coefficients of real images (..., y, x)."""
        return self.gather(image_spectrum(image))

    def images(self, coefficients: Coefficients) -> Image:
        """Real zero-mean images of half-plane coefficients."""
        return image_from_spectrum(self.scatter(coefficients))


@lru_cache(maxsize=64)
def half_plane(box: int, max_shell: int | None = None) -> HalfPlane:
    """The half plane of an image of `box` pixels, up to `max_shell` (default: the largest that `box` holds, (n - 1) // 2)."""
    limit = (box - 1) // 2 if max_shell is None else max_shell
    if not 0 < limit <= (box - 1) // 2:
        raise ValueError(f"a box of {box} pixels holds shells 1 to {(box - 1) // 2}, not {limit}")
    k = torch.arange(-limit, limit + 1)
    ky, kx = torch.meshgrid(k, k, indexing="ij")
    radius_squared = kx**2 + ky**2
    shell = radius_squared.double().sqrt().round().long()
    keep = ((kx > 0) | ((kx == 0) & (ky > 0))) & (shell <= limit)
    order = radius_squared[keep].argsort(stable=True)
    frequencies = torch.stack([kx[keep][order], ky[keep][order]], dim=-1)
    return HalfPlane(box, limit, frequencies, shell[keep][order])


def shell_map(box: int, axes: int) -> Int[Tensor, ...]:
    """Shell round(|k|) of every point of a centred grid of `box` points an axis."""
    k = torch.arange(box) - box // 2
    squares = k**2
    total = torch.zeros((), dtype=torch.long)
    for _ in range(axes):
        total = total[..., None] + squares
    return total.double().sqrt().round().long()


def radius_map(box: int, axes: int) -> Float[Tensor, ...]:
    """Distance in pixels of every point of a centred grid from its origin at n // 2."""
    x = (torch.arange(box) - box // 2).double()
    total = torch.zeros((), dtype=torch.float64)
    for _ in range(axes):
        total = total[..., None] + x**2
    return total.sqrt().float()


def interpolated(lattice: Float[Tensor, "*feature z y x"], box: int) -> Float[Tensor, "*feature Z Y X"]:
    """Values of a lattice at the voxels of a box with the same field of view, linearly between lattice points."""
    size = lattice.shape[-1]
    if size == box:
        return lattice
    matrix = interpolation_matrix(box, size).to(lattice)
    along_x = lattice @ matrix.T
    return torch.einsum("Zz,...zyx->...Zyx", matrix, matrix @ along_x)


def interpolation_matrix(box: int, size: int) -> Float[Tensor, "voxel point"]:
    """Weights max(0, 1 - |x_voxel - x_point|) in units of the lattice; both grids have the origin at index n // 2."""
    voxels = (torch.arange(box) - box // 2) * (size / box) + size // 2
    return (1 - (voxels[:, None] - torch.arange(size)).abs()).clamp_min(0)


def fourier_shell_correlation(first: Volume, second: Volume, last: int | None = None) -> Float[Tensor, " shell"]:
    """Correlation of two volumes in each shell: Re Σ A B* / √(Σ|A|² Σ|B|²); shell 0 is set to 1.

    Shells 0 … `last`, which is at most, and by default, (n - 1) // 2.
    """
    limit = (first.shape[-1] - 1) // 2 if last is None else last
    shells = half_grid_shells(limit)
    weight = torch.ones(shells.shape, dtype=torch.float64)
    weight[..., 0] = 0.5  # the plane k_x = 0 holds its own mates
    inside = shells <= limit
    a, b = (half_volume_spectrum(volume, volume.shape[-1], limit)[inside] for volume in (first, second))
    sums = [
        torch.zeros(limit + 1, dtype=torch.float64).index_add_(0, shells[inside], weight[inside] * value)
        for value in ((a * b.conj()).real, a.abs().square(), b.abs().square())
    ]
    correlation = sums[0] / (sums[1] * sums[2]).sqrt().clamp_min(1e-30)
    correlation[0] = 1.0
    return correlation.float()
