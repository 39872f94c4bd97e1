"""The second opinion: doubtful images are polished from other starts too, and the likeliest pose is kept.

A pose refined from the search never leaves its basin. The encoder looks at every image afresh and knows all conformations by now.
Images that it sees elsewhere are doubtful; so are those that fit far worse than most, those of far less contrast, as a wrong pose
explains little of an image, and those whose pose had a close rival in the first search. They are searched against the map of every
state, too, as a particle that lacks a part may fit nowhere on the consensus. The maps are far better by now than the one of the
first search, so that this search goes to higher resolution and keeps several poses. All starts are polished against the maps of the
other half: an image has left its noise in those of its own half, at the pose that is in doubt, and would find it there again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryofire.analysis.alignment import common_offset
from cryofire.analysis.states import decode
from cryofire.geometry.rotations import geodesic_angle
from cryofire.inference.assign import PoseGrid
from cryofire.inference.consensus import Refinement, refine
from cryofire.inference.contest import likeliest_start
from cryofire.inference.encoder import PoseEncoder
from cryofire.inference.outlying import outlying
from cryofire.inference.polish import ImageStates
from cryofire.inference.search import CHUNK, search_shifts
from cryofire.physics.imaging import batches
from cryofire.physics.projection import spectrum_grid
from cryofire.training.amortise import encode_images
from cryofire.training.checkpoint import load_checkpoint, refinement_beside, refinement_within, save_checkpoint
from cryofire.training.frames import latent_description
from cryofire.training.progress import measured_stage
from cryofire.training.stages import Prepared, Run, adapted_search, finer_search, held, shared_shell
from cryofire.volumes.accumulator import HALVES

OPINION = "opinion"
"""Name of the stage's checkpoint, and in it of what it counted."""
DIFFERENT = 0.12
"""Poses farther apart are in different basins, radians."""
MANY, ROUNDS = 0.005, 3
"""Fraction of the images that is worth another round when it moved, and most rounds."""
OUTLYING = 3.0
"""Standard deviations by which the misfit of a doubtful image is above, or its contrast below, the others: 13 in 10 000 images each
by chance."""
UNSURE = 8.0
"""A pose that beats another by fewer nats is not surely the better one. Where that was so in the first search, it is doubtful: at a
signal-to-noise ratio of 0.01 a few images in a hundred, and most of those that have a wrong pose."""
MODES = 8
"""Poses that it keeps for each image and state."""
LEAST_AIMED = 10
"""Images of a state that tell where it is centred."""


@dataclass(frozen=True)
class Opinion:
    """The refinement with the likeliest pose of each doubtful image.

    Attributes
    ----------
    refined : Refinement
    moved : int
        Images that left their pose for one that is surely better, counted anew in every round.
    """

    refined: Refinement
    moved: int


def second_opinion(
    run: Run, prepared: Prepared, refined: Refinement, encoder: PoseEncoder, margin: Float[Tensor, " particle"]
) -> Opinion:
    """Doubtful images at their likeliest pose; the encoder looks at the maps of the result.

    `margin` is by how many nats the pose of each image beat the next one in the first search. Where many images moved, their maps
    change: a pass in halves renews them, and every image is looked at again. Poses that were given stay.
    """
    if held(run.settings) is not None:
        return Opinion(refined, 0)
    path = run.folder.checkpoint(OPINION)
    if not path.exists():
        with measured_stage(run.folder, OPINION):
            found = _settled(run, prepared, refined, encoder, margin < UNSURE)
            save_checkpoint(path, refinement_beside(found.refined, {OPINION: {"moved": found.moved}}))
    checkpoint = load_checkpoint(path)
    found = Opinion(refinement_within(checkpoint, prepared.images), checkpoint.values[OPINION]["moved"])
    encoder.look_at(found.refined.model.maps.joint)
    return found


