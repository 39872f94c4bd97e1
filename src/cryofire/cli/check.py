"""``cryofire check``: what is in a particle table, what is wrong, how long it will take."""

from __future__ import annotations

import argparse

from cryofire.cli.run_arguments import add_table_arguments

DESCRIPTION = """\
Read a particle table and its stacks and say what is there, what is wrong and what a reconstruction will cost. The exit
status is 2 when something has to be mended first."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cryofire check``."""
    parser.description = DESCRIPTION
    add_table_arguments(parser)
    parser.add_argument("--all", action="store_true", help="read every image, not a sample")


def run(arguments: argparse.Namespace) -> int:
    """Print the report."""
    from cryofire.data.check import DEFAULT_SAMPLE, check_file

    sample = None if arguments.all else DEFAULT_SAMPLE
    report = check_file(arguments.particles, arguments.datadir, sample, passthrough=arguments.passthrough)
    print(report.to_text())
    return 2 if any(finding.level == "bad" for finding in report.findings) else 0
