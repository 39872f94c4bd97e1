"""Soft masks of maps: a sphere, and one that follows the density."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy import fft, ndimage

from cryofire.errors import ImageError
from cryofire.volumes import masks

SMALLEST_ISLAND = 0.05
"""Connected pieces smaller than this fraction of the largest one are not part of the molecule."""


def radius_grid(box: int) -> Float[np.ndarray, "box box box"]:
    """Distance of every voxel from the origin at n // 2, in voxels.

    Parameters
    ----------
    box : int
        Number of voxels along each edge, even or odd.
    """
    squared = (np.arange(box, dtype=np.float64) - box // 2) ** 2
    return np.sqrt(squared[:, None, None] + squared[None, :, None] + squared[None, None, :])


def cosine_falloff(distance: Float[np.ndarray, "*axes"], edge: float) -> Float[np.ndarray, "*axes"]:
    """Return 1 at distances ≤ 0, 0 at distances ≥ edge, and between them (1 + cos(π distance / edge)) / 2.

    Parameters
    ----------
    distance : array
        Distance outside a surface, in any unit.
    edge : float
        Width of the fall-off in the same unit; 0 gives a hard edge.
    """
    if edge <= 0:
        return (distance <= 0).astype(np.float64)
    return 0.5 + 0.5 * np.cos(np.pi * np.clip(distance / edge, 0.0, 1.0))


def soft_sphere(box: int, radius_px: float, edge_px: float = 4.0) -> Float[np.ndarray, "box box box"]:
    """Mask that is 1 inside a centred sphere and falls to 0 over a cosine edge outside it, as a NumPy array.

    Parameters
    ----------
    box : int
        Voxels along each edge.
    radius_px, edge_px : float
        Radius of the region of ones and width of the edge, in voxels; the edge is not 0.
    """
    return np.asarray(masks.soft_sphere(box, radius_px, edge_px).numpy(), dtype=np.float64)


def low_pass(volume: Float[np.ndarray, "box box box"], shell: float, width: float = 2.0) -> Float[np.ndarray, "z y x"]:
    """Return the map with its Fourier shells beyond `shell` removed, with a cosine edge `width` shells wide.

    Parameters
    ----------
    volume : array
        A cubic map.
    shell : float
        Last shell kept in full; shell s is the spatial frequency s / (box · pixel size).
    width : float
        Width of the edge in shells.
    """
    frequency = fft.fftfreq(volume.shape[0], 1.0 / volume.shape[0])
    half = fft.rfftfreq(volume.shape[0], 1.0 / volume.shape[0])
    radius = np.sqrt(frequency[:, None, None] ** 2 + frequency[None, :, None] ** 2 + half[None, None, :] ** 2)
    spectrum = fft.rfftn(volume) * cosine_falloff(radius - shell, width).astype(volume.dtype)
    return np.asarray(fft.irfftn(spectrum, s=volume.shape), dtype=volume.dtype)


def density_threshold(values: Float[np.ndarray, "*axes"], bins: int = 512) -> float:
    """Level that best splits the values into two classes (Otsu 1979).

    Maximises w₀ w₁ (m₀ − m₁)² over levels, with w and m the weight and mean of the values below and above.

    Parameters
    ----------
    values : array
        Densities; molecule and solvent are taken to be the two classes.
    bins : int
        Resolution of the histogram searched.
    """
    counts, edges = np.histogram(values, bins=bins)
    middle = 0.5 * (edges[1:] + edges[:-1])
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    total = np.cumsum(counts * middle)
    spread = np.zeros(bins - 1)
    valid = (below > 0) & (above > 0)
    means = total[:-1][valid] / below[valid] - (total[-1] - total[:-1][valid]) / above[valid]
    spread[valid] = below[valid] * above[valid] * means**2
    return float(edges[1 + int(np.argmax(spread))])


def main_body(inside: Bool[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    """Return the region without its islands: connected pieces under 5 % of the largest one are dropped.

    Parameters
    ----------
    inside : array
        A thresholded map.
    """
    pieces, count = ndimage.label(inside)
    if count == 0:
        return inside
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= SMALLEST_ISLAND * sizes.max())[pieces])


def automatic_mask(
    volume: Float[np.ndarray, "box box box"],
    pixel_size: float,
    *,
    resolution: float = 20.0,
    extend: float = 10.0,
    edge: float = 25.0,
) -> Float[np.ndarray, "box box box"]:
    """Soft mask around the molecule: low-pass, threshold, drop islands, dilate, cosine edge.

    Parameters
    ----------
    volume : array
        A map, matter positive.
    pixel_size : float
        Å per voxel.
    resolution : float
        Å to which the map is low-passed before it is thresholded; never finer than three voxels.
    extend, edge : float
        Å by which the thresholded region grows, and over which the mask then falls to 0. Each is at least two voxels,
        so that the mask stays soft on coarse grids.

    Raises
    ------
    ImageError
        When the map is constant or not finite: there is no molecule to follow.
    """
    if not np.all(np.isfinite(volume)) or np.ptp(volume) == 0:
        raise ImageError("a map that is constant or not finite has no molecule to mask")
    box = volume.shape[0]
    shell = min(box * pixel_size / resolution, box / 3)
    smooth = low_pass(volume, shell)
    sphere = radius_grid(box) <= box / 2 - 1
    inside = main_body((smooth > density_threshold(smooth[sphere])) & sphere)
    distance = ndimage.distance_transform_edt(~inside)
    grow, fall = max(2.0, extend / pixel_size), max(2.0, edge / pixel_size)
    return np.asarray(cosine_falloff(distance - grow, fall), dtype=np.float64)
