"""Simulated particle sets: images, tables with and without the truth, and the maps of the states.

An image is Y(k) = g a C(k) exp(-2πi k·t) V(Rᵀ (k_x, k_y, 0)) + noise, with a contrast a (negative if matter is to be
white), and a scale g such that the images without noise would have the standard deviation 1 at the pixel size at
which the signal-to-noise ratio is stated. A pixel then has the noise variance 1 / SNR if the noise is white.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex64, Float32, Float64, Int64

from cryofire.data.particles import Optics
from cryofire.errors import InputError, RunFolderError, SettingError
from cryofire.formats.atomic import replacing
from cryofire.formats.conventions import origins_from_shifts, relion_from_rotations
from cryofire.formats.mrc import stack_writer, write_map
from cryofire.formats.star import Column, StarBlock, float_column, integer_column, text_column, write_star
from cryofire.physics.ctf import contrast_transfer
from cryofire.simulation.molecules import demo_molecule, read_molecule
from cryofire.simulation.noise import NoiseSource, noise_source, read_noise
from cryofire.simulation.sampling import Truth, draw_truth
from cryofire.simulation.scene import (
    Scene,
    half_frequencies,
    images_of,
    largest_radius,
    scene_of_maps,
    scene_of_molecule,
)
from cryofire.simulation.settings import SimulationSettings
from cryofire.version import __version__

_PER_MICROGRAPH = 200
_BLOCK = 100  # images at a time; always as many, so that rounding is the same whatever the size of the set
_MEASURED = 500  # particles on which the variance of the signal is measured: its relative error is then about 0.5 %
_NAMES = ("particles.mrcs", "particles.star", "truth.star", "settings.json")


@dataclass(frozen=True)
class SimulatedSet:
    """A set on disk.

    Attributes
    ----------
    particles, truth, stack : Path
        Table without poses, table with poses, and images.
    maps : tuple of Path
        One a state; in the units of the molecule or of the maps given, not scaled by `image_scale`.
    image_scale : float
        Factor g by which projections were multiplied.
    noise_variance : float
        Of a pixel of the images.
    """

    particles: Path
    truth: Path
    stack: Path
    maps: tuple[Path, ...]
    image_scale: float
    noise_variance: float


def simulate(
    settings: SimulationSettings,
    folder: Path,
    progress: Callable[[int], None] | None = None,
    *,
    is_overwriting: bool = False,
) -> SimulatedSet:
    """Write a simulated particle set.

    It consists of ``particles.mrcs``, ``particles.star`` without poses, ``truth.star``, ``state0.mrc`` … and
    ``settings.json``.

    Memory does not grow with the number of images but for the tables, about 300 bytes a particle. The same settings give
    the same bytes, and a larger set begins with the bytes of a smaller one. Costs about 1 ms an image of box 64 on one
    core.

    Parameters
    ----------
    settings : SimulationSettings
        What to simulate.
    folder : Path
        Where; made if it does not exist.
    progress : callable, optional
        Called with the number of images done.
    is_overwriting : bool
        Whether a set that is already there may be replaced.

    Raises
    ------
    RunFolderError
        The folder is not empty.
    InputError
        A file cannot be read or written, a selection names nothing, or the molecule does not fit into the box.
    """
    _prepare_folder(folder, is_overwriting)
    truth = draw_truth(settings)
    scene = _scene(settings, 1 / (math.sqrt(2) * settings.pixel_size))
    scale = _image_scale(settings, scene)
    noise = _noise(settings)
    maps = tuple(folder / f"state{state}.mrc" for state in range(len(scene)))
    for state, path in enumerate(maps):
        write_map(path, scene.map(state, settings.box, settings.pixel_size), settings.pixel_size)
    renderer = Renderer(scene, settings.box, settings.pixel_size)
    with stack_writer(folder / _NAMES[0], settings.box, settings.pixel_size, settings.dtype) as writer:
        for start in range(0, len(truth), _BLOCK):
            rows = np.arange(start, start + _BLOCK).clip(max=len(truth) - 1)
            count = min(_BLOCK, len(truth) - start)
            signal = renderer.images(truth, rows)[:count]
            writer.append(np.float32(scale) * signal + noise.images(start, count))
            if progress is not None:
                progress(count)
    _write_tables(settings, truth, folder)
    result = SimulatedSet(
        folder / _NAMES[1], folder / _NAMES[2], folder / _NAMES[0], maps, scale, _pixel_variance(noise)
    )  # fmt: skip
    _write_settings(settings, result, folder / _NAMES[3])
    return result


def _prepare_folder(folder: Path, is_overwriting: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot make the folder: {error.strerror}", file=folder) from error
    if present and not is_overwriting:
        raise RunFolderError(
            f"the folder is not empty: it holds {', '.join(present[:4])}{' …' if len(present) > 4 else ''}",
            file=folder,
            hint="choose another folder, or allow it to be overwritten (--overwrite)",
        )
    if _NAMES[3] in present:  # a set of ours: maps of states that the new one may not have would tell a lie
        for name in present:
            if re.fullmatch(r"state\d+\.mrc", name):
                (folder / name).unlink()


def _scene(settings: SimulationSettings, max_frequency: float) -> Scene:
    if settings.maps:
        return scene_of_maps(settings.maps, max_frequency)
    molecule = demo_molecule() if settings.molecule is None else read_molecule(settings.molecule)
    diameter = 2 * largest_radius(molecule, settings.states)
    if diameter > settings.field_of_view:
        raise SettingError(
            f"the molecule, {diameter:.0f} Å across, does not fit into images of {settings.field_of_view:.0f} Å",
            field="box",
            hint="make the box or the pixel size larger",
        )
    return scene_of_molecule(molecule, settings.states, max_frequency)


@dataclass(frozen=True)
class Renderer:
    """Images without noise of particles whose truth is known.

    Attributes
    ----------
    scene : Scene
        The states.
    box : int
        px.
    pixel_size : float
        Å.
    """

    scene: Scene
    box: int
    pixel_size: float

    def images(self, truth: Truth, rows: Int64[np.ndarray, " row"]) -> Float32[np.ndarray, "row y x"]:
        """Images of some particles; the sum over an image without contrast transfer is the mass of the state."""
        return images_of(self.spectra(truth, rows, half_frequencies(self.box, 2)), self.box)

    def spectra(
        self,
        truth: Truth,
        rows: Int64[np.ndarray, " row"],
        frequencies: Float64[np.ndarray, "coefficient 3"],
    ) -> Complex64[np.ndarray, "row coefficient"]:
        """Spectra of some particles at frequencies (k_x, k_y, 0) in cycles per box."""
        extent = self.box * self.pixel_size
        poses = truth.poses.take(rows)
        shifts = np.pad(poses.shifts, ((0, 0), (0, 1)))
        sections = self.scene.sections(truth.states[rows], poses.rotations, shifts, frequencies / extent)
        transfer = contrast_transfer(truth.optics.take(rows), np.full(len(rows), extent))
        return np.asarray(sections * transfer.evaluate(torch.from_numpy(frequencies[:, :2])).numpy())


def signal_variance(renderer: Renderer, truth: Truth) -> float:
    """Mean variance of a pixel of images, from their spectra: Σ_{k≠0} |Y(k)|² / n⁴, as far as the bodies reach."""
    frequencies = half_frequencies(renderer.box, 2)[1:]
    total = 0.0
    for rows in np.array_split(np.arange(len(truth)), math.ceil(len(truth) / _BLOCK)):
        total += float(np.square(np.abs(renderer.spectra(truth, rows, frequencies)), dtype=np.float64).sum())
    return 2 * total / (len(truth) * renderer.box**4)


def _image_scale(settings: SimulationSettings, scene: Scene) -> float:
    """Factor g that brings images without noise to the standard deviation 1 at the pixel size of the SNR.

    There an image has m = box · pixel size / SNR pixel size pixels along each side. Cropping its spectrum to n keeps the
    noise variance of a pixel if it is scaled by n / m, and so is the signal. It is measured on the same number of
    particles whatever the size of the set.
    """
    box = _snr_box(settings)
    pixel_size = settings.field_of_view / box
    finer = scene if box <= settings.box else _scene(settings, 1 / (2 * pixel_size))
    truth = draw_truth(replace(settings, particles=_MEASURED))
    return settings.box / box / math.sqrt(signal_variance(Renderer(finer, box, pixel_size), truth))


def _snr_box(settings: SimulationSettings) -> int:
    return max(8, round(settings.field_of_view / (settings.snr_pixel_size or settings.pixel_size)))


def _noise(settings: SimulationSettings) -> NoiseSource:
    variance = 0.0 if math.isinf(settings.snr) else 1 / settings.snr
    if settings.noise is None:
        return noise_source(None, variance, settings.seed, settings.box, settings.pixel_size)
    spectrum = read_noise(settings.noise, settings.noise_pixel_size, settings.pixel_size)
    box = _snr_box(settings)
    spectrum = spectrum.normalised(box, settings.field_of_view / box)
    return noise_source(spectrum, variance, settings.seed, settings.box, settings.pixel_size)


def _pixel_variance(noise: NoiseSource) -> float:
    return noise.deviation**2 if noise.amplitude is None else float(np.square(noise.amplitude).mean())


def _write_tables(settings: SimulationSettings, truth: Truth, folder: Path) -> None:
    optics = StarBlock(folder, "optics", _optics_columns(settings))
    columns = _particle_columns(settings, truth.optics)
    write_star(folder / _NAMES[1], [optics, StarBlock(folder, "particles", columns)])
    columns |= _truth_columns(settings, truth)
    write_star(folder / _NAMES[2], [optics, StarBlock(folder, "particles", columns)])


def _optics_columns(settings: SimulationSettings) -> dict[str, Column]:
    numbers = {
        "rlnVoltage": settings.voltage_kv,
        "rlnSphericalAberration": settings.cs_mm,
        "rlnAmplitudeContrast": settings.amplitude_contrast,
        "rlnImagePixelSize": settings.pixel_size,
    }
    return (
        {"rlnOpticsGroupName": text_column(["opticsGroup1"]), "rlnOpticsGroup": integer_column(np.array([1]))}
        | {label: float_column(np.array([value])) for label, value in numbers.items()}
        | {"rlnImageSize": integer_column(np.array([settings.box])), "rlnImageDimensionality": text_column(["2"])}
    )


def _particle_columns(settings: SimulationSettings, optics: Optics) -> dict[str, Column]:
    rows = range(settings.particles)
    columns = {
        "rlnImageName": text_column(f"{row + 1:06d}@{_NAMES[0]}" for row in rows),
        "rlnMicrographName": text_column(f"mic{row // _PER_MICROGRAPH:05d}.mrc" for row in rows),
        "rlnDefocusU": float_column(optics.defocus_u),
        "rlnDefocusV": float_column(optics.defocus_v),
        "rlnDefocusAngle": float_column(np.rad2deg(optics.defocus_angle)),
        "rlnPhaseShift": float_column(np.rad2deg(optics.phase_shift)),
        "rlnOpticsGroup": integer_column(np.ones(len(rows), dtype=np.int64)),
    }
    return columns | ({"rlnCtfBfactor": float_column(optics.b_factor)} if settings.b_factor else {})


def _truth_columns(settings: SimulationSettings, truth: Truth) -> dict[str, Column]:
    angles = relion_from_rotations(truth.poses.rotations)
    origins = origins_from_shifts(truth.poses.shifts)
    names = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
    columns = {name: float_column(values) for name, values in zip(names, (*angles.T, *origins.T), strict=True)}
    columns["rlnClassNumber"] = integer_column(truth.states + 1)
    if settings.coordinates is not None:
        columns["cryofireCoordinate"] = float_column(np.array(settings.coordinates)[truth.states])
    if settings.contrast_std:
        columns["cryofireContrast"] = float_column(truth.contrast)
    return columns


def _write_settings(settings: SimulationSettings, result: SimulatedSet, path: Path) -> None:
    content = {
        "version": __version__,
        "settings": settings.as_json(),
        "image_scale": result.image_scale,
        "noise_variance": result.noise_variance,
        "state_weights": settings.state_weights,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
