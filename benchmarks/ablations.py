"""What each part of the encoder's teaching is worth, at equal wall time, on images that the run has not seen.

    python benchmarks/ablations.py RUN SET/particles.star --truth SET/truth.star --seconds 60
        [--json benchmarks/results/ablations.json]

Every row starts from the same untaught encoder looking at the run's final maps: nothing learnt (the banks alone), rendered images
only, real images only, and both.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from dataclasses import replace
from typing import Any

import torch

from common import finished, machine, unseen_parser
from cryofire.analysis.evaluate import evaluate_estimates
from cryofire.config import AmortiseSettings
from cryofire.data.read import read_particles
from cryofire.inference.encoder import PoseEncoder
from cryofire.inference.rendering import Renderer
from cryofire.inference.teaching import RealImages, teach, usual_power
from cryofire.training.amortise import new_encoder, renderer_of
from cryofire.training.checkpoint import load_checkpoint, refinement_within
from cryofire.training.encode import encode_particles
from cryofire.training.model_file import load_model
from cryofire.training.stages import prepare

VARIANTS = {
    "banks alone, nothing learnt": (0, 0),
    "rendered images only": (256, 0),
    "real images only": (0, 256),
    "rendered and real images": (192, 64),
}


def main() -> int:
    """Teach each variant for the same time, score it, write the rows."""
    arguments = parser().parse_args()
    rows = []
    for name, (rendered, real) in VARIANTS.items():
        rows.append(variant(arguments, name, rendered, real))
        print(json.dumps(rows[-1]), flush=True)
    if arguments.json is not None:
        content = {"machine": machine(torch.get_num_threads()), "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def parser() -> argparse.ArgumentParser:
    """Command line."""
    result = unseen_parser(__doc__)
    result.add_argument("--seconds", type=float, default=60.0)
    return result


def variant(arguments: argparse.Namespace, name: str, rendered: int, real: int) -> dict[str, Any]:
    """Scores of one variant."""
    run = finished(arguments.run)
    prepared = prepare(run)
    refined = refinement_within(load_checkpoint(run.folder.checkpoint("field")), prepared.images)
    encoder = new_encoder(run, prepared, refined)
    renderer = renderer_of(encoder, refined)
    encoder.usual_power.copy_(usual_power(renderer, 0))
    images = RealImages(refined.images, prepared.centres.shifts_px, renderer.grid, refined.model.priors)
    steps = taught(encoder, renderer, images, AmortiseSettings(batch=rendered, real=real), arguments.seconds)
    estimates = encode_particles(
        read_particles(arguments.particles), replace(load_model(arguments.run), encoder=encoder)
    )
    found = evaluate_estimates(estimates, arguments.truth, name)
    return {
        "name": name, "machine_shared": arguments.shared, "seconds": arguments.seconds if steps else 0.0, "steps": steps,
        "viewing_median_deg": found.poses.direction_median_deg, "viewing_mean_deg": found.poses.direction_mean_deg,
        "shift_squared_median_px": found.poses.shift_median_px2,
        "confusion_unsupervised": found.states.confusion_mixture,
        "rotations_inside_90_region": found.poses.rotation_coverage_own_frame[1],
    }  # fmt: skip


def taught(
    encoder: PoseEncoder, renderer: Renderer, images: RealImages, settings: AmortiseSettings, seconds: float
) -> int:
    """Teach for about so many seconds, after timing a few steps; the number of steps."""
    if settings.batch + settings.real == 0:
        return 0
    trial = copy.deepcopy(encoder)
    start = time.perf_counter()
    for _ in teach(trial, renderer, images, replace(settings, steps=4), 0):
        pass
    steps = max(round(4 * seconds / (time.perf_counter() - start)), 1)
    for _ in teach(encoder, renderer, images, replace(settings, steps=steps), 0):
        pass
    return steps


if __name__ == "__main__":
    sys.exit(main())
