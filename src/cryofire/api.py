"""Reconstructions from Python: run one, or open one that was run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cryofire.analysis.evaluate import evaluate_run
from cryofire.analysis.evaluation import Evaluation
from cryofire.analysis.run_files import read_estimates
from cryofire.analysis.run_record import RunRecord, read_run
from cryofire.config import Settings
from cryofire.data.estimates import ParticleEstimates
from cryofire.data.export import write_cryosparc, write_relion
from cryofire.data.particles import ParticleTable
from cryofire.data.read import read_particles
from cryofire.errors import RunFolderError
from cryofire.formats.atomic import replacing
from cryofire.training.decode import decoded_maps
from cryofire.training.encode import encode_particles
from cryofire.training.model_file import DeliveredModel, load_model, save_model
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
    >>> unseen = reconstruction.encode("new/particles.star", polish=2)     # doctest: +SKIP

    Attributes
    ----------
    folder : Path
        The run folder.
    record : RunRecord
        Summary: states, resolutions, verdicts.
    estimates : ParticleEstimates
        Pose, latents, state and uncertainties of every particle, in input order.
    own_model : DeliveredModel or None
        Decoder of the conformational space, and encoder of new images where one was learnt; none where the particles are of
        several species.
    species : tuple of Reconstruction
        Of each species, the largest first, where the particles share no structure; empty otherwise.
    """

    folder: Path
    record: RunRecord
    estimates: ParticleEstimates
    own_model: DeliveredModel | None
    species: tuple[Reconstruction, ...] = ()

    @property
    def model(self) -> DeliveredModel:
        """The model of the conformational space.

        Raises
        ------
        RunFolderError
            The particles are of several species, each with a model of its own.
        """
        return self.own_model or load_model(self.folder)

    @classmethod
    def fit(
        cls,
        particles: str | Path,
        output: str | Path,
        settings: Settings | None = None,
        datadir: str | Path | None = None,
        progress: Progress | None = None,
        passthrough: Sequence[str | Path] = (),
        poses: str | Path | None = None,
    ) -> Reconstruction:
        """Reconstruct from a particle table (.star or .cs), or continue the run that `output` holds.

        Fields of a .cs file that only its `passthrough` files have are joined by uid. Poses that are known, in a table of the
        same particles, are kept: only conformations and maps are learnt then.

        Raises
        ------
        InputError
            Something given cannot be used.
        ReconstructionFailure
            The data could not be explained.
        """
        if poses is not None:
            settings = replace(settings or Settings(), poses=str(Path(poses).resolve()))
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
        species = tuple(cls.load(one.folder) for one in record.species)
        return cls(
            record.folder, record, read_estimates(record), None if species else load_model(record.folder), species
        )

    def encode(
        self,
        particles: str | Path,
        polish: int = 0,
        datadir: str | Path | None = None,
        progress: Progress | None = None,
    ) -> ParticleEstimates:
        """Poses, latents, states and uncertainties of particles that the run has not seen, in the order of their table.

        Images of another box or pixel size are brought to the grid of the model. Memory is bounded, whatever their number.

        Parameters
        ----------
        particles : path
            Particle table, .star or .cs.
        polish : int
            Gauss–Newton steps after the encoder; 2 reaches nearly what a reconstruction of these images would.
        datadir : path, optional
            Folder that the stack paths are relative to.
        progress : Progress, optional
            Who listens.

        Raises
        ------
        InputError
            Something given cannot be used, or the model has no encoder.
        """
        table = read_particles(Path(particles), None if datadir is None else Path(datadir))
        return encode_particles(table, self.model, polish, progress)

    def decode(
        self, latents: Float[np.ndarray, "*point component"] | Sequence[float], box: int | None = None
    ) -> Float[np.ndarray, "*point z y x"]:
        """Densities at points of the latent space.

        Parameters
        ----------
        latents : array (..., component)
            One point or several.
        box : int, optional
            Voxels along a side, at most as many as the model has; the field of view stays.

        Raises
        ------
        ValueError
            The points have another number of coordinates than the latent space.
        SettingError
            The box is larger than that of the model.
        """
        points = np.atleast_1d(np.asarray(latents, dtype=np.float32))
        if points.shape[-1] != self.model.components:
            raise ValueError(f"the latent space has {self.model.components} coordinates, the point {points.shape[-1]}")
        return np.asarray(decoded_maps(self.model, points, box).numpy())

    def save(self, folder: str | Path) -> None:
        """Write what `load` needs, without maps, images and checkpoints: model, summary and estimates.

        Parameters
        ----------
        folder : path
            A new or empty folder, or one that was saved before.

        Raises
        ------
        InputError
            The folder is a run folder, or cannot be written.
        """
        target = Path(folder)
        if (target / "checkpoints").exists():
            raise RunFolderError("this is a run folder", file=target, hint="save to another folder")
        save_model(target / "model", self.model)
        for name in ("results.json", "inputs.json", "settings.json"):
            source = self.folder / name
            if source.exists():
                with replacing(target / name) as temporary:
                    temporary.write_bytes(source.read_bytes())
        self.estimates.save(target / "estimates.npz")

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
