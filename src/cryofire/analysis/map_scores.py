"""Maps of a run scored against the true maps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from cryofire.analysis.alignment import RigidTransform
from cryofire.analysis.map_alignment import match_grid, refine_map_alignment, transform_map
from cryofire.analysis.masks import automatic_mask
from cryofire.analysis.metrics import map_correlation, resolution_at
from cryofire.analysis.run_record import MapRecord, RunRecord
from cryofire.errors import FileFormatError
from cryofire.formats.mrc import read_map


@dataclass(frozen=True)
class MapScore:
    """One map of the run against one true map.

    Attributes
    ----------
    name, kind : str
        State of the run; "map" (from the images) or "decoded" (from the latent space).
    truth : str
        File name of the true map.
    fsc, fsc_masked : tuple of float
        Per shell, without and with a soft mask around the true map.
    resolution_half, resolution_seventh : float
        Å where the *masked* curve falls below 0.5 and 0.143.
    unmasked_half : float
        Å where the unmasked curve falls below 0.5.
    """

    name: str
    kind: str
    truth: str
    fsc: tuple[float, ...]
    fsc_masked: tuple[float, ...]
    resolution_half: float
    resolution_seventh: float
    unmasked_half: float


def score_maps(
    record: RunRecord,
    truth_paths: tuple[Path, ...],
    to_truth: RigidTransform,
    partners: tuple[int, ...] | None,
) -> tuple[MapScore, ...]:
    """Score every state map of a run, in the frame of the truth.

    Maps are brought over with the transform found from the poses, then fitted rigidly to the true map up to half of the
    shells, so that a residual difference between the frame of the poses and that of a map does not count.

    Parameters
    ----------
    record : RunRecord
        The run.
    truth_paths : tuple of Path
        True maps; a larger box or a finer pixel is Fourier-cropped.
    to_truth : RigidTransform
        From `align_poses`.
    partners : tuple of int, optional
        Which true map belongs to each state; without it the pairing with the highest correlation is taken.
    """
    scores: list[MapScore] = []
    for kind in ("map", "decoded"):
        states = [state for state in record.states if (state.map if kind == "map" else state.decoded)]
        scores.extend(_score_kind(states, kind, truth_paths, to_truth, partners if partners else None))
    return tuple(scores)


def _score_kind(
    states: list[MapRecord],
    kind: str,
    truth_paths: tuple[Path, ...],
    to_truth: RigidTransform,
    partners: tuple[int, ...] | None,
) -> list[MapScore]:
    """Score the maps of one kind."""
    loaded = [_load(state.map if kind == "map" else state.decoded) for state in states]
    if not loaded or not truth_paths:
        return []
    box, pixel_size = len(loaded[0][0]), loaded[0][1]
    truths = [match_grid(*_load(path), box, pixel_size) for path in truth_paths]
    moved = [transform_map(volume, pixel_size, to_truth) for volume, _ in loaded]
    chosen = partners if partners and len(partners) == len(states) else _pair(moved, truths)
    scores = []
    for state, (volume, _), partner in zip(states, loaded, chosen, strict=True):
        fit = refine_map_alignment(volume, truths[partner], pixel_size, max(4, box // 4), to_truth)
        aligned = transform_map(volume, pixel_size, fit.transform)
        scores.append(_score(state.name, kind, truth_paths[partner].name, aligned, truths[partner], pixel_size))
    return scores


def _load(path: Path | None) -> tuple[Float[np.ndarray, "z y x"], float]:
    """Cubic map and pixel size of a file."""
    if path is None:
        raise FileFormatError("a map of the run has no file")
    volume, pixel_size = read_map(path)
    if len(set(volume.shape)) != 1 or pixel_size <= 0:
        raise FileFormatError(
            "the map is not a cube with a voxel size", file=path, hint="write it with equal sides and its voxel size"
        )
    return volume, pixel_size


def _pair(maps: list[Float[np.ndarray, "z y x"]], truths: list[Float[np.ndarray, "z y x"]]) -> tuple[int, ...]:
    """For each map the true map it resembles most, one to one as far as there are enough."""
    mean = np.array([[map_correlation(one, other)[1:].mean() for other in truths] for one in maps])
    best = np.argmax(mean, axis=1)
    rows, columns = linear_sum_assignment(mean, maximize=True)
    best[rows] = columns
    return tuple(int(index) for index in best)


def pair_by_labels(
    states: Int[np.ndarray, " particle"], labels: Int[np.ndarray, " particle"], state_count: int
) -> tuple[int, ...]:
    """For each state of the run the true label (counted from 0 in ascending order) it shares most particles with.

    One to one as far as there are enough labels; further states take the label most of their particles have.

    Parameters
    ----------
    states : array
        State of each particle, counted from 0.
    labels : array
        True labels.
    state_count : int
        Number of states of the run.
    """
    distinct, index = np.unique(labels, return_inverse=True)
    table = np.zeros((state_count, len(distinct)))
    np.add.at(table, (states, index), 1.0)
    best = np.argmax(table, axis=1)
    rows, columns = linear_sum_assignment(table / np.maximum(table.sum(axis=0), 1.0), maximize=True)
    best[rows] = columns
    return tuple(int(one) for one in best)


def _score(
    name: str,
    kind: str,
    truth_name: str,
    volume: Float[np.ndarray, "z y x"],
    truth: Float[np.ndarray, "z y x"],
    pixel_size: float,
) -> MapScore:
    """Curves and resolutions of an aligned map."""
    mask = automatic_mask(truth, pixel_size)
    plain = map_correlation(volume, truth)
    masked = map_correlation(volume * mask, truth * mask)
    length = pixel_size * len(truth)
    return MapScore(
        name=name,
        kind=kind,
        truth=truth_name,
        fsc=tuple(float(value) for value in plain),
        fsc_masked=tuple(float(value) for value in masked),
        resolution_half=resolution_at(masked, 0.5, length),
        resolution_seventh=resolution_at(masked, 0.143, length),
        unmasked_half=resolution_at(plain, 0.5, length),
    )
