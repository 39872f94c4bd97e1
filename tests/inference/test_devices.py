"""What is worked out on a graphics processor is what the compiled kernels work out.

Where there is none, the same tensor operations run on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from cryofire.config import FieldSettings
from cryofire.geometry.rotations import geodesic_angle
from cryofire.inference import field_fit, linear_model, polish
from cryofire.inference.consensus import refinement_mask
from cryofire.inference.linear_model import LinearModel, PassPlan, PassResult, back_project, run_pass
from cryofire.inference.polish import LATENT, ImageStates, Priors
from cryofire.physics import devices
from cryofire.physics.devices import CPU, device_with
from cryofire.volumes import accumulator
from cryofire.volumes.accumulator import mean_density
from cryofire.volumes.halves import solve_halves

from .conftest import BOX, SHELL, ToySet
from .test_refinement import REFINE, halves, near_truth

USERS = (linear_model, field_fit)


def on_cpu(*_: int) -> torch.device:
    return CPU


@pytest.fixture(params=["tensor operations", "graphics processor"])
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Until it is called, everything runs on the CPU by the compiled kernels."""
    for module in USERS:
        monkeypatch.setattr(module, "device_for", on_cpu)
    if request.param == "graphics processor" and not torch.cuda.is_available():
        pytest.skip("there is no graphics processor")

    def switch() -> None:
        if request.param == "graphics processor":
            for module in USERS:
                monkeypatch.setattr(module, "device_for", accumulator.device_for)
        else:  # CPU tensors are taken for those of another device
            for module in (polish, accumulator):
                monkeypatch.setattr(module, "CPU", torch.device("meta"))

    return switch


def labelled(toy: ToySet) -> ImageStates:
    """Poses near the truth, the label as the latent."""
    latents = toy.labels[:, None].float() - toy.labels.float().mean()
    return replace(near_truth(toy, 0.02), latents=latents)


@pytest.mark.parametrize("joint", [False, True])
def test_a_pass_is_the_same(two_states: ToySet, elsewhere: Callable[[], None], joint: bool) -> None:
    half, states = halves(1200), labelled(two_states)

    def passed() -> PassResult:
        maps = solve_halves(back_project(two_states.images, half, states, SHELL), refinement_mask(BOX, REFINE), 5)
        model = LinearModel(maps, Priors(2.0, 0.1, torch.ones(1)))
        return run_pass(two_states.images, half, states, model, PassPlan(10, SHELL, joint=joint), lambda _: None)

    here = passed()
    elsewhere()
    there = passed()
    assert there.sums.values.device == there.states.rotations.device == CPU
    assert float(geodesic_angle(here.states.rotations, there.states.rotations).quantile(0.99)) < 2e-4
    assert float((here.states.latents - there.states.latents).abs().quantile(0.99)) < 2e-3
    torch.testing.assert_close(here.deviations[:, :LATENT], there.deviations[:, :LATENT], rtol=0.02, atol=1e-4)
    assert float((here.sums.values - there.sums.values).norm() / here.sums.values.norm()) < 1e-3


def test_the_field_is_the_same(two_states: ToySet, elsewhere: Callable[[], None]) -> None:
    settings = FieldSettings(coarsest=8, features=3, hidden=24, steps=10, exact_steps=4)
    sums = back_project(two_states.images, halves(1200), labelled(two_states), SHELL)
    prior = mean_density(sums) * torch.exp(torch.linspace(-5, 0, SHELL + 1))

    def maps() -> torch.Tensor:
        return field_fit.fit_field(sums, prior, BOX, None, settings, 0, lambda *_: None).maps()

    here = maps()
    elsewhere()
    there = maps()
    assert there.device == CPU
    assert float((here - there).norm() / here.norm()) < 1e-3


def test_grids_too_large_for_a_graphics_processor_stay_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (8 << 30, 16 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 1 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1 << 30)
    limit = int(devices.SHARE * (8 << 30)) - devices.WORKING_MEMORY
    assert device_with(limit - 1).type == "cuda"
    assert device_with(limit + 1) == CPU
