"""Encode images that a run has not seen, score them against their truth, and time it.

    python benchmarks/unseen.py RUN SET/particles.star --truth SET/truth.star [--json benchmarks/results/unseen.json]

Bounds are those of a two-state set made like the default of ``cryofire simulate``, learnt from 10 000 images and scored on others.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from common import machine, unseen_parser, use_threads, write_rows
from cryofire.analysis.evaluate import evaluate_estimates
from cryofire.api import Reconstruction
from cryofire.data.read import read_particles
from cryofire.inference.whitening import measure_set
from cryofire.training.encode import checked_encoder, new_images

BOUNDS = {
    0: {"viewing_median_deg": 2.5, "confusion_unsupervised": 1e-2},
    2: {"viewing_median_deg": 0.45, "confusion_unsupervised": 1e-3},
}
SPEED = 1000.0
COVERED = (0.85, 0.95)


def main() -> int:
    """Score, print, write; the exit status says whether every bound was met."""
    arguments = parser().parse_args()
    use_threads(arguments.threads)
    reconstruction = Reconstruction.load(arguments.run)
    rows = [scored(reconstruction, arguments, polish) for polish in BOUNDS]
    rows[0]["encoder_images_per_s"] = encoder_speed(reconstruction, arguments.particles)
    for row in rows:
        print(json.dumps(row, indent=1))
    if arguments.json is not None:
        name = f"{arguments.run.name} → {arguments.particles.parent.name}"
        named = [{"name": name, "machine_shared": arguments.shared, **row} for row in rows]
        write_rows(arguments.json, machine(arguments.threads), named, key=("name", "polish"))
    return 0 if all(row["within_bounds"] for row in rows) else 1


def parser() -> argparse.ArgumentParser:
    """Command line."""
    result = unseen_parser(__doc__)
    result.add_argument("--threads", type=int, default=2)
    return result


def scored(reconstruction: Reconstruction, arguments: argparse.Namespace, polish: int) -> dict[str, Any]:
    """Scores and times of one way to encode."""
    wall, cpu = time.perf_counter(), time.process_time()
    estimates = reconstruction.encode(arguments.particles, polish)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found = evaluate_estimates(estimates, arguments.truth, f"polish {polish}")
    row: dict[str, Any] = {
        "polish": polish,
        "particles": len(estimates),
        "viewing_median_deg": found.poses.direction_median_deg,
        "viewing_mean_deg": found.poses.direction_mean_deg,
        "rotation_median_deg": found.poses.rotation_median_deg,
        "shift_squared_median_px": found.poses.shift_median_px2,
        "confusion_unsupervised": found.states.confusion_mixture,
        "confusion_states": found.states.confusion_states,
        "coordinate_correlation": found.states.coordinate_correlation,
        "rotation_coverage": found.poses.rotation_coverage,
        "rotation_coverage_own_frame": found.poses.rotation_coverage_own_frame,
        "shift_coverage": found.poses.shift_coverage,
        "wall_s": wall,
        "cpu_s": cpu,
        "images_per_s": len(estimates) / wall,
    }
    bounds = BOUNDS[polish]
    row["within_bounds"] = all(row[name] is None or row[name] <= bound for name, bound in bounds.items())
    return row


def encoder_speed(reconstruction: Reconstruction, particles: Path, seconds: float = 5.0) -> float:
    """Images a second of the encoder alone, on images that are whitened already."""
    model = reconstruction.model
    encoder = checked_encoder(model, 0)
    table = read_particles(particles)
    images = new_images(table, model, encoder)
    whitening, _ = measure_set(images, torch.arange(len(table)).numpy(), model.reference, model.power())
    piece = next(iter(images.pieces(torch.arange(min(256, len(table))).numpy(), whitening, lambda _: None)))
    batch = piece.batch.truncated(encoder.max_shell)
    encoder.posterior(batch, piece.centres_px)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        encoder.posterior(batch, piece.centres_px)
        count += len(piece.centres_px)
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
