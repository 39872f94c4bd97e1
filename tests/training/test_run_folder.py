"""Whose a run folder is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cryofire.config import Settings
from cryofire.data.particles import ParticleTable
from cryofire.data.read import read_particles
from cryofire.errors import RunFolderError
from cryofire.training.run_folder import RunFolder, open_run_folder

from .toy_model import write_toy


@pytest.fixture
def table(tmp_path: Path) -> ParticleTable:
    write_toy(tmp_path / "set", 10)
    return read_particles(tmp_path / "set" / "particles.star")


def under_way(path: Path, table: ParticleTable) -> RunFolder:
    """A folder with a finished search."""
    folder = open_run_folder(path, table, Settings())
    folder.checkpoint("search").touch()
    return folder


def test_a_run_of_a_version_with_other_settings_names_them(tmp_path: Path, table: ParticleTable) -> None:
    folder = under_way(tmp_path / "run", table)
    stored = folder.read_json("settings.json")
    stored["subspace"]["shape"] = 1
    (folder.path / "settings.json").write_text(json.dumps({**stored, "version": "0.0.9"}))
    with pytest.raises(RunFolderError, match=r"started by cryofire 0\.0\.9 .*\n?.*subspace\.shape") as caught:
        open_run_folder(folder.path, table, Settings())
    assert "continue with the version that started it" in str(caught.value)
