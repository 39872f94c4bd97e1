"""Writing results into the user's own tables: same rows, same columns, same order, same pixel frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from cryofire.data.convert import cryosparc_rows, image_names, relion_source
from cryofire.data.estimates import ParticleEstimates
from cryofire.data.particles import CryosparcSource, ParticleTable, RelionSource, Rows
from cryofire.errors import InputError, TableError
from cryofire.formats.conventions import cryosparc_from_rotations, origins_from_shifts, relion_from_rotations
from cryofire.formats.cryosparc import Table, with_fields, without_fields, write_cs
from cryofire.formats.star import Column, StarBlock, float_column, integer_column, write_star

_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")
_ORIGINS_PX = ("rlnOriginX", "rlnOriginY")


def write_relion(table: ParticleTable, estimates: ParticleEstimates, path: Path) -> None:
    """Write a STAR file with the user's rows, the estimated poses and classes, and what is known of their precision.

    Every other column and block is written as it was read. Files with optics groups get origins in Å, older files in
    pixels. Added are ``cryofireLatent1...``, ``cryofireLatentStd1...``, for a motion ``cryofirePathPosition``,
    ``cryofireRotationStd`` (degrees), ``cryofireShiftStd`` (Å), ``cryofireStateProbability``, ``cryofireContrast``,
    ``cryofireLogLikelihood`` and ``cryofireUsed``. Rows that were not used keep their old pose (zero if they had none)
    and class (0 if none). A table read from a .cs file becomes a STAR file of version 3.1, with the uids in
    ``cryofireUid``.

    Parameters
    ----------
    table : ParticleTable
        As it was read, not a subset.
    estimates : ParticleEstimates
        One row per particle of `table`, in its order.
    path : Path
        Where to write; a file there is replaced when the new one is complete.

    Raises
    ------
    InputError
        `path` is the table itself, or cannot be written.
    TableError
        Numbers of particles differ.
    """
    _check(table, estimates, path)
    source = table.source if isinstance(table.source, RelionSource) else relion_source(table)
    used, columns = _used(estimates), dict(source.particles.columns)
    kept = {label: column for label, column in columns.items() if not _is_ours(label) or label == "cryofireUid"}
    particles = replace(source.particles, columns=kept)
    new = {
        **_pose_columns(source, estimates, used, table.pixel_size),
        "rlnClassNumber": integer_column(estimates.state + 1),
    }
    merged = {label: np.where(used, column, _old(particles, label)) for label, column in new.items()}
    write_star(path, (*source.before, particles.updated({**merged, **_our_columns(estimates, used)}), *source.after))


def write_subset(table: ParticleTable, rows: Rows, path: Path) -> None:
    """Write some rows of a table as a STAR file that can be read from any folder: its stacks have absolute paths.

    Every other column is written as it was read; a table read from a .cs file becomes a STAR file of version 3.1.

    Parameters
    ----------
    table : ParticleTable
        As it was read.
    rows : array of int or bool
        Which particles, in which order.
    path : Path
        Where to write.
    """
    part = table.take(rows)
    source = part.source if isinstance(part.source, RelionSource) else relion_source(part)
    names = image_names(part, [str(stack.resolve()) for stack in part.stack_paths])
    write_star(path, (*source.before, source.particles.updated({"rlnImageName": names}), *source.after))


def write_cryosparc(table: ParticleTable, estimates: ParticleEstimates, path: Path) -> None:
    """Write a .cs file with the user's rows and uids and the estimated poses and classes.

    Every other field is written as it was read, those joined from passthrough files included. Set are
    ``alignments3D/pose``, ``/shift`` (px of ``/psize_A``), ``/psize_A``, ``/class`` (from 0) and ``/class_posterior``;
    added are ``cryofire/latent``, ``/latent_std``, ``/rotation_std`` (radians), ``/shift_std_A``, ``/contrast``,
    ``/log_likelihood``, ``/used`` and, for a motion, ``/path_position``. Rows that were not used keep what they had, zeros
    if nothing.

    Parameters
    ----------
    table, estimates, path
        As for `write_relion`.

    Raises
    ------
    InputError
        `path` is the table itself, or cannot be written.
    TableError
        Numbers of particles differ, or the table is a STAR file without uids.
    """
    _check(table, estimates, path)
    rows = table.source.rows if isinstance(table.source, CryosparcSource) else cryosparc_rows(table)
    names = rows.dtype.names or ()
    rows = without_fields(rows, [name for name in names if name.startswith("cryofire/")])
    used = _used(estimates)
    pixel_size = np.asarray(rows["alignments3D/psize_A" if "alignments3D/psize_A" in names else "blob/psize_A"])
    values = {
        "pose": cryosparc_from_rotations(_rotations(estimates, used)),
        "shift": origins_from_shifts(np.where(used[:, None], estimates.shifts, 0.0), pixel_size),
        "class_posterior": np.where(used, estimates.state_probability, 0.0),
    }
    columns = [
        (f"alignments3D/{name}", _kept(rows, f"alignments3D/{name}", value, used)) for name, value in values.items()
    ]
    state = _kept(rows, "alignments3D/class", estimates.state, used, np.uint32)
    columns += [("alignments3D/psize_A", pixel_size), ("alignments3D/class", state)]
    write_cs(path, with_fields(rows, [*columns, *_our_fields(estimates, used)]))


def _check(table: ParticleTable, estimates: ParticleEstimates, path: Path) -> None:
    if len(estimates) != len(table):
        raise TableError(
            f"{len(estimates)} estimates do not belong to {len(table)} particles",
            file=table.path,
            hint="export with the table that was reconstructed",
        )
    inputs = [table.path, *table.stack_paths]
    if path.exists() and any(other.exists() and path.samefile(other) for other in inputs):
        raise InputError("the result would replace its own input", file=path, hint="choose another name")


def _used(estimates: ParticleEstimates) -> Bool[np.ndarray, " particle"]:
    """Particles that have a pose."""
    finite = np.isfinite(estimates.rotations).all(axis=(1, 2)) & np.isfinite(estimates.shifts).all(axis=1)
    return np.asarray(estimates.used & finite)


def _rotations(
    estimates: ParticleEstimates, used: Bool[np.ndarray, " particle"]
) -> Float64[np.ndarray, "particle 3 3"]:
    """Rotations with the identity where there is none."""
    return np.where(used[:, None, None], estimates.rotations, np.eye(3))


def _is_ours(label: str) -> bool:
    return label.startswith("cryofire")


def _pose_columns(
    source: RelionSource,
    estimates: ParticleEstimates,
    used: Bool[np.ndarray, " particle"],
    pixel_size: Float64[np.ndarray, " particle"],
) -> dict[str, Column]:
    angles = relion_from_rotations(_rotations(estimates, used))
    shifts = np.where(used[:, None], estimates.shifts, 0.0)
    origins, origins_px = origins_from_shifts(shifts), origins_from_shifts(shifts, pixel_size)
    columns = dict(zip(_ANGLES, map(float_column, angles.T), strict=True))
    is_modern = source.optics is not None or _ORIGINS[0] in source.particles
    if is_modern:
        columns.update(zip(_ORIGINS, map(float_column, origins.T), strict=True))
    if not is_modern or _ORIGINS_PX[0] in source.particles:
        columns.update(zip(_ORIGINS_PX, map(float_column, origins_px.T), strict=True))
    return columns


def _old(particles: StarBlock, label: str) -> Column:
    """Return the column as it was, zeros if there was none."""
    if label in particles:
        return particles.columns[label]
    return np.full(len(particles), b"0" if label == "rlnClassNumber" else b"0.000000")


def _has_path(estimates: ParticleEstimates) -> bool:
    return bool(np.isfinite(estimates.path_position).any())


def _our_columns(estimates: ParticleEstimates, used: Bool[np.ndarray, " particle"]) -> Mapping[str, Column]:
    components = range(estimates.latents.shape[1])
    return {
        **{f"cryofireLatent{k + 1}": float_column(estimates.latents[:, k]) for k in components},
        **{f"cryofireLatentStd{k + 1}": float_column(estimates.latent_std[:, k]) for k in components},
        **({"cryofirePathPosition": float_column(estimates.path_position)} if _has_path(estimates) else {}),
        "cryofireRotationStd": float_column(np.rad2deg(estimates.rotation_std)),
        "cryofireShiftStd": float_column(estimates.shift_std),
        "cryofireStateProbability": float_column(estimates.state_probability),
        "cryofireContrast": float_column(estimates.contrast),
        "cryofireLogLikelihood": float_column(estimates.log_likelihood, 3),
        "cryofireUsed": integer_column(used),
    }


def _kept(
    rows: Table,
    name: str,
    value: Float64[np.ndarray, "particle ..."] | Int64[np.ndarray, " particle"],
    used: Bool[np.ndarray, " particle"],
    kind: type[np.generic] = np.float32,
) -> np.ndarray:
    """Values of used rows; the others keep those of the file, zeros if it had none."""
    old = rows[name] if name in (rows.dtype.names or ()) else np.zeros_like(value)
    mask = used.reshape(-1, *(1,) * (value.ndim - 1))
    return np.where(mask, value, old).astype(kind)


def _our_fields(estimates: ParticleEstimates, used: Bool[np.ndarray, " particle"]) -> list[tuple[str, np.ndarray]]:
    values = {
        "latent": estimates.latents,
        "latent_std": estimates.latent_std,
        "rotation_std": estimates.rotation_std,
        "shift_std_A": estimates.shift_std,
        "contrast": estimates.contrast,
        "log_likelihood": estimates.log_likelihood,
        **({"path_position": estimates.path_position} if _has_path(estimates) else {}),
    }
    fields = [(f"cryofire/{name}", value.astype(np.float32)) for name, value in values.items() if value.shape[-1]]
    return [*fields, ("cryofire/used", used.astype(np.uint32))]
