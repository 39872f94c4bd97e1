"""Ab initio search: annealed expectation–maximisation over all rotations and a disc of shifts, as matrix products.

For Q rotations, T shifts and B images the log-likelihoods are two matrix products over the Fourier coefficients,

    log p(Y_i | q, t) = 2 Re Σ conj(Y_i e^{2πik·t}) C_i S_q - Σ C_i² |S_q|²,

and the weighted back-projection is the two transposed products followed by one insertion of Q sections, whatever B is. Every step
takes fresh images and a freshly turned quasi-uniform grid, so that no grid direction is ever preferred.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryofire.arrays import Rotations, Shifts, Volume
from cryofire.config import SearchSettings
from cryofire.geometry.grids import HalfPlane
from cryofire.geometry.rotations import random_rotations
from cryofire.geometry.so3_grid import super_fibonacci_rotations
from cryofire.inference.posterior_entries import add_entries, entries_above
from cryofire.inference.shift_grid import ShiftGrid
from cryofire.inference.starts import Start, agree
from cryofire.physics.imaging import ImageBatch, WhitenedImages, batches
from cryofire.physics.projection import central_sections, spectrum_grid
from cryofire.physics.shift import phase_ramp
from cryofire.volumes.accumulator import HALVES, GridSums, add_sections, empty_sums, mean_density, solve_maps
from cryofire.volumes.masks import soft_sphere

BLOCK, LEAST_SHARPENED, LEAST_EXPLAINED = 10, 0.03, 0.01
"""A start goes on while from one block of steps to the next the entropy of posteriors falls by so many nats, or the evidence rises
by this fraction."""
GROWN = 2 / 3
"""Share of the steps after which the last shell is reached."""
ONE_MAP = torch.zeros(1)
"""Log-prior of the one map of an ordinary search."""
EVEN, ROUNDS = 0.5, 50
"""Share of the steps in which several maps share the images evenly, and rounds in which the log-prior that this takes is found."""
SHARP = 3.0
"""Images that share their posterior among fewer poses have found theirs."""
CHUNK = 48
"""Images that are compared with a grid of poses at once."""
TABLE = 1 << 21
"""Entries of the posteriors that are held at once, 8 MB: they are gone through several times and should stay in the cache."""
NEGLIGIBLE, SPREAD = math.exp(-12.0), 0.02
"""Share of the largest weight below which poses are left out; share of all poses above which a posterior is summed as a whole."""


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
    shares : Float[Tensor, "particle map"]
        Posterior of each map.
    """

    numerators: Tensor
    denominators: Tensor
    log_evidence: Float[Tensor, " particle"]
    entropy: Float[Tensor, " particle"]
    shares: Float[Tensor, "particle map"]


def pose_likelihoods(
    batch: ImageBatch, centres_px: Shifts, shifts: ShiftGrid, sections: Tensor
) -> tuple[Float[Tensor, "particle shift rotation"], Float[Tensor, "particle rotation"], Tensor]:
    """Log-posterior of every pose of a grid as a difference of two terms, and the shifted, filtered images.

    The first is 2 Re⟨Y, S⟩ and the log-weight of the shift, the second Σ C²|S|².

    The images come as real pairs, shape (particle, shift, 2 coefficient).
    """
    plane = batch.plane
    ramp = phase_ramp(centres_px[:, None] + shifts.shifts_px, plane.frequencies, plane.box).conj()
    images = torch.view_as_real((batch.data * batch.modulation)[:, None] * ramp).flatten(-2)
    pairs = torch.view_as_real(sections)
    table = (2 * images.flatten(0, 1)) @ pairs.flatten(-2).T
    power = batch.modulation.square() @ pairs.square().sum(-1).T
    return table.unflatten(0, images.shape[:2]).add_(shifts.log_weight[:, None]), power, images


def grid_posterior(
    table: Float[Tensor, "particle shift rotation"], power: Float[Tensor, "particle rotation"], temperature: float
) -> tuple[Float[Tensor, "particle shift rotation"], Float[Tensor, " particle"], Float[Tensor, " particle"]]:
    """Posterior over a grid of poses, log of the mean likelihood, and entropy in nats.

    The log-posterior is (`table` - `power`) / `temperature`, up to its normalisation; `table` is used up.
    """
    logits = table.sub_(power[:, None]).div_(temperature).flatten(1)
    weights = logits.softmax(1)
    normalisation = logits.amax(1) - weights.amax(1).log()
    entropy = normalisation - (weights * logits).sum(1)
    return weights.unflatten(1, table.shape[1:]), normalisation - math.log(logits.shape[1]), entropy


