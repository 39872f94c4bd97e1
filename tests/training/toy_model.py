"""A delivered model of two conformations in closed form, image stacks of it on disk, and an encoder that knows the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cryofire.analysis.latent_summary import summarise_latents
from cryofire.data.particles import Optics
from cryofire.formats.mrc import stack_writer
from cryofire.formats.star import StarBlock, float_column, text_column, write_star
from cryofire.geometry.grids import HalfPlane, half_plane
from cryofire.geometry.rotations import random_rotations, rotation_from_vector
from cryofire.inference.centring import CentringModel
from cryofire.inference.polish import Priors
from cryofire.inference.posterior import Posterior
from cryofire.inference.prepare import WorkingGrid
from cryofire.inference.whitening import Reference
from cryofire.physics.ctf import contrast_transfer
from cryofire.physics.imaging import ImageBatch
from cryofire.physics.shift import phase_ramp
from cryofire.training.model_file import DeliveredModel

BOX, PIXEL = 32, 6.0
SHELL = 12
WIDTH = 1.3
NOISE = 1.2
CENTERS = np.array([[-0.7], [1.4]])


def positions(state: int) -> Tensor:
    """Blobs of a conformation, px of the model."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(40, 3, generator=generator) * torch.tensor([4.5, 3.2, 2.4])
    if state == 1:
        found[:12] += torch.tensor([1.5, 2.0, -2.0])
    return found


