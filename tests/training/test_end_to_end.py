"""One small run through the command line, from particles to report, and everything a user does with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cryofire import Reconstruction
from cryofire.cli.main import main
from cryofire.data.read import read_particles
from cryofire.formats.mrc import read_map


def test_poses_and_states_are_found(finished_run: Path, small_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(finished_run), "--truth", str(small_set / "truth.star")]) == 0
    scores = json.loads((finished_run / "evaluation.json").read_text())
    assert scores["poses"]["direction_median_deg"] < 1.5
    assert scores["poses"]["shift_median_px2"] < 0.005
    assert scores["states"]["confusion_mixture"] < 0.02
    assert "viewing direction" in capsys.readouterr().out


def test_results_are_complete_and_consistent(finished_run: Path) -> None:
    results = json.loads((finished_run / "results.json").read_text())
    assert results["particles_used"] == 900
    assert sum(state["particles"] for state in results["states"]) == 900
    for record in [results["consensus"], *results["states"]]:
        for name in [record["map"], record["decoded"], *record["half_maps"]]:
            volume, voxel = read_map(finished_run / name)
            assert volume.shape == (40, 40, 40)
            assert voxel == pytest.approx(12.06, abs=1e-3)
            assert np.isfinite(volume).all()
    stages = [stage["name"] for stage in json.loads((finished_run / "stages.json").read_text())["stages"]]
    assert stages[:6] == ["prepare", "search", "assign", "outliers", "species", "consensus"]
    report = (finished_run / "report.html").read_text()
    assert "http-equiv" not in report
    assert "What to trust" in report


def test_matter_is_positive(finished_run: Path) -> None:
    volume, _ = read_map(finished_run / "consensus.mrc")
    assert ((volume - volume.mean()) ** 3).mean() > 0


def test_python_opens_the_run(finished_run: Path) -> None:
    reconstruction = Reconstruction.load(finished_run)
    components = reconstruction.estimates.latents.shape[1]
    assert reconstruction.estimates.rotations.shape == (900, 3, 3)
    centre = reconstruction.record.states[0].latent_center
    decoded = reconstruction.decode(np.asarray(centre))
    written, _ = read_map(finished_run / "states" / "state1_decoded.mrc")
    np.testing.assert_allclose(decoded, written, atol=1e-4 * np.abs(written).max())
    with pytest.raises(ValueError, match="coordinates"):
        reconstruction.decode([0.0] * (components + 1))


def test_export_carries_the_rows_through(finished_run: Path, small_set: Path, tmp_path: Path) -> None:
    assert main(["export", str(finished_run), "--relion", str(tmp_path / "poses.star")]) == 0
    exported = read_particles(tmp_path / "poses.star", small_set)
    original = read_particles(small_set / "particles.star")
    np.testing.assert_array_equal(exported.frame, original.frame)
    estimates = Reconstruction.load(finished_run).estimates
    assert exported.poses is not None
    np.testing.assert_allclose(exported.poses.rotations, estimates.rotations, atol=1e-5)
    np.testing.assert_allclose(exported.poses.shifts, estimates.shifts, atol=1e-3)


def test_running_a_finished_run_again_changes_nothing(finished_run: Path, small_set: Path) -> None:
    from .conftest import quick_arguments

    before = (finished_run / "estimates.npz").read_bytes()
    assert main(["reconstruct", str(small_set / "particles.star"), "-o", str(finished_run), *quick_arguments()]) == 0
    assert (finished_run / "estimates.npz").read_bytes() == before
