"""The known answer of a simulated set: poses, labels, coordinate and maps, in the order of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from cryofire.data.matching import matching_rows
from cryofire.data.particles import ParticleTable, Poses, RelionSource
from cryofire.data.read import read_particles
from cryofire.errors import MissingFileError, TableError

COORDINATE_COLUMN, CONTRAST_COLUMN, CONTAMINATED_COLUMN = (
    "cryofireCoordinate",
    "cryofireContrast",
    "cryofireContaminated",
)
"""Columns of a continuous conformation, of the contrast of each image, and of what lies over a particle, in truth STAR files."""


@dataclass(frozen=True)
class Truth:
    """What is known of each particle of a run.

    Attributes
    ----------
    poses : Poses
        True rotations and shifts (Å).
    pixel_size : array (particle,)
        Of the images, Å.
    labels : array (particle,) or None
        True states, as the file numbers them.
    coordinate : array (particle,) or None
        True continuous conformation.
    is_empty : array (particle,)
        There is no particle: its contrast is 0.
    is_contaminated : array (particle,)
        Something else lies over the particle.
    """

    poses: Poses
    pixel_size: Float[np.ndarray, " particle"]
    labels: Int[np.ndarray, " particle"] | None
    coordinate: Float[np.ndarray, " particle"] | None
    is_empty: Bool[np.ndarray, " particle"]
    is_contaminated: Bool[np.ndarray, " particle"]


def read_truth(path: Path, particles: Path | None = None) -> Truth:
    """Read a truth STAR file, in the order of a run's particles.

    Parameters
    ----------
    path : Path
        STAR file with angles, origins, and rlnClassNumber or cryofireCoordinate where there are states.
    particles : Path, optional
        The run's particle table; rows are matched by image name. Without it the order of the file is kept.

    Raises
    ------
    TableError
        The truth has no poses, or lacks a particle of the run.
    """
    table = read_particles(path, stacks=False)
    if table.poses is None:
        raise TableError(
            "the truth has no poses",
            file=path,
            field="rlnAngleRot",
            hint="name the truth STAR file that the simulation wrote beside the particles",
        )
    if particles is not None:
        table = table.take(matching_rows(read_particles(particles, stacks=False), table))
    poses = table.poses
    if poses is None:
        raise TableError("the truth has no poses", file=path)
    contrast, contaminated = _column(table, CONTRAST_COLUMN), _column(table, CONTAMINATED_COLUMN)
    none = np.zeros(len(table), dtype=bool)
    return Truth(
        poses,
        table.pixel_size,
        table.labels,
        _column(table, COORDINATE_COLUMN),
        is_empty=none if contrast is None else contrast == 0,
        is_contaminated=none if contaminated is None else contaminated > 0,
    )


def _column(table: ParticleTable, name: str) -> Float[np.ndarray, " particle"] | None:
    """A column of the truth, where the file has it."""
    if isinstance(table.source, RelionSource) and name in table.source.particles:
        return table.source.particles.floats(name)
    return None


def find_truth_maps(truth: Path) -> tuple[Path, ...]:
    """Return the true maps beside a truth STAR file: truth_state*.mrc, else state*.mrc, in numerical order.

    Parameters
    ----------
    truth : Path
        The truth STAR file.
    """
    for pattern in ("truth_state*.mrc", "state*.mrc", "states/state*.mrc"):
        found = [path for path in truth.parent.glob(pattern) if re.search(r"state\d+$", path.stem)]
        if found:
            return tuple(sorted(found, key=lambda path: int(re.findall(r"\d+$", path.stem)[0])))
    return ()


def check_truth_maps(paths: tuple[Path, ...]) -> None:
    """Raise `MissingFileError` for the first path that is not a file."""
    for path in paths:
        if not path.is_file():
            raise MissingFileError("the true map does not exist", file=path)
