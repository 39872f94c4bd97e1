"""Pose conventions: definitions, round trips, and agreement of RELION's and cryoSPARC's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryofire.formats.conventions import (
    cryosparc_from_rotations,
    origins_from_shifts,
    relion_from_rotations,
    rotations_from_cryosparc,
    rotations_from_relion,
    shifts_from_origins,
)


def about_y(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])


def about_z(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


def test_relion_angles_are_the_transposed_product() -> None:
    angles = np.random.default_rng(0).uniform(-170, 170, size=(20, 3))
    rot, tilt, psi = np.deg2rad(angles).T
    expected = [(about_z(a) @ about_y(b) @ about_z(c)).T for a, b, c in zip(rot, tilt, psi, strict=True)]
    np.testing.assert_allclose(rotations_from_relion(angles), expected, atol=1e-14)


def test_psi_turns_the_image_alone() -> None:
    """R(rot, tilt, psi) = Rz(psi)ᵀ R(rot, tilt, 0): the last turn acts on image coordinates."""
    whole = rotations_from_relion(np.array([[20.0, 50.0, 35.0]]))[0]
    without = rotations_from_relion(np.array([[20.0, 50.0, 0.0]]))[0]
    np.testing.assert_allclose(whole, about_z(np.deg2rad(35.0)).T @ without, atol=1e-14)


def test_round_trips_through_both_programs() -> None:
    rotations = Rotation.random(50, random_state=0).as_matrix()
    np.testing.assert_allclose(rotations_from_relion(relion_from_rotations(rotations)), rotations, atol=1e-12)
    np.testing.assert_allclose(rotations_from_cryosparc(cryosparc_from_rotations(rotations)), rotations, atol=1e-12)


@pytest.mark.parametrize("tilt", [0.0, 180.0])
def test_poles_round_trip(tilt: float) -> None:
    rotations = rotations_from_relion(np.array([[25.0, tilt, 30.0]]))
    angles = relion_from_rotations(rotations)
    assert angles[0, 1] == pytest.approx(tilt)
    np.testing.assert_allclose(rotations_from_relion(angles), rotations, atol=1e-12)


def test_tilt_is_never_negative() -> None:
    angles = relion_from_rotations(Rotation.random(200, random_state=1).as_matrix())
    assert np.all((angles[:, 1] >= 0) & (angles[:, 1] <= 180))


def test_zero_rotation_vector_is_the_identity() -> None:
    np.testing.assert_array_equal(rotations_from_cryosparc(np.zeros((1, 3)))[0], np.eye(3))
    np.testing.assert_array_equal(cryosparc_from_rotations(np.eye(3)[None]), np.zeros((1, 3)))


def test_cryosparc_vector_gives_the_relion_angles_of_its_rotation() -> None:
    poses = np.random.default_rng(2).normal(size=(20, 3))
    angles = Rotation.from_rotvec(poses).as_euler("ZYZ", degrees=True)
    np.testing.assert_allclose(rotations_from_cryosparc(poses), rotations_from_relion(angles), atol=1e-12)


def test_origins_are_the_opposite_of_shifts() -> None:
    origins = np.array([[1.0, -2.0], [0.5, 3.0]])
    pixel_size = np.array([2.0, 4.0])
    np.testing.assert_array_equal(shifts_from_origins(origins, pixel_size), [[-2.0, 4.0], [-2.0, -12.0]])
    np.testing.assert_array_equal(origins_from_shifts(shifts_from_origins(origins, pixel_size), pixel_size), origins)
    np.testing.assert_array_equal(shifts_from_origins(origins), -origins)
