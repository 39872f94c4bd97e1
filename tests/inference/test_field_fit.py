"""Fitting the neural field to the sums of a small known molecule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cryofire.config import FieldSettings
from cryofire.geometry.grids import fourier_shell_correlation
from cryofire.inference.field_fit import field_task, fit_field, misfit, scheduled, tempered
from cryofire.inference.linear_model import back_project
from cryofire.inference.polish import ImageStates
from cryofire.volumes.accumulator import GridSums, mean_density, solve_maps
from cryofire.volumes.neural_field import NeuralField
from cryofire.volumes.quadratic import map_quadratic

SETTINGS = FieldSettings(coarsest=8, features=3, hidden=24, steps=50, warm_steps=8, exact_steps=10)


def silent(step: int, loss: float) -> None:
    """Nobody is told."""


@pytest.fixture(scope="module")
def sums(two_states: Any) -> GridSums:
    """Back-projection at the true poses, the label as the latent."""
    count = len(two_states.labels)
    latents = two_states.labels[:, None].float() - two_states.labels.float().mean()
    states = ImageStates(two_states.rotations, two_states.shifts_px, torch.ones(count), latents)
    return back_project(two_states.images, torch.arange(count) % 2, states, 12)


@pytest.fixture(scope="module")
def prior(sums: GridSums) -> torch.Tensor:
    """Signal falling with resolution."""
    return mean_density(sums) * torch.exp(torch.linspace(-5, 0, 13))


@pytest.fixture(scope="module")
def fitted(sums: GridSums, prior: torch.Tensor) -> NeuralField:
    return fit_field(sums, prior, 32, None, SETTINGS, 0, silent)


def test_fit_approaches_the_closed_form(sums: GridSums, prior: torch.Tensor, fitted: NeuralField) -> None:
    closed = solve_maps(sums, 32, prior) * fitted.support
    quadratic = map_quadratic(sums, prior, 32)
    maps = fitted.maps()
    best, reached = float(quadratic.value(closed)), float(quadratic.value(maps))
    assert best < 0
    assert reached < 0.93 * best
    assert fourier_shell_correlation(maps[0], closed[0])[1:6].min() > 0.95
    without_component = closed * torch.tensor([1.0, 0.0])[:, None, None, None]
    assert reached < float(quadratic.value(without_component))


def test_exact_steps_lower_the_quadratic(sums: GridSums, prior: torch.Tensor) -> None:
    quadratic = map_quadratic(sums, prior, 32)
    early = fit_field(sums, prior, 32, None, replace(SETTINGS, steps=12, exact_steps=0), 0, silent)
    late = fit_field(sums, prior, 32, None, replace(SETTINGS, steps=12, exact_steps=10), 0, silent)
    assert float(quadratic.value(late.maps())) < float(quadratic.value(early.maps()))


def test_warm_start_begins_where_the_field_was(sums: GridSums, prior: torch.Tensor, fitted: NeuralField) -> None:
    losses: list[float] = []
    before = {name: value.clone() for name, value in fitted.state_dict().items()}
    again = fit_field(sums, prior, 32, fitted, SETTINGS, 0, lambda _, loss: losses.append(loss))
    assert len(losses) == SETTINGS.warm_steps + SETTINGS.exact_steps
    fresh: list[float] = []
    short = replace(SETTINGS, steps=1, exact_steps=0)
    fit_field(sums, prior, 32, None, short, 0, lambda _, loss: fresh.append(loss))
    assert losses[0] < 0.2 * fresh[0]
    assert all(torch.equal(fitted.state_dict()[name], value) for name, value in before.items())
    assert not torch.equal(again.maps(), fitted.maps())


def test_gradients_of_both_losses(sums: GridSums, prior: torch.Tensor) -> None:
    """Along a random direction in the features, derivative equals difference."""
    amplitude = (prior * 1e4).rsqrt()
    field = NeuralField(SETTINGS, 32, amplitude, torch.Generator().manual_seed(3)).double()
    task = field_task(sums, prior, field)
    direction = torch.randn(field.lattices[1].shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for loss in (misfit, tempered):
        field.zero_grad()
        loss(field, task).backward()
        gradient = field.lattices[1].grad
        assert gradient is not None
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                field.lattices[1].add_(step * direction)
                values.append(float(loss(field, task)))
                field.lattices[1].sub_(step * direction)
        assert (values[0] - values[1]) / 2e-4 == pytest.approx(float((gradient * direction).sum()), rel=1e-4)


def test_seed_decides(sums: GridSums, prior: torch.Tensor) -> None:
    short = replace(SETTINGS, steps=2, exact_steps=1)
    first, second, third = (fit_field(sums, prior, 32, None, short, seed, silent) for seed in (5, 5, 6))
    assert torch.equal(first.maps(), second.maps())
    assert not torch.equal(first.maps(), third.maps())


def test_schedule_rises_and_falls() -> None:
    values = [scheduled(step, 50) for step in range(50)]
    assert values[0] < values[9]
    assert values[9] > values[30] > values[49] > 0
