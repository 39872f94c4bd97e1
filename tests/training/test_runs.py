"""What can go wrong with a run, and what the user is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cryofire.cli.main import INTERRUPTED, main
from cryofire.config import Settings
from cryofire.data.estimates import ParticleEstimates
from cryofire.data.read import read_particles
from cryofire.errors import InputError, RunFolderError, SettingError
from cryofire.formats.mrc import open_stack, stack_writer
from cryofire.settings_by_name import changed, read_settings, settings_from_dict
from cryofire.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cryofire.training.pipeline import reconstruct
from cryofire.training.progress import SilentProgress
from cryofire.training.run_folder import input_digest

from .conftest import QUICK, quick_arguments


class Interrupt(SilentProgress):
    """Presses Ctrl-C in the middle of a stage."""

    def __init__(self, stage: str, units: int) -> None:
        self._stage, self._units, self._current = stage, units, ""

    def start(self, stage: str, total: int) -> None:
        self._current = stage

    def advance(self, units: int) -> None:
        if self._current == self._stage:
            self._units -= units
            if self._units < 0:
                raise KeyboardInterrupt


@pytest.mark.parametrize(("stage", "units"), [("consensus", 2000), ("polish", 100)])
def test_a_stopped_run_continues_to_the_same_result(
    stage: str, units: int, finished_run: Path, small_set: Path, tmp_path: Path
) -> None:
    settings = changed(Settings(), QUICK)
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)  # its checkpoints up to the stage that will be interrupted
    stages = ["consensus", "subspace", "latents", "polish"]
    undone = [f"checkpoints/{name}.safetensors" for name in stages[stages.index(stage) :]]
    for name in ("results.json", "estimates.npz", *undone):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(small_set / "particles.star", folder, settings, progress=Interrupt(stage, units))
    reconstruct(small_set / "particles.star", folder, settings)
    stopped, whole = (ParticleEstimates.load(one / "estimates.npz") for one in (folder, finished_run))
    np.testing.assert_allclose(stopped.rotations, whole.rotations, atol=1e-5)
    np.testing.assert_allclose(stopped.latents, whole.latents, atol=1e-4)


def test_a_folder_of_other_data_is_refused(finished_run: Path, small_set: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(small_set, other)
    lines = (other / "particles.star").read_text().splitlines(keepends=True)
    (other / "particles.star").write_text("".join(lines[:-5]))
    with pytest.raises(RunFolderError, match="other data"):
        reconstruct(other / "particles.star", finished_run, changed(Settings(), QUICK))
    with pytest.raises(RunFolderError, match="other settings"):
        reconstruct(small_set / "particles.star", finished_run, changed(Settings(), [*QUICK, "search.steps=21"]))


def test_a_folder_with_the_users_files_is_left_alone(small_set: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("chapter one")
    with pytest.raises(RunFolderError, match="not a run folder"):
        reconstruct(small_set / "particles.star", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_bad_images_are_left_out_and_named(small_set: Path, tmp_path: Path) -> None:
    from cryofire.training.run_folder import open_run_folder, start_log
    from cryofire.training.stages import Run, prepare

    frames = open_stack(small_set / "particles.mrcs").frames(np.arange(900)).copy()
    with stack_writer(tmp_path / "particles.mrcs", 40, 12.06) as writer:
        writer.append(frames)
    stored = np.memmap(tmp_path / "particles.mrcs", np.float32, "r+", 1024, (900, 40, 40))
    stored[7], stored[11, 3, 3] = 0.0, np.nan
    stored.flush()
    shutil.copy(small_set / "particles.star", tmp_path)
    from cryofire.data.read import read_particles

    table = read_particles(tmp_path / "particles.star")
    folder = open_run_folder(tmp_path / "run", table, Settings())
    prepared = prepare(Run(folder, table, Settings(), SilentProgress(), start_log(folder)))
    assert sorted(set(range(900)) - set(prepared.rows.tolist())) == [7, 11]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "particles.mrcs").unlink(), "particles.mrcs"),
        (
            lambda folder: (folder / "particles.mrcs").write_bytes((folder / "particles.mrcs").read_bytes()[:5000]),
            "truncated",
        ),
        (lambda folder: (folder / "particles.star").write_text("data_\n\nloop_\n_rlnImageName #1\n"), "particles.star"),
        (lambda folder: (folder / "particles.star").unlink(), "No such file"),
    ],
)
def test_bad_input_gives_a_message_and_no_traceback(
    spoil, says: str, small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(small_set, folder)
    spoil(folder)
    assert main(["reconstruct", str(folder / "particles.star"), "-o", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("cryofire reconstruct: ")
    assert says in message
    assert "Traceback" not in message


def test_a_typo_in_a_setting_is_answered_with_the_right_name(small_set: Path, tmp_path: Path, capsys) -> None:
    words = ["reconstruct", str(small_set / "particles.star"), "-o", str(tmp_path / "run"), "--set", "search.stepz=3"]
    assert main(words) == 2
    assert "did you mean steps" in capsys.readouterr().err


def test_interrupt_is_a_clean_stop(monkeypatch: pytest.MonkeyPatch, small_set: Path, tmp_path: Path, capsys) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cryofire.training.pipeline.reconstruct", stop)
    assert main(["reconstruct", str(small_set / "particles.star"), "-o", str(tmp_path / "run")]) == INTERRUPTED
    assert "continues" in capsys.readouterr().err


def test_settings_round_trip_and_refuse_nonsense(tmp_path: Path) -> None:
    settings = changed(Settings(), ["search.steps=7", "prepare.box=48", "seed=3"])
    assert settings_from_dict(settings.to_dict()) == settings
    (tmp_path / "settings.json").write_text('{"search": {"steps": 9}}')
    assert read_settings(tmp_path / "settings.json").search.steps == 9
    for wrong in ("search.steps=many", "search.steps=-1", "search.steps=true", "search", "search=3", "nothing=1"):
        with pytest.raises(SettingError):
            changed(Settings(), [wrong])


def test_damaged_checkpoints_say_so(tmp_path: Path) -> None:
    path = tmp_path / "stage.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(RunFolderError, match="cannot be read"):
        load_checkpoint(path)
    import torch

    save_checkpoint(path, Checkpoint({"a": torch.arange(3)}, {"b": 1.5}))
    loaded = load_checkpoint(path)
    assert loaded.values == {"b": 1.5}
    assert torch.equal(loaded.tensors["a"], torch.arange(3))


def test_a_full_disk_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cryofire.training.checkpoint.save_file", full)
    with pytest.raises(InputError, match="No space left"):
        save_checkpoint(tmp_path / "stage.safetensors", Checkpoint({"a": torch.arange(3)}, {}))
    assert list(tmp_path.iterdir()) == []


def test_help_answers_without_torch() -> None:
    import subprocess
    import sys

    code = "import sys; from cryofire.cli.main import build_parser; build_parser(['reconstruct']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert quick_arguments()


def test_a_run_knows_its_table_from_any_folder(small_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small_set)
    assert input_digest(read_particles(Path("particles.star")))["table"] == str(small_set / "particles.star")
