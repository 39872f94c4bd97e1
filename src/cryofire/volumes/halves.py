"""Maps of two halves of the images, what they say about resolution, and the map of both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryofire.arrays import Volume
from cryofire.geometry.fourier import shells_scaled
from cryofire.geometry.grids import fourier_shell_correlation
from cryofire.volumes.accumulator import HALVES, GridSums, mean_density, solve_maps

GOLD_STANDARD = 0.143
RIDGE = 1e-3
"""Prior precision of unfiltered maps as a fraction of the mean density."""


@dataclass(frozen=True)
class HalfMaps:
    """Wiener maps of each half and of all images, for every component of a linear model.

    Attributes
    ----------
    halves : Float[Tensor, "half component z y x"]
        Maps of each half, joined with `joint` at and below the shared shell.
    joint : Float[Tensor, "component z y x"]
        Maps of all images.
    fsc : Float[Tensor, "component shell"]
        Correlation between the unfiltered halves.
    """

    halves: Float[Tensor, "half component z y x"]
    joint: Float[Tensor, "component z y x"]
    fsc: Float[Tensor, "component shell"]


def solve_halves(sums: GridSums, mask: Volume, shared_shell: int) -> HalfMaps:
    """Maps of both halves and of all images, each filtered by what the halves agree on (Wiener)."""
    precision, fsc = agreed_precision(sums, mask)
    joint = solve_maps(sums, mask.shape[-1], precision) * mask
    halves = solve_each_half(sums, mask, precision)
    return HalfMaps(torch.stack([join_low_shells(half, joint, shared_shell) for half in halves]), joint, fsc)


def agreed_precision(
    sums: GridSums, mask: Volume
) -> tuple[Float[Tensor, "component shell"], Float[Tensor, "component shell"]]:
    """Prior precision of maps by what their unfiltered halves agree on, and that agreement, shell by shell."""
    density = mean_density(sums)
    first, second = unfiltered_halves(sums, mask, density)
    fsc = component_fsc(first, second, sums.max_shell)
    return wiener_precision(density, fsc), fsc


def unfiltered_halves(
    sums: GridSums, mask: Volume, density: Float[Tensor, "component shell"]
) -> Float[Tensor, "half component z y x"]:
    """Maps of each half without a filter, but for a little that keeps them finite where data are scarce.

    Parameters
    ----------
    density : Float[Tensor, "component shell"]
        `mean_density` of the sums.
    """
    return solve_each_half(sums, mask, RIDGE * density)


def solve_each_half(
    sums: GridSums, mask: Volume, precision: Float[Tensor, "component shell"]
) -> Float[Tensor, "half component z y x"]:
    """Maps of each half under one prior."""
    return torch.stack([solve_maps(sums, mask.shape[-1], precision, half) * mask for half in range(HALVES)])


def wiener_precision(
    density: Float[Tensor, "component shell"], fsc: Float[Tensor, "component shell"]
) -> Float[Tensor, "component shell"]:
    """Prior precision of maps: the mean density over the signal-to-noise ratio of the map of all images, 2 FSC / (1 - FSC)."""
    reliable = smoothed(fsc).clamp(1e-3, 0.9999)
    return density * (1 - reliable) / (2 * reliable)


def component_fsc(first: Volume, second: Volume, last: int | None = None) -> Float[Tensor, "component shell"]:
    """Correlation of each component in the shells up to `last`, by default all that the box holds."""
    return torch.stack([fourier_shell_correlation(a, b, last) for a, b in zip(first, second, strict=True)])


def smoothed(fsc: Float[Tensor, "component shell"]) -> Float[Tensor, "component shell"]:
    """The correlation smoothed over three shells, as a noisy curve makes a noisy filter."""
    padded = torch.nn.functional.pad(fsc[:, None], (1, 1), mode="replicate")
    return torch.nn.functional.avg_pool1d(padded, 3, stride=1)[:, 0]


def join_low_shells(half: Volume, joint: Volume, shell: int) -> Volume:
    """`half` with its shells up to `shell` taken from `joint`."""
    last = min(shell, (half.shape[-1] - 1) // 2)
    return half + shells_scaled(joint - half, torch.ones(last + 1))


def resolved_shell(fsc: Float[Tensor, " shell"], threshold: float = GOLD_STANDARD) -> int:
    """Last shell before the correlation first falls below the threshold."""
    below = (fsc[1:] < threshold).nonzero()
    return int(below[0]) if len(below) else len(fsc) - 1
