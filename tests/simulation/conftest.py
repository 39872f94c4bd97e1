"""A small molecule of two chains, and sums over its blobs done the slow way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cryofire.simulation.molecules import Molecule

SYMBOLS = np.array(["C", "Fe", "Zn", "Au"])
NUMBERS = np.array([6.0, 26.0, 30.0, 79.0])


def small_molecule(width: float = 4.0) -> Molecule:
    """Forty atoms within 30 Å of a centre far from the origin; chain B is a compact part of it."""
    rng = np.random.default_rng(5)
    coordinates = rng.normal(scale=10.0, size=(40, 3)).clip(-18, 18)
    in_b = np.arange(40) >= 28
    coordinates[in_b] = coordinates[in_b] * 0.4 + np.array([16.0, -3.0, 5.0])
    coordinates = np.round(coordinates, 3) + np.array([100.0, 50.0, -20.0])
    weights = NUMBERS[rng.integers(len(NUMBERS), size=40)]
    return Molecule(coordinates, weights, np.where(in_b, "B", "A"), np.arange(40) + 1, width)


@pytest.fixture
def molecule() -> Molecule:
    """The small molecule."""
    return small_molecule()


@pytest.fixture
def molecule_file(tmp_path: Path) -> Path:
    """The small molecule as atoms in an .npz file."""
    molecule = small_molecule()
    path = tmp_path / "molecule.npz"
    elements = SYMBOLS[np.searchsorted(NUMBERS, molecule.weights)]
    np.savez(
        path, coords=molecule.coordinates, elements=elements, chain_ids=molecule.chains, resnum=molecule.residues
    )  # fmt: skip
    return path


@pytest.fixture
def exact_spectrum() -> Callable[[Molecule, np.ndarray], np.ndarray]:
    """Spectrum of a molecule at frequencies (…, 3) in 1/Å, summed blob by blob."""

    def spectrum(molecule: Molecule, frequencies: np.ndarray) -> np.ndarray:
        phases = np.exp(-2j * np.pi * frequencies @ molecule.coordinates.T)
        envelope = np.exp(-2 * np.pi**2 * molecule.width**2 * np.square(frequencies).sum(-1))
        return (phases @ molecule.weights) * envelope

    return spectrum
