"""Which rows of two particle tables are the same image."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from cryofire.data.particles import ParticleTable
from cryofire.errors import TableError


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
    TableError
        An image of `wanted` is not in `table`.
    """
    for whole_path in (True, False):
        place = {key: row for row, key in enumerate(_image_keys(table, whole_path))}
        rows = [place.get(key, -1) for key in _image_keys(wanted, whole_path)]
        if len(place) == len(table) and min(rows) >= 0:
            return np.array(rows, dtype=np.int64)
    missing = int(np.argmax(np.array(rows) < 0))
    raise TableError(
        f"the particle '{_image_keys(wanted, True)[missing]}' is not in {table.path}",
        file=wanted.path,
        row=missing + 1,
        field="rlnImageName",
        hint="name a table of the same particles",
    )


def _image_keys(table: ParticleTable, whole_path: bool) -> list[str]:
    """One text a particle: image number and stack."""
    stacks = [path.as_posix() if whole_path else path.name for path in table.stack_paths]
    return [f"{frame + 1}@{stacks[stack]}" for frame, stack in zip(table.frame, table.stack, strict=True)]
