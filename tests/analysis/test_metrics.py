"""Scores: closed forms, symmetries and invariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cryofire.analysis.masks import soft_sphere
from cryofire.analysis.metrics import (
    calibration_coverage,
    confusion,
    direction_angle,
    geodesic_angle,
    map_correlation,
    masked_correlation,
    randomise_phases,
    resolution_at,
    shell_index,
    threshold_confusion,
)


def noise(box: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((box, box, box))


def direct_correlation(map_a: np.ndarray, map_b: np.ndarray) -> np.ndarray:
    """Readable twin of the correlation: the whole centred spectrum, shell by shell."""
    box = map_a.shape[0]
    spectra = [np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(one))) for one in (map_a, map_b)]
    k = np.arange(box) - box // 2
    radius = np.rint(np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2))
    curve = []
    for shell in range(1, (box - 1) // 2 + 1):
        a, b = (spectrum[radius == shell] for spectrum in spectra)
        curve.append(np.sum(a * b.conj()).real / np.sqrt(np.sum(np.abs(a) ** 2) * np.sum(np.abs(b) ** 2)))
    return np.array(curve)


@pytest.mark.parametrize("box", [12, 13])
def test_correlation_agrees_with_the_definition(box: int) -> None:
    map_a, map_b = noise(box, 1), noise(box, 2)
    map_b = map_b + 0.5 * map_a
    assert map_correlation(map_a, map_b)[1:] == pytest.approx(direct_correlation(map_a, map_b), abs=1e-6)


@pytest.mark.parametrize("box", [8, 9])
def test_shell_index_counts_every_coefficient_of_a_shell(box: int) -> None:
    shells = shell_index(box)
    assert shells[0, 0, 0] == 0 and shells[0, 0, 3] == 3 and shells[-1, 0, 0] == 1
    assert shells[2, 2, 1] == 3


def test_resolution_is_interpolated_between_shells() -> None:
    curve = np.array([1.0, 1.0, 0.8, 0.4, 0.1, 0.0])
    assert resolution_at(curve, 0.5, 100.0) == pytest.approx(100 / 2.75)
    assert resolution_at(curve, 0.143, 100.0) == pytest.approx(100 / (3 + (0.4 - 0.143) / 0.3))


def test_resolution_at_the_ends() -> None:
    assert resolution_at(np.ones(11), 0.5, 50.0) == 5.0
    assert resolution_at(np.array([0.0, 0.0, 0.9]), 0.5, 50.0) == pytest.approx(100.0)
    assert resolution_at(np.array([1.0, np.nan, np.nan]), 0.5, 50.0) == pytest.approx(100.0)
    given_curve = np.array([0.3, 0.9, 0.1])
    resolution_at(given_curve, 0.5, 50.0)
    assert given_curve[0] == 0.3


@settings(deadline=None, max_examples=30)
@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_a_stricter_threshold_never_gives_a_finer_resolution(one: float, other: float) -> None:
    curve = np.linspace(1.0, 0.0, 12)
    low, high = sorted((one, other))
    assert resolution_at(curve, low, 100.0) <= resolution_at(curve, high, 100.0)


@pytest.mark.parametrize("box", [16, 17])
def test_random_phases_keep_amplitudes_and_low_shells(box: int) -> None:
    volume = noise(box, 7)
    changed = randomise_phases(volume, 4, np.random.default_rng(8))
    curve = map_correlation(volume, changed)
    assert curve[:4] == pytest.approx(np.ones(4))
    assert np.abs(curve[5:]).max() < 0.5
    assert np.abs(np.fft.fftn(changed)) == pytest.approx(np.abs(np.fft.fftn(volume)), abs=1e-8)


def test_correction_removes_what_the_mask_correlates() -> None:
    box, edge_mask = 40, soft_sphere(40, 7.0, 1.0)
    object_only = noise(box, 9) * soft_sphere(box, 6.0, 1.0)
    frequency = np.fft.fftfreq(box, 1 / box)
    radius = np.sqrt(frequency[:, None, None] ** 2 + frequency[None, :, None] ** 2 + frequency[None, None, :] ** 2)
    signal = np.fft.ifftn(np.fft.fftn(object_only) * (radius < 9)).real
    level = 0.25 * signal.std()
    halves = [signal + level * noise(box, seed) for seed in (10, 11)]
    result = masked_correlation(halves[0], halves[1], edge_mask, np.random.default_rng(12))
    assert result.masked[4:8].min() > result.unmasked[4:8].min()
    assert np.abs(result.corrected[14:]).mean() < 0.12
    assert result.corrected[2:7].min() > 0.8
    assert result.corrected[: result.randomised_from + 2] == pytest.approx(result.masked[: result.randomised_from + 2])


def test_without_a_mask_the_correction_changes_little() -> None:
    signal = noise(32, 13)
    halves = [signal + 0.7 * noise(32, seed) for seed in (14, 15)]
    result = masked_correlation(halves[0], halves[1], np.ones((32, 32, 32)), np.random.default_rng(16))
    assert result.masked == pytest.approx(result.unmasked)
    assert result.corrected[6:] == pytest.approx(result.unmasked[6:], abs=0.12)


def test_angles_of_known_rotations() -> None:
    base = Rotation.random(50, rng=np.random.default_rng(17))
    for angle in (1e-7, 0.01, 1.0, 3.1):
        turned = Rotation.from_rotvec([0, 0, angle]) * base
        assert geodesic_angle(base.as_matrix(), turned.as_matrix()) == pytest.approx(angle, rel=1e-5)
        assert direction_angle(base.as_matrix(), turned.as_matrix()) == pytest.approx(0.0, abs=1e-12)
        tilted = Rotation.from_rotvec([angle, 0, 0]) * base
        assert direction_angle(base.as_matrix(), tilted.as_matrix()) == pytest.approx(angle, rel=1e-5)


def test_direction_is_never_further_than_the_whole_rotation() -> None:
    rng = np.random.default_rng(18)
    a, b = Rotation.random(300, rng=rng).as_matrix(), Rotation.random(300, rng=rng).as_matrix()
    assert np.all(direction_angle(a, b) <= geodesic_angle(a, b) + 1e-9)
    reference = (Rotation.from_matrix(a) * Rotation.from_matrix(b).inv()).magnitude()
    assert geodesic_angle(a, b) == pytest.approx(reference, abs=1e-6)


def test_confusion_does_not_depend_on_names() -> None:
    truth = np.array([0, 0, 0, 1, 1, 2])
    assert confusion(truth, np.array([7, 7, 7, 3, 3, 5])) == 0.0
    assert confusion(truth, np.array([1, 1, 0, 0, 0, 2])) == pytest.approx(1 / 6)
    assert confusion(truth, np.zeros(6, dtype=np.int64)) == pytest.approx(0.5)


def test_threshold_confusion_finds_the_best_cut_on_either_side() -> None:
    coordinate = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    assert threshold_confusion(coordinate, np.array([1, 1, 1, 2, 2])) == 0.0
    assert threshold_confusion(-coordinate, np.array([1, 1, 1, 2, 2])) == 0.0
    assert threshold_confusion(coordinate, np.array([1, 2, 1, 2, 2])) == pytest.approx(0.2)
    assert threshold_confusion(np.zeros(4), np.array([1, 2, 1, 1])) == pytest.approx(0.25)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_gaussian_errors_are_covered_as_stated(dimensions: int) -> None:
    rng = np.random.default_rng(19)
    deviations = rng.uniform(0.5, 2.0, 20000)
    errors = np.linalg.norm(rng.standard_normal((20000, dimensions)), axis=1) * deviations
    assert calibration_coverage(errors, deviations, dimensions) == pytest.approx((0.5, 0.9, 0.99), abs=0.012)
    confident = calibration_coverage(2 * errors, deviations, dimensions)
    assert confident[0] < 0.3 and confident[1] < 0.7
