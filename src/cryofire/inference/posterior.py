"""What is believed of an image after seeing it: a mixture of Gaussians over pose and conformation.

Each mode holds a mean and the covariance of θ = (left tangent of the rotation in radians, shift in pixels, latent)
about it, so that R = exp(w) R_mode with w Gaussian. Several modes, because the pose of a noisy image is ambiguous.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryofire.inference.polish import ImageStates


@dataclass(frozen=True)
class Posterior:
    """Mixture posterior of some images, modes in order of falling weight.

    Attributes
    ----------
    weights : Float[Tensor, "particle mode"]
        Sum to 1.
    rotations : Float[Tensor, "particle mode 3 3"]
    shifts_px : Float[Tensor, "particle mode 2"]
        In pixels of the working box, the origin of the image being their zero.
    latents : Float[Tensor, "particle mode component"]
    covariance : Float[Tensor, "particle mode parameter parameter"]
        Of (rotation tangent 3, shift 2, latent).
    """

    weights: Float[Tensor, "particle mode"]
    rotations: Float[Tensor, "particle mode 3 3"]
    shifts_px: Float[Tensor, "particle mode 2"]
    latents: Float[Tensor, "particle mode component"]
    covariance: Float[Tensor, "particle mode parameter parameter"]

    def __len__(self) -> int:
        return self.weights.shape[0]

    def on(self, device: torch.device) -> Posterior:
        """The same on a device."""
        return Posterior(*(value.to(device) for value in vars(self).values()))

    def states(self, mode: int = 0) -> ImageStates:
        """Pose and latent of one mode of every image, at unit contrast."""
        return ImageStates(
            self.rotations[:, mode], self.shifts_px[:, mode], torch.ones(len(self)), self.latents[:, mode]
        )

    def deviations(self, mode: int = 0) -> Float[Tensor, "particle parameter"]:
        """Standard deviations of (rotation tangent, shift, latent) about one mode."""
        return self.covariance[:, mode].diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
