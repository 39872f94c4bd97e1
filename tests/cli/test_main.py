"""What a user reads where a program would end in a traceback."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cryofire.cli import main as entry


def failing_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(entry, "_module", lambda _: SimpleNamespace(configure=lambda parser: None, run=fail))


@pytest.mark.parametrize(
    ("error", "advice"),
    [(MemoryError(), "--box"), (torch.OutOfMemoryError("CUDA out of memory"), "CUDA_VISIBLE_DEVICES")],
)
def test_a_full_memory_is_a_message(
    error: Exception, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing_with(monkeypatch, error)
    assert entry.main(["reconstruct"]) == 1
    said = capsys.readouterr().err
    assert advice in said
    assert "The same command continues where it was." in said


def test_an_error_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(monkeypatch, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        entry.main(["reconstruct"])
