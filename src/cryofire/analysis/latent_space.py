"""What a latent space holds: one conformation, separate states, a continuous motion, or more than single images can tell.

The density of posterior means is described by a Gaussian mixture (its size by BIC), and states are the modes of that
density that a valley separates from all others. Convolution with the posterior uncertainty can fill a valley but not dig
one, so a valley is evidence of separate states; mixture components without one are the shape of a single cloud.

Posterior means of particles that are all alike coincide: their prior has no width. A cloud about as wide as the uncertainty
thus is no single conformation, but conformations that single images do not tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from cryofire.analysis.clusters import membership, robust_cluster, separation
from cryofire.analysis.modes import separate_modes
from cryofire.analysis.trajectories import RidgePath, project_on_curve, ridge_path

Kind = Literal["homogeneous", "unresolved", "discrete", "continuous"]

SAMPLE = 10_000
MOST_DIMENSIONS = 6
NARROW, WIDE = 0.3, 3.0
"""A single cloud this many times as wide as the posterior is one conformation at most, or a motion at least."""
AS_MOST, AS_WIDE = 2.5, 0.25
"""Uncertainty over the median one, and over the standard deviation of all latents, up to which a particle tells the modes."""


@dataclass(frozen=True)
class LatentPath:
    """The way of a continuous motion through latent space.

    Attributes
    ----------
    points : array (point, component)
        Evenly spaced along it; a closed way does not repeat its first point.
    positions : array (particle,)
        Where each particle lies along it, 0 … 1; NaN where its latent is not finite.
    is_closed : bool
        Whether the motion comes back to where it began.
    length : float
        In units of the typical uncertainty of a particle's latent.
    curve : array (node, component)
        The same way finely drawn, as positions are measured along it.
    """

    points: Float[np.ndarray, "point component"]
    positions: Float[np.ndarray, " particle"]
    is_closed: bool
    length: float
    curve: Float[np.ndarray, "node component"]

    def placed(self) -> Float[np.ndarray, " particle"]:
        """Return the positions, those that are not known in the middle."""
        return np.nan_to_num(self.positions, nan=0.5)

    def share(self) -> Float[np.ndarray, " point"]:
        """Return the fraction of the placed particles that are nearest to each point."""
        placed, count = self.positions[np.isfinite(self.positions)], len(self.points)
        nearest = np.rint(placed * (count if self.is_closed else count - 1)).astype(np.int64) % count
        return np.asarray(np.bincount(nearest, minlength=count) / max(len(placed), 1))


@dataclass(frozen=True)
class LatentDescription:
    """What the latent space of a run holds.

    Attributes
    ----------
    kind : str
        "homogeneous": no cloud, or one that is a small part of the uncertainty wide. "unresolved": one cloud about as wide as
        the uncertainty. "discrete": separate clouds. "continuous": one cloud much wider than the uncertainty.
    labels : array (particle,)
        State of each particle, counted from 0: discrete states by falling size, stations of a motion in their order.
    probabilities : array (particle,)
        Posterior probability of that state.
    centers : array (state, component)
        Latent coordinates of each state.
    weights : array (state,)
        Fraction of the particles in each.
    separation : float
        Smallest distance between two states, in standard deviations of the states along the line between them; 0 where
        there are no separate states.
    spread : float
        Width of the whole cloud along its widest direction over that of one particle's posterior.
    path : LatentPath or None
        The way of a continuous motion.
    """

    kind: Kind
    labels: Int[np.ndarray, " particle"]
    probabilities: Float[np.ndarray, " particle"]
    centers: Float[np.ndarray, "state component"]
    weights: Float[np.ndarray, " state"]
    separation: float
    spread: float
    path: LatentPath | None = None


@dataclass(frozen=True)
class PrincipalComponents:
    """Directions of largest variance.

    Attributes
    ----------
    mean : array (component,)
    axes : array (axis, component)
        Orthonormal, by falling variance.
    variances : array (axis,)
        Along each.
    """

    mean: Float[np.ndarray, " component"]
    axes: Float[np.ndarray, "axis component"]
    variances: Float[np.ndarray, " axis"]

    def coordinates(self, latents: Float[np.ndarray, "particle component"]) -> Float[np.ndarray, "particle axis"]:
        """Return the coordinates of latents along the axes.

        Parameters
        ----------
        latents : array (particle, component)
            In the coordinates the components were found in.
        """
        return np.asarray((latents - self.mean) @ self.axes.T)


def principal_components(latents: Float[np.ndarray, "particle component"]) -> PrincipalComponents:
    """Principal components of latents.

    Parameters
    ----------
    latents : array (particle, component)
        Finite coordinates.
    """
    mean = latents.mean(axis=0)
    variances, vectors = np.linalg.eigh((latents - mean).T @ (latents - mean) / len(latents))
    return PrincipalComponents(mean, vectors.T[::-1].copy(), np.maximum(variances[::-1], 0.0))


def describe_latent_space(
    latents: Float[np.ndarray, "particle component"],
    deviations: Float[np.ndarray, "particle component"],
    *,
    stations: int = 5,
    path_points: int = 6,
    seed: int = 0,
) -> LatentDescription:
    """Say what a latent space holds and assign every particle to a state.

    Parameters
    ----------
    latents : array (particle, component)
        Posterior means; rows that are not finite get state 0 with probability 0.
    deviations : array (particle, component)
        Posterior standard deviations.
    stations : int
        Most states along a continuous motion.
    path_points : int
        Points along its path, at least 2.
    seed : int
        Of samples and starts.
    """
    count, components = latents.shape
    finite = np.isfinite(latents).all(axis=1) & np.isfinite(deviations).all(axis=1)
    if components == 0 or finite.sum() < 50 or np.ptp(latents[finite]) == 0:
        center = latents[finite].mean(axis=0) if finite.any() else np.zeros(components)
        return _one_state("homogeneous", latents, finite, center, 0.0)
    scaled = _scaled(latents, deviations, finite)
    sample = scaled.sample(seed)
    modes = separate_modes(scaled.points[sample], seed)
    spread = _robust_width(scaled.points[sample, 0])
    if modes.max() > 0:
        return _discrete(latents, scaled, (sample, modes), spread)
    if spread > WIDE:
        path = ridge_path(scaled.points[sample], max(path_points, 2), seed=seed)
        return _continuous(latents, scaled, path, min(stations, max(2, count // 100)), spread)
    kind: Kind = "unresolved" if spread > NARROW else "homogeneous"
    return _one_state(kind, latents, finite, latents[finite].mean(axis=0), spread)


@dataclass(frozen=True)
class _Scaled:
    """Latents in units of their typical uncertainty, along principal axes.

    Attributes
    ----------
    points : array (particle, axis)
        NaN where a latent is not finite.
    finite : array (particle,)
    uncertainty, extra : array (particle,)
        Root mean square deviation of each particle in these units, and the variance it has beyond 1.
    basis : PrincipalComponents
    scale : array (component,)
    """

    points: Float[np.ndarray, "particle axis"]
    finite: Bool[np.ndarray, " particle"]
    uncertainty: Float[np.ndarray, " particle"]
    extra: Float[np.ndarray, " particle"]
    basis: PrincipalComponents
    scale: Float[np.ndarray, " component"]

    def to_latents(self, points: Float[np.ndarray, "place axis"]) -> Float[np.ndarray, "place component"]:
        """Return places in the original latent coordinates; axes that were dropped are at their mean."""
        return np.asarray((points @ self.basis.axes[: points.shape[1]] + self.basis.mean) * self.scale)

    def sample(self, seed: int) -> Int[np.ndarray, " sample"]:
        """Return some particles whose latents are reasonably certain: as certain as most, or than the whole cloud is wide.

        All particles of a state that lacks a part, say, may be several times less certain than those of the others.
        """
        typical, width = float(np.median(self.uncertainty[self.finite])), float(np.std(self.points[self.finite, 0]))
        certain = np.flatnonzero(self.finite & (self.uncertainty <= max(AS_MOST * typical, AS_WIDE * width)))
        return certain[np.random.default_rng(seed).permutation(len(certain))[:SAMPLE]]


def _scaled(
    latents: Float[np.ndarray, "particle component"],
    deviations: Float[np.ndarray, "particle component"],
    finite: Bool[np.ndarray, " particle"],
) -> _Scaled:
    smallest = 1e-6 * np.std(latents[finite], axis=0) + 1e-300
    scale = np.sqrt(np.mean(np.square(deviations[finite]), axis=0)) + smallest
    basis = principal_components(latents[finite] / scale)
    points = basis.coordinates(latents / scale)[:, :MOST_DIMENSIONS]
    uncertainty = np.where(finite, np.sqrt(np.mean(np.square(deviations / scale), axis=1)), np.nan)
    extra = np.maximum(np.nan_to_num(uncertainty) ** 2 - 1.0, 0.0)
    return _Scaled(points, finite, uncertainty, extra, basis, scale)


def _robust_width(values: Float[np.ndarray, " particle"]) -> float:
    """Half of the interval that holds the middle 68.3 % of the values: σ for a Gaussian, little moved by long tails."""
    low, high = np.quantile(values, [0.1587, 0.8413])
    return float(high - low) / 2.0


def _one_state(
    kind: Kind,
    latents: Float[np.ndarray, "particle component"],
    finite: Bool[np.ndarray, " particle"],
    center: Float[np.ndarray, " component"],
    spread: float,
) -> LatentDescription:
    return LatentDescription(
        kind=kind,
        labels=np.zeros(len(latents), dtype=np.int64),
        probabilities=finite.astype(np.float64),
        centers=center[None],
        weights=np.ones(1),
        separation=0.0,
        spread=spread,
    )


def _discrete(
    latents: Float[np.ndarray, "particle component"],
    scaled: _Scaled,
    modes: tuple[Int[np.ndarray, " sample"], Int[np.ndarray, " sample"]],
    spread: float,
) -> LatentDescription:
    """Classify all particles by one robust Gaussian for each separate mode."""
    sample, labels_of_sample = modes
    clusters = [
        robust_cluster(scaled.points[sample[labels_of_sample == mode]], float(np.mean(labels_of_sample == mode)))
        for mode in range(int(labels_of_sample.max()) + 1)
    ]
    finite = scaled.finite
    probability = np.zeros((len(latents), len(clusters)))
    probability[finite] = membership(scaled.points[finite], clusters, scaled.extra[finite])
    order = np.argsort(-np.bincount(np.argmax(probability[finite], axis=1), minlength=len(clusters)), kind="stable")
    probability = probability[:, order]
    labels = np.where(finite, np.argmax(probability, axis=1), 0)
    middle = np.stack([clusters[one].mean for one in order])
    return LatentDescription(
        kind="discrete",
        labels=labels,
        probabilities=probability.max(axis=1),
        centers=scaled.to_latents(middle),
        weights=np.bincount(labels[finite], minlength=len(order)) / finite.sum(),
        separation=separation(clusters),
        spread=spread,
    )


def _continuous(
    latents: Float[np.ndarray, "particle component"], scaled: _Scaled, path: RidgePath, stations: int, spread: float
) -> LatentDescription:
    """Stations along the ridge of a single wide cloud, each with an equal share of its length."""
    finite = scaled.finite
    positions, _ = project_on_curve(scaled.points[finite], path.curve, path.is_closed)
    station = np.minimum((positions * stations).astype(np.int64), stations - 1)
    present, nearest = np.unique(station, return_inverse=True)
    labels = np.zeros(len(latents), dtype=np.int64)
    labels[finite] = nearest
    middle = np.stack([scaled.points[finite][nearest == one].mean(axis=0) for one in range(len(present))])
    along = np.full(len(latents), np.nan)
    along[finite] = positions
    probabilities = np.zeros(len(latents))
    probabilities[finite] = _station_probability(scaled.points[finite], middle, nearest)
    return LatentDescription(
        kind="continuous",
        labels=labels,
        probabilities=probabilities,
        centers=scaled.to_latents(middle),
        weights=np.bincount(nearest) / finite.sum(),
        separation=0.0,
        spread=spread,
        path=LatentPath(
            scaled.to_latents(path.points), along, path.is_closed, path.length, scaled.to_latents(path.curve)
        ),
    )


def _station_probability(
    points: Float[np.ndarray, "particle axis"],
    centers: Float[np.ndarray, "state axis"],
    labels: Int[np.ndarray, " particle"],
) -> Float[np.ndarray, " particle"]:
    """Probability of each particle's station among all, for a posterior of unit width around the particle."""
    squared = np.sum((points[:, None, :] - centers[None]) ** 2, axis=2)
    weight = np.exp(-0.5 * (squared - squared.min(axis=1, keepdims=True)))
    return np.asarray(weight[np.arange(len(points)), labels] / weight.sum(axis=1))
