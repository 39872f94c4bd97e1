"""Fitting the neural field to the sums of a small known molecule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cryofire.config import FieldSettings
from cryofire.geometry.fourier import half_grid_shells, half_volume_spectrum
from cryofire.geometry.grids import fourier_shell_correlation
from cryofire.inference.field_fit import fit_field, misfit, scheduled
from cryofire.inference.linear_model import back_project
from cryofire.inference.polish import ImageStates
from cryofire.volumes.accumulator import GridSums, mean_density, solve_maps
from cryofire.volumes.neural_field import NeuralField
from cryofire.volumes.quadratic import map_quadratic

SETTINGS = FieldSettings(coarsest=8, features=3, hidden=24, steps=30, exact_steps=4)


def silent(phase: str, loss: float) -> None:
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


def test_fit_beats_the_closed_form(sums: GridSums, prior: torch.Tensor, fitted: NeuralField) -> None:
    """Inside the support, where the closed form is cut off."""
    closed = solve_maps(sums, 32, prior) * fitted.support
    quadratic = map_quadratic(sums, prior, 32)
    maps = fitted.maps()
    assert float(quadratic.value(maps)) < float(quadratic.value(closed)) < 0
    assert fourier_shell_correlation(maps[0], closed[0])[1:9].min() > 0.98
    assert not maps.requires_grad


def test_every_shell_is_right(sums: GridSums, prior: torch.Tensor, fitted: NeuralField) -> None:
    """The lowest shells too, where a few coefficients carry most of the evidence."""
    closed, maps = (
        half_volume_spectrum(one, 32, 12)[0] for one in (solve_maps(sums, 32, prior) * fitted.support, fitted.maps())
    )
    shells = half_grid_shells(12)
    for shell in range(1, 9):
        expected = closed[shells == shell]
        assert float((maps[shells == shell] - expected).norm() / expected.norm()) < 0.25


def test_network_carries_most_of_the_density(fitted: NeuralField) -> None:
    assert float((fitted.support * fitted.voxels)[0].norm() / fitted.maps()[0].norm()) < 0.5


def test_more_steps_lower_the_quadratic(sums: GridSums, prior: torch.Tensor) -> None:
    quadratic = map_quadratic(sums, prior, 32)
    levels = [
        float(quadratic.value(fit_field(sums, prior, 32, None, replace(SETTINGS, steps=2, exact_steps=n), 0, silent).maps()))
        for n in (0, 2, 6)
    ]  # fmt: skip
    assert levels[0] > levels[1] > levels[2]


def test_network_makes_no_difference_to_the_maps(sums: GridSums, prior: torch.Tensor, fitted: NeuralField) -> None:
    other = fit_field(sums, prior, 32, None, replace(SETTINGS, steps=3), 8, silent)
    assert not torch.equal(other.lattices[0], fitted.lattices[0])
    assert float((other.maps() - fitted.maps()).norm() / fitted.maps().norm()) < 1e-4


def test_later_fit_keeps_the_network(sums: GridSums, prior: torch.Tensor, fitted: NeuralField) -> None:
    phases: list[str] = []
    before = {name: value.clone() for name, value in fitted.state_dict().items()}
    again = fit_field(sums, 2 * prior, 32, fitted, SETTINGS, 0, lambda phase, _: phases.append(phase))
    assert phases == ["voxels"] * SETTINGS.exact_steps
    assert all(torch.equal(fitted.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(again.lattices[0], fitted.lattices[0])
    assert not torch.equal(again.maps(), fitted.maps())


def test_gradient_of_the_network(sums: GridSums, prior: torch.Tensor) -> None:
    """Along a random direction in the features, derivative equals difference."""
    amplitude = (prior * 1e4).rsqrt()
    field = NeuralField(SETTINGS, 32, amplitude, torch.Generator().manual_seed(3)).double()
    target = field.whitened(solve_maps(sums, 32, prior).double())
    direction = torch.randn(field.lattices[1].shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    misfit(field, target).backward()
    gradient = field.lattices[1].grad
    assert gradient is not None
    values = []
    for step in (1e-4, -1e-4):
        with torch.no_grad():
            field.lattices[1].add_(step * direction)
            values.append(float(misfit(field, target)))
            field.lattices[1].sub_(step * direction)
    assert (values[0] - values[1]) / 2e-4 == pytest.approx(float((gradient * direction).sum()), rel=1e-4)


def test_seed_decides(sums: GridSums, prior: torch.Tensor) -> None:
    short = replace(SETTINGS, steps=2, exact_steps=1)
    first, second, third = (fit_field(sums, prior, 32, None, short, seed, silent) for seed in (5, 5, 6))
    assert torch.equal(first.lattices[0], second.lattices[0])
    assert torch.equal(first.maps(), second.maps())
    assert not torch.equal(first.lattices[0], third.lattices[0])


def test_schedule_rises_and_falls() -> None:
    values = [scheduled(step, 50) for step in range(50)]
    assert values[0] < values[9]
    assert values[9] > values[30] > values[49] > 0
