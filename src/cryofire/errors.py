"""Errors a user can act on: what is wrong, where, and what to do next."""

from __future__ import annotations

from pathlib import Path


class CryofireError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(CryofireError):
    """Something the user gave cannot be used.

    Parameters
    ----------
    problem : str
        What is wrong, in one sentence.
    file, row, field : optional
        Where it is wrong. Rows count particles from 1, as users do.
    hint : str, optional
        What to do next.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        row: int | None = None,
        field: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.problem, self.file, self.row, self.field, self.hint = problem, file, row, field, hint
        super().__init__(self._message())

    def _message(self) -> str:
        place = [
            f"file {self.file}" if self.file is not None else "",
            f"row {self.row}" if self.row is not None else "",
            f"field {self.field}" if self.field is not None else "",
        ]
        where = ", ".join(part for part in place if part)
        message = f"{self.problem} ({where})" if where else self.problem
        return f"{message}\n  what to do: {self.hint}" if self.hint else message


class MissingFileError(InputError):
    """A file that was named does not exist or cannot be read."""


class FileFormatError(InputError):
    """A file exists but is truncated, damaged or of a kind that cannot be read."""


class TableError(InputError):
    """A particle table lacks a column, or a value in it is impossible."""


class ImageError(InputError):
    """An image is unusable: wrong size, constant, or not finite."""


class SettingError(InputError):
    """A setting is unknown or out of range."""


class RunFolderError(InputError):
    """A run folder belongs to other data, another version, or is incomplete."""


class ReconstructionFailure(CryofireError):
    """The data could not be explained; the message says what was tried and what was seen."""
