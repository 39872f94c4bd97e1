"""The known answer of a simulated set: poses, labels, coordinate and maps, in the order of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from cryofire.data.particles import ParticleTable, Poses, RelionSource
from cryofire.data.read import read_particles
from cryofire.errors import MissingFileError, RunFolderError, TableError

COORDINATE_COLUMN = "cryofireCoordinate"
"""Column of a continuous conformation in truth STAR files."""


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
    """

    poses: Poses
    pixel_size: Float[np.ndarray, " particle"]
    labels: Int[np.ndarray, " particle"] | None
    coordinate: Float[np.ndarray, " particle"] | None


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
        The truth has no poses.
    RunFolderError
        A particle of the run is not in the truth.
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
    return Truth(poses, table.pixel_size, table.labels, _coordinate(table))


def _coordinate(table: ParticleTable) -> Float[np.ndarray, " particle"] | None:
    """Continuous conformation of each particle, where the file has one."""
    if isinstance(table.source, RelionSource) and COORDINATE_COLUMN in table.source.particles:
        return table.source.particles.floats(COORDINATE_COLUMN)
    return None


def matching_rows(wanted: ParticleTable, table: ParticleTable) -> Int[np.ndarray, " particle"]:
    """Row of `table` that describes the same image as each row of `wanted`.

    Images are the same when image number and stack path agree; where the folders were written differently, when number
    and file name do, provided that this names each image once.

    Parameters
    ----------
    wanted, table : ParticleTable
        Tables read without looking for stacks.

    Raises
    ------
    RunFolderError
        An image of `wanted` is not in `table`.
    """
    for whole_path in (True, False):
        place = {key: row for row, key in enumerate(_image_keys(table, whole_path))}
        rows = [place.get(key, -1) for key in _image_keys(wanted, whole_path)]
        if len(place) == len(table) and min(rows) >= 0:
            return np.array(rows, dtype=np.int64)
    missing = int(np.argmax(np.array(rows) < 0))
    raise RunFolderError(
        f"the particle '{_image_keys(wanted, True)[missing]}' of the run is not in {table.path}",
        file=wanted.path,
        row=missing + 1,
        field="rlnImageName",
        hint="name the truth of the set that was reconstructed",
    )


def _image_keys(table: ParticleTable, whole_path: bool) -> list[str]:
    """One text a particle: image number and stack."""
    stacks = [path.as_posix() if whole_path else path.name for path in table.stack_paths]
    return [f"{frame + 1}@{stacks[stack]}" for frame, stack in zip(table.frame, table.stack, strict=True)]


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
