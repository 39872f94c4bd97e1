"""``cryofire prepare``, what a run makes of it, and the tables that are joined to a .cs file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cryofire.cli.main import CONTINUES, INTERRUPTED, main
from cryofire.config import Settings
from cryofire.data.read import read_particles
from cryofire.errors import RunFolderError
from cryofire.formats.cryosparc import write_cs
from cryofire.formats.mrc import stack_writer
from cryofire.settings_by_name import changed
from cryofire.training.pipeline import prepare_run
from cryofire.training.progress import SilentProgress
from cryofire.training.run_folder import RunFolder, open_run_folder, start_log
from cryofire.training.stages import Run, prepare

COUNT, BOX = 60, 16


@pytest.fixture
def particles(tmp_path: Path) -> Path:
    """A .cs file with the images of a small set, and another with their CTF that does not look like a passthrough file."""
    rng = np.random.default_rng(0)
    with stack_writer(tmp_path / "mic.mrcs", BOX, 8.0) as writer:
        writer.append(rng.normal(size=(COUNT, BOX, BOX)).astype(np.float32))
    images = np.zeros(
        COUNT,
        [("uid", "<u8"), ("blob/path", "S10"), ("blob/idx", "<u4"), ("blob/shape", "<u4", 2), ("blob/psize_A", "<f4")],
    )
    images["uid"], images["blob/path"], images["blob/idx"] = np.arange(COUNT) + 5, b"mic.mrcs", np.arange(COUNT)
    images["blob/shape"], images["blob/psize_A"] = BOX, 8.0
    names = ("accel_kv", "cs_mm", "amp_contrast", "df1_A", "df2_A", "df_angle_rad")
    optics = np.zeros(COUNT, [("uid", "<u8"), *((f"ctf/{name}", "<f4") for name in names)])
    optics["uid"] = images["uid"][::-1]
    for name, value in zip(names, (300, 2.7, 0.1, 20000, 19000, 0.3), strict=True):
        optics[f"ctf/{name}"] = value
    write_cs(tmp_path / "particles.cs", images)
    write_cs(tmp_path / "optics.cs", optics)
    return tmp_path / "particles.cs"


def words(verb: str, particles: Path, *more: str) -> list[str]:
    joined = ["--passthrough", str(particles.parent / "optics.cs")]
    output = ["-o", str(particles.parent / "run")] if verb != "check" else []
    return [verb, str(particles), *joined, *output, *more]


def test_prepare_leaves_what_a_run_continues_from(particles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("prepare", particles, "--set", "search.steps=30")) == 0
    assert "cryofire reconstruct" in capsys.readouterr().out
    folder = RunFolder(particles.parent / "run")
    stored = folder.checkpoint("prepare").stat().st_mtime_ns, folder.cache.stat().st_mtime_ns
    assert not folder.checkpoint("search").exists()
    assert [stage["name"] for stage in folder.read_json("stages.json")["stages"]] == ["prepare"]

    # a run with other settings of later stages takes it up without reading the images again
    table = read_particles(particles, passthrough=[particles.parent / "optics.cs"])
    settings = changed(Settings(), ["search.steps=7"])
    opened = open_run_folder(folder.path, table, settings)
    prepared = prepare(Run(opened, table, settings, SilentProgress(), start_log(opened)))
    assert len(prepared.rows) == COUNT
    assert (folder.checkpoint("prepare").stat().st_mtime_ns, folder.cache.stat().st_mtime_ns) == stored
    assert folder.read_json("settings.json")["search"]["steps"] == 7


@pytest.mark.parametrize("assignment", ["prepare.box=12", "seed=4"])
def test_what_prepare_depends_on_may_not_change(assignment: str, particles: Path) -> None:
    assert main(words("prepare", particles)) == 0
    with pytest.raises(RunFolderError, match="other settings"):
        prepare_run(
            particles,
            particles.parent / "run",
            changed(Settings(), [assignment]),
            passthrough=[particles.parent / "optics.cs"],
        )


def test_no_setting_changes_once_a_later_stage_ran(particles: Path) -> None:
    assert main(words("prepare", particles)) == 0
    (particles.parent / "run" / "checkpoints" / "search.safetensors").write_bytes(b"")
    assert main(words("prepare", particles, "--set", "search.steps=7")) == 2


def test_every_verb_joins_passthrough_files(particles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(particles)]) == 2
    assert "--passthrough" in capsys.readouterr().out
    main(words("check", particles))
    assert f"{COUNT} particles" in capsys.readouterr().out
    assert main(words("prepare", particles)) == 0
    inputs = json.loads((particles.parent / "run" / "inputs.json").read_text())
    assert inputs["passthrough"] == [str(particles.parent / "optics.cs")]
    rows = np.load(particles.parent / "optics.cs").copy()
    rows["ctf/df1_A"] += 500
    write_cs(particles.parent / "optics.cs", rows)
    capsys.readouterr()
    assert main(words("prepare", particles)) == 2
    assert "other data" in capsys.readouterr().err


def test_a_star_file_has_no_passthrough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "particles.star").write_text("data_\n")
    assert main(["prepare", str(tmp_path / "particles.star"), "-o", str(tmp_path), "--passthrough", "some.cs"]) == 2
    assert "belong to a .cs file" in capsys.readouterr().err


def test_a_stopped_preparation_starts_again_as_the_message_says(
    monkeypatch: pytest.MonkeyPatch, particles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cryofire.training.stages.find_centres", stop)  # after the cache was written
        assert main(words("prepare", particles)) == INTERRUPTED
    assert CONTINUES["prepare"] in capsys.readouterr().err
    assert main(words("prepare", particles)) == 0
