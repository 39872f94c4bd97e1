"""``cryofire simulate``: write a simulated particle set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryofire.errors import SettingError

if TYPE_CHECKING:
    from cryofire.simulation.molecules import Conformation
    from cryofire.simulation.settings import SimulationSettings

DESCRIPTION = """\
Write a simulated particle set into a folder: particles.mrcs, particles.star (no poses), truth.star (poses, origins in
Å, class = state + 1), the maps state0.mrc, state1.mrc … and settings.json. Without options: a ribosome in two states,
90 % as it is and 10 % with the small subunit turned by 10°."""

_SETTINGS = (
    "particles", "seed", "dtype", "molecule", "maps", "weights", "box", "pixel_size", "voltage_kv", "cs_mm",
    "amplitude_contrast", "b_factor", "defocus", "defocus_spread", "astigmatism", "defocus_from", "contrast",
    "contrast_std", "empty", "contaminated", "views", "view_strength", "preferred_axes", "views_from", "shift_std", "snr",
    "snr_pixel_size", "noise", "noise_pixel_size",
)  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cryofire simulate``. Only what the user gives is set; the rest is up to the settings."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.argument_default = argparse.SUPPRESS
    _add_output(parser.add_argument_group("output"))
    _add_states(parser.add_argument_group("molecule and states"))
    _add_images(parser.add_argument_group("images"))
    _add_poses(parser.add_argument_group("poses"))
    _add_noise(parser.add_argument_group("noise"))


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the set; made if it does not exist")
    add("--overwrite", action="store_true", default=False, help="replace what is in the folder (default: refuse)")
    add("--particles", type=int, metavar="N", help="number of images (default 10000)")
    add("--seed", type=int, metavar="N", help="everything random follows from it (default 0)")
    add(
        "--dtype",
        choices=("float16", "float32"),
        help="how images are stored: MRC mode 12, half the size, which RELION reads from version 4 on, or mode 2"
        " (default float16)",
    )


def _add_states(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--molecule",
        type=Path,
        metavar="FILE",
        help="PDB or mmCIF file (needs the package gemmi), or .npz (default: the 80S ribosome of PDB entry 6ZU5)",
    )
    add(
        "--maps",
        type=Path,
        nargs="+",
        metavar="MRC",
        help="density maps instead of a molecule, one a state, of any box and pixel size",
    )
    add(
        "--move",
        nargs="+",
        metavar="SELECTION",
        help="what moves between the states: CHAIN or CHAIN:FIRST-LAST (residues), * and ? allowed in chain names"
        " (default for the ribosome: 'S*', its small subunit)",
    )
    motion = group.add_mutually_exclusive_group()
    motion.add_argument(
        "--angles",
        type=float,
        nargs="+",
        metavar="DEG",
        help="angles in degrees by which it is turned, one state each (default for the ribosome: 0 10)",
    )
    motion.add_argument(
        "--continuum",
        type=float,
        nargs=3,
        metavar=("FROM", "TO", "COUNT"),
        help="COUNT evenly spaced angles in degrees, as states of equal weight along a _cryofireCoordinate",
    )
    add(
        "--axis",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="direction of the axis (default: from the centre of mass of the rest to that of what moves)",
    )
    add(
        "--hinge",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="a point on the axis in Å, in the frame of the file (default: centre of mass of what moves)",
    )
    add(
        "--omit",
        action="append",
        nargs="+",
        metavar="SELECTION",
        help="adds a state without these parts of the molecule; may be repeated",
    )
    add(
        "--weights",
        type=float,
        nargs="+",
        metavar="W",
        help="relative number of particles in each state (default: 0.9 0.1 for the ribosome, else equal)",
    )


def _add_images(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--box", type=int, metavar="PX", help="side of the images in pixels (default 64)")
    add("--pixel-size", type=float, metavar="A", help="Å per pixel (default 7.54)")
    add("--voltage-kv", type=float, metavar="KV", help="acceleration voltage in kV (default 300)")
    add("--cs-mm", type=float, metavar="MM", help="spherical aberration in mm (default 2.7)")
    add("--amplitude-contrast", type=float, metavar="W", help="fraction of amplitude contrast (default 0.1)")
    add("--phase-shift-deg", type=float, metavar="DEG", help="of a phase plate, in degrees (default 0)")
    add("--b-factor", type=float, metavar="B", help="images fall off by exp(-B k² / 4), B in Å² (default 0)")
    add("--defocus", type=float, metavar="A", help="median of the log-normal defocus in Å (default 20000)")
    add("--defocus-spread", type=float, metavar="S", help="standard deviation of its logarithm (default 0.2)")
    add(
        "--astigmatism",
        type=float,
        metavar="F",
        help="one axis is weaker by a random fraction up to this (default 0.03)",
    )
    add(
        "--defocus-from",
        type=Path,
        metavar="FILE",
        help="draw defocus values and angles from this STAR file (or .npz with an array ctf) instead",
    )
    add("--contrast", choices=("dark", "white"), help="whether the particles are dark or white (default dark)")
    add(
        "--contrast-std",
        type=float,
        metavar="S",
        help="standard deviation of the contrast of an image, whose mean is 1 (default 0)",
    )
    add(
        "--empty",
        type=float,
        metavar="F",
        help="fraction of images without a particle; their class in truth.star is 0 (default 0)",
    )
    add(
        "--contaminated",
        type=float,
        metavar="F",
        help="fraction of images with a disc of ice or gold over them; cryofireContaminated in truth.star (default 0)",
    )


def _add_poses(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--views", choices=("uniform", "preferred"), help="distribution of viewing directions (default uniform)")
    add(
        "--view-strength",
        type=float,
        metavar="K",
        help="concentration of preferred views: density exp(K cos angle) about each axis (default 6)",
    )
    add("--preferred-axes", type=int, metavar="N", help="number of preferred, random axes (default 3)")
    add(
        "--views-from",
        type=Path,
        metavar="FILE",
        help="draw rotations from this STAR file (or .npz with an array rot) instead",
    )
    add("--shift-std", type=float, metavar="A", help="standard deviation of shifts along x and y in Å (default 5)")


def _add_noise(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--snr",
        type=float,
        metavar="R",
        help="variance of the signal over that of the noise; inf for no noise (default 0.1, which is -10 dB)",
    )
    add(
        "--snr-pixel-size",
        type=float,
        metavar="A",
        help="pixel size in Å at which that holds, so that binning does not change the noise (default 3.77)",
    )
    add(
        "--noise",
        type=Path,
        metavar="FILE",
        help="radial noise spectrum: .npy with a variance per shell, or an .mrcs of noise windows to measure it in"
        " (default: white)",
    )
    add(
        "--noise-pixel-size",
        type=float,
        metavar="A",
        help="pixel size of that spectrum in Å (default: as the stack says, else that of the images)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Simulate and say what was written; returns the exit status.

    Raises
    ------
    InputError
        An argument makes no sense, or a file cannot be read or written.
    """
    from cryofire.cli.progress import BarProgress
    from cryofire.simulation.particles import simulate

    settings = settings_of(arguments)
    with BarProgress() as bar:
        bar.start("simulate", settings.particles)
        result = simulate(settings, arguments.output, bar.advance, is_overwriting=arguments.overwrite)
        bar.finish()
    states = "1 state" if len(result.maps) == 1 else f"{len(result.maps)} states"
    print(f"{settings.particles} particles of {states}, box {settings.box}, {settings.pixel_size:g} Å/px:")
    print(f"  {result.particles}  without poses\n  {result.truth}  with poses and states")
    return 0


