"""Teaching the encoder: rendered images through the log-density of the posterior, real images through their reconstruction.

Rendered images have known poses and latents, and -log q(pose, latent | image) is minimised over them: the forward Kullback–Leibler
divergence, which covers every mode and calibrates the covariances. Real images have none: the section decoded at the encoder's mean
is compared with the image, and the gradient of the misfit (exact, from `polish.expand`) flows into the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cryofire.arrays import Shifts
from cryofire.config import AmortiseSettings
from cryofire.geometry.rotations import cross_matrix, geodesic_angle, rotation_from_vector
from cryofire.inference.encoder import LocalPosterior, PoseEncoder, Sight
from cryofire.inference.polish import CONTRAST, ImageStates, Priors, expand
from cryofire.inference.rendering import Renderer
from cryofire.inference.section_bank import in_plane_rotations, turned_shifts
from cryofire.physics.devices import CPU
from cryofire.physics.imaging import ImageBatch, WhitenedImages
from cryofire.physics.projection import SpectrumGrid

BASIN = 0.4
"""A mode is right when its rotation is within this of the truth, radians."""
NEARBY = 0.07
"""Deviation of the rotation from the truth where no mode is right and one is put there, radians."""
WARM_UP = 50
LARGEST_GRADIENT = 3.0
LARGEST_DECREMENT = 16.0
"""Newton decrement above which a real image counts less: it is in a wrong mode, where its gradient means little."""
LEAST_GRADIENT = 1e-20
"""Gradient of a cell below which it is taken to be zero: it would soon be too small to be a normal number."""


@dataclass(frozen=True)
class RealImages:
    """Real images and first guesses of their centres, and the decoder they are compared with."""

    images: WhitenedImages
    centres_px: Shifts
    grid: SpectrumGrid
    priors: Priors

    def draw(self, count: int, max_shell: int, generator: torch.Generator) -> tuple[ImageBatch, Shifts]:
        """Random images up to a shell and the guesses of their centres."""
        rows = torch.randint(len(self.images), (count,), generator=generator)
        return self.images.batch(rows, max_shell, self.grid.values.device), self.centres_px[rows]


@dataclass(frozen=True)
class TeachingStep:
    """Losses of one update, in nats per image (`rendered_losses`), and the misfit per coefficient of real images."""

    step: int
    cells: float
    modes: float
    glance: float
    look: float
    last_look: float
    misfit: float


def teach(
    encoder: PoseEncoder,
    renderer: Renderer,
    real: RealImages | None,
    settings: AmortiseSettings,
    seed: int,
) -> Iterator[TeachingStep]:
    """Update the encoder in place; yields after every update."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * scheduled(step, settings.steps)
        losses = rendered_losses(encoder, renderer, settings.batch, generator) if settings.batch else {}
        misfit = math.nan
        total = sum(losses.values(), torch.zeros(()))
        if real is not None and settings.real > 0:
            loss, misfit = real_loss(encoder, real, settings.real, generator)
            total = total + loss
        total.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), LARGEST_GRADIENT)
        optimiser.step()
        optimiser.zero_grad()
        values = {name: float(losses[name].detach()) if losses else math.nan for name in LOSSES}
        yield TeachingStep(step, misfit=misfit, **values)


LOSSES = ("cells", "modes", "glance", "look", "last_look")


def scheduled(step: int, steps: int) -> float:
    """Factor of the learning rate: a short linear rise, then half a cosine down to 2 %."""
    return min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / max(steps, 1))))


