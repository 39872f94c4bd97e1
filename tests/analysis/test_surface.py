"""Surfaces of analytic bodies: depth, normals, handedness of the view, shading."""

from __future__ import annotations

import numpy as np
import pytest

from cryofire.analysis.masks import radius_grid
from cryofire.analysis.surface import (
    Surface,
    compose,
    principal_view,
    reduce_picture,
    shade,
    trace_surface,
    view_grid,
)


def body(box: int, centre: tuple[float, float, float], axes: tuple[float, float, float]) -> np.ndarray:
    """A soft ellipsoid, above 0 inside; centre and axes (x, y, z)."""
    z, y, x = np.meshgrid(*[np.arange(box, dtype=np.float64) - box // 2] * 3, indexing="ij")
    scaled = [(one - c) / a for one, c, a in zip((x, y, z), centre, axes, strict=True)]
    return 1.0 - np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)


@pytest.mark.parametrize("box", [40, 41])
def test_a_ball_has_its_depth_and_its_normals(box: int) -> None:
    radius, half_width, samples, pixels = 10.0, 15.0, 61, 91
    grid = view_grid(10.0 - radius_grid(box), np.eye(3), half_width, samples)
    surface = trace_surface(grid, 0.0, pixels)
    step = 2 * half_width / (samples - 1)
    place = np.linspace(-half_width, half_width, pixels)
    x, y = np.meshgrid(place, -place)
    inner = np.hypot(x, y) < 0.85 * radius
    height = np.sqrt(radius**2 - np.hypot(x, y)[inner] ** 2)
    assert surface.visible[inner].all() and not surface.visible[np.hypot(x, y) > radius + step].any()
    assert (half_width - surface.depth[inner] * step) == pytest.approx(height, abs=0.15)
    expected = np.stack([x[inner], y[inner], height], axis=-1) / radius
    assert np.sum(surface.normals[inner] * expected, axis=-1).min() > 0.99


def test_right_is_x_up_is_y_and_near_is_z() -> None:
    volume = np.maximum.reduce([body(40, place, (4, 4, 4)) for place in ((12.0, 0, 0), (0, 12.0, 0), (0, 0, 12.0))])
    surface = trace_surface(view_grid(volume, np.eye(3), 18.0, 73), 0.0, 73)
    assert surface.visible[36, 36 + 24] and not surface.visible[36, 36 - 24]
    assert surface.visible[36 - 24, 36] and not surface.visible[36 + 24, 36]
    assert surface.depth[36, 36] < surface.depth[36, 36 + 24] - 5


def test_a_view_is_a_rotation_of_the_volume() -> None:
    turn = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])  # z comes to the right
    surface = trace_surface(view_grid(body(40, (0, 0, 12), (4, 4, 4)), turn, 18.0, 73), 0.0, 73)
    assert surface.visible[36, 36 + 24] and not surface.visible[36, 36]


def test_a_level_above_the_map_shows_nothing() -> None:
    surface = trace_surface(view_grid(body(20, (0, 0, 0), (6, 6, 6)), np.eye(3), 9.0, 21), 2.0, 40)
    assert not surface.visible.any()
    assert np.isfinite(shade(surface, (0.2, 0.4, 0.6), 2.0)).all()


def test_faces_towards_the_light_are_brighter() -> None:
    surface = trace_surface(view_grid(10.0 - radius_grid(40), np.eye(3), 15.0, 61), 0.0, 122)
    bright = shade(surface, (0.5, 0.5, 0.5), 2.0).mean(axis=-1)
    upper_left, lower_right = bright[40, 40], bright[82, 82]
    assert upper_left > 1.5 * lower_right
    assert bright.min() >= 0.0 and bright.max() <= 1.0


def test_layers_cover_only_where_they_are_visible() -> None:
    depth = np.array([[1.0, np.inf]])
    surface = Surface(depth, np.zeros((1, 2, 3)))
    covered = compose(np.ones((1, 2, 3)), surface, np.zeros((1, 2, 3)), 0.75)
    assert covered[0, 0].tolist() == [0.25] * 3 and covered[0, 1].tolist() == [1.0] * 3


def test_reduction_keeps_the_mean() -> None:
    picture = np.random.default_rng(0).random((6, 9, 3))
    small = reduce_picture(picture, 3)
    assert small.shape == (2, 3, 3)
    assert small.mean() == pytest.approx(picture.mean())


def test_principal_view_lays_the_longest_axis_across_and_the_shortest_in_depth() -> None:
    volume = body(48, (0, 0, 0), (5, 10, 16))
    rotation, half_width = principal_view(volume, 0.0)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    assert np.abs(rotation) == pytest.approx(np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]]), abs=0.05)
    assert 16 <= half_width <= 21
    assert principal_view(volume, 5.0)[0] == pytest.approx(np.eye(3))
