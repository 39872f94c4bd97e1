"""The section of a report that shows a continuous motion: the maps along its path, as a film strip."""

from __future__ import annotations

import numpy as np

from cryofire.analysis import report_html as html
from cryofire.analysis.map_pictures import (
    LESS,
    MORE,
    VIEW_NAMES,
    Scene,
    difference_level,
    difference_pictures,
    make_scene,
    smooth_difference,
    state_colour,
    surface_pictures,
)
from cryofire.analysis.run_record import FrameRecord, RunRecord
from cryofire.errors import InputError
from cryofire.formats.mrc import read_map

MOST_FRAMES = 12


def motion_section(record: RunRecord) -> str:
    """Return the maps along the path of a continuous motion from each side; nothing for a run without one.

    Parameters
    ----------
    record : RunRecord
        The run.
    """
    frames = record.frames[:: max(1, -(-len(record.frames) // MOST_FRAMES))]
    try:
        maps = [read_map(one.map) for one in frames]
    except InputError:
        return ""
    if len(maps) < 2 or any(not np.isfinite(volume).all() or np.ptp(volume) == 0 for volume, _ in maps):
        return ""
    best = min((one.resolution for one in (*record.states, record.consensus) if one and one.resolution), default=None)
    scene = make_scene([volume for volume, _ in maps], [best] * len(maps), maps[0][1])
    way = "The last frame leads back to the first." if record.is_closed else "The frames run from end to end."
    text = (
        f"{len(record.frames)} maps decoded at even steps along the densest path through the latent space. {way} "
        "All images contribute to each of them, so they are smooth; the maps of the stations above are made from the "
        "images at each part of the path alone and confirm them or not."
    )
    return html.section("motion", "Motion", html.paragraph(text, "soft"), _strips(scene, frames), _change(scene))


def _strips(scene: Scene, frames: tuple[FrameRecord, ...]) -> str:
    """One row of pictures for each side."""
    pictures = [surface_pictures(scene, index, state_colour(0), size=200) for index in range(len(frames))]
    rows = []
    for side, view in enumerate(VIEW_NAMES):
        strip = [
            html.figure(
                html.picture(pictures[index][side], f"surface of {one.map.stem}, {view}"), _caption(one, side == 0)
            )
            for index, one in enumerate(frames)
        ]
        rows.append(f'<div class="state">{html.paragraph(view, "soft")}{html.grid(strip, "strip")}</div>')
    return "".join(rows)


def _caption(frame: FrameRecord, is_first_row: bool) -> str:
    share = f", {100 * frame.weight:.0f} % of particles" if frame.weight is not None else ""
    return f"{frame.map.stem.replace('frame', 'frame ')}{share}" if is_first_row else ""


def _change(scene: Scene) -> str:
    """Where the middle of a closed path, or the end of an open one, differs most from the first frame."""
    changes = [np.abs(smooth_difference(scene, index, 0)).sum() for index in range(len(scene.volumes))]
    farthest = int(np.argmax(changes))
    if difference_level(scene, smooth_difference(scene, farthest, 0)) is None:
        return html.paragraph("The frames hardly differ at half of their resolution: the motion is small.")
    views = [
        html.figure(html.picture(pixels, f"difference of the frames, {view}"))
        for pixels, view in zip(difference_pictures(scene, farthest, 0), VIEW_NAMES, strict=True)
    ]
    legend = (
        f"<h3>From the first frame to the one that differs most</h3><p class='soft'>{html.swatch(MORE)}density that "
        f"appears &nbsp; {html.swatch(LESS)}density that goes</p>"
    )
    return f'<div class="state">{legend}{html.grid(views, "three")}</div>'
