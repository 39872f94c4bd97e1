"""The whole run, from a particle table to the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from cryofire.analysis.report import write_report
from cryofire.config import PUBLISHED, Settings
from cryofire.data.read import read_particles
from cryofire.errors import ReconstructionFailure, SettingError
from cryofire.inference.assign import Assignment
from cryofire.inference.consensus import Refinement, without_conformations
from cryofire.inference.encoder import PoseEncoder
from cryofire.inference.prepare import chosen_subset
from cryofire.physics.devices import accelerator_name
from cryofire.settings_by_name import check_recipe
from cryofire.training.amortise import amortise, deliver, spread_to_all
from cryofire.training.checkpoint import load_checkpoint, save_checkpoint
from cryofire.training.field import learn_field
from cryofire.training.frames import all_in_one_frame, in_one_frame
from cryofire.training.given_poses import given_states
from cryofire.training.latent_space import open_latent_space
from cryofire.training.outliers import leave_out_all_outliers, leave_out_outliers
from cryofire.training.progress import Progress, SilentProgress, measured_stage
from cryofire.training.published_results import run_published
from cryofire.training.results import write_results
from cryofire.training.run_folder import RunFolder, open_run_folder, start_log
from cryofire.training.second_opinion import second_opinion
from cryofire.training.species import Species, find_species
from cryofire.training.species_results import join_species
from cryofire.training.stages import (
    Prepared,
    Run,
    assign_all,
    find_consensus,
    held,
    polish_halves,
    polish_jointly,
    prepare,
    refine_consensus,
)

TURNS, RECONSIDERED = 2, 0.02
"""How often conformations are looked for at the most, and the fraction of moved images that is worth another turn."""


def reconstruct(
    particles: Path,
    output: Path,
    settings: Settings | None = None,
    datadir: Path | None = None,
    progress: Progress | None = None,
    passthrough: Sequence[Path] = (),
) -> RunFolder:
    """Run every stage on a particle table; a folder that holds an unfinished run of the same data is continued.

    Parameters
    ----------
    particles : Path
        STAR file of RELION or .cs file of cryoSPARC, with CTF parameters; poses in it are ignored unless `Settings.poses` names it.
    output : Path
        Run folder.
    settings : Settings, optional
        No setting is needed for ordinary data.
    datadir : Path, optional
        Folder that the stack paths are relative to.
    progress : Progress, optional
        Who listens.
    passthrough : sequence of Path
        Further .cs files of cryoSPARC, joined by uid.

    Raises
    ------
    InputError
        Something the user gave cannot be used; says what, where and what to do.
    ReconstructionFailure
        The data could not be explained.
    """
    run = _started(particles, output, settings, datadir, progress, passthrough)
    if name := accelerator_name():
        run.say(f"graphics processor: {name} (CUDA_VISIBLE_DEVICES= before the command keeps the run from it)")
    return run_all(run)


def run_all(run: Run) -> RunFolder:
    """Every stage of a run that was opened; raises as `reconstruct`."""
    prepared = prepare(run)
    if run.settings.recipe == PUBLISHED:
        run_published(run, prepared)
    else:
        run_default(run, prepared)
    if not (run.folder.path / "report.html").exists():
        with measured_stage(run.folder, "report"):
            write_report(run.folder.path)
    return run.folder


def run_default(run: Run, prepared: Prepared) -> None:
    """Search and open the latent space on a part of the images, teach the encoder, polish all, learn the field, deliver."""
    rows = chosen_subset(len(prepared.images), run.settings.refine.images, run.settings.seed + 3)
    is_part = len(rows) < len(prepared.images)
    part = prepared.take(rows) if is_part else prepared
    if held(run.settings) is None:
        part, assigned = leave_out_outliers(run, part, assign_all(run, part, find_consensus(run, part)))
        if not run.is_species and (species := find_species(run, prepared, part, assigned.states)):
            run_each(run, prepared, species)
            return
    else:
        given = Assignment.certain(given_states(run, part))
        run.say(f"poses: those of {run.settings.poses} are kept")
        part, assigned = leave_out_outliers(run, part, given)
    consensus = refine_consensus(run, part, assigned.states)
    halves, encoder = conformations(run, part, consensus, assigned.margin)
    if is_part:
        spread = spread_to_all(run, prepared, part, halves, encoder)
        prepared, spread = leave_out_all_outliers(run, prepared, spread)
        halves = all_in_one_frame(run, prepared, polish_halves(run, prepared, spread))
    else:
        prepared = part
    represented = learn_field(run, prepared, polish_jointly(run, prepared, halves))
    write_results(run, prepared, halves, represented.refinement)
    deliver(run, prepared, encoder, represented)


def run_each(run: Run, prepared: Prepared, species: Sequence[Species]) -> None:
    """Reconstruct every species in a run of its own, and write what all of them found together."""
    for number, one in enumerate(species, start=1):
        run.say(f"{one.name}, {number} of {len(species)}: {len(one.rows)} particles")
        within = _started(one.table, one.folder, run.settings, None, run.progress, ())
        if not (search := within.folder.checkpoint("search")).exists():
            save_checkpoint(search, load_checkpoint(one.search))
        try:
            run_all(replace(within, table=replace(within.table, opener=run.table.opener), is_species=True))
        except ReconstructionFailure as failure:
            run.say(f"{one.name} is left out: {failure}")
    join_species(run, prepared, species)


def conformations(
    run: Run, part: Prepared, consensus: Refinement, margin: Float[Tensor, " particle"]
) -> tuple[Refinement, PoseEncoder]:
    """Latent space, frames, an encoder that knows them, and its second opinion of the poses; those of little `margin` are in doubt.

    Where that moved many images, the latent space had been opened on wrong poses: all of it is done once more.
    """
    for turn in range(1, TURNS + 1):
        this = replace(run, folder=replace(run.folder, turn=turn))
        halves = in_one_frame(this, part, open_latent_space(this, part, consensus))
        encoder = amortise(this, part, halves)
        opinion = second_opinion(this, part, halves, encoder, margin)
        if opinion.moved <= RECONSIDERED * len(part.images):
            break
        if turn < TURNS:
            run.say("many poses were wrong when the latent space was opened: it is opened again")
            consensus = without_conformations(opinion.refined, part.half, run.settings.refine)
    return opinion.refined, encoder


def prepare_run(
    particles: Path,
    output: Path,
    settings: Settings | None = None,
    datadir: Path | None = None,
    progress: Progress | None = None,
    passthrough: Sequence[Path] = (),
) -> RunFolder:
    """Run the first stage alone: every image read, checked and whitened, and the coefficient cache written.

    `reconstruct` with the same folder continues from there, with any settings of the later stages.

    Parameters
    ----------
    particles, output, settings, datadir, progress, passthrough :
        As for `reconstruct`.

    Raises
    ------
    InputError
        Something the user gave cannot be used.
    """
    run = _started(particles, output, settings, datadir, progress, passthrough)
    prepare(run)
    return run.folder


def _started(
    particles: Path,
    output: Path,
    settings: Settings | None,
    datadir: Path | None,
    progress: Progress | None,
    passthrough: Sequence[Path],
) -> Run:
    """Read the table and open the run folder."""
    settings = settings if settings is not None else Settings()
    check_recipe(settings.recipe)
    if settings.poses is not None and settings.recipe == PUBLISHED:
        raise SettingError(
            f"the recipe {PUBLISHED} finds poses itself", field="poses", hint="leave --poses or --recipe out"
        )
    table = read_particles(particles, datadir, passthrough=passthrough)
    folder = open_run_folder(output, table, settings)
    run = Run(folder, table, settings, progress if progress is not None else SilentProgress(), start_log(folder))
    for note in table.notes:
        run.say(note)
    return run
