"""Values far above most of the others, by a spread that a few far ones do not change."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

GAUSSIAN_MAD = 1.4826
"""Standard deviation of a Gaussian over its median absolute deviation."""


def outlying(values: Float[Tensor, " particle"], deviations: float) -> Bool[Tensor, " particle"]:
    """Values that exceed the median by more than so many standard deviations of the bulk."""
    excess = values - values.median()
    return excess > deviations * GAUSSIAN_MAD * excess.abs().median()