def rendered_losses(
    encoder: PoseEncoder, renderer: Renderer, count: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Mean negative log-densities of rendered images: of cell, mode and state, look by look."""
    batch, states = renderer.draw(count, generator)
    truth, image = states.on(encoder.device), torch.arange(count, device=encoder.device)
    sight = encoder.see(batch, torch.zeros(count, 2))
    glanced, looked_at = encoder.glance(sight)
    near = geodesic_angle(encoder.pose(glanced)[0].detach(), truth.rotations) < BASIN
    glance = encoder.negative_log_density(glanced, truth.rotations, truth.shifts_px - looked_at, truth.latents)
    with torch.no_grad():
        moved = looked_at + encoder.pose(glanced)[1]
    images = encoder.polar_images(sight, moved)
    logits = encoder.cell_logits(images, sight.power)
    if logits.requires_grad:
        logits.register_hook(without_specks)
    with torch.no_grad():
        modes, right = candidate_modes(encoder, logits, truth, generator)
    every = image.repeat_interleave(modes.shape[1])
    truths = truth.take(every)
    chosen = right + modes.shape[1] * image
    found = encoder.local(images[every], sight.power[every], modes.flatten(0, 1), 1)
    look = encoder.negative_log_density(found, truths.rotations, truths.shifts_px - moved[every], truths.latents)
    with torch.no_grad():
        rotations, shifts, _ = encoder.pose(found)
        shifts = shifts + moved[every]
    last = encoder.local(encoder.polar_images(sight.take(every), shifts), sight.power[every], rotations, 2)
    final = encoder.negative_log_density(last, truths.rotations, truths.shifts_px - shifts, truths.latents)
    return {
        "cells": nn.functional.cross_entropy(logits, encoder.coarse_cell(truth.rotations)),
        "modes": nn.functional.cross_entropy(last.score.unflatten(0, (count, -1)), right),
        "glance": (glance * near).mean(),
        "look": look[chosen].mean(),
        "last_look": final[chosen].mean(),
    }


def without_specks(gradient: Tensor) -> Tensor:
    """A gradient whose entries are zero where they are next to nothing.

    Most cells have so little probability that their gradients lie below the least normal number, where many processors take far
    longer for a product.
    """
    return nn.functional.hardshrink(gradient, LEAST_GRADIENT)


def candidate_modes(
    encoder: PoseEncoder, logits: Tensor, truth: ImageStates, generator: torch.Generator
) -> tuple[Float[Tensor, "particle mode 3 3"], Int[Tensor, " particle"]]:
    """Modes that the encoder proposes, the last replaced by one near the truth where none is right; and which is right."""
    modes = encoder.modes(logits, encoder.settings.modes)
    missed = geodesic_angle(modes, truth.rotations[:, None]).min(1).values > BASIN
    tangent = NEARBY * torch.randn(len(missed), 3, generator=generator).to(modes)
    nearby = rotation_from_vector(tangent) @ truth.rotations
    modes[missed, -1] = nearby[missed]
    return modes, geodesic_angle(modes, truth.rotations[:, None]).argmin(1)


def real_loss(
    encoder: PoseEncoder,
    real: RealImages,
    count: int,
    generator: torch.Generator,
    largest_decrement: float = LARGEST_DECREMENT,
) -> tuple[Tensor, float]:
    """A loss with the gradient of the mean misfit of real images to the sections decoded at the means; and that misfit."""
    batch, centres = real.draw(count, encoder.max_shell, generator)
    sight = encoder.see(batch, centres)
    with torch.no_grad():
        rotations, shifts = best_guess(encoder, sight)
    found = encoder.local(encoder.polar_images(sight, shifts), sight.power, rotations, 2)
    turned, moved, latents = encoder.pose(found)
    seen = [value.detach().to(CPU) for value in (turned, shifts + moved, latents)]
    states = ImageStates(seen[0], centres + seen[1], torch.ones(count), seen[2])
    here = expand(batch, real.grid, states, real.priors.about(centres))
    kept = [index for index in range(here.descent.shape[1]) if index != CONTRAST]
    descent, hessian = (one.to(encoder.device) for one in (here.descent[:, kept], here.hessian[:, kept][:, :, kept]))
    decrement = (descent * torch.linalg.solve(hessian, descent)).sum(1)
    weight = decrement.clamp_min(1.0).div(largest_decrement).clamp_min(1.0).rsqrt()
    loss = -(weight[:, None] * descent * movement(encoder, found)).sum(1).mean()
    return loss, float(here.misfit.mean()) / len(batch.plane)


def best_guess(encoder: PoseEncoder, sight: Sight) -> tuple[Tensor, Tensor]:
    """Rotation and shift of the best mode after the second look."""
    moved = encoder.centred(sight)
    images = encoder.polar_images(sight, moved)
    best = encoder.modes(encoder.cell_logits(images, sight.power), 1)[:, 0]
    rotations, shifts, _ = encoder.pose(encoder.local(images, sight.power, best, 1))
    return rotations, shifts + moved


def movement(encoder: PoseEncoder, found: LocalPosterior) -> Float[Tensor, "particle parameter"]:
    """Zeros that move as the state does when the means move: left tangent of the rotation, shift and latent.

    With R = A exp(v) F the tangent is A J(v) dv, J the left Jacobian of the exponential map.
    """
    units = torch.cat([encoder.units[:CONTRAST], encoder.units[CONTRAST + 1 :]])
    change = (found.mean - found.mean.detach()) * units
    cross = cross_matrix((found.mean * units)[:, :3].detach())
    jacobian = torch.eye(3, device=cross.device) + cross / 2 + cross @ cross / 6
    angles = found.turn * (2 * math.pi / encoder.settings.angles)
    tangent = (in_plane_rotations(angles) @ jacobian @ change[:, :3, None])[..., 0]
    return torch.cat([tangent, turned_shifts(change[:, 3:5], angles), change[:, 5:]], dim=1)


def usual_power(renderer: Renderer, seed: int, count: int = 512) -> Float[Tensor, " radius"]:
    """Squared whitened CTF in every shell, averaged over images."""
    batch, _ = renderer.draw(count, torch.Generator().manual_seed(seed))
    return batch.plane.shell_mean(batch.modulation.square())[:, 1:].mean(0)