def settings_of(arguments: argparse.Namespace) -> SimulationSettings:
    """Return the settings that the arguments describe.

    Raises
    ------
    InputError
        A value is out of range, a file does not exist, or arguments contradict each other.
    """
    import math

    from cryofire.simulation.settings import SimulationSettings

    given = vars(arguments)
    values: dict[str, Any] = {
        name: tuple(given[name]) if isinstance(given[name], list) else given[name]
        for name in _SETTINGS
        if name in given
    }
    if "phase_shift_deg" in given:
        values["phase_shift"] = math.radians(given["phase_shift_deg"])
    return SimulationSettings(**values, conformations=_conformations(given))


def _conformations(given: dict[str, Any]) -> tuple[Conformation, ...] | None:
    """States that the arguments describe; None where they leave it to the settings."""
    import math

    from cryofire.simulation.molecules import Conformation, RigidMotion

    angles = _angles(given)
    omitted = [Conformation(omitted=tuple(parts)) for parts in given.get("omit", [])]
    if angles is None and not omitted:
        return None
    if angles is None:
        return (Conformation(), *omitted)
    selection = tuple(given.get("move", ("S*",)))
    axis, hinge = (tuple(given[name]) if name in given else None for name in ("axis", "hinge"))
    turned = []
    for angle in angles:
        motion = RigidMotion(selection, math.radians(angle), axis, hinge)
        coordinate = angle if "continuum" in given else None
        turned.append(Conformation((motion,) if angle else (), coordinate=coordinate))
    return (*turned, *omitted)


def _angles(given: dict[str, Any]) -> list[float] | None:
    """Angles in degrees, one a state; None where nothing is to move."""
    is_moving = "angles" in given or "continuum" in given
    if is_moving and "molecule" in given and "move" not in given:
        raise SettingError("angles were given, but not what moves", field="--move", hint="add --move CHAIN ...")
    stray = [name for name in ("move", "axis", "hinge") if name in given]
    if stray and not is_moving:
        raise SettingError(f"--{stray[0]} was given without angles", hint="add --angles or --continuum")
    if "angles" in given:
        return list(given["angles"])
    if "continuum" not in given:
        return None
    first, last, count = given["continuum"]
    if count != round(count) or count < 2:
        raise SettingError(f"a continuum needs a whole number of at least 2 states, not {count:g}", field="--continuum")
    return [first + (last - first) * step / (count - 1) for step in range(round(count))]
