"""Verdicts follow the numbers: each judgement turns where it should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryofire.analysis.run_files import read_estimates
from cryofire.analysis.run_record import MapRecord, RunRecord, read_run
from cryofire.analysis.verdicts import (
    HAND,
    judge_frames,
    judge_images,
    judge_poses,
    judge_resolution,
    judge_run,
    judge_states,
    judge_views,
    scattered_states,
)

RECORD = RunRecord(Path(), finished=True, box=64, pixel_size=4.0, states=(MapRecord("state1", resolution=12.0),))


@pytest.mark.parametrize(("unusable", "level"), [(0, "good"), (1, "good"), (10, "caution"), (50, "bad")])
def test_images(unusable: int, level: str) -> None:
    verdict = judge_images(np.arange(100) >= unusable)
    assert verdict.level == level
    assert str(unusable or 100) in verdict.text


def test_images_of_something_else_are_no_fault_of_the_files() -> None:
    used = np.arange(100) >= 10
    verdict = judge_images(used, set_aside=9, foreign=True)
    assert verdict.level == "good"
    assert "1 of 100 images" in verdict.text and "9 (9.0 %) show something else" in verdict.text
    assert "something else" not in judge_images(used, set_aside=9).text


@pytest.mark.parametrize(("deviation", "level"), [(0.5, "good"), (3.0, "good"), (15.0, "bad")])
def test_poses(deviation: float, level: str) -> None:
    verdict = judge_poses(RECORD, np.full(50, np.deg2rad(deviation)))
    assert verdict is not None and verdict.level == level
    assert f"{deviation:.2g}°" in verdict.text


def test_many_uncertain_images_call_for_caution() -> None:
    deviations = np.deg2rad(np.where(np.arange(100) < 30, 40.0, 1.0))
    verdict = judge_poses(RECORD, deviations)
    assert verdict is not None and verdict.level == "caution" and "30 %" in verdict.text
    assert judge_poses(RECORD, np.full(3, np.nan)) is None


def test_even_views_are_good_and_missing_views_are_not() -> None:
    rng = np.random.default_rng(0)
    even = Rotation.random(4000, rng=rng)
    assert judge_views(even.as_matrix()).level == "good"
    side = even[np.abs(even.as_matrix()[:, 2, 2]) < 0.6].as_matrix()
    assert judge_views(side).level == "caution"
    one_view = (Rotation.from_rotvec(rng.normal(0, 0.15, (2000, 3)))).as_matrix()
    assert judge_views(one_view).level == "bad"


def test_opposite_views_count_as_one() -> None:
    rotations = Rotation.random(8000, rng=np.random.default_rng(1)).as_matrix()
    assert judge_views(rotations[rotations[:, 2, 2] > 0]).level == "good"


@pytest.mark.parametrize(
    ("resolution", "level", "words"), [(8.5, "good", "close to"), (12.0, "good", "noise"), (60.0, "bad", "shape")]
)
def test_resolution(resolution: float, level: str, words: str) -> None:
    verdict = judge_resolution(replace(RECORD, states=(MapRecord("state1", resolution=resolution),)))
    assert verdict is not None and verdict.level == level and words in verdict.text
    assert judge_resolution(replace(RECORD, states=())) is None


def test_states() -> None:
    two = (MapRecord("state1", particles=9000), MapRecord("state2", particles=50))
    small = judge_states(replace(RECORD, heterogeneity="discrete", states=two), None)
    assert small is not None and small.level == "caution" and "State 2" in small.text
    one = judge_states(replace(RECORD, heterogeneity="homogeneous"), None)
    assert one is not None and one.level == "good"
    vague = judge_states(replace(RECORD, heterogeneity="unresolved"), None)
    assert vague is not None and vague.level == "caution" and "average" in vague.text
    moving = judge_states(replace(RECORD, heterogeneity="continuous"), None)
    assert moving is not None and "continuously" in moving.text
    assert judge_states(RECORD, None) is None


def test_frames() -> None:
    two = replace(RECORD, states=2 * RECORD.states, frame_turn_deg=9.7, frame_core=0.3)
    found, doubted = judge_frames(two), judge_frames(replace(two, frame_core=0.01))
    assert found is not None and found.level == "good" and "9.7°" in found.text
    assert doubted is not None and doubted.level == "caution"
    assert judge_frames(RECORD) is None and judge_frames(replace(two, frame_turn_deg=None)) is None
    given = judge_frames(replace(two, poses="poses.star"))
    assert given is not None and "given" in given.text


def test_poses_that_were_given_are_not_judged(finished_run: tuple[Path, Path]) -> None:
    record = replace(read_run(finished_run[0]), poses="poses.star")
    poses = next(one for one in judge_run(record, read_estimates(record)) if one.topic == "Poses")
    assert poses.level == "caution" and "kept" in poses.text


def test_a_scattered_state_is_pointed_out(finished_run: tuple[Path, Path]) -> None:
    record = read_run(finished_run[0])
    estimates = read_estimates(record)
    assert scattered_states(estimates, 2) == [] and scattered_states(None, 2) == []
    wide = np.where(estimates.state == 1, 5.0, 1.0)[:, None]
    scattered = replace(estimates, latents=(estimates.latents - [4.0, 0.0, 0.0]) * wide)
    assert scattered_states(scattered, 2) == [1]
    verdict = judge_states(record, scattered)
    assert verdict is not None and verdict.level == "caution" and "State 2 is scattered" in verdict.text


def test_a_whole_run_is_judged_and_the_hand_is_never_forgotten(finished_run: tuple[Path, Path]) -> None:
    record = read_run(finished_run[0])
    topics = [one.topic for one in judge_run(record, read_estimates(record))]
    assert topics == ["Images", "Poses", "Views", "Resolution", "States", "Hand"]
    assert judge_run(RunRecord(Path(), finished=False), None) == (HAND,)
