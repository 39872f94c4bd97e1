"""Particles of several species: a search with several maps, and which of the maps are of one species.

Every image belongs to one map. Its evidence under a map is its likelihood averaged over all poses, relative to no particle. Any
compact density explains the low resolution of any other; what a map says beyond its own spherical average is its shape. A
conformation of a molecule keeps much of that gain for images of another one; a different molecule keeps nothing. Maps that are
alike in this sense are one species, whose differences are left to the latent space, and so are maps that are linked by others in
between: stations of a motion, say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from cryofire.arrays import Shifts, Volume
from cryofire.config import SearchSettings, SpeciesSettings
from cryofire.geometry.so3_grid import super_fibonacci_rotations
from cryofire.inference.search import CHUNK, pose_likelihoods, search_shifts, spherical_section
from cryofire.physics.imaging import WhitenedImages, batches
from cryofire.physics.projection import central_sections, spectrum_grid

SHOWS_NOTHING = 2.0
"""Nats: a species of which an image says less on average is no particle. What images of noise say of a map of noise is about 0."""
NO_PARTICLE = -1
"""In the place of the species of an image."""


@dataclass(frozen=True)
class MapEvidence:
    """Log of the likelihood of images averaged over the poses of the search, relative to no particle.

    Attributes
    ----------
    maps : Float[Tensor, "particle map"]
        Under each map.
    spheres : Float[Tensor, "particle map"]
        Under the spherical average of each map.
    """

    maps: Float[Tensor, "particle map"]
    spheres: Float[Tensor, "particle map"]


def map_evidence(
    images: WhitenedImages,
    centres_px: Shifts,
    volumes: Sequence[Volume],
    settings: SearchSettings,
    advance: Callable[[int], None],
) -> MapEvidence:
    """Evidence of every image under each of several maps.

    Cost: particles × maps × shifts × rotations × 4 coefficients floating-point operations, as matrix products.
    """
    plane = images.plane.truncated(settings.last_shell)
    shifts, rotations = search_shifts(images.plane.box, settings), super_fibonacci_rotations(settings.rotations)
    grids = [spectrum_grid(volume[None], settings.last_shell) for volume in volumes]
    sections = [central_sections(grid, rotations, plane)[:, 0] for grid in grids]
    sections = [torch.cat([one, spherical_section(one, plane)]) for one in sections]
    maps, spheres = torch.empty(len(images), len(volumes)), torch.empty(len(images), len(volumes))
    for rows in batches(torch.arange(len(images)), CHUNK):
        batch = images.batch(rows, settings.last_shell)
        for column, section in enumerate(sections):
            table, power, _ = pose_likelihoods(batch, centres_px[rows], shifts, section)
            table -= power[:, None]
            maps[rows, column] = _log_mean(table[..., :-1])
            spheres[rows, column] = _log_mean(table[..., -1:])
        advance(len(rows))
    return MapEvidence(maps, spheres)


def _log_mean(table: Float[Tensor, "particle ..."]) -> Float[Tensor, " particle"]:
    """Log of the likelihood of each image averaged over all cases, poses or maps, whose logarithms are given."""
    logits = table.flatten(1)
    top = logits.amax(1)
    return top + (logits - top[:, None]).exp_().mean(1).log()


def likeness(evidence: MapEvidence) -> Float[np.ndarray, "map map"]:
    """Gain over its own sphere that images of one map keep under another one, in the mean of both ways; 1 for a map itself.

    A map without images is like no other.
    """
    own, best = evidence.maps.max(1)
    count = evidence.maps.shape[1]
    kept = torch.zeros(count, count)
    for number in range(count):
        mine = best == number
        if bool(mine.any()):
            sphere = evidence.spheres[mine, number].mean()
            kept[number] = (evidence.maps[mine].mean(0) - sphere) / (own[mine].mean() - sphere).clamp_min(1e-6)
    return np.asarray(0.5 * (kept + kept.T).numpy(), dtype=np.float64)


def species_of_maps(evidence: MapEvidence, settings: SpeciesSettings, particles: int) -> Int[np.ndarray, " map"]:
    """Species of each map, from 0 with the largest first; -1 for maps of too few images to be one.

    Parameters
    ----------
    evidence : MapEvidence
        Of images that the maps were not made from.
    settings : SpeciesSettings
    particles : int
        In the whole set, of which these are a sample.
    """
    _, linked = connected_components(likeness(evidence) > settings.alike, directed=False)
    counts = np.bincount(linked[evidence.maps.argmax(1).numpy()], minlength=linked.max() + 1)
    enough = settings.least * len(evidence.maps) / particles
    large = [one for one in np.argsort(-counts, kind="stable") if counts[one] >= enough]
    number = {int(one): place for place, one in enumerate(large)}
    return np.array([number.get(int(one), -1) for one in linked], dtype=np.int64)


def shows_nothing(evidence: MapEvidence, species: Int[np.ndarray, " map"]) -> Bool[np.ndarray, " species"]:
    """Which species are images without a particle: those that their own images say nothing of.

    Parameters
    ----------
    evidence : MapEvidence
        Of images that the maps were not made from.
    species : array (map,)
        As `species_of_maps` numbers them.
    """
    own, best = (one.numpy() for one in evidence.maps.max(1))
    means = [own[species[best] == number] for number in range(int(species.max()) + 1)]
    return np.array([len(one) == 0 or one.mean() < SHOWS_NOTHING for one in means], dtype=bool)


def species_of_images(evidence: MapEvidence, species: Int[np.ndarray, " map"]) -> Int[Tensor, " particle"]:
    """Species under which the evidence of each image is largest, its maps weighed alike."""
    of_map = torch.from_numpy(species)
    columns = [evidence.maps[:, of_map == one] for one in range(int(of_map.max()) + 1)]
    return torch.stack([_log_mean(one) for one in columns], dim=1).argmax(1)
