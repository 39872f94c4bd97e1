"""Sections of a map at every rotation of a grid, the poses kept of them, and the contest between several starts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.inference.conftest import BOX, SHELL, ToySet, blob_map, blob_positions

from cryofire.geometry.grids import half_plane
from cryofire.geometry.rotations import geodesic_angle, random_rotations
from cryofire.inference.assign import CONTRAST_STD, PoseGrid
from cryofire.inference.contest import likeliest_start
from cryofire.inference.polish import ImageStates, Priors
from cryofire.inference.search import pose_likelihoods
from cryofire.inference.shift_grid import ShiftGrid
from cryofire.physics.projection import spectrum_grid

ROWS = torch.arange(60)
PRIORS = Priors(shift_std_px=5.0, contrast_std=0.1, latent_variance=torch.zeros(0))
SHIFTS = ShiftGrid(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]), torch.zeros(5))


@pytest.fixture(scope="module")
def poses() -> PoseGrid:
    return PoseGrid.of(spectrum_grid(blob_map(blob_positions())[None], 8), half_plane(BOX, 8), 2000)


def starts(toy: ToySet, away: float, seed: int) -> ImageStates:
    """States of the first images, turned away from the truth by about so many radians."""
    count, generator = len(ROWS), torch.Generator().manual_seed(100 + seed)
    rotations = toy.rotations[ROWS]
    if away > 0:
        rotations = random_rotations(count, generator).float()
    return ImageStates(rotations.float(), toy.shifts_px[ROWS].float(), torch.ones(count), torch.zeros(count, 0))


def test_modes_are_the_likeliest_poses_that_lie_apart(homogeneous: ToySet, poses: PoseGrid) -> None:
    batch = homogeneous.images.batch(ROWS, 8)
    modes = poses.modes(batch, torch.zeros(60, 2), SHIFTS, 4, 0.5)
    table, power, _ = pose_likelihoods(batch, torch.zeros(60, 2), SHIFTS, poses.sections)
    contrasts = torch.linspace(0.05, 3.0, 119)
    posteriors = [a * table.amax(1) - a**2 * power - 0.5 * ((a - 1) / CONTRAST_STD) ** 2 for a in contrasts]
    score, at = torch.stack(posteriors).max(0)
    best = score.argmax(1)
    torch.testing.assert_close(modes[0].contrast, contrasts[at[ROWS, best]], atol=0.02, rtol=0)
    torch.testing.assert_close(modes[0].rotations, poses.candidates[best])
    torch.testing.assert_close(modes[0].shifts_px, SHIFTS.shifts_px[table[ROWS, :, best].argmax(1)])
    far = geodesic_angle(poses.candidates[None], modes[0].rotations[:, None]) > 0.5
    second = torch.where(far, score, -math.inf).argmax(1)
    torch.testing.assert_close(modes[1].rotations, poses.candidates[second])
    for first in range(4):
        for other in range(first):
            assert float(geodesic_angle(modes[first].rotations, modes[other].rotations).min()) > 0.499


def test_an_image_of_little_contrast_is_seen_where_it_is(homogeneous: ToySet, poses: PoseGrid) -> None:
    batch = homogeneous.images.batch(ROWS, 8)
    pale = replace(batch, data=0.3 * batch.data)
    (found,) = poses.modes(batch, torch.zeros(60, 2), SHIFTS, 1, 0.5)
    (again,) = poses.modes(pale, torch.zeros(60, 2), SHIFTS, 1, 0.5)
    same = geodesic_angle(found.rotations, again.rotations) < 0.3
    assert float(same.float().mean()) > 0.95
    assert 0.2 < float((again.contrast / found.contrast)[same].median()) < 0.4


def test_an_aimed_grid_sees_the_map_as_if_it_were_centred(homogeneous: ToySet, poses: PoseGrid) -> None:
    aim = torch.tensor([2.0, -1.5, 1.0])
    moved = spectrum_grid(blob_map(blob_positions() + aim)[None], 8)
    aimed = PoseGrid.of(moved, half_plane(BOX, 8), 2000, aim)
    difference = (aimed.sections - poses.sections).abs().square().mean() / poses.sections.abs().square().mean()
    assert float(difference) < 1e-3
    batch = homogeneous.images.batch(ROWS, 8)
    (centred,) = poses.modes(batch, torch.zeros(60, 2), SHIFTS, 1, 0.5)
    (found,) = aimed.modes(batch, torch.zeros(60, 2), SHIFTS, 1, 0.5)
    same = geodesic_angle(found.rotations, centred.rotations) < 1e-3
    assert float(same.float().mean()) > 0.9
    expected = centred.shifts_px - centred.rotations[:, :2] @ aim
    torch.testing.assert_close(found.shifts_px[same], expected[same])


def test_the_contest_finds_the_true_start_among_many(homogeneous: ToySet) -> None:
    volume = blob_map(blob_positions())[None]
    wrong = [starts(homogeneous, 1.0, seed) for seed in range(9)]
    true = starts(homogeneous, 0.0, 0)
    found, gain = likeliest_start(homogeneous.images, ROWS, volume, PRIORS, SHELL, [*wrong, true])
    near = geodesic_angle(found.rotations, homogeneous.rotations[ROWS].float()) < 0.15
    assert float(near.float().mean()) > 0.98
    alone, _ = likeliest_start(homogeneous.images, ROWS, volume, PRIORS, SHELL, [true])
    won = (found.rotations - alone.rotations).abs().amax((1, 2)) < 1e-4
    assert float((won & (gain > 0)).float().mean()) > 0.9


def test_a_start_that_is_right_stays(homogeneous: ToySet) -> None:
    volume = blob_map(blob_positions())[None]
    others = [starts(homogeneous, 1.0, seed) for seed in range(6)]
    true = starts(homogeneous, 0.0, 0)
    alone, _ = likeliest_start(homogeneous.images, ROWS, volume, PRIORS, SHELL, [true])
    found, gain = likeliest_start(homogeneous.images, ROWS, volume, PRIORS, SHELL, [true, *others])
    stayed = gain == 0
    assert float(stayed.float().mean()) > 0.9
    torch.testing.assert_close(found.rotations[stayed], alone.rotations[stayed], atol=1e-4, rtol=0)
