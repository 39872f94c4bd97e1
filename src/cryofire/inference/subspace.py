"""Opening the latent space: probabilistic PCA of the volume at fixed poses, in two independent halves.

Each half finds its own components, beginning with eigenvectors of how its images are alike; only then are the bases turned onto
each other. What both halves found is signal; how many components to keep is decided by the evidence of each half's images under the
other half's components, which no component fitted to noise can raise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryofire.arrays import Latents, Volume
from cryofire.config import SubspaceSettings
from cryofire.inference.lanczos import leading_eigenvectors
from cryofire.inference.linear_model import (
    LATENTS,
    POSE_AND_CONTRAST,
    LinearModel,
    PassPlan,
    back_project,
    run_pass,
)
from cryofire.inference.polish import Expansion, ImageStates, Priors, expand
from cryofire.physics.imaging import WhitenedImages, batches_on
from cryofire.physics.projection import spectrum_grid
from cryofire.volumes.accumulator import HALVES, GridSums, device_for
from cryofire.volumes.halves import HalfMaps, agreed_precision, component_fsc, solve_each_half

OWN, OTHER = (0, 1), (1, 0)
"""Whose maps the images of each half are compared with."""


@dataclass(frozen=True)
class SubspaceStep:
    """What one pass saw: mean misfit per coefficient, and the halves' agreement on each component."""

    step: int
    components: int
    shell: int
    misfit: float
    agreement: tuple[float, ...]


@dataclass(frozen=True)
class Subspace:
    """The latent space found.

    Attributes
    ----------
    model : LinearModel
        With the components that were kept.
    evidence : Float[Tensor, "count"]
        Mean held-out log-evidence per image with 0, 1, … components, relative to none.
    error : Float[Tensor, "count"]
        Standard error of the gain of each further component; 0 for none.
    baseline : float
        Mean of log likelihood + log prior per image without components, held out, up to a constant of the images.
    """

    model: LinearModel
    evidence: Float[Tensor, " count"]
    error: Float[Tensor, " count"]
    baseline: float

    @property
    def explained(self) -> float:
        """Mean held-out log-evidence per image with the components that were kept, relative to none."""
        return float(self.evidence[self.model.components])

    @property
    def log_evidence(self) -> float:
        """The same beside the baseline: of two latent spaces of the same images the one of larger evidence is likelier."""
        return self.baseline + self.explained


@dataclass(frozen=True)
class PosedImages:
    """Images whose poses and contrasts stay, and how components are looked for in them.

    Attributes
    ----------
    images : WhitenedImages
    half : Int[Tensor, "particle"]
        Random half, 0 or 1, that each belongs to.
    states : ImageStates
        Latents in them are not used.
    model : LinearModel
        Found so far, for its priors.
    mask : Volume
        Inside which maps may have density.
    shell : int
        Resolution limit of components.
    settings : SubspaceSettings
    """

    images: WhitenedImages
    half: Int[Tensor, " particle"]
    states: ImageStates
    model: LinearModel
    mask: Volume
    shell: int
    settings: SubspaceSettings

    def take(self, rows: Int[Tensor, " row"]) -> PosedImages:
        """Some of the images."""
        return replace(self, images=self.images.take(rows), half=self.half[rows], states=self.states.take(rows))


def open_subspace(
    posed: PosedImages, seed: int, report: Callable[[SubspaceStep], None], advance: Callable[[int], None]
) -> Subspace:
    """Components of the latent space that both halves of the images support; none for a homogeneous set.

    Parameters
    ----------
    report, advance : callable
        Hear of every pass of expectation–maximisation, and of every step before them.
    """
    settings = posed.settings
    of_mean = mean_precision(posed)
    components, start = settings.components, first_latents(posed, of_mean, seed, advance)
    while True:
        fitted, _ = _expectation_maximisation(posed, start[:, :components], settings.passes, of_mean, report)
        evidence, error, baseline = held_out_evidence(posed, fitted)
        kept = components_kept(evidence, error, settings)
        if kept < components or components >= settings.most_components:
            return Subspace(_truncated(fitted, kept), evidence, error, baseline)
        components = min(2 * components, settings.most_components)


def mean_precision(posed: PosedImages) -> Float[Tensor, " shell"]:
    """Prior precision of the mean by what its halves agree on, over its power in the images; components hardly change it."""
    alone = replace(posed.states, latents=posed.states.latents[:, :0])
    precision, _ = agreed_precision(back_project(posed.images, posed.half, alone, posed.shell), posed.mask)
    return precision[0]


def first_latents(
    posed: PosedImages, of_mean: Float[Tensor, " shell"], seed: int, advance: Callable[[int], None]
) -> Latents:
    """Latents that each half's expectation–maximisation begins with, the strongest first.

    From random latents it is a power iteration, and takes dozens of passes to a component that is barely stronger than noise. As
    long as latents are uncertain its steps are linear, and have these eigenvectors.
    """
    settings, count = posed.settings, posed.settings.most_components
    random = torch.randn(len(posed.states), settings.block, generator=torch.Generator().manual_seed(seed))

    def seen_by_images(latents: Latents) -> Latents:
        result = torch.empty_like(latents)
        for rows, expansion in _at_no_latent(posed, _halves_of(posed, latents, of_mean), OWN):
            result[rows] = expansion.descent[:, LATENTS]
        advance(1)
        return result

    steps = max(settings.steps, math.ceil(count / settings.block))
    return leading_eigenvectors(seen_by_images, random, posed.half, steps, count)


