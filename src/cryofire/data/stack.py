"""Lazy access to the images of a particle table."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64

from cryofire.data.particles import ImageStack, ParticleTable
from cryofire.errors import ImageError

_OPEN_STACKS = 256


class ImageStacks:
    """The images of a particle table, read when they are asked for and never loaded whole.

    Parameters
    ----------
    table : ParticleTable
        Its stacks must exist; they are opened one by one when first needed.
    """

    def __init__(self, table: ParticleTable) -> None:
        self._table = table
        self._open: OrderedDict[int, ImageStack] = OrderedDict()

    def __len__(self) -> int:
        return len(self._table)

    def images(self, rows: Int[np.ndarray, " row"] | Bool[np.ndarray, " all"]) -> Float32[np.ndarray, "row y x"]:
        """Images of the given particles, in the given order; the files are read in ascending order.

        Raises
        ------
        ImageError
            A particle names an image that its stack does not have, or the particles have different boxes.
        MissingFileError, FileFormatError
            A stack vanished or was damaged since the table was read.
        """
        particles = np.arange(len(self))[rows]
        result = np.empty((len(particles), *self._shape(particles)), dtype=np.float32)
        stack, frame = self._table.stack[particles], self._table.frame[particles]
        order = np.lexsort((frame, stack))
        for members in np.split(order, np.flatnonzero(np.diff(stack[order])) + 1):
            if len(members):
                result[members] = self._frames(int(stack[members[0]]), particles[members])
        return result

    def _shape(self, particles: Int64[np.ndarray, " row"]) -> tuple[int, int]:
        boxes = np.unique(self._table.box[particles])
        if len(boxes) > 1:
            raise ImageError(
                f"images of {' and '.join(str(box) for box in boxes)} px cannot be read together",
                file=self._table.path,
                hint="ask for images of one box at a time",
            )
        return (int(boxes[0]), int(boxes[0])) if len(boxes) else (0, 0)

    def _frames(self, stack: int, particles: Int64[np.ndarray, " row"]) -> Float32[np.ndarray, "row y x"]:
        source, frame = self._stack(stack), self._table.frame[particles]
        count, *sides = source.shape
        outside = (frame < 0) | (frame >= count)
        if np.any(outside):
            first = int(np.argmax(outside))
            raise ImageError(
                f"image {frame[first] + 1} does not exist: the stack {source.path} has {count} images",
                file=self._table.path,
                row=int(particles[first]) + 1,
                hint="the table and the stack do not belong together, or the stack was cut short",
            )
        box = int(self._table.box[particles[0]])
        if sides != [box, box]:
            raise ImageError(f"the images are no longer of {box} px", file=source.path)
        return source.frames(frame)

    def _stack(self, stack: int) -> ImageStack:
        """Return an open stack; the least recently used one gives way where too many are open."""
        if stack not in self._open:
            self._open[stack] = self._table.opener(self._table.stack_paths[stack])
            if len(self._open) > _OPEN_STACKS:
                self._open.popitem(last=False)
        self._open.move_to_end(stack)
        return self._open[stack]
