"""NumPy files of users: .npz archives of named arrays, and .npy arrays."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Shaped

from cryofire.errors import FileFormatError, MissingFileError

_DAMAGE = (ValueError, OSError, EOFError, BadZipFile)


def read_arrays(path: Path) -> dict[str, Shaped[np.ndarray, ...]]:
    """Return the arrays of an .npz file by their names, or the array of an .npy file under the name ``array``.

    Raises
    ------
    MissingFileError
        There is no such file.
    FileFormatError
        It is damaged, of another kind, or holds Python objects instead of numbers and text.
    """
    if not path.is_file():
        raise MissingFileError("the file does not exist", file=path)
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"array": content}
        with content as archive:
            return {name: archive[name] for name in archive.files}
    except _DAMAGE as error:
        raise FileFormatError(f"cannot read it as a NumPy file: {error}", file=path) from error


def read_array(path: Path, name: str) -> Shaped[np.ndarray, ...]:
    """Return one of the arrays of a NumPy file; raises as `read_arrays`, and where it has no such array."""
    arrays = read_arrays(path)
    if name not in arrays:
        raise FileFormatError(
            f"the file has no array '{name}'", file=path, hint=f"it has {', '.join(arrays) or 'none at all'}"
        )
    return arrays[name]
