"""Write docs/benchmarks.md from the JSON in benchmarks/results; what was not run is said to be not run.

A table is a function from `Results` to Markdown; to add one, write it and name it in `SECTIONS`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import numpy as np

from comparison_tables import conformations, paper, peers
from cryofire.data.cost import CostModel, estimated_cost
from encoder_tables import ablations, precision, published, stages_in_turn, unseen
from growth_tables import draw_growth, grown, growth, kernels
from page import (
    CONFUSION,
    MEMORY,
    NOT_RUN,
    OWN_FRAME,
    OWN_STATES,
    PROCESSOR,
    RATIO,
    SHIFT,
    SHIFT_ORACLE,
    VIEWING,
    VIEWING_MEAN,
    VIEWING_ORACLE,
    WALL,
    Results,
    Row,
    Score,
    markdown_table,
)
from robustness_map import NEAR_DEG, SNRS
from shortfalls import shortfalls

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parent / "docs" / "benchmarks.md"

QUALITY = (VIEWING, VIEWING_MEAN, OWN_FRAME, SHIFT, CONFUSION, RATIO, WALL, PROCESSOR, MEMORY)

SEEDS = range(5)
"""Of the default set."""
ROBUSTNESS = {
    "minus14db": "noise at −14 dB",
    "minus20db": "noise at −20 dB",
    "uncentred": "particles off centre by 35 Å (standard deviation)",
    "preferred": "three preferred views (κ = 6)",
    "white": "white particles, 4 000 of them",
    "empty": "30 % of the images without a particle",
    "contaminated": "2 % of the images with ice or gold over them",
    "real_views": "views, defocus and contrast spread of real data sets",
    "ice_noise": "noise with the spectrum of real ice",
    "homogeneous": "one state",
    "four_motions": "four states: small subunit turned by −10°, 0°, 10°, 20°",
    "four_states": "four states: small subunit turned by 0°, 10°, 20°, and the large subunit alone",
    "igg": "IgG (1HZH), one Fab turned by 40°, 70/30",
    "igg_continuum": "IgG, the Fab anywhere from 0° to 90°",
}
"""Sets by the name they are recorded under; all but the IgG sets are the default molecule with 10 000 particles at box 64."""


FRAMES = (
    "A turn of the whole molecule, and a conformation with its parts turned the other way, are the same image: a run is free to "
    "choose the frame of each state, and errors over all particles contain the difference of frames. Inside each state's own "
    "frame there is none."
)


def reference(results: Results) -> list[Row | None]:
    """Rows of the default set, seed by seed."""
    rows = {row["seed"]: row for row in results.rows("quality") if row["set"] == "default"}
    return [rows.get(seed) for seed in SEEDS]


def quality(results: Results) -> str:
    """Five seeds of the default set against the bounds and the oracle."""
    found = reference(results)
    bounds = results.bounds.get("default", {})
    rows = []
    for score in QUALITY:
        bound = bounds.get(score.key, {}).get("most")
        limit = "" if bound is None else "≤ " + score.form.format(bound) + score.unit
        rows.append([score.title, limit, *(score.text(row) for row in found), _oracle(score, found)])
    return "\n\n".join(
        [
            "## Quality on five seeds",
            "The default set: 80S ribosome in two states (90 / 10, small subunit turned by 10°), 10 000 particles of box 64 at "
            "7.54 Å/px, signal-to-noise ratio 0.1 at 3.77 Å/px; default settings, from the STAR file to the report. The oracle is "
            "back-projection with true poses and classes, filtered as the run's maps are; for poses it is Gauss–Newton from the "
            "truth against the true maps. " + FRAMES,
            markdown_table(["score", "must", *(f"seed {seed}" for seed in SEEDS), "oracle"], rows),
            f"Machine: {results.machine('quality')}. {_stage_names([row for row in found if row is not None])}",
        ]
    )


def _stage_names(rows: Sequence[Row]) -> str:
    """Which stages ran, so that a table of an earlier version is known as such."""
    names = list(dict.fromkeys(stage["name"] for row in rows for stage in row["stages"]))
    return f"Stages that ran: {', '.join(names)}." if names else f"Stages that ran: {NOT_RUN}."


def _oracle(score: Score, rows: Sequence[Row | None]) -> str:
    """What the oracle reaches, averaged over the sets: of confusion the Bayes confusion."""
    if score.key in {WALL.key, PROCESSOR.key, MEMORY.key}:
        return ""
    if score is OWN_FRAME:
        score = VIEWING
    if score is RATIO:
        return "1.00" if any(row is not None and row.get("oracle_resolution_at_half") for row in rows) else NOT_RUN
    name = "bayes_confusion" if score is CONFUSION else f"oracle_{score.key}"
    values = [row[name] for row in rows if row is not None and row.get(name) is not None]
    return score.form.format(mean(values)) + score.unit if values else NOT_RUN


def robustness(results: Results) -> str:
    """Other sets with the same default settings, and whether a run that failed said so."""
    columns = (
        VIEWING,
        VIEWING_MEAN,
        OWN_FRAME,
        VIEWING_ORACLE,
        SHIFT,
        SHIFT_ORACLE,
        CONFUSION,
        OWN_STATES,
        RATIO,
        PROCESSOR,
    )
    rows = []
    for name, what in ROBUSTNESS.items():
        row = results.row("robustness", name)
        mark = "" if row is None or row.get("default_settings", True) else " (\\*)"
        rows.append([what + mark, *(score.text(row) for score in columns), _states(row), _doubts(row)])
    head = ["set", *(score.title for score in columns), "states found / true", "what the run doubts itself"]
    parts = [
        "## Robustness",
        "One run each with the same default settings. A run is judged by its truth in the columns of numbers, and by itself in "
        "the last one: a run that failed has to say so. "
        + _stage_names([row for name in ROBUSTNESS if (row := results.row("robustness", name)) is not None]),
        markdown_table(head, rows),
    ]
    if any((results.row("robustness", name) or {}).get("default_settings") is False for name in ROBUSTNESS):
        parts.append(
            "(\\*) made with settings of an earlier version (more images for the latent space, more passes); its states were "
            "told apart by this one."
        )
    thinned = results.row("robustness", "empty")
    if thinned is not None:
        parts.append(
            f"Of the {thinned['empty']} images without a particle, {thinned['empty_used']} were taken for one; scores are of the "
            "others."
        )
    spoilt = results.row("robustness", "contaminated")
    if spoilt is not None:
        parts.append(f"Of the {spoilt['contaminated']} contaminated images, {spoilt['contaminated_used']} were used.")
    correlation = (results.row("robustness", "igg_continuum") or {}).get("coordinate_correlation")
    if correlation is not None:
        parts.append(
            f"Rank correlation of the first latent coordinate with the true angle in the continuum: {correlation:.3f}."
        )
    return "\n\n".join([*parts, *_remarks(results)])


def _states(row: Row | None) -> str:
    if row is None:
        return NOT_RUN
    if row.get("states_found") is None:
        return "–"
    found = (
        f"{row['states_found']} stations of a motion"
        if row.get("heterogeneity") == "continuous"
        else row["states_found"]
    )
    return f"{found} / {row['states_true']}"


def _doubts(row: Row | None) -> str:
    if row is None:
        return NOT_RUN
    return "; ".join(row["doubts"]) or "none" if "doubts" in row else "–"


def robustness_map(results: Results) -> str:
    """Where pose finding works."""
    cells: dict[tuple[str, str, float], dict[float, list[Row]]] = {}
    for row in results.rows("robustness_map"):
        place = (row["molecule"], row["views"], row["off_centre"])
        cells.setdefault(place, {}).setdefault(row["snr"], []).append(row)
    text = (
        "Sets of 4 000 particles of one conformation at box 64, up to the refined consensus (`benchmarks/robustness_map.py`). "
        f"A pose is found when it is within {NEAR_DEG:.0f}° of the truth, a set when four in five of its poses are. Each cell: "
        "sets found of those tried, median error of viewing directions in these; and of the sets that were lost, how many "
        "said so themselves."
    )
    if not cells:
        return "\n\n".join(["## Where pose finding works", text, NOT_RUN])
    found = [row for place in cells.values() for rows in place.values() for row in rows if _is_found(row)]
    text += f" Of the {len(found)} sets that were found, {sum(row['noticed'] for row in found)} doubted themselves."
    lines = [
        [molecule, views, f"{100 * off_centre:.0f} %", *(_found(place.get(snr, [])) for snr in SNRS)]
        for (molecule, views, off_centre), place in sorted(cells.items())
    ]
    head = ["molecule", "views", "off centre (share of the box)", *(f"SNR {snr:g}" for snr in SNRS)]
    return "\n\n".join(["## Where pose finding works", text, markdown_table(head, lines)])


def _is_found(row: Row) -> bool:
    return not row["stopped"] and row["found"] > 0.8


def _found(rows: Sequence[Row]) -> str:
    if not rows:
        return NOT_RUN
    good = [row for row in rows if _is_found(row)]
    lost = [row for row in rows if row not in good]
    parts = [f"{len(good)} of {len(rows)}"]
    if good:
        parts.append(f"{np.median([row['viewing_median_deg'] for row in good]):.2f}°")
    if lost:
        parts.append(f"{sum(row['noticed'] for row in lost)} of {len(lost)} lost said so")
    return ", ".join(parts)


def _remarks(results: Results) -> list[str]:
    """What was found out about sets that fail, kept beside their numbers."""
    remarks = results.content("remarks")
    known = [name for name in ROBUSTNESS if name in remarks and results.row("robustness", name) is not None]
    return [f"- **{ROBUSTNESS[name]}**: {remarks[name]}" for name in known]


def large_box(results: Results) -> str:
    """Box 128 with 20 000 particles."""
    row, bounds = results.row("robustness", "box128"), results.bounds.get("box128", {})
    rows = []
    for score in QUALITY:
        bound = bounds.get(score.key, {}).get("most")
        rows.append([score.title, "" if bound is None else "≤ " + score.form.format(bound), score.text(row)])
    text = "The same molecule at 3.77 Å/px, 20 000 particles, the same noise per area."
    shared = (
        "" if row is None or not row.get("machine_shared") else " Other programs ran on the machine at the same time."
    )
    return "\n\n".join(
        ["## Box 128", text + shared, markdown_table(["score", "must", "20 000 particles, box 128"], rows)]
    )


def cost(results: Results) -> str:
    """Cost of each stage."""
    small = [row for row in reference(results) if row is not None]
    large = results.row("robustness", "box128")
    small_stages, large_stages = _stages(small), _stages([large] if large else [])
    names = list(dict.fromkeys([*small_stages, *large_stages]))
    rows = [[name, *small_stages.get(name, [NOT_RUN] * 4), *large_stages.get(name, [NOT_RUN] * 4)] for name in names]
    columns = ("CPU s", "wall s", "peak GB", "MB read")
    head = ["stage", *(f"{name}, box 64" for name in columns), *(f"{name}, box 128" for name in columns)]
    return "\n\n".join(
        [
            "## Cost of each stage",
            "Box 64: 10 000 particles, mean of the five seeds. Box 128: 20 000 particles. Peak memory is that of the process so "
            "far; a cache that is mapped into memory is not counted as read.",
            markdown_table(head, rows),
        ]
    )


def _stages(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Mean cost of each stage, as cells."""
    stages: dict[str, list[Row]] = {}
    for row in rows:
        for stage in row["stages"]:
            stages.setdefault(stage["name"], []).append(stage)
    forms = (
        ("cpu_s", 1.0, "{:.0f}"),
        ("wall_s", 1.0, "{:.0f}"),
        ("peak_memory_bytes", 1e9, "{:.2f}"),
        ("bytes_read", 1e6, "{:.1f}"),
    )
    return {
        name: [form.format(mean(stage[key] for stage in found) / scale) for key, scale, form in forms]
        for name, found in stages.items()
    }


