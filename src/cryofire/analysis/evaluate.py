"""A run scored against the known truth, by the definitions of the field."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import spearmanr
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from cryofire.analysis.alignment import PoseAlignment, align_poses, joined_alignment
from cryofire.analysis.evaluation import Evaluation, PoseScore, StateScore
from cryofire.analysis.map_scores import MapScore, pair_by_labels, score_maps
from cryofire.analysis.metrics import calibration_coverage, confusion, threshold_confusion
from cryofire.analysis.run_files import read_estimates
from cryofire.analysis.run_record import RunRecord, read_run, state_groups
from cryofire.analysis.truth import Truth, check_truth_maps, find_truth_maps, read_truth
from cryofire.data.estimates import ParticleEstimates
from cryofire.errors import RunFolderError

MIXTURE_SAMPLE = 50_000
"""Most particles an unsupervised mixture is fitted to; all are then assigned."""
LEAST_ALIGNED = 50
"""Fewer particles than this do not fix the frame of a state."""
MOST_STATES = 20
"""More labels than these, with a coordinate beside them, number the steps of a continuum and are no states."""


def evaluate_run(run_folder: Path, truth: Path, truth_maps: tuple[Path, ...] | None = None) -> Evaluation:
    """Score a finished run against a simulation's truth.

    Parameters
    ----------
    run_folder : Path
        Made by `cryofire reconstruct`.
    truth : Path
        STAR file with the true poses and states of the same particles.
    truth_maps : tuple of Path, optional
        True maps, in the order of the class numbers; by default those found beside the truth.

    Raises
    ------
    RunFolderError
        The run has no estimates.
    TableError
        The truth has no poses, or belongs to other particles.
    """
    record = read_run(run_folder)
    estimates = read_estimates(record)
    particles = run_folder / "particles.star"
    known = read_truth(truth, particles if particles.is_file() else None)
    used = _scored(estimates, known, truth)
    maps = find_truth_maps(truth) if truth_maps is None else tuple(truth_maps)
    check_truth_maps(maps)
    kinds = state_groups(record)
    parts = [used & np.isin(estimates.state, kind) for kind in kinds] if record.species else [used]
    found = [aligned(estimates, known, part) for part in parts]
    partners, scores = _partners(record, estimates, known, used), list[MapScore]()
    for kind, alignment in zip(kinds, found, strict=True):
        states = tuple(record.states[state] for state in kind)
        chosen = None if partners is None else tuple(partners[state] for state in kind)
        scores += score_maps(replace(record, states=states), maps, alignment.transform, chosen)
    alignment = joined_alignment(found, [part[used] for part in parts])
    return _evaluation((str(run_folder), str(truth)), alignment, estimates, known, used, scores)


def aligned(
    estimates: ParticleEstimates, known: Truth, rows: Bool[np.ndarray, " particle"] | Int[np.ndarray, " row"]
) -> PoseAlignment:
    """Poses of some particles of a run brought into the frame of the truth."""
    return align_poses(
        estimates.rotations[rows], estimates.shifts[rows], known.poses.rotations[rows], known.poses.shifts[rows]
    )


def evaluate_estimates(estimates: ParticleEstimates, truth: Path, name: str) -> Evaluation:
    """Score poses and states of particles without a run, such as those of `Reconstruction.encode`.

    Parameters
    ----------
    estimates : ParticleEstimates
        In the order of the truth.
    truth : Path
        STAR file with the true poses and states of the same particles.
    name : str
        What is scored, for the table.

    Raises
    ------
    RunFolderError
        The truth belongs to other particles.
    """
    known = read_truth(truth)
    used = _scored(estimates, known, truth)
    return _evaluation((name, str(truth)), aligned(estimates, known, used), estimates, known, used, ())


def _evaluation(
    names: tuple[str, str],
    alignment: PoseAlignment,
    estimates: ParticleEstimates,
    known: Truth,
    used: Bool[np.ndarray, " particle"],
    maps: Sequence[MapScore],
) -> Evaluation:
    """Scores of aligned poses and of states, beside those of maps, under the names of what was compared."""
    return Evaluation(
        *names,
        particles=len(estimates),
        particles_used=int(used.sum()),
        empty=int(known.is_empty.sum()),
        empty_used=int((known.is_empty & estimates.used).sum()),
        contaminated=int(known.is_contaminated.sum()),
        contaminated_used=int((known.is_contaminated & estimates.used).sum()),
        poses=_score_poses(alignment, estimates, known, used),
        states=_score_states(estimates, known, used),
        maps=tuple(maps),
    )


def _scored(estimates: ParticleEstimates, known: Truth, truth: Path) -> Bool[np.ndarray, " particle"]:
    """Which particles have an estimate, and are there to be scored."""
    if len(estimates) != len(known.pixel_size):
        raise RunFolderError(
            f"the run has {len(estimates)} particles, the truth {len(known.pixel_size)}",
            file=truth,
            hint="name the truth of the set that was reconstructed",
        )
    used = estimates.used & np.isfinite(estimates.rotations).all(axis=(1, 2))
    used = np.asarray(used & np.isfinite(estimates.shifts).all(axis=1) & ~known.is_empty)
    if not used.any():
        raise RunFolderError("the run has no usable particle", file=truth, hint="read run.log to see what happened")
    return used


def _score_poses(
    alignment: PoseAlignment, estimates: ParticleEstimates, known: Truth, used: Bool[np.ndarray, " particle"]
) -> PoseScore:
    direction, rotation = np.rad2deg(alignment.direction_error), np.rad2deg(alignment.rotation_error)
    squared = (alignment.shift_error / known.pixel_size[used]) ** 2
    stated = np.maximum(estimates.rotation_std[used], 1e-12)
    calibrated = 0.8881  # median of the length of a 3-D Gaussian vector over its rms: √(χ²₃ median / 3)
    return PoseScore(
        direction_median_deg=float(np.median(direction)),
        direction_mean_deg=float(direction.mean()),
        rotation_median_deg=float(np.median(rotation)),
        rotation_mean_deg=float(rotation.mean()),
        shift_median_px2=float(np.median(squared)),
        shift_mean_px2=float(squared.mean()),
        shift_median=float(np.median(alignment.shift_error)),
        shift_mean=float(alignment.shift_error.mean()),
        mirrored=alignment.transform.mirrored,
        rotation_coverage=calibration_coverage(alignment.rotation_error, stated / math.sqrt(3), 3),
        rotation_coverage_own_frame=calibration_coverage(
            own_frame_errors(alignment, estimates, known, used), stated / math.sqrt(3), 3
        ),
        shift_coverage=calibration_coverage(alignment.shift_error, estimates.shift_std[used], 2),
        rotation_overconfidence=float(np.median(alignment.rotation_error / stated)) / calibrated,
    )


def own_frame_errors(
    alignment: PoseAlignment, estimates: ParticleEstimates, known: Truth, used: Bool[np.ndarray, " particle"]
) -> Float[np.ndarray, " particle"]:
    """Rotation errors, radians, each true state aligned on its own: the frame of a conformation is a convention.

    States of fewer than `LEAST_ALIGNED` particles, and sets without true states, keep the common alignment.
    """
    errors = alignment.rotation_error.copy()
    if known.labels is None:
        return errors
    labels = known.labels[used]
    for label in np.unique(labels):
        mine = labels == label
        if mine.sum() >= LEAST_ALIGNED:
            errors[mine] = aligned(estimates, known, used & (known.labels == label)).rotation_error
    return errors


def principal_coordinate(latents: Float[np.ndarray, "particle component"]) -> Float[np.ndarray, " particle"]:
    """First principal component of the latents.

    Parameters
    ----------
    latents : array (particle, component)
        Finite coordinates, at least one component.
    """
    centred = latents - latents.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return np.asarray(centred @ vectors[:, -1], dtype=np.float64)


def mixture_labels(
    latents: Float[np.ndarray, "particle component"], components: int, seed: int = 0
) -> Int[np.ndarray, " particle"]:
    """Labels of an unsupervised Gaussian mixture (full covariances, best of ten starts).

    Parameters
    ----------
    latents : array (particle, component)
        Finite coordinates.
    components : int
        Number of Gaussians.
    seed : int
        Of the starts.
    """
    sample = latents[np.random.default_rng(seed).permutation(len(latents))[:MIXTURE_SAMPLE]]
    mixture = GaussianMixture(components, n_init=10, random_state=seed, reg_covar=1e-6 * float(sample.var() + 1e-30))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(mixture.fit(sample).predict(latents), dtype=np.int64)


def _score_states(estimates: ParticleEstimates, known: Truth, used: Bool[np.ndarray, " particle"]) -> StateScore:
    latents = estimates.latents[used]
    has_latents = latents.shape[1] > 0 and bool(np.isfinite(latents).all()) and np.ptp(latents) > 0
    first = principal_coordinate(latents) if has_latents else None
    labels = None if known.labels is None else known.labels[used]
    state_count = 0 if labels is None else len(np.unique(labels))
    correlation = None
    if known.coordinate is not None and has_latents:
        along = estimates.path_position[used]
        coordinate = along if np.isfinite(along).all() else latents[:, 0]
        correlation = abs(float(spearmanr(coordinate, known.coordinate[used]).statistic))
    is_continuum = known.coordinate is not None and state_count > MOST_STATES
    if labels is None or state_count < 2 or is_continuum:
        return StateScore(coordinate_correlation=correlation)
    return StateScore(
        confusion_threshold=threshold_confusion(first, labels) if first is not None and state_count == 2 else None,
        confusion_mixture=confusion(labels, mixture_labels(latents, state_count)) if has_latents else None,
        confusion_states=confusion(labels, estimates.state[used]),
        adjusted_rand=float(adjusted_rand_score(labels, estimates.state[used])),
        coordinate_correlation=correlation,
    )


def _partners(
    record: RunRecord, estimates: ParticleEstimates, known: Truth, used: Bool[np.ndarray, " particle"]
) -> tuple[int, ...] | None:
    """Which true map belongs to each state of the run, where labels can tell."""
    if known.labels is None or not record.states or estimates.state[used].max() >= len(record.states):
        return None
    return pair_by_labels(estimates.state[used], known.labels[used], len(record.states))
