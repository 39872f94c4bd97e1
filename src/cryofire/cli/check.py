"""``cryofire check``: what is in a particle table, what is wrong, how long it will take."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
Read a particle table and its stacks and say what is there, what is wrong and what a reconstruction will cost. The exit
status is 2 when something has to be mended first."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cryofire check``."""
    parser.description = DESCRIPTION
    parser.add_argument("particles", type=Path, metavar="PARTICLES", help="particle table, .star or .cs")
    parser.add_argument("--datadir", type=Path, metavar="DIR", help="folder that the stack paths are relative to")
    parser.add_argument("--all", action="store_true", help="read every image, not a sample")


def run(arguments: argparse.Namespace) -> int:
    """Print the report."""
    from cryofire.data.check import DEFAULT_SAMPLE, check_file

    report = check_file(arguments.particles, arguments.datadir, None if arguments.all else DEFAULT_SAMPLE)
    print(report.to_text())
    return 2 if any(finding.level == "bad" for finding in report.findings) else 0
