"""CPU kernels: back-projection of peaked posteriors over a grid of poses, entry by entry."""

from __future__ import annotations

import numba
import numpy as np

_parallel = numba.njit(fastmath=True, cache=True, nogil=True, parallel=True)


@_parallel
def _count_above(weights, least, out):
    for i in numba.prange(weights.shape[0]):
        count = 0
        for t in range(weights.shape[1]):
            for q in range(weights.shape[2]):
                count += weights[i, t, q] > least[i]
        out[i] = count


def entries_above(weights: np.ndarray, least: np.ndarray) -> np.ndarray:
    """How many weights (particle, shift, rotation) of each particle are above its `least`."""
    counts = np.empty(weights.shape[0], np.int64)
    _count_above(weights, least, counts)
    return counts


@_parallel
def add_entries(weights, least, images, power, numerators, denominators):
    """Add images to the sections of the poses whose weight is above the least of the particle.

    weights (particle, shift, rotation), images (particle, shift, 2 coefficient) and power (particle, coefficient);
    numerators (rotation, 2 coefficient) and denominators (rotation, coefficient) are added to. A peaked posterior costs
    only its few entries. Threads share the rotations among them, so that no two add to the same section.
    """
    rotations, block = weights.shape[2], 256
    for part in numba.prange((rotations + block - 1) // block):
        for i in range(weights.shape[0]):
            if least[i] > 1:  # no weight is
                continue
            for t in range(weights.shape[1]):
                for q in range(part * block, min((part + 1) * block, rotations)):
                    weight = weights[i, t, q]
                    if weight > least[i]:
                        for p in range(images.shape[2]):
                            numerators[q, p] += weight * images[i, t, p]
                        for p in range(power.shape[1]):
                            denominators[q, p] += weight * power[i, p]
