"""Masks: analytic volumes, invariances, what they keep and what they leave out."""

from __future__ import annotations

import numpy as np
import pytest

from cryofire.analysis.masks import (
    automatic_mask,
    cosine_falloff,
    density_threshold,
    low_pass,
    main_body,
    radius_grid,
    soft_sphere,
)
from cryofire.errors import ImageError


def ball(box: int, centre: tuple[float, float, float], radius: float) -> np.ndarray:
    z, y, x = np.meshgrid(*[np.arange(box) - box // 2] * 3, indexing="ij")
    return ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 <= radius**2).astype(np.float64)


@pytest.mark.parametrize("box", [16, 17])
def test_origin_is_at_half_the_box(box: int) -> None:
    radius = radius_grid(box)
    assert radius[box // 2, box // 2, box // 2] == 0
    assert radius[0, box // 2, box // 2] == box // 2


def test_cosine_falloff_is_one_half_in_the_middle_and_monotonic() -> None:
    assert cosine_falloff(np.array([-1.0, 0.0, 2.0, 4.0, 9.0]), 4.0) == pytest.approx([1, 1, 0.5, 0, 0])
    assert np.all(np.diff(cosine_falloff(np.linspace(-1, 5, 50), 4.0)) <= 0)
    assert cosine_falloff(np.array([-0.1, 0.1]), 0.0).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("box", [40, 41])
def test_soft_sphere_has_the_volume_of_the_integral(box: int) -> None:
    radius, edge = 9.0, 6.0
    fine = np.linspace(0, radius + edge, 20001)
    expected = np.trapezoid(4 * np.pi * fine**2 * cosine_falloff(fine - radius, edge), fine)
    assert soft_sphere(box, radius, edge).sum() == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("box", [24, 25])
def test_low_pass_keeps_low_and_removes_high_waves(box: int) -> None:
    x = np.arange(box) - box // 2
    slow = np.broadcast_to(np.cos(2 * np.pi * 3 * x / box), (box, box, box))
    fast = np.broadcast_to(np.cos(2 * np.pi * 9 * x / box), (box, box, box))
    assert low_pass(slow + fast, 5.0) == pytest.approx(slow, abs=1e-12)


def test_density_threshold_separates_two_levels() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(0, 0.1, 9000), rng.normal(1, 0.1, 1000)])
    assert 0.3 < density_threshold(values) < 0.7


def test_main_body_drops_islands_and_keeps_domains() -> None:
    body, domain, dust = ball(40, (0, 0, 0), 6), ball(40, (12, 0, 0), 4), ball(40, (-15, 0, 0), 1.5)
    kept = main_body((body + domain + dust) > 0)
    assert np.array_equal(kept, (body + domain) > 0)
    assert not main_body(np.zeros((4, 4, 4), dtype=bool)).any()


@pytest.mark.parametrize("box", [40, 41])
def test_automatic_mask_covers_the_molecule_and_follows_it(box: int) -> None:
    rng = np.random.default_rng(2)
    molecule = ball(box, (5, 0, 0), 5) + ball(box, (-5, 3, 0), 4)
    mask = automatic_mask(molecule + 0.1 * rng.standard_normal(molecule.shape), 4.0)
    assert mask[molecule > 0].min() > 0.99
    assert mask.min() == 0.0 and mask.max() == 1.0
    far = ball(box, (0, 0, 0), 19) == 0
    assert mask[far].max() == 0.0


def test_automatic_mask_does_not_depend_on_scale_or_offset() -> None:
    molecule = ball(32, (2, 1, 0), 6)
    assert automatic_mask(1000 * molecule - 50, 4.0) == pytest.approx(automatic_mask(molecule, 4.0))


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_map_without_molecule_is_refused(value: float) -> None:
    with pytest.raises(ImageError, match="constant or not finite"):
        automatic_mask(np.full((8, 8, 8), value), 4.0)
