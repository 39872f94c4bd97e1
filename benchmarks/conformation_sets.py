"""Sets in the manner of CryoBench (Jeon et al., NeurIPS 2024), from PDB entries 1HZH and 6ZU5 and the map EMD-1997.

Images are 64 pixels of 6 Å, the field of view of CryoBench (256 pixels of 1.5 Å); signal to noise is that of its pixels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common import call
from cryofire.formats.mrc import read_map, write_map
from cryofire.simulation.density import density
from cryofire.simulation.molecules import Molecule, demo_molecule, read_molecule, write_molecule

BOX, PIXEL_SIZE, SNR_PIXEL_SIZE = 64, 6.0, 1.5
FINE_BOX, FINE_PIXEL_SIZE = 192, 2.0
"""Grid of the maps that species are made from, Å per voxel."""

_FAB = ("L", "H:1-220")
_HINGE, _AXIS = (92.0, 123.0, 163.0), (0.32, 0.18, 0.93)
"""Last residue of the Fab, and away from the rest of the antibody: on its way round the Fab meets nothing."""
_BLOCKS = (
    ("L70", "LD0", "LJ0", "LT0"),
    ("LA0", "LPP", "LOO", "LI0"),
    ("LH0", "LM0", "LO0", "LE0", "LMM"),
    ("LX0", "LY0", "LHH", "LZ0", "LU0"),
)
"""Parts of the large subunit that come last: central protuberance, uL2 to uL16, base of the stalk, exit of the tunnel."""
_PRESENT = (0.6, 0.5, 0.7, 0.65)
"""How often each of them is there."""
_SPECIES = {
    "80S": ("*",),
    "60S": ("L*",),
    "40S": ("S*",),
    "25S_RNA": ("L50",),
    "18S_RNA": ("S60",),
}


@dataclass(frozen=True)
class Sources:
    """Files that the sets are made from: atoms of 1HZH and of 6ZU5 (PDB, mmCIF or .npz), and the map EMD-1997.

    Without atoms of 6ZU5, the ribosome of the package is taken, which has a blob for each residue.
    """

    antibody: Path | None
    ribosome: Path | None
    groel: Path | None

    def missing(self, kind: str) -> list[str]:
        """What a set needs and is not there."""
        needed = {"igg1d": ("antibody",), "assembly": (), "species": ("antibody", "groel")}[kind]
        return [name for name in needed if getattr(self, name) is None]

    def whole_ribosome(self) -> Molecule:
        """All chains of 6ZU5."""
        return demo_molecule() if self.ribosome is None else read_molecule(self.ribosome)


@dataclass(frozen=True)
class ConformationSet:
    """One kind of heterogeneity.

    Attributes
    ----------
    name : str
        Of the set.
    title : str
        What it is, for the tables.
    symmetric : tuple of int
        States, from 0, of molecules that have a symmetry.
    """

    name: str
    title: str
    symmetric: tuple[int, ...] = ()


SETS = (
    ConformationSet("igg1d", "antibody, one Fab through 360° in 100 steps"),
    ConformationSet("assembly", "large ribosomal subunit, 16 states of assembly"),
    ConformationSet("species", "mixture of seven species", (len(_SPECIES) + 1,)),
)


def simulate_set(name: str, snr: float, particles: int, seed: int, sources: Sources, folder: Path) -> None:
    """Write a set into ``folder``, with what it is made from beside it."""
    material = folder.parent / "material"
    material.mkdir(parents=True, exist_ok=True)
    states = {"igg1d": _antibody_states, "assembly": _assembly_states, "species": _species_states}[name]
    call([
        "simulate", *states(sources, material), "--particles", str(particles), "--seed", str(seed), "--box", str(BOX),
        "--pixel-size", str(PIXEL_SIZE), "--snr", str(snr), "--snr-pixel-size", str(SNR_PIXEL_SIZE),
        "-o", str(folder), "--overwrite",
    ])  # fmt: skip


def _antibody_states(sources: Sources, _: Path) -> list[str]:
    axis, hinge = ([str(one) for one in vector] for vector in (_AXIS, _HINGE))
    return [
        "--molecule", str(sources.antibody), "--move", *_FAB, "--continuum", "0", "356.4", "100",
        "--axis", *axis, "--hinge", *hinge,
    ]  # fmt: skip


def _assembly_states(sources: Sources, material: Path) -> list[str]:
    """The large subunit alone, and every combination of missing blocks."""
    whole = material / "60S.npz"
    if not whole.exists():
        ribosome = sources.whole_ribosome()
        write_molecule(ribosome.take(ribosome.selected(_SPECIES["60S"])), whole)
    words, weights = ["--molecule", str(whole)], []
    for missing in itertools.product((False, True), repeat=len(_BLOCKS)):
        weights.append(np.prod([1 - there if gone else there for there, gone in zip(_PRESENT, missing, strict=True)]))
        omitted = [chain for block, gone in zip(_BLOCKS, missing, strict=True) if gone for chain in block]
        words += ["--omit", *omitted] if omitted else []
    return [*words, "--weights", *(f"{weight:.4f}" for weight in weights)]


def _species_states(sources: Sources, material: Path) -> list[str]:
    """Maps of molecules about their centres of mass, all in electrons or nearly so."""
    if sources.antibody is None or sources.groel is None:
        raise SystemExit("the species need --antibody and --groel")
    ribosome = sources.whole_ribosome()
    molecules = {name: ribosome.take(ribosome.selected(chains)) for name, chains in _SPECIES.items()}
    molecules["antibody"] = read_molecule(sources.antibody)
    paths = []
    for name, molecule in molecules.items():
        path = material / f"{name}.mrc"
        if not path.exists():
            write_map(path, density(_centred(molecule), FINE_BOX, FINE_PIXEL_SIZE, 4.0), FINE_PIXEL_SIZE)
        paths.append(path)
    groel = material / "groel.mrc"
    if not groel.exists():
        write_map(groel, *_on_scale(*read_map(sources.groel), like=paths[1]))
    return ["--maps", *(str(path) for path in (*paths, groel))]


def _centred(molecule: Molecule) -> Molecule:
    return replace(molecule, coordinates=molecule.coordinates - molecule.centre_of_mass)


def _on_scale(volume: np.ndarray, pixel_size: float, like: Path) -> tuple[np.ndarray, float]:
    """An experimental map, without its noise, whose densest voxels are as dense as those of a molecule's map."""
    reference, spacing = read_map(like)
    dense, wanted = (float(np.quantile(one[one > 0.3 * one.max()], 0.5)) for one in (volume, reference / spacing**3))
    return np.clip(volume, 0, None) * (wanted / dense) * pixel_size**3, pixel_size
