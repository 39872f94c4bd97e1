"""What a model leaves of images, and images of something else than the particle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.inference.conftest import SHELL, ToySet

from cryofire.config import RefineSettings
from cryofire.geometry.rotations import random_rotations
from cryofire.inference.consensus import start_refinement
from cryofire.inference.polish import ImageStates
from cryofire.inference.unexplained import Unexplained, unexplained


def judged(
    toy: ToySet, rotations: torch.Tensor, model_from: torch.Tensor, added: torch.Tensor | None = None
) -> Unexplained:
    """What maps from one set of rotations leave of the images at another; `added` is the power put on top of some of them."""
    count = len(toy.images)
    half = torch.arange(count) % 2

    def states(turned: torch.Tensor) -> ImageStates:
        return ImageStates(turned, toy.shifts_px, torch.ones(count), torch.zeros(count, 0))

    model = start_refinement(toy.images, half, states(model_from), SHELL - 2, RefineSettings()).model
    images = toy.images
    if added is not None:
        cache = images.cache.astype(np.float32)
        cache[..., 0] += added.sqrt().numpy()[:, None] / cache.shape[1] ** 0.5
        images = replace(images, cache=cache.astype(np.float16))
    return unexplained(images, states(rotations), model, torch.arange(count), SHELL - 2)


def test_right_poses_leave_nothing_and_wrong_ones_no_more_than_twice_a_particle(homogeneous: ToySet) -> None:
    right = judged(homogeneous, homogeneous.rotations, homogeneous.rotations)
    assert abs(right.fraction) < 0.1
    assert not right.outliers().any()
    turned = homogeneous.rotations.clone()
    turned[:10] = random_rotations(10, torch.Generator().manual_seed(1))
    wrong = judged(homogeneous, turned, homogeneous.rotations)
    power = wrong.explained.median()
    assert 0.3 * power < wrong.left[:10].median() < 2.5 * power
    assert not wrong.outliers().any()


@pytest.mark.parametrize(("spoilt", "found"), [(20, 20), (60, 0)])
def test_images_of_something_else_are_found_where_they_are_few(homogeneous: ToySet, spoilt: int, found: int) -> None:
    clean = judged(homogeneous, homogeneous.rotations, homogeneous.rotations)
    added = torch.zeros(len(homogeneous.images))
    added[:spoilt] = 12 * float(clean.explained.median())
    outliers = judged(homogeneous, homogeneous.rotations, homogeneous.rotations, added).outliers()
    assert int(outliers[:spoilt].sum()) == found
    assert not outliers[spoilt:].any()


def test_noise_alone_makes_no_outlier() -> None:
    generator = torch.Generator().manual_seed(2)
    faint = Unexplained(15 * torch.randn(5000, generator=generator), torch.ones(5000))
    assert float(faint.left.max()) > 10
    assert not faint.outliers().any()


def test_wide_spread_is_no_reason_to_leave_images_out() -> None:
    several_kinds = Unexplained(torch.linspace(0, 40, 400), torch.full((400,), 1.0))
    assert not several_kinds.outliers().any()
