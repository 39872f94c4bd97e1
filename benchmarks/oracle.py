"""What can be reached at all on a simulated set: the scores of somebody who knows the true poses, classes and maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from common import finished, truth_of
from cryofire.analysis.metrics import resolution_at
from cryofire.arrays import Volume
from cryofire.config import RefineSettings
from cryofire.formats.mrc import read_map
from cryofire.geometry.grids import fourier_shell_correlation
from cryofire.inference.consensus import refinement_mask
from cryofire.inference.linear_model import back_project, predicted
from cryofire.inference.polish import POSE, ImageStates, Priors, expand, polish, posterior_covariance
from cryofire.physics.imaging import WhitenedImages
from cryofire.physics.projection import SpectrumGrid, spectrum_grid
from cryofire.training.stages import Prepared, prepare
from cryofire.volumes.halves import solve_halves

MOST_MAPS = 16
"""A set with more true states than this is a continuum: its maps are not compared one by one, nor its images with all of them."""
STEPS, AT_ONCE, SAMPLE = 3, 500, 2000
"""Gauss–Newton steps, images in one piece, and about how many images the pose errors are taken from."""


@dataclass(frozen=True)
class OracleState:
    """One true state: its images, and the maps that its scores are made from.

    Attributes
    ----------
    members : Int[Tensor, "member"]
        Its images, among those prepared.
    truth : Float[Tensor, "z y x"]
        True map, on the scale of the file.
    reached : Float[Tensor, "z y x"]
        Back-projection of its images at their true poses, solved and filtered as the run's maps are.
    """

    members: Int[Tensor, " member"]
    truth: Volume
    reached: Volume

    def grid(self, factor: float, max_shell: int) -> SpectrumGrid:
        """Spectrum of the true map times a factor."""
        return spectrum_grid(factor * self.truth[None], max_shell)


def scale_of(images: WhitenedImages, poses: ImageStates, states: Sequence[OracleState]) -> float:
    """What brings true maps to the scale of whitened images: least squares over a sample of images at their true poses.

    One number for all shells: noise and contrast transfer are in the images' modulation.
    """
    limit, cross, power = images.plane.max_shell, 0.0, 0.0
    for state in states:
        grid = spectrum_grid(state.truth[None], limit)
        for rows in sampled(state.members, len(poses)).split(AT_ONCE):
            batch = images.batch(rows, limit)
            expected = predicted(batch, grid, poses.take(rows))
            cross += float((expected.conj() * batch.data).real.sum())
            power += float(expected.abs().square().sum())
    return cross / max(power, 1e-30)


def sampled(members: Int[Tensor, " member"], count: int) -> Int[Tensor, " row"]:
    """Every so many of a state's images, such that about `SAMPLE` of `count` are taken in all."""
    return members[:: max(count // SAMPLE, 1)]


def oracle_scores(run: Path, truth: Path) -> dict[str, Any]:
    """Oracle scores of the set that a run was made from; empty where the truth has no states to compare.

    Maps are back-projected with true poses and classes. Poses are polished by Gauss–Newton steps from the truth against
    the true maps, so that what is left is the error that the noise makes.

    Parameters
    ----------
    run : Path
        Finished run.
    truth : Path
        Particle table with true poses and classes.
    """
    prepared = prepare(finished(run))
    known = truth_of(truth, prepared)
    if known.labels is None:
        return {"oracle_resolution_at_half": {}}
    poses = known.poses
    states = true_states(prepared, poses, known.labels, truth.parent)
    compared = states if len(states) <= MOST_MAPS else {}
    limit, length = prepared.images.plane.max_shell, prepared.grid.field_of_view
    resolution = {
        name: resolution_at(fourier_shell_correlation(one.reached, one.truth).numpy()[: limit + 1], 0.5, length)
        for name, one in compared.items()
    }
    return {"oracle_resolution_at_half": resolution, **pose_scores(prepared, poses, list(states.values()))}


def true_states(
    prepared: Prepared, poses: ImageStates, labels: Int[np.ndarray, " particle"], folder: Path
) -> dict[str, OracleState]:
    """True states that have a map and images, by the name of the map."""
    mask = refinement_mask(prepared.grid.box, RefineSettings())
    half, limit = torch.arange(len(poses)) % 2, prepared.images.plane.max_shell
    found = {}
    for label in np.unique(labels):
        members = torch.from_numpy(np.flatnonzero(labels == label))
        path = folder / f"state{label - 1}.mrc"
        if not path.exists() or len(members) < 2:
            continue
        sums = back_project(prepared.images, half, poses, limit, members)
        true = torch.from_numpy(read_map(path)[0].astype(np.float32)) * mask
        found[path.name] = OracleState(members, true, solve_halves(sums, mask, 0).joint[0])
    return found


def pose_scores(prepared: Prepared, poses: ImageStates, states: list[OracleState]) -> dict[str, float | None]:
    """Errors of poses polished from the truth, in the units of the run's scores, their Cramér–Rao bound, and the Bayes confusion.

    The bound is the inverse of the Fisher information of rotation, shift and contrast together at the truth, as the root mean
    square over images. The Bayes confusion is the share of images that are likelier, at poses polished from the true ones, under
    the map of another state than their own, states weighed by how many images they have; a continuum has none.
    """
    limit = prepared.images.plane.max_shell
    priors = Priors(float(poses.shifts_px.square().mean().sqrt()) + 0.1, 0.1, torch.zeros(0))
    if not states:
        return {}
    factor = scale_of(prepared.images, poses, states)
    grids = [] if len(states) > MOST_MAPS else [state.grid(factor, limit) for state in states]
    weights = torch.tensor([float(len(state.members)) for state in states]).log()
    direction, squared, variances, wrong = [], [], [], []
    for number, state in enumerate(states):
        own = grids[number] if grids else state.grid(factor, limit)
        for rows in sampled(state.members, len(poses)).split(AT_ONCE):
            batch, true = prepared.images.batch(rows, limit), poses.take(rows)
            under = [polish(batch, grid, true, priors, STEPS) for grid in grids or [own]]
            found = (under[number] if grids else under[0]).states
            direction.append(_direction_error(found.rotations, true.rotations))
            squared.append((found.shifts_px - true.shifts_px).square().sum(1).numpy())
            bound = posterior_covariance(expand(batch, own, true, priors))
            variances.append(bound.diagonal(dim1=1, dim2=2)[:, :POSE])
            if grids:
                likeliest = torch.stack([one.expansion.value for one in under], dim=1).sub(weights).argmin(1)
                wrong.append(likeliest != number)
    degrees = np.concatenate(direction)
    mean = torch.cat(variances).mean(0)
    return {
        "oracle_viewing_median_deg": float(np.median(degrees)),
        "oracle_viewing_mean_deg": float(np.mean(degrees)),
        "oracle_viewing_rms_deg": float(np.sqrt(np.mean(np.square(degrees)))),
        "oracle_shift_squared_median_px": float(np.median(np.concatenate(squared))),
        "bound_viewing_rms_deg": float(torch.rad2deg(mean[:2].sum().sqrt())),
        "bound_rotation_rms_deg": float(torch.rad2deg(mean[:3].sum().sqrt())),
        "bound_shift_rms_px": float(mean[3:POSE].sum().sqrt()),
        "bayes_confusion": float(torch.cat(wrong).float().mean()) if grids else None,
    }


def _direction_error(found: Float[Tensor, "row 3 3"], true: Float[Tensor, "row 3 3"]) -> Float[np.ndarray, " row"]:
    """Angle between viewing directions (third rows), degrees."""
    chord = (found[:, 2] - true[:, 2]).double().norm(dim=1)
    return np.asarray(torch.rad2deg(2 * torch.asin((chord / 2).clamp_max(1))).numpy())