def estimate(results: Results) -> str:
    """What `cryofire check` expects against what was measured."""
    rows = []
    for row in sorted(grown(results), key=lambda row: (row["box"], row["particles"])):
        expected = estimated_cost(row["particles"], row["box"])
        rows.append(
            [
                f"{row['particles']} particles, box {row['box']}",
                f"{expected.seconds * CostModel().cores_in_use:.0f}",
                f"{sum(row['cpu_s'].values()):.0f}",
                f"{expected.memory_bytes / 1e9:.2f}",
                f"{row['peak_memory_gb']:.2f}",
            ]
        )
    text = (
        f"Its model counts processor seconds, and takes {CostModel().cores_in_use:g} of them to pass in a second on two cores. "
        "Its constants were fitted to these runs; see `cryofire.data.cost`. Pages of a mapped cache, which the system takes "
        "back when it needs them, are in the measured memory and not in the expected one."
    )
    head = ["run", "expected CPU s", "measured CPU s", "expected peak GB", "measured peak GB"]
    return "\n\n".join(["## What `cryofire check` expects", text, markdown_table(head, rows) if rows else NOT_RUN])


def others_win(results: Results) -> str:
    """Where the oracle or a peer is better."""
    return shortfalls(results, {**ROBUSTNESS, "default": "default set"})


