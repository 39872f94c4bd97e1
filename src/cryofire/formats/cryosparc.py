"""Tables of cryoSPARC (.cs): reading both containers, joining passthrough files by uid, and writing."""

from __future__ import annotations

import tokenize
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt64
from numpy.lib import format as npy

from cryofire.errors import FileFormatError, MissingFileError, TableError
from cryofire.formats.atomic import replacing

NUMPY_MAGIC = b"\x93NUMPY"
CSDAT_MAGIC = b"\x95CSDAT"
_LARGEST_HEADER = 10_000_000  # bytes; tables of many fields exceed NumPy's own limit
_BAD_HEADER = (ValueError, TypeError, SyntaxError, KeyError, IndexError, EOFError, RecursionError, tokenize.TokenError)

Table = Shaped[np.ndarray, " row"]


def read_cs(path: Path) -> Table:
    """Rows of a .cs file as a structured array, in the order of the file.

    Raises
    ------
    MissingFileError
        The file cannot be opened.
    FileFormatError
        It is damaged or no .cs file, or it is compressed and cryosparc-tools is not installed.
    TableError
        It has no uid field.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(NUMPY_MAGIC))
    except OSError as error:
        raise MissingFileError(f"cannot open the .cs file: {error.strerror}", file=path) from error
    if magic == NUMPY_MAGIC:
        rows = _read_numpy(path)
    elif magic == CSDAT_MAGIC:
        rows = _read_compressed(path)
    else:
        raise FileFormatError("this is no cryoSPARC table: its first bytes are unknown", file=path)
    if "uid" not in (rows.dtype.names or ()) or rows.dtype["uid"].kind not in "iu":
        raise TableError("the field is missing", file=path, field="uid", hint="name the .cs file of a particle output")
    return rows


def _read_numpy(path: Path) -> Table:
    with path.open("rb") as file:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # headers that Python 2 wrote
                read_header = {1: npy.read_array_header_1_0, 2: npy.read_array_header_2_0}[npy.read_magic(file)[0]]
                shape, _, dtype = read_header(file, max_header_size=_LARGEST_HEADER)
        except _BAD_HEADER as error:
            raise FileFormatError("the header of the .cs file is damaged", file=path) from error
        if dtype.hasobject or dtype.names is None or len(shape) != 1 or dtype.itemsize == 0:
            raise FileFormatError("the .cs file does not hold a table of plain values", file=path)
        content = file.read()
    if shape[0] < 0 or len(content) < shape[0] * dtype.itemsize:
        raise FileFormatError(
            f"the file is truncated: {shape[0]} rows announced, {len(content) // dtype.itemsize} complete",
            file=path,
            hint="copy or export it again",
        )
    return np.frombuffer(content, dtype=dtype, count=shape[0])


def _read_compressed(path: Path) -> Table:
    try:
        from cryosparc.dataset import Dataset  # noqa: PLC0415 (an extra, and slow to import)
    except ImportError as error:
        raise FileFormatError(
            "the .cs file is in cryoSPARC's compressed format, which only cryosparc-tools reads",
            file=path,
            hint="pip install 'cryofire[cryosparc]', or export the particles from cryoSPARC as a NumPy .cs file",
        ) from error
    try:
        rows = np.asarray(Dataset.load(str(path)).to_records(fixed=True))
    except Exception as error:  # cryosparc-tools documents no errors of its own
        raise FileFormatError(f"cryosparc-tools cannot read the file: {error}", file=path) from error
    return rows.view(np.dtype(rows.dtype.descr))  # plain fields instead of records


def passthrough_candidates(path: Path) -> tuple[Path, ...]:
    """Passthrough files in the folder of a .cs file, where cryoSPARC puts the fields a job did not change."""
    return tuple(sorted(other for other in path.parent.glob("*passthrough*.cs") if other.name != path.name))


def join_by_uid(rows: Table, other: Shaped[np.ndarray, " other"], other_path: Path) -> Table:
    """Rows with the fields that only `other` has appended, matched by uid; the order of `rows` is kept.

    Raises
    ------
    TableError
        A uid of `rows` is missing in `other`.
    """
    order = np.argsort(other["uid"], kind="stable")
    place = _places(other["uid"], rows["uid"], order)
    if place is None:
        raise TableError(
            "the passthrough file lacks particles of the table",
            file=other_path,
            field="uid",
            hint="name the passthrough file of the same job and output",
        )
    new = [name for name in other.dtype.names or () if name not in (rows.dtype.names or ())]
    joined = np.empty(len(rows), dtype=[*_fields(rows), *(field for field in _fields(other) if field[0] in new)])
    for name in rows.dtype.names or ():
        joined[name] = rows[name]
    for name in new:
        joined[name] = other[name][place]
    return joined


def covers(other: Shaped[np.ndarray, " other"], rows: Table) -> bool:
    """Whether `other` has every uid of `rows`."""
    return _places(other["uid"], rows["uid"], np.argsort(other["uid"], kind="stable")) is not None


def _places(
    uids: UInt64[np.ndarray, " other"], wanted: UInt64[np.ndarray, " row"], order: Shaped[np.ndarray, " other"]
) -> Shaped[np.ndarray, " row"] | None:
    """Index into `uids` of every wanted uid; None if one is missing."""
    if len(uids) == 0:
        return None if len(wanted) else order
    place = order[np.minimum(np.searchsorted(uids, wanted, sorter=order), len(uids) - 1)]
    return place if np.array_equal(uids[place], wanted) else None


def _fields(rows: Table) -> list[tuple[str, np.dtype[np.generic]]]:
    return [(name, rows.dtype[name]) for name in rows.dtype.names or ()]


def write_cs(path: Path, rows: Table) -> None:
    """Write rows as a NumPy .cs file, which every version of cryoSPARC reads; atomic."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        npy.write_array(file, np.ascontiguousarray(rows), allow_pickle=False)


def without_fields(rows: Table, names: Sequence[str]) -> Table:
    """Rows without the named fields."""
    kept = [name for name in rows.dtype.names or () if name not in names]
    result = np.empty(len(rows), dtype=[(name, rows.dtype[name]) for name in kept])
    for name in kept:
        result[name] = rows[name]
    return result


def with_fields(rows: Table, columns: Sequence[tuple[str, Shaped[np.ndarray, "row ..."]]]) -> Table:
    """Rows with columns set: those that exist keep their type and place, new ones are appended with their own type."""
    names = rows.dtype.names or ()
    appended = [(name, values.dtype, values.shape[1:]) for name, values in columns if name not in names]
    result = np.empty(len(rows), dtype=np.dtype([*_fields(rows), *appended]))
    for name in names:
        result[name] = rows[name]
    for name, values in columns:
        result[name] = values
    return result
