"""STAR files of RELION 3.0 to 5: every value is kept as the text it was, and so written back exactly."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64, Shaped

from cryofire.errors import FileFormatError, MissingFileError, TableError
from cryofire.formats.atomic import replacing

Column = Shaped[np.ndarray, " row"]  # of bytes

_BLOCK_LINE = re.compile(rb"^[ \t]*data_(\S*)[ \t]*(?:#.*)?$", re.MULTILINE)
_VERSION = re.compile(rb"^# version (\d{1,9})\s*$", re.MULTILINE)
_TOKEN = re.compile(rb"\"[^\"]*\"(?=\s|$)|'[^']*'(?=\s|$)|#.*|\S+")
_ROWS_AT_ONCE = 100_000  # bounds the memory of a parse


@dataclass(frozen=True)
class StarBlock:
    """One data block of a STAR file.

    Attributes
    ----------
    path : Path
        The file it was read from, for messages.
    name : str
        What follows ``data_``; may be empty.
    columns : mapping
        Text of every row under each label; labels are spelt without the leading underscore.
    is_loop : bool
        True for a table, False for a list of single values.
    version : int or None
        Number in the ``# version`` comment above it; RELION before 3.1 wrote none.
    """

    path: Path
    name: str
    columns: Mapping[str, Column]
    is_loop: bool = True
    version: int | None = 30001

    def __len__(self) -> int:
        return max((len(column) for column in self.columns.values()), default=0)

    def __contains__(self, label: str) -> bool:
        return label in self.columns

    def text(self, label: str) -> list[str]:
        """Values of a column without their quotes.

        Raises
        ------
        TableError
            There is no such column.
        """
        return [_unquoted(value) for value in self._column(label).tolist()]

    def floats(self, label: str) -> Float64[np.ndarray, " row"]:
        """Values of a column as numbers; raises `TableError` naming the first row that is none."""
        column = self._column(label)
        try:
            return column.astype(np.float64)
        except ValueError:
            is_number = [_is_number(value) for value in column.tolist()]
            raise self._bad_value(label, is_number.index(False), "a number") from None

    def integers(self, label: str) -> Int64[np.ndarray, " row"]:
        """Values of a column as whole numbers; raises `TableError` naming the first row that is none."""
        values = self.floats(label)
        whole = np.isfinite(values) & (values == np.round(values)) & (np.abs(values) < 2**53)
        if not np.all(whole):
            raise self._bad_value(label, int(np.argmin(whole)), "a whole number")
        return values.astype(np.int64)

    def take(self, rows: Int[np.ndarray, " row"] | Bool[np.ndarray, " all"]) -> StarBlock:
        """Return the block with the given rows only."""
        return replace(self, columns={label: column[rows] for label, column in self.columns.items()})

    def updated(self, columns: Mapping[str, Column]) -> StarBlock:
        """Return the block with these columns replaced where they exist and appended where they do not."""
        return replace(self, columns={**self.columns, **columns})

    def _column(self, label: str) -> Column:
        if label not in self.columns:
            raise TableError("the column is missing", file=self.path, field=label)
        return self.columns[label]

    def _bad_value(self, label: str, row: int, expected: str) -> TableError:
        value = _unquoted(self.columns[label][row])
        return TableError(f"'{value}' is not {expected}", file=self.path, row=row + 1, field=label)


def read_star(path: Path) -> tuple[StarBlock, ...]:
    """Read the blocks of a STAR file, in the order of the file.

    Comments are dropped; values keep their text, quotes included.

    Raises
    ------
    MissingFileError
        The file cannot be opened.
    FileFormatError
        It is no STAR file, has two blocks or two columns of one name, or a row with too many or too few values.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MissingFileError(f"cannot open the STAR file: {error.strerror}", file=path) from error
    if b"\0" in content:
        raise FileFormatError("the file is binary, not a STAR file", file=path, hint="name a .star or a .cs file")
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    marks = list(_BLOCK_LINE.finditer(content))
    if not marks:
        raise FileFormatError("the file has no line that begins a data block (data_...)", file=path)
    begins = [0] + [mark.end() for mark in marks]
    ends = [mark.start() for mark in marks] + [len(content)]
    parts = [content[begin:end] for begin, end in zip(begins, ends, strict=True)]
    blocks = tuple(
        replace(_parse_block(path, mark.group(1), body), version=_version(before))
        for mark, before, body in zip(marks, parts[:-1], parts[1:], strict=True)
    )
    names = [block.name for block in blocks]
    if len(set(names)) < len(names):
        raise FileFormatError("two data blocks have the same name", file=path)
    return blocks


def _version(before: bytes) -> int | None:
    """Return the version stated just before a block."""
    stated = _VERSION.search(before[-200:])
    return int(stated.group(1)) if stated else None


