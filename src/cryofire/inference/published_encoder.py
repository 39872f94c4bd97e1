"""The encoder of the published recipe: an image goes in, one pose and one conformation come out.

A bank of Gaussian low-pass filters, exp(-|k|² / 2c²) with cut-offs c in geometric steps, makes several channels of an image; a
stack of 3 × 3 convolutions with pooling (after VGG; Simonyan & Zisserman 2014) makes features of them; three small networks read
the rotation, the shift and z off the features. Rotations are predicted as two vectors of space that Gram–Schmidt turns into the
first two rows of R (S² × S²; Zhou et al. 2019), which is continuous where Euler angles and quaternions are not.

The method is that of Levy et al., NeurIPS 2022 (cryoFIRE), with the encoder of Levy et al., ECCV 2022 (cryoAI).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryofire.arrays import Coefficients, Latents, Rotations, Shifts
from cryofire.geometry.grids import half_plane
from cryofire.volumes.slice_field import mixed_precision, start_weights

SMALLEST = 4
"""Pooling stops before an image gets smaller than this."""
GROUPS = 8
SHIFT_SCALE = 0.05
"""Shifts are predicted in units of this fraction of the box."""


@dataclass(frozen=True)
class EncoderShape:
    """Size of the encoder.

    Attributes
    ----------
    box : int
        Box n of the images in pixels.
    components : int
        Coordinates of z.
    channels : int
        Width of the first convolutions, a multiple of 8; doubled by each pooling, up to eight times.
    hidden : int
        Width of the features and of the heads.
    filters : int
        Low-pass filters in the bank.
    """

    box: int
    components: int
    channels: int = 32
    hidden: int = 256
    filters: int = 5


@dataclass(frozen=True)
class PointEstimate:
    """What the encoder says of each image; no uncertainty is part of the published method.

    Attributes
    ----------
    rotations : Float[Tensor, "particle 3 3"]
    shifts_px : Float[Tensor, "particle 2"]
        In pixels of the working box, from the image's origin.
    latents : Float[Tensor, "particle component"]
    """

    rotations: Rotations
    shifts_px: Shifts
    latents: Latents

    def __len__(self) -> int:
        return self.rotations.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> PointEstimate:
        return PointEstimate(self.rotations[rows], self.shifts_px[rows], self.latents[rows])


class PublishedEncoder(nn.Module):
    """Convolutional encoder with heads for rotation, shift and conformation.

    Parameters
    ----------
    shape : EncoderShape
        Its size.
    generator : torch.Generator
        Of the weights.
    """

    filters: Tensor
    scale: Tensor

    def __init__(self, shape: EncoderShape, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.plane = half_plane(shape.box)
        self.register_buffer("filters", filter_bank(shape))
        self.register_buffer("scale", torch.ones(shape.filters))
        self.features = nn.Sequential(*_backbone(shape))
        self.rotation = _head(shape.hidden, 6)
        self.shift = _head(shape.hidden, 2)
        self.latent = _head(shape.hidden, shape.components)
        start_weights(self, generator)
        for weight in self.features.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        for output in (self.shift[-1], self.latent[-1]):
            if isinstance(output, nn.Linear):
                output.weight.data *= 0.1

    def forward(self, data: Coefficients) -> PointEstimate:
        """Pose and conformation of images given by their whitened half-plane coefficients (all shells of the box)."""
        images = self.channels(data) / self.scale[:, None, None]
        with mixed_precision(images.device):
            features = self.features(images.contiguous(memory_format=torch.channels_last))
            vectors, shifts, latents = self.rotation(features), self.shift(features), self.latent(features)
        return PointEstimate(
            rotation_from_vectors(vectors.to(images.dtype)),
            SHIFT_SCALE * self.shape.box * shifts.to(images.dtype),
            latents.to(images.dtype),
        )

    def channels(self, data: Coefficients) -> Float[Tensor, "particle filter y x"]:
        """Filtered images, of unit variance where an image is white noise."""
        return self.plane.images(data[:, None] * self.filters)

    def fit_scale(self, data: Coefficients) -> None:
        """Set the scale of every channel to its standard deviation in the given images."""
        with torch.no_grad():
            self.scale.copy_(self.channels(data).square().mean((0, 2, 3)).sqrt())


def filter_bank(shape: EncoderShape) -> Float[Tensor, "filter coefficient"]:
    """Gaussian low-pass filters with cut-offs from the largest shell down to shell 2, times n² / √(2 Σ filter²)."""
    plane = half_plane(shape.box)
    cutoffs = plane.max_shell * (2 / plane.max_shell) ** torch.linspace(0, 1, shape.filters)
    square = plane.frequencies.square().sum(-1).float()
    filters = torch.exp(-square / (2 * cutoffs[:, None] ** 2))
    return filters * shape.box**2 / (2 * filters.square().sum(1, keepdim=True)).sqrt()


def rotation_from_vectors(vectors: Float[Tensor, "*batch 6"]) -> Rotations:
    """Rotation whose first row is along the first vector and whose second row is in the plane of both (Gram–Schmidt)."""
    first = nn.functional.normalize(vectors[..., :3], dim=-1)
    rest = vectors[..., 3:] - (first * vectors[..., 3:]).sum(-1, keepdim=True) * first
    second = nn.functional.normalize(rest, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-2)


def _backbone(shape: EncoderShape) -> list[nn.Module]:
    layers: list[nn.Module] = []
    size, before, width = shape.box, shape.filters, shape.channels
    while True:
        for _ in range(2):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.GroupNorm(GROUPS, width), nn.ReLU()]
            before = width
        if size // 2 < SMALLEST:
            break
        layers.append(nn.MaxPool2d(2))
        size, width = size // 2, min(2 * width, 8 * shape.channels)
    return [*layers, nn.Flatten(), nn.Linear(before * size * size, shape.hidden), nn.ReLU()]


def _head(hidden: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, size))


def turned_half_way(estimate: PointEstimate) -> PointEstimate:
    """Estimates of images after those images are turned by 180° in their plane: R → diag(-1, -1, 1) R, t → -t."""
    turn = torch.tensor([-1.0, -1.0, 1.0]).to(estimate.rotations)
    return PointEstimate(turn[:, None] * estimate.rotations, -estimate.shifts_px, estimate.latents)
