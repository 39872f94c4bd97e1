"""The stages of a run: each saves what it leaves, and does nothing when that is there already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from logging import Logger

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cryofire.config import RefineSettings, SearchSettings, Settings
from cryofire.data.measure import contrast_of, measure_images, signal_to_noise
from cryofire.data.particles import ParticleTable
from cryofire.errors import ReconstructionFailure
from cryofire.inference.assign import Assignment, assign_poses
from cryofire.inference.centring import Centres, find_centres, search_radius
from cryofire.inference.consensus import Refinement, refine, start_refinement
from cryofire.inference.polish import POSE, ImageStates
from cryofire.inference.prepare import (
    WorkingGrid,
    chosen_subset,
    estimate_noise,
    evenly_chosen,
    image_chunks,
    open_images,
    working_grid,
    write_coefficients,
)
from cryofire.inference.search import SHARP, SearchStep, search, search_shifts
from cryofire.inference.starts import agree
from cryofire.physics.imaging import WhitenedImages
from cryofire.training.checkpoint import (
    Checkpoint,
    centring_from,
    centring_parts,
    load_checkpoint,
    refinement_checkpoint,
    refinement_from,
    save_checkpoint,
    states_from,
    states_tensors,
)
from cryofire.training.progress import Progress, measured_stage
from cryofire.training.run_folder import RunFolder
from cryofire.volumes.halves import resolved_shell

CONTRAST_SAMPLE = 1000
STEPS_AFTER_ENCODER = 2
"""Gauss–Newton steps in a pass of images that come from the encoder: there are only few passes."""
FINER_SHELL, FINER_GRID = 5 / 3, 4
"""Resolution limit and rotations of a search for images in doubt, relative to those of the first search."""
LOCKED_POSES = 0.02
"""A search has locked when the posterior of an image spreads over less than this fraction of all poses."""


@dataclass(frozen=True)
class Run:
    """Everything the stages share.

    Attributes
    ----------
    folder : RunFolder
    table : ParticleTable
    settings : Settings
    progress : Progress
    logger : Logger
    is_species : bool
        The particles are one kind of those of another run.
    """

    folder: RunFolder
    table: ParticleTable
    settings: Settings
    progress: Progress
    logger: Logger
    is_species: bool = False

    def say(self, text: str) -> None:
        """Tell the log and the listener."""
        self.logger.info(text)
        self.progress.note(text)


@dataclass(frozen=True)
class Prepared:
    """What `prepare` leaves.

    Attributes
    ----------
    images : WhitenedImages
        Of the usable particles.
    half : Int[Tensor, "usable"]
        Random half, 0 or 1, that each belongs to.
    rows : Int[np.ndarray, "usable"]
        Their rows in the table.
    grid : WorkingGrid
    centres : Centres
    is_white : bool
        Particles are white in the stack.
    snr : float
        Signal-to-noise ratio of the images.
    left_out : int
        Images that could be used but show something else than the particle, and are not among these.
    """

    images: WhitenedImages
    half: Int[Tensor, " usable"]
    rows: np.ndarray
    grid: WorkingGrid
    centres: Centres
    is_white: bool
    snr: float
    left_out: int = 0

    def take(self, rows: Int[Tensor, " row"]) -> Prepared:
        """The same for some of the images, their coefficients held in memory."""
        return self._with(self.images.take(rows), rows)

    def among(self, rows: Int[Tensor, " row"]) -> Prepared:
        """The same for some of the images, their coefficients staying where they are."""
        return self._with(self.images.among(rows), rows)

    def keeping(self, rows: Int[Tensor, " row"]) -> Prepared:
        """The same for some of the images, the others being left out for good."""
        return replace(self.among(rows), left_out=self.left_out + len(self.rows) - len(rows))

    def _with(self, images: WhitenedImages, rows: Int[Tensor, " row"]) -> Prepared:
        centres = replace(self.centres, shifts_px=self.centres.shifts_px[rows])
        return replace(self, images=images, half=self.half[rows], rows=self.rows[rows.numpy()], centres=centres)


def prepare(run: Run) -> Prepared:
    """Check every image, measure contrast and noise, write the coefficient cache, find every centre."""
    path = run.folder.checkpoint("prepare")
    if not (path.exists() and run.folder.cache.exists()):
        with measured_stage(run.folder, "prepare"):
            save_checkpoint(path, _prepare(run))
    checkpoint = load_checkpoint(path)
    tensors, values = checkpoint.tensors, checkpoint.values
    grid = WorkingGrid(values["box"], values["pixel_size"])
    rows = tensors["rows"].numpy()
    images = open_images(run.table, rows, grid, tensors["noise"], run.folder.cache, values["is_white"])
    centres = Centres(tensors["centres_px"], values["residual_px"], centring_from(tensors, values))
    half = torch.randperm(len(rows), generator=torch.Generator().manual_seed(run.settings.seed + 17)) % 2
    return Prepared(images, half, rows, grid, centres, values["is_white"], values["snr"])


def _prepare(run: Run) -> Checkpoint:
    table, count = run.table, len(run.table)
    run.progress.start("prepare", 2 * count)
    grid = working_grid(table, run.settings.prepare)
    noise = estimate_noise(table, grid)
    is_white, snr = _contrast_and_snr(run)
    rows = write_coefficients(table, grid, noise, run.folder.cache, run.progress.advance)
    if len(rows) < count:
        run.say(f"{count - len(rows)} of {count} images are constant or not finite and are left out")
    images = open_images(table, rows, grid, noise, run.folder.cache, is_white)
    centres = find_centres(images, run.progress.advance)
    run.progress.finish()
    run.say(
        f"prepared {len(rows)} images: box {grid.box}, {grid.pixel_size:.2f} Å/px, particles "
        f"{'white' if is_white else 'dark'}, signal-to-noise ratio {snr:.3f}, "
        f"{'centred within' if centres.model.is_centred else 'off centre by'} "
        f"{centres.model.spread * grid.field_of_view:.1f} Å"
    )
    model, model_values = centring_parts(centres.model)
    tensors = {"rows": torch.from_numpy(rows), "noise": noise, "centres_px": centres.shifts_px, **model}
    values = {
        "box": grid.box, "pixel_size": grid.pixel_size, "is_white": is_white, "snr": snr,
        "residual_px": centres.residual_px, **model_values,
    }  # fmt: skip
    return Checkpoint(tensors, values)


def _contrast_and_snr(run: Run) -> tuple[bool, float]:
    sample = evenly_chosen(np.arange(len(run.table)), CONTRAST_SAMPLE)
    contrasts, ratios = [], []
    for piece, images in image_chunks(run.table, sample):
        measured = measure_images(images, run.table.optics.take(piece), run.table.pixel_size[piece])
        contrasts.append(measured.contrast)
        ratios.append(signal_to_noise(measured))
    contrast = contrast_of(np.concatenate(contrasts))
    if contrast.verdict == "unclear":
        run.say(
            "the contrast of the particles cannot be told from the images: taken to be dark, as unprocessed images are"
        )
    known = [ratio for ratio in ratios if np.isfinite(ratio)]
    return contrast.verdict == "white", float(np.mean(known)) if known else float("nan")


def find_consensus(run: Run, prepared: Prepared) -> Tensor:
    """Search a subset of the images from several starts; the best map, on the search's working box.

    Raises
    ------
    ReconstructionFailure
        No start explains anything, or one species of several, which may be what is no particle at all, does not tell its poses.
    """
    path = run.folder.checkpoint("search")
    if not path.exists():
        with measured_stage(run.folder, "search"):
            save_checkpoint(path, _search(run, prepared))
    found = load_checkpoint(path)
    if run.is_species and not found.values["locked"]:
        raise ReconstructionFailure(
            "its images do not tell their poses: they show no particle (ice, contaminants), or too few of one kind"
        )
    return found.tensors["volume"]


def _search(run: Run, prepared: Prepared) -> Checkpoint:
    settings = adapted_search(run, prepared)
    rows = chosen_subset(len(prepared.images), settings.images, run.settings.seed)
    run.progress.start("search", settings.least_starts * settings.steps)

    def report(step: SearchStep) -> None:
        run.folder.append_metrics({"stage": "search", **asdict(step)})
        run.progress.advance(int(step.step < settings.steps))  # how many more steps a start needs is not known before

    centres = prepared.centres.shifts_px[rows]
    starts = search(prepared.images.take(rows), centres, settings, run.settings.seed, report)
    run.progress.finish()
    gains = ", ".join(f"{start.gain:.2f}" for start in starts)
    run.say(f"search: {len(starts)} starts, held-out gain {gains}; {starts[0].effective_poses:.1f} poses an image")
    poses = settings.rotations * len(search_shifts(prepared.grid.box, settings))
    if starts[0].gain <= 0:
        raise ReconstructionFailure(
            "no structure was found: no start explains images it has not seen better than a sphere does\n  what to do: "
            "look at the images (cryofire check), give more or better particles, or raise search.most_images"
        )
    values = {
        "gains": [start.gain for start in starts],
        "effective_poses": starts[0].effective_poses,
        "locked": starts[0].effective_poses < LOCKED_POSES * poses,
        "agreed": len(starts) > 1 and agree(starts[0], starts[1], settings.agreement),
    }
    return Checkpoint({"volume": starts[0].volume}, values)


def adapted_search(run: Run, prepared: Prepared) -> SearchSettings:
    """Search settings with the disc of shifts fitted to how well the particles are centred."""
    settings = run.settings.search
    return replace(
        settings, shift_radius=min(settings.shift_radius, search_radius(prepared.centres, prepared.grid.box))
    )


def are_sure(run: Run) -> bool:
    """Whether images of the search had found their poses."""
    return bool(load_checkpoint(run.folder.checkpoint("search")).values["effective_poses"] < SHARP)


def assign_all(run: Run, prepared: Prepared, volume: Tensor) -> Assignment:
    """Assign all images to the map of the search, exhaustively.

    Images that are not sure of their poses at the resolution of the search are assigned once more, to the map of all of them, at a
    higher one and with a finer grid.
    """
    path = run.folder.checkpoint("assign")
    settings = adapted_search(run, prepared)
    if not path.exists():
        with measured_stage(run.folder, "assign"):
            found = _assigned(run, prepared, volume, settings)
            if not are_sure(run):
                finer = finer_search(settings, prepared.images.plane.max_shell)
                first = start_refinement(
                    prepared.images, prepared.half, found.states, finer.last_shell, run.settings.refine
                )
                found = _assigned(run, prepared, first.model.maps.joint[0], finer)
            save_checkpoint(path, Checkpoint({**states_tensors(found.states), "margin": found.margin}, {}))
    tensors = load_checkpoint(path).tensors
    return Assignment(states_from(tensors), tensors["margin"])


def _assigned(run: Run, prepared: Prepared, volume: Tensor, settings: SearchSettings) -> Assignment:
    run.progress.start("assign", len(prepared.images))
    found = assign_poses(
        prepared.images, volume, settings.last_shell, prepared.centres.shifts_px,
        search_shifts(prepared.grid.box, settings), settings.rotations, run.progress.advance,
    )  # fmt: skip
    run.progress.finish()
    return found


def finer_search(settings: SearchSettings, max_shell: int) -> SearchSettings:
    """Settings of a search for images that the first one left in doubt."""
    shell = min(round(FINER_SHELL * settings.last_shell), max_shell)
    return replace(settings, last_shell=shell, rotations=FINER_GRID * settings.rotations)


def refine_consensus(run: Run, prepared: Prepared, states: ImageStates) -> Refinement:
    """Refine poses and maps in independent halves."""

    def start() -> Refinement:
        shell = run.settings.search.last_shell
        return start_refinement(prepared.images, prepared.half, states, shell, run.settings.refine)

    return refined_in_passes(run, prepared, "consensus", start, run.settings.refine, joint=False)


def held(settings: Settings) -> slice | None:
    """Parameters of an image that do not move: the pose, where it was given."""
    return None if settings.poses is None else slice(0, POSE)


def shared_shell(settings: Settings, images: int) -> int:
    """Largest shell at which the halves are not independent: the search, and the encoder where it was used, saw both."""
    encoded = settings.encoder.max_shell if images > settings.refine.images else 0
    return max(settings.search.last_shell, encoded)


def refined_in_passes(
    run: Run, prepared: Prepared, stage: str, start: Callable[[], Refinement], settings: RefineSettings, joint: bool
) -> Refinement:
    """Run passes of a refinement from where its checkpoint left it, saving after each."""
    path = run.folder.checkpoint(stage)
    current = refinement_from(load_checkpoint(path), prepared.images) if path.exists() else None
    if current is not None and (current.settled or current.passes >= settings.passes):
        return current
    half = prepared.half
    with measured_stage(run.folder, stage):
        current = current if current is not None else start()
        run.progress.start(stage, settings.passes * len(prepared.images))
        shared = shared_shell(run.settings, len(prepared.images))
        passes = refine(current, half, shared, settings, run.progress.advance, joint, held(run.settings))
        for current in passes:
            save_checkpoint(path, refinement_checkpoint(current))
            _report_pass(run, stage, current)
        run.progress.finish()
    run.say(
        f"{stage}: {current.passes} passes, aligned to shell {current.shell}, halves agree to shell "
        f"{resolved_shell(current.model.maps.fsc[0])}"
    )
    return current


def _report_pass(run: Run, stage: str, current: Refinement) -> None:
    values: Mapping[str, float] = {
        "step": current.passes,
        "shell": current.shell,
        "log_likelihood": -float(current.misfit.mean()) * len(current.images.plane.truncated(current.shell)),
        "rotation_change_deg": float(np.degrees(current.rotation_change)),
        "shift_change_px": current.shift_change_px,
    }
    run.folder.append_metrics({"stage": stage, **values})
    run.logger.info("%s %s", stage, " ".join(f"{name}={value:.5g}" for name, value in values.items()))


def polish_halves(run: Run, prepared: Prepared, spread: Refinement) -> Refinement:
    """Passes of all images in halves, after the images that were not searched got their poses from the encoder."""
    settings = replace(run.settings.refine, passes=run.settings.amortise.half_passes, steps=STEPS_AFTER_ENCODER)
    return refined_in_passes(run, prepared, "halves", lambda: spread, settings, joint=False)


def polish_jointly(run: Run, prepared: Prepared, halves: Refinement) -> Refinement:
    """Last passes of every image against the maps of all images: the poses and latents that are reported."""

    def start() -> Refinement:
        return replace(halves, passes=0, settled=False)

    settings = replace(run.settings.refine, passes=run.settings.states.joint_passes)
    return refined_in_passes(run, prepared, "polish", start, settings, joint=True)
