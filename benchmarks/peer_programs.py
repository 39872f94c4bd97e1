"""Other programs, as they are called on a particle set, and the poses they leave behind."""

from __future__ import annotations

import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from common import finished, posed_stages
from cryofire.data.matching import matching_rows
from cryofire.data.particles import ParticleTable
from cryofire.data.read import read_particles
from cryofire.training.stages import prepare

DIAMETER = 360
"""Of the mask that RELION wants, Å."""
CRYODRGN = ("torch==2.13.0", "cryodrgn==4.3.1")
REDUCED = (
    "--dim", "64", "--pe-dim", "32", "--base-healpy", "1", "--l-start", "8", "--l-end", "16", "--niter", "2",
    "--t-extent", "4", "--t-ngrid", "3", "--nkeptposes", "2", "--n-imgs-pretrain", "1000", "--epochs-pose-search", "2",
    "--num-epochs", "15",
)  # fmt: skip
"""A smaller net and a coarser search than cryoDRGN's own, which would take days on two cores."""


@dataclass(frozen=True)
class RelionSearch:
    """Options of RELION that decide how long it takes.

    Attributes
    ----------
    iterations : (int, int, int)
        Of the initial model: at the first resolution, while it grows, and at the last.
    last_resolution : float
        Of the initial model, Å. RELION tries finer rotations by itself as it grows.
    last_images : int
        Images of an iteration of the initial model at the end; there are 100 in the beginning.
    offset_range : int
        Of the shifts that are tried for the initial model, pixels.
    start_resolution : float
        To which auto-refine filters the initial model, Å.
    local_order : int
        HEALPix order from which on auto-refine searches about the last pose of an image only.
    """

    iterations: tuple[int, int, int]
    last_resolution: float
    last_images: int
    offset_range: int
    start_resolution: float
    local_order: int

    def initial_model(self) -> list[str]:
        """Words of the command line."""
        first, between, last = self.iterations
        return [
            "--sgd_ini_iter", str(first), "--sgd_inbetween_iter", str(between), "--sgd_fin_iter", str(last),
            "--sgd_fin_resol", str(self.last_resolution), "--sgd_fin_subset", str(self.last_images),
            "--offset_range", str(self.offset_range),
        ]  # fmt: skip


SUPPLIED = RelionSearch((50, 200, 50), 15, 500, 6, 50, 4)
SHORTENED = RelionSearch((50, 20, 10), 25, 200, 3, 30, 3)


@dataclass(frozen=True)
class Snapshot:
    """Poses of all particles as a program had them at some time; rows without a pose hold NaN.

    Attributes
    ----------
    name : str
        Of the step they come from.
    elapsed_s : float
        Since the start, if the program ran without a pause.
    rotations : array (particle, 3, 3)
    shifts : array (particle, 2)
        Å.
    latents : array (particle, component) or None
    """

    name: str
    elapsed_s: float
    rotations: Float[np.ndarray, "particle 3 3"]
    shifts: Float[np.ndarray, "particle 2"]
    latents: Float[np.ndarray, "particle component"] | None


@dataclass(frozen=True)
class Program:
    """A program with its settings.

    Attributes
    ----------
    name, settings : str
        For the table.
    commands : function of particle table and output folder
        What is run, one after another.
    snapshots : function of output folder, table and start time
        What was left behind.
    ready : function of the folder of environments
        Makes the program ready to run, and says why it cannot.
    threads : int or None
        That it works with; None: as many as the script says.
    """

    name: str
    settings: str
    commands: Callable[[Path, Path, Path], list[list[str]]]
    snapshots: Callable[[Path, ParticleTable, float], Iterator[Snapshot]]
    ready: Callable[[Path], str | None]
    threads: int | None = None


def _nothing_to_install(_: Path) -> str | None:
    return None


def _cryofire_commands(particles: Path, out: Path, _: Path) -> list[list[str]]:
    return [[sys.executable, "-m", "cryofire", "reconstruct", str(particles), "-o", str(out / "run")]]


def _cryofire_snapshots(out: Path, table: ParticleTable, _: float) -> Iterator[Snapshot]:
    run = finished(out / "run")
    prepared = prepare(run)
    for name, elapsed, states in posed_stages(run, prepared):
        rotations, shifts = np.full((len(table), 3, 3), np.nan), np.full((len(table), 2), np.nan)
        rotations[prepared.rows] = states.rotations.numpy()
        shifts[prepared.rows] = states.shifts_px.numpy() * prepared.grid.pixel_size
        latents = states.latents.double().numpy() if len(prepared.rows) == len(table) else None
        yield Snapshot(name, elapsed, rotations, shifts, latents)


def _relion_ready(_: Path) -> str | None:
    return None if shutil.which("relion_refine_mpi") else "RELION is not installed (Debian: relion)"


