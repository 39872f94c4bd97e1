"""The border between an encoder and its file: weights as tensors by name, settings as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from cryofire.config import EncoderSettings
from cryofire.inference.encode import Encoder
from cryofire.inference.encoder import PoseEncoder
from cryofire.physics.devices import CPU, device_with
from cryofire.training.checkpoint import building

ENCODER_MEMORY = 1 << 30
"""What it needs itself, and to learn, beside a batch of images, bytes."""


def encoder_parts(encoder: Encoder) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and plain values of an encoder; what it knows of the decoder is not among them, and other encoders have none."""
    if not isinstance(encoder, PoseEncoder):
        return {}, {}
    return {name: value.to(CPU) for name, value in encoder.state_dict().items()}, {
        "settings": asdict(encoder.settings), "box": encoder.box, "components": encoder.components,
        "shift_std_px": encoder.shift_std_px,
    }  # fmt: skip


def encoder_from(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any], maps: Float[Tensor, "coordinate z y x"], path: Path
) -> PoseEncoder:
    """An encoder from its weights and plain values, looking at a decoder's maps, on a graphics processor that is there.

    Raises
    ------
    FileFormatError
        This version does not know the encoder.
    """
    with building("encoder", path):
        settings = EncoderSettings(**values["settings"])
        encoder = PoseEncoder(settings, values["box"], values["components"], values["shift_std_px"])
        encoder.load_state_dict(dict(tensors))
    encoder.look_at(maps)
    return encoder.on(device_with(ENCODER_MEMORY))
