"""Ab initio search: annealed expectation–maximisation over all rotations and a disc of shifts, as matrix products.

For Q rotations, T shifts and B images the log-likelihoods are two matrix products over the Fourier coefficients,

    log p(Y_i | q, t) = 2 Re Σ conj(Y_i e^{2πik·t}) C_i S_q - Σ C_i² |S_q|²,

and the weighted back-projection is the two transposed products followed by one insertion of Q sections, whatever B is. Every step
takes fresh images and a freshly turned quasi-uniform grid, so that no grid direction is ever preferred.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryofire.arrays import Rotations, Shifts, Volume
from cryofire.geometry.grids import HalfPlane, half_plane, radius_map
from cryofire.geometry.rotations import random_rotations
from cryofire.geometry.so3_grid import shift_disc, super_fibonacci_rotations
from cryofire.physics import kernels
from cryofire.physics.imaging import ImageBatch, WhitenedImages
from cryofire.physics.projection import central_sections, spectrum_grid
from cryofire.physics.shift import phase_ramp
from cryofire.volumes.accumulator import HALVES, GridSums, add_sections, empty_sums, mean_density, solve_maps

CHUNK = 48
"""Images whose likelihood table is held at once (48 × 19 shifts × 4 600 rotations is 17 MB)."""


@dataclass(frozen=True)
class SearchSettings:
    """How the search runs.

    Attributes
    ----------
    steps : int
        Updates of the map.
    images_per_step : int
        Images drawn for each update.
    rotations : int
        Size of the rotation grid (4 608: 14.8° apart).
    first_shell, last_shell : int
        Resolution limits at the first and the last step.
    start_temperature : float
        Divides the log-likelihood; falls to 1 geometrically over `annealed` of the steps.
    annealed : float
        Fraction of the steps that are annealed.
    shift_radius_px, shift_spacing_px : float
        Disc of shifts tried around each image's centre, in pixels of a box of 64; both scale with the box.
    mask_radius : float
        Radius of the spherical mask as a fraction of the box.
    """

    steps: int = 60
    images_per_step: int = 300
    rotations: int = 4608
    first_shell: int = 5
    last_shell: int = 12
    start_temperature: float = 10.0
    annealed: float = 0.6
    shift_radius_px: float = 3.5
    shift_spacing_px: float = 1.5
    mask_radius: float = 0.36


@dataclass(frozen=True)
class SearchStep:
    """What one update saw."""

    step: int
    shell: int
    temperature: float
    log_likelihood: float
    effective_poses: float


@dataclass(frozen=True)
class Expectation:
    """Sufficient statistics of some images on a rotation grid.

    Attributes
    ----------
    numerators, denominators : Tensor (half, rotation, coefficient)
        Posterior-weighted sums of Y C e^{2πik·t} and of C².
    log_evidence : Float[Tensor, "particle"]
        Log of the likelihood averaged over the grid, relative to no particle.
    entropy : Float[Tensor, "particle"]
        Entropy of each posterior, in nats.
    """

    numerators: Tensor
    denominators: Tensor
    log_evidence: Float[Tensor, " particle"]
    entropy: Float[Tensor, " particle"]


def pose_likelihoods(
    batch: ImageBatch, centres_px: Shifts, shifts_px: Shifts, sections: Tensor
) -> tuple[Float[Tensor, "particle shift rotation"], Float[Tensor, "particle rotation"], Tensor]:
    """Terms 2 Re⟨Y, S⟩ and Σ C²|S|² of the log-likelihood (their difference), and the shifted, filtered images.

    The images come as real pairs, shape (particle, shift, 2 coefficient).
    """
    plane = batch.plane
    ramp = phase_ramp(centres_px[:, None] + shifts_px, plane.frequencies, plane.box).conj()
    images = torch.view_as_real((batch.data * batch.modulation)[:, None] * ramp).flatten(-2)
    table = (2 * images.flatten(0, 1)) @ torch.view_as_real(sections).flatten(-2).T
    power = batch.modulation.square() @ sections.abs().square().T
    return table.unflatten(0, images.shape[:2]), power, images


def expectation(
    batch: ImageBatch, centres_px: Shifts, shifts_px: Shifts, sections: Tensor, temperature: float
) -> Expectation:
    """Posterior over the grid for a batch, and its back-projection onto the sections; even and odd images kept apart."""
    count, (rotations, coefficients) = centres_px.shape[0], sections.shape
    numerator, denominator = torch.zeros(HALVES, rotations, 2 * coefficients), torch.zeros(HALVES, rotations, coefficients)
    evidence, entropy = torch.zeros(count), torch.zeros(count)
    slots = (torch.arange(count) % HALVES).int()
    for rows in torch.arange(count).split(CHUNK):
        piece = ImageBatch(batch.data[rows], batch.modulation[rows], batch.plane)
        table, power, images = pose_likelihoods(piece, centres_px[rows], shifts_px, sections)
        part_evidence, part_entropy = torch.zeros(len(rows)), torch.zeros(len(rows))
        kernels.posterior_sums(
            table.numpy(), power.numpy(), temperature, images.numpy(), piece.modulation.square().numpy(),
            slots[rows].numpy(), numerator.numpy(), denominator.numpy(), part_evidence.numpy(), part_entropy.numpy(),
        )  # fmt: skip
        evidence[rows], entropy[rows] = part_evidence, part_entropy
    return Expectation(torch.view_as_complex(numerator.unflatten(-1, (-1, 2))), denominator, evidence, entropy)


def working_box(max_shell: int) -> int:
    """Smallest convenient even box that holds a shell with some margin."""
    return 2 * max_shell + 4


def soft_sphere(box: int, radius: float, edge: float) -> Volume:
    """Spherical mask: 1 inside `radius`, cosine edge of width `edge`, both in pixels."""
    distance = radius_map(box, 3)
    return 0.5 + 0.5 * torch.cos(math.pi * ((distance - radius) / edge).clamp(0, 1))


def initial_sums(images: WhitenedImages, centres_px: Shifts, settings: SearchSettings, generator: torch.Generator) -> GridSums:
    """Back-projection of some images in random orientations: a noisy ball of the right size and amplitude."""
    rows = torch.randperm(len(images), generator=generator)[: settings.images_per_step]
    batch = images.batch(rows, settings.last_shell)
    sums = empty_sums(settings.last_shell)
    ramp = phase_ramp(centres_px[rows], batch.plane.frequencies, batch.plane.box).conj()
    half = torch.arange(len(rows)) % 2
    rotations = random_rotations(len(rows), generator)
    add_sections(sums, batch.plane, rotations, batch.data * batch.modulation * ramp, batch.modulation.square(), half)
    return sums


def masked_map(sums: GridSums, settings: SearchSettings, ridge: float = 0.1) -> Volume:
    """Map of the current sums inside the spherical mask, on the working box."""
    box = working_box(sums.max_shell)
    density = mean_density(sums)
    volume = solve_maps(sums, box, ridge * density.clamp_min(1e-6))[0]
    return volume * soft_sphere(box, settings.mask_radius * box, 0.08 * box)
