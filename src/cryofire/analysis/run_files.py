"""The files that a run leaves beside results.json: estimates of its particles, its course, and example images."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from cryofire.analysis.run_record import JsonObject, RunRecord
from cryofire.data.estimates import ParticleEstimates
from cryofire.errors import RunFolderError


def read_estimates(record: RunRecord) -> ParticleEstimates:
    """Per-particle estimates of a run.

    Parameters
    ----------
    record : RunRecord
        From `read_run`.

    Raises
    ------
    RunFolderError
        The run has not come far enough to have any.
    FileFormatError
        The file is damaged.
    """
    path = record.folder / "estimates.npz"
    if not path.is_file():
        raise RunFolderError(
            "the run has no particle estimates yet",
            file=path,
            hint="continue the run with `cryofire reconstruct` and the same run folder",
        )
    return ParticleEstimates.load(path)


def read_metrics(record: RunRecord) -> tuple[JsonObject, ...]:
    """Lines of metrics.jsonl, in their order; a last line cut short by an interruption is left out.

    Parameters
    ----------
    record : RunRecord
        From `read_run`.
    """
    path = record.folder / "metrics.jsonl"
    if not path.is_file():
        return ()
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            lines.append(found)
    return tuple(lines)


@dataclass(frozen=True)
class Examples:
    """Some particle images beside what the model predicts for them.

    Attributes
    ----------
    observed, predicted : array (example, y, x)
        Low-passed images in real space.
    particle : array (example,)
        Rows of the particle table, counted from 0.
    """

    observed: Float[np.ndarray, "example y x"]
    predicted: Float[np.ndarray, "example y x"]
    particle: Int[np.ndarray, " example"]


def read_examples(record: RunRecord) -> Examples | None:
    """Read the example images of a run; None where it left none that can be read.

    Parameters
    ----------
    record : RunRecord
        From `read_run`.
    """
    path = record.folder / "examples.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = Examples(archive["observed"], archive["predicted"], archive["particle"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return found if found.observed.ndim == 3 and found.observed.shape == found.predicted.shape else None
