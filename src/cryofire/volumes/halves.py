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


def solve_halves(
    sums: GridSums, mask: Volume, shared_shell: int, ridge: float = 1e-3, component_ridge: float | None = None
) -> HalfMaps:
    """Maps of both halves and of all images, each filtered by what the halves agree on (Wiener).

    The signal-to-noise ratio of a shell is FSC / (1 - FSC) for one half and twice that for both; the prior precision is the mean
    density over it.

    Parameters
    ----------
    ridge : float
        Fraction of the density that keeps the unfiltered maps finite where data are scarce.
    component_ridge : float, optional
        Prior precision of the components beyond the mean as a fraction of the density, instead of the Wiener filter: for the first
        passes, when the halves do not agree on anything yet.
    """
    box = mask.shape[-1]
    density = mean_density(sums)
    raw = unfiltered_halves(sums, mask, ridge)
    fsc = component_fsc(raw[0], raw[1])[:, : sums.max_shell + 1]
    precision = wiener_precision(density, fsc)
    if component_ridge is not None:
        precision[1:] = component_ridge * density[1:]
    joint = solve_maps(sums, box, precision) * mask
    halves = [solve_maps(sums, box, precision, half) * mask for half in range(HALVES)]
    return HalfMaps(torch.stack([join_low_shells(half, joint, shared_shell) for half in halves]), joint, fsc)


def unfiltered_halves(
    sums: GridSums, mask: Volume, ridge: float = 1e-3
) -> tuple[Float[Tensor, "component z y x"], Float[Tensor, "component z y x"]]:
    """Maps of each half without a filter."""
    density = mean_density(sums)
    first, second = (solve_maps(sums, mask.shape[-1], ridge * density, half) * mask for half in range(HALVES))
    return first, second


def wiener_precision(
    density: Float[Tensor, "component shell"], fsc: Float[Tensor, "component shell"]
) -> Float[Tensor, "component shell"]:
    """Prior precision of the map of all images: mean density over the signal-to-noise ratio 2 FSC / (1 - FSC)."""
    reliable = smoothed(fsc).clamp(1e-3, 0.9999)
    return density * (1 - reliable) / (2 * reliable)


def component_fsc(first: Volume, second: Volume) -> Float[Tensor, "component shell"]:
    """Shell correlation of each component, shape (component, shell)."""
    return torch.stack([fourier_shell_correlation(a, b) for a, b in zip(first, second, strict=True)])


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
