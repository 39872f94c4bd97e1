"""Mixtures, their modes, the ridges between them and the valleys on the way."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from cryofire.analysis.mixtures import density_modes, fit_mixture, shift_to_mean
from cryofire.analysis.modes import Landscape, separate_modes


def two_clouds(distance: float, count: int = 1500, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 2)) + distance * (rng.random(count) < 0.4)[:, None] * np.array([0.8, 0.6])


def test_the_criterion_finds_the_number_of_gaussians() -> None:
    assert fit_mixture(two_clouds(0.0)).n_components == 1
    assert fit_mixture(two_clouds(6.0)).n_components == 2


def test_mean_shift_climbs_the_density() -> None:
    mixture = fit_mixture(two_clouds(4.0))
    places = np.random.default_rng(1).uniform(-3, 6, (40, 2))
    before = mixture.score_samples(places)
    for _ in range(5):
        places = shift_to_mean(mixture, places)
    assert np.all(mixture.score_samples(places) >= before - 1e-9)


def test_modes_are_stationary_and_components_know_theirs() -> None:
    mixture = fit_mixture(two_clouds(6.0))
    modes, member = density_modes(mixture)
    assert len(modes) == 2 and sorted(member) == [0, 1]
    assert shift_to_mean(mixture, modes) == pytest.approx(modes, abs=1e-4)
    assert np.linalg.norm(modes[0] - modes[1]) == pytest.approx(6.0, abs=0.3)


def test_two_components_of_one_cloud_have_one_mode() -> None:
    mixture = GaussianMixture(2, random_state=0).fit(two_clouds(1.0))
    assert len(density_modes(mixture)[0]) == 1


def test_a_ridge_follows_a_bend() -> None:
    rng = np.random.default_rng(2)
    angle = rng.uniform(0.0, np.pi, 2500)
    points = 10.0 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + rng.standard_normal((2500, 2))
    landscape = Landscape.of(fit_mixture(points), points)
    path = landscape.ridge(np.array([10.0, 0.0]), np.array([-10.0, 0.0]))
    assert np.abs(np.linalg.norm(path, axis=1) - 10.0).max() < 1.0
    assert path[len(path) // 2, 1] > 9.0
    passage = landscape.passage(path[0], path[-1], np.ones(2500, dtype=bool))
    assert not passage.is_blocked(min(passage.peaks))


@pytest.mark.parametrize(("distance", "is_valley"), [(3.0, False), (6.0, True)])
def test_valleys_are_seen_where_they_are(distance: float, is_valley: bool) -> None:
    points = two_clouds(distance, 3000)
    landscape = Landscape.of(GaussianMixture(2, random_state=0).fit(points), points)
    passage = landscape.passage(np.zeros(2), distance * np.array([0.8, 0.6]), np.ones(3000, dtype=bool))
    assert passage.is_blocked(min(passage.peaks)) == is_valley


def test_a_valley_of_the_mixture_alone_is_not_enough() -> None:
    points = np.random.default_rng(3).uniform(0.0, 12.0, (2000, 1)) * [1.0, 0.0] + two_clouds(0.0, 2000)
    wrong = GaussianMixture(2)
    wrong.weights_, wrong.means_ = np.array([0.5, 0.5]), np.array([[2.0, 0.0], [10.0, 0.0]])
    wrong.covariances_ = wrong.precisions_ = wrong.precisions_cholesky_ = np.tile(np.eye(2), (2, 1, 1))
    ends = np.array([2.0, 0.0]), np.array([10.0, 0.0])
    passage = Landscape.of(wrong, points).passage(*ends, np.ones(2000, dtype=bool))
    assert passage.saddle < min(passage.peaks) - 2.0
    assert passage.count_ratio > 0.7
    assert not passage.is_blocked(min(passage.peaks))


def test_the_profile_counts_points_for_a_unit_of_length() -> None:
    points = np.random.default_rng(5).uniform(0.0, 12.0, (3000, 1)) * [1.0, 0.0]
    landscape = Landscape.of(GaussianMixture(1).fit(points + two_clouds(0.0, 3000)), points)
    profile, width = landscape.profile(np.linspace([3.0, 0.0], [9.0, 0.0], 25), np.ones(3000, dtype=bool))
    assert profile == pytest.approx(250.0, rel=0.25)
    assert width == pytest.approx(2 * np.sqrt(np.pi) * 0.45)


def test_a_thin_bridge_does_not_join_two_clusters() -> None:
    rng = np.random.default_rng(6)
    points = rng.standard_normal((3000, 2)) + 12.0 * (rng.random(3000) < 0.2)[:, None] * [1.0, 0.0]
    points[:60, 0] = rng.uniform(0.0, 12.0, 60)
    labels = separate_modes(points)
    assert labels.max() == 1
    assert np.mean(labels[points[:, 0] < 3.0] == 0) > 0.99
    assert np.mean(labels[points[:, 0] > 9.0] == 1) > 0.99


def test_labels_are_ordered_by_size_and_small_modes_absorbed() -> None:
    rng = np.random.default_rng(4)
    points = np.concatenate([rng.normal(0, 1, (300, 2)), rng.normal(9, 1, (900, 2)), rng.normal(-9, 0.1, (5, 2))])
    labels = separate_modes(points)
    assert set(labels) == {0, 1}
    assert np.mean(labels[300:1200] == 0) == 1.0 and np.mean(labels[:300] == 1) > 0.99
    assert np.all(labels[1200:] == 1)
