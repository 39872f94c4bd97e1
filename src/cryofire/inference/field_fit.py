"""Learning the neural field from back-projection sums.

The sums are a sufficient statistic: for given poses, contrasts and latents the likelihood of all images is the quadratic L of
`volumes.quadratic`. The field g minimises it in two phases.

1. In the metric in which every shell counts alike, L is Σ_r |g(r) - g*(r)|² with g* the whitened closed-form maps. It needs no
   transform, so that most steps are passes of the network alone.
2. L itself, through the transform of the field onto the oversampled grid, with the terms of a shell divided by (1 + snr)^γ: the
   curvature of L differs between shells as 1 + snr does, by four orders of magnitude.

Both phases see every voxel at every step and take Adam's steps (Kingma & Ba 2015) on a half cosine.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryofire.config import FieldSettings
from cryofire.volumes.accumulator import GridSums, mean_density, solve_maps
from cryofire.volumes.neural_field import NeuralField, expected_amplitude
from cryofire.volumes.quadratic import MapQuadratic, map_quadratic

TEMPERING = 0.5
"""γ, between 0 (the likelihood alone) and 1 (all shells alike)."""

WARM_UP = 10
"""Steps over which the learning rate rises."""

NETWORK_RATE = 0.3
"""Learning rate of the network's weights relative to that of the features."""

Report = Callable[[int, float], None]


@dataclass(frozen=True)
class FieldTask:
    """What a field is fitted to.

    Attributes
    ----------
    target : Float[Tensor, "voxel coordinate"]
        g*, whitened closed-form maps.
    quadratic : MapQuadratic
    shell_weights : Float[Tensor, "shell"]
        Factors of the second phase, the curvature of the mean map summing to 1.
    """

    target: Float[Tensor, "voxel coordinate"]
    quadratic: MapQuadratic
    shell_weights: Float[Tensor, " shell"]


def fit_field(
    sums: GridSums,
    prior: Float[Tensor, "coordinate shell"],
    box: int,
    field: NeuralField | None,
    settings: FieldSettings,
    seed: int,
    report: Report,
) -> NeuralField:
    """A field that minimises L for the images in `sums`.

    Parameters
    ----------
    prior : Float[Tensor, "coordinate shell"]
        Precision of every coordinate in every shell, in units of the densities, as `halves.wiener_precision` gives it.
    field : NeuralField, optional
        Continue from this one, which stays as it is, with `settings.warm_steps` instead of `settings.steps`; its own size and
        amplitudes are kept.
    seed : int
        Of the first weights.
    report : callable
        Called with each step and its loss.
    """
    steps = settings.steps if field is None else settings.warm_steps
    if field is None:
        generator = torch.Generator().manual_seed(seed)
        fitted = NeuralField(settings, box, expected_amplitude(prior, settings, box), generator)
    else:
        fitted = copy.deepcopy(field)
    task = field_task(sums, prior, fitted)
    learn(fitted, task, steps, settings, report)
    return fitted


def field_task(sums: GridSums, prior: Float[Tensor, "coordinate shell"], field: NeuralField) -> FieldTask:
    """Target and quadratic for a field."""
    quadratic = map_quadratic(sums, prior, field.box)
    weights = (1 + mean_density(sums)[0] / prior[0]) ** -TEMPERING
    return FieldTask(
        field.whitened(solve_maps(sums, field.box, prior)), quadratic, weights / _curvature(quadratic, weights, field)
    )


def learn(field: NeuralField, task: FieldTask, steps: int, settings: FieldSettings, report: Report) -> None:
    """Both phases, in place; the field takes no gradients afterwards."""
    field.requires_grad_(True)
    network = [*field.coordinates.parameters(), *field.residual.parameters(), *field.output.parameters()]
    groups = [{"params": list(field.lattices)}, {"params": network}]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.98))
    total = steps + settings.exact_steps
    for step in range(total):
        rate = settings.learning_rate * scheduled(step, total)
        optimiser.param_groups[0]["lr"], optimiser.param_groups[1]["lr"] = rate, NETWORK_RATE * rate
        optimiser.zero_grad()
        loss = misfit(field, task) if step < steps else tempered(field, task)
        loss.backward()
        optimiser.step()
        report(step, float(loss.detach()))
    field.requires_grad_(False)


def misfit(field: NeuralField, task: FieldTask) -> Float[Tensor, ""]:
    """Mean over the support of |g - g*|²."""
    return (field() - task.target).square().mean(0).sum()


def tempered(field: NeuralField, task: FieldTask) -> Float[Tensor, ""]:
    """L with its shells weighted."""
    return task.quadratic.value(field.maps(), task.shell_weights)


def scheduled(step: int, total: int) -> float:
    """Learning rate relative to its maximum: a linear rise, then half a cosine to zero."""
    return min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / total))


def _curvature(quadratic: MapQuadratic, weights: Float[Tensor, " shell"], field: NeuralField) -> Tensor:
    """Σ_k w_k α (D + P) A² M: what makes the loss of white answers of variance 1 about 1."""
    shells = quadratic.shells
    scale = (weights * field.amplitude[0].square())[shells] * quadratic.weights * quadratic.densities[0]
    return scale.sum() * len(field.index)
