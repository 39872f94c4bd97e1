"""The species stage: which particles share a structure, and a run of its own for each kind that does.

What several maps tell apart is searched by itself and looked at again, until one structure explains each group. Which kinds come to
share a map is a matter of chance, and one kind may have been parted among several groups: in the end the maps of all groups are
compared, groups whose maps are alike are one species, and every image goes to the species that explains it best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from cryofire.arrays import Volume
from cryofire.data.export import write_subset
from cryofire.errors import ReconstructionFailure
from cryofire.inference.polish import ImageStates
from cryofire.inference.prepare import chosen_subset
from cryofire.inference.species import NO_PARTICLE, species_of_images, species_of_maps
from cryofire.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cryofire.training.progress import measured_stage
from cryofire.training.species_split import STAGE, counted, evidence_of_all, split
from cryofire.training.stages import Prepared, Run, assign_all, find_consensus

SPECIES, SEARCHED = "species", "searched"
"""Name of the stage's checkpoint; in it of the species of each image, and of the searches that found the map of each species."""


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
    search : Path
        Checkpoint of a search that found their map.
    """

    name: str
    rows: Int[np.ndarray, " particle"]
    table: Path
    folder: Path
    search: Path


@dataclass(frozen=True)
class Group:
    """Images that one structure explains, and the checkpoint of the search that found it."""

    rows: Int[torch.Tensor, " image"]
    search: Path

    def volume(self) -> Volume:
        """The map that the search found."""
        return load_checkpoint(self.search).tensors["volume"]


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

    Raises
    ------
    ReconstructionFailure
        No image of a mixture shows a structure.
    """
    path = run.folder.checkpoint(SPECIES)
    if not path.exists():
        everyone = torch.arange(len(prepared.images))
        groups = _groups(run, prepared, everyone, split(run, prepared, part, states))
        if not groups:
            raise ReconstructionFailure("none of the kinds of images that were told apart shows a structure")
        with measured_stage(run.folder, STAGE):
            save_checkpoint(path, _joined(run, prepared, groups))
    checkpoint = load_checkpoint(path)
    labels = checkpoint.tensors[SPECIES].numpy()
    if not labels.any():
        return ()
    searches = [run.folder.checkpoints / name for name in checkpoint.values[SEARCHED]]
    return tuple(_tabulated(run, n, prepared.rows[labels == n], search) for n, search in enumerate(searches))


def _groups(
    run: Run, prepared: Prepared, rows: Int[torch.Tensor, " image"], labels: Int[torch.Tensor, " image"]
) -> list[Group]:
    """Groups of images that one structure explains: what was told apart is searched by itself, and looked at again.

    Those whose search finds nothing are left out.
    """
    if not labels.any():
        return [Group(rows, run.folder.checkpoint("search"))]
    found = []
    for number in range(int(labels.max()) + 1):
        mine = (labels == number).nonzero()[:, 0]
        within, inner = prepared.among(mine), replace(run, folder=run.folder.within(number + 1), is_species=True)
        name = ".".join(map(str, inner.folder.group))
        run.say(f"species: group {name}, {len(mine)} images, is searched by itself")
        try:
            found += _groups(inner, within, rows[mine], _looked_at(inner, within))
        except ReconstructionFailure as failure:
            run.say(f"species: group {name} is left out: {failure}")
    return found


def _looked_at(run: Run, prepared: Prepared) -> Int[torch.Tensor, " image"]:
    """What several maps tell apart in a group."""
    part = prepared.take(chosen_subset(len(prepared.images), run.settings.refine.images, run.settings.seed + 3))
    return split(run, prepared, part, assign_all(run, part, find_consensus(run, part)).states)


def _joined(run: Run, prepared: Prepared, groups: Sequence[Group]) -> Checkpoint:
    """Species of every image, from 0 with the largest first, and the search of each."""
    labels = torch.full((len(prepared.images),), NO_PARTICLE)
    if len(groups) == 1:
        labels[groups[0].rows] = 0
        return Checkpoint({SPECIES: labels}, {SEARCHED: [groups[0].search.name]})
    rows = torch.cat([group.rows for group in groups]).sort().values
    evidence = evidence_of_all(run, prepared.among(rows), [group.volume() for group in groups])
    enough = replace(run.settings.species, least=run.settings.species.least // 2)  # what loses most images is no kind
    kinds = species_of_maps(evidence, enough, len(rows))
    labels[rows] = species_of_images(evidence, kinds)
    run.say(f"species: kinds of particles that share no structure: {int(kinds.max()) + 1} ({counted(labels)})")
    of_kind = [
        [group for group, one in zip(groups, kinds, strict=True) if one == kind] for kind in range(kinds.max() + 1)
    ]
    largest = [max(same, key=lambda group: len(group.rows)) for same in of_kind]
    return Checkpoint({SPECIES: labels}, {SEARCHED: [group.search.name for group in largest]})


def _tabulated(run: Run, number: int, rows: Int[np.ndarray, " particle"], search: Path) -> Species:
    name = f"species{number + 1}"
    found = Species(name, rows, run.folder.path / f"{name}.star", run.folder.path / name, search)
    if not found.table.exists():
        write_subset(run.table, rows, found.table)
    return found