def _halves_of(
    posed: PosedImages, latents: Latents, of_mean: Float[Tensor, " shell"] | None
) -> Float[Tensor, "half component z y x"]:
    """Maps that latents make of each half of the images, filtered as in `_filtered_halves`."""
    sums = back_project(posed.images, posed.half, replace(posed.states, latents=latents), posed.shell)
    return _filtered_halves(posed, sums, of_mean)


def _filtered_halves(
    posed: PosedImages, sums: GridSums, of_mean: Float[Tensor, " shell"] | None
) -> Float[Tensor, "half component z y x"]:
    """Maps of each half, filtered by what the halves agree on.

    As long as their components do not agree on anything, these are expected to have the spectrum of the mean, whose precision is
    `of_mean`, at a part of its power.
    """
    if of_mean is None:
        precision, _ = agreed_precision(sums, posed.mask)
    else:
        precision = (of_mean / posed.settings.first_power).repeat(sums.components, 1)
        precision[0] = of_mean
    return solve_each_half(sums, posed.mask, precision)


def _model_of(posed: PosedImages, halves: Float[Tensor, "half component z y x"]) -> LinearModel:
    """A model of the maps of both halves; the joint ones are their mean."""
    maps = HalfMaps(halves, halves.mean(0), component_fsc(halves[0], halves[1], posed.shell))
    return LinearModel(maps, _priors(posed, halves.shape[1] - 1))


def _priors(posed: PosedImages, components: int) -> Priors:
    return replace(posed.model.priors, latent_variance=torch.ones(components))


def _at_no_latent(
    posed: PosedImages, halves: Float[Tensor, "half component z y x"], maps_of: Sequence[int]
) -> Iterator[tuple[Int[Tensor, " row"], Expansion]]:
    """Expansions of images at z = 0, a few rows at a time, those of each half against the maps of a given half."""
    components = halves.shape[1] - 1
    device = device_for(posed.shell, components + 1)
    grids = [spectrum_grid(maps, posed.shell).on(device) for maps in halves]
    for rows in batches_on(device, torch.arange(len(posed.images)), posed.images.plane.truncated(posed.shell)):
        batch = posed.images.batch(rows, posed.shell, device)
        for side in range(HALVES):
            mine = posed.half[rows] == side
            at_zero = replace(posed.states.take(rows[mine]), latents=torch.zeros(int(mine.sum()), components))
            yield rows[mine], expand(batch.take(mine), grids[maps_of[side]], at_zero, _priors(posed, components))


def open_along_path(
    posed: PosedImages, position: Float[Tensor, " particle"], is_closed: bool, report: Callable[[SubspaceStep], None]
) -> tuple[Subspace, ImageStates]:
    """Components that follow a motion, started from where each image lies on its path; and the images' latents in them.

    A latent space that knows no path finds only the strongest components of a large motion. Waves along the path (cosines, or a
    whole Fourier series where it is closed) span nearly all of them, as a curve's principal components are waves along it.

    Parameters
    ----------
    position : Float[Tensor, "particle"]
        Along the path, 0 to 1.
    is_closed : bool
        The path ends where it begins.
    """
    settings, count = posed.settings, len(posed.images)
    start = waves(position, is_closed, settings.path_components)
    fitted, found = _expectation_maximisation(posed, start, settings.path_passes, None, report)
    sample = torch.linspace(0, count - 1, min(settings.images, count)).long()
    evidence, error, baseline = held_out_evidence(posed.take(sample), fitted)
    kept = max(components_kept(evidence, error, settings), 1)
    latents = replace(found, latents=found.latents[:, :kept].contiguous())
    return Subspace(_truncated(fitted, kept), evidence, error, baseline), latents


def _expectation_maximisation(
    posed: PosedImages,
    latents: Latents,
    passes: int,
    of_mean: Float[Tensor, " shell"] | None,
    report: Callable[[SubspaceStep], None],
) -> tuple[LinearModel, ImageStates]:
    """Components and latents after some passes from given latents.

    Unless these mean the same in both halves (no `of_mean`), the halves agree on nothing before the first pass has turned them
    onto each other.
    """
    half, shell = posed.half, posed.shell
    states, model = replace(posed.states, latents=latents), _model_of(posed, _halves_of(posed, latents, of_mean))
    plan = PassPlan(shell, shell, steps=1, fixed=POSE_AND_CONTRAST)
    for step in range(passes):
        result = run_pass(posed.images, half, states, model, plan, lambda _: None)
        halves = _filtered_halves(posed, result.sums, of_mean if step == 0 else None)
        halves, states = aligned_halves(halves, half, result.states, result.deviations)
        model = _model_of(posed, halves)
        agreement = tuple(float(fsc[1:].mean()) for fsc in model.maps.fsc[1:])
        report(SubspaceStep(step, latents.shape[1], shell, float(result.misfit.mean()), agreement))
    return model, states


