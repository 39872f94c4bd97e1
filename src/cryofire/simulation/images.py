"""Images of a simulated set, made when they are asked for.

An image is Y(k) = g a C(k) exp(-2πi k·t) V(Rᵀ (k_x, k_y, 0)) + noise, with a contrast a (negative if matter is to be
white), and a scale g such that the images without noise would have the standard deviation 1 at the pixel size at
which the signal-to-noise ratio is stated. A pixel then has the noise variance 1 / SNR if the noise is white.

Nothing but the settings and the number of a particle matters to its image, so that a set too large for a disk need not lie on one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex64, Float32, Float64, Int, Int64

from cryofire.errors import SettingError
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

BLOCK = 100
"""Images at a time; always as many, so that rounding is the same whatever is asked for."""
_MEASURED = 500  # particles on which the variance of the signal is measured: its relative error is then about 0.5 %


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
    for rows in np.array_split(np.arange(len(truth)), math.ceil(len(truth) / BLOCK)):
        total += float(np.square(np.abs(renderer.spectra(truth, rows, frequencies)), dtype=np.float64).sum())
    return 2 * total / (len(truth) * renderer.box**4)


@dataclass(frozen=True)
class SimulatedImages:
    """The images of a set, made when they are asked for; made by `simulated_images`.

    Attributes
    ----------
    settings : SimulationSettings
    truth : Truth
        Of all particles.
    renderer : Renderer
    scale : float
        Factor g by which projections are multiplied.
    noise : NoiseSource
    """

    settings: SimulationSettings
    truth: Truth
    renderer: Renderer
    scale: float
    noise: NoiseSource

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def noise_variance(self) -> float:
        """Of a pixel of the images."""
        amplitude = self.noise.amplitude
        return self.noise.deviation**2 if amplitude is None else float(np.square(amplitude).mean())

    def images(self, rows: Int[np.ndarray, " row"]) -> Float32[np.ndarray, "row y x"]:
        """Images of some particles. Costs about 0.5 ms an image of box 64 on one core."""
        pieces = [self._block(rows[start : start + BLOCK]) for start in range(0, len(rows), BLOCK)]
        return np.concatenate([np.empty((0, self.renderer.box, self.renderer.box), dtype=np.float32), *pieces])

    def _block(self, rows: Int[np.ndarray, " row"]) -> Float32[np.ndarray, "row y x"]:
        filled = np.pad(rows, (0, BLOCK - len(rows)), mode="edge")
        seen = np.float32(self.scale) * self.renderer.images(self.truth, filled)[: len(rows)] + self.noise.images(rows)
        if self.settings.contaminated:
            matter = -1 if self.settings.contrast == "dark" else 1
            depth = np.float32(matter * math.sqrt(self.noise_variance))
            seen += depth * self.truth.contaminants.images(rows, self.renderer.box)
        return seen


def simulated_images(settings: SimulationSettings) -> SimulatedImages:
    """Draw the truth of a set and get its molecule ready.

    Raises
    ------
    InputError
        A file cannot be read, a selection names nothing, or the molecule does not fit into the box.
    """
    truth = draw_truth(settings)
    scene = _scene(settings, 1 / (math.sqrt(2) * settings.pixel_size))
    renderer = Renderer(scene, settings.box, settings.pixel_size)
    return SimulatedImages(settings, truth, renderer, _image_scale(settings, scene), _noise(settings))


@dataclass(frozen=True)
class RenderedStack:
    """The images of a simulated set in the place of the stack that a table of it names: see `ParticleTable.opener`.

    Attributes
    ----------
    path : Path
        Name of the stack.
    source : SimulatedImages
    """

    path: Path
    source: SimulatedImages

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images, rows and columns."""
        return (len(self.source), self.source.settings.box, self.source.settings.box)

    def frames(self, indices: Int[np.ndarray, " row"]) -> Float32[np.ndarray, "row y x"]:
        """Images at the given 0-based indices, rounded as a file would hold them."""
        return self.source.images(indices).astype(self.source.settings.dtype).astype(np.float32)


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


def _image_scale(settings: SimulationSettings, scene: Scene) -> float:
    """Factor g that brings images without noise to the standard deviation 1 at the pixel size of the SNR.

    There an image has m = box · pixel size / SNR pixel size pixels along each side. Cropping its spectrum to n keeps the
    noise variance of a pixel if it is scaled by n / m, and so is the signal. It is measured on the same number of
    particles whatever the size of the set.
    """
    box = _snr_box(settings)
    pixel_size = settings.field_of_view / box
    finer = scene if box <= settings.box else _scene(settings, 1 / (2 * pixel_size))
    truth = draw_truth(replace(settings, particles=_MEASURED, empty=0.0, contaminated=0.0))
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
