"""The delivered model as files: what is needed to encode new images and to decode maps, without the run it came from.

A model folder holds ``model.safetensors`` (maps, noise, latents and states) and, where an encoder was learnt,
``encoder.safetensors``. Both carry a schema number in their metadata, plain values beside it as JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor

from cryofire.analysis.latent_summary import LatentSummary, summarise_latents
from cryofire.analysis.run_files import read_estimates
from cryofire.analysis.run_record import read_run
from cryofire.errors import FileFormatError, MissingFileError, RunFolderError
from cryofire.formats.atomic import replacing
from cryofire.inference.encode import Decoder, Encoder
from cryofire.inference.map_noise import MapNoise
from cryofire.inference.polish import Priors
from cryofire.inference.prepare import WorkingGrid
from cryofire.inference.whitening import Reference, particle_radius, spectral_power
from cryofire.training.checkpoint import centring_from, centring_parts, load_checkpoint, model_from
from cryofire.training.encoder_file import encoder_from, encoder_parts
from cryofire.training.run_folder import RunFolder
from cryofire.version import __version__

SCHEMA = 2
MODEL, ENCODER = "model.safetensors", "encoder.safetensors"
NOISE, LATENTS, GLIMPSED = "map_noise.", "latents.", "glimpsed."
"""Prefixes of the names of tensors: of the map noise, and of where latents lie after and before polish."""
_SUMMARY = tuple(field.name for field in fields(LatentSummary) if field.name not in {"kind", "is_closed"})


@dataclass(frozen=True)
class DeliveredModel:
    """What a reconstruction leaves for images it has not seen: a decoder, an encoder, and how its images were.

    Attributes
    ----------
    maps : Float[Tensor, "coordinate z y x"]
        Basis densities of V(z) = Σ_j c_j(z) V_j, c(z) = (1, z).
    priors : Priors
        Of shift, contrast and latents.
    max_shell : int
        Resolution limit that images are compared up to.
    reference : Reference
        Grid, noise, contrast and centring of the training images.
    latents : LatentSummary
        Where the particles lie in latent space, and the states.
    encoder : Encoder, optional
        Missing where none was learnt.
    noise : MapNoise, optional
        What the noise of the maps adds to uncertainties; nothing where it was not measured.
    glimpsed : LatentSummary, optional
        Where one pass of the encoder, without polish, puts particles of each state: it shrinks latents of which it is unsure.
    """

    maps: Float[Tensor, "coordinate z y x"]
    priors: Priors
    max_shell: int
    reference: Reference
    latents: LatentSummary
    encoder: Encoder | None = None
    noise: MapNoise | None = None
    glimpsed: LatentSummary | None = None

    @property
    def grid(self) -> WorkingGrid:
        """Box and pixel size of the model."""
        return self.reference.grid

    @property
    def components(self) -> int:
        """Number of latent coordinates."""
        return self.maps.shape[0] - 1

    @property
    def radius(self) -> float:
        """Radius of the particle, Å."""
        return particle_radius(self.maps[0]) * self.grid.pixel_size

    def decoder(self) -> Decoder:
        """The maps as what images are compared with."""
        relative = particle_radius(self.maps[0]) / (self.grid.box / 2)
        return Decoder(self.maps, self.priors, self.max_shell, relative, self.noise)

    def power(self) -> Float[Tensor, " shell"]:
        """Expected |section|² in every shell for random views."""
        return spectral_power(self.maps, self.priors.latent_variance)

    def decode(self, latents: Float[Tensor, "*point component"]) -> Float[Tensor, "*point z y x"]:
        """Densities Σ_j c_j(z) V_j at points of the latent space."""
        return self.maps[0] + torch.einsum("...j,jzyx->...zyx", latents.to(self.maps), self.maps[1:])

    def digest(self) -> str:
        """Short fingerprint of the model, equal only for equal models."""
        weights: dict[str, Tensor] = getattr(self.encoder, "state_dict", dict)()
        parts = [self.maps, self.priors.latent_variance, self.reference.noise, *weights.values()]
        together = hashlib.sha256()
        for part in parts:
            together.update(part.detach().contiguous().cpu().numpy().tobytes())
        return together.hexdigest()[:16]


def save_model(folder: Path, model: DeliveredModel) -> None:
    """Write a model folder; each file appears whole or not at all.

    Raises
    ------
    InputError
        The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"the model folder cannot be made: {error.strerror}", file=folder) from error
    if model.encoder is None:
        (folder / ENCODER).unlink(missing_ok=True)
    else:
        tensors, values = encoder_parts(model.encoder)
        _write(folder / ENCODER, tensors, values)
    _write(folder / MODEL, *_model_parts(model))


