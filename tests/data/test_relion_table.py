"""RELION tables: versions, optics groups, pixel sizes, and tables that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryofire.data.read import read_particles
from cryofire.errors import FileFormatError, InputError, TableError
from cryofire.formats.conventions import rotations_from_relion
from cryofire.formats.mrc import stack_writer


def made_legacy(project: Any) -> None:
    """Turn the project's particles into a table of RELION 3.0, all of one stack."""
    for label, value in (("rlnVoltage", "300"), ("rlnSphericalAberration", "2.7"), ("rlnAmplitudeContrast", "0.1")):
        project.particles[label] = [value] * 4
    project.particles["rlnDetectorPixelSize"] = ["5.0"] * 4
    project.particles["rlnMagnification"] = ["25000.0"] * 4
    project.particles["rlnOriginX"] = project.particles.pop("rlnOriginXAngst")
    project.particles["rlnOriginY"] = project.particles.pop("rlnOriginYAngst")
    del project.particles["rlnOpticsGroup"]


@pytest.mark.parametrize("order", [("optics", "particles"), ("particles", "optics")])
def test_values_come_from_rows_and_optics_groups(project: Any, order: tuple[str, ...]) -> None:
    table = read_particles(project.star(order=order))
    assert [path.parent.name for path in table.stack_paths] == ["day1", "day2"]
    np.testing.assert_array_equal(table.stack, [0, 1, 0, 0])
    np.testing.assert_array_equal(table.frame, [1, 0, 0, 2])
    np.testing.assert_array_equal(table.pixel_size, [2, 3, 2, 2])
    np.testing.assert_array_equal(table.box, [8, 7, 8, 8])
    np.testing.assert_array_equal(table.optics.voltage_kv, [300, 200, 300, 300])
    np.testing.assert_array_equal(table.optics.cs_mm, [2.7, 0.01, 2.7, 2.7])
    np.testing.assert_array_equal(table.optics.defocus_u, [10000, 11000, 12000, 13000])
    np.testing.assert_array_equal(table.optics.defocus_v, [9000, 10000, 11000, 12000])
    np.testing.assert_array_equal(table.optics.amplitude_contrast, [0.1, 0.07, 0.1, 0.1])
    np.testing.assert_allclose(table.optics.defocus_angle, np.deg2rad([45, 0, -30, 90]))
    np.testing.assert_allclose(table.optics.phase_shift, [0, np.pi / 2, 0, 0])
    np.testing.assert_array_equal(table.optics.b_factor, 0)
    np.testing.assert_array_equal(table.optics.scale, 1)
    assert table.poses is not None
    np.testing.assert_array_equal(table.poses.shifts, [[-1.5, 1.0], [2.5, -0.5], [0, -3.0], [-4.0, 0]])
    angles = np.array([[10, 40, 70], [20, 50, -80], [30, 60, 90], [-40, 70, 100.0]])
    np.testing.assert_allclose(table.poses.rotations, rotations_from_relion(angles))
    assert table.labels is not None
    np.testing.assert_array_equal(table.labels, [1, 2, 1, 2])
    assert table.notes == ()


@pytest.mark.parametrize("block", ["", "particles"])
def test_version_3_0(project: Any, block: str) -> None:
    made_legacy(project)
    table = read_particles(project.star(order=(block,)))
    np.testing.assert_array_equal(table.pixel_size, 2.0)
    np.testing.assert_array_equal(table.box, [8, 7, 8, 8])
    assert table.poses is not None
    np.testing.assert_array_equal(table.poses.shifts, [[-3.0, 2.0], [5.0, -1.0], [0, -6.0], [-8.0, 0]])


def test_poses_are_none_without_all_three_angles(project: Any) -> None:
    del project.particles["rlnAngleTilt"]
    assert read_particles(project.star()).poses is None


def test_origins_are_zero_where_there_are_only_angles(project: Any) -> None:
    del project.particles["rlnOriginXAngst"]
    poses = read_particles(project.star()).poses
    assert poses is not None
    np.testing.assert_array_equal(poses.shifts, 0)


def test_table_alone_is_read_without_stacks(project: Any) -> None:
    path = project.star()
    (project.folder / "day1" / "mic.mrcs").unlink()
    table = read_particles(path, stacks=False)
    assert [str(path) for path in table.stack_paths] == ["day1/mic.mrcs", "day2/mic.mrcs"]
    np.testing.assert_array_equal(table.box, [8, 7, 8, 8])


def test_equal_file_names_in_two_folders_below_datadir(project: Any) -> None:
    path = project.star()
    elsewhere = path.parent / "sub" / "job" / "particles.star"
    elsewhere.parent.mkdir(parents=True)
    content = path.read_text().replace("@day", "@Extract/job1/day")
    elsewhere.write_text(content)
    table = read_particles(elsewhere, path.parent)
    assert [str(stack.relative_to(path.parent)) for stack in table.stack_paths] == ["day1/mic.mrcs", "day2/mic.mrcs"]


