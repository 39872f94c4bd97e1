"""Lazy images: the right ones, in the order asked for, and errors that name the particle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from cryofire.data import stack as stack_module
from cryofire.data.read import read_particles
from cryofire.data.stack import ImageStacks
from cryofire.errors import FileFormatError, ImageError, MissingFileError
from cryofire.formats.mrc import open_stack, stack_writer


@pytest.fixture
def scattered(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Twenty particles scattered over three stacks in no order, and their images."""
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(3, 9, 5, 5)).astype(np.float32)
    for number in range(3):
        with stack_writer(tmp_path / f"{number}.mrcs", 5, 1.0) as writer:
            writer.append(frames[number])
    places = [divmod(int(place), 9) for place in rng.permutation(27)[:20]]
    rows = [f"{frame + 1}@{stack}.mrcs 1e4 1e4 0 300 2.7 0.1 1.0" for stack, frame in places]
    labels = "ImageName DefocusU DefocusV DefocusAngle Voltage SphericalAberration AmplitudeContrast ImagePixelSize"
    header = "data_\nloop_\n" + "".join(f"_rln{label}\n" for label in labels.split())
    (tmp_path / "a.star").write_text(header + "\n".join(rows))
    return tmp_path / "a.star", np.stack([frames[place] for place in places])


@pytest.mark.parametrize(
    "rows", [np.arange(20), np.array([7, 3, 19, 3]), np.arange(20) % 3 == 1, np.array([], dtype=int)]
)
def test_images_come_in_the_order_asked_for(scattered: tuple[Path, np.ndarray], rows: np.ndarray) -> None:
    path, images = scattered
    stacks = ImageStacks(read_particles(path))
    assert len(stacks) == 20
    found = stacks.images(rows)
    assert found.dtype == np.float32
    if len(rows):
        np.testing.assert_array_equal(found, images[rows])
    else:
        assert len(found) == 0


def test_only_some_stacks_stay_mapped(scattered: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_module, "_OPEN_STACKS", 1)
    path, images = scattered
    stacks = ImageStacks(read_particles(path))
    for row in (0, 5, 0, 9):
        np.testing.assert_array_equal(stacks.images(np.array([row]))[0], images[row])
    assert len(stacks._open) == 1


def test_images_of_a_taken_table(scattered: tuple[Path, np.ndarray]) -> None:
    path, images = scattered
    taken = read_particles(path).take(np.array([4, 2]))
    np.testing.assert_array_equal(ImageStacks(taken).images(np.arange(2)), images[[4, 2]])


def test_an_index_past_the_end_names_stack_and_row(project: Any) -> None:
    project.particles["rlnImageName"][2] = "000004@day1/mic.mrcs"
    stacks = ImageStacks(read_particles(project.star()))
    stacks.images(np.array([0, 3]))
    with pytest.raises(ImageError, match="image 4 does not exist") as caught:
        stacks.images(np.array([0, 3, 2]))
    assert caught.value.row == 3 and str(project.folder / "day1" / "mic.mrcs") in str(caught.value)


def test_different_boxes_are_not_mixed(project: Any) -> None:
    stacks = ImageStacks(read_particles(project.star()))
    assert stacks.images(np.array([1])).shape == (1, 7, 7)
    with pytest.raises(ImageError, match="7 and 8 px"):
        stacks.images(np.array([0, 1]))


def test_stacks_that_change_behind_our_back(project: Any) -> None:
    table = read_particles(project.star())
    stack = project.folder / "day1" / "mic.mrcs"
    content = stack.read_bytes()
    stack.write_bytes(content[:-1])
    with pytest.raises(FileFormatError, match="truncated"):
        ImageStacks(table).images(np.array([0]))
    with stack_writer(stack, 4, 1.0) as writer:
        writer.append(np.ones((3, 4, 4)))
    with pytest.raises(ImageError, match="no longer of 8 px"):
        ImageStacks(table).images(np.array([0]))
    stack.unlink()
    with pytest.raises(MissingFileError):
        ImageStacks(table).images(np.array([0]))


def test_nothing_is_read_before_it_is_needed(scattered: tuple[Path, np.ndarray]) -> None:
    path, _ = scattered
    stacks = ImageStacks(read_particles(path))
    assert len(stacks._open) == 0
    assert isinstance(open_stack(path.parent / "0.mrcs").values, np.memmap)


def test_reference_set(shared_data: Path) -> None:
    stacks = ImageStacks(read_particles(shared_data / "reference_set" / "particles.star"))
    rows = np.array([3999, 0, 1234])
    with mrcfile.mmap(shared_data / "reference_set" / "particles.mrcs") as file:
        np.testing.assert_array_equal(stacks.images(rows), file.data[rows].astype(np.float32))
