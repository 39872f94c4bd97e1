"""Finding stacks: where they are looked for, and that no stack is taken for another."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryofire.errors import MissingFileError
from cryofire.formats.paths import find_stacks


def touched(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_relative_to_the_table_and_to_the_project_folder(tmp_path: Path) -> None:
    table = tmp_path / "project" / "Refine3D" / "job010" / "run_data.star"
    beside = touched(table.parent / "a.mrcs")
    extracted = touched(tmp_path / "project" / "Extract" / "job005" / "b.mrcs")
    assert find_stacks(["a.mrcs", "Extract/job005/b.mrcs"], table) == (beside, extracted)


def test_absolute_names(tmp_path: Path) -> None:
    stack = touched(tmp_path / "elsewhere" / "a.mrcs")
    assert find_stacks([str(stack)], tmp_path / "set" / "a.star") == (stack,)


def test_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = touched(tmp_path / "here" / "sub" / "a.mrcs")
    monkeypatch.chdir(tmp_path / "here")
    assert find_stacks(["sub/a.mrcs"], tmp_path / "there" / "a.star") == (stack,)


def test_a_table_that_is_a_link_is_followed(tmp_path: Path) -> None:
    stack = touched(tmp_path / "project" / "a.mrcs")
    touched(tmp_path / "project" / "real.star")
    link = tmp_path / "link.star"
    link.symlink_to(tmp_path / "project" / "real.star")
    assert find_stacks(["a.mrcs"], link) == (stack,)


def test_data_folder_comes_before_the_folder_of_the_table(tmp_path: Path) -> None:
    touched(tmp_path / "a.mrcs")
    wanted = touched(tmp_path / "data" / "a.mrcs")
    assert find_stacks(["a.mrcs"], tmp_path / "a.star", tmp_path / "data") == (wanted,)


def test_endings_are_matched_below_the_data_folder(tmp_path: Path) -> None:
    wanted = touched(tmp_path / "data" / "extract" / "a.mrcs")
    assert find_stacks(["J19/extract/a.mrcs"], tmp_path / "a.star", tmp_path / "data") == (wanted,)
    assert find_stacks(["/gone/J19/extract/a.mrcs"], tmp_path / "a.star", tmp_path / "data") == (wanted,)
    flat = touched(tmp_path / "flat" / "a.mrcs")
    assert find_stacks(["J19/extract/a.mrcs"], tmp_path / "a.star", tmp_path / "flat") == (flat,)


def test_equal_file_names_in_several_folders_are_kept_apart(tmp_path: Path) -> None:
    names = ["Extract/day1/mic.mrcs", "Extract/day2/mic.mrcs"]
    one, two = (touched(tmp_path / "data" / day / "mic.mrcs") for day in ("day1", "day2"))
    assert find_stacks(names, tmp_path / "a.star", tmp_path / "data") == (one, two)


def test_a_file_name_that_two_stacks_share_is_never_enough(tmp_path: Path) -> None:
    names = ["day1/mic.mrcs", "day2/mic.mrcs"]
    touched(tmp_path / "data" / "mic.mrcs")
    with pytest.raises(MissingFileError, match="2 of 2"):
        find_stacks(names, tmp_path / "a.star", tmp_path / "data")


def test_every_place_tried_is_told(tmp_path: Path) -> None:
    table, datadir = tmp_path / "project" / "job" / "a.star", tmp_path / "data"
    datadir.mkdir()
    with pytest.raises(MissingFileError) as caught:
        find_stacks(["sub/a.mrcs"], table, datadir)
    tried = ["data/sub/a.mrcs", "data/a.mrcs", "project/job/sub/a.mrcs", "project/sub/a.mrcs", "project/job/a.mrcs"]
    for place in tried:
        assert str(tmp_path / place) in str(caught.value)
    assert "--datadir" in str(caught.value) and str(table) in str(caught.value)


def test_wrong_data_folder_and_impossible_names(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="data folder does not exist"):
        find_stacks(["a.mrcs"], tmp_path / "a.star", tmp_path / "none")
    for name in ("x" * 5000, "a\0b", "", "."):
        with pytest.raises(MissingFileError):
            find_stacks([name], tmp_path / "a.star")