def waves(position: Float[Tensor, " particle"], is_closed: bool, count: int) -> Float[Tensor, "particle component"]:
    """Orthonormal waves of the rank of each position, so that every part of a path counts by its particles."""
    rank = (position.argsort().argsort() + 0.5) / len(position)
    order = torch.arange(1, count + 1)
    if is_closed:
        phase = 2 * math.pi * rank[:, None] * ((order + 1) // 2)
        return (math.sqrt(2) * torch.where(order % 2 == 1, phase.cos(), phase.sin())).float()
    return (math.sqrt(2) * (math.pi * rank[:, None] * order).cos()).float()


def aligned_halves(
    halves: Float[Tensor, "half component z y x"],
    half: Int[Tensor, " particle"],
    states: ImageStates,
    deviations: Tensor,
) -> tuple[Float[Tensor, "half component z y x"], ImageStates]:
    """Latents of each half with zero mean and unit covariance, the second half's basis turned onto the first's (Procrustes).

    Components are then ordered by the variance of the density that they explain.
    """
    latents = states.latents.clone()
    maps = []
    for side in range(HALVES):
        mine = half == side
        volumes, latents[mine] = _whitened(halves[side], latents[mine], deviations[mine][:, LATENTS])
        maps.append(volumes)
    first, second = maps[0][1:].flatten(1), maps[1][1:].flatten(1)
    left, _, right = torch.linalg.svd(first @ second.T)
    turn = left @ right
    second = turn @ second
    latents[half == 1] = latents[half == 1] @ turn.T
    average = 0.5 * (first + second)
    order = torch.linalg.eigh(average @ average.T).eigenvectors.flip(1).T
    turned = [
        torch.cat([maps[side][:1], (order @ v).unflatten(1, halves.shape[2:])])
        for side, v in enumerate((first, second))
    ]
    return torch.stack(turned), replace(states, latents=latents @ order.T)


def _whitened(volumes: Tensor, latents: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor]:
    mean = latents.mean(0)
    centred = latents - mean
    spread = centred.T @ centred / len(latents) + torch.diag(deviations.square().mean(0))
    factor = torch.linalg.cholesky(spread)
    shifted = volumes[0] + torch.einsum("j,jzyx->zyx", mean, volumes[1:])
    components = torch.einsum("lj,lzyx->jzyx", factor, volumes[1:])
    return torch.cat([shifted[None], components]), torch.linalg.solve_triangular(factor, centred.T, upper=False).T


def held_out_evidence(
    posed: PosedImages, model: LinearModel
) -> tuple[Float[Tensor, " count"], Float[Tensor, " count"], float]:
    """Mean log-evidence per image with the first 0, 1, … components of the *other* half, standard error of each step, and baseline.

    The evidence is relative to no component; the baseline is log likelihood + log prior there. For the linear Gaussian model with
    normal equations H, b of the latents at z = 0 the evidence of k components is ½ bᵀ(H + 1)⁻¹b - ½ log det(H + 1).
    """
    count = len(posed.images)
    gains, likelihood = torch.zeros(count, model.components + 1), torch.zeros(count)
    for rows, expansion in _at_no_latent(posed, model.maps.halves, OTHER):
        gains[rows, 1:] = nested_evidence(expansion.hessian[:, LATENTS, LATENTS], expansion.descent[:, LATENTS])
        likelihood[rows] = -expansion.value
    steps = gains.diff(dim=1)
    error = torch.cat([torch.zeros(1), steps.std(0) / math.sqrt(count)])
    return gains.mean(0), error, float(likelihood.mean())


def nested_evidence(
    precision: Float[Tensor, "particle component component"], descent: Float[Tensor, "particle component"]
) -> Float[Tensor, "particle component"]:
    """½ bᵀA⁻¹b - ½ log det A of every leading block of A; one Cholesky factorisation serves all, as it is nested itself."""
    factor = torch.linalg.cholesky(precision)
    solved = torch.linalg.solve_triangular(factor, descent[..., None], upper=False)[..., 0]
    return (0.5 * solved.square() - factor.diagonal(dim1=1, dim2=2).log()).cumsum(1)


def components_kept(evidence: Tensor, error: Tensor, settings: SubspaceSettings) -> int:
    """Number of leading components of which each raised the held-out evidence surely and by enough to matter."""
    steps = evidence.diff()
    for count, (gain, uncertainty) in enumerate(zip(steps, error[1:], strict=True)):
        if gain <= max(settings.significance * float(uncertainty), settings.least_gain):
            return count
    return len(steps)


def _truncated(model: LinearModel, components: int) -> LinearModel:
    maps = HalfMaps(
        model.maps.halves[:, : components + 1], model.maps.joint[: components + 1], model.maps.fsc[: components + 1]
    )
    return LinearModel(maps, replace(model.priors, latent_variance=torch.ones(components)))
