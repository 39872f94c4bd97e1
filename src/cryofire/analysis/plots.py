"""Plots of a run as SVG text: resolution, latent space, views, histograms."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cryofire.analysis.map_pictures import state_colour
from cryofire.analysis.run_record import MapRecord, RunRecord

INK, SOFT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
ACCENT = state_colour(0)
DENSITY_ABOVE = 20_000
"""With more points than this a scatter plot becomes a density."""

_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "cryofire", "font.family": ["sans-serif"], "font.size": 10.5,
    "font.sans-serif": ["DejaVu Sans"], "axes.edgecolor": SOFT, "axes.labelcolor": INK, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
    "xtick.labelsize": 9.5, "ytick.labelsize": 9.5, "legend.frameon": False, "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
}  # fmt: skip


styled = mpl.rc_context(_STYLE)  # type: ignore[arg-type]
"""Decorator that draws a plot in the style of the report and leaves matplotlib's own settings alone."""


def new_axes(width: float = 4.4, height: float = 2.9, projection: str | None = None) -> tuple[Figure, Axes]:
    """Figure with one pair of axes.

    Parameters
    ----------
    width, height : float
        Inches; the page scales them.
    projection : str, optional
        As matplotlib names it, for example "mollweide".
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot(projection=projection)


def svg_text(figure: Figure) -> str:
    """Return the figure as SVG, the same text for the same figure.

    Parameters
    ----------
    figure : Figure
        From `new_axes`.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")), dpi=160)
    text = buffer.getvalue().replace("'DejaVu Sans'", "system-ui, 'Helvetica Neue', Arial, 'DejaVu Sans'")
    return text[text.index("<svg") :]


