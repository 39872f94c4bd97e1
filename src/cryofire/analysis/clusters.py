"""Clusters of latent space as Gaussians that a few misplaced particles do not distort, and who belongs to which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import chi2


@dataclass(frozen=True)
class Cluster:
    """A Gaussian cluster, its covariance given by principal axes.

    Attributes
    ----------
    mean : array (axis,)
    axes : array (axis, axis)
        Orthonormal rows.
    variances : array (axis,)
        Along the rows of `axes`.
    weight : float
        Fraction of all particles.
    """

    mean: Float[np.ndarray, " axis"]
    axes: Float[np.ndarray, "axis axis"]
    variances: Float[np.ndarray, " axis"]
    weight: float

    def squared_distance(
        self, points: Float[np.ndarray, "particle axis"], extra: Float[np.ndarray, " particle"] | None = None
    ) -> Float[np.ndarray, " particle"]:
        """Squared Mahalanobis distance, (x − m)ᵀ (C + e I)⁻¹ (x − m).

        Parameters
        ----------
        points : array (particle, axis)
        extra : array (particle,), optional
            Variance e that a particle's own uncertainty adds to that of the cluster.
        """
        along = (points - self.mean) @ self.axes.T
        return np.asarray(np.sum(along**2 / self._widened(extra), axis=1))

    def log_density(
        self, points: Float[np.ndarray, "particle axis"], extra: Float[np.ndarray, " particle"] | None = None
    ) -> Float[np.ndarray, " particle"]:
        """Log w − ½ (log det 2π(C + e I) + squared distance).

        Parameters
        ----------
        points : array (particle, axis)
        extra : array (particle,), optional
            As for `squared_distance`.
        """
        volume = np.sum(np.log(2.0 * np.pi * self._widened(extra)), axis=1)
        return np.asarray(np.log(self.weight) - 0.5 * (volume + self.squared_distance(points, extra)))

    def _widened(self, extra: Float[np.ndarray, " particle"] | None) -> Float[np.ndarray, "particle axis"]:
        return self.variances[None, :] if extra is None else self.variances[None, :] + extra[:, None]


def robust_cluster(
    points: Float[np.ndarray, "member axis"], weight: float, *, kept: float = 0.98, floor: float = 1e-3
) -> Cluster:
    """Gaussian of a cluster from its inner members; the trimmed covariance is scaled back to what a Gaussian would have.

    Members beyond the `kept` quantile of the Mahalanobis distance are left out, five times over, starting from the
    median. Trimming a d-dimensional Gaussian at χ²_d < q shrinks its covariance by P(χ²_{d+2} < q) / P(χ²_d < q).

    Parameters
    ----------
    points : array (member, axis)
        Members.
    weight : float
        Fraction of all particles.
    kept : float
        Fraction of a Gaussian inside the trimming ellipsoid.
    floor : float
        Smallest variance along any axis.
    """
    dimensions = points.shape[1]
    limit = float(chi2.ppf(kept, dimensions))
    shrunk = float(chi2.cdf(limit, dimensions + 2)) / kept
    middle = np.median(points, axis=0)
    width = np.square(np.median(np.abs(points - middle), axis=0) / 0.6745) + floor
    cluster = Cluster(middle, np.eye(dimensions), width, weight)
    for _ in range(5):
        inner = points[cluster.squared_distance(points) < limit]
        if len(inner) <= 2 * dimensions:
            break
        mean = inner.mean(axis=0)
        variances, vectors = np.linalg.eigh((inner - mean).T @ (inner - mean) / len(inner) / shrunk)
        cluster = Cluster(mean, vectors.T.copy(), np.maximum(variances, floor), weight)
    return cluster


def membership(
    points: Float[np.ndarray, "particle axis"], clusters: Sequence[Cluster], extra: Float[np.ndarray, " particle"]
) -> Float[np.ndarray, "particle cluster"]:
    """Posterior probability of every cluster for every particle.

    Parameters
    ----------
    points : array (particle, axis)
        Finite coordinates.
    clusters : sequence of Cluster
        With weights that sum to 1.
    extra : array (particle,)
        Variance that the particle's own uncertainty adds beyond the typical one.
    """
    logarithm = np.stack([cluster.log_density(points, extra) for cluster in clusters], axis=1)
    probability = np.exp(logarithm - logarithm.max(axis=1, keepdims=True))
    return np.asarray(probability / probability.sum(axis=1, keepdims=True))


def separation(clusters: Sequence[Cluster]) -> float:
    """Smallest distance between two cluster means over the mean deviation of both along the line; 0 for one cluster.

    Parameters
    ----------
    clusters : sequence of Cluster
    """
    found = []
    for index, one in enumerate(clusters):
        for other in clusters[:index]:
            line = one.mean - other.mean
            distance = max(float(np.linalg.norm(line)), 1e-300)
            widths = [
                np.sqrt(np.sum((cluster.axes @ (line / distance)) ** 2 * cluster.variances)) for cluster in (one, other)
            ]
            found.append(distance / float(0.5 * (widths[0] + widths[1])))
    return min(found, default=0.0)
