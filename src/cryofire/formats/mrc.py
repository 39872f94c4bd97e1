"""MRC maps and image stacks: memory-mapped reading and streamed, atomic writing.

Read modes are 0 (int8), 1 (int16), 2 (float32), 6 (uint16) and 12 (float16), in either byte order.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from jaxtyping import Float, Float32, Int
from numpy.typing import DTypeLike

from cryofire.errors import FileFormatError, ImageError, MissingFileError
from cryofire.formats.atomic import replacing

HEADER_BYTES = 1024
SAMPLE_TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
LARGEST_SIDE = 1 << 17  # a byte-swapped small number is at least 1 << 16: this tells the two orders apart

_HEADER = np.dtype(
    [
        ("size", "i4", 3),
        ("mode", "i4"),
        ("start", "i4", 3),
        ("intervals", "i4", 3),
        ("cell", "f4", 3),
        ("cell_angles", "f4", 3),
        ("axes", "i4", 3),
        ("minimum", "f4"),
        ("maximum", "f4"),
        ("mean", "f4"),
        ("space_group", "i4"),
        ("extended_bytes", "i4"),
        ("extra", "V100"),
        ("origin", "f4", 3),
        ("identifier", "S4"),
        ("machine_stamp", "u1", 4),
        ("deviation", "f4"),
        ("label_count", "i4"),
        ("labels", "S80", 10),
    ]
)


@dataclass(frozen=True)
class MrcHeader:
    """What the header of an MRC file says.

    Attributes
    ----------
    shape : tuple (z, y, x)
        Sections, rows and columns as stored.
    sample : dtype
        Type and byte order of one value.
    voxel_size : tuple (x, y, z)
        Å; 0 where the file does not say.
    offset : int
        Where the values begin, in bytes.
    axes : tuple
        Which of x = 1, y = 2, z = 3 runs along columns, rows and sections.
    """

    shape: tuple[int, int, int]
    sample: np.dtype[np.generic]
    voxel_size: tuple[float, float, float]
    offset: int
    axes: tuple[int, int, int]


def read_header(path: Path) -> MrcHeader:
    """Read the header of an MRC file and check it against the size of the file.

    Raises
    ------
    MissingFileError
        The file does not exist or cannot be opened.
    FileFormatError
        It is no MRC file, has a mode that is not supported, or ends before its last value.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(HEADER_BYTES)
        file_bytes = path.stat().st_size
    except OSError as error:
        raise MissingFileError(f"cannot open the image file: {error.strerror}", file=path) from error
    header = _parse_header(raw, path)
    _check_length(header, file_bytes, path)
    return header


def _parse_header(raw: bytes, path: Path) -> MrcHeader:
    if raw[:2] == b"\x1f\x8b":
        raise FileFormatError("the file is compressed with gzip", file=path, hint="unpack it with gunzip first")
    if len(raw) < HEADER_BYTES:
        raise FileFormatError(
            f"the file has {len(raw)} bytes, fewer than the {HEADER_BYTES} of an MRC header",
            file=path,
            hint="the file was cut short or is no MRC file: copy or extract it again",
        )
    order = _byte_order(raw, path)
    fields = np.frombuffer(raw, dtype=_HEADER.newbyteorder(order))[0]
    if fields["extended_bytes"] < 0:
        raise FileFormatError("the extended header has a negative length", file=path, hint="the header is damaged")
    columns, rows, sections = (int(n) for n in fields["size"])
    intervals, cell = fields["intervals"].astype(np.float64), fields["cell"].astype(np.float64)
    voxel_size = np.where((intervals > 0) & np.isfinite(cell), cell / np.maximum(intervals, 1), 0.0)
    axes = tuple(int(axis) for axis in fields["axes"])
    return MrcHeader(
        shape=(sections, rows, columns),
        sample=np.dtype(SAMPLE_TYPES[int(fields["mode"])]).newbyteorder(order),
        voxel_size=(float(voxel_size[0]), float(voxel_size[1]), float(voxel_size[2])),
        offset=HEADER_BYTES + int(fields["extended_bytes"]),
        axes=(axes[0], axes[1], axes[2]) if sorted(axes) == [1, 2, 3] else (1, 2, 3),
    )


def _byte_order(raw: bytes, path: Path) -> Literal["<", ">"]:
    """Return the byte order, "<" or ">", in which size and mode make sense; the machine stamp decides a tie."""
    orders: tuple[Literal["<", ">"], ...] = (">", "<") if raw[212:213] == b"\x11" else ("<", ">")
    for order in orders:
        fields = np.frombuffer(raw, dtype=_HEADER.newbyteorder(order))[0]
        if np.all(fields["size"] > 0) and np.all(fields["size"][:2] < LARGEST_SIDE):
            if int(fields["mode"]) in SAMPLE_TYPES:
                return order
            if 0 <= int(fields["mode"]) <= 101:
                raise FileFormatError(
                    f"MRC mode {int(fields['mode'])} is not supported",
                    file=path,
                    field="mode",
                    hint=f"convert the file to one of the modes {', '.join(str(mode) for mode in SAMPLE_TYPES)}",
                )
    raise FileFormatError(
        "size and mode in the header make no sense in either byte order",
        file=path,
        hint="this is no MRC file, or its header is damaged",
    )


