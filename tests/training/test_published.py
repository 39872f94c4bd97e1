"""The published recipe from the command line: its results are complete, it resumes exactly, its model survives its file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cryofire.cli.main import main
from cryofire.config import RECIPES, PublishedSettings, Settings
from cryofire.data.read import read_particles
from cryofire.errors import SettingError
from cryofire.formats.mrc import read_map
from cryofire.geometry.grids import half_plane
from cryofire.physics.imaging import ImageBatch
from cryofire.settings_by_name import changed, settings_from_dict
from cryofire.training.checkpoint import load_checkpoint
from cryofire.training.pipeline import reconstruct
from cryofire.training.progress import Progress, SilentProgress
from cryofire.training.published import Position, learn_published, restore, section_amplitude, shell_at, start_model
from cryofire.training.run_folder import RunFolder, start_log
from cryofire.training.stages import Run, prepare

TINY = [
    "published.images=750", "published.pose_only_images=250", "published.marching_images=250", "published.channels=8",
    "published.hidden=32", "published.layers=1", "published.features=24", "published.components=2", "published.batch=25",
    "published.learning_rate=0.001", "published.first_shell=3", "published.last_shell=5", "prepare.box=16",
]  # fmt: skip


class Interrupt(SilentProgress):
    """Presses Ctrl-C after some images of the learning."""

    def __init__(self, units: int) -> None:
        self._units, self._learning = units, False

    def start(self, stage: str, total: int) -> None:
        self._learning = stage == "published"

    def advance(self, units: int) -> None:
        self._units -= units if self._learning else 0
        if self._units < 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "set"
    words = ["simulate", "--particles", "250", "--box", "24", "--pixel-size", "20", "--snr", "0.3", "-o", str(folder)]
    assert main([*words, "--weights", "0.7", "0.3", "--angles", "0", "20"]) == 0
    return folder


@pytest.fixture(scope="module")
def tiny_run(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "run"
    options = [word for assignment in TINY for word in ("--set", assignment)]
    words = ["reconstruct", str(tiny_set / "particles.star"), "-o", str(folder), "--recipe", "cryofire-2022"]
    assert main([*words, *options]) == 0
    return folder


def tiny_settings() -> Settings:
    return changed(Settings(), [*TINY, "recipe=cryofire-2022"])


def test_the_misfit_falls(tiny_run: Path) -> None:
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["stage"] for line in lines] == ["published"] * 3
    assert [line["shell"] for line in lines[1:]] == [5, 5]
    assert lines[2]["misfit"] < 0.95 * lines[1]["misfit"]


def test_results_are_those_of_any_run(tiny_run: Path, tiny_set: Path) -> None:
    results = json.loads((tiny_run / "results.json").read_text())
    assert results["recipe"] == "cryofire-2022"
    assert results["published"]["images"] == 750
    assert results["components"] == 2
    assert sum(state["particles"] for state in results["states"]) == 250
    for record in [results["consensus"], *results["states"]]:
        for name in [record["map"], record["decoded"], *record["half_maps"]]:
            volume, _ = read_map(tiny_run / name)
            assert volume.shape == (16, 16, 16)
            assert np.isfinite(volume).all()
    assert (tiny_run / "report.html").exists()
    assert read_particles(tiny_run / "particles.star", tiny_set).poses is not None
    assert main(["evaluate", str(tiny_run), "--truth", str(tiny_set / "truth.star")]) == 0


def test_the_model_survives_its_file_and_decodes_what_was_written(tiny_run: Path, tiny_set: Path) -> None:
    settings = tiny_settings()
    folder = RunFolder(tiny_run)
    table = read_particles(tiny_set / "particles.star")
    prepared = prepare(Run(folder, table, settings, SilentProgress(), start_log(folder)))
    model = start_model(prepared.images, settings.published, seed=5)  # other weights than those that were learnt
    optimiser = torch.optim.Adam(model.parameters())
    checkpoint = load_checkpoint(folder.checkpoint("published"))
    position = restore(checkpoint, model, optimiser)
    assert position.seen == 750
    for name, value in model.tensors().items():
        assert torch.equal(value, checkpoint.tensors[name]), name
    state = json.loads((tiny_run / "results.json").read_text())["states"][0]
    written, _ = read_map(tiny_run / state["decoded"])
    decoded = model.field.volume(torch.tensor(state["latent_center"])).numpy()
    np.testing.assert_allclose(decoded, written, atol=1e-4 * np.abs(written).max())
    assert np.abs(decoded).max() > 0


def test_a_stopped_run_continues_to_the_same_model(tiny_run: Path, tiny_set: Path, tmp_path: Path) -> None:
    folder, settings = RunFolder(tmp_path / "run"), tiny_settings()
    shutil.copytree(tiny_run, folder.path)
    whole = load_checkpoint(folder.checkpoint("published"))
    folder.checkpoint("published").unlink()
    table = read_particles(tiny_set / "particles.star")

    def learn(progress: Progress) -> None:
        run = Run(folder, table, settings, progress, start_log(folder))
        learn_published(run, prepare(run))

    with pytest.raises(KeyboardInterrupt):
        learn(Interrupt(600))
    assert load_checkpoint(folder.checkpoint("published")).values["epoch"] == 2
    learn(SilentProgress())
    pieces = load_checkpoint(folder.checkpoint("published"))
    assert pieces.values["seen"] == whole.values["seen"]
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(pieces.tensors[name], tensor, msg=name)


def test_the_resolution_limit_marches() -> None:
    settings = PublishedSettings(marching_images=1000, first_shell=4, last_shell=12)
    assert [shell_at(seen, settings, 15) for seen in (0, 250, 500, 1000, 9999)] == [4, 6, 8, 12, 12]
    assert shell_at(9999, settings, 7) == 7
    assert shell_at(0, PublishedSettings(marching_images=0), 15) == 15
    assert not Position(seen=999).is_over(PublishedSettings(images=1000))
    assert Position(seen=1000).is_over(PublishedSettings(images=1000))
    assert Position(seconds=3.0).is_over(PublishedSettings(seconds=2.0))


def test_the_amplitude_is_that_of_the_sections_behind_the_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    plane, size = half_plane(16), (400, len(half_plane(16)))
    sections = 3.0 * torch.randn(size, generator=generator, dtype=torch.complex64)
    modulation = torch.rand(size, generator=generator)
    noise = torch.randn(size, generator=generator, dtype=torch.complex64)
    found = section_amplitude(ImageBatch(modulation * sections + noise, modulation, plane))
    assert found == pytest.approx(3.0, rel=0.02)
    assert 0 < section_amplitude(ImageBatch(0.1 * noise, modulation, plane)) < 1e-2


def test_an_unknown_recipe_is_an_error(tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reconstruct", str(tiny_set / "particles.star"), "-o", str(tmp_path / "run"), "--recipe"]
    assert main([*words, "cryofire-2021"]) == 2
    message = capsys.readouterr().err
    assert "there is no recipe 'cryofire-2021'" in message
    assert "did you mean cryofire-2022?" in message
    assert main([*words, "nonsense"]) == 2
    message = capsys.readouterr().err
    assert all(name in message for name in RECIPES)
    with pytest.raises(SettingError, match="no recipe"):
        settings_from_dict({"recipe": "other"})
    with pytest.raises(SettingError, match="no recipe"):
        reconstruct(tiny_set / "particles.star", tmp_path / "run", Settings(recipe="other"))
    assert not (tmp_path / "run").exists()
