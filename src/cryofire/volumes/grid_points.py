"""CPU kernels over the points of the back-projection grid: mean densities of shells, and the small linear system of every point.

The grid (half, z, y, x, channel) is that of `cryofire.physics.kernels.insert_images`. Points with x between 0 and 1 have mates
whose share of the plane x = 0 was not stored: there, the conjugate of the mirrored point is added.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from cryofire.physics.kernels import OVERSAMPLING

_compiled = numba.njit(fastmath=True, cache=True, nogil=True)
_parallel = numba.njit(fastmath=True, cache=True, nogil=True, parallel=True)


@_compiled
def _shell(z, y, x):
    return int(np.rint(math.sqrt(z * z + y * y + x * x) / OVERSAMPLING))


@_parallel
def add_densities(sums, totals):
    """Add the diagonal densities of all halves to the shells, and then the number of points; totals (z, component + 1, shell)."""
    reach, components, shells = sums.shape[3] - 1, totals.shape[1] - 1, totals.shape[2]
    for z in numba.prange(sums.shape[1]):
        for y in range(sums.shape[2]):
            for x in range(sums.shape[3]):
                shell = _shell(z - reach, y - reach, x)
                if shell >= shells:
                    continue
                totals[z, components, shell] += 1
                channel = 2 * components
                for c in range(components):
                    for half in range(sums.shape[0]):
                        totals[z, c, shell] += (1 if x else 2) * sums[half, z, y, x, channel]
                    channel += components - c


@_parallel
def solve_points(sums, precision, max_shell, out):
    """Solve (D + P) V = N at every grid point of the shells 1 … max_shell, all halves together, by Cholesky factorisation.

    precision (component, shell), out (component, z, y, x, 2). Points without data, and those of other shells, keep what they
    hold.
    """
    reach, components = sums.shape[3] - 1, precision.shape[0]
    for z in numba.prange(sums.shape[1]):
        total, factor = np.empty(sums.shape[4], np.float64), np.empty((components, components), np.float64)
        for y in range(sums.shape[2]):
            for x in range(sums.shape[3]):
                shell = _shell(z - reach, y - reach, x)
                if shell < 1 or shell > max_shell:
                    continue
                if components == 1:
                    _divide(sums, z, y, x, precision[0, shell], out)
                    continue
                _collect(sums, z, y, x, 2 * components, total)
                if total[2 * components] > 0:
                    _factorise(total, precision[:, shell], factor)
                    _substitute(total, factor, out[:, z, y, x])


@_compiled
def _divide(sums, z, y, x, precision, out):
    """N / (D + P) at a point, for a single component."""
    real = imaginary = density = np.float32(0)
    for half in range(sums.shape[0]):
        real += sums[half, z, y, x, 0]
        imaginary += sums[half, z, y, x, 1]
        density += sums[half, z, y, x, 2]
        if x == 0:
            mate_z, mate_y = sums.shape[1] - 1 - z, sums.shape[2] - 1 - y
            real += sums[half, mate_z, mate_y, 0, 0]
            imaginary -= sums[half, mate_z, mate_y, 0, 1]
            density += sums[half, mate_z, mate_y, 0, 2]
    if density > 0:
        scale = 1 / (density + precision + np.float32(1e-12))
        out[0, z, y, x, 0], out[0, z, y, x, 1] = scale * real, scale * imaginary


@_compiled
def _collect(sums, z, y, x, conjugated, total):
    """Sum of the halves at a point, with its mate on the plane x = 0."""
    total[:] = 0
    for half in range(sums.shape[0]):
        for channel in range(sums.shape[4]):
            total[channel] += sums[half, z, y, x, channel]
        if x == 0:
            for channel in range(sums.shape[4]):
                sign = -1 if channel < conjugated and channel & 1 else 1
                total[channel] += sign * sums[half, sums.shape[1] - 1 - z, sums.shape[2] - 1 - y, 0, channel]


@_compiled
def _factorise(total, precision, factor):
    """Lower Cholesky factor of D + P."""
    components = precision.shape[0]
    channel = 2 * components
    for a in range(components):
        for b in range(a, components):
            factor[b, a] = total[channel]
            channel += 1
        factor[a, a] += precision[a] + 1e-12
    for a in range(components):
        for b in range(a):
            factor[a, a] -= factor[a, b] * factor[a, b]
        factor[a, a] = math.sqrt(max(factor[a, a], 1e-20))
        for b in range(a + 1, components):
            for c in range(a):
                factor[b, a] -= factor[b, c] * factor[a, c]
            factor[b, a] /= factor[a, a]


@_compiled
def _substitute(total, factor, out):
    """Forward and backward substitution for the real and the imaginary parts."""
    components = factor.shape[0]
    for part in range(2):
        for a in range(components):
            value = total[2 * a + part]
            for b in range(a):
                value -= factor[a, b] * out[b, part]
            out[a, part] = value / factor[a, a]
        for a in range(components - 1, -1, -1):
            value = np.float64(out[a, part])
            for b in range(a + 1, components):
                value -= factor[b, a] * out[b, part]
            out[a, part] = value / factor[a, a]
