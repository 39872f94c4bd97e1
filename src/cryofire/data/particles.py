"""The typed particle table: which image, taken how, seen from where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int32, Int64, Shaped

from cryofire.formats.mrc import open_stack
from cryofire.formats.star import StarBlock

Rows = Int[np.ndarray, " row"] | Bool[np.ndarray, " all"]


@dataclass(frozen=True)
class Optics:
    """Contrast transfer parameters, one entry per particle.

    Attributes
    ----------
    voltage_kv, cs_mm : array (particle,)
        Acceleration voltage in kV; spherical aberration in mm.
    amplitude_contrast : array (particle,)
        Fraction w of the contrast that is amplitude contrast, 0 to 1.
    defocus_u, defocus_v : array (particle,)
        Defocus along the two principal axes, Å, underfocus positive.
    defocus_angle : array (particle,)
        Angle from the x axis to the axis of `defocus_u`, radians.
    phase_shift : array (particle,)
        Of a phase plate, radians.
    b_factor, scale : array (particle,)
        The transfer function is multiplied by ``scale · exp(-b_factor k² / 4)``; Å² and dimensionless.
    """

    voltage_kv: Float64[np.ndarray, " particle"]
    cs_mm: Float64[np.ndarray, " particle"]
    amplitude_contrast: Float64[np.ndarray, " particle"]
    defocus_u: Float64[np.ndarray, " particle"]
    defocus_v: Float64[np.ndarray, " particle"]
    defocus_angle: Float64[np.ndarray, " particle"]
    phase_shift: Float64[np.ndarray, " particle"]
    b_factor: Float64[np.ndarray, " particle"]
    scale: Float64[np.ndarray, " particle"]

    def take(self, rows: Rows) -> Optics:
        """Return the entries of the given particles."""
        return Optics(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class Poses:
    """Where each particle is seen from.

    Attributes
    ----------
    rotations : array (particle, 3, 3)
        R in ``r_image = R r_volume``, vectors (x, y, z).
    shifts : array (particle, 2)
        (x, y) by which the particle was moved in its image, Å.
    """

    rotations: Float64[np.ndarray, "particle 3 3"]
    shifts: Float64[np.ndarray, "particle 2"]

    def take(self, rows: Rows) -> Poses:
        """Return the poses of the given particles."""
        return Poses(self.rotations[rows], self.shifts[rows])


@dataclass(frozen=True)
class RelionSource:
    """The user's own STAR file, for export.

    Attributes
    ----------
    particles : StarBlock
        The table with one row per particle.
    before, after : tuple of StarBlock
        The other blocks of the file, in their order around it.
    """

    particles: StarBlock
    before: tuple[StarBlock, ...]
    after: tuple[StarBlock, ...]

    @property
    def optics(self) -> StarBlock | None:
        """The optics groups; None in a file of RELION 3.0 or older."""
        return next((block for block in (*self.before, *self.after) if block.name == "optics"), None)

    def take(self, rows: Rows) -> RelionSource:
        """Return the source with the rows of the given particles."""
        return replace(self, particles=self.particles.take(rows))


@dataclass(frozen=True)
class CryosparcSource:
    """The user's own .cs rows, for export.

    Attributes
    ----------
    rows : structured array (particle,)
        All fields of the file, those joined from passthrough files behind them.
    passthrough : tuple of Path
        The files that were joined by uid.
    """

    rows: Shaped[np.ndarray, " particle"]
    passthrough: tuple[Path, ...]

    def take(self, rows: Rows) -> CryosparcSource:
        """Return the source with the rows of the given particles."""
        return replace(self, rows=self.rows[rows])


class ImageStack(Protocol):
    """Where the images of a stack come from: a file (`cryofire.formats.mrc.MrcStack`), or a simulation."""

    @property
    def path(self) -> Path:
        """Name of the stack."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images, rows and columns."""

    def frames(self, indices: Int[np.ndarray, " row"]) -> Float32[np.ndarray, "row y x"]:
        """Images at the given 0-based indices."""


@dataclass(frozen=True)
class ParticleTable:
    """What is known of each particle before a reconstruction; made by `cryofire.data.read.read_particles`.

    Attributes
    ----------
    path : Path
        The STAR or .cs file it was read from.
    stack_paths : tuple of Path
        Image stacks.
    stack, frame : array (particle,)
        Which of `stack_paths`, and the 0-based image in it.
    pixel_size : array (particle,)
        Å.
    box : array (particle,)
        Side of the image, px; 0 where the stacks were not asked for and the file does not say.
    optics : Optics
        Contrast transfer parameters.
    poses : Poses or None
        Poses in the file, if it has any.
    labels : array (particle,) or None
        Class of each particle, as the file numbers them.
    micrograph : tuple of str or None
        Micrograph of each particle.
    source : RelionSource or CryosparcSource
        The user's own rows.
    notes : tuple of str
        What the file says that the image model leaves out.
    opener : callable
        Opens one of `stack_paths`.
    """

    path: Path
    stack_paths: tuple[Path, ...]
    stack: Int32[np.ndarray, " particle"]
    frame: Int64[np.ndarray, " particle"]
    pixel_size: Float64[np.ndarray, " particle"]
    box: Int32[np.ndarray, " particle"]
    optics: Optics
    poses: Poses | None
    labels: Int64[np.ndarray, " particle"] | None
    micrograph: tuple[str, ...] | None
    source: RelionSource | CryosparcSource
    notes: tuple[str, ...] = ()
    opener: Callable[[Path], ImageStack] = open_stack

    def __len__(self) -> int:
        return len(self.stack)

    def take(self, rows: Rows) -> ParticleTable:
        """Return the table of the given particles, in the given order."""
        indices = np.arange(len(self))[rows]
        return replace(
            self,
            stack=self.stack[indices],
            frame=self.frame[indices],
            pixel_size=self.pixel_size[indices],
            box=self.box[indices],
            optics=self.optics.take(indices),
            poses=None if self.poses is None else self.poses.take(indices),
            labels=None if self.labels is None else self.labels[indices],
            micrograph=None if self.micrograph is None else tuple(self.micrograph[i] for i in indices),
            source=self.source.take(indices),
        )
