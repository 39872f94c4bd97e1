"""Latent spaces with a known content are recognised, whatever their scale; ambiguous ones are not over-interpreted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryofire.analysis.latent_space import LatentDescription, describe_latent_space, principal_components
from cryofire.analysis.metrics import confusion


def cloud(count: int, seed: int, components: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, components))


def labelled(count: int, weights: list[float], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(weights), count, p=weights)


def described(points: np.ndarray) -> LatentDescription:
    """Points given in units of their uncertainty, described in units of their own."""
    units = np.array([3.0, 0.2, 7.0, 1.0])[: points.shape[1]]
    return describe_latent_space(points * units, np.ones_like(points) * units)


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("width", [0.6, 1.0, 1.8])
def test_one_gaussian_is_unresolved(components: int, width: float) -> None:
    points = width * cloud(2000, 1, components)
    result = described(points)
    assert result.kind == "unresolved" and result.centers.shape == (1, components)
    assert result.spread == pytest.approx(width, rel=0.1)
    assert np.all(result.labels == 0) and np.all(result.probabilities == 1.0) and result.weights.tolist() == [1.0]


def test_a_cloud_far_narrower_than_the_uncertainty_is_homogeneous() -> None:
    assert described(0.1 * cloud(2000, 1, 2)).kind == "homogeneous"


@pytest.mark.parametrize("components", [1, 4])
def test_two_clusters_of_ninety_and_ten(components: int) -> None:
    labels = labelled(2500, [0.9, 0.1], 2)
    points = cloud(2500, 3, components)
    points[:, 0] += 7.0 * labels
    result = described(points)
    assert result.kind == "discrete" and len(result.centers) == 2
    assert confusion(labels, result.labels) < 2e-3
    assert result.weights == pytest.approx([0.9, 0.1], abs=0.02)
    assert result.separation == pytest.approx(7.0, rel=0.08)
    assert result.centers[:, 0] / 3.0 == pytest.approx([0.0, 7.0], abs=0.25)


@pytest.mark.parametrize("seed", [4, 40])
def test_a_minority_of_three_percent_is_found(seed: int) -> None:
    labels = labelled(3000, [0.97, 0.03], seed)
    points = cloud(3000, seed + 1) + 7.0 * labels[:, None] * [0.6, 0.0, 0.8]
    result = described(points)
    assert result.kind == "discrete" and confusion(labels, result.labels) < 3e-3


def test_four_clusters() -> None:
    labels = labelled(3000, [0.4, 0.3, 0.2, 0.1], 6)
    places = 5.5 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, 0, 1]])
    result = described(cloud(3000, 7) + places[labels])
    assert result.kind == "discrete" and len(result.centers) == 4
    assert confusion(labels, result.labels) < 5e-3
    assert np.all(np.diff(result.weights) < 0)


@pytest.mark.parametrize("radius", [7.0, 16.0])
def test_a_ring_is_one_closed_motion(radius: float) -> None:
    angle = np.random.default_rng(8).uniform(0, 2 * np.pi, 1500)
    points = cloud(1500, 9, 2)
    points[:, :2] += radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    result = described(points)
    assert result.kind == "continuous" and result.path is not None and result.path.is_closed
    units = np.array([3.0, 0.2])
    assert np.linalg.norm(result.path.points / units, axis=1) == pytest.approx(radius, rel=0.15)
    assert result.path.length == pytest.approx(2 * np.pi * radius, rel=0.15)
    assert result.path.share() == pytest.approx(np.full(6, 1 / 6), abs=0.06)
    stations = np.exp(1j * angle)
    spread = [np.abs(np.mean(stations[result.labels == one])) for one in range(len(result.centers))]
    assert len(spread) == 5 and min(spread) > 0.85


@pytest.mark.parametrize("length", [15.0, 60.0])
def test_a_line_is_an_open_motion_with_stations_in_order(length: float) -> None:
    place = np.random.default_rng(10).uniform(0, length, 2500)
    points = cloud(2500, 11)
    points[:, 1] += place
    result = described(points)
    assert result.kind == "continuous" and result.path is not None and not result.path.is_closed
    along = np.corrcoef(result.path.positions, place)[0, 1]
    assert abs(along) > 0.97
    ends = result.path.points[[0, -1], 1] / 0.2
    assert np.sort(ends) == pytest.approx([0.03 * length, 0.97 * length], abs=0.6 + 0.03 * length)
    assert np.diff(result.path.points[:, 1]) == pytest.approx(np.diff(ends * 0.2)[0] / 5, rel=0.1)
    means = [place[result.labels == one].mean() for one in range(len(result.centers))]
    assert np.all(np.diff(means) > 0) or np.all(np.diff(means) < 0)
    assert result.spread > 3.0


@pytest.mark.parametrize("freedom", [2.0, 4.0])
def test_heavy_tails_are_not_split(freedom: float) -> None:
    tails = np.sqrt(np.random.default_rng(12).chisquare(freedom, (2500, 1)) / freedom)
    assert described(cloud(2500, 13) / tails).kind == "unresolved"


def test_a_skewed_cloud_is_not_split() -> None:
    points = cloud(2500, 14)
    points[:, 0] = np.exp(0.7 * points[:, 0])
    assert described(points).kind == "unresolved"


def test_clusters_that_overlap_without_a_valley_are_one() -> None:
    labels = labelled(2500, [0.5, 0.5], 15)
    assert described(cloud(2500, 16) + 1.8 * labels[:, None] * [1.0, 0.0, 0.0]).kind == "unresolved"


def test_rotating_the_latent_space_changes_nothing() -> None:
    labels = labelled(2000, [0.8, 0.2], 17)
    points = cloud(2000, 18) + 8.0 * labels[:, None] * [1.0, 0.0, 0.0]
    turned = points @ Rotation.random(rng=np.random.default_rng(19)).as_matrix()
    deviations = np.ones_like(points)
    one, other = (describe_latent_space(each, deviations) for each in (points, turned))
    assert np.mean(one.labels == other.labels) > 0.999


def test_uncertain_particles_are_assigned_with_less_confidence() -> None:
    labels = labelled(2500, [0.5, 0.5], 20)
    deviations = np.where(np.arange(2500) < 200, 4.0, 1.0)[:, None] * np.ones((2500, 2))
    points = deviations * cloud(2500, 21, 2)
    points[:, 0] += 8.0 * labels
    result = describe_latent_space(points, deviations)
    assert result.kind == "discrete"
    assert result.probabilities[:200].mean() < 0.97 and result.probabilities[200:].mean() > 0.995
    wrong = min(np.mean(result.labels[:200] != labels[:200]), np.mean(result.labels[:200] == labels[:200]))
    assert np.mean(1.0 - result.probabilities[:200]) == pytest.approx(wrong, abs=0.08)


def test_a_state_of_less_certain_particles_is_found() -> None:
    """A third of the particles, with less mass than the others, of whose latents less is known."""
    labels = labelled(2000, [0.67, 0.33], 5)
    deviations = np.where(labels == 1, 4.3, 1.0)[:, None]
    points = 45.0 * labels[:, None] + deviations * cloud(2000, 6, 1)
    result = describe_latent_space(points, deviations)
    assert result.kind == "discrete" and len(result.centers) == 2
    assert confusion(labels, result.labels) < 1e-3


def test_particles_without_latents_have_no_place_on_the_path() -> None:
    points = cloud(1500, 30, 2)
    points[:, 0] += np.random.default_rng(31).uniform(0, 40, 1500)
    points[3] = np.nan
    path = describe_latent_space(points, np.ones_like(points), path_points=4).path
    assert path is not None and len(path.points) == 4
    assert np.flatnonzero(np.isnan(path.positions)).tolist() == [3]
    assert path.share().sum() == pytest.approx(1.0)
    nearest = np.argmin(np.linalg.norm(points[np.isfinite(points[:, 0]), None] - path.points, axis=2), axis=1)
    assert path.share() == pytest.approx(np.bincount(nearest, minlength=4) / 1499, abs=0.04)


def test_only_motions_have_a_path() -> None:
    labels = labelled(1500, [0.5, 0.5], 32)
    for points in (cloud(1500, 33), cloud(1500, 33) + 8.0 * labels[:, None] * [1.0, 0.0, 0.0]):
        assert described(points).path is None


def test_rows_without_latents_get_probability_zero() -> None:
    labels = labelled(1500, [0.7, 0.3], 22)
    points = cloud(1500, 23) + 9.0 * labels[:, None] * [1.0, 0.0, 0.0]
    points[:7] = np.nan
    for shape in (points, points - 9.0 * labels[:, None] * [1.0, 0.0, 0.0]):
        result = describe_latent_space(shape, np.ones_like(shape))
        assert np.all(result.probabilities[:7] == 0.0) and np.all(result.labels[:7] == 0)
        assert np.isfinite(result.centers).all() and result.weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "latents", [np.zeros((100, 0)), np.zeros((100, 2)), np.full((100, 2), np.nan), np.ones((3, 2))]
)
def test_latent_spaces_with_nothing_in_them_are_homogeneous(latents: np.ndarray) -> None:
    result = describe_latent_space(latents, np.ones_like(latents))
    assert result.kind == "homogeneous" and result.centers.shape == (1, latents.shape[1])
    assert np.isfinite(result.centers).all()


def test_principal_components_are_those_of_the_covariance() -> None:
    points = cloud(5000, 24) * [1.0, 4.0, 2.0] + [5.0, 0.0, -1.0]
    found = principal_components(points)
    assert found.axes @ found.axes.T == pytest.approx(np.eye(3), abs=1e-12)
    assert np.sqrt(found.variances) == pytest.approx([4.0, 2.0, 1.0], rel=0.05)
    coordinates = found.coordinates(points)
    assert coordinates.mean(axis=0) == pytest.approx(np.zeros(3), abs=1e-9)
    assert np.var(coordinates, axis=0) == pytest.approx(found.variances)
    assert coordinates @ found.axes + found.mean == pytest.approx(points)
