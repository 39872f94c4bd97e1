"""Plots: well-formed, reproducible, and equal to what they claim to draw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryofire.analysis import plots, progress_plots
from cryofire.analysis.run_files import read_metrics
from cryofire.analysis.run_record import MapRecord, RunRecord, read_run


def is_svg(text: str | None) -> bool:
    return text is not None and ElementTree.fromstring(text).tag.endswith("svg")


def test_resolution_plot_names_every_curve_and_threshold(finished_run: tuple[Path, Path]) -> None:
    record = read_run(finished_run[0])
    svg = plots.resolution_plot(record)
    assert svg is not None and is_svg(svg)
    for text in ("State 1: 20.0 Å", "State 2: 20.0 Å", "consensus: 20.8 Å", "0.143", "0.5", "common"):
        assert f">{text}<" in svg
    assert plots.resolution_plot(RunRecord(Path(), finished=False)) is None


def test_a_run_without_shared_start_has_no_grey_part(finished_run: tuple[Path, Path]) -> None:
    record = read_run(finished_run[0])
    svg = plots.resolution_plot(replace(record, states=(MapRecord("state1", fsc=np.linspace(1, 0, 12)),)))
    assert svg is not None and "common" not in svg


@pytest.mark.parametrize("count", [500, plots.DENSITY_ABOVE + 1])
def test_latent_plot_stays_small_and_is_the_same_twice(count: int) -> None:
    rng = np.random.default_rng(0)
    latents, states = rng.normal(size=(count, 3)), rng.integers(0, 2, count)
    svg = plots.latent_plot(latents, states, (0, 2), ["State 1", "State 2"])
    assert is_svg(svg) and len(svg) < 400_000
    assert "latent coordinate 3" in svg and "State 2" in svg
    assert svg == plots.latent_plot(latents, states, (0, 2), ["State 1", "State 2"])


def test_histograms_accept_constants_and_outliers() -> None:
    values = np.full(100, 3.0)
    assert is_svg(plots.histogram(values, "value", (3.0, "median")))
    assert is_svg(plots.histogram(np.append(values, 1e9), "value"))
    assert is_svg(plots.coordinate_histogram(np.append(values, 1e9), np.zeros(101, dtype=np.int64), 0.5, 0))
    assert is_svg(plots.shift_plot(np.zeros((20, 2))))


def test_uniform_directions_have_density_one() -> None:
    rotations = Rotation.random(40000, rng=np.random.default_rng(1)).as_matrix()
    counts, columns, heights = plots.direction_density(rotations, 6)
    assert counts.mean() == pytest.approx(1.0)
    assert counts == pytest.approx(1.0, abs=0.2)
    assert (len(heights), len(columns)) == (7, 13)
    poles = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
    assert plots.smooth_density(rotations, poles) == pytest.approx(np.ones(3), abs=0.35)


def test_density_peaks_where_the_molecule_is_seen_from() -> None:
    rng = np.random.default_rng(2)
    seen_from = np.array([0.0, 0.6, 0.8])
    turn = Rotation.align_vectors([[0.0, 0.0, 1.0]], [seen_from])[0]
    rotations = (Rotation.from_rotvec(rng.normal(0, 0.1, (2000, 3))) * turn).as_matrix()
    density = plots.smooth_density(rotations, np.stack([seen_from, -seen_from]))
    assert density[0] > 10 and density[1] < 0.01
    assert is_svg(plots.direction_plot(rotations))


def test_unit_vectors_have_unit_length() -> None:
    vectors = plots.unit_vectors(np.linspace(-3, 3, 7), np.linspace(-1, 1, 7))
    assert np.linalg.norm(vectors, axis=-1) == pytest.approx(1.0)


def test_progress_plots_show_what_was_recorded(finished_run: tuple[Path, Path]) -> None:
    lines = read_metrics(read_run(finished_run[0]))
    search, fit = progress_plots.search_plot(lines), progress_plots.misfit_plot(lines)
    assert search is not None and "start 3" in search
    assert fit is not None and "held out" in fit and "subspace" in fit
    assert is_svg(progress_plots.pose_change_plot(lines)) and is_svg(progress_plots.limit_plot(lines, 480.0))


def test_progress_plots_of_a_run_that_recorded_nothing_are_left_out() -> None:
    lines = ({"stage": "consensus", "step": 0}, {"stage": "search", "step": 0, "log_likelihood": None})
    assert progress_plots.search_plot(lines) is None and progress_plots.misfit_plot(lines) is None
    assert progress_plots.pose_change_plot(lines) is None and progress_plots.limit_plot(lines, 480.0) is None


def test_missing_and_foreign_values_become_nan() -> None:
    found = progress_plots.column(({"shell": 3}, {}, {"shell": "x"}, {"shell": None}), "shell")
    assert found[0] == 3.0 and np.isnan(found[1:]).all()


def test_white_noise_has_a_misfit_of_one_at_any_limit() -> None:
    lines = [{"shell": shell, "log_likelihood": -0.5 * np.pi * (shell + 0.5) ** 2} for shell in (5, 20, 60)]
    assert progress_plots.misfit(lines) == pytest.approx(1.0)
    assert progress_plots.misfit([{"shell": 9, "misfit": 0.98, "log_likelihood": -3.0}]) == pytest.approx(0.98)
    assert np.isnan(progress_plots.misfit([{"log_likelihood": -3.0}, {"shell": 4}])).all()


def test_steps_of_learning_are_not_passes_over_the_images(finished_run: tuple[Path, Path]) -> None:
    lines = read_metrics(read_run(finished_run[0]))
    learning = [{"stage": "amortise", "step": step, "last_look": 1.0, "misfit": 1.1} for step in range(150)]
    assert progress_plots.misfit_plot([*lines, *learning]) == progress_plots.misfit_plot(lines)
