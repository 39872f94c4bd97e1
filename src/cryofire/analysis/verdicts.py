"""Judgements of a run in plain words: what to trust, what not, and what cannot be known."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from cryofire.analysis.plots import direction_density
from cryofire.analysis.report_html import count
from cryofire.analysis.run_files import read_estimates
from cryofire.analysis.run_record import MapRecord, RunRecord, Verdict, read_run
from cryofire.data.estimates import ParticleEstimates

MANY_UNUSABLE = 0.02
"""Share of unusable images that is worth a look."""
LEAST_CORE = 0.05
"""States that agree on a smaller share of their squared density have no common frame."""
HAND = Verdict(
    "caution",
    "Hand",
    "Images cannot tell a molecule from its mirror image. Before you interpret the hand, compare with a known "
    "structure, or look at helices once they are resolved.",
)

GIVEN = Verdict(
    "caution",
    "Poses",
    "Poses were given and kept: this run did not look at how sure they are. Both half maps share them, so that the curves of "
    "resolution are upper limits.",
)


def judge_run(record: RunRecord, estimates: ParticleEstimates | None) -> tuple[Verdict, ...]:
    """Verdicts on images, poses, views, resolution and states, the worst first within the order of a report.

    Parameters
    ----------
    record : RunRecord
        The run.
    estimates : ParticleEstimates, optional
        Without them only the maps are judged.
    """
    if record.species:
        images = () if estimates is None else (judge_images(estimates.used, record.left_out),)
        return (*images, judge_species(record), HAND)
    verdicts: list[Verdict | None] = []
    if estimates is not None and estimates.used.any():
        used = estimates.used
        verdicts += [
            judge_images(used, record.left_out, foreign=True),
            GIVEN if record.poses is not None else judge_poses(record, estimates.rotation_std[used]),
            judge_views(estimates.rotations[used]),
        ]
    verdicts += [
        judge_fit(record),
        judge_resolution(record),
        judge_states(record, estimates),
        judge_frames(record),
        HAND,
    ]
    return tuple(one for one in verdicts if one is not None)


def judge_species(record: RunRecord) -> Verdict:
    """Verdict on a mixture: what it is, and which of its species have doubts of their own.

    Parameters
    ----------
    record : RunRecord
        The run.
    """
    doubts, levels = [], set()
    for one in (kind for kind in record.species if kind.folder.is_dir()):
        own = read_run(one.folder)
        found = [
            verdict for verdict in judge_run(own, read_estimates(own)) if verdict.level != "good" and verdict != HAND
        ]
        levels |= {verdict.level for verdict in found}
        doubts += [f"{one.title}: {', '.join(verdict.topic.lower() for verdict in found)}"] if found else []
    if len(record.species) == 1:
        text = "The particles that show a structure are of one kind, which was reconstructed on its own. "
    else:
        text = f"The particles are of {len(record.species)} species that share no structure; each was reconstructed on its own. "
    text += f"Their reports have doubts ({'; '.join(doubts)})." if doubts else "None of their reports has a doubt."
    if record.left_out:
        levels.add("caution")
        text += f" {count(record.left_out)} images are unlike all others and show no structure that could be found "
        text += "(ice, contaminants, or too few particles of one kind). They have no poses."
    return Verdict("bad" if "bad" in levels else "caution" if levels else "good", "Species", text)


def judge_images(used: np.ndarray, set_aside: int = 0, foreign: bool = False) -> Verdict:
    """Verdict on how many images could be used.

    Parameters
    ----------
    used : array (particle,)
        True for usable images.
    set_aside : int
        Of the others, images that could be used, but were not.
    foreign : bool
        Those show something else than the particle; otherwise a verdict of its own says what they are.
    """
    unusable, in_all = int(np.sum(~used)) - set_aside, count(len(used))
    share, level = unusable / len(used), "good"
    text = f"All {in_all} images could be read."
    if unusable:
        text = f"{count(unusable)} of {in_all} images ({_percent(share)}) were unusable and were left out."
        if share >= MANY_UNUSABLE:
            level = "caution" if share < 0.2 else "bad"
            text += " `cryofire check` says what is wrong with them."
    if foreign and set_aside:
        text += (
            f" {count(set_aside)} ({_percent(set_aside / len(used))}) show something else than the particle, such as ice, gold or "
            "the edge of the carbon, and were left out: left_out.star lists them."
        )
    return Verdict(level, "Images", text)


def judge_poses(record: RunRecord, deviations: Float[np.ndarray, " particle"]) -> Verdict | None:
    """Verdict on rotations: how far their uncertainty blurs the rim of the molecule, against the resolution.

    Parameters
    ----------
    record : RunRecord
        For the size of the box and the best resolution.
    deviations : array (particle,)
        Stated uncertainty of rotations, radians.
    """
    finite = deviations[np.isfinite(deviations)]
    if finite.size == 0:
        return None
    median = float(np.median(finite))
    uncertain = float(np.mean(finite > np.deg2rad(10.0)))
    text = f"The typical rotation is certain to {np.rad2deg(median):.2g}° (median)"
    text += f"; {_percent(uncertain)} of the images are less certain than 10°." if uncertain > 0.005 else "."
    if median > np.deg2rad(10.0):
        return Verdict("bad", "Poses", text + " That is too little for a map with detail: do not interpret it.")
    best = _best_resolution(record)
    if best and record.box and record.pixel_size:
        blur = median * 0.3 * record.box * record.pixel_size
        text += f" At the rim of the molecule that is about {blur:.2g} Å, "
        text += (
            "finer than the resolution of the maps." if blur < best / 2 else "which limits the resolution of the maps."
        )
    return Verdict("good" if uncertain < 0.2 else "caution", "Poses", text)


def judge_fit(record: RunRecord) -> Verdict | None:
    """Verdict on whether the run found a solution at all: agreement of its starts, and signal that it leaves unexplained.

    Parameters
    ----------
    record : RunRecord
        The run.
    """
    if record.unexplained is None:
        return None
    share = _percent(max(record.unexplained, 0.0))
    text = f"Beyond the noise, {share} of the signal at low resolution is left unexplained."
    if record.search_locked is False:
        advice = " The search could not tell poses apart: the images are too noisy or too few. Do not trust the maps."
        return Verdict("bad", "Solution", text + advice)
    if record.unexplained > 0.15:
        advice = " Many images are in wrong poses, or a motion is missing. Run again with another --seed and compare."
        return Verdict("bad", "Solution", text + advice)
    if record.unexplained > 0.03:
        return Verdict("caution", "Solution", text + " Some images are in wrong poses, or move in ways not modelled.")
    if record.search_agreed is False:
        advice = " No two starts of the search came to the same score; another --seed should give the same maps."
        return Verdict("caution", "Solution", text + advice)
    agreed = " Independent starts of the search agreed." if record.search_agreed else ""
    return Verdict("good", "Solution", text + agreed)


def judge_views(rotations: Float[np.ndarray, "particle 3 3"]) -> Verdict:
    """Verdict on the coverage of viewing directions; opposite views show the same, so they are counted together.

    Parameters
    ----------
    rotations : array (particle, 3, 3)
        Finite rotations.
    """
    rows = int(np.clip(np.sqrt(len(rotations) / 60.0), 4, 12)) // 2 * 2
    density, *_ = direction_density(rotations, rows)
    both = 0.5 * (density + np.roll(density[::-1], rows, axis=1))
    empty, strongest = float(np.mean(both < 0.1)), float(both.max())
    if empty < 0.02 and strongest < 4:
        return Verdict("good", "Views", "The molecule is seen from all directions without a strong preference.")
    text = f"The most frequent view is {strongest:.1f} times as frequent as in an even distribution"
    if empty < 0.02:
        return Verdict("good", "Views", text + ", but no direction is missing.")
    text += f", and {_percent(empty)} of directions are nearly missing. "
    text += "The maps are smeared along the missing directions: look at the map of views below."
    return Verdict("caution" if empty < 0.4 else "bad", "Views", text)


def judge_resolution(record: RunRecord) -> Verdict | None:
    """Verdict on resolution against the limit set by the pixel size.

    Parameters
    ----------
    record : RunRecord
        The run.
    """
    best = _best_resolution(record)
    if best is None or not record.box or not record.pixel_size:
        return None
    finest = 2.0 * record.pixel_size
    if best < 1.15 * finest:
        text = f"The best map reaches {best:.1f} Å, close to the {finest:.1f} Å the pixel size allows: "
        return Verdict("good", "Resolution", text + "images with smaller pixels may show more.")
    if best > 0.12 * record.box * record.pixel_size:
        return Verdict(
            "bad",
            "Resolution",
            f"The best map reaches only {best:.0f} Å: overall shape at most, no detail to interpret.",
        )
    return Verdict(
        "good",
        "Resolution",
        f"The best map reaches {best:.1f} Å (the pixel size allows {finest:.1f} Å). Finer detail is noise.",
    )


def judge_states(record: RunRecord, estimates: ParticleEstimates | None) -> Verdict | None:
    """Verdict on the states: how many there are, and how sure the assignment of images is.

    Parameters
    ----------
    record : RunRecord
        The run.
    estimates : ParticleEstimates, optional
        For the probability of each assignment.
    """
    if record.heterogeneity == "homogeneous":
        return Verdict("good", "States", "No second conformation was found: the images agree with one map.")
    if record.heterogeneity == "unresolved":
        text = "Images that were held out show that the particles differ, but no single image tells how: the map is an average "
        text += "over conformations. `cryofire decode --pc 1` shows in what they differ; it needs a better signal to separate them."
        return Verdict("caution", "States", text)
    if record.heterogeneity == "continuous":
        text = "The molecule moves continuously; the maps are stations along the motion, not separate states. "
        text += "The order along the path is measured; its direction, and how fast it is passed, are not."
        return Verdict("caution", "States", text)
    if len(record.states) < 2:
        return None
    text = f"{len(record.states)} separate states were found. "
    small = [state for state in record.states if state.particles is not None and state.particles < 300]
    sure = _sure_share(estimates)
    if sure is not None:
        text += f"{_percent(sure)} of the images are assigned with more than 95 % probability. "
    if small:
        text += f"{_names(small)} rests on few images: its detail is uncertain."
    scattered = [record.states[index] for index in scattered_states(estimates, len(record.states))]
    if scattered:
        text += f" {_names(scattered)} is scattered far beyond the uncertainty: misplaced particles or a mixture of "
        text += "shapes rather than one conformation. Classify it again on its own."
    level = "caution" if small or scattered or (sure is not None and sure < 0.8) else "good"
    return Verdict(level, "States", text.strip())


def judge_frames(record: RunRecord) -> Verdict | None:
    """Verdict on the frame that conformations share.

    Parameters
    ----------
    record : RunRecord
        The run.
    """
    if record.frame_turn_deg is None or record.frame_core is None or len(record.states) < 2:
        return None
    if record.poses is not None:
        return Verdict("good", "Frame", "The states are in the frame of the poses that were given.")
    text = "A turn of the whole molecule and the opposite motion of its parts give the same images. "
    if record.frame_core < LEAST_CORE:
        text += "The states have too little in common to be laid on each other: compare their shapes, not their places."
        return Verdict("caution", "Frame", text)
    text += "The states are laid on each other by what does not move, which turned them by up to "
    return Verdict("good", "Frame", f"{text}{record.frame_turn_deg:.1f}°: as little matter as possible moves.")


def scattered_states(estimates: ParticleEstimates | None, states: int) -> list[int]:
    """States whose particles scatter over twice as far as the uncertainty of their latents, and as the other states do.

    Parameters
    ----------
    estimates : ParticleEstimates, optional
        Nothing is found without them.
    states : int
        Number of states.
    """
    if estimates is None or estimates.latents.shape[1] == 0:
        return []
    widths = np.zeros(states)
    for state in range(states):
        chosen = estimates.used & (estimates.state == state) & np.isfinite(estimates.latents).all(axis=1)
        if np.sum(chosen) >= 20:
            low, high = np.quantile(estimates.latents[chosen], [0.1587, 0.8413], axis=0)
            typical = np.sqrt(np.mean(np.square(estimates.latent_std[chosen]), axis=0))
            widths[state] = float(np.sqrt(np.mean(np.square(0.5 * (high - low) / np.maximum(typical, 1e-300)))))
    usual = float(np.min(widths[widths > 0], initial=np.inf))
    return [state for state in range(states) if widths[state] > 2.0 * max(usual, 1.0)]


def _sure_share(estimates: ParticleEstimates | None) -> float | None:
    if estimates is None or not estimates.used.any():
        return None
    return float(np.mean(estimates.state_probability[estimates.used] > 0.95))


def _names(states: list[MapRecord]) -> str:
    return ", ".join(state.title for state in states)


def _best_resolution(record: RunRecord) -> float | None:
    found = [one.resolution for one in (*record.states, record.consensus) if one is not None and one.resolution]
    return min(found, default=None)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"
