"""Tables of one program as tables of the other, where results of a .cs set are wanted as STAR or the reverse."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from cryofire.data.particles import CryosparcSource, ParticleTable, RelionSource
from cryofire.data.relion_table import STACK_MARK
from cryofire.errors import TableError
from cryofire.formats.conventions import cryosparc_from_rotations, origins_from_shifts, relion_from_rotations
from cryofire.formats.cryosparc import Table
from cryofire.formats.star import Column, StarBlock, float_column, integer_column, text_column

UID = "cryofireUid"


def relion_source(table: ParticleTable) -> RelionSource:
    """Rows and optics groups of a STAR file of version 3.1 for a table read from a .cs file.

    One optics group is made of each combination of voltage, Cs, amplitude contrast, pixel size and box. Image names
    are those of the .cs file; names ending in .mrc are marked so that RELION reads the file as a stack.
    """
    group, optics = _optics_groups(table)
    values = table.optics
    columns = {
        "rlnImageName": image_names(table, _named_stacks(table)),
        **({} if table.micrograph is None else {"rlnMicrographName": text_column(table.micrograph)}),
        "rlnDefocusU": float_column(values.defocus_u),
        "rlnDefocusV": float_column(values.defocus_v),
        "rlnDefocusAngle": float_column(np.rad2deg(values.defocus_angle)),
        "rlnPhaseShift": float_column(np.rad2deg(values.phase_shift)),
        "rlnCtfBfactor": float_column(values.b_factor),
        "rlnCtfScalefactor": float_column(values.scale),
        "rlnOpticsGroup": integer_column(group + 1),
        **_pose_columns(table),
    }
    if isinstance(table.source, CryosparcSource):
        columns[UID] = np.array([b"%d" % uid for uid in table.source.rows["uid"].tolist()])
    return RelionSource(StarBlock(table.path, "particles", columns), (optics,), ())


def cryosparc_rows(table: ParticleTable) -> Table:
    """Rows of a .cs file for a STAR file that was itself made from one, matched to cryoSPARC by its uids.

    Raises
    ------
    TableError
        The STAR file has no uids: cryoSPARC could not tell which of its particles the rows are.
    """
    source = table.source
    if not isinstance(source, RelionSource) or UID not in source.particles:
        raise TableError(
            "a STAR file without cryoSPARC uids cannot become a .cs file",
            file=table.path,
            field=UID,
            hint="export a STAR file and import it into cryoSPARC (Import Particle Stack)",
        )
    names = [name.partition("@")[2].removesuffix(STACK_MARK) for name in source.particles.text("rlnImageName")]
    optics = table.optics
    columns: dict[str, np.ndarray] = {
        "uid": _uids(source.particles),
        "blob/path": np.array([os.fsencode(name) for name in names]),
        "blob/idx": table.frame.astype(np.uint32),
        "blob/shape": np.repeat(table.box[:, None], 2, axis=1).astype(np.uint32),
        "blob/psize_A": table.pixel_size.astype(np.float32),
    }
    for name, value in (
        ("accel_kv", optics.voltage_kv),
        ("cs_mm", optics.cs_mm),
        ("amp_contrast", optics.amplitude_contrast),
        ("df1_A", optics.defocus_u),
        ("df2_A", optics.defocus_v),
        ("df_angle_rad", optics.defocus_angle),
        ("phase_shift_rad", optics.phase_shift),
        ("bfactor", optics.b_factor),
        ("scale", optics.scale),
    ):
        columns[f"ctf/{name}"] = value.astype(np.float32)
    if table.poses is not None:
        shifts = origins_from_shifts(table.poses.shifts, table.pixel_size)
        columns["alignments3D/pose"] = cryosparc_from_rotations(table.poses.rotations).astype(np.float32)
        columns["alignments3D/shift"] = shifts.astype(np.float32)
    rows = np.empty(len(table), dtype=[(name, value.dtype, value.shape[1:]) for name, value in columns.items()])
    for name, value in columns.items():
        rows[name] = value
    return rows


def _uids(particles: StarBlock) -> np.ndarray:
    texts = particles.text(UID)
    for row, text in enumerate(texts):
        if not (text.isdecimal() and len(text) <= 20 and int(text) < 1 << 64):
            raise TableError(f"'{text}' is no uid of cryoSPARC", file=particles.path, row=row + 1, field=UID)
    return np.array([int(text) for text in texts], dtype=np.uint64)


def _optics_groups(table: ParticleTable) -> tuple[Int64[np.ndarray, " particle"], StarBlock]:
    """Optics group of each particle, from 0, and the block that describes the groups."""
    optics = table.optics
    kinds = np.stack(
        [optics.voltage_kv, optics.cs_mm, optics.amplitude_contrast, table.pixel_size, table.box.astype(np.float64)]
    )
    groups, member = np.unique(np.round(kinds, 6), axis=1, return_inverse=True)
    numbers = np.arange(1, groups.shape[1] + 1)
    labels = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnImagePixelSize")
    columns: dict[str, Column] = {
        "rlnOpticsGroupName": text_column(f"opticsGroup{number}" for number in numbers),
        "rlnOpticsGroup": integer_column(numbers),
        **{label: float_column(values) for label, values in zip(labels, groups[:4], strict=True)},
        "rlnImageSize": integer_column(groups[4].astype(np.int64)),
        "rlnImageDimensionality": integer_column(np.full(len(numbers), 2)),
    }
    return member.reshape(-1), StarBlock(table.path, "optics", columns)


def image_names(table: ParticleTable, stacks: Sequence[str]) -> Column:
    """Image names of a STAR file, with the names of the stacks as they shall stand there, those of .mrc files marked."""
    marked = [name + STACK_MARK if name.endswith(".mrc") else name for name in stacks]
    pairs = zip(table.frame.tolist(), table.stack.tolist(), strict=True)
    return text_column(f"{frame + 1:06d}@{marked[stack]}" for frame, stack in pairs)


def _named_stacks(table: ParticleTable) -> list[str]:
    """Paths of the stacks as the .cs file has them, for they may be relative to another project."""
    names = [str(path) for path in table.stack_paths]
    if isinstance(table.source, CryosparcSource):
        _, first = np.unique(table.stack, return_index=True)
        paths = table.source.rows["blob/path"]
        for row in first:
            names[table.stack[row]] = os.fsdecode(paths[row]).lstrip(">")
    return names


def _pose_columns(table: ParticleTable) -> dict[str, Column]:
    if table.poses is None:
        return {}
    angles, origins = relion_from_rotations(table.poses.rotations), origins_from_shifts(table.poses.shifts)
    labels = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
    return dict(zip(labels, map(float_column, [*angles.T, *origins.T]), strict=True))