def _settled(
    run: Run, prepared: Prepared, refined: Refinement, encoder: PoseEncoder, unsure: Bool[Tensor, " particle"]
) -> Opinion:
    """The refinement after as many rounds as move many images."""
    count, moved_in_all = len(prepared.images), 0
    for number in range(1, ROUNDS + 1):
        run.progress.start(OPINION, count)
        seen = encode_images(encoder, refined.images, prepared.centres.shifts_px, run.progress.advance)
        differ = geodesic_angle(seen.rotations, refined.states.rotations) > DIFFERENT
        misfits, faint = outlying(refined.misfit, OUTLYING), outlying(-refined.states.contrast, OUTLYING)
        doubtful = (differ | misfits | faint | unsure).nonzero()[:, 0]
        starts = [refined.states.take(doubtful), seen.take(doubtful), *_searched(run, prepared, refined, doubtful)]
        states, moved = _likeliest(refined, prepared.half, doubtful, starts)
        run.progress.finish()
        refined = replace(refined, states=states, passes=0, settled=False)
        moved_in_all += moved
        counts = {"differ": differ, "misfits": misfits, "faint": faint, "unsure": unsure}
        numbers = {"moved": moved, **{name: int(those.sum()) for name, those in counts.items()}}
        run.folder.append_metrics({"stage": OPINION, "step": number, **numbers})
        run.say(
            f"second opinion: the encoder sees {numbers['differ']} images elsewhere, {numbers['misfits']} fit badly, "
            f"{numbers['faint']} are faint, {numbers['unsure']} had a rival; {moved} fit surely better at another pose"
        )
        if moved <= MANY * count or number == ROUNDS:
            break
        run.progress.start(OPINION, count)
        shared = shared_shell(run.settings, count)
        refined = next(refine(refined, prepared.half, shared, run.settings.refine, run.progress.advance))
        run.progress.finish()
        encoder.look_at(refined.model.maps.joint)
    return Opinion(refined, moved_in_all)


def _searched(run: Run, prepared: Prepared, refined: Refinement, rows: Int[Tensor, " row"]) -> Iterator[ImageStates]:
    """Likely poses of some images in an exhaustive search against the map of each state."""
    settings = finer_search(adapted_search(run, prepared), refined.shell)
    shell = settings.last_shell
    shifts, plane = search_shifts(prepared.grid.box, settings), refined.images.plane.truncated(shell)
    found = latent_description(run, refined)
    for label, centre in enumerate(torch.from_numpy(found.centers).float()):
        aim = _aim(prepared, refined.states, torch.from_numpy(np.flatnonzero(found.labels == label)))
        grid = PoseGrid.of(spectrum_grid(decode(refined.model, centre)[None], shell), plane, settings.rotations, aim)
        modes = [
            grid.modes(refined.images.batch(piece, shell), prepared.centres.shifts_px[piece], shifts, MODES, DIFFERENT)
            for piece in batches(rows, CHUNK)
        ]
        for one in zip(*modes, strict=True):
            yield replace(ImageStates.joined(one), latents=centre.repeat(len(rows), 1))


def _aim(prepared: Prepared, states: ImageStates, members: Int[Tensor, " member"]) -> Float[Tensor, 3]:
    """Point of a state's map on which its images are centred, in pixels: not the middle where the state lacks a part."""
    if len(members) < LEAST_AIMED:
        return torch.zeros(3)
    mine = states.take(members)
    distance = (prepared.centres.shifts_px[members] - mine.shifts_px).numpy().astype(np.float64)
    aim = common_offset(mine.rotations.numpy().astype(np.float64), distance, np.ones(len(members), dtype=bool))
    return torch.from_numpy(aim).float()


def _likeliest(
    refined: Refinement, half: Int[Tensor, " particle"], rows: Int[Tensor, " row"], starts: Sequence[ImageStates]
) -> tuple[ImageStates, int]:
    """States of all images, given rows from the best of several starts, the first being where they are; how many surely left it.

    The judge is the map that holds nothing of the image itself: that of the other half. Poses that a symmetry makes alike differ by
    the noise of that map: a few nats.
    """
    result, moved = refined.states.take(torch.arange(len(refined.states))), 0
    for side in range(HALVES):
        maps = refined.model.maps.halves[1 - side]
        mine = (half[rows] == side).nonzero()[:, 0]
        best, gain = likeliest_start(
            refined.images, rows[mine], maps, refined.model.priors, refined.shell, [one.take(mine) for one in starts]
        )
        result.put(rows[mine], best)
        away = geodesic_angle(best.rotations, starts[0].rotations[mine]) > DIFFERENT
        moved += int(((gain > UNSURE) & away).sum())
    return result, moved
