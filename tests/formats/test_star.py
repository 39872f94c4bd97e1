"""STAR files: exact round trips, agreement with another reader, and files that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import starfile
from hypothesis import given, settings
from hypothesis import strategies as st

from cryofire.errors import FileFormatError, InputError, MissingFileError, TableError
from cryofire.formats import star
from cryofire.formats.star import float_column, integer_column, read_star, text_column, write_star

REAL_FILES = [
    "particles/relion31.star",
    "particles/empiar_10076_7.star",
    "particles/sample_particles_relion30.star",
    "particles/sample_particles_relion31.star",
    "metadata/betagal_relion_tutorial_images.star",
    "reference_set/truth.star",
    "micrographs/fei_picks_bin3_96.star",
]

TWO_BLOCKS = """
# version 50001

data_general

_rlnTomoSubTomosAre2DStacks                       0
_rlnName   "two words"   # a comment

data_particles

loop_
_rlnImageName #1
_rlnVoltage #2 [kV]
_rlnNote #3
000001@a.mrcs 300.000000 "in the ice"

000002@a.mrcs 2e2 ''  # last
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_blocks_values_quotes_and_comments(tmp_path: Path) -> None:
    general, particles = read_star(written(tmp_path / "a.star", TWO_BLOCKS))
    assert (general.name, general.is_loop, len(general)) == ("general", False, 1)
    assert general.text("rlnName") == ["two words"]
    assert (particles.name, particles.is_loop, len(particles)) == ("particles", True, 2)
    assert particles.text("rlnNote") == ["in the ice", ""]
    np.testing.assert_array_equal(particles.floats("rlnVoltage"), [300.0, 200.0])
    assert particles.take(np.array([1])).text("rlnImageName") == ["000002@a.mrcs"]
    assert "rlnVoltage" in particles and "rlnDefocusU" not in particles


def test_line_ends_of_other_systems(tmp_path: Path) -> None:
    expected = [dict(block.columns) for block in read_star(written(tmp_path / "a.star", TWO_BLOCKS))]
    for end in ("\r\n", "\r"):
        (tmp_path / "b.star").write_bytes(TWO_BLOCKS.replace("\n", end).encode())
        found = [dict(block.columns) for block in read_star(tmp_path / "b.star")]
        for one, other in zip(found, expected, strict=True):
            assert {label: column.tolist() for label, column in one.items()} == {
                label: column.tolist() for label, column in other.items()
            }


@pytest.mark.parametrize("name", REAL_FILES)
def test_round_trip_of_real_files_is_exact(shared_data: Path, tmp_path: Path, name: str) -> None:
    blocks = read_star(shared_data / name)
    write_star(tmp_path / "a.star", blocks)
    again = read_star(tmp_path / "a.star")
    assert [block.name for block in again] == [block.name for block in blocks]
    for one, other in zip(again, blocks, strict=True):
        assert list(one.columns) == list(other.columns)
        assert all(np.array_equal(one.columns[label], other.columns[label]) for label in other.columns)


@pytest.mark.parametrize("name", REAL_FILES)
def test_another_reader_finds_the_same(shared_data: Path, tmp_path: Path, name: str) -> None:
    blocks = read_star(shared_data / name)
    write_star(tmp_path / "a.star", blocks)
    for path in (shared_data / name, tmp_path / "a.star"):
        tables = starfile.read(path, always_dict=True)
        for block in blocks:
            table = tables[block.name]
            assert list(table.columns) == list(block.columns)
            for label in table.columns:
                if pd.api.types.is_numeric_dtype(table[label]):
                    np.testing.assert_allclose(block.floats(label), table[label], rtol=1e-12)
                else:
                    assert block.text(label) == list(table[label])


def test_version_comments_are_kept_and_never_invented(tmp_path: Path) -> None:
    text = "# version 50001\n\ndata_optics\n\n_a 1\n\n# version 30001\n\ndata_particles\n_a 1\ndata_\n_a 1\n"
    blocks = read_star(written(tmp_path / "a.star", text))
    assert [block.version for block in blocks] == [50001, 30001, None]
    write_star(tmp_path / "b.star", blocks)
    assert [block.version for block in read_star(tmp_path / "b.star")] == [50001, 30001, None]
    assert (tmp_path / "b.star").read_text().count("# version") == 2


