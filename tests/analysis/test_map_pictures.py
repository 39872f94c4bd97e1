"""Pictures of maps: comparable scales, differences where they are, honest scale bars."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.image import imread

from cryofire.analysis.map_pictures import (
    difference_level,
    difference_pictures,
    image_picture,
    jpeg_bytes,
    make_scene,
    slice_limits,
    slice_picture,
    smooth_difference,
    state_colour,
    surface_pictures,
    with_scale_bar,
)

BOX, PIXEL = 32, 4.0


def blob(x: float, y: float, z: float, width: float = 3.0) -> np.ndarray:
    axis = np.arange(BOX) - BOX // 2
    grid = np.meshgrid(axis, axis, axis, indexing="ij")
    return np.exp(-((grid[2] - x) ** 2 + (grid[1] - y) ** 2 + (grid[0] - z) ** 2) / (2 * width**2)).astype(np.float32)


BODY = blob(-5, 0, 0, 4) + blob(4, 0, 0, 4)


def test_maps_are_brought_to_one_scale() -> None:
    scene = make_scene([BODY, 7.0 * BODY], [None, None], PIXEL)
    assert scene.volumes[1] == pytest.approx(scene.volumes[0], abs=1e-4)
    assert 0 < scene.level < BODY.max()


def test_islands_are_hidden() -> None:
    scene = make_scene([BODY + blob(0, 13, 0, 1.0)], [None], PIXEL)
    half = len(scene.volumes[0]) // 2
    assert scene.volumes[0][half, half + 26, half] < scene.level


def test_equal_maps_have_no_difference_to_show() -> None:
    scene = make_scene([BODY, 2.0 * BODY], [20.0, 20.0], PIXEL)
    assert difference_level(scene, smooth_difference(scene, 1, 0)) is None


def test_a_moved_domain_is_blue_where_it_went_and_orange_where_it_was() -> None:
    body = 1.6 * (blob(-9, 0, 0) + blob(-3, 0, 0) + blob(4, 0, 0) + blob(10, 0, 0))
    scene = make_scene([body + blob(4, 7, 0), body + blob(4, -7, 0)], [14.0, 14.0], PIXEL)
    assert difference_level(scene, smooth_difference(scene, 1, 0)) is not None
    more_blue = [picture[..., 2] - picture[..., 0] for picture in difference_pictures(scene, 1, 0, 90)]
    assert max(one.max() for one in more_blue) > 0.25 and min(one.min() for one in more_blue) < -0.25
    blue, orange = np.argwhere(more_blue[0] > 0.2).mean(axis=0), np.argwhere(more_blue[0] < -0.2).mean(axis=0)
    assert np.linalg.norm(blue - orange) > 15


def test_surfaces_have_the_colour_of_their_state_on_white() -> None:
    scene = make_scene([BODY], [None], PIXEL)
    for picture in surface_pictures(scene, 0, state_colour(0), 60):
        assert picture.shape == (60, 60, 3)
        assert picture[0, 0].tolist() == [1.0, 1.0, 1.0]
        middle = picture[30, 30]
        assert middle[2] > middle[1] > middle[0]


def test_state_colours_are_distinct() -> None:
    colours = [state_colour(index) for index in range(8)]
    assert min(np.linalg.norm(np.subtract(a, b)) for i, a in enumerate(colours) for b in colours[:i]) > 0.12
    assert state_colour(8) == state_colour(0)


def test_slices_show_the_plane_through_the_origin_with_the_second_axis_up() -> None:
    volume = blob(6, 0, 0, 2) + blob(0, 8, 0, 2)
    picture = slice_picture(volume, 0, (0.0, 1.0), 64)
    assert picture[32, 32 + 12, 0] < 0.3 and picture[32 - 16, 32, 0] < 0.35
    assert picture[32 + 16, 32, 0] > 0.9
    low, high = slice_limits(volume)
    assert low == pytest.approx(0.0, abs=0.01) and 0.7 < high <= volume.max()


def test_scale_bar_has_the_length_it_says() -> None:
    picture, length = with_scale_bar(np.ones((90, 90, 3)), 3.0)
    assert length == 50
    assert int((picture[..., 0].min(axis=0) < 0.5).sum()) == pytest.approx(50 / 3.0, abs=1)


def test_images_keep_their_orientation() -> None:
    image = np.zeros((10, 10))
    image[1, 8] = 1.0
    picture = image_picture(image, (0.0, 1.0), 100)[..., 0]
    row, column = np.unravel_index(np.argmax(picture), picture.shape)
    assert row < 30 and column > 70


def test_pictures_survive_their_file() -> None:
    picture = np.tile(np.linspace(0, 1, 32)[:, None, None], (1, 32, 3))
    found = imread(io.BytesIO(jpeg_bytes(picture)), format="jpeg") / 255.0
    assert found == pytest.approx(picture, abs=0.03)
