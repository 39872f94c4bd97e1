"""``cryofire decode``: maps of a model at points of its latent space."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from cryofire.training.decode import LatentSeries
    from cryofire.training.model_file import DeliveredModel

DESCRIPTION = """\
Write maps of a finished run at points of its latent space, and a script that opens and morphs them in ChimeraX
at one contour level."""
EXAMPLES = """\
examples:
  cryofire decode run/ --state 2 -o maps/
  cryofire decode run/ --latent 0.5 -1.2 -o maps/
  cryofire decode run/ --path 1 2 --frames 20 -o movie/
  cryofire decode run/ --pc 1 --box 64 -o movie/"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cryofire decode``."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or folder of a saved model")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--latent", type=float, nargs="+", action="append", metavar="Z",
        help="latent coordinates of a point; may be given several times",
    )  # fmt: skip
    where.add_argument("--state", type=int, metavar="K", help="centre of a state, counted from 1")
    where.add_argument(
        "--path", nargs=2, metavar=("A", "B"),
        help="from A to B through where the particles lie; each a state number, or coordinates such as 0.5,-1.2",
    )  # fmt: skip
    where.add_argument("--pc", type=int, metavar="J", help="along principal component J, counted from 1")
    parser.add_argument("--frames", type=int, metavar="N", help="maps of a path or component (default: 10)")
    parser.add_argument("--box", type=int, metavar="N", help="box of the maps, at most that of the model (default)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write to")


def run(arguments: argparse.Namespace) -> int:
    """Write the maps."""
    from cryofire.training.decode import write_series
    from cryofire.training.model_file import load_model

    model = load_model(arguments.run)
    series = chosen_series(model, arguments)
    for note in series.notes:
        print(f"warning: {note}", file=sys.stderr)
    *maps, script = write_series(arguments.output, model, series, arguments.box)
    print(f"wrote {maps[0] if len(maps) == 1 else f'{len(maps)} maps'} and {script}")
    return 0


def chosen_series(model: DeliveredModel, arguments: argparse.Namespace) -> LatentSeries:
    """The points that the arguments ask for."""
    import numpy as np

    from cryofire.errors import SettingError
    from cryofire.training.decode import component_series, path_series, points_series, state_series

    if arguments.frames is not None and arguments.path is None and arguments.pc is None:
        raise SettingError("--frames goes with --path or --pc", field="frames")
    frames = 10 if arguments.frames is None else arguments.frames
    if arguments.state is not None:
        return state_series(model, arguments.state)
    if arguments.pc is not None:
        return component_series(model, arguments.pc, frames)
    if arguments.path is not None:
        start, end = (_place(model, text) for text in arguments.path)
        return path_series(model, start, end, frames)
    if len({len(point) for point in arguments.latent}) > 1:
        raise SettingError("the points have different numbers of coordinates", field="latent")
    return points_series(model, np.array(arguments.latent))


def _place(model: DeliveredModel, text: str) -> np.ndarray:
    """A state by its number, or latent coordinates with commas between them."""
    import numpy as np

    from cryofire.errors import SettingError
    from cryofire.training.decode import state_point

    if text.isdecimal():
        return state_point(model, int(text))
    try:
        return np.array([float(number) for number in text.split(",")])
    except ValueError:
        raise SettingError(
            f"'{text}' is neither a state nor a point", field="path", hint="write 2 or 0.5,-1.2"
        ) from None
