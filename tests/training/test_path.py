"""Maps along the path of a motion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cryofire.analysis.latent_space import LatentPath
from cryofire.formats.mrc import read_map
from cryofire.inference.linear_model import LinearModel
from cryofire.inference.polish import Priors
from cryofire.training.results import write_path
from cryofire.training.run_folder import RunFolder
from cryofire.volumes.halves import HalfMaps


@pytest.mark.parametrize("box", [8, 9])
def test_frames_are_the_model_at_the_points_of_the_path(box: int, tmp_path: Path) -> None:
    maps = torch.randn(3, box, box, box, generator=torch.Generator().manual_seed(0))
    halves = HalfMaps(maps.expand(2, -1, -1, -1, -1), maps, torch.ones(3, 4))
    model = LinearModel(halves, Priors(1.0, 0.1, torch.ones(2)))
    points = np.array([[-2.0, 1.0], [0.0, 0.5], [2.0, 1.0], [3.0, -1.0]])
    positions = np.array([0.0, 0.01, 0.3, 0.6, 1.0, np.nan])
    written = write_path(RunFolder(tmp_path), model, LatentPath(points, positions, False, 7.0, points), 3.0)
    assert [frame["weight"] for frame in written["frames"]] == pytest.approx([0.4, 0.2, 0.2, 0.2])
    assert [frame["latent"] for frame in written["frames"]] == points.tolist()
    assert (written["closed"], written["length"]) == (False, 7.0)
    for frame, point in zip(written["frames"], points, strict=True):
        volume, pixel_size = read_map(tmp_path / frame["map"])
        expected = maps[0] + point[0] * maps[1] + point[1] * maps[2]
        np.testing.assert_allclose(volume, expected.numpy(), rtol=1e-5, atol=1e-5)
        assert pixel_size == pytest.approx(3.0)
