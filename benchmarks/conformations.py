"""Sets in the manner of CryoBench: maps image by image, neighbourhoods, poses, with poses searched and with poses given.

    python benchmarks/conformations.py --antibody 1hzh.cif --ribosome 6zu5.cif --groel emd_1997.map [--minutes 30]
        [--work FOLDER] [--json benchmarks/results/conformations.json]

Sets whose files are not given are left out. Sets, runs and rows that are there already are not made again: the same command goes on
where it stopped, also within a run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from common import (
    add_piece_options,
    call,
    costs_of,
    finished,
    machine,
    missing_cells,
    truth_of,
    until_time_is_up,
    use_threads,
    write_rows,
)
from conformation_sets import BOX, PIXEL_SIZE, SETS, ConformationSet, Sources, simulate_set
from cryofire.analysis.alignment import MIRROR, RigidTransform
from cryofire.analysis.conformation_scores import (
    TrueMap,
    masked_area,
    neighbourhood_similarity,
    state_distances,
)
from cryofire.analysis.evaluate import LEAST_ALIGNED, aligned
from cryofire.analysis.map_alignment import match_grid, refine_map_alignment
from cryofire.analysis.run_record import state_groups
from cryofire.analysis.truth import Truth, find_truth_maps, read_truth
from cryofire.api import Reconstruction
from cryofire.data.estimates import ParticleEstimates
from cryofire.formats.mrc import read_map
from cryofire.training.stages import prepare
from oracle import pose_scores, true_states

SNRS = (0.1, 0.01)
PARTICLES = 10_000
Ints = Int[np.ndarray, " item"]

IMAGES = 100
"""Images whose decoded maps are compared with their true ones, as in CryoBench."""
KEY = ("set", "snr", "poses", "seed")
TRIED, FITTED_SHELL = 24, 20
"""Images whose poses are tried as a frame, and the last shell of the fit of two maps."""
GAVE_UP = 2
"""Exit status of a run that says that the data could not be explained; one that was killed has another."""
POSES = AB_INITIO, GIVEN = "ab initio", "given"


@dataclass(frozen=True)
class Cell:
    """One row of the table: a set, and whether its poses are searched or given."""

    kind: ConformationSet
    snr: float
    poses: str
    seed: int

    @property
    def key(self) -> tuple[str, float, str, int]:
        """What tells rows apart."""
        return self.kind.name, self.snr, self.poses, self.seed


def main() -> int:
    """Run the cells that are missing, one after another, until all are there or the time is used up."""
    arguments = parser().parse_args()
    use_threads(arguments.threads)
    sources = Sources(arguments.antibody, arguments.ribosome, arguments.groel)
    for kind in arguments.only:
        if lacking := sources.missing(kind):
            print(f"{kind} is left out: it needs {' and '.join(f'--{name}' for name in lacking)}")
    kinds = [one for one in SETS if one.name in arguments.only and not sources.missing(one.name)]
    wanted = itertools.product(arguments.seeds, arguments.snr, kinds, arguments.poses)
    cells = [Cell(kind, snr, poses, seed) for seed, snr, kind, poses in wanted]
    for cell in until_time_is_up(missing_cells(cells, arguments.json, KEY), arguments.minutes):
        row = {**dict(zip(KEY, cell.key, strict=True)), "machine_shared": arguments.shared}
        row |= measured(cell, sources, arguments)
        print(json.dumps(row), flush=True)
        write_rows(arguments.json, machine(arguments.threads), [row], key=KEY)
    return 0


def parser() -> argparse.ArgumentParser:
    """Command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--antibody", type=Path, help="atoms of PDB entry 1HZH")
    result.add_argument("--ribosome", type=Path, help="atoms of PDB entry 6ZU5 (default: those of the package)")
    result.add_argument("--groel", type=Path, help="map EMD-1997")
    names = [one.name for one in SETS]
    result.add_argument("--only", nargs="+", choices=names, default=names, help="kinds of sets")
    result.add_argument("--snr", type=float, nargs="+", default=list(SNRS), help="signal-to-noise ratios")
    result.add_argument("--poses", nargs="+", choices=POSES, default=list(POSES), help="found, or given")
    result.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of set and run")
    result.add_argument("--particles", type=int, default=PARTICLES)
    add_piece_options(result, "conformations", "start no cell after so long")
    return result


