"""``cryofire simulate``: arguments against the settings they stand for, and a set from start to end."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from cryofire.cli.main import main
from cryofire.cli.simulate import configure, settings_of
from cryofire.data.read import read_particles
from cryofire.errors import MissingFileError, SettingError
from cryofire.simulation.settings import DEMO_STATES, SimulationSettings


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    configure(made)
    return made


def parsed(*words: str) -> SimulationSettings:
    return settings_of(parser().parse_args(["-o", "set", *words]))


@pytest.fixture
def atoms(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "atoms.npz", coords=rng.normal(scale=12, size=(30, 3)), elements=np.array(["Fe"] * 30),
        chain_ids=np.array(["A"] * 20 + ["B"] * 10), resnum=np.arange(30),
    )  # fmt: skip
    return tmp_path / "atoms.npz"


def test_no_option_is_the_default() -> None:
    assert parsed() == SimulationSettings()
    assert parsed("--angles", "0", "10") == SimulationSettings(conformations=DEMO_STATES)
    assert parsed("--angles", "0", "10").state_weights == pytest.approx((0.9, 0.1))


def test_help_states_the_defaults_of_the_settings() -> None:
    defaults = {field.name: field.default for field in fields(SimulationSettings)}
    stated = 0
    for action in parser()._actions:
        default = defaults.get(action.dest)
        if isinstance(default, int | float | str):
            assert (
                f"(default {default:g}" in action.help
                if not isinstance(default, str)
                else f"(default {default})" in action.help
            )
            stated += 1
    assert stated >= 17


def test_every_setting_can_be_given() -> None:
    settable = {action.dest for action in parser()._actions}
    missing = {field.name for field in fields(SimulationSettings)} - settable
    assert missing == {"conformations", "phase_shift"}  # given by --angles and the like, and in degrees


def test_values_reach_the_settings(atoms: Path) -> None:
    settings = parsed(
        *(
            "--molecule",
            str(atoms),
            "--particles",
            "7",
            "--seed",
            "3",
            "--box",
            "32",
            "--pixel-size",
            "5.5",
            "--snr",
            "inf",
        ),
        *(
            "--phase-shift-deg",
            "90",
            "--contrast",
            "white",
            "--views",
            "preferred",
            "--dtype",
            "float32",
            "--shift-std",
            "0",
        ),
    )
    assert settings == SimulationSettings(
        molecule=atoms, particles=7, seed=3, box=32, pixel_size=5.5, snr=math.inf, phase_shift=math.pi / 2,
        contrast="white", views="preferred", dtype="float32", shift_std=0.0,
    )  # fmt: skip


def test_motions_and_omissions_are_states(atoms: Path) -> None:
    settings = parsed(
        *("--molecule", str(atoms), "--move", "B", "A:18-20", "--angles", "0", "-30", "--axis", "-1", "0", "0.5"),
        *("--hinge", "-3", "2", "1", "--omit", "B", "--omit", "A:1-5", "--weights", "4", "3", "2", "1"),
    )
    rest, turned, without_b, without_start = settings.states
    assert not rest.motions
    (motion,) = turned.motions
    assert motion.selection == ("B", "A:18-20")
    assert motion.angle == pytest.approx(-math.pi / 6)
    assert motion.axis == (-1.0, 0.0, 0.5)
    assert motion.point == (-3.0, 2.0, 1.0)
    assert (without_b.omitted, without_start.omitted) == (("B",), ("A:1-5",))
    assert settings.state_weights == pytest.approx((0.4, 0.3, 0.2, 0.1))


def test_omission_alone_keeps_the_molecule_at_rest() -> None:
    rest, without = parsed("--omit", "S*").states
    assert (rest.omitted, without.omitted) == ((), ("S*",))


def test_continuum_is_evenly_spaced() -> None:
    settings = parsed("--continuum", "0", "90", "7")
    assert settings.coordinates == pytest.approx((0, 15, 30, 45, 60, 75, 90))
    assert [sum(m.angle for m in state.motions) for state in settings.states] == pytest.approx(
        np.linspace(0, math.pi / 2, 7)
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--move", "S*"], ["--axis", "1", "0", "0"], ["--hinge", "1", "0", "0"], ["--continuum", "0", "90", "1"],
        ["--continuum", "0", "90", "2.5"], ["--weights", "1", "2", "3"], ["--particles", "0"], ["--snr", "-1"],
    ],
)  # fmt: skip
def test_contradictions_are_refused(words: list[str]) -> None:
    with pytest.raises(SettingError):
        parsed(*words)


def test_angles_of_another_molecule_need_what_moves(atoms: Path) -> None:
    with pytest.raises(SettingError, match="what moves"):
        parsed("--molecule", str(atoms), "--angles", "0", "10")
    with pytest.raises(MissingFileError):
        parsed("--molecule", "nowhere.pdb")


def test_help_needs_neither_torch_nor_numpy() -> None:
    program = "import sys; from cryofire.cli.simulate import configure; import argparse; p = argparse.ArgumentParser();"
    program += "configure(p); p.format_help(); print([m for m in ('torch', 'numpy', 'numba') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_command_writes_a_set_and_does_not_overwrite_it(
    atoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "set"
    words = [
        "simulate",
        "--particles",
        "9",
        "--molecule",
        str(atoms),
        "--box",
        "20",
        "--pixel-size",
        "6",
        "-o",
        str(folder),
    ]
    assert main(words) == 0
    assert "9 particles of 1 state" in capsys.readouterr().out
    assert len(read_particles(folder / "truth.star")) == 9
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--seed", "5"]) == 0
    assert json.loads((folder / "settings.json").read_text())["settings"]["seed"] == 5


def test_command_says_what_is_wrong(atoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "--molecule", str(atoms), "--move", "Q", "--angles", "0", "5", "-o", str(tmp_path / "set")]
    assert main(words) == 2
    assert "its chains are A, B" in capsys.readouterr().err
