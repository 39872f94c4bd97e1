"""Plots of how a run went, from the lines of metrics.jsonl."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cryofire.analysis.map_pictures import state_colour
from cryofire.analysis.plots import GRID, SOFT, new_axes, styled, svg_text

Line = Mapping[str, object]
"""One line of metrics.jsonl."""


def column(lines: Sequence[Line], key: str) -> Float[np.ndarray, " line"]:
    """Values of one key, NaN where a line has none.

    Parameters
    ----------
    lines : sequence of mapping
        From `run_record.read_metrics`.
    key : str
        For example "log_likelihood".
    """
    found = (line.get(key) for line in lines)
    return np.array([float(one) if isinstance(one, int | float) else np.nan for one in found], dtype=np.float64)


def _finite(lines: Sequence[Line], key: str) -> bool:
    return bool(np.isfinite(column(lines, key)).any())


@styled
def search_plot(lines: Sequence[Line]) -> str | None:
    """Mean log-likelihood of each start of the search of all particles; None where there was no search.

    Parameters
    ----------
    lines : sequence of mapping
        From `run_record.read_metrics`.
    """
    searched = [line for line in lines if line.get("stage") == "search" and "group" not in line]
    if not _finite(searched, "log_likelihood"):
        return None
    figure, axes = new_axes()
    starts = column(searched, "start")
    starts[~np.isfinite(starts)] = 0.0
    for index, start in enumerate(np.unique(starts)):
        chosen = [line for line, one in zip(searched, starts, strict=True) if one == start]
        axes.plot(
            np.arange(1, len(chosen) + 1),
            column(chosen, "log_likelihood"),
            color=state_colour(index),
            label=f"start {int(start) + 1}",
        )
    axes.set(xlabel="step", ylabel="log-likelihood per image")
    if len(np.unique(starts)) > 1:
        axes.legend(loc="lower right")
    return svg_text(figure)


def _refinement(lines: Sequence[Line]) -> list[Line]:
    """Passes over the images: what was recorded at a resolution limit, after the searches."""
    return [line for line in lines if line.get("stage") not in ("search", "species", "prepare") and "shell" in line]


def misfit(lines: Sequence[Line], key: str = "log_likelihood") -> Float[np.ndarray, " line"]:
    """Mean squared residual per Fourier coefficient, −log-likelihood / n in units of the noise; NaN where unknown.

    Coefficients of the half plane up to shell s: n = π (s + ½)² / 2. Lines that state their misfit are taken at their word.

    Parameters
    ----------
    lines : sequence of mapping
        From `run_record.read_metrics`.
    key : str
        "log_likelihood" or "held_out".
    """
    coefficients = 0.5 * np.pi * (column(lines, "shell") + 0.5) ** 2
    found = -column(lines, key) / coefficients
    stated = column(lines, "misfit")
    return np.where(np.isfinite(stated), stated, found) if key == "log_likelihood" else found


@styled
def misfit_plot(lines: Sequence[Line]) -> str | None:
    """Misfit after the search, of all and of held-out images; None where no pass recorded a likelihood.

    Parameters
    ----------
    lines : sequence of mapping
        From `run_record.read_metrics`.
    """
    refined = _refinement(lines)
    curves = [("all images", misfit(refined), 0), ("held out", misfit(refined, "held_out"), 1)]
    if not any(np.isfinite(values).any() for _, values, _ in curves):
        return None
    figure, axes = new_axes()
    axes.axhline(1.0, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    _draw(axes, refined, curves)
    axes.set(xlabel="pass over the images", ylabel="misfit per coefficient")
    axes.legend(loc="upper right")
    return svg_text(figure)


@styled
def pose_change_plot(lines: Sequence[Line]) -> str | None:
    """How much poses still moved in each pass, logarithmic; None where no pass recorded it or none moved a pose.

    Parameters
    ----------
    lines : sequence of mapping
        From `run_record.read_metrics`.
    """
    refined = _refinement(lines)
    keys = (("rotation_change_deg", "rotation (°)", 0), ("shift_change_px", "shift (px)", 1))
    values = [(label, column(refined, key), index) for key, label, index in keys]
    curves = [(label, np.where(one > 0, one, np.nan), index) for label, one, index in values]
    if not any(np.isfinite(one).any() for _, one, _ in curves):
        return None
    figure, axes = new_axes()
    _draw(axes, refined, curves)
    axes.set_yscale("log")
    axes.set(xlabel="pass over the images", ylabel="change of poses")
    axes.legend(loc="upper right")
    return svg_text(figure)


def _draw(axes: Axes, lines: Sequence[Line], curves: Sequence[tuple[str, Float[np.ndarray, " line"], int]]) -> None:
    """Draw curves over the passes, broken where a pass recorded nothing."""
    for label, values, index in curves:
        if np.isfinite(values).any():
            axes.plot(np.arange(1, len(lines) + 1), values, ".-", color=state_colour(index), label=label)
    _mark_stages(axes, lines)


@styled
def limit_plot(lines: Sequence[Line], box_length: float) -> str | None:
    """Resolution limit used in each pass after the search, in Å; None where no pass recorded it.

    Parameters
    ----------
    lines : sequence of mapping
        From `run_record.read_metrics`.
    box_length : float
        Edge of the box, Å.
    """
    refined = _refinement(lines)
    shells = column(refined, "shell")
    present = np.isfinite(shells) & (shells > 0)
    if not present.any():
        return None
    figure, axes = new_axes()
    axes.step(
        np.arange(1, len(refined) + 1)[present], box_length / shells[present], ".-", where="mid", color=state_colour(0)
    )
    _mark_stages(axes, refined)
    axes.set(xlabel="pass over the images", ylabel="resolution limit (Å)", yscale="log")
    ticks = [tick for tick in (100, 70, 50, 40, 30, 25, 20, 15, 12, 10, 8, 7, 6, 5, 4, 3)
             if _within(tick, box_length / shells[present])]  # fmt: skip
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    return svg_text(figure)


def _within(value: float, values: Float[np.ndarray, " step"]) -> bool:
    return bool(0.8 * values.min() <= value <= 1.2 * values.max())


def _mark_stages(axes: Axes, lines: Sequence[Line]) -> None:
    """Shade every second stage and write the names of the stages along the top."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    names = [str(line.get("stage", "")) for line in lines]
    borders = [0, *(i for i in range(1, len(names)) if names[i] != names[i - 1]), len(names)]
    for place, (first, last) in enumerate(itertools.pairwise(borders)):
        if place % 2:
            axes.axvspan(first + 0.5, last + 0.5, color=GRID, alpha=0.6, linewidth=0, zorder=-1)
        if len(borders) > 2 and last - first > 0.12 * len(names):
            middle, top = (first + last + 1) / 2, axes.get_xaxis_transform()
            axes.text(middle, 1.01, names[first], transform=top, ha="center", fontsize=8.5, color=SOFT)
