"""Consensus refinement: one map, all poses, frequency marching, in two halves independent beyond a shared low resolution.

Shells enter one by one: a pass aligns up to `shell` but back-projects a few shells further, where the halves have never been
aligned, so that the Fourier shell correlation there honestly says whether the next shells carry signal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryofire.arrays import Volume
from cryofire.config import RefineSettings
from cryofire.inference.linear_model import (
    LinearModel,
    PassPlan,
    PassResult,
    back_project,
    canonical,
    normalised,
    residual_variance,
    run_pass,
    updated_priors,
)
from cryofire.inference.polish import LATENT, ImageStates, Priors
from cryofire.physics.imaging import WhitenedImages
from cryofire.volumes.halves import HalfMaps, resolved_shell, solve_halves
from cryofire.volumes.masks import particle_mask, soft_sphere

NOISE_SAMPLE = 1000
"""Images whose residuals re-estimate the noise spectrum after a pass."""


@dataclass(frozen=True)
class Refinement:
    """State of the refinement between two passes.

    Attributes
    ----------
    images : WhitenedImages
        With the noise spectrum as estimated so far.
    states : ImageStates
    model : LinearModel
    shell : int
        Resolution limit of the next alignment.
    deviations : Float[Tensor, "particle parameter"]
        Posterior standard deviations found by the last pass; infinite before the first.
    misfit : Float[Tensor, "particle"]
        Σ|residual|² per coefficient in the last pass.
    rotation_change, shift_change_px : float
        Median movement of the poses in the last pass, radians and pixels.
    passes : int
        Passes made.
    settled : bool
        Nothing changes any more.
    """

    images: WhitenedImages
    states: ImageStates
    model: LinearModel
    shell: int
    deviations: Float[Tensor, "particle parameter"]
    misfit: Float[Tensor, " particle"]
    rotation_change: float = math.inf
    shift_change_px: float = math.inf
    passes: int = 0
    settled: bool = False

    def among(self, rows: Int[Tensor, " row"]) -> Refinement:
        """The same for some of the images, the maps being those of all."""
        return replace(
            self, images=self.images.among(rows), states=self.states.take(rows), deviations=self.deviations[rows],
            misfit=self.misfit[rows],
        )  # fmt: skip


def start_refinement(
    images: WhitenedImages,
    half: Int[Tensor, " particle"],
    states: ImageStates,
    shared_shell: int,
    settings: RefineSettings,
) -> Refinement:
    """First maps from poses found by a search that saw shells up to `shared_shell`."""
    maps = _maps_at(images, half, states, shared_shell, shared_shell, settings)
    priors = Priors(0.05 * images.plane.box, 0.1, torch.zeros(0))
    deviations = torch.full((len(states), LATENT), math.inf)
    return Refinement(images, states, LinearModel(maps, priors), shared_shell, deviations, torch.ones(len(states)))


def without_conformations(refined: Refinement, half: Int[Tensor, " particle"], settings: RefineSettings) -> Refinement:
    """The consensus at the poses of a refinement, as if no latent space had been opened."""
    states = replace(refined.states, latents=refined.states.latents[:, :0])
    maps = _maps_at(refined.images, half, states, refined.shell, 0, settings)
    priors = replace(refined.model.priors, latent_variance=torch.zeros(0))
    model = LinearModel(maps, priors)
    return replace(refined, states=states, model=model, deviations=refined.deviations[:, :LATENT], settled=True)


def _maps_at(
    images: WhitenedImages,
    half: Int[Tensor, " particle"],
    states: ImageStates,
    shell: int,
    shared_shell: int,
    settings: RefineSettings,
) -> HalfMaps:
    """Maps of the halves at given poses, as far as the next pass looks ahead of `shell`."""
    sums = back_project(images, half, states, seen_shell(images, shell, settings))
    return solve_halves(sums, refinement_mask(images.plane.box, settings), shared_shell)


def refine(
    current: Refinement,
    half: Int[Tensor, " particle"],
    shared_shell: int,
    settings: RefineSettings,
    advance: Callable[[int], None],
    joint: bool = False,
    fixed: slice | None = None,
) -> Iterator[Refinement]:
    """The refinement after each pass, until it settles or the passes are used up; `fixed` parameters do not move."""
    while current.passes < settings.passes and not current.settled:
        shell = current.shell
        plan = PassPlan(shell, seen_shell(current.images, shell, settings), settings.steps, fixed, joint)
        result = run_pass(current.images, half, current.states, current.model, plan, advance)
        following = _next(current.images, result, current.model, shell, shared_shell, settings)
        settled = following.shell == shell and result.rotation_change * shell < settings.tolerance
        current = replace(following, passes=current.passes + 1, settled=settled)
        yield current


def seen_shell(images: WhitenedImages, shell: int, settings: RefineSettings) -> int:
    """Last shell that a pass aligned up to `shell` back-projects."""
    return min(settings.seen(shell), images.plane.max_shell)


def refinement_mask(box: int, settings: RefineSettings) -> Volume:
    """Soft sphere inside which maps may have density."""
    return soft_sphere(box, settings.mask_radius * box, 0.06 * box)


def outline_mask(model: LinearModel, settings: RefineSettings) -> Volume:
    """Where the maps that follow those of a model may have density: the sphere, and in it the particle's outline and a margin.

    Noise elsewhere would blur what images are compared with. The outline may grow from pass to pass.
    """
    maps = model.maps.joint
    return refinement_mask(maps.shape[-1], settings) * particle_mask(maps)


def _next(
    images: WhitenedImages,
    result: PassResult,
    before: LinearModel,
    shell: int,
    shared_shell: int,
    settings: RefineSettings,
) -> Refinement:
    maps = solve_halves(result.sums, outline_mask(before, settings), shared_shell)
    model, states = normalised(replace(before, maps=maps), result.states)
    model = replace(model, priors=updated_priors(before.priors, states, result.deviations))
    model, states = canonical(model, states, result.deviations)
    rows = torch.arange(0, len(images), max(len(images) // NOISE_SAMPLE, 1))
    images = images.with_noise(residual_variance(images, states, model, rows))
    resolved = resolved_shell(maps.fsc[0])
    following = min(max(shell, min(settings.next_shell(shell), resolved)), images.plane.max_shell)
    return Refinement(
        images,
        states,
        model,
        following,
        result.deviations,
        result.misfit,
        result.rotation_change,
        result.shift_change_px,
    )
