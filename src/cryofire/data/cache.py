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

CoefficientPairs = Float32[np.ndarray, "row coefficient 2"]


class CacheWriter:
    """Rows of the cache, written in order; made by `cache_writer`."""

    def __init__(self, values: Float16[np.ndarray, "particle coefficient 2"]) -> None:
        self._values = values
        self._next = 0

    def append(self, pairs: Float[np.ndarray, "row coefficient 2"]) -> None:
        """Write the next rows; values beyond the range of float16 are clipped to it."""
        limit = np.finfo(np.float16).max
        stop = self._next + len(pairs)
        self._values[self._next : stop] = np.clip(pairs, -limit, limit)
        self._next = stop

    @property
    def is_complete(self) -> bool:
        """All rows have been written."""
        return self._next == len(self._values)


@contextmanager
def cache_writer(path: Path, particles: int, coefficients: int) -> Iterator[CacheWriter]:
    """Give a writer of `particles` rows; the file appears under its name only when all of them have been written.

    Raises
    ------
    InputError
        The folder cannot be written, or the disk is full.
    """
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            header = {"descr": "<f2", "fortran_order": False, "shape": (particles, coefficients, 2)}
            np.lib.format.write_array_header_1_0(file, header)
            offset = file.tell()
            file.truncate(offset + 4 * particles * coefficients)
        values = np.memmap(temporary, np.float16, "r+", offset, (particles, coefficients, 2))
        writer = CacheWriter(values)
        yield writer
        values.flush()
        if not writer.is_complete:
            raise FileFormatError("the coefficient cache was not filled", file=path)


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
