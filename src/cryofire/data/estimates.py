"""What a reconstruction says of each particle, and its file."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from cryofire.errors import FileFormatError, MissingFileError
from cryofire.formats.atomic import replacing

_DAMAGE = (ValueError, TypeError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class ParticleEstimates:
    """Pose, latent coordinates and state of each particle with their uncertainties, in the order of the input.

    Rows of particles that were not used hold NaN, state 0 and used False.

    Attributes
    ----------
    rotations : array (particle, 3, 3)
        R in ``r_image = R r_volume``.
    shifts : array (particle, 2)
        (x, y) by which the particle was moved, Å.
    rotation_std, shift_std : array (particle,)
        Root mean square over the posterior: of the tangent vector, radians; of a shift component, Å.
    latents, latent_std : array (particle, component)
        Latent coordinates and their posterior standard deviations.
    state : array (particle,)
        Most probable state, counted from 0.
    state_probability : array (particle,)
        Its posterior probability.
    path_position : array (particle,)
        Where it lies along the path of a continuous motion, 0 … 1; NaN where there is none.
    contrast : array (particle,)
        Amplitude of the particle relative to the mean; 1 where it was not estimated.
    log_likelihood : array (particle,)
        Of the image under the final model, natural logarithm.
    used : array (particle,)
        False where the image was unusable.
    """

    rotations: Float64[np.ndarray, "particle 3 3"]
    shifts: Float64[np.ndarray, "particle 2"]
    rotation_std: Float64[np.ndarray, " particle"]
    shift_std: Float64[np.ndarray, " particle"]
    latents: Float64[np.ndarray, "particle component"]
    latent_std: Float64[np.ndarray, "particle component"]
    state: Int64[np.ndarray, " particle"]
    state_probability: Float64[np.ndarray, " particle"]
    path_position: Float64[np.ndarray, " particle"]
    contrast: Float64[np.ndarray, " particle"]
    log_likelihood: Float64[np.ndarray, " particle"]
    used: Bool[np.ndarray, " particle"]

    def __len__(self) -> int:
        return len(self.used)

    def save(self, path: Path) -> None:
        """Write every field to an .npz file; atomic."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> ParticleEstimates:
        """Read what `save` wrote.

        Raises
        ------
        MissingFileError
            The file cannot be opened.
        FileFormatError
            It is damaged, lacks a field, or its fields disagree on the number of particles.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                values = {field.name: archive[field.name] for field in fields(cls)}
        except OSError as error:
            raise MissingFileError("cannot open the estimates", file=path) from error
        except KeyError as error:
            raise FileFormatError("an estimate is missing", file=path, field=str(error.args[0])) from error
        except _DAMAGE as error:
            raise FileFormatError("the file is damaged", file=path, hint="run the reconstruction again") from error
        _check_shapes(values, path)
        return cls(**values)


def _check_shapes(values: dict[str, np.ndarray], path: Path) -> None:
    particles = len(np.atleast_1d(values["used"]))
    components = values["latents"].shape[-1] if values["latents"].ndim == 2 else 0
    expected = {
        "rotations": (particles, 3, 3),
        "shifts": (particles, 2),
        "latents": (particles, components),
        "latent_std": (particles, components),
    }
    kinds = {"state": "i", "used": "b"}
    for name, value in values.items():
        if value.shape != expected.get(name, (particles,)) or value.dtype.kind != kinds.get(name, "f"):
            raise FileFormatError(
                f"the estimates have shape {value.shape} and type {value.dtype}", file=path, field=name
            )
