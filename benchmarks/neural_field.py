"""Compare ways to write and to learn the neural field, at equal processor time, on one simulated set with known poses.

Every contender gets the same seconds of one core and ends as maps V_0 … V_q. They are scored by the likelihood gap
(L - L_closed) / (0 - L_closed), L_closed that of the closed-form (Wiener) maps, and by the correlation with the true maps in each
shell, relative to that of the closed-form maps: positive is better than the closed form.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import machine, started, truth_of, use_threads
from cryofire.config import FieldSettings, PrepareSettings, Settings
from cryofire.data.read import read_particles
from cryofire.formats.mrc import read_map
from cryofire.geometry.fourier import resample
from cryofire.geometry.grids import fourier_shell_correlation
from cryofire.inference.consensus import refinement_mask
from cryofire.inference.linear_model import back_project
from cryofire.inference.polish import ImageStates
from cryofire.physics.imaging import WhitenedImages
from cryofire.physics.shift import phase_ramp
from cryofire.training.stages import prepare
from cryofire.volumes.accumulator import GridSums, mean_density, solve_maps
from cryofire.volumes.halves import solve_halves, wiener_precision
from cryofire.volumes.neural_field import NeuralField, expected_amplitude
from cryofire.volumes.quadratic import MapQuadratic, map_quadratic, minimised
from cryofire.volumes.slice_field import FieldShape, SliceField
from neural_field_variants import ConditionedField, LinearPyramid, SpectrumField, WaveField

RESULT = Path(__file__).resolve().parent / "results" / "neural_field.json"
EXACT_SHARE = 0.3
"""Share of the time that the fits on voxels spend on the likelihood itself."""
TEMPERING = 0.5
"""There the terms of a shell are divided by (1 + snr) to this power: shells differ in curvature by orders of magnitude."""


@dataclass(frozen=True)
class Problem:
    """Sums of a set at true poses and labels, and what they are compared with."""

    images: WhitenedImages
    states: ImageStates
    sums: GridSums
    prior: Tensor
    closed: Tensor
    truths: list[tuple[Tensor, Tensor]]
    frame: NeuralField
    quadratic: MapQuadratic

    @property
    def box(self) -> int:
        """Box of the maps."""
        return self.frame.box

    def tempered(self) -> MapQuadratic:
        """L with its shells weighted, so that white answers of variance 1 have a loss of about 1."""
        likelihood, amplitude = self.quadratic, self.frame.amplitude[0]
        weights = (1 + mean_density(self.sums)[0] / self.prior[0]) ** -TEMPERING
        curvature = (weights * amplitude.square())[likelihood.shells] * likelihood.weights * likelihood.densities[0]
        factors = (weights / (curvature.sum() * len(self.frame.index)))[likelihood.shells]
        return replace(likelihood, weights=likelihood.weights * factors)

    def curves(self, maps: Tensor) -> Tensor:
        """Correlation of every decoded state with its true map, (state, shell)."""
        decoded = [maps[0] + torch.einsum("j,jzyx->zyx", latent, maps[1:]) for _, latent in self.truths]
        pairs = zip(decoded, self.truths, strict=True)
        return torch.stack([fourier_shell_correlation(one, truth) for one, (truth, _) in pairs])

    def score(self, maps: Tensor) -> dict[str, Any]:
        """Gap and correlations relative to the closed form."""
        best = float(self.quadratic.value(self.closed))
        gap = 1 - float(self.quadratic.value(maps)) / best
        difference = (self.curves(maps) - self.curves(self.closed))[:, 1 : self.frame.max_shell + 1]
        return {
            "likelihood_gap": gap,
            "fsc_difference_mean": difference.mean(1).tolist(),
            "fsc_difference_worst": difference.min(1).values.tolist(),
            "fsc_difference": difference.tolist(),
        }


def main() -> None:
    """Measure all contenders, or some."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", type=Path, help="folder of cryofire simulate")
    parser.add_argument("--box", type=int, default=32, help="working box")
    parser.add_argument("--seconds", type=float, default=20.0, help="processor time of each contender")
    parser.add_argument("--only", nargs="+", choices=sorted(CONTENDERS))
    parser.add_argument("--shared", action="store_true", help="other work shared the machine: times are upper bounds")
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    use_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        problem = problem_of(arguments.set, arguments.box, Path(folder))
        curves = problem.curves(problem.closed)[:, 1:].tolist()
        rows: dict[str, Any] = {"closed form": {"fsc": curves}}
        for name in arguments.only or CONTENDERS:
            rows[name] = measured(CONTENDERS[name], problem, arguments.seconds)
            print(
                f"{name:<28}", {key: value for key, value in rows[name].items() if key != "fsc_difference"}, flush=True
            )
            write(arguments, rows)


