"""Estimates of particles: what is saved comes back, what is damaged is named."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from cryofire.data.estimates import ParticleEstimates
from cryofire.errors import FileFormatError, MissingFileError


def some_estimates(particles: int = 4, components: int = 2) -> ParticleEstimates:
    rng = np.random.default_rng(0)
    return ParticleEstimates(
        rotations=rng.normal(size=(particles, 3, 3)),
        shifts=rng.normal(size=(particles, 2)),
        rotation_std=rng.random(particles),
        shift_std=rng.random(particles),
        latents=rng.normal(size=(particles, components)),
        latent_std=rng.random((particles, components)),
        state=rng.integers(0, 3, size=particles),
        state_probability=rng.random(particles),
        path_position=rng.random(particles),
        contrast=rng.random(particles),
        log_likelihood=np.full(particles, np.nan),
        used=rng.random(particles) > 0.5,
    )


@pytest.mark.parametrize("components", [0, 3])
def test_save_then_load_is_exact(tmp_path: Path, components: int) -> None:
    estimates = some_estimates(5, components)
    estimates.save(tmp_path / "estimates.npz")
    again = ParticleEstimates.load(tmp_path / "estimates.npz")
    assert len(again) == 5
    for field in fields(estimates):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(estimates, field.name))
    assert [path.name for path in tmp_path.iterdir()] == ["estimates.npz"]


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "estimates.npz"
    with pytest.raises(MissingFileError):
        ParticleEstimates.load(path)
    some_estimates().save(path)
    good = path.read_bytes()
    for content in (b"", b"no archive", good[: len(good) // 2], good[:-30]):
        path.write_bytes(content)
        with pytest.raises(FileFormatError):
            ParticleEstimates.load(path)
    values = {field.name: getattr(some_estimates(), field.name) for field in fields(ParticleEstimates)}
    np.savez(path, **{name: value for name, value in values.items() if name != "contrast"})
    with pytest.raises(FileFormatError, match="contrast"):
        ParticleEstimates.load(path)
    np.savez(path, **{**values, "shifts": values["shifts"][:3]})
    with pytest.raises(FileFormatError, match="shifts"):
        ParticleEstimates.load(path)
