"""``cryofire report``: write the report of a run again."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cryofire report``."""
    parser.description = (
        "Write report.html of a run folder again; a run that did not finish gets a report that says so."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")


def run(arguments: argparse.Namespace) -> int:
    """Write the report."""
    from cryofire.analysis.report import write_report

    print(f"wrote {write_report(arguments.run)}")
    return 0