@pytest.mark.parametrize(
    ("label", "value", "note"),
    [
        ("rlnBeamTiltX", "0.2", "beam tilt"),
        ("rlnOddZernike", "[0,-1e-3,0]", "odd Zernike"),
        ("rlnEvenZernike", "[1.5,0]", "even Zernike"),
        ("rlnMtfFileName", "mtf.star", "MTF"),
    ],
)
def test_optics_outside_the_model_are_noted(project: Any, label: str, value: str, note: str) -> None:
    project.optics[label] = ["0" if label != "rlnMtfFileName" else '""', value]
    (told,) = read_particles(project.star()).notes
    assert note in told
    project.optics[label] = project.optics[label][:1] * 2
    assert read_particles(project.star()).notes == ()


def test_anisotropic_magnification_is_noted(project: Any) -> None:
    for label, value in (("rlnMagMat00", "1"), ("rlnMagMat01", "0"), ("rlnMagMat10", "0"), ("rlnMagMat11", "1")):
        project.optics[label] = [value] * 2
    assert read_particles(project.star()).notes == ()
    project.optics["rlnMagMat01"][1] = "0.01"
    assert "anisotropic magnification" in read_particles(project.star()).notes[0]


@pytest.mark.parametrize("label", ["rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped"])
def test_images_with_a_treated_ctf_are_refused(project: Any, label: str) -> None:
    project.optics[label] = ["0", "0"]
    read_particles(project.star())
    project.optics[label] = ["0", "1"]
    with pytest.raises(TableError) as caught:
        read_particles(project.star())
    assert caught.value.field == label and caught.value.hint


@pytest.mark.parametrize(
    "label",
    ["rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnImageName", "rlnOpticsGroup"],
)
def test_missing_columns_are_named(project: Any, label: str) -> None:
    del project.particles[label]
    with pytest.raises(TableError) as caught:
        read_particles(project.star())
    assert caught.value.field == label and str(project.folder / "particles.star") in str(caught.value)


@pytest.mark.parametrize("label", ["rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnImagePixelSize"])
def test_missing_optics_columns_are_named(project: Any, label: str) -> None:
    del project.optics[label]
    with pytest.raises(TableError) as caught:
        read_particles(project.star())
    assert caught.value.field == label and caught.value.hint


@pytest.mark.parametrize(
    ("label", "value", "field"),
    [
        ("rlnDefocusU", "nan", "rlnDefocusU"),
        ("rlnDefocusV", "inf", "rlnDefocusV"),
        ("rlnDefocusAngle", "north", "rlnDefocusAngle"),
        ("rlnPhaseShift", "nan", "rlnPhaseShift"),
        ("rlnOpticsGroup", "3", "rlnOpticsGroup"),
        ("rlnOpticsGroup", "1.5", "rlnOpticsGroup"),
        ("rlnImageName", "day1/mic.mrcs", "rlnImageName"),
        ("rlnImageName", "x@day1/mic.mrcs", "rlnImageName"),
        ("rlnImageName", "000000@day1/mic.mrcs", "rlnImageName"),
        ("rlnClassNumber", "A", "rlnClassNumber"),
        ("rlnAngleRot", "inf", "rlnAngleRot, rlnAngleTilt, rlnAnglePsi, rlnOrigin*"),
        ("rlnAngleRot", "nan", "rlnAngleRot, rlnAngleTilt, rlnAnglePsi, rlnOrigin*"),
        ("rlnOriginXAngst", "inf", "rlnAngleRot, rlnAngleTilt, rlnAnglePsi, rlnOrigin*"),
    ],
)
def test_impossible_values_are_named_with_their_row(project: Any, label: str, value: str, field: str) -> None:
    project.particles[label][2] = value
    with pytest.raises(TableError) as caught:
        read_particles(project.star())
    assert (caught.value.row, caught.value.field) == (3, field)


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("rlnVoltage", "0"),
        ("rlnSphericalAberration", "-1"),
        ("rlnAmplitudeContrast", "1.5"),
        ("rlnImagePixelSize", "0"),
        ("rlnImagePixelSize", "nan"),
        ("rlnImageSize", "9"),
        ("rlnImageSize", "nan"),
        ("rlnImageSize", "-8"),
    ],
)
def test_impossible_optics_are_named_with_the_first_row(project: Any, label: str, value: str) -> None:
    project.optics[label][1] = value
    with pytest.raises(TableError) as caught:
        read_particles(project.star())
    assert (caught.value.row, caught.value.field) == (2, label)


def test_two_optics_groups_of_one_number(project: Any) -> None:
    project.optics["rlnOpticsGroup"] = ["1", "1"]
    with pytest.raises(TableError, match="two of one number"):
        read_particles(project.star())


