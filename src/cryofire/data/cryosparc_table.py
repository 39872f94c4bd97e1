"""The particle table of a cryoSPARC .cs file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from cryofire.data.particles import CryosparcSource, Optics, ParticleTable, Poses
from cryofire.errors import FileFormatError, TableError
from cryofire.formats.conventions import rotations_from_cryosparc, shifts_from_origins
from cryofire.formats.cryosparc import Table, covers, join_by_uid, passthrough_candidates, read_cs
from cryofire.formats.mrc import LARGEST_SIDE

_NEGLECTED = {
    "ctf/shift_A": "a beam shift",
    "ctf/tilt_A": "beam tilt",
    "ctf/trefoil_A": "trefoil",
    "ctf/tetra_A": "tetrafoil",
    "ctf/anisomag": "anisotropic magnification",
}
_CLASS_GROUP = re.compile(r"(alignments_class_\d+)/pose")


def cryosparc_table(path: Path, passthrough: Sequence[Path] = ()) -> ParticleTable:
    """Read a .cs file; `stack_paths` of the result are the names in it, not looked for yet.

    Parameters
    ----------
    path : Path
        The .cs file.
    passthrough : sequence of Path
        Files joined by uid; where none is given, those beside `path` are used if it lacks images, CTF or poses.

    Raises
    ------
    TableError
        A field is missing, or a passthrough file belongs to other particles.
    """
    source = _source(path, passthrough)
    fields = _Fields(path, source.rows)
    if len(source.rows) == 0:
        raise TableError("the table holds no particles", file=path)
    paths, stack = np.unique(_text(fields.column("blob/path")), return_inverse=True)
    box = fields.integers("blob/shape", (2,))
    wrong = (box[:, 0] != box[:, 1]) | (box[:, 0] < 1) | (box[:, 0] >= LARGEST_SIDE)
    if np.any(wrong):
        raise TableError("no size of a square image", file=path, row=_first(wrong), field="blob/shape")
    alignment = _alignment(fields)
    return ParticleTable(
        path=path,
        stack_paths=tuple(Path(str(name)) for name in paths),
        stack=stack.reshape(-1).astype(np.int32),
        frame=fields.integers("blob/idx"),
        pixel_size=fields.floats("blob/psize_A"),
        box=box[:, 0].astype(np.int32),
        optics=_optics(fields),
        poses=None if alignment is None else alignment.poses,
        labels=None if alignment is None else alignment.labels,
        micrograph=tuple(_text(source.rows["location/micrograph_path"]).tolist())
        if "location/micrograph_path" in fields
        else None,
        source=source,
        notes=_notes(fields),
    )


@dataclass(frozen=True)
class _Fields:
    path: Path
    rows: Table

    def __contains__(self, name: str) -> bool:
        return name in (self.rows.dtype.names or ())

    def column(self, name: str) -> np.ndarray:
        if name not in self:
            raise TableError(
                "the field is missing",
                file=self.path,
                field=name,
                hint="put the passthrough .cs file of the same job beside this file, or name it with --passthrough",
            )
        return np.asarray(self.rows[name])

    def floats(self, name: str, shape: tuple[int, ...] = (), default: float | None = None) -> np.ndarray:
        """Values as float64 (particle, *shape)."""
        if default is not None and name not in self:
            return np.full((len(self.rows), *shape), default)
        return self._checked(name, shape, "iufb").astype(np.float64)

    def integers(self, name: str, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Values as int64 (particle, *shape)."""
        return self._checked(name, shape, "iu").astype(np.int64)

    def _checked(self, name: str, shape: tuple[int, ...], kinds: str) -> np.ndarray:
        values = self.column(name)
        if values.dtype.kind not in kinds or values.shape[1:] != shape:
            raise TableError(f"values of type {values.dtype} and shape {values.shape[1:]}", file=self.path, field=name)
        return values


@dataclass(frozen=True)
class _Alignment:
    poses: Poses
    labels: Int64[np.ndarray, " particle"] | None


def _source(path: Path, passthrough: Sequence[Path]) -> CryosparcSource:
    rows = read_cs(path)
    joined: list[Path] = []
    for other_path in passthrough:
        rows = join_by_uid(rows, read_cs(other_path), other_path)
        joined.append(other_path)
    if not passthrough and not _is_complete(rows):
        for other_path in passthrough_candidates(path):
            other = read_cs(other_path)
            if covers(other, rows):
                rows = join_by_uid(rows, other, other_path)
                joined.append(other_path)
    return CryosparcSource(rows, tuple(joined))


def _is_complete(rows: Table) -> bool:
    groups = {name.partition("/")[0] for name in rows.dtype.names or ()}
    return {"blob", "ctf"} <= groups and any(group.startswith("alignments") for group in groups)


