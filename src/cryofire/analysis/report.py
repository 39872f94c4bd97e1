"""The report of a run: one self-contained HTML page that says what was found and what to trust."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from cryofire.analysis import report_html as html
from cryofire.analysis.report_maps import maps_section, resolution_section
from cryofire.analysis.report_motion import motion_section
from cryofire.analysis.report_particles import (
    data_section,
    example_section,
    latent_section,
    pose_section,
    progress_section,
)
from cryofire.analysis.report_species import species_section
from cryofire.analysis.run_files import read_estimates, read_metrics
from cryofire.analysis.run_record import RunRecord, Verdict, read_run
from cryofire.analysis.verdicts import HAND, judge_run
from cryofire.data.estimates import ParticleEstimates
from cryofire.errors import InputError
from cryofire.formats.atomic import replacing

FILES = (
    ("report.html", "this page"),
    (
        "particles.star",
        "your particles with poses, origins, state, latent coordinates and uncertainties; opens in RELION",
    ),
    (
        "species1/",
        "the run of the largest species, with its report, maps, states and model; species2/ that of the next …",
    ),
    ("species1.star", "its particles, as they went into that run; opens in RELION"),
    ("states/", "maps of the states, their half maps, and the maps decoded from the latent space"),
    ("path/", "maps decoded along the path of a continuous motion, in their order"),
    ("consensus.mrc", "map from all images together"),
    ("latents.npz", "latent coordinates and their uncertainties, as NumPy arrays"),
    ("estimates.npz", "everything known of each particle, as NumPy arrays"),
    ("examples.npz", "the example images shown here"),
    ("results.json", "the numbers of this report, for scripts"),
    ("metrics.jsonl", "how each step of the run went"),
    ("settings.json", "the settings of the run, resolved"),
    ("inputs.json", "which files were read, with their hashes"),
    ("run.log", "log of the run"),
    ("checkpoints/", "where the run continues if it is started again"),
    ("cache/", "prepared images; may be deleted, and is made again when needed"),
)


def write_report(run_folder: Path) -> Path:
    """Write report.html of a run folder and return its path.

    Whatever a run did not reach is left out; an unfinished run gets a report that says so.

    Parameters
    ----------
    run_folder : Path
        Made by `cryofire reconstruct`.

    Raises
    ------
    MissingFileError
        There is no such folder.
    InputError
        The report cannot be written there.
    """
    try:
        record, problem = read_run(run_folder), None
    except InputError as error:
        if not run_folder.is_dir():
            raise
        record, problem = RunRecord(run_folder, finished=False), str(error)
    path = run_folder / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(render_report(record, problem), encoding="utf-8")
    return path


def render_report(record: RunRecord, problem: str | None = None) -> str:
    """Return the HTML page of a run.

    Parameters
    ----------
    record : RunRecord
        The run.
    problem : str, optional
        Why its results could not be read.
    """
    estimates, damage = _estimates(record)
    lines = read_metrics(record)
    one_kind = None if record.species else estimates
    middle = [
        species_section(record),
        maps_section(record),
        motion_section(record),
        resolution_section(record, estimates),
        latent_section(record, one_kind),
        pose_section(one_kind),
        example_section(record),
        data_section(record),
        progress_section(record, lines),
    ]
    anchors = [("trust", "What to trust")]
    names = ("species", "maps", "motion", "resolution", "conformations", "poses", "images", "data", "progress")
    anchors += [(name, name.capitalize()) for name, part in zip(names, middle, strict=True) if part]
    anchors += [("files", "Files"), ("next", "How to go on")]
    sections = [
        header(record, estimates, anchors),
        unfinished_section(record, problem or damage),
        trust_section(record, estimates),
        *middle,
        files_section(record),
        next_section(record),
    ]
    return html.page(f"cryofire: {_name(record)}", [part for part in sections if part])


def _estimates(record: RunRecord) -> tuple[ParticleEstimates | None, str | None]:
    """Estimates of the run, or why there are none although the run finished."""
    try:
        found = read_estimates(record)
    except InputError as error:
        return None, str(error) if record.finished else None
    return (found, None) if found.used.any() else (None, "No image of this run was usable.")


def _name(record: RunRecord) -> str:
    return Path(record.input).name if record.input else record.folder.resolve().name


def _title(record: RunRecord) -> str:
    """Name of the particle table with its folder, which tells sets apart."""
    return "/".join(Path(record.input).parts[-2:]) if record.input else _name(record)


def header(record: RunRecord, estimates: ParticleEstimates | None, anchors: Sequence[tuple[str, str]]) -> str:
    """Return the title, the key figures and the links of the page.

    Parameters
    ----------
    record : RunRecord
        The run.
    estimates : ParticleEstimates, optional
        For the typical uncertainty.
    anchors : sequence of (id, title)
        Sections to link to.
    """
    facts = [f"run folder {record.folder.resolve().name}"]
    facts += [f"cryofire {record.version}"] if record.version else []
    facts += [f"seed {record.seed}"] if record.seed is not None else []
    if record.box and record.pixel_size:
        facts.append(f"working grid {record.box} px of {record.pixel_size:.3g} Å")
    facts += [f"{record.contrast} particles"] if record.contrast else []
    facts += [f"signal to noise {record.snr:.2g}"] if record.snr else []
    links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title in anchors)
    tiles = "".join(html.tile(value, what) for value, what in _key_figures(record, estimates))
    return (
        f'<header><div class="soft">cryo-EM reconstruction</div><h1>{escape(_title(record))}</h1>'
        f'<div class="soft">{escape(" · ".join(facts))}</div><nav>{links}</nav>'
        f'<div class="tiles">{tiles}</div></header>'
    )


def _key_figures(record: RunRecord, estimates: ParticleEstimates | None) -> list[tuple[str, str]]:
    figures = []
    if record.particles is not None:
        used = record.particles_used if record.particles_used is not None else record.particles
        left_out = record.particles - used
        figures.append(
            (
                html.count(used),
                f"particles used, {html.count(left_out)} left out" if left_out else "particles, all used",
            )
        )
    if record.heterogeneity == "homogeneous":
        figures.append(("1 state", "homogeneous: no other conformation found"))
    elif record.heterogeneity == "unresolved":
        figures.append(("1 map", "of conformations that single images do not tell apart"))
    elif record.species:
        kinds = "kind of particles" if len(record.species) == 1 else "species that share no structure"
        figures.append((str(len(record.species)), f"{kinds}, in {len(record.states)} states"))
    elif record.states:
        kind = "stations along a continuous motion" if record.heterogeneity == "continuous" else "separate states"
        figures.append((str(len(record.states)), kind))
    best = min((one.resolution for one in (*record.states, record.consensus) if one and one.resolution), default=None)
    if best:
        finest = f" (pixel size allows {2 * record.pixel_size:.1f} Å)" if record.pixel_size else ""
        figures.append((f"{best:.1f} Å", f"best resolution at FSC 0.143{finest}"))
    if record.poses is not None:
        figures.append(("poses given", "and kept as they are"))
    elif estimates is not None:
        certain = np.rad2deg(np.nanmedian(estimates.rotation_std[estimates.used]))
        figures.append((f"± {certain:.2g}°", "typical uncertainty of a rotation"))
    times = [stage.wall_s for stage in record.stages if stage.wall_s is not None]
    if times:
        figures.append((html.duration(sum(times)), "from particles to maps"))
    return figures


def unfinished_section(record: RunRecord, problem: str | None) -> str:
    """Return a warning that the run did not finish, with the end of its log; nothing for a good run.

    Parameters
    ----------
    record : RunRecord
        The run.
    problem : str or None
        What went wrong in reading it.
    """
    if record.finished and problem is None:
        return ""
    log = record.folder / "run.log"
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:] if log.is_file() else []
    text = (
        "This run has no results yet: it is still going on, was interrupted, or failed. What it reached is shown below."
    )
    if record.finished:
        text = "This run ended, but some of its results are missing. What could be read is shown below."
    return html.section(
        "unfinished",
        "Do not use these results yet",
        html.paragraph(text),
        html.paragraph(problem) if problem else "",
        html.paragraph("The end of the log:", "soft") + html.commands(*tail) if tail else "",
        html.paragraph("Start the same command again to continue where it stopped."),
        kind="stop",
    )


def trust_section(record: RunRecord, estimates: ParticleEstimates | None) -> str:
    """Return the verdicts, the run's own or, where it left none, those drawn from its results.

    Parameters
    ----------
    record : RunRecord
        The run.
    estimates : ParticleEstimates, optional
        Of its particles.
    """
    verdicts: tuple[Verdict, ...] = record.verdicts or judge_run(record, estimates)
    if HAND.topic not in {one.topic for one in verdicts}:
        verdicts = (*verdicts, HAND)
    order = {"bad": 0, "caution": 1, "good": 2}
    ranked = sorted(verdicts, key=lambda one: order.get(one.level, 1))
    return html.section("trust", "What to trust", *(html.verdict(one) for one in ranked))


def files_section(record: RunRecord) -> str:
    """Return the files of the run folder that exist, and what each is for.

    Parameters
    ----------
    record : RunRecord
        The run.
    """
    rows = [
        [f"<code>{escape(name)}</code>", escape(what)]
        for name, what in FILES
        if name == "report.html" or ((record.folder / name).exists() and not _is_empty_folder(record.folder / name))
    ]
    return html.section("files", "Files of this run", html.table(("file", "what it is for"), rows))


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def next_section(record: RunRecord) -> str:
    """Return the commands with which a user goes on.

    Parameters
    ----------
    record : RunRecord
        The run.
    """
    run = record.folder.resolve().name
    maps = [f"{run}/{one.map.relative_to(record.folder).as_posix()}" for one in record.states if one.map]
    maps = maps or [f"{run}/consensus.mrc"]
    parts = ["<h3>Look at the maps in ChimeraX</h3>", html.commands(f"chimerax {' '.join(maps)}")]
    if record.frames:
        count = len(record.frames)
        parts.append(html.paragraph("The motion, as a film between the maps along its path:", "soft"))
        opened = f"chimerax {run}/path/frame*.mrc"
        parts.append(html.commands(opened, f"volume morph #1-{count}    # typed in ChimeraX"))
    sign = ""
    if record.contrast == "dark":
        sign = (
            "Your particles are dark, RELION expects white ones: invert them with relion_preprocess --invert_contrast."
        )
    parts += [
        "<h3>Refine further in RELION</h3>",
        html.commands(
            f"cryofire export {run}/ --relion poses.star",
            f"relion_refine --auto_refine --split_random_halves --i poses.star --ref {maps[0]} \\",
            "    --ini_high 30 --ctf --o Refine3D/state1 ...",
        ),
        html.paragraph(f"Poses, origins (Å) and states are in the frame of your own images. {sign}".strip(), "soft"),
        "<h3>Or in cryoSPARC</h3>",
        html.commands(f"cryofire export {run}/ --cryosparc poses.cs"),
        html.paragraph(
            "The rows keep their uid, so the file can be joined with the particles of your project.", "soft"
        ),
        "<h3>In Python</h3>",
        html.commands(
            "from cryofire.data.estimates import ParticleEstimates",
            "from pathlib import Path",
            f'estimates = ParticleEstimates.load(Path("{run}/estimates.npz"))  # poses, latents, states, uncertainties',
        ),
    ]
    return html.section("next", "How to go on", *parts)