def expectation(
    batch: ImageBatch,
    centres_px: Shifts,
    shifts: ShiftGrid,
    sections: Tensor,
    temperature: float,
    favour: Float[Tensor, " map"] = ONE_MAP,
) -> Expectation:
    """Posterior over the grid for a batch, and its back-projection onto the sections; even and odd images kept apart.

    `favour` is the log-prior of each map whose sections, one map after another, are given.
    """
    count, (rotations, coefficients) = centres_px.shape[0], sections.shape
    numerators = torch.zeros(HALVES, rotations, 2 * coefficients)
    denominators = torch.zeros(HALVES, rotations, coefficients)
    evidence, entropy, shares = torch.zeros(count), torch.zeros(count), torch.ones(count, len(favour))
    log_prior = temperature * favour.repeat_interleave(rotations // len(favour))
    at_once = max(TABLE // (len(shifts) * rotations), 1)
    for half in range(HALVES):
        for rows in batches(torch.arange(half, count, HALVES), at_once):
            piece = batch.take(rows)
            table, power, images = pose_likelihoods(piece, centres_px[rows], shifts, sections)
            weights, evidence[rows], entropy[rows] = grid_posterior(table, power - log_prior, temperature)
            if len(favour) > 1:
                shares[rows] = weights.sum(1).unflatten(1, (len(favour), -1)).sum(2)
            _add_weighted(weights, images, piece.modulation.square(), numerators[half], denominators[half])
    complex_numerators = torch.view_as_complex(numerators.unflatten(-1, (-1, 2)))
    return Expectation(complex_numerators, denominators, evidence, entropy, shares)


def _add_weighted(weights: Tensor, images: Tensor, power: Tensor, numerators: Tensor, denominators: Tensor) -> None:
    """Add images to the sections of their poses: entry by entry where a posterior has few, as matrix products where it has many."""
    least = weights.amax((1, 2)) * NEGLIGIBLE
    entries = entries_above(weights.numpy(), least.numpy())
    spread = torch.from_numpy(entries > SPREAD * weights[0].numel())
    add_entries(
        weights.numpy(), torch.where(spread, 2.0, least).numpy(), images.numpy(), power.numpy(),
        numerators.numpy(), denominators.numpy(),
    )  # fmt: skip
    if bool(spread.any()):
        numerators += weights[spread].flatten(0, 1).T @ images[spread].flatten(0, 1)
        denominators += weights[spread].sum(1).T @ power[spread]


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

    def numbered(step: SearchStep) -> None:
        report(replace(step, start=len(starts)))

    while len(starts) < settings.most_starts:
        generator = torch.Generator().manual_seed(seed + 7919 * (len(starts) + 1))
        (volume,) = run_start(images, used, centres_px, settings, generator, numbered)
        starts.append(judge(images, judged, centres_px, volume, settings))
        starts.sort(key=lambda start: -start.gain)
        if len(starts) >= max(settings.least_starts, 2) and agree(starts[0], starts[1], settings.agreement):
            break
    return tuple(starts)


def run_start(
    images: WhitenedImages,
    rows: Int[Tensor, " row"],
    centres_px: Shifts,
    settings: SearchSettings,
    generator: torch.Generator,
    report: Callable[[SearchStep], None],
    count: int = 1,
) -> list[Volume]:
    """Maps after one annealed start from noisy balls; with several of them, every image weighs them all by its posterior.

    At first several maps share the images evenly: the one that is a little ahead of the others would take all of them.
    """
    grid_rotations = super_fibonacci_rotations(settings.rotations)
    shifts = update_shifts(images.plane.box, settings)
    sums = [initial_sums(images, rows, centres_px, settings, generator) for _ in range(count)]
    hottest = start_temperature(images, rows[: settings.least_images // 2], centres_px, sums[0], settings)
    drawn = round(min(max(4 * settings.least_images / hottest, settings.least_images), settings.most_images))
    seen: list[SearchStep] = []
    favour = torch.zeros(count)
    while (step := len(seen)) < settings.steps or (step < settings.most_steps and still_learning(seen)):
        progress = min(step / max(settings.steps - 1, 1), 1.0)
        shell = round(settings.first_shell + min(progress / GROWN, 1) * (settings.last_shell - settings.first_shell))
        temperature = hottest ** max(0.0, 1 - progress / settings.annealed)
        rotations = grid_rotations @ random_rotations(1, generator)
        chosen = rows[torch.randperm(len(rows), generator=generator)[:drawn]]
        batch = images.batch(chosen, shell)
        grids = [spectrum_grid(masked_map(one, settings)[None], shell) for one in sums]
        sections = torch.cat([central_sections(grid, rotations, batch.plane)[:, 0] for grid in grids])
        found = expectation(batch, centres_px[chosen], shifts, sections, temperature, favour)
        favour = evened(favour, found.shares) if count > 1 and progress < EVEN else torch.zeros(count)
        if step == 0:
            sums = [empty_sums(settings.last_shell) for _ in sums]
        for one, numerators, denominators in zip(
            sums, found.numerators.chunk(count, 1), found.denominators.chunk(count, 1), strict=True
        ):
            one.values.mul_(0.7 + 0.2 * progress)
            for half in range(HALVES):
                slots = torch.full((len(rotations),), half)
                add_sections(one, batch.plane, rotations, numerators[half], denominators[half], slots)
        evidence, poses = float(found.log_evidence.mean()) * temperature, math.exp(float(found.entropy.mean()))
        seen.append(SearchStep(0, step, shell, temperature, evidence, poses))
        report(seen[-1])
    return [masked_map(one, settings) for one in sums]


def evened(favour: Float[Tensor, " map"], shares: Float[Tensor, "particle map"]) -> Float[Tensor, " map"]:
    """Log-prior of each map under which all of them would have as large a share of the images.

    Parameters
    ----------
    favour : Float[Tensor, "map"]
        Log-prior with which the shares came about.
    shares : Float[Tensor, "particle map"]
        Posterior of each map for some images.
    """
    evidence = shares.clamp_min(1e-30).log() - favour
    for _ in range(ROUNDS):
        favour = favour - (evidence + favour).softmax(1).mean(0).log()
    return favour - favour.mean()


def still_learning(seen: Sequence[SearchStep]) -> bool:
    """Whether the last steps, all at one resolution limit, made posteriors sharper or explained more of the images."""
    if len(seen) < 2 * BLOCK:
        return False
    blocks = seen[-2 * BLOCK : -BLOCK], seen[-BLOCK:]
    entropy = [sum(math.log(one.effective_poses) for one in block) / BLOCK for block in blocks]
    evidence = [sum(one.log_likelihood for one in block) / BLOCK for block in blocks]
    return entropy[0] - entropy[1] > LEAST_SHARPENED or evidence[1] - evidence[0] > LEAST_EXPLAINED * abs(evidence[0])


def start_temperature(
    images: WhitenedImages, rows: Int[Tensor, " row"], centres_px: Shifts, sums: GridSums, settings: SearchSettings
) -> float:
    """Lowest temperature of a ladder, from 1 upwards, at which the posteriors fill `disorder` of all poses."""
    batch = images.batch(rows, settings.first_shell)
    rotations = super_fibonacci_rotations(settings.rotations)
    grid = spectrum_grid(masked_map(sums, settings)[None], settings.first_shell)
    sections = central_sections(grid, rotations, batch.plane)[:, 0]
    shifts = update_shifts(images.plane.box, settings)
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
    null = expectation(batch, centres_px[rows], shifts, spherical_section(sections, batch.plane), 1.0)
    gain = float((found.log_evidence - null.log_evidence).mean())
    return Start(
        volume, gain, float(found.entropy.mean().exp()), best_rotations(batch, centres_px[rows], shifts, sections)
    )


def best_rotations(batch: ImageBatch, centres_px: Shifts, shifts: ShiftGrid, sections: Tensor) -> Rotations:
    """Likeliest rotation of each image among those of a quasi-uniform grid, whose sections are given."""
    candidates, found = super_fibonacci_rotations(len(sections)), []
    for rows in torch.arange(len(centres_px)).split(CHUNK):
        table, power, _ = pose_likelihoods(batch.take(rows), centres_px[rows], shifts, sections)
        found.append(candidates[(table.amax(1) - power).argmax(1)])
    return torch.cat(found)


def spherical_section(sections: Complex[Tensor, "rotation coefficient"], plane: HalfPlane) -> Tensor:
    """The one section, shape (1, coefficient), that a map averaged over all rotations has."""
    return plane.shell_mean(sections.real.mean(0))[plane.shells].to(sections.dtype)[None]


def search_shifts(box: int, settings: SearchSettings) -> ShiftGrid:
    """Disc of shifts with which poses are found in a map, in pixels of the box."""
    return ShiftGrid.disc(settings.shift_radius * box, settings.shift_spacing * box)


def update_shifts(box: int, settings: SearchSettings) -> ShiftGrid:
    """Shifts with which a map is updated, in pixels of the box."""
    return ShiftGrid.disc(settings.shift_radius * box, settings.update_spacing * box)


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
