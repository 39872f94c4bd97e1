"""The soft sphere, and the mask that follows a particle."""

from __future__ import annotations

import math

import pytest
import torch

from cryofire.geometry.fourier import resample
from cryofire.geometry.grids import interpolated
from cryofire.volumes.masks import particle_mask, soft_sphere


@pytest.mark.parametrize("box", [32, 33])
def test_a_soft_sphere_is_one_inside_zero_outside_and_a_cosine_between(box: int) -> None:
    mask = soft_sphere(box, 8.0, 4.0)
    line = mask[box // 2, box // 2, box // 2 :]
    expected = [1.0] * 9 + [0.5 + 0.5 * math.cos(math.pi * step / 4) for step in (1, 2, 3)] + [0.0] * 4
    torch.testing.assert_close(line[:16], torch.tensor(expected), atol=1e-6, rtol=0)
    assert float(mask.min()) >= 0
    assert float(mask.max()) == 1
    assert torch.equal(mask, mask.transpose(0, 2))
    middle = 10.0
    assert float(mask.sum()) == pytest.approx(4 / 3 * math.pi * middle**3, rel=0.03)


def test_it_is_centred_on_the_origin_of_the_box() -> None:
    even, odd = soft_sphere(20, 5.0, 2.0), soft_sphere(21, 5.0, 2.0)
    torch.testing.assert_close(even[1:, 1:, 1:], even[1:, 1:, 1:].flip(0, 1, 2))
    torch.testing.assert_close(odd, odd.flip(0, 1, 2))
    torch.testing.assert_close(odd[:20, :20, :20], even)


def rod(box: int, axis: int, length: int) -> torch.Tensor:
    """A smooth rod along an axis through the origin."""
    x = (torch.arange(box) - box // 2).float()
    grid = torch.meshgrid(x, x, x, indexing="ij")
    across = sum(grid[other].square() for other in range(3) if other != axis)
    return torch.exp(-across / 8) * torch.sigmoid(length - grid[axis].abs())


@pytest.mark.parametrize("box", [48, 49])
def test_a_mask_follows_the_particle_in_all_conformations(box: int) -> None:
    still, moving = rod(box, 0, 14), 0.4 * rod(box, 2, 14)
    centre = box // 2
    for maps, expected in ((still[None], 0.0), (torch.stack([still, moving]), 1.0)):
        mask = particle_mask(maps)
        assert mask[centre + 12, centre, centre] == 1
        assert mask[centre, centre + 18, centre + 18] == 0
        assert mask[centre, centre, centre + 11] == expected
        assert float(mask.mean()) < 0.2


def test_a_mask_does_not_depend_on_the_scale_of_the_density() -> None:
    assert torch.equal(particle_mask(rod(32, 1, 8)[None]), particle_mask(1e-3 * rod(32, 1, 8)[None]))


def test_the_outline_of_a_large_box_is_drawn_on_a_small_one() -> None:
    small = rod(64, 1, 14)[None]
    large = particle_mask(resample(small, 120, 3))
    torch.testing.assert_close(large, interpolated(particle_mask(small), 120), atol=1e-4, rtol=0)
    assert (float(large.min()), float(large.max())) == (0, 1)
