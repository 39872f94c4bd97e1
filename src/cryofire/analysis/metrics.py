"""Scores of the field: Fourier shell correlation, pose errors, confusion, calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import fft
from scipy.optimize import linear_sum_assignment
from scipy.stats import chi2

from cryofire.geometry.grids import fourier_shell_correlation

REGION_LEVELS = (0.5, 0.9, 0.99)
"""Probability content of the regions whose calibration is reported."""


def shell_index(box: int) -> Int[np.ndarray, "box box half"]:
    """Shell of every coefficient of a real-input transform (`rfftn` order): |k| rounded to the nearest integer.

    Parameters
    ----------
    box : int
        Voxels along each edge of the map, even or odd.
    """
    frequency = fft.fftfreq(box, 1.0 / box)
    half = fft.rfftfreq(box, 1.0 / box)
    squared = frequency[:, None, None] ** 2 + frequency[None, :, None] ** 2 + half[None, None, :] ** 2
    return np.asarray(np.rint(np.sqrt(squared)), dtype=np.int64)


def map_correlation(
    map_a: Float[np.ndarray, "box box box"], map_b: Float[np.ndarray, "box box box"]
) -> Float[np.ndarray, " shell"]:
    """Fourier shell correlation of two maps in shells 0 … (n − 1) // 2; see `fourier_shell_correlation`.

    Parameters
    ----------
    map_a, map_b : array
        Cubic maps on the same grid, even or odd box.
    """
    first, second = (torch.from_numpy(np.asarray(one, dtype=np.float64)) for one in (map_a, map_b))
    return np.asarray(fourier_shell_correlation(first, second).numpy(), dtype=np.float64)


def resolution_at(fsc: Float[np.ndarray, " shell"], threshold: float, box_length: float) -> float:
    """Resolution in Å at which a curve first falls below a threshold, interpolated linearly between shells.

    resolution = box_length / s, with s the (fractional) shell of the crossing. A curve that never falls below gives the
    resolution of its last shell; shell 0 is taken as 1, because the mean of a map says nothing about detail.

    Parameters
    ----------
    fsc : array
        Correlation of shells 0, 1, …; values that are not finite count as 0.
    threshold : float
        0.5 against a noise-free reference, 0.143 between independent halves.
    box_length : float
        Edge of the box in Å (box · pixel size).
    """
    curve = np.nan_to_num(np.asarray(fsc, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    curve[0] = 1.0
    below = np.flatnonzero(curve < threshold)
    if below.size == 0:
        return box_length / max(len(curve) - 1, 1)
    first = int(below[0])
    fraction = (curve[first - 1] - threshold) / (curve[first - 1] - curve[first])
    return float(box_length / (first - 1 + max(fraction, 1e-6)))


@dataclass(frozen=True)
class MaskedCorrelation:
    """FSC of two half maps with and without a mask, and corrected for what the mask itself correlates.

    Attributes
    ----------
    unmasked, masked : array, per shell
        Plain and masked correlation.
    randomised : array, per shell
        Masked correlation after the phases beyond `randomised_from` were made random.
    corrected : array, per shell
        The curve to judge resolution by.
    randomised_from : int
        First shell whose phases were made random.
    """

    unmasked: Float[np.ndarray, " shell"]
    masked: Float[np.ndarray, " shell"]
    randomised: Float[np.ndarray, " shell"]
    corrected: Float[np.ndarray, " shell"]
    randomised_from: int


def randomise_phases(
    volume: Float[np.ndarray, "box box box"], first_shell: int, generator: np.random.Generator
) -> Float[np.ndarray, "box box box"]:
    """Return the map with random phases from `first_shell` on; amplitudes and lower shells stay.

    Parameters
    ----------
    volume : array
        A cubic map.
    first_shell : int
        First shell that loses its phases.
    generator : numpy.random.Generator
        Source of the phases; they are those of white noise, so the map stays real.
    """
    spectrum = fft.rfftn(volume)
    noise = fft.rfftn(generator.standard_normal(volume.shape))
    beyond = shell_index(volume.shape[0]) >= first_shell
    spectrum[beyond] = np.abs(spectrum[beyond]) * np.exp(1j * np.angle(noise[beyond]))
    return np.asarray(fft.irfftn(spectrum, s=volume.shape), dtype=volume.dtype)


def masked_correlation(
    half_a: Float[np.ndarray, "box box box"],
    half_b: Float[np.ndarray, "box box box"],
    mask: Float[np.ndarray, "box box box"],
    generator: np.random.Generator,
) -> MaskedCorrelation:
    """FSC inside a mask, corrected by phase randomisation (Chen et al., Ultramicroscopy 135, 24, 2013).

    FSC_true = (FSC_masked − FSC_random) / (1 − FSC_random) from two shells beyond the first whose unmasked FSC is under
    0.8, where phases begin to be randomised; the masked curve below that.

    Parameters
    ----------
    half_a, half_b : array
        Maps from independent halves of the data.
    mask : array
        Soft mask, 0 … 1.
    generator : numpy.random.Generator
        Source of the random phases.
    """
    unmasked = map_correlation(half_a, half_b)
    masked = map_correlation(half_a * mask, half_b * mask)
    low = np.flatnonzero(unmasked[1:] < 0.8)
    first = int(low[0]) + 1 if low.size else len(unmasked)
    random_a, random_b = (randomise_phases(half, first, generator) for half in (half_a, half_b))
    randomised = map_correlation(random_a * mask, random_b * mask)
    corrected = masked.copy()
    beyond = slice(min(first + 2, len(masked)), None)
    corrected[beyond] = (masked[beyond] - randomised[beyond]) / np.maximum(1.0 - randomised[beyond], 1e-6)
    return MaskedCorrelation(unmasked, masked, randomised, np.clip(corrected, -1.0, 1.0), first)


def geodesic_angle(
    rotations_a: Float[np.ndarray, "*batch 3 3"], rotations_b: Float[np.ndarray, "*batch 3 3"]
) -> Float[np.ndarray, "*batch"]:
    """Angle in radians of the rotation that takes one orientation to the other.

    angle = 2 asin(‖A − B‖_F / √8), exact to rounding also for very small angles.

    Parameters
    ----------
    rotations_a, rotations_b : array (..., 3, 3)
        Rotation matrices.
    """
    distance = np.linalg.norm(rotations_a - rotations_b, axis=(-2, -1))
    return np.asarray(2.0 * np.arcsin(np.minimum(distance / np.sqrt(8.0), 1.0)))


def direction_angle(
    rotations_a: Float[np.ndarray, "*batch 3 3"], rotations_b: Float[np.ndarray, "*batch 3 3"]
) -> Float[np.ndarray, "*batch"]:
    """Angle in radians between viewing directions: the image z axis seen from the volume, Rᵀ e_z.

    Parameters
    ----------
    rotations_a, rotations_b : array (..., 3, 3)
        Rotation matrices, r_image = R r_volume.
    """
    distance = np.linalg.norm(rotations_a[..., 2, :] - rotations_b[..., 2, :], axis=-1)
    return np.asarray(2.0 * np.arcsin(np.minimum(distance / 2.0, 1.0)))


def confusion(true_labels: Int[np.ndarray, " particle"], labels: Int[np.ndarray, " particle"]) -> float:
    """Fraction of particles misclassified, under the renaming of labels that makes it smallest.

    Parameters
    ----------
    true_labels, labels : array
        Any integers; the two need not use the same names, nor the same number of them.
    """
    _, true_index = np.unique(true_labels, return_inverse=True)
    _, index = np.unique(labels, return_inverse=True)
    table = np.zeros((int(true_index.max()) + 1, int(index.max()) + 1), dtype=np.int64)
    np.add.at(table, (true_index, index), 1)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(1.0 - table[rows, columns].sum() / len(true_index))


def threshold_confusion(coordinate: Float[np.ndarray, " particle"], true_labels: Int[np.ndarray, " particle"]) -> float:
    """Fraction misclassified by the best threshold on one coordinate (label-aware, as the published scores are).

    Parameters
    ----------
    coordinate : array
        One number a particle, for example the first principal component of its latent.
    true_labels : array
        Labels of two states; whichever side of the threshold fits better is taken for the first.
    """
    order = np.argsort(coordinate, kind="stable")
    first = (true_labels == np.min(true_labels))[order]
    wrong_below = np.concatenate([[0], np.cumsum(~first)])
    wrong_above = first.sum() - np.concatenate([[0], np.cumsum(first)])
    wrong = wrong_below + wrong_above
    distinct = np.concatenate([[True], np.diff(coordinate[order]) > 0, [True]])
    best = min(int(wrong[distinct].min()), int((len(first) - wrong[distinct]).min()))
    return best / len(first)


def calibration_coverage(
    errors: Float[np.ndarray, " particle"],
    deviations: Float[np.ndarray, " particle"],
    dimensions: int,
    levels: tuple[float, ...] = REGION_LEVELS,
) -> tuple[float, ...]:
    """Fraction of errors that lie inside the stated regions of each probability; equal to the levels if calibrated.

    The region of content p of an isotropic Gaussian in d dimensions is error² ≤ σ² χ²_d⁻¹(p).

    Parameters
    ----------
    errors : array
        Length of the error of each particle (an angle in radians, a shift in Å).
    deviations : array
        Stated standard deviation along each axis, same unit.
    dimensions : int
        3 for rotations, 2 for shifts.
    levels : tuple of float
        Probability contents.
    """
    radii = np.sqrt(chi2.ppf(levels, dimensions))
    inside = errors[:, None] <= deviations[:, None] * radii[None, :]
    return tuple(float(value) for value in inside.mean(axis=0))