@pytest.mark.parametrize("label", ["rlnMagnification", "rlnDetectorPixelSize"])
def test_version_3_0_without_a_pixel_size(project: Any, label: str) -> None:
    made_legacy(project)
    project.particles[label][1] = "0"
    with pytest.raises(TableError) as caught:
        read_particles(project.star(order=("",)))
    assert caught.value.row == 2
    del project.particles[label]
    with pytest.raises(TableError, match="how large a pixel is"):
        read_particles(project.star(order=("",)))


def test_tables_of_other_things(project: Any) -> None:
    with pytest.raises(TableError, match="no table of particle images"):
        read_particles(project.star(order=("optics",)))
    for columns in (project.particles, project.optics):
        for values in columns.values():
            values.clear()
    with pytest.raises(TableError, match="no particles"):
        read_particles(project.star())


def test_three_dimensional_images_are_refused(project: Any) -> None:
    project.optics["rlnImageDimensionality"] = ["2", "3"]
    with pytest.raises(TableError, match="sub-tomograms"):
        read_particles(project.star())


def test_images_that_are_not_square_are_refused(project: Any) -> None:
    path = project.star()
    with stack_writer(project.folder / "day2" / "mic.mrcs", 7, 1.0) as writer:
        writer.append(np.ones((1, 7, 7)))
    stack = project.folder / "day2" / "mic.mrcs"
    content = bytearray(stack.read_bytes())
    content[0:4] = np.int32(5).tobytes()
    stack.write_bytes(content)
    with pytest.raises(FileFormatError, match="not square"):
        read_particles(path)


COLUMNS = [
    *("rlnImageName", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift", "rlnOpticsGroup"),
    *("rlnAngleRot", "rlnAnglePsi", "rlnOriginXAngst", "rlnClassNumber", "rlnVoltage", "rlnImagePixelSize"),
]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.integers(0, 3000),
    cut=st.integers(0, 40),
    put=st.text("0123456789.-+eEnaif@_ \n\"'#data_loop", max_size=12),
    dropped=st.sets(st.sampled_from(COLUMNS), max_size=3),
)
def test_spoilt_files_give_a_table_or_an_input_error(
    project: Any, place: int, cut: int, put: str, dropped: set[str]
) -> None:
    optics, particles = (
        {label: values for label, values in columns.items() if label not in dropped}
        for columns in (project.optics, project.particles)
    )
    whole = project._block("optics", optics) + project._block("particles", particles)
    path = project.folder / "spoilt.star"
    path.write_text(whole[:place] + put + whole[place + cut :])
    try:
        table = read_particles(path)
    except InputError as error:
        assert str(path) in str(error)
        return
    assert len(table) == len(table.optics.defocus_u) and np.all(np.isfinite(table.optics.defocus_u))


REAL_FILES = {
    "particles/relion31.star": (5, 256, 2.806),
    "particles/empiar_10076_7.star": (7, 320, 1.31),
    "particles/sample_particles_relion30.star": (17, 200, 1.338),
    "particles/sample_particles_relion31.star": (17, 200, 1.4),
    "reference_set/particles.star": (4000, 64, 7.54),
    "micrographs/fei_picks_bin3_96.star": (115, 96, 2.56134),
}


@pytest.mark.parametrize("name", REAL_FILES)
def test_real_files(shared_data: Path, name: str) -> None:
    table = read_particles(shared_data / name)
    particles, box, pixel_size = REAL_FILES[name]
    assert len(table) == particles
    np.testing.assert_array_equal(table.box, box)
    np.testing.assert_allclose(table.pixel_size, pixel_size, rtol=1e-4)


def test_versions_3_0_and_3_1_of_one_set_agree(shared_data: Path) -> None:
    """In row 15 the two files themselves differ."""
    old, new = (read_particles(shared_data / f"particles/sample_particles_relion{v}.star") for v in ("30", "31"))
    assert old.poses is not None and new.poses is not None
    rows = np.arange(17) != 14
    np.testing.assert_array_equal(old.poses.rotations[rows], new.poses.rotations[rows])
    old_origins_px = -old.poses.shifts / old.pixel_size[:, None]
    np.testing.assert_allclose(old_origins_px[rows], -new.poses.shifts[rows])  # the numbers were copied as they were
    np.testing.assert_array_equal(old.optics.voltage_kv, new.optics.voltage_kv)
    np.testing.assert_array_equal(old.optics.defocus_u, new.optics.defocus_u)
    np.testing.assert_array_equal(old.frame, new.frame)


def test_relion_tutorial_table(shared_data: Path) -> None:
    table = read_particles(shared_data / "metadata/betagal_relion_tutorial_images.star", stacks=False)
    assert len(table) == 6496 and table.poses is not None
    np.testing.assert_allclose(table.pixel_size, 14e4 / 39548)
    np.testing.assert_allclose(table.poses.shifts[0], -np.array([1.164659, 3.164659]) * 14e4 / 39548)
