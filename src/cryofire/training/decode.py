"""Maps of a delivered model at chosen points of its latent space, as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryofire.analysis.masks import density_threshold, soft_sphere
from cryofire.errors import InputError, SettingError
from cryofire.formats.atomic import replacing
from cryofire.formats.chimerax import write_series_script
from cryofire.formats.mrc import write_map
from cryofire.geometry.fourier import resample
from cryofire.training.model_file import DeliveredModel

LEAST_BOX = 16
MOST_FRAMES = 1000


@dataclass(frozen=True)
class LatentSeries:
    """Points of the latent space in the order in which their maps are shown.

    Attributes
    ----------
    points : Float[np.ndarray, "point component"]
    name : str
        What the files are called.
    title : str
        What they are, in one line.
    notes : tuple of str
        What a user should know of them.
    """

    points: Float[np.ndarray, "point component"]
    name: str
    title: str
    notes: tuple[str, ...] = ()


def points_series(model: DeliveredModel, points: Float[np.ndarray, "point component"]) -> LatentSeries:
    """Given points, with a warning for each that lies outside the learnt region.

    Raises
    ------
    SettingError
        They have another number of coordinates than the latent space, or are not finite.
    """
    checked = _checked(model, points)
    title = "density at " + "; ".join(", ".join(f"{value:.3g}" for value in point) for point in checked)
    return LatentSeries(checked, "latent", title, outside_notes(model, checked))


def state_series(model: DeliveredModel, state: int) -> LatentSeries:
    """The centre of a state, counted from 1.

    Raises
    ------
    SettingError
        There is no such state.
    """
    return LatentSeries(state_point(model, state)[None], f"state{state}", f"density at the centre of state {state}")


def state_point(model: DeliveredModel, state: int) -> Float[np.ndarray, " component"]:
    """Latent coordinates of a state, counted from 1; raises `SettingError` where there is no such state."""
    centers = model.latents.centers
    if not 1 <= state <= len(centers):
        named = "only state 1" if len(centers) == 1 else f"states 1 to {len(centers)}"
        raise SettingError(f"there is no state {state}", field="state", hint=f"the model has {named}")
    return np.asarray(centers[state - 1])


def path_series(
    model: DeliveredModel, start: Float[np.ndarray, " component"], end: Float[np.ndarray, " component"], frames: int
) -> LatentSeries:
    """Points from one place to another through where the particles lie.

    Raises
    ------
    SettingError
        The ends have another number of coordinates than the latent space, or the number of frames is out of range.
    """
    _check_frames(frames)
    ends = _checked(model, np.stack([np.atleast_1d(start), np.atleast_1d(end)]))
    _need_components(model)
    points, is_joined = model.latents.path(ends[0], ends[1], frames)
    notes = outside_notes(model, ends)
    if not is_joined:
        notes += ("no particles lie between the two ends: the path is a straight line, and its inner maps are a blend",)
    return LatentSeries(points, "path", f"path through latent space in {frames} frames", notes)


def component_series(model: DeliveredModel, component: int, frames: int) -> LatentSeries:
    """Points along a principal component, counted from 1, through where the particles lie.

    Raises
    ------
    SettingError
        There is no such component, or the number of frames is out of range.
    """
    _check_frames(frames)
    _need_components(model)
    if not 1 <= component <= model.components:
        raise SettingError(
            f"there is no principal component {component}", field="pc", hint=f"the model has {model.components}"
        )
    points = model.latents.principal_path(component - 1, frames)
    return LatentSeries(
        points, f"pc{component}", f"principal component {component} in {frames} frames", outside_notes(model, points)
    )


def _check_frames(frames: int) -> None:
    if not 2 <= frames <= MOST_FRAMES:
        raise SettingError(f"{frames} frames make no series", field="frames", hint=f"2 to {MOST_FRAMES}")


def _need_components(model: DeliveredModel) -> None:
    if model.components == 0:
        raise SettingError(
            "the model has one conformation, so there is nothing to move along", hint="--state 1 writes its map"
        )


def _checked(
    model: DeliveredModel, points: Float[np.ndarray, "point component"]
) -> Float[np.ndarray, "point component"]:
    found = np.atleast_2d(np.asarray(points, dtype=np.float64))
    if found.shape[1] != model.components:
        raise SettingError(
            f"the latent space has {model.components} coordinates, the point {found.shape[1]}",
            field="latent",
            hint=f"give {model.components} numbers for each point",
        )
    if not np.isfinite(found).all():
        raise SettingError("a latent coordinate is not a finite number", field="latent")
    return found


def outside_notes(model: DeliveredModel, points: Float[np.ndarray, "point component"]) -> tuple[str, ...]:
    """One warning for each point outside the learnt region, saying how far."""
    away = model.latents.distance(points)
    return tuple(
        f"the point ({', '.join(f'{value:.3g}' for value in point)}) lies {far:.1f} posterior deviations from the nearest "
        "particles the model was learnt from: its map is extrapolated"
        for point, far in zip(points, away, strict=True)
        if far > 0
    )


def decoded_maps(
    model: DeliveredModel, points: Float[np.ndarray, "*point component"], box: int | None = None
) -> Float[Tensor, "*point z y x"]:
    """Densities at points of the latent space, on a box up to that of the model: the same field of view in fewer voxels.

    Raises
    ------
    SettingError
        The box is larger than that of the model, or too small to show anything.
    """
    wanted = checked_box(model, box)
    maps = model.decode(torch.as_tensor(np.asarray(points), dtype=torch.float32))
    return maps if wanted == model.grid.box else resample(maps, wanted, 3).float()


def checked_box(model: DeliveredModel, box: int | None) -> int:
    """The box to decode on, by default that of the model; raises `SettingError` for one that it cannot fill."""
    largest = model.grid.box
    if box is None:
        return largest
    if box > largest:
        raise SettingError(
            f"a box of {box} px is larger than that of the model, {largest} px",
            field="box",
            hint="the model holds no finer detail; resample the map in ChimeraX if a program needs a larger one",
        )
    if box < LEAST_BOX:
        raise SettingError(f"a box of {box} px shows nothing", field="box", hint=f"{LEAST_BOX} to {largest}")
    return box


def write_series(folder: Path, model: DeliveredModel, series: LatentSeries, box: int | None = None) -> tuple[Path, ...]:
    """Write a map for each point, the points themselves as text, and a ChimeraX script; returns the maps and the script.

    Raises
    ------
    InputError
        The folder cannot be written, or the box is not possible.
    """
    wanted = checked_box(model, box)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder cannot be made: {error.strerror}", file=folder) from error
    names = _names(series)
    level = 0.0
    for name, point in zip(names, series.points, strict=True):
        volume = decoded_maps(model, point, wanted).numpy()
        if level == 0.0:
            level = density_threshold(volume[soft_sphere(wanted, 0.45 * wanted) > 0.5])
        write_map(folder / name, volume, model.grid.field_of_view / wanted)
    script = folder / f"{series.name}.cxc"
    write_series_script(script, names, level, series.title)
    if model.components:
        with replacing(folder / f"{series.name}.txt") as temporary:
            np.savetxt(temporary, series.points, fmt="%.6g", header="latent coordinates, one map a row")
    return (*(folder / name for name in names), script)


def _names(series: LatentSeries) -> list[str]:
    if len(series.points) == 1:
        return [f"{series.name}.mrc"]
    digits = max(3, len(str(len(series.points))))
    return [f"{series.name}_{index:0{digits}d}.mrc" for index in range(1, len(series.points) + 1)]
