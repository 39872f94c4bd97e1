"""One frame for all conformations: the one in which as little matter as possible moves.

A conformation turned as a whole, with every pose turned back, gives the same images. Nothing in the data decides between such
frames, and a refinement ends in one that hides part of the motion in the poses: it laid every image on the consensus by least
squares, core and moving parts alike. Here the maps of groups of images are laid on each other by the part that did not change
(`volumes.rigid_core`), and the poses of each group follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryofire.arrays import Volume
from cryofire.inference.consensus import Refinement
from cryofire.inference.linear_model import back_project
from cryofire.inference.polish import ImageStates
from cryofire.volumes.halves import HalfMaps, resolved_shell, solve_halves
from cryofire.volumes.rigid_core import CoreFit, fit_core, low_passed

LEAST_SHELL = 6
"""A group whose halves agree less far stays in its frame."""
MOST_SHELL = 0.6
"""Maps are compared up to this fraction of the largest shell at the most."""


def group_maps(
    refinement: Refinement,
    half: Int[Tensor, " particle"],
    groups: Sequence[Int[Tensor, " member"]],
    mask: Volume,
    limit: int,
) -> list[HalfMaps]:
    """Maps up to a shell of groups of images at their poses, whatever their latents."""
    states = replace(refinement.states, latents=refinement.states.latents[:, :0])
    return [solve_halves(back_project(refinement.images, half, states, limit, rows=rows), mask, 0) for rows in groups]


def core_fits(maps: Sequence[HalfMaps], reference: int, mask: Volume) -> tuple[CoreFit, ...]:
    """How each map lies on the one numbered `reference`."""
    stay = CoreFit(torch.eye(3), torch.zeros(3), 1.0)
    limits = [resolved_shell(one.fsc[0], 0.5) for one in maps]
    most = round(MOST_SHELL * mask.shape[-1] / 2)
    found = []
    for index, one in enumerate(maps):
        shell = min(limits[index], limits[reference], most)
        if index == reference or shell < LEAST_SHELL:
            found.append(stay)
            continue
        noise = float((_noise(one, mask, shell) ** 2 + _noise(maps[reference], mask, shell) ** 2) ** 0.5)
        found.append(fit_core(maps[reference].joint[0], one.joint[0], noise, mask, shell))
    return tuple(found)


def _noise(maps: HalfMaps, mask: Volume, shell: int) -> float:
    """Standard deviation of the noise of the map of all images, from the difference of the halves."""
    difference = low_passed(0.5 * (maps.halves[0, 0] - maps.halves[1, 0]), shell)
    return float(difference[mask > 0.5].square().mean().sqrt())


def turned(
    states: ImageStates, rotations: Float[Tensor, "particle 3 3"], offsets_px: Float[Tensor, "particle 3"]
) -> ImageStates:
    """Poses against maps in another frame, with old(rotation · x + offset) = new(x)."""
    moved = (states.rotations @ offsets_px[..., None])[:, :2, 0]
    return replace(states, rotations=states.rotations @ rotations, shifts_px=states.shifts_px + moved)
