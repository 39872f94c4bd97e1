"""CPU kernels: interpolation in, and accumulation onto, an oversampled half spectrum.

One layout serves all of them. The spectrum lives on a grid of spacing 1 / OVERSAMPLING in integer frequency, index
(z, y, x, channel) with x ≥ 0 only and z, y centred at `reach`; real and imaginary parts of the components are
interleaved in the last axis, so that one corner of a cell is one contiguous read. A point with negative x is read at
its Friedel mate.

Each kernel has a readable twin in `cryofire.physics.projection`, against which it is tested.
"""

from __future__ import annotations

import math

import numba
import numpy as np

OVERSAMPLING = 2

_compiled = numba.njit(fastmath=True, cache=True, nogil=True)
_parallel = numba.njit(fastmath=True, cache=True, nogil=True, parallel=True)


@_compiled
def _cell(rotation, kx, ky, reach):
    """Cell corner (z, y, x), fractions and Friedel sign of the point OVERSAMPLING · Rᵀ (kx, ky, 0)."""
    x = OVERSAMPLING * (rotation[0, 0] * kx + rotation[1, 0] * ky)
    y = OVERSAMPLING * (rotation[0, 1] * kx + rotation[1, 1] * ky)
    z = OVERSAMPLING * (rotation[0, 2] * kx + rotation[1, 2] * ky)
    sign = np.float32(1.0)
    if x < 0:
        x, y, z, sign = -x, -y, -z, np.float32(-1.0)
    floor_x, floor_y, floor_z = math.floor(x), math.floor(y), math.floor(z)
    corner = (int(floor_z) + reach, int(floor_y) + reach, int(floor_x))
    return corner, (np.float32(z - floor_z), np.float32(y - floor_y), np.float32(x - floor_x)), sign


@_parallel
def extract_slices(grid, rotations, frequencies, out):
    """Trilinear central sections; out (rotation, coefficient, 2 · component)."""
    reach = (grid.shape[0] - 1) // 2
    channels = grid.shape[3]
    for i in numba.prange(rotations.shape[0]):
        for p in range(frequencies.shape[0]):
            (z, y, x), (fz, fy, fx), sign = _cell(rotations[i], frequencies[p, 0], frequencies[p, 1], reach)
            for c in range(channels):
                out[i, p, c] = 0.0
            for corner in range(8):
                dz, dy, dx = corner >> 2, (corner >> 1) & 1, corner & 1
                weight = (fz if dz else 1 - fz) * (fy if dy else 1 - fy) * (fx if dx else 1 - fx)
                for c in range(channels):
                    out[i, p, c] += weight * grid[z + dz, y + dy, x + dx, c]
            if sign < 0:
                for c in range(1, channels, 2):
                    out[i, p, c] = -out[i, p, c]


@_parallel
def insert_slices(grids, rotations, slots, frequencies, numerators, denominators):
    """Add slices to the grids by the adjoint of trilinear interpolation.

    grids (slot, z, y, x, 3): real and imaginary numerator, and denominator. Slices of slot s go to grid s; a slot is
    one thread's work. numerators (rotation, coefficient) complex, denominators (rotation, coefficient) real.
    """
    reach = (grids.shape[1] - 1) // 2
    for slot in numba.prange(grids.shape[0]):
        for i in range(rotations.shape[0]):
            if slots[i] != slot:
                continue
            for p in range(frequencies.shape[0]):
                (z, y, x), (fz, fy, fx), sign = _cell(rotations[i], frequencies[p, 0], frequencies[p, 1], reach)
                real = numerators[i, p].real
                imaginary = sign * numerators[i, p].imag
                density = denominators[i, p]
                for corner in range(8):
                    dz, dy, dx = corner >> 2, (corner >> 1) & 1, corner & 1
                    weight = (fz if dz else 1 - fz) * (fy if dy else 1 - fy) * (fx if dx else 1 - fx)
                    grids[slot, z + dz, y + dy, x + dx, 0] += weight * real
                    grids[slot, z + dz, y + dy, x + dx, 1] += weight * imaginary
                    grids[slot, z + dz, y + dy, x + dx, 2] += weight * density


