"""A run of which some images are contaminated: they are left out, named, and stay out when the run is continued."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.training.conftest import quick_arguments

from cryofire.analysis.truth import read_truth
from cryofire.cli.main import main
from cryofire.data.estimates import ParticleEstimates
from cryofire.data.read import read_particles


@pytest.fixture
def contaminated_set(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    words = ["--particles", "900", "--box", "40", "--pixel-size", "12.06", "--snr", "0.1", "--contaminated", "0.03"]
    assert main(["simulate", *words, "--weights", "0.7", "0.3", "--angles", "0", "20", "-o", str(folder)]) == 0
    return folder


def test_contaminated_images_are_left_out_and_listed(contaminated_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["reconstruct", str(contaminated_set / "particles.star"), "-o", str(run), *quick_arguments()]
    assert main(command) == 0
    truth = read_truth(contaminated_set / "truth.star", run / "particles.star")
    used = ParticleEstimates.load(run / "estimates.npz").used
    assert used[~truth.is_contaminated].all()
    assert np.mean(used[truth.is_contaminated]) < 0.5
    listed = read_particles(run / "left_out.star", stacks=False)
    np.testing.assert_array_equal(listed.frame, np.flatnonzero(~used))
    results = json.loads((run / "results.json").read_text())
    assert (results["left_out"], results["particles_used"]) == (int((~used).sum()), int(used.sum()))
    assert "something else than the particle" in (run / "report.html").read_text()
    for written in ("results.json", "estimates.npz", "report.html", "left_out.star"):
        (run / written).unlink()
    assert main(command) == 0
    np.testing.assert_array_equal(ParticleEstimates.load(run / "estimates.npz").used, used)
    assert (run / "left_out.star").exists()
