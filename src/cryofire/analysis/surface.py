"""Shaded pictures of density maps: orthographic rays, normals from the gradient, soft light, dark outlines.

A map is first resampled on a grid aligned with the view, nearest section first; rays are then followed through that
grid to the first point above the contour level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import ndimage

Colour = tuple[float, float, float]

KEY_LIGHT = np.array([-0.45, 0.60, 0.66])
FILL_LIGHT = np.array([0.70, -0.10, 0.70])


@dataclass(frozen=True)
class Surface:
    """The part of a contour surface that a viewer sees.

    Attributes
    ----------
    depth : array (row, column)
        Distance from the front of the grid in grid spacings; infinite where a ray meets nothing.
    normals : array (row, column, 3)
        Unit normals (right, up, towards the viewer); 0 where a ray meets nothing.
    """

    depth: Float[np.ndarray, "row column"]
    normals: Float[np.ndarray, "row column 3"]

    @property
    def visible(self) -> np.ndarray:
        """Pixels whose ray meets the surface."""
        return np.asarray(np.isfinite(self.depth))


def view_grid(
    volume: Float[np.ndarray, "box box box"], rotation: Float[np.ndarray, "3 3"], half_width: float, samples: int
) -> Float[np.ndarray, "depth row column"]:
    """Map resampled on a cubic grid aligned with a view: sections from front to back, rows from top to bottom.

    Parameters
    ----------
    volume : array
        A cubic map, smooth on the scale of its voxels (linear interpolation is used).
    rotation : array (3, 3)
        r_view = R r_volume, with x to the right, y up and z towards the viewer.
    half_width : float
        Half of the edge of the grid, in voxels of the map.
    samples : int
        Grid points along each edge.
    """
    step = 2.0 * half_width / (samples - 1)
    steps = step * np.array([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])  # (x, y, z) per (depth, row, column)
    matrix = (rotation.T @ steps)[::-1]
    centre = np.full(3, volume.shape[0] // 2)
    offset = centre - matrix @ np.full(3, (samples - 1) / 2.0)
    shape = (samples, samples, samples)
    grid = ndimage.affine_transform(volume.astype(np.float32), matrix, offset=offset, output_shape=shape, order=1)
    return np.asarray(grid)


def trace_surface(grid: Float[np.ndarray, "depth row column"], level: float, pixels: int) -> Surface:
    """Follow rays through a view grid to the first point at the contour level.

    Parameters
    ----------
    grid : array
        From `view_grid`.
    level : float
        Contour level; the inside is above it.
    pixels : int
        Rows and columns of the picture, usually several times those of the grid.
    """
    first, last = _search_range(grid, level)
    place = np.linspace(0, grid.shape[1] - 1, pixels)
    rows, columns = (axis.ravel() for axis in np.meshgrid(place, place, indexing="ij"))
    nearest = np.rint(rows).astype(int), np.rint(columns).astype(int)
    start, stop = first[nearest], last[nearest]
    depth = np.full(rows.size, np.inf)
    active = np.flatnonzero(stop >= 0)
    before = np.full(rows.size, -np.inf)
    for step in range(int((stop - start)[active].max(initial=-1)) + 1):
        active = active[start[active] + step <= stop[active]]
        here = start[active] + step
        value = ndimage.map_coordinates(grid, [here, rows[active], columns[active]], order=1, mode="nearest")
        hit = value >= level
        rise = np.maximum(value - before[active], 1e-12)
        back = np.where(np.isfinite(before[active]), np.clip((value - level) / rise, 0.0, 1.0), 0.0)
        depth[active[hit]] = (here - back)[hit]
        before[active] = value
        active = active[~hit]
    normals = _normals(grid, depth, rows, columns)
    return Surface(depth.reshape(pixels, pixels), normals.reshape(pixels, pixels, 3))


def _search_range(grid: Float[np.ndarray, "depth row column"], level: float) -> tuple[np.ndarray, np.ndarray]:
    """First and last section in which rays near each grid column can meet the surface; −1 where none can."""
    inside = grid >= level
    meets = inside.any(axis=0)
    section = np.where(meets, np.argmax(inside, axis=0), grid.shape[0])
    first = ndimage.minimum_filter(section, 3) - 1
    reached = ndimage.maximum_filter(np.where(meets, section, -1), 3)
    last = np.where(reached >= 0, np.minimum(reached + 1, grid.shape[0] - 1), -1)
    return np.maximum(first, 0), last


def _normals(
    grid: Float[np.ndarray, "depth row column"],
    depth: Float[np.ndarray, " ray"],
    rows: Float[np.ndarray, " ray"],
    columns: Float[np.ndarray, " ray"],
) -> Float[np.ndarray, "ray 3"]:
    """Outward unit normals, −∇ρ / |∇ρ| by central differences of the slightly smoothed grid."""
    hit = np.flatnonzero(np.isfinite(depth))
    smooth = ndimage.gaussian_filter(grid, 0.8)
    point = np.stack([depth[hit], rows[hit], columns[hit]])
    slope = np.empty((hit.size, 3))
    for axis in range(3):
        shift = np.zeros((3, 1))
        shift[axis] = 1.0
        ahead = ndimage.map_coordinates(smooth, point + shift, order=1, mode="nearest")
        slope[:, axis] = ahead - ndimage.map_coordinates(smooth, point - shift, order=1, mode="nearest")
    outward = np.stack([-slope[:, 2], slope[:, 1], slope[:, 0]], axis=-1)  # columns run right, rows down, depth away
    normals = np.zeros((depth.size, 3))
    normals[hit] = outward / np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-12)
    return normals


def shade(
    surface: Surface, colour: Colour | Float[np.ndarray, "row column 3"], spacing: float
) -> Float[np.ndarray, "row column 3"]:
    """Colours (0 … 1) of a surface under a key light, a fill light and ambient light, with outlines.

    Parameters
    ----------
    surface : Surface
        From `trace_surface`.
    colour : tuple or array
        Of the material; one, or one a pixel.
    spacing : float
        Pixels of the picture per spacing of the grid.
    """
    base = np.broadcast_to(np.asarray(colour, dtype=np.float64), (*surface.depth.shape, 3))
    key = np.maximum(surface.normals @ (KEY_LIGHT / np.linalg.norm(KEY_LIGHT)), 0.0)
    fill = np.maximum(surface.normals @ (FILL_LIGHT / np.linalg.norm(FILL_LIGHT)), 0.0)
    facing = np.clip(surface.normals[..., 2], 0.0, 1.0)
    light = (0.42 + 0.60 * key + 0.22 * fill) * _openness(surface, spacing)
    outline = (0.55 + 0.45 * np.clip(facing / 0.3, 0.0, 1.0)) * (1.0 - 0.75 * _edges(surface, spacing))
    gloss = 0.10 * np.maximum(surface.normals @ _halfway(), 0.0) ** 24
    return np.asarray(np.clip((base * light[..., None] + gloss[..., None]) * outline[..., None], 0.0, 1.0))


def _halfway() -> Float[np.ndarray, " xyz"]:
    """Direction midway between the key light and the viewer, where glossy surfaces shine."""
    middle = KEY_LIGHT / np.linalg.norm(KEY_LIGHT) + np.array([0.0, 0.0, 1.0])
    return np.asarray(middle / np.linalg.norm(middle))


def _filled_depth(surface: Surface) -> Float[np.ndarray, "row column"]:
    """Depth with the background put just behind the deepest visible point."""
    seen = surface.visible
    deepest = float(surface.depth[seen].max()) if seen.any() else 1.0
    return np.where(seen, surface.depth, deepest + 1.0)


def _openness(surface: Surface, spacing: float) -> Float[np.ndarray, "row column"]:
    """Share of ambient light that reaches a point: less in grooves, where the surroundings are nearer to the viewer."""
    depth = _filled_depth(surface)
    coarse = depth[::4, ::4]
    shadow = np.zeros_like(coarse)
    for reach in (2.0, 6.0):
        behind = coarse - ndimage.gaussian_filter(coarse, reach * spacing / 4.0)
        shadow += np.clip(behind / (1.6 * reach), 0.0, 1.0)
    rows, columns = (np.arange(size) / 4.0 for size in depth.shape)
    places = np.meshgrid(rows, columns, indexing="ij")
    fine = ndimage.map_coordinates(np.clip(shadow, 0.0, 1.0), places, order=1, mode="nearest")
    return np.asarray(1.0 - 0.55 * fine)


def _edges(surface: Surface, spacing: float) -> Float[np.ndarray, "row column"]:
    """1 along jumps in depth and along the outer contour, 0 elsewhere."""
    depth = np.where(surface.visible, surface.depth, surface.depth[surface.visible].max(initial=0.0) + 50.0)
    width = max(1, round(0.5 * spacing))
    jump = ndimage.maximum_filter(depth, 2 * width + 1) - depth
    return np.asarray(np.clip((jump - 5.0) / 3.0, 0.0, 1.0))


def compose(
    back: Float[np.ndarray, "row column 3"],
    surface: Surface,
    shaded: Float[np.ndarray, "row column 3"],
    opacity: float | Float[np.ndarray, "row column"] = 1.0,
) -> Float[np.ndarray, "row column 3"]:
    """Picture with a shaded surface laid over what is behind it.

    Parameters
    ----------
    back, shaded : array
        Pictures, 0 … 1.
    surface : Surface
        Where `shaded` is visible.
    opacity : float or array
        0 … 1, one or one a pixel.
    """
    cover = (surface.visible * opacity)[..., None]
    return np.asarray(back * (1.0 - cover) + shaded * cover)


def reduce_picture(
    picture: Float[np.ndarray, "row column 3"], factor: int
) -> Float[np.ndarray, "small_row small_column 3"]:
    """Picture averaged over squares of `factor` × `factor` pixels, which smooths its edges.

    Parameters
    ----------
    picture : array
        Rows and columns are multiples of the factor.
    factor : int
        How many times smaller the result is.
    """
    rows, columns = picture.shape[0] // factor, picture.shape[1] // factor
    return np.asarray(picture.reshape(rows, factor, columns, factor, 3).mean(axis=(1, 3)))


def principal_view(volume: Float[np.ndarray, "box box box"], level: float) -> tuple[Float[np.ndarray, "3 3"], float]:
    """Rotation that shows the broadest face (longest axis across), and half of the edge in voxels that holds all of it.

    Parameters
    ----------
    volume : array
        A cubic map with its origin at n // 2.
    level : float
        Contour level.
    """
    inside = np.argwhere(volume >= level)
    if len(inside) < 4:
        return np.eye(3), volume.shape[0] / 2.0
    points = (inside - volume.shape[0] // 2)[:, ::-1].astype(np.float64)
    _, axes = np.linalg.eigh(np.cov(points.T))
    rotation = axes[:, ::-1].T
    rotation[2] *= np.sign(np.linalg.det(rotation))
    return rotation, float(np.abs(points @ rotation.T).max()) + 3.0
