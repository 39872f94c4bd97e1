"""A finished run used for images it has not seen: from Python and from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryofire import Reconstruction
from cryofire.cli.main import main
from cryofire.data.estimates import ParticleEstimates
from cryofire.data.read import read_particles
from cryofire.errors import RunFolderError, SettingError
from cryofire.formats.star import read_star, write_star


@pytest.fixture
def some_rows(small_set: Path, tmp_path: Path) -> Path:
    optics, particles = read_star(small_set / "particles.star")
    write_star(tmp_path / "some.star", (optics, particles.take(np.arange(100))))
    return tmp_path / "some.star"


def test_python_and_the_command_say_the_same(
    finished_run: Path, small_set: Path, some_rows: Path, tmp_path: Path
) -> None:
    found = Reconstruction.load(finished_run).encode(some_rows, polish=2, datadir=small_set)
    assert len(found) == 100
    assert found.used.all()
    words = ["encode", str(finished_run), str(some_rows), "--datadir", str(small_set), "--polish", "2", "-o"]
    assert main([*words, str(tmp_path / "out.star")]) == 0
    assert main([*words, str(tmp_path / "live.star"), "--follow", "--patience", "0.1"]) == 0
    for name in ("out.star", "live.star"):
        written = read_particles(tmp_path / name, small_set)
        assert written.poses is not None
        np.testing.assert_allclose(written.poses.shifts, found.shifts, atol=0.02)
        turned = np.einsum("nij,nij->n", written.poses.rotations, found.rotations)
        assert np.quantile(turned, 0.05) > 2.999
        assert (written.labels == found.state + 1).mean() > 0.98


def test_polished_poses_of_the_images_of_the_run_are_those_of_the_run(
    finished_run: Path, small_set: Path, some_rows: Path
) -> None:
    found = Reconstruction.load(finished_run).encode(some_rows, polish=3, datadir=small_set)
    of_run = ParticleEstimates.load(finished_run / "estimates.npz")
    cosine = (np.einsum("nij,nij->n", found.rotations, of_run.rotations[:100]) - 1) / 2
    assert np.degrees(np.median(np.arccos(np.clip(cosine, -1, 1)))) < 3.0


def test_a_saved_reconstruction_opens_as_the_same(finished_run: Path, tmp_path: Path) -> None:
    reconstruction = Reconstruction.load(finished_run)
    reconstruction.save(tmp_path / "saved")
    again = Reconstruction.load(tmp_path / "saved")
    assert again.model.digest() == reconstruction.model.digest()
    np.testing.assert_array_equal(again.estimates.rotations, reconstruction.estimates.rotations)
    points = np.zeros((2, reconstruction.model.components))
    assert again.decode(points, box=20).shape == (2, 20, 20, 20)
    np.testing.assert_array_equal(again.decode(points), reconstruction.decode(points))
    with pytest.raises(SettingError, match="larger than that of the model"):
        again.decode(points, box=1000)
    with pytest.raises(RunFolderError, match="this is a run folder"):
        reconstruction.save(finished_run)
