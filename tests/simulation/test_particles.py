"""Simulated sets: images against closed forms, noise against what was asked for, files against each other."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from cryofire.analysis.truth import read_truth
from cryofire.data.read import read_particles
from cryofire.data.stack import ImageStacks
from cryofire.errors import ImageError, InputError, RunFolderError, SettingError
from cryofire.formats.mrc import open_stack, read_header, read_map, write_map
from cryofire.simulation.images import RenderedStack, Renderer, signal_variance, simulated_images
from cryofire.simulation.molecules import Conformation, Molecule, RigidMotion, in_conformation, read_molecule
from cryofire.simulation.particles import SimulatedSet, simulate
from cryofire.simulation.sampling import Truth, draw_truth
from cryofire.simulation.scene import scene_of_molecule
from cryofire.simulation.settings import SimulationSettings

Spectrum = Callable[[Molecule, np.ndarray], np.ndarray]
STATES = (Conformation(), Conformation((RigidMotion(("B",), 1.2, (0.0, 0.0, 1.0)),)))


@pytest.fixture
def settings(molecule_file: Path) -> SimulationSettings:
    """Small images of the small molecule in two states, all effects switched on."""
    return SimulationSettings(
        particles=23, box=24, pixel_size=6.0, molecule=molecule_file, conformations=STATES, snr_pixel_size=4.0,
        defocus=8000.0, b_factor=60.0, phase_shift=0.4, contrast_std=0.2, dtype="float32",
    )  # fmt: skip


def images(made: SimulatedSet) -> np.ndarray:
    stack = open_stack(made.stack)
    return stack.frames(np.arange(len(stack))).astype(np.float64)


def transfer(truth: Truth, row: int, kx: np.ndarray, ky: np.ndarray) -> np.ndarray:
    """Contrast transfer written down a second time, from the docstring of the first."""
    optics = truth.optics.take(np.array([row]))
    voltage = 1e3 * optics.voltage_kv[0]
    wavelength = 12.2642597 / math.sqrt(voltage * (1 + 0.978475598e-6 * voltage))
    mean, half = (optics.defocus_u + optics.defocus_v) / 2, (optics.defocus_u - optics.defocus_v) / 2
    square = kx**2 + ky**2
    defocus = mean + half * np.cos(2 * (np.arctan2(ky, kx) - optics.defocus_angle))
    phase = math.pi * wavelength * defocus * square - math.pi / 2 * 1e7 * optics.cs_mm * wavelength**3 * square**2
    phase = phase + optics.phase_shift
    w = optics.amplitude_contrast
    wave = np.sqrt(1 - w**2) * np.sin(phase) + w * np.cos(phase)
    return -optics.scale * wave * np.exp(-optics.b_factor * square / 4)


@pytest.mark.parametrize("box", [24, 25])
def test_images_without_noise_are_the_closed_form(
    settings: SimulationSettings, exact_spectrum: Spectrum, tmp_path: Path, box: int
) -> None:
    settings = replace(settings, snr=math.inf, box=box)
    made = simulate(settings, tmp_path / "set")
    truth, molecule = draw_truth(settings), read_molecule(settings.molecule)
    line = np.arange(-((box - 1) // 2), (box - 1) // 2 + 1) / (box * 6.0)
    ky, kx = np.meshgrid(line, line, indexing="ij")
    frequencies = np.stack([kx, ky, np.zeros_like(kx)], axis=-1)
    place = np.rint(line * box * 6.0).astype(int) + box // 2
    for row, image in enumerate(images(made)):
        state = in_conformation(molecule, STATES[truth.states[row]])
        state = replace(state, coordinates=state.coordinates - molecule.centre_of_mass)
        shift = truth.poses.shifts[row]
        expected = exact_spectrum(state, frequencies @ truth.poses.rotations[row])
        expected *= np.exp(-2j * np.pi * (kx * shift[0] + ky * shift[1])) * transfer(truth, row, kx, ky)
        spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image)))[np.ix_(place, place)] / made.image_scale
        assert np.linalg.norm(spectrum - expected) < 3e-3 * np.linalg.norm(expected)
        outer = np.hypot(kx, ky) > 0.8 * line[-1]
        assert np.linalg.norm((spectrum - expected)[outer]) < 1e-2 * np.linalg.norm(expected[outer])


def test_no_contrast_transfer_is_projection(settings: SimulationSettings) -> None:
    """With pure amplitude contrast and nothing else an image is minus the projection: its sum is minus the mass."""
    plain = replace(
        settings, amplitude_contrast=1.0, cs_mm=0.0, defocus=1e-6, b_factor=0.0, phase_shift=0.0, contrast_std=0.0
    )  # fmt: skip
    molecule, truth = replace(read_molecule(settings.molecule), width=9.0), draw_truth(plain)
    renderer = Renderer(scene_of_molecule(molecule, STATES, 0.12), 40, 6.0)
    projections = -renderer.images(truth, np.arange(4))
    assert projections.sum(axis=(1, 2)) == pytest.approx(np.full(4, molecule.weights.sum()), rel=1e-3)
    grid = 6.0 * (np.arange(40) - 20)
    for row in range(4):
        state = in_conformation(molecule, STATES[truth.states[row]])
        centre = truth.poses.rotations[row] @ (state.centre_of_mass - molecule.centre_of_mass)
        mass = projections[row].sum()
        found = (projections[row].sum(axis=0) @ grid / mass, projections[row].sum(axis=1) @ grid / mass)
        assert found == pytest.approx(tuple(centre[:2] + truth.poses.shifts[row]), abs=0.1)  # t moves the particle


def test_the_same_settings_give_the_same_bytes(settings: SimulationSettings, tmp_path: Path) -> None:
    simulate(settings, tmp_path / "first")
    simulate(settings, tmp_path / "second")
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def test_a_larger_set_begins_with_the_bytes_of_a_smaller_one(settings: SimulationSettings, tmp_path: Path) -> None:
    few, done = simulate(settings, tmp_path / "few"), list[int]()
    many = simulate(replace(settings, particles=223), tmp_path / "many", done.append)
    assert done == [100, 100, 23]
    stored = few.stack.read_bytes()[1024:]
    assert len(stored) == 23 * 24 * 24 * 4
    assert many.stack.read_bytes()[1024 : 1024 + len(stored)] == stored
    head = few.truth.read_text().rstrip("\n")
    assert many.truth.read_text().startswith(head)


def test_another_seed_is_another_set(settings: SimulationSettings, tmp_path: Path) -> None:
    first, second = (simulate(replace(settings, seed=seed), tmp_path / str(seed)) for seed in (0, 1))
    correlation = np.corrcoef(images(first).ravel(), images(second).ravel())[0, 1]
    assert abs(correlation) < 0.5
    assert first.truth.read_bytes() != second.truth.read_bytes()


@pytest.mark.parametrize("snr_pixel_size", [None, 4.0, 9.0])
@pytest.mark.parametrize("is_white", [True, False])
def test_signal_to_noise_ratio_is_what_was_asked(
    settings: SimulationSettings, tmp_path: Path, snr_pixel_size: float | None, is_white: bool
) -> None:
    np.save(tmp_path / "falling.npy", np.linspace(5, 1, 20))
    settings = replace(
        settings, particles=400, contrast_std=0.0, snr=0.5, snr_pixel_size=snr_pixel_size,
        noise=None if is_white else tmp_path / "falling.npy",
    )  # fmt: skip
    noisy = simulate(settings, tmp_path / "noisy")
    clean = simulate(replace(settings, snr=math.inf), tmp_path / "clean")
    noise = images(noisy) - images(clean)
    assert noise.var() == pytest.approx(noisy.noise_variance, rel=0.02)
    if is_white:
        assert noisy.noise_variance == pytest.approx(2.0)
    if snr_pixel_size is None:
        signal = images(clean).var(axis=(1, 2)).mean()
        assert signal / noise.var() == pytest.approx(0.5, rel=0.03)


def test_noise_per_area_does_not_depend_on_binning(settings: SimulationSettings, tmp_path: Path) -> None:
    """Fourier cropping the finer set gives the coarser one: same signal, same noise in every shell."""
    few = replace(settings, particles=200, contrast_std=0.0, snr=0.2, shift_std=2.0)
    fine = simulate(replace(few, box=36, pixel_size=4.0), tmp_path / "fine")
    coarse = simulate(few, tmp_path / "coarse")
    inner = slice(18 - 11, 18 + 12)
    cropped = np.fft.fftshift(np.fft.fft2(images(fine)), axes=(1, 2))[:, inner, inner] * 24 / 36
    expected = np.fft.fftshift(np.fft.fft2(images(coarse)), axes=(1, 2))[:, 1:, 1:]
    assert np.square(np.abs(cropped)).mean() == pytest.approx(np.square(np.abs(expected)).mean(), rel=0.02)
    assert fine.noise_variance == pytest.approx(coarse.noise_variance)


def test_white_particles_are_dark_ones_inverted(settings: SimulationSettings, tmp_path: Path) -> None:
    dark, white = (
        images(simulate(replace(settings, snr=math.inf, contrast=contrast), tmp_path / contrast))
        for contrast in ("dark", "white")
    )
    assert np.abs(dark + white).max() == 0
    assert np.abs(dark).max() > 1


def test_tables_say_what_was_simulated(settings: SimulationSettings, tmp_path: Path) -> None:
    made, truth = simulate(settings, tmp_path / "set"), draw_truth(settings)
    plain, known = read_particles(made.particles), read_particles(made.truth)
    assert plain.poses is None
    assert plain.labels is None
    assert known.poses is not None
    assert known.poses.rotations == pytest.approx(truth.poses.rotations, abs=1e-6)
    assert known.poses.shifts == pytest.approx(truth.poses.shifts, abs=1e-6)
    assert (known.labels == truth.states + 1).all()
    for table in (plain, known):
        assert len(table) == 23
        assert (table.frame == np.arange(23)).all()
        assert table.pixel_size == pytest.approx(np.full(23, 6.0))
        assert (table.box == 24).all()
        for name in (
            "voltage_kv",
            "cs_mm",
            "amplitude_contrast",
            "defocus_u",
            "defocus_v",
            "defocus_angle",
            "b_factor",
        ):
            assert getattr(table.optics, name) == pytest.approx(getattr(truth.optics, name), abs=1e-5)
        assert table.optics.phase_shift == pytest.approx(np.full(23, 0.4), abs=1e-6)
    contrast = known.source.particles.floats("cryofireContrast")
    assert contrast == pytest.approx(truth.contrast, abs=1e-6)
    content = json.loads((tmp_path / "set" / "settings.json").read_text())
    assert content["settings"]["box"] == 24
    assert content["image_scale"] == made.image_scale


def test_images_without_a_particle_are_noise_of_the_same_strength(settings: SimulationSettings, tmp_path: Path) -> None:
    settings = replace(settings, particles=200, snr=math.inf, contrast_std=0.0, empty=0.4)
    simulate(settings, tmp_path / "set")
    known = read_truth(tmp_path / "set" / "truth.star")
    power = np.square(open_stack(tmp_path / "set" / "particles.mrcs").frames(np.arange(200))).mean(axis=(1, 2))
    assert 40 < known.is_empty.sum() < 120
    np.testing.assert_array_equal(power == 0, known.is_empty)
    np.testing.assert_array_equal(known.labels == 0, known.is_empty)
    assert simulated_images(settings).scale == simulated_images(replace(settings, empty=0.0)).scale


@pytest.mark.parametrize("contrast", ["dark", "white"])
def test_contaminants_lie_over_the_same_images_and_are_named(
    settings: SimulationSettings, tmp_path: Path, contrast: Literal["dark", "white"]
) -> None:
    clean = replace(settings, particles=200, contrast=contrast)
    spoilt = replace(clean, contaminated=0.3)
    simulate(spoilt, tmp_path / "set")
    known = read_truth(tmp_path / "set" / "truth.star")
    assert 30 < known.is_contaminated.sum() < 90
    rows = np.arange(200)
    discs = simulated_images(spoilt).images(rows) - simulated_images(clean).images(rows)
    np.testing.assert_array_equal(np.abs(discs).max(axis=(1, 2)) > 1e-3, known.is_contaminated)
    depth = (-1 if contrast == "dark" else 1) * discs / math.sqrt(simulated_images(clean).noise_variance)
    assert depth.min() > -1e-3 and 15 < depth.max() < 20.01
    weakest = np.sort(depth.max(axis=(1, 2))[known.is_contaminated])[0]
    assert weakest > 2.5  # the edge of the image cuts some discs


def test_continuum_writes_its_coordinate(settings: SimulationSettings, tmp_path: Path) -> None:
    states = tuple(
        Conformation((RigidMotion(("B",), angle),), coordinate=math.degrees(angle)) for angle in np.linspace(0, 1.5, 12)
    )
    settings = replace(settings, conformations=states)
    made = simulate(settings, tmp_path / "set")
    table = read_particles(made.truth)
    assert len(made.maps) == 12
    expected = np.rad2deg(np.linspace(0, 1.5, 12))[draw_truth(settings).states]
    assert table.source.particles.floats("cryofireCoordinate") == pytest.approx(expected, abs=1e-5)
    assert len(np.unique(table.labels)) > 5


@pytest.mark.parametrize(("dtype", "mode_bytes"), [("float16", 2), ("float32", 4)])
def test_maps_and_images_have_box_and_pixel_size(
    settings: SimulationSettings, tmp_path: Path, dtype: str, mode_bytes: int
) -> None:
    made = simulate(replace(settings, dtype=dtype), tmp_path / "set")
    header = read_header(made.stack)
    assert header.shape == (23, 24, 24)
    assert header.sample.itemsize == mode_bytes
    assert header.voxel_size[0] == pytest.approx(6.0)
    molecule = read_molecule(settings.molecule)
    for path in made.maps:
        volume, voxel_size = read_map(path)
        assert voxel_size == pytest.approx(6.0)
        assert volume.shape == (24, 24, 24)
        assert volume.sum(dtype=np.float64) == pytest.approx(molecule.weights.sum(), rel=1e-3)


def test_maps_as_states_give_the_images_of_the_molecule(settings: SimulationSettings, tmp_path: Path) -> None:
    settings = replace(settings, snr=math.inf)
    of_molecule = simulate(settings, tmp_path / "molecule")
    scene = scene_of_molecule(read_molecule(settings.molecule), STATES, 0.5)
    paths = tuple(tmp_path / f"map{state}.mrc" for state in range(2))
    for state, path in enumerate(paths):
        write_map(path, scene.map(state, 45, 3.2), 3.2)
    of_maps = simulate(replace(settings, molecule=None, conformations=None, maps=paths), tmp_path / "maps")
    difference = images(of_maps) - images(of_molecule)
    assert np.linalg.norm(difference) < 0.02 * np.linalg.norm(images(of_molecule))


def test_a_folder_in_use_is_refused(settings: SimulationSettings, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"notes\.txt"):
        simulate(settings, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["molecule.npz", "notes.txt"]
    with pytest.raises(InputError, match="cannot make"):
        simulate(settings, tmp_path / "notes.txt" / "set")


def test_overwriting_leaves_no_map_of_another_set_and_nothing_else_changed(
    settings: SimulationSettings, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    simulate(settings, folder)
    (folder / "notes.txt").write_text("mine")
    simulate(replace(settings, conformations=None), folder, is_overwriting=True)
    assert sorted(path.name for path in folder.iterdir()) == [
        "notes.txt", "particles.mrcs", "particles.star", "settings.json", "state0.mrc", "truth.star"
    ]  # fmt: skip


def test_overwriting_keeps_maps_where_there_is_no_set(settings: SimulationSettings, tmp_path: Path) -> None:
    (tmp_path / "statement.mrc").write_text("mine")
    (tmp_path / "state9.mrc").write_text("mine")
    simulate(settings, tmp_path, is_overwriting=True)
    assert (tmp_path / "state9.mrc").read_text() == "mine"
    simulate(settings, tmp_path, is_overwriting=True)
    assert (tmp_path / "statement.mrc").read_text() == "mine"


def test_a_molecule_that_does_not_fit_is_refused(settings: SimulationSettings, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="does not fit"):
        simulate(replace(settings, box=8, pixel_size=4.0), tmp_path / "set")


def test_an_interrupted_set_leaves_no_stack(settings: SimulationSettings, tmp_path: Path) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(replace(settings, particles=150), tmp_path / "set", interrupt)
    assert not (tmp_path / "set" / "particles.mrcs").exists()
    assert not list((tmp_path / "set").glob("*.star"))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_images_made_when_they_are_asked_for_are_those_of_the_file(
    settings: SimulationSettings, tmp_path: Path, dtype: Literal["float16", "float32"]
) -> None:
    settings = replace(settings, particles=130, dtype=dtype)
    written, reserved = (simulate(settings, tmp_path / str(here), with_images=here) for here in (True, False))
    assert reserved.particles.read_bytes() == written.particles.read_bytes()
    assert reserved.stack.stat().st_size == written.stack.stat().st_size
    assert reserved.stack.stat().st_blocks < written.stack.stat().st_blocks
    source = simulated_images(settings)
    table = replace(read_particles(reserved.particles), opener=lambda path: RenderedStack(path, source))
    rows = np.array([129, 4, 5, 99, 100])
    assert not ImageStacks(read_particles(reserved.particles)).images(rows).any()
    np.testing.assert_allclose(
        ImageStacks(table).images(rows), ImageStacks(read_particles(written.particles)).images(rows), atol=2e-3
    )
    assert ImageStacks(table).images(np.array([], dtype=int)).shape == (0, 0, 0)


def test_values_that_float16_cannot_hold_are_an_error(settings: SimulationSettings, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="float16"):
        simulate(replace(settings, snr=1e-12, dtype="float16"), tmp_path / "set")


@pytest.fixture(scope="module")
def default_set(tmp_path_factory: pytest.TempPathFactory) -> SimulatedSet:
    """The first 1 500 particles of the default set."""
    return simulate(SimulationSettings(particles=1500), tmp_path_factory.mktemp("default") / "set")


def test_default_set_is_like_the_reference_set(shared_data: Path, default_set: SimulatedSet) -> None:
    """Pixel statistics, power per shell and maps of the default settings against an independent simulator's."""
    mine, stack = images(default_set), open_stack(shared_data / "reference_set" / "particles.mrcs")
    other = stack.frames(np.arange(1500)).astype(np.float64)
    assert mine.mean() == pytest.approx(other.mean(), rel=0.05)
    assert mine.std() == pytest.approx(other.std(), rel=0.01)
    axis = np.arange(64) - 32
    shells = np.rint(np.hypot(axis[:, None], axis)).astype(int).ravel()
    powers = [
        np.bincount(shells, np.square(np.abs(np.fft.fftshift(np.fft.fft2(x), axes=(1, 2)))).mean(axis=0).ravel())
        for x in (mine, other)
    ]
    assert powers[0][1:31] == pytest.approx(powers[1][1:31], rel=0.06)
    assert default_set.image_scale == pytest.approx(0.01402, rel=0.02)


