"""Images of something else than the particle are left out before conformations are looked for: each would be one of its own."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cryofire.inference.consensus import Refinement, start_refinement
from cryofire.inference.linear_model import LinearModel
from cryofire.inference.polish import ImageStates
from cryofire.inference.unexplained import unexplained
from cryofire.physics.imaging import WhitenedImages
from cryofire.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cryofire.training.progress import measured_stage
from cryofire.training.stages import Prepared, Run

OUTLIERS, ALL = "outliers", "outliers_all"
"""Names of the stage for the images that are searched, and for all of them."""
KEPT = "kept"


def leave_out_outliers(run: Run, part: Prepared, states: ImageStates) -> tuple[Prepared, ImageStates]:
    """The images and their states against the first map, without outliers."""

    def judged() -> Bool[Tensor, " particle"]:
        shell = run.settings.search.last_shell
        first = start_refinement(part.images, part.half, states, shell, run.settings.refine)
        return _outliers(run, first.images, first.states, first.model)

    path = run.folder.checkpoint(OUTLIERS)
    if not path.exists():
        with measured_stage(run.folder, OUTLIERS):
            _save(run, OUTLIERS, judged())
    kept = load_checkpoint(path).tensors[KEPT]
    return (part, states) if len(kept) == len(states) else (part.among(kept), states.take(kept))


def leave_out_all_outliers(run: Run, prepared: Prepared, spread: Refinement) -> tuple[Prepared, Refinement]:
    """All images and their refinement, poses of most being those of the encoder, without outliers."""
    path = run.folder.checkpoint(ALL)
    if not path.exists():
        with measured_stage(run.folder, ALL):
            _save(run, ALL, _outliers(run, spread.images, spread.states, spread.model))
    kept = load_checkpoint(path).tensors[KEPT]
    return (prepared, spread) if len(kept) == len(spread.states) else (prepared.among(kept), spread.among(kept))


def _outliers(run: Run, images: WhitenedImages, states: ImageStates, model: LinearModel) -> Bool[Tensor, " particle"]:
    shell = min(run.settings.search.last_shell, images.plane.max_shell)
    return unexplained(images, states, model, torch.arange(len(images)), shell).outliers()


def _save(run: Run, stage: str, found: Bool[Tensor, " particle"]) -> None:
    kept: Int[Tensor, " kept"] = (~found).nonzero()[:, 0]
    count = len(found) - len(kept)
    run.folder.append_metrics({"stage": stage, "left_out": count})
    if count:
        run.say(f"{count} of {len(found)} images show something else than the particle and are left out")
    save_checkpoint(run.folder.checkpoint(stage), Checkpoint({KEPT: kept}, {}))
