"""Whether bfloat16 makes the encoder faster on this machine, and what it costs in accuracy.

    python benchmarks/precision.py RUN SET/particles.star [--json benchmarks/results/precision.json]

The same whitened images pass the delivered encoder in single precision and with its matrix products in bfloat16 (autocast),
in turns.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import numpy as np
import torch

from common import machine, unseen_parser, write_rows
from cryofire.data.read import read_particles
from cryofire.geometry.rotations import viewing_angle
from cryofire.inference.whitening import measure_set
from cryofire.training.encode import checked_encoder, new_images
from cryofire.training.model_file import load_model

PRECISIONS = {"float32": False, "bfloat16": True}
ROUNDS = 20


def main() -> int:
    """Measure in turns, print, write."""
    arguments = unseen_parser(__doc__, scored=False).parse_args()
    model, table = load_model(arguments.run), read_particles(arguments.particles)
    encoder = checked_encoder(model, 0)
    images = new_images(table, model, encoder)
    everything = np.arange(len(table))
    whitening, _ = measure_set(images, everything, model.reference, model.power())
    pieces = [
        piece for piece, _ in zip(images.pieces(everything, whitening, lambda _: None), range(ROUNDS), strict=False)
    ]
    seconds = dict.fromkeys(PRECISIONS, 0.0)
    found: dict[str, list[torch.Tensor]] = {name: [] for name in PRECISIONS}
    for piece in pieces:
        batch = piece.batch.truncated(encoder.max_shell)
        for name, halved in PRECISIONS.items():
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=halved):
                start = time.perf_counter()
                posterior = encoder.posterior(batch, piece.centres_px)
                seconds[name] += time.perf_counter() - start
            found[name].append(posterior.rotations[:, 0].float())
    count = sum(len(piece.rows) for piece in pieces)
    moved = viewing_angle(torch.cat(found["float32"]), torch.cat(found["bfloat16"]))
    row: dict[str, Any] = {
        "set": arguments.run.name, "box": model.grid.box, "machine_shared": arguments.shared,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "images_per_s": {name: count / value for name, value in seconds.items()},
        "viewing_moved_median_deg": math.degrees(float(moved.median())),
        "viewing_moved_far": float((moved > math.radians(5)).float().mean()),
    }  # fmt: skip
    print(row)
    if arguments.json is not None:
        write_rows(arguments.json, machine(torch.get_num_threads()), [row], key=("set",))
    return 0


if __name__ == "__main__":
    sys.exit(main())
