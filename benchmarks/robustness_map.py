"""Where pose finding works: molecules, noise, views, centring and seeds, up to the refined consensus.

    python benchmarks/robustness_map.py [--molecule NAME=FILE:PIXEL[:CHAINS] …] [--minutes 30]
        [--json benchmarks/results/robustness_map.json]

Every cell is a set of one conformation, 4 000 particles at box 64, from the simulator to the end of the consensus with default
settings. Cells that the file of results holds are not run again, so that the map grows in pieces: the same command goes on. The
signal-to-noise ratio is that of pixels half as large, as for the other sets of the benchmarks. The ribosome of the package is
always there; `IgG=1hzh.cif:3.8` adds a molecule (PDB, mmCIF, .npz) or a map (.mrc, .map) by its name, its file and the pixel size
in Å of its images, and `40S=6zu5.cif:5:S*` some chains of a molecule.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import call, machine, missing_cells, started, truth_of, until_time_is_up, use_threads, write_rows
from cryofire.analysis.alignment import align_poses
from cryofire.config import Settings
from cryofire.data.read import read_particles
from cryofire.errors import ReconstructionFailure
from cryofire.inference.polish import ImageStates
from cryofire.settings_by_name import changed
from cryofire.simulation.molecules import read_molecule, write_molecule
from cryofire.training.checkpoint import load_checkpoint
from cryofire.training.run_folder import RunFolder
from cryofire.training.stages import Prepared, assign_all, find_consensus, prepare, refine_consensus

SNRS = (0.3, 0.1, 0.03, 0.01)
VIEWS = ("uniform", "preferred")
OFF_CENTRE = (0.01, 0.07)
"""Standard deviation of the shifts, as a fraction of the box."""
PARTICLES, BOX = 4000, 64
NEAR_DEG = 10.0
"""A pose this close to the truth has been found: refinement does the rest."""
KEY = ("molecule", "snr", "views", "off_centre", "seed")


@dataclass(frozen=True)
class Molecule:
    """What is simulated: a name, a file (none: the ribosome of the package), Å per pixel, and the chains that are there."""

    name: str
    file: Path | None
    pixel_size: float
    chains: str = "*"

    def words(self, folder: Path) -> list[str]:
        """For ``cryofire simulate``; a part of a molecule is written into a folder first."""
        if self.file is None:
            return ["--weights", "1", "--angles", "0"]
        if self.file.suffix in (".mrc", ".map"):
            return ["--maps", str(self.file)]
        if self.chains == "*":
            return ["--molecule", str(self.file)]
        whole, part = read_molecule(self.file), folder / f"{self.name}.npz"
        write_molecule(whole.take(whole.selected((self.chains,))), part)
        return ["--molecule", str(part)]


RIBOSOME = Molecule("80S", None, 7.54)


@dataclass(frozen=True)
class Cell:
    """One set of the map."""

    molecule: str
    snr: float
    views: str
    off_centre: float
    seed: int

    @property
    def key(self) -> tuple[str, float, str, float, int]:
        """What tells rows apart."""
        return self.molecule, self.snr, self.views, self.off_centre, self.seed


def main() -> int:
    """Run the cells that are missing, one after another, until all are there or the time is used up."""
    arguments = parser().parse_args()
    use_threads(arguments.threads)
    molecules = {one.name: one for one in (RIBOSOME, *arguments.molecule)}
    wanted = itertools.product(arguments.seeds, molecules, arguments.snr, VIEWS, OFF_CENTRE)
    cells = [Cell(molecule, snr, views, off, seed) for seed, molecule, snr, views, off in wanted]
    for cell in until_time_is_up(missing_cells(cells, arguments.json, KEY), arguments.minutes):
        row = {**asdict(cell), "machine_shared": arguments.shared, **measured(cell, molecules[cell.molecule])}
        print(json.dumps(row), flush=True)
        write_rows(arguments.json, machine(arguments.threads), [row], key=KEY)
    return 0


def parser() -> argparse.ArgumentParser:
    """Command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument(
        "--molecule",
        type=molecule_from,
        nargs="+",
        default=[],
        metavar="NAME=FILE:PIXEL[:CHAINS]",
        help="further molecules",
    )
    result.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds of set and run")
    result.add_argument("--snr", type=float, nargs="+", default=list(SNRS), help="signal-to-noise ratios")
    result.add_argument("--minutes", type=float, default=30.0, help="start no cell after so long")
    result.add_argument("--threads", type=int, default=2)
    result.add_argument("--shared", action="store_true", help="other work shared the machine: times are upper bounds")
    result.add_argument(
        "--json", type=Path, default=Path(__file__).resolve().parent / "results" / "robustness_map.json"
    )
    return result


