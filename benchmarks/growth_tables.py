"""How cost grows with images and with the box: tables and the picture; and what the kernels cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cryofire.config import PrepareSettings
from growth import exponents, series
from page import NOT_RUN, Results, Row, markdown_table

AXES = (
    ("particles", "box", 64, "images"),
    ("box", "particles", 2_000, "box"),
    ("box", "particles", 10_000, "box"),
    ("box", "particles", 20_000, "box"),
)
"""What grows, what stays, at which value, and what the first is called."""
LARGEST = PrepareSettings().largest_box
"""Largest box of a default run."""
LARGE_BOX = "box128"
"""The set of the robustness table that is one of box 128 with 20 000 images."""
PICTURE = "growth.svg"


def growth(results: Results) -> str:
    """Cost of each stage against the number of images and against the box."""
    rows = grown(results)
    text = (
        "Processor seconds of default runs on the default molecule in one field of view (`benchmarks/growth.py`). Search, "
        "subspace and teaching see a fixed number of images; consensus and latents at most 20 000; the others get their poses "
        "from the encoder in one pass. The exponent a of seconds ~ size^a is that between the two largest runs. "
        f"Machine: {results.machine('growth')}."
    )
    shared = " Other work shared the machine." if any(row["machine_shared"] for row in rows) else ""
    parts = ["## How cost grows", text + shared]
    if rows:
        parts.append(f"![processor seconds of each stage against images and box]({PICTURE})")
    for size, fixed, value, word in AXES:
        parts.append(f"{'Box' if fixed == 'box' else 'Images'}: {value}.")
        parts.append(_table(series(rows, size, fixed, value), size, word))
    beyond = "with `prepare.largest_box` at their size" if any(row["box"] > LARGEST for row in rows) else NOT_RUN
    parts.append(f"Boxes beyond {LARGEST}, to which a run crops larger images unless it is told otherwise: {beyond}.")
    return "\n\n".join(parts)


def grown(results: Results) -> list[Row]:
    """Costs of every stage of the runs made for this, and of that at box 128."""
    large = results.row("robustness", LARGE_BOX)
    if large is None:
        return results.rows("growth")
    costs = {
        "cpu_s": {stage["name"]: stage["cpu_s"] for stage in large["stages"]},
        "bytes_read": sum(stage["bytes_read"] for stage in large["stages"]),
    }
    return [*results.rows("growth"), {**large, **costs}]


def _table(rows: Sequence[Row], size: str, word: str) -> str:
    """One series."""
    if not rows:
        return markdown_table(["stage", word], [["all", NOT_RUN]])
    found = exponents(rows, size)
    names = list(dict.fromkeys(name for row in rows for name in row["cpu_s"]))
    lines = [
        [
            name,
            *(f"{row['cpu_s'][name]:.0f}" if name in row["cpu_s"] else "–" for row in rows),
            f"{found[name]:.2f}" if name in found else "–",
        ]
        for name in names
    ]
    lines.append(["all", *(f"{sum(row['cpu_s'].values()):.0f}" for row in rows), ""])
    lines.append(["wall time (s)", *(f"{row['wall_s']:.0f}" for row in rows), ""])
    lines.append(["peak memory (GB)", *(f"{row['peak_memory_gb']:.2f}" for row in rows), ""])
    lines.append(["read (GB)", *(f"{row['bytes_read'] / 1e9:.2f}" for row in rows), ""])
    head = [
        "stage",
        *(f"{row[size]} images" if word == "images" else f"box {row[size]}" for row in rows),
        "exponent",
    ]
    return markdown_table(head, lines)


def kernels(results: Results) -> str:
    """Processor time of the compiled kernels."""
    found = results.rows("kernels")
    rows = [
        [
            row["kernel"], str(row["latents"]), str(row["box"]), f"{row['ns']:.0f}",
            *([f"{row['against_ns']:.0f}", f"{row['against_ns'] / row['ns']:.1f}"] if "against_ns" in row else ["–", "–"]),
        ]
        for row in found
    ]  # fmt: skip
    head = ["kernel", "components", "box", "ns a coefficient", "before", "ratio"]
    text = (
        "What a pass over the images consists of, in processor nanoseconds for one Fourier coefficient of one image "
        "(`benchmarks/kernels.py`), on one core. Before: the same kernels point by point, without asking for memory ahead, "
        f"measured in turns with them. Machine: {results.machine('kernels')}."
    )
    return "\n\n".join(["## Kernels", text, markdown_table(head, rows) if rows else NOT_RUN])


def draw_growth(results: Results, folder: Path) -> None:
    """Write the picture: both series, one line a stage, on logarithmic axes; nothing where nothing was run."""
    rows = grown(results)
    if not rows:
        return
    with mpl.rc_context({"svg.hashsalt": "cryofire", "svg.fonttype": "none"}):
        figure = Figure(figsize=(13, 4), layout="constrained")
        axes = figure.subplots(1, len(AXES), sharey=True)
        names = list(dict.fromkeys(name for row in rows for name in row["cpu_s"]))
        for place, (size, fixed, value, word) in zip(axes, AXES, strict=True):
            _draw(place, series(rows, size, fixed, value), size, names)
            place.set_xlabel(f"{word}, {'box' if word == 'images' else 'images'} {value}")
        axes[0].set_ylabel("processor seconds")
        lines = {line.get_label(): line for place in axes for line in place.get_lines()}
        order = [*names, "all"]
        figure.legend([lines[name] for name in order], order, loc="outside right upper", frameon=False)
        figure.savefig(folder / PICTURE, metadata={"Date": None})


def _draw(axes: Axes, rows: Sequence[Row], size: str, names: Sequence[str]) -> None:
    """One panel; a stage has the colour of its place in `names` in every panel."""
    for number, name in enumerate(names):
        points = [(row[size], row["cpu_s"][name]) for row in rows if row["cpu_s"].get(name, 0) > 0]
        if not points:
            continue
        axes.plot(
            *zip(*points, strict=True),
            marker="o",
            markersize=3,
            linewidth=1,
            color=mpl.colormaps["tab20"](number),
            label=name,
        )
    axes.plot(
        [row[size] for row in rows],
        [sum(row["cpu_s"].values()) for row in rows],
        color="black",
        marker="o",
        label="all",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([row[size] for row in rows], [_short(row[size]) for row in rows])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)


def _short(number: int) -> str:
    return f"{number // 1000}k" if number >= 1000 else str(number)
