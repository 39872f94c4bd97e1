"""Changes of frame: they leave images alone, form a group, and are found again from poses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryofire.analysis.alignment import MIRROR, RigidTransform, align_poses, common_offset, mean_rotation
from cryofire.analysis.metrics import geodesic_angle


def random_transform(seed: int, mirrored: bool) -> RigidTransform:
    rng = np.random.default_rng(seed)
    return RigidTransform(Rotation.random(rng=rng).as_matrix(), rng.normal(0, 2.0, 3), mirrored)


def random_poses(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return Rotation.random(count, rng=rng).as_matrix(), rng.normal(0, 5.0, (count, 2))


@pytest.mark.parametrize("box", [32, 33])
@pytest.mark.parametrize("mirrored", [False, True])
def test_images_do_not_change_with_the_frame(
    box: int, mirrored: bool, make_blobs: Callable[..., Any], project_volume: Callable[..., np.ndarray]
) -> None:
    blobs = make_blobs(width=1.8)
    transform = random_transform(1, mirrored)
    changed = blobs.moved(transform.matrix, transform.offset)
    rotations, shifts = random_poses(3, 2)
    new_rotations = transform.rotate_poses(rotations)
    new_shifts = transform.shift_poses(new_rotations, 0.2 * shifts)
    for index in range(3):
        before = project_volume(blobs.volume(box, 1.0), rotations[index], 0.2 * shifts[index])
        after = project_volume(changed.volume(box, 1.0), new_rotations[index], new_shifts[index])
        assert np.abs(after - before).max() < 5e-3 * before.max()
        assert np.linalg.det(new_rotations[index]) == pytest.approx(1.0)


def test_the_wrong_hand_changes_images(
    make_blobs: Callable[..., Any], project_volume: Callable[..., np.ndarray]
) -> None:
    blobs = make_blobs(width=1.8)
    rotations, shifts = random_poses(1, 2)
    mirrored = blobs.moved(MIRROR, np.zeros(3))
    before, after = (project_volume(one.volume(32, 1.0), rotations[0], 0 * shifts[0]) for one in (blobs, mirrored))
    assert np.abs(after - before).max() > 0.2 * before.max()


@pytest.mark.parametrize("first_hand", [False, True])
@pytest.mark.parametrize("second_hand", [False, True])
def test_composition_is_applying_one_after_the_other(first_hand: bool, second_hand: bool) -> None:
    first, second = random_transform(3, first_hand), random_transform(4, second_hand)
    both = first.then(second)
    points = np.random.default_rng(5).normal(size=(10, 3))
    inner = (points + second.offset) @ second.matrix.T
    assert (points + both.offset) @ both.matrix.T == pytest.approx((inner + first.offset) @ first.matrix.T)
    rotations, shifts = random_poses(4, 6)
    after_first = first.rotate_poses(rotations)
    after_both = second.rotate_poses(after_first)
    assert both.rotate_poses(rotations) == pytest.approx(after_both)
    step = second.shift_poses(after_both, first.shift_poses(after_first, shifts))
    assert both.shift_poses(after_both, shifts) == pytest.approx(step)


@pytest.mark.parametrize("mirrored", [False, True])
def test_inverse_undoes(mirrored: bool) -> None:
    transform = random_transform(7, mirrored)
    for both in (transform.then(transform.inverse()), transform.inverse().then(transform)):
        assert both.rotation == pytest.approx(np.eye(3), abs=1e-12)
        assert both.offset == pytest.approx(np.zeros(3), abs=1e-12)
        assert not both.mirrored


def test_mean_rotation_of_symmetric_perturbations_is_their_centre() -> None:
    centre = Rotation.random(rng=np.random.default_rng(8))
    vectors = np.random.default_rng(9).normal(0, 0.2, (20, 3))
    cloud = (centre * Rotation.from_rotvec(np.concatenate([vectors, -vectors]))).as_matrix()
    assert mean_rotation(cloud) == pytest.approx(centre.as_matrix(), abs=1e-12)


def test_offset_is_found_in_spite_of_outliers() -> None:
    rotations, _ = random_poses(200, 10)
    offset = np.array([3.0, -1.0, 2.0])
    differences = rotations[:, :2, :] @ offset
    differences[:60] += 20.0
    found = common_offset(rotations, differences, np.ones(200, dtype=bool))
    assert found == pytest.approx(offset, abs=1e-9)


@pytest.mark.parametrize("mirrored", [False, True])
def test_exact_poses_in_another_frame_have_no_error(mirrored: bool) -> None:
    rotations, shifts = random_poses(300, 11)
    hidden = random_transform(12, mirrored)
    estimated = hidden.rotate_poses(rotations)
    result = align_poses(estimated, hidden.shift_poses(estimated, shifts), rotations, shifts)
    assert result.transform.mirrored == mirrored
    assert result.rotation_error.max() < 1e-7 and result.direction_error.max() < 1e-7
    assert result.shift_error.max() < 1e-6


@pytest.mark.parametrize("mirrored", [False, True])
def test_noise_and_outliers_are_measured_not_fitted_away(mirrored: bool) -> None:
    rng = np.random.default_rng(13)
    rotations, shifts = random_poses(2000, 14)
    hidden = random_transform(15, mirrored)
    noisy = Rotation.from_rotvec(rng.normal(0, 0.02, (2000, 3))).as_matrix() @ rotations
    noisy[:500] = Rotation.random(500, rng=rng).as_matrix()
    estimated = hidden.rotate_poses(noisy)
    moved = hidden.shift_poses(estimated, shifts + rng.normal(0, 0.5, (2000, 2)))
    result = align_poses(estimated, moved, rotations, shifts)
    good = result.rotation_error[500:]
    assert result.transform.mirrored == mirrored
    assert np.sqrt(np.mean(good**2) / 3) == pytest.approx(0.02, rel=0.05)
    assert np.sqrt(np.mean(result.shift_error[500:] ** 2) / 2) == pytest.approx(0.5, rel=0.05)
    assert np.median(result.rotation_error[:500]) > 1.0
    assert geodesic_angle(result.transform.rotation, hidden.inverse().rotation) < 0.003
