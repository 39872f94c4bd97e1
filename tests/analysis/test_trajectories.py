"""Paths through latent space follow known curves from end to end, in order, and close where the curve does."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse.csgraph import dijkstra
from scipy.stats import spearmanr

from cryofire.analysis.trajectories import neighbour_graph, project_on_curve, resample_curve, ridge_path, walk_back


def arc(count: int, radius: float, angle: float, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    place = rng.uniform(0.0, angle, count)
    circle = radius * np.stack([np.cos(place), np.sin(place), 0.0 * place], axis=1)
    return circle + noise * rng.standard_normal((count, 3)), place


@pytest.mark.parametrize(("radius", "angle"), [(20.0, 1.0), (12.0, np.pi), (12.0, 1.5 * np.pi)])
def test_an_arc_is_followed_from_end_to_end(radius: float, angle: float) -> None:
    points, place = arc(1500, radius, angle, 1.0)
    path = ridge_path(points, 12)
    assert not path.is_closed and path.points.shape == (12, 3)
    assert np.linalg.norm(path.points[:, :2], axis=1) == pytest.approx(radius, abs=0.8)
    assert np.abs(path.points[:, 2]).max() < 0.8
    assert abs(spearmanr(path.positions, place).statistic) > 0.98
    assert path.length == pytest.approx(radius * angle, rel=0.12)


def test_a_circle_is_followed_all_around() -> None:
    points, place = arc(1500, 12.0, 2 * np.pi, 1.0)
    path = ridge_path(points, 12)
    assert path.is_closed
    assert path.length == pytest.approx(2 * np.pi * 12.0, rel=0.08)
    around = np.unwrap(np.arctan2(path.points[:, 1], path.points[:, 0]))
    steps = np.diff(around) * np.sign(around[-1] - around[0])
    assert steps == pytest.approx(2 * np.pi / 12, abs=0.2)
    difference = 2 * np.pi * path.positions * np.sign(around[-1] - around[0]) - place
    assert np.abs(np.mean(np.exp(1j * difference))) > 0.98


def test_an_elongated_cloud_is_followed_along_its_axis() -> None:
    points = np.random.default_rng(1).standard_normal((1500, 3)) * [1.0, 6.0, 1.0]
    path = ridge_path(points, 6)
    assert not path.is_closed
    assert abs(spearmanr(path.positions, points[:, 1]).statistic) > 0.98
    assert np.abs(path.points[:, [0, 2]]).max() < 1.2


def test_points_are_evenly_spaced_and_the_same_twice() -> None:
    points, _ = arc(800, 12.0, np.pi, 0.8)
    one, other = ridge_path(points, 9), ridge_path(points, 9)
    steps = np.linalg.norm(np.diff(one.points, axis=0), axis=1)
    assert steps == pytest.approx(steps.mean(), rel=0.05)
    assert np.array_equal(one.points, other.points)


@pytest.mark.parametrize("is_closed", [False, True])
def test_resampling_keeps_ends_and_length(is_closed: bool) -> None:
    square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    fine = resample_curve(square, 400 if is_closed else 301, is_closed)
    assert fine[0] == pytest.approx([0.0, 0.0])
    closing = [fine[0]] if is_closed else []
    whole = np.array([*fine, *closing])
    assert np.linalg.norm(np.diff(whole, axis=0), axis=1).sum() == pytest.approx(4.0 if is_closed else 3.0)


def test_projection_finds_place_and_distance() -> None:
    line = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0]])
    place, distance = project_on_curve(np.array([[1.0, 2.0], [9.0, 4.0], [-3.0, -4.0]]), line, is_closed=False)
    assert place == pytest.approx([0.125, 1.0, 0.0])
    assert distance == pytest.approx([2.0, 5.0, 5.0])
    place, _ = project_on_curve(np.array([[1.9, 2.1]]), line, is_closed=True)
    assert place == pytest.approx(8.0 / (8 + np.sqrt(32)) + 0.5 * np.sqrt(32) / (8 + np.sqrt(32)), abs=0.02)


def test_the_graph_prefers_many_short_steps() -> None:
    points = np.stack([np.arange(11.0), np.zeros(11)], axis=1)
    away, previous = dijkstra(neighbour_graph(points, 4), directed=False, indices=0, return_predecessors=True)
    assert walk_back(previous, 0, 10) == list(range(11))
    assert away[10] == pytest.approx(10.0)
