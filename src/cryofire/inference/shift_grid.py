"""Shifts that are tried about the centres of images, and how likely each is before anything is compared."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from cryofire.arrays import Shifts
from cryofire.geometry.so3_grid import shift_disc

DEVIATIONS = 3.2
"""Radius of a disc of shifts, in standard deviations of the shifts that it is for."""


@dataclass(frozen=True)
class ShiftGrid:
    """Shifts on a lattice, normally distributed about the origin.

    Attributes
    ----------
    shifts_px : Float[Tensor, "shift 2"]
        (x, y), the origin first.
    log_weight : Float[Tensor, "shift"]
        Log of the probability of each, relative to the mean: the weights have a mean of 1.
    """

    shifts_px: Shifts
    log_weight: Float[Tensor, " shift"]

    def __len__(self) -> int:
        return len(self.log_weight)

    @classmethod
    def disc(cls, radius_px: float, spacing_px: float) -> ShiftGrid:
        """A disc of `DEVIATIONS` standard deviations."""
        shifts = shift_disc(radius_px, spacing_px)
        square = (shifts * (DEVIATIONS / radius_px)).square().sum(1)
        return cls(shifts, (-square / 2).log_softmax(0) + math.log(len(shifts)))
