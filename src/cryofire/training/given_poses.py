"""Poses that the user knows: read, matched with the particles of the run, and kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cryofire.data.matching import matching_rows
from cryofire.data.read import read_particles
from cryofire.errors import TableError
from cryofire.inference.polish import ImageStates
from cryofire.training.stages import Prepared, Run


def given_states(run: Run, prepared: Prepared) -> ImageStates:
    """The given poses of the prepared images, at unit contrast and without latents.

    Raises
    ------
    TableError
        The table has no poses, lacks a particle, or a pose of it is not finite.
    """
    path = Path(str(run.settings.poses))
    table = read_particles(path, stacks=False)
    table = table.take(matching_rows(read_particles(run.table.path, stacks=False), table))
    if table.poses is None:
        raise TableError(
            "the table has no poses", file=path, field="rlnAngleRot",
            hint="name one with angles and origins, or leave --poses out",
        )  # fmt: skip
    rotations, shifts = table.poses.rotations[prepared.rows], table.poses.shifts[prepared.rows]
    finite = np.isfinite(rotations).all((1, 2)) & np.isfinite(shifts).all(1)
    if not finite.all():
        row = int(prepared.rows[int(np.argmin(finite))])
        raise TableError("the pose of a particle is not finite", file=path, row=row + 1, hint="leave the particle out")
    return ImageStates(
        torch.from_numpy(rotations).float(), torch.from_numpy(shifts / prepared.grid.pixel_size).float(),
        torch.ones(len(rotations)), torch.zeros(len(rotations), 0),
    )  # fmt: skip
