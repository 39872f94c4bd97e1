"""Encoding the particles of a table with a delivered model: streaming, in bounded memory, one pass over the images."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryofire.analysis.latent_summary import LatentSummary
from cryofire.data.convert import cryosparc_rows
from cryofire.data.estimates import ParticleEstimates
from cryofire.data.export import write_cryosparc, write_relion
from cryofire.data.particles import CryosparcSource, ParticleTable
from cryofire.errors import InputError, MissingFileError, RunFolderError, SettingError
from cryofire.geometry.grids import half_plane
from cryofire.inference.encode import Encoded, Encoder, encode_piece, read_ahead
from cryofire.inference.new_images import NewImages
from cryofire.inference.whitening import measure_set
from cryofire.training.model_file import DeliveredModel
from cryofire.training.progress import Progress, SilentProgress

MOST_STEPS = 20


def encode_particles(
    table: ParticleTable,
    model: DeliveredModel,
    polish: int = 0,
    progress: Progress | None = None,
    rows: np.ndarray | None = None,
) -> ParticleEstimates:
    """Poses, latents, states and uncertainties of particles that a model has not seen.

    Cost: one Fourier transform and one pass of the encoder an image; a polish step costs about two sections of the model more.

    Parameters
    ----------
    table : ParticleTable
        With its stacks found.
    model : DeliveredModel
        With an encoder.
    polish : int
        Gauss–Newton steps, 0 to 20.
    progress : Progress, optional
        Who listens.
    rows : Int[np.ndarray, "row"], optional
        Only these are encoded, and the result has only them, in this order; noise is measured on all rows of the table.

    Raises
    ------
    RunFolderError
        The model has no encoder.
    SettingError
        The number of steps is out of range.
    ImageError
        The images cannot be brought to the grid of the model; says why.
    """
    progress = progress if progress is not None else SilentProgress()
    wanted = np.arange(len(table)) if rows is None else np.asarray(rows)
    encoder = checked_encoder(model, polish)
    images = new_images(table, model, encoder)
    whitening, notes = measure_set(images, np.arange(len(table)), model.reference, model.power())
    for note in notes:
        progress.note(note)
    found = _Gathered.empty(len(wanted), model.components)
    place = np.full(len(table), -1)
    place[wanted] = np.arange(len(wanted))
    decoder = model.decoder()
    progress.start("encode", len(wanted))
    with closing(read_ahead(images.pieces(wanted, whitening, lambda _: None))) as pieces:
        for piece in pieces:
            found.put(place[piece.rows], encode_piece(piece, encoder, decoder, polish), model.grid.pixel_size)
            progress.advance(len(piece.rows))
    progress.finish()
    return found.estimates(model.latents, model.glimpsed if polish == 0 else None)


def check_output(table: ParticleTable, path: Path) -> None:
    """Refuse an output that could not be written, before anything is computed.

    Raises
    ------
    InputError
        Its folder does not exist, it is the input itself, or it is a .cs file and the table has no uids.
    """
    check_folder(path)
    if path.exists() and path.samefile(table.path):
        raise InputError("the result would replace its own input", file=path, hint="choose another name")
    if path.suffix.lower() == ".cs" and not isinstance(table.source, CryosparcSource):
        cryosparc_rows(table)


def check_folder(path: Path) -> None:
    """Raise `MissingFileError` where the folder of a file to be written does not exist."""
    if not path.absolute().parent.is_dir():
        raise MissingFileError(
            "the folder to write to does not exist", file=path.absolute().parent, hint="make it first"
        )


def write_encoded(table: ParticleTable, estimates: ParticleEstimates, path: Path) -> None:
    """Write the user's rows with the estimates, as .cs where the name ends so, else as STAR.

    Raises
    ------
    InputError
        The file cannot be written, or is one of the inputs.
    """
    (write_cryosparc if path.suffix.lower() == ".cs" else write_relion)(table, estimates, path)


def checked_encoder(model: DeliveredModel, polish: int) -> Encoder:
    """The encoder of a model.

    Raises
    ------
    RunFolderError
        It has none.
    SettingError
        The number of polish steps is out of range.
    """
    if not 0 <= polish <= MOST_STEPS:
        raise SettingError(
            f"{polish} polish steps are not possible", field="polish", hint=f"0 to {MOST_STEPS}; 2 is usual"
        )
    if model.encoder is None:
        raise RunFolderError(
            "the model has no encoder, so it cannot place images that it has not seen",
            hint="run cryofire reconstruct with this version in a new folder: it learns an encoder",
        )
    return model.encoder


def new_images(table: ParticleTable, model: DeliveredModel, encoder: Encoder) -> NewImages:
    """The images of a table on their way to the grid of a model."""
    last = (model.grid.box - 1) // 2
    shell = min(max(model.max_shell, encoder.max_shell), last)
    least = min(encoder.max_shell, shell)
    return NewImages(table, model.grid, half_plane(model.grid.box, shell), model.radius, least)


@dataclass
class _Gathered:
    """Estimates as they come in; rows that never come keep NaN."""

    values: dict[str, np.ndarray]
    used: np.ndarray

    @staticmethod
    def empty(count: int, components: int) -> _Gathered:
        shapes = {
            "rotations": (3, 3), "shifts": (2,), "rotation_std": (), "shift_std": (), "latents": (components,),
            "latent_std": (components,), "contrast": (), "log_likelihood": (),
        }  # fmt: skip
        values = {name: np.full((count, *shape), np.nan) for name, shape in shapes.items()}
        return _Gathered(values, np.zeros(count, dtype=bool))

    def put(self, rows: np.ndarray, encoded: Encoded, pixel_size: float) -> None:
        states = encoded.states
        found = {
            "rotations": states.rotations, "shifts": states.shifts_px * pixel_size, "latents": states.latents,
            "rotation_std": encoded.rotation_std, "shift_std": encoded.shift_std_px * pixel_size,
            "latent_std": encoded.latent_std, "contrast": states.contrast, "log_likelihood": encoded.log_likelihood,
        }  # fmt: skip
        for name, value in found.items():
            self.values[name][rows] = value.detach().numpy()
        self.used[rows] = True

    def estimates(self, summary: LatentSummary, glimpsed: LatentSummary | None) -> ParticleEstimates:
        latents = self.values["latents"]
        if glimpsed is not None:
            state, probability = glimpsed.states(latents, np.broadcast_to(glimpsed.scale, latents.shape))
        else:
            state, probability = summary.states(latents, self.values["latent_std"])
        return ParticleEstimates(
            **self.values,
            state=np.where(self.used, state, 0),
            state_probability=np.where(self.used, probability, np.nan),
            path_position=summary.path_position(latents),
            used=self.used,
        )