def _model_parts(model: DeliveredModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    reference, summary = model.reference, model.latents
    centring_tensors, centring_values = centring_parts(reference.centring)
    tensors = {
        "maps": model.maps, "latent_variance": model.priors.latent_variance,
        "noise": reference.noise, "correction": reference.correction,
        **centring_tensors, **_summary_tensors(LATENTS, summary),
        **({} if model.glimpsed is None else _summary_tensors(GLIMPSED, model.glimpsed)),
        **({} if model.noise is None else {NOISE + name: value for name, value in vars(model.noise).items()}),
    }  # fmt: skip
    values = {
        "shift_std_px": model.priors.shift_std_px, "contrast_std": model.priors.contrast_std,
        "max_shell": model.max_shell, "box": reference.grid.box, "pixel_size": reference.grid.pixel_size,
        "is_white": reference.is_white, **centring_values,
        "kind": summary.kind, "is_closed": summary.is_closed, "has_encoder": model.encoder is not None,
        "has_noise": model.noise is not None, "has_glimpsed": model.glimpsed is not None,
    }  # fmt: skip
    return tensors, values


def _summary_tensors(prefix: str, summary: LatentSummary) -> dict[str, Tensor]:
    return {prefix + name: torch.from_numpy(np.array(getattr(summary, name))) for name in _SUMMARY}


def _summary(prefix: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> LatentSummary:
    found = {name: tensors[prefix + name].numpy().copy() for name in _SUMMARY}
    return LatentSummary(kind=values["kind"], is_closed=values["is_closed"], **found)


def _write(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    metadata = {"schema": str(SCHEMA), "version": __version__, "values": json.dumps(dict(values))}
    with replacing(path) as temporary:
        content = save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, metadata)
        temporary.write_bytes(content)  # with the permissions of any other file, which save_file would not give


def load_model(folder: Path) -> DeliveredModel:
    """The model of a run folder or of a model folder.

    A finished run without ``model/`` gives the model of its last refinement, which has no encoder.

    Raises
    ------
    MissingFileError
        There is no such folder.
    RunFolderError
        It holds no model, or one of another schema.
    FileFormatError
        A file of the model is damaged or missing.
    """
    if not folder.is_dir():
        raise MissingFileError("the run folder does not exist", file=folder)
    for place in (folder, folder / "model"):
        if (place / MODEL).exists():
            return _read_model(place)
    if (folder / "results.json").exists():
        return model_of_run(folder)
    raise RunFolderError(
        "the folder holds no model",
        file=folder,
        hint="name a run folder that cryofire reconstruct finished, or a folder that a model was saved in",
    )


def _read_model(folder: Path) -> DeliveredModel:
    tensors, values = _read(folder / MODEL)
    try:
        grid = WorkingGrid(values["box"], values["pixel_size"])
        reference = Reference(
            grid,
            tensors["noise"],
            tensors["correction"],
            values["is_white"],
            centring_from(tensors, values),
        )
        priors = Priors(values["shift_std_px"], values["contrast_std"], tensors["latent_variance"])
        noise = MapNoise(tensors[NOISE + "constant"], tensors[NOISE + "quadratic"]) if values["has_noise"] else None
        model = DeliveredModel(
            tensors["maps"], priors, values["max_shell"], reference, _summary(LATENTS, tensors, values), noise=noise,
            glimpsed=_summary(GLIMPSED, tensors, values) if values["has_glimpsed"] else None,
        )  # fmt: skip
        has_encoder = bool(values["has_encoder"])
    except KeyError as error:
        raise FileFormatError(
            "a part of the model is missing", file=folder / MODEL, field=str(error.args[0]), hint="deliver it again"
        ) from error
    if not has_encoder:
        return model
    if not (folder / ENCODER).exists():
        raise FileFormatError(
            "the encoder of the model is missing", file=folder / ENCODER, hint="copy the whole model folder"
        )
    encoder = encoder_from(*_read(folder / ENCODER), model.maps, folder / ENCODER)
    return replace(model, encoder=encoder)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        schema = int(metadata["schema"])
        if schema == SCHEMA:
            values = json.loads(metadata["values"])
            return load_file(path), dict(values)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise FileFormatError(
            f"the model file is damaged: {error}", file=path, hint="copy it again, or deliver the model again"
        ) from error
    raise RunFolderError(
        f"the model has schema {schema}, this version reads {SCHEMA}",
        file=path,
        field="schema",
        hint="use the version of cryofire that wrote it, or reconstruct again with this one",
    )


def model_of_run(folder: Path) -> DeliveredModel:
    """The model that the last refinement of a finished run amounts to; it has no encoder.

    Raises
    ------
    RunFolderError
        The run has not finished, or its checkpoints were deleted.
    """
    record = read_run(folder)
    if not record.finished:
        raise RunFolderError("the run has not finished", file=folder, hint="continue it with cryofire reconstruct")
    if record.species:
        names = ", ".join(f"{folder}/{one.name}" for one in record.species)
        raise RunFolderError(
            "the particles are of several species, each with a model of its own",
            file=folder,
            hint=f"name one of {names}",
        )
    run = RunFolder(folder)
    for needed in ("prepare", "polish"):
        if not run.checkpoint(needed).exists():
            raise RunFolderError(
                "the run holds no model: its checkpoints were deleted",
                file=run.checkpoint(needed),
                hint="run cryofire reconstruct again in a new folder",
            )
    prepared, final = load_checkpoint(run.checkpoint("prepare")), load_checkpoint(run.checkpoint("polish"))
    linear, values, estimates = model_from(final.tensors), prepared.values, read_estimates(record)
    reference = Reference(
        WorkingGrid(values["box"], values["pixel_size"]), prepared.tensors["noise"], final.tensors["correction"],
        values["is_white"], centring_from(prepared.tensors, values),
    )  # fmt: skip
    kind: Any = record.heterogeneity or "homogeneous"
    centers = [state.latent_center if state.latent_center is not None else np.zeros(0) for state in record.states]
    components = estimates.latents.shape[1]
    middle = np.stack(centers) if centers else np.zeros((1, components))
    summary = summarise_latents(
        estimates.latents, estimates.latent_std, estimates.state, kind, middle, record.curve, record.is_closed
    )
    return DeliveredModel(linear.maps.joint, linear.priors, int(final.values["shell"]), reference, summary)
