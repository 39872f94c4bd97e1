"""The field stage: the neural field learns from the polished images, and every image is polished once more against the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryofire.config import FieldSettings, RefineSettings
from cryofire.errors import FileFormatError
from cryofire.inference.consensus import Refinement, refinement_mask
from cryofire.inference.field_fit import fit_field
from cryofire.inference.linear_model import PassPlan, PassResult, back_project, run_pass
from cryofire.inference.polish import LATENT
from cryofire.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    refinement_checkpoint,
    refinement_from,
    save_checkpoint,
)
from cryofire.training.progress import measured_stage
from cryofire.training.stages import Prepared, Run
from cryofire.volumes.accumulator import GridSums, mean_density
from cryofire.volumes.halves import component_fsc, unfiltered_halves, wiener_precision
from cryofire.volumes.neural_field import NeuralField

FIELD = "field."
"""Prefix of the field's tensors in the checkpoint."""

FIELD_FILE = "field.safetensors"


def learn_field(run: Run, prepared: Prepared, polished: Refinement) -> tuple[NeuralField, Refinement]:
    """The field, and the refinement with its maps and with every pose and latent polished against them."""
    path = run.folder.checkpoint("field")
    if not path.exists():
        with measured_stage(run.folder, "field"):
            field, final = _learnt(run, prepared, polished)
            refined = refinement_checkpoint(final)
            weights, values = field_parts(field)
            tensors = {**refined.tensors, **{FIELD + name: tensor for name, tensor in weights.items()}}
            save_checkpoint(path, Checkpoint(tensors, {"refinement": refined.values, **values}))
    checkpoint = load_checkpoint(path)
    weights = {name.removeprefix(FIELD): value for name, value in checkpoint.tensors.items() if name.startswith(FIELD)}
    refined = Checkpoint(checkpoint.tensors, checkpoint.values["refinement"])
    return field_from(weights, checkpoint.values, path), refinement_from(refined, prepared.images)


def _learnt(run: Run, prepared: Prepared, polished: Refinement) -> tuple[NeuralField, Refinement]:
    settings = run.settings
    total = settings.field.steps + settings.field.warm_steps + 2 * settings.field.exact_steps
    run.progress.start("field", total + len(prepared.images))
    limit = polished.images.plane.max_shell
    sums = back_project(polished.images, prepared.half, polished.states, limit, spread=polished.deviations[:, LATENT:])
    field = _fitted(run, prepared.grid.box, sums, None)
    result = _pass_against(field, prepared, polished, settings.refine, run)
    field = _fitted(run, prepared.grid.box, result.sums, field)
    run.progress.finish()
    run.say(
        f"field: {sum(weight.numel() for weight in field.parameters())} weights; poses moved by "
        f"{torch.tensor(result.rotation_change).rad2deg():.3f}° against it"
    )
    final = replace(
        polished, states=result.states, deviations=result.deviations, misfit=result.misfit,
        rotation_change=result.rotation_change, shift_change_px=result.shift_change_px,
        model=replace(polished.model, maps=replace(polished.model.maps, joint=field.maps())),
    )  # fmt: skip
    return field, final


def _pass_against(
    field: NeuralField, prepared: Prepared, polished: Refinement, settings: RefineSettings, run: Run
) -> PassResult:
    """Every image polished against the field's maps, and back-projected."""
    model = replace(polished.model, maps=replace(polished.model.maps, joint=field.maps()))
    plan = PassPlan(polished.shell, polished.images.plane.max_shell, settings.steps, joint=True)
    return run_pass(polished.images, prepared.half, polished.states, model, plan, run.progress.advance)


def _fitted(run: Run, box: int, sums: GridSums, field: NeuralField | None) -> NeuralField:
    """A field for back-projection sums, with a prior from the agreement of the halves."""
    mask = refinement_mask(box, run.settings.refine)
    agreement = component_fsc(*unfiltered_halves(sums, mask))[:, : sums.max_shell + 1]
    prior = wiener_precision(mean_density(sums), agreement)

    def report(step: int, loss: float) -> None:
        run.folder.append_metrics({"stage": "field", "step": step, "loss": loss})
        run.progress.advance(1)

    return fit_field(sums, prior, box, field, run.settings.field, run.settings.seed, report)


def field_parts(field: NeuralField) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and plain values of a field."""
    return dict(field.state_dict()), {"settings": asdict(field.settings), "box": field.box}


def field_from(tensors: Mapping[str, Tensor], values: Mapping[str, Any], path: Path) -> NeuralField:
    """A field from its weights and plain values.

    Raises
    ------
    FileFormatError
        This version does not know the field.
    """
    try:
        settings = FieldSettings(**values["settings"])
        field = NeuralField(settings, values["box"], tensors["amplitude"], torch.Generator())
        field.load_state_dict(dict(tensors))
    except (KeyError, TypeError, RuntimeError) as error:
        raise FileFormatError(
            "the field of the model is of a kind that this version cannot read",
            file=path,
            hint="use the version of cryofire that wrote it, or a later one",
        ) from error
    field.requires_grad_(False)
    return field


def save_field(folder: Path, field: NeuralField) -> None:
    """Write the field of a delivered model beside its maps."""
    save_checkpoint(folder / FIELD_FILE, Checkpoint(*field_parts(field)))


def load_field(folder: Path) -> NeuralField:
    """The field of a delivered model.

    Raises
    ------
    RunFolderError
        There is none, or the file is damaged.
    FileFormatError
        This version does not know the field.
    """
    checkpoint = load_checkpoint(folder / FIELD_FILE)
    return field_from(checkpoint.tensors, checkpoint.values, folder / FIELD_FILE)
