"""``cryofire prepare``: the first stage of a run alone."""

from __future__ import annotations

import argparse

from cryofire.cli.run_arguments import add_run_arguments, chosen_settings

DESCRIPTION = """\
Read every image once, check it, measure contrast and noise, find each particle's centre, and write the whitened Fourier
coefficients that all later stages read into the run folder. `cryofire reconstruct` with the same particles and folder
continues from there; settings of the later stages may still be chosen then. Not needed for an ordinary run."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cryofire prepare``."""
    parser.description = DESCRIPTION
    add_run_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prepare the images with a progress bar."""
    settings = chosen_settings(arguments)
    from cryofire.cli.progress import BarProgress
    from cryofire.training.pipeline import prepare_run

    with BarProgress() as progress:
        folder = prepare_run(
            arguments.particles, arguments.output, settings, arguments.datadir, progress, arguments.passthrough
        )
    print(f"prepared: continue with cryofire reconstruct {arguments.particles} -o {folder.path}")
    return 0
