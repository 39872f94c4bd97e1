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

from cryofire.arrays import Shifts, Volume
from cryofire.config import SearchSettings
from cryofire.geometry.rotations import random_rotations
from cryofire.geometry.so3_grid import shift_disc, super_fibonacci_rotations
from cryofire.physics import kernels
from cryofire.physics.imaging import ImageBatch, WhitenedImages
from cryofire.physics.projection import central_sections, spectrum_grid
from cryofire.physics.shift import phase_ramp
from cryofire.volumes.accumulator import HALVES, GridSums, add_sections, empty_sums, mean_density, solve_maps
from cryofire.volumes.masks import soft_sphere

CHUNK = 48
"""Images whose likelihood table is held at once (48 × 19 shifts × 4 600 rotations is 17 MB)."""


@dataclass(frozen=True)
class SearchStep:
    """What one update saw: mean log-evidence of its images and the effective number of poses of each."""

    start: int
    step: int
    shell: int
    temperature: float
    log_likelihood: float
    effective_poses: float


@dataclass(frozen=True)
class Start:
    """Where one start ended.

    Attributes
    ----------
    volume : Float[Tensor, "z y x"]
        Map on the working box of the last shell.
    gain : float
        Held-out log-evidence per image above that of the same map averaged over all rotations: what its shape explains.
    effective_poses : float
        Geometric mean over held-out images of the number of grid poses that share the posterior.
    """

    volume: Volume
    gain: float
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
    numerator, denominator = (
        torch.zeros(HALVES, rotations, 2 * coefficients),
        torch.zeros(HALVES, rotations, coefficients),
    )
    evidence, entropy = torch.zeros(count), torch.zeros(count)
    slots = (torch.arange(count) % HALVES).int()
    for rows in torch.arange(count).split(CHUNK):
        piece = ImageBatch(batch.data[rows], batch.modulation[rows], batch.plane)
        table, power, images = pose_likelihoods(piece, centres_px[rows], shifts_px, sections)
        part_evidence, part_entropy = torch.zeros(len(rows)), torch.zeros(len(rows))
        dense, power_in = torch.zeros(len(rows), dtype=torch.bool), piece.modulation.square()
        kernels.posterior_sums(
            table.numpy(), power.numpy(), temperature, images.numpy(), power_in.numpy(),
            slots[rows].numpy(), numerator.numpy(), denominator.numpy(), part_evidence.numpy(), part_entropy.numpy(), dense.numpy(),
        )  # fmt: skip
        evidence[rows], entropy[rows] = part_evidence, part_entropy
        for half in range(HALVES):
            spread = dense & (slots[rows] == half)
            if bool(spread.any()):
                weights = table[spread]
                numerator[half] += weights.flatten(0, 1).T @ images[spread].flatten(0, 1)
                denominator[half] += weights.sum(1).T @ power_in[spread]
    return Expectation(torch.view_as_complex(numerator.unflatten(-1, (-1, 2))), denominator, evidence, entropy)


def working_box(max_shell: int) -> int:
    """Smallest convenient even box that holds a shell with some margin."""
    return 2 * max_shell + 4


