"""Changes of frame: the same images, as little matter moving as possible; and the waves along a path."""

from __future__ import annotations

import math

import pytest
import torch

from cryofire.geometry.grids import half_plane
from cryofire.geometry.rotations import geodesic_angle, random_rotations, rotation_from_vector
from cryofire.inference.frames import core_fits, turned
from cryofire.inference.linear_model import predicted
from cryofire.inference.polish import ImageStates
from cryofire.inference.subspace import waves
from cryofire.physics.imaging import ImageBatch
from cryofire.physics.projection import spectrum_grid
from cryofire.volumes.halves import HalfMaps, component_fsc
from cryofire.volumes.masks import soft_sphere

BOX = 32


def blobs(places: torch.Tensor) -> torch.Tensor:
    axis = (torch.arange(BOX) - BOX // 2).float()
    along = torch.exp(-((axis[:, None] - places.T[:, None]) ** 2) / (2 * 1.5**2))
    return torch.einsum("xb,yb,zb->zyx", *along)


def test_turned_poses_of_turned_maps_see_the_same_images() -> None:
    """old(rotation · x + offset) = new(x): a place p of the old frame is rotationᵀ (p - offset) in the new one."""
    generator = torch.Generator().manual_seed(0)
    places = 4 * torch.randn(30, 3, generator=generator)
    rotation, offset = rotation_from_vector(torch.tensor([[0.4, -0.2, 0.7]]))[0], torch.tensor([0.7, -1.1, 0.4])
    old, new = blobs(places), blobs((places - offset) @ rotation)
    plane = half_plane(BOX, 9)
    nothing = torch.zeros(7, len(plane), dtype=torch.complex64)
    batch = ImageBatch(nothing, torch.ones(7, len(plane)), plane)
    states = ImageStates(
        random_rotations(7, generator=generator).float(),
        torch.randn(7, 2, generator=generator),
        torch.ones(7),
        torch.zeros(7, 0),
    )
    follow = turned(states, rotation.expand(7, 3, 3), offset.expand(7, 3))
    before, after = (
        predicted(batch, spectrum_grid(volume[None], 9), each) for volume, each in ((old, states), (new, follow))
    )
    assert float((before - after).abs().square().sum() / before.abs().square().sum()) < 1e-3


def test_fits_lie_on_the_reference_and_leave_what_is_too_noisy() -> None:
    generator = torch.Generator().manual_seed(2)
    places = torch.randn(50, 3, generator=generator) * torch.tensor([4.0, 3.0, 2.0])
    turn = rotation_from_vector(torch.tensor([[0.0, 0.15, -0.1]]))[0]
    mask = soft_sphere(BOX, 13.0, 2.0)
    maps = []
    for volume, level in ((blobs(places), 0.02), (blobs(places @ turn.T), 0.02), (blobs(places), 30.0)):
        noisy = volume + level * torch.randn(2, BOX, BOX, BOX, generator=generator)
        fsc = component_fsc(noisy[:1], noisy[1:])
        maps.append(HalfMaps(noisy[:, None], noisy.mean(0)[None], fsc))
    same, found, left = core_fits(maps, 0, mask)
    assert (same.angle, left.angle) == (0.0, 0.0)
    assert float(geodesic_angle(found.rotation[None], turn[None])) < math.radians(0.5)


@pytest.mark.parametrize("is_closed", [False, True])
def test_waves_along_a_path_are_orthonormal_however_particles_are_spread(is_closed: bool) -> None:
    position = torch.rand(4000, generator=torch.Generator().manual_seed(1)) ** 3
    found = waves(position, is_closed, 4)
    torch.testing.assert_close(found.T @ found / 4000, torch.eye(4), atol=2e-3, rtol=0)
    torch.testing.assert_close(found.mean(0), torch.zeros(4), atol=2e-3, rtol=0)
    near = found[position.argmin()] - found[position.argmax()]
    assert (float(near.norm()) < 0.1) == is_closed
