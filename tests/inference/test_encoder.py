"""The encoder: equivariance, posterior, what it learns, and its file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2
from tests.inference.conftest import BOX, blob_map, blob_positions, moved_arm, toy_set
from torch import Tensor

from cryofire.config import AmortiseSettings, EncoderSettings
from cryofire.errors import FileFormatError
from cryofire.geometry.rotations import geodesic_angle, random_rotations, rotation_from_vector, vector_from_rotation
from cryofire.inference.encoder import PoseEncoder
from cryofire.inference.linear_model import predicted
from cryofire.inference.polish import ImageStates, Priors, expand
from cryofire.inference.posterior import Posterior
from cryofire.inference.rendering import Renderer, make_renderer
from cryofire.inference.section_bank import in_plane_rotations, turned_shifts
from cryofire.inference.teaching import (
    RealImages,
    best_guess,
    candidate_modes,
    movement,
    real_loss,
    rendered_losses,
    scheduled,
    teach,
    usual_power,
)
from cryofire.physics.imaging import ImageBatch
from cryofire.training.encoder_file import encoder_from, encoder_parts

SHELL = 10
SETTINGS = EncoderSettings(
    max_shell=SHELL, angles=48, turns=24, directions=160, fine_directions=320, width=32, blocks=1, hidden=64
)


def toy_maps() -> Tensor:
    first, second = blob_map(blob_positions()), blob_map(moved_arm(blob_positions()))
    return torch.stack([0.5 * (first + second), 0.5 * (second - first)])


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    toy = toy_set(200, 25.0)
    latents = torch.randn(500, 1, generator=torch.Generator().manual_seed(0)).sign()
    return make_renderer(toy_maps(), toy.images, latents, torch.full((500, 1), 0.05), 0.5, 0.03, SHELL)


def fresh(renderer: Renderer) -> PoseEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = PoseEncoder(SETTINGS, BOX, 1, 0.5)
    encoder.look_at(toy_maps())
    encoder.usual_power.copy_(usual_power(renderer, 0))
    return encoder


@pytest.fixture(scope="module")
def taught(renderer: Renderer) -> PoseEncoder:
    encoder = fresh(renderer)
    for _ in teach(encoder, renderer, None, AmortiseSettings(steps=140, batch=48, real=0), 1):
        pass
    return encoder


def rendered(renderer: Renderer, count: int, seed: int = 7) -> tuple[ImageBatch, ImageStates]:
    return renderer.draw(count, torch.Generator().manual_seed(seed))


def errors(found: Posterior, truth: ImageStates) -> Tensor:
    turn = vector_from_rotation(truth.rotations @ found.rotations[:, 0].transpose(1, 2))
    return torch.cat([turn, truth.shifts_px - found.shifts_px[:, 0], truth.latents - found.latents[:, 0]], dim=1)


def test_an_encoder_must_look_at_a_decoder_first() -> None:
    encoder = PoseEncoder(SETTINGS, BOX, 0, 0.5)
    with pytest.raises(RuntimeError, match="look_at"):
        encoder.coarse_cell(torch.eye(3)[None])


def test_before_it_learns_an_encoder_finds_most_poses_by_its_bank(renderer: Renderer) -> None:
    batch, truth = rendered(renderer, 200)
    found = fresh(renderer).posterior(batch, torch.zeros(200, 2))
    assert geodesic_angle(found.rotations[:, 0], truth.rotations).median() < math.radians(6)


def test_a_taught_encoder_is_more_accurate_and_knows_how_accurate(renderer: Renderer, taught: PoseEncoder) -> None:
    batch, truth = rendered(renderer, 400)
    before, after = (one.posterior(batch, torch.zeros(400, 2)) for one in (fresh(renderer), taught))
    first, second = (geodesic_angle(one.rotations[:, 0], truth.rotations).median() for one in (before, after))
    assert second < 0.95 * first and second < math.radians(3)
    assert (after.latents[:, 0, 0].sign() == truth.latents[:, 0].sign()).float().mean() > 0.9
    for part in (slice(0, 3), slice(3, 5), slice(5, 6)):
        error, covariance = errors(after, truth)[:, part], after.covariance[:, 0, part, part]
        distance = (error * torch.linalg.solve(covariance, error)).sum(1)
        inside = (distance < chi2.ppf(0.9, error.shape[1])).float().mean()
        assert 0.75 < inside < 0.99


def test_modes_come_in_order_with_weights_that_sum_to_one(renderer: Renderer, taught: PoseEncoder) -> None:
    found = taught.posterior(rendered(renderer, 50)[0], torch.zeros(50, 2))
    assert torch.allclose(found.weights.sum(1), torch.ones(50))
    assert (found.weights.diff(dim=1) <= 0).all()
    twice = geodesic_angle(found.rotations[:, 0], found.rotations[:, 1]) < 0.1
    assert (found.weights[twice, 1] < 1e-6).all()
    assert torch.linalg.eigvalsh(found.covariance).min() > 0


def test_turning_an_image_turns_its_posterior(renderer: Renderer, taught: PoseEncoder) -> None:
    rotations = random_rotations(20, torch.Generator().manual_seed(4))
    shifts = 0.3 * torch.randn(20, 2, generator=torch.Generator().manual_seed(5))
    angle = torch.full((20,), 4 * 2 * math.pi / SETTINGS.turns)
    plane = taught.polar.plane
    silent = ImageBatch(torch.zeros(20, len(plane), dtype=torch.complex64), torch.full((20, len(plane)), 0.05), plane)
    found = []
    for turned, moved in ((rotations, shifts), (in_plane_rotations(angle) @ rotations, turned_shifts(shifts, angle))):
        states = ImageStates(turned, moved, torch.ones(20), torch.zeros(20, 1))
        data = predicted(silent, renderer.grid, states)
        found.append(taught.posterior(replace(silent, data=data), torch.zeros(20, 2)))
    expected = in_plane_rotations(angle) @ found[0].rotations[:, 0]
    assert geodesic_angle(expected, found[1].rotations[:, 0]).median() < math.radians(0.5)
    assert torch.allclose(turned_shifts(found[0].shifts_px[:, 0], angle), found[1].shifts_px[:, 0], atol=0.1)
    first, second = (one.covariance[:, 0, 2, 2] for one in found)
    assert torch.allclose(first, second, rtol=0.2)


def test_centres_are_added_to_the_shifts(renderer: Renderer, taught: PoseEncoder) -> None:
    batch, truth = rendered(renderer, 60)
    still, guided = (taught.posterior(batch, centres) for centres in (torch.zeros(60, 2), truth.shifts_px))
    assert (guided.shifts_px[:, 0] - truth.shifts_px).norm(dim=1).median() < 0.3
    assert (still.shifts_px[:, 0] - guided.shifts_px[:, 0]).norm(dim=1).median() < 0.2


def test_the_density_is_highest_at_the_mean(renderer: Renderer, taught: PoseEncoder) -> None:
    batch, truth = rendered(renderer, 30)
    sight = taught.see(batch, torch.zeros(30, 2))
    found = taught.local(taught.polar_images(sight, torch.zeros(30, 2)), sight.power, truth.rotations, 1)
    rotations, shifts, latents = taught.pose(found)
    best = taught.negative_log_density(found, rotations, shifts, latents)
    exact = -found.factor.diagonal(dim1=1, dim2=2).log().sum(1)
    assert torch.allclose(best, exact, atol=1e-3)
    away = rotation_from_vector(torch.full((30, 3), 0.02)) @ rotations
    assert (taught.negative_log_density(found, away, shifts, latents) > best).all()


def test_losses_are_finite_and_every_weight_learns(renderer: Renderer) -> None:
    encoder = fresh(renderer)
    losses = rendered_losses(encoder, renderer, 32, torch.Generator().manual_seed(0))
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    without = [name for name, weight in encoder.named_parameters() if weight.grad is None]
    assert without == []


def test_gradients_are_zero_rather_than_too_small_to_be_normal(
    renderer: Renderer, taught: PoseEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = torch.finfo(torch.float32).tiny

    def gradient() -> Tensor:
        seen: list[Tensor] = []
        hook = taught.coarse_out.register_full_backward_hook(lambda _, __, outer: seen.append(outer[0]))
        rendered_losses(taught, renderer, 48, torch.Generator().manual_seed(3))["cells"].backward()
        hook.remove()
        taught.zero_grad()
        return seen[0]

    kept = gradient()
    monkeypatch.setattr("cryofire.inference.teaching.LEAST_GRADIENT", 0.0)
    whole = gradient()
    assert ((whole != 0) & (whole.abs() < least)).any()
    assert not ((kept != 0) & (kept.abs() < least)).any()
    torch.testing.assert_close(kept, whole, rtol=0.0, atol=1e-20)


def test_where_no_mode_is_right_one_near_the_truth_is_put_there(renderer: Renderer, taught: PoseEncoder) -> None:
    truth = rendered(renderer, 40)[1]
    logits = torch.zeros(40, SETTINGS.turns * SETTINGS.directions)
    modes, right = candidate_modes(taught, logits, truth, torch.Generator().manual_seed(0))
    distance = geodesic_angle(modes[torch.arange(40), right], truth.rotations)
    assert (distance < 0.4).all()


def test_the_gradient_of_real_images_is_that_of_their_misfit(renderer: Renderer) -> None:
    toy = toy_set(40, 25.0)
    priors = Priors(0.5, 0.1, torch.ones(1))
    real = RealImages(toy.images, torch.zeros(40, 2), renderer.grid, priors)
    encoder = fresh(renderer)
    last = encoder.head[-1]
    bias = last.bias
    bands, size = len(encoder.bands), 6

    def misfit(change: Tensor) -> float:
        with torch.no_grad():
            bias[bands * size : (bands + 1) * size] += change
            batch, centres = real.draw(40, SHELL, torch.Generator().manual_seed(2))
            sight = encoder.see(batch, centres)
            found = encoder.local(encoder.polar_images(sight, shifts), sight.power, rotations, 2)
            turned, moved, latents = encoder.pose(found)
            states = ImageStates(turned, shifts + moved, torch.ones(40), latents)
            value = expand(batch, renderer.grid, states, priors).value
            bias[bands * size : (bands + 1) * size] -= change
        return float((value * weight).sum() / 40)

    batch, centres = real.draw(40, SHELL, torch.Generator().manual_seed(2))
    rotations, shifts = best_guess(encoder, encoder.see(batch, centres))
    rotations, shifts = rotations.detach(), shifts.detach()
    weight = torch.ones(40)
    loss, value = real_loss(encoder, real, 40, torch.Generator().manual_seed(2), largest_decrement=math.inf)
    loss.backward()
    found = bias.grad[bands * size : (bands + 1) * size]
    for axis in range(size):
        step = 0.02 * torch.eye(size)[axis]
        slope = (misfit(step) - misfit(-step)) / 0.04
        assert float(found[axis]) == pytest.approx(slope, rel=0.1, abs=0.02 * float(found.abs().max()))
    assert 0.5 < value < 2.0


def test_movement_is_zero_but_has_the_derivative_of_the_pose(renderer: Renderer, taught: PoseEncoder) -> None:
    batch, truth = rendered(renderer, 5)
    sight = taught.see(batch, torch.zeros(5, 2))
    found = taught.local(taught.polar_images(sight, torch.zeros(5, 2)), sight.power, truth.rotations, 1)
    moved = movement(taught, found)
    assert moved.abs().max() == 0
    gradient = torch.autograd.grad(moved[:, 4].sum(), found.mean)[0]
    assert torch.allclose(gradient[:, 3:5].norm(dim=1), torch.full((5,), 0.5), atol=1e-5)


def test_real_images_alone_teach_too(renderer: Renderer) -> None:
    toy = toy_set(300, 25.0)
    real = RealImages(toy.images, torch.zeros(300, 2), renderer.grid, Priors(0.5, 0.1, torch.ones(1)))
    encoder = fresh(renderer)
    steps = list(teach(encoder, renderer, real, AmortiseSettings(steps=40, batch=0, real=64), 1))
    assert sum(one.misfit for one in steps[-10:]) < sum(one.misfit for one in steps[:10])
    assert math.isnan(steps[0].cells)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [scheduled(step, 300) for step in range(300)]
    assert rates[0] < 0.05 and max(rates) > 0.9 and rates[-1] < 0.05


def test_an_encoder_comes_back_from_its_parts_unchanged(renderer: Renderer, taught: PoseEncoder) -> None:
    again = encoder_from(*encoder_parts(taught), toy_maps(), Path("encoder.safetensors"))
    batch = rendered(renderer, 30)[0]
    one, two = (encoder.posterior(batch, torch.zeros(30, 2)) for encoder in (taught, again))
    assert torch.equal(one.rotations, two.rotations) and torch.equal(one.covariance, two.covariance)


def test_an_encoder_of_another_kind_is_refused(taught: PoseEncoder) -> None:
    tensors, values = encoder_parts(taught)
    with pytest.raises(FileFormatError, match="of a kind"):
        encoder_from(tensors, {**values, "components": 3}, toy_maps(), Path("encoder.safetensors"))
    with pytest.raises(FileFormatError, match="of a kind"):
        encoder_from(tensors, {"box": BOX}, toy_maps(), Path("encoder.safetensors"))


@pytest.mark.parametrize("shift_std", [0.3, 0.8, 2.0])
def test_a_glance_always_tries_neighbouring_shifts(shift_std: float) -> None:
    shifts = PoseEncoder(SETTINGS, BOX, 0, shift_std).glanced_shifts
    assert len(shifts) >= 7 and shifts[0].norm() == 0
    assert shifts.norm(dim=1).max() > shift_std
