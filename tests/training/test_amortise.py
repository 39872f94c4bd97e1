"""The encoder and the field of a run: what they know, what they leave, and that they come back unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cryofire import Reconstruction
from cryofire.config import Settings
from cryofire.errors import FileFormatError, RunFolderError
from cryofire.formats.mrc import read_map
from cryofire.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cryofire.training.field import FIELD_FILE, field_parts, load_field, save_field
from cryofire.training.model_file import load_model
from cryofire.training.stages import shared_shell


def lines(run: Path, stage: str) -> list[dict[str, float]]:
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["stage"] == stage]


def test_every_stage_ran_and_the_images_left_out_were_encoded(finished_run: Path) -> None:
    stages = [stage["name"] for stage in json.loads((finished_run / "stages.json").read_text())["stages"]]
    assert stages.index("amortise") < stages.index("encode") < stages.index("halves") < stages.index("polish")
    assert stages.index("polish") < stages.index("field") < stages.index("states")


def test_images_left_out_are_as_accurate_as_the_others(finished_run: Path, small_set: Path) -> None:
    estimates = Reconstruction.load(finished_run).estimates
    assert np.isfinite(estimates.rotations).all() and np.isfinite(estimates.latents).all()
    assert (estimates.rotation_std > 0).all() and (estimates.rotation_std < 0.2).mean() > 0.95


def test_teaching_lowers_the_losses_and_the_gap_is_recorded(finished_run: Path) -> None:
    steps = lines(finished_run, "amortise")
    losses = [line["last_look"] for line in steps if "last_look" in line]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    gap = next(line["gap"] for line in steps if "gap" in line)
    assert isinstance(gap, dict)
    assert 0 < gap["rotation"] < np.radians(4) and gap["shift_px"] < 0.5


def test_the_field_learns(finished_run: Path) -> None:
    every = lines(finished_run, "field")
    network, voxels = ([line[phase] for line in every if phase in line] for phase in ("network", "voxels"))
    assert network[-1] < network[0]
    first, second = voxels[: len(voxels) // 2], voxels[len(voxels) // 2 :]
    assert first == sorted(first, reverse=True) and second == sorted(second, reverse=True)


def test_the_delivered_model_is_that_of_the_run(finished_run: Path) -> None:
    model = load_model(finished_run)
    decoded = model.decode(torch.zeros(model.components))
    written, _ = read_map(finished_run / "consensus_decoded.mrc")
    np.testing.assert_allclose(decoded.numpy(), written, atol=1e-4 * np.abs(written).max())
    field = load_field(finished_run / "model").maps()
    inside = model.maps[0].abs() > 0.2 * model.maps[0].abs().max()
    assert torch.allclose(field[0][inside], model.maps[0][inside], rtol=1e-3, atol=1e-4 * float(field.abs().max()))
    assert model.noise is not None and (model.noise.constant >= 0).all()


def test_a_field_comes_back_unchanged(finished_run: Path, tmp_path: Path) -> None:
    field = load_field(finished_run / "model")
    save_field(tmp_path, field)
    assert torch.equal(load_field(tmp_path).maps(), field.maps())


def test_fields_that_cannot_be_read_are_refused(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot be read"):
        load_field(tmp_path)
    weights, values = field_parts(load_field(finished_run / "model"))
    other = {**values, "settings": {**values["settings"], "hidden": 3}}
    save_checkpoint(tmp_path / FIELD_FILE, Checkpoint(weights, other))
    with pytest.raises(FileFormatError, match="of a kind"):
        load_field(tmp_path)


def test_checkpoints_of_the_stages_say_what_they_hold(finished_run: Path) -> None:
    encoder = load_checkpoint(finished_run / "checkpoints" / "amortise.safetensors")
    assert encoder.values["box"] == 40
    field = load_checkpoint(finished_run / "checkpoints" / "field.safetensors")
    assert any(name.startswith("field.") for name in field.tensors) and "noise.constant" in field.tensors


def test_halves_are_not_called_independent_where_the_encoder_saw_both(finished_run: Path) -> None:
    results = json.loads((finished_run / "results.json").read_text())
    assert results["consensus"]["shared_shell"] == 16
    assert shared_shell(Settings(), 10_000) == 12 and shared_shell(Settings(), 20_001) == 16
