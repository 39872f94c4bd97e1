"""Rotations against closed forms, each other and scipy."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryofire.geometry.rotations import (
    cross_matrix,
    geodesic_angle,
    nearest_rotation,
    quaternion_from_rotation,
    random_rotations,
    rotation_from_quaternion,
    rotation_from_vector,
    vector_from_rotation,
    viewing_angle,
)

ANGLES = [0.0, 1e-12, 1e-6, 9e-5, 1.1e-4, 1e-3, 0.1, 1.0, 2.0, 3.0, math.pi - 1e-6, math.pi - 1e-9, math.pi]


def axes(count: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=-1)
    return torch.cat([torch.eye(3, dtype=torch.float64), -torch.eye(3, dtype=torch.float64), directions])


def turned(axis: int, angle: float) -> Tensor:
    return rotation_from_vector(angle * torch.eye(3, dtype=torch.float64)[axis])


def random(count: int, seed: int = 0) -> Tensor:
    return random_rotations(count, torch.Generator().manual_seed(seed), torch.float64)


@pytest.mark.parametrize("angle", ANGLES)
def test_rotation_vectors_agree_with_scipy(angle: float) -> None:
    vectors = angle * axes()
    expected = torch.from_numpy(Rotation.from_rotvec(vectors.numpy()).as_matrix())
    torch.testing.assert_close(rotation_from_vector(vectors), expected, atol=1e-15, rtol=1e-14)


@pytest.mark.parametrize("angle", ANGLES)
def test_rotation_vectors_come_back(angle: float) -> None:
    vectors = angle * axes()
    returned = vector_from_rotation(rotation_from_vector(vectors))
    if angle > 3.1:  # next to π the axis is defined up to its sign
        returned = returned * (returned * vectors).sum(-1, keepdim=True).sign()
    torch.testing.assert_close(returned, vectors, atol=2e-15, rtol=1e-8)
    assert (returned.norm(dim=-1) <= math.pi + 1e-12).all()


def test_a_rotation_vector_turns_about_its_axis_by_the_right_hand() -> None:
    quarter = rotation_from_vector(torch.tensor([0.0, 0.0, math.pi / 2], dtype=torch.float64))
    x, y, z = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(quarter @ x, y)
    torch.testing.assert_close(quarter @ z, z)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e-4, 0.5, 3.0])
def test_rotation_from_vector_differentiates(scale: float) -> None:
    vectors = (scale * axes(2)).requires_grad_()
    assert torch.autograd.gradcheck(rotation_from_vector, (vectors,), atol=1e-7)


def test_the_derivative_at_zero_is_the_cross_product() -> None:
    jacobian = torch.autograd.functional.jacobian(rotation_from_vector, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(jacobian.movedim(-1, 0), cross_matrix(torch.eye(3, dtype=torch.float64)))


def test_cross_matrix_multiplies_crosswise() -> None:
    first, second = axes(), axes().flip(0)
    torch.testing.assert_close((cross_matrix(first) @ second[..., None])[..., 0], torch.linalg.cross(first, second))


def test_quaternions_agree_with_scipy_and_come_back() -> None:
    half_turns = rotation_from_vector(math.pi * axes())
    rotations = torch.cat([random(200), half_turns])
    quaternions = quaternion_from_rotation(rotations)
    assert (quaternions[:, 0] >= 0).all()
    torch.testing.assert_close(quaternions.norm(dim=-1), torch.ones(len(rotations), dtype=torch.float64))
    torch.testing.assert_close(rotation_from_quaternion(quaternions), rotations, atol=1e-14, rtol=0)
    expected = torch.from_numpy(Rotation.from_quat(quaternions.numpy(), scalar_first=True).as_matrix())
    torch.testing.assert_close(rotation_from_quaternion(quaternions), expected)
    torch.testing.assert_close(rotation_from_quaternion(-3.0 * quaternions), rotations, atol=1e-14, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_rotations_are_rotations_of_the_dtype_asked_for(dtype: torch.dtype) -> None:
    rotations = random_rotations(50, torch.Generator().manual_seed(3), dtype)
    assert rotations.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    identity = torch.eye(3, dtype=dtype).expand(50, 3, 3)
    torch.testing.assert_close(rotations @ rotations.mT, identity, atol=tolerance, rtol=0)
    assert (torch.linalg.det(rotations) > 0).all()
    assert torch.equal(rotations, random_rotations(50, torch.Generator().manual_seed(3), dtype))


def test_random_rotations_follow_the_haar_measure() -> None:
    count = 20000
    rotations = random(count)
    flat = rotations.flatten(1)
    noise = 5 / math.sqrt(count)
    assert flat.mean(0).abs().max() < noise  # each entry has variance 1/3
    assert (flat.T @ flat / count - torch.eye(9) / 3).abs().max() < noise
    angle = geodesic_angle(rotations, torch.eye(3, dtype=torch.float64).expand_as(rotations))
    quantiles = torch.tensor([0.5, 1.0, 1.5, 2.0, 2.5, 3.0], dtype=torch.float64)
    measured = (angle[:, None] < quantiles).double().mean(0)
    torch.testing.assert_close(measured, (quantiles - quantiles.sin()) / math.pi, atol=noise, rtol=0)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-3, 0.7, 2.5, math.pi])
def test_geodesic_angle_is_the_angle_between(angle: float) -> None:
    base = random(len(axes()))
    moved = rotation_from_vector(angle * axes()) @ base
    expected = torch.full((len(base),), angle, dtype=torch.float64)
    tolerance = 1e-7 if angle == math.pi else 1e-14
    torch.testing.assert_close(geodesic_angle(base, moved), expected, atol=tolerance, rtol=1e-8)
    torch.testing.assert_close(geodesic_angle(moved, base), expected, atol=tolerance, rtol=1e-8)


def test_angles_are_accurate_in_single_precision_and_broadcast() -> None:
    base = random(5)
    moved = rotation_from_vector(torch.tensor([1e-3, 0.0, 0.0], dtype=torch.float64)) @ base
    single = geodesic_angle(base.float(), moved.float())
    assert (single - 1e-3).abs().max() < 1e-6
    assert geodesic_angle(base[:, None], base).shape == (5, 5)
    assert viewing_angle(base[:, None], base).diagonal().max() == 0


def test_viewing_angle_ignores_the_turn_in_the_plane() -> None:
    base = random(30)
    for tilt in (0.0, 1e-6, 0.3, 2.0):
        moved = turned(2, 0.9) @ turned(0, tilt) @ turned(2, -2.2) @ base
        torch.testing.assert_close(
            viewing_angle(base, moved), torch.full((30,), tilt, dtype=torch.float64), rtol=1e-6, atol=1e-14
        )


def test_viewing_direction_is_the_axis_of_projection() -> None:
    base = random(10)
    direction = base.mT @ torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    other = base.roll(1, 0).mT @ torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    expected = (direction * other).sum(-1).acos()
    torch.testing.assert_close(viewing_angle(base, base.roll(1, 0)), expected)


def test_nearest_rotation_undoes_stretches_and_projects() -> None:
    rotations = random(40)
    torch.testing.assert_close(nearest_rotation(rotations), rotations)
    stretch = torch.diag(torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(nearest_rotation(rotations @ stretch), rotations)
    matrices = torch.randn(40, 3, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    nearest = nearest_rotation(matrices)
    torch.testing.assert_close(torch.linalg.det(nearest), torch.ones(40, dtype=torch.float64))
    distance = (nearest - matrices).square().sum((-2, -1))
    for other in random(200, seed=1):
        assert (distance <= (other - matrices).square().sum((-2, -1)) + 1e-12).all()


def test_nearest_rotation_of_a_sum_is_the_mean() -> None:
    base = random(1)[0]
    spread = rotation_from_vector(0.2 * torch.cat([axes(0), -axes(0)]))
    torch.testing.assert_close(nearest_rotation((spread @ base).sum(0)), base)
