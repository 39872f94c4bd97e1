"""The second opinion: doubtful images are polished from other starts too, and the likeliest pose is kept.

A pose refined from the search never leaves its basin. The encoder looks at every image afresh and knows all conformations by now.
Images that it sees elsewhere are doubtful: they are searched against the map of every state, too, as a particle that lacks a part
may fit nowhere on the consensus. All starts are polished against the maps of the image's own half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryofire.analysis.states import decode
from cryofire.geometry.rotations import geodesic_angle
from cryofire.inference.assign import assign_poses
from cryofire.inference.consensus import Refinement, refine
from cryofire.inference.encoder import PoseEncoder
from cryofire.inference.polish import ImageStates, polish
from cryofire.inference.search import search_shifts
from cryofire.physics.imaging import batches
from cryofire.physics.projection import spectrum_grid
from cryofire.training.amortise import encode_images
from cryofire.training.checkpoint import load_checkpoint, refinement_checkpoint, refinement_from, save_checkpoint
from cryofire.training.frames import latent_description
from cryofire.training.progress import measured_stage
from cryofire.training.stages import Prepared, Run, adapted_search, shared_shell
from cryofire.volumes.accumulator import HALVES

DIFFERENT = 0.12
"""Poses farther apart are in different basins, radians."""
MANY, ROUNDS = 0.005, 3
"""Fraction of the images that is worth another round when it moved, and most rounds."""
MARCH = (0.4, 0.6, 0.8, 1.0, 1.0)
"""Resolution limit of each Gauss–Newton step, as a fraction of the last."""


def second_opinion(run: Run, prepared: Prepared, refined: Refinement, encoder: PoseEncoder) -> Refinement:
    """The refinement with the likeliest pose of each doubtful image; the encoder looks at the maps of the result.

    Where many images moved, their maps change: a pass in halves renews them, and every image is looked at again.
    """
    path = run.folder.checkpoint("opinion")
    if not path.exists():
        with measured_stage(run.folder, "opinion"):
            save_checkpoint(path, refinement_checkpoint(_settled(run, prepared, refined, encoder)))
    found = refinement_from(load_checkpoint(path), prepared.images)
    encoder.look_at(found.model.maps.joint)
    return found


def _settled(run: Run, prepared: Prepared, refined: Refinement, encoder: PoseEncoder) -> Refinement:
    """The refinement after as many rounds as move many images."""
    count = len(prepared.images)
    for number in range(1, ROUNDS + 1):
        run.progress.start("opinion", count)
        seen = encode_images(encoder, refined.images, prepared.centres.shifts_px, run.progress.advance)
        differ = (geodesic_angle(seen.rotations, refined.states.rotations) > DIFFERENT).nonzero()[:, 0]
        starts = [refined.states.take(differ), seen.take(differ), *_searched(run, prepared, refined, differ)]
        states, moved = _likeliest(refined, prepared.half, differ, starts)
        run.progress.finish()
        refined = replace(refined, states=states, passes=0, settled=False)
        run.folder.append_metrics({"stage": "opinion", "step": number, "differ": len(differ), "moved": moved})
        run.say(f"second opinion: the encoder sees {len(differ)} images elsewhere; {moved} fit better at another pose")
        if moved <= MANY * count or number == ROUNDS:
            break
        run.progress.start("opinion", count)
        shared = shared_shell(run.settings, count)
        refined = next(refine(refined, prepared.half, shared, run.settings.refine, run.progress.advance))
        run.progress.finish()
        encoder.look_at(refined.model.maps.joint)
    return refined


def _searched(run: Run, prepared: Prepared, refined: Refinement, rows: Int[Tensor, " row"]) -> Iterator[ImageStates]:
    """Best poses of some images in an exhaustive search against the map of each state."""
    settings = adapted_search(run, prepared)
    shifts = search_shifts(prepared.grid.box, settings)
    images, centres = refined.images.take(rows), prepared.centres.shifts_px[rows]
    for centre in torch.from_numpy(latent_description(run, refined).centers).float():
        volume = decode(refined.model, centre)
        found = assign_poses(images, volume, settings.last_shell, centres, shifts, settings.rotations, lambda _: None)
        yield replace(found.states, latents=centre.repeat(len(rows), 1))


def _likeliest(
    refined: Refinement, half: Int[Tensor, " particle"], rows: Int[Tensor, " row"], starts: Sequence[ImageStates]
) -> tuple[ImageStates, int]:
    """States of all images, given rows from the best of several starts, the first being where they are; how many left it."""
    result, moved = refined.states.take(torch.arange(len(refined.states))), 0
    for side in range(HALVES):
        mine = (half[rows] == side).nonzero()[:, 0]
        best, least = _polished(refined, side, starts[0].take(mine), rows[mine])
        left = torch.zeros(len(mine), dtype=torch.bool)
        for start in starts[1:]:
            found, value = _polished(refined, side, start.take(mine), rows[mine])
            better = value < least
            best, least, left = found.where(better, best), torch.where(better, value, least), left | better
        result.put(rows[mine], best)
        moved += int((left & (geodesic_angle(best.rotations, starts[0].rotations[mine]) > DIFFERENT)).sum())
    return result, moved


def _polished(
    refined: Refinement, side: int, states: ImageStates, rows: Int[Tensor, " row"]
) -> tuple[ImageStates, Float[Tensor, " row"]]:
    """States polished against the maps of one half with a rising resolution limit, and the negative log-posterior there."""
    value = torch.zeros(len(rows))
    maps, priors = refined.model.maps.halves[side], refined.model.priors
    for shell in (max(round(part * refined.shell), 1) for part in MARCH):
        grid = spectrum_grid(maps, shell)
        for piece in batches(torch.arange(len(rows))):
            batch = refined.images.batch(rows[piece], shell)
            found = polish(batch, grid, states.take(piece), priors, 1)
            states.put(piece, found.states)
            value[piece] = found.expansion.value
    return states, value
