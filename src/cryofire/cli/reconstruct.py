"""``cryofire reconstruct``: find poses, states and maps from particles."""

from __future__ import annotations

import argparse
from pathlib import Path

from cryofire.cli.run_arguments import add_run_arguments, chosen_settings
from cryofire.config import RECIPES
from cryofire.settings_by_name import changed

DESCRIPTION = """\
Reconstruct particles of unknown pose and conformation: a STAR file of RELION or a .cs file of cryoSPARC with CTF
parameters goes in, poses, states, half maps, FSC curves and a report come out. No option is needed for ordinary data.
The same command continues a run that was stopped."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cryofire reconstruct``."""
    parser.description = DESCRIPTION
    add_run_arguments(parser)
    parser.add_argument(
        "--poses", type=Path, metavar="TABLE",
        help="keep the poses of this .star or .cs file of the same particles, and learn only conformations and maps (default: "
        "poses are found)",
    )  # fmt: skip
    parser.add_argument(
        "--recipe", metavar="NAME", help=f"method: {' or '.join(RECIPES)} (the published method, as a baseline)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the reconstruction with a progress bar."""
    settings = chosen_settings(arguments)
    if arguments.poses is not None:
        settings = changed(settings, [f"poses={arguments.poses.resolve()}"])
    if arguments.recipe is not None:
        settings = changed(settings, [f"recipe={arguments.recipe}"])
    from cryofire.cli.progress import BarProgress
    from cryofire.training.pipeline import reconstruct

    with BarProgress() as progress:
        folder = reconstruct(
            arguments.particles, arguments.output, settings, arguments.datadir, progress, arguments.passthrough
        )
    print(f"done: open {folder.path / 'report.html'}")
    return 0
