"""Reading a particle table of RELION or cryoSPARC and finding its image stacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from cryofire.data.cryosparc_table import cryosparc_table
from cryofire.data.particles import CryosparcSource, ParticleTable
from cryofire.data.relion_table import relion_table
from cryofire.errors import FileFormatError, MissingFileError, TableError
from cryofire.formats.mrc import read_header
from cryofire.formats.paths import find_stacks

_CTF_HINT = "estimate the CTF of these particles again, or remove the rows"
_FIELDS = {  # what a value is called in STAR files and in .cs files
    "voltage_kv": ("rlnVoltage", "ctf/accel_kv"),
    "cs_mm": ("rlnSphericalAberration", "ctf/cs_mm"),
    "amplitude_contrast": ("rlnAmplitudeContrast", "ctf/amp_contrast"),
    "defocus_u": ("rlnDefocusU", "ctf/df1_A"),
    "defocus_v": ("rlnDefocusV", "ctf/df2_A"),
    "defocus_angle": ("rlnDefocusAngle", "ctf/df_angle_rad"),
    "phase_shift": ("rlnPhaseShift", "ctf/phase_shift_rad"),
    "b_factor": ("rlnCtfBfactor", "ctf/bfactor"),
    "scale": ("rlnCtfScalefactor", "ctf/scale"),
    "pixel_size": ("rlnImagePixelSize", "blob/psize_A"),
    "frame": ("rlnImageName", "blob/idx"),
    "box": ("rlnImageSize", "blob/shape"),
    "pose": ("rlnAngleRot, rlnAngleTilt, rlnAnglePsi, rlnOrigin*", "alignments3D/pose, alignments3D/shift"),
}


def read_particles(
    path: Path, datadir: Path | None = None, *, passthrough: Sequence[Path] = (), stacks: bool = True
) -> ParticleTable:
    """Read a particle table (.star or .cs), check its values and find its image stacks.

    Parameters
    ----------
    path : Path
        STAR file of RELION 3.0 to 5 (one row per image), or .cs file of cryoSPARC.
    datadir : Path, optional
        Folder of the image stacks, or the folder their paths are relative to; see `find_stacks`.
    passthrough : sequence of Path
        Further .cs files whose fields are joined by uid. Where none is named, those beside `path` are found.
    stacks : bool
        False reads the table alone: `stack_paths` are then the names in the file, and nothing is looked for.

    Raises
    ------
    MissingFileError
        The table or a stack does not exist.
    FileFormatError
        The table or a stack is damaged or of a kind that cannot be read.
    TableError
        A column is missing or a value is impossible; names file, row, field and what to do.
    """
    if passthrough and path.suffix.lower() != ".cs":
        raise FileFormatError(
            "passthrough files belong to a .cs file of cryoSPARC", file=path, hint="leave --passthrough away"
        )
    if path.suffix.lower() == ".star":
        table = relion_table(path)
    elif path.suffix.lower() == ".cs":
        table = cryosparc_table(path, passthrough)
    elif not path.exists():
        raise MissingFileError("the particle table does not exist", file=path)
    else:
        raise FileFormatError("not a particle table", file=path, hint="name a .star file or a .cs file")
    _check_values(table)
    return _with_stacks(table, datadir) if stacks else table


def _with_stacks(table: ParticleTable, datadir: Path | None) -> ParticleTable:
    """Return the table with its stacks found and its boxes taken from them."""
    paths = find_stacks([str(path) for path in table.stack_paths], table.path, datadir)
    boxes = np.array([_box_of_stack(path) for path in paths], dtype=np.int32)[table.stack]
    wrong = (table.box > 0) & (table.box != boxes)
    if np.any(wrong):
        row = int(np.argmax(wrong))
        raise TableError(
            f"the table says {table.box[row]} px, the stack {paths[table.stack[row]]} has {boxes[row]} px",
            file=table.path,
            row=row + 1,
            field=_FIELDS["box"][isinstance(table.source, CryosparcSource)],
            hint="the table belongs to other images (cropped or binned ones?): use the one written with these stacks",
        )
    return replace(table, stack_paths=paths, box=boxes)


def _box_of_stack(path: Path) -> int:
    _, rows, columns = read_header(path).shape
    if rows != columns:
        raise FileFormatError(f"the images are not square: {columns} × {rows} px", file=path)
    return rows


def _check_values(table: ParticleTable) -> None:
    """Raise `TableError` at the first value that no particle can have."""
    optics = table.optics
    for field in fields(optics):
        _demand(np.isfinite(getattr(optics, field.name)), table, field.name, "is not a finite number", _CTF_HINT)
    _demand(optics.voltage_kv > 0, table, "voltage_kv", "must be positive", "give the voltage in kV, for example 300")
    _demand(optics.cs_mm >= 0, table, "cs_mm", "must not be negative")
    amplitude = (optics.amplitude_contrast >= 0) & (optics.amplitude_contrast <= 1)
    _demand(amplitude, table, "amplitude_contrast", "must lie between 0 and 1", "0.07 to 0.1 is usual for cryo-EM")
    positive = np.isfinite(table.pixel_size) & (table.pixel_size > 0)
    _demand(positive, table, "pixel_size", "must be a positive number", "give the pixel size of the images in Å")
    _demand(table.frame >= 0, table, "frame", "counts from 1 in STAR files and from 0 in .cs files")
    if table.poses is not None:
        finite = np.isfinite(table.poses.rotations).all(axis=(1, 2)) & np.isfinite(table.poses.shifts).all(axis=1)
        _demand(finite, table, "pose", "is not finite", "remove the angles, or the rows without a pose")


def _demand(
    holds: Bool[np.ndarray, " particle"], table: ParticleTable, field: str, problem: str, hint: str | None = None
) -> None:
    """Raise `TableError` at the first row where `holds` is False, naming the field as the user's file does."""
    if not np.all(holds):
        bad = int(np.count_nonzero(~holds))
        raise TableError(
            f"the value {problem} ({bad} of {len(holds)} rows)",
            file=table.path,
            row=int(np.argmin(holds)) + 1,
            field=_FIELDS[field][isinstance(table.source, CryosparcSource)],
            hint=hint or "correct the table, or remove these rows",
        )
