"""The coefficient cache: what is written is read, as many rows as were written, and damage is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryofire.data.cache import cache_writer, open_cache
from cryofire.errors import FileFormatError


@pytest.mark.parametrize("rows", [0, 1, 7, 12])
def test_as_many_rows_as_were_written(rows: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(rows, 5, 2)).astype(np.float32)
    with cache_writer(tmp_path / "cache.npy", 12, 5) as writer:
        writer.append(values[: rows // 2])
        writer.append(values[rows // 2 :])
        assert writer.rows == rows
        assert not (tmp_path / "cache.npy").exists()
    read = open_cache(tmp_path / "cache.npy")
    np.testing.assert_array_equal(read, values.astype(np.float16))
    assert [path.name for path in tmp_path.iterdir()] == ["cache.npy"]


def test_numbers_beyond_half_precision_stay_finite(tmp_path: Path) -> None:
    with cache_writer(tmp_path / "cache.npy", 1, 2) as writer:
        writer.append(np.array([[[1e9, -1e9], [1.0, 2.0]]]))
    assert open_cache(tmp_path / "cache.npy").tolist() == [[[65504.0, -65504.0], [1.0, 2.0]]]


def test_nothing_is_left_of_a_cache_that_was_not_finished(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), cache_writer(tmp_path / "cache.npy", 3, 2) as writer:
        writer.append(np.zeros((1, 2, 2)))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spoil", ["missing", "cut", "other"])
def test_a_damaged_cache_is_named(spoil: str, tmp_path: Path) -> None:
    path = tmp_path / "cache.npy"
    if spoil == "cut":
        with cache_writer(path, 3, 200) as writer:
            writer.append(np.ones((3, 200, 2)))
        path.write_bytes(path.read_bytes()[:-100])
    elif spoil == "other":
        np.save(path, np.zeros((2, 2)))
    with pytest.raises(FileFormatError, match="cache"):
        open_cache(path)
