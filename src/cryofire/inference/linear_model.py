"""The linear latent model V(k, z) = V_0 + Σ_j z_j V_j, z ~ N(0, I), as two half models and a joint one, and one pass of its EM.

A pass polishes pose, contrast and latent of every image against the maps of its own half, and back-projects the image with the
posterior moments of u = (1, z). Without components this is the refinement of a consensus; poses held fixed make it probabilistic
principal component analysis (Tipping & Bishop 1999) of the volume, seen through projections.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryofire.arrays import Latents
from cryofire.geometry.rotations import geodesic_angle
from cryofire.inference.polish import (
    LATENT,
    POSE,
    Expansion,
    ImageStates,
    Polished,
    Priors,
    polish,
    posterior_covariance,
    solve_latents,
)
from cryofire.physics.devices import CPU
from cryofire.physics.imaging import ImageBatch, WhitenedImages, batches, batches_on
from cryofire.physics.projection import SpectrumGrid, central_sections, spectrum_grid
from cryofire.physics.shift import phase_ramp
from cryofire.volumes.accumulator import HALVES, GridSums, add_images, device_for, empty_sums
from cryofire.volumes.halves import HalfMaps

POSE_AND_CONTRAST = slice(0, LATENT)
LATENTS = slice(LATENT, None)
WIDEST_CONTRAST = 0.5
"""Most that the contrast of images is believed to vary about its mean of 1 (standard deviation)."""


@dataclass(frozen=True)
class LinearModel:
    """Maps of a linear latent model and what is believed of the images before they are seen.

    Attributes
    ----------
    maps : HalfMaps
        Component 0 is the mean.
    priors : Priors
        Of shift, contrast and latents.
    """

    maps: HalfMaps
    priors: Priors

    @property
    def components(self) -> int:
        """Number of components beside the mean."""
        return self.maps.joint.shape[0] - 1

    def grids(self, max_shell: int, joint: bool, device: torch.device = CPU) -> tuple[SpectrumGrid, ...]:
        """Spectra that the images of each half are compared with: their own half's maps, or the joint ones."""
        if joint:
            return (spectrum_grid(self.maps.joint, max_shell).on(device),) * HALVES
        return tuple(spectrum_grid(half, max_shell).on(device) for half in self.maps.halves)


@dataclass(frozen=True)
class PassPlan:
    """What a pass does.

    Attributes
    ----------
    shell, insert_shell : int
        Resolution limit of the alignment, and of the back-projection.
    steps : int
        Gauss–Newton steps.
    fixed : slice or None
        Parameters that do not move.
    joint : bool
        Compare every image with the joint maps instead of its own half's.
    """

    shell: int
    insert_shell: int
    steps: int = 2
    fixed: slice | None = None
    joint: bool = False


@dataclass(frozen=True)
class PassResult:
    """Where a pass over all images ended.

    Attributes
    ----------
    states : ImageStates
    sums : GridSums
        Back-projection of the images at these states.
    deviations : Float[Tensor, "particle parameter"]
        Posterior standard deviation of (rotation tangent, shift, contrast, latent).
    misfit : Float[Tensor, "particle"]
        Σ|residual|² per coefficient.
    rotation_change, shift_change_px : float
        Median movement of the poses, radians and pixels.
    """

    states: ImageStates
    sums: GridSums
    deviations: Float[Tensor, "particle parameter"]
    misfit: Float[Tensor, " particle"]
    rotation_change: float
    shift_change_px: float


