from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cryofire.config import SearchSettings
from cryofire.geometry.rotations import geodesic_angle, nearest_rotation
from cryofire.geometry.so3_grid import super_fibonacci_rotations
from cryofire.inference.assign import assign_poses
from cryofire.inference.search import (
    SearchStep,
    evened,
    expectation,
    grid_posterior,
    judge,
    pose_likelihoods,
    search,
    search_shifts,
    start_temperature,
    still_learning,
)
from cryofire.inference.shift_grid import ShiftGrid
from cryofire.physics.imaging import ImageBatch
from cryofire.physics.shift import phase_ramp

from .conftest import BOX, SHELL, ToySet, blob_positions, blob_sections, toy_set

SETTINGS = SearchSettings(
    steps=40, least_images=150, most_images=300, rotations=1200, first_shell=4, last_shell=8, held_out=100,
    shift_radius=0.05, shift_spacing=0.03, most_starts=3,
)  # fmt: skip


def pose_error(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Geodesic errors after the best global rotation, both hands tried."""
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    candidates = []
    for hand in (found, mirror @ found @ mirror):
        relative = truth.mT @ hand
        for pick in relative[:40]:
            near = geodesic_angle(relative, pick.expand_as(relative)) < 0.5
            common = nearest_rotation(relative[near].mean(0))
            candidates.append(geodesic_angle(truth @ common, hand))
    return min(candidates, key=lambda errors: float(errors.median()))


def test_likelihood_table_equals_the_residual(homogeneous: ToySet) -> None:
    rows = torch.arange(6)
    batch = homogeneous.images.batch(rows, 6)
    rotations = super_fibonacci_rotations(20)
    sections = blob_sections(blob_positions(), rotations, 6)
    centres, shifts = torch.randn(6, 2), torch.tensor([[0.0, 0.0], [1.0, -0.5]])
    grid = ShiftGrid(shifts, torch.tensor([0.3, -0.4]))
    table, power, _ = pose_likelihoods(batch, centres, grid, sections)
    for image in range(6):
        for shift in range(2):
            ramp = phase_ramp(centres[image] + shifts[shift], batch.plane.frequencies, BOX)
            residual = batch.data[image] - batch.modulation[image] * ramp * sections
            expected = batch.data[image].abs().square().sum() - residual.abs().square().sum(1)
            expected += grid.log_weight[shift]
            torch.testing.assert_close(table[image, shift] - power[image], expected, rtol=1e-3, atol=1e-2)


def test_a_flat_likelihood_has_the_entropy_of_its_table() -> None:
    weights, evidence, entropy = grid_posterior(torch.full((2, 3, 50), 40.0), torch.full((2, 50), 2.0), 1.0)
    torch.testing.assert_close(weights, torch.full((2, 3, 50), 1 / 150))
    torch.testing.assert_close(evidence, torch.full((2,), 38.0))
    torch.testing.assert_close(entropy, torch.full((2,), math.log(150)))


@pytest.mark.parametrize("temperature", [1.0, 7.0, 5000.0])  # peaked, between, and spread over the whole table
def test_expectation_equals_a_plain_softmax(
    homogeneous: ToySet, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryofire.inference.search.TABLE", 3 * 50 * 3)  # several pieces
    rows = torch.arange(10)
    batch = homogeneous.images.batch(rows, 5)
    sections = blob_sections(blob_positions(), super_fibonacci_rotations(50), 5)
    shifts = ShiftGrid(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.4, -0.1, -0.5]))
    found = expectation(batch, torch.zeros(10, 2), shifts, sections, temperature)
    table, power, images = pose_likelihoods(batch, torch.zeros(10, 2), shifts, sections)
    logits = ((table - power[:, None]) / temperature).double().flatten(1)
    posterior = logits.softmax(1)
    weights = posterior.unflatten(1, (3, 50)).float()
    for half in range(2):
        mine = slice(half, None, 2)
        numerators = torch.view_as_real(found.numerators[half]).flatten(1)
        expected = torch.einsum("itq,itp->qp", weights[mine], images[mine])
        torch.testing.assert_close(numerators, expected, rtol=1e-3, atol=1e-2)
        density = weights[mine].sum(1).T @ batch.modulation[mine].square()
        torch.testing.assert_close(found.denominators[half], density, rtol=1e-3, atol=1e-4)
    entropy = -(posterior * posterior.clamp_min(1e-300).log()).sum(1)
    torch.testing.assert_close(found.entropy, entropy.float(), rtol=1e-2, atol=1e-2)
    evidence = logits.logsumexp(1) - math.log(150)
    torch.testing.assert_close(found.log_evidence, evidence.float(), rtol=1e-5, atol=1e-3)


def test_maps_that_are_favoured_get_more_of_an_image(homogeneous: ToySet) -> None:
    batch, still = homogeneous.images.batch(torch.arange(10), 5), ShiftGrid(torch.zeros(1, 2), torch.zeros(1))
    rotations, temperature = super_fibonacci_rotations(30), 50.0
    maps = [factor * blob_sections(blob_positions(), rotations, 5) for factor in (1.0, 0.7, 0.9)]
    favour = torch.tensor([-1.0, 2.0, 0.0])
    found = expectation(batch, torch.zeros(10, 2), still, torch.cat(maps), temperature, favour)
    evidence = []
    for sections in maps:
        table, power, _ = pose_likelihoods(batch, torch.zeros(10, 2), still, sections)
        evidence.append(((table[:, 0] - power) / temperature).logsumexp(1))
    torch.testing.assert_close(found.shares, (torch.stack(evidence, 1) + favour).softmax(1), rtol=1e-4, atol=1e-4)
    densities = torch.stack([one.sum() for one in found.denominators.sum(0).chunk(3)])
    expected = (found.shares * batch.modulation.square().sum(1, keepdim=True)).sum(0)
    torch.testing.assert_close(densities, expected, rtol=1e-3, atol=1e-3)


def test_a_map_that_is_ahead_for_all_images_gets_no_more_of_them() -> None:
    evidence = 3 * torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    evidence[:, 2] += 40.0
    favour = torch.tensor([0.0, 0.0, -25.0, 0.0])
    shares = (evidence + favour).softmax(1)
    assert float(shares.mean(0)[2]) > 0.99
    even = evened(favour, shares)
    torch.testing.assert_close((evidence + even).softmax(1).mean(0), torch.full((4,), 0.25), rtol=0.02, atol=0.0)
    assert float(even.mean().abs()) < 1e-4


def test_halves_of_an_expectation_hold_different_images(homogeneous: ToySet) -> None:
    batch = homogeneous.images.batch(torch.arange(2), 5)
    sections = blob_sections(blob_positions(), super_fibonacci_rotations(30), 5)
    both = expectation(batch, torch.zeros(2, 2), ShiftGrid(torch.zeros(1, 2), torch.zeros(1)), sections, 1.0)
    one = ImageBatch(batch.data[:1], batch.modulation[:1], batch.plane)
    alone = expectation(one, torch.zeros(1, 2), ShiftGrid(torch.zeros(1, 2), torch.zeros(1)), sections, 1.0)
    torch.testing.assert_close(both.numerators[0], alone.numerators[0])


def test_the_search_starts_hotter_where_images_say_more() -> None:
    temperatures = []
    for noise in (15.0, 60.0):
        toy = toy_set(200, noise)
        from cryofire.inference.search import initial_sums

        generator = torch.Generator().manual_seed(0)
        rows = torch.arange(200)
        sums = initial_sums(toy.images, rows, torch.zeros(200, 2), SETTINGS, generator)
        temperatures.append(start_temperature(toy.images, rows[:60], torch.zeros(200, 2), sums, SETTINGS))
    assert temperatures[0] > temperatures[1] >= 1.0


def test_search_and_assignment_find_poses_from_nothing() -> None:
    toy = toy_set(800, noise=22.0, seed=1)
    steps: list[object] = []
    starts = search(toy.images, torch.zeros(800, 2), SETTINGS, 0, steps.append)
    assert len(steps) >= SETTINGS.steps * len(starts)
    assert starts[0].gain == max(start.gain for start in starts) > 0
    shifts = search_shifts(BOX, SETTINGS)
    found = assign_poses(toy.images, starts[0].volume, 8, torch.zeros(800, 2), shifts, 1200, lambda _: None)
    error = pose_error(found.states.rotations, toy.rotations)
    assert math.degrees(float(error.median())) < 8.0
    assert float((found.margin > 0).float().mean()) > 0.9


def test_a_start_goes_on_while_posteriors_sharpen_or_more_is_explained() -> None:
    def steps(entropies: list[float], evidence: list[float]) -> list[SearchStep]:
        pairs = enumerate(zip(entropies, evidence, strict=True))
        return [SearchStep(0, step, 12, 1.0, one, math.exp(entropy)) for step, (entropy, one) in pairs]

    falling, flat = [3.0 - 0.01 * step for step in range(20)], [100.0] * 20
    assert still_learning(steps(falling, flat))
    assert not still_learning(steps(falling + [falling[-1]] * 20, flat * 2))  # has stopped
    assert still_learning(steps([0.1] * 20, [100.0 + 0.2 * step for step in range(20)]))
    assert not still_learning(steps([0.1] * 20, flat))
    assert not still_learning(steps([0.1] * 20, [-100.0 - 0.2 * step for step in range(20)]))
    assert not still_learning(steps(falling[:19], flat[:19]))


def test_images_that_say_little_get_more_steps() -> None:
    toy = toy_set(300, noise=250.0, seed=1)
    settings = replace(SETTINGS, steps=20, most_steps=26, most_starts=1, least_starts=1)
    steps: list[SearchStep] = []
    search(toy.images, torch.zeros(300, 2), settings, 0, steps.append)
    assert settings.steps < len(steps) <= settings.most_steps
    assert all(step.shell == settings.last_shell and step.temperature == 1.0 for step in steps[settings.steps :])


def test_a_sphere_explains_nothing_beyond_itself(homogeneous: ToySet) -> None:
    from cryofire.geometry.grids import radius_map

    ball = 0.2 * torch.exp(-(radius_map(20, 3) ** 2) / 18)
    start = judge(homogeneous.images, torch.arange(80), torch.zeros(600, 2), ball, SETTINGS)
    assert start.gain == pytest.approx(0.0, abs=1.5)  # a true map gains hundreds
    assert SETTINGS.last_shell < SHELL
