"""ChimeraX command scripts (.cxc) that open a series of maps and morph through it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryofire.formats.atomic import replacing

FRAMES = 20
"""Pictures of the morph between two neighbouring maps."""


def write_series_script(path: Path, maps: Sequence[str], level: float, title: str) -> None:
    """Write a script that opens maps in their order, contours all at one level, and morphs from the first to the last.

    Parameters
    ----------
    path : Path
        The .cxc file; ChimeraX looks for the maps in its folder.
    maps : sequence of str
        File names of the maps, in the order of the series.
    level : float
        Contour level of all of them.
    title : str
        One line that says what they are.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    everything = f"#1-{len(maps)}" if len(maps) > 1 else "#1"
    lines = [f"# {title}", "# Open this file in a new ChimeraX session.", *(f'open "{name}"' for name in maps)]
    lines.append(f"volume {everything} style surface step 1 level {level:.6g} color lightsteelblue")
    if len(maps) > 1:
        frames = FRAMES * (len(maps) - 1)
        lines.append(f"hide {everything} models")
        lines.append(f"volume morph {everything} frames {frames} playStep {1 / frames:.5f} playRange 0,1 slider true")
        lines.append(f"volume #{len(maps) + 1} level {level:.6g} color lightsteelblue")
    lines += ["lighting soft", "set bgColor white", "view"]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
