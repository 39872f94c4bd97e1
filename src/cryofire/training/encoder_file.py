"""The border between an encoder and its file: weights as tensors by name, settings as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cryofire.errors import FileFormatError
from cryofire.inference.encode import PoseEncoder


def encoder_parts(encoder: PoseEncoder) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and settings of an encoder; those that are no network (stand-ins) have none."""
    weights: dict[str, Tensor] = getattr(encoder, "state_dict", dict)()
    settings = getattr(encoder, "settings", None)
    return weights, {"settings": {} if settings is None else dict(vars(settings))}


def encoder_from(tensors: Mapping[str, Tensor], values: Mapping[str, Any], path: Path) -> PoseEncoder:
    """An encoder from its weights and settings.

    Raises
    ------
    FileFormatError
        This version does not know the encoder.
    """
    raise FileFormatError(
        "the encoder of the model is of a kind that this version cannot read",
        file=path,
        hint="use the version of cryofire that wrote it, or a later one",
    )