def write(arguments: argparse.Namespace, rows: dict[str, Any]) -> None:
    """Everything measured so far."""
    record = {
        "set": arguments.set.name, "box": arguments.box, "processor_seconds": arguments.seconds,
        "machine": machine(1), "machine_shared": arguments.shared, "contenders": rows,
    }  # fmt: skip
    arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def problem_of(folder: Path, box: int, work: Path) -> Problem:
    """Prepare the images and back-project them at the truth."""
    settings = Settings(prepare=PrepareSettings(box=box))
    prepared = prepare(started(work, read_particles(folder / "particles.star"), settings))
    truth = truth_of(folder / "truth.star", prepared)
    if truth.labels is None:
        raise SystemExit("the set has no true labels")
    labels = torch.from_numpy(truth.labels).long()
    latents = torch.nn.functional.one_hot(labels - 1)[:, 1:].float()
    centre, spread = latents.mean(0), latents.std(0)
    states = replace(truth.poses, latents=(latents - centre) / spread)
    sums = back_project(prepared.images, torch.arange(len(states)) % 2, states, prepared.images.plane.max_shell)
    mask = refinement_mask(box, settings.refine)
    maps = solve_halves(sums, mask, 0)
    prior = wiener_precision(mean_density(sums), maps.fsc[:, : sums.max_shell + 1])
    points = (torch.eye(len(centre) + 1)[:, 1:] - centre) / spread
    paths = [folder / f"state{index}.mrc" for index in range(len(points))]
    truths = [
        (resample(torch.from_numpy(read_map(path)[0].copy()).float(), box, 3) * mask, point)
        for path, point in zip(paths, points, strict=True)
    ]
    frame = fresh_field(prior, box)
    return Problem(prepared.images, states, sums, prior, maps.joint, truths, frame, map_quadratic(sums, prior, box))


def fresh_field(prior: Tensor, box: int) -> NeuralField:
    """The field as it is delivered, before it has learnt anything."""
    settings = FieldSettings()
    return NeuralField(settings, box, expected_amplitude(prior, settings, box), torch.Generator().manual_seed(0))


def measured(contender: Callable[[Problem, float], Tensor], problem: Problem, seconds: float) -> dict[str, Any]:
    """Scores of a contender after `seconds` of processor time."""
    torch.manual_seed(0)
    start = time.process_time()
    maps = contender(problem, seconds)
    return {"processor_s": time.process_time() - start, **problem.score(maps)}


def descend(
    parameters: list[dict[str, Any]], loss: Callable[[float], Tensor], seconds: float, betas: tuple[float, float]
) -> int:
    """Number of Adam's steps taken in `seconds`; the rates given fall on a half cosine."""
    optimiser = torch.optim.Adam(parameters, betas=betas)
    rates = [group["lr"] for group in optimiser.param_groups]
    start, step = time.process_time(), 0
    while (share := (time.process_time() - start) / seconds) < 1:
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / 10) * (0.5 + 0.5 * math.cos(math.pi * share))
        optimiser.zero_grad()
        loss(share).backward()
        optimiser.step()
        step += 1
    print(f"  {step} steps", flush=True)
    return step


