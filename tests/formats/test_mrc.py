"""MRC maps and stacks: round trips, byte orders, modes, and files that are wrong."""

from __future__ import annotations

import gzip
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryofire.errors import FileFormatError, ImageError, InputError, MissingFileError
from cryofire.formats.mrc import open_stack, read_header, read_map, stack_writer, write_map


def a_stack(path: Path, frames: np.ndarray, pixel_size: float = 1.5, dtype: type = np.float32) -> Path:
    with stack_writer(path, frames.shape[-1], pixel_size, dtype) as writer:
        writer.append(frames)
    return path


@pytest.mark.parametrize("box", [6, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_stack_comes_back_as_it_was_written(tmp_path: Path, box: int, dtype: type) -> None:
    frames = np.random.default_rng(0).normal(size=(5, box, box)).astype(dtype)
    path = tmp_path / "a.mrcs"
    with stack_writer(path, box, 2.25, dtype) as writer:
        writer.append(frames[:2])
        writer.append(frames[2:2])
        writer.append(frames[2:])
    stack = open_stack(path)
    assert len(stack) == 5
    assert type(stack.frames(np.arange(5))) is np.ndarray and stack.frames(np.arange(5)).flags.writeable
    assert stack.frames(np.arange(5)).dtype == np.float32
    np.testing.assert_array_equal(stack.frames(np.array([4, 0, 4])), frames[[4, 0, 4]].astype(np.float32))
    assert stack.header.voxel_size == pytest.approx((2.25,) * 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_another_program_reads_our_stack(tmp_path: Path, dtype: type) -> None:
    frames = np.random.default_rng(1).normal(3, 2, size=(4, 8, 8)).astype(dtype)
    path = a_stack(tmp_path / "a.mrcs", frames, 1.75, dtype)
    assert mrcfile.validate(path)
    with mrcfile.open(path) as file:
        assert file.is_image_stack()
        np.testing.assert_array_equal(file.data, frames)
        assert file.voxel_size.x == pytest.approx(1.75)
        assert file.header.dmean == pytest.approx(frames.mean(dtype=np.float64), rel=1e-5)
        assert file.header.rms == pytest.approx(frames.std(dtype=np.float64), rel=1e-5)
        assert (file.header.dmin, file.header.dmax) == (frames.min(), frames.max())


@pytest.mark.parametrize("dtype", ["i1", "i2", "f4", "u2", "f2"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_mode_in_either_byte_order(tmp_path: Path, dtype: str, order: str) -> None:
    values = np.random.default_rng(2).integers(0, 100, size=(3, 5, 5)).astype(np.dtype(dtype).newbyteorder(order))
    path = tmp_path / "a.mrc"
    with mrcfile.new(path) as file:
        file.set_data(values)
    assert read_header(path).sample.newbyteorder("=") == np.dtype(dtype)
    np.testing.assert_array_equal(open_stack(path).frames(np.arange(3)), values.astype(np.float32))


def test_wrong_or_missing_machine_stamp_is_seen_through(tmp_path: Path) -> None:
    frames = np.random.default_rng(3).normal(size=(3, 5, 5)).astype(np.float32)
    path = a_stack(tmp_path / "a.mrcs", frames)
    for stamp in (b"\x11\x11\0\0", bytes(4)):
        content = bytearray(path.read_bytes())
        content[212:216] = stamp
        path.write_bytes(content)
        np.testing.assert_array_equal(open_stack(path).frames(np.arange(3)), frames)


def test_extended_header_is_skipped(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 3, dtype=np.float32).reshape(2, 3, 3)
    path = tmp_path / "a.mrc"
    with mrcfile.new(path) as file:
        file.set_data(values)
        file.set_extended_header(np.arange(40, dtype=np.float32))
    assert read_header(path).offset == 1024 + 160
    np.testing.assert_array_equal(open_stack(path).frames(np.arange(2)), values)


@pytest.mark.parametrize("box", [6, 7])
def test_map_comes_back_with_its_voxel_size(tmp_path: Path, box: int) -> None:
    volume = np.random.default_rng(4).normal(size=(box, box, box)).astype(np.float32)
    write_map(tmp_path / "a.mrc", volume, 3.77)
    again, voxel_size = read_map(tmp_path / "a.mrc")
    np.testing.assert_array_equal(again, volume)
    assert voxel_size == pytest.approx(3.77)
    assert mrcfile.validate(tmp_path / "a.mrc")
    with mrcfile.open(tmp_path / "a.mrc") as file:
        assert file.is_volume()


@pytest.mark.parametrize("axes", [(1, 2, 3), (3, 2, 1), (2, 3, 1), (3, 1, 2)])
def test_axes_are_brought_back_to_z_y_x(tmp_path: Path, axes: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(5).normal(size=(3, 4, 5)).astype(np.float32)
    column, row, section = axes
    path = tmp_path / "a.mrc"
    with mrcfile.new(path) as file:
        file.set_data(np.ascontiguousarray(np.transpose(volume, (3 - section, 3 - row, 3 - column))))
        file.header.mapc, file.header.mapr, file.header.maps = axes
    np.testing.assert_array_equal(read_map(path)[0], volume)


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    frames = np.ones((1, 4, 4), dtype=np.float32)
    path = a_stack(tmp_path / "a.mrcs", frames)
    with pytest.raises(ImageError, match="not finite"), stack_writer(path, 4, 1.0) as writer:
        writer.append(frames * 2)
        writer.append(np.full((1, 4, 4), np.nan, dtype=np.float32))
    np.testing.assert_array_equal(open_stack(path).frames(np.array([0])), frames)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mrcs"]


def test_writer_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="box"), stack_writer(tmp_path / "a.mrcs", 4, 1.0) as writer:
        writer.append(np.ones((1, 4, 5), dtype=np.float32))
    with pytest.raises(ImageError, match="cannot store"), stack_writer(tmp_path / "a.mrcs", 1, 1.0, "f2") as writer:
        writer.append(np.full((1, 1, 1), 1e6, dtype=np.float32))
    with pytest.raises(ImageError, match="float64"), stack_writer(tmp_path / "a.mrcs", 1, 1.0, "f8"):
        pass
    with pytest.raises(InputError, match="cannot write"):
        a_stack(tmp_path / "none" / "a.mrcs", np.ones((1, 2, 2), dtype=np.float32))


def test_truncation_is_named_with_what_is_left(tmp_path: Path) -> None:
    path = a_stack(tmp_path / "a.mrcs", np.ones((4, 4, 4), dtype=np.float32))
    path.write_bytes(path.read_bytes()[: 1024 + 3 * 64 - 1])
    with pytest.raises(FileFormatError, match="announces 4 sections, 2 are complete") as caught:
        open_stack(path)
    assert str(path) in str(caught.value)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileFormatError, match="fewer than the 1024"):
        open_stack(path)


def test_other_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        open_stack(tmp_path / "none.mrcs")
    with pytest.raises(MissingFileError):
        open_stack(tmp_path)
    path = a_stack(tmp_path / "a.mrcs", np.ones((2, 4, 4), dtype=np.float32))
    good = path.read_bytes()
    packed = tmp_path / "a.mrc.gz"
    packed.write_bytes(gzip.compress(good))
    with pytest.raises(FileFormatError, match="gunzip"):
        open_stack(packed)
    for offset, value, said in (
        (12, 4, "mode 4"),
        (92, -4, "negative length"),
        (92, 10**6, "truncated"),
        (0, -1, "no sense"),
    ):
        path.write_bytes(good[:offset] + np.int32(value).tobytes() + good[offset + 4 :])
        with pytest.raises(FileFormatError, match=said):
            open_stack(path)


def test_voxels_that_are_no_cubes_are_refused(tmp_path: Path) -> None:
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(np.zeros((4, 4, 4), dtype=np.float32))
        file.voxel_size = (1.0, 1.0, 2.0)
    with pytest.raises(FileFormatError, match="not cubes"):
        read_map(tmp_path / "a.mrc")


@pytest.mark.parametrize("index", [-1, 3])
def test_images_outside_the_stack_are_refused(tmp_path: Path, index: int) -> None:
    stack = open_stack(a_stack(tmp_path / "a.mrcs", np.ones((3, 4, 4), dtype=np.float32)))
    with pytest.raises(ImageError, match="has 3 images"):
        stack.frames(np.array([0, index]))


DAMAGE = st.lists(st.tuples(st.integers(0, 1023), st.binary(min_size=1, max_size=8)), max_size=4)


@settings(max_examples=80, deadline=None)
@given(damage=DAMAGE, keep=st.integers(0, 1300))
def test_damaged_files_give_input_errors_only(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, bytes]], keep: int
) -> None:
    path = a_stack(tmp_path_factory.mktemp("fuzz") / "a.mrcs", np.ones((4, 4, 4), dtype=np.float32))
    content = bytearray(path.read_bytes())
    for offset, value in damage:
        content[offset : offset + len(value)] = value
    path.write_bytes(bytes(content[:keep]))
    for read in (lambda: open_stack(path).frames(np.array([0])), lambda: read_map(path)):
        try:
            read()
        except InputError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("name", ["sample.mrcs", "empiar_10076_7.mrc", "relion31.mrcs"])
@pytest.mark.filterwarnings("ignore:Map ID string not found", "ignore:Unrecognised machine stamp")
def test_stacks_of_other_programs(shared_data: Path, name: str) -> None:
    """relion31.mrcs has neither map identifier nor machine stamp, of which mrcfile warns."""
    stack = open_stack(shared_data / "particles" / name)
    rows = np.array([0, len(stack) - 1])
    with mrcfile.mmap(shared_data / "particles" / name, permissive=True) as file:
        np.testing.assert_array_equal(stack.frames(rows), file.data[rows])


def test_half_precision_stack_of_another_program(shared_data: Path) -> None:
    stack = open_stack(shared_data / "reference_set" / "particles.mrcs")
    frames = stack.frames(np.arange(200, 700))
    with mrcfile.mmap(shared_data / "reference_set" / "particles.mrcs") as file:
        np.testing.assert_array_equal(frames, file.data[200:700].astype(np.float32))


@pytest.mark.parametrize(("name", "voxel_size"), [("clean70SRibosome_vol_65p.mrc", 0.0), ("emd_1997.map", 2.02)])
def test_maps_of_other_programs(shared_data: Path, name: str, voxel_size: float) -> None:
    volume, found = read_map(shared_data / "volumes" / name)
    with mrcfile.open(shared_data / "volumes" / name) as file:
        np.testing.assert_array_equal(volume, file.data)
    assert found == pytest.approx(voxel_size)
