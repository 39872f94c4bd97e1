"""Joining STAR tables of one project: rows are appended, optics groups are kept apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from cryofire.errors import TableError
from cryofire.formats.star import Column, StarBlock

GROUP, GROUP_NAME = "rlnOpticsGroup", "rlnOpticsGroupName"


def appended(old: tuple[StarBlock, ...], new: tuple[StarBlock, ...], path: Path) -> tuple[StarBlock, ...]:
    """Blocks with the particles of `new` behind those of `old`, in the columns of `old`.

    An optics group of `new` that differs from the one of its number in `old` gets a number of its own.

    Parameters
    ----------
    old, new : tuple of StarBlock
        Both with a particle table; `old` may be empty.
    path : Path
        File that `new` came from, for messages.

    Raises
    ------
    TableError
        A column of `old` is missing in `new`.
    """
    if not old:
        return new
    particles, more = _particles(old), _particles(new)
    optics, more_optics = _named(old, "optics"), _named(new, "optics")
    if (optics is None) != (more_optics is None):
        raise TableError(
            "the file has optics groups and the first one has none, or the other way round",
            file=path,
            hint="follow files of one version of RELION together",
        )
    joined = {}
    if optics is not None and more_optics is not None:
        merged, numbers = _merged_optics(optics, more_optics, path)
        joined["optics"] = merged
        groups = [numbers[number] for number in more.columns[GROUP].tolist()]
        more = more.updated({GROUP: np.array(groups, dtype="S")})
    joined[particles.name] = _concatenated(particles, more, path)
    return tuple(joined.get(block.name, block) for block in old)


def _particles(blocks: tuple[StarBlock, ...]) -> StarBlock:
    return next(block for block in blocks if "rlnImageName" in block)


def _named(blocks: tuple[StarBlock, ...], name: str) -> StarBlock | None:
    return next((block for block in blocks if block.name == name), None)


def _concatenated(first: StarBlock, second: StarBlock, path: Path) -> StarBlock:
    columns: dict[str, Column] = {}
    for label, column in first.columns.items():
        if label not in second:
            raise TableError(
                "the column is missing, which the first file has",
                file=path,
                field=label,
                hint="follow files with the same columns together, the others with an output of their own",
            )
        columns[label] = np.concatenate([column, second.columns[label]])
    return replace(first, columns=columns)


def _merged_optics(old: StarBlock, new: StarBlock, path: Path) -> tuple[StarBlock, Mapping[bytes, bytes]]:
    """All optics groups, and the number that each of the new ones has among them."""
    merged, numbers = old, dict[bytes, bytes]()
    for row in range(len(new)):
        group = new.take(np.array([row]))
        number = bytes(group.columns[GROUP][0])
        same = _same_group(merged, group)
        if same is None:
            taken = {int(one) for one in merged.columns[GROUP].tolist()}
            same = number if int(number) not in taken else b"%d" % (max(taken) + 1)
            renumbered = {GROUP: np.array([same], dtype="S")}
            if same != number and GROUP_NAME in group:
                renumbered[GROUP_NAME] = np.array([b"opticsGroup" + same], dtype="S")
            merged = _concatenated(merged, group.updated(renumbered), path)
        numbers[number] = same
    return merged, numbers


def _same_group(merged: StarBlock, group: StarBlock) -> bytes | None:
    """Number of the group in `merged` that says the same of the optics."""
    told = [label for label in merged.columns if label not in (GROUP, GROUP_NAME) and label in group]
    for row in range(len(merged)):
        if all(merged.columns[label][row] == group.columns[label][0] for label in told):
            return bytes(merged.columns[GROUP][row])
    return None
