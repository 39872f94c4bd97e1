"""What a delivered model remembers of the latent space it was learnt on: states, a sample of where particles lie, distances.

All geometry happens in coordinates divided by the typical posterior deviation, so that a distance of 1 is one deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from cryofire.analysis.clusters import Cluster, membership, robust_cluster
from cryofire.analysis.latent_space import Kind, principal_components
from cryofire.analysis.trajectories import neighbour_graph, project_on_curve, resample_curve, walk_back

SAMPLE = 3000
OUTSIDE = 3.0
"""A point is outside the learnt region when the nearest particles are this many deviations farther away than is usual."""


@dataclass(frozen=True)
class LatentSummary:
    """Where the particles of the training set lie in latent space, and what the states are.

    Attributes
    ----------
    kind : str
        "homogeneous", "unresolved", "discrete" or "continuous": `latent_space.LatentDescription`.
    scale : array (component,)
        Typical posterior deviation of each coordinate.
    sample : array (sample, component)
        Latents of some particles of the training set.
    sample_state : array (sample,)
        Their states, counted from 0.
    centers : array (state, component)
        Latent coordinates of each state.
    means, variances : array (state, component)
        Of the Gaussian of each state, along `axes`, in scaled coordinates.
    axes : array (state, component, component)
    weights : array (state,)
        Fraction of the particles in each.
    curve : array (node, component)
        The path of a continuous motion; no nodes where there is none.
    is_closed : bool
        Whether that path comes back to where it began.
    """

    kind: Kind
    scale: Float[np.ndarray, " component"]
    sample: Float[np.ndarray, "sample component"]
    sample_state: Int[np.ndarray, " sample"]
    centers: Float[np.ndarray, "state component"]
    means: Float[np.ndarray, "state component"]
    variances: Float[np.ndarray, "state component"]
    axes: Float[np.ndarray, "state component component"]
    weights: Float[np.ndarray, " state"]
    curve: Float[np.ndarray, "node component"]
    is_closed: bool

    @property
    def components(self) -> int:
        """Number of latent coordinates."""
        return len(self.scale)

    @property
    def clusters(self) -> tuple[Cluster, ...]:
        """Gaussian of each state in scaled coordinates."""
        parts = zip(self.means, self.axes, self.variances, self.weights, strict=True)
        return tuple(Cluster(mean, axes, variances, float(weight)) for mean, axes, variances, weight in parts)

    def states(
        self, latents: Float[np.ndarray, "particle component"], deviations: Float[np.ndarray, "particle component"]
    ) -> tuple[Int[np.ndarray, " particle"], Float[np.ndarray, " particle"]]:
        """Most probable state of each particle and its probability; rows that are not finite get state 0 and probability 0.

        Parameters
        ----------
        latents, deviations : array (particle, component)
            Posterior means and standard deviations.
        """
        labels, probability = np.zeros(len(latents), dtype=np.int64), np.zeros(len(latents))
        finite = np.isfinite(latents).all(axis=1) & np.isfinite(deviations).all(axis=1)
        if len(self.centers) == 1 or self.components == 0:
            return labels, finite.astype(np.float64)
        points, widths = latents[finite] / self.scale, deviations[finite] / self.scale
        if self.kind == "continuous":
            squared = np.sum((points[:, None, :] - (self.centers / self.scale)[None]) ** 2, axis=2)
            width = np.maximum(np.mean(widths**2, axis=1), 1e-12)[:, None]
            chance = np.exp(-0.5 * (squared - squared.min(axis=1, keepdims=True)) / width)
            chance /= chance.sum(axis=1, keepdims=True)
        else:
            chance = membership(points, self.clusters, np.maximum(np.mean(widths**2, axis=1) - 1.0, 0.0))
        labels[finite] = np.argmax(chance, axis=1)
        probability[finite] = chance.max(axis=1)
        return labels, probability

    def path_position(self, latents: Float[np.ndarray, "particle component"]) -> Float[np.ndarray, " particle"]:
        """Where particles lie along the path of a motion, 0 … 1; NaN without a path and where a latent is not finite.

        Parameters
        ----------
        latents : array (particle, component)
            Posterior means.
        """
        positions = np.full(len(latents), np.nan)
        finite = np.isfinite(latents).all(axis=1)
        if len(self.curve) > 1:
            positions[finite], _ = project_on_curve(
                latents[finite] / self.scale, self.curve / self.scale, self.is_closed
            )
        return positions

    def distance(self, points: Float[np.ndarray, "point component"]) -> Float[np.ndarray, " point"]:
        """How far points lie outside the learnt region, in posterior deviations; 0 inside.

        The distance to the fifth nearest particle of the sample, less what it is for nearly all particles themselves and
        less `OUTSIDE`.

        Parameters
        ----------
        points : array (point, component)
            Latent coordinates.
        """
        if self.components == 0 or len(self.sample) < 8:
            return np.zeros(len(points))
        tree = cKDTree(self.sample / self.scale)
        usual = float(np.quantile(tree.query(self.sample / self.scale, k=[6])[0], 0.99))
        away = tree.query(points / self.scale, k=[5])[0][:, 0]
        return np.where(away > usual + OUTSIDE, away - usual, 0.0)

    def path(
        self, start: Float[np.ndarray, " component"], end: Float[np.ndarray, " component"], count: int
    ) -> tuple[Float[np.ndarray, "point component"], bool]:
        """Points from one place to another through where particles lie, and whether there is such a way.

        The shortest path through the neighbour graph of the sample, smoothed; a straight line where nothing joins the ends.

        Parameters
        ----------
        start, end : array (component,)
        count : int
            How many points, both ends included; at least 2.
        """
        ends = np.stack([start, end]) / self.scale
        nodes = np.concatenate([ends, self.sample / self.scale])
        graph = neighbour_graph(nodes, 12)
        _, previous = dijkstra(graph, directed=False, indices=0, return_predecessors=True)
        way = walk_back(previous, 0, 1)
        if way[0] != 0 or self._has_gap(nodes[way]):
            return resample_curve(ends, count, is_closed=False) * self.scale, False
        curve = resample_curve(nodes[way], max(4 * count, 64), is_closed=False)
        smooth = _smoothed(curve, max(len(curve) // 6, 1))
        return resample_curve(smooth, count, is_closed=False) * self.scale, True

    def _has_gap(self, way: Float[np.ndarray, "node component"]) -> bool:
        steps = np.linalg.norm(np.diff(way, axis=0), axis=1)
        return len(steps) > 1 and bool(np.max(steps[1:-1], initial=0.0) > OUTSIDE)

    def principal_path(self, component: int, count: int) -> Float[np.ndarray, "point component"]:
        """Points along a principal component: the local mean of the particles from its 3 % to its 97 % quantile.

        Parameters
        ----------
        component : int
            Counted from 0.
        count : int
            How many points.
        """
        points = self.sample / self.scale
        along = principal_components(points).coordinates(points)[:, component]
        low, high = (float(one) for one in np.quantile(along, [0.03, 0.97]))
        places = np.linspace(low, high, count)
        width = max((high - low) / max(count - 1, 1), 0.3 * float(np.std(along)), 1e-12)
        weight = np.exp(-0.5 * ((along[None] - places[:, None]) / width) ** 2) + 1e-300
        local = weight @ points / weight.sum(axis=1, keepdims=True)
        axis = principal_components(points).axes[component]
        missing = places - (local - points.mean(axis=0)) @ axis
        return np.asarray((local + missing[:, None] * axis) * self.scale)


def _smoothed(curve: Float[np.ndarray, "node component"], width: int) -> Float[np.ndarray, "node component"]:
    """Each node replaced by the mean of those within `width`, fewer towards the ends, which stay."""
    total = np.concatenate([np.zeros((1, curve.shape[1])), np.cumsum(curve, axis=0)])
    place = np.arange(len(curve))
    reach = np.minimum(np.minimum(place, len(curve) - 1 - place), width)
    return np.asarray((total[place + reach + 1] - total[place - reach]) / (2 * reach + 1)[:, None])


def summarise_latents(
    latents: Float[np.ndarray, "particle component"],
    deviations: Float[np.ndarray, "particle component"],
    labels: Int[np.ndarray, " particle"],
    kind: Kind,
    centers: Sequence[Sequence[float]] | Float[np.ndarray, "state component"],
    curve: Float[np.ndarray, "node component"] | None = None,
    is_closed: bool = False,
) -> LatentSummary:
    """Summary of the latents of a training set.

    Parameters
    ----------
    latents, deviations : array (particle, component)
        Posterior means and standard deviations; rows that are not finite are left out.
    labels : array (particle,)
        State of each particle, counted from 0.
    kind : str
        What the latent space holds.
    centers : array (state, component)
        Latent coordinates of each state.
    curve : array (node, component), optional
        The path of a continuous motion.
    is_closed : bool
        Whether it comes back to where it began.
    """
    finite = np.isfinite(latents).all(axis=1) & np.isfinite(deviations).all(axis=1)
    latents, deviations, labels = latents[finite].astype(np.float64), deviations[finite], labels[finite]
    middle = np.asarray(centers, dtype=np.float64).reshape(len(centers), latents.shape[1])
    scale = np.sqrt(np.mean(np.square(deviations), axis=0)) + 1e-6 * np.std(latents, axis=0) + 1e-12
    weights = np.bincount(labels, minlength=len(middle))[: len(middle)] / max(len(labels), 1)
    clusters = [
        _cluster(latents[labels == state] / scale, middle[state] / scale, float(weights[state]))
        for state in range(len(middle))
    ]
    chosen = np.sort(np.random.default_rng(0).permutation(len(latents))[:SAMPLE])
    size, states = latents.shape[1], len(clusters)
    return LatentSummary(
        kind, scale, latents[chosen], labels[chosen].astype(np.int64), middle,
        means=np.stack([one.mean for one in clusters]).reshape(states, size),
        variances=np.stack([one.variances for one in clusters]).reshape(states, size),
        axes=np.stack([one.axes for one in clusters]).reshape(states, size, size),
        weights=np.maximum(weights, 1e-9), curve=np.zeros((0, size)) if curve is None else curve, is_closed=is_closed,
    )  # fmt: skip


def _cluster(points: Float[np.ndarray, "member axis"], center: Float[np.ndarray, " axis"], weight: float) -> Cluster:
    size = len(center)
    if size == 0 or len(points) < 2 * size + 2:
        return Cluster(center, np.eye(size), np.ones(size), max(weight, 1e-9))
    return robust_cluster(points, max(weight, 1e-9))
