"""What a run leaves for its user: maps, particles, latents and the summary that the report is made from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from cryofire.analysis.latent_space import LatentDescription, LatentPath
from cryofire.analysis.states import (
    StateMaps,
    StateSource,
    StateSums,
    decode,
    make_state_maps,
    members_of,
    observed_and_predicted,
    state_sums,
)
from cryofire.data.estimates import ParticleEstimates
from cryofire.data.export import write_cryosparc, write_relion, write_subset
from cryofire.data.particles import CryosparcSource
from cryofire.formats.atomic import replacing
from cryofire.formats.mrc import write_map
from cryofire.inference.consensus import NOISE_SAMPLE, Refinement, refinement_mask
from cryofire.inference.linear_model import LinearModel
from cryofire.inference.polish import LATENT, POSE
from cryofire.inference.unexplained import unexplained
from cryofire.training.checkpoint import load_checkpoint
from cryofire.training.frames import FRAMES, latent_description
from cryofire.training.progress import measured_stage, stage_costs
from cryofire.training.run_folder import RunFolder
from cryofire.training.stages import Prepared, Run, held, shared_shell
from cryofire.version import __version__

EXAMPLES = 8


def write_results(run: Run, prepared: Prepared, halves: Refinement, final: Refinement) -> None:
    """Tell the states apart, make their maps, and write everything a user takes away."""
    if (run.folder.path / "results.json").exists():
        return
    with measured_stage(run.folder, "states"):
        described = latent_description(run, final)
        shown = len(described.centers)
        run.progress.start("states", shown + 1)
        write_particles(run, prepared, final, described)
        summary = _write_maps(run, prepared, halves, final, described)
        if described.path is not None:
            summary["path"] = write_path(run.folder, final.model, described.path, prepared.grid.pixel_size)
        _write_examples(run, final)
        run.progress.finish()
    run.say(f"latent space: {described.kind}; {shown} state{'s' if shown > 1 else ''}")
    costs = {"stages": [asdict(cost) for cost in stage_costs(run.folder)]}
    run.folder.write_json("results.json", {**_summary(run, prepared, final), **summary, **costs})


def run_summary(run: Run, prepared: Prepared) -> dict[str, Any]:
    """What results.json says of the data and of the search, whatever was found."""
    return {
        "schema": 1,
        "version": __version__,
        "seed": run.settings.seed,
        "input": str(run.table.path),
        "poses": run.settings.poses,
        "particles": len(run.table),
        "particles_used": len(prepared.rows),
        "left_out": prepared.left_out,
        "box": prepared.grid.box,
        "pixel_size": prepared.grid.pixel_size,
        "contrast": "white" if prepared.is_white else "dark",
        "snr": prepared.snr,
        "max_shell": prepared.images.plane.max_shell,
        "search": _said_by(run.folder, "search"),
        "mask": (
            f"maps: soft sphere of radius {run.settings.refine.mask_radius:.2f} box; masked curves: automatic soft mask around the "
            "molecule, corrected by phase randomisation"
        ),
    }


def _summary(run: Run, prepared: Prepared, final: Refinement) -> dict[str, Any]:
    return {
        **run_summary(run, prepared),
        "components": int(final.states.latents.shape[1]),
        "unexplained": _unexplained(run, final),
        "frames": _said_by(run.folder, FRAMES).get(FRAMES, {}),
    }


def _said_by(folder: RunFolder, stage: str) -> dict[str, Any]:
    """The plain values a stage left when it last ran; empty for a run without it."""
    path = folder.last_checkpoint(stage)
    return dict(load_checkpoint(path).values) if path.exists() else {}


def _unexplained(run: Run, final: Refinement) -> float:
    rows = torch.arange(0, len(final.images), max(len(final.images) // NOISE_SAMPLE, 1))
    shell = min(run.settings.search.last_shell, final.images.plane.max_shell)
    return unexplained(final.images, final.states, final.model, rows, shell).fraction


def _write_maps(
    run: Run, prepared: Prepared, halves: Refinement, final: Refinement, described: LatentDescription
) -> dict[str, Any]:
    mask = refinement_mask(prepared.grid.box, run.settings.refine)
    source = StateSource(final, halves, prepared.half, mask, prepared.grid.pixel_size)
    states, total = [], state_sums(source, torch.arange(0))
    for index, centre in enumerate(described.centers):
        sums = state_sums(source, members_of(described.labels, index))
        record = _saved_maps(
            run, source, f"states/state{index + 1}", sums, torch.from_numpy(np.asarray(centre)).float()
        )
        states.append({**record, "latent_center": [float(value) for value in centre]})
        total = total.with_those_of(sums)
        run.progress.advance(1)
    consensus = _saved_maps(run, source, "consensus", total, torch.zeros(final.states.latents.shape[1]))
    run.progress.advance(1)
    return {"consensus": consensus, "states": states, "heterogeneity": described.kind}


def write_path(folder: RunFolder, model: LinearModel, path: LatentPath, pixel_size: float) -> dict[str, Any]:
    """Write ``path/frame1.mrc`` … decoded at points along a motion; what results.json says of them.

    Parameters
    ----------
    folder : RunFolder
        Run folder.
    model : LinearModel
        Whose latent space the path runs through.
    path : LatentPath
        The way of the motion.
    pixel_size : float
        Å, of the maps.
    """
    frames = []
    for number, (point, share) in enumerate(zip(path.points, path.share(), strict=True), start=1):
        file = f"path/frame{number}.mrc"
        (folder.path / file).parent.mkdir(exist_ok=True)
        write_map(folder.path / file, decode(model, torch.from_numpy(point).float()).numpy(), pixel_size)
        frames.append({"map": file, "latent": [float(value) for value in point], "weight": float(share)})
    return {"frames": frames, "closed": path.is_closed, "length": path.length, "curve": path.curve.tolist()}


def _saved_maps(
    run: Run,
    source: StateSource,
    stem: str,
    sums: StateSums,
    centre: Float[torch.Tensor, " component"],
) -> dict[str, Any]:
    maps = make_state_maps(source, sums, centre)
    files = {
        f"{stem}.mrc": maps.map, f"{stem}_half1.mrc": maps.half_maps[0], f"{stem}_half2.mrc": maps.half_maps[1],
        f"{stem}_decoded.mrc": maps.decoded,
    }  # fmt: skip
    for file, volume in files.items():
        write_map(run.folder.path / file, volume.numpy(), source.pixel_size)
    return {"name": stem.rsplit("/", maxsplit=1)[-1], **_map_record(maps, stem), **_population(sums, source, run)}


def _map_record(maps: StateMaps, stem: str) -> dict[str, Any]:
    return {
        "map": f"{stem}.mrc",
        "decoded": f"{stem}_decoded.mrc",
        "half_maps": [f"{stem}_half1.mrc", f"{stem}_half2.mrc"],
        "fsc": [round(float(value), 5) for value in maps.fsc],
        "fsc_masked": [round(float(value), 5) for value in maps.fsc_masked],
        "resolution": float(maps.resolution),
    }


def _population(sums: StateSums, source: StateSource, run: Run) -> dict[str, Any]:
    return {
        "particles": sums.images,
        "weight": sums.images / len(source.half),
        "shared_shell": _dependent_shell(run, source),
    }


def _dependent_shell(run: Run, source: StateSource) -> int:
    """Largest shell at which the halves are not independent; all of them share poses that were given."""
    if held(run.settings) is not None:
        return source.joint.images.plane.max_shell
    return shared_shell(run.settings, len(source.half))


def write_particles(run: Run, prepared: Prepared, final: Refinement, described: LatentDescription) -> None:
    """Write estimates.npz, latents.npz and the user's own table with poses, states and uncertainties."""
    write_estimates(run, particle_estimates(len(run.table), prepared, final, described))


