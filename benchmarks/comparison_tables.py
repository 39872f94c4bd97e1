"""Tables that set a run beside others: the paper's figures, other programs, and sets in the manner of CryoBench."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from conformation_sets import SETS
from conformations import AB_INITIO, GIVEN, IMAGES, PARTICLES, POSES, SNRS
from cryofire.config import PUBLISHED, RECIPES
from page import NOT_RUN, Results, Row, markdown_table, measured_on, processors
from paper import ROWS
from peer_programs import PROGRAMS

FIGURES = Path(__file__).resolve().parent / "published_figures.json"
LEVELS_DEG = (30.0, 10.0, 3.0, 1.0, 0.5)
"""Accuracies whose time is told."""
WORDS = {AB_INITIO: "found", GIVEN: "given"}


def paper(results: Results) -> str:
    """The table of the paper, with our rows beside the published ones."""
    published = json.loads(FIGURES.read_text(encoding="utf-8"))
    rows = sorted(results.rows("paper"), key=lambda row: not row["gpu"])
    lines = []
    for name in ROWS:
        for row in published["rows"]:
            if row["row"] == name:
                images = _images(name, bool(row.get("unseen")))
                lines.append([f"{images}: {row['method']}, published", *_figures(row), "–", "–", "A100"])
        for recipe in RECIPES:
            method = f"cryofire, `--recipe {recipe}`" if recipe == PUBLISHED else "cryofire"
            found = [row for row in rows if (row["row"], row["recipe"]) == (name, recipe)]
            lines.extend(line for row in found for line in _measured(name, method, row))
            if not found:
                lines.append([f"{_images(name)}: {method}", *[NOT_RUN] * 8])
    head = ["images: method", "time", "confusion, threshold", "resolution, major / minor (px)",
            "viewing direction, median / mean", "squared shift, median / mean (px²)", "viewing direction over oracle",
            "oracle: viewing direction, its Cramér–Rao bound (rms), Bayes confusion", "machine"]  # fmt: skip
    text = (
        "Two states of the 80S ribosome, 90 / 10, −10 dB, by the scores of the paper: angle between viewing directions, squared "
        "shift, threshold on the first principal component, FSC 0.5 (`python benchmarks/paper.py ROW`). Published rows are of "
        f"one A100 ({published['source'].split(';')[0]}); their conformations and ours are not the same maps. Rows at box 64 "
        "are the same molecule at half the sampling, and squared shifts are in their pixels; Nyquist is 2 px in all. "
        "Shared: other work ran beside it on the machine, so that the time is an upper bound."
    )
    return "\n\n".join(["## The paper's table", text, markdown_table(head, lines)])


def _images(name: str, unseen: bool = False) -> str:
    count, box = name.split("-")
    return f"10k unseen, after {count}, box {box}" if unseen else f"{count}, box {box}"


def _measured(name: str, method: str, row: Row) -> Iterator[list[str]]:
    """Lines of one of our rows: the learnt images, and unseen ones from the encoder alone and polished."""
    resolution = [row["resolution_px"].get(one) for one in ("state0.mrc", "state1.mrc")]
    oracle = row.get("oracle_viewing_median_deg")

    def ratio(one: Row) -> str:
        return "–" if oracle is None else f"{one['rotation'][0] / oracle:.2f}"

    presented = f", {row['published']['images']:.2g} images presented" if row.get("published") else ""
    yield [
        f"{_images(name)}: {method}{presented}",
        *_figures({**row, "time_s": row["wall_s"], "resolution_px": resolution}),
        ratio(row),
        _oracle(row),
        processors(row["machine"]),
    ]
    for one in row["unseen"]:
        how = "encoder alone" if one["polish"] == 0 else f"`--polish {one['polish']}`"
        yield [
            f"{_images(name, True)}: {method}, {how}",
            *_figures({**one, "time_s": one["wall_s"]}),
            ratio(one),
            "–",
            processors(row["machine"]),
        ]


def _oracle(row: Row) -> str:
    """What somebody reaches who knows the truth, and what nobody can go below."""
    forms = {"oracle_viewing_median_deg": "{:.2f}°", "bound_viewing_rms_deg": "{:.2f}°", "bayes_confusion": "{:.1g}"}
    return " / ".join(form.format(row[key]) if key in row else "–" for key, form in forms.items())


def _figures(row: Row) -> list[str]:
    resolution = row.get("resolution_px")
    return [
        _time(row["time_s"]) + (" (shared)" if row.get("machine_shared") else ""),
        "–" if row["confusion"] is None else f"{row['confusion']:.0e}" if row["confusion"] else "0",
        "–" if resolution is None else " / ".join("–" if one is None else f"{one:.1f}" for one in resolution),
        " / ".join(f"{one:.2g}°" for one in row["rotation"]),
        " / ".join(f"{one:.2g}" for one in row["translation"]),
    ]


def _time(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    return f"{hours}:{minutes:02d} h" if hours else f"{minutes} min" if minutes > 1 else f"{seconds:.0f} s"


def peers(results: Results) -> str:
    """Other programs on the same images."""
    rows = results.rows("peers")
    lines: list[list[str]] = []
    for key, program in PROGRAMS.items():
        name = f"`{key}`: {program.name}, {program.settings}"
        mine = [row for row in rows if (row["program"], row["settings"]) == (program.name, program.settings)]
        lines.extend([name, *_peer(row)] for row in sorted(mine, key=lambda row: int(row["particles"])))
        if not mine:
            lines.append([name, *[NOT_RUN] * (7 + len(LEVELS_DEG))])
    head = ["program: settings", "images", "machine", "wall time", "CPU seconds", "memory (GB)", "viewing direction, median / mean",
            "confusion, unsupervised", *(f"time to {level:g}°" for level in LEVELS_DEG)]  # fmt: skip
    text = (
        "Programs on the same particles, box 64 and signal-to-noise ratio 0.1, one after another, scored by the same scorer "
        "(`python benchmarks/peers.py PROGRAM … --particles IMAGES`). Times to a median error of viewing directions are those of "
        "the first poses written that have it. RELION looks for one structure and tells no states apart. A program that was "
        "stopped had not ended in the time it was given; 4 000 images are few for one that learns poses from nothing."
    )
    return "\n\n".join(["## Other programs", text, markdown_table(head, lines)])


def _peer(row: Row) -> list[str]:
    snapshots = row["snapshots"]
    stopped = "" if row["finished"] else " (stopped)"
    cells = [
        str(row["particles"]), measured_on(row), _time(row["wall_s"]) + stopped, f"{row['cpu_s']:.0f}",
        f"{row['peak_memory_gb']:.1f}",
    ]  # fmt: skip
    if not snapshots:
        return [*cells, "nothing written", "–", *["–"] * len(LEVELS_DEG)]
    last = snapshots[-1]
    wrong = last["confusion_unsupervised"]
    times = [
        next((_time(one["elapsed_s"]) for one in snapshots if one["viewing_median_deg"] <= level), "–")
        for level in LEVELS_DEG
    ]
    poses = f"{last['viewing_median_deg']:.2f}° / {last['viewing_mean_deg']:.2f}°"
    return [*cells, poses, "–" if wrong is None else f"{wrong:.2g}", *times]


def conformations(results: Results) -> str:
    """Sets in the manner of CryoBench."""
    found = {(row["set"], row["snr"], row["poses"]): row for row in results.rows("conformations")}
    lines = [
        [title_of(kind.name, snr, poses), *_conformation(found.get((kind.name, snr, poses)))]
        for kind in SETS
        for snr in SNRS
        for poses in POSES
    ]
    head = ["set", "FSC area, image by image: mean (deviation)", "state by state", "oracle, state by state",
            "neighbours", "viewing direction, median", "oracle", "rotation, own frames", "found: kind, components, states",
            "Bayes confusion", "CPU seconds", "machine"]  # fmt: skip
    text = (
        f"Sets in the manner of CryoBench, made by our simulator (`benchmarks/conformations.py`): {PARTICLES} particles of box 64 "
        "at 6 Å/px, the field of view of CryoBench, with its noise (SNR at 1.5 Å/px). FSC area: under the masked FSC of the "
        f"decoded map with the true one, over frequency in cycles per pixel, for {IMAGES} images and for the mean latent of each "
        "state; the most is 0.484. The poses of all images of a state bring its maps into the frame of the truth. The oracle "
        "back-projects each state with true poses. Neighbours: share of the 5 % nearest images in latent space that are "
        "nearest in truth as well. Poses given: the true ones, by `--poses`. One of the seven species, GroEL, is symmetric (D7): "
        "fourteen poses of an image are equally right and errors count one, and its maps are fitted to the true one."
    )
    return "\n\n".join(["## Sets in the manner of CryoBench", text, markdown_table(head, lines)])


def title_of(name: str, snr: float, poses: str) -> str:
    """What a row of these sets is called."""
    titles = {kind.name: kind.title for kind in SETS}
    return f"{titles[name]}; SNR {snr:g}; poses {WORDS[poses]}"


def _conformation(row: Row | None) -> list[str]:
    if row is None:
        return [NOT_RUN] * 11
    if row["stopped"]:
        return ["stopped: the run says that it failed", *["–"] * 10]

    def cell(key: str, form: str) -> str:
        return "–" if row.get(key) is None else form.format(row[key])

    return [
        f"{row['image_area_mean']:.3f} ({row['image_area_std']:.3f})", cell("state_area_mean", "{:.3f}"),
        cell("oracle_state_area_mean", "{:.3f}"), cell("neighbours", "{:.2f}"), cell("viewing_median_deg", "{:.2f}°"),
        cell("oracle_viewing_median_deg", "{:.2f}°"), cell("rotation_own_frame_median_deg", "{:.2f}°"),
        f"{row['kind']}, {row['components']}, {row['states_found']}", cell("bayes_confusion", "{:.2g}"), cell("cpu_s", "{:.0f}"),
        measured_on(row),
    ]  # fmt: skip
