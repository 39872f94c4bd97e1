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

SUPPORT = 4
MARGIN = SUPPORT // 2
"""Points an oversampled half spectrum needs on the far side of x = 0 and beyond its largest frequency."""

_STEPS = 2048  # samples of the window per grid point; linear interpolation then errs by 1e-6
_BETA = 0.75 * math.pi * SUPPORT

_compiled = numba.njit(fastmath=True, cache=True, nogil=True)
_parallel = numba.njit(fastmath=True, cache=True, nogil=True, parallel=True)


def window_table() -> Float64[np.ndarray, " sample"]:
    """Kaiser–Bessel window at distances 0, 1 / 2048, … up to half its support, and 0 beyond."""
    distance = np.arange(MARGIN * _STEPS + 2) / (MARGIN * _STEPS)
    return np.where(distance <= 1, np.i0(_BETA * np.sqrt(np.clip(1 - distance**2, 0, None))), 0.0) / np.i0(_BETA)


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


@_compiled
def _window_weights(position, table, weights):  # type: ignore[no-untyped-def]
    """First of the grid points under a window centred at `position`; fills in the weights of all of them."""
    first = int(np.floor(position)) - MARGIN + 1
    for i in range(SUPPORT):
        step = abs(position - (first + i)) * _STEPS
        lower = int(step)
        fraction = step - lower
        weights[i] = table[lower] + fraction * (table[lower + 1] - table[lower])
    return first


@_parallel
def add_sections(grid, extent, table, rotations, offsets, rows, frequencies, amplitude, out):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Add amplitude(k) V(Rᵀ k) exp(-2πi k·d) to rows of `out`, for each rotation R and offset d.

    grid (z, y, x): spectrum V at multiples of 1 / extent, z and y centred, x from -MARGIN; frequencies (coefficient,
    3) in 1/Å, offsets (section, 3) in Å, amplitude (coefficient,), out (row, coefficient) complex. Where the grid
    does not reach, V is 0.
    """
    reach = (grid.shape[0] - 1) // 2
    limit = (reach - MARGIN) ** 2
    for i in numba.prange(rotations.shape[0]):
        weights = np.empty((3, SUPPORT), np.float32)
        for p in range(frequencies.shape[0]):
            kx, ky, kz = frequencies[p, 0], frequencies[p, 1], frequencies[p, 2]
            x = extent * (rotations[i, 0, 0] * kx + rotations[i, 1, 0] * ky + rotations[i, 2, 0] * kz)
            y = extent * (rotations[i, 0, 1] * kx + rotations[i, 1, 1] * ky + rotations[i, 2, 1] * kz)
            z = extent * (rotations[i, 0, 2] * kx + rotations[i, 1, 2] * ky + rotations[i, 2, 2] * kz)
            if x * x + y * y + z * z > limit:
                continue
            sign = 1.0
            if x < 0:
                x, y, z, sign = -x, -y, -z, -1.0
            first_x = _window_weights(x, table, weights[0]) + MARGIN
            first_y = _window_weights(y, table, weights[1]) + reach
            first_z = _window_weights(z, table, weights[2]) + reach
            real = np.float32(0.0)
            imaginary = np.float32(0.0)
            for iz in range(SUPPORT):
                for iy in range(SUPPORT):
                    line_real = np.float32(0.0)
                    line_imaginary = np.float32(0.0)
                    for ix in range(SUPPORT):
                        value = grid[first_z + iz, first_y + iy, first_x + ix]
                        line_real += weights[0, ix] * value.real
                        line_imaginary += weights[0, ix] * value.imag
                    plane = weights[2, iz] * weights[1, iy]
                    real += plane * line_real
                    imaginary += plane * line_imaginary
            angle = -2 * math.pi * (kx * offsets[i, 0] + ky * offsets[i, 1] + kz * offsets[i, 2])
            cosine, sine = amplitude[p] * math.cos(angle), amplitude[p] * math.sin(angle)
            imaginary *= sign
            out[rows[i], p] += complex(cosine * real - sine * imaginary, cosine * imaginary + sine * real)
