"""Files of cryoSPARC: round trips in both containers, joins by uid, and files that are wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryofire.errors import FileFormatError, InputError, MissingFileError, TableError
from cryofire.formats.cryosparc import (
    CSDAT_MAGIC,
    covers,
    join_by_uid,
    passthrough_candidates,
    read_cs,
    with_fields,
    write_cs,
)

REAL_FILES = ["cryosparc_P12_J24_001_particles.cs", "empiar10025_t20s_cryosparc_P9_J209_000_particles.cs"]


def some_rows() -> np.ndarray:
    rows = np.zeros(4, dtype=[("uid", "<u8"), ("blob/path", "S8"), ("blob/shape", "<u4", 2)])
    rows["uid"] = [2**63 + 1, 7, 2**63, 1]
    rows["blob/path"] = [b"a.mrc", b"", b"b.mrc", b"c.mrc"]
    rows["blob/shape"] = np.arange(8).reshape(4, 2)
    return rows


def test_round_trip_is_exact(tmp_path: Path) -> None:
    write_cs(tmp_path / "a.cs", some_rows())
    again = read_cs(tmp_path / "a.cs")
    assert again.dtype == some_rows().dtype
    np.testing.assert_array_equal(again, some_rows())


@pytest.mark.parametrize("name", REAL_FILES)
def test_round_trip_of_real_files_is_exact(shared_data: Path, tmp_path: Path, name: str) -> None:
    rows = read_cs(shared_data / "metadata" / name)
    write_cs(tmp_path / "a.cs", rows)
    again = read_cs(tmp_path / "a.cs")
    assert again.dtype == rows.dtype and again.tobytes() == rows.tobytes()


def test_headers_longer_than_numpy_allows(tmp_path: Path) -> None:
    rows = np.zeros(2, dtype=[("uid", "<u8"), *((f"group{i}/" + "x" * 100, "<f4") for i in range(700))])
    with pytest.warns(UserWarning, match="format 2.0"):
        write_cs(tmp_path / "a.cs", rows)
    assert read_cs(tmp_path / "a.cs").dtype == rows.dtype


def test_compressed_container(shared_data: Path, tmp_path: Path) -> None:
    dataset = pytest.importorskip("cryosparc.dataset", reason="cryosparc-tools is not installed")
    for name in REAL_FILES:
        path = shared_data / "metadata" / name
        dataset.Dataset.load(path).save(tmp_path / name, format=dataset.CSDAT_FORMAT)
        assert (tmp_path / name).read_bytes().startswith(CSDAT_MAGIC)
        rows, expected = read_cs(tmp_path / name), read_cs(path)
        for field in expected.dtype.names or ():
            np.testing.assert_array_equal(rows[field], expected[field])


def test_compressed_container_without_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryosparc.dataset", None)
    (tmp_path / "a.cs").write_bytes(CSDAT_MAGIC + bytes(20))
    with pytest.raises(FileFormatError, match="cryosparc-tools") as caught:
        read_cs(tmp_path / "a.cs")
    assert "pip install" in str(caught.value.hint)


def test_join_keeps_order_and_own_values() -> None:
    rows = some_rows()
    other = np.zeros(5, dtype=[("uid", "<u8"), ("blob/path", "S8"), ("ctf/df1_A", "<f4")])
    other["uid"] = [1, 99, *rows["uid"][:3]]
    other["ctf/df1_A"] = [4, 0, 1, 2, 3]
    other["blob/path"] = b"wrong"
    joined = join_by_uid(rows, other, Path("other.cs"))
    np.testing.assert_array_equal(joined["ctf/df1_A"], [1, 2, 3, 4])
    for name in rows.dtype.names or ():
        np.testing.assert_array_equal(joined[name], rows[name])
    assert covers(other, rows) and not covers(rows, other)
    with pytest.raises(TableError, match="lacks particles"):
        join_by_uid(other, rows, Path("rows.cs"))


def test_join_with_an_empty_table() -> None:
    rows = some_rows()
    assert not covers(rows[:0], rows) and covers(rows, rows[:0]) and covers(rows[:0], rows[:0])
    assert len(join_by_uid(rows[:0], rows, Path("a.cs"))) == 0


def test_fields_are_set_in_place_or_appended() -> None:
    shape, posterior = np.ones((4, 2)), np.arange(4.0)
    changed = with_fields(some_rows(), [("blob/shape", shape), ("class/posterior", posterior)])
    assert changed.dtype.names == ("uid", "blob/path", "blob/shape", "class/posterior")
    assert changed.dtype["blob/shape"] == some_rows().dtype["blob/shape"]
    np.testing.assert_array_equal(changed["blob/shape"], shape)
    np.testing.assert_array_equal(changed["class/posterior"], posterior)
    np.testing.assert_array_equal(changed["uid"], some_rows()["uid"])


def test_passthrough_candidates_lie_beside_the_file(tmp_path: Path) -> None:
    for name in ("J1_passthrough_particles.cs", "J1_particles.cs", "passthrough.txt"):
        (tmp_path / name).touch()
    found = passthrough_candidates(tmp_path / "J1_particles.cs")
    assert [path.name for path in found] == ["J1_passthrough_particles.cs"]
    assert passthrough_candidates(tmp_path / "J1_passthrough_particles.cs") == ()


def test_wrong_files(tmp_path: Path) -> None:
    path = tmp_path / "a.cs"
    with pytest.raises(MissingFileError):
        read_cs(path)
    path.write_bytes(b"hello world")
    with pytest.raises(FileFormatError, match="first bytes"):
        read_cs(path)
    write_cs(path, some_rows())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(FileFormatError, match="4 rows announced, 2 complete"):
        read_cs(path)
    write_cs(path, some_rows()[["blob/path"]])
    with pytest.raises(TableError, match="uid"):
        read_cs(path)
    with path.open("wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(FileFormatError, match="table of plain values"):
        read_cs(path)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    rows = np.zeros(1, dtype=[("uid", "<u8"), ("blob/path", "O")])
    with (tmp_path / "a.cs").open("wb") as file:
        np.save(file, rows, allow_pickle=True)
    with pytest.raises(FileFormatError, match="plain values"):
        read_cs(tmp_path / "a.cs")


@settings(max_examples=80, deadline=None)
@given(place=st.integers(0, 250), put=st.binary(max_size=6), keep=st.integers(0, 400))
def test_damaged_files_give_rows_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, put: bytes, keep: int
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.cs"
    write_cs(path, some_rows())
    content = path.read_bytes()
    path.write_bytes((content[:place] + put + content[place + len(put) :])[:keep])
    try:
        rows = read_cs(path)
    except InputError as error:
        assert str(path) in str(error)
        return
    assert "uid" in (rows.dtype.names or ())
