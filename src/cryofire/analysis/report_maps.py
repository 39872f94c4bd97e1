"""The sections of a report that show maps: surfaces, differences, slices, resolution."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cryofire.analysis import report_html as html
from cryofire.analysis.map_alignment import crop_or_pad
from cryofire.analysis.map_pictures import (
    GHOST,
    LESS,
    MORE,
    VIEW_NAMES,
    Scene,
    difference_level,
    difference_pictures,
    make_scene,
    slice_limits,
    slice_picture,
    smooth_difference,
    state_colour,
    surface_pictures,
    with_scale_bar,
)
from cryofire.analysis.metrics import resolution_at
from cryofire.analysis.plots import resolution_plot
from cryofire.analysis.run_record import MapRecord, RunRecord
from cryofire.data.estimates import ParticleEstimates
from cryofire.errors import InputError
from cryofire.formats.mrc import read_map

MOST_STATES = 6
MOST_DIFFERENCES = 3

LoadedMap = tuple[MapRecord, Float[np.ndarray, "z y x"], float]


def load_maps(record: RunRecord) -> list[LoadedMap]:
    """Return the maps worth showing, with their pixel size: those of the states, or the consensus where there are none.

    Maps that cannot be read, or are not on the grid of the first, are left out.

    Parameters
    ----------
    record : RunRecord
        The run.
    """
    states = [state for state in record.states if state.map is not None]
    wanted = states or [record.consensus or MapRecord("consensus", record.folder / "consensus.mrc")]
    found: list[LoadedMap] = []
    for one in wanted[:MOST_STATES]:
        loaded = _read(one.map)
        if loaded is not None and (not found or loaded[0].shape == found[0][1].shape):
            found.append((one, *loaded))
    return found


def _read(path: Path | None) -> tuple[Float[np.ndarray, "z y x"], float] | None:
    if path is None or not path.is_file():
        return None
    try:
        volume, pixel_size = read_map(path)
    except InputError:
        return None
    is_cube = len(set(volume.shape)) == 1 and pixel_size > 0
    return (volume, pixel_size) if is_cube and np.isfinite(volume).all() and np.ptp(volume) > 0 else None


def maps_section(record: RunRecord) -> str:
    """Return the section with shaded surfaces, differences and slices; nothing where no map can be shown.

    Parameters
    ----------
    record : RunRecord
        The run.
    """
    maps = load_maps(record)
    if not maps:
        return ""
    scene = make_scene([volume for _, volume, _ in maps], [one.resolution for one, *_ in maps], maps[0][2])
    text = (
        "Surfaces of the maps, each from three sides, low-passed to its resolution. All are drawn at the same contour "
        f"level ({scene.level:.3g}); small islands of density are hidden."
    )
    blocks = [_surface_block(scene, index, one) for index, (one, *_) in enumerate(maps)]
    return html.section(
        "maps",
        "Maps",
        html.paragraph(text, "soft"),
        *blocks,
        _left_out(len(record.states)),
        _differences(scene, maps) if not record.species else "",
        _slices(scene, maps),
    )


def _surface_block(scene: Scene, index: int, one: MapRecord) -> str:
    """Heading and three views of one map."""
    facts = []
    if one.particles is not None:
        facts.append(f"{html.count(one.particles)} particles")
    if one.weight is not None:
        facts.append(f"{100 * one.weight:.1f} %")
    if one.resolution:
        facts.append(f"{one.resolution:.1f} Å")
    heading = f"{html.swatch(state_colour(index))}{escape(one.title)}"
    heading += f' <span class="soft">{escape(", ".join(facts))}</span>' if facts else ""
    views = [
        html.figure(html.picture(pixels, f"surface of {one.title}, {view}"), view if index == 0 else "")
        for pixels, view in zip(surface_pictures(scene, index, state_colour(index)), VIEW_NAMES, strict=True)
    ]
    return f'<div class="state"><h3>{heading}</h3>{html.grid(views, "three")}</div>'


def _left_out(states: int) -> str:
    if states <= MOST_STATES:
        return ""
    return html.paragraph(
        f"{states - MOST_STATES} further states are not shown; their maps are in the run folder.", "soft"
    )


def _differences(scene: Scene, maps: list[LoadedMap]) -> str:
    """Where each further state differs from the first."""
    parts = []
    first = maps[0][0].title
    for index in range(1, min(len(maps), 1 + MOST_DIFFERENCES)):
        name = maps[index][0].title
        if difference_level(scene, smooth_difference(scene, index, 0)) is None:
            parts.append(html.paragraph(f"{name} hardly differs from {first} at half of their resolution."))
            continue
        views = [
            html.figure(html.picture(pixels, f"difference of {name} from {first}, {view}"))
            for pixels, view in zip(difference_pictures(scene, index, 0), VIEW_NAMES, strict=True)
        ]
        legend = (
            f"<h3>How {escape(name)} differs from {escape(first)}</h3><p class='soft'>{html.swatch(MORE)}density that "
            f"{escape(name)} has and {escape(first)} has not &nbsp; {html.swatch(LESS)}density that it lacks &nbsp; "
            f"{html.swatch(GHOST)}{escape(first)}. Pale where the difference lies behind or inside the surface.</p>"
        )
        parts.append(f'<div class="state">{legend}{html.grid(views, "three")}</div>')
    return "".join(parts)


def _slices(scene: Scene, maps: list[LoadedMap]) -> str:
    """Central slices of the maps, one row a map."""
    rows = []
    limits = slice_limits(maps[0][1])
    length = 0
    for one, volume, pixel_size in maps[:4]:
        wanted = 1.25 * scene.half_width * len(volume) / len(scene.volumes[0])
        part = crop_or_pad(volume, min(len(volume), 2 * round(wanted)))
        pictures = []
        for axis, name in enumerate(("z = 0", "y = 0", "x = 0")):
            pixels = slice_picture(part, axis, limits)
            pixels, length = with_scale_bar(pixels, pixel_size * len(part) / len(pixels))
            pictures.append(
                html.figure(html.picture(pixels, f"slice of {one.title} at {name}"), f"{one.title}, {name}")
            )
        rows.append(html.grid(pictures, "three"))
    text = f"Slices through the centre, dense parts dark, all on one grey scale. The bar is {length} Å."
    return f'<div class="state"><h3>Central slices</h3>{html.paragraph(text, "soft")}{"".join(rows)}</div>'


def resolution_section(record: RunRecord, estimates: ParticleEstimates | None) -> str:
    """Return the section with the shell correlation curves and the table of states.

    Parameters
    ----------
    record : RunRecord
        The run.
    estimates : ParticleEstimates, optional
        For how sure the assignments are.
    """
    svg = resolution_plot(record)
    if svg is None and not record.states:
        return ""
    text = (
        "Correlation between maps from two independent halves of the images, shell by shell. The resolution is where "
        "a curve falls below 0.143; above it detail repeats itself, below it is noise."
    )
    shared = max((state.shared_shell or 0 for state in record.states), default=0)
    if shared and record.box and record.pixel_size:
        limit = f"up to {record.box * record.pixel_size / shared:.0f} Å (grey)"
        text += (
            f" Both halves began from one map {limit}, so the curve says nothing there."
            if record.poses is None
            else f" Both halves share the poses that were given {limit}: the curve is an upper limit."
        )
    mask = f"Mask: {record.mask}." if record.mask else ""
    return html.section(
        "resolution",
        "Resolution",
        html.paragraph(text, "soft"),
        f'<div class="wide">{html.plot(svg, "Fourier shell correlation of half maps against resolution", mask)}</div>',
        _state_table(record, estimates),
    )


def _state_table(record: RunRecord, estimates: ParticleEstimates | None) -> str:
    """One row a map."""
    rows = []
    for index, one in enumerate(record.states):
        members = (
            None if estimates is None else estimates.state_probability[estimates.used & (estimates.state == index)]
        )
        sure = "" if members is None or not members.size else f"{100 * float(np.mean(members > 0.95)):.0f} %"
        name = f"{html.swatch(state_colour(index))}{escape(one.title)}"
        rows.append([name, *_map_cells(record, one), sure, _file_name(record, one)])
    if record.consensus is not None:
        one = record.consensus
        rows.append([escape("consensus (all images)"), *_map_cells(record, one), "", _file_name(record, one)])
    head = ("map", "particles", "share", "FSC 0.143", "FSC 0.5", "assigned > 95 %", "file")
    return html.table(head, rows, numbers=(1, 2, 3, 4, 5)) if rows else ""


def _map_cells(record: RunRecord, one: MapRecord) -> list[str]:
    curve = one.fsc_masked if one.fsc_masked is not None else one.fsc
    length = record.box * record.pixel_size if record.box and record.pixel_size else None
    return [
        html.count(one.particles) if one.particles is not None else "",
        f"{100 * one.weight:.1f} %" if one.weight is not None else "",
        _resolution_cell(curve, 0.143, length) or (f"{one.resolution:.1f} Å" if one.resolution else ""),
        _resolution_cell(curve, 0.5, length),
    ]


def _resolution_cell(curve: Float[np.ndarray, " shell"] | None, threshold: float, length: float | None) -> str:
    """Resolution in Å, with "≤" where the curve ends above the threshold."""
    if curve is None or length is None:
        return ""
    sign = "≤ " if np.nanmin(curve[1:], initial=1.0) >= threshold else ""
    return f"{sign}{resolution_at(curve, threshold, length):.1f} Å"


def _file_name(record: RunRecord, one: MapRecord) -> str:
    return f"<code>{escape(one.map.relative_to(record.folder).as_posix())}</code>" if one.map else ""
