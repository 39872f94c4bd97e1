"""CPU kernels: blobs onto a grid, and spectra off an oversampled grid.

Interpolation uses the Kaiser–Bessel window, K(u) = I₀(β √(1 - (2u / W)²)) for |u| < W / 2, of W = `SUPPORT` points.
Its Fourier transform φ (`window_transform`) is divided out of the density beforehand, so that with twofold
oversampling the sum over W³ points errs by about 1e-3 for matter at the edge of the field and far less nearer its
centre (Fessler and Sutton, IEEE Trans. Signal Process. 2003).
"""

from __future__ import annotations

import math

import numba
import numpy as np
from jaxtyping import Float64
from numpy.polynomial import Chebyshev, Polynomial

from cryofire.physics.prefetch import prefetch

SUPPORT = 4
MARGIN = SUPPORT // 2
"""Points an oversampled half spectrum needs on the far side of x = 0 and beyond its largest frequency."""

_BLOCK = 256  # coefficients at a time
_AHEAD = 4  # windows between asking for their rows and reading them
_BETA = 0.75 * math.pi * SUPPORT

_compiled = numba.njit(fastmath=True, cache=True, nogil=True)
_parallel = numba.njit(fastmath=True, cache=True, nogil=True, parallel=True)


def window(distance: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """Kaiser–Bessel window at distances in grid points; 0 beyond half its support.

    Parameters
    ----------
    distance : array
        At least 0.
    """
    share = np.asarray(distance) / MARGIN
    inside = np.i0(_BETA * np.sqrt(np.clip(1 - share**2, 0, None))) / np.i0(_BETA)
    return np.where(share <= 1, inside, 0.0)


def _polynomial(first: float) -> tuple[np.float32, ...]:
    """Coefficients of the window between `first` and `first` + 1 in powers of what lies beyond `first`, to 3e-7."""
    fitted = Chebyshev.interpolate(lambda beyond: window(first + beyond), 8, [0, 1])
    return tuple(fitted.convert(kind=Polynomial).coef.astype(np.float32))


def window_transform(position: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """Fourier transform of the window, φ(x) = W sinh(s) / (s I₀(β)) with s = √(β² - (π W x)²).

    Parameters
    ----------
    position : array
        x in cycles per grid point, within ± 1/4.
    """
    root = np.sqrt(_BETA**2 - (math.pi * SUPPORT * position) ** 2)
    return np.asarray(SUPPORT * np.sinh(root) / (root * np.i0(_BETA)))


@_compiled
def _profile(centre, width, size, periodic, values, index):  # type: ignore[no-untyped-def]
    """Fill in one axis of a Gaussian at `centre`, and the grid index of each value, -1 outside."""
    first = int(np.floor(centre + 0.5)) - len(values) // 2
    for i in range(len(values)):
        values[i] = math.exp(-0.5 * ((first + i - centre) / width) ** 2)
        place = first + i + size // 2
        if periodic:
            place %= size
        elif place < 0 or place >= size:
            place = -1
        index[i] = place


@_compiled
def spread_gaussians(positions, weights, width, periodic, grid):  # type: ignore[no-untyped-def]
    """Add weights · exp(-|r - r_j|² / 2 width²) to a grid (z, y, x) with its origin at n // 2.

    positions (atom, 3) as (x, y, z) and width in grid points; a blob ends at six widths. With `periodic` false, what
    falls outside is dropped.
    """
    points = 2 * int(np.ceil(6 * width)) + 1
    values = np.empty((3, points))
    index = np.empty((3, points), np.int64)
    for j in range(positions.shape[0]):
        for axis in range(3):
            _profile(positions[j, axis], width, grid.shape[0], periodic, values[axis], index[axis])
        for iz in range(points):
            for iy in range(points):
                z, y = index[2, iz], index[1, iy]
                if z < 0 or y < 0:
                    continue
                amplitude = weights[j] * values[2, iz] * values[1, iy]
                for ix in range(points):
                    if index[0, ix] >= 0:
                        grid[z, y, index[0, ix]] += amplitude * values[0, ix]


_INNER, _OUTER = _polynomial(0.0), _polynomial(1.0)


@_compiled
def _evaluated(coefficients, x):  # type: ignore[no-untyped-def]
    value = coefficients[8]
    for power in range(7, -1, -1):
        value = value * x + coefficients[power]
    return value


@_compiled
def _weigh(fraction, weights, p):  # type: ignore[no-untyped-def]
    """Weights of the four points under a window that is centred `fraction` beyond the second of them."""
    rest = np.float32(1) - fraction
    weights[0, p], weights[1, p] = _evaluated(_OUTER, fraction), _evaluated(_INNER, fraction)
    weights[2, p], weights[3, p] = _evaluated(_INNER, rest), _evaluated(_OUTER, rest)


@_compiled
def _locate(rotation, extent, frequencies, reach, stride_z, stride_y, corners, weights, signs):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Windows about extent · Rᵀ k: where the first of their rows begins, weights along z, y, x, and sign of the Friedel mate."""
    for p in range(frequencies.shape[0]):
        kx, ky, kz = frequencies[p, 0], frequencies[p, 1], frequencies[p, 2]
        x = extent * (rotation[0, 0] * kx + rotation[1, 0] * ky + rotation[2, 0] * kz)
        y = extent * (rotation[0, 1] * kx + rotation[1, 1] * ky + rotation[2, 1] * kz)
        z = extent * (rotation[0, 2] * kx + rotation[1, 2] * ky + rotation[2, 2] * kz)
        sign = 1.0 if x >= 0 else -1.0
        x, y, z = sign * x, sign * y, sign * z
        floor_x, floor_y, floor_z = np.floor(x), np.floor(y), np.floor(z)
        _weigh(np.float32(z - floor_z), weights[0], p)
        _weigh(np.float32(y - floor_y), weights[1], p)
        _weigh(np.float32(x - floor_x), weights[2], p)
        signs[p] = sign
        plane, row = np.int64(floor_z) + reach - MARGIN + 1, np.int64(floor_y) + reach - MARGIN + 1
        corners[p] = plane * stride_z + row * stride_y + 2 * (np.int64(floor_x) + 1)


@_compiled
def _prefetch_window(values, corner, stride_z, stride_y):  # type: ignore[no-untyped-def]
    """Ask for the rows of a window; the last number of a row too, as it may be on another line than the first."""
    for iz in range(SUPPORT):
        for iy in range(SUPPORT):
            at = corner + iz * stride_z + iy * stride_y
            prefetch(values, at)
            prefetch(values, at + 2 * SUPPORT - 1)


@_compiled
def _interpolate(values, stride_z, stride_y, corners, weights, count, found):  # type: ignore[no-untyped-def]
    """Sums over windows, real and imaginary parts; their rows are asked for `_AHEAD` windows earlier."""
    line = np.empty(2 * SUPPORT, np.float32)
    for p in range(count):
        _prefetch_window(values, corners[p + _AHEAD], stride_z, stride_y)
        line[:] = 0
        for iz in range(SUPPORT):
            for iy in range(SUPPORT):
                weight = weights[0, iz, p] * weights[1, iy, p]
                at = np.uint64(corners[p] + iz * stride_z + iy * stride_y)
                for ix in range(2 * SUPPORT):
                    line[ix] += weight * values[at + np.uint64(ix)]
        real = imaginary = np.float32(0)
        for ix in range(SUPPORT):
            real += weights[2, ix, p] * line[2 * ix]
            imaginary += weights[2, ix, p] * line[2 * ix + 1]
        found[0, p], found[1, p] = real, imaginary


@_parallel
def add_sections(grid, extent, rotations, offsets, rows, frequencies, places, amplitude, out):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Add amplitude(k) V(Rᵀ k) exp(-2πi k·d) to rows of `out`, for each rotation R and offset d.

    grid (z, y, x, 2): real and imaginary part of the spectrum V at multiples of 1 / extent, z and y centred, x from -MARGIN;
    offsets (section, 3) in Å, frequencies (coefficient, 3) in 1/Å, all where the grid reaches, amplitude (coefficient,); `places`
    (coefficient,) says where they are among the columns of `out` (row, column), complex.
    """
    reach = (grid.shape[0] - 1) // 2
    stride_y = grid.shape[2] * 2
    stride_z = grid.shape[1] * stride_y
    values = grid.reshape(-1)
    for i in numba.prange(rotations.shape[0]):
        corners, signs = np.zeros(_BLOCK + _AHEAD, np.int64), np.empty(_BLOCK, np.float32)
        weights, found = np.empty((3, SUPPORT, _BLOCK), np.float32), np.empty((2, _BLOCK), np.float32)
        for start in range(0, frequencies.shape[0], _BLOCK):
            block = frequencies[start : start + _BLOCK]
            count = block.shape[0]
            _locate(rotations[i], extent, block, reach, stride_z, stride_y, corners, weights, signs)
            _interpolate(values, stride_z, stride_y, corners, weights, count, found)
            for p in range(count):
                turns = block[p, 0] * offsets[i, 0] + block[p, 1] * offsets[i, 1] + block[p, 2] * offsets[i, 2]
                angle = -2 * math.pi * (turns - np.floor(turns))
                cosine, sine = amplitude[start + p] * math.cos(angle), amplitude[start + p] * math.sin(angle)
                real, imaginary = found[0, p], signs[p] * found[1, p]
                out[rows[i], places[start + p]] += complex(
                    cosine * real - sine * imaginary, cosine * imaginary + sine * real
                )