SECTIONS: tuple[Callable[[Results], str], ...] = (
    paper, quality, peers, conformations, robustness, robustness_map,
    others_win, stages_in_turn, unseen, precision, ablations, published, large_box, cost, growth, kernels,
    estimate,
)  # fmt: skip


def document(results: Results) -> str:
    """The whole page."""
    head = (
        "# Benchmarks\n\n<!-- Written by benchmarks/write_docs.py from benchmarks/results/*.json: run it again. -->\n\n"
        "Simulated sets, scored against their truth. [benchmarks/](../benchmarks/README.md) says how to run each again. "
        f"What nobody ran says “{NOT_RUN}”."
    )
    return "\n\n".join([head, *(section(results) for section in SECTIONS)]) + "\n"


def recorded() -> Results:
    """What the repository holds."""
    return Results(HERE / "results", json.loads((HERE / "bounds.json").read_text(encoding="utf-8")))


def main() -> int:
    """Write the page, or only say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    text = document(recorded())
    if parser.parse_args().check:
        return 0 if DOCUMENT.exists() and DOCUMENT.read_text(encoding="utf-8") == text else 1
    DOCUMENT.write_text(text, encoding="utf-8")
    draw_growth(recorded(), DOCUMENT.parent)
    print(f"wrote {DOCUMENT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
