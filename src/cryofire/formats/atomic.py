"""Files appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryofire.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` when the block ends well, delete it otherwise.

    Parameters
    ----------
    path : Path
        Where the file is wanted. Its folder must exist; a file already there is replaced in one step.

    Yields
    ------
    Path
        A name in the same folder, on which nothing exists yet.

    Raises
    ------
    InputError
        The file cannot be written: no name, no such folder, no permission, or the disk is full.
    """
    if not path.name:
        raise InputError("no name to write to", file=path, hint="name a file, not a folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write: {error.strerror or error}",
            file=path,
            hint="check that the folder exists, that you may write there and that the disk is not full",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    """Hand the bytes of `path` to the disk, so that a rename never outlives its content."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
