"""Modes of the density of a cloud of points, and which of them a valley separates.

The density is a Gaussian mixture whose size the Bayesian information criterion chooses. Its modes are found by mean shift
(Carreira-Perpiñán 2000). Two modes are separate if the density along the ridge between them dips well below the lower
one, both in the mixture and by counting points; modes joined by a chain of shallow valleys are one cloud, so a ring or an
arc is never taken for several clusters.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import cKDTree
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from cryofire.analysis.trajectories import neighbour_graph, resample_curve, walk_back

LARGEST_MIXTURE = 14
VALLEY = 0.55
"""Two modes are separate where the density between them falls below this fraction of the lower one."""
SMALLEST_SHARE, SMALLEST_COUNT = 0.006, 25
"""Modes with fewer points are not clusters."""
NODES = 25


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
    best, lowest, since, current = None, np.inf, 0, None
    crowds = _Crowds.of(points)
    for components in range(1, largest + 1):
        starts: list[dict[str, object]] = [{}] if current is None else [{}, crowds.grown(current)]
        fits = [_fitted(points, components, seed, start) for start in starts]
        current = max(fits, key=lambda fit: float(fit.lower_bound_))
        criterion = current.bic(points)
        since = 0 if criterion < lowest else since + 1
        if criterion < lowest:
            best, lowest = current, criterion
        if since == 3:
            break
    return best


def _fitted(
    points: Float[np.ndarray, "particle axis"], components: int, seed: int, start: dict[str, object]
) -> GaussianMixture:
    """Mixture fitted from a given start, or from k-means."""
    mixture = GaussianMixture(components, random_state=seed, reg_covar=1e-3, max_iter=200, **start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(points)


@dataclass(frozen=True)
class _Crowds:
    """Places with near neighbours on all sides, and the density there: where a mixture may lack a component.

    Attributes
    ----------
    centers : array (crowd, axis)
        Mean of the neighbours of a point.
    covariances : array (crowd, axis, axis)
        Of these neighbours.
    log_density : array (crowd,)
        log(neighbours / N) − d log(radius), up to a constant.
    share : float
        Neighbours over all points.
    """

    centers: Float[np.ndarray, "crowd axis"]
    covariances: Float[np.ndarray, "crowd axis axis"]
    log_density: Float[np.ndarray, " crowd"]
    share: float

    @classmethod
    def of(cls, points: Float[np.ndarray, "particle axis"], most: int = 2000) -> _Crowds:
        """Return the crowds around some of the points.

        Parameters
        ----------
        points : array (particle, axis)
        most : int
            Points looked at.
        """
        count, axes = points.shape
        wanted = min(count - 1, max(SMALLEST_COUNT, round(SMALLEST_SHARE * count)))
        chosen = points[:: max(1, count // most)]
        distance, near = cKDTree(points).query(chosen, k=wanted)
        radius = np.maximum(distance[:, -1], 1e-9)
        around = points[near]
        centers = around.mean(axis=1)
        inner = np.linalg.norm(centers - chosen, axis=1) < 0.5 * radius
        away = around[inner] - centers[inner, None]
        covariances = np.einsum("cni,cnj->cij", away, away) / wanted + 1e-3 * np.eye(axes)
        return cls(centers[inner], covariances, -axes * np.log(radius[inner]), wanted / count)

    def grown(self, mixture: GaussianMixture) -> dict[str, object]:
        """Start of a mixture with one component more, at the crowd that this one underrates most.

        Parameters
        ----------
        mixture : GaussianMixture
        """
        if len(self.centers) == 0:
            return {}
        worst = int(np.argmax(self.log_density - mixture.score_samples(self.centers)))
        return {
            "weights_init": np.append(mixture.weights_ * (1.0 - self.share), self.share),
            "means_init": np.vstack([mixture.means_, self.centers[worst]]),
            "precisions_init": np.concatenate([mixture.precisions_, np.linalg.inv(self.covariances[worst])[None]]),
        }


def shift_to_mean(mixture: GaussianMixture, places: Float[np.ndarray, "place axis"]) -> Float[np.ndarray, "place axis"]:
    """One mean-shift step uphill: (Σ r P)⁻¹ Σ r P μ, with r the responsibilities and P the inverse covariances.

    Parameters
    ----------
    mixture : GaussianMixture
        With full covariances.
    places : array (place, axis)
        Where to start.
    """
    share = mixture.predict_proba(places)
    pull = np.einsum("kij,kj->ki", mixture.precisions_, mixture.means_)
    stiffness = np.einsum("pk,kij->pij", share, mixture.precisions_)
    return np.asarray(np.linalg.solve(stiffness, (share @ pull)[..., None])[..., 0])


def density_modes(
    mixture: GaussianMixture, rounds: int = 400
) -> tuple[Float[np.ndarray, "mode axis"], Int[np.ndarray, " component"]]:
    """Modes of a mixture, and the mode that each component climbs to.

    Parameters
    ----------
    mixture : GaussianMixture
        With full covariances, in units of the noise.
    rounds : int
        Most mean-shift steps.
    """
    places = mixture.means_.copy()
    for _ in range(rounds):
        moved = shift_to_mean(mixture, places)
        done = float(np.abs(moved - places).max()) < 1e-5
        places = moved
        if done:
            break
    modes: list[Float[np.ndarray, " axis"]] = []
    member = np.zeros(len(places), dtype=np.int64)
    for index, place in enumerate(places):
        known = [number for number, mode in enumerate(modes) if np.linalg.norm(place - mode) < 0.2]
        member[index] = known[0] if known else len(modes)
        if not known:
            modes.append(place)
    return np.stack(modes), member


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

        The shortest path through the neighbour graph, or the straight line where there is none, is pulled uphill across
        its own direction (mean shift), keeping its nodes evenly spaced.

        Parameters
        ----------
        start, end : array (axis,)
            The modes.
        rounds : int
            Steps of relaxation.
        """
        first, last = (int(self.tree.query(place)[1]) for place in (start, end))
        away, previous = dijkstra(self.graph, directed=False, indices=first, return_predecessors=True)
        between = self.points[walk_back(previous, first, last)] if np.isfinite(away[last]) else self.points[:0]
        path = resample_curve(np.concatenate([start[None], between, end[None]]), NODES, is_closed=False)
        for _ in range(rounds):
            along = path[2:] - path[:-2]
            along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-12)
            step = shift_to_mean(self.mixture, path[1:-1]) - path[1:-1]
            step -= np.sum(step * along, axis=1, keepdims=True) * along
            path[1:-1] += 0.5 * step
            path = resample_curve(path, NODES, is_closed=False)
        return path

    def is_valley(self, path: Float[np.ndarray, "node axis"], size: int) -> bool:
        """Whether the density dips along a path between two modes, in the mixture and in numbers of points.

        Parameters
        ----------
        path : array (node, axis)
            From `ridge`.
        size : int
            Points of the smaller mode.
        """
        height = self.mixture.score_samples(path)
        if height.min() - min(height[0], height[-1]) > np.log(VALLEY):
            return False
        wanted = int(np.clip(size // 5, 12, 200))
        radius = max(float(self.tree.query(path[end], k=[wanted])[0][0]) for end in (0, -1))
        counts = np.array([len(found) for found in self.tree.query_ball_point(path, radius)])
        lower, least = int(min(counts[0], counts[-1])), int(counts.min())
        return least < VALLEY * lower and lower - least > 2.0 * np.sqrt(lower + least)


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
    sizes = np.bincount(np.argmax(belonging, axis=1), minlength=len(modes))
    smallest = max(SMALLEST_COUNT, round(SMALLEST_SHARE * len(points)))
    group = _join(Landscape.of(mixture, points), modes, sizes, smallest)
    summed = np.stack([belonging[:, group == one].sum(axis=1) for one in range(int(group.max()) + 1)], axis=1)
    labels = np.argmax(summed, axis=1)
    order = np.argsort(-np.bincount(labels, minlength=summed.shape[1]), kind="stable")
    return np.asarray(np.argsort(order)[labels])


def _join(
    landscape: Landscape, modes: Float[np.ndarray, "mode axis"], sizes: Int[np.ndarray, " mode"], smallest: int
) -> Int[np.ndarray, " mode"]:
    """Cluster of each mode: small modes go to the nearest large one, large ones stay apart where there is a valley."""
    large = np.flatnonzero(sizes >= smallest)
    if large.size == 0:
        return np.zeros(len(modes), dtype=np.int64)
    joined = np.eye(len(modes), dtype=bool)
    for place, one in enumerate(large):
        for other in large[:place]:
            path = landscape.ridge(modes[one], modes[other])
            joined[one, other] = not landscape.is_valley(path, int(min(sizes[one], sizes[other])))
    for small in np.flatnonzero(sizes < smallest):
        joined[small, large[np.argmin(np.linalg.norm(modes[large] - modes[small], axis=1))]] = True
    return np.asarray(connected_components(csr_matrix(joined), directed=False)[1])
