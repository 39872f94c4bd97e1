"""Runs that keep poses the user knows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.training.conftest import QUICK, quick_arguments

from cryofire import Reconstruction
from cryofire.analysis.truth import read_truth
from cryofire.cli.main import main
from cryofire.config import Settings
from cryofire.data.matching import matching_rows
from cryofire.data.read import read_particles
from cryofire.errors import SettingError, TableError
from cryofire.settings_by_name import changed
from cryofire.training.pipeline import reconstruct


@pytest.fixture(scope="module")
def posed_run(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("posed") / "run"
    given = ["--poses", str(small_set / "truth.star")]
    words = ["reconstruct", str(small_set / "particles.star"), "-o", str(folder), *given, *quick_arguments()]
    assert main(words) == 0
    return folder


def test_given_poses_come_out_as_they_went_in(posed_run: Path, small_set: Path) -> None:
    known, found = read_truth(small_set / "truth.star").poses, Reconstruction.load(posed_run).estimates
    np.testing.assert_allclose(found.rotations, known.rotations, atol=1e-5)
    np.testing.assert_allclose(found.shifts, known.shifts, atol=1e-3)
    assert np.all(found.rotation_std < 1e-5) and np.all(found.latent_std > 0)


def test_states_are_found_at_given_poses_without_a_search(posed_run: Path, small_set: Path) -> None:
    assert main(["evaluate", str(posed_run), "--truth", str(small_set / "truth.star")]) == 0
    scores = json.loads((posed_run / "evaluation.json").read_text())
    assert scores["states"]["confusion_mixture"] < 0.05
    stages = {stage["name"] for stage in json.loads((posed_run / "stages.json").read_text())["stages"]}
    assert not stages & {"search", "assign", "opinion"} and {"subspace", "amortise", "field"} <= stages
    record = Reconstruction.load(posed_run).record
    assert record.poses == str((small_set / "truth.star").resolve())
    assert all(state.shared_shell == record.max_shell for state in record.states)
    assert "Poses were given and kept" in (posed_run / "report.html").read_text()


def test_poses_of_other_particles_are_refused(small_set: Path, tmp_path: Path) -> None:
    text = (small_set / "truth.star").read_text().replace("particles.mrcs", "others.mrcs")
    other = tmp_path / "others.star"
    other.write_text(text)
    settings = changed(Settings(), [*QUICK, f"poses={other}"])
    with pytest.raises(TableError, match="is not in"):
        reconstruct(small_set / "particles.star", tmp_path / "run", settings)


def test_a_table_without_poses_is_refused(small_set: Path, tmp_path: Path) -> None:
    settings = changed(Settings(), [*QUICK, f"poses={small_set / 'particles.star'}"])
    with pytest.raises(TableError, match="no poses"):
        reconstruct(small_set / "particles.star", tmp_path / "run", settings)


def test_the_published_recipe_takes_no_poses(small_set: Path, tmp_path: Path) -> None:
    settings = changed(Settings(), ["recipe=cryofire-2022", f"poses={small_set / 'truth.star'}"])
    with pytest.raises(SettingError, match="finds poses itself"):
        reconstruct(small_set / "particles.star", tmp_path / "run", settings)


def test_rows_are_matched_by_image_whatever_their_order_and_folder(small_set: Path, tmp_path: Path) -> None:
    wanted = read_particles(small_set / "particles.star", stacks=False)
    order = np.random.default_rng(0).permutation(len(wanted))
    np.testing.assert_array_equal(matching_rows(wanted, wanted.take(order))[order], np.arange(len(wanted)))
    moved = tmp_path / "elsewhere.star"
    shutil.copy(small_set / "truth.star", moved)
    moved.write_text(moved.read_text().replace("particles.mrcs", "day1/particles.mrcs"))
    np.testing.assert_array_equal(matching_rows(wanted, read_particles(moved, stacks=False)), np.arange(len(wanted)))
