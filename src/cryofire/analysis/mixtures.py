"""Gaussian mixtures whose size the data choose, and the modes of their density.

The Bayesian information criterion chooses the number of components. Modes are found by mean shift (Carreira-Perpiñán 2000).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

LARGEST_MIXTURE = 14
SMALLEST_SHARE, SMALLEST_COUNT = 0.006, 25
"""Modes with fewer points are not clusters."""


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
    stiffness, force = springs(mixture, places)
    return places + np.asarray(np.linalg.solve(stiffness, force[..., None])[..., 0])


def springs(
    mixture: GaussianMixture, places: Float[np.ndarray, "place axis"]
) -> tuple[Float[np.ndarray, "place axis axis"], Float[np.ndarray, "place axis"]]:
    """Stiffness Σ r P and force Σ r P (μ − x) that the components exert on each place."""
    share = mixture.predict_proba(places)
    pull = np.einsum("kij,kj->ki", mixture.precisions_, mixture.means_)
    stiffness = np.einsum("pk,kij->pij", share, mixture.precisions_)
    return stiffness, share @ pull - np.einsum("pij,pj->pi", stiffness, places)


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
