"""The short benchmark calls the long ones by words that they understand."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import short


@pytest.mark.parametrize("name", list(short.pieces(Path("work"))))
def test_a_piece_is_a_command_that_its_script_understands(name: str, tmp_path: Path) -> None:
    script, *words = short.pieces(tmp_path)[name]
    parser = importlib.import_module(script.removesuffix(".py")).parser()
    arguments = parser.parse_args([*words, "--json", str(tmp_path / f"{name}.json")])
    assert arguments.json == tmp_path / f"{name}.json"
