"""The likelihood of all images as a quadratic function of the maps, from their back-projection sums.

For known poses, contrasts and latent posteriors the images' log-likelihood and the prior of the linear model add up, but for a
constant, to -L with

    L(F) = Σ_k w_k [ F(k)ᴴ (D(k) + P(|k|)) F(k) - 2 Re F(k)ᴴ N(k) ],

F(k) the spectra of all coordinates at a point of the twofold oversampled half grid, N and D the numerators and densities of
`volumes.accumulator`, P the prior precision, and w_k = ½ on the plane k_x = 0, which holds its own Friedel mates, 1 elsewhere.
Every image counts, and none is touched again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryofire.geometry.fourier import half_volume_spectrum, shells_scaled, volume_from_half_spectrum
from cryofire.physics.projection import OVERSAMPLING, fold_friedel, gridding_window
from cryofire.volumes.accumulator import GridSums, grid_shells


@dataclass(frozen=True)
class MapQuadratic:
    """L of maps of `box` voxels.

    Attributes
    ----------
    numerators : Complex[Tensor, "coordinate kz ky kx"]
        N, zero where w is.
    densities : Float[Tensor, "pair kz ky kx"]
        D + P, rows of the upper triangle; zero where w is.
    weights : Float[Tensor, "kz ky kx"]
        w, zero outside the shells 1 … `max_shell`.
    shells : Int[Tensor, "kz ky kx"]
        Shell of every point, at most `max_shell`.
    box : int
    """

    numerators: Complex[Tensor, "coordinate kz ky kx"]
    densities: Float[Tensor, "pair kz ky kx"]
    weights: Float[Tensor, "kz ky kx"]
    shells: Int[Tensor, "kz ky kx"]
    box: int

    def spectrum(self, maps: Float[Tensor, "coordinate z y x"]) -> Complex[Tensor, "coordinate kz ky kx"]:
        """F of maps: back-projection smooths the spectrum by the interpolation kernel, which in real space is a factor."""
        return half_volume_spectrum(
            maps, OVERSAMPLING * self.box, self.weights.shape[-1] - 1, gridding_window(self.box)
        )

    def applied(self, spectrum: Complex[Tensor, "coordinate kz ky kx"]) -> Complex[Tensor, "coordinate kz ky kx"]:
        """(D + P) F."""
        parts = torch.view_as_real(spectrum)
        rows = torch.zeros_like(parts)
        for density, (a, b) in zip(self.densities[..., None], _pairs(len(spectrum)), strict=True):
            rows[a].addcmul_(density, parts[b])
            if a != b:
                rows[b].addcmul_(density, parts[a])
        return torch.view_as_complex(rows)

    def value(self, maps: Float[Tensor, "coordinate z y x"]) -> Float[Tensor, ""]:
        """L of maps, differentiable."""
        spectrum = self.spectrum(maps)
        return ((spectrum.conj() * (self.applied(spectrum) - 2 * self.numerators)).real.sum(0) * self.weights).sum()

    def gradient(self, maps: Float[Tensor, "coordinate z y x"]) -> Float[Tensor, "coordinate z y x"]:
        """Slope of L at maps: two transforms and one pass over the grid."""
        return self._seen_from(self.applied(self.spectrum(maps)) - self.numerators)

    def bent(self, direction: Float[Tensor, "coordinate z y x"]) -> Float[Tensor, "coordinate z y x"]:
        """Hessian of L times a direction."""
        return self._seen_from(self.applied(self.spectrum(direction)))

    def _seen_from(self, slopes: Complex[Tensor, "coordinate kz ky kx"]) -> Float[Tensor, "coordinate z y x"]:
        """Slope with respect to the maps of a function with these slopes, times w, with respect to the spectrum.

        The transposed transform. It counts the points beside the plane k_x = 0 twice as well, for the mates that are not stored.
        """
        size = OVERSAMPLING * self.box
        return size**3 * volume_from_half_spectrum(slopes, size, self.box, gridding_window(self.box))

    def shell_densities(self) -> Float[Tensor, "coordinate shell"]:
        """Mean of D + P over every shell, for each coordinate by itself; 1 for shell 0."""
        count = len(self.numerators)
        shells, weights = self.shells.flatten(), self.weights.flatten()
        known = weights.new_zeros(int(shells.max()) + 1).index_add(0, shells, weights)
        own = [pair for pair, (a, b) in enumerate(_pairs(count)) if a == b]
        sums = weights.new_zeros(count, len(known)).index_add(1, shells, self.densities[own].flatten(1) * weights)
        return torch.where(known > 0, sums / known.clamp_min(1e-30), 1.0)


def minimised(
    quadratic: MapQuadratic,
    support: Float[Tensor, "z y x"],
    start: Float[Tensor, "coordinate z y x"],
    steps: int,
    report: Callable[[float], None],
) -> Float[Tensor, "coordinate z y x"]:
    """Densities u for which L(m u) is nearly least, by conjugate gradients from a start.

    The Hessian is nearly constant in every shell, so that its mean there preconditions it well; what couples coefficients is
    the support m. Each step costs two transforms to the oversampled grid.

    Parameters
    ----------
    support : Float[Tensor, "z y x"]
        m.
    start : Float[Tensor, "coordinate z y x"]
    steps : int
    report : callable
        Called with L after every step.
    """
    inverse = 1 / quadratic.shell_densities().to(start)
    density, level = start, float(quadratic.value(support * start))
    residual = -support * quadratic.gradient(support * start)
    slope = shells_scaled(residual, inverse)
    direction, power = slope, (residual * slope).sum()
    for _ in range(steps):
        bent = support * quadratic.bent(support * direction)
        length = power / (direction * bent).sum()
        density, residual = density + length * direction, residual - length * bent
        level -= 0.5 * float(length * power)
        report(level)
        slope = shells_scaled(residual, inverse)
        before, power = power, (residual * slope).sum()
        direction = slope + (power / before) * direction
    return density


def map_quadratic(sums: GridSums, precision: Float[Tensor, "coordinate shell"], box: int) -> MapQuadratic:
    """L for the images in `sums`, both halves together, and a prior precision in units of the densities."""
    count = sums.components
    values = fold_friedel(sums.values.sum(0), count)
    shells = grid_shells(sums.reach).to(values.device)
    inside = (shells > 0) & (shells <= sums.max_shell)
    weights = inside.to(values)
    weights[:, :, 0] *= 0.5
    shells = shells.clamp_max(sums.max_shell)
    densities = values[..., 2 * count :].movedim(-1, 0).contiguous()
    for pair, (a, b) in enumerate(_pairs(count)):
        if a == b:
            densities[pair] += precision[a].to(densities)[shells]
    densities *= inside
    numerators = (values[..., : 2 * count] * inside[..., None]).unflatten(-1, (-1, 2)).movedim(-2, 0).contiguous()
    return MapQuadratic(torch.view_as_complex(numerators), densities, weights, shells, box)


def _pairs(count: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(count) for b in range(a, count)]
