"""Scores of a conformational space image by image, as CryoBench defines them (Jeon et al., NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree

from cryofire.analysis.alignment import RigidTransform
from cryofire.analysis.map_alignment import transform_map
from cryofire.analysis.masks import automatic_mask
from cryofire.analysis.metrics import map_correlation

NEIGHBOURS = 0.05
"""Fraction of all images that counts as the neighbourhood of one."""
QUERIES = 2000
"""Most images whose neighbourhoods are looked at."""


def fsc_area(curve: Float[np.ndarray, " shell"], box: int) -> float:
    """Area under a Fourier shell correlation over frequency in cycles per pixel: at most (box / 2 − 1) / box, nearly 0.5.

    Trapezoids over shells 0 … box / 2 − 1, with shell 0 taken as 1.

    Parameters
    ----------
    curve : array (shell,)
        Correlation of shells 0, 1, …; what is not finite counts as 0.
    box : int
        Voxels along a side of the maps.
    """
    values = np.nan_to_num(np.asarray(curve[: box // 2], dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    values[0] = 1.0
    return float(np.trapezoid(values)) / box


@dataclass(frozen=True)
class TrueMap:
    """A true map with the mask it is compared in.

    Attributes
    ----------
    volume : array (z, y, x)
        On the grid of the maps that are scored.
    mask : array (z, y, x)
        Soft, around the molecule.
    pixel_size : float
        Å.
    """

    volume: Float[np.ndarray, "z y x"]
    mask: Float[np.ndarray, "z y x"]
    pixel_size: float

    @classmethod
    def of(cls, volume: Float[np.ndarray, "z y x"], pixel_size: float) -> TrueMap:
        """With the automatic mask of the map."""
        return cls(volume, automatic_mask(volume, pixel_size), pixel_size)


def masked_area(volume: Float[np.ndarray, "z y x"], truth: TrueMap, to_truth: RigidTransform | None = None) -> float:
    """Area under the masked FSC of a map with its true one.

    Parameters
    ----------
    volume : array (z, y, x)
        A map on the grid of the truth.
    truth : TrueMap
        What it should be.
    to_truth : RigidTransform, optional
        Brings the map into the frame of the truth first. It comes from the poses of all images of a state: unlike a fit of the
        one map, it cannot hide an error of that map.
    """
    moved = volume if to_truth is None else transform_map(volume, truth.pixel_size, to_truth)
    return fsc_area(map_correlation(moved * truth.mask, truth.volume * truth.mask), len(volume))


def state_distances(truths: Sequence[TrueMap]) -> Float[np.ndarray, "state state"]:
    """Root mean square difference between the true maps of any two states."""
    flat = np.stack([one.volume.ravel() for one in truths]).astype(np.float64)
    squared = np.square(flat).sum(axis=1)
    return np.sqrt(np.maximum(squared[:, None] + squared[None, :] - 2 * flat @ flat.T, 0) / flat.shape[1])


def neighbourhood_similarity(
    latents: Float[np.ndarray, "image component"],
    labels: Int[np.ndarray, " image"],
    distances: Float[np.ndarray, "state state"],
    fraction: float = NEIGHBOURS,
) -> float:
    """Fraction of the nearest neighbours of an image in latent space that are among its nearest in truth.

    Images of one state are equally far from any other image, so the true neighbourhood is every image within the distance
    of the last one that is needed. Arbitrary latents score about the fraction itself.

    Parameters
    ----------
    latents : array (image, component)
        Finite coordinates.
    labels : array (image,)
        True state of each image, counted from 0.
    distances : array (state, state)
        True distance between states, as of `state_distances`.
    fraction : float
        Size of the neighbourhood, of all images.
    """
    count = max(1, round(fraction * len(latents)))
    rows = np.unique(np.linspace(0, len(latents) - 1, min(QUERIES, len(latents))).astype(np.int64))
    _, near = KDTree(latents).query(latents[rows], k=count + 1)
    limits = _neighbourhood_radii(np.bincount(labels, minlength=len(distances)), distances, count)
    others = near != rows[:, None]
    inside = distances[labels[rows][:, None], labels[near]] <= limits[labels[rows]][:, None]
    return float(inside[others].mean())


def _neighbourhood_radii(
    sizes: Int[np.ndarray, " state"], distances: Float[np.ndarray, "state state"], count: int
) -> Float[np.ndarray, " state"]:
    """Distance from each state within which there are at least `count` other images."""
    order = np.argsort(distances, axis=1)
    reached = np.cumsum(sizes[order], axis=1) > count
    last = np.where(reached.any(axis=1), reached.argmax(axis=1), len(sizes) - 1)
    return np.take_along_axis(distances, np.take_along_axis(order, last[:, None], axis=1), axis=1)[:, 0]