def run_pass(
    images: WhitenedImages,
    half: Int[Tensor, " particle"],
    states: ImageStates,
    model: LinearModel,
    plan: PassPlan,
    advance: Callable[[int], None],
) -> PassResult:
    """One pass over all images: polish, posterior moments, back-projection."""
    count, components = states.latents.shape
    largest = max(plan.insert_shell, plan.shell)
    device = device_for(largest, components + 1)
    grids = model.grids(plan.shell, plan.joint, device)
    result = states.take(torch.arange(count))
    sums = empty_sums(plan.insert_shell, components + 1, device)
    deviations, misfit = torch.empty(count, LATENT + components), torch.empty(count)
    for rows in batches_on(device, torch.arange(count), images.plane.truncated(largest)):
        batch = images.batch(rows, largest, device)
        covariance = torch.empty(len(rows), LATENT + components, LATENT + components)
        for side in range(HALVES):
            mine = (half[rows] == side) if not plan.joint else torch.full((len(rows),), side == 0)
            if not mine.any():
                continue
            subset = batch.take(mine).truncated(plan.shell)
            polished = _polished(subset, grids[side], states.take(rows[mine]), model.priors, plan)
            result.put(rows[mine], polished.states)
            covariance[mine] = conditional_covariance(polished.expansion, plan.fixed)
            misfit[rows[mine]] = polished.expansion.misfit / len(subset.plane)
        deviations[rows] = covariance.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        here = result.take(rows)
        insert = batch.truncated(plan.insert_shell)
        add_images(
            sums, insert, here.rotations, here.shifts_px, half[rows], moments(here, covariance[:, LATENTS, LATENTS])
        )
        advance(len(rows))
    turned = geodesic_angle(result.rotations, states.rotations).median()
    moved = (result.shifts_px - states.shifts_px).norm(dim=1).median()
    return PassResult(result, sums.on(CPU), deviations, misfit, float(turned), float(moved))


def _polished(batch: ImageBatch, grid: SpectrumGrid, states: ImageStates, priors: Priors, plan: PassPlan) -> Polished:
    if plan.fixed == POSE_AND_CONTRAST:
        return solve_latents(batch, grid, states, priors)
    return polish(batch, grid, states, priors, plan.steps, plan.fixed)


def back_project(
    images: WhitenedImages,
    half: Int[Tensor, " particle"],
    states: ImageStates,
    insert_shell: int,
    rows: Int[Tensor, " row"] | None = None,
    spread: Latents | None = None,
) -> GridSums:
    """Sums of all images, or of some rows, at given states; latents are exact or have the standard deviations `spread`."""
    components = states.latents.shape[1]
    device, plane = device_for(insert_shell, components + 1), images.plane.truncated(insert_shell)
    sums = empty_sums(insert_shell, components + 1, device)
    for piece in batches_on(device, torch.arange(len(images)) if rows is None else rows, plane):
        here = states.take(piece)
        variance = torch.zeros(len(piece), components) if spread is None else spread[piece].square()
        second = moments(here, torch.diag_embed(variance))
        batch = images.batch(piece, insert_shell, device)
        add_images(sums, batch, here.rotations, here.shifts_px, half[piece], second)
    return sums.on(CPU)


def conditional_covariance(expansion: Expansion, fixed: slice | None) -> Float[Tensor, "particle parameter parameter"]:
    """Posterior covariance with the fixed parameters known exactly."""
    if fixed is None:
        return posterior_covariance(expansion)
    free = torch.ones(expansion.hessian.shape[1])
    free[fixed] = 0
    hessian = expansion.hessian * free[:, None] * free + torch.diag((1 - free) * 1e12)
    return posterior_covariance(replace(expansion, hessian=hessian))


def moments(
    states: ImageStates, covariance: Float[Tensor, "particle component component"]
) -> tuple[Float[Tensor, "particle coordinate"], Float[Tensor, "particle pair"]]:
    """Contrast times E[u], and contrast squared times E[u uᵀ] (upper triangle), for u = (1, z)."""
    count = len(states)
    first = torch.cat([torch.ones(count, 1), states.latents], dim=1)
    second = first[:, :, None] * first[:, None, :]
    second[:, 1:, 1:] += covariance
    rows, columns = torch.triu_indices(first.shape[1], first.shape[1])
    contrast = states.contrast[:, None]
    return contrast * first, contrast.square() * second[:, rows, columns]


