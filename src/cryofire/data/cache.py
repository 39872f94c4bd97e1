"""The coefficient cache: whitened half-plane coefficients of all images, float16 pairs sorted by radius.

A resolution limit is a prefix of each row, so that a step reads only the bytes it needs. The file is a plain NumPy array (version 1
header), memory-mapped when read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float16, Float32

from cryofire.errors import FileFormatError
from cryofire.formats.atomic import replacing

_HEADER_BYTES = 192
LARGEST = float(np.finfo(np.float16).max)
CoefficientPairs = Float32[np.ndarray, "row coefficient 2"]


class CacheWriter:
    """Rows of the cache, written in order; made by `cache_writer`."""

    def __init__(self, values: Float16[np.ndarray, "particle coefficient 2"]) -> None:
        self._values = values
        self._next = 0

    def append(self, pairs: Float[np.ndarray, "row coefficient 2"]) -> None:
        """Write the next rows; wider numbers beyond the range of float16 are clipped to it."""
        stop = self._next + len(pairs)
        self._values[self._next : stop] = pairs if pairs.dtype == np.float16 else np.clip(pairs, -LARGEST, LARGEST)
        self._next = stop

    @property
    def rows(self) -> int:
        """How many rows have been written."""
        return self._next


@contextmanager
def cache_writer(path: Path, particles: int, coefficients: int) -> Iterator[CacheWriter]:
    """Give a writer of at most `particles` rows; the file appears under its name, as long as was written, at the end.

    Raises
    ------
    InputError
        The folder cannot be written, or the disk is full.
    """
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            offset = file.write(_header(particles, coefficients))
            file.truncate(offset + 4 * particles * coefficients)
        values = np.memmap(temporary, np.float16, "r+", offset, (particles, coefficients, 2))
        writer = CacheWriter(values)
        yield writer
        values.flush()
        with temporary.open("r+b") as file:
            file.write(_header(writer.rows, coefficients))
            file.truncate(offset + 4 * writer.rows * coefficients)


def _header(particles: int, coefficients: int) -> bytes:
    """NumPy's header of version 1, always of one length."""
    text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({particles}, {coefficients}, 2), }}"
    return (
        b"\x93NUMPY\x01\x00"
        + (_HEADER_BYTES - 10).to_bytes(2, "little")
        + text.ljust(_HEADER_BYTES - 11).encode()
        + b"\n"
    )


def open_cache(path: Path) -> Float16[np.ndarray, "particle coefficient 2"]:
    """Memory-map a cache.

    Raises
    ------
    FileFormatError
        The file is missing, damaged or of another kind.
    """
    try:
        values: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise FileFormatError(
            "the coefficient cache cannot be read", file=path, hint="delete it: the run writes it anew"
        ) from error
    if values.dtype != np.float16 or values.ndim != 3 or values.shape[2] != 2:
        raise FileFormatError("not a coefficient cache", file=path, hint="delete it: the run writes it anew")
    return values
