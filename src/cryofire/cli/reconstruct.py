"""``cryofire reconstruct``: find poses, states and maps from particles."""

from __future__ import annotations

import argparse
from pathlib import Path

from cryofire.config import Settings, changed, read_settings

DESCRIPTION = """\
Reconstruct particles of unknown pose and conformation: a STAR file of RELION or a .cs file of cryoSPARC with CTF
parameters goes in, poses, states, half maps, FSC curves and a report come out. No option is needed for ordinary data.
The same command continues a run that was stopped."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cryofire reconstruct``."""
    parser.description = DESCRIPTION
    parser.add_argument("particles", type=Path, metavar="PARTICLES", help="particle table, .star or .cs")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RUN", help="run folder")
    parser.add_argument("--datadir", type=Path, metavar="DIR", help="folder that the stack paths are relative to")
    parser.add_argument(
        "--box", type=int, metavar="N", help="working box in pixels (default: the images', at most 128)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of everything random (default: 0)")
    parser.add_argument(
        "--settings", type=Path, metavar="JSON", help="settings, such as settings.json of an earlier run"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="assignments",
        help="change one setting, for example search.steps=60; may be given several times",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Run the reconstruction with a progress bar."""
    settings = chosen_settings(arguments)
    from cryofire.cli.progress import BarProgress
    from cryofire.training.pipeline import reconstruct

    with BarProgress() as progress:
        folder = reconstruct(arguments.particles, arguments.output, settings, arguments.datadir, progress)
    print(f"done: open {folder.path / 'report.html'}")
    return 0


def chosen_settings(arguments: argparse.Namespace) -> Settings:
    """Settings from file, options and assignments, in this order."""
    settings = read_settings(arguments.settings) if arguments.settings is not None else Settings()
    options = {"prepare.box": arguments.box, "seed": arguments.seed}
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    return changed(settings, [*given, *arguments.assignments])
