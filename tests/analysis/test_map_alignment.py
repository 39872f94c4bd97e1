"""Maps in other frames and on other grids agree with the analytic answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryofire.analysis.alignment import RigidTransform
from cryofire.analysis.map_alignment import (
    MapSampler,
    crop_or_pad,
    fourier_resize,
    match_grid,
    refine_map_alignment,
    transform_map,
)
from cryofire.analysis.metrics import geodesic_angle, map_correlation

PIXEL = 2.5


def hidden(seed: int, mirrored: bool, angle: float | None = None) -> RigidTransform:
    rng = np.random.default_rng(seed)
    rotation = Rotation.random(rng=rng) if angle is None else Rotation.from_rotvec(angle * np.array([0.6, -0.64, 0.48]))
    return RigidTransform(rotation.as_matrix(), rng.normal(0, 0.7 * PIXEL, 3), mirrored)


@pytest.mark.parametrize("box", [40, 41])
@pytest.mark.parametrize("mirrored", [False, True])
def test_moved_map_is_the_analytic_one(box: int, mirrored: bool, make_blobs: Callable[..., Any]) -> None:
    blobs = make_blobs(width=PIXEL, extent=11 * PIXEL, count=25)
    transform = hidden(1, mirrored)
    exact = blobs.moved(transform.matrix, transform.offset).volume(box, PIXEL)
    moved = transform_map(blobs.volume(box, PIXEL), PIXEL, transform)
    curve = map_correlation(moved, exact)
    assert curve[: int(0.8 * box / 2) + 1].min() > 0.99
    assert np.abs(moved - exact).max() < 0.02 * exact.max()


@pytest.mark.parametrize("box", [20, 21])
def test_identity_changes_nothing(box: int) -> None:
    volume = np.random.default_rng(2).standard_normal((box, box, box))
    inner = slice(1, -1)
    same = transform_map(volume, PIXEL, RigidTransform.identity())[inner, inner, inner]
    assert same == pytest.approx(volume[inner, inner, inner], abs=1e-9)


@pytest.mark.parametrize(("old", "new"), [(32, 48), (33, 48), (32, 51), (33, 51)])
def test_resizing_up_and_down_again_changes_nothing(old: int, new: int, make_blobs: Callable[..., Any]) -> None:
    volume = make_blobs(width=1.2).volume(old, 1.0)
    fine = fourier_resize(volume, new)
    assert fine[new // 2, new // 2, new // 2] == pytest.approx(volume[old // 2, old // 2, old // 2])
    assert fourier_resize(fine, old) == pytest.approx(volume, abs=1e-9)
    assert fine.mean() == pytest.approx(volume.mean())


@pytest.mark.parametrize(("old", "new"), [(8, 5), (8, 6), (9, 5), (9, 6), (5, 8), (6, 9)])
def test_cropping_keeps_the_origin(old: int, new: int) -> None:
    volume = np.zeros((old, old, old))
    volume[old // 2, old // 2, old // 2] = 1.0
    volume[old // 2, old // 2, old // 2 - 1] = 2.0
    result = crop_or_pad(volume, new)
    assert result[new // 2, new // 2, new // 2] == 1.0 and result[new // 2, new // 2, new // 2 - 1] == 2.0


@pytest.mark.parametrize(
    ("box", "pixel", "new_box", "new_pixel"),
    [(64, 1.25, 32, 2.5), (64, 1.25, 40, 2.5), (64, 1.25, 33, 2.37), (48, 2.5, 60, 2.1), (41, 2.0, 33, 2.51)],
)
def test_matching_a_grid_gives_the_analytic_map_on_it(
    box: int, pixel: float, new_box: int, new_pixel: float, make_blobs: Callable[..., Any]
) -> None:
    blobs = make_blobs(width=2.4, extent=18.0, count=20)
    result = match_grid(blobs.volume(box, pixel), pixel, new_box, new_pixel)
    curve = map_correlation(result, blobs.volume(new_box, new_pixel))
    limit = 0.8 * new_box * min(0.5, 0.5 * new_pixel / pixel)
    assert curve[: int(limit)].min() > 0.99


@pytest.mark.parametrize("box", [36, 37])
@pytest.mark.parametrize("mirrored", [False, True])
def test_fit_finds_a_hidden_rotation_and_offset(box: int, mirrored: bool, make_blobs: Callable[..., Any]) -> None:
    blobs = make_blobs(width=1.5 * PIXEL, extent=10 * PIXEL, count=20)
    truth = hidden(3, False, angle=0.12)
    start = RigidTransform(np.eye(3), np.zeros(3), mirrored)
    volume = blobs.moved(start.inverse().matrix, np.zeros(3)).volume(box, PIXEL)
    reference = -4.0 + 3.0 * blobs.moved(truth.matrix, truth.offset).volume(box, PIXEL)
    fit = refine_map_alignment(volume, reference, PIXEL, box // 2 - 4, start)
    assert geodesic_angle(fit.transform.rotation, truth.rotation) < 2e-3
    assert fit.transform.offset == pytest.approx(truth.offset, abs=0.02 * PIXEL)
    assert fit.transform.mirrored == mirrored
    assert fit.correlation > 0.999


def test_fit_never_ends_worse_than_it_started() -> None:
    volumes = [np.random.default_rng(seed).standard_normal((24, 24, 24)) for seed in (4, 5)]
    fit = refine_map_alignment(volumes[0], volumes[1], PIXEL, 8)
    sampler = MapSampler.of(volumes[0], PIXEL)
    assert np.isfinite(sampler.resample(fit.transform, 24, PIXEL)).all()
    assert -1.0 <= fit.correlation <= 1.0
