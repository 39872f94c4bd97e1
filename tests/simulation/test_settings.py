"""Settings: what is refused, what follows from what, and that they survive JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cryofire.errors import MissingFileError, SettingError
from cryofire.simulation.molecules import Conformation
from cryofire.simulation.settings import DEMO_STATES, SimulationSettings

TWO = (Conformation(coordinate=0.0), Conformation(coordinate=30.0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"particles": 0}, {"particles": -3}, {"box": 4}, {"pixel_size": 0.0}, {"pixel_size": float("nan")},
        {"snr": 0.0}, {"snr": -1.0}, {"snr_pixel_size": 0.0}, {"noise_pixel_size": -1.0}, {"seed": -1},
        {"shift_std": -1.0}, {"shift_std": float("inf")}, {"contrast_std": -0.1}, {"defocus": -1e4},
        {"defocus_spread": -1.0}, {"astigmatism": 1.5}, {"empty": -0.1}, {"empty": 1.1},
        {"contaminated": 1.1}, {"contaminated": 0.1, "snr": math.inf}, {"b_factor": -10.0},
        {"amplitude_contrast": -0.1}, {"amplitude_contrast": 2.0}, {"voltage_kv": 0.0}, {"view_strength": -1.0},
        {"preferred_axes": 0}, {"views": "sideways"}, {"contrast": "grey"}, {"dtype": "int8"}, {"conformations": ()},
        {"weights": (1.0,)}, {"weights": (1.0, 1.0, 1.0)}, {"weights": (-1.0, 2.0)}, {"weights": (0.0, 0.0)},
        {"weights": (float("nan"), 1.0)}, {"conformations": TWO, "weights": (1.0, 1.0, 1.0)},
    ],
)  # fmt: skip
def test_impossible_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        SimulationSettings(**wrong)


@pytest.mark.parametrize("field", ["molecule", "defocus_from", "views_from", "noise"])
def test_missing_files_are_named(field: str) -> None:
    with pytest.raises(MissingFileError, match="nowhere"):
        SimulationSettings(**{field: Path("nowhere.file")})
    with pytest.raises(MissingFileError, match="nowhere"):
        SimulationSettings(maps=(Path("nowhere.mrc"),))


def test_maps_and_molecules_exclude_each_other(molecule_file: Path) -> None:
    for other in ({"molecule": molecule_file}, {"conformations": TWO}):
        with pytest.raises(SettingError, match="not both"):
            SimulationSettings(maps=(molecule_file,), **other)


def test_states_and_weights_by_default(molecule_file: Path) -> None:
    demo = SimulationSettings()
    assert demo.states == DEMO_STATES
    assert demo.state_weights == pytest.approx((0.9, 0.1))
    assert demo.field_of_view == pytest.approx(482.56)
    assert SimulationSettings(molecule=molecule_file).state_count == 1
    assert SimulationSettings(maps=(molecule_file,) * 3).state_weights == pytest.approx((1 / 3,) * 3)
    assert SimulationSettings(conformations=TWO, weights=(1.0, 3.0)).state_weights == (0.25, 0.75)
    assert SimulationSettings(conformations=TWO).state_weights == (0.5, 0.5)


def test_coordinates_are_those_of_a_whole_continuum() -> None:
    assert SimulationSettings(conformations=TWO).coordinates == (0.0, 30.0)
    assert SimulationSettings(conformations=(*TWO, Conformation())).coordinates is None
    assert SimulationSettings().coordinates is None


def test_settings_are_json(molecule_file: Path) -> None:
    settings = SimulationSettings(molecule=molecule_file, conformations=DEMO_STATES, snr=float("inf"))
    content = json.loads(json.dumps(settings.as_json(), allow_nan=False))
    assert content["molecule"] == str(molecule_file)
    assert content["snr"] is None
    assert content["conformations"][1]["motions"][0]["selection"] == ["S*"]
    assert len(content) == len(vars(settings))
