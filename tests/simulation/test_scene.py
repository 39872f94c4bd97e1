"""States made of rigid bodies against states whose blobs were moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryofire.errors import FileFormatError, SettingError
from cryofire.formats.mrc import write_map
from cryofire.simulation.density import density
from cryofire.simulation.molecules import Conformation, Molecule, RigidMotion, in_conformation
from cryofire.simulation.scene import (
    half_frequencies,
    images_of,
    largest_radius,
    scene_of_maps,
    scene_of_molecule,
    whole_spectrum,
)

Spectrum = Callable[[Molecule, np.ndarray], np.ndarray]
STATES = (
    Conformation(),
    Conformation((RigidMotion(("B",), 0.7),)),
    Conformation((RigidMotion(("B",), -0.4, (0.0, 1.0, 1.0), (101.0, 52.0, -19.0), (2.0, 0.0, -1.0)),
                  RigidMotion(("A:1-10", "B:30-33"), 0.3, (1.0, 0.0, 0.0)))),
    Conformation((RigidMotion(("B",), 0.7),), omitted=("A:20-28",)),
)  # fmt: skip


def about_centre(molecule: Molecule, conformation: Conformation) -> Molecule:
    state = in_conformation(molecule, conformation)
    return replace(state, coordinates=state.coordinates - molecule.centre_of_mass)


@pytest.mark.parametrize("state", range(len(STATES)))
def test_placed_bodies_are_the_moved_molecule(molecule: Molecule, exact_spectrum: Spectrum, state: int) -> None:
    scene = scene_of_molecule(molecule, STATES, 0.09)
    rotation = Rotation.from_rotvec([1.0, 0.2, -0.6]).as_matrix()
    frequencies = half_frequencies(24, 2) / (24 * 8.0)
    sections = scene.sections(np.array([state]), rotation[None], np.array([[3.0, -5.0, 0.0]]), frequencies)
    expected = exact_spectrum(about_centre(molecule, STATES[state]), frequencies @ rotation)
    expected *= np.exp(-2j * np.pi * frequencies @ np.array([3.0, -5.0, 0.0]))
    assert np.linalg.norm(sections[0] - expected) < 2e-3 * np.linalg.norm(expected)


def test_sections_of_mixed_states_are_those_of_each(molecule: Molecule) -> None:
    scene = scene_of_molecule(molecule, STATES, 0.05)
    states = np.array([3, 0, 2, 1, 3])
    rotations = Rotation.random(5, random_state=1).as_matrix()
    shifts = np.random.default_rng(0).normal(size=(5, 3))
    frequencies = half_frequencies(16, 2) / (16 * 10.0)
    together = scene.sections(states, rotations, shifts, frequencies)
    for i in range(5):
        alone = scene.sections(states[i : i + 1], rotations[i : i + 1], shifts[i : i + 1], frequencies)
        assert (together[i] == alone[0]).all()


@pytest.mark.parametrize("box", [20, 21])
def test_map_is_the_density(molecule: Molecule, box: int) -> None:
    scene = scene_of_molecule(replace(molecule, width=6.0), STATES, 0.15)
    for state, conformation in enumerate(STATES):
        expected = density(about_centre(replace(molecule, width=6.0), conformation), box, 6.0)
        assert np.abs(scene.map(state, box, 6.0) - expected).max() < 5e-3 * expected.max()


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("box", [9, 10])
def test_half_of_the_frequencies_makes_the_whole_real_array(box: int, axes: int) -> None:
    frequencies = half_frequencies(box, axes)
    assert not frequencies[0].any()
    assert len(frequencies) == ((2 * ((box - 1) // 2) + 1) ** axes + 1) // 2
    rng = np.random.default_rng(2)
    coefficients = rng.normal(size=len(frequencies)) + 1j * rng.normal(size=len(frequencies))
    coefficients[0] = 1.5
    spectrum = whole_spectrum(torch.from_numpy(coefficients), box, axes).numpy()
    index = tuple((frequencies[:, :axes][:, ::-1].astype(int) + box // 2).T)
    mirrored = tuple((-frequencies[:, :axes][:, ::-1].astype(int) + box // 2).T)
    assert (spectrum[index] == coefficients).all()
    assert np.allclose(spectrum[mirrored], coefficients.conj())
    real = np.fft.ifftn(np.fft.ifftshift(spectrum))
    assert np.abs(real.imag).max() < 1e-12


@pytest.mark.parametrize("box", [9, 10])
def test_images_of_a_wave(box: int) -> None:
    frequencies = half_frequencies(box, 2)
    coefficients = np.zeros((1, len(frequencies)), dtype=np.complex64)
    place = int(np.flatnonzero((frequencies == [2, 1, 0]).all(axis=1))[0])
    coefficients[0, place] = box**2 / 2
    y, x = np.mgrid[:box, :box] - box // 2
    assert images_of(coefficients, box)[0] == pytest.approx(np.cos(2 * np.pi * (2 * x + y) / box), abs=1e-5)


def test_scene_of_maps_takes_any_box_and_pixel_size(molecule: Molecule, tmp_path: Path) -> None:
    blobs = replace(molecule, width=6.0)
    for name, box, pixel_size in (("even.mrc", 48, 3.1), ("odd.mrc", 31, 5.0)):
        write_map(tmp_path / name, density(about_centre(blobs, Conformation()), box, pixel_size), pixel_size)
    scene = scene_of_maps([tmp_path / "even.mrc", tmp_path / "odd.mrc"], 0.06)
    reference = scene_of_molecule(blobs, [Conformation()], 0.06)
    frequencies = half_frequencies(11, 2) / (16 * 9.0)
    rotation, nowhere = Rotation.from_rotvec([1.0, 0.2, -0.6]).as_matrix()[None], np.zeros((1, 3))
    expected = reference.sections(np.array([0]), rotation, nowhere, frequencies)
    for state in range(2):
        value = scene.sections(np.array([state]), rotation, nowhere, frequencies)
        assert np.linalg.norm(value - expected) < 2e-3 * np.linalg.norm(expected)


def test_largest_radius_covers_every_conformation(molecule: Molecule) -> None:
    far = Conformation((RigidMotion(("B",), 0.0, (1.0, 0.0, 0.0), None, (500.0, 0.0, 0.0)),))
    assert largest_radius(molecule, [Conformation()]) < 60
    assert 500 < largest_radius(molecule, [Conformation(), far]) < 560


def test_state_without_anything_is_refused(molecule: Molecule) -> None:
    with pytest.raises(SettingError, match="nothing"):
        scene_of_molecule(molecule, [Conformation(), Conformation(omitted=("*",))], 0.05)


@pytest.mark.parametrize(
    ("shape", "pixel_size", "value"), [((8, 8, 9), 2.0, 1.0), ((8, 8, 8), 0.0, 1.0), ((8, 8, 8), 2.0, 0.0)]
)
def test_impossible_maps_are_refused(tmp_path: Path, shape: tuple, pixel_size: float, value: float) -> None:
    write_map(tmp_path / "bad.mrc", np.full(shape, value, dtype=np.float32), pixel_size)
    with pytest.raises(FileFormatError, match=r"bad\.mrc"):
        scene_of_maps([tmp_path / "bad.mrc"], 0.1)