def _relion_commands(how: RelionSearch) -> Callable[[Path, Path, Path], list[list[str]]]:
    """Initial model as the interface of RELION 3.1 calls it, then 3D auto-refine from that model."""

    def commands(particles: Path, out: Path, _: Path) -> list[list[str]]:
        common = [
            "--i", str(particles), "--ctf", "--sym", "C1", "--flatten_solvent", "--zero_mask", "--particle_diameter", str(DIAMETER),
            "--oversampling", "1", "--offset_step", "2", "--dont_combine_weights_via_disc", "--dont_check_norm", "--pool", "3",
            "--random_seed", "1",
        ]  # fmt: skip
        initial = [
            "relion_refine", "--o", str(out / "initial"), "--sgd", "--denovo_3dref", "--K", "1", "--sgd_write_iter", "10",
            *how.initial_model(), "--healpix_order", "1", "--pad", "1", "--j", "2", *common,
        ]  # fmt: skip
        reference = out / f"initial_it{sum(how.iterations):03d}_class001.mrc"
        refine = [
            *("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "3", "relion_refine_mpi"),
            *("--o", str(out / "refine"), "--auto_refine", "--split_random_halves", "--ref", str(reference)),
            *("--ini_high", str(how.start_resolution), "--auto_local_healpix_order", str(how.local_order)),
            *("--firstiter_cc", "--healpix_order", "2", "--offset_range", "5"),
            *("--low_resol_join_halves", "40", "--norm", "--scale", "--pad", "2", "--j", "1", *common),
        ]
        return [initial, refine]

    return commands


def _relion_snapshots(out: Path, table: ParticleTable, start: float) -> Iterator[Snapshot]:
    for path in sorted(out.glob("*_data.star"), key=lambda one: one.stat().st_mtime):
        found = read_particles(path, stacks=False)
        if found.poses is None or "_it000_" in path.name:
            continue
        rows = matching_rows(table, found)
        name = re.sub(r"_data$", "", path.stem)
        yield Snapshot(
            name, path.stat().st_mtime - start, found.poses.rotations[rows], found.poses.shifts[rows], None
        )  # fmt: skip


def _cryodrgn_ready(environments: Path) -> str | None:
    """Make the environment once."""
    folder = environments / "cryodrgn"
    if not (folder / "bin" / "cryodrgn").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for package in CRYODRGN:
            subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", package], check=True)
    return None


def _cryodrgn_commands(options: tuple[str, ...]) -> Callable[[Path, Path, Path], list[list[str]]]:
    def commands(particles: Path, out: Path, environments: Path) -> list[list[str]]:
        program, parameters = str(environments / "cryodrgn" / "bin" / "cryodrgn"), str(out / "ctf.pkl")
        learn = [
            program, "abinit", str(particles), "--ctf", parameters, "--datadir", str(particles.parent), "--uninvert-data",
            "--zdim", "8", "-o", str(out / "abinit"), "--checkpoint", "1", "--no-analysis", "--seed", "0", *options,
        ]  # fmt: skip
        return [[program, "parse_ctf_star", str(particles), "-o", parameters], learn]

    return commands


def _cryodrgn_snapshots(out: Path, table: ParticleTable, start: float) -> Iterator[Snapshot]:
    """Poses after each epoch: rotations as ours; shifts that centre an image, in pixels."""
    for path in sorted((out / "abinit").glob("pose.*.pkl"), key=lambda one: one.stat().st_mtime):
        with path.open("rb") as file:
            rotations, shifts = pickle.load(file)
        with path.with_name(path.name.replace("pose", "z")).open("rb") as file:
            latents = np.asarray(pickle.load(file), dtype=np.float64)
        name = f"epoch {path.name.split('.')[1]}"
        moved = -np.asarray(shifts, dtype=np.float64) * table.pixel_size[:, None]
        yield Snapshot(name, path.stat().st_mtime - start, np.asarray(rotations, dtype=np.float64), moved, latents)


SHORTENED_IN_WORDS = "shorter initial model to 25 Å, then 3D auto-refine from 30 Å, local searches from 7.5° on"
PROGRAMS = {
    "cryofire": Program("cryofire", "default", _cryofire_commands, _cryofire_snapshots, _nothing_to_install),
    "relion": Program(
        "RELION 3.1.3", "initial model, then 3D auto-refine", _relion_commands(SUPPLIED), _relion_snapshots, _relion_ready, 2
    ),
    "relion-reduced": Program(
        "RELION 3.1.3", SHORTENED_IN_WORDS, _relion_commands(SHORTENED), _relion_snapshots, _relion_ready, 2
    ),
    "cryodrgn-reduced": Program(
        "cryoDRGN 4.3.1 abinit", "smaller net, coarser search", _cryodrgn_commands(REDUCED), _cryodrgn_snapshots, _cryodrgn_ready
    ),
    "cryodrgn": Program("cryoDRGN 4.3.1 abinit", "default", _cryodrgn_commands(()), _cryodrgn_snapshots, _cryodrgn_ready),
}  # fmt: skip
