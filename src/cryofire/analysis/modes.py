"""Modes of the density of a cloud of points, and which of them a valley separates.

Two modes of a mixture are separate if the density along the ridge between them dips well below the lower
one, both in the mixture and by counting points; modes joined by a chain of shallow valleys are one cloud, so a ring or an
arc is never taken for several clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree
from sklearn.mixture import GaussianMixture

from cryofire.analysis.mixtures import SMALLEST_COUNT, SMALLEST_SHARE, density_modes, fit_mixture, springs
from cryofire.analysis.trajectories import neighbour_graph, project_on_curve, resample_curve, walk_back

VALLEY = 0.55
"""Two modes are separate where the density between them falls below this fraction of the lower one."""
NODES = 25


@dataclass(frozen=True)
class Passage:
    """The way between two modes along the ridge.

    Attributes
    ----------
    peaks : tuple of float
        Log-density of the mixture at both modes.
    saddle : float
        Its lowest value on the way.
    count_ratio : float
        Fewest points for a unit of length over the most on the emptier side.
    significance : float
        Their difference in standard deviations of counts.
    """

    peaks: tuple[float, float]
    saddle: float
    count_ratio: float
    significance: float

    def is_blocked(self, lower: float) -> bool:
        """Whether a valley separates the two sides, the lower of which has a peak of log-density `lower`.

        The mixture and the counts must both say so. Where the peak is not one of the two modes, but lies further along a
        cloud that a mode belongs to, heights are compared through the mixture, and twice the depth is asked for.

        Parameters
        ----------
        lower : float
            At least the lower of `peaks`.
        """
        own = min(self.peaks)
        if self.saddle - lower > np.log(VALLEY):
            return False
        if lower <= own + 1e-9:
            return self.count_ratio < VALLEY and self.significance > 2.0
        return self.count_ratio * float(np.exp(own - lower)) < 0.5 * VALLEY


@dataclass(frozen=True)
class Landscape:
    """A density and the points it was fitted to.

    Attributes
    ----------
    mixture : GaussianMixture
    points : array (particle, axis)
    tree : cKDTree
        Of the points.
    graph : csr_matrix
        Their neighbours.
    """

    mixture: GaussianMixture
    points: Float[np.ndarray, "particle axis"]
    tree: cKDTree
    graph: csr_matrix

    @classmethod
    def of(cls, mixture: GaussianMixture, points: Float[np.ndarray, "particle axis"]) -> Landscape:
        """Return the landscape of a fitted mixture.

        Parameters
        ----------
        mixture : GaussianMixture
            Fitted to the points.
        points : array (particle, axis)
        """
        return cls(mixture, points, cKDTree(points), neighbour_graph(points, 12))

    def ridge(
        self, start: Float[np.ndarray, " axis"], end: Float[np.ndarray, " axis"], rounds: int = 40
    ) -> Float[np.ndarray, "node axis"]:
        """Path between two modes along the ridge of density.

        The straight line and the smoothed shortest path through the neighbour graph are pulled uphill across their own
        direction (mean shift), keeping their nodes evenly spaced; the one whose lowest point is higher is the ridge.

        Parameters
        ----------
        start, end : array (axis,)
            The modes.
        rounds : int
            Steps of relaxation.
        """
        paths = []
        for between in (self.points[:0], self._shortest(start, end)):
            path = resample_curve(np.concatenate([start[None], between, end[None]]), NODES, is_closed=False)
            for _ in range(20 if len(between) else 0):
                path = _smoothed(path)
            for _ in range(rounds):
                path = resample_curve(_smoothed(self._uphill(path)), NODES, is_closed=False)
            paths.append(path)
        return max(paths, key=lambda path: float(self.mixture.score_samples(path).min()))

    def _shortest(
        self, start: Float[np.ndarray, " axis"], end: Float[np.ndarray, " axis"]
    ) -> Float[np.ndarray, "node axis"]:
        """Points along the shortest path through the graph; none where its pieces are not connected."""
        first, last = (int(self.tree.query(place)[1]) for place in (start, end))
        away, previous = dijkstra(self.graph, directed=False, indices=first, return_predecessors=True)
        return self.points[walk_back(previous, first, last)] if np.isfinite(away[last]) else self.points[:0]

    def _uphill(self, path: Float[np.ndarray, "node axis"]) -> Float[np.ndarray, "node axis"]:
        """Path after half a step to the best place in the plane across it, (H + ∞ t tᵀ)⁻¹ force; its ends stay.

        Solving in the plane, not projecting a full mean shift, keeps a long pull along the path from kinking it.
        """
        along = path[2:] - path[:-2]
        along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-12)
        stiffness, force = springs(self.mixture, path[1:-1])
        rigid = 1e6 * np.trace(stiffness, axis1=1, axis2=2)[:, None, None] * along[:, :, None] * along[:, None, :]
        step = np.linalg.solve(stiffness + rigid, force[..., None])[..., 0]
        return np.concatenate([path[:1], path[1:-1] + 0.5 * step, path[-1:]])

    def passage(
        self, start: Float[np.ndarray, " axis"], end: Float[np.ndarray, " axis"], members: Bool[np.ndarray, " particle"]
    ) -> Passage:
        """What lies between two modes.

        Parameters
        ----------
        start, end : array (axis,)
            The modes.
        members : array (particle,)
            Their points, which say how wide a tube around the ridge is looked at.
        """
        path = self.ridge(start, end)
        height = self.mixture.score_samples(path)
        profile, width = self.profile(path, members)
        place = int(np.argmin(profile))
        lower, least = min(profile[: place + 1].max(), profile[place:].max()), profile[place]
        return Passage(
            peaks=(float(height[0]), float(height[-1])),
            saddle=float(height.min()),
            count_ratio=float(least / max(lower, 1e-12)),
            significance=float((lower - least) * np.sqrt(width / max(lower + least, 1e-12))),
        )

    def profile(
        self, path: Float[np.ndarray, "node axis"], members: Bool[np.ndarray, " particle"]
    ) -> tuple[Float[np.ndarray, " place"], float]:
        """Points for each unit of length along a path, smoothed, and the length one value averages over.

        All points in a tube around the path count, of whatever mode. The path is prolonged at both ends, so that the
        modes themselves are seen whole.

        Parameters
        ----------
        path : array (node, axis)
            From `ridge`.
        members : array (particle,)
            Points whose 70 % quantile of distance to the path is the radius of the tube, at least 1.
        """
        length = float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())
        deviation = max(0.45, length / 20.0)
        reach = 2.0 * deviation
        before, after = path[0] - path[1], path[-1] - path[-2]
        ends = [path[0] + reach * before / np.linalg.norm(before), path[-1] + reach * after / np.linalg.norm(after)]
        place, distance = project_on_curve(self.points, np.vstack([ends[0], path, ends[1]]), is_closed=False)
        inside = (place > 0.0) & (place < 1.0)
        known = distance[inside & members]
        radius = max(1.0, float(np.quantile(known, 0.7))) if known.size else 1.0
        along = (place * (length + 2.0 * reach))[inside & (distance <= radius)]
        grid = np.linspace(0.5 * reach, 1.5 * reach + length, 60)
        kernel = np.exp(-0.5 * ((grid[:, None] - along[None, :]) / deviation) ** 2)
        return kernel.sum(axis=1) / (deviation * np.sqrt(2.0 * np.pi)), 2.0 * np.sqrt(np.pi) * deviation


def _smoothed(path: Float[np.ndarray, "node axis"]) -> Float[np.ndarray, "node axis"]:
    """Path with every inner node averaged with its neighbours."""
    inner = 0.5 * path[1:-1] + 0.25 * (path[:-2] + path[2:])
    return np.concatenate([path[:1], inner, path[-1:]])


def separate_modes(points: Float[np.ndarray, "particle axis"], seed: int = 0) -> Int[np.ndarray, " particle"]:
    """Label of the separate mode of density that each point belongs to, the largest first; all 0 where there is one.

    Parameters
    ----------
    points : array (particle, axis)
        Scaled so that noise is alike and about 1 along all axes.
    seed : int
        Of the mixture.
    """
    mixture = fit_mixture(points, seed=seed)
    modes, member = density_modes(mixture)
    share = mixture.predict_proba(points)
    belonging = np.stack([share[:, member == mode].sum(axis=1) for mode in range(len(modes))], axis=1)
    group = _join(Landscape.of(mixture, points), modes, np.argmax(belonging, axis=1))
    summed = np.stack([belonging[:, group == one].sum(axis=1) for one in range(int(group.max()) + 1)], axis=1)
    labels = np.argmax(summed, axis=1)
    order = np.argsort(-np.bincount(labels, minlength=summed.shape[1]), kind="stable")
    return np.asarray(np.argsort(order)[labels])


def _join(
    landscape: Landscape, modes: Float[np.ndarray, "mode axis"], nearest: Int[np.ndarray, " particle"]
) -> Int[np.ndarray, " mode"]:
    """Cluster of each mode: small modes go to the nearest large one, large ones stay apart where there is a valley."""
    sizes = np.bincount(nearest, minlength=len(modes))
    smallest = max(SMALLEST_COUNT, round(SMALLEST_SHARE * len(nearest)))
    large = np.flatnonzero(sizes >= smallest)
    if large.size == 0:
        return np.zeros(len(modes), dtype=np.int64)
    passages = [
        (landscape.passage(modes[one], modes[other], (nearest == one) | (nearest == other)), int(one), int(other))
        for place, one in enumerate(large)
        for other in large[:place]
    ]
    cluster = _link(len(modes), sorted(passages, key=lambda passage: -passage[0].saddle))
    for small in np.flatnonzero(sizes < smallest):
        cluster[small] = cluster[large[np.argmin(np.linalg.norm(modes[large] - modes[small], axis=1))]]
    return np.unique(cluster, return_inverse=True)[1]


def _link(count: int, passages: list[tuple[Passage, int, int]]) -> Int[np.ndarray, " mode"]:
    """Cluster of each mode, after those were joined that no valley separates, over the highest saddles first.

    A cluster is judged by its highest peak, so that a thin bridge of stray points between two clusters, whose own mode
    no valley separates from either, does not make them one.
    """
    cluster = np.arange(count)
    peak = np.full(count, -np.inf)
    for passage, one, other in passages:
        for mode, height in zip((one, other), passage.peaks, strict=True):
            peak[mode] = max(peak[mode], height)
    for passage, one, other in passages:
        first, second = cluster[one], cluster[other]
        if first == second:
            continue
        heights = [float(peak[cluster == which].max()) for which in (first, second)]
        if not passage.is_blocked(min(heights)):
            cluster[cluster == second] = first
    return cluster
