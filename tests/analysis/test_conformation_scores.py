"""Scores of a conformational space: closed forms, and spaces that are perfect or know nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from cryofire.analysis.alignment import RigidTransform
from cryofire.analysis.conformation_scores import (
    TrueMap,
    fsc_area,
    masked_area,
    neighbourhood_similarity,
    state_distances,
)
from cryofire.analysis.map_alignment import transform_map

BOX = 32


def blobs(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    volume = np.zeros((BOX, BOX, BOX))
    volume[tuple((BOX // 2 + random.normal(0, 3, (3, 30))).round().astype(int))] = 1
    return gaussian_filter(volume, 1.5)


def circle(states: int) -> np.ndarray:
    step = np.abs(np.subtract.outer(np.arange(states), np.arange(states)))
    return np.minimum(step, states - step).astype(float)


def test_the_area_of_a_perfect_curve_is_nearly_a_half() -> None:
    assert fsc_area(np.ones(64), 128) == pytest.approx(63 / 128)
    assert fsc_area(np.array([0.2, 1.0, np.nan, 0.0]), 8) == pytest.approx(1.5 / 8)


def test_a_map_in_another_frame_is_compared_after_it_was_brought_back() -> None:
    truth = TrueMap.of(blobs(0), 4.0)
    turn = RigidTransform(Rotation.from_rotvec([0.05, -0.1, 0.08]).as_matrix(), np.array([1.5, -2.0, 1.0]))
    moved = transform_map(truth.volume, 4.0, turn)
    assert masked_area(truth.volume, truth) == pytest.approx((BOX / 2 - 1) / BOX)
    assert masked_area(moved, truth, turn.inverse()) == pytest.approx((BOX / 2 - 1) / BOX, abs=0.02)
    assert masked_area(moved, truth) < 0.35


def test_distances_between_maps_are_those_of_their_differences() -> None:
    first, second = blobs(0), blobs(1)
    found = state_distances([TrueMap.of(first, 4.0), TrueMap.of(second, 4.0)])
    assert found == pytest.approx(np.sqrt(np.mean((first - second) ** 2)) * np.array([[0, 1], [1, 0]]), abs=1e-6)


def test_a_circle_of_latents_in_order_has_all_its_neighbours() -> None:
    labels = np.arange(4000) % 100
    angle = 2 * np.pi * labels / 100
    latents = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert neighbourhood_similarity(latents, labels, circle(100)) == 1.0


def test_latents_that_know_nothing_have_neighbours_by_chance() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(4000) % 100
    found = neighbourhood_similarity(random.standard_normal((4000, 2)), labels, circle(100))
    assert found == pytest.approx(0.07, abs=0.01)  # 201 images are in seven states of 40


def test_a_folded_circle_has_half_of_its_neighbours() -> None:
    labels = np.arange(4000) % 100
    folded = np.abs(labels - 50)[:, None].astype(float)
    assert neighbourhood_similarity(folded, labels, circle(100)) == pytest.approx(0.5, abs=0.06)
