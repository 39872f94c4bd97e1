"""Several starting points for each image, polished with a rising resolution limit; those that fall far behind drop out.

The first start is where the image is now. It stays to the end, so that no image gets worse. At low signal a true start may be
behind until it has been polished at full resolution: what counts is by how many nats it is, not how many others are before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryofire.inference.polish import ImageStates, Priors, polish
from cryofire.physics.imaging import WhitenedImages, batches
from cryofire.physics.projection import spectrum_grid

MARCH = (0.6, 0.6, 0.8, 0.8, 1.0, 1.0)
"""Resolution limit of each Gauss–Newton step, as a fraction of the last."""
FAR_BEHIND = 20.0
"""Nats by which a start is behind the best when it drops out."""


def likeliest_start(
    images: WhitenedImages,
    rows: Int[Tensor, " row"],
    maps: Float[Tensor, "coordinate z y x"],
    priors: Priors,
    max_shell: int,
    starts: Sequence[ImageStates],
) -> tuple[ImageStates, Float[Tensor, " row"]]:
    """The polished states of largest posterior of some images, and by how many nats they beat the first start.

    Parameters
    ----------
    rows : Int[Tensor, "row"]
        The images.
    maps : Float[Tensor, "coordinate z y x"]
        What they are polished against, up to `max_shell`.
    starts : sequence of ImageStates
        Each for all rows.
    """
    count, size = len(starts), len(rows)
    states, value = ImageStates.joined(starts), torch.full((count, size), math.inf)
    stays = torch.ones(count, size, dtype=torch.bool)
    for part in MARCH:
        shell = max(round(part * max_shell), 1)
        grid = spectrum_grid(maps, shell)
        value.fill_(math.inf)
        for piece in batches(stays.flatten().nonzero()[:, 0]):
            found = polish(images.batch(rows[piece % size], shell), grid, states.take(piece), priors, 1)
            states.put(piece, found.states)
            value.view(-1)[piece] = found.expansion.value
        stays = value < value.amin(dim=0) + FAR_BEHIND
        stays[0] = True
    best = value.min(dim=0)
    return states.take(best.indices * size + torch.arange(size)), value[0] - best.values
