"""What each part of the encoder and of its teaching is worth, at equal wall time, on images that the run has not seen.

    python benchmarks/ablations.py RUN SET/particles.star --truth SET/truth.star --seconds 60
        [--json benchmarks/results/ablations.json]

An exhaustive search of every image comes first: it has nothing to learn, and its whole time goes into the images. The
encoders that are taught here start from the same untaught one, looking at the run's final maps. The run's own encoder was
taught before the last polish: it is scored looking at the maps it was taught with (decoder and encoder learnt one after the
other), at the final maps (as delivered), and after being taught on with them.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from common import finished, machine, unseen_parser, write_rows
from cryofire.analysis.evaluate import evaluate_estimates
from cryofire.arrays import Shifts
from cryofire.config import AmortiseSettings, SearchSettings
from cryofire.data.read import read_particles
from cryofire.inference.assign import SEPARATION, PoseGrid, polish_centred
from cryofire.inference.consensus import Refinement
from cryofire.inference.encode import Encoder
from cryofire.inference.encoder import PoseEncoder
from cryofire.inference.polish import POSE, ImageStates, posterior_covariance
from cryofire.inference.posterior import Posterior
from cryofire.inference.search import search_shifts
from cryofire.inference.shift_grid import ShiftGrid
from cryofire.inference.teaching import RealImages, teach, usual_power
from cryofire.physics.imaging import ImageBatch
from cryofire.physics.projection import spectrum_grid
from cryofire.training.amortise import amortisation_gap, new_encoder, renderer_of
from cryofire.training.checkpoint import load_checkpoint, refinement_within
from cryofire.training.encode import encode_particles
from cryofire.training.model_file import DeliveredModel, load_model
from cryofire.training.stages import Prepared, Run, adapted_search, prepare

TAUGHT = {
    "banks alone, nothing learnt": (0, 0),
    "rendered images only": (256, 0),
    "real images only": (0, 256),
    "rendered and real images": (192, 64),
}
"""Encoders taught here: rendered and real images of each update."""
TAUGHT_ON_RATE = 5e-4
TIMED = 10
"""Updates that are timed to know how many fit."""


@dataclass(frozen=True)
class Subject:
    """What the variants start from."""

    run: Run
    prepared: Prepared
    final: Refinement
    model: DeliveredModel


@dataclass(frozen=True)
class Learnt:
    """An encoder and the time it took to learn; nothing for one that has nothing to learn."""

    encoder: Encoder
    seconds: float = 0.0
    steps: int = 0


def main() -> int:
    """Make each variant, score it, write the rows."""
    arguments = parser().parse_args()
    run = finished(arguments.run)
    prepared = prepare(run)
    final = refinement_within(load_checkpoint(run.folder.checkpoint("field")), prepared.images)
    subject = Subject(run, prepared, final, load_model(arguments.run))
    rows = []
    for name, make in variants(arguments.seconds).items():
        if arguments.only is None or arguments.only in name:
            rows.append(scored(arguments, subject, name, make(subject)))
            print(rows[-1], flush=True)
    if arguments.json is not None:
        write_rows(arguments.json, machine(torch.get_num_threads()), rows, key=("set", "name"))
    return 0


def parser() -> argparse.ArgumentParser:
    """Command line."""
    result = unseen_parser(__doc__)
    result.add_argument("--seconds", type=float, default=60.0, help="time that each variant learns")
    result.add_argument("--only", help="variants with this in their name")
    return result


def variants(seconds: float) -> dict[str, Callable[[Subject], Learnt]]:
    """Every variant by name."""
    taught = {name: partial(taught_here, sizes=sizes, seconds=seconds) for name, sizes in TAUGHT.items()}
    return {
        "search only: every image against the map of every state": lambda subject: Learnt(StateSearch(subject)),
        **taught,
        "the run's own, at the maps it was taught with": before_polish,
        "the run's own, at the final maps": lambda subject: Learnt(own_encoder(subject)),
        "the run's own, taught on with the final maps": partial(taught_on, seconds=seconds),
    }


def scored(arguments: argparse.Namespace, subject: Subject, name: str, learnt: Learnt) -> dict[str, Any]:
    """Scores of one variant."""
    start = time.perf_counter()
    estimates = encode_particles(read_particles(arguments.particles), replace(subject.model, encoder=learnt.encoder))
    wall = time.perf_counter() - start
    found = evaluate_estimates(estimates, arguments.truth, name)
    row = {
        "set": f"{arguments.run.name} → {arguments.particles.parent.name}", "name": name,
        "machine_shared": arguments.shared, "seconds": learnt.seconds, "steps": learnt.steps, "encode_s": wall,
        "viewing_median_deg": found.poses.direction_median_deg, "viewing_mean_deg": found.poses.direction_mean_deg,
        "shift_squared_median_px": found.poses.shift_median_px2,
        "confusion_unsupervised": found.states.confusion_mixture,
        "rotations_inside_90_region": found.poses.rotation_coverage_own_frame[1],
    }  # fmt: skip
    if isinstance(learnt.encoder, PoseEncoder):
        gap = amortisation_gap(learnt.encoder, real_images(subject), subject.final.states)
        row |= {"gap_deg": math.degrees(gap.rotation), "gap_nats": gap.nats}
    return row


def real_images(subject: Subject) -> RealImages:
    """Images that the run learnt from, with the final maps as decoder."""
    shell = min(subject.run.settings.encoder.max_shell, subject.final.images.plane.max_shell)
    grid = spectrum_grid(subject.final.model.maps.joint, shell)
    return RealImages(subject.final.images, subject.prepared.centres.shifts_px, grid, subject.final.model.priors)


def taught_here(subject: Subject, sizes: tuple[int, int], seconds: float) -> Learnt:
    """An encoder taught from nothing with so many rendered and real images of each update."""
    encoder = new_encoder(subject.run, subject.prepared, subject.final)
    encoder.usual_power.copy_(usual_power(renderer_of(encoder, subject.final), 0))
    rendered, real = sizes
    if rendered + real == 0:
        return Learnt(encoder)
    return taught(subject, encoder, AmortiseSettings(batch=rendered, real=real), seconds)


def own_encoder(subject: Subject) -> PoseEncoder:
    """A copy of the encoder that the run delivered."""
    encoder = subject.model.encoder
    if not isinstance(encoder, PoseEncoder):
        raise SystemExit("the run delivered no encoder")
    result = copy.deepcopy(encoder)
    result.look_at(subject.model.maps)
    return result


def before_polish(subject: Subject) -> Learnt:
    """The run's encoder, looking at the maps as they were when it was taught."""
    encoder = own_encoder(subject)
    checkpoint = load_checkpoint(subject.run.folder.checkpoint("frames"))
    encoder.look_at(refinement_within(checkpoint, subject.prepared.images).model.maps.joint)
    return Learnt(encoder)


