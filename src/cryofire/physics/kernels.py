"""CPU kernels: interpolation in, and accumulation onto, an oversampled half spectrum.

One layout serves all of them. The spectrum lives on a grid of spacing 1 / OVERSAMPLING in integer frequency, index
(z, y, x, channel) with x ≥ 0 only and z, y centred at `reach`; real and imaginary parts of the components are
interleaved in the last axis, so that the two corners of a cell along x are one contiguous row, and a cell four of them.
A point with negative x is read at its Friedel mate.

A grid is larger than the caches, and a slice cuts across all of it: what costs time is waiting for memory. Kernels work on
`BLOCK` coefficients at a time. First come the cells of all of them, in vector operations; then each cell's rows, which
were asked for `AHEAD` cells earlier; what follows is vector operations again, on numbers that are still in the cache.

Each kernel has a readable twin in `cryofire.physics.tensor_kernels`, against which it is tested.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from cryofire.physics.prefetch import LINE, prefetch

OVERSAMPLING = 2
BLOCK = 256
AHEAD = 8
STRIPE = 8
"""Neighbouring planes of a grid that one thread adds to."""
LOWER_PLANE, UPPER_PLANE, BOTH_PLANES = 1, 2, 3


def lanes_for(slots: int) -> int:
    """Threads that add to each of so many grids: each to planes of its own, so that sums are the same however many there are."""
    return max(numba.get_num_threads() // slots, 1)


_compiled = numba.njit(fastmath=True, cache=True, nogil=True)
_parallel = numba.njit(fastmath=True, cache=True, nogil=True, parallel=True)


@_compiled
def _prefetch_cell(values, corner, stride_z, stride_y, length):
    """Ask for the four rows of a cell, of `length` numbers each."""
    for start in range(0, length + LINE - 1, LINE):
        at = corner + min(start, length - 1)
        prefetch(values, at)
        prefetch(values, at + stride_y)
        prefetch(values, at + stride_z)
        prefetch(values, at + stride_z + stride_y)


@_compiled
def _locate(rotation, frequencies, reach, stride_z, stride_y, stride_x, corners, fractions):
    """Cells of the points OVERSAMPLING · Rᵀ (kx, ky, 0): where their rows begin; fractions along z, y, x, and Friedel sign."""
    scale = np.float32(OVERSAMPLING)
    x_kx, y_kx, z_kx = scale * rotation[0, 0], scale * rotation[0, 1], scale * rotation[0, 2]
    x_ky, y_ky, z_ky = scale * rotation[1, 0], scale * rotation[1, 1], scale * rotation[1, 2]
    for p in range(frequencies.shape[0]):
        kx, ky = frequencies[p, 0], frequencies[p, 1]
        x = x_kx * kx + x_ky * ky
        sign = np.float32(1.0) if x >= 0 else np.float32(-1.0)
        x, y, z = sign * x, sign * (y_kx * kx + y_ky * ky), sign * (z_kx * kx + z_ky * ky)
        floor_x, floor_y, floor_z = np.floor(x), np.floor(y), np.floor(z)
        fractions[0, p], fractions[1, p], fractions[2, p], fractions[3, p] = z - floor_z, y - floor_y, x - floor_x, sign
        row = (np.int64(np.int32(floor_z)) + reach) * stride_z + (np.int64(np.int32(floor_y)) + reach) * stride_y
        corners[p] = row + np.int64(np.int32(floor_x)) * stride_x


@_compiled
def _wave(turns):
    """Cosine and sine of 2π · turns in single precision, without a branch: half the angle by its series, then doubled."""
    half = np.float32(math.pi) * (turns - np.floor(turns + np.float32(0.5)))
    square = half * half
    sine = np.float32(-1 / 39916800)
    sine = np.float32(1 / 362880) + square * sine
    sine = np.float32(-1 / 5040) + square * sine
    sine = np.float32(1 / 120) + square * sine
    sine = np.float32(-1 / 6) + square * sine
    sine = half * (np.float32(1) + square * sine)
    cosine = np.float32(1 / 479001600)
    cosine = np.float32(-1 / 3628800) + square * cosine
    cosine = np.float32(1 / 40320) + square * cosine
    cosine = np.float32(-1 / 720) + square * cosine
    cosine = np.float32(1 / 24) + square * cosine
    cosine = np.float32(-1 / 2) + square * cosine
    cosine = np.float32(1) + square * cosine
    return 1 - 2 * sine * sine, 2 * sine * cosine


@_parallel
def extract_slices(grid, rotations, frequencies, out):
    """Trilinear central sections; out (rotation, coefficient, 2 · component)."""
    reach, channels = (grid.shape[0] - 1) // 2, grid.shape[3]
    stride_y = grid.shape[2] * channels
    stride_z = grid.shape[1] * stride_y
    values = grid.reshape(-1)
    for i in numba.prange(rotations.shape[0]):
        corners, fractions = np.zeros(BLOCK + AHEAD, np.int64), np.empty((4, BLOCK), np.float32)
        for start in range(0, frequencies.shape[0], BLOCK):
            block = frequencies[start : start + BLOCK]
            _locate(rotations[i], block, reach, stride_z, stride_y, channels, corners, fractions)
            _interpolate(values, stride_z, stride_y, corners, fractions, out[i, start : start + BLOCK])


@_compiled
def _interpolate(values, stride_z, stride_y, corners, fractions, out):
    """Values (coefficient, channel) in cells that have been located."""
    channels = out.shape[1]
    for p in range(out.shape[0]):
        _prefetch_cell(values, corners[p + AHEAD], stride_z, stride_y, 2 * channels)
        fz, fy, fx, sign = fractions[0, p], fractions[1, p], fractions[2, p], fractions[3, p]
        w00, w01, w10, w11 = (1 - fz) * (1 - fy), (1 - fz) * fy, fz * (1 - fy), fz * fy
        r00 = np.uint64(corners[p])  # unsigned: no index is counted from the end
        r01, r10 = r00 + np.uint64(stride_y), r00 + np.uint64(stride_z)
        r11, beside = r10 + np.uint64(stride_y), np.uint64(channels)
        for c in range(channels):
            near = w00 * values[r00] + w01 * values[r01] + w10 * values[r10] + w11 * values[r11]
            far = w00 * values[r00 + beside] + w01 * values[r01 + beside]
            far += w10 * values[r10 + beside] + w11 * values[r11 + beside]
            out[p, c] = (near + fx * (far - near)) * (sign if c & 1 else np.float32(1))
            r00, r01, r10, r11 = r00 + np.uint64(1), r01 + np.uint64(1), r10 + np.uint64(1), r11 + np.uint64(1)


@_parallel
def insert_slices(grids, lanes, rotations, slots, frequencies, numerators, denominators):
    """Add slices to the grids by the adjoint of trilinear interpolation.

    grids (slot, z, y, x, 3): real and imaginary numerator, and denominator. Slices of slot s go to grid s,
    in `lanes_for` threads. numerators
    (rotation, coefficient) complex, denominators (rotation, coefficient) real.
    """
    reach = (grids.shape[1] - 1) // 2
    stride_y = grids.shape[3] * 3
    stride_z = grids.shape[2] * stride_y
    for task in numba.prange(grids.shape[0] * lanes):
        slot, owned = task // lanes, _planes_of(task % lanes, lanes, grids.shape[1])
        cells, parts = np.arange(BLOCK + AHEAD), np.full(BLOCK + AHEAD, BOTH_PLANES)
        values = grids[slot].reshape(-1)
        corners, fractions = np.zeros(BLOCK + AHEAD, np.int64), np.empty((4, BLOCK), np.float32)
        points = np.empty((3, BLOCK), np.float32)
        for i in range(rotations.shape[0]):
            if slots[i] != slot:
                continue
            for start in range(0, frequencies.shape[0], BLOCK):
                block = frequencies[start : start + BLOCK]
                _locate(rotations[i], block, reach, stride_z, stride_y, 3, corners, fractions)
                count = block.shape[0]
                if lanes > 1:
                    count = _select(corners, count, stride_z, owned, cells, parts)
                for p in range(block.shape[0]):
                    points[0, p] = numerators[i, start + p].real
                    points[1, p] = fractions[3, p] * numerators[i, start + p].imag
                    points[2, p] = denominators[i, start + p]
                _add_points(values, stride_z, stride_y, corners, fractions, points, cells, parts, count)


@_parallel
def insert_images(grids, lanes, rotations, shifts, slots, frequencies, box, data, modulation, first, second):
    """Add images to the grids of a linear model with `first` E[u_i] and `second` E[u_i u_j] moments of its coordinates u.

    grids (slot, z, y, x, channel): for c components, 2c numerator channels then c (c + 1) / 2 denominator channels
    (upper triangle by rows). Images of slot s go to grid s, in `lanes_for` threads. data (particle, coefficient) complex,
    modulation (particle, coefficient), shifts (particle, 2) in pixels of `box`, first (particle, c), second (particle,
    c (c + 1) / 2).
    """
    reach, channels = (grids.shape[1] - 1) // 2, grids.shape[4]
    stride_y = grids.shape[3] * channels
    stride_z = grids.shape[2] * stride_y
    single = first.shape[1] == 1
    for task in numba.prange(grids.shape[0] * lanes):
        slot, owned = task // lanes, _planes_of(task % lanes, lanes, grids.shape[1])
        cells, parts = np.arange(BLOCK + AHEAD), np.full(BLOCK + AHEAD, BOTH_PLANES)
        values = grids[slot].reshape(-1)
        corners, fractions = np.zeros(BLOCK + AHEAD, np.int64), np.empty((4, BLOCK), np.float32)
        points, row = np.empty((3, BLOCK), np.float32), np.empty(2 * channels, np.float32)
        for i in range(rotations.shape[0]):
            if slots[i] != slot:
                continue
            turns_x, turns_y = np.float32(shifts[i, 0] / box), np.float32(shifts[i, 1] / box)
            scale, density = (first[i, 0], second[i, 0]) if single else (np.float32(1), np.float32(1))
            for start in range(0, frequencies.shape[0], BLOCK):
                block = frequencies[start : start + BLOCK]
                _locate(rotations[i], block, reach, stride_z, stride_y, channels, corners, fractions)
                count = block.shape[0]
                if lanes > 1:
                    count = _select(corners, count, stride_z, owned, cells, parts)
                for p in range(block.shape[0]):
                    cosine, sine = _wave(block[p, 0] * turns_x + block[p, 1] * turns_y)
                    contrast, value = modulation[i, start + p], data[i, start + p]
                    points[0, p] = scale * contrast * (value.real * cosine - value.imag * sine)
                    points[1, p] = fractions[3, p] * scale * contrast * (value.real * sine + value.imag * cosine)
                    points[2, p] = density * contrast * contrast
                if single:
                    _add_points(values, stride_z, stride_y, corners, fractions, points, cells, parts, count)
                else:
                    _add_moments(
                        values,
                        stride_z,
                        stride_y,
                        corners,
                        fractions,
                        points,
                        cells,
                        parts,
                        count,
                        first[i],
                        second[i],
                        row,
                    )


@_compiled
def _planes_of(lane, lanes, planes):
    """Whether each plane along z belongs to a lane; lanes take turns, `STRIPE` planes each, so that all have as much to do."""
    return np.arange(planes + 1) // STRIPE % lanes == lane


@_compiled
def _select(corners, count, stride_z, owned, cells, parts):
    """List the cells of which a plane is `owned`, and which of both planes it is; returns how many these are."""
    per_plane, found = 1 / stride_z, 0
    for p in range(count):
        plane = int((corners[p] + 0.5) * per_plane)
        part = int(owned[plane]) + 2 * int(owned[plane + 1])
        cells[found], parts[found] = p, part
        found += int(part > 0)
    return found


@_compiled
def _add_points(values, stride_z, stride_y, corners, fractions, points, cells, parts, count):
    """Add three numbers to each corner of the listed cells."""
    beside, above = np.uint64(stride_y), np.uint64(stride_z)
    for n in range(count):
        _prefetch_cell(values, corners[cells[n + AHEAD]], stride_z, stride_y, 6)
        p, part = np.uint64(cells[n]), parts[n]
        fz, fy, fx = fractions[0, p], fractions[1, p], fractions[2, p]
        far = (fx * points[0, p], fx * points[1, p], fx * points[2, p])
        near = (points[0, p] - far[0], points[1, p] - far[1], points[2, p] - far[2])
        corner = np.uint64(corners[p])
        if part != UPPER_PLANE:
            _add_row(values, corner, (1 - fz) * (1 - fy), near, far)
            _add_row(values, corner + beside, (1 - fz) * fy, near, far)
        if part != LOWER_PLANE:
            _add_row(values, corner + above, fz * (1 - fy), near, far)
            _add_row(values, corner + above + beside, fz * fy, near, far)


@_compiled
def _add_row(values, at, weight, near, far):
    values[at] += weight * near[0]
    values[at + np.uint64(1)] += weight * near[1]
    values[at + np.uint64(2)] += weight * near[2]
    values[at + np.uint64(3)] += weight * far[0]
    values[at + np.uint64(4)] += weight * far[1]
    values[at + np.uint64(5)] += weight * far[2]


@_compiled
def _add_moments(values, stride_z, stride_y, corners, fractions, points, cells, parts, count, first, second, row):
    """Add points (real, imaginary, density) times the moments of an image's coordinates to each corner of the listed cells."""
    channels, pairs = row.shape[0] // 2, 2 * first.shape[0]
    for n in range(count):
        _prefetch_cell(values, corners[cells[n + AHEAD]], stride_z, stride_y, 2 * channels)
        p, part = cells[n], parts[n]
        fz, fy, fx = fractions[0, p], fractions[1, p], fractions[2, p]
        for side in range(2):
            share, at = (fx if side else 1 - fx), side * channels
            real, imaginary, density = share * points[0, p], share * points[1, p], share * points[2, p]
            for c in range(first.shape[0]):
                row[at + 2 * c], row[at + 2 * c + 1] = first[c] * real, first[c] * imaginary
            for c in range(second.shape[0]):
                row[at + pairs + c] = second[c] * density
        corner, beside = corners[p], corners[p] + stride_y
        if part != UPPER_PLANE:
            _add_scaled(values[corner : corner + 2 * channels], (1 - fz) * (1 - fy), row)
            _add_scaled(values[beside : beside + 2 * channels], (1 - fz) * fy, row)
        corner, beside = corner + stride_z, beside + stride_z
        if part != LOWER_PLANE:
            _add_scaled(values[corner : corner + 2 * channels], fz * (1 - fy), row)
            _add_scaled(values[beside : beside + 2 * channels], fz * fy, row)


