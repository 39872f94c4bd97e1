"""Checkpoints come back as they were saved; a file that is none, or of another version, is refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cryofire.errors import RunFolderError
from cryofire.training.checkpoint import SCHEMA, Checkpoint, load_checkpoint, save_checkpoint


def test_tensors_and_values_come_back(tmp_path: Path) -> None:
    sliced = torch.arange(12.0).reshape(3, 4)[:, ::2]
    save_checkpoint(
        tmp_path / "one", Checkpoint({"sliced": sliced, "flags": torch.tensor([True, False])}, {"names": ["ä", "b"]})
    )
    loaded = load_checkpoint(tmp_path / "one")
    assert torch.equal(loaded.tensors["sliced"], sliced)
    assert loaded.tensors["flags"].tolist() == [True, False]
    assert loaded.values == {"names": ["ä", "b"]}
    assert [file.name for file in tmp_path.iterdir()] == ["one"]


def test_a_checkpoint_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    save_checkpoint(path, Checkpoint({"values": torch.zeros(1000)}, {}))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunFolderError, match="cannot be read") as raised:
        load_checkpoint(path)
    assert raised.value.file == path and "delete it" in (raised.value.hint or "")


@pytest.mark.parametrize("metadata", [None, {"schema": str(SCHEMA - 1), "values": "{}"}])
def test_a_checkpoint_of_another_version_is_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    path = tmp_path / "earlier"
    save_file({"values": torch.zeros(3)}, path, metadata)
    with pytest.raises(RunFolderError, match=f"this version reads {SCHEMA}") as raised:
        load_checkpoint(path)
    assert "start in a new folder" in (raised.value.hint or "")
