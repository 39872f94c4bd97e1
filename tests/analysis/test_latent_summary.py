from __future__ import annotations

import numpy as np
import pytest

from cryofire.analysis.latent_space import describe_latent_space
from cryofire.analysis.latent_summary import LatentSummary, summarise_latents


def three_states(count: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    label = rng.choice(3, count, p=[0.6, 0.3, 0.1])
    deviations = np.array([0.1, 0.3]) * rng.uniform(0.9, 1.1, (count, 1))
    centers = np.array([[0.0, 0.0], [1.2, 0.5], [-0.2, 3.0]])
    return centers[label] + deviations * rng.standard_normal((count, 2)), deviations


def summary_of(latents: np.ndarray, deviations: np.ndarray) -> LatentSummary:
    described = describe_latent_space(latents, deviations)
    return summarise_latents(latents, deviations, described.labels, described.kind, described.centers)


def test_states_of_the_training_set_come_back() -> None:
    latents, deviations = three_states()
    described = describe_latent_space(latents, deviations)
    assert described.kind == "discrete"
    labels, probability = summary_of(latents, deviations).states(latents, deviations)
    assert (labels == described.labels).mean() > 0.998
    assert np.abs(probability - described.probabilities).mean() < 0.01


def test_stations_of_a_motion_come_back_nearly() -> None:
    rng = np.random.default_rng(1)
    place = rng.uniform(0, 3, 3000)
    deviations = np.full((3000, 2), 0.05)
    latents = np.stack([place, 0.3 * np.sin(place)], axis=1) + deviations * rng.standard_normal((3000, 2))
    described = describe_latent_space(latents, deviations)
    assert described.kind == "continuous"
    labels, probability = summary_of(latents, deviations).states(latents, deviations)
    assert (labels == described.labels).mean() > 0.85
    assert np.all(np.abs(labels - described.labels) <= 1)
    assert np.all((probability > 0) & (probability <= 1))


def test_a_particle_between_two_states_is_unsure_and_a_missing_one_has_none() -> None:
    latents, deviations = three_states()
    summary = summary_of(latents, deviations)
    between = summary.centers[:2].mean(axis=0)
    points = np.stack([summary.centers[0], between, np.array([np.nan, 0.0])])
    labels, probability = summary.states(points, np.full((3, 2), [0.6, 1.8]))
    assert probability[0] > probability[1]
    assert (labels[2], probability[2]) == (0, 0.0)


def test_one_state_is_certain() -> None:
    nothing = np.zeros((50, 0))
    summary = summarise_latents(nothing, nothing, np.zeros(50, dtype=np.int64), "homogeneous", np.zeros((1, 0)))
    labels, probability = summary.states(np.zeros((4, 0)), np.zeros((4, 0)))
    assert labels.tolist() == [0] * 4
    assert probability.tolist() == [1.0] * 4
    assert summary.distance(np.zeros((2, 0))).tolist() == [0.0, 0.0]


def test_distance_is_measured_in_posterior_deviations() -> None:
    latents, deviations = three_states()
    summary = summary_of(latents, deviations)
    assert summary.distance(latents).max() == pytest.approx(0.0, abs=4.0)
    assert np.mean(summary.distance(latents) > 0) < 0.005
    far = summary.distance(np.array([[10.0, 0.0], [100.0, 0.0], [0.0, -30.0]]))
    np.testing.assert_allclose(far, [86, 985, 99], rtol=0.05)


def test_paths_between_neighbours_stay_in_the_cloud() -> None:
    rng = np.random.default_rng(2)
    cloud = rng.standard_normal((2000, 3))
    summary = summarise_latents(
        cloud, np.full((2000, 3), 0.4), np.zeros(2000, dtype=int), "homogeneous", np.zeros((1, 3))
    )
    start, end = np.array([-1.5, 0.0, 0.0]), np.array([1.5, 0.2, 0.0])
    points, is_joined = summary.path(start, end, 11)
    assert is_joined
    np.testing.assert_allclose(points[[0, -1]], [start, end], atol=1e-9)
    assert np.linalg.norm(points[:, 1:], axis=1).max() < 1.0
