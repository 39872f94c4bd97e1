"""CPU kernel: the small linear system of every point of a grid."""

from __future__ import annotations

import math

import numba
import numpy as np


@numba.njit(fastmath=True, cache=True, nogil=True, parallel=True)
def solve_points(sums, precision, out):
    """Solve (D + P) V = N at every grid point by Cholesky factorisation.

    sums (point, 2c + c (c + 1) / 2) in the layout of `cryofire.physics.kernels.insert_images`, precision (point, c), out
    (point, 2c). Points without data get 0.
    """
    components = precision.shape[1]
    for i in numba.prange(sums.shape[0]):
        factor = np.zeros((components, components), np.float64)
        channel = 2 * components
        for a in range(components):
            for b in range(a, components):
                factor[b, a] = sums[i, channel]
                channel += 1
            factor[a, a] += precision[i, a] + 1e-12
        if sums[i, 2 * components] <= 0:
            continue
        for a in range(components):
            for b in range(a):
                factor[a, a] -= factor[a, b] * factor[a, b]
            factor[a, a] = math.sqrt(max(factor[a, a], 1e-20))
            for b in range(a + 1, components):
                for c in range(a):
                    factor[b, a] -= factor[b, c] * factor[a, c]
                factor[b, a] /= factor[a, a]
        for part in range(2):
            for a in range(components):
                value = np.float64(sums[i, 2 * a + part])
                for b in range(a):
                    value -= factor[a, b] * out[i, 2 * b + part]
                out[i, 2 * a + part] = value / factor[a, a]
            for a in range(components - 1, -1, -1):
                value = np.float64(out[i, 2 * a + part])
                for b in range(a + 1, components):
                    value -= factor[b, a] * out[i, 2 * b + part]
                out[i, 2 * a + part] = value / factor[a, a]