@_parallel
def insert_images(grids, rotations, shifts, slots, frequencies, box, data, modulation, first, second):
    """Add images to the grids of a linear model with `first` E[u_i] and `second` E[u_i u_j] moments of its coordinates u.

    grids (slot, z, y, x, channel): for c components, 2c numerator channels then c (c + 1) / 2 denominator channels
    (upper triangle by rows). data (particle, coefficient) complex, modulation (particle, coefficient), shifts
    (particle, 2) in pixels of `box`, first (particle, c), second (particle, c (c + 1) / 2).
    """
    reach = (grids.shape[1] - 1) // 2
    components = first.shape[1]
    pairs = second.shape[1]
    channels = 2 * components + pairs
    turn = np.float32(2 * math.pi / box)
    for slot in numba.prange(grids.shape[0]):
        value = np.empty(channels, np.float32)
        for i in range(rotations.shape[0]):
            if slots[i] != slot:
                continue
            for p in range(frequencies.shape[0]):
                kx, ky = frequencies[p, 0], frequencies[p, 1]
                (z, y, x), (fz, fy, fx), sign = _cell(rotations[i], kx, ky, reach)
                angle = turn * (kx * shifts[i, 0] + ky * shifts[i, 1])
                cosine, sine = math.cos(angle), math.sin(angle)
                contrast = modulation[i, p]
                real = contrast * (data[i, p].real * cosine - data[i, p].imag * sine)
                imaginary = sign * contrast * (data[i, p].real * sine + data[i, p].imag * cosine)
                for c in range(components):
                    value[2 * c] = first[i, c] * real
                    value[2 * c + 1] = first[i, c] * imaginary
                for c in range(pairs):
                    value[2 * components + c] = second[i, c] * contrast * contrast
                for corner in range(8):
                    dz, dy, dx = corner >> 2, (corner >> 1) & 1, corner & 1
                    weight = (fz if dz else 1 - fz) * (fy if dy else 1 - fy) * (fx if dx else 1 - fx)
                    for c in range(channels):
                        grids[slot, z + dz, y + dy, x + dx, c] += weight * value[c]


@_parallel
def normal_equations(
    grid, rotations, shifts, latents, contrast, frequencies, box, data, modulation, hessian, gradient, loss
):
    """Gauss–Newton normal equations of |Y - a C e^{-2πik·t/n} (S_0 + Σ z_j S_j)|² in (rotation 3, shift 2, contrast 1, latents).

    With r the residual and J its (negative) Jacobian: hessian = 2 Re JᴴJ, gradient = 2 Re Jᴴr, loss = Σ|r|². The
    rotation parameter w acts from the left, exp([w]×) R, in radians; shifts in pixels.
    """
    for i in numba.prange(rotations.shape[0]):
        size = 6 + latents.shape[1]
        count = frequencies.shape[0]
        jacobian = np.empty((size + 1, 2 * count), np.float32)
        _linearise(
            grid, rotations[i], shifts[i], latents[i], contrast[i], frequencies, box, data[i], modulation[i], jacobian
        )
        total = np.float32(0.0)
        for p in range(2 * count):
            total += jacobian[size, p] * jacobian[size, p]
        loss[i] = total
        for a in range(size):
            projection = np.float32(0.0)
            for p in range(2 * count):
                projection += jacobian[a, p] * jacobian[size, p]
            gradient[i, a] = 2 * projection
            for b in range(a + 1):
                product = np.float32(0.0)
                for p in range(2 * count):
                    product += jacobian[a, p] * jacobian[b, p]
                hessian[i, a, b] = 2 * product
                hessian[i, b, a] = 2 * product


