from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from cryofire.config import RefineSettings, SubspaceSettings
from cryofire.geometry.rotations import geodesic_angle, rotation_from_vector
from cryofire.inference.consensus import outline_mask, refine, refinement_mask, start_refinement
from cryofire.inference.linear_model import LATENTS, canonical, moments, predicted, updated_priors
from cryofire.inference.polish import ImageStates, Priors
from cryofire.inference.subspace import PosedImages, components_kept, nested_evidence, open_subspace

from .conftest import BOX, SHELL, ToySet, toy_set

REFINE = RefineSettings(passes=6)


def near_truth(toy: ToySet, turn: float) -> ImageStates:
    generator = torch.Generator().manual_seed(2)
    count = len(toy.rotations)
    rotations = rotation_from_vector(torch.randn(count, 3, generator=generator) * turn) @ toy.rotations
    return ImageStates(rotations, toy.shifts_px.clone(), torch.ones(count), torch.zeros(count, 0))


def halves(count: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(9)) % 2


def test_refinement_sharpens_poses_and_is_reproducible(homogeneous: ToySet) -> None:
    half = halves(600)
    start = start_refinement(homogeneous.images, half, near_truth(homogeneous, 0.08), 5, REFINE)
    runs = [list(refine(start, half, 5, REFINE, lambda _: None))[-1] for _ in range(2)]
    assert torch.equal(runs[0].states.rotations, runs[1].states.rotations)
    error = geodesic_angle(runs[0].states.rotations, homogeneous.rotations).median()
    initial = geodesic_angle(start.states.rotations, homogeneous.rotations).median()
    assert float(error) < 0.5 * float(initial)
    assert float(runs[0].states.contrast.mean()) == pytest.approx(1.0, abs=1e-4)
    assert float(runs[0].images.correction[3:].mean()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("settings", [RefineSettings(), RefineSettings(shells_per_pass=6), RefineSettings(growth=1.0)])
def test_the_limit_grows_by_shells_then_by_a_factor_and_never_beyond_what_was_seen(settings: RefineSettings) -> None:
    following = [settings.next_shell(shell) for shell in range(1, 128)]
    assert all(
        after - before >= settings.shells_per_pass for before, after in zip(range(1, 128), following, strict=True)
    )
    assert following[-1] == max(127 + settings.shells_per_pass, round(127 * settings.growth))
    assert all(settings.seen(shell) >= after for shell, after in zip(range(1, 128), following, strict=True))
    assert all(settings.seen(shell) - shell >= settings.lookahead for shell in range(1, 128))


def test_the_limit_follows_the_agreement_of_the_halves(homogeneous: ToySet) -> None:
    half = halves(600)
    start = start_refinement(homogeneous.images, half, near_truth(homogeneous, 0.08), 5, REFINE)
    shells = [start.shell, *(one.shell for one in refine(start, half, 5, REFINE, lambda _: None))]
    assert all(before <= after <= REFINE.next_shell(before) for before, after in itertools.pairwise(shells))
    assert shells[-1] > shells[0]


def test_resuming_equals_not_stopping(homogeneous: ToySet) -> None:
    half = halves(600)
    start = start_refinement(homogeneous.images, half, near_truth(homogeneous, 0.08), 5, REFINE)
    settings = replace(REFINE, passes=3)
    whole = list(refine(start, half, 5, settings, lambda _: None))
    resumed = list(refine(whole[0], half, 5, settings, lambda _: None))
    assert torch.equal(whole[-1].states.rotations, resumed[-1].states.rotations)
    assert torch.equal(whole[-1].model.maps.joint, resumed[-1].model.maps.joint)
    assert whole[-1].passes == resumed[-1].passes == 3


def test_maps_of_a_pass_end_at_the_outline_of_those_before(two_states: ToySet) -> None:
    half = halves(1200)
    current = start_refinement(two_states.images, half, near_truth(two_states, 0.0), 5, REFINE)
    inside = outline_mask(current.model, REFINE)
    assert float(inside.mean()) < 0.7 * float(refinement_mask(BOX, REFINE).mean())
    following = next(refine(current, half, 5, REFINE, lambda _: None))
    assert float(following.model.maps.joint[:, inside == 0].abs().max()) == 0
    assert float(following.model.maps.joint[:, inside == 1].abs().max()) > 0


def test_two_states_open_one_component_and_are_told_apart(two_states: ToySet) -> None:
    half = halves(1200)
    current = start_refinement(two_states.images, half, near_truth(two_states, 0.0), 5, REFINE)
    settings = SubspaceSettings(components=2, most_components=2)
    mask = refinement_mask(BOX, REFINE)
    seen: list[object] = []
    posed = PosedImages(two_states.images, half, current.states, current.model, mask, SHELL, settings)
    found = open_subspace(posed, 0, seen.append, lambda _: None)
    assert found.model.maps.joint.shape[0] == 2
    opened = replace(
        current,
        states=replace(current.states, latents=torch.zeros(1200, 1)),
        model=replace(found.model, priors=replace(current.model.priors, latent_variance=torch.ones(1))),
    )
    latents = list(refine(opened, half, 5, replace(REFINE, passes=2), lambda _: None))[-1].states.latents[:, 0]
    sign = torch.sign(latents[two_states.labels == 1].mean() - latents[two_states.labels == 0].mean())
    order = (sign * latents).argsort(descending=True)[: int(two_states.labels.sum())]
    assert float((two_states.labels[order] == 1).float().mean()) > 0.97


def test_a_homogeneous_set_keeps_no_component() -> None:
    toy = toy_set(600, noise=20.0, seed=8)
    half = halves(600)
    current = start_refinement(toy.images, half, near_truth(toy, 0.0), 5, REFINE)
    settings = SubspaceSettings(components=2, most_components=2)
    mask = refinement_mask(BOX, REFINE)
    posed = PosedImages(toy.images, half, current.states, current.model, mask, SHELL, settings)
    found = open_subspace(posed, 0, lambda _: None, lambda _: None)
    assert found.model.maps.joint.shape[0] == 1
    assert found.evidence[0] == 0


def test_log_evidence_prefers_the_contrasts_that_the_images_have(two_states: ToySet) -> None:
    half, states = halves(1200), near_truth(two_states, 0.0)
    current = start_refinement(two_states.images, half, states, 5, REFINE)
    settings = SubspaceSettings(components=2, most_components=2)
    spread = replace(states, contrast=1 + 0.3 * torch.randn(1200, generator=torch.Generator().manual_seed(1)))
    mask = refinement_mask(BOX, REFINE)
    true, false = (
        open_subspace(
            PosedImages(two_states.images, half, one, current.model, mask, SHELL, settings),
            0,
            lambda _: None,
            lambda _: None,
        )
        for one in (spread.at_one_contrast(), spread)
    )
    assert true.log_evidence > false.log_evidence + 1.0


def test_nested_evidence_equals_each_leading_block() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(7, 4, 4, generator=generator, dtype=torch.float64)
    precision = root @ root.mT + torch.eye(4, dtype=torch.float64)
    descent = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    nested = nested_evidence(precision, descent)
    for count in range(1, 5):
        block, part = precision[:, :count, :count], descent[:, :count]
        expected = 0.5 * (part * torch.linalg.solve(block, part)).sum(1) - 0.5 * torch.logdet(block)
        torch.testing.assert_close(nested[:, count - 1], expected)


def test_evidence_of_the_linear_gaussian_model_is_exact() -> None:
    """log p(y) of y = A z + ε with z ~ N(0, 1), ε ~ complex N(0, 1), against the multivariate normal density."""
    generator = torch.Generator().manual_seed(1)
    jacobian = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    data = torch.randn(6, generator=generator, dtype=torch.float64)
    # the real and imaginary parts each have variance ½
    covariance = jacobian @ jacobian.T + 0.5 * torch.eye(6, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(6, dtype=torch.float64), covariance)
    alone = torch.distributions.Normal(0.0, math.sqrt(0.5)).log_prob(data).sum()
    hessian = 2 * jacobian.T @ jacobian + torch.eye(2, dtype=torch.float64)
    evidence = nested_evidence(hessian[None], (2 * jacobian.T @ data)[None])[0, -1]
    torch.testing.assert_close(evidence, normal.log_prob(data) - alone)


def test_components_are_kept_only_while_each_helps() -> None:
    error, settings = torch.tensor([0.0, 0.1, 0.1, 0.1]), SubspaceSettings()
    assert components_kept(torch.tensor([0.0, 0.005, 6.0, 7.0]), torch.zeros(4), settings) == 0
    assert components_kept(torch.tensor([0.0, 5.0, 6.0, 6.1]), error, settings) == 2
    assert components_kept(torch.tensor([0.0, 0.1, 6.0, 7.0]), error, settings) == 0


def test_canonical_latents_change_nothing_that_is_seen(two_states: ToySet) -> None:
    generator = torch.Generator().manual_seed(4)
    half = halves(1200)
    current = start_refinement(two_states.images, half, near_truth(two_states, 0.0), 5, REFINE)
    maps = current.model.maps
    extra = torch.randn(2, *maps.joint.shape[1:], generator=generator)
    model = replace(
        current.model,
        maps=replace(
            maps,
            joint=torch.cat([maps.joint, extra]),
            halves=torch.stack([torch.cat([one, extra]) for one in maps.halves]),
            fsc=maps.fsc.expand(3, -1),
        ),
        priors=Priors(1.0, 0.1, torch.ones(2)),
    )
    states = replace(
        current.states, latents=torch.randn(1200, 2, generator=generator) @ torch.tensor([[2.0, 0], [1, 0.3]]) + 1
    )
    deviations = torch.full((1200, 8), 0.1)
    turned, moved = canonical(model, states, deviations)
    spread = torch.cov(moved.latents.T, correction=0)
    torch.testing.assert_close(moved.latents.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    assert float((spread - torch.diag(spread.diagonal())).abs().max()) < 0.02
    batch = two_states.images.batch(torch.arange(5), 8)
    rows = torch.arange(5)
    before = predicted(batch, replace(model).grids(8, joint=True)[0], states.take(rows))
    after = predicted(batch, turned.grids(8, joint=True)[0], moved.take(rows))
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max()))


def test_moments_and_priors_follow_their_definitions() -> None:
    states = ImageStates(
        torch.eye(3).repeat(2, 1, 1), torch.ones(2, 2), torch.tensor([2.0, 1.0]), torch.tensor([[3.0], [0.0]])
    )
    first, second = moments(states, torch.tensor([[[0.5]], [[1.0]]]))
    torch.testing.assert_close(first, torch.tensor([[2.0, 6.0], [1.0, 0.0]]))
    torch.testing.assert_close(second, torch.tensor([[4.0, 12.0, 38.0], [1.0, 0.0, 1.0]]))
    priors = updated_priors(Priors(9.0, 0.1, torch.ones(1)), states, torch.zeros(2, 7))
    assert priors.shift_std_px == pytest.approx(1.1)
    assert slice(6, None) == LATENTS
