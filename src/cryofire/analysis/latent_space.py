"""What a latent space holds: one conformation, separate states, or a continuous motion.

The density of posterior means is described by a Gaussian mixture (its size by BIC), and states are the modes of that
density that a valley separates from all others. Convolution with the posterior uncertainty can fill a valley but not dig
one, so a valley is evidence of separate states; mixture components without one are the shape of a single cloud.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from cryofire.analysis.trajectories import ridge_path

Kind = Literal["homogeneous", "discrete", "continuous"]

LARGEST_MIXTURE = 14
SAMPLE = 10_000
MOST_DIMENSIONS = 6
VALLEY = 0.55
"""Two modes are separate where the density between them falls below this fraction of the lower one."""
SMALLEST_STATE = 0.006
"""Modes with a smaller fraction of the particles, or under 25 of them, are not states."""
WIDE = 3.0
"""A single cloud this many times as wide as the posterior is a motion, not noise."""


@dataclass(frozen=True)
class LatentDescription:
    """What the latent space of a run holds.

    Attributes
    ----------
    kind : str
        "homogeneous": one cloud, about as wide as the uncertainty. "discrete": separate clouds. "continuous": one cloud
        much wider than the uncertainty.
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
    is_closed : bool
        Whether a continuous motion comes back to where it began.
    """

    kind: Kind
    labels: Int[np.ndarray, " particle"]
    probabilities: Float[np.ndarray, " particle"]
    centers: Float[np.ndarray, "state component"]
    weights: Float[np.ndarray, " state"]
    separation: float
    spread: float
    is_closed: bool = False


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
    seed : int
        Of samples and starts.
    """
    count, components = latents.shape
    finite = np.isfinite(latents).all(axis=1) & np.isfinite(deviations).all(axis=1)
    if components == 0 or finite.sum() < 50 or np.ptp(latents[finite]) == 0:
        center = latents[finite].mean(axis=0) if finite.any() else np.zeros(components)
        return _one_state(latents, finite, center, 0.0)
    scale = np.sqrt(np.mean(np.square(deviations[finite]), axis=0)) + 1e-12 * np.ptp(latents[finite]) + 1e-300
    basis = principal_components(latents[finite] / scale)
    points = basis.coordinates(latents / scale)[:, :MOST_DIMENSIONS]
    certain = finite & (_uncertainty(deviations / scale) <= 2.5 * np.median(_uncertainty(deviations[finite] / scale)))
    sample = np.flatnonzero(certain)[np.random.default_rng(seed).permutation(int(certain.sum()))[:SAMPLE]]
    modes = separate_modes(points[sample], seed)
    spread = _robust_width(points[sample, 0])
    if modes.max() > 0:
        return _discrete(latents, points, finite, (sample, modes), spread)
    if spread > WIDE:
        return _continuous(latents, points, finite, min(stations, max(2, count // 100)), spread, seed)
    return _one_state(latents, finite, latents[finite].mean(axis=0), spread)


def _uncertainty(deviations: Float[np.ndarray, "particle component"]) -> Float[np.ndarray, " particle"]:
    """Root mean square of the scaled deviations of each particle."""
    return np.asarray(np.sqrt(np.mean(np.square(deviations), axis=1)))


def _robust_width(values: Float[np.ndarray, " particle"]) -> float:
    """Half of the interval that holds the middle 68.3 % of the values: σ for a Gaussian, little moved by long tails."""
    low, high = np.quantile(values, [0.1587, 0.8413])
    return float(high - low) / 2.0


def fit_mixture(
    points: Float[np.ndarray, "particle axis"], largest: int = LARGEST_MIXTURE, seed: int = 0
) -> GaussianMixture:
    """Gaussian mixture with the number of components that minimises the Bayesian information criterion.

    Parameters
    ----------
    points : array (particle, axis)
        Scaled coordinates.
    largest : int
        Most components tried; the search ends when three more have brought nothing.
    seed : int
        Of the starts.
    """
    best, lowest, since = None, np.inf, 0
    for components in range(1, largest + 1):
        mixture = GaussianMixture(components, n_init=2, random_state=seed, reg_covar=1e-3, max_iter=200)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(points)
        criterion = mixture.bic(points)
        since = 0 if criterion < lowest else since + 1
        if criterion < lowest:
            best, lowest = mixture, criterion
        if since == 3:
            break
    return best


def separate_modes(points: Float[np.ndarray, "particle axis"], seed: int = 0) -> Int[np.ndarray, " particle"]:
    """Label of the separate mode of density that each point belongs to, the largest mode first.

    Points are visited by falling density of a fitted mixture and joined to their densest visited neighbours; two modes
    meet at a saddle. They stay apart if the density there is below `VALLEY` of the lower peak, if both are large enough,
    and if counting particles around the peaks and the saddle says the same as the mixture does.

    Parameters
    ----------
    points : array (particle, axis)
        Scaled so that noise is alike along all axes.
    seed : int
        Of the mixture.
    """
    mixture = fit_mixture(points, seed=seed)
    if mixture.n_components == 1:
        return np.zeros(len(points), dtype=np.int64)
    log_density = mixture.score_samples(points)
    smallest = max(25, round(SMALLEST_STATE * len(points)))
    tree = cKDTree(points)
    _, neighbours = tree.query(points, k=min(16, len(points)))
    roots = _climb(log_density, neighbours, _Judge(points, tree, log_density, smallest))
    distinct, labels, sizes = np.unique(roots, return_inverse=True, return_counts=True)
    rank = np.empty(len(distinct), dtype=np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(distinct))
    return _absorb_small(points, rank[labels], smallest)


@dataclass(frozen=True)
class _Judge:
    """Decides whether two modes that meet at a saddle are one."""

    points: Float[np.ndarray, "particle axis"]
    tree: cKDTree
    log_density: Float[np.ndarray, " particle"]
    smallest: int

    def are_one(self, peak: int, other: int, saddle: int, sizes: tuple[int, int]) -> bool:
        """Whether the valley between two peaks is too shallow, or one of the modes too small, to be real.

        Parameters
        ----------
        peak, other, saddle : int
            Points at the peaks of the two modes and where they meet.
        sizes : tuple of int
            Points joined to each mode so far.
        """
        lower = peak if self.log_density[peak] < self.log_density[other] else other
        if self.log_density[saddle] - self.log_density[lower] > np.log(VALLEY):
            return True
        return min(sizes) < self.smallest // 2 or not self._counts_agree(lower, saddle)

    def _counts_agree(self, peak: int, saddle: int) -> bool:
        """Whether clearly fewer particles lie around the saddle than around the lower peak."""
        wanted = max(12, self.smallest // 2)
        radius = float(self.tree.query(self.points[peak], k=[wanted])[0][0])
        at_saddle = len(self.tree.query_ball_point(self.points[saddle], radius))
        return at_saddle < VALLEY * wanted and wanted - at_saddle > 2.0 * np.sqrt(wanted + at_saddle)


def _climb(
    log_density: Float[np.ndarray, " particle"], neighbours: Int[np.ndarray, "particle near"], judge: _Judge
) -> Int[np.ndarray, " particle"]:
    """Peak that each point belongs to, after modes without a valley between them were joined."""
    order = np.argsort(-log_density, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    parent = np.full(len(order), -1, dtype=np.int64)
    sizes = np.ones(len(order), dtype=np.int64)

    def root(point: int) -> int:
        while parent[point] != point:
            parent[point] = parent[parent[point]]
            point = int(parent[point])
        return point

    for point in order:
        higher = [int(one) for one in neighbours[point] if rank[one] < rank[point]]
        peaks = sorted({root(one) for one in higher}, key=lambda one: int(rank[one]))
        parent[point] = peaks[0] if peaks else point
        for other in peaks[1:]:
            highest = root(peaks[0])
            if judge.are_one(highest, other, int(point), (int(sizes[highest]), int(sizes[other]))):
                parent[other] = highest
                sizes[highest] += sizes[other]
        sizes[root(int(point))] += 1
    return np.array([root(int(point)) for point in range(len(order))])


def _absorb_small(
    points: Float[np.ndarray, "particle axis"], labels: Int[np.ndarray, " particle"], smallest: int
) -> Int[np.ndarray, " particle"]:
    """Give the points of modes that are too small to the nearest mode that is not."""
    sizes = np.bincount(labels)
    large = np.flatnonzero(sizes >= smallest)
    kept = np.isin(labels, large)
    if kept.all() or large.size == 0:
        return labels if large.size else np.zeros_like(labels)
    nearest = cKDTree(points[kept]).query(points[~kept])[1]
    labels = labels.copy()
    labels[~kept] = labels[kept][nearest]
    return np.searchsorted(large, labels)


def _one_state(
    latents: Float[np.ndarray, "particle component"],
    finite: Bool[np.ndarray, " particle"],
    center: Float[np.ndarray, " component"],
    spread: float,
) -> LatentDescription:
    return LatentDescription(
        kind="homogeneous",
        labels=np.zeros(len(latents), dtype=np.int64),
        probabilities=finite.astype(np.float64),
        centers=center[None],
        weights=np.ones(1),
        separation=0.0,
        spread=spread,
    )


def _discrete(
    latents: Float[np.ndarray, "particle component"],
    points: Float[np.ndarray, "particle axis"],
    finite: Bool[np.ndarray, " particle"],
    modes: tuple[Int[np.ndarray, " sample"], Int[np.ndarray, " sample"]],
    spread: float,
) -> LatentDescription:
    """Classify all particles by one Gaussian for each mode, refined together."""
    mixture = _mixture_of_modes(points[modes[0]], modes[1])
    responsibility = np.zeros((len(points), mixture.n_components))
    responsibility[finite] = mixture.predict_proba(points[finite])
    order = np.argsort(-responsibility.sum(axis=0), kind="stable")
    responsibility = responsibility[:, order]
    labels = np.where(finite, np.argmax(responsibility, axis=1), 0)
    weights = np.bincount(labels[finite], minlength=len(order)) / finite.sum()
    return LatentDescription(
        kind="discrete",
        labels=labels,
        probabilities=np.where(finite, responsibility.max(axis=1), 0.0),
        centers=np.stack([latents[finite & (labels == state)].mean(axis=0) for state in range(len(order))]),
        weights=weights,
        separation=_separation(points[finite], labels[finite]),
        spread=spread,
    )


def _mixture_of_modes(
    points: Float[np.ndarray, "particle axis"], modes: Int[np.ndarray, " particle"]
) -> GaussianMixture:
    """Mixture with one Gaussian a mode, started at the modes; covariances of their own or a common one, by BIC.

    A fit that wanders off, so that it agrees with the modes for fewer than nine particles in ten, is replaced by its
    start.
    """
    groups = [points[modes == mode] for mode in range(int(modes.max()) + 1)]
    fits = []
    for kind in ("full", "tied"):
        for rounds in (100, 1):
            mixture = GaussianMixture(
                len(groups), covariance_type=kind, max_iter=rounds, reg_covar=1e-3,
                weights_init=np.array([len(group) for group in groups]) / len(points),
                means_init=np.stack([group.mean(axis=0) for group in groups]),
                precisions_init=_precisions(groups, len(points), kind),
            )  # fmt: skip
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                mixture.fit(points)
            agreement = float(np.mean(mixture.predict(points) == modes))
            fits.append((agreement < 0.9, mixture.bic(points), len(fits), mixture))
            if agreement >= 0.9:
                break
    return min(fits, key=lambda fit: fit[:3])[3]


def _precisions(
    groups: list[Float[np.ndarray, "member axis"]], total: int, kind: str
) -> Float[np.ndarray, "*shape axis axis"]:
    """Inverse covariances of groups, each its own or one for all."""
    axes = groups[0].shape[1]
    own = np.stack([np.cov(group.T).reshape(axes, axes) + 1e-3 * np.eye(axes) for group in groups])
    if kind == "full":
        return np.linalg.inv(own)
    share = np.array([len(group) for group in groups]) / total
    return np.linalg.inv(np.einsum("g,gij->ij", share, own))


def _separation(points: Float[np.ndarray, "particle axis"], labels: Int[np.ndarray, " particle"]) -> float:
    """Smallest distance between two state means over the mean of their deviations along the line between them."""
    groups = [points[labels == state] for state in np.unique(labels)]
    smallest = np.inf
    for index, group in enumerate(groups):
        for other in groups[:index]:
            line = group.mean(axis=0) - other.mean(axis=0)
            distance = float(np.linalg.norm(line))
            width = 0.5 * (np.std(group @ line) + np.std(other @ line)) / max(distance, 1e-300)
            smallest = min(smallest, distance / max(float(width), 1e-300))
    return float(smallest) if np.isfinite(smallest) else 0.0


def _continuous(
    latents: Float[np.ndarray, "particle component"],
    points: Float[np.ndarray, "particle axis"],
    finite: Bool[np.ndarray, " particle"],
    stations: int,
    spread: float,
    seed: int,
) -> LatentDescription:
    """Stations along the ridge of a single wide cloud, each with an equal share of its length."""
    path = ridge_path(points[finite], 8 * stations, seed=seed)
    nearest = np.minimum((path.positions * stations).astype(np.int64), stations - 1)
    labels = np.zeros(len(latents), dtype=np.int64)
    labels[finite] = nearest
    present = [state for state in range(stations) if np.any(nearest == state)]
    labels[finite] = np.searchsorted(present, nearest)
    centers = np.stack([latents[finite & (labels == state)].mean(axis=0) for state in range(len(present))])
    middle = np.stack([points[finite & (labels == state)].mean(axis=0) for state in range(len(present))])
    return LatentDescription(
        kind="continuous",
        labels=labels,
        probabilities=np.where(finite, _station_probability(points, middle, labels), 0.0),
        centers=centers,
        weights=np.bincount(labels[finite], minlength=len(present)) / finite.sum(),
        separation=0.0,
        spread=spread,
        is_closed=path.is_closed,
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