def test_columns_are_replaced_in_place_and_appended_behind(tmp_path: Path) -> None:
    particles = read_star(written(tmp_path / "a.star", TWO_BLOCKS))[1]
    changed = particles.updated(
        {"rlnVoltage": float_column(np.array([1.0, 2.5]), 2), "rlnNew": integer_column(np.array([7, -8]))}
    )
    write_star(tmp_path / "b.star", [changed])
    (again,) = read_star(tmp_path / "b.star")
    assert list(again.columns) == ["rlnImageName", "rlnVoltage", "rlnNote", "rlnNew"]
    assert again.text("rlnVoltage") == ["1.00", "2.50"]
    np.testing.assert_array_equal(again.integers("rlnNew"), [7, -8])


WORDS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\"'", exclude_categories=["Cc", "Zl", "Zp"]), max_size=9
)


@settings(deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=5))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, values: list[str]) -> None:
    path = tmp_path_factory.mktemp("star") / "a.star"
    (block,) = read_star(written(path, "data_\nloop_\n_a #1\n" + "x\n" * len(values)))
    write_star(path, [block.updated({"b": text_column(values)})])
    assert read_star(path)[0].text("b") == values


def test_empty_tables(tmp_path: Path) -> None:
    (block,) = read_star(written(tmp_path / "a.star", "data_particles\nloop_\n_rlnImageName #1\n_rlnVoltage #2\n"))
    assert len(block) == 0 and len(block.floats("rlnVoltage")) == 0
    write_star(tmp_path / "b.star", [block])
    assert list(read_star(tmp_path / "b.star")[0].columns) == ["rlnImageName", "rlnVoltage"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no line that begins a data block"),
        ("hello", "no line that begins a data block"),
        ("data_a\nloop_\n_x #1\n_y #2\n1 2\n1\n", "row has 1 values .* 2 columns .*row 2"),
        ("data_a\nloop_\n_x #1\n1 2 3\n", "row has 3 values"),
        ("data_a\nloop_\n_x #1\n_x #2\n1 2\n", "two columns of one name"),
        ("data_a\nloop_\n1 2\n", "no columns"),
        ("data_a\n_x 1 2\n", "cannot understand"),
        ("data_a\n_x 1\ndata_a\n_x 1\n", "same name"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path / "a.star", text)
    with pytest.raises(FileFormatError, match=said) as caught:
        read_star(path)
    assert str(path) in str(caught.value)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        read_star(tmp_path / "none.star")
    with pytest.raises(MissingFileError):
        read_star(tmp_path)
    (tmp_path / "a.star").write_bytes(bytes(100))
    with pytest.raises(FileFormatError, match="binary"):
        read_star(tmp_path / "a.star")


def test_values_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    (block,) = read_star(written(tmp_path / "a.star", "data_\nloop_\n_rlnVoltage #1\n300\n300\nhigh\n2.5\n"))
    with pytest.raises(TableError, match="'high' is not a number") as caught:
        block.floats("rlnVoltage")
    assert (caught.value.row, caught.value.field) == (3, "rlnVoltage")
    with pytest.raises(TableError, match=r"'2\.5' is not a whole number"):
        block.take(np.array([0, 3])).integers("rlnVoltage")
    with pytest.raises(TableError, match="column is missing"):
        block.floats("rlnDefocusU")


@settings(max_examples=80, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text("data_loop_#\"' \n\t1x.", max_size=80).map(str.encode)))
def test_any_bytes_give_blocks_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.star"
    path.write_bytes(content)
    try:
        blocks = read_star(path)
    except InputError:
        return
    for block in blocks:
        for label in block.columns:
            assert len(block.text(label)) == len(block)


def test_long_tables_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(star, "_ROWS_AT_ONCE", 3)
    values = [f"{'x' * (row % 5)}{row}" for row in range(10)]
    path = written(tmp_path / "a.star", "data_\nloop_\n_a #1\n" + "\n".join(values) + "\n")
    write_star(tmp_path / "b.star", read_star(path))
    assert read_star(path)[0].text("a") == read_star(tmp_path / "b.star")[0].text("a") == values
    path.write_text(path.read_text() + "two values\n")
    with pytest.raises(FileFormatError, match="row 11"):
        read_star(path)
