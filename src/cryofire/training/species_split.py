"""Telling particles apart that share no structure: a search with several maps at once, where one leaves much unexplained.

One consensus explains most of the signal of particles of one kind, whatever their conformations. Where it does not, although images
are sure of their poses against it, they are searched with several maps at once.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Int

from cryofire.arrays import Volume
from cryofire.config import SearchSettings
from cryofire.inference.consensus import start_refinement
from cryofire.inference.polish import ImageStates
from cryofire.inference.prepare import chosen_subset
from cryofire.inference.search import SearchStep, run_start
from cryofire.inference.species import (
    NO_PARTICLE,
    MapEvidence,
    map_evidence,
    shows_nothing,
    species_of_images,
    species_of_maps,
)
from cryofire.inference.unexplained import unexplained
from cryofire.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cryofire.training.progress import measured_stage
from cryofire.training.stages import Prepared, Run, adapted_search, are_sure

STAGE = "species"
SPLIT, LABELS = "split", "labels"
"""Name of the checkpoint, and in it of what the images were told apart as."""
STARTS = 3
"""How often maps are searched for at the most where one of them takes all images."""
SAMPLE = 4000
"""Images that tell how much one structure leaves unexplained."""
COARSER = 0.75
"""Resolution at which images are told apart, relative to that of the search: species differ most where there is most signal."""


def split(run: Run, prepared: Prepared, part: Prepared, states: ImageStates) -> Int[torch.Tensor, " usable"]:
    """What several maps tell apart: a number from 0 for every image, `NO_PARTICLE` where it shows none.

    All are 0 where one structure explains all images. Images of `part` were searched, and `states` are their poses against the map
    that was found.
    """
    path = run.folder.checkpoint(SPLIT)
    if not path.exists():
        with measured_stage(run.folder, STAGE):
            save_checkpoint(path, Checkpoint({LABELS: _told_apart(run, prepared, part, states)}, {}))
    return load_checkpoint(path).tensors[LABELS]


def _told_apart(run: Run, prepared: Prepared, part: Prepared, states: ImageStates) -> Int[torch.Tensor, " usable"]:
    one = torch.zeros(len(prepared.images), dtype=torch.long)
    if not _may_be_mixture(run, prepared, part, states):
        return one
    search = adapted_search(run, prepared)
    maps, seen = _several_maps(run, part, search)
    species = species_of_maps(seen, run.settings.species, len(prepared.images))
    if species.max() < 1:
        run.say("species: one structure it is; what it leaves unexplained are its conformations")
        return one
    kept = [maps[number] for number in np.flatnonzero(species >= 0)]
    evidence = evidence_of_all(run, prepared, kept)
    found = numbered(species_of_images(evidence, species[species >= 0]), ~shows_nothing(seen, species))
    run.say(f"species: several maps tell images apart: {counted(found)}")
    return found


def _may_be_mixture(run: Run, prepared: Prepared, part: Prepared, states: ImageStates) -> bool:
    """Whether images are sure of poses under a structure that explains little of them, and are enough for two species."""
    left, settings = _unexplained(run, part, states), run.settings.species
    run.folder.append_metrics({"stage": STAGE, "unexplained": left})
    limit = settings.unexplained_in_group if run.folder.group else settings.unexplained
    if left < limit or not are_sure(run) or len(prepared.images) < 2 * settings.least:
        return False
    run.say(
        f"species: one structure leaves {100 * left:.0f} % as much signal unexplained as it explains: several are tried"
    )
    return True


def _unexplained(run: Run, part: Prepared, states: ImageStates) -> float:
    """Power that the first maps leave beyond the noise, as a fraction of what they explain, up to the resolution of the search."""
    rows = chosen_subset(len(part.images), SAMPLE, run.settings.seed + 7)
    few, shell = part.take(rows), run.settings.search.last_shell
    first = start_refinement(few.images, few.half, states.take(rows), shell, run.settings.refine)
    return unexplained(first.images, first.states, first.model, torch.arange(len(rows)), shell).fraction


def _several_maps(run: Run, part: Prepared, search: SearchSettings) -> tuple[list[Volume], MapEvidence]:
    """Maps that a subset was searched with at once, and what images that were kept aside say of them."""
    settings, seed = run.settings.species, run.settings.seed + 5
    rows = chosen_subset(len(part.images), search.images, seed)
    images, centres = part.images.take(rows), part.centres.shifts_px[rows]
    aside = torch.arange(min(settings.judged, len(rows) // 4))
    used = torch.arange(len(aside), len(rows))
    finer = replace(search, update_spacing=search.shift_spacing)  # maps that are to be told apart should be sharp

    def report(start: int, step: SearchStep) -> None:
        run.folder.append_metrics({"stage": STAGE, **asdict(replace(step, start=start))})
        run.progress.advance(1)

    for start in range(STARTS):
        run.progress.start(STAGE, search.steps)
        generator = torch.Generator().manual_seed(seed + 7919 * start)
        maps = run_start(images, used, centres, finer, generator, partial(report, start), count=settings.maps)
        run.progress.finish()
        seen = map_evidence(images.take(aside), centres[aside], maps, coarser(search), lambda _: None)
        if len(seen.maps.argmax(1).unique()) > 1:
            break
        run.say("species: one of the maps took all images, and the others are empty")
    return maps, seen


def evidence_of_all(run: Run, prepared: Prepared, maps: list[Volume]) -> MapEvidence:
    """What every image says of some maps, at the resolution at which species are told apart."""
    run.progress.start(STAGE, len(prepared.images))
    search = coarser(adapted_search(run, prepared))
    found = map_evidence(prepared.images, prepared.centres.shifts_px, maps, search, run.progress.advance)
    run.progress.finish()
    return found


def coarser(search: SearchSettings) -> SearchSettings:
    """Settings of the comparison of images with maps: a lower resolution limit, with as many rotations as that needs."""
    return replace(
        search, last_shell=max(round(COARSER * search.last_shell), 1), rotations=round(COARSER**3 * search.rotations)
    )


def numbered(labels: Int[torch.Tensor, " usable"], shows: Bool[np.ndarray, " species"]) -> Int[torch.Tensor, " usable"]:
    """Labels counted from 0 again, without those that show nothing; as they were where none shows anything."""
    if not shows.any():
        return labels
    number = np.where(shows, np.cumsum(shows) - 1, NO_PARTICLE)
    return torch.from_numpy(number)[labels]


def counted(labels: Int[torch.Tensor, " usable"]) -> str:
    """How many images have each label, in words."""
    empty = int((labels == NO_PARTICLE).sum())
    counts = ", ".join(map(str, labels[labels != NO_PARTICLE].bincount().tolist()))
    return f"{counts} images" + (f"; {empty} images show no particle" if empty else "")
