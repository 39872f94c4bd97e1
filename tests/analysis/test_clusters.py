"""Robust clusters equal plain Gaussians on Gaussian data, resist outliers, and give calibrated memberships."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from cryofire.analysis.clusters import Cluster, membership, robust_cluster, separation

COVARIANCE = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, 0.2], [0.0, 0.2, 0.5]])


def sample(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).multivariate_normal([1.0, -2.0, 0.5], COVARIANCE, count)


def covariance(cluster: Cluster) -> np.ndarray:
    return (cluster.axes.T * cluster.variances) @ cluster.axes


def test_density_is_the_gaussian_of_the_textbook() -> None:
    cluster = robust_cluster(sample(500, 0), 0.3)
    points, extra = sample(20, 1), np.full(20, 0.7)
    for added, given in ((np.zeros(20), None), (extra, extra)):
        expected = [
            multivariate_normal(cluster.mean, covariance(cluster) + one * np.eye(3)).logpdf(point)
            for point, one in zip(points, added, strict=True)
        ]
        assert cluster.log_density(points, given) == pytest.approx(np.log(0.3) + np.array(expected))


def test_trimming_is_unbiased_for_a_gaussian() -> None:
    cluster = robust_cluster(sample(40000, 2), 1.0)
    assert cluster.mean == pytest.approx([1.0, -2.0, 0.5], abs=0.03)
    assert covariance(cluster) == pytest.approx(COVARIANCE, abs=0.06)


def test_outliers_hardly_move_a_cluster() -> None:
    points = np.concatenate([sample(2000, 3), np.random.default_rng(4).uniform(-60, 60, (60, 3))])
    cluster = robust_cluster(points, 1.0)
    assert cluster.mean == pytest.approx([1.0, -2.0, 0.5], abs=0.1)
    assert covariance(cluster) == pytest.approx(COVARIANCE, abs=0.25)


def test_few_or_equal_points_keep_a_finite_cluster() -> None:
    for points in (np.zeros((30, 2)), np.array([[0.0, 1.0], [1.0, 0.0]])):
        cluster = robust_cluster(points, 0.5)
        assert np.isfinite(cluster.log_density(points)).all()


def test_membership_is_calibrated() -> None:
    rng = np.random.default_rng(5)
    labels = (rng.random(20000) < 0.25).astype(int)
    points = rng.standard_normal((20000, 1)) + 2.0 * labels[:, None]
    clusters = [Cluster(np.array([2.0 * one]), np.eye(1), np.ones(1), (0.75, 0.25)[one]) for one in (0, 1)]
    probability = membership(points, clusters, np.zeros(20000))
    assert probability.sum(axis=1) == pytest.approx(1.0)
    for low in (0.1, 0.4, 0.7):
        chosen = (probability[:, 1] > low) & (probability[:, 1] < low + 0.2)
        assert labels[chosen].mean() == pytest.approx(probability[chosen, 1].mean(), abs=0.04)


def test_far_points_still_have_finite_memberships() -> None:
    clusters = [Cluster(np.array([one]), np.eye(1), np.ones(1), 0.5) for one in (0.0, 3.0)]
    assert membership(np.array([[1e6]]), clusters, np.zeros(1)) == pytest.approx(np.array([[0.0, 1.0]]))


def test_separation_is_the_smallest_distance_in_widths() -> None:
    clusters = [Cluster(np.array([x, 0.0]), np.eye(2), np.array([v, 9.0]), 1 / 3) for x, v in ((0, 1), (8, 1), (20, 9))]
    assert separation(clusters) == pytest.approx(12.0 / 2.0)
    assert separation(clusters[:2]) == pytest.approx(8.0)
    assert separation(clusters[:1]) == 0.0
