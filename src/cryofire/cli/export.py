"""``cryofire export``: write poses and states for RELION or cryoSPARC."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
Write the rows of the particle table that was reconstructed, in its order and with everything it said, together with
poses, origins in Å, state, latent coordinates and their uncertainties."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cryofire export``."""
    parser.description = DESCRIPTION
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--relion", type=Path, metavar="STAR", help="STAR file to write")
    target.add_argument("--cryosparc", type=Path, metavar="CS", help=".cs file to write")


def run(arguments: argparse.Namespace) -> int:
    """Write the file."""
    from cryofire.api import Reconstruction

    reconstruction = Reconstruction.load(arguments.run)
    if arguments.relion is not None:
        reconstruction.export_relion(arguments.relion)
        print(f"wrote {arguments.relion}")
    else:
        reconstruction.export_cryosparc(arguments.cryosparc)
        print(f"wrote {arguments.cryosparc}")
    return 0
