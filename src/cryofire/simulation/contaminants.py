"""Contaminants: discs that absorb more than any particle (crystals of ice, beads of gold), anywhere in an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int

RADII = 0.05, 0.2
"""Smallest and largest radius, as a fraction of the box."""
DEPTHS = 5.0, 20.0
"""Weakest and strongest, in standard deviations of the noise of a pixel."""
RANDOM = 5
"""Random numbers of an image."""


@dataclass(frozen=True)
class Contaminants:
    """The disc in each image of a set.

    Attributes
    ----------
    depth : array (particle,)
        In standard deviations of the noise; 0 where there is none.
    centre : array (particle, 2)
        (x, y) from the middle of the image, as a fraction of the box.
    radius : array (particle,)
        As a fraction of the box.
    """

    depth: Float64[np.ndarray, " particle"]
    centre: Float64[np.ndarray, "particle 2"]
    radius: Float64[np.ndarray, " particle"]

    def images(self, rows: Int[np.ndarray, " row"], box: int) -> Float32[np.ndarray, "row y x"]:
        """Discs of some images, their edges a pixel wide."""
        axis = np.arange(box) / box - 0.5
        x, y = (axis - centre[:, None] for centre in self.centre[rows].T)
        distance = np.sqrt(y[:, :, None] ** 2 + x[:, None, :] ** 2)
        inside = np.clip((self.radius[rows][:, None, None] - distance) * box + 0.5, 0, 1)
        return (self.depth[rows][:, None, None] * inside).astype(np.float32)


def draw_contaminants(share: float, random: Float64[np.ndarray, "particle 5"]) -> Contaminants:
    """Discs of uniform place and radius in a share of the images, their depths uniform in the logarithm.

    Parameters
    ----------
    share : float
        Fraction of images with one.
    random : array (particle, 5)
        Uniform in [0, 1).
    """
    depth = DEPTHS[0] * (DEPTHS[1] / DEPTHS[0]) ** random[:, 1]
    radius = RADII[0] + (RADII[1] - RADII[0]) * random[:, 2]
    return Contaminants(np.where(random[:, 0] < share, depth, 0.0), random[:, 3:] - 0.5, radius)
