"""Rendered images have the statistics that they claim."""

from __future__ import annotations

import pytest
import torch
from tests.inference.conftest import blob_map, blob_positions, toy_set

from cryofire.inference.linear_model import predicted
from cryofire.inference.rendering import SHIFT_MARGIN, Renderer, make_renderer


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    toy = toy_set(50, 2.0)
    first = blob_map(blob_positions())
    latents = torch.tensor([[-1.0], [2.0]])
    return make_renderer(torch.stack([first, 0.1 * first]), toy.images, latents, torch.full((2, 1), 0.1), 0.7, 0.05, 8)


def test_what_is_not_signal_is_white_noise(renderer: Renderer) -> None:
    batch, states = renderer.draw(400, torch.Generator().manual_seed(0))
    residual = batch.data - predicted(batch, renderer.grid, states)
    assert batch.plane.max_shell == 8
    assert torch.allclose(residual.abs().square().mean(), torch.ones(()), atol=0.02)
    assert residual.mean().abs() < 0.02
    assert (residual.real * residual.imag).mean().abs() < 0.02


def test_states_follow_the_priors(renderer: Renderer) -> None:
    _, states = renderer.draw(4000, torch.Generator().manual_seed(1))
    assert states.shifts_px.std() == pytest.approx(0.7 * SHIFT_MARGIN, rel=0.05)
    assert states.contrast.std() == pytest.approx(0.05, rel=0.1)
    assert (states.latents > 0.5).float().mean() == pytest.approx(0.5, abs=0.05)
    assert states.latents[states.latents > 0.5].std() == pytest.approx(0.1, rel=0.1)
    assert states.rotations.mean(0).norm() < 0.1


def test_the_same_generator_gives_the_same_images(renderer: Renderer) -> None:
    one, two = (renderer.draw(5, torch.Generator().manual_seed(3))[0] for _ in range(2))
    assert torch.equal(one.data, two.data) and torch.equal(one.modulation, two.modulation)
