"""``cryofire evaluate``: score a run against the truth."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
Compare a run with true poses, classes and maps, after removing what images cannot tell: one global rotation, one offset
and the hand."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cryofire evaluate``."""
    parser.description = DESCRIPTION
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--truth", type=Path, required=True, metavar="STAR", help="STAR file with the true poses and classes"
    )
    parser.add_argument(
        "--maps",
        type=Path,
        nargs="+",
        metavar="MRC",
        help="true maps by class number (default: those beside the truth)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores there as well")


def run(arguments: argparse.Namespace) -> int:
    """Print the table and write the JSON."""
    from cryofire.analysis.evaluate import evaluate_run
    from cryofire.formats.atomic import replacing

    maps = None if arguments.maps is None else tuple(arguments.maps)
    evaluation = evaluate_run(arguments.run, arguments.truth, maps)
    print(evaluation.to_text())
    with replacing(arguments.json if arguments.json is not None else arguments.run / "evaluation.json") as temporary:
        temporary.write_text(evaluation.to_json() + "\n", encoding="utf-8")
    return 0
