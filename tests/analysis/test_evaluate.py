"""A run with known errors is scored at exactly those errors; foreign or unfinished runs are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi

from cryofire.analysis.evaluate import evaluate_run, mixture_labels, principal_coordinate
from cryofire.analysis.map_scores import pair_by_labels
from cryofire.analysis.metrics import confusion
from cryofire.data.estimates import ParticleEstimates
from cryofire.errors import FileFormatError, MissingFileError, RunFolderError, TableError


def test_scores_of_a_run_with_known_errors(finished_run: tuple[Path, Path]) -> None:
    result = evaluate_run(*finished_run)
    expected = np.rad2deg(0.02 / np.sqrt(3)) * chi.median(3)
    assert result.poses.mirrored
    assert result.poses.rotation_median_deg == pytest.approx(expected, rel=0.1)
    assert result.poses.direction_median_deg == pytest.approx(expected * chi.median(2) / chi.median(3), rel=0.12)
    assert result.poses.shift_median == pytest.approx(0.4 * chi.median(2), rel=0.12)
    assert result.poses.shift_median_px2 == pytest.approx((0.4 * chi.median(2) / 8.0) ** 2, rel=0.25)
    assert result.poses.rotation_coverage == pytest.approx((0.5, 0.9, 0.99), abs=0.07)
    assert result.poses.shift_coverage == pytest.approx((0.5, 0.9, 0.99), abs=0.07)
    assert result.poses.rotation_overconfidence == pytest.approx(1.0, abs=0.1)
    assert result.states.confusion_states == 0.0 and result.states.adjusted_rand == 1.0
    assert result.states.confusion_threshold == 0.0 and result.states.confusion_mixture == 0.0
    assert result.states.coordinate_correlation is not None and result.states.coordinate_correlation > 0.5


def test_maps_are_compared_with_their_own_state_in_the_frame_of_the_truth(finished_run: tuple[Path, Path]) -> None:
    scores = {(score.name, score.kind): score for score in evaluate_run(*finished_run).maps}
    assert set(scores) == {("state1", "map"), ("state2", "map"), ("state1", "decoded"), ("state2", "decoded")}
    for (name, _), score in scores.items():
        assert score.truth == f"state{int(name[-1]) - 1}.mrc"
        assert np.min(score.fsc_masked[1:6]) > 0.99
        assert score.resolution_half <= score.unmasked_half + 1e-9
        assert score.resolution_seventh <= score.resolution_half < 30.0


def test_maps_are_paired_without_labels_too(run_and_truth: tuple[Path, Path]) -> None:
    run, truth = run_and_truth
    lines = truth.read_text().splitlines()
    column = next(int(line.split("#")[1]) for line in lines if "rlnClassNumber" in line)
    kept = [
        " ".join(v for i, v in enumerate(line.split(), 1) if i != column) if "@" in line else line for line in lines
    ]
    truth.write_text("\n".join(line for line in kept if "rlnClassNumber" not in line) + "\n")
    result = evaluate_run(run, truth)
    assert result.states.confusion_states is None
    assert [score.truth for score in result.maps] == ["state0.mrc", "state1.mrc"] * 2


def test_table_and_json_say_the_same(finished_run: tuple[Path, Path]) -> None:
    result = evaluate_run(*finished_run)
    found = json.loads(result.to_json())
    assert found["poses"]["rotation_median_deg"] == result.poses.rotation_median_deg
    assert found["maps"][0]["fsc"][0] == pytest.approx(result.maps[0].fsc[0])
    text = result.to_text()
    assert f"{result.poses.rotation_median_deg:.3f}°" in text and "state2 decoded against state1.mrc" in text


def test_rows_are_matched_by_image_not_by_place(run_and_truth: tuple[Path, Path]) -> None:
    run, truth = run_and_truth
    before = evaluate_run(run, truth, ())
    lines = truth.read_text().splitlines()
    rows = [line for line in lines if "@" in line]
    mixed = list(np.random.default_rng(0).permutation(rows))
    truth.write_text("\n".join([line for line in lines if "@" not in line] + [str(row) for row in mixed]) + "\n")
    after = evaluate_run(run, truth, ())
    assert after.poses == before.poses and after.maps == ()


def test_folders_in_image_names_may_differ(run_and_truth: tuple[Path, Path]) -> None:
    run, truth = run_and_truth
    truth.write_text(truth.read_text().replace("@set/", "@elsewhere/"))
    assert evaluate_run(run, truth, ()).particles_used == 300


def test_unusable_particles_are_left_out(run_and_truth: tuple[Path, Path]) -> None:
    run, truth = run_and_truth
    path = run / "estimates.npz"
    with np.load(path) as archive:
        values = {name: archive[name].copy() for name in archive.files}
    values["used"][:10] = False
    for name in ("rotations", "shifts", "latents", "rotation_std"):
        values[name][:10] = np.nan
    ParticleEstimates(**values).save(path)
    result = evaluate_run(run, truth, ())
    assert result.particles_used == 290
    assert np.isfinite(result.poses.rotation_mean_deg)


def test_images_without_a_particle_are_not_scored_but_counted(run_and_truth: tuple[Path, Path]) -> None:
    run, truth = run_and_truth
    before = evaluate_run(run, truth)
    lines = truth.read_text().splitlines()
    images = [place for place, line in enumerate(lines) if "@" in line]
    label = max(int(line.split("#")[1]) for line in lines if "#" in line and line.startswith("_rln"))
    for number, place in enumerate(images):
        lines[place] += " 0.0" if number < 5 else " 1.0"
    lines.insert(images[0], f"_cryofireContrast #{label + 1}")
    truth.write_text("\n".join(lines) + "\n")
    after = evaluate_run(run, truth)
    assert (before.empty, after.empty, after.empty_used) == (0, 5, 5)
    assert after.particles_used == before.particles_used - 5
    assert "without a particle, taken for one" in after.to_text() and "5 of 5" in after.to_text()
    assert "without a particle" not in before.to_text()


def test_truth_of_another_set_is_refused(run_and_truth: tuple[Path, Path]) -> None:
    run, truth = run_and_truth
    truth.write_text(truth.read_text().replace("particles.mrcs", "others.mrcs"))
    with pytest.raises(TableError, match=r"000001@set/particles.mrcs|1@set/particles.mrcs"):
        evaluate_run(run, truth)


def test_particle_tables_without_poses_are_refused_as_truth(run_and_truth: tuple[Path, Path]) -> None:
    run, _ = run_and_truth
    with pytest.raises(TableError, match="no poses"):
        evaluate_run(run, run / "particles.star")


def test_other_numbers_of_particles_are_refused(run_and_truth: tuple[Path, Path]) -> None:
    run, truth = run_and_truth
    (run / "particles.star").unlink()
    truth.write_text("\n".join(truth.read_text().rstrip().splitlines()[:-5]) + "\n")
    with pytest.raises(RunFolderError, match="300 particles, the truth 295"):
        evaluate_run(run, truth)


def test_missing_pieces_are_named(run_and_truth: tuple[Path, Path], tmp_path: Path) -> None:
    run, truth = run_and_truth
    with pytest.raises(MissingFileError, match="run folder"):
        evaluate_run(tmp_path / "nowhere", truth)
    with pytest.raises(MissingFileError, match="true map"):
        evaluate_run(run, truth, (tmp_path / "state0.mrc",))
    (run / "estimates.npz").unlink()
    with pytest.raises(RunFolderError, match="no particle estimates yet"):
        evaluate_run(run, truth)
    (run / "results.json").write_text('{"schema": 1, "stages": [{}]}')
    with pytest.raises(FileFormatError, match="damaged"):
        evaluate_run(run, truth)


def test_principal_coordinate_is_the_direction_of_largest_variance() -> None:
    rng = np.random.default_rng(1)
    axis = np.array([0.6, 0.0, -0.8])
    score = rng.normal(0, 5, 2000)
    latents = score[:, None] * axis + rng.normal(0, 0.1, (2000, 3)) + 7.0
    assert abs(np.corrcoef(principal_coordinate(latents), score)[0, 1]) > 0.999


def test_mixture_separates_separated_gaussians() -> None:
    rng = np.random.default_rng(2)
    labels = (rng.random(2000) < 0.1).astype(np.int64)
    latents = rng.normal(0, 1, (2000, 3)) + 8.0 * labels[:, None] * [0.0, 1.0, 0.0]
    assert confusion(labels, mixture_labels(latents, 2)) == 0.0


def test_states_are_paired_with_the_label_they_share_most_with() -> None:
    labels = np.array([1, 1, 1, 1, 2, 2, 3])
    states = np.array([1, 1, 1, 1, 0, 0, 2])
    assert pair_by_labels(states, labels, 3) == (1, 0, 2)
    assert pair_by_labels(np.array([0, 0, 1, 1, 2, 2, 2]), np.array([1, 1, 1, 1, 2, 2, 2]), 3)[2] == 1
