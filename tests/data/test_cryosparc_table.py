"""cryoSPARC tables: values, passthrough files, several classes, and tables that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib import recfunctions
from scipy.spatial.transform import Rotation

from cryofire.data.particles import CryosparcSource
from cryofire.data.read import read_particles
from cryofire.errors import FileFormatError, InputError, MissingFileError, TableError
from cryofire.formats.cryosparc import read_cs, with_fields


def group(rows: np.ndarray, *names: str) -> np.ndarray:
    """The uid and the fields of some groups."""
    return rows[["uid", *(name for name in rows.dtype.names or () if name.partition("/")[0] in names)]].copy()


def test_values(project: Any) -> None:
    table = read_particles(project.cs())
    assert [path.name for path in table.stack_paths] == ["mic.mrcs"]
    np.testing.assert_array_equal(table.frame, [1, 0, 2])
    np.testing.assert_array_equal(table.box, 8)
    np.testing.assert_array_equal(table.pixel_size, 2)
    np.testing.assert_array_equal(table.optics.defocus_u, [10000, 11000, 12000])
    np.testing.assert_array_equal(table.optics.defocus_v, [9000, 10000, 11000])
    np.testing.assert_array_equal(table.optics.voltage_kv, 300)
    np.testing.assert_allclose(table.optics.defocus_angle, [0.5, -0.5, 4.0])
    np.testing.assert_allclose(table.optics.cs_mm, 2.7, rtol=1e-6)
    assert table.poses is not None and table.labels is not None
    np.testing.assert_array_equal(table.poses.shifts, [[-4.0, 8.0], [0, 0], [-12.0, -2.0]])
    np.testing.assert_array_equal(table.poses.rotations[1], np.eye(3))
    expected = Rotation.from_rotvec(project.rows()["alignments3D/pose"][0].astype(float)).as_matrix().T
    np.testing.assert_allclose(table.poses.rotations[0], expected)
    np.testing.assert_array_equal(table.labels, [0, 1, 0])
    assert table.notes == ()


def test_shifts_are_in_pixels_of_the_alignment(project: Any) -> None:
    rows = project.rows()
    rows["alignments3D/psize_A"] = 8.0
    poses = read_particles(project.cs(rows)).poses
    assert poses is not None
    np.testing.assert_array_equal(poses.shifts[0], [-8.0, 16.0])
    without = recfunctions.drop_fields(rows, "alignments3D/psize_A")
    poses = read_particles(project.cs(without)).poses
    assert poses is not None
    np.testing.assert_array_equal(poses.shifts[0], [-2.0, 4.0])


def test_passthrough_beside_the_file_is_joined_by_uid(project: Any) -> None:
    rows = project.rows()
    expected = read_particles(project.cs(rows))
    project.cs(group(rows, "blob", "ctf")[[2, 0, 1]], "J7_passthrough_particles.cs")
    strangers = group(rows, "blob", "ctf")
    strangers["uid"] += 1
    project.cs(strangers, "J6_passthrough_particles.cs")
    table = read_particles(project.cs(group(rows, "alignments3D"), "J7_010_particles.cs"))
    np.testing.assert_array_equal(table.frame, expected.frame)
    np.testing.assert_array_equal(table.optics.defocus_u, expected.optics.defocus_u)
    assert isinstance(table.source, CryosparcSource)
    assert [path.name for path in table.source.passthrough] == ["J7_passthrough_particles.cs"]


def test_passthrough_that_is_named(project: Any) -> None:
    rows = project.rows()
    poses = project.cs(group(rows, "alignments3D"), "poses.cs")
    table = read_particles(project.cs(group(rows, "blob", "ctf")[[1, 2]]), passthrough=[poses])
    assert table.poses is not None
    np.testing.assert_array_equal(table.poses.shifts, [[0, 0], [-12.0, -2.0]])
    with pytest.raises(TableError, match="lacks particles") as caught:
        read_particles(project.cs(rows), passthrough=[project.cs(rows[:2], "some.cs")])
    assert caught.value.field == "uid"


def test_most_probable_of_several_classes(project: Any) -> None:
    rows = project.rows()
    base = group(rows, "blob", "ctf")
    probability = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], dtype=np.float32)
    columns = []
    for k in range(2):
        name = f"alignments_class_{k}"
        columns += [
            (f"{name}/pose", rows["alignments3D/pose"] * (k + 1)),
            (f"{name}/shift", rows["alignments3D/shift"] + k),
            (f"{name}/psize_A", np.full(3, 2.0, dtype=np.float32)),
            (f"{name}/class_posterior", probability[:, k]),
        ]
    one = read_particles(project.cs(with_fields(base, columns)))
    pose = np.stack([rows["alignments3D/pose"], rows["alignments3D/pose"] * 2], axis=1)
    shift = np.stack([rows["alignments3D/shift"], rows["alignments3D/shift"] + 1], axis=1)
    multi = [("alignments3D_multi/pose", pose), ("alignments3D_multi/shift", shift)]
    multi += [("alignments3D_multi/class_posterior", probability)]
    other = read_particles(project.cs(with_fields(base, multi)))
    for table in (one, other):
        assert table.labels is not None and table.poses is not None
        np.testing.assert_array_equal(table.labels, [0, 1, 1])
        np.testing.assert_array_equal(table.poses.shifts, [[-2.0, 4.0], [-2.0, -2.0], [-8.0, -3.0]])
    assert one.poses is not None and other.poses is not None
    np.testing.assert_allclose(one.poses.rotations, other.poses.rotations, atol=1e-7)


def test_no_alignment_is_no_pose(project: Any) -> None:
    table = read_particles(project.cs(group(project.rows(), "blob", "ctf")))
    assert table.poses is None and table.labels is None


def test_beam_tilt_is_noted(project: Any) -> None:
    rows = project.rows()
    rows["ctf/tilt_A"][1, 0] = 0.1
    assert "beam tilt" in read_particles(project.cs(rows)).notes[0]


@pytest.mark.parametrize("name", ["blob/path", "blob/idx", "blob/psize_A", "ctf/df1_A", "ctf/accel_kv", "blob/shape"])
def test_missing_fields_are_named(project: Any, name: str) -> None:
    with pytest.raises(TableError) as caught:
        read_particles(project.cs(recfunctions.drop_fields(project.rows(), name)))
    assert caught.value.field == name and "passthrough" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ctf/accel_kv", 0),
        ("ctf/df1_A", np.nan),
        ("ctf/cs_mm", -1),
        ("ctf/amp_contrast", 2),
        ("blob/psize_A", 0),
        ("alignments3D/psize_A", 0),
        ("blob/shape", 9),
        ("blob/shape", (8, 7)),
        ("blob/shape", 0),
        ("blob/shape", 2**32 - 1),
    ],
)
def test_impossible_values_are_named(project: Any, name: str, value: Any) -> None:
    rows = project.rows()
    rows[name][1] = value
    with pytest.raises(TableError) as caught:
        read_particles(project.cs(rows))
    assert (caught.value.row, caught.value.field) == (2, name)


@pytest.mark.parametrize("name", ["alignments3D/pose", "alignments3D/shift"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_poses_that_are_not_finite_are_named(project: Any, name: str, value: float) -> None:
    rows = project.rows()
    rows[name][2] = value
    with pytest.raises(TableError, match="not finite") as caught:
        read_particles(project.cs(rows))
    assert caught.value.row == 3


@pytest.mark.parametrize("name", ["blob/idx", "blob/shape", "alignments3D/class", "ctf/df1_A"])
def test_fields_of_a_wrong_type_are_named(project: Any, name: str) -> None:
    rows = project.rows()
    others = recfunctions.drop_fields(rows, name)
    with pytest.raises(TableError, match=r"values of type \|S3") as caught:
        read_particles(project.cs(with_fields(others, [(name, np.full(3, b"abc"))])))
    assert caught.value.field == name


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 1400), put=st.binary(max_size=12), keep=st.integers(0, 3000))
def test_spoilt_files_give_a_table_or_an_input_error(project: Any, place: int, put: bytes, keep: int) -> None:
    content = project.cs().read_bytes()
    path = project.folder / "spoilt.cs"
    path.write_bytes((content[:place] + put + content[place + len(put) :])[: max(keep, place)])
    try:
        table = read_particles(path, stacks=False)
    except InputError as error:
        assert str(path) in str(error)
        return
    assert len(table) == 3 and np.all(np.isfinite(table.optics.defocus_u))


def test_other_wrong_files(project: Any) -> None:
    with pytest.raises(TableError, match="no particles"):
        read_particles(project.cs(project.rows()[:0]))
    with pytest.raises(MissingFileError):
        read_particles(project.folder / "none.cs")
    with pytest.raises(MissingFileError):
        read_particles(project.folder / "none.txt")
    (project.folder / "a.txt").touch()
    with pytest.raises(FileFormatError, match=r"\.star file or a \.cs file"):
        read_particles(project.folder / "a.txt")


@pytest.mark.parametrize(
    ("name", "particles", "box"),
    [
        ("cryosparc_P12_J24_001_particles.cs", 2019, 180),
        ("empiar10025_t20s_cryosparc_P9_J209_000_particles.cs", 11764, 256),
    ],
)
def test_real_files(shared_data: Path, name: str, particles: int, box: int) -> None:
    path = shared_data / "metadata" / name
    table, rows = read_particles(path, stacks=False), read_cs(path)
    assert len(table) == particles
    np.testing.assert_array_equal(table.box, box)
    assert table.poses is not None
    gram = table.poses.rotations @ table.poses.rotations.swapaxes(1, 2)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=1e-12)
    names = [str(table.stack_paths[stack]) for stack in table.stack]
    assert names == [path.decode() for path in rows["blob/path"]]
    np.testing.assert_allclose(table.poses.shifts, -rows["alignments3D/shift"] * table.pixel_size[:, None], rtol=1e-6)