def density(state: int, box: int = BOX) -> Tensor:
    """Density of a conformation on a grid of the model's pixels."""
    axis = (torch.arange(box) - box // 2).float()
    total = torch.zeros(box, box, box)
    for x, y, z in positions(state).tolist():
        along = [torch.exp(-((axis - centre) ** 2) / (2 * WIDTH**2)) for centre in (z, y, x)]
        total += along[0][:, None, None] * along[1][:, None] * along[2]
    return total


def sections(state: int, rotations: Tensor, plane: HalfPlane, pixel_size: float) -> Tensor:
    """Exact sections on the grid of images with that pixel size."""
    k = plane.frequencies.double() * (PIXEL / (plane.box * pixel_size))  # cycles per pixel of the model
    projected = torch.einsum("rij,aj->rai", rotations.double(), positions(state).double())[..., :2]
    phase = -2 * math.pi * torch.einsum("kd,rad->rka", k, projected)
    envelope = (2 * math.pi * WIDTH**2) ** 1.5 * torch.exp(-2 * (math.pi * WIDTH) ** 2 * k.square().sum(1))
    values = torch.polar(torch.ones_like(phase), phase).sum(-1) * envelope
    return (values * (PIXEL / pixel_size) ** 2).to(torch.complex64)


@dataclass(frozen=True)
class ToyTruth:
    path: Path
    rotations: Tensor
    shifts_px: Tensor  # of the model's grid
    labels: Tensor

    @property
    def latents(self) -> Tensor:
        return torch.from_numpy(CENTERS).float()[self.labels]


def write_toy(
    folder: Path, count: int, *, box: int = BOX, pixel_size: float = PIXEL, noise: float = NOISE, factor: float = 1.0
) -> ToyTruth:
    """Images with their table; the same particles and CTFs whatever the box and the pixel size."""
    generator = torch.Generator().manual_seed(7)
    rotations = random_rotations(count, generator)
    shifts = torch.randn(count, 2, generator=generator) * 0.6
    labels = (torch.rand(count, generator=generator) < 0.33).long()
    defocus = 12_000 + 8_000 * torch.rand(count, generator=generator).double().numpy()
    fixed = [np.full(count, value) for value in (300.0, 2.7, 0.1)]
    zero, one = np.zeros(count), np.ones(count)
    optics = Optics(*fixed, defocus, defocus, zero, zero, zero, one)
    plane = half_plane(box)
    both = [sections(state, rotations, plane, pixel_size) for state in (0, 1)]
    section = torch.where(labels[:, None] == 0, *both)
    ctf = contrast_transfer(optics, np.full(count, box * pixel_size)).evaluate(plane.frequencies)
    moved = phase_ramp(shifts * PIXEL / pixel_size, plane.frequencies, box)
    images = plane.images(ctf * section * moved)
    images = images + noise * PIXEL / pixel_size * torch.randn(images.shape, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    with stack_writer(folder / "particles.mrcs", box, pixel_size) as writer:
        writer.append((factor * images).numpy())
    write_star(folder / "particles.star", toy_blocks(folder, defocus, box, pixel_size))
    return ToyTruth(folder / "particles.star", rotations, shifts, labels)


def toy_blocks(folder: Path, defocus: np.ndarray, box: int, pixel_size: float) -> tuple[StarBlock, StarBlock]:
    path, count = folder / "particles.star", len(defocus)
    optics = {
        "rlnOpticsGroup": ["1"], "rlnOpticsGroupName": ["one"], "rlnVoltage": ["300.0"],
        "rlnSphericalAberration": ["2.7"], "rlnAmplitudeContrast": ["0.1"], "rlnImagePixelSize": [str(pixel_size)],
        "rlnImageSize": [str(box)], "rlnImageDimensionality": ["2"],
    }  # fmt: skip
    particles = {
        "rlnImageName": text_column([f"{row + 1:06d}@particles.mrcs" for row in range(count)]),
        "rlnDefocusU": float_column(defocus), "rlnDefocusV": float_column(defocus),
        "rlnDefocusAngle": float_column(np.zeros(count)), "rlnOpticsGroup": text_column(["1"] * count),
        "userColumn": text_column([f"mine{row}" for row in range(count)]),
    }  # fmt: skip
    return (
        StarBlock(path, "optics", {label: text_column(values) for label, values in optics.items()}),
        StarBlock(path, "particles", particles),
    )


class TruthEncoder:
    """Returns the truth plus Gaussian errors of stated size; images must come in the order of the table.

    With `decoy` a second mode, far away, takes most of the weight.
    """

    def __init__(
        self, truth: ToyTruth, turn: float, move: float = 0.15, change: float = 0.15, decoy: bool = False
    ) -> None:
        self.truth, self.decoy = truth, decoy
        self.deviation = torch.tensor([turn] * 3 + [move] * 2 + [change])
        self.max_shell = 10
        self._place = 0
        self._errors = torch.randn(len(truth.labels), 6, generator=torch.Generator().manual_seed(3)) * self.deviation

    def posterior(self, batch: ImageBatch, centres_px: Tensor) -> Posterior:
        assert batch.plane.max_shell == self.max_shell
        assert centres_px.shape == (len(batch.data), 2)
        rows = torch.arange(self._place, self._place + len(batch.data))
        self._place = (self._place + len(batch.data)) % len(self.truth.labels)
        error = self._errors[rows]
        rotations = [rotation_from_vector(error[:, :3]) @ self.truth.rotations[rows]]
        weights = [torch.ones(len(rows))]
        if self.decoy:
            far = rotation_from_vector(torch.tensor([1.5, 0.8, 0.0]))
            rotations.insert(0, far @ rotations[0])
            weights = [torch.full((len(rows),), 0.6), torch.full((len(rows),), 0.4)]
        modes = len(weights)
        shifts = self.truth.shifts_px[rows] + error[:, 3:5]
        latents = self.truth.latents[rows] + error[:, 5:]
        covariance = torch.diag(self.deviation.square()).expand(len(rows), modes, 6, 6)
        return Posterior(
            torch.stack(weights, 1), torch.stack(rotations, 1), shifts[:, None].expand(-1, modes, -1),
            latents[:, None].expand(-1, modes, -1), covariance,
        )  # fmt: skip


def toy_model(encoder: TruthEncoder | None = None) -> DeliveredModel:
    """The model that made the images: V(z) passes through both conformations."""
    first, second = density(0), density(1)
    low, high = CENTERS[:, 0].tolist()
    component = (second - first) / (high - low)
    maps = torch.stack([first - low * component, component])
    noise = torch.full(((BOX - 1) // 2 + 1,), NOISE * BOX)
    centring = CentringModel(torch.zeros(17), torch.zeros(17), torch.zeros(2), 0.6 / BOX)
    reference = Reference(WorkingGrid(BOX, PIXEL), noise, torch.ones_like(noise), False, centring)
    rng = np.random.default_rng(1)
    labels = (rng.random(2000) < 0.33).astype(np.int64)
    latents = CENTERS[labels] + 0.15 * rng.standard_normal((2000, 1))
    summary = summarise_latents(latents, np.full((2000, 1), 0.15), labels, "discrete", CENTERS)
    model = DeliveredModel(maps, Priors(1.0, 0.05, torch.ones(1)), SHELL, reference, summary)
    return replace(model, encoder=encoder)
