"""Arguments that several verbs share: the particle table and where its files are, and the settings of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from cryofire.config import Settings
from cryofire.settings_by_name import changed, read_settings


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the particle table, the folder of its stacks, and the tables that are joined to it."""
    parser.add_argument("particles", type=Path, metavar="PARTICLES", help="particle table, .star or .cs")
    parser.add_argument("--datadir", type=Path, metavar="DIR", help="folder that the stack paths are relative to")
    parser.add_argument(
        "--passthrough", type=Path, action="append", default=[], metavar="CS",
        help="cryoSPARC: a further .cs file of the same particles, joined by uid; may be given several times (default: "
        "passthrough files beside PARTICLES)",
    )  # fmt: skip


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the particle table, the run folder and the settings of a run."""
    add_table_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RUN", help="run folder")
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


def chosen_settings(arguments: argparse.Namespace) -> Settings:
    """Settings from file, options and assignments, in this order."""
    settings = read_settings(arguments.settings) if arguments.settings is not None else Settings()
    options = {"prepare.box": arguments.box, "seed": arguments.seed}
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    return changed(settings, [*given, *arguments.assignments])