def taught_on(subject: Subject, seconds: float) -> Learnt:
    """The run's encoder, taught on with the final maps."""
    return taught(subject, own_encoder(subject), AmortiseSettings(rate=TAUGHT_ON_RATE), seconds)


def taught(subject: Subject, encoder: PoseEncoder, settings: AmortiseSettings, seconds: float) -> Learnt:
    """Teach for about so many seconds, after timing a few updates; the first ones, in which memory is found, do not count."""
    renderer, images = renderer_of(encoder, subject.final), real_images(subject)
    trial, marks = copy.deepcopy(encoder), []
    for _ in teach(trial, renderer, images, replace(settings, steps=TIMED + 5), 0):
        marks.append(time.perf_counter())
    steps = max(round(TIMED * seconds / (marks[-1] - marks[-1 - TIMED])), 1)
    start = time.perf_counter()
    for _ in teach(encoder, renderer, images, replace(settings, steps=steps), 0):
        pass
    return Learnt(encoder, time.perf_counter() - start, steps)


class StateSearch:
    """An exhaustive search against the map of every state, in the place of an encoder; it ends with the search's polish."""

    def __init__(self, subject: Subject) -> None:
        self.settings: SearchSettings = adapted_search(subject.run, subject.prepared)
        self.max_shell = self.settings.last_shell
        self.centres = torch.from_numpy(subject.model.latents.centers).float()
        self.grids = [spectrum_grid(subject.model.decode(one)[None], self.max_shell) for one in self.centres]
        plane = subject.final.images.plane.truncated(self.max_shell)
        self.poses = [PoseGrid.of(grid, plane, self.settings.rotations) for grid in self.grids]
        self.shifts: ShiftGrid = search_shifts(subject.prepared.grid.box, self.settings)

    def posterior(self, batch: ImageBatch, centres_px: Shifts) -> Posterior:
        """One mode for each state, likeliest first."""
        found, values, covariances = [], [], []
        for grid, poses, centre in zip(self.grids, self.poses, self.centres, strict=True):
            first, second = (
                polish_centred(batch, grid, mode, centres_px)
                for mode in poses.modes(batch, centres_px, self.shifts, 2, SEPARATION)
            )
            is_first = first.expansion.value < second.expansion.value
            states = first.states.where(is_first, second.states)
            covariance = posterior_covariance(first.expansion).where(
                is_first[:, None, None], posterior_covariance(second.expansion)
            )
            found.append(replace(states, latents=centre.repeat(len(states), 1)))
            values.append(torch.minimum(first.expansion.value, second.expansion.value))
            covariances.append(with_latents(covariance[:, :POSE, :POSE], len(centre)))
        return ranked(found, torch.stack(values, dim=1), torch.stack(covariances, dim=1))


def with_latents(pose: torch.Tensor, components: int) -> torch.Tensor:
    """Covariance of poses, enlarged by latents that are taken to be the centre of a state."""
    size = POSE + components
    result = 1e-6 * torch.eye(size).repeat(len(pose), 1, 1)
    result[:, :POSE, :POSE] = pose
    return result


def ranked(states: list[ImageStates], values: torch.Tensor, covariance: torch.Tensor) -> Posterior:
    """Posterior of one mode for each state, likeliest first."""
    order, image = values.argsort(dim=1), torch.arange(len(values))[:, None]
    return Posterior(
        (-values).softmax(1)[image, order],
        torch.stack([one.rotations for one in states], dim=1)[image, order],
        torch.stack([one.shifts_px for one in states], dim=1)[image, order],
        torch.stack([one.latents for one in states], dim=1)[image, order],
        covariance[image, order],
    )


if __name__ == "__main__":
    sys.exit(main())
