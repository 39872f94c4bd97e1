"""The second opinion: images that the encoder sees elsewhere are polished from there too, and the likelier pose is kept.

A pose refined from the search never leaves its basin. The encoder looks at every image afresh and knows all conformations by now;
where it disagrees, both starts are polished against the maps of the image's own half.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryofire.geometry.rotations import geodesic_angle
from cryofire.inference.consensus import Refinement
from cryofire.inference.encoder import PoseEncoder
from cryofire.inference.polish import ImageStates, polish
from cryofire.physics.imaging import batches
from cryofire.physics.projection import spectrum_grid
from cryofire.training.amortise import encode_images
from cryofire.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, states_from, states_tensors
from cryofire.training.progress import measured_stage
from cryofire.training.stages import Prepared, Run
from cryofire.volumes.accumulator import HALVES

DIFFERENT = 0.12
"""Poses farther apart are in different basins, radians."""
MARCH = (0.4, 0.6, 0.8, 1.0, 1.0)
"""Resolution limit of each Gauss–Newton step, as a fraction of the last."""


def second_opinion(run: Run, prepared: Prepared, refined: Refinement, encoder: PoseEncoder) -> Refinement:
    """The refinement with the likelier pose of each image that the encoder sees elsewhere."""
    path = run.folder.checkpoint("opinion")
    if not path.exists():
        with measured_stage(run.folder, "opinion"):
            run.progress.start("opinion", len(prepared.images))
            seen = encode_images(encoder, refined.images, prepared.centres.shifts_px, run.progress.advance)
            differ = (geodesic_angle(seen.rotations, refined.states.rotations) > DIFFERENT).nonzero()[:, 0]
            states, moved = _likelier(refined, prepared.half, seen, differ)
            run.progress.finish()
            run.folder.append_metrics({"stage": "opinion", "differ": len(differ), "moved": moved})
            run.say(f"second opinion: the encoder sees {len(differ)} images elsewhere, and is right about {moved}")
            save_checkpoint(path, Checkpoint(states_tensors(states), {"differ": len(differ), "moved": moved}))
    return replace(refined, states=states_from(load_checkpoint(path).tensors), settled=False)


def _likelier(
    refined: Refinement, half: Int[Tensor, " particle"], seen: ImageStates, rows: Int[Tensor, " row"]
) -> tuple[ImageStates, int]:
    """States of all images with the better of two starts for the given rows, and how many of them moved."""
    result, moved = refined.states.take(torch.arange(len(refined.states))), 0
    for side in range(HALVES):
        mine = rows[half[rows] == side]
        here, value_here = _polished(refined, side, refined.states, mine)
        there, value_there = _polished(refined, side, seen, mine)
        better = value_there < value_here
        result.put(mine, there.where(better, here))
        moved += int(better.sum())
    return result, moved


def _polished(
    refined: Refinement, side: int, start: ImageStates, rows: Int[Tensor, " row"]
) -> tuple[ImageStates, Float[Tensor, " row"]]:
    """States of some images polished against the maps of one half with a rising resolution limit, and -log-posterior there."""
    states, value = start.take(rows), torch.zeros(len(rows))
    maps, priors = refined.model.maps.halves[side], refined.model.priors
    for shell in (max(round(part * refined.shell), 1) for part in MARCH):
        grid = spectrum_grid(maps, shell)
        for piece in batches(torch.arange(len(rows))):
            batch = refined.images.batch(rows[piece], shell)
            found = polish(batch, grid, states.take(piece), priors, 1)
            states.put(piece, found.states)
            value[piece] = found.expansion.value
    return states, value
