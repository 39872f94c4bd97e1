"""Maps in another frame or on another grid, and the rigid fit of one map to another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Complex, Float
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from cryofire.analysis.alignment import RigidTransform
from cryofire.analysis.masks import low_pass, soft_sphere


def fourier_resize(volume: Float[np.ndarray, "box box box"], box: int) -> Float[np.ndarray, "new new new"]:
    """Return the same density on a grid with another number of voxels over the same box length.

    The centred spectrum is cropped (low-pass) or padded with zeros (exact interpolation); densities keep their values.

    Parameters
    ----------
    volume : array
        A cubic map with its origin at n // 2.
    box : int
        New number of voxels along each edge, even or odd; the origin moves to box // 2.
    """
    old = volume.shape[0]
    spectrum = fft.fftshift(fft.fftn(fft.ifftshift(volume)))
    if box < old:
        resized = _crop_spectrum(spectrum, box)
    else:
        target = slice(box // 2 - old // 2, box // 2 - old // 2 + old)
        resized = np.zeros((box, box, box), dtype=spectrum.dtype)
        resized[target, target, target] = spectrum
    density = fft.fftshift(fft.ifftn(fft.ifftshift(resized)).real) * (box / old) ** 3
    return np.asarray(density, dtype=volume.dtype)


def _crop_spectrum(spectrum: Complex[np.ndarray, "box box box"], box: int) -> Complex[np.ndarray, "new new new"]:
    """Middle of a centred spectrum; for an even box both Nyquist planes are summed, as sampling would."""
    start = spectrum.shape[0] // 2 - box // 2
    kept = slice(start, start + box + 1 - box % 2)
    cropped = spectrum[kept, kept, kept].copy()
    if box % 2 == 0:
        for axis in range(3):
            planes = np.moveaxis(cropped, axis, 0)
            planes[0] += planes[-1]
            cropped = np.moveaxis(planes[:-1], 0, axis)
    return cropped


@dataclass(frozen=True)
class MapSampler:
    """A map ready to be read at arbitrary points: zero-padded twofold in Fourier space, then cubic splines.

    Attributes
    ----------
    coefficients : array
        Spline coefficients on the twofold grid.
    box : int
        Voxels along an edge of the original map.
    pixel_size : float
        Å per voxel of the original map.
    """

    coefficients: Float[np.ndarray, "fine fine fine"]
    box: int
    pixel_size: float

    @classmethod
    def of(cls, volume: Float[np.ndarray, "box box box"], pixel_size: float) -> MapSampler:
        """Return the sampler of a map.

        Parameters
        ----------
        volume : array
            A cubic map, even or odd box.
        pixel_size : float
            Å per voxel.
        """
        fine = fourier_resize(volume, 2 * volume.shape[0])
        return cls(ndimage.spline_filter(fine, order=3, output=fine.dtype, mode="grid-wrap"), len(volume), pixel_size)

    def resample(self, transform: RigidTransform, box: int, pixel_size: float) -> Float[np.ndarray, "new new new"]:
        """Return V(Dᵐ G (r + o)) on a grid of its own; points outside the original box are 0.

        Parameters
        ----------
        transform : RigidTransform
            The change of frame.
        box, pixel_size : int, float
            Grid of the result. A coarser grid needs a map that is low-passed already.
        """
        step = 2.0 * pixel_size / self.pixel_size
        matrix = step * transform.matrix
        start = self.box + 2.0 / self.pixel_size * transform.matrix @ transform.offset - matrix @ np.full(3, box // 2)
        sampled = ndimage.affine_transform(
            self.coefficients,
            matrix[::-1, ::-1],
            offset=start[::-1],
            output_shape=(box, box, box),
            output=self.coefficients.dtype,
            order=3,
            prefilter=False,
        )
        return np.asarray(sampled)


def transform_map(
    volume: Float[np.ndarray, "box box box"], pixel_size: float, transform: RigidTransform
) -> Float[np.ndarray, "box box box"]:
    """Map in another frame, V(Dᵐ G (r + o)), on the same grid.

    Parameters
    ----------
    volume : array
        A cubic map with its origin at n // 2.
    pixel_size : float
        Å per voxel.
    transform : RigidTransform
        For example `PoseAlignment.transform`, which brings an estimated map into the frame of the truth.
    """
    return MapSampler.of(volume, pixel_size).resample(transform, volume.shape[0], pixel_size)


def match_grid(
    volume: Float[np.ndarray, "box box box"], pixel_size: float, box: int, new_pixel_size: float
) -> Float[np.ndarray, "new new new"]:
    """Return the map on another grid: low-passed to it, resampled, and cropped or padded with zeros around the origin.

    Where the old box length holds a whole number of new voxels this is a pure Fourier crop, free of interpolation.

    Parameters
    ----------
    volume : array
        A cubic map.
    pixel_size : float
        Its Å per voxel.
    box, new_pixel_size : int, float
        The grid wanted.
    """
    fitting = volume.shape[0] * pixel_size / new_pixel_size
    if abs(fitting - round(fitting)) < 1e-3 * max(1.0, fitting / box):
        return crop_or_pad(fourier_resize(volume, round(fitting)), box)
    shells = volume.shape[0] * min(0.5, 0.5 * pixel_size / new_pixel_size)
    return MapSampler.of(low_pass(volume, shells - 1.0, 1.0), pixel_size).resample(
        RigidTransform.identity(), box, new_pixel_size
    )


def crop_or_pad(volume: Float[np.ndarray, "box box box"], box: int) -> Float[np.ndarray, "new new new"]:
    """Return the middle of a map, or the map surrounded by zeros; the origin stays at n // 2.

    Parameters
    ----------
    volume : array
        A cubic map.
    box : int
        New number of voxels along each edge, same pixel size.
    """
    old = volume.shape[0]
    kept = min(old, box)
    source = slice(old // 2 - kept // 2, old // 2 - kept // 2 + kept)
    target = slice(box // 2 - kept // 2, box // 2 - kept // 2 + kept)
    result = np.zeros((box, box, box), dtype=volume.dtype)
    result[target, target, target] = volume[source, source, source]
    return result


@dataclass(frozen=True)
class MapFit:
    """A rigid fit of one map to another.

    Attributes
    ----------
    transform : RigidTransform
        Takes the moving map to the reference.
    correlation : float
        Correlation coefficient after the fit, inside a sphere and up to the shell limit.
    """

    transform: RigidTransform
    correlation: float


def refine_map_alignment(
    volume: Float[np.ndarray, "box box box"],
    reference: Float[np.ndarray, "box box box"],
    pixel_size: float,
    max_shell: int,
    start: RigidTransform | None = None,
) -> MapFit:
    """Rotation and offset that maximise the correlation of two maps, starting close to the answer.

    Gauss–Newton on ‖a V(exp([w]×) G (r + o)) − reference‖² over w, o and the amplitude a, first up to half of the shell
    limit, then up to all of it. Minimising over a is the same as maximising the correlation. The hand is not changed.

    Parameters
    ----------
    volume, reference : array
        Maps on the same grid.
    pixel_size : float
        Å per voxel.
    max_shell : int
        Last Fourier shell used.
    start : RigidTransform, optional
        Where to begin; the fit is local (some degrees, a voxel or two at the coarse limit).
    """
    fit = MapFit(start or RigidTransform.identity(), -1.0)
    for shell in (max(3, max_shell // 2), max_shell):
        fit = _fit_shells(volume, reference, pixel_size, shell, fit.transform)
    return fit


def _fit_shells(
    volume: Float[np.ndarray, "box box box"],
    reference: Float[np.ndarray, "box box box"],
    pixel_size: float,
    shell: int,
    start: RigidTransform,
) -> MapFit:
    """Gauss–Newton fit of two maps up to one shell, on a grid just fine enough for it."""
    box = min(len(volume), 2 * (shell + 3))
    coarse = pixel_size * len(volume) / box
    moving, fixed = (fourier_resize(low_pass(one.astype(np.float64), shell), box) for one in (volume, reference))
    sampler, sphere = MapSampler.of(moving, coarse), soft_sphere(box, box / 2 - 3, 2.0)
    best = MapFit(start, -2.0)
    transform = start
    for _ in range(25):
        moved = sampler.resample(transform, box, coarse)
        correlation = _correlation(moved, fixed, sphere)
        if correlation <= best.correlation + 1e-9:
            break
        best = MapFit(transform, correlation)
        turn, move = _newton_step(moved, fixed, sphere, coarse)
        transform = transform.then(RigidTransform(Rotation.from_rotvec(turn).as_matrix(), move))
    return best


def _correlation(
    map_a: Float[np.ndarray, "z y x"], map_b: Float[np.ndarray, "z y x"], weight: Float[np.ndarray, "z y x"]
) -> float:
    """Cosine between two weighted maps after their weighted means are removed."""
    first, second = (weight * (one - np.vdot(weight, one) / weight.sum()) for one in (map_a, map_b))
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.vdot(first, second)) / scale if scale > 0 else 0.0


def _newton_step(
    moved: Float[np.ndarray, "box box box"],
    fixed: Float[np.ndarray, "box box box"],
    weight: Float[np.ndarray, "box box box"],
    pixel_size: float,
) -> tuple[Float[np.ndarray, " xyz"], Float[np.ndarray, " xyz"]]:
    """Rotation vector (radians) and offset (Å) that best explain fixed − a · moved to first order."""
    box = len(moved)
    axis = (np.arange(box) - box // 2) * pixel_size
    place = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")[::-1], axis=-1)
    slope = np.stack(np.gradient(moved, pixel_size)[::-1], axis=-1)
    columns = np.concatenate([moved[..., None], np.ones_like(moved)[..., None], np.cross(place, slope), slope], axis=-1)
    matrix = (columns * weight[..., None]).reshape(-1, 8)
    solution = np.linalg.lstsq(matrix.T @ matrix, matrix.T @ (fixed * weight).ravel(), rcond=None)[0]
    return solution[2:5] / solution[0], solution[5:] / solution[0]
