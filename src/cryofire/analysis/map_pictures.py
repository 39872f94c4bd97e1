"""Pictures of the maps of a run: surfaces, differences between states, central slices."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.image import imsave
from scipy import ndimage

from cryofire.analysis.map_alignment import fourier_resize
from cryofire.analysis.masks import density_threshold, low_pass, main_body, radius_grid
from cryofire.analysis.surface import (
    Colour,
    compose,
    principal_view,
    reduce_picture,
    shade,
    trace_surface,
    view_grid,
)

STATE_COLOURS: tuple[Colour, ...] = (
    (0.24, 0.53, 0.78),
    (0.93, 0.62, 0.13),
    (0.18, 0.66, 0.50),
    (0.80, 0.50, 0.68),
    (0.84, 0.42, 0.22),
    (0.46, 0.75, 0.92),
    (0.55, 0.55, 0.55),
    (0.80, 0.74, 0.20),
)
"""Colours of states, after Okabe and Ito: distinguishable with any kind of colour vision."""

MORE: Colour = (0.13, 0.44, 0.78)
LESS: Colour = (0.87, 0.36, 0.10)
GHOST: Colour = (0.78, 0.79, 0.81)

VIEW_NAMES = ("front", "turned 90° to the side", "from above")
_QUARTER_TURNS = (
    np.eye(3),
    np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]),
    np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]),
)
_FINEST_BOX = 160
_GRID = 120


@dataclass(frozen=True)
class Scene:
    """Maps made comparable, and how to look at them.

    Attributes
    ----------
    volumes : tuple of array
        Low-passed to their resolution, scaled to the first, islands removed, on a fine grid.
    level : float
        Common contour level.
    rotation : array (3, 3)
        The front view: the broadest face, longest axis across.
    half_width : float
        Half of the edge of a picture, in voxels of the fine grid.
    shell : float
        Fourier shell of the coarsest map's resolution.
    """

    volumes: tuple[Float[np.ndarray, "box box box"], ...]
    level: float
    rotation: Float[np.ndarray, "3 3"]
    half_width: float
    shell: float


def state_colour(index: int) -> Colour:
    """Colour of a state counted from 0; colours repeat after eight."""
    return STATE_COLOURS[index % len(STATE_COLOURS)]


def make_scene(
    volumes: Sequence[Float[np.ndarray, "box box box"]], resolutions: Sequence[float | None], pixel_size: float
) -> Scene:
    """Prepare maps for pictures.

    The level is where the first map best splits into molecule and solvent (Otsu); the others are scaled to the first by
    least squares, so that one level fits all.

    Parameters
    ----------
    volumes : sequence of array
        Cubic maps of one grid, the most important first.
    resolutions : sequence of float or None
        Å to which each is low-passed.
    pixel_size : float
        Å per voxel.
    """
    box = len(volumes[0])
    fine = int(max(box, min(2 * box, _FINEST_BOX)))
    limits = [box * pixel_size / resolution if resolution else 0.45 * box for resolution in resolutions]
    shells = [float(np.clip(limit, 3.0, 0.48 * box)) for limit in limits]
    smooth = [
        fourier_resize(low_pass(volume.astype(np.float32), shell), fine)
        for volume, shell in zip(volumes, shells, strict=True)
    ]
    sphere = radius_grid(fine) <= fine / 2 - 1
    level = density_threshold(smooth[0][sphere])
    scaled = tuple(_scaled(volume, smooth[0], smooth[0] > 0.5 * level) for volume in smooth)
    clean = tuple(_without_islands(volume, level) for volume in scaled)
    rotation, half_width = principal_view(np.max(clean, axis=0), level)
    return Scene(clean, level, rotation, half_width, min(shells))


def _scaled(
    volume: Float[np.ndarray, "z y x"], reference: Float[np.ndarray, "z y x"], inside: np.ndarray
) -> Float[np.ndarray, "z y x"]:
    """Map times the factor that brings it closest to the reference inside the molecule."""
    power = float(np.vdot(volume[inside], volume[inside]))
    factor = float(np.vdot(volume[inside], reference[inside])) / power if power > 0 else 1.0
    return volume * np.float32(factor if factor > 0 else 1.0)


def _without_islands(volume: Float[np.ndarray, "z y x"], level: float) -> Float[np.ndarray, "z y x"]:
    """Map in which pieces above the level that are not part of the molecule are flattened."""
    above = volume >= level
    dust = above & ~main_body(above)
    return np.where(ndimage.binary_dilation(dust, iterations=2), np.minimum(volume, 0.5 * level), volume)


def surface_pictures(
    scene: Scene, index: int, colour: Colour, size: int = 320
) -> tuple[Float[np.ndarray, "row column 3"], ...]:
    """Shaded surfaces of one map from the three views.

    Parameters
    ----------
    scene : Scene
        From `make_scene`.
    index : int
        Which map.
    colour : tuple
        Red, green, blue, 0 … 1.
    size : int
        Edge of each picture in pixels.
    """
    pictures = []
    for turn in _QUARTER_TURNS:
        grid = view_grid(scene.volumes[index], turn @ scene.rotation, scene.half_width, _GRID)
        surface = trace_surface(grid, scene.level, 2 * size)
        shaded = shade(surface, colour, 2 * size / _GRID)
        pictures.append(reduce_picture(compose(np.ones_like(shaded), surface, shaded), 2))
    return tuple(pictures)


def smooth_difference(scene: Scene, index: int, reference: int) -> Float[np.ndarray, "box box box"]:
    """Difference of two maps at twice their resolution distance, where motions show and noise does not.

    Parameters
    ----------
    scene : Scene
        From `make_scene`.
    index, reference : int
        The state and what it is compared with.
    """
    return low_pass(scene.volumes[index] - scene.volumes[reference], 0.5 * scene.shell, 0.4 * scene.shell)


def difference_level(scene: Scene, difference: Float[np.ndarray, "box box box"]) -> float | None:
    """Contour level for the difference of two maps; None where they hardly differ.

    The level is a third of what the strongest thousandth of the molecule's voxels differ by. Under a quarter of the
    contour level of the maps themselves that is no difference worth a picture.

    Parameters
    ----------
    scene : Scene
        From `make_scene`.
    difference : array
        From `smooth_difference`.
    """
    inside = np.max(scene.volumes, axis=0) >= 0.5 * scene.level
    strongest = float(np.quantile(np.abs(difference[inside]), 0.999)) if inside.any() else 0.0
    return strongest / 3.0 if strongest >= 0.25 * scene.level else None


def difference_pictures(
    scene: Scene, index: int, reference: int, size: int = 320
) -> tuple[Float[np.ndarray, "row column 3"], ...]:
    """Draw the reference map as a pale ghost, with the density a state has more (blue) and less (orange) than it.

    Parameters
    ----------
    scene : Scene
        From `make_scene`.
    index, reference : int
        The state and what it is compared with.
    size : int
        Edge of each picture in pixels.
    """
    difference = smooth_difference(scene, index, reference)
    level = difference_level(scene, difference)
    pictures = []
    for turn in _QUARTER_TURNS:
        view = (turn @ scene.rotation, scene.half_width, _GRID)
        ghost_grid = view_grid(scene.volumes[reference], *view)
        ghost = trace_surface(ghost_grid, scene.level, 2 * size)
        picture = compose(np.ones((2 * size, 2 * size, 3)), ghost, shade(ghost, GHOST, 2 * size / _GRID))
        if level is not None:
            change = view_grid(difference, *view)
            for sign, colour in ((1.0, MORE), (-1.0, LESS)):
                lobe = trace_surface(sign * change, level, 2 * size)
                opacity = np.where(lobe.depth <= ghost.depth + 1.0, 1.0, 0.45)
                picture = compose(picture, lobe, shade(lobe, colour, 2 * size / _GRID), opacity)
        pictures.append(reduce_picture(picture, 2))
    return tuple(pictures)


def slice_picture(
    volume: Float[np.ndarray, "box box box"], axis: int, limits: tuple[float, float], size: int = 300
) -> Float[np.ndarray, "row column 3"]:
    """Central slice of a map, dense parts dark, drawn with the last axis to the right and the other one up.

    Parameters
    ----------
    volume : array
        A cubic map (z, y, x).
    axis : int
        0 cuts at z = 0, 1 at y = 0, 2 at x = 0.
    limits : tuple of float
        Densities drawn white and black.
    size : int
        Edge of the picture in pixels.
    """
    plane = np.take(volume, volume.shape[axis] // 2, axis=axis)[::-1]
    fine = ndimage.zoom(plane, size / plane.shape[0], order=3)
    grey = 1.0 - np.clip((fine - limits[0]) / max(limits[1] - limits[0], 1e-12), 0.0, 1.0)
    return np.repeat(grey[..., None], 3, axis=-1)


def slice_limits(volume: Float[np.ndarray, "z y x"]) -> tuple[float, float]:
    """Densities to draw white and black: just below the solvent and near the strongest.

    Parameters
    ----------
    volume : array
        A map.
    """
    middle = [np.take(volume, size // 2, axis=axis) for axis, size in enumerate(volume.shape)]
    low, high = np.quantile(np.concatenate([plane.ravel() for plane in middle]), [0.02, 0.998])
    return float(low), float(high)


def image_picture(
    image: Float[np.ndarray, "y x"], limits: tuple[float, float], size: int = 190
) -> Float[np.ndarray, "row column 3"]:
    """Particle image in grey, first row at the top.

    Parameters
    ----------
    image : array
        A square image.
    limits : tuple of float
        Values drawn black and white.
    size : int
        Edge of the picture in pixels.
    """
    fine = ndimage.zoom(image.astype(np.float64), size / image.shape[0], order=3)
    grey = np.clip((fine - limits[0]) / max(limits[1] - limits[0], 1e-12), 0.0, 1.0)
    return np.repeat(grey[..., None], 3, axis=-1)


def with_scale_bar(
    picture: Float[np.ndarray, "row column 3"], pixel_size: float
) -> tuple[Float[np.ndarray, "row column 3"], int]:
    """Picture with a dark bar in its lower left corner, and the length of the bar in Å, a round number.

    Parameters
    ----------
    picture : array
        Any picture with room at the bottom.
    pixel_size : float
        Å per pixel of the picture.
    """
    wanted = 0.3 * picture.shape[1] * pixel_size
    power = 10.0 ** np.floor(np.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    pixels, margin = round(length / pixel_size), max(3, picture.shape[0] // 30)
    drawn = picture.copy()
    drawn[-2 * margin : -margin - margin // 2, margin : margin + pixels] = 0.15
    return drawn, round(length)


def jpeg_bytes(picture: Float[np.ndarray, "row column 3"]) -> bytes:
    """JPEG file of a picture with values 0 … 1.

    Parameters
    ----------
    picture : array
        Red, green, blue.
    """
    buffer = io.BytesIO()
    pixels = np.round(np.clip(picture, 0.0, 1.0) * 255).astype(np.uint8)
    imsave(buffer, pixels, format="jpeg", pil_kwargs={"quality": 88, "subsampling": 0})
    return buffer.getvalue()