def molecule_from(text: str) -> Molecule:
    """A molecule as it is written on the command line."""
    found = re.fullmatch(r"(?P<name>[^=]+)=(?P<file>.+?):(?P<pixel>[\d.]+)(:(?P<chains>[^:]+))?", text)
    if found is None:
        raise argparse.ArgumentTypeError("wanted is NAME=FILE:PIXEL[:CHAINS], such as IgG=1hzh.cif:3.8")
    return Molecule(found["name"], Path(found["file"]), float(found["pixel"]), found["chains"] or "*")


def measured(cell: Cell, molecule: Molecule) -> dict[str, Any]:
    """Simulate, find the consensus, compare with the truth; and what the run itself said."""
    folder, start = Path(tempfile.mkdtemp(prefix="cryofire-map-")), time.process_time()
    try:
        call([*simulation(cell, molecule, folder), "-o", str(folder / "set")])
        table = read_particles(folder / "set" / "particles.star")
        run = started(folder / "run", table, changed(Settings(), [f"seed={cell.seed}"]))
        prepared = prepare(run)
        try:
            assigned = assign_all(run, prepared, find_consensus(run, prepared))
            states = refine_consensus(run, prepared, assigned.states).states
        except ReconstructionFailure:
            return {"stopped": True, "noticed": True, "cpu_s": time.process_time() - start}
        search = load_checkpoint(RunFolder(folder / "run").checkpoint("search")).values
        return {
            "stopped": False, "noticed": not (search["locked"] and search["agreed"]),
            **errors(states, prepared, folder / "set" / "truth.star"), "cpu_s": time.process_time() - start,
        }  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def simulation(cell: Cell, molecule: Molecule, folder: Path) -> list[str]:
    """Words of ``cryofire simulate`` for a cell."""
    pixel = str(molecule.pixel_size)
    return [
        "simulate", *molecule.words(folder), "--particles", str(PARTICLES), "--box", str(BOX), "--pixel-size", pixel,
        "--snr-pixel-size", str(molecule.pixel_size / 2), "--snr", str(cell.snr), "--views", cell.views,
        "--shift-std", str(cell.off_centre * BOX * molecule.pixel_size), "--seed", str(cell.seed),
    ]  # fmt: skip


def errors(states: ImageStates, prepared: Prepared, truth: Path) -> dict[str, float]:
    """Errors of poses, and the share of them that has been found."""
    known, pixel = truth_of(truth, prepared).poses, prepared.grid.pixel_size
    found = align_poses(
        states.rotations.double().numpy(), pixel * states.shifts_px.double().numpy(),
        known.rotations.double().numpy(), pixel * known.shifts_px.double().numpy(),
    )  # fmt: skip
    return {
        "viewing_median_deg": float(np.rad2deg(np.median(found.direction_error))),
        "rotation_median_deg": float(np.rad2deg(np.median(found.rotation_error))),
        "found": float(np.mean(np.rad2deg(found.rotation_error) < NEAR_DEG)),
    }


if __name__ == "__main__":
    sys.exit(main())