def _text(values: np.ndarray) -> np.ndarray:
    """Paths as text, without the ">" that stands for the project folder."""
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "surrogateescape")
    return np.char.lstrip(values.astype(str), ">")


def _first(wrong: np.ndarray) -> int:
    return int(np.argmax(wrong)) + 1


def _optics(fields: _Fields) -> Optics:
    return Optics(
        voltage_kv=fields.floats("ctf/accel_kv"),
        cs_mm=fields.floats("ctf/cs_mm"),
        amplitude_contrast=fields.floats("ctf/amp_contrast"),
        defocus_u=fields.floats("ctf/df1_A"),
        defocus_v=fields.floats("ctf/df2_A"),
        defocus_angle=fields.floats("ctf/df_angle_rad"),
        phase_shift=fields.floats("ctf/phase_shift_rad", default=0.0),
        b_factor=fields.floats("ctf/bfactor", default=0.0),
        scale=fields.floats("ctf/scale", default=1.0),
    )


def _alignment(fields: _Fields) -> _Alignment | None:
    """Poses and classes: of alignments3D, else of the most probable class; None if the file has no 3-D alignment."""
    if "alignments3D/pose" in fields:
        labels = fields.integers("alignments3D/class") if "alignments3D/class" in fields else None
        return _Alignment(_poses(fields, "alignments3D"), labels)
    groups = [match.group(1) for match in map(_CLASS_GROUP.fullmatch, fields.rows.dtype.names or ()) if match]
    if groups:
        probability = np.stack([fields.floats(f"{group}/class_posterior") for group in groups])
        best = np.argmax(probability, axis=0)
        candidates = [_poses(fields, group) for group in groups]
        rows = np.arange(len(best))
        rotations = np.stack([poses.rotations for poses in candidates])[best, rows]
        shifts = np.stack([poses.shifts for poses in candidates])[best, rows]
        numbers = np.array([int(group.rpartition("_")[2]) for group in groups], dtype=np.int64)
        return _Alignment(Poses(rotations, shifts), numbers[best])
    return _several_classes(fields) if "alignments3D_multi/pose" in fields else None


def _poses(fields: _Fields, group: str) -> Poses:
    rotations = rotations_from_cryosparc(fields.floats(f"{group}/pose", (3,)))
    pixel_size = _alignment_pixel_size(fields, group)
    return Poses(rotations, shifts_from_origins(fields.floats(f"{group}/shift", (2,)), pixel_size))


def _alignment_pixel_size(fields: _Fields, group: str) -> Float64[np.ndarray, " particle"]:
    """Pixel size the shifts are counted in: alignments may have been made with binned images."""
    name = f"{group}/psize_A"
    pixel_size: Float64[np.ndarray, " particle"] = fields.floats(name if name in fields else "blob/psize_A")
    if not np.all(np.isfinite(pixel_size) & (pixel_size > 0)):
        raise TableError(
            "the pixel size must be positive",
            file=fields.path,
            row=_first(~(np.isfinite(pixel_size) & (pixel_size > 0))),
            field=name,
        )
    return pixel_size


def _several_classes(fields: _Fields) -> _Alignment:
    """Alignments to all classes side by side (cryoSPARC 4.5 and later): fields (particle, class, ...)."""
    pose, shift = fields.column("alignments3D_multi/pose"), fields.column("alignments3D_multi/shift")
    probability = fields.column("alignments3D_multi/class_posterior")
    classes = probability.shape[1:]
    if len(classes) != 1 or pose.shape[1:] != (*classes, 3) or shift.shape[1:] != (*classes, 2):
        raise FileFormatError(
            f"pose, shift and posterior have the shapes {pose.shape}, {shift.shape} and {probability.shape}",
            file=fields.path,
            field="alignments3D_multi",
            hint="export the particles of one class",
        )
    rows, best = np.arange(len(pose)), np.argmax(probability, axis=1)
    name = "alignments3D_multi/psize_A"
    pixel_size = fields.column(name) if name in fields else fields.column("blob/psize_A")
    if pixel_size.ndim == 2:
        pixel_size = pixel_size[rows, best]
    poses = Poses(
        rotations_from_cryosparc(pose[rows, best]),
        shifts_from_origins(shift[rows, best], pixel_size.astype(np.float64)),
    )
    return _Alignment(poses, best.astype(np.int64))


def _notes(fields: _Fields) -> tuple[str, ...]:
    neglected = [what for name, what in _NEGLECTED.items() if name in fields and np.any(fields.column(name) != 0)]
    return tuple(f"the table states {what}; the image model does not include it" for what in neglected)
