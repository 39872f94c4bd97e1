"""The particle table: rows are taken together, in any order, with everything that belongs to them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from cryofire.data.particles import CryosparcSource, RelionSource
from cryofire.data.read import read_particles


@pytest.mark.parametrize("rows", [np.array([3, 0, 0]), np.array([True, False, False, True]), np.array([], dtype=int)])
def test_take_takes_everything_along(project: Any, rows: np.ndarray) -> None:
    table = read_particles(project.star())
    taken = table.take(rows)
    indices = np.arange(4)[rows]
    assert len(taken) == len(indices)
    for name in ("stack", "frame", "pixel_size", "box", "labels"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(table, name)[indices])
    for field in fields(table.optics):
        np.testing.assert_array_equal(getattr(taken.optics, field.name), getattr(table.optics, field.name)[indices])
    assert table.poses is not None and taken.poses is not None
    np.testing.assert_array_equal(taken.poses.rotations, table.poses.rotations[indices])
    np.testing.assert_array_equal(taken.poses.shifts, table.poses.shifts[indices])
    assert taken.micrograph == tuple(project.particles["rlnMicrographName"][i] for i in indices)
    assert isinstance(taken.source, RelionSource) and taken.source.optics is not None
    assert taken.source.particles.text("rlnImageName") == [project.particles["rlnImageName"][i] for i in indices]
    assert len(taken.source.optics) == 2


def test_taking_twice_is_taking_once(project: Any) -> None:
    table = read_particles(project.star())
    twice, once = table.take(np.array([3, 1, 0])).take(np.array([2, 1])), table.take(np.array([0, 1]))
    np.testing.assert_array_equal(twice.frame, once.frame)
    np.testing.assert_array_equal(twice.optics.defocus_u, once.optics.defocus_u)


def test_cryosparc_rows_are_taken_along(project: Any) -> None:
    table = read_particles(project.cs()).take(np.array([2, 0]))
    assert isinstance(table.source, CryosparcSource)
    np.testing.assert_array_equal(table.source.rows, project.rows()[[2, 0]])
