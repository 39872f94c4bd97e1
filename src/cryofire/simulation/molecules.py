"""Molecules as Gaussian blobs, and how parts of them move.

A molecule is a sum of equal Gaussians,

    ρ(r) = Σ_j w_j (2π σ²)^(-3/2) exp(-|r - r_j|² / 2σ²),

with w_j the atomic number of an atom or the sum over a residue: matter is positive, its integral over space Σ_j w_j.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, Shaped

from cryofire.errors import FileFormatError, InputError, MissingFileError, SettingError
from cryofire.geometry.rotations import rotation_from_vector
from cryofire.simulation.archives import read_arrays

ATOM_WIDTH = 1.92
"""Blob width in Å of an atom: a B factor of 8π² σ² = 290 Å², the decay of a map of intermediate resolution."""

_ELEMENTS = """
H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru
Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi
"""
_ATOMIC_NUMBER = {symbol.upper(): number for number, symbol in enumerate(_ELEMENTS.split(), 1)}
_DEMO_FILE = "demo_80s.npz"
_KEYS = ("coords", "elements", "chain_ids", "resnum")

Selection = tuple[str, ...]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Molecule:
    """Gaussian blobs of one width.

    Attributes
    ----------
    coordinates : array (atom, 3)
        Centres (x, y, z) in Å, in the frame of the file.
    weights : array (atom,)
        Integral of each blob, in units of the atomic number.
    chains : array (atom,) of str
        Chain each blob belongs to.
    residues : array (atom,)
        Residue number within the chain.
    width : float
        Standard deviation σ of the blobs, Å.
    """

    coordinates: Float64[np.ndarray, "atom 3"]
    weights: Float64[np.ndarray, " atom"]
    chains: Shaped[np.ndarray, " atom"]
    residues: Int64[np.ndarray, " atom"]
    width: float

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def centre_of_mass(self) -> Float64[np.ndarray, " 3"]:
        """Σ w_j r_j / Σ w_j, Å."""
        return np.asarray(self.weights @ self.coordinates / self.weights.sum())

    def take(self, atoms: Bool[np.ndarray, " atom"]) -> Molecule:
        """Return the molecule made of some of the blobs."""
        return replace(
            self,
            coordinates=self.coordinates[atoms],
            weights=self.weights[atoms],
            chains=self.chains[atoms],
            residues=self.residues[atoms],
        )

    def selected(self, selection: Selection) -> Bool[np.ndarray, " atom"]:
        """Whether each blob belongs to a selection.

        Parameters
        ----------
        selection : tuple of str
            Each ``chain`` or ``chain:first-last``: a chain name, in which ``*`` and ``?`` stand for any letters or
            letter, and a range of residue numbers, both ends included. A blob is selected if any of them names it.

        Raises
        ------
        SettingError
            One of them cannot be read or names nothing in this molecule.
        """
        chosen = np.zeros(len(self), dtype=bool)
        for part in selection:
            chosen |= self._selected_part(part)
        return chosen

    def _selected_part(self, part: str) -> Bool[np.ndarray, " atom"]:
        pattern, _, span = part.partition(":")
        names = sorted(set(self.chains.tolist()))
        chosen = np.isin(self.chains, [name for name in names if fnmatchcase(name, pattern)])
        if span:
            first, last = _residue_range(part, span)
            chosen &= (self.residues >= first) & (self.residues <= last)
        if not chosen.any():
            raise SettingError(
                f"the selection '{part}' names nothing in the molecule",
                hint=f"its chains are {', '.join(names)}; write CHAIN or CHAIN:FIRST-LAST",
            )
        return chosen


def _residue_range(part: str, span: str) -> tuple[int, int]:
    first, _, last = span.partition("-")
    try:
        return int(first), int(last or first)
    except ValueError:
        raise SettingError(f"cannot read the residue range in '{part}'", hint="write CHAIN:FIRST-LAST") from None


@dataclass(frozen=True)
class RigidMotion:
    """A turn of part of a molecule about an axis, and a translation: r' = Q (r - point) + point + translation.

    Attributes
    ----------
    selection : tuple of str
        What moves; see `Molecule.selected`.
    angle : float
        Angle of the rotation Q in radians, right-handed about `axis`.
    axis : (x, y, z), optional
        Direction of the axis, of any length. Without it the axis of `contact_axis`.
    point : (x, y, z), optional
        A point on the axis, Å, in the frame of the file. Without it the centre of mass of what moves.
    translation : (x, y, z)
        Å.
    """

    selection: Selection
    angle: float
    axis: Vector | None = None
    point: Vector | None = None
    translation: Vector = (0.0, 0.0, 0.0)

    def transform(self, molecule: Molecule) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, " 3"]]:
        """Matrix Q and offset d (Å) of r' = Q r + d for a molecule at rest.

        Raises
        ------
        SettingError
            The axis has no length, or the selection names nothing, or everything and no axis is given.
        """
        direction = contact_axis(molecule, self.selection) if self.axis is None else np.array(self.axis, dtype=float)
        length = float(np.linalg.norm(direction))
        if not 0 < length < np.inf:
            raise SettingError(f"an axis cannot be {self.axis}", field="axis", hint="give a direction x y z")
        if self.point is None:
            point = molecule.take(molecule.selected(self.selection)).centre_of_mass
        else:
            point = np.array(self.point, dtype=np.float64)
        matrix = rotation_from_vector(torch.from_numpy(self.angle / length * direction)).numpy()
        return matrix, point - matrix @ point + np.array(self.translation, dtype=np.float64)


def contact_axis(molecule: Molecule, selection: Selection) -> Float64[np.ndarray, " 3"]:
    """Return the unit vector from the centre of mass of the rest of a molecule to that of a subunit.

    A turn about the line through both leaves them where they are. For the small subunit of a ribosome this is the
    inter-subunit axis.

    Raises
    ------
    SettingError
        The selection names nothing or everything.
    """
    moving = molecule.selected(selection)
    if moving.all():
        raise SettingError("all of the molecule is to move", hint="select a part of it, or give an axis")
    axis = molecule.take(moving).centre_of_mass - molecule.take(~moving).centre_of_mass
    return np.asarray(axis / np.linalg.norm(axis))


@dataclass(frozen=True)
class Conformation:
    """One state of a molecule.

    Attributes
    ----------
    motions : tuple of RigidMotion
        Applied one after the other. Selections, axes and points are those of the molecule at rest.
    omitted : tuple of str
        What is not there in this state; see `Molecule.selected`.
    coordinate : float or None
        Where the state lies on a continuum, in any unit.
    """

    motions: tuple[RigidMotion, ...] = ()
    omitted: Selection = ()
    coordinate: float | None = None


def in_conformation(molecule: Molecule, conformation: Conformation) -> Molecule:
    """Return the molecule in a conformation.

    Raises
    ------
    SettingError
        A selection names nothing, or nothing is left of the molecule.
    """
    coordinates = molecule.coordinates.copy()
    for motion in conformation.motions:
        atoms = molecule.selected(motion.selection)
        matrix, offset = motion.transform(molecule)
        coordinates[atoms] = coordinates[atoms] @ matrix.T + offset
    present = ~molecule.selected(conformation.omitted)
    if not present.any():
        raise SettingError("a conformation leaves nothing of the molecule", hint="omit fewer chains")
    return replace(molecule, coordinates=coordinates).take(present)


def coarse_grained(molecule: Molecule, width: float) -> Molecule:
    """Return one blob per residue or nucleotide, at its centre of mass and with its summed weight.

    Parameters
    ----------
    molecule : Molecule
        In atoms.
    width : float
        Width of the new blobs, Å.
    """
    _, chain = np.unique(molecule.chains, return_inverse=True)
    _, first, member = np.unique(np.stack([chain, molecule.residues]), axis=1, return_index=True, return_inverse=True)
    member = member.ravel()
    weights = np.bincount(member, molecule.weights)
    moments = [np.bincount(member, molecule.weights * axis) for axis in molecule.coordinates.T]
    return Molecule(
        np.stack(moments, axis=1) / weights[:, None], weights, molecule.chains[first], molecule.residues[first], width
    )


def demo_molecule() -> Molecule:
    """Return the 80S ribosome of the demonstration, PDB entry 6ZU5 (CC0), one blob per residue or nucleotide.

    Chains ``S*`` are the small subunit, ``L*`` the large one. Positions are rounded to 0.05 Å. The blob width of 2.80 Å
    makes its spectrum fit that of the atoms (`ATOM_WIDTH`): correlation above 0.98 to 20 Å and 0.95 at 15 Å.
    """
    with resources.as_file(resources.files("cryofire.simulation").joinpath(_DEMO_FILE)) as path:
        return read_molecule(path)


def write_molecule(molecule: Molecule, path: Path) -> None:
    """Write a molecule in the compact form in which the package carries its demonstration; `read_molecule` reads it.

    Coordinates are about the centre of mass, in steps of 0.05 Å.

    Parameters
    ----------
    molecule : Molecule
        With whole weights below 65 536, at most 256 chains, and at most 3 200 Å across.
    path : Path
        The .npz file.
    """
    unit = 0.05
    names, chain = np.unique(molecule.chains, return_inverse=True)
    np.savez_compressed(
        path,
        coordinates=np.rint((molecule.coordinates - molecule.centre_of_mass) / unit).astype(np.int16),
        unit=np.float64(unit),
        weights=molecule.weights.astype(np.uint16),
        chain_names=names,
        chain=chain.astype(np.uint8),
        residues=molecule.residues.astype(np.int16),
        width=np.float64(molecule.width),
    )


def read_molecule(path: Path) -> Molecule:
    """Read a molecule in atoms from a PDB, mmCIF or .npz file.

    Waters, all but the first model and all but the first alternative of each atom are left out; weights are atomic
    numbers, whatever the occupancy. An .npz file has the arrays ``coords`` (atom, 3) in Å, ``elements``,
    ``chain_ids`` and ``resnum``, or was written by `write_molecule`.

    Raises
    ------
    MissingFileError
        There is no such file.
    FileFormatError
        It cannot be read as a molecule, or holds no atoms.
    InputError
        Reading PDB and mmCIF needs the package gemmi, which is not installed.
    """
    if not path.is_file():
        raise MissingFileError("the molecule does not exist", file=path)
    molecule = _read_archive(path) if path.suffix == ".npz" else _read_structure(path)
    if len(molecule) == 0 or not np.isfinite(molecule.coordinates).all():
        raise FileFormatError("the file holds no atoms, or coordinates that are not finite", file=path)
    return molecule


def _read_archive(path: Path) -> Molecule:
    archive = read_arrays(path)
    if "unit" in archive:
        return _unpacked(archive)
    missing = [key for key in _KEYS if key not in archive]
    if missing:
        raise FileFormatError(f"the file has no array '{missing[0]}'", file=path, hint=f"it needs {', '.join(_KEYS)}")
    coordinates, elements, chains, residues = (archive[key] for key in _KEYS)
    if coordinates.shape != (len(elements), 3) or not len(elements) == len(chains) == len(residues):
        raise FileFormatError("coords, elements, chain_ids and resnum differ in length", file=path)
    symbols, inverse = np.unique(elements, return_inverse=True)
    unknown = [str(symbol) for symbol in symbols if str(symbol).upper() not in _ATOMIC_NUMBER]
    if unknown:
        raise FileFormatError(f"unknown chemical elements: {', '.join(unknown)}", file=path, field="elements")
    numbers = np.array([_ATOMIC_NUMBER[str(symbol).upper()] for symbol in symbols], dtype=np.float64)
    return Molecule(
        coordinates.astype(np.float64), numbers[inverse], chains.astype(str), residues.astype(np.int64), ATOM_WIDTH
    )


def _unpacked(archive: Mapping[str, Shaped[np.ndarray, ...]]) -> Molecule:
    return Molecule(
        archive["coordinates"] * float(archive["unit"]),
        archive["weights"].astype(np.float64),
        archive["chain_names"][archive["chain"]],
        archive["residues"].astype(np.int64),
        float(archive["width"]),
    )


def _read_structure(path: Path) -> Molecule:
    try:
        import gemmi  # noqa: PLC0415 - an extra: only those who read atomic models need it
    except ImportError as error:
        raise InputError(
            "reading PDB and mmCIF files needs gemmi", file=path, hint="pip install 'cryofire[atoms]'"
        ) from error
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, OSError, IndexError) as error:
        raise FileFormatError(f"cannot read it as PDB or mmCIF: {error}", file=path) from error
    structure.remove_alternative_conformations()
    structure.remove_waters()
    rows = [
        (*atom.pos.tolist(), float(atom.element.atomic_number), chain.name, residue.seqid.num or 0)
        for chain in (structure[0] if len(structure) else ())
        for residue in chain
        for atom in residue
    ]
    if not rows:
        raise FileFormatError("the file holds no atoms", file=path, hint="is it a PDB or mmCIF file?")
    x, y, z, weights, chains, residues = zip(*rows, strict=True)
    return Molecule(
        np.stack([np.array(axis, dtype=np.float64) for axis in (x, y, z)], axis=1),
        np.array(weights, dtype=np.float64), np.array(chains), np.array(residues, dtype=np.int64), ATOM_WIDTH,
    )  # fmt: skip