def _parse_block(path: Path, name: bytes, body: bytes) -> StarBlock:
    block = os.fsdecode(name)
    lines = body.splitlines()
    first = 0
    labels: list[bytes] = []
    single_values: dict[str, Column] = {}
    is_loop = False
    for line in lines:
        tokens = _tokens(line)
        if tokens == [b"loop_"] and not labels and not single_values:
            is_loop = True
        elif tokens and is_loop and tokens[0].startswith(b"_"):
            labels.append(tokens[0][1:])
        elif tokens and not is_loop:
            if len(tokens) != 2 or not tokens[0].startswith(b"_"):
                raise FileFormatError(f"cannot understand the line '{_shown(line)}'", file=path, field=f"data_{block}")
            single_values[os.fsdecode(tokens[0][1:])] = np.array(tokens[1:])
        elif tokens:
            break
        first += 1
    if not is_loop:
        return StarBlock(path, block, single_values, is_loop=False)
    names = [os.fsdecode(label) for label in labels]
    if len(set(names)) < len(names) or not names:
        raise FileFormatError("a table has no columns or two columns of one name", file=path, field=f"data_{block}")
    return StarBlock(path, block, dict(zip(names, _parse_rows(path, block, lines[first:], len(names)), strict=True)))


def _parse_rows(path: Path, block: str, lines: Sequence[bytes], width: int) -> list[Column]:
    """Columns of the rows of a loop."""
    chunks: list[list[Column]] = []
    done = 0
    for begin in range(0, len(lines), _ROWS_AT_ONCE):
        rows = _split_rows(lines[begin : begin + _ROWS_AT_ONCE])
        wrong = next((row for row, values in enumerate(rows) if len(values) != width), None)
        if wrong is not None:
            raise FileFormatError(
                f"the row has {len(rows[wrong])} values but the table data_{block} has {width} columns",
                file=path,
                row=done + wrong + 1,
                hint="the file was cut short or edited by hand: write it again with the program that made it",
            )
        if rows:
            chunks.append([np.array(column) for column in zip(*rows, strict=True)])
        done += len(rows)
    if not chunks:
        return [np.array([], dtype="S1") for _ in range(width)]
    return [np.concatenate(parts) for parts in zip(*chunks, strict=True)]


def _split_rows(lines: Sequence[bytes]) -> list[list[bytes]]:
    """Tokens of each line that has some. Plain lines, nearly all there are, take the fast way."""
    rows = [_tokens(line) if b"#" in line or b'"' in line or b"'" in line else line.split() for line in lines]
    return [row for row in rows if row]


def _tokens(line: bytes) -> list[bytes]:
    return [token for token in _TOKEN.findall(line) if not token.startswith(b"#")]


def _unquoted(value: bytes) -> str:
    if len(value) >= 2 and value[:1] == value[-1:] and value[:1] in (b"'", b'"'):
        value = value[1:-1]
    return os.fsdecode(value)


def _is_number(value: bytes) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _shown(line: bytes) -> str:
    return line[:60].decode(errors="replace")


def write_star(path: Path, blocks: Iterable[StarBlock]) -> None:
    """Write blocks to a STAR file that RELION reads; atomic.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        for block in blocks:
            version = b"" if block.version is None else b"# version %d\n\n" % block.version
            file.write(b"\n" + version + b"data_" + os.fsencode(block.name) + b"\n\n")
            file.writelines(_loop_lines(block) if block.is_loop else _single_lines(block))
            file.write(b"\n")


def _loop_lines(block: StarBlock) -> Iterable[bytes]:
    yield b"loop_\n"
    for number, label in enumerate(block.columns, 1):
        yield b"_%b #%d\n" % (os.fsencode(label), number)
    for begin in range(0, len(block), _ROWS_AT_ONCE):
        columns = [column[begin : begin + _ROWS_AT_ONCE].tolist() for column in block.columns.values()]
        yield b"".join(b"\t".join(row) + b"\n" for row in zip(*columns, strict=True))


def _single_lines(block: StarBlock) -> Iterable[bytes]:
    for label, column in block.columns.items():
        yield b"_%b %b\n" % (os.fsencode(label), column[0])


def float_column(values: Float[np.ndarray, " row"], decimals: int = 6) -> Column:
    """Text of numbers with a fixed number of decimals, as RELION writes them; NaN becomes ``nan``."""
    return np.array([b"%.*f" % (decimals, value) for value in np.asarray(values, dtype=np.float64).tolist()], dtype="S")


def integer_column(values: Int[np.ndarray, " row"] | Bool[np.ndarray, " row"]) -> Column:
    """Text of whole numbers; True is 1."""
    return np.array([b"%d" % value for value in np.asarray(values).tolist()], dtype="S")


def text_column(values: Iterable[str]) -> Column:
    """Text of strings, quoted where they are empty or hold a space."""
    return np.array([_quoted(os.fsencode(value)) for value in values], dtype="S")


def _quoted(value: bytes) -> bytes:
    if value and len(value.split()) == 1 and not value.startswith((b'"', b"'", b"#")) and value == value.strip():
        return value
    return b'"' + value + b'"'
