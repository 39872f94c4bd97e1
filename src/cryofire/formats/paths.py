"""Finding the image stacks a particle table names, and telling where they were looked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from cryofire.errors import MissingFileError

_PLACES_SHOWN = 40


def find_stacks(names: Sequence[str], table: Path, datadir: Path | None = None) -> tuple[Path, ...]:
    """Existing file of each image stack that a particle table names.

    Places are tried in this order: the name as it stands, if absolute; below `datadir`; below the folder of the table
    and then each folder that holds it (the project folder is one of them); below the current folder. Below `datadir`
    and the folder of the table, the name is also tried with leading folders removed, as long as no other stack of the
    table ends in the same way: two stacks of one file name in different folders are never mistaken for each other.

    Parameters
    ----------
    names : sequence of str
        Distinct names as they stand in the table.
    table : Path
        The STAR or .cs file.
    datadir : Path, optional
        Folder given by the user.

    Raises
    ------
    MissingFileError
        The data folder does not exist, or a stack was found nowhere; the message lists every place tried.
    """
    if datadir is not None and not datadir.is_dir():
        raise MissingFileError("the data folder does not exist", file=datadir, hint="correct --datadir")
    endings = Counter(ending for name in names for ending in set(_endings(name)))
    found: list[Path] = []
    missing: list[tuple[str, list[Path]]] = []
    for name in names:
        tried = list(dict.fromkeys(_candidates(name, table, datadir, endings)))
        hit = next((path for path in tried if _is_file(path)), None)
        if hit is None:
            missing.append((name, tried))
        else:
            found.append(hit)
    if missing:
        raise _not_found(missing, len(names), table)
    return tuple(found)


def _endings(name: str) -> list[tuple[str, ...]]:
    """Return the parts of a name after 0, 1, 2 ... leading folders were removed."""
    parts = tuple(part for part in PurePosixPath(name).parts if part not in ("/", "."))
    return [parts[dropped:] for dropped in range(len(parts))]


def _candidates(name: str, table: Path, datadir: Path | None, endings: Counter[tuple[str, ...]]) -> Iterator[Path]:
    if PurePosixPath(name).is_absolute():
        yield Path(name)
    whole, *shorter = _endings(name) or [()]
    shorter = [ending for ending in shorter if endings[ending] == 1]
    home = table.absolute().parent
    if datadir is not None:
        yield from (datadir.absolute().joinpath(*ending) for ending in (whole, *shorter))
    yield from (folder.joinpath(*whole) for folder in (home, *home.parents))
    if table.is_symlink():
        target = table.resolve().parent
        yield from (folder.joinpath(*whole) for folder in (target, *target.parents))
    yield Path.cwd().joinpath(*whole)
    yield from (home.joinpath(*ending) for ending in shorter)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that may not be entered, or a name too long for the file system
        return False


def _not_found(missing: Sequence[tuple[str, Sequence[Path]]], stacks: int, table: Path) -> MissingFileError:
    name, tried = missing[0]
    places = "".join(f"\n    {path}" for path in tried[:_PLACES_SHOWN])
    return MissingFileError(
        f"{len(missing)} of {stacks} image stacks were not found; '{name}' was looked for at{places}\n ",
        file=table,
        hint="give the folder that holds the stacks, or the folder their paths are relative to, with --datadir",
    )