@_compiled
def _linearise(grid, rotation, shift, latent, contrast, frequencies, box, data, modulation, jacobian):
    """Rows of `jacobian`: derivatives of the model, then the residual; real parts first, imaginary parts behind."""
    reach = (grid.shape[0] - 1) // 2
    components = latent.shape[0] + 1
    count = frequencies.shape[0]
    turn = np.float32(2 * math.pi / box)
    value = np.empty(2 * components, np.float32)
    for p in range(count):
        kx, ky = frequencies[p, 0], frequencies[p, 1]
        (z, y, x), (fz, fy, fx), sign = _cell(rotation, kx, ky, reach)
        for c in range(2 * components):
            value[c] = 0.0
        gx_re = gx_im = gy_re = gy_im = gz_re = gz_im = np.float32(0.0)
        for corner in range(8):
            dz, dy, dx = corner >> 2, (corner >> 1) & 1, corner & 1
            wz, wy, wx = (fz if dz else 1 - fz), (fy if dy else 1 - fy), (fx if dx else 1 - fx)
            weight = wz * wy * wx
            real = grid[z + dz, y + dy, x + dx, 0]
            imaginary = grid[z + dz, y + dy, x + dx, 1]
            value[0] += weight * real
            value[1] += weight * imaginary
            for c in range(1, components):
                part_re = grid[z + dz, y + dy, x + dx, 2 * c]
                part_im = grid[z + dz, y + dy, x + dx, 2 * c + 1]
                value[2 * c] += weight * part_re
                value[2 * c + 1] += weight * part_im
                real += latent[c - 1] * part_re
                imaginary += latent[c - 1] * part_im
            slope_x = wz * wy if dx else -wz * wy
            slope_y = wz * wx if dy else -wz * wx
            slope_z = wy * wx if dz else -wy * wx
            gx_re += slope_x * real
            gx_im += slope_x * imaginary
            gy_re += slope_y * real
            gy_im += slope_y * imaginary
            gz_re += slope_z * real
            gz_im += slope_z * imaginary
        # The mirrored point has the conjugate value; its gradient is conjugated and changes sign.
        angle = turn * (kx * shift[0] + ky * shift[1])
        amplitude = contrast * modulation[p]
        ramp_re, ramp_im = amplitude * math.cos(angle), -amplitude * math.sin(angle)
        step = np.float32(OVERSAMPLING) * sign
        gx_im, gy_im, gz_im = sign * gx_im, sign * gy_im, sign * gz_im
        image_x_re = step * (rotation[0, 0] * gx_re + rotation[0, 1] * gy_re + rotation[0, 2] * gz_re)
        image_x_im = step * (rotation[0, 0] * gx_im + rotation[0, 1] * gy_im + rotation[0, 2] * gz_im)
        image_y_re = step * (rotation[1, 0] * gx_re + rotation[1, 1] * gy_re + rotation[1, 2] * gz_re)
        image_y_im = step * (rotation[1, 0] * gx_im + rotation[1, 1] * gy_im + rotation[1, 2] * gz_im)
        image_z_re = step * (rotation[2, 0] * gx_re + rotation[2, 1] * gy_re + rotation[2, 2] * gz_re)
        image_z_im = step * (rotation[2, 0] * gx_im + rotation[2, 1] * gy_im + rotation[2, 2] * gz_im)
        spin_re, spin_im = ky * image_x_re - kx * image_y_re, ky * image_x_im - kx * image_y_im
        jacobian[0, p] = -ky * (ramp_re * image_z_re - ramp_im * image_z_im)
        jacobian[0, count + p] = -ky * (ramp_re * image_z_im + ramp_im * image_z_re)
        jacobian[1, p] = kx * (ramp_re * image_z_re - ramp_im * image_z_im)
        jacobian[1, count + p] = kx * (ramp_re * image_z_im + ramp_im * image_z_re)
        jacobian[2, p] = ramp_re * spin_re - ramp_im * spin_im
        jacobian[2, count + p] = ramp_re * spin_im + ramp_im * spin_re
        section_re, section_im = value[0], sign * value[1]
        for c in range(1, components):
            part_re, part_im = value[2 * c], sign * value[2 * c + 1]
            section_re += latent[c - 1] * part_re
            section_im += latent[c - 1] * part_im
            jacobian[5 + c, p] = ramp_re * part_re - ramp_im * part_im
            jacobian[5 + c, count + p] = ramp_re * part_im + ramp_im * part_re
        model_re = ramp_re * section_re - ramp_im * section_im
        model_im = ramp_re * section_im + ramp_im * section_re
        jacobian[3, p], jacobian[3, count + p] = turn * kx * model_im, -turn * kx * model_re
        jacobian[4, p], jacobian[4, count + p] = turn * ky * model_im, -turn * ky * model_re
        jacobian[5, p], jacobian[5, count + p] = model_re / contrast, model_im / contrast
        size = 5 + components
        jacobian[size, p] = data[p].real - model_re
        jacobian[size, count + p] = data[p].imag - model_im


@_parallel
def solve_points(sums, precision, out):
    """Solve (D + P) V = N at every grid point by Cholesky factorisation.

    sums (point, 2c + c (c + 1) / 2) in the layout of `insert_images`, precision (point, c), out (point, 2c). Points
    without data get 0.
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
