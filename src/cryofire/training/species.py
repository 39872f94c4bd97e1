"""The species stage: particles that share no structure are told apart, and each kind is reconstructed in a run of its own.

One consensus explains most of the signal of particles of one kind, whatever their conformations. Where it does not, although images
are sure of their poses against it, they are searched with several maps at once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int

from cryofire.arrays import Volume
from cryofire.config import SearchSettings
from cryofire.data.export import write_subset
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

SPECIES = "species"
"""Name of the stage's checkpoint, and in it of the species of each image."""
SAMPLE = 4000
"""Images that tell how much one structure leaves unexplained."""
COARSER = 0.75
"""Resolution at which images are told apart, relative to that of the search: species differ most where there is most signal."""


@dataclass(frozen=True)
class Species:
    """Particles of one kind, to be reconstructed on their own.

    Attributes
    ----------
    name : str
        "species1", …
    rows : Int[np.ndarray, "particle"]
        In the particle table.
    table, folder : Path
        Their particle table and their run folder, inside the run folder of the whole.
    """

    name: str
    rows: Int[np.ndarray, " particle"]
    table: Path
    folder: Path


def find_species(run: Run, prepared: Prepared, part: Prepared, states: ImageStates) -> tuple[Species, ...]:
    """The species of the particles with a table of each, the largest first; none where one structure explains all images.

    A single one is found where the other images show no particle.

    Parameters
    ----------
    run : Run
    prepared : Prepared
        All images.
    part : Prepared
        Those that were searched.
    states : ImageStates
        Poses of these against the map of the search.
    """
    path = run.folder.checkpoint(SPECIES)
    if not path.exists():
        with measured_stage(run.folder, SPECIES):
            save_checkpoint(path, Checkpoint({SPECIES: _told_apart(run, prepared, part, states)}, {}))
    labels = load_checkpoint(path).tensors[SPECIES].numpy()
    if not labels.any():
        return ()
    return tuple(_tabulated(run, number, prepared.rows[labels == number]) for number in range(int(labels.max()) + 1))


def _tabulated(run: Run, number: int, rows: Int[np.ndarray, " particle"]) -> Species:
    name = f"species{number + 1}"
    found = Species(name, rows, run.folder.path / f"{name}.star", run.folder.path / name)
    if not found.table.exists():
        write_subset(run.table, rows, found.table)
    return found


def _told_apart(run: Run, prepared: Prepared, part: Prepared, states: ImageStates) -> Int[torch.Tensor, " usable"]:
    """Species of every image, from 0; `NO_PARTICLE` where it shows none."""
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
    run.progress.start(SPECIES, len(prepared.images))
    centres = prepared.centres.shifts_px
    evidence = map_evidence(prepared.images, centres, kept, coarser(search), run.progress.advance)
    run.progress.finish()
    labels = species_of_images(evidence, species[species >= 0])
    found = numbered(labels, ~shows_nothing(seen, species))
    counts, empty = found[found != NO_PARTICLE].bincount().tolist(), int((found == NO_PARTICLE).sum())
    run.say(
        f"species: kinds of particles that share no structure: {len(counts)} ({', '.join(map(str, counts))} images)"
        + (f"; {empty} images show no particle" if empty else "")
    )
    return found


def _may_be_mixture(run: Run, prepared: Prepared, part: Prepared, states: ImageStates) -> bool:
    """Whether images are sure of poses under a structure that explains little of them, and are enough for two species."""
    left, settings = _unexplained(run, part, states), run.settings.species
    run.folder.append_metrics({"stage": SPECIES, "unexplained": left})
    if left < settings.unexplained or not are_sure(run) or len(prepared.images) < 2 * settings.least:
        return False
    run.say(
        f"species: one structure leaves {100 * left:.0f} % as much signal unexplained as it explains: several are tried"
    )
    return True


def numbered(labels: Int[torch.Tensor, " usable"], shows: Bool[np.ndarray, " species"]) -> Int[torch.Tensor, " usable"]:
    """Species of images counted from 0 again, without those that show nothing; as they were where none shows anything."""
    if not shows.any():
        return labels
    number = np.where(shows, np.cumsum(shows) - 1, NO_PARTICLE)
    return torch.from_numpy(number)[labels]


def _several_maps(run: Run, part: Prepared, search: SearchSettings) -> tuple[list[Volume], MapEvidence]:
    """Maps that a subset was searched with at once, and what images that were kept aside say of them."""
    settings, seed = run.settings.species, run.settings.seed + 5
    run.progress.start(SPECIES, search.steps)

    def report(step: SearchStep) -> None:
        run.folder.append_metrics({"stage": SPECIES, **asdict(step)})
        run.progress.advance(1)

    rows = chosen_subset(len(part.images), search.images, seed)
    images, centres = part.images.take(rows), part.centres.shifts_px[rows]
    aside = torch.arange(min(settings.judged, len(rows) // 4))
    generator = torch.Generator().manual_seed(seed)
    used = torch.arange(len(aside), len(rows))
    finer = replace(search, update_spacing=search.shift_spacing)  # maps that are to be told apart should be sharp
    maps = run_start(images, used, centres, finer, generator, report, count=settings.maps)
    run.progress.finish()
    return maps, map_evidence(images.take(aside), centres[aside], maps, coarser(search), lambda _: None)


def coarser(search: SearchSettings) -> SearchSettings:
    """Settings of the comparison of images with maps: a lower resolution limit, with as many rotations as that needs."""
    return replace(
        search, last_shell=max(round(COARSER * search.last_shell), 1), rotations=round(COARSER**3 * search.rotations)
    )


def _unexplained(run: Run, part: Prepared, states: ImageStates) -> float:
    """Power that the first maps leave beyond the noise, as a fraction of what they explain, up to the resolution of the search."""
    rows = chosen_subset(len(part.images), SAMPLE, run.settings.seed + 7)
    few, shell = part.take(rows), run.settings.search.last_shell
    first = start_refinement(few.images, few.half, states.take(rows), shell, run.settings.refine)
    return unexplained(first.images, first.states, first.model, torch.arange(len(rows)), shell).fraction
