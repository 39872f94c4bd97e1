"""Random parameters: their distributions, their independence, and the files they are drawn from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cryofire.errors import FileFormatError, MissingFileError, TableError
from cryofire.formats.conventions import rotations_from_relion
from cryofire.formats.star import StarBlock, float_column, write_star
from cryofire.simulation.molecules import Conformation
from cryofire.simulation.sampling import draw_truth, preferred_rotations, read_defocus, read_rotations
from cryofire.simulation.settings import SimulationSettings

MANY = SimulationSettings(particles=4000)


def star(path: Path, **columns: list[float]) -> Path:
    write_star(path, [StarBlock(path, "particles", {k: float_column(np.array(v)) for k, v in columns.items()})])
    return path


def test_defaults_have_the_distributions_of_the_reference_set(shared_data: Path) -> None:
    truth = draw_truth(MANY)
    path = shared_data / "reference_set" / "truth.star"
    defocus = read_defocus(path)
    for column, mine in enumerate((truth.optics.defocus_u, truth.optics.defocus_v, truth.optics.defocus_angle)):
        assert stats.ks_2samp(defocus[:, column], mine).pvalue > 1e-3
    astigmatism = (1 - defocus[:, 1] / defocus[:, 0], 1 - truth.optics.defocus_v / truth.optics.defocus_u)
    assert stats.ks_2samp(*astigmatism).pvalue > 1e-3
    rotations = read_rotations(path)
    for entry in np.ndindex(3, 3):
        assert stats.ks_2samp(rotations[:, *entry], truth.poses.rotations[:, *entry]).pvalue > 1e-4
    assert np.bincount(truth.states) / 4000 == pytest.approx([0.9, 0.1], abs=0.02)
    assert truth.poses.shifts.std(axis=0) == pytest.approx([5.0, 5.0], rel=0.05)


def test_rotations_are_uniform() -> None:
    rotations = draw_truth(MANY).poses.rotations
    assert np.abs(rotations @ np.swapaxes(rotations, -1, -2) - np.eye(3)).max() < 1e-12
    assert np.linalg.det(rotations) == pytest.approx(np.ones(4000))
    for entry in np.ndindex(3, 3):  # every entry of a uniform rotation is uniform in [-1, 1]
        assert stats.kstest(rotations[:, *entry], "uniform", (-1, 2)).pvalue > 1e-4


def test_changing_one_distribution_leaves_the_others() -> None:
    plain = draw_truth(replace(MANY, particles=50))
    other = draw_truth(
        replace(MANY, particles=50, shift_std=20.0, views="preferred", contrast_std=0.1, weights=(0.5, 0.5))
    )  # fmt: skip
    assert other.poses.shifts == pytest.approx(4 * plain.poses.shifts)
    assert (other.optics.defocus_u == plain.optics.defocus_u).all()
    assert (other.poses.rotations != plain.poses.rotations).any()
    assert (draw_truth(replace(MANY, particles=50, seed=1)).poses.shifts != plain.poses.shifts).all()


def test_a_larger_set_begins_like_a_smaller_one() -> None:
    few, more = (draw_truth(replace(MANY, particles=count, views="preferred")) for count in (10, 30))
    assert (few.states == more.states[:10]).all()
    assert (few.poses.rotations == more.poses.rotations[:10]).all()
    assert (few.optics.defocus_v == more.optics.defocus_v[:10]).all()


@pytest.mark.parametrize("strength", [0.0, 1.0, 6.0, 40.0])
def test_preferred_views_have_the_mean_cosine_of_fisher(strength: float) -> None:
    axes = np.array([[0.0, 0.0, 3.0], [1.0, 1.0, 0.0]])
    random = np.random.default_rng(0).random((20_000, 4))
    rotations = preferred_rotations(axes, strength, random)
    views = rotations[:, 2]
    about = np.where(random[:, :1] < 0.5, [[0.0, 0.0, 1.0]], [[0.5**0.5, 0.5**0.5, 0.0]])
    cosine = np.einsum("ia,ia->i", views, about)
    expected = 1 / np.tanh(strength) - 1 / strength if strength else 0.0
    assert cosine.mean() == pytest.approx(expected, abs=0.015)
    assert np.abs(rotations @ np.swapaxes(rotations, -1, -2) - np.eye(3)).max() < 1e-9
    in_plane = np.arctan2(rotations[:, 0, 2], rotations[:, 1, 2])
    assert stats.kstest(in_plane, "uniform", (-np.pi, 2 * np.pi)).pvalue > 1e-3


def test_contrast_is_in_the_scale_with_its_sign() -> None:
    dark = draw_truth(replace(MANY, contrast_std=0.2))
    white = draw_truth(replace(MANY, contrast_std=0.2, contrast="white"))
    assert (dark.optics.scale == dark.contrast).all()
    assert (white.optics.scale == -dark.contrast).all()
    assert dark.contrast.mean() == pytest.approx(1.0, abs=0.02)
    assert dark.contrast.std() == pytest.approx(0.2, rel=0.05)
    assert (draw_truth(MANY).optics.scale == 1).all()


def test_images_without_a_particle_have_no_contrast_and_change_nothing_else() -> None:
    full = draw_truth(replace(MANY, contrast_std=0.2))
    thinned = draw_truth(replace(MANY, contrast_std=0.2, empty=0.3))
    is_empty = thinned.contrast == 0
    assert is_empty.mean() == pytest.approx(0.3, abs=0.03)
    np.testing.assert_array_equal(thinned.contrast[~is_empty], full.contrast[~is_empty])
    np.testing.assert_array_equal(thinned.states, full.states)
    np.testing.assert_array_equal(thinned.poses.rotations, full.poses.rotations)


def test_states_follow_their_weights() -> None:
    states = draw_truth(replace(MANY, conformations=(Conformation(),) * 3, weights=(1.0, 0.0, 3.0))).states
    assert np.bincount(states) / 4000 == pytest.approx([0.25, 0.0, 0.75], abs=0.03)


def test_values_are_drawn_from_a_star_file(tmp_path: Path) -> None:
    angles = {"rlnAngleRot": [10.0, 50.0], "rlnAngleTilt": [20.0, 60.0], "rlnAnglePsi": [30.0, 70.0]}
    defocus = {"rlnDefocusU": [9e3, 2e4], "rlnDefocusV": [8e3, 1e4], "rlnDefocusAngle": [90.0, 0.0]}
    path = star(tmp_path / "set.star", **angles, **defocus)
    truth = draw_truth(replace(MANY, particles=200, views_from=path, defocus_from=path))
    known = rotations_from_relion(np.array([[10.0, 20.0, 30.0], [50.0, 60.0, 70.0]]))
    distance = np.abs(truth.poses.rotations[:, None] - known).max(axis=(2, 3))
    assert distance.min(axis=1).max() < 1e-5
    assert 50 < (distance[:, 0] < 1e-5).sum() < 150
    triples = {tuple(row) for row in np.stack([truth.optics.defocus_u, truth.optics.defocus_v], axis=1)}
    assert triples == {(9e3, 8e3), (2e4, 1e4)}
    assert set(truth.optics.defocus_angle) == {0.0, np.pi / 2}


def test_values_are_drawn_from_real_files(shared_data: Path) -> None:
    path = shared_data / "metadata" / "empiar10076_real_poses_ctf.npz"
    assert read_rotations(path).shape == (131899, 3, 3)
    assert read_defocus(path)[0] == pytest.approx([15301.1, 14916.4, np.deg2rad(5.28)], rel=1e-5)
    assert len(read_rotations(shared_data / "metadata" / "betagal_relion_tutorial_images.star")) == 6496


def test_npz_with_other_arrays_says_which(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", angles=np.zeros(3))
    with pytest.raises(FileFormatError, match="angles"):
        read_rotations(tmp_path / "other.npz")


@pytest.mark.parametrize(
    "rot",
    [np.zeros((4, 3)), np.ones((4, 3, 3)), np.full((1, 3, 3), np.nan), np.zeros((0, 3, 3)), np.full((1, 3, 3), "a")],
)
def test_npz_without_rotations_is_refused(tmp_path: Path, rot: np.ndarray) -> None:
    np.savez(tmp_path / "bad.npz", rot=rot)
    with pytest.raises(FileFormatError, match="rot"):
        read_rotations(tmp_path / "bad.npz")


def test_star_without_what_is_to_be_drawn(tmp_path: Path) -> None:
    path = star(tmp_path / "set.star", rlnDefocusU=[1e4])
    with pytest.raises(TableError, match="rlnDefocusV"):
        read_defocus(path)
    with pytest.raises(TableError, match="rlnAngleRot"):
        read_rotations(path)
    with pytest.raises(TableError):
        read_rotations(star(tmp_path / "nan.star", rlnAngleRot=[np.nan], rlnAngleTilt=[0.0], rlnAnglePsi=[0.0]))
    with pytest.raises(MissingFileError):
        read_rotations(tmp_path / "nowhere.npz")
