"""What a run of several species leaves for its user: the particles of all of them in one table, and their states in one list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from cryofire.analysis.run_record import MIXTURE
from cryofire.data.estimates import ParticleEstimates
from cryofire.errors import ReconstructionFailure
from cryofire.training.progress import StageCost, joined_costs, stage_costs
from cryofire.training.results import run_summary, write_estimates
from cryofire.training.run_folder import RunFolder
from cryofire.training.species import Species
from cryofire.training.stages import Prepared, Run

_FILES = ("map", "decoded", "half_maps")
"""What names files in the record of a state."""


def join_species(run: Run, prepared: Prepared, species: Sequence[Species]) -> None:
    """Write estimates, particles and results.json of all species together, without those whose run failed or that show nothing.

    Raises
    ------
    ReconstructionFailure
        All of them failed.
    """
    if (run.folder.path / "results.json").exists():
        return
    done = [one for one in species if (one.folder / "results.json").exists()]
    if not done:
        raise ReconstructionFailure("none of the species could be reconstructed: read their run.log in the run folder")
    found = [RunFolder(one.folder).read_json("results.json") for one in done]
    offsets = np.cumsum([0, *(len(one["states"]) for one in found)])
    parts = [ParticleEstimates.load(one.folder / "estimates.npz") for one in done]
    write_estimates(run, joined_estimates(len(run.table), parts, [one.rows for one in done], offsets))
    states, kinds = [], []
    for one, results, offset in zip(done, found, offsets, strict=False):
        share = len(one.rows) / len(prepared.rows)
        mine = [_in_whole(state, one.name, offset + place, share) for place, state in enumerate(results["states"])]
        states += mine
        kinds.append({
            "name": one.name, "particles": len(one.rows), "weight": share, "states": len(mine),
            "heterogeneity": results["heterogeneity"], "components": results["components"],
        })  # fmt: skip
    left_out = len(prepared.rows) - sum(len(one.rows) for one in done)
    left_out += sum(results.get("left_out", 0) for results in found)
    summary = {
        "particles_used": len(prepared.rows) - left_out, "left_out": left_out,
        "components": 0, "heterogeneity": MIXTURE, "states": states, "species": kinds,
    }  # fmt: skip
    costs = joined_costs([stage_costs(run.folder), *(_costs(one) for one in found)])
    run.folder.write_json(
        "results.json", {**run_summary(run, prepared), **summary, "stages": [asdict(cost) for cost in costs]}
    )


def _costs(results: Mapping[str, Any]) -> tuple[StageCost, ...]:
    return tuple(StageCost(**each) for each in results["stages"])


def _in_whole(state: Mapping[str, Any], folder: str, index: int, share: float) -> dict[str, Any]:
    """The record of a state as the run of all species has it: numbered through, files in the folder of its species."""
    files = {
        name: [f"{folder}/{one}" for one in state[name]] if name == "half_maps" else f"{folder}/{state[name]}"
        for name in _FILES
    }
    return {**state, **files, "name": f"state{index + 1}", "weight": share * state["weight"]}


def joined_estimates(
    count: int, parts: Sequence[ParticleEstimates], rows: Sequence[np.ndarray], offsets: Sequence[int] | np.ndarray
) -> ParticleEstimates:
    """Estimates of all particles from those of parts; rows in no part are unused.

    Latents are those of each part's own space, with NaN for coordinates that it does not have; states are numbered through.

    Parameters
    ----------
    count : int
        Particles in all.
    parts, rows : sequence of ParticleEstimates, sequence of array of int
        Estimates of each part, and which particles they belong to.
    offsets : sequence of int
        States before those of each part.
    """
    components = max(one.latents.shape[1] for one in parts)
    values: dict[str, np.ndarray] = {}
    for field in fields(ParticleEstimates):
        sample = getattr(parts[0], field.name)
        shape = (components,) if field.name in ("latents", "latent_std") else sample.shape[1:]
        empty = np.nan if sample.dtype.kind == "f" else 0
        values[field.name] = np.full((count, *shape), empty, dtype=sample.dtype)
        for part, mine in zip(parts, rows, strict=True):
            given = getattr(part, field.name)
            if given.ndim == 2 and field.name != "shifts":
                values[field.name][mine, : given.shape[1]] = given
            else:
                values[field.name][mine] = given
    for part, mine, offset in zip(parts, rows, offsets, strict=False):
        values["state"][mine] = np.where(part.used, part.state + offset, 0)
    return ParticleEstimates(**values)