def search(
    images: WhitenedImages,
    centres_px: Shifts,
    settings: SearchSettings,
    seed: int,
    report: Callable[[SearchStep], None],
) -> tuple[Start, ...]:
    """Starts in order of held-out gain, best first; stops as soon as the two best agree."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held_out = min(settings.held_out, len(images) // 5)
    judged, used = order[:held_out], order[held_out:]
    starts: list[Start] = []
    while len(starts) < settings.most_starts:
        generator = torch.Generator().manual_seed(seed + 7919 * (len(starts) + 1))
        volume = run_start(images, used, centres_px, settings, generator, len(starts), report)
        starts.append(judge(images, judged, centres_px, volume, settings))
        starts.sort(key=lambda start: -start.gain)
        if len(starts) >= settings.least_starts and _agree(starts, settings):
            break
    return tuple(starts)


def run_start(
    images: WhitenedImages,
    rows: Int[Tensor, " row"],
    centres_px: Shifts,
    settings: SearchSettings,
    generator: torch.Generator,
    start: int,
    report: Callable[[SearchStep], None],
) -> Volume:
    """Map after one annealed start from a noisy ball."""
    grid_rotations = super_fibonacci_rotations(settings.rotations)
    shifts = search_shifts(images.plane.box, settings)
    sums = initial_sums(images, rows, centres_px, settings, generator)
    hottest = start_temperature(images, rows[: settings.least_images // 2], centres_px, sums, settings)
    drawn = round(min(max(4 * settings.least_images / hottest, settings.least_images), settings.most_images))
    for step in range(settings.steps):
        progress = step / max(settings.steps - 1, 1)
        shell = round(settings.first_shell + progress * (settings.last_shell - settings.first_shell))
        temperature = hottest ** max(0.0, 1 - progress / settings.annealed)
        volume = masked_map(sums, settings)
        rotations = grid_rotations @ random_rotations(1, generator)
        chosen = rows[torch.randperm(len(rows), generator=generator)[:drawn]]
        batch = images.batch(chosen, shell)
        sections = central_sections(spectrum_grid(volume[None], shell), rotations, batch.plane)[:, 0]
        found = expectation(batch, centres_px[chosen], shifts, sections, temperature)
        if step == 0:
            sums = empty_sums(settings.last_shell)
        sums.values.mul_(0.7 + 0.2 * progress)
        for half in range(HALVES):
            slots = torch.full((len(rotations),), half)
            add_sections(sums, batch.plane, rotations, found.numerators[half], found.denominators[half], slots)
        evidence = float(found.log_evidence.mean()) * temperature
        report(SearchStep(start, step, shell, temperature, evidence, float(found.entropy.mean().exp())))
    return masked_map(sums, settings)


def start_temperature(
    images: WhitenedImages, rows: Int[Tensor, " row"], centres_px: Shifts, sums: GridSums, settings: SearchSettings
) -> float:
    """Lowest temperature of a ladder, from 1 upwards, at which the posteriors fill `disorder` of all poses."""
    batch = images.batch(rows, settings.first_shell)
    rotations = super_fibonacci_rotations(settings.rotations)
    grid = spectrum_grid(masked_map(sums, settings)[None], settings.first_shell)
    sections = central_sections(grid, rotations, batch.plane)[:, 0]
    shifts = search_shifts(images.plane.box, settings)
    for rung in range(17):
        temperature = 2.0 ** (rung / 2)
        found = expectation(batch, centres_px[rows], shifts, sections, temperature)
        if found.entropy.mean() > math.log(settings.disorder * len(shifts) * len(rotations)):
            break
    return temperature


def judge(
    images: WhitenedImages, rows: Int[Tensor, " row"], centres_px: Shifts, volume: Volume, settings: SearchSettings
) -> Start:
    """Held-out gain of a map: its log-evidence above that of its own spherical average."""
    batch = images.batch(rows, settings.last_shell)
    shifts = search_shifts(images.plane.box, settings)
    rotations = super_fibonacci_rotations(settings.rotations)
    sections = central_sections(spectrum_grid(volume[None], settings.last_shell), rotations, batch.plane)[:, 0]
    found = expectation(batch, centres_px[rows], shifts, sections, 1.0)
    sphere = batch.plane.shell_mean(sections.real.mean(0))[batch.plane.shells]
    null = expectation(batch, centres_px[rows], shifts, sphere.to(sections.dtype)[None], 1.0)
    gain = float((found.log_evidence - null.log_evidence).mean())
    return Start(volume, gain, float(found.entropy.mean().exp()))


def _agree(starts: list[Start], settings: SearchSettings) -> bool:
    best, second = starts[0].gain, starts[1].gain
    return best > 0 and best - second < settings.agreement * best


def search_shifts(box: int, settings: SearchSettings) -> Shifts:
    """Disc of shifts, in pixels of the box."""
    return shift_disc(settings.shift_radius * box, settings.shift_spacing * box)


def initial_sums(
    images: WhitenedImages,
    rows: Int[Tensor, " row"],
    centres_px: Shifts,
    settings: SearchSettings,
    generator: torch.Generator,
) -> GridSums:
    """Back-projection of some images in random orientations: a noisy ball of the right size and amplitude."""
    rows = rows[torch.randperm(len(rows), generator=generator)[: settings.least_images]]
    batch = images.batch(rows, settings.last_shell)
    sums = empty_sums(settings.last_shell)
    ramp = phase_ramp(centres_px[rows], batch.plane.frequencies, batch.plane.box).conj()
    half = torch.arange(len(rows)) % HALVES
    rotations = random_rotations(len(rows), generator)
    add_sections(sums, batch.plane, rotations, batch.data * batch.modulation * ramp, batch.modulation.square(), half)
    return sums


def masked_map(sums: GridSums, settings: SearchSettings, ridge: float = 0.1) -> Volume:
    """Map of the current sums inside the spherical mask, on the working box."""
    box = working_box(sums.max_shell)
    density = mean_density(sums)
    volume = solve_maps(sums, box, ridge * density.clamp_min(1e-6))[0]
    return volume * soft_sphere(box, settings.mask_radius * box, 0.08 * box)