def fitted_on_voxels(problem: Problem, network: nn.Module, seconds: float, rate: float, network_rate: float) -> Tensor:
    """Maps of a network that answers at all voxels of the support: first the whitened closed-form maps, then the likelihood."""
    lattices = [value for name, value in network.named_parameters() if name.startswith("lattices")]
    others = [value for name, value in network.named_parameters() if not name.startswith("lattices")]
    groups = [{"params": values, "lr": one} for values, one in ((lattices, rate), (others, network_rate)) if values]

    frame, tempered = problem.frame, problem.tempered()
    target = frame.whitened(solve_maps(problem.sums, problem.box, problem.prior))

    def loss(share: float) -> Tensor:
        answers = network()
        if share < 1 - EXACT_SHARE:
            return (answers - target).square().mean(0).sum()
        return tempered.value(frame.support * frame.filtered(answers))

    descend(groups, loss, seconds, (0.9, 0.98))
    with torch.no_grad():
        return frame.support * frame.filtered(network())


def completed(problem: Problem, seconds: float) -> Tensor:
    """The delivered field: whatever the network says, voxels beside it take the conjugate gradients to the likelihood."""
    start, support = time.process_time(), problem.frame.support
    closed = solve_maps(problem.sums, problem.box, problem.prior)
    density, steps = closed, 0
    while time.process_time() - start < seconds:
        steps = max(2 * steps, 2)
        density = minimised(problem.quadratic, support, closed, steps, lambda loss: None)
    print(f"  {steps} steps", flush=True)
    return support * density


def lattices(problem: Problem, seconds: float) -> Tensor:
    """Lattices of features, basis fields from one network."""
    return fitted_on_voxels(problem, fresh_field(problem.prior, problem.box), seconds, 0.02, 0.006)


def lattices_conditioned(modulated: bool) -> Callable[[Problem, float], Tensor]:
    """The same lattices, the latent entering the network."""
    return lambda problem, seconds: fitted_on_voxels(
        problem, ConditionedField(problem.frame, modulated), seconds, 0.02, 0.006
    )


def lattices_linear(problem: Problem, seconds: float) -> Tensor:
    """The lattices alone, without a network."""
    return fitted_on_voxels(problem, LinearPyramid(problem.frame), seconds, 0.02, 0.0)


def waves(problem: Problem, seconds: float) -> Tensor:
    """Random Fourier features of the position and a wider network, on the 3-D grid once a step."""
    return fitted_on_voxels(problem, WaveField(problem.frame), seconds, 0.0, 2e-3)


def spectrum_points(problem: Problem, seconds: float) -> Tensor:
    """A network over frequencies, fitted to random points of the grid of sums."""
    field = SpectrumField(problem.frame, problem.quadratic)
    descend(
        [{"params": list(field.parameters()), "lr": 2e-3}], lambda _: field.sampled_loss(4096), seconds, (0.9, 0.99)
    )
    with torch.no_grad():
        return field.maps() * problem.frame.support


def slices(problem: Problem, seconds: float) -> Tensor:
    """A network over frequencies with z concatenated, evaluated on the slice of every image."""
    count = problem.states.latents.shape[1]
    modulus = problem.prior[0, 1:].reciprocal().mean().sqrt()
    field = SliceField(FieldShape(problem.box, count), float(modulus), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)

    def loss(_: float) -> Tensor:
        rows = torch.randint(len(problem.images), (32,), generator=generator)
        here = problem.states.take(rows)
        batch = problem.images.batch(rows, problem.frame.max_shell)
        sections = field(here.rotations, here.latents, batch.plane)
        ramp = phase_ramp(here.shifts_px, batch.plane.frequencies, problem.box)
        return (batch.data - batch.modulation * ramp * sections).abs().square().mean()

    descend([{"params": list(field.parameters()), "lr": 1e-3}], loss, seconds, (0.9, 0.99))
    mean = field.volume(torch.zeros(count))
    return torch.stack([mean, *(field.volume(one) - mean for one in torch.eye(count))]) * problem.frame.support


CONTENDERS: dict[str, Callable[[Problem, float], Tensor]] = {
    "lattices completed by voxels": completed,
    "lattices": lattices,
    "lattices, z concatenated": lattices_conditioned(False),
    "lattices, z modulating": lattices_conditioned(True),
    "lattices without network": lattices_linear,
    "waves on the voxels": waves,
    "spectrum, random points": spectrum_points,
    "spectrum, slice per image": slices,
}


if __name__ == "__main__":
    main()