@styled
def resolution_plot(record: RunRecord) -> str | None:
    """Fourier shell correlation between half maps against resolution; None where the run has no curve.

    Parameters
    ----------
    record : RunRecord
        The run.
    """
    curves = _curves(record)
    if not curves or not record.box or not record.pixel_size:
        return None
    figure, axes = new_axes(5.8, 3.4)
    length = record.box * record.pixel_size
    for name, colour, style, curve in curves:
        axes.plot(np.arange(len(curve)) / length, curve, style, color=colour, label=name)
    last = max(len(curve) for *_, curve in curves) - 1
    for threshold in (0.5, 0.143):
        axes.axhline(threshold, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        axes.text(0.006 * last / length, threshold + 0.012, f"{threshold:g}", va="bottom", fontsize=9, color=SOFT)
    shared = max((state.shared_shell or 0 for state in record.states), default=0)
    if shared:
        axes.axvspan(0, shared / length, color=GRID, alpha=0.7, linewidth=0, zorder=-1)
        axes.text(0.5 * shared / length, 0.3, "common\nstart", ha="center", fontsize=9, color=SOFT)
    _resolution_axis(axes, length, last)
    axes.set(ylim=(-0.05, 1.03), ylabel="FSC between half maps")
    axes.legend(loc="lower left", bbox_to_anchor=(max(shared / last, 0.08), 0.17))
    return svg_text(figure)


def _curves(record: RunRecord) -> list[tuple[str, str | tuple[float, ...], str, Float[np.ndarray, " shell"]]]:
    """Name, colour, line style and values of every curve worth drawing."""
    found: list[tuple[str, str | tuple[float, ...], str, Float[np.ndarray, " shell"]]] = []
    for index, state in enumerate(record.states[:6]):
        curve = state.fsc_masked if state.fsc_masked is not None else state.fsc
        if curve is not None:
            found.append((_curve_label(state), state_colour(index), "-", curve))
    if record.consensus is not None and record.consensus.fsc is not None:
        found.append((_curve_label(record.consensus), SOFT, ":", record.consensus.fsc))
    return found


def _curve_label(one: MapRecord) -> str:
    return f"{one.title}: {one.resolution:.1f} Å" if one.resolution else one.title


def _resolution_axis(axes: Axes, length: float, last: int) -> None:
    """Label an axis of spatial frequency with resolutions in Å."""
    finest = length / max(last, 1)
    marks = [
        mark
        for mark in (100, 60, 40, 30, 25, 20, 17, 15, 12, 10, 9, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.5, 2)
        if mark >= finest
    ]
    shown: list[float] = []
    for mark in marks:
        if not shown or 1 / mark - 1 / shown[-1] >= 0.085 * last / length:
            shown.append(mark)
    axes.set_xticks([1 / mark for mark in shown], [f"{mark:g}" for mark in shown])
    axes.set(xlim=(0, last / length), xlabel="resolution (Å)")


@styled
def latent_plot(
    latents: Float[np.ndarray, "particle component"],
    states: Int[np.ndarray, " particle"],
    axes_shown: tuple[int, int],
    names: Sequence[str],
    path: Float[np.ndarray, "point component"] | None = None,
) -> str:
    """Two latent coordinates of every particle, coloured by state; a density where there are very many.

    Parameters
    ----------
    latents : array (particle, component)
        Finite coordinates.
    states : array (particle,)
        Counted from 0.
    axes_shown : tuple of int
        Components drawn to the right and up.
    names : sequence of str
        Of the states.
    path : array (point, component), optional
        Of a motion, drawn as a line with its points numbered.
    """
    figure, axes = new_axes(4.4, 3.7)
    x, y = latents[:, axes_shown[0]], latents[:, axes_shown[1]]
    if len(latents) > DENSITY_ABOVE:
        _density(axes, x, y, states)
    else:
        order = np.random.default_rng(0).permutation(len(x))
        colours = np.array([state_colour(int(state)) for state in states[order]])
        axes.scatter(x[order], y[order], s=max(3.5, 14 - len(x) / 700), c=colours, alpha=0.55, lw=0, rasterized=True)
    for index in range(len(names)):
        if np.any(states == index):
            axes.scatter([], [], s=30, color=state_colour(index), label=names[index])
    if len(names) > 1:
        axes.legend(loc="best", markerscale=1.0)
    if path is not None:
        axes.plot(path[:, axes_shown[0]], path[:, axes_shown[1]], "o-", color=INK, ms=5, lw=1.2)
        for number, point in enumerate(path[:, axes_shown], start=1):
            axes.annotate(f"{number}", point, (5, 4), textcoords="offset points", color=INK, fontweight="bold")
    _robust_limits(axes, x, y)
    axes.set(xlabel=f"latent coordinate {axes_shown[0] + 1}", ylabel=f"latent coordinate {axes_shown[1] + 1}")
    return svg_text(figure)


def _density(
    axes: Axes,
    x: Float[np.ndarray, " particle"],
    y: Float[np.ndarray, " particle"],
    states: Int[np.ndarray, " particle"],
) -> None:
    """Draw counts on a grid, logarithmic, in the mean colour of the states they come from."""
    edges = [_bin_edges(one, 120) for one in (x, y)]
    total, mixture = np.zeros((120, 120)), np.zeros((120, 120, 3))
    for state in np.unique(states):
        counts, *_ = np.histogram2d(x[states == state], y[states == state], bins=edges)
        total += counts
        mixture += counts[..., None] * np.array(state_colour(int(state)))
    alpha = np.log1p(total) / max(float(np.log1p(total.max())), 1e-12)
    picture = np.concatenate([mixture / np.maximum(total, 1)[..., None], alpha[..., None]], axis=-1)
    extent = (edges[0][0], edges[0][-1], edges[1][0], edges[1][-1])
    axes.imshow(np.swapaxes(picture, 0, 1), origin="lower", extent=extent, aspect="auto", interpolation="none")


def _bin_edges(values: Float[np.ndarray, " particle"], bins: int) -> list[float]:
    """Edges of equal bins over all but the most extreme thousandth of the values."""
    low, high = (float(one) for one in np.quantile(values, [0.0005, 0.9995]))
    margin = max(0.02 * (high - low), 0.02 * max(abs(high), 1e-9))
    return [float(edge) for edge in np.linspace(low - margin, high + margin, bins + 1)]


def _robust_limits(axes: Axes, x: Float[np.ndarray, " particle"], y: Float[np.ndarray, " particle"]) -> None:
    """Limit axes to where nearly all points are, so that a few outliers do not squeeze the rest."""
    for set_limits, values in ((axes.set_xlim, x), (axes.set_ylim, y)):
        low, high = np.quantile(values, [0.0005, 0.9995])
        margin = 0.06 * max(float(high - low), 1e-9)
        set_limits(float(low) - margin, float(high) + margin)


@styled
def coordinate_histogram(
    values: Float[np.ndarray, " particle"],
    states: Int[np.ndarray, " particle"],
    deviation: float,
    component: int,
) -> str:
    """Histogram of one latent coordinate, stacked by state, with a bar as wide as the uncertainty of one particle.

    Parameters
    ----------
    values : array (particle,)
        Finite coordinates.
    states : array (particle,)
        Counted from 0.
    deviation : float
        Typical posterior standard deviation.
    component : int
        Counted from 0, for the label.
    """
    figure, axes = new_axes()
    edges = _bin_edges(values, 60)
    present = np.unique(states)
    axes.hist(
        [values[states == state] for state in present],
        bins=edges,
        stacked=True,
        color=[state_colour(int(state)) for state in present],
    )
    if np.isfinite(deviation) and deviation > 0:
        top = axes.get_ylim()[1]
        axes.set_ylim(0.0, 1.3 * top)
        middle = edges[0] + max(0.16 * (edges[-1] - edges[0]), deviation)
        axes.errorbar([middle], [1.22 * top], xerr=[deviation], color=INK, capsize=3, linewidth=1.2)
        axes.text(
            middle - deviation, 1.17 * top, "uncertainty of one image", ha="left", va="top", fontsize=8.5, color=SOFT
        )
    axes.set(xlabel=f"latent coordinate {component + 1}", ylabel="particles")
    return svg_text(figure)


@styled
def direction_plot(rotations: Float[np.ndarray, "particle 3 3"]) -> str:
    """Map of viewing directions over the sphere (Mollweide, equal areas), relative to a uniform distribution.

    Parameters
    ----------
    rotations : array (particle, 3, 3)
        Finite rotations, r_image = R r_volume; the direction is the image's z axis in the volume.
    """
    longitude, latitude = np.linspace(-np.pi, np.pi, 145), np.linspace(-np.pi / 2, np.pi / 2, 73)
    middle = np.meshgrid(0.5 * (latitude[1:] + latitude[:-1]), 0.5 * (longitude[1:] + longitude[:-1]), indexing="ij")
    density = smooth_density(rotations, unit_vectors(middle[1], np.sin(middle[0])))
    figure, axes = new_axes(5.0, 2.9, projection="mollweide")
    ceiling = max(2.0, float(np.quantile(density, 0.998)))
    shades = axes.pcolormesh(longitude, latitude, density, cmap="cividis", vmin=0.0, vmax=ceiling, rasterized=True)
    axes.grid(color="white", alpha=0.25, linewidth=0.6)
    axes.set_xticks(np.deg2rad([-120, -60, 0, 60, 120]), [])
    axes.set_yticks(np.deg2rad([-60, -30, 0, 30, 60]), ["−60°", "−30°", "0°", "30°", "60°"])
    bar = figure.colorbar(shades, ax=axes, shrink=0.75, pad=0.03)
    bar.set_label("times uniform")
    bar.outline.set_visible(False)
    return svg_text(figure)


def unit_vectors(
    longitude: Float[np.ndarray, "*axes"], height: Float[np.ndarray, "*axes"]
) -> Float[np.ndarray, "*axes xyz"]:
    """Return the unit vectors of longitudes (radians) and heights z = sin(latitude).

    Parameters
    ----------
    longitude, height : array
        Same shape; heights within −1 … 1.
    """
    radius = np.sqrt(np.maximum(1.0 - height**2, 0.0))
    return np.stack([radius * np.cos(longitude), radius * np.sin(longitude), height], axis=-1)


def smooth_density(
    rotations: Float[np.ndarray, "particle 3 3"], places: Float[np.ndarray, "*axes xyz"]
) -> Float[np.ndarray, "*axes"]:
    """Density of viewing directions at places on the sphere, over that of as many uniform directions.

    Directions are counted on cells of equal area, then spread with the kernel exp((x·c − 1) / σ²), with σ between 4°
    and 20° such that it holds about a hundred particles.

    Parameters
    ----------
    rotations : array (particle, 3, 3)
        Finite rotations.
    places : array (..., 3)
        Unit vectors.
    """
    counts, column_edges, height_edges = direction_density(rotations)
    columns, heights = 0.5 * (column_edges[1:] + column_edges[:-1]), 0.5 * (height_edges[1:] + height_edges[:-1])
    centres = unit_vectors(np.broadcast_to(columns, counts.shape), np.broadcast_to(heights[:, None], counts.shape))
    width = float(np.clip(np.sqrt(200.0 / len(rotations)), np.deg2rad(4.0), np.deg2rad(20.0)))
    kernel = np.exp((places.reshape(-1, 3) @ centres.reshape(-1, 3).T - 1.0) / width**2)
    return np.asarray((kernel @ counts.ravel() / kernel.sum(axis=1)).reshape(places.shape[:-1]))


def direction_density(
    rotations: Float[np.ndarray, "particle 3 3"], rows: int = 24
) -> tuple[Float[np.ndarray, "row column"], Float[np.ndarray, " column_edge"], Float[np.ndarray, " row_edge"]]:
    """Return counts of viewing directions on cells of equal area over the mean, and the edges of the cells.

    Edges are longitudes in radians and heights z = sin(latitude).

    Parameters
    ----------
    rotations : array (particle, 3, 3)
        Finite rotations.
    rows : int
        Cells from pole to pole; there are twice as many around.
    """
    direction = rotations[:, 2, :]
    longitude = np.arctan2(direction[:, 1], direction[:, 0])
    height = np.clip(direction[:, 2], -1.0, 1.0)
    column_edges, height_edges = np.linspace(-np.pi, np.pi, 2 * rows + 1), np.linspace(-1.0, 1.0, rows + 1)
    counts, *_ = np.histogram2d(height, longitude, bins=[height_edges, column_edges])
    return counts / max(counts.mean(), 1e-12), column_edges, height_edges


@styled
def histogram(values: Float[np.ndarray, " particle"], label: str, mark: tuple[float, str] | None = None) -> str:
    """Histogram of one quantity, without its most extreme thousandth.

    Parameters
    ----------
    values : array (particle,)
        Finite numbers.
    label : str
        Of the horizontal axis, with its unit.
    mark : tuple, optional
        A value drawn as a line, and what it is called.
    """
    figure, axes = new_axes()
    axes.hist(values, bins=_bin_edges(values, 60), color=ACCENT)
    if mark is not None:
        axes.axvline(mark[0], color=INK, linewidth=1.2, label=mark[1])
        axes.legend(loc="upper right")
    axes.set(xlabel=label, ylabel="particles")
    return svg_text(figure)


@styled
def shift_plot(shifts: Float[np.ndarray, "particle 2"]) -> str:
    """Density of the shifts in the image plane.

    Parameters
    ----------
    shifts : array (particle, 2)
        Å.
    """
    figure, axes = new_axes(4.6, 3.8)
    reach = max(float(np.quantile(np.abs(shifts), 0.999)), 1e-6) * 1.1
    edges = np.linspace(-reach, reach, 61)
    counts, *_ = np.histogram2d(shifts[:, 0], shifts[:, 1], bins=[edges, edges])
    shades = axes.imshow(
        np.sqrt(counts.T), origin="lower", extent=(-reach, reach, -reach, reach), cmap="Blues", interpolation="bilinear"
    )
    shades.set_rasterized(True)
    axes.axhline(0, color=SOFT, linewidth=0.6)
    axes.axvline(0, color=SOFT, linewidth=0.6)
    axes.set(xlabel="shift in x (Å)", ylabel="shift in y (Å)")
    return svg_text(figure)
