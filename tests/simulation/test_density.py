"""Densities and bodies against sums over blobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryofire.errors import SettingError
from cryofire.simulation.density import Body, body_of_map, body_of_molecule, density
from cryofire.simulation.kernels import SUPPORT, spread_gaussians, window, window_transform
from cryofire.simulation.molecules import Molecule

Spectrum = Callable[[Molecule, np.ndarray], np.ndarray]


def centred(molecule: Molecule) -> Molecule:
    return replace(molecule, coordinates=molecule.coordinates - molecule.centre_of_mass)


def transform(volume: np.ndarray) -> np.ndarray:
    return np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(volume.astype(np.float64))))


def on_shell(radius: float, count: int = 50) -> np.ndarray:
    points = np.random.default_rng(1).normal(size=(count, 3))
    return radius * points / np.linalg.norm(points, axis=1, keepdims=True)


def section(
    body: Body, frequencies: np.ndarray, rotation: np.ndarray | None = None, offset: tuple = (0, 0, 0)
) -> np.ndarray:
    out = np.zeros((1, len(frequencies)), dtype=np.complex64)
    turn = np.eye(3) if rotation is None else rotation
    body.add_sections(turn[None], np.array([offset], dtype=float), np.array([0]), frequencies, out)
    return out[0]


def relative_error(value: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


def test_window_transform_is_the_transform_of_the_window() -> None:
    distance = np.linspace(0, SUPPORT / 2, 4097)
    for x in (0.0, 0.1, 0.25):
        integral = 2 * np.trapezoid(window(distance) * np.cos(2 * np.pi * x * distance), distance)
        assert window_transform(np.array(x)) == pytest.approx(integral, rel=1e-5)


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("size", [16, 17])
def test_spread_gaussians_equals_the_sum(size: int, periodic: bool) -> None:
    positions = np.array([[0.3, -1.2, 2.0], [6.4, 0.1, -7.3]])
    weights, grid = np.array([2.0, -1.0]), np.zeros((size, size, size))
    spread_gaussians(positions, weights, 1.1, periodic, grid)
    axis = np.arange(size) - size // 2
    expected = np.zeros_like(grid)
    images = (-size, 0, size) if periodic else (0,)
    for (x, y, z), weight in zip(positions, weights, strict=True):
        lines = [sum(np.exp(-0.5 * ((axis + s - c) / 1.1) ** 2) for s in images) for c in (z, y, x)]
        expected += weight * np.einsum("z,y,x->zyx", *lines)
    assert np.abs(grid - expected).max() < 1e-7


@pytest.mark.parametrize("box", [32, 33])
@pytest.mark.parametrize("resolution", [None, 12.0])
def test_density_has_the_exact_spectrum(
    molecule: Molecule, exact_spectrum: Spectrum, box: int, resolution: float | None
) -> None:
    blobs = centred(molecule)
    spectrum = transform(density(blobs, box, 3.0, resolution))
    index = np.random.default_rng(0).integers(-((box - 1) // 2), (box - 1) // 2 + 1, size=(200, 3))
    frequencies = index / (box * 3.0)
    expected = exact_spectrum(blobs, frequencies)
    if resolution is not None:
        expected = expected * np.exp(-np.square(frequencies * resolution).sum(-1))
    assert relative_error(spectrum[tuple(index[:, ::-1].T + box // 2)], expected) < 1e-4


@pytest.mark.parametrize("box", [24, 25])
def test_density_keeps_the_mass_even_of_what_leaves_the_box(molecule: Molecule, box: int) -> None:
    assert density(molecule, box, 3.0).sum(dtype=np.float64) == pytest.approx(molecule.weights.sum(), rel=1e-5)


@pytest.mark.parametrize("box", [24, 25])
def test_moving_by_whole_voxels_rolls_the_density(molecule: Molecule, box: int) -> None:
    blobs = centred(molecule)
    moved = replace(blobs, coordinates=blobs.coordinates + np.array([6.0, -3.0, 9.0]))
    expected = np.roll(density(blobs, box, 3.0), (3, -1, 2), axis=(0, 1, 2))
    assert np.abs(density(moved, box, 3.0) - expected).max() < 1e-4 * expected.max()


def test_turning_by_a_right_angle_turns_the_density(molecule: Molecule) -> None:
    blobs = centred(molecule)
    x, y, z = blobs.coordinates.T
    turned = replace(blobs, coordinates=np.stack([-y, x, z], axis=1))
    volume = density(blobs, 25, 3.0)
    expected = volume.transpose(0, 2, 1)[:, :, ::-1]  # value at (-y, x) is that at (x, y)
    assert np.abs(density(turned, 25, 3.0) - expected).max() < 1e-4 * volume.max()


@pytest.mark.parametrize(("box", "pixel_size"), [(0, 1.0), (8, 0.0), (8, -1.0), (8, np.nan)])
def test_density_refuses_nonsense(molecule: Molecule, box: int, pixel_size: float) -> None:
    with pytest.raises(SettingError):
        density(molecule, box, pixel_size)


@pytest.mark.parametrize("fraction", [0.02, 0.2, 0.5, 0.8, 1.0])
def test_sections_of_a_molecule_are_exact(molecule: Molecule, exact_spectrum: Spectrum, fraction: float) -> None:
    body = body_of_molecule(molecule, 0.12)
    frequencies = on_shell(0.12 * fraction)
    expected = exact_spectrum(molecule, frequencies)
    assert relative_error(section(body, frequencies, offset=tuple(body.centre)), expected) < 2e-3


def test_sections_of_a_turned_and_moved_body(molecule: Molecule, exact_spectrum: Spectrum) -> None:
    blobs = centred(molecule)
    rotation = Rotation.from_rotvec([0.3, -1.0, 2.0]).as_matrix()
    moved = replace(blobs, coordinates=blobs.coordinates @ rotation.T + np.array([5.0, -7.0, 2.0]))
    frequencies = on_shell(0.06)
    value = section(body_of_molecule(blobs, 0.1), frequencies, rotation, (5.0, -7.0, 2.0))
    assert relative_error(value, exact_spectrum(moved, frequencies)) < 2e-3


def test_sections_add_up_in_their_rows(molecule: Molecule) -> None:
    body, frequencies = body_of_molecule(molecule, 0.05), on_shell(0.03)
    out = np.ones((3, len(frequencies)), dtype=np.complex64)
    body.add_sections(np.eye(3)[None], np.zeros((1, 3)), np.array([2]), frequencies, out)
    assert (out[:2] == 1).all()
    assert out[2] - 1 == pytest.approx(section(body, frequencies), rel=1e-3)


@pytest.mark.parametrize("box", [40, 41])
@pytest.mark.parametrize("max_frequency", [0.05, 0.4])
def test_sections_of_a_map_are_those_of_its_voxels(molecule: Molecule, box: int, max_frequency: float) -> None:
    volume = density(centred(molecule), box, 3.0)
    body = body_of_map(volume, 3.0, max_frequency)
    frequencies = on_shell(0.045, 20)
    position = 3.0 * (np.arange(box) - box // 2)
    lines = [np.exp(-2j * np.pi * np.outer(frequencies[:, axis], position)) for axis in (2, 1, 0)]
    expected = np.einsum("zyx,kz,ky,kx->k", volume.astype(float), *lines, optimize=True)
    assert relative_error(section(body, frequencies), expected) < 2e-3


def test_map_has_nothing_beyond_its_nyquist_frequency(molecule: Molecule) -> None:
    body = body_of_map(density(centred(molecule), 20, 6.0), 6.0, 0.5)
    assert np.abs(section(body, on_shell(0.2))).max() == 0
