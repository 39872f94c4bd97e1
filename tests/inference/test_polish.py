from __future__ import annotations

import math

import pytest
import torch

from cryofire.geometry.rotations import geodesic_angle, rotation_from_vector
from cryofire.inference.polish import LATENT, ImageStates, Priors, expand, polish, posterior_covariance, solve_latents
from cryofire.physics.projection import spectrum_grid

from .conftest import BOX, SHELL, WIDTH, ToySet, blob_positions, moved_arm

LOOSE = Priors(5.0, 0.2, torch.zeros(0))


def blob_volume(positions: torch.Tensor) -> torch.Tensor:
    axis = (torch.arange(BOX) - BOX // 2).float()
    total = torch.zeros(BOX, BOX, BOX)
    for x, y, z in positions.tolist():
        along = [torch.exp(-((axis - centre) ** 2) / (2 * WIDTH**2)) for centre in (z, y, x)]
        total += along[0][:, None, None] * along[1][:, None] * along[2]
    return total


def states_near_truth(toy: ToySet, turn: float, seed: int = 5) -> ImageStates:
    generator = torch.Generator().manual_seed(seed)
    count = len(toy.rotations)
    tangent = torch.randn(count, 3, generator=generator) * turn
    return ImageStates(
        rotation_from_vector(tangent) @ toy.rotations, torch.zeros(count, 2), torch.ones(count), torch.zeros(count, 0)
    )


def test_polish_finds_the_truth_to_the_cramer_rao_bound(homogeneous: ToySet) -> None:
    grid = spectrum_grid(blob_volume(blob_positions())[None], SHELL)
    batch = homogeneous.images.batch(torch.arange(600), SHELL)
    found = polish(batch, grid, states_near_truth(homogeneous, 0.05), LOOSE, steps=6)
    error = geodesic_angle(found.states.rotations, homogeneous.rotations)
    predicted = posterior_covariance(found.expansion)[:, :3, :3].diagonal(dim1=1, dim2=2).sum(1).sqrt()
    ratio = float(error.square().mean().sqrt() / predicted.square().mean().sqrt())
    assert ratio == pytest.approx(1.0, abs=0.15)
    shift_error = (found.states.shifts_px - homogeneous.shifts_px).square().sum(1).mean().sqrt()
    shift_predicted = posterior_covariance(found.expansion)[:, 3:5, 3:5].diagonal(dim1=1, dim2=2).sum(1).mean().sqrt()
    assert float(shift_error / shift_predicted) == pytest.approx(1.0, abs=0.15)


def test_polish_never_makes_an_image_worse(homogeneous: ToySet) -> None:
    grid = spectrum_grid(blob_volume(blob_positions())[None], SHELL)
    batch = homogeneous.images.batch(torch.arange(200), SHELL)
    start = states_near_truth(homogeneous, 0.6).take(torch.arange(200))
    before = expand(batch, grid, start, LOOSE).value
    after = polish(batch, grid, start, LOOSE, steps=3).expansion.value
    assert bool((after <= before).all())
    assert float(after.mean()) < float(before.mean())


def test_fixed_parameters_do_not_move(homogeneous: ToySet) -> None:
    grid = spectrum_grid(blob_volume(blob_positions())[None], SHELL)
    batch = homogeneous.images.batch(torch.arange(50), SHELL)
    start = states_near_truth(homogeneous, 0.05).take(torch.arange(50))
    found = polish(batch, grid, start, LOOSE, steps=2, fixed=slice(0, 3)).states
    assert torch.equal(found.rotations, start.rotations)
    assert not torch.equal(found.shifts_px, start.shifts_px)


def test_latents_at_fixed_pose_are_the_exact_gaussian_posterior(two_states: ToySet) -> None:
    first, second = blob_volume(blob_positions()), blob_volume(moved_arm(blob_positions()))
    grid = spectrum_grid(torch.stack([first, second - first]), SHELL)
    rows = torch.arange(100)
    batch = two_states.images.batch(rows, SHELL)
    priors = Priors(5.0, 0.2, torch.ones(1))
    start = ImageStates(two_states.rotations[rows], two_states.shifts_px[rows], torch.ones(100), torch.zeros(100, 1))
    exact = solve_latents(batch, grid, start, priors)
    again = expand(batch, grid, exact.states, priors)
    assert float(again.descent[:, LATENT:].abs().max()) < 1e-2 * float(again.hessian[:, LATENT, LATENT].max()) ** 0.5
    torch.testing.assert_close(again.value, exact.expansion.value, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(again.misfit, exact.expansion.misfit, rtol=1e-4, atol=1e-2)
    moving = exact.states.latents[two_states.labels[rows] == 1].mean()
    resting = exact.states.latents[two_states.labels[rows] == 0].mean()
    assert float(moving) == pytest.approx(1.0, abs=0.15)
    assert float(resting) == pytest.approx(0.0, abs=0.1)


def test_priors_pull_towards_their_means(homogeneous: ToySet) -> None:
    grid = spectrum_grid(blob_volume(blob_positions())[None], SHELL)
    batch = homogeneous.images.batch(torch.arange(50), SHELL)
    start = ImageStates(homogeneous.rotations[:50], torch.zeros(50, 2), torch.ones(50), torch.zeros(50, 0))
    tight = Priors(1e-3, 1e-3, torch.zeros(0)).about(torch.full((50, 2), 0.7))
    found = polish(batch, grid, start, tight, steps=4).states
    assert float((found.shifts_px - 0.7).abs().max()) < 0.05
    assert float((found.contrast - 1).abs().max()) < 0.01
    assert math.isfinite(float(found.rotations.sum()))
