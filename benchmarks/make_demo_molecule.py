"""Make the molecule of the demonstration: ``python make_demo_molecule.py ATOMS DEMO_80S.npz``.

ATOMS are those of PDB entry 6ZU5, with the chains of the subunits named ``S*`` and ``L*``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cryofire.simulation.molecules import coarse_grained, read_molecule, write_molecule

WIDTH = 2.80  # Å; least squares fit of the spectrum of the residues to that of the atoms, 90 to 15 Å


def main() -> None:
    """Read atoms, write one blob per residue."""
    source, target = (Path(argument) for argument in sys.argv[1:])
    write_molecule(coarse_grained(read_molecule(source), WIDTH), target)


if __name__ == "__main__":
    main()
