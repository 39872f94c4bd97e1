"""Images of something else than the particle are left out before conformations are looked for: each would be one of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from cryofire.inference.assign import Assignment
from cryofire.inference.consensus import Refinement, start_refinement
from cryofire.inference.unexplained import unexplained
from cryofire.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cryofire.training.progress import measured_stage
from cryofire.training.stages import Prepared, Run

OUTLIERS, ALL = "outliers", "outliers_all"
"""Names of the stage for the images that are searched, and for all of them."""
KEPT = "kept"


def leave_out_outliers(run: Run, part: Prepared, assigned: Assignment) -> tuple[Prepared, Assignment]:
    """The images and their states against the first map, without outliers."""

    def first() -> Refinement:
        return start_refinement(
            part.images, part.half, assigned.states, run.settings.search.last_shell, run.settings.refine
        )

    kept = _kept(run, OUTLIERS, first)
    return (part, assigned) if len(kept) == len(part.images) else (part.keeping(kept), assigned.take(kept))


def leave_out_all_outliers(run: Run, prepared: Prepared, spread: Refinement) -> tuple[Prepared, Refinement]:
    """All images and their refinement, poses of most being those of the encoder, without outliers."""
    kept = _kept(run, ALL, lambda: spread)
    return (prepared, spread) if len(kept) == len(spread.states) else (prepared.keeping(kept), spread.among(kept))


def _kept(run: Run, stage: str, refined: Callable[[], Refinement]) -> Int[Tensor, " kept"]:
    """Images of a refinement that are no outliers, found once in a run."""
    path = run.folder.checkpoint(stage)
    if not path.exists():
        with measured_stage(run.folder, stage):
            save_checkpoint(path, Checkpoint({KEPT: _judged(run, stage, refined())}, {}))
    return load_checkpoint(path).tensors[KEPT]


def _judged(run: Run, stage: str, refined: Refinement) -> Int[Tensor, " kept"]:
    count = len(refined.states)
    shell = min(run.settings.search.last_shell, refined.images.plane.max_shell)
    found = unexplained(refined.images, refined.states, refined.model, torch.arange(count), shell).outliers()
    left_out = int(found.sum())
    run.folder.append_metrics({"stage": stage, "left_out": left_out})
    if left_out:
        run.say(f"{left_out} of {count} images show something else than the particle and are left out")
    return (~found).nonzero()[:, 0]
