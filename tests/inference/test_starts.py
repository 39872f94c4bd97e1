from __future__ import annotations

import math

import pytest
import torch

from cryofire.geometry.rotations import random_rotations
from cryofire.inference.starts import Start, agree, shared_poses


def test_starts_share_poses_whatever_their_frame_and_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    first, frame = random_rotations(300, generator), random_rotations(1, generator)
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    assert shared_poses(first, first @ frame) == 1.0
    assert shared_poses(first, mirror @ first @ frame @ mirror) == 1.0
    half = first @ frame
    half[:150] = random_rotations(150, generator)
    assert shared_poses(first, half) == pytest.approx(0.5, abs=0.03)
    assert shared_poses(first, random_rotations(300, generator)) < 0.05


def test_equal_gains_agree_only_on_equal_poses_or_those_of_a_symmetry() -> None:
    generator = torch.Generator().manual_seed(1)
    rotations, others = random_rotations(200, generator), random_rotations(200, generator)
    volume = torch.zeros(4, 4, 4)
    first = Start(volume, 4.10, 18.0, rotations)
    assert agree(first, Start(volume, 4.09, 19.0, rotations), 0.03)
    assert not agree(first, Start(volume, 4.09, 19.0, others), 0.03)
    assert agree(first, Start(volume, 3.50, 19.0, rotations), 0.03)  # one is sharper, but they are the same
    some = torch.cat([rotations[:130], others[130:]])
    assert agree(first, Start(volume, 4.09, 19.0, some), 0.03)
    assert not agree(first, Start(volume, 3.50, 19.0, some), 0.03)
    assert not agree(Start(volume, 384.0, 1.05, rotations), Start(volume, 373.0, 1.05, some), 0.03)  # sure, and unlike
    assert not agree(Start(volume, -0.1, 18.0, rotations), Start(volume, -0.1, 18.0, rotations), 0.03)
    assert not agree(Start(volume, 400.0, 1.1, rotations), Start(volume, 399.0, 1.1, others), 0.03)
    turn = 2 * math.pi * torch.randint(7, (200,), generator=generator) / 7
    flip = 1.0 - 2.0 * torch.randint(2, (200,), generator=generator)
    copies = torch.zeros(200, 3, 3)  # of the group D7
    copies[:, 0, 0], copies[:, 0, 1], copies[:, 1, 0], copies[:, 1, 1] = turn.cos(), -turn.sin(), turn.sin(), turn.cos()
    copies[:, :, 1:] *= flip[:, None, None]
    copies[:, 2, 2] = flip
    assert agree(Start(volume, 400.0, 1.1, rotations), Start(volume, 399.0, 1.1, rotations @ copies), 0.03)
    assert not agree(Start(volume, 400.0, 1.1, rotations), Start(volume, 350.0, 1.1, rotations @ copies), 0.03)
