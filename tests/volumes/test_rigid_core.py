"""The rigid fit by the part that did not change, on molecules of two parts in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cryofire.geometry.fourier import resample
from cryofire.geometry.rotations import geodesic_angle, rotation_from_vector
from cryofire.volumes.masks import soft_sphere
from cryofire.volumes.rigid_core import fit_core, low_passed

SHELL = 10


def blobs(box: int, places: Tensor) -> Tensor:
    """Gaussian blobs of 1.4 voxels at places (x, y, z) from the origin."""
    axis = (torch.arange(box) - box // 2).float()
    along = torch.exp(-((axis[:, None] - places.T[:, None]) ** 2) / (2 * 1.4**2))  # (xyz, axis, blob)
    return torch.einsum("xb,yb,zb->zyx", *along)


def molecule(core_turn: Tensor, offset: Tensor, arm_turn: float) -> tuple[Tensor, Tensor]:
    """Places of a molecule before and after: its core turned and moved, its arm turned about its root besides."""
    generator = torch.Generator().manual_seed(3)
    core = torch.randn(60, 3, generator=generator) * torch.tensor([4.0, 3.0, 2.5])
    arm = torch.randn(25, 3, generator=generator) + torch.tensor([7.0, 3.0, 0.0])
    root = torch.tensor([4.0, 2.0, 0.0])
    bent = (arm - root) @ rotation_from_vector(torch.tensor([[0.0, 0.0, arm_turn]]))[0].T + root
    before, after = torch.cat([core, arm]), torch.cat([core, bent])
    return before, after @ core_turn.T + offset


@pytest.mark.parametrize("box", [32, 33])
@pytest.mark.parametrize("arm_turn", [0.0, 0.3, 1.2])
def test_the_core_decides_whatever_the_arm_does(box: int, arm_turn: float) -> None:
    turn = rotation_from_vector(torch.tensor([[0.05, -0.1, 0.06]]))[0]
    offset = torch.tensor([0.6, -0.3, 0.4])
    before, after = molecule(turn, offset, arm_turn)
    noise = 0.02 * torch.randn(2, box, box, box, generator=torch.Generator().manual_seed(1))
    level = float(low_passed(noise[0], SHELL).std()) * math.sqrt(2)
    mask = soft_sphere(box, 0.42 * box, 2.0)
    found = fit_core(blobs(box, before) + noise[0], blobs(box, after) + noise[1], level, mask, SHELL)
    assert float(geodesic_angle(found.rotation[None], turn[None])) < math.radians(0.7)
    assert float((found.offset_px - offset).norm()) < 0.08
    assert found.angle == pytest.approx(float(geodesic_angle(turn[None], torch.eye(3)[None])), abs=0.015)


def test_least_squares_would_not_have_found_it() -> None:
    """What the robust weights are for: with the arm bent, plain least squares turns the core."""
    box = 32
    before, after = molecule(torch.eye(3), torch.zeros(3), 0.3)
    mask = soft_sphere(box, 0.42 * box, 2.0)
    first, second = blobs(box, before), blobs(box, after)
    tolerant = fit_core(first, second, 1e3, mask, SHELL)
    robust = fit_core(first, second, 0.01, mask, SHELL)
    assert math.degrees(tolerant.angle) > 2.0
    assert math.degrees(robust.angle) < 0.5


def test_the_share_of_the_core_falls_as_the_arm_bends() -> None:
    mask = soft_sphere(32, 13.0, 2.0)
    shares = []
    for arm_turn in (0.0, 0.15, 1.2):
        before, after = molecule(torch.eye(3), torch.zeros(3), arm_turn)
        shares.append(fit_core(blobs(32, before), blobs(32, after), 0.005, mask, SHELL).share)
    assert shares[0] > 0.95
    assert shares[0] > shares[1] > shares[2] > 0.05


def test_maps_without_anything_in_common_stay_where_they_are() -> None:
    box = 32
    one, other = torch.randn(2, box, box, box, generator=torch.Generator().manual_seed(5))
    found = fit_core(one, other, 0.1, soft_sphere(box, 12.0, 2.0), SHELL)
    assert found.share < 0.2
    assert math.degrees(found.angle) < 30


@pytest.mark.parametrize("box", [80, 81])
def test_maps_sampled_more_finely_than_the_shell_needs_lie_on_each_other_in_the_same_way(box: int) -> None:
    turn = rotation_from_vector(torch.tensor([[0.05, -0.1, 0.06]]))[0]
    before, after = molecule(turn, torch.tensor([0.6, -0.3, 0.4]), 0.3)
    pair = [blobs(40, places) for places in (before, after)]
    coarse = fit_core(*pair, 0.005, soft_sphere(40, 15.0, 2.0), SHELL)
    fine = fit_core(*(resample(one, box, 3) for one in pair), 0.005, soft_sphere(box, 15.0 * box / 40, 4.0), SHELL)
    assert float(geodesic_angle(fine.rotation[None], coarse.rotation[None])) < math.radians(0.05)
    torch.testing.assert_close(fine.offset_px, coarse.offset_px * box / 40, atol=0.02, rtol=0)
    assert fine.share == pytest.approx(coarse.share, abs=0.01)