def measured(cell: Cell, sources: Sources, arguments: argparse.Namespace) -> dict[str, Any]:
    """Simulate and reconstruct what is not there yet, and score it."""
    particles = arguments.particles
    folder = arguments.work / f"{cell.kind.name}-{cell.snr:g}-{particles}-{cell.seed}"
    if not (folder / "truth.star").exists():
        simulate_set(cell.kind.name, cell.snr, particles, cell.seed, sources, folder)
    run = folder / cell.poses.replace(" ", "_")
    given = ["--poses", str(folder / "truth.star")] if cell.poses == GIVEN else []
    words = ["reconstruct", str(folder / "particles.star"), "-o", str(run), "--seed", str(cell.seed), *given]
    try:
        call(words, arguments.threads)
    except subprocess.CalledProcessError as error:
        if error.returncode != GAVE_UP:
            raise
        return {"particles": particles, "stopped": True}
    return {"particles": particles, "stopped": False, **scored(run, folder / "truth.star", cell.kind)}


def scored(run: Path, truth: Path, kind: ConformationSet) -> dict[str, Any]:
    """Scores of a finished run, of its poses' oracle, and what it cost."""
    made = Reconstruction.load(run)
    known = read_truth(truth, run / "particles.star")
    evaluation = made.evaluate(truth)
    costs = costs_of(made.folder)
    return {
        "viewing_median_deg": evaluation.poses.direction_median_deg,
        "rotation_median_deg": evaluation.poses.rotation_median_deg,
        **latent_scores(made, known, truth, kind.symmetric),
        "kind": made.record.heterogeneity, "components": made.record.components, "states_found": len(made.record.states),
        "adjusted_rand": evaluation.states.adjusted_rand,
        **oracle(run, truth),
        "wall_s": sum(cost.wall_s for cost in costs), "cpu_s": sum(cost.cpu_s for cost in costs),
        "peak_memory_gb": max(cost.peak_memory_bytes for cost in costs) / 1e9,
    }  # fmt: skip


def members(estimates: ParticleEstimates, known: Truth) -> dict[int, Int[np.ndarray, " row"]]:
    """Used rows of each true state, counted from 0."""
    labels = states_of(known)
    return {int(state): np.flatnonzero((labels == state) & estimates.used) for state in np.unique(labels)}


def states_of(known: Truth) -> Int[np.ndarray, " particle"]:
    """True states, counted from 0."""
    if known.labels is None:
        raise SystemExit("the truth has no states")
    return known.labels - 1


def latent_scores(made: Reconstruction, known: Truth, truth: Path, symmetric: Sequence[int]) -> dict[str, float | None]:
    """Areas under the FSC of decoded maps and poses, each state in its own frame, and neighbourhoods of the latent space."""
    estimates, labels = made.estimates, states_of(known)
    used = np.flatnonzero(estimates.used)
    latents = estimates.latents[used]
    truths = [TrueMap.of(match_grid(*read_map(path), BOX, PIXEL_SIZE), PIXEL_SIZE) for path in find_truth_maps(truth)]
    rows = members(estimates, known)
    frames, own_errors = frames_of(made, known, rows)
    frames |= {state: fitted(made, known, rows[state], truths[state]) for state in symmetric}

    def areas(points: Float[np.ndarray, "point component"], placed: Ints, states: Ints) -> list[float]:
        volumes = decoded(made, points, placed)
        return [masked_area(one, truths[state], frames[state]) for one, state in zip(volumes, states, strict=True)]

    images = used[np.linspace(0, len(used) - 1, IMAGES).astype(int)]
    by_image = areas(estimates.latents[images], estimates.state[images], labels[images])
    centres, placed = zip(*(centre(made, mine) for mine in rows.values()), strict=True)
    by_state = areas(np.stack(centres), np.array(placed), np.array(list(rows)))
    has_space = latents.size > 0 and not made.species
    return {
        "rotation_own_frame_median_deg": float(np.rad2deg(np.median(own_errors))),
        "image_area_mean": float(np.mean(by_image)), "image_area_std": float(np.std(by_image)),
        "state_area_mean": float(np.mean(by_state)),
        "neighbours": neighbourhood_similarity(latents, labels[used], state_distances(truths)) if has_space else None,
    }  # fmt: skip


