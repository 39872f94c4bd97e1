from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cryofire.config import EncoderSettings
from cryofire.errors import FileFormatError, InputError, MissingFileError, RunFolderError
from cryofire.geometry.grids import half_plane
from cryofire.inference.encoder import PoseEncoder
from cryofire.physics.imaging import ImageBatch
from cryofire.training.model_file import ENCODER, MODEL, SCHEMA, load_model, save_model

from .toy_model import BOX, TruthEncoder, toy_model, write_toy

SETTINGS = EncoderSettings(
    max_shell=6, angles=16, turns=8, directions=12, fine_directions=20, width=16, blocks=1, hidden=16
)


def fresh_encoder() -> PoseEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        encoder = PoseEncoder(SETTINGS, BOX, 1, 0.4)
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    encoder.look_at(toy_model().maps)
    return encoder


def some_batch() -> ImageBatch:
    plane, generator = half_plane(BOX, 12), torch.Generator().manual_seed(0)
    data = torch.randn(5, len(plane), dtype=torch.complex64, generator=generator)
    return ImageBatch(data, torch.randn(5, len(plane), generator=generator), plane)


def test_a_loaded_model_says_exactly_what_the_saved_one_said(tmp_path: Path) -> None:
    model = replace(toy_model(), encoder=fresh_encoder())
    model = replace(model, glimpsed=replace(model.latents, centers=0.5 * model.latents.centers))
    save_model(tmp_path / "model", model)
    for folder in (tmp_path, tmp_path / "model"):  # a run folder, or the model alone
        again = load_model(folder)
        assert again.digest() == model.digest()
        assert again.encoder is not None
        assert model.encoder is not None
        centres = torch.zeros(5, 2)
        mine, theirs = (one.posterior(some_batch(), centres) for one in (model.encoder, again.encoder))
        for field in fields(mine):
            assert torch.equal(getattr(mine, field.name), getattr(theirs, field.name)), field.name
        point = torch.tensor([0.3])
        assert torch.equal(again.decode(point), model.decode(point))
        assert torch.equal(again.reference.noise, model.reference.noise)
        assert (again.max_shell, again.grid, again.priors.shift_std_px) == (
            model.max_shell, model.grid, model.priors.shift_std_px,
        )  # fmt: skip
        latents, deviations = np.linspace(-3, 3, 50)[:, None], np.full((50, 1), 0.2)
        for said, heard in zip(
            model.latents.states(latents, deviations), again.latents.states(latents, deviations), strict=True
        ):
            np.testing.assert_array_equal(said, heard)
        np.testing.assert_array_equal(again.latents.sample, model.latents.sample)
        assert again.glimpsed is not None
        np.testing.assert_array_equal(again.glimpsed.centers, 0.5 * model.latents.centers)


def test_a_model_without_encoder_replaces_one_with(tmp_path: Path) -> None:
    save_model(tmp_path, replace(toy_model(), encoder=fresh_encoder()))
    save_model(tmp_path, toy_model())
    assert load_model(tmp_path).encoder is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [MODEL]


def test_different_models_have_different_digests() -> None:
    model = toy_model()
    assert model.digest() == toy_model().digest()
    assert model.digest() != replace(model, maps=model.maps * 1.001).digest()
    assert model.digest() != replace(model, encoder=fresh_encoder()).digest()


def with_metadata(path: Path, **changes: str) -> None:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    save_file(load_file(path), path, {**metadata, **changes})


@pytest.mark.parametrize("other", [-1, 1])
@pytest.mark.parametrize("name", [MODEL, ENCODER])
def test_another_schema_is_refused(name: str, other: int, tmp_path: Path) -> None:
    save_model(tmp_path, replace(toy_model(), encoder=fresh_encoder()))
    with_metadata(tmp_path / name, schema=str(SCHEMA + other))
    with pytest.raises(RunFolderError, match=rf"schema {SCHEMA + other}, this version reads {SCHEMA}"):
        load_model(tmp_path)


def test_a_damaged_file_is_reported(tmp_path: Path) -> None:
    save_model(tmp_path, toy_model())
    content = (tmp_path / MODEL).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"nonsense" * 100):
        (tmp_path / MODEL).write_bytes(damaged)
        with pytest.raises(FileFormatError, match="damaged"):
            load_model(tmp_path)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    save_model(tmp_path, replace(toy_model(), encoder=fresh_encoder()))
    (tmp_path / ENCODER).rename(tmp_path / "elsewhere")
    with pytest.raises(FileFormatError, match="encoder of the model is missing"):
        load_model(tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / ENCODER)
    with_metadata(tmp_path / ENCODER, values=json.dumps({"kind": "another"}))
    with pytest.raises(FileFormatError, match="of a kind that this version cannot read"):
        load_model(tmp_path)
    with_metadata(tmp_path / MODEL, values=json.dumps({"box": BOX}))
    with pytest.raises(FileFormatError, match="a part of the model is missing"):
        load_model(tmp_path)


def test_weights_that_do_not_fit_are_reported(tmp_path: Path) -> None:
    save_model(tmp_path, replace(toy_model(), encoder=fresh_encoder()))
    from safetensors import safe_open

    with safe_open(tmp_path / ENCODER, "pt") as file:
        metadata = dict(file.metadata())
    save_file({"units": torch.zeros(2)}, tmp_path / ENCODER, metadata)
    with pytest.raises(FileFormatError, match="of a kind that this version cannot read"):
        load_model(tmp_path)


def test_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="does not exist"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match="holds no model"):
        load_model(tmp_path)


def test_an_encoder_that_has_no_file_is_not_taken_for_one(tmp_path: Path) -> None:
    truth = write_toy(tmp_path / "set", 3)
    save_model(tmp_path, toy_model(TruthEncoder(truth, 0.1)))
    with pytest.raises(FileFormatError, match="of a kind that this version cannot read"):
        load_model(tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cryofire.training.model_file.save", full)
    with pytest.raises(InputError, match="No space left"):
        save_model(tmp_path, toy_model())
    assert list(tmp_path.iterdir()) == []
