"""What is worked out on a graphics processor is what the compiled kernels work out; where there is none, one is pretended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from cryofire.config import FieldSettings, SubspaceSettings
from cryofire.geometry.rotations import geodesic_angle
from cryofire.inference import field_fit, linear_model, subspace
from cryofire.inference.consensus import refinement_mask, start_refinement
from cryofire.inference.linear_model import LinearModel, PassPlan, PassResult, back_project, run_pass
from cryofire.inference.polish import LATENT, ImageStates, Priors
from cryofire.inference.posterior import Posterior
from cryofire.inference.rendering import Renderer
from cryofire.inference.subspace import PosedImages, Subspace, open_subspace
from cryofire.inference.teaching import RealImages, real_loss, rendered_losses
from cryofire.physics import devices
from cryofire.physics.devices import CPU, device_with
from cryofire.training.encoder_file import encoder_parts
from cryofire.volumes.accumulator import mean_density
from cryofire.volumes.halves import solve_halves

from ..pretended_device import ELSEWHERE, pretended_device
from .conftest import BOX, SHELL, ToySet
from .test_encoder import fresh, renderer, toy_maps  # noqa: F401
from .test_refinement import REFINE, halves, near_truth

USERS = (linear_model, subspace, field_fit)


@pytest.fixture(params=["pretended", "real"])
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], torch.device]]:
    """Until it is called, everything runs on the CPU by the compiled kernels; it gives the other device."""
    for module in USERS:
        monkeypatch.setattr(module, "device_for", lambda *_: CPU)
    if request.param == "real" and not torch.cuda.is_available():
        pytest.skip("there is no graphics processor")
    with ExitStack() as pretence:

        def switch() -> torch.device:
            device = ELSEWHERE if request.param == "real" else pretence.enter_context(pretended_device())
            for module in USERS:
                monkeypatch.setattr(module, "device_for", lambda *_: device)
            return device

        yield switch


def labelled(toy: ToySet) -> ImageStates:
    """Poses near the truth, the label as the latent."""
    latents = toy.labels[:, None].float() - toy.labels.float().mean()
    return replace(near_truth(toy, 0.02), latents=latents)


@pytest.mark.parametrize("joint", [False, True])
def test_a_pass_is_the_same(two_states: ToySet, elsewhere: Callable[[], torch.device], joint: bool) -> None:
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


def test_the_same_components_are_found(two_states: ToySet, elsewhere: Callable[[], torch.device]) -> None:
    half = halves(1200)
    current = start_refinement(two_states.images, half, near_truth(two_states, 0.0), 5, REFINE)
    settings = SubspaceSettings(components=1, most_components=1, steps=3, passes=1)
    mask = refinement_mask(BOX, REFINE)
    posed = PosedImages(two_states.images, half, current.states, current.model, mask, SHELL, settings)

    def opened() -> Subspace:
        return open_subspace(posed, 0, lambda _: None, lambda _: None)

    here = opened()
    elsewhere()
    there = opened()
    assert here.model.components == there.model.components == 1
    torch.testing.assert_close(here.evidence, there.evidence, rtol=0.01, atol=0.05)


def test_the_field_is_the_same(two_states: ToySet, elsewhere: Callable[[], torch.device]) -> None:
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


def test_the_encoder_sees_and_learns_the_same(
    renderer: Renderer,  # noqa: F811
    two_states: ToySet,
    elsewhere: Callable[[], torch.device],
) -> None:
    encoder, centres = fresh(renderer), torch.zeros(50, 2)
    real = RealImages(two_states.images, torch.zeros(1200, 2), renderer.grid, Priors(0.5, 0.1, torch.ones(1)))
    batch, _ = renderer.draw(50, torch.Generator().manual_seed(7))

    def seen_and_learnt(device: torch.device) -> tuple[Posterior, dict[str, float], float]:
        encoder.on(device)
        encoder.look_at(toy_maps())
        rendering, looking = renderer.on(device), replace(real, grid=real.grid.on(device))
        losses = rendered_losses(encoder, rendering, 20, torch.Generator().manual_seed(3))
        loss, misfit = real_loss(encoder, looking, 20, torch.Generator().manual_seed(3))
        (sum(losses.values(), torch.zeros(())) + loss).backward()
        posterior = encoder.posterior(batch, centres)
        return posterior, {name: float(value.detach()) for name, value in losses.items()}, misfit

    here = seen_and_learnt(CPU)
    there = seen_and_learnt(elsewhere())
    assert {value.device for value in vars(there[0]).values()} == {CPU}
    assert float(geodesic_angle(here[0].rotations[:, 0], there[0].rotations[:, 0]).quantile(0.9)) < 1e-3
    assert there[1] == pytest.approx(here[1], rel=0.02, abs=0.02)
    assert there[2] == pytest.approx(here[2], rel=1e-3)
    assert all(value.device == CPU for value in encoder_parts(encoder)[0].values())


def test_grids_too_large_for_a_graphics_processor_stay_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_works", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (8 << 30, 16 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 1 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1 << 30)
    limit = int(devices.SHARE * (8 << 30)) - devices.WORKING_MEMORY
    assert device_with(limit - 1).type == "cuda"
    assert device_with(limit + 1) == CPU


def test_a_graphics_processor_that_torch_has_no_code_for_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", fail)
    devices._works.cache_clear()
    assert device_with(0) == CPU
    assert devices.accelerator_name() is None
    devices._works.cache_clear()
