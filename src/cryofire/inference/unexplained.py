"""What a model leaves unexplained, image by image: how much of it in all, and images that show something else than the particle.

An image in a wrong pose leaves at the most the power of its own particle and that of the predicted one, and so does a conformation
that the model lacks. What leaves more is no particle, or not only one: ice, a bead, the edge of the carbon.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryofire.inference.linear_model import LinearModel, predicted
from cryofire.inference.outlying import outlying
from cryofire.inference.polish import ImageStates
from cryofire.physics.imaging import WhitenedImages, batches
from cryofire.physics.projection import spectrum_grid

LEAST_SHELL = 3
"""Lower shells are left out: a background that varies across an image is power there."""
FOREIGN = 3.0
"""An outlier leaves this many times the power of a particle. Measured: particles leave up to 1.4 where noise is not the reason, and
dark discs of 5 to 20 deviations of the noise from 1.7 to 27."""
OUTLYING = 8.0
"""And it lies as many standard deviations above the others: at low signal, noise alone leaves the power of several particles."""
RARE = 0.05
"""Images that are more than this share are no outliers, but a kind of their own."""


@dataclass(frozen=True)
class Unexplained:
    """Power of images in units of the variance of a coefficient's noise, summed over the half plane from shell 3 on.

    The noise is the one first measured around the particles.

    Attributes
    ----------
    left : Float[Tensor, "particle"]
        Beyond the noise, after the model's image was subtracted.
    explained : Float[Tensor, "particle"]
        Of the model's image.
    """

    left: Float[Tensor, " particle"]
    explained: Float[Tensor, " particle"]

    @property
    def fraction(self) -> float:
        """Power that is left over the power explained, of all images together.

        Near 0 when poses and conformations are right; images in wrong poses, or a motion that the model lacks, leave their signal.
        """
        return float(self.left.sum()) / max(float(self.explained.sum()), 1e-12)

    def outliers(self) -> Bool[Tensor, " particle"]:
        """Images that show something else than the particle; none where they are many."""
        found = (self.left > FOREIGN * self.explained.median()) & outlying(self.left, OUTLYING)
        return found if float(found.float().mean()) <= RARE else torch.zeros_like(found)


def unexplained(
    images: WhitenedImages, states: ImageStates, model: LinearModel, rows: Int[Tensor, " row"], max_shell: int
) -> Unexplained:
    """What the joint maps leave of some images, and what they explain, up to a shell."""
    grid = spectrum_grid(model.maps.joint, max_shell)
    left, explained = torch.empty(len(rows)), torch.empty(len(rows))
    for place in batches(torch.arange(len(rows))):
        batch = images.batch(rows[place], max_shell)
        inner = batch.plane.shells >= LEAST_SHELL
        scale = images.correction[batch.plane.shells].square()[inner]
        expected = predicted(batch, grid, states.take(rows[place]))[:, inner]
        residual = batch.data[:, inner] - expected
        left[place] = (scale * residual.abs().square() - 1).sum(1)
        explained[place] = (scale * expected.abs().square()).sum(1)
    return Unexplained(left, explained)