def write_estimates(run: Run, estimates: ParticleEstimates) -> None:
    """Write what is known of each particle, for Python and into the user's own table."""
    estimates.save(run.folder.path / "estimates.npz")
    with replacing(run.folder.path / "latents.npz") as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            latents=estimates.latents,
            latent_std=estimates.latent_std,
            state=estimates.state,
            state_probability=estimates.state_probability,
            path_position=estimates.path_position,
        )
    write_relion(run.table, estimates, run.folder.path / "particles.star")
    if not estimates.used.all():
        write_subset(run.table, ~estimates.used, run.folder.path / "left_out.star")
    if isinstance(run.table.source, CryosparcSource):
        write_cryosparc(run.table, estimates, run.folder.path / "particles.cs")


def particle_estimates(
    count: int, prepared: Prepared, final: Refinement, described: LatentDescription
) -> ParticleEstimates:
    """Estimates in the order of the input table; particles that were not used get NaN."""
    rows, states, pixel = prepared.rows, final.states, prepared.grid.pixel_size
    deviations = final.deviations.numpy().astype(np.float64)
    log_likelihood = -final.misfit.numpy() * len(final.images.plane.truncated(final.shell))

    def spread(values: np.ndarray) -> np.ndarray:
        return _in_table(values, count, prepared)

    used = np.zeros(count, dtype=bool)
    used[rows] = True
    labels = np.zeros(count, dtype=np.int64)
    labels[rows] = described.labels
    return ParticleEstimates(
        rotations=spread(states.rotations.numpy()),
        shifts=spread(states.shifts_px.numpy() * pixel),
        rotation_std=spread(np.sqrt(np.square(deviations[:, :3]).sum(1))),
        shift_std=spread(np.sqrt(np.square(deviations[:, 3:POSE]).mean(1)) * pixel),
        latents=spread(states.latents.numpy()),
        latent_std=spread(deviations[:, LATENT:]),
        state=labels,
        state_probability=spread(np.asarray(described.probabilities)),
        path_position=spread(np.full(len(rows), np.nan) if described.path is None else described.path.positions),
        contrast=spread(states.contrast.numpy()),
        log_likelihood=spread(log_likelihood),
        used=used,
    )


def _in_table(values: np.ndarray, count: int, prepared: Prepared) -> np.ndarray:
    """Values of the prepared images in the order of the input table, NaN for particles that were not used."""
    full = np.full((count, *values.shape[1:]), np.nan)
    full[prepared.rows] = values
    return full


def _write_examples(run: Run, final: Refinement) -> None:
    rows = torch.linspace(0, len(final.images) - 1, min(EXAMPLES, len(final.images))).long()
    observed, predicted = observed_and_predicted(final, rows, max(final.images.plane.max_shell // 2, 1))
    with replacing(run.folder.path / "examples.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, observed=observed.numpy(), predicted=predicted.numpy(), particle=rows.numpy())
