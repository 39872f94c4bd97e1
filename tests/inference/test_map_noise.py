"""The noise of the maps: what two half maps say of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.inference.conftest import SHELL, blob_map, blob_positions, toy_set

from cryofire.geometry.rotations import random_rotations, rotation_from_vector
from cryofire.inference.consensus import Refinement
from cryofire.inference.linear_model import LinearModel
from cryofire.inference.map_noise import differences, fitted_noise, measure_map_noise
from cryofire.inference.polish import ImageStates, Priors
from cryofire.volumes.halves import HalfMaps


def some_states(count: int) -> ImageStates:
    generator = torch.Generator().manual_seed(0)
    return ImageStates(
        random_rotations(count, generator), torch.randn(count, 2, generator=generator), torch.ones(count),
        torch.randn(count, 2, generator=generator),
    )  # fmt: skip


def test_differences_are_the_steps_that_were_taken() -> None:
    states = some_states(5)
    step = 0.1 * torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(differences(states, states.moved(step)), step, atol=1e-5)


def test_variances_that_grow_with_the_latent_are_fitted() -> None:
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(20_000, 2, generator=generator)
    expected = 0.3 + 0.2 * latents.square().sum(1, keepdim=True)
    variance = expected * torch.randn(20_000, 8, generator=generator).square()
    noise = fitted_noise(variance, latents)
    assert torch.allclose(noise.constant, torch.full((8,), 0.3), atol=0.05)
    assert torch.allclose(noise.quadratic, torch.full((8,), 0.2), atol=0.03)
    assert torch.allclose(noise.variance(latents)[:, 0], expected[:, 0], rtol=0.2)
    widened = noise.widened(torch.full((20_000, 8), 2.0), latents)
    assert torch.allclose(widened.square() - 4, noise.variance(latents), atol=1e-4)


def test_without_latents_the_noise_is_constant() -> None:
    noise = fitted_noise(torch.full((10, 6), 0.5), torch.zeros(10, 0))
    assert torch.allclose(noise.variance(torch.zeros(3, 0)), torch.full((3, 6), 0.5))


def test_the_noise_is_a_quarter_of_the_variance_between_the_halves() -> None:
    toy = toy_set(60, 4.0, shift_std=0.2)
    turn = rotation_from_vector(torch.tensor([0.02, 0.0, 0.0]))
    maps = torch.stack([blob_map(blob_positions()), blob_map(blob_positions() @ turn.T)])[:, None]
    states = ImageStates(toy.rotations, toy.shifts_px, torch.ones(60), torch.zeros(60, 0))
    model = LinearModel(HalfMaps(maps, maps.mean(0), torch.ones(1, SHELL + 1)), Priors(0.5, 0.05, torch.zeros(0)))
    refinement = Refinement(toy.images, states, model, SHELL, torch.zeros(60, 6), torch.ones(60))
    noise = measure_map_noise(refinement, torch.arange(60))
    assert float(noise.constant[:3].sum()) == pytest.approx(0.02**2 / 4, rel=0.3)
    same = replace(model, maps=HalfMaps(maps[[0, 0]], maps[0], torch.ones(1, SHELL + 1)))
    assert measure_map_noise(replace(refinement, model=same), torch.arange(60)).constant.max() < 1e-8
