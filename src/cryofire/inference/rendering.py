"""Images rendered from the current decoder, the pose and latent of each known.

Simulation-based inference never runs out of data. Poses are uniform, latents and CTFs are drawn from the data set's own, shifts
about the first guesses of the centres, contrast and noise as measured, so that whatever the data set says of an image before it
is seen is the prior of what the encoder learns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryofire.arrays import Latents
from cryofire.geometry.rotations import random_rotations
from cryofire.inference.linear_model import predicted
from cryofire.inference.polish import ImageStates
from cryofire.physics.ctf import ContrastTransfer
from cryofire.physics.imaging import ImageBatch, WhitenedImages
from cryofire.physics.projection import SpectrumGrid, spectrum_grid

SHIFT_MARGIN = 1.1
"""Rendered shifts spread this much wider than measured, as real ones have tails."""


@dataclass(frozen=True)
class Renderer:
    """Source of rendered images.

    Attributes
    ----------
    grid : SpectrumGrid
        Spectra of the mean and the components.
    images : WhitenedImages
        Whose CTFs and noise are used.
    latents, latent_std : Float[Tensor, "particle component"]
        Estimates of the data set; a latent is drawn from the posterior of a random image.
    shift_std_px, contrast_std : float
        Of the shifts about the first guesses of the centres, and of the contrast about 1.
    """

    grid: SpectrumGrid
    images: WhitenedImages
    latents: Latents
    latent_std: Float[Tensor, "particle component"]
    shift_std_px: float
    contrast_std: float

    def on(self, device: torch.device) -> Renderer:
        """The same, rendering on a device."""
        return replace(self, grid=self.grid.on(device))

    def draw(self, count: int, generator: torch.Generator) -> tuple[ImageBatch, ImageStates]:
        """Rendered images, where the spectra are, and their states."""
        plane = self.images.plane.truncated(self.grid.max_shell)
        source = torch.randint(len(self.latents), (count,), generator=generator)
        noise = torch.randn(count, self.latents.shape[1], generator=generator)
        states = ImageStates(
            random_rotations(count, generator),
            self.shift_std_px * torch.randn(count, 2, generator=generator),
            (1 + self.contrast_std * torch.randn(count, generator=generator)).clamp_min(0.1),
            self.latents[source] + self.latent_std[source] * noise,
        )
        modulation = self._modulation(count, plane.frequencies, generator)
        modulation /= self._sigma(plane.shells).to(modulation)
        silent = ImageBatch(torch.zeros_like(modulation, dtype=torch.complex64), modulation, plane)
        return with_noise(silent, predicted(silent, self.grid, states), generator), states

    def _modulation(self, count: int, frequencies: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(self.images), (count,), generator=generator)
        ctf: ContrastTransfer = self.images.ctf.take(chosen).on(self.grid.values.device)
        return ctf.evaluate(frequencies)

    def _sigma(self, shells: Tensor) -> Tensor:
        return self.images.noise[shells] * self.images.correction[shells]


def with_noise(batch: ImageBatch, signal: Tensor, generator: torch.Generator) -> ImageBatch:
    """The batch with a signal as data, plus white complex noise of unit power."""
    noise = torch.view_as_complex(torch.randn(*signal.shape, 2, generator=generator)) * math.sqrt(0.5)
    return ImageBatch(signal + noise.to(signal.device), batch.modulation, batch.plane)


def make_renderer(
    maps: Float[Tensor, "coordinate z y x"],
    images: WhitenedImages,
    latents: Latents,
    latent_std: Float[Tensor, "particle component"],
    shift_std_px: float,
    contrast_std: float,
    max_shell: int,
) -> Renderer:
    """Renderer of maps (the mean, then the components) up to a shell."""
    shell = min(max_shell, images.plane.max_shell)
    return Renderer(spectrum_grid(maps, shell), images, latents, latent_std, SHIFT_MARGIN * shift_std_px, contrast_std)
