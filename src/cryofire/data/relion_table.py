"""The particle table of a RELION STAR file, versions 3.0 to 5."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int32, Int64

from cryofire.data.particles import Optics, ParticleTable, Poses, RelionSource
from cryofire.errors import TableError
from cryofire.formats.conventions import rotations_from_relion, shifts_from_origins
from cryofire.formats.mrc import LARGEST_SIDE
from cryofire.formats.star import StarBlock, read_star

_CTF_HINT = "estimate the CTF and extract the particles with it; a reconstruction needs these values"
_NEGLECTED = {
    "rlnBeamTiltX": "beam tilt",
    "rlnBeamTiltY": "beam tilt",
    "rlnOddZernike": "antisymmetric aberrations (odd Zernike)",
    "rlnEvenZernike": "symmetric aberrations (even Zernike)",
}
_MAGNIFICATION = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
_REFUSED = {
    "rlnCtfDataAreCtfPremultiplied": "the images were multiplied by their CTF",
    "rlnCtfDataArePhaseFlipped": "the images were phase-flipped",
}
STACK_MARK = ":mrcs"  # behind a file name, tells RELION to read an .mrc file as a stack
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def relion_table(path: Path) -> ParticleTable:
    """Read a STAR file; `stack_paths` of the result are the names in it, not looked for yet.

    Raises
    ------
    TableError
        No table of particle images, a column or an optics group is missing, a value is no number, or the images are
        of a kind the image model does not cover (phase-flipped, CTF-multiplied, three-dimensional).
    """
    source = _source(path)
    if len(source.particles) == 0:
        raise TableError("the table holds no particles", file=path, field=f"data_{source.particles.name}")
    values = _Values(source.particles, source.optics, _optics_row(source))
    _refuse_unsupported(values)
    pixel_size = _pixel_size(values)
    names, stack, frame = _images(source.particles)
    particles = source.particles
    return ParticleTable(
        path=path,
        stack_paths=tuple(Path(name) for name in names),
        stack=stack,
        frame=frame,
        pixel_size=pixel_size,
        box=_boxes(values),
        optics=_optics(values),
        poses=_poses(particles, pixel_size),
        labels=particles.integers("rlnClassNumber") if "rlnClassNumber" in particles else None,
        micrograph=tuple(particles.text("rlnMicrographName")) if "rlnMicrographName" in particles else None,
        source=source,
        notes=_notes(values),
    )


@dataclass(frozen=True)
class _Values:
    """Looks a label up in the optics groups first, then in the particle rows."""

    particles: StarBlock
    optics: StarBlock | None
    group_row: Int64[np.ndarray, " particle"] | None

    def __contains__(self, label: str) -> bool:
        return label in self.particles or (self.optics is not None and label in self.optics)

    def floats(self, label: str, default: float | None = None) -> Float64[np.ndarray, " particle"]:
        if self.optics is not None and self.group_row is not None and label in self.optics:
            return np.asarray(np.take(self.optics.floats(label), self.group_row))
        if label in self.particles:
            return self.particles.floats(label)
        if default is None:
            raise TableError("the column is missing", file=self.particles.path, field=label, hint=_CTF_HINT)
        return np.full(len(self.particles), default)

    def distinct_text(self, label: str) -> set[str]:
        blocks = [block for block in (self.particles, self.optics) if block is not None and label in block]
        return {text for block in blocks for text in block.text(label)}


def _source(path: Path) -> RelionSource:
    blocks = read_star(path)
    tables = [block for block in blocks if "rlnImageName" in block]
    tables.sort(key=lambda block: block.name not in ("particles", "images", ""))
    if not tables:
        found = ", ".join(f"data_{block.name}" for block in blocks)
        raise TableError(
            f"no table of particle images among {found}",
            file=path,
            field="rlnImageName",
            hint="name the STAR file of the extracted particles (particles.star or run_data.star)",
        )
    place = blocks.index(tables[0])
    return RelionSource(tables[0], blocks[:place], blocks[place + 1 :])


def _optics_row(source: RelionSource) -> Int64[np.ndarray, " particle"] | None:
    """Row of the optics block that each particle belongs to; None without an optics block."""
    optics, particles = source.optics, source.particles
    if optics is None:
        return None
    groups, wanted = optics.integers("rlnOpticsGroup"), particles.integers("rlnOpticsGroup")
    order = np.argsort(groups, kind="stable")
    if len(groups) == 0 or np.any(np.diff(groups[order]) == 0):
        raise TableError("no optics group, or two of one number", file=optics.path, field="rlnOpticsGroup")
    place = order[np.minimum(np.searchsorted(groups, wanted, sorter=order), len(groups) - 1)]
    unknown = groups[place] != wanted
    if np.any(unknown):
        row = int(np.argmax(unknown))
        raise TableError(
            f"optics group {wanted[row]} is not described; data_optics has {', '.join(str(g) for g in groups)}",
            file=particles.path,
            row=row + 1,
            field="rlnOpticsGroup",
            hint="add the optics group to data_optics, or remove its particles",
        )
    return place


def _refuse_unsupported(values: _Values) -> None:
    path = values.particles.path
    for label, problem in _REFUSED.items():
        if label in values and np.any(values.floats(label) != 0):
            raise TableError(
                f"{problem}, which the image model does not cover",
                file=path,
                field=label,
                hint="extract the particles again without CTF multiplication or phase flipping",
            )
    if "rlnTomoParticleName" in values or np.any(values.floats("rlnImageDimensionality", default=2.0) == 3):
        raise TableError(
            "the table describes sub-tomograms or tilt series, not single images",
            file=path,
            field="rlnImageDimensionality",
            hint="single-particle images are needed",
        )


def _pixel_size(values: _Values) -> Float64[np.ndarray, " particle"]:
    for label in ("rlnImagePixelSize", "rlnPixelSize"):
        if label in values:
            return values.floats(label)
    if "rlnDetectorPixelSize" in values and "rlnMagnification" in values:
        with np.errstate(divide="ignore", invalid="ignore"):  # an impossible magnification is reported as such later
            return np.asarray(1e4 * values.floats("rlnDetectorPixelSize") / values.floats("rlnMagnification"))
    raise TableError(
        "nothing says how large a pixel is",
        file=values.particles.path,
        field="rlnImagePixelSize",
        hint="add rlnImagePixelSize (Å), or rlnDetectorPixelSize (µm) and rlnMagnification",
    )


def _boxes(values: _Values) -> Int32[np.ndarray, " particle"]:
    boxes = values.floats("rlnImageSize", default=0.0)
    possible = (boxes >= 0) & (boxes < LARGEST_SIDE) & (boxes == np.round(boxes))
    if not np.all(possible):
        row = int(np.argmin(possible))
        raise TableError(
            f"{boxes[row]} is no image size", file=values.particles.path, row=row + 1, field="rlnImageSize"
        )
    return boxes.astype(np.int32)


def _images(particles: StarBlock) -> tuple[list[str], Int32[np.ndarray, " particle"], Int64[np.ndarray, " particle"]]:
    """Distinct stack names, and the stack and the 0-based image of each particle."""
    place: dict[str, int] = {}
    stack = np.empty(len(particles), dtype=np.int32)
    frame = np.empty(len(particles), dtype=np.int64)
    for row, text in enumerate(particles.text("rlnImageName")):
        number, at, name = text.partition("@")
        if not (at and name and number.isdecimal() and len(number) < 18):
            raise TableError(
                f"'{text}' is not an image of a stack",
                file=particles.path,
                row=row + 1,
                field="rlnImageName",
                hint="write number@stack, for example 000001@particles.mrcs",
            )
        stack[row] = place.setdefault(name.removesuffix(STACK_MARK), len(place))
        frame[row] = int(number) - 1
    return list(place), stack, frame


def _optics(values: _Values) -> Optics:
    return Optics(
        voltage_kv=values.floats("rlnVoltage"),
        cs_mm=values.floats("rlnSphericalAberration"),
        amplitude_contrast=values.floats("rlnAmplitudeContrast"),
        defocus_u=values.floats("rlnDefocusU"),
        defocus_v=values.floats("rlnDefocusV"),
        defocus_angle=np.deg2rad(values.floats("rlnDefocusAngle")),
        phase_shift=np.deg2rad(values.floats("rlnPhaseShift", default=0.0)),
        b_factor=values.floats("rlnCtfBfactor", default=0.0),
        scale=values.floats("rlnCtfScalefactor", default=1.0),
    )


def _poses(particles: StarBlock, pixel_size: Float64[np.ndarray, " particle"]) -> Poses | None:
    angles = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    if not all(label in particles for label in angles):
        return None
    shifts = np.zeros((len(particles), 2))
    for labels, scale in ((("rlnOriginXAngst", "rlnOriginYAngst"), 1.0), (("rlnOriginX", "rlnOriginY"), pixel_size)):
        if all(label in particles for label in labels):
            origins = np.stack([particles.floats(label) for label in labels], axis=-1)
            shifts = shifts_from_origins(origins, scale)
            break
    euler = np.stack([particles.floats(label) for label in angles], axis=-1)
    return Poses(rotations_from_relion(euler), shifts)


def _notes(values: _Values) -> tuple[str, ...]:
    """Say what the file states of the optics and the image model leaves out."""
    neglected = [what for label, what in _NEGLECTED.items() if label in values and _is_set(values, label)]
    if all(label in values for label in _MAGNIFICATION):
        matrices = np.stack([values.floats(label) for label in _MAGNIFICATION])
        if np.any(np.abs(matrices - np.array([1.0, 0.0, 0.0, 1.0])[:, None]) > 1e-6):
            neglected.append("anisotropic magnification")
    if values.distinct_text("rlnMtfFileName") - {""}:
        neglected.append("the detector's modulation transfer function (MTF)")
    return tuple(f"the table states {what}; the image model does not include it" for what in dict.fromkeys(neglected))


def _is_set(values: _Values, label: str) -> bool:
    return any(float(number) for text in values.distinct_text(label) for number in _NUMBER.findall(text))
