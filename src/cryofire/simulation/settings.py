"""What to simulate: one frozen value that says everything, and so is all that a set needs to be made again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cryofire.errors import MissingFileError, SettingError
from cryofire.simulation.molecules import Conformation, RigidMotion

DEMO_STATES = (Conformation(), Conformation((RigidMotion(("S*",), math.radians(10)),)))
"""States of the demonstration: the 80S as it is, and its small subunit turned by 10° about the inter-subunit axis."""

_POSITIVE = ("particles", "box", "pixel_size", "voltage_kv", "defocus", "snr", "snr_pixel_size", "noise_pixel_size")
_NOT_NEGATIVE = ("seed", "cs_mm", "defocus_spread", "b_factor", "shift_std", "contrast_std", "view_strength")


@dataclass(frozen=True)
class SimulationSettings:
    """Settings of a simulated particle set. The defaults make 10 000 particles of a ribosome in two states.

    Attributes
    ----------
    particles : int
        Number of images.
    seed : int
        Everything random follows from it. Of two sets that differ only in `particles`, one begins like the other.
    box : int
        Side of the images, px.
    pixel_size : float
        Å.
    molecule : Path or None
        PDB, mmCIF or .npz file (see `cryofire.simulation.molecules.read_molecule`); None for the demonstration.
    maps : tuple of Path
        Density maps (MRC), one a state, of any box and pixel size, instead of a molecule.
    conformations : tuple of Conformation or None
        States of the molecule. None: the two states of the demonstration, or the molecule as it is.
    weights : tuple of float or None
        Relative number of particles in each state. None: 0.9 and 0.1 for the demonstration's two states, else equal.
    voltage_kv, cs_mm, amplitude_contrast, phase_shift, b_factor : float
        Of the microscope: kV, mm, fraction, radians, Å² (the images fall off by exp(-B k² / 4)).
    defocus : float
        Median of the log-normal distribution of the larger defocus, Å.
    defocus_spread : float
        Standard deviation of its logarithm.
    astigmatism : float
        The smaller defocus is smaller by a fraction uniform in 0 … astigmatism; the angle is uniform.
    defocus_from : Path or None
        STAR file, or .npz with an array ``ctf``, whose defocus values (both axes and angle) are drawn instead.
    views : {"uniform", "preferred"}
        Distribution of the viewing directions. In-plane angles are uniform.
    view_strength : float
        Concentration κ of preferred views: their density is ∝ exp(κ cos angle) about each of a few axes.
    preferred_axes : int
        Number of these axes; they are random.
    views_from : Path or None
        STAR file, or .npz with an array ``rot`` (particle, 3, 3), whose rotations are drawn instead.
    shift_std : float
        Standard deviation of the shifts along x and along y, Å.
    contrast_std : float
        Standard deviation of the factor, of mean 1, by which the contrast of each image differs.
    empty : float
        Fraction of images without a particle, at random: noise alone.
    contaminated : float
        Fraction of images with a disc of the sign of matter anywhere in them, 5 to 20 standard deviations of the noise deep.
    contrast : {"dark", "white"}
        Whether matter is dark, as in unprocessed images, or white.
    snr : float
        Variance of the images without noise over that of the noise, both as they would be at `snr_pixel_size`. May be
        infinite.
    snr_pixel_size : float or None
        Å. The noise per area is so the same whatever the pixel size of the images. None: that of the images.
    noise : Path or None
        Radial spectrum of the noise: .npy with its variance per shell, up to the Nyquist frequency, or a stack (MRC)
        of windows of pure noise from which it is measured. Its scale does not matter. None: white.
    noise_pixel_size : float or None
        Pixel size in Å at which that spectrum was measured. None: what the stack says, or else that of the images.
    dtype : {"float16", "float32"}
        How images are stored: MRC mode 12 or 2.
    """

    particles: int = 10_000
    seed: int = 0
    box: int = 64
    pixel_size: float = 7.54
    molecule: Path | None = None
    maps: tuple[Path, ...] = ()
    conformations: tuple[Conformation, ...] | None = None
    weights: tuple[float, ...] | None = None
    voltage_kv: float = 300.0
    cs_mm: float = 2.7
    amplitude_contrast: float = 0.1
    phase_shift: float = 0.0
    b_factor: float = 0.0
    defocus: float = 20_000.0
    defocus_spread: float = 0.2
    astigmatism: float = 0.03
    defocus_from: Path | None = None
    views: Literal["uniform", "preferred"] = "uniform"
    view_strength: float = 6.0
    preferred_axes: int = 3
    views_from: Path | None = None
    shift_std: float = 5.0
    contrast_std: float = 0.0
    empty: float = 0.0
    contaminated: float = 0.0
    contrast: Literal["dark", "white"] = "dark"
    snr: float = 0.1
    snr_pixel_size: float | None = 3.77
    noise: Path | None = None
    noise_pixel_size: float | None = None
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        """Check what can be checked without opening a file.

        Raises
        ------
        SettingError
            A value is out of its range, or two settings exclude each other.
        MissingFileError
            A file does not exist.
        """
        self._check_ranges()
        _check_choice("views", self.views, ("uniform", "preferred"))
        _check_choice("contrast", self.contrast, ("dark", "white"))
        _check_choice("dtype", self.dtype, ("float16", "float32"))
        self._check_states()
        for path in (self.molecule, *self.maps, self.defocus_from, self.views_from, self.noise):
            if path is not None and not path.is_file():
                raise MissingFileError("the file does not exist", file=path)

    def _check_ranges(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingError(f"{name} must be positive, not {value}", field=name)
        for name in _NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingError(f"{name} must not be negative, but is {getattr(self, name)}", field=name)
        for name in ("amplitude_contrast", "astigmatism", "empty", "contaminated"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"{name} must be between 0 and 1, not {getattr(self, name)}", field=name)
        if self.contaminated and math.isinf(self.snr):
            raise SettingError("contaminants are as deep as the noise says: give it a finite snr", field="contaminated")
        if self.box < 8 or self.preferred_axes < 1:
            raise SettingError("images need at least 8 pixels, and preferred views at least one axis")

    def _check_states(self) -> None:
        if self.maps and (self.molecule is not None or self.conformations is not None):
            raise SettingError("states are either maps or conformations of a molecule, not both", field="maps")
        if self.conformations is not None and len(self.conformations) == 0:
            raise SettingError("at least one conformation is needed", field="conformations")
        weights = self.weights
        if weights is not None and len(weights) != self.state_count:
            raise SettingError(
                f"there are {len(weights)} weights for {self.state_count} states",
                field="weights",
                hint="give one weight a state, the state at rest included",
            )
        if weights is not None and not (all(0 <= weight < math.inf for weight in weights) and sum(weights) > 0):
            raise SettingError("weights must not be negative, and one of them positive", field="weights")

    @property
    def states(self) -> tuple[Conformation, ...]:
        """Conformations of the molecule; empty if the states are maps."""
        if self.maps:
            return ()
        if self.conformations is not None:
            return self.conformations
        return DEMO_STATES if self.molecule is None else (Conformation(),)

    @property
    def state_count(self) -> int:
        """Number of states."""
        return len(self.maps) or len(self.states)

    @property
    def state_weights(self) -> tuple[float, ...]:
        """Fraction of the particles in each state; they add up to 1."""
        weights: Sequence[float] = (1.0,) * self.state_count
        if self.weights is not None:
            weights = self.weights
        elif self.states == DEMO_STATES and self.molecule is None:
            weights = (0.9, 0.1)
        return tuple(weight / sum(weights) for weight in weights)

    @property
    def coordinates(self) -> tuple[float, ...] | None:
        """Coordinate of each state on a continuum; None if they do not lie on one."""
        coordinates = [state.coordinate for state in self.states]
        known = tuple(coordinate for coordinate in coordinates if coordinate is not None)
        return known if known and len(known) == len(coordinates) else None

    @property
    def field_of_view(self) -> float:
        """Side of the images in Å."""
        return self.box * self.pixel_size

    def as_json(self) -> dict[str, Any]:
        """Return the settings in the types that JSON knows; an infinite number becomes null."""
        return {name: _json_value(value) for name, value in asdict(self).items()}


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json_value(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    return None if value == math.inf else value


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingError(f"{name} cannot be '{value}'", field=name, hint=f"choose one of {', '.join(choices)}")
