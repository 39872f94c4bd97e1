"""Encoding while a microscope still writes: a STAR file, or a folder of them, is watched and new rows are appended to the output.

The output is replaced as a whole each time, so that it is a complete STAR file at every moment. Its block ``data_cryofire`` says by
which model it was made; the same command continues it, and rows that it holds already (by rlnImageName) are not encoded again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cryofire.data.export import write_relion
from cryofire.data.particles import ParticleTable, RelionSource
from cryofire.data.read import read_particles
from cryofire.errors import InputError, MissingFileError
from cryofire.formats.star import StarBlock, integer_column, read_star, text_column, write_star
from cryofire.training.append_star import appended
from cryofire.training.encode import check_folder, encode_particles
from cryofire.training.model_file import DeliveredModel
from cryofire.training.progress import Progress, SilentProgress

IMAGE = "rlnImageName"
FIRST_ROUND = 20_000
"""Most rows between two writes at first; later a quarter of what is there."""


@dataclass(frozen=True)
class FollowSettings:
    """How to follow.

    Attributes
    ----------
    polish : int
        Gauss–Newton steps.
    patience : float, optional
        Seconds without anything new after which to stop; without it, until interrupted.
    datadir : Path, optional
        Folder that the stack paths are relative to.
    poll : float
        Seconds between two looks.
    """

    polish: int = 0
    patience: float | None = None
    datadir: Path | None = None
    poll: float = 2.0


def follow(source: Path, output: Path, model: DeliveredModel, settings: FollowSettings, progress: Progress) -> int:
    """Encode the rows of a growing STAR file or folder as they come; returns how many rows the output holds at the end.

    Raises
    ------
    MissingFileError
        There is no such file or folder.
    InputError
        The output is another file, or something was still wrong with the input when patience ran out.
    """
    check_folder(output)
    if not source.exists():
        raise MissingFileError("there is nothing to follow", file=source, hint="name a STAR file or a folder of them")
    watch = _Watch(source, output, model, settings, progress, *_continued(output, model, settings.polish))
    progress.note(f"following {source}: {len(watch.done)} particles are in {output} already; Ctrl-C stops")
    last = time.monotonic()
    while True:
        if watch.look(is_last=False):
            last = time.monotonic()
        elif settings.patience is not None and time.monotonic() - last > settings.patience:
            break
        else:
            time.sleep(settings.poll)
    watch.look(is_last=True)
    if watch.pending:
        raise next(iter(watch.pending.values()))
    return len(watch.done)


def _continued(output: Path, model: DeliveredModel, polish: int) -> tuple[tuple[StarBlock, ...], set[bytes]]:
    """Blocks of an output that is there already, and the images it holds."""
    if not output.exists():
        return (), set()
    blocks = read_star(output)
    stamp = next((block for block in blocks if block.name == "cryofire"), None)
    if stamp is None:
        raise InputError(
            "the output exists and was not written by --follow", file=output, hint="name another file with -o"
        )
    if stamp.text("cryofireModel") != [model.digest()] or stamp.text("cryofirePolish") != [str(polish)]:
        raise InputError(
            "the output was written with another model or another --polish",
            file=output,
            hint="name another file with -o, or delete this one to encode everything again",
        )
    particles = next(block for block in blocks if IMAGE in block)
    return blocks, set(particles.columns[IMAGE].tolist())


class _Notes(SilentProgress):
    """Passes every note on once."""

    def __init__(self, listener: Progress) -> None:
        self._listener, self._said = listener, set[str]()

    def note(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._listener.note(text)


@dataclass
class _Watch:
    """What has been seen and done so far."""

    source: Path
    output: Path
    model: DeliveredModel
    settings: FollowSettings
    progress: Progress
    blocks: tuple[StarBlock, ...]
    done: set[bytes]
    seen: dict[Path, tuple[int, int]] = field(default_factory=dict)
    pending: dict[Path, InputError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.notes = _Notes(self.progress)

    def look(self, is_last: bool) -> bool:
        """Encode what is new in every file that changed; whether there was anything."""
        found = False
        for path in self._files():
            mark = _mark(path)
            if self.seen.get(path) == mark and path not in self.pending and not is_last:
                continue
            try:
                found |= self._take_up(path, is_last)
            except InputError as error:
                self.pending[path] = error
                self.notes.note(f"not yet usable: {error}")
                continue
            self.pending.pop(path, None)
            self.seen[path] = mark
        return found

    def _files(self) -> list[Path]:
        if not self.source.is_dir():
            return [self.source]
        mine = self.output.absolute()
        return [path for path in sorted(self.source.rglob("*.star")) if path.absolute() != mine and _has_images(path)]

    def _take_up(self, path: Path, is_last: bool) -> bool:
        table = _complete_rows(path, self.settings.datadir, is_last)
        if table is None or not isinstance(table.source, RelionSource):
            return False
        names = table.source.particles.columns[IMAGE].tolist()
        fresh = {name: row for row, name in enumerate(names) if name not in self.done}
        rows = np.array(sorted(fresh.values()), dtype=np.int64)
        while len(rows):
            size = max(FIRST_ROUND, len(self.done) // 4)
            self._append(table, rows[:size])
            rows = rows[size:]
        return bool(fresh)

    def _append(self, table: ParticleTable, rows: np.ndarray) -> None:
        estimates = encode_particles(table, self.model, self.settings.polish, self.notes, rows)
        part = table.take(rows)
        temporary = self.output.with_name(f".{self.output.name}.rows")
        try:
            write_relion(part, estimates, temporary)
            new = read_star(temporary)
        finally:
            temporary.unlink(missing_ok=True)
        blocks = appended(self.blocks, new, table.path)
        write_star(self.output, (*(block for block in blocks if block.name != "cryofire"), self._stamp()))
        self.blocks = blocks
        if isinstance(part.source, RelionSource):
            self.done.update(part.source.particles.columns[IMAGE].tolist())
        self.progress.note(f"{len(rows)} particles of {table.path.name} added: {len(self.done)} in all")

    def _stamp(self) -> StarBlock:
        columns = {
            "cryofireModel": text_column([self.model.digest()]),
            "cryofirePolish": integer_column(np.array([self.settings.polish])),
        }
        return StarBlock(self.output, "cryofire", columns, is_loop=False)


def _mark(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _has_images(path: Path) -> bool:
    """The file names particle images; a list of micrographs does not."""
    try:
        return f"_{IMAGE}".encode() in path.read_bytes()
    except OSError:
        return False


def _complete_rows(path: Path, datadir: Path | None, is_last: bool) -> ParticleTable | None:
    """The table without a last row that may still be being written; None where nothing is complete."""
    before = _mark(path)
    table = read_particles(path, datadir)
    try:
        ends = path.read_bytes()[-1:] == b"\n"
    except OSError as error:
        raise MissingFileError(f"cannot open the STAR file: {error.strerror}", file=path) from error
    if is_last or (ends and _mark(path) == before):
        return table
    return table.take(np.arange(len(table) - 1)) if len(table) > 1 else None
