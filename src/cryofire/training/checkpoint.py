"""Checkpoints: tensors and a few plain values in one safetensors file with a schema number."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cryofire.errors import FileFormatError, RunFolderError
from cryofire.formats.atomic import replacing
from cryofire.inference.centring import CentringModel
from cryofire.inference.consensus import Refinement
from cryofire.inference.linear_model import LinearModel
from cryofire.inference.polish import ImageStates, Priors
from cryofire.physics.imaging import WhitenedImages
from cryofire.volumes.halves import HalfMaps

SCHEMA = 4
REFINEMENT = "refinement"
"""Name of a refinement's plain values in a checkpoint that holds more."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and plain values by name."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the file appears whole or not at all.

    Raises
    ------
    InputError
        The disk is full or the folder cannot be written.
    """
    metadata = {"schema": str(SCHEMA), "values": json.dumps(dict(checkpoint.values))}
    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, temporary, metadata)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    RunFolderError
        The file is damaged, or of another schema.
    """
    try:
        tensors = load_file(path)
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        values = json.loads(metadata.get("values", "{}"))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise RunFolderError(
            f"the checkpoint cannot be read: {error}", file=path, hint="delete it: the stage runs again"
        ) from error
    if metadata.get("schema") != str(SCHEMA):
        raise RunFolderError(
            f"the checkpoint has schema {metadata.get('schema')}, this version reads {SCHEMA}",
            file=path,
            hint="continue with the version of cryofire that wrote it, or start in a new folder",
        )
    return Checkpoint(tensors, values)


@contextmanager
def building(network: str, path: Path) -> Iterator[None]:
    """Say so where weights and settings of a file do not make a network that this version has.

    Raises
    ------
    FileFormatError
        Building it failed.
    """
    try:
        yield
    except (KeyError, TypeError, RuntimeError) as error:
        raise FileFormatError(
            f"the {network} of the model is of a kind that this version cannot read",
            file=path,
            hint="use the version of cryofire that wrote it, or a later one",
        ) from error


def centring_parts(model: CentringModel) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Tensors and plain values of a centring model."""
    tensors = {"centring_mean": model.mean, "centring_variance": model.variance, "centring_offset": model.offset}
    return tensors, {"centring_spread": model.spread}


def centring_from(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> CentringModel:
    """A centring model from its tensors and values."""
    profiles = tensors["centring_mean"], tensors["centring_variance"]
    return CentringModel(*profiles, tensors["centring_offset"], values["centring_spread"])


def states_tensors(states: ImageStates) -> dict[str, Tensor]:
    """Tensors of image states."""
    return {
        "rotations": states.rotations, "shifts_px": states.shifts_px,
        "contrast": states.contrast, "latents": states.latents,
    }  # fmt: skip


def states_from(tensors: Mapping[str, Tensor]) -> ImageStates:
    """Image states from their tensors."""
    return ImageStates(tensors["rotations"], tensors["shifts_px"], tensors["contrast"], tensors["latents"])


def model_tensors(model: LinearModel) -> dict[str, Tensor]:
    """Tensors of a linear model."""
    return {
        "halves": model.maps.halves, "joint": model.maps.joint, "fsc": model.maps.fsc,
        "latent_variance": model.priors.latent_variance,
        "stds": torch.tensor([model.priors.shift_std_px, model.priors.contrast_std], dtype=torch.float64),
    }  # fmt: skip


def model_from(tensors: Mapping[str, Tensor]) -> LinearModel:
    """A linear model from its tensors."""
    shift_std, contrast_std = tensors["stds"].tolist()
    maps = HalfMaps(tensors["halves"], tensors["joint"], tensors["fsc"])
    return LinearModel(maps, Priors(shift_std, contrast_std, tensors["latent_variance"]))


def refinement_checkpoint(refinement: Refinement) -> Checkpoint:
    """A refinement as a checkpoint; the images themselves stay in their cache."""
    tensors = {
        **states_tensors(refinement.states), **model_tensors(refinement.model),
        "correction": refinement.images.correction, "deviations": refinement.deviations, "misfit": refinement.misfit,
    }  # fmt: skip
    values = {
        name: getattr(refinement, name) for name in ("shell", "rotation_change", "shift_change_px", "passes", "settled")
    }
    return Checkpoint(tensors, values)


def refinement_from(checkpoint: Checkpoint, images: WhitenedImages) -> Refinement:
    """A refinement from its checkpoint and the prepared images."""
    tensors = checkpoint.tensors
    return Refinement(
        replace(images, correction=tensors["correction"]),
        states_from(tensors),
        model_from(tensors),
        deviations=tensors["deviations"],
        misfit=tensors["misfit"],
        **checkpoint.values,
    )


def refinement_beside(
    refinement: Refinement, values: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
) -> Checkpoint:
    """A checkpoint that holds more than a refinement, for `refinement_within`."""
    saved = refinement_checkpoint(refinement)
    return Checkpoint({**saved.tensors, **(tensors or {})}, {REFINEMENT: saved.values, **values})


def refinement_within(checkpoint: Checkpoint, images: WhitenedImages) -> Refinement:
    """A refinement from a checkpoint that holds more: its plain values have a name there."""
    return refinement_from(Checkpoint(checkpoint.tensors, checkpoint.values[REFINEMENT]), images)
