"""Reconstructions from Python: run one, or open one that was run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from cryofire.analysis.evaluate import Evaluation, evaluate_run
from cryofire.analysis.run_record import RunRecord, read_estimates, read_run
from cryofire.analysis.states import decode
from cryofire.config import Settings
from cryofire.data.estimates import ParticleEstimates
from cryofire.data.export import write_cryosparc, write_relion
from cryofire.data.particles import ParticleTable
from cryofire.data.read import read_particles
from cryofire.errors import RunFolderError
from cryofire.inference.linear_model import LinearModel
from cryofire.training.checkpoint import load_checkpoint, model_from
from cryofire.training.pipeline import reconstruct
from cryofire.training.progress import Progress
from cryofire.training.run_folder import RunFolder


@dataclass(frozen=True)
class Reconstruction:
    """A finished reconstruction: poses, states, maps, and the model of the conformational space.

    Examples
    --------
    >>> reconstruction = Reconstruction.fit("set/particles.star", "run/")  # doctest: +SKIP
    >>> reconstruction.estimates.rotations.shape                           # doctest: +SKIP
    (10000, 3, 3)
    >>> volume = reconstruction.decode([1.5])                              # doctest: +SKIP

    Attributes
    ----------
    folder : Path
        The run folder.
    record : RunRecord
        Summary: states, resolutions, verdicts.
    estimates : ParticleEstimates
        Pose, latents, state and uncertainties of every particle, in input order.
    model : LinearModel
        Mean and components of the density.
    """

    folder: Path
    record: RunRecord
    estimates: ParticleEstimates
    model: LinearModel

    @classmethod
    def fit(
        cls,
        particles: str | Path,
        output: str | Path,
        settings: Settings | None = None,
        datadir: str | Path | None = None,
        progress: Progress | None = None,
        passthrough: Sequence[str | Path] = (),
    ) -> Reconstruction:
        """Reconstruct from a particle table (.star or .cs), or continue the run that `output` holds.

        Fields of a .cs file that only its `passthrough` files have are joined by uid.

        Raises
        ------
        InputError
            Something given cannot be used.
        ReconstructionFailure
            The data could not be explained.
        """
        folder, joined = None if datadir is None else Path(datadir), [Path(one) for one in passthrough]
        reconstruct(Path(particles), Path(output), settings, folder, progress, joined)
        return cls.load(output)

    @classmethod
    def load(cls, folder: str | Path) -> Reconstruction:
        """Open a finished run folder.

        Raises
        ------
        RunFolderError
            It is not one, or the run did not finish.
        """
        record = read_run(Path(folder))
        if not record.finished:
            raise RunFolderError("the run has not finished", file=folder, hint="continue it with cryofire reconstruct")
        model = model_from(load_checkpoint(RunFolder(record.folder).checkpoint("polish")).tensors)
        return cls(record.folder, record, read_estimates(record), model)

    def decode(self, latent: Float[np.ndarray, " component"] | list[float]) -> Float[np.ndarray, "z y x"]:
        """Density at a point of the latent space, on the working grid of the run.

        Raises
        ------
        ValueError
            The point has another number of coordinates than the latent space.
        """
        point = torch.as_tensor(np.asarray(latent, dtype=np.float32)).reshape(-1)
        components = self.model.maps.joint.shape[0] - 1
        if len(point) != components:
            raise ValueError(f"the latent space has {components} coordinates, the point {len(point)}")
        return np.asarray(decode(self.model, point).numpy())

    def table(self, datadir: str | Path | None = None) -> ParticleTable:
        """The particle table that was reconstructed."""
        inputs = RunFolder(self.folder).read_json("inputs.json")
        joined = [Path(one) for one in inputs.get("passthrough", ())]
        folder = None if datadir is None else Path(datadir)
        return read_particles(Path(inputs["table"]), folder, passthrough=joined, stacks=False)

    def evaluate(self, truth: str | Path) -> Evaluation:
        """Scores against a table of true poses."""
        return evaluate_run(self.folder, Path(truth))

    def export_relion(self, path: str | Path) -> None:
        """Write the input rows with poses, states and uncertainties as a STAR file."""
        write_relion(self.table(), self.estimates, Path(path))

    def export_cryosparc(self, path: str | Path) -> None:
        """Write the input rows with poses and states as a .cs file."""
        write_cryosparc(self.table(), self.estimates, Path(path))
