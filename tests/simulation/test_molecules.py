"""Molecules: selections, motions, files, and the demonstration against the atoms it was made from."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryofire.errors import FileFormatError, InputError, MissingFileError, SettingError
from cryofire.simulation.molecules import (
    ATOM_WIDTH,
    Conformation,
    Molecule,
    RigidMotion,
    coarse_grained,
    contact_axis,
    demo_molecule,
    in_conformation,
    read_molecule,
    write_molecule,
)

DEMO = demo_molecule()
THINNED = DEMO.take(np.arange(len(DEMO)) % 500 == 0)
ANGLES = st.floats(-3.0, 3.0)
AXES = st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda axis: np.linalg.norm(axis) > 0.1)


def moved(molecule: Molecule, *motions: RigidMotion) -> np.ndarray:
    return in_conformation(molecule, Conformation(motions)).coordinates


def test_demo_is_the_ribosome_about_its_centre_of_mass() -> None:
    demo = demo_molecule()
    small = demo.selected(("S*",))
    assert len(demo) == 14406
    assert demo.weights.sum() == 1145526
    assert np.abs(demo.centre_of_mass).max() < 1e-3
    assert demo.weights[small].sum() / demo.weights.sum() == pytest.approx(0.3759, abs=1e-4)
    assert (small ^ demo.selected(("L*",))).all()


def test_demo_is_the_coarse_grained_atoms(shared_data: Path) -> None:
    atoms = read_molecule(shared_data / "atoms" / "6zu5_80S_ribosome_Lso2.npz")
    expected, demo = coarse_grained(atoms, 2.8), demo_molecule()
    assert np.abs(demo.coordinates - (expected.coordinates - expected.centre_of_mass)).max() <= 0.0251
    assert (demo.chains == expected.chains).all()
    assert (demo.residues == expected.residues).all()
    assert (demo.weights == expected.weights).all()


def test_coarse_graining_keeps_mass_and_centre_of_every_chain(molecule: Molecule) -> None:
    paired = Molecule(
        molecule.coordinates, molecule.weights, molecule.chains, molecule.residues // 3, molecule.width
    )  # fmt: skip
    beads = coarse_grained(paired, 5.0)
    assert len(beads) < len(molecule)
    assert beads.width == 5.0
    for chain in "AB":
        whole, part = paired.take(paired.selected((chain,))), beads.take(beads.selected((chain,)))
        assert part.weights.sum() == pytest.approx(whole.weights.sum())
        assert part.centre_of_mass == pytest.approx(whole.centre_of_mass)


def test_selections_name_chains_and_residues(molecule: Molecule) -> None:
    assert molecule.selected(("B",)).sum() == 12
    assert molecule.selected(("*",)).all()
    assert molecule.selected(("A:5-7", "B:30")).nonzero()[0].tolist() == [4, 5, 6, 29]
    assert not molecule.selected(()).any()


@pytest.mark.parametrize("selection", ["C", "A:100-200", "A:x-y", "b"])
def test_selection_of_nothing_says_what_there_is(molecule: Molecule, selection: str) -> None:
    with pytest.raises(SettingError, match=r"'" + selection + r"'"):
        molecule.selected((selection,))


@settings(deadline=None, max_examples=30)
@given(ANGLES, ANGLES, AXES, st.tuples(*[st.floats(-50, 50)] * 3))
def test_turns_about_one_axis_add_up(first: float, second: float, axis: tuple, point: tuple) -> None:
    parts = [RigidMotion(("S*",), angle, axis, point) for angle in (first, second, first + second)]
    assert moved(THINNED, parts[0], parts[1]) == pytest.approx(moved(THINNED, parts[2]), abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(ANGLES, AXES)
def test_motion_is_rigid_and_leaves_the_rest_and_the_axis(angle: float, axis: tuple) -> None:
    molecule = THINNED
    chosen = molecule.selected(("S*",))
    motion = RigidMotion(("S*",), angle, axis, (3.0, 2.0, 1.0))
    after = moved(molecule, motion)
    assert (after[~chosen] == molecule.coordinates[~chosen]).all()
    distances = [np.linalg.norm(r[chosen] - r[chosen][:1], axis=1) for r in (molecule.coordinates, after)]
    assert distances[0] == pytest.approx(distances[1], abs=1e-9)
    matrix, offset = motion.transform(molecule)
    on_axis = np.array([3.0, 2.0, 1.0]) + 7.0 * np.array(axis)
    assert matrix @ on_axis + offset == pytest.approx(on_axis, abs=1e-9)
    assert np.linalg.det(matrix) == pytest.approx(1)


def test_turns_are_right_handed_and_translations_follow(molecule: Molecule) -> None:
    quarter = RigidMotion(("A",), np.pi / 2, (0.0, 0.0, 2.0), (0.0, 0.0, 0.0), (1.0, 2.0, 3.0))
    x, y, z = molecule.coordinates[0]
    assert moved(molecule, quarter)[0] == pytest.approx([1 - y, 2 + x, 3 + z])


def test_turn_about_the_contact_axis_keeps_both_centres_of_mass() -> None:
    demo = demo_molecule()
    turned = in_conformation(demo, Conformation((RigidMotion(("S*",), 0.5),)))
    for part in ("S*", "L*"):
        centres = [state.take(state.selected((part,))).centre_of_mass for state in (demo, turned)]
        assert centres[0] == pytest.approx(centres[1], abs=1e-9)
    assert contact_axis(demo, ("S*",)) == pytest.approx(-contact_axis(demo, ("L*",)))
    assert np.abs(turned.coordinates - demo.coordinates).max() > 20


def test_contact_axis_is_that_of_the_reference_set(shared_data: Path) -> None:
    atoms = read_molecule(shared_data / "atoms" / "6zu5_80S_ribosome_Lso2.npz")
    assert contact_axis(atoms, ("S*",)) == pytest.approx([-0.0291, -0.4811, -0.8762], abs=1e-3)
    assert contact_axis(demo_molecule(), ("S*",)) == pytest.approx(contact_axis(atoms, ("S*",)), abs=1e-4)


def test_omission_leaves_the_rest(molecule: Molecule) -> None:
    left = in_conformation(molecule, Conformation(omitted=("B",)))
    assert set(left.chains) == {"A"}
    assert len(left) == 28


@pytest.mark.parametrize(
    "conformation",
    [
        Conformation(omitted=("*",)),
        Conformation((RigidMotion(("*",), 0.1),)),
        Conformation((RigidMotion(("B",), 0.1, (0.0, 0.0, 0.0)),)),
        Conformation((RigidMotion(("Q",), 0.1),)),
    ],
)
def test_impossible_conformations_are_refused(molecule: Molecule, conformation: Conformation) -> None:
    with pytest.raises(SettingError):
        in_conformation(molecule, conformation)


def test_atoms_are_read_from_npz(molecule: Molecule, molecule_file: Path) -> None:
    read = read_molecule(molecule_file)
    assert (read.coordinates == molecule.coordinates).all()
    assert (read.weights == molecule.weights).all()
    assert (read.chains == molecule.chains).all()
    assert (read.residues == molecule.residues).all()
    assert read.width == ATOM_WIDTH


def test_compact_form_round_trips(molecule: Molecule, tmp_path: Path) -> None:
    write_molecule(molecule, tmp_path / "small.npz")
    read = read_molecule(tmp_path / "small.npz")
    assert np.abs(read.coordinates - (molecule.coordinates - molecule.centre_of_mass)).max() <= 0.0251
    assert (read.weights == molecule.weights).all()
    assert (read.chains == molecule.chains).all()
    assert (read.residues == molecule.residues).all()
    assert read.width == molecule.width


@pytest.mark.parametrize("suffix", [".pdb", ".cif"])
def test_structures_are_read_without_water_and_alternatives(tmp_path: Path, suffix: str) -> None:
    gemmi = pytest.importorskip("gemmi")
    structure = gemmi.read_pdb_string(
        "ATOM      1  N   GLY A   7       1.000   2.000   3.000  1.00 10.00           N\n"
        "ATOM      2  CA AGLY A   7       2.500   2.000   3.000  0.50 10.00           C\n"
        "ATOM      3  CA BGLY A   7       2.600   2.100   3.000  0.50 10.00           C\n"
        "HETATM    4 ZN    ZN B   1       9.000  -2.000   3.000  1.00 10.00          ZN\n"
        "HETATM    5  O   HOH C   1       0.000   0.000   0.000  1.00 10.00           O\n"
        "END\n"
    )
    structure.setup_entities()
    path = tmp_path / f"structure{suffix}"
    structure.write_pdb(str(path)) if suffix == ".pdb" else structure.make_mmcif_document().write_file(str(path))
    molecule = read_molecule(path)
    assert molecule.weights.tolist() == [7, 6, 30]
    assert molecule.chains.tolist() == ["A", "A", "B"]
    assert molecule.residues.tolist() == [7, 7, 1]
    assert molecule.coordinates[1] == pytest.approx([2.5, 2.0, 3.0])


def test_missing_gemmi_is_an_instruction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gemmi", None)
    path = tmp_path / "any.pdb"
    path.write_text("END\n")
    with pytest.raises(InputError, match=r"cryofire\[atoms\]"):
        read_molecule(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere"):
        read_molecule(tmp_path / "nowhere.pdb")


@pytest.mark.parametrize("content", [b"", b"no molecule\n" * 30, b"\x00\xff" * 100, b"data_x\nloop_\n_atom_site.id\n"])
@pytest.mark.parametrize("suffix", [".pdb", ".cif", ".npz"])
def test_files_that_are_no_molecule(tmp_path: Path, content: bytes, suffix: str) -> None:
    pytest.importorskip("gemmi")
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="bad"):
        read_molecule(path)


@pytest.mark.parametrize(
    "change",
    [
        {"elements": np.array(["Qq"] * 3)},
        {"coords": np.zeros((2, 3))},
        {"coords": np.full((3, 3), np.nan)},
        {"resnum": np.arange(2)},
        {
            "coords": np.zeros((0, 3)),
            "elements": np.array([], str),
            "chain_ids": np.array([], str),
            "resnum": np.array([]),
        },
    ],
)
def test_spoilt_archives(tmp_path: Path, change: dict[str, np.ndarray]) -> None:
    arrays = {
        "coords": np.zeros((3, 3)),
        "elements": np.array(["C"] * 3),
        "chain_ids": np.array(["A"] * 3),
        "resnum": np.arange(3),
    }
    np.savez(tmp_path / "spoilt.npz", **(arrays | change))
    with pytest.raises(FileFormatError):
        read_molecule(tmp_path / "spoilt.npz")


def test_archive_without_a_key(tmp_path: Path) -> None:
    np.savez(tmp_path / "partial.npz", coords=np.zeros((3, 3)))
    with pytest.raises(FileFormatError, match="resnum"):
        read_molecule(tmp_path / "partial.npz")
