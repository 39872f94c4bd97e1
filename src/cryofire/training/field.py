"""The field stage: the neural field learns from the polished images, and every image is polished once more against the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryofire.arrays import Volume
from cryofire.config import FieldSettings
from cryofire.inference.consensus import Refinement, refinement_mask
from cryofire.inference.field_fit import fit_field
from cryofire.inference.linear_model import PassPlan, back_project, predicted, run_pass
from cryofire.inference.map_noise import MapNoise, measure_map_noise
from cryofire.inference.polish import LATENT
from cryofire.physics.imaging import batches
from cryofire.physics.projection import spectrum_grid
from cryofire.training.checkpoint import (
    Checkpoint,
    building,
    load_checkpoint,
    refinement_beside,
    refinement_within,
    save_checkpoint,
)
from cryofire.training.progress import measured_stage
from cryofire.training.stages import Prepared, Run, held
from cryofire.volumes.accumulator import GridSums
from cryofire.volumes.halves import agreed_precision, solve_each_half
from cryofire.volumes.masks import particle_mask
from cryofire.volumes.neural_field import NeuralField

FIELD, NOISE = "field.", "noise."
"""Prefixes of tensors in the checkpoint."""

SAMPLE = 2000
"""Images that decide on the mask and measure the noise of the maps."""

FIELD_FILE = "field.safetensors"


@dataclass(frozen=True)
class Represented:
    """What the field stage leaves.

    Attributes
    ----------
    field : NeuralField
    refinement : Refinement
        With the field's maps, and with every pose and latent polished against them.
    noise : MapNoise
        What the noise of the maps adds to the uncertainty; the refinement's deviations have it already.
    """

    field: NeuralField
    refinement: Refinement
    noise: MapNoise


def learn_field(run: Run, prepared: Prepared, polished: Refinement) -> Represented:
    """Fit the field to all images, mask it, polish every image against it, and let it learn from the polished images."""
    path = run.folder.checkpoint("field")
    if not path.exists():
        with measured_stage(run.folder, "field"):
            field, final, noise = _learnt(run, prepared, polished)
            weights, values = field_parts(field)
            tensors = {FIELD + name: tensor for name, tensor in weights.items()}
            tensors |= {NOISE + name: tensor for name, tensor in vars(noise).items()}
            save_checkpoint(path, refinement_beside(final, values, tensors))
    checkpoint = load_checkpoint(path)
    return Represented(
        field_from(_named(checkpoint.tensors, FIELD), checkpoint.values, path),
        refinement_within(checkpoint, prepared.images),
        MapNoise(**_named(checkpoint.tensors, NOISE)),
    )


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _learnt(run: Run, prepared: Prepared, polished: Refinement) -> tuple[NeuralField, Refinement, MapNoise]:
    settings = run.settings.field
    total = settings.steps + 2 * settings.exact_steps
    run.progress.start("field", total + len(prepared.images))
    limit, spread = polished.images.plane.max_shell, polished.deviations[:, LATENT:]
    sums = back_project(polished.images, prepared.half, polished.states, limit, spread=spread)
    field, halves = _fitted(run, prepared.grid.box, sums, None)
    mask = _helpful_mask(run, prepared, with_maps(polished, field.maps(), halves))
    plan = PassPlan(polished.shell, limit, run.settings.refine.steps, held(run.settings), joint=True)
    model = with_maps(polished, field.maps() * mask, halves).model
    result = run_pass(polished.images, prepared.half, polished.states, model, plan, run.progress.advance)
    field, halves = _fitted(run, prepared.grid.box, result.sums, field)
    final = replace(
        with_maps(polished, field.maps() * mask, halves * mask), states=result.states, misfit=result.misfit,
        rotation_change=result.rotation_change, shift_change_px=result.shift_change_px,
    )  # fmt: skip
    noise = measure_map_noise(final, _sample(final), held(run.settings))
    final = replace(final, deviations=noise.widened(result.deviations, result.states.latents))
    run.progress.finish()
    run.say(
        f"field: {sum(weight.numel() for weight in field.parameters())} weights; poses moved by "
        f"{torch.tensor(result.rotation_change).rad2deg():.3f}° against it"
    )
    return field, final, noise


def with_maps(
    refinement: Refinement, joint: Float[Tensor, "coordinate z y x"], halves: Float[Tensor, "half coordinate z y x"]
) -> Refinement:
    """The refinement with other maps."""
    maps = replace(refinement.model.maps, joint=joint, halves=halves)
    return replace(refinement, model=replace(refinement.model, maps=maps))


def _sample(refinement: Refinement) -> Int[Tensor, " row"]:
    count = len(refinement.images)
    return torch.linspace(0, count - 1, min(SAMPLE, count)).long()


def _helpful_mask(run: Run, prepared: Prepared, refinement: Refinement) -> Volume:
    """Mask that follows the particle, if maps of one half predict the images of the other better with it; else no mask."""
    mask = particle_mask(refinement.model.maps.joint)
    plain, masked = (_crossed_misfit(prepared, refinement, one) for one in (torch.ones_like(mask), mask))
    helps = masked < plain
    run.say(
        f"mask: {100 * float(mask.mean()):.0f} % of the box; images of the other half fit "
        f"{'better' if helps else 'worse'} inside it by {abs(plain - masked):.2f} nats"
        f"{'' if helps else ': it is not used'}"
    )
    return mask if helps else torch.ones_like(mask)


def _crossed_misfit(prepared: Prepared, refinement: Refinement, mask: Volume) -> float:
    """Mean misfit of a sample of images to the masked maps of the half that they are not in."""
    rows, total = _sample(refinement), 0.0
    for side, maps in enumerate(refinement.model.maps.halves):
        grid = spectrum_grid(maps * mask, refinement.shell)
        others = rows[prepared.half[rows] != side]
        for piece in batches(others):
            batch = refinement.images.batch(piece, refinement.shell)
            residual = batch.data - predicted(batch, grid, refinement.states.take(piece))
            total += float(residual.abs().square().sum())
    return total / len(rows)


def _fitted(
    run: Run, box: int, sums: GridSums, field: NeuralField | None
) -> tuple[NeuralField, Float[Tensor, "half coordinate z y x"]]:
    """A field for back-projection sums, with a prior from the agreement of the halves; and the filtered maps of the halves."""
    mask = refinement_mask(box, run.settings.refine)
    prior, _ = agreed_precision(sums, mask)

    def report(phase: str, loss: float) -> None:
        run.folder.append_metrics({"stage": "field", phase: loss})
        run.progress.advance(1)

    halves = solve_each_half(sums, mask, prior)
    return fit_field(sums, prior, box, field, run.settings.field, run.settings.seed, report), halves


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
    with building("field", path):
        settings = FieldSettings(**values["settings"])
        field = NeuralField(settings, values["box"], tensors["amplitude"], torch.Generator())
        field.load_state_dict(dict(tensors))
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
