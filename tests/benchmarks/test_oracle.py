"""The oracle is at the information limit: no bias, errors as large as the Cramér–Rao bound says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import oracle
from common import started, truth_of
from cryofire.config import Settings
from cryofire.data.read import read_particles
from cryofire.simulation.images import RenderedStack, simulated_images
from cryofire.simulation.particles import simulate
from cryofire.simulation.settings import SimulationSettings
from cryofire.training.stages import Prepared, prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of the default molecule whose images are made when they are read."""
    path = tmp_path_factory.mktemp("oracle")
    settings = SimulationSettings(particles=400, box=40, pixel_size=12.06, weights=(0.6, 0.4))
    made = simulate(settings, path / "set", with_images=False)
    source = simulated_images(settings)
    table = replace(read_particles(made.particles), opener=lambda stack: RenderedStack(stack, source))
    prepare(started(path / "run", table, Settings()))
    return path


def prepared_of(folder: Path) -> Prepared:
    table = read_particles(folder / "set" / "particles.star")
    return prepare(started(folder / "run", table, Settings()))


def test_errors_from_the_truth_are_those_of_the_bound(folder: Path) -> None:
    prepared = prepared_of(folder)
    known = truth_of(folder / "set" / "truth.star", prepared)
    assert known.labels is not None
    states = list(oracle.true_states(prepared, known.poses, known.labels, folder / "set").values())
    assert sorted(len(state.members) for state in states) == sorted(
        [int((known.labels == 1).sum()), int((known.labels == 2).sum())]
    )
    scores = oracle.pose_scores(prepared, known.poses, states)
    assert scores["oracle_viewing_rms_deg"] == pytest.approx(scores["bound_viewing_rms_deg"], rel=0.15)
    assert scores["bound_rotation_rms_deg"] > scores["bound_viewing_rms_deg"]
    assert scores["bayes_confusion"] < 0.02


def test_states_that_are_one_are_confused_half_the_time(folder: Path) -> None:
    prepared = prepared_of(folder)
    known = truth_of(folder / "set" / "truth.star", prepared)
    assert known.labels is not None
    one = next(iter(oracle.true_states(prepared, known.poses, known.labels, folder / "set").values()))
    halves = [replace(one, members=one.members[start::2]) for start in (0, 1)]
    noisy = [replace(half, truth=half.truth + 1e-3 * torch.randn_like(half.truth)) for half in halves]
    assert oracle.pose_scores(prepared, known.poses, noisy)["bayes_confusion"] == pytest.approx(0.5, abs=0.1)
