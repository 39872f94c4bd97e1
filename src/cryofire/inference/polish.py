"""Gauss–Newton polish of pose, contrast and latent of every image, and the Laplace posterior it ends in.

For one image the negative log-posterior is

    φ(w, t, a, z) = Σ|Y - a C e^{-2πik·t/n} (S_0 + Σ_j z_j S_j)|² + ½ (θ - θ₀)ᵀ P (θ - θ₀),

θ = (w, t, a, z) with w a left tangent of the rotation. A step solves (H + P + λ diag H) δ = g - P(θ - θ₀) with the normal
equations of `kernels.normal_equations`; it is kept only where φ falls, otherwise λ grows (Levenberg–Marquardt, per image).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryofire.arrays import Latents, Rotations, Shifts
from cryofire.geometry.rotations import rotation_from_vector
from cryofire.physics import kernels, tensor_kernels
from cryofire.physics.devices import CPU
from cryofire.physics.imaging import ImageBatch
from cryofire.physics.projection import SpectrumGrid

POSE = 5
CONTRAST = 5
LATENT = 6
CONTRAST_RANGE = (0.05, 20.0)
"""Contrast that an image may have."""


@dataclass(frozen=True)
class ImageStates:
    """Pose, contrast and latent of some images.

    Attributes
    ----------
    rotations : Float[Tensor, "particle 3 3"]
    shifts_px : Float[Tensor, "particle 2"]
        In pixels of the working box.
    contrast : Float[Tensor, "particle"]
    latents : Float[Tensor, "particle component"]
    """

    rotations: Rotations
    shifts_px: Shifts
    contrast: Float[Tensor, " particle"]
    latents: Latents

    def __len__(self) -> int:
        return self.rotations.shape[0]

    def take(self, rows: Int[Tensor, " row"]) -> ImageStates:
        """The states of the given images."""
        return ImageStates(self.rotations[rows], self.shifts_px[rows], self.contrast[rows], self.latents[rows])

    def on(self, device: torch.device) -> ImageStates:
        """The same states on a device."""
        return ImageStates(*(one.to(device) for one in _fields(self)))

    def put(self, rows: Int[Tensor, " row"], states: ImageStates) -> None:
        """Overwrite the states of the given images, in place."""
        for mine, theirs in zip(_fields(self), _fields(states), strict=True):
            mine[rows] = theirs

    @classmethod
    def joined(cls, parts: Sequence[ImageStates]) -> ImageStates:
        """States one after another."""
        return cls(*(torch.cat(together) for together in zip(*map(_fields, parts), strict=True)))

    def where(self, condition: Tensor, other: ImageStates) -> ImageStates:
        """These states where `condition` holds, `other` elsewhere."""
        pairs = zip(_fields(self), _fields(other), strict=True)
        return ImageStates(*(torch.where(condition.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in pairs))

    def at_one_contrast(self) -> ImageStates:
        """The same poses and latents with every image at the mean contrast, 1."""
        return replace(self, contrast=torch.ones(len(self)))

    def moved(self, step: Float[Tensor, "particle parameter"]) -> ImageStates:
        """States after a step in (rotation tangent, shift, contrast, latent)."""
        return ImageStates(
            rotation_from_vector(step[:, :3]) @ self.rotations,
            self.shifts_px + step[:, 3:POSE],
            (self.contrast + step[:, CONTRAST]).clamp(*CONTRAST_RANGE),
            self.latents + step[:, LATENT:],
        )


def _fields(states: ImageStates) -> tuple[Tensor, ...]:
    return states.rotations, states.shifts_px, states.contrast, states.latents


@dataclass(frozen=True)
class Priors:
    """Gaussian priors of what is fitted per image.

    Attributes
    ----------
    shift_std_px : float
        Of each shift coordinate.
    contrast_std : float
        Of the contrast about 1.
    latent_variance : Float[Tensor, "component"]
        Of the latents about 0.
    shift_mean_px : Float[Tensor, "particle 2"], optional
        Where the shifts are expected; the image centre by default.
    """

    shift_std_px: float
    contrast_std: float
    latent_variance: Float[Tensor, " component"]
    shift_mean_px: Shifts | None = None

    def about(self, shift_mean_px: Shifts) -> Priors:
        """The same priors with shifts expected about the given ones."""
        return replace(self, shift_mean_px=shift_mean_px)

    def precision(self) -> Float[Tensor, " parameter"]:
        """Diagonal of P."""
        shift = torch.full((2,), self.shift_std_px**-2)
        contrast = torch.tensor([self.contrast_std**-2])
        return torch.cat([torch.zeros(3), shift, contrast, 1 / self.latent_variance.clamp_min(1e-12)])

    def deviation(self, states: ImageStates) -> Float[Tensor, "particle parameter"]:
        """θ - θ₀; the rotation has no prior."""
        shift = states.shifts_px if self.shift_mean_px is None else states.shifts_px - self.shift_mean_px
        return torch.cat([torch.zeros(len(states), 3), shift, states.contrast[:, None] - 1, states.latents], dim=1)


def best_contrast(overlap: Tensor, power: Tensor, contrast_std: float) -> Tensor:
    """Contrast a of largest posterior, 2 a x - a² D - (a - 1)² / (2 σ²), with the overlap x = Re⟨Y, S⟩ and the power D = |S|²."""
    precision = 0.5 * contrast_std**-2
    return ((overlap + precision) / (power + precision)).clamp(*CONTRAST_RANGE)


@dataclass(frozen=True)
class Expansion:
    """Second-order expansion of φ at some states: value, -gradient and Gauss–Newton Hessian, prior included."""

    value: Float[Tensor, " particle"]
    descent: Float[Tensor, "particle parameter"]
    hessian: Float[Tensor, "particle parameter parameter"]
    misfit: Float[Tensor, " particle"]


def expand(batch: ImageBatch, grid: SpectrumGrid, states: ImageStates, priors: Priors) -> Expansion:
    """Expansion of φ for a batch: one pass over its coefficients, on the device where they are; the result is on the CPU."""
    hessian, gradient, misfit = _normal_equations(batch, grid, states)
    precision, deviation = priors.precision(), priors.deviation(states)
    value = misfit + 0.5 * (precision * deviation.square()).sum(1)
    return Expansion(value, gradient - precision * deviation, hessian + torch.diag(precision), misfit)


def _normal_equations(batch: ImageBatch, grid: SpectrumGrid, states: ImageStates) -> tuple[Tensor, Tensor, Tensor]:
    rotations, shifts, contrast, latents = _fields(states)
    if grid.values.device != CPU:
        here = [one.to(grid.values) for one in (rotations, shifts, contrast, latents)]
        products = tensor_kernels.normal_equations(grid.values, batch, *here)
        hessian, gradient, misfit = (product.cpu() for product in products)
        return hessian, gradient, misfit
    count, size = len(states), LATENT + latents.shape[1]
    hessian, gradient, misfit = torch.empty(count, size, size), torch.empty(count, size), torch.empty(count)
    kernels.normal_equations(
        grid.values.numpy(), rotations.contiguous().numpy(), shifts.contiguous().numpy(), latents.contiguous().numpy(),
        contrast.contiguous().numpy(), batch.plane.frequencies.float().numpy(), batch.plane.box, batch.data.numpy(),
        batch.modulation.numpy(), hessian.numpy(), gradient.numpy(), misfit.numpy(),
    )  # fmt: skip
    return hessian, gradient, misfit


@dataclass(frozen=True)
class Polished:
    """Where the polish ended: states, and the expansion there."""

    states: ImageStates
    expansion: Expansion


def polish(
    batch: ImageBatch, grid: SpectrumGrid, states: ImageStates, priors: Priors, steps: int, fixed: slice | None = None
) -> Polished:
    """States after `steps` Gauss–Newton steps. `fixed` names parameters that do not move (for example the pose, slice(0, 5))."""
    here = expand(batch, grid, states, priors)
    damping = torch.full((len(states),), 1e-3)
    for _ in range(steps):
        step = newton_step(here, damping, batch.plane.max_shell, fixed)
        there_states = states.moved(step)
        there = expand(batch, grid, there_states, priors)
        better = there.value < here.value
        states = there_states.where(better, states)
        here = _choose(better, there, here)
        damping = torch.where(better, damping * 0.2, damping * 10)
    return Polished(states, here)


def solve_latents(batch: ImageBatch, grid: SpectrumGrid, states: ImageStates, priors: Priors) -> Polished:
    """Posterior mean of the latents at fixed pose and contrast: the problem is linear, so one expansion gives it exactly."""
    here = expand(batch, grid, states, priors)
    latent = slice(LATENT, None)
    system, descent = here.hessian[:, latent, latent], here.descent[:, latent]
    step = torch.linalg.solve(system, descent)
    precision = priors.precision()[latent]
    data_descent = descent + precision * states.latents
    data_system = system - torch.diag(precision)
    misfit = here.misfit - (step * data_descent).sum(1) + 0.5 * torch.einsum("ni,nij,nj->n", step, data_system, step)
    value = here.value - 0.5 * (step * descent).sum(1)
    moved = replace(states, latents=states.latents + step)
    return Polished(moved, replace(here, value=value, misfit=misfit))


def newton_step(
    expansion: Expansion, damping: Float[Tensor, " particle"], max_shell: int, fixed: slice | None = None
) -> Float[Tensor, "particle parameter"]:
    """Damped Gauss–Newton step, turning by at most about one shell at the edge of the resolution, moving by at most 1.5 px."""
    diagonal = expansion.hessian.diagonal(dim1=1, dim2=2)
    system = expansion.hessian + torch.diag_embed(damping[:, None] * diagonal + 1e-6)
    descent = expansion.descent
    if fixed is not None:
        free = torch.ones(descent.shape[1])
        free[fixed] = 0
        system = system * free[:, None] * free + torch.diag(1 - free)
        descent = descent * free
    step = torch.linalg.solve(system, descent)
    turn = step[:, :3].norm(dim=1) * max_shell / 1.2
    move = step[:, 3:POSE].norm(dim=1) / 1.5
    return step / torch.maximum(turn, move).clamp_min(1)[:, None]


def _choose(better: Tensor, there: Expansion, here: Expansion) -> Expansion:
    return Expansion(
        torch.where(better, there.value, here.value),
        torch.where(better[:, None], there.descent, here.descent),
        torch.where(better[:, None, None], there.hessian, here.hessian),
        torch.where(better, there.misfit, here.misfit),
    )


def posterior_covariance(expansion: Expansion) -> Float[Tensor, "particle parameter parameter"]:
    """Laplace covariance of (rotation tangent in rad, shift in px, contrast, latent): the inverse Hessian of φ."""
    size = expansion.hessian.shape[1]
    return torch.linalg.inv(expansion.hessian + 1e-6 * torch.eye(size))
