"""Preparation reads the images once, and unusable ones leave no trace in the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cryofire.config import PrepareSettings
from cryofire.data.cache import open_cache
from cryofire.data.particles import ParticleTable
from cryofire.data.read import read_particles
from cryofire.errors import ImageError
from cryofire.formats.cryosparc import write_cs
from cryofire.formats.mrc import stack_writer
from cryofire.inference.prepare import WorkingGrid, estimate_noise, evenly_chosen, working_grid, write_coefficients

COUNT, BOX = 30, 15
OPTICS = {"accel_kv": 300, "cs_mm": 2.7, "amp_contrast": 0.1, "df1_A": 2e4, "df2_A": 2e4, "df_angle_rad": 0.0}
BAD = [0, 7, 29]


def table_of(images: np.ndarray, folder: Path) -> ParticleTable:
    folder.mkdir()
    with stack_writer(folder / "mic.mrcs", BOX, 4.0) as writer:
        writer.append(np.zeros_like(images))
    np.memmap(folder / "mic.mrcs", np.float32, "r+", 1024, images.shape)[:] = images  # the writer would refuse NaN
    names = [
        ("uid", "<u8"),
        ("blob/path", "S10"),
        ("blob/idx", "<u4"),
        ("blob/shape", "<u4", 2),
        ("blob/psize_A", "<f4"),
    ]
    rows = np.zeros(len(images), [*names, *((f"ctf/{name}", "<f4") for name in OPTICS)])
    rows["uid"] = rows["blob/idx"] = np.arange(len(images))
    rows["blob/path"], rows["blob/shape"], rows["blob/psize_A"] = b"mic.mrcs", BOX, 4.0
    for name, value in OPTICS.items():
        rows[f"ctf/{name}"] = value
    write_cs(folder / "particles.cs", rows)
    return read_particles(folder / "particles.cs")


def written(table: ParticleTable, path: Path) -> tuple[np.ndarray, np.ndarray, torch.Tensor, list[int]]:
    grid, steps = working_grid(table, PrepareSettings()), []
    noise = estimate_noise(table, grid)
    rows = write_coefficients(table, grid, noise, path, steps.append)
    return rows, np.array(open_cache(path)), noise, steps


def test_unusable_images_leave_no_trace(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(COUNT, BOX, BOX)).astype(np.float32)
    spoilt = images.copy()
    spoilt[0], spoilt[7, 3, 3], spoilt[29, 0, 0] = 2.5, np.nan, np.inf
    rows, coefficients, noise, steps = written(table_of(spoilt, tmp_path / "spoilt"), tmp_path / "spoilt.npy")
    good = np.delete(np.arange(COUNT), BAD)
    _, expected, expected_noise, _ = written(table_of(images[good], tmp_path / "good"), tmp_path / "good.npy")
    assert rows.tolist() == good.tolist()
    assert sum(steps) == COUNT
    torch.testing.assert_close(noise, expected_noise)
    np.testing.assert_allclose(coefficients, expected, atol=2e-3)


def test_noise_is_whitened(tmp_path: Path) -> None:
    images = 3.0 * np.random.default_rng(1).normal(size=(200, BOX, BOX)).astype(np.float32)
    _, coefficients, noise, _ = written(table_of(images, tmp_path / "set"), tmp_path / "cache.npy")
    power = np.square(coefficients.astype(np.float64)).sum(axis=2)
    assert power[:, 4:].mean() == pytest.approx(1.0, abs=0.1)  # |Y|² of noise of unit variance per coefficient
    assert noise[2:].mean().item() == pytest.approx(3.0 * BOX, rel=0.1)


def test_no_usable_image_is_an_error(tmp_path: Path) -> None:
    table = table_of(np.full((5, BOX, BOX), 1.5, dtype=np.float32), tmp_path / "set")
    with pytest.raises(ImageError, match="constant or not finite"):
        estimate_noise(table, WorkingGrid(BOX, 4.0))


@pytest.mark.parametrize(("count", "size"), [(10, 3), (3, 10), (1, 1)])
def test_evenly_chosen_rows_are_some_of_them_in_order(count: int, size: int) -> None:
    rows = 5 * np.arange(count)
    chosen = evenly_chosen(rows, size)
    assert len(chosen) == min(count, size) == len(set(chosen)) and set(chosen) <= set(rows)
    assert chosen[0] == rows[0] and np.all(np.diff(chosen) > 0)
