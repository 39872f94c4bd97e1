"""Where starts of the search end, and whether two ends are the same."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryofire.arrays import Rotations, Volume

NEAR_DEG, LEAST_SHARED, SAME = 25.0, 0.5, 0.8
"""Two ends agree on an image that they see within this angle of each other. Share of images on which ends that are as good must
agree, and share that by itself makes two ends the same: wrong ones share a part of the poses, too, where views are preferred."""
SURE = 1.5
"""Effective poses below which images are sure of theirs. Right ends then share most (measured: 86 % and more), while wrong ones on
different lobes of an antibody, as good as each other within 3 %, still shared 56 %."""
COPY_DEG, COPIES = 15.0, 0.03
"""Poses of a symmetric molecule differ by one of its rotations, each the same within this angle for more than this share of images:
enough for the 24 of an octahedron, while ends that have nothing in common share one in two hundred."""


@dataclass(frozen=True)
class Start:
    """Where one start ended.

    Attributes
    ----------
    volume : Float[Tensor, "z y x"]
        Map on the working box of the last shell.
    gain : float
        Held-out log-evidence per image above that of the same map averaged over all rotations: what its shape explains.
    effective_poses : float
        Geometric mean over held-out images of the number of grid poses that share the posterior.
    rotations : Float[Tensor, "particle 3 3"]
        Best rotation of each held-out image.
    """

    volume: Volume
    gain: float
    effective_poses: float
    rotations: Rotations


def agree(first: Start, second: Start, agreement: float) -> bool:
    """Whether two starts, the better one first, came to the same end.

    They did if they see the images alike; or if their gains differ by less than the fraction `agreement` and images that are not
    sure of their poses are seen alike by half, or all are up to the rotations of a symmetry. Gains alone do not tell: ends that are
    wrong in the same manner, such as on one lobe of a molecule, have much the same one.
    """
    if min(first.gain, second.gain) <= 0:
        return False
    shared = shared_poses(first.rotations, second.rotations)
    is_as_good = first.gain - second.gain < agreement * first.gain
    is_sure = max(first.effective_poses, second.effective_poses) < SURE
    is_alike = (shared > LEAST_SHARED and not is_sure) or differ_by_symmetry(first.rotations, second.rotations)
    return shared > SAME or (is_as_good and is_alike)


def shared_poses(first: Rotations, second: Rotations) -> float:
    """Largest share of images that two sets of rotations see alike after one common rotation, for the better hand."""
    return float(_companions(first, second, NEAR_DEG).max())


def differ_by_symmetry(first: Rotations, second: Rotations) -> bool:
    """Whether most images, for the better hand, differ by one of few rotations, each shared by many of them."""
    return float(_companions(first, second, COPY_DEG).quantile(0.25, dim=1).max()) > COPIES


def _companions(first: Rotations, second: Rotations, degrees: float) -> Float[Tensor, "hand particle"]:
    """Share of images that differ by nearly the same rotation as each image does."""
    mirror, least = torch.diag(torch.tensor([1.0, 1.0, -1.0])), 1 + 2 * math.cos(math.radians(degrees))
    found = []
    for hand in (first, mirror @ first @ mirror):
        relative = (hand.transpose(1, 2) @ second).flatten(1)
        found.append((relative @ relative.T > least).float().mean(1))
    return torch.stack(found)
