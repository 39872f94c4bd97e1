"""Learning the neural field from back-projection sums.

The sums are a sufficient statistic: for given poses, contrasts and latents the likelihood of all images is the quadratic L of
`volumes.quadratic`. The field m (A * g + d) is fitted to it in two phases.

1. The network g learns the whitened closed-form maps, in the metric in which every shell counts alike, with steps of Adam (Kingma
   & Ba 2015) on a half cosine that see every voxel.
2. The voxels d take what it leaves, such that the field minimises L inside its support: a linear problem, solved by conjugate
   gradients from the closed-form maps.

The curvature of L differs between shells as 1 + snr does, by four orders of magnitude. Descending L itself with Adam leaves the
lowest shells, on which the network's steps hardly act, wrong by a fifth of their amplitude and more.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from cryofire.config import FieldSettings
from cryofire.physics.devices import CPU
from cryofire.volumes.accumulator import GridSums, device_for, solve_maps
from cryofire.volumes.neural_field import NeuralField, expected_amplitude
from cryofire.volumes.quadratic import map_quadratic, minimised

WARM_UP = 10
"""Steps over which the learning rate rises."""

NETWORK_RATE = 0.3
"""Learning rate of the network's weights relative to that of the features."""

Report = Callable[[str, float], None]
"""Called after every step: "network" and the misfit, or "voxels" and L."""


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
        Keep the network of this one, which stays as it is: only the voxels change.
    seed : int
        Of the first weights.
    """
    device = device_for(sums.max_shell, sums.components)
    closed = solve_maps(sums, box, prior).to(device)
    if field is None:
        generator = torch.Generator().manual_seed(seed)
        fitted = NeuralField(settings, box, expected_amplitude(prior, settings, box), generator).to(device)
        learn(fitted, fitted.whitened(closed), settings, report)
    else:
        fitted = copy.deepcopy(field).to(device)
    quadratic = map_quadratic(sums.on(device), prior.to(device), box)
    fitted.complete(minimised(quadratic, fitted.support, closed, settings.exact_steps, partial(report, "voxels")))
    return fitted.to(CPU).requires_grad_(False)


def learn(
    field: NeuralField, target: Float[Tensor, "voxel coordinate"], settings: FieldSettings, report: Report
) -> None:
    """Steps of the network towards whitened maps, in place."""
    network = [*field.coordinates.parameters(), *field.residual.parameters(), *field.output.parameters()]
    groups = [{"params": list(field.lattices)}, {"params": network}]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.98))
    for step in range(settings.steps):
        rate = settings.learning_rate * scheduled(step, settings.steps)
        optimiser.param_groups[0]["lr"], optimiser.param_groups[1]["lr"] = rate, NETWORK_RATE * rate
        optimiser.zero_grad()
        loss = misfit(field, target)
        loss.backward()
        optimiser.step()
        report("network", float(loss.detach()))


def misfit(field: NeuralField, target: Float[Tensor, "voxel coordinate"]) -> Float[Tensor, ""]:
    """Mean over the support of |g - g*|²."""
    return (field() - target).square().mean(0).sum()


def scheduled(step: int, total: int) -> float:
    """Learning rate relative to its maximum: a linear rise, then half a cosine to zero."""
    return min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / total))