def frames_of(
    made: Reconstruction, known: Truth, rows: dict[int, Ints]
) -> tuple[dict[int, RigidTransform], Float[np.ndarray, " row"]]:
    """What brings the maps of each true state into its frame, by its poses, and their rotation errors in radians."""
    own = {state: aligned(made.estimates, known, mine) for state, mine in rows.items() if len(mine) >= LEAST_ALIGNED}
    common = aligned(made.estimates, known, np.concatenate(list(rows.values())))
    errors = np.concatenate([one.rotation_error for one in own.values()])
    return {state: own.get(state, common).transform for state in rows}, errors


def fitted(made: Reconstruction, known: Truth, rows: Ints, truth: TrueMap) -> RigidTransform:
    """Frame of the map of a state by the map alone, for a symmetric molecule, whose poses share none.

    The pose of any one image that is right up to a symmetry gives a frame to begin with.
    """
    estimates = made.estimates
    point, place = centre(made, rows)
    (volume,) = decoded(made, point[None], np.array([place]))
    in_state = rows[estimates.state[rows] == np.bincount(estimates.state[rows]).argmax()]
    found, best = RigidTransform.identity(), -1.0
    for row in in_state[np.linspace(0, len(in_state) - 1, TRIED).astype(int)]:
        for mirrored in (False, True):
            pose = estimates.rotations[row]
            pose = MIRROR @ pose @ MIRROR if mirrored else pose
            one = RigidTransform(pose.T @ known.poses.rotations[row], np.zeros(3), mirrored)
            area = masked_area(volume, truth, one)
            if area > best:
                found, best = one, area
    return refine_map_alignment(volume, truth.volume, truth.pixel_size, FITTED_SHELL, found).transform


def decoded(
    made: Reconstruction, points: Float[np.ndarray, "point component"], states: Ints
) -> Float[np.ndarray, "point z y x"]:
    """Maps at latents of particles in some states of a run, in a mixture each by the model of its species."""
    if not made.species:
        return made.decode(points[:, : made.model.components])
    volumes = np.empty((len(points), BOX, BOX, BOX), dtype=np.float32)
    for record, one in zip(made.record.species, made.species, strict=True):
        mine = np.isin(states, record.states)
        if mine.any():
            volumes[mine] = decoded(one, points[mine], states[mine] - record.states.start)
    return volumes


def centre(made: Reconstruction, rows: Ints) -> tuple[Float[np.ndarray, " component"], int]:
    """Mean latent of those of some particles that are in the latent space of most of them, and a state there."""
    states = made.estimates.state[rows]
    most = max(state_groups(made.record), key=lambda one: int(np.isin(states, one).sum()))
    return made.estimates.latents[rows[np.isin(states, most)]].mean(axis=0), most.start


def oracle(run: Path, truth: Path) -> dict[str, float | None]:
    """What true poses and states reach: area of the back-projection of each state, and its images polished from the truth."""
    prepared = prepare(finished(run))
    known = truth_of(truth, prepared)
    if known.labels is None:
        return {"oracle_state_area_mean": None}
    states = true_states(prepared, known.poses, known.labels, truth.parent)
    areas = [
        masked_area(one.reached.numpy(), TrueMap.of(one.truth.numpy(), prepared.grid.pixel_size))
        for one in states.values()
    ]
    return {
        "oracle_state_area_mean": float(np.mean(areas)),
        **pose_scores(prepared, known.poses, list(states.values())),
    }


if __name__ == "__main__":
    sys.exit(main())