def predicted(batch: ImageBatch, grid: SpectrumGrid, states: ImageStates) -> Complex[Tensor, "particle coefficient"]:
    """Whitened coefficients that the model expects of each image."""
    states = states.on(grid.values.device)
    sections = central_sections(grid, states.rotations, batch.plane)
    contrast = states.contrast[:, None]
    coordinates = torch.cat([contrast, contrast * states.latents], dim=1)
    section = (coordinates[..., None].to(sections.dtype) * sections).sum(1)
    return batch.modulation * phase_ramp(states.shifts_px, batch.plane.frequencies, batch.plane.box) * section


def residual_variance(
    images: WhitenedImages, states: ImageStates, model: LinearModel, rows: Int[Tensor, " row"]
) -> Float[Tensor, " shell"]:
    """Mean |residual|² in every shell for some images against the joint maps; 1 when the noise estimate is right."""
    grid = spectrum_grid(model.maps.joint, images.plane.max_shell)
    total = torch.zeros(images.plane.max_shell + 1)
    for piece in batches(rows):
        batch = images.batch(piece, images.plane.max_shell)
        residual = batch.data - predicted(batch, grid, states.take(piece))
        total += images.plane.shell_mean(residual.abs().square()).sum(0)
    total[0] = total[1]
    return total / len(rows)


def normalised(model: LinearModel, states: ImageStates) -> tuple[LinearModel, ImageStates]:
    """The same model with a mean contrast of 1; the maps take up the factor."""
    factor = states.contrast.mean()
    maps = HalfMaps(model.maps.halves * factor, model.maps.joint * factor, model.maps.fsc)
    return replace(model, maps=maps), replace(states, contrast=states.contrast / factor)


def canonical(model: LinearModel, states: ImageStates, deviations: Tensor) -> tuple[LinearModel, ImageStates]:
    """The same model with latents of zero mean and unit covariance, components in order of the variance they explain.

    With z' = W (z - μ) the maps become V_j' = Σ_l V_l (W⁻¹)_lj and V_0' = V_0 + Σ μ_j V_j.
    """
    latents = states.latents
    if latents.shape[1] == 0:
        return model, states
    mean = latents.mean(0)
    spread = torch.cov(latents.T, correction=0).reshape(len(mean), len(mean)) + torch.diag(
        deviations[:, LATENTS].square().mean(0)
    )
    factor = torch.linalg.cholesky(spread)
    flat = model.maps.joint[1:].flatten(1)
    turn = torch.linalg.eigh(factor.T @ (flat @ flat.T) @ factor).eigenvectors
    inverse = factor @ turn.flip(1)
    turned = turn.flip(1).T @ torch.linalg.inv(factor)
    maps = HalfMaps(
        torch.stack([_transformed(half, mean, inverse) for half in model.maps.halves]),
        _transformed(model.maps.joint, mean, inverse),
        model.maps.fsc,
    )
    priors = replace(model.priors, latent_variance=torch.ones(len(mean)))
    return LinearModel(maps, priors), replace(states, latents=(latents - mean) @ turned.T)


def _transformed(volumes: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    shift = torch.einsum("j,jzyx->zyx", mean, volumes[1:])
    return torch.cat([(volumes[0] + shift)[None], torch.einsum("lj,lzyx->jzyx", inverse, volumes[1:])])


def updated_priors(priors: Priors, states: ImageStates, deviations: Tensor) -> Priors:
    """Priors re-estimated from the states: spread of the estimates, posterior variance included."""
    shift = (states.shifts_px.square().mean() + deviations[:, 3:POSE].square().mean()).sqrt()
    contrast = (states.contrast - 1).square().mean() - deviations[:, POSE].square().mean()
    contrast_std = min(max(math.sqrt(max(float(contrast), 0.0)), 0.02), WIDEST_CONTRAST)
    return replace(priors, shift_std_px=float(shift) + 0.1, contrast_std=contrast_std)
