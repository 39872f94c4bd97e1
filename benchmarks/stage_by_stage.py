"""How far the poses and the latent space of a finished run had come after each of its stages, and at what time.

    python benchmarks/stage_by_stage.py RUN SET/truth.star [--json benchmarks/results/stage_by_stage.json]

The exhaustive search ends with `assign`; the encoder has its say from `opinion` on, the neural field in `field`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import finished, machine, posed_stages, write_rows
from cryofire.analysis.evaluate import evaluate_estimates
from cryofire.data.estimates import ParticleEstimates
from cryofire.inference.polish import ImageStates
from cryofire.training.stages import Prepared, prepare


def main() -> int:
    """Score each stage, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--shared", action="store_true", help="other work shared the machine: times are upper bounds")
    parser.add_argument("--json", type=Path, help="write the results there")
    arguments = parser.parse_args()
    run = finished(arguments.run)
    prepared = prepare(run)
    rows = []
    for name, wall, states in posed_stages(run, prepared):
        rows.append({"stage": name, "wall_s": wall, **stage_scores(states, prepared, len(run.table), arguments.truth)})
        print(json.dumps(rows[-1]), flush=True)
    if arguments.json is not None:
        row = {"set": arguments.truth.parent.name, "machine_shared": arguments.shared, "stages": rows}
        write_rows(arguments.json, machine(torch.get_num_threads()), [row], key=("set",))
    return 0


def stage_scores(states: ImageStates, prepared: Prepared, count: int, truth: Path) -> dict[str, Any]:
    """Errors of the poses that a stage left, and of states by its latents where it has some."""
    found = evaluate_estimates(without_uncertainty(states, prepared, count), truth, "stage")
    return {
        "viewing_median_deg": found.poses.direction_median_deg,
        "viewing_mean_deg": found.poses.direction_mean_deg,
        "shift_squared_median_px": found.poses.shift_median_px2,
        "confusion_unsupervised": found.states.confusion_mixture if states.latents.shape[1] else None,
    }


def without_uncertainty(states: ImageStates, prepared: Prepared, count: int) -> ParticleEstimates:
    """Poses and latents in the order of the table, with nothing known of their uncertainty or of states."""
    rows = prepared.rows

    def spread(values: np.ndarray, empty: float = np.nan) -> np.ndarray:
        full = np.full((count, *values.shape[1:]), empty)
        full[rows] = values
        return full

    unknown, used = np.full(count, np.nan), np.zeros(count, dtype=bool)
    used[rows] = True
    latents = spread(states.latents.numpy())
    return ParticleEstimates(
        rotations=spread(states.rotations.numpy()), shifts=spread(states.shifts_px.numpy() * prepared.grid.pixel_size),
        rotation_std=unknown, shift_std=unknown, latents=latents, latent_std=np.full(latents.shape, np.nan),
        state=np.zeros(count, dtype=np.int64), state_probability=unknown, path_position=unknown,
        contrast=spread(states.contrast.numpy()), log_likelihood=unknown, used=used,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