def _check_length(header: MrcHeader, file_bytes: int, path: Path) -> None:
    frame_bytes = header.shape[1] * header.shape[2] * header.sample.itemsize
    if file_bytes < header.offset + header.shape[0] * frame_bytes:
        complete = max(0, file_bytes - header.offset) // frame_bytes
        raise FileFormatError(
            f"the file is truncated: its header announces {header.shape[0]} sections, {complete} are complete",
            file=path,
            hint="copy or extract it again",
        )


@dataclass(frozen=True)
class MrcStack:
    """An image stack on disk, mapped into memory and never loaded whole.

    Attributes
    ----------
    path : Path
        The file.
    header : MrcHeader
        Its header.
    values : array (frame, y, x)
        Memory map in the type of the file.
    """

    path: Path
    header: MrcHeader
    values: np.memmap[tuple[int, ...], np.dtype[np.generic]]

    def __len__(self) -> int:
        return self.header.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images, rows and columns."""
        return self.header.shape

    def frames(self, indices: Int[np.ndarray, " row"]) -> Float32[np.ndarray, "row y x"]:
        """Images at the given 0-based indices, as float32; reading is fastest in ascending order.

        Raises
        ------
        ImageError
            An index is negative or past the end of the stack.
        """
        indices = np.asarray(indices, dtype=np.int64)
        outside = (indices < 0) | (indices >= len(self))
        if np.any(outside):
            raise ImageError(
                f"image {int(indices[outside][0]) + 1} does not exist: the stack has {len(self)} images", file=self.path
            )
        if len(indices) and np.all(np.diff(indices) == 1):  # a run of neighbours is read without a second copy
            frames = np.array(self.values[int(indices[0]) : int(indices[-1]) + 1], dtype=np.float32)
        else:
            frames = np.array(self.values[indices], dtype=np.float32, copy=None)
        _forget_pages(self.values)
        return frames


def open_stack(path: Path) -> MrcStack:
    """Map an image stack (.mrcs, .mrc) into memory; raises as `read_header` does."""
    header = read_header(path)
    return MrcStack(path, header, _map_values(path, header))


def _map_values(path: Path, header: MrcHeader) -> np.memmap[tuple[int, ...], np.dtype[np.generic]]:
    try:
        return np.memmap(path, dtype=header.sample, mode="r", offset=header.offset, shape=header.shape)
    except OSError as error:
        raise MissingFileError(f"cannot map the image file: {error.strerror}", file=path) from error


def _forget_pages(values: np.memmap[tuple[int, ...], np.dtype[np.generic]]) -> None:
    """Take pages that were read out of the memory of this process, so that it does not grow with the stack."""
    mapping: object = values.base
    if isinstance(mapping, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def read_map(path: Path) -> tuple[Float32[np.ndarray, "z y x"], float]:
    """Density map (z, y, x) and its voxel size in Å (0 where the file does not say).

    Axes stored in another order are brought back to (z, y, x).

    Raises
    ------
    FileFormatError
        As `read_header`, or the voxels are not cubes.
    """
    header = read_header(path)
    stored = np.asarray(_map_values(path, header), dtype=np.float32)
    sizes = np.array(header.voxel_size)
    if np.ptp(sizes) > 1e-3 * sizes.max():
        raise FileFormatError(
            f"the voxels are not cubes: {sizes[0]:g} × {sizes[1]:g} × {sizes[2]:g} Å",
            file=path,
            hint="resample the map to one voxel size along all axes",
        )
    section_axis, row_axis, column_axis = header.axes[2], header.axes[1], header.axes[0]
    order = [3 - axis for axis in (section_axis, row_axis, column_axis)]
    return np.ascontiguousarray(np.transpose(stored, np.argsort(order))), float(sizes.mean())


def write_map(path: Path, volume: Float[np.ndarray, "z y x"], voxel_size: float) -> None:
    """Write a density map as float32 with its voxel size (Å) in the header; atomic."""
    values = np.ascontiguousarray(volume, dtype="<f4")
    header = _new_header(values.shape, 2, voxel_size, is_stack=False)
    header["minimum"], header["maximum"] = values.min(), values.max()
    header["mean"], header["deviation"] = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header.tobytes())
        file.write(values.data)


class StackWriter:
    """Appends images to a stack of unknown length; made by `stack_writer`.

    Attributes
    ----------
    count : int
        Images written so far.
    """

    def __init__(self, file: BinaryIO, box: int, sample: np.dtype[np.generic]) -> None:
        self._file, self._box, self._sample = file, box, sample
        self._minimum, self._maximum, self._sum, self._sum_of_squares = math.inf, -math.inf, 0.0, 0.0
        self.count = 0

    def append(self, frames: Float[np.ndarray, "row y x"]) -> None:
        """Write images behind those already written.

        Raises
        ------
        ImageError
            They have another box, or a value is not finite or too large for the type of the file.
        """
        if frames.ndim != 3 or frames.shape[1:] != (self._box, self._box):
            raise ImageError(f"images of shape {frames.shape[1:]} do not fit a stack of box {self._box}")
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(frames, dtype=self._sample)
        if not np.all(np.isfinite(stored)):
            raise ImageError(f"an image holds values that {self._sample.name} cannot store, or that are not finite")
        if len(stored):
            self._minimum = min(self._minimum, float(stored.min()))
            self._maximum = max(self._maximum, float(stored.max()))
            self._sum += float(stored.sum(dtype=np.float64))
            self._sum_of_squares += float(np.square(stored, dtype=np.float64).sum())
        self._file.write(stored.data)
        self.count += len(stored)

    def header_bytes(self, pixel_size: float) -> bytes:
        """Return the header of what was written so far."""
        shape = (self.count, self._box, self._box)
        header = _new_header(shape, _stack_mode(self._sample), pixel_size, is_stack=True)
        values = max(1, self.count * self._box**2)
        mean = self._sum / values
        header["mean"], header["deviation"] = mean, math.sqrt(max(0.0, self._sum_of_squares / values - mean**2))
        if self.count:
            header["minimum"], header["maximum"] = self._minimum, self._maximum
        return header.tobytes()


@contextmanager
def stack_writer(path: Path, box: int, pixel_size: float, dtype: DTypeLike = np.float32) -> Iterator[StackWriter]:
    """Open an image stack for streaming; it appears under its name when the block ends without an error.

    Parameters
    ----------
    path : Path
        Where the stack is wanted, by habit ending in .mrcs.
    box : int
        Side of the square images, px.
    pixel_size : float
        Å per pixel, for the header.
    dtype : dtype
        float32 (mode 2) or float16 (mode 12).

    Raises
    ------
    ImageError
        Another type than float32 or float16 was asked for, or an image does not fit (see `StackWriter.append`).
    """
    sample = _stack_sample(path, dtype)
    with replacing(path) as temporary, temporary.open("wb") as file:
        writer = StackWriter(file, box, sample)
        file.write(writer.header_bytes(pixel_size))
        yield writer
        file.seek(0)
        file.write(writer.header_bytes(pixel_size))


def reserve_stack(path: Path, count: int, box: int, pixel_size: float, dtype: DTypeLike = np.float32) -> None:
    """Write a stack of images that are all zero, which takes no space where the file system knows holes.

    For images that are made when they are asked for: whoever reads the file finds their number, box and pixel size (Å).

    Raises
    ------
    ImageError
        Another type than float32 or float16 was asked for.
    """
    sample = _stack_sample(path, dtype)
    header = _new_header((count, box, box), _stack_mode(sample), pixel_size, is_stack=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header.tobytes())
        file.truncate(HEADER_BYTES + count * box**2 * sample.itemsize)


def _stack_sample(path: Path, dtype: DTypeLike) -> np.dtype[np.generic]:
    sample = np.dtype(dtype).newbyteorder("<")
    if sample not in (np.dtype("<f4"), np.dtype("<f2")):
        raise ImageError(f"stacks are written as float32 or float16, not {sample.name}", file=path)
    return sample


def _stack_mode(sample: np.dtype[np.generic]) -> int:
    return 12 if sample.itemsize == 2 else 2


def _new_header(shape: tuple[int, ...], mode: int, voxel_size: float, is_stack: bool) -> np.ndarray:
    header = np.zeros((), dtype=_HEADER.newbyteorder("<"))
    sections, rows, columns = shape
    intervals = np.array([columns, rows, 1 if is_stack else sections])
    header["size"], header["mode"], header["intervals"] = (columns, rows, sections), mode, intervals
    header["cell"], header["cell_angles"], header["axes"] = intervals * voxel_size, 90.0, (1, 2, 3)
    header["space_group"] = 0 if is_stack else 1
    header["extra"] = bytes(12) + np.int32(20141).tobytes() + bytes(84)  # version of the format, MRC2014
    header["identifier"], header["machine_stamp"] = b"MAP ", (0x44, 0x44, 0, 0)
    header["label_count"] = 1
    header["labels"][0] = b"cryofire"
    return header