@_compiled
def _add_scaled(values, weight, row):
    for k in range(row.shape[0]):
        values[k] += weight * row[k]


@_parallel
def normal_equations(
    grid, rotations, shifts, latents, contrast, frequencies, box, data, modulation, hessian, gradient, loss
):
    """Gauss–Newton normal equations of |Y - a C e^{-2πik·t/n} (S_0 + Σ z_j S_j)|² in (rotation 3, shift 2, contrast 1, latents).

    With r the residual and J its (negative) Jacobian: hessian = 2 Re JᴴJ, gradient = 2 Re Jᴴr, loss = Σ|r|². The
    rotation parameter w acts from the left, exp([w]×) R, in radians; shifts in pixels.
    """
    reach, channels = (grid.shape[0] - 1) // 2, grid.shape[3]
    stride_y = grid.shape[2] * channels
    stride_z = grid.shape[1] * stride_y
    values = grid.reshape(-1)
    size = 6 + latents.shape[1]
    for i in numba.prange(rotations.shape[0]):
        corners, fractions = np.zeros(BLOCK + AHEAD, np.int64), np.empty((4, BLOCK), np.float32)
        sections, slopes = np.empty((channels, BLOCK), np.float32), np.empty((6, BLOCK), np.float32)
        jacobian, products = np.zeros((size + 1, 2 * BLOCK), np.float32), np.zeros((size + 1, size + 1), np.float32)
        coordinates = np.ones(channels // 2, np.float32)
        coordinates[1:] = latents[i]
        for start in range(0, frequencies.shape[0], BLOCK):
            block = frequencies[start : start + BLOCK]
            if block.shape[0] < BLOCK:
                jacobian[:] = 0
            _locate(rotations[i], block, reach, stride_z, stride_y, channels, corners, fractions)
            _differentiate(
                values, stride_z, stride_y, corners, fractions, coordinates, block.shape[0], sections, slopes
            )
            _linearise(
                rotations[i], shifts[i], coordinates, contrast[i], block, box, data[i, start : start + BLOCK],
                modulation[i, start : start + BLOCK], sections, slopes, jacobian,
            )  # fmt: skip
            for a in range(size + 1):
                for b in range(a + 1):
                    products[a, b] += _inner(jacobian[a], jacobian[b])
        loss[i] = products[size, size]
        for a in range(size):
            gradient[i, a] = 2 * products[size, a]
            for b in range(a + 1):
                hessian[i, a, b] = hessian[i, b, a] = 2 * products[a, b]


@_compiled
def _differentiate(values, stride_z, stride_y, corners, fractions, coordinates, count, sections, slopes):
    """Sections (2 · component, coefficient) in the cells, and the gradient of their sum along x, y, z (real, imaginary each)."""
    channels = 2 * coordinates.shape[0]
    beside, one, two = np.uint64(channels), np.uint64(1), np.uint64(2)
    for p in range(count):
        _prefetch_cell(values, corners[p + AHEAD], stride_z, stride_y, 2 * channels)
        fz, fy, fx, sign = fractions[0, p], fractions[1, p], fractions[2, p], fractions[3, p]
        w00, w01, w10, w11 = (1 - fz) * (1 - fy), (1 - fz) * fy, fz * (1 - fy), fz * fy
        r00 = np.uint64(corners[p])
        r01, r10 = r00 + np.uint64(stride_y), r00 + np.uint64(stride_z)
        r11 = r10 + np.uint64(stride_y)
        x_re = x_im = y_re = y_im = z_re = z_im = np.float32(0.0)
        for c in range(coordinates.shape[0]):
            u = coordinates[c]
            v00_re, v00_im = values[r00], values[r00 + one]
            v01_re, v01_im = values[r01], values[r01 + one]
            v10_re, v10_im = values[r10], values[r10 + one]
            v11_re, v11_im = values[r11], values[r11 + one]
            d00_re, d00_im = values[r00 + beside] - v00_re, values[r00 + beside + one] - v00_im
            d01_re, d01_im = values[r01 + beside] - v01_re, values[r01 + beside + one] - v01_im
            d10_re, d10_im = values[r10 + beside] - v10_re, values[r10 + beside + one] - v10_im
            d11_re, d11_im = values[r11 + beside] - v11_re, values[r11 + beside + one] - v11_im
            r00, r01, r10, r11 = r00 + two, r01 + two, r10 + two, r11 + two
            x_re += u * (w00 * d00_re + w01 * d01_re + w10 * d10_re + w11 * d11_re)
            x_im += u * (w00 * d00_im + w01 * d01_im + w10 * d10_im + w11 * d11_im)
            v00_re, v00_im = v00_re + fx * d00_re, v00_im + fx * d00_im
            v01_re, v01_im = v01_re + fx * d01_re, v01_im + fx * d01_im
            v10_re, v10_im = v10_re + fx * d10_re, v10_im + fx * d10_im
            v11_re, v11_im = v11_re + fx * d11_re, v11_im + fx * d11_im
            d0_re, d0_im, d1_re, d1_im = v01_re - v00_re, v01_im - v00_im, v11_re - v10_re, v11_im - v10_im
            y_re += u * ((1 - fz) * d0_re + fz * d1_re)
            y_im += u * ((1 - fz) * d0_im + fz * d1_im)
            v0_re, v0_im = v00_re + fy * d0_re, v00_im + fy * d0_im
            d_re, d_im = v10_re + fy * d1_re - v0_re, v10_im + fy * d1_im - v0_im
            z_re += u * d_re
            z_im += u * d_im
            sections[2 * c, p] = v0_re + fz * d_re
            sections[2 * c + 1, p] = sign * (v0_im + fz * d_im)
        # The mirrored point has the conjugate value; its gradient is conjugated and changes sign.
        slopes[0, p], slopes[1, p] = sign * x_re, x_im
        slopes[2, p], slopes[3, p] = sign * y_re, y_im
        slopes[4, p], slopes[5, p] = sign * z_re, z_im


@_compiled
def _linearise(rotation, shift, coordinates, contrast, frequencies, box, data, modulation, sections, slopes, jacobian):
    """Rows of `jacobian`: derivatives of the model, then the residual; real parts first, imaginary parts from BLOCK on."""
    scale, turn = np.float32(OVERSAMPLING), np.float32(2 * math.pi / box)
    turns_x, turns_y = np.float32(shift[0] / box), np.float32(shift[1] / box)
    inverse, components, count = 1 / contrast, coordinates.shape[0], frequencies.shape[0]
    x_rx, x_ry, x_rz = scale * rotation[0, 0], scale * rotation[0, 1], scale * rotation[0, 2]
    y_rx, y_ry, y_rz = scale * rotation[1, 0], scale * rotation[1, 1], scale * rotation[1, 2]
    z_rx, z_ry, z_rz = scale * rotation[2, 0], scale * rotation[2, 1], scale * rotation[2, 2]
    section = jacobian[5 + components]  # of all components, until the residual takes its place
    for part in range(2):
        for p in range(count):
            section[part * BLOCK + p] = sections[part, p]
        for c in range(1, components):
            for p in range(count):
                section[part * BLOCK + p] += coordinates[c] * sections[2 * c + part, p]
    for p in range(count):
        kx, ky = frequencies[p, 0], frequencies[p, 1]
        cosine, sine = _wave(kx * turns_x + ky * turns_y)
        ramp_re, ramp_im = contrast * modulation[p] * cosine, -contrast * modulation[p] * sine
        gx_re, gx_im, gy_re, gy_im = slopes[0, p], slopes[1, p], slopes[2, p], slopes[3, p]
        gz_re, gz_im = slopes[4, p], slopes[5, p]
        image_x_re, image_x_im = x_rx * gx_re + x_ry * gy_re + x_rz * gz_re, x_rx * gx_im + x_ry * gy_im + x_rz * gz_im
        image_y_re, image_y_im = y_rx * gx_re + y_ry * gy_re + y_rz * gz_re, y_rx * gx_im + y_ry * gy_im + y_rz * gz_im
        image_z_re, image_z_im = z_rx * gx_re + z_ry * gy_re + z_rz * gz_re, z_rx * gx_im + z_ry * gy_im + z_rz * gz_im
        tilt_re, tilt_im = ramp_re * image_z_re - ramp_im * image_z_im, ramp_re * image_z_im + ramp_im * image_z_re
        spin_re, spin_im = ky * image_x_re - kx * image_y_re, ky * image_x_im - kx * image_y_im
        model_re = ramp_re * section[p] - ramp_im * section[BLOCK + p]
        model_im = ramp_re * section[BLOCK + p] + ramp_im * section[p]
        jacobian[0, p], jacobian[0, BLOCK + p] = -ky * tilt_re, -ky * tilt_im
        jacobian[1, p], jacobian[1, BLOCK + p] = kx * tilt_re, kx * tilt_im
        jacobian[2, p] = ramp_re * spin_re - ramp_im * spin_im
        jacobian[2, BLOCK + p] = ramp_re * spin_im + ramp_im * spin_re
        jacobian[3, p], jacobian[3, BLOCK + p] = turn * kx * model_im, -turn * kx * model_re
        jacobian[4, p], jacobian[4, BLOCK + p] = turn * ky * model_im, -turn * ky * model_re
        jacobian[5, p], jacobian[5, BLOCK + p] = inverse * model_re, inverse * model_im
        for c in range(1, components):
            part_re, part_im = sections[2 * c, p], sections[2 * c + 1, p]
            jacobian[5 + c, p] = ramp_re * part_re - ramp_im * part_im
            jacobian[5 + c, BLOCK + p] = ramp_re * part_im + ramp_im * part_re
        section[p], section[BLOCK + p] = data[p].real - model_re, data[p].imag - model_im


@_compiled
def _inner(first, second):
    total = np.float32(0.0)
    for k in range(first.shape[0]):
        total += first[k] * second[k]
    return total
