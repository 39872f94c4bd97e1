"""Random parameters of particles: who they are, how they were seen, and through which lens.

Every quantity has its own stream of random numbers: changing one distribution leaves the other quantities as they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int64

from cryofire.data.particles import Optics, Poses
from cryofire.errors import FileFormatError, TableError
from cryofire.formats.conventions import rotations_from_relion
from cryofire.formats.star import StarBlock, read_star
from cryofire.geometry.rotations import rotation_from_quaternion
from cryofire.simulation.archives import read_array
from cryofire.simulation.contaminants import RANDOM, Contaminants, draw_contaminants
from cryofire.simulation.settings import SimulationSettings

_STREAMS = ("states", "views", "axes", "shifts", "defocus", "contrast", "astigmatism", "empty", "contaminated")


@dataclass(frozen=True)
class Truth:
    """What is known of every simulated particle.

    Attributes
    ----------
    states : array (particle,)
        0-based; any where there is no particle.
    poses : Poses
        Rotations and shifts.
    optics : Optics
        Contrast transfer; its scale carries the contrast of each image and the sign (negative for white matter).
    contrast : array (particle,)
        Factor of the contrast of each image; 0 where there is no particle.
    contaminants : Contaminants
    """

    states: Int64[np.ndarray, " particle"]
    poses: Poses
    optics: Optics
    contrast: Float64[np.ndarray, " particle"]
    contaminants: Contaminants

    def __len__(self) -> int:
        return len(self.states)


def draw_truth(settings: SimulationSettings) -> Truth:
    """Draw the parameters of all particles.

    Raises
    ------
    FileFormatError, TableError
        A file to draw from cannot be read, or lacks what is to be drawn.
    """
    count = settings.particles
    states = _stream(settings, "states").choice(settings.state_count, size=count, p=settings.state_weights)
    shifts = settings.shift_std * _stream(settings, "shifts").standard_normal((count, 2))
    deviation = settings.contrast_std * _stream(settings, "contrast").standard_normal(count)
    is_empty = _stream(settings, "empty").random(count) < settings.empty
    contrast = np.where(is_empty, 0.0, np.clip(1 + deviation, 0.1, None))
    sign = -1.0 if settings.contrast == "white" else 1.0
    optics = _draw_optics(settings, sign * contrast)
    discs = draw_contaminants(settings.contaminated, _stream(settings, "contaminated").random((count, RANDOM)))
    return Truth(states, Poses(_draw_rotations(settings), shifts), optics, contrast, discs)


def _stream(settings: SimulationSettings, name: str) -> np.random.Generator:
    return np.random.default_rng([settings.seed, _STREAMS.index(name)])


def _draw_rotations(settings: SimulationSettings) -> Float64[np.ndarray, "particle 3 3"]:
    generator = _stream(settings, "views")
    if settings.views_from is not None:
        known = read_rotations(settings.views_from)
        return known[generator.integers(len(known), size=settings.particles)]
    if settings.views == "uniform":
        quaternions = torch.from_numpy(generator.standard_normal((settings.particles, 4)))
        return np.asarray(rotation_from_quaternion(quaternions).numpy())
    axes = _stream(settings, "axes").standard_normal((settings.preferred_axes, 3))
    return preferred_rotations(axes, settings.view_strength, generator.random((settings.particles, 4)))


def preferred_rotations(
    axes: Float64[np.ndarray, "axis 3"], strength: float, random: Float64[np.ndarray, "particle 4"]
) -> Float64[np.ndarray, "particle 3 3"]:
    """Rotations whose viewing directions gather about a few axes.

    With μ one of the axes, all equally likely, the density of the viewing direction v is that of von Mises and
    Fisher, ∝ exp(κ μ·v): with u uniform in [0, 1), μ·v = 1 + log(u + (1 - u) exp(-2κ)) / κ. In-plane angles are
    uniform.

    Parameters
    ----------
    axes : array (axis, 3)
        Of any length.
    strength : float
        κ ≥ 0; 0 is uniform.
    random : array (particle, 4)
        Uniform in [0, 1).
    """
    directions = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    chosen = directions[(random[:, 0] * len(axes)).astype(np.int64)]
    if strength > 1e-6:
        cosine = 1 + np.log(random[:, 1] + (1 - random[:, 1]) * math.exp(-2 * strength)) / strength
    else:
        cosine = 2 * random[:, 1] - 1
    sine = np.sqrt(np.clip(1 - cosine**2, 0, None))[:, None]
    around = 2 * math.pi * random[:, 2:3]
    first = np.cross(chosen, np.eye(3)[np.argmin(np.abs(chosen), axis=1)])
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(chosen, first)
    view = cosine[:, None] * chosen + sine * (np.cos(around) * first + np.sin(around) * second)
    angles = [np.arctan2(view[:, 1], view[:, 0]), np.arccos(np.clip(view[:, 2], -1, 1)), 2 * math.pi * random[:, 3]]
    return rotations_from_relion(np.rad2deg(np.stack(angles, axis=1)))


def _draw_optics(settings: SimulationSettings, scale: Float64[np.ndarray, " particle"]) -> Optics:
    generator = _stream(settings, "defocus")
    count = settings.particles
    if settings.defocus_from is not None:
        known = read_defocus(settings.defocus_from)
        defocus_u, defocus_v, angle = known[generator.integers(len(known), size=count)].T
    else:
        defocus_u = settings.defocus * np.exp(settings.defocus_spread * generator.standard_normal(count))
        fraction, turn = _stream(settings, "astigmatism").random((count, 2)).T
        defocus_v = defocus_u * (1 - settings.astigmatism * fraction)
        angle = math.pi * turn
    constants = (settings.voltage_kv, settings.cs_mm, settings.amplitude_contrast)
    voltage, aberration, amplitude = (np.full(count, value) for value in constants)
    phase_shift, b_factor = (np.full(count, value) for value in (settings.phase_shift, settings.b_factor))
    return Optics(voltage, aberration, amplitude, defocus_u, defocus_v, angle, phase_shift, b_factor, scale)


def read_rotations(path: Path) -> Float64[np.ndarray, "particle 3 3"]:
    """Rotations of a STAR file (rlnAngleRot, rlnAngleTilt, rlnAnglePsi) or of the array ``rot`` in an .npz file.

    Raises
    ------
    FileFormatError, TableError
        The file cannot be read, or has no rotations.
    """
    if path.suffix == ".npz":
        rotations = _archived(path, "rot", (3, 3))
        if np.abs(rotations @ np.swapaxes(rotations, -1, -2) - np.eye(3)).max() > 1e-3:
            raise FileFormatError("some matrices are no rotations", file=path, field="rot")
        return rotations
    labels = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    return rotations_from_relion(_columns(path, labels))


def read_defocus(path: Path) -> Float64[np.ndarray, "particle 3"]:
    """Defocus along both axes (Å) and angle (radians) of a STAR file, or of an .npz file.

    The .npz has an array ``ctf`` (particle, 9): box, Å/px, defocus u and v in Å, angle in degrees, and four more.

    Raises
    ------
    FileFormatError, TableError
        The file cannot be read, or has no defocus values.
    """
    if path.suffix == ".npz":
        values: Float64[np.ndarray, "particle 3"] = _archived(path, "ctf", (9,))[:, 2:5]
    else:
        values = _columns(path, ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"))
    return np.asarray(values * np.array([1.0, 1.0, math.pi / 180]))


def _columns(path: Path, labels: tuple[str, ...]) -> Float64[np.ndarray, "particle label"]:
    block = next((block for block in read_star(path) if labels[0] in block), StarBlock(path, "particles", {}))
    values = np.stack([block.floats(label) for label in labels], axis=1)
    if not len(values) or not np.isfinite(values).all():
        raise TableError("the table is empty, or has values that are not finite", file=path, field=labels[0])
    return values


def _archived(path: Path, key: str, shape: tuple[int, ...]) -> Float64[np.ndarray, "particle ..."]:
    values = read_array(path, key)
    if values.shape[1:] != shape or not len(values) or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise FileFormatError(f"the array is {values.dtype} {values.shape}, or not finite", file=path, field=key)
    return values.astype(np.float64)