def test_default_maps_are_those_of_the_reference_set(shared_data: Path, default_set: SimulatedSet) -> None:
    axis = np.arange(-31, 32)
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    shells = np.where(radius < 31.5, np.rint(radius), 32).astype(int).ravel()
    for state in range(2):
        spectra = []
        for volume in (
            read_map(default_set.maps[state])[0],
            read_map(shared_data / "reference_set" / f"state{state}.mrc")[0],
        ):
            middle = len(volume) // 2
            inner = slice(middle - 31, middle + 32)
            spectrum = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(volume)))[inner, inner, inner].ravel()
            spectra.append(spectrum)
        product, first, second = (
            np.bincount(shells, x)
            for x in ((spectra[0] * spectra[1].conj()).real, np.abs(spectra[0]) ** 2, np.abs(spectra[1]) ** 2)
        )
        correlation = product / np.sqrt(first * second)
        assert correlation[:20].min() > 0.99
        assert correlation[:31].min() > 0.95
        assert np.sqrt(first / second)[:25] == pytest.approx(np.ones(25), abs=0.06)


def test_signal_variance_is_that_of_the_images(settings: SimulationSettings) -> None:
    molecule, truth = read_molecule(settings.molecule), draw_truth(settings)
    renderer = Renderer(scene_of_molecule(molecule, STATES, 0.12), 24, 6.0)
    measured = renderer.images(truth, np.arange(len(truth))).astype(np.float64).var(axis=(1, 2)).mean()
    assert signal_variance(renderer, truth) == pytest.approx(measured, rel=0.02)


@pytest.mark.interop
def test_relion_reconstructs_the_inverted_map(settings: SimulationSettings, tmp_path: Path) -> None:
    program = shutil.which("relion_reconstruct")
    if program is None:
        pytest.skip("relion_reconstruct is not installed")
    settings = replace(
        settings, particles=1500, box=32, conformations=None, snr=0.5, contrast_std=0.0, b_factor=0.0, shift_std=12.0
    )  # fmt: skip
    made = simulate(settings, tmp_path / "set")
    command = [program, "--i", "truth.star", "--o", str(tmp_path / "map.mrc"), "--ctf"]
    subprocess.run(command, cwd=tmp_path / "set", check=True, capture_output=True)
    spectra = [np.fft.fftn(read_map(path)[0]) for path in (tmp_path / "map.mrc", made.maps[0])]
    axis = np.fft.fftfreq(32, 1 / 32)
    shells = np.rint(np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)).astype(int).ravel()
    product, first, second = (
        np.bincount(shells, x.ravel())
        for x in ((spectra[0] * spectra[1].conj()).real, np.abs(spectra[0]) ** 2, np.abs(spectra[1]) ** 2)
    )
    correlation = product / np.sqrt(first * second)
    assert correlation[1:13].max() < -0.97
