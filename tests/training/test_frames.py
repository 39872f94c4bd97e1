"""Frames and second opinions in a run: what they record, and that poses in a wrong basin come back."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cryofire.analysis.latent_space import LatentDescription, LatentPath
from cryofire.data.read import read_particles
from cryofire.geometry.rotations import geodesic_angle, random_rotations, rotation_from_vector
from cryofire.inference.frames import turned
from cryofire.inference.outlying import outlying
from cryofire.inference.prepare import chosen_subset
from cryofire.settings_by_name import read_settings
from cryofire.training.amortise import amortise
from cryofire.training.checkpoint import load_checkpoint, refinement_from
from cryofire.training.frames import all_in_one_frame, in_one_frame, interpolated_transforms, latent_description
from cryofire.training.pipeline import conformations
from cryofire.training.progress import SilentProgress
from cryofire.training.run_folder import RunFolder
from cryofire.training.second_opinion import OUTLYING, UNSURE, second_opinion
from cryofire.training.stages import Prepared, Run, prepare
from cryofire.volumes.rigid_core import CoreFit


@pytest.fixture
def reopened(finished_run: Path, small_set: Path, tmp_path: Path) -> Run:
    """The finished run with a folder for new checkpoints."""
    folder = RunFolder(tmp_path)
    for name in ("checkpoints", "cache"):
        (tmp_path / name).mkdir()
        for file in (finished_run / name).iterdir():
            (tmp_path / name / file.name).symlink_to(file)
    table = read_particles(small_set / "particles.star")
    settings = read_settings(finished_run / "settings.json")
    return Run(folder, table, settings, SilentProgress(), logging.getLogger("test"))


def lines(run: Path, stage: str) -> list[dict[str, float]]:
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["stage"] == stage]


def test_a_run_says_how_far_conformations_were_turned(finished_run: Path) -> None:
    found = lines(finished_run, "frames")
    assert [line["images"] for line in found] == [700, 700, 900, 900]  # those it was found from, and all
    assert [line["turn_deg"] == 0 for line in found].count(True) == 2
    assert all(0 <= line["core"] <= 1 for line in found)
    opinion = lines(finished_run, "opinion")
    assert 1 <= len(opinion) <= 3 and all(
        0 <= line["moved"] <= line["differ"] + line["misfits"] + line["faint"] + line["unsure"] for line in opinion
    )


def test_resuming_after_the_frames_gives_what_was_saved(reopened: Run) -> None:
    prepared = prepare(reopened)
    saved = load_checkpoint(reopened.folder.checkpoint("frames"))
    part = prepared.take(torch.arange(len(saved.tensors["rotations"])))
    latents = refinement_from(load_checkpoint(reopened.folder.checkpoint("latents")), part.images)
    assert torch.equal(in_one_frame(reopened, part, latents).states.rotations, saved.tensors["rotations"])


def test_frames_that_came_apart_are_laid_on_each_other_again(reopened: Run) -> None:
    prepared = prepare(reopened)
    whole = refinement_from(load_checkpoint(reopened.folder.checkpoint("polish")), prepared.images)
    found = latent_description(reopened, whole)
    fewest = torch.from_numpy(found.labels == np.argmin(found.weights))
    vectors = torch.zeros(len(fewest), 3)
    vectors[fewest, 0] = 0.05
    apart = replace(whole, states=turned(whole.states, rotation_from_vector(vectors), torch.zeros(len(fewest), 3)))
    reopened.folder.checkpoint("frames_all").unlink()
    together = all_in_one_frame(reopened, prepared, apart)
    away = geodesic_angle(together.states.rotations, whole.states.rotations)
    assert float(away[fewest].median()) < 0.01  # radians; the run itself did it to no better than that
    torch.testing.assert_close(together.states.rotations[~fewest], whole.states.rotations[~fewest], atol=1e-5, rtol=0.0)
    assert float((together.model.maps.joint - whole.model.maps.joint).norm() / whole.model.maps.joint.norm()) < 0.1
    again = all_in_one_frame(reopened, prepared, apart)
    assert torch.equal(again.states.rotations, together.states.rotations)


def test_frames_that_are_the_same_are_left_alone(reopened: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(reopened)
    whole = refinement_from(load_checkpoint(reopened.folder.checkpoint("polish")), prepared.images)
    turn = rotation_from_vector(torch.tensor([[0.001, 0.0, 0.0]]))[0]
    alike = CoreFit(turn, torch.full((3,), 0.005), 1.0)
    monkeypatch.setattr("cryofire.training.frames.core_fits", lambda maps, *_: [alike] * len(maps))
    reopened.folder.checkpoint("frames_all").unlink()
    left = all_in_one_frame(reopened, prepared, whole)
    assert torch.equal(left.states.rotations, whole.states.rotations)
    assert torch.equal(left.model.maps.joint, whole.model.maps.joint)


def test_poses_in_a_wrong_basin_come_back(reopened: Run) -> None:
    prepared = prepare(reopened)
    polished = refinement_from(load_checkpoint(reopened.folder.checkpoint("polish")), prepared.images)
    encoder = amortise(reopened, prepared, polished)
    lost = torch.arange(0, len(prepared.images), 15)
    rotations = polished.states.rotations.clone()
    rotations[lost] = random_rotations(len(lost), generator=torch.Generator().manual_seed(0)).float()
    wrong = replace(polished, states=replace(polished.states, rotations=rotations))
    reopened.folder.checkpoint("opinion").unlink()
    opinion = second_opinion(reopened, prepared, wrong, encoder, certain(prepared))
    assert opinion.moved >= 0.8 * len(lost)
    found = opinion.refined
    away = geodesic_angle(found.states.rotations, polished.states.rotations)
    assert float((away[lost] < 0.1).float().mean()) > 0.8
    kept = torch.ones(len(away), dtype=torch.bool)
    kept[lost] = False
    assert float((away[kept] < 0.1).float().mean()) > 0.98


def test_images_that_fit_badly_are_told_from_noise() -> None:
    misfit = 1 + 0.02 * torch.randn(5000, generator=torch.Generator().manual_seed(0))
    assert int(outlying(misfit, OUTLYING).sum()) < 25
    misfit[::50] += 0.15
    assert outlying(misfit, OUTLYING)[::50].all() and int(outlying(misfit, OUTLYING).sum()) < 125
    assert not outlying(torch.ones(7), OUTLYING).any()


@pytest.mark.parametrize("is_closed", [False, True])
def test_frames_along_a_path_are_interpolated_and_go_on_beyond_its_stations(is_closed: bool) -> None:
    positions = np.linspace(0, 1, 101)
    labels = np.minimum((positions * 5).astype(np.int64), 4)
    fits = [
        CoreFit(rotation_from_vector(torch.tensor([[0.0, 0.0, 0.1 * k]]))[0], torch.tensor([1.0 * k, 0, 0]), 1.0)
        for k in range(5)
    ]
    path = LatentPath(np.zeros((2, 1)), positions, is_closed, 1.0, np.zeros((2, 1)))
    found = LatentDescription("continuous", labels, np.ones(101), np.zeros((5, 1)), np.full(5, 0.2), 0.0, 1.0, path)
    rotations, offsets = interpolated_transforms(found, fits)
    middle = np.flatnonzero((positions > 0.15) & (positions < 0.85))
    slope = np.diff(offsets[middle, 0].numpy())
    np.testing.assert_allclose(slope, 0.05, rtol=0.06)
    np.testing.assert_allclose(rotations[middle, 1, 0].asin(), 0.1 * offsets[middle, 0], atol=1e-4)
    ends = offsets[[0, -1], 0].numpy()
    if is_closed:
        assert ends[0] == pytest.approx(ends[1], abs=0.1)
    else:
        np.testing.assert_allclose(ends, [-0.5, 4.5], atol=0.06)


def certain(prepared: Prepared) -> torch.Tensor:
    """Margins of images whose poses had no rival in the first search."""
    return torch.full((len(prepared.images),), math.inf)


def test_an_image_whose_pose_had_a_rival_is_looked_at_again(reopened: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(reopened)
    polished = refinement_from(load_checkpoint(reopened.folder.checkpoint("polish")), prepared.images)
    encoder = amortise(reopened, prepared, polished)
    turned, true = polished.states.rotations.clone(), polished.states.rotations
    turned[:20] = random_rotations(20, torch.Generator().manual_seed(8)).float()
    wrong = replace(polished, states=replace(polished.states, rotations=turned))
    monkeypatch.setattr("cryofire.training.second_opinion.DIFFERENT", 4.0)
    monkeypatch.setattr("cryofire.training.second_opinion.OUTLYING", 1e6)
    reopened.folder.checkpoint("opinion").unlink()
    margin = certain(prepared)
    margin[:20] = 0.5 * UNSURE
    found = second_opinion(reopened, prepared, wrong, encoder, margin).refined.states.rotations
    assert torch.equal(found[20:], true[20:])
    assert float((geodesic_angle(found[:20], true[:20]) < 0.1).float().mean()) > 0.8


def test_a_run_without_doubtful_images_stays_as_it_is(reopened: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(reopened)
    polished = refinement_from(load_checkpoint(reopened.folder.checkpoint("polish")), prepared.images)
    encoder = amortise(reopened, prepared, polished)
    monkeypatch.setattr("cryofire.training.second_opinion.DIFFERENT", 4.0)  # no two rotations are farther apart than π
    monkeypatch.setattr("cryofire.training.second_opinion.OUTLYING", 1e6)
    reopened.folder.checkpoint("opinion").unlink()
    found = second_opinion(reopened, prepared, polished, encoder, certain(prepared))
    assert found.moved == 0
    assert torch.equal(found.refined.states.rotations, polished.states.rotations)


def test_conformations_are_looked_for_again_where_many_poses_were_wrong(
    reopened: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(reopened)
    chosen = chosen_subset(len(prepared.images), reopened.settings.refine.images, reopened.settings.seed + 3)
    part = prepared.take(chosen)
    consensus = refinement_from(load_checkpoint(reopened.folder.checkpoint("consensus")), part.images)
    monkeypatch.setattr("cryofire.training.pipeline.RECONSIDERED", -1.0)
    found, encoder = conformations(reopened, part, consensus, certain(part))
    first, second = (
        load_checkpoint(replace(reopened.folder, turn=turn).checkpoint("opinion")).tensors for turn in (1, 2)
    )
    assert reopened.folder.last_checkpoint("opinion") == replace(reopened.folder, turn=2).checkpoint("opinion")
    assert torch.equal(found.states.rotations, second["rotations"])
    assert not torch.equal(first["rotations"], second["rotations"])
    assert encoder.components == found.states.latents.shape[1]
    away = geodesic_angle(first["rotations"], second["rotations"])
    assert float(away.median()) < 0.02
