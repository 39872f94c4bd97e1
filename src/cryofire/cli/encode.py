"""``cryofire encode``: poses and states of particles that a run has not seen."""

from __future__ import annotations

import argparse
from pathlib import Path

from cryofire.errors import SettingError

DESCRIPTION = """\
Find poses, latents, states and their uncertainties of particles that a run has not seen, in one pass, and write their own
rows with them. Images of another box or pixel size are brought to those of the run."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cryofire encode``."""
    parser.description = DESCRIPTION
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or folder of a saved model")
    parser.add_argument(
        "particles", type=Path, metavar="PARTICLES", help="particle table, .star or .cs; with --follow also a folder"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="table to write, .star or .cs")
    parser.add_argument(
        "--polish",
        type=int,
        default=0,
        metavar="N",
        help="Gauss–Newton steps after the encoder (default: 0; 2 is usual)",
    )
    parser.add_argument("--datadir", type=Path, metavar="DIR", help="folder that the stack paths are relative to")
    parser.add_argument(
        "--follow", action="store_true",
        help="keep watching a STAR file, or a folder of them, that grows, and append; Ctrl-C stops, the same command continues",
    )  # fmt: skip
    parser.add_argument(
        "--patience", type=float, metavar="SECONDS", help="with --follow: stop when nothing new came for so long"
    )


def run(arguments: argparse.Namespace) -> int:
    """Encode the particles."""
    check_arguments(arguments)
    from cryofire.cli.progress import BarProgress
    from cryofire.training.encode import checked_encoder
    from cryofire.training.model_file import load_model

    model = load_model(arguments.run)
    checked_encoder(model, arguments.polish)
    with BarProgress() as progress:
        if arguments.follow:
            from cryofire.training.follow import FollowSettings, follow

            settings = FollowSettings(arguments.polish, arguments.patience, arguments.datadir)
            count = follow(arguments.particles, arguments.output, model, settings, progress)
        else:
            from cryofire.data.read import read_particles
            from cryofire.training.encode import check_output, encode_particles, write_encoded

            table = read_particles(arguments.particles, arguments.datadir)
            check_output(table, arguments.output)
            for note in table.notes:
                progress.note(note)
            estimates = encode_particles(table, model, arguments.polish, progress)
            write_encoded(table, estimates, arguments.output)
            count = int(estimates.used.sum())
    print(f"wrote {arguments.output}: {count} particles")
    return 0


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse combinations that make no sense, before anything heavy is imported.

    Raises
    ------
    SettingError
        Names the argument.
    """
    if arguments.patience is not None and not (arguments.follow and arguments.patience > 0):
        raise SettingError("--patience is a positive number of seconds and goes with --follow", field="patience")
    kind = arguments.output.suffix.lower()
    if kind not in (".star", ".cs"):
        raise SettingError(
            f"'{arguments.output}' is no particle table", field="output", hint="end the name in .star or .cs"
        )
    if arguments.follow and (kind != ".star" or arguments.particles.suffix.lower() == ".cs"):
        raise SettingError(
            "--follow reads and writes STAR files", field="follow", hint="encode a .cs file once, without it"
        )
